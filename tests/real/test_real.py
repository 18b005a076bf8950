"""Checks on the real data: STILLWATCH_DATA=… STILLWATCH_WEIGHTS=… make real. Left out of the default suite.

STILLWATCH_DATA holds driver-inattention/, violence/ and mnist/ as their publishers give them, or a part of them.
"""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stillwatch.lab.data import duplicates
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


def test_no_driver_s_picture_is_a_copy_of_another_driver_s_and_altered_ones_are_found() -> None:
    """Of 40 training pictures each change goes into the test: 19 in 20 are found. The audit of 0.1.0 saw none."""
    data = load_dataset(recipe("driving"))
    found, _ = duplicates.find(data.samples, data.store.pixels)
    kinds = ("exact", "near", "mirrored", "altered", "overlapping", "look_alikes")
    assert {kind: getattr(found, kind).test_in_train for kind in kinds} == dict.fromkeys(kinds, 0)
    assert found.look_alikes.confidence is not None and found.look_alikes.confidence > 0.99
    height, width = data.recipe.data.hw
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 3, 1)
    changes = {
        "brighter": lambda p: np.clip(p * 1.2, 0, 255),
        "gamma": lambda p: 255 * (p / 255) ** 1.4,
        "cropped": lambda p: cv2.resize(p[11:-11, 19:-19], (width, height)),
        "turned": lambda p: cv2.warpAffine(p, turn, (width, height), borderMode=cv2.BORDER_REPLICATE),
        "letterboxed": lambda p: np.pad(cv2.resize(p, (width, height - 28)), ((14, 14), (0, 0))),
    }
    pixels, samples = list(data.store.pixels), list(data.samples)
    for row in np.random.default_rng(0).choice(data.rows["train"], 40, replace=False):
        for name, change in changes.items():
            picture = change(pixels[row][0, :, :, 0].astype(np.float32)).astype(np.uint8)
            samples.append(replace(samples[row], id=f"{name}-{row}", split="test", sequence="", group=""))
            pixels.append(picture[None, :, :, None])
    found, _ = duplicates.find(samples, np.stack(pixels))
    copies = sum(getattr(found, kind).test_in_train for kind in ("exact", "near", "mirrored", "altered"))
    assert copies >= 0.95 * 40 * len(changes)


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
