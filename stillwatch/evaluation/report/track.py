"""Track: how a bench's report is shown: a table for a terminal, one picture, and the files that keep both.

In: the report of bench.bench(). Out: text of at most 100 columns, PNG bytes, bench.json and latency-accuracy.png.
Called by the CLI. It measures nothing.
"""

import io
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from stillwatch.atomic import atomic
from stillwatch.errors import UserError
from stillwatch.evaluation.report.plots import ALONE, DISTILLED, FAINT, INK, KINDS, LOOK, RESERVE, WIDE

Row: TypeAlias = Mapping[str, Any]

WIDTH = 100  # columns of a terminal
MARKERS = ("o", "s", "^", "D", "v", "P")


def save(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write bench.json and latency-accuracy.png, each whole or not at all. Raises UserError where it cannot."""
    text = json.dumps(report, indent=2, ensure_ascii=False, default=str) + "\n"
    written = []
    for name, content in (("bench.json", text.encode()), ("latency-accuracy.png", picture(report))):
        try:
            with atomic(folder / name) as draft:
                draft.write_bytes(content)
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be written: {error.strerror}; choose another --out") from error
        written.append(folder / name)
    return written


def table(report: Mapping[str, Any]) -> str:
    """Columns for each thread count, fastest first; * is the fastest file that is faithful, ! one that is not."""
    machine, plan = report["machine"], report["plan"]
    versions = ", ".join(f"{name} {version.split('-')[0]}" for name, version in machine["versions"].items())
    lines = [*_wrapped(f"{machine.get('cpu', machine['system'])}, {machine['cores']} cores; {versions}")]
    for threads in plan["threads"]:
        rows = [row for row in report["rows"] if row["threads"] == threads]
        where = f" on {threads} core{'s' * (threads > 1)}" if machine["pinned"] and threads <= machine["cores"] else ""
        head = f"{threads} thread{'s' * (threads > 1)}{where}, {plan['rounds']} timed calls each, taking turns"
        lines += ["", head, *_aligned([row for row in rows if row["latency_ms"]], plan["batch"])]
        for row in rows:
            if row["overhead"]:
                runs = f"{row['runs']['file']} in {row['runs']['runtime']}"
                lines.append(f"  {row['name']} runs {runs}: {row['overhead']:.3f} × the time of the bare file")
    lines += [
        "",
        "* fastest file that gives its golden probabilities   ! does not give them   start: to a first answer",
    ]
    return "\n".join([*lines, *(line for warning in report["warnings"] for line in _wrapped(f"warning: {warning}"))])


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(words, WIDTH, subsequent_indent="  ")


def _aligned(rows: Sequence[Row], batch: int) -> list[str]:
    columns: list[tuple[str, str, Callable[[Row], str]]] = [
        ("", "  name", lambda row: _mark(row) + row["name"]),
        ("", "runtime", lambda row: row["runtime"]),
        *((key, "ms", partial(_latency, key)) for key in ("p50", "p95", "p99", "min")),
        (f"by {batch}", "1/s", lambda row: _known(row["throughput"], ".0f")),
        ("peak", "MB", lambda row: _known(row["memory_mb"], ".0f")),
        ("start", "s", lambda row: _known(row["load_s"], ".2f")),
        ("file", "MB", lambda row: _known(row["bytes"] and row["bytes"] / 1e6, ".2f")),
        ("F1", "%", lambda row: _known(_f1(row), ".1f")),
    ]
    cells = [[c[0] for c in columns], [c[1] for c in columns], *([c[2](row) for c in columns] for row in rows)]
    wide = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    wide[0] = min(wide[0], WIDTH - sum(wide[1:]) - 2 * (len(wide) - 1))  # a long name gives way
    lines = []
    for first, second, *numbers in cells:
        name = first if len(first) <= wide[0] else first[: wide[0] - 1] + "…"
        figures = [number.rjust(width) for number, width in zip(numbers, wide[2:], strict=True)]
        lines.append("  ".join([name.ljust(wide[0]), second.ljust(wide[1]), *figures]).rstrip())
    return lines


def _latency(key: str, row: Row) -> str:
    ms = row["latency_ms"][key]
    return f"{ms:.2f}" if ms < 99.995 else f"{ms:.0f}"


def _mark(row: Row) -> str:
    return "* " if row["fastest"] else "! " if row["faithful"] is False else "  "


def _known(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _f1(row: Row) -> float | None:
    """Macro-F1 on the validation split, %."""
    value = (row["figures"].get("valid") or {}).get("macro_f1")
    return None if value is None else 100 * float(value)


# ---- the picture


def picture(report: Mapping[str, Any]) -> bytes:
    """Latency against accuracy: p50 to p95 at the fewest threads, macro-F1 on validation; PNG.

    A colour is a file, a marker its runtime, a ring the fastest file that is faithful; one that is not is hollow. Who
    has no accuracy is a tick on the axis of time, in the faster of its runtimes.
    """
    threads = min(report["plan"]["threads"])
    rows = [row for row in report["rows"] if row["threads"] == threads and row["latency_ms"]]
    marked = [row for row in rows if _f1(row) is not None]
    ticks = list({row["name"]: row for row in reversed(rows) if _f1(row) is None}.values())  # rows: fastest first
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(WIDE, 4.6))
        figure.set_layout_engine("constrained", h_pad=0.08)
        axes = figure.add_subplot()
        what = f"{report['bundle']['name']}: one picture on {threads} thread{'s' * (threads > 1)}"
        axes.set(xscale="log", title=what, xlabel="ms: median, and a line to the 95th percentile (left is better)")
        axes.set_xlim(_reach(marked, ticks))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid()
        _points(axes, marked, bool(ticks))
        _ticks(axes, ticks)
        if marked:
            figure.legend(handles=_handles(marked), loc="outside right upper")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()


def _reach(marked: Sequence[Row], ticks: Sequence[Row]) -> tuple[float, float]:
    ms = [row["latency_ms"][key] for row in marked for key in ("p50", "p95")]
    ms += [row["latency_ms"]["p50"] for row in ticks]
    return (min(ms) / 1.25, max(ms) * 1.25) if ms else (1.0, 10.0)


def _paint(rows: Sequence[Row]) -> tuple[dict[str, str], dict[str, str]]:
    """A colour for each name, a marker for each runtime."""
    names, runtimes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("name", "runtime"))
    reserve = [KINDS["teacher"][1], DISTILLED, ALONE, *RESERVE]
    paint = {name: reserve[at % len(reserve)] for at, name in enumerate(names)}
    return paint, {runtime: MARKERS[at % len(MARKERS)] for at, runtime in enumerate(runtimes)}


def _points(axes: Axes, rows: Sequence[Row], room: bool) -> None:
    """room: leave the lower half to the ticks."""
    if not rows:
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.text(0.5, 0.8, "no accuracy is known", color=FAINT, ha="center", transform=axes.transAxes)
        return
    paint, markers = _paint(rows)
    values = [value for row in rows if (value := _f1(row)) is not None]
    span = max(max(values) - min(values), 2.0)
    raised = False
    for at, (row, y) in enumerate(zip(rows, values, strict=True)):
        p50, p95 = row["latency_ms"]["p50"], row["latency_ms"]["p95"]
        colour = paint[row["name"]]
        beside = [r["latency_ms"] for r, other in zip(rows[:at], values[:at], strict=True) if other == y]  # of one net
        level = sum(ms["p95"] > p50 for ms in beside)
        axes.hlines(y - 0.02 * span * level, p50, p95, color=colour, linewidth=1.6, alpha=0.7)
        face = "white" if row["faithful"] is False else colour
        axes.plot(p50, y, markers[row["runtime"]], color=colour, markerfacecolor=face, markersize=8, zorder=3)
        if row["fastest"]:
            axes.plot(p50, y, "o", color=INK, markerfacecolor="none", markersize=15, zorder=3)
        how: Any = {"textcoords": "offset points", "ha": "center", "fontsize": 7.5}
        raised = not raised and any(p50 < 1.15 * ms["p50"] for ms in beside)
        axes.annotate(f"{p50:.3g}", (p50, y), xytext=(0, 22 if raised else 11), **how)
    high = max(values) + span * 0.35
    axes.set_ylim(min(values) - (high - min(values) if room else span * 0.3), high)
    axes.set_ylabel("macro-F1 on validation, % (higher is better)")


def _ticks(axes: Axes, rows: Sequence[Row]) -> None:
    """Vertical names above the axis, each led to its own time; names that would touch one another move apart."""
    rows = sorted(rows, key=lambda row: row["latency_ms"]["p50"])
    ends = np.log(axes.get_xlim())
    true = [float((np.log(row["latency_ms"]["p50"]) - ends[0]) / (ends[1] - ends[0])) for row in rows]
    place = _apart(true, 0.022)
    for row, at, moved in zip(rows, true, place, strict=True):
        colour = INK if row["kind"] == "detector" else FAINT
        axes.plot([at, at, moved], [0, 0.03, 0.07], color=colour, linewidth=1, transform=axes.transAxes)
        name = f"{row['name']}  {row['latency_ms']['p50']:.3g}"
        how: Any = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 7}
        axes.text(moved, 0.08, name, color=colour, transform=axes.transAxes, **how)


def _apart(true: Sequence[float], least: float) -> list[float]:
    """Rising places, each as near to its true one as a distance of `least` allows, none past 0.99."""
    place = [0.0] * len(true)
    for at, value in enumerate(true):
        place[at] = max(value, place[at - 1] + least) if at else value
    limit = 0.99
    for at in reversed(range(len(place))):
        place[at] = min(place[at], limit)
        limit = place[at] - least
    return place


def _handles(rows: Sequence[Row]) -> list[Line2D]:
    paint, markers = _paint(rows)
    files = [Line2D([], [], color=colour, linewidth=6, label=name) for name, colour in paint.items()]
    runtimes = [
        Line2D([], [], color=FAINT, marker=marker, linestyle="", label=runtime)
        for runtime, marker in markers.items()
        if runtime
    ]
    ring = Line2D([], [], color=INK, marker="o", markersize=12, markerfacecolor="none", linestyle="")
    ring.set_label("fastest faithful file")
    return [*files, *runtimes, ring] if any(row["fastest"] for row in rows) else [*files, *runtimes]
