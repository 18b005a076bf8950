"""Nets: a recipe's Net -> a Classifier, one network with its own front door and its head.

In: uint8 pictures (B,H,W,C) or clips (B,T,H,W,C). Out: Out(logits, feature, maps).
Called by the lab's loop, cache and export. It knows no data, no loss and no run.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stillwatch.errors import UserError, nearest
from stillwatch.lab.models import weights
from stillwatch.recipe import Net

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of RGB in [0,1]
PLAIN = ((0.0,), (1.0,))  # own small nets see [0,1] as it is, in as many channels as the data has


class ModelOutput(NamedTuple):
    """What a net says of a batch."""

    logits: Tensor  # (B,K)
    feature: Tensor  # (B,D), pooled, before dropout and head
    maps: dict[int, Tensor]  # stride -> (B,C,h,w), only those asked for


@dataclass(frozen=True)
class ForwardPlan:
    """How a net is walked: its modules in order, where its stages end, and where its maps are."""

    steps: tuple[str, ...]  # module names, or one of the two methods FORWARD; the last gives the feature
    ends: tuple[int, ...]  # frozen = k freezes steps[:ends[k]]; empty: it cannot be cut inside
    backbone: int  # frozen = true freezes steps[:backbone]
    taps: dict[int, int]  # stride -> number of the step whose output is that map
    flat: int  # steps from here on give vectors, those before it maps


@dataclass(frozen=True)
class Backbone:
    """A net without its head, and all that a Classifier has to know of it."""

    net: nn.Module
    plan: ForwardPlan
    feature: int
    maps: dict[int, int]  # stride -> channels
    norm: tuple[tuple[float, ...], tuple[float, ...]]  # mean, std of pictures in [0,1]
    size: tuple[int, int] | None = None  # (height, width) the net insists on


class Classifier(nn.Module):
    """A body behind its front door, with dropout and a linear head.

    Frozen parts have no gradients and stay in eval mode, whatever .train() says. Weights lie in channels_last, as the
    permuted pictures do: a training step at 160×288 on 2 cores then takes 0.27 s for 0.67 (tf_mobilenetv3_small_075,
    batch 32) and 2.1 s for 2.9 (tf_efficientnet_lite0).
    """

    def __init__(self, spec: Net, body: Backbone, classes: int):
        super().__init__()
        self.name, self.kind, self.plan = spec.name, spec.head, body.plan
        self.size, self.dim, self.channels = body.size, body.feature, dict(body.maps)
        self.net = body.net
        self.dropout = nn.Dropout(spec.dropout)
        self.head = nn.Linear(body.feature, classes)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in body.norm)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.cut = _cut(spec, body.plan)
        for module in self._frozen():
            module.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor, maps: tuple[int, ...] = ()) -> ModelOutput:
        """x: uint8 (B,H,W,C) or (B,T,H,W,C); maps: strides wanted. A clip's answer is the mean over its T frames."""
        if not self.cut:
            return self.rest(x, maps)
        before = self.early(maps)
        h, found = self._trunk(x, before)
        out = self.rest(h, tuple(s for s in maps if s not in before))
        return out._replace(maps={s: (found | out.maps)[s] for s in maps})

    def trunk(self, x: Tensor) -> Tensor:
        """The frozen part's output for x, ready to be stored: (B,D) or (B,C,h,w), a clip's with T after B.

        Where nothing is frozen it is x itself.
        """
        return self._trunk(x, ())[0] if self.cut else x

    def rest(self, h: Tensor, maps: tuple[int, ...] = ()) -> ModelOutput:
        """What is trained, from trunk's output on; fp16 is taken too. forward(x) = rest(trunk(x)).

        Raises UserError for a map that the net lacks or that lies in the frozen part.
        """
        self.check(maps)
        h, frames = self._fold(h, self.cut)
        h = h.to(self.head.weight.dtype) if self.cut else self._front(h)
        feature, found = self._walk(h, self.cut, len(self.plan.steps), maps)
        logits = self.head(self.dropout(feature))
        if frames:
            logits, feature, *rest = (v.unflatten(0, (-1, frames)).mean(1) for v in (logits, feature, *found.values()))
            found = dict(zip(found, rest, strict=True))
        return ModelOutput(logits, feature, {s: found[s] for s in maps})

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B,K) logits -> probabilities: softmax, or a sigmoid for each class, as the recipe's head says."""
        return logits.sigmoid() if self.kind == "sigmoid" else logits.softmax(-1)

    def shape(self, maps: tuple[int, ...] | None = None) -> tuple[int, dict[int, int]]:
        """(size of the feature, channels by stride) of the maps named, or of all that there are."""
        if maps is None:
            return self.dim, dict(self.channels)
        missing = [s for s in maps if s not in self.channels]
        if missing:
            raise UserError(f"net {self.name}: no map at stride {missing[0]}; known: {self._known(self.channels)}")
        return self.dim, {s: self.channels[s] for s in maps}

    def check(self, maps: tuple[int, ...]) -> None:
        """Raise UserError unless every one of these maps can be learnt from: it exists and is not frozen."""
        self.shape(maps)
        for stride in maps:
            if self.plan.taps[stride] < self.cut:
                free = self._known(s for s, step in self.plan.taps.items() if step >= self.cut)
                raise UserError(f"net {self.name}: the map at stride {stride} is frozen; not frozen: {free}")

    def early(self, maps: tuple[int, ...]) -> tuple[int, ...]:
        """Those of these strides whose map lies in the frozen part."""
        return tuple(s for s in maps if self.plan.taps.get(s, self.cut) < self.cut)

    def frozen_state(self) -> dict[str, Tensor]:
        """The weights and statistics of the frozen part alone: what trunk's output depends on."""
        return {f"{i}.{n}": v for i, module in enumerate(self._frozen()) for n, v in module.state_dict().items()}

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _known(self, strides: Iterable[int]) -> str:
        return ", ".join(str(s) for s in sorted(strides)) or "none"

    def _frozen(self) -> list[nn.Module]:
        if self.cut == len(self.plan.steps):
            return [self.net]
        return [self.net.get_submodule(name) for name in self.plan.steps[: self.cut]]

    @torch.no_grad()
    def _trunk(self, x: Tensor, maps: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        x, frames = self._fold(x, 0)
        h, found = self._walk(self._front(x), 0, self.cut, maps)
        if frames:
            h = h.unflatten(0, (-1, frames))
            found = {s: v.unflatten(0, (-1, frames)).mean(1) for s, v in found.items()}
        return h, found

    def _fold(self, h: Tensor, step: int) -> tuple[Tensor, int]:
        """Frames into the batch: (h, T), or (h, 0) where there is no T."""
        still = 2 if step > self.plan.flat else 4
        return (h.flatten(0, 1), h.shape[1]) if h.ndim > still else (h, 0)

    def _front(self, x: Tensor) -> Tensor:
        """(B,H,W,C) uint8 -> (B,3,h,w) normalised; one channel spreads over three. It comes out channels_last."""
        h = x.permute(0, 3, 1, 2).to(self.head.weight.dtype)
        if self.size and tuple(h.shape[2:]) != self.size:
            h = F.interpolate(h, self.size, mode="bilinear", align_corners=False)
        return h * self.get_buffer("scale") + self.get_buffer("shift")

    def _walk(self, h: Tensor, start: int, stop: int, maps: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        wanted = {self.plan.taps[s]: s for s in maps}
        found = {}
        for number in range(start, stop):
            name = self.plan.steps[number]
            if name == FORWARD[0] and maps:  # a net that cannot be taken apart gives its maps itself
                at = [_last(self.net, s) for s in maps]
                h, inner = self.net.forward_intermediates(h, indices=sorted(at))  # type: ignore[operator]
                return self._walk(h, number + 1, stop, ())[0], {
                    s: inner[sorted(at).index(i)] for s, i in zip(maps, at, strict=True)
                }
            h = _step(self.net, name, h)
            if number in wanted:
                found[wanted[number]] = h
        return h, found


FORWARD = ("forward_features", "forward_head")  # timm's two halves of a net


def _step(net: nn.Module, name: str, h: Tensor) -> Tensor:
    if name == FORWARD[0]:
        return net.forward_features(h)  # type: ignore[operator]
    if name == FORWARD[1]:
        return net.forward_head(h, pre_logits=True)  # type: ignore[operator]
    return net.get_submodule(name)(h)


def _last(net: Any, stride: int) -> int:
    return max(i for i, info in enumerate(net.feature_info) if info["reduction"] == stride)


def _cut(spec: Net, plan: ForwardPlan) -> int:
    """The number of frozen steps."""
    if isinstance(spec.frozen, bool):
        return plan.backbone if spec.frozen else 0
    if not plan.ends:
        raise UserError(f"net.frozen = {spec.frozen}: {spec.name} has no stages to count; set true or false")
    if not 0 <= spec.frozen < len(plan.ends):
        raise UserError(f"net.frozen = {spec.frozen}: {spec.name} has {len(plan.ends) - 1} stages after its stem")
    return plan.ends[spec.frozen]


def build(net: Net, classes: int, data_hw: tuple[int, int], channels: int) -> Classifier:
    """A recipe's Net -> Classifier with its weights. Random parts come from torch's global generator.

    classes: K. data_hw: (height, width) of the data's pictures, in pixels; channels: 1 or 3.
    net.options: those of the entry in NETS or of timm.create_model; `size` (side, or [height, width]) has the front
    door resize to that. Raises UserError for an unknown name, option, stage or weights.
    """
    options = dict(net.options)
    size = options.pop("size", None)
    wanted = ((size, size) if isinstance(size, int) else tuple(size)) if size else data_hw
    if len(wanted) != 2 or not all(isinstance(side, int) and side >= 8 for side in wanted):
        raise UserError(f"net.options.size = {size!r}: a side in pixels, or [height, width], from 8 up")
    if net.name in NETS:
        known = list(inspect.signature(NETS[net.name]).parameters)[2:]
        for key in options:
            if key not in known:
                raise UserError(f"net.options.{key}: {net.name} does not take it{nearest(key, [*known, 'size'])}")
        body = NETS[net.name](wanted, channels, **options)
    else:
        body = _from_timm(net.name, options)
    if size and body.size is None:
        body = replace(body, size=wanted)
    watcher = Classifier(net, body, classes)
    if net.weights == "imagenet":
        weights.imagenet(watcher.net, net.name, *FILES.get(net.name, ((), ())) if net.name in NETS else ())
    elif net.weights != "scratch":
        weights.from_path(watcher.net, watcher.head, net.weights)
    return watcher.to(memory_format=torch.channels_last)


@torch.no_grad()
def resize(net: Classifier, state: Mapping[str, Tensor], hw: tuple[int, int], channels: int) -> None:
    """Give the net's convolutions, norms and linear layers the shapes that `state` has: those of a pruned net.

    A pruned net is thus known by its weights alone. hw, channels: of the data's pictures. The weights are not loaded.
    Raises UserError where state is of another net.
    """
    changed = False
    for name, module in net.named_modules():
        weight, old = state.get(f"{name}.weight"), getattr(module, "weight", None)
        if weight is None or not isinstance(old, Tensor) or weight.shape == old.shape:
            continue
        if not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) or weight.ndim != old.ndim:
            raise UserError(f"net {net.name}: {name} has shape {tuple(old.shape)}, the weights {tuple(weight.shape)}")
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if f"{name}.{key}" in state:
                setattr(module, key, type(tensor)(torch.empty_like(state[f"{name}.{key}"])))
        changed = True
    if changed:
        settle_norms(net, hw, channels)


@torch.no_grad()
def settle_norms(net: Classifier, hw: tuple[int, int], channels: int) -> None:
    """Have a net whose layers were made narrower know its own widths again: each layer's, its feature's, its maps'."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            depthwise = 1 < module.groups == module.in_channels
            module.out_channels = len(module.weight)
            module.groups = module.out_channels if depthwise else module.groups
            module.in_channels = module.weight.shape[1] * module.groups
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(module.running_mean) if module.running_mean is not None else module.num_features
    training = net.training
    out = net.eval()(torch.zeros(1, *hw, channels, dtype=torch.uint8), () if net.cut else tuple(net.channels))
    net.train(training)
    net.dim = out.feature.shape[1]
    net.channels |= {stride: found.shape[1] for stride, found in out.maps.items()}


def cost(net: nn.Module, hw: tuple[int, int], channels: int) -> dict[str, int]:
    """Parameters, multiply-accumulates for one picture of hw pixels, bytes of the weights and statistics as float32."""
    device = next(net.parameters()).device
    training = net.training
    net.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *hw, channels, dtype=torch.uint8, device=device))
    net.train(training)
    stored = sum(v.numel() for v in net.state_dict().values() if v.is_floating_point())
    params = sum(p.numel() for p in net.parameters())
    return {"params": params, "macs": counter.get_total_flops() // 2, "bytes": 4 * stored}


def _from_timm(name: str, options: dict[str, Any]) -> Backbone:
    """Any net of timm, without its head, taken apart into steps where it is a plain chain of its children."""
    if not timm.is_model(name):
        close = nearest(name, [*NETS, *timm.list_models()])
        hint = close if close.startswith("; did") else f"; known: {', '.join(NETS)} and the names of timm.list_models()"
        raise UserError(f"net.name = {name!r}: unknown{hint}")
    for key in options.keys() & ELSEWHERE.keys():
        raise UserError(f"net.options.{key}: not an option; {ELSEWHERE[key]}")
    try:
        net: Any = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"net.options = {options}: timm does not build {name} with them: {error}") from error
    config = net.pretrained_cfg
    size = tuple(options.get("img_size") or config["input_size"][1:]) if config.get("fixed_input_size") else None
    hw = size or (64, 64)
    picture = torch.linspace(-1, 1, 3 * hw[0] * hw[1]).view(1, 3, *hw)
    info = {f["reduction"]: f for f in getattr(net, "feature_info", ())}  # the last one of each stride
    net.eval()
    try:
        with torch.no_grad():
            found = net.forward_features(picture)
            feature = net.forward_head(found, pre_logits=True)
            steps = _chain(net, picture, found, {f["module"]: f["num_chs"] for f in info.values()})
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"net.name = {name!r}: timm does not show its pooled feature; choose another net") from error
    if feature.ndim != 2:
        raise UserError(f"net.name = {name!r}: its feature is not pooled to (batch, size); choose another net")
    if steps:
        taps = {s: steps.index(f["module"]) for s, f in info.items() if f["module"] in steps}
        ends = _ends(steps, {f["module"] for f in net.feature_info})
    else:
        taps = dict.fromkeys(info, 0) if hasattr(net, "forward_intermediates") else {}
        steps, ends = FORWARD[:1], ()
    plan = ForwardPlan((*steps, FORWARD[1]), ends, len(steps) + 1, taps, len(steps))
    maps = {s: f["num_chs"] for s, f in info.items() if s in taps}
    return Backbone(net, plan, feature.shape[1], maps, (tuple(config["mean"]), tuple(config["std"])), size)


ELSEWHERE = {  # what timm calls an option and a recipe says in another place
    "drop_rate": "set net.dropout",
    "pretrained": "set net.weights",
    "num_classes": "the recipe's labels say how many",
    "in_chans": "data.gray says how many",
    "features_only": "a classifier is wanted",
}
STAGES = ("blocks", "stages", "layers", "features")  # what nets call the chain of their stages


def _chain(net: nn.Module, x: Tensor, end: Tensor, widths: dict[str, int]) -> tuple[str, ...]:
    """The shortest chain of child modules that turns x into `end`; () where the net is not such a chain of maps.

    widths: channels that modules must give.
    """
    names: list[str] = []
    for child, module in net.named_children():
        inner = child in STAGES and isinstance(module, nn.Sequential)
        for name in [f"{child}.{n}" for n, _ in module.named_children()] if inner else [child]:
            try:
                x = net.get_submodule(name)(x)
            except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError):
                return ()
            if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != widths.get(name, x.shape[1]):
                return ()
            names.append(name)
        if x.shape == end.shape and torch.equal(x, end):
            return tuple(names)
    return ()


def _ends(steps: tuple[str, ...], modules: set[str]) -> tuple[int, ...]:
    """Where the stem and each stage end, as numbers of steps."""
    stages = [i for i, name in enumerate(steps) if re.match(r"(blocks|stages|layers)\.|(layer|s)\d+$", name)]
    if stages:
        return (stages[0], *(i + 1 for i in stages))
    return tuple(i + 1 for i, name in enumerate(steps) if name.startswith("features.") and name in modules)


def _he(net: nn.Module) -> nn.Module:
    """He et al. 2015 (arXiv 1502.01852), eq. 10: the signal keeps its size, even through a frozen random net."""
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
    """An own net: a chain of layers giving maps, `neck` that makes them a vector, and what follows it, if anything."""
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
    """The violence paper's teacher (FACTS §1b): VGG16's 13 convolutions, global average pooling, dense 1024 ReLU.

    15,242,050 parameters with two classes. Layers are named as torchvision's and timm's are. frozen = true freezes the
    convolutions alone: both dense layers learn.
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
    """The violence paper's student (FACTS §1b): conv 32, conv 64, dense 128. 2,116,930 parameters at 64×64×3, K = 2."""
    features = [*_conv(channels, 32), nn.MaxPool2d(2), *_conv(32, 64), nn.MaxPool2d(2)]
    dense = nn.Sequential(nn.Linear(64 * (hw[0] // 4) * (hw[1] // 4), 128), nn.ReLU(inplace=True))
    return replace(_own(features, nn.Flatten(), dense, 128, {1: 1, 2: 4, 4: 5}), size=hw)


def mnist_cnn(hw: tuple[int, int], channels: int, width: int = 32) -> Backbone:
    """A teacher for MNIST: six normalised convolutions in three stages, pooled; above 99 % after a few epochs."""
    features: list[nn.Module] = []
    for inner, outer in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
        features += [*_conv(inner, outer, norm=True), *_conv(outer, outer, norm=True), nn.MaxPool2d(2)]
    return _own(features[:-1], _gap(), None, 4 * width, {1: 5, 2: 12, 4: 19})


def mnist_small(hw: tuple[int, int], channels: int, width: int = 8) -> Backbone:
    """A light student for MNIST: two strided convolutions of `width` and 2·`width` maps, flattened; for one size."""
    features = [*_conv(channels, width, stride=2), *_conv(width, 2 * width, stride=2)]
    dim = 2 * width * -(-hw[0] // 4) * -(-hw[1] // 4)
    return replace(_own(features, nn.Flatten(), None, dim, {2: 1, 4: 3}), size=hw)


def yolo_cls_n(hw: tuple[int, int], channels: int) -> Backbone:
    """A rival for the bench, sized as is published for YOLOv8n-cls: five strided Conv-BN-SiLU of 16 to 256 maps, a C2f
    block after all but the first, a 1×1 convolution to 1280, pooled. 2,719,288 parameters with 1000 classes.
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


def _unit(inner: int, outer: int, kernel: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer, eps=1e-3, momentum=0.03), nn.SiLU(inplace=True))


class _C2f(nn.Module):
    """Half of the maps go by; the other half through residual pairs of 3×3; every stage of it is kept and mixed."""

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
}
