"""The person filter with YOLOX-nano on real films: people are found, an empty bus is skipped, a fight is not."""

import os
from pathlib import Path

import numpy as np
import pytest

from stillwatch.inference.people import People
from stillwatch.media.image import fit
from stillwatch.monitor.cameras import source

pytestmark = pytest.mark.real
FILMS = Path(os.environ.get("STILLWATCH_DATA", "")) / "videos"
MODEL = Path(os.environ.get("STILLWATCH_WEIGHTS", "")) / "yolox_nano.onnx"


def there(name: str, every: int, step: int = 3) -> tuple[np.ndarray, np.ndarray, People]:
    """Seconds of every `step`th frame, and whether somebody is there, in pictures of a small net's size."""
    if not (FILMS / name).is_file() or not MODEL.is_file():
        pytest.skip(f"STILLWATCH_DATA has no videos/{name}, or STILLWATCH_WEIGHTS no {MODEL.name}")
    people = People(MODEL, every)
    found = [(at, people(fit(image, (112, 160)))) for at, image in list(source.frames(str(FILMS / name)))[::step]]
    return np.array([at for at, _ in found]), np.array([one for _, one in found]), people


@pytest.mark.parametrize(
    "name", ["incluit_video2_eyesclosed.mp4", "incluit_driver_actions1_640x360_h264.mp4", "incluit_video3_headturn.mp4"]
)
def test_a_driver_is_always_there(name: str) -> None:
    _, found, people = there(name, 5)
    assert found.all() and people.skipped == 0


def test_an_empty_bus_is_skipped_and_most_of_a_fight_is_not() -> None:
    seconds, found, people = there("demo_scfd_g10_timeline.mp4", 5)
    fight = (seconds >= 4.1) & (seconds < 10.6)
    assert found[fight].mean() > 0.75
    assert not found[seconds > 14.2].any(), "the last two seconds show nobody"
    assert people.skipped / len(found) > 0.05 and people.checked == -(-len(found) // 5)
