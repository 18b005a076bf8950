"""Where a run's nets look, on the toy cabin: what evaluation gets, the picture, and the report."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from stillwatch.cli.main import app
from stillwatch.lab import attention
from stillwatch.lab.training import pipeline
from stillwatch.lab.training.runs import RunOptions
from stillwatch.recipe import Recipe, check
from stillwatch.run import Run


def recipe(faces: bool = True) -> Recipe:
    net, source = {"name": "mnist-small", "weights": "scratch"}, {"name": "toy", "people": 3, "pictures": 3}
    raw = {
        "name": "toy", "labels": ["SafeDriving", "SleepyDriving"], "safe": ["SafeDriving"],
        "data": {"source": source, "size": [24, 32], "gray": True, "folds": 3, "faces": faces},
        "teacher": {"net": net}, "student": {"net": net}, "fit": {"epochs": 1, "batch": 8, "loss": ["ce", "kd"]},
    }  # fmt: skip
    return check(raw, "here")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """A teacher that is let through, and its student."""
    teacher = pipeline.teach(recipe(), RunOptions(tmp_path))
    teacher.note(best=teacher.info.best | {"accuracy": 1.0})
    return [teacher, pipeline.distil(recipe(), RunOptions(tmp_path))]


def test_a_run_shows_where_its_teacher_and_it_look(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = (attention.seen(run) for run in runs)
    assert teacher and student
    assert student.x.shape[0] == len(student.y) == len(student.group) == len(student.regions) == 6
    assert not np.isnan(student.regions).any()
    assert student.predict(student.x).shape == (6, 2)
    # six samples; a frame and the map of one net, or of both
    wide = student.maps.shape[1]
    assert (
        student.maps.shape[2] == 3 and teacher.maps.shape[1] == wide and student.maps.shape[0] > teacher.maps.shape[0]
    )
    net = attention.load_net(runs[0])
    net.channels = {}
    monkeypatch.setattr(attention, "load_net", lambda run: net)
    bare = attention.seen(runs[0])
    assert bare and bare.maps.shape[0] < teacher.maps.shape[0]  # a net without maps: its frames alone
    assert attention.seen(pipeline.teach(recipe(faces=False), RunOptions(runs[0].path.parent))) is None


def test_the_report_says_what_hiding_the_eyes_costs(runs: list[Run], tmp_path: Path) -> None:
    out = tmp_path / "report"
    result = CliRunner().invoke(app, ["compare", *(str(run.path) for run in runs), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "eyes hidden" in result.output
    hiding = json.loads((out / "report.json").read_text())["hiding"]
    assert [row["label"] for row in hiding] == ["SafeDriving", "SleepyDriving"]
    assert {row["run"] for row in hiding} == {runs[1].path.name} and all(row["samples"] == 3 for row in hiding)
    page = (out / "report.html").read_text()
    assert "Where it looks" in page and "Energy maps" in page
