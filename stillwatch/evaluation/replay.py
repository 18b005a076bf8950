"""Replay: a film that was looked at, decided on and compared with the truth: found, missed, false alarms an hour.

In: (seconds, probabilities) frame by frame, an Alarm, and what truly happened. Out: a report (JSON), a picture, words.
Called by the CLI, which hands over the steps and the Alarm. It knows no camera, no net and no file of a film.
"""

import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stillwatch import metrics
from stillwatch.atomic import atomic
from stillwatch.errors import UserError, nearest
from stillwatch.evaluation.report.plots import FAINT, INK, LOOK, WIDE
from stillwatch.rules.alarm import LEVELS, Alarm

ReplayStep: TypeAlias = tuple[float, NDArray[np.float32] | None]
Segment: TypeAlias = Mapping[str, Any]  # {"start_s", "end_s", "label"}
Report: TypeAlias = dict[str, Any]

FORMAT = 1  # of the report
TOLERANCE = 2.0  # s before and after an incident in which an event still counts as its own: truth is cut by hand
TOUCH = 0.1  # s between two segments of one label that are one incident
KEPT = 20_000  # moments of the series that a report holds at most
DRAWN = 1_500  # moments of a curve that are drawn at most


# ---- the truth


def read_truth(path: Path, labels: Sequence[str] = ()) -> list[dict[str, Any]]:
    """{"segments": [{"start_s", "end_s", "label"}, …]} of a JSON file -> the segments, by time.

    Other keys may be there. Time without a segment counts as safe. labels: the bundle's; none given: any word is one.
    Raises UserError that names the place, the key and the value: not JSON, a key that is missing or no number, an end
    before its start, two segments at one time, an unknown label (with the nearest right one).
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.json")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file" + (nearest(path.name, beside) if beside else "")) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {' '.join(str(error).split())[:200]}") from error
    listed = raw.get("segments") if isinstance(raw, dict) else None
    if not isinstance(listed, list) or not listed:
        raise UserError(f'{path}: segments: wanted: a list such as [{{"start_s": 0, "end_s": 2.5, "label": "…"}}]')
    found = [(_segment(one, f"{path}: segments[{number}]", labels), number) for number, one in enumerate(listed)]
    found.sort(key=lambda pair: (pair[0]["start_s"], pair[0]["end_s"]))
    for (before, first), (after, second) in pairwise(found):
        if after["start_s"] < before["end_s"] - 1e-6:
            raise UserError(
                f"{path}: segments[{second}].start_s = {after['start_s']:g}: overlaps segments[{first}], which ends at "
                f"{before['end_s']:g}; one moment has one label"
            )
    return [segment for segment, _ in found]


def _segment(one: Any, place: str, labels: Sequence[str]) -> dict[str, Any]:
    if not isinstance(one, dict):
        raise UserError(f"{place} = {one!r}: wanted: start_s, end_s and label")
    for key in ("start_s", "end_s", "label"):
        if key not in one:
            raise UserError(f"{place}.{key}: missing{nearest(key, list(one)) if one else ''}")
    for key in ("start_s", "end_s"):
        value = one[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UserError(f"{place}.{key} = {value!r}: wanted: seconds from the film's start")
    start, end, label = float(one["start_s"]), float(one["end_s"]), one["label"]
    if end <= start:
        raise UserError(f"{place}.end_s = {end:g}: not after start_s = {start:g}")
    if not isinstance(label, str) or (labels and label not in labels):
        raise UserError(f"{place}.label = {label!r}: unknown{nearest(str(label), labels)}")
    return {"start_s": start, "end_s": end, "label": label}


def incidents(truth: Sequence[Segment], safe: Sequence[str], any_label: bool = False) -> list[dict[str, Any]]:
    """Segments, by time -> what should be noticed: unsafe segments that touch one another and have one label.

    any_label: whatever their labels are. Returns [{"label" (several joined by " + "), "start_s", "end_s"}].
    """
    found: list[dict[str, Any]] = []
    for one in truth:
        if one["label"] in safe:
            continue
        last = found[-1] if found else None
        if last and one["start_s"] - last["end_s"] <= TOUCH and (any_label or last["labels"][-1] == one["label"]):
            last["end_s"] = max(last["end_s"], one["end_s"])
            last["labels"] += [one["label"]] if one["label"] not in last["labels"] else []
        else:
            found.append({"start_s": one["start_s"], "end_s": one["end_s"], "labels": [one["label"]]})
    return [{"label": " + ".join(one.pop("labels")), **one} for one in found]


# ---- the report


def replay(
    steps: Iterable[ReplayStep],
    alarm: Alarm,
    truth: Sequence[Segment] | None,
    labels: Sequence[str],
    safe: Sequence[str],
    tolerance: float = TOLERANCE,
) -> Report:
    """Play the steps to the alarm, frame by frame, and hold its events against the truth.

    steps: (seconds, probabilities (K,) or None where there is no answer), time rising. truth: as read_truth gives it.
    An event is judged by the time from its start to when it first spoke. If that touches no unsafe truth, widened by
    `tolerance`, it is a false alarm, however long it then lasts; it is right where it touches an incident of its label
    (of any, if it names none or the rule gathers evidence). An incident is detected by the first right event that
    lasts into it and spoke not later than `tolerance` after its end: after (opened - start) seconds, 0 where it was
    there already. Events of the camera itself (blocked, frozen) are neither. The report is JSON; without a truth what
    is about truth is None.
    Raises UserError for a film without a frame.
    """
    events, times, p, gauge = _played(steps, alarm)
    if not times:
        raise UserError("replay: the film has no frame")
    gap = statistics.median(np.diff(times)) if len(times) > 1 else 0.0
    end = times[-1] + float(gap)
    report: Report = {
        "format": FORMAT, "camera": alarm.camera, "labels": list(labels), "safe": list(safe), "frames": len(times),
        "unanswered": sum(one is None for one in p), "seconds": round(end, 3), "gauge": alarm.gauge_name,
        "tolerance_s": tolerance, "events": events, "truth": None, "incidents": None, "by_label": None,
        "detected": None, "missed": None, "seconds_to_detect": None, "false_alarms": None, "frame_accuracy": None,
        "frame_macro_f1": None, "warnings": [],
    }  # fmt: skip
    if truth is not None:
        report |= _compared(events, truth, safe, alarm.gauge_name == "evidence", end, tolerance)
        report |= _by_frame(times, p, truth, labels)
    return report | {"series": _series(times, p, gauge, labels, safe)}


def _played(
    steps: Iterable[ReplayStep], alarm: Alarm
) -> tuple[list[dict[str, Any]], list[float], list[NDArray[np.float32] | None], list[float]]:
    """Events as they ended, each with the second at which each level was first said; and what was seen meanwhile."""
    events: dict[str, dict[str, Any]] = {}
    times: list[float] = []
    answers: list[NDArray[np.float32] | None] = []
    gauge: list[float] = []

    def heed(said: Iterable[Any]) -> None:
        for event in said:
            levels = events[event.id]["levels"] if event.id in events else {}
            levels.setdefault(event.level, event.updated)
            events[event.id] = event.as_dict() | {"levels": levels}

    for now, p in steps:
        heed(alarm.step(now, p))
        times.append(float(now))
        answers.append(p)
        gauge.append(float(alarm.gauge))
    if times:
        heed(alarm.close(times[-1]))
    return sorted(events.values(), key=lambda event: (event["opened"], event["id"])), times, answers, gauge


def _compared(
    events: list[dict[str, Any]],
    truth: Sequence[Segment],
    safe: Sequence[str],
    any_label: bool,
    end: float,
    tolerance: float,
) -> Report:
    """What was found, what was missed, what was false. Marks each event with its outcome."""
    segments = sorted(({**one} for one in truth), key=lambda one: one["start_s"])
    whole = incidents(segments, safe, any_label)
    seen = [one for one in whole if one["start_s"] < end]
    warnings = []
    if len(seen) < len(whole):
        warnings.append(f"{len(whole) - len(seen)} of {len(whole)} incidents begin after the film's end at {end:.1f} s")
    for event in events:
        touched = [one for one in seen if _touches(event["start"], event["opened"], one, tolerance)]
        if event["kind"] == "camera":
            event["outcome"] = "camera"
        elif any(_means(event, one, any_label) for one in touched):
            event["outcome"] = "right"
        else:
            event["outcome"] = "other label" if touched else "false"
    for one in seen:
        one |= _detected(one, events, any_label, end, tolerance)
    waits = [one["after_s"] for one in seen if one["detected"]]
    unsafe = sum(min(one["end_s"], end) - one["start_s"] for one in seen)
    names = list(dict.fromkeys(one["label"] for one in seen))
    return {
        "truth": segments,
        "incidents": seen,
        "by_label": {name: _tally([one for one in seen if one["label"] == name]) for name in names},
        "detected": len(waits),
        "missed": len(seen) - len(waits),
        "seconds_to_detect": {"median": statistics.median(waits), "longest": max(waits)} if waits else None,
        "false_alarms": _false(events, max(end - unsafe, 0.0) / 3600),
        "warnings": warnings,
    }


def _touches(start: float, end: float, one: Mapping[str, Any], tolerance: float) -> bool:
    return bool(start <= one["end_s"] + tolerance and end >= one["start_s"] - tolerance)


def _means(event: Mapping[str, Any], one: Mapping[str, Any], any_label: bool) -> bool:
    """Whether this is an event of that incident's kind; one that names no class may be about any."""
    return any_label or event["label"] is None or event["label"] == one["label"]


