"""One shard of an archive: files -> pixels as in the lab -> probabilities -> a file."""

import ctypes
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from stillwatch.atomic import atomic, place
from stillwatch.errors import UserError, one_line
from stillwatch.inference import face_reader, runtimes
from stillwatch.inference.archive.listing import File
from stillwatch.media import decode
from stillwatch.media import image as pixels
from stillwatch.media.points import NAMES

BATCH = 16  # pictures through the net at once

opened = lru_cache(maxsize=1)(runtimes.open)  # a worker does one shard after another by the same net


class Task(NamedTuple):
    """`key` covers all that decides the numbers."""

    root: str  # of the archive: a folder or a URL
    parts: str  # where shards go: a folder or a URL
    model: str  # the file that the detector chose
    runtime: str
    shape: tuple[int, ...]  # (H,W,C) or (T,H,W,C)
    how: pixels.How  # the bundle's fit
    rate: float | None
    key: str
    ticks: tuple[int, ...] = (0,)  # a look's moments, in frames of `rate` before the newest
    faces: bool = False
    labels: tuple[str, ...] = ()
    shrink: bool = False  # the bundle's
    fusion: str = ""  # JSON of the bundle's head over net and face, where faces are read
    net: face_reader.NetFile | None = None  # of that head

    @property
    def told(self) -> tuple[str, ...]:
        """Names of the columns of `face`."""
        return (*NAMES, *(f"net_{label}" for label in self.labels if self.net)) if self.faces else ()


def part_of(task: Task, shard: Sequence[File]) -> str:
    """Its file under task.parts, in one of 256 folders."""
    told = hashlib.sha256(json.dumps([task.key, shard]).encode()).hexdigest()
    return f"{told[:2]}/{told[:32]}.npz"


def do(
    task: Task,
    shard: Sequence[File],
    avoid: dict[str, str] | None = None,
    far: ctypes.c_longlong | None = None,
    parent: int | None = None,
) -> str:
    """Score the shard and save it. Returns "", or what went wrong."""
    cv2.setNumThreads(1)
    try:
        arrays = score_shard(
            task, shard, opened(Path(task.model), task.runtime, task.shape, 1, BATCH), avoid, far, parent
        )
        with atomic(place(task.parts) / part_of(task, shard)) as draft, draft.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except UserError as mistake:
        return str(mistake)
    except Exception as error:  # a runtime may fail in any way of its own; a disk may be full
        return f"{type(error).__name__}: {one_line(error)}"
    return ""


def score_shard(
    task: Task,
    shard: Sequence[File],
    look: runtimes.Predict,
    avoid: dict[str, str] | None = None,
    far: ctypes.c_longlong | None = None,
    parent: int | None = None,
) -> dict[str, NDArray[Any]]:
    """-> which (n,) of its files, frame (n,) int64 (-1: a picture), time (n,) s, p (n,K), face (n,task.told); bad (m,),
    which of its files, and reason (m,). far: files done.
    """
    faces = Faces(task) if task.faces else None
    rows: list[tuple[int, int, float]] = []
    said: list[tuple[float, ...]] = []  # of each row's face
    bad: list[tuple[int, str]] = []

    def samples() -> Iterator[list[decode.Picture]]:
        for number, file in enumerate(shard):
            if far is not None:
                far.value = number
            if odd := file.odd or (avoid or {}).get(file.path):
                bad.append((number, odd))
                continue
            for frame, second, value in frames(task, file, faces):
                if parent is not None and os.getppid() != parent:  # killed: nobody waits for this any more
                    raise SystemExit
                if isinstance(value, str):
                    bad.append((number, value))
                    continue
                rows.append((number, frame, second))
                if faces:
                    said.append(faces.of(value[-1]))
                yield value

    # Always a whole batch: the last digits of an answer may depend on how many come together
    x, found, p = np.zeros((BATCH, *task.shape), np.uint8), samples(), list[NDArray[np.float32]]()
    while held := list(islice(found, BATCH)):
        x[: len(held)] = np.reshape(held, (len(held), *task.shape))
        p.append(np.array(look(x)[: len(held)]))
    numbers, shown, times = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    face = np.array(said, np.float32).reshape(len(rows), len(task.told))
    reasons = np.array([why for _, why in bad], str) if bad else np.array([], "U1")
    return {
        "which": np.array(numbers, np.int64), "frame": np.array(shown, np.int64), "time": np.array(times, np.float64),
        "p": np.concatenate(p) if p else np.zeros((0, 0), np.float32), "face": face,
        "bad": np.array([number for number, _ in bad], np.int64), "reason": reasons,
    }  # fmt: skip


