"""Checks on the real data: STILLWATCH_DATA=… STILLWATCH_WEIGHTS=… make real. Left out of the default suite.

STILLWATCH_DATA holds driver-inattention/, violence/ and mnist/ as their publishers give them, or a part of them.
"""

import os
from pathlib import Path

import pytest
import torch

from stillwatch.lab.data.audit import audit
from stillwatch.lab.data.dataset import load_dataset
from stillwatch.lab.data.reader import gather
from stillwatch.lab.models import classifier
from stillwatch.recipe import Net, Recipe, load

pytestmark = pytest.mark.real
DATA = Path(os.environ.get("STILLWATCH_DATA", ""))
WEIGHTS = os.environ.get("STILLWATCH_WEIGHTS", "")


def recipe(name: str, *overrides: str) -> Recipe:
    root = DATA / load(name).data.root.name
    if not root.is_dir():
        pytest.skip(f"STILLWATCH_DATA names no {root.name}")
    return load(name, [f"data.root={root}", *overrides])


def test_the_official_driving_split_leaks_and_its_mirrored_copies_are_found() -> None:
    asked = recipe("driving", "data.split=official")
    data = load_dataset(asked)
    found = audit(data.samples, data.store.skipped, data.store.pixels, asked.labels, "official")
    assert found.warnings[0].startswith("The official split leaks")
    assert found.no_pixels is not None and found.no_pixels.accuracy > 0.8
    assert found.duplicates.mirrored.within > 0
    assert found.distinct < found.samples
    assert "line without a box" in found.skipped.reasons


def test_no_driver_sits_in_train_and_test() -> None:
    asked = recipe("driving")
    data = load_dataset(asked)
    groups = {split: {data.samples[row].group for row in rows} for split, rows in data.rows.items()}
    assert groups["test"]
    assert not groups["test"] & (groups["train"] | groups["valid"])


def test_violence_and_mnist_are_read_whole() -> None:
    clips = gather(recipe("violence"))
    assert len({sample.group for sample in clips.samples}) > 10
    assert {sample.label for sample in clips.samples} == {"NonViolence", "Violence"}
    digits = gather(recipe("mnist"))
    assert len(digits.samples) == 70_000


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_mobilenetv3_small_075", "tf_mobilenetv3_small_100"])
def test_imagenet_weights_are_taken_from_the_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (Path(WEIGHTS) / f"{name}.safetensors").is_file():
        pytest.skip(f"STILLWATCH_WEIGHTS has no {name}")
    monkeypatch.setenv("STILLWATCH_WEIGHTS", WEIGHTS)
    one, other = (classifier.build(Net(name=name), 6, (64, 64), 3).net.state_dict() for _ in range(2))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    scratch = classifier.build(Net(name=name, weights="scratch"), 6, (64, 64), 3).net.state_dict()
    assert not torch.equal(one["conv_stem.weight"], scratch["conv_stem.weight"])