def _detected(
    one: Mapping[str, Any], events: Sequence[dict[str, Any]], any_label: bool, end: float, tolerance: float
) -> dict[str, Any]:
    """The first event that speaks of this incident, after how long, and the highest level that they reach."""
    own = [
        event
        for event in events
        if event["outcome"] == "right"
        and _means(event, one, any_label)
        and event["opened"] <= one["end_s"] + tolerance
        and _touches(event["start"], end if event["end"] is None else event["end"], one, tolerance)
    ]
    if not own:
        return {"detected": False, **dict.fromkeys(("after_s", "event", "kind", "level", "alarm_after_s"))}
    first = own[0]  # events come by the time at which they opened
    loud = [
        event["levels"]["alarm"] for event in own if event["levels"].get("alarm", math.inf) <= one["end_s"] + tolerance
    ]
    return {
        "detected": True,
        "after_s": round(max(0.0, first["opened"] - one["start_s"]), 3),
        "event": first["id"],
        "kind": first["kind"],
        "level": max((event["level"] for event in own), key=LEVELS.index),
        "alarm_after_s": round(max(0.0, min(loud) - one["start_s"]), 3) if loud else None,
    }


def _tally(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    waits = [one["after_s"] for one in found if one["detected"]]
    return {
        "incidents": len(found),
        "detected": len(waits),
        "median_after_s": statistics.median(waits) if waits else None,
    }


def _false(events: Sequence[Mapping[str, Any]], hours: float) -> dict[str, Any]:
    """How many, of which level, how many an hour of safe video, and what so short a film cannot rule out."""
    false = [event for event in events if event["outcome"] == "false"]
    return {
        "count": len(false),
        "by_level": {level: sum(event["level"] == level for event in false) for level in LEVELS},
        "safe_hours": hours,
        "an_hour": len(false) / hours if hours else None,
        "an_hour_at_most": most(len(false)) / hours if hours else None,  # 95 % confidence
    }


def most(count: int, confidence: float = 0.95) -> float:
    """The largest mean of a Poisson variable that may still, with 1 - confidence, give so few (one-sided, exact)."""

    def so_few(mean: float) -> float:
        return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))

    low, high = 1e-9, 4.0 * (count + 2)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if so_few(middle) > 1 - confidence else (low, middle)
    return high


