"""Scores as .csv or .parquet, written in parts: memory does not grow with the archive."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import UserError

ENDINGS = (".parquet", ".csv")

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
# add(paths in UTF-8, seconds, frame numbers (-1: a picture), p and what follows it (n,K+M); NaN: there is none)
Add: TypeAlias = Callable[[list[str], Floats, Ints, NDArray[np.float32]], None]


def table(path: Path, ending: str, labels: Sequence[str], more: Sequence[str] = ()) -> AbstractContextManager[Add]:
    """ending: ".parquet" or ".csv". more: M columns beside the probabilities."""
    return (_as_parquet if ending == ".parquet" else _as_csv)(path, labels, more)


def check(path: Path) -> None:
    """Raises UserError if such a table cannot be written."""
    if path.suffix not in ENDINGS:
        raise UserError(f"{path}: ends in {path.suffix or 'nothing'}; wanted: {' or '.join(ENDINGS)}")
    if path.suffix == ".parquet":
        parquet()


@contextmanager
def _as_csv(draft: Path, labels: Sequence[str], more: Sequence[str]) -> Iterator[Add]:
    """float32 in the fewest digits that round-trip."""
    with draft.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "time_s", "frame", "label", *(f"p_{label}" for label in labels), *more])

        def add(paths: list[str], times: Floats, shown: Ints, p: NDArray[np.float32]) -> None:
            best = [labels[k] for k in p[:, : len(labels)].argmax(1)]
            for row, (path, time, frame) in enumerate(zip(paths, times.round(4).tolist(), shown.tolist(), strict=True)):
                where = ("", "") if frame < 0 else (time, frame)
                table.writerow([path, *where, best[row], *("" if np.isnan(x) else str(x) for x in p[row])])

        yield add


@contextmanager
def _as_parquet(draft: Path, labels: Sequence[str], more: Sequence[str]) -> Iterator[Add]:
    pa, pq = parquet()
    names = pa.schema(
        [("path", pa.string()), ("time_s", pa.float64()), ("frame", pa.int64()), ("label", pa.string())]
        + [(name, pa.float32()) for name in (*(f"p_{label}" for label in labels), *more)]
    )
    with pq.ParquetWriter(draft, names, compression="zstd") as table:

        def add(paths: list[str], times: Floats, shown: Ints, p: NDArray[np.float32]) -> None:
            still = shown < 0
            best = [labels[k] for k in p[:, : len(labels)].argmax(1)]
            columns = [paths, pa.array(times.round(4), mask=still), pa.array(shown, mask=still), best, *p.T]
            table.write_table(pa.table([pa.array(column) for column in columns], schema=names))

        yield add


def parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("tables as .parquet need pyarrow: pip install 'stillwatch[parquet]'") from None
    return pyarrow, pyarrow.parquet
