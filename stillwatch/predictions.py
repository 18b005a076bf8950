"""What a classifier answers for one split, kept in the run's folder. Imports no net."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillwatch.errors import UserError, one_line
from stillwatch.run import NO_PROGRESS, Progress, Run

Predict: TypeAlias = Callable[[NDArray[np.uint8]], ArrayLike]


class EvalArrays(NamedTuple):
    """A split's pixels and columns, N each. A memory map stays on disk: x is read in batches."""

    x: Any  # uint8 (N,H,W,C) or (N,T,H,W,C): what has a length and slices
    ids: Sequence[str]
    groups: Sequence[str]
    sequences: Sequence[str]
    y: ArrayLike


@dataclass(frozen=True, slots=True)
class Predictions:
    """id, group, sequence (N,) str, y (N,) int64, p (N,K) float32 as the head gave it."""

    id: NDArray[np.str_]
    group: NDArray[np.str_]
    sequence: NDArray[np.str_]
    y: NDArray[np.int64]
    p: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.id)

    def take(self, rows: ArrayLike) -> "Predictions":
        return Predictions(*(getattr(self, field.name)[rows] for field in fields(self)))


def joined(parts: Sequence[Predictions]) -> Predictions:
    return Predictions(*(np.concatenate([getattr(one, field.name) for one in parts]) for field in fields(Predictions)))


def predict(
    fn: Predict, batches: Iterable[NDArray[np.uint8]], count: int = 0, progress: Progress = NO_PROGRESS
) -> NDArray[np.float32]:
    """(N,K) float32 of uint8 batches. count: of batches.

    Raises UserError unless fn gives K finite probabilities per sample, K constant.
    """
    rows: list[NDArray[np.float32]] = []
    done = 0
    for x in progress.bar(batches, count, "predict"):
        p = np.asarray(fn(x), np.float32)
        wrong, k = "", rows[0].shape[1] if rows else None
        if p.ndim != 2 or p.shape[0] != len(x) or p.shape[1] != (k or p.shape[1]):
            wrong = f"shape {p.shape} instead of ({len(x)}, {k or 'K'})"
        elif not np.isfinite(p).all():
            wrong = "a value is not finite: the net has diverged"
        elif p.min() < -1e-6 or p.max() > 1 + 1e-4:
            wrong = f"values from {p.min():.3g} to {p.max():.3g} are not probabilities (logits?)"
        if wrong:
            raise UserError(f"prediction of samples {done} to {done + len(x) - 1}: {wrong}")
        rows.append(p)
        done += len(x)
    if not rows:
        raise UserError("prediction: there is no sample to predict")
    return np.concatenate(rows)


def save_predictions(
    run: Run | Path | str,
    split: str,
    fn: Predict,
    arrays: EvalArrays,
    batch: int = 64,
    progress: Progress = NO_PROGRESS,
) -> Predictions:
    """Saves fn's answers as the run's predictions/<split>.npz.

    Raises UserError for an empty split, a repeated id, what does not fit together, or as `predict`.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    place, k = f"{run.path.name}, split {split}", len(run.recipe.labels)
    x, ids, groups, sequences, y = arrays
    truth = np.asarray(y)
    lengths = dict(zip(arrays._fields, map(len, (x, ids, groups, sequences, truth)), strict=True))
    if len(set(lengths.values())) > 1:
        raise UserError(f"{place}: not one row a sample: " + ", ".join(f"{n} {name}" for name, n in lengths.items()))
    if not len(truth):
        raise UserError(f"{place}: it has no sample; choose another split or fold")
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise UserError(f"{place}: id {twice!r} is there twice; every sample needs its own")
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= k:
        raise UserError(f"{place}: y must be whole numbers from 0 to {k - 1}, one for each of the recipe's {k} labels")
    starts = range(0, len(x), batch)
    try:
        p = predict(fn, (np.ascontiguousarray(x[at : at + batch]) for at in starts), len(starts), progress)
    except UserError as mistake:
        raise UserError(f"{place}: {mistake}") from None
    if p.shape[1] != k:
        raise UserError(f"{place}: the net gives {p.shape[1]} probabilities, the recipe has {k} labels")
    kept = Predictions(
        np.asarray(ids, str), np.asarray(groups, str), np.asarray(sequences, str), truth.astype(np.int64), p
    )
    run.save_arrays(_name(split), **{field.name: getattr(kept, field.name) for field in fields(kept)})
    return kept


def read(run: Run | Path | str, split: str = "test") -> Predictions:
    """Raises UserError for a missing or damaged file."""
    run = run if isinstance(run, Run) else Run.open(run)
    path = run.path / _name(split)
    if not path.is_file():
        raise UserError(f"{path}: no predictions of the {split} split; run `stillwatch judge {run.path}` first")
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            return Predictions(*(file[field.name] for field in fields(Predictions)))
    except Exception as error:  # a cut zip file raises half a dozen kinds
        again = f"run `stillwatch judge {run.path}` again"
        raise UserError(f"{path}: cannot be read ({one_line(error)}); {again}") from error


def has(run: Run, split: str) -> bool:
    return (run.path / _name(split)).is_file()


def _name(split: str) -> str:
    return f"predictions/{split}.npz"
