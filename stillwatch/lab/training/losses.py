"""Losses: named parts, each (student ModelOutput, teacher ModelOutput or None, y, progress) -> scalar.

Imports no net and no data.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillwatch.errors import UserError, nearest
from stillwatch.lab.models.classifier import ModelOutput
from stillwatch.registry import Spec, find

OUTSIDE = 0.25  # weight of attention outside the regions


@dataclass(frozen=True)
class Shape:
    feature: int
    maps: dict[int, int]  # stride -> channels


@dataclass(frozen=True)
class Task:
    labels: int  # K
    counts: tuple[int, ...]  # training samples a class
    head: Literal["softmax", "sigmoid"]
    student: Shape
    teacher: Shape | None = None
    names: tuple[str, ...] = ()  # of the labels


def parts(specs: Iterable[Spec], task: Task) -> dict[str, tuple[float, nn.Module]]:
    """The recipe's fit.loss: name -> (weight, module). A repeated name becomes `kd-2`. Raises UserError."""
    made: dict[str, tuple[float, nn.Module]] = {}
    for spec in specs:
        factory = find(LOSSES, spec, "fit.loss")
        options = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "name"}
        name = (spec if isinstance(spec, str) else spec["name"]).rpartition(":")[2]
        weight = _number(f"fit.loss.{name}.weight", options.pop("weight", 1.0), 0)
        taken = inspect.signature(factory).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            for key in options:
                if key not in list(taken)[1:]:
                    known = ["weight", *list(taken)[1:]]
                    raise UserError(f"fit.loss.{name}.{key} = {options[key]!r}: unknown option{nearest(key, known)}")
        if task.teacher is None and needs_teacher(spec, True):
            raise UserError(f"fit.loss.{name}: there is no teacher to learn from; use ce, or distil with a teacher")
        number = 1 + sum(key == name or key.startswith(f"{name}-") for key in made)
        made[name if number == 1 else f"{name}-{number}"] = (weight, factory(task, **options))
    if not made:
        raise UserError('fit.loss = []: nothing to learn from; at least ["ce"]')
    return made


def needs_teacher(spec: Spec, teaches: bool = False) -> bool:
    """teaches: where a teacher is trained, which `attention` with `regions` shows where to look."""
    factory = find(LOSSES, spec, "fit.loss")
    own = teaches and isinstance(spec, dict) and spec.get(getattr(factory, "teaches_by", ""))
    return bool(getattr(factory, "needs_teacher", False)) and not own


class CrossEntropy(nn.Module):
    """Cross-entropy with labels y: (B,) int64, or (B,K) from mixup.

    class_weights: "balanced" (N / (K·n_c)) or K numbers; the sum is divided by the weights', of soft labels too, where
    torch.nn.CrossEntropyLoss divides by B. smoothing ε: (1-ε)·y + ε/K (Szegedy et al. 2016, §7). focal γ: (1-p)^γ
    before each -log p (Lin et al. 2017, arXiv 1708.02002, eq. 4). Sigmoid head: binary cross-entropy summed over the
    classes, each sample weighted by its label.
    """

    needs_teacher = False
    maps: tuple[int, ...] = ()

    def __init__(
        self, task: Task, class_weights: str | list[float] = "none", smoothing: float = 0.0, focal: float = 0.0
    ):
        super().__init__()
        self.smoothing = _number("fit.loss.ce.smoothing", smoothing, 0, 1)
        self.focal = _number("fit.loss.ce.focal", focal, 0)
        self.sigmoid = task.head == "sigmoid"
        self.register_buffer("class_weights", _class_weights(task, class_weights), persistent=False)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, y: Tensor, progress: float) -> Tensor:
        z = student.logits
        soft = F.one_hot(y, z.shape[1]).to(z.dtype) if y.ndim == 1 else y.to(z.dtype)
        target = (1 - self.smoothing) * soft + self.smoothing / z.shape[1]
        weights = self.get_buffer("class_weights")
        each = soft @ weights  # (B,) a sample's weight
        if self.sigmoid:
            yes, no = F.logsigmoid(z), F.logsigmoid(-z)
            # (1-p)^γ as exp(γ·log(1-p)): a power of an exact 0 has no finite gradient
            loss = -target * (self.focal * no).exp() * yes - (1 - target) * (self.focal * yes).exp() * no
            return (each * loss.sum(1)).sum() / each.sum()
        log = z.log_softmax(1)
        loss = -target * weights * log
        if self.focal:
            loss = loss * (-log.expm1()).clamp_min(1e-7) ** self.focal  # not 0: its power has no finite gradient
        return loss.sum() / each.sum()


