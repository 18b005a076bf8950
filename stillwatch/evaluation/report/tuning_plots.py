"""Tuning: the picture of a study, from its trials.csv.

In: trials.csv as the lab's tune writes it. Out: the bytes of one PNG: the figure by trial, and by each key.
Called by the CLI. It knows no optimiser and no recipe: a trial is a line of that file.
"""

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

from stillwatch.errors import UserError
from stillwatch.evaluation.report.plots import FAINT, INK, METRICS, _draw

Row: TypeAlias = dict[str, str]
STANDS = "the recipe as it stands"  # the note of that trial
PAINT = {"came to an end": "#0072B2", "stopped early": "#B9B9B9", "failed": "#C03030", STANDS: "#D98200"}
KINDS = {"complete": "came to an end", "pruned": "stopped early", "failed": "failed"}
FEW = 6  # different values of a key, up to which each has a tick of its own


def picture(path: Path, metric: str, stacked: bool = False) -> bytes:
    """Dots: trials. The line: the best so far. The broken line: the recipe as it stood.

    path: trials.csv: number, state, value, the keys, seconds, note. metric: what value is; "loss" is better lower.
    Raises UserError where the file is missing or no trial in it has a value.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["state"] in KINDS]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); `stillwatch tune` writes it") from None
    if not any(row["value"] for row in rows):
        raise UserError(f"{path}: no trial in it has a value yet")
    names = list(rows[0])
    keys = names[names.index("value") + 1 : names.index("seconds")]
    panels = [partial(_history, rows, metric), *(partial(_key, rows, key, metric) for key in keys)]
    known = {_kind(row) for row in rows}
    return _draw(panels, 2.7, stacked, legend={kind: PAINT[kind] for kind in PAINT if kind in known})


def _history(rows: Sequence[Row], metric: str, axes: Axes) -> None:
    best, line = None, []
    for row in rows:
        if row["state"] == "complete":
            value = _figure(row, metric)
            best = value if best is None else min(best, value) if metric == "loss" else max(best, value)
        if best is not None:
            line.append((int(row["number"]), best))
    if line:
        axes.step(*zip(*line, strict=True), where="post", color=INK, linewidth=1.2, zorder=1)
    _dots(axes, [float(row["number"]) for row in rows], rows, metric)
    axes.set(title=_title(metric), xlabel="trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _key(rows: Sequence[Row], key: str, metric: str, axes: Axes) -> None:
    """The figure by one key: numbers on their own scale, which may be logarithmic, and words side by side."""
    rows = [row for row in rows if row[key]]
    words = [row[key] for row in rows]
    try:
        x = [float(word) for word in words]
        ticks = sorted(set(x))
        names = [f"{tick:g}" for tick in ticks]
    except ValueError:
        names = sorted(set(words))
        x, ticks = [float(names.index(word)) for word in words], [float(number) for number in range(len(names))]
        names = [name if len(name) < 14 else f"{name[:12]}…" for name in names]
    else:
        if ticks and ticks[0] > 0 and ticks[-1] > 5 * ticks[0]:
            middle = (ticks[len(ticks) // 2] - ticks[0]) / (ticks[-1] - ticks[0])
            axes.set_xscale("log" if middle < 0.4 else "linear")  # crowded below: they were drawn so
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
    _dots(axes, x, rows, metric)
    if 0 < len(ticks) <= FEW:
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, names)
    axes.set(title=key)


def _dots(axes: Axes, x: Sequence[float], rows: Sequence[Row], metric: str) -> None:
    for at, row in zip(x, rows, strict=True):
        if not row["value"]:  # a failed one has no figure: a cross on the floor
            axes.plot(at, 0.02, "x", color=PAINT["failed"], transform=axes.get_xaxis_transform(), ms=5, zorder=3)
            continue
        large = _kind(row) == STANDS
        axes.plot(
            at, _figure(row, metric), "D" if large else "o", color=PAINT[_kind(row)], ms=6.5 if large else 5,
            mec="white", mew=0.6, zorder=4 if large else 3,
        )  # fmt: skip
        if large:
            axes.axhline(_figure(row, metric), color=FAINT, linewidth=0.9, linestyle="--", zorder=0)
    figures = sorted(_figure(row, metric) for row in rows if row["value"])
    if metric == "loss" and figures:  # one that has run away would press all others flat
        low, spread = figures[0], max(figures[len(figures) // 2] - figures[0], 1e-9)
        if figures[-1] > low + 8 * spread:
            axes.set_ylim(top=low + 4 * spread)
    axes.grid(axis="y")


def _kind(row: Row) -> str:
    return STANDS if row["note"] == STANDS and row["state"] == "complete" else KINDS[row["state"]]


def _figure(row: Row, metric: str) -> float:
    return float(row["value"]) * (1 if metric == "loss" else 100)


def _title(metric: str) -> str:
    name = METRICS.get(metric, metric)
    return f"{name} on validation" + (" (lower is better)" if metric == "loss" else ", %")
