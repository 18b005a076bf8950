"""Pictures -> the driver's face: box, 468 points, eyelids, mouth, angles."""

import math
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from stillwatch.bundle import Input
from stillwatch.errors import UserError
from stillwatch.inference import runtimes
from stillwatch.inference.timing import race
from stillwatch.media import image as pixels
from stillwatch.media import weights
from stillwatch.media.decode import Picture
from stillwatch.media.faces import CROP, Square, YuNet, square_of, square_round
from stillwatch.media.points import COUNT, Face, Signals, face

SIDE = 320  # pixels of the longer side in which the driver is sought: near the camera, so half of what blur takes
SURE = 0.5  # confidence below which the last face is lost
AGAIN = 5.0  # s after which a face that is followed is sought again: another one may be nearer now
RETRY = 0.2  # s between two searches where nobody is
# The proof of a runtime: on a drawn gradient (probe()) these points lie here, in crop pixels. Written by ONNX Runtime
PROVED = (1, 33, 263, 13, 14, 152)
GOLDEN = np.array([
    [96.09, 115.31, -27.17], [58.36, 86.27, 8.24], [135.03, 85.46, 7.47],
    [97.06, 131.80, -9.73], [97.07, 139.26, -7.15], [98.89, 168.85, 4.35],
])  # fmt: skip
TOLERANCE = 0.05  # pixels
Reader: TypeAlias = Callable[[Picture, float], Face | None]  # (uint8 (H,W,3) RGB, s)


class Choice(NamedTuple):
    runtime: str
    ms: float  # of one face


class FaceReader:
    """Follows one camera's driver; for one thread. detect: the face detector."""

    def __init__(self, threads: int = 1):
        """Raises UserError."""
        self.detect = YuNet(SIDE)
        self.choice, self._net = fastest(weights.find(weights.POINTS), threads)
        self._last: Face | None = None
        self._sought = -math.inf

    def __call__(self, image: Picture, seconds: float) -> Face | None:
        """image: uint8 (H,W,3) RGB of any size. seconds: rising. None: no face."""
        if seconds < self._sought:  # a film began again
            self._last, self._sought = None, -math.inf
        since = seconds - self._sought
        followed = self._read(image, square_round(self._last.points)) if self._last else None
        self._last = followed if followed and since < AGAIN else None
        if self._last is None and since >= RETRY:
            self._sought = seconds
            found = sorted(self.detect(image), key=lambda one: one.box.w * one.box.h)
            nearest = self._read(image, square_of(found[-1])) if found else None
            self._last = nearest or followed
        return self._last

    def begin(self, image: Picture, square: Square) -> None:
        self._last = self._read(image, square)

    def _read(self, image: Picture, square: Square) -> Face | None:
        out = self._net(square.cut(image)[None])[0]
        confidence = 1 / (1 + math.exp(-min(max(float(out[-1]), -50), 50)))
        return face(square.back(out[:-1].reshape(COUNT, 3)), confidence) if confidence >= SURE else None


class NetFile(NamedTuple):
    """A net for the face, and its proved runtime."""

    path: str
    runtime: str
    takes: Input


def beside(read: Reader, net: NetFile | None) -> Reader:
    """The reader, with the net's words on each face as Signals.said. Raises UserError."""
    if net is None:
        return read
    predict, (height, width, channels) = runtimes.open(Path(net.path), net.runtime, net.takes.shape), net.takes.shape

    def both(image: Picture, seconds: float) -> Face | None:
        face = read(image, seconds)
        if face is None:
            return None
        left, top, right, bottom = face.box.around().inside((image.shape[1], image.shape[0]))
        x = pixels.fit(image[top:bottom, left:right], (height, width), net.takes.fit, channels)
        return face._replace(signals=face.signals._replace(said=tuple(map(float, predict(x[None])[0]))))

    return both


def fastest(path: Path, threads: int = 1) -> tuple[Choice, runtimes.Predict]:
    """The fastest runtime here that gives the golden points. Raises UserError."""
    nets, reasons = dict[str, runtimes.Predict](), list[str]()
    x = probe()[None]
    for name in runtimes.readers(path):
        try:
            net = runtimes.open(path, name, (CROP, CROP, 3), threads, 1, 2, 1 / 255)
            off = float(np.abs(net(x)[0, :-1].reshape(COUNT, 3)[list(PROVED)] - GOLDEN).max())
        except UserError as error:
            reasons.append(str(error))
            continue
        if off <= TOLERANCE:  # so written that a NaN is not faithful
            nets[name] = net
        else:
            reasons.append(f"{name}: its points lie {off:.2g} pixels off")
    if not nets:
        raise UserError(f"{path}: no runtime here reads faces rightly: {'; '.join(reasons) or 'none is installed'}")
    times = race({name: partial(net, x) for name, net in nets.items()}, 5, 1)
    name = min(times, key=lambda one: float(np.median(times[one])))
    return Choice(name, 1e3 * float(np.median(times[name]))), nets[name]


def probe() -> Picture:
    """uint8 (CROP,CROP,3): a face of three ellipses."""
    y, x = (np.indices((CROP, CROP)) - CROP / 2) / (CROP / 2)
    head = 90 + 100 * (x**2 / 0.4 + y**2 / 0.55 < 1)
    for middle, down, wide, tall in ((-0.26, -0.12, 0.12, 0.05), (0.26, -0.12, 0.12, 0.05), (0, 0.36, 0.2, 0.06)):
        head = head - 120 * (((x - middle) / wide) ** 2 + ((y - down) / tall) ** 2 < 1)
    return np.repeat(head[:, :, None], 3, 2).astype(np.uint8)


def drawn(threads: int = 1, net: NetFile | None = None) -> Callable[[], tuple[float, Signals | None]]:
    """For a bench: each call reads a drawn 640×360 driver at 25 fps -> (s, signals)."""
    image, reader, times = np.full((360, 640, 3), 90, np.uint8), FaceReader(threads), count()
    image[84 : 84 + CROP, 224 : 224 + CROP] = probe()
    reader.begin(image, Square(320, 180, CROP, 0.0))
    read = beside(reader, net)

    def next_one() -> tuple[float, Signals | None]:
        seconds = next(times) / 25
        seen = read(image, seconds)
        return seconds, seen and seen.signals

    return next_one


def found() -> str:
    """Which weights are here, in words."""
    there = {name: weights.local(name) for name in (weights.YUNET, weights.POINTS)}
    if missing := [name for name, path in there.items() if path is None]:
        return f"not read here: no {' and no '.join(missing)} in the folder that STILLWATCH_WEIGHTS names, or the cache"
    try:
        choice, _ = fastest(weights.find(weights.POINTS))
    except UserError as error:
        return f"not read here: {error}"
    return f"read by {there[weights.POINTS]} in {choice.runtime}, {choice.ms:.1f} ms each, found by {weights.YUNET}"
