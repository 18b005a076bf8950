"""Search space: the keys of [tune], their possible values, and each trial's recipe. Reads no data."""

import copy
import inspect
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from stillwatch.errors import UserError, nearest
from stillwatch.lab.data import augment
from stillwatch.lab.models import classifier, zoo
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.training import losses
from stillwatch.recipe import Fit, Net, Recipe, check
from stillwatch.registry import find

if TYPE_CHECKING:  # optuna takes most of a second to import
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    Distribution: TypeAlias = FloatDistribution | IntDistribution | CategoricalDistribution

Value: TypeAlias = str | int | float | list[Any] | dict[str, Any] | None

HELD = {  # keys of [fit] that no trial may change
    "device": "a process has one",
    "precision": "a process has one",
    "teacher_precision": "it is a matter of time",
    "seed": "a lucky seed is no better recipe",
}


@dataclass(frozen=True)
class Key:
    name: str  # as it is written there
    path: tuple[str | int, ...]  # a loss is addressed by its place in the list
    range: "FloatDistribution | IntDistribution | None" = None
    choices: dict[str | int | float, Value] = field(default_factory=dict)  # what the storage holds -> the value

    @property
    def distribution(self) -> "Distribution":
        from optuna.distributions import CategoricalDistribution

        return self.range or CategoricalDistribution(list(self.choices))

    def ends(self) -> list[Value]:
        return [self.range.low, self.range.high] if self.range else list(self.choices.values())

    def stored(self, value: Value) -> str | int | float | None:
        """As the storage holds it; None where no trial may have it."""
        if self.range is None:
            return next((kept for kept, choice in self.choices.items() if choice == value), None)
        low, high, step = self.range.low, self.range.high, self.range.step
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            return None
        away = (value - low) / step if step else 0.0
        return value if abs(away - round(away)) < 1e-8 else None

    def value(self, kept: str | int | float) -> Value:
        """The inverse of stored(), rounded to few digits."""
        if self.range is None:
            return self.choices[kept]
        low, high, digits = self.range.low, self.range.high, 12 if self.range.step else 4
        return kept if isinstance(low, int) else min(max(float(f"{float(kept):.{digits}g}"), low), high)


def side_of(recipe: Recipe) -> tuple[Net, Fit]:
    return getattr(recipe, recipe.tune.side).net, recipe.fit_of(recipe.tune.side)


def keys_of(recipe: Recipe) -> list[Key]:
    """recipe.tune.keys, checked without data. Raises UserError."""
    if not recipe.tune.keys:
        raise UserError('tune.keys: empty; name what may change, such as {"fit.lr" = {from=1e-4, to=1e-2, log=true}}')
    keys = []
    for name, raw in recipe.tune.keys.items():
        place = _place(name)
        if isinstance(raw, list | tuple):
            choices = {v if isinstance(v, str | int | float) else json.dumps(v): v for v in raw}
            if len(choices) < max(2, len(raw)):
                raise UserError(f"{place} = {list(raw)}: at least two choices, each of them once")
            keys.append(Key(name, _path(place, name, recipe), choices=choices))
        elif isinstance(raw, Mapping):
            keys.append(Key(name, _path(place, name, recipe), _range(place, raw)))
        else:
            raise UserError(f"{place} = {raw!r}: a list of choices, or {{from=…, to=…, log=true}}")
    for key in keys:
        for other in keys:
            if key is not other and other.path[: len(key.path)] == key.path:
                raise UserError(f"{_place(other.name)}: {key.name!r} changes the same; leave one of them out")
    return keys


def _place(name: str) -> str:
    return f"tune.keys.{json.dumps(name, ensure_ascii=False)}"


