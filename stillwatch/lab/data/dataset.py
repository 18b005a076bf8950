"""A recipe's data, decoded and split. Imports no net and no loss."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from stillwatch.errors import UserError
from stillwatch.lab.data import augment, cache, reader
from stillwatch.lab.data.reader import gather
from stillwatch.lab.data.sources import SPLITS, Found, Sample
from stillwatch.lab.data.splits import assign, unlabelled
from stillwatch.predictions import EvalArrays
from stillwatch.recipe import Data, Recipe
from stillwatch.run import NO_PROGRESS, Progress, Run

Rows: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """samples[i], y[i] and store.pixels[i] belong together."""

    recipe: Recipe
    store: cache.Store
    samples: list[Sample]  # with their split
    y: NDArray[np.int64]  # (N,)
    numbers: NDArray[np.uint64]  # (N,) what augmentation draws from
    rows: dict[str, Rows]  # split -> rows
    aside: bool = False  # data.unlabelled, not data.root
    unlabelled: tuple["Dataset", ...] = ()  # rows["train"] of each has no label, y = -1: for a teacher's answers alone

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample in an exported file: (H,W,C), for clips (T,H,W,C)."""
        return tuple(self.store.pixels.shape[2 if self.recipe.data.steps == 1 else 1 :])

    def picture(self, rows: Rows) -> Tensor:
        """uint8 (B,T,H,W,C)."""
        order = np.argsort(rows, kind="stable")  # the disk is read in its own order
        picked = self.store.pixels[rows[order]]
        return torch.from_numpy(picked[np.argsort(order, kind="stable")])

    def for_teacher(self, rows: Rows, progress: Progress = NO_PROGRESS) -> tuple["Dataset", Rows]:
        """The teacher's pixels of these samples, [teacher.data], by row of the data set returned.

        Looks match by recording and nearest time. Raises UserError where one is missing.
        """
        if not self.recipe.teacher.data:
            return self, rows
        theirs = (_aside if self.aside else load_dataset)(self.recipe.seen_by("teacher"), progress)
        named = {sample.id: row for row, sample in enumerate(theirs.samples)}
        recordings: dict[str, list[int]] = defaultdict(list)
        for row, sample in enumerate(theirs.samples):
            recordings[sample.sequence or sample.id].append(row)
        found = []
        for sample in (self.samples[row] for row in rows):
            beside = recordings.get(sample.sequence or sample.id)
            if beside is None:
                raise UserError(f"teacher.data: the teacher sees nothing of {sample.id}: see data skipped in its audit")
            near = min(beside, key=lambda row: abs(theirs.samples[row].time - sample.time))
            found.append(named.get(sample.id, near))
        return theirs, np.array(found, np.int64)

    def eval_arrays(self, split: str) -> EvalArrays:
        rows = self.rows[split]
        return eval_arrays([self.samples[row] for row in rows], LazyRows(self.store.pixels, rows), self.y[rows])


def load_dataset(recipe: Recipe, progress: Progress = NO_PROGRESS) -> Dataset:
    """Raises UserError where nothing is left."""
    store = decoded(gather(recipe), recipe.data, progress)
    samples = assign(store.samples, recipe.data)
    place = {label: number for number, label in enumerate(recipe.labels)}
    y = np.array([place[sample.label] for sample in samples], np.int64)
    numbers = np.array([augment.number(sample.id) for sample in samples], np.uint64)
    split = np.array([sample.split for sample in samples])
    lost = unlabelled(samples, recipe.data) if recipe.data.labelled else np.zeros(len(samples), np.bool_)
    y[lost] = -1
    rows = {name: np.flatnonzero((split == name) & ~lost) for name in SPLITS}
    for name in ("train", "valid"):
        if not len(rows[name]):
            raise UserError(f"data.split = {recipe.data.split!r}: leaves no sample for {name}")
    data = Dataset(recipe, store, samples, y, numbers, rows)
    more = [replace(data, rows={"train": np.flatnonzero(lost)})] if lost.any() else []
    more += [_aside(recipe, progress)] if recipe.data.unlabelled else []
    return replace(data, unlabelled=tuple(more))


def decoded(found: Found, data: Data, progress: Progress = NO_PROGRESS, place: str = "") -> cache.Store:
    """cache.pictures, of data.region alone where one is asked for."""
    if data.region in ("face", "eyes"):
        from stillwatch.lab.faces import faces  # and with it a runtime, only where it is asked for

        key = cache.short([str(data.source), *cache.contents(found.samples, 8)])  # drawings have no content but this
        boxes = faces(found.samples, key, progress).boxes(data.region)
        found = replace(found, samples=[replace(one, box=box) for one, box in zip(found.samples, boxes, strict=True)])
    return cache.pictures(found, data, progress=progress, place=place)


def _aside(recipe: Recipe, progress: Progress = NO_PROGRESS) -> Dataset:
    place = f"data.unlabelled = {recipe.data.unlabelled}"
    store = decoded(reader.unlabelled(recipe.data), recipe.data, progress, place)
    every, numbers = np.arange(len(store.samples)), [augment.number(sample.id) for sample in store.samples]
    y, drawn = np.full(len(every), -1), np.array(numbers, np.uint64)
    return Dataset(recipe, store, store.samples, y, drawn, {"train": every}, aside=True)


def dataset_of(run: Run, progress: Progress = NO_PROGRESS) -> Dataset:
    """Raises UserError where the data have changed."""
    recipe = run.seen
    data = load_dataset(recipe, progress)
    if data.store.fingerprint == run.info.fingerprint:
        return data
    with (run.path / "split.csv").open(newline="", encoding="utf-8") as file:
        before = {row["path"] for row in csv.DictReader(file)}
    now = {sample.id for part in (data, *data.unlabelled) for sample in part.samples}
    found = {"new": now - before, "gone": before - now}
    changes = [f"{len(names)} {word} (such as {min(names)})" for word, names in found.items() if names]
    raise UserError(
        f"{run.path}: learnt from other data than now lie in data.root = '{recipe.data.root}': "
        f"{', '.join(changes) or 'files of the same names were changed'}; put the data back, or name their copy with "
        "data.root=FOLDER, or train anew"
    )


@dataclass(frozen=True)
class LazyRows:
    array: NDArray[np.uint8]
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        return self.array[self.rows[part]]


def eval_arrays(samples: Sequence[Sample], x: Any, y: ArrayLike) -> EvalArrays:
    return EvalArrays(x, [s.id for s in samples], [s.group for s in samples], [s.sequence for s in samples], y)


def pictures_of(run: Run, ids: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    """By id, uint8 (H,W,C), as the net saw them, without missing ones."""
    try:
        data = load_dataset(run.seen)
    except UserError:  # the data has moved: the report does without pictures
        return {}
    place = {sample.id: row for row, sample in enumerate(data.samples)}
    middle = run.recipe.data.steps // 2
    return {name: np.array(data.store.pixels[place[name], middle]) for name in ids if name in place}
