"""Samples without labels: they reach a student through its teacher's answers alone, and leave every test as it was."""

import csv
import tomllib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import toys
from torch import Tensor, nn

from stillwatch.errors import UserError
from stillwatch.lab.data.dataset import load_dataset
from stillwatch.lab.data.reader import unlabelled
from stillwatch.lab.export import fusion
from stillwatch.lab.models.classifier import ModelOutput
from stillwatch.lab.training import crossval, inputs, losses, pipeline
from stillwatch.lab.training.loop import BatchSource, TrainStep, _order
from stillwatch.lab.training.runs import RunOptions, load_net
from stillwatch.media import synthetic
from stillwatch.predictions import read
from stillwatch.recipe import Data, Fit, Recipe, check
from stillwatch.run import Run

TOML = """
name = "toy"
labels = ["SafeDriving", "Yawn"]
safe = ["SafeDriving"]
data = {source = {name = "toy", people = 6, pictures = 4}, size = 16, gray = true, folds = 3}
teacher = {net = {name = "mnist-cnn", weights = "scratch", options = {width = 4}}}
student = {net = {name = "mnist-small", weights = "scratch"}}
fit = {epochs = 2, batch = 8, lr = 0.01, loss = ["ce", "kd"]}
"""

CHANGES = {"teacher__signals": 1.0, "fit__augment": ("contrast", "mixup"), "fit__views": 0}


@pytest.fixture(autouse=True)
def any_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs may be worth nothing; that is refused elsewhere."""
    monkeypatch.setattr(pipeline, "check_teacher", lambda teacher, data: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve drawn pictures of people whom the toy of six does not know."""
    place = tmp_path / "more"
    place.mkdir()
    for person in (8, 9):
        for number in range(6):
            picture = synthetic.still("cabin", ("SafeDriving", "Yawn")[number % 2], person, number, (48, 64))
            cv2.imwrite(str(place / f"p{person}_{number}.png"), picture)
    return place


def recipe(**changes: Any) -> Recipe:
    return check(toys.changed(tomllib.loads(TOML), changes), "here")


def weights(run: Run) -> dict[str, Tensor]:
    return torch.load(run.path / "best.pt", weights_only=True)["net"]


class Spy(nn.Module):
    """A part that says what it was shown."""

    maps: tuple[int, ...] = ()

    def __init__(self, needs_teacher: bool):
        super().__init__()
        self.needs_teacher, self.seen = needs_teacher, list[tuple[int, int, int]]()

    def forward(self, student: ModelOutput, teacher: ModelOutput | None, y: Tensor, progress: float) -> Tensor:
        self.seen.append((len(student.logits), len(teacher.logits) if teacher else 0, len(y)))
        return student.logits.sum() * 0


def test_a_part_without_teacher_never_sees_them() -> None:
    net = pipeline.classifier.build_side(recipe(), "student")
    parts: dict[str, tuple[float, nn.Module]] = {"own": (1.0, Spy(False)), "taught": (1.0, Spy(True))}
    teacher = ModelOutput(torch.zeros(8, 2), torch.zeros(8, 4), {})
    TrainStep(net, parts)(torch.zeros(8, 1, 16, 16, 1, dtype=torch.uint8), torch.tensor([0, 1, 1]), teacher, 0.0)
    assert [part.seen for _, part in parts.values()] == [[(3, 3, 3)], [(8, 8, 3)]]


def test_what_they_show_does_not_touch_ce() -> None:
    """Gradient by gradient: with ce alone, a batch with unlabelled rows behind it is the batch without them."""
    torch.manual_seed(0)
    net = pipeline.classifier.build_side(recipe(), "student").eval()
    task = losses.Task(2, (4, 4), "softmax", losses.Shape(net.dim, net.channels), losses.Shape(net.dim, net.channels))
    step = TrainStep(net, losses.parts(["ce"], task))
    x, y = torch.randint(0, 255, (8, 1, 16, 16, 1), dtype=torch.uint8), torch.tensor([0, 1, 1])
    found = []
    for rows in (3, 8):
        step.zero_grad()
        step(net.frozen_forward(x[:rows]), y, None, 0.0)["ce"].backward()
        found.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*found, strict=True))


