"""Signs of the face: little stories at 10, 15, 25 and 30 readings a second, with asserted seconds."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from stillwatch.media.points import Signals
from stillwatch.recipe import Rule
from stillwatch.rules.alarm import Alarm
from stillwatch.rules.events import Event
from stillwatch.rules.normal import Deviation
from stillwatch.rules.signs import ON, Reading, signs

LABELS = ["DangerousDriving", "Distracted", "Drinking", "SafeDriving", "SleepyDriving", "Yawn"]
_, AWAY, _, SAFE, SLEEPY, YAWN = LABELS
RATES = [10, 15, 25, 30]
OPEN = Signals(0.27, 0.27, 0.05, -5.0, -9.0, 0.0, 0.95)
SHUT = OPEN._replace(left_eye=0.12, right_eye=0.12)
TURNED, NODDED = OPEN._replace(yaw=35.0), SHUT._replace(pitch=20.0)
WIDE = OPEN._replace(mouth=0.7)
Act = tuple[float, Signals | None]


def sure_of(label: str) -> np.ndarray:
    return np.where(np.array(LABELS) == label, 0.95, 0.01)


def readings(acts: list[Act], rate: float, start: float = 0.0) -> Iterator[Reading]:
    ends = np.cumsum([seconds for seconds, _ in acts])
    for number in range(round(ends[-1] * rate)):
        # between two frames, so that no act ends on one
        place = int(np.searchsorted(ends, number / rate + 1e-3, side="right"))
        yield Reading(start + number / rate, acts[min(place, len(acts) - 1)][1])


def story(*acts: Act, rate: float, label: str = SAFE, alarm: Alarm | None = None, **rule: Any) -> list[Event]:
    """The face is read `rate` times a second, the net answers at most ten times, always with the same label."""
    alarm = alarm or Alarm("cab", LABELS, [SAFE], Rule(profile="driver", **rule), salt="s")
    said, waiting, every = list[Event](), list[Reading](), max(1, round(rate / 10))
    for number, reading in enumerate(readings(list(acts), rate)):
        waiting.append(reading)
        if number % every == 0:
            said += alarm.step(reading.seconds, sure_of(label), "ok", waiting)
            waiting = []
    return said


def opened(said: list[Event], kind: str) -> dict[str, float]:
    """When each level of that kind was first said."""
    levels: dict[str, float] = {}
    for event in said:
        if event.kind == kind and event.state != "closed":
            levels.setdefault(event.level, event.updated)
    return levels


def near(second: float, rate: float) -> Any:
    """From half a reading before to an answer (a tenth of a second) and a reading after it."""
    return pytest.approx(second + 0.05, abs=0.06 + 2 / rate)


@pytest.mark.parametrize("rate", RATES)
def test_an_alert_driver_hears_nothing(rate: int) -> None:
    blink = [(3.8, OPEN), (0.2, SHUT)]
    mirror = [(5.0, OPEN), (0.4, TURNED), (4.0, OPEN), (0.1, SHUT)]
    assert story(*blink * 15, *mirror * 6, (2, OPEN), rate=rate) == []


@pytest.mark.parametrize("rate", RATES)
def test_twenty_closures_of_three_tenths_in_a_minute_are_told(rate: int) -> None:
    said = story((5, OPEN), *[(2.7, OPEN), (0.3, SHUT)] * 20, (5, OPEN), rate=rate)
    assert opened(said, "long-blinks") == {"notice": near(5 + 8 * 3, rate), "warn": near(5 + 15 * 3, rate)}
    assert not opened(said, "sleep")


@pytest.mark.parametrize("rate", RATES)
def test_glances_of_half_a_second_for_a_third_of_the_time_are_told(rate: int) -> None:
    said = story((5, OPEN), *[(1.0, OPEN), (0.5, TURNED)] * 40, (5, OPEN), rate=rate)
    assert opened(said, "short-glances") == {"notice": near(5 + 15, rate), "warn": near(5 + 22.5, rate)}
    assert story((5, OPEN), *[(1.0, OPEN), (0.3, TURNED)] * 20, rate=rate) == [], "shorter is no glance"


@pytest.mark.parametrize("rate", RATES)
def test_shut_eyes_are_microsleep_after_one_and_sleep_after_three_seconds_whatever_the_net_says(rate: int) -> None:
    said = story((10, OPEN), (8, SHUT), (5, OPEN), rate=rate)
    assert opened(said, "sleep") == {"notice": near(11, rate), "warn": near(13, rate), "alarm": near(16, rate)}
    first = next(event for event in said if event.kind == "sleep")
    assert (first.start, first.label) == (near(10, rate), SLEEPY)
    assert first.words.startswith("microsleep: eyes shut for 1.")
    assert not opened(said, "long-blinks"), "a closure that long is no blink"


@pytest.mark.parametrize("rate", RATES)
def test_open_eyes_overrule_a_net_that_sees_sleep_and_a_lost_face_does_not(rate: int) -> None:
    assert not opened(story((30, OPEN), rate=rate, label=SLEEPY), "sleep")
    said = story((10, OPEN), (8, None), rate=rate, label=SLEEPY)
    assert opened(said, "sleep")["notice"] == near(11, rate), "then the net speaks"
    net = story((10, OPEN), rate=rate, label=SLEEPY, indicators={"sleep": {"wins": "net"}})
    assert opened(net, "sleep")["notice"] == near(1, rate)


@pytest.mark.parametrize("rate", RATES)
def test_no_face_is_a_state_of_its_own_and_shuts_no_eye(rate: int) -> None:
    said = story((10, OPEN), (70, None), (10, OPEN), rate=rate)
    assert {event.kind for event in said} == {"no-face"}
    assert opened(said, "no-face") == {"notice": near(20, rate), "warn": near(70, rate)}
    assert said[-1].state == "closed" and said[-1].end == near(80, rate)


@pytest.mark.parametrize("rate", RATES)
def test_perclos_is_the_share_of_a_minute_with_lids_four_fifths_down(rate: int) -> None:
    acts = [(10, OPEN), *[(4.2, OPEN), (0.8, SHUT)] * 12]
    assert opened(story(*acts, rate=rate), "perclos") == {
        "notice": pytest.approx(45, abs=0.5),
        "warn": pytest.approx(69, abs=3),
    }
    drooping = OPEN._replace(left_eye=0.22, right_eye=0.22)  # two thirds down is not shut
    assert not opened(story((10, OPEN), *[(4.2, OPEN), (0.8, drooping)] * 12, rate=rate), "perclos")


@pytest.mark.parametrize("rate", RATES)
def test_three_yawns_a_minute_by_the_mouth_alone_or_by_the_net_alone(rate: int) -> None:
    said = story((5, OPEN), *[(8, OPEN), (3, WIDE)] * 3, (5, OPEN), rate=rate)
    assert opened(said, "yawns") == {"notice": near(5 + 2 * 11 + 8 + 1, rate)}
    said = story((5, OPEN), *[(1, OPEN), (0.5, WIDE)] * 20, rate=rate)
    assert not opened(said, "yawns"), "a word is no yawn"


def test_eyes_shut_in_a_yawn_are_no_sleep_and_a_mouth_that_stays_open_explains_nothing() -> None:
    yawning = WIDE._replace(left_eye=0.12, right_eye=0.12)
    assert not opened(story((10, OPEN), (6, yawning), (5, OPEN), rate=25), "sleep")
    assert opened(story((10, OPEN), (12, yawning), (5, OPEN), rate=25), "sleep")["notice"] == near(10 + 8 + 1, 25)


@pytest.mark.parametrize("rate", RATES)
def test_a_turned_head_is_distraction_after_three_seconds(rate: int) -> None:
    said = story((10, OPEN), (6, TURNED), (5, OPEN), rate=rate)
    assert opened(said, "distraction") == {"notice": near(13, rate), "warn": near(15, rate)}
    assert next(one for one in said).words.startswith("distraction: head turned away for 3.")


def test_a_camera_at_the_side_accuses_nobody_while_the_net_is_calm() -> None:
    beside = OPEN._replace(yaw=50.0)
    assert story((60, beside), rate=25) == []
    said = story((60, beside), (6, OPEN), (5, beside), rate=25)
    assert opened(said, "distraction")["notice"] == near(63, 25), "once it is known, ahead is away"
    assert opened(story((5, TURNED), rate=25, label=AWAY), "distraction")["notice"] == near(3, 25)


@pytest.mark.parametrize("rate", RATES)
def test_a_head_that_drops_with_shut_eyes_is_told_and_one_that_reads_is_not(rate: int) -> None:
    said = story((10, OPEN), (0.7, NODDED), (5, OPEN), rate=rate)
    assert opened(said, "head-drop") == {"notice": near(10.7, rate)}
    assert not opened(story((10, OPEN), (0.7, OPEN._replace(pitch=20.0)), (5, OPEN), rate=rate), "head-drop")


@pytest.mark.parametrize("rate", RATES)
def test_many_blinks_are_noticed_where_the_rate_can_see_them(rate: int) -> None:
    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile="driver"))
    said = story((2, OPEN), *[(0.85, OPEN), (0.15, SHUT)] * 50, rate=rate, alarm=alarm)
    if rate > 13:
        assert opened(said, "blinks") == {"notice": near(42, rate)}
        assert alarm.notes == []
    else:
        assert not opened(said, "blinks")
        assert alarm.notes == ["blinks is off: the face is read 10.0 times a second, 13 are needed"]


def test_a_rate_too_low_for_a_sign_switches_it_off_and_says_so() -> None:
    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile="driver"))
    said = story((5, OPEN), *[(1.0, OPEN), (0.5, TURNED)] * 40, (5, SHUT), rate=4, alarm=alarm)
    assert {note.split()[0] for note in alarm.notes} == {"short-glances", "blinks", "long-blinks", "head-drop"}
    assert not opened(said, "short-glances") and not opened(said, "long-blinks")
    assert opened(said, "sleep"), "a second is long enough for four readings"


def test_readings_that_stop_end_what_they_opened() -> None:
    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile="driver"))
    story((5, OPEN), *[(2.7, OPEN), (0.3, SHUT)] * 10, rate=25, alarm=alarm)
    assert [event.kind for event in alarm.open] == ["long-blinks"]
    said = [event for tick in range(30) for event in alarm.step(35 + tick / 10, sure_of(SAFE))]
    assert [(event.kind, event.state) for event in said] == [("long-blinks", "closed")]


def test_what_is_known_of_a_face_is_its_limits() -> None:
    usual = Deviation(0.0, 0.0, 0.0, 0.0, 0.0, ())
    assert signs(usual)[:4] == (0, 0, 0, 0)
    at = {"shut": {"shut": 0.8}, "away": {"yaw": -25.0}, "yawn": {"mouth": 0.3}, "drop": {"pitch": 20.0, "shut": 0.8}}
    for sign, changes in at.items():
        assert getattr(signs(usual._replace(**changes)), sign) == pytest.approx(ON)
    assert signs(usual._replace(pitch=-20.0)).away == signs(usual._replace(pitch=15.0)).away == pytest.approx(ON)
