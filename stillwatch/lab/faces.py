"""The faces of a data set, read once at native size and kept beside its pictures. Trains nothing."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stillwatch.inference.face_reader import AGAIN, FaceReader
from stillwatch.lab.data import cache
from stillwatch.lab.data.sources import Sample
from stillwatch.media import decode, weights
from stillwatch.media.decode import Picture
from stillwatch.media.points import COUNT, Signals
from stillwatch.run import NO_PROGRESS, Progress


class FaceTable(NamedTuple):
    """By sample; NaN where there is no face. Half floats: points are shares of the box."""

    signals: NDArray[np.floating]  # (N,7): Signals
    box: NDArray[np.floating]  # (N,4): left, top, width, height in the picture's pixels
    points: NDArray[np.floating]  # (N,468,3)

    @property
    def found(self) -> NDArray[np.bool_]:
        return ~np.isnan(np.asarray(self.signals[:, 0], np.float32))


def faces(samples: Sequence[Sample], key: str, progress: Progress = NO_PROGRESS) -> FaceTable:
    """The newest frame's face of each sample. key: of the data's cache, cache.Store.key.

    Raises UserError where the reader's weights are missing.
    """
    pins = [weights.WEIGHTS[name].sha256 for name in (weights.YUNET, weights.POINTS)]
    kept: list[tuple[NDArray[np.float32], ...]] = []  # read file by file, taken row by row
    waiting = _read_all(samples)

    def compute(rows: NDArray[np.int64], view: int) -> dict[str, torch.Tensor]:
        while len(kept) <= rows[-1]:
            kept.append(next(waiting))
        columns = zip(*(kept[row] for row in rows), strict=True)
        return {name: torch.from_numpy(np.stack(x)) for name, x in zip(FaceTable._fields, columns, strict=True)}

    ids = [sample.id for sample in samples]
    found = cache.outputs(compute, len(samples), 1, [key, *pins, *ids], progress, "faces")
    return FaceTable(*(found[name][0] for name in FaceTable._fields))


def _read_all(samples: Sequence[Sample]) -> Iterator[tuple[NDArray[np.float32], ...]]:
    """Signals, box and points of each sample, in order."""
    read, at = FaceReader(), 0.0
    nobody = (np.full(len(Signals._fields), np.nan), np.full(4, np.nan), np.full((COUNT, 3), np.nan))
    for _, group in groupby(samples, key=lambda sample: sample.path if sample.frames else sample.id):
        for image in _native(list(group)):
            at += AGAIN  # each is sought anew: neighbours may be other people
            face = None if image is None else read(image, at)
            if face is None:
                yield tuple(x.astype(np.float32) for x in nobody)
                continue
            x, y, w, h = face.box
            points = (face.points - (x, y, 0)) / (w, h, w)
            yield np.array(face.signals, np.float32), np.array(face.box, np.float32), points.astype(np.float32)


def _native(samples: list[Sample]) -> Iterator[Picture | None]:
    """The newest frame of samples of one file, as it was filmed; None where it cannot be read."""
    first = samples[0]
    if first.read:
        for _, picture in first.read(samples):
            yield None if isinstance(picture, str) else _rgb(picture if picture.ndim == 3 else picture[-1])
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


def _rgb(picture: Picture) -> Picture:
    return np.repeat(picture, 3, axis=2) if picture.shape[-1] == 1 else picture
