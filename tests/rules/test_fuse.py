"""Fusing a net's answer with a face: identity keeps the answer, and an Alarm uses only a fresh face."""

import numpy as np
import pytest

from stillwatch.media.points import Signals
from stillwatch.recipe import Rule
from stillwatch.rules.alarm import Alarm
from stillwatch.rules.fusion import FACE, features, fuse
from stillwatch.rules.normal import Deviation, Normal
from stillwatch.rules.signs import Reading

USUAL = Deviation(0.0, 0.0, 0.0, 0.0, 0.0, (0.0,) * 5)
WEIGHT = np.hstack([np.eye(2), np.zeros((2, FACE))])


def test_a_head_of_ones_keeps_the_answer_and_a_weight_moves_it() -> None:
    p = np.array([0.7, 0.3])
    assert fuse(p, USUAL, WEIGHT, np.zeros(2)) == pytest.approx(p)
    shut = USUAL._replace(shut=1.0, z=(-9.0, 0.0, 2.0, -1.0, 0.0))
    now = [-4, 0, 2, -1, 0, 1, 2, 1]  # clipped, and how far it turned
    assert features(p, shut)[2:] == pytest.approx([*now, *now]), "without a past it was always so"
    assert features(p, shut._replace(past=(0.5,) * 8))[2:] == pytest.approx([*now, *[0.5] * 8])
    moved = WEIGHT.copy()
    moved[1, 2 + 5] = 3.0
    assert fuse(p, shut, moved, np.zeros(2))[1] > 0.8 and fuse(p, USUAL, moved, np.zeros(2)) == pytest.approx(p)
    older = moved[:, : 2 + 8]  # of a bundle whose head knows no past
    assert fuse(p, shut, older, np.zeros(2)) == pytest.approx(fuse(p, shut, moved, np.zeros(2)))


def test_a_net_that_sees_the_face_alone_multiplies_and_changes_nothing_where_it_is_silent() -> None:
    p, weight, said = np.array([0.5, 0.5]), np.hstack([WEIGHT, 2 * np.eye(2)]), USUAL._replace(said=(0.25, 0.75))
    assert fuse(p, said, weight, np.zeros(2)) == pytest.approx([0.1, 0.9]), "1² : 3²"
    assert fuse(p, USUAL, weight, np.zeros(2)) == pytest.approx(p)
    assert fuse(p, said, WEIGHT, np.zeros(2)) == pytest.approx(p), "of a head without it"


def test_a_normal_hands_on_what_the_face_s_net_said_and_refuses_what_is_no_number() -> None:
    face = Signals(0.27, 0.27, 0.05, -5.0, -9.0, 0.0, 0.9, (0.25, 0.75))
    assert Signals.of(np.float32(face.flat())).said == (0.25, 0.75) and Signals.of(face.flat()) == face
    assert Signals.of(face.flat()[:7]) == face._replace(said=())
    told = Normal().step(0.0, face)
    assert told is not None and told.said == face.said
    assert Normal().step(0.0, face._replace(said=(float("nan"), 1.0))) is None


def test_an_alarm_fuses_with_a_fresh_face_and_keeps_the_nets_answer_without_one() -> None:
    alarm = Alarm("cab", ["SafeDriving", "Distracted"], ["SafeDriving"], Rule(profile="driver"))
    alarm.fuse = lambda p, deviation: np.array([0.1, 0.9])
    face = Signals(0.27, 0.27, 0.05, -5.0, -9.0, 0.0, 0.9)
    answers = []
    for now, reading in ((0.0, face), (0.1, None), (0.2, face), (1.0, "stale")):
        news = [] if reading == "stale" else [Reading(now, reading)]  # type: ignore[arg-type]
        alarm.step(now, [0.8, 0.2], "ok", news)
        assert alarm.answer is not None
        answers.append(alarm.answer[1])
    assert answers == [0.9, 0.2, 0.9, 0.2]
    alarm.step(1.1, None)
    assert alarm.answer is None
