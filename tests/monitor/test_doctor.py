"""A plan that works here says so line by line; what does not is found by trying."""

from pathlib import Path
from typing import Any

import pytest
from bundles import made, onnx_net

from stillwatch.monitor import doctor
from stillwatch.monitor.config import CameraConfig, Keep, LoadedConfig, Person, Sink, WatchConfig, Web
from stillwatch.recipe import Rule


def read(folder: Path, *cameras: CameraConfig, **keys: Any) -> LoadedConfig:
    if not (folder / "bundle-toy").exists():
        made(folder, {"model.onnx": onnx_net(folder / "m.onnx")}, aspect=4 / 3)
    keep = keys.pop("keep", Keep(folder=folder / "kept", gigabytes=0.001, free=0))
    config = WatchConfig(bundle=folder / "bundle-toy", camera=cameras, keep=keep, rule=Rule(profile="cctv"), **keys)
    return LoadedConfig(config, {}, {})


def found(asked: LoadedConfig) -> dict[str, list[doctor.Finding]]:
    by: dict[str, list[doctor.Finding]] = {}
    for finding in doctor.examine(asked):
        by.setdefault(finding.what, []).append(finding)
    return by


def test_what_works_is_tried_and_said(tmp_path: Path) -> None:
    sinks = (Sink(name="log", to="log"),)
    by = found(read(tmp_path, CameraConfig(name="yard", source="toy://street?size=48x64"), sink=sinks))
    assert all(finding.good for findings in by.values() for finding in findings), by
    assert by["bundle"][0].words.startswith("toy: model.onnx in ")
    assert by["yard"][0].words.startswith("first frame after ")
    assert any(finding.words.startswith("danger: evidence of danger") for finding in by["yard"])
    assert list(by) == ["bundle", "yard", "log", "page", "disk"]
    assert not list((tmp_path / "kept").iterdir())


def test_what_does_not_is_named_and_the_rest_is_tried_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 3.0)  # a busy machine
    monkeypatch.delenv("NO_SUCH", raising=False)
    cameras = (
        CameraConfig(name="gone", source="no-such-film.mp4"),
        CameraConfig(name="deaf", source="rtsp://user:hunter2@127.0.0.1:9/"),
        CameraConfig(name="secret", source="$NO_SUCH"),
        CameraConfig(name="unfit", source="toy://street", person=Person(model=tmp_path / "none.onnx")),
        CameraConfig(name="good", source="toy://street?size=48x64"),
    )
    sinks = (Sink(name="hook", to={"name": "webhook", "url": "$NO_SUCH"}),)
    asked = read(
        tmp_path, *cameras, sink=sinks, web=Web(host="0.0.0.0"), keep=Keep(folder=tmp_path / "m.onnx", gigabytes=1)
    )
    by = found(asked._replace(bad_cameras={"typo": "watch.toml: line 3: camera.fsp: unknown key"}))
    words = {what: findings[0].words for what, findings in by.items() if not findings[0].good}
    assert set(words) == {"typo", "gone", "deaf", "secret", "unfit", "hook", "page", "disk"}
    assert "no such file" in words["gone"]
    assert words["deaf"].startswith("no frame within 3 s")
    assert "hunter2" not in str(by)
    assert words["unfit"] == f"{tmp_path / 'none.onnx'}: no such file"
    assert "$NO_SUCH: not set" in words["secret"] + words["hook"]
    assert "add token" in words["page"]
    assert by["good"][0].good


def test_without_its_bundle_nothing_else_is_tried(tmp_path: Path) -> None:
    config = WatchConfig(bundle=tmp_path / "none", camera=(CameraConfig(name="yard", source="toy://street"),))
    (finding,) = doctor.examine(LoadedConfig(config, {}, {}))
    assert str(finding).startswith("!!  bundle: ")


def test_a_camera_of_another_shape_is_found(tmp_path: Path) -> None:
    wide = {"source": "toy://street?size=36x64"}
    by = found(read(tmp_path, CameraConfig(name="wide", **wide), CameraConfig(name="cut", **wide, fit="crop")))
    assert [finding.words.partition(",")[0] for finding in by["wide"] if not finding.good] == ["its picture"]
    assert all(finding.good for finding in by["cut"])
