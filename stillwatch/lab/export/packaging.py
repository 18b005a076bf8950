"""Packaging: a finished run becomes a bundle of files proved to give what the lab's net gives, or nothing at all.

Temperature, threshold and figures come from the validation split alone.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import stillwatch
from stillwatch import bundle, metrics, predictions
from stillwatch.errors import UserError
from stillwatch.inference import runtimes
from stillwatch.lab.data.dataset import Dataset, dataset_of
from stillwatch.lab.export.card import card
from stillwatch.lab.export.exporters import EXPORTERS, Exported, Exporter, temperature_of
from stillwatch.lab.models import nets
from stillwatch.lab.training.runs import TRAINED, Predict, load_net, require_finished
from stillwatch.media import image, synthetic
from stillwatch.recipe import Recipe
from stillwatch.registry import bind
from stillwatch.run import NO_PROGRESS, Progress, Run

# A float file differs between machines by rounding alone. INT8 may differ by far more: a processor without VNNI adds
# pairs of products in 16 bits, which saturate, and each runtime chooses for itself which layers to fuse. Measured over
# ten INT8 students: up to 0.08 between ONNX Runtime and OpenVINO, and as much between OpenVINO with VNNI and without.
TOLERANCE = {"fp32": 1e-3, "int8": 0.15}


class Proof(NamedTuple):
    """What one file gives: why it may not leave ("" where it may), its figures, and its golden probabilities (8,K)."""

    why: str
    golden: NDArray[np.float32]
    figures: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Reference:
    """What the lab's net gives for the validation split and the golden frames, at its temperature."""

    data: Dataset
    p: NDArray[np.float32]  # (N,K)
    threshold: float | None
    frames: NDArray[np.uint8]  # the golden ones (8,*shape)
    golden: NDArray[np.float32]  # (8,K)

    def prove(self, made: Exported, max_drop: float | None) -> Proof:
        """max_drop: points of macro-F1 that an INT8 file may lose; None: a float file, which may lose nothing."""
        try:
            fn = runtimes.open(made.path, made.runtime, self.data.shape)
            p, golden = _predict(fn, self.data), fn(self.frames)
        except UserError as mistake:
            return Proof("cannot be tried: " + str(mistake).replace(f"{made.path.parent}/", ""), self.golden, {})
        for found, wanted in ((p, self.p), (golden, self.golden)):
            if found.shape != wanted.shape or not np.isfinite(found).all():
                why = f"gives {found.shape} of {wanted.shape} probabilities, or some that are no numbers"
                return Proof(why, golden, {})
        figures = self._figures(p)
        if max_drop is None:
            why = self._unfaithful(p, self.p, "validation") or self._unfaithful(golden, self.golden, "golden")
        else:
            y = self.data.y[self.data.rows["valid"]]
            drop = 100 * (metrics.macro_f1(y, self.p) - figures["valid"]["macro_f1"])
            limit = f"above quantise.max_drop = {max_drop:g}"
            why = f"macro-F1 falls by {drop:.2f} points, {limit}" if drop > max_drop else ""
        return Proof(why, golden, figures)

    def _figures(self, p: NDArray[np.float32]) -> dict[str, dict[str, Any]]:
        """What one file reaches, and how near it stays to the lab's net."""
        recipe, y = self.data.recipe, self.data.y[self.data.rows["valid"]]
        safe = [recipe.labels.index(label) for label in recipe.safe]
        scores = metrics.scores(y, p, recipe.labels, recipe.safe)
        valid = {key: scores[key] for key in ("n", "accuracy", "macro_f1", "ece", "loss")}
        if self.threshold is not None:
            alarm, harmless = metrics.alarm_score(p, safe) >= self.threshold, np.isin(y, safe)
            valid |= {"recall": float(alarm[~harmless].mean()), "false_alarm_rate": float(alarm[harmless].mean())}
        return {"valid": valid, "parity": metrics.agreement(self.p, p, safe, self.threshold)}

    def _unfaithful(self, p: NDArray[np.float32], wanted: NDArray[np.float32], frames: str) -> str:
        limit = self.data.recipe.export.max_difference
        furthest = float(np.abs(p - wanted).max())
        if furthest > limit:
            return (
                f"differs from PyTorch by up to {furthest:.2g} on {frames} frames, "
                f"above export.max_difference = {limit:g}"
            )
        top = np.sort(wanted, axis=1)
        clear = (p.argmax(1) != wanted.argmax(1)) & (top[:, -1] - top[:, -2] > limit)
        count = int(clear.sum())
        return f"names another class than PyTorch on {count} {frames} frames that were no close call" if count else ""


