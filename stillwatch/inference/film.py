"""Film: a bundle's detector and its rule over a film, in this process; and what a bundle says of rule and pace.

In: a bundle, moments of a film. Out: (seconds, probabilities) frame by frame, and the Alarm that they go to.
Called by the CLI for replay, by the loop and the checkup. It opens nothing and knows no clock but the film's.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from stillwatch import bundle
from stillwatch.inference.detector import Detector
from stillwatch.recipe import Rule
from stillwatch.rules.alarm import Alarm


def alarm_of(it: bundle.Bundle, camera: str, rule: Rule | None = None) -> Alarm:
    """A camera's Alarm: its own rule, or the bundle's. Raises UserError for a rule that does not suit the labels."""
    manifest = it.manifest
    # Of this start: ids of events must not come again when the process does
    salt = format(int(1000 * time.time()), "x")
    return Alarm(camera, manifest.labels, manifest.safe, rule_of(it, rule), threshold_of(it), salt=salt)


def rule_of(it: bundle.Bundle, own: Rule | None = None) -> Rule:
    """The rule of a camera or a plan, else that of the bundle."""
    return own or Rule.model_validate(it.manifest.rule)


def threshold_of(it: bundle.Bundle) -> float | None:
    """Of the operating point, chosen on validation for a stated rate of false alarms."""
    return (it.manifest.operating or {}).get("threshold")


def steps(
    detector: Detector, film: Iterable[tuple[float, NDArray[np.uint8]]], batch: int = 16
) -> Iterator[tuple[float, NDArray[np.float32] | None]]:
    """What the net says of a film, frame by frame: (seconds, float32 (K,)).

    film: (seconds, uint8 (H,W,3)) such as source.frames gives. A net of clips looks at the newest T frames at the rate
    that it learnt from; before it has seen T there is None.
    """
    shape = detector.bundle.manifest.input.shape
    window: deque[NDArray[np.uint8]] = deque(maxlen=shape[0] if len(shape) == 4 else 1)
    held: list[tuple[float, NDArray[np.uint8] | None]] = []

    def answers() -> Iterator[tuple[float, NDArray[np.float32] | None]]:
        seen = [picture for _, picture in held if picture is not None]
        p = iter(detector(seen)) if seen else iter(())
        yield from ((time, None if picture is None else next(p)) for time, picture in held)
        held.clear()

    pace = rate(detector.bundle.manifest) if window.maxlen != 1 else None
    due = -np.inf
    for seconds, image in film:
        if pace and seconds < due - 1e-6:
            continue
        due = seconds + 1 / pace if pace else seconds
        window.append(image)
        whole = len(window) == window.maxlen
        held.append((seconds, (image if window.maxlen == 1 else np.stack(window)) if whole else None))
        if len(held) == batch:
            yield from answers()
    yield from answers()


def rate(manifest: bundle.Manifest) -> float | None:
    """Frames a second that a net of clips learnt from."""
    data = (manifest.run.get("recipe") or {}).get("data") or {}
    return data.get("rate")
