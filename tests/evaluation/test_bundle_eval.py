"""A bundle's files are judged by what they say of the run's own samples; no runtime and no net is needed for that."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fabricated import LABELS, Reader, fabricate
from numpy.typing import NDArray

from stillwatch import bundle, metrics
from stillwatch.errors import UserError
from stillwatch.evaluation.bundle_eval import judge_bundle
from stillwatch.inference import runtimes
from stillwatch.predictions import EvalArrays, Predictions, read
from stillwatch.rules.fusion import FACE
from stillwatch.rules.normal import Deviation
from stillwatch.run import Progress, Run

SHAPE, HEAT, THRESHOLD = (4, 4, 1), 2.0, 0.5
FORMATS = {".onnx": "onnxruntime", ".param": "ncnn"}


def packed(path: Path, run: Run, names: Sequence[str] = ("model.onnx", "model-int8.onnx"), **fields: Any) -> Any:
    """A bundle of files that hold nothing: what they say is the street's affair."""
    parts = {name: (name, name.replace(".param", ".bin")) if name.endswith("param") else (name,) for name in names}
    models = [
        bundle.Model(name=n, files=files, precision="int8" if "int8" in n else "fp32", tolerance=0.1)
        for n, files in parts.items()
    ]
    about: dict[str, Any] = {
        "name": "toy-bundle",
        "labels": tuple(LABELS),
        "safe": ("Safe",),
        "input": bundle.Input(shape=SHAPE),
        "operating": {"threshold": THRESHOLD, "split": "valid"},
        "temperature": {"value": HEAT, "split": "valid"},
        "run": {"id": run.path.name},
        "licence": "CC0",
        "created": "2026-01-01T00:00:00",
        "stillwatch": "0",
        "models": tuple(models),
        "left_out": ({"name": "model.xml", "why": "differs by 0.2", "stages": []},),
    }
    frames, golden = np.zeros((8, *SHAPE), np.uint8), np.full((8, 3), 1 / 3, np.float32)
    files = {part: b"x" * (4000 if name == "model.onnx" else 1000) for name in names for part in parts[name]}
    return bundle.write(path, bundle.Manifest(**about | fields), files, frames, dict.fromkeys(names, golden))


def pictures(said: Predictions) -> EvalArrays:
    """Its samples in another order than the predictions', each picture holding its row's number."""
    order = np.random.default_rng(1).permutation(len(said))
    x = np.zeros((len(said), 1, *SHAPE), np.uint8)
    x[:, 0, 0, 0, 0], x[:, 0, 0, 1, 0] = order // 256, order % 256
    mine = said.take(order)
    return EvalArrays(x, mine.id.tolist(), mine.group.tolist(), mine.sequence.tolist(), mine.y)


def answering(
    patch: pytest.MonkeyPatch, said: Predictions, change: Callable[[str, NDArray[Any]], NDArray[Any]] | None = None
) -> None:
    """Files that say what the run said, at the bundle's temperature; `change` alters one by its name."""
    p = metrics.apply_temperature(said.p, HEAT)

    def opened(path: Path, runtime: str, shape: tuple[int, ...]) -> Any:
        assert shape == SHAPE and runtime == FORMATS[path.suffix]

        def predict(x: NDArray[np.uint8]) -> NDArray[np.float32]:
            assert x.shape[1:] == SHAPE
            rows = x[:, 0, 0, 0].astype(int) * 256 + x[:, 0, 1, 0]
            told = p[rows]
            return (change(path.name, told) if change else told).astype(np.float32)

        return predict

    patch.setattr(runtimes, "open", opened)
    patch.setattr(runtimes, "readers", lambda path: [FORMATS[path.suffix]] if path.suffix in FORMATS else [])


def worse(name: str, p: NDArray[Any]) -> NDArray[Any]:
    """INT8 forgets what a yawn is."""
    return p * [1, 1, 0.2] / (p * [1, 1, 0.2]).sum(1, keepdims=True) if "int8" in name else p


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return fabricate(tmp_path / "runs", "distilled", skill=1.5, groups=6)


