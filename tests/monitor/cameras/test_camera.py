"""Cameras under fault: what stalls, dies, lies or comes back, while the others see on."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import streams

from stillwatch.bundle import Input
from stillwatch.errors import UserError
from stillwatch.media import image as pixels
from stillwatch.monitor import config
from stillwatch.monitor.cameras import source
from stillwatch.monitor.cameras.camera import Camera, Frame, Note
from stillwatch.monitor.cameras.channel import Channel, load_plain

SHAPE = (48, 64, 1)
PATIENCE = 30.0  # seconds that a busy machine may need for what takes one


class Watched:
    """A camera, and all that it has given."""

    def __init__(self, address: str, keep: config.Keep | None = None, shape: tuple[int, int, int] = SHAPE, **keys: Any):
        # Shorter than the defaults, so that the tests are
        keys = {"name": "cab", "fps": streams.FPS, "stall": 1.0, "backoff": (0.1, 0.5), **keys}
        takes = Input(shape=shape, aspect=keys.pop("aspect", None))
        self.camera = Camera(config.CameraConfig(source=address, **keys), keep or config.Keep(pre=1), takes)
        self.frames: list[Frame] = []
        self.notes: list[Note] = []
        self.camera.start()

    def step(self, timeout: float = 0.05) -> None:
        if self.camera.connection is not None:
            wait([self.camera.connection], timeout)
        else:
            time.sleep(timeout)
        for one in self.camera.take():
            (self.frames if isinstance(one, Frame) else self.notes).append(one)  # type: ignore[arg-type]
        self.camera.tick(time.monotonic())

    def until(self, done: Callable[[], Any], *others: "Watched") -> float:
        """Watch until it is so; how many seconds it took."""
        begun = time.monotonic()
        while not done():
            assert time.monotonic() - begun < PATIENCE, f"{self.camera.state}: {self.camera.words}; {self.notes[-3:]}"
            self.step()
            for other in others:
                other.step(0)
        return time.monotonic() - begun

    def more(self, count: int) -> Callable[[], bool]:
        """That many more frames."""
        target = len(self.frames) + count
        return lambda: len(self.frames) >= target

    def is_(self, *states: str) -> Callable[[], bool]:
        return lambda: self.camera.state in states

    def of(self, what: str) -> list[dict[str, Any]]:
        return [note.fields for note in self.notes if note.what == what]

    def stop(self, within: float = 3.0) -> float:
        begun = time.monotonic()
        self.camera.stop(within)
        took = time.monotonic() - begun
        for one in self.camera.take():
            (self.frames if isinstance(one, Frame) else self.notes).append(one)  # type: ignore[arg-type]
        return took


@pytest.fixture
def watched() -> Iterator[Callable[..., Watched]]:
    opened: list[Watched] = []

    def open_(address: str, **keys: Any) -> Watched:
        opened.append(Watched(address, **keys))
        return opened[-1]

    yield open_
    for one in opened:
        one.camera.stop(1.0)


def state_of(process: int) -> str:
    """R running, S asleep, T halted, Z dead but not reaped, "" gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def halt(process: int) -> None:
    os.kill(process, signal.SIGSTOP)
    while state_of(process) != "T":  # on a busy machine one of its threads may run on for a moment
        time.sleep(0.01)


def length_of_part(path: Path) -> bool:
    """Whether a clip that grows has something to play."""
    try:
        return length(path) > 10
    except (OSError, ValueError):  # no whole fragment yet
        return False


