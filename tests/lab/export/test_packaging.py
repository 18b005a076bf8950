"""Packing a run: what is proved, what is left out with its reason, what is refused, and what the card says."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillwatch import bundle, metrics, recipe
from stillwatch.errors import UserError
from stillwatch.inference import runtimes
from stillwatch.inference.detector import Detector
from stillwatch.lab.export import packaging
from stillwatch.lab.training import pipeline
from stillwatch.lab.training.runs import RunOptions
from stillwatch.run import Run

SMALL = (
    "data.source={name='toy',people=8,pictures=3}", "data.size=32", "data.folds=4", "fit.epochs=2", "fit.views=1",
    "student.net={name='mnist-small',weights='scratch'}",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("export_once")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLWATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        root = tmp_path_factory.mktemp("runs")
        return pipeline.distil(recipe.load("toy", SMALL), RunOptions(root), alone=True).path


@pytest.fixture
def student(here: Path, trained: Path) -> Run:
    """The trained student, in a folder of the test's own, let through whatever its few steps are worth."""
    run = Run.open(shutil.copytree(trained, here / "runs" / trained.name))
    run.note(majority={"label": "SafeDriving", "valid_accuracy": 0.0})
    return run


def int8_of(run: Run, kept: bool, root: Path) -> Run:
    """What quantise leaves behind, with the float file standing in for the INT8 one."""
    made = Run.create(run.recipe, "quantised", root, parent=run.path.name)
    files = packaging.export(run, out=root / "stand-in")
    (files.path / "model.onnx").rename(made.path / bundle.INT8)
    made.finish(
        kept=kept, why="" if kept else "0.9 ms here, no faster than FP32's 0.5", stages=[{"name": "post-training"}]
    )
    return made


def test_a_bundle_is_what_the_run_is(student: Run, here: Path) -> None:
    made = packaging.export(student, formats=("onnx-legacy",))
    assert made.path == Path("bundle")
    again = bundle.load("bundle").manifest
    assert [model.name for model in again.models] == ["model.onnx", "model-legacy.onnx"]
    assert again.files.keys() == {"model.onnx", "model-legacy.onnx", "run_legacy.py", "golden.npz", "CARD.md"}
    assert again.input.shape == (32, 32, 1)
    assert again.input.aspect == student.info.aspect == pytest.approx(4 / 3, abs=1e-4)  # of the pictures as drawn
    assert again.labels == student.recipe.labels
    assert again.run["id"] == student.path.name
    assert "root" not in again.run["recipe"]["data"]
    assert str(here) not in Path("bundle/bundle.json").read_text()

    # ---- the figures are those of the run's own predictions, brought to the temperature
    with np.load(student.path / "predictions" / "valid.npz") as said:
        y, p = said["y"], said["p"]
    heat = again.temperature
    assert heat is not None
    assert heat["value"] == pytest.approx(metrics.temperature(y, p))
    assert heat["ece_before"] == pytest.approx(metrics.ece(y, p), abs=1e-4)
    warm = metrics.apply_temperature(p, heat["value"])
    assert heat["ece_after"] == pytest.approx(metrics.ece(y, warm), abs=1e-4)
    valid, parity = again.models[0].figures["valid"], again.models[0].figures["parity"]
    assert valid["macro_f1"] == pytest.approx(metrics.macro_f1(y, p))
    assert valid["n"] == parity["n"] == len(y)
    assert parity["max_difference"] < 1e-5
    assert (parity["top1_agreement"], parity["decision_flips"]) == (1.0, 0)
    point = metrics.operating_point(y, warm, [3], 0.1)
    assert again.operating is not None
    assert point is not None
    assert again.operating["threshold"] == pytest.approx(point["threshold"], abs=1e-5)
    assert again.operating["false_alarm_rate"] == valid["false_alarm_rate"] <= 0.1
    assert (again.operating["wanted"], again.operating["split"]) == (0.1, "valid")

    # ---- and the street reads it
    detector = Detector(made.path)
    frames, golden = made.golden()
    assert np.abs(detector.predict(frames) - golden["model.onnx"]).max() < 1e-3
    assert detector.threshold == again.operating["threshold"]


