"""The person filter: the two forms of answer, every nth picture, misses in a row, and files that are refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import person_net
from onnx import TensorProto, helper

from stillwatch.errors import UserError
from stillwatch.inference import people
from stillwatch.inference.people import People

BRIGHT, DARK = np.full((6, 8, 3), 200, np.uint8), np.zeros((6, 8, 3), np.uint8)


def test_the_score_is_the_pictures_brightness_without_the_border(tmp_path: Path) -> None:
    find = People(person_net(tmp_path / "p.onnx", size=(6, 8)))
    assert find.score(BRIGHT) == pytest.approx(200 / 255, abs=1e-4)
    assert find.score(BRIGHT[:, :4]) == pytest.approx((200 + people.GRAY) / 2 / 255, abs=1e-4)
    assert find.score(BRIGHT[:, :, :1]) == pytest.approx(200 / 255, abs=1e-4)


def test_every_nth_picture_is_asked_and_a_few_misses_are_forgiven(tmp_path: Path) -> None:
    find = People(person_net(tmp_path / "p.onnx"), every=2)
    assert all(find(BRIGHT) for _ in range(4))
    assert (find.checked, find.skipped) == (2, 0)
    answers = [find(DARK) for _ in range(2 * people.MISSES)]
    assert answers == [True] * (2 * people.MISSES - 2) + [False] * 2
    assert (find.checked, find.skipped) == (2 + people.MISSES, 2)
    assert [find(BRIGHT), find(DARK), find(DARK)] == [True, True, True]
    for _ in range(2 * people.MISSES):
        find(DARK)
    assert not find(DARK)
    find.clear()
    assert find(DARK), "after a gap somebody may be there"


def test_yolox_boxes_are_objectness_times_the_first_class_of_a_bgr_picture(tmp_path: Path) -> None:
    # 64 + 16 + 4 boxes at strides 8, 16, 32, each: four sides, objectness = blue / 255, person = red / 255, another 1
    weights = np.zeros((3, 7), np.float32)
    weights[0, 4] = weights[2, 5] = 1 / 255
    bias = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    find = People(person_net(tmp_path / "p.onnx", (64, 64), weights, bias, boxes=84))
    image = np.zeros((10, 10, 3), np.uint8)
    image[:] = (255, 0, 51)
    assert find.score(image) == pytest.approx(0.2, abs=1e-4)
    with pytest.raises(UserError, match=r"its answer is \(1, 85, 7\); wanted: \(1,84,5\+classes\)"):
        People(person_net(tmp_path / "q.onnx", (64, 64), weights, bias, boxes=85))


def test_the_second_of_two_is_the_persons(tmp_path: Path) -> None:
    weights = np.array([[0, 0.5], [0, 0], [0, 0.5]], np.float32) / 255
    assert People(person_net(tmp_path / "p.onnx", (6, 8), weights)).score(BRIGHT) == pytest.approx(200 / 255, abs=1e-4)


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    person_net(tmp_path / "logit.onnx", bias=np.array([-3], np.float32))
    person_net(tmp_path / "nan.onnx", bias=np.array([np.nan], np.float32))
    person_net(tmp_path / "classes.onnx", weights=np.zeros((3, 5), np.float32))
    person_net(tmp_path / "free.onnx", size=("height", "width"))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("Neg", ["a"], [name]) for name in "bc"], "two", ports[:1], ports[1:])
    onnx.save(
        helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "two.onnx"
    )
    for name, words in {
        "none": "no such file", "text": "cannot read it", "logit": "wanted: a probability", "nan": "a probability",
        "classes": r"its answer is \(1, 5\)", "free": "of a fixed size", "two": "has 2 outputs",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=words) as found:
            People(tmp_path / f"{name}.onnx")
        assert str(found.value).startswith(f"{tmp_path / name}.onnx: ") and "\n" not in str(found.value)
