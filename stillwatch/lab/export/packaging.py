"""Pack: a finished run becomes a bundle: files proved to give what the lab's net gives, or nothing at all.

In: a run, perhaps its INT8 run, an opener of files. Out: a Bundle with temperature, threshold, figures and golden
frames, all found on the validation split. Called by the CLI. The files are export's, the folder is bundle's.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

import stillwatch
from stillwatch import bundle, metrics
from stillwatch.errors import UserError, nearest
from stillwatch.lab.export.card import card
from stillwatch.lab.export.exporters import EXPORTERS, temperature_of
from stillwatch.lab.models import nets
from stillwatch.lab.training import lessons
from stillwatch.media import image as pixels
from stillwatch.media import synthetic
from stillwatch.recipe import Recipe
from stillwatch.run import NO_PROGRESS, Progress, Run

Predict: TypeAlias = lessons.Predict
# (file, runtime, shape of a sample) -> its function
Opener: TypeAlias = Callable[[Path, str, tuple[int, ...]], Predict]

READERS = {"onnx": "onnxruntime", "onnx-legacy": "onnxruntime", "openvino": "openvino", "ncnn": "ncnn"}
EXTRAS = ("openvino", "ncnn")  # of pyproject.toml, beside lab
# A float file differs between machines by rounding alone. INT8 may differ by far more: a processor without VNNI adds
# pairs of products in 16 bits, which saturate, and each runtime chooses for itself which layers to fuse. Measured over
# ten INT8 students: up to 0.08 between ONNX Runtime and OpenVINO, and as much between OpenVINO with VNNI and without.
TOLERANCE = {"fp32": 1e-3, "int8": 0.15}


@dataclass(frozen=True)
class Exam:
    """The validation split as each file meets it, and what the lab's net says of it."""

    recipe: Recipe
    shape: tuple[int, ...]
    x: Any  # uint8 (N,*shape), read a part at a time
    y: NDArray[np.int64]
    p: NDArray[np.float32]  # the lab's net, at the temperature
    safe: list[int]
    threshold: float | None
    frames: NDArray[np.uint8]  # the golden ones (8,*shape)
    golden: NDArray[np.float32]  # what the lab's net says of them, at the temperature

    def sit(self, fn: Predict) -> NDArray[np.float32]:
        return _sit(fn, self.x, len(self.y))

    def figures(self, p: NDArray[np.float32]) -> dict[str, Any]:
        """What one file reaches, and how near it stays to the lab's net."""
        found = metrics.scores(self.y, p, self.recipe.labels, self.recipe.safe)
        valid = {key: found[key] for key in ("n", "accuracy", "macro_f1", "ece", "loss")}
        if self.threshold is not None:
            alarm = metrics.alarm_score(p, self.safe) >= self.threshold
            harmless = np.isin(self.y, self.safe)
            valid |= {"recall": float(alarm[~harmless].mean()), "false_alarm_rate": float(alarm[harmless].mean())}
        return {"valid": valid, "parity": metrics.agreement(self.p, p, self.safe, self.threshold)}


def export(
    run: Run,
    opener: Opener,
    int8: Run | None = None,
    out: Path = Path("bundle"),
    formats: Sequence[str] = (),
    voice: Progress = NO_PROGRESS,
) -> bundle.Bundle:
    """Write the bundle of a finished run. formats: of EXPORTERS, besides the recipe's; "onnx" is always there.

    int8: the run that `quantise` made of this one; what it left out stays out, with its reason in the manifest.
    A file that does not give what PyTorch gives is left out, with its figures: one whose probabilities differ by more
    than export.max_difference, or that names another class where the call was not that close. INT8 is held to the
    macro-F1 that its run allowed. Raises UserError, and leaves what was there, where that file is model.onnx, the
    run is not finished, int8 is another run's, or the data are no longer those that it learnt from.
    """
    _check(run, int8)
    recipe = run.recipe
    wanted = list(dict.fromkeys(("onnx", *recipe.export.formats, *formats)))
    for name in wanted:
        if name not in EXPORTERS:
            raise UserError(f"export.formats = {name!r}: unknown{nearest(name, EXPORTERS)}")
    net, data = lessons.load(run), lessons.material_of(run, voice)
    exam, found = _exam(run, recipe, net, data)
    with tempfile.TemporaryDirectory() as scratch:
        made, left = _made(net, exam, wanted, found["temperature"]["value"], int8, Path(scratch), voice)
        models, golden = [], {}
        for file, runtime, precision in voice.bar(made, len(made), "validation"):
            drop = int8.recipe.quantise.max_drop if int8 and precision == "int8" else None
            why, figures, said = _proved(exam, file, runtime, opener, drop)
            if why and file.name == "model.onnx":
                raise UserError(f"{run.path}: not exported: model.onnx {why}")
            if why:
                left.append({"name": file.name, "why": why, **figures})
                continue
            models.append(_model(file, precision, figures))
            golden[file.name] = said
        manifest = bundle.Manifest(
            name=recipe.name,
            labels=recipe.labels,
            safe=recipe.safe,
            input=bundle.Input(shape=exam.shape, fit=recipe.data.fit),
            rule=recipe.rule.model_dump(mode="json"),
            **found,
            run=_origin(run, recipe, int8),
            licence=recipe.export.licence,
            created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            stillwatch=stillwatch.__version__,
            models=tuple(models),
            left_out=tuple(left),
        )
        places = {file.name: file.parent for file, _, _ in made}
        files: dict[str, Path | bytes] = {part: places[model.name] / part for model in models for part in model.files}
        sizes = {name: (places[model.name] / name).stat().st_size for model in models for name in model.files}
        files["CARD.md"] = card(manifest, sizes, len(exam.frames), _tested(run, recipe)).encode()
        return bundle.write(out, manifest, files, exam.frames, golden)


