"""Time inside a net: fronts by hand, causality, heads, and streamed answers equal to those of whole looks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillwatch.errors import UserError
from stillwatch.inference import runtimes, streams
from stillwatch.lab.export import exporters
from stillwatch.lab.models import classifier, temporal
from stillwatch.lab.models.classifier import Classifier
from stillwatch.recipe import Net, ticks

EVEN = (0.3, 0.2, 0.1, 0.0)
SHAPE = (4, 32, 40, 3)


def make(name: str = "test_resnet", moments: tuple[float, ...] = EVEN, **net: Any) -> Classifier:
    """A random net that answers each look differently."""
    torch.manual_seed(0)
    made = classifier.build(Net(name=name, weights="scratch", **net), 2, SHAPE[1:3], 3, moments)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
                module.weight.fill_(1.0)  # some nets silence their residual branches at first
        made(torch.from_numpy(looks(8, len(moments))))
        logits = made.eval()(torch.from_numpy(looks(8, len(moments)))).logits
        made.head.bias.sub_(logits.mean(0))
        for weights in (made.head.weight, made.head.bias):
            weights.div_(logits.std(0).mean())
    return made


def looks(count: int, frames: int = 4) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, frames, *SHAPE[1:]), dtype=np.uint8)


def answers(net: Classifier, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return net.probabilities(net(torch.from_numpy(x)).logits).numpy()


def test_a_difference_is_gray_where_nothing_moves_and_is_clipped() -> None:
    x = torch.tensor([[10.0, 10, 250], [10, 60, 0]]).view(1, 2, 1, 1, 3)
    assert temporal.difference(x).flatten().tolist() == [128, 178, 0]


def test_a_stack_is_gray_now_and_how_far_each_earlier_frame_is() -> None:
    x = torch.tensor([40.0, 90, 100]).view(1, 3, 1, 1, 1)  # oldest first
    assert temporal.stack(x).shape == (1, 1, 3, 1, 1)
    assert temporal.stack(x).flatten().tolist() == [100, 10, 60]  # now, since the nearer one, since the older one
    red = torch.tensor([[0.0, 0, 0], [0, 0, 0], [100, 0, 0]]).view(1, 3, 3, 1, 1)
    assert temporal.stack(red).flatten().tolist() == pytest.approx([29.9] * 3)


@pytest.mark.parametrize(
    ("front", "frames", "wanted"), [("frame", 4, 4), ("difference", 4, 3), ("stack", 3, 1), ("frame", 1, 1)]
)
def test_fronts_make_so_many_pictures(front: str, frames: int, wanted: int) -> None:
    assert temporal.pictures(front, frames) == wanted
    assert temporal.FRONTS[front](torch.zeros(2, frames, 3, 8, 8)).shape[1] == wanted


@pytest.mark.parametrize(("front", "frames"), [("difference", 1), ("stack", 4), ("stack", 1)])
def test_a_front_that_does_not_suit_the_look_is_refused(front: str, frames: int) -> None:
    with pytest.raises(UserError, match=f"net.front = '{front}'"):
        temporal.pictures(front, frames)


def test_a_shift_moves_an_eighth_of_the_channels_in_time() -> None:
    h = torch.arange(2 * 3 * 16, dtype=torch.float32).view(6, 16, 1, 1)  # 2 looks of 3
    one = temporal.Shift(3, both=False)(torch.nn.Identity(), (h,)).view(2, 3, 16)
    two = temporal.Shift(3, both=True)(torch.nn.Identity(), (h,)).view(2, 3, 16)
    x = h.view(2, 3, 16)
    for found in (one, two):
        assert found[:, 0, :2].abs().sum() == 0
        assert torch.equal(found[:, 1:, :2], x[:, :-1, :2])
        assert torch.equal(found[..., 4:], x[..., 4:])
    assert torch.equal(one[..., 2:4], x[..., 2:4])
    assert torch.equal(two[:, :-1, 2:4], x[:, 1:, 2:4])
    assert two[:, -1, 2:4].abs().sum() == 0


@pytest.mark.parametrize("name", ["test_resnet", "tf_mobilenetv3_small_075", "test_convnext"])
def test_one_way_nets_do_not_see_the_future_and_two_way_nets_do(name: str) -> None:
    x = torch.from_numpy(looks(1))
    later = x.clone()
    later[:, 3] = 255 - later[:, 3]
    for shift, same in (("one-way", 3), ("two-way", 0)):
        net = make(name, shift=shift)
        with torch.inference_mode():
            moved = (net.pooled(net.last_map(x)[0]) - net.pooled(net.last_map(later)[0])).abs().amax(1)
        assert moved[:same].tolist() == [0.0] * same
        assert moved[same:].min() > 0 or shift == "two-way"
        assert net.one_way is net.streams is (shift == "one-way")
        assert bool(moved[2] > 0) is (shift == "two-way")


def test_a_net_without_residual_blocks_has_no_shift() -> None:
    with pytest.raises(UserError, match=r"net\.shift: vgg11 has no residual blocks"):
        classifier.build(Net(name="vgg11", weights="scratch", shift="one-way"), 2, (32, 32), 3, EVEN)


def test_heads_have_their_sizes_parameters_and_gradients() -> None:
    f = torch.randn(3, 4, 6, requires_grad=True)
    assert temporal.mean(6, 4)(f).shape == (3, 6)
    spread = temporal.spread(6, 4)(f)
    assert torch.allclose(spread[:, :6], f.mean(1))
    assert torch.allclose(spread[:, 6:], f.std(1, unbiased=False), atol=1e-3)
    still = torch.ones(1, 4, 6, requires_grad=True)  # the root of no variance must not give NaN
    temporal.spread(6, 4)(still).sum().backward()
    assert still.grad is not None and still.grad.isfinite().all()
    # PyTorch's recurrent nets have two biases a gate
    for made, gates in ((temporal.gru(6, 4, width=5, layers=2), 3), (temporal.lstm(6, 4, width=5, layers=2), 4)):
        assert made(f).shape == (3, 5)
        assert sum(p.numel() for p in made.parameters()) == gates * 5 * (6 + 5 + 2) + gates * 5 * (5 + 5 + 2)


def test_the_clip_net_and_the_published_one_have_their_weights_and_work() -> None:
    small = classifier.build(Net(name="r2plus1d-small", weights="scratch"), 2, (112, 160), 3, EVEN)
    lstm = Net(
        name="mobilenetv2_100", weights="scratch", temporal={"name": "lstm", "width": 64, "layers": 2}, frozen=True
    )
    published = classifier.build(lstm, 2, (64, 64), 3, tuple(range(14, -1, -1)))
    found = [classifier.cost(net, hw, 3) for net, hw in ((small, (112, 160)), (published, (64, 64)))]
    gates = 4 * 64 * (1280 + 64 + 2) + 4 * 64 * (64 + 64 + 2)
    assert found[1]["params"] == 2_223_872 + gates + 2 * 64 + 2
    # a picture's backbone, a moment of the LSTM, and the head shared by 15 moments
    assert found[1]["macs"] == pytest.approx(25.1e6 + gates, rel=0.03)
    # by stage: 3×3 convolutions in space, then three moments; four batch norms' worth of scales and shifts
    sizes = [(3, 32, 56 * 80), (32, 32, 28 * 40), (32, 64, 14 * 20), (64, 128, 7 * 10)]
    assert found[0]["params"] == sum(9 * a * b + 3 * b * b + 4 * b for a, b, _ in sizes) + 2 * 128 + 2
    assert found[0]["macs"] == sum((9 * a * b + 3 * b * b) * places for a, b, places in sizes) + 2 * 128 // 4


CASES = [
    ("test_resnet", EVEN, {"front": "difference", "temporal": "spread"}),
    ("tf_mobilenetv3_small_075", EVEN, {"shift": "one-way", "front": "difference"}),
    ("test_resnet", (0.6, 0.2, 0.0), {"front": "stack"}),
    ("test_resnet", EVEN, {"temporal": {"name": "gru", "width": 8}}),
    ("test_resnet", EVEN, {"front": "difference", "temporal": {"name": "lstm", "width": 8, "layers": 2}}),
    ("r2plus1d-small", EVEN, {}),
]


@pytest.mark.parametrize(("name", "moments", "options"), CASES)
def test_streamed_answers_are_those_of_whole_looks(
    tmp_path: Path, name: str, moments: tuple[float, ...], options: dict[str, Any]
) -> None:
    net = make(name, moments, **options)
    steps = ticks(moments)[0]
    film = looks(2, steps[0] + 1)
    wanted = answers(net, film[:, [steps[0] - step for step in steps]])
    path = exporters.to_onnx(net, (len(moments), *SHAPE[1:]), tmp_path / "model.onnx")
    for runtime in ("onnxruntime", "openvino"):
        if not runtimes.installed(runtime):
            continue
        predict = runtimes.open(path, runtime, (len(moments), *SHAPE[1:]))
        assert isinstance(predict, streams.Stream)
        # two cameras, of which the second starts one frame later
        memories = [streams.Memory(predict, steps) for _ in range(2)]
        streams.look(predict, [film[0, 0]], memories[:1], [0.0])
        for moment in range(1, steps[0] + 1):
            frames = [film[0, moment], film[1, moment - 1]]
            first, second = streams.look(predict, frames, memories, [moment, moment - 1])
        assert second is None
        last = streams.look(predict, [film[1, -1]], memories[1:], [float(steps[0])])[0]
        assert np.abs(np.stack([first, last]) - wanted).max() < 1e-4
        assert np.ptp(wanted) > 0.05


def test_whole_looks_and_a_gap(tmp_path: Path) -> None:
    net = make(front="difference", temporal="spread")
    predict = runtimes.open(exporters.to_onnx(net, SHAPE, tmp_path / "model.onnx"), "onnxruntime", SHAPE)
    x = looks(3)
    assert np.abs(predict(x) - answers(net, x)).max() < 1e-4
    memory = streams.Memory(predict, (3, 2, 1, 0), gap=0.25)
    times = (0.0, 0.1, 0.2, 0.6, 0.7, 0.8, 0.9)  # no look spans the gap after 0.2
    said = [streams.look(predict, [x[0, place % 4]], [memory], [at])[0] is not None for place, at in enumerate(times)]
    assert said == [False] * 6 + [True]


def test_what_cannot_be_streamed_is_exported_as_a_whole_look(tmp_path: Path) -> None:
    for net in (make(shift="two-way"), make(moments=(0.5, 0.4, 0.1, 0.0), front="difference")):
        assert not net.streams
        predict = runtimes.open(exporters.to_onnx(net, SHAPE, tmp_path / "model.onnx"), "onnxruntime", SHAPE)
        assert not isinstance(predict, streams.Stream)
        assert np.abs(predict(looks(2)) - answers(net, looks(2))).max() < 1e-4
        memory = streams.Memory(predict, ticks((0.5, 0.4, 0.1, 0.0))[0])
        film = looks(1, 6)[0]
        said = [streams.look(predict, [frame], [memory], [at])[0] for at, frame in enumerate(film)]
        assert [one is not None for one in said] == [False] * 5 + [True]
        assert np.abs(said[-1] - predict(film[None, [0, 1, 4, 5]])[0]).max() < 1e-6


def test_single_pictures_need_no_memory() -> None:
    memory = streams.Memory(lambda x: x.reshape(len(x), -1)[:, :2] / 255, (0,))
    picture = np.full((2, 2, 3), 51, np.uint8)
    assert streams.look(lambda x: x.reshape(len(x), -1)[:, :2] / 255, [picture], [memory], [0.0])[0].tolist() == [
        0.2,
        0.2,
    ]
    assert streams.look(None, [], [], []) == []


@pytest.mark.parametrize(
    ("moments", "wanted"),
    [((0.6, 0.2, 0), ((3, 1, 0), 0.2)), ((0.25, 0), ((1, 0), 0.25)), ((2, 1, 0), ((2, 1, 0), 1.0))],
)
def test_a_look_in_ticks(moments: tuple[float, ...], wanted: tuple[tuple[int, ...], float]) -> None:
    assert ticks(moments) == wanted
