"""Alarms: little stories with asserted seconds, and what holds in every story."""

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillwatch.recipe import Rule
from stillwatch.rules.alarm import Alarm
from stillwatch.rules.events import LEVELS, Event

LABELS = ["DangerousDriving", "Distracted", "Drinking", "SafeDriving", "SleepyDriving", "Yawn"]
PHONE, AWAY, DRINK, SAFE, SLEEPY, YAWN = LABELS
CALM, FIGHT = "NonViolence", "Violence"
START = 1000.0
LAG = 0.31  # s that the smoothing of 0.25 s may add, and a frame at 10 a second


def p_of(act: Any, labels: list[str]) -> Any:
    """A label -> probabilities that are sure of it; "unsure" -> none is likely; numbers are themselves."""
    if isinstance(act, str) and act == "unsure":
        return np.full(len(labels), 1 / len(labels))
    if isinstance(act, str):
        return np.where(np.array(labels) == act, 0.95, 0.05 / (len(labels) - 1))
    return act


def frames(acts: Any, fps: float, labels: list[str], start: float = START) -> Iterator[tuple[float, Any, str]]:
    """(seconds, what is seen) one after the other, as (time, p, status) at `fps`."""
    whole = sum(seconds for seconds, _ in acts)
    ends = np.cumsum([seconds for seconds, _ in acts])
    for number in range(round(whole * fps)):
        act = acts[int(np.searchsorted(ends, number / fps + 1e-9, side="right"))][1]
        trouble = act if isinstance(act, str) and act in ("black", "frozen", "lost", "empty") else "ok"
        yield start + number / fps, None if trouble != "ok" else p_of(act, labels), trouble


def story(*acts: Any, fps: float = 10.0, alarm: Alarm | None = None, **rule: Any) -> list[Event]:
    """What is said of a driver who does this for so many seconds, then that; seconds count from the beginning."""
    alarm = alarm or Alarm("cab", LABELS, [SAFE], Rule(profile="driver", **rule), salt="s")
    said: list[Event] = []
    for now, p, status in frames(acts, fps, list(alarm.labels)):
        said += alarm.step(now, p, status)  # type: ignore[arg-type]
    said += alarm.close(START + sum(seconds for seconds, _ in acts))
    return [event.shifted(-START) for event in said]


def street(*acts: Any, fps: float = 10.0, threshold: float | None = 0.8, **rule: Any) -> list[Event]:
    """The same for a camera in a street."""
    alarm = Alarm("gate", [CALM, FIGHT], [CALM], Rule(profile="cctv", **rule), threshold)
    return story(*acts, fps=fps, alarm=alarm)


def told(said: list[Event], *kinds: str) -> list[tuple[str, str, str]]:
    return [(one.kind, one.level, one.state) for one in said if not kinds or one.kind in kinds]


def seconds(said: list[Event], kind: str) -> dict[str, float]:
    """When each level of the only event of that kind was first said."""
    mine = [one for one in said if one.kind == kind]
    assert len({one.id for one in mine}) == 1, f"{len({one.id for one in mine})} events of {kind}"
    first: dict[str, float] = {}
    for one in mine:
        first.setdefault(one.level, one.updated)
    return first


def near(second: float, late: float = LAG) -> Any:
    """From a frame (at 10 a second) before that second to `late` seconds after it."""
    return pytest.approx(second + (late - 0.1) / 2, abs=(late + 0.1) / 2 + 1e-6)


# ---- looking away


def test_an_attentive_driver_hears_nothing() -> None:
    assert story((120, SAFE)) == []


def test_a_glance_of_two_seconds_is_nobodys_business() -> None:
    assert story((10, SAFE), (2, AWAY), (10, SAFE), (2, AWAY), (10, SAFE)) == []