def _by_frame(
    times: Sequence[float], p: Sequence[NDArray[np.float32] | None], truth: Sequence[Segment], labels: Sequence[str]
) -> Report:
    """Accuracy and macro-F1 over the frames that have an answer and lie in a segment of a known label."""
    segments = sorted(truth, key=lambda one: one["start_s"])
    starts = np.array([one["start_s"] for one in segments])
    y, rows = [], []
    for now, answer in zip(times, p, strict=True):
        at = int(np.searchsorted(starts, now + 1e-9, side="right")) - 1
        if answer is None or at < 0 or now >= segments[at]["end_s"] or segments[at]["label"] not in labels:
            continue
        y.append(labels.index(segments[at]["label"]))
        rows.append(answer)
    if not y:
        return {"frames_compared": 0}
    return {
        "frames_compared": len(y),
        "frame_accuracy": metrics.accuracy(y, np.stack(rows)),
        "frame_macro_f1": metrics.macro_f1(y, np.stack(rows)),
    }


def _series(
    times: Sequence[float],
    p: Sequence[NDArray[np.float32] | None],
    gauge: Sequence[float],
    labels: Sequence[str],
    safe: Sequence[str],
) -> Report:
    """Probabilities and gauge over time. Of a long film, in each stretch the moment that alarms most."""
    answers = [np.full(len(labels), np.nan) if one is None else np.asarray(one, float) for one in p]
    table = np.stack(answers)  # (N,K)
    unsafe = [k for k, label in enumerate(labels) if label not in safe]
    score = np.nan_to_num(table[:, unsafe]).max(1, initial=0.0)
    chosen = list(range(len(times)))
    if len(times) > KEPT:
        chosen = [int(part[score[part].argmax()]) for part in np.array_split(chosen, KEPT)]
    return {
        "time_s": [round(times[i], 3) for i in chosen],
        "p": {
            label: [None if math.isnan(v) else round(float(v), 4) for v in table[chosen, k]]
            for k, label in enumerate(labels)
        },
        "gauge": [round(gauge[i], 4) for i in chosen],
    }


