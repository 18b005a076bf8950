"""Nets: parameter counts to the unit, the front door, the cut between frozen and trained, where weights come from."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stillwatch.errors import UserError
from stillwatch.lab.models import classifier, weights
from stillwatch.lab.models.zoo import FILES, NETS
from stillwatch.recipe import WITHOUT_WEIGHTS, Net

TINY = "mobilenetv3_small_050"


def make(name: str = TINY, classes: int = 6, hw: tuple[int, int] = (32, 32), channels: int = 3, **fields: Any) -> Any:
    return classifier.build(Net.model_validate({"name": name, "weights": "scratch", **fields}), classes, hw, channels)


def pictures(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def still(net: Any) -> Any:
    """In eval mode, with batch statistics that differ from layer to layer as a trained net's do."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.rand(module.num_features, generator=generator) / 9)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return net.eval()


# ---- sizes


def test_the_violence_papers_nets_have_its_parameter_counts_and_compression() -> None:
    teacher = classifier.cost(make("vgg16-gap", 2, (64, 64)), (64, 64), 3)
    student = classifier.cost(make("smallcnn", 2, (64, 64)), (64, 64), 3)
    assert teacher["params"] == 15_242_050
    assert student["params"] == 2_116_930
    assert round(teacher["params"] / student["params"], 2) == 7.20
    assert student["bytes"] == 4 * 2_116_930  # it has no batch norm
    # by hand: conv 64·64·32·27, conv 32·32·64·(9·32), dense 16·16·64·128, head 128·2
    assert student["macs"] == 3_538_944 + 18_874_368 + 2_097_152 + 256


def test_the_driving_papers_student_has_1_02_million_parameters() -> None:
    for name in ("mobilenetv3_small_075", "tf_mobilenetv3_small_075"):
        assert classifier.cost(make(name), (32, 32), 3)["params"] == 1_023_022


def test_smallcnn_follows_the_datas_size_and_channels() -> None:
    assert make("smallcnn", 2, (32, 48), 1)(pictures(3, 32, 48, 1)).logits.shape == (3, 2)


def test_the_mnist_nets_are_far_apart_in_size() -> None:
    deep, small = (make(name, 10, (28, 28), 1) for name in ("mnist-cnn", "mnist-small"))
    assert classifier.cost(deep, (28, 28), 1)["params"] == 288_170
    assert classifier.cost(small, (28, 28), 1)["params"] == 80 + 1_168 + 7_850
    wide = make("mnist-small", 10, (28, 28), 1, options={"width": 16})
    assert classifier.cost(wide, (28, 28), 1)["params"] == 16 * 10 + 32 * (16 * 9 + 1) + 10 * (32 * 7 * 7 + 1)


def test_cost_leaves_the_mode_and_the_statistics_alone() -> None:
    net = make()
    before = copy.deepcopy(net.state_dict())
    classifier.cost(net, (32, 32), 3)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


# ---- the front door


