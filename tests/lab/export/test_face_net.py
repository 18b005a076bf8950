"""A net that sees the face alone: chosen, exported and heard, the same by a camera, a replay and an archive."""

import shutil
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from stillwatch import bundle, recipe
from stillwatch.errors import UserError
from stillwatch.inference import face_reader
from stillwatch.inference.archive import scoring, shards, workers
from stillwatch.inference.detector import Detector, alarm_of, face_net, steps
from stillwatch.lab.data.dataset import dataset_of
from stillwatch.lab.export import fusion, packaging
from stillwatch.lab.training import pipeline
from stillwatch.lab.training.runs import RunOptions, load_net, predictor
from stillwatch.media import image, weights
from stillwatch.monitor.cameras import source
from stillwatch.monitor.cameras.reading import FaceStream, reader
from stillwatch.run import Run

TOY = "toy://driver?seed=1&fps=5&size=96x128&seconds=12"
SMALL = (
    "data.source={name='toy',people=6,pictures=3,height=96,width=128}", "data.size=[24,32]", "data.folds=3",
    "data.faces=true", "labels=['SafeDriving','DangerousDriving','Drinking']", "fit.epochs=1", "fit.views=1",
    "student.net={name='mnist-small',weights='scratch'}",
)  # fmt: skip
FACE, FOLD0 = ("data.region=face", "data.size=20", "data.gray=false"), "toy-alone-002"

pytestmark = pytest.mark.usefixtures("export_once")


