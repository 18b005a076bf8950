"""Indicator presets, each number with its source. They claim no compliance with any source."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from stillwatch.errors import UserError, nearest
from stillwatch.recipe import Rule
from stillwatch.rules.events import LEVELS, Level

How = Literal["awareness", "glances", "hold", "share", "count", "evidence", "unsure", "camera"]
THRESHOLD = 0.5  # of evidence, where neither the rule nor the bundle gives one

# The keys that a rule may change, by how an indicator is reckoned; levels and cooldown always
KEYS: dict[How, tuple[str, ...]] = {
    "awareness": ("labels", "after", "on", "off", "merge", "recover"),
    "glances": ("labels", "at", "on", "off", "window", "back"),
    "hold": ("labels", "after", "on", "off", "release", "merge"),
    "share": ("labels", "at", "on", "off", "window", "least"),
    "count": ("labels", "at", "on", "off", "window", "least"),
    "evidence": ("labels", "at", "threshold", "rise", "fall", "least", "merge"),
    "unsure": ("after", "release", "merge"),
    "camera": ("after", "lost", "merge"),
}


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
    names: tuple[str, ...] = ()  # of the levels, where they have names of their own
    source: str = ""
    kind: str = ""  # the name in the table

    @property
    def words(self) -> str:
        """What it looks for, when it speaks, where the numbers come from."""
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
            source="Euro NCAP by secondary sources",
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
            source="PERCLOS, P80 literature",
        ),
        "yawns": IndicatorRule(
            "count",
            labels=("Yawn",),
            levels=("notice", "warn"),
            at=(3.0, 5.0),  # our choice: yawning alone is a weak sign of drowsiness
            window=60.0,  # our choice
            least=1.0,  # our choice: a word or a laugh opens the mouth for less
            cooldown=60.0,  # our choice: the window
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


def profile(rule: Rule) -> Profile:
    preset = PROFILES[rule.profile or "cctv"]
    smooth = preset.smooth if rule.smooth is None else rule.smooth
    unsure = preset.unsure if rule.unsure is None else rule.unsure
    return replace(preset, smooth=smooth, unsure=unsure)


def indicators(
    rule: Rule, labels: Sequence[str], safe: Sequence[str] = (), threshold: float | None = None
) -> list[IndicatorRule]:
    """What is looked for, without rule.off and indicators whose labels the bundle lacks.

    threshold: the bundle's; the rule's own goes first, the default is 0.5. Raises UserError with key, value and nearest
    right word: an unknown indicator, key or label, a bad value, a threshold nothing uses, or no indicator left.
    """
    table = _named(profile(rule).indicators, labels, safe)
    if rule.threshold is not None and not any(one.how == "evidence" for one in table.values()):
        raise UserError(
            f"rule.threshold = {rule.threshold:g}: profile {rule.profile!r} gathers no evidence; "
            f"each of its indicators has an `on` of its own: rule.indicators.{next(iter(table))}.on"
        )
    for name, changes in rule.indicators.items():
        table[name] = _changed(name, changes, table, labels)
    for name in rule.off:
        if name not in table:
            raise UserError(f"rule.off = {name!r}: unknown indicator{nearest(name, table)}")
    found = []
    for name, one in table.items():
        own = rule.indicators.get(name, {})
        one = replace(one, kind=name, labels=tuple(label for label in one.labels if label in labels))
        if rule.cooldown is not None and "cooldown" not in own:
            one = replace(one, cooldown=rule.cooldown)
        if one.how == "evidence" and "threshold" not in own:
            one = replace(one, threshold=next(x for x in (rule.threshold, threshold, THRESHOLD) if x is not None))
        if one.how == "unsure" and (not safe or profile(rule).unsure == 0):
            continue  # where no label is safe, nothing that is likely may just mean that nothing is wrong
        if name not in rule.off and (one.labels or one.how in ("unsure", "camera")):
            found.append(one)
    accusing = [name for name, one in table.items() if one.how not in ("unsure", "camera")]
    if not set(accusing) & ({one.kind for one in found} | set(rule.off)):
        wanted = ", ".join(dict.fromkeys(label for name in accusing for label in table[name].labels))
        raise UserError(
            f"rule.profile = {rule.profile!r}: it looks for {wanted or 'labels that are not safe'}, and the bundle has "
            f"only {', '.join(labels)}; set rule.indicators.{accusing[0]}.labels, or another profile"
        )
    return found


def words(rule: Rule, labels: Sequence[str], safe: Sequence[str] = (), threshold: float | None = None) -> list[str]:
    """indicators() as lines, then what is off and labels nobody looks at. Raises UserError."""
    found = indicators(rule, labels, safe, threshold)
    preset = profile(rule)
    lines = [one.words for one in found]
    silent = [name for name in _named(preset.indicators, labels, safe) if name not in {one.kind for one in found}]
    if silent:
        lines.append(f"off: {', '.join(silent)}")
    seen = {label for one in found for label in one.labels} | set(safe)
    if rest := [label for label in labels if label not in seen]:
        lines.append(f"nobody looks at: {', '.join(rest)}")
    if not safe and any(one.how == "evidence" for one in found):
        lines.append("no label is safe: a head whose probabilities add up to 1 gives evidence all the time")
    gate = f"; a frame whose largest probability is below {preset.unsure:g} accuses nobody" if preset.unsure else ""
    lines.append(f"probabilities are smoothed over {preset.smooth:g} s{gate}")
    return lines


def _named(table: Mapping[str, IndicatorRule], labels: Sequence[str], safe: Sequence[str]) -> dict[str, IndicatorRule]:
    """Evidence is about all unsafe labels, and named after a sole one."""
    unsafe = tuple(label for label in labels if label not in safe)
    own = re.sub(r"[^a-z0-9]+", "-", unsafe[0].lower()).strip("-") if len(unsafe) == 1 else ""
    found = {}
    for name, one in table.items():
        evidence = one.how == "evidence"
        found[own if evidence and own and own not in table else name] = replace(one, labels=unsafe) if evidence else one
    return found


def _changed(
    name: str, changes: Mapping[str, Any], table: Mapping[str, IndicatorRule], labels: Sequence[str]
) -> IndicatorRule:
    changes = dict(changes)
    like = changes.pop("like", name)
    if like not in table:
        known = nearest(str(like), table)
        if like != name:
            raise UserError(f"rule.indicators.{name}.like = {like!r}: unknown indicator{known}")
        raise UserError(f"rule.indicators.{name}: unknown indicator{known}; a new one says which it is: like = …")
    one = table[like]
    if name not in table and "labels" not in changes:
        raise UserError(f"rule.indicators.{name}.labels: missing: what is it about?")
    allowed = (*KEYS[one.how], "levels", "cooldown")
    values: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in allowed:
            raise UserError(f"rule.indicators.{name}.{key}: unknown key{nearest(key, allowed)}")
        values[key] = _value(f"rule.indicators.{name}.{key}", key, value, labels)
    steps = len(values.get("after", values.get("at", one.after or one.at)))
    levels = values.setdefault("levels", one.levels[:steps])
    if len(levels) != steps or ("lost" in values and len(values["lost"]) != steps):
        raise UserError(f"rule.indicators.{name}.levels = {list(levels)}: {steps} numbers need as many levels")
    if one.lost and "lost" not in values:
        values["lost"] = one.lost[:steps]
    on = values.get("on", one.on)
    values["off"] = off = values.get("off", min(one.off, on))
    if not 0 < off <= on:
        raise UserError(f"rule.indicators.{name}.off = {off:g}: must lie above 0 and not above on = {on:g}")
    names = one.names[:steps] if "levels" not in changes and like == name else ()
    return replace(one, **values, names=names, source=f"{one.source}; changed: {', '.join(sorted(changes))}")


def _value(place: str, key: str, value: Any, labels: Sequence[str]) -> Any:
    """Lists may be written without brackets."""
    listed = tuple(value) if isinstance(value, list | tuple) else (value,)
    if key in ("labels", "levels"):
        known: Sequence[str] = labels if key == "labels" else LEVELS
        for word in listed:
            if word not in known:
                raise UserError(f"{place} = {word!r}: unknown{nearest(str(word), known)}")
        order = [LEVELS.index(word) for word in listed] if key == "levels" else []
        if not listed or len(set(listed)) < len(listed) or order != sorted(order):
            raise UserError(f"{place} = {value!r}: at least one, none twice, and levels rising")
        return listed
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < float("inf") for x in listed):
        raise UserError(
            f"{place} = {value!r}: wanted: a number from 0 up" + (", or a list of them" if key in LISTS else "")
        )
    numbers = tuple(float(x) for x in listed)
    if key in ("after", "at", "lost") and (not numbers or numbers[0] <= 0 or list(numbers) != sorted(set(numbers))):
        raise UserError(f"{place} = {value!r}: wanted: numbers above 0 that rise")
    if key == "recover" and (len(numbers) != 2 or not numbers[0] > numbers[1] > 0):
        raise UserError(f"{place} = {value!r}: wanted: two factors, that of empty above that of full")
    if key in LISTS:
        return numbers
    if len(numbers) != 1 or isinstance(value, list | tuple):
        raise UserError(f"{place} = {value!r}: wanted: one number")
    if key in ("on", "off", "threshold") and not 0 < numbers[0] < 1:
        raise UserError(f"{place} = {value!r}: must lie between 0 and 1")
    if key in ("rise", "fall", "window") and numbers[0] <= 0:
        raise UserError(f"{place} = {value!r}: must lie above 0")
    return numbers[0]


LISTS = tuple(one.name for one in fields(IndicatorRule) if str(one.type).startswith("tuple[float"))


def _what(one: IndicatorRule) -> str:
    labels = " or ".join(one.labels)
    return {
        "awareness": f"{labels}, counted off an awareness that comes back faster than it goes",
        "glances": f"{labels} in all within {one.window:g} s, without {one.back:g} s of attention at a stretch",
        "hold": f"{labels} without a break of {one.release:g} s",
        "share": f"share of the last {one.window:g} s with {labels}, once {one.least:g} s were seen",
        "count": f"times of {labels} of at least {one.least:g} s within {one.window:g} s",
        "evidence": f"evidence of {labels}, full after {one.rise:g} s at or above {one.threshold or THRESHOLD:.3g}, "
        f"empty after {one.fall:g} s below, from {one.least:g} s on",
        "unsure": "no label is likely enough to accuse anybody",
        "camera": "black, covered or frozen picture",
    }[one.how]


def _of(one: IndicatorRule, step: float) -> str:
    if one.how == "share":
        return f"from {100 * step:g} %"
    if one.how == "count":
        return f"from {step:g}"
    return f"at {step:g}" if one.how == "evidence" else f"after {step:g} s"
