"""Fits heads that fuse a net's answers with the face, on people left out."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from stillwatch import metrics
from stillwatch.errors import UserError
from stillwatch.lab import faces
from stillwatch.lab.data.dataset import Dataset
from stillwatch.lab.data.sources import Sample
from stillwatch.lab.faces import FaceTable
from stillwatch.media.points import Signals
from stillwatch.rules.fusion import FACE, FLOOR, features
from stillwatch.rules.normal import EVERY, PAST, Deviation, Normal
from stillwatch.run import NO_PROGRESS, Progress

STRENGTH = 0.1  # scikit-learn's C
SHARES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # of the face's log probabilities beside the net's
BETWEEN = 5 * PAST  # s from one recording to the next: the normal stays, what the face just did does not
FEW = 3  # people below which nothing can be said


def deviations(table: FaceTable, samples: Sequence[Sample]) -> list[Deviation | None]:
    """Each sample's face against its group's normal as the recordings go, as a camera would see it."""
    order: dict[str, list[int]] = defaultdict(list)
    for row in sorted(range(len(samples)), key=lambda row: (samples[row].sequence, samples[row].time, samples[row].id)):
        order[samples[row].group or samples[row].sequence].append(row)
    found: list[Deviation | None] = [None] * len(samples)
    for rows in order.values():
        normal, now, recording = Normal(), 0.0, ""
        for row in rows:
            now += EVERY if samples[row].sequence == recording else BETWEEN
            recording = samples[row].sequence
            if not np.isnan(float(table.signals[row][0])):
                found[row] = normal.step(now, Signals(*map(float, table.signals[row])))
    return found


def faces_of(data: Dataset, progress: Progress = NO_PROGRESS) -> list[Deviation | None]:
    """Of each sample. Raises UserError where the reader's weights are missing."""
    return deviations(faces.faces(data.samples, data.store.key, progress), data.samples)


class LeftOut(NamedTuple):
    """What is said of people whom neither head nor share has met."""

    face: NDArray[np.float64]  # (N,K) log p of the face alone; 0 without a face
    fused: NDArray[np.float64]  # (N,K) p · p(face)^share, its share chosen on the other people; sums to 1
    share: float  # best on all
    head: LogisticRegression  # of all


def left_out(
    y: NDArray[np.int64], p: NDArray[np.floating], group: NDArray[np.str_], told: Sequence[Deviation | None]
) -> LeftOut | str:
    """Or why it cannot be said. p: (N,K), what nets answer on people they were not trained on."""
    seen = np.array([one is not None for one in told])
    if len(people := np.unique(group[seen])) < FEW:
        return f"faces of {len(people)} people: at least {FEW} are needed"
    x, logs = _features(told), np.log(np.clip(p, FLOOR, 1)).astype(np.float64)
    said = np.zeros(p.shape)
    for one in people:
        held = seen & (group == one)
        if missing := set(np.unique(y)) - set(np.unique(y[seen & ~held])):
            return f"without {one} there is no face of class {min(missing)}"
        said[held] = _head(x[seen & ~held], y[seen & ~held]).predict_log_proba(x[held])
    rows = [np.flatnonzero(group == one) for one in people]
    fused = np.stack([np.exp(logs + share * said) for share in SHARES])
    f1 = np.array([[metrics.macro_f1(y[own], q[own]) for own in rows] for q in fused])
    best = np.exp(logs)
    for place, own in enumerate(rows):
        best[own] = fused[int(np.delete(f1, place, axis=1).mean(1).argmax()), own]
    return LeftOut(said, best / best.sum(1, keepdims=True), SHARES[int(f1.mean(1).argmax())], _head(x[seen], y[seen]))


def face_logs(data: Dataset, part: Dataset, progress: Progress = NO_PROGRESS) -> NDArray[np.float64]:
    """log p (N,K) that the face alone says of each of part's samples; zeros without a face. Raises UserError."""
    # By a head on the labelled training people of `data`; on each of these, by one that has not met them
    sides = [data] if part.samples is data.samples else [data, part]
    tables = [_table(one, progress) for one in sides]
    (x, seen), (mine, there) = tables[0], tables[-1]
    rows = data.rows["train"][seen[data.rows["train"]]]
    y, group = data.y[rows], np.array([data.samples[row].group for row in rows])
    said = np.zeros((len(part.samples), len(data.recipe.labels)))
    for one in ("", *np.unique(group)):  # first who is no training person
        others = group != one
        if lacking := set(range(said.shape[1])) - set(y[others].tolist()):
            label = data.recipe.labels[min(lacking)]
            raise UserError(f"teacher.signals: without {one or 'anyone'} there is no face of {label} in training")
        own = np.array([not one or sample.group == one for sample in part.samples]) & there
        if own.any():
            said[own] = _head(x[rows[others]], y[others]).predict_log_proba(mine[own])
    return said


def _table(data: Dataset, progress: Progress) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """A face's features (N,FACE), and whether there is one."""
    found = faces_of(data, progress)
    return _features(found), np.array([face is not None for face in found])


def _features(told: Sequence[Deviation | None]) -> NDArray[np.float64]:
    """(N,FACE); 0 without a face."""
    return np.array([np.zeros(FACE) if face is None else features((), face) for face in told])


def _head(x: NDArray[np.float64], y: NDArray[np.int64]) -> LogisticRegression:
    return LogisticRegression(C=STRENGTH, max_iter=1000, class_weight="balanced").fit(x, y)
