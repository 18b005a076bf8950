"""Quantise: stage after stage until one may leave; what is left out says why; the test split is looked at last."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stillwatch import metrics
from stillwatch.errors import UserError
from stillwatch.evaluation.report.report import assess
from stillwatch.inference import runtimes, timing
from stillwatch.lab.compression.quantise import Evaluator, StageResult, quantise, spread
from stillwatch.lab.data.dataset import load_dataset
from stillwatch.lab.training import pipeline
from stillwatch.lab.training.runs import RunOptions
from stillwatch.predictions import read, save_predictions
from stillwatch.recipe import check
from stillwatch.run import NO_PROGRESS, Run

RAW = {
    "name": "toy",
    "labels": ["SafeDriving", "Yawn"],
    "safe": ["SafeDriving"],
    "data": {"source": {"name": "toy", "people": 6, "pictures": 5}, "size": 16, "gray": True, "folds": 3},
    "teacher": {"net": {"name": "mnist-cnn", "weights": "scratch", "options": {"width": 4}}},
    "student": {"net": {"name": "mnist-small", "weights": "scratch"}},
    "fit": {"epochs": 12, "batch": 8, "lr": 1e-2, "loss": ["ce", {"name": "kd", "temperature": 2}]},
    "quantise": {"frames": 12, "max_drop": 1.0, "fit": {"epochs": 2, "lr": 1e-4}},
}


pytestmark = pytest.mark.usefixtures("export_once")


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and a student that it taught."""
    root = tmp_path_factory.mktemp("lineage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLWATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        teacher = pipeline.teach(check(RAW, "here"), RunOptions(root))
        teacher.note(best=teacher.info.best | {"accuracy": 1.0})  # let through, whatever a few epochs are worth
        student = pipeline.distil(check(RAW, "here"), RunOptions(root, "name = 'toy'"))
    assert student.info.best["macro_f1"] > 0.6  # or turning answers round would not harm
    return root


@pytest.fixture
def student(lineage: Path, tmp_path: Path) -> Run:
    """The student in a folder of the test's own, its teacher beside it."""
    shutil.copytree(lineage, tmp_path / "runs")
    return Run.open(tmp_path / "runs" / "toy-distilled-001")


def clock(monkeypatch: pytest.MonkeyPatch, int8: float = 0.5) -> None:
    """A clock that says of every file what it is told to: float 1 ms, INT8 so much."""

    def told(entrants: dict[str, Callable[[], Any]]) -> dict[str, np.ndarray]:
        for call in entrants.values():
            assert call().shape == (1, 2)
        alone = not any(name.startswith("fp32") for name in entrants)
        return {name: np.full(5, 1e-3 * (1 if alone or name.startswith("fp32") else int8)) for name in entrants}

    monkeypatch.setattr(timing, "race", told)


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock(monkeypatch)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """spoil(names): from now on the two probabilities of the files of these names change places."""
    really = runtimes.open

    def spoil(*names: str) -> None:
        def opened(path: Path, runtime: str, shape: tuple[int, ...]) -> Any:
            fn = really(path, runtime, shape)
            return (lambda x: fn(x)[:, ::-1]) if path.name in names else fn

        monkeypatch.setattr(runtimes, "open", opened)

    return spoil


def test_a_run_in_int8_holds_what_the_next_steps_need(student: Run) -> None:
    made = quantise(student, RunOptions(student.path.parent, student.text))
    info = json.loads((made.path / "run.json").read_text())
    assert made.path.name == "toy-quantised-001"
    assert (info["kind"], info["status"], info["parent"]) == ("quantised", "done", student.path.name)
    assert info["teacher"] == "toy-teacher-001"
    assert (made.path / "recipe.toml").read_text() == "name = 'toy'"
    assert [stage["name"] for stage in info["stages"]] == ["fp32", "post-training"]
    fp32, int8 = info["stages"]
    assert (fp32["precision"], fp32["drop"], fp32["kept"]) == ("fp32", 0, True)
    assert (int8["precision"], int8["kept"], int8["why"]) == ("int8", True, "")
    assert (int8["ms"], int8["fp32_ms"]) == (0.5, 1.0)
    assert int8["drop"] == pytest.approx(100 * (fp32["macro_f1"] - int8["macro_f1"]))
    assert set(int8["runtimes"]) == {"onnxruntime", "openvino"}
    assert (info["kept"], info["why"], info["stage"], info["calibration"]) == (True, "", "post-training", 12)
    file = made.path / "model-int8.onnx"
    assert int8["bytes"] == info["cost"]["bytes"] == file.stat().st_size < fp32["bytes"]
    assert info["cost"]["params"] == student.info.cost["params"]
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in onnx.load(file).graph.initializer)
    for split in ("valid", "test"):
        said = read(made, split)
        x = load_dataset(made.recipe).store.pixels
        place = {s.id: row for row, s in enumerate(load_dataset(made.recipe).samples)}
        p = runtimes.open(file, int8["runtime"], (16, 16, 1))(x[[place[name] for name in said.id], 0])
        assert np.allclose(said.p, p, atol=1e-6)
    assert info["best"]["macro_f1"] <= metrics.macro_f1(read(made, "valid").y, read(made, "valid").p)
    assert not (made.path / "qat").exists()


