"""A process that looks for some cameras, `python -m …worker FD`, with a detector of its own; and its handle."""

import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import UserError, one_line
from stillwatch.monitor.cameras.channel import Channel, load_plain, spawn

Look: TypeAlias = tuple[str, NDArray[np.uint8], float, bool]  # camera, (H,W,C), its seconds, its memory begins anew
Answer: TypeAlias = NDArray[np.float32] | None  # (K,)

LOADED = 120.0  # seconds in which the net must be loaded
ANSWERED = 30.0  # seconds in which a look must be answered
SENT = 2.0  # seconds in which a worker must take what it is given
WAIT = 60.0  # seconds at most before the next try, where one that replaces another cannot load


class Worker:
    """Not thread-safe. One that dies once loaded is replaced, again and again; its cameras' memories begin anew."""

    channel: Channel | None = None  # None: none runs

    def __init__(self, name: str, source: Path, threads: int, choice: tuple[str, str], log: Callable[[str], None]):
        """choice: the parent detector's runtime and file."""
        self.name, self._log = name, log
        self._settings = (str(source), threads, *choice)
        self._first, self._trouble, self._wait, self._due = True, "", 0.0, 0.0
        self._start()

    def _start(self) -> None:
        self.idle = self._loaded = False
        self.asked: list[str] = []  # cameras whose answers are not here yet
        try:
            self._process, end = spawn("stillwatch.monitor.worker")
        except (OSError, MemoryError) as error:
            self._fail(one_line(error))
            return
        self.channel = Channel(end, blocking=True, load=load_plain)
        end.settimeout(SENT)
        self._since = time.monotonic()
        with suppress(OSError):  # take() finds it dead
            self.channel.send(*self._settings)

    def _fail(self, words: str) -> None:
        """Raises UserError for the first of all: its net cannot be loaded here."""
        if self._first:
            raise UserError(f"{self.name} cannot start: {words}")
        self._wait = min(max(1.0, 2 * self._wait), WAIT)
        self._due = time.monotonic() + self._wait
        if words != self._trouble:  # said once
            self._log(f"{self.name} cannot start: {words}; its cameras are not looked at; it is tried again")
        self._trouble = words

    def ask(self, looks: list[Look]) -> None:
        self.idle, self._since = False, time.monotonic()
        self.asked = [camera for camera, *_ in looks]
        try:
            assert self.channel is not None
            self.channel.send(*looks)
        except OSError:
            self._process.kill()  # take() finds it dead

    def take(self) -> dict[str, Answer]:
        """Each asked camera's answer, once it is there. Raises UserError where the net cannot be loaded at first."""
        if self.channel is None:
            if time.monotonic() >= self._due:
                self._start()
            return {}
        if not wait([self.channel], 0):  # type: ignore[list-item]  # it has a fileno, that is enough
            if not self.idle and time.monotonic() - self._since > (ANSWERED if self._loaded else LOADED):
                self._process.kill()
            return {}
        try:
            message = self.channel.read()[0]
        except EOFError:
            message = ("failed", "its process ended")
        match message:
            case ("ready",):
                self.idle = self._loaded = True
                if self._trouble:
                    self._log(f"{self.name}: looks again")
                self._first, self._trouble, self._wait = False, "", 0.0
                return {}
            case ("failed", str(words)):
                return self._replace(words)
            case ("answers", *answers):
                asked, self.asked, self.idle = self.asked, [], True
                return dict(zip(asked, answers, strict=True))
        raise ValueError(message)

    def _replace(self, words: str) -> dict[str, Answer]:
        self.close()
        asked = self.asked
        if self._loaded:
            self._log(f"{self.name}: {words}; another one is started")
            self._start()
        else:
            self._fail(words)
        return dict.fromkeys(asked)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        if self.channel is not None:
            self.channel.close()
            self.channel = None


def main() -> None:
    from stillwatch.inference import detector, streams  # the handle needs no net

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent ends it
        signal.signal(number, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), blocking=True)
    (source, threads, runtime, file), *_ = channel.read()
    try:
        it = detector.Detector(Path(source), threads, runtime=runtime, file=file)
    except UserError as error:
        channel.send("failed", str(error))
        return
    memories = defaultdict[str, streams.Memory](lambda: detector.memory(it))
    channel.send("ready")
    while True:
        try:
            messages = channel.read()
        except EOFError:
            return
        for looks in messages:
            cameras, images, seconds, fresh = zip(*looks, strict=True)
            for camera, anew in zip(cameras, fresh, strict=True):
                if anew:
                    memories[camera].clear()
            channel.send(
                "answers", *streams.look(it.predict, images, [memories[camera] for camera in cameras], seconds)
            )


if __name__ == "__main__":
    main()
