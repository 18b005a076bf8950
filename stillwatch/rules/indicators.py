"""Measures a behaviour from answer to answer.

An interval counts where both its ends show the behaviour, so one false frame never counts.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

from stillwatch.rules import signs
from stillwatch.rules.profiles import WORDS, IndicatorRule
from stillwatch.rules.signs import Signs

BINS = 120  # of a window: its memory, whatever the frame rate
FALLEN = 0.8  # of the first level: below it a share or a sum is over; our choice
EPS = 1e-6  # s; sums of frame times are not exact
TROUBLES = {
    "black": "the picture is black or covered",
    "frozen": "the picture is frozen",
    "lost": "no picture",
    "mute": "the model gives no answer",
}


class Observation(NamedTuple):
    now: float  # s
    dt: float  # s since the last answer; 0 for the first, and for the first after a gap
    s: Sequence[float]  # (K,) smoothed probabilities
    sure: bool  # the net is sure enough to accuse somebody
    calm: bool  # a safe label is the likeliest
    trouble: str  # why there is no answer; "": there is one
    since: float  # s of the last answer before
    signs: Signs | None = None  # of the driver's face; None: no face, or nobody reads it


class IndicatorState(NamedTuple):
    level: int  # how many levels are reached, less one; -1: none
    active: bool  # the behaviour is going on: only then an event opens
    over: bool  # an open event has ended
    start: float  # s; when the behaviour began
    last: float  # s; when it was last seen
    value: float  # probability or share from 0 to 1


class Hysteresis:
    """A Schmitt trigger on the sum of an indicator's labels."""

    # Shares of the newest interval. held: both ends show them, less half for each unsure end. gone: neither does.
    # share: as held, but half where one end does, else windows count short spells too short. seen: the net was sure.
    # sign: a face's, beside or instead of the labels

    def __init__(self, rule: IndicatorRule, labels: Sequence[str], safe: Collection[int]):
        self._labels, self._places = labels, [labels.index(label) for label in rule.labels]
        unsafe = set(range(len(labels))) - set(safe)
        # The operating threshold was chosen for 1 - sum p[safe] (metrics.operating_point), so it is compared with that
        self._rest = sorted(safe) if rule.how == "evidence" and safe and set(self._places) == unsafe else []
        self._on, self._off, self._alone = rule.threshold or rule.on, rule.threshold or rule.off, rule.wins == "signs"
        self.sign: float | None = None
        self.signed = False  # the sign decided
        self.on = self.gone = self.active = self._sure = False
        self.q = self.held = self.share = self.seen = 0.0
        self._s: Sequence[float] = [0.0] * len(labels)

    def step(self, sight: Observation) -> None:
        before, s = self.on, sight.s
        self._s = s
        q = 1 - sum(s[place] for place in self._rest) if self._rest else sum(s[place] for place in self._places)
        off, self.signed = self._off, self.sign is not None and (self._alone or self.sign >= q)
        if self.sign is not None and self.signed:
            q, off = self.sign, signs.OFF
        self.q = min(max(q, 0.0), 1.0)
        self.on = self.q >= self._on or (before and self.q >= off)
        first, last = before and self._sure, self.on and sight.sure
        self.held = (first + last) / 2 if before and self.on else 0.0
        self.share = (first + last) / 2
        self.seen = (self._sure + sight.sure) / 2
        self.gone = not before and not self.on
        self.active = self.held > 0 and sight.sure
        self._sure = sight.sure

    def label(self) -> str | None:
        """None for an indicator without labels."""
        return self._labels[max(self._places, key=self._s.__getitem__)] if self._places else None