def test_looking_away_is_noticed_after_3_warned_after_5_and_an_alarm_after_11_seconds() -> None:
    said = story((10, SAFE), (14, AWAY), (10, SAFE))
    assert told(said) == [
        ("distraction", "notice", "opened"),
        ("distraction", "warn", "raised"),
        ("distraction", "alarm", "raised"),
        ("distraction", "alarm", "closed"),
    ]
    assert seconds(said, "distraction") == {"notice": near(13), "warn": near(15), "alarm": near(21)}
    last = said[-1]
    assert (last.start, last.opened, last.end) == (near(10), near(13), near(24))
    assert last.updated == near(24 + 4.07, 0.5)  # 11/3.75 · ln 4 s: from none to all of the awareness
    assert (last.camera, last.label, last.id) == ("cab", AWAY, "cab-s-1")
    assert 0.9 < last.peak <= 0.95
    assert last.words == "distraction: Distracted for 11.0 s, awareness 0 %; over after 13.9 s"


def test_awareness_falls_with_the_seconds_and_comes_back_as_openpilots_does() -> None:
    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile="driver", smooth=0))
    assert (alarm.gauge, alarm.gauge_name) == (1.0, "awareness")
    for tick in range(56):
        alarm.step(tick / 10, p_of(AWAY, LABELS))
    assert alarm.gauge == pytest.approx(1 - 5.5 / 11)
    a = alarm.gauge
    for tick in range(56, 66):
        alarm.step(tick / 10, p_of(SAFE, LABELS))
    for _ in range(9 * 100):  # 0.9 s of openpilot's own steps; between the last look away and the first back: nothing
        a = min(1.0, a + ((5 - 1.25) * (1 - a) + 1.25) * 0.001 / 11)
    assert alarm.gauge == pytest.approx(a, abs=1e-3)


def test_a_look_back_too_short_to_recover_keeps_it_one_event() -> None:
    said = story((5, SAFE), (6, AWAY), (1, SAFE), (6, AWAY), (10, SAFE))
    assert told(said)[0] == ("distraction", "notice", "opened")
    assert [one.state for one in said].count("opened") == 1


def test_repeated_glances_are_warned_about_when_they_add_up_to_10_seconds() -> None:
    acts = [(10, SAFE), *[(1.5, AWAY), (1.5, SAFE)] * 8, (10, SAFE)]
    said = story(*acts)
    assert told(said) == [("glances", "warn", "opened"), ("glances", "warn", "closed")]
    assert said[0].opened == near(29)  # six glances are 9 s; the seventh begins at 28 s
    assert said[0].start == near(10)
    assert said[1].end == near(32.5)


def test_two_seconds_of_looking_ahead_start_the_glances_anew() -> None:
    assert story((10, SAFE), *[(1.5, AWAY), (2.5, SAFE)] * 12) == []


def test_one_long_look_is_not_also_repeated_glances() -> None:
    assert {one.kind for one in story((5, SAFE), (14, AWAY), (5, SAFE))} == {"distraction"}


def test_an_awareness_that_nobody_can_judge_any_more_is_full_again() -> None:
    said = story((5, SAFE), (6, AWAY), (30, DRINK))
    assert [one.updated for one in said if one.kind == "distraction"][-1] == near(21, 0.5)


# ---- eyes


def test_a_long_blink_is_nothing() -> None:
    assert story((10, SAFE), *[(0.7, SLEEPY), (12, SAFE)] * 5) == []


def test_a_microsleep_is_noticed() -> None:
    said = story((60, SAFE), (1.8, SLEEPY), (60, SAFE))
    assert told(said) == [("sleep", "notice", "opened"), ("sleep", "notice", "closed")]
    assert (said[0].start, said[0].opened, said[1].end) == (near(60), near(61), near(61.8))
    assert said[0].words.startswith("microsleep: ")


def test_sleep_is_one_incident_that_gets_worse() -> None:
    said = story((60, SAFE), (8, SLEEPY), (3.5, SAFE))
    assert seconds(said, "sleep") == {"notice": near(61), "warn": near(63), "alarm": near(66)}
    assert [one.words.split(":")[0] for one in said[:3]] == ["microsleep", "asleep", "unresponsive"]


