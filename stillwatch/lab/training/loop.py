"""The training loop for teachers and students, which differ only in their losses. Imports no cache and no data set."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from stillwatch.errors import UserError
from stillwatch.lab.models.classifier import Classifier, ModelOutput
from stillwatch.lab.training import trackers
from stillwatch.recipe import Fit
from stillwatch.run import Progress, Run

# Input of net.forward_from, labels (L,) or (L,K), the teacher's outputs, and regions (B,3,4) where a loss asks for them
Batch = tuple[Tensor, Tensor, ModelOutput | None, Tensor | None]
EpochCallback = Callable[[int, dict[str, float]], bool]  # (epoch, validation figures) -> whether that is enough


@dataclass(frozen=True)
class BatchSource:
    """batch(rows, epoch) on the right device; only its first rows have labels."""

    count: int  # of samples with a label
    batch: Callable[[NDArray[np.int64], int], Batch]
    unlabelled: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # rows to draw from


class TrainStep(nn.Module):
    """One module: a loss's own weights (a projector) are trained and shared too."""

    def __init__(self, net: Classifier, parts: dict[str, tuple[float, nn.Module]]):
        super().__init__()
        self.net = net
        self.weights = {name: weight for name, (weight, _) in parts.items()}
        self.parts = nn.ModuleDict({name: part for name, (_, part) in parts.items()})
        losses: Sequence[Any] = [part for _, part in parts.values()]
        self.maps = tuple(sorted({stride for part in losses for stride in part.maps}))
        self.regions = any(getattr(part, "regions", None) for part in losses)

    def forward(
        self, h: Tensor, y: Tensor, teacher: ModelOutput | None, progress: float, regions: Tensor | None = None
    ) -> dict[str, Tensor]:
        """h: from net.frozen_forward. y: of its first samples. progress: 0 to 1. Returns the weighted parts."""
        out = self.net.forward_from(h, self.maps)
        # Losses work in full precision, whatever the net ran in
        maps = {s: m.float() for s, m in out.maps.items()}
        out = ModelOutput(out.logits.float(), out.feature.float(), maps, regions)
        # Samples behind those with a label are seen by those parts alone that learn from a teacher
        own = first(out, len(y)), teacher and first(teacher, len(y))
        return {
            name: self.weights[name]
            * part(*((out, teacher) if getattr(part, "needs_teacher", False) else own), y, progress)
            for name, part in self.parts.items()
        }


def first(out: ModelOutput, count: int) -> ModelOutput:
    regions = None if out.regions is None else out.regions[:count]
    return ModelOutput(out.logits[:count], out.feature[:count], {s: m[:count] for s, m in out.maps.items()}, regions)


@dataclass
class TrainState:
    epoch: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    stale: int = 0  # epochs since the best one


