"""Store: what is remembered: events in SQLite, their clips and thumbnails beside it, and an outbox for the sinks.

In: events, clips, pictures, marks; none of its methods waits for the disk. Out: rows, for any process that asks.
Called by the loop and the web (writes), by Post, the page and `stillwatch events` (reads). It knows no camera.
"""

import contextlib
import errno
import fcntl
import math
import os
import re
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import Any, NamedTuple

from stillwatch.errors import UserError
from stillwatch.monitor import config as plans
from stillwatch.monitor.events import media_files
from stillwatch.monitor.events.database import (
    BROKEN,
    COLUMNS,
    NAME,
    PASSING,
    code,
    event,
    events,
    migrate,
    opened,
    set_aside,
)
from stillwatch.monitor.events.media_files import negatives
from stillwatch.rules.alarm import LEVELS, Event

__all__ = ["Store", "changes", "event", "events", "kind", "negatives", "opened"]

HELD = 20_000  # rows that wait in memory while the disk takes none; the rest is counted and said
HEAVY = 32 * 2**20  # bytes of pictures that do so
BATCH = 200  # rows of one transaction
PAUSE, LONGEST = 0.1, 5.0  # seconds between two tries at a disk that takes nothing; doubling
SWEEP = 60.0  # seconds between two looks at what is too old or too much
START, JUMP = 3600.0, 86400.0  # seconds for which a clock is not trusted after a start, and after it jumped
STATEFUL = ("mqtt",)  # sinks that show what is on now: they hear of an end whatever `updates` says
ID = re.compile(r"[\w.+@-]{1,200}")  # what an event may be called: it is a file's name too
FULL = {errno.ENOSPC, errno.EDQUOT}
DISK = FULL | {errno.EIO, errno.EROFS}  # of a picture: it is tried again

Work = Callable[[sqlite3.Connection], Any]


class Job(NamedTuple):
    """One thing to be written: what, in words for an error, and how."""

    what: str
    work: Work
    event: Event | None = None