def test_a_blink_in_the_middle_of_sleep_does_not_wake() -> None:
    said = story((60, SAFE), (2, SLEEPY), (0.3, SAFE), (2, SLEEPY), (5, SAFE))
    assert seconds(said, "sleep")["warn"] == near(63.3, 0.5)  # 3 s of closed eyes: the blink does not count


def test_heavy_eyelids_are_noticed_at_10_and_warned_about_at_15_per_cent_of_a_minute() -> None:
    heavy = [(0.9, SLEEPY), (4.1, SAFE)] * 30  # 18 %, and each too short for a microsleep
    said = story((60, SAFE), *heavy, (90, SAFE))
    assert told(said) == [
        ("perclos", "notice", "opened"),
        ("perclos", "warn", "raised"),
        ("perclos", "warn", "closed"),
    ]
    # 6 s of a minute are reached with the seventh time, at 90 s; 9 s with the tenth, at 105 s
    assert seconds(said, "perclos") == {"notice": near(90.6), "warn": near(105.9)}
    assert 0.15 <= said[-1].peak <= 0.2
    assert "%" in said[0].words


def test_perclos_waits_until_three_quarters_of_a_minute_were_seen() -> None:
    said = story((0.5, SAFE), *[(0.9, SLEEPY), (3, SAFE)] * 20)
    assert said[0].kind == "perclos"
    assert said[0].opened == near(45)


def test_a_yawn_is_nothing_and_three_in_a_minute_are_noticed() -> None:
    assert story((10, SAFE), (5, YAWN), (60, SAFE), (5, YAWN), (60, SAFE)) == []
    said = story((10, SAFE), *[(4, YAWN), (6, SAFE)] * 3, (90, SAFE))
    assert told(said) == [("yawns", "notice", "opened"), ("yawns", "notice", "closed")]
    assert (said[0].opened, said[0].start) == (near(31), near(10))
    assert said[1].updated == near(70, 0.5)  # the first of them is a minute old


def test_a_yawner_is_warned_at_the_fifth() -> None:
    said = story((10, SAFE), *[(3, YAWN), (5, SAFE)] * 6)
    assert seconds(said, "yawns") == {"notice": near(27), "warn": near(43)}


def test_a_laugh_is_no_yawn() -> None:
    assert story((10, SAFE), *[(0.7, YAWN), (5, SAFE)] * 10) == []


# ---- hands


def test_a_phone_user_is_told_at_3_5_and_11_seconds() -> None:
    said = story((10, SAFE), (20, PHONE), (10, SAFE))
    assert {one.kind for one in said} == {"phone"}
    assert seconds(said, "phone") == {"notice": near(13), "warn": near(15), "alarm": near(21)}
    assert said[-1].end == near(30)
    assert said[-1].updated == near(35, 0.6)  # the merge gap
    assert said[-1].label == PHONE


def test_a_phone_put_down_and_taken_up_again_is_one_event() -> None:
    said = story((10, SAFE), (6, PHONE), (4, SAFE), (6, PHONE), (10, SAFE))
    assert [one.state for one in said] == ["opened", "raised", "closed"]
    assert said[-1].end == near(26)


def test_a_sip_is_nothing_and_a_long_drink_a_notice() -> None:
    assert story((5, SAFE), (2, DRINK), (5, SAFE)) == []
    said = story((5, SAFE), (8, DRINK), (10, SAFE))
    assert told(said) == [("drinking", "notice", "opened"), ("drinking", "notice", "closed")]


def test_what_was_just_said_is_not_said_again_unless_it_gets_worse() -> None:
    twice = [(5, SAFE), (4, DRINK), (12, SAFE), (4, DRINK), (10, SAFE)]
    assert [one.state for one in story(*twice)] == ["opened", "closed"]
    assert [one.state for one in story(*twice, cooldown=0)] == ["opened", "closed"] * 2
    worse = story((5, SAFE), (4, DRINK), (12, SAFE), (12, DRINK), (10, SAFE))
    assert told(worse) == [
        ("drinking", "notice", "opened"), ("drinking", "notice", "closed"),
        ("drinking", "warn", "opened"), ("drinking", "warn", "closed"),
    ]  # fmt: skip
    assert worse[2].opened == near(31)


