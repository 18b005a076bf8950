"""Pictures -> is anybody there, by an ONNX detector of one's own."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import UserError, one_line
from stillwatch.inference import runtimes
from stillwatch.media.image import fit

STRIDES = (8, 16, 32)  # of YOLOX
GRAY = 114  # YOLOX's border
MISSES = 3  # pictures in a row without a person, before nobody is there: in a fight YOLOX-nano misses every second one


class People:
    """Is a person in one camera's pictures? Asks every nth, and keeps its answer between."""

    def __init__(self, model: Path, every: int = 5, confidence: float = 0.3, threads: int = 1):
        """model: ONNX; one picture of fixed size, pixels 0..255: (1,3,H,W) BGR as YOLOX, or (1,H,W,3) RGB -> YOLOX's
        (1,boxes,5+classes), person as class 0, or a person's probability: (1,1), or the second of (1,2). Raises
        UserError.
        """
        self.every, self.confidence = every, confidence
        self.checked = self.skipped = 0  # pictures asked; pictures without a person
        self.clear()
        sides, self._run = runtimes.foreign(model, threads)
        self._planar = sides[0] == 3
        self._size = sides[1:] if self._planar else sides[:2]
        if len(sides) != 3 or 3 not in (sides[0], sides[-1]) or not all(isinstance(n, int) and n > 0 for n in sides):
            shape = ",".join(map(str, sides))
            raise UserError(f"{model}: takes (n,{shape}); wanted: (1,3,H,W) or (1,H,W,3) of a fixed size")
        try:
            p = self.score(np.zeros((*self._size, 3), np.uint8))
        except Exception as error:  # the runtime's own kinds
            raise UserError(f"{model}: cannot run: {one_line(error)}") from error
        if not 0 <= p <= 1:  # so written that a NaN is refused
            raise UserError(f"{model}: its score of an empty picture is {p:.3g}; wanted: a probability")

    def clear(self) -> None:
        """After a gap."""
        self._since, self._missed = 0, 0

    def __call__(self, image: NDArray[np.uint8]) -> bool:
        """image: uint8 (H,W), (H,W,1) or (H,W,3) RGB of any size."""
        if self._since == 0:
            self._missed = 0 if self.score(image) >= self.confidence else self._missed + 1
            self.checked += 1
        self._since = (self._since + 1) % self.every
        self.skipped += self._missed >= MISSES
        return self._missed < MISSES

    def score(self, image: NDArray[np.uint8]) -> float:
        """The surest person's. Raises ValueError for an unexpected output."""
        (height, width), (h, w) = self._size, image.shape[:2]
        scale = min(height / h, width / w)
        canvas = np.full((height, width, 3), GRAY, np.uint8)
        h, w = max(1, round(h * scale)), max(1, round(w * scale))
        canvas[:h, :w] = fit(image, (h, w))
        x = np.ascontiguousarray(canvas[:, :, ::-1].transpose(2, 0, 1) if self._planar else canvas)
        out = self._run(x[None])
        if out.shape in ((1, 1), (1, 2)):
            return float(out[0, -1])
        # Boxes need no decoding: each cell's confidence says whether somebody is there (YOLOX, arXiv 2107.08430)
        boxes = sum((height // stride) * (width // stride) for stride in STRIDES)
        if out.ndim == 3 and out.shape[:2] == (1, boxes) and out.shape[2] > 5:
            return float((out[0, :, 4] * out[0, :, 5]).max())
        raise ValueError(f"its answer is {out.shape}; wanted: (1,{boxes},5+classes), (1,1) or (1,2)")