def save(report: Report, folder: Path) -> list[Path]:
    """replay.json and replay.png into the folder. Returns their paths."""
    with atomic(folder / "replay.json") as draft:
        draft.write_text(json.dumps(report, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic(folder / "replay.png") as draft:
        draft.write_bytes(picture(report))
    return [folder / "replay.json", folder / "replay.png"]


# ---- for reading


def words(report: Report) -> str:
    """The report as plain text: events, then each incident, then the figures."""
    rate = report["frames"] / report["seconds"] if report["seconds"] else 0.0
    lines = [f"{report['camera']}: {_span(report['seconds'])}, {report['frames']:,} frames, {rate:.1f} a second"]
    if report["unanswered"]:
        lines.append(f"  {report['unanswered']:,} frames without an answer (a net of clips looks at several first)")
    lines += [f"note: {warning}" for warning in report["warnings"]]
    lines.append("" if report["events"] else "no event")
    for event in report["events"]:
        ended = "goes on" if event["end"] is None else f"{event['end']:.1f} s"
        outcome = {"false": "FALSE ALARM", "other label": "incident of another label"}.get(event.get("outcome", ""), "")
        said = f"  {event['opened']:8.1f} s  {event['level']:6}  {event['kind']:12} "
        lines.append(
            f"{said} {event['start']:.1f} s to {ended}: {event['words']}" + (f"  [{outcome}]" if outcome else "")
        )
    return "\n".join(lines if report["truth"] is None else [*lines, "", *_against_truth(report)])


def _against_truth(report: Report) -> list[str]:
    found, false = report["incidents"], report["false_alarms"]
    lines = [
        f"{len(found)} incident{'s' * (len(found) != 1)}: {report['detected']} detected, {report['missed']} missed"
    ]
    for one in found:
        told = f"detected after {one['after_s']:.1f} s ({one['kind']}, {one['level']})" if one["detected"] else "MISSED"
        length = one["end_s"] - one["start_s"]
        lines.append(f"  {one['start_s']:8.1f} s to {one['end_s']:.1f} s  {one['label']} ({length:.1f} s): {told}")
    if wait := report["seconds_to_detect"]:
        lines.append(f"seconds to detect: {wait['median']:.1f} in the median, {wait['longest']:.1f} at the longest")
    safe = _span(3600 * false["safe_hours"])
    if false["an_hour"] is None:
        lines.append("false alarms: not known, the film has no safe moment")
    else:
        lines.append(
            f"false alarms: {false['count']} in {safe} of safe video, {false['an_hour']:,.2f} an hour (at 95 % "
            f"confidence at most {false['an_hour_at_most']:,.2f}); one that speaks within {report['tolerance_s']:g} s "
            "of an incident is none"
        )
    if report["frame_accuracy"] is not None:
        lines.append(
            f"frame by frame: accuracy {100 * report['frame_accuracy']:.1f} %, macro-F1 {report['frame_macro_f1']:.3f} "
            f"({report['frames_compared']:,} frames)"
        )
    return lines


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"


# ---- for looking


def picture(report: Report) -> bytes:
    """The film as one PNG: truth as bands behind the probabilities, the gauge, and below them incidents and events."""
    kinds = list(dict.fromkeys(event["kind"] for event in report["events"]))
    rows = ([] if report["truth"] is None else ["truth"]) + kinds
    least, per, name = _unit(report["seconds"])
    heights = [2.6, 1.0, 0.34 + 0.3 * max(1, len(rows))]
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(WIDE, sum(heights) + 1.0))
        figure.set_layout_engine("constrained", h_pad=0.05)
        top, middle, low = figure.subplots(3, 1, sharex=True, height_ratios=heights)
        low.set(xlabel=name, xlim=(0, report["seconds"] / per or least))
        _curves(top, report, per)
        _gauge(middle, report, per)
        _timeline(low, report, rows, per)
        handles, names = top.get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 6), handlelength=1.2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()


def _unit(seconds: float) -> tuple[float, float, str]:
    """(an axis's least length, seconds in a unit, its name)"""
    if seconds <= 180:
        return 1.0, 1.0, "seconds"
    return (1.0, 60.0, "minutes") if seconds <= 10800 else (1.0, 3600.0, "hours")


