"""The toy draws the same picture on every call, and its clips agree with their truth."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillwatch.errors import UserError
from stillwatch.media import synthetic
from stillwatch.media.points import COUNT


@pytest.mark.parametrize("scene", ["cabin", "street"])
@pytest.mark.parametrize("size", [(96, 128), (64, 64), (240, 320)])
def test_still_has_the_asked_shape(scene: str, size: tuple[int, int]) -> None:
    for label in synthetic.LABELS[scene]:
        picture = synthetic.still(scene, label, 3, 5, size)
        assert picture.shape == (*size, 3) and picture.dtype == np.uint8
        assert picture.std() > 8  # something is on it


@pytest.mark.parametrize("scene", ["cabin", "street"])
def test_still_is_a_pure_function_of_its_numbers(scene: str) -> None:
    label = synthetic.LABELS[scene][0]
    first = synthetic.still(scene, label, 2, 9)
    synthetic.still(scene, label, 5, 1)
    np.testing.assert_array_equal(first, synthetic.still(scene, label, 2, 9))
    others = [
        synthetic.still(scene, label, 2, 10),
        synthetic.still(scene, label, 3, 9),
        synthetic.still(scene, synthetic.LABELS[scene][1], 2, 9),
    ]
    assert all((first != other).mean() > 0.2 for other in others)


def test_cabin_is_gray_as_infrared_and_street_is_not() -> None:
    cabin, street = synthetic.still("cabin", "Yawn", 0, 0), synthetic.still("street", "Violence", 0, 0)
    assert (cabin[..., 0] == cabin[..., 1]).all() and (cabin[..., 1] == cabin[..., 2]).all()
    assert (street[..., 0] != street[..., 2]).any()


def test_a_camera_keeps_its_background() -> None:
    def middle(camera: int) -> np.ndarray:  # the mean of many pictures: noise, light and figures average out
        return np.mean([synthetic.still("street", "NonViolence", camera, n).astype(float) for n in range(20)], axis=0)

    even = np.mean([synthetic.still("street", "Violence", 1, n).astype(float) for n in range(20)], axis=0)
    assert abs(middle(1) - even).mean() < 0.5 * abs(middle(1) - middle(2)).mean()


@pytest.mark.parametrize("scene", ["cabin", "street"])
def test_classes_differ_by_more_than_chance(scene: str) -> None:
    """A nearest-mean classifier, taught on some numbers of a person, knows the label of other numbers."""
    labels = synthetic.LABELS[scene]

    def small(label: str, number: int) -> np.ndarray:
        picture = synthetic.still(scene, label, 4, number, (48, 64)).astype(float).mean(axis=2)
        return (picture - picture.mean()) / picture.std()

    means = [np.mean([small(label, n) for n in range(16)], axis=0) for label in labels]
    hits = [
        int(np.argmin([((small(label, n) - mean) ** 2).mean() for mean in means])) == true
        for true, label in enumerate(labels)
        for n in range(16, 28)
    ]
    assert len(hits) == 12 * len(labels)
    assert np.mean(hits) > 1 / len(labels) + 0.15


@pytest.mark.parametrize("scene", ["cabin", "street"])
def test_clip_agrees_with_its_truth(scene: str) -> None:
    segments = synthetic.truth(scene, 20, seed=3)
    assert segments[0]["start_s"] == 0 and segments[-1]["end_s"] == 20
    assert all(a["end_s"] == b["start_s"] for a, b in pairwise(segments))
    assert all(a["label"] != b["label"] for a, b in pairwise(segments))
    frames = list(synthetic.clip(scene, 20, 4, seed=3, size=(32, 48)))
    assert len(frames) == 80
    assert [time for time, _, _ in frames] == [n / 4 for n in range(80)]
    for time_, picture, label in frames:
        assert picture.shape == (32, 48, 3)
        assert label == next(s["label"] for s in segments if s["start_s"] <= time_ < s["end_s"])


def test_a_long_clip_shows_every_label() -> None:
    assert {s["label"] for s in synthetic.truth("cabin", 70)} == set(synthetic.LABELS["cabin"])
    assert synthetic.truth("cabin", 0) == [] and list(synthetic.clip("cabin", 0, 10)) == []


def test_a_clip_moves_smoothly() -> None:
    frames = [picture.astype(float) for _, picture, _ in synthetic.clip("street", 12, 20, seed=1)]
    steps = [abs(a - b).mean() for a, b in pairwise(frames)]
    assert len(steps) == 239
    assert max(steps) < 3 * float(np.median(steps))  # also where the label changes


def test_drawing_is_fast() -> None:
    synthetic.still("street", "Violence", 0, 0)
    start = time.process_time()
    for number in range(60):
        synthetic.still("cabin", "Drinking", number % 3, number)
        synthetic.still("street", "Violence", number % 3, number)
    assert (time.process_time() - start) / 120 < 0.010  # 1 ms as a rule; room for a busy machine


@settings(max_examples=40)
@given(
    scene=st.sampled_from(["cabin", "street"]),
    which=st.integers(0, 5),
    person=st.integers(0, 10**9),
    number=st.integers(0, 10**9),
    height=st.integers(16, 300),
    width=st.integers(16, 300),
)
def test_any_numbers_draw(scene: str, which: int, person: int, number: int, height: int, width: int) -> None:
    labels = synthetic.LABELS[scene]
    assert synthetic.still(scene, labels[which % len(labels)], person, number, (height, width)).shape == (
        height,
        width,
        3,
    )


def test_mistakes_name_the_nearest() -> None:
    with pytest.raises(UserError, match="toy scene = 'cabn': unknown; did you mean 'cabin'"):
        synthetic.still("cabn", "Yawn", 0, 0)
    with pytest.raises(UserError, match="toy label = 'Yawm': unknown; did you mean 'Yawn'"):
        synthetic.still("cabin", "Yawm", 0, 0)
    with pytest.raises(UserError, match="toy scene"):
        synthetic.truth("moon", 3)


def test_the_drawn_reader_knows_the_face_of_every_picture() -> None:
    """Lids, mouth and head follow the label, and the points lie on the drawing."""
    size, seconds = (96, 128), 60.0
    read = synthetic.reader(seconds, 3, size)
    seen: dict[str, list[tuple[float, ...]]] = {}
    for at, image, label in synthetic.clip("cabin", seconds, 5, 3, size):
        face = read(image, at)
        assert face is not None and face.points.shape == (COUNT, 3)
        assert face.box.x > 0 and face.box.x + face.box.w < size[1] and face.box.w > 20
        seen.setdefault(label, []).append(face.signals.flat())
    middle = {label: np.median(signals, axis=0) for label, signals in seen.items()}
    assert middle["SleepyDriving"][0] == 0.10 < 0.2 < middle["SafeDriving"][0]
    assert middle["Yawn"][2] > 0.4 > 0.1 > middle["SafeDriving"][2]
    away = np.abs(middle["Distracted"][3:5] - middle["SafeDriving"][3:5])
    assert away[0] > 20 or away[1] > 12
    assert read(image, 0.0) is not None
