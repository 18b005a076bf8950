"""A benchmark's report as a table and a picture. Imports matplotlib only to draw."""

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from stillwatch.evaluation import heat
from stillwatch.evaluation.report import files
from stillwatch.run import KINDS, NO_PROGRESS, Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Report: TypeAlias = dict[str, Any]  # what bench.json holds
Row: TypeAlias = Mapping[str, Any]

WIDTH = 100  # columns of a terminal
LEGEND = "* fastest file that gives its golden probabilities   ! does not give them   start: to a first answer"
MARKERS = ("o", "s", "^", "D", "v", "P")


def save(report: Report, folder: Path, progress: Progress = NO_PROGRESS) -> list[Path]:
    text = json.dumps(report, indent=2, ensure_ascii=False, default=str) + "\n"
    return files.save(folder, ("bench.json", text), ("latency-accuracy.png", lambda: picture(report)), progress)


def table(report: Report) -> str:
    """Fastest first. *: the fastest faithful file; !: an unfaithful one."""
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
    lines += ["", LEGEND]
    for when, state in report.get("heat", {}).items():  # 0.1.0 did not look
        lines += [f"{when}: {heat.told(state)}"] * any(state.values())
    if soak := report.get("soak"):
        first, last = soak["series"][0], soak["series"][-1]
        lines += [
            "",
            f"{soak['name']} in {soak['runtime']}, threads {soak['threads']}, {soak['minutes']:g} minutes on end",
            f"  first {first['seconds']:g} s: {heat.told(first, first['p50'])}",
            f"  last: {heat.told(last, last['p50'])}; {last['p50'] / first['p50']:.2f} × the first",
        ]
    return "\n".join([*lines, *(line for warning in report["warnings"] for line in _wrapped(f"warning: {warning}"))])


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(words, WIDTH, subsequent_indent="  ")


def _aligned(rows: Sequence[Row], batch: int) -> list[str]:
    def number(value: float | None, spec: str) -> str:
        return "–" if value is None else format(value, spec)

    def latency(key: str, row: Row) -> str:
        return number(row["latency_ms"][key], ".2f" if row["latency_ms"][key] < 99.995 else ".0f")

    def name(row: Row) -> str:
        return ("* " if row["fastest"] else "! " if row["faithful"] is False else "  ") + row["name"]

    columns: list[tuple[str, str, Callable[[Row], str]]] = [
        ("", "  name", name),
        ("", "runtime", lambda row: row["runtime"]),
        *((key, "ms", partial(latency, key)) for key in ("p50", "p95", "p99", "min")),
        (f"by {batch}", "1/s", lambda row: number(row["throughput"], ".0f")),
        ("peak", "MB", lambda row: number(row["memory_mb"], ".0f")),
        ("start", "s", lambda row: number(row["load_s"], ".2f")),
        ("file", "MB", lambda row: number(row["bytes"] and row["bytes"] / 1e6, ".2f")),
        ("F1", "%", lambda row: number(_f1(row), ".1f")),
    ]
    cells = [[c[0] for c in columns], [c[1] for c in columns], *([c[2](row) for c in columns] for row in rows)]
    wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
    wide[0] = min(wide[0], WIDTH - sum(wide[1:]) - 2 * (len(wide) - 1))  # a long name gives way
    lines = []
    for first, second, *numbers in cells:
        short = first if len(first) <= wide[0] else first[: wide[0] - 1] + "…"
        figures = [number.rjust(width) for number, width in zip(numbers, wide[2:], strict=True)]
        lines.append("  ".join([short.ljust(wide[0]), second.ljust(wide[1]), *figures]).rstrip())
    return lines


def _f1(row: Row) -> float | None:
    value = (row["figures"].get("valid") or {}).get("macro_f1")
    return None if value is None else 100 * float(value)


# ---- the picture


