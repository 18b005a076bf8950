"""Quantise: a finished run's net in INT8, by the cheapest means that keeps its accuracy and is faster here.

In: a run, the functions that open and time a file. Out: a run of kind "quantised": model-int8.onnx, its predictions,
and in run.json every stage that was tried. Called by the CLI. Chosen on validation alone; test is looked at last.
Stages in order: post-training (ptq), accuracy-aware (ptq), quantisation-aware training (qat).
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillwatch import metrics
from stillwatch.bundle import INT8
from stillwatch.errors import UserError
from stillwatch.lab.compression import ptq, qat
from stillwatch.lab.compression.ptq import Control, QuantConfig
from stillwatch.lab.export import exporters
from stillwatch.lab.models import nets
from stillwatch.lab.training import lessons
from stillwatch.lab.training.lessons import Dataset, Kit, Predict
from stillwatch.run import NO_PROGRESS, Progress, Run

Opener: TypeAlias = Callable[[Path, str, tuple[int, ...]], Predict]  # file, runtime, shape of a sample
Race: TypeAlias = Callable[[Mapping[str, Callable[[], Any]]], dict[str, NDArray[np.float64]]]  # seconds of each call
Row: TypeAlias = dict[str, Any]  # one stage, as it stands in run.json

RUNTIMES = ("onnxruntime", "openvino")  # those that read ONNX, by the name of their module
TIE = 1.03  # times this close are equally fast: two races of the same file differ by as much
FIGURES = ("macro_f1", "accuracy", "balanced_accuracy", "loss", "ece")


@dataclass(frozen=True)
class Evaluator:
    """What every stage is judged with."""

    data: Dataset
    opener: Opener
    race: Race
    runtimes: tuple[str, ...]
    max_drop: float  # points of macro-F1
    voice: Progress

    def frame(self, row: int) -> NDArray[np.uint8]:
        """One sample of the data, uint8 (1,*shape)."""
        return np.ascontiguousarray(self.data.store.pixels[row]).reshape(1, *self.data.shape)

    def answers(self, fn: Predict, rows: Iterable[int]) -> NDArray[np.float32]:
        return np.concatenate([fn(self.frame(row)) for row in rows])


class StageResult(NamedTuple):
    """A file, its row in the report, and what it says of the validation split (N,K)."""

    file: Path
    row: Row
    p: NDArray[np.float32]


def quantise(
    run: Run,
    opener: Opener,
    race: Race,
    root: Path | str = "runs",
    voice: Progress = NO_PROGRESS,
) -> Run:
    """Bring a finished run's net to INT8 as its recipe's [quantise] says. Returns the new run, finished.

    opener: opens a file in a runtime; race: times functions that take turns. info.stages has a row for all that
    was tried: {"name", "precision", "macro_f1", "accuracy", "drop" in points, "flips" (validation answers that became
    others), "ms" (p50 of one sample, one thread, its best runtime), "runtime", "fp32_ms" (the float file's best in the
    same race), "bytes", "kept", "why", "runtimes"}. The best one's file is there in any case; info.kept says whether
    it may leave, else info.why why not. It has the temperature that export gives the run's other files.
    Raises UserError for a run that is not finished or is no net, and for data that are no longer those it learnt from.
    """
    lessons.finished(run, lessons.TRAINED, f"one of a net: {', '.join(lessons.TRAINED)}")
    recipe = run.recipe
    plan = recipe.fit_in("quantise")
    data = lessons.material_of(run, voice)
    runtimes = tuple(name for name in RUNTIMES if importlib.util.find_spec(name))
    jury = Evaluator(data, opener, race, runtimes, recipe.quantise.max_drop, voice)
    teacher, accelerator = lessons.teacher_of(run), lessons.device(plan)
    about = {"teacher": teacher.path.name if teacher else None, "temperature": exporters.temperature_of(run)}
    made = lessons.create_or_resume(
        recipe, "quantised", run, data, accelerator, Kit(root, run.text, False, voice), **about
    )
    with lessons.noting_failure(made, accelerator), tempfile.TemporaryDirectory() as scratch:
        calibration = spread(data, recipe.quantise.frames)
        float_file = _float(lessons.load(run), run, jury, Path(scratch) / "fp32.onnx")
        reference = _judged(jury, "fp32", float_file, None)
        stages = _stages(jury, reference, calibration, run, made)
        best = _best(stages, jury.max_drop)
        row = best.row
        made.save(INT8, partial(shutil.copyfile, best.file))
        fn = opener(made.path / INT8, row["runtime"], data.shape)
        lessons.save_split_predictions(made, data, lambda x: fn(x.reshape(-1, *data.shape)), voice)
        voice.say(f"{made.path}: {row['name']}" + ("" if row["kept"] else f", left out of a bundle: {row['why']}"))
        made.finish(
            stages=[reference.row, *(stage.row for stage in stages)],
            stage=row["name"],
            kept=row["kept"],
            why=row["why"],
            calibration=len(calibration),
            cost={**run.info.cost, "bytes": row["bytes"]},
            best={"epoch": run.info.best["epoch"], **{key: row[key] for key in FIGURES}},
        )
    return made


# ---- the stages


def _float(net: nets.Classifier, run: Run, jury: Evaluator, path: Path) -> Path:
    """The net as a float file, with the temperature that all of the run's files have."""
    return exporters.to_onnx(net, jury.data.shape, path, exporters.temperature_of(run), opset=run.recipe.export.opset)


