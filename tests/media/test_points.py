"""Face points: what openings and angles a drawn set of points has, whatever its size, place and turn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillwatch.media import faces, points


def drawn(eyes: float = 0.3, mouth: float = 0.1) -> np.ndarray:
    """The points that are used of a face that looks straight ahead; the others lie in its middle."""
    at = np.zeros((points.COUNT, 3), np.float32)
    for (a, u, u2, b, d2, d), x in ((points.LEFT_EYE, -40), (points.RIGHT_EYE, 10)):
        at[[a, b]] = (x, -30, 0), (x + 30, -30, 0)
        at[[u, u2]] = (x + 10, -30 - 15 * eyes, 0), (x + 20, -30 - 15 * eyes, 0)
        at[[d, d2]] = (x + 10, -30 + 15 * eyes, 0), (x + 20, -30 + 15 * eyes, 0)
    a, top, b, bottom = points.MOUTH
    at[[a, b, top, bottom]] = (-20, 40, 0), (20, 40, 0), (0, 40 - 20 * mouth, 0), (0, 40 + 20 * mouth, 0)
    at[list(points.CHEEKS)] = (-60, 0, 0), (60, 0, 0)
    at[list(points.MIDLINE)] = (0, -80, 0), (0, 80, 0)
    return at


def spun(at: np.ndarray, yaw: float, pitch: float, roll: float) -> np.ndarray:
    a, b, c = map(math.radians, (yaw, pitch, roll))
    y = [[math.cos(a), 0, -math.sin(a)], [0, 1, 0], [math.sin(a), 0, math.cos(a)]]
    x = [[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]]
    z = [[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]]
    return (at @ (np.array(z) @ np.array(x) @ np.array(y)).T).astype(np.float32)


@given(
    st.floats(0.02, 0.5), st.floats(0, 1), st.floats(-50, 50), st.floats(-30, 30), st.floats(-30, 30),
    st.floats(0.2, 5), st.floats(-500, 500),
)  # fmt: skip
def test_openings_do_not_depend_on_where_and_how_the_head_is(
    eyes: float, mouth: float, yaw: float, pitch: float, roll: float, size: float, place: float
) -> None:
    at = spun(drawn(eyes, mouth), yaw, pitch, roll) * size + np.array([place, -place, 0])
    found = points.face(at.astype(np.float32), 0.9).signals
    assert found.mouth == pytest.approx(mouth, abs=0.02)
    level = points.face((spun(drawn(eyes), 0, 0, roll) * size + place).astype(np.float32), 0.9).signals
    assert (level.left_eye, level.right_eye, level.eyes) == pytest.approx((eyes,) * 3, rel=0.02)
    turned = points.face(spun(drawn(eyes), yaw, 0, roll), 0.9).signals
    assert turned.eyes > 0.99 * eyes, "a head that turns shuts no eye"


@pytest.mark.parametrize("turn", [(30, 0, 0), (-30, 0, 0), (0, 20, 0), (0, -20, 0), (0, 0, 15), (0, 0, -15)])
def test_the_angles_of_a_turned_head_have_their_sign_and_size(turn: tuple[int, int, int]) -> None:
    assert points.angles(spun(drawn(), *turn)) == pytest.approx(turn, abs=0.5)


def test_a_box_lies_round_the_points() -> None:
    box = points.face(drawn() + np.float32([100, 200, 0]), 1.0).box
    assert box == pytest.approx((40, 120, 120, 160))


@given(st.floats(30, 200), st.floats(30, 150), st.floats(20, 300), st.floats(-0.6, 0.6))
def test_what_is_found_in_a_square_lies_where_it_was_in_the_picture(
    x: float, y: float, side: float, angle: float
) -> None:
    square = faces.Square(x, y, side, angle)
    middle = square.back(np.float32([[faces.CROP / 2, faces.CROP / 2, 0], [faces.CROP, faces.CROP / 2, 0]]))
    assert middle[0, :2] == pytest.approx((x, y), abs=1e-3)
    edge = (x + side / 2 * math.cos(angle), y + side / 2 * math.sin(angle))
    assert middle[1, :2] == pytest.approx(edge, abs=1e-2)


def test_a_square_shows_its_part_of_the_picture_upright() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    image[90:110, 190:210] = 255  # to the right of the middle of the square
    cut = faces.Square(150, 100, 192, 0.0).cut(image)
    assert cut[96, 96 + 50].min() == 255 and cut[96 + 50, 96].max() == 0
    turned = faces.Square(150, 100, 192, math.pi / 2).cut(image)  # a head that lies on its right ear
    assert turned[96 - 50, 96].min() == 255


def test_the_next_picture_is_cut_where_the_face_was() -> None:
    at = spun(drawn(), 0, 0, 20) + np.float32([150, 120, 0])
    square = faces.square_round(at)
    upright = np.linalg.solve(square._turn, (at[:, :2] - square._corner).T).T  # in crop pixels
    assert upright.min() > 0 and upright.max() < faces.CROP
    assert upright[263, 1] == pytest.approx(upright[33, 1], abs=0.01), "the eyes are level"
