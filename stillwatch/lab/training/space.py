"""Space: what a study may change in a recipe, key by key, and the recipe with it changed.

In: a recipe's [tune] keys. Out: Keys, each checked for its words, range and choices; recipes with values laid over.
Called by tune. It knows no data, no trial and no figure.
"""

import copy
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from stillwatch.errors import UserError, nearest
from stillwatch.lab.data import augment
from stillwatch.lab.models import nets
from stillwatch.lab.training import lessons, losses
from stillwatch.recipe import Fit, Net, Recipe, check
from stillwatch.registry import Spec, build_spec

if TYPE_CHECKING:
    from optuna import Trial

HELD = {  # keys of [fit] that no trial may change
    "device": "a process has one",
    "precision": "a process has one",
    "seed": "a lucky seed is no better recipe",
}


class Range(NamedTuple):
    """Numbers from low to high, both included; whole where both ends are."""

    low: float
    high: float
    log: bool
    step: float | None


@dataclass(frozen=True)
class Key:
    """One key of [tune]: where its value stands in the recipe, and what it may be."""

    name: str  # as it is written there
    path: tuple[str | int, ...]  # a loss is addressed by its place in the list
    range: Range | None = None
    choices: dict[Any, Any] = field(default_factory=dict)  # what the storage holds -> the value

    def ends(self) -> list[Any]:
        """The values that have to be possible before it starts: all choices, or both ends."""
        return list(self.choices.values()) if self.range is None else [self.range.low, self.range.high]

    def stored(self, value: Any) -> Any:
        """What the storage holds for this value; None where it is none of those that may be."""
        if self.range is None:
            return next((kept for kept, choice in self.choices.items() if choice == value), None)
        low, high, _, step = self.range
        if not _number(value) or not low <= value <= high or (isinstance(low, int) and value != int(value)):
            return None
        return value if step is None or _divides(step, low, value) else None

    def value(self, kept: Any) -> Any:
        """The value for what the storage holds. It has no more digits than a person would write."""
        if self.range is None:
            return self.choices[kept]
        low, high, _, step = self.range
        return kept if isinstance(low, int) else min(max(float(f"{kept:.{4 if step is None else 12}g}"), low), high)

    def suggest(self, trial: "Trial") -> Any:
        """This trial's value: the one it was given, or one that the sampler proposes."""
        if self.range is None:
            return self.value(trial.suggest_categorical(self.name, list(self.choices)))
        low, high, log, step = self.range
        if isinstance(low, int):
            return self.value(trial.suggest_int(self.name, low, int(high), step=int(step or 1), log=log))
        return self.value(trial.suggest_float(self.name, low, high, step=step, log=log))


def side_of(recipe: Recipe) -> tuple[Net, Fit]:
    """Net and training of the side that is tuned."""
    return getattr(recipe, recipe.tune.side).net, recipe.fit_of(recipe.tune.side)


def keys_of(recipe: Recipe) -> list[Key]:
    """recipe.tune.keys, checked as far as words go. Raises UserError with the nearest right word."""
    if not recipe.tune.keys:
        raise UserError('tune.keys: empty; name what may change, such as {"fit.lr" = {from=1e-4, to=1e-2, log=true}}')
    keys = []
    for name, raw in recipe.tune.keys.items():
        place = _place(name)
        span = _span(place, raw)
        path = _path(place, name, recipe)
        keys.append(Key(name, path, span) if isinstance(span, Range) else Key(name, path, choices=span))
    for key in keys:
        for other in keys:
            if key is not other and other.path[: len(key.path)] == key.path:
                raise UserError(f"{_place(other.name)}: {key.name!r} changes the same; leave one of them out")
    return keys


def _place(name: str) -> str:
    return f"tune.keys.{json.dumps(name, ensure_ascii=False)}"


def _span(place: str, raw: Any) -> Range | dict[Any, Any]:
    """[a, b, c], or {from, to, log, step}."""
    if isinstance(raw, list | tuple):
        choices = {v if isinstance(v, str | int | float) else json.dumps(v): v for v in raw}
        if len(choices) < max(2, len(raw)):
            raise UserError(f"{place} = {list(raw)}: at least two choices, each of them once")
        return choices
    if not isinstance(raw, Mapping):
        raise UserError(f"{place} = {raw!r}: a list of choices, or {{from=…, to=…, log=true}}")
    for word in raw:
        if word not in ("from", "to", "log", "step"):
            raise UserError(f"{place}.{word}: unknown key{nearest(word, ('from', 'to', 'log', 'step'))}")
    low, high, log, step = (raw.get(word) for word in ("from", "to", "log", "step"))
    if low is None or high is None or not _number(low) or not _number(high) or not low < high:
        raise UserError(f"{place}: from = {low!r}, to = {high!r}: must be two numbers, the smaller one first")
    if log not in (None, False, True) or (log and (low <= 0 or step is not None)):
        raise UserError(f"{place}.log = {log!r}: true or false; with true, from is above 0 and there is no step")
    whole = isinstance(low, int) and isinstance(high, int)
    if step is not None and not (_number(step) and step > 0 and _divides(step, low, high)):
        raise UserError(f"{place}.step = {step!r}: must be a number above 0 that leads from {low} to {high}")
    if step is not None and whole and not isinstance(step, int):
        raise UserError(f"{place}.step = {step!r}: must be whole, as from and to are; or write from = {float(low)}")
    return Range(low, high, bool(log), step) if whole else Range(float(low), float(high), bool(log), step)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _divides(step: float, low: float, high: float) -> bool:
    """Whether steps lead from low to high, in the decimals as they are written."""
    return (Fraction(str(high)) - Fraction(str(low))) % Fraction(str(step)) == 0


