"""Local processes that take shards in turn. A file that kills two of them is bad."""

import ctypes
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import repeat
from multiprocessing.connection import Connection, wait

from stillwatch.errors import UserError
from stillwatch.inference.archive.listing import File
from stillwatch.inference.archive.shards import Task, do

BEAT = 0.2  # s between two looks at how far the workers are


class Worker:
    def __init__(self, task: Task, shard: tuple[File, ...], avoid: dict[str, str], suspect: str = ""):
        """avoid: path -> reason, for files that killed two workers. suspect: killed one."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.far = context.RawValue("q", -1)  # the file of the shard that it is at; -1: not yet at one
        self.process = context.Process(target=_serve, args=(task, theirs, self.far, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.give(shard, avoid, suspect)

    def give(self, shard: tuple[File, ...], avoid: dict[str, str], suspect: str = "") -> None:
        self.shard, self.avoid, self.suspect, self.told = shard, avoid, suspect, 0
        self.far.value = -1
        with suppress(OSError):  # dead already: work() hears of it at once
            self.pipe.send((shard, avoid))

    def news(self, over: bool = False) -> int:
        """Files done since the last call. over: the shard is on disk."""
        before, self.told = self.told, len(self.shard) if over else max(self.told, int(self.far.value))
        return self.told - before

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def work(task: Task, shards: Sequence[tuple[File, ...]], count: int) -> Iterator[None]:
    """Yields once a file."""
    waiting = list(reversed(shards))
    workers = [Worker(task, waiting.pop(), {}) for _ in range(count)]
    try:
        while workers:
            ready = wait([worker.pipe for worker in workers], BEAT)
            for place, worker in enumerate(list(workers)):
                yield from repeat(None, worker.news())
                if worker.pipe not in ready:
                    continue
                try:
                    trouble = worker.pipe.recv()
                except (EOFError, OSError):
                    trouble = None  # it died
                if trouble:
                    raise UserError(f"score: {trouble}")
                if trouble is not None:
                    yield from repeat(None, worker.news(over=True))
                    if waiting:
                        worker.give(waiting.pop(), {})
                else:
                    workers[place] = _instead(task, worker)
                    worker.end()
            for worker in [worker for worker in workers if worker.told == len(worker.shard)]:
                workers.remove(worker)
                worker.end()
    finally:
        for worker in workers:
            worker.end()


def _instead(task: Task, dead: Worker) -> Worker:
    """The file gets a second chance: the kill may be from outside."""
    dead.process.join()
    status, at = dead.process.exitcode, int(dead.far.value)
    name = dead.shard[at].path if at >= 0 else "its first file"
    if at < 0 and dead.suspect == name:
        raise UserError(f"score: a worker dies before it looks at a file (exit status {status})")
    guilty = {name: f"the decoder dies of it (exit status {status})"} if dead.suspect == name else {}
    new = Worker(task, dead.shard, dead.avoid | guilty, name)
    new.told = dead.told
    return new


def _serve(task: Task, pipe: Connection, far: ctypes.c_longlong, parent: int) -> None:
    """Ends with its parent."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        while True:
            shard, avoid = pipe.recv()
            pipe.send(do(task, shard, avoid, far, parent))
