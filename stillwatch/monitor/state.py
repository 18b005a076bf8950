"""Board for the page, Gauges for Prometheus; thread-safe, never waits. Imports nothing of ours."""

import threading
import time
from collections import Counter as Counts
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily

Drawn: TypeAlias = Literal["points", "where"]  # on a picture: of the face; where the evidence is
MESSAGES = 256  # messages kept for slow listeners
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds. Fine where the promise stands (p95 of 100 ms), coarse where it is broken anyway
BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
COUNTERS = {
    "frames": "Frames that were decided on, those of a disarmed camera without a look",
    "dropped": "Frames that a newer one overtook before they were looked at",
    "stalls": "Times a camera fell silent",
    "reconnects": "Times a camera's stream was opened again",
    "respawns": "Times a camera's process was started again",
    "bytes": "Bytes that came from a camera",
    "readings": "Pictures in which the driver's face was read",
    "reading_ms": "Milliseconds that reading faces took",
    "damaged": "Pictures that arrived damaged and were left out",
    "people_checked": "Frames that were searched for a person",
    "people_skipped": "Frames that were not looked at, because nobody was there",
}


class Board:
    """Each camera's newest fields and picture, and the last MESSAGES messages."""

    def __init__(self, labels: tuple[str, ...], safe: tuple[str, ...], cameras: tuple[str, ...]):
        self.labels, self.safe = labels, safe
        self.started = time.time()
        self.ready = False  # every camera has been looked at once, or has failed once
        self._lock = threading.Lock()
        self._cameras: dict[str, dict[str, Any]] = {name: {"name": name, "state": "starting"} for name in cameras}
        self._pictures = dict.fromkeys(cameras, (0, b""))
        self._asked = Counts[tuple[str, str]]()  # (camera, what): viewers of it
        self._messages: deque[tuple[int, Mapping[str, Any]]] = deque(maxlen=MESSAGES)
        self._count = 0

    def update(self, camera: str, **fields: Any) -> None:
        """Set a camera's fields: state, words, p (K floats), gauge (0..1), status, fps, age_ms, counters …; since
        (epoch seconds) is set when state or status changes.
        """
        with self._lock:
            known = self._cameras[camera]
            if any(key in fields and fields[key] != known.get(key) for key in ("state", "status")):
                known["since"] = time.time()
            known |= fields

    def cameras(self) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(fields) for fields in self._cameras.values()]

    def show(self, camera: str, jpeg: bytes) -> None:
        with self._lock:
            self._pictures[camera] = (self._pictures[camera][0] + 1, jpeg)

    def picture(self, camera: str) -> tuple[int, bytes]:
        """(number, JPEG); (0, b"") before the first. Raises KeyError for an unknown camera."""
        return self._pictures[camera]

    @contextmanager
    def viewing(self, camera: str, *drawn: Drawn) -> Iterator[None]:
        """Without a viewer no picture is encoded. drawn: for every viewer."""
        asked = Counts[tuple[str, str]]([(camera, "picture"), *((camera, what) for what in drawn)])
        with self._lock:
            self._asked.update(asked)
        try:
            yield
        finally:
            with self._lock:
                self._asked.subtract(asked)

    def asked(self, camera: str, what: Drawn | Literal["picture"]) -> int:
        """Viewers of it."""
        return self._asked[camera, what]

    def publish(self, what: str, **fields: Any) -> None:
        """what: "event", "camera", "trouble"."""
        with self._lock:
            self._count += 1
            self._messages.append((self._count, {"what": what, **fields}))

    def messages(self, after: int) -> tuple[int, list[Mapping[str, Any]]]:
        """(newest number, those after number `after`)."""
        with self._lock:
            return self._count, [message for number, message in self._messages if number > after]


class Gauges:
    def __init__(self, board: Board):
        """board: whose cameras' counters are told."""
        self._board = board
        self._registry = registry = CollectorRegistry()
        self._latency = Histogram(
            "stillwatch_capture_to_decision_seconds", "From the packet's arrival to the alarm's answer", ("camera",),
            buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self._events = Counter(
            "stillwatch_events", "Events that opened, or rose to a level", ("camera", "kind", "level"),
            registry=registry,
        )  # fmt: skip
        self._levels: dict[str, Gauge] = {}
        self._lock = threading.Lock()
        registry.register(self)
        ProcessCollector(registry=registry)
        for camera in board.cameras():  # a rate needs its series from the start
            self._latency.labels(camera["name"])

    def latency(self, camera: str, seconds: float) -> None:
        """From capture to the Alarm's answer."""
        self._latency.labels(camera).observe(max(0.0, seconds))

    def event(self, camera: str, kind: str, level: str) -> None:
        self._events.labels(camera, kind, level).inc()

    def level(self, name: str, help: str, value: float, **labels: str) -> None:
        """Set the gauge stillwatch_NAME{labels}."""
        with self._lock:
            if name not in self._levels:
                self._levels[name] = Gauge(f"stillwatch_{name}", help, tuple(labels), registry=self._registry)
        gauge = self._levels[name]
        (gauge.labels(**labels) if labels else gauge).set(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[CounterMetricFamily]:
        cameras = self._board.cameras()
        for name, help in COUNTERS.items():
            family = CounterMetricFamily(f"stillwatch_{name}", help, labels=["camera"])
            for camera in cameras:
                family.add_metric([camera["name"]], camera.get("counters", {}).get(name, 0.0))
            yield family
