"""The loop: exact resuming, NaN by name, rates, averages; and that several processes do what one does."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from stillwatch.errors import UserError
from stillwatch.lab.models import classifier
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.training import losses
from stillwatch.lab.training.loop import BatchSource, EpochCallback, TrainStep, fit, rate
from stillwatch.recipe import Fit, Net, check
from stillwatch.run import NO_PROGRESS, Progress, Run

RECIPE = check(
    {
        "name": "dots",
        "labels": ["left", "right"],
        "data": {"source": "folders", "size": 8, "gray": True},
        "teacher": {"net": {"name": "smallcnn", "weights": "scratch"}},
        "student": {"net": {"name": "smallcnn", "weights": "scratch", "dropout": 0.2}},
    },
    "here",
)
COUNT = 24


def dots() -> tuple[Tensor, Tensor]:
    """Pictures with one bright dot, in the left half or in the right one."""
    chance = np.random.default_rng(0)
    x = chance.integers(0, 60, (COUNT, 8, 8, 1), dtype=np.uint8)
    y = np.arange(COUNT) % 2
    x[np.arange(COUNT), chance.integers(0, 8, COUNT), chance.integers(0, 4, COUNT) + 4 * y] = 255
    return torch.from_numpy(x), torch.from_numpy(y)


def step_of(specs: tuple[Any, ...] = ("ce",)) -> TrainStep:
    torch.manual_seed(1)
    net = classifier.build(RECIPE.student.net, 2, (8, 8), 1)
    shape = losses.Shape(net.dim, net.channels)
    return TrainStep(net, losses.parts(specs, losses.Task(2, (12, 12), "softmax", shape, shape)))


def learn(
    run: Run,
    plan: Fit,
    specs: tuple[Any, ...] = ("ce",),
    progress: Progress = NO_PROGRESS,
    after: EpochCallback | None = None,
) -> tuple[TrainStep, dict[str, Any]]:
    x, y = dots()
    step = step_of(specs)

    def batch(rows: np.ndarray, epoch: int) -> Any:
        teacher = classifier.ModelOutput(torch.nn.functional.one_hot(y[rows], 2) * 4.0, torch.zeros(len(rows), 128), {})
        return x[rows], y[rows], teacher, None

    def judge(net: Classifier) -> dict[str, float]:
        net.eval()
        with torch.no_grad():
            logits = net(x).logits
        right = float((logits.argmax(1) == y).float().mean())
        return {"loss": float(nn.functional.cross_entropy(logits, y)), "accuracy": right, "macro_f1": right}

    return step, fit(step, BatchSource(COUNT, batch), judge, plan, run, Accelerator(cpu=True), progress, after)


def run_in(root: Path) -> Run:
    return Run.create(RECIPE, "alone", root)


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.history()]


PLAN = Fit(epochs=4, batch=8, lr=3e-3, ema=0.9, clip=1.0, warmup=1)


def test_it_learns_and_logs_every_epoch(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    _, best = learn(run, Fit(epochs=12, batch=8, lr=3e-3))
    assert best["accuracy"] == 1.0
    rows = run.history()
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert rows[-1]["train"]["loss"] < rows[0]["train"]["loss"] / 3
    assert rows[0]["train"]["share"] == {"ce": 1.0}
    kept = torch.load(run.path / "best.pt", weights_only=True)
    assert kept["epoch"] == best["epoch"]


def test_the_parts_and_their_shares_add_up(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    learn(run, Fit(epochs=1, batch=8), ({"name": "ce", "weight": 0.3}, {"name": "kd", "weight": 0.7}))
    train = run.history()[0]["train"]
    assert train["parts"].keys() == {"ce", "kd"}
    assert math.isclose(sum(train["parts"].values()), train["loss"], rel_tol=1e-6)
    assert math.isclose(sum(train["share"].values()), 1.0, rel_tol=1e-6)


def test_a_resumed_run_gives_the_numbers_of_an_unbroken_one(tmp_path: Path) -> None:
    whole = run_in(tmp_path)
    learn(whole, PLAN)

    class Killed(Exception):
        pass

    def die(line: str) -> None:
        if line.startswith("epoch   3"):  # after the log and before last.pt: the worst moment
            raise Killed

    broken = run_in(tmp_path)
    with pytest.raises(Killed):
        learn(broken, PLAN, progress=Progress(say=die))
    assert len(broken.history()) == 3
    learn(broken, PLAN)
    assert rows_of(broken) == rows_of(whole)
    for name in ("best.pt", "last.pt"):
        one, other = (torch.load(run.path / name, weights_only=True) for run in (whole, broken))
        state, again = (found.get("net") or found["step"] for found in (one, other))
        for key, value in state.items():
            assert torch.equal(value, again[key]), key


def test_a_run_that_is_done_is_not_trained_again(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    _, best = learn(run, PLAN)
    before = (run.path / "last.pt").read_bytes()
    _, again = learn(run, PLAN)
    assert again == best
    assert (run.path / "last.pt").read_bytes() == before


def test_a_nan_stops_and_names_the_part_that_broke_first(tmp_path: Path) -> None:
    class Broken(nn.Module):
        needs_teacher, maps = False, ()

        def forward(self, student: Any, teacher: Any, y: Any, progress: float) -> Tensor:
            return student.logits.sum() * (math.nan if progress > 0.3 else 0.0)

    step = step_of()
    step.parts["rotten"], step.weights["rotten"] = Broken(), 1.0
    x, y = dots()
    run = run_in(tmp_path)
    with pytest.raises(UserError, match=r"fit\.loss\.rotten: no longer a number at step 3 of"):
        source = BatchSource(COUNT, lambda rows, epoch: (x[rows], y[rows], None, None))
        figures = {"loss": 1.0, "accuracy": 0.0, "macro_f1": 0.0}
        fit(step, source, lambda net: figures, Fit(epochs=9, batch=8), run, Accelerator(cpu=True), NO_PROGRESS)
    assert 1 <= len(run.history()) < 9
    assert (run.path / "last.pt").is_file()  # the last good epoch


def test_best_is_kept_by_the_metric_and_patience_stops(tmp_path: Path) -> None:
    figures = iter([0.5, 0.8, 0.7, 0.6, 0.9, 0.1])
    x, y = dots()
    run = run_in(tmp_path)

    def judge(net: Classifier) -> dict[str, float]:
        return {"loss": 1.0, "accuracy": 0.5, "macro_f1": next(figures)}

    lesson = BatchSource(COUNT, lambda rows, epoch: (x[rows], y[rows], None, None))
    best = fit(step_of(), lesson, judge, Fit(epochs=6, batch=8, patience=2), run, Accelerator(cpu=True), NO_PROGRESS)
    assert (best["epoch"], best["macro_f1"]) == (2, 0.8)
    assert len(run.history()) == 4
    last = run_in(tmp_path)
    figures = iter([0.5, 0.8, 0.7])
    best = fit(
        step_of(), lesson, judge, Fit(epochs=3, batch=8, select="last"), last, Accelerator(cpu=True), NO_PROGRESS
    )
    assert best["epoch"] == 3


def test_the_rate_warms_up_and_falls_along_a_cosine() -> None:
    plan = Fit(epochs=10, lr=1.0, warmup=1)
    rates = [rate(plan, step, steps=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[99] < 0.001
    assert rate(Fit(epochs=10, lr=1.0, schedule="constant"), 99, 10) == 1.0


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    learn(run, PLAN)
    last = torch.load(run.path / "last.pt", weights_only=True)
    mean, own = last["average"]["head.weight"], last["step"]["net.head.weight"]
    start = step_of().net.head.weight.detach()
    assert not torch.equal(mean, own)
    assert (mean - own).norm() < (start - own).norm()
    kept = torch.load(run.path / "best.pt", weights_only=True)["net"]["head.weight"]
    assert not torch.equal(kept, own)  # what is judged and kept is the average


def test_frozen_parts_stay_and_norms_are_not_decayed(tmp_path: Path) -> None:
    net = classifier.build(Net(name="smallcnn", weights="scratch", frozen=True), 2, (8, 8), 1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, y = dots()
    step = TrainStep(
        net, losses.parts(("ce",), losses.Task(2, (12, 12), "softmax", losses.Shape(net.dim, net.channels), None))
    )
    lesson = BatchSource(COUNT, lambda rows, epoch: (net.frozen_forward(x[rows]), y[rows], None, None))
    judge = lambda net: {"loss": 1.0, "accuracy": 0.5, "macro_f1": 0.5}  # noqa: E731
    fit(step, lesson, judge, Fit(epochs=1, batch=8, lr=0.1), run_in(tmp_path), Accelerator(cpu=True), NO_PROGRESS)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_bf16_trains(tmp_path: Path) -> None:
    """In a process of its own: accelerate's precision is set once a process."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from accelerate import Accelerator
