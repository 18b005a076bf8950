"""Cache: what is computed once and kept on disk, whole or not at all, keyed by all that went into it."""

import hashlib
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
from typing import TypeVar

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from torch import Tensor

from stillwatch.atomic import alive, atomic, home
from stillwatch.errors import UserError
from stillwatch.lab.data.reader import decode
from stillwatch.lab.data.sources import Found, Sample, Skipped
from stillwatch.recipe import Data
from stillwatch.run import NO_PROGRESS, Progress

M = TypeVar("M", bound=BaseModel)
FORMAT = 1  # raised whenever the same key would hold other bytes
# Stands for the content of toy pictures, which have no file. It changes whenever media.synthetic draws otherwise; this
# is 0.1.0's, so that its runs keep their fingerprints.
DRAWINGS = "0cc23430487ee9ed07f04e050de10e06"


@dataclass(frozen=True)
class Store:
    """pixels[i], uint8 (T,H,W,C), is samples[i]. `fingerprint` names the data, `key` the pixels, `content` files."""

    samples: list[Sample]
    skipped: list[Skipped]
    pixels: NDArray[np.uint8]  # (N,T,H,W,C), memory-mapped
    fingerprint: str
    key: str
    content: str
    aspect: float | None = None  # width / height before resizing, median; None: decoded by 0.1.0


def pictures(
    found: Found, data: Data, workers: int | None = None, progress: Progress = NO_PROGRESS, place: str = ""
) -> Store:
    """Decode every sample once, keyed by the files' content, in little memory.

    place: where they lie, if not in data.root. Raises UserError where more than data.max_bad cannot be used.
    """
    workers = workers or min(8, len(os.sched_getaffinity(0)))
    content = contents(found.samples, workers)
    about = f"{FORMAT} {data.hw} {data.channels} {data.steps} {data.fit} {data.rate} {data.source}{data.shrink}"
    boxes = [f"{sample.box}" for sample in found.samples] if data.region else []
    key = short([about, *content, *boxes])
    fingerprint = short([f"{line}\t{s.label}\t{s.group}" for line, s in zip(content, found.samples, strict=True)])
    folder = home() / "pictures" / key
    shape = (data.steps, *data.hw, data.channels)
    if not folder.is_dir():
        with _draft(folder) as draft:
            _decode_all(found.samples, data, int(np.prod(shape)), draft, workers, progress)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    skipped = [*found.skipped, *(Skipped(file, reason) for file, reason in index["skipped"])]
    by_id = {sample.id: sample for sample in found.samples}
    samples = [by_id[name] for name in index["ids"]]
    total = len(samples) + len(skipped)
    if not samples or len(skipped) > data.max_bad * total:
        first = "; ".join(f"{bad.file}: {bad.reason}" for bad in skipped[:3])
        raise UserError(
            f"{place or f'data.root = {data.root}'}: {len(skipped)} of {total} samples cannot be used, above "
            f"data.max_bad = {data.max_bad:g} (first: {first}). Mend the files, or raise data.max_bad"
        )
    pixels = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=(len(samples), *shape))
    return Store(samples, skipped, pixels, fingerprint, key, short([str(data.source), *content]), index.get("aspect"))


def contents(samples: Sequence[Sample], workers: int) -> list[str]:
    """A line for each: its id, its files' digests and its frames."""
    paths = sorted({path for sample in samples for path in (sample.path, *sample.older)})
    with ThreadPoolExecutor(workers) as pool:
        digests = dict(zip(paths, pool.map(_file_digest, paths), strict=True))
    return ["\t".join((s.id, digests[s.path], str(s.frames), *(digests[path] for path in s.older))) for s in samples]