def spread(data: Dataset, frames: int) -> list[int]:
    """So many training rows (all, where there are fewer), evenly over groups, over classes in them, over their time."""
    train = data.rows["train"]
    order = sorted(train, key=lambda row: (data.samples[row].group, int(data.y[row]), data.samples[row].id))
    places = np.linspace(0, len(order) - 1, min(frames, len(order))).round().astype(int)
    return [int(order[place]) for place in places]


def _stages(jury: Evaluator, reference: StageResult, calibration: list[int], run: Run, made: Run) -> list[StageResult]:
    """One stage after the other until one may leave."""
    recipe, stages, folder = run.recipe, list[StageResult](), reference.file.parent

    def tried(way: QuantConfig, source: Path, control: Control | None = None) -> bool:
        jury.voice.say(f"{way.name}: calibrated on {len(calibration)} training frames")
        target = folder / f"int8-{len(stages)}.onnx"
        ptq.quantised(source, target, calibration, jury.frame, way, control)
        stages.append(_judged(jury, way.name, target, reference))
        jury.voice.say(_line(stages[-1].row))
        return bool(stages[-1].row["kept"])

    # ---- post-training, in each arrangement
    ways = {way.name: way for way in _ways(reference.file, recipe.quantise.float_se)}
    for way in ways.values():
        tried(way, reference.file)
    if not any(_faster(stage.row) for stage in stages):  # ONNX Runtime runs less in INT8 than OpenVINO does
        way = ways[_best(stages, jury.max_drop).row["name"]]
        way = QuantConfig("post-training, one scale an activation", way.float_se, plain=True)
        ways[way.name] = way
        tried(way, reference.file)
    if any(stage.row["kept"] for stage in stages) or not any(_faster(stage.row) for stage in stages):
        return stages  # good enough; or slower here, which more float layers would not mend

    # ---- accuracy-aware: the most harmful layers go back to float
    way = ways[_best(stages, jury.max_drop).row["name"]]
    check, valid = _scored(jury), jury.data.rows["valid"].tolist()
    control = Control(check, valid, jury.frame, jury.max_drop / 100)
    if tried(way._replace(name="accuracy-aware"), reference.file, control) or not recipe.quantise.qat:
        return stages

    # ---- quantisation-aware training under the float teacher, then the same again
    teacher = lessons.teacher_of(run)
    net, master = lessons.load(run), lessons.load(teacher) if teacher else None
    place = Run(made.path / "qat")
    place.path.mkdir(exist_ok=True)
    qat.learn(net, master, jury.data, recipe.fit_in("quantise"), way, place, jury.voice)
    source = _float(net, run, jury, folder / "qat.onnx")
    # Training moves the float net as well: what its layers in float can still give back is counted from there
    left = check(source, valid) - (reference.row["macro_f1"] - jury.max_drop / 100)
    if not tried(way._replace(name="quantisation-aware"), source) and left >= 0:
        tried(way._replace(name="quantisation-aware, accuracy-aware"), source, control._replace(max_drop=left))
    return stages


def _ways(file: Path, float_se: str) -> list[QuantConfig]:
    import onnx

    there = bool(ptq.squeezes(onnx.load(file)))
    both = [QuantConfig("post-training"), QuantConfig("post-training, squeeze-and-excitation in float", True)]
    return both if there and float_se == "auto" else both[1:] if there and float_se == "yes" else both[:1]


# ---- judging


