"""Toys that several tests draw: a picture, a clip, a pair of IDX files. Nothing here is real."""

import gzip
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from stillwatch.media import synthetic


def jpeg(path: Path, number: int = 0, label: str = "Yawn") -> Path:
    """A toy driver's picture, 24×32, at this path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", synthetic.still("cabin", label, 0, number, (24, 32)))[1].tobytes())
    return path


def changed(raw: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain dict with a.b=c laid into it, which is written a__b=c."""
    for key, value in changes.items():
        *path, last = key.split("__")
        place = raw
        for step in path:
            place = place.setdefault(step, {})
        place[last] = value
    return raw


def video(path: Path, frames: int, fps: int = 10) -> Path:
    """A clip whose frame n is evenly 8·n gray."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            picture = np.full((48, 64, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def idx_pair(root: Path, start: str, count: int, zipped: bool = True, labels: int | None = None) -> None:
    """An IDX pair whose image n holds the bytes 20·n on, and whose label n is n mod 10."""
    pictures = struct.pack(">4B3I", 0, 0, 8, 3, count, 4, 5) + bytes(n % 256 for n in range(count * 20))
    answers = count if labels is None else labels
    numbers = struct.pack(">4BI", 0, 0, 8, 1, answers) + bytes(n % 10 for n in range(answers))
    for name, raw in (("images-idx3-ubyte", pictures), ("labels-idx1-ubyte", numbers)):
        path = root / f"{start}-{name}{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(raw) if zipped else raw)
