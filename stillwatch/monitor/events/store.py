"""Stores events: one writer thread moves them from memory to SQLite. No method waits for the disk."""

import errno
import json
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from types import EllipsisType
from typing import Literal, NamedTuple

from stillwatch.atomic import FileLock
from stillwatch.errors import UserError
from stillwatch.monitor.config import Keep, Sink
from stillwatch.monitor.events import database, media_files
from stillwatch.monitor.events.database import (
    BROKEN,
    TRANSIENT,
    checked,
    connect,
    error_code,
    identity,
    storable,
    transaction,
)
from stillwatch.rules.events import LEVELS, Event

MAX_JOBS = 20_000  # rows that wait in memory while the disk takes none; more are counted as lost
MAX_BYTES = 32 * 2**20  # of pictures that wait in memory
BATCH = 500  # rows of one transaction: an fsync for each row would hold up a burst
PAUSE, LONGEST = 0.1, 5.0  # seconds between two tries at a disk that takes nothing; doubling
SWEEP = 60.0  # seconds between two looks at what is too old or too much
WATCH = 2.0  # seconds between two looks whether the database is still the file that was opened
START, JUMP = 3600.0, 86400.0  # seconds for which a clock is not trusted after a start, and after it jumped
FULL = {errno.ENOSPC, errno.EDQUOT}
DISK_ERRORS = FULL | {errno.EIO, errno.EROFS}  # of a picture: it is tried again

DeliveryState = Literal["waiting", "sent", "held", "passed"]  # passed: a newer message told it


class Job(NamedTuple):
    """size: bytes of a picture."""

    what: str
    write: Callable[[sqlite3.Connection], object]
    event: Event | None = None
    size: int = 0
    written: threading.Event | None = None


