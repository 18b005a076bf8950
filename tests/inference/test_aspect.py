"""A camera's shape beside the training pictures': when it is said, and what cutting or bars would change."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import FRAMES, made, onnx_net

from stillwatch.inference import aspect
from stillwatch.inference.detector import Detector


def detector(folder: Path, **takes: Any) -> Detector:
    folder.mkdir(exist_ok=True)
    return Detector(made(folder, {"model.onnx": onnx_net(folder / "m.onnx")}, **takes))


def test_only_another_shape_is_said(tmp_path: Path) -> None:
    learnt = detector(tmp_path, aspect=4 / 3)
    for size in ((480, 640), (1080, 1620), (1024, 1280)):  # 4:3, 3:2, 5:4
        assert aspect.warning(learnt, *size) == ""
    wide = aspect.warning(learnt, 720, 1280)
    assert wide.startswith(
        "its picture, 1280×720, is 1.78 times as wide as high; the training pictures were 1.33 times"
    )
    assert 'fit = "crop" cuts 25% of the width' in wide
    upright = aspect.warning(learnt, 640, 480)
    assert "0.75 times as wide as high (portrait)" in upright and "1.33 times (landscape)" in upright
    assert "cuts 44% of the height" in upright
    assert aspect.warning(learnt, 640, 480, "stretch") == ""
    assert aspect.warning(detector(tmp_path / "old"), 640, 480) == ""  # a bundle of 0.1.0 knows no shape


def test_the_effect_on_the_golden_frames_is_measured(tmp_path: Path) -> None:
    bars = detector(tmp_path, aspect=4 / 3, fit="stretch")
    said = aspect.warning(bars, 720, 1280)
    count = len(FRAMES)
    assert f"Of {count} golden frames in the middle of such a picture" in said
    assert said.endswith(f"{count} with crop")  # it takes the borders away again
    bars.choice["ms"] = 100.0  # a watch cannot wait for that
    assert "golden" not in aspect.warning(bars, 720, 1280)


@pytest.mark.parametrize("how", [None, "stretch", "crop", "letterbox"])
def test_a_film_is_brought_to_the_shape(tmp_path: Path, how: Any) -> None:
    said: list[str] = []
    film = [(0.0, np.full((30, 80, 3), 9, np.uint8)), (0.1, np.full((30, 80, 3), 9, np.uint8))]
    frames = [picture for _, picture in aspect.shaped(detector(tmp_path, aspect=2.0), film, how, said.append)]
    assert [frame.shape[:2] for frame in frames] == 2 * [{"crop": (30, 60), "letterbox": (40, 80)}.get(how, (30, 80))]
    assert len(said) == (how is None)
    assert (frames[0] == 0).any() == (how == "letterbox")
