"""One camera's (seconds, probabilities) -> events. Uses no clock, I/O or picture."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillwatch.recipe import Rule
from stillwatch.rules.events import LEVELS, Event
from stillwatch.rules.indicators import INDICATORS, TROUBLES, Indicator, IndicatorState, Observation
from stillwatch.rules.normal import Deviation
from stillwatch.rules.presets import indicators, profile
from stillwatch.rules.profiles import IndicatorRule
from stillwatch.rules.signs import Face, Reading, Signs

Status = Literal["ok", "empty", "black", "frozen", "lost"]  # of the picture; empty: nobody in it; lost: there is none
READ = ("spells", "unseen")  # indicators that step with every reading of the face, and without an answer
Fuse: TypeAlias = Callable[[ArrayLike, Deviation], NDArray[np.float64]]  # the net's answer (K,), a face -> answer (K,)
STALE = 0.5  # s after which a reading says nothing about the answer
GAP = 2.0  # s without an answer after which what was seen before proves nothing any more


class Case:
    """An indicator's open event, and the silence after it."""

    def __init__(self, camera: str, rule: IndicatorRule, labels: Sequence[str], safe: frozenset[int]):
        self.camera, self.rule, self.labels, self.safe = camera, rule, labels, safe
        self.event: Event | None = None
        self._peak, self._last, self._level = 0.0, 0.0, -1
        self.forget()
        self.unmute()

    def forget(self) -> None:
        self.indicator: Indicator = INDICATORS[self.rule.how](self.rule, self.labels, self.safe)

    def unmute(self) -> None:
        self._silent, self._spoken = -math.inf, -1  # until when it is silent, and up to which level

    @property
    def now(self) -> Event | None:
        """With the peak so far."""
        return None if self.event is None else replace(self.event, peak=self._peak)

    def handle(self, state: IndicatorState, now: float, fresh: str, covered: int) -> Event | None:
        """What to send now. fresh: the next id. covered: another event's level."""
        level = state.level
        if self.event is not None:
            self._peak, self._last = max(self._peak, state.value), max(self._last, state.last)
            if state.over:
                return self.close(now)
            if level <= self._level or not state.active:
                return None
            self.event = replace(
                self.event, state="raised", level=self.rule.levels[level], updated=now, peak=self._peak,
                words=self.indicator.words(level),
            )  # fmt: skip
        elif (
            level < 0
            or not state.active
            or LEVELS.index(self.rule.levels[level]) <= covered
            or (now < self._silent and level <= self._spoken)
        ):
            return None
        else:
            self._peak, self._last = state.value, state.last
            self.event = Event(
                fresh, self.camera, self.rule.kind, self.indicator.switch.label(), self.rule.levels[level], "opened",
                start=min(state.start, now), opened=now, updated=now, end=None, peak=self._peak,
                words=self.indicator.words(level),
            )  # fmt: skip
        self._level = level
        return self.event

    def close(self, now: float) -> Event | None:
        """Ends when the behaviour was last seen."""
        if self.event is None:
            return None
        end = min(max(self._last, self.event.start), now)
        words = f"{self.event.words}; over after {end - self.event.start:.1f} s"
        closed = replace(self.event, state="closed", updated=now, end=end, peak=self._peak, words=words)
        self.event, self._spoken, self._silent = None, self._level, end + self.rule.cooldown
        return closed