class Window:
    """Seconds seen and counted in the last `length` s. Bins bound its memory."""

    def __init__(self, length: float):
        self._width = length / BINS
        self._bins: deque[list[float]] = deque(maxlen=BINS)  # [number, seen, counted, first time that counted]
        self._zero: float | None = None
        self.seen = self.counted = 0.0

    @property
    def start(self) -> float | None:
        """When the oldest second counted."""
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
            self.seen = sum(seen for _, seen, _, _ in self._bins)
            self.counted = sum(counted for _, _, counted, _ in self._bins)
        newest = self._bins[-1]
        newest[1] += dt
        self.seen += dt
        if counts:
            if not newest[2]:
                newest[3] = now - counts
            newest[2] += counts
            self.counted += counts


class Indicator:
    """After a gap in sight a new one is made."""

    left = 1.0  # 1: nothing yet; 0: the last level is reached
    start, last = math.nan, -math.inf  # s; when the behaviour began, and when it was last seen
    held = 0.0  # s of it

    def __init__(self, rule: IndicatorRule, labels: Sequence[str], safe: Collection[int]):
        self.rule = rule
        self.switch = Hysteresis(rule, labels, safe)
        self.window = Window(rule.window)

    @property
    def names(self) -> str:
        """What is seen: the face's sign where it decided, else the labels."""
        return WORDS[self.rule.sign] if self.switch.signed else " or ".join(self.rule.labels)

    def step(self, sight: Observation) -> IndicatorState:
        rule, face = self.rule, sight.signs
        # A camera at the side sees a head turned away from the first second on: then a calm net is believed
        doubted = face is not None and face.early and sight.calm and rule.wins == "either"
        if rule.sign and face is not None and rule.wins != "net" and not doubted:
            self.switch.sign = sign = getattr(face, rule.sign)
            if rule.wins == "signs" or sign >= signs.ON:  # what the face says needs no sure net
                sight = sight._replace(sure=True)
        else:
            self.switch.sign = None
        self.switch.step(sight)
        return self.measure(sight)

    def measure(self, sight: Observation) -> IndicatorState:
        raise NotImplementedError

    def words(self, level: int) -> str:
        raise NotImplementedError

    def duration(self, sight: Observation, gap: float) -> float:
        """Counts `held` across absences of up to `gap` s. Returns seconds since last seen."""
        away = sight.now - self.last
        if self.switch.on and sight.sure:
            if away > gap + EPS and not self.switch.held:
                self.held, self.start = 0.0, sight.now
            self.last, away = sight.now, 0.0
        self.held += self.switch.held * sight.dt
        return away

    def began(self, sight: Observation, level: int) -> float:
        return sight.now if level < 0 or self.window.start is None else self.window.start


def _level(steps: Sequence[float], value: float) -> int:
    return bisect_right(steps, value + EPS) - 1


class Awareness(Indicator):
    """A driver's attention, as openpilot has it: 1 when full. Looking away for after[-1] s empties it."""

    def measure(self, sight: Observation) -> IndicatorState:
        switch, whole, (most, least) = self.switch, self.rule.after[-1], self.rule.recover
        if switch.on and sight.sure:
            if self.left >= 1 and not switch.held:
                self.start = sight.now
            self.last = sight.now
        if switch.held:
            self.left = max(0.0, self.left - switch.held * sight.dt / whole)
        elif switch.gone and sight.calm:
            # openpilot adds ((most - least)(1 - left) + most) · dt / whole at each step: solved here for any dt
            slope = most - least
            top = most / slope
            self.left = min(1.0, top - (top - self.left) * math.exp(-slope * sight.dt / whole))
        elif sight.now - self.last > self.rule.merge:
            self.left = 1.0
        level = _level(self.rule.after, (1 - self.left) * whole)
        return IndicatorState(level, switch.active, self.left >= 1, self.start, self.last, switch.q)

    def words(self, level: int) -> str:
        away = (1 - self.left) * self.rule.after[-1]
        return f"{self.rule.kind}: {self.names} for {away:.1f} s, awareness {100 * self.left:.0f} %"


