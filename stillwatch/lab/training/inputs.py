"""The training loop's input: augmented pictures, frozen features and teacher outputs, from disk where possible."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from stillwatch import metrics
from stillwatch.errors import UserError
from stillwatch.lab.data import augment, cache
from stillwatch.lab.models.classifier import Classifier, ModelOutput
from stillwatch.lab.models.ensemble import Ensemble, Teacher
from stillwatch.recipe import Fit
from stillwatch.run import Progress, Unlabelled

if TYPE_CHECKING:
    from stillwatch.lab.data.dataset import Dataset
    from stillwatch.lab.training.loop import Batch, TrainStep

Rows: TypeAlias = NDArray[np.int64]
Compute: TypeAlias = Callable[[Rows, int], dict[str, Tensor]]  # (rows, view) -> name -> (B,...)
Stored: TypeAlias = dict[str, NDArray[np.floating]]  # name -> (V,N,...)
MOST = 10  # times that a rare class's unlabelled samples are repeated for balance


class InputPipeline:
    """A fixed number of views is computed once and read from disk; new views each epoch when needed."""

    def __init__(
        self,
        data: "Dataset",
        step: "TrainStep",
        teacher: Teacher | None,
        plan: Fit,
        accelerator: Accelerator,
        progress: Progress,
    ):
        net, maps = step.net, step.maps
        self.data, self.net, self.teacher, self.maps = data, net, teacher, maps
        self.plan, self.accelerator, self.progress = plan, accelerator, progress
        self.train = data.rows["train"]
        self.labelled = bool((data.y[self.train] >= 0).all())
        self.seen, self.seen_rows = data.for_teacher(self.train, progress) if teacher else (data, self.train)
        self.augment = augment.plan(plan.augment, plan.seed)
        self.views = (plan.views or 0) if self.augment else 1
        self.regions: Tensor | None = None  # (N,3,4) of the training samples
        if step.regions:
            from stillwatch.lab.faces import faces  # and with it a runtime, only where it is asked for

            with accelerator.main_process_first():
                table = faces(data.samples, data.store.content, progress)
            self.regions = self._tensor(table.regions(data.recipe.data)[self.train])
        self.features: NDArray[np.floating] | None = None
        self.answers: Stored = {}
        self.told: Tensor | None = None  # (N,K) logits that the teacher's signals add to its net's
        if teacher:
            teacher.to(accelerator.device).eval().requires_grad_(False)
        if self.views and net.frozen_steps:
            self.features = self._frozen(net)
        if self.views and teacher:
            # where the teacher's frozen features were stored when it was taught, its outputs start from them
            early = None
            if isinstance(teacher, Classifier) and teacher.frozen_steps and not teacher.early(maps):
                early = self._frozen(teacher, True)

            def answer(rows: Rows, view: int) -> dict[str, Tensor]:
                assert teacher
                with self._teacher_precision():
                    if early is None or isinstance(teacher, Ensemble):
                        return to_arrays(teacher(self._pictures(rows, view, True), maps))
                    return to_arrays(teacher.forward_from(self._tensor(early[view, rows]), maps))

            more = f"{teacher.key} {maps}" + " bf16" * (plan.teacher_precision == "bf16")
            self.answers = self._once("teacher", teacher.state_dict(), more, answer, True)

    def batch(self, rows: Rows, epoch: int) -> "Batch":
        """As loop.Batch; labels may be mixed (B,K), or none (0,)."""
        view = epoch % self.views if self.views else epoch
        x = self._pictures(rows, view) if self.features is None else None
        h = self._tensor(self.features[view, rows]) if self.features is not None else self.net.frozen_forward(x)  # type: ignore[arg-type]
        teacher = None
        if self.answers:
            teacher = from_arrays({name: self._tensor(a[view, rows]).float() for name, a in self.answers.items()})
        elif self.teacher:
            shared = x is not None and self.seen is self.data
            with torch.no_grad(), self._teacher_precision():
                said = self.teacher(x if shared else self._pictures(rows, view, True), self.maps)
            teacher = from_arrays({name: value.float() for name, value in to_arrays(said).items()})
        if teacher and self.told is not None:
            told = self.told[rows]
            if self.augment.mixup:
                others, share = self._partners(rows, view)
                told = torch.lerp(self.told[others], told, self._tensor(share).float()[:, None])
            teacher = teacher._replace(logits=teacher.logits.log_softmax(1) + told)
        regions = self.regions
        if regions is not None:
            regions = self.augment.moved(regions[rows], self.data.numbers[self.train[rows]], view)
        return h, self._labels(rows, view), teacher, regions

    def _teacher_precision(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, self.plan.teacher_precision == "bf16")

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.accelerator.device)

    def _augmented(self, rows: Rows, view: int, taught: bool) -> Tensor:
        x = self.seen.picture(self.seen_rows[rows]) if taught else self.data.picture(self.train[rows])
        x = x.to(self.accelerator.device)
        return self.augment(x, self.data.numbers[self.train[rows]], view)

    def _partners(self, rows: Rows, view: int) -> tuple[Rows, NDArray[np.floating]]:
        return self.augment.partners(self.data.numbers[self.train[rows]], view, len(self.train))

    def _pictures(self, rows: Rows, view: int, taught: bool = False) -> Tensor:
        """uint8 (B,T,H,W,C), augmented; `taught`: as the teacher sees them, augmented alike."""
        x = self._augmented(rows, view, taught)
        if self.augment.mixup:
            others, share = self._partners(rows, view)
            x = augment.mix(x, self._augmented(others, view, taught), self._tensor(share))
        return x

    def _labels(self, rows: Rows, view: int) -> Tensor:
        y = self._tensor(self.data.y[self.train[rows]] if self.labelled else self.train[:0])
        if not self.augment.mixup or not self.labelled:
            return y
        others, share = self._partners(rows, view)
        weight, classes = self._tensor(share).to(torch.float32)[:, None], len(self.data.recipe.labels)
        mixed = one_hot(self._tensor(self.data.y[self.train[others]]), classes).float()
        return weight * one_hot(y, classes).float() + (1 - weight) * mixed

    def said(self) -> NDArray[np.floating]:
        """(N,K): the teacher's probabilities for the plain pictures."""

        def compute(rows: Rows, view: int) -> dict[str, Tensor]:
            assert self.teacher
            x = self.seen.picture(self.seen_rows[rows]).to(self.accelerator.device)
            return {"p": self.teacher.probabilities(self.teacher(x).logits.float())}

        assert self.teacher
        stored = self._once("teacher", self.teacher.state_dict(), f"{self.teacher.key} plain", compute, True, 1)["p"][0]
        p = np.asarray(stored, np.float32)
        return p if self.told is None else metrics.normalised(p * self.told.exp().cpu().numpy())

    def _frozen(self, net: Classifier, taught: bool = False) -> NDArray[np.floating]:
        compute: Compute = lambda rows, view: {"h": net.frozen_forward(self._pictures(rows, view, taught))}  # noqa: E731
        return self._once("features", net.frozen_state(), net.key, compute, taught)["h"]

    def _once(
        self,
        what: str,
        weights: dict[str, Tensor],
        more: str,
        compute: Compute,
        taught: bool = False,
        views: int | None = None,
    ) -> Stored:
        data, plan = self.data, self.plan
        ids = cache.short([f"{data.samples[row].id}\t{data.y[row]}" for row in self.train])
        drawn = f"{plan.augment} {plan.seed}" if self.augment else ""
        key = [data.store.key, ids, drawn, cache.digest(weights), f"{more} {plan.precision}"]
        if taught and self.seen is not data:
            key += [self.seen.store.key, *(self.seen.samples[row].id for row in self.seen_rows)]
        size = 16 if self.accelerator.device.type == "cpu" else 256  # a CPU's caches hold the maps of 16, not of 64
        with self.accelerator.main_process_first():
            return cache.outputs(compute, len(self.train), views or self.views, key, self.progress, what, size)


