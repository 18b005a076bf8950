"""Export: a net becomes files that camera software can run: uint8 pictures in, calibrated probabilities out.

In: a Classifier, the shape of one sample, a temperature. Out: model.onnx and its siblings, each checked.
Called by pack (which proves them and makes the bundle) and by quantise. It knows no run, no data and no runtime.
"""

import contextlib
import copy
import io
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillwatch import metrics
from stillwatch.atomic import atomic
from stillwatch.errors import UserError
from stillwatch.inference import telemetry
from stillwatch.lab.models.nets import Classifier, build
from stillwatch.recipe import Net
from stillwatch.run import Run

LEGACY = 13  # the newest opset that TensorRT 8.0 to 8.4 read whole (JetPack 4 stops at 8.2)
NATIVE = 18  # the oldest that torch writes itself; asked for an older one it may go on with this one, silently


class Facade(nn.Module):
    """What a camera needs of a Classifier: (B,H,W,C) or (B,T,H,W,C) pixels -> probabilities (B,K)."""

    def __init__(self, net: Classifier):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net.probabilities(self.net(x).logits)


def facade(net: Classifier, shape: tuple[int, ...], temperature: float = 1.0) -> Facade:
    """A copy of the net made ready to leave: its head divided by the temperature, a gray picture kept one channel.

    Softmax and sigmoid both take logits / temperature, so the division goes into the head's weights: exact and free.
    shape: of one sample, (H,W,C) or (T,H,W,C).
    """
    ready = copy.deepcopy(net).cpu().float().eval().requires_grad_(False)
    ready.to(memory_format=torch.contiguous_format)
    with torch.no_grad():
        for weights in ready.head.parameters():
            weights.div_(temperature)
    if shape[-1] == 1:
        folded = copy.deepcopy(ready)
        fold_gray(folded)
        ready = folded if _alike(ready, folded, shape) else ready
    return Facade(ready)


@torch.no_grad()
def _alike(net: Classifier, folded: Classifier, shape: tuple[int, ...]) -> bool:
    """Whether folding left the answer as it was: a net might use its first convolution in a way that we do not know."""
    noise = torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        before, after = net(noise).feature, folded(noise).feature
    except RuntimeError:  # it gets its picture by another way, in three channels
        return False
    return bool((before - after).abs().max() <= 1e-4 * before.abs().max())


