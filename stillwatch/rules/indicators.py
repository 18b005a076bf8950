"""Signs: how an indicator is reckoned from one answer to the next: awareness, holds, shares, counts, evidence.

In: an Indicator, and what is seen, moment by moment. Out: a Reading: which level is reached, since when, is it over.
Called by rules.Alarm. It knows no event, no camera's name and no other sign.
An interval between two answers counts for a sign where both its ends show it, so that one false frame never counts.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from stillwatch.rules.presets import IndicatorRule

BINS = 120  # of a window: its memory, whatever the frame rate
FALLEN = 0.8  # of the first level: below it a share or a sum is over; our choice
EPS = 1e-6  # s; sums of frame times are not exact


class Observation(NamedTuple):
    """One answer of the net, or the want of one."""

    now: float  # s
    dt: float  # s since the last answer; 0 for the first, and for the first after a gap
    s: Sequence[float]  # (K,) smoothed probabilities
    sure: bool  # the net is sure enough to accuse somebody
    calm: bool  # a safe label is the likeliest
    trouble: str  # why there is no answer; "": there is one
    since: float  # s of the last answer before


class IndicatorState(NamedTuple):
    """What a sign says now."""

    level: int  # how many levels are reached, less one; -1: none
    active: bool  # the behaviour is going on: only then an event opens
    over: bool  # an open event has ended
    start: float  # s; when the behaviour began
    last: float  # s; when it was last seen
    value: float  # probability or share from 0 to 1


class Indicator(Protocol):
    """What every entry of SIGNS gives."""

    left: float  # 1: nothing yet; 0: the last level is reached

    def step(self, sight: Observation) -> IndicatorState: ...
    def words(self, level: int) -> str: ...
    def forget(self) -> None: ...


class Hysteresis:
    """The labels of an indicator as one probability, and whether they are there: a Schmitt trigger.

    held: the share of the newest interval that counts: both ends show them, less a half for each end at which the net
    is not sure. gone: neither end shows them. share: as held, but a half where one end shows them: for windows, which
    would count many short spells too short. seen: what of it the net was sure about.
    """

    def __init__(self, one: IndicatorRule, labels: Sequence[str], safe: Collection[int]):
        places = [labels.index(label) for label in one.labels]
        unsafe = set(range(len(labels))) - set(safe)
        # The operating threshold was chosen for 1 - sum p[safe] (metrics.operating_point): so it is held against that
        self._rest = sorted(safe) if one.how == "evidence" and safe and set(places) == unsafe else []
        self._places, self._labels = places, labels
        self._on, self._off = (one.threshold or one.on, one.threshold or one.off)
        self.forget()

    def forget(self) -> None:
        self.on = self.gone = self.active = self._sure = False
        self.q = self.held = self.share = self.seen = 0.0
        self._s: Sequence[float] = [0.0] * len(self._labels)

    def step(self, sight: Observation) -> None:
        before, s = self.on, sight.s
        self._s = s
        q = 1 - sum(s[place] for place in self._rest) if self._rest else sum(s[place] for place in self._places)
        self.q = min(max(q, 0.0), 1.0)
        self.on = self.q >= self._on or (before and self.q >= self._off)
        first, last = before and self._sure, self.on and sight.sure
        self.held = (first + last) / 2 if before and self.on else 0.0
        self.share = (first + last) / 2
        self.seen = (self._sure + sight.sure) / 2
        self.gone = not before and not self.on
        self.active = self.held > 0 and sight.sure
        self._sure = sight.sure

    def label(self) -> str | None:
        """The likeliest of them now; None where the indicator is about no label."""
        return self._labels[max(self._places, key=self._s.__getitem__)] if self._places else None


class Window:
    """Seconds seen, and seconds that counted, within the last `length` s; in bins, so that it cannot grow."""

    def __init__(self, length: float):
        self._width = length / BINS
        self.forget()

    def forget(self) -> None:
        self._bins: deque[list[float]] = deque(maxlen=BINS)  # [number, seen, counted, first time that counted]
        self._zero: float | None = None
        self.seen = self.counted = 0.0

    @property
    def start(self) -> float | None:
        """When the oldest second that counted was."""
        return next((begun for _, _, counted, begun in self._bins if counted), None)

    def add(self, now: float, dt: float, counts: float) -> None:
        if self._zero is None:
            self._zero = now
        number = math.floor((now - self._zero) / self._width + EPS)
        while self._bins and self._bins[0][0] <= number - BINS:
            self._bins.popleft()
        if not self._bins or self._bins[-1][0] != number:
            self._bins.append([number, 0.0, 0.0, now])
            # Summed again once a bin, so that no error of rounding builds up over weeks
            self.seen = sum(one[1] for one in self._bins)
            self.counted = sum(one[2] for one in self._bins)
        newest = self._bins[-1]
        newest[1] += dt
        self.seen += dt
        if counts:
            if not newest[2]:
                newest[3] = now - counts
            newest[2] += counts
            self.counted += counts


class DurationTracker:
    """How many seconds of a behaviour there were, when it began and when it was last seen.

    An absence of up to `gap` s does not break it, nor does it count.
    """

    def __init__(self, gap: float):
        self.gap = gap
        self.forget()

    def forget(self) -> None:
        self.held, self.start, self.last = 0.0, math.nan, -math.inf

    def step(self, sight: Observation, switch: Hysteresis) -> float:
        """Returns the seconds since it was last seen; 0: it is seen now."""
        away = sight.now - self.last
        if switch.on and sight.sure:
            if away > self.gap + EPS and not switch.held:
                self.held, self.start = 0.0, sight.now
            self.last, away = sight.now, 0.0
        self.held += switch.held * sight.dt
        return away


class Awareness:
    """A driver's attention, 1 when full: it runs out in after[-1] s of looking away, and comes back faster.

    openpilot's driver monitoring: per step, awareness += ((R - r)(1 - awareness) + r) · dt/T while attentive and
    -= dt/T while distracted, with R = 5, r = 1.25, T = 11 s. Here the first is solved for any dt, so that the frame
    rate does not matter: with A = R/(R - r), A - awareness shrinks by exp(-(R - r)·dt/T).
    """

    def __init__(self, one: IndicatorRule, switch: Hysteresis):
        self._one, self._switch = one, switch
        self._whole, self._steps = one.after[-1], one.after
        self._most, self._least = one.recover
        self.forget()

    def forget(self) -> None:
        self._switch.forget()
        self.left, self._start, self._last = 1.0, math.nan, -math.inf

    def step(self, sight: Observation) -> IndicatorState:
        switch = self._switch
        switch.step(sight)
        if switch.on and sight.sure:
            if self.left >= 1:
                self._start = sight.now if not switch.held else self._start
            self._last = sight.now
        if switch.held:
            self.left = max(0.0, self.left - switch.held * sight.dt / self._whole)
        elif switch.gone and sight.calm:
            slope = self._most - self._least
            top = self._most / slope
            self.left = min(1.0, top - (top - self.left) * math.exp(-slope * sight.dt / self._whole))
        elif sight.now - self._last > self._one.merge:
            self.left = 1.0
        level = bisect_right(self._steps, (1 - self.left) * self._whole + EPS) - 1
        over = self.left >= 1
        return IndicatorState(level, switch.active, over, self._start, self._last, switch.q)

    def words(self, level: int) -> str:
        labels = " or ".join(self._one.labels)
        return (
            f"{self._one.kind}: {labels} for {(1 - self.left) * self._whole:.1f} s, awareness {100 * self.left:.0f} %"
        )


class Glances:
    """Seconds of short looks away within a window; enough attention at a stretch starts it anew."""

    left = 1.0

    def __init__(self, one: IndicatorRule, switch: Hysteresis):
        self._one, self._switch = one, switch
        self._window = Window(one.window)
        self.forget()

    def forget(self) -> None:
        self._switch.forget()
        self._window.forget()
        self._back, self._last = 0.0, -math.inf

    def step(self, sight: Observation) -> IndicatorState:
        switch, window = self._switch, self._window
        switch.step(sight)
        window.add(sight.now, sight.dt, switch.share * sight.dt)
        if switch.on:
            self._back, self._last = 0.0, sight.now if sight.sure else self._last
        elif switch.gone and sight.calm:
            self._back += sight.dt
        if self._back >= self._one.back - EPS:
            window.forget()
        level = bisect_right(self._one.at, window.counted + EPS) - 1
        over = window.counted < FALLEN * self._one.at[0]
        start = sight.now if level < 0 or window.start is None else window.start
        share = min(1.0, window.counted / self._one.window)
        return IndicatorState(level, switch.active, over, start, self._last, share)

    def words(self, level: int) -> str:
        one, labels = self._one, " or ".join(self._one.labels)
        return f"{one.kind}: {labels} for {self._window.counted:.1f} s within {one.window:g} s"


class Hold:
    """Seconds of one behaviour; an absence shorter than `release` does not break it, nor does it count."""

    def __init__(self, one: IndicatorRule, switch: Hysteresis):
        self._one, self._switch = one, switch
        self._spell = DurationTracker(min(one.release, one.merge))
        self.forget()

    def forget(self) -> None:
        self._switch.forget()
        self._spell.forget()
        self.left = 1.0

    def step(self, sight: Observation) -> IndicatorState:
        switch, spell, levels = self._switch, self._spell, self._one.after
        switch.step(sight)
        away = spell.step(sight, switch)
        if not switch.held and away > spell.gap + EPS:
            spell.held = 0.0
        self.left = max(0.0, 1 - spell.held / levels[-1])
        level = bisect_right(levels, spell.held + EPS) - 1
        over = away > self._one.merge + EPS
        return IndicatorState(level, switch.active, over, spell.start, spell.last, switch.q)

    def words(self, level: int) -> str:
        one = self._one
        name = one.names[level] if level < len(one.names) else one.kind
        return f"{name}: {' or '.join(one.labels)} for {self._spell.held:.1f} s"


class Share:
    """The share of a window in which a behaviour was seen (PERCLOS), once enough of it was seen at all."""

    left = 1.0

    def __init__(self, one: IndicatorRule, switch: Hysteresis):
        self._one, self._switch = one, switch
        self._window = Window(one.window)
        self.forget()

    def forget(self) -> None:
        self._switch.forget()
        self._window.forget()
        self._last, self._share = -math.inf, 0.0

    def step(self, sight: Observation) -> IndicatorState:
        switch, window = self._switch, self._window
        switch.step(sight)
        window.add(sight.now, switch.seen * sight.dt, switch.share * sight.dt)
        if switch.on and sight.sure:
            self._last = sight.now
        enough = window.seen >= self._one.least - EPS
        self._share = min(1.0, window.counted / window.seen) if window.seen else 0.0
        level = bisect_right(self._one.at, self._share + EPS) - 1 if enough else -1
        over = self._share < FALLEN * self._one.at[0]
        start = sight.now if level < 0 or window.start is None else window.start
        return IndicatorState(level, level >= 0 and sight.sure, over, start, self._last, self._share)

    def words(self, level: int) -> str:
        labels = " or ".join(self._one.labels)
        return f"{self._one.kind}: {labels} in {100 * self._share:.0f} % of the last {self._window.seen:.0f} s"


class Count:
    """How often a behaviour of at least `least` s was seen within a window."""

    left = 1.0

    def __init__(self, one: IndicatorRule, switch: Hysteresis):
        self._one, self._switch = one, switch
        self.forget()

    def forget(self) -> None:
        self._switch.forget()
        self._times: deque[float] = deque(maxlen=256)  # when each began
        self._held, self._begun, self._last = 0.0, math.nan, -math.inf

    def step(self, sight: Observation) -> IndicatorState:
        switch, one = self._switch, self._one
        switch.step(sight)
        if not switch.on:
            self._held = 0.0
        elif switch.held:
            before, self._held = self._held, self._held + switch.held * sight.dt
            if before < one.least - EPS <= self._held:
                self._times.append(self._begun)
            if self._held >= one.least - EPS:
                self._last = sight.now
        elif not self._held:
            self._begun = sight.now
        while self._times and self._times[0] <= sight.now - one.window:
            self._times.popleft()
        level = bisect_right(one.at, len(self._times)) - 1
        start = self._times[0] if self._times else sight.now
        over = len(self._times) < one.at[0]
        return IndicatorState(level, level >= 0 and sight.sure, over, start, self._last, switch.q)

    def words(self, level: int) -> str:
        one = self._one
        return f"{one.kind}: {len(self._times)} times {' or '.join(one.labels)} within {one.window:g} s"


class Evidence:
    """An accumulator from 0 to 1 that fills in `rise` s above the threshold and empties in `fall` s below it."""

    def __init__(self, one: IndicatorRule, switch: Hysteresis):
        self._one, self._switch, self._spell = one, switch, DurationTracker(one.merge)
        self.forget()

    def forget(self) -> None:
        self._switch.forget()
        self._spell.forget()
        self.left = 1.0

    def step(self, sight: Observation) -> IndicatorState:
        switch, spell, one = self._switch, self._spell, self._one
        switch.step(sight)
        away = spell.step(sight, switch)
        if switch.held:
            self.left = max(0.0, self.left - switch.held * sight.dt / one.rise)
        elif switch.gone:
            self.left = min(1.0, self.left + sight.dt / one.fall)
        enough = spell.held >= one.least - EPS
        level = bisect_right(one.at, 1 - self.left + EPS) - 1 if enough else -1
        over = away > one.merge + EPS and 1 - self.left < one.at[0]
        return IndicatorState(level, switch.active, over, spell.start, spell.last, switch.q)

    def words(self, level: int) -> str:
        labels = " or ".join(self._one.labels)
        return f"{self._one.kind}: evidence of {labels} {1 - self.left:.2f}, {self._spell.held:.1f} s of it"


class Unsure:
    """Seconds in which no label is likely enough. It is about the camera, the light or the net, and accuses nobody."""

    left = 1.0

    def __init__(self, one: IndicatorRule, switch: Hysteresis):
        self._one, self._release = one, min(one.release, one.merge)
        self.forget()

    def forget(self) -> None:
        self._held, self._sure = 0.0, 0.0
        self._before, self._start, self._last = False, math.nan, -math.inf

    def step(self, sight: Observation) -> IndicatorState:
        one, unsure = self._one, not sight.sure
        if unsure:
            if math.isnan(self._start) or (not self._before and not self._held):
                self._held, self._start = 0.0, sight.now
            if self._before:
                self._held += sight.dt
            self._last, self._sure = sight.now, 0.0
        else:
            self._sure += sight.dt
            if self._sure > self._release + EPS:
                self._held = 0.0
        self._before = unsure
        level = bisect_right(one.after, self._held + EPS) - 1
        return IndicatorState(level, unsure, self._sure > one.merge + EPS, self._start, self._last, 1.0)

    def words(self, level: int) -> str:
        return f"{self._one.kind}: no label was likely for {self._held:.0f} s: look at the camera, the light, the model"


class Blocked:
    """Seconds without a picture that shows anything."""

    left = 1.0

    def __init__(self, one: IndicatorRule, switch: Hysteresis):
        self._one = one
        self.forget()

    def forget(self) -> None:
        self._trouble, self._start, self._last = "", math.nan, -math.inf
        self._for = 0.0

    def step(self, sight: Observation) -> IndicatorState:
        one = self._one
        if not sight.trouble:
            self._start = math.nan
            return IndicatorState(-1, False, sight.now - self._last > one.merge, self._start, self._last, 1.0)
        if math.isnan(self._start):
            self._start = sight.since
        self._trouble, self._last = sight.trouble, sight.now
        self._for = sight.now - self._start
        steps = one.after if sight.trouble in ("black", "frozen") else one.lost
        return IndicatorState(bisect_right(steps, self._for + EPS) - 1, True, False, self._start, sight.now, 1.0)

    def words(self, level: int) -> str:
        return f"{self._one.kind}: {TROUBLES[self._trouble]} for {self._for:.0f} s"


TROUBLES = {
    "black": "the picture is black or covered",
    "frozen": "the picture is frozen",
    "lost": "no picture",
    "mute": "the model gives no answer",
}

INDICATORS: dict[str, Callable[[IndicatorRule, Hysteresis], Indicator]] = {
    "awareness": Awareness,
    "glances": Glances,
    "hold": Hold,
    "share": Share,
    "count": Count,
    "evidence": Evidence,
    "unsure": Unsure,
    "camera": Blocked,
}