def _paint(report: Report) -> dict[str, str]:
    unsafe = [label for label in report["labels"] if label not in report["safe"]]
    return dict(zip(unsafe, PAINT * (1 + len(unsafe) // len(PAINT)), strict=False))


def _curves(axes: Axes, report: Report, per: float) -> None:
    paint = _paint(report)
    for one in report["truth"] or ():
        if one["label"] in report["safe"]:
            continue
        colour = paint.get(one["label"], FAINT)
        axes.axvspan(one["start_s"] / per, one["end_s"] / per, color=colour, alpha=0.16, linewidth=0)
    for label, colour in paint.items():
        time, value = _thinned(report["series"]["time_s"], report["series"]["p"][label])
        axes.plot(time / per, 100 * value, color=colour, linewidth=1.4, label=label)
    axes.set(title="Probability of what is unsafe, % (bands: the truth)", ylim=(-2, 104))
    axes.grid(axis="y")


def _gauge(axes: Axes, report: Report, per: float) -> None:
    time, value = _thinned(report["series"]["time_s"], report["series"]["gauge"], lowest=report["gauge"] == "awareness")
    axes.fill_between(time / per, 0, 100 * value, color="#DDE3E8", linewidth=0)
    axes.plot(time / per, 100 * value, color=INK, linewidth=1.2)
    told = {"awareness": "Awareness, % (full: attentive)", "evidence": "Evidence, %"}
    axes.set(title=told.get(report["gauge"], report["gauge"]), ylim=(-3, 108))
    axes.grid(axis="y")


def _timeline(axes: Axes, report: Report, rows: Sequence[str], per: float) -> None:
    """One row for the truth's incidents, with what became of each; one row for each kind of event."""
    place = {name: row for row, name in enumerate(rows)}
    paint = _paint(report)
    for one in report["incidents"] or ():
        colour = paint.get(one["label"].split(" + ")[0], FAINT)
        axes.barh(
            0, (one["end_s"] - one["start_s"]) / per, left=one["start_s"] / per, height=0.6, color=colour, alpha=0.45
        )
        if one["detected"]:
            at = one["start_s"] + one["after_s"]
            axes.plot(at / per, 0, marker="v", color=INK, markersize=7, clip_on=False)
            _tell(axes, at / per, 0, f"+{one['after_s']:.1f} s", INK)
        else:
            _tell(axes, one["start_s"] / per, 0, "missed", LEVEL_PAINT["alarm"])
    for event in report["events"]:
        row = place[event["kind"]]
        end = report["seconds"] if event["end"] is None else event["end"]
        axes.hlines(row, event["start"] / per, max(end, event["opened"]) / per, color=FAINT, linewidth=1.2)
        said = sorted(event["levels"].items(), key=lambda pair: pair[1])
        for (level, since), until in zip(said, [*(at for _, at in said[1:]), max(end, said[-1][1])], strict=True):
            least = report["seconds"] * 0.004  # an event that was over when it was said is still seen
            axes.barh(row, max(until - since, least) / per, left=since / per, height=0.56, color=LEVEL_PAINT[level])
        if event.get("outcome") in ("false", "other label"):
            _tell(axes, max(end, event["opened"]) / per, row, event["outcome"], LEVEL_PAINT["alarm"])
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.7)
    shown = ", ".join(f"{level}: {word}" for level, word in zip(LEVELS, ("yellow", "orange", "red"), strict=True))
    axes.set_title(f"Events ({shown})" if report["events"] else "No event")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _tell(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Words beside a place; near the right edge they stand to its left."""
    left = x > 0.92 * axes.get_xlim()[1]
    axes.annotate(
        text, (x, y), xytext=(-6 if left else 6, 0), textcoords="offset points", va="center", fontsize=8,
        ha="right" if left else "left", fontweight="bold", color=colour,
        bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "alpha": 0.75, "linewidth": 0},
    )  # fmt: skip


def _thinned(
    time: Sequence[float], value: Sequence[float | None], lowest: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most DRAWN moments: in each stretch the highest value, so that no peak is lost; or the lowest."""
    t, v = np.array(time, float), np.array([np.nan if one is None else one for one in value], float)
    if len(t) <= DRAWN:
        return t, v
    worst = -np.inf if not lowest else np.inf
    known = np.where(np.isnan(v), worst, v)
    pick = np.argmin if lowest else np.argmax
    chosen = np.array([part[pick(known[part])] for part in np.array_split(np.arange(len(t)), DRAWN)])
    return t[chosen], v[chosen]


PAINT = ["#0072B2", "#CC79A7", "#009E73", "#D98200", "#6A51A3", "#A2441B", "#56B4E9", "#8A7B00"]
LEVEL_PAINT = {"notice": "#E3C000", "warn": "#E07B00", "alarm": "#C0261B"}
