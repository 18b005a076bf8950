"""The naive loop of the papers' code: every epoch opens every file again, every step asks the teacher again.

In: a recipe whose pictures are files. Out: a trained net, and how much was spent. Called by distil.py.
Nets, losses, rates and augmentation are the lab's own, so that only the way they are fed differs. It keeps nothing.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from stillwatch.errors import UserError
from stillwatch.lab.data import augment
from stillwatch.lab.data.dataset import SPLITS
from stillwatch.lab.data.reader import gather
from stillwatch.lab.data.sources import Sample
from stillwatch.lab.data.splits import assign
from stillwatch.lab.models import classifier
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.training import losses, pipeline
from stillwatch.lab.training.loop import TrainStep, rate
from stillwatch.media import image as pixels
from stillwatch.recipe import Fit, Recipe


@dataclass
class Spent:
    """What one side of one stage did, and what it took."""

    seen: int = 0  # training pictures that went through the net, each epoch's counted anew
    accuracy: float = 0.0  # on the validation split, after the last epoch
    seconds: float = 0.0
    processor: float = 0.0  # seconds of all cores and workers: what a busy machine does not blur
    memory: float = 0.0  # bytes, at the highest
    phases: dict[str, float] = field(default_factory=dict)  # parts of the seconds


class Files(Dataset[tuple[Tensor, int]]):
    """What the papers' code has: an item is a file, opened, decoded, resized and changed whenever it is asked for.

    `change` draws a new look each time, as transforms of a data set do. Normalising is left to the net's front door,
    for a whole batch at once: the same work in fewer calls.
    """

    def __init__(self, samples: Sequence[Sample], task: Recipe, change: augment.Augment | None = None):
        self.change = change
        self.paths = [str(sample.path) for sample in samples]
        self.y = [task.labels.index(sample.label) for sample in samples]
        self.numbers = np.array([augment.number(sample.id) for sample in samples], np.uint64)
        self.data = task.data

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        image = cv2.imread(self.paths[row], cv2.IMREAD_COLOR)
        if image is None:
            raise UserError(f"{Path(self.paths[row]).name}: cannot be decoded")
        rgb: Any = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        x = torch.from_numpy(pixels.fit(rgb, self.data.hw, self.data.fit, self.data.channels))[None]  # (T=1,h,w,C)
        if self.change:
            x = self.change(x[None], self.numbers[[row]], int(torch.randint(1 << 30, ())))[0]
        return x, self.y[row]


@dataclass(frozen=True)
class Naive:
    """The naive loop, with what is the same for both its stages. It splits the data outside of the measured time."""

    task: Recipe
    split: dict[str, list[Sample]]
    workers: int

    @classmethod
    def of(cls, task: Recipe, workers: int) -> "Naive":
        samples = assign(gather(task).samples, task.data)
        return cls(task, {name: [s for s in samples if s.split == name] for name in SPLITS}, workers)

    def learn(self, side: Literal["teacher", "student"], teacher_net: Classifier | None, spent: Spent) -> Classifier:
        """One stage from the first epoch to the test split: the recipe's nets, losses, rates, batch and epochs.

        Given to the naive side for nothing: frozen layers without gradients, channels_last, no checkpoint, no audit.
        """
        plan = self.task.fit_of(side)
        change = augment.plan(plan.augment, plan.seed)
        if change.mixup:
            raise UserError("fit.augment.mixup: the naive loop has no mixup; leave it out for the benchmark")
        device = accelerator(plan).device
        torch.manual_seed(plan.seed)
        net = classifier.build_side(self.task, side)
        step = TrainStep(
            net,
            losses.parts(pipeline.losses_of(plan, teacher_net is not None), self._task(net, teacher_net)),
        )
        step.to(device)
        if teacher_net:
            teacher_net.to(device).eval().requires_grad_(False)
        optimizer = OPTIMIZERS[plan.optimizer]([p for p in step.parameters() if p.requires_grad], plan)
        train = self._loader("train", min(plan.batch, len(self.split["train"])), change)
        valid, test = self._loader("valid", 128), self._loader("test", 128)
        for epoch in range(plan.epochs):
            spent.seen += self._epoch(epoch, step, teacher_net, optimizer, train, plan)
            spent.accuracy = _accuracy(net, valid, device)
        _accuracy(net, test, device)
        return net

    def _task(self, net: Classifier, teacher_net: Classifier | None) -> losses.Task:
        counts = Counter(self.task.labels.index(sample.label) for sample in self.split["train"])
        return losses.Task(
            labels=len(self.task.labels),
            counts=tuple(counts[number] for number in range(len(self.task.labels))),
            head=net.kind,
            student=losses.Shape(net.dim, net.channels),
            teacher=losses.Shape(teacher_net.dim, teacher_net.channels) if teacher_net else None,
        )

    def _loader(self, split: str, batch: int, change: augment.Augment | None = None) -> DataLoader[Any]:
        files, train = Files(self.split[split], self.task, change), split == "train"
        keep = self.workers > 0 and split != "test"  # or every epoch would start its workers anew
        return DataLoader(files, batch, train, drop_last=train, num_workers=self.workers, persistent_workers=keep)

    def _epoch(
        self,
        epoch: int,
        step: TrainStep,
        teacher_net: Classifier | None,
        optimizer: torch.optim.Optimizer,
        batches: DataLoader[Any],
        plan: Fit,
    ) -> int:
        """Returns how many pictures went through the net."""
        device = next(step.parameters()).device
        seen = 0
        step.train()
        for number, (pictures, labels) in enumerate(batches):
            now = epoch * len(batches) + number
            for group in optimizer.param_groups:
                group["lr"] = rate(plan, now, len(batches))
            x, y = pictures.to(device), labels.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
                with torch.no_grad():
                    teacher = teacher_net(x, step.maps) if teacher_net else None
                parts = step(step.net.frozen_forward(x), y, teacher, now / max(1, len(batches) * plan.epochs - 1))
            loss = torch.stack(list(parts.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            if plan.clip:
                nn.utils.clip_grad_norm_(step.parameters(), plan.clip)
            optimizer.step()
            seen += len(y)
        return seen


@torch.inference_mode()
def _accuracy(net: Classifier, batches: DataLoader[Any], device: torch.device) -> float:
    net.eval()
    right = [net(x.to(device)).logits.argmax(1) == y.to(device) for x, y in batches]
    return float(torch.cat(right).float().mean())


def accelerator(plan: Fit) -> Accelerator:
    return Accelerator(cpu=plan.device == "cpu", mixed_precision="no" if plan.precision == "fp32" else "bf16")


# The papers' code takes torch's optimizers as they are; the recipe's numbers go into them
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], Fit], torch.optim.Optimizer]] = {
    "adam": lambda of, plan: torch.optim.Adam(of, lr=plan.lr, weight_decay=plan.weight_decay),
    "adamw": lambda of, plan: torch.optim.AdamW(of, lr=plan.lr, weight_decay=plan.weight_decay),
    "sgd": lambda of, plan: torch.optim.SGD(of, lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay),
}
