"""The faces of a data set, read once at native size and kept beside its pictures."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stillwatch.errors import UserError
from stillwatch.inference.face_reader import AGAIN, FaceReader
from stillwatch.lab.data import cache
from stillwatch.lab.data.sources import Box, Sample
from stillwatch.media import decode, image, weights
from stillwatch.media import points as mesh
from stillwatch.media.decode import Picture
from stillwatch.media.image import to_channels
from stillwatch.media.points import COUNT, LEFT_EYE, MOUTH, NAMES, RIGHT_EYE
from stillwatch.recipe import Data
from stillwatch.run import NO_PROGRESS, Progress

DRAWN = (*LEFT_EYE, *RIGHT_EYE, *MOUTH)  # the points that are shown: on a small face all 468 would be a blot
SPREAD, LIPS, NARROWEST = 0.3, 0.1, 0.35  # of the eyes' distance; of it, at the mouth; of the box, its least


class FaceTable(NamedTuple):
    """By sample; NaN where there is no face. Half floats: points are shares of the box."""

    signals: NDArray[np.floating]  # (N,7): of points.NAMES
    box: NDArray[np.floating]  # (N,4): left, top, width, height in the picture's pixels
    points: NDArray[np.floating]  # (N,468,3)
    size: NDArray[np.floating]  # (N,2): width, height of the picture that was read

    @property
    def found(self) -> NDArray[np.bool_]:
        return ~np.isnan(np.asarray(self.signals[:, 0], np.float32))

    def placed(self, which: Sequence[int], data: Data) -> NDArray[np.floating]:
        """(N,P,2): these points in the net's picture, in shares of its width and height."""
        at, box = self.points[:, list(which), :2].astype(np.float64), np.asarray(self.box, np.float64)[:, None]
        return image.shares(at * box[..., 2:] + box[..., :2], self.size[:, None], data.hw, data.fit)

    def regions(self, data: Data) -> NDArray[np.float32]:
        """(N,3,4): Gaussians of both eyes and the mouth, middle (x, y) and spread (x, y), as placed()."""
        # d is the eyes' distance, at least 0.35 of the box. Eyes: 0.3 d. Mouth: half its width + 0.1 d, and 0.3 d
        box, size = (np.asarray(x, np.float64)[:, None] for x in (self.box, self.size))
        parts = (self.points[:, list(part), :2].astype(np.float64) for part in (LEFT_EYE, RIGHT_EYE, MOUTH))
        left, right, lips = (part * box[..., 2:] + box[..., :2] for part in parts)  # pixels
        middles = np.stack([part.mean(1) for part in (left, right, lips)], 1)  # (N,3,2)
        d = np.maximum(np.linalg.norm(middles[:, 1] - middles[:, 0], axis=1), NARROWEST * box[:, 0, 2])
        spreads = SPREAD * d[:, None, None] * np.ones((3, 2))
        spreads[:, 2, 0] = np.linalg.norm(lips[:, 2] - lips[:, 0], axis=1) / 2 + LIPS * d
        low, high = (image.shares(at, size, data.hw, data.fit) for at in (middles, middles + spreads))
        return np.concatenate([low, high - low], 2).astype(np.float32)

    def boxes(self, region: Literal["face", "eyes"]) -> list[Box | None]:
        """A square of the face with a margin, or of both eyes three times as wide as high; None without a face."""
        found: list[Box | None] = []
        for (x, y, w, h), points, (width, height) in zip(self.box, self.points, self.size, strict=True):
            if np.isnan(x):
                found.append(None)
                continue
            place = mesh.Box(float(x), float(y), float(w), float(h)).around()
            if region == "eyes":
                at = np.asarray(points[:, :2], np.float64) * (w, h) + (x, y)
                left, right = (at[list(eye)].mean(0) for eye in (LEFT_EYE, RIGHT_EYE))
                d = max(float(np.linalg.norm(right - left)), NARROWEST * float(w))
                corner = (left + right) / 2 - (d, d / 3)
                place = mesh.Box(float(corner[0]), float(corner[1]), 2 * d, 2 * d / 3)
            found.append(place.inside((float(width), float(height))))
        return found


def faces(samples: Sequence[Sample], key: str, progress: Progress = NO_PROGRESS) -> FaceTable:
    """Of each sample's newest frame. key: Store.content. Raises UserError without the reader's weights."""
    pins = [weights.WEIGHTS[name].sha256 for name in (weights.YUNET, weights.POINTS)]
    kept: list[tuple[NDArray[np.float32], ...]] = []  # read file by file, taken row by row
    waiting = _read_all(samples)

    def compute(rows: NDArray[np.int64], view: int) -> dict[str, torch.Tensor]:
        while len(kept) <= rows[-1]:
            kept.append(next(waiting))
        columns = zip(*(kept[row] for row in rows), strict=True)
        return {name: torch.from_numpy(np.stack(x)) for name, x in zip(FaceTable._fields, columns, strict=True)}

    ids = [sample.id for sample in samples]
    found = cache.outputs(compute, len(samples), 1, [key, *FaceTable._fields, *pins, *ids], progress, "faces")
    return FaceTable(*(found[name][0] for name in FaceTable._fields))


def _read_all(samples: Sequence[Sample]) -> Iterator[tuple[NDArray[np.float32], ...]]:
    try:
        read, at = None if all(sample.face for sample in samples) else FaceReader(), 0.0
    except UserError as error:
        raise UserError(f"{error}; or without faces: data.faces=false teacher.signals=0") from None
    nobody = tuple(np.full(shape, np.nan, np.float32) for shape in (len(NAMES), 4, (COUNT, 3), 2))
    for _, run in groupby(samples, key=lambda sample: sample.path if sample.frames else sample.id):
        group = list(run)
        for sample, picture in zip(group, _native(group), strict=True):
            at += AGAIN  # each is sought anew: neighbours may be other people
            known = sample.face() if sample.face else None
            face = read(picture, at) if read and not known and picture is not None else known
            if face is None or picture is None:
                yield nobody
                continue
            x, y, w, h = face.box
            points, size = (face.points - (x, y, 0)) / (w, h, w), picture.shape[1::-1]
            yield tuple(np.array(value, np.float32) for value in (face.signals.flat(), face.box, points, size))


def _native(samples: list[Sample]) -> Iterator[Picture | None]:
    """The newest frames of one file's samples, unresized; None where unreadable."""
    first = samples[0]
    if first.read:
        for _, picture in first.read(samples):
            if isinstance(picture, str):
                yield None
            else:
                yield to_channels(picture if picture.ndim == 3 else picture[-1], 3)
    elif first.frames:
        by_frame = {sample.frames[-1]: None for sample in samples}
        windows = [(number,) for number in by_frame]
        found = dict(decode.clips(first.path, windows, lambda image: image))
        for sample in samples:
            clip = found.get((sample.frames[-1],), "")
            yield None if isinstance(clip, str) else clip[0]
    else:
        for sample in samples:
            image = decode.read_picture(sample.path)
            yield None if isinstance(image, str) else image