Made: TypeAlias = list[tuple[Path, str, str]]  # file, the runtime that proves it, precision


def _made(
    net: nets.Classifier,
    exam: Exam,
    wanted: Sequence[str],
    heat: float,
    int8: Run | None,
    folder: Path,
    voice: Progress,
) -> tuple[Made, list[dict[str, Any]]]:
    """Every file that was asked for, and why one could not be made. Raises UserError where that is model.onnx."""
    made: Made = []
    left: list[dict[str, Any]] = []
    for name in voice.bar(wanted, len(wanted), "export"):
        try:
            file = EXPORTERS[name](net, exam.shape, folder, heat, exam.recipe.export.opset)
            made.append((file, READERS[name], "fp32"))
        except (UserError, ImportError) as error:
            if name == "onnx":
                raise
            why = str(error)
            if isinstance(error, ImportError):
                why = f"{error.name} is not installed; pip install 'stillwatch[{name if name in EXTRAS else 'lab'}]'"
            left.append({"name": name, "why": why})
    if int8 and int8.info.kept:
        made.append((int8.path / bundle.INT8, "onnxruntime", "int8"))
    elif int8:
        left.append({"name": bundle.INT8, "why": int8.info.why, "stages": int8.info.stages})
    return made, left


def _proved(
    exam: Exam, file: Path, runtime: str, opener: Opener, max_drop: float | None
) -> tuple[str, dict[str, Any], NDArray[np.float32]]:
    """Why the file may not leave ("" where it may), its figures, and what it says of the golden frames.

    max_drop: points of macro-F1 that an INT8 file may lose; None: a float file, which may lose nothing.
    """
    try:
        fn = opener(file, runtime, exam.shape)
        p, golden = exam.sit(fn), fn(exam.frames)
    except UserError as mistake:
        return "cannot be tried: " + str(mistake).replace(f"{file.parent}/", ""), {}, exam.golden
    for said, wanted in ((p, exam.p), (golden, exam.golden)):
        if said.shape != wanted.shape or not np.isfinite(said).all():
            return f"gives {said.shape} of {wanted.shape} probabilities, or some that are no numbers", {}, golden
    figures = exam.figures(p)
    if max_drop is None:
        return _unfaithful(exam, p, golden), figures, golden
    drop = 100 * (metrics.macro_f1(exam.y, exam.p) - figures["valid"]["macro_f1"])
    why = f"macro-F1 falls by {drop:.2f} points, above quantise.max_drop = {max_drop:g}" if drop > max_drop else ""
    return why, figures, golden


def _model(file: Path, precision: Any, figures: dict[str, Any]) -> bundle.Model:
    beside = bundle.BESIDE.get(file.suffix)
    return bundle.Model(
        name=file.name,
        files=(file.name, file.with_suffix(beside).name) if beside else (file.name,),
        precision=precision,
        batch=1 if file.name == "model-legacy.onnx" or file.suffix == ".param" else None,
        tolerance=TOLERANCE[precision],
        figures=figures,
    )


def _check(run: Run, int8: Run | None) -> None:
    lessons.finished(run, lessons.TRAINED, "run with a net")
    if int8 is None:
        return
    if int8.info.kind != "quantised" or int8.info.status != "done":
        raise UserError(f"{int8.path}: a {int8.info.kind} run ({int8.info.status}), not what `quantise` made")
    if int8.info.parent != run.path.name:
        raise UserError(f"{int8.path}: is the INT8 of {int8.info.parent}, not of {run.path.name}; quantise this run")