def _decode_all(samples: list[Sample], data: Data, size: int, draft: Path, workers: int, progress: Progress) -> None:
    by_file = [list(group) for _, group in groupby(samples, key=lambda sample: sample.path)]
    starts = np.cumsum([0, *map(len, by_file)]).tolist()
    ids: list[str | None] = [None] * len(samples)  # by row; None: bad
    skipped: list[tuple[str, str]] = []
    aspects: list[float] = []
    # OpenCV and FFmpeg release the GIL
    with (draft / "pixels.u8").open("w+b") as file, ThreadPoolExecutor(workers) as pool:
        number = file.fileno()

        def decode_file(which: int) -> None:
            for row, (sample, picture) in enumerate(decode(by_file[which], data, aspects), start=starts[which]):
                if isinstance(picture, str):
                    skipped.append((sample.id, picture))
                else:
                    os.pwrite(number, picture.tobytes(), row * size)
                    ids[row] = sample.id

        waiting: deque[Future[None]] = deque()  # bounded, so that an interrupt does not wait for all files
        for which in progress.bar(range(len(by_file)), len(by_file), "decoding"):
            waiting.append(pool.submit(decode_file, which))
            if len(waiting) >= 4 * workers:
                waiting.popleft().result()
        for future in waiting:
            future.result()
        # Rows from the end fill the holes that bad files left, so that row i is sample i
        count = len(ids) - ids.count(None)
        holes = [row for row in range(count) if ids[row] is None]
        movers = [row for row in reversed(range(count, len(ids))) if ids[row] is not None]
        for hole, row in zip(holes, movers, strict=True):
            os.pwrite(number, os.pread(number, size, row * size), hole * size)
            ids[hole] = ids[row]
        os.ftruncate(number, count * size)
        os.fsync(number)
    index = {"ids": ids[:count], "skipped": sorted(skipped), "aspect": round(float(np.median(aspects or [1])), 4)}
    (draft / "index.json").write_text(json.dumps(index), encoding="utf-8")


def outputs(
    compute: Callable[[NDArray[np.int64], int], dict[str, Tensor]],
    count: int,
    views: int,
    key: Sequence[str],
    progress: Progress = NO_PROGRESS,
    what: str = "teacher",
    batch: int = 64,
) -> dict[str, NDArray[np.floating]]:
    """compute(rows, view) -> tensors (B,...) by name, once: name -> (V,N,...), memory-mapped fp16, beyond its range
    fp32. key: all that the values depend on.
    """
    folder = home() / what / short([str(FORMAT), str(count), str(views), *key])
    if not folder.is_dir():
        with _draft(folder) as draft:
            arrays: dict[str, np.memmap] = {}
            steps = [(view, start) for view in range(views) for start in range(0, count, batch)]
            for view, start in progress.bar(steps, len(steps), f"{what}, once"):
                rows = np.arange(start, min(start + batch, count))
                with torch.inference_mode():
                    values = compute(rows, view)
                for name, value in values.items():
                    block, path = value.float().cpu().numpy(), draft / f"{name}.npy"
                    if name not in arrays:
                        arrays[name] = open_memmap(path, "w+", np.float16, (views, count, *block.shape[1:]))
                    narrow = arrays[name]
                    if narrow.dtype == np.float16 and np.abs(block).max(initial=0) > np.finfo(np.float16).max:
                        arrays[name] = open_memmap(path.with_suffix(".wide"), "w+", np.float32, narrow.shape)
                        arrays[name][:] = narrow
                        path.with_suffix(".wide").replace(path)
                    arrays[name][view, rows] = block
            for array in arrays.values():
                array.flush()
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))}


def record(what: str, key: Sequence[str], model: type[M], compute: Callable[[], M]) -> M:
    """compute() once per key, kept as JSON; again where that is not a `model`."""
    path = home() / what / f"{short([str(FORMAT), *key])}.json"
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        value = compute()
        with atomic(path) as draft:
            draft.write_text(value.model_dump_json(), encoding="utf-8")
        return value


def digest(tensors: dict[str, Tensor]) -> str:
    """Of a state dict's content."""
    state = blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        state.update(name.encode())
        state.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return state.hexdigest()


def short(lines: Sequence[str]) -> str:
    return blake2b("\n".join(lines).encode(), digest_size=12).hexdigest()


def _file_digest(path: Path) -> str:
    """blake2b of the content; "" where unreadable: decode() says why."""
    if path == Path():
        return DRAWINGS
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """Yields a draft that becomes `folder`."""
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
