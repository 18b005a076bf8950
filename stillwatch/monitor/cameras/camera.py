"""Camera: one source, watched by a child process that can hang or be killed without touching any other.

In: the plan's camera. Out: its newest frame, brought to the net's size, and notes: state, pictures, clips, trouble.
Called by the watch loop, which never waits here. It knows no codec: av lives in the child (eye).
"""

import io
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillwatch.media import faces
from stillwatch.monitor import config
from stillwatch.monitor.cameras import source
from stillwatch.monitor.cameras.source import Backoff
from stillwatch.rules.alarm import Status

State = Literal["starting", "live", "lost", "ended", "failed"]
GRACE = 4.0  # seconds beyond twice the stall in which a child must say that it is alive
YOUNG = 20.0  # seconds in which a child must have come up
SETTLED = 10.0  # seconds after which a child that died is not held to be one that cannot live
HEADER = struct.Struct("!I")


class Frame(NamedTuple):
    """One picture that the net is to look at."""

    camera: str
    index: int  # type: ignore[assignment]  # counts what the source gave, from 0 on; a gap is what was dropped
    time: float  # s, the Alarm's clock: monotonic where it is live, else the file's own seconds
    image: NDArray[np.uint8] | None  # (h,w,c), as pixels.fit gives it
    status: Status
    captured: float  # time.monotonic() when it left the demuxer


class Note(NamedTuple):
    """What a camera says besides. what, fields: state {state, words}; jpeg {jpeg}; thumbnail {event, jpeg};
    clip {event, path, seconds, whole}; trouble {words}."""

    camera: str
    what: Literal["state", "jpeg", "thumbnail", "clip", "trouble"]
    fields: dict[str, Any]