def joined(parts: Sequence[InputPipeline], rows: Rows, epoch: int) -> "Batch":
    """Rows of several pipelines, numbered consecutively; only the first has labels."""
    ends = np.cumsum([len(part.train) for part in parts])
    which = np.searchsorted(ends, rows, side="right")
    order = sorted(set(which.tolist()))
    starts = [int(ends[n]) - len(parts[n].train) for n in order]
    found = [parts[n].batch(rows[which == n] - start, epoch) for n, start in zip(order, starts, strict=True)]
    if len(found) == 1:
        return found[0]
    h, y, teachers, regions = zip(*found, strict=True)
    answers = [to_arrays(teacher) for teacher in teachers if teacher]
    taught = {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
    return torch.cat(h), y[0], from_arrays(taught), None if regions[0] is None else torch.cat(regions)


def worth_teaching(parts: Sequence[InputPipeline], plan: Fit, start: int) -> tuple[Rows, Unlabelled]:
    """Rows without label, from `start`, of which the teacher is sure enough. Raises UserError for none."""
    p = np.concatenate([part.said() for part in parts])
    sure = np.flatnonzero(p.max(1) >= plan.confidence)
    if not len(sure):
        raise UserError(f"fit.confidence = {plan.confidence}: of no unlabelled sample is the teacher so sure")
    each = [own for k in range(p.shape[1]) if len(own := sure[p[sure].argmax(1) == k])]
    counts = np.bincount(p[sure].argmax(1), minlength=p.shape[1]).tolist()
    named = dict(zip(parts[0].data.recipe.labels, counts, strict=True))
    if plan.balance:
        most = max(map(len, each))
        sure = np.concatenate([np.resize(own, min(most, MOST * len(own))) for own in each])
    return start + sure, Unlabelled(samples=len(p), used=sum(counts), named=named)


def to_arrays(out: ModelOutput) -> dict[str, Tensor]:
    return {"logits": out.logits, "feature": out.feature, **{f"map{s}": m for s, m in out.maps.items()}}


def from_arrays(arrays: dict[str, Tensor]) -> ModelOutput:
    maps = {int(name[3:]): value for name, value in arrays.items() if name.startswith("map")}
    return ModelOutput(arrays["logits"], arrays["feature"], maps)