def _exam(run: Run, recipe: Recipe, net: nets.Classifier, data: lessons.Dataset) -> tuple[Exam, dict[str, Any]]:
    """The validation split with the net's calibrated answers, and the manifest's temperature and operating point."""
    x, _, _, _, y = lessons.eval_arrays(data, data.rows["valid"])
    pictures, frames = _Shaped(x, data.shape), golden_frames(data.shape, recipe.data.fit)
    safe = [recipe.labels.index(label) for label in recipe.safe]
    heat = temperature_of(run)
    logits = _sit(_logits(net), pictures, len(y))
    raw, p, golden = (
        net.probabilities(torch.from_numpy(said / by)).numpy()
        for said, by in ((logits, 1), (logits, heat), (_logits(net)(frames), heat))
    )
    said: dict[str, Any] = {"value": heat, "ece_before": metrics.ece(y, raw), "ece_after": metrics.ece(y, p)}
    point: dict[str, Any] | None = metrics.operating_point(y, p, safe, recipe.export.false_alarms)
    if point:
        harmless = int(np.isin(y, safe).sum())
        point |= {"wanted": recipe.export.false_alarms, "split": "valid", "safe": harmless, "others": len(y) - harmless}
    exam = Exam(recipe, data.shape, pictures, y, p, safe, point["threshold"] if point else None, frames, golden)
    return exam, {"temperature": said | {"split": "valid"}, "operating": point}


def _logits(net: nets.Classifier) -> Predict:
    def fn(x: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return net(torch.from_numpy(x)).logits.numpy()

    return fn


def _sit(fn: Predict, x: Any, count: int) -> NDArray[np.float32]:
    return np.concatenate([fn(np.ascontiguousarray(x[at : at + 64])) for at in range(0, count, 64)])


@dataclass(frozen=True)
class _Shaped:
    """Samples (T,H,W,C) as the exported file takes them: T = 1 is a picture (H,W,C)."""

    x: Any
    shape: tuple[int, ...]

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        return np.asarray(self.x[part]).reshape(-1, *self.shape)


def _unfaithful(exam: Exam, p: NDArray[np.float32], golden: NDArray[np.float32]) -> str:
    """Why a float file may not leave; "" where it may."""
    limit = exam.recipe.export.max_difference
    for said, wanted, where in ((p, exam.p, "validation"), (golden, exam.golden, "golden")):
        furthest = float(np.abs(said - wanted).max())
        if furthest > limit:
            allowed = f"export.max_difference = {limit:g}"
            return f"differs from PyTorch by up to {furthest:.2g} on {where} frames, above {allowed}"
        top = np.sort(wanted, axis=1)
        clear = (said.argmax(1) != wanted.argmax(1)) & (top[:, -1] - top[:, -2] > limit)
        if clear.any():
            return f"names another class than PyTorch on {clear.sum()} {where} frames that were no close call"
    return ""


def golden_frames(shape: tuple[int, ...], fit: Any) -> NDArray[np.uint8]:
    """Eight samples (8,*shape), the same on every machine: six drawn cabins and streets, two of coarse noise."""
    rng = np.random.default_rng(8)
    *clip, height, width, channels = shape
    count = clip[0] if clip else 1
    drawn = []
    for number in range(6):
        scene = "cabin" if number < 4 else "street"
        label = synthetic.LABELS[scene][number % len(synthetic.LABELS[scene])]
        for frame in range(count):
            image = synthetic.still(scene, label, number, frame)
            drawn.append(pixels.fit(image, (height, width), fit, channels))
    for _ in range(2 * count):  # in blocks, so that it packs: a bundle need not carry random bytes
        blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), channels), dtype=np.uint8)
        drawn.append(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])
    return np.stack(drawn).reshape(8, *shape)


def _origin(run: Run, recipe: Recipe, int8: Run | None) -> dict[str, Any]:
    """Where it comes from, without a path of the machine that made it."""
    said = _homeless(recipe.model_dump(mode="json"))
    del said["data"]["root"]
    info = run.info
    kept = {
        key: getattr(info, key) for key in ("id", "kind", "commit", "fingerprint", "parent", "teacher", "cost", "seed")
    }
    return kept | {"int8": int8.info.id if int8 else None, "versions": info.versions, "recipe": said}


def _homeless(value: Any) -> Any:
    """Every path that begins at the root of a disk, of weights or of a teacher's run, cut down to its last name."""
    if isinstance(value, dict):
        return {key: _homeless(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_homeless(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _tested(run: Run, recipe: Recipe) -> dict[str, Any] | None:
    """Figures of people or cameras never met, where the run was tested."""
    path = run.path / "predictions" / "test.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as said:
        y, p, group = said["y"], said["p"], said["group"]
    found = metrics.scores(y, p, recipe.labels, recipe.safe)
    ends = metrics.interval(["macro_f1"], y, p, group)["macro_f1"]
    return found | {"groups": metrics.clusters(group)[1], "named": bool((group != "").any()), "ci95": ends}