def _range(place: str, raw: Mapping[str, Value]) -> "FloatDistribution | IntDistribution":
    from optuna.distributions import FloatDistribution, IntDistribution

    for word in raw:
        if word not in ("from", "to", "log", "step"):
            raise UserError(f"{place}.{word}: unknown key{nearest(word, ('from', 'to', 'log', 'step'))}")
    low, high, log, step = (raw.get(word) for word in ("from", "to", "log", "step"))
    if not _is_number(low) or not _is_number(high) or not low < high:
        raise UserError(f"{place}: from = {low!r}, to = {high!r}: must be two numbers, the smaller one first")
    if log not in (None, False, True) or (step is not None and not _is_number(step)):
        raise UserError(f"{place}: log = {log!r}, step = {step!r}: log is true or false, step a number above 0")
    if isinstance(low, int) and isinstance(high, int) and step is not None and (not isinstance(step, int) or step < 1):
        raise UserError(f"{place}.step = {step!r}: must be whole, as from and to are; or write from = {float(low)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # optuna cuts a range that the steps do not divide, with a warning
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, bool(log), 1 if step is None else int(step))
            return FloatDistribution(low, high, bool(log), step)
    except (ValueError, UserWarning) as error:
        raise UserError(f"{place}: from = {low}, to = {high}, log = {log}, step = {step}: {error}") from None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _path(place: str, name: str, recipe: Recipe) -> tuple[str | int, ...]:
    """ "fit.loss.kd.weight" -> ("student", "fit", "loss", 1, "weight")."""
    side, words = recipe.tune.side, name.split(".")
    if words[0] in {"teacher", "student"} - {side}:
        raise UserError(f"{place}: a trial leaves the {words[0]} as it is; set tune.side = {words[0]!r} to tune it")
    words, known = (words[1:], ("fit", "net")) if words[0] == side else (words, ("fit", side))
    if len(words) < 2 or words[0] not in known:
        hint = nearest(words[0], known) if words and words[0] not in known else ""
        raise UserError(f"{place}: a trial changes keys of fit and of {side}.net alone{hint}")
    if words[0] == "net":
        return side, *words
    if words[1] in HELD:
        raise UserError(f"{place}: cannot be tuned: {HELD[words[1]]}")
    if words[1] in recipe.tune.fit:
        raise UserError(f"{place}: tune.fit sets {words[1]!r} for every trial; leave it out here or there")
    if words[1] not in ("loss", "augment") or len(words) == 2:
        return side, *words

    # ---- ("loss", "kd", "weight"): the place of kd in the list; a name met twice is `kd-2`, as in losses.parts
    table, wanted, specs = words[1], words[2], getattr(side_of(recipe)[1], words[1])
    names: list[str] = []
    for spec in specs:
        base = str(spec if isinstance(spec, str) else spec.get("name")).rpartition(":")[2]
        number = 1 + sum(known == base or known.startswith(f"{base}-") for known in names)
        names.append(base if number == 1 else f"{base}-{number}")
    if wanted not in names:
        raise UserError(f"{place}: fit.{table} has no {wanted!r}{nearest(wanted, names)}")
    if len(words) < 4:
        raise UserError(f"{place}: name what of it may change, such as fit.{table}.{wanted}.OPTION")
    index = names.index(wanted)
    if side == "teacher" and table == "loss" and losses.needs_teacher(specs[index], True):
        raise UserError(f"{place}: the teacher learns without {wanted!r}, which needs a teacher itself")
    return side, "fit", table, index, *words[3:]


def probes(recipe: Recipe, keys: Sequence[Key]) -> list[tuple[str, Recipe, Classifier]]:
    """The recipe as it is, and with every end of every key, one at a time: (place, recipe, its net).

    Raises UserError for anything wrong without data, except the losses' options.
    """
    found, built = [], dict[str, Classifier]()
    wanted: list[tuple[str, dict[str, Value]]] = [(recipe.name, {})]
    wanted += [(f"{_place(key.name)} = {end!r}", {key.name: end}) for key in keys for end in key.ends()]
    for place, values in wanted:
        trial = with_values(recipe, keys, values, place, short=True)
        net, plan = side_of(trial)
        with placed(place):
            augment.plan(plan.augment, plan.seed)
            if repr(net) not in built:
                built[repr(net)] = classifier.build_side(recipe, recipe.tune.side, net)
        found.append((place, trial, built[repr(net)]))
    return found


@contextmanager
def placed(place: str) -> Iterator[None]:
    try:
        yield
    except UserError as mistake:
        raise UserError(f"{place}: {mistake}") from None


def with_values(
    recipe: Recipe, keys: Sequence[Key], values: Mapping[str, Value], place: str, short: bool = False
) -> Recipe:
    """With these values (by key name) in the tuned side. short: with recipe.tune.fit. Raises UserError."""
    raw, side = copy.deepcopy(recipe.model_dump(exclude_unset=True)), recipe.tune.side
    for key in keys:
        if key.name not in values:
            continue
        *steps, last = key.path
        if len(steps) > 3 and isinstance(steps[3], int):  # an option of a loss: the list becomes the side's own
            fit, name = raw[side].setdefault("fit", {}), str(steps[2])
            specs = fit.get(name) or copy.deepcopy(getattr(recipe.fit_of(side), name))
            fit[name] = [{"name": spec} if isinstance(spec, str) else spec for spec in specs]
        table: Any = raw
        for step in steps:
            table = table[step] if isinstance(step, int) else table.setdefault(step, {})
            if not isinstance(table, dict | list):
                raise UserError(f"{place}: {step} = {table!r} is not a table")
        table[last] = values[key.name]
    if short and recipe.tune.fit:
        raw[side]["fit"] = {**raw[side].get("fit", {}), **recipe.tune.fit}
    return check(raw, place)


def own_value(recipe: Recipe, key: Key) -> Value:
    """None where only timm knows it."""
    net = side_of(recipe)[0]
    table: Any = {"fit": recipe.fit_in("tune").model_dump(), "net": net.model_dump()}
    for step in key.path[1:-1]:
        table = table[step] if isinstance(step, int) else table.get(step, {})
        table = {"name": table} if isinstance(table, str) else table
    last = str(key.path[-1])
    if last in table:
        return table[last]
    builder = zoo.NETS.get(net.name) if key.path[1:-1] == ("net", "options") else None
    if key.path[2] == "loss" and "name" in table:
        if last == "weight":
            return 1.0
        builder = find(losses.LOSSES, table)
    option = inspect.signature(builder).parameters.get(last) if builder else None
    return None if option is None or option.default is option.empty else option.default
