"""Replay a bundle's golden frames and time model-legacy.onnx where stillwatch does not install, as on an old Jetson.

Needs Python 3.6, numpy, and TensorRT 8 or ONNX Runtime. Copied into the bundle: python3 run_legacy.py [BUNDLE]
[--engine model-legacy.engine] [--rounds 200]. Make the engine on the board, with its own TensorRT:
/usr/src/tensorrt/bin/trtexec --onnx=model-legacy.onnx --saveEngine=model-legacy.engine
"""

import argparse
import ctypes
import ctypes.util
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

MODEL = "model-legacy.onnx"


def open_onnxruntime(path: str, threads: int) -> "Callable[[np.ndarray], np.ndarray]":
    """Pixels 0..255, float32 (1,H,W,C) or (1,T,H,W,C) -> probabilities float32 (1,K)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    return lambda x: session.run(None, {feed: x})[0]


def open_tensorrt(path: str, shape: "tuple[int, ...]", classes: int) -> "Callable[[np.ndarray], np.ndarray]":
    """The same from an engine of TensorRT 8; GPU copies are part of each call."""
    import tensorrt

    cuda = ctypes.CDLL(ctypes.util.find_library("cudart") or "/usr/local/cuda/lib64/libcudart.so")

    def call(name: str, *given: object) -> None:
        if getattr(cuda, name)(*given) != 0:
            raise RuntimeError(f"{name} failed: is the GPU free, and its driver loaded?")

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    runtime = tensorrt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(Path(path).read_bytes())
    if engine is None or engine.num_bindings != 2:
        raise RuntimeError(f"{path} is no engine of this board's TensorRT {tensorrt.__version__}")
    context = engine.create_execution_context()
    answer = np.empty((1, classes), np.float32)
    sizes, pointers = [4 * int(np.prod(shape)), answer.nbytes], [ctypes.c_void_p(), ctypes.c_void_p()]
    for place in (0, 1):
        call("cudaMalloc", ctypes.byref(pointers[place]), ctypes.c_size_t(sizes[place]))
    bindings = [int(pointer.value or 0) for pointer in (pointers if engine.binding_is_input(0) else pointers[::-1])]

    def run(x: np.ndarray) -> np.ndarray:
        call("cudaMemcpy", pointers[0], ctypes.c_void_p(x.ctypes.data), ctypes.c_size_t(sizes[0]), 1)  # to the GPU
        if not (context and engine and runtime and context.execute_v2(bindings)):  # all three must outlive the call
            raise RuntimeError("TensorRT stopped on a picture")
        call("cudaMemcpy", ctypes.c_void_p(answer.ctypes.data), pointers[1], ctypes.c_size_t(sizes[1]), 2)  # and back
        return answer.copy()

    return run


def checked(folder: str, name: str, manifest: dict) -> str:
    """A file's path, if its sha256 is the manifest's."""
    path = Path(folder) / name
    if hashlib.sha256(path.read_bytes()).hexdigest() != manifest["files"][name]["sha256"]:
        raise RuntimeError(f"{path} was changed: copy the bundle again")
    return str(path)


def replay(folder: str, engine: str, rounds: int, threads: int, tolerance: float) -> bool:
    """False where the golden answers are not reproduced."""
    manifest = json.loads((Path(folder) / "bundle.json").read_text(encoding="utf-8"))
    models = [model for model in manifest["models"] if model["name"] == MODEL]
    if not models:
        raise RuntimeError(f"the bundle has no {MODEL}: stillwatch export RUN --format onnx-legacy")
    with np.load(checked(folder, "golden.npz", manifest), allow_pickle=False) as arrays:
        frames, wanted = arrays["frames"].astype(np.float32), arrays["p " + MODEL]
    began = time.perf_counter()
    if engine:
        predict = open_tensorrt(engine, frames[:1].shape, wanted.shape[1])
    else:
        predict = open_onnxruntime(checked(folder, MODEL, manifest), threads)
    found = np.concatenate([predict(frames[i : i + 1]) for i in range(len(frames))])
    ready = time.perf_counter() - began

    limit = tolerance if tolerance else models[0]["tolerance"]
    difference = float(np.abs(found - wanted).max())
    best = np.sort(wanted, axis=1)
    clear = best[:, -1] - best[:, -2] >= limit  # of two classes as near as the tolerance, either may win
    other = int(((found.argmax(1) != wanted.argmax(1)) & clear).sum())
    good = difference <= limit and not other  # so written that a NaN is not good
    words = "reproduced" if good else "NOT reproduced"
    print(f"{len(frames)} golden frames {words}: furthest {difference:.2g}, {limit:.2g} is allowed,", end=" ")
    print(f"{other} with another label")

    times = []
    for turn in range(rounds + 20):  # the first 20 warm up
        x, start = frames[turn % len(frames)][None], time.perf_counter()
        predict(x)
        times.append(1000 * (time.perf_counter() - start))
    p50, p95, p99 = np.percentile(times[20:], [50, 95, 99])
    print(
        f"one picture, {rounds} calls: p50 {p50:.2f} ms, p95 {p95:.2f}, p99 {p99:.2f}, min {min(times[20:]):.2f};",
        end=" ",
    )
    print(f"ready after {ready:.1f} s")
    return bool(good)


def main() -> int:
    parser = argparse.ArgumentParser(description="Replay golden frames and print latencies, without stillwatch.")
    parser.add_argument("bundle", nargs="?", default=str(Path(__file__).resolve().parent), help="its folder")
    parser.add_argument("--engine", default="", help="TensorRT's, made by trtexec; else ONNX Runtime runs the file")
    parser.add_argument("--rounds", type=int, default=200, help="timed calls")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--tolerance", type=float, default=0.0, help="else the bundle's own; --fp16 engines need more")
    asked = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    try:
        return 0 if replay(asked.bundle, asked.engine, asked.rounds, asked.threads, asked.tolerance) else 1
    except Exception as error:  # a person on a board reads one line, not a traceback
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
