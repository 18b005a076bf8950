"""From 0 to 1: eyes shut, head away, mouth wide open, head dropped. Pure."""

from collections import deque
from typing import NamedTuple

from typing_extensions import TypedDict

from stillwatch.media.points import Signals
from stillwatch.rules.normal import Deviation, Normal

ON, OFF = 0.63, 0.5  # a sign is ON at its limit, and there until it falls below OFF: four fifths of the limit
# Limits, all against the driver's own normal
SHUT = 0.8  # of the lids' travel: P80, Wierwille et al. 1994
YAW, DOWN, UP = 25.0, 15.0, 20.0  # degrees: head pose tells 25° for certain, and a phone in the lap lies lower; ours
MOUTH = 0.3  # height over width above the usual: speech reaches 0.2 on the drivers measured; ours
NOD = 20.0  # degrees down, with eyes shut: a head that drops and not one that reads; ours
EARLY = 1 / 6  # of the driver's normal: ten seconds
YAWN = 8.0  # s for which a mouth wide open explains shut eyes: a yawn takes about six (Provine 1986)
RECENT = 12  # readings whose pace is the rate


class Reading(NamedTuple):
    """seconds: when the picture was taken, on the Alarm's clock. signals: None: no face."""

    seconds: float
    signals: Signals | None


class FaceState(TypedDict):
    """For people. Openings and degrees; null: no face."""

    eyes: float | None
    mouth: float | None
    yaw: float | None
    pitch: float | None
    usual: dict[str, float]  # of this driver
    shut: float | None  # share of the lids' travel
    learnt: float  # of the driver's normal, 0..1


class Signs(NamedTuple):
    shut: float
    away: float
    yawn: float
    drop: float
    early: bool = False  # this driver and this camera's place are hardly known


class Face:
    """One camera's driver: signals, deviation, signs, and rate."""

    def __init__(self) -> None:
        self.normal = Normal()
        self.signals: Signals | None = None
        self.deviation: Deviation | None = None
        self._times: deque[float] = deque(maxlen=RECENT)
        self._wide: float | None = None  # since when the mouth is wide open

    @property
    def rate(self) -> float | None:
        """Readings a second; None before it is known."""
        if len(self._times) < RECENT or self._times[-1] <= self._times[0]:
            return None
        return (RECENT - 1) / (self._times[-1] - self._times[0])

    def state(self) -> FaceState:
        one, names = self.signals, ("eyes", "mouth", "yaw", "pitch")
        usual = {name: round(value, 3) for name, value in zip(names, self.normal.centre.tolist(), strict=False)}
        seen = (None,) * 4 if one is None else (one.eyes, one.mouth, one.yaw, one.pitch)
        eyes, mouth, yaw, pitch = (None if value is None else round(value, 3) for value in seen)
        return FaceState(
            eyes=eyes, mouth=mouth, yaw=yaw, pitch=pitch, usual=usual,
            shut=None if self.deviation is None else round(self.deviation.shut, 3), learnt=round(self.normal.learnt, 3),
        )  # fmt: skip

    def step(self, reading: Reading) -> Signs | None:
        """None: no face, no sign."""
        self._times.append(reading.seconds)
        self.signals = reading.signals
        self.deviation = self.normal.step(reading.seconds, reading.signals)
        if self.deviation is None:
            return None
        said = signs(self.deviation)
        self._wide = (reading.seconds if self._wide is None else self._wide) if said.yawn >= ON else None
        yawns = self._wide is not None and reading.seconds - self._wide < YAWN
        return said._replace(shut=0.0, drop=0.0) if yawns else said._replace(early=self.normal.learnt < EARLY)


def signs(d: Deviation) -> Signs:
    nod = d.pitch / DOWN if d.pitch > 0 else -d.pitch / UP
    shut, drop = d.shut / SHUT, max(d.pitch, 0.0) / NOD
    away, wide = max(abs(d.yaw) / YAW, nod), max(d.mouth, 0.0) / MOUTH
    shut, away, wide, drop = (min(ON * one, 1.0) for one in (shut, away, wide, min(drop, shut)))
    return Signs(shut, away, wide, drop)
