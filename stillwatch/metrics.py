"""Metrics of truth y (N,) and probabilities p (N,K), with intervals. Never NaN.

Rows of p are divided by their sum: sigmoid and softmax heads are judged alike.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Names = Sequence[str] | NDArray[np.generic]

BINS = 15  # of the calibration error
FLOOR = 1e-7  # a probability of 0 costs 16.1 in the loss, not infinity
COLDEST, HOTTEST = 0.25, 20.0  # temperatures
DRAWS = 4000  # of the bootstrap; with thousands of groups a thousand, for the memory
ROUGH_DRAWS, FEWEST = 1000, 200  # of the figures that must sort; the fewest where there are a hundred groups


def checked(y: ArrayLike, p: ArrayLike) -> tuple[Ints, Floats]:
    """int64 (N,), float64 (N,K) with rows summing to 1. Raises ValueError."""
    truth, table = np.asarray(y), np.asarray(p, np.float64)
    if table.ndim != 2 or truth.shape != table.shape[:1] or len(truth) == 0 or table.shape[1] < 2:
        raise ValueError(f"y {truth.shape} and p {table.shape} must be (N,) and (N,K) with N >= 1 and K >= 2")
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= table.shape[1]:
        raise ValueError(f"y must be whole numbers from 0 to {table.shape[1] - 1}")
    return truth.astype(np.int64), normalised(table)


def normalised(p: ArrayLike) -> Floats:
    """p (...,K) with rows summing to 1; zeros become 1/K."""
    table = np.asarray(p, np.float64)
    if not np.isfinite(table).all() or (table < 0).any():
        raise ValueError("p must be finite and not negative")
    total = table.sum(-1, keepdims=True)
    return np.where(total > 0, table / np.where(total > 0, total, 1), 1 / table.shape[-1])


def confusion(y: ArrayLike, p: ArrayLike) -> Ints:
    """(K,K) counts: rows truth, columns prediction (first of equal maxima)."""
    truth, table = checked(y, p)
    k = table.shape[1]
    return np.bincount(truth * k + table.argmax(1), minlength=k * k).reshape(k, k)


def accuracy(y: ArrayLike, p: ArrayLike) -> float:
    return float(_accuracy(confusion(y, p)))


def balanced_accuracy(y: ArrayLike, p: ArrayLike) -> float:
    """Mean recall over the classes in y."""
    return float(_balanced_accuracy(confusion(y, p)))


def macro_f1(y: ArrayLike, p: ArrayLike) -> float:
    """Mean F1 over the classes that are in y or predicted."""
    return float(_macro_f1(confusion(y, p)))


def loss(y: ArrayLike, p: ArrayLike) -> float:
    """Mean -log p[y] in nats, p at least 1e-7."""
    truth, table = checked(y, p)
    return float(nll(truth, table).mean())


def ece(y: ArrayLike, p: ArrayLike) -> float:
    """Expected calibration error, 15 equal bins (Guo et al. 2017, arXiv 1706.04599, eq. 3)."""
    truth, table = checked(y, p)
    return float(np.abs(_gaps(truth, table).sum(0)).sum() / len(truth))


def reliability(y: ArrayLike, p: ArrayLike) -> list[dict[str, float]]:
    """`ece`'s filled bins: [{"confidence", "accuracy", "count"}]."""
    truth, table = checked(y, p)
    right, sure = table.argmax(1) == truth, table.max(1)
    at = _bin(sure)
    return [
        {
            "confidence": float(sure[at == b].mean()),
            "accuracy": float(right[at == b].mean()),
            "count": int((at == b).sum()),
        }
        for b in np.unique(at)
    ]


def apply_temperature(p: ArrayLike, temperature: float, head: str = "softmax") -> Floats:
    """p (N,K) with logits divided by `temperature`. head: "softmax" or "sigmoid".

    From float32 a softmax keeps logits up to 87 below the highest; a sigmoid's p is 1 from logit 17.
    """
    return _headed(_logits(p, head) / temperature, head)


