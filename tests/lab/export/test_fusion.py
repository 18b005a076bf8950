"""The fused head: kept where a face tells what the net does not, refused where it tells nothing."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stillwatch import bundle, metrics
from stillwatch.errors import UserError
from stillwatch.lab.data.sources import Sample
from stillwatch.lab.export import fusion
from stillwatch.lab.export.calibration import Calibration
from stillwatch.lab.export.fusion import deviations, face_logs
from stillwatch.lab.export.packaging import fit
from stillwatch.lab.faces import FaceTable
from stillwatch.rules.fusion import fuse
from stillwatch.rules.normal import Deviation

RECIPE: Any = SimpleNamespace(labels=("a", "b", "c"), safe=("a",), export=SimpleNamespace(false_alarms=0.05))


def heard(y: np.ndarray, p: np.ndarray, group: np.ndarray) -> Calibration:
    return Calibration("out of fold", "new", "cv", np.arange(len(y)), group, y, p)


def named(faces: list[Deviation | None]) -> dict[str, Deviation | None]:
    return {str(number): face for number, face in enumerate(faces)}


def answers(
    count: int, told: bool, people: int = 5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Deviation | None]]:
    """A net that cannot tell class 1 from 2, and a face whose lids can (told) or are noise."""
    r = np.random.default_rng(0)
    y = np.arange(count) % 3
    p = np.where(y[:, None] == 0, [0.8, 0.1, 0.1], [0.1, 0.45, 0.45]) + r.uniform(0, 0.02, (count, 3))
    faces: list[Deviation | None] = []
    for label in y:
        shut = float((label == 2) if told else r.random() < 0.5)
        faces.append(Deviation(shut, 0.0, 0.0, 0.0, 0.0, (-3 * shut, *r.normal(size=4))))
    group = np.array([f"d{number % people}" for number in r.permutation(count)])
    return y, (p / p.sum(1, keepdims=True)).astype(np.float32), group, faces


def test_a_face_that_tells_what_the_net_does_not_is_kept_and_answers_as_it_was_judged() -> None:
    y, p, group, faces = answers(300, told=True)
    head = fit(heard(y, p, group), RECIPE, named(faces))
    assert isinstance(head, bundle.Fusion)
    assert head.figures["accuracy"] > 0.95 > 0.8 > head.figures["accuracy_alone"]
    assert head.figures["macro_f1"] > head.figures["macro_f1_alone"]
    fused = np.array([fuse(one, face, head.weight, head.bias) for one, face in zip(p, faces, strict=True) if face])
    assert fused.sum(1) == pytest.approx(1) and np.mean(fused.argmax(1) == y) > 0.95


def test_temperature_and_threshold_are_of_the_fused_answers_of_people_left_out() -> None:
    y, p, group, faces = answers(600, told=True)
    lost = np.random.default_rng(2).random(600) < 0.2
    p[lost] = p[np.random.default_rng(3).permutation(600)][lost]
    p = p**5 / (p**5).sum(1, keepdims=True)  # far too sure
    faces[0] = None
    head = fit(heard(y, p, group), RECIPE, named(faces))
    assert isinstance(head, bundle.Fusion) and head.temperature and head.operating
    assert head.temperature["value"] > 1.5 and head.temperature["ece_after"] < head.temperature["ece_before"]
    weight = np.array(head.weight)
    assert weight[:, :3] == pytest.approx(np.eye(3) / head.temperature["value"])
    q = np.array([x if face is None else fuse(x, face, weight, head.bias) for x, face in zip(p, faces, strict=True)])
    alarms = metrics.alarm_score(q, [0]) >= head.operating["threshold"]  # the head has now met them: about the same
    assert head.operating["false_alarm_rate"] <= 0.05 and alarms[y == 0].mean() == pytest.approx(0.05, abs=0.03)
    assert alarms[y != 0].mean() == pytest.approx(head.operating["recall"], abs=0.1)
    assert (head.operating["groups"], head.operating["people"]) == (5, "new")


def test_one_that_is_noise_is_refused_with_its_figures() -> None:
    y, p, group, faces = answers(300, told=False)
    p = np.where(np.eye(3, dtype=bool)[y], 0.9, 0.05).astype(np.float32)  # and the net knows all
    why = fit(heard(y, p, group), RECIPE, named(faces))
    assert isinstance(why, str) and why.startswith("it does not help people left out: accuracy_alone 1.000")


def test_too_few_people_or_a_class_that_one_of_them_holds_alone_is_said() -> None:
    y, p, group, faces = answers(60, told=True, people=2)
    assert fit(heard(y, p, group), RECIPE, named(faces)) == "faces of 2 people: at least 3 are needed"
    y, p, group, faces = answers(90, told=True)
    group[y == 2] = "d0"
    assert fit(heard(y, p, group), RECIPE, named(faces)) == "without d0 there is no face of class 2"


class Toy:
    """What face_logs asks of a Dataset: twelve people, three classes, a face of each sample but one."""

    aside = False

    def __init__(self, people: str, labelled: int) -> None:
        self.samples = [Sample(f"{who}{n}", Path(), "", who) for who in people for n in range(9)]
        self.y = np.array([n % 3 if place < 9 * labelled else -1 for place, n in enumerate([*range(9)] * len(people))])
        self.rows = {"train": np.flatnonzero(self.y >= 0)}
        self.recipe, self.store = SimpleNamespace(labels=("a", "b", "c")), SimpleNamespace(content=people)


def test_a_teacher_s_face_head_has_not_met_whom_it_speaks_of(monkeypatch: pytest.MonkeyPatch) -> None:
    data, other = Toy("ABCD", 3), Toy("XY", 0)

    def seen(table: None, samples: list[Sample]) -> list[Deviation | None]:
        """Each class has a lid of its own; with A it is the other way round."""
        found: list[Deviation | None] = []
        for sample in samples:
            shift = int(sample.id[1:]) % 3 - 1
            z = -2.0 * shift if sample.group == "A" else 2.0 * shift
            found.append(None if sample.id == "B0" else Deviation(0.0, 0.0, 0.0, 0.0, 0.0, (z, 0, 0, 0, 0)))
        return found

    monkeypatch.setattr(fusion, "deviations", seen)
    monkeypatch.setattr(fusion.faces, "faces", lambda *_: None)
    told = {sample.id: row for sample, row in zip(data.samples, face_logs(data, data), strict=True)}  # type: ignore[arg-type]
    assert not told["B0"].any() and np.exp(told["B1"]).sum() == pytest.approx(1)
    assert told["A0"].argmax() == 2 and told["A2"].argmax() == 0  # by B and C alone, A is misread
    assert [told[f"D{n}"].argmax() for n in (3, 5)] == [0, 2]  # who lost the labels is read by all three
    assert face_logs(data, other)[[0, 2, 9]].argmax(1).tolist() == [0, 2, 0]  # type: ignore[arg-type]
    few = Toy("AB", 1)  # nobody else shows what A does, so A's own face says nothing
    told = face_logs(few, few)  # type: ignore[assignment, arg-type]
    assert not told[:9].any() and told[10:].all()  # type: ignore[misc]
    with pytest.raises(UserError, match="there is no face of a in training"):
        face_logs(Toy("AB", 0), other)  # type: ignore[arg-type]


def test_each_group_has_a_normal_of_its_own_that_goes_with_its_recordings() -> None:
    samples = [Sample(f"{g}{n}", Path(), "a", g, "", "s", float(-n)) for g in "ab" for n in range(400)]
    lids = np.where(np.arange(800) < 400, 0.30, 0.18)  # two people, each with eyes open
    signals = np.tile([0.0, 0.0, 0.05, -5.0, -9.0, 0.0, 0.9], (800, 1))
    signals[:, :2] = lids[:, None]
    signals[5] = np.nan
    table = FaceTable(signals, np.zeros((800, 4)), np.zeros((800, 468, 3)), np.ones((800, 2)))
    found = deviations(table, samples)
    assert found[5] is None and sum(one is None for one in found) == 1
    first, last = found[799], found[400]  # time runs backwards in this table
    assert first is not None and last is not None
    assert first.shut > 0.5 > 0.1 > last.shut, "small eyes are not shut once they are known"


def test_what_a_face_just_did_stays_within_its_recording() -> None:
    signals = np.tile([0.08, 0.08, 0.05, -5.0, -9.0, 0.0, 0.9], (51, 1))  # lids shut, and open at last
    signals[50, :2] = 0.27
    table = FaceTable(signals, np.zeros((51, 4)), np.zeros((51, 468, 3)), np.ones((51, 2)))
    told = []
    for last in ("s", "t"):
        samples = [Sample(f"{n}", Path(), "a", "g", "", "s" if n < 50 else last, float(n)) for n in range(51)]
        found = deviations(table, samples)[50]
        assert found is not None and found.shut == 0
        told.append(found.past[5])
    assert told[0] > 0.8 and told[1] < 0.05


def test_answers_of_a_crossval_meet_the_faces_of_their_own_samples() -> None:
    y, p, group, faces = answers(300, told=True)
    order = np.random.default_rng(1).permutation(300)
    head = fit(replace(heard(y[order], p[order], group[order]), id=order), RECIPE, named(faces))
    assert isinstance(head, bundle.Fusion) and head.figures["accuracy"] > 0.95
