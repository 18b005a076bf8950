"""Warns of a camera whose picture has another shape than the training pictures."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from stillwatch.media.image import How, fit, to_aspect

if TYPE_CHECKING:
    from stillwatch.inference.detector import Detector

SAME = 1.15  # times as wide: 16:9 for 16:10 and 3:2 for 4:3 pass
BRIEF = 20.0  # ms of a forward, up to which the golden frames are asked: a watch must not wait


def warning(detector: "Detector", height: int, width: int, how: How | None = None) -> str:
    """One line where its picture is unlike the training pictures; "" where `how` is set."""
    learnt, seen = detector.bundle.manifest.input.aspect, width / height
    if learnt is None or how is not None or max(seen / learnt, learnt / seen) < SAME:
        return ""
    turned = (seen < 1) != (learnt < 1)
    kinds = [f" ({'portrait' if a < 1 else 'landscape'})" if turned else "" for a in (seen, learnt)]
    lost = 1 - min(seen / learnt, learnt / seen)
    return (
        f"its picture, {width}×{height}, is {seen:.2f} times as wide as high{kinds[0]}; the training pictures were "
        f"{learnt:.2f} times{kinds[1]}, so alarms may fail; "
        f'fit = "crop" cuts {lost:.0%} of the {"width" if seen > learnt else "height"}, fit = "letterbox" adds bars'
        + _effect(detector, seen / learnt)
    )


def _effect(detector: "Detector", wider: float) -> str:
    """How many golden frames keep their answer inside a `wider` picture, by each fit."""
    *_, height, width, channels = detector.bundle.manifest.input.shape
    if detector.bundle.manifest.input.fit != "stretch" or detector.choice["ms"] > BRIEF:
        return ""
    frames, _ = detector.bundle.golden()
    flat = frames.reshape(-1, height, width, channels)
    around = [to_aspect(frame, wider * width / height, "letterbox", cv2.BORDER_REPLICATE) for frame in flat]
    labels, kept = len(detector.labels), {}
    before = detector.predict(frames)[:, :labels].argmax(1)
    for how in ("stretch", "letterbox", "crop"):
        shown = [fit(to_aspect(x, width / height, how), (height, width), "stretch", channels) for x in around]
        kept[how] = int((detector.predict(np.stack(shown).reshape(frames.shape))[:, :labels].argmax(1) == before).sum())
    return (
        f". Of {len(frames)} golden frames in the middle of such a picture {kept['stretch']} keep their answer as it "
        f"is, {kept['letterbox']} with letterbox, {kept['crop']} with crop"
    )


def shaped(
    detector: "Detector", film: Iterable[tuple[float, NDArray[np.uint8]]], how: How | None, say: Callable[[str], None]
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """(seconds, uint8 (H,W,3)) in the training pictures' shape; says once where it is unlike."""
    aspect = detector.bundle.manifest.input.aspect
    for number, (seconds, picture) in enumerate(film):
        if not number and (words := warning(detector, picture.shape[0], picture.shape[1], how)):
            say(f"warning: {words}")
        yield seconds, to_aspect(picture, aspect, how) if aspect and how else picture
