"""Delivers the outbox, a thread per sink, until all is taken, also across a kill.

A kill before delivery is noted repeats a message, with the same Idempotency-Key.
"""

import random
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from stillwatch.monitor.config import Sink
from stillwatch.monitor.events import sinks
from stillwatch.monitor.events.database import StoredEvent, connect, stored_event
from stillwatch.monitor.events.sinks import Message
from stillwatch.monitor.events.store import DeliveryState, Store
from stillwatch.rules.events import Event

FIRST, LONGEST = 1.0, 60.0  # seconds between two tries of a sink that refuses; doubling, jittered, without an end
POLL = 2.0  # seconds after which the outbox is looked at, even if nobody said that something is new
CLIP = 60.0  # seconds after an event's end in which its clip is waited for
NOTED = 1.0  # seconds in which a message that was sent is noted on disk, before the next is sent all the same
HOUR = 3600.0
REMEMBERED = 20_000  # decisions of a sink, on disk or not

WAITING = """
SELECT o.event, o.change, o.number FROM outbox o
WHERE o.sink = ? AND o.state = 'waiting'
  AND NOT EXISTS (SELECT 1 FROM outbox l WHERE l.event = o.event AND l.sink = o.sink AND l.number > o.number)
ORDER BY o.tries, o.number LIMIT 200
"""
EARLIER = "SELECT change, state FROM outbox WHERE sink = ? AND event = ? AND number < ?"
LATELY = """
SELECT o.event, e.camera, e.kind, MAX(o.settled) AS at FROM outbox o JOIN events e ON e.id = o.event
WHERE o.sink = ? AND o.state = 'sent' AND o.settled > ? AND o.settled <= ? GROUP BY o.event
"""
HELD = """
SELECT COUNT(DISTINCT event) FROM outbox WHERE sink = :sink AND state = 'held'
  AND number > (SELECT COALESCE(MAX(number), 0) FROM outbox WHERE sink = :sink AND state = 'sent')
"""


class Sent(NamedTuple):
    """An event's newest delivered message; time is monotonic."""

    time: float
    camera: str
    kind: str


@dataclass
class SinkStatus:
    name: str
    kind: str
    pending: int = 0
    sent: int = 0
    held: int = 0
    failed: int = 0
    last_error: str | None = None


