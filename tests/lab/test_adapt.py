"""Adapt: it learns on the beginning of a film, is judged on the end, and never passes for a figure of new people."""

import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from stillwatch import predictions
from stillwatch.cli import lab
from stillwatch.errors import UserError
from stillwatch.evaluation.report.report import compare
from stillwatch.lab import adapt as module
from stillwatch.lab.adapt import _guard, _parts, adapt
from stillwatch.lab.data.dataset import load_dataset
from stillwatch.lab.training import pipeline
from stillwatch.lab.training.runs import RunOptions, load_net
from stillwatch.media import synthetic
from stillwatch.recipe import check
from stillwatch.run import Progress, Run

TOML = """
name = "toy"
labels = ["SafeDriving", "Yawn"]
safe = ["SafeDriving"]
data = {source = {name = "toy", people = 6, pictures = 6}, size = 24, gray = true, folds = 3, group = "folder"}
teacher = {net = {name = "mnist-cnn", options = {width = 4}}, fit = {epochs = 4}}
student = {net = {name = "mnist-cnn", options = {width = 4}}}
fit = {epochs = 3, batch = 8, lr = 0.01, loss = ["ce", "kd"], ema = 0.9, augment = ["contrast", "mixup"]}
adapt = {max_drop = 100.0}
"""
BASE = check(tomllib.loads(TOML), "here")


@pytest.fixture(autouse=True)
def any_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "check_teacher", lambda teacher, data: None)


@pytest.fixture
def student(tmp_path: Path) -> Run:
    pipeline.teach(BASE, RunOptions(tmp_path / "runs"))
    return pipeline.distil(BASE, RunOptions(tmp_path / "runs"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "drive"
    place.mkdir()
    for number in range(16):
        picture = synthetic.still("cabin", ("SafeDriving", "Yawn")[number % 2], 9, number, (48, 64))
        cv2.imwrite(str(place / f"{number:03d}.png"), picture)
    return place


def test_the_beginning_teaches_and_the_end_judges() -> None:
    data = load_dataset(BASE)
    person = data.samples[int(data.rows["test"][0])].group
    learnt, later = _parts(data, person, 0.5)
    assert not set(learnt.rows["train"]) & set(later.rows["train"]) and (learnt.y == -1).all()
    both = sorted([*learnt.rows["train"], *later.rows["train"]])
    assert both == [row for row in data.rows["test"] if data.samples[row].group == person]
    for label in BASE.labels:  # a still's class stands for its film
        numbers = [
            [data.samples[row].frames[0] for row in part.rows["train"] if data.samples[row].label == label]
            for part in (learnt, later)
        ]
        assert max(numbers[0]) < min(numbers[1])
    known = data.samples[int(data.rows["train"][0])].group
    with pytest.raises(UserError, match=f"--to {known}: no such file, and no group of the test split"):
        _parts(data, known, 0.5)


def test_a_person_of_the_test_split_is_judged_apart(student: Run) -> None:
    person = str(predictions.read(student, "test").group[0])
    made = adapt(student, person)
    assert made.info.kind == "adapted" and made.info.parent == student.path.name and made.info.status == "done"
    before, after = predictions.read(made, "before"), predictions.read(made, "adapted")
    assert set(before.group) == {person} and (before.id == after.id).all() and len(before) == 6
    whole = predictions.read(student, "test")
    place = {id: row for row, id in enumerate(whole.id)}
    assert np.allclose(before.p, whole.p[[place[id] for id in before.id]], atol=1e-5)
    found = made.info.adapted
    assert found is not None and found.learnt == found.later == 6 and {"macro_f1", "accuracy"} == set(found.after)
    assert not predictions.has(made, "test") and "no figure of new people" in found.told
    with pytest.raises(UserError, match="nothing to compare"):
        compare([student, made], made.path / "report", None)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(load_net(student).state_dict().values(), load_net(made).state_dict().values(), strict=True)
    )


def test_a_folder_without_labels_and_norms_alone(student: Run, folder: Path) -> None:
    made = adapt(student, str(folder))
    found = made.info.adapted
    assert found is not None and (found.learnt, found.later, found.before) == (8, 8, {})
    assert found.teacher_before is not None and made.info.unlabelled is not None and made.info.unlabelled.samples == 8
    assert not [line for line in made.read_json("audit.json")["warnings"] if "data.unlabelled" in line]
    for nothing in ("adapt.fit.unlabelled=0", 'adapt.fit.loss=["ce"]'):
        with pytest.raises(UserError, match="nothing would be learnt from it"):
            adapt(student.amended([nothing], ("adapt",)), str(folder))
    asked = student.amended(["adapt.what=norms"], ("adapt",))
    norms = adapt(asked, str(folder))
    old, new = load_net(student).state_dict(), load_net(norms).state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all("running_" in name or "num_batches" in name for name in changed)


def test_the_guard_refuses_what_collapses_or_forgets(student: Run, folder: Path) -> None:
    wide, narrow = np.eye(4, dtype=np.float32), np.tile(np.eye(4, dtype=np.float32)[:1], (4, 1))
    _guard(wide, wide, 1.0, 5.0)
    _guard(narrow, narrow, -1.0, 5.0)  # a calm film: the teacher names one class, too
    with pytest.raises(UserError, match="its answers collapse"):
        _guard(wide, narrow, 0.0, 5.0)
    with pytest.raises(UserError, match=r"loses 6\.0 points"):
        _guard(wide, wide, 6.0, 5.0)
    asked = student.amended(["adapt.fit.lr=1000.0", "adapt.fit.ema=0", "adapt.steps=3"], ("adapt",))
    with pytest.raises(UserError):
        adapt(asked, str(folder))
    failed = next(path for path in student.path.parent.glob("*-adapted-*"))
    assert Run.open(failed).info.status == "failed"


def test_a_camera_is_filmed_first_and_its_password_stays_unsaid(
    student: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[str, str, int]] = []

    def work(run: Run, to: str, _: Progress, name: str) -> Run:
        seen.append((to, name, len(list(Path(to).glob("*.jpg")))))
        return run

    monkeypatch.setattr(module, "adapt", work)
    lab.adapt(student.path, "toy://driver", None, 12.0)
    assert seen[0][1] == "toy://driver" and 23 <= seen[0][2] <= 25
    with pytest.raises(UserError, match="others see a password") as told:
        lab.adapt(student.path, "rtsp://me:secret@camera/1", None, 12.0)
    assert "secret" not in str(told.value)
    with pytest.raises(UserError, match="no such variable"):
        lab.adapt(student.path, "$NO_SUCH_CAMERA", None, 12.0)