def length(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


# ---- what was filmed


def test_a_film_is_seen_whole_at_the_nets_size_with_its_own_seconds(tmp_path: Path, watched: Any) -> None:
    film = streams.film(tmp_path / "a.mp4", 3)
    cab = watched(str(film), speed=0, shape=(40, 60, 3))
    cab.until(cab.is_("ended"))
    cab.step()  # tick() may have read the last frame
    expected = list(source.frames(str(film)))
    assert [frame.index for frame in cab.frames] == list(range(30))
    assert [frame.time for frame in cab.frames] == pytest.approx([seconds for seconds, _ in expected])
    for frame, (_, image) in zip(cab.frames, expected, strict=True):
        assert (frame.image == pixels.fit(image, (40, 60), "stretch", 3)).all(), "what pixels.fit gives, to the bit"
    assert not cab.camera.live and cab.camera.counters["dropped"] == 0
    cab.step()  # tick() may have read the last note
    assert [fields["state"] for fields in cab.of("state")] == ["live", "ended"]


def test_a_film_waits_for_one_who_looks_away(tmp_path: Path, watched: Any) -> None:
    cab = watched(str(streams.film(tmp_path / "a.mp4", 2)), speed=0)
    cab.until(cab.more(3))
    time.sleep(0.5)
    cab.until(cab.is_("ended"))
    cab.step()  # tick() may have read the last frame
    assert [frame.index for frame in cab.frames] == list(range(20))


def test_a_film_in_its_own_time_and_again_from_the_start(tmp_path: Path, watched: Any) -> None:
    cab = watched(str(streams.film(tmp_path / "a.mp4", 0.5)), speed=1, loop=True)
    cab.until(cab.more(12))
    assert [round(frame.time, 3) for frame in cab.frames[:12]] == [n / 10 for n in range(12)]
    gaps = np.diff([frame.captured for frame in cab.frames])
    assert np.median(gaps) == pytest.approx(0.1, abs=0.05)


def test_a_film_goes_on_where_its_killed_reader_was(tmp_path: Path, watched: Any) -> None:
    cab = watched(str(streams.film(tmp_path / "a.mp4", 4)), speed=4)
    cab.until(cab.more(10))
    os.kill(cab.camera._child.pid, signal.SIGKILL)
    cab.until(cab.is_("ended"))
    cab.step()  # tick() may have read the last frame
    assert [frame.index for frame in cab.frames] == list(range(40))
    assert cab.camera.counters["respawns"] == 1


def test_a_folder_and_a_toy_are_cameras_too(tmp_path: Path, watched: Any) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((60, 80, 3), 50 * number, np.uint8))
    (tmp_path / "3.jpg").write_bytes(b"no picture")
    cab = watched(str(tmp_path), speed=0, fps=5)
    cab.until(cab.is_("ended"))
    assert [(frame.time, int(frame.image[0, 0, 0])) for frame in cab.frames] == [(0, 0), (0.2, 50), (0.4, 100)]
    assert "3.jpg" in cab.of("trouble")[0]["words"]
    toy = watched("toy://driver?seconds=1&size=48x64&seed=2", speed=0)
    toy.until(toy.is_("ended"))
    assert len(toy.frames) == 10 and toy.frames[0].image.shape == SHAPE


# ---- streams under fault


@pytest.mark.parametrize("kind", ["mjpeg", "ts"])
def test_a_stream_is_live_and_its_newest_frame_is_young(kind: Any, watched: Any) -> None:
    with streams.Server(kind) as server:
        cab = watched(server.url)
        cab.until(cab.more(15))
        assert cab.camera.live and cab.camera.state == "live"
        for frame in cab.frames:
            assert frame.image.shape == SHAPE and frame.status == "ok"
            assert frame.time == frame.captured and abs(time.monotonic() - frame.time) < 10
        assert cab.camera.counters["bytes"] > 1000
        assert cab.stop() < 3


def test_one_who_looks_away_gets_the_newest_and_the_others_are_counted(watched: Any) -> None:
    with streams.Server("mjpeg") as server:
        cab = watched(server.url)
        cab.until(cab.more(3))
        time.sleep(1.0)
        count = len(cab.frames)
        cab.step()
        assert len(cab.frames) <= count + 1, "no queue"
        cab.until(cab.more(2))
        assert time.monotonic() - cab.frames[-1].captured < 0.5
        cab.until(lambda: cab.camera.counters["dropped"] >= 5)


FAULTS = ("ts freeze", "ts refuse", "ts garbage", "mjpeg drop", "mjpeg garbage", "mjpeg deaf")


