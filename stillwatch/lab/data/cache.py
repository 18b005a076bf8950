"""What is computed once and kept on disk: decoded pictures, frozen features, a fixed teacher's outputs.

In: samples, or a function of (rows, view). Out: memory-mapped arrays, keyed by everything that went into them.
Called by the pipeline. A cache is written under a draft's name and renamed when whole: a kill leaves the old state.
It knows no loss and no loop.
"""

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from torch import Tensor

from stillwatch.atomic import alive, atomic
from stillwatch.errors import UserError
from stillwatch.lab.data.reader import Found, Sample, Skipped, decode
from stillwatch.media import synthetic
from stillwatch.recipe import Data
from stillwatch.run import NO_PROGRESS, Progress

M = TypeVar("M", bound=BaseModel)
FORMAT = 1  # raised whenever the same key would hold other bytes


def home() -> Path:
    """Where caches live: STILLWATCH_CACHE, or the user's own cache folder."""
    return Path(os.environ.get("STILLWATCH_CACHE") or Path.home() / ".cache" / "stillwatch")


@dataclass(frozen=True)
class Store:
    """Decoded pictures: pixels[i], uint8 (T,H,W,C), is samples[i]. `fingerprint` names the data, `key` the cache."""

    samples: list[Sample]
    skipped: list[Skipped]
    pixels: NDArray[np.uint8]  # (N,T,H,W,C), memory-mapped
    fingerprint: str
    key: str


def pictures(found: Found, data: Data, workers: int | None = None, voice: Progress = NO_PROGRESS) -> Store:
    """Decode every sample once to the recipe's size, or find that it was done before.

    Files are decoded by threads (OpenCV and FFmpeg let go of the interpreter) and written in place, a bounded
    number in flight, so memory does not grow with the data. The key is made of the files' content.
    Raises UserError where more than data.max_bad of the samples cannot be used.
    """
    workers = workers or min(8, len(os.sched_getaffinity(0)))
    by_file = [list(samples) for _, samples in groupby(found.samples, key=lambda sample: sample.path)]
    digests = _digests(sorted({sample.path for sample in found.samples}), workers)
    content = [f"{s.id}\t{digests[s.path]}\t{s.frames}" for s in found.samples]
    geometry = f"{FORMAT} {data.hw} {data.channels} {data.frames} {data.fit} {data.rate} {data.source}"
    key = short([geometry, *content])
    fingerprint = short([f"{line}\t{s.label}\t{s.group}" for line, s in zip(content, found.samples, strict=True)])
    folder = home() / "pictures" / key
    shape = (data.frames, *data.hw, data.channels)
    if not folder.is_dir():
        with _draft(folder) as draft:
            _decode_all(by_file, data, shape, draft, workers, voice)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    skipped = [*found.skipped, *(Skipped(file, reason) for file, reason in index["skipped"])]
    by_id = {sample.id: sample for sample in found.samples}
    samples = [by_id[name] for name in index["ids"]]
    _refuse_bad(len(samples), skipped, data)
    pixels = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=(len(samples), *shape))
    return Store(samples, skipped, pixels, fingerprint, key)