def test_dkd_takes_the_teacher_s_word_for_them() -> None:
    shape = losses.Shape(4, {})
    part = losses.Decoupled(losses.Task(3, (1, 1, 1), "softmax", shape, shape))
    zs, zt = torch.randn(5, 3), torch.randn(5, 3)
    out = [ModelOutput(z, torch.zeros(5, 4), {}) for z in (zs, zt)]
    y = torch.tensor([2, 0])
    assert part(*out, y, 0.0) == part(*out, torch.cat([y, zt[2:].argmax(1)]), 0.0)


@pytest.mark.parametrize(("share", "few"), [(0.0, 0), (0.5, 4), (0.75, 6), (0.99, 7)])
def test_a_batch_has_the_share_asked_for(share: float, few: int) -> None:
    source, plan = BatchSource(30, lambda rows, epoch: None, np.arange(30, 40)), Fit(batch=8, unlabelled=share)  # type: ignore[arg-type, return-value]
    batches = list(_order(source, plan, 1))
    assert [len(rows) for rows in batches] == [8, 8, 8]
    for rows in batches:
        assert (rows[: 8 - few] < 30).all() and (rows[8 - few :] >= 30).all()
    drawn = np.concatenate([rows[8 - few :] for rows in batches])
    assert np.bincount(drawn, minlength=40)[30:].max(initial=0) <= -(-len(drawn) // 10)  # all once, before any twice
    again = np.concatenate(list(_order(source, plan, 1)))
    assert (np.concatenate(batches) == again).all()
    if not share:
        plain = list(_order(BatchSource(30, source.batch), plan, 1))
        assert (np.concatenate(plain) == again).all()


def test_files_become_samples_without_labels(folder: Path) -> None:
    (folder / "day").mkdir()
    (folder / "p8_0.png").rename(folder / "day" / "gA_3_mp4-17_jpg.rf.abc.png")
    found = unlabelled(Data(source="toy", unlabelled=folder, group=r"^g[AB]_(\d+)_")).samples
    assert len(found) == 12 and {sample.label for sample in found} == {"unlabelled"}
    named = {sample.id: (sample.group, sample.sequence, sample.time) for sample in found if sample.group}
    assert named == {"unlabelled/day/gA_3_mp4-17_jpg.rf.abc.png": ("3", "gA_3_mp4", 17.0)}
    table = folder / "some.csv"
    table.write_text("path,group\np9_1.png,nine\nday/gA_3_mp4-17_jpg.rf.abc.png,three\nnone.png,x\n")
    listed = unlabelled(Data(source="toy", unlabelled=table))
    assert [(sample.id, sample.group) for sample in listed.samples] == [
        ("unlabelled/p9_1.png", "nine"),
        ("unlabelled/day/gA_3_mp4-17_jpg.rf.abc.png", "three"),
    ]
    assert [bad.file for bad in listed.skipped] == ["none.png"]
    with pytest.raises(UserError, match=r"data\.unlabelled = '.*nowhere'"):
        unlabelled(Data(source="toy", unlabelled=folder / "nowhere"))
    with pytest.raises(UserError, match="no look of 2 frames"):
        unlabelled(Data(source="toy", unlabelled=folder, look=(0.0, 0.2)))


def test_a_film_gives_two_frames_a_second(tmp_path: Path) -> None:
    film = toys.video(tmp_path / "drive.mp4", 30)
    found = unlabelled(Data(source="toy", unlabelled=film)).samples
    assert [sample.time for sample in found] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5], abs=0.06)
    assert {sample.sequence for sample in found} == {"drive.mp4"}
    looking = unlabelled(Data(source="toy", unlabelled=film, look=(0.0, 0.2), windows=1)).samples
    assert 5 <= len(looking) <= 6 and all(len(sample.frames) == 2 for sample in looking)


def test_the_test_split_stays_and_the_labels_go(folder: Path) -> None:
    plain, asked = load_dataset(recipe()), load_dataset(recipe(data__labelled=1, data__unlabelled=folder))
    assert asked.store.fingerprint == plain.store.fingerprint
    for split in ("valid", "test"):
        assert (asked.rows[split] == plain.rows[split]).all()
    hidden, aside = asked.unlabelled
    assert aside.aside and len(aside.rows["train"]) == 12 and (aside.y == -1).all()
    assert sorted([*asked.rows["train"], *hidden.rows["train"]]) == sorted(plain.rows["train"])
    people = [{asked.samples[row].group for row in rows} for rows in (asked.rows["train"], hidden.rows["train"])]
    assert len(people[0]) == 1 and not people[0] & people[1] and (asked.y[hidden.rows["train"]] == -1).all()
    shared = load_dataset(recipe(data__labelled=2, data__valid=0.25))
    known = {shared.samples[row].group for split in ("train", "valid") for row in shared.rows[split]}
    assert len(known) == 2  # nor does validation see a label of the others
    with pytest.raises(UserError, match=r"data\.labelled = 3: train has 2 groups"):
        load_dataset(recipe(data__labelled=3))


