"""Faces: found by YuNet and made unrecognisable, in what people are shown: page, thumbnail, clip. Never for the net.

In: uint8 (H,W,3) RGB. Out: a copy in which faces, or all of it, are coarse blocks.
Called by the eye. The detector's weights are not shipped: STILLWATCH_WEIGHTS names the folder that holds them.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from stillwatch.recipe import Mistake
from stillwatch.watch.source import Picture

MODEL = "yunet_n_320_320.onnx"
SIDE = 640  # pixels of the longer side in which faces are sought
SURE = 0.5  # score from which on it is a face: one blurred too much harms less than one too few
GROWN = 0.35  # of a face's box, on each side: hair and chin
HELD = 1.0  # seconds that a face stays blurred after it was last found there
BLOCKS = 6  # across a face
COARSE = 16  # blocks across a whole picture


class Box(NamedTuple):
    """Pixels: left, top, width, height."""

    x: float
    y: float
    w: float
    h: float


Find = Callable[[Picture], list[Box]]


class Blur:
    """What makes a camera's pictures fit to be shown. Called in the order of time."""

    def __init__(self, how: Literal["none", "faces", "all"], find: Find | None = None):
        """find: what finds faces; YuNet where None. Raises Mistake where its weights are missing."""
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


def model() -> Path:
    """Where YuNet's weights are. Raises Mistake where they are not: a blur that cannot be done must not be promised."""
    folder = os.environ.get("STILLWATCH_WEIGHTS", "")
    path = Path(folder) / MODEL
    if not folder or not path.is_file():
        where = f"STILLWATCH_WEIGHTS = {folder or 'not set'}"
        raise Mistake(f'blur = "faces": {where}: {MODEL} is needed there (OpenCV Zoo, Apache-2.0); or blur = "all"')
    return path


class YuNet:
    """Wu, Peng, Yu: YuNet, a tiny millisecond-level face detector (2023), as OpenCV runs it."""

    def __init__(self) -> None:
        self._size = (0, 0)
        self._path = str(model())
        self._net = cv2.FaceDetectorYN.create(self._path, "", (320, 320), SURE)

    def __call__(self, image: Picture) -> list[Box]:
        """Faces in uint8 (H,W,3) RGB."""
        scale = min(1.0, SIDE / max(image.shape[:2]))
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
        if size != self._size:
            self._net.setInputSize(size)
            self._size = size
        _, found = self._net.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        rows = [] if found is None else np.asarray(found)[:, :4].tolist()
        return [Box(*(value / scale for value in row)) for row in rows]


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
