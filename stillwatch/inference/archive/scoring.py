"""Score an archive: here, on Ray, or as one job of many; finished shards survive a kill."""

import csv
import hashlib
import io
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from stillwatch import bundle as bundles
from stillwatch.atomic import atomic, locked, place
from stillwatch.errors import UserError
from stillwatch.inference import engines
from stillwatch.inference.archive import listing, shards, table, workers
from stillwatch.inference.archive.listing import File
from stillwatch.inference.archive.shards import BATCH, Task
from stillwatch.inference.detector import Detector, face_net, fused_by, look_ticks, rule_of
from stillwatch.inference.detector import rate as trained_rate
from stillwatch.inference.timing import cores
from stillwatch.media import weights
from stillwatch.media.decode import PICTURES, VIDEOS
from stillwatch.media.points import Signals
from stillwatch.rules.normal import EVERY, Normal
from stillwatch.run import NO_PROGRESS, Progress

FORMAT = 3  # of the shards; raised whenever the same file would give other rows
SHARD_NAME = re.compile(r"[0-9a-f]{32}\.npz")
LIST = "files.parquet"  # of an archive that several jobs share


class Done(NamedTuple):
    rows: int
    files: int
    errors: list[dict[str, str]]  # path and reason of each bad file
    kept: int  # files that an earlier call had done
    seconds: float
    runtime: str
    file: str


