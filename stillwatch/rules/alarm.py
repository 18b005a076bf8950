"""Alarm: (time, probabilities) -> events. Smoothing, hysteresis, hold, merge, cooldown, levels.

In: seconds and float (K,) of one camera, one call a frame. Out: events that open, are raised, and close.
Called by the watch loop and by replay; what it looks for stands in profiles, how it is reckoned in signs.
It knows no clock, no I/O, no picture: a test is a story with asserted seconds.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillwatch.recipe import Rule
from stillwatch.rules.indicators import INDICATORS, TROUBLES, Hysteresis, Indicator, IndicatorState, Observation
from stillwatch.rules.presets import LEVELS, IndicatorRule, Level, indicators, profile, words

__all__ = ["LEVELS", "Alarm", "Event", "IndicatorRule", "Level", "Status", "indicators", "words"]

Status = Literal["ok", "black", "frozen", "lost"]  # of the picture; lost: there is none
GAP = 2.0  # s without an answer after which what was seen before proves nothing any more


@dataclass(frozen=True)
class Event:
    """Something a person should know of. The same id through its life: opened, raised any number of times, closed."""

    id: str  # camera-salt-number: unique where the salt is
    camera: str
    kind: str  # the indicator: distraction, glances, phone, microsleep, sleep, perclos, yawns, violence, camera …
    label: str | None  # the class that it is about
    level: Level
    state: Literal["opened", "raised", "closed"]
    start: float  # when the behaviour began, s
    opened: float  # when the rule first spoke, s
    updated: float  # when this was said, s
    end: float | None  # when the behaviour ended, s; None: it goes on
    peak: float  # the highest probability or share so far
    words: str  # one line for a person

    def shifted(self, seconds: float) -> "Event":
        """The same event on another clock."""
        end = None if self.end is None else self.end + seconds
        return replace(
            self, start=self.start + seconds, opened=self.opened + seconds, updated=self.updated + seconds, end=end
        )

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


class Case:
    """What one indicator has said: the open event if there is one, and for how long it is silent after the last."""

    def __init__(self, camera: str, one: IndicatorRule, switch: Hysteresis):
        self.camera, self.one, self.switch = camera, one, switch
        self.sign: Indicator = INDICATORS[one.how](one, switch)
        self.event: Event | None = None
        self._peak, self._last, self._level = 0.0, 0.0, -1
        self._silent, self._said = -math.inf, -1  # until when it is silent, and up to which level

    @property
    def level(self) -> int:
        """Of the open event, as an index of LEVELS; -1: none is open."""
        return -1 if self.event is None else LEVELS.index(self.event.level)

    @property
    def now(self) -> Event | None:
        """The open event with its peak up to now."""
        return None if self.event is None else replace(self.event, peak=self._peak)

    def heed(self, reading: IndicatorState, now: float, fresh: str, covered: int) -> Event | None:
        """What is to be said now, if anything. fresh: the next id. covered: up to which level another says it all."""
        if self.event is not None:
            return self._go_on(self.event, reading, now)
        level = reading.level
        if level < 0 or not reading.active or LEVELS.index(self.one.levels[level]) <= covered:
            return None
        if now < self._silent and level <= self._said:
            return None
        self._peak, self._last, self._level = reading.value, reading.last, level
        self.event = Event(
            id=fresh, camera=self.camera, kind=self.one.kind, label=self.switch.label(), level=self.one.levels[level],
            state="opened", start=min(reading.start, now), opened=now, updated=now, end=None, peak=self._peak,
            words=self.sign.words(level),
        )  # fmt: skip
        return self.event

    def close(self, now: float) -> Event | None:
        """End what is open: the behaviour was last seen when it was last read."""
        if self.event is None:
            return None
        end = min(max(self._last, self.event.start), now)
        said = replace(
            self.event, state="closed", updated=now, end=end, peak=self._peak,
            words=f"{self.event.words}; over after {end - self.event.start:.1f} s",
        )  # fmt: skip
        self.event, self._said, self._silent = None, self._level, end + self.one.cooldown
        return said

    def hush(self) -> None:
        """Forget the silence after the last event: the clock it was reckoned on is gone."""
        self._silent, self._said = -math.inf, -1

    def _go_on(self, event: Event, reading: IndicatorState, now: float) -> Event | None:
        self._peak = max(self._peak, reading.value)
        self._last = max(self._last, reading.last)
        if reading.over:
            return self.close(now)
        if reading.level <= self._level or not reading.active:
            return None
        self._level = reading.level
        level = self.one.levels[reading.level]
        self.event = replace(
            event, state="raised", level=level, updated=now, peak=self._peak, words=self.sign.words(reading.level)
        )
        return self.event


class Alarm:
    """One camera's judgement. gauge_name: "awareness" (of a driver; 1: attentive) or "evidence" (0: nothing)."""

    def __init__(
        self,
        camera: str,
        labels: Sequence[str],
        safe: Sequence[str],
        rule: Rule,
        threshold: float | None = None,
        salt: str = "",
    ):
        """labels (K,): what the probabilities are of. safe: those that accuse nobody.

        threshold: of the bundle's operating point, for evidence; rule.threshold goes before it, 0.5 stands behind it.
        salt: makes the ids of this start its own. Raises UserError for a rule that does not suit the labels.
        """
        self.camera, self.labels, self.salt = camera, tuple(labels), salt
        self.indicators = indicators(rule, labels, safe, threshold)
        preset = profile(rule)
        self.gauge_name = preset.gauge
        self._smooth, self._unsure = preset.smooth, preset.unsure
        self._safe = frozenset(place for place, label in enumerate(labels) if label in safe)
        self._nothing = np.zeros(len(self.labels))  # what an unsure frame is taken for: its likeliest label is a guess
        self._nothing[sorted(self._safe)[:1]] = 1.0
        self._cases: dict[str, Case] = {}
        for one in self.indicators:
            self._cases[one.kind] = Case(camera, one, Hysteresis(one, self.labels, self._safe))
        self._count = 0
        self._now: float | None = None  # of the newest step
        self._sight: float | None = None  # of the newest answer
        self._back: float | None = None  # where a clock went on that was set back
        self._taken: float | None = None  # of the newest answer, as its picture says
        self._was_blind = False  # the newest step had no answer
        self._s = np.zeros(len(self.labels))  # smoothed

    @property
    def open(self) -> list[Event]:
        """The events that go on, as they were last said, with their peaks up to now."""
        return [event for case in self._cases.values() if (event := case.now) is not None]

    @property
    def gauge(self) -> float:
        """awareness: 1 attentive, 0 the loudest level is reached; evidence: 0 none, 1 full."""
        if self.gauge_name == "evidence":
            return max((1 - case.sign.left for case in self._cases.values()), default=0.0)
        return min((case.sign.left for case in self._cases.values()), default=1.0)

    def step(self, now: float, p: ArrayLike | None, status: Status = "ok") -> list[Event]:
        """One frame, or word that there is none: what is to be said now.

        now: seconds on any clock that goes forward, at any uneven rate from one frame a second up. p: float (K,);
        None where there is no answer, best said about every second. With a status other than "ok" p is not heeded:
        such a picture proves nothing. More than 2 s without an answer are a gap: open accusations end, and none of
        what led to them counts afterwards. A step at a time that is not later than the last is passed over; a clock
        that was set back is known by 2 s of them, and everything begins anew. NaN is no answer.
        Raises ValueError for p of another shape and for an unknown status.
        """
        x = self._checked(p) if p is not None else None
        if status not in ("ok", *TROUBLES):
            raise ValueError(f"status {status!r} must be one of ok, black, frozen, lost")
        said: list[Event] = []
        now, blind = float(now), x is None or status != "ok"
        if not blind:
            now = self._taken_at(now)
        if not self._forward(now, said):
            return said
        self._now = now
        self._was_blind = blind
        if x is None or blind:
            self._blind(now, status if status != "ok" else "mute", said)
        else:
            self._seen(now, x, said)
        return said

    def close(self, now: float) -> list[Event]:
        """End what is open: the watch ends. Calling it again is harmless; a later step begins anew on any clock."""
        if self._now is not None:
            now = max(now, self._now) if math.isfinite(now) else self._now
        said = self._end(self._cases.values(), now)
        self._fresh()
        return said

    # --- time -------------------------------------------------------------------------------------------------------

    def _fresh(self) -> None:
        """As on the first day: nothing seen, nothing held, no silence."""
        self._now = self._sight = self._back = self._taken = None
        self._was_blind = False
        for case in self._cases.values():
            case.sign.forget()
            case.hush()

    def _taken_at(self, now: float) -> float:
        """When an answer counts: a picture on its way while somebody said that there is none is not too late for it."""
        since = -math.inf if self._taken is None else self._taken
        if self._now is not None and self._was_blind and max(since, self._now - GAP) < now <= self._now:
            self._taken = now
            return math.nextafter(self._now, math.inf)
        self._taken = now
        return now

    def _forward(self, now: float, said: list[Event]) -> bool:
        """Whether this step counts. A clock that was set back for good ends everything and begins anew."""
        if not math.isfinite(now):
            return False
        if self._now is None or now > self._now:
            self._back = None
            return True
        if self._back is None or now < self._back:
            self._back = now
        if now - self._back <= GAP:
            return False
        said += self.close(self._now)
        return True

    # --- sight ------------------------------------------------------------------------------------------------------

    def _checked(self, p: ArrayLike) -> NDArray[np.float64] | None:
        x = np.asarray(p, np.float64)
        if x.shape != self._s.shape:
            raise ValueError(f"probabilities of shape {x.shape}: wanted {self._s.shape}, one for each label")
        return np.clip(x, 0, 1) if np.isfinite(x).all() else None

    def _blind(self, now: float, trouble: str, said: list[Event]) -> None:
        """No answer. Black and frozen are only said after a while, so what came just before was not seen either."""
        since = now if self._sight is None else self._sight
        if self._sight is not None and (trouble in ("black", "frozen") or now - self._sight > GAP):
            self._forget(now, said)
        self._tell("camera", Observation(now, 0.0, (), False, False, trouble, since), said)

    def _seen(self, now: float, x: NDArray[np.float64], said: list[Event]) -> None:
        if self._sight is not None and now - self._sight > GAP:
            self._forget(now, said)
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
        sight = Observation(now, dt, s, sure, calm, "", now)
        for kind in self._cases:
            self._tell(kind, sight, said)

    def _forget(self, now: float, said: list[Event]) -> None:
        """A gap in sight: no accusation outlives it."""
        accusing = [case for case in self._cases.values() if case.one.how != "camera"]
        said += self._end(accusing, now)
        for case in accusing:
            case.sign.forget()
        self._sight = None

    # --- saying it --------------------------------------------------------------------------------------------------

    def _tell(self, kind: str, sight: Observation, said: list[Event]) -> None:
        case = self._cases.get(kind)
        if case is None:
            return
        other = self._cases.get(case.one.under)
        dash = f"{self.camera}-{self.salt}" if self.salt else self.camera
        event = case.heed(
            case.sign.step(sight), sight.now, f"{dash}-{self._count + 1}", -1 if other is None else other.level
        )
        if event is not None:
            self._count += event.state == "opened"
            said.append(event)

    @staticmethod
    def _end(cases: Iterable[Case], now: float) -> list[Event]:
        return [event for case in cases if (event := case.close(now)) is not None]
