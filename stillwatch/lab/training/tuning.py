"""Tune: short trainings of one side of a recipe, each with other values for the keys of [tune]; the best written down.

In: a Recipe, how many trials. Out: <name>-tune-NNN/ with a run a trial, trials.csv and best.toml.
Called by the CLI; several processes may work on one folder at once. The test split is never looked at.
"""

import fcntl
import json
import math
import os
import re
import sqlite3
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillwatch.errors import UserError
from stillwatch.lab.models import nets
from stillwatch.lab.training import lessons
from stillwatch.lab.training.lessons import Dataset, Kit
from stillwatch.lab.training.loop import EpochCallback
from stillwatch.lab.training.space import Key, keys_of, laid, named, own, probes, side_of
from stillwatch.recipe import Recipe
from stillwatch.run import NO_PROGRESS, Progress, Run, runs

if TYPE_CHECKING:  # optuna takes most of a second to import
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

WIDTH = 120  # of a line of best.toml, where it can be helped
STARTUP = 5  # trials that end by themselves before one is cut short for being below their median
BAD = (
    UserError,
    ValueError,
    torch.OutOfMemoryError,
)  # what values of a trial can bring about; all else ends the command


def tune(
    recipe: Recipe,
    trials: int,
    root: Path | str = "runs",
    source: str = "",
    fresh: bool = False,
    voice: Progress = NO_PROGRESS,
) -> Path:
    """Search recipe.tune.keys for the best figure on validation, until there have been `trials` of them in all.

    Trial 0 is the recipe as it stands; the others are proposed by a tree-structured Parzen estimator (Bergstra et al.
    2011, Algorithms for Hyper-Parameter Optimization, §4), and stopped after an epoch at which they are below the
    median of the others (Golovin et al. 2017, Google Vizier, §3.2.2). A study of the same recipe, data and teacher
    under `root` is gone on with, unless `fresh`; trials that were killed are run again. Returns the path of best.toml.
    Raises UserError, before anything is trained, for a key that cannot be had; and where no trial came to an end.
    """
    # ---- what may change: every word is checked before the data are read
    if trials < 1:
        raise UserError(f"trials = {trials}: must be at least 1")
    keys = keys_of(recipe)
    checked = probes(recipe, keys)
    if lessons.device(side_of(recipe)[1]).num_processes > 1:
        raise UserError("tune: a trial is one process; start this command several times, and they share the trials")

    # ---- teacher and data, and the losses with them
    specs = [spec for _, trial, _ in checked for spec in side_of(trial)[1].loss]
    hears = recipe.tune.side == "student" and any(lessons.needs_teacher(spec) for spec in specs)
    teacher = lessons.newest_teacher(recipe, root) if hears else None
    master = lessons.load(teacher) if teacher else None
    data = lessons.material(recipe, voice)
    if teacher:
        lessons.check_teacher(teacher, data)
    for place, trial, net in checked:
        with named(place):
            lessons.build_step(net, data, master, lessons.specs_of(side_of(trial)[1], master is not None))

    # ---- the trials
    home = _home(recipe, data, teacher, Kit(root, source, fresh, voice))
    search = Search(recipe, keys, data, teacher, master, home, voice)
    try:
        with _opened(search) as study:
            while chosen := _next(search, study, trials):
                said = _attempt(search, study, *chosen)
                voice.say(f"{chosen[2].path.name}: {said}; {_write(search, study, trials)}")
            voice.say(f"{home.path}: {_write(search, study, trials)}")
    except BaseException as error:
        home.note(status="stopped" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    if not (home.path / "best.toml").is_file():
        raise UserError(f"{home.path}: no trial came to an end; trials.csv there says why, one by one")
    return home.path / "best.toml"


@dataclass(frozen=True)
class Search:
    """What all trials of one study share."""

    recipe: Recipe
    keys: list[Key]
    data: Dataset
    teacher: Run | None
    master: nets.Classifier | None
    home: Run
    voice: Progress


# ---- the study, which processes share


def _home(recipe: Recipe, data: Dataset, teacher: Run | None, desk: Kit) -> Run:
    """The study's folder: the newest with the same recipe (what trials depend on), data and teacher, or a new one."""
    root, name = Path(desk.root), teacher.path.name if teacher else None
    root.mkdir(parents=True, exist_ok=True)
    with _turn(root / f".{recipe.name}-tune"):  # two processes that start together find one folder
        for old in [] if desk.fresh else reversed(runs(root)):
            about = (old.info.kind, old.info.parent, old.info.fingerprint)
            if about == ("tune", name, data.store.fingerprint) and _same(old.info.recipe, recipe):
                desk.voice.say(f"going on with {old.path} (--fresh starts anew)")
                return old
        run = Run.create(recipe, "tune", root, desk.source, parent=name, fingerprint=data.store.fingerprint)
        lessons.write_audit(run, data)
        run.unlock()  # it is nobody's own: each trial is locked by the process that works on it
        desk.voice.say(f"run: {run.path}")
        return run


def _same(raw: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether a trial's figure would be the same under both recipes."""
    mine = recipe.model_dump(mode="json")
    tables = ("name", "labels", "safe", "teacher", "student", "fit", "tune")
    same = all(raw.get(table) == mine[table] for table in tables)
    return same and {**raw["data"], "root": None} == {**mine["data"], "root": None}


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """One process at a time; a process that dies gives up its turn."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(search: Search) -> Iterator["Study"]:
    """The study in home/study.sqlite. A new one starts with the recipe as it stands."""
    import optuna

    home, before = search.home.path, optuna.logging.get_verbosity()
    warmup = max(1, -(-search.recipe.fit_in("tune").epochs // 3))  # a third of the epochs says something
    connect = partial(sqlite3.connect, home / "study.sqlite", timeout=60, check_same_thread=False)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would tell of each trial a second time
    try:
        with _turn(home / ".turn"):
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
                study.enqueue_trial(_own_params(search), {"own": True})
        yield study
        storage.engine.dispose()
    finally:
        optuna.logging.set_verbosity(before)


def _own_params(search: Search) -> dict[str, Any]:
    """The recipe's own values as the storage holds them; a value that no trial may have is not among them."""
    found = {key.name: key.stored(own(search.recipe, key)) for key in search.keys}
    return {name: value for name, value in found.items() if value is not None}


def _next(search: Search, study: "Study", trials: int) -> "tuple[Trial, Recipe, Run] | None":
    """Take the next trial and its folder, which this process then holds locked. None where there are enough.

    Proposals are a function of (seed, what has been tried): a study that was cut off goes on as it would have.
    """
    from optuna.trial import TrialState

    recipe, home = search.recipe, search.home.path
    with _turn(home / ".turn"):
        for old in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if _lost(home, old.number):
                search.voice.say(f"{_folder(old.number)} was cut off and is run again")
                study.tell(old.number, state=TrialState.FAIL)
                stands = "own" in old.user_attrs
                study.enqueue_trial(_own_params(search) if stands else old.params, {"own": True} if stands else None)
        while True:
            known = study.get_trials(deepcopy=False)
            if sum(_counts(trial) for trial in known) >= trials:
                return None
            study.sampler = _sampler(side_of(recipe)[1].seed, len(known))
            trial = study.ask()
            stands = "own" in trial.user_attrs
            may = _own_params(search) if stands else {key.name: None for key in search.keys}
            values = {key.name: key.suggest(trial) for key in search.keys if key.name in may}
            twin = next((t for t in known if t.state == TrialState.COMPLETE and t.params == trial.params), None)
            if stands or twin is None:
                asked = laid(recipe, search.keys, {} if stands else values, _folder(trial.number), short=True)
                return trial, asked, _begin(search, asked, trial.number, values)
            trial.set_user_attr("note", f"as trial {twin.number}")  # and so would its figure be: all is seeded
            study.tell(trial, twin.value)


def _begin(search: Search, asked: Recipe, number: int, values: dict[str, Any]) -> Run:
    """The trial's folder: a run like any other, inside the study's."""
    kind = "teacher" if asked.tune.side == "teacher" else "distilled" if search.master else "alone"
    home, fingerprint = search.home.path, search.data.store.fingerprint
    parent = os.path.relpath(search.teacher.path, home) if search.teacher else None
    source, seed = toml(asked.model_dump(exclude_unset=True)), side_of(asked)[1].seed
    run = Run.create(asked, kind, home, source, parent=parent, fingerprint=fingerprint, seed=seed, values=values)
    run.path = run.path.rename(home / _folder(number))
    run.note(id=run.path.name)
    return run


def _folder(number: int) -> str:
    return f"trial-{number:03d}"


def _lost(home: Path, number: int) -> bool:
    """Whether nobody works on a trial that is said to be running: the process that held its lock has ended."""
    path = home / _folder(number)
    if not (path / "run.json").is_file():  # it ended before it had a folder
        return True
    run = Run.open(path)
    if not run.lock():
        return False
    run.finish("stopped")
    return True


def _counts(trial: "FrozenTrial") -> bool:
    """Finished, stopped early, failed by its own values, or being worked on; not one that was killed."""
    return trial.state.name in ("COMPLETE", "PRUNED", "RUNNING") or "error" in trial.user_attrs


def _sampler(seed: int, known: int) -> Any:
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import TPESampler

    state = int(np.random.SeedSequence((seed, known)).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # optuna 4 calls both of these experimental
        # constant_liar: a trial that another process works on counts as a bad one, so that it is not proposed again
        return TPESampler(seed=state, multivariate=True, constant_liar=True)


# ---- one trial


def _attempt(search: Search, study: "Study", trial: "Trial", asked: Recipe, run: Run) -> str:
    """Train and judge one trial, and tell the study. Returns what came of it, in words."""
    from optuna.trial import TrialState

    epochs, metric, cut = side_of(asked)[1].epochs, asked.tune.metric, list[int]()

    def after(epoch: int, figures: dict[str, float]) -> bool:
        trial.report(figures[metric], epoch)
        if epoch < epochs and trial.should_prune():
            cut.append(epoch)
        return bool(cut)

    # The study is told before the run is finished: whoever finds a running trial unlocked takes it for a dead one
    try:
        best = _train(search, asked, run, after)
        said = f"{metric} {best[metric]:.3f}" + (f", stopped after epoch {cut[0]}" if cut else "")
        trial.set_user_attr("figures", best)
        study.tell(trial, None if cut else best[metric], TrialState.PRUNED if cut else TrialState.COMPLETE)
        (run.path / "last.pt").unlink(missing_ok=True)  # two thirds of what a trial leaves; nobody goes on from it
        run.finish("stopped" if cut else "done", best=best, epochs=len(run.history()))
    except BAD as error:
        said = f"failed: {' '.join(str(error).split())}"
        trial.set_user_attr("error", said.removeprefix("failed: "))
        study.tell(trial, state=TrialState.FAIL)
        run.finish("failed", error=str(error))
    except BaseException as error:  # the study is not told: the next process finds this trial cut off
        run.finish("stopped" if isinstance(error, KeyboardInterrupt) else "failed", error=str(error))
        raise
    return said


def _train(search: Search, asked: Recipe, run: Run, after: EpochCallback) -> dict[str, Any]:
    """As any lesson, but that only the validation split is marked. Returns the kept epoch's figures."""
    data, quiet = search.data, Progress(search.voice.bar)  # bars, but not a line an epoch
    spec, plan = side_of(asked)
    torch.manual_seed(plan.seed)
    net = nets.build(spec, len(asked.labels), asked.data.hw, asked.data.channels)
    step = lessons.build_step(net, data, search.master, lessons.specs_of(plan, search.master is not None))
    best = lessons.train(step, data, search.master, plan, run, lessons.device(plan), quiet, after)
    figure = best[asked.tune.metric]
    if not math.isfinite(figure):
        raise UserError(f"{asked.tune.metric} on validation is {figure}")
    lessons.save_split_predictions(run, data, lessons.predictor(net), quiet, ["valid"])
    return best


# ---- what is written


def _write(search: Search, study: "Study", trials: int) -> str:
    """trials.csv, best.toml and the study's run.json as things stand. Returns how they stand, in words."""
    with _turn(search.home.path / ".turn"):
        known = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name != "WAITING"]
        header = ("number", "state", "value", *(key.name for key in search.keys), "seconds", "note")
        search.home.save_csv("trials.csv", header, [_row(search, trial) for trial in known])
        going = sum(trial.state.name == "RUNNING" for trial in known)
        ended = sum(_counts(trial) for trial in known) - going
        about: dict[str, Any] = {"status": "running" if going or ended < trials else "done", "trials": ended}
        said = f"{ended} of {trials} trials" + (f", {going} in other processes" if going else "")
        if best := _best(search.recipe.tune.metric, known):
            text = _heading(search, known, best) + toml(_winner(search, best).model_dump(exclude_unset=True))
            search.home.save("best.toml", lambda draft: draft.write_text(text, encoding="utf-8"))
            about["best"] = {**best.user_attrs["figures"], "trial": best.number}
            said += f", best {search.recipe.tune.metric} {best.value:.3f} (trial {best.number})"
        search.home.note(**about)
        return said


def _best(metric: str, known: "Sequence[FrozenTrial]") -> "FrozenTrial | None":
    """The first of the best ones."""
    ended = [trial for trial in known if trial.state.name == "COMPLETE" and "figures" in trial.user_attrs]
    return max(ended, key=lambda trial: -trial.values[0] if metric == "loss" else trial.values[0], default=None)


def _winner(search: Search, best: "FrozenTrial") -> Recipe:
    """The recipe with that trial's values, and as long a training as it says itself."""
    values = {} if "own" in best.user_attrs else _values(search, best)
    return laid(search.recipe, search.keys, values, "best.toml")


def _values(search: Search, trial: "FrozenTrial") -> dict[str, Any]:
    """A key's name -> its value in that trial."""
    if "own" in trial.user_attrs:
        return {key.name: own(search.recipe, key) for key in search.keys}
    return {key.name: key.value(trial.params[key.name]) for key in search.keys if key.name in trial.params}


def _row(search: Search, trial: "FrozenTrial") -> list[Any]:
    """One line of trials.csv. The state "lost": it was killed, and has been run again under another number."""
    states = {"COMPLETE": "complete", "PRUNED": "pruned", "RUNNING": "running", "FAIL": "failed"}
    state = states[trial.state.name] if _counts(trial) else "lost"
    note = trial.user_attrs.get("error") or trial.user_attrs.get("note")
    values = _values(search, trial)
    shown = [values.get(key.name) for key in search.keys]
    return [
        trial.number,
        state,
        trial.value,
        *(v if v is None or isinstance(v, str | int | float) else json.dumps(v) for v in shown),
        round(trial.duration.total_seconds(), 1) if trial.duration else None,
        note or ("the recipe as it stands" if "own" in trial.user_attrs else None),
    ]


def _heading(search: Search, known: "Sequence[FrozenTrial]", best: "FrozenTrial") -> str:
    """The comment above best.toml."""
    tune, states = search.recipe.tune, [_row(search, trial)[1] for trial in known]
    first = next((trial for trial in known if "own" in trial.user_attrs and _counts(trial)), None)
    stood = "not known" if first is None else first.user_attrs.get("error", "not known yet")
    if first is not None and first.value is not None:
        stood = f"{first.value:.4f}"
    was = {key.name: own(search.recipe, key) for key in search.keys}
    now = was if "own" in best.user_attrs else _values(search, best)
    changed = [
        f"  {k} = {_value(v)}" + (f", was {_value(was[k])}" if was[k] is not None else "")
        for k, v in now.items()
        if v != was[k]
    ]
    lines = [
        " ".join(["stillwatch", *sys.argv[1:]]),
        f"{tune.metric} on validation {best.value:.4f} (trial {best.number}); the recipe as it stood: {stood}.",
        *changed,
        f"{states.count('complete')} trials came to an end, {states.count('pruned')} were stopped early, "
        f"{states.count('failed')} failed. Each trains the {tune.side}"
        + (f", with {_value(tune.fit)}." if tune.fit else "."),
        f"The best of several on the same {len(search.data.rows['valid'])} samples flatters itself; the test split "
        "has not been looked at.",
    ]
    return "".join(f"# {''.join(c if c.isprintable() else ' ' for c in line)}\n" for line in lines)


def toml(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> str:
    """A table as TOML that tomllib reads back equal: str, bool, int, float, Path (as str), lists, tables.

    None, which TOML lacks, is left out of tables. Raises TypeError for anything else.
    """
    lines, later = [], []
    for key, value in table.items():
        if value is None:
            continue
        line = f"{_name(key)} = {_value(value)}"
        if isinstance(value, Mapping) and (not above or len(line) > WIDTH):
            later.append(toml(value, (*above, key)))
        elif isinstance(value, list | tuple) and len(line) > WIDTH:
            lines += [f"{_name(key)} = [", *(f"  {_value(item)}," for item in value), "]"]
        else:
            lines.append(line)
    head = [f"\n[{'.'.join(map(_name, above))}]"] if above else []
    return "".join(f"{line}\n" for line in [*head, *lines]) + "".join(later)


def _name(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)  # shortest text that reads back the same; inf and nan are TOML's words too
    if isinstance(value, str | Path):
        text = str(value)
        if "\\" in text and "'" not in text and text.isprintable():
            return f"'{text}'"  # a regex as a person writes it
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are among TOML's
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_name(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inner} }}" if inner else "{}"
    raise TypeError(f"{value!r}: TOML has no {type(value).__name__}")
