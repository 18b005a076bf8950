"""Replay: what a film's events are worth against the truth, as small stories with every figure known beforehand."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from bundles import made, pictures
from onnx import TensorProto, helper, numpy_helper

from stillwatch.errors import UserError
from stillwatch.evaluation.replay import incidents, most, read_truth, replay, save, words
from stillwatch.evaluation.report.replay_plot import picture
from stillwatch.inference import runtimes
from stillwatch.inference.detector import Detector, alarm_of, steps
from stillwatch.media import synthetic
from stillwatch.monitor.cameras import source
from stillwatch.recipe import Rule, laid
from stillwatch.rules.alarm import Alarm
from stillwatch.rules.events import Event

LABELS = ("Safe", "Phone", "Yawn")
SAFE = ("Safe",)


class Script:
    """An alarm that says what it was told to, at the first step at or after each moment."""

    def __init__(self, events: Sequence[Event], gauge_name: str = "awareness"):
        self.camera, self.gauge_name, self.gauge = "film", gauge_name, 1.0
        self.waiting = sorted(events, key=lambda event: event.updated)
        self.closed = -1.0
        self.seen: list[tuple[float, Any]] = []

    notes: tuple[str, ...] = ()
    answer = None

    def step(self, now: float, p: Any, status: str = "ok", readings: Any = ()) -> list[Event]:
        self.seen.append((now, p))
        self.gauge = 1 - now / 100
        said = [event for event in self.waiting if event.updated <= now]
        self.waiting = self.waiting[len(said) :]
        return said

    def close(self, now: float) -> list[Event]:
        self.closed = now
        said, self.waiting = self.waiting, []
        return said


def event(id: str, start: float, opened: float, end: float | None, label: str | None = "Phone", **more: Any) -> Event:
    fields: dict[str, Any] = {"kind": "phone", "level": "warn", "state": "opened", "updated": opened, "peak": 0.9}
    return Event(
        id=id, camera="film", label=label, start=start, opened=opened, end=end, words="a phone", **fields | more
    )


def film(seconds: float = 60, fps: float = 2, label: str = "Safe") -> list[tuple[float, Any, Any]]:
    p = np.full(3, 0.1, np.float32)
    p[LABELS.index(label)] = 0.8
    return [(n / fps, p, "ok") for n in range(int(seconds * fps))]


def segment(start: float, end: float, label: str) -> dict[str, Any]:
    return {"start_s": start, "end_s": end, "label": label}


TRUTH = [segment(0, 10, "Safe"), segment(10, 20, "Phone"), segment(20, 30, "Safe"), segment(30, 33, "Yawn")]


# --- the truth


def write(path: Path, raw: Any) -> Path:
    path.write_text(raw if isinstance(raw, str) else json.dumps(raw), encoding="utf-8")
    return path


def test_truth_is_read_in_order_of_time(tmp_path: Path) -> None:
    raw = {"video": "a.mp4", "segments": [{**segment(4, 5.5, "Yawn"), "clip": "x"}, segment(0, 4, "Safe")]}
    assert read_truth(write(tmp_path / "a.json", raw), LABELS) == [segment(0, 4, "Safe"), segment(4, 5.5, "Yawn")]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{", "cannot be read as JSON"),
        ([], "segments: wanted: a list"),
        ({"segments": []}, "segments: wanted: a list"),
        ({"segments": [5]}, r"segments\[0\] = 5: wanted: start_s, end_s and label"),
        ({"segments": [{"start": 0, "end_s": 1, "label": "Safe"}]}, r"\[0\]\.start_s: missing; did you mean 'start'"),
        ({"segments": [segment(True, 1, "Safe")]}, r"segments\[0\]\.start_s = True: wanted: seconds"),
        ({"segments": [segment(0, math.inf, "Safe")]}, r"segments\[0\]\.end_s = inf: wanted: seconds"),
        ({"segments": [segment(3, 3, "Safe")]}, r"segments\[0\]\.end_s = 3: not after start_s = 3"),
        ({"segments": [segment(0, 1, "Yaun")]}, r"segments\[0\]\.label = 'Yaun': unknown; did you mean 'Yawn'"),
        (
            {"segments": [segment(4, 9, "Yawn"), segment(0, 5, "Safe")]},
            r"segments\[0\]\.start_s = 4: overlaps segments\[1\], which ends at 5",
        ),
    ],
)  # fmt: skip
def test_truth_that_is_wrong_is_named(tmp_path: Path, raw: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_truth(write(tmp_path / "t.json", raw), LABELS)
    assert str(caught.value).startswith(f"{tmp_path / 't.json'}: ") and "\n" not in str(caught.value)


def test_truth_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "night.json", {})
    with pytest.raises(UserError, match=r"no such file; did you mean 'night\.json'"):
        read_truth(tmp_path / "nigth.json")


def test_segments_that_touch_are_one_incident() -> None:
    told = [segment(0, 4, "Safe"), segment(4, 6, "Yawn"), segment(6, 8, "Yawn"), segment(8, 9, "Phone")]
    told.append(segment(9.5, 10, "Phone"))
    assert incidents(told, SAFE) == [segment(4, 8, "Yawn"), segment(8, 9, "Phone"), segment(9.5, 10, "Phone")]
    assert incidents(told, SAFE, any_label=True) == [segment(4, 9, "Yawn + Phone"), segment(9.5, 10, "Phone")]


# --- the report


def test_an_event_of_the_label_detects_and_one_elsewhere_is_false() -> None:
    said = [event("a", 11, 13.5, 21), event("b", 40, 42, 44, level="alarm")]
    report = replay(film(), Script(said), TRUTH, LABELS, SAFE)
    phone, yawn = report["incidents"]
    assert (phone["detected"], phone["after_s"], phone["event"], phone["kind"]) == (True, 3.5, "a", "phone")
    assert (yawn["detected"], yawn["after_s"]) == (False, None)
    assert (report["detected"], report["missed"]) == (1, 1)
    assert report["seconds_to_detect"] == {"median": 3.5, "longest": 3.5}
    assert report["by_label"]["Yawn"] == {"incidents": 1, "detected": 0, "median_after_s": None}
    false = report["false_alarms"]
    assert (false["count"], false["by_level"]) == (1, {"notice": 0, "warn": 0, "alarm": 1})
    assert false["safe_hours"] == pytest.approx((60 - 13) / 3600)
    assert false["an_hour"] == pytest.approx(3600 / 47)
    assert [one["outcome"] for one in report["events"]] == ["right", "false"]


def test_an_event_of_another_label_is_no_false_alarm_and_detects_nothing() -> None:
    report = replay(film(), Script([event("a", 31, 32, 33)]), TRUTH, LABELS, SAFE)
    assert [one["outcome"] for one in report["events"]] == ["other label"]
    assert (report["detected"], report["false_alarms"]["count"]) == (0, 0)


def test_an_event_of_no_label_may_be_about_any() -> None:
    said = [event("a", 12, 14, 33, label=None, kind="glances")]
    report = replay(film(), Script(said), TRUTH, LABELS, SAFE)
    assert [(one["label"], one["after_s"]) for one in report["incidents"]] == [("Phone", 4.0), ("Yawn", 0.0)]


def test_evidence_is_about_whatever_is_unsafe() -> None:
    told = [segment(10, 20, "Phone"), segment(20, 26, "Yawn")]
    report = replay(film(), Script([event("a", 19, 22, 27)], "evidence"), told, LABELS, SAFE)
    assert [(one["label"], one["after_s"]) for one in report["incidents"]] == [("Phone + Yawn", 12.0)]


@pytest.mark.parametrize(
    ("start", "opened", "end", "outcome", "detected"),
    [
        (22, 22, 25, "right", True),  # two seconds after the incident's end: truth is cut by hand
        (22.5, 22.5, 25, "false", False),
        (5, 8, 9, "right", True),  # spoke two seconds before it
        (5, 7.5, 15, "false", False),  # spoke of nothing, though it goes on into the incident
        (15, 23, 25, "right", False),  # began in it, but spoke too late
    ],
)
def test_tolerance(start: float, opened: float, end: float, outcome: str, detected: bool) -> None:
    report = replay(film(), Script([event("a", start, opened, end)]), TRUTH[:2], LABELS, SAFE)
    assert report["events"][0]["outcome"] == outcome
    assert report["detected"] == int(detected)


def test_levels_are_kept_with_the_second_of_each() -> None:
    said = [
        event("a", 11, 13, None, level="notice"),
        event("a", 11, 13, None, level="alarm", state="raised", updated=18),
        event("a", 11, 13, 21, level="alarm", state="closed", updated=21.5),
    ]
    report = replay(film(), Script(said), TRUTH, LABELS, SAFE)
    assert len(report["events"]) == 1
    assert report["events"][0]["levels"] == {"notice": 13, "alarm": 18}
    assert report["events"][0]["end"] == 21
    assert (report["incidents"][0]["level"], report["incidents"][0]["alarm_after_s"]) == ("alarm", 8.0)


def test_events_of_the_camera_itself_count_for_nothing() -> None:
    report = replay(film(), Script([event("a", 40, 41, 50, label=None, kind="camera")]), TRUTH, LABELS, SAFE)
    assert report["events"][0]["outcome"] == "camera"
    assert (report["false_alarms"]["count"], report["detected"]) == (0, 0)


def test_the_alarm_is_closed_at_the_last_frame_and_sees_every_step() -> None:
    alarm = Script([event("late", 59, 61, 61)])
    steps = [(0.0, None, "ok"), *film()[1:]]
    report = replay(steps, alarm, None, LABELS, SAFE)
    assert alarm.closed == 59.5 and [now for now, _ in alarm.seen] == [now for now, *_ in steps]
    assert [one["id"] for one in report["events"]] == ["late"]
    assert (report["frames"], report["unanswered"], report["seconds"]) == (120, 1, 60)
    assert report["truth"] is None and report["false_alarms"] is None and "outcome" not in report["events"][0]
    assert report["series"]["p"]["Safe"][:2] == [None, 0.8] and report["series"]["gauge"][2] == 0.99


def test_frame_by_frame_only_where_the_truth_speaks() -> None:
    steps = film(10, 1) + [(now + 10, p, status) for now, p, status in film(10, 1, "Yawn")]
    report = replay(steps, Script([]), [segment(0, 5, "Safe"), segment(5, 15, "Yawn")], LABELS, SAFE)
    assert report["frames_compared"] == 15
    assert report["frame_accuracy"] == pytest.approx(10 / 15)
    assert report["frame_macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_looks_without_a_person_are_counted_and_those_of_an_incident_are_lost() -> None:
    steps: list[Any] = [(at, None, "empty") if 15 <= at < 25 else (at, p, "ok") for at, p, _ in film()]
    report = replay(steps, Script([]), TRUTH, LABELS, SAFE)
    assert (report["skipped"], report["skipped_unsafe"], report["unanswered"]) == (20, 10, 0)
    assert "20 looks were skipped, for nobody was there, 10 of them in an incident" in words(report)
    assert replay(steps, Script([]), None, LABELS, SAFE)["skipped_unsafe"] is None


@pytest.mark.parametrize(("start", "stop"), [(30, 40), (2000, 3500), (0, 9000)])
def test_a_truth_that_does_not_fit_the_film_is_refused(start: float, stop: float) -> None:
    truth = [segment(5, 8, "Yawn"), segment(start, stop, "Yawn")]
    with pytest.raises(UserError, match=rf"segment {start} s to {stop} s \(Yawn\) does not fit a film of 20\.0 s"):
        replay(film(20), Script([]), truth, LABELS, SAFE)


def test_no_safe_moment_gives_no_rate_and_no_frame_is_a_mistake() -> None:
    report = replay(film(10), Script([]), [segment(0, 10, "Yawn")], LABELS, SAFE)
    assert report["false_alarms"]["an_hour"] is None and "no safe moment" in words(report)
    with pytest.raises(UserError, match="the film has no frame"):
        replay([], Script([]), None, LABELS, SAFE)


def test_what_a_short_film_cannot_rule_out() -> None:
    assert most(0) == pytest.approx(-math.log(0.05))  # the rule of three
    assert most(1) == pytest.approx(4.74386, abs=1e-4)  # Garwood 1936: half of chi2(0.95, 4)
    assert most(10) == pytest.approx(16.9622, abs=1e-3)


def test_a_long_film_is_kept_small_with_its_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillwatch.evaluation.replay.KEPT", 100)
    steps = film(2000)
    steps[1234] = (617.0, np.array([0, 1, 0], np.float32), "ok")
    report = replay(steps, Script([]), None, LABELS, SAFE)
    assert len(report["series"]["time_s"]) == 100
    assert report["series"]["time_s"][report["series"]["p"]["Phone"].index(1.0)] == 617.0


def test_a_real_alarm_over_a_fight(tmp_path: Path) -> None:
    """A fight of six seconds between long calm: the evidence rule speaks in it, once, and of nothing else."""
    labels, told = ("Calm", "Fight"), [segment(0, 20, "Calm"), segment(20, 26, "Fight"), segment(26, 60, "Calm")]
    p = {True: np.array([0.05, 0.95], np.float32), False: np.array([0.95, 0.05], np.float32)}
    steps: list[Any] = [(n / 10, p[200 <= n < 260], "ok") for n in range(600)]
    report = replay(steps, Alarm("door", labels, labels[:1], Rule(profile="cctv")), told, labels, labels[:1])
    assert (report["gauge"], report["detected"], report["missed"]) == ("evidence", 1, 0)
    assert 0 < report["seconds_to_detect"]["longest"] < 6
    assert report["false_alarms"]["count"] == 0 and report["frame_accuracy"] == 1.0
    assert {event["outcome"] for event in report["events"]} == {"right"}
    assert all(event["end"] is not None for event in report["events"])
    assert max(report["series"]["gauge"]) > 0.5 > report["series"]["gauge"][0]
    assert len(save(report, tmp_path)) == 2


def movement_net(path: Path, shape: tuple[int, ...], from_: float) -> Path:
    """Sees the largest change between a look's two moments, in blocks of 4×4; its logit is 0 where that is `from_`."""
    constants = {"old": np.array([0]), "new": np.array([1]), "channels": np.array([4]), "places": np.array([1, 2, 3]),
                 "w": np.array([[-0.5, 0.5]], np.float32), "b": np.array([from_, -from_], np.float32) / 2}  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Cast", ["frames"], ["x"], to=TensorProto.FLOAT),
        node("ReduceMean", ["x", "channels"], ["gray"], keepdims=0),
        node("Gather", ["gray", "old"], ["before"], axis=1),
        node("Gather", ["gray", "new"], ["now"], axis=1),
        node("Sub", ["now", "before"], ["change"]),
        node("AveragePool", ["change"], ["blocks"], kernel_shape=[4, 4], strides=[4, 4]),
        node("Abs", ["blocks"], ["moved"]),
        node("ReduceMax", ["moved", "places"], ["most"], keepdims=1),
        node("Flatten", ["most"], ["feature"]),
        node("Gemm", ["feature", "w", "b"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    ports = [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", *shape]),
             helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])]  # fmt: skip
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "movement", ports[:1], ports[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_evidence_is_tuned_on_looks(tmp_path: Path) -> None:
    """toy://meeting, whose labels no single picture tells, before a net that looks 0.2 s back."""
    shape = (2, 48, 64, 3)
    frames, file = pictures(4, shape), movement_net(tmp_path / "m.onnx", shape, 12.0)
    golden = {"model.onnx": runtimes.open(file, "onnxruntime", shape)(frames)}
    bundle = made(tmp_path, {"model.onnx": file}, golden, frames=frames, look=(0.2, 0.0))
    detector, film = Detector(bundle), list(source.frames("toy://meeting?seed=1&seconds=30&fps=5&size=48x64"))
    names = dict(zip(synthetic.LABELS["meeting"], detector.labels, strict=True))
    told: Any = [one | {"label": names[one["label"]]} for one in synthetic.truth("meeting", 30, 1)]

    def tried(*overrides: str) -> tuple[int, int, float | None]:
        alarm = alarm_of(bundle, "meeting", laid(Rule, {"profile": "cctv"}, overrides, "rule"))
        report = replay(steps(detector, film), alarm, told, detector.labels, detector.safe)
        wait = report["seconds_to_detect"]
        return report["missed"], report["false_alarms"]["count"], wait and wait["longest"]

    (missed, false, wait), key = tried(), "indicators.danger."
    assert (missed, false) == (0, 0) and wait and 1 <= wait < 1.5  # one event: it outlasts the calm between pushes
    quick = tried(f"{key}rise=1.5")
    assert quick[:2] == (0, 0) and quick[2] is not None and quick[2] < wait
    apart = tried(f"{key}fall=1", f"{key}merge=0", f"{key}cooldown=0")
    assert apart[:2] == (1, 0)  # each push an event of its own, and the last, which is cut off, none
    assert tried("threshold=0.01")[1] == 1 and tried(f"{key}rise=30") == (3, 0, None)


# --- for reading and looking


def test_words_say_it_all() -> None:
    said = [event("a", 11, 13.5, 21), event("b", 40, 42, None)]
    text = words(replay(film(), Script(said), TRUTH, LABELS, SAFE))
    assert text.splitlines()[0] == "film: 60.0 s, 120 frames, 2.0 a second"
    assert "2 incidents: 1 detected, 1 missed" in text
    assert "10.0 s to 20.0 s  Phone (10.0 s): detected after 3.5 s (phone, warn)" in text
    assert "30.0 s to 33.0 s  Yawn (3.0 s): MISSED" in text
    assert "40.0 s to goes on: a phone  [FALSE ALARM]" in text
    assert "false alarms: 1 in 47.0 s of safe video, 76.60 an hour (at 95 % confidence at most 363.36)" in text
    assert max(map(len, text.splitlines())) <= 160
    assert words(replay(film(), Script([]), None, LABELS, SAFE)).splitlines() == [
        "film: 60.0 s, 120 frames, 2.0 a second", "no event",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("truth", [TRUTH, None])
@pytest.mark.parametrize("said", [[], [event("a", 11, 13.5, 21), event("b", 40, 42, None, kind="yawns")]])
def test_the_picture_is_one(tmp_path: Path, truth: Any, said: list[Event]) -> None:
    report = replay(film(), Script(said), truth, LABELS, SAFE)
    json_path, png = save(report, tmp_path / "out")
    assert json.loads(json_path.read_text()) == report
    image = cv2.imdecode(np.frombuffer(png.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[1] >= 1200 and image.shape[0] >= 500
    assert png.read_bytes() == picture(report)  # the same report, the same bytes


def test_a_picture_of_one_frame_or_of_hours() -> None:
    for looks in (film(1, 1), film(4 * 3600, 0.1)):
        assert len(picture(replay(looks, Script([]), None, LABELS, SAFE))) > 5000
