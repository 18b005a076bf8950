"""Post: takes what waits in the outbox to the sinks, a thread each, until each has taken it.

In: the store's outbox. Out: each event at each sink that it concerns, once it is up again, also across a kill.
Called by serve. A kill between sending and noting it sends once more: receivers know it by the event's id.
"""

import contextlib
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillwatch.monitor import config as plans
from stillwatch.monitor.events import sinks
from stillwatch.monitor.events.store import Store, kind, opened

FIRST, LONGEST = 1.0, 60.0  # seconds between two tries of a sink that refuses; doubling, jittered, without an end
LOOK = 2.0  # seconds after which the outbox is looked at, even if nobody said that something is new
CLIP = 60.0  # seconds after an event's end in which its clip is waited for
NOTED = 1.0  # seconds in which a message that was sent is noted on disk, before the next is sent all the same
HOUR = 3600.0

NEXT = """
SELECT o.event, o.change, o.tries, o.number FROM outbox o
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


class SinkWorker:
    """One sink's thread."""

    def __init__(
        self, sink: plans.Sink, store: Store, stop: threading.Event, say: Callable[[str], None], cameras: Sequence[str]
    ):  # fmt: skip
        self.sink, self.kind = sink, kind(sink)
        self.error: str | None = None  # of the sink
        self.blind: str | None = None  # why the outbox cannot be read
        self.failed = 0
        self.end = float("inf")  # time.monotonic() after which nothing more is begun
        self._cameras = [name for name in cameras if not sink.cameras or name in sink.cameras] or list(sink.cameras)
        self._store, self._stop, self._say = store, stop, say
        self._send: sinks.Send | None = None
        self._settled: set[tuple[str, str]] = set()  # (event, change): noted, but perhaps not on disk yet
        self._sent: dict[str, tuple[float, str, str]] = {}  # of the last hour, by event: when, camera, kind
        self._seeded = False  # with what was sent before this start
        self._told: dict[tuple[str, str], str] = {}  # (event, change) -> "sent" or "held", before it was on disk
        self._held = 0  # events held back since the last one that was sent
        self._pause = 0.0
        self.thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._try(self._open)  # at once: a broker shows that we are there before anything happens
        while not self._stop.is_set():
            seen = self._store.news  # before looking: what comes while we look is not slept over
            busy = self._try(self._round)
            if self._pause:
                self._stop.wait(self._pause * random.uniform(0.5, 1.0))
            elif not busy:
                self._store.listen(seen, LOOK)
        if not self._pause:  # what was said at the very end; a sink that refuses has its outbox
            self._try(lambda: self._round(last=True))
        if self._send is not None:
            self._try(self._send.close)

    def _try(self, work: Callable[[], Any]) -> Any:
        """Whatever goes wrong with a sink or a disk: it is said, and the thread goes on."""
        try:
            return work()
        except sqlite3.Error as error:
            self.blind = f"the outbox cannot be read: {error}"
        except Exception as error:  # every library of a sink has exceptions of its own
            self._failed(error)
        return None

    def _failed(self, error: Exception) -> None:
        words = sinks.words(error, self.sink)
        if words != self.error:
            self._say(f"sink {self.sink.name}: {words.removeprefix(f'sink {self.sink.name}: ')}; it is tried again")
        self.error = words

    def _open(self) -> sinks.Send:
        if self._send is None:
            self._send = sinks.opened(self.sink)
            if isinstance(self._send, sinks.Presence):
                self._send.present(self._cameras)
        return self._send

    def _round(self, last: bool = False) -> bool:
        """Try what waits; whether anything was settled."""
        failed = self.failed
        busy = self._early(last) if self._store.stuck else False
        if self.failed > failed:
            return busy
        quiet = not self._store.waiting  # before looking: then all that was told early is on disk
        with contextlib.closing(opened(self._store.folder)) as db:
            if not self._seeded:
                self._sent, self._seeded = {**self._lately(db), **self._sent}, True
            waiting = "SELECT event, change FROM outbox WHERE sink = ? AND state = 'waiting'"
            self._settled &= {(event, change) for event, change in db.execute(waiting, (self.sink.name,))}
            rows = [
                row
                for row in db.execute(NEXT, (self.sink.name,)).fetchall()
                if (row["event"], row["change"]) not in self._settled
            ]
            if quiet and not rows:
                self._told.clear()
            for row in rows:
                if self._over(last):
                    return busy
                event = db.execute("SELECT * FROM events WHERE id = ?", (row["event"],)).fetchone()
                if event is None:
                    self._settle(row["event"], row["change"], "passed")
                    continue
                busy |= self._one(db, row, dict(event))
                if self.failed > failed:
                    break
        self.blind = None
        return busy

    def _over(self, last: bool) -> bool:
        return (self._stop.is_set() and not last) or time.monotonic() >= self.end

    def _early(self, last: bool) -> bool:
        """While the disk takes nothing, what is meant for the outbox is sent from memory: alarms do not wait for it."""
        busy = False
        for row, changes in self._store.unkept(self.sink.name):
            new = [change for change in changes if (row["id"], change) not in self._told]
            if not new or self.sink.wait_clip or self._over(last):
                continue
            before = [state for (id, _), state in self._told.items() if id == row["id"]]
            held = self._held_back(row, before)
            if held:
                self._held += "held" not in before
            elif not self._deliver({**row, "clip": None, "thumbnail": None, "change": new[-1]}, None):
                return busy
            self._told |= {(row["id"], change): "held" if held else "sent" for change in new}
            busy = True
        return busy

    # --- one message ------------------------------------------------------------------------------------------------

    def _one(self, db: sqlite3.Connection, row: sqlite3.Row, event: dict[str, Any]) -> bool:
        """Send it, hold it back, or leave it for later; whether it was settled."""
        if self._awaits_clip(event):
            return False
        id, change = row["event"], row["change"]
        earlier = {one["change"]: one["state"] for one in db.execute(EARLIER, (self.sink.name, id, row["number"]))}
        told = self._told.get((id, change))
        if told is None and self._held_back(event, earlier.values()):
            self._held += "held" not in earlier.values()
            told = "held"
        if told is None:
            clip = self._store.folder / event["clip"] if event["clip"] else None
            if not self._deliver({**public(event), "change": change}, clip):
                self._store.settle(self.sink.name, id, change, "waiting", self.error)
                return False
        for older, state in earlier.items():  # the newest has told what they had to tell
            if state == "waiting" and told != "held":
                self._settle(id, older, self._told.get((id, older), "passed"))
        self._settle(id, change, told or "sent")
        return True

    def _deliver(self, event: dict[str, Any], clip: Path | None) -> bool:
        """Whether the sink took it; what it says instead is kept, and the next try waits longer."""
        held = {"held": self._held} if self._held else {}
        try:
            self._open().send({**event, **held}, clip)
        except Exception as error:  # every library of a sink has exceptions of its own
            self.failed += 1
            self._failed(error)
            self._pause = min(2 * self._pause or FIRST, LONGEST)
            return False
        if self.error:
            self._say(f"sink {self.sink.name}: takes events again")
        self._pause, self._held, self.error = 0.0, 0, None
        self._sent[event["id"]] = (time.monotonic(), event["camera"], event["kind"])
        return True

    def _awaits_clip(self, event: Mapping[str, Any]) -> bool:
        if not self.sink.wait_clip or event["clip"] is not None or event["kind"] == "camera":
            return False
        return event["end"] is None or 0 <= time.time() - event["updated"] <= CLIP

    def _held_back(self, event: Mapping[str, Any], earlier: Collection[str]) -> bool:
        """Cooldown and the hourly ceiling are about events: what follows one that was sent is sent as well."""
        if event["id"] in self._sent or "sent" in earlier:
            return False
        if "held" in earlier:
            return True
        now = time.monotonic()  # a wall clock that is set back must not silence anybody
        self._sent = {id: one for id, one in self._sent.items() if now - one[0] < max(HOUR, self.sink.cooldown)}
        like = [at for at, camera, of in self._sent.values() if (camera, of) == (event["camera"], event["kind"])]
        hour = sum(now - at < HOUR for at, _, _ in self._sent.values())
        return hour >= self.sink.per_hour or (bool(like) and now - max(like) < self.sink.cooldown)

    def _lately(self, db: sqlite3.Connection) -> dict[str, tuple[float, str, str]]:
        """What was sent before this start, on time.monotonic(); and how many were held back since."""
        (self._held,) = db.execute(HELD, {"sink": self.sink.name}).fetchone()
        wall, now = time.time(), time.monotonic()
        rows = db.execute(LATELY, (self.sink.name, wall - max(HOUR, self.sink.cooldown), wall))
        return {row["event"]: (now - (wall - row["at"]), row["camera"], row["kind"]) for row in rows}

    def _settle(self, id: str, change: str, state: str) -> None:
        self._settled.add((id, change))
        ticket = self._store.settle(self.sink.name, id, change, state)
        if (
            state == "sent" and not self._store.stuck
        ):  # nothing more is sent before this is noted: a kill repeats one message at most
            self._store.written(ticket, NOTED)


