"""Looks: which frames a sample is made of, in films, in lists of pictures and in the toy; augmented alike in time."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st

from stillwatch.errors import UserError
from stillwatch.lab.data import augment, cache
from stillwatch.lab.data.dataset import load_dataset
from stillwatch.lab.data.reader import gather
from stillwatch.media import synthetic
from stillwatch.media.decode import looks
from stillwatch.recipe import Recipe, check


def recipe(root: Path, source: Any = "videos", **changes: Any) -> Recipe:
    data = {"source": source, "root": str(root), "size": 16, "look": [0.0, 0.2, 0.6], "windows": 3, "split": "ratio"}
    raw = {"name": "t", "labels": ["A", "B"], "data": data, "teacher": {"net": "x"}, "student": {"net": "x"}}
    return check(toys.changed(raw, changes), "here")


def test_windows_are_spread_over_a_film_and_end_at_a_frame() -> None:
    times = [number / 10 for number in range(21)]
    assert looks(times, (0.0, 0.2, 0.6), 3) == [(0, 4, 6), (7, 11, 13), (14, 18, 20)]
    assert looks(times, (0.0, 0.2), 1) == [(9, 11)]
    assert looks(times[:7], (0.0, 0.6), 4) == [(0, 6)]  # there is but one


def test_no_window_spans_a_gap_and_a_short_film_says_so() -> None:
    times = [number / 10 for number in range(10)] + [5 + number / 10 for number in range(10)]
    found = looks(times, (0.0, 0.1, 0.2), 40)
    assert found and not any(window[0] < 10 <= window[-1] for window in found)
    assert "too short for a look of 0.6 s" in str(looks(times[:5], (0.0, 0.6), 4))
    assert "no frames at each of" in str(looks([0.0, 3.0, 6.0, 9.0], (0.0, 0.5), 4))


@given(st.lists(st.floats(0.01, 0.5), min_size=1, max_size=40), st.integers(1, 6))
def test_windows_are_whole_whatever_the_times(steps: list[float], count: int) -> None:
    times = np.cumsum([0, *steps]).tolist()
    found = looks(times, (0.3, 0.1, 0.0), count)
    for window in () if isinstance(found, str) else found:
        assert len(set(window)) == 3 and window == tuple(sorted(window)) and window[-1] < len(times)


def test_films_give_looks_oldest_first(tmp_path: Path) -> None:
    for label in "AB":
        for number in range(5):
            toys.video(tmp_path / label / f"{number}.mp4", 21)
    data = load_dataset(recipe(tmp_path))
    assert data.shape == (3, 16, 16, 3)
    first = data.store.pixels[[s.frames for s in data.samples].index((0, 4, 6))]
    assert np.abs(first.mean((1, 2, 3)) - [0, 32, 48]).max() < 5  # frame n is 8·n gray
    sample = data.samples[0]
    assert sample.id == f"{sample.sequence}#{sample.frames[-1]}"
    assert sample.time == pytest.approx(sample.frames[-1] / 10)


def test_a_film_without_old_enough_frames_is_skipped_with_the_reason(tmp_path: Path) -> None:
    for label in "AB":
        toys.video(tmp_path / label / "long.mp4", 21)
        toys.video(tmp_path / label / "short.mp4", 5)
    found = gather(recipe(tmp_path))
    assert {bad.file: "too short" in bad.reason for bad in found.skipped} == {"A/short.mp4": True, "B/short.mp4": True}


def test_pictures_of_a_list_look_back_in_their_own_sequence(tmp_path: Path) -> None:
    lines = ["path,label,sequence,time"]
    for sequence in "xy":
        for number in range(6):
            toys.jpeg(tmp_path / f"{sequence}{number}.jpg", number)
            lines.append(f"{sequence}{number}.jpg,{'A' if sequence == 'x' else 'B'},{sequence},{number / 5}")
    (tmp_path / "samples.csv").write_text("\n".join(lines))
    found = gather(recipe(tmp_path, "csv"))
    assert [[path.name for path in s.older] + [s.path.name] for s in found.samples if s.sequence == "x"] == [
        ["x0.jpg", "x2.jpg", "x3.jpg"],
        ["x1.jpg", "x3.jpg", "x4.jpg"],
        ["x2.jpg", "x4.jpg", "x5.jpg"],
    ]
    assert {bad.file for bad in found.skipped} == {f"{s}{n}.jpg" for s in "xy" for n in range(3)}
    whole = recipe(tmp_path, "csv", data__max_bad=1.0).data
    store = cache.pictures(found, whole)
    assert store.pixels.shape == (6, 3, 16, 16, 3)
    moved = recipe(tmp_path, "csv", data__max_bad=1.0, data__look=[0.0, 0.4, 0.6])
    assert cache.pictures(gather(moved), moved.data).key != store.key


def test_pictures_without_times_cannot_look_back(tmp_path: Path) -> None:
    for label in "AB":
        toys.jpeg(tmp_path / label / "1.jpg")
    with pytest.raises(UserError, match=r"data\.look = \[0\.0, 0\.2, 0\.6\]: A/1.jpg is a single picture"):
        gather(recipe(tmp_path, "folders"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__look": [0.2, 0.4]}, "0 among them"),
        ({"data__look": [0.0, 0.2, 0.2]}, "each once"),
        ({"data__look": []}, "0 among them"),
        ({"data__rate": 5}, "leave rate and frames out"),
        ({"student__data": {"size": 8}}, "the student sees"),
        ({"teacher__data": {"fold": 2}}, r"teacher\.data\.fold: teacher and student share samples"),
        ({"teacher__data": {"size": 4}}, r"teacher\.data.*too small"),
    ],
)
def test_impossible_looks_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        recipe(tmp_path, **changes)


def test_the_teacher_sees_other_pixels_of_the_same_samples(tmp_path: Path) -> None:
    for label in "AB":
        for number in range(5):
            toys.video(tmp_path / label / f"{number}.mp4", 21)
    asked = recipe(tmp_path, teacher__data={"size": 24, "look": [0.0, 0.1, 0.2, 0.3], "windows": 2})
    data = load_dataset(asked)
    theirs, rows = data.for_teacher(data.rows["train"])
    assert theirs.shape == (4, 24, 24, 3)
    for row, theirs_row in zip(data.rows["train"], rows, strict=True):
        ours, seen = data.samples[row], theirs.samples[theirs_row]
        beside = [s.time for s in theirs.samples if s.sequence == ours.sequence]
        assert seen.sequence == ours.sequence
        assert abs(seen.time - ours.time) == min(abs(time - ours.time) for time in beside)
    same, rows = load_dataset(recipe(tmp_path)).for_teacher(data.rows["train"])
    assert same.shape == data.shape and rows is data.rows["train"]


def test_time_is_turned_and_slowed_for_a_whole_look() -> None:
    x = torch.arange(4, dtype=torch.uint8).mul(60).view(1, 4, 1, 1, 1).expand(1, 4, 8, 8, 3)
    numbers = np.array([augment.number("a")], np.uint64)
    turned = augment.plan([{"name": "reverse", "p": 1.0}], 0)(x, numbers, 0)
    assert turned[0, :, 0, 0, 0].tolist() == [180, 120, 60, 0]
    slowed = augment.plan([{"name": "speed", "p": 1.0, "by": 1.0}], 0)(x, numbers, 0)[0, :, 0, 0, 0].int()
    steps = slowed.diff()
    assert slowed[-1] == 180 and steps.min() >= 30 and steps.max() < 60 and np.ptp(steps.numpy()) <= 1
    cropped = augment.plan(["crop", "flip"], 0)(
        torch.randint(0, 9, (1, 1, 8, 8, 3), dtype=torch.uint8).expand(1, 4, 8, 8, 3), numbers, 0
    )
    assert (cropped == cropped[:, :1]).all()  # all frames alike


def test_no_single_frame_of_a_meeting_tells_a_push_from_a_handshake() -> None:
    """The same poses are as frequent; only how fast they change differs."""
    frames, moved = {}, {}
    for label in synthetic.LABELS["meeting"]:
        shown = [
            synthetic.look("meeting", label, 1, number, (0.2, 0.0), (48, 64)).astype(float) for number in range(80)
        ]
        frames[label] = np.stack([look[1] for look in shown])
        steps = [cv2.resize(look[1] - look[0], (16, 12), interpolation=cv2.INTER_AREA) for look in shown]  # less grain
        moved[label] = np.array([np.abs(step).max() for step in steps])
    calm, push = (frames[label] for label in synthetic.LABELS["meeting"])
    apart = np.abs(calm.mean(0) - push.mean(0)).mean() / np.sqrt((calm.var(0) + push.var(0)).mean() / 80)
    assert apart < 1.6  # in standard errors: what 80 pictures of one kind differ from 80 others
    assert np.mean(moved["Violence"][:, None] > moved["NonViolence"]) > 0.85
