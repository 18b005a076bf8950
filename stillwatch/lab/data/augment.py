"""Augmentation on the batch, a pure function of (seed, sample, view)."""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Annotated, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from stillwatch.registry import Spec, build, find, resolve

Draws: TypeAlias = NDArray[np.float64]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


def number(name: str) -> int:
    """A sample's id -> the 64-bit number that seeds its draws."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())


def draws(seed: int, samples: NDArray[np.uint64], view: int, salt: str, count: int) -> Draws:
    """Uniform numbers in [0, 1), (B, count), from a counter-based generator (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):  # wrapping round 2**64 is the method
        start = np.uint64(zlib.crc32(f"{seed}/{view}/{salt}".encode()))
        state = _mix(samples.astype(np.uint64) ^ (start * np.uint64(0x9E3779B97F4A7C15)))
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mix(state[:, None] + steps[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# Each op: float (B,C,H,W) in 0..255 and uniform draws (B,5) -> the same shape.


def crop(x: Tensor, u: Tensor, scale: Annotated[float, Field(ge=0.05, le=1)] = 0.7, ratio: float = 0.1) -> Tensor:
    """Stretch a window of `scale`..1 of the area, its aspect off by up to `ratio` (Szegedy 2014)."""
    wide, high, right, down = _window(u, scale, ratio)
    zero = torch.zeros_like(wide)
    theta = torch.stack([torch.stack([wide, zero, right], 1), torch.stack([zero, high, down], 1)], 1)
    grid = F.affine_grid(theta.to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def crop_moves(at: Tensor, u: Tensor, scale: float = 0.7, ratio: float = 0.1) -> Tensor:
    wide, high, right, down = _window(u, scale, ratio)
    size, middle = torch.stack([wide, high], 1)[:, None], 0.5 + torch.stack([right, down], 1)[:, None] / 2
    return torch.cat([(at[..., :2] - middle) / size + 0.5, at[..., 2:] / size], -1)


def _window(u: Tensor, scale: float, ratio: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B,) each: width, height, and offset of its middle, -1 to 1."""
    area = scale + (1 - scale) * u[:, 0]
    aspect = torch.exp((2 * u[:, 1] - 1) * math.log1p(ratio))
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    return wide, high, (2 * u[:, 2] - 1) * (1 - wide), (2 * u[:, 3] - 1) * (1 - high)


def flip(x: Tensor, u: Tensor) -> Tensor:
    return x.flip(-1)


def flip_moves(at: Tensor, u: Tensor) -> Tensor:
    return torch.cat([1 - at[..., :1], at[..., 1:]], -1)


def contrast(x: Tensor, u: Tensor, by: float = 0.3) -> Tensor:
    """Stretch the distance from the picture's mean by 1-by..1+by."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * _spread(u[:, 0], by)


def gamma(x: Tensor, u: Tensor, by: float = 0.3) -> Tensor:
    """Raise the picture, as 0..1, to a power in 1/(1+by)..1+by."""
    power = torch.exp((2 * u[:, 0] - 1) * math.log1p(by)).view(-1, 1, 1, 1)
    return 255 * (x.clamp(0, 255) / 255) ** power


def brightness(x: Tensor, u: Tensor, by: float = 0.2) -> Tensor:
    """Multiply by 1-by..1+by."""
    return x * _spread(u[:, 0], by)


def noise(x: Tensor, u: Tensor, std: float = 8.0) -> Tensor:
    """Add Gaussian noise of up to `std` grey levels."""
    size = x[0].numel()
    bank = torch.from_numpy(_NOISE).to(x.device)
    start = (u[:, 0] * len(_NOISE)).long()
    # A window of one fixed bank, its start and stride drawn a sample: as good as fresh noise, and it replays
    stride = 2 * (u[:, 1] * 512).long() + 1
    at = (start[:, None] + stride[:, None] * torch.arange(size, device=x.device)) % len(_NOISE)
    grain = bank[at].view_as(x).to(x.dtype)
    return x + grain * (std * u[:, 2]).view(-1, 1, 1, 1).to(x.dtype)


def blur(x: Tensor, u: Tensor) -> Tensor:
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return torch.lerp(x, soft, u[:, 0].view(-1, 1, 1, 1).to(x.dtype))


def erase(x: Tensor, u: Tensor, area: Share = 0.15) -> Tensor:
    """Paint a rectangle of up to `area` grey (Zhong et al. 2017)."""
    high, wide = x.shape[-2:]
    share = area * (0.2 + 0.8 * u[:, 0])
    aspect = torch.exp((2 * u[:, 1] - 1) * math.log(3))
    h, w = (share * aspect).sqrt().clamp(max=1) * high, (share / aspect).sqrt().clamp(max=1) * wide
    top, left = u[:, 2] * (high - h), u[:, 3] * (wide - w)
    rows, cols = torch.arange(high, device=x.device), torch.arange(wide, device=x.device)
    inside_y = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    inside_x = (cols >= left[:, None]) & (cols < (left + w)[:, None])
    inside = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
    grey = (255 * u[:, 4]).view(-1, 1, 1, 1).to(x.dtype)
    return torch.where(inside, grey, x)


# Ops on time: float (B,T,C,H,W) and draws (B,5) -> the same shape. All other ops treat a look's frames alike.


def reverse(x: Tensor, u: Tensor) -> Tensor:
    """Play the look backwards, where labels allow it."""
    return x.flip(1)


def speed(x: Tensor, u: Tensor, by: Annotated[float, Field(gt=0)] = 0.5) -> Tensor:
    """Slow the look down to 1/(1+by) of its speed, up to its newest frame, blending frames."""
    # Never faster: that takes frames from before the look, which a sample does not hold
    last = x.shape[1] - 1
    slow = torch.exp(-u[:, 0] * math.log1p(by))
    at = last - (last - torch.arange(last + 1, device=x.device)) * slow[:, None]  # (B,T), in frames
    low = at.floor().long().clamp(max=max(last - 1, 0))
    share = (at - low).view(*at.shape, 1, 1, 1).to(x.dtype)
    row = torch.arange(len(x), device=x.device)[:, None]
    return torch.lerp(x[row, low], x[row, (low + 1).clamp(max=last)], share)


def _spread(u: Tensor, by: float) -> Tensor:
    return (1 + (2 * u - 1) * by).view(-1, 1, 1, 1).float()


_NOISE = np.random.Generator(np.random.Philox(20250922)).standard_normal(1 << 18, dtype=np.float32)


@dataclass(frozen=True)
class Op:
    salt: str  # keeps its draws apart from the others'
    apply: Callable[[Tensor, Tensor], Tensor]
    p: float  # share of samples that it touches
    timed: bool = False  # it takes (B,T,C,H,W)
    moves: Callable[[Tensor, Tensor], Tensor] | None = None  # where it takes regions (B,R,4); None: it moves nothing


@dataclass(frozen=True)
class Augment:
    steps: tuple[Op, ...]
    seed: int
    mixup: float = 0.0  # its alpha; 0: none

    def __bool__(self) -> bool:
        return bool(self.steps or self.mixup)

    def __call__(self, x: Tensor, samples: NDArray[np.uint64], view: int) -> Tensor:
        """x: uint8 (B,T,H,W,C), a clip's frames alike; samples: (B,) from number(); view: of each sample."""
        if not self.steps:
            return x
        b, t, h, w, c = x.shape
        planes = x.permute(0, 1, 4, 2, 3).reshape(b, t * c, h, w).float()
        for op, rows, u in self._chosen(samples, view, x.device):
            if op.timed:
                planes[rows] = op.apply(planes[rows].unflatten(1, (t, c)), u).flatten(1, 2)
            else:
                planes[rows] = op.apply(planes[rows], u)
        planes = planes.clamp_(0, 255).round_().to(torch.uint8)
        return planes.view(b, t, c, h, w).permute(0, 1, 3, 4, 2).contiguous()

    def moved(self, regions: Tensor, samples: NDArray[np.uint64], view: int) -> Tensor:
        """(B,R,4), FaceTable.regions -> where __call__ takes them."""
        regions = regions.clone()
        for op, rows, u in self._chosen(samples, view, regions.device):
            if op.moves:
                regions[rows] = op.moves(regions[rows], u)
        return regions

    def _chosen(
        self, samples: NDArray[np.uint64], view: int, device: torch.device
    ) -> Iterator[tuple[Op, Tensor, Tensor]]:
        for op in self.steps:
            u = draws(self.seed, samples, view, op.salt, 6)
            rows = np.flatnonzero(u[:, 5] < op.p)
            if len(rows):
                yield op, torch.from_numpy(rows).to(device), torch.from_numpy(u[rows, :5]).to(device, torch.float32)

    def partners(self, samples: NDArray[np.uint64], view: int, among: int) -> tuple[NDArray[np.int64], Draws]:
        """mixup (Zhang et al. 2017): each sample's partner (B,) of `among` rows, and its own share (B,) in [0.5, 1]."""
        from scipy.special import betaincinv

        u = draws(self.seed, samples, view, "mixup", 2)
        share = betaincinv(self.mixup, self.mixup, u[:, 1])
        return (u[:, 0] * among).astype(np.int64), np.maximum(share, 1 - share)


def mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """uint8 (B,...) × 2, shares (B,) -> share·a + (1-share)·b."""
    share = share.view(-1, *[1] * (a.ndim - 1)).float()
    return (a * share + b * (1 - share)).round_().to(torch.uint8)


def mixup(alpha: Annotated[float, Field(gt=0)] = 0.2) -> float:
    """Blend with another training sample: Augment.partners, mix."""
    return alpha


def plan(specs: Sequence[Spec], seed: int) -> Augment:
    """The recipe's `fit.augment`. Raises UserError."""
    steps, alpha = [], 0.0
    table = AUGMENTS | {"mixup": mixup}
    for place, spec in enumerate(specs):
        if find(table, spec, "fit.augment") is mixup:
            alpha = build(table, spec, place="fit.augment")
            continue
        choice = resolve(table, spec, 2, "fit.augment", extra={"p": Share})
        name = spec if isinstance(spec, str) else spec["name"]
        p = choice.extra.get("p", SHARES.get(name, 1.0))
        timed, moves = choice.entry in (reverse, speed), MOVES.get(choice.entry)
        follow = partial(moves, **choice.options) if moves else None
        steps.append(Op(f"{place}/{name}", partial(choice.entry, **choice.options), p, timed, follow))
    return Augment(tuple(steps), seed, alpha)


AUGMENTS: dict[str, Callable[..., Tensor]] = {
    "crop": crop,
    "flip": flip,
    "contrast": contrast,
    "gamma": gamma,
    "brightness": brightness,
    "noise": noise,
    "blur": blur,
    "erase": erase,
    "reverse": reverse,
    "speed": speed,
}
MOVES: dict[Callable[..., Tensor], Callable[..., Tensor]] = {crop: crop_moves, flip: flip_moves}
# Of samples an op touches by default; others: all
SHARES = {"flip": 0.5, "reverse": 0.5, "speed": 0.5, "noise": 0.5, "blur": 0.2, "erase": 0.25}