class Glances(Indicator):
    """Seconds of short looks away in a window. Enough attention resets it."""

    back = 0.0  # s of attention at a stretch

    def measure(self, sight: Observation) -> IndicatorState:
        switch, rule = self.switch, self.rule
        self.window.add(sight.now, sight.dt, switch.share * sight.dt)
        if switch.on:
            self.back, self.last = 0.0, sight.now if sight.sure else self.last
        elif switch.gone and sight.calm:
            self.back += sight.dt
        if self.back >= rule.back - EPS:
            self.window = Window(rule.window)
        counted = self.window.counted
        level, share = _level(rule.at, counted), min(1.0, counted / rule.window)
        over = counted < FALLEN * rule.at[0]
        return IndicatorState(level, switch.active, over, self.began(sight, level), self.last, share)

    def words(self, level: int) -> str:
        return f"{self.rule.kind}: {self.names} for {self.window.counted:.1f} s within {self.rule.window:g} s"


class Hold(Indicator):
    """Seconds of one behaviour. Absences shorter than `release` neither break it nor count."""

    def measure(self, sight: Observation) -> IndicatorState:
        rule, switch = self.rule, self.switch
        gap = min(rule.release, rule.merge)
        away = self.duration(sight, gap)
        if not switch.held and away > gap + EPS:
            self.held = 0.0
        self.left = max(0.0, 1 - self.held / rule.after[-1])
        over = away > rule.merge + EPS
        return IndicatorState(_level(rule.after, self.held), switch.active, over, self.start, self.last, switch.q)

    def words(self, level: int) -> str:
        name = self.rule.names[level] if level < len(self.rule.names) else self.rule.kind
        return f"{name}: {self.names} for {self.held:.1f} s"


class Share(Indicator):
    """Share of a window (PERCLOS), once enough was seen."""

    share = 0.0

    def measure(self, sight: Observation) -> IndicatorState:
        switch, window, rule = self.switch, self.window, self.rule
        window.add(sight.now, switch.seen * sight.dt, switch.share * sight.dt)
        if switch.on and sight.sure:
            self.last = sight.now
        self.share = min(1.0, window.counted / window.seen) if window.seen else 0.0
        level = _level(rule.at, self.share) if window.seen >= rule.least - EPS else -1
        over = self.share < FALLEN * rule.at[0]
        active = level >= 0 and sight.sure
        return IndicatorState(level, active, over, self.began(sight, level), self.last, self.share)

    def words(self, level: int) -> str:
        return f"{self.rule.kind}: {self.names} in {100 * self.share:.0f} % of the last {self.window.seen:.0f} s"


class Count(Indicator):
    """Behaviours of at least `least` s in a window."""

    def __init__(self, rule: IndicatorRule, labels: Sequence[str], safe: Collection[int]):
        super().__init__(rule, labels, safe)
        self._times: deque[float] = deque(maxlen=256)  # when each began

    def measure(self, sight: Observation) -> IndicatorState:
        switch, rule = self.switch, self.rule
        if not switch.on:
            self.held = 0.0
        elif switch.held:
            before, self.held = self.held, self.held + switch.held * sight.dt
            if before < rule.least - EPS <= self.held:
                self._times.append(self.start)
            if self.held >= rule.least - EPS:
                self.last = sight.now
        elif not self.held:
            self.start = sight.now
        return self.counted(sight, sight.sure)

    def counted(self, sight: Observation, sure: bool) -> IndicatorState:
        times, at = self._times, self.rule.at
        while times and times[0] <= sight.now - self.rule.window:
            times.popleft()
        level, start = _level(at, len(times)), times[0] if times else sight.now
        return IndicatorState(level, level >= 0 and sure, len(times) < at[0], start, self.last, self.switch.q)

    def words(self, level: int) -> str:
        return f"{self.rule.kind}: {len(self._times)} times {self.names} within {self.rule.window:g} s"


