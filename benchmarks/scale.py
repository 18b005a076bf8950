"""Planning a large archive, measured: `python -m benchmarks.scale`: what list, shares and merge cost as it grows.

In: nothing; the listing is generated, a file's name and size, in folders of folders. Out: seconds and MB of memory for
the list, for one job's share of it, and for a merge of blank shards; rows in results/scale.csv with --record NOTE.
With --clips N: N drawn films scored in a loop, by processes and on Ray.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stillwatch.inference.archive import listing, scoring, shards
from stillwatch.inference.archive.listing import File

FOLDER = 1000  # files of one folder


def generated(count: int) -> Iterator[File]:
    """As listing() would give them: cam-000/0000/000000.jpg, …, by path."""
    for number in range(count):
        day, file = divmod(number, FOLDER)
        name = f"cam-{day // 1000:03d}/{day % 1000:04d}/{file:06d}.jpg"
        yield File(name, 20_000 + zlib.crc32(name.encode()) % 30_000, number)


def blank(task: shards.Task, shard: tuple[File, ...]) -> None:
    """What a worker would write of the shard, without a look at a picture."""
    n = len(shard)
    arrays = {
        "which": np.arange(n), "frame": np.full(n, -1), "time": np.zeros(n), "p": np.full((n, 2), 0.5, np.float32),
        "face": np.zeros((n, 0), np.float32), "bad": np.zeros(0, np.int64), "reason": np.array([], "U1"),
    }  # fmt: skip
    path = Path(task.parts) / shards.part_of(task, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def measure(what: str, count: int, jobs: int, folder: Path) -> None:
    """One step in a process of its own, whose memory is all this step's. Prints seconds, MB, and how many shards."""
    place, n = folder / scoring.LIST, 0
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    task = shards.Task("", str(folder), "", "", (8, 8, 3), "stretch", None, "", labels=("a", "b"))
    if what == "plan":
        n = listing.save(place, listing.cut(generated(count)))
    elif what == "share":
        n = len(list(listing.load(place, 0, jobs)))
    elif what == "blank":
        for n, shard in enumerate(listing.load(place), 1):  # noqa: B007
            blank(task, shard)
    elif what == "merge":
        scoring._write(folder / "s.csv", task, listing.load(place))
    elif what == "list":  # files that are there, of no size
        for number in range(count):
            path = folder / "files" / f"{number // FOLDER:04d}" / f"{number % FOLDER:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        n = sum(1 for _ in listing.cut(listing.listing(folder / "files")))
    seconds = time.process_time() - start
    print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, n)


def steps(sizes: list[int]) -> Iterator[dict[str, object]]:
    for count in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for what, jobs in (("plan", 1), ("share", 1), ("share", 64), ("share", 1024), ("blank", 1), ("merge", 1),
                               ("list", 1)):  # fmt: skip
                if what == "list" and count > 100_000:
                    continue
                words = [sys.executable, "-m", "benchmarks.scale", "--step", what, str(count), str(jobs), folder]
                said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
                size = (Path(folder) / scoring.LIST).stat().st_size
                yield {
                    "step": what, "files": str(count), "jobs": str(jobs), "cpu_s": float(said[0]),
                    "memory_mb": float(said[1]), "shards": int(said[2]), "list_mb": size / 1e6,
                }  # fmt: skip


def engines(count: int) -> Iterator[dict[str, object]]:
    """Wall seconds for `count` films: this process alone, `score` with one and two workers, and on Ray with two."""
    from benchmarks.score import draw, untrained

    with tempfile.TemporaryDirectory() as scratch:
        folder, archive = Path(scratch), Path(scratch, "archive")
        archive.mkdir()
        drawn = folder / "drawn"
        drawn.mkdir()
        draw(drawn, 2.0)
        for number in range(count):
            os.link(drawn / "film.mp4", archive / f"{number:03d}.mp4")
        it = untrained(folder, "smallcnn")
        listing.SHARD = 8  # a shard a film or so: as many tasks as films
        found = tuple(listing.listing(archive))
        for name in ("loop", "1 worker", "2 workers", "ray"):
            start = time.monotonic()
            if name == "loop":
                task = scoring._task(it, archive, folder / "loop.parts", None, scoring.NO_PROGRESS)
                assert not any(shards.do(task, (file,)) for file in found)
            else:
                workers, on = (2, "ray") if name == "ray" else (int(name[0]), "")
                scoring.score(it.path, archive, folder / f"{name}.csv", workers, on=on)
            yield {"step": f"films, {name}", "files": str(count), "jobs": "1" if "1" in name or name == "loop" else "2",
                   "wall_s": time.monotonic() - start}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--clips", type=int, default=0)
    parser.add_argument("--record", metavar="NOTE", help="rows into results/scale.csv")
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        what, count, jobs, folder = asked.step
        return measure(what, int(count), int(jobs), Path(folder))
    for row in engines(asked.clips) if asked.clips else steps(asked.files):
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
        if asked.record is not None:
            from benchmarks.record import record_row

            columns = ("step", "files", "jobs", "cpu_s", "wall_s", "memory_mb", "shards", "list_mb")
            record_row(
                "scale.csv", {name: row.get(name, 0.0) for name in columns}, asked.record, ("step", "files", "jobs")
            )


if __name__ == "__main__":
    main()
