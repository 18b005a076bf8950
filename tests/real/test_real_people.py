"""The person filter with YOLOX-nano on real films: drivers are found; of a bus, what is saved and what is lost."""

import os
from pathlib import Path

import numpy as np
import pytest
from bundles import made, onnx_net, pictures

from stillwatch.evaluation.replay import read_truth, replay
from stillwatch.inference.detector import Detector, steps
from stillwatch.inference.people import People
from stillwatch.media.image import fit
from stillwatch.monitor.cameras import source
from stillwatch.recipe import Rule
from stillwatch.rules.alarm import Alarm

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


@pytest.mark.parametrize(("confidence", "saved", "lost"), [(0.3, 0.20, 0.25), (0.1, 0.10, 0.0)])
def test_replay_says_what_the_filter_saves_and_what_of_the_fight_it_loses(
    tmp_path: Path, confidence: float, saved: float, lost: float
) -> None:
    there("demo_scfd_g10_timeline.mp4", 5, 400)  # or skip
    shape, labels, film = (112, 160, 3), ("NonViolence", "Violence"), FILMS / "demo_scfd_g10_timeline.mp4"
    toy = made(tmp_path, {"model.onnx": onnx_net(tmp_path / "m.onnx", shape)}, frames=pictures(8, shape))
    people, truth = People(MODEL, 5, confidence), read_truth(film.with_suffix(".json"), labels)
    looks = steps(Detector(toy), source.frames(str(film), fps=10.0), people=people)
    report = replay(looks, Alarm("bus", labels, labels[:1], Rule(profile="cctv")), truth, labels, labels[:1])
    (fight,) = (one["end_s"] - one["start_s"] for one in report["incidents"])
    print(f"confidence {confidence}: {report['skipped']} of {report['frames']} looks saved, {people.checked} searches, "
          f"{report['skipped_unsafe']} of the fight's {10 * fight:.0f} lost")  # fmt: skip
    assert report["skipped"] == people.skipped >= saved * report["frames"]
    assert report["skipped_unsafe"] <= lost * 10 * fight
