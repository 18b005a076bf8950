"""A film's alarms against the truth: incidents found and missed, false alarms an hour. Opens no film."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from stillwatch import metrics
from stillwatch.errors import UserError, nearest
from stillwatch.evaluation.report import files
from stillwatch.rules.alarm import Alarm, Status
from stillwatch.rules.events import LEVELS, Event
from stillwatch.rules.signs import Reading
from stillwatch.run import NO_PROGRESS, Progress

Answer: TypeAlias = NDArray[np.float32] | None  # probabilities (K,); None: the net has none for this frame
ReplayStep: TypeAlias = tuple[float, Answer, Status]
Report: TypeAlias = dict[str, Any]  # what replay.json holds
ReplayEvent: TypeAlias = dict[str, Any]  # Event.as_dict(), "levels": {level: second}, "outcome"

FORMAT = 1  # of the report
TOLERANCE = 2.0  # s before and after an incident in which an event still counts as its own: truth is cut by hand
TOUCH = 0.1  # s between two segments of one label that are one incident
KEPT = 20_000  # moments of the series that a report holds at most


class Segment(TypedDict):
    start_s: float
    end_s: float
    label: str


class Incident(Segment, total=False):
    detected: bool
    after_s: float | None
    event: str | None
    kind: str | None
    level: str | None
    alarm_after_s: float | None


# ---- the truth


def read_truth(path: Path, labels: Sequence[str] = ()) -> list[Segment]:
    """Segments by time, from JSON {"segments": [{"start_s", "end_s", "label"}, …]}.

    Gaps are safe. labels: the bundle's; empty: any word is valid. Raises UserError.
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


def _segment(raw: object, place: str, labels: Sequence[str]) -> Segment:
    if not isinstance(raw, dict):
        raise UserError(f"{place} = {raw!r}: wanted: start_s, end_s and label")
    for key in ("start_s", "end_s", "label"):
        if key not in raw:
            raise UserError(f"{place}.{key}: missing{nearest(key, list(raw)) if raw else ''}")
        value = raw[key]
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        if key != "label" and not number:
            raise UserError(f"{place}.{key} = {value!r}: wanted: seconds from the film's start")
    start, end, label = float(raw["start_s"]), float(raw["end_s"]), raw["label"]
    if end <= start:
        raise UserError(f"{place}.end_s = {end:g}: not after start_s = {start:g}")
    if not isinstance(label, str) or (labels and label not in labels):
        raise UserError(f"{place}.label = {label!r}: unknown{nearest(str(label), labels)}")
    return {"start_s": start, "end_s": end, "label": label}


def incidents(truth: Sequence[Segment], safe: Sequence[str], any_label: bool = False) -> list[Incident]:
    """Touching unsafe segments of one label, joined. any_label: of any, named "a + b"."""
    found: list[Incident] = []
    labels: list[list[str]] = []  # of each incident
    for segment in truth:
        if segment["label"] in safe:
            continue
        touches = bool(found) and segment["start_s"] - found[-1]["end_s"] <= TOUCH
        if touches and (any_label or labels[-1][-1] == segment["label"]):
            found[-1]["end_s"] = max(found[-1]["end_s"], segment["end_s"])
            labels[-1] += [segment["label"]] if segment["label"] not in labels[-1] else []
        else:
            found.append({"start_s": segment["start_s"], "end_s": segment["end_s"], "label": segment["label"]})
            labels.append([segment["label"]])
        found[-1]["label"] = " + ".join(labels[-1])
    return found


# ---- the report


