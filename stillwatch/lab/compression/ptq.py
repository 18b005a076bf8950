"""Post-training quantisation of an ONNX graph to INT8 by NNCF. Imports no run and no data set."""

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stillwatch.inference import runtimes
from stillwatch.inference.streams import Stream
from stillwatch.lab.export.exporters import save_onnx

Frame: TypeAlias = Callable[[int], NDArray[np.uint8]]  # row -> (1,*shape)
Check: TypeAlias = Callable[[Path, Sequence[int]], float]  # (file, validation rows) -> a score, higher is better

HEAVY = ("Conv", "Gemm", "MatMul")  # what INT8 makes faster
POOLS = ("ReduceMean", "GlobalAveragePool")
SE_MOST = 12  # nodes of a squeeze-and-excitation block, its own activations spelt out
LARGE = 256  # values, from which on a float weight is stored as float16
HALF = 65504  # the largest float16
RANKING = 100  # validation frames by which layers are ranked
BACK = 12  # layers that go back to float at most: a net with more of them is no faster than one all in float

opened = lru_cache(maxsize=2)(runtimes.open)


class QuantConfig(NamedTuple):
    name: str
    float_se: bool = False  # pool and product of squeeze-and-excitation stay float; NNCF never takes its convolutions
    plain: bool = False  # one scale an activation, first convolution float: all that ONNX Runtime fuses


class Control(NamedTuple):
    """Accuracy-aware: the most harmful layers stay float until check falls by at most max_drop."""

    check: Check
    rows: Sequence[int]  # of the validation split
    frame: Frame
    max_drop: float  # in check's unit


def quantise_file(
    source: Path, target: Path, rows: Sequence[int], frame: Frame, config: QuantConfig, control: Control | None = None
) -> Path:
    """Quantise weights (symmetric, per output channel) and activations (affine) of source into target.

    rows, frame: the calibration frames. Depthwise convolutions get activation scales per channel unless config.plain.
    Biases absorb each layer's mean error (Nagel et al. 2019, §4.2).
    """
    model = onnx.load(source)
    for tensor in _large(model):  # rounded as it will be stored, so that what is calibrated and checked is written
        values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with runtimes.no_telemetry(), contextlib.redirect_stdout(io.StringIO()):  # no progress bars, and nobody is told
        # NNCF imports torch's compiler of extensions, which remarks on a machine without CUDA
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        import nncf
        from nncf.quantization.advanced_parameters import QuantizationParameters

        nncf.set_log_level(logging.ERROR)
        settings = {
            "preset": nncf.QuantizationPreset.MIXED,
            "subset_size": len(rows),
            "fast_bias_correction": False,
            "ignored_scope": nncf.IgnoredScope(names=ignored(model, config)),
        }
        calibration = nncf.Dataset(rows, lambda row: fed(source, frame(row)))
        advanced = nncf.AdvancedQuantizationParameters()
        if config.plain:
            advanced.activations_quantization_params = QuantizationParameters(per_channel=False)
        if control is None:
            made = nncf.quantize(model, calibration, advanced_parameters=advanced, **settings)
        else:

            def measure(candidate: onnx.ModelProto, rows: Iterable[int]) -> float:
                with tempfile.TemporaryDirectory() as folder:
                    file = _save(unsigned(copy.deepcopy(candidate)), Path(folder) / "model.onnx")
                    return control.check(file, list(rows))

            made = nncf.quantize_with_accuracy_control(
                model,
                calibration,
                nncf.Dataset(control.rows, lambda row: fed(source, control.frame(row))),
                measure,
                max_drop=control.max_drop,
                drop_type=nncf.DropType.ABSOLUTE,
                advanced_quantization_parameters=advanced,
                advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                    max_num_iterations=BACK, ranking_subset_size=min(RANKING, len(control.rows)), num_ranking_workers=1
                ),
                **settings,
            )
    return _save(halved(unsigned(made)), target)


def fed(source: Path, x: NDArray[np.uint8]) -> dict[str, NDArray[np.generic]]:
    """The float file's inputs by name for x (1,*shape); a streamed net's newest frame and the states before it."""
    predict = opened(source, "onnxruntime", x.shape[1:]) if x.ndim == 5 else None
    if not isinstance(predict, Stream):
        return {"frames": x}
    states = predict.start(1)
    for moment in range(x.shape[1] - 1):
        _, states = predict.step(x[:, moment], states, moment)
    named = {state.name: value for state, value in zip(predict.states, states, strict=True)}
    return {"frames": np.ascontiguousarray(x[:, -1]), **named}


def _save(model: onnx.ModelProto, target: Path) -> Path:
    del model.graph.value_info[:]  # runtimes infer the shapes themselves; some of these types no longer hold
    model.ClearField("metadata_props")
    return save_onnx(model, target)


def ignored(model: onnx.ModelProto, config: QuantConfig) -> list[str]:
    nodes = list(model.graph.node)
    heavy = [number for number, node in enumerate(nodes) if node.op_type in HEAVY]
    names = [node.name for node in (*nodes[: heavy[0]], *nodes[heavy[-1] + 1 :])]
    if config.plain:
        names.append(nodes[heavy[0]].name)
    if config.float_se:
        names += squeezes(model)
    return list(dict.fromkeys(names))


def squeezes(model: onnx.ModelProto) -> list[str]:
    """Nodes of squeeze-and-excitation blocks (Hu et al. 2018)."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found: list[str] = []
    for node in model.graph.node:
        if node.op_type == "Mul":
            for start, gate in (tuple(node.input), tuple(node.input)[::-1]):
                between, ahead = dict[str, onnx.NodeProto](), [gate]
                while ahead and len(between) <= SE_MOST:
                    name = ahead.pop()
                    if name == "frames" != start:  # the gate also follows from the net's own input
                        break
                    maker = None if name == start else makers.get(name)  # None: a constant
                    if maker is not None and maker.name not in between:
                        between[maker.name] = maker
                        ahead += [name for name in maker.input if name]
                else:
                    if len(between) <= SE_MOST and any(inner.op_type in POOLS for inner in between.values()):
                        found += [node.name, *between]
    return list(dict.fromkeys(found))


def unsigned(model: onnx.ModelProto) -> onnx.ModelProto:
    """Activations as uint8, those with a scale per channel as int8; values stay."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    activations = set[str]()
    added: dict[str, TensorProto] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            activations.add(node.output[0])
        elif node.op_type != "DequantizeLinear" or node.input[0] not in activations:
            continue
        zero = numpy_helper.to_array(constants[node.input[2]])
        # ONNX Runtime runs a convolution in INT8 only where input and output are of one type, on x86 unsigned. Where
        # the input has a scale a channel it tries too, and fails at the first picture (1.32): there the types differ
        wanted, move = (np.int8, -128) if zero.size > 1 else (np.uint8, 128)
        if zero.dtype != wanted:
            name = f"{node.input[2]}_moved"
            added[name] = numpy_helper.from_array((zero.astype(np.int16) + move).astype(wanted), name)
            node.input[2] = name
    model.graph.initializer.extend(added.values())
    return model


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Float weights stored as float16 behind a cast, which runtimes fold."""
    nodes = []
    for tensor in _large(model):
        nodes.append(helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=TensorProto.FLOAT))
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, f"{tensor.name}_half"))
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _large(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Without biases, which NNCF corrects."""
    for tensor in model.graph.initializer:
        large = len(tensor.dims) > 1 and np.prod(tensor.dims) >= LARGE
        if tensor.data_type == TensorProto.FLOAT and large and np.abs(numpy_helper.to_array(tensor)).max() < HALF:
            yield tensor
