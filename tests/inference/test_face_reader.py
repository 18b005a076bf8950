"""The face reader: whom it follows, when it looks anew, and which runtime it believes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import by_hand, onnx_net
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stillwatch.bundle import Input
from stillwatch.errors import UserError
from stillwatch.inference import face_reader, runtimes
from stillwatch.inference.face_reader import FaceReader, NetFile, beside
from stillwatch.media import image, synthetic, weights
from stillwatch.media.faces import CROP, Found
from stillwatch.media.points import COUNT, Box

DARK, BRIGHT = np.zeros((240, 320, 3), np.uint8), np.full((240, 320, 3), 255, np.uint8)
NEAR, FAR = (Found(Box(x, 60, w, w), ((x + 10, 80), (x + 30, 80))) for x, w in ((100, 80), (200, 40)))


def net_file(path: Path) -> Path:
    """Gives the same points for every picture, and the more confidence the brighter it is; two outputs."""
    spread = np.linspace(60, 130, 3 * COUNT, dtype=np.float32)[None]
    spread[0, :: COUNT // 4] = 40
    for place, known in zip(face_reader.PROVED, face_reader.GOLDEN, strict=True):
        spread[0, 3 * place : 3 * place + 3] = known
    constants = {"points": spread, "axes": np.array([1, 2, 3]), "gain": np.float32([[40]]), "less": np.float32([[10]])}
    constants |= {"shape": np.array([-1, 1]), "none": np.float32([[0]])}
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["flat"], keepdims=0),
        helper.make_node("Reshape", ["flat", "shape"], ["mean"]),
        helper.make_node("Mul", ["mean", "gain"], ["more"]),
        helper.make_node("Sub", ["more", "less"], ["score"]),
        helper.make_node("Mul", ["mean", "none"], ["nothing"]),
        helper.make_node("Add", ["points", "nothing"], ["landmarks"]),
    ]
    ports = {"image": ["n", CROP, CROP, 3], "landmarks": ["n", 3 * COUNT], "score": ["n", 1]}
    image, *outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ports.items())
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", [image], outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaceReader:
    monkeypatch.setenv("STILLWATCH_WEIGHTS", str(tmp_path))
    net_file(tmp_path / weights.POINTS)
    monkeypatch.setattr(face_reader, "YuNet", Detect)
    return FaceReader()


class Detect:
    def __init__(self, side: int) -> None:
        self.seen, self.count = [FAR, NEAR], 0

    def __call__(self, image: NDArray[np.uint8]) -> list[Found]:
        self.count += 1
        return self.seen


def test_the_largest_face_is_the_drivers_and_it_is_followed_without_a_search(reader: FaceReader) -> None:
    for tick in range(40):
        face = reader(BRIGHT, tick / 10)
        assert face is not None and face.points.shape == (COUNT, 3) and face.signals.confidence > 0.99
    assert reader.detect.count == 1  # type: ignore[attr-defined]
    first = FaceReader()(BRIGHT, 0.0)
    assert first is not None and abs(first.points[:, 0].mean() - 140) < 60, "in the picture's pixels, near the box"
    for tick in range(40, 80):
        reader(BRIGHT, tick / 10)
    assert reader.detect.count == 2, "sought again after some seconds"  # type: ignore[attr-defined]


def test_a_lost_face_is_no_face_and_is_sought_at_most_five_times_a_second(reader: FaceReader) -> None:
    assert reader(BRIGHT, 0.0)
    seen = [reader(DARK, 1 + tick / 25) for tick in range(25)]
    assert seen == [None] * 25
    assert 5 <= reader.detect.count - 1 <= 6  # type: ignore[attr-defined]
    assert reader(BRIGHT, 3.0)


def test_nobody_in_the_picture_is_no_face(reader: FaceReader) -> None:
    reader.detect.seen = []  # type: ignore[attr-defined]
    assert reader(BRIGHT, 0.0) is None


def test_a_film_that_begins_again_is_read_from_its_beginning(reader: FaceReader) -> None:
    assert reader(BRIGHT, 100.0) and reader(BRIGHT, 0.0)
    assert reader.detect.count == 2  # type: ignore[attr-defined]


def test_the_fastest_faithful_runtime_is_taken(
    reader: FaceReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reader.choice.runtime in runtimes.readers(tmp_path / weights.POINTS)
    monkeypatch.setattr(face_reader, "GOLDEN", face_reader.GOLDEN + 1)
    with pytest.raises(UserError, match=r"no runtime here reads faces rightly: .*1 pixels off"):
        FaceReader()


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert face_reader.found().startswith(f"not read here: no {weights.YUNET} and no {weights.POINTS}")
    monkeypatch.setenv("STILLWATCH_WEIGHTS", str(tmp_path))
    (tmp_path / weights.YUNET).touch()
    net_file(tmp_path / weights.POINTS)
    assert face_reader.found().startswith(f"read by {tmp_path / weights.POINTS} in ")
    assert onnx.load(tmp_path / weights.POINTS).graph.output[0].name == "landmarks"


def test_a_net_beside_the_reader_is_shown_the_face_at_the_picture_s_own_pixels(tmp_path: Path) -> None:
    """The toy's drawn reader, whose faces are known."""
    net = NetFile(str(onnx_net(tmp_path / "face.onnx")), "onnxruntime", Input(shape=(6, 8, 3), fit="letterbox"))
    drawn = synthetic.reader(10, 0, (180, 240))
    read, pictures = beside(drawn, net), synthetic.clip("cabin", 1, 5, 0, (180, 240))
    assert beside(drawn, None) is drawn
    for number, (_, picture, _) in enumerate(pictures):
        face, plain = read(picture, number / 5), drawn(picture, number / 5)
        assert face is not None and plain is not None and face.signals._replace(said=()) == plain.signals
        x, y, w, h = plain.box
        half = 0.8 * max(w, h)
        left, right = max(0, int(x + w / 2 - half)), min(240, int(x + w / 2 + half))
        top, bottom = max(0, int(y + h / 2 - half)), min(180, int(y + h / 2 + half))
        cut = image.fit(picture[top:bottom, left:right], (6, 8), "letterbox")
        assert face.signals.said == pytest.approx(by_hand(cut[None])[0], abs=1e-4)
    assert beside(lambda image, seconds: None, net)(picture, 0.0) is None
