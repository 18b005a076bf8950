"""Exporters: Classifier -> files for cameras: uint8 pictures in, calibrated probabilities out."""

import contextlib
import copy
import io
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from stillwatch import metrics, predictions
from stillwatch.atomic import atomic
from stillwatch.errors import UserError, one_line
from stillwatch.inference import runtimes
from stillwatch.lab.export.activation import ActivationMap
from stillwatch.lab.models.classifier import Classifier, build
from stillwatch.recipe import Net
from stillwatch.run import Run

LEGACY = 13  # the newest opset that TensorRT 8.0 to 8.4 read whole (JetPack 4 stops at 8.2)
NATIVE = 18  # the oldest that torch writes; asked for an older one it may write this one, silently
# Since 13, HardSwish was added (x · HardSigmoid(x / 6 + 1/2)), and reductions took their axes as an input
NEWER = {"allowzero": 0, "antialias": 0, "keep_aspect_ratio_policy": b"stretch"}  # attributes since 14, their defaults
REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2")  # ReduceSum has had its axes as an input since 13


class Exported(NamedTuple):
    """A file, the runtime that proves it, its batch (None: any), and its companion file."""

    path: Path
    runtime: str
    batch: int | None = None
    beside: str | None = None
    map: bool = False  # it gives one: where the evidence is


class Facade(nn.Module):
    """(B,H,W,C) or (B,T,H,W,C) -> probabilities (B,K), and a map (B,h·w) where the net has marks."""

    def __init__(self, net: Classifier, shape: tuple[int, ...]):
        super().__init__()
        self.net = net
        self.map = ActivationMap(net, shape) if net.marks else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        if not self.map:
            return self.net.probabilities(self.net(x).logits)
        last, steps = self.net.last_map(x)
        p = self.net.probabilities(self.net.head(self.net.over_time(self.net.pooled(last), steps)))
        return p, self.map(last.unflatten(0, (-1, steps))[:, -1], p)


