"""Open a model file in each installed runtime (RUNTIMES)."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import UserError, nearest, one_line
from stillwatch.inference.streams import State, Stream

MAP = "map"  # the name of an exported net's further output (n,h·w): where the evidence is
Predict: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Shape: TypeAlias = tuple[int, ...]
CPU = "CPUExecutionProvider"
COMPOSED = ("AUTO", "HETERO", "MULTI")  # of several of OpenVINO's devices


class Session(NamedTuple):
    """`run` takes so many pictures a call (None: any); of a streamed net also states, and gives the next."""

    run: Callable[..., Any]
    takes: int | None
    states: tuple[State, ...] = ()


class Ports(NamedTuple):
    """Several outputs are joined; `scale` is for files that take floats."""

    shape: Shape  # of one sample
    outputs: int = 1
    scale: float = 1.0


class Runtime(NamedTuple):
    formats: tuple[str, ...]
    needs: str
    open: Callable[..., Session]  # (file, its ports, threads, batch), and the device where one was named
    devices: Callable[[], list[str]] | None = None  # that this install can name beside its default, the CPU


def open(
    path: Path, runtime: str, shape: Shape, threads: int = 1, batch: int = 1, outputs: int = 1, scale: float = 1.0
) -> Predict:
    """The file as uint8 (n,*shape) -> float32 (n,K), for one thread at a time; a streamed net: a Stream.

    runtime: of RUNTIMES, perhaps with a device: "openvino:GPU", "onnxruntime:CUDAExecutionProvider". shape: (H,W,C) or
    (T,H,W,C). batch: tunes a file of free batch; others split and pad. outputs: 2 appends a bundle's map, or another
    ONNX file's second output, to the K. scale: of pixels, where an ONNX file takes floats. Raises UserError for a
    runtime or file that cannot be used; the function ValueError for other pictures.
    """
    entry, device = named(runtime)
    if path.suffix not in entry.formats:
        raise UserError(
            f"{path}: {runtime} does not read {path.suffix or 'this'} files, but {', '.join(entry.formats)}"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with _explained(path, runtime):
        session = entry.open(path, Ports(shape, outputs, scale), threads, batch, *device)
        return Stream(*session, shape) if session.states else _whole(session, shape)


def named(runtime: str) -> tuple[Runtime, list[str]]:
    """(runtime, its device if named). Raises UserError."""
    name, colon, device = runtime.partition(":")
    if name not in RUNTIMES:
        raise UserError(f"runtime = {runtime!r}: unknown{nearest(name, RUNTIMES)}")
    entry = RUNTIMES[name]
    if not installed(name):
        extra = f"stillwatch[{name}]" if name in ("openvino", "ncnn") else entry.needs.replace("_", "-")
        raise UserError(f"runtime = {runtime!r}: not installed; pip install '{extra}'")
    if not colon:
        return entry, []
    there = entry.devices() if entry.devices else []
    # OpenVINO's own compositions, such as HETERO:GPU,CPU, are not listed
    if device not in there and not (name == "openvino" and device.partition(":")[0] in COMPOSED):
        raise UserError(f"runtime = {runtime!r}: this install of {name} has {', '.join(there) or 'no devices to name'}")
    return entry, [device]


def foreign(path: Path, threads: int = 1) -> tuple[Shape, Callable[[NDArray[np.uint8]], NDArray[Any]]]:
    """Somebody else's ONNX file: one sample's shape (names where free), uint8 -> its output.

    Raises UserError.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with _explained(path, "onnxruntime"):
        session = _onnx_session(path, threads, 1)
        entrance = _only(session.get_inputs(), "input")
        _only(session.get_outputs(), "output")
        return tuple(entrance.shape[1:]), _onnx_call(session, entrance, 1.0)


