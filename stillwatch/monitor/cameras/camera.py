"""The parent's handle of a camera, whose child (cameras.capture) may hang or die alone. Decodes nothing."""

import subprocess
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillwatch.bundle import Input
from stillwatch.errors import UserError, one_line
from stillwatch.inference.face_reader import NetFile
from stillwatch.media import weights
from stillwatch.media.points import NAMES, Signals
from stillwatch.monitor.cameras import source
from stillwatch.monitor.cameras.channel import Channel, load_plain, spawn
from stillwatch.monitor.config import CameraConfig, Keep
from stillwatch.rules.alarm import Status
from stillwatch.rules.signs import Reading

State = Literal["starting", "live", "lost", "ended", "failed"]
PULSE = ("dropped", "reconnects", "bytes", "damaged", "readings", "reading_ms")  # counted by the child
COUNTERS = ("frames", "stalls", "respawns", *PULSE)
GRACE = 4.0  # seconds beyond twice the stall in which a child must say that it is alive
YOUNG = 20.0  # seconds in which a child must have come up; twice as long after each that did not, to 160
SETTLED = 10.0  # seconds after which a child that died is not held to be one that cannot live


class Frame(NamedTuple):
    index: int  # type: ignore[assignment]  # counts what the source gave, from 0 on; a gap is what was dropped
    time: float  # s, the Alarm's clock: monotonic where it is live, else the file's own seconds
    image: NDArray[np.uint8]  # (h,w,c), of the net's size
    status: Status
    captured: float  # time.monotonic() when it left the demuxer
    readings: tuple[Reading, ...] = ()  # of the driver's face since the frame before
    size: tuple[int, int] = (0, 0)  # (height, width) as it came


class Note(NamedTuple):
    """Any other message. Fields: state {state, words}; shape {height, width}; jpeg {jpeg}; thumbnail {event, jpeg};
    clip {event, path, seconds, whole}; trouble {words}.
    """

    what: Literal["state", "shape", "jpeg", "thumbnail", "clip", "trouble"]
    fields: dict[str, Any]