def test_what_outlasts_the_silence_is_said_when_the_silence_ends() -> None:
    said = story((5, SAFE), (4, DRINK), (12, SAFE), (60, DRINK), indicators={"drinking": {"after": 3}})
    assert [one.opened for one in said if one.state == "opened"] == [near(8), near(39)]


# ---- a model that wavers


def test_a_flicker_between_safe_and_distracted_says_nothing() -> None:
    assert story((10, SAFE), *[(0.1, AWAY), (0.1, SAFE)] * 150) == []


def test_a_flicker_between_two_classes_is_no_storm_of_events() -> None:
    said = story((10, SAFE), *[(0.1, AWAY), (0.1, PHONE)] * 100, (10, SAFE))
    assert [one.state for one in said].count("opened") <= 1


def test_changing_every_second_between_phone_and_looking_away_is_found() -> None:
    said = story((10, SAFE), *[(1, AWAY), (1, PHONE)] * 10, (10, SAFE))
    assert [one.kind for one in said if one.state == "opened"] == ["distraction"]


def test_an_unsure_model_accuses_nobody_and_says_so_after_10_seconds() -> None:
    said = story((10, SAFE), (70, "unsure"), (10, SAFE))
    assert told(said) == [("unsure", "notice", "opened"), ("unsure", "warn", "raised"), ("unsure", "warn", "closed")]
    assert seconds(said, "unsure") == {"notice": near(20), "warn": near(70)}
    assert said[0].label is None
    leaning = np.array([0.02, 0.48, 0.02, 0.44, 0.02, 0.02])  # Distracted, if anything
    assert {one.kind for one in story((10, SAFE), (30, leaning))} == {"unsure"}


def test_an_unsure_minute_in_the_middle_of_distraction_adds_nothing_to_it() -> None:
    said = story((10, SAFE), (2.5, AWAY), (5, "unsure"), (2.5, AWAY), (1, SAFE))
    assert seconds(said, "distraction") == {"notice": near(18, 0.7)}  # 2.5 s before, the rest after


def test_one_false_frame_is_nothing_at_any_rate() -> None:
    for fps in (1, 2, 5, 10, 25):
        assert story((20, SAFE), (1 / fps, SLEEPY), (20, SAFE), (1 / fps, AWAY), (20, SAFE), fps=fps) == []
        assert street((20, CALM), (1 / fps, FIGHT), (20, CALM), fps=fps) == []


@pytest.mark.parametrize("fps", [1.0, 2.0, 5.0, 60.0])
def test_a_low_frame_rate_gives_the_same_seconds(fps: float) -> None:
    late = LAG + 1 / fps
    said = story((10, SAFE), (14, AWAY), (20, SAFE), (14, PHONE), (40, SAFE), (8, SLEEPY), (20, SAFE), fps=fps)
    assert seconds(said, "distraction") == {"notice": near(13, late), "warn": near(15, late), "alarm": near(21, late)}
    assert seconds(said, "phone") == {"notice": near(47, late), "warn": near(49, late), "alarm": near(55, late)}
    assert seconds(said, "sleep") == {"notice": near(99, late), "warn": near(101, late), "alarm": near(104, late)}
    fight = street((10, CALM), (8, FIGHT), (20, CALM), fps=fps)
    assert seconds(fight, "violence")["notice"] == near(11.2, late)
    assert seconds(fight, "violence")["alarm"] == near(13, late)


def test_frames_at_uneven_times_give_the_same_seconds() -> None:
    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile="driver"))
    r, now, said = np.random.default_rng(3), 0.0, []
    while now < 40:
        said += alarm.step(now, p_of(AWAY if 10 <= now < 24 else SAFE, LABELS))
        now += float(r.choice([1 / 60, 0.03, 0.2, 1.0]))
    assert seconds(said, "distraction") == {"notice": near(13, 2), "warn": near(15, 2), "alarm": near(21, 2)}