def test_every_fault_is_noticed_and_comes_back_and_no_other_camera_sees_any_of_it(watched: Any) -> None:
    """Stall 1 s, of the slow camera 3 s; back-off 0.2 to 1 s."""
    with ExitStack() as stack:
        servers = {name: stack.enter_context(streams.Server(name.split()[0])) for name in FAULTS}
        them = {name: watched(server.url, name="x", fps=8, backoff=(0.2, 1.0)) for name, server in servers.items()}
        well, slow, still = (stack.enter_context(streams.Server("mjpeg")) for _ in range(3))
        slow.fault, still.fault = "slow", "still"
        healthy, patient, frozen = watched(well.url), watched(slow.url, stall=3.0), watched(still.url)
        killed = watched("toy://driver?size=48x64")
        everyone = [*them.values(), healthy, patient, frozen, killed]

        def all_(done: Callable[[Watched], Any], some: Iterable[Watched] = them.values()) -> float:
            return healthy.until(lambda: all(done(one) for one in some), *everyone)

        all_(lambda one: len(one.frames) >= 5, everyone)
        os.kill(killed.camera._child.pid, signal.SIGKILL)
        before = {name: server.connections for name, server in servers.items()}
        for name, server in servers.items():
            server.fault = name.split()[1]
        assert all_(lambda one: one.camera.state == "lost") < 1.0 + 2.0
        seen = [len(one.frames) for one in them.values()]
        assert "refused" in them["ts refuse"].camera.words
        all_(lambda one: one.frames[-1].status == "frozen", [frozen])
        tried = [name for name in servers if "refuse" not in name]
        healthy.until(lambda: all(servers[name].connections > before[name] for name in tried), *everyone)
        assert [len(one.frames) for one in them.values()] == seen, "a lost stream is no frame, never a black one"

        for server in servers.values():
            server.fault = ""
        assert all_(lambda one: one.camera.state == "live") < 5, "once the server is back"
        all_(lambda one: one.camera.counters["reconnects"])
        for name, one in them.items():
            assert one.camera.counters["stalls"] == (name.split()[1] not in ("drop", "refuse")), name
            assert one.camera.counters["respawns"] == 0
        assert killed.camera.counters["respawns"] == 1 and killed.camera.state == "live"
        assert frozen.camera.state == "live", "frozen is not lost"
        assert [fields["state"] for fields in patient.of("state")] == ["live"], "slow is not lost"
        assert [fields["state"] for fields in healthy.of("state")] == ["live"]
        assert {frame.status for frame in healthy.frames} == {"ok"}
        assert np.diff([frame.captured for frame in healthy.frames]).max() < 1.5


def test_a_picture_that_is_cut_off_is_counted_and_never_looked_at(watched: Any) -> None:
    with streams.Server("mjpeg", fault="cut") as server:
        cab = watched(server.url)
        cab.until(lambda: cab.camera.damaged and cab.camera.counters["damaged"] >= 10)
        cab.until(cab.more(10))
        assert (cab.camera.state, cab.camera.counters["stalls"]) == ("live", 0)
        assert cab.camera.words == "some pictures arrive damaged and are left out"
        assert len(cab.of("trouble")) == 1
        server.fault = ""
        cab.until(lambda: cab.camera.words == "live")
    assert min(frame.image[-8:].std() for frame in cab.frames) > 3, "what decoders fill in has one shade"


