"""Race runtimes, pin to cores, describe this machine."""

import gc
import os
import platform
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from stillwatch.inference import runtimes
from stillwatch.run import NO_PROGRESS, Progress

Name = TypeVar("Name")


class Machine(NamedTuple):
    cpu: str
    cores: int  # that this process may use
    memory: int | None  # bytes
    runtimes: dict[str, str]  # version, or "not installed"


def race(
    entrants: Mapping[Name, Callable[[], object]],
    rounds: int = 200,
    warmup: int = 20,
    limit_s: float = np.inf,
    progress: Progress = NO_PROGRESS,
) -> dict[Name, NDArray[np.float64]]:
    """Seconds of each call by name, (rounds,), of entrants that take turns.

    An untimed call before each warms the cache and lets other threads sleep. limit_s ends it early, after 3 rounds at
    least.
    """
    order, shuffle = list(entrants), random.Random(0).shuffle
    seconds: dict[Name, list[float]] = {name: [] for name in order}
    for _ in range(warmup):
        for call in entrants.values():
            call()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collector's pause would be booked on whoever runs
    begun = reported = time.monotonic()
    try:
        for number in range(1, rounds + 1):
            shuffle(order)  # so that other load meets all alike
            for name in order:
                call = entrants[name]
                call()
                start = time.perf_counter_ns()
                call()
                seconds[name].append((time.perf_counter_ns() - start) / 1e9)
            now = time.monotonic()
            if number >= 3 and now - begun > limit_s:
                break
            if now - reported > 20:  # a line between rounds: a bar's own thread would run on the timed core
                reported = now
                progress.say(f"race of {len(order)}: round {number} of {rounds}")
    finally:
        if collecting:
            gc.enable()
    return {name: np.array(times) for name, times in seconds.items()}


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep this process's threads, new ones too, on so many cores, if the system can."""
    if not can_pin():
        yield
        return
    allowed, before = _allowed(), {}
    for task in _tasks():
        with suppress(OSError):  # a thread may have ended
            before[task] = os.sched_getaffinity(task)
    # First logical cores first, then high numbers: boards number large cores last
    chosen = sorted(allowed, key=lambda core: (_sibling(core), -core))[:threads]
    try:
        for task in before:
            _pin(task, set(chosen))
        yield
    finally:
        for task in _tasks():
            _pin(task, before.get(task, allowed))


def machine() -> Machine:
    memory = None
    with suppress(ValueError, OSError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(_cpu(), cores(), memory, {name: _version(name) for name in runtimes.RUNTIMES})


def cores() -> int:
    """That this process may use."""
    return len(_allowed())


def can_pin() -> bool:
    return hasattr(os, "sched_setaffinity")


def _allowed() -> set[int]:
    return set(os.sched_getaffinity(0)) if can_pin() else set(range(os.cpu_count() or 1))


def _tasks() -> list[int]:
    """sched_setaffinity(2) moves one thread, and those it starts later."""
    with suppress(OSError):
        return [int(path.name) for path in Path("/proc/self/task").iterdir()]
    return [0]


def _pin(task: int, cores: set[int]) -> None:
    with suppress(OSError):
        os.sched_setaffinity(task, cores)


def _sibling(core: int) -> int:
    """0: first logical core of a physical one."""
    with suppress(OSError, ValueError):
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
        return [int(number) for number in re.findall(r"\d+", text)].index(core)
    return 0


def _cpu() -> str:
    with suppress(OSError, UnicodeDecodeError):  # ARM boards
        return Path("/proc/device-tree/model").read_text().strip("\0\n ")
    with suppress(OSError, UnicodeDecodeError):  # x86
        if match := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return match[1].strip()
    return platform.processor() or platform.machine() or "unknown"


def _version(runtime: str) -> str:
    if not runtimes.installed(runtime):
        return "not installed"
    try:
        return version(runtimes.RUNTIMES[runtime].needs)
    except PackageNotFoundError:  # a build under another name, such as onnxruntime-gpu
        return "of another build"