def crossval(run: Run, root: Path, knows: tuple[int, ...]) -> Run:
    """All folds of run's recipe, whose nets tell these classes from the others and nothing else; fold 0 is run's."""
    folder = Run.create(run.recipe, "crossval", root, fingerprint=run.info.fingerprint)
    shutil.copytree(run.path, folder.path / run.path.name)
    for fold in range(3):
        raw = run.recipe.model_dump(mode="json")
        mine = recipe.check(raw | {"data": raw["data"] | {"fold": fold}}, "x")
        one = Run.create(mine, "alone", folder.path, seed=0) if fold else Run.open(folder.path / run.path.name)
        _, ids, group, sequence, y = pipeline.load_dataset(mine).eval_arrays("test")
        p = np.where([[label == k if label in knows else k not in knows for k in range(3)] for label in y], 0.8, 0.1)
        p = (p / p.sum(1, keepdims=True)).astype(np.float32)
        one.save_arrays("predictions/test.npz", id=np.array(ids), group=np.array(group), sequence=np.array(sequence),
                        y=y, p=p)  # fmt: skip
        one.finish()
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run, Run]:
    """A student, its crossval that cannot tell the last two classes, and one on faces alone that tells all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLWATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        root = tmp_path_factory.mktemp("runs")
        run, face = (
            pipeline.distil(recipe.load("toy", (*SMALL, *more)), RunOptions(root), alone=True) for more in ((), FACE)
        )
        return run, crossval(run, root, (0,)), crossval(face, root, (0, 1, 2))


def exported(trained: tuple[Run, Run, Run], out: Path) -> bundle.Bundle:
    run, whole, faces = trained
    return packaging.export(run, out=out, crossval=whole, face=faces, anyway=True)


def test_the_face_s_net_goes_along_where_it_helps_people_left_out(
    trained: tuple[Run, Run, Run], tmp_path: Path
) -> None:
    made, (run, _, faces) = exported(trained, tmp_path / "b"), trained
    head, net = made.manifest.fusion, made.manifest.face_net
    assert head is not None and net is not None and net.input.shape == (20, 20, 3)
    assert np.array(head.weight).shape == (3, 3 + 16 + 3)
    assert head.figures["macro_f1"] > head.figures["macro_f1_signals"] > head.figures["macro_f1_alone"]
    frames, golden = made.golden(face=True)
    own = predictor(load_net(Run.open(faces.path / FOLD0)))
    assert golden[bundle.FACE] == pytest.approx(own(frames), abs=1e-4)
    assert net.figures == {"run": FOLD0, "of": faces.path.name}

    # what the lab says of a sample is the file's answer on the region's pixels
    found, data = face_net(made), dataset_of(run)
    assert found is not None and found.runtime == "onnxruntime"
    told, boxes = fusion.faces_of(data, net=found), fusion.faces.faces(data.samples, data.store.content).boxes("face")
    for sample, face, box in list(zip(data.samples, told, boxes, strict=True))[::7]:
        left, top, right, bottom = box or (0, 0, 0, 0)
        _, picture = next(sample.read([sample]))  # type: ignore[misc]
        cut = image.fit(picture[top:bottom, left:right], (20, 20), net.input.fit)  # type: ignore[index]
        assert face is not None and face.said == pytest.approx(own(cut[None])[0], abs=1e-3)

    (made.path / bundle.FACE).write_bytes((made.path / bundle.FACE).read_bytes()[::-1])
    with pytest.raises(UserError, match=r"face\.onnx: was changed"):
        bundle.load(made.path)


def test_one_that_tells_nothing_more_stays_at_home_and_says_so(trained: tuple[Run, Run, Run], tmp_path: Path) -> None:
    run, whole, _ = trained
    mute = crossval(Run.open(trained[2].path / FOLD0), tmp_path, ())
    made = packaging.export(run, out=tmp_path / "b", crossval=whole, face=mute, anyway=True)
    plain = packaging.export(run, out=tmp_path / "plain", crossval=whole, anyway=True)
    why = {one["name"]: one["why"] for one in made.manifest.left_out}
    assert why[bundle.FACE].startswith("it does not help people left out: accuracy_alone")
    assert made.manifest.fusion == plain.manifest.fusion and face_net(made) is None
    assert bundle.FACE not in made.manifest.files


def test_a_crossval_of_something_else_is_refused(trained: tuple[Run, Run, Run], tmp_path: Path) -> None:
    run, whole, faces = trained
    face = Run.open(faces.path / FOLD0)
    for call, why in (
        ({"face": faces}, "--face: a head hears it: --calibrate"),
        ({"crossval": whole, "face": whole}, "not a crossval on faces alone"),
        ({"crossval": whole, "face": face}, "not a crossval on faces alone"),
    ):
        with pytest.raises(UserError, match=why):
            packaging.export(run, out=tmp_path / "b", anyway=True, **call)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r'sees region = "face" alone.* --calibrate CROSSVAL --face'):
        packaging.export(face, out=tmp_path / "b", anyway=True)


def test_a_replay_and_an_archive_answer_alike(
    trained: tuple[Run, Run, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, root = exported(trained, tmp_path / "b"), tmp_path / "archive"
    detector, alarm = Detector(made), alarm_of(made, "cab", faces=True)
    faces = FaceStream(reader(TOY, face_net(made)), live=False)
    answers = list[Any]()
    for now, p, status in steps(detector, faces.tapped(source.frames(TOY))):
        alarm.step(now, p, status, faces.take(now))
        answers.append(alarm.answer)
    root.mkdir()
    for number, (_, picture) in enumerate(source.frames(TOY)):
        (root / f"{number:04d}.png").write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
    drawn, number = reader(TOY), count()
    monkeypatch.setattr(face_reader, "FaceReader", lambda: lambda picture, _: drawn(picture, next(number) / 5))
    monkeypatch.setattr(weights, "local", lambda name: tmp_path)
    monkeypatch.setattr(workers, "work", lambda task, cuts, _: [shards.do(task, cut) for cut in cuts])
    scoring.score(made.path, root, tmp_path / "s.csv", 1)
    rows = [line.split(",") for line in (tmp_path / "s.csv").read_text().splitlines()]
    head, *rows = rows
    labels = made.manifest.labels
    told = np.array([[float(row[head.index(f"p_{label}")]) for label in labels] for row in rows])
    said = np.array([[float(row[head.index(f"face_net_{label}")]) for label in labels] for row in rows])
    assert len(told) == len(answers) == 60 and said.sum(1) == pytest.approx(1, abs=1e-4)
    assert told == pytest.approx(np.array(answers), abs=1e-3)
    plain = np.array([[float(row[head.index(f"net_{label}")]) for label in labels] for row in rows])
    assert np.abs(told - plain).max() > 0.05
