"""A driver's normal: shifts change nothing, bad frames little, and it is learnt within stated seconds."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillwatch.media.points import Signals
from stillwatch.rules.normal import EVERY, GONE, KEPT, LEARNT, PAST, RANGES, TRAVEL, Normal

SETTLED = LEARNT * EVERY  # s
Shift = tuple[float, float, float, float]
SHIFTS = st.tuples(st.floats(-0.1, 0.2), st.floats(-0.05, 0.5), st.floats(-40, 40), st.floats(-30, 30))


def drive(seconds: float, fps: float = 10.0, shift: Shift = (0, 0, 0, 0), seed: int = 0) -> Iterator[Signals]:
    """A driver who looks about a little and blinks."""
    r = np.random.default_rng(seed)
    eyes, mouth, yaw, pitch = shift
    for number in range(round(seconds * fps)):
        blink = number / fps % 3 < 0.2
        lids = (0.16 if blink else 0.27) + 0.01 * r.standard_normal() + eyes
        turn, nod = 4 * r.standard_normal() + yaw, 3 * r.standard_normal() + pitch
        yield Signals(lids, lids, 0.05 + 0.02 * r.random() + mouth, turn, nod, 0.0, 0.9)


def learn(normal: Normal, signals: Iterator[Signals], fps: float = 10.0, start: float = 0.0) -> float:
    now = start
    for number, one in enumerate(signals):
        now = start + number / fps
        normal.step(now, one)
    return now


@pytest.mark.slow
@settings(max_examples=8)
@given(SHIFTS, st.sampled_from([5.0, 8.0]))
def test_a_shift_of_all_signals_changes_nothing_once_it_is_learnt(shift: Shift, fps: float) -> None:
    seen = []
    for moved in ((0.0, 0.0, 0.0, 0.0), shift):
        normal = Normal()
        learn(normal, drive(6 * SETTLED, fps, moved), fps)
        test = [normal.step(6 * SETTLED + n / fps, one) for n, one in enumerate(drive(3, fps, moved, seed=1))]
        seen.append(np.array([(*one[:5], *one.z) for one in test if one is not None]))
        assert normal.learnt == 1.0
    np.testing.assert_allclose(seen[0], seen[1], atol=1e-6)


@settings(max_examples=15)
@given(st.lists(st.tuples(*[st.floats(-1000, 1000)] * 5), min_size=10, max_size=10), st.integers(20, 60))
def test_ten_bad_frames_move_it_little(bad: list[tuple[float, ...]], seconds: int) -> None:
    normal, usual = Normal(), Signals(0.27, 0.27, 0.06, 0.0, 0.0, 0.0, 0.9)
    now = learn(normal, drive(seconds))
    before = normal.centre.copy()
    for number, (eyes, *rest) in enumerate(bad):
        normal.step(now + 0.1 * (number + 1), Signals(eyes, eyes, *rest, 0.9))
    spread = np.array([one.least for one in RANGES])
    assert (np.abs(normal.centre - before) < 0.5 * spread).all()
    deviation = normal.step(now + 1.2, usual)
    assert deviation is not None and deviation.shut < 0.2


@pytest.mark.parametrize("fps", [5, 10, 25])
def test_it_settles_within_the_stated_seconds_at_any_rate(fps: int) -> None:
    shift = (0.08, 0.2, 25.0, 15.0)
    normal = Normal()
    learn(normal, drive(30, fps, shift), fps)
    assert normal.learnt == pytest.approx(0.5, abs=0.01)
    prior, own = np.array([one.centre for one in RANGES])[:4], np.array([0.35, 0.26, 25.0, 15.0])
    left = np.abs(normal.centre[:4] - own) / np.abs(prior - own)
    assert (left < 0.2).all(), "four fifths of the way after half a minute"
    learn(normal, drive(40, fps, shift), fps, start=30)
    left = np.abs(normal.centre[:4] - own) / np.abs(prior - own)
    assert normal.learnt == 1.0 and (left < 0.12).all()


def test_lids_that_are_shut_half_of_the_time_do_not_become_normal() -> None:
    normal = Normal()
    now = learn(normal, drive(120))
    asleep = Signals(0.15, 0.15, 0.05, 0.0, 0.0, 0.0, 0.9)
    now = learn(normal, itertools.repeat(asleep, 1200), start=now + 0.1)
    shut, open_ = normal.step(now + 0.1, asleep), normal.step(now + 0.2, list(drive(1))[-1])
    assert shut is not None and shut.shut > 0.8
    assert open_ is not None and open_.shut < 0.2


def test_what_is_old_is_forgotten() -> None:
    normal = Normal()
    now = learn(normal, drive(100))
    learn(normal, drive(KEPT * EVERY, shift=(0, 0.3, 0, 0)), start=now + 0.1)
    assert normal.centre[1] == pytest.approx(0.36, abs=0.01)


def test_no_face_says_nothing_and_another_driver_is_learnt_anew() -> None:
    normal = Normal()
    now = learn(normal, drive(100))
    assert normal.step(now + 0.1, None) is None
    normal.step(now + GONE - 0.1, next(drive(1)))
    assert normal.learnt == 1.0, "a short absence is the same driver"
    normal.step(now + 2 * GONE + 0.1, next(drive(1)))
    assert normal.learnt == pytest.approx(1 / LEARNT)


def test_a_film_that_begins_again_is_learnt_anew() -> None:
    normal = Normal()
    learn(normal, drive(100))
    learn(normal, drive(1))
    assert normal.learnt < 0.05


def test_at_first_the_prior_speaks_and_a_blink_is_shut() -> None:
    deviation = Normal().step(0.0, Signals(0.11, 0.11, 0.05, 0.0, 0.0, 0.0, 0.9))
    assert deviation is not None and deviation.shut == 1.0
    assert TRAVEL[0] < TRAVEL[1]


@pytest.mark.parametrize("fps", [5, 25])
def test_the_past_fades_with_its_time_constant_at_any_rate(fps: int) -> None:
    normal, usual = Normal(), Signals(0.27, 0.27, 0.06, -5.0, -9.0, 0.0, 0.9)
    shut = usual._replace(left_eye=0.08, right_eye=0.08)
    now = learn(normal, itertools.repeat(usual, 30 * fps), fps)
    seen = [normal.step(now + (1 + n) / fps, shut) for n in range(round(PAST * fps))]
    later = normal.step(now + PAST + GONE + 1, usual)
    assert seen[0] is not None and seen[-1] is not None and later is not None
    assert seen[-1].shut == 1 and seen[-1].past[5] == pytest.approx(1 - np.exp(-1), abs=0.02)
    assert later.past == tuple(later.traits), "whoever comes next brings no past"
