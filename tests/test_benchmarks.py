"""The benchmark compares like with like: both loops see the same files, as often. Nothing here asks how fast."""

import csv
import itertools
import platform
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bundles import made, onnx_net, pictures
from fabricated import LABELS, fabricate

from benchmarks import distil, door, fusion, score, thresholds
from benchmarks.fusion import complete
from benchmarks.naive import Files, Naive, Spent
from stillwatch import metrics, predictions, recipe
from stillwatch.bundle import Input, Manifest, Model, write
from stillwatch.errors import UserError
from stillwatch.evaluation.benchmark import BenchPlan, bench
from stillwatch.evaluation.report.bench import save
from stillwatch.inference import runtimes
from stillwatch.lab.data.reader import gather
from stillwatch.lab.data.sources import Sample
from stillwatch.lab.export.exporters import to_onnx
from stillwatch.lab.export.packaging import golden_frames
from stillwatch.lab.faces import FaceTable
from stillwatch.lab.models import classifier
from stillwatch.recipe import Net, Recipe
from stillwatch.run import Run

SMALL = (
    "data.size=16",
    "data.source.height=32",
    "data.source.width=48",
    "teacher.net=smallcnn",
    "teacher.net.weights=scratch",
    "fit.views=2",
    "fit.batch=16",
)


def small(folder: Path, limit: int = 96, *more: str) -> Recipe:
    folder.mkdir()
    wanted, real = distil.asked("toy", [*SMALL, "fit.epochs=1", *more], None, limit)
    assert not real
    return distil.lay(wanted, folder, limit)


def test_a_case_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "bench.csv"
    asked = ["--recipe", "toy", "--limit", "96", "--epochs", "2", "--workers", "0", "--out", str(out), *SMALL]
    assert distil.main(asked) == 0
    assert distil.main([*asked, "--stages", "distil"]) == 0
    said = capsys.readouterr().out
    with out.open(newline="") as file:
        both, alone = csv.DictReader(file)
    assert (both["recipe"], both["stages"], both["data"], both["size"]) == ("toy", "teach+distil", "toy", "16x16x1")
    assert (both["teacher"], both["student"], both["epochs"], both["views"]) == ("smallcnn", "mnist-cnn", "2", "2")
    train = int(both["train"])
    assert train + int(both["valid"]) + int(both["test"]) == 96
    whole = train // 16 * 16  # the short last batch is left out by both
    assert (int(both["seen"]), int(alone["seen"])) == (2 * 2 * whole, 2 * whole)
    assert alone["teach_naive_s"] == alone["teacher_epochs"] == ""
    for column in ("teach_naive_s", "teach_ours_s", "distil_naive_s", "distil_ours_s", "ratio", "distil_ours_mb"):
        assert float(both[column]) > 0
    assert [line.split()[0] for line in said.splitlines() if "×" in line] == ["teach", "distil", "both", "distil"]
    assert "decoding" in said and "teacher" in said and "epochs" in said  # where our time went
    written = out.read_text()
    assert "/" not in written and str(platform.node() or "/") not in written


