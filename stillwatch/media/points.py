"""468 face points -> eyelids, mouth and the head's angles. Pure numpy; imports nothing of ours."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]

COUNT = 468
MARGIN = 1.6  # of the points' box, which ends at brow and chin: hair, hands and what they hold lie beside it
# Numbers of MediaPipe's face mesh (Kartynnik et al. 2019); left and right are the picture's
LEFT_EYE = (33, 160, 158, 133, 153, 144)  # corner, two of the upper lid, corner, two of the lower lid
RIGHT_EYE = (362, 385, 387, 263, 373, 380)
MOUTH = (78, 13, 308, 14)  # corner, upper lip, corner, lower lip
CHEEKS, MIDLINE = (234, 454), (10, 152)  # left and right; forehead and chin


class Box(NamedTuple):
    """Pixels: left, top, width, height."""

    x: float
    y: float
    w: float
    h: float

    def around(self) -> "Box":
        """The square with a margin that a net for the face is shown."""
        side = MARGIN * max(self.w, self.h)
        return Box(self.x + (self.w - side) / 2, self.y + (self.h - side) / 2, side, side)

    def inside(self, size: tuple[float, float]) -> tuple[int, int, int, int]:
        """Left, top, right, bottom, at least 8 apart, within a picture of (width, height)."""
        low = np.clip((self.x, self.y), 0, np.subtract(size, 8)).astype(int)
        high = np.clip((self.x + self.w, self.y + self.h), low + 8, size).astype(int)
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])


class Signals(NamedTuple):
    """Openings are height over width; angles are degrees as the picture shows them."""

    left_eye: float
    right_eye: float
    mouth: float
    yaw: float  # > 0: turned to the picture's right
    pitch: float  # > 0: down
    roll: float  # > 0: clockwise
    confidence: float  # 0..1: that this is a face, and seen well
    said: tuple[float, ...] = ()  # (K,) probabilities by a net that sees the face alone

    @property
    def eyes(self) -> float:
        return (self.left_eye + self.right_eye) / 2

    def flat(self) -> tuple[float, ...]:
        return (*self[:-1], *self.said)

    @classmethod
    def of(cls, values: Iterable[float]) -> "Signals":
        """What flat() gave."""
        left_eye, right_eye, mouth, yaw, pitch, roll, confidence, *said = map(float, values)
        return cls(left_eye, right_eye, mouth, yaw, pitch, roll, confidence, tuple(said))


NAMES = Signals._fields[:-1]  # of the numbers that points give


class Face(NamedTuple):
    """box: around the points. points: float32 (468,3), x and y in pixels, z in the same unit."""

    box: Box
    points: Points
    signals: Signals


def face(points: Points, confidence: float) -> Face:
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    return Face(Box(*map(float, (*low, *(high - low)))), points, signals(points, confidence))


def signals(points: Points, confidence: float) -> Signals:
    """points: (468,3) in one unit. Eyelids: Soukupová and Čech 2016 (eye aspect ratio), flat: turning opens an eye."""
    yaw, pitch, roll = angles(points)
    left, right = (_eye(points[list(eye), :2]) for eye in (LEFT_EYE, RIGHT_EYE))
    a, top, b, bottom = points[list(MOUTH)]
    mouth = _length(top - bottom) / max(_length(a - b), 1e-6)
    return Signals(left, right, mouth, yaw, pitch, roll, confidence)


def angles(points: Points) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees, from cheeks, forehead and chin."""
    across = points[CHEEKS[1]] - points[CHEEKS[0]]
    down = points[MIDLINE[1]] - points[MIDLINE[0]]
    yaw = math.atan2(across[2], math.hypot(across[0], across[1]))
    pitch = math.atan2(down[2], math.hypot(down[0], down[1]))
    return math.degrees(yaw), math.degrees(pitch), math.degrees(math.atan2(across[1], across[0]))


def _eye(lid: Points) -> float:
    corner, upper, upper2, corner2, lower2, lower = lid
    return (_length(upper - lower) + _length(upper2 - lower2)) / max(2 * _length(corner - corner2), 1e-6)


def _length(line: Points) -> float:
    return float(np.linalg.norm(line))
