"""The face reader's cost: `taskset -c 0 python -m benchmarks.reader FILM [--record NOTE]`, beside decoding alone.

In: a film with a driver. Out: processor ms a picture of decoding alone and of decoding and reading, in turns, the share
of one core at 25 pictures a second, and memory; rows in results/reader.csv.
"""

import argparse
import resource
import statistics
import time

from stillwatch.inference.face_reader import FaceReader
from stillwatch.monitor.cameras import source

FPS = 25


def spent(film: str, read: FaceReader | None) -> tuple[float, int, int]:
    """-> (processor ms a picture, pictures, of them with a face)."""
    start, count, found = time.process_time(), 0, 0
    for seconds, image in source.frames(film):
        count += 1
        found += read is not None and read(image, seconds) is not None
    return 1e3 * (time.process_time() - start) / count, count, found


def measure(film: str, rounds: int) -> dict[str, float | int | str]:
    """Medians of the rounds. memory_mb: what the reader adds to the process's peak."""
    decode = [spent(film, None)[0]]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, both = FaceReader(), list[float]()
    for _ in range(rounds):
        ms, count, found = spent(film, read)
        both.append(ms)
        decode.append(spent(film, None)[0])
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    alone, whole = statistics.median(decode[1:]), statistics.median(both)
    return {
        "pictures": count, "with_face": found, "decode_ms": alone, "read_ms": whole - alone, "ratio": whole / alone,
        "core_decode": alone * FPS / 1e3, "core_read": whole * FPS / 1e3, "memory_mb": more / 1024,
        "runtime": read.choice.runtime,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("film")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", metavar="NOTE", help="a row into results/reader.csv")
    asked = parser.parse_args()
    figures = measure(asked.film, asked.rounds)
    print(figures)
    if asked.record is not None:
        from benchmarks.record import record_row

        record_row("reader.csv", figures, asked.record)


if __name__ == "__main__":
    main()
