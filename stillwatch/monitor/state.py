"""Board: what is going on right now, for whoever looks: the loop writes it, page and metrics read it.

In: states, probabilities, pictures, messages. Out: copies of them. It holds the newest of each, so it cannot grow.
Called by the loop (writes) and the web (reads), from different threads. It knows no socket and no database.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SAID = 256  # messages that are kept for slow listeners


class Board:
    """One for a watch process. Every method returns at once and may be called from any thread."""

    def __init__(self, labels: tuple[str, ...], safe: tuple[str, ...], cameras: tuple[str, ...]):
        self.labels, self.safe = labels, safe
        self.started = time.time()
        self.ready = False  # every camera that can be opened has been looked at once, or has failed once
        self._lock = threading.Lock()
        self._cameras: dict[str, dict[str, Any]] = {name: {"name": name, "state": "starting"} for name in cameras}
        self._pictures: dict[str, tuple[int, bytes]] = {name: (0, b"") for name in cameras}
        self._viewers = dict.fromkeys(cameras, 0)
        self._said: deque[tuple[int, dict[str, Any]]] = deque(maxlen=SAID)
        self._count = 0

    def update(self, camera: str, **fields: Any) -> None:
        """Lay fields over a camera's: state, words, p (K floats), gauge (0..1), status, fps, age_ms, counters …

        since, epoch seconds, is set where state or status becomes another.
        """
        with self._lock:
            before = self._cameras[camera]
            if any(key in fields and fields[key] != before.get(key) for key in ("state", "status")):
                before["since"] = time.time()
            self._cameras[camera] |= fields

    def cameras(self) -> list[dict[str, Any]]:
        """A copy of every camera's fields, in the order of the plan."""
        with self._lock:
            return [dict(fields) for fields in self._cameras.values()]

    def show(self, camera: str, jpeg: bytes) -> None:
        """The newest picture of a camera."""
        with self._lock:
            self._pictures[camera] = (self._pictures[camera][0] + 1, jpeg)

    def picture(self, camera: str) -> tuple[int, bytes]:
        """(its number, JPEG bytes): the newest; 0 and no bytes where there is none yet. KeyError: no such camera."""
        with self._lock:
            return self._pictures[camera]

    @contextmanager
    def viewing(self, camera: str) -> Iterator[None]:
        """Somebody looks at this camera: pictures are encoded only while somebody does."""
        with self._lock:
            self._viewers[camera] += 1
        try:
            yield
        finally:
            with self._lock:
                self._viewers[camera] -= 1

    def viewers(self, camera: str) -> int:
        with self._lock:
            return self._viewers[camera]

    def say(self, what: str, **fields: Any) -> None:
        """A message for every listener: what = "event", "camera", "trouble"."""
        with self._lock:
            self._count += 1
            self._said.append((self._count, {"what": what, **fields}))

    def said(self, after: int) -> tuple[int, list[Mapping[str, Any]]]:
        """(number of the newest message, the kept ones after `after`). Poll it; 0 gives all that are kept."""
        with self._lock:
            return self._count, [message for number, message in self._said if number > after]