@pytest.mark.parametrize("augment", [(), ("contrast", "mixup")], ids=["plain", "mixed"])
def test_cached_and_live_answers_teach_the_same(tmp_path: Path, folder: Path, augment: tuple[Any, ...]) -> None:
    changes = {"data__unlabelled": folder, "fit__augment": augment, "fit__ema": 0.9}
    asked = recipe(fit__views=2, **changes)
    pipeline.teach(asked, RunOptions(tmp_path))
    cached, live = (pipeline.distil(each, RunOptions(tmp_path)) for each in (asked, recipe(fit__views=0, **changes)))
    for a, b in zip(cached.history(), live.history(), strict=True):
        assert a["train"]["parts"] == pytest.approx(b["train"]["parts"], rel=2e-3, abs=2e-3)
    assert np.allclose(read(cached).p, read(live).p, atol=5e-3)
    plain = pipeline.distil(recipe(fit__views=2, fit__augment=augment, fit__ema=0.9), RunOptions(tmp_path))
    assert plain.info.parent == cached.info.parent  # one teacher serves both
    assert not np.allclose(read(plain).p, read(cached).p, atol=1e-4) and plain.info.unlabelled is None
    assert cached.info.unlabelled is not None and cached.info.unlabelled.used == 12


def test_other_pictures_of_the_same_names_are_other_answers(tmp_path: Path, folder: Path) -> None:
    asked = recipe(data__unlabelled=folder, fit__views=1, fit__augment=["contrast"])
    pipeline.teach(asked, RunOptions(tmp_path))
    one = pipeline.distil(asked, RunOptions(tmp_path))
    for path in folder.glob("*.png"):
        cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    other = pipeline.distil(asked, RunOptions(tmp_path))
    assert not np.allclose(read(one).p, read(other).p, atol=1e-4)


def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = recipe(data__unlabelled=folder, data__labelled=1, fit__epochs=3, fit__ema=0.9, fit__balance=True)
    pipeline.teach(asked, RunOptions(tmp_path))
    whole, log = pipeline.distil(asked, RunOptions(tmp_path)), Run.log

    def cut(run: Run, row: Any) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        log(run, row)

    monkeypatch.setattr(Run, "log", cut)
    with pytest.raises(KeyboardInterrupt):
        pipeline.distil(asked, RunOptions(tmp_path))
    monkeypatch.setattr(Run, "log", log)
    resumed = pipeline.distil(asked, RunOptions(tmp_path))
    assert resumed.path != whole.path and len(resumed.history()) == 3
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(resumed).items())


def test_the_teacher_s_own_pixels_go_with_them(tmp_path: Path, folder: Path) -> None:
    asked = recipe(data__unlabelled=folder, data__labelled=1, teacher__data={"size": 24})
    pipeline.teach(asked, RunOptions(tmp_path))
    run = pipeline.distil(asked, RunOptions(tmp_path))
    assert run.info.unlabelled is not None and run.info.unlabelled.samples == 12 + 8


def test_floor_and_balance_choose_by_the_teacher_s_answers() -> None:
    p = np.array([[0.9, 0.1]] * 30 + [[0.2, 0.8], [0.45, 0.55]])

    class Part:
        data = load_dataset(recipe())

        def said(self) -> np.ndarray:
            return p

    def chosen(**plan: Any) -> tuple[list[int], Any]:
        rows, about = inputs.worth_teaching([Part()], Fit(**plan), 100)  # type: ignore[list-item]
        return rows.tolist(), about

    rows, about = chosen()
    assert rows == list(range(100, 132)) and about.named == {"SafeDriving": 30, "Yawn": 2}
    rows, about = chosen(confidence=0.6, balance=True)
    assert rows.count(130) == 10 and rows.count(100) == 1 and 131 not in rows  # ten times and no more
    assert about.used == 31 and about.samples == 32
    with pytest.raises(UserError, match=r"fit\.confidence = 0\.95"):
        chosen(confidence=0.95)


