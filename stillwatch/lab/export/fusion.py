"""Fits heads that fuse a net's answers with the face, on people left out."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from stillwatch import metrics, predictions
from stillwatch.errors import UserError
from stillwatch.inference import runtimes
from stillwatch.inference.face_reader import NetFile
from stillwatch.lab import faces
from stillwatch.lab.data.dataset import Dataset, decoded
from stillwatch.lab.data.sources import Found, Sample
from stillwatch.lab.faces import FaceTable
from stillwatch.media.points import Signals
from stillwatch.rules.fusion import FACE, FLOOR, features
from stillwatch.rules.normal import EVERY, PAST, Deviation, Normal
from stillwatch.run import NO_PROGRESS, Progress, Run, runs

STRENGTH = 0.1  # scikit-learn's C
SHARES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # of the face's log probabilities beside the net's
NET_SHARES = (0.25, 0.5, 0.75, 1.0)  # of those of a net that sees the face alone
BETWEEN = 5 * PAST  # s from one recording to the next: the normal stays, what the face just did does not
FEW = 3  # people below which nothing can be said
SPLIT = ("split", "folds", "valid", "seed")  # keys of [data] that say who trains


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
                found[row] = normal.step(now, Signals.of(table.signals[row]))
    return found


def faces_of(data: Dataset, progress: Progress = NO_PROGRESS, net: NetFile | None = None) -> list[Deviation | None]:
    """Of each sample, with the net's words. Raises UserError without the reader's weights."""
    found = deviations(faces.faces(data.samples, data.store.content, progress), data.samples)
    if net is None:
        return found
    predict, (*size, channels) = runtimes.open(Path(net.path), net.runtime, net.takes.shape), net.takes.shape
    look = {"region": "face", "size": tuple(size), "gray": channels == 1, "fit": net.takes.fit}
    cut = decoded(Found(data.samples), data.recipe.data.model_copy(update=look), progress)
    x = {sample.id: cut.pixels[row] for row, sample in enumerate(cut.samples)}  # (1,H,W,C)
    return [
        face and face._replace(said=tuple(predict(x[sample.id])[0].tolist()))
        for sample, face in zip(data.samples, found, strict=True)
    ]


def face_net(folder: Run, run: Run) -> tuple[Run, dict[str, tuple[float, ...]]]:
    """The net, of run's fold and seed or the first, and what each fold's says of its test people, by id.

    folder: a crossval on faces alone. Raises UserError where it lacks a fold, or its people or labels are others.
    """
    mine, theirs, found = run.recipe, folder.recipe, dict[tuple[int, int], Run]()
    splits = [{key: getattr(one.data, key) for key in SPLIT} for one in (mine, theirs)]
    alike = (splits[0], mine.labels, run.info.fingerprint) == (splits[1], theirs.labels, folder.info.fingerprint)
    if (folder.info.kind, theirs.data.region) != ("crossval", "face") or not alike:
        made = f"`stillwatch crossval {mine.name} data.region=face` of the same labels, data and split"
        raise UserError(f"{folder.path}: not a crossval on faces alone: {made} makes what is wanted")
    for one in runs(folder.path):
        if one.info.kind in ("alone", "distilled") and one.info.status == "done" and predictions.has(one, "test"):
            place = one.recipe.fit.seed, one.recipe.data.fold
            found[place] = one if one.info.kind == "distilled" else found.get(place, one)
    seed = mine.fit.seed if mine.fit.seed in {seed for seed, _ in found} else min(found, default=(0, 0))[0]
    wanted = set(range(1 if mine.data.split == "official" else mine.data.folds))
    if missing := sorted(wanted - {fold for of, fold in found if of == seed}):
        raise UserError(f"{folder.path}: no finished student of fold {missing[0]}, seed {seed}; run it again")
    said = [predictions.read(found[seed, fold], "test") for fold in wanted]
    told = {str(id): tuple(p.tolist()) for one in said for id, p in zip(one.id, one.p, strict=True)}
    return found[seed, mine.data.fold], told


class LeftOut(NamedTuple):
    """What is said of people whom neither head nor share has met."""

    face: NDArray[np.float64]  # (N,K) log p of the face alone; 0 without a face
    fused: NDArray[np.float64]  # (N,K) p · p(face)^share, its share chosen on the other people; sums to 1
    share: float  # best on all
    head: LogisticRegression  # of all
    net_share: float = 0.0  # of a net that sees the face alone: · p(net)^net_share


def left_out(
    y: NDArray[np.int64], p: NDArray[np.floating], group: NDArray[np.str_], told: Sequence[Deviation | None]
) -> LeftOut | str:
    """Or why it cannot be said. p: (N,K), what nets answer on people they were not trained on."""
    seen = np.array([one is not None for one in told])
    if len(people := np.unique(group[seen])) < FEW:
        return f"faces of {len(people)} people: at least {FEW} are needed"
    x, logs = _features(told), np.log(np.clip(p, FLOOR, 1)).astype(np.float64)
    said, net = np.zeros(p.shape), np.zeros(p.shape)
    for row, face in enumerate(told):
        if face is not None and face.said:
            net[row] = np.log(np.clip(face.said, FLOOR, 1))
    for one in people:
        held = seen & (group == one)
        if missing := set(np.unique(y)) - set(np.unique(y[seen & ~held])):
            return f"without {one} there is no face of class {min(missing)}"
        said[held] = _head(x[seen & ~held], y[seen & ~held]).predict_log_proba(x[held])
    rows = [np.flatnonzero(group == one) for one in people]
    shares = [(share, of) for of in (NET_SHARES if net.any() else (0.0,)) for share in SHARES]
    fused = np.stack([np.exp(logs + share * said + of * net) for share, of in shares])
    f1 = np.array([[metrics.macro_f1(y[own], q[own]) for own in rows] for q in fused])
    best = np.exp(logs)
    for place, own in enumerate(rows):
        best[own] = fused[int(np.delete(f1, place, axis=1).mean(1).argmax()), own]
    share, of = shares[int(f1.mean(1).argmax())]
    return LeftOut(said, best / best.sum(1, keepdims=True), share, _head(x[seen], y[seen]), of)


def face_logs(data: Dataset, part: Dataset, progress: Progress = NO_PROGRESS) -> NDArray[np.float64]:
    """log p (N,K) that the face alone says of each of part's samples; zeros without a face. Raises UserError."""
    # By a head on the labelled training people of `data`; on each of these, by one that has not met them, if the others
    # show every class
    told = faces_of(data, progress)
    asked = told if part.samples is data.samples else faces_of(part, progress)
    x, mine = _features(told), _features(asked)
    seen, there = (np.array([face is not None for face in of]) for of in (told, asked))
    rows = data.rows["train"][seen[data.rows["train"]]]
    y, group = data.y[rows], np.array([data.samples[row].group for row in rows])
    said = np.zeros((len(part.samples), len(data.recipe.labels)))
    for one in ("", *np.unique(group)):  # first who is no training person
        others, own = group != one, there & [not one or sample.group == one for sample in part.samples]
        if lacking := set(range(said.shape[1])) - set(y[others].tolist()):
            label = data.recipe.labels[min(lacking)]
            if not one:
                raise UserError(f"teacher.signals: there is no face of {label} in training")
            progress.say(f"teacher.signals: of {one} the nets speak alone: nobody else's face shows {label}")
            said[own] = 0
        elif own.any():
            said[own] = _head(x[rows[others]], y[others]).predict_log_proba(mine[own])
    return said


def _features(told: Sequence[Deviation | None]) -> NDArray[np.float64]:
    """(N,FACE); 0 without a face."""
    return np.array([np.zeros(FACE) if face is None else features((), face)[:FACE] for face in told])


def _head(x: NDArray[np.float64], y: NDArray[np.int64]) -> LogisticRegression:
    return LogisticRegression(C=STRENGTH, max_iter=1000, class_weight="balanced").fit(x, y)