class Distillation(nn.Module):
    """Hinton, Vinyals, Dean 2015 (arXiv 1503.02531): the teacher's softened output, times T².

    form: "kl", KL(teacher‖student), or "ce", cross-entropy with the teacher's output (same gradient at constant T).
    temperature: a number, or {from, to, by}. standardise: z-score the logits first (Sun et al. 2024, arXiv 2403.01427).
    A sigmoid head distils each class as a yes or no, summed; head = "softmax" compares softmaxes instead.
    """

    needs_teacher = True
    maps: tuple[int, ...] = ()

    def __init__(
        self,
        task: Task,
        temperature: float | dict[str, Any] = 4.0,
        form: str = "kl",
        standardise: bool = False,
        head: str | None = None,
    ):
        super().__init__()
        self.temperature = _temperature("fit.loss.kd.temperature", temperature)
        self.kl = _one_of("fit.loss.kd.form", form, ("kl", "ce")) == "kl"
        if not isinstance(standardise, bool):
            raise UserError(f"fit.loss.kd.standardise = {standardise!r}: true or false")
        self.standardise = standardise
        self.sigmoid = _one_of("fit.loss.kd.head", head or task.head, ("softmax", "sigmoid")) == "sigmoid"
        if standardise and task.labels == 2:
            raise UserError(
                "fit.loss.kd.standardise = true: two standardised logits are the same whatever the net says, so "
                "there is no gradient once the argmax agrees; leave it out, or use embedding"
            )
        if standardise and self.sigmoid:
            raise UserError("fit.loss.kd.standardise = true: not for a sigmoid head, whose classes are not compared")

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, y: Tensor, progress: float) -> Tensor:
        t = self.temperature(progress)
        zs, zt = student.logits, _logits(teacher)
        if self.standardise:
            zs, zt = _standardised(zs), _standardised(zt)
        if self.sigmoid:  # yes and no are the two answers of each class: (B,2,K)
            log_s, log_t = (torch.stack([F.logsigmoid(z / t), F.logsigmoid(-z / t)], 1) for z in (zs, zt))
        else:
            log_s, log_t = (zs / t).log_softmax(1), (zt / t).log_softmax(1)
        if self.kl:
            return _kl(log_s, log_t) * t**2
        return -(log_t.exp() * log_s).flatten(1).sum(1).mean() * t**2


class Decoupled(nn.Module):
    """DKD (Zhao et al. 2022, arXiv 2203.08679): (alpha·TCKD + beta·NCKD)·T².

    TCKD: KL of (target, all others); NCKD: KL among the others. A mixed sample's target is its heaviest label.
    """

    needs_teacher = True
    maps: tuple[int, ...] = ()

    def __init__(self, task: Task, alpha: float = 1.0, beta: float = 8.0, temperature: float | dict[str, Any] = 4.0):
        super().__init__()
        _only_softmax("dkd", task)
        if task.labels == 2:
            raise UserError(
                "fit.loss.dkd: with two classes its NCKD term is 0 and nothing is decoupled; use kd or embedding"
            )
        self.alpha = _number("fit.loss.dkd.alpha", alpha, 0)
        self.beta = _number("fit.loss.dkd.beta", beta, 0)
        self.temperature = _temperature("fit.loss.dkd.temperature", temperature)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, y: Tensor, progress: float) -> Tensor:
        t = self.temperature(progress)
        zs, zt = student.logits / t, _logits(teacher) / t
        target = y if y.ndim == 1 else y.argmax(1)
        target = torch.cat([target, zt[len(y) :].argmax(1)])[:, None]  # (B,1); without a label: what the teacher names
        others = torch.ones_like(zs, dtype=torch.bool).scatter(1, target, False)
        pairs, rest = [], []
        for z in (zs, zt):
            rest_of = z[others].view(len(z), -1)  # (B,K-1)
            pairs.append(torch.stack([z.gather(1, target)[:, 0], rest_of.logsumexp(1)], 1).log_softmax(1))
            rest.append(rest_of.log_softmax(1))
        return (self.alpha * _kl(*pairs) + self.beta * _kl(*rest)) * t**2