def export(
    run: Run,
    int8: Run | None = None,
    out: Path = Path("bundle"),
    formats: Sequence[str] = (),
    voice: Progress = NO_PROGRESS,
) -> bundle.Bundle:
    """Write the bundle of a finished run. formats: of EXPORTERS, besides the recipe's; "onnx" is always there.

    int8: what `quantise` made of this run; a file that it did not keep stays out, with its reason in the manifest.
    A file whose probabilities differ from PyTorch's by more than export.max_difference, or that names another class
    where the call was not that close, is left out with its figures. INT8 is held to the macro-F1 that its run allowed.
    Raises UserError, and leaves what was there, where that file is model.onnx, the run is not finished, int8 is another
    run's, or the data have changed since.
    """
    require_finished(run, TRAINED, "run with a net")
    if int8:
        if int8.info.kind != "quantised" or int8.info.status != "done":
            raise UserError(f"{int8.path}: a {int8.info.kind} run ({int8.info.status}), not what `quantise` made")
        if (parent := int8.info.parent) != run.path.name:
            raise UserError(f"{int8.path}: is the INT8 of {parent}, not of {run.path.name}; quantise this run")
    recipe = run.recipe
    names = dict.fromkeys(("onnx", *recipe.export.formats, *formats))
    exporters = {name: bind(EXPORTERS, name, given=5, place="export.formats") for name in names}
    net, data = load_net(run), dataset_of(run, voice)
    reference, calibration = _reference(run, net, data)
    with tempfile.TemporaryDirectory() as scratch:
        made, left = _export_all(net, data, exporters, calibration["temperature"]["value"], Path(scratch), voice)
        if int8 and int8.info.kept:
            made.append(Exported(int8.path / bundle.INT8, "onnxruntime"))
        elif int8:
            left.append({"name": bundle.INT8, "why": int8.info.why, "stages": int8.info.stages})
        models, golden, files = [], {}, dict[str, Path | bytes]()
        for file in voice.bar(made, len(made), "validation"):
            is_int8 = file.path.name == bundle.INT8
            proof = reference.prove(file, int8.recipe.quantise.max_drop if int8 and is_int8 else None)
            if proof.why and file.path.name == "model.onnx":
                raise UserError(f"{run.path}: not exported: model.onnx {proof.why}")
            if proof.why:
                left.append({"name": file.path.name, "why": proof.why, **proof.figures})
                continue
            models.append(_model(file, "int8" if is_int8 else "fp32", proof))
            golden[file.path.name] = proof.golden
            files |= {name: file.path.with_name(name) for name in models[-1].files}
        manifest = bundle.Manifest(
            name=recipe.name,
            labels=recipe.labels,
            safe=recipe.safe,
            input=bundle.Input(shape=data.shape, fit=recipe.data.fit),
            rule=recipe.rule.model_dump(mode="json"),
            **calibration,
            run=_origin(run, recipe, int8),
            licence=recipe.export.licence,
            created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            stillwatch=stillwatch.__version__,
            models=tuple(models),
            left_out=tuple(left),
        )
        sizes = {name: path.stat().st_size for name, path in files.items() if isinstance(path, Path)}
        files["CARD.md"] = card(manifest, sizes, len(reference.frames), _test_figures(run, recipe)).encode()
        return bundle.write(out, manifest, files, reference.frames, golden)


def _export_all(
    net: nets.Classifier,
    data: Dataset,
    exporters: Mapping[str, Exporter],
    temperature: float,
    folder: Path,
    voice: Progress,
) -> tuple[list[Exported], list[dict[str, Any]]]:
    """Every format's file, and why one could not be made. Raises UserError where that is "onnx"."""
    made, left = [], []
    for name in voice.bar(exporters, len(exporters), "export"):
        try:
            made.append(exporters[name](net, data.shape, folder, temperature, data.recipe.export.opset))
        except UserError as mistake:
            if name == "onnx":
                raise
            left.append({"name": name, "why": str(mistake)})
        except ImportError as error:
            left.append({"name": name, "why": f"{error.name} is not installed; pip install 'stillwatch[{name}]'"})
    return made, left


