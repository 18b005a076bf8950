"""Speed, memory and start time of a bundle's files here."""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

import stillwatch
from stillwatch.bundle import Bundle, unlike
from stillwatch.errors import UserError, one_line
from stillwatch.evaluation import heat
from stillwatch.evaluation.fresh import first_answer
from stillwatch.inference import runtimes
from stillwatch.inference.streams import one_look
from stillwatch.inference.timing import can_pin, machine, pinned, race
from stillwatch.run import NO_PROGRESS, Progress

FORMAT = 1  # of the report
BUSY = 0.25  # processes a core in the load average, above which the machine counts as busy
LIBRARIES = ("numpy", "onnxruntime", "openvino", "ncnn", "torch")


class Contender(NamedTuple):
    """open(threads, batch): picklable; returns the function to time on uint8 (n,*shape)."""

    name: str
    open: Callable[[int, int], Callable[..., Any]]
    kind: Literal["file", "detector", "rival"] = "rival"
    runtime: str = ""
    precision: str | None = None
    bytes: int | None = None  # on disk
    params: int | None = None
    figures: Mapping[str, Any] = {}  # {"valid": {"macro_f1": …}}, as in a bundle's manifest


class Row(TypedDict):
    """A contender on so many threads. None: unknown."""

    name: str
    kind: str
    runtime: str
    precision: str | None
    bytes: int | None
    params: int | None
    figures: Mapping[str, Any]
    threads: int
    faithful: bool | None  # to its golden probabilities
    difference: float | None
    latency_ms: dict[str, float] | None  # p50, p95, p99, min
    throughput: float | None
    memory_mb: float | None
    bare_mb: float | None
    load_s: float | None
    import_s: float | None
    runs: dict[str, str] | None  # a detector: the file that it chose, and its runtime
    overhead: float | None
    why_not: str | None
    fastest: bool


Report: TypeAlias = dict[str, Any]  # what bench.json holds
Ready: TypeAlias = Callable[[Row, Contender], Callable[[], object]]  # a row is filled in -> what is timed


class BenchPlan(NamedTuple):
    threads: tuple[int, ...] = ()  # none named: one, and as many as this process has cores
    rounds: int = 200  # timed calls of each
    warmup: int = 20
    batch: int = 8  # pictures a call for the throughput; a tenth of the rounds
    minutes: float = 0.0  # the fastest faithful file without a pause, after the race


def bench(
    bundle: Bundle,
    others: Sequence[Contender] = (),
    plan: BenchPlan = BenchPlan(),  # noqa: B008  an immutable tuple
    progress: Progress = NO_PROGRESS,
) -> Report:
    """Time each file in each runtime, and the others -> what bench.json holds.

    others: the detector and rivals. Raises UserError.
    """
    here = machine()
    counts = tuple(sorted(set(plan.threads or (1, here.cores))))
    if min(*counts, plan.rounds, plan.batch, plan.warmup + 1) < 1:
        raise UserError(f"bench: {plan}: threads, rounds and batch are at least 1")
    entrants = [*_files(bundle), *others]
    names = [(entrant.name, entrant.runtime) for entrant in entrants]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"bench: {' in '.join(filter(None, twice))}: comes twice; name it once")
    before, rows, cool = _load(), list[Row](), heat.read()
    for threads in reversed(counts):  # widest first: opened on one core, OpenVINO keeps threads there for good
        with pinned(threads):
            rows += _rows(bundle, entrants, threads, plan, progress)
    for row in rows:
        row["fastest"] = row is fastest(rows, row["threads"])
        if row["runs"] and row["latency_ms"]:
            wanted = (row["runs"]["file"], row["runs"]["runtime"], row["threads"])
            plain = next((r["latency_ms"] for r in rows if (r["name"], r["runtime"], r["threads"]) == wanted), None)
            row["overhead"] = round(row["latency_ms"]["p50"] / plain["p50"], 4) if plain else None
    rows.sort(key=lambda row: (row["threads"], _median(row)))
    soak = _soak(bundle, entrants, fastest(rows, counts[-1]), plan.minutes, progress) if plan.minutes else None
    warm = heat.read()
    throttled = dict.fromkeys(
        word for state in (cool, *(soak["series"] if soak else ()), warm) for word in state["throttled"]
    )
    about = {"system": platform.platform(), "python": platform.python_version()}
    versions = {name: getattr(sys.modules[name], "__version__", "?") for name in LIBRARIES if name in sys.modules}
    load = {"load_before": before, "load_after": _load()}
    manifest = bundle.manifest
    return {
        "format": FORMAT,
        "stillwatch": stillwatch.__version__,
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "bundle": {"name": manifest.name, "run": manifest.run.get("id"), "shape": list(manifest.input.shape)},
        "machine": {**here._asdict(), **about, "versions": versions, "pinned": can_pin(), **load},
        "plan": {**plan._asdict(), "threads": list(counts)},
        "rows": rows,
        "heat": {"before": cool, "after": warm},
        "soak": soak,
        "warnings": [f"throttled: {', '.join(throttled)}"] * bool(throttled)
        + _warnings(rows, counts, here.cores, load),
    }


