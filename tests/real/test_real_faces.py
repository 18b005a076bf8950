"""Face blur on real people: YuNet finds them, and finds nobody any more where they were blurred."""

import os
from pathlib import Path

import numpy as np
import pytest

from stillwatch.media import decode, faces, weights
from stillwatch.media.points import Box
from stillwatch.monitor.cameras import blur

pytestmark = pytest.mark.real
DATA = Path(os.environ.get("STILLWATCH_DATA", "")) / "driver-inattention"
WEIGHTS = os.environ.get("STILLWATCH_WEIGHTS", "")
EVERY = 60  # of the pictures


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    if not (Path(WEIGHTS) / weights.YUNET).is_file():
        pytest.skip(f"STILLWATCH_WEIGHTS has no {weights.YUNET}")
    monkeypatch.setenv("STILLWATCH_WEIGHTS", WEIGHTS)
    read = [decode.read_picture(path) for path in sorted(DATA.glob("*/*.jpg"))[::EVERY]]
    found = [image for image in read if not isinstance(image, str)]
    if not found:
        pytest.skip("STILLWATCH_DATA names no driver-inattention")
    return found


def test_faces_are_found_and_not_again_once_blurred(pictures: list[np.ndarray]) -> None:
    find = faces.YuNet()
    found = [find(image) for image in pictures]
    assert np.mean([len(seen) > 0 for seen in found]) > 0.98
    left = 0
    for image, seen in zip(pictures, found, strict=True):
        out, boxes = blur.Blur("faces", find=lambda _, seen=seen: seen)(image, 0.0), [one.box for one in seen]
        left += any(overlap(one.box, other) > 0.3 for one in find(out) for other in boxes)
        box = max(boxes, key=lambda box: box.w * box.h, default=None)
        if box is not None:
            inside = out[max(0, int(box.y)) : int(box.y + box.h), max(0, int(box.x)) : int(box.x + box.w)]
            blocks = len(np.unique(inside.reshape(-1, 3), axis=0))
            assert blocks <= blur.FACE_BLOCKS**2 * max(1, len(boxes)), "a face is few blocks"
    assert left / len(pictures) < 0.02


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    wide = min(one.x + one.w, other.x + other.w) - max(one.x, other.x)
    tall = min(one.y + one.h, other.y + other.h) - max(one.y, other.y)
    both = max(0.0, wide) * max(0.0, tall)
    return both / (one.w * one.h + other.w * other.h - both)