class Dispatcher:
    """All of them."""

    def __init__(
        self,
        store: Store,
        sinks: Sequence[plans.Sink],
        say: Callable[[str], None] = lambda line: None,
        cameras: Sequence[str] = (),
    ):
        """say: a line for the log, where a sink no longer takes events, or does again.

        cameras: their names, for sinks that show them before anything happens (MQTT).
        """
        self._store, self._stop = store, threading.Event()
        self._men = [SinkWorker(sink, store, self._stop, say, cameras) for sink in sinks]

    def start(self) -> None:
        for man in self._men:
            man.thread.start()

    def close(self, within: float) -> None:
        """What was not sent by then stays in the outbox."""
        end = time.monotonic() + within
        for man in self._men:
            man.end = end
        self._stop.set()
        self._store.rouse()
        for man in self._men:
            if man.thread.is_alive():
                man.thread.join(max(0.0, end - time.monotonic()))

    def status(self) -> list[dict[str, Any]]:
        """Each sink: name, kind, pending, sent, held, failed (tries), last_error."""
        found = []
        counts: dict[tuple[str, str], int] = {}
        with contextlib.suppress(sqlite3.Error), contextlib.closing(opened(self._store.folder)) as db:
            rows = db.execute("SELECT sink, state, COUNT(*) FROM outbox GROUP BY sink, state")
            counts = {(name, state): count for name, state, count in rows}
        for man in self._men:
            name = man.sink.name
            states = {
                key: counts.get((name, state), 0)
                for key, state in (("pending", "waiting"), ("sent", "sent"), ("held", "held"))
            }
            last = {"failed": man.failed, "last_error": man.blind or man.error}
            found.append({"name": name, "kind": man.kind, **states, **last})
        return found


def public(event: Mapping[str, Any]) -> dict[str, Any]:
    """What a sink is told of an event's row."""
    return {key: value for key, value in event.items() if key not in ("number", "acknowledged", "verdict")}


def test_sinks(plan: Sequence[plans.Sink]) -> list[tuple[str, str | None]]:
    """Send each one event that says it is a test: (its name, None or what went wrong)."""
    now = time.time()
    event = {
        "id": f"test-{int(1000 * now):x}", "camera": "test", "kind": "test", "label": None, "level": "alarm",
        "state": "closed", "start": now, "opened": now, "updated": now, "end": now, "peak": 1.0,
        "words": "this is a test of Stillwatch's sinks", "clip": None, "thumbnail": None, "change": "reached",
        "test": True,
    }  # fmt: skip
    answers: list[tuple[str, str | None]] = []
    for sink in plan:
        try:
            with contextlib.closing(sinks.opened(sink)) as send:
                send.send(event, None)
            answers.append((sink.name, None))
        except Exception as error:  # every library of a sink has exceptions of its own
            answers.append((sink.name, sinks.words(error, sink)))
    return answers


test_sinks.__test__ = False  # type: ignore[attr-defined]  # it is none of pytest's
