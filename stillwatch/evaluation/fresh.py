"""Peak memory and time to the first answer in a fresh process, which imports this file: keep it light."""

import builtins
import importlib
import multiprocessing
import pickle
import re
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import one_line

Open: TypeAlias = Callable[[int, int], Callable[..., Any]]  # (threads, batch) -> predict, as in a bench's Contender

PATIENCE = 300.0  # seconds that a fresh process has for its first answer


def first_answer(opens: Open, threads: int, x: NDArray[np.uint8]) -> dict[str, Any]:
    """Open a model in a fresh process and answer once, for x uint8 (1,*shape).

    -> memory_mb (peak, 10⁶ bytes), bare_mb (peak before importing `opens`), load_s (from there to the answer), import_s
    (its share of imports). On failure only why_not.
    """
    try:
        packed = pickle.dumps(opens)
    except Exception as error:  # pickle has several
        return {"why_not": f"no fresh process for memory and start: {one_line(error)}"}
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_live, args=(sender, packed, threads, x), daemon=True)
    with receiver, sender:
        child.start()
        sender.close()  # this side's: the child's death is then the end of the pipe
        try:
            return dict(receiver.recv()) if receiver.poll(PATIENCE) else {"why_not": f"no answer in {PATIENCE:.0f} s"}
        except EOFError:
            child.join()
            return {"why_not": f"a fresh process died of it (exit status {child.exitcode})"}
        finally:
            child.kill()
            child.join()


def _live(sender: Connection, packed: bytes, threads: int, x: NDArray[np.uint8]) -> None:
    bare, spent = _peak_mb(), _clock_imports()
    start = time.perf_counter()
    try:
        pickle.loads(packed)(threads, 1)(x)  # may import all of torch
    except Exception as error:
        sender.send({"why_not": f"in a fresh process: {one_line(error)}"})
        return
    load = time.perf_counter() - start
    figures = {"load_s": round(load, 4), "import_s": round(sum(spent), 4)}
    sender.send({"memory_mb": _peak_mb(), "bare_mb": bare, **figures})


def _peak_mb() -> float | None:
    with suppress(OSError):  # VmHWM starts anew at exec; getrusage(2)'s maximum does not
        if match := re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return round(int(match[1]) * 1024 / 1e6, 1)
    return None


def _clock_imports() -> list[float]:
    """A list that receives the seconds of each outermost import."""
    spent, depth = list[float](), [0]

    def clocked(real: Callable[..., Any]) -> Callable[..., Any]:
        def imports(*args: Any, **words: Any) -> Any:
            start = time.perf_counter()
            depth[0] += 1
            try:
                return real(*args, **words)
            finally:
                depth[0] -= 1
                if not depth[0]:
                    spent.append(time.perf_counter() - start)

        return imports

    builtins.__import__ = clocked(builtins.__import__)
    importlib.import_module = clocked(importlib.import_module)
    return spent