class Relational(nn.Module):
    """DIST (Huang et al. 2022, arXiv 2205.10536): (beta·inter + gamma·intra)·T², each 1 - Pearson's correlation.

    inter: over a sample's classes. intra: over a class's samples in the batch; skipped for a batch of one.
    """

    # Each length is at least 1e-8; the authors add 1e-8 to the product of two: theirs is up to 0.1 off at large logits

    needs_teacher = True
    maps: tuple[int, ...] = ()

    def __init__(self, task: Task, beta: float = 1.0, gamma: float = 1.0, temperature: float | dict[str, Any] = 1.0):
        super().__init__()
        _only_softmax("dist", task)
        self.beta = _number("fit.loss.dist.beta", beta, 0)
        self.gamma = _number("fit.loss.dist.gamma", gamma, 0)
        self.temperature = _temperature("fit.loss.dist.temperature", temperature)
        if task.labels == 2 and beta:
            raise UserError(
                f"fit.loss.dist.beta = {beta}: with two classes the correlation between classes is 1 or -1 and teaches "
                "nothing; set beta = 0, or use kd or embedding"
            )

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, y: Tensor, progress: float) -> Tensor:
        t = self.temperature(progress)
        ps, pt = (student.logits / t).softmax(1), (_logits(teacher) / t).softmax(1)
        loss = self.beta * (1 - _pearson(ps, pt).mean()) if self.beta else ps.sum() * 0
        if len(ps) > 1:
            loss = loss + self.gamma * (1 - _pearson(ps.T, pt.T).mean())
        return loss * t**2


class Feature(nn.Module):
    """FitNets (Romero et al. 2015, arXiv 1412.6550, eq. 3), modified: MSE of one late map.

    The student's passes a projector (1×1 convolution, batch norm); the teacher's is standardised per channel over batch
    and positions. Sizes are pooled to the smaller. stage: the stride. warmup: share of the training in which it grows
    from 0.
    """

    needs_teacher = True

    def __init__(self, task: Task, stage: int = 32, warmup: float = 0.0):
        super().__init__()
        self.maps = _stages("fit.loss.feature.stage", stage, [stage], task)
        self.warmup = _number("fit.loss.feature.warmup", warmup, 0, 1)
        assert task.teacher is not None  # _stages has looked
        inner, outer = task.student.maps[stage], task.teacher.maps[stage]
        self.projector = nn.Sequential(nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer))

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, y: Tensor, progress: float) -> Tensor:
        (stage,) = self.maps
        s, t = _same_size(student.maps[stage], _map(teacher, stage))
        t = F.batch_norm(t, None, None, training=True)  # the batch's own statistics
        return _grown(self.warmup, progress) * F.mse_loss(self.projector(s), t)


class Embedding(nn.Module):
    """The pooled feature behind a linear projector, on the unit sphere. Works for two classes too.

    distance: "mse", which is twice "cosine", 1 - cos. warmup: as for Feature.
    """

    needs_teacher = True
    maps: tuple[int, ...] = ()

    def __init__(self, task: Task, distance: str = "mse", warmup: float = 0.0):
        super().__init__()
        self.factor = {"mse": 2.0, "cosine": 1.0}[_one_of("fit.loss.embedding.distance", distance, ("mse", "cosine"))]
        self.warmup = _number("fit.loss.embedding.warmup", warmup, 0, 1)
        assert task.teacher is not None, "parts() refuses a task without a teacher"
        self.projector = nn.Linear(task.student.feature, task.teacher.feature)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, y: Tensor, progress: float) -> Tensor:
        assert teacher is not None, "parts() refuses a task without a teacher"
        away = 1 - F.cosine_similarity(self.projector(student.feature), teacher.feature.detach().float(), dim=1)
        return _grown(self.warmup, progress) * self.factor * away.mean()


