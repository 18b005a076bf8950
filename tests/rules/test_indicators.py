"""Indicators: the trigger, the window, and how seconds are counted between two answers."""

import pytest

from stillwatch.rules.indicators import BINS, INDICATORS, Hold, Hysteresis, Observation, Window
from stillwatch.rules.profiles import DRIVER, IndicatorRule


def sight(now: float, *s: float, dt: float = 0.1, sure: bool = True) -> Observation:
    return Observation(now, dt, s, sure, False, "", now)


def test_the_trigger_goes_on_at_63_and_off_below_37_per_cent() -> None:
    switch = Hysteresis(IndicatorRule("hold", ("b",)), ("a", "b"), {0})
    seen = []
    for q in (0.62, 0.63, 0.5, 0.38, 0.36, 0.5, 0.7):
        switch.step(sight(0, 1 - q, q))
        seen.append(switch.on)
    assert seen == [False, True, True, True, False, False, True]


def test_an_interval_counts_where_both_ends_are_on_and_half_where_the_net_is_sure_of_one() -> None:
    switch = Hysteresis(IndicatorRule("hold", ("b",)), ("a", "b"), {0})
    seen = []
    for q, sure in ((0.9, True), (0.9, True), (0.9, False), (0.9, True), (0.1, True), (0.1, True)):
        switch.step(sight(0, 1 - q, q, sure=sure))
        seen.append((switch.held, switch.gone, switch.share))
    assert seen == [
        (0.0, False, 0.5), (1.0, False, 1.0), (0.5, False, 0.5), (0.5, False, 0.5), (0.0, False, 0.5), (0.0, True, 0.0),
    ]  # fmt: skip


def test_evidence_is_held_against_what_the_threshold_was_chosen_for() -> None:
    """A sigmoid head: 1 - p[safe], not the sum of the others."""
    one = IndicatorRule("evidence", ("b", "c"), threshold=0.8)
    switch = Hysteresis(one, ("a", "b", "c"), {0})
    switch.step(sight(0, 0.15, 0.1, 0.1))
    assert (switch.on, switch.q) == (True, 0.85)
    own = Hysteresis(IndicatorRule("evidence", ("b",), threshold=0.8), ("a", "b", "c"), {0})
    own.step(sight(0, 0.15, 0.1, 0.1))
    assert (own.on, own.q) == (False, 0.1)


@pytest.mark.parametrize("fps", [1, 7, 60, 500])
def test_a_window_knows_its_seconds_and_does_not_grow(fps: int) -> None:
    window = Window(60)
    for number in range(150 * fps):
        now = number / fps
        window.add(now, 1 / fps, 1 / fps if 100 <= now < 110 else 0.0)
        assert len(window._bins) <= BINS
    assert window.seen == pytest.approx(60, abs=1)
    assert window.counted == pytest.approx(10)
    assert window.start == pytest.approx(100, abs=1)
    for number in range(150 * fps, 180 * fps):
        window.add(number / fps, 1 / fps, 0.0)
    assert (window.counted, window.start) == (0.0, None)


def test_a_hold_does_not_count_an_absence_and_outlives_a_short_one() -> None:
    one = IndicatorRule("hold", ("b",), after=(1.0,), levels=("notice",), release=0.5, merge=2.0)
    hold = Hold(one, ("a", "b"), {0})
    for number in range(9):
        hold.step(sight(number / 10, 0.0, 1.0))
    assert hold.left == pytest.approx(0.2)
    for number in range(9, 13):
        hold.step(sight(number / 10, 1.0, 0.0))
    assert hold.left == pytest.approx(0.2)
    hold.step(sight(1.3, 0.0, 1.0))
    assert hold.step(sight(1.4, 0.0, 1.0)).level == -1
    reading = hold.step(sight(1.5, 0.0, 1.0))
    assert (reading.level, reading.start) == (0, 0.0)
    for number in range(16, 22):
        reading = hold.step(sight(number / 10, 1.0, 0.0))
    assert (hold.left, reading.over) == (1.0, False)
    assert hold.step(sight(3.6, 1.0, 0.0)).over


def test_every_indicator_starts_with_nothing() -> None:
    named = {one.how: one for one in DRIVER.indicators.values()}
    named["evidence"] = IndicatorRule("evidence", ("b",), threshold=0.5, at=(0.5,), levels=("warn",), rise=1, fall=1)
    assert set(named) == set(INDICATORS)
    for how, one in named.items():
        labels = ("a", *(one.labels or ("b",)))
        before = INDICATORS[how](one, labels, {0})
        for number in range(200):
            before.step(sight(number / 10, 0.0, 1.0, sure=how != "unsure"))
        fresh = INDICATORS[how](one, labels, {0})  # nothing is shared with the one before
        assert fresh.left == 1.0
        assert fresh.step(sight(30.0, 0.0, 1.0, dt=0.0)).level == -1