@torch.no_grad()
def fold_gray(net: Classifier) -> None:
    """Have the first convolution take one gray channel instead of three equal ones; the answer stays the same.

    Where the front door treats the three channels alike, their kernels are summed. Where it does not, channel c is
    a_c·x + b_c, so the convolution takes x and a plane of ones: kernels sum(a_c·w_c) and sum(b_c·w_c). Zero padding
    then pads exactly what it padded before, which a changed bias could not do. The net is changed in place.
    """
    first = next((m for m in net.net.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        return
    scale, shift = net.get_buffer("scale"), net.get_buffer("shift")
    if len(scale.unique()) == 1 and len(shift.unique()) == 1:
        weight, door = first.weight.sum(1, keepdim=True), (scale[:, :1], shift[:, :1])
    else:
        a, b = (v.expand(1, 3, 1, 1) for v in (255 * scale, shift))
        weight = torch.cat([(first.weight * v).sum(1, keepdim=True) for v in (a, b)], 1)
        door = (scale.new_tensor([1 / 255, 0.0]).view(1, 2, 1, 1), scale.new_tensor([0.0, 1.0]).view(1, 2, 1, 1))
    first.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    first.in_channels = weight.shape[1]
    net.register_buffer("scale", door[0].clone(), persistent=False)
    net.register_buffer("shift", door[1].clone(), persistent=False)


def temperature_of(run: Run) -> float:
    """The temperature that a run's files are calibrated with: fitted on its validation predictions."""
    path = run.path / "predictions" / "valid.npz"
    if not path.is_file():
        raise UserError(f"{path}: missing; a run is finished when its predictions are there")
    with np.load(path, allow_pickle=False) as said:
        recipe = run.recipe
        side = recipe.teacher if run.info.kind == "teacher" else recipe.student
        return metrics.temperature(said["y"], said["p"], side.net.head)


def to_onnx(
    net: Classifier,
    shape: tuple[int, ...],
    path: Path,
    temperature: float = 1.0,
    batch: int | None = None,
    opset: int = 20,
) -> Path:
    """Write model.onnx: "frames" uint8 (batch,*shape) -> "probabilities" float32 (batch,K).

    shape: (H,W,C) or (T,H,W,C). batch: a fixed number, or None for a free dimension named "batch".
    Raises UserError where torch cannot export the net at this opset, or what comes out is not valid ONNX.
    """
    model = _traced(facade(net, shape, temperature), shape, torch.uint8, batch, max(opset, NATIVE))
    return _write(_older(model, opset) if opset < NATIVE else model, path)


def _traced(ready: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, batch: int | None, opset: int) -> Any:
    """The module as an onnx.ModelProto without the traces of this machine that torch leaves in it."""
    # Laid out so that NCHW is contiguous, as the weights are: torch writes the pooling of channels_last maps as a
    # gather over as_strided
    *before, height, width, channels = shape
    example = torch.zeros(batch or 2, *before, channels, height, width, dtype=dtype).movedim(-3, -1)
    free = None if batch else ({0: torch.export.Dim("batch", min=1, max=4096)},)
    try:
        with _quiet():
            program = torch.onnx.export(
                ready,
                (example,),
                dynamo=True,
                dynamic_shapes=free,
                input_names=["frames"],
                output_names=["probabilities"],
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # the exporter has many kinds of failure, each of several pages
        raise UserError(f"export at opset {opset}: torch cannot export this net: {_first(error)}") from error
    assert program is not None
    model = program.model_proto
    written = next(entry.version for entry in model.opset_import if not entry.domain)
    if written != opset:  # it keeps to the nearest that it can, and says so in a line of its log
        raise UserError(f"export at opset {opset}: torch wrote opset {written} instead; choose that one")
    del model.metadata_props[:]
    for thing in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del thing.metadata_props[:]  # module paths of this machine, and two thirds of a small file
        thing.ClearField("doc_string")
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    del model.functions[:]
    model.producer_version = ""
    return model


def _write(model: Any, path: Path) -> Path:
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # checker and shape inference have exceptions of their own
        raise UserError(f"{path.name}: what torch exported is not valid ONNX: {_first(error)}") from error
    with atomic(path) as draft:
        draft.write_bytes(model.SerializeToString())
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Converters speak of their own insides, on both streams and as warnings; what fails, fails by an exception."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _first(error: Exception) -> str:
    """An error's first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


# ---- exporters: (net, shape of a sample, folder, temperature, opset) -> the main file


def _onnx(net: Classifier, shape: tuple[int, ...], folder: Path, temperature: float, opset: int) -> Path:
    return to_onnx(net, shape, folder / "model.onnx", temperature, None, opset)


def _onnx_legacy(net: Classifier, shape: tuple[int, ...], folder: Path, temperature: float, opset: int) -> Path:
    """For TensorRT 8 on old Jetsons: one picture, opset 13, pixels 0..255 as float32, no uint8 and no HardSwish."""
    model = _traced(facade(net, shape, temperature), shape, torch.float32, 1, NATIVE)
    return _write(_older(model, LEGACY), folder / "model-legacy.onnx")


def _older(model: Any, opset: int) -> Any:
    """A graph of opset 18 as one of 13 to 17; onnx's own converter knows no way back from most of these ops.

    Between 13 and 18, HardSwish was added (x · HardSigmoid(x / 6 + 1/2) says the same), reductions took their axes as
    an input, and Reshape and Resize an attribute whose default is what was before; the other ops of our nets only took
    more types. What is left is the checker's.
    """
    from onnx import helper, numpy_helper

    fixed = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "HardSwish":
            gate = f"{node.output[0]}_gate"
            nodes.append(helper.make_node("HardSigmoid", [node.input[0]], [gate], alpha=1 / 6, beta=0.5))
            node = helper.make_node("Mul", [node.input[0], gate], [node.output[0]])
        elif node.op_type in REDUCTIONS and len(node.input) == 2:
            keep = {a.name: a.i for a in node.attribute}.get("keepdims", 1)
            axes = [int(axis) for axis in fixed[node.input[1]]]
            node = helper.make_node(node.op_type, [node.input[0]], list(node.output), axes=axes, keepdims=keep)
        elif node.op_type == "Reshape" and 0 not in fixed.get(node.input[1], [0]):
            node = helper.make_node("Reshape", list(node.input), list(node.output))
        for attribute in [a for a in node.attribute if NEWER.get(a.name) == helper.get_attribute_value(a)]:
            node.attribute.remove(attribute)
        nodes.append(node)
    graph = helper.make_graph(
        nodes,
        "net",
        model.graph.input,
        model.graph.output,
        [t for t in model.graph.initializer if _read(t.name, nodes)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


NEWER = {"allowzero": 0, "antialias": 0, "keep_aspect_ratio_policy": b"stretch"}  # attributes, and what was before them
REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2")  # ReduceSum has had its axes as an input since 13


def _read(name: str, nodes: list[Any]) -> bool:
    return any(name in node.input for node in nodes)


def _openvino(net: Classifier, shape: tuple[int, ...], folder: Path, temperature: float, opset: int) -> Path:
    with tempfile.TemporaryDirectory() as scratch, telemetry.refused(), _quiet():
        import openvino

        source = to_onnx(net, shape, Path(scratch) / "model.onnx", temperature, None, opset)
        openvino.save_model(openvino.convert_model(source), folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def _ncnn(net: Classifier, shape: tuple[int, ...], folder: Path, temperature: float, opset: int) -> Path:
    """pnnx's two files; float pixels 0..255 (H,W,C) in, the front door inside."""
    if len(shape) != 3:
        raise UserError("export.formats: ncnn takes single pictures, not clips; leave it out")
    import pnnx

    with tempfile.TemporaryDirectory() as scratch:
        # pnnx wants a traced file, and leaves a dozen of its own beside it
        traced = Path(scratch) / "model.pt"
        with _quiet():
            example = torch.zeros(1, *shape)
            torch.jit.trace(facade(net, shape, temperature), example).save(str(traced))
        tool = str(Path(pnnx.__file__).parent / "pnnx")
        words = [tool, traced.name, f"inputshape=[{','.join(map(str, (1, *shape)))}]f32", "fp16=0"]
        done = subprocess.run(words, cwd=scratch, capture_output=True, text=True)
        made = [Path(scratch) / f"model.ncnn.{end}" for end in ("param", "bin")]
        if done.returncode or not all(file.is_file() for file in made):
            raise UserError(f"ncnn: pnnx cannot convert this net: {(done.stderr or done.stdout).strip()[-200:]}")
        for file, name in zip(made, ("model.ncnn.param", "model.ncnn.bin"), strict=True):
            with atomic(folder / name) as draft:
                draft.write_bytes(file.read_bytes())
    return folder / "model.ncnn.param"


def rival(name: str, classes: int, shape: tuple[int, ...], folder: Path) -> tuple[Path, int]:
    """A net with random weights as ONNX, to be raced against, and its number of parameters. name: of NETS or timm."""
    net = build(Net(name=name, weights="scratch"), classes, (shape[-3], shape[-2]), shape[-1]).eval()
    return to_onnx(net, shape, folder / f"{name}.onnx"), sum(p.numel() for p in net.parameters())


EXPORTERS: dict[str, Callable[[Classifier, tuple[int, ...], Path, float, int], Path]] = {
    "onnx": _onnx,
    "onnx-legacy": _onnx_legacy,
    "openvino": _openvino,
    "ncnn": _ncnn,
}
