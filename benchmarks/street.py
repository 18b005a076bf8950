"""The street, measured: `python -m benchmarks.street BUNDLE`: four 640×360 H.264 cameras at 10 fps, and decoding alone.

In: a bundle, and with --against another one, or with --workers a number of processes, which take turns with it; with
--film a recording of a driver at 25 fps, one camera, whose face is read and not read in turns. Out:
capture→decision latencies, CPU of watching beside that of decoding the same streams in the same run, start, memory of
one camera, recovery after the server was away; a row in results/street.csv with --record. With --against or --workers:
what four cameras cost as a share of the other side's.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np

from stillwatch.media import synthetic

SIZE, FPS, KEYS = (360, 640), 10, 10  # a keyframe each second, as cameras are set for recording
RULE = '[rule]\nprofile = "driver"\nfaces = "{}"\n'
HERE = Path(__file__).parent.parent


# --- streams --------------------------------------------------------------------------------------------------------


def film(path: Path, seed: int, seconds: float = 20) -> None:
    """A drawn driver as H.264 in MPEG-TS, of about a camera's bit rate."""
    with av.open(str(path), "w", format="mpegts") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"preset": "medium", "tune": "zerolatency", "crf": "26"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.gop_size = KEYS
        for _, picture, _ in synthetic.clip("cabin", seconds, FPS, seed, SIZE):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())


def recoded(path: Path, recording: Path, seconds: float = 20) -> None:
    """A recording in the same form, each of its pictures shown for 1/FPS s, from its start again when it ends."""
    with av.open(str(path), "w", format="mpegts") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "tune": "zerolatency"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.gop_size = KEYS
        for number, picture in zip(range(round(FPS * seconds)), repeated(recording), strict=False):
            frame = picture.reformat(*SIZE[::-1], "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def repeated(recording: Path) -> Iterator[av.VideoFrame]:
    while True:
        with av.open(str(recording)) as source:
            yield from source.decode(video=0)


def packets(path: Path) -> list[bytes]:
    """The file in pieces, one a frame: cut where a new picture of the video begins."""
    raw = path.read_bytes()
    starts = [at for at in range(0, len(raw), 188) if raw[at + 1] & 0x40 and _pid(raw, at) == 256]
    return [raw[a:b] for a, b in zip([0, *starts[1:]], [*starts[1:], len(raw)], strict=True)]


def _pid(raw: bytes, at: int) -> int:
    return (raw[at + 1] & 0x1F) << 8 | raw[at + 2]


def serve(films: list[Path], port: int, fps: float) -> None:
    """A process that sends each film in a loop, one frame every 1/fps seconds, to whoever asks."""
    pieces = [packets(path) for path in films]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mine = pieces[int(self.path.strip("/"))]
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            due = time.monotonic()
            try:
                while True:
                    for piece in mine:
                        due += 1 / fps
                        time.sleep(max(0.0, due - time.monotonic()))
                        self.wfile.write(piece)
            except OSError:
                return

        def log_message(self, *_: Any) -> None:
            pass

    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer.allow_reuse_address = True
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


@contextmanager
def streams(films: list[Path], port: int) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", "benchmarks.street", "--serve", str(port), str(FPS), *map(str, films)]
    with subprocess.Popen(words, cwd=HERE) as process:
        try:
            until(lambda: answered(f"http://127.0.0.1:{port}/0"), 20)
            yield process
        finally:
            process.kill()


def answered(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return answer.status == 200
    except OSError:
        return False


def until(true: Any, seconds: float, step: float = 0.02) -> float:
    """Wait for it; how long it took, s. Raises TimeoutError."""
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(step)
    return time.monotonic() - start


# --- measured -------------------------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    below = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        children = [
            int(word) for task in below.parent.parent.iterdir() for word in (task / "children").read_text().split()
        ]
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(child))]


def cpu(pid: int) -> float:
    """Seconds of processor time of a process and all that it started, so far."""
    total = 0.0
    for one in family(pid):
        try:
            words = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return total


