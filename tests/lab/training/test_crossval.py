"""Crossval: tasks in any order, in several processes; what is finished is kept, what was cut off goes on."""

import json
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import toys

from stillwatch.cli import lab
from stillwatch.errors import UserError
from stillwatch.evaluation.report import report
from stillwatch.lab.training import crossval, pipeline
from stillwatch.lab.training.crossval import Task, task, tasks
from stillwatch.lab.training.runs import RunOptions, finished_run
from stillwatch.recipe import Recipe, check
from stillwatch.run import Progress, Run
from stillwatch.run import runs as runs_in

TOML = """
name = "toy"
labels = ["SafeDriving", "Yawn"]
safe = ["SafeDriving"]
data = {source = {name = "toy", people = 6, pictures = 4}, size = 16, gray = true, folds = 3}
teacher = {net = {name = "mnist-cnn", weights = "scratch", options = {width = 4}}, fit = {epochs = 4}}
student = {net = {name = "mnist-small", weights = "scratch"}}
fit = {epochs = 1, batch = 8, lr = 0.01, loss = ["ce", "kd"]}
"""


def recipe(**changes: Any) -> Recipe:
    return check(toys.changed(tomllib.loads(TOML), changes), "here")


@pytest.fixture(autouse=True)
def any_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch may be worth nothing; that is refused elsewhere."""
    monkeypatch.setattr(pipeline, "check_teacher", lambda teacher, data: None)


def spoken() -> tuple[Progress, list[str]]:
    lines: list[str] = []
    return Progress(say=lines.append), lines


def test_tasks_are_numbered_seed_by_seed() -> None:
    found = tasks(recipe(), seeds=2)
    assert len(found) == 18 and found[:4] == [
        Task(0, 0, "teacher"), Task(1, 0, "teacher"), Task(2, 0, "teacher"), Task(0, 0, "alone"),
    ]  # fmt: skip
    assert {each.seed for each in found[:9]} == {0} and {each.seed for each in found[9:]} == {1}
    assert tasks(recipe(fit__seed=7), 1, folds=1, only=["alone"]) == [Task(0, 7, "alone")]
    assert {each.kind for each in tasks(recipe(teacher__init="runs/x"), 1)} == {"alone", "distilled"}
    assert {each.fold for each in tasks(recipe(data__split="official"), 1)} == {0}
    with pytest.raises(UserError, match="did you mean 'alone'"):
        tasks(recipe(), 1, only=["alnoe"])
    with pytest.raises(UserError, match="from 1 to 3"):
        tasks(recipe(), 1, folds=4)


def test_a_distilled_task_asks_for_its_own_teacher(tmp_path: Path) -> None:
    one = task(recipe(), 1, 5, "distilled", tmp_path)
    other = task(recipe(student__fit__seed=9), 1, 6, "distilled", tmp_path)  # a side's own seed gives way
    for run, seed in ((one, 5), (other, 6)):
        teacher = Run.open(tmp_path / str(run.info.parent))
        assert teacher.info.kind == "teacher" and teacher.recipe.data.fold == 1
        assert teacher.info.seed == run.info.seed == seed
    again = task(recipe(), 1, 5, "distilled", tmp_path)
    assert again.path == one.path and len(runs_in(tmp_path)) == 4
    assert task(recipe(), 1, 5, "teacher", tmp_path).path.name == one.info.parent
    later = recipe(export={"false_alarms": 0.2}, prune={"keep": 0.3}, fit__track=["tensorboard"])
    assert task(later, 1, 5, "distilled", tmp_path).path == one.path  # nothing there changes what is learnt


def test_a_teacher_of_students_takes_those_that_are_there(tmp_path: Path) -> None:
    there = task(recipe(), 1, 5, "alone", tmp_path)
    asked = recipe(teacher__students=2, teacher__average="logits")
    distilled = task(asked, 1, 5, "distilled", tmp_path)
    teacher = Run.open(tmp_path / str(distilled.info.parent))
    members = [Run.open(tmp_path / name).info for name in teacher.info.members]
    assert members[0].id == there.path.name and [(one.kind, one.seed) for one in members] == [
        ("alone", 5),
        ("alone", 6),
    ]
    by_hand = asked.model_copy(update={"data": there.recipe.data, "fit": there.recipe.fit})
    again = pipeline.teach(by_hand, RunOptions(tmp_path))
    assert again.info.members == teacher.info.members and len(runs_in(tmp_path)) == 5
    other = pipeline.teach(
        by_hand.model_copy(update={"fit": by_hand.fit.model_copy(update={"lr": 0.02})}), RunOptions(tmp_path)
    )
    assert not set(other.info.members) & set(teacher.info.members)  # trained otherwise
    assert task(asked, 1, 5, "teacher", tmp_path).path == again.path  # the newest


def test_what_was_cut_off_goes_on_and_what_is_finished_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, (progress, _) = recipe(fit__epochs=3, teacher__fit={}), spoken()
    options, wanted = RunOptions(tmp_path, "", False, progress), tasks(recipe(), 1, only=["alone"])
    epochs, log = list[int](), Run.log

    def cut(run: Run, row: Any) -> None:
        epochs.append(row["epoch"])
        log(run, row)
        if len(epochs) == 5:  # the second task's second epoch
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "log", cut)
    with pytest.raises(KeyboardInterrupt):
        crossval.crossval(asked, wanted, options)
    folder, made = crossval.crossval(asked, wanted, options)
    assert folder.path == tmp_path / "toy-crossval-001" and folder.info.status == "done"
    assert [run.path.name for run in made] == ["toy-alone-001", "toy-alone-002", "toy-alone-003"]
    assert epochs.count(1) == 3 and len(epochs) < 3 * 3 + 2
    before = list(epochs)
    assert crossval.crossval(asked, wanted, options)[0].path == folder.path and epochs == before
    more, _ = crossval.crossval(recipe(fit__epochs=2), wanted[:1], options)  # another recipe has a folder of its own
    assert more.path.name == "toy-crossval-002"


def test_a_failed_task_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress, lines = spoken()
    real = pipeline.distil

    def fails(mine: Recipe, *rest: Any) -> Run:
        if mine.data.fold == 0:
            raise MemoryError("no memory is left")
        return real(mine, *rest)

    monkeypatch.setattr(pipeline, "distil", fails)
    options, wanted = RunOptions(tmp_path, "", False, progress), tasks(recipe(), 1, only=["alone"])
    with pytest.raises(UserError, match="1 of 3 tasks failed, the first fold 0, seed 0, alone"):
        crossval.crossval(recipe(), wanted, options)
    assert any("failed: no memory is left" in line for line in lines)
    monkeypatch.setattr(pipeline, "distil", real)
    assert len(crossval.crossval(recipe(), wanted, options)[1]) == 3


def test_an_unknown_engine_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'ray'"):
        crossval.crossval(recipe(), tasks(recipe(), 1), RunOptions(tmp_path), on="rya")
    assert list(tmp_path.iterdir()) == []


def test_two_processes_share_the_tasks(tmp_path: Path) -> None:
    """And a bar over all of them is the only display."""
    bars: list[tuple[int, str]] = []

    def bar(things: Iterable[Any], count: int, what: str) -> Iterator[Any]:
        bars.append((count, what))
        yield from things

    options = RunOptions(tmp_path, TOML, False, Progress(bar))
    folder, made = crossval.crossval(recipe(), tasks(recipe(), 1, folds=2, only=["alone"]), options, jobs=2)
    assert len(made) == 2 and all(finished_run(run.recipe, run.info.kind, folder.path) for run in made)
    assert [each for each in bars if each[1].startswith("crossval")] == [(2, "crossval toy")]
    assert made[0].text == TOML


def test_the_command_does_one_task_of_an_array_and_reports_on_all(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_paint", lambda *_: {})
    (here / "toy.toml").write_text(TOML)
    for number in (5, 0):
        lab.crossval("toy.toml", ["fit.batch=4"], seeds=1, folds=2, task=number)
    folder = here / "runs" / "toy-crossval-001"
    assert sorted(run.info.kind for run in runs_in(folder)) == ["distilled", "teacher", "teacher"]
    lab.crossval("toy.toml", ["fit.batch=4"], seeds=2, folds=2)
    found = json.loads((folder / "report" / "report.json").read_text())
    assert found["verdict"]["pairs"] == 4 and found["models"]["teacher"]["seeds"] == [0, 1]
    assert len(list((here / "runs").glob("*/run.json"))) == 1
    with pytest.raises(UserError, match="there are 6"):
        lab.crossval("toy.toml", ["fit.batch=4"], seeds=1, folds=2, task=6)
