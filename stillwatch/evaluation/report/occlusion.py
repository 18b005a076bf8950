"""A net's answers with the eyes hidden, and with an equal patch elsewhere. Imports no net."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST = 200  # samples a class
REACH = 2.0  # spreads of an eye that are hidden on each side
TRIES = 32  # places tried for the patch elsewhere


class Hidden(NamedTuple):
    """Means over the samples that truly show `label`."""

    label: str
    samples: int
    p: float  # probability of the label as the pictures are
    eyes: float  # its change with the eyes hidden
    elsewhere: float  # its change with as large a patch hidden elsewhere
    groups: int
    lower: int  # of them: the eyes lower it more than the patch elsewhere


class Looks(NamedTuple):
    hidden: list[Hidden]
    maps: NDArray[np.uint8]  # (H,W,3) RGB: frames, and the energy of the nets' maps


def hiding(
    predict: Callable[[NDArray[np.uint8]], NDArray[np.floating]],
    x: NDArray[np.uint8],
    y: NDArray[np.int64],
    group: Sequence[str],
    regions: NDArray[np.floating],
    labels: Sequence[str],
) -> list[Hidden]:
    """Class by class. x: (N,T,H,W,C). regions: FaceTable.regions. A patch is filled with its own mean."""
    found, people = [], np.asarray(group)
    chance = np.random.default_rng(0)
    for k, label in enumerate(labels):
        rows = np.flatnonzero((y == k) & ~np.isnan(regions).any((1, 2)))
        rows = rows[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(int)]
        if not len(rows):
            continue
        middle, reach = regions[rows, :2, :2], REACH * regions[rows, :2, 2:]
        box = np.concatenate([(middle - reach).min(1), (middle + reach).max(1)], 1).clip(0, 1)
        before = predict(x[rows])[:, k]
        # Boxes of the same size that do not touch these; else the farthest drawn
        size = box[:, 2:] - box[:, :2]
        corner = chance.uniform(size=(TRIES, len(box), 2)) * (1 - size)
        gap = (np.abs(corner - box[:, :2]) - size).max(2)  # (TRIES,n); above 0: clear
        corner = corner[np.where((gap > 0).any(0), (gap > 0).argmax(0), gap.argmax(0)), np.arange(len(box))]
        away, (h, w) = list[NDArray[np.floating]](), x.shape[2:4]
        for at in (box, np.concatenate([corner, corner + size], 1)):
            covered, pixels = x[rows], np.round(at * (w, h, w, h)).astype(int)
            for picture, (left, top, right, bottom) in zip(covered, pixels, strict=True):
                patch = picture[:, top : max(bottom, top + 1), left : max(right, left + 1)]
                patch[:] = patch.mean((1, 2), keepdims=True).round()
            away.append(predict(covered)[:, k] - before)
        who = people[rows]
        by_group = [float((away[0] - away[1])[who == one].mean()) for one in np.unique(who)]
        p, hidden, other = (float(change.mean()) for change in (before, *away))
        found.append(Hidden(label, len(rows), p, hidden, other, len(by_group), sum(cost < 0 for cost in by_group)))
    return found
