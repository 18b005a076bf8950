"""Did distillation help, by how much, how surely?"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from stillwatch import metrics
from stillwatch.evaluation.pooling import DISTILLATION, Entry, Model, fit_of, parent
from stillwatch.predictions import has, read

METRIC = "macro_f1"  # the one the verdict is about
COMPARED = {"accuracy": metrics.accuracy, "balanced_accuracy": metrics.balanced_accuracy, "macro_f1": metrics.macro_f1}
DECIDE = 6  # with fewer groups all of them agree by chance more often than once in twenty (five: 2/2^5 = 1/16)
SMALL = 100  # samples below which a test says little
GAP = 0.05  # of accuracy between people seen in training and new ones, above which a warning says so
Figures: TypeAlias = Mapping[str, Mapping[str, Any]]  # model name -> as in report.json
Outcome: TypeAlias = Literal["better", "worse", "unclear", "same"]
HELPED: dict[Outcome, Literal["yes", "no"]] = {"better": "yes", "worse": "no"}  # else "unclear"


@dataclass(frozen=True)
class Difference(metrics.Paired):
    by_seed: list[float]


@dataclass(frozen=True)
class Comparison(metrics.Paired):
    """One model against another, sample by sample, in `metric`."""

    metric: str
    seeds: int
    pairs: int
    groups: int
    grouped: bool
    differences: dict[str, Difference]  # of COMPARED

    def conclusion(self, luck: bool = True) -> Outcome:
        return outcome_of(self, self.groups, self.seeds > 1 or not luck)

    def in_words(self, words: Mapping[str, str], who: str, luck: bool = True) -> str:
        """words: of each outcome and "cannot"; {} is the points. who: the test set, such as "5 new drivers".

        luck: False where both models are of one training, so that seeds do not matter.
        """
        told, seeds = self.conclusion(luck), f" and {self.seeds} seeds" if self.seeds > 1 else ""
        if told == "same":
            return f"{words['same']}, over {who}{seeds or ' and one seed'}."
        changed = f"macro-F1 changed by {points(self.difference, sign=True)} points"
        if self.ci95 is None:
            none = f"on {who}{seeds or ' with one seed'} there is no telling how the next one would do"
            return f"{words['cannot']}: {changed}, but {none}."
        ends = sorted(-end for end in self.ci95) if told == "worse" else self.ci95
        low, high = (points(end, sign=told == "unclear") for end in ends)
        span = f"95 % interval {low} to {high}, from the spread of {who}{seeds}"
        why = []
        if self.groups < DECIDE:
            why.append(f"where there are fewer than {DECIDE} to test on, all agreeing may be chance")
        if self.seeds == 1 and luck:
            why.append("of one seed, whose chance in training is not in this interval")
        if why:
            return f"{words['cannot']}: {changed} ({span}), but {', and '.join(why)}."
        begin = words[told].format(points(abs(self.difference)))
        return f"{begin}{f': {changed}' if told == 'unclear' else ''} ({span})."


@dataclass(frozen=True)
class GroupRow:
    """Accuracy, mean over seeds."""

    group: str
    n: int
    alone: float
    distilled: float
    difference: float


@dataclass(frozen=True)
class PairRow:
    """Two runs of one fold and seed."""

    fold: int
    seed: int
    runs: list[str]
    accuracy: dict[str, float]  # alone, distilled, difference
    macro_f1: dict[str, float]


@dataclass(frozen=True)
class Clips(metrics.Paired):
    """Each recording counts once."""

    n: int
    helped: str


@dataclass(frozen=True)
class Verdict(Comparison):
    """Positive differences favour the distilled student."""

    helped: str  # "yes", "no" (it hurt) or "unclear"
    by_group: list[GroupRow]  # samples without a group are left out
    by_pair: list[PairRow]
    clips: Clips | None
    sentence: str


def verdict(alone: Model, distilled: Model) -> Verdict | None:
    """None if they share no fold and seed."""
    found = paired_difference(alone, distilled)
    if found is None:
        return None
    right = [(model.p.argmax(-1) == model.predictions.y).mean(0) for model in (alone, distilled)]
    by_group, by_pair = list[GroupRow](), list[PairRow]()
    for group in np.unique(alone.predictions.group[alone.predictions.group != ""]):
        mine = alone.predictions.group == group
        one, two = (float(r[mine].mean()) for r in right)
        by_group.append(GroupRow(str(group), int(mine.sum()), one, two, two - one))
    for first, second in zip(alone.entries, distilled.entries, strict=True):
        figures = []
        for name in ("accuracy", METRIC):
            a, b = (COMPARED[name](entry.predictions.y, entry.predictions.p) for entry in (first, second))
            figures.append({"alone": a, "distilled": b, "difference": b - a})
        by_pair.append(PairRow(first.cell.fold, first.cell.seed, [first.name, second.name], *figures))
    return Verdict(
        **vars(found),
        helped=HELPED.get(found.conclusion(), "unclear"),
        by_group=by_group,
        by_pair=by_pair,
        clips=_clips(alone, distilled),
        sentence=found.in_words(WORDS, who(alone)),
    )


def paired_difference(one: Model, other: Model) -> Comparison | None:
    """How much better `other` is; None if folds or seeds differ."""
    if (one.folds, one.seeds) != (other.folds, other.seeds):
        return None
    y, group = one.predictions.y, one.predictions.group
    differences = {}
    for name, figure in COMPARED.items():
        figures = [[figure(y, p) for p in model.p] for model in (one, other)]
        by_seed = np.subtract(figures[1], figures[0]).tolist()
        differences[name] = Difference(**vars(metrics.paired(y, one.p, other.p, group, name)), by_seed=by_seed)
    first = differences[METRIC]
    return Comparison(
        first.difference,
        first.ci95,
        first.p_better,
        metric=METRIC,
        seeds=len(one.seeds),
        pairs=len(one.entries),
        groups=metrics.clusters(group)[1],
        grouped=bool((group != "").any()),
        differences=differences,
    )


def outcome_of(found: metrics.Paired, groups: int, several: bool) -> Outcome:
    """ "unclear": the interval holds zero, and few groups or a single seed may agree by chance."""
    if found.difference == 0 and (found.ci95 or [0, 0]) == [0, 0]:
        return "same"
    if found.ci95 is None or found.ci95[0] <= 0 <= found.ci95[1] or groups < DECIDE or not several:
        return "unclear"
    return "better" if found.ci95[0] > 0 else "worse"


def points(value: float, sign: bool = False) -> str:
    """0.031 -> "3.1"; more places if it would read as zero."""
    value *= 100
    places = 1 if abs(value) >= 0.05 or value == 0 else 2
    text = f"{value:+.{places}f}" if sign else f"{value:.{places}f}"
    return text.replace("-", "−")


def who(model: Model) -> str:
    """ "5 new drivers", "360 test samples"."""
    groups = metrics.clusters(model.predictions.group)[1]
    if not (model.predictions.group != "").any():
        return f"{groups:,} test samples"
    data = model.entries[0].recipe.data
    source = data.source if isinstance(data.source, str) else str(data.source.get("name"))
    one, many = NOUNS.get(source, ("group", "groups"))
    return f"{groups} {'new ' if data.split == 'grouped' else ''}{one if groups == 1 else many}"


def _clips(alone: Model, distilled: Model) -> Clips | None:
    predictions = alone.predictions
    one, two = (metrics.by_sequence(predictions.sequence, predictions.y, model.p) for model in (alone, distilled))
    if one is None or two is None:
        return None
    y, _, first = one
    group = predictions.group[first]
    found = metrics.paired(y, one[1], two[1], group, METRIC)
    told = HELPED.get(outcome_of(found, metrics.clusters(group)[1], len(alone.seeds) > 1), "unclear")
    return Clips(**vars(found), n=len(y), helped=told)


def retention(teacher: Model, student: Model) -> float | None:
    """Student's accuracy over the teacher's, on common samples (violence paper, Table I)."""
    _, mine, theirs = np.intersect1d(teacher.predictions.id, student.predictions.id, return_indices=True)
    if not len(mine):
        return None
    good = (teacher.p.argmax(-1) == teacher.predictions.y)[:, mine].mean()
    return float((student.p.argmax(-1) == student.predictions.y)[:, theirs].mean() / good) if good else None


def known_vs_new(model: Model) -> dict[str, float] | None:
    """Accuracy on people seen in training ("known": validation) and new ones ("new": test).

    None if validation holds others, or was not kept.
    """
    data = model.entries[0].recipe.data
    if (
        data.split != "grouped"
        or not isinstance(data.valid, float)
        or not all(has(e.run, "valid") for e in model.entries)
    ):
        return None
    known = []
    for entry in model.entries:
        predictions = read(entry.run, "valid")
        known.append(metrics.accuracy(predictions.y, predictions.p))
    new = [metrics.accuracy(entry.predictions.y, entry.predictions.p) for entry in model.entries]
    return {"known": float(np.mean(known)), "new": float(np.mean(new))}


# ---- what to beware of


def warnings(models: Sequence[Model], figures: Figures) -> list[str]:
    trained = [model for model in models if model.kind not in ("teacher", "quantised") and not model.exported]
    found, group, n = list[str](), models[0].predictions.group, len(models[0].predictions)
    number, named = metrics.clusters(group)[1], bool((group != "").any())
    if n < SMALL:
        found.append(f"only {n} test samples: every figure here is rough")
    if named and number == 1:
        found.append("the test holds a single group (one person or camera): no interval can be given; use more folds")
    elif named and number < DECIDE:
        found.append(f"only {number} groups in the test: fewer than {DECIDE} can decide nothing")
    elif not named:
        words = "the intervals take them as independent, which frames of a video are not"
        found.append(f"the samples have no group: {words}")
    if once := ", ".join(model.key.title for model in trained if len(model.seeds) == 1):
        found.append(f"one seed only ({once}): the chance of training is not in the intervals")
    found += [*_training(models), *_teachers(models, figures)]
    for model in models:
        for info in (entry.run.info for entry in model.entries):
            faults = (info.learnt_nothing and f"{info.id} {info.learnt_nothing}", info.above_teacher)
            found += [f"{model.key.title}: {words}" for words in faults if words]
    for model in models:
        right, most = figures[model.name]["accuracy"], np.bincount(model.predictions.y).max() / len(model.predictions)
        if right <= most:
            words = f"right in {100 * right:.1f} % of these samples, one constant answer in {100 * most:.1f} %"
            found.append(f"{model.key.title}: {words}")
        gap = figures[model.name].get("seen")
        if gap and gap["known"] - gap["new"] > GAP:
            found.append(
                f"{model.key.title}: accuracy {100 * gap['known']:.1f} % on people seen in training, "
                f"{100 * gap['new']:.1f} % on new ones: expect the second figure in use"
            )
    audits: dict[str, str] = {}  # each once: folds repeat a warning with other numbers
    for entry in (entry for model in models for entry in model.entries):
        for line in (entry.run.read_json("audit.json") or {}).get("warnings", []):
            audits.setdefault(re.sub(r"[\d.,]+", "#", str(line)), str(line))
    return [*found, *audits.values()]


def _training(models: Sequence[Model]) -> list[str]:
    found = []
    for model in models:
        apart = _apart([_settings(entry, with_loss=True) for entry in model.entries])
        if apart:
            found.append(f"{model.key.title}: its runs differ in {', '.join(apart)}")
    for model in models:
        partner = next((m for m in models if m.kind == "distilled" and m.key.family == model.key.family), None)
        if model.kind != "alone" or partner is None:
            continue
        apart = _apart([_settings(entry, with_loss=False) for entry in (*model.entries, *partner.entries)])
        if "fit.epochs" in apart:
            one, two = (fit_of(m.entries[0].run).epochs for m in (model, partner))
            found.append(f"student alone was trained for {one} epochs, distilled for {two}: not an equal chance")
        rest = [key for key in apart if key != "fit.epochs"]
        if rest:
            found.append(
                f"alone and distilled also differ in {', '.join(rest)}: the difference is not the teacher's alone"
            )
    return found


def _settings(entry: Entry, with_loss: bool) -> dict[str, object]:
    fit = fit_of(entry.run).model_dump(mode="json", exclude={"seed", "device"} | (set() if with_loss else {"loss"}))
    data = entry.recipe.data.model_dump(mode="json", exclude={"root", "fold", "max_bad"})
    return {f"fit.{k}": v for k, v in fit.items()} | {f"data.{k}": v for k, v in data.items()}


def _apart(settings: Sequence[dict[str, object]]) -> list[str]:
    return [key for key in settings[0] if any(other[key] != settings[0][key] for other in settings)]


def _teachers(models: Sequence[Model], figures: Figures) -> list[str]:
    found = []
    given = {entry.name: entry for model in models if model.kind == "teacher" for entry in model.entries}
    strangers = set()
    for entry in (entry for model in models if model.kind == "distilled" for entry in model.entries):
        teacher = parent(entry.run)
        if given and teacher and teacher not in given:
            strangers.add(teacher)
        elif teacher in given and given[teacher].cell.fold != entry.cell.fold:
            found.append(
                f"{entry.name} is tested on fold {entry.cell.fold}, but its teacher {teacher} was trained for fold "
                f"{given[teacher].cell.fold}: that teacher has seen the test"
            )
    if strangers:
        found.append(f"distilled under {', '.join(sorted(strangers))}, which is not among the teachers compared")
    for model in (m for m in models if m.kind in DISTILLATION[1:]):
        for above in (m for m in models if m.kind == "teacher" and related(m, model)):
            good, better = (100 * figures[m.name][METRIC] for m in (above, model))
            if better > good:
                found.append(
                    f"{model.key.title} is above its teacher in macro-F1, {better:.1f} % to {good:.1f} %: this "
                    "teacher has little to teach"
                )
    return found


def related(one: Model, other: Model) -> bool:
    return one.entries[0].recipe.name == other.entries[0].recipe.name


WORDS = {
    "better": "Distillation helped: macro-F1 rose by {} points",
    "worse": "Distillation hurt: macro-F1 fell by {} points",
    "unclear": "No evidence that distillation helped",
    "cannot": "Cannot tell whether distillation helped",
    "same": "Distillation changed nothing: macro-F1 is the same",
}
NOUNS = {"driver-inattention": ("driver", "drivers"), "toy": ("person", "people")}  # source -> what a group of it is