@contextmanager
def _explained(path: Path, runtime: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {runtime}: {error}") from None
    except Exception as error:  # each library has exceptions of its own, and no common ancestor below this one
        raise UserError(f"{path}: {runtime} cannot read it: {one_line(error)}") from error


def telemetry_off() -> None:
    """Before its import: ONNX Runtime's official builds send usage to Microsoft (its Privacy.md)."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Keeps OpenVINO and NNCF from reporting to Google Analytics, by hiding openvino_telemetry."""
    telemetry_off()
    missing, reporter = object(), "openvino_telemetry"
    before: object = sys.modules.get(reporter, missing)
    sys.modules[reporter] = None  # type: ignore[assignment]  # an import of it now fails
    try:
        yield
    finally:
        sys.modules.pop(reporter, None)
        if before is not missing:
            sys.modules[reporter] = before  # type: ignore[assignment]


def installed(runtime: str) -> bool:
    """Without importing the library."""
    return importlib.util.find_spec(RUNTIMES[runtime].needs) is not None


def readers(path: Path) -> list[str]:
    return [name for name, entry in RUNTIMES.items() if path.suffix in entry.formats and installed(name)]


def _whole(session: Session, shape: Shape) -> Predict:
    run, takes, _ = session
    step = takes or 1
    p = run(np.zeros((step, *shape), np.uint8))
    if p.ndim != 2 or len(p) != step or p.dtype.kind != "f":
        raise UserError(f"its answer to {step} pictures is {p.dtype} {p.shape}; wanted: probabilities float ({step},K)")
    classes = p.shape[1]

    def predict(x: NDArray[np.uint8]) -> NDArray[np.float32]:
        if x.dtype != np.uint8 or x.shape[1:] != shape:
            wanted = f"uint8 (n,{','.join(map(str, shape))})"
            raise ValueError(f"the net takes {wanted}, not {x.dtype} {x.shape}")
        x = np.ascontiguousarray(x)
        if len(x) == takes or (takes is None and len(x)):
            return run(x).astype(np.float32, copy=False)
        p = np.empty((len(x), classes), np.float32)
        for start in range(0, len(x), step):
            some = x[start : start + step]
            if len(some) < step:
                some = np.concatenate([some, np.zeros((step - len(some), *shape), np.uint8)])
            p[start : start + step] = run(some)[: len(x) - start]
        return p

    return predict


def _only(found: list[Any], what: str, wanted: int = 1) -> Any:
    if len(found) != wanted:
        raise UserError(f"the file has {len(found)} {what}s; wanted: {'one' if wanted == 1 else wanted}")
    return found[0]


def _fitting(found: list[Any], shape: Shape) -> int | None:
    sides = [side if isinstance(side, int) and side > 0 else None for side in found]
    if len(sides) != len(shape) + 1 or any(s not in (None, t) for s, t in zip(sides[1:], shape, strict=True)):
        raise UserError(f"the file takes (batch,{','.join(map(str, found[1:]))}), not (n,{','.join(map(str, shape))})")
    return sides[0]


def _providers() -> list[str]:
    telemetry_off()
    import onnxruntime as ort

    return [str(name) for name in ort.get_available_providers()]


def _onnx_session(path: Path, threads: int, batch: int, provider: str = CPU) -> Any:
    telemetry_off()
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only
    options.add_free_dimension_override_by_name("batch", batch)
    # A camera computes a few milliseconds and waits for the next frame: threads that spin meanwhile heat the board
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # What a provider cannot compute is left to the CPU
    session = ort.InferenceSession(path, options, providers=list(dict.fromkeys((provider, CPU))))
    if provider not in session.get_providers():  # it was dropped without an error: no driver, no such device
        raise UserError(f"{provider} cannot start here; ONNX Runtime would use {', '.join(session.get_providers())}")
    return session


def _onnxruntime(path: Path, ports: Ports, threads: int, batch: int, provider: str = CPU) -> Session:
    session = _onnx_session(path, threads, batch, provider)
    if len(ports.shape) == 4 and len(session.get_inputs()) > 1:
        return _onnxruntime_stream(session, ports)
    entrance = _only(session.get_inputs(), "input")
    taken = [node.name for node in session.get_outputs() if ports.outputs > 1 or node.name != MAP]
    _only(taken, "output", ports.outputs)
    takes = _fitting(entrance.shape, ports.shape)
    return Session(_onnx_call(session, entrance, ports.scale, taken), takes)


def _onnx_call(
    session: Any, entrance: Any, scale: float, taken: list[str] | None = None
) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    feed = entrance.name
    if entrance.type == "tensor(uint8)":
        return lambda x: _joined(session.run(taken, {feed: x}))
    if entrance.type != "tensor(float)":
        raise UserError(f"the file takes {entrance.type}; wanted: uint8 or float")
    # onnx-legacy: the same pixels 0..255, but as floats, which is what TensorRT 8 takes
    return lambda x: _joined(session.run(taken, {feed: _floats(x, scale)}))


def _onnxruntime_stream(session: Any, ports: Ports) -> Session:
    entrance, *rest = session.get_inputs()
    found = [node.name for node in session.get_outputs()]
    names = [name for name in found if name != MAP]
    if names[1:] != [f"next_{node.name}" for node in rest]:
        raise UserError(f"the file has the states {[node.name for node in rest]} and gives {names[1:]}")
    kinds = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
    states = tuple(State(node.name, tuple(node.shape[1:]), kinds[node.type]) for node in rest)
    feeds = [node.name for node in (entrance, *rest)]
    taken = [*names[:1], *found[1 : ports.outputs]]
    if MAP not in taken and ports.outputs > 1:
        raise UserError("the file gives no map")

    def run(*given: NDArray[Any]) -> list[NDArray[Any]]:
        answer = session.run([*taken, *names[1:]], dict(zip(feeds, given, strict=True)))
        return [_joined(answer[: len(taken)]), *answer[len(taken) :]]

    return Session(run, _fitting(entrance.shape, ports.shape[1:]), states)


def _joined(outputs: list[Any]) -> NDArray[Any]:
    return outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=1)


