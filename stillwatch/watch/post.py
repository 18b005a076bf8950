"""Post: takes what waits in the outbox to the sinks, a thread each, until each has taken it.

In: the store's outbox. Out: each event at each sink that it concerns, once it is up again, also across a kill.
Called by serve. A kill between sending and noting it sends once more: receivers know it by the event's id.
"""

import contextlib
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stillwatch.recipe import Mistake
from stillwatch.watch import plan as plans
from stillwatch.watch import sinks
from stillwatch.watch.store import Store, opened

FIRST, LONGEST = 1.0, 60.0  # seconds between two tries of a sink that refuses; doubling, jittered, without an end
LOOK = 2.0  # seconds after which the outbox is looked at, even if nobody said that something is new
CLIP = 60.0  # seconds after an event's end in which its clip is waited for

NEXT = """
SELECT o.number, o.event, o.change, o.tries FROM outbox o
WHERE o.sink = ? AND o.state = 'waiting'
  AND NOT EXISTS (SELECT 1 FROM outbox l WHERE l.event = o.event AND l.sink = o.sink AND l.number > o.number)
ORDER BY o.tries, o.number LIMIT 50
"""
OLDER = "SELECT number, change FROM outbox WHERE sink = ? AND event = ? AND number < ? AND state = 'waiting'"
EARLIER = "SELECT state FROM outbox WHERE sink = ? AND event = ? AND number < ? AND state != 'passed'"
LATELY = """
SELECT o.event, e.camera, e.kind, MAX(o.settled) FROM outbox o JOIN events e ON e.id = o.event
WHERE o.sink = ? AND o.state = 'sent' AND o.settled > ? GROUP BY o.event
"""


