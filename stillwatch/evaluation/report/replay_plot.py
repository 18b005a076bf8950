"""The picture of a replayed film."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stillwatch.evaluation.report.plots import FAINT, INK, PALE, WIDE, png
from stillwatch.rules.events import LEVELS

Report: TypeAlias = Mapping[str, Any]  # as in replay.json

DRAWN = 1_500  # moments of a curve that are drawn at most
PAINT = ["#0072B2", "#CC79A7", "#009E73", "#D98200", "#6A51A3", "#A2441B", "#56B4E9", "#8A7B00"]
LEVEL_PAINT = {"notice": "#E3C000", "warn": "#E07B00", "alarm": "#C0261B"}
GAUGES = {"awareness": "Awareness, % (full: attentive)", "evidence": "Evidence, %"}


def picture(report: Report) -> bytes:
    rows = [] if report["truth"] is None else ["truth"]
    rows += dict.fromkeys(event["kind"] for event in report["events"])
    seconds = report["seconds"]
    per, unit = (1, "seconds") if seconds <= 180 else (60, "minutes") if seconds <= 10800 else (3600, "hours")
    unsafe = [label for label in report["labels"] if label not in report["safe"]]
    paint = dict(zip(unsafe, PAINT * (1 + len(unsafe) // len(PAINT)), strict=False))
    heights = [2.6, 1.0, 0.34 + 0.3 * max(1, len(rows))]

    def draw(figure: Figure) -> None:
        top, middle, low = figure.subplots(3, 1, sharex=True, height_ratios=heights)
        low.set(xlabel=unit, xlim=(0, seconds / per or 1.0))
        for segment in report["truth"] or ():
            if segment["label"] not in report["safe"]:
                edges, colour = (segment["start_s"] / per, segment["end_s"] / per), paint.get(segment["label"], FAINT)
                top.axvspan(*edges, color=colour, alpha=0.16, linewidth=0)
        for label, colour in paint.items():
            time, value = _thinned(report["series"]["time_s"], report["series"]["p"][label])
            top.plot(time / per, 100 * value, color=colour, linewidth=1.4, label=label)
        top.set(title="Probability of what is unsafe, % (bands: the truth)", ylim=(-2, 104))
        top.grid(axis="y")
        time, value = _thinned(report["series"]["time_s"], report["series"]["gauge"], report["gauge"] == "awareness")
        middle.fill_between(time / per, 0, 100 * value, color=PALE, linewidth=0)
        middle.plot(time / per, 100 * value, color=INK, linewidth=1.2)
        middle.set(title=GAUGES.get(report["gauge"], report["gauge"]), ylim=(-3, 108))
        middle.grid(axis="y")
        _timeline(low, report, rows, paint, per)
        handles, names = top.get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 6), handlelength=1.2)

    return png((WIDE, sum(heights) + 1.0), draw, 0.05)


def _timeline(axes: Axes, report: Report, rows: Sequence[str], paint: Mapping[str, str], per: float) -> None:
    for incident in report["incidents"] or ():
        start, length = incident["start_s"], incident["end_s"] - incident["start_s"]
        colour = paint.get(incident["label"].split(" + ")[0], FAINT)
        axes.barh(0, length / per, left=start / per, height=0.6, color=colour, alpha=0.45)
        if incident["detected"]:
            at = (start + incident["after_s"]) / per
            axes.plot(at, 0, marker="v", color=INK, markersize=7, clip_on=False)
            _text(axes, at, 0, f"+{incident['after_s']:.1f} s", INK)
        else:
            _text(axes, start / per, 0, "missed", LEVEL_PAINT["alarm"])
    for event in report["events"]:
        row = rows.index(event["kind"])
        end = report["seconds"] if event["end"] is None else event["end"]
        last = max(end, event["opened"])
        axes.hlines(row, event["start"] / per, last / per, color=FAINT, linewidth=1.2)
        levels = sorted(event["levels"].items(), key=lambda pair: pair[1])
        ends = [*(at for _, at in levels[1:]), max(end, levels[-1][1])]
        for (level, since), until in zip(levels, ends, strict=True):
            width = max(until - since, report["seconds"] * 0.004)  # an event over when it was said is still seen
            axes.barh(row, width / per, left=since / per, height=0.56, color=LEVEL_PAINT[level])
        if event.get("outcome") in ("false", "other label"):
            _text(axes, last / per, row, event["outcome"], LEVEL_PAINT["alarm"])
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.7)
    shown = ", ".join(f"{level}: {word}" for level, word in zip(LEVELS, ("yellow", "orange", "red"), strict=True))
    axes.set_title(f"Events ({shown})" if report["events"] else "No event")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _text(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    left = x > 0.92 * axes.get_xlim()[1]
    axes.annotate(
        text, (x, y), xytext=(-6 if left else 6, 0), textcoords="offset points", va="center", fontsize=8,
        ha="right" if left else "left", fontweight="bold", color=colour,
        bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "alpha": 0.75, "linewidth": 0},
    )  # fmt: skip


def _thinned(
    time: Sequence[float], value: Sequence[float | None], lowest: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    t, v = np.array(time, float), np.array([np.nan if one is None else one for one in value], float)
    if len(t) <= DRAWN:
        return t, v
    known = np.where(np.isnan(v), np.inf if lowest else -np.inf, v)
    pick = np.argmin if lowest else np.argmax
    chosen = np.array([part[pick(known[part])] for part in np.array_split(np.arange(len(t)), DRAWN)])
    return t[chosen], v[chosen]
