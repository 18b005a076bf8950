"""Judge a bundle's files, each in a runtime of this machine, beside their run."""

import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stillwatch import metrics
from stillwatch.bundle import Bundle, Model
from stillwatch.errors import UserError
from stillwatch.evaluation import pooling
from stillwatch.evaluation.pooling import comparison_set
from stillwatch.inference import runtimes
from stillwatch.inference.detector import fused_by
from stillwatch.predictions import EvalArrays, Predict, Predictions, read, save_predictions
from stillwatch.rules.alarm import Fuse
from stillwatch.rules.normal import Deviation
from stillwatch.run import NO_PROGRESS, Progress, Run, RunInfo

if TYPE_CHECKING:
    from stillwatch.evaluation.report.report import Album


def judge_bundle(
    bundle: Bundle,
    run: Run,
    arrays: EvalArrays,
    out: Path | str,
    split: str = "test",
    pictures: "Album | None" = None,
    progress: Progress = NO_PROGRESS,
    faces: Sequence[Deviation | None] | None = None,
) -> dict[str, Any]:
    """Run each file on a split and report on it beside the run it was exported from.

    arrays: of the split. faces: (N,), to judge a fusion head too, as <file>+face. Writes
    out/<file>/predictions/<split>.npz. Returns report.json's content with "bundle": each file's agreement with the run.
    Raises UserError where these do not match, or no file runs here.
    """
    out, predictions = Path(out), _belonging(bundle, run, arrays, split)
    files: list[tuple[Model, Run]] = []
    problems, fused = list[str](), list[Run]()
    for model in bundle.manifest.models:
        try:
            runtime, fn = _opened(bundle, model)
        except UserError as mistake:
            problems.append(f"{model.name} is not judged: {mistake}")
            continue
        progress.say(f"{model.name} through {runtime}: {len(predictions):,} {split} samples")
        file = _folder(bundle, model, run, runtime, out)
        save_predictions(file, split, fn, arrays, progress=progress)
        file.finish()
        files.append((model, file))
        if (fuse := fused_by(bundle.manifest.fusion)) and faces is not None:
            both = _folder(bundle, model, run, runtime, out, "+face")
            save_predictions(both, split, _with(fn, fuse, iter(faces)), arrays, progress=progress)
            both.finish()
            fused.append(both)
    if not files:
        raise UserError(f"{bundle.path}: none of its files can be run here: {'; '.join(problems)}")
    about = {
        "name": bundle.manifest.name,
        "run": run.path.name,
        "threshold": (bundle.manifest.operating or {}).get("threshold"),
        "temperature": bundle.manifest.temperature,
        "left_out": [{key: one.get(key) for key in ("name", "why")} for one in bundle.manifest.left_out],
        "files": [_agreement(bundle, model, file, predictions, split) for model, file in files],
    }
    from stillwatch.evaluation.report.report import compare  # it paints, and is imported where that is done

    if fused and (head := bundle.manifest.fusion):
        figures = ", ".join(f"{key} {value:.3f}" for key, value in head.figures.items())
        problems.append(f"+face: the head was fitted on these people too; on people left out it has {figures}")
    more = {"bundle": about, "warnings": problems}
    return compare([*comparison_set(run, split), *(file for _, file in files), *fused], out, pictures, split, more)


def _with(fn: Predict, fuse: Fuse, faces: Iterator[Deviation | None]) -> Predict:
    return lambda x: [
        p if face is None else fuse(p, face) for p, face in zip(np.asarray(fn(x)), islice(faces, len(x)), strict=True)
    ]


def _belonging(bundle: Bundle, run: Run, arrays: EvalArrays, split: str) -> Predictions:
    origin, labels = bundle.manifest.run.get("id"), run.recipe.labels
    if origin != run.path.name:
        raise UserError(f"{bundle.path}: was exported from {origin}, not from {run.path.name}")
    if bundle.manifest.labels != labels:
        raise UserError(
            f"{bundle.path}: its labels are {', '.join(bundle.manifest.labels)}, the run's {', '.join(labels)}"
        )
    predictions = read(run, split)
    if set(predictions.id.tolist()) != set(arrays.ids):
        raise UserError(
            f"{run.path}: its {split} split holds other samples than the data do now; it cannot be compared"
        )
    return predictions


def _opened(bundle: Bundle, model: Model) -> tuple[str, Predict]:
    path, shape = bundle.path / model.name, bundle.manifest.input.shape
    names = runtimes.readers(path)
    if not names:
        raise UserError("no installed runtime takes it")
    fn = runtimes.open(path, names[0], shape)

    def predict(x: NDArray[Any]) -> Any:
        if x.shape[1:] not in (shape, (1, *shape)):  # a picture is a clip of one frame
            raise UserError(f"{path}: takes {shape}, and the data give {x.shape[1:]}; export the run again")
        return fn(x.reshape(len(x), *shape))

    return names[0], predict


def _folder(bundle: Bundle, model: Model, run: Run, runtime: str, out: Path, more: str = "") -> Run:
    path = out / (model.name.replace("/", "-") + more)
    if (path / "run.json").is_file():  # of an earlier report, perhaps of another bundle
        shutil.rmtree(path)
    cost = run.info.cost | (model.figures.get("cost") or {})
    info = RunInfo(
        id=path.name,
        kind=path.name,
        side=run.side,
        status="running",
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        recipe=run.info.recipe,
        parent=run.path.name,
        runtime=runtime,
        precision=model.precision,
        seed=pooling.cell(run).seed,
        cost=cost | {"bytes": _bytes(bundle, model)},
        fingerprint=run.info.fingerprint,
        commit=run.info.commit,
        versions=run.info.versions,
        epochs=run.info.epochs,
        best=run.info.best,
    )
    file = Run(path, info)
    file.note()
    return file


def _bytes(bundle: Bundle, model: Model) -> int:
    return sum(bundle.manifest.files[name].bytes for name in model.files)


def _agreement(bundle: Bundle, model: Model, file: Run, predictions: Predictions, split: str) -> dict[str, Any]:
    """At the bundle's temperature."""
    manifest, heard = bundle.manifest, read(file, split)
    rows = {name: row for row, name in enumerate(predictions.id.tolist())}
    p: NDArray[Any] = predictions.p[[rows[name] for name in heard.id.tolist()]]
    if manifest.temperature:
        p = metrics.apply_temperature(p, manifest.temperature["value"], file.net.head)
    threshold = (manifest.operating or {}).get("threshold")
    safe = [manifest.labels.index(label) for label in manifest.safe]
    found = metrics.agreement(p, heard.p, safe, threshold)
    size = {"precision": model.precision, "bytes": _bytes(bundle, model)}
    return {"name": file.info.kind, "runtime": file.info.runtime, **size, **found}