def test_int8_has_the_temperature_of_the_other_files(student: Run) -> None:
    made = quantise(student, RunOptions(student.path.parent, student.text))
    before = read(student, "valid")
    assert made.info.temperature == metrics.temperature(before.y, before.p) != 1
    calibrated = metrics.apply_temperature(before.p, made.info.temperature)
    after = read(made, "valid").p
    assert np.abs(after - calibrated).mean() < np.abs(after - before.p).mean()


def test_stages_follow_until_one_may_leave(student: Run, spoil: Any) -> None:
    """The first two INT8 files answer the wrong way round; training under the teacher then gives a third."""
    spoil("int8-0.onnx", "int8-1.onnx")
    made = quantise(student, RunOptions(student.path.parent, student.text))
    stages = made.info.stages
    assert [stage["name"] for stage in stages] == ["fp32", "post-training", "accuracy-aware", "quantisation-aware"]
    assert [stage["kept"] for stage in stages] == [True, False, False, True]
    assert stages[1]["why"].startswith(f"macro-F1 falls by {stages[1]['drop']:.2f} points, above quantise.max_drop = 1")
    assert made.info.stage == "quantisation-aware"
    assert made.info.kept is True
    rows = Run(made.path / "qat").history()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert set(rows[0]["train"]["parts"]) == {"ce", "kd"}


def test_training_is_left_out_where_the_recipe_says_so(student: Run, spoil: Any) -> None:
    student.info.recipe["quantise"]["qat"] = False
    spoil("int8-0.onnx", "int8-1.onnx")
    made = quantise(student, RunOptions(student.path.parent, student.text))
    assert [stage["name"] for stage in made.info.stages] == ["fp32", "post-training", "accuracy-aware"]
    assert made.info.kept is False
    assert made.info.why.startswith("macro-F1 falls by")
    assert (made.path / "model-int8.onnx").is_file()


