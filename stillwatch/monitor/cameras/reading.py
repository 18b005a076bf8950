"""The driver's face in a camera's own process: at the camera's rate, within half of a core."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import cv2

from stillwatch.media import synthetic, weights
from stillwatch.media.decode import Picture
from stillwatch.media.points import Box, Face
from stillwatch.monitor.cameras.source import ROUND, Toy, kind
from stillwatch.recipe import Rule
from stillwatch.rules.signs import Reading

if TYPE_CHECKING:  # a child without it stays small
    from stillwatch.inference.face_reader import NetFile, Reader

KEPT = 256  # readings that wait for a frame to travel with


def wanted(rule: Rule, source: str) -> bool:
    """Whether a camera's faces are read; drawn drivers need no weights. Raises UserError."""
    if not source.startswith("toy://"):
        return weights.wanted(rule)
    asked = rule.faces == "yes" or (rule.faces == "auto" and rule.profile == "driver")
    return asked and Toy.parse(source).scene == "cabin"


def reader(source: str, net: "NetFile | None" = None) -> "Reader":
    """A drawn driver's is drawn too. net: speaks of each face beside it. Raises UserError."""
    toy = Toy.parse(source) if kind(source) == "toy" else None
    drawn = toy and synthetic.reader(toy.seconds or ROUND, toy.seed, toy.size)
    if drawn and net is None:
        return drawn
    from stillwatch.inference import face_reader

    return face_reader.beside(drawn or face_reader.FaceReader(), net)


class FaceStream:
    """The decoding thread looks, another may take."""

    def __init__(self, read: "Reader | None", live: bool):
        self.read, self._live = read, live
        self.count, self.spent = 0, 0.0  # pictures read, s that it took
        self.face: Face | None = None
        self._waiting: deque[Reading] = deque(maxlen=KEPT)
        self._free = 0.0  # time.monotonic() from which on the next one may be read

    def look(self, picture: Callable[[], Picture], seconds: float, within: float) -> None:
        """seconds: on the Alarm's clock. within: the source's own."""
        start = time.monotonic()
        if self.read is None or (self._live and start < self._free):
            return
        try:
            self.face = self.read(picture(), within)
        except (cv2.error, ValueError, MemoryError):  # a picture that cannot be read has no face
            self.face = None
        now = time.monotonic()
        self._free = now + (now - start)
        self.count, self.spent = self.count + 1, self.spent + now - start
        self._waiting.append(Reading(seconds, self.face and self.face.signals))

    def take(self, until: float) -> list[Reading]:
        found = []
        while self._waiting and self._waiting[0].seconds <= until:
            found.append(self._waiting.popleft())
        return found

    def tapped(self, film: Iterable[tuple[float, Picture]]) -> Iterator[tuple[float, Picture]]:
        """The same (s, uint8 (H,W,3)), each read as it passes."""
        for seconds, image in film:
            self.look(lambda image=image: image, seconds, seconds)  # type: ignore[misc]
            yield seconds, image

    def forget(self) -> None:
        self._waiting.clear()
        self.face = None

    def boxes(self, scale: float) -> list[Box]:
        """Of the followed face, in a picture `scale` times as large."""
        return [] if self.face is None else [Box(*(scale * value for value in self.face.box))]

    def draw(self, image: Picture, scale: float) -> Picture:
        """A copy of uint8 (H,W,3), `scale` times as large as what was read, with the points on it."""
        image = image.copy()
        for x, y, _ in () if self.face is None else (self.face.points * scale).tolist():
            cv2.circle(image, (round(x), round(y)), max(1, round(image.shape[0] / 480)), (64, 255, 128), -1)
        return image
