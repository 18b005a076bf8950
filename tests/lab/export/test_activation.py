"""Where the evidence is: the map of an exported net peaks on what was drawn, and its probabilities stay as they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stillwatch.errors import UserError
from stillwatch.inference import runtimes, streams
from stillwatch.lab.export import exporters
from stillwatch.lab.export.activation import ActivationMap
from stillwatch.lab.models import classifier
from stillwatch.lab.models.classifier import Classifier
from stillwatch.recipe import Net

HW, SIDE = (24, 32), 6
Drawn = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]


def drawn(count: int, moments: int, seed: int) -> Drawn:
    """Noise with a bright square in every second sample, in clips a moving one and otherwise a still one -> x, y, and
    where it is (row, column of its corner)."""
    rng = np.random.default_rng(seed)
    x = rng.integers(90, 120, (count, moments, *HW, 1), dtype=np.uint8)
    y, at = np.arange(count) % 2, np.stack([rng.integers(0, side - SIDE, count) for side in HW], 1)
    for number, (row, column) in enumerate(at):
        for moment in range(moments):
            if y[number] or moments > 1:
                shift = 2 * (moments - 1 - moment) * int(y[number])
                left = column - shift if column > HW[1] // 2 else column + shift
                x[number, moment, row : row + SIDE, left : left + SIDE] = 230
    return (x[:, 0] if moments == 1 else x), y, at


def sees_light(moments: tuple[float, ...] = (0,), **net: object) -> Classifier:
    """Weights by hand: one channel passes what is bright through all layers, and the head counts it."""
    spec = Net(name="mnist-cnn", weights="scratch", options={"width": 4}, **net)  # type: ignore[arg-type]
    made = classifier.build(spec, 2, HW, 1, moments).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        for layer in made.net.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight[0, 0, 1, 1] = 1.0
            elif isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.fill_(1.0)
        next(layer for layer in made.net.modules() if isinstance(layer, torch.nn.BatchNorm2d)).bias.fill_(-0.7)
        made.head.weight[:, 0] = torch.tensor([-100.0, 100.0])
        made.head.bias.copy_(torch.tensor([1.0, -1.0]))
    made.marks = (1,)
    return made


@pytest.mark.parametrize("streamed", [False, True])
def test_the_map_peaks_on_what_was_drawn(tmp_path: Path, streamed: bool) -> None:
    """Class activation of a net that ends in pooling and a linear head; energy of one that is streamed."""
    time: dict[str, object] = {"moments": (0.2, 0.1, 0.0), "front": "difference", "temporal": "spread"}
    net = sees_light(**(time if streamed else {}))  # type: ignore[arg-type]
    x, y, at = drawn(40, net.frames, 1000)
    shape = x.shape[1:]
    path, whole = exporters.to_onnx(net, shape, tmp_path / "model.onnx"), exporters.facade(net, shape)
    assert whole.map and whole.map.linear != streamed
    (h, w), runtime = whole.map.size, "openvino" if streamed else "onnxruntime"
    with torch.inference_mode():
        p, wanted = (part.numpy() for part in whole(torch.from_numpy(x)))
    row = runtimes.open(path, runtime, shape, 1, 8, 2)(x)
    assert row.shape == (40, 2 + h * w) and np.abs(row[:, :2] - p).max() < 1e-4
    assert np.abs(row[:, 2:] - wanted).max() < 1e-3 * wanted.max()
    for name in ("onnxruntime", "openvino"):
        alone = runtimes.open(path, name, shape)
        assert isinstance(alone, streams.Stream) == streamed and np.abs(alone(x) - p).max() < 1e-4
    found = np.flatnonzero(y & (p[:, 1] > 0.5))
    peaks = np.stack(np.unravel_index(wanted[found].argmax(1), (h, w)), 1)
    apart = np.abs((peaks + 0.5) * (HW[0] / h, HW[1] / w) - (at[found] + SIDE / 2)).max(1)
    assert (p.argmax(1) == y).all() and apart.max() < SIDE


def test_a_net_without_a_last_map_says_so() -> None:
    net = classifier.build(
        Net(name="vit_tiny_patch16_224", weights="scratch", options={"img_size": [32, 32]}), 2, (32, 32), 3
    )
    with pytest.raises(UserError, match=r"export\.map: vit_tiny_patch16_224 has no last map"):
        ActivationMap(net.eval(), (32, 32, 3))