def temperature(y: ArrayLike, p: ArrayLike, head: str = "softmax") -> float:
    """In [1/4, 20], of lowest negative log likelihood (Guo et al. 2017, arXiv 1706.04599, §4.2)."""
    truth, _ = checked(y, p)
    logits = _logits(p, head)
    target = np.eye(logits.shape[1])[truth]
    low, high = np.log(COLDEST), np.log(HOTTEST)
    for _ in range(40):  # the loss is convex in 1/temperature; where every sample is right its slope has no zero
        middle = (low + high) / 2
        slope = ((_headed(logits / np.exp(middle), head) - target) * logits).sum()
        low, high = (middle, high) if slope > 0 else (low, middle)
    return float(np.exp((low + high) / 2))


def alarm_score(p: ArrayLike, safe: Sequence[int]) -> Floats:
    """(N,): 1 - sum p[safe]."""
    return np.asarray(1 - normalised(p)[:, list(safe)].sum(1), np.float64)


def operating_point(
    y: ArrayLike, p: ArrayLike, safe: Sequence[int], rate: float, groups: Names | None = None
) -> dict[str, float] | None:
    """The lowest alarm_score threshold at which at most `rate` of the safe samples alarm.

    groups: (N,): and for four groups in five at most twice `rate` of their own. Samples at it alarm. Above every score
    if a safe sample's is highest. None where all or no classes are safe, or y lacks one kind. Raises ValueError unless
    0 <= rate < 1.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate {rate} must lie from 0 to below 1")
    truth, table = checked(y, p)
    harmless = np.isin(truth, list(safe))
    if not harmless.any() or harmless.all() or len(set(safe)) == table.shape[1]:
        return None
    score = alarm_score(table, safe)
    tried = np.unique(score)  # at the lowest of them every safe sample alarms, which is too many

    def false(rows: NDArray[np.bool_]) -> Floats:
        return 1 - np.searchsorted(np.sort(score[rows]), tried) / rows.sum()

    wrong = false(harmless) > rate + 1e-9
    if groups is not None:
        names = np.asarray(groups, dtype=str)
        each = [false(harmless & (names == name)) > 2 * rate + 1e-9 for name in np.unique(names[harmless])]
        wrong |= np.mean(each, axis=0) > 0.2
    first = int(wrong.sum())
    # Halfway to the score below: rounding in another runtime then moves no sample across it
    above = tried[first] if first < len(tried) else tried[-1] + 1e-3
    threshold = float(tried[first - 1] + above) / 2
    threshold = threshold if threshold > tried[first - 1] else float(above)  # there is no number between neighbours
    found = score >= threshold
    return {
        "threshold": threshold,
        "false_alarm_rate": float(found[harmless].mean()),
        "recall": float(found[~harmless].mean()),
    }


class FalseAlarms(NamedTuple):
    groups: int
    upper: float | None  # end of the 95 % interval over groups; None for a single group
    worst: float  # of any group


def false_alarms(p: ArrayLike, safe: Sequence[int], threshold: float, groups: Names) -> FalseAlarms:
    """Shares of alarms among safe samples p (N,K), by group.

    upper: at least 3/N, what N samples without an alarm can say (Hanley, Lippman-Hand 1983).
    """
    codes, number = clusters(groups)
    alarms, sizes = np.bincount(codes, alarm_score(p, safe) >= threshold), np.bincount(codes)
    weights, _, picked = bootstrap_weights(groups, 1, DRAWS, 0)
    whole = np.array([alarms.sum() / sizes.sum()])
    ends = _ends(((weights @ alarms) / (weights @ sizes))[None], whole, picked, number)
    upper = min(max(ends[1], 3 / len(codes)), 1.0) if ends else None
    return FalseAlarms(number, upper, float((alarms / sizes).max()))


def agreement(
    p_a: ArrayLike, p_b: ArrayLike, safe: Sequence[int] = (), threshold: float | None = None
) -> dict[str, Any]:
    """p (N,K) of the same samples: {"n", "max_difference", "top1_agreement", "decision_flips"}.

    decision_flips: other alarms; None without a threshold.
    """
    a, b = np.asarray(p_a, np.float64), np.asarray(p_b, np.float64)
    if a.shape != b.shape or a.ndim != 2 or not len(a):
        raise ValueError(f"p_a {a.shape} and p_b {b.shape} must be the same (N,K) with N >= 1")
    flips = None
    if threshold is not None:
        flips = int(((alarm_score(a, safe) >= threshold) != (alarm_score(b, safe) >= threshold)).sum())
    return {
        "n": len(a),
        "max_difference": float(np.abs(a - b).max()),
        "top1_agreement": float((a.argmax(1) == b.argmax(1)).mean()),
        "decision_flips": flips,
    }


def scores(
    y: ArrayLike, p: ArrayLike, labels: Sequence[str], safe: Iterable[str] = (), folds: ArrayLike | None = None
) -> dict[str, Any]:
    """METRICS, "n", "per_class", "confusion". safe: labels without alarm. folds: as in interval."""
    harmless = [list(labels).index(name) for name in safe]
    table = confusion(y, p)
    hit, true, predicted = table.diagonal(), table.sum(1), table.sum(0)
    per_class = {  # a quotient of nothing by nothing is 0
        label: {
            "precision": float(hit[k] / max(predicted[k], 1)),
            "recall": float(hit[k] / max(true[k], 1)),
            "f1": float(2 * hit[k] / max(true[k] + predicted[k], 1)),
            "support": int(true[k]),
        }
        for k, label in enumerate(labels)
    }
    number, codes = np.unique(np.zeros(len(np.asarray(y))) if folds is None else folds, return_inverse=True)
    undrawn = np.zeros((0, len(number)))
    figures = {name: _drawn(name, y, p, codes.reshape(-1), undrawn, harmless, folds)[1][0] for name in METRICS}
    return {
        **{name: float(value) if np.isfinite(value) else None for name, value in figures.items()},
        "n": len(codes),
        "per_class": per_class,
        "confusion": table.tolist(),
    }


def clusters(groups: Names) -> tuple[Ints, int]:
    """(N,) -> (group number (N,), how many). A sample without a group is its own."""
    names = np.asarray(groups, dtype=str)
    known, codes = np.unique(names, return_inverse=True)
    codes = codes.reshape(-1).astype(np.int64)
    if len(known) and known[0] == "":  # the empty name sorts first
        alone = np.flatnonzero(names == "")
        codes -= 1
        codes[alone] = len(known) - 1 + np.arange(len(alone))
    return codes, int(codes.max(initial=-1)) + 1


def interval(
    names: Iterable[str],
    y: ArrayLike,
    p: ArrayLike,
    groups: Names,
    draws: int = DRAWS,
    seed: int = 0,
    safe: Sequence[int] = (),
    folds: ArrayLike | None = None,
) -> dict[str, list[float] | None]:
    """95 % intervals by bootstrap over whole groups: {metric: [low, high]}; None where undefined.

    names: of METRICS. p: (N,K), or (S,N,K) from S trainings, averaged and drawn too. groups: (N,), "" (unknown) is
    drawn alone. folds: (N,), of different nets: what ranks samples is averaged over folds (Forman, Scholz 2010). The
    ends are the expanded percentile interval's (Hesterberg 2015, arXiv 1411.5279, §4.6).
    """
    weights, codes, picked = bootstrap_weights(groups, len(_stack(p)), draws, seed)
    found = {}
    for name in names:
        ends = _ends(*_drawn(name, y, p, codes, weights, safe, folds), picked, weights.shape[1])
        found[name] = ends and [max(ends[0], 0.0), ends[1] if name == "loss" else min(ends[1], 1.0)]
    return found


@dataclass(frozen=True)
class Paired:
    """b - a; p_better: share of draws in which b is larger, ties half. None for a single group."""

    difference: float
    ci95: list[float] | None
    p_better: float | None


def paired(
    y: ArrayLike,
    p_a: ArrayLike,
    p_b: ArrayLike,
    groups: Names,
    metric: str = "macro_f1",
    draws: int = DRAWS,
    seed: int = 0,
) -> Paired:
    """p (N,K) or (S,N,K). Draws share groups and trainings; ends as in `interval`."""
    stack_a, stack_b = _stack(p_a), _stack(p_b)
    if stack_a.shape != stack_b.shape:
        raise ValueError(f"p_a {stack_a.shape} and p_b {stack_b.shape} must match")
    weights, codes, picked = bootstrap_weights(groups, len(stack_a), draws, seed)
    (a, whole_a), (b, whole_b) = (_drawn(metric, y, stack, codes, weights) for stack in (stack_a, stack_b))
    ends, gain = _ends(b - a, whole_b - whole_a, picked, weights.shape[1]), ((b - a) * picked.T).sum(0)
    told = gain[np.isfinite(gain)]
    better = float((told > 0).mean() + (told == 0).mean() / 2) if ends else None
    return Paired(float((whole_b - whole_a).mean()), ends, better)


def by_sequence(sequence: Names, y: ArrayLike, p: ArrayLike) -> tuple[Ints, Floats, Ints] | None:
    """Averages each sequence's frames: (y, p, the clip's first sample), a row per clip. p: (N,K) or (S,N,K).

    A sample without a sequence is a clip. None where no sequence has two frames, or one has two labels.
    """
    codes, number = clusters(sequence)
    truth, table = np.asarray(y, np.int64), normalised(p)
    order = np.argsort(codes, kind="stable")
    first = np.flatnonzero(np.diff(codes[order], prepend=-1))
    low, high = np.minimum.reduceat(truth[order], first), np.maximum.reduceat(truth[order], first)
    if number == len(truth) or (low != high).any():
        return None
    sizes = np.bincount(codes, minlength=number)
    total = np.add.reduceat(table[..., order, :], first, axis=-2)
    return low, total / sizes[:, None], order[first]


# ---- one figure from a (…,K,K) pile of confusions


def _accuracy(table: NDArray[np.generic]) -> Floats:
    return table.trace(axis1=-2, axis2=-1) / table.sum((-2, -1))


def _balanced_accuracy(table: NDArray[np.generic]) -> Floats:
    true = table.sum(-1)
    recall = table.diagonal(axis1=-2, axis2=-1) / np.maximum(true, 1)
    return recall.sum(-1) / (true > 0).sum(-1)


def _macro_f1(table: NDArray[np.generic]) -> Floats:
    both = table.sum(-1) + table.sum(-2)
    f1 = 2 * table.diagonal(axis1=-2, axis2=-1) / np.maximum(both, 1)
    return f1.sum(-1) / (both > 0).sum(-1)


# ---- logits and back


def _logits(p: ArrayLike, head: str) -> Floats:
    table = np.asarray(p)
    kind = np.finfo(table.dtype if table.dtype.kind == "f" else np.float64)
    table = np.clip(table.astype(np.float64), kind.tiny, 1 - kind.epsneg)  # what p could be told from 0 and from 1
    below = np.log1p(-table) if head == "sigmoid" else 0.0
    return np.asarray(np.log(table) - below, np.float64)


def _headed(logits: Floats, head: str) -> Floats:
    if head == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-logits)), np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True), np.float64)


# ---- one number, or one row, a sample


def nll(y: Ints, p: Floats) -> Floats:
    return -np.log(np.maximum(p[np.arange(len(y)), y], FLOOR))


def _bin(sure: Floats) -> Ints:
    return np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)


def _gaps(y: Ints, p: Floats) -> Floats:
    """(N,15): right - confidence in its own bin, else 0."""
    out = np.zeros((len(y), BINS))
    sure = p.max(1)
    out[np.arange(len(y)), _bin(sure)] = (p.argmax(1) == y) - sure
    return out


# ---- figures that need an order of the samples: weights w (D,N) -> (D,C), their mean is the figure; NaN: undefined


def _auroc(y: Ints, p: Floats, w: Floats, safe: Sequence[int] = ()) -> Floats:
    areas = []
    for k in [1] if p.shape[1] == 2 else range(p.shape[1]):
        order, first = _ties(p[:, k])
        yes = np.add.reduceat(w[:, order] * (y == k)[order], first, axis=1)
        no = np.add.reduceat(w[:, order] * (y != k)[order], first, axis=1)
        won = (yes * (np.cumsum(no, axis=1) - no / 2)).sum(1)
        areas.append(_ratio(won, yes.sum(1) * no.sum(1)))
    return np.stack(areas, axis=1)


def _alarm_recall(y: Ints, p: Floats, w: Floats, safe: Sequence[int]) -> Floats:
    harmless = np.isin(y, list(safe))
    if not harmless.any() or harmless.all() or len(set(safe)) == p.shape[1]:
        return np.full((len(w), 1), np.nan)
    order, first = _ties(-(1 - p[:, list(safe)].sum(1)))  # most alarming first
    quiet = np.cumsum(np.add.reduceat(w[:, order] * harmless[order], first, axis=1), axis=1)
    wanted = np.cumsum(np.add.reduceat(w[:, order] * ~harmless[order], first, axis=1), axis=1)
    allowed = quiet <= 0.01 * quiet[:, -1:] + 1e-9
    caught = np.where(allowed, wanted, 0).max(1)
    return _ratio(np.where(quiet[:, -1] > 0, caught, 0), np.where(quiet[:, -1] > 0, wanted[:, -1], 0))[:, None]


def _ties(score: Floats) -> tuple[Ints, Ints]:
    order = np.argsort(score, kind="stable")
    return order, np.flatnonzero(np.diff(score[order], prepend=-np.inf))


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


# ---- the bootstrap


def _stack(p: ArrayLike) -> NDArray[np.generic]:
    table = np.asarray(p)
    return table[None] if table.ndim == 2 else table


def bootstrap_weights(groups: Names, trainings: int, draws: int, seed: int) -> tuple[Floats, Ints, Floats]:
    """(D,G) draws of groups, (N,) group of each sample, (D,S) shares of trainings."""
    codes, number = clusters(groups)
    rng, draws = np.random.default_rng(seed), min(draws, max(10_000_000 // max(number, 1), 1000))
    weights = rng.multinomial(number, np.full(number, 1 / number), size=draws).astype(np.float64)
    # Normal about 1/S: drawing two or three with replacement would spread by half or two thirds of the true deviation
    noise = rng.normal(size=(draws, trainings))
    noise -= noise.mean(1, keepdims=True)
    picked = 1 / trainings + noise / math.sqrt(trainings * max(trainings - 1, 1))
    if number < 2:
        weights[:] = np.nan  # no interval can come of one group
    return weights, codes, picked


def _drawn(
    name: str,
    y: ArrayLike,
    p: ArrayLike,
    codes: Ints,
    weights: Floats,
    safe: Sequence[int] = (),
    folds: ArrayLike | None = None,
) -> tuple[Floats, Floats]:
    """(S,D) by draw, (S,) as it is."""
    if name not in METRICS:
        raise ValueError(f"{name!r} is no metric; known: {', '.join(METRICS)}")
    parts = np.zeros(len(codes), np.int64) if folds is None else np.asarray(folds)
    whole, rows = np.ones((1, weights.shape[1])), []
    for one in _stack(p):
        truth, table = checked(y, one)
        each = np.concatenate([whole, weights]) if np.isfinite(weights).all() else whole
        row = METRICS[name](truth, table, codes, each, safe, parts)
        rows.append(np.concatenate([row, np.full(1 + len(weights) - len(row), np.nan)]))
    return np.stack(rows)[:, 1:], np.stack(rows)[:, 0]


def _from_confusion(figure: Callable[[Floats], Floats]) -> Callable[..., Floats]:
    def drawn(y: Ints, p: Floats, codes: Ints, weights: Floats, safe: Sequence[int], folds: Ints) -> Floats:
        k = p.shape[1]
        cells = codes * k * k + y * k + p.argmax(1)
        tables = np.bincount(cells, minlength=weights.shape[1] * k * k).reshape(-1, k * k)
        return figure((weights @ tables).reshape(-1, k, k))

    return drawn


def _from_rows(rows: Callable[[Ints, Floats], Floats]) -> Callable[..., Floats]:
    """Means of (N,) or (N,B) over each draw's samples."""

    def drawn(y: Ints, p: Floats, codes: Ints, weights: Floats, safe: Sequence[int], folds: Ints) -> Floats:
        flat, number = rows(y, p).reshape(len(y), -1), weights.shape[1]
        keys = codes[:, None] * flat.shape[1] + np.arange(flat.shape[1])
        sums = np.bincount(keys.ravel(), flat.ravel(), minlength=number * flat.shape[1]).reshape(number, -1)
        return np.abs(weights @ sums).sum(1) / (weights @ np.bincount(codes, minlength=number))

    return drawn


