"""Bench: how fast, how heavy and how quick to start each file of a bundle is on this machine, beside its rivals.

In: a bundle, the function that opens its files, rivals as functions. Out: a report, one plain dict; track shows it.
Called by the CLI, which also hands race() to the lab. It knows no runtime, no torch, and not how it will be shown.
"""

import gc
import os
import platform
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import stillwatch
from stillwatch.bundle import Bundle, unlike
from stillwatch.errors import UserError, one_line
from stillwatch.evaluation.fresh import first_answer
from stillwatch.run import NO_PROGRESS, Progress

Predict: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Opener: TypeAlias = Callable[[Path, str, tuple[int, ...], int, int], Predict]  # file, runtime, shape, threads, batch

FORMAT = 1  # of the report
BUSY = 0.25  # processes a core in the load average, above which the machine counts as busy
LIBRARIES = ("numpy", "onnxruntime", "openvino", "ncnn", "torch")


class Contender(NamedTuple):
    """Somebody who runs: open(threads, batch) gives the function that is timed on uint8 (n,*shape).

    `open` must be picklable (a module's function, or a partial of one): a fresh process opens it once more.
    """

    name: str
    open: Callable[[int, int], Callable[..., Any]]
    kind: Literal["file", "detector", "rival"] = "rival"
    runtime: str = ""
    precision: str | None = None
    bytes: int | None = None  # on disk
    params: int | None = None
    figures: Mapping[str, Any] = {}  # {"valid": {"macro_f1": …}}, as in a bundle's manifest


class BenchPlan(NamedTuple):
    """How long and how wide."""

    threads: tuple[int, ...] = ()  # none named: one, and as many as this process has cores
    rounds: int = 200  # timed calls of each
    warmup: int = 20
    batch: int = 8  # pictures a call for the throughput; a tenth of the rounds


ASKED = BenchPlan()


def race(
    entrants: Mapping[str, Callable[[], Any]], rounds: int = 200, warmup: int = 20, voice: Progress = NO_PROGRESS
) -> dict[str, NDArray[np.float64]]:
    """Seconds of each call by name, (rounds,), of entrants that take turns.

    Each round calls every one once, in an order drawn anew (the same ones each time), so that whatever else the machine
    does meets all of them alike. Right before its timed call an entrant is called once untimed: that brings its weights
    back into the processor's cache, and lets the threads of the one before go to sleep.
    """
    order, shuffle = list(entrants), random.Random(0).shuffle
    seconds = {name: np.zeros(rounds) for name in order}
    for _ in range(warmup):
        for call in entrants.values():
            call()
    said = time.monotonic()
    with _no_collector():
        for number in range(rounds):
            shuffle(order)
            for name in order:
                call = entrants[name]
                call()
                start = time.perf_counter_ns()
                call()
                seconds[name][number] = (time.perf_counter_ns() - start) / 1e9
            if time.monotonic() - said > 20:  # a line between rounds: a bar's own thread would run on the timed core
                said = time.monotonic()
                voice.say(f"race of {len(order)}: round {number + 1} of {rounds}")
    return seconds


