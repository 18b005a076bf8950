"""Faces of a data set: read once at native size, counted by class and group, kept."""

from pathlib import Path

import numpy as np
import pytest
from toys import jpeg, video

from stillwatch.lab import faces
from stillwatch.lab.data import sources
from stillwatch.lab.data.audit import count_faces
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


def test_the_audit_counts_faces_by_class_and_group(samples: list[Sample]) -> None:
    counted = count_faces(faces.faces(samples, "key").found, samples)
    assert counted.samples == 6 and counted.by_label["Yawn"] == counted.by_group["b"] == pytest.approx(2 / 3)
    assert counted.found == round(6 * (counted.by_label["Yawn"] + counted.by_label["Safe"]) / 2)