def test_what_is_not_faster_is_left_out_and_nothing_costly_is_tried(
    student: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock(monkeypatch, 1.5)
    made = quantise(student, RunOptions(student.path.parent, student.text))
    names = [stage["name"] for stage in made.info.stages]
    assert names == ["fp32", "post-training", "post-training, one scale an activation"]
    assert made.info.kept is False
    assert made.info.why == "1.500 ms here, no faster than FP32's 1.000"
    assert (made.path / "model-int8.onnx").is_file()


def test_nothing_sees_the_test_split_before_the_end(student: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_dataset(student.recipe)
    test = {data.store.pixels[row].tobytes() for row in data.rows["test"]}
    seen: list[bytes] = []
    order: list[str] = []

    really = runtimes.open

    def opened(path: Path, runtime: str, shape: tuple[int, ...]) -> Any:
        fn = really(path, runtime, shape)

        def look(x: np.ndarray) -> np.ndarray:
            seen.extend(frame.tobytes() for frame in x)
            return fn(x)

        return look

    def saving(run: Run, split: str, *rest: Any, **more: Any) -> Any:
        order.append(split)
        if split == "test":
            assert seen
            assert not test & set(seen)
        return save_predictions(run, split, *rest, **more)

    monkeypatch.setattr(runtimes, "open", opened)
    monkeypatch.setattr("stillwatch.predictions.save_predictions", saving)
    quantise(student, RunOptions(student.path.parent, student.text))
    assert order == ["valid", "test"]
    assert test <= set(seen)


def test_cut_off_in_training_it_goes_on_there(student: Run, spoil: Any) -> None:
    spoil("int8-0.onnx", "int8-1.onnx")

    def stop(line: str) -> None:
        if line.startswith("epoch   2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise(student, RunOptions(student.path.parent, student.text, progress=NO_PROGRESS._replace(say=stop)))
    cut = Run.open(student.path.parent / "toy-quantised-001")
    assert cut.info.status == "stopped"
    assert not cut.info.stages
    assert not (cut.path / "model-int8.onnx").exists()
    again = quantise(student, RunOptions(student.path.parent, student.text))
    assert again.path == cut.path
    assert (again.info.status, again.info.stage) == ("done", "quantisation-aware")
    assert [row["epoch"] for row in Run(again.path / "qat").history()] == [1, 2]


def test_a_runtime_that_cannot_read_a_file_is_passed_over(
    student: Run, spoil: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only one left spoils the first INT8 file, so that NNCF's own checks go through it as well."""
    spoil("int8-0.onnx")
    spoilt = runtimes.open

    def opened(path: Path, runtime: str, shape: tuple[int, ...]) -> Any:
        if runtime == "openvino" and path.name != "fp32.onnx":
            raise UserError("openvino cannot read it")
        return spoilt(path, runtime, shape)

    monkeypatch.setattr(runtimes, "open", opened)
    made = quantise(student, RunOptions(student.path.parent, student.text))
    assert [stage["name"] for stage in made.info.stages] == ["fp32", "post-training", "accuracy-aware"]
    for stage in made.info.stages[1:]:
        assert stage["runtimes"]["openvino"] == {"why_not": "openvino cannot read it"}
        assert stage["runtime"] == "onnxruntime"
    assert (made.info.stage, made.info.kept) == ("accuracy-aware", True)


def test_runs_that_cannot_be_quantised(student: Run) -> None:
    before = sorted(student.path.parent.iterdir())

    def refused(run: Run) -> str:
        with pytest.raises(UserError) as error:
            quantise(run, RunOptions(student.path.parent, run.text))
        return str(error.value)

    moved = Run(student.path, student.info.changed(fingerprint="other"))
    assert "learnt from other data than now lie in data.root" in refused(moved)
    assert "a audit run (done); name a finished one of a net" in refused(
        Run(student.path, student.info.changed(kind="audit"))
    )
    failed = Run(student.path, student.info.changed(status="failed"))
    assert "a distilled run (failed)" in refused(failed)
    assert sorted(student.path.parent.iterdir()) == before


def test_calibration_rows_are_spread_over_people_and_classes(student: Run) -> None:
    data = load_dataset(student.recipe)
    train = set(data.rows["train"].tolist())
    assert len(train) == 20  # two people, two classes, five pictures
    assert sorted(spread(data, 999)) == sorted(train)
    rows = spread(data, 8)
    assert len(set(rows)) == 8
    assert set(rows) <= train
    cells = [(data.samples[row].group, data.samples[row].label) for row in rows]
    assert {cells.count(cell) for cell in set(cells)} == {2}
    assert len(set(cells)) == 4


def judged(**changes: Any) -> StageResult:
    figures = dict.fromkeys(("macro_f1", "accuracy", "balanced_accuracy", "loss", "ece"), 0.8)
    row = {"ms": 0.5, "fp32_ms": 1.0, "drop": 0.0, "flips": 0, "runtimes": {}, "bytes": 1, "why": "", "kept": True}
    row |= {"name": "x", "precision": "int8", "runtime": "onnxruntime"}
    return StageResult(**{**figures, **row, **changes}, file=Path(), p=np.empty((0, 2), np.float32))


@pytest.mark.parametrize(
    ("stages", "best"),
    [
        ([{"ms": 0.6}, {"ms": 0.5}], 1),  # the faster one
        ([{"ms": 0.505, "macro_f1": 0.81}, {"ms": 0.5}], 0),  # as fast, for all that can be measured: the better one
        ([{"ms": 0.6, "fp32_ms": 2.0}, {"ms": 0.5}], 0),  # another race, when the machine was busier
        ([{"kept": False, "ms": 0.1, "drop": 2.0}, {}], 1),
        ([{"kept": False, "drop": 2.0, "ms": 0.1}, {"kept": False, "drop": 1.0}], 1),  # the least harmful
        ([{"kept": False, "drop": 0.1, "ms": 1.2}, {"kept": False, "drop": 3.0}], 1),  # slower is past mending
        ([{"kept": False, "drop": 0.4, "ms": 1.2}, {"kept": False, "drop": 0.2, "ms": 1.1}], 1),
    ],
)
def test_which_stage_is_best(stages: list[dict[str, Any]], best: int) -> None:
    made = [judged(**stage) for stage in stages]
    evaluator = Evaluator(data=None, max_drop=0.5)  # type: ignore[arg-type]
    assert evaluator.best(made) is made[best]


def test_a_net_that_learnt_nothing_is_quantised_only_on_demand_and_the_report_says_so(student: Run) -> None:
    student.note(best=student.info.best | {"accuracy": 0.0})
    with pytest.raises(UserError, match=r"not quantised: it learnt nothing: .* does not beat always saying .*--anyway"):
        quantise(student, RunOptions(student.path.parent, student.text))
    assert not list(student.path.parent.glob("*quantised*"))
    said: list[str] = []
    made = quantise(
        student,
        RunOptions(student.path.parent, student.text, progress=NO_PROGRESS._replace(say=said.append)),
        anyway=True,
    )
    assert "warning: " in said[0]
    made.note(best=made.info.best | {"accuracy": 0.0})
    warnings = assess([student, made])[0]["warnings"]
    assert [line.split(": ")[0] for line in warnings if "learnt nothing" in line] == [
        "Student distilled",
        "Student INT8",
    ]
