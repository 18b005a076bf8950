"""A rule laid over its profile: which indicators are looked for, and in words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, get_args

from stillwatch.errors import UserError, nearest
from stillwatch.recipe import Rule
from stillwatch.rules.events import LEVELS
from stillwatch.rules.profiles import PROFILES, THRESHOLD, How, IndicatorRule, Profile, Wins

# The keys that a rule may change, by how an indicator is reckoned; levels and cooldown always
KEYS: dict[How, tuple[str, ...]] = {
    "awareness": ("labels", "wins", "after", "on", "off", "merge", "recover"),
    "glances": ("labels", "wins", "at", "on", "off", "window", "back"),
    "hold": ("labels", "wins", "after", "on", "off", "release", "merge"),
    "share": ("labels", "wins", "at", "on", "off", "window", "least"),
    "count": ("labels", "wins", "at", "on", "off", "window", "least"),
    "evidence": ("labels", "at", "threshold", "rise", "fall", "least", "merge"),
    "spells": ("at", "window", "least", "most", "rate"),
    "unsure": ("after", "release", "merge"),
    "unseen": ("after", "release", "merge"),
    "camera": ("after", "lost", "merge"),
}


def profile(rule: Rule) -> Profile:
    preset = PROFILES[rule.profile or "cctv"]
    smooth = preset.smooth if rule.smooth is None else rule.smooth
    unsure = preset.unsure if rule.unsure is None else rule.unsure
    return replace(preset, smooth=smooth, unsure=unsure)


def indicators(
    rule: Rule, labels: Sequence[str], safe: Sequence[str] = (), threshold: float | None = None
) -> list[IndicatorRule]:
    """Without rule.off and indicators whose labels the bundle lacks.

    threshold: the bundle's, after the rule's own; default 0.5. Raises UserError.
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
        if name not in rule.off and (one.labels or one.how in UNLABELLED):
            found.append(one)
    accusing = [name for name, one in table.items() if one.how not in UNLABELLED]
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
    if key == "wins":
        if value not in get_args(Wins):
            raise UserError(f"{place} = {value!r}: unknown{nearest(str(value), get_args(Wins))}")
        return value
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


UNLABELLED: tuple[How, ...] = ("spells", "unsure", "unseen", "camera")
LISTS = tuple(one.name for one in fields(IndicatorRule) if str(one.type).startswith("tuple[float"))
