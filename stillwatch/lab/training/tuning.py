"""Tuning: short trainings with other values for the keys of [tune], shared by processes. Never reads the test split."""

import hashlib
import json
import math
import os
import sqlite3
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillwatch.atomic import locked
from stillwatch.errors import UserError, one_line
from stillwatch.lab.data.dataset import Dataset, load_dataset
from stillwatch.lab.models import classifier
from stillwatch.lab.models.ensemble import Teacher
from stillwatch.lab.training import pipeline, runs
from stillwatch.lab.training.losses import needs_teacher
from stillwatch.lab.training.runs import RunOptions
from stillwatch.lab.training.search_space import Key, Value, keys_of, own_value, placed, probes, side_of, with_values
from stillwatch.recipe import Recipe
from stillwatch.run import Progress, Run

if TYPE_CHECKING:  # optuna takes most of a second to import
    from optuna import Study, Trial
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial


STARTUP = 5  # trials that end by themselves before one is cut short for being below their median
# What may differ in one study
FREE: dict[str, set[str] | bool] = {"data": {"root"}, **dict.fromkeys(set(runs.LATER) - {"tune"}, True)}
BAD = (UserError, ValueError, torch.OutOfMemoryError)  # what values of a trial can cause; all else ends the command


def tune(recipe: Recipe, trials: int, options: RunOptions, storage: str | None = None) -> Path:
    """Search recipe.tune.keys for the best validation figure, up to `trials` in all; returns best.toml.

    Trial 0 is the recipe as it is; TPE proposes the others (Bergstra et al. 2011, §4); the median rule stops them
    (Golovin et al. 2017, §3.2.2). Resumes. storage: a file for Optuna's journal or a shared database's
    URL; None: a file in the run. Raises UserError, also where no trial completed.
    """
    # ---- every key is checked before the data are read
    if trials < 1:
        raise UserError(f"trials = {trials}: must be at least 1")
    if storage and options.fresh:
        raise UserError(f"--fresh: {storage} may hold this study; for a new one name another --storage")
    keys, side = keys_of(recipe), recipe.tune.side
    checked = probes(recipe, keys)
    if pipeline.device(side_of(recipe)[1]).num_processes > 1:
        raise UserError("tune: a trial is one process; start this command several times, and they share the trials")

    # ---- teacher and data, and the losses with them
    specs = [spec for _, trial, _ in checked for spec in side_of(trial)[1].loss]
    taught = side == "student" and any(map(needs_teacher, specs))
    teacher = runs.newest_teacher(recipe, options.root) if taught else None
    teacher_net = runs.load_teacher(teacher) if teacher else None
    data = load_dataset(recipe.seen_by(side), options.progress)
    if teacher:
        runs.check_teacher(teacher, data)
    runs.check_weights(side_of(recipe)[0], data)
    for place, trial, net in checked:
        with placed(place):
            pipeline.build_step(net, data, teacher_net, side_of(trial)[1], side)

    # ---- the trials
    parent = teacher.path.name if teacher else None
    home, progress = runs.shared_run(recipe, "tune", data, options, FREE, parent), options.progress
    search = Search(recipe, keys, data, teacher, teacher_net, home, progress, storage)
    try:
        with _opened(search) as study:
            while claimed := _claim(search, study, trials):
                outcome = _run_trial(search, study, *claimed)
                progress.say(f"{claimed[2].path.name}: {outcome}; {_write(search, study, trials)}")
            progress.say(f"{home.path}: {_write(search, study, trials)}")
    except BaseException as error:
        home.note(status="stopped" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    if not (home.path / "best.toml").is_file():
        raise UserError(f"{home.path}: no trial came to an end; trials.csv there says why, one by one")
    return home.path / "best.toml"


# ---- the study, which processes share


@dataclass(frozen=True)
class Search:
    recipe: Recipe
    keys: list[Key]
    data: Dataset
    teacher: Run | None
    teacher_net: Teacher | None
    home: Run
    progress: Progress
    storage: str | None = None

    def study_name(self) -> str:
        """In a shared storage, of this recipe and these data."""
        if self.storage is None:
            return "tune"
        raw = self.recipe.model_dump(mode="json") | {"prune": None, "quantise": None, "export": None, "rule": None}
        raw["data"] |= {"root": None, "negatives": None}
        told = json.dumps([raw, self.data.store.fingerprint], sort_keys=True)
        return f"{self.recipe.name}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    def place(self) -> str:
        """Whose folder holds a trial's run: whether another machine's process lives cannot be seen."""
        return (self.home.path / "place").read_text()

    def own(self) -> dict[str, Value]:
        return {key.name: own_value(self.recipe, key) for key in self.keys}

    def own_params(self) -> dict[str, str | int | float]:
        """Without those that no trial may have."""
        own = self.own()
        return {key.name: kept for key in self.keys if (kept := key.stored(own[key.name])) is not None}

    def values(self, trial: "FrozenTrial | Trial") -> dict[str, Value]:
        if "own" in trial.user_attrs:
            return self.own()
        return {key.name: key.value(trial.params[key.name]) for key in self.keys if key.name in trial.params}

    def folder(self, number: int) -> Path:
        return self.home.path / f"trial-{number:03d}"

    def begin(self, trial: "Trial") -> tuple[Recipe, Run]:
        folder, values = self.folder(trial.number), self.values(trial)
        changed = {} if "own" in trial.user_attrs else values
        recipe = with_values(self.recipe, self.keys, changed, folder.name, short=True)
        run = Run.create(
            recipe,
            "teacher" if recipe.tune.side == "teacher" else "distilled" if self.teacher else "alone",
            self.home.path,
            _toml(recipe),
            parent=os.path.relpath(self.teacher.path, self.home.path) if self.teacher else None,
            fingerprint=self.data.store.fingerprint,
            seed=side_of(recipe)[1].seed,
            values=values,
        )
        run.path = run.path.rename(folder)
        run.note(id=folder.name)
        return recipe, run


@contextmanager
def _opened(search: Search) -> Iterator["Study"]:
    import optuna
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    home, verbosity = search.home.path, optuna.logging.get_verbosity()
    warmup = max(1, -(-search.recipe.fit_in("tune").epochs // 3))  # a third of the epochs says something
    connect = partial(sqlite3.connect, home / "study.sqlite", timeout=60, check_same_thread=False)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would report each trial a second time
    try:
        with locked(home / ".turn"):
            if not (home / "place").exists():  # machines may start in the same second, in folders of one name
                search.home.save("place", lambda draft: draft.write_text(uuid.uuid4().hex))
            storage: JournalStorage | RDBStorage
            if search.storage is None:
                # The path is not put into the URL: % and ? and { mean something there
                storage = RDBStorage("sqlite:///study.sqlite", {"creator": connect})
            elif "://" in search.storage:
                storage = _server(search.storage)
            else:
                try:
                    storage = JournalStorage(JournalFileBackend(search.storage))
                    storage.get_all_studies()  # it is read
                except (OSError, ValueError) as error:  # no such folder; a file that is none of its journals
                    raise UserError(f"--storage {search.storage}: cannot be opened: {one_line(error)}") from None
            study = optuna.create_study(
                study_name=search.study_name(),
                storage=storage,
                pruner=optuna.pruners.MedianPruner(STARTUP, warmup),
                direction="minimize" if search.recipe.tune.metric == "loss" else "maximize",
                load_if_exists=True,
            )
            if not study.get_trials(deepcopy=False):
                study.enqueue_trial(search.own_params(), {"own": True})
        yield study
        if isinstance(storage, RDBStorage):
            storage.engine.dispose()
    finally:
        optuna.logging.set_verbosity(verbosity)


def _server(url: str) -> "RDBStorage":
    """Raises UserError, without the password."""
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import IntegrityError, ProgrammingError

    secrets = [url]
    try:
        known = make_url(url)
        secrets += [known.password] if isinstance(known.password, str) else []
        shown = known.render_as_string()  # *** for the password
        if known.get_backend_name() == "sqlite":
            raise UserError(f"--storage {shown}: SQLite loses locks on network disks; name a file for Optuna's journal")
        with suppress(IntegrityError, ProgrammingError):  # another machine makes the tables in the same second
            return RDBStorage(url)
        return RDBStorage(url)
    except ImportError as error:
        raise UserError(f"--storage {shown}: its driver is missing: {one_line(error)}") from None
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy's, and each driver's own
        raise UserError(f"--storage {url.partition(':')[0]}://…: {one_line(error, secrets)}") from None


def _claim(search: Search, study: "Study", trials: int) -> "tuple[Trial, Recipe, Run] | None":
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    with locked(search.home.path / ".turn"):
        # A folder's lock says that its process lives at once, and through a suspended machine; a heartbeat would not
        for old in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if search.storage and old.user_attrs.get("place") != search.place():
                continue  # another machine's
            folder = search.folder(old.number)
            run = Run.open(folder) if (folder / "run.json").is_file() else None
            if run is None or run.lock():
                search.progress.say(f"{folder.name} was cut off and is run again")
                study.tell(old.number, state=TrialState.FAIL)
                study.enqueue_trial(old.params, {k: v for k, v in old.user_attrs.items() if k != "place"})
                if run:
                    run.finish("stopped")
        while True:
            known = study.get_trials(deepcopy=False)
            if sum(_counts(trial) for trial in known) >= trials:
                return None
            # Proposals follow from (seed, what has been tried): a resumed study ends as an unbroken one
            seed = np.random.SeedSequence((side_of(search.recipe)[1].seed, len(known))).generate_state(1)[0]
            study.sampler = TPESampler(seed=int(seed), multivariate=True)
            queued = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            stands = bool(queued) and "own" in queued[0].user_attrs
            names = search.own_params() if stands else [key.name for key in search.keys]
            trial = study.ask({key.name: key.distribution for key in search.keys if key.name in names})
            twin = next((t for t in known if t.state == TrialState.COMPLETE and t.params == trial.params), None)
            if stands or twin is None:
                trial.set_user_attr("place", search.place())
                return trial, *search.begin(trial)
            trial.set_user_attr("note", f"as trial {twin.number}")  # all is seeded, so the figure would be the same
            study.tell(trial, twin.value)


def _counts(trial: "FrozenTrial") -> bool:
    """Ended, failed by its own values, or running; not killed."""
    return trial.state.name in ("COMPLETE", "PRUNED", "RUNNING") or "error" in trial.user_attrs


def _run_trial(search: Search, study: "Study", trial: "Trial", recipe: Recipe, run: Run) -> str:
    from optuna.trial import TrialState

    data, metric = search.data, recipe.tune.metric
    quiet = Progress(search.progress.bar)  # bars, but not a line an epoch
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
        net = classifier.build_side(recipe, recipe.tune.side, spec)
        step = pipeline.build_step(net, data, search.teacher_net, plan, recipe.tune.side)
        best = pipeline.train(step, data, search.teacher_net, plan, run, pipeline.device(plan), quiet, report)
        if not math.isfinite(best[metric]):
            raise UserError(f"{metric} on validation is {best[metric]}")
        runs.save_split_predictions(run, data, runs.predictor(net), quiet, ["valid"])
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
    """ "lost": killed, and run again under another number."""
    return trial.state.name.lower().replace("fail", "failed") if _counts(trial) else "lost"


def _heading(search: Search, known: "Sequence[FrozenTrial]", best: "FrozenTrial") -> str:
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
    import tomli_w

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if inner is not None}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    return tomli_w.dumps(plain(recipe.model_dump(mode="json", exclude_unset=True)), indent=2)