def out_of_fold(student: Run, kinds: tuple[str, ...] = ("alone",), folds: int = 4) -> Run:
    """A crossval whose nets are surer than they should be, and worse with one person."""
    recipe_of, chance = student.recipe, np.random.default_rng(0)
    folder = Run.create(recipe_of, "crossval", student.path.parent, fingerprint=student.info.fingerprint)
    for fold, kind in ((fold, kind) for fold in range(folds) for kind in kinds):
        raw = recipe_of.model_dump(mode="json")
        run = Run.create(recipe.check(raw | {"data": raw["data"] | {"fold": fold}}, "x"), kind, folder.path, seed=0)
        y, k = np.repeat(np.arange(6), 40), 6
        z = chance.normal(size=(240, k))
        z[np.arange(240), y] += 2
        group = np.array([f"p{fold}-{i % 2}" for i in range(240)])
        z[(group == "p0-0") & (y == 3), 0] += 2
        p = np.exp(3 * z) / np.exp(3 * z).sum(1, keepdims=True)
        names = np.array([f"{fold}/{i}" for i in range(240)])
        run.save_arrays("predictions/test.npz", id=names, group=group, sequence=names, y=y, p=p.astype(np.float32))
        run.finish()
    return folder


def test_a_crossval_sets_temperature_and_threshold(student: Run, here: Path) -> None:
    folder = out_of_fold(student)
    made = packaging.export(student, int8_of(student, True, here / "runs"), crossval=folder)
    heat, point = made.manifest.temperature, made.manifest.operating
    assert heat is not None and point is not None
    assert heat["value"] > 1.2 and heat["ece_after"] < heat["ece_before"] and heat["people"] == "new"
    assert point["source"] == f"{folder.path.name}: alone, 4 folds, 1 seed"
    assert (point["groups"], point["safe"], point["split"]) == (8, 160, "out of fold")
    assert point["false_alarm_rate"] <= point["wanted"] < (point["upper"] or 0) <= 1
    text = " ".join((made.path / "CARD.md").read_text().split())
    assert f"On new people: at most {point['upper']:.0%} at 95 %, by the spread of 8; the worst" in text
    _, golden = made.golden()  # the INT8 file has the crossval's temperature too
    assert golden[bundle.INT8] == pytest.approx(golden["model.onnx"], abs=1e-5)
    plain = packaging.export(student, out=here / "plain")
    assert np.abs(plain.golden()[1]["model.onnx"] - golden["model.onnx"]).max() > 1e-3
    pruned = packaging.out_of_fold(out_of_fold(student, ("alone", "distilled")), student)
    assert ": alone" in pruned.source  # its own kind, where there is one


def test_without_people_left_out_the_card_says_so(student: Run) -> None:
    made = packaging.export(student)
    assert made.manifest.operating is not None and made.manifest.operating["people"] == "chosen"
    rows = student.read_json("run.json")["recipe"]
    student.note(recipe=rows | {"data": rows["data"] | {"valid": 0.25}})
    known = packaging.export(Run.open(student.path))
    point = known.manifest.operating
    assert point is not None and (point["people"], point["upper"]) == ("known", None)
    assert "Only people known from training were at hand" in (known.path / "CARD.md").read_text()


def test_a_crossval_of_something_else_is_refused(student: Run) -> None:
    with pytest.raises(UserError, match=r"a alone run; `stillwatch crossval toy` makes"):
        packaging.export(student, crossval=student)
    with pytest.raises(UserError, match="no finished alone of fold 3"):
        packaging.export(student, crossval=out_of_fold(student, folds=3))
    other = out_of_fold(student)
    other.note(fingerprint="beef")
    with pytest.raises(UserError, match="is of other labels, data or another student"):
        packaging.export(student, crossval=other)


def test_the_card_says_it_in_words(student: Run) -> None:
    made = packaging.export(student.amended(["export.licence='mine: ask me'"], ["export"]))
    card = (made.path / "CARD.md").read_text()
    for words in (
        "Licence: mine: ask me", "Ordinary: SafeDriving", "nobody of the test is in training", "Operating threshold",
        student.path.name, "| model.onnx | fp32 |", "It is no safety device", "golden.npz",
    ):  # fmt: skip
        assert words in card, words
    with np.load(student.path / "predictions" / "test.npz") as said:
        assert f"macro-F1 {metrics.macro_f1(said['y'], said['p']):.3f}" in " ".join(card.split())


def test_int8_comes_along_where_it_may(student: Run, here: Path) -> None:
    made = packaging.export(student, int8_of(student, True, here / "runs"))
    model = made.manifest.models[1]
    assert (model.name, model.precision, made.manifest.left_out) == (bundle.INT8, "int8", ())
    assert model.tolerance > made.manifest.models[0].tolerance
    assert made.manifest.run["int8"].startswith("toy-quantised")


def test_int8_stays_out_with_its_reason(student: Run, here: Path) -> None:
    made = packaging.export(student, int8_of(student, False, here / "runs"))
    assert [model.name for model in made.manifest.models] == ["model.onnx"]
    assert made.manifest.left_out[0]["why"] == "0.9 ms here, no faster than FP32's 0.5"
    assert "no faster than FP32's" in (made.path / "CARD.md").read_text()


