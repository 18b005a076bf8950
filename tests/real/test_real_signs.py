"""The face reader on real films: eyes that shut, a head that turns, yawns, and a camera at the side."""

import os
from pathlib import Path

import numpy as np
import pytest

from stillwatch.inference.face_reader import FaceReader
from stillwatch.media import weights
from stillwatch.monitor.cameras import source
from stillwatch.recipe import Rule
from stillwatch.rules.alarm import Alarm
from stillwatch.rules.events import Event
from stillwatch.rules.signs import ON, Face, Reading

pytestmark = pytest.mark.real
FILMS = Path(os.environ.get("STILLWATCH_DATA", "")) / "videos"
WEIGHTS = os.environ.get("STILLWATCH_WEIGHTS", "")
LABELS = ["DangerousDriving", "Distracted", "Drinking", "SafeDriving", "SleepyDriving", "Yawn"]
CALM = np.where(np.array(LABELS) == "SafeDriving", 0.95, 0.01)


def readings(name: str, monkeypatch: pytest.MonkeyPatch) -> list[Reading]:
    if not (FILMS / name).is_file() or not (Path(WEIGHTS) / weights.POINTS).is_file():
        pytest.skip(f"STILLWATCH_DATA has no videos/{name}, or STILLWATCH_WEIGHTS no {weights.POINTS}")
    monkeypatch.setenv("STILLWATCH_WEIGHTS", WEIGHTS)
    read, found = FaceReader(), []
    for seconds, image in source.frames(str(FILMS / name)):
        face = read(image, seconds)
        found.append(Reading(seconds, face and face.signals))
    assert all(one.signals for one in found), "there is a face in every picture"
    return found


def spells(found: list[Reading], sign: str) -> list[tuple[float, float]]:
    """From when to when it was seen."""
    face, spans, before = Face(), list[list[float]](), False
    for one in found:
        said = face.step(one)
        on = said is not None and getattr(said, sign) >= ON
        if on and not before:
            spans.append([one.seconds, one.seconds])
        elif on:
            spans[-1][1] = one.seconds
        before = on
    return [(start, end) for start, end in spans]


def events(found: list[Reading], p: np.ndarray = CALM) -> list[Event]:
    alarm = Alarm("film", LABELS, ["SafeDriving"], Rule(profile="driver"))
    said = [event for one in found for event in alarm.step(one.seconds, p, "ok", [one])]
    return said + alarm.close(found[-1].seconds)


def test_eyes_that_shut_are_blinks_then_microsleep_then_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    found = readings("incluit_video2_eyesclosed.mp4", monkeypatch)
    starts = [start for start, _ in spells(found, "shut")]
    assert starts[:4] == pytest.approx([0.75, 2.0, 3.2, 4.45], abs=0.11)
    sleep = [event for event in events(found) if event.kind == "sleep"]
    assert [(event.level, event.state) for event in sleep][:2] == [("notice", "opened"), ("warn", "raised")]
    assert [event.updated for event in sleep[:2]] == pytest.approx([5.45, 7.45], abs=0.2)
    assert sleep[-1].end == pytest.approx(8.85, abs=0.2)


def test_a_head_that_turns_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    found = readings("incluit_video3_headturn.mp4", monkeypatch)
    ((start, end),) = spells(found, "away")
    assert (start, end) == pytest.approx((0.7, 3.75), abs=0.15)
    assert spells(found, "shut") == [], "a head that turns shuts no eye"


def test_three_yawns(monkeypatch: pytest.MonkeyPatch) -> None:
    found = readings("incluit_yawning_from_gif.mp4", monkeypatch)
    starts = [start for start, _ in spells(found, "yawn")]
    assert starts == pytest.approx([0.28, 1.44, 3.04], abs=0.1)


def test_a_phone_is_no_sign_of_the_face_and_a_camera_at_the_side_accuses_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = readings("incluit_driver_actions1_640x360_h264.mp4", monkeypatch)
    assert events(found) == []
    phone = np.where(np.array(LABELS) == "DangerousDriving", 0.95, 0.01)
    assert "phone" in {event.kind for event in events(found, phone)}, "the net's own signs go on beside the face's"
