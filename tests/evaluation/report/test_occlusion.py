"""Hiding the eyes lowers what is read in them, and an equal patch elsewhere does not: on drawn drivers."""

import numpy as np
from numpy.typing import NDArray

from stillwatch.evaluation.report.occlusion import hiding
from stillwatch.media import synthetic
from stillwatch.media.points import LEFT_EYE, MOUTH, RIGHT_EYE

SIZE = (96, 128)
LABELS = ("SafeDriving", "SleepyDriving", "Yawn")
KEYS = [(label, person, number) for label in LABELS for person in range(3) for number in range(6)]
Y = np.array([LABELS.index(label) for label, _, _ in KEYS])
GROUP = [f"person-{person}" for _, person, _ in KEYS]


def regions() -> NDArray[np.float64]:
    found = []
    for key in KEYS:
        at = synthetic.still_face(*key, SIZE).points[:, :2] / (SIZE[1], SIZE[0])
        middles = [at[list(part)].mean(0) for part in (LEFT_EYE, RIGHT_EYE, MOUTH)]
        found.append([(*middle, 0.03, 0.04) for middle in middles])
    return np.array(found)


def test_eyes_count_where_they_are_looked_at_and_a_patch_elsewhere_does_not() -> None:
    x = np.stack([synthetic.still("cabin", *key, SIZE)[..., :1] for key in KEYS])[:, None]
    at, before = regions(), x.copy()
    at[0] = np.nan  # a driver whose face was not found
    numbers = {picture.tobytes(): n for n, picture in enumerate(x)}
    asked: list[int] = []

    def predict(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Sleepy is as likely as its eyes stand out from the skin; all else is Safe."""
        if pictures[-1].tobytes() in numbers:  # as they are: the covered ones follow in the same order
            asked[:] = [numbers[picture.tobytes()] for picture in pictures]
        p = np.zeros((len(pictures), 3))
        for n, picture in enumerate(pictures[:, 0, :, :, 0].astype(float)):
            (ax, ay), (bx, by) = at[asked[n], :2, :2] * (SIZE[1], SIZE[0])
            strip = picture[round(min(ay, by)) - 2 : round(max(ay, by)) + 3, round(ax) - 3 : round(bx) + 4]
            p[n, 1] = min(1.0, strip.std() / 20)
        p[:, 0] = 1 - p[:, 1]
        return p

    found = {row.label: row for row in hiding(predict, x, Y, GROUP, at, LABELS)}
    assert np.array_equal(x, before), "the pictures themselves stay as they are"
    sleepy, safe = found["SleepyDriving"], found["SafeDriving"]
    assert (sleepy.samples, safe.samples, sleepy.groups) == (18, 17, 3)
    assert sleepy.eyes < -0.3 * sleepy.p and abs(sleepy.elsewhere) < 0.05 and sleepy.lower == 3
    assert safe.eyes > 0.1 > safe.elsewhere
    assert found["Yawn"].eyes == found["Yawn"].elsewhere == 0


def test_a_class_without_faces_is_left_out() -> None:
    at = np.full((2, 3, 4), np.nan)
    x = np.zeros((2, 1, 8, 8, 1), np.uint8)
    assert hiding(lambda x: np.ones((len(x), 2)), x, np.zeros(2, int), "ab", at, "ab") == []
