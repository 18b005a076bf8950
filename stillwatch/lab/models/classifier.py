"""Classifier: a net with normalisation and head, built from a recipe's Net. Imports no data, loss or run."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stillwatch.errors import UserError, nearest
from stillwatch.lab.models import temporal, weights
from stillwatch.lab.models.backbone import FORWARD, Backbone, from_timm, last_index, run_step
from stillwatch.lab.models.zoo import FILES, NETS
from stillwatch.recipe import Net, Recipe, SideName, ticks
from stillwatch.registry import bind


class ModelOutput(NamedTuple):
    logits: Tensor  # (B,K)
    feature: Tensor  # (B,D), pooled over place and time, before dropout and head
    maps: dict[int, Tensor]  # stride -> (B,C,h,w), only those asked for
    regions: Tensor | None = None  # (B,3,4) eyes and mouth of the picture, for the losses that ask: FaceTable.regions


class Classifier(nn.Module):
    """Frozen parts have no gradients and stay in eval mode."""

    # Weights are channels_last, as the permuted pictures are: a training step at 160×288 on 2 cores takes 0.27 s, not
    # 0.67 (tf_mobilenetv3_small_075, batch 32), 2.1 s, not 2.9 (tf_efficientnet_lite0)

    def __init__(self, spec: Net, body: Backbone, classes: int, moments: Sequence[float] = (0,)):
        super().__init__()
        self.name, self.kind, self.plan, self.frames = spec.name, spec.head, body.plan, len(moments)
        self.front, self.steps = spec.front, temporal.pictures(spec.front, self.frames)
        self.ticks = ticks(moments)[0]
        self.marks: tuple[int, ...] = ()  # places of the labels whose evidence exported files show on a map; (): no map
        plain = (spec.front, spec.shift) == ("frame", "none")
        self.key = spec.name if plain else f"{spec.name} {spec.front} {spec.shift}"  # with the weights, names features
        self.size, self.channels, self.net = body.size, dict(body.maps), body.net
        over = bind(temporal.TEMPORAL, spec.temporal, 2, "net.temporal", "net.temporal")
        self.temporal = over(body.feature, self.steps)
        self.dim = self.temporal.size
        self.timed: list[temporal.Timed] = [m for m in self.net.modules() if isinstance(m, temporal.TemporalConv)]
        for layer in self.timed:
            layer.steps = self.steps
        if spec.shift != "none":
            self.timed += temporal.add_shift(self.net, self.steps, spec.shift == "two-way", spec.name)
        self.dropout = nn.Dropout(spec.dropout)
        self.head = nn.Linear(self.dim, classes)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in body.norm)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)
        ends, frozen = body.plan.ends, spec.frozen
        if isinstance(frozen, bool):
            self.frozen_steps = body.plan.backbone if frozen else 0
        elif not ends:
            raise UserError(f"net.frozen = {frozen}: {spec.name} has no stages to count; set true or false")
        elif not 0 <= frozen < len(ends):
            raise UserError(f"net.frozen = {frozen}: {spec.name} has {len(ends) - 1} stages after its stem")
        else:
            self.frozen_steps = ends[frozen]
        for module in self._frozen():
            module.requires_grad_(False)
        self.train()

    def forward(self, x: Tensor, maps: tuple[int, ...] = ()) -> ModelOutput:
        """x: uint8 (B,H,W,C) or (B,T,H,W,C), oldest first. maps: strides; of a look, the mean over its pictures."""
        if not self.frozen_steps:
            return self.forward_from(x, maps)
        before = self.early(maps)
        h, found = self._frozen_forward(x, before)
        out = self.forward_from(h, tuple(s for s in maps if s not in before))
        return out._replace(maps={s: (found | out.maps)[s] for s in maps})

    def frozen_forward(self, x: Tensor) -> Tensor:
        """(B,D) or (B,C,h,w), for clips (B,S,…); x itself where nothing is frozen."""
        return self._frozen_forward(x, ())[0] if self.frozen_steps else x

    def forward_from(self, h: Tensor, maps: tuple[int, ...] = ()) -> ModelOutput:
        """The trained part, on frozen_forward's output (fp16 too). Raises UserError for a missing or frozen map."""
        self.check(maps)
        if self.frozen_steps:
            h, steps = h.to(self.head.weight.dtype), 1
            if h.ndim > (2 if self.frozen_steps > self.plan.flat else 4):  # a look's pictures
                h, steps = h.flatten(0, 1), h.shape[1]
        else:
            h, steps = self._pictures(h)
        features, found = self._walk(h, self.frozen_steps, len(self.plan.steps), maps)
        feature = self.over_time(features, steps)
        found = {s: found[s].unflatten(0, (-1, steps)).mean(1) for s in maps} if steps > 1 else found
        return ModelOutput(self.head(self.dropout(feature)), feature, {s: found[s] for s in maps})

    def over_time(self, features: Tensor, steps: int) -> Tensor:
        """(B·S,D) -> (B,dim)."""
        if steps == 1 and self.temporal.plain:  # so that exported files of single pictures hold nothing of time
            return features
        return self.temporal(features.unflatten(0, (-1, steps)))

    def last_map(self, x: Tensor) -> tuple[Tensor, int]:
        """x: uint8 (B,H,W,C) or (B,T,H,W,C) -> (what is pooled (B·S,C,h,w), S)."""
        h, steps = self._pictures(x)
        return self._walk(h, 0, self.plan.flat, ())[0], steps

    def pooled(self, h: Tensor) -> Tensor:
        """(B·S,C,h,w) -> (B·S,D), before time is looked at."""
        return self._walk(h, self.plan.flat, len(self.plan.steps), ())[0]

    @property
    def one_way(self) -> bool:
        """Nothing looks ahead, so it can be streamed."""
        return not any(layer.both for layer in self.timed)

    @property
    def streams(self) -> bool:
        """Whether one new frame and remembered states give a look."""
        even = self.ticks == tuple(range(self.frames - 1, -1, -1))
        return self.frames > 1 and self.one_way and (even or self.front == "stack")

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B,K) -> (B,K): the recipe head's softmax or sigmoid."""
        return logits.sigmoid() if self.kind == "sigmoid" else logits.softmax(-1)

    def check(self, maps: tuple[int, ...]) -> None:
        """Raises UserError for a missing or frozen map."""
        for stride in maps:
            if stride not in self.channels:
                raise UserError(f"net {self.name}: no map at stride {stride}; known: {self._known(self.channels)}")
            if self.plan.taps[stride] < self.frozen_steps:
                free = self._known(s for s, step in self.plan.taps.items() if step >= self.frozen_steps)
                raise UserError(f"net {self.name}: the map at stride {stride} is frozen; not frozen: {free}")

    def early(self, maps: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(s for s in maps if self.plan.taps.get(s, self.frozen_steps) < self.frozen_steps)

    def frozen_state(self) -> dict[str, Tensor]:
        return {f"{i}.{n}": v for i, module in enumerate(self._frozen()) for n, v in module.state_dict().items()}

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _known(self, strides: Iterable[int]) -> str:
        return ", ".join(str(s) for s in sorted(strides)) or "none"

    def _frozen(self) -> list[nn.Module]:
        if self.frozen_steps == len(self.plan.steps):
            return [self.net]
        return [self.net.get_submodule(name) for name in self.plan.steps[: self.frozen_steps]]

    @torch.no_grad()
    def _frozen_forward(self, x: Tensor, maps: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        clip = x.ndim == 5
        h, steps = self._pictures(x)
        h, found = self._walk(h, 0, self.frozen_steps, maps)
        if clip:
            h = h.unflatten(0, (-1, steps))
            found = {s: v.unflatten(0, (-1, steps)).mean(1) for s, v in found.items()}
        return h, found

    def _pictures(self, x: Tensor) -> tuple[Tensor, int]:
        """uint8 (B,H,W,C) or (B,T,H,W,C) -> normalised (B·S,3,h,w), channels_last; gray is broadcast to three."""
        steps = 1
        if x.ndim == 5:
            h = temporal.FRONTS[self.front](x.movedim(-1, -3).to(self.head.weight.dtype))
            h, steps = h.flatten(0, 1), h.shape[1]
        else:  # by permute: ncnn's converter knows no movedim
            h = x.permute(0, 3, 1, 2).to(self.head.weight.dtype)
        if self.size and tuple(h.shape[2:]) != self.size:
            h = F.interpolate(h, self.size, mode="bilinear", align_corners=False)
        return h * self.get_buffer("scale") + self.get_buffer("shift"), steps

    def _walk(self, h: Tensor, start: int, stop: int, maps: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        wanted = {self.plan.taps[s]: s for s in maps}
        found = {}
        for number in range(start, stop):
            name = self.plan.steps[number]
            if name == FORWARD[0] and maps:  # a net that cannot be taken apart gives its maps itself
                at = [last_index(self.net, s) for s in maps]
                h, inner = self.net.forward_intermediates(h, indices=sorted(at))  # type: ignore[operator]
                return self._walk(h, number + 1, stop, ())[0], {
                    s: inner[sorted(at).index(i)] for s, i in zip(maps, at, strict=True)
                }
            h = run_step(self.net, name, h)
            if number in wanted:
                found[wanted[number]] = h
        return h, found


def build(
    net: Net, classes: int, data_hw: tuple[int, int], channels: int, moments: Sequence[float] = (0,)
) -> Classifier:
    """A recipe's Net with its weights. Random parts come from torch's global generator.

    data_hw: (height, width) in pixels. channels: 1 or 3. moments: of the T frames, as Data.moments. net.options: of the
    NETS entry or timm.create_model; `size` (side, or [height, width]) resizes the input. Raises UserError for what
    cannot be built or does not suit the moments.
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
        body = from_timm(net.name, options, NETS)
    if size and body.size is None:
        body = replace(body, size=wanted)
    watcher = Classifier(net, body, classes, moments)
    if net.weights == "imagenet":
        weights.imagenet(watcher.net, net.name, *FILES.get(net.name, ((), ())) if net.name in NETS else ())
    elif net.weights != "scratch":
        weights.from_path(watcher.net, watcher.head, net.weights)
    return watcher.to(memory_format=torch.channels_last)


def build_side(recipe: Recipe, side: SideName, net: Net | None = None) -> Classifier:
    """One side's net, or `net` in its place, for the pixels that this side sees."""
    data = recipe.seen_by(side).data
    return build(net or getattr(recipe, side).net, len(recipe.labels), data.hw, data.channels, data.moments)


@torch.no_grad()
def resize(net: Classifier, state: Mapping[str, Tensor], hw: tuple[int, int], channels: int) -> None:
    """Give layers a state's shapes, as of a pruned net; loads no weights. hw, channels: of the data's pictures.

    Raises UserError for another net's state.
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
    """After narrowing, update the stored widths: layers, feature, maps."""
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
    x = torch.zeros(1, net.frames, *hw, channels, dtype=torch.uint8)
    out = net.eval()(x, () if net.frozen_steps else tuple(net.channels))
    net.train(training)
    net.dim = out.feature.shape[1]
    if isinstance(net.temporal, temporal.Window):  # what it remembers is as wide as a feature
        net.temporal = temporal.Window(net.dim // (1 + net.temporal.spread), net.steps, net.temporal.spread)
    net.channels |= {stride: found.shape[1] for stride, found in out.maps.items()}


def cost(net: Classifier, hw: tuple[int, int], channels: int) -> dict[str, int]:
    """Parameters, multiply-accumulates of a look of hw pixels, bytes as float32.

    A streamed net computes one picture a look; others all S.
    """
    device = next(net.parameters()).device
    training = net.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, net.frames, *hw, channels, dtype=torch.uint8, device=device))
    net.train(training)
    stored = sum(v.numel() for v in net.state_dict().values() if v.is_floating_point())
    params = sum(p.numel() for p in net.parameters())
    # oneDNN's LSTM is not seen by the counter: a product with each weight a moment
    unseen = sum(w.numel() for m in net.modules() if isinstance(m, nn.LSTM) for w in m.parameters() if w.ndim > 1)
    macs = (counter.get_total_flops() // 2 + unseen * net.steps) // (net.steps if net.one_way else 1)
    return {"params": params, "macs": macs, "bytes": 4 * stored}
