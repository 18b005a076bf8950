"""The runner for old boards: Python 3.6, no stillwatch, the golden answers by ONNX Runtime and a stand-in TensorRT."""

import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import bundles
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from stillwatch.inference.standalone import run_legacy

RUNNER = Path(run_legacy.__file__)


@pytest.fixture
def legacy(here: Path) -> Path:
    """A bundle of one file as onnx-legacy writes it, with the runner beside it."""
    net = bundles.onnx_net(here / run_legacy.MODEL, batch=1, kind=TensorProto.FLOAT)
    made = bundles.made(here, {run_legacy.MODEL: net}).path
    shutil.copy(RUNNER, made)
    return made


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """As a person on the board runs it, where stillwatch cannot be imported."""
    return subprocess.run([sys.executable, "-I", *words], capture_output=True, text=True, check=False)


def test_the_runner_is_short_and_of_python_3_6() -> None:
    assert len(RUNNER.read_text().splitlines()) <= 150
    words = [
        sys.executable,
        "-c",
        "import vermin; vermin.main()",
        "-t=3.6-",
        "--violations",
        "--eval-annotations",
        "--no-tips",
        str(RUNNER),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stillwatch" not in {line.split()[1].partition(".")[0] for line in RUNNER.read_text().splitlines()
                                if line.startswith(("import ", "from "))}  # fmt: skip


def test_it_replays_the_golden_frames_and_tells_latencies(legacy: Path) -> None:
    done = run(str(legacy / RUNNER.name), "--rounds", "5")
    assert done.returncode == 0, done.stderr
    assert "8 golden frames reproduced" in done.stdout
    assert "5 calls: p50 " in done.stdout


def test_other_answers_and_changed_files_are_told(legacy: Path, here: Path) -> None:
    wrong = bundles.onnx_net(here / run_legacy.MODEL, batch=1, kind=TensorProto.FLOAT, weights=-bundles.WEIGHTS)
    bent = bundles.made(here, {run_legacy.MODEL: wrong}, name="bent").path
    done = run(str(RUNNER), str(bent), "--rounds", "1")
    assert done.returncode == 1
    assert "NOT reproduced" in done.stdout
    (legacy / run_legacy.MODEL).write_bytes(b"another")
    (bent / "bundle.json").write_text(json.dumps({"models": [], "files": {}}))
    for folder, word in ((legacy, "was changed"), (bent, "--format onnx-legacy"), (here / "none", "none")):
        done = run(str(RUNNER), str(folder))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert word in done.stderr


class Memory:
    """What the runner calls of libcudart, on this machine's own memory."""

    def __init__(self) -> None:
        self.held: list[ctypes.Array[ctypes.c_char]] = []

    def cudaMalloc(self, pointer: object, size: ctypes.c_size_t) -> int:
        self.held.append(ctypes.create_string_buffer(size.value))
        pointer._obj.value = ctypes.addressof(self.held[-1])  # type: ignore[attr-defined]
        return 0

    def cudaMemcpy(self, to: ctypes.c_void_p, of: ctypes.c_void_p, size: ctypes.c_size_t, way: int) -> int:
        assert way in (1, 2)
        ctypes.memmove(to.value or 0, of.value or 0, size.value)
        return 0


class Engine:
    """TensorRT 8's engine and context at once: two bindings, run by ONNX Runtime."""

    num_bindings = 2

    def __init__(self, model: bytes, swapped: bool):
        self.session, self.swapped = onnxruntime.InferenceSession(model), swapped

    def binding_is_input(self, place: int) -> bool:
        return place == int(self.swapped)

    def create_execution_context(self) -> "Engine":
        return self

    def execute_v2(self, bindings: list[int]) -> bool:
        entrance, way_out = bindings[:: -1 if self.swapped else 1]
        shape = self.session.get_inputs()[0].shape
        x = np.frombuffer(ctypes.string_at(entrance, 4 * int(np.prod(shape))), np.float32).reshape(shape)
        p = self.session.run(None, {"frames": x})[0]
        ctypes.memmove(way_out, p.tobytes(), p.nbytes)
        return True


@pytest.mark.parametrize("swapped", [False, True])
def test_tensorrt_gets_its_pixels_and_gives_its_answers(
    legacy: Path, monkeypatch: pytest.MonkeyPatch, swapped: bool
) -> None:
    class Logger:
        ERROR = 0

        def __init__(self, level: int):
            assert level == self.ERROR

    class Runtime:
        def __init__(self, logger: Logger):
            assert logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine:
            return Engine(plan, swapped)

    fake = ModuleType("tensorrt")
    fake.__dict__.update(Logger=Logger, Runtime=Runtime, __version__="8.2.1")
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Memory())
    assert run_legacy.replay(str(legacy), str(legacy / run_legacy.MODEL), 2, 1, 0.0)