class SinkWorker:
    def __init__(
        self, sink: Sink, store: Store, stop: threading.Event, say: Callable[[str], None], cameras: Sequence[str]
    ):
        self.sink = sink
        self.error: str | None = None  # of the sink
        self.unreadable: str | None = None  # why the outbox cannot be read
        self.failed = 0
        self.end = float("inf")  # time.monotonic() after which no new try begins
        self._cameras = [name for name in cameras if not sink.cameras or name in sink.cameras] or list(sink.cameras)
        self._store, self._stop, self._say = store, stop, say
        self._sender: sinks.Sender | None = None
        self._decided: dict[tuple[str, str], DeliveryState] = {}  # (event, change), the newest REMEMBERED
        self._sent: dict[str, Sent] = {}  # events of the last hour
        self._seeded = False  # with what was sent before this start
        self._held = 0  # events held back since the last one that was sent
        self._pause = 0.0
        self.thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)

    def _run(self) -> None:
        self._guarded(self._open)  # at once: a broker shows that we are there before anything happens
        while not self._stop.is_set():
            version = self._store.version  # before looking: what comes while we look is not slept over
            busy = self._guarded(self._deliver_pending)
            if self._pause:
                self._stop.wait(self._pause * random.uniform(0.5, 1.0))
            elif not busy:
                self._store.wait_for_news(version, POLL)
        if not self._pause:  # the very end; a sink that refuses has its outbox
            self._guarded(lambda: self._deliver_pending(last=True))
        if self._sender is not None:
            self._guarded(self._sender.close)

    def _guarded(self, work: Callable[[], object]) -> bool:
        try:
            return bool(work())
        except sqlite3.Error as error:
            self.unreadable = f"the outbox cannot be read: {error}"
        except Exception as error:  # every library of a sink has exceptions of its own
            self._report(error)
        return False

    def _report(self, error: Exception) -> None:
        text = sinks.explain(error, self.sink)
        if text != self.error:
            self._say(f"sink {self.sink.name}: {text.removeprefix(f'sink {self.sink.name}: ')}; it is tried again")
        self.error = text

    def _open(self) -> sinks.Sender:
        if self._sender is None:
            self._sender = sinks.open_sink(self.sink)
            self._sender.present(self._cameras)
        return self._sender

    def _deliver_pending(self, last: bool = False) -> bool:
        failed = self.failed
        busy = self._deliver_from_memory(last) if self._store.stuck else False
        if self.failed > failed:
            return busy
        noted = not self._store.rows_waiting  # before looking: then what was to be noted is on disk
        with closing(connect(self._store.folder)) as db:
            if not self._seeded:
                self._seed(db)
            for row in db.execute(WAITING, (self.sink.name,)).fetchall():
                if self._over(last):
                    break
                if noted or (row["event"], row["change"]) not in self._decided:
                    busy |= self._deliver_from_disk(db, row)
                if self.failed > failed:
                    break
        self.unreadable = None
        return busy

    def _over(self, last: bool) -> bool:
        return (self._stop.is_set() and not last) or time.monotonic() >= self.end

    def _deliver_from_memory(self, last: bool) -> bool:
        busy = False
        self._store.journal()
        for event, changes in [] if self.sink.wait_clip else self._store.pending_in_memory(self.sink):
            fresh = [change for change in changes if (event.id, change) not in self._decided]
            if not fresh or self._over(last):
                continue
            earlier = [state for (id, _), state in self._decided.items() if id == event.id]
            state = self._deliver(event, fresh[-1], earlier)
            if state == "waiting":
                break
            self._decided |= {(event.id, change): state for change in fresh}  # noted when the disk takes it
            busy = True
        return busy

    def _deliver_from_disk(self, db: sqlite3.Connection, row: sqlite3.Row) -> bool:
        id, change = row["event"], row["change"]
        found = db.execute("SELECT * FROM events WHERE id = ?", (id,)).fetchone()
        if found is None:
            self._decide(id, change, "passed")
            return True
        event = stored_event(found)
        clipless = self.sink.wait_clip and event.clip is None and event.kind != "camera"
        if clipless and (event.end is None or 0 <= time.time() - event.updated <= CLIP):
            return False
        earlier = dict(db.execute(EARLIER, (self.sink.name, id, row["number"])).fetchall())
        state = self._decided.get((id, change)) or self._deliver(event, change, earlier.values())
        if state == "waiting":
            if not self._store.stuck:  # nothing takes the room in memory that events need
                self._store.set_delivery_state(self.sink.name, id, change, state, self.error)
            return False
        for older, older_state in earlier.items():  # the newest has told what they had to tell
            if older_state == "waiting":
                self._decide(id, older, self._decided.get((id, older), "passed" if state == "sent" else state))
        self._decide(id, change, state)
        return True

    def _deliver(self, event: Event, change: str, earlier: Collection[DeliveryState]) -> DeliveryState:
        if self._held_back(event, earlier):
            self._held += "held" not in earlier
            return "held"
        clip = event.clip if isinstance(event, StoredEvent) else None
        message = Message(**event.as_dict(), change=change, held=self._held)
        try:
            self._open().send(message, self._store.folder / clip if clip else None)
        except Exception as error:  # every library of a sink has exceptions of its own
            self.failed += 1
            self._report(error)
            self._pause = min(2 * self._pause or FIRST, LONGEST)
            return "waiting"
        if self.error:
            self._say(f"sink {self.sink.name}: takes events again")
        self._pause, self._held, self.error = 0.0, 0, None
        self._sent[event.id] = Sent(time.monotonic(), event.camera, event.kind)
        return "sent"

    def _held_back(self, event: Event, earlier: Collection[DeliveryState]) -> bool:
        if event.id in self._sent or "sent" in earlier:
            return False
        if "held" in earlier:
            return True
        now = time.monotonic()  # a wall clock that is set back must not silence anybody
        self._sent = {id: sent for id, sent in self._sent.items() if now - sent.time < max(HOUR, self.sink.cooldown)}
        alike = [s.time for s in self._sent.values() if (s.camera, s.kind) == (event.camera, event.kind)]
        hour = sum(now - sent.time < HOUR for sent in self._sent.values())
        return hour >= self.sink.per_hour or (bool(alike) and now - max(alike) < self.sink.cooldown)

    def _seed(self, db: sqlite3.Connection) -> None:
        self._held += db.execute(HELD, {"sink": self.sink.name}).fetchone()[0]
        wall, now = time.time(), time.monotonic()
        for row in db.execute(LATELY, (self.sink.name, wall - max(HOUR, self.sink.cooldown), wall)):
            self._sent.setdefault(row["event"], Sent(now - (wall - row["at"]), row["camera"], row["kind"]))
        self._seeded = True

    def _decide(self, id: str, change: str, state: DeliveryState) -> None:
        """A message found waiting later is noted, not sent again."""
        self._decided[id, change] = state
        for key in list(islice(self._decided, max(0, len(self._decided) - REMEMBERED))):
            del self._decided[key]
        if self._store.stuck:
            return
        written = self._store.set_delivery_state(self.sink.name, id, change, state)
        if state == "sent":  # a kill must not repeat more than one message
            written.wait(NOTED)


