"""Faces by YuNet in OpenCV. Its weights are not shipped: STILLWATCH_WEIGHTS names their folder."""

import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from stillwatch.errors import UserError
from stillwatch.media.decode import Picture

MODEL = "yunet_n_320_320.onnx"
SIDE = 640  # pixels of the longer side in which faces are sought
SURE = 0.5  # score from which on it is a face: one blurred too much harms less than one too few


class Box(NamedTuple):
    """Pixels: left, top, width, height."""

    x: float
    y: float
    w: float
    h: float


def model() -> Path:
    """Raises UserError where the weights are missing, since no blur would happen."""
    folder = os.environ.get("STILLWATCH_WEIGHTS", "")
    path = Path(folder) / MODEL
    if not folder or not path.is_file():
        where = f"STILLWATCH_WEIGHTS = {folder or 'not set'}"
        raise UserError(f'blur = "faces": {where}: {MODEL} is needed there (OpenCV Zoo, Apache-2.0); or blur = "all"')
    return path


class YuNet:
    """Wu, Peng, Yu: YuNet, a tiny millisecond-level face detector (2023), as OpenCV runs it."""

    def __init__(self) -> None:
        self._size = (0, 0)
        self._path = str(model())
        self._net = cv2.FaceDetectorYN.create(self._path, "", (320, 320), SURE)

    def __call__(self, image: Picture) -> list[Box]:
        """image: uint8 (H,W,3) RGB."""
        scale = min(1.0, SIDE / max(image.shape[:2]))
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
        if size != self._size:
            self._net.setInputSize(size)
            self._size = size
        _, found = self._net.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        rows = [] if found is None else np.asarray(found)[:, :4].tolist()
        return [Box(*(value / scale for value in row)) for row in rows]
