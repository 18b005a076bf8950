"""Store: what is remembered: events in SQLite, their clips and thumbnails beside it, and an outbox for the sinks.

In: events, clips, pictures, marks; none of its methods waits for the disk. Out: rows, for any process that asks.
Called by the loop and the web (writes), by Post, the page and `stillwatch events` (reads). It knows no camera.
"""

import contextlib
import errno
import shutil
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stillwatch.recipe import Mistake
from stillwatch.rules import LEVELS, Event
from stillwatch.run import atomic
from stillwatch.watch import plan as plans

NAME = "events.db"
HELD = 20_000  # rows that wait in memory while the disk takes none; the rest is counted and said
SWEEP = 60.0  # seconds between two looks at what is too old or too much
STEP = 20  # files that one sweep removes at most before it looks for something to write again

# Each entry brings a database from its number to the next one
MIGRATIONS = (
    """
    CREATE TABLE events (
      number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, camera TEXT NOT NULL, kind TEXT NOT NULL, label TEXT,
      level TEXT NOT NULL, state TEXT NOT NULL, start REAL NOT NULL, opened REAL NOT NULL, updated REAL NOT NULL,
      "end" REAL, peak REAL NOT NULL, words TEXT NOT NULL, clip TEXT, thumbnail TEXT,
      acknowledged INTEGER NOT NULL DEFAULT 0, verdict TEXT
    );
    CREATE INDEX events_opened ON events (opened);
    """,
    """
    CREATE TABLE outbox (
      number INTEGER PRIMARY KEY, event TEXT NOT NULL, sink TEXT NOT NULL, change TEXT NOT NULL,
      state TEXT NOT NULL DEFAULT 'waiting', tries INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0,
      made REAL NOT NULL, settled REAL, error TEXT, UNIQUE (event, sink, change)
    );
    CREATE INDEX outbox_waiting ON outbox (sink, state, due);
    """,
)
COLUMNS = (
    "id", "camera", "kind", "label", "level", "state", "start", "opened", "updated", "end", "peak", "words", "clip",
    "thumbnail", "acknowledged", "verdict",
)  # fmt: skip


class Job(NamedTuple):
    """One thing to be written: what, in words for an error, and how."""

    what: str
    work: Callable[[sqlite3.Connection], Any]
    row: dict[str, Any] | None = None  # of an event
    told: tuple[tuple[str, str], ...] = ()  # (sink, change)