class Postman:
    """One sink's thread."""

    def __init__(self, sink: plans.Sink, store: Store, stop: threading.Event, say: Callable[[str], None]):
        self.sink, self.kind = sink, sink.to if isinstance(sink.to, str) else str(sink.to.get("name"))
        self.error: str | None = None
        self.failed = 0
        self._store, self._stop, self._say = store, stop, say
        self._send: sinks.Send | None = None
        self._settled: set[int] = set()  # noted, but perhaps not on disk yet
        self._sent: dict[str, tuple[float, str, str]] = {}  # of the last hour, by event: when, camera, kind
        self._told: set[tuple[str, str]] = set()  # (event, change) that went out before they were on disk
        self._told_held: set[str] = set()  # events of those that were held back
        self._held = 0  # events held back since the last one that was sent
        self._pause = 0.0
        self.thread = threading.Thread(target=self._run, name=f"sink {sink.name}", daemon=True)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    busy = self._round()
                except (sqlite3.Error, OSError) as error:
                    self.error, busy = f"the outbox cannot be read: {error}", False
                if self._pause:
                    self._stop.wait(self._pause * random.uniform(0.5, 1.0))
                elif not busy:
                    with self._store.wake:
                        if not self._stop.is_set():
                            self._store.wake.wait(LOOK)
            if not self._pause:  # what was said at the very end; a sink that refuses has its outbox
                with contextlib.suppress(sqlite3.Error, OSError):
                    self._round(last=True)
        finally:
            if self._send is not None:
                with contextlib.suppress(Exception):
                    self._send.close()

    def _round(self, last: bool = False) -> bool:
        """Try what waits; whether anything was settled."""
        if self._store.trouble is not None:
            return self._early(last)
        with contextlib.closing(opened(self._store.folder)) as db:
            waiting = "SELECT number FROM outbox WHERE sink = ? AND state = 'waiting'"
            self._settled &= {number for (number,) in db.execute(waiting, (self.sink.name,))}
            rows = [row for row in db.execute(NEXT, (self.sink.name,)) if row["number"] not in self._settled]
            if self._told and not rows and not self._store.waiting:  # all of it is on disk, and settled there
                self._told.clear()
                self._told_held.clear()
            busy = False
            for row in rows:
                if self._stop.is_set() and not last:
                    return busy
                event = db.execute("SELECT * FROM events WHERE id = ?", (row["event"],)).fetchone()
                if event is None:
                    self._settle(row["number"], "passed")
                    continue
                busy |= self._one(db, row, dict(event))
                if self._pause:
                    break
        return busy

    def _early(self, last: bool) -> bool:
        """While the disk takes nothing, what is meant for the outbox is sent from memory: alarms do not wait for it."""
        busy = False
        for row, change in self._store.unkept(self.sink.name):
            key = (row["id"], change)
            if key in self._told or self.sink.wait_clip or (self._stop.is_set() and not last):
                continue
            self._told.add(key)
            if row["id"] not in self._sent and self._too_many(row):
                self._held += 1
                self._told_held.add(row["id"])
            elif row["id"] not in self._told_held and not self._deliver({**row, "clip": None, "thumbnail": None}, None):
                self._told.discard(key)
                return busy
            busy = True
        return busy

    def _one(self, db: sqlite3.Connection, row: sqlite3.Row, event: dict[str, Any]) -> bool:
        if (row["event"], row["change"]) in self._told:  # sent, or held back, while the disk took nothing
            self._pass_older(db, row)
            self._settle(row["number"], "held" if row["event"] in self._told_held else "sent")
            return True
        if self.sink.wait_clip and event["clip"] is None and event["kind"] != "camera":
            over = event["end"] is not None and time.time() - event["updated"] > CLIP
            if not over:
                return False
        if self._held_back(db, row, event):
            self._settle(row["number"], "held")
            self._held += 1
            return True
        if not self._deliver(event, self._store.folder / event["clip"] if event["clip"] else None):
            self._store.settle(row["number"], "waiting", self.error)
            return False
        self._pass_older(db, row)
        self._settle(row["number"], "sent")
        return True

    def _pass_older(self, db: sqlite3.Connection, row: sqlite3.Row) -> None:
        """What was to be said of the event before, and is now said with the newest."""
        for older, change in db.execute(OLDER, (self.sink.name, row["event"], row["number"])).fetchall():
            self._settle(older, "sent" if (row["event"], change) in self._told else "passed")

    def _deliver(self, event: Mapping[str, Any], clip: Path | None) -> bool:
        """Whether the sink took it; what it says instead is kept, and the next try waits longer."""
        try:
            self.deliver({**public(event), **({"held": self._held} if self._held else {})}, clip)
        except Exception as error:  # every library of a sink has exceptions of its own
            self.failed += 1
            words = " ".join(str(error).split())[:300] or type(error).__name__
            if words != self.error:
                self._say(f"sink {self.sink.name}: {words.removeprefix(f'sink {self.sink.name}: ')}; it is tried again")
            self.error = words
            self._pause = min(2 * self._pause or FIRST, LONGEST)
            return False
        if self.error:
            self._say(f"sink {self.sink.name}: takes events again")
        self._pause, self._held, self.error = 0.0, 0, None
        self._sent[event["id"]] = (time.time(), event["camera"], event["kind"])
        return True

    def deliver(self, event: Mapping[str, Any], clip: Path | None) -> None:
        """Open the sink where it is not open, and send. Raises what the sink raises."""
        if self._send is None:
            self._send = sinks.opened(self.sink)
        self._send.send(event, clip)

    def close(self) -> None:
        if self._send is not None:
            self._send.close()

    def _held_back(self, db: sqlite3.Connection, row: sqlite3.Row, event: Mapping[str, Any]) -> bool:
        """Cooldown and the hourly ceiling are about events: what follows one that was sent is sent as well."""
        earlier = [state for (state,) in db.execute(EARLIER, (self.sink.name, row["event"], row["number"]))]
        if row["event"] in self._sent or "sent" in earlier:
            return False
        if "held" in earlier:
            return True
        # What was sent just now may not be on disk yet, and what was sent before a start is nowhere else
        for id, camera, kind, at in db.execute(LATELY, (self.sink.name, time.time() - 3600)):
            self._sent.setdefault(id, (at, camera, kind))
        return self._too_many(event)

    def _too_many(self, event: Mapping[str, Any]) -> bool:
        now = time.time()
        self._sent = {id: one for id, one in self._sent.items() if 0 <= now - one[0] < 3600}
        like = [at for at, camera, kind in self._sent.values() if (camera, kind) == (event["camera"], event["kind"])]
        return len(self._sent) >= self.sink.per_hour or (bool(like) and now - max(like) < self.sink.cooldown)

    def _settle(self, number: int, state: str) -> None:
        self._settled.add(number)
        self._store.settle(number, state)


class Post:
    """All of them."""

    def __init__(self, store: Store, sinks: Sequence[plans.Sink], say: Callable[[str], None] = lambda line: None):
        """say: a line for the log, where a sink no longer takes events, or does again."""
        self._store, self._stop = store, threading.Event()
        self._men = [Postman(sink, store, self._stop, say) for sink in sinks]

    def start(self) -> None:
        for man in self._men:
            man.thread.start()

    def close(self, within: float) -> None:
        """What was not sent stays in the outbox."""
        end = time.monotonic() + within
        self._stop.set()
        with self._store.wake:
            self._store.wake.notify_all()
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
            found.append({"name": name, "kind": man.kind, **states, "failed": man.failed, "last_error": man.error})
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
        "words": "this is a test of Stillwatch's sinks", "clip": None, "thumbnail": None, "test": True,
    }  # fmt: skip
    answers: list[tuple[str, str | None]] = []
    for sink in plan:
        try:
            with contextlib.closing(sinks.opened(sink)) as send:
                send.send(event, None)
            answers.append((sink.name, None))
        except Mistake as mistake:
            answers.append((sink.name, str(mistake)))
        except Exception as error:  # every library of a sink has exceptions of its own
            answers.append((sink.name, " ".join(str(error).split())[:300] or type(error).__name__))
    return answers


test_sinks.__test__ = False  # type: ignore[attr-defined]  # it is none of pytest's