@pytest.mark.parametrize(("name", "mean", "std"), [
    (TINY, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ("tf_mobilenetv3_small_075", (0.5,) * 3, (0.5,) * 3),
])  # fmt: skip
def test_the_front_door_normalises_as_by_hand(name: str, mean: tuple[float], std: tuple[float]) -> None:
    net, x = still(make(name)), pictures(2, 32, 32, 3)
    by_hand = ((x.numpy() / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    feature = net.net.forward_head(net.net.forward_features(torch.from_numpy(by_hand)), pre_logits=True)
    out = net(x)
    torch.testing.assert_close(out.feature, feature, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.logits, net.head(feature), rtol=1e-4, atol=1e-5)


def test_gray_is_the_same_as_three_equal_channels() -> None:
    net, gray = still(make(channels=1)), pictures(2, 32, 32, 1)
    torch.testing.assert_close(net(gray).logits, net(gray.expand(-1, -1, -1, 3)).logits)


def test_own_nets_see_zero_to_one() -> None:
    net = make("mnist-small", 10, (28, 28), 1)
    assert net._pictures(torch.full((1, 28, 28, 1), 255, dtype=torch.uint8))[0].unique().tolist() == [1.0]


def test_a_clips_answer_is_the_mean_over_its_frames() -> None:
    net, x = still(make()), pictures(2, 3, 32, 32, 3)
    clip, frames = net(x, (16, 32)), net(x.flatten(0, 1), (16, 32))
    for got, each in zip(
        (clip.logits, clip.feature, *clip.maps.values()), (frames.logits, frames.feature, *frames.maps.values()),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(got, each.unflatten(0, (2, 3)).mean(1))
    assert net(x[:, :1]).logits.equal(net(x[:, 0]).logits)


def test_a_net_of_fixed_size_and_the_size_option_resize() -> None:
    assert make("vit_tiny_patch16_224")(pictures(1, 32, 32, 3), (16,)).maps[16].shape == (1, 192, 14, 14)
    assert make(options={"size": [96, 64]})(pictures(1, 32, 32, 3), (32,)).maps[32].shape[2:] == (3, 2)


def test_probabilities_follow_the_head() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0]])
    assert make(classes=3).probabilities(logits).tolist() == [[pytest.approx(1 / 3)] * 3]
    assert make(classes=3, head="sigmoid").probabilities(logits).tolist() == [[0.5] * 3]


def test_dropout_stands_before_the_head_and_leaves_the_feature_whole() -> None:
    net = still(make("smallcnn", dropout=0.5))
    x = pictures(1, 32, 32, 3)
    quiet = net(x)
    torch.testing.assert_close(quiet.logits, net.head(quiet.feature))
    net.train()
    torch.manual_seed(0)
    loud = net(x)
    assert torch.equal(loud.feature, quiet.feature)
    assert not torch.allclose(loud.logits, quiet.logits)


# ---- maps


CHAINS = ["vgg16-gap", "smallcnn", "mnist-cnn", TINY, "resnet10t", "regnetx_002", "swin_s3_tiny_224"]


@pytest.mark.parametrize("name", CHAINS)
def test_maps_have_the_stride_and_the_channels_that_shape_says(name: str) -> None:
    net = make(name, 3, (64, 64)).eval()
    dim, channels = net.dim, net.channels
    with torch.no_grad():
        out = net(pictures(1, 64, 64, 3), tuple(channels))
    side = (net.size or (64, 64))[0]
    assert len(channels) >= 3
    assert out.feature.shape == (1, dim)
    assert {s: tuple(m.shape[1:]) for s, m in out.maps.items()} == {
        s: (c, side // s, side // s) for s, c in channels.items()
    }


def test_only_the_maps_asked_for_are_given() -> None:
    net = make()
    assert net(pictures(2, 32, 32, 3)).maps == {}
    assert list(net(pictures(2, 32, 32, 3), (32, 8)).maps) == [32, 8]
    with pytest.raises(UserError, match=r"no map at stride 7; known: 2, 4, 8, 16, 32"):
        net(pictures(2, 32, 32, 3), (7,))


# ---- the cut


@pytest.mark.parametrize("name", ["vgg16-gap", "smallcnn", "mnist-cnn", TINY, "resnet10t", "tf_efficientnet_lite0"])
def test_forward_is_forward_from_of_frozen_forward_wherever_it_freezes(name: str) -> None:
    torch.manual_seed(0)
    whole = still(make(name))
    x = pictures(2, 32, 32, 3)
    stages = len(whole.plan.ends)
    assert stages >= 3
    assert len(set(whole.plan.ends)) == stages
    wanted = whole(x, tuple(whole.channels))
    for frozen in (False, True, 0, stages - 1):
        net = make(name, frozen=frozen)
        net.load_state_dict(whole.state_dict())
        net.eval()
        late = tuple(s for s, step in net.plan.taps.items() if step >= net.frozen_steps)
        got, rest = net(x, tuple(net.channels)), net.forward_from(net.frozen_forward(x), late)
        torch.testing.assert_close(got.logits, wanted.logits, rtol=1e-4, atol=1e-5)
        assert rest.logits.equal(got.logits)
        assert rest.feature.equal(got.feature)
        assert got.maps.keys() == wanted.maps.keys()
        for stride, value in got.maps.items():
            torch.testing.assert_close(value, wanted.maps[stride], rtol=1e-4, atol=1e-5)
        clip = pictures(2, 3, 32, 32, 3)
        moving = net(clip, tuple(net.channels))
        assert net.forward_from(net.frozen_forward(clip)).logits.equal(moving.logits)
        each = net(clip.flatten(0, 1), tuple(net.channels))
        for stride, value in moving.maps.items():
            torch.testing.assert_close(value, each.maps[stride].unflatten(0, (2, 3)).mean(1), rtol=1e-4, atol=1e-5)


def test_nothing_frozen_hands_the_pixels_on() -> None:
    x = pictures(2, 32, 32, 3)
    assert make().frozen_forward(x) is x


def test_vgg16s_convolutions_freeze_and_its_dense_layers_learn() -> None:
    net = make("vgg16-gap", 2, frozen=True)
    assert net.frozen_forward(pictures(3, 32, 32, 3)).shape == (3, 512)
    learns = {n for n, p in net.named_parameters() if p.requires_grad}
    assert learns == {"net.dense.0.weight", "net.dense.0.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize(("frozen", "shape"), [(True, (4, 1024)), (0, (4, 16, 16, 16)), (2, (4, 16, 4, 4))])
def test_what_is_frozen_stays_as_it_is_and_the_rest_learns(frozen: bool | int, shape: tuple[int, ...]) -> None:
    net = make(frozen=frozen).train()
    before = copy.deepcopy(net.state_dict())
    h = net.frozen_forward(pictures(4, 32, 32, 3))
    assert h.shape == shape
    assert not h.requires_grad
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    nn.functional.cross_entropy(net.forward_from(h).logits, torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    steps = tuple(f"net.{name}." for name in net.plan.steps[: net.frozen_steps])
    cold = {k for k in before if k.startswith("net.") and (frozen is True or k.startswith(steps))}
    assert len(cold) >= 5
    assert any("running_var" in k for k in cold)
    assert not changed & cold
    assert changed | cold >= {k for k in before if "bias" not in k}


def test_stored_features_in_half_precision_are_taken() -> None:
    net = still(make(frozen=True))
    h = net.frozen_forward(pictures(2, 32, 32, 3))
    torch.testing.assert_close(net.forward_from(h.half()).logits, net.forward_from(h).logits, rtol=1e-2, atol=1e-2)


def test_a_frozen_map_cannot_be_learnt_from() -> None:
    net = make(frozen=4)  # 8 is stage 2, 16 stage 4, 32 stage 6
    net.check((32,))
    for stride in (8, 16):
        with pytest.raises(UserError, match=rf"the map at stride {stride} is frozen; not frozen: 32"):
            net.check((stride,))


def test_stages_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match=r"net.frozen = 9: mobilenetv3_small_050 has 6 stages after its stem"):
        make(frozen=9)
    with pytest.raises(
        UserError, match=r"net.frozen = 3: vit_tiny_patch16_224 has no stages to count; set true or false"
    ):
        make("vit_tiny_patch16_224", frozen=3)


def test_a_copy_walks_its_own_modules() -> None:
    net = still(make())
    twin = copy.deepcopy(net)
    for p in net.parameters():
        p.data.zero_()
    assert twin(pictures(1, 32, 32, 3)).logits.abs().sum() > 0


# ---- names and options


@pytest.mark.parametrize(("fields", "told"), [
    ({"name": "smalcnn"}, r"net.name = 'smalcnn': unknown; did you mean 'smallcnn'\?"),
    ({"name": "mobilenetv3_smal_075"}, r"did you mean 'mobilenetv3_small_075'\?"),
    ({"name": "qqqq"}, "known: " + ", ".join(NETS) + " and the names of timm"),
    ({"name": "mnist-small", "options": {"widht": 4}}, r"net.options.widht: mnist-small .* did you mean 'width'\?"),
    ({"name": TINY, "options": {"drop_rate": 0.2}}, r"net.options.drop_rate: not an option; set net.dropout"),
    ({"name": TINY, "options": {"bogus": 1}}, r"timm does not build mobilenetv3_small_050 with them"),
    ({"name": TINY, "options": {"size": "big"}}, r"net.options.size = 'big': a side in pixels"),
])  # fmt: skip
def test_a_wrong_name_or_option_is_told_in_one_line(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        make(**fields)
    assert "\n" not in str(caught.value)


def test_timms_options_reach_it() -> None:
    net = make(options={"drop_path_rate": 0.5})
    assert any(type(m).__name__ == "DropPath" for m in net.modules())


# ---- weights


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_the_same_seed_gives_the_same_net() -> None:
    built = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        built.append(make())
    assert same(built[0], built[1])
    assert not same(built[0], built[2])


def half(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.half().contiguous() if v.is_floating_point() else v for k, v in net.state_dict().items()}


def test_imagenet_weights_come_from_the_folder_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    known = timm.create_model(TINY, pretrained=False)  # with its head of 1000 classes
    save_file(half(known), tmp_path / f"{TINY}.safetensors")
    monkeypatch.setenv("STILLWATCH_WEIGHTS", str(tmp_path))
    net = make(weights="imagenet")
    assert {v.dtype for v in net.state_dict().values()} == {torch.float32, torch.int64}
    wanted = {k: v.half().float() if v.is_floating_point() else v for k, v in known.state_dict().items()}
    body = net.net.state_dict()
    assert body.keys() == wanted.keys() - {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(v, wanted[k]) for k, v in body.items())


def test_a_files_missing_head_is_no_matter_and_anything_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLWATCH_WEIGHTS", str(tmp_path))
    file = tmp_path / f"{TINY}.safetensors"
    state = timm.create_model(TINY, pretrained=False, num_classes=0).state_dict()
    save_file(state, file)
    make(weights="imagenet")
    for wrong, told in (
        ({k: v for k, v in state.items() if k != "bn1.weight"}, r"it lacks bn1.weight \(1 tensors\)"),
        (state | {"odd": torch.ones(1)}, r"it has, and the net has not, odd"),
        (state | {"bn1.weight": torch.ones(3)}, r"it has in another shape bn1.weight"),
    ):
        save_file(wrong, file)
        with pytest.raises(UserError, match=told) as caught:
            make(weights="imagenet")
        assert str(caught.value).startswith(str(file))
    file.write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"weights that cannot be read"):
        make(weights="imagenet")


def test_vgg16_gap_takes_a_plain_vgg16s_convolutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    known = {k: v for k, v in make("vgg16-gap").net.state_dict().items() if k.startswith("features.")}
    assert len(known) == 26
    save_file(
        {k: v.half().contiguous() for k, v in known.items()} | {"pre_logits.fc1.weight": torch.ones(2, 2)},
        tmp_path / "vgg16.safetensors",
    )
    monkeypatch.setenv("STILLWATCH_WEIGHTS", str(tmp_path))
    net = make("vgg16-gap", weights="imagenet").net.state_dict()
    assert all(torch.equal(net[k], v.half().float()) for k, v in known.items())


@pytest.mark.parametrize("name", ["smallcnn", "mnist-cnn", "mnist-small"])
def test_a_net_without_imagenet_weights_says_so(name: str) -> None:
    with pytest.raises(UserError, match=rf'{name} has no ImageNet weights; set net.weights = "scratch"'):
        make(name, weights="imagenet")


def test_a_hub_out_of_reach_is_one_line_that_says_what_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = timm.create_model

    def refuse(name: str, pretrained: bool = False, **fields: Any) -> nn.Module:
        if not pretrained:
            return create(name, pretrained=False, **fields)
        asked.append((name, weights.hub.HF_HUB_OFFLINE))
        raise ConnectionError("no route\nto the hub")

    monkeypatch.delenv("STILLWATCH_WEIGHTS", raising=False)
    monkeypatch.setattr(weights.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(timm, "create_model", refuse)
    monkeypatch.setattr(weights, "_answers", lambda address: False)
    for name, source, file in ((TINY, TINY, TINY), ("vgg16-gap", "vgg16", "vgg16-gap")):
        told = rf'could not be reached for {source} .*{file}.safetensors .*STILLWATCH_WEIGHTS, or set .* "scratch"'
        with pytest.raises(UserError, match=told) as caught:
            make(name, weights="imagenet")
        assert "\n" not in str(caught.value)
    assert asked == [(TINY, True), ("vgg16", True)]  # the client is told not to try: that would take a minute
    assert weights.hub.HF_HUB_OFFLINE is False


def test_the_head_does_not_depend_on_where_the_weights_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = timm.create_model(TINY, pretrained=False)
    save_file(known.state_dict(), tmp_path / f"{TINY}.safetensors")
    create = timm.create_model

    def hub(name: str, pretrained: bool = False, **fields: Any) -> nn.Module:
        if pretrained:
            torch.rand(5)
            return copy.deepcopy(known)
        return create(name, pretrained=False, **fields)

    monkeypatch.setattr(timm, "create_model", hub)
    monkeypatch.setattr(weights, "_answers", lambda address: True)
    built = []
    for folder in ("", str(tmp_path)):
        monkeypatch.setenv("STILLWATCH_WEIGHTS", folder)
        torch.manual_seed(0)
        built.append(make(weights="imagenet"))
        built.append(torch.rand(1))
    assert same(built[0], built[2])
    assert built[1] == built[3]


def test_a_run_gives_its_head_where_the_classes_agree(tmp_path: Path) -> None:
    torch.manual_seed(5)
    run = make(classes=6)
    torch.save({"net": run.state_dict(), "epoch": 1}, tmp_path / "best.pt")
    assert same(make(classes=6, weights=str(tmp_path)), run)
    other = make(classes=4, weights=str(tmp_path))
    assert same(other.net, run.net)
    assert other.head.weight.shape == (4, 1024)
    assert same(make(classes=6, weights=str(tmp_path / "best.pt")), run)


def test_a_files_bare_net_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(6)
    known = make()
    save_file({k: v.contiguous() for k, v in known.net.state_dict().items()}, tmp_path / "bare.safetensors")
    assert same(make(weights=str(tmp_path / "bare.safetensors")).net, known.net)


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"net.weights = 'imagnet': no such file or run; or set imagenet, or scratch"):
        make(weights="imagnet")
    with pytest.raises(UserError, match=r"a folder without best.pt"):
        make(weights=str(tmp_path))


def test_it_can_be_exported_whole() -> None:
    net, x = still(make()), pictures(1, 32, 32, 3)
    program = torch.export.export(net, (x,))
    torch.testing.assert_close(program.module()(x).logits, net(x).logits)


def test_the_yolo_sized_rival_has_the_published_sizes_layer_by_layer() -> None:
    net = make("yolo-cls-n", 1000, (64, 96), 3, frozen=3).eval()
    assert [sum(p.numel() for p in layer.parameters()) for layer in net.net.features] == [
        464, 4_672, 7_360, 18_560, 49_664, 73_984, 197_632, 295_424, 460_288, 330_240
    ]  # fmt: skip
    assert classifier.cost(net, (64, 96), 3)["params"] == 2_719_288
    x = pictures(2, 64, 96, 3)
    out = net(x, (2, 4, 8, 16, 32))
    assert {s: tuple(m.shape[1:]) for s, m in out.maps.items()} == {
        s: (c, 64 // s, 96 // s) for s, c in ((2, 16), (4, 32), (8, 64), (16, 128), (32, 256))
    }
    assert net.frozen_steps == 7  # the stem and three stages
    assert net.forward_from(net.frozen_forward(x)).logits.equal(out.logits)
    assert make("yolo-cls-n", 2, (64, 64), 1)(pictures(3, 64, 64, 1)).logits.shape == (3, 2)


def test_an_own_net_without_imagenet_weights_starts_from_scratch() -> None:
    assert set(WITHOUT_WEIGHTS) == set(NETS) - set(FILES)
    for name in NETS:
        assert Net(name=name).weights == ("scratch" if name in WITHOUT_WEIGHTS else "imagenet")
    assert Net(name="smallcnn", weights="runs/a").weights == "runs/a"