class Share(NamedTuple):
    """Job `number`, from 0, of `of`."""

    number: int
    of: int

    @classmethod
    def read(cls, text: str) -> "Share":
        """ "3/64" -> (3, 64). Raises UserError."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
            raise UserError(f"--shard {text}: is NUMBER/OF, numbered from 0, such as 0/64 to 63/64")
        return cls(int(number), int(of))


def score(
    bundle: Path,
    folder: Path,
    out: Path,
    workers: int | None = None,
    progress: Progress = NO_PROGRESS,
    rate: float | None = None,
    on: str = "",
) -> Done:
    """Write one row a picture or frame under `folder` to `out`, .parquet or .csv. Both may be URLs.

    Columns: path (relative), time_s (a window's start) and frame (None for a picture), label, p_<label>…, by path and
    frame; the newest frame's face_… where faces are read; with a head, net_<label> too, the net alone. rate: frames a
    second; None: a net of clips' training rate, else all. workers: single-threaded processes; None: one a core. on:
    "ray" or "ray://HOST:PORT"; "": this machine.

    Unreadable files go to `<out>.errors.csv`. A rerun resumes from `<out>.parts`, and scores what is new, changed, or
    for another bundle or rate. Raises UserError, also while another score writes `out`.
    """
    start = time.monotonic()
    made = _checked(bundle, folder, out, rate, workers)
    parts = _parts(out)
    with locked(parts / ".lock", busy=f"{parts}: another `stillwatch score` writes there; choose another -o"):
        found = _cut(made, folder)
        task = _task(made, folder, parts, rate, progress)
        kept = _work(task, found, workers, progress, on)
        rows, errors = _write(out, task, found)
    (parts / LIST).unlink(missing_ok=True)
    files = sum(file.piece == 0 for shard in found for file in shard)
    seconds = round(time.monotonic() - start, 3)
    return Done(rows, files, errors, kept, seconds, task.runtime, Path(task.model).relative_to(made.path).as_posix())


def score_share(
    bundle: Path,
    folder: Path,
    out: Path,
    share: Share,
    workers: int | None = None,
    progress: Progress = NO_PROGRESS,
    rate: float | None = None,
) -> int:
    """Do one job's share of the shards, for merge(). Returns how many files it holds.

    The first job lists the archive and chooses the file and runtime for all. Raises UserError.
    """
    made = _checked(bundle, folder, out, rate, workers)
    table.parquet()
    parts = _parts(out)
    with locked(parts / ".lock", busy=f"{parts}: a `stillwatch score` or merge writes there", shared=True):
        with locked(parts / ".first"):
            task = _task(made, folder, parts, rate, progress, shared=True)
            if not (parts / LIST).is_file():
                listed = listing.save(parts / LIST, _cut(made, folder))
                progress.say(f"{parts}: {listed:,} shard{'s' * (listed != 1)} listed")
        mine = list(listing.load(parts / LIST, *share))
        _work(task, mine, workers, progress)
    return sum(map(len, mine))


def merge(out: Path) -> Done:
    """Write the table that score() would have, and forget the list. Raises UserError if a shard is left."""
    start, parts = time.monotonic(), _parts(out)
    table.check(out)
    try:
        task = _read(parts)[0]
        if not (parts / LIST).is_file():
            raise FileNotFoundError
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{parts}: no job of `stillwatch score -o {out} --shard 0/N` was here, or it is merged"
        ) from None
    with locked(parts / ".lock", busy=f"{parts}: a `stillwatch score` still writes there"):
        there, left, count, files = _there(parts), list[int](), 0, 0
        for count, shard in enumerate(listing.load(parts / LIST), 1):
            if shards.part_of(task, shard) not in there:
                left.append(count - 1)
            files += sum(file.piece == 0 for file in shard)
        if left:
            raise UserError(
                f"{parts}: {len(left):,} of {count:,} shards are not done, the first {left[0]}: of N jobs, "
                f"number {left[0]} % N has it; start that one again"
            )
        rows, errors = _write(out, task, listing.load(parts / LIST))
        (parts / LIST).unlink()
    seconds = round(time.monotonic() - start, 3)
    return Done(rows, files, errors, files, seconds, task.runtime, Path(task.model).name)


# ---- the plan


def _checked(bundle: Path, folder: Path, out: Path, rate: float | None, workers: int | None) -> bundles.Bundle:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    table.check(out)
    if rate is not None and not 0 < rate < float("inf"):
        raise UserError(f"rate = {rate}: wanted: frames a second, above 0")
    if workers is not None and workers < 1:
        raise UserError(f"workers = {workers}: at least 1")
    return bundles.load(bundle)


def _parts(out: Path) -> Path:
    parts = out.with_name(f"{out.name}.parts")
    link = isinstance(parts, Path) and parts.is_symlink()
    if link or not all(SHARD_NAME.fullmatch(path.name) for path in parts.glob("**/*.npz")):
        raise UserError(f"{parts}: is there and not all of it was made by `stillwatch score`; choose another -o")
    return parts


def _cut(made: bundles.Bundle, folder: Path) -> list[tuple[File, ...]]:
    clips = len(made.manifest.input.shape) == 4
    found = list(listing.cut(listing.listing(folder, clips)))
    if all(file.odd for shard in found for file in shard):
        wanted, kinds = ("film", VIDEOS) if clips else ("picture or film", PICTURES + VIDEOS)
        raise UserError(f"{folder}: no {wanted} in it; read are {' '.join(kinds)}")
    return found


def _task(
    made: bundles.Bundle, folder: Path, parts: Path, rate: float | None, progress: Progress, shared: bool = False
) -> Task:
    """Keeps the earlier file and runtime for the same bundle."""
    about, head, asked = made.manifest.input, made.manifest.fusion, rule_of(made)
    faces = (head is not None or asked.faces == "yes") and weights.wanted(asked)
    if head and not faces:
        progress.say("no face is read here, so these are the net's own answers: `stillwatch doctor` says why")
    rate = trained_rate(made.manifest) if rate is None and len(about.shape) == 4 else rate
    told = json.dumps([FORMAT, made.manifest.model_dump(mode="json"), rate, faces], sort_keys=True)
    key = hashlib.sha256(told.encode()).hexdigest()
    choice = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        before, file = _read(parts)
        if before.key == key:
            # two files, or one in two runtimes, differ in the last digits: all shards come from one of them
            try:
                choice = Detector(made, 1, BATCH, before.runtime, file).choice
            except UserError as error:
                if shared:
                    raise UserError(f"{parts}: the first job chose {file} in {before.runtime}, but: {error}") from None
        elif shared and (parts / LIST).is_file():
            raise UserError(
                f"{parts}: jobs of another bundle or rate are at work there; merge them, or choose another -o"
            )
    if choice is None:
        old = list(parts.glob("**/*.npz"))
        if old:
            progress.say(f"{parts}: of another bundle, rate or runtime; everything is looked at anew")
        for path in old:
            path.unlink()
        choice = Detector(made, threads=1, batch=BATCH).choice
    task = Task(
        str(folder), str(parts), str(made.path / choice["file"]), choice["runtime"], about.shape, about.fit, rate, key,
        look_ticks(about), faces, made.manifest.labels, bool(about.shrink),
        head.model_dump_json() if head and faces else "", face_net(made) if faces else None,
    )  # fmt: skip
    with atomic(parts / "index.json") as draft:
        told = json.dumps(task._asdict() | {"file": choice["file"]}, default=bundles.Input.model_dump)
        draft.write_text(told + "\n", "utf-8")
    return task


def _read(parts: Path) -> tuple[Task, str]:
    raw = json.loads((parts / "index.json").read_text(encoding="utf-8"))
    fields = {name: raw[name] for name in Task._fields if name in raw} | {"parts": str(parts)}
    return TypeAdapter(Task).validate_python(fields), raw["file"]


def _there(parts: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in parts.glob("*/*.npz")}


# ---- the work


def _work(task: Task, mine: Sequence[tuple[File, ...]], count: int | None, progress: Progress, on: str = "") -> int:
    there, files = _there(place(task.parts)), sum(map(len, mine))
    todo = [shard for shard in mine if shards.part_of(task, shard) not in there]
    kept = files - sum(map(len, todo))
    if kept:
        progress.say(f"{task.parts}: {kept:,} of {files:,} files are done already")
    if not todo:
        return kept
    todo.sort(key=lambda shard: -sum(map(listing.weight, shard)))  # the longest first: none is left to one at last
    count = min(count or cores(), len(todo))
    where = on or f"{count} worker{'s' * (count != 1)}"
    progress.say(f"{Path(task.model).name} in {task.runtime}, {where}, {files - kept:,} files")
    done = _over(task, todo, count, on) if on else workers.work(task, todo, count)
    for _ in progress.bar(done, files - kept, "scoring"):
        pass
    return kept


def _over(task: Task, todo: Sequence[tuple[File, ...]], count: int, on: str) -> Iterator[None]:
    failed = list[str]()
    for number, trouble in engines.over([partial(shards.do, task, shard) for shard in todo], on, count):
        failed += [f"{todo[number][0].path} and after: {trouble}"] if trouble else []
        yield from repeat(None, len(todo[number]))
    if failed:
        raise UserError(f"score: {len(failed)} of {len(todo)} shards failed, first {failed[0]}; the same call goes on")


# ---- the table


def _written(name: str) -> str:
    """Also of a name that is not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


class Fused:
    """The head over net and face, row after row, as on a camera."""

    def __init__(self, head: bundles.Fusion):
        self._fuse, self._of, self._at, self._normal = fused_by(head), "", 0.0, Normal()

    def __call__(self, paths: Sequence[str], part: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """part: of score_shard. -> (n,K); without a face the net's own."""
        p = part["p"].copy()
        for row, (path, frame, second) in enumerate(zip(paths, part["frame"], part["time"], strict=True)):
            recording = path if frame >= 0 else path.rpartition("/")[0]
            if recording != self._of:
                self._of, self._at, self._normal = recording, 0.0, Normal()
            self._at = float(second) if frame >= 0 else self._at + EVERY
            face = self._normal.step(self._at, Signals.of(part["face"][row]))
            if face is not None and self._fuse:
                p[row] = self._fuse(p[row], face)
        return p


def _write(out: Path, task: Task, found: Iterable[tuple[File, ...]]) -> tuple[int, list[dict[str, str]]]:
    parts, rows, used = place(task.parts), 0, set[str]()
    errors = list[tuple[str, str]]()
    fused = Fused(bundles.Fusion.model_validate_json(task.fusion)) if task.fusion else None
    more = [f"net_{label}" for label in task.labels] if fused else []
    more += [f"face_{name}" for name in task.told]
    with atomic(out) as draft, table.table(draft, out.suffix, task.labels, more) as add:
        for shard in found:
            used.add(name := shards.part_of(task, shard))
            with (parts / name).open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
                part = dict(arrays)
            errors += [(shard[n].path, str(why)) for n, why in zip(part["bad"], part["reason"], strict=True)]
            rows += len(part["which"])
            if len(part["which"]):
                paths = [shard[n].path for n in part["which"]]
                wide = [fused(paths, part), part["p"]] if fused else [part["p"]]
                add([*map(_written, paths)], part["time"], part["frame"], np.concatenate([*wide, part["face"]], axis=1))
    for name in _there(parts) - used:
        (parts / name).unlink()
    beside = out.with_name(f"{out.name}.errors.csv")
    errors = sorted(set(errors))  # pieces of one film may say the same
    if errors:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *errors])
        with atomic(beside) as draft:
            draft.write_text(text.getvalue(), encoding="utf-8", errors="backslashreplace")
    else:
        beside.unlink(missing_ok=True)
    return rows, [{"path": _written(path), "reason": reason} for path, reason in errors]