def test_what_would_mean_nothing_is_said(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"fit\.confidence and fit\.balance choose .* there are none"):
        pipeline.distil(recipe(fit__confidence=0.5), RunOptions(tmp_path))
    (folder / "broken.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"^data\.unlabelled = .*: 1 of 13 samples cannot be used"):
        load_dataset(recipe(data__unlabelled=folder, data__max_bad=0.0))


def test_a_test_person_among_them_is_named(tmp_path: Path, folder: Path) -> None:
    asked = recipe(data__unlabelled=folder, data__size=[96, 128], data__group=r"(?:p|person-|toy/cabin/)(\d+)")
    run, data = pipeline.inspect(asked, RunOptions(tmp_path))
    found = run.read_json("audit.json")
    assert found["unlabelled"]["people"] == [] and found["unlabelled"]["copies"] == 0
    assert not [line for line in found["warnings"] if "data.unlabelled" in line]
    row = int(data.rows["test"][0])
    person = data.samples[row].group
    cv2.imwrite(str(folder / f"p{person}_0.png"), cv2.convertScaleAbs(np.array(data.store.pixels[row, 0]), alpha=1.1))
    leaking, _ = pipeline.inspect(asked, RunOptions(tmp_path))
    told = leaking.read_json("audit.json")
    assert told["unlabelled"]["people"] == [person] and told["unlabelled"]["copies"] >= 1
    assert told["warnings"][0].startswith("data.unlabelled leaks")
    with (leaking.path / "split.csv").open() as file:
        lines = [row for row in csv.DictReader(file) if row["split"] == "unlabelled"]
    assert len(lines) == 13 and {row["label"] for row in lines} == {"unlabelled"}
    (folder / "broken.mp4").write_bytes(b"x")  # the same pictures, and one file more that is left out
    raw = asked.model_dump(mode="json")
    again, _ = pipeline.inspect(check(raw | {"data": raw["data"] | {"max_bad": 0.5}}, "here"), RunOptions(tmp_path))
    assert again.read_json("audit.json")["unlabelled"]["skipped"] == told["unlabelled"]["skipped"] + 1


def test_crossval_shares_teacher_and_alone_with_the_plain_one(tmp_path: Path, folder: Path) -> None:
    options = pipeline.RunOptions(tmp_path, "", False, pipeline.NO_PROGRESS)
    plain, more = recipe(), recipe(data__unlabelled=folder, fit__unlabelled=0.25)
    home, first = crossval.crossval(plain, crossval.tasks(plain, 1, folds=1), options)
    same, second = crossval.crossval(more, crossval.tasks(more, 1, folds=1), options)
    assert home.path == same.path
    assert [a.path == b.path for a, b in zip(first, second, strict=True)] == [True, True, False]
    assert second[2].info.parent == first[0].path.name


def test_a_teacher_with_signals_is_a_teacher(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A face that knows everything, also of people without labels."""

    def knows(data: Any, part: Any, *_: Any) -> np.ndarray:
        yawns = [sample.label == "Yawn" or sample.id[-5] in "135" for sample in part.samples]
        return np.log(np.where(np.array(yawns)[:, None], [0.001, 0.999], [0.999, 0.001]))

    monkeypatch.setattr(fusion, "face_logs", knows)
    asked = recipe(**{**CHANGES, "data__unlabelled": folder, "fit__views": 2})
    teacher = pipeline.teach(asked, RunOptions(tmp_path))
    (net,) = teacher.info.members
    said, bare = read(teacher, "test"), read(Run.open(tmp_path / net), "test")
    assert (said.p.argmax(1) == said.y).all() and not np.allclose(said.p, bare.p)
    assert teacher.info.best["accuracy"] == 1
    cached = pipeline.distil(asked, RunOptions(tmp_path))
    live = pipeline.distil(recipe(**{**CHANGES, "data__unlabelled": folder}), RunOptions(tmp_path))
    assert cached.info.parent == live.info.parent == teacher.path.name
    for a, b in zip(cached.history(), live.history(), strict=True):
        assert a["train"]["parts"] == pytest.approx(b["train"]["parts"], rel=2e-3, abs=2e-3)
    assert cached.info.unlabelled is not None and cached.info.unlabelled.named == {"SafeDriving": 6, "Yawn": 6}
    assert pipeline.teach(recipe(**CHANGES), RunOptions(tmp_path)).info.members == [net]  # the net is not trained again
    with pytest.raises(UserError, match=f"its net is {net}"):
        load_net(teacher)
    with pytest.raises(UserError, match="a sigmoid head says yes or no"):
        recipe(teacher__signals=0.5, student__net={"name": "mnist-small", "head": "sigmoid"})
