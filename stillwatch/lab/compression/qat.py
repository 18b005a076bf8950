"""QAT: a student learns to live with INT8: fake quantisation in its layers, the same losses, its float teacher.

In: a student's net, its data, its teacher. Out: the same net, float, its weights on the INT8 grid and at home there.
Called by quantise, which exports and calibrates it like any other net. It knows no ONNX and no NNCF.
NNCF's own way for torch compiles C++ when first used and acts in forward() alone, which the loop does not call.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from stillwatch.errors import UserError
from stillwatch.lab.compression.ptq import QuantConfig
from stillwatch.lab.models.nets import Classifier
from stillwatch.lab.training import lessons
from stillwatch.lab.training.lessons import Dataset
from stillwatch.recipe import Fit
from stillwatch.run import Progress, Run

FOLLOW = 0.1  # weight of a batch in the running ends of an activation's range
LEAST = 1e-8  # range of what is always the same


def learn(
    net: Classifier,
    master: Classifier | None,
    data: Dataset,
    plan: Fit,
    way: QuantConfig,
    place: Run,
    voice: Progress,
) -> dict[str, Any]:
    """Fine-tune net under fake quantisation for plan.epochs; in place. Returns the kept epoch's validation figures.

    Batch norms are folded first, so that the weights that are rounded are those that will be. master: the float
    teacher, whose losses the plan then names; without one the losses that need none are left. way: what stays float.
    place: where study keeps its state; what lies there is gone on with.
    Jacob et al. 2018, Quantization and Training of Neural Networks, §3 (arXiv 1712.05877), with a scale a channel.
    """
    torch.manual_seed(plan.seed)
    fold(net, data.picture(data.rows["train"][:2]))
    hooks = insert_fake_quant(net, way)
    step = lessons.build_step(net, data, master, lessons.specs_of(plan, master is not None))
    best = lessons.train(step, data, master, plan, place, lessons.device(plan), voice)
    remove_fake_quant(net, hooks)
    net.cpu().eval()
    return best


@torch.no_grad()
def fold(net: Classifier, example: Tensor) -> None:
    """Fold every batch norm that follows a convolution into it, in place; its activation, if it has one, stays.

    Which norm follows which convolution is seen by watching an example (B,H,W,C) uint8 go through.
    Raises UserError where the folded net gives other answers.
    """
    net.eval()
    before = net(example).logits
    for name, conv in _followed(net, example).items():
        norm: Any = net.get_submodule(name)
        free = conv.weight.requires_grad
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight, conv.bias = (nn.Parameter(value.detach(), requires_grad=free) for value in (weight, bias))
        parent, _, last = name.rpartition(".")
        after = getattr(norm, "act", None)  # timm's norms hold the activation that follows them
        setattr(net.get_submodule(parent), last, after if isinstance(after, nn.Module) else nn.Identity())
    away = float((net(example).logits - before).abs().max())
    if away > 1e-3 * (1 + float(before.abs().max())):
        raise UserError(f"net {net.name}: folding batch norms moves the logits by {away:.2g}; set quantise.qat = false")


def _followed(net: nn.Module, example: Tensor) -> dict[str, nn.Conv2d]:
    """Name of a batch norm -> the convolution whose output it is given."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is kept, so that no other gets its id
    found: dict[str, nn.Conv2d] = {}

    def leaves(module: nn.Module, _: Any, out: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made[id(out)] = module, out

    def enters(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if id(given[0]) in made:
                found[name] = made[id(given[0])][0]

        return look

    handles = []
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(leaves))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(enters(name)))
    net(example)
    for handle in handles:
        handle.remove()
    return found


class Rounded(nn.Module):
    """A weight (outputs,…) on the INT8 grid, symmetric, one scale an output; its gradient goes straight through."""

    def forward(self, weight: Tensor) -> Tensor:
        top = weight.detach().abs().flatten(1).amax(1).clamp_min(LEAST)
        zero = torch.zeros_like(top, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, top / 127, zero, 0, -127, 127)


class Gauge(nn.Module):
    """An activation on the UINT8 grid, affine; its range follows those of the batches. channels: 0 for one scale."""

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.register_buffer("low", torch.zeros(channels or 1))
        self.register_buffer("high", torch.zeros(channels or 1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self._follow(x.detach())
        elif not self.seen:
            return x
        scale = ((self.high - self.low) / 255).clamp_min(LEAST)
        zero = (-self.low / scale).round().clamp(0, 255).to(torch.int32)
        if self.channels:
            return torch.fake_quantize_per_channel_affine(x.float(), scale, zero, 1, 0, 255)
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255)

    def _follow(self, x: Tensor) -> None:
        rows = x.float().transpose(0, 1).flatten(1) if self.channels else x.float().flatten()[None]
        low, high = rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)  # zero is on every grid
        share = torch.where(self.seen, FOLLOW, 1.0)
        self.low.lerp_(low, share)
        self.high.lerp_(high, share)
        self.seen.fill_(True)


def insert_fake_quant(net: Classifier, way: QuantConfig) -> list[Any]:
    """Put fake quantisation before and into every layer that INT8 will take; returns what undress wants."""
    hooks = []
    for layer in _layers(net, way):
        depthwise = isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels and not way.plain
        layer.gauge = Gauge(layer.in_channels if depthwise else 0).to(layer.weight.device)  # type: ignore[arg-type]
        parametrize.register_parametrization(layer, "weight", Rounded())
        hooks.append((layer, layer.register_forward_pre_hook(_measured)))
    return hooks


def _measured(layer: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (layer.gauge(given[0]), *given[1:])


def remove_fake_quant(net: Classifier, hooks: list[Any]) -> None:
    """Take it out again; the weights stay where they were rounded to."""
    for layer, hook in hooks:
        hook.remove()
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        del layer.gauge


def _layers(net: Classifier, way: QuantConfig) -> Iterator[nn.Module]:
    """Convolutions and linear layers in order, without frozen ones, squeeze-and-excitation's, and what stays float."""
    found = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    first = found[0][1]
    for name, layer in found:
        squeezes = any(_squeezes(net, name, depth) for depth in range(1, name.count(".") + 1))
        if not squeezes and layer.weight.requires_grad and not (way.plain and layer is first):
            yield layer


def _squeezes(net: nn.Module, name: str, depth: int) -> bool:
    """Whether the module that holds this one so many levels up is a squeeze-and-excitation block."""
    holder = name.rsplit(".", depth)[0]
    kind = type(net.get_submodule(holder)).__name__
    return holder.rpartition(".")[2] == "se" or kind.startswith(("Squeeze", "SEModule", "EffectiveSE"))
