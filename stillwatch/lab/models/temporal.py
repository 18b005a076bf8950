"""Time inside a net: fronts, temporal shift and convolution, and heads over a look's pictures."""

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stillwatch.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
SHIFTED = 8  # one in so many channels comes from the moment before, with two-way as many from the one after
Count = Annotated[int, Field(ge=1)]


# ---- fronts: (B,T,C,H,W) 0..255, oldest first -> (B,S,C',H,W) 0..255


def frame(x: Tensor) -> Tensor:
    """Every frame: S = T."""
    return x


def difference(x: Tensor) -> Tensor:
    """128 + (a frame - the one before), clipped: S = T - 1 pictures of movement."""
    return (128 + x[:, 1:] - x[:, :-1]).clamp(0, 255)


def stack(x: Tensor) -> Tensor:
    """S = 1: gray now, and its absolute differences from two earlier frames, as a photograph's three channels."""
    weights = x.new_tensor(LUMA).view(3, 1, 1) if x.shape[2] == 3 else 1.0
    gray = (x * weights).sum(2)  # (B,3,H,W)
    now = gray[:, 2:]
    return torch.cat([now, (now - gray[:, :2].flip(1)).abs()], 1)[:, None]


FRONTS: dict[str, Callable[[Tensor], Tensor]] = {"frame": frame, "difference": difference, "stack": stack}


def pictures(front: str, frames: int) -> int:
    """S, pictures that a front makes of T frames. Raises UserError where it makes none."""
    if front == "stack" and frames != 3:
        raise UserError(f"net.front = 'stack': takes a look of 3 moments, as data.look = [0.0, 0.2, 0.6], not {frames}")
    if front == "difference" and frames < 2:
        raise UserError("net.front = 'difference': wants two frames or more, as data.look = [0.0, 0.2]")
    return {"frame": frames, "difference": frames - 1, "stack": 1}[front]


# ---- inside the net: layers that see (B·S,C,h,w), and remember when they are streamed one picture at a time


class Shift:
    """Temporal shift, a forward pre-hook of a block's first convolution (Lin et al. 2019, TSM, arXiv 1811.08383).

    One-way: an eighth of the channels comes from the moment before. Two-way: another eighth from the one after.
    """

    def __init__(self, steps: int, both: bool):
        self.steps, self.both = steps, both
        self.past: Tensor | None = None  # streamed: (B,*shape)
        self.kept: Tensor | None = None  # streamed: the next call's past
        self.shape: tuple[int, ...] = ()

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        (h,) = inputs
        n = h.shape[1] // SHIFTED
        self.shape = (n, *h.shape[2:])
        if self.past is not None:
            self.kept = h[:, :n]
            return torch.cat([self.past, h[:, n:]], 1)
        h = h.unflatten(0, (-1, self.steps))
        parts = [F.pad(h[:, :-1, :n], (0,) * 6 + (1, 0))]
        if self.both:
            parts.append(F.pad(h[:, 1:, n : 2 * n], (0,) * 6 + (0, 1)))
        return torch.cat([*parts, h[:, :, n * len(parts) :]], 2).flatten(0, 1)


def add_shift(net: nn.Module, steps: int, both: bool, name: str) -> list[Shift]:
    """Before each residual block's first convolution, inside its branch. State keys stay.

    Raises UserError where there is none.
    """
    shifts = []
    for block in net.modules():
        residual = getattr(block, "has_skip", False) or hasattr(block, "downsample") or hasattr(block, "conv_dw")
        first = next((m for m in block.modules() if isinstance(m, nn.Conv2d)), None) if residual else None
        if first is None or isinstance(block, nn.Sequential) or not getattr(block, "has_skip", True):
            continue
        shifts.append(Shift(steps, both))
        first.register_forward_pre_hook(shifts[-1])
    if not shifts:
        raise UserError(f"net.shift: {name} has no residual blocks of convolutions to shift in; leave it out")
    return shifts


class TemporalConv(nn.Module):
    """The 1-D half of a (2+1)D convolution (Tran et al. 2018, arXiv 1711.11248): three moments, each pixel alone.

    causal: now and the two before, so that it streams; else one before, now and one after.
    """

    def __init__(self, inner: int, outer: int, causal: bool):
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, (3, 1), bias=False)  # over (time, place)
        self.steps, self.both = 1, not causal
        self.past: Tensor | None = None
        self.kept: Tensor | None = None
        self.shape: tuple[int, ...] = ()

    def forward(self, h: Tensor) -> Tensor:
        self.shape = (2, *h.shape[1:])
        if self.past is not None:
            h = torch.cat([self.past, h[:, None]], 1)
            self.kept = h[:, 1:]
        else:
            h = F.pad(h.unflatten(0, (-1, self.steps)), (0,) * 6 + ((1, 1) if self.both else (2, 0)))
        found = self.conv(h.flatten(3).transpose(1, 2)).transpose(1, 2)  # (B,C,S,h·w)
        return found.unflatten(3, h.shape[3:]).flatten(0, 1)


Timed = Shift | TemporalConv


# ---- heads: features (B,S,D) -> one feature (B,size) of a look


class Window(nn.Module):
    """A mean over the look; `spread`: and the standard deviation."""

    def __init__(self, dim: int, steps: int, spread: bool):
        super().__init__()
        self.spread, self.size = spread, 2 * dim if spread else dim
        self.plain = not spread  # of one picture it gives that picture's feature
        self.states = {"features": (steps - 1, dim)} if steps > 1 else {}

    def forward(self, f: Tensor) -> Tensor:
        mean = f.mean(1)
        if not self.spread:
            return mean
        variance = (f - mean[:, None]).square().mean(1)
        return torch.cat([mean, (variance + 1e-6).sqrt()], 1)  # the square root has no gradient at 0

    def step(self, f: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """f: (B,D), the newest feature. past: a tensor for each of `states`; returns the next ones too."""
        f = torch.cat([*past, f[:, None]], 1)
        return self(f), [f[:, 1:]] if past else []


class Recurrent(nn.Module):
    """The last output of a stacked GRU or LSTM."""

    plain = False

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM], dim: int, width: int, layers: int, dropout: float):
        super().__init__()
        self.net = kind(dim, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.size = width
        self.states = dict.fromkeys(("hidden", "cell")[: 2 if kind is nn.LSTM else 1], (layers, width))

    def forward(self, f: Tensor) -> Tensor:
        return self.net(f)[0][:, -1]

    def step(self, f: Tensor, past: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """As Window.step."""
        first = [state.transpose(0, 1).contiguous() for state in past]
        out, last = self.net(f[:, None], tuple(first) if len(first) > 1 else first[0])
        return out[:, -1], [state.transpose(0, 1) for state in (last if len(first) > 1 else (last,))]


Head = Window | Recurrent


def mean(dim: int, steps: int) -> Head:
    return Window(dim, steps, spread=False)


def spread(dim: int, steps: int) -> Head:
    """Mean and standard deviation over the look: 2 D values."""
    return Window(dim, steps, spread=True)


def gru(dim: int, steps: int, width: Count = 128, layers: Count = 1, dropout: float = 0.0) -> Head:
    return Recurrent(nn.GRU, dim, width, layers, dropout)


def lstm(dim: int, steps: int, width: Count = 128, layers: Count = 1, dropout: float = 0.0) -> Head:
    return Recurrent(nn.LSTM, dim, width, layers, dropout)


TEMPORAL: dict[str, Callable[..., Head]] = {"mean": mean, "spread": spread, "gru": gru, "lstm": lstm}
