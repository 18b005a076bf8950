"""Geometry: three ways to fit, and what stays where."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillwatch.media import image


def test_stretch_fills_letterbox_keeps_and_crop_cuts() -> None:
    wide = np.full((10, 40, 3), 200, np.uint8)
    assert (image.fit(wide, (20, 20), "stretch") == 200).all()
    boxed = image.fit(wide, (20, 20), "letterbox")
    assert (boxed[:7] == 0).all()
    assert (boxed[8:12] == 200).all()
    half = np.zeros((10, 40, 3), np.uint8)
    half[:, 15:25] = 255
    assert (image.fit(half, (10, 10), "crop") == 255).all()  # the middle of the picture is kept


def test_gray_and_colour_go_both_ways() -> None:
    gray = np.full((8, 8), 7, np.uint8)
    assert image.fit(gray, (8, 8), channels=3).shape == (8, 8, 3)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert image.fit(red, (8, 8), channels=1)[0, 0, 0] == 76  # 0.299 of full red: RGB order, not BGR
    assert image.to_channels(np.zeros((8, 8, 4), np.uint8), 3).shape == (8, 8, 3)


def test_going_down_averages_instead_of_picking() -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = image.fit(board, (16, 16), channels=1)
    assert small.min() >= 127
    assert small.max() <= 128


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros(4, np.uint8)])
def test_what_is_no_picture_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a picture is uint8"):
        image.fit(bad, (8, 8))


@given(
    st.integers(1, 50), st.integers(1, 50), st.integers(8, 40), st.integers(8, 40),
    st.sampled_from(["stretch", "letterbox", "crop"]), st.sampled_from([1, 3]),
)  # fmt: skip
def test_any_picture_fits_any_size(h: int, w: int, height: int, width: int, how: str, channels: int) -> None:
    picture = np.full((h, w, 3), 90, np.uint8)
    out = image.fit(picture, (height, width), how, channels)  # type: ignore[arg-type]
    assert out.shape == (height, width, channels)
    assert out.dtype == np.uint8
    assert out.max() in (89, 90)  # nothing is invented


@pytest.mark.parametrize(("h", "w", "how", "shape"), [
    (30, 80, "crop", (30, 60)), (80, 30, "crop", (15, 30)), (30, 80, "letterbox", (40, 80)),
    (80, 30, "letterbox", (80, 160)), (40, 80, "crop", (40, 80)), (40, 80, "letterbox", (40, 80)),
    (1, 9, "crop", (1, 2)), (9, 1, "letterbox", (9, 18)), (9, 9, "stretch", (9, 9)),
])  # fmt: skip
def test_a_picture_is_cut_or_widened_in_the_middle(h: int, w: int, how: Any, shape: tuple[int, int]) -> None:
    picture = np.arange(1, h * w + 1, dtype=np.uint16).astype(np.uint8).reshape(h, w, 1).repeat(3, 2)
    out = image.to_aspect(picture, 2.0, how)
    assert out.shape[:2] == shape
    top, left = (abs(a - b) // 2 for a, b in zip(shape, (h, w), strict=True))
    if how == "letterbox":
        assert (out[top : top + h, left : left + w] == picture).all()
    else:
        assert (out == picture[top : top + shape[0], left : left + shape[1]]).all()


def test_zones_are_grey_and_the_crop_is_what_remains() -> None:
    picture = np.full((100, 200, 3), 200, np.uint8)
    triangle, square = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)], [(0.4, 0.4), (0.6, 0.4), (0.6, 0.6), (0.4, 0.6)]
    seen = image.zoned(picture, [triangle, square, square], None)
    assert (picture == 200).all() and seen.shape == picture.shape
    assert (seen[50, 100] == image.GRAY).all() and (seen[2, 2] == image.GRAY).all() and (seen[80, 180] == 200).all()
    assert np.mean(seen[..., 0] == image.GRAY[0]) == pytest.approx(1 / 8 + 1 / 25, abs=0.02)
    part = image.zoned(picture, [square], (0.25, 0.5, 1.0, 0.8))
    assert part.shape == (30, 150, 3) and (part[2, 50] == image.GRAY).all() and (part[2, 100] == 200).all()
    whole = image.zoned_whole(picture, [square], (0.25, 0.5, 1.0, 0.8))
    assert (
        (whole[50:80, 50:] == part).all() and (whole[:50] == image.GRAY).all() and (whole[:, :50] == image.GRAY).all()
    )
    assert image.zoned_whole(picture, [], None) is picture
    assert image.zoned(picture, [], (0.999, 0.999, 1.0, 1.0)).size, "never empty"


@pytest.mark.parametrize("how", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("outer", [None, "letterbox", "crop"])
@pytest.mark.parametrize("crop", [(0.0, 0.0, 1.0, 1.0), (0.25, 0.25, 1.0, 1.0)])
def test_evidence_lies_where_the_net_saw_it(how: Any, outer: Any, crop: Any) -> None:
    """A bright square is found in the net's picture; a map of that place is laid over the square again."""
    picture = np.zeros((90, 160, 3), np.uint8)
    picture[50:60, 95:105] = 255
    part, view = image.zoned(picture, (), crop), image.View(*crop)
    if outer:
        part, view = image.to_aspect(part, 4 / 3, outer), view.fitted(picture.shape, (1.0, 4 / 3), outer)
    x, view = image.fit(part, (48, 48), how, 1), view.fitted(picture.shape, (48, 48), how)
    evidence = np.where(x[:, :, 0] > 100, 255, 0).astype(np.uint8)
    shown = image.highlight(np.full_like(picture, 100), evidence, view)
    rows, columns = np.nonzero(shown[:, :, 0] > 130)
    assert abs(rows.mean() - 54.5) < 3 and abs(columns.mean() - 99.5) < 3
    assert np.ptp(rows) < 20 and np.ptp(columns) < 20 and (shown[:20] == 100).all()


def test_outside_of_what_the_net_sees_nothing_is_laid() -> None:
    shown = image.highlight(
        np.full((40, 80, 3), 100, np.uint8), np.full((3, 3), 255, np.uint8), image.View(0.25, 0.0, 0.75, 1.0)
    )
    assert (shown[:, :20] == 100).all() and (shown[:, 60:] == 100).all()
    assert (shown[:, 20:60] == (193, 88, 40)).all()
