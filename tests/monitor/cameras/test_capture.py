"""The eye: what it makes of a picture that shows nothing, and what it needs to run."""

import subprocess
import sys
from collections.abc import Callable

import cv2
import numpy as np
import streams

from stillwatch.monitor.cameras.capture import jpeg
from stillwatch.monitor.cameras.health import PictureHealth
from stillwatch.monitor.cameras.source import VideoFrame

SIZE = (96, 128)
Draw = Callable[[int], np.ndarray]


def told(
    draw: Draw, seconds: float, live: bool = True, keys: float = 1.0, gaze: PictureHealth | None = None
) -> list[str]:
    """The status of each of 10 pictures a second; keys: keyframes a second."""
    gaze = gaze or PictureHealth(live)
    shots = [VideoFrame(draw(n), n / 10, n / 10) for n in range(round(10 * seconds))]
    return [gaze.status(shot, int(keys * shot.time)) for shot in shots]


def noisy(level: float, sigma: float) -> Draw:
    return lambda n: np.clip(np.random.default_rng(n).normal(level, sigma, (*SIZE, 3)), 0, 255).astype(np.uint8)


def test_a_scene_with_a_sensors_noise_is_well() -> None:
    still = streams.picture(0, SIZE).astype(int)
    quiet = [
        lambda n, s=s: np.clip(still + noisy(0, s)(n) - noisy(0, s)(n + 999), 0, 255).astype(np.uint8) for s in (2, 5)
    ]
    for draw in (lambda n: streams.picture(n, SIZE), *quiet):
        assert set(told(draw, 12)) == {"ok"}


def test_a_picture_that_never_changes_is_frozen_after_five_seconds() -> None:
    draw = lambda n: streams.picture(0, SIZE)  # noqa: E731
    status = told(draw, 8)
    assert status.index("frozen") in range(50, 57)
    assert set(status[:50]) == {"ok"} and set(status[57:]) == {"frozen"}
    assert set(told(draw, 8, live=False)) == {"ok"}, "a film may stand still"


def test_what_an_encoder_leaves_alone_is_no_frozen_camera() -> None:
    # Between two keyframes a quiet scene is often not painted again
    assert set(told(lambda n: streams.picture(n // 100, SIZE), 18, keys=0.1)) == {"ok"}
    # ... and one that is frozen is painted a little differently at each place of a group of pictures
    assert "frozen" in told(lambda n: streams.picture(n % 5, SIZE), 12)


def test_it_is_well_again_with_the_first_change() -> None:
    gaze = PictureHealth(live=True)
    assert told(lambda n: streams.picture(0, SIZE), 8, gaze=gaze)[-1] == "frozen"
    status = [gaze.status(VideoFrame(streams.picture(n, SIZE), 8 + n / 10, 0), 9) for n in range(1, 8)]
    assert status[-1] == "ok"


def test_dark_and_covered_are_black_after_two_seconds() -> None:
    for draw in (noisy(8, 4), noisy(90, 1.5), lambda n: np.zeros((*SIZE, 3), np.uint8)):
        status = told(draw, 4)
        assert status.index("black") in range(20, 27) and set(status[27:]) == {"black"}
    assert "black" not in told(noisy(60, 12), 6), "a dim scene"
    assert told(noisy(8, 4), 4, live=False)[-1] == "black", "also of a film"


def test_a_change_of_size_is_a_change() -> None:
    assert set(told(lambda n: streams.picture(0, (96, 128) if n // 20 % 2 else (120, 160)), 5)) == {"ok"}


def test_pictures_for_people_keep_their_shape_and_colours() -> None:
    image = np.zeros((300, 600, 3), np.uint8)
    image[:, :, 0] = 200
    shown = cv2.imdecode(np.frombuffer(jpeg(image, 200, 90), np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (100, 200, 3)
    assert np.abs(shown[50, 100].astype(int) - (0, 0, 200)).max() < 8, "red stays red"
    small = cv2.imdecode(np.frombuffer(jpeg(image, 900, 90), np.uint8), cv2.IMREAD_COLOR)
    assert small.shape == (300, 600, 3)


def test_the_child_is_small() -> None:
    heavy = ["torch", "onnxruntime", "fastapi", "uvicorn", "sqlite3", "matplotlib", "paho", "typer", "rich"]
    code = f"import sys, stillwatch.monitor.cameras.capture; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
