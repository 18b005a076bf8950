"""fit.track: each epoch's figures and the parameters, and nothing else, to the tracker that was asked for."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from stillwatch.errors import UserError
from stillwatch.lab.training import pipeline, trackers
from stillwatch.lab.training.runs import RunOptions
from stillwatch.recipe import Recipe, check
from stillwatch.run import Run


def recipe(*track: str) -> Recipe:
    net = {"name": "mnist-small"}
    raw = {
        "name": "toy",
        "labels": ["SafeDriving", "Yawn"],
        "data": {"source": {"name": "toy", "people": 3, "pictures": 4}, "size": 24, "gray": True, "folds": 3},
        "teacher": {"net": net},
        "student": {"net": net},
        "fit": {"epochs": 2, "batch": 8, "track": track},
    }
    return check(raw, "here")


@pytest.fixture
def variables() -> Iterator[None]:
    """What a training sets in the environment is forgotten again."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


def epochs(run: Run) -> list[float]:
    return [row["valid"]["accuracy"] for row in run.history()]


def test_tensorboard_gets_each_epoch(tmp_path: Path, variables: None) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = pipeline.distil(recipe("tensorboard"), RunOptions(tmp_path), alone=True)
    log = reader.EventAccumulator(str(run.path / "tensorboard" / "stillwatch")).Reload()
    assert [event.value for event in log.Scalars("valid/accuracy")] == pytest.approx(epochs(run))
    assert [event.step for event in log.Scalars("train/ce")] == [1, 2]
    assert {"train/loss", "valid/macro_f1", "lr"} <= set(log.Tags()["scalars"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own
def test_mlflow_gets_figures_and_parameters_beside_the_runs(tmp_path: Path, variables: None) -> None:
    mlflow = pytest.importorskip("mlflow")
    run = pipeline.distil(recipe("mlflow"), RunOptions(tmp_path), alone=True)
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found: Any = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert [one.info.run_name for one in found] == [run.path.name]
    assert found[0].data.metrics["valid/accuracy"] == pytest.approx(epochs(run)[-1])
    assert found[0].data.params["fit.epochs"] == "2"
    assert not any("/" in value or "@" in value for value in found[0].data.tags.values())


def test_without_a_tracker_nothing_is_written_and_no_variable_is_set(tmp_path: Path, variables: None) -> None:
    before = dict(os.environ)
    run = pipeline.distil(recipe(), RunOptions(tmp_path), alone=True)
    assert not list(run.path.rglob("*tensorboard*"))
    assert os.environ == before


def test_a_tracker_that_is_missing_is_one_line_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'stillwatch\[wandb\]'"):
        pipeline.teach(recipe("wandb"), RunOptions(tmp_path))
    assert not list(tmp_path.iterdir())


def test_no_path_of_the_machine_is_among_the_parameters(tmp_path: Path, variables: None) -> None:
    run, asked = pipeline.distil(recipe(), RunOptions(tmp_path), alone=True), MagicMock(trackers=[])
    with trackers.tracked(asked, recipe("wandb").fit, run):
        assert os.environ["WANDB_MODE"] == "offline"
    parameters = asked.init_trackers.call_args[0][1]
    assert str(tmp_path) not in json.dumps(parameters)
    assert parameters["net"] == "mnist-small"