class Store:
    """One writer thread over one database. put, attach and mark return at once and raise nothing."""

    def __init__(self, keep: plans.Keep, sinks: Sequence[plans.Sink] = ()):
        """Open or make the folder and its database.

        A disk that is full and a database that is locked are waited for, and said as trouble; a broken database is
        set aside. Raises UserError where the folder cannot be, is another watch's, or was written by a newer version.
        """
        self.folder, self._keep, self._sinks = keep.folder, keep, tuple(sinks)
        self.trouble: str | None = None  # one line: what is wrong with the disk now, or what was lost since the start
        self.stuck = False  # nothing can be written now
        self.lost = 0  # rows and pictures that found no room, in memory or on disk, or that nothing can write
        self.news = 0  # goes up whenever something new may wait in the outbox
        self._wake = threading.Condition()
        self._asked = self._done = 0  # rows ever taken, and ever written
        self._rows: deque[Job] = deque()
        self._pictures: deque[tuple[str, bytes]] = deque()
        self._bytes = 0  # of the pictures
        self._fresh = threading.Condition()
        self._end: float | None = None  # time.monotonic() by which the writer leaves
        self._said: list[str] = []  # what stays true until the next start
        self._gone: list[str] = []  # files that made room and that rows may still mention
        self._lock: int | None = None
        self._adopted = False
        self._before = [one.name for part in ("", ".part") for one in media_files.lying(self.folder, part)]
        self._offset, self._trusted = time.time() - time.monotonic(), time.monotonic() + START
        self._db: sqlite3.Connection | None = None
        try:
            self._db = self._made_ready()
            self._report(None)
        except (OSError, sqlite3.Error) as error:
            if not passing(error):
                self._unlock()
                raise UserError(f"{self.folder}: events cannot be kept there: {error}") from error
            self._report(f"nothing can be written yet: {error}")
        except BaseException:
            self._unlock()
            raise
        self._thread = threading.Thread(target=self._write, name="store", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows and pictures that are not on disk yet."""
        return len(self._rows) + len(self._pictures)

    def put(self, event: Event) -> None:
        """An event in epoch seconds: its row, and what the sinks are to be told, in one transaction."""
        self._do(Job("event", lambda db: _put(db, event, self._sinks), event))

    def unkept(self, name: str) -> list[tuple[dict[str, Any], list[str]]]:
        """What a sink is to be told that is not on disk yet, (row, changes): for while the disk takes nothing."""
        with self._fresh:
            events = [job.event for job in self._rows if job.event is not None]
        sinks = [sink for sink in self._sinks if sink.name == name]
        found = []
        for one in events:
            with contextlib.suppress(ValueError, TypeError):  # a row that nothing can write is not sent either
                found += [(row_of(one), told) for sink in sinks if (told := changes(sink, one))]
        return found

    def attach(self, event_id: str, clip: Path | None = None, thumbnail: bytes | None = None) -> None:
        """An event's clip (a file under the folder) or its thumbnail (JPEG)."""
        if clip is not None:
            self._do(Job("clip", lambda db: db.execute(
                "UPDATE events SET clip = ? WHERE id = ?", (self._relative(clip), event_id))))  # fmt: skip
        if thumbnail is not None:
            with self._fresh:
                if self._bytes + len(thumbnail) > HEAVY:
                    self.lost += 1
                    return
                self._pictures.append((event_id, thumbnail))
                self._bytes += len(thumbnail)
                self._fresh.notify_all()

    def mark(
        self, event_id: str, acknowledged: bool | None = None, verdict: str | EllipsisType | None = ...
    ) -> None:  # fmt: skip
        """What a person says of it. verdict: "false", "true", or None, which takes it back; left out: as it was."""
        if acknowledged is not None:
            self._do(Job("mark", lambda db: db.execute(
                "UPDATE events SET acknowledged = ? WHERE id = ?", (acknowledged, event_id))))  # fmt: skip
        if verdict is not ...:
            self._do(Job("mark", lambda db: db.execute(
                "UPDATE events SET verdict = ? WHERE id = ?", (verdict, event_id))))  # fmt: skip

    def settle(self, sink: str, event_id: str, change: str, state: str, error: str | None = None) -> int:
        """A message of the outbox was "sent", "held" back or "passed" over, or goes on "waiting" after one more try.

        Returns a ticket for written().
        """
        values = (state, storable(error), int(state == "waiting"), time.time(), sink, event_id, change)
        return self._do(Job("outbox", lambda db: db.execute(
            "UPDATE outbox SET state = ?, error = ?, tries = tries + ?, settled = ?"
            " WHERE sink = ? AND event = ? AND change = ?", values)))  # fmt: skip

    def written(self, ticket: int, seconds: float) -> bool:
        """Wait until what this ticket is of is on disk, at most so long; whether it is."""
        with self._wake:
            return self._wake.wait_for(lambda: self._done >= ticket, seconds)

    def listen(self, seen: int, seconds: float) -> None:
        """Wait until `news` is no longer `seen`, at most so long."""
        with self._wake:
            self._wake.wait_for(lambda: self.news != seen, seconds)

    def rouse(self) -> None:
        """Wake whoever listens."""
        with self._wake:
            self.news += 1
            self._wake.notify_all()

    def close(self, within: float) -> None:
        """Write what waits; what the disk does not take in that time is lost, and was said to be in trouble."""
        with self._fresh:
            self._end = time.monotonic() + within
            self._fresh.notify_all()
        self._thread.join(within)

    # --- the writer -------------------------------------------------------------------------------------------------

    def _do(self, job: Job) -> int:
        with self._fresh:
            if len(self._rows) >= HELD:
                self.lost += 1
                return 0
            self._rows.append(job)
            self._fresh.notify_all()
            self._asked += 1
            return self._asked

    def _made_ready(self) -> sqlite3.Connection:
        """The connection that writes, its schema brought to this version, what a kill left taken up.

        Also after the disk was away or the database broken: whatever is missing is made anew.
        """
        for name in media_files.FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._hold()
        try:
            return self._connected()
        except sqlite3.DatabaseError as error:
            if code(error) not in BROKEN:
                raise
            self._set_aside(error)
            return self._connected()

    def _set_aside(self, error: Exception) -> None:
        self._said.append(f"the database was broken ({error}): it lies beside as {set_aside(self.folder)}")

    def _connected(self) -> sqlite3.Connection:
        db = opened(self.folder, write=True)
        try:
            migrate(db, self.folder / NAME)
            if not self._adopted:
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    media_files.recover_orphans(db, self.folder, self._before)
                    _cut_off(db, self._sinks)
                self._adopted, self._before = True, []
        except BaseException:
            db.close()
            raise
        return db

    def _hold(self) -> None:
        """This folder is one watch's: a second would take its clips for orphans and tell everybody twice."""
        if self._lock is not None:
            return
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(f"{self.folder}: another watch keeps its events there; give one another folder") from None
        except OSError:  # a file system without locks
            os.close(handle)
            return
        self._lock = handle

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self) -> None:
        """Rows in their order, then pictures, then what is too old; what fails is tried again, with growing pauses."""
        db, self._db = self._db, None
        pause, due = 0.0 if db else PAUSE, time.monotonic() + SWEEP
        try:
            while self._wait(pause, due):
                try:
                    db = db or self._made_ready()
                    self._work(db)
                    if time.monotonic() >= due:
                        many = media_files.sweep(db, self._keep, aged=self._aged()) >= media_files.STEP
                        self._tidy(db)
                        due = time.monotonic() + (0.0 if many else SWEEP)
                    pause = 0.0
                    self._report(None)
                except Exception as error:
                    pause = min(2 * pause or PAUSE, LONGEST)
                    db = self._recovered(db, error)
                    self._report(f"event cannot be written: {error}")
                    self.rouse()
        finally:
            if db is not None:
                with contextlib.suppress(sqlite3.Error):
                    db.close()
            self._unlock()

    def _report(self, words: str | None) -> None:
        lost = f"{self.lost} rows or pictures were lost" if self.lost else None
        self.stuck = words is not None
        self.trouble = "; ".join(one for one in (words, lost, *self._said) if one) or None

    def _wait(self, pause: float, due: float) -> bool:
        """Sleep until there is something to do; whether there will be."""
        with self._fresh:
            if pause:
                self._fresh.wait_for(lambda: self._end is not None, pause)
                if self._end is not None:
                    time.sleep(min(pause, 0.05))
            else:
                self._fresh.wait_for(lambda: self._end is not None or self.waiting, max(0.0, due - time.monotonic()))
            if self._end is None:
                return True
            late = time.monotonic() > self._end
            if late and self.waiting:
                self.lost += self.waiting
                self._report(self.trouble)
            return bool(self.waiting) and not late

    def _work(self, db: sqlite3.Connection) -> None:
        """One transaction of rows; where there are none, one picture: no row waits for a picture."""
        if self._gone:
            with db:
                db.execute("BEGIN IMMEDIATE")
                media_files.forget(db, self._gone)
            self._gone = []
        with self._fresh:
            rows = [self._rows[place] for place in range(min(BATCH, len(self._rows)))]
            picture = self._pictures[0] if self._pictures and not rows else None
        if rows:
            bad = _all(db, rows)
            with self._fresh:
                for _ in rows:
                    self._rows.popleft()
                self.lost += len(bad)
            self._said = [*self._said, *bad][-3:]
            self._done += len(rows)
            self.rouse()
        elif picture:
            self._picture(db, *picture)

    def _picture(self, db: sqlite3.Connection, id: str, jpeg: bytes) -> None:
        try:
            with db:
                db.execute("BEGIN IMMEDIATE")
                media_files.thumbnail(db, self.folder, checked(id), jpeg)
        except Exception as error:
            if code(error) in PASSING | BROKEN or getattr(error, "errno", None) in DISK:
                raise
            self.lost += 1
            self._said = [*self._said, f"a picture cannot be written: {error}"][-3:]
        with self._fresh:
            self._pictures.popleft()
            self._bytes -= len(jpeg)

    def _aged(self) -> bool:
        """Whether the wall clock has gone evenly for long enough that something may be called too old."""
        now, offset = time.monotonic(), time.time() - time.monotonic()
        if abs(offset - self._offset) > 3600:
            self._offset, self._trusted = offset, now + JUMP
        return now >= self._trusted

    def _tidy(self, db: sqlite3.Connection) -> None:
        """What was told long ago, and what waits for somebody who is no longer in the plan."""
        if not self._aged():
            return
        then, names = time.time() - 86400 * self._keep.days, [sink.name for sink in self._sinks]
        with db:
            db.execute("DELETE FROM outbox WHERE state != 'waiting' AND settled < ?", (then,))
            db.execute(
                f"DELETE FROM outbox WHERE state = 'waiting' AND made < ? AND sink NOT IN "
                f"({', '.join('?' * len(names))})", (then, *names),
            )  # fmt: skip

    def _recovered(self, db: sqlite3.Connection | None, error: Exception) -> sqlite3.Connection | None:
        """Make room where there is none; a connection that is broken is opened anew."""
        if code(error) == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in FULL or media_files.full(self.folder):
            self._gone += media_files.make_room(self.folder)
        if db is not None and code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return db
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()
        if code(error) in BROKEN:
            with contextlib.suppress(OSError):
                self._set_aside(error)
        return None

    def _relative(self, path: Path) -> str:
        return path.resolve().relative_to(self.folder.resolve()).as_posix()


