"""The bench: who runs when is fair and exact on a clock of the test's own; no test knows how fast this machine is."""

import json
import os
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import SHAPE, by_hand, made, onnx_net, pictures
from clocks import Clock

from stillwatch import bundle
from stillwatch.bundle import Bundle, Fusion, Input, Manifest, Model
from stillwatch.errors import UserError
from stillwatch.evaluation import benchmark, heat
from stillwatch.evaluation.benchmark import BenchPlan, Contender
from stillwatch.inference import face_reader, runtimes, timing
from stillwatch.inference.detector import Detector, Pair
from stillwatch.media import synthetic
from stillwatch.rules.fusion import FACE
from stillwatch.run import Progress

FRAMES = pictures(8, seed=3)
RIGHT = by_hand(FRAMES).astype(np.float32)
QUICK = BenchPlan(threads=(1,), rounds=4, warmup=2, batch=3)
IDLE, CROWDED = (0.1, 0.1, 0.1), (9.0, 9.0, 9.0)


# ---- the report, with files that are only words for how they run


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No fresh processes here (test_fresh has them), an idle machine, two cores."""
    asked: list[Any] = []

    def first(opens: Any, threads: int, x: Any) -> dict[str, Any]:
        asked.append((threads, x.shape))
        return {"memory_mb": 90.0, "bare_mb": 30.0, "load_s": 0.2, "import_s": 0.1}

    monkeypatch.setattr(benchmark, "first_answer", first)
    monkeypatch.setattr(timing, "can_pin", lambda: False)
    monkeypatch.setattr(benchmark, "can_pin", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
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

    def open(self, path: Path, runtime: str, shape: tuple[int, ...], threads: int, batch: int) -> runtimes.Predict:
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


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    made = Workshop(Clock(monkeypatch))
    monkeypatch.setattr(runtimes, "open", made.open)
    monkeypatch.setattr(runtimes, "readers", both)
    return made


def found(report: dict[str, Any], threads: int = 1) -> dict[str, dict[str, Any]]:
    return {f"{r['name']} {r['runtime']}".strip(): r for r in report["rows"] if r["threads"] == threads}


def test_each_file_runs_in_each_runtime_that_suits_it_at_each_thread_count(
    tmp_path: Path, shop: Workshop, still: list[Any]
) -> None:
    said = list[str]()
    it = packed(tmp_path, ("4-right", "2-right"))
    plan = BenchPlan(rounds=20, warmup=1, batch=3)
    report = benchmark.bench(it, plan=plan, progress=Progress(say=said.append))
    pairs = [("4-right", "fast-runtime"), ("2-right", "fast-runtime"), ("2-right", "other")]
    assert shop.opened == [(*pair, t, b) for t in (2, 1) for b in (1, 3) for pair in pairs]
    assert report["plan"] == {"threads": [1, 2], "rounds": 20, "warmup": 1, "batch": 3, "minutes": 0.0}
    assert report["soak"] is None
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
    assert report["machine"]["cpu"] == timing.machine().cpu and report["machine"]["cores"] == 2
    assert report["bundle"] == {"name": "toy", "run": "toy-1", "shape": list(SHAPE)}
    assert report["warnings"] == ["this system does not pin a process to cores: one thread may have wandered"]
    assert said == ["2 threads: 3 take turns, 20 timed calls each", "1 thread: 3 take turns, 20 timed calls each"]
    json.dumps(report, allow_nan=False)


def test_minutes_are_the_fastest_faithful_files_on_all_cores(
    tmp_path: Path, shop: Workshop, still: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hot = {"seconds": 1.0, "calls": 1, "p50": 1.0, "p95": 1.0, **heat.read(), "throttled": ["hot"]}
    monkeypatch.setattr(heat, "soak", lambda call, minutes, progress: call() is None or [hot])
    it = packed(tmp_path, ("4-right", "2-right", "1-off"))
    report = benchmark.bench(it, plan=QUICK._replace(threads=(1, 2), minutes=10))
    assert {key: report["soak"][key] for key in ("name", "threads", "minutes")} == {
        "name": "2-right", "threads": 2, "minutes": 10
    }  # fmt: skip
    assert report["soak"]["series"] == [hot]
    assert report["warnings"][0] == "throttled: hot"
    with pytest.raises(UserError, match="no file gives its golden probabilities"):
        benchmark.bench(packed(tmp_path, ("1-off",)), plan=QUICK._replace(minutes=1))


def test_a_file_that_is_wrong_is_never_the_fastest_and_one_that_fails_stops_nobody(
    tmp_path: Path, shop: Workshop, still: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = packed(tmp_path, ("1-off", "2-nan", "3-few", "4-flipped", "5-broken", "6-narrow", "7-right"))
    monkeypatch.setattr(runtimes, "readers", lambda path: ["r"])
    report = benchmark.bench(it, plan=QUICK)
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
    tmp_path: Path, shop: Workshop, still: list[Any]
) -> None:
    widest = float(np.abs(RIGHT[:, 0] - RIGHT[:, 1]).max())  # "even" is half as far off
    for tolerance, faithful in ((0.6 * widest, False), (1.01 * widest, True), (0.4 * widest, False)):
        it = packed(tmp_path, ("1-even",), tolerance)
        report = benchmark.bench(it, plan=QUICK)
        assert report["rows"][0]["faithful"] is faithful


class Slower:
    """A detector: takes half as long again as the file that it chose."""

    choice = {"file": "2-right", "runtime": "fast-runtime", "ms": 2.0, "cached": True, "candidates": []}  # noqa: RUF012

    def __init__(self, clock: Clock, threads: int, batch: int):
        self.clock = clock

    def __call__(self, x: Any) -> Any:
        self.clock.takes(3 * len(x))


def test_the_detector_and_rivals_run_in_the_same_race(tmp_path: Path, shop: Workshop, still: list[Any]) -> None:
    it = packed(tmp_path, ("2-right",))
    others = [
        Contender("detector", partial(Slower, shop.clock), "detector"),
        Contender("eager", lambda threads, batch: lambda x: shop.clock.takes(9 * len(x)), runtime="torch", params=7),
    ]
    report = benchmark.bench(it, others, QUICK)
    rows = found(report)
    assert list(rows) == ["2-right fast-runtime", "2-right other", "detector", "eager torch"]
    assert rows["detector"]["runs"] == {"file": "2-right", "runtime": "fast-runtime"}
    assert rows["detector"]["overhead"] == 1.5
    assert rows["eager torch"]["overhead"] is None and rows["eager torch"]["faithful"] is None
    assert (rows["eager torch"]["kind"], rows["eager torch"]["params"]) == ("rival", 7)
    assert not rows["eager torch"]["fastest"]


def test_what_cannot_be_raced_is_refused_at_once(tmp_path: Path, shop: Workshop, still: list[Any]) -> None:
    it = packed(tmp_path, ("2-right",))
    for plan in (BenchPlan(threads=(0,)), BenchPlan(rounds=0), BenchPlan(batch=0), BenchPlan(warmup=-1)):
        with pytest.raises(UserError, match="are at least 1"):
            benchmark.bench(it, plan=plan)
    twin = Contender("2-right", partial(Slower, shop.clock), runtime="other")
    with pytest.raises(UserError, match="2-right in other: comes twice"):
        benchmark.bench(it, [twin], QUICK)
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
    shop: Workshop,
    still: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    loads: list[Any],
    threads: int,
    told: list[str],
) -> None:
    turns = iter(loads)
    monkeypatch.setattr(os, "getloadavg", lambda: next(turns))
    plan = QUICK._replace(threads=(threads,))
    report = benchmark.bench(packed(tmp_path, ("2-right",)), plan=plan)
    warnings = [warning for warning in report["warnings"] if "pin" not in warning]
    assert len(warnings) == len(told)
    assert all(warning.startswith(wanted) for warning, wanted in zip(warnings, told, strict=True))
    assert report["machine"]["load_before"] == list(loads[0])


def test_the_budget_is_kept_by_the_fastest_faithful_file_at_the_most_threads(
    tmp_path: Path, shop: Workshop, still: list[Any]
) -> None:
    it = packed(tmp_path, ("1-off", "4-right"))
    plan = QUICK._replace(threads=(1, 2))
    report = benchmark.bench(it, plan=plan)
    assert benchmark.over_budget(report, 2.0) is None  # 4 ms on one thread, 2 ms on two
    assert benchmark.over_budget(report, 1.5) == (
        "toy: over the budget of 1.5 ms: p95 is 2 ms (4-right in fast-runtime, 2 threads)"
    )
    wrong = benchmark.bench(packed(tmp_path, ("1-off",)), plan=plan)
    assert benchmark.over_budget(wrong, 1e9) == (
        "toy: over the budget of 1e+09 ms: no file gives its golden probabilities on this machine"
    )


# ---- with nothing put on


def test_real_files_in_a_real_runtime_beside_a_real_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(runtimes, "readers", lambda path: ["onnxruntime"])
    report = benchmark.bench(it, [Contender("detector", partial(Detector, it.path), "detector")], QUICK)
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


def test_a_pair_of_net_and_reader_runs_in_the_race_and_answers_as_a_camera_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, still: list[Any]
) -> None:
    it = made(tmp_path, {"m.onnx": onnx_net(tmp_path / "m.onnx")}, frames=FRAMES)
    weight = tuple((*row, *[0.0] * FACE) for row in np.eye(2).tolist())
    head = Fusion(weight=weight, bias=(0.0, 99.0), figures={})
    text = it.manifest.model_copy(update={"fusion": head}).model_dump_json()
    (it.path / "bundle.json").write_text(text)
    driver, ticks = synthetic.reader(10), count()

    def drawn(threads: int, net: Any) -> Any:
        return lambda: (n := next(ticks) / 25, None if n >= 1 else driver(np.empty(0), n).signals)  # type: ignore[union-attr]

    monkeypatch.setattr(face_reader, "drawn", drawn)
    monkeypatch.setattr(runtimes, "readers", lambda path: ["onnxruntime"])
    pair = Pair(it.path)
    answers = [pair(FRAMES[:1])[0] for _ in range(26)]
    assert np.argmax(answers, 1).tolist() == [1] * 25 + [int(RIGHT[0].argmax())], "without a face the net's own"
    rows = found(benchmark.bench(it, [Contender("detector + face", partial(Pair, it.path), "detector")], QUICK))
    assert rows["detector + face"]["runs"] == {"file": "m.onnx", "runtime": "onnxruntime"}
    assert rows["detector + face"]["overhead"] > 0