# ---- the camera


def test_a_frozen_camera_is_told_and_accuses_nobody() -> None:
    said = story((10, SAFE), (2.5, AWAY), (15, "frozen"), (2.5, AWAY), (10, SAFE))
    assert {one.kind for one in said} == {"camera"}  # 2.5 s before and after do not add up
    assert seconds(said, "camera") == {"notice": near(14.5), "warn": near(22.5)}
    assert "frozen" in said[0].words
    assert said[0].label is None
    assert said[-1].end == near(27.5)


def test_a_covered_lens_ends_what_was_open() -> None:
    said = story((10, SAFE), (4, AWAY), (6, "black"), (10, SAFE))
    assert told(said) == [
        ("distraction", "notice", "opened"), ("distraction", "notice", "closed"),
        ("camera", "notice", "opened"), ("camera", "notice", "closed"),
    ]  # fmt: skip
    assert (said[1].end, said[1].updated) == (near(14), near(14))
    assert "covered" in said[2].words


def test_a_stream_lost_in_mid_distraction_proves_nothing() -> None:
    said = story((10, SAFE), (4, AWAY), (8, "lost"), (2.5, AWAY), (10, SAFE))
    assert told(said, "distraction") == [("distraction", "notice", "opened"), ("distraction", "notice", "closed")]
    assert (said[1].end, said[1].updated) == (near(14), near(16))
    assert told(said, "camera") == [("camera", "notice", "opened"), ("camera", "notice", "closed")]
    assert next(one for one in said if one.kind == "camera").opened == near(19)


def test_a_picture_without_a_person_ends_what_was_seen_and_is_no_trouble_with_the_camera() -> None:
    said = story((10, SAFE), (4, AWAY), (8, "empty"), (2.5, AWAY), (10, SAFE))
    assert told(said) == [("distraction", "notice", "opened"), ("distraction", "notice", "closed")]
    covered = story((10, SAFE), (8, "black"), (20, "empty"))
    assert told(covered) == [("camera", "notice", "opened"), ("camera", "notice", "closed")]


def test_a_stream_back_within_5_seconds_is_no_event() -> None:
    assert story((10, SAFE), (4, "lost"), (10, SAFE)) == []


def test_silence_is_a_gap_even_if_nobody_says_so() -> None:
    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile="driver", smooth=0))
    away = p_of(AWAY, LABELS)
    assert not [one for tick in range(29) for one in alarm.step(tick / 10, away)]
    assert alarm.step(10.0, away) == []
    assert alarm.gauge == 1.0
    assert not [one for tick in range(29) for one in alarm.step(10 + tick / 10, away)]
    (opened,) = alarm.step(13.0, away)
    assert (opened.start, opened.opened) == (10.0, 13.0)


def test_a_picture_that_was_on_its_way_when_the_stream_was_called_lost_still_counts() -> None:
    """One frame a second that takes 0.2 s to arrive, and somebody who says so after each second without one."""
    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile="driver"))
    said = []
    for second in range(1, 31):
        said += alarm.step(second + 0.1, None, "lost")
        said += alarm.step(second, p_of(AWAY if 10 <= second < 18 else SAFE, LABELS))
    assert seconds(said, "distraction") == {"notice": near(13.1), "warn": near(15.1)}
    assert "camera" not in {one.kind for one in said}


def test_a_missed_frame_is_no_gap() -> None:
    said = story((10, SAFE), (2, AWAY), (0.5, "lost"), (2, AWAY), (5, SAFE))
    assert seconds(said, "distraction") == {"notice": near(13)}


def test_a_model_that_gives_no_answer_is_trouble_with_the_camera_not_with_the_driver() -> None:
    nan = np.full(len(LABELS), np.nan)
    said = story((10, SAFE), (8, nan), (5, SAFE))
    assert told(said) == [("camera", "notice", "opened"), ("camera", "notice", "closed")]
    assert "no answer" in said[0].words
    assert story((10, SAFE), (8, [np.inf] * 6), (5, SAFE), off=["camera"]) == []


