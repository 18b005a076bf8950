"""Blurs faces in what people see, never in the net's input."""

from collections.abc import Callable, Sequence
from typing import Literal

import cv2

from stillwatch.media.decode import Picture
from stillwatch.media.faces import Found, YuNet
from stillwatch.media.points import Box

GROWN = 0.35  # of a face's box, on each side: hair and chin
HELD = 1.0  # seconds that a face stays blurred after it was last found there
FACE_BLOCKS, PICTURE_BLOCKS = 6, 16  # across a face, across a whole picture


class Blur:
    """Takes one camera's pictures, in order."""

    def __init__(self, how: Literal["none", "faces", "all"], find: Callable[[Picture], list[Found]] | None = None):
        """find: the face detector; None: YuNet. Raises UserError."""
        self.how = how
        self._find = (find or YuNet()) if how == "faces" else None
        self._held: list[tuple[float, Box]] = []

    def __call__(self, image: Picture, seconds: float, known: Sequence[Box] = ()) -> Picture:
        """uint8 (H,W,3) RGB -> a blurred copy, or the same array. known: faces read already."""
        if self.how == "none":
            return image
        height, width = image.shape[:2]
        try:
            found = self._find(image) if self._find else None
        except (cv2.error, ValueError, MemoryError):
            found = None  # not sought is not the same as not there
        if found is None:
            return _pixelate(image, PICTURE_BLOCKS, max(1, round(PICTURE_BLOCKS * height / width)))
        self._held = [(when, box) for when, box in self._held if 0 <= seconds - when < HELD]
        self._held += [(seconds, box) for box in (*(one.box for one in found), *known)]
        out = image.copy()
        for _, box in self._held:
            rows = slice(max(0, round(box.y - GROWN * box.h)), min(height, round(box.y + (1 + GROWN) * box.h)))
            columns = slice(max(0, round(box.x - GROWN * box.w)), min(width, round(box.x + (1 + GROWN) * box.w)))
            if rows.start < rows.stop and columns.start < columns.stop:
                out[rows, columns] = _pixelate(out[rows, columns], FACE_BLOCKS, FACE_BLOCKS)
        return out


def _pixelate(image: Picture, across: int, down: int) -> Picture:
    height, width = image.shape[:2]
    small = cv2.resize(image, (min(across, width), min(down, height)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)  # type: ignore[return-value]
