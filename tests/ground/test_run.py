"""Runs: numbered folders, whole files, and a lock that a kill lets go of."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stillwatch.atomic import atomic
from stillwatch.errors import UserError
from stillwatch.recipe import check
from stillwatch.run import Run, runs

RECIPE = check(
    {
        "name": "toy",
        "labels": ["a", "b"],
        "data": {"source": "folders"},
        "teacher": {"net": "resnet10t"},
        "student": {"net": "smallcnn"},
    },
    "here",
)


def test_runs_are_numbered_and_open_again(tmp_path: Path) -> None:
    one = Run.create(RECIPE, "teacher", tmp_path, source="name = 'toy'")
    two = Run.create(RECIPE, "teacher", tmp_path)
    assert [one.path.name, two.path.name] == ["toy-teacher-001", "toy-teacher-002"]
    one.finish(best={"accuracy": 1.0})
    again = Run.open(one.path)
    assert again.info.status == "done"
    assert again.info.best == {"accuracy": 1.0}
    assert again.recipe == RECIPE
    assert (one.path / "recipe.toml").read_text() == "name = 'toy'"
    assert [run.path.name for run in runs(tmp_path)] == ["toy-teacher-001", "toy-teacher-002"]


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    Run.create(RECIPE, "teacher", tmp_path)
    with pytest.raises(UserError, match=r"not a run .* did you mean 'toy-teacher-001'"):
        Run.open(tmp_path / "toy-teacher-01")
    (tmp_path / "toy-teacher-001" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json: cannot be read"):
        Run.open(tmp_path / "toy-teacher-001")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError), atomic(path) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["x.txt"]  # noqa: PTH208


def test_the_log_forgets_a_line_cut_short_and_rewinds(tmp_path: Path) -> None:
    run = Run.create(RECIPE, "teacher", tmp_path)
    for epoch in (1, 2, 3):
        run.log({"epoch": epoch})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lo')
    assert [row["epoch"] for row in run.history()] == [1, 2, 3]
    run.rewind(2)
    assert [row["epoch"] for row in run.history()] == [1, 2]


def test_arrays_and_tables_come_back(tmp_path: Path) -> None:
    run = Run.create(RECIPE, "teacher", tmp_path)
    path = run.save_arrays("predictions/test.npz", p=np.eye(2, dtype=np.float32))
    with np.load(path) as arrays:
        assert (arrays["p"] == np.eye(2)).all()
    assert run.save_csv("split.csv", ("path", "label"), [("a,b", "é")]).read_text().splitlines() == [
        "path,label", '"a,b",é',
    ]  # fmt: skip
    assert run.read_json("nothing.json") is None


def test_a_lock_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    run = Run.create(RECIPE, "teacher", tmp_path)
    code = f"from stillwatch.run import Run; import sys; sys.exit(Run.open({str(run.path)!r}).lock())"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0  # refused: lock() is False
    run.unlock()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 1
    assert Run.open(run.path).lock()  # that process is gone, and its lock with it