def test_probabilities_of_another_shape_are_refused() -> None:
    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile="driver"))
    with pytest.raises(ValueError, match=r"shape \(5,\): wanted \(6,\)"):
        alarm.step(0.0, np.ones(5))
    with pytest.raises(ValueError, match="status 'dark'"):
        alarm.step(0.0, None, "dark")  # type: ignore[arg-type]


# ---- time


def test_time_that_stands_still_or_steps_back_is_passed_over() -> None:
    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile="driver", smooth=0))
    away, opened = p_of(AWAY, LABELS), []
    for tick in range(31):
        opened += alarm.step(tick / 10, away)
        opened += alarm.step(tick / 10, away)
        opened += alarm.step(tick / 10 - 1, p_of(SAFE, LABELS))
        opened += alarm.step(math.nan, away)
    assert [(one.kind, one.opened) for one in opened] == [("distraction", 3.0)]


def test_a_clock_that_was_set_back_does_not_make_it_deaf() -> None:
    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile="driver", smooth=0))
    away = p_of(AWAY, LABELS)
    said = [one for tick in range(50) for one in alarm.step(1e6 + tick / 10, away)]
    said += [one for tick in range(80) for one in alarm.step(tick / 10, away)]
    assert [(one.state, one.updated) for one in said] == [
        ("opened", 1e6 + 3), ("closed", 1e6 + 4.9), ("opened", pytest.approx(5.1)), ("raised", pytest.approx(7.1)),
    ]  # fmt: skip
    assert said[0].id != said[2].id


def test_the_end_of_the_watch_ends_what_is_open_once() -> None:
    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile="driver", smooth=0))
    for tick in range(40):
        alarm.step(tick / 10, p_of(AWAY, LABELS))
    assert [one.kind for one in alarm.open] == ["distraction"]
    (closed,) = alarm.close(4.2)
    assert (closed.state, closed.end, closed.updated) == ("closed", 3.9, 4.2)
    assert alarm.close(5.0) == alarm.open == []


# ---- a camera in a street


def test_a_calm_street_says_nothing_and_its_gauge_is_empty() -> None:
    assert street((300, CALM)) == []
    assert Alarm("gate", [CALM, FIGHT], [CALM], Rule()).gauge == 0.0
    assert Alarm("gate", [CALM, FIGHT], [CALM], Rule()).gauge_name == "evidence"


def test_a_fight_with_a_pause_is_one_event() -> None:
    said = street((20, CALM), (4, FIGHT), (5, CALM), (6, FIGHT), (20, CALM))
    assert told(said) == [
        ("violence", "notice", "opened"),
        ("violence", "warn", "raised"),
        ("violence", "alarm", "raised"),
        ("violence", "alarm", "closed"),
    ]
    assert seconds(said, "violence") == {"notice": near(21.2), "warn": near(22.1), "alarm": near(23)}
    assert (said[-1].start, said[-1].end, said[-1].label) == (near(20), near(35), FIGHT)
    assert said[-1].updated == near(43, 0.4)


def test_two_fights_are_two_events() -> None:
    said = street((20, CALM), (5, FIGHT), (30, CALM), (5, FIGHT), (20, CALM))
    assert [one.state for one in said].count("opened") == 2
    assert len({one.id for one in said}) == 2


def test_a_shove_of_a_second_is_nothing() -> None:
    assert street(*[(10, CALM), (1, FIGHT)] * 10) == []


def test_evidence_grows_only_from_the_threshold_on() -> None:
    weak = np.array([0.3, 0.7])
    assert street((60, weak), threshold=0.8) == []
    assert street((60, weak), threshold=0.6)[0].opened == near(1.2)
    assert street((60, weak), threshold=None)[0].opened == near(1.2)  # 0.5 where the bundle has none
    alarm = Alarm("gate", [CALM, FIGHT], [CALM], Rule(threshold=0.6), 0.8)
    assert story((60, weak), alarm=alarm)[0].opened == near(1.2)  # the rule goes before the bundle