class Dispatcher:
    def __init__(
        self,
        store: Store,
        plan: Sequence[Sink],
        say: Callable[[str], None] = lambda line: None,
        cameras: Sequence[str] = (),
    ):
        """say: takes a log line when a sink fails or recovers. cameras: for sinks that announce them."""
        self._store, self._stop = store, threading.Event()
        self.workers = [SinkWorker(sink, store, self._stop, say, cameras) for sink in plan]

    def start(self) -> None:
        for worker in self.workers:
            worker.thread.start()

    def close(self, within: float) -> None:
        """Unsent messages stay in the outbox."""
        end = time.monotonic() + within
        for worker in self.workers:
            worker.end = end
        self._stop.set()
        self._store.wake_listeners()
        for worker in self.workers:
            if worker.thread.is_alive():
                worker.thread.join(max(0.0, end - time.monotonic()))

    def status(self) -> list[SinkStatus]:
        counts: dict[tuple[str, str], int] = {}
        with suppress(sqlite3.Error), closing(connect(self._store.folder)) as db:
            rows = db.execute("SELECT sink, state, COUNT(*) FROM outbox GROUP BY sink, state")
            counts = {(name, state): count for name, state, count in rows}
        found = []
        for worker in self.workers:
            name = worker.sink.name
            pending, sent, held = (counts.get((name, state), 0) for state in ("waiting", "sent", "held"))
            error = worker.unreadable or worker.error
            found.append(SinkStatus(name, sinks.name_of(worker.sink), pending, sent, held, worker.failed, error))
        return found


def send_test_events(plan: Sequence[Sink]) -> list[tuple[str, str | None]]:
    """(name, None or the error)."""
    now = time.time()
    message = Message(
        f"test-{int(1000 * now):x}", "test", "test", None, "alarm", "closed", now, now, now, now, 1.0,
        "this is a test of Stillwatch's sinks", change="reached", test=True,
    )  # fmt: skip
    answers: list[tuple[str, str | None]] = []
    for sink in plan:
        try:
            with closing(sinks.open_sink(sink)) as sender:
                sender.send(message, None)
            answers.append((sink.name, None))
        except Exception as error:  # every library of a sink has exceptions of its own
            answers.append((sink.name, sinks.explain(error, sink)))
    return answers