class Case(NamedTuple):
    said: Predictions
    out: Path
    found: dict[str, Any]
    lines: list[str]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A bundle of two files, the second one worse, judged once: painting its report takes longest."""
    root = tmp_path_factory.mktemp("case")
    run = fabricate(root / "runs", "distilled", skill=1.5, groups=6)
    said, lines = read(run), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        answering(patch, said, worse)
        progress = Progress(say=lines.append)
        found = judge_bundle(packed(root / "b", run), run, pictures(said), root / "report", progress=progress)
    return Case(said, root / "report", found, lines)


def test_each_file_stands_beside_its_run(case: Case) -> None:
    said, found = case.said, case.found
    assert list(found["models"]) == ["distilled", "model.onnx", "model-int8.onnx"]
    assert len(case.lines) == 2 and "model.onnx through onnxruntime: 240 test samples" in case.lines[0]

    # ---- the float file is the run, calibrated
    same, int8 = found["compression"]
    assert (same["base"], same["candidate"], same["outcome"]) == ("distilled", "model.onnx", "same")
    assert found["models"]["model.onnx"]["macro_f1"] == found["models"]["distilled"]["macro_f1"]
    assert found["models"]["model.onnx"]["ece"] != pytest.approx(found["models"]["distilled"]["ece"], abs=0.01)
    assert same["sentence"].startswith("model.onnx has the same macro-F1 as the run it was exported from, over 6 new")

    # ---- the other one is not, and by how much is in the paired figures
    kept = read(case.out / "model-int8.onnx")
    assert kept.id.tolist() != said.id.tolist() and sorted(kept.id) == sorted(said.id)
    change = metrics.macro_f1(kept.y, kept.p) - metrics.macro_f1(said.y, said.p)
    assert int8["outcome"] == "worse" and int8["difference"] == pytest.approx(change) and change < -0.02
    assert int8["ci95"][0] < change < int8["ci95"][1] < 0
    assert re.search(r"model-int8.onnx is \d+\.\d points worse in macro-F1 than the run", int8["sentence"])
    assert found["models"]["model-int8.onnx"]["bytes"] == 1000 and found["models"]["model.onnx"]["bytes"] == 4000
    assert found["models"]["model.onnx"]["runtime"] == "onnxruntime"


def test_a_fusion_head_s_answers_stand_beside_each_file_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """A head that names the last class wherever lids are shut, which they are in every second sample with a face."""
    weight = np.hstack([np.eye(3), np.zeros((3, FACE))])
    weight[2, 8] = 50.0
    head = {"weight": weight.tolist(), "bias": [0.0] * 3, "figures": {"accuracy": 0.9}}
    said = read(run)
    answering(monkeypatch, said)
    usual = Deviation(0.0, 0.0, 0.0, 0.0, 0.0, (0.0,) * 5)
    faces = [None if n % 3 == 0 else usual._replace(shut=float(n % 2)) for n in range(len(said))]
    made = packed(tmp_path / "b", run, ("model.onnx",), fusion=head)
    found = judge_bundle(made, run, pictures(said), tmp_path / "report", faces=faces)
    assert list(found["models"]) == ["distilled", "model.onnx", "model.onnx+face"]
    plain, fused = (read(tmp_path / "report" / name) for name in ("model.onnx", "model.onnx+face"))
    assert fused.id.tolist() == plain.id.tolist()
    for n, face in enumerate(faces):
        shut = face is not None and face.shut
        assert fused.p[n] == pytest.approx([0, 0, 1] if shut else plain.p[n], abs=1e-3)
    assert any("people left out" in warning and "accuracy 0.900" in warning for warning in found["warnings"])
    assert [one["name"] for one in found["bundle"]["files"]] == ["model.onnx"], "agreement is the files' own"


def test_agreement_is_with_the_run_at_the_bundle_s_temperature(case: Case) -> None:
    float_file, int8 = case.found["bundle"]["files"]
    assert float_file["max_difference"] < 1e-6 and float_file["top1_agreement"] == 1 and float_file["n"] == 240
    assert float_file["decision_flips"] == 0
    p = metrics.apply_temperature(case.said.p, HEAT)
    q = worse("int8", p)
    assert int8["max_difference"] == pytest.approx(np.abs(p - q).max(), abs=1e-6) and int8["max_difference"] > 0.1
    assert int8["top1_agreement"] == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    flips = int(((1 - p[:, 0] >= THRESHOLD) != (1 - q[:, 0] >= THRESHOLD)).sum())
    assert int8["decision_flips"] == flips > 0
    assert case.found["bundle"]["left_out"] == [{"name": "model.xml", "why": "differs by 0.2"}]


def test_the_page_says_what_the_files_are_worth(case: Case) -> None:
    found = case.found
    assert json.loads((case.out / "report.json").read_text()) == found
    reader = Reader()
    reader.feed((case.out / "report.html").read_text())
    assert reader.open == []
    for words in (
        "toy: is the bundle as good as its run?",
        "What the exported files say",
        "their logits are divided by 2.00",
        "changes no answer and no macro-F1",
        "Tried and left out of the bundle",
        "differs by 0.2",
    ):
        assert words in reader.text, words
    ece = found["models"]["distilled"]["ece"], found["models"]["model.onnx"]["ece"]
    assert f"from {ece[0]:.3f} to {ece[1]:.3f}" in reader.text
    assert not [line for line in found["warnings"] if "no verdict on distillation" in line]


def test_a_teacher_s_bundle_without_threshold_and_temperature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = fabricate(tmp_path / "runs", "teacher", skill=1.5, groups=6), tmp_path / "report"
    said = read(run)
    bare = packed(tmp_path / "b", run, ("model.onnx",), operating=None, temperature=None, left_out=())
    monkeypatch.setattr(
        runtimes, "open", lambda *asked: lambda x: said.p[x[:, 0, 0, 0].astype(int) * 256 + x[:, 0, 1, 0]]
    )
    monkeypatch.setattr(runtimes, "readers", lambda path: ["any"])
    found = judge_bundle(bare, run, pictures(said), out)
    assert found["bundle"]["files"][0]["decision_flips"] is None
    assert found["bundle"]["files"][0]["max_difference"] == 0
    assert found["models"]["model.onnx"]["ece"] == pytest.approx(found["models"]["teacher"]["ece"])
    assert {model["net"] for model in found["models"].values()} == {"efficientnet"}
    assert [row["base"] for row in found["compression"]] == ["teacher"]
    page = (out / "report.html").read_text()
    assert "no operating threshold" in page and "logits are divided" not in page and "Tried and left out" not in page


def test_a_pruned_run_s_bundle_stands_beside_the_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about: dict[str, Any] = {"skill": 1.5, "groups": 6}
    distilled = fabricate(tmp_path / "runs", "distilled", **about)
    fabricate(tmp_path / "runs", "narrow", **about)
    run = fabricate(tmp_path / "runs", "pruned", parent=distilled.path.name, **about)
    said = read(run)
    made = packed(tmp_path / "b", run, ("model.onnx",))
    answering(monkeypatch, said)
    found = judge_bundle(made, run, pictures(said), tmp_path / "report")
    assert list(found["models"]) == ["distilled", "narrow", "pruned", "model.onnx"]
    pairs = {(row["base"], row["candidate"]): row["outcome"] for row in found["compression"]}
    assert pairs["pruned", "model.onnx"] == "same" and ("narrow", "pruned") in pairs
    ece = [f"{found['models'][name]['ece']:.3f}" for name in ("pruned", "model.onnx")]
    assert f"from {ece[0]} to {ece[1]} on this split" in " ".join(
        (tmp_path / "report" / "report.html").read_text().split()
    )


def test_a_file_that_cannot_be_run_here_is_named_and_the_others_are_judged(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = read(run)
    made = packed(tmp_path / "b", run, ("model.onnx", "model.tflite", "model.param"))

    answering(monkeypatch, said)
    opened = runtimes.open

    def broken(path: Path, runtime: str, shape: tuple[int, ...]) -> Any:
        if runtime == "ncnn":
            raise UserError(f"{path}: ncnn cannot read it")
        return opened(path, runtime, shape)

    monkeypatch.setattr(runtimes, "open", broken)
    found = judge_bundle(made, run, pictures(said), tmp_path / "report")
    assert [file["name"] for file in found["bundle"]["files"]] == ["model.onnx"]
    assert found["warnings"][0] == "model.tflite is not judged: no installed runtime takes it"
    assert found["warnings"][1].startswith("model.param is not judged:") and "cannot read it" in found["warnings"][1]
    monkeypatch.setattr(runtimes, "readers", lambda path: [])
    with pytest.raises(UserError, match=r"none of its files can be run here: model\.onnx is not judged"):
        judge_bundle(made, run, pictures(said), tmp_path / "other")
    assert not (tmp_path / "other" / "report.json").exists()


def test_what_does_not_belong_together_is_refused(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said = read(run)
    answering(monkeypatch, said)
    other = fabricate(tmp_path / "runs", "distilled", skill=1.5, groups=6)
    mine, arrays = packed(tmp_path / "b", run), pictures(said)

    def refused(match: str, *asked: Any) -> None:
        with pytest.raises(UserError, match=match) as error:
            judge_bundle(*asked, tmp_path / "report")
        assert "\n" not in str(error.value) and not (tmp_path / "report").exists()

    refused("was exported from toy-distilled-001, not from toy-distilled-002", mine, other, arrays)
    refused("other samples", mine, run, EvalArrays(*(column[1:] for column in arrays)))
    strange = packed(tmp_path / "c", run, labels=("Safe", "Phone", "Sleep"))
    refused("its labels are Safe, Phone, Sleep", strange, run, arrays)
    (run.path / "predictions" / "test.npz").unlink()
    refused("no predictions of the test split", mine, run, arrays)


def test_pictures_of_another_size_are_refused(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said = read(run)
    answering(monkeypatch, said)
    arrays = pictures(said)
    with pytest.raises(UserError, match=r"takes \(4, 4, 1\), and the data give \(1, 2, 4, 1\)"):
        judge_bundle(packed(tmp_path / "b", run), run, arrays._replace(x=arrays.x[:, :, :2]), tmp_path / "report")


def test_an_earlier_report_does_not_stay(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said, out = read(run), tmp_path / "report"
    answering(monkeypatch, said)
    for name in ("widths.png", "model.onnx/run.json", "model.onnx/predictions/valid.npz", "mine.onnx/kept"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"of an older bundle")
    judge_bundle(packed(tmp_path / "b", run, ("model.onnx",)), run, pictures(said), out)
    assert not (out / "widths.png").exists() and (out / "mine.onnx" / "kept").exists()
    files = {file.relative_to(out).as_posix() for file in (out / "model.onnx").rglob("*") if file.is_file()}
    assert files == {"model.onnx/run.json", "model.onnx/predictions/test.npz"}
    assert Run.open(out / "model.onnx").info.status == "done"
