"""Contact sheets: what a data set holds, one picture a class."""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from stillwatch.atomic import atomic
from stillwatch.lab.data.sources import SPLITS, Sample
from stillwatch.media import image

TILE = 160  # width of a tile, pixels
CAPTION, TITLE, COLUMNS = 18, 28, 6
POINT = (0, 255, 0)  # BGR


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key: driver 9 before driver 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def contact_sheets(
    samples: Sequence[Sample],
    clips: NDArray[np.uint8],
    labels: Sequence[str],
    folder: Path,
    per_class: int = 24,
    points: NDArray[np.floating] | None = None,
) -> list[Path]:
    """One PNG a class that has samples: up to per_class tiles, spread over groups and splits.

    clips: uint8 (N,T,H,W,C) RGB or gray. points: (N,P,2) in shares of the picture, or NaN.
    """
    paths = []
    for number, label in enumerate(labels):
        members = np.array([i for i, sample in enumerate(samples) if sample.label == label], np.int64)
        if not len(members):
            continue
        # One of each (group, split) in turn, at random within it, until there are enough
        places: dict[tuple[str, str], list[int]] = defaultdict(list)
        for row in np.random.default_rng(0).permutation(members).tolist():
            places[samples[row].group, samples[row].split].append(row)
        turns = [row for row in chain.from_iterable(zip_longest(*places.values())) if row is not None]
        rows = sorted(
            turns[:per_class], key=lambda i: (natural(samples[i].group), SPLITS.index(samples[i].split), samples[i].id)
        )
        title, dots = f"{label}: {len(rows)} of {len(members):,}", None if points is None else points[rows]
        picture = sheet([samples[row] for row in rows], clips[rows], title, dots)
        path = folder / f"{number:02d}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', label)}.png"
        with atomic(path) as draft:
            draft.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
        paths.append(path)
    return paths


def sheet(
    samples: Sequence[Sample], clips: NDArray[np.uint8], title: str, points: NDArray[np.floating] | None = None
) -> NDArray[np.uint8]:
    """Middle frames, or the newest where there are points: uint8 (H,W,3) BGR."""
    _, frames, height, width, _ = clips.shape
    tile = max(1, round(TILE * height / width))
    columns, lines = min(COLUMNS, len(samples)), -(-len(samples) // COLUMNS)
    out = np.full((TITLE + lines * (tile + CAPTION), max(columns, 3) * TILE, 3), 255, np.uint8)
    texts = [(title, 6, TITLE - 9, 0.5)]
    for place, (sample, clip) in enumerate(zip(samples, clips, strict=True)):
        top, left = TITLE + place // COLUMNS * (tile + CAPTION), place % COLUMNS * TILE
        frame = clip[frames // 2 if points is None else -1]
        picture = image.fit(np.ascontiguousarray(frame), (tile, TILE), "stretch", 3)[:, :, ::-1].copy()
        for x, y in [] if points is None else np.nan_to_num(points[place], nan=-1) * (TILE, tile):
            cv2.circle(picture, (int(x), int(y)), 1, POINT, -1)
        out[top : top + tile, left : left + TILE] = picture
        texts.append((f"{sample.group[-18:] or '?'} {sample.split}", left + 3, top + tile + 13, 0.38))
    for text, left, bottom, scale in texts:
        cv2.putText(out, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return out