class Camera:
    _child: subprocess.Popen[bytes]

    def __init__(self, config: CameraConfig, keep: Keep, takes: Input, faces: NetFile | bool = False):
        """takes: what the net does. faces: are read, with that net. Raises UserError if it can never open."""
        self.config = config
        self.live = source.is_live(config.source)
        if config.blur == "faces":
            try:
                weights.find(weights.YUNET)
            except UserError as error:  # no blur would happen
                raise UserError(f'blur = "faces": {error}; or blur = "all"') from None
        self.state: State = "starting"
        self.words = "starting"
        self.damaged = False  # a share of its pictures is, which are left out
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.connection: Channel | None = None  # to the child; None: none runs
        self._settings = (config, keep, takes, faces)
        self._takes = takes.shape[-3:]
        self._inbox: list[Frame | Note] = []
        self._preview = (0.0, False, False)
        self._clips: dict[str, Path] = {}  # that are being written
        self._earlier: dict[str, int] = {}  # what earlier children counted
        self._size = (0, 0)  # of the newest picture
        self._position = (0, 0.0)  # frames seen of a file, and their last second: where another child reads on
        self._backoff = source.backoff(*config.backoff)
        self._born = self._heard = self._seen = 0.0  # time.monotonic()
        self._mute = 0  # children in a row that said nothing
        self._respawn: float | None = None  # when the next child is due
        self._stopping = False

    def start(self) -> None:
        if self.connection is None and not self._stopping:
            self._spawn()

    def take(self) -> list[Frame | Note]:
        self._receive()
        inbox, self._inbox = self._inbox, []
        return inbox

    def tick(self, now: float) -> None:
        """The watchdog: call a few times a second with time.monotonic()."""
        if self.connection is None and not self._stopping and self._respawn is not None and now >= self._respawn:
            self.counters["respawns"] += 1
            self._spawn()
            return
        self._receive()
        if self.connection is None:
            return
        # For a child that cannot report its stall itself
        if self.live and self.state == "live" and now - self._seen >= self.config.stall + 1 / self.config.fps:
            self.counters["stalls"] += 1
            self._set("lost", f"no picture for {self.config.stall:g} s")
        spoke = self._heard > self._born
        self._mute = 0 if spoke else self._mute
        patience = 2 * self.config.stall + GRACE if spoke else YOUNG * 2 ** min(self._mute, 3)
        if now - self._heard > patience:
            self._mute += not spoke
            self._end_child(f"its process gave no sign of life for {patience:g} s")

    def preview(self, fps: float, points: bool = False, where: bool = False) -> None:
        """Ask for at most fps JPEG notes a second, with the face's points or the evidence drawn on them; 0: none."""
        if (fps, points, where) != self._preview:
            self._preview = (fps, points, where)
            self._send("preview", fps, points, where)

    def show(self, evidence: NDArray[np.uint8]) -> None:
        """(h,w) over the net's picture, for the next thumbnail and viewers."""
        self._send("evidence", evidence)

    def snap(self, event: str) -> None:
        self._send("snap", event)

    def record(self, event: str, path: Path, since: float, until: float | None) -> None:
        """Write a clip from `since` (if buffered) to `until` or finish(), on Frame.time's clock."""
        self._clips[event] = path
        self._send("record", event, str(path), since, until)

    def finish(self, event: str, until: float) -> None:
        self._send("finish", event, until)

    def stop(self, within: float) -> None:
        """End the child and its clips within so many seconds. take() gives its last messages."""
        self._stopping = True
        end = time.monotonic() + within
        self._send("stop")
        while self.connection is not None and (left := end - time.monotonic()) > 0:
            wait([self.connection], left)  # type: ignore[list-item]  # it has a fileno, that is enough
            self._receive()
        self._end_child("stopped")

    def _spawn(self) -> None:
        try:
            self._child, mine = spawn("stillwatch.monitor.cameras.capture")
        except (OSError, MemoryError) as error:  # no memory, descriptor or process number: one may be free again
            self._set("lost", f"no process could be started: {one_line(error)}")
            self._respawn = time.monotonic() + next(self._backoff)
            return
        self.connection = Channel(mine, blocking=False, load=load_plain)
        self._respawn, self.damaged = None, False
        self._born = self._heard = self._seen = time.monotonic()
        # Over the channel and not as arguments: those can be read by every user of the machine
        self._send("begin", *self._settings, self._position)
        if self._preview[0]:
            self._send("preview", *self._preview)

    def _send(self, *message: object) -> None:
        if self.connection is None:
            return
        try:
            self.connection.send(*message)
        except OSError:  # gone, or so deaf that its buffer is full: the watchdog ends it
            self._child.kill()

    def _receive(self) -> None:
        if self.connection is None:
            return
        try:
            for message in self.connection.read():
                self._heard = time.monotonic()
                self._handle(*message)
        except EOFError:
            words = "its process ended"
            try:
                code = self._child.wait(1.0)
                words += f" (signal {-code})" if code < 0 else f" (exit status {code})" if code else ""
            except subprocess.TimeoutExpired:
                pass
            self._end_child(words)
        except ValueError:
            self._end_child("its process said what is no message")

    def _handle(self, *message: Any) -> None:
        """Raises ValueError for what no child sends: it may have been taken over."""
        match message:
            case (
                "frame", int(index), float(seconds),
                np.ndarray(shape=self._takes, dtype=np.dtypes.UInt8DType()) as image,
                "ok" | "black" | "frozen" as status, float(captured), tuple(plain),
            ) if all(map(_is_reading, plain)):  # fmt: skip
                readings = tuple(Reading(at, Signals.of(signals) if signals else None) for at, signals in plain)
                self._send("seen")
                self._seen = time.monotonic()
                self.counters["frames"] += 1
                self._position = (index + 1, seconds)
                if not self._stopping:
                    self._set("live", "some pictures arrive damaged and are left out" if self.damaged else "live")
                self._inbox.append(Frame(index, seconds, image, status, captured, readings, self._size))
            case ("pulse", *counts) if len(counts) == len(PULSE) and all(isinstance(n, int) for n in counts):
                for name, count in zip(PULSE, counts, strict=True):
                    self.counters[name] = self._earlier.get(name, 0) + count
            case ("damaged", bool(damaged)):
                self.damaged = damaged
            case ("lost", str(words), bool(stalled)):
                self.counters["stalls"] += self.state == "live" and stalled
                self._set("lost", words)
            case ("ended" | "failed" as state, str(words)):
                self._set(state, words)
            case ("shape", int(height), int(width)) if min(height, width) > 0:
                self._size = (height, width)
                self._note("shape", height=height, width=width)
            case ("jpeg", bytes(jpeg)):
                self._send("shown")
                self._note("jpeg", jpeg=jpeg)
            case ("thumbnail", str(event), bytes(jpeg)):
                self._note("thumbnail", event=event, jpeg=jpeg)
            case ("clip", str(event), float(seconds), bool(whole)) if event in self._clips:
                self._note("clip", event=event, path=self._clips.pop(event), seconds=seconds, whole=whole)
            case ("missed", str(event)):
                self._clips.pop(event, None)
            case ("trouble", str(words)):
                self._note("trouble", words=words)
            case _:
                raise ValueError

    def _note(self, what: Literal["state", "shape", "jpeg", "thumbnail", "clip", "trouble"], **fields: object) -> None:
        self._inbox.append(Note(what, fields))

    def _set(self, state: State, words: str) -> None:
        if (state, words) != (self.state, self.words):
            self.state, self.words = state, words
            self._note("state", state=state, words=words)

    def _end_child(self, words: str) -> None:
        if self.connection is None:
            return
        self._child.kill()  # does nothing to one that was reaped
        self._child.wait()
        self.connection.close()
        self.connection = None
        self._earlier = {name: self.counters[name] for name in PULSE}
        for event, path in self._clips.items():  # fragmented, so what reached the disk can be played
            part = path.with_name(path.name + ".part")
            if part.is_file() and part.stat().st_size:
                part.replace(path)
                self._note("clip", event=event, path=path, seconds=None, whole=False)
        self._clips.clear()
        if self._stopping or self.state in ("failed", "ended"):
            return
        self._set("lost", words)
        now = time.monotonic()
        if now - self._born > SETTLED:
            self._backoff = source.backoff(*self.config.backoff)
        self._respawn = now + next(self._backoff)


def _is_reading(value: object) -> bool:
    match value:
        case (float(), tuple(signals)):
            return (not signals or len(signals) >= len(NAMES)) and all(isinstance(one, float) for one in signals)
    return False