def test_int8_of_another_run_is_refused(student: Run, here: Path) -> None:
    made = int8_of(student, True, here / "runs")
    made.note(parent="toy-alone-007")
    with pytest.raises(UserError, match="is the INT8 of toy-alone-007, not of toy-alone-001"):
        packaging.export(student, made)
    with pytest.raises(UserError, match=r"a quantised run \(done\); name a finished run with a net"):
        packaging.export(made)


def crooked(by: float) -> Callable[[np.ndarray], np.ndarray]:
    """Probabilities that are a little wrong."""
    return lambda p: (1 - by) * p + by * np.eye(p.shape[1], dtype=np.float32)[0]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """spoil(change, only): from now on the file of that name gives change(p) instead of p."""
    really = runtimes.open

    def spoil(change: Callable[[np.ndarray], np.ndarray], only: str = "model.onnx") -> None:
        def opened(path: Path, runtime: str, shape: tuple[int, ...]) -> Any:
            fn = really(path, runtime, shape)
            return (lambda x: change(fn(x))) if path.name == only else fn

        monkeypatch.setattr(runtimes, "open", opened)

    return spoil


def test_what_is_not_faithful_is_refused_and_nothing_is_lost(student: Run, spoil: Any) -> None:
    before = packaging.export(student).manifest
    spoil(crooked(0.05))
    with pytest.raises(
        UserError, match=r"model.onnx differs from PyTorch by up to 0\.\d+ on validation frames"
    ) as mistake:
        packaging.export(student)
    assert "\n" not in str(mistake.value)
    assert bundle.load("bundle").manifest == before


def test_another_format_that_is_not_faithful_is_left_out(student: Run, spoil: Any) -> None:
    spoil(crooked(0.05), only="model-legacy.onnx")
    made = packaging.export(student, formats=("onnx-legacy",))
    assert [model.name for model in made.manifest.models] == ["model.onnx"]
    left = made.manifest.left_out[0]
    assert left["name"] == "model-legacy.onnx"
    assert "differs from PyTorch" in left["why"]
    assert left["parity"]["max_difference"] > 1e-3


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"formats": ("onx",)}, "export.formats = 'onx': unknown; did you mean 'onnx'?"),
        ({"status": "stopped"}, "toy-alone-001: a alone run (stopped); name a finished run with a net"),
    ],
)
def test_mistakes_are_named(student: Run, call: dict[str, Any], told: str) -> None:
    if "status" in call:
        student.note(status=call.pop("status"))
    with pytest.raises(UserError) as mistake:
        packaging.export(student, **call)
    assert told in str(mistake.value)


@pytest.mark.parametrize("shape", [(32, 48, 1), (33, 47, 3), (3, 16, 16, 1)])
def test_golden_frames_are_drawn_the_same_everywhere(shape: tuple[int, ...]) -> None:
    frames = packaging.golden_frames(shape, "stretch")
    assert frames.shape == (8, *shape)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, packaging.golden_frames(shape, "stretch"))
    assert len({frame.tobytes() for frame in frames}) == 8
    noise = frames[6:].reshape(-1, *shape[-3:])
    assert (noise[:, :8, :8] == noise[:, :1, :1]).all()  # in blocks, so that a bundle packs well


def test_the_manifest_is_plain_json(student: Run) -> None:
    made = packaging.export(student)
    raw = json.loads((made.path / "bundle.json").read_text())
    assert raw["format"] == 1
    assert {name: entry["bytes"] for name, entry in raw["files"].items()} == {
        name: (made.path / name).stat().st_size for name in raw["files"]
    }


@pytest.mark.parametrize("change", [lambda p: p * np.float32("nan"), lambda p: p[:, :2], lambda p: p[1:]])
def test_a_file_whose_answers_are_none_is_refused(student: Run, change: Any, spoil: Any) -> None:
    spoil(change)
    with pytest.raises(UserError, match=r"not exported: model.onnx gives \(\d+, \d\) of \(\d+, \d\) probabilities"):
        packaging.export(student)
    assert not Path("bundle").exists()


