"""Tuning: short trainings of one side of a recipe with other values for the keys of [tune], shared between processes.

Never reads the test split.
"""

import copy
import inspect
import json
import math
import os
import sqlite3
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import torch

from stillwatch.atomic import locked
from stillwatch.errors import UserError, nearest
from stillwatch.lab.data import augment
from stillwatch.lab.data.dataset import Dataset, load_dataset
from stillwatch.lab.models import nets
from stillwatch.lab.training import losses, pipeline
from stillwatch.lab.training.runs import (
    RunOptions,
    check_teacher,
    load_net,
    newest_teacher,
    predictor,
    save_split_predictions,
    write_audit,
)
from stillwatch.recipe import Fit, Net, Recipe, check
from stillwatch.registry import find
from stillwatch.run import NO_PROGRESS, Progress, Run, runs

if TYPE_CHECKING:  # optuna takes most of a second to import
    from optuna import Study, Trial
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import FrozenTrial

    Distribution: TypeAlias = FloatDistribution | IntDistribution | CategoricalDistribution

Value: TypeAlias = str | int | float | list[Any] | dict[str, Any] | None

STARTUP = 5  # trials that end by themselves before one is cut short for being below their median
BAD = (UserError, ValueError, torch.OutOfMemoryError)  # what values of a trial can cause; all else ends the command
HELD = {  # keys of [fit] that no trial may change
    "device": "a process has one",
    "precision": "a process has one",
    "seed": "a lucky seed is no better recipe",
}