def test_both_loops_see_the_same_pictures(tmp_path: Path) -> None:
    task = small(tmp_path / "pictures")
    found = distil.compare(task, distil.STAGES, tmp_path, workers=0, repeats=2)
    assert list(found) == ["teach naive", "teach ours", "distil naive", "distil ours"]
    train = len(Naive.of(task, 0).split["train"])
    assert {spent.seen for side in found.values() for spent in side} == {train // 16 * 16}
    assert {len(side) for side in found.values()} == {2}
    for side in ("teach ours", "distil ours"):  # each repeat starts from an empty cache
        assert all("epochs" in spent.phases for spent in found[side])
    assert all("decoding" in spent.phases for spent in found["teach ours"])
    assert all("teacher" in spent.phases for spent in found["distil ours"])


def test_loops_that_differ_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(self: Naive, side: str, teacher_net: object, spent: Spent) -> None:
        spent.seen = 1

    monkeypatch.setattr(Naive, "learn", idle)
    with pytest.raises(UserError, match="one loop trained on other pictures"):
        distil.compare(small(tmp_path / "pictures"), ["distil"], tmp_path, workers=0, repeats=1)


def test_the_files_hold_what_was_drawn(tmp_path: Path) -> None:
    task = small(tmp_path / "pictures", 12)
    samples = gather(task).samples
    assert len(samples) == 12
    assert {sample.label for sample in samples} == set(task.labels)
    x, y = Files(samples, task)[3]
    assert (x.dtype, tuple(x.shape)) == (torch.uint8, (1, 16, 16, 1))
    assert task.labels[y] == samples[3].label
    # picture files are not copied: links lead to them
    again = tmp_path / "again"
    again.mkdir()
    linked = distil.lay(task, again, 6)
    assert len(gather(linked).samples) == 6
    assert all(sample.path.is_symlink() for sample in gather(linked).samples)


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STILLWATCH_DATA", raising=False)
    assert distil.main(["--recipe", "mnist"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "mnist: the toy does not draw its labels; --data must name a folder with mnist/"
    ]
    assert distil.main(["--recipe", "toy", 'fit.augment=["mixup"]', *SMALL]) == 1
    assert "mixup" in capsys.readouterr().err


def test_the_door_s_rows_are_the_bench_s_and_the_judge_s(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = classifier.build(Net(name="mnist-small", weights="scratch"), 6, (32, 32), 1).eval()
    run = Run.create(recipe.load("toy"), "distilled", fingerprint="f")
    run.save("best.pt", lambda path: torch.save({"net": net.state_dict()}, path))
    p = np.tile(np.full(6, 1 / 6, np.float32), (4, 1))
    p[:, 2] += 0.1
    run.save_arrays("predictions/test.npz", y=np.array([2, 2, 2, 1]), p=p, group=np.array(["a", "a", "b", "c"]))
    path = to_onnx(net, (32, 32, 1), here / "model.onnx")
    frames = golden_frames((32, 32, 1), "stretch")
    figures = {"valid": {"macro_f1": 0.25}}
    model = Model(name="model.onnx", files=("model.onnx",), precision="fp32", tolerance=1e-3, figures=figures)
    manifest = Manifest(
        name="toy", labels=run.recipe.labels, input=Input(shape=(32, 32, 1)), licence="-", created="-", stillwatch="-",
        run={"id": run.path.name, "int8": None}, models=(model,),
    )  # fmt: skip
    golden = {"model.onnx": runtimes.open(path, "onnxruntime", (32, 32, 1))(frames)}
    made = write(here / "bundle", manifest, {"model.onnx": path}, frames, golden)
    with pytest.raises(UserError, match="stillwatch bench bundle"):
        door.rows_of(Path("bundle"), run, "toy", "")
    monkeypatch.setattr(runtimes, "readers", lambda path: ["onnxruntime"])
    report = bench(made, plan=BenchPlan((1,), 5, 1))
    save(report, made.path)
    (row,) = door.rows_of(Path("bundle"), run, "toy", "quiet")
    assert (row["recipe"], row["entrant"], row["runtime"], row["shape"]) == (
        "toy",
        "model.onnx",
        "onnxruntime",
        "32x32x1",
    )
    assert (row["valid_macro_f1"], row["test_groups"], row["fastest"]) == ("0.25", 3, 1)
    assert float(row["test_macro_f1"]) == pytest.approx(metrics.macro_f1([2, 2, 2, 1], p), rel=1e-3)
    assert 0 < float(row["min_ms"]) <= float(row["p50_ms"]) <= float(row["p95_ms"])
    assert row["bundle_bytes"] == sum(file.stat().st_size for file in made.path.iterdir() if "bench" not in file.name
                                      and file.suffix != ".png")  # fmt: skip

    door.record([row], here / "door.csv", door.COLUMNS, door.KEY)
    door.record([row], here / "door.csv", door.COLUMNS, door.KEY)  # laid over, not beside
    assert len((here / "door.csv").read_text().splitlines()) == 2


def test_fusion_is_measured_on_drivers_left_out_over_whole_seeds_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lids tell Yawn, which this student takes for Phone; of a third seed only one fold is done."""
    folder = fabricate(tmp_path, "crossval", change={"data": {"folds": 3}})
    for fold, seed in [*itertools.product(range(3), range(2)), (0, 2)]:
        fabricate(folder.path, "alone", fold, seed, 0.4, {"data": {"folds": 3}, "fit": {"seed": seed}}, per_group=60)
    said = {id: y for fold in range(3) for one in [predictions.read(complete(folder, "alone")[0][fold], "test")]
            for id, y in zip(one.id.tolist(), one.y.tolist(), strict=True)}  # fmt: skip
    samples = [Sample(id, Path(), LABELS[y], id[:6]) for id, y in said.items()]
    signals = np.tile([0.0, 0.0, 0.05, -5.0, -9.0, 0.0, 0.9], (len(samples), 1))
    signals[:, :2] = [[0.1 if y == 2 else 0.28] for y in said.values()]
    table = FaceTable(
        signals, np.zeros((len(samples), 4)), np.zeros((len(samples), 468, 3)), np.ones((len(samples), 2))
    )
    monkeypatch.setattr(
        fusion, "dataset_of", lambda run: SimpleNamespace(samples=samples, store=SimpleNamespace(content=""))
    )
    monkeypatch.setattr(fusion.faces, "faces", lambda samples, key: table)
    rows = list(fusion.rows_of(folder, "alone", "toy"))
    assert {(row["answers"], row["normal"]) for row in rows} == {
        ("student alone", ""), *itertools.product(("signals alone", "student + signals"), ("as it goes", "whole"))
    }  # fmt: skip
    pooled = {(row["answers"], row["normal"]): row for row in rows if row["driver"] == "pooled"}
    alone, fused = pooled["student alone", ""], pooled["student + signals", "as it goes"]
    assert alone["seeds"] == fused["seeds"] == 2 and fused["samples"] == 540 and alone["gain"] == "0.0000"
    assert float(fused["f1_Yawn"]) > 0.9 > 0.7 > float(alone["f1_Yawn"])
    assert float(fused["gain"]) == pytest.approx(float(fused["macro_f1"]) - float(alone["macro_f1"]), abs=2e-4)
    assert float(fused["gain_low"]) > 0 and len(rows) == 5 * (2 + 9)
    with pytest.raises(UserError, match="no seed of distilled has all its 3 folds"):
        list(fusion.rows_of(folder, "distilled", ""))

    # Beside it a net that sees faces alone, of one seed, which knows more than the student
    change = {"data": {"folds": 3, "region": "face"}}
    beside = fabricate(tmp_path, "crossval", change=change)
    for fold in range(3):
        fabricate(beside.path, "alone", fold, 0, 2.5, change, per_group=60)
    more = list(fusion.rows_of(folder, "alone", "toy", beside))
    found = {(row["answers"], row["normal"]): row for row in more if row["driver"] == "pooled"}
    both = found.pop(("student + face net + signals", "as it goes"))
    assert float(both["macro_f1"]) > float(fused["macro_f1"]) + 0.05 and len(found) == len(pooled) + 1
    assert found["student + signals", "as it goes"] == fused


def test_thresholds_of_a_net_come_from_its_own_validation_or_from_the_other_folds(tmp_path: Path) -> None:
    folder = fabricate(tmp_path, "crossval", change={"data": {"folds": 3}})
    for fold in range(3):
        run = fabricate(folder.path, "alone", fold, 0, 0.3 + 0.2 * fold, {"data": {"folds": 3}}, per_group=60)
        shutil.copy(run.path / "predictions" / "test.npz", run.path / "predictions" / "valid.npz")
    rows = list(thresholds.rows_of(folder, "alone", 0.1, "toy"))
    assert [(row["fitted_on"], row["fold"]) for row in rows] == [
        (place, fold) for fold in range(3) for place in ("validation", "other folds")
    ]
    run = complete(folder, "alone")[0][2]
    before = metrics.ece(predictions.read(run, "test").y, predictions.read(run, "test").p)
    assert {row["ece_before"] for row in rows if row["fold"] == 2} == {f"{before:.4f}"}
    assert len({row["threshold"] for row in rows if row["fitted_on"] == "other folds"}) == 3
    assert all(0 <= float(row[key]) <= 1 for row in rows for key in ("false_alarms", "recall", "ece_after"))
    with pytest.raises(UserError, match="no seed of distilled"):
        next(thresholds.rows_of(folder, "distilled", 0.1, ""))


def test_score_is_measured_beside_decoding_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (16, 24, 3)
    it = made(tmp_path, {"m.onnx": onnx_net(tmp_path / "m.onnx", shape)}, frames=pictures(4, shape))
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    words = ["score", str(it.path), "--seconds", "0.3", "--rounds", "1", "--record", "a toy"]
    monkeypatch.setattr("sys.argv", words)
    score.main()
    rows = list(csv.DictReader(Path("results/score.csv").read_text().splitlines()))
    assert [row["kind"] for row in rows] == ["jpeg q80", "jpeg q95", "h264"]
    assert all(float(row["shrunk_to_decode"]) > 0 < float(row["score_ms"]) for row in rows)