import test_loop
test_loop.Accelerator = lambda cpu: Accelerator(cpu=True, mixed_precision="bf16")
_, best = test_loop.learn(test_loop.run_in(Path({str(tmp_path)!r})), test_loop.Fit(epochs=12, batch=8, lr=3e-3))
print(best["accuracy"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 0.95


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    """Each takes every other row of a batch; gradients are averaged: the same epoch, to rounding. No dropout here."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_loop
from accelerate import Accelerator
raw = test_loop.RECIPE.model_dump(mode="json")
raw["student"]["net"]["dropout"] = 0
test_loop.RECIPE = test_loop.check(raw, "here")
root = Path({str(tmp_path)!r})
process = Accelerator(cpu=True).process_index
run = test_loop.Run.create(test_loop.RECIPE, "alone", root / str(process))
test_loop.learn(run, test_loop.Fit(epochs=2, batch=8, lr=3e-3))
"""
    script = tmp_path / "two.py"
    script.write_text(code)
    words = "--cpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
    launch = [sys.executable, "-m", "accelerate.commands.launch", *words.split()]
    for words, folder in (([*launch, str(script)], "two"), ([sys.executable, str(script)], "one")):
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
        (tmp_path / "0").rename(tmp_path / folder)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "dots-alone-001" / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], rel=1e-4)
        assert a["valid"]["loss"] == pytest.approx(b["valid"]["loss"], rel=1e-4)


@pytest.mark.parametrize("select", ["best", "last"])
def test_it_stops_where_it_is_told_that_it_is_enough(tmp_path: Path, select: Literal["best", "last"]) -> None:
    """And what is kept is what would have been, had the plan ended there; asked to go on, it goes on."""
    told: list[tuple[int, float]] = []

    def after(epoch: int, figures: dict[str, float]) -> bool:
        told.append((epoch, figures["loss"]))
        return epoch == 2

    plan = PLAN.model_copy(update={"select": select})
    cut, whole = run_in(tmp_path), run_in(tmp_path)
    _, best = learn(cut, plan, after=after)
    learn(whole, plan)
    assert told == [(row["epoch"], row["valid"]["loss"]) for row in rows_of(cut)]
    assert rows_of(cut) == rows_of(whole)[:2]
    kept = torch.load(cut.path / "best.pt", weights_only=True)
    assert kept["valid"] == {key: best[key] for key in kept["valid"]}
    assert kept["epoch"] == best["epoch"]
    assert best["epoch"] == 2 or select == "best"
    learn(cut, plan)
    assert rows_of(cut) == rows_of(whole)