def tune(
    recipe: Recipe,
    trials: int,
    root: Path | str = "runs",
    source: str = "",
    fresh: bool = False,
    voice: Progress = NO_PROGRESS,
) -> Path:
    """Search recipe.tune.keys for the best figure on validation, until there are `trials` in all; returns best.toml.

    Trial 0 is the recipe as it stands; a tree-structured Parzen estimator proposes the others (Bergstra et al. 2011,
    Algorithms for Hyper-Parameter Optimization, §4), the median rule stops them (Golovin et al. 2017, Google Vizier,
    §3.2.2). Resumes a study of the same recipe, data and teacher, unless `fresh`; killed trials run again.
    Raises UserError, before anything is trained, for a key that cannot be tuned; and where no trial ended.
    """
    # ---- every key is checked before the data are read
    if trials < 1:
        raise UserError(f"trials = {trials}: must be at least 1")
    keys = keys_of(recipe)
    checked = probes(recipe, keys)
    if pipeline.device(side_of(recipe)[1]).num_processes > 1:
        raise UserError("tune: a trial is one process; start this command several times, and they share the trials")

    # ---- teacher and data, and the losses with them
    specs = [spec for _, trial, _ in checked for spec in side_of(trial)[1].loss]
    taught = recipe.tune.side == "student" and any(pipeline.needs_teacher(spec) for spec in specs)
    teacher = newest_teacher(recipe, root) if taught else None
    teacher_net = load_net(teacher) if teacher else None
    data = load_dataset(recipe, voice)
    if teacher:
        check_teacher(teacher, data)
    for place, trial, net in checked:
        with _placed(place):
            pipeline.build_step(net, data, teacher_net, pipeline.specs_of(side_of(trial)[1], taught))

    # ---- the trials
    home = _home(recipe, data, teacher, RunOptions(root, source, fresh, voice))
    search = Search(recipe, keys, data, teacher, teacher_net, home, voice)
    try:
        with _opened(search) as study:
            while claimed := _claim(search, study, trials):
                outcome = _run_trial(search, study, *claimed)
                voice.say(f"{claimed[2].path.name}: {outcome}; {_write(search, study, trials)}")
            voice.say(f"{home.path}: {_write(search, study, trials)}")
    except BaseException as error:
        home.note(status="stopped" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    if not (home.path / "best.toml").is_file():
        raise UserError(f"{home.path}: no trial came to an end; trials.csv there says why, one by one")
    return home.path / "best.toml"


# ---- what a study may change


@dataclass(frozen=True)
class Key:
    """One key of [tune]: where its value stands in the recipe, and what it may be."""

    name: str  # as it is written there
    path: tuple[str | int, ...]  # a loss is addressed by its place in the list
    range: "FloatDistribution | IntDistribution | None" = None
    choices: dict[str | int | float, Value] = field(default_factory=dict)  # what the storage holds -> the value

    @property
    def distribution(self) -> "Distribution":
        from optuna.distributions import CategoricalDistribution

        return self.range or CategoricalDistribution(list(self.choices))

    def ends(self) -> list[Value]:
        """All choices, or both ends: the values that have to be possible before a study starts."""
        return [self.range.low, self.range.high] if self.range else list(self.choices.values())

    def stored(self, value: Value) -> str | int | float | None:
        """What the storage holds for this value; None where no trial may have it."""
        if self.range is None:
            return next((kept for kept, choice in self.choices.items() if choice == value), None)
        low, high, step = self.range.low, self.range.high, self.range.step
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            return None
        away = (value - low) / step if step else 0.0
        return value if abs(away - round(away)) < 1e-8 else None

    def value(self, kept: str | int | float) -> Value:
        """The value for what the storage holds, with no more digits than a person would write."""
        if self.range is None:
            return self.choices[kept]
        low, high, digits = self.range.low, self.range.high, 12 if self.range.step else 4
        return kept if isinstance(low, int) else min(max(float(f"{float(kept):.{digits}g}"), low), high)


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
    """{from, to, log, step}; whole numbers where both ends are."""
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
    if table == "loss" and side == "teacher" and pipeline.needs_teacher(specs[index]):
        raise UserError(f"{place}: the teacher learns without {wanted!r}, which needs a teacher itself")
    return side, "fit", table, index, *words[3:]


def probes(recipe: Recipe, keys: Sequence[Key]) -> list[tuple[str, Recipe, nets.Classifier]]:
    """Trials as the recipe stands, and with every end of every key, one at a time: (place, recipe, its net).

    Raises UserError for what is known to be wrong without data: all but the losses' options.
    """
    found, built = [], dict[str, nets.Classifier]()
    wanted: list[tuple[str, dict[str, Value]]] = [(recipe.name, {})]
    wanted += [(f"{_place(key.name)} = {end!r}", {key.name: end}) for key in keys for end in key.ends()]
    for place, values in wanted:
        trial = with_values(recipe, keys, values, place, short=True)
        net, plan = side_of(trial)
        with _placed(place):
            augment.plan(plan.augment, plan.seed)
            if repr(net) not in built:
                built[repr(net)] = nets.build(net, len(recipe.labels), recipe.data.hw, recipe.data.channels)
        found.append((place, trial, built[repr(net)]))
    return found


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Say in a UserError from inside where it comes from."""
    try:
        yield
    except UserError as mistake:
        raise UserError(f"{place}: {mistake}") from None


def with_values(
    recipe: Recipe, keys: Sequence[Key], values: Mapping[str, Value], place: str, short: bool = False
) -> Recipe:
    """The recipe with these values (by a key's name) in the tuned side's own `fit` and `net`. Raises UserError.

    short: with recipe.tune.fit too, which is what a trial trains.
    """
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
    """What the recipe as it stands has for this key, be it by default; None where only a net of timm's knows."""
    net = side_of(recipe)[0]
    table: Any = {"fit": recipe.fit_in("tune").model_dump(), "net": net.model_dump()}
    for step in key.path[1:-1]:
        table = table[step] if isinstance(step, int) else table.get(step, {})
        table = {"name": table} if isinstance(table, str) else table
    last = str(key.path[-1])
    if last in table:
        return table[last]
    builder = nets.NETS.get(net.name) if key.path[1:-1] == ("net", "options") else None
    if key.path[2] == "loss" and "name" in table:
        if last == "weight":
            return 1.0
        builder = find(losses.LOSSES, table)
    option = inspect.signature(builder).parameters.get(last) if builder else None
    return None if option is None or option.default is option.empty else option.default


# ---- the study, which processes share


@dataclass(frozen=True)
class Search:
    """What all trials of one study share."""

    recipe: Recipe
    keys: list[Key]
    data: Dataset
    teacher: Run | None
    teacher_net: nets.Classifier | None
    home: Run
    voice: Progress

    def own(self) -> dict[str, Value]:
        """The recipe's own values."""
        return {key.name: own_value(self.recipe, key) for key in self.keys}

    def own_params(self) -> dict[str, str | int | float]:
        """The recipe's own values as the storage holds them, without those that no trial may have."""
        own = self.own()
        return {key.name: kept for key in self.keys if (kept := key.stored(own[key.name])) is not None}

    def values(self, trial: "FrozenTrial | Trial") -> dict[str, Value]:
        """A key's name -> its value in that trial."""
        if "own" in trial.user_attrs:
            return self.own()
        return {key.name: key.value(trial.params[key.name]) for key in self.keys if key.name in trial.params}

    def folder(self, number: int) -> Path:
        return self.home.path / f"trial-{number:03d}"


def _home(recipe: Recipe, data: Dataset, teacher: Run | None, kit: RunOptions) -> Run:
    """The study's folder: the newest whose figures would be the same (recipe, data, teacher), or a new one."""
    root, parent, fingerprint = Path(kit.root), teacher.path.name if teacher else None, data.store.fingerprint

    def identity(raw: dict[str, Any], *others: object) -> list[object]:
        tables = ("name", "labels", "safe", "teacher", "student", "fit", "tune")
        return [*(raw.get(table) for table in tables), {**raw["data"], "root": None}, *others]

    mine = identity(recipe.model_dump(mode="json"), "tune", parent, fingerprint)
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / f".{recipe.name}-tune"):  # two processes that start together find one folder
        for old in [] if kit.fresh else reversed(runs(root)):
            if mine == identity(old.info.recipe, old.info.kind, old.info.parent, old.info.fingerprint):
                kit.voice.say(f"resuming {old.path} (--fresh starts anew)")
                return old
        run = Run.create(recipe, "tune", root, kit.source, parent=parent, fingerprint=fingerprint)
        write_audit(run, data)
        run.unlock()  # no process owns it: each trial is locked by the process that works on it
        kit.voice.say(f"run: {run.path}")
        return run


@contextmanager
def _opened(search: Search) -> Iterator["Study"]:
    """The study in home/study.sqlite. A new one starts with the recipe as it stands."""
    import optuna

    home, verbosity = search.home.path, optuna.logging.get_verbosity()
    warmup = max(1, -(-search.recipe.fit_in("tune").epochs // 3))  # a third of the epochs says something
    connect = partial(sqlite3.connect, home / "study.sqlite", timeout=60, check_same_thread=False)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would report each trial a second time
    try:
        with locked(home / ".turn"):
            # The path is not put into the URL: % and ? and { mean something there
            storage = optuna.storages.RDBStorage("sqlite:///study.sqlite", {"creator": connect})
            study = optuna.create_study(
                study_name="tune",
                storage=storage,
                pruner=optuna.pruners.MedianPruner(STARTUP, warmup),
                direction="minimize" if search.recipe.tune.metric == "loss" else "maximize",
                load_if_exists=True,
            )
            if not study.get_trials(deepcopy=False):
                study.enqueue_trial(search.own_params(), {"own": True})
        yield study
        storage.engine.dispose()
    finally:
        optuna.logging.set_verbosity(verbosity)


def _claim(search: Search, study: "Study", trials: int) -> "tuple[Trial, Recipe, Run] | None":
    """Take the next trial and its folder, which this process then holds locked. None where there are enough.

    Proposals are a function of (seed, what has been tried), so that a resumed study ends as an unbroken one. A folder's
    lock says whether its process lives, at once and through a suspended machine, as a heartbeat would not.
    """
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    with locked(search.home.path / ".turn"):
        for old in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            folder = search.folder(old.number)
            run = Run.open(folder) if (folder / "run.json").is_file() else None
            if run is None or run.lock():
                search.voice.say(f"{folder.name} was cut off and is run again")
                study.tell(old.number, state=TrialState.FAIL)
                study.enqueue_trial(old.params, old.user_attrs)
                if run:
                    run.finish("stopped")
        while True:
            known = study.get_trials(deepcopy=False)
            if sum(_counts(trial) for trial in known) >= trials:
                return None
            seed = np.random.SeedSequence((side_of(search.recipe)[1].seed, len(known))).generate_state(1)[0]
            study.sampler = TPESampler(seed=int(seed), multivariate=True)
            queued = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            stands = bool(queued) and "own" in queued[0].user_attrs
            names = search.own_params() if stands else [key.name for key in search.keys]
            trial = study.ask({key.name: key.distribution for key in search.keys if key.name in names})
            twin = next((t for t in known if t.state == TrialState.COMPLETE and t.params == trial.params), None)
            if stands or twin is None:
                return trial, *_begin(search, trial)
            trial.set_user_attr("note", f"as trial {twin.number}")  # all is seeded, so the figure would be the same
            study.tell(trial, twin.value)


def _begin(search: Search, trial: "Trial") -> tuple[Recipe, Run]:
    """A trial's recipe and its folder: a run like any other, inside the study's."""
    home, folder, values = search.home.path, search.folder(trial.number), search.values(trial)
    changed = {} if "own" in trial.user_attrs else values
    recipe = with_values(search.recipe, search.keys, changed, folder.name, short=True)
    kind = "teacher" if recipe.tune.side == "teacher" else "distilled" if search.teacher else "alone"
    run = Run.create(
        recipe,
        kind,
        home,
        _toml(recipe),
        parent=os.path.relpath(search.teacher.path, home) if search.teacher else None,
        fingerprint=search.data.store.fingerprint,
        seed=side_of(recipe)[1].seed,
        values=values,
    )
    run.path = run.path.rename(folder)
    run.note(id=folder.name)
    return recipe, run


def _counts(trial: "FrozenTrial") -> bool:
    """Finished, stopped early, failed by its own values, or being worked on; not one that was killed."""
    return trial.state.name in ("COMPLETE", "PRUNED", "RUNNING") or "error" in trial.user_attrs


def _run_trial(search: Search, study: "Study", trial: "Trial", recipe: Recipe, run: Run) -> str:
    """Train and judge one trial, on validation alone, and tell the study. Returns the outcome in words."""
    from optuna.trial import TrialState

    data, quiet, metric = search.data, Progress(search.voice.bar), recipe.tune.metric  # bars, but not a line an epoch
    spec, plan = side_of(recipe)
    cut: list[int] = []

    def report(epoch: int, figures: dict[str, float]) -> bool:
        trial.report(figures[metric], epoch)
        if epoch < plan.epochs and trial.should_prune():
            cut.append(epoch)
        return bool(cut)

    # The study is told before the run is finished: whoever finds a running trial unlocked takes it for a dead one
    try:
        torch.manual_seed(plan.seed)
        net = nets.build(spec, len(recipe.labels), recipe.data.hw, recipe.data.channels)
        step = pipeline.build_step(net, data, search.teacher_net, pipeline.specs_of(plan, search.teacher is not None))
        best = pipeline.train(step, data, search.teacher_net, plan, run, pipeline.device(plan), quiet, report)
        if not math.isfinite(best[metric]):
            raise UserError(f"{metric} on validation is {best[metric]}")
        save_split_predictions(run, data, predictor(net), quiet, ["valid"])
        trial.set_user_attr("figures", best)
        study.tell(trial, None if cut else best[metric], TrialState.PRUNED if cut else TrialState.COMPLETE)
        (run.path / "last.pt").unlink(missing_ok=True)  # two thirds of what a trial leaves; nobody resumes it
        run.finish("stopped" if cut else "done", best=best, epochs=len(run.history()))
        return f"{metric} {best[metric]:.3f}" + (f", stopped after epoch {cut[0]}" if cut else "")
    except BAD as error:
        trial.set_user_attr("error", reason := " ".join(str(error).split()))
        study.tell(trial, state=TrialState.FAIL)
        run.finish("failed", error=str(error))
        return f"failed: {reason}"
    except BaseException as error:  # the study is not told: the next process finds this trial cut off
        run.finish("stopped" if isinstance(error, KeyboardInterrupt) else "failed", error=str(error))
        raise


# ---- what is written


def _write(search: Search, study: "Study", trials: int) -> str:
    """trials.csv, best.toml and the study's run.json as things stand. Returns how they stand, in words."""
    metric, names = search.recipe.tune.metric, [key.name for key in search.keys]
    with locked(search.home.path / ".turn"):
        known = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name != "WAITING"]
        rows = []
        for trial in known:
            values, note = search.values(trial), trial.user_attrs.get("error") or trial.user_attrs.get("note")
            rows.append(
                [
                    trial.number,
                    _state(trial),
                    trial.value,
                    *(json.dumps(v) if isinstance(v, list | dict) else v for v in map(values.get, names)),
                    round(trial.duration.total_seconds(), 1) if trial.duration else None,
                    note or ("the recipe as it stands" if "own" in trial.user_attrs else None),
                ]
            )
        search.home.save_csv("trials.csv", ("number", "state", "value", *names, "seconds", "note"), rows)
        running = sum(trial.state.name == "RUNNING" for trial in known)
        ended = sum(_counts(trial) for trial in known) - running
        search.home.note(status="running" if running or ended < trials else "done", trials=ended)
        summary = f"{ended} of {trials} trials" + (f", {running} in other processes" if running else "")
        complete = [trial for trial in known if trial.state.name == "COMPLETE" and "figures" in trial.user_attrs]
        if not complete:
            return summary
        best = (min if metric == "loss" else max)(complete, key=lambda trial: trial.values[0])
        values = {} if "own" in best.user_attrs else search.values(best)
        text = _heading(search, known, best) + _toml(with_values(search.recipe, search.keys, values, "best.toml"))
        search.home.save("best.toml", lambda draft: draft.write_text(text, encoding="utf-8"))
        search.home.note(best={**best.user_attrs["figures"], "trial": best.number})
        return f"{summary}, best {metric} {best.value:.3f} (trial {best.number})"


def _state(trial: "FrozenTrial") -> str:
    """Its word in trials.csv; "lost": it was killed, and runs again under another number."""
    return trial.state.name.lower().replace("fail", "failed") if _counts(trial) else "lost"


def _heading(search: Search, known: "Sequence[FrozenTrial]", best: "FrozenTrial") -> str:
    """The comment above best.toml."""
    tune, states, before = search.recipe.tune, [_state(trial) for trial in known], search.own()
    first = next((trial for trial in known if "own" in trial.user_attrs and _counts(trial)), None)
    stood = first.user_attrs.get("error", "not known yet") if first else "not known"
    if first is not None and first.value is not None:
        stood = f"{first.value:.4f}"
    changed = [
        f"  {key} = {json.dumps(value)}" + ("" if before[key] is None else f", was {json.dumps(before[key])}")
        for key, value in search.values(best).items()
        if value != before[key]
    ]
    fit = ", ".join(f"{key} = {json.dumps(value)}" for key, value in tune.fit.items())
    lines = [
        " ".join(["stillwatch", *sys.argv[1:]]),
        f"{tune.metric} on validation {best.value:.4f} (trial {best.number}); the recipe as it stood: {stood}.",
        *changed,
        f"{states.count('complete')} trials came to an end, {states.count('pruned')} were stopped early, "
        f"{states.count('failed')} failed. Each trains the {tune.side}" + (f", with {fit}." if fit else "."),
        f"The best of several on the same {len(search.data.rows['valid'])} samples flatters itself; the test split "
        "has not been looked at.",
    ]
    return "".join(f"# {''.join(c if c.isprintable() else ' ' for c in line)}\n" for line in lines)


def _toml(recipe: Recipe) -> str:
    """The keys that the recipe sets, as TOML that loads as the same recipe; None, which TOML lacks, is left out."""
    import tomli_w

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items() if inner is not None}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return str(value) if isinstance(value, Path) else value

    return tomli_w.dumps(plain(recipe.model_dump(exclude_unset=True)), indent=2)
