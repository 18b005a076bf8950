"""The detector: the fastest file that is right on this machine, remembered; wrong files never answer."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import BIAS, FRAMES, SHAPE, WEIGHTS, by_hand, made, ncnn_net, onnx_net, pictures

from stillwatch.bundle import Bundle, Manifest
from stillwatch.errors import UserError
from stillwatch.inference import detector, runtimes, timing
from stillwatch.inference.detector import Detector, choices
from stillwatch.inference.timing import machine
from stillwatch.media import image
from stillwatch.recipe import Rule


def two(folder: Path, **more: Any) -> Bundle:
    """A quick file and a slow one, both right."""
    quick, slow = onnx_net(folder / "q.onnx"), onnx_net(folder / "s.onnx", slow=3)
    return made(folder, {"slow.onnx": slow, "quick.onnx": quick}, **more)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow file takes a hundred times as long: a few rounds tell."""
    monkeypatch.setattr(detector, "ROUNDS", 5)


class Spy:
    """Counts what is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.opened: list[tuple[str, str]] = []
        real = runtimes.open

        def spy(path: Path, runtime: str, *rest: Any) -> runtimes.Predict:
            self.opened.append((path.name, runtime))
            return real(path, runtime, *rest)

        monkeypatch.setattr(runtimes, "open", spy)


def test_the_fastest_file_is_chosen_and_gives_the_answer(tmp_path: Path) -> None:
    it = two(tmp_path)
    watching = Detector(it.path, threads=1, runtime="onnxruntime")
    assert (watching.labels, watching.safe, watching.threshold) == (("safe", "danger"), ("safe",), 0.7)
    choice = watching.choice
    assert (choice["file"], choice["runtime"], choice["cached"]) == ("quick.onnx", "onnxruntime", False)
    assert [c["file"] for c in choice["candidates"]] == ["quick.onnx", "slow.onnx"]
    assert 0 < choice["ms"] == choice["candidates"][0]["ms"] < choice["candidates"][1]["ms"]
    assert max(c["difference"] for c in choice["candidates"]) < 1e-6
    np.testing.assert_allclose(watching.predict(pictures(5)), by_hand(pictures(5)), atol=1e-6)


@pytest.mark.parametrize(("faces", "own", "wanted"), [(False, 0.4, 0.7), (True, 0.4, 0.4), (True, None, 0.7)])
def test_where_faces_are_read_the_threshold_is_that_of_net_and_face(
    tmp_path: Path, faces: bool, own: float | None, wanted: float
) -> None:
    head = {"weight": [[1.0] * 10] * 2, "bias": [0.0] * 2, "figures": {}, "operating": own and {"threshold": own}}
    it = made(tmp_path, {"m.onnx": onnx_net(tmp_path / "m.onnx")})
    it = replace(it, manifest=Manifest(**it.manifest.model_dump() | {"fusion": head}))
    alarm = detector.alarm_of(it, "cab", Rule(profile="cctv"), faces)
    assert next(one.threshold for one in alarm.indicators if one.how == "evidence") == wanted


def test_every_installed_runtime_is_tried(tmp_path: Path) -> None:
    ncnn = ncnn_net(tmp_path)
    onnx = onnx_net(tmp_path / "m.onnx")
    files = {"model.onnx": onnx, "model.ncnn.param": ncnn, "model.ncnn.bin": ncnn.with_suffix(".bin")}
    there = {(name, r) for name in ("model.onnx", "model.ncnn.param") for r in runtimes.readers(Path(name))}
    assert len(there) >= 1
    watching = Detector(made(tmp_path, files))
    assert {(c["file"], c["runtime"]) for c in watching.choice["candidates"]} == there
    np.testing.assert_allclose(watching.predict(pictures(2)), by_hand(pictures(2)), atol=1e-6)


def test_a_fast_file_that_is_wrong_is_not_chosen(tmp_path: Path) -> None:
    wrong = onnx_net(tmp_path / "w.onnx", weights=WEIGHTS + np.float32(0.5) * np.eye(3, 2, dtype=np.float32))
    it = made(tmp_path, {"wrong.onnx": wrong, "right.onnx": onnx_net(tmp_path / "r.onnx", slow=3)})
    choice = Detector(it, runtime="onnxruntime").choice
    assert choice["file"] == "right.onnx"
    assert [c["file"] for c in choice["candidates"]] == ["right.onnx", "wrong.onnx"]
    off = np.abs(by_hand(FRAMES, WEIGHTS + np.float32(0.5) * np.eye(3, 2, dtype=np.float32)) - by_hand(FRAMES)).max()
    assert choice["candidates"][1]["why_not"] == (
        f"wrong.onnx in onnxruntime differs by {off:.2g}, 0.0001 is allowed"
    )  # fmt: skip


def test_none_that_is_right_is_refused_and_each_is_named(tmp_path: Path) -> None:
    files = {"a.onnx": onnx_net(tmp_path / "a.onnx"), "b.onnx": onnx_net(tmp_path / "b.onnx", weights=WEIGHTS * np.nan)}
    it = made(tmp_path, files, {"a.onnx": by_hand(FRAMES) + np.array([0.02, -0.02])})
    with pytest.raises(UserError) as caught:
        Detector(it, runtime="onnxruntime")
    assert str(caught.value) == (
        f"{it.path}: no file reproduces the golden frames on this machine: "
        "a.onnx in onnxruntime differs by 0.02, 0.0001 is allowed; "
        "b.onnx in onnxruntime differs by nan, 0.0001 is allowed"
    )
    assert choices() == []


def test_a_file_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no net")
    it = made(tmp_path, {"broken.onnx": broken, "right.onnx": onnx_net(tmp_path / "r.onnx")})
    choice = Detector(it, runtime="onnxruntime").choice
    assert choice["file"] == "right.onnx"
    assert "broken.onnx: onnxruntime cannot read it" in choice["candidates"][1]["why_not"]


def test_another_label_is_wrong_even_within_the_tolerance_unless_it_was_a_tie(tmp_path: Path) -> None:
    net = onnx_net(tmp_path / "m.onnx", weights=np.zeros((3, 2), np.float32))
    p = by_hand(FRAMES, np.zeros((3, 2), np.float32))  # one answer for every picture, by the bias alone
    gap = float(p[0, 0] - p[0, 1])
    assert gap == pytest.approx(np.tanh((BIAS[0] - BIAS[1]) / 2), abs=1e-6)  # 0.197
    golden = p.copy()
    golden[3] = [0.45, 0.55]  # differs by 0.149; its own labels are 0.1 apart
    for tolerance, refused in ((0.16, False), (0.2, False), (0.1, True)):
        it = made(tmp_path, {"m.onnx": net}, {"m.onnx": golden}, tolerance, f"t{tolerance}")
        if refused:
            with pytest.raises(UserError, match=r"differs by 0\.15"):
                Detector(it, runtime="onnxruntime")
        else:
            Detector(it, runtime="onnxruntime")
    golden[3] = [0.4, 0.6]  # differs by 0.199; its labels are 0.2 apart, which is no tie for a tolerance of 0.1995
    it = made(tmp_path, {"m.onnx": net}, {"m.onnx": golden}, 0.1995, "flip")
    with pytest.raises(UserError, match=r"m\.onnx in onnxruntime gives golden frame 3 another label"):
        Detector(it, runtime="onnxruntime")


def test_a_choice_is_remembered_and_only_its_file_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = two(tmp_path)
    first = Detector(it, threads=1, runtime="onnxruntime").choice
    spy = Spy(monkeypatch)
    again = Detector(it, threads=1, runtime="onnxruntime")
    assert spy.opened == [("quick.onnx", "onnxruntime")]
    assert again.choice == first | {"cached": True}
    np.testing.assert_allclose(again.predict(pictures(2)), by_hand(pictures(2)), atol=1e-6)
    (kept,) = choices()
    assert kept["bundle"] == str(it.path.resolve())
    assert (kept["file"], kept["threads"], kept["batch"], kept["ms"]) == ("quick.onnx", 1, 1, first["ms"])
    assert kept["machine"] == machine()._asdict()


@pytest.mark.parametrize("what", ["threads", "batch", "runtime", "file", "bundle", "version", "cpu"])
def test_another_question_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    asked: dict[str, Any] = {"threads": 1, "batch": 1, "runtime": "onnxruntime"}
    it = two(tmp_path)
    Detector(it, **asked)
    more: dict[str, dict[str, Any]] = {
        "threads": {"threads": 2}, "batch": {"batch": 3}, "runtime": {"runtime": None},
        "file": {"file": "quick.onnx"},
    }  # fmt: skip
    if what == "bundle":
        it = two(tmp_path, name="other")
    if what == "version":
        monkeypatch.setattr(timing, "version", lambda package: "99")
    if what == "cpu":
        monkeypatch.setattr(timing, "_cpu", lambda: "an abacus")
    spy = Spy(monkeypatch)
    assert Detector(it, **asked | more.get(what, {})).choice["cached"] is False
    assert len(spy.opened) >= (1 if what == "file" else 2)
    assert len(choices()) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: "no json",
        lambda kept: "[1]",
        lambda kept: json.dumps({"file": kept["file"]}),
        lambda kept: json.dumps(kept | {"file": "../../quick.onnx"}),
        lambda kept: json.dumps(kept | {"file": ["quick.onnx"]}),
        lambda kept: json.dumps(kept | {"runtime": "ncnn"}),
        lambda kept: json.dumps(kept | {"file": "wrong.onnx"}),  # there, but it does not reproduce the golden frames
    ],
)
def test_a_remembered_choice_that_does_not_hold_is_made_anew(tmp_path: Path, change: Any) -> None:
    wrong = onnx_net(tmp_path / "w.onnx", weights=-WEIGHTS)
    it = made(tmp_path, {"wrong.onnx": wrong, "right.onnx": onnx_net(tmp_path / "r.onnx")})
    Detector(it, runtime="onnxruntime")
    (place,) = (Path(os.environ["STILLWATCH_CACHE"]) / "choices").iterdir()
    place.write_text(change(json.loads(place.read_text())))
    choice = Detector(it, runtime="onnxruntime").choice
    assert (choice["file"], choice["cached"]) == ("right.onnx", False)
    assert Detector(it, runtime="onnxruntime").choice["cached"] is True


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("STILLWATCH_CACHE", str(tmp_path / "file"))
    it = two(tmp_path)
    for _ in range(2):
        assert Detector(it, runtime="onnxruntime").choice["cached"] is False
    assert choices() == []
    monkeypatch.delenv("STILLWATCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Detector(it, runtime="onnxruntime")
    assert len(list((tmp_path / "home" / ".cache" / "stillwatch" / "choices").iterdir())) == 1


def test_choices_are_listed_newest_first_and_broken_ones_passed_over(tmp_path: Path) -> None:
    folder = Path(os.environ["STILLWATCH_CACHE"]) / "choices"
    folder.mkdir(parents=True)
    for name, text in (("a", '{"made": "2026-01-01"}'), ("b", '{"made": "2026-02-01"}'), ("c", "{"), ("d", "[]")):
        (folder / f"{name}.json").write_text(text)
    assert [one["made"] for one in choices()] == ["2026-02-01", "2026-01-01"]


def test_of_a_bundle_that_is_gone_nothing_is_shown(tmp_path: Path) -> None:
    folder = Path(os.environ["STILLWATCH_CACHE"]) / "choices"
    folder.mkdir(parents=True)
    one = {"file": "m.onnx", "runtime": "ncnn", "ms": 1.0, "threads": 1, "batch": 1, "made": "2026-01-01"}
    for number, place in enumerate((tmp_path, tmp_path / "gone")):
        (folder / f"{number}.json").write_text(json.dumps(one | {"bundle": str(place)}))
    shown = [line for line in detector.diagnosis() if "m.onnx" in line]
    assert len(shown) == 1 and shown[0].startswith(f"{tmp_path}: ")


def test_pictures_of_any_size_are_fitted_and_go_through_together(tmp_path: Path) -> None:
    watching = Detector(made(tmp_path, {"m.onnx": onnx_net(tmp_path / "m.onnx")}), batch=3)
    views = [pictures(1, shape)[0] for shape in ((6, 8, 3), (60, 40, 3), (9, 30, 1), (12, 16, 3))]
    views.append(pictures(1, (20, 20))[0])
    fitted = np.stack([image.fit(view, (6, 8), "letterbox", 3) for view in views])
    assert (fitted[1][:, 0] == 0).all()  # letterboxed, as the bundle says
    p = watching(views)
    assert p.dtype == np.float32 and p.shape == (5, 2)
    np.testing.assert_allclose(p, by_hand(fitted), atol=1e-6)
    assert watching([]).shape == (0, 2)
    with pytest.raises(ValueError, match="a picture is uint8"):
        watching([views[0], views[0].astype(np.float32)])  # type: ignore[list-item]


def test_clips_have_their_frames_counted(tmp_path: Path) -> None:
    shape = (4, *SHAPE)
    frames = pictures(8, shape)
    net = onnx_net(tmp_path / "m.onnx", shape)
    watching = Detector(made(tmp_path, {"m.onnx": net}, frames=frames), runtime="onnxruntime")
    small, large = pictures(1, shape)[0], pictures(1, (4, 12, 16, 3))[0]
    fitted = np.stack([small, np.stack([image.fit(frame, (6, 8), "letterbox", 3) for frame in large])])
    np.testing.assert_allclose(watching([small, large]), by_hand(fitted), atol=1e-6)
    with pytest.raises(ValueError, match="a clip of this net has 4 frames, not 3"):
        watching([small[:3]])


def test_what_is_asked_for_is_what_is_run(tmp_path: Path) -> None:
    it = two(tmp_path)
    assert Detector(it, file="slow.onnx", runtime="onnxruntime").choice["file"] == "slow.onnx"
    for runtime in runtimes.readers(Path("m.onnx")):
        assert Detector(it, runtime=runtime).choice["runtime"] == runtime
    for wrong, match in (
        ({"file": "quik.onnx"}, "'quik.onnx': no such model in the bundle; did you mean 'quick.onnx'"),
        ({"runtime": "onnxruntme"}, "runtime = 'onnxruntme': unknown; did you mean 'onnxruntime'"),
        ({"runtime": "ncnn"}, r"nothing here reads slow.onnx, quick.onnx \(asked: ncnn\)"),
        ({"threads": 0}, "threads = 0, batch = 1: both are at least 1"),
        ({"batch": 0}, "batch = 0: both are at least 1"),
    ):
        with pytest.raises(UserError, match=match):
            Detector(it, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not a bundle: no such folder"):
        Detector(tmp_path / "none")
    (it.path / "quick.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"quick.onnx: is 1 bytes"):
        Detector(it.path)


def test_a_runtime_that_is_missing_is_named_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = two(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"nothing here reads slow.onnx, quick.onnx .* install a runtime"):
        Detector(it)
    with pytest.raises(UserError, match=r"openvino'?: not installed; pip install 'stillwatch\[openvino\]'"):
        Detector(it, runtime="openvino")
    assert set(machine().runtimes.values()) == {"not installed"}


STREET = """
import sys
class Wall:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("torch", "timm", "sklearn", "matplotlib", "nncf", "onnx"):
            raise ImportError(f"{name} is not on the street")