def replay(
    steps: Iterable[ReplayStep],
    alarm: Alarm,
    truth: Sequence[Segment] | None,
    labels: Sequence[str],
    safe: Sequence[str],
    readings: Callable[[float], Sequence[Reading]] = lambda now: (),
) -> Report:
    """Play the steps to the alarm and compare its events with the truth.

    steps: (seconds, probabilities (K,) or None, status), by time; "empty": a person filter skipped it. readings: the
    face's new ones up to a second. truth: None leaves its figures None. Camera events do not count. Raises UserError.
    """
    # An event lasts from its start to when it opened, widened by TOLERANCE (s). It is false if it touches no unsafe
    # truth, and right if it touches an incident of its label (any, if it names none or the rule gathers evidence). The
    # first right event that lasts into an incident and opened at most TOLERANCE after its end detects it, after
    # max(0, opened - start) seconds
    events: dict[str, ReplayEvent] = {}
    times, answers, gauge, faces = list[float](), list[Answer](), list[float](), list[bool]()
    skipped = list[float]()

    def keep(news: Iterable[Event]) -> None:
        for event in news:
            levels = events[event.id]["levels"] if event.id in events else {}
            levels.setdefault(event.level, event.updated)
            events[event.id] = event.as_dict() | {"levels": levels}

    for now, p, status in steps:
        skipped += [now] * (status == "empty")
        news = readings(now)
        faces += [one.signals is not None for one in news]
        keep(alarm.step(now, p, status, news))
        times.append(float(now))
        answers.append(p if p is None or alarm.answer is None else alarm.answer.astype(np.float32))
        gauge.append(float(alarm.gauge))
    if not times:
        raise UserError("replay: the film has no frame")
    keep(alarm.close(times[-1]))
    in_order = sorted(events.values(), key=lambda event: (event["opened"], event["id"]))
    end = times[-1] + (float(statistics.median(np.diff(times))) if len(times) > 1 else 0.0)
    report: Report = {
        "format": FORMAT, "camera": alarm.camera, "labels": list(labels), "safe": list(safe), "frames": len(times),
        "unanswered": sum(p is None for p in answers) - len(skipped), "skipped": len(skipped), "skipped_unsafe": None,
        "seconds": round(end, 3), "gauge": alarm.gauge_name,
        "tolerance_s": TOLERANCE, "events": in_order, "truth": None, "incidents": None, "by_label": None,
        "detected": None, "missed": None, "seconds_to_detect": None, "false_alarms": None, "frame_accuracy": None,
        "frame_macro_f1": None, "warnings": list(alarm.notes),
        "faces": {"read": len(faces), "found": sum(faces)} if faces else None,
    }  # fmt: skip
    if truth is not None:
        segments = sorted(truth, key=lambda segment: segment["start_s"])
        report |= _compared(in_order, segments, safe, alarm.gauge_name == "evidence", end)
        report |= _by_frame(times, answers, segments, labels)
        unsafe = [one for one in segments if one["label"] not in safe]
        report["skipped_unsafe"] = sum(any(one["start_s"] <= at < one["end_s"] for one in unsafe) for at in skipped)
    return report | {"series": _series(times, answers, gauge, labels, safe)}


def _compared(
    events: list[ReplayEvent], truth: list[Segment], safe: Sequence[str], any_label: bool, end: float
) -> Report:
    for segment in truth:
        start, stop = segment["start_s"], segment["end_s"]
        if start >= end or stop - start > end + TOLERANCE:
            raise UserError(
                f"truth: the segment {start:g} s to {stop:g} s ({segment['label']}) does not fit a film of "
                f"{end:.1f} s; times are seconds from its start"
            )
    seen = incidents(truth, safe, any_label)

    def touches(event: ReplayEvent, until: str, incident: Incident) -> bool:
        last = end if event[until] is None else event[until]
        return bool(event["start"] <= incident["end_s"] + TOLERANCE and last >= incident["start_s"] - TOLERANCE)

    def means(event: ReplayEvent, incident: Incident) -> bool:
        return any_label or event["label"] in (None, incident["label"])

    for event in events:
        touched = [incident for incident in seen if touches(event, "opened", incident)]
        right = any(means(event, incident) for incident in touched)
        event["outcome"] = "right" if right else "other label" if touched else "false"
        if event["kind"] == "camera":
            event["outcome"] = "camera"
    for incident in seen:
        late = incident["end_s"] + TOLERANCE
        about = [e for e in events if e["outcome"] == "right" and means(e, incident) and e["opened"] <= late]
        about = [event for event in about if touches(event, "end", incident)]
        incident.update(_detected(incident, about, late))
    names = list(dict.fromkeys(incident["label"] for incident in seen))
    waits = _waits(seen)
    by_label = {name: [incident for incident in seen if incident["label"] == name] for name in names}
    unsafe = sum(min(incident["end_s"], end) - incident["start_s"] for incident in seen)
    hours, false = max(end - unsafe, 0.0) / 3600, [event for event in events if event["outcome"] == "false"]
    return {
        "truth": truth,
        "incidents": seen,
        "by_label": {
            name: {
                "incidents": len(group),
                "detected": len(_waits(group)),
                "median_after_s": statistics.median(_waits(group)) if _waits(group) else None,
            }
            for name, group in by_label.items()
        },
        "detected": len(waits),
        "missed": len(seen) - len(waits),
        "seconds_to_detect": {"median": statistics.median(waits), "longest": max(waits)} if waits else None,
        "false_alarms": {
            "count": len(false),
            "by_level": {level: sum(event["level"] == level for event in false) for level in LEVELS},
            "safe_hours": hours,
            "an_hour": len(false) / hours if hours else None,
            "an_hour_at_most": most(len(false)) / hours if hours else None,
        },
    }


def _detected(incident: Incident, events: Sequence[ReplayEvent], late: float) -> Incident:
    if not events:
        missed: Any = {"detected": False, **dict.fromkeys(("after_s", "event", "kind", "level", "alarm_after_s"))}
        return missed
    start, first = incident["start_s"], events[0]
    alarms = [event["levels"]["alarm"] for event in events if event["levels"].get("alarm", math.inf) <= late]
    found: Any = {
        "detected": True,
        "after_s": round(max(0.0, first["opened"] - start), 3),
        "event": first["id"],
        "kind": first["kind"],
        "level": max((event["level"] for event in events), key=LEVELS.index),
        "alarm_after_s": round(max(0.0, min(alarms) - start), 3) if alarms else None,
    }
    return found