def _decode_all(
    by_file: list[list[Sample]], data: Data, shape: tuple[int, ...], draft: Path, workers: int, voice: Progress
) -> None:
    size = int(np.prod(shape))
    starts = np.cumsum([0, *map(len, by_file)])
    good: list[str | None] = [None] * int(starts[-1])
    skipped: list[tuple[str, str]] = []
    with (draft / "pixels.u8").open("w+b") as file:
        number = file.fileno()

        def one(which: int) -> None:
            for row, (sample, picture) in enumerate(decode(by_file[which], data), start=int(starts[which])):
                if isinstance(picture, str):
                    skipped.append((sample.id, picture))
                else:
                    os.pwrite(number, picture.tobytes(), row * size)
                    good[row] = sample.id

        with ThreadPoolExecutor(workers) as pool:
            for _ in voice.bar(_bounded(pool, one, len(by_file), 4 * workers), len(by_file), "decoding"):
                pass
        ids = _close_gaps(number, good, size)
        os.ftruncate(number, len(ids) * size)
        os.fsync(number)
    index = {"ids": ids, "skipped": sorted(skipped)}
    (draft / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _bounded(pool: ThreadPoolExecutor, work: Callable[[int], None], count: int, ahead: int) -> Iterator[None]:
    """Run work(0..count-1) in order of starting, at most `ahead` at a time."""
    waiting: deque[Future[None]] = deque()
    for which in range(count):
        waiting.append(pool.submit(work, which))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _close_gaps(file: int, good: list[str | None], size: int) -> list[str]:
    """Move rows from the end into the holes that bad files left, so that row i is sample i. Returns the ids by row."""
    ids = list(good)
    last = len(ids) - 1
    for hole in [row for row, name in enumerate(good) if name is None]:
        while last > hole and ids[last] is None:
            last -= 1
        if last <= hole:
            break
        os.pwrite(file, os.pread(file, size, last * size), hole * size)
        ids[hole], ids[last] = ids[last], None
    return [name for name in ids if name is not None]


def _refuse_bad(good: int, skipped: Sequence[Skipped], data: Data) -> None:
    total = good + len(skipped)
    if not good or len(skipped) > data.max_bad * total:
        first = "; ".join(f"{bad.file}: {bad.reason}" for bad in skipped[:3])
        raise UserError(
            f"data.root = {data.root}: {len(skipped)} of {total} samples cannot be used, above data.max_bad = "
            f"{data.max_bad:g} (first: {first}). Mend the files, or raise data.max_bad"
        )


def outputs(
    compute: Callable[[NDArray[np.int64], int], dict[str, Tensor]],
    count: int,
    views: int,
    key: Sequence[str],
    voice: Progress = NO_PROGRESS,
    what: str = "teacher",
    batch: int = 64,
) -> dict[str, NDArray[Any]]:
    """compute(rows, view) for every row and view, once: name -> (V,N,...) memory-mapped, fp16.

    compute returns tensors (B,...) by name. key: whatever the values depend on (weights, data, augmentation, seed).
    Half precision halves the disk; where a value is beyond its range that array is kept in fp32.
    """
    folder = home() / what / short([str(FORMAT), str(count), str(views), *key])
    if not folder.is_dir():
        with _draft(folder) as draft:
            _compute_all(compute, count, views, draft, voice, what, batch)
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


def _compute_all(
    compute: Callable[[NDArray[np.int64], int], dict[str, Tensor]],
    count: int,
    views: int,
    draft: Path,
    voice: Progress,
    what: str,
    batch: int,
) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    steps = [(view, start) for view in range(views) for start in range(0, count, batch)]
    for view, start in voice.bar(steps, len(steps), f"{what}, once"):
        rows = np.arange(start, min(start + batch, count))
        with torch.inference_mode():
            values = compute(rows, view)
        for name, value in values.items():
            block = value.float().cpu().numpy()
            if name not in arrays:
                arrays[name] = _array(draft / f"{name}.npy", np.float16, (views, count, *block.shape[1:]))
            if arrays[name].dtype == np.float16 and np.abs(block).max(initial=0) > np.finfo(np.float16).max:
                arrays[name] = _widen(draft / f"{name}.npy", arrays[name])
            arrays[name][view, rows] = block
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]


def _array(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _widen(path: Path, narrow: NDArray[Any]) -> NDArray[Any]:
    wide = _array(path.with_suffix(".wide"), np.float32, narrow.shape)
    wide[:] = narrow
    path.with_suffix(".wide").replace(path)
    return wide


def record(what: str, key: Sequence[str], model: type[M], compute: Callable[[], M]) -> M:
    """compute(), done once for a key and kept as JSON; an entry that cannot be read as `model` is computed again."""
    path = home() / what / f"{short([str(FORMAT), *key])}.json"
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        value = compute()
        with atomic(path) as draft:
            draft.write_text(value.model_dump_json(), encoding="utf-8")
        return value


def digest(tensors: dict[str, Tensor]) -> str:
    """A short name for a state dict's content: equal weights, equal name."""
    state = blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        state.update(name.encode())
        state.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return state.hexdigest()


def short(lines: Sequence[str]) -> str:
    return blake2b("\n".join(lines).encode(), digest_size=12).hexdigest()


def _digests(paths: list[Path], workers: int) -> dict[Path, str]:
    """blake2b of each file's content; "" where it cannot be read (decode will say why). Toys are drawn from code."""

    def one(path: Path) -> str:
        try:
            with (Path(synthetic.__file__) if path == Path() else path).open("rb") as file:
                state = blake2b(digest_size=16)
                while block := file.read(1 << 20):
                    state.update(block)
            return state.hexdigest()
        except OSError:
            return ""

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(paths, pool.map(one, paths), strict=True))


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` when the body ends well. Drafts of dead processes are swept away."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.glob(f".{folder.name}.*"):
        if not alive(int(old.name.rpartition(".")[2])):
            shutil.rmtree(old, ignore_errors=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        try:
            draft.rename(folder)
        except OSError:  # another process was first with the same content
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
