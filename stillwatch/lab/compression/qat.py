"""Quantisation-aware training under fake quantisation, with the same losses and the float teacher."""
# NNCF's torch backend compiles C++ and acts only in forward(), which the loop does not call

from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.hooks import RemovableHandle

from stillwatch.errors import UserError
from stillwatch.lab.compression.ptq import QuantConfig
from stillwatch.lab.data.dataset import Dataset
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.models.ensemble import Teacher
from stillwatch.lab.training import pipeline
from stillwatch.recipe import Fit
from stillwatch.run import Progress, Run

FOLLOW = 0.1  # weight of a batch in the running ends of an activation's range
LEAST = 1e-8  # range of what is always the same
Layer: TypeAlias = nn.Conv2d | nn.Linear
Hooks: TypeAlias = list[tuple[Layer, RemovableHandle]]


def learn(
    net: Classifier,
    teacher: Teacher | None,
    data: Dataset,
    plan: Fit,
    config: QuantConfig,
    run: Run,
    progress: Progress,
) -> None:
    """Fine-tune net under fake quantisation, in place, with batch norms folded first.

    teacher: float; None leaves out the losses that need one. run: keeps the state for resuming. Jacob et al. 2018
    (arXiv 1712.05877), §3, with scales per channel.
    """
    torch.manual_seed(plan.seed)
    fold(net, data.picture(data.rows["train"][:2]))
    hooks = insert_fake_quant(net, config)
    step = pipeline.build_step(net, data, teacher, plan)
    pipeline.train(step, data, teacher, plan, run, pipeline.device(plan), progress)
    remove_fake_quant(hooks)
    net.cpu().eval()


@torch.no_grad()
def fold(net: Classifier, example: Tensor) -> None:
    """Fold every batch norm into the convolution before it, in place. example: uint8 (B,H,W,C).

    Raises UserError where the output changes.
    """
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is kept, so that no other gets its id
    pairs: dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]] = {}
    names = {module: name for name, module in net.named_modules()}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            outputs[id(output)] = module, output
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in outputs:
            pairs[names[module]] = outputs[id(inputs[0])][0], module

    handles = [m.register_forward_hook(note) for m in names if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    before = net.eval()(example).logits
    for handle in handles:
        handle.remove()
    for name, (conv, norm) in pairs.items():
        assert norm.running_mean is not None and norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        free = conv.weight.requires_grad
        conv.weight, conv.bias = (nn.Parameter(value.detach(), requires_grad=free) for value in (weight, bias))
        parent, _, last = name.rpartition(".")
        activation = getattr(norm, "act", None)  # timm's norms hold the activation that follows them
        setattr(net.get_submodule(parent), last, activation if isinstance(activation, nn.Module) else nn.Identity())
    away = float((net(example).logits - before).abs().max())
    if away > 1e-3 * (1 + float(before.abs().max())):
        raise UserError(f"net {net.name}: folding batch norms moves the logits by {away:.2g}; set quantise.qat = false")


class WeightQuantizer(nn.Module):
    """INT8, symmetric, one scale per output; straight-through gradient."""

    def forward(self, weight: Tensor) -> Tensor:
        top = weight.detach().abs().flatten(1).amax(1).clamp_min(LEAST)
        zero = torch.zeros_like(top, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, top / 127, zero, 0, -127, 127)


class ActivationQuantizer(nn.Module):
    """UINT8, affine; the range follows the batches. channels: 0 for one scale."""

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
            values = x.detach().float()
            rows = values.transpose(0, 1).flatten(1) if self.channels else values.flatten()[None]
            share = torch.where(self.seen, FOLLOW, 1.0)
            self.low.lerp_(rows.amin(1).clamp_max(0), share)  # zero is on every grid
            self.high.lerp_(rows.amax(1).clamp_min(0), share)
            self.seen.fill_(True)
        elif not self.seen:
            return x
        scale = ((self.high - self.low) / 255).clamp_min(LEAST)
        zero = (-self.low / scale).round().clamp(0, 255).to(torch.int32)
        if self.channels:
            return torch.fake_quantize_per_channel_affine(x.float(), scale, zero, 1, 0, 255)
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255)


def insert_fake_quant(net: Classifier, config: QuantConfig) -> Hooks:
    """Returns what undoes it."""
    hooks: Hooks = []
    for layer in quantised_layers(net, config):
        channels = layer.groups if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels else 1
        quantizer = ActivationQuantizer(channels if channels > 1 and not config.plain else 0)
        layer.register_module("gauge", quantizer.to(layer.weight.device))  # the name that it has in a last.pt
        parametrize.register_parametrization(layer, "weight", WeightQuantizer())
        hook = layer.register_forward_pre_hook(lambda m, inputs: (m.get_submodule("gauge")(inputs[0]), *inputs[1:]))
        hooks.append((layer, hook))
    return hooks


def remove_fake_quant(hooks: Hooks) -> None:
    """The weights stay rounded."""
    for layer, hook in hooks:
        hook.remove()
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        del layer.gauge


def quantised_layers(net: Classifier, config: QuantConfig) -> Iterator[Layer]:
    """Without layers that are frozen, in squeeze-and-excitation, or kept float."""
    squeezes = tuple(
        f"{name}."
        for name, module in net.named_modules()
        if name.rpartition(".")[2] == "se" or type(module).__name__.startswith(("Squeeze", "SEModule", "EffectiveSE"))
    )
    layers = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for number, (name, layer) in enumerate(layers):
        if layer.weight.requires_grad and not name.startswith(squeezes) and not (config.plain and number == 0):
            yield layer
