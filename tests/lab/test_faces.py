"""Faces of a data set: read once at native size, counted by class and group, kept."""

from pathlib import Path

import numpy as np
import pytest
from toys import jpeg, video

from stillwatch import recipe
from stillwatch.errors import UserError
from stillwatch.lab import faces
from stillwatch.lab.data import sources
from stillwatch.lab.data.audit import count_faces
from stillwatch.lab.data.dataset import load_dataset
from stillwatch.lab.data.sources import Sample
from stillwatch.media import image
from stillwatch.media.decode import Picture
from stillwatch.media.points import COUNT, LEFT_EYE, MOUTH, RIGHT_EYE, Face, face
from stillwatch.recipe import Data


class Reader:
    """Finds a face in pictures brighter than 60 on average."""

    seen: list[tuple[int, ...]]

    def __init__(self) -> None:
        Reader.seen = []

    def __call__(self, image: Picture, seconds: float) -> Face | None:
        Reader.seen.append(image.shape)
        at = np.random.default_rng(0).uniform(5, 20, (COUNT, 3)).astype(np.float32)
        return face(at, 0.9) if image.mean() > 60 else None


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    monkeypatch.setattr(faces, "FaceReader", Reader)
    film = video(tmp_path / "film.mp4", 20)  # frame n is evenly 8·n gray
    looks = [Sample(f"film#{n}", film, "Yawn", "b", frames=(n - 1, n)) for n in (2, 12, 19)]
    stills = [Sample(f"{n}.jpg", jpeg(tmp_path / f"{n}.jpg", n), "Safe", "a") for n in range(2)]
    return [*stills, *looks, Sample("gone.jpg", tmp_path / "gone.jpg", "Safe", "a")]


def test_the_newest_frame_of_each_sample_is_read_once_at_native_size(samples: list[Sample]) -> None:
    found = faces.faces(samples, "key")
    assert found.signals.shape == (6, 7) and found.points.shape == (6, COUNT, 3)
    assert Reader.seen == [(24, 32, 3)] * 2 + [(48, 64, 3)] * 3, "a file that is gone has no picture"
    assert np.isnan(found.signals[:, 0]).tolist()[2:] == [True, False, False, True]
    assert float(found.points[3, :, :2].min()) == 0 and float(found.points[3, :, :2].max()) == 1, "shares of the box"
    Reader.seen.clear()
    again = faces.faces(samples, "key")
    assert Reader.seen == [] and np.array_equal(again.box, found.box, equal_nan=True)


def test_regions_lie_on_the_drawn_eyes_and_mouth_however_the_picture_is_fitted() -> None:
    """The toy's faces need no weights."""
    data = Data(source="toy", size=(120, 140))
    found = sources.drawn(data, ("SafeDriving", "Yawn"), people=2, pictures=2, height=180, width=240).samples
    table = faces.faces(found, "toy")
    assert table.found.all()
    for how in ("stretch", "letterbox", "crop"):
        regions = table.regions(data.model_copy(update={"fit": how}))
        for sample, at in zip(found, regions * np.tile([140, 120], 2), strict=True):
            points, wide = sample.face().points[:, :2], 6  # type: ignore[misc]
            for part, (x, y, _, spread) in zip((LEFT_EYE, RIGHT_EYE, MOUTH), at, strict=True):
                middle = points[list(part)].mean(0)
                spot = np.zeros((180, 240, 3), np.uint8)
                left, top = np.round(middle - wide).astype(int)
                spot[top : top + 2 * wide, left : left + 2 * wide] = 255
                rows, cols = np.nonzero(image.fit(spot, data.hw, how)[:, :, 0] > 127)
                assert (cols.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((x, y), abs=1.5)
                scale = (np.ptp(rows) + 1) / (2 * wide)
                apart = np.linalg.norm(np.subtract(*(points[list(eye)].mean(0) for eye in (LEFT_EYE, RIGHT_EYE))))
                assert spread == pytest.approx(0.3 * max(apart, 0.35 * np.ptp(points[:, 0])) * scale, rel=0.15)
            assert at[2, 2] > at[2, 3] and at[0, 2] == at[1, 2]


@pytest.mark.parametrize("region", ["face", "eyes"])
def test_a_teacher_s_region_is_cut_out_of_the_drawing_at_native_size(region: str) -> None:
    source = {"name": "toy", "people": 6, "pictures": 12, "height": 180, "width": 240}
    data = {"source": source, "group": "folder", "size": (90, 120)}
    raw = {"name": "toy", "labels": ["SafeDriving", "Yawn"], "data": data, "student": {"net": "mnist-cnn"}}
    raw["teacher"] = {"net": "mnist-cnn", "data": {"region": region, "size": (60, 60)}}
    whole = load_dataset(recipe.check(raw, "toy"))
    theirs, rows = whole.for_teacher(whole.rows["test"])
    for row in rows[:4]:
        sample = theirs.samples[row]
        points = sample.face().points  # type: ignore[misc]
        eyes = [points[list(eye), :2].mean(0) for eye in (LEFT_EYE, RIGHT_EYE)]
        left, top, right, bottom = sample.box or (0, 0, 0, 0)
        inside = points if region == "face" else np.array(eyes)
        assert (inside[:, :2] >= (left, top)).all() and (inside[:, :2] <= (right, bottom)).all()
        assert region == "face" or (right - left) / (bottom - top) == pytest.approx(3, rel=0.15)
        drawn = next(picture for _, picture in sample.read([sample]))  # type: ignore[misc]
        assert np.array_equal(theirs.store.pixels[row, 0], image.fit(drawn[top:bottom, left:right], (60, 60)))
    assert whole.store.fingerprint == theirs.store.fingerprint, "the same samples"
    assert whole.store.content == theirs.store.content, "their faces are read once"
    smaller = data | {"source": source | {"height": 90, "width": 120}}
    small = load_dataset(recipe.check(raw | {"data": smaller}, "toy").seen_by("teacher"))
    assert all(one.box and max(one.box) <= 120 for one in small.samples), "drawn smaller, and read anew"
    for wrong in ({"data": data | {"region": "eyes"}}, {"student": {"net": "mnist-cnn", "data": {"region": "face"}}}):
        with pytest.raises(UserError, match=r"teacher\.data"):
            recipe.check(raw | wrong, "toy")


def test_who_lacks_the_weights_hears_how_to_go_without(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise UserError("yunet.onnx is needed")

    monkeypatch.setattr(faces, "FaceReader", missing)
    with pytest.raises(UserError, match=r"is needed; or without faces: data\.faces=false teacher\.signals=0"):
        faces.faces(samples, "another key")


def test_without_a_face_the_whole_picture_is_seen(samples: list[Sample]) -> None:
    found = faces.faces(samples, "key").boxes("face")
    assert [box is None for box in found] == [False, False, True, False, False, True]


def test_the_audit_counts_faces_by_class_and_group(samples: list[Sample]) -> None:
    counted = count_faces(faces.faces(samples, "key").found, samples)
    assert counted.samples == 6 and counted.by_label["Yawn"] == counted.by_group["b"] == pytest.approx(2 / 3)
    assert counted.found == round(6 * (counted.by_label["Yawn"] + counted.by_label["Safe"]) / 2)
