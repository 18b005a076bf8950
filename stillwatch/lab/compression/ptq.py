"""PTQ: a float ONNX graph -> the same graph with INT8 weights and activations, calibrated on frames, by NNCF.

In: model.onnx, calibration frames, a Way: what stays float. Out: a file of QDQ nodes that every runtime reads.
Called by quantise, which judges what comes out. It knows no run, no label, no torch and no accuracy of its own.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillwatch.atomic import atomic
from stillwatch.inference import telemetry

Frame: TypeAlias = Callable[[int], NDArray[np.uint8]]  # row -> (1,*shape)
Check: TypeAlias = Callable[[Path, Sequence[int]], float]  # (file, validation rows) -> a score, higher is better

HEAVY = ("Conv", "Gemm", "MatMul")  # what INT8 makes faster
POOLS = ("ReduceMean", "GlobalAveragePool")
SE_MOST = 12  # nodes of a squeeze-and-excitation block, its own activations spelt out
LARGE = 256  # values, from which on a float weight is stored as float16
HALF = 65504  # the largest float16
RANKING = 100  # validation frames by which layers are ranked
BACK = 12  # layers that go back to float at most: a net with more of them is no faster than one all in float


class QuantConfig(NamedTuple):
    """One arrangement of INT8 and float."""

    name: str
    float_se: bool = False  # pool and product of squeeze-and-excitation stay float; NNCF never takes its convolutions
    plain: bool = False  # one scale an activation, first convolution float: all that ONNX Runtime fuses


class Control(NamedTuple):
    """Accuracy-aware: layers go back to float, the most harmful first, until check falls by at most max_drop."""

    check: Check
    rows: Sequence[int]  # of the validation split
    frame: Frame
    max_drop: float  # in check's unit


def quantised(
    source: Path, target: Path, rows: Sequence[int], frame: Frame, way: QuantConfig, control: Control | None = None
) -> Path:
    """Quantise the weights (per output channel, symmetric) and activations (affine) of source into target.

    rows, frame: the calibration frames, frame(row) uint8 (1,*shape). Depthwise convolutions get one activation scale a
    channel unless the way is plain. Biases take up the mean error of each layer, one layer after the other (Nagel
    et al. 2019, Data-Free Quantization, §4.2; NNCF's full correction, not its fast one). The front door and what
    follows the last layer stay float. control: see Control; without it every layer is quantised.
    """
    import onnx

    model = _on_half_grid(onnx.load(source))
    with _nncf() as nncf:
        settings: dict[str, Any] = {
            "preset": nncf.QuantizationPreset.MIXED,
            "subset_size": len(rows),
            "fast_bias_correction": False,
            "ignored_scope": nncf.IgnoredScope(names=ignored(model, way)),
        }
        calibration = nncf.Dataset(rows, lambda row: {"frames": frame(row)})
        about = nncf.AdvancedQuantizationParameters()
        if way.plain:
            from nncf.quantization.advanced_parameters import QuantizationParameters

            about.activations_quantization_params = QuantizationParameters(per_channel=False)
        if control is None:
            made = nncf.quantize(model, calibration, advanced_parameters=about, **settings)
        else:
            made = nncf.quantize_with_accuracy_control(
                model,
                calibration,
                nncf.Dataset(control.rows, lambda row: {"frames": control.frame(row)}),
                _measured(control.check),
                max_drop=control.max_drop,
                drop_type=nncf.DropType.ABSOLUTE,
                advanced_quantization_parameters=about,
                advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                    max_num_iterations=BACK,
                    ranking_subset_size=min(RANKING, len(control.rows)),
                    num_ranking_workers=1,
                ),
                **settings,
            )
    return _write(halved(unsigned(made)), target)


def ignored(model: Any, way: QuantConfig) -> list[str]:
    """Names of the nodes that stay float: the front door, what follows the last layer, and what the way says."""
    nodes = list(model.graph.node)
    heavy = [number for number, node in enumerate(nodes) if node.op_type in HEAVY]
    names = [node.name for node in (*nodes[: heavy[0]], *nodes[heavy[-1] + 1 :])]
    if way.plain:
        names.append(nodes[heavy[0]].name)
    if way.float_se:
        names += squeezes(model)
    return list(dict.fromkeys(names))


def squeezes(model: Any) -> list[str]:
    """The nodes of all squeeze-and-excitation blocks (Hu et al. 2018), pool and product included.

    A block is a product of a map and of something that follows, through a pool, from that very map and constants.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    found: list[str] = []
    for node in model.graph.node:
        if node.op_type == "Mul":
            for start, gate in (tuple(node.input), tuple(node.input)[::-1]):
                between = _between(start, gate, makers)
                if any(inner.op_type in POOLS for inner in between):
                    found += [node.name, *(inner.name for inner in between)]
    return list(dict.fromkeys(found))


def _between(start: str, end: str, makers: dict[str, Any]) -> list[Any]:
    """All nodes on the ways from tensor start to tensor end; [] where end also follows from something else."""
    between: dict[str, Any] = {}
    ahead = [end]
    while ahead:
        name = ahead.pop()
        if name == start or (name not in makers and name in between):
            continue
        node = makers.get(name)
        if node is None:  # a constant, or the net's own input
            if name == "frames":
                return []
            continue
        if node.name not in between:
            between[node.name] = node
            ahead += [name for name in node.input if name]
        if len(between) > SE_MOST:
            return []
    return list(between.values())


def unsigned(model: Any) -> Any:
    """Every activation as uint8, but those with a scale for each channel as int8: the zero points move by 128 and
    nothing else changes.

    ONNX Runtime runs a convolution in INT8 only where its input and output are of one type, and its x86 kernels want
    unsigned activations with signed weights. It cannot run one whose input has a scale a channel, yet tries to where
    the types agree, and fails at the first picture (1.32): so there they must not.
    """
    from onnx import numpy_helper

    fixed = {tensor.name: tensor for tensor in model.graph.initializer}
    made = set[str]()
    added: dict[str, Any] = {}
    for node in model.graph.node:
        makes = node.op_type == "QuantizeLinear" and node.input[0] not in fixed
        if not makes and not (node.op_type == "DequantizeLinear" and node.input[0] in made):
            continue
        if makes:
            made.add(node.output[0])
        zero = numpy_helper.to_array(fixed[node.input[2]])
        wanted, move = (np.int8, -128) if zero.size > 1 else (np.uint8, 128)
        if zero.dtype != wanted:
            name = f"{node.input[2]}_moved"
            added[name] = numpy_helper.from_array((zero.astype(np.int16) + move).astype(wanted), name)
            node.input[2] = name
    model.graph.initializer.extend(added.values())
    return model


def halved(model: Any) -> Any:
    """Weights that stay float are stored as float16 and read as float32.

    Runtimes fold the cast away when they load the file. Of MobileNetV3-small's INT8 file it saves a third: NNCF leaves
    the convolutions of squeeze-and-excitation float.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in _large(model):
        values = numpy_helper.to_array(tensor)
        casts.append(helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}_half"))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _on_half_grid(model: Any) -> Any:
    """The float graph with the weights that `halved` would store: its rounding, 2^-11, comes before INT8's 2^-8, so
    that what is calibrated and checked is what is written."""
    from onnx import numpy_helper

    for tensor in _large(model):
        values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


def _large(model: Any) -> Iterator[Any]:
    """Float weights worth storing in half, and that half can hold; biases, which NNCF corrects, are not among them."""
    from onnx import TensorProto, numpy_helper

    for tensor in model.graph.initializer:
        large = len(tensor.dims) > 1 and np.prod(tensor.dims) >= LARGE
        if tensor.data_type == TensorProto.FLOAT and large and np.abs(numpy_helper.to_array(tensor)).max() < HALF:
            yield tensor


def _measured(check: Check) -> Callable[[Any, Any], float]:
    """check as NNCF calls it: (graph, rows) -> score. The graph goes through a file, typed as it will be written."""
    import onnx

    def measure(model: Any, rows: Any) -> float:
        mine = onnx.ModelProto()
        mine.CopyFrom(model)
        with tempfile.TemporaryDirectory() as folder:
            return check(_write(unsigned(mine), Path(folder) / "model.onnx"), list(rows))

    return measure


def _write(model: Any, target: Path) -> Path:
    import onnx

    del model.graph.value_info[:]  # runtimes infer the shapes themselves; some of these types no longer hold
    model.ClearField("metadata_props")
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    with atomic(target) as draft:
        draft.write_bytes(model.SerializeToString())
    return target


@contextlib.contextmanager
def _nncf() -> Iterator[Any]:
    """NNCF as a silent guest: no progress bars or log lines of its own on stdout, and no word to anybody outside."""
    with telemetry.refused(), contextlib.redirect_stdout(io.StringIO()):
        # NNCF imports torch's compiler of extensions, which remarks on a machine without CUDA
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        import nncf

        nncf.set_log_level(logging.ERROR)
        yield nncf
