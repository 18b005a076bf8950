"""Packaging: a finished run -> a bundle of files proved equal to the lab's net. Figures are validation's."""

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import stillwatch
from stillwatch import bundle, metrics, predictions
from stillwatch.errors import UserError
from stillwatch.inference import runtimes
from stillwatch.inference.standalone import run_legacy
from stillwatch.lab.data.dataset import Dataset, dataset_of
from stillwatch.lab.export.calibration import Calibration, on_validation, out_of_fold, reheated
from stillwatch.lab.export.exporters import EXPORTERS, Exported, facade, temperature_of
from stillwatch.lab.export.fusion import face_net, faces_of, left_out
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.training.runs import TRAINED, Predict, load_net, predictor, require_finished, require_learnt
from stillwatch.media import image, synthetic
from stillwatch.recipe import Recipe
from stillwatch.registry import bind
from stillwatch.rules.normal import Deviation
from stillwatch.run import NO_PROGRESS, Progress, Run

# A float file differs between machines by rounding alone. INT8 may differ by far more: a processor without VNNI adds
# pairs of products in 16 bits, which saturate, and each runtime chooses for itself which layers to fuse. Measured over
# ten INT8 students: up to 0.08 between ONNX Runtime and OpenVINO, and as much between OpenVINO with VNNI and without.
TOLERANCE = {"fp32": 1e-3, "int8": 0.15}


class Proof(NamedTuple):
    why: str
    golden: NDArray[np.float32]
    figures: dict[str, dict[str, Any]]


class Face(NamedTuple):
    """Its net's run, and what each fold's says of its test people, by sample's id."""

    run: Run
    said: dict[str, tuple[float, ...]]

    @property
    def model(self) -> bundle.FaceNet:
        data, about = self.run.recipe.data, {"run": self.run.info.id, "of": self.run.path.parent.name}
        return bundle.FaceNet(
            name=bundle.FACE, files=(bundle.FACE,), precision="fp32", tolerance=TOLERANCE["fp32"], figures=about,
            input=bundle.Input(shape=(*data.hw, data.channels), fit=data.fit),
        )  # fmt: skip

    def export(self, recipe: Recipe) -> tuple[bytes, NDArray[np.uint8], NDArray[np.float32]]:
        """The file, its golden frames and answers. Raises UserError unless PyTorch's are alike."""
        net, takes, limit = load_net(self.run), self.model.input, recipe.export.max_difference
        frames = golden_frames(takes.shape, takes.fit)
        with tempfile.TemporaryDirectory() as scratch:
            made = EXPORTERS["onnx"](net, takes.shape, Path(scratch), 1.0, recipe.export.opset)
            golden, file = runtimes.open(made.path, made.runtime, takes.shape)(frames), made.path.read_bytes()
        if not (apart := float(np.abs(golden - predictor(net)(frames)).max())) <= limit:
            why = f"differs from PyTorch by up to {apart:.2g}, above export.max_difference = {limit:g}"
            raise UserError(f"{self.run.path}: not exported: {bundle.FACE} {why}")
        return file, frames, golden