def test_a_stream_that_comes_in_pieces_is_seen_in_its_own_time(watched: Any, tmp_path: Path) -> None:
    streams.pieces(streams.film(tmp_path / "a.mp4", 4), tmp_path / "a.m3u8")
    handler = partial(SilentFiles, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        cab = watched(f"http://127.0.0.1:{server.server_port}/a.m3u8")
        cab.until(cab.more(20))
        cab.stop()
        server.shutdown()
        thread.join()
    assert np.median(np.diff([frame.captured for frame in cab.frames])) == pytest.approx(0.1, abs=0.05)
    assert cab.camera.counters["dropped"] == cab.camera.counters["stalls"] == 0


class SilentFiles(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("kind", ["mjpeg", "ts"])
def test_a_change_of_size_breaks_nothing(kind: Any, watched: Any, tmp_path: Path) -> None:
    with streams.Server(kind, size=(96, 128)) as server:
        cab = watched(server.url)
        cab.until(cab.more(5))
        cab.camera.record("one", tmp_path / "one.mp4", cab.frames[-1].time - 1, None)
        cab.until(cab.more(5))
        server.size = (120, 160)
        cab.until(lambda: cab.of("clip"))
        cab.until(cab.more(10))
        assert {frame.image.shape for frame in cab.frames} == {SHAPE}
        assert cab.of("clip")[0]["whole"] is False, "a clip is cut there"
        with av.open(str(tmp_path / "one.mp4")) as container:
            assert {frame.height for frame in container.decode(video=0)} == {96}


# ---- processes under fault


def test_a_killed_child_is_replaced_and_its_clip_kept(watched: Any, tmp_path: Path) -> None:
    with streams.Server("ts") as server:
        cab = watched(server.url)
        cab.until(cab.more(10))
        cab.camera.record("one", tmp_path / "clips" / "one.mp4", cab.frames[-1].time - 1, None)
        cab.until(lambda: length_of_part(tmp_path / "clips" / "one.mp4.part"))
        os.kill(cab.camera._child.pid, signal.SIGKILL)
        cab.until(cab.is_("lost"))
        assert "signal 9" in cab.camera.words
        cab.until(cab.more(5))
        assert cab.camera.state == "live" and cab.camera.counters["respawns"] == 1
        assert cab.camera.counters["frames"] == len(cab.frames)
        (clip,) = cab.of("clip")
        assert clip["event"] == "one" and clip["whole"] is False
        assert clip["path"] == tmp_path / "clips" / "one.mp4" and length(clip["path"]) >= 10


def test_a_hung_child_is_killed_and_replaced(watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillwatch.monitor.cameras.camera.GRACE", 0.0)
    with streams.Server("mjpeg") as server:
        cab = watched(server.url, stall=0.5)
        cab.until(cab.more(5))
        child = cab.camera._child.pid
        halt(child)
        assert cab.until(cab.is_("lost")) < 3, "seen from outside: no picture"
        assert cab.camera.counters["stalls"] == 1
        cab.until(cab.more(5))
        assert cab.camera.counters["respawns"] == 1 and cab.camera._child.pid != child


def test_a_child_that_never_speaks_gets_twice_as_long_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow board may need more than a fixed time to start one, and would never see a picture."""

    with ExitStack() as ends:
        pairs = [socket.socketpair() for _ in range(5)]
        for pair in pairs:
            ends.enter_context(pair[0])
            ends.enter_context(pair[1])
        left = iter(pair[0] for pair in pairs)
        monkeypatch.setattr(
            f"{Camera.__module__}.spawn", lambda module: (subprocess.Popen(["sleep", "60"]), next(left))
        )
        camera = Camera(config.CameraConfig(name="cab", source="toy://driver"), config.Keep(), Input(shape=SHAPE))
        camera.start()
        for patience in (20, 40, 80, 160, 160):
            camera.tick(camera._born + patience - 1)
            assert camera.connection is not None
            camera.tick(camera._born + patience + 1)
            assert camera.words == f"its process gave no sign of life for {patience} s"
            if camera._mute < 5:
                camera.tick(camera._respawn or 0.0)


def test_a_stop_is_quick_and_closes_clips_even_while_a_connection_hangs(watched: Any, tmp_path: Path) -> None:
    with streams.Server("ts") as server:
        cab = watched(server.url, stall=20.0)
        cab.until(cab.more(10))
        cab.camera.record("one", tmp_path / "one.mp4", cab.frames[-1].time - 1, None)
        cab.until(cab.more(5))
        server.fault = "freeze"  # the child now waits up to 20 s for the next byte
        time.sleep(0.3)
        assert cab.stop(3.0) < 3
        (clip,) = cab.of("clip")
        assert clip["seconds"] > 0.5 and length(tmp_path / "one.mp4") >= 10
    with streams.Server("ts", fault="deaf") as server:
        cab = watched(server.url, stall=20.0)
        cab.until(lambda: server.connections)
        assert cab.stop(3.0) < 3


def test_a_deaf_child_is_killed_at_the_end_of_a_stop(watched: Any) -> None:
    cab = watched("toy://driver?size=48x64")
    cab.until(cab.more(1))
    child = cab.camera._child
    halt(child.pid)
    assert cab.stop(0.5) < 2
    assert child.returncode == -signal.SIGKILL
    assert cab.camera.connection is None and cab.camera.take() == []


ORPHAN = """
import os, signal, sys, time
from stillwatch.bundle import Input
from stillwatch.monitor.cameras.camera import Camera
from stillwatch.monitor.config import CameraConfig, Keep
cab = Camera(CameraConfig(name="cab", source=sys.argv[1]), Keep(), Input(shape=(48, 64, 1)))
cab.start()
while not cab.take():
    time.sleep(0.05)
print(cab._child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN, "toy://driver?size=48x64"], capture_output=True, text=True, timeout=PATIENCE
    )
    child = int(done.stdout)
    end = time.monotonic() + PATIENCE
    while state_of(child) not in ("Z", ""):
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.05)


# ---- clips, pictures, secrets


def test_a_clip_holds_what_led_to_the_event(watched: Any, tmp_path: Path) -> None:
    with streams.Server("ts") as server:
        cab = watched(server.url, keep=config.Keep(pre=1))
        cab.until(cab.more(35))
        opened = cab.frames[-1].time
        cab.camera.record("one", tmp_path / "one.mp4", opened - 1, None)
        cab.until(cab.more(5))
        cab.camera.finish("one", opened + 0.5)
        cab.until(lambda: cab.of("clip"))
        (clip,) = cab.of("clip")
        assert clip["whole"] and 1.4 <= clip["seconds"] <= 2.7, "from the keyframe before, a second at most"
        assert 24 <= length(clip["path"]) <= 56
        assert not list(tmp_path.glob("*.part"))


def test_a_clip_that_must_be_encoded_is_no_wider_than_people_need(watched: Any, tmp_path: Path) -> None:
    cab = watched(str(streams.film(tmp_path / "a.avi", 2, (64, 2400), "mjpeg")), speed=1)
    cab.until(cab.more(3))
    cab.camera.record("one", tmp_path / "one.mp4", 0, 1.5)
    cab.until(lambda: cab.of("clip"))
    with av.open(str(tmp_path / "one.mp4")) as clip:
        assert (clip.streams.video[0].width, clip.streams.video[0].height) == (1920, 50)
    assert length(tmp_path / "one.mp4") >= 10


@pytest.mark.parametrize("blur", ["none", "all"])
def test_pictures_are_made_only_for_viewers_and_blurred_where_it_is_asked(
    blur: Any, watched: Any, tmp_path: Path
) -> None:
    def detail(image: np.ndarray) -> float:  # blocks have none
        return float(np.median(np.abs(np.diff(image.astype(int), axis=1))))

    with streams.Server("mjpeg") as server:
        cab = watched(server.url, blur=blur)
        cab.until(cab.more(10))
        assert not cab.of("jpeg")
        cab.camera.preview(5)
        cab.camera.snap("one")
        cab.camera.record("one", tmp_path / "one.mp4", cab.frames[-1].time - 1, cab.frames[-1].time + 1)
        cab.until(lambda: len(cab.of("jpeg")) >= 3 and cab.of("clip"))
        cab.camera.preview(0)
        cab.until(cab.more(3))
        count = len(cab.of("jpeg"))
        cab.until(cab.more(8))
        assert len(cab.of("jpeg")) == count
        (thumbnail,) = cab.of("thumbnail")
        assert thumbnail["event"] == "one"
        shown = [
            cv2.imdecode(np.frombuffer(raw, np.uint8), 1) for raw in (thumbnail["jpeg"], cab.of("jpeg")[0]["jpeg"])
        ]
        with av.open(str(tmp_path / "one.mp4")) as container:
            shown += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(shown) >= 12
        for image in shown:
            assert image.shape == (96, 128, 3)
            assert (detail(image) == 0) == (blur == "all")
        assert all(detail(frame.image[:, :, 0]) > 0 for frame in cab.frames), "the net sees the picture"


def test_evidence_is_laid_on_the_thumbnail_and_on_the_page_where_it_is_asked(watched: Any) -> None:
    def left_and_right(raw: bytes) -> list[float]:  # how red
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), 1).astype(int)
        red = image[:, :, 2] - image[:, :, 0]
        return [float(half.mean()) for half in np.array_split(red, 2, 1)]

    with streams.Server("mjpeg") as server:
        cab = watched(server.url)
        cab.until(cab.more(5))
        cab.camera.show(np.array([[0, 0, 0, 255]] * 3, np.uint8))
        cab.camera.snap("one")
        cab.until(lambda: cab.of("thumbnail"))
        left, right = left_and_right(cab.of("thumbnail")[0]["jpeg"])
        assert right > left + 30
        cab.camera.preview(5)
        cab.until(lambda: cab.of("jpeg"))
        left, right = left_and_right(cab.of("jpeg")[0]["jpeg"])
        assert right < left + 30, "nobody asked for it"

        def marked() -> bool:
            cab.camera.show(np.array([[0, 0, 0, 255]] * 3, np.uint8))
            left, right = left_and_right(cab.of("jpeg")[-1]["jpeg"])
            return right > left + 30

        cab.camera.preview(5, where=True)
        cab.until(marked)