class Faces:
    """Read before each picture is shrunk."""

    def __init__(self, task: Task) -> None:
        self._read, self._at = face_reader.beside(face_reader.FaceReader(), task.net), 0.0
        self._nobody = (np.nan,) * len(task.told)
        self._said: dict[int, tuple[float, ...]] = {}  # by the shrunk picture's id

    def note(self, image: decode.Picture, small: decode.Picture) -> decode.Picture:
        self._at += 2 * face_reader.RETRY  # so a face that was lost is sought in the next picture
        face = self._read(image, self._at)
        self._said[id(small)] = self._nobody if face is None else face.signals.flat()
        return small

    def of(self, small: decode.Picture) -> tuple[float, ...]:
        return self._said.pop(id(small), self._nobody)

    def another(self) -> None:
        """The next picture is of another file."""
        self._at += face_reader.AGAIN
        self._said.clear()


def frames(
    task: Task, file: File, faces: Faces | None = None
) -> Iterator[tuple[int, float, list[decode.Picture] | str]]:
    """(first frame, its second, T pictures of the net's size or why not)."""
    height, width, channels = task.shape[-3:]

    def fit(image: decode.Picture, whole: decode.Picture | None = None) -> decode.Picture:
        small = pixels.fit(image, (height, width), task.how, channels)
        return faces.note(image if whole is None else whole, small) if faces else small

    if faces:
        faces.another()

    if file.path.lower().endswith(decode.PICTURES):
        with _local(task.root, file.path) as path:
            least = (height, width) if task.shrink else None
            image = path if isinstance(path, str) else decode.read_picture(path, least)
            whole = decode.read_picture(path) if faces and least and isinstance(path, Path) else image
        why = next((found for found in (image, whole) if isinstance(found, str)), None)
        yield -1, 0.0, why or [fit(image, whole)]  # type: ignore[arg-type]
        return
    with _local(task.root, file.path) as path:
        yield from _film(task, file, fit, path) if isinstance(path, Path) else [(-1, 0.0, path)]


def _film(
    task: Task, file: File, fit: Callable[[decode.Picture], decode.Picture], path: Path
) -> Iterator[tuple[int, float, list[decode.Picture] | str]]:
    times = decode.times_of(path)
    if isinstance(times, str):
        yield -1, 0.0, times
        return
    ticks = task.ticks
    wanted = [
        tuple(taken[ticks[0] - tick] for tick in ticks)
        for taken in decode.windows(decode.sampled(times, task.rate), ticks[0] + 1)
    ]
    wanted = wanted[len(wanted) * file.piece // file.pieces : len(wanted) * (file.piece + 1) // file.pieces]
    bad: list[str] = []
    for window, value in decode.clips(path, wanted, fit, 1, times):  # a worker has one core
        if isinstance(value, str):
            bad.append(f"at {times[window[0]]:.2f} s: {value}")
        else:
            yield window[0], times[window[0]], value
    if bad:
        yield -1, 0.0, bad[0] + (f" ({len(bad)} of {len(wanted)} rows are missing)" if len(bad) > 1 else "")


@contextmanager
def _local(root: str, name: str) -> Iterator[Path | str]:
    path = place(root) / name
    if isinstance(path, Path):
        yield path
        return
    with TemporaryDirectory() as folder:
        copy, reason = Path(folder, path.name), ""
        try:
            path.fs.get_file(path.path, str(copy))
        except Exception as error:  # each store has errors of its own
            reason = "missing file" if isinstance(error, FileNotFoundError) else f"cannot be read: {one_line(error)}"
        yield reason or copy
