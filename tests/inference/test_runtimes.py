"""Runtimes: the same tiny net by hand, in ONNX, OpenVINO and ncnn, gives the same numbers for any count of pictures."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import SHAPE, WEIGHTS, by_hand, ncnn_net, onnx_net, pictures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from stillwatch.errors import UserError
from stillwatch.inference import runtimes


def xml_net(folder: Path) -> Path:
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().read_model(onnx_net(folder / "source.onnx"))
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def file_for(runtime: str, folder: Path, suffix: str) -> Path:
    if not runtimes.installed(runtime):
        pytest.skip(f"{runtime} is not installed")
    make = {".onnx": lambda: onnx_net(folder / "model.onnx"), ".xml": lambda: xml_net(folder)}
    return make.get(suffix, lambda: ncnn_net(folder))()


EVERY = [("onnxruntime", ".onnx"), ("openvino", ".onnx"), ("openvino", ".xml"), ("ncnn", ".param")]


def test_every_runtime_but_litert_is_tested_here() -> None:
    """litert has no file here: nothing but its own converter writes one, and that pins another torch."""
    table = {(name, suffix) for name, entry in runtimes.RUNTIMES.items() for suffix in entry.formats}
    assert table - set(EVERY) == {("litert", ".tflite")}
    assert runtimes.installed("onnxruntime")


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("runtime", "suffix"), EVERY)
def test_any_number_of_pictures_gives_what_it_gives_by_hand(
    tmp_path: Path, runtime: str, suffix: str, batch: int
) -> None:
    predict = runtimes.open(file_for(runtime, tmp_path, suffix), runtime, SHAPE, threads=1, batch=batch)
    for count in (0, 1, 3, 4, 9):
        x = pictures(count, seed=count)
        p = predict(x)
        assert p.dtype == np.float32 and p.shape == (count, 2)
        np.testing.assert_allclose(p, by_hand(x), atol=1e-6)
    first = predict(pictures(batch, seed=1))
    kept = first.copy()
    predict(pictures(batch, seed=2))
    assert (first == kept).all()  # the next answer does not write into the last one


@pytest.mark.parametrize(("runtime", "suffix"), EVERY)
def test_pictures_may_lie_in_memory_as_they_like(tmp_path: Path, runtime: str, suffix: str) -> None:
    predict = runtimes.open(file_for(runtime, tmp_path, suffix), runtime, SHAPE)
    x = pictures(2)
    for other in (np.asfortranarray(x), pictures(4)[::2], pictures(2, (6, 8, 4))[..., :3], x[:, ::-1]):
        np.testing.assert_allclose(predict(other), by_hand(other), atol=1e-6)
    x.flags.writeable = False
    np.testing.assert_allclose(predict(x), by_hand(x), atol=1e-6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(0, 13), batch=st.integers(1, 6), free=st.booleans())
def test_no_picture_is_lost_or_swapped_by_splitting(tmp_path: Path, count: int, batch: int, free: bool) -> None:
    path = onnx_net(tmp_path / "model.onnx", batch="batch" if free else batch)
    x = pictures(count, seed=count)
    np.testing.assert_allclose(runtimes.open(path, "onnxruntime", SHAPE, 1, batch)(x), by_hand(x), atol=1e-6)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", ["batch", "N", 1, 3])
@pytest.mark.parametrize("kind", [TensorProto.UINT8, TensorProto.FLOAT])
def test_fixed_and_free_batches_bytes_and_floats(tmp_path: Path, runtime: str, batch: Any, kind: int) -> None:
    """TensorProto.FLOAT and batch 1 is what the exporter onnx-legacy writes."""
    if not runtimes.installed(runtime):
        pytest.skip(f"{runtime} is not installed")
    path = onnx_net(tmp_path / "model.onnx", batch=batch, kind=kind)
    predict = runtimes.open(path, runtime, SHAPE, threads=2, batch=2)
    np.testing.assert_allclose(predict(pictures(5)), by_hand(pictures(5)), atol=1e-6)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("shape", [(5, 6, 8, 3), (6, 8, 1)])
def test_clips_and_gray_pictures(tmp_path: Path, runtime: str, shape: tuple[int, ...]) -> None:
    if not runtimes.installed(runtime):
        pytest.skip(f"{runtime} is not installed")
    weights = WEIGHTS[: shape[-1]]
    path = onnx_net(tmp_path / "model.onnx", shape, weights=weights)
    x = pictures(3, shape)
    np.testing.assert_allclose(runtimes.open(path, runtime, shape)(x), by_hand(x, weights), atol=1e-6)


@pytest.mark.parametrize(("runtime", "suffix"), EVERY)
def test_other_pictures_are_refused(tmp_path: Path, runtime: str, suffix: str) -> None:
    predict = runtimes.open(file_for(runtime, tmp_path, suffix), runtime, SHAPE)
    for wrong in (pictures(1, (6, 8, 1)), pictures(1, (8, 6, 3)), pictures(1)[0], pictures(1).astype(np.float32)):
        with pytest.raises(ValueError, match=r"the net takes uint8 \(n,6,8,3\), not"):
            predict(wrong)  # type: ignore[arg-type]


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = onnx_net(tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"^runtime = 'onnxruntme': unknown; did you mean 'onnxruntime'\?$"):
        runtimes.open(path, "onnxruntme", SHAPE)
    with pytest.raises(UserError, match=r"model.onnx: ncnn does not read .onnx files, but .param$"):
        runtimes.open(path, "ncnn", SHAPE)
    with pytest.raises(UserError, match=r"gone.onnx: no such file$"):
        runtimes.open(tmp_path / "gone.onnx", "onnxruntime", SHAPE)
    for name in ("openvino", "ncnn", "litert"):
        monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
        suffix, extra = (
            runtimes.RUNTIMES[name].formats[-1],
            {"litert": "ai-edge-litert"}.get(name, f"stillwatch[{name}]"),
        )
        with pytest.raises(UserError) as caught:
            runtimes.open(tmp_path / f"model{suffix}", name, SHAPE)
        assert str(caught.value) == f"runtime = {name!r}: not installed; pip install '{extra}'"
    assert runtimes.readers(path) == []


def test_suiting_names_what_is_here(tmp_path: Path) -> None:
    there = [name for name in ("onnxruntime", "openvino") if runtimes.installed(name)]
    assert runtimes.readers(Path("model.onnx")) == there
    assert runtimes.readers(Path("model.ncnn.param")) == [name for name in ("ncnn",) if runtimes.installed(name)]
    assert runtimes.readers(Path("model.txt")) == []


@pytest.mark.parametrize("text", [b"", b"not a net", b"\x08\x09" * 50])
@pytest.mark.parametrize(("runtime", "suffix"), EVERY)
def test_a_file_that_is_no_net_is_refused_in_one_line(tmp_path: Path, runtime: str, suffix: str, text: bytes) -> None:
    if not runtimes.installed(runtime):
        pytest.skip(f"{runtime} is not installed")
    path = tmp_path / f"model{suffix}"
    path.write_bytes(text)
    with pytest.raises(UserError) as caught:
        runtimes.open(path, runtime, SHAPE)
    assert str(caught.value).startswith(f"{path}: {runtime}") and len(str(caught.value).splitlines()) == 1


def test_a_net_for_something_else_is_refused(tmp_path: Path) -> None:
    path = onnx_net(tmp_path / "model.onnx", (6, 9, 3))
    for runtime in runtimes.readers(path):
        with pytest.raises(UserError, match=rf"{runtime}: the file takes \(batch,6,9,3\), not \(n,6,8,3\)"):
            runtimes.open(path, runtime, SHAPE)
    onnx_net(path, kind=TensorProto.INT32)
    with pytest.raises(UserError, match=r"the file takes tensor\(int32\); wanted: uint8 or float"):
        runtimes.open(path, "onnxruntime", SHAPE)
    value = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", *SHAPE])
    out = helper.make_tensor_value_info("y", TensorProto.UINT8, ["batch", *SHAPE])
    graph = helper.make_graph([helper.make_node("Identity", ["frames"], ["y"])], "toy", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    for runtime in runtimes.readers(path):
        with pytest.raises(UserError, match=r"its answer to 1 pictures is uint8 \(1, 6, 8, 3\); wanted: probabilities"):
            runtimes.open(path, runtime, SHAPE)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["frames"], ["y"]), helper.make_node("Identity", ["frames"], ["z"])],
        "toy",
        [value],
        [out, helper.make_tensor_value_info("z", TensorProto.UINT8, ["batch", *SHAPE])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    for runtime in runtimes.readers(path):
        with pytest.raises(UserError, match="the file has 2 outputs; wanted: one"):
            runtimes.open(path, runtime, SHAPE)


def test_half_of_an_ncnn_pair_is_refused(tmp_path: Path) -> None:
    path = file_for("ncnn", tmp_path, ".param")
    (tmp_path / "model.ncnn.bin").unlink()
    with pytest.raises(UserError, match=r"not a pair of ncnn files \(model.ncnn.param, model.ncnn.bin\)"):
        runtimes.open(path, "ncnn", SHAPE)


SPY = """
import sys
calls = []
sys.addaudithook(lambda event, _: calls.append(event) if event.startswith(("socket.", "os.fork", "subprocess")) else 0)
import socket
from pathlib import Path
import numpy as np
from stillwatch.inference import runtimes
x = np.zeros((1, 6, 8, 3), np.uint8)
for runtime in sys.argv[2:]:
    print(runtimes.open(Path(sys.argv[1]), runtime, (6, 8, 3))(x).shape)
assert not calls, calls
assert "openvino_telemetry" not in sys.modules
assert "torch" not in sys.modules
"""


def test_no_runtime_phones_home_or_chatters(tmp_path: Path) -> None:
    """Both report their use by default: OpenVINO from a forked process at import, ONNX Runtime from a thread."""
    home = tmp_path / "home"
    home.mkdir()
    path = onnx_net(tmp_path / "model.onnx")
    names = runtimes.readers(path)
    env = {key: value for key, value in os.environ.items() if key not in ("CI", "ORT_DISABLE_TELEMETRY")}
    env |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    words = [sys.executable, "-c", SPY, str(path), *names]
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["(1, 2)"] * len(names)
    assert not list(home.rglob("*"))  # where each keeps the number by which it knows this machine


def test_what_imports_telemetry_later_still_finds_it() -> None:
    """nncf has its own say over it: the import is hidden from openvino alone."""
    code = """
import sys, types
mine = sys.modules["openvino_telemetry"] = types.ModuleType("openvino_telemetry")
from stillwatch.inference import runtimes
with runtimes.no_telemetry():
    import openvino
assert sys.modules["openvino_telemetry"] is mine
"""
    if not runtimes.installed("openvino"):
        pytest.skip("openvino is not installed")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