def _by_fold(figure: Callable[[Ints, Floats, Floats, Sequence[int]], Floats]) -> Callable[..., Floats]:
    """Mean over folds, weighted by drawn groups; skips a class that a fold lacks."""

    def drawn(y: Ints, p: Floats, codes: Ints, weights: Floats, safe: Sequence[int], folds: Ints) -> Floats:
        few, back = np.unique(weights[: ROUGH_DRAWS if weights.shape[1] < 100 else FEWEST], axis=0, return_inverse=True)
        total = seen = np.zeros(1)
        for fold in np.unique(folds):
            rows = np.flatnonzero(folds == fold)
            step = max(1, 1_000_000 // len(rows))  # a few at a time, so memory stays flat
            picked = [few[at : at + step] for at in range(0, len(few), step)]
            value = np.concatenate([figure(y[rows], p[rows], w[:, codes[rows]], safe) for w in picked])
            share = few[:, np.unique(codes[rows])].mean(1, keepdims=True)
            total = total + np.where(np.isfinite(value), value, 0) * share
            seen = seen + np.isfinite(value) * share
        return np.divide(total, seen, out=np.full(total.shape, np.nan), where=seen > 0).mean(1)[back.reshape(-1)]

    return drawn


def _ends(values: Floats, whole: Floats, picked: Floats, groups: int) -> list[float] | None:
    """Expanded percentile interval of the mean of (S,D) draws; None where most are undefined."""
    known = np.isfinite(values.sum(0))
    trainings = len(values)
    if known[:FEWEST].mean() < 0.5 or not np.isfinite(whole).all():
        return None
    means = (values[:, known] * picked[known].T).sum(0)
    by_group = values[:, known].mean(0).var() * groups / (groups - 1)
    by_training = whole.var(ddof=1) / trainings if trainings > 1 else 0.0
    true, drawn = by_group + by_training, means.var()
    if not drawn or not true:
        return [float(means.min()), float(means.max())]
    # Percentiles are too narrow by sqrt(G / (G-1)), and take the normal for Student's t: so the ends are the quantiles
    # at which a normal with the draws' variance is as wide as t times the true deviation (Satterthwaite 1946)
    free = true**2 / (by_group**2 / (groups - 1) + by_training**2 / max(trainings - 1, 1))
    tail = NormalDist().cdf(-_student(free) * math.sqrt(true / drawn))
    low, high = np.quantile(means, [tail, 1 - tail])
    return [float(low), float(high)]


def _student(free: float) -> float:
    """Student's t, 97.5 % quantile, by summing its density: a board has no scipy."""
    x = np.arange(0, 20, 0.001)
    scale = math.exp(math.lgamma((free + 1) / 2) - math.lgamma(free / 2)) / math.sqrt(free * math.pi)
    share = np.cumsum(scale * (1 + (x + 0.0005) ** 2 / free) ** (-(free + 1) / 2)) * 0.001
    return float(x[np.searchsorted(share, 0.475)])


METRICS: dict[str, Callable[..., Floats]] = {  # (y, p, codes, weights (D,G), safe) -> the figure in each draw (D,)
    "accuracy": _from_confusion(_accuracy),
    "balanced_accuracy": _from_confusion(_balanced_accuracy),
    "macro_f1": _from_confusion(_macro_f1),
    "loss": _from_rows(nll),
    "ece": _from_rows(_gaps),
    "auroc": _by_fold(_auroc),  # of class 1 for K = 2, else the mean of one against the rest; ties count half
    "recall_at_1pct_fa": _by_fold(_alarm_recall),  # of what is unsafe, where at most 1 % of what is safe alarms
}
