"""QAT: norms fold away exactly, weights and activations lie on their grids, and a float net comes back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stillwatch.errors import UserError
from stillwatch.lab.compression import qat
from stillwatch.lab.compression.ptq import QuantConfig
from stillwatch.lab.data.dataset import load_dataset
from stillwatch.lab.models import classifier
from stillwatch.lab.models.classifier import Classifier
from stillwatch.recipe import Fit, Net, Recipe, check
from stillwatch.run import NO_PROGRESS, Progress, Run

FRAMES = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def net(name: str = "mobilenetv3_small_050", **options: Any) -> Classifier:
    """A net whose batch norms have statistics of their own, as after training."""
    torch.manual_seed(0)
    made = classifier.build(Net(name=name, weights="scratch", **options), 3, (32, 32), 3)
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.1, 0.1)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -0.1, 0.1)
    return made.eval()


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "mnist-cnn", "mobilenetv2_035"])
def test_folding_changes_nothing(name: str) -> None:
    before, after = net(name), net(name)
    qat.fold(after, FRAMES)
    assert any(isinstance(m, nn.BatchNorm2d) for m in before.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in after.modules())
    with torch.no_grad():
        assert torch.allclose(before(FRAMES).logits, after(FRAMES).logits, atol=1e-4, rtol=1e-3)


def test_a_convolution_that_others_read_before_its_norm_is_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return x + self.norm(x)

    made = net("mnist-cnn")
    made.net.features = nn.Sequential(Both(), *made.net.features[1:])
    made.plan = made.plan.__class__(("features.0", "neck"), (), 1, {}, 1)
    made.head = nn.Linear(3, 3)
    with torch.no_grad():
        made.net.get_submodule("features.0.norm").running_mean.fill_(3.0)
    with pytest.raises(UserError, match=r"folding batch norms moves the logits by .*; set quantise\.qat = false"):
        qat.fold(made, FRAMES)


def test_a_weight_is_rounded_channel_by_channel_and_its_gradient_goes_through() -> None:
    weight = torch.tensor([[1.27, 0.014, -0.5], [12.7, 0.04, 0.06]], requires_grad=True)
    rounded = qat.WeightQuantizer()(weight)
    assert torch.allclose(rounded, torch.tensor([[1.27, 0.01, -0.5], [12.7, 0.0, 0.1]]))
    rounded.sum().backward()
    assert torch.equal(weight.grad, torch.ones(2, 3))


def test_an_activation_follows_the_batches_and_stops_in_eval() -> None:
    gauge = qat.ActivationQuantizer(0)
    x = torch.tensor([[-1.0, 0.5], [4.1, 0.013]])
    assert torch.equal(gauge.eval()(x), x)  # nothing seen yet: it lets pass
    y = gauge.train()(x)
    assert (gauge.low, gauge.high) == (-1.0, pytest.approx(4.1))
    step = 5.1 / 255
    assert torch.allclose(y, (x / step).round() * step, atol=1e-6)
    gauge(torch.tensor([[0.0, 14.1]]))
    assert gauge.low.item() == pytest.approx(-0.9)  # a tenth of the way to 0, which is in every range
    assert gauge.high.item() == pytest.approx(5.1)
    gauge.eval()(torch.tensor([[-99.0, 99.0]]))
    assert gauge.high.item() == pytest.approx(5.1)


def test_a_gauge_of_channels_has_a_range_for_each() -> None:
    gauge = qat.ActivationQuantizer(2)
    x = torch.tensor([1.0, 100.0]).view(1, 2, 1, 1) * torch.tensor([0.0, 0.3, 1.0]).view(1, 1, 1, 3)
    y = gauge(x)
    assert gauge.high.tolist() == [1.0, 100.0]
    assert torch.allclose(y[0, 0, 0, 1], torch.tensor(round(0.3 * 255) / 255))
    assert torch.allclose(y[0, 1, 0, 1], torch.tensor(100 * round(0.3 * 255) / 255))


def test_what_is_quantised_and_what_is_not() -> None:
    made = net()
    layers = [*qat.quantised_layers(made, QuantConfig("x"))]
    quantised = {name for name, module in made.named_modules() if any(layer is module for layer in layers)}
    everything = {name for name, m in made.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert everything - quantised == {name for name in everything if ".se." in name}
    assert {"head", "net.conv_stem", "net.conv_head"} <= quantised
    plain = [*qat.quantised_layers(made, QuantConfig("x", plain=True))]
    assert not any(layer is made.net.conv_stem for layer in plain)
    assert len(plain) == len(quantised) - 1
    half = net(frozen=1)
    assert not any(layer is half.net.conv_stem for layer in qat.quantised_layers(half, QuantConfig("x")))
    hooks = qat.insert_fake_quant(made, QuantConfig("x"))
    gauges = {name: m.channels for name, m in made.named_modules() if isinstance(m, qat.ActivationQuantizer)}
    assert gauges["net.conv_stem.gauge"] == gauges["head.gauge"] == 0
    assert gauges["net.blocks.0.0.conv_dw.gauge"] == made.net.blocks[0][0].conv_dw.in_channels
    qat.remove_fake_quant(hooks)
    assert {name for name, _ in made.named_modules()} == {name for name, _ in net().named_modules()}
    assert not any(hook for m in made.modules() for hook in m._forward_pre_hooks)


# ---- learning, on six drawn people


def recipe() -> Recipe:
    return check(
        {
            "name": "toy",
            "labels": ["SafeDriving", "Yawn"],
            "data": {"source": {"name": "toy", "people": 6, "pictures": 4}, "size": 32, "folds": 3},
            "teacher": {"net": {"name": "mnist-cnn", "weights": "scratch", "options": {"width": 4}}},
            "student": {"net": {"name": "mobilenetv3_small_050", "weights": "scratch"}},
            "fit": {"epochs": 2, "batch": 8, "loss": ["ce", {"name": "kd", "temperature": 2}]},
        },
        "here",
    )


def learn(place: Path, progress: Progress = NO_PROGRESS, **plan: Any) -> Classifier:
    asked = recipe()
    torch.manual_seed(1)
    student = classifier.build(asked.student.net, 2, asked.data.hw, 3)
    torch.manual_seed(2)
    teacher_net = classifier.build(asked.teacher.net, 2, asked.data.hw, 3)
    place.mkdir(parents=True, exist_ok=True)
    fit = Fit.model_validate(asked.fit.model_dump() | plan)
    qat.learn(student, teacher_net, load_dataset(asked), fit, QuantConfig("x"), Run(place), progress)
    return student


def test_the_weights_come_back_on_the_grid(tmp_path: Path) -> None:
    made = learn(tmp_path / "qat")
    layers = [*qat.quantised_layers(made, QuantConfig("x"))]
    assert len(layers) > 30
    for layer in layers:
        weight = layer.weight.detach().flatten(1)
        steps = weight / (weight.abs().amax(1, keepdim=True) / 127)
        assert torch.allclose(steps, steps.round(), atol=2e-3)
    assert not any("parametrizations" in name or "gauge" in name for name in made.state_dict())
    assert not made.training
    row = Run(tmp_path / "qat").history()[0]
    assert set(row["train"]["parts"]) == {"ce", "kd"}  # the teacher is in the loop


def test_it_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    def stop(line: str) -> None:
        if line.startswith("epoch   2"):
            raise KeyboardInterrupt

    whole = learn(tmp_path / "whole", lr=1e-2)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", NO_PROGRESS._replace(say=stop), lr=1e-2)
    assert len(Run(tmp_path / "cut").history()) == 2
    again = learn(tmp_path / "cut", lr=1e-2)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