def bench(
    it: Bundle,
    opener: Opener,
    suiting: Callable[[Path], Sequence[str]],
    others: Sequence[Contender] = (),
    plan: BenchPlan = ASKED,
    machine: Mapping[str, Any] | None = None,
    voice: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Every file of the bundle in every runtime that suits it, and the others, at every thread count -> the report.

    others: the detector and rivals; they run in the same races, on the same pictures. machine: what is known of it.
    report: {"format", "stillwatch", "made", "bundle", "machine", "plan", "rows": one for each entrant and thread count,
    "warnings"}. A row always has the same keys (_row): latency_ms of one picture {"p50", "p95", "p99", "min"},
    throughput in pictures a second, what fresh.first_answer says of a fresh process, bytes, whether it is faithful to
    its golden probabilities, figures. None: not known; why_not says why something did not run.
    Raises UserError for a plan that cannot be run and for names that come twice.
    """
    cores = len(_allowed())
    counts = tuple(sorted(set(plan.threads or (1, cores))))
    if min(*counts, plan.rounds, plan.batch, plan.warmup + 1) < 1:
        raise UserError(f"bench: {plan}: threads, rounds and batch are at least 1")
    entrants = [*_files(it, opener, suiting), *others]
    names = [(entrant.name, entrant.runtime) for entrant in entrants]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"bench: {' in '.join(filter(None, twice))}: comes twice; name it once")
    before, rows = _load(), list[dict[str, Any]]()
    for threads in reversed(counts):  # widest first: opened on one core, OpenVINO keeps threads there for good
        with pinned(threads):
            rows += _heat(it, entrants, threads, plan, voice)
    for row in rows:
        row["fastest"] = row is fastest(rows, row["threads"])
        row["overhead"] = _overhead(row, rows)
    rows.sort(key=lambda row: (row["threads"], (row["latency_ms"] or {}).get("p50", np.inf)))
    about = {"cores": cores, "system": platform.platform(), "python": platform.python_version()}
    versions = {name: getattr(sys.modules[name], "__version__", "?") for name in LIBRARIES if name in sys.modules}
    load = {"load_before": before, "load_after": _load()}
    manifest = it.manifest
    return {
        "format": FORMAT,
        "stillwatch": stillwatch.__version__,
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "bundle": {"name": manifest.name, "run": manifest.run.get("id"), "shape": list(manifest.input.shape)},
        "machine": {**(machine or {}), **about, "versions": versions, "pinned": _can_pin(), **load},
        "plan": {**plan._asdict(), "threads": list(counts)},
        "rows": rows,
        "warnings": _warnings(rows, counts, cores, load),
    }


def fastest(rows: Sequence[dict[str, Any]], threads: int) -> dict[str, Any] | None:
    """Of the bundle's files that are faithful, the row with the lowest median at this thread count."""
    fit = [row for row in rows if row["threads"] == threads and row["faithful"] and row["latency_ms"]]
    return min(fit, key=lambda row: row["latency_ms"]["p50"], default=None)


def over_budget(report: Mapping[str, Any], budget_ms: float) -> str | None:
    """One line where the fastest faithful file, at the most threads raced, has its p95 over the budget; otherwise None.

    A bundle without a faithful file is over every budget.
    """
    threads = max(report["plan"]["threads"])
    best, name = fastest(report["rows"], threads), report["bundle"]["name"]
    if best is None:
        return f"{name}: over the budget of {budget_ms:g} ms: no file gives its golden probabilities on this machine"
    p95 = best["latency_ms"]["p95"]
    if p95 <= budget_ms:
        return None
    where = f"{best['name']} in {best['runtime']}, {_words(threads)}"
    return f"{name}: over the budget of {budget_ms:g} ms: p95 is {p95:.4g} ms ({where})"


def _words(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """All threads of this process, and those and the processes born meanwhile, stay on so many cores.

    One logical core of each physical one comes first; on boards with large and small cores the large ones are last.
    Afterwards each may run where it might before. Where the system has no such call nothing is done.
    """
    if not _can_pin():
        yield
        return
    allowed = _allowed()
    before = {}
    for task in _tasks():
        with suppress(OSError):  # a thread may have ended
            before[task] = os.sched_getaffinity(task)
    chosen = sorted(allowed, key=lambda core: (_twin(core), -core))[:threads]
    try:
        for task in before:
            _settle(task, chosen)
        yield
    finally:
        for task in _tasks():
            _settle(task, before.get(task, allowed))


# ---- one thread count


def _files(it: Bundle, opener: Opener, suiting: Callable[[Path], Sequence[str]]) -> Iterator[Contender]:
    manifest = it.manifest
    for model in manifest.models:
        path, size = it.path / model.name, sum(manifest.files[name].bytes for name in model.files)
        for runtime in suiting(path):
            opens = partial(opener, path, runtime, manifest.input.shape)
            yield Contender(model.name, opens, "file", runtime, model.precision, size, figures=model.figures)


def _heat(
    it: Bundle, entrants: Sequence[Contender], threads: int, plan: BenchPlan, voice: Progress
) -> list[dict[str, Any]]:
    """The rows of one thread count: latency in one race, throughput in another, then each alone in a fresh process."""
    frames, golden = it.golden()
    one, many = frames[:1], np.resize(frames, (plan.batch, *frames.shape[1:]))
    rows = [_row(entrant, threads) for entrant in entrants]

    def ready(row: dict[str, Any], entrant: Contender) -> Callable[[], Any]:
        predict = entrant.open(threads, 1)
        if entrant.kind == "file":
            row |= _compared(predict(frames), golden[entrant.name], it.model(entrant.name).tolerance)
        if choice := getattr(predict, "choice", None):  # a detector says which file it chose
            row["runs"] = {key: choice[key] for key in ("file", "runtime")}
        return partial(predict, one)

    def ready_for_many(row: dict[str, Any], entrant: Contender) -> Callable[[], Any]:
        return partial(entrant.open(threads, plan.batch), many)

    voice.say(f"{_words(threads)}: {len(entrants)} take turns, {plan.rounds} timed calls each")
    for row, seconds in _raced(rows, entrants, ready, (plan.rounds, plan.warmup), voice):
        row["latency_ms"] = _spread(1e3 * seconds)
    for row, seconds in _raced(rows, entrants, ready_for_many, (-(-plan.rounds // 10), -(-plan.warmup // 10)), voice):
        row["throughput"] = round(plan.batch / float(np.median(seconds)), 2)
    able = [(row, entrant) for row, entrant in zip(rows, entrants, strict=True) if not row["why_not"]]
    for row, entrant in voice.bar(able, len(able), f"memory and start, {_words(threads)}"):
        row |= first_answer(entrant.open, threads, one)
    return rows


def _raced(
    rows: list[dict[str, Any]],
    entrants: Sequence[Contender],
    ready: Callable[[dict[str, Any], Contender], Callable[[], Any]],
    rounds: tuple[int, int],
    voice: Progress,
) -> Iterator[tuple[dict[str, Any], NDArray[np.float64]]]:
    """Open everybody, race those that open and answer, and close them: one set of sessions at a time is in memory."""
    calls: dict[str, Callable[[], Any]] = {}
    for number, (row, entrant) in enumerate(zip(rows, entrants, strict=True)):
        if row["why_not"]:
            continue
        try:
            call = ready(row, entrant)
            call()
            calls[str(number)] = call
        except Exception as error:  # a runtime may fail in any way of its own; the others still run
            row["why_not"] = one_line(error)
    for name, seconds in race(calls, *rounds, voice).items():
        yield rows[int(name)], seconds


def _row(entrant: Contender, threads: int) -> dict[str, Any]:
    about = entrant._asdict()
    del about["open"]
    unknown = (
        "faithful", "difference", "latency_ms", "throughput", "memory_mb", "bare_mb", "load_s", "import_s", "runs",
        "overhead", "why_not",
    )  # fmt: skip
    return {**about, "figures": dict(entrant.figures), "threads": threads, **dict.fromkeys(unknown), "fastest": False}


def _overhead(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float | None:
    """How many times as long a detector takes as the very file that it runs."""
    if not (row["runs"] and row["latency_ms"]):
        return None
    wanted = (row["runs"]["file"], row["runs"]["runtime"], row["threads"])
    plain = [other["latency_ms"] for other in rows if (other["name"], other["runtime"], other["threads"]) == wanted]
    return round(row["latency_ms"]["p50"] / plain[0]["p50"], 4) if plain and plain[0] else None


def _compared(p: NDArray[np.float32], wanted: NDArray[np.float32], tolerance: float) -> dict[str, Any]:
    """Whether the golden probabilities came out: within the tolerance, and no label another where it is not a tie."""
    if p.shape != wanted.shape:
        raise UserError(f"gives probabilities {p.shape}, not {wanted.shape}")
    difference, other = unlike(p, wanted, tolerance)
    faithful = difference <= tolerance and other is None
    return {"faithful": faithful, "difference": difference if np.isfinite(difference) else None}


def _spread(ms: NDArray[np.float64]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(ms, [50, 95, 99])
    return {"p50": round(p50, 4), "p95": round(p95, 4), "p99": round(p99, 4), "min": round(float(ms.min()), 4)}


# ---- the machine


@contextmanager
def _no_collector() -> Iterator[None]:
    """No garbage collection meanwhile: its pauses would be booked on whoever runs."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _can_pin() -> bool:
    return hasattr(os, "sched_setaffinity")


def _allowed() -> set[int]:
    return set(os.sched_getaffinity(0)) if _can_pin() else set(range(os.cpu_count() or 1))


def _tasks() -> list[int]:
    """Every thread of this process: sched_setaffinity(2) moves one at a time, and those that it starts later."""
    with suppress(OSError):
        return [int(path.name) for path in Path("/proc/self/task").iterdir()]
    return [0]


def _settle(task: int, cores: Sequence[int] | set[int]) -> None:
    with suppress(OSError):
        os.sched_setaffinity(task, cores)


def _twin(core: int) -> int:
    """0 for the first logical core of a physical one, 1 for its hyper-thread."""
    with suppress(OSError, ValueError):
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
        return [int(number) for number in re.findall(r"\d+", text)].index(core)
    return 0


def _load() -> list[float] | None:
    """The load averages of the last 1, 5 and 15 minutes."""
    with suppress(OSError):
        return [round(value, 2) for value in os.getloadavg()]
    return None


def _warnings(
    rows: Sequence[dict[str, Any]], counts: Sequence[int], cores: int, load: Mapping[str, list[float] | None]
) -> list[str]:
    found = []
    before, after = load["load_before"], load["load_after"]
    for value, own, when in ((before, 0, "before"), (after, max(counts), "after")):
        if value and value[0] - own > BUSY * cores:
            told = f"load average {value[0]:.2f} on {cores} cores {when} the bench: the machine is busy with other work"
            found.append(f"{told}, so only large differences count")
    if max(counts) > cores:
        found.append(f"{max(counts)} threads were asked for; this process may use {cores} cores")
    if not _can_pin():
        found.append("this system does not pin a process to cores: one thread may have wandered")
    for row in rows:
        who = f"{row['name']}{' in ' * bool(row['runtime'])}{row['runtime']}, {_words(row['threads'])}"
        if row["faithful"] is False:
            far = "they are not numbers" if row["difference"] is None else f"off by {row['difference']:.2g}"
            found.append(f"{who}: not its golden probabilities ({far}), so it is out of the running")
        if row["why_not"]:
            found.append(f"{who}: {row['why_not']}")
    return found