def passing(error: Exception) -> bool:
    """Whether it may be well again by itself: a full disk, a lock. A watch must be able to start in the midst of it."""
    return getattr(error, "errno", None) in FULL or code(error) in PASSING - {
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
    }


def storable(value: Any) -> Any:
    """What SQLite and JSON can hold: no half of a surrogate pair, no NaN."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0
    return value


def checked(id: str) -> str:
    """An event's name, which is a file's name as well. Raises ValueError for one that leads elsewhere."""
    if not ID.fullmatch(id) or id.startswith("."):
        raise ValueError(f"{id!r} cannot be an event's name")
    return id


# --- what is told to whom -------------------------------------------------------------------------------------------


def kind(sink: plans.Sink) -> str:
    """The name in SINKS that this sink of the plan is."""
    return sink.to if isinstance(sink.to, str) else str(sink.to.get("name"))


def changes(sink: plans.Sink, event: Event) -> list[str]:
    """What of this event's state is a message for that sink: at the first time at its level; with updates, each one."""
    if (sink.cameras and event.camera not in sink.cameras) or (sink.kinds and event.kind not in sink.kinds):
        return []
    if LEVELS.index(event.level) < LEVELS.index(sink.level):
        return []
    ends = event.state == "closed" and (sink.updates or kind(sink) in STATEFUL)
    return [event.level if sink.updates else "reached", *(["closed"] if ends else [])]


