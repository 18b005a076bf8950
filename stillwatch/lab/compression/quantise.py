"""Quantise: a run's net in INT8, by the cheapest stage that keeps its accuracy and is faster here.

Validation decides; test is read last.
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from stillwatch import metrics
from stillwatch.bundle import INT8
from stillwatch.errors import UserError
from stillwatch.inference import runtimes, timing
from stillwatch.inference.streams import one_look
from stillwatch.lab.compression import ptq
from stillwatch.lab.compression.ptq import Control, QuantConfig
from stillwatch.lab.data.dataset import Dataset, dataset_of
from stillwatch.lab.export import exporters
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.training import pipeline, runs
from stillwatch.lab.training.runs import Predict, RunOptions
from stillwatch.run import Progress, Run

RUNTIMES = ("onnxruntime", "openvino")  # those that read ONNX, by the name of their module
TIE = 1.03  # times this close are equally fast: two races of the same file differ by as much
FIGURES = ("macro_f1", "accuracy", "balanced_accuracy", "loss", "ece")


@dataclass(frozen=True)
class StageResult:
    name: str
    precision: str
    macro_f1: float  # these five in the runtime in which it does worst
    accuracy: float
    balanced_accuracy: float
    loss: float
    ece: float
    drop: float  # points of macro-F1 below the float file
    flips: int  # validation answers that differ from the float file's
    runtime: str  # the fastest
    ms: float  # p50 of one sample, one thread, in that runtime
    fp32_ms: float  # the float file's best in the same race
    runtimes: dict[str, dict[str, float | str]]
    bytes: int
    why: str  # why it may not leave; "" where it may
    kept: bool
    file: Path
    p: NDArray[np.float32]  # (N,K)

    @property
    def share(self) -> float:
        return self.ms / self.fp32_ms

    def row(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("file", "p")}

    def __str__(self) -> str:
        return (
            f"{self.name}: macro-F1 {self.macro_f1:.3f} (drop {self.drop:+.2f} points, {self.flips} other answers)"
            f", {self.ms:.3f} ms in {self.runtime} for FP32's {self.fp32_ms:.3f}, {self.bytes / 1e6:.2f} MB"
            + ("" if self.kept else f": {self.why}")
        )


@dataclass(frozen=True)
class Evaluator:
    data: Dataset
    max_drop: float  # points of macro-F1

    def frame(self, row: int) -> NDArray[np.uint8]:
        """uint8 (1,*shape)."""
        return np.ascontiguousarray(self.data.store.pixels[row]).reshape(1, *self.data.shape)

    def predict(self, fn: Predict, rows: Iterable[int]) -> NDArray[np.float32]:
        return np.concatenate([fn(self.frame(row)) for row in rows])

    def opened(self, file: Path) -> tuple[dict[str, Predict], dict[str, str]]:
        opened: dict[str, Predict] = {}
        refused: dict[str, str] = {}
        for runtime in RUNTIMES:
            if importlib.util.find_spec(runtime):
                try:
                    opened[runtime] = runtimes.open(file, runtime, self.data.shape)
                except UserError as mistake:
                    refused[runtime] = str(mistake)
        return opened, refused

    def check(self, file: Path, rows: Sequence[int]) -> float:
        """Macro-F1 on validation, in the worst runtime; on a few rows, where it hardly moves, the mean log p."""
        y, functions = self.data.y[rows], self.opened(file)[0].values()
        if len(rows) == len(self.data.rows["valid"]):
            return min(metrics.macro_f1(y, self.predict(fn, rows)) for fn in functions)
        return -metrics.loss(y, self.predict(next(iter(functions)), rows))

    def judge(self, name: str, file: Path, reference: StageResult | None = None) -> StageResult:
        """reference: the float file; None where this is it. Raises UserError where no runtime reads the file."""
        recipe, rows = self.data.recipe, self.data.rows["valid"]
        opened, refused = self.opened(file)
        if not opened:
            raise UserError(f"{name}: no runtime reads it: {'; '.join(refused.values())}")
        p = {runtime: self.predict(fn, rows) for runtime, fn in opened.items()}
        scores = {key: metrics.scores(self.data.y[rows], p[key], recipe.labels, recipe.safe) for key in p}
        worst = min(scores, key=lambda runtime: scores[runtime]["macro_f1"])

        # ---- p50 of one sample by runtime, of both files, all taking turns
        frame, rival = self.frame(int(self.data.rows["train"][0])), self.opened(reference.file)[0] if reference else {}
        entrants = {f"int8 {runtime}": one_look(fn, frame) for runtime, fn in opened.items()}
        entrants |= {f"fp32 {runtime}": one_look(fn, frame) for runtime, fn in rival.items()}
        times = {name: 1e3 * float(np.median(seconds)) for name, seconds in timing.race(entrants).items()}
        fastest = min(opened, key=lambda runtime: times[f"int8 {runtime}"])
        ms = times[f"int8 {fastest}"]
        fp32_ms = min((times[f"fp32 {runtime}"] for runtime in rival), default=ms)

        drop, flips, why = 0.0, 0, list[str]()
        if reference:
            drop = 100 * (reference.macro_f1 - scores[worst]["macro_f1"])
            flips = int((p[worst].argmax(1) != reference.p.argmax(1)).sum())
            if drop > self.max_drop:
                why.append(f"macro-F1 falls by {drop:.2f} points, above quantise.max_drop = {self.max_drop:g}")
            if ms >= fp32_ms:
                why.append(f"{ms:.3f} ms here, no faster than FP32's {fp32_ms:.3f}")
        rows_by_runtime: dict[str, dict[str, float | str]] = {
            key: {
                "ms": times[f"int8 {key}"],
                "fp32_ms": times.get(f"fp32 {key}", times[f"int8 {key}"]),
                "macro_f1": scores[key]["macro_f1"],
            }
            for key in opened
        }
        return StageResult(
            name=name,
            precision="int8" if reference else "fp32",
            **{key: scores[worst][key] for key in FIGURES},
            drop=drop,
            flips=flips,
            runtime=fastest,
            ms=ms,
            fp32_ms=fp32_ms,
            runtimes=rows_by_runtime | {runtime: {"why_not": reason} for runtime, reason in refused.items()},
            bytes=file.stat().st_size,
            why="; ".join(why),
            kept=not why,
            file=file,
            p=p[worst],
        )

    def best(self, stages: Sequence[StageResult]) -> StageResult:
        """The most accurate of the fastest acceptable ones; else the least harmful."""
        if kept := [stage for stage in stages if stage.kept]:
            least = min(stage.share for stage in kept)
            return max((s for s in kept if s.share <= TIE * least), key=lambda stage: stage.macro_f1)
        return min(stages, key=lambda s: (s.share >= 1, max(s.drop, self.max_drop), s.share))


def quantise(run: Run, options: RunOptions, anyway: bool = False) -> Run:
    """Bring a finished run's net to INT8 as the recipe's [quantise] says.

    Always writes the best file; info.kept and info.why say whether export may use it. Raises UserError for changed data
    and a run that cannot be quantised, or learnt nothing (unless `anyway`).
    """
    progress = options.progress
    runs.require_finished(run, runs.TRAINED, f"one of a net: {', '.join(runs.TRAINED)}")
    runs.require_learnt(run, "not quantised", anyway, progress)
    recipe, data = run.recipe, dataset_of(run, progress)
    evaluator = Evaluator(data, recipe.quantise.max_drop)
    teacher, accelerator = runs.teacher_of(run), pipeline.device(recipe.fit_in("quantise"))
    about = {"teacher": teacher.path.name if teacher else None, "temperature": exporters.temperature_of(run)}
    made = runs.create_or_resume(recipe, "quantised", run, data, accelerator, options, **about)
    with runs.recording_failure(made, accelerator), tempfile.TemporaryDirectory() as scratch:
        calibration = spread(data, recipe.quantise.frames)
        reference = evaluator.judge("fp32", _export_float(runs.load_net(run), run, data, Path(scratch) / "fp32.onnx"))
        stages = _stages(evaluator, reference, calibration, run, made, progress)
        best = evaluator.best(stages)
        made.save(INT8, partial(shutil.copyfile, best.file))
        fn = runtimes.open(made.path / INT8, best.runtime, data.shape)
        runs.save_split_predictions(made, data, lambda x: fn(x.reshape(-1, *data.shape)), progress)
        progress.say(f"{made.path}: {best.name}" + ("" if best.kept else f", left out of a bundle: {best.why}"))
        made.finish(
            stages=[stage.row() for stage in (reference, *stages)],
            stage=best.name,
            kept=best.kept,
            why=best.why,
            calibration=len(calibration),
            cost={**run.info.cost, "bytes": best.bytes},
            best={"epoch": run.info.best["epoch"], **{key: getattr(best, key) for key in FIGURES}},
        )
    return made


def _export_float(net: Classifier, run: Run, data: Dataset, path: Path) -> Path:
    return exporters.to_onnx(net, data.shape, path, exporters.temperature_of(run), opset=run.recipe.export.opset)


def spread(data: Dataset, frames: int) -> list[int]:
    """At most `frames` training rows, even over groups, classes and time."""
    order = sorted(
        data.rows["train"], key=lambda row: (data.samples[row].group, int(data.y[row]), data.samples[row].id)
    )
    places = np.linspace(0, len(order) - 1, min(frames, len(order))).round().astype(int)
    return [int(order[place]) for place in places]


def _stages(
    evaluator: Evaluator, reference: StageResult, calibration: list[int], run: Run, made: Run, progress: Progress
) -> list[StageResult]:
    recipe, folder = run.recipe, reference.file.parent
    stages: list[StageResult] = []
    configs: dict[str, QuantConfig] = {}

    def attempt(config: QuantConfig, source: Path, control: Control | None = None) -> bool:
        progress.say(f"{config.name}: calibrated on {len(calibration)} training frames")
        target = folder / f"int8-{len(stages)}.onnx"
        ptq.quantise_file(source, target, calibration, evaluator.frame, config, control)
        stages.append(evaluator.judge(config.name, target, reference))
        configs[config.name] = config
        progress.say(str(stages[-1]))
        return stages[-1].kept

    # ---- post-training, in each arrangement
    has_se = bool(ptq.squeezes(onnx.load(reference.file)))
    if not has_se or recipe.quantise.float_se != "yes":
        attempt(QuantConfig("post-training"), reference.file)
    if has_se and recipe.quantise.float_se != "no":
        attempt(QuantConfig("post-training, squeeze-and-excitation in float", True), reference.file)
    if all(stage.share >= 1 for stage in stages):  # ONNX Runtime runs less in INT8 than OpenVINO does
        config = configs[evaluator.best(stages).name]
        attempt(QuantConfig("post-training, one scale an activation", config.float_se, plain=True), reference.file)
    if any(stage.kept for stage in stages) or all(stage.share >= 1 for stage in stages):
        return stages  # good enough; or slower here, which more float layers would not mend

    # ---- accuracy-aware: the most harmful layers go back to float
    config, valid = configs[evaluator.best(stages).name], evaluator.data.rows["valid"].tolist()
    control = Control(evaluator.check, valid, evaluator.frame, evaluator.max_drop / 100)
    if attempt(config._replace(name="accuracy-aware"), reference.file, control) or not recipe.quantise.qat:
        return stages

    # ---- quantisation-aware training under the float teacher, then the same again
    from stillwatch.lab.compression import qat  # only a net that needs it is trained again

    teacher, place = runs.teacher_of(run), Run(made.path / "qat", made.info)
    net, teacher_net = runs.load_net(run), runs.load_teacher(teacher) if teacher else None
    place.path.mkdir(exist_ok=True)
    qat.learn(net, teacher_net, evaluator.data, recipe.fit_in("quantise"), config, place, progress)
    source = _export_float(net, run, evaluator.data, folder / "qat.onnx")
    # Training moves the float net as well: what its layers in float can still give back is counted from there
    left = evaluator.check(source, valid) - (reference.macro_f1 - evaluator.max_drop / 100)
    if not attempt(config._replace(name="quantisation-aware"), source) and left >= 0:
        attempt(config._replace(name="quantisation-aware, accuracy-aware"), source, control._replace(max_drop=left))
    return stages