def memory(pid: int) -> dict[str, float]:
    """MB of a process and all that it started: pss (shared pages counted once) and rss (counted in each)."""
    found = {"pss": 0, "rss": 0}
    for one in family(pid):
        text = Path(f"/proc/{one}/smaps_rollup").read_text()
        for key in found:
            found[key] += int(re.search(rf"^{key.capitalize()}:\s+(\d+)", text, re.M)[1])  # type: ignore[index]
    return {key: kilobytes / 1000 for key, kilobytes in found.items()}


def decode(url: str) -> None:
    """The rival: a process that decodes a stream as it comes, one thread, and does nothing with it."""
    with av.open(url) as source:
        source.streams.video[0].codec_context.thread_count = 1
        for _ in source.decode(video=0):
            pass


@contextmanager
def decoding(urls: list[str]) -> Iterator[int]:
    words = [sys.executable, "-m", "benchmarks.street", "--decode"]
    with subprocess.Popen([*words, *urls], cwd=HERE) as process:
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)


@contextmanager
def watching(
    bundle: Path, urls: list[str], folder: Path, port: int, workers: int = 1, rule: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """`stillwatch watch` with its page and store, every latency written to latencies.json at the end."""
    cameras = "".join(f'[[camera]]\nname = "c{n}"\nsource = "{url}"\n' for n, url in enumerate(urls))
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "watch.toml"
    head = f'bundle = "{bundle.resolve()}"\nworkers = {workers}\n{rule}[web]\nport = {port}\n'
    plan.write_text(head + cameras, encoding="utf-8")
    words = [sys.executable, "-m", "benchmarks.street", "--watch", str(plan)]
    with subprocess.Popen(words, cwd=HERE, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)


def watch(plan: Path) -> None:
    """What `stillwatch watch` does, with every single latency kept."""
    from stillwatch.monitor.config import load
    from stillwatch.monitor.service import serve as run
    from stillwatch.monitor.state import Gauges

    kept: list[tuple[float, float]] = []
    plain = Gauges.latency

    def latency(self: Gauges, camera: str, seconds: float) -> None:
        kept.append((time.monotonic(), seconds))
        plain(self, camera, seconds)

    Gauges.latency = latency  # type: ignore[method-assign]
    run(load(plan), print)
    plan.with_name("latencies.json").write_text(json.dumps(kept), encoding="utf-8")


def busy(
    sides: list[tuple[Path, int, str]], folder: Path, urls: list[str], port: int, seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """CPU of decoding alone and of watching with each side, taking turns; latencies of all rounds."""
    alone: list[float] = []
    spent: list[list[float]] = [[] for _ in sides]
    ages: list[list[float]] = [[] for _ in sides]
    held: list[list[dict[str, float]]] = [[] for _ in sides]
    for number in range(rounds):
        with decoding(urls) as pid:
            time.sleep(3)
            before = cpu(pid)
            time.sleep(seconds)
            alone.append((cpu(pid) - before) / seconds)
        turns = list(enumerate(sides))
        for which, (bundle, workers, rule) in turns[::-1] if number % 2 else turns:
            place = folder / f"round{number}-{which}"
            with watching(bundle, urls, place, port, workers, rule) as process:
                until(lambda: answered(f"http://127.0.0.1:{port}/readyz"), 60)
                time.sleep(3)
                before, start = cpu(process.pid), time.monotonic()
                time.sleep(seconds)
                spent[which].append((cpu(process.pid) - before) / seconds)
                held[which].append(memory(process.pid))
            every = json.loads((place / "latencies.json").read_text())
            ages[which] += [age for at, age in every if start <= at <= start + seconds]
    found = []
    for times, used, kept in zip(ages, map(statistics.median, spent), held, strict=True):
        p50, p95, p99 = 1e3 * np.percentile(times, [50, 95, 99])
        decode = statistics.median(alone)
        found.append({
            "cameras": len(urls), "frames_per_s": len(times) / seconds / rounds, "p50_ms": p50, "p95_ms": p95,
            "p99_ms": p99, "max_ms": 1e3 * max(times), "cpu_decode": decode, "cpu_watch": used,
            "cpu_ratio": used / decode, **{f"{key}_mb": max(one[key] for one in kept) for key in kept[0]},
        })  # fmt: skip
    return found


def one(bundle: Path, folder: Path, films: list[Path], port: int) -> dict[str, Any]:
    """One camera: seconds to ready, memory after a while, seconds to a frame once a lost server is back."""
    page, url = f"http://127.0.0.1:{port + 1}", f"http://127.0.0.1:{port}/0"

    def state() -> tuple[str, int]:
        with urllib.request.urlopen(f"{page}/api/v1/cameras", timeout=2) as answer:
            camera = json.load(answer)["cameras"][0]
        return camera["state"], int(camera["counters"]["frames"])

    back = []
    with streams(films, port) as server:
        time.sleep(0.5)
        with watching(bundle, [url], folder / "one", port + 1) as process:
            ready = until(lambda: answered(f"{page}/readyz"), 30, 0.01)
            time.sleep(10)
            held = memory(process.pid)
            server.kill()
            server.wait()
            lost = until(lambda: state()[0] == "lost", 20)
            for away in (2, 8, 15):
                time.sleep(away)
                before = state()[1]
                with streams(films, port) as server:
                    back.append(until(lambda before=before: state()[1] > before, 30))  # type: ignore[misc]
                    time.sleep(1)
                until(lambda: state()[0] == "lost", 20)
            process.send_signal(signal.SIGTERM)
            stop = until(lambda: process.poll() is not None, 20)
    return {
        "ready_s": ready, "pss_mb": held["pss"], "rss_mb": held["rss"], "lost_noticed_s": lost,
        "recovered_s": max(back), "stop_s": stop,
    }  # fmt: skip


def told(figures: dict[str, Any]) -> None:
    for key, value in figures.items():
        print(f"{key:16} {value:.4g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--against", type=Path, metavar="BUNDLE", help="take turns with this one, and say the ratios")
    parser.add_argument("--workers", type=int, help="of watch.toml: take turns with one process, and say the ratios")
    parser.add_argument("--film", type=Path, help="one camera at 25 fps, with its driver's face read and not, in turns")
    parser.add_argument("--seconds", type=float, default=20, help="of each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--port", type=int, default=8790)
    parser.add_argument("--record", metavar="NOTE", help="a row into results/street.csv")
    asked = parser.parse_args()
    if asked.film:
        globals().update(FPS=25, KEYS=25)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        films = [folder / f"film{n}.ts" for n in range(1 if asked.film else 4)]
        for number, path in enumerate(films):
            if asked.film:
                recoded(path, asked.film)
            else:
                film(path, number)
        with streams(films, asked.port):
            urls = [f"http://127.0.0.1:{asked.port}/{n}" for n in range(len(films))]
            sides = [(asked.bundle, asked.workers or 1, RULE.format("yes") if asked.film else "")]
            if asked.against or asked.workers or asked.film:
                sides.append((asked.against or asked.bundle, 1, RULE.format("no") if asked.film else ""))
            figures, *others = busy(sides, folder, urls, asked.port + 1, asked.seconds, asked.rounds)
        told(figures)
        for other in others:
            print(f"against {asked.against or ('no face read' if asked.film else 'one process')}:")
            told(other)
            told({f"{key} ×": figures[key] / other[key] for key in ("p50_ms", "p95_ms", "cpu_watch")})
            if asked.film and asked.record is not None:
                from benchmarks.record import record_row

                unknown = dict.fromkeys(("ready_s", "lost_noticed_s", "recovered_s", "stop_s"))
                for faces, row in (("face read", figures), ("no face read", other)):
                    about = {"bundle": f"{asked.bundle.name}, {faces}"}
                    record_row("street.csv", {**about, **row, **unknown}, asked.record)
            return
        alone = one(asked.bundle, folder, films, asked.port + 2)
        told(alone)
        figures |= alone
    if asked.record is not None:
        from benchmarks.record import record_row

        record_row("street.csv", {"bundle": asked.bundle.name, **figures}, asked.record)


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve([Path(word) for word in sys.argv[4:]], int(sys.argv[2]), float(sys.argv[3]))
    elif "--decode" in sys.argv:
        threads = [threading.Thread(target=decode, args=(url,), daemon=True) for url in sys.argv[2:]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    elif "--watch" in sys.argv:
        watch(Path(sys.argv[2]))
    else:
        main()