def test_no_password_is_ever_said(watched: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with streams.Server("mjpeg") as server:
        server.login = "admin:Xk9@secretQ"
        address = f"127.0.0.1:{server.port}/mjpeg?token=Zq7tokenQ"
        cab = watched(f"http://admin:Xk9%40secretQ@{address}")
        cab.until(cab.more(2))
        assert "YWRtaW46WGs5QHNlY3JldFE=" in server.requests[1], "the camera gets it all the same"
        command = Path(f"/proc/{cab.camera._child.pid}/cmdline").read_bytes()
        for fault in ("drop", "refuse"):
            server.fault = fault
            cab.until(cab.is_("lost"))
            server.fault = ""
            cab.until(cab.more(2))
    server.fault = "refuse"
    gone = watched("rtsp://admin:Xk9secretQ@127.0.0.1:9/live?password=Zq7tokenQ", name="gone")
    gone.until(gone.is_("lost"))
    for one in (cab, gone):
        one.stop()
    said = repr([cab.notes, gone.notes, cab.camera.words, gone.camera.words, command]) + "".join(capfd.readouterr())
    for secret in ("Xk9", "secretQ", "Zq7", "tokenQ", "YWRtaW46"):
        assert secret not in said


def test_a_child_gets_no_secret_but_its_own(watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_CAMERA", "rtsp://u:hunter2@h/")
    monkeypatch.setenv("STILLWATCH_TOKEN", "hunter2 again")
    cab = watched("toy://driver?size=48x64")
    cab.until(cab.more(1))
    environment = Path(f"/proc/{cab.camera._child.pid}/environ").read_bytes()
    assert b"hunter2" not in environment and b"PATH=" in environment


@pytest.mark.parametrize(
    "message",
    [
        5, (), ("frame",), ("frame", "0", 1.0, np.zeros(SHAPE, np.uint8), "ok", 0.0),
        ("frame", 0, 1.0, np.zeros((1, 1, 1), np.uint8), "ok", 0.0), ("frame", 0, 1.0, np.zeros(SHAPE), "ok", 0.0),
        ("frame", 0, 1.0, np.zeros(SHAPE, np.uint8), "fine", 0.0), ("pulse", 1), ("pulse", "1", 2, 3, 4, 5, 6),
        ("frame", 0, 1.0, np.zeros(SHAPE, np.uint8), "ok", 0.0, ((1.0, (0.1,)),)),
        ("frame", 0, 1.0, np.zeros(SHAPE, np.uint8), "ok", 0.0, (None,)),
        ("lost", 5, True), ("jpeg", "x"), ("thumbnail", None, b""), ("trouble", ["x"]), ("what",), ["trouble", "x"],
    ],
)  # fmt: skip
def test_what_a_child_says_that_is_no_message_ends_that_child_alone(watched: Any, message: Any) -> None:
    cab = watched("toy://driver?size=48x64")
    cab.until(cab.more(1))
    mine, theirs = socket.socketpair()
    with cab.camera.connection._end:
        cab.camera.connection = Channel(mine, blocking=False, load=load_plain)
    data = pickle.dumps(message)
    theirs.sendall(len(data).to_bytes(4, "big") + data)
    cab.until(cab.is_("lost"))
    assert cab.camera.words.startswith("its process")
    theirs.close()
    cab.until(cab.more(1))


@pytest.mark.parametrize("head", [b"\0\0\0\0", b"\xff\xff\xff\xff"])
def test_a_message_without_an_end_takes_no_memory(head: bytes) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        theirs.sendall(head + bytes(1000))
        with pytest.raises(EOFError):
            Channel(mine, blocking=False, load=load_plain).read()


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [("", 302, "where it redirects"), ("snap.jpg", 302, "where it redirects"), ("", 200, "no video stream")],
)
def test_a_camera_that_leads_elsewhere_is_not_followed(watched: Any, name: str, status: int, words: str) -> None:
    class Elsewhere(SilentFiles):
        def do_GET(self) -> None:
            self.send_response(status)
            leads = ("Location", inner.url) if status == 302 else ("Content-Type", "application/vnd.apple.mpegurl")
            self.send_header(*leads)
            self.end_headers()
            self.wfile.write(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{inner.url}.ts\n".encode())

    with streams.Server("mjpeg") as inner, ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        cab = watched(f"http://127.0.0.1:{server.server_port}/{name}")
        cab.until(cab.is_("lost"))
        cab.stop()
        server.shutdown()
        thread.join()
        assert inner.connections == 0 and words in cab.camera.words


def test_what_can_never_open_is_refused_or_failed(watched: Any, here: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Camera(config.CameraConfig(name="cab", source="gone.mp4"), config.Keep(), Input(shape=SHAPE))
    with pytest.raises(UserError, match='blur = "faces"'):
        Camera(config.CameraConfig(name="cab", source="toy://driver", blur="faces"), config.Keep(), Input(shape=SHAPE))
    Path("a.mp4").write_bytes(b"x" * 1000)
    cab = watched("a.mp4")
    cab.until(cab.is_("failed"))
    assert "Invalid data" in cab.camera.words
    for _ in range(5):
        cab.step()
    assert cab.camera.counters["respawns"] == 0


def test_a_child_that_was_taken_over_can_only_say_plain_things(tmp_path: Path) -> None:
    said = ("frame", 3, 1.5, np.arange(12, dtype=np.uint8).reshape(3, 4), "ok", {"a": [None, True, b"x", ("y",)]})
    for protocol in (4, 5):
        found = load_plain(pickle.dumps(said, protocol))
        np.testing.assert_array_equal(found[3], said[3])
        assert (*found[:3], *found[4:]) == (*said[:3], *said[4:])

    class Trap:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    for evil in (pickle.dumps(("frame", Trap())), b"", b"cos\nsystem\n(S'true'\ntR.", b"\x80\x05\xff"):
        with pytest.raises(EOFError):
            load_plain(evil)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (subprocess, "Popen", OSError(12, "Cannot allocate memory")),
        (subprocess, "Popen", OSError(11, "Resource temporarily unavailable")),
        (subprocess, "Popen", MemoryError()),
        (socket, "socketpair", OSError(24, "Too many open files")),
    ],
)
def test_a_machine_without_room_for_a_process_is_asked_again(
    watched: Any, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, error: Exception
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(place, name, lambda *_, **__: (_ for _ in ()).throw(error))
        cab = watched("toy://driver?size=48x64")
        cab.until(lambda: cab.camera.counters["respawns"] >= 2)
        assert cab.camera.words == f"no process could be started: {getattr(error, 'strerror', 'MemoryError')}"
    cab.until(cab.more(1))


def test_cameras_stop_all_at_once(watched: Any) -> None:
    them = [watched("toy://driver?size=48x64", name=f"cab{n}") for n in range(3)]
    for one in them:
        one.until(one.more(1))
    stops = [threading.Thread(target=one.camera.stop, args=(3.0,)) for one in them]
    for stop in stops:
        stop.start()
    for stop in stops:
        stop.join(PATIENCE)
    assert [one.camera.connection for one in them] == [None] * 3


# ---- RTSP, where a real server is installed


@pytest.fixture(scope="module")
def rtsp() -> Iterator[streams.Rtsp]:
    python = streams.rtsp_python()
    if python is None:
        pytest.skip("needs Debian's gir1.2-gst-rtsp-server-1.0, python3-gi and gstreamer1.0-plugins-ugly")
    with streams.Rtsp(python, "admin", "Xk9secretQ") as server:
        yield server


def test_a_wrong_password_is_said_without_it(rtsp: streams.Rtsp, watched: Any) -> None:
    cab = watched(f"rtsp://admin:Xk9wrongQ@127.0.0.1:{rtsp.port}/live")
    cab.until(cab.is_("lost"))
    assert "401" in cab.camera.words and "Xk9" not in repr(cab.notes)


def test_an_rtsp_camera_freezes_dies_and_comes_back(rtsp: streams.Rtsp, watched: Any, tmp_path: Path) -> None:
    cab = watched(f"rtsp://admin:Xk9secretQ@127.0.0.1:{rtsp.port}/live")
    cab.until(cab.more(15))
    cab.camera.record("one", tmp_path / "one.mp4", cab.frames[-1].time - 1, None)
    rtsp.freeze()
    assert cab.until(cab.is_("lost")) < 1.6, "what was held back until the time-out is no new picture"
    rtsp.thaw()
    assert cab.until(cab.more(3)) < 5
    rtsp.kill()
    cab.until(cab.is_("lost"))
    rtsp.start()
    assert cab.until(cab.more(3)) < 5
    assert length(tmp_path / "one.mp4") >= 10
    assert "Xk9" not in repr(cab.notes)


def test_the_picture_s_shape_is_told_and_brought_to_that_of_the_training_pictures(watched: Any) -> None:
    plain, cut = (watched("toy://street?size=48x96", aspect=4 / 3, fit=how) for how in ("stretch", "crop"))
    plain.until(plain.more(1), cut)
    cut.until(cut.more(1), plain)
    for cab in (plain, cut):
        assert [note.fields for note in cab.notes if note.what == "shape"] == [{"height": 48, "width": 96}]
    drawn = next(image for _, image in source.frames("toy://street?size=48x96&seconds=1"))
    assert (plain.frames[0].image == pixels.fit(drawn, (48, 64), "stretch", 1)).all()
    assert (cut.frames[0].image == pixels.fit(drawn[:, 16:80], (48, 64), "stretch", 1)).all()


def test_what_is_not_looked_at_is_grey_for_the_net_and_whole_for_people(watched: Any) -> None:
    zones = {"crop": (0.5, 0.0, 1.0, 1.0), "ignore": [[0.5, 0.5], [1, 0.5], [1, 1], [0.5, 1]]}
    cab = watched("toy://street?size=48x96", shape=(48, 48, 3), **zones)
    cab.camera.preview(20)
    cab.until(lambda: cab.frames and any(note.what == "jpeg" for note in cab.notes))
    drawn = next(image for _, image in source.frames("toy://street?size=48x96&seconds=1"))
    assert (cab.frames[0].image[:23] == drawn[:23, 48:]).all()
    assert (cab.frames[0].image[24:] == pixels.GRAY).all()
    assert [note.fields for note in cab.notes if note.what == "shape"] == [{"height": 48, "width": 48}]
    jpeg = next(note.fields["jpeg"] for note in cab.notes if note.what == "jpeg")
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (48, 96, 3)


def test_a_decoder_that_is_not_here_leaves_it_to_software_and_is_said_once(watched: Any, tmp_path: Path) -> None:
    film = streams.film(tmp_path / "film.mp4", 1)
    cab = watched(str(film), speed=0, decode="nonesuch", loop=True)
    cab.until(lambda: len(cab.frames) > 40)  # opened several times
    said = [note.fields["words"] for note in cab.notes if note.what == "trouble"]
    assert len(said) == 1 and said[0].startswith('decode = "nonesuch": this FFmpeg has')
    assert said[0].endswith("; decoded in software")