sys.meta_path.insert(0, Wall())
from stillwatch.inference.detector import Detector
import numpy as np
watching = Detector(sys.argv[1], threads=1)
p = watching([np.zeros((360, 640, 3), np.uint8)])
import json, resource
usage = resource.getrusage(resource.RUSAGE_SELF)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"shape": p.shape, "cached": watching.choice["cached"], "runtime": watching.choice["runtime"],
    "seconds": usage.ru_utime + usage.ru_stime, "megabytes": peak / 1024, "openvino": "openvino" in sys.modules}))
"""


@pytest.mark.slow
def test_the_street_has_no_torch_and_starts_fast_in_little_memory(tmp_path: Path) -> None:
    """Processor seconds, for the wall clock here is shared; a net of 4 MB, as large as MobileNetV3-small 0.75."""
    it = made(tmp_path, {"m.onnx": onnx_net(tmp_path / "m.onnx", slow=1)})
    assert it.manifest.files["m.onnx"].bytes > 4e6

    def street() -> dict[str, Any]:
        done = subprocess.run([sys.executable, "-c", STREET, str(it.path)], capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return dict(json.loads(done.stdout))

    first = street()
    assert (first["shape"], first["cached"]) == ([1, 2], False)
    (kept,) = choices()
    (place,) = (Path(os.environ["STILLWATCH_CACHE"]) / "choices").iterdir()
    place.write_text(json.dumps(kept | {"runtime": "onnxruntime"}))
    second = street()
    assert (second["shape"], second["cached"], second["runtime"]) == ([1, 2], True, "onnxruntime")
    assert second["openvino"] is False  # only the chosen runtime is imported
    assert second["seconds"] < 1.5
    assert second["megabytes"] < 250


def test_a_device_is_raced_like_any_other_and_one_that_is_not_here_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no accelerator where this runs: OpenVINO's HETERO over the CPU is another device to our code."""
    pytest.importorskip("openvino")
    net = {"model.onnx": onnx_net(tmp_path / "m.onnx")}
    it = made(tmp_path, net)
    asked = ("onnxruntime", "onnxruntime:CPUExecutionProvider", "openvino:CPU", "openvino:HETERO:CPU")
    choice = Detector(it, runtime=asked).choice
    assert {one["runtime"] for one in choice["candidates"]} == set(asked)
    assert all("why_not" not in one for one in choice["candidates"])
    assert Detector(it, runtime="openvino:HETERO:CPU").choice["runtime"] == "openvino:HETERO:CPU"
    for runtime, words in {
        "onnxruntime:CUDAExecutionProvider": "this install of onnxruntime has .*CPUExecutionProvider",
        "openvino:GPU.7": "this install of openvino has CPU", "openvino:": "this install of openvino has CPU",
        "ncnn:GPU": "no devices to name", "tensorrt:0": "unknown",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=f"^runtime = '{runtime}': .*{words}[^\n]*$"):
            Detector(it, runtime=("onnxruntime", runtime))


def test_a_provider_that_starts_nowhere_is_refused_and_the_race_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime lists what it was built with, and drops without an error what finds no driver or device."""
    import onnxruntime

    it = made(tmp_path, {"model.onnx": onnx_net(tmp_path / "m.onnx")})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", runtimes.CPU])
    begin = onnxruntime.InferenceSession
    plain = lambda path, options, providers: begin(path, options, providers=[runtimes.CPU])  # noqa: E731
    monkeypatch.setattr(onnxruntime, "InferenceSession", plain)
    cuda = "onnxruntime:CUDAExecutionProvider"
    good, bad = Detector(it, runtime=("onnxruntime", cuda)).choice["candidates"]
    assert (good["runtime"], bad["runtime"]) == ("onnxruntime", cuda)
    assert "CUDAExecutionProvider cannot start here" in bad["why_not"]
    with pytest.raises(UserError, match="cannot start here"):
        Detector(it, runtime=cuda)
