"""Splits: which samples may be learnt from, which choose, and which only measure."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from stillwatch.errors import UserError
from stillwatch.lab.data.sources import Sample
from stillwatch.recipe import Data

LONG = 8  # a recording whose share is at least so many samples gives a block of time; a shorter one goes whole


def assign(samples: Sequence[Sample], data: Data) -> list[Sample]:
    """Give each sample its split; negatives are always train.

    official: the source's; without a valid, it is taken from train. grouped: test is fold `fold` of
    StratifiedGroupKFold; valid is the next fold, or a share of train. ratio: the same without groups. Raises UserError.
    """
    ordered = sorted((sample for sample in samples if not sample.negative), key=lambda sample: sample.id)
    splits = [sample.split for sample in ordered]
    if data.split != "official":
        splits = _folded(ordered, data)
    elif not any(splits):
        raise UserError("data.split = 'official': this source has no official split; set data.split = \"grouped\"")
    elif "" in splits:
        first = ordered[splits.index("")].id
        raise UserError(f"data.split = 'official': {splits.count('')} samples have no split, the first is {first}")
    elif lacking := [name for name in ("test", "train") if name not in splits]:
        raise UserError(f"data.split = 'official': the source has no {lacking[0]} split; set data.split = \"grouped\"")
    elif "valid" not in splits:
        share = data.valid if isinstance(data.valid, float) else 1 / data.folds
        splits = _with_share(ordered, splits, share, data.seed, blocks=True)
    for name in ("train", "valid", "test"):
        if name not in splits:
            raise UserError(
                f"data.split = {data.split!r}: nothing is left for {name} with folds = {data.folds},"
                f" fold = {data.fold}, seed = {data.seed}; try another seed or fewer folds"
            )
    by_id = {sample.id: split for sample, split in zip(ordered, splits, strict=True)}
    return [replace(sample, split=by_id.get(sample.id, "train")) for sample in samples]


def unlabelled(samples: Sequence[Sample], data: Data) -> NDArray[np.bool_]:
    """(N,): who loses the label in train and valid, training groups beyond data.labelled. Raises UserError."""
    # Drawn by data.seed and fold, so that the others show every label where that can be
    mine = [sample for sample in samples if sample.split == "train" and not sample.negative]
    groups = sorted({sample.group for sample in mine})
    if "" in groups or data.labelled is None or data.labelled > len(groups):
        why = "there are samples without a group; set data.group" if "" in groups else f"train has {len(groups)} groups"
        raise UserError(f"data.labelled = {data.labelled}: {why}")
    chance, labels = np.random.default_rng((data.seed, data.fold)), {sample.label for sample in mine}
    for _ in range(1000):
        kept = set(chance.permutation(groups)[: data.labelled].tolist())
        if {sample.label for sample in mine if sample.group in kept} == labels:
            break
    lost = set(groups) - kept
    return np.array([sample.group in lost and sample.split in ("train", "valid") for sample in samples])


def _folded(samples: Sequence[Sample], data: Data) -> list[str]:
    grouped = data.split == "grouped"
    if data.valid == "fold" and data.folds < 3:
        raise UserError(
            'data.folds = 2: valid = "fold" needs 3 folds (train, valid, test); set data.folds = 3, or data.valid = 0.1'
        )
    bare = [sample.id for sample in samples if not sample.group]
    if grouped and bare:
        raise UserError(
            f"data.split = 'grouped': {len(bare)} samples have no group, the first is {bare[0]}; set data.group to"
            ' "folder", "column:NAME" or a regex, or data.split = "ratio"'
        )
    names = sorted({sample.group for sample in samples})
    if grouped and len(names) < data.folds:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        hint = f"set data.folds = {len(names)}" if len(names) > 2 else 'set data.split = "ratio", or find more groups'
        raise UserError(f"data.folds = {data.folds}: there are only {len(names)} groups ({shown}); {hint}")
    labels = [sample.label for sample in samples]
    groups = [sample.group for sample in samples] if grouped else None
    folds = (StratifiedGroupKFold if grouped else StratifiedKFold)(data.folds, shuffle=True, random_state=data.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with few samples: the audit says so
        try:
            parts = [part for _, part in folds.split(labels, labels, groups)]
        except ValueError as error:
            most = Counter(labels).most_common(1)[0][1]
            raise UserError(
                f"data.folds = {data.folds}: no class has so many samples; set data.folds = {most} or fewer"
            ) from error
    splits = np.full(len(samples), "train")
    splits[parts[data.fold]] = "test"
    if data.valid != "fold":
        return _with_share(samples, splits.tolist(), data.valid, data.seed, blocks=grouped)
    splits[parts[(data.fold + 1) % data.folds]] = "valid"
    return splits.tolist()


def _with_share(samples: Sequence[Sample], splits: Sequence[str], share: float, seed: int, blocks: bool) -> list[str]:
    """Move about `share` of each label's training samples to valid.

    blocks: a long recording gives one block of time, at the same place for each label; others go whole.
    """
    chance = np.random.default_rng(seed)
    out = list(splits)
    training = [place for place, split in enumerate(splits) if split == "train"]
    unit_of = {p: samples[p].sequence if blocks and samples[p].sequence else f"#{samples[p].id}" for p in training}
    names = sorted(set(unit_of.values()))
    order = dict(zip(names, chance.permutation(len(names)), strict=True))
    start = dict(zip(names, chance.random(len(names)), strict=True))
    by_label: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place in training:
        by_label[samples[place].label][unit_of[place]].append(place)
    for units in by_label.values():
        short: list[list[int]] = []
        taken: list[int] = []
        for name in sorted(units, key=order.__getitem__):
            unit = sorted(units[name], key=lambda place: (samples[place].time, samples[place].id))
            length = round(share * len(unit))
            if length < LONG:
                short.append(unit)
            else:
                first = round(start[name] * (len(unit) - length))
                taken += unit[first : first + length]
        needed, target = not taken, share * sum(map(len, short))
        whole: list[int] = []
        for unit in short:  # the first whose sizes come nearest to the share; at least one of several where needed
            if len(whole) + len(unit) / 2 <= target or (needed and not whole and unit is not short[-1]):
                whole += unit
        if needed and not whole:  # one short recording is all there is: cut it
            whole = short[0][-max(1, round(target)) :] if len(short[0]) > 1 else []
        for place in taken + whole:
            out[place] = "valid"
    return out