def row_of(event: Event) -> dict[str, Any]:
    """An event as its columns. Raises ValueError for an id that cannot be a file's name."""
    checked(event.id)
    return {name: storable(value) for name, value in event.as_dict().items() if name in COLUMNS}


def _put(db: sqlite3.Connection, event: Event, sinks: Sequence[plans.Sink]) -> None:
    row = row_of(event)
    names = ", ".join(f'"{name}"' for name in row)
    again = ", ".join(f'"{name}" = excluded."{name}"' for name in row if name != "id")
    db.execute(
        f"INSERT INTO events ({names}) VALUES ({', '.join('?' * len(row))}) ON CONFLICT (id) DO UPDATE SET {again}",
        list(row.values()),
    )
    told = [(event.id, sink.name, change, time.time()) for sink in sinks for change in changes(sink, event)]
    db.executemany("INSERT OR IGNORE INTO outbox (event, sink, change, made) VALUES (?, ?, ?, ?)", told)


def _cut_off(db: sqlite3.Connection, sinks: Sequence[plans.Sink]) -> None:
    """Events that a kill left open end where they were last said, and whoever hears of ends hears of it."""
    for row in db.execute("""SELECT * FROM events WHERE "end" IS NULL""").fetchall():
        was = Event(**{name: row[name] for name in Event.__dataclass_fields__})
        _put(db, replace(was, state="closed", end=was.updated, words=f"{was.words}; cut off"), sinks)


def _all(db: sqlite3.Connection, rows: Sequence[Job]) -> list[str]:
    """All of them in one transaction, but for those that nothing can write: what is wrong with each of these.

    Raises what may be well again by itself, and then nothing was written.
    """
    bad: list[str] = []
    with db:
        db.execute("BEGIN IMMEDIATE")
        for job in rows:
            db.execute("SAVEPOINT job")
            try:
                job.work(db)
            except Exception as error:
                if code(error) in PASSING | BROKEN:
                    raise
                bad.append(f"a row ({job.what}) cannot be written: {error}")
                db.execute("ROLLBACK TO job")
            db.execute("RELEASE job")
    return bad