class Store:
    """One folder's. put(), attach() and mark() return at once and raise nothing."""

    def __init__(self, keep: Keep, sinks: Sequence[Sink] = ()):
        """Waits for a full disk or a locked database; sets a broken one aside. Raises UserError."""
        self.folder, self._keep, self._sinks = keep.folder, keep, tuple(sinks)
        self.trouble: str | None = None  # one line: what is wrong with the disk now, or what was lost since the start
        self.stuck = False  # nothing can be written now
        self.lost = 0  # rows and pictures that found no room, in memory or on disk, or that nothing can write
        self.version = 0  # goes up whenever something new may wait in the outbox
        self._changed = threading.Condition()  # of the queue and of the version
        self._rows: deque[Job] = deque()
        self._pictures: deque[Job] = deque()  # wait until no row does
        self._bytes = 0  # of the pictures
        self._end: float | None = None  # time.monotonic() by which the writer leaves
        self._faults: list[str] = []  # what stays true until the next start
        self._open_events: dict[str, Event] = {}  # are written again where the database is removed
        self._file = (0, 0, 0)  # device, inode and size of the open database
        self._removed: list[str] = []  # files that made room and that rows may still mention
        self._journaled: set[Event] = set()
        self._journaling = threading.Lock()
        self._lock = FileLock(self.folder / ".lock")
        self._recovered = False
        self._offset, self._trusted = time.time() - time.monotonic(), time.monotonic() + START
        db = None
        try:
            self._before = [file.name for part in ("", ".part") for file in media_files.media_files(self.folder, part)]
            db = self._open()
            self._report(None)
        except (OSError, sqlite3.Error) as error:
            code = error_code(error)
            if getattr(error, "errno", None) not in FULL and (
                code not in TRANSIENT or code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
            ):
                self._lock.release()
                raise UserError(f"{self.folder}: events cannot be kept there: {error}") from error
            self._report(f"nothing can be written yet: {error}")
        except BaseException:
            self._lock.release()
            raise
        self._thread = threading.Thread(target=self._run, args=(db,), name="store", daemon=True)
        self._thread.start()

    @property
    def rows_waiting(self) -> int:
        return len(self._rows)

    @property
    def waiting(self) -> int:
        return len(self._rows) + len(self._pictures)

    def put(self, event: Event) -> None:
        """An event in epoch seconds: its row and its messages, in one transaction."""
        with self._changed:
            if event.state == "closed":
                self._open_events.pop(event.id, None)
            else:
                self._open_events[event.id] = event
        self._enqueue(self._event_job(event))

    def _event_job(self, event: Event) -> Job:
        return Job("event", lambda db: _write_event(db, event, self._sinks), event)

    def pending_in_memory(self, sink: Sink) -> list[tuple[Event, list[str]]]:
        """(event, changes) for a sink, not yet on disk."""
        with self._changed:
            events = [job.event for job in self._rows if job.event is not None]
        pending = []
        for event in events:
            with suppress(ValueError, TypeError):  # a row that nothing can write is not sent either
                checked(event.id)
                fields = {name: storable(value) for name, value in event.as_dict().items()}
                pending.append((Event(**fields), changes(sink, event)))
        return [(event, messages) for event, messages in pending if messages]

    def journal(self) -> None:
        """Note events beside a database that takes none: sinks may have heard them."""
        with self._journaling, suppress(OSError, TypeError):
            with self._changed:
                fresh = [job.event for job in self._rows if job.event and job.event not in self._journaled]
            if fresh:
                database.remember(self.folder, fresh)
                self._journaled.update(fresh)

    def attach(self, event_id: str, clip: Path | None = None, thumbnail: bytes | None = None) -> None:
        """clip: a file under the folder. thumbnail: JPEG."""
        if clip is not None:
            self._enqueue(Job("clip", lambda db: db.execute(
                "UPDATE events SET clip = ? WHERE id = ?",
                (clip.resolve().relative_to(self.folder.resolve()).as_posix(), event_id))))  # fmt: skip
        if thumbnail is not None:
            self._enqueue(Job(
                "picture", lambda db: media_files.write_thumbnail(db, self.folder, checked(event_id), thumbnail),
                size=len(thumbnail)))  # fmt: skip

    def mark(
        self, event_id: str, acknowledged: bool | None = None, verdict: str | EllipsisType | None = ...
    ) -> None:  # fmt: skip
        """verdict: None takes it back, ... leaves it."""
        marks = {"acknowledged": acknowledged} if acknowledged is not None else {}
        for column, value in (marks if verdict is ... else {**marks, "verdict": verdict}).items():
            self._enqueue(Job("mark", lambda db, column=column, value=value: db.execute(  # type: ignore[misc]
                f"UPDATE events SET {column} = ? WHERE id = ?", (value, event_id))))  # fmt: skip

    def set_delivery_state(
        self, sink: str, event_id: str, change: str, state: DeliveryState, error: str | None = None
    ) -> threading.Event:
        """ "waiting" asks for one more try. The result is set once on disk."""
        values = (state, storable(error), int(state == "waiting"), time.time(), sink, event_id, change)
        written = threading.Event()
        self._enqueue(Job("outbox", lambda db: db.execute(
            "UPDATE outbox SET state = ?, error = ?, tries = tries + ?, settled = ?"
            " WHERE sink = ? AND event = ? AND change = ?", values), written=written))  # fmt: skip
        return written

    def wait_for_news(self, version: int, seconds: float) -> None:
        """Wait, at most `seconds`, for another version."""
        with self._changed:
            self._changed.wait_for(lambda: self.version != version, seconds)

    def wake_listeners(self) -> None:
        with self._changed:
            self.version += 1
            self._changed.notify_all()

    def close(self, within: float) -> None:
        """Write what waits. What takes longer than `within` seconds is lost and counted."""
        with self._changed:
            self._end = time.monotonic() + within
            self._changed.notify_all()
        self._thread.join(within)

    # --- the writer -------------------------------------------------------------------------------------------------

    def _enqueue(self, job: Job) -> None:
        with self._changed:
            if self._bytes + job.size > MAX_BYTES if job.size else len(self._rows) >= MAX_JOBS:
                self.lost += 1
                return
            (self._pictures if job.size else self._rows).append(job)
            self._bytes += job.size
            self._changed.notify_all()

    def _open(self) -> sqlite3.Connection:
        for name in media_files.FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire():  # a second watch would take the first one's clips for orphans, and tell all twice
            raise UserError(f"{self.folder}: another watch keeps its events there; give one another folder")
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if error_code(error) not in BROKEN:
                raise
            self._set_aside(error)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = connect(self.folder, write=True)
        try:
            database.migrate(db, self.folder / database.NAME)
            self._file = identity(self.folder)
            if not self._recovered:
                with transaction(db):
                    for event in database.recall(self.folder):
                        with suppress(ValueError, sqlite3.IntegrityError):  # not of ours, or not whole
                            _write_event(db, event, self._sinks)
                    media_files.recover_orphans(db, self.folder, self._before)
                    for row in db.execute("""SELECT * FROM events WHERE "end" IS NULL""").fetchall():
                        event = Event(**{column.name: row[column.name] for column in fields(Event)})
                        words = f"{event.words}; cut off"
                        _write_event(db, replace(event, state="closed", end=event.updated, words=words), self._sinks)
                (self.folder / database.JOURNAL).unlink(missing_ok=True)
                self._recovered, self._before = True, []
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self, error: Exception) -> None:
        name = database.set_aside(self.folder)
        self._faults.append(f"the database was broken ({error}): it lies beside as {name}")

    def _run(self, db: sqlite3.Connection | None) -> None:
        pause, due = 0.0 if db else PAUSE, time.monotonic() + SWEEP
        try:
            while self._wait(pause):
                try:
                    if db is not None and not self._is_same_file():
                        db = self._replace(db)
                    db = db or self._open()
                    self._write_next(db)
                    if time.monotonic() >= due:
                        due = time.monotonic() + (0.0 if self._sweep(db) else SWEEP)
                    pause = 0.0
                    self._report(None)
                    if self._journaled and not self._rows:
                        with self._journaling, suppress(OSError):
                            (self.folder / database.JOURNAL).unlink(missing_ok=True)
                            self._journaled.clear()
                except Exception as error:
                    pause = min(2 * pause or PAUSE, LONGEST)
                    db = self._after_failure(db, error)
                    self._report(f"event cannot be written: {error}")
                    self.journal()
                    self.wake_listeners()
        finally:
            if db is not None:
                with suppress(sqlite3.Error):
                    db.close()
            self._lock.release()

    def _wait(self, pause: float) -> bool:
        """False: leave."""
        with self._changed:
            if not pause:
                self._changed.wait_for(lambda: self._end is not None or self.waiting, WATCH)
            elif self._end is not None:
                self._changed.wait(min(pause, 0.05))
            else:
                self._changed.wait_for(lambda: self._end is not None, pause)
            if self._end is None:
                return True
            late = time.monotonic() > self._end
            if late and self.waiting:
                self.lost += self.waiting
                self._report(self.trouble)
            return bool(self.waiting) and not late

    def _is_same_file(self) -> bool:
        file = identity(self.folder)
        same = file[:2] == self._file[:2] and file[2] >= self._file[2]  # it never shrinks by itself
        self._file = file if same else self._file
        return same

    def _replace(self, db: sqlite3.Connection) -> sqlite3.Connection:
        db.close()
        self._lock.release()  # its file may be gone with the folder
        replaced = identity(self.folder)[:2] != self._file[:2]  # or else cut short
        database.set_aside(self.folder, ("-wal", "-shm") if replaced else database.FILES)  # the old file's log
        fault = "events.db was removed or replaced while running: open events were written again, older ones are gone"
        self._faults = [*self._faults, fault][-3:]
        with self._changed:
            self._rows.extendleft(self._event_job(event) for event in self._open_events.values())
        return self._open()

    def _write_next(self, db: sqlite3.Connection) -> None:
        if self._removed:
            with transaction(db):
                media_files.forget(db, self._removed)
            self._removed = []
        with self._changed:
            jobs = list(islice(self._rows, BATCH)) or list(islice(self._pictures, 1))
        if jobs:
            self._write(db, jobs)
            self.wake_listeners()

    def _write(self, db: sqlite3.Connection, jobs: Sequence[Job]) -> None:
        """One transaction, or one per job where one is at fault; that one is lost."""
        try:
            with transaction(db):
                for job in jobs:
                    job.write(db)
        except Exception as error:
            if error_code(error) in TRANSIENT | BROKEN or getattr(error, "errno", None) in DISK_ERRORS:
                raise
            if len(jobs) > 1:
                for job in jobs:
                    self._write(db, [job])
                return
            self.lost += 1
            self._faults = [*self._faults, f"{jobs[0].what} cannot be written: {error}"][-3:]
        with self._changed:
            for job in jobs:
                (self._pictures if job.size else self._rows).popleft()
                self._bytes -= job.size
        for job in jobs:
            if job.written:
                job.written.set()

    def _after_failure(self, db: sqlite3.Connection | None, error: Exception) -> sqlite3.Connection | None:
        code = error_code(error)
        if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in FULL or media_files.disk_full(self.folder):
            self._removed += media_files.make_room(self.folder)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return db
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()
        if code in BROKEN:
            with suppress(OSError):
                self._set_aside(error)
        return None

    def _report(self, failure: str | None) -> None:
        lost = f"{self.lost} rows or pictures were lost" if self.lost else None
        self.stuck = failure is not None
        self.trouble = "; ".join(part for part in (failure, lost, *self._faults) if part) or None

    def _sweep(self, db: sqlite3.Connection) -> bool:
        """Whether there may be more to remove."""
        now, offset = time.monotonic(), time.time() - time.monotonic()
        if abs(offset - self._offset) > 3600:
            self._offset, self._trusted = offset, now + JUMP
        aged = now >= self._trusted
        more = media_files.sweep(db, self._keep, aged) >= media_files.STEP
        if aged:
            then, known = time.time() - 86400 * self._keep.days, [sink.name for sink in self._sinks]
            with transaction(db):
                db.execute("DELETE FROM outbox WHERE state != 'waiting' AND settled < ?", (then,))
                db.execute(
                    "DELETE FROM outbox WHERE state = 'waiting' AND made < ?"
                    " AND sink NOT IN (SELECT value FROM json_each(?))", (then, json.dumps(known)),
                )  # fmt: skip
        return more


