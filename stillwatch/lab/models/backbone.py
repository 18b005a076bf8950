"""A net without its head: the steps of its forward pass and where its maps are. Imports no data and no loss."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from stillwatch.errors import UserError, nearest

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std of RGB in [0,1]
PLAIN = ((0.0,), (1.0,))  # own small nets see [0,1] as it is, in as many channels as the data has


@dataclass(frozen=True)
class ForwardPlan:
    steps: tuple[str, ...]  # module names, or one of the two methods FORWARD; the last gives the feature
    ends: tuple[int, ...]  # frozen = k freezes steps[:ends[k]]; empty: it cannot be cut inside
    backbone: int  # frozen = true freezes steps[:backbone]
    taps: dict[int, int]  # stride -> number of the step whose output is that map
    flat: int  # steps from here on give vectors, those before it maps


@dataclass(frozen=True)
class Backbone:
    net: nn.Module
    plan: ForwardPlan
    feature: int
    maps: dict[int, int]  # stride -> channels
    norm: tuple[tuple[float, ...], tuple[float, ...]]  # mean, std of pictures in [0,1]
    size: tuple[int, int] | None = None  # (height, width) the net insists on


FORWARD = ("forward_features", "forward_head")  # timm's two halves of a net


def run_step(net: nn.Module, name: str, h: Tensor) -> Tensor:
    if name == FORWARD[0]:
        return net.forward_features(h)  # type: ignore[operator]
    if name == FORWARD[1]:
        return net.forward_head(h, pre_logits=True)  # type: ignore[operator]
    return net.get_submodule(name)(h)


def last_index(net: Any, stride: int) -> int:
    return max(i for i, info in enumerate(net.feature_info) if info["reduction"] == stride)


def from_timm(name: str, options: dict[str, Any], own: Iterable[str] = ()) -> Backbone:
    """Split into steps where it is a plain chain of children. Raises UserError, also for a net without a pooled
    feature.
    """
    if not timm.is_model(name):
        close = hint if "did you" in (hint := nearest(name, [*own, *timm.list_models()])) else ""
        raise UserError(
            f"net.name = {name!r}: unknown{close}; known: {', '.join(own)} and the names of timm.list_models()"
        )
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
        modules = {f["module"] for f in net.feature_info}
        stages = [i for i, name in enumerate(steps) if re.match(r"(blocks|stages|layers)\.|(layer|s)\d+$", name)]
        plain = [i for i, name in enumerate(steps) if name.startswith("features.") and name in modules]
        ends = (*stages[:1], *(i + 1 for i in stages or plain))
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
    """The shortest chain of children that turns x into `end`, or ()."""
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
