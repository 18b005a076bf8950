"""Gauges: what a monitoring system reads of a watch: latencies, counts, events, states, in Prometheus' own text.

In: seconds, totals, states. Out: the text of /metrics, from a registry of its own.
Called by the loop (writes) and the web (reads), from different threads. It knows no camera and no socket.
"""

import threading
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds. Fine where the promise stands (p95 of 100 ms), coarse where it is broken anyway
BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
HELP = {
    "frames": "Frames that were looked at",
    "dropped": "Frames that a newer one overtook before they were looked at",
    "stalls": "Times a camera fell silent",
    "reconnects": "Times a camera's stream was opened again",
    "respawns": "Times a camera's process was started again",
    "bytes": "Bytes that came from a camera",
}


class Gauges:
    """One for a watch process. Every method returns at once and may be called from any thread."""

    def __init__(self, cameras: Iterable[str] = ()):
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            "stillwatch_capture_to_decision_seconds",
            "From the packet's arrival to the alarm's answer",
            ("camera",),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._events = Counter(
            "stillwatch_events", "Events that opened, or rose to a level", ("camera", "kind", "level"),
            registry=self._registry,
        )  # fmt: skip
        self._levels: dict[str, Gauge] = {}
        self._lock = threading.Lock()
        self._totals: dict[str, dict[str, float]] = {name: {} for name in HELP}
        self._registry.register(Totals(self._totals, self._lock))
        ProcessCollector(registry=self._registry)
        for camera in cameras:  # there from the start: a rate over a series that is not there yet is no rate
            self._latency.labels(camera)
            for name in HELP:
                self.count(camera, name, 0)

    def latency(self, camera: str, seconds: float) -> None:
        """One decision: seconds from capture to the Alarm's answer."""
        self._latency.labels(camera).observe(max(0.0, seconds))

    def count(self, camera: str, name: str, total: float) -> None:
        """What a camera has counted since the start: frames, dropped, stalls, reconnects, respawns, bytes."""
        with self._lock:
            self._totals.setdefault(name, {})[camera] = total

    def event(self, camera: str, kind: str, level: str) -> None:
        """An event opened at this level, or was raised to it."""
        self._events.labels(camera, kind, level).inc()

    def level(self, name: str, help: str, value: float, **labels: str) -> None:
        """A value that goes up and down, as it is now: stillwatch_NAME{labels}."""
        with self._lock:
            if name not in self._levels:
                self._levels[name] = Gauge(f"stillwatch_{name}", help, tuple(labels), registry=self._registry)
        gauge = self._levels[name]
        (gauge.labels(**labels) if labels else gauge).set(value)

    def text(self) -> bytes:
        """Everything, as GET /metrics answers it."""
        return generate_latest(self._registry)


class Totals:
    """Counters that are counted elsewhere, as a collector of prometheus_client: it is asked at every reading."""

    def __init__(self, totals: dict[str, dict[str, float]], lock: Any):
        self._totals, self._lock = totals, lock

    def collect(self) -> Iterator[CounterMetricFamily]:
        with self._lock:
            totals = {name: dict(cameras) for name, cameras in self._totals.items()}
        for name, cameras in totals.items():
            family = CounterMetricFamily(f"stillwatch_{name}", HELP.get(name, f"{name} of a camera"), labels=["camera"])
            for camera, total in cameras.items():
                family.add_metric([camera], total)
            yield family