class Attention(nn.Module):
    """Attention transfer (Zagoruyko, Komodakis 2017, arXiv 1612.03928, eq. 2).

    Squared distance of maps (the channels' mean square, at unit length), mean over batch and stages. stages: strides.
    warmup: as for Feature. regions: "face", or "random", its control.
    """

    # Of unequal sizes the larger map is pooled after squaring (others pool activations first). The authors' code also
    # averages over positions and uses a weight of 1000.
    # regions = "face": M, the largest of three Gaussians at eyes and mouth (FaceTable.regions), weighs a student's
    # distance with M + 0.25 (1 - M). A teacher in training gets -log Σ M·q, q its map scaled to a sum of 1, on samples
    # of `classes` (None: all). Samples whose face is unknown or cropped away count for nothing. "random": the same mask
    # at a place drawn anew each time. stages are then 8 and 16.

    needs_teacher = True
    teaches_by = "regions"

    def __init__(
        self,
        task: Task,
        stages: list[int] | None = None,
        warmup: float = 0.0,
        regions: str | None = None,
        classes: list[str] | None = None,
    ):
        super().__init__()
        place = "fit.loss.attention"
        self.regions = None if regions is None else _one_of(f"{place}.regions", regions, ("face", "random"))
        stages = ([8, 16] if regions else [16, 32]) if stages is None else stages
        self.maps = _stages(f"{place}.stages", stages, stages, task)
        self.warmup = _number(f"{place}.warmup", warmup, 0, 1)
        if classes is not None and not (isinstance(classes, list | tuple) and regions):
            raise UserError(f"{place}.classes = {classes!r}: a list of labels is wanted, and regions beside it")
        wanted = {_one_of(f"{place}.classes", name, task.names) for name in classes or ()}
        told = torch.tensor([classes is None or name in wanted for name in task.names or range(task.labels)])
        self.register_buffer("told", told, persistent=False)

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, y: Tensor, progress: float) -> Tensor:
        at = student.regions if self.regions else None
        seen = torch.ones(len(student.logits), dtype=torch.bool, device=y.device)
        if at is not None:
            seen = ((at[..., :2] >= 0) & (at[..., :2] <= 1)).all(2).any(1)
            if teacher is None:
                seen = seen & self.get_buffer("told")[y if y.ndim == 1 else y.argmax(1)]
            if self.regions == "random":  # the mask's own middle goes anywhere in the picture
                at = at + F.pad(torch.rand_like(at[:, :1, :2]) - at[..., :2].mean(1, keepdim=True), (0, 2))
            at = torch.where(seen[:, None, None], at, 1.0)
        found = []
        for stage in self.maps:
            s = student.maps[stage].square().mean(1, keepdim=True)
            if teacher is None:
                assert at is not None, "parts() refuses a task without a teacher"
                q = s.flatten(1) / s.sum((1, 2, 3))[:, None].clamp_min(1e-12)
                each = -(mask(at, s.shape[2:]) * q).sum(1).clamp_min(1e-6).log()
            else:
                s, t = _same_size(s, _map(teacher, stage).square().mean(1, keepdim=True))
                weight = 1.0 if at is None else OUTSIDE + (1 - OUTSIDE) * mask(at, s.shape[2:])
                each = (weight * (F.normalize(s.flatten(1), dim=1) - F.normalize(t.flatten(1), dim=1)).square()).sum(1)
            found.append((each * seen).sum() / seen.sum().clamp_min(1))
        return _grown(self.warmup, progress) * torch.stack(found).mean()


def mask(regions: Tensor, size: Sequence[int]) -> Tensor:
    """(B,R,4) in shares of a picture -> (B,h·w): the highest of the Gaussians within each cell."""
    away = []  # at a cell's nearest point, not its middle: an eye is smaller than a cell, and would fall between two
    for axis, cells in ((1, size[0]), (0, size[1])):
        low = torch.arange(cells, device=regions.device) / cells
        middle, spread = regions[..., axis, None], regions[..., axis + 2, None]
        away.append(((low - middle).clamp_min(0) + (middle - low - 1 / cells).clamp_min(0)) / spread)
    down, right = away
    return (-0.5 * (down[..., :, None].square() + right[..., None, :].square())).exp().amax(1).flatten(1)


# ---- arithmetic