def test_another_class_is_refused_however_near_the_probabilities(student: Run, spoil: Any) -> None:
    """Where export.max_difference is lax, the class still has to stay, but for close calls."""

    def swapped(p: np.ndarray) -> np.ndarray:  # the first two change places, by hardly more than their distance
        p, order = p.copy(), p.argsort(1)[:, ::-1]
        rows = np.arange(len(p))
        p[rows, order[:, 0]], p[rows, order[:, 1]] = p[rows, order[:, 1]], p[rows, order[:, 0]]
        return p

    with np.load(student.path / "predictions" / "valid.npz") as said:
        top = np.sort(metrics.apply_temperature(said["p"], metrics.temperature(said["y"], said["p"])), axis=1)
    widest = float((top[:, -1] - top[:, -2]).max())
    lax = student.amended([f"export.max_difference={1.5 * widest:.4f}"], ["export"])
    spoil(swapped)
    close = packaging.export(lax)  # every call is closer than that
    assert close.manifest.models[0].figures["parity"]["top1_agreement"] == 0
    strict = student.amended([f"export.max_difference={0.98 * widest:.4f}"], ["export"])

    def nearly(p: np.ndarray) -> np.ndarray:  # only as far as is allowed, and yet another class
        q = swapped(p)
        return np.where(np.sort(p, 1)[:, -1:] - np.sort(p, 1)[:, -2:-1] > 0.98 * widest, p + 0.51 * (q - p), p)

    spoil(nearly)
    with pytest.raises(UserError, match=r"model.onnx names another class than PyTorch on 1 validation frames"):
        packaging.export(strict)


def test_a_format_that_cannot_be_made_or_tried_is_left_out(student: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    really = runtimes.open

    def without_ncnn(path: Path, runtime: str, shape: tuple[int, ...]) -> Any:
        if runtime == "ncnn":
            raise UserError(f"{path}: ncnn is not in the mood")
        return really(path, runtime, shape)

    pytest.importorskip("pnnx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(runtimes, "open", without_ncnn)
    made = packaging.export(student, formats=("ncnn", "openvino"))
    why = {one["name"]: one["why"] for one in made.manifest.left_out}
    assert why.pop("openvino") == "openvino is not installed; pip install 'stillwatch[openvino]'"
    assert why == {"model.ncnn.param": "cannot be tried: model.ncnn.param: ncnn is not in the mood"}
    assert made.manifest.files.keys() == {"model.onnx", "golden.npz", "CARD.md"}


def test_ncnn_goes_into_a_bundle_with_both_its_files(student: Run) -> None:
    pytest.importorskip("pnnx")
    made = packaging.export(student, formats=("ncnn",))
    model = made.model("model.ncnn.param")
    assert (model.files, model.batch) == (("model.ncnn.param", "model.ncnn.bin"), 1)
    assert model.figures["parity"]["max_difference"] < 1e-5
    assert Detector(made.path, runtime="ncnn").choice["file"] == "model.ncnn.param"


def test_int8_that_lost_its_accuracy_on_the_way_stays_out(student: Run, here: Path, spoil: Any) -> None:
    with np.load(student.path / "predictions" / "valid.npz") as said:
        y = said["y"]

    def never_right(p: np.ndarray) -> np.ndarray:
        return np.eye(p.shape[1], dtype=np.float32)[(y + 1) % p.shape[1]] if len(p) == len(y) else p

    spoil(never_right, only=bundle.INT8)
    made = packaging.export(student, int8_of(student, True, here / "runs"))
    assert [model.name for model in made.manifest.models] == ["model.onnx"]
    left = made.manifest.left_out[0]
    assert re.fullmatch(r"macro-F1 falls by \d+\.\d\d points, above quantise.max_drop = 2", left["why"])
    assert left["valid"]["macro_f1"] == 0 < made.manifest.models[0].figures["valid"]["macro_f1"]


def test_other_data_than_those_it_learnt_from_are_refused(student: Run) -> None:
    student.note(fingerprint="another")
    with pytest.raises(UserError, match="learnt from other data than now lie in"):
        packaging.export(student)


def test_no_path_of_this_machine_leaves_with_the_recipe(student: Run, here: Path) -> None:
    raw = json.loads(json.dumps(student.info.recipe))
    raw["teacher"]["init"], raw["student"]["net"]["weights"] = str(here / "runs" / "toy-teacher-003"), "imagenet"
    raw["teacher"]["net"]["weights"] = str(here / "secret" / "weights.pt")
    student.note(recipe=raw)
    made = packaging.export(student)
    said = made.manifest.run["recipe"]
    assert (said["teacher"]["init"], said["teacher"]["net"]["weights"]) == ("toy-teacher-003", "weights.pt")
    for name in ("bundle.json", "CARD.md"):
        assert str(here) not in (made.path / name).read_text()


def test_a_net_that_learnt_nothing_is_exported_only_on_demand_and_with_a_warning(student: Run) -> None:
    student.note(best=student.info.best | {"accuracy": 0.0})
    with pytest.raises(UserError, match=r"does not beat always saying SafeDriving .* or --anyway"):
        packaging.export(student)
    made = packaging.export(student, anyway=True)
    assert "**Warning: this net learnt nothing: its validation accuracy" in (made.path / "CARD.md").read_text()