class Alarm:
    """gauge_name: "awareness" (1: an attentive driver) or "evidence" (0: none)."""

    def __init__(
        self,
        camera: str,
        labels: Sequence[str],
        safe: Sequence[str],
        rule: Rule,
        threshold: float | None = None,
        salt: str = "",
    ):
        """labels: K. safe: labels that accuse nobody. salt: makes this start's ids unique. threshold: the bundle's, for
        evidence, after rule.threshold; default 0.5. Raises UserError.
        """
        self.camera, self.labels, self._ids = camera, tuple(labels), f"{camera}-{salt}" if salt else camera
        self.indicators, preset = indicators(rule, labels, safe, threshold), profile(rule)
        self.gauge_name, self._smooth, self._unsure = preset.gauge, preset.smooth, preset.unsure
        self._safe = frozenset(place for place, label in enumerate(labels) if label in safe)
        self._nothing = np.zeros(len(self.labels))  # what an unsure frame is taken for: its likeliest label is a guess
        self._nothing[sorted(self._safe)[:1]] = 1.0
        self._cases = {one.kind: Case(camera, one, self.labels, self._safe) for one in self.indicators}
        self.fuse: Fuse | None = None
        self.answer: NDArray[np.float64] | None = None  # of the newest step: the net's, or fused with the face
        self._count = 0
        self._s = np.zeros(len(self.labels))  # smoothed
        self._restart()

    def _restart(self) -> None:
        self._now: float | None = None  # of the newest step
        self._sight: float | None = None  # of the newest answer
        self._back: float | None = None  # where a clock went on that was set back
        self._taken: float | None = None  # of the newest answer, as its picture says
        self._was_blind = False  # the newest step had no answer
        self.face = Face()
        self._read: float | None = None  # of the newest reading
        self._signs: Signs | None = None
        for case in self._cases.values():
            case.forget()
            case.unmute()

    @property
    def open(self) -> list[Event]:
        """As last sent, with peaks so far."""
        return [event for case in self._cases.values() if (event := case.now) is not None]

    @property
    def gauge(self) -> float:
        """awareness: 1 attentive, 0 the loudest level; evidence: 0 none, 1 full."""
        left = min((case.indicator.left for case in self._cases.values()), default=1.0)
        return 1 - left if self.gauge_name == "evidence" else left

    @property
    def notes(self) -> list[str]:
        """What is off because faces are read too seldom."""
        rate = self.face.rate
        return [] if rate is None else [
            f"{one.kind} is off: the face is read {rate:.1f} times a second, {one.rate:g} are needed"
            for one in self.indicators if rate < one.rate
        ]  # fmt: skip

    def step(
        self, now: float, p: ArrayLike | None, status: Status = "ok", readings: Sequence[Reading] = ()
    ) -> list[Event]:
        """Takes one frame, or word that there is none. Returns what to send.

        now: seconds on a forward clock, at least one frame a second. p: float (K,), or None without an answer; ignored
        unless status is "ok"; NaN is none. readings: of the face since the last step. After 2 s without an answer, or
        "empty", accusations end and the past is wiped. A step not later than the last is skipped; after 2 s of them the
        clock was set back and all starts anew. Raises ValueError for another shape of p or an unknown status.
        """
        x = self._checked(p) if p is not None else None
        if status not in ("ok", "empty", *TROUBLES):
            raise ValueError(f"status {status!r} must be one of ok, empty, black, frozen, lost")
        events: list[Event] = []
        now, blind = float(now), x is None or status != "ok"
        if not blind:
            now = self._taken_at(now)
        if not self._forward(now, events):
            return events
        self._now, self._was_blind = now, blind
        for reading in readings if status in ("ok", "empty") else ():
            if (self._read is None or self._read < reading.seconds) and reading.seconds <= now:
                self._glimpsed(reading, events)
        if self._read is not None and now - self._read > GAP:
            self._forget(now, events, READ)
            self._read = None
        fresh = self._read is not None and now - self._read <= STALE
        if x is not None and self.fuse and fresh and self.face.deviation is not None:
            x = self.fuse(x, self.face.deviation)
        self.answer = x
        if x is None or blind:
            self._blind(now, status if status != "ok" else "mute", events)
        else:
            self._seen(now, x, events)
        return events

    def close(self, now: float) -> list[Event]:
        """May be repeated; a later step starts anew on any clock."""
        if self._now is not None:
            now = max(now, self._now) if math.isfinite(now) else self._now
        events = [event for case in self._cases.values() if (event := case.close(now))]
        self._restart()
        return events

    def _taken_at(self, now: float) -> float:
        """A picture is not late because a "no picture" overtook it."""
        since = -math.inf if self._taken is None else self._taken
        self._taken = now
        if self._now is not None and self._was_blind and max(since, self._now - GAP) < now <= self._now:
            return math.nextafter(self._now, math.inf)
        return now

    def _forward(self, now: float, events: list[Event]) -> bool:
        if not math.isfinite(now):
            return False
        if self._now is None or now > self._now:
            self._back = None
            return True
        if self._back is None or now < self._back:
            self._back = now
        if now - self._back <= GAP:
            return False
        events += self.close(self._now)
        return True

    def _checked(self, p: ArrayLike) -> NDArray[np.float64] | None:
        x = np.asarray(p, np.float64)
        if x.shape != self._s.shape:
            raise ValueError(f"probabilities of shape {x.shape}: wanted {self._s.shape}, one for each label")
        return np.clip(x, 0, 1) if np.isfinite(x).all() else None

    def _blind(self, now: float, trouble: str, events: list[Event]) -> None:
        """Black and frozen are reported late: what came just before was not seen."""
        since = now if self._sight is None else self._sight
        if self._sight is not None and (trouble in ("black", "frozen") or now - self._sight > GAP):
            self._forget(now, events)
        sight = Observation(now, 0.0, (), False, False, "" if trouble == "empty" else trouble, since)
        self._tell((case for kind, case in self._cases.items() if kind == "camera"), sight, events)

    def _seen(self, now: float, x: NDArray[np.float64], events: list[Event]) -> None:
        if self._sight is not None and now - self._sight > GAP:
            self._forget(now, events)
        sure = bool(x.max() >= self._unsure)
        target = x if sure else self._nothing
        if self._sight is None:
            dt, self._s = 0.0, target
        else:
            dt = now - self._sight
            share = -math.expm1(-dt / self._smooth) if self._smooth else 1.0
            self._s = self._s + share * (target - self._s)
        self._sight = now
        s = self._s.tolist()
        calm = sure and (not self._safe or max(range(len(s)), key=s.__getitem__) in self._safe)
        signs = self._signs if self._read is not None and now - self._read <= STALE else None
        cases = (case for case in self._cases.values() if case.rule.how not in READ)
        self._tell(cases, Observation(now, dt, s, sure, calm, "", now, signs), events)

    def _glimpsed(self, reading: Reading, events: list[Event]) -> None:
        now, dt = reading.seconds, 0.0 if self._read is None else reading.seconds - self._read
        if dt > GAP:
            self._forget(now, events, READ)
            dt = 0.0
        self._read, self._signs = now, self.face.step(reading)
        rate = self.face.rate
        cases = []
        for case in self._cases.values():
            if case.rule.how in READ and (rate is None or rate >= case.rule.rate):
                cases.append(case)
            elif case.rule.how in READ:
                case.forget()
        self._tell(cases, Observation(now, dt, self._s.tolist(), True, False, "", now, self._signs), events)

    def _forget(self, now: float, events: list[Event], only: tuple[str, ...] = ()) -> None:
        """No accusation outlives a gap in sight. only: of these indicators."""
        for case in self._cases.values():
            if case.rule.how != "camera" and (not only or case.rule.how in only):
                if event := case.close(now):
                    events.append(event)
                case.forget()
        if not only:
            self._sight = None

    def _tell(self, cases: Iterable[Case], sight: Observation, events: list[Event]) -> None:
        for case in cases:
            other = self._cases.get(case.rule.under)
            covered = -1 if other is None or other.event is None else LEVELS.index(other.event.level)
            event = case.handle(case.indicator.step(sight), sight.now, f"{self._ids}-{self._count + 1}", covered)
            if event is not None:
                self._count += event.state == "opened"
                events.append(event)