def _waits(found: Sequence[Incident]) -> list[float]:
    return [incident["after_s"] or 0.0 for incident in found if incident["detected"]]


def most(count: int) -> float:
    """One-sided exact 95 % upper limit of a Poisson mean (Garwood 1936), by halving: a board has no scipy."""
    low, high = 1e-9, 4.0 * (count + 2)
    for _ in range(100):
        mean = (low + high) / 2
        so_few = math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))
        low, high = (mean, high) if so_few > 0.05 else (low, mean)
    return high


def _by_frame(times: Sequence[float], p: Sequence[Answer], truth: Sequence[Segment], labels: Sequence[str]) -> Report:
    starts = np.array([segment["start_s"] for segment in truth])
    y, rows = [], []
    for now, answer in zip(times, p, strict=True):
        at = int(np.searchsorted(starts, now + 1e-9, side="right")) - 1
        if answer is not None and at >= 0 and now < truth[at]["end_s"] and truth[at]["label"] in labels:
            y.append(labels.index(truth[at]["label"]))
            rows.append(answer)
    if not y:
        return {"frames_compared": 0}
    table = np.stack(rows)
    accuracy, macro_f1 = metrics.accuracy(y, table), metrics.macro_f1(y, table)
    return {"frames_compared": len(y), "frame_accuracy": accuracy, "frame_macro_f1": macro_f1}


def _series(
    times: Sequence[float], p: Sequence[Answer], gauge: Sequence[float], labels: Sequence[str], safe: Sequence[str]
) -> Report:
    table = np.stack([np.full(len(labels), np.nan) if row is None else np.asarray(row, float) for row in p])  # (N,K)
    score = np.nan_to_num(table[:, [k for k, label in enumerate(labels) if label not in safe]]).max(1, initial=0.0)
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


def save(report: Report, folder: Path, progress: Progress = NO_PROGRESS) -> list[Path]:
    def picture() -> bytes:
        from stillwatch.evaluation.report import replay_plot

        return replay_plot.picture(report)

    text = json.dumps(report, ensure_ascii=False) + "\n"
    return files.save(folder, ("replay.json", text), ("replay.png", picture), progress)


# ---- for reading


def words(report: Report) -> str:
    rate = report["frames"] / report["seconds"] if report["seconds"] else 0.0
    lines = [f"{report['camera']}: {_span(report['seconds'])}, {report['frames']:,} frames, {rate:.1f} a second"]
    if faces := report["faces"]:
        lines.append(f"  the face was read {faces['read']:,} times and found {faces['found']:,} times")
    if report["unanswered"]:
        lines.append(f"  {report['unanswered']:,} frames without an answer (a net of clips looks at several first)")
    if report["skipped"]:
        lost = "" if report["truth"] is None else f", {report['skipped_unsafe']:,} of them in an incident"
        lines.append(f"  {report['skipped']:,} looks were skipped, for nobody was there{lost}")
    lines += [f"note: {warning}" for warning in report["warnings"]]
    lines.append("" if report["events"] else "no event")
    marks = {"false": "  [FALSE ALARM]", "other label": "  [incident of another label]"}
    for event in report["events"]:
        ended = "goes on" if event["end"] is None else f"{event['end']:.1f} s"
        lines.append(
            f"  {event['opened']:8.1f} s  {event['level']:6}  {event['kind']:12}  {event['start']:.1f} s to {ended}: "
            f"{event['words']}{marks.get(event.get('outcome', ''), '')}"
        )
    return "\n".join(lines if report["truth"] is None else [*lines, "", *_against_truth(report)])


def _against_truth(report: Report) -> Iterable[str]:
    found, false = report["incidents"], report["false_alarms"]
    yield f"{len(found)} incident{'s' * (len(found) != 1)}: {report['detected']} detected, {report['missed']} missed"
    for one in found:
        fate = f"detected after {one['after_s']:.1f} s ({one['kind']}, {one['level']})" if one["detected"] else "MISSED"
        length = one["end_s"] - one["start_s"]
        yield f"  {one['start_s']:8.1f} s to {one['end_s']:.1f} s  {one['label']} ({length:.1f} s): {fate}"
    if wait := report["seconds_to_detect"]:
        yield f"seconds to detect: {wait['median']:.1f} in the median, {wait['longest']:.1f} at the longest"
    if false["an_hour"] is None:
        yield "false alarms: not known, the film has no safe moment"
    else:
        yield (
            f"false alarms: {false['count']} in {_span(3600 * false['safe_hours'])} of safe video, "
            f"{false['an_hour']:,.2f} an hour (at 95 % confidence at most {false['an_hour_at_most']:,.2f}); one that "
            f"speaks within {report['tolerance_s']:g} s of an incident is none"
        )
    if report["frame_accuracy"] is not None:
        yield (
            f"frame by frame: accuracy {100 * report['frame_accuracy']:.1f} %, macro-F1 {report['frame_macro_f1']:.3f} "
            f"({report['frames_compared']:,} of {report['frames']:,} frames: those inside a segment of the truth)"
        )


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"
