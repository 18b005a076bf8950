"""A training's figures and parameters to TensorBoard, MLflow or W&B, through accelerate."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from accelerate import Accelerator

from stillwatch.errors import UserError
from stillwatch.recipe import Fit
from stillwatch.run import Run

QUIET = {  # what they would tell their makers, or write down of this machine and its code; set before they are imported
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_X_DISABLE_STATS": "true",
    "WANDB_X_DISABLE_META": "true",
    "WANDB_X_SAVE_REQUIREMENTS": "false",
}
TAGS = dict.fromkeys(("user", "source.name", "source.git.commit", "source.git.branch", "source.git.repoURL"), "")


def check(names: Sequence[str]) -> None:
    """Raises UserError where a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(f"fit.track = {name!r}: is not installed; pip install 'stillwatch[{name}]' brings it")


@contextmanager
def tracked(accelerator: Accelerator, plan: Fit, run: Run) -> Iterator[None]:
    """accelerator.log() goes to plan.track.

    TensorBoard and W&B (offline, or WANDB_MODE=online) write into the run's folder, MLflow into mlflow.db beside it, or
    to MLFLOW_TRACKING_URI.
    """
    if not plan.track:
        yield
        return
    store = f"sqlite:///{run.path.absolute().parent / 'mlflow.db'}"
    local = {"MLFLOW_TRACKING_URI": store, "WANDB_MODE": "offline"}
    for key, value in (QUIET | local).items():
        os.environ.setdefault(key, value)
    name, data = run.path.name, run.recipe.data
    asked = {"net": run.net.name, "kind": run.info.kind, "data.size": data.size, "data.fold": data.fold}
    asked |= {f"fit.{key}": value for key, value in plan.model_dump(mode="json").items()}
    simple = (bool, int, float, str)
    parameters = {key: value if isinstance(value, simple) else json.dumps(value) for key, value in asked.items()}
    accelerator.log_with = list(plan.track)
    accelerator.project_configuration.set_directories(str(run.path / "tensorboard"))
    tags = {f"mlflow.{key}": value for key, value in TAGS.items()}  # else MLflow fills them in
    options = {"mlflow": {"run_name": name, "tags": tags}, "wandb": {"name": name, "dir": str(run.path)}}
    accelerator.init_trackers("stillwatch", parameters, options)
    try:
        yield
    finally:
        for tracker in accelerator.trackers:  # end_training() would also end the processes' group
            tracker.finish()
        accelerator.trackers = []


def figures(row: Mapping[str, Any]) -> dict[str, float]:
    """An epoch's metrics.jsonl line as train/loss, train/kd, valid/accuracy, lr, seconds."""
    train = {"loss": row["train"]["loss"], **row["train"]["parts"]}
    named = {f"train/{key}": value for key, value in train.items()} | {f"valid/{k}": v for k, v in row["valid"].items()}
    return named | {"lr": row["lr"], "seconds": row["seconds"]}
