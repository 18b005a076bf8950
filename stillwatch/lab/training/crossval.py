"""Crossval: every fold and seed of teacher, alone and distilled, as independent tasks."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

from stillwatch.atomic import locked
from stillwatch.errors import UserError, nearest, one_line
from stillwatch.inference import engines
from stillwatch.lab.data.dataset import load_dataset
from stillwatch.lab.training import pipeline, runs
from stillwatch.lab.training.runs import LATER, TOGETHER, WITHOUT_LABELS, RunOptions, finished_run, recipe_for
from stillwatch.recipe import Recipe
from stillwatch.run import Run

Trained: TypeAlias = Literal["teacher", "alone", "distilled"]
KINDS: tuple[Trained, ...] = get_args(Trained)


class Task(NamedTuple):
    fold: int
    seed: int
    kind: Trained


def task(recipe: Recipe, fold: int, seed: int, kind: Trained, root: Path | str, source: str = "") -> Run:
    """The finished run of one fold, seed and kind in `root`: found, resumed or trained.

    A distilled one first asks for its teacher, a teacher for its students; one that another process works on is waited
    for. Raises UserError as teach and distil do.
    """
    mine = recipe_for(recipe, fold, seed, kind)
    if kind == "distilled" and not mine.teacher.init:
        task(recipe, fold, seed, "teacher", root, source)
    for other in range(seed, seed + (mine.teacher.students if kind == "teacher" else 0)):
        task(recipe, fold, other, "alone", root, source)
    with locked(Path(root) / f".fold{fold}-seed{seed}-{kind}"):
        if run := finished_run(mine, kind, root):
            return run
        if kind == "teacher":
            return pipeline.teach(mine, RunOptions(root, source))
        return pipeline.distil(mine, RunOptions(root, source), kind == "alone")


def tasks(recipe: Recipe, seeds: int, folds: int | None = None, only: Sequence[str] = KINDS) -> list[Task]:
    """Numbered from 0, one seed's folds first. folds: the first so many; None: all, or an official split's one."""
    for word in only:
        if word not in KINDS:
            raise UserError(f"--only {word}: unknown{nearest(word, KINDS)}")
    most = 1 if recipe.data.split == "official" else recipe.data.folds
    if folds is not None and not 1 <= folds <= most:
        raise UserError(f"--folds {folds}: from 1 to {most}, which is data.folds; data.folds=N makes another split")
    kinds = [kind for kind in KINDS if kind in only and not (kind == "teacher" and recipe.teacher.init)]
    first, each = recipe.fit.seed, range(most if folds is None else folds)
    return [Task(fold, seed, kind) for seed in range(first, first + seeds) for kind in kinds for fold in each]


def home(recipe: Recipe, options: RunOptions) -> Run:
    """The folder of its runs: new, or that of the same recipe and labelled data, whatever its folds and seeds."""
    keys = [("data", "root"), ("data", "fold"), ("fit", "seed"), *WITHOUT_LABELS, *(("teacher", k) for k in TOGETHER)]
    free: dict[str, set[str] | bool] = {table: {key for its, key in keys if its == table} for table, _ in keys}
    free |= dict.fromkeys(LATER, True)
    return runs.shared_run(recipe, "crossval", load_dataset(recipe, options.progress), options, free)


def crossval(
    recipe: Recipe, wanted: Sequence[Task], options: RunOptions, jobs: int = 1, on: str = ""
) -> tuple[Run, list[Run]]:
    """Do the tasks, `jobs` at a time; one that fails stops no other. Returns the folder and its finished runs.

    on: an engine of inference.engines, whose machines share options.root and the data. Raises UserError at the end,
    where one failed; the same call does what is left.
    """
    if on:
        engines.check(on)  # before there is a folder
    folder, say = home(recipe, options), options.progress.say
    say(f"{folder.path}: {len(wanted)} task{'s' * (len(wanted) != 1)}, {f'on {on}' if on else f'{jobs} at a time'}")
    done, failed = list[Run](), list[str]()
    calls = [partial(task, recipe, *each, folder.path, options.source) for each in wanted]
    if on:
        gpus = int("cuda" in (recipe.fit_of("teacher").device, recipe.fit_of("student").device))
        outcomes = engines.over([partial(_tried, call) for call in calls], on, jobs, gpus)
    else:
        outcomes = _outcomes(calls, jobs)
    for number, outcome in options.progress.bar(outcomes, len(calls), f"crossval {recipe.name}"):
        place = "fold {}, seed {}, {}".format(*wanted[number])
        if isinstance(outcome, Run):
            done.append(outcome)
            say(f"{place}: macro-F1 {outcome.info.best['macro_f1']:.3f} on validation ({outcome.path.name})")
        else:
            failed.append(place)
            say(f"{place}: failed: {outcome}")
    if failed:
        raise UserError(f"{folder.path}: {len(failed)} of {len(wanted)} tasks failed, the first {failed[0]}; see above")
    folder.note(status="done")
    return folder, done


def _outcomes(calls: Sequence[Callable[[], Run]], jobs: int) -> Iterator[tuple[int, Run | str]]:
    if jobs == 1:
        for number, call in enumerate(calls):
            yield number, _tried(call)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        futures = {pool.submit(_tried, call): number for number, call in enumerate(calls)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _tried(call: Callable[[], Run]) -> Run | str:
    try:
        return call()
    except Exception as error:  # memory that ran out, a disk that is full: the other tasks go on
        return one_line(error)
