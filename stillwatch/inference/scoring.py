"""Score an archive on all cores; finished shards survive a kill. Must not import torch.

Pixels come as in the lab (media.decode, media.image), so numbers match `judge`.
"""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import re
import stat
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from stillwatch import bundle as bundles
from stillwatch.atomic import atomic, locked
from stillwatch.errors import UserError
from stillwatch.inference import face_reader, runtimes, table
from stillwatch.inference.detector import Detector, fused_by, look_ticks, rule_of
from stillwatch.inference.detector import rate as trained_rate
from stillwatch.inference.timing import cores
from stillwatch.media import decode, weights
from stillwatch.media import image as pixels
from stillwatch.media.points import Signals
from stillwatch.rules.normal import EVERY, Normal
from stillwatch.run import NO_PROGRESS, Progress

FORMAT = 2  # of the shards; raised whenever the same file would give other rows
BATCH = 16  # pictures through the net at once
SHARD = 512  # pictures, or as much work in films, in a shard at most: what a kill can cost a worker
SHARD_NAME = re.compile(r"[0-9a-f]{32}\.npz")
HEAVY = 64 << 10  # bytes of a film that count as one picture
NOBODY = (np.nan,) * len(Signals._fields)
BEAT = 0.2  # s between two looks at how far the workers are


class File(NamedTuple):
    """As it was at planning time."""

    path: str  # relative, with "/"
    size: int  # bytes
    mtime: int  # ns


class Task(NamedTuple):
    """What all shards share; `key` covers all that decides the numbers."""

    root: str  # of the archive
    parts: str  # where shards go
    model: str  # the file that the detector chose
    runtime: str
    shape: tuple[int, ...]  # (H,W,C) or (T,H,W,C)
    how: str  # the bundle's fit
    rate: float | None
    key: str
    ticks: tuple[int, ...] = (0,)  # a look's moments, in frames of `rate` before the newest
    faces: bool = False


def score(
    bundle: Path,
    folder: Path,
    out: Path,
    workers: int | None = None,
    progress: Progress = NO_PROGRESS,
    rate: float | None = None,
) -> dict[str, Any]:
    """Write one row a picture or frame under `folder` to `out`, .parquet or .csv.

    Columns: path (relative), time_s and frame (None for a picture), label, p_<label>…, by path and frame. For a net of
    clips a row is a window of T frames and time_s its start. Where faces are read (a bundle with a fusion head, or
    faces = "yes"), the newest frame's face follows: face_left_eye, … With a head p_<label> is what a camera decides,
    net and face fused, and net_<label> the net alone; a driver's normal goes through a film, or through the pictures of
    a folder by name, five a second. rate: frames a second; None: the training rate of a net of clips, else all.
    workers: processes of one thread; None: one a core.

    Unreadable files are rows of `<out>.errors.csv`. The same command resumes from the shards in `<out>.parts`, and
    scores what is new, changed, or for another bundle or rate.
    Raises UserError for a wrong bundle, folder or ending, and while another score writes `out`.
    """
    start = time.monotonic()
    _check(folder, out, rate, workers)
    made = bundles.load(bundle)
    clips = len(made.manifest.input.shape) == 4
    found, odd = gather(folder, clips)
    if not found:
        wanted = "film" if clips else "picture or film"
        raise UserError(f"{folder}: no {wanted} in it; read are {' '.join(_kinds(clips))}")
    parts = out.with_name(f"{out.name}.parts")
    if parts.is_symlink() or not all(SHARD_NAME.fullmatch(path.name) for path in parts.glob("*.npz")):
        raise UserError(f"{parts}: is there and not all of it was made by `stillwatch score`; choose another -o")
    with locked(parts / ".lock", busy=f"{parts}: another `stillwatch score` writes there; choose another -o"):
        if rate is None and clips:
            rate = trained_rate(made.manifest)
        task = _task(made, folder, parts, rate, progress)
        shards = cut(found)
        open_ = [shard for shard in shards if not _place(task, shard).is_file()]
        kept = len(found) - sum(map(len, open_))
        if kept:
            progress.say(f"{parts}: {kept:,} of {len(found):,} files are done already")
        open_.sort(key=lambda shard: -sum(map(_weight, shard)))  # the longest first: none is left to one worker at last
        count, todo = min(workers or cores(), len(open_)), sum(map(len, open_))
        if todo:
            progress.say(
                f"{Path(task.model).name} in {task.runtime}, {count} worker{'s' * (count != 1)}, {todo:,} files"
            )
            for _ in progress.bar(_work(task, open_, count), todo, "scoring"):
                pass
        _sweep(task, shards)
        rows, errors = _write(out, task, shards, made.manifest, odd)
    seconds = time.monotonic() - start
    return {
        "rows": rows, "files": len(found) + len(odd), "bad": len(errors), "errors": errors, "kept": kept,
        "seconds": round(seconds, 3), "runtime": task.runtime,
        "file": Path(task.model).relative_to(made.path).as_posix(),
    }  # fmt: skip


