"""The picture of a tuning study. Must not import an optimiser."""

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from stillwatch.errors import UserError
from stillwatch.evaluation.report.plots import FAINT, INK, METRIC_TITLES, panels_png

Row: TypeAlias = dict[str, str]  # of trials.csv

STANDS = "the recipe as it stands"  # the note of that trial
TRIALS = {"complete": "came to an end", "pruned": "stopped early", "failed": "failed"}
TRIAL_COLOURS = {"came to an end": "#0072B2", "stopped early": "#B9B9B9", "failed": "#C03030", STANDS: "#D98200"}
FEW = 6  # different values of a key, up to which each has a tick of its own


def picture(path: Path, metric: str) -> bytes:
    """Dots: trials. Line: best so far. Broken line: the recipe as it stood.

    path: trials.csv: number, state, value, the keys, seconds, note. Raises UserError.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["state"] in TRIALS]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); `stillwatch tune` writes it") from None
    if not any(row["value"] for row in rows):
        raise UserError(f"{path}: no trial in it has a value yet")
    names = list(rows[0])
    keys = names[names.index("value") + 1 : names.index("seconds")]
    panels = [partial(_history, rows, metric), *(partial(_key, rows, key, metric) for key in keys)]
    known = {_trial(row) for row in rows}
    return panels_png(panels, 2.7, False, legend={name: c for name, c in TRIAL_COLOURS.items() if name in known})


def _history(rows: Sequence[Row], metric: str, axes: Axes) -> None:
    values = [_value(row, metric) if row["state"] == "complete" else np.nan for row in rows]
    best = (np.fmin if metric == "loss" else np.fmax).accumulate(values)
    numbers = np.array([float(row["number"]) for row in rows])
    known = ~np.isnan(best)
    axes.step(numbers[known], best[known], where="post", color=INK, linewidth=1.2, zorder=1)
    _dots(axes, numbers, rows, metric)
    title = METRIC_TITLES.get(metric, metric) + " on validation"
    axes.set(title=title + (" (lower is better)" if metric == "loss" else ", %"), xlabel="trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _key(rows: Sequence[Row], key: str, metric: str, axes: Axes) -> None:
    rows = [row for row in rows if row[key]]
    try:
        x = [float(row[key]) for row in rows]
        ticks = sorted(set(x))
        names = [f"{tick:g}" for tick in ticks]
    except ValueError:
        names = sorted({row[key] for row in rows})
        x, ticks = [float(names.index(row[key])) for row in rows], [float(number) for number in range(len(names))]
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


def _dots(axes: Axes, x: Sequence[float] | NDArray[np.float64], rows: Sequence[Row], metric: str) -> None:
    for at, row in zip(x, rows, strict=True):
        colour = TRIAL_COLOURS[_trial(row)]
        if not row["value"]:  # a failed one has no figure: a cross on the floor
            axes.plot(at, 0.02, "x", color=colour, transform=axes.get_xaxis_transform(), ms=5, zorder=3)
            continue
        marker, size, order = ("D", 6.5, 4) if _trial(row) == STANDS else ("o", 5.0, 3)
        axes.plot(at, _value(row, metric), marker, color=colour, ms=size, mec="white", mew=0.6, zorder=order)
        if _trial(row) == STANDS:
            axes.axhline(_value(row, metric), color=FAINT, linewidth=0.9, linestyle="--", zorder=0)
    values = sorted(_value(row, metric) for row in rows if row["value"])
    if metric == "loss" and values:  # one that has run away would press all others flat
        low, spread = values[0], max(values[len(values) // 2] - values[0], 1e-9)
        if values[-1] > low + 8 * spread:
            axes.set_ylim(top=low + 4 * spread)
    axes.grid(axis="y")


def _trial(row: Row) -> str:
    return STANDS if row["note"] == STANDS and row["state"] == "complete" else TRIALS[row["state"]]


def _value(row: Row, metric: str) -> float:
    return float(row["value"]) * (1 if metric == "loss" else 100)
