"""NETS: the papers' own nets, and a rival for benchmarks. Other names are timm's."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from stillwatch.lab.models.backbone import IMAGENET, PLAIN, Backbone, ForwardPlan
from stillwatch.lab.models.temporal import TemporalConv


def _he(net: nn.Module) -> nn.Module:
    """He et al. 2015 (arXiv 1502.01852), eq. 10: keeps the signal's size, even through a frozen random net."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def _conv(inner: int, outer: int, norm: bool = False, stride: int = 1) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(inner, outer, 3, stride, 1, bias=not norm)]
    return [*layers, nn.BatchNorm2d(outer), nn.ReLU(inplace=True)] if norm else [*layers, nn.ReLU(inplace=True)]


def _own(
    features: list[nn.Module], neck: nn.Module, dense: nn.Module | None, dim: int, taps: dict[int, int]
) -> Backbone:
    net = nn.Module()
    net.features, net.neck = nn.Sequential(*features), neck
    steps = [*(f"features.{i}" for i in range(len(features))), "neck"]
    if dense is not None:
        net.dense = dense
        steps.append("dense")
    pools = [i + 1 for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    plan = ForwardPlan(tuple(steps), (0, *pools), len(steps), taps, len(features))
    widths = [layer.out_channels if isinstance(layer, nn.Conv2d) else 0 for layer in features]
    maps = {s: next(w for w in reversed(widths[: i + 1]) if w) for s, i in taps.items()}
    return Backbone(_he(net), plan, dim, maps, PLAIN)


def _gap() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def vgg16_gap(hw: tuple[int, int], channels: int) -> Backbone:
    """The violence paper's teacher: VGG16's 13 convolutions, global average pooling, dense 1024 ReLU.

    15,242,050 parameters with two classes. frozen = true freezes only the convolutions.
    """
    features: list[nn.Module] = []
    taps, inner = {}, 3
    for block, (convolutions, width) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]):
        for _ in range(convolutions):
            features += _conv(inner, width)
            inner = width
        taps[2**block] = len(features) - 1
        features.append(nn.MaxPool2d(2))
    taps[32] = len(features) - 1
    body = _own(features, _gap(), nn.Sequential(nn.Linear(512, 1024), nn.ReLU(inplace=True)), 1024, taps)
    return replace(body, plan=replace(body.plan, backbone=len(features) + 1), norm=IMAGENET)


def smallcnn(hw: tuple[int, int], channels: int) -> Backbone:
    """The violence paper's student: conv 32, conv 64, dense 128. 2,116,930 parameters at 64×64×3, K = 2."""
    features = [*_conv(channels, 32), nn.MaxPool2d(2), *_conv(32, 64), nn.MaxPool2d(2)]
    dense = nn.Sequential(nn.Linear(64 * (hw[0] // 4) * (hw[1] // 4), 128), nn.ReLU(inplace=True))
    return replace(_own(features, nn.Flatten(), dense, 128, {1: 1, 2: 4, 4: 5}), size=hw)


def mnist_cnn(hw: tuple[int, int], channels: int, width: int = 32) -> Backbone:
    """A teacher: six convolutions with batch norm in three stages; above 99 % after a few epochs."""
    features: list[nn.Module] = []
    for inner, outer in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
        features += [*_conv(inner, outer, norm=True), *_conv(outer, outer, norm=True), nn.MaxPool2d(2)]
    return _own(features[:-1], _gap(), None, 4 * width, {1: 5, 2: 12, 4: 19})


def mnist_small(hw: tuple[int, int], channels: int, width: int = 8) -> Backbone:
    """A student: strided convolutions of `width` and 2·`width` maps, flattened; for one input size."""
    features = [*_conv(channels, width, stride=2), *_conv(width, 2 * width, stride=2)]
    dim = 2 * width * -(-hw[0] // 4) * -(-hw[1] // 4)
    return replace(_own(features, nn.Flatten(), None, dim, {2: 1, 4: 3}), size=hw)


def yolo_cls_n(hw: tuple[int, int], channels: int) -> Backbone:
    """A rival, sized as published for YOLOv8n-cls: strided Conv-BN-SiLU of 16 to 256 maps, C2f blocks, a 1×1
    convolution to 1280, pooling. 2,719,288 parameters with 1000 classes.
    """
    features: list[nn.Module] = [_unit(channels, 16, 3, 2)]
    maps = {2: 16}
    for width, depth in ((32, 1), (64, 2), (128, 2), (256, 1)):
        features += [_unit(width // 2, width, 3, 2), _C2f(width, depth)]
        maps[width // 8] = width
    net = nn.Module()
    net.features, net.neck = nn.Sequential(*features, _unit(256, 1280, 1, 1)), _gap()
    steps = (*(f"features.{i}" for i in range(10)), "neck")
    taps = {stride: 2 * i for i, stride in enumerate(maps)}
    return Backbone(_he(net), ForwardPlan(steps, (1, 3, 5, 7, 9), 11, taps, 10), 1280, maps, PLAIN)


def r2plus1d_small(hw: tuple[int, int], channels: int, width: int = 32, causal: bool = True) -> Backbone:
    """A small (2+1)D net (Tran et al. 2018, arXiv 1711.11248): four stages of a strided 3×3 convolution in space and
    one over three moments in time, with batch norm and ReLU.
    """
    features: list[nn.Module] = []
    inner, maps = channels, {}
    for stage, outer in enumerate((width, width, 2 * width, 4 * width), 1):
        space = nn.Sequential(nn.Conv2d(inner, outer, 3, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())
        time = nn.Sequential(TemporalConv(outer, outer, causal), nn.BatchNorm2d(outer), nn.ReLU())
        features += [space, time]
        inner, maps[2**stage] = outer, outer
    net = nn.Module()
    net.features, net.neck = nn.Sequential(*features), _gap()
    steps = (*(f"features.{i}" for i in range(8)), "neck")
    taps = {stride: 2 * i + 1 for i, stride in enumerate(maps)}
    return Backbone(_he(net), ForwardPlan(steps, (0, 2, 4, 6, 8), 9, taps, 8), inner, maps, PLAIN)


def _unit(inner: int, outer: int, kernel: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer, eps=1e-3, momentum=0.03), nn.SiLU(inplace=True))


class _C2f(nn.Module):
    """Half of the maps pass, half go through residual 3×3 pairs; all stages are mixed."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        half = width // 2
        self.into, self.out = _unit(width, width, 1, 1), _unit((2 + depth) * half, width, 1, 1)
        pairs = [nn.Sequential(_unit(half, half, 3, 1), _unit(half, half, 3, 1)) for _ in range(depth)]
        self.pairs = nn.ModuleList(pairs)

    def forward(self, x: Tensor) -> Tensor:
        kept = list(self.into(x).chunk(2, 1))
        for pair in self.pairs:
            kept.append(kept[-1] + pair(kept[-1]))
        return self.out(torch.cat(kept, 1))


# Own nets that have ImageNet weights: where they may be (the last name is timm's), and what is never in such a file.
FILES = {"vgg16-gap": (("vgg16-gap", "vgg16"), ("dense.",))}

NETS: dict[str, Callable[..., Backbone]] = {
    "vgg16-gap": vgg16_gap,
    "smallcnn": smallcnn,
    "mnist-cnn": mnist_cnn,
    "mnist-small": mnist_small,
    "yolo-cls-n": yolo_cls_n,
    "r2plus1d-small": r2plus1d_small,
}