def picture(report: Report) -> bytes:
    """PNG of latency (p50 to p95, fewest threads) against macro-F1 on validation.

    Ring: fastest faithful file. Hollow: unfaithful. Tick on the time axis: no accuracy. Below: latency and temperature
    without a pause, if measured.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    from stillwatch.evaluation.report.plots import FAINT, INK, WIDE, png

    threads = min(report["plan"]["threads"])
    rows, soak = [row for row in report["rows"] if row["threads"] == threads and row["latency_ms"]], report.get("soak")
    marked = [row for row in rows if _f1(row) is not None]
    ticks = list({row["name"]: row for row in reversed(rows) if _f1(row) is None}.values())  # rows: fastest first
    ms = [row["latency_ms"][key] for row in marked for key in ("p50", "p95")]
    ms += [row["latency_ms"]["p50"] for row in ticks]

    def paint(figure: "Figure") -> None:
        axes = figure.add_subplot(2 if soak else 1, 1, 1)
        title = f"{report['bundle']['name']}: one picture on {threads} thread{'s' * (threads > 1)}"
        axes.set(xscale="log", title=title, xlabel="ms: median, and a line to the 95th percentile (left is better)")
        axes.set_xlim((min(ms) / 1.25, max(ms) * 1.25) if ms else (1.0, 10.0))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid()
        if marked:
            figure.legend(handles=_points(axes, marked, bool(ticks)), loc="outside right upper")
        else:
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.text(0.5, 0.8, "no accuracy is known", color="#767676", ha="center", transform=axes.transAxes)
        low, high = np.log(axes.get_xlim())
        at_ms = sorted(ticks, key=lambda row: row["latency_ms"]["p50"])
        true = [float((np.log(row["latency_ms"]["p50"]) - low) / (high - low)) for row in at_ms]
        for row, at, moved in zip(at_ms, true, apart(true, 0.022), strict=True):
            colour, p50 = INK if row["kind"] == "detector" else FAINT, row["latency_ms"]["p50"]
            axes.plot([at, at, moved], [0, 0.03, 0.07], color=colour, linewidth=1, transform=axes.transAxes)
            text = axes.text(moved, 0.08, f"{row['name']}  {p50:.3g}", color=colour, transform=axes.transAxes)
            text.set(rotation=90, ha="center", va="bottom", fontsize=7)
        if soak:
            _soaked(figure.add_subplot(2, 1, 2), soak)

    return png((WIDE, 7.6 if soak else 4.6), paint, 0.08)


def _soaked(axes: "Axes", soak: heat.Soak) -> None:
    from stillwatch.evaluation.report.plots import FAINT, INK

    series, colour = soak["series"], KINDS["distilled"].colour
    minutes = [one["seconds"] / 60 for one in series]
    axes.fill_between(minutes, [one["p50"] for one in series], [one["p95"] for one in series], color=colour, alpha=0.25)
    axes.plot(minutes, [one["p50"] for one in series], color=colour)
    title = f"{soak['name']} in {soak['runtime']}, threads {soak['threads']}, without a pause"
    axes.set(title=title, xlabel="minutes", ylabel="ms: median, and up to p95", ylim=(0, None))
    axes.grid()
    for one, at in zip(series, minutes, strict=True):
        if one["throttled"]:
            axes.plot(at, 0, "|", color=INK, markersize=10, clip_on=False)
    if any(one["celsius"] for one in series):
        beside = axes.twinx()
        beside.plot(minutes, [one["celsius"] or np.nan for one in series], color=FAINT, linestyle="--")
        beside.set_ylabel("°C (dashed); a stroke below: throttled")


def _points(axes: "Axes", rows: Sequence[Row], room: bool) -> "list[Line2D]":
    from matplotlib.lines import Line2D

    from stillwatch.evaluation.report.plots import FAINT, INK, RESERVE

    palette = [*(KINDS[kind].colour for kind in ("teacher", "distilled", "alone")), *RESERVE]
    names, runtimes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("name", "runtime"))
    colours = {name: palette[at % len(palette)] for at, name in enumerate(names)}
    markers = {runtime: MARKERS[at % len(MARKERS)] for at, runtime in enumerate(runtimes)}
    values = [_f1(row) or 0.0 for row in rows]
    span = max(max(values) - min(values), 2.0)
    raised = False
    for at, (row, y) in enumerate(zip(rows, values, strict=True)):
        p50, p95 = row["latency_ms"]["p50"], row["latency_ms"]["p95"]
        beside = [r["latency_ms"] for r, other in zip(rows[:at], values[:at], strict=True) if other == y]  # of one net
        colour, lower = colours[row["name"]], 0.02 * span * sum(ms["p95"] > p50 for ms in beside)
        axes.hlines(y - lower, p50, p95, color=colour, linewidth=1.6, alpha=0.7)
        face = "white" if row["faithful"] is False else colour
        axes.plot(p50, y, markers[row["runtime"]], color=colour, markerfacecolor=face, markersize=8, zorder=3)
        if row["fastest"]:
            axes.plot(p50, y, "o", color=INK, markerfacecolor="none", markersize=15, zorder=3)
        raised = not raised and any(p50 < 1.15 * ms["p50"] for ms in beside)
        place = (0, 22 if raised else 11)
        axes.annotate(f"{p50:.3g}", (p50, y), xytext=place, textcoords="offset points", ha="center", fontsize=7.5)
    high = max(values) + span * 0.35
    axes.set_ylim(min(values) - (high - min(values) if room else span * 0.3), high)
    axes.set_ylabel("macro-F1 on validation, % (higher is better)")
    handles = [Line2D([], [], color=colour, linewidth=6, label=name) for name, colour in colours.items()]
    plain: dict[str, Any] = {"linestyle": "", "color": FAINT}
    handles += [Line2D([], [], marker=marker, label=name, **plain) for name, marker in markers.items() if name]
    if any(row["fastest"] for row in rows):
        ring: dict[str, Any] = {"color": INK, "marker": "o", "markersize": 12, "markerfacecolor": "none"}
        handles.append(Line2D([], [], linestyle="", label="fastest faithful file", **ring))
    return handles


def apart(true: Sequence[float], least: float) -> list[float]:
    """Rising places at least `least` apart, near their true ones, none past 0.99."""
    place: list[float] = []
    for value in true:
        place.append(max(value, place[-1] + least) if place else value)
    limit = 0.99
    for at in reversed(range(len(place))):
        place[at] = min(place[at], limit)
        limit = place[at] - least
    return place