def _judged(jury: Evaluator, name: str, file: Path, reference: StageResult | None) -> StageResult:
    """One file on the validation split and in a race with the float one, in every runtime that reads it.

    Its figures are those of the runtime in which it does worst, its time that of the one in which it is fastest.
    reference: the float file; None where this is it. Raises UserError where no runtime reads the file.
    """
    rows, recipe = jury.data.rows["valid"], jury.data.recipe
    opened, refused = _opened(jury, file)
    if not opened:
        raise UserError(f"{name}: no runtime reads it: {'; '.join(refused.values())}")
    said = {runtime: jury.answers(fn, rows) for runtime, fn in opened.items()}
    scores = {r: metrics.scores(jury.data.y[rows], p, recipe.labels, recipe.safe) for r, p in said.items()}
    worst = min(scores, key=lambda runtime: scores[runtime]["macro_f1"])
    row: Row = {"name": name, "precision": "int8" if reference else "fp32"}
    row |= {key: scores[worst][key] for key in FIGURES}
    row["drop"] = 100 * (reference.row["macro_f1"] - row["macro_f1"]) if reference else 0.0
    row["flips"] = int((said[worst].argmax(1) != reference.p.argmax(1)).sum()) if reference else 0
    row |= _times(jury, opened, _opened(jury, reference.file)[0] if reference else {})
    row["bytes"] = file.stat().st_size
    for runtime, found in row["runtimes"].items():
        found["macro_f1"] = scores[runtime]["macro_f1"]
    row["runtimes"] |= {runtime: {"why_not": why} for runtime, why in refused.items()}
    row["why"] = _why_not(row, jury.max_drop) if reference else ""
    row["kept"] = not row["why"]
    return StageResult(file, row, said[worst])


def _times(jury: Evaluator, opened: dict[str, Predict], rivals: dict[str, Predict]) -> Row:
    """{"runtime", "ms", "fp32_ms", "runtimes"}: p50 of one sample, all of them taking turns."""
    frame = jury.frame(int(jury.data.rows["train"][0]))
    entrants = {("int8", runtime): fn for runtime, fn in opened.items()}
    entrants |= {("fp32", runtime): fn for runtime, fn in rivals.items()}
    seconds = jury.race({" ".join(key): partial(fn, frame) for key, fn in entrants.items()})
    ms = {key: 1e3 * float(np.median(seconds[" ".join(key)])) for key in entrants}
    best = min(opened, key=lambda runtime: ms["int8", runtime])
    return {
        "runtime": best,
        "ms": ms["int8", best],
        "fp32_ms": min((ms["fp32", runtime] for runtime in rivals), default=ms["int8", best]),
        "runtimes": {r: {"ms": ms["int8", r], "fp32_ms": ms.get(("fp32", r), ms["int8", r])} for r in opened},
    }


def _opened(jury: Evaluator, file: Path) -> tuple[dict[str, Predict], dict[str, str]]:
    """The file in each runtime that reads it, and why the others do not."""
    opened: dict[str, Predict] = {}
    refused: dict[str, str] = {}
    for runtime in jury.runtimes:
        try:
            opened[runtime] = jury.opener(file, runtime, jury.data.shape)
        except UserError as mistake:
            refused[runtime] = str(mistake)
    return opened, refused


def _scored(jury: Evaluator) -> ptq.Check:
    """A file's macro-F1 on validation, in the runtime in which it is worst; on a few rows the mean log p of the truth,
    for there macro-F1 would be the same for most layers."""

    def check(file: Path, rows: Sequence[int]) -> float:
        y, whole = jury.data.y[rows], len(rows) == len(jury.data.rows["valid"])
        said = [jury.answers(fn, rows) for fn in list(_opened(jury, file)[0].values())[: None if whole else 1]]
        return min(metrics.macro_f1(y, p) for p in said) if whole else -metrics.loss(y, said[0])

    return check


def _why_not(row: Row, max_drop: float) -> str:
    """Why a stage may not leave; "" where it may."""
    why = []
    if row["drop"] > max_drop:
        why.append(f"macro-F1 falls by {row['drop']:.2f} points, above quantise.max_drop = {max_drop:g}")
    if not _faster(row):
        why.append(f"{row['ms']:.3f} ms here, no faster than FP32's {row['fp32_ms']:.3f}")
    return "; ".join(why)


def _best(stages: Sequence[StageResult], max_drop: float) -> StageResult:
    """The stage to go on with: of those that may leave the most accurate of the fastest, else the least harmful."""
    kept = [stage for stage in stages if stage.row["kept"]]
    if kept:
        least = min(_share(stage.row) for stage in kept)
        return max((s for s in kept if _share(s.row) <= TIE * least), key=lambda stage: stage.row["macro_f1"])
    return min(stages, key=lambda s: (not _faster(s.row), max(s.row["drop"], max_drop), _share(s.row)))


def _share(row: Row) -> float:
    """Its time as a share of the float file's in the same race: what can be compared between races."""
    return float(row["ms"] / row["fp32_ms"])


def _faster(row: Row) -> bool:
    return _share(row) < 1


def _line(row: Row) -> str:
    return (
        f"{row['name']}: macro-F1 {row['macro_f1']:.3f} (drop {row['drop']:+.2f} points, {row['flips']} other answers)"
        f", {row['ms']:.3f} ms in {row['runtime']} for FP32's {row['fp32_ms']:.3f}, {row['bytes'] / 1e6:.2f} MB"
        + ("" if row["kept"] else f": {row['why']}")
    )
