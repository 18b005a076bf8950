"""What each compression step cost, and whether pruning beats a narrower student."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stillwatch.evaluation import pooling, verdict
from stillwatch.evaluation.pooling import Model, ModelKey
from stillwatch.evaluation.verdict import Comparison, Figures

EQUAL = 0.1  # share by which the arithmetic of two models may differ and still be called the same
SLIGHT = 0.05  # share of a size below which a difference goes without saying
SIZES = {"params": "parameters", "macs": "multiply-adds", "bytes": "bytes"}


@dataclass(frozen=True)
class Cost(Comparison):
    """Positive differences favour the candidate."""

    base: str
    candidate: str
    about: str  # baseline | narrow | pruned | int8 | both | file
    question: str
    outcome: str  # "better" | "worse" | "unclear" | "same"
    folds: list[int]
    ratio: dict[str, float | None]  # of SIZES, candidate to base
    sentence: str


def compression(models: Sequence[Model], figures: Figures) -> list[Cost]:
    rows = [_row(about, base, candidate, figures) for candidate in models for about, base in _bases(candidate, models)]
    return [row for row in rows if row]


def _bases(candidate: Model, models: Sequence[Model]) -> Iterable[tuple[str, Model]]:
    source = made_from(candidate, models)
    if candidate.exported or candidate.kind == "quantised":
        if source:
            yield "file" if candidate.exported else "int8", source
        before = made_from(source, models) if source and source.kind == "pruned" else None
        if before and candidate.kind == "quantised":
            yield "both", before
    elif candidate.kind == "pruned":
        if source:
            yield "pruned", source
        if narrow := baseline(candidate, models):
            yield "baseline", narrow
    elif candidate.kind == "narrow" and (student := _student(candidate, models)):
        yield "narrow", student


def made_from(model: Model, models: Sequence[Model]) -> Model | None:
    """By its runs; else the student of its family."""
    wanted = set(model.parents)
    if wanted:
        return next((m for m in models if any(entry.name in wanted for entry in m.entries)), None)
    return _student(model, models)


def _student(model: Model, models: Sequence[Model]) -> Model | None:
    family = {m.kind: m for m in models if m.key.family == model.key.family}
    return family.get("distilled") or family.get("alone")


def baseline(pruned: Model, models: Sequence[Model]) -> Model | None:
    """The narrower student nearest in arithmetic."""
    found = [m for m in models if m.kind == "narrow" and m.key.family == pruned.key.family]
    return min(found, key=lambda m: abs(_macs(m) - _macs(pruned)), default=None)


def _macs(model: Model) -> int:
    return model.entries[0].run.info.cost.get("macs") or 0


def _row(about: str, base: Model, candidate: Model, figures: Figures) -> Cost | None:
    pair = pooling.shared(base, candidate)
    found = verdict.paired_difference(*pair) if pair else None
    if pair is None or found is None:
        return None
    one, two = figures[base.name], figures[candidate.name]
    ratio = {key: two[key] / one[key] if one[key] and two[key] else None for key in SIZES}
    words = {told: text.replace("{who}", candidate.key.title) for told, text in WORDS[about].items()}
    which = "" if candidate.name == candidate.kind or about == "file" else f" ({candidate.key.title})"
    luck = about not in ("int8", "file")  # a net and its own INT8 share that of one training
    return Cost(
        **vars(found),
        base=base.name,
        candidate=candidate.name,
        about=about,
        question=QUESTIONS[about].format(candidate.key.title) + which,
        outcome=found.conclusion(luck),
        folds=pair[0].folds,
        ratio=ratio,
        sentence=found.in_words(words, verdict.who(pair[0]), luck) + _size(about, ratio, base.key),
    )


def _size(about: str, ratio: Mapping[str, float | None], base: ModelKey) -> str:
    if about == "baseline":
        share = ratio["macs"]
        return f" The pruned one does {100 * share:.0f} % of the narrower one's arithmetic." if share else ""
    told = {what: ratio[key] or 1 for key, what in SIZES.items()}
    parts = [f"{100 * share:.0f} % of the {what}" for what, share in told.items() if abs(share - 1) > SLIGHT]
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f" It has {listed} of {base.inline}." if parts else ""


# ---- what the steps themselves recorded


def stages(models: Sequence[Model]) -> list[dict[str, object]]:
    """What quantise recorded: [{"model", "run", "fold", "seed", "stages", "stage" (the best), "kept" (may leave the
    lab), "why" (not), "temperature"}].
    """
    return [
        _of(model, entry)
        | {key: getattr(entry.run.info, key) for key in ("stages", "stage", "kept", "why", "temperature")}
        for model in models
        for entry in model.entries
        if model.kind == "quantised" and entry.run.info.stages
    ]


def steps(models: Sequence[Model]) -> list[dict[str, object]]:
    """What prune recorded: [{"model", "run", "fold", "seed", "before", "best", "steps", "widths", "narrow"}].

    before, best: cost and validation figures, if known; widths: {"before", "after"}, layer -> outputs; narrow: the
    baseline's, or None.
    """
    found = []
    for model in models:
        rival = baseline(model, models)
        for entry in model.entries:
            info = entry.run.info
            if model.kind != "pruned" or not info.steps:
                continue
            above = pooling.ancestors(entry.run, {})[:1]
            other = next((e.run.info for e in rival.entries if e.cell == entry.cell), None) if rival else None
            found.append(
                _of(model, entry)
                | {"before": info.before, "steps": info.steps, "widths": info.widths}
                | {"best": above[0].info.best if above else None}
                | {"narrow": other.widths.get("after") if other else None}
            )
    return found


def _of(model: Model, entry: pooling.Entry) -> dict[str, object]:
    return {"model": model.name, "run": entry.name, "fold": entry.cell.fold, "seed": entry.cell.seed}


# ---- what to beware of


def warnings(models: Sequence[Model], figures: Figures) -> list[str]:
    found = []
    for model in models:
        name, parents = model.key.title, model.parents
        if model.kind in ("pruned", "quantised") and made_from(model, models) is None:
            of = f"{', '.join(parents)}, which it was made from, is" if parents else "the student it was made from is"
            found.append(f"{name}: {of} not among the runs compared: there is no telling what it cost")
        for info in (entry.run.info for entry in model.entries if model.kind == "quantised"):
            if info.kept is False:
                found.append(f"{name}: {info.id} stays out of a bundle: {info.why or 'it was not good enough'}")
        if model.kind == "pruned":
            if (narrow := baseline(model, models)) is None:
                near = pooling.narrow_run(model.entries[0].run)
                hint = f": give {near.path.name} too" if near else ", or was not made (prune.narrow)"
                found.append(f"{name}: its baseline, a narrower student distilled for as long, is missing{hint}")
                continue
            one, two = (figures[each.name]["macs"] for each in (model, narrow))
            if one and two and abs(two / one - 1) > EQUAL:
                title = narrow.key.title
                found.append(f"{title} has {two / one:.2f} times the arithmetic of {name}: not an equal fight")
    return found


QUESTIONS = {
    "baseline": "Does pruning beat a narrower student of the same arithmetic?",
    "narrow": "What did being narrower cost?",
    "pruned": "What did pruning cost?",
    "int8": "What did INT8 cost?",
    "both": "What did pruning and INT8 cost together?",
    "file": "Is {} as good as the run it was exported from?",
}


def _price(subject: str, cost: str) -> dict[str, str]:
    return {
        "better": f"{subject} cost nothing: macro-F1 rose by {{}} points",
        "worse": f"{subject} cost {{}} points of macro-F1",
        "unclear": f"No evidence that {cost} cost anything",
        "cannot": f"Cannot tell what {cost} cost",
        "same": f"{subject} cost nothing: macro-F1 is the same",
    }


WORDS = {
    "baseline": {
        "better": "Pruning beats a narrower student: its macro-F1 is {} points higher",
        "worse": "A narrower student beats pruning: its macro-F1 is {} points higher",
        "unclear": "No evidence that pruning beats a narrower student: from the one to the other",
        "cannot": "Cannot tell whether pruning beats a narrower student: from the one to the other",
        "same": "Pruning and a narrower student come out the same in macro-F1",
    },
    "narrow": _price("Being narrower", "being narrower"),
    "pruned": _price("Pruning", "pruning"),
    "int8": _price("INT8", "INT8"),
    "both": _price("Pruning and INT8 together", "pruning and INT8 together"),
    "file": {
        "better": "{who} is {} points better in macro-F1 than the run it was exported from",
        "worse": "{who} is {} points worse in macro-F1 than the run it was exported from",
        "unclear": "{who} is not shown to be worse than the run it was exported from",
        "cannot": "Cannot tell whether {who} is as good as the run it was exported from",
        "same": "{who} has the same macro-F1 as the run it was exported from",
    },
}
