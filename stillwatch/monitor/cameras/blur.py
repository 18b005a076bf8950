"""Blur: what people are shown has unrecognisable faces, or none. Never what the net sees.

Imports media.faces and decode alone.
"""

from collections.abc import Callable
from typing import Literal

import cv2

from stillwatch.media.decode import Picture
from stillwatch.media.faces import Box, YuNet

GROWN = 0.35  # of a face's box, on each side: hair and chin
HELD = 1.0  # seconds that a face stays blurred after it was last found there
BLOCKS = 6  # across a face
COARSE = 16  # blocks across a whole picture

Find = Callable[[Picture], list[Box]]


class Blur:
    """What makes a camera's pictures fit to be shown. Called in the order of time."""

    def __init__(self, how: Literal["none", "faces", "all"], find: Find | None = None):
        """find: what finds faces; YuNet where None. Raises UserError where its weights are missing."""
        self.how = how
        self._find: Find = (find or YuNet()) if how == "faces" else lambda image: []
        self._held: list[tuple[float, Box]] = []

    def __call__(self, image: Picture, seconds: float) -> Picture:
        """image: uint8 (H,W,3) RGB, left as it is -> the same size; the same array where nothing is blurred."""
        if self.how == "none":
            return image
        if self.how == "all":
            return everything(image)
        try:
            found = self._find(image)
        except (cv2.error, ValueError, MemoryError):
            return everything(image)  # not sought is not the same as not there
        self._held = [(when, box) for when, box in self._held if 0 <= seconds - when < HELD]
        self._held += [(seconds, box) for box in found]
        out = image.copy()
        for _, box in self._held:
            _blocks(out, box)
        return out


def everything(image: Picture) -> Picture:
    """The whole picture in coarse blocks."""
    height, width = image.shape[:2]
    rows = max(1, round(COARSE * height / width))
    small = cv2.resize(image, (min(COARSE, width), min(rows, height)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)  # type: ignore[return-value]


def _blocks(image: Picture, box: Box) -> None:
    """Pixelate one face in place, and what is around it."""
    height, width = image.shape[:2]
    left, top = max(0, round(box.x - GROWN * box.w)), max(0, round(box.y - GROWN * box.h))
    right = min(width, round(box.x + (1 + GROWN) * box.w))
    bottom = min(height, round(box.y + (1 + GROWN) * box.h))
    if right <= left or bottom <= top:
        return
    part = image[top:bottom, left:right]
    small = cv2.resize(part, (min(BLOCKS, right - left), min(BLOCKS, bottom - top)), interpolation=cv2.INTER_AREA)
    image[top:bottom, left:right] = cv2.resize(small, (right - left, bottom - top), interpolation=cv2.INTER_NEAREST)
