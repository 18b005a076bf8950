"""The bench: who runs when is fair and exact on a clock of the test's own; no test knows how fast this machine is."""

import gc
import json
import os
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_runtimes import SHAPE, by_hand, onnx_net, pictures

from stillwatch import bundle
from stillwatch.bundle import Bundle, Input, Manifest, Model
from stillwatch.errors import UserError
from stillwatch.evaluation import benchmark
from stillwatch.evaluation.benchmark import BenchPlan, Contender
from stillwatch.inference import runtimes
from stillwatch.inference.detector import Detector
from stillwatch.run import Progress

FRAMES = pictures(8, seed=3)
RIGHT = by_hand(FRAMES).astype(np.float32)
QUICK = BenchPlan(threads=(1,), rounds=4, warmup=2, batch=3)
IDLE, CROWDED = (0.1, 0.1, 0.1), (9.0, 9.0, 9.0)


class Clock:
    """Time stands still but for what the entrants say that they take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.ns = 0
        fake = SimpleNamespace(perf_counter_ns=lambda: self.ns, monotonic=lambda: self.ns / 1e9, strftime=time.strftime)
        monkeypatch.setattr(benchmark, "time", fake)

    def takes(self, ms: float) -> None:
        self.ns += round(1e6 * ms)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# ---- the race


def test_everybody_runs_once_untimed_and_once_timed_a_round_in_an_order_drawn_anew() -> None:
    called: list[str] = []
    entrants = {name: partial(called.append, name) for name in "abcd"}
    seconds = benchmark.race(entrants, rounds=30, warmup=2)
    assert {name: (s.dtype, s.shape) for name, s in seconds.items()} == dict.fromkeys("abcd", (np.float64, (30,)))
    assert called[:8] == list("abcdabcd")
    pairs = np.array(called[8:]).reshape(30, 4, 2)
    assert (pairs[..., 0] == pairs[..., 1]).all()
    orders = ["".join(order) for order in pairs[..., 0]]
    assert {"".join(sorted(order)) for order in orders} == {"abcd"}
    assert len(set(orders)) > 10
    assert {order[0] for order in orders} == set("abcd")  # nobody always follows the same one
    first = list(called)
    called.clear()
    benchmark.race(entrants, rounds=30, warmup=2)
    assert called == first


def test_each_call_is_booked_on_who_made_it(clock: Clock) -> None:
    """Only timed calls count: the untimed one before takes ten times as long."""
    turns = {"a": 0, "b": 0}

    def call(name: str, ms: float) -> None:
        turns[name] += 1
        timed = turns[name] % 2 == 0
        clock.takes(ms + turns[name] if timed else 10 * ms)

    seconds = benchmark.race({"a": lambda: call("a", 3), "b": lambda: call("b", 50)}, rounds=3, warmup=0)
    np.testing.assert_allclose(seconds["a"], [0.005, 0.007, 0.009])
    np.testing.assert_allclose(seconds["b"], [0.052, 0.054, 0.056])


def test_no_garbage_is_collected_meanwhile_and_afterwards_it_is() -> None:
    seen = []
    benchmark.race({"a": lambda: seen.append(gc.isenabled())}, rounds=2, warmup=1)
    assert seen == [True, False, False, False, False]
    assert gc.isenabled()

    def fails() -> None:
        raise UserError("no")

    with pytest.raises(UserError):
        benchmark.race({"a": fails}, rounds=1, warmup=0)
    assert gc.isenabled()


def test_a_long_race_says_where_it_is(clock: Clock) -> None:
    said: list[str] = []
    voice = Progress(say=said.append)
    benchmark.race({"a": lambda: clock.takes(4_000)}, rounds=7, warmup=1, voice=voice)  # a round: 8 s
    assert said == ["race of 1: round 3 of 7", "race of 1: round 6 of 7"]


# ---- cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin")
def test_every_thread_is_pinned_and_afterwards_free() -> None:
    allowed = os.sched_getaffinity(0)
    stop, ready = threading.Event(), threading.Event()

    def idle() -> None:
        ready.set()
        stop.wait()

    older = threading.Thread(target=idle)
    older.start()
    ready.wait()
    try:
        with pytest.raises(KeyError), benchmark.pinned(1):
            inside = os.sched_getaffinity(0)
            assert len(inside) == 1
            assert os.sched_getaffinity(older.native_id or 0) == inside
            born: list[set[int]] = []
            younger = threading.Thread(target=lambda: born.append(os.sched_getaffinity(0)))
            younger.start()
            younger.join()
            assert born == [inside]
            raise KeyError
        assert os.sched_getaffinity(0) == os.sched_getaffinity(older.native_id or 0) == allowed
        with benchmark.pinned(len(allowed) + 3):
            assert os.sched_getaffinity(0) == allowed
    finally:
        stop.set()
        older.join()


def test_hyper_threads_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores 0,1 and 2,3 are two physical ones: two threads get one of each."""
    asked: list[Any] = []
    monkeypatch.setattr(benchmark, "_twin", lambda core: core % 2)
    monkeypatch.setattr(benchmark, "_allowed", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(benchmark, "_settle", lambda task, cores: asked.append(cores))
    monkeypatch.setattr(benchmark, "_can_pin", lambda: True)
    monkeypatch.setattr(benchmark, "_tasks", lambda: [0])
    for threads, cores in ((1, [2]), (2, [2, 0]), (3, [2, 0, 3])):
        asked.clear()
        with benchmark.pinned(threads):
            assert asked == [cores]


# ---- the report, with files that are only words for how they run


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No fresh processes here (test_fresh has them), an idle machine, two cores."""
    asked: list[Any] = []

    def first(opens: Any, threads: int, x: Any) -> dict[str, Any]:
        asked.append((threads, x.shape))
        return {"memory_mb": 90.0, "bare_mb": 30.0, "load_s": 0.2, "import_s": 0.1}

    monkeypatch.setattr(benchmark, "first_answer", first)
    monkeypatch.setattr(benchmark, "_allowed", lambda: {0, 1})
    monkeypatch.setattr(benchmark, "_can_pin", lambda: False)
    monkeypatch.setattr(os, "getloadavg", lambda: IDLE)
    return asked


def packed(folder: Path, names: tuple[str, ...], tolerance: float = 0.01) -> Bundle:
    models = tuple(
        Model(
            name=name,
            files=(name, f"{name}.more"),
            precision="fp32",
            batch=None,
            tolerance=tolerance,
            figures={"valid": {"macro_f1": 0.5}},
        )
        for name in names
    )
    told = Manifest(
        name="toy",
        labels=("safe", "danger"),
        input=Input(shape=SHAPE),
        run={"id": "toy-1"},
        licence="CC0",
        created="now",
        stillwatch="0",
        models=models,
    )
    files = {name: b"1234567" for model in models for name in model.files}
    return bundle.write(folder / "bundle", told, files, FRAMES, dict.fromkeys(names, RIGHT))


class Workshop:
    """Opens files by what they are called: <ms a picture>-<how it answers>."""

    def __init__(self, clock: Clock):
        self.clock, self.opened = clock, list[tuple[str, str, int, int]]()

    def open(self, path: Path, runtime: str, shape: tuple[int, ...], threads: int, batch: int) -> benchmark.Predict:
        assert shape == SHAPE
        self.opened.append((path.name, runtime, threads, batch))
        ms, how = path.name.split("-")
        if how == "broken":
            raise UserError(f"{path.name}: cannot be\nread")
        if how == "narrow" and batch > 1:
            raise MemoryError
        answers = {"off": RIGHT + 0.02, "nan": RIGHT * np.nan, "few": RIGHT[:, :1], "flipped": RIGHT[:, ::-1]}
        answers["even"] = np.where(RIGHT > 0.5, 0.4999, 0.5001).astype(np.float32)  # the other label, by a hair

        def predict(x: Any) -> Any:
            self.clock.takes(float(ms) * len(x) / threads)
            return answers.get(how, RIGHT)

        return predict


def both(path: Path) -> list[str]:
    return ["fast-runtime", "other"] if path.name == "2-right" else ["fast-runtime"]


def found(report: dict[str, Any], threads: int = 1) -> dict[str, dict[str, Any]]:
    return {f"{r['name']} {r['runtime']}".strip(): r for r in report["rows"] if r["threads"] == threads}


def test_each_file_runs_in_each_runtime_that_suits_it_at_each_thread_count(
    tmp_path: Path, clock: Clock, still: list[Any]
) -> None:
    shop, said = Workshop(clock), list[str]()
    it = packed(tmp_path, ("4-right", "2-right"))
    plan = BenchPlan(rounds=20, warmup=1, batch=3)
    report = benchmark.bench(it, shop.open, both, plan=plan, machine={"cpu": "a toy"}, voice=Progress(say=said.append))
    pairs = [("4-right", "fast-runtime"), ("2-right", "fast-runtime"), ("2-right", "other")]
    assert shop.opened == [(*pair, t, b) for t in (2, 1) for b in (1, 3) for pair in pairs]
    assert report["plan"] == {"threads": [1, 2], "rounds": 20, "warmup": 1, "batch": 3}
    assert [(r["threads"], r["name"]) for r in report["rows"]] == [
        (1, "2-right"), (1, "2-right"), (1, "4-right"), (2, "2-right"), (2, "2-right"), (2, "4-right")
    ]  # fmt: skip
    row = found(report)["4-right fast-runtime"]
    assert row["latency_ms"] == {"p50": 4.0, "p95": 4.0, "p99": 4.0, "min": 4.0}
    assert row["throughput"] == 250.0
    assert found(report, 2)["4-right fast-runtime"]["latency_ms"]["p50"] == 2.0
    assert (row["bytes"], row["faithful"], row["difference"], row["why_not"]) == (14, True, 0.0, None)
    assert (row["memory_mb"], row["load_s"], row["figures"]) == (90.0, 0.2, {"valid": {"macro_f1": 0.5}})
    assert still == [(2, (1, *SHAPE))] * 3 + [(1, (1, *SHAPE))] * 3
    assert [r["fastest"] for r in report["rows"]].count(True) == 2
    assert len({tuple(r) for r in report["rows"]}) == 1  # the same keys in the same order
    assert report["machine"]["cpu"] == "a toy" and report["machine"]["cores"] == 2
    assert report["bundle"] == {"name": "toy", "run": "toy-1", "shape": list(SHAPE)}
    assert report["warnings"] == ["this system does not pin a process to cores: one thread may have wandered"]
    assert said == ["2 threads: 3 take turns, 20 timed calls each", "1 thread: 3 take turns, 20 timed calls each"]
    json.dumps(report, allow_nan=False)


def test_a_file_that_is_wrong_is_never_the_fastest_and_one_that_fails_stops_nobody(
    tmp_path: Path, clock: Clock, still: list[Any]
) -> None:
    it = packed(tmp_path, ("1-off", "2-nan", "3-few", "4-flipped", "5-broken", "6-narrow", "7-right"))
    shop = Workshop(clock)
    report = benchmark.bench(it, shop.open, lambda path: ["r"], plan=QUICK)
    assert [told[2:] for told in shop.opened if told[0] == "5-broken"] == [(1, 1)]  # it is not tried again
    rows = {row["name"]: row for row in report["rows"]}
    assert [name for name, row in rows.items() if row["fastest"]] == ["6-narrow"]
    assert {n: r["faithful"] for n, r in rows.items()} == {
        "1-off": False, "2-nan": False, "4-flipped": False, "6-narrow": True, "7-right": True,
        "3-few": None, "5-broken": None,
    }  # fmt: skip
    assert rows["1-off"]["latency_ms"]["p50"] == 1.0
    assert rows["3-few"]["why_not"] == "gives probabilities (8, 1), not (8, 2)"
    assert rows["5-broken"]["why_not"] == "5-broken: cannot be read"
    assert rows["6-narrow"]["throughput"] is None and rows["6-narrow"]["why_not"] == "MemoryError"
    assert report["rows"][-1]["latency_ms"] is None
    told = [warning for warning in report["warnings"] if "golden" in warning]
    far = np.abs(RIGHT[:, ::-1] - RIGHT).max()
    assert told == [
        "1-off in r, 1 thread: not its golden probabilities (off by 0.02), so it is out of the running",
        "2-nan in r, 1 thread: not its golden probabilities (they are not numbers), so it is out of the running",
        f"4-flipped in r, 1 thread: not its golden probabilities (off by {far:.2g}), so it is out of the running",
    ]
    assert any(warning.endswith("6-narrow in r, 1 thread: MemoryError") for warning in report["warnings"])
    json.dumps(report, allow_nan=False)


def test_another_label_within_the_tolerance_is_wrong_unless_it_was_a_tie(
    tmp_path: Path, clock: Clock, still: list[Any]
) -> None:
    widest = float(np.abs(RIGHT[:, 0] - RIGHT[:, 1]).max())  # "even" is half as far off
    for tolerance, faithful in ((0.6 * widest, False), (1.01 * widest, True), (0.4 * widest, False)):
        it = packed(tmp_path, ("1-even",), tolerance)
        report = benchmark.bench(it, Workshop(clock).open, lambda path: ["r"], plan=QUICK)
        assert report["rows"][0]["faithful"] is faithful


class Slower:
    """A detector: takes half as long again as the file that it chose."""

    choice = {"file": "2-right", "runtime": "fast-runtime", "ms": 2.0, "cached": True, "candidates": []}  # noqa: RUF012

    def __init__(self, clock: Clock, threads: int, batch: int):
        self.clock = clock

    def __call__(self, x: Any) -> Any:
        self.clock.takes(3 * len(x))


def test_the_detector_and_rivals_run_in_the_same_race(tmp_path: Path, clock: Clock, still: list[Any]) -> None:
    it = packed(tmp_path, ("2-right",))
    others = [
        Contender("detector", partial(Slower, clock), "detector"),
        Contender("eager", lambda threads, batch: lambda x: clock.takes(9 * len(x)), runtime="torch", params=7),
    ]
    report = benchmark.bench(it, Workshop(clock).open, both, others, QUICK)
    rows = found(report)
    assert list(rows) == ["2-right fast-runtime", "2-right other", "detector", "eager torch"]
    assert rows["detector"]["runs"] == {"file": "2-right", "runtime": "fast-runtime"}
    assert rows["detector"]["overhead"] == 1.5
    assert rows["eager torch"]["overhead"] is None and rows["eager torch"]["faithful"] is None
    assert (rows["eager torch"]["kind"], rows["eager torch"]["params"]) == ("rival", 7)
    assert not rows["eager torch"]["fastest"]


def test_what_cannot_be_raced_is_refused_at_once(tmp_path: Path, clock: Clock, still: list[Any]) -> None:
    it, shop = packed(tmp_path, ("2-right",)), Workshop(clock)
    for plan in (BenchPlan(threads=(0,)), BenchPlan(rounds=0), BenchPlan(batch=0), BenchPlan(warmup=-1)):
        with pytest.raises(UserError, match="are at least 1"):
            benchmark.bench(it, shop.open, both, plan=plan)
    twin = Contender("2-right", partial(Slower, clock), runtime="other")
    with pytest.raises(UserError, match="2-right in other: comes twice"):
        benchmark.bench(it, shop.open, both, [twin], QUICK)
    assert shop.opened == []


@pytest.mark.parametrize(
    ("loads", "threads", "told"),
    [
        ([IDLE, IDLE], 1, []),
        ([IDLE, (1.3, 0, 0)], 1, []),  # one of these is the bench itself
        ([CROWDED, IDLE], 1, ["load average 9.00 on 2 cores before the bench"]),
        ([IDLE, CROWDED], 1, ["load average 9.00 on 2 cores after the bench"]),
        ([IDLE, IDLE], 3, ["3 threads were asked for; this process may use 2 cores"]),
    ],
)
def test_a_busy_machine_is_told(
    tmp_path: Path,
    clock: Clock,
    still: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    loads: list[Any],
    threads: int,
    told: list[str],
) -> None:
    turns = iter(loads)
    monkeypatch.setattr(os, "getloadavg", lambda: next(turns))
    plan = QUICK._replace(threads=(threads,))
    report = benchmark.bench(packed(tmp_path, ("2-right",)), Workshop(clock).open, both, plan=plan)
    warnings = [warning for warning in report["warnings"] if "pin" not in warning]
    assert len(warnings) == len(told)
    assert all(warning.startswith(wanted) for warning, wanted in zip(warnings, told, strict=True))
    assert report["machine"]["load_before"] == list(loads[0])


def test_the_budget_is_kept_by_the_fastest_faithful_file_at_the_most_threads(
    tmp_path: Path, clock: Clock, still: list[Any]
) -> None:
    it = packed(tmp_path, ("1-off", "4-right"))
    plan = QUICK._replace(threads=(1, 2))
    report = benchmark.bench(it, Workshop(clock).open, both, plan=plan)
    assert benchmark.over_budget(report, 2.0) is None  # 4 ms on one thread, 2 ms on two
    assert benchmark.over_budget(report, 1.5) == (
        "toy: over the budget of 1.5 ms: p95 is 2 ms (4-right in fast-runtime, 2 threads)"
    )
    wrong = benchmark.bench(packed(tmp_path, ("1-off",)), Workshop(clock).open, both, plan=plan)
    assert benchmark.over_budget(wrong, 1e9) == (
        "toy: over the budget of 1e+09 ms: no file gives its golden probabilities on this machine"
    )


# ---- with nothing put on


def test_real_files_in_a_real_runtime_beside_a_real_detector(tmp_path: Path) -> None:
    model = Model(name="model.onnx", files=("model.onnx",), precision="fp32", batch=None, tolerance=1e-4)
    told = Manifest(
        name="toy",
        labels=("safe", "danger"),
        input=Input(shape=SHAPE),
        licence="CC0",
        created="now",
        stillwatch="0",
        models=(model,),
    )
    source = onnx_net(tmp_path / "m.onnx")
    it = bundle.write(tmp_path / "bundle", told, {"model.onnx": source}, FRAMES, {"model.onnx": RIGHT})
    opener, watching = runtimes.open, Contender("detector", partial(Detector, it.path), "detector")
    report = benchmark.bench(it, opener, lambda path: ["onnxruntime"], [watching], QUICK)
    assert [w for w in report["warnings"] if "load average" not in w] == []
    rows = found(report)
    plain, detector = rows["model.onnx onnxruntime"], rows["detector"]
    assert plain["faithful"] and plain["fastest"] and plain["bytes"] == source.stat().st_size
    for row in (plain, detector):
        ms = row["latency_ms"]
        assert 0 < ms["min"] <= ms["p50"] <= ms["p95"] <= ms["p99"]
        assert row["throughput"] > 0
        assert row["memory_mb"] > row["bare_mb"] > 5
        assert row["load_s"] > row["import_s"] > 0
    assert detector["runs"]["file"] == "model.onnx"
    assert report["machine"]["versions"]["onnxruntime"]
    json.dumps(report, allow_nan=False)