class Plain(pickle.Unpickler):
    """Numbers, text, bytes, lists, tables and arrays of numbers, and nothing that could run: a child decodes whatever
    a stranger's stream sends, so what it says is not trusted with more."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in ("_reconstruct", "_frombuffer", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def plain(data: bytes) -> Any:
    """A message of the child. Raises EOFError where it is none: a child that says such things is ended."""
    try:
        return Plain(io.BytesIO(data)).load()
    except Exception as error:  # a broken pickle can raise almost anything
        raise EOFError from error


class Channel:
    """One end of a socket pair that carries Python objects. The parent's end never blocks in either direction."""

    def __init__(self, end: socket.socket, load: Callable[[bytes], Any] = pickle.loads):
        """load: what makes a message of its bytes; what it raises ends the connection as the other side's end does."""
        self._end, self._load = end, load
        self._held = bytearray()
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: Any, patient: bool = True) -> None:
        """Raises OSError where the other side is gone or, without patience, does not read."""
        data = pickle.dumps(message, protocol=5)
        whole = HEADER.pack(len(data)) + data
        with self._lock:
            if patient:
                self._end.sendall(whole)
            elif self._end.send(whole, socket.MSG_DONTWAIT) < len(whole):
                raise BlockingIOError

    def read(self, patient: bool = True) -> list[Any]:
        """What arrived: at least one message with patience. Raises EOFError where the other side has ended."""
        while True:
            try:
                data = self._end.recv(1 << 18, 0 if patient else socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return self._messages()
            except OSError:
                data = b""
            if not data:
                if found := self._messages():
                    return found
                raise EOFError
            self._held += data
            if patient and (found := self._messages()):
                return found

    def _messages(self) -> list[Any]:
        found, at = [], 0
        while len(self._held) >= at + HEADER.size:
            (size,) = HEADER.unpack_from(self._held, at)
            if len(self._held) < at + HEADER.size + size:
                break
            at += HEADER.size
            found.append(self._load(bytes(memoryview(self._held)[at : at + size])))
            at += size
        del self._held[:at]
        return found

    def close(self) -> None:
        self._end.close()


class Camera:
    """What the loop sees of a source. All methods return at once, but for stop; one thread at a time calls them."""

    def __init__(self, config: config.CameraConfig, keep: config.Keep, shape: tuple[int, int, int], how: str):
        """shape: (height, width, channels) of the net; how: pixels.fit's. Raises UserError where it can never open."""
        self.plan, self.keep = config, keep
        self.live = source.is_live(config.source)
        if config.blur == "faces":
            faces.model()
        self.state: State = "starting"
        self.words = "starting"
        self.counters = dict.fromkeys(("frames", "dropped", "stalls", "reconnects", "respawns", "bytes"), 0)
        self.connection: Channel | None = None
        self._shape, self._how = shape, how
        self._child: subprocess.Popen[bytes] | None = None
        self._inbox: list[Frame | Note] = []
        self._fps = 0.0
        self._open: dict[str, Path] = {}  # clips that are being written
        self._before: dict[str, int] = {}  # what earlier children counted
        self._reading = source.Reading()
        self._backoff = Backoff(*config.backoff)
        self._born = self._heard = self._seen = 0.0  # time.monotonic()
        self._again: float | None = None  # when the next child is due
        self._over = False

    def start(self) -> None:
        """Spawn the child and return."""
        if self._child is None and not self._over:
            self._spawn()

    def take(self) -> list[Frame | Note]:
        """Everything that arrived. Each frame is acknowledged with it, so that the child may send the newest next."""
        self._pump()
        found, self._inbox = self._inbox, []
        return found

    def tick(self, now: float) -> list[Note]:
        """The watchdog: call it a few times a second with time.monotonic()."""
        if self._child is None:
            if self._again is not None and now >= self._again and not self._over:
                self.counters["respawns"] += 1
                self._spawn()
        else:
            self._pump()
        if self._child is not None:
            # The child says so first where it can: this is for the one that cannot
            if self.live and self.state == "live" and now - self._seen >= self.plan.stall + 1 / self.plan.fps:
                self.counters["stalls"] += 1
                self._set("lost", f"no picture for {self.plan.stall:g} s")
            patience = 2 * self.plan.stall + GRACE if self._heard > self._born else YOUNG
            if now - self._heard > patience:
                self._died(f"its process gave no sign of life for {patience:g} s")
        notes = [one for one in self._inbox if isinstance(one, Note)]
        self._inbox = [one for one in self._inbox if isinstance(one, Frame)]
        return notes

    def look(self, fps: float) -> None:
        """Pictures for viewers: JPEG notes, at most fps a second; 0: none are encoded."""
        if fps != self._fps:
            self._fps = fps
            self._tell("look", fps)

    def snap(self, event: str) -> None:
        """Ask for the newest picture as a JPEG: a thumbnail note."""
        self._tell("snap", event)

    def record(self, event: str, path: Path, since: float, until: float | None) -> None:
        """Write a clip from `since` on (as far as it is remembered) to `until`, or till finish. Clock of Frame.time."""
        self._open[event] = path
        self._tell("record", event, str(path), since, until)

    def finish(self, event: str, until: float) -> None:
        self._tell("finish", event, until)

    def stop(self, within: float) -> None:
        """End the child: its clips are finalised. At the latest after `within` seconds it is killed. take() once more
        gives what it still had to say."""
        self._over = True
        end = time.monotonic() + within
        self._tell("stop")
        while self._child is not None and (left := end - time.monotonic()) > 0:
            assert self.connection is not None
            wait([self.connection], left)  # type: ignore[list-item]  # it has a fileno, that is enough
            self._pump()
        if self._child is not None:
            self._died("stopped")

    # --- the child ---------------------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        mine, theirs = socket.socketpair()
        quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        quiet |= {"OPENCV_LOG_LEVEL": "ERROR"}
        with theirs:
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "stillwatch.monitor.cameras.capture", str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, **quiet},
                )
            except OSError as error:  # no memory, no process numbers: others may be released again
                mine.close()
                self._set("lost", f"no process could be started: {error.strerror}")
                self._again = time.monotonic() + self._backoff.next()
                return
        self.connection = Channel(mine, plain)
        self._again = None
        self._born = self._heard = self._seen = time.monotonic()
        # Over the wire and not as arguments: those can be read by every user of the machine
        self._tell("begin", self.plan, self.keep, self._shape, self._how, self._reading)
        if self._fps:
            self._tell("look", self._fps)

    def _tell(self, *message: Any) -> None:
        if self.connection is None:
            return
        try:
            self.connection.send(message, patient=False)
        except OSError:  # gone, or so deaf that its buffer is full: the watchdog ends it
            if self._child is not None and self._child.poll() is None:
                self._child.kill()

    def _pump(self) -> None:
        if self.connection is None:
            return
        try:
            messages = self.connection.read(patient=False)
        except EOFError:
            self._died("its process ended")
            return
        for what, *fields in messages:
            self._heard = time.monotonic()
            getattr(self, f"_on_{what}")(*fields)

    def _on_frame(self, index: int, seconds: float, image: NDArray[np.uint8], status: Status, captured: float) -> None:
        self._tell("seen")
        self._seen = time.monotonic()
        self.counters["frames"] += 1
        self._reading = source.Reading(index + 1, seconds)
        if self.state != "live" and not self._over:
            self._set("live", "live")
        self._inbox.append(Frame(self.plan.name, index, seconds, image, status, captured))

    def _on_pulse(self, counts: dict[str, int]) -> None:
        for name, count in counts.items():
            self.counters[name] = self._before.get(name, 0) + count

    def _on_lost(self, words: str, stalled: bool) -> None:
        if self.state == "live" and stalled:
            self.counters["stalls"] += 1
        self._set("lost", words)

    def _on_ended(self, words: str) -> None:
        self._set("ended", words)

    def _on_failed(self, words: str) -> None:
        self._set("failed", words)

    def _on_note(self, what: Any, fields: dict[str, Any]) -> None:
        if what == "jpeg":
            self._tell("shown")
        elif what == "clip":
            fields = fields | {"path": Path(fields["path"])}
            self._open.pop(fields["event"], None)
        self._inbox.append(Note(self.plan.name, what, fields))

    def _on_missed(self, event: str) -> None:
        self._open.pop(event, None)

    def _set(self, state: State, words: str) -> None:
        if (state, words) != (self.state, self.words):
            self.state, self.words = state, words
            self._inbox.append(Note(self.plan.name, "state", {"state": state, "words": words}))

    def _died(self, words: str) -> None:
        """The child is gone, or is to go: reap it, keep what it had written, and set a time for the next one."""
        child, self._child = self._child, None
        if child is None:
            return
        if words == "its process ended":
            try:
                code = child.wait(1.0)
                words += f" (signal {-code})" if code < 0 else f" (exit status {code})" if code else ""
            except subprocess.TimeoutExpired:
                pass
        if child.poll() is None:
            child.kill()
        child.wait()
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        self._before = {name: self.counters[name] for name in ("dropped", "reconnects", "bytes")}
        self._rescue()
        if self._over or self.state == "failed":
            return
        if self.state == "ended":  # a file that was read to its end: nothing is missing
            return
        if self.state != "starting" or words:
            self._set("lost", words)
        now = time.monotonic()
        if now - self._born > SETTLED:
            self._backoff.reset()
        self._again = now + self._backoff.next()

    def _rescue(self) -> None:
        """Clips that the child could not close: fragmented, so what reached the disk can be played."""
        for event, path in self._open.items():
            part = path.with_name(path.name + ".part")
            if part.is_file() and part.stat().st_size:
                part.replace(path)
                fields = {"event": event, "path": path, "seconds": None, "whole": False}
                self._inbox.append(Note(self.plan.name, "clip", fields))
        self._open.clear()