def fastest(rows: Sequence[Row], threads: int) -> Row | None:
    """Of the faithful files, by median."""
    fit = [row for row in rows if row["threads"] == threads and row["faithful"] and row["latency_ms"]]
    return min(fit, key=_median, default=None)


def _median(row: Row) -> float:
    return (row["latency_ms"] or {}).get("p50", np.inf)


def over_budget(report: Mapping[str, Any], budget_ms: float) -> str | None:
    """One line if the fastest faithful file's p95, at the most threads, is over budget, or none is faithful."""
    threads = max(report["plan"]["threads"])
    best, name = fastest(report["rows"], threads), report["bundle"]["name"]
    if best is None:
        return f"{name}: over the budget of {budget_ms:g} ms: no file gives its golden probabilities on this machine"
    p95 = best["latency_ms"]["p95"] if best["latency_ms"] else np.inf
    if p95 <= budget_ms:
        return None
    where = f"{best['name']} in {best['runtime']}, {_words(threads)}"
    return f"{name}: over the budget of {budget_ms:g} ms: p95 is {p95:.4g} ms ({where})"


def _words(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def open_resizing(path: Path, runtime: str, shape: tuple[int, ...], threads: int, batch: int) -> runtimes.Predict:
    """A rival of another picture size answers with as many pictures of its own size."""
    predict, x = runtimes.open(path, runtime, shape, threads, batch), np.full((batch, *shape), 100, np.uint8)
    return lambda given: predict(np.resize(x, (len(given), *shape)))


# ---- one thread count


def _files(bundle: Bundle) -> Iterator[Contender]:
    manifest = bundle.manifest
    for model in manifest.models:
        path, size = bundle.path / model.name, sum(manifest.files[name].bytes for name in model.files)
        for runtime in runtimes.readers(path):
            opens = partial(runtimes.open, path, runtime, manifest.input.shape)
            yield Contender(model.name, opens, "file", runtime, model.precision, size, figures=model.figures)


def _rows(
    bundle: Bundle, entrants: Sequence[Contender], threads: int, plan: BenchPlan, progress: Progress
) -> list[Row]:
    frames, golden = bundle.golden()
    one, many = frames[:1], np.resize(frames, (plan.batch, *frames.shape[1:]))
    abouts = (e._asdict() | {"figures": dict(e.figures), "threads": threads, "fastest": False} for e in entrants)
    rows = [Row(**{key: about.get(key) for key in Row.__annotations__}) for about in abouts]  # type: ignore[typeddict-item]

    def ready(row: Row, entrant: Contender) -> Callable[[], object]:
        predict = entrant.open(threads, 1)
        if entrant.kind == "file":
            p, wanted, tolerance = predict(frames), golden[entrant.name], bundle.model(entrant.name).tolerance
            if p.shape != wanted.shape:
                raise UserError(f"gives probabilities {p.shape}, not {wanted.shape}")
            difference, other = unlike(p, wanted, tolerance)
            row["faithful"] = difference <= tolerance and other is None
            row["difference"] = difference if np.isfinite(difference) else None
        if choice := getattr(predict, "choice", None):  # a detector says which file it chose
            row["runs"] = {key: choice[key] for key in ("file", "runtime")}
        return one_look(predict, one)

    progress.say(f"{_words(threads)}: {len(entrants)} take turns, {plan.rounds} timed calls each")
    for row, seconds in _raced(rows, entrants, ready, (plan.rounds, plan.warmup), progress):
        p50, p95, p99 = np.percentile(1e3 * seconds, [50, 95, 99])
        spread = {"p50": p50, "p95": p95, "p99": p99, "min": 1e3 * seconds.min()}
        row["latency_ms"] = {key: round(float(ms), 4) for key, ms in spread.items()}
    by_many: Ready = lambda row, entrant: one_look(entrant.open(threads, plan.batch), many)  # noqa: E731
    for row, seconds in _raced(rows, entrants, by_many, (-(-plan.rounds // 10), -(-plan.warmup // 10)), progress):
        row["throughput"] = round(plan.batch / float(np.median(seconds)), 2)
    able = [(row, entrant) for row, entrant in zip(rows, entrants, strict=True) if not row["why_not"]]
    for row, entrant in progress.bar(able, len(able), f"memory and start, {_words(threads)}"):
        row.update(first_answer(entrant.open, threads, one))
    return rows


def _soak(
    bundle: Bundle, entrants: Sequence[Contender], best: Row | None, minutes: float, progress: Progress
) -> heat.Soak:
    if best is None:
        raise UserError(
            f"{bundle.path}: no file gives its golden probabilities on this machine, so none is run for long"
        )
    name, runtime, threads = best["name"], best["runtime"], best["threads"]
    progress.say(f"{name} in {runtime}, {_words(threads)}: {minutes:g} minutes without a pause")
    entrant = next(one for one in entrants if (one.name, one.runtime) == (name, runtime))
    with pinned(threads):
        series = heat.soak(one_look(entrant.open(threads, 1), bundle.golden()[0][:1]), minutes, progress)
    return heat.Soak(name=name, runtime=runtime, threads=threads, minutes=minutes, series=series)


def _raced(
    rows: list[Row], entrants: Sequence[Contender], ready: Ready, rounds: tuple[int, int], progress: Progress
) -> Iterator[tuple[Row, NDArray[np.float64]]]:
    calls: dict[str, Callable[[], object]] = {}
    for number, (row, entrant) in enumerate(zip(rows, entrants, strict=True)):
        if row["why_not"]:
            continue
        try:
            call = ready(row, entrant)
            call()
            calls[str(number)] = call
        except Exception as error:  # a runtime may fail in any way of its own; the others still run
            row["why_not"] = one_line(error)
    for name, seconds in race(calls, *rounds, progress=progress).items():
        yield rows[int(name)], seconds


def _load() -> list[float] | None:
    with suppress(OSError):
        return [round(value, 2) for value in os.getloadavg()]
    return None


def _warnings(
    rows: Sequence[Row], counts: Sequence[int], cores: int, load: Mapping[str, list[float] | None]
) -> list[str]:
    found = []
    before, after = load["load_before"], load["load_after"]
    for value, own, when in ((before, 0, "before"), (after, max(counts), "after")):
        if value and value[0] - own > BUSY * cores:
            told = f"load average {value[0]:.2f} on {cores} cores {when} the bench: the machine is busy with other work"
            found.append(f"{told}, so only large differences count")
    if max(counts) > cores:
        found.append(f"{max(counts)} threads were asked for; this process may use {cores} cores")
    if not can_pin():
        found.append("this system does not pin a process to cores: one thread may have wandered")
    for row in rows:
        who = f"{row['name']}{' in ' * bool(row['runtime'])}{row['runtime']}, {_words(row['threads'])}"
        if row["faithful"] is False:
            far = "they are not numbers" if row["difference"] is None else f"off by {row['difference']:.2g}"
            found.append(f"{who}: not its golden probabilities ({far}), so it is out of the running")
        if row["why_not"]:
            found.append(f"{who}: {row['why_not']}")
    return found
