"""The indicators' tables, each number with its source, with none of which they claim compliance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stillwatch.rules.events import LEVELS, Level

How = Literal["awareness", "glances", "hold", "share", "count", "evidence", "spells", "unsure", "unseen", "camera"]
Sign = Literal["shut", "away", "yawn", "drop"]  # fields of signs.Signs
WORDS: dict[str, str] = {
    "shut": "eyes shut", "away": "head turned away", "yawn": "mouth wide open", "drop": "head dropped with eyes shut",
}  # fmt: skip
Wins = Literal["net", "signs", "either"]
THRESHOLD = 0.5  # of evidence, where neither the rule nor the bundle gives one


@dataclass(frozen=True)
class IndicatorRule:
    """Times in seconds of sight, at any frame rate."""

    how: How
    labels: tuple[str, ...] = ()
    levels: tuple[Level, ...] = LEVELS  # that are reached, one for each number of `after` or `at`
    after: tuple[float, ...] = ()  # s of behaviour
    at: tuple[float, ...] = ()  # share of the window, number in the window, seconds in the window, or evidence
    lost: tuple[float, ...] = ()  # s without a picture
    on: float = 0.63  # the smoothed probability from which it is there …
    off: float = 0.37  # … and below which it is not: openpilot, driver monitoring: filter x > 0.63, x < 0.37
    release: float = 0.0  # s of absence after which what was held so far no longer counts
    merge: float = 0.0  # s of absence after which an event ends; back before, and it is the same event
    cooldown: float = 0.0  # s after an event in which another of its kind speaks only if it is worse
    window: float = 0.0  # s that are looked back on
    least: float = 0.0  # share: s seen before it speaks; count: s that one takes; evidence: s above the threshold
    back: float = 0.0  # s of attention that start glances anew
    recover: tuple[float, ...] = ()  # awareness comes back this many times as fast as it goes: when empty, when full
    threshold: float | None = None  # evidence grows from it upwards
    rise: float = 0.0  # s in which evidence fills
    fall: float = 0.0  # s in which it empties
    under: str = ""  # silent while an event of that kind says as much or more
    sign: Sign | Literal[""] = ""  # of the face, where one is read
    wins: Wins = "net"  # where sign and labels disagree: either: the larger; signs: the face alone, labels without one
    most: float = float("inf")  # spells: s from which on it is something else
    rate: float = 0.0  # readings of the face a second below which it is off
    names: tuple[str, ...] = ()  # of the levels, where they have names of their own
    source: str = ""
    kind: str = ""  # the name in the table

    @property
    def words(self) -> str:
        """What it looks for, when it speaks, its source."""
        steps = self.after or self.at
        said = [f"{level} {_of(self, step)}" for level, step in zip(self.levels, steps, strict=True)]
        if self.lost:
            said.append("without a picture: " + ", ".join(f"{x} after {s:g} s" for x, s in zip(self.levels, self.lost)))  # noqa: B905
        rest = f", silent for {self.cooldown:g} s afterwards unless worse" if self.cooldown else ""
        return f"{self.kind}: {_what(self)}: {', '.join(said)}{rest} ({self.source})"


@dataclass(frozen=True)
class Profile:
    smooth: float  # s, time constant of the smoothing of every probability
    unsure: float  # below this largest probability a frame accuses nobody
    gauge: Literal["awareness", "evidence"]
    indicators: Mapping[str, IndicatorRule]


CAMERA = IndicatorRule(
    "camera",
    levels=("notice", "warn"),
    after=(2.0, 10.0),  # black, covered or frozen; our choice: what reports it has waited before it did
    lost=(5.0, 30.0),  # our choice: a stream that is back within 5 s is nobody's business
    merge=2.0,  # our choice
    cooldown=30.0,  # our choice
    source="our choice",
)

DRIVER = Profile(
    smooth=0.25,  # openpilot: _DISTRACTED_FILTER_TS = 0.25 s
    unsure=0.5,  # our choice: even the likeliest label is less likely than not
    gauge="awareness",
    indicators={
        "distraction": IndicatorRule(
            "awareness",
            labels=("Distracted",),
            after=(3.0, 5.0, 11.0),  # openpilot: 11 s in all, first alert 8 s, second 6 s before their end
            recover=(5.0, 1.25),  # openpilot: _RECOVERY_FACTOR_MAX, _RECOVERY_FACTOR_MIN
            merge=10.0,  # our choice: neither away nor back for so long, nothing is known any more
            cooldown=5.0,  # our choice
            sign="away",
            wins="either",  # a turned head looks away whatever the net thinks; the net also sees eyes and hands
            source="openpilot; 3 s is also Euro NCAP's long distraction, by secondary sources",
        ),
        "glances": IndicatorRule(
            "glances",
            labels=("Distracted",),
            levels=("warn",),
            at=(10.0,),  # Euro NCAP's visual time sharing, by Forster et al. 2024 (Accid. Anal. Prev. 205, 107684):
            window=30.0,  # … 10 s within 30 s
            back=2.0,  # Euro NCAP, by secondary sources: 2 s of looking ahead start it anew
            cooldown=30.0,  # our choice: the window
            under="distraction",
            sign="away",
            wins="either",  # as distraction
            source="Euro NCAP by secondary sources",
        ),
        "short-glances": IndicatorRule(
            "spells",
            levels=("notice", "warn"),
            at=(10.0, 15.0),  # our choice: mirrors take about six in so long
            window=30.0,  # as glances
            least=0.5,  # our choice: an eye on a mirror is back earlier
            most=3.0,  # from there on it is distraction
            rate=5.0,  # three readings a glance, less a tenth
            cooldown=30.0,  # our choice: the window
            under="distraction",
            sign="away",
            wins="signs",
            source="our choice",
        ),
        "sleep": IndicatorRule(
            "hold",
            labels=("SleepyDriving",),
            # Euro NCAP, by secondary sources: microsleep below 3 s, sleep from 3 s, unresponsive from 6 s. From 1 s on
            # an eyelid no longer blinks: our choice, with the 1-second microsleep of VSS 2012 (see perclos)
            after=(1.0, 3.0, 6.0),
            names=("microsleep", "asleep", "unresponsive"),
            release=1.0,  # our choice
            merge=3.0,  # our choice
            sign="shut",
            # Lids against the driver's own normal tell sleepy from safe with AUC 0.84 to 0.997 on drivers never met; of
            # a picture net the F1 is 0.1 to 0.4
            wins="signs",
            source="Euro NCAP by secondary sources; 1 s: our choice",
        ),
        "perclos": IndicatorRule(
            "share",
            labels=("SleepyDriving",),
            levels=("notice", "warn"),
            at=(0.10, 0.15),  # 10 %: VSS 2012, J. Vision 12(9) (10.5 % at a 1-second microsleep); 15 %: P80 literature
            window=60.0,  # Wierwille et al. 1994: share of a minute with the eyes at least 80 % closed
            least=45.0,  # our choice: three quarters of it have been seen
            cooldown=60.0,  # our choice: the window
            under="sleep",
            sign="shut",  # P80 itself
            wins="signs",  # as sleep
            source="PERCLOS, P80 literature",
        ),
        "blinks": IndicatorRule(
            "spells",
            levels=("notice",),
            at=(40.0,),  # our choice: about twice the usual 15 to 20 a minute (Bentivoglio et al. 1997)
            window=60.0,
            least=0.05,  # shorter is noise
            most=0.3,  # longer is a long blink
            rate=13.0,  # a blink of 0.1 s is met at least once, less a tenth
            cooldown=300.0,  # our choice
            sign="shut",
            wins="signs",
            source="our choice",
        ),
        "long-blinks": IndicatorRule(
            "spells",
            levels=("notice", "warn"),
            # Our choice: an alert driver shows hardly one (Caffier et al. 2003: blinks last 0.2 s, tired ones 0.3)
            at=(8.0, 15.0),
            window=60.0,  # our choice
            least=0.3,
            most=1.0,  # from there on it is microsleep
            rate=9.0,  # three readings a closure, less a tenth
            cooldown=60.0,  # our choice: the window
            under="sleep",
            sign="shut",
            wins="signs",
            source="our choice; 0.3 s: Caffier et al. 2003",
        ),
        "head-drop": IndicatorRule(
            "spells",
            levels=("notice", "warn"),
            at=(1.0, 3.0),  # our choice
            window=60.0,  # our choice
            least=0.5,  # our choice
            most=10.0,  # from there on nobody nods
            rate=5.0,  # three readings, less a tenth
            cooldown=60.0,  # our choice: the window
            sign="drop",
            wins="signs",
            source="our choice",
        ),
        "yawns": IndicatorRule(
            "count",
            labels=("Yawn",),
            levels=("notice", "warn"),
            at=(3.0, 5.0),  # our choice: yawning alone is a weak sign of drowsiness
            window=60.0,  # our choice
            least=1.0,  # our choice: a word or a laugh opens the mouth for less
            cooldown=60.0,  # our choice: the window
            sign="yawn",
            wins="either",  # hands cover mouths, so the lips alone do not find every yawn (AUC 0.46 to 0.88)
            source="our choice",
        ),
        "phone": IndicatorRule(
            "hold",
            labels=("DangerousDriving",),
            after=(3.0, 5.0, 11.0),  # openpilot counts a phone as distraction: the same times
            release=1.0,  # our choice
            merge=5.0,  # our choice
            cooldown=5.0,  # our choice
            source="openpilot's times of distraction",
        ),
        "drinking": IndicatorRule(
            "hold",
            labels=("Drinking",),
            levels=("notice", "warn"),
            after=(3.0, 10.0),  # our choice: a sip is nobody's business, and no drink is an alarm
            release=1.0,  # our choice
            merge=5.0,  # our choice
            cooldown=30.0,  # our choice
            source="our choice",
        ),
        "unsure": IndicatorRule(
            "unsure",
            levels=("notice", "warn"),
            after=(10.0, 60.0),  # openpilot: _HI_STD_FALLBACK_TIME = 10 s, _DCAM_UNCERTAIN_ALERT_COUNT = 60 s
            release=2.0,  # openpilot: _DCAM_UNCERTAIN_RESET_COUNT = 2 s
            merge=5.0,  # our choice
            cooldown=300.0,  # our choice
            source="openpilot",
        ),
        "no-face": IndicatorRule(
            "unseen",
            levels=("notice", "warn"),
            after=(10.0, 60.0),  # as unsure
            release=2.0,  # as unsure
            merge=5.0,  # our choice
            cooldown=300.0,  # our choice
            source="our choice",
        ),
        "camera": CAMERA,
    },
)

CCTV = Profile(
    smooth=0.0,  # the evidence smooths by itself, and a high threshold would wait long for a smoothed probability
    unsure=0.0,  # our choice: the threshold is the gate
    gauge="evidence",
    indicators={
        "incident": IndicatorRule(  # takes the label's name where there is one label only: violence
            "evidence",
            at=(0.4, 0.7, 1.0),  # our choice: 1.2, 2.1 and 3 s of steady certainty
            rise=3.0,  # our choice: fast up …
            fall=8.0,  # … slowly down: it grows where more than a quarter to a third of the time is above the threshold
            least=1.0,  # our choice: minimum duration
            merge=8.0,  # our choice: a pause within one fight
            cooldown=10.0,  # our choice: refractory time
            source="our choice",
        ),
        "camera": CAMERA,
    },
)

PROFILES: dict[str, Profile] = {"driver": DRIVER, "cctv": CCTV}


def _what(one: IndicatorRule) -> str:
    labels = " or ".join(one.labels)
    if one.sign and one.labels and one.wins != "net":
        face = WORDS[one.sign]
        labels += f" or {face}" if one.wins == "either" else f" ({face}, where a face is read)"
    return {
        "awareness": f"{labels}, counted off an awareness that comes back faster than it goes",
        "glances": f"{labels} in all within {one.window:g} s, without {one.back:g} s of attention at a stretch",
        "hold": f"{labels} without a break of {one.release:g} s",
        "share": f"share of the last {one.window:g} s with {labels}, once {one.least:g} s were seen",
        "count": f"times of {labels} of at least {one.least:g} s within {one.window:g} s",
        "evidence": f"evidence of {labels}, full after {one.rise:g} s at or above {one.threshold or THRESHOLD:.3g}, "
        f"empty after {one.fall:g} s below, from {one.least:g} s on",
        "spells": f"times of {WORDS.get(one.sign)} for {one.least:g} s to {one.most:g} s within {one.window:g} s, "
        f"where a face is read at least {one.rate:g} times a second",
        "unseen": "no face, where faces are read",
        "unsure": "no label is likely enough to accuse anybody",
        "camera": "black, covered or frozen picture",
    }[one.how]


def _of(one: IndicatorRule, step: float) -> str:
    if one.how == "share":
        return f"from {100 * step:g} %"
    if one.how in ("count", "spells"):
        return f"from {step:g}"
    return f"at {step:g}" if one.how == "evidence" else f"after {step:g} s"