class Store:
    """One writer thread over one database. put, attach and mark return at once and raise nothing."""

    def __init__(self, keep: plans.Keep, sinks: Sequence[plans.Sink] = ()):
        """Open or make the folder and its database. Raises Mistake where that cannot be, or where it is newer."""
        self.folder, self._keep, self._sinks = keep.folder, keep, tuple(sinks)
        self.trouble: str | None = None
        self.lost = 0  # rows that found no room, in memory or on disk
        self.wake = threading.Condition()  # notified when something new may wait in the outbox
        self._jobs: deque[Job] = deque()
        self._fresh = threading.Condition()
        self._closing = self._ready = False
        try:
            for name in ("clips", "thumbnails", "negatives"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            self._db: sqlite3.Connection | None = self._made_ready()
        except (OSError, sqlite3.Error) as error:
            if not passing(error):
                raise Mistake(f"{self.folder}: events cannot be kept there: {error}") from error
            self._db, self.trouble = None, f"nothing can be written yet: {error}"
        self._thread = threading.Thread(target=self._write, name="store", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows that are not on disk yet."""
        return len(self._jobs)

    def put(self, event: Event) -> None:
        """An event in epoch seconds: its row, and what the sinks are to be told, in one transaction."""
        row = {name: value for name, value in event.as_dict().items() if name in COLUMNS}
        told = tuple((sink.name, change) for sink in self._sinks for change in changes(sink, event))
        self._do(Job("event", lambda db: _put(db, row, told), row, told))

    def unkept(self, sink: str) -> list[tuple[dict[str, Any], str]]:
        """What a sink is to be told that is not on disk yet, (row, change): for while the disk takes nothing."""
        with self._fresh:
            return [(dict(job.row), change) for job in self._jobs if job.row for to, change in job.told if to == sink]

    def attach(self, event_id: str, clip: Path | None = None, thumbnail: bytes | None = None) -> None:
        """An event's clip (a file under the folder) or its thumbnail (JPEG)."""
        if clip is not None:
            name = self._relative(clip)
            self._do(Job("clip", lambda db: db.execute("UPDATE events SET clip = ? WHERE id = ?", (name, event_id))))
        if thumbnail is not None:
            self._do(Job("thumbnail", lambda db: self._thumbnail(db, event_id, thumbnail)))

    def mark(self, event_id: str, acknowledged: bool | None = None, **verdict: str | None) -> None:
        """What a person says of it. verdict: "false", "true", or None, which takes it back; left out: as it was."""
        if acknowledged is not None:
            self._do(Job("mark", lambda db: db.execute(
                "UPDATE events SET acknowledged = ? WHERE id = ?", (acknowledged, event_id))))  # fmt: skip
        if "verdict" in verdict:
            self._do(Job("mark", lambda db: db.execute(
                "UPDATE events SET verdict = ? WHERE id = ?", (verdict["verdict"], event_id))))  # fmt: skip

    def settle(self, number: int, state: str, error: str | None = None, due: float = 0.0) -> None:
        """A message of the outbox was "sent" or "held", or waits again until `due`."""
        tried = 1 if state == "waiting" else 0
        self._do(Job("outbox", lambda db: db.execute(
            "UPDATE outbox SET state = ?, error = ?, due = ?, tries = tries + ?, settled = ? WHERE number = ?",
            (state, error, due, tried, time.time(), number))))  # fmt: skip

    def close(self, within: float) -> None:
        """Write what waits; what the disk does not take in that time is lost, and was said to be in trouble."""
        with self._fresh:
            self._closing = True
            self._fresh.notify_all()
        self._thread.join(within)

    # --- the writer -------------------------------------------------------------------------------------------------

    def _do(self, job: Job) -> None:
        with self._fresh:
            if len(self._jobs) >= HELD:
                self.lost += 1
                return
            self._jobs.append(job)
            self._fresh.notify_all()

    def _made_ready(self) -> sqlite3.Connection:
        """The connection that writes, its schema brought to this version, what a kill left taken up."""
        db = opened(self.folder, write=True)
        try:
            migrate(db, self.folder / NAME)
            adopt(db, self.folder)
        except BaseException:
            db.close()
            raise
        self._ready = True
        return db

    def _write(self) -> None:
        """Jobs in their order, each in a transaction of its own; what fails is tried again, with growing pauses."""
        db, self._db = self._db, None
        pause, swept = 0.0 if db else 0.1, time.monotonic()
        while True:
            with self._fresh:
                if not self._jobs and self._closing:
                    break
                if pause:
                    self._fresh.wait(min(pause, 0.05) if self._closing else pause)
                elif not self._jobs and not self._closing:
                    self._fresh.wait(SWEEP)
                job = self._jobs[0] if self._jobs else None
            try:
                if db is None:
                    db = opened(self.folder, write=True) if self._ready else self._made_ready()
                if job is not None:
                    with db:
                        db.execute("BEGIN IMMEDIATE")
                        job.work(db)
                    with self._fresh:
                        self._jobs.popleft()
                    with self.wake:
                        self.wake.notify_all()
                if time.monotonic() - swept > SWEEP:
                    swept = time.monotonic()
                    sweep(db, self._keep)
                pause, self.trouble = 0.0, None
            except (OSError, sqlite3.Error, Mistake) as error:
                pause = min(2 * pause or 0.1, 5.0)
                self.trouble = f"{job.what if job else 'sweep'} cannot be written: {error}"
                db = self._recovered(db, error)
        if db is not None:
            db.close()

    def _recovered(self, db: sqlite3.Connection | None, error: Exception) -> sqlite3.Connection | None:
        """Make room where there is none; a connection that is broken is opened anew."""
        if "full" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
            with contextlib.suppress(OSError, sqlite3.Error):
                for path in oldest(self.folder)[:STEP]:
                    path.unlink(missing_ok=True)
        if db is not None and isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            return db
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()
        return None

    def _thumbnail(self, db: sqlite3.Connection, id: str, jpeg: bytes) -> None:
        found = db.execute("SELECT opened FROM events WHERE id = ?", (id,)).fetchone()
        if found is None:
            return
        name = f"thumbnails/{time.strftime('%Y-%m-%d', time.localtime(found[0]))}/{id}.jpg"
        with atomic(self.folder / name) as draft:
            draft.write_bytes(jpeg)
        db.execute("UPDATE events SET thumbnail = ? WHERE id = ?", (name, id))

    def _relative(self, path: Path) -> str:
        return str(path.resolve().relative_to(self.folder.resolve()))


def passing(error: Exception) -> bool:
    """Whether it may be well again by itself: a full disk, a lock. A watch must be able to start in the midst of it."""
    return getattr(error, "errno", None) == errno.ENOSPC or any(w in str(error) for w in ("full", "locked", "busy"))


# --- what is told to whom -------------------------------------------------------------------------------------------


def changes(sink: plans.Sink, event: Event) -> list[str]:
    """What of this event's state is a message for that sink: at the first time at its level; with updates, each one."""
    if (sink.cameras and event.camera not in sink.cameras) or (sink.kinds and event.kind not in sink.kinds):
        return []
    if LEVELS.index(event.level) < LEVELS.index(sink.level):
        return []
    if not sink.updates:
        return ["reached"]
    return [event.level, *(["closed"] if event.state == "closed" else [])]


def _put(db: sqlite3.Connection, row: Mapping[str, Any], told: Sequence[tuple[str, str]]) -> None:
    names = ", ".join(f'"{name}"' for name in row)
    again = ", ".join(f'"{name}" = excluded."{name}"' for name in row if name != "id")
    db.execute(
        f"INSERT INTO events ({names}) VALUES ({', '.join('?' * len(row))}) ON CONFLICT (id) DO UPDATE SET {again}",
        list(row.values()),
    )
    now = time.time()
    for sink, change in told:
        db.execute(
            "INSERT OR IGNORE INTO outbox (event, sink, change, made) VALUES (?, ?, ?, ?)",
            (row["id"], sink, change, now),
        )


# --- the database ---------------------------------------------------------------------------------------------------


def opened(folder: Path, write: bool = False) -> sqlite3.Connection:
    """A connection: the one that writes, or one that only reads, also while another process writes."""
    path = folder / NAME
    if write:
        db = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error:
            db.close()
            raise
    else:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2.0)
    db.row_factory = sqlite3.Row
    return db


def migrate(db: sqlite3.Connection, place: Path) -> None:
    """Bring the schema to this version, step by step, each whole or not at all. Raises Mistake for a newer one."""
    (number,) = db.execute("PRAGMA user_version").fetchone()
    if number > len(MIGRATIONS):
        raise Mistake(f"{place}: written by a newer stillwatch (schema {number}); update, or give another folder")
    for step in range(number, len(MIGRATIONS)):
        db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;")


def adopt(db: sqlite3.Connection, folder: Path) -> None:
    """After a kill: clips and pictures that lie there without their row, and events that nobody ended."""
    for part in (folder / "clips").rglob("*.mp4.part"):  # fragmented: it plays as far as it was written
        part.rename(part.with_suffix(""))
    for kind, suffix in (("clip", ".mp4"), ("thumbnail", ".jpg")):
        for path in sorted((folder / f"{kind}s").rglob(f"*{suffix}")):
            name = str(path.relative_to(folder))
            db.execute(f"UPDATE events SET {kind} = ? WHERE id = ? AND {kind} IS NULL", (name, path.stem))
            if not db.execute(f"SELECT 1 FROM events WHERE {kind} = ?", (name,)).fetchone():
                path.unlink(missing_ok=True)
    db.execute(
        """UPDATE events SET state = 'closed', "end" = updated, words = words || '; cut off' WHERE "end" IS NULL"""
    )


def oldest(folder: Path) -> list[Path]:
    """Clips and thumbnails, the oldest first; none that is still being written."""
    found = [
        path
        for kind in ("clips", "thumbnails")
        for path in (folder / kind).rglob("*.*")
        if path.suffix in (".mp4", ".jpg")
    ]
    return sorted(found, key=lambda path: path.stat().st_mtime if path.exists() else 0.0)


def sweep(db: sqlite3.Connection, keep: plans.Keep, now: float | None = None) -> int:
    """Remove what is too old or too much, files and their mention together; how many files."""
    now = time.time() if now is None else now
    files = [(path, path.stat()) for path in oldest(keep.folder) if path.exists()]
    total = sum(about.st_size for _, about in files)
    free = shutil.disk_usage(keep.folder).free
    gone = 0
    for path, about in files:
        old = about.st_mtime < now - 86400 * keep.days
        much = total > 1e9 * keep.gigabytes or free < 1e9 * keep.free
        if not (old or much) or gone >= STEP:
            break
        name = str(path.relative_to(keep.folder))
        with db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE events SET clip = NULL WHERE clip = ?", (name,))
            db.execute("UPDATE events SET thumbnail = NULL WHERE thumbnail = ?", (name,))
        path.unlink(missing_ok=True)
        total, free, gone = total - about.st_size, free + about.st_size, gone + 1
    with db:
        db.execute("DELETE FROM outbox WHERE state != 'waiting' AND settled < ?", (now - 86400 * keep.days,))
    return gone


# --- reading --------------------------------------------------------------------------------------------------------


def events(
    folder: Path,
    since: float | None = None,
    until: float | None = None,
    camera: str | None = None,
    kind: str | None = None,
    level: str | None = None,
    before_id: str | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Events as dicts, the newest first, also while another process writes. since, until: of `opened`, epoch seconds.

    level: and above. before_id: older than that event. Raises Mistake where there is no such database.
    """
    where, values = ["1"], []
    for words, value in (("opened >= ?", since), ("opened < ?", until), ("camera = ?", camera), ("kind = ?", kind)):
        if value is not None:
            where.append(words)
            values.append(value)
    if level is not None:
        above = LEVELS[LEVELS.index(level) :]
        where.append(f"level IN ({', '.join('?' * len(above))})")
        values += above
    if before_id is not None:
        where.append("number < (SELECT number FROM events WHERE id = ?)")
        values.append(before_id)
    with _reading(folder) as db:
        rows = db.execute(
            f"SELECT * FROM events WHERE {' AND '.join(where)} ORDER BY number DESC LIMIT ?", [*values, limit]
        ).fetchall()
    return [_dict(row) for row in rows]


def event(folder: Path, id: str) -> dict[str, Any] | None:
    """One event as a dict, or None."""
    with _reading(folder) as db:
        row = db.execute("SELECT * FROM events WHERE id = ?", (id,)).fetchone()
    return _dict(row) if row else None


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection]:
    if not (folder / NAME).is_file():
        raise Mistake(f"{folder}: no events are kept there; `stillwatch watch` keeps them in a folder (--in names it)")
    try:
        with contextlib.closing(opened(folder)) as db:
            yield db
    except sqlite3.Error as error:
        raise Mistake(f"{folder / NAME}: cannot be read: {error}") from error


def _dict(row: sqlite3.Row) -> dict[str, Any]:
    return {name: bool(row[name]) if name == "acknowledged" else row[name] for name in COLUMNS}


def negatives(folder: Path, event_id: str, label: str) -> int:
    """File an event's frames as pictures of `label`, for data.negatives: one a second of its clip, else its thumbnail.

    Returns how many lie in folder/negatives/<label>/<camera>/ now. Raises Mistake where the event is not there.
    """
    row = event(folder, event_id)
    if row is None:
        raise Mistake(f"{event_id}: no such event")
    shelf = folder / "negatives" / label / row["camera"]
    shelf.mkdir(parents=True, exist_ok=True)
    filed = 0
    if row["clip"] and (folder / row["clip"]).is_file():
        import cv2

        from stillwatch.watch.source import frames

        for seconds, image in frames(str(folder / row["clip"]), fps=1.0):
            done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
            if done:
                with atomic(shelf / f"{event_id}-{round(seconds):03d}.jpg") as draft:
                    draft.write_bytes(jpeg.tobytes())
                filed += 1
    elif row["thumbnail"] and (folder / row["thumbnail"]).is_file():
        with atomic(shelf / f"{event_id}.jpg") as draft:
            shutil.copyfile(folder / row["thumbnail"], draft)
        filed = 1
    return filed