# ---- the plan


def gather(folder: Path, clips: bool = False) -> tuple[list[File], list[tuple[str, str]]]:
    """-> (pictures and films by path, (path, reason) of those not read). Skips dot names; clips: skips pictures."""
    kinds = _kinds(clips)
    found, odd = [], []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            kind = Path(name).suffix.lower()
            if name.startswith(".") or kind not in (*decode.PICTURES, *decode.VIDEOS, *decode.NOT_READ):
                continue
            full = Path(place) / name
            path = full.relative_to(folder).as_posix()
            if kind in decode.NOT_READ:
                odd.append((path, f"{kind} is not a kind of picture that is read: {' '.join(decode.PICTURES)}"))
            elif kind not in kinds:
                odd.append((path, "a single picture: this net looks at clips"))
            else:
                try:
                    about = full.stat()
                except OSError as error:
                    odd.append((path, f"cannot be read: {error.strerror}"))
                    continue
                if stat.S_ISREG(about.st_mode):  # a pipe would be waited for
                    found.append(File(path, about.st_size, about.st_mtime_ns))
                else:
                    odd.append((path, "not a file"))
    return sorted(found), sorted(odd)


def cut(found: Sequence[File]) -> list[tuple[File, ...]]:
    """Shards are cut by file names: a new file changes only its own shard."""
    shards, mine, weight = [], list[File](), 0.0
    for file in found:
        mine.append(file)
        weight += _weight(file)
        # one name in SHARD / 4 ends a shard, by chance but always the same ones
        if weight >= SHARD or (weight >= SHARD / 8 and zlib.crc32(os.fsencode(file.path)) % (SHARD // 4) == 0):
            shards.append(tuple(mine))
            mine, weight = [], 0.0
    return [*shards, tuple(mine)] if mine else shards


def _weight(file: File) -> float:
    """In pictures."""
    return 1.0 if file.path.lower().endswith(decode.PICTURES) else max(1.0, file.size / HEAVY)


def _check(folder: Path, out: Path, rate: float | None, workers: int | None) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    table.check(out)
    if rate is not None and not 0 < rate < float("inf"):
        raise UserError(f"rate = {rate}: wanted: frames a second, above 0")
    if workers is not None and workers < 1:
        raise UserError(f"workers = {workers}: at least 1")


def _kinds(clips: bool) -> tuple[str, ...]:
    return decode.VIDEOS if clips else (*decode.PICTURES, *decode.VIDEOS)


def _task(made: bundles.Bundle, folder: Path, parts: Path, rate: float | None, progress: Progress) -> Task:
    """Keeps the earlier file and runtime for the same bundle and rate."""
    about = made.manifest.input
    asked = rule_of(made)
    faces = (made.manifest.fusion is not None or asked.faces == "yes") and weights.wanted(asked)
    if made.manifest.fusion and not faces:
        progress.say("no face is read here, so these are the net's own answers: `stillwatch doctor` says why")
    told = json.dumps([FORMAT, made.manifest.model_dump(mode="json"), rate, faces], sort_keys=True)
    key = hashlib.sha256(told.encode()).hexdigest()
    place = parts / "index.json"
    choice = None
    with suppress(OSError, ValueError, KeyError, TypeError, UserError):
        before = json.loads(place.read_text(encoding="utf-8"))
        if before["key"] == key:
            # two files, or one in two runtimes, differ in the last digits: all shards come from one of them
            choice = Detector(made, 1, BATCH, before["runtime"], before["file"]).choice
    if choice is None:
        if any(parts.glob("*.npz")):
            progress.say(f"{parts}: of another bundle, rate or runtime; everything is looked at anew")
        for old in parts.glob("*.npz"):
            old.unlink()
        choice = Detector(made, threads=1, batch=BATCH).choice
    task = Task(
        str(folder), str(parts), str(made.path / choice["file"]), choice["runtime"], about.shape, about.fit, rate, key,
        look_ticks(about), faces,
    )  # fmt: skip
    with atomic(place) as draft:
        draft.write_text(json.dumps({"key": key, "file": choice["file"], "runtime": choice["runtime"]}) + "\n", "utf-8")
    return task


def _place(task: Task, shard: Sequence[File]) -> Path:
    told = json.dumps([task.key, shard])
    return Path(task.parts) / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.npz"


def _sweep(task: Task, shards: Sequence[Sequence[File]]) -> None:
    wanted = {_place(task, shard).name for shard in shards}
    for path in Path(task.parts).glob("*.npz"):
        if path.name not in wanted:
            path.unlink()


# ---- workers: processes that each take a shard, classify it, and put it on disk


class Worker:
    def __init__(self, task: Task, shard: tuple[File, ...], avoid: dict[str, str], suspect: str = ""):
        """avoid: path -> reason, for files that killed two workers. suspect: a file that killed one."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.far = context.RawValue("q", -1)  # the file of the shard that it is at; -1: not yet at one
        self.process = context.Process(target=_serve, args=(task, theirs, self.far, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.give(shard, avoid, suspect)

    def give(self, shard: tuple[File, ...], avoid: dict[str, str], suspect: str = "") -> None:
        self.shard, self.avoid, self.suspect, self.told = shard, avoid, suspect, 0
        self.far.value = -1
        with suppress(OSError):  # dead already: _work() hears of it at once
            self.pipe.send((shard, avoid))

    def news(self, over: bool = False) -> int:
        """Files done since the last call. over: the shard is on disk."""
        before, self.told = self.told, len(self.shard) if over else max(self.told, int(self.far.value))
        return self.told - before

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _work(task: Task, shards: Sequence[tuple[File, ...]], count: int) -> Iterator[None]:
    """Yields once a file. A file that kills two workers is bad."""
    waiting = list(reversed(shards))
    workers = [Worker(task, waiting.pop(), {}) for _ in range(count)]
    try:
        while workers:
            ready = wait([worker.pipe for worker in workers], BEAT)
            for place, worker in enumerate(list(workers)):
                yield from repeat(None, worker.news())
                if worker.pipe not in ready:
                    continue
                if _done(worker):
                    yield from repeat(None, worker.news(over=True))
                    if waiting:
                        worker.give(waiting.pop(), {})
                else:
                    workers[place] = _instead(task, worker)
                    worker.end()
            for worker in [worker for worker in workers if worker.told == len(worker.shard)]:
                workers.remove(worker)
                worker.end()
    finally:
        for worker in workers:
            worker.end()


def _done(worker: Worker) -> bool:
    """False: its worker died. Raises UserError for other faults."""
    try:
        said = worker.pipe.recv()
    except (EOFError, OSError):
        return False
    if said:
        raise UserError(f"score: {said}")
    return True


def _instead(task: Task, dead: Worker) -> Worker:
    """The file gets a second chance: the kill may be from outside."""
    dead.process.join()
    status, at = dead.process.exitcode, int(dead.far.value)
    name = dead.shard[at].path if at >= 0 else "its first file"
    if at < 0 and dead.suspect == name:
        raise UserError(f"score: a worker dies before it looks at a file (exit status {status})")
    guilty = {name: f"the decoder dies of it (exit status {status})"} if dead.suspect == name else {}
    new = Worker(task, dead.shard, dead.avoid | guilty, name)
    new.told = dead.told
    return new


def _serve(task: Task, pipe: Connection, far: Any, parent: int) -> None:
    """Ends when the parent is gone."""
    cv2.setNumThreads(1)
    look: runtimes.Predict | None = None
    with suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        while True:
            shard, avoid = pipe.recv()
            trouble = ""
            try:
                look = look or runtimes.open(Path(task.model), task.runtime, task.shape, 1, BATCH)
                arrays = score_shard(task, shard, look, avoid, far, parent)
                with atomic(_place(task, shard)) as draft, draft.open("wb") as file:
                    np.savez(file, **arrays)  # type: ignore[arg-type]
            except UserError as mistake:
                trouble = str(mistake)
            except Exception as error:  # a runtime may fail in any way of its own; a disk may be full
                trouble = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            pipe.send(trouble)


def score_shard(
    task: Task,
    shard: Sequence[File],
    look: runtimes.Predict,
    avoid: dict[str, str] | None = None,
    far: Any = None,
    parent: int | None = None,
) -> dict[str, NDArray[Any]]:
    """-> which (n,) of its files, frame (n,) int64 (-1: a picture), time (n,) s, p (n,K), face (n,7 or 0).

    Also bad (m,), which of its files, and reason (m,). far: files done.
    """
    batch = Batch(look, task.shape)
    faces = Faces() if task.faces else None
    rows: list[tuple[int, int, float]] = []
    said: list[tuple[float, ...]] = []  # of each row's face
    bad: list[tuple[int, str]] = []
    for number, file in enumerate(shard):
        if far is not None:
            far.value = number
        if file.path in (avoid or {}):
            bad.append((number, (avoid or {})[file.path]))
            continue
        for frame, second, value in frames(task, file.path, faces):
            if parent is not None and os.getppid() != parent:  # killed: nobody waits for this any more
                raise SystemExit
            if isinstance(value, str):
                bad.append((number, value))
            else:
                rows.append((number, frame, second))
                batch.add(value)
                if faces:
                    said.append(faces.of(value[-1]))
    numbers, shown, times = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    face = np.array(said, np.float32).reshape(len(rows), len(NOBODY) if faces else 0)
    reasons = np.array([why for _, why in bad], str) if bad else np.array([], "U1")
    return {
        "which": np.array(numbers, np.int64), "frame": np.array(shown, np.int64), "time": np.array(times, np.float64),
        "p": batch.end(), "face": face, "bad": np.array([number for number, _ in bad], np.int64), "reason": reasons,
    }  # fmt: skip


class Faces:
    """The face of each picture, read before it is shrunk."""

    def __init__(self) -> None:
        self._read, self._at = face_reader.FaceReader(), 0.0
        self._said: dict[int, tuple[float, ...]] = {}  # by the shrunk picture's id

    def note(self, image: decode.Picture, small: decode.Picture) -> decode.Picture:
        self._at += 2 * face_reader.RETRY  # so a face that was lost is sought in the next picture
        face = self._read(image, self._at)
        self._said[id(small)] = NOBODY if face is None else face.signals
        return small

    def of(self, small: decode.Picture) -> tuple[float, ...]:
        return self._said.pop(id(small), NOBODY)

    def another(self) -> None:
        """The next picture is of another file."""
        self._at += face_reader.AGAIN
        self._said.clear()


class Batch:
    def __init__(self, look: runtimes.Predict, shape: tuple[int, ...]):
        self._look, self._x = look, np.zeros((BATCH, *shape), np.uint8)
        self._frames = shape[0] if len(shape) == 4 else 0
        self._n = 0
        self._p: list[NDArray[np.float32]] = []

    def add(self, images: Sequence[decode.Picture]) -> None:
        """One picture, or the T of a clip, of the net's size."""
        if self._frames:
            np.stack(images, out=self._x[self._n])
        else:
            self._x[self._n] = images[0]
        self._n += 1
        if self._n == BATCH:
            self._flush()

    def end(self) -> NDArray[np.float32]:
        """(n,K), in order of arrival."""
        if self._n:
            self._flush()
        return np.concatenate(self._p) if self._p else np.zeros((0, 0), np.float32)

    def _flush(self) -> None:
        # always a whole batch: the last digits of an answer may depend on how many come together
        self._p.append(np.array(self._look(self._x)[: self._n]))
        self._n = 0


def frames(
    task: Task, name: str, faces: Faces | None = None
) -> Iterator[tuple[int, float, list[decode.Picture] | str]]:
    """For each sample: (first frame, its second, T pictures of the net's size or why not)."""
    path = Path(task.root) / name
    height, width, channels = task.shape[-3:]

    def fit(image: decode.Picture) -> decode.Picture:
        small: decode.Picture = pixels.fit(image, (height, width), task.how, channels)  # type: ignore[arg-type]
        return faces.note(image, small) if faces else small

    if faces:
        faces.another()

    if path.suffix.lower() in decode.PICTURES:
        image = decode.read_picture(path)
        yield -1, 0.0, image if isinstance(image, str) else [fit(image)]
        return
    times = decode.times_of(path)
    if isinstance(times, str):
        yield -1, 0.0, times
        return
    ticks = task.ticks
    wanted = [
        tuple(taken[ticks[0] - tick] for tick in ticks)
        for taken in decode.windows(decode.sampled(times, task.rate), ticks[0] + 1)
    ]
    bad: list[str] = []
    for window, value in decode.clips(path, wanted, fit, threads=1):  # a worker has one core
        if isinstance(value, str):
            bad.append(f"at {times[window[0]]:.2f} s: {value}")
        else:
            yield window[0], times[window[0]], value
    if bad:
        yield -1, 0.0, bad[0] + (f" ({len(bad)} of {len(wanted)} rows are missing)" if len(bad) > 1 else "")


# ---- the table


def _written(name: str) -> str:
    """A file's name as text, also one that is not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


class Fused:
    """The bundle's head over net and face, row after row, as a camera that films these has them."""

    def __init__(self, told: bundles.Manifest):
        self._fuse, self._of, self._at, self._normal = fused_by(told), "", 0.0, Normal()

    def __call__(self, paths: Sequence[str], part: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """part: of score_shard. -> (n,K); the net's own answer where there is no face."""
        p = part["p"].copy()
        for row, (path, frame, second) in enumerate(zip(paths, part["frame"], part["time"], strict=True)):
            recording = path if frame >= 0 else path.rpartition("/")[0]
            if recording != self._of:
                self._of, self._at, self._normal = recording, 0.0, Normal()
            self._at = float(second) if frame >= 0 else self._at + EVERY
            face = self._normal.step(self._at, Signals(*map(float, part["face"][row])))
            if face is not None and self._fuse:
                p[row] = self._fuse(p[row], face)
        return p


def _write(
    out: Path, task: Task, shards: Sequence[Sequence[File]], told: bundles.Manifest, odd: Sequence[tuple[str, str]]
) -> tuple[int, list[dict[str, str]]]:
    rows, errors = 0, [*odd]
    fused = Fused(told) if task.faces and told.fusion else None
    more = [f"net_{label}" for label in told.labels] if fused else []
    more += [f"face_{name}" for name in Signals._fields] if task.faces else []
    with atomic(out) as draft, table.table(draft, out.suffix, told.labels, more) as add:
        for shard in shards:
            with _place(task, shard).open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
                part = dict(arrays)
            errors += [(shard[n].path, str(why)) for n, why in zip(part["bad"], part["reason"], strict=True)]
            rows += len(part["which"])
            if len(part["which"]):
                paths = [shard[n].path for n in part["which"]]
                wide = [fused(paths, part), part["p"]] if fused else [part["p"]]
                add([*map(_written, paths)], part["time"], part["frame"], np.concatenate([*wide, part["face"]], axis=1))
    beside = out.with_name(f"{out.name}.errors.csv")
    errors.sort()
    if errors:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *errors])
        with atomic(beside) as draft:
            draft.write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace")
    else:
        beside.unlink(missing_ok=True)
    return rows, [{"path": _written(path), "reason": reason} for path, reason in errors]
