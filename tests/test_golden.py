"""Thirty steps on a drawn set, pinned: data, augmentation, net, every loss and the optimiser in one number a step.

A change that moves these numbers moves everybody's results. tests/golden/repin.py pins them anew, for a reason.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from stillwatch.lab.data import augment, cache
from stillwatch.lab.data.reader import gather
from stillwatch.lab.models import classifier
from stillwatch.lab.training import losses
from stillwatch.lab.training.loop import TrainStep, _optimizer
from stillwatch.recipe import check

RECIPE = check(
    {
        "name": "golden",
        "labels": ["SafeDriving", "Yawn", "Drinking"],
        "data": {"source": {"name": "toy", "people": 4, "pictures": 4}, "size": 32, "gray": True},
        "teacher": {"net": {"name": "mnist-cnn", "weights": "scratch", "options": {"width": 4}}},
        "student": {"net": {"name": "mobilenetv3_small_050", "weights": "scratch"}},
        "fit": {
            "lr": 2e-3,
            "augment": ["crop", "flip", "contrast", "gamma", "brightness", "noise", "blur", "erase"],
            "loss": [
                {"name": "ce", "class_weights": "balanced", "smoothing": 0.1},
                {"name": "kd", "temperature": {"from": 2, "to": 20, "by": "linear"}, "weight": 0.1},
                {"name": "dkd", "weight": 0.1},
                {"name": "dist", "weight": 0.5},
                {"name": "embedding", "weight": 0.5},
            ],
        },
    },
    "golden",
)


def thirty_steps() -> dict[str, list[float]]:
    """loss part -> its value at each of 30 steps."""
    torch.manual_seed(0)
    found = gather(RECIPE)
    store = cache.pictures(found, RECIPE.data, workers=1)
    place = {label: i for i, label in enumerate(RECIPE.labels)}
    y = torch.tensor([place[sample.label] for sample in store.samples])
    ids = np.array([augment.number(sample.id) for sample in store.samples], np.uint64)
    teacher = classifier.build(RECIPE.teacher.net, 3, (32, 32), 1).eval().requires_grad_(False)
    net = classifier.build(RECIPE.student.net, 3, (32, 32), 1)
    task = losses.Task(
        3, (16, 16, 16), "softmax", losses.Shape(net.dim, net.channels), losses.Shape(teacher.dim, teacher.channels)
    )
    step = TrainStep(net, losses.parts(RECIPE.fit.loss, task))
    optimizer = Accelerator(cpu=True).prepare(_optimizer(step, RECIPE.fit))
    change = augment.plan(RECIPE.fit.augment, 0)
    seen: dict[str, list[float]] = {}
    for number in range(30):
        rows = np.random.default_rng((0, number)).permutation(len(y))[:16]
        x = change(torch.from_numpy(store.pixels[rows]), ids[rows], number)
        parts = step(x, y[rows], teacher(x), number / 29)
        for name, value in parts.items():
            seen.setdefault(name, []).append(value.item())
        optimizer.zero_grad()
        sum(parts.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    return seen


def test_thirty_steps_are_what_they_were() -> None:
    pinned = json.loads((Path(__file__).parent / "golden" / "steps.json").read_text())
    seen = thirty_steps()
    assert seen.keys() == pinned.keys()
    assert {len(values) for values in pinned.values()} == {30}
    for name, values in seen.items():
        # Early steps agree closely on any processor; rounding then grows through thirty updates: pinned on one with
        # AVX2, single late steps came out up to 27 % apart on one with AVX-512 and another torch, their mean did not
        assert values[:5] == pytest.approx(pinned[name][:5], rel=1e-3), name
        assert values[:20] == pytest.approx(pinned[name][:20], rel=0.05, abs=0.02), name
        assert np.mean(values[20:]) == pytest.approx(np.mean(pinned[name][20:]), rel=0.05, abs=0.01), name


def test_every_repin_has_its_reason() -> None:
    lines = (Path(__file__).parent / "golden" / "repins.log").read_text().splitlines()
    assert lines
    assert all(len(line) > 25 for line in lines)