def test_seven_fighting_frames_of_ten_are_a_fight_and_two_are_none() -> None:
    r = np.random.default_rng(0)
    often = [(0.1, FIGHT if r.random() < 0.7 else CALM) for _ in range(150)]
    seldom = [(0.1, FIGHT if r.random() < 0.2 else CALM) for _ in range(3000)]
    assert [one.state for one in street((5, CALM), *often, (20, CALM))].count("opened") == 1
    assert street((5, CALM), *seldom) == []


def test_several_dangers_share_one_evidence_which_names_the_likeliest() -> None:
    alarm = Alarm("gate", ["calm", "fight", "fire"], ["calm"], Rule(profile="cctv"), 0.8)
    said = story((5, "calm"), (1, "fight"), (4, "fire"), (9, "calm"), alarm=alarm)
    assert {(one.kind, one.label) for one in said} == {("incident", "fire")}
    assert seconds(said, "incident")["notice"] == near(6.2)
    split = np.array([0.1, 0.45, 0.45])  # sure that it is not calm
    alarm = Alarm("gate", ["calm", "fight", "fire"], ["calm"], Rule(profile="cctv"), 0.8)
    assert story((5, split), alarm=alarm)[0].opened == near(1.2)


def test_evidence_does_not_survive_a_gap() -> None:
    said = street(*[(1.1, FIGHT), (2.5, "lost")] * 20)
    assert {one.kind for one in said} <= {"camera"}


# ---- what holds in every story