def _floats(x: NDArray[np.uint8], scale: float) -> NDArray[np.float32]:
    return x.astype(np.float32) if scale == 1 else np.multiply(x, scale, dtype=np.float32)


def _core() -> Any:
    with no_telemetry():
        return importlib.import_module("openvino").Core()


def _openvino(path: Path, ports: Ports, threads: int, batch: int, device: str = "CPU") -> Session:
    core = _core()
    model = core.read_model(path)
    for result in model.get_results() if ports.outputs == 1 else ():
        if MAP in result.output(0).get_names():
            model.remove_result(result)  # it costs nothing then
    if len(ports.shape) == 4 and len(model.inputs) > 1:
        return _openvino_stream(core, model, ports, threads, batch, device)
    entrance = _only(model.inputs, "input")
    _only(model.outputs, "output", ports.outputs)
    sides = [side.get_length() if side.is_static else str(side) for side in entrance.partial_shape]
    takes = _fitting(sides, ports.shape) or batch
    if entrance.partial_shape.is_dynamic:
        model.reshape({entrance: [takes, *ports.shape]})
    request = core.compile_model(model, device, _settings(device, threads)).create_infer_request()
    # The request's own tensors, kept: setting new ones at each call took a quarter of a small net's time
    pixels = request.get_input_tensor(0).data
    scale = ports.scale if pixels.dtype == np.float32 else 1.0

    def run(x: NDArray[np.uint8]) -> NDArray[Any]:
        pixels[:] = x if scale == 1 else _floats(x, scale)
        request.infer(share_inputs=True)
        # a copy: the next call writes into the same tensors
        return np.array(_joined([request.get_output_tensor(place).data for place in range(ports.outputs)]))

    return Session(run, takes)


def _settings(device: str, threads: int) -> dict[str, str]:
    # f32: otherwise half precision where the device has it: other probabilities
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if device == "CPU":  # pinned, two threads beside a busy process took 3.6 ms instead of 1.0
        settings |= {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads), "ENABLE_CPU_PINNING": "NO"}
    return settings


def _openvino_stream(core: Any, model: Any, ports: Ports, threads: int, batch: int, device: str) -> Session:
    (entrance, *rest), shape, first = model.inputs, ports.shape, ports.outputs
    sides = [side.get_length() if side.is_static else str(side) for side in entrance.partial_shape]
    takes, states = _fitting(sides, shape[1:]) or batch, list[State]()
    for node in rest:
        size = tuple(side.get_length() for side in list(node.partial_shape)[1:])
        states.append(State(node.any_name, size, node.element_type.to_dtype().type))
    model.reshape({entrance: [takes, *shape[1:]]} | {n: [takes, *s.shape] for n, s in zip(rest, states, strict=True)})
    request = core.compile_model(model, device, _settings(device, threads)).create_infer_request()

    def run(*given: NDArray[Any]) -> list[NDArray[Any]]:
        request.infer(list(given), share_inputs=True)
        found = [np.array(request.get_output_tensor(place).data) for place in range(first + len(states))]
        return [_joined(found[:first]), *found[first:]]

    return Session(run, takes, tuple(states))


def _ncnn(path: Path, ports: Ports, threads: int, batch: int) -> Session:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for half in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "bf16_packed"):
        setattr(net.opt, f"use_{half}", False)  # the file's own precision, on every processor
    weights = path.with_suffix(".bin")
    if net.load_param(str(path)) or not weights.is_file() or net.load_model(str(weights)):
        raise UserError(f"not a pair of ncnn files ({path.name}, {weights.name})")
    entrance, way_out = _only(net.input_names(), "input"), _only(net.output_names(), "output")

    def run(x: NDArray[np.uint8]) -> NDArray[Any]:
        extractor = net.create_extractor()
        pixels = x[0].astype(np.float32)  # ncnn's Mat borrows this memory
        extractor.input(entrance, ncnn.Mat(pixels))
        failed, p = extractor.extract(way_out)
        if failed:
            raise UserError(f"ncnn stopped with code {failed} on a picture of {ports.shape}")
        return np.array(p).reshape(1, -1)

    return Session(run, 1)


def _litert(path: Path, ports: Ports, threads: int, batch: int) -> Session:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    entrance = _only(interpreter.get_input_details(), "input")
    way_out = _only(interpreter.get_output_details(), "output")
    takes = _fitting([int(side) for side in entrance["shape"]], ports.shape)

    def run(x: NDArray[np.uint8]) -> NDArray[Any]:
        interpreter.set_tensor(entrance["index"], x.astype(entrance["dtype"], copy=False))
        interpreter.invoke()
        return np.array(interpreter.get_tensor(way_out["index"]))

    return Session(run, takes)


RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": Runtime((".onnx",), "onnxruntime", _onnxruntime, _providers),
    "openvino": Runtime((".onnx", ".xml"), "openvino", _openvino, lambda: list(_core().available_devices)),
    "ncnn": Runtime((".param",), "ncnn", _ncnn),
    "litert": Runtime((".tflite",), "ai_edge_litert", _litert),
}