def _path(place: str, name: str, recipe: Recipe) -> tuple[str | int, ...]:
    """ "fit.loss.kd.weight" -> ("student", "fit", "loss", 1, "weight"). Other words are left for pydantic to check."""
    side, words = recipe.tune.side, name.split(".")
    if words[0] in {"teacher", "student"} - {side}:
        raise UserError(f"{place}: a trial leaves the {words[0]} as it is; set tune.side = {words[0]!r} to tune it")
    known = ["fit", "net"] if words[0] == side else ["fit", side]
    words = words[1:] if words[0] == side else words
    if len(words) < 2 or words[0] not in known:
        hint = nearest(words[0], known) if words and words[0] not in known else ""
        raise UserError(f"{place}: a trial changes keys of fit and of {side}.net alone{hint}")
    if words[0] == "net":
        return side, *words
    if words[1] in HELD:
        raise UserError(f"{place}: cannot be tuned: {HELD[words[1]]}")
    if words[1] in recipe.tune.fit:
        raise UserError(f"{place}: tune.fit sets {words[1]!r} for every trial; leave it out here or there")
    if words[1] in ("loss", "augment") and len(words) > 2:
        return side, "fit", words[1], _index(place, words[1:], recipe), *words[3:]
    return side, *words


def _index(place: str, words: Sequence[str], recipe: Recipe) -> int:
    """("loss", "kd", "weight") -> the place of kd in the list."""
    specs: tuple[Spec, ...] = getattr(side_of(recipe)[1], words[0])
    names: list[str] = []
    for spec in specs:  # a name met twice is `kd-2`, as in losses.parts
        name = str(spec if isinstance(spec, str) else spec.get("name")).rpartition(":")[2]
        number = 1 + sum(known == name or known.startswith(f"{name}-") for known in names)
        names.append(name if number == 1 else f"{name}-{number}")
    if words[1] not in names:
        raise UserError(f"{place}: fit.{words[0]} has no {words[1]!r}{nearest(words[1], names)}")
    if len(words) < 3:
        raise UserError(f"{place}: name what of it may change, such as fit.{words[0]}.{words[1]}.OPTION")
    index = names.index(words[1])
    if words[0] == "loss" and recipe.tune.side == "teacher" and lessons.needs_teacher(specs[index]):
        raise UserError(f"{place}: the teacher learns without {words[1]!r}, which needs a teacher itself")
    return index


def probes(recipe: Recipe, keys: Sequence[Key]) -> list[tuple[str, Recipe, nets.Classifier]]:
    """The recipe of a trial as it stands, and with every end of every key, one at a time: (place, recipe, its net).

    Raises UserError for what can be known to be wrong without data: all but the losses' options.
    """
    found, built = [], dict[str, nets.Classifier]()
    asked: list[tuple[str, dict[str, Any]]] = [(recipe.name, {})]
    asked += [(f"{_place(key.name)} = {end!r}", {key.name: end}) for key in keys for end in key.ends()]
    for place, values in asked:
        trial = laid(recipe, keys, values, place, short=True)
        net, plan = side_of(trial)
        with named(place):
            augment.plan(plan.augment, plan.seed)
            if repr(net) not in built:
                built[repr(net)] = nets.build(net, len(recipe.labels), recipe.data.hw, recipe.data.channels)
        found.append((place, trial, built[repr(net)]))
    return found


@contextmanager
def named(place: str) -> Iterator[None]:
    """A UserError from inside says where it comes from."""
    try:
        yield
    except UserError as mistake:
        raise UserError(f"{place}: {mistake}") from None


def laid(recipe: Recipe, keys: Sequence[Key], values: Mapping[str, Any], place: str, short: bool = False) -> Recipe:
    """The recipe with these values. They go into the tuned side's own `fit`, so that the other side stays as it was.

    values: a key's name -> its value. short: with recipe.tune.fit too, which is what a trial trains. Raises UserError.
    """
    raw, side = copy.deepcopy(recipe.model_dump(exclude_unset=True)), recipe.tune.side
    changed = [key for key in keys if key.name in values]
    for name in {str(key.path[2]) for key in changed if len(key.path) > 3 and isinstance(key.path[3], int)}:
        specs = copy.deepcopy(getattr(recipe.fit_of(side), name))
        _put(raw, (side, "fit", name), [{"name": s} if isinstance(s, str) else s for s in specs], place)
    for key in changed:
        _put(raw, key.path, values[key.name], place)
    if short and recipe.tune.fit:
        raw[side]["fit"] = {**raw[side].get("fit", {}), **recipe.tune.fit}
    return check(raw, place)


def _put(raw: Any, path: Sequence[str | int], value: Any, place: str) -> None:
    *steps, last = path
    for step in steps:
        raw = raw[step] if isinstance(step, int) else raw.setdefault(step, {})
        if not isinstance(raw, dict | list):
            raise UserError(f"{place}: {step} = {raw!r} is not a table")
    raw[last] = value


def own(recipe: Recipe, key: Key) -> Any:
    """What the recipe as it stands has for this key, be it by default; None where only a net of timm's knows."""
    net = side_of(recipe)[0]
    at: Any = {"fit": recipe.fit_in("tune").model_dump(), "net": net.model_dump()}
    for step in key.path[1:-1]:
        at = at[step] if isinstance(step, int) else at.get(step, {})
        at = {"name": at} if isinstance(at, str) else at
    last = str(key.path[-1])
    if last in at:
        return at[last]
    builder = nets.NETS.get(net.name) if key.path[1:-1] == ("net", "options") else None
    if key.path[2] == "loss" and "name" in at:
        if last == "weight":
            return 1.0
        builder = build_spec(losses.LOSSES, at)[0]
    found = inspect.signature(builder).parameters.get(last) if builder else None
    return None if found is None or found.default is found.empty else found.default
