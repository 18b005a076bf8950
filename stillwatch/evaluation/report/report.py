"""Runs become a verdict, a page and report.json. Imports matplotlib and jinja2 only for the page."""

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillwatch import metrics
from stillwatch.atomic import atomic
from stillwatch.evaluation import compression, pooling, verdict
from stillwatch.evaluation.pooling import DISTILLATION, Model
from stillwatch.evaluation.report.occlusion import Looks
from stillwatch.evaluation.verdict import Figures
from stillwatch.metrics import Ints, Names
from stillwatch.recipe import Recipe
from stillwatch.run import Run

Report: TypeAlias = dict[str, Any]  # what report.json holds
Album: TypeAlias = Callable[[Sequence[str]], Mapping[str, NDArray[np.uint8] | None]]
MISTAKES = 24  # the most confident ones that are shown


def compare(
    runs: Sequence[Run],
    out: Path | str,
    pictures: Album | None = None,
    split: str = "test",
    more: Mapping[str, Any] | None = None,
    looks: Looks | None = None,
) -> Report:
    """Compare runs, write the report into `out` and return report.json's content.

    Folds are pooled, seeds averaged. pictures: ids -> {id: uint8 (H,W,C) or None}, for the confident mistakes. more:
    further keys; its "warnings" come first. A part that cannot be computed is null, with a warning. Raises UserError as
    pooling.enter and pooling.models do.
    """
    report, models = assess(runs, split)
    more = dict(more or {})
    report |= more | {"warnings": [*more.get("warnings", []), *report["warnings"]]}
    ids = [sample["id"] for sample in report["mistakes"]["samples"]]
    found = pictures(ids) if pictures and ids else {}
    album = {name: _encoded(picture) for name, picture in found.items() if picture is not None}
    if looks:
        report["hiding"] = [{"run": runs[-1].path.name, **row._asdict()} for row in looks.hidden]
        album["attention"] = _encoded(looks.maps)
    from stillwatch.evaluation.report.html import page

    painted, keys = _paint(report, models), {model.name: model.key for model in models}
    for name in (*PAINTED, "widths"):  # what an earlier report left and this one does not have
        (Path(out) / f"{name}.png").unlink(missing_ok=True)
    files = {f"{name}.png": wide for name, (wide, _) in painted.items()}
    files["report.json"] = (json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    files["report.html"] = page(report, keys, painted, album).encode()
    for name, content in files.items():
        with atomic(Path(out) / name) as draft:
            draft.write_bytes(content)
    return report


def assess(runs: Sequence[Run], split: str = "test") -> tuple[Report, list[Model]]:
    """(report.json's content, its models). Raises UserError like `compare`."""
    entries = pooling.enter(runs, split)
    models, left = pooling.models(entries)
    recipe = entries[0].recipe
    figures = {model.name: judged(model) for model in models}
    families, missing = _comparisons(models, figures)
    comparisons = {name: asdict(family) for name, family in families.items()}
    first = next(iter(comparisons.values()))
    shown = next((m for kind in LAST_FIRST for m in models if m.kind == kind), models[0])
    report: Report = {
        "recipe": ", ".join(dict.fromkeys(entry.recipe.name for entry in entries)),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "split": _split(entries, models, split),
        "labels": list(recipe.labels),
        "safe": list(recipe.safe),
        "models": figures,
        **first,
        **({"comparisons": comparisons} if len(comparisons) > 1 else {}),
        "compression": [asdict(row) for row in compression.compression(models, figures)],
        "stages": compression.stages(models),
        "steps": compression.steps(models),
        "warnings": [*missing, *left, *compression.warnings(models, figures), *verdict.warnings(models, figures)],
        "mistakes": {"model": shown.name, "samples": [asdict(one) for one in confident_mistakes(shown)]},
        "runs": [_run(entry) for entry in entries],
    }
    return report, models


# ---- figures


def judged(model: Model) -> dict[str, Any]:
    recipe, predictions = model.entries[0].recipe, model.predictions
    cost = model.entries[0].run.info.cost
    found = _means(predictions.y, model.p, predictions.group, model.fold, recipe)
    clips = metrics.by_sequence(predictions.sequence, predictions.y, model.p)
    return {
        **found,
        **{key: cost.get(key) for key in ("params", "macs", "bytes")},
        "net": model.entries[0].run.net.name,
        "runtime": model.entries[0].run.info.runtime,
        "seeds": model.seeds,
        "folds": model.folds,
        "epochs": [_epochs(entry) for entry in model.entries],
        "runs": [entry.name for entry in model.entries],
        "reliability": metrics.reliability(
            np.tile(predictions.y, len(model.p)), model.p.reshape(-1, model.p.shape[-1])
        ),
        "seen": verdict.known_vs_new(model),
        "clips": _means(*clips[:2], predictions.group[clips[2]], model.fold[clips[2]], recipe) if clips else None,
    }


def _means(y: Ints, p: NDArray[np.floating], group: Names, fold: Ints, recipe: Recipe) -> dict[str, Any]:
    """metrics.scores of p (S,N,K): mean, "spread" over S, and "ci95"."""
    labels, safe = recipe.labels, recipe.safe
    each = [metrics.scores(y, one, labels, safe, fold) for one in p]
    found: dict[str, Any] = {name: _mean([one[name] for one in each]) for name in metrics.METRICS}
    known = [name for name in metrics.METRICS if found[name] is not None and len(each) > 1]
    spread = {name: float(np.std([one[name] for one in each], ddof=1)) for name in known}
    harmless = [list(labels).index(label) for label in safe]
    return found | {
        "n": len(y),
        "groups": metrics.clusters(group)[1],
        "per_class": {
            label: {key: _mean([one["per_class"][label][key] for one in each]) for key in ("precision", "recall", "f1")}
            | {"support": each[0]["per_class"][label]["support"]}
            for label in labels
        },
        "confusion": np.mean([one["confusion"] for one in each], axis=0).tolist(),
        "ci95": metrics.interval(metrics.METRICS, y, p, group, safe=harmless, folds=fold),
        "spread": spread,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _epochs(entry: pooling.Entry) -> int:
    return int(entry.run.info.epochs or pooling.fit_of(entry.run).epochs)


@dataclass(frozen=True)
class Family:
    """One recipe and student; None where runs are missing."""

    compression_ratio: float | None
    retention: float | None
    verdict: verdict.Verdict | None


def _comparisons(models: Sequence[Model], figures: Figures) -> tuple[dict[str, Family], list[str]]:
    found, missing = {}, []
    for family in dict.fromkeys(model.key.family for model in models if model.kind != "teacher") or [""]:
        kin = {model.kind: model for model in models if model.key.family == family and model.kind != "teacher"}
        of = {kind: model for kind, model in kin.items() if kind in DISTILLATION}
        asked = len(of) == len(kin)  # with compressed ones among them the question is another one
        student = of.get("distilled") or of.get("alone")
        teacher = next(
            (m for m in models if m.kind == "teacher" and (student is None or verdict.related(m, student))), None
        )
        place = f"{family}: " if family else ""
        told = verdict.verdict(of["alone"], of["distilled"]) if len(of) == 2 else None
        if len(of) < 2 and asked:
            absent = " and ".join(f"{kind} runs" for kind in ("alone", "distilled") if kind not in of)
            missing.append(f"{place}no {absent} given: no verdict on distillation")
        if (teacher is None or student is None) and asked:
            missing.append(
                f"{place}no {'student' if teacher else 'teacher'} run given: no compression ratio, no retention"
            )
        elif teacher and student and set(teacher.folds) != set(student.folds):
            missing.append(
                f"{place}the teacher was tested on other folds: retention is of the samples both were tested on"
            )
        kept = ratio = None
        if teacher and student:
            kept = verdict.retention(teacher, student)
            heavy, light = figures[teacher.name]["params"], figures[student.name]["params"]
            ratio = heavy / light if heavy and light else None
        found[family] = Family(ratio, kept, told)
    return dict(sorted(found.items(), key=lambda item: item[1].verdict is None)), missing


def _split(entries: Sequence[pooling.Entry], models: Sequence[Model], split: str) -> dict[str, object]:
    shown = next((model for model in reversed(models) if model.kind in DISTILLATION), models[-1])
    data, predictions = entries[0].recipe.data, shown.predictions
    most = int(np.bincount(predictions.y).argmax())
    return {
        "name": split,
        "how": data.split,
        "folds": data.folds if data.split != "official" else 1,
        "tested": shown.folds,
        "seed": data.seed,
        "fingerprint": entries[0].run.info.fingerprint,
        "n": len(predictions),
        "groups": metrics.clusters(predictions.group)[1] if (predictions.group != "").any() else None,
        "majority": {"label": entries[0].recipe.labels[most], "accuracy": float((predictions.y == most).mean())},
    }


def _run(entry: pooling.Entry) -> dict[str, object]:
    info = entry.run.info
    return {
        "id": entry.name,
        "kind": info.kind,
        "recipe": entry.recipe.name,
        "net": entry.run.net.name,
        "fold": entry.cell.fold,
        "seed": entry.cell.seed,
        "epochs": _epochs(entry),
        "best_epoch": info.best.get("epoch"),
        "parent": info.parent,
        "commit": info.commit,
        "command": info.command,
        "versions": info.versions,
        "started": info.started,
    }


@dataclass(frozen=True)
class Mistake:
    id: str
    true: str
    predicted: str
    probability: float


def confident_mistakes(model: Model) -> list[Mistake]:
    """The wrong answers of highest mean probability, at most two of one recording with the same confusion."""
    labels, predictions = model.entries[0].recipe.labels, model.predictions
    p = metrics.normalised(model.p).mean(0)
    guess, sure = p.argmax(1), p.max(1)
    found = list[Mistake]()
    told: dict[tuple[str, int, int], int] = {}
    for row in np.argsort(-sure, kind="stable"):
        story = (str(predictions.sequence[row]) or str(predictions.id[row]), int(predictions.y[row]), int(guess[row]))
        if guess[row] == predictions.y[row] or told.get(story, 0) >= 2:
            continue
        told[story] = told.get(story, 0) + 1
        true, predicted = labels[predictions.y[row]], labels[guess[row]]
        found.append(Mistake(str(predictions.id[row]), true, predicted, float(sure[row])))
        if len(found) == MISTAKES:
            break
    return found


# ---- pictures and files


def _paint(report: Report, models: Sequence[Model]) -> dict[str, tuple[bytes, bytes]]:
    from stillwatch.evaluation.report import plots

    figures, labels = {model.key: report["models"][model.name] for model in models}, report["labels"]
    histories = {model.key: [entry.run.history() for entry in model.entries] for model in models}
    histories = {name: [run for run in runs if run] for name, runs in histories.items() if any(runs)}
    mixed = {
        name: runs
        for name, runs in histories.items()
        if any(len(run[0]["train"].get("share") or {}) > 1 for run in runs)
    }
    wanted: dict[str, Callable[[bool], bytes]] = {
        "accuracy-loss-size": lambda stacked: plots.bars(figures, stacked),
        "confusion": lambda stacked: plots.confusions(figures, labels, stacked),
        "per-class": lambda stacked: plots.per_class(figures, labels, stacked),
        "reliability": lambda stacked: plots.reliability(figures, stacked),
    }
    if report["verdict"]:
        wanted["difference"] = lambda stacked: plots.difference(report["verdict"], stacked)
    layered = [run for run in report["steps"] if (run["widths"] or {}).keys() >= {"before", "after"}]
    if layered:  # the layers of one model's runs are much alike: the first tells
        first = list({run["model"]: run for run in reversed(layered)}.values())[::-1]
        wanted["widths"] = lambda stacked: plots.widths(first, stacked)
    if histories:
        wanted["curves"] = lambda stacked: plots.curves(histories, stacked)
    if mixed:
        wanted["loss-parts"] = lambda stacked: plots.shares(mixed, stacked)
    return {name: (draw(False), draw(True)) for name, draw in wanted.items()}


def _encoded(picture: NDArray[np.uint8]) -> tuple[str, bytes]:
    from matplotlib.image import imsave

    rgb = picture[..., None] if picture.ndim == 2 else picture
    rgb = np.ascontiguousarray(np.broadcast_to(rgb, (*rgb.shape[:2], 3)) if rgb.shape[2] == 1 else rgb[..., :3])
    tiny = max(rgb.shape[:2]) <= 96
    buffer = io.BytesIO()
    imsave(buffer, rgb, format="png" if tiny else "jpg", pil_kwargs={} if tiny else {"quality": 85})
    return "image/png" if tiny else "image/jpeg", buffer.getvalue()


LAST_FIRST = ("quantised", "pruned", "distilled", "alone", "teacher")  # whose mistakes are shown
PAINTED = ("accuracy-loss-size", "confusion", "per-class", "reliability", "difference", "curves", "loss-parts")
