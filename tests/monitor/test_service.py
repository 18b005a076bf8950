"""The street by its command: a film to its end, a signal, kills of either process, memory that stays flat."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from bundles import made, onnx_net
from event_toys import until

from stillwatch.monitor.events import database

RED, GREEN = (255, 120, 120), (60, 255, 60)  # the toy net finds red safe, and green a danger


def film(path: Path, *acts: tuple[tuple[int, int, int], float], fps: int = 10) -> Path:
    """H.264, a keyframe a second; each act one colour for some seconds, darker to the left, with a sensor's noise."""
    chance = np.random.default_rng(0)
    shade = np.linspace(0.2, 1, 64)[None, :, None]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = fps
        for colour, seconds in acts:
            for _ in range(round(seconds * fps)):
                noise = chance.integers(-20, 20, (48, 64, 3))
                picture = np.clip(np.array(colour) * shade + noise, 0, 255).astype(np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return made(tmp_path, {"model.onnx": onnx_net(tmp_path / "m.onnx")}).path


@contextmanager
def watching(*words: Any) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "stillwatch", "watch", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def page(process: subprocess.Popen[str]) -> str:
    """The address that it prints."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"page: (http://\S+)/", line):
            return found[1]
    raise AssertionError("it ended without a page")


def ask(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=5) as answer:
        return json.load(answer)


def camera(address: str) -> dict[str, Any]:
    (found,) = ask(f"{address}/api/v1/cameras")["cameras"]
    return found


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def plays(path: Path) -> float:
    """Seconds of a clip, decoded to its end."""
    with av.open(str(path)) as clip:
        return sum(1 for _ in clip.decode(video=0)) / 10


def test_a_film_is_watched_to_its_end_and_its_event_told_kept_and_cut_out(tmp_path: Path, bundle: Path) -> None:
    source = film(tmp_path / "night.mp4", (RED, 4), (GREEN, 6), (RED, 14))
    path = tmp_path / "watch.toml"
    path.write_text(
        f'bundle = "{bundle.name}"\n[rule]\nprofile = "cctv"\n[web]\non = false\n'
        f'[keep]\npre = 1\npost = 1\n[[camera]]\nname = "yard"\nsource = "{source.name}"\nspeed = 0\n'
        '[[camera]]\nname = "gone"\nsource = "no-such-film.mp4"\n'
        '[[sink]]\nname = "lines"\nto = { name = "jsonl", path = "' + str(tmp_path / "told.jsonl") + '" }\n'
        'level = "notice"\n'
    )
    with watching(path) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "gone: " in out
    assert "no such file" in out
    (event,) = database.events(tmp_path / "watch")
    assert (event.camera, event.kind, event.state) == ("yard", "danger", "closed")
    assert 5 < event.end - event.start < 13
    clip = tmp_path / "watch" / event.clip
    assert plays(clip) > event.end - event.start
    assert (tmp_path / "watch" / event.thumbnail).stat().st_size > 100
    sent = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert [one["id"] for one in sent] == [event.id]
    said = subprocess.run(
        [sys.executable, "-m", "stillwatch", "events", "--in", str(tmp_path / "watch"), "--json", "--since", "1h"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert json.loads(said)["id"] == event.id


def test_sigterm_closes_the_clip_and_ends_it(tmp_path: Path, bundle: Path) -> None:
    source = film(tmp_path / "night.mp4", (GREEN, 60))
    with watching(bundle, "--source", source, "--port", 0, "--out", tmp_path / "kept") as process:
        address = page(process)
        until(lambda: camera(address)["open"], 30)
        child = children(process.pid)
        assert child
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        out, _ = process.communicate(timeout=20)
        took = time.monotonic() - start
    assert process.returncode == 0, out
    assert took < 6, "promised: 3 s, on a machine that does nothing else"
    assert all(gone(pid) for pid in child)
    (event,) = database.events(tmp_path / "kept")
    assert event.state == "closed"
    assert plays(tmp_path / "kept" / event.clip) > 1
    assert not list((tmp_path / "kept").rglob("*.part"))


def test_sighup_ends_it_as_sigterm_does(tmp_path: Path, bundle: Path) -> None:
    with watching(bundle, "--source", "toy://street", "--port", 0, "--out", tmp_path / "kept") as process:
        page(process)
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0, out


def test_a_signal_during_the_start_is_not_lost(bundle: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from stillwatch.inference.detector import Detector
from stillwatch.monitor import config, loop, service

def interrupted(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return Detector(*arguments, **options)

loop.Detector, before = interrupted, signal.getsignal(signal.SIGINT)  # ignored where a shell put us behind
loaded = config.single(Path({str(bundle)!r}), "toy://street")
kept = Path({str(bundle.parent / "kept")!r})
service.serve(loaded._replace(config=loaded.config.amended(folder=kept, on=False)), print)
assert signal.getsignal(signal.SIGINT) is before
print("ended by itself")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ended by itself\n")


def test_a_watch_that_never_saw_a_frame_fails(tmp_path: Path, bundle: Path) -> None:
    with watching(bundle, "--source", "/dev/video87", "--no-page", "--for", 1.5, "--out", tmp_path / "kept") as process:
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 1, out
    assert "no camera gave a frame: video87: no such webcam; this machine has" in " ".join(out.split())


def test_a_killed_camera_process_is_started_again(tmp_path: Path, bundle: Path) -> None:
    with watching(bundle, "--source", "toy://street", "--port", 0, "--out", tmp_path / "kept") as process:
        address = page(process)
        until(lambda: camera(address)["counters"].get("frames", 0) > 3, 30)
        (child,) = children(process.pid)
        os.kill(child, signal.SIGKILL)
        until(lambda: camera(address)["counters"]["respawns"] == 1, 30)
        seen = camera(address)["counters"]["frames"]
        until(lambda: camera(address)["counters"]["frames"] > seen + 3, 30)
        assert children(process.pid) != [child]


def test_a_killed_watch_leaves_no_process_and_its_event_and_clip_to_the_next(tmp_path: Path, bundle: Path) -> None:
    source, kept = film(tmp_path / "night.mp4", (GREEN, 60)), tmp_path / "kept"
    with watching(bundle, "--source", source, "--port", 0, "--out", kept) as process:
        address = page(process)
        until(lambda: camera(address)["open"], 30)
        until(lambda: database.events(kept), 10)
        child = children(process.pid)
        process.kill()
    until(lambda: all(gone(pid) for pid in child), 15)
    until(lambda: not list(kept.rglob("*.part")), 15)  # the child closed its clip when it found itself alone
    (before,) = database.events(kept)
    assert (before.state, before.clip) == ("opened", None)
    calm = film(tmp_path / "calm.mp4", (RED, 1))
    with watching(bundle, "--source", calm, "--no-page", "--out", kept) as process:
        process.communicate(timeout=60)
    (after,) = database.events(kept)
    assert (after.id, after.state) == (before.id, "closed")
    assert plays(kept / after.clip) > 0


def test_the_street_needs_no_torch() -> None:
    code = (
        "import sys\nfrom stillwatch.inference.archive import scoring\n"
        "from stillwatch.monitor import doctor, loop, service\n"
        "from stillwatch.monitor.web import app\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules, sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def resident(pid: int) -> float:
    """MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1000  # type: ignore[index]


def test_memory_stays_flat(tmp_path: Path, bundle: Path) -> None:
    """A film of 18 s in a loop, as fast as it goes: events, clips and thumbnails again and again."""
    source = film(tmp_path / "night.mp4", (RED, 12), (GREEN, 6))
    path = tmp_path / "watch.toml"
    path.write_text(
        f'bundle = "{bundle.name}"\n[rule]\nprofile = "cctv"\ncooldown = 0\n[web]\nport = 0\n'
        f'[[camera]]\nname = "yard"\nsource = "{source.name}"\nspeed = 0\nloop = true\n'
    )

    def frames(address: str) -> float:
        return camera(address)["counters"].get("frames", 0)

    with watching(path) as process:
        address = page(process)
        until(lambda: frames(address) > 2_000, 60)
        pids = [process.pid, *children(process.pid)]
        before = [resident(pid) for pid in pids]
        until(lambda: frames(address) > 8_000, 120)
        after = [resident(pid) for pid in pids]
        assert len(pids) == 2
    grown = [b - a for a, b in zip(before, after, strict=True)]
    assert max(grown) < 15, f"MB: {before} -> {after}"
    assert len(database.events(tmp_path / "watch", limit=500)) > 20


def test_what_is_kept_is_its_user_s_alone_and_there_are_descriptors_enough(tmp_path: Path, bundle: Path) -> None:
    source = film(tmp_path / "night.mp4", (RED, 2), (GREEN, 4))
    code = (
        "import os, resource, runpy, sys\nos.umask(0o022)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "from stillwatch.monitor import service\n"
        "def loop(self): print('soft', resource.getrlimit(resource.RLIMIT_NOFILE)[0]); return run(self)\n"
        "run, service.Watch.run = service.Watch.run, loop\nrunpy.run_module('stillwatch', run_name='__main__')\n"
    )
    kept = tmp_path / "kept"
    command = [
        sys.executable,
        "-c",
        code,
        "watch",
        str(bundle),
        "--source",
        str(source),
        "--no-page",
        "--out",
        str(kept),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (soft := re.search(r"soft (\d+)", done.stdout)), done.stderr
    assert int(soft[1]) >= 1024
    files = [path for path in kept.rglob("*") if path.is_file() and path.suffix in (".db", ".mp4", ".jpg")]
    assert {path.suffix for path in files} == {".db", ".mp4", ".jpg"}
    assert {path.stat().st_mode & 0o077 for path in (kept, *files)} == {0}