class Spells(Count):
    """A face's signs that last from `least` to `most` s, counted in a window when they end.

    A spell reaches from the middle between two readings to another: known to half a reading.
    """

    @property
    def names(self) -> str:
        return WORDS[self.rule.sign]

    def measure(self, sight: Observation) -> IndicatorState:
        switch, rule, half = self.switch, self.rule, sight.dt / 2
        if sight.signs is None:  # a face that went is no spell that ended
            self.start = math.nan
        elif switch.on and math.isnan(self.start):
            self.start = sight.now - half
        elif not switch.on and not math.isnan(self.start):
            if rule.least <= sight.now - self.start + EPS < rule.most:
                self._times.append(self.start)
                self.last = sight.now - half
            self.start = math.nan
        return self.counted(sight, True)


class Evidence(Indicator):
    """From 0 to 1: fills in `rise` s above the threshold, empties in `fall` s below."""

    def measure(self, sight: Observation) -> IndicatorState:
        switch, rule = self.switch, self.rule
        away = self.duration(sight, rule.merge)
        if switch.held:
            self.left = max(0.0, self.left - switch.held * sight.dt / rule.rise)
        elif switch.gone:
            self.left = min(1.0, self.left + sight.dt / rule.fall)
        level = _level(rule.at, 1 - self.left) if self.held >= rule.least - EPS else -1
        over = away > rule.merge + EPS and 1 - self.left < rule.at[0]
        return IndicatorState(level, switch.active, over, self.start, self.last, switch.q)

    def words(self, level: int) -> str:
        return f"{self.rule.kind}: evidence of {self.names} {1 - self.left:.2f}, {self.held:.1f} s of it"


class Unsure(Indicator):
    """Seconds without a likely label: camera, light or net. Accuses nobody."""

    sure, before = 0.0, False  # s of being sure again; whether the last answer was unsure

    def unknown(self, sight: Observation) -> bool:
        return not sight.sure

    def measure(self, sight: Observation) -> IndicatorState:
        rule, unsure = self.rule, self.unknown(sight)
        if unsure:
            if math.isnan(self.start) or (not self.before and not self.held):
                self.held, self.start = 0.0, sight.now
            self.held += sight.dt if self.before else 0.0
            self.last, self.sure = sight.now, 0.0
        else:
            self.sure += sight.dt
            if self.sure > min(rule.release, rule.merge) + EPS:
                self.held = 0.0
        self.before = unsure
        level, over = _level(rule.after, self.held), self.sure > rule.merge + EPS
        return IndicatorState(level, unsure, over, self.start, self.last, 1.0)

    def words(self, level: int) -> str:
        return f"{self.rule.kind}: no label was likely for {self.held:.0f} s: look at the camera, the light, the model"


class Unseen(Unsure):
    """Seconds without a face where faces are read: an empty seat, a hand, a turned camera."""

    def unknown(self, sight: Observation) -> bool:
        return sight.signs is None

    def words(self, level: int) -> str:
        return f"{self.rule.kind}: no face for {self.held:.0f} s: look at the seat, the camera, the light"


class Blocked(Indicator):
    """Seconds without a usable picture."""

    trouble = ""

    def measure(self, sight: Observation) -> IndicatorState:
        if not sight.trouble:
            self.start = math.nan
            return IndicatorState(-1, False, sight.now - self.last > self.rule.merge, self.start, self.last, 1.0)
        if math.isnan(self.start):
            self.start = sight.since
        self.trouble, self.last, self.held = sight.trouble, sight.now, sight.now - self.start
        steps = self.rule.after if sight.trouble in ("black", "frozen") else self.rule.lost
        return IndicatorState(_level(steps, self.held), True, False, self.start, sight.now, 1.0)

    def words(self, level: int) -> str:
        return f"{self.rule.kind}: {TROUBLES[self.trouble]} for {self.held:.0f} s"


INDICATORS: dict[str, type[Indicator]] = {
    "awareness": Awareness,
    "glances": Glances,
    "hold": Hold,
    "share": Share,
    "count": Count,
    "evidence": Evidence,
    "spells": Spells,
    "unsure": Unsure,
    "unseen": Unseen,
    "camera": Blocked,
}
