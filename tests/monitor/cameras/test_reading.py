"""Readings: who is read, at which rate, and that they travel with the frames."""

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from bundles import onnx_net

from stillwatch.bundle import Input
from stillwatch.errors import UserError
from stillwatch.inference.face_reader import NetFile
from stillwatch.media import weights
from stillwatch.media.decode import Picture
from stillwatch.media.points import COUNT, Face, face
from stillwatch.monitor.cameras import reading
from stillwatch.monitor.cameras.camera import Camera, Frame
from stillwatch.monitor.cameras.reading import FaceStream, wanted
from stillwatch.monitor.config import CameraConfig, Keep
from stillwatch.recipe import Rule

IMAGE = np.zeros((40, 60, 3), np.uint8)
DRIVER = Rule(profile="driver")


def some(image: Picture, seconds: float) -> Face | None:
    """A face in every other second."""
    at = np.random.default_rng(0).uniform(10, 30, (COUNT, 3)).astype(np.float32)
    return face(at, 0.9) if int(seconds) % 2 else None


def test_a_face_is_read_where_the_rule_wants_it_and_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = tmp_path / "film.mp4"
    film.touch()
    assert wanted(DRIVER, "toy://driver") and not wanted(DRIVER, "toy://street")
    assert not wanted(Rule(profile="cctv"), "toy://driver") and wanted(
        Rule(profile="cctv", faces="yes"), "toy://driver"
    )
    assert not wanted(DRIVER, str(film)), "a board without the weights runs as before"
    monkeypatch.setattr(weights, "WEIGHTS", {name: one._replace(url="") for name, one in weights.WEIGHTS.items()})
    with pytest.raises(UserError, match=r'rule.faces = "yes": yunet_n_320_320[.]onnx .* is needed'):
        wanted(Rule(profile="driver", faces="yes"), str(film))
    monkeypatch.setenv("STILLWATCH_WEIGHTS", str(tmp_path))
    for name in weights.WEIGHTS:
        (tmp_path / name).touch()
    assert wanted(DRIVER, str(film)) and not wanted(Rule(profile="driver", faces="no"), str(film))


def test_readings_wait_for_the_frame_they_travel_with() -> None:
    faces = FaceStream(some, live=False)
    for tick in range(6):
        faces.look(lambda: IMAGE, tick / 2, tick / 2)
    taken = faces.take(1.0)
    assert [(one.seconds, one.signals is None) for one in taken] == [(0.0, True), (0.5, True), (1.0, False)]
    assert [one.seconds for one in faces.take(9.0)] == [1.5, 2.0, 2.5] and faces.take(9.0) == []
    assert faces.count == 6


def test_a_live_camera_gives_the_reader_half_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(reading.time, "monotonic", lambda: now[0])

    def slow(image: Picture, seconds: float) -> Face | None:
        now[0] += 0.06
        return some(image, seconds)

    live, film = FaceStream(slow, live=True), FaceStream(slow, live=False)
    for tick in range(100):
        now[0] = tick / 25
        live.look(lambda: IMAGE, now[0], now[0])
    assert 30 <= live.count <= 35, "every third of 25 a second: 0.06 s of work and as much of rest"
    for tick in range(10):
        film.look(lambda: IMAGE, tick / 25, tick / 25)
    assert film.count == 10, "a film waits"


def test_a_picture_that_cannot_be_read_has_no_face() -> None:
    def broken(image: Picture, seconds: float) -> Face | None:
        raise cv2.error("no memory")

    faces = FaceStream(broken, live=False)
    faces.look(lambda: IMAGE, 0.0, 0.0)
    assert [one.signals for one in faces.take(0.0)] == [None]


def test_without_a_reader_nothing_is_looked_at() -> None:
    faces = FaceStream(None, live=True)
    faces.look(lambda: pytest.fail("converted for nothing"), 0.0, 0.0)
    assert faces.take(9.0) == [] and faces.boxes(1.0) == []


def test_the_points_are_drawn_on_a_copy_and_the_box_grows_with_the_picture() -> None:
    faces = FaceStream(some, live=False)
    faces.look(lambda: IMAGE, 1.0, 1.0)
    drawn = faces.draw(np.zeros((80, 120, 3), np.uint8), 2.0)
    assert drawn[20:62, 20:62].any() and not drawn[:15].any()
    (small,), (large,) = faces.boxes(1.0), faces.boxes(2.0)
    assert large == pytest.approx([2 * value for value in small])


def test_a_drawn_drivers_face_arrives_with_its_frames_and_its_cost_is_counted(tmp_path: Path) -> None:
    config = CameraConfig(name="cab", source="toy://driver?seed=1&fps=20&size=96x128", fps=10, speed=0)
    net = NetFile(str(onnx_net(tmp_path / "face.onnx")), "onnxruntime", Input(shape=(6, 8, 3)))
    camera = Camera(config, Keep(), Input(shape=(48, 64, 1)), faces=net)
    camera.start()
    frames: list[Frame] = []
    end = time.monotonic() + 30
    while len(frames) < 40 and time.monotonic() < end:
        time.sleep(0.01)
        frames += [one for one in camera.take() if isinstance(one, Frame)]
        camera.tick(time.monotonic())
    camera.stop(2.0)
    readings = [one for frame in frames for one in frame.readings]
    assert len(readings) >= 2 * len(frames) - 2, "read at the camera's rate, looked at by the net at its own"
    assert all(frame.readings[-1].seconds == frame.time for frame in frames)
    assert all(one.signals is not None and 0.05 < one.signals.eyes < 0.4 for one in readings)
    assert all(one.signals is not None and sum(one.signals.said) == pytest.approx(1, abs=1e-4) for one in readings)
    assert camera.counters["readings"] > 0 and camera.counters["reading_ms"] >= 0