class Streamed(nn.Module):
    """One new frame of each camera and what was remembered -> probabilities, and what to remember.

    frames: uint8 (B,H,W,C). states: (B,*state) each; zeros at a camera's first frame.
    """

    def __init__(self, ready: Classifier, shape: tuple[int, ...]):
        """shape: (T,H,W,C) of a look."""
        super().__init__()
        self.net = ready
        ready(torch.zeros(1, *shape, dtype=torch.uint8))  # the layers that look back learn their shapes
        back = {"frame": 0, "difference": 1, "stack": ready.ticks[0]}[ready.front]  # frames a picture is made of
        self.states = {"past_frames": (back, *shape[1:])} if back else {}
        self.states |= {f"layer_{number}": layer.shape for number, layer in enumerate(ready.timed)}
        self.states |= ready.temporal.states
        self.map = ActivationMap(ready, shape) if ready.marks else None

    def forward(self, frames: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        past, after, net = list(states), list[Tensor](), self.net
        look = frames[:, None]
        if "past_frames" in self.states:
            ring = torch.cat([past.pop(0), look], 1)
            after.append(ring[:, 1:])
            look = ring if net.front == "difference" else ring[:, [net.ticks[0] - tick for tick in net.ticks]]
        for layer in net.timed:
            layer.past = past.pop(0)
        last, _ = net.last_map(look)
        feature, later = net.temporal.step(net.pooled(last), past)
        after += [layer.kept for layer in net.timed if layer.kept is not None]
        for layer in net.timed:
            layer.past = layer.kept = None
        p = net.probabilities(net.head(feature))
        return (p, *([self.map(last, p)] if self.map else []), *after, *later)


@torch.no_grad()
def facade(net: Classifier, shape: tuple[int, ...], temperature: float = 1.0) -> Facade:
    """A copy with its head divided by the temperature; gray is one channel. shape: of a sample."""
    ready = copy.deepcopy(net).cpu().float().eval().requires_grad_(False)
    ready.to(memory_format=torch.contiguous_format)
    for weights in ready.head.parameters():  # softmax and sigmoid both take logits / temperature: exact and free
        weights.div_(temperature)
    if shape[-1] > 1:
        return Facade(ready, shape)
    fold_gray(folded := copy.deepcopy(ready))
    noise = torch.randint(0, 256, (1, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with contextlib.suppress(RuntimeError):  # a net may use its first convolution in a way unknown to us
        before, after = ready(noise).feature, folded(noise).feature
        if (before - after).abs().max() <= 1e-4 * before.abs().max():
            return Facade(folded, shape)
    return Facade(ready, shape)


@torch.no_grad()
def fold_gray(net: Classifier) -> None:
    """Let the first convolution take one gray channel instead of three equal ones, in place."""
    first = next((m for m in net.net.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        return
    scale, shift = net.get_buffer("scale"), net.get_buffer("shift")
    if len(scale.unique()) == 1 and len(shift.unique()) == 1:
        weight, front = first.weight.sum(1, keepdim=True), (scale[:, :1], shift[:, :1])
    else:
        # Channel c is a_c·x + b_c, so the convolution takes x and a plane of ones, with kernels sum(a_c·w_c) and
        # sum(b_c·w_c): a changed bias could not reproduce the zero padding
        a, b = (v.expand(1, 3, 1, 1) for v in (255 * scale, shift))
        weight = torch.cat([(first.weight * v).sum(1, keepdim=True) for v in (a, b)], 1)
        front = (scale.new_tensor([1 / 255, 0.0]).view(1, 2, 1, 1), scale.new_tensor([0.0, 1.0]).view(1, 2, 1, 1))
    first.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    first.in_channels = weight.shape[1]
    net.register_buffer("scale", front[0].clone(), persistent=False)
    net.register_buffer("shift", front[1].clone(), persistent=False)


def temperature_of(run: Run) -> float:
    """From the run's validation predictions. Raises UserError without them."""
    valid = predictions.read(run, "valid")
    return metrics.temperature(valid.y, valid.p, run.net.head)


def save_onnx(model: onnx.ModelProto, path: Path) -> Path:
    """Write without unused constants. Raises UserError."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # checker and shape inference have exceptions of their own
        raise UserError(f"{path.name}: not valid ONNX: {one_line(error)}") from error
    with atomic(path) as draft:
        draft.write_bytes(model.SerializeToString())
    return path


def to_onnx(
    net: Classifier,
    shape: tuple[int, ...],
    path: Path,
    temperature: float = 1.0,
    batch: int | None = None,
    opset: int = 20,
    dtype: torch.dtype = torch.uint8,
) -> Path:
    """Write "frames" dtype (batch,*shape) -> "probabilities" float32 (batch,K).

    shape: (H,W,C) or (T,H,W,C). batch: None for a free dimension. A streamed net takes one frame (H,W,C) a call, and
    its states as further inputs NAME and outputs next_NAME. Raises UserError where torch cannot export this.
    """
    # Laid out so that NCHW is contiguous, as the weights are: torch writes the pooling of channels_last maps as a
    # gather over as_strided
    *before, height, width, channels = shape
    ready: Facade | Streamed = facade(net, shape, temperature)
    states: dict[str, tuple[int, ...]] = {}
    if net.streams:
        ready, before = Streamed(ready.net, shape), []
        states = ready.states
    if dtype != torch.uint8:  # for runtimes of others
        ready.map = None
    count = batch or 2
    example = [torch.zeros(count, *before, channels, height, width, dtype=dtype).movedim(-3, -1)]
    for name, size in states.items():
        example.append(torch.zeros(count, *size, dtype=dtype if name == "past_frames" else torch.float32))
    sides = {0: torch.export.Dim("batch", min=1, max=4096)}
    free = None if batch else ((sides, (sides,) * len(states)) if states else (sides,))
    native = max(opset, NATIVE)
    try:
        with _quiet():
            program = torch.onnx.export(
                ready,
                tuple(example),
                dynamo=True,
                dynamic_shapes=free,
                input_names=["frames", *states],
                output_names=["probabilities", *([runtimes.MAP] if ready.map else []), *(f"next_{s}" for s in states)],
                opset_version=native,
                verbose=False,
            )
    except Exception as error:  # the exporter has many kinds of failure, each of several pages
        raise UserError(f"export at opset {native}: torch cannot export this net: {one_line(error)}") from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    written = next(entry.version for entry in model.opset_import if not entry.domain)
    if written != native:  # it keeps to the nearest that it can, and only logs it
        raise UserError(f"export at opset {native}: torch wrote opset {written} instead; set export.opset = {written}")
    # Module paths of this machine, and two thirds of a small file
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("doc_string")
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
    del model.functions[:]
    model.producer_version = ""
    return save_onnx(_downgraded(model, opset) if opset < NATIVE else model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences converters, which print progress; failures are exceptions."""
    output = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        warnings.simplefilter("ignore")
        yield


def _downgraded(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Opset 18 to 13..17; onnx's own converter cannot for most of these ops."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "HardSwish":
            gate = f"{node.output[0]}_gate"
            nodes.append(helper.make_node("HardSigmoid", [node.input[0]], [gate], alpha=1 / 6, beta=0.5))
            node = helper.make_node("Mul", [node.input[0], gate], [node.output[0]])
        elif node.op_type in REDUCTIONS and len(node.input) == 2:
            keep = {a.name: a.i for a in node.attribute}.get("keepdims", 1)
            axes = [int(axis) for axis in constants[node.input[1]]]
            node = helper.make_node(node.op_type, [node.input[0]], list(node.output), axes=axes, keepdims=keep)
        elif node.op_type == "Reshape" and 0 not in constants.get(node.input[1], [0]):
            node = helper.make_node("Reshape", list(node.input), list(node.output))
        for attribute in [a for a in node.attribute if NEWER.get(a.name) == helper.get_attribute_value(a)]:
            node.attribute.remove(attribute)
        nodes.append(node)
    graph = helper.make_graph(nodes, "net", model.graph.input, model.graph.output, model.graph.initializer)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


# ---- formats


def write_onnx(net: Classifier, shape: tuple[int, ...], folder: Path, temperature: float, opset: int) -> Exported:
    path = to_onnx(net, shape, folder / "model.onnx", temperature, None, opset)
    return Exported(path, "onnxruntime", map=bool(net.marks))


def write_legacy(net: Classifier, shape: tuple[int, ...], folder: Path, temperature: float, opset: int) -> Exported:
    """For TensorRT 8 on old Jetsons: one picture, opset 13, float32 pixels 0..255, no HardSwish."""
    if net.streams:
        raise UserError("export.formats: onnx-legacy takes single pictures, not a net that remembers; leave it out")
    path = to_onnx(net, shape, folder / "model-legacy.onnx", temperature, 1, LEGACY, torch.float32)
    return Exported(path, "onnxruntime", batch=1)


def write_openvino(net: Classifier, shape: tuple[int, ...], folder: Path, temperature: float, opset: int) -> Exported:
    with tempfile.TemporaryDirectory() as scratch, runtimes.no_telemetry(), _quiet():
        import openvino

        source = to_onnx(net, shape, Path(scratch) / "model.onnx", temperature, None, opset)
        openvino.save_model(openvino.convert_model(source), folder / "model.xml", compress_to_fp16=False)
    return Exported(folder / "model.xml", "openvino", beside="model.bin", map=bool(net.marks))


def write_ncnn(net: Classifier, shape: tuple[int, ...], folder: Path, temperature: float, opset: int) -> Exported:
    """pnnx's two files; float pixels 0..255 (H,W,C), normalised inside."""
    if len(shape) != 3:
        raise UserError("export.formats: ncnn takes single pictures, not clips; leave it out")
    import pnnx

    with tempfile.TemporaryDirectory() as scratch:  # pnnx leaves a dozen files of its own beside the traced one
        traced = Path(scratch) / "model.pt"
        ready = facade(net, shape, temperature)
        ready.map = None
        with _quiet():
            torch.jit.trace(ready, torch.zeros(1, *shape)).save(str(traced))
        tool = str(Path(pnnx.__file__).parent / "pnnx")
        command = [tool, traced.name, f"inputshape=[{','.join(map(str, (1, *shape)))}]f32", "fp16=0"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        names = ("model.ncnn.param", "model.ncnn.bin")
        if done.returncode or not all((Path(scratch) / name).is_file() for name in names):
            raise UserError(f"ncnn: pnnx cannot convert this net: {(done.stderr or done.stdout).strip()[-200:]}")
        for name in names:
            with atomic(folder / name) as draft:
                draft.write_bytes((Path(scratch) / name).read_bytes())
    return Exported(folder / names[0], "ncnn", batch=1, beside=names[1])


def rival(name: str, classes: int, shape: tuple[int, ...], folder: Path) -> tuple[Path, int]:
    """Random weights, as ONNX, and the number of parameters."""
    net = build(Net(name=name, weights="scratch"), classes, (shape[-3], shape[-2]), shape[-1]).eval()
    return to_onnx(net, shape, folder / f"{name}.onnx"), sum(p.numel() for p in net.parameters())


Exporter: TypeAlias = Callable[[Classifier, tuple[int, ...], Path, float, int], Exported]
EXPORTERS: dict[str, Exporter] = {  # (net, shape of a sample, folder, temperature, opset) -> the files
    "onnx": write_onnx,
    "onnx-legacy": write_legacy,
    "openvino": write_openvino,
    "ncnn": write_ncnn,
}