def changes(sink: Sink, event: Event) -> list[str]:
    from stillwatch.monitor.events.sinks import is_stateful  # here, so that a store needs no sink to be imported

    if (sink.cameras and event.camera not in sink.cameras) or (sink.kinds and event.kind not in sink.kinds):
        return []
    if LEVELS.index(event.level) < LEVELS.index(sink.level):
        return []
    ends = event.state == "closed" and (sink.updates or is_stateful(sink))
    return [event.level if sink.updates else "reached", *(["closed"] if ends else [])]


def _write_event(db: sqlite3.Connection, event: Event, sinks: Sequence[Sink]) -> None:
    checked(event.id)
    row = {name: storable(value) for name, value in event.as_dict().items()}
    columns = [f'"{name}"' for name in row]
    updates = ", ".join(f"{column} = excluded.{column}" for column in columns)
    db.execute(
        f"INSERT INTO events ({', '.join(columns)}) VALUES ({', '.join('?' * len(row))})"
        f" ON CONFLICT (id) DO UPDATE SET {updates} WHERE excluded.updated >= events.updated",
        list(row.values()),
    )
    messages = [(event.id, sink.name, change, time.time()) for sink in sinks for change in changes(sink, event)]
    db.executemany("INSERT OR IGNORE INTO outbox (event, sink, change, made) VALUES (?, ?, ?, ?)", messages)