def fit(
    step: TrainStep,
    lesson: BatchSource,
    judge: Callable[[Classifier], dict[str, float]],
    plan: Fit,
    run: Run,
    accelerator: Accelerator,
    progress: Progress,
    after: EpochCallback | None = None,
) -> dict[str, Any]:
    """Train step.net for plan.epochs, or from where `run` stopped. Returns the kept epoch's figures.

    judge: net -> validation figures, including plan.metric. after: gets each epoch's; True ends the training. Writes
    best.pt, last.pt and metrics.jsonl. Raises UserError where the loss is not a number.
    """
    # A resumed run gives an unbroken one's numbers: rates, orders and chance depend only on (seed, epoch, step)
    # ---- what is trained, and by what
    optimizer = _optimizer(step, plan)
    prepared, optimizer = accelerator.prepare(step, optimizer)
    average = {name: value.detach().clone() for name, value in step.net.state_dict().items()} if plan.ema else None
    steps = max(1, lesson.count // plan.batch)

    # ---- where it was cut off
    state = _resume(run, step, optimizer, average)
    if accelerator.is_main_process:
        run.rewind(state.epoch)

    for epoch in range(state.epoch + 1, plan.epochs + 1):
        # ---- one epoch
        started = time.perf_counter()
        chance = np.random.SeedSequence((plan.seed, epoch, accelerator.process_index))
        torch.manual_seed(int(chance.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        prepared.train()
        meter = Meter(list(step.parts))
        order = _order(lesson, plan, epoch)
        for number, rows in progress.bar(enumerate(order), steps, f"epoch {epoch}/{plan.epochs}"):
            now = (epoch - 1) * steps + number
            for group in optimizer.param_groups:
                group["lr"] = rate(plan, now, steps)
            mine = rows[accelerator.process_index :: accelerator.num_processes]
            h, y, teacher, regions = lesson.batch(mine, epoch - 1)
            parts = prepared(h, y, teacher, now / max(1, steps * plan.epochs - 1), regions)
            meter.add(parts)
            optimizer.zero_grad()
            accelerator.backward(sum(parts.values()))
            if plan.clip:
                accelerator.clip_grad_norm_(step.parameters(), plan.clip)
            optimizer.step()
            if average is not None:
                _follow(average, step.net, plan.ema, now)
        train = meter.means(accelerator, epoch)

        # ---- judge, log, save
        with swapped_ema(step.net, average):
            figures = judge(step.net)
            enough = after is not None and after(epoch, figures)
            name, sign = plan.metric, -1 if plan.metric == "loss" else 1
            better = plan.select == "last" or not state.best or sign * figures[name] > sign * state.best[name]
            state.stale = 0 if better else state.stale + 1
            row = dict[str, Any](epoch=epoch, seconds=time.perf_counter() - started, lr=rate(plan, now, steps))
            row |= {"train": train, "valid": figures}
            if better:
                state.best = {"epoch": epoch, **figures}
            state.epoch = epoch
            if accelerator.is_main_process:
                run.log(row)
                accelerator.log(trackers.figures(row), step=epoch)
                progress.say(_line(row, plan.epochs, better and plan.select == "best"))
                if better and (plan.select == "best" or enough or epoch == plan.epochs):
                    kept = {"net": step.net.state_dict(), "epoch": epoch, "valid": figures}
                    run.save("best.pt", partial(torch.save, kept))
        if accelerator.is_main_process:
            checkpoint = {"step": step.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            run.save("last.pt", partial(torch.save, checkpoint | {"progress": vars(state)}))
        accelerator.wait_for_everyone()
        if enough:
            break
        if plan.patience and state.stale >= plan.patience:
            progress.say(f"stopped early: no better {plan.metric} for {plan.patience} epochs")
            break
    return state.best


class Meter:
    """Means over an epoch, kept on the device: reading a number each step would stall a GPU."""

    def __init__(self, names: list[str]):
        self.names = names
        self.total: Tensor | None = None  # (P,)
        self.first_bad: Tensor | None = None  # (P,) the step at which a part first was no number
        self.count = 0

    def add(self, parts: dict[str, Tensor]) -> None:
        values = torch.stack([parts[name].detach() for name in self.names])
        if self.total is None or self.first_bad is None:
            self.total = torch.zeros_like(values)
            self.first_bad = torch.full_like(values, math.inf)
        self.total += values
        step = torch.full_like(values, self.count)
        self.first_bad = torch.where(values.isfinite(), self.first_bad, torch.minimum(self.first_bad, step))
        self.count += 1

    def means(self, accelerator: Accelerator, epoch: int) -> dict[str, Any]:
        """Over all processes. Raises UserError where one is not a number."""
        assert self.total is not None and self.first_bad is not None
        total = accelerator.reduce(self.total / self.count, "mean").tolist()
        first_bad = accelerator.gather(self.first_bad[None]).amin(0).tolist()
        if min(first_bad) < math.inf:
            step = min(first_bad)
            name = " and ".join(n for n, bad in zip(self.names, first_bad, strict=True) if bad == step)
            raise UserError(
                f"fit.loss.{name}: no longer a number at step {int(step) + 1} of this epoch. Lower fit.lr, set "
                f"fit.clip = 1, or lower this part's weight{'; last.pt holds the epoch before' if epoch > 1 else ''}"
            )
        loss = sum(total)
        size = sum(abs(value) for value in total) or 1.0
        return {
            "loss": loss,
            "parts": dict(zip(self.names, total, strict=True)),
            "share": {name: abs(value) / size for name, value in zip(self.names, total, strict=True)},
        }


def rate(plan: Fit, step: int, steps: int) -> float:
    """Linear warm-up, then constant or half a cosine to zero (Loshchilov 2016)."""
    warmup = round(plan.warmup * steps)
    if step < warmup:
        return plan.lr * (step + 1) / warmup
    if plan.schedule == "constant":
        return plan.lr
    return plan.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps * plan.epochs - warmup)))


def _order(lesson: BatchSource, plan: Fit, epoch: int) -> Iterator[NDArray[np.int64]]:
    # plan.unlabelled of each batch, its last rows, have no label; an epoch has as many batches as without them
    rows = np.random.default_rng((plan.seed, epoch)).permutation(lesson.count)
    size, chance = min(plan.batch, lesson.count), np.random.default_rng((plan.seed, epoch, 1))
    few = min(round(plan.unlabelled * size), size - 1) if len(lesson.unlabelled) else 0
    others = np.empty(0, np.int64)
    for start in range(0, lesson.count - size + 1, size):  # no short last batch: batch norm needs more samples
        while len(others) < few:  # each comes once before any comes again
            others = np.concatenate([others, chance.permutation(lesson.unlabelled)])
        yield np.concatenate([rows[start : start + size - few], others[:few]])
        others = others[few:]


def _optimizer(step: TrainStep, plan: Fit) -> Optimizer:
    trained = [p for p in step.parameters() if p.requires_grad]
    groups = [  # no decay for biases and norms (He et al. 2019, bag of tricks)
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=plan.momentum, nesterov=plan.momentum > 0, fused=True)
    kind = torch.optim.AdamW if plan.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=plan.lr, fused=True)


def _resume(run: Run, step: TrainStep, optimizer: Optimizer, average: dict[str, Tensor] | None) -> TrainState:
    path = run.path / "last.pt"
    if not path.is_file():
        return TrainState()
    state = torch.load(path, map_location=next(step.parameters()).device, weights_only=True)
    step.load_state_dict(state["step"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.update(state["average"])
    return TrainState(**state["progress"])


@torch.no_grad()
def _follow(average: dict[str, Tensor], net: nn.Module, decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))  # a young average follows faster, to forget the start
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


@contextmanager
def swapped_ema(net: nn.Module, average: dict[str, Tensor] | None) -> Iterator[None]:
    """The net has the average's weights meanwhile."""
    if average is None:
        yield
        return
    own = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(average)
    try:
        yield
    finally:
        net.load_state_dict(own)


def _line(row: dict[str, Any], epochs: int, kept: bool) -> str:
    valid = row["valid"]
    return (
        f"epoch {row['epoch']:>3}/{epochs}  train loss {row['train']['loss']:.3f}  valid loss {valid['loss']:.3f}  "
        f"accuracy {100 * valid['accuracy']:5.1f} %  macro-F1 {valid['macro_f1']:.3f}  {row['seconds']:.0f} s"
        + ("  *" if kept else "")
    )
