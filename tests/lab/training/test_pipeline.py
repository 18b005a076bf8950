"""Lessons: a recipe becomes runs; caches change nothing but the time; who may teach whom."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys

from stillwatch.errors import UserError
from stillwatch.evaluation.report.report import assess
from stillwatch.lab.data import audit, cache
from stillwatch.lab.data.dataset import dataset_of, load_dataset, pictures_of
from stillwatch.lab.models import classifier
from stillwatch.lab.training import inputs, pipeline
from stillwatch.lab.training.runs import RunOptions, check_teacher, load_net, predictor, write_audit
from stillwatch.predictions import read
from stillwatch.recipe import Fit, Recipe, check
from stillwatch.run import NO_PROGRESS, Majority, Run

LABELS = ["SafeDriving", "Yawn"]
WARP = [{"name": "crop", "scale": 0.8}, "contrast", "noise"]


def recipe(**changes: Any) -> Recipe:
    """Six drawn people, two classes, pictures of 24×24; a.b=c as a__b=c."""
    raw: dict[str, Any] = {
        "name": "toy",
        "labels": LABELS,
        "safe": LABELS[:1],
        "data": {
            "source": {"name": "toy", "people": 6, "pictures": 4},
            "size": 24,
            "gray": True,
            "folds": 3,
        },
        "teacher": {"net": {"name": "mnist-cnn", "weights": "scratch", "options": {"width": 4}}},
        "student": {"net": {"name": "mnist-small", "weights": "scratch"}},
        "fit": {"epochs": 2, "batch": 8, "loss": ["ce", {"name": "kd", "temperature": 2}]},
    }
    return check(toys.changed(raw, changes), "here")


def taught(asked: Recipe, root: Path) -> Run:
    """A teacher that is let through, whatever two epochs of it are worth."""
    run = pipeline.teach(asked, RunOptions(root))
    run.note(best=run.info.best | {"accuracy": 1.0})
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return torch.load(run.path / "best.pt", weights_only=True)["net"]


def test_a_run_holds_what_the_design_says(tmp_path: Path) -> None:
    run = pipeline.teach(recipe(), RunOptions(tmp_path, "name = 'toy'"))
    names = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    assert names - {".lock"} == {
        "recipe.toml", "run.json", "split.csv", "audit.json", "metrics.jsonl", "last.pt", "best.pt",
        "predictions/valid.npz", "predictions/test.npz",
    }  # fmt: skip
    info = json.loads((run.path / "run.json").read_text())
    assert info["status"] == "done"
    assert info["cost"]["params"] == sum(p.numel() for p in load_net(run).parameters())
    assert info["majority"]["valid_accuracy"] == 0.5
    with (run.path / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48
    for split in ("train", "valid", "test"):
        assert len({row["group"] for row in rows if row["split"] == split}) == 2
    said = read(run, "test")
    assert set(said.id) == {row["path"] for row in rows if row["split"] == "test"}
    assert np.allclose(said.p.sum(1), 1, atol=1e-5)


def test_the_predictions_are_the_kept_net_s(tmp_path: Path) -> None:
    run = pipeline.teach(recipe(), RunOptions(tmp_path))
    data = load_dataset(recipe())
    said = read(run, "test")
    rows = data.rows["test"]
    p = predictor(load_net(run))(data.store.pixels[rows])
    assert np.allclose(said.p, p, atol=1e-6)
    assert said.y.tolist() == data.y[rows].tolist()
    assert [data.samples[row].id for row in rows] == said.id.tolist()


@pytest.mark.parametrize("augment", [(), tuple(WARP), (*WARP, "mixup")], ids=["plain", "warped", "mixed"])
def test_a_cached_teacher_and_a_live_one_teach_the_same(tmp_path: Path, augment: tuple[Any, ...]) -> None:
    """views = 0 shows epoch e the view e and asks the teacher each time; views = 2 replays views 0 and 1 from disk."""
    specs = [{"name": "ce", "weight": 0.3}, {"name": "kd", "weight": 0.7}, {"name": "embedding", "weight": 0.5},
             {"name": "attention", "weight": 0.5, "stages": [4]}]  # fmt: skip
    asked = recipe(fit__augment=augment, fit__views=2, fit__loss=specs)
    teacher = taught(asked, tmp_path)
    cached = pipeline.distil(asked, RunOptions(tmp_path))
    live = pipeline.distil(recipe(fit__augment=augment, fit__views=0, fit__loss=specs), RunOptions(tmp_path))
    assert cached.info.parent == live.info.parent == teacher.path.name
    for a, b in zip(cached.history(), live.history(), strict=True):
        assert a["train"]["parts"] == pytest.approx(b["train"]["parts"], rel=2e-3, abs=2e-3)
    assert np.allclose(read(cached).p, read(live).p, atol=5e-3)


def test_attention_on_eyes_and_mouth_is_taught_then_distilled_and_replays(tmp_path: Path) -> None:
    """The mask moves with the picture, from disk as live; a teacher gets its own term, a student alone none."""
    look = {"name": "attention", "weight": 0.5, "stages": [4], "regions": "face", "classes": ["Yawn"]}
    loss = [{"name": "ce", "weight": 0.5}, {"name": "kd", "weight": 0.5}, look]
    asked = {"fit__augment": [*WARP, "flip"], "fit__loss": loss, "data__faces": True}
    teacher = taught(recipe(**asked, fit__views=2), tmp_path)
    cached, live = (pipeline.distil(recipe(**asked, fit__views=views), RunOptions(tmp_path)) for views in (2, 0))
    assert cached.info.parent == live.info.parent == teacher.path.name
    for a, b in zip(cached.history(), live.history(), strict=True):
        assert a["train"]["parts"] == pytest.approx(b["train"]["parts"], rel=2e-3, abs=2e-3)
    assert teacher.history()[0]["train"]["parts"].keys() == {"ce", "attention"}
    alone = pipeline.losses_of(recipe(**asked).fit, taught=False)
    assert [spec["name"] for spec in alone if isinstance(spec, dict)] == ["ce"]
    with pytest.raises(UserError, match=r"fit\.loss\.attention\.regions: .* set data\.faces = true"):
        pipeline.teach(recipe(**asked | {"data__faces": False}), RunOptions(tmp_path))


@pytest.mark.parametrize("frozen", [True, 1])
def test_frozen_features_from_disk_teach_the_same(tmp_path: Path, frozen: bool | int) -> None:
    spec = {"name": "mobilenetv3_small_050", "weights": "scratch", "frozen": frozen}
    runs = [
        pipeline.teach(
            recipe(teacher__net=spec, fit__augment=WARP, fit__views=views, data__size=32), RunOptions(tmp_path)
        )
        for views in (2, 0)
    ]
    cached, live = (run.history() for run in runs)
    for a, b in zip(cached, live, strict=True):
        assert a["train"]["loss"] == pytest.approx(b["train"]["loss"], rel=1e-2)
    assert np.allclose(read(runs[0]).p, read(runs[1]).p, atol=0.02)
    first, second = (weights(run) for run in runs)
    stem = [name for name in first if "conv_stem" in name]
    assert stem
    assert all(torch.equal(first[name], second[name]) for name in stem)


def test_a_frozen_teacher_s_features_serve_its_teaching_too(tmp_path: Path) -> None:
    """Stored when it is taught; when it teaches only its head runs, and answers as the whole net does."""
    net = {"name": "mnist-cnn", "weights": "scratch", "frozen": True, "options": {"width": 4}}
    asked = recipe(teacher__net=net, fit__augment=WARP, fit__views=2)
    teacher = taught(asked, tmp_path)
    shelf = cache.home() / "features"
    assert len(list(shelf.iterdir())) == 1
    student = pipeline.distil(asked, RunOptions(tmp_path))
    assert len(list(shelf.iterdir())) == 1
    live = pipeline.distil(recipe(teacher__net=net, fit__augment=WARP, fit__views=0,
                                 teacher__init=str(teacher.path)), RunOptions(tmp_path))  # fmt: skip
    for a, b in zip(student.history(), live.history(), strict=True):
        assert a["train"]["parts"] == pytest.approx(b["train"]["parts"], rel=2e-3, abs=2e-3)


def test_alone_is_the_same_without_a_teacher() -> None:
    def alone(*specs: Any) -> tuple[Any, ...]:
        return pipeline.losses_of(Fit(loss=(*specs, {"name": "kd", "weight": 0.7})), taught=False)

    assert alone({"name": "ce", "weight": 0.3}) == ({"name": "ce", "weight": 1.0},)
    assert alone() == ("ce",)
    assert alone({"name": "ce", "weight": 1}, {"name": "ce", "weight": 3, "smoothing": 0.1}) == (
        {"name": "ce", "weight": 0.25},
        {"name": "ce", "weight": 0.75, "smoothing": 0.1},
    )


def test_alone_and_distilled_start_from_the_same_weights_and_see_the_same_order(tmp_path: Path) -> None:
    specs = [{"name": "ce", "weight": 1.0}, {"name": "kd", "weight": 0.0}]
    asked = recipe(fit__loss=specs)
    taught(asked, tmp_path)
    alone = pipeline.distil(asked, RunOptions(tmp_path), alone=True)
    distilled = pipeline.distil(asked, RunOptions(tmp_path))
    assert alone.info.kind == "alone"
    for name, value in weights(alone).items():
        assert torch.allclose(value, weights(distilled)[name], atol=1e-6), name


def test_the_newest_teacher_that_fits_is_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished teacher for 'toy' .* \(fold 0\)"):
        pipeline.distil(recipe(), RunOptions(tmp_path))
    first = taught(recipe(), tmp_path)
    taught(recipe(data__fold=1), tmp_path)
    taught(recipe(teacher__net={"name": "mnist-small", "weights": "scratch"}), tmp_path)
    assert pipeline.distil(recipe(fit__seed=5), RunOptions(tmp_path)).info.parent == first.path.name
    second = taught(recipe(), tmp_path)
    assert pipeline.distil(recipe(fit__seed=6), RunOptions(tmp_path)).info.parent == second.path.name
    named = recipe(teacher__init=str(first.path))
    assert pipeline.distil(named, RunOptions(tmp_path)).info.parent == first.path.name


def test_a_teacher_that_learnt_nothing_is_refused(tmp_path: Path) -> None:
    run = taught(recipe(), tmp_path)
    run.note(best=run.info.best | {"accuracy": 0.5})
    with pytest.raises(UserError, match=r"its validation accuracy, 50.0 %, does not beat always saying \w+ \(50.0 %\)"):
        pipeline.distil(recipe(), RunOptions(tmp_path))


def test_a_teacher_that_saw_the_test_is_refused(tmp_path: Path) -> None:
    run = taught(recipe(data__fold=1), tmp_path)
    with pytest.raises(UserError, match=r"it was trained on 1?\d of the 32 pictures that this split holds back"):
        pipeline.distil(recipe(teacher__init=str(run.path)), RunOptions(tmp_path))
    alone = pipeline.distil(recipe(), RunOptions(tmp_path), alone=True)
    with pytest.raises(UserError, match=r"a alone run \(done\), not a finished teacher"):
        pipeline.distil(recipe(teacher__init=str(alone.path)), RunOptions(tmp_path))


def test_a_random_split_of_frames_has_its_own_teacher(tmp_path: Path) -> None:
    """Frames of one clip lie on both sides: the split does so itself, a teacher that held them back leaks nothing."""
    run = taught(recipe(data__split="ratio"), tmp_path)
    data = load_dataset(run.recipe)
    clips = [replace(sample, id=f"clip.mp4#{number}") for number, sample in enumerate(data.samples)]
    run.save_csv("split.csv", ("path", "label", "group", "split"), [(s.id, s.label, s.group, s.split) for s in clips])
    check_teacher(run, replace(data, samples=clips))
    other = load_dataset(recipe(data__split="ratio", data__seed=1))
    with pytest.raises(UserError, match="trained on 32 of the 32 pictures"):
        check_teacher(run, replace(other, samples=clips))


def test_weights_that_saw_the_test_are_refused(tmp_path: Path) -> None:
    """Also where the run that is named began with such weights, and where the people are seen in other pictures."""
    told = "trained on 1?\\d of the 32 pictures that this split holds back"
    first = pipeline.teach(recipe(data__fold=1), RunOptions(tmp_path))
    with pytest.raises(UserError, match=rf"net.weights = .*refused: toy-teacher-001 was {told}"):
        pipeline.teach(recipe(teacher__net__weights=str(first.path)), RunOptions(tmp_path))
    with pytest.raises(UserError, match=told):
        pipeline.teach(recipe(teacher__net__weights=str(first.path / "best.pt")), RunOptions(tmp_path))
    mine = pipeline.teach(recipe(), RunOptions(tmp_path))
    again = pipeline.teach(recipe(teacher__net__weights=str(mine.path), fit__seed=1), RunOptions(tmp_path))
    assert again.info.status == "done"
    recipe_of = mine.info.recipe
    side = recipe_of["teacher"] | {"net": recipe_of["teacher"]["net"] | {"weights": str(first.path)}}
    mine.note(recipe=recipe_of | {"teacher": side})
    with pytest.raises(UserError, match="refused: toy-teacher-001"):
        pipeline.teach(recipe(teacher__net__weights=str(mine.path), fit__seed=2), RunOptions(tmp_path))
    mine.note(recipe=recipe_of)
    with (mine.path / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tested = sorted({row["group"] for row in rows if row["split"] == "test"})
    more = [{"path": "else.jpg", "label": "Yawn", "group": tested[0], "split": "train"}]
    mine.save_csv("split.csv", rows[0], [row.values() for row in rows + more])
    with pytest.raises(UserError, match=rf"was trained on 1 of the 2 groups of this test, such as {tested[0]}"):
        pipeline.teach(recipe(teacher__net__weights=str(mine.path), fit__seed=3), RunOptions(tmp_path))


def test_a_failed_run_says_so_and_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pipeline.teach(recipe(), RunOptions(tmp_path / "whole"))

    def break_down(*_: Any, **__: Any) -> None:
        raise UserError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="the disk is full"):
        patch.setattr("stillwatch.predictions.save_predictions", break_down)
        pipeline.teach(recipe(), RunOptions(tmp_path))
    run = Run.open(tmp_path / "toy-teacher-001")
    assert run.info.status == "failed"
    again = pipeline.teach(recipe(), RunOptions(tmp_path))
    assert again.path == run.path
    assert again.info.status == "done"
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(again).items())
    assert pipeline.teach(recipe(), RunOptions(tmp_path)).path.name == "toy-teacher-002"  # a finished run is left alone


def test_audit_alone_is_a_run_too(tmp_path: Path) -> None:
    run, data = pipeline.inspect(recipe(), RunOptions(tmp_path))
    assert run.info.kind == "audit"
    assert run.info.status == "done"
    assert len(data.samples) == run.read_json("audit.json")["samples"] == 48


def test_a_second_run_of_the_same_data_is_not_searched_for_duplicates_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[int] = []
    real = audit.find
    monkeypatch.setattr(audit, "find", lambda *args: searches.append(1) or real(*args))
    first, _ = pipeline.inspect(recipe(), RunOptions(tmp_path))
    second = pipeline.teach(recipe(fit__epochs=1), RunOptions(tmp_path))
    assert len(searches) == 1
    assert (first.path / "audit.json").read_bytes() == (second.path / "audit.json").read_bytes()
    pipeline.inspect(recipe(data__fold=1), RunOptions(tmp_path))
    assert len(searches) == 2


def test_sigmoid_heads_and_weights_of_a_run(tmp_path: Path) -> None:
    first = pipeline.teach(
        recipe(teacher__net={"name": "mnist-small", "weights": "scratch", "head": "sigmoid"}), RunOptions(tmp_path)
    )
    p = read(first).p
    assert not np.allclose(p.sum(1), 1, atol=1e-3)  # each class has a probability of its own
    again = recipe(student__net={"name": "mnist-small", "weights": str(first.path)}, fit__epochs=1, fit__lr=1e-9)
    student = pipeline.distil(again, RunOptions(tmp_path), alone=True)
    assert torch.allclose(weights(student)["head.weight"], weights(first)["head.weight"], atol=1e-5)


def test_the_album_shows_what_the_net_saw(tmp_path: Path) -> None:
    run, data = pipeline.inspect(recipe(), RunOptions(tmp_path))
    name = data.samples[3].id
    found = pictures_of(run, [name, "gone"])
    assert found.keys() == {name}
    assert (found[name] == data.store.pixels[3, 0]).all()


def test_out_survives_being_stored() -> None:
    out = classifier.ModelOutput(torch.ones(2, 3), torch.ones(2, 4), {16: torch.ones(2, 1, 2, 2)})
    back = inputs.from_arrays(inputs.to_arrays(out))
    assert back.maps.keys() == {16}
    assert torch.equal(back.logits, out.logits)


@pytest.mark.parametrize("views", [0, 2])
def test_a_teacher_answers_in_half_precision_where_asked_and_is_kept_apart(views: int) -> None:
    said = []
    for precision in ("fp32", "bf16"):
        asked = recipe(fit__views=views, fit__augment=["contrast"], fit__teacher_precision=precision)
        data, plan = load_dataset(asked), asked.fit_of("student")
        torch.manual_seed(0)
        nets = [classifier.build_side(asked, side) for side in ("student", "teacher")]
        step = pipeline.build_step(nets[0], data, nets[1], plan)
        found = inputs.InputPipeline(data, step, nets[1], plan, pipeline.device(plan), NO_PROGRESS)
        said.append(found.batch(np.arange(8), 0)[2])
    assert {out.logits.dtype for out in said} == {torch.float32}
    assert not torch.equal(said[0].logits, said[1].logits)
    assert torch.allclose(said[0].logits, said[1].logits, atol=0.05)


def test_a_distillation_without_a_teacher_s_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fit\.loss = ce: nothing in it comes from a teacher.* use --alone"):
        pipeline.distil(recipe(fit__loss=["ce"]), RunOptions(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_names_no_loss_distils() -> None:
    plain = recipe().model_dump(mode="json")
    del plain["fit"]["loss"]
    assert any(map(pipeline.needs_teacher, check(plain, "here").fit.loss))


def test_data_that_changed_are_named(tmp_path: Path) -> None:
    for label in LABELS:
        for number in range(12):
            toys.jpeg(tmp_path / "data" / label / f"person{number % 6}" / f"{number}.jpg", number)
    source = {"data__source": "folders", "data__root": str(tmp_path / "data"), "data__group": "folder"}
    run = pipeline.teach(recipe(**source), RunOptions(tmp_path / "runs"))
    toys.jpeg(tmp_path / "data" / LABELS[0] / "person0" / "new.jpg", 99)
    (tmp_path / "data" / LABELS[1] / "person1" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"1 new \(such as .*new\.jpg\), 1 gone \(such as .*person1/1\.jpg\); put"):
        dataset_of(run)


def test_a_student_larger_than_its_teacher_is_said(tmp_path: Path) -> None:
    small = {"name": "mnist-cnn", "options": {"width": 4}}
    asked = recipe(teacher__net=small, student__net=small | {"options": {"width": 5}}, fit__epochs=1)
    teacher = taught(asked, tmp_path)
    said: list[str] = []
    run = pipeline.distil(asked, RunOptions(tmp_path, progress=NO_PROGRESS._replace(say=said.append)))
    numbers = f"{run.info.cost['params']:,} parameters, its teacher {teacher.info.cost['params']:,}"
    assert numbers in run.info.above_teacher
    assert run.info.above_teacher in said
    assert sum("random weights" in line for line in said) == 1
    assert any(numbers in line for line in assess([teacher, run])[0]["warnings"])


def test_a_constant_answer_is_measured_by_the_best_one(tmp_path: Path) -> None:
    """Not by the label that is commonest in training: a student may say another one alone."""
    run, data = pipeline.inspect(recipe(), RunOptions(tmp_path))
    rows = data.rows["valid"]
    data.y[rows] = 1
    data.y[rows[0]] = 0
    write_audit(run, data)
    assert run.info.majority == Majority(label=recipe().labels[1], valid_accuracy=1 - 1 / len(rows))
