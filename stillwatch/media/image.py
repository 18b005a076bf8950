"""Geometry: only this module decides how pixels come to the net's size."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
How = Literal["stretch", "letterbox", "crop"]
GLOW, STRENGTH = (255, 80, 0), 60  # of highlight(): RGB, percent where the map is full
Polygon = Sequence[tuple[float, float]]  # (x, y), shares of the picture
Crop = tuple[float, float, float, float]  # left, top, right, bottom, shares of the picture
GRAY = (124, 116, 104)  # ImageNet's mean, which normalising turns into zero: nothing is there


def fit(image: Picture, size: tuple[int, int], how: How = "stretch", channels: int = 3) -> Picture:
    """uint8 (H,W), (H,W,1) or (H,W,3) RGB -> uint8 (*size, channels).

    size: (height, width). channels: 1 gray or 3 RGB. how: "stretch" ignores the aspect ratio, "letterbox" adds black
    bars, "crop" cuts. Raises ValueError for another dtype or shape.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"a picture is uint8 (H,W,C) with no empty side, not {image.dtype} {image.shape}")
    image = to_channels(image, channels)
    (height, width), (h, w) = size, image.shape[:2]
    if how == "stretch":
        return _resize(image, height, width)
    choose = min if how == "letterbox" else max
    scale = choose(height / h, width / w)
    image = _resize(image, max(1, round(h * scale)), max(1, round(w * scale)))
    h, w = image.shape[:2]
    if how == "crop":
        top, left = (h - height) // 2, (w - width) // 2
        return np.ascontiguousarray(image[max(top, 0) :, max(left, 0) :][:height, :width])
    canvas = np.zeros((height, width, channels), np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    canvas[top : top + h, left : left + w] = image
    return canvas


def zoned(image: Picture, ignore: Sequence[Polygon], crop: Crop | None) -> Picture:
    """uint8 (H,W,3) RGB -> a copy inside crop, gray inside each polygon."""
    h, w = image.shape[:2]
    left, top, right, bottom = crop or (0.0, 0.0, 1.0, 1.0)
    x, y = min(int(left * w), w - 1), min(int(top * h), h - 1)
    image = image[y : max(y + 1, math.ceil(bottom * h)), x : max(x + 1, math.ceil(right * w))]
    if ignore:
        image = image.copy()
    for polygon in ignore:
        corners = np.round(np.asarray(polygon) * (w, h) - (x, y)).astype(np.int32)
        cv2.fillPoly(image, [corners], GRAY)
    return image


def zoned_whole(image: Picture, ignore: Sequence[Polygon], crop: Crop | None) -> Picture:
    """zoned() at its place in the whole picture, gray around it; without zones the same array."""
    if not ignore and crop is None:
        return image
    shown = zoned(image, ignore, crop)
    (h, w), (height, width) = image.shape[:2], shown.shape[:2]
    left, top = (min(int(crop[0] * w), w - 1), min(int(crop[1] * h), h - 1)) if crop else (0, 0)
    out = np.full_like(image, GRAY)
    out[top : top + height, left : left + width] = shown
    return out


def shares(
    at: NDArray[np.floating], native: NDArray[np.floating], size: tuple[int, int], how: How = "stretch"
) -> NDArray[np.floating]:
    """Where fit() moves pixels (x, y) (...,2) of a picture of width and height `native` (...,2).

    size: (height, width). Returns shares of the new picture's sides.
    """
    target = np.array(size[::-1], np.float64)
    scale = target / native
    if how == "letterbox":
        scale = scale.min(-1, keepdims=True)
    elif how == "crop":
        scale = scale.max(-1, keepdims=True)
    return (at - native / 2) * scale / target + 0.5


def to_aspect(image: Picture, aspect: float, how: How, border: int = cv2.BORDER_CONSTANT) -> Picture:
    """uint8 (H,W,C) of that width / height: cut ("crop"), with a border ("letterbox"), or as it is."""
    h, w = image.shape[:2]
    if how == "stretch":
        return image
    if (w > h * aspect) == (how == "crop"):
        height, width = h, max(1, round(h * aspect))
    else:
        height, width = max(1, round(w / aspect)), w
    top, left = abs(height - h) // 2, abs(width - w) // 2
    if how == "crop":
        return image[top : top + height, left : left + width]
    rest = (max(height - h, 0) - top, max(width - w, 0) - left)
    return cv2.copyMakeBorder(image, top, rest[0], left, rest[1], border)  # type: ignore[return-value]


class View(NamedTuple):
    """What a net sees, in shares of a picture's sides; bars lie beyond 0 and 1."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def fitted(self, shape: tuple[int, ...], size: tuple[float, float], how: How) -> "View":
        """After fit() or to_aspect() of this part of a picture into (height, width)."""
        if how == "stretch":
            return self
        wide, high = (self.right - self.left) / 2, (self.bottom - self.top) / 2
        h, w = high * shape[0], wide * shape[1]
        scale = (min if how == "letterbox" else max)(size[0] / h, size[1] / w)
        x, y, high, wide = self.left + wide, self.top + high, size[0] / scale / shape[0], size[1] / scale / shape[1]
        return View(x - wide, y - high, x + wide, y + high)


def highlight(image: Picture, map: Picture, view: View) -> Picture:
    """A copy of uint8 (H,W,3) with `map`, uint8 (h,w) over its `view`, laid on it."""
    (high, wide), (h, w) = image.shape[:2], map.shape
    x, y = w / (view.right - view.left), h / (view.bottom - view.top)  # places of the map a side of the picture
    move = np.array(
        [[x / wide, 0, x * (0.5 / wide - view.left) - 0.5], [0, y / high, y * (0.5 / high - view.top) - 0.5]]
    )
    way = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    share = cv2.warpAffine(map, move, (wide, high), flags=way, borderMode=cv2.BORDER_REPLICATE).astype(np.uint16)
    left, right = (min(max(round(side * wide), 0), wide) for side in (view.left, view.right))
    top, bottom = (min(max(round(side * high), 0), high) for side in (view.top, view.bottom))
    out, seen, share = image.copy(), np.s_[top:bottom, left:right], share[:, :, None] * STRENGTH // 100
    out[seen] = (image[seen] * (255 - share[seen]) + np.array(GLOW, np.uint16) * share[seen]) // 255
    return out


def to_channels(image: Picture, channels: int) -> Picture:
    """uint8 (H,W) or (H,W,1|3|4) RGB(A) -> uint8 (H,W,channels)."""
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] == 4:
        image = image[:, :, :3]
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]  # type: ignore[return-value]


def _resize(image: Picture, height: int, width: int) -> Picture:
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    # Area averaging going down (no aliasing of eyelids and fingers), linear going up
    way = cv2.INTER_AREA if height < image.shape[0] or width < image.shape[1] else cv2.INTER_LINEAR
    out = cv2.resize(image, (width, height), interpolation=way)
    return out.reshape(height, width, image.shape[2])  # type: ignore[return-value]
