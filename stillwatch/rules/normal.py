"""A driver's normal: each signal's running centre and spread. Pure."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillwatch.media.points import Signals

EVERY = 0.2  # s between two samples: five a second, whatever the camera's rate
KEPT = 1500  # samples: five minutes; older ones are forgotten
PRIOR = 40.0  # samples that the prior is worth at first …
LEARNT = 300  # … and samples after which it is worth none: a minute
AT_ONCE = 50  # samples of which each moves the normal; later ones do so once a second
GONE = 20.0  # s without a face after which the next one may be another driver's, and all is learnt anew


class Range(NamedTuple):
    """Of one signal before anything is known, and its spread's bounds. Measured on five drivers."""

    centre: float
    spread: float  # between the quartiles
    least: float
    most: float


RANGES = (
    Range(0.25, 0.04, 0.02, 0.08),  # eyes
    Range(0.05, 0.05, 0.03, 0.15),  # mouth
    Range(-5.0, 12.0, 5.0, 25.0),  # yaw
    Range(-9.0, 8.0, 4.0, 15.0),  # pitch
    Range(0.0, 6.0, 3.0, 12.0),  # roll
)
FRONTAL = 20.0  # degrees of yaw from the usual within which an opening is learnt: a turned eye looks wider open
# How far the lids of an open eye can fall: to the rarest opening seen (a blink shows it), within these limits. Ours
TRAVEL = (0.08, 0.18)
RAREST = 1.0  # per cent
FAR = 4.0  # spreads from the usual beyond which a signal says no more
PAST = 2.0  # s: time constant of the running mean that says what the face did until now


class Deviation(NamedTuple):
    """A face against its driver's normal."""

    shut: float  # how far the lids have fallen: 0 as usual, 1 shut
    mouth: float  # opening above the usual
    yaw: float  # degrees from the usual, as Signals has them
    pitch: float
    roll: float
    z: tuple[float, ...]  # each signal less its centre, over its spread: eyes, mouth, yaw, pitch, roll
    past: tuple[float, ...] = ()  # running mean of traits; (): nothing but now is known
    said: tuple[float, ...] = ()  # as Signals has it

    @property
    def traits(self) -> NDArray[np.float64]:
        """(8,): z clipped to FAR, shut, how far the head turned and nodded."""
        z = np.clip(self.z, -FAR, FAR)
        return np.concatenate([z, [self.shut], np.abs(z[2:4])])


class Normal:
    """Running quartiles of the last KEPT samples, which ten bad frames move little."""

    def __init__(self) -> None:
        normal = np.array([-1.15, -0.67, -0.32, -0.1, 0.1, 0.32, 0.67, 1.15]) / 0.815  # its quartiles lie 1 apart
        self._guess = np.array([[one.centre + one.spread * q for one in RANGES] for q in normal])
        # Of eyes, mouth, yaw, pitch, roll
        self.centre, self._spread = (np.array([one[place] for one in RANGES]) for place in (0, 1))
        self._samples = np.empty((KEPT, len(RANGES)))
        self._count = 0
        self._next = -math.inf
        self._seen = math.inf
        self._past: NDArray[np.float64] | None = None  # (8,)
        self._update()

    @property
    def learnt(self) -> float:
        """0: the prior alone; 1: this driver alone."""
        return min(1.0, self._count / LEARNT)

    def step(self, now: float, signals: Signals | None) -> Deviation | None:
        """now: s, rising. None: no face."""
        if signals is None or not all(map(math.isfinite, signals.flat())):
            return None
        x = (signals.eyes, signals.mouth, signals.yaw, signals.pitch, signals.roll)
        if now - self._seen > GONE or now < self._seen < math.inf:
            self._count = 0
            self._next = -math.inf
            self._past = None
        gone, self._seen = max(now - self._seen, 0.0), now
        if now >= self._next - 1e-6:
            self._next = max(self._next, now - EVERY) + EVERY if self._next > -math.inf else now + EVERY
            frontal = abs(signals.yaw - self.centre[2]) <= FRONTAL
            self._samples[self._count % KEPT] = x if frontal else (math.nan, *x[1:])
            self._count += 1
            if self._count < AT_ONCE or self._count % 5 == 0:
                self._update()
        less = np.array(x) - self.centre
        shut = min(max(-less[0] / self._travel, 0.0), 1.0)
        _, mouth, yaw, pitch, roll = less.tolist()
        here = Deviation(float(shut), mouth, yaw, pitch, roll, tuple((less / self._spread).tolist()))
        traits = here.traits
        self._past = traits if self._past is None else traits + math.exp(-gone / PAST) * (self._past - traits)
        return here._replace(past=tuple(self._past.tolist()), said=signals.said)

    def _update(self) -> None:
        guess = np.repeat(self._guess, round(PRIOR * (1 - self.learnt) / len(self._guess)), axis=0)
        own = self._samples[: self._count]
        for place, (_, _, least, most) in enumerate(RANGES):
            x = np.concatenate([own[:, place], guess[:, place]])
            x = x[~np.isnan(x)]
            if not len(x):  # the head is turned all the time
                continue
            low, middle, high = np.percentile(x, (25, 50, 75))
            self._spread[place] = min(max(high - low, least), most)
            # Of the eyes above the median: lids shut half of the time must not become usual
            self.centre[place] = middle if place else high - self._spread[0] / 2
        lids = own[~np.isnan(own[:, 0]), 0]
        rarest = np.percentile(lids, RAREST) if len(lids) else math.inf
        self._travel = min(max(float(self.centre[0] - rarest), TRAVEL[0]), TRAVEL[1])