def _logits(teacher: ModelOutput | None) -> Tensor:
    assert teacher is not None, "parts() refuses a task without a teacher"
    return teacher.logits.detach().float()


def _map(teacher: ModelOutput | None, stage: int) -> Tensor:
    assert teacher is not None, "parts() refuses a task without a teacher"
    return teacher.maps[stage].detach().float()


def _kl(log_s: Tensor, log_t: Tensor) -> Tensor:
    """KL(teacher‖student) of log-probabilities, batch mean."""
    return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True), dim=1)


def _standardised(z: Tensor) -> Tensor:
    return (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + 1e-7)


def _same_size(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
    s, t = (m if m.shape[2:] == size else F.adaptive_avg_pool2d(m, size) for m in (s, t))
    return s, t


def _grown(warmup: float, progress: float) -> float:
    return min(1.0, progress / warmup) if warmup else 1.0


# ---- options


def _temperature(place: str, value: Any) -> Callable[[float], float]:
    first = f"{place}.from" if isinstance(value, dict) else place
    if not isinstance(value, dict):
        value = {"from": value, "by": "constant"}
    for key in value:
        if key not in ("from", "to", "by"):
            raise UserError(f"{place}.{key} = {value[key]!r}: unknown{nearest(key, ('from', 'to', 'by'))}")
    by = _one_of(f"{place}.by", value.get("by", "linear"), ("constant", "linear", "cosine"))
    for key in ("from",) if by == "constant" else ("from", "to"):
        if key not in value:
            raise UserError(f'{place}.{key}: missing; a schedule is {{from=2, to=20, by="linear"}}')
    start = _number(first, value["from"], 0.01)
    end = _number(f"{place}.to", value.get("to", start), 0.01)
    ways: dict[str, Callable[[float], float]] = {
        "constant": lambda progress: 0.0,
        "linear": lambda progress: progress,
        "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
    }
    return lambda progress: start + (end - start) * ways[by](progress)


def _number(place: str, value: object, low: float, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or value == math.inf:
        reach = f"from {low} to {high}" if high < math.inf else f"from {low} up"
        raise UserError(f"{place} = {value!r}: a number {reach} is wanted")
    return float(value)


def _one_of(place: str, value: object, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UserError(f"{place} = {value!r}: not allowed{nearest(str(value), known)}")
    return str(value)


def _only_softmax(name: str, task: Task) -> None:
    if task.head == "sigmoid":
        raise UserError(
            f"fit.loss.{name}: it compares the classes of a softmax; with a sigmoid head use kd or embedding"
        )


def _stages(place: str, value: object, stages: object, task: Task) -> tuple[int, ...]:
    both = sorted(task.student.maps.keys() & (task.teacher or task.student).maps.keys())
    known = ", ".join(map(str, both)) or "none"
    if not isinstance(stages, list | tuple) or not stages or len(set(map(str, stages))) < len(stages):
        raise UserError(f"{place} = {value!r}: a list of strides is wanted; both nets have: {known}")
    for stage in stages:
        if isinstance(stage, bool) or stage not in both:
            raise UserError(f"{place} = {value!r}: no map at stride {stage} in both nets; both have: {known}")
    return tuple(stages)


def _class_weights(task: Task, value: object) -> Tensor:
    place = "fit.loss.ce.class_weights"
    if isinstance(value, str):
        if _one_of(place, value, ("none", "balanced")) == "none":
            return torch.ones(task.labels)
        total = sum(task.counts)  # a label without samples weighs nothing, or smoothing would preach it loudest
        return torch.tensor([total / (task.labels * n) if n else 0.0 for n in task.counts])
    if not isinstance(value, list | tuple) or len(value) != task.labels:
        raise UserError(f'{place} = {value!r}: "none", "balanced", or a list of {task.labels} numbers, one a label')
    weights = [_number(place, w, 0) for w in value]
    if not all(weights):
        raise UserError(f"{place} = {value!r}: every label needs a weight above 0")
    return torch.tensor(weights)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "ce": CrossEntropy,
    "kd": Distillation,
    "dkd": Decoupled,
    "dist": Relational,
    "feature": Feature,
    "embedding": Embedding,
    "attention": Attention,
}