def _model(file: Exported, precision: Literal["fp32", "int8"], proof: Proof) -> bundle.Model:
    return bundle.Model(
        name=file.path.name,
        files=(file.path.name, *([file.beside] if file.beside else [])),
        precision=precision,
        batch=file.batch,
        tolerance=TOLERANCE[precision],
        figures=proof.figures,
    )


def _reference(run: Run, net: nets.Classifier, data: Dataset) -> tuple[Reference, dict[str, Any]]:
    """The lab's net at its temperature, and the manifest's `temperature` and `operating`."""
    recipe, y = run.recipe, data.y[data.rows["valid"]]
    safe = [recipe.labels.index(label) for label in recipe.safe]
    frames, temperature = golden_frames(data.shape, recipe.data.fit), temperature_of(run)

    def logits(x: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return net(torch.from_numpy(x)).logits.numpy()

    valid, drawn = _predict(logits, data), logits(frames)
    raw, p, golden = (
        net.probabilities(torch.from_numpy(values / by)).numpy()
        for values, by in ((valid, 1), (valid, temperature), (drawn, temperature))
    )
    calibration = {"value": temperature, "ece_before": metrics.ece(y, raw), "ece_after": metrics.ece(y, p)}
    point: dict[str, Any] | None = metrics.operating_point(y, p, safe, recipe.export.false_alarms)
    if point:
        harmless = int(np.isin(y, safe).sum())
        point |= {"wanted": recipe.export.false_alarms, "split": "valid", "safe": harmless, "others": len(y) - harmless}
    reference = Reference(data, p, point["threshold"] if point else None, frames, golden)
    return reference, {"temperature": calibration | {"split": "valid"}, "operating": point}


def _predict(fn: Predict, data: Dataset) -> NDArray[np.float32]:
    """The validation split, 64 samples at a time."""
    rows = data.rows["valid"]
    batches = (data.store.pixels[rows[start : start + 64]] for start in range(0, len(rows), 64))
    return np.concatenate([fn(np.ascontiguousarray(x).reshape(-1, *data.shape)) for x in batches])


def golden_frames(shape: tuple[int, ...], fit: Literal["stretch", "letterbox", "crop"]) -> NDArray[np.uint8]:
    """Eight samples (8,*shape), the same on every machine: six drawn cabins and streets, two of coarse noise."""
    rng = np.random.default_rng(8)
    *clip, height, width, channels = shape
    count = clip[0] if clip else 1
    drawn = []
    for number in range(6):
        scene = "cabin" if number < 4 else "street"
        label = synthetic.LABELS[scene][number % len(synthetic.LABELS[scene])]
        for frame in range(count):
            drawn.append(image.fit(synthetic.still(scene, label, number, frame), (height, width), fit, channels))
    for _ in range(2 * count):  # in blocks, so that it packs: a bundle need not carry random bytes
        blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), channels), dtype=np.uint8)
        drawn.append(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])
    return np.stack(drawn).reshape(8, *shape)


def _origin(run: Run, recipe: Recipe, int8: Run | None) -> dict[str, Any]:
    """Where the bundle comes from, without a path of the machine that made it."""
    resolved = _without_folders(recipe.model_dump(mode="json"))
    del resolved["data"]["root"]
    keys = ("id", "kind", "commit", "fingerprint", "parent", "teacher", "cost", "seed")
    origin = {key: getattr(run.info, key) for key in keys}
    return origin | {"int8": int8.info.id if int8 else None, "versions": run.info.versions, "recipe": resolved}


def _without_folders(value: Any) -> Any:
    """Every absolute path, of weights or of a teacher's run, cut down to its last name."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _test_figures(run: Run, recipe: Recipe) -> dict[str, Any] | None:
    """Figures of people or cameras never met, where the run was tested."""
    if not predictions.has(run, "test"):
        return None
    test = predictions.read(run, "test")
    scores = metrics.scores(test.y, test.p, recipe.labels, recipe.safe)
    ends = metrics.interval(["macro_f1"], test.y, test.p, test.group)["macro_f1"]
    groups = metrics.clusters(test.group)[1]
    return scores | {"groups": groups, "named": bool((test.group != "").any()), "ci95": ends}
