"""The race is fair and exact on a clock of the test's own; pinning reaches every thread; this machine is described."""

import gc
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clocks import Clock

from stillwatch.errors import UserError
from stillwatch.inference import runtimes, timing
from stillwatch.run import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# ---- the race


def test_everybody_runs_once_untimed_and_once_timed_a_round_in_an_order_drawn_anew() -> None:
    called: list[str] = []
    entrants = {name: partial(called.append, name) for name in "abcd"}
    seconds = timing.race(entrants, rounds=30, warmup=2)
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
    timing.race(entrants, rounds=30, warmup=2)
    assert called == first


def test_each_call_is_booked_on_who_made_it(clock: Clock) -> None:
    """Only timed calls count: the untimed one before takes ten times as long."""
    turns = {"a": 0, "b": 0}

    def call(name: str, ms: float) -> None:
        turns[name] += 1
        timed = turns[name] % 2 == 0
        clock.takes(ms + turns[name] if timed else 10 * ms)

    seconds = timing.race({"a": lambda: call("a", 3), "b": lambda: call("b", 50)}, rounds=3, warmup=0)
    np.testing.assert_allclose(seconds["a"], [0.005, 0.007, 0.009])
    np.testing.assert_allclose(seconds["b"], [0.052, 0.054, 0.056])


def test_no_garbage_is_collected_meanwhile_and_afterwards_it_is() -> None:
    seen = []
    timing.race({"a": lambda: seen.append(gc.isenabled())}, rounds=2, warmup=1)
    assert seen == [True, False, False, False, False]
    assert gc.isenabled()

    def fails() -> None:
        raise UserError("no")

    with pytest.raises(UserError):
        timing.race({"a": fails}, rounds=1, warmup=0)
    assert gc.isenabled()


def test_a_long_race_says_where_it_is(clock: Clock) -> None:
    said: list[str] = []
    progress = Progress(say=said.append)
    timing.race({"a": lambda: clock.takes(4_000)}, rounds=7, warmup=1, progress=progress)  # a round: 8 s
    assert said == ["race of 1: round 3 of 7", "race of 1: round 6 of 7"]


def test_a_race_that_takes_too_long_ends_early_after_three_rounds(clock: Clock) -> None:
    entrants = {"a": lambda: clock.takes(1_000), "b": lambda: clock.takes(500)}  # a round: 3 s
    for limit_s, rounds in ((0.0, 3), (10.0, 4), (1e9, 9)):
        seconds = timing.race(entrants, rounds=9, warmup=0, limit_s=limit_s)
        assert {name: len(times) for name, times in seconds.items()} == {"a": rounds, "b": rounds}


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
        with pytest.raises(KeyError), timing.pinned(1):
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
        with timing.pinned(len(allowed) + 3):
            assert os.sched_getaffinity(0) == allowed
    finally:
        stop.set()
        older.join()


def test_hyper_threads_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores 0,1 and 2,3 are two physical ones: two threads get one of each."""
    asked: list[Any] = []
    monkeypatch.setattr(timing, "_sibling", lambda core: core % 2)
    monkeypatch.setattr(timing, "_allowed", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(timing, "_pin", lambda task, cores: asked.append(cores))
    monkeypatch.setattr(timing, "can_pin", lambda: True)
    monkeypatch.setattr(timing, "_tasks", lambda: [0])
    for threads, cores in ((1, {2}), (2, {2, 0}), (3, {2, 0, 3})):
        asked.clear()
        with timing.pinned(threads):
            assert asked == [cores]


# ---- the machine


def test_the_machine_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    here = timing.machine()
    assert here.cores == len(os.sched_getaffinity(0))
    assert here.memory > 2**26 and len(here.cpu) > 2
    assert here.runtimes.keys() == runtimes.RUNTIMES.keys()
    assert here.runtimes["onnxruntime"][0].isdigit()
    tree = "/proc/device-tree/model"
    for said, name in (({"/proc/cpuinfo": "processor\t: 0\nmodel name\t: An Abacus 3000 \n"}, "An Abacus 3000"),
                       ({"/proc/cpuinfo": "processor : 0\n", tree: "Some Board 5\0"}, "Some Board 5")):  # fmt: skip

        def read(path: Path, said: dict[str, str] = said) -> str:
            if str(path) not in said:
                raise FileNotFoundError(path)
            return said[str(path)]

        monkeypatch.setattr(Path, "read_text", read)
        assert timing._cpu() == name
