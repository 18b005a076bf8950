"""Faces: what is blurred cannot be told any more, and what cannot be blurred is not shown."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from stillwatch.errors import UserError
from stillwatch.media import weights
from stillwatch.media.faces import Found
from stillwatch.media.points import Box
from stillwatch.monitor.cameras import blur as blurring
from stillwatch.monitor.cameras.blur import Blur

CHESS = (np.indices((120, 160)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None].repeat(3, 2)  # detail everywhere
BOX = Box(60, 40, 40, 50)


def seen(box: Box) -> list[Found]:
    return [Found(box, ((0.0, 0.0), (0.0, 0.0)))]


def detail(image: np.ndarray) -> float:
    """How much neighbours differ."""
    return float(np.abs(np.diff(image.astype(int), axis=1)).mean())


def test_all_of_a_picture_becomes_coarse_blocks() -> None:
    out = Blur("all")(CHESS, 0.0)
    assert out.shape == CHESS.shape
    assert detail(out) < 5 < 200 < detail(CHESS)
    assert len(np.unique(out.reshape(-1, 3), axis=0)) <= blurring.PICTURE_BLOCKS**2


def test_without_a_blur_it_is_the_same_picture() -> None:
    assert Blur("none")(CHESS, 0.0) is CHESS


def test_only_the_face_is_blurred_with_a_margin_and_the_net_keeps_its_picture() -> None:
    before = CHESS.copy()
    out = Blur("faces", find=lambda image: seen(BOX))(CHESS, 0.0)
    assert (before == CHESS).all()
    assert detail(out[40:90, 60:100]) < 20
    assert detail(out[30:100, 50:110]) < 20, "hair and chin"
    assert (out[:, :40] == CHESS[:, :40]).all() and (out[:20] == CHESS[:20]).all()


def test_a_face_that_is_missed_for_a_moment_stays_blurred() -> None:
    found = [seen(BOX), [], [], seen(Box(500, 500, 9, 9))]
    blur = Blur("faces", find=lambda image: found.pop(0))
    sharp = [detail(blur(CHESS, seconds)[40:90, 60:100]) > 20 for seconds in (0.0, 0.5, 0.9, 1.1)]
    assert sharp == [False, False, False, True]


def test_a_face_that_was_read_is_blurred_where_the_detector_misses_it() -> None:
    out = Blur("faces", find=lambda image: [])(CHESS, 0.0, [BOX])
    assert detail(out[40:90, 60:100]) < 20
    assert Blur("none")(CHESS, 0.0, [BOX]) is CHESS


def test_what_cannot_be_searched_is_blurred_whole() -> None:
    def broken(image: np.ndarray) -> list[Found]:
        raise cv2.error("out of memory")

    assert detail(Blur("faces", find=broken)(CHESS, 0.0)) < 5


def test_without_weights_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(url: str, timeout: float) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(weights.urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=r"yunet_n_320_320[.]onnx .* is needed: .*now not set.*no route to host"):
        Blur("faces")
    monkeypatch.setenv("STILLWATCH_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=rf"STILLWATCH_WEIGHTS names .now {tmp_path}"):
        Blur("faces")
