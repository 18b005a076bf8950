"""Nets of looks through the whole road: a clip teacher, several teachers, a bundle that streams, other data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys

from stillwatch.errors import UserError
from stillwatch.inference import streams
from stillwatch.inference.detector import Detector, memory, rate, steps
from stillwatch.lab.compression.prune import prune
from stillwatch.lab.data.dataset import load_dataset
from stillwatch.lab.export.packaging import export
from stillwatch.lab.training import pipeline
from stillwatch.lab.training.runs import RunOptions, load_net, load_teacher, predictor
from stillwatch.media import synthetic
from stillwatch.predictions import read
from stillwatch.recipe import Recipe, check
from stillwatch.run import NO_PROGRESS, Run


def recipe(**changes: Any) -> Recipe:
    raw: dict[str, Any] = {
        "name": "toy",
        "labels": ["NonViolence", "Violence"],
        "safe": ["NonViolence"],
        "data": {
            "source": {"name": "toy", "scene": "meeting", "people": 6, "pictures": 3, "height": 24, "width": 32},
            "size": [24, 32],
            "look": [0.0, 0.2, 0.4],
            "folds": 3,
        },
        "teacher": {"net": {"name": "r2plus1d-small", "options": {"width": 4}}, "data": {"look": [0.0, 0.1, 0.2, 0.4]}},
        "student": {"net": {"name": "mnist-cnn", "front": "difference", "temporal": "spread", "options": {"width": 4}}},
        "fit": {
            "epochs": 1,
            "batch": 8,
            "augment": ["flip", "reverse"],
            "loss": ["ce", {"name": "kd", "temperature": 2}],
        },
    }
    return check(toys.changed(raw, changes), "here")


def let_through(run: Run) -> Run:
    """Whatever one epoch of it is worth."""
    run.note(best=run.info.best | {"accuracy": 1.0})
    return run


def test_a_clip_teacher_teaches_from_its_own_pixels_cached_or_live(tmp_path: Path) -> None:
    teacher = let_through(pipeline.teach(recipe(), RunOptions(tmp_path)))
    assert load_net(teacher).frames == 4
    live = pipeline.distil(recipe(), RunOptions(tmp_path))
    cached = pipeline.distil(recipe(fit__views=1), RunOptions(tmp_path))
    p, same = (read(run, "test").p for run in (live, cached))
    assert np.abs(p - same).max() < 2e-3  # the cache holds the teacher's answers in half precision
    assert load_net(live).frames == 3


def test_several_runs_teach_together(tmp_path: Path) -> None:
    alone = [pipeline.distil(recipe(fit__seed=seed), RunOptions(tmp_path), alone=True) for seed in (0, 1)]
    together = recipe(teacher__init=[str(run.path) for run in alone], teacher__data={})
    for run in alone:
        let_through(run)
    run = let_through(pipeline.teach(together, RunOptions(tmp_path)))
    assert run.info.members == [member.path.name for member in alone]
    mean = np.mean([read(member, "test").p for member in alone], 0)
    assert np.abs(read(run, "test").p - mean).max() < 1e-5
    assert 0 <= (run.info.disagreement or 0.0) <= 1
    taught = pipeline.distil(together, RunOptions(tmp_path))
    assert taught.info.parent == run.path.name
    assert load_teacher(run).dim == 2 * load_net(alone[0]).dim
    with pytest.raises(UserError, match="2 nets in one, for teaching alone"):
        load_net(run)
    tilted = recipe(teacher__init=[str(run.path) for run in alone], teacher__data={}, teacher__weights=[1, 0])
    first = let_through(pipeline.teach(tilted, RunOptions(tmp_path)))
    assert np.abs(read(first, "test").p - read(alone[0], "test").p).max() < 1e-5
    assert pipeline.distil(tilted, RunOptions(tmp_path)).info.parent == first.path.name
    with pytest.raises(UserError, match="one number from 0 up for each of 2 runs"):
        pipeline.teach(
            recipe(teacher__init=[str(run.path) for run in alone], teacher__weights=[1]), RunOptions(tmp_path)
        )
    with pytest.raises(UserError, match="one number from 0 up for each of 2 runs"):
        pipeline.teach(
            recipe(teacher__init=[str(run.path) for run in alone], teacher__weights=[1, float("nan")]),
            RunOptions(tmp_path),
        )
    moved = recipe(teacher__init=[str(alone[0].path)], teacher__data={"look": [0.0, 0.1]})
    with pytest.raises(UserError, match="sees other moments"):
        pipeline.teach(moved, RunOptions(tmp_path))


def test_a_bundle_of_looks_streams_and_is_its_run(tmp_path: Path) -> None:
    run = pipeline.distil(recipe(), RunOptions(tmp_path), alone=True)
    made = export(run, out=tmp_path / "bundle", anyway=True)
    assert made.manifest.input.look == (0.4, 0.2, 0.0)
    assert rate(made.manifest) == pytest.approx(5)
    detector = Detector(made, threads=1)
    assert isinstance(detector.predict, streams.Stream)
    data = load_dataset(run.recipe)
    x = np.array(data.store.pixels[data.rows["test"]])
    assert np.abs(detector.predict(x).argmax(1) - predictor(load_net(run))(x).argmax(1)).max() == 0
    # a film at 10 frames a second is looked at every other frame, and again only a whole look after a gap
    film = [(at, picture) for at, picture, _ in synthetic.clip("meeting", 3, 10, size=(24, 32))]
    said = list(steps(detector, [*film[:12], *film[24:]]))
    assert [round(at, 1) for at, p, _ in said if p is None] == [0.0, 0.2, 2.4, 2.6]
    past = memory(detector)
    whole = [streams.look(detector.predict, [film[2 * n][1]], [past], [film[2 * n][0]])[0] for n in range(3)][-1]
    assert np.abs(whole - {at: p for at, p, _ in said}[0.4]).max() < 1e-6


def test_a_look_at_now_alone_is_a_picture(tmp_path: Path) -> None:
    net = {"student__net": {"name": "mnist-cnn", "options": {"width": 4}}, "teacher__data": {}}
    run = pipeline.distil(recipe(data__look=[0.0], **net), RunOptions(tmp_path), alone=True)
    about = export(run, out=tmp_path / "bundle", anyway=True).manifest.input
    assert (about.shape, about.look) == ((24, 32, 3), None)


@pytest.mark.parametrize("net", [{"shift": "one-way", "name": "test_resnet"}, {"temporal": "gru"}])
def test_what_remembers_channels_is_not_pruned(tmp_path: Path, net: dict[str, Any]) -> None:
    changes = {f"student__net__{key}": value for key, value in net.items()}
    asked = recipe(student__net__options={}, student__net__weights="scratch", **changes)
    run = let_through(pipeline.distil(asked, RunOptions(tmp_path), alone=True))
    with pytest.raises(UserError, match=r"remembered over time"):
        prune(run, RunOptions(tmp_path, "", False, NO_PROGRESS))


def test_a_run_is_judged_on_other_data(tmp_path: Path) -> None:
    run = pipeline.distil(recipe(), RunOptions(tmp_path), alone=True)
    other = pipeline.on_other_data(run, ["data.source.pictures=2", "data.source.people=2"], None)
    said = read(other, "test")
    assert (len(said), set(said.group), other.path.name) == (8, {"person-0", "person-1"}, "on-other")
    assert read(run, "test").p.shape[0] != 8  # the run's own answers stay
    with pytest.raises(UserError, match="was trained on; name other data"):
        pipeline.on_other_data(run, [], None)
