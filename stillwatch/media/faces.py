"""Where faces are, by YuNet in OpenCV, and a face's square cut out upright."""

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from stillwatch.media import weights
from stillwatch.media.decode import Picture
from stillwatch.media.points import Box, Points

SIDE = 640  # pixels of the longer side in which faces are sought
SURE = 0.5  # score from which on it is a face: one blurred too much harms less than one too few
CROP = 192  # pixels of the square that the net of points takes
GROWN = 1.5  # its side over the face's: MediaPipe's


class Found(NamedTuple):
    box: Box
    eyes: tuple[tuple[float, float], tuple[float, float]]  # (x, y) of the picture's left one, and of the right one


class YuNet:
    """Wu, Peng, Yu 2023, as OpenCV runs it."""

    def __init__(self, side: int = SIDE) -> None:
        """side: of the longer side to search in, in pixels. Raises UserError."""
        self._size, self._side = (0, 0), side
        self._net = cv2.FaceDetectorYN.create(str(weights.find(weights.YUNET)), "", (320, 320), SURE)

    def __call__(self, image: Picture) -> list[Found]:
        """image: uint8 (H,W,3) RGB."""
        scale = min(1.0, self._side / max(image.shape[:2]))
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
        if size != self._size:
            self._net.setInputSize(size)
            self._size = size
        _, found = self._net.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        rows = [] if found is None else (np.asarray(found) / scale).tolist()
        return [Found(Box(*row[:4]), ((row[4], row[5]), (row[6], row[7]))) for row in rows]


class Square:
    """Turned so that the eyes are level. angle: radians, clockwise."""

    def __init__(self, x: float, y: float, side: float, angle: float):
        """x, y: its middle. side: pixels."""
        self._turn = turned(angle) * (side / CROP)  # crop pixels -> picture pixels
        self._corner = np.array([x, y]) - self._turn @ np.full(2, CROP / 2)
        self._scale = side / CROP

    def cut(self, image: Picture) -> Picture:
        """uint8 (H,W,3) -> uint8 (CROP,CROP,3), black outside."""
        finer = max(1, int(self._scale))  # a large face is averaged, or its lids would alias
        there = np.column_stack([self._turn / finer, self._corner])
        size = (CROP * finer, CROP * finer)
        out = cv2.warpAffine(image, there, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        return cv2.resize(out, (CROP, CROP), interpolation=cv2.INTER_AREA) if finer > 1 else out  # type: ignore[return-value]

    def back(self, points: Points) -> Points:
        """(N,3) from crop pixels to the picture's."""
        flat = points[:, :2] @ self._turn.T + self._corner
        return np.column_stack([flat, points[:, 2] * self._scale]).astype(np.float32)


def turned(angle: float) -> NDArray[np.float64]:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def square_of(found: Found) -> Square:
    (ax, ay), (bx, by) = found.eyes
    x, y, w, h = found.box
    return Square(x + w / 2, y + h / 2, GROWN * max(w, h), math.atan2(by - ay, bx - ax))


def square_round(points: Points) -> Square:
    """Where the same face is looked for next."""
    flat = points[:, :2].astype(np.float64)
    line = flat[263] - flat[33]  # the eyes' outer corners
    angle = math.atan2(line[1], line[0])
    upright = flat @ turned(angle)
    low, high = upright.min(0), upright.max(0)
    x, y = turned(angle) @ ((low + high) / 2)
    return Square(float(x), float(y), GROWN * float(max(high - low)), angle)