@dataclass(frozen=True)
class Reference:
    data: Dataset
    p: NDArray[np.float32]  # (N,K)
    frames: NDArray[np.uint8]  # the golden ones (8,*shape)
    golden: NDArray[np.float32]  # (8,K)
    temperature: bundle.Temperature
    operating: bundle.OperatingPoint | None
    fusion: bundle.Fusion | str | None = None  # or why there is none; None: not asked for
    face: tuple[bytes, NDArray[np.uint8], NDArray[np.float32]] | str = ""  # of the net it hears, or why it hears none
    maps: NDArray[np.float32] | None = None  # of the golden frames (8,h·w), where the files give one
    map_size: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        run: Run,
        net: Classifier,
        data: Dataset,
        crossval: Run | None,
        face: Face | None = None,
        progress: Progress = NO_PROGRESS,
    ) -> "Reference":
        recipe = run.seen
        if region := data.recipe.data.region:
            why = f'it sees region = "{region}" alone, and a camera gives whole pictures'
            why += f"; beside one that sees them: export RUN --calibrate CROSSVAL --face {run.path.parent}"
            raise UserError(f"{run.path}: not exported: {why}")
        if face and not (crossval and recipe.data.faces):
            raise UserError("--face: a head hears it: --calibrate CROSSVAL too, and a recipe with data.faces = true")
        frames = golden_frames(data.shape, recipe.data.fit)

        def logits(x: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.inference_mode():
                return net(torch.from_numpy(x)).logits.numpy()

        valid, drawn = _predict(logits, data), logits(frames)
        heard = out_of_fold(crossval, run) if crossval else on_validation(run, data)
        heat = heard.temperature(net.kind)
        p, golden = (net.probabilities(torch.from_numpy(x / heat["value"])).numpy() for x in (valid, drawn))
        point = heard.operating(recipe, heat["value"], net.kind)
        fusion: bundle.Fusion | str | None = None
        proof: tuple[bytes, NDArray[np.uint8], NDArray[np.float32]] | str = ""
        if crossval and recipe.data.faces:
            warm = metrics.apply_temperature(heard.p, heat["value"], net.kind)
            faces = dict(zip((sample.id for sample in data.samples), faces_of(data, progress), strict=True))
            heard = replace(heard, p=warm.astype(np.float32))
            fusion = fit(heard, recipe, faces)
            if face:
                faces = {id: one and one._replace(said=face.said.get(id, ())) for id, one in faces.items()}
                both = fit(heard, recipe, faces, face.model, fusion)
                if isinstance(both, str):
                    proof = both
                else:
                    fusion, proof = both, face.export(recipe)
        if not net.marks:
            return cls(data, p, frames, golden, heat, point, fusion, proof)
        whole = facade(net, data.shape, heat["value"])
        with torch.inference_mode():
            maps = whole(torch.from_numpy(frames))[1].numpy()
        return cls(data, p, frames, golden, heat, point, fusion, proof, maps, whole.map.size if whole.map else None)

    def prove(self, made: Exported, max_drop: float | None) -> Proof:
        """max_drop: points of macro-F1 that INT8 may lose; None for a float file."""
        try:
            fn = runtimes.open(made.path, made.runtime, self.data.shape)
            p, golden = _predict(fn, self.data), fn(self.frames)
            both = (
                runtimes.open(made.path, made.runtime, self.data.shape, outputs=2)(self.frames) if made.map else golden
            )
        except UserError as error:
            return Proof("cannot be tried: " + str(error).replace(f"{made.path.parent}/", ""), self.golden, {})
        for found, wanted in ((p, self.p), (golden, self.golden)):
            if found.shape != wanted.shape or not np.isfinite(found).all():
                why = f"gives {found.shape} of {wanted.shape} probabilities, or some that are no numbers"
                return Proof(why, golden, {})

        recipe, y = self.data.recipe, self.data.y[self.data.rows["valid"]]
        safe = [recipe.labels.index(label) for label in recipe.safe]
        threshold = self.operating["threshold"] if self.operating else None
        scores = metrics.scores(y, p, recipe.labels, recipe.safe)
        valid = {key: scores[key] for key in ("n", "accuracy", "macro_f1", "ece", "loss")}
        if threshold is not None:
            alarm, harmless = metrics.alarm_score(p, safe) >= threshold, np.isin(y, safe)
            valid |= {"recall": float(alarm[~harmless].mean()), "false_alarm_rate": float(alarm[harmless].mean())}
        figures = {"valid": valid, "parity": metrics.agreement(self.p, p, safe, threshold)}

        if max_drop is None:
            why = self._unfaithful(p, self.p, "validation") or self._unfaithful(golden, self.golden, "golden")
            if made.map and self.maps is not None and not why:
                apart = np.abs(both[:, golden.shape[1] :] - self.maps).max()
                why = "" if apart <= 0.01 * self.maps.max() else "shows the evidence in other places than PyTorch"
        else:
            drop = 100 * (metrics.macro_f1(y, self.p) - valid["macro_f1"])
            limit = f"above quantise.max_drop = {max_drop:g}"
            why = f"macro-F1 falls by {drop:.2f} points, {limit}" if drop > max_drop else ""
        return Proof(why, golden, figures)

    def _unfaithful(self, p: NDArray[np.float32], wanted: NDArray[np.float32], frames: str) -> str:
        limit = self.data.recipe.export.max_difference
        furthest = float(np.abs(p - wanted).max())
        if furthest > limit:
            away = f"differs from PyTorch by up to {furthest:.2g} on {frames} frames"
            return f"{away}, above export.max_difference = {limit:g}"
        top = np.sort(wanted, axis=1)
        count = int(((p.argmax(1) != wanted.argmax(1)) & (top[:, -1] - top[:, -2] > limit)).sum())
        return f"names another class than PyTorch on {count} {frames} frames that were no close call" if count else ""


def export(
    run: Run,
    int8: Run | None = None,
    out: Path = Path("bundle"),
    formats: Sequence[str] = (),
    progress: Progress = NO_PROGRESS,
    anyway: bool = False,
    crossval: Run | None = None,
    face: Run | None = None,
) -> bundle.Bundle:
    """Write the bundle of a finished run.

    int8: of the run. crossval: sets temperature and threshold; face: on faces alone. Unfaithful files stay out, with a
    reason: float beyond export.max_difference of PyTorch, INT8 beyond quantise.max_drop. Raises UserError, and changes
    nothing, where that is model.onnx, the run learnt nothing (unless `anyway`), or int8, face or the data do not fit.
    """
    require_finished(run, TRAINED, "run with a net")
    require_learnt(run, "not exported", anyway, progress)
    if int8:
        if int8.info.kind != "quantised" or int8.info.status != "done":
            raise UserError(f"{int8.path}: a {int8.info.kind} run ({int8.info.status}), not what `quantise` made")
        if (parent := int8.info.parent) != run.path.name:
            raise UserError(f"{int8.path}: is the INT8 of {parent}, not of {run.path.name}; quantise this run")
    recipe = run.recipe
    names = dict.fromkeys(("onnx", *recipe.export.formats, *formats))
    exporters = {name: bind(EXPORTERS, name, given=5, place="export.formats") for name in names}
    net, data = load_net(run), dataset_of(run, progress)
    net.marks = tuple(k for k, label in enumerate(recipe.labels) if recipe.export.map and label not in recipe.safe)
    reference = Reference.of(run, net, data, crossval, Face(*face_net(face, run)) if face else None, progress)
    made, left = list[Exported](), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = (net, data.shape, Path(scratch), reference.temperature["value"], recipe.export.opset)
        for name in progress.bar(exporters, len(exporters), "export"):
            try:
                made.append(exporters[name](*arguments))
            except UserError as error:
                if name == "onnx":
                    raise
                left.append({"name": name, "why": str(error)})
            except ImportError as error:
                left.append({"name": name, "why": f"{error.name} is not installed; pip install 'stillwatch[{name}]'"})
        if int8 and int8.info.kept:
            source = int8.path / bundle.INT8
            if crossval:
                by = (int8.info.temperature or temperature_of(run)) / reference.temperature["value"]
                source = reheated(source, Path(scratch) / bundle.INT8, by)
            made.append(Exported(source, "onnxruntime"))
        elif int8:
            left.append({"name": bundle.INT8, "why": int8.info.why, "stages": int8.info.stages})
        proofs = dict[Exported, Proof]()
        for file in progress.bar(made, len(made), "validation"):
            max_drop = int8.recipe.quantise.max_drop if int8 and file.path.name == bundle.INT8 else None
            proof = reference.prove(file, max_drop)
            if not proof.why:
                proofs[file] = proof
            elif file.path.name == "model.onnx":
                raise UserError(f"{run.path}: not exported: model.onnx {proof.why}")
            else:
                left.append({"name": file.path.name, "why": proof.why, **proof.figures})
        return _write(out, run, int8, reference, proofs, left)


def fit(
    heard: Calibration,
    recipe: Recipe,
    faces: Mapping[str, Deviation | None],
    net: bundle.FaceNet | None = None,
    less: bundle.Fusion | str = "",
) -> bundle.Fusion | str:
    """The head (log p + share · log p(face) + share · log p(net)) / temperature, or why there is none.

    Kept where accuracy and macro-F1 of the mean person, never met, both rise; temperature and threshold are of
    those fused answers. faces: by sample's id. net: whose answers these hold; less: the head without it, to beat.
    """
    told, group, figures = [faces[str(id)] for id in heard.id], heard.group.astype(str), dict[str, float]()
    if isinstance(found := left_out(heard.y, heard.p, group, told), str):
        return found
    rows = [group == one for one in np.unique(group)]
    for end, q in (("_alone", heard.p), ("", found.fused)):
        figures["accuracy" + end] = float(np.mean([metrics.accuracy(heard.y[own], q[own]) for own in rows]))
        figures["macro_f1" + end] = float(np.mean([metrics.macro_f1(heard.y[own], q[own]) for own in rows]))
    if isinstance(less, bundle.Fusion):
        figures |= {f"{key}_signals": less.figures[key] for key in ("accuracy", "macro_f1")}
    if any(figures[key] <= figures.get(f"{key}_signals", figures[f"{key}_alone"]) for key in ("accuracy", "macro_f1")):
        words = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
        return f"it does not help people left out: {words}"
    seen, fused = np.array([face is not None for face in told]), found.fused.astype(np.float32)
    heat = replace(heard, y=heard.y[seen], p=fused[seen]).temperature("softmax")
    fused[seen] = metrics.apply_temperature(fused[seen], heat["value"])
    eye = np.eye(heard.p.shape[1])
    parts = [eye, found.share * found.head.coef_, *([found.net_share * eye] if net else [])]
    weight = np.hstack(parts) / heat["value"]
    return bundle.Fusion(
        weight=tuple(map(tuple, weight.tolist())),
        bias=tuple((found.share * found.head.intercept_ / heat["value"]).tolist()),
        net=net,
        temperature=heat,
        operating=replace(heard, p=fused).operating(recipe, 1.0, "softmax"),
        figures=figures,
    )


def _write(
    out: Path, run: Run, int8: Run | None, reference: Reference, proofs: dict[Exported, Proof], left: Iterable[Any]
) -> bundle.Bundle:
    recipe, models, files = run.seen, list[bundle.Model](), dict[str, Path]()
    for file, proof in proofs.items():
        precision: Literal["fp32", "int8"] = "int8" if file.path.name == bundle.INT8 else "fp32"
        names = (file.path.name, *([file.beside] if file.beside else []))
        files |= {name: file.path.with_name(name) for name in names}
        models.append(bundle.Model(
            name=file.path.name, files=names, precision=precision, batch=file.batch, tolerance=TOLERANCE[precision],
            figures=proof.figures, map=reference.map_size if file.map else None,
        ))  # fmt: skip
    heard, face = reference.fusion, None if isinstance(reference.face, str) else reference.face
    left = [*left, *([{"name": "fusion", "why": heard}] if isinstance(heard, str) else [])]
    left += [{"name": bundle.FACE, "why": reference.face}] if reference.face and not face else []
    resolved = _without_folders(recipe.model_dump(mode="json"))
    del resolved["data"]["root"]
    keys = ("id", "kind", "commit", "fingerprint", "parent", "teacher", "cost", "seed", "versions")
    takes = bundle.Input(
        shape=reference.data.shape, fit=recipe.data.fit, aspect=run.info.aspect, shrink=recipe.data.shrink,
        look=recipe.data.moments if recipe.data.look and len(reference.data.shape) == 4 else None,
    )  # fmt: skip
    manifest = bundle.Manifest(
        name=recipe.name,
        labels=recipe.labels,
        safe=recipe.safe,
        input=takes,
        rule=recipe.rule.model_dump(mode="json"),
        temperature=reference.temperature,
        operating=reference.operating,
        fusion=None if isinstance(heard, str) else heard,
        run={key: getattr(run.info, key) for key in keys} | {"int8": int8 and int8.info.id, "recipe": resolved},
        licence=recipe.export.licence,
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        stillwatch=stillwatch.__version__,
        models=tuple(models),
        left_out=tuple(left),
    )
    written: dict[str, Path | bytes] = {
        **files,
        "CARD.md": _card(manifest, files.values(), len(reference.frames), run).encode(),
        **({bundle.FACE: face[0]} if face else {}),
    }
    if run_legacy.MODEL in files:
        written["run_legacy.py"] = Path(run_legacy.__file__)
    golden = {file.path.name: proof.golden for file, proof in proofs.items()}
    return bundle.write(out, manifest, written, reference.frames, golden, face[1:] if face else None)


def _card(manifest: bundle.Manifest, files: Iterable[Path], frames: int, run: Run) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined,
        autoescape=select_autoescape(),  # on for HTML; Markdown stays as it is
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    tested, sizes = None, {file.name: file.stat().st_size for file in files}
    if predictions.has(run, "test"):
        test = predictions.read(run, "test")
        tested = metrics.scores(test.y, test.p, run.recipe.labels, run.recipe.safe) | {
            "groups": metrics.clusters(test.group)[1],
            "named": bool((test.group != "").any()),
            "ci95": metrics.interval(["macro_f1"], test.y, test.p, test.group)["macro_f1"],
        }
    return environment.get_template("CARD.md").render(
        nothing=run.info.learnt_nothing,
        manifest=manifest,
        run=manifest.run,
        heat=manifest.temperature,
        told_on={
            "new": "people left out of training",
            "chosen": "validation, people in no training, on whom the epoch was chosen",
            "known": "validation",
        },
        point=manifest.operating,
        kilobytes={model.name: sum(sizes[name] for name in model.files) / 1000 for model in manifest.models},
        frames=frames,
        tested=tested,
    )


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _predict(fn: Predict, data: Dataset) -> NDArray[np.float32]:
    rows = data.rows["valid"]
    batches = (data.store.pixels[rows[start : start + 64]] for start in range(0, len(rows), 64))
    return np.concatenate([fn(np.ascontiguousarray(x).reshape(-1, *data.shape)) for x in batches])


def golden_frames(shape: tuple[int, ...], fit: Literal["stretch", "letterbox", "crop"]) -> NDArray[np.uint8]:
    """Eight samples (8,*shape), the same everywhere: six drawn cabins and streets, two of coarse noise."""
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
