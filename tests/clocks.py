"""A clock for tests: time stands still but for what is said to take time."""

import time
from types import SimpleNamespace

import pytest

from stillwatch.inference import timing


class Clock:
    """Time stands still but for what the entrants say that they take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.ns = 0
        fake = SimpleNamespace(perf_counter_ns=lambda: self.ns, monotonic=lambda: self.ns / 1e9, strftime=time.strftime)
        monkeypatch.setattr(timing, "time", fake)

    def takes(self, ms: float) -> None:
        self.ns += round(1e6 * ms)