MARKS = [*LABELS, "unsure", "black", "frozen", "lost"]
acts = st.lists(
    st.tuples(st.sampled_from([0.25, 0.5, 1.0, 2.5, 4.0, 12.0]), st.sampled_from(MARKS)), min_size=1, max_size=14
)
quick = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def lives(said: list[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = {}
    for one in said:
        found.setdefault(one.id, []).append(one)
    return found


@quick
@given(acts, st.sampled_from([2.0, 4.0, 8.0]))
def test_an_event_opens_rises_and_closes_in_order(acts: Any, fps: float) -> None:
    said = story(*acts, fps=fps)
    assert [one.updated for one in said] == sorted(one.updated for one in said)
    for life in lives(said).values():
        assert [one.state for one in life] == ["opened", *["raised"] * (len(life) - 2), "closed"]
        levels = [LEVELS.index(one.level) for one in life]
        assert levels[:-1] == sorted(set(levels[:-1]))
        assert levels[-1] == levels[-2]
        assert len({(one.kind, one.start, one.opened, one.label) for one in life}) == 1
        assert [one.peak for one in life] == sorted(one.peak for one in life)
        last = life[-1]
        assert all(one.end is None for one in life[:-1])
        assert last.start <= last.opened <= last.updated
        assert last.end is not None and last.start <= last.end <= last.updated
    for kind in {one.kind for one in said}:  # one of a kind at a time
        opened = 0
        for one in said:
            opened += (one.kind == kind) * {"opened": 1, "raised": 0, "closed": -1}[one.state]
            assert opened in (0, 1)


@quick
@given(acts, st.sampled_from([-512.0, 4096.0, 2.0**30]))
def test_the_clocks_zero_does_not_matter(acts: Any, shift: float) -> None:
    one, other = (Alarm("cab", LABELS, [SAFE], Rule(profile="driver")) for _ in range(2))
    for (now, p, status), (then, _, _) in zip(
        frames(acts, 4.0, LABELS), frames(acts, 4.0, LABELS, START + shift), strict=True
    ):
        said = [event.shifted(shift) for event in one.step(now, p, status)]  # type: ignore[arg-type]
        assert said == other.step(then, p, status)  # type: ignore[arg-type]
        assert one.gauge == other.gauge


@quick
@given(st.lists(st.tuples(st.floats(1e-3, 2.5), st.lists(st.floats(0, 0.04), min_size=5, max_size=5)), max_size=200))
def test_no_event_where_all_is_safe(steps: Any) -> None:
    alarm, now = Alarm("cab", LABELS, [SAFE], Rule(profile="driver")), 0.0
    for dt, rest in steps:
        now += dt
        p = [*rest[:3], 1 - sum(rest), *rest[3:]]
        assert alarm.step(now, p) == []


@pytest.mark.slow
@quick
@given(
    st.sampled_from([(AWAY, "distraction", [3, 5, 11]), (PHONE, "phone", [3, 5, 11]), (SLEEPY, "sleep", [1, 3, 6])]),
    st.floats(3, 9),
    st.floats(1, 60),
)
def test_the_frame_rate_does_not_matter(what: Any, begin: float, fps: float) -> None:
    label, kind, levels = what
    said = story((begin, SAFE), (13, label), (15, SAFE), fps=fps)
    late = LAG + 2 / fps
    assert list(seconds(said, kind).values()) == [near(begin + step - 1 / fps, late + 1 / fps) for step in levels]


@settings(quick, max_examples=20)
@given(acts)
def test_a_frame_shown_twice_changes_nothing_but_within_a_frame(acts: Any) -> None:
    """Each frame is also shown half a frame earlier."""
    fine = Alarm("cab", LABELS, [SAFE], Rule(profile="driver"))
    for now, p, status in frames(acts, 8.0, LABELS):
        fine.step(now, p, status)  # type: ignore[arg-type]
    coarse = Alarm("cab", LABELS, [SAFE], Rule(profile="driver"))
    for now, p, status in frames(acts, 8.0, LABELS):
        coarse.step(now - 1 / 16, p, status)  # type: ignore[arg-type]
        coarse.step(now, p, status)  # type: ignore[arg-type]
    assert abs(fine.gauge - coarse.gauge) < 0.25  # an eighth of a second of a microsleep's six, at each change of act


times = st.one_of(st.floats(-1e308, 1e308), st.sampled_from([0.0, 1.0, 1.5, 2.0, 1e9, -5.0, math.nan, math.inf]))
values = st.one_of(st.none(), st.lists(st.floats(width=64), min_size=6, max_size=6))


@quick
@given(
    st.lists(st.tuples(times, values, st.sampled_from(["ok", "ok", "black", "frozen", "lost"])), max_size=60),
    st.sampled_from(["driver", "cctv"]),
    st.floats(0, 3),
)
def test_wild_times_and_probabilities_raise_nothing(steps: Any, profile: Any, smooth: float) -> None:
    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile=profile, smooth=smooth))
    said = [one for now, p, status in steps for one in alarm.step(now, p, status)]
    said += alarm.close(math.nan)
    assert 0 <= alarm.gauge <= 1
    for life in lives(said).values():
        assert (life[0].state, life[-1].state) == ("opened", "closed")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_frame_rate_or_the_hours() -> None:
    """What an Alarm holds after 20 and after 200 s of 60 frames a second, of a driver with every vice."""

    def held(thing: Any, seen: set[int]) -> int:
        if id(thing) in seen:
            return 0
        seen.add(id(thing))
        inner = list(getattr(thing, "__dict__", {}).values()) + (
            list(thing.values()) if isinstance(thing, dict) else list(thing) if hasattr(thing, "__iter__") else []
        ) * (not isinstance(thing, str | np.ndarray))
        return sys.getsizeof(thing) + sum(held(one, seen) for one in inner)

    alarm = Alarm("cab", LABELS, [SAFE], Rule(profile="driver"))
    sizes, now = [], 0.0
    for number in range(60 * 200):
        now += 1 / 60
        alarm.step(now, p_of([AWAY, SLEEPY, YAWN, SAFE][number // 80 % 4], LABELS))
        if number in (60 * 100, 60 * 200 - 1):
            sizes.append(held(alarm, set()))
    assert sizes[1] < 1.05 * sizes[0] < 200_000
