"""SQLite: schema, migrations and queries of events and their outbox. Imports no thread."""

import json
import math
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar

from stillwatch.errors import UserError, nearest
from stillwatch.rules.events import LEVELS, Event

NAME = "events.db"
JOURNAL = "events.waiting.jsonl"  # events that a locked database has not taken yet
FILES = ("", "-wal", "-shm")  # what its files' names end in

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

# Errors that may pass by themselves: the row is kept and tried again. Any other error is the row's own fault
TRANSIENT = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT,
}  # fmt: skip
ID = re.compile(r"(?!\.)[\w.+@-]{1,200}")  # an event's id is a file's name too
Value = TypeVar("Value")
BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@dataclass(frozen=True)
class StoredEvent(Event):
    """A row; times in epoch seconds, paths relative to the folder."""

    clip: str | None = None
    thumbnail: str | None = None
    acknowledged: bool = False
    verdict: Literal["false", "true"] | None = None  # what a person says of the alarm


def connect(folder: Path, write: bool = False) -> sqlite3.Connection:
    path = folder / NAME
    if write:
        db = sqlite3.connect(path, timeout=0.5, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # in a car the power goes with the key: a commit must be on disk
            db.execute("PRAGMA wal_autocheckpoint = 200")  # pages: a long log would take what a small disk has left
        except sqlite3.Error:
            db.close()
            raise
    else:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2.0)
    db.row_factory = sqlite3.Row
    return db


def identity(folder: Path) -> tuple[int, int, int]:
    """Device, inode and size of the database; zeros where missing."""
    try:
        status = (folder / NAME).stat()
    except OSError:
        return 0, 0, 0
    return status.st_dev, status.st_ino, status.st_size


def storable(value: Value) -> Value:
    """For SQLite and JSON: no half of a surrogate pair, no NaN."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()  # type: ignore[return-value]
    return 0.0 if isinstance(value, float) and not math.isfinite(value) else value  # type: ignore[return-value]


def checked(id: str) -> str:
    """Raises ValueError for an id that is unsafe as a file name."""
    if not ID.fullmatch(id):
        raise ValueError(f"{id!r} cannot be an event's name")
    return id


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    with db:
        db.execute("BEGIN IMMEDIATE")
        yield


def error_code(error: BaseException) -> int:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def remember(folder: Path, events: Sequence[Event]) -> None:
    """On disk before it returns. Raises OSError."""
    lines = [json.dumps({name: storable(value) for name, value in event.as_dict().items()}) + "\n" for event in events]
    with (folder / JOURNAL).open("ab", buffering=0) as file:
        file.write("".join(lines).encode())
        os.fsync(file.fileno())


def recall(folder: Path) -> list[Event]:
    """What remember() kept, without a line cut short."""
    found: list[Event] = []
    with suppress(OSError):
        for line in (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):
                found.append(Event(**json.loads(line)))
    return found


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Each step is atomic. Raises UserError for a newer schema."""
    (number,) = db.execute("PRAGMA user_version").fetchone()
    if number > len(MIGRATIONS):
        raise UserError(f"{path}: written by a newer stillwatch (schema {number}); update, or give another folder")
    for step in range(number, len(MIGRATIONS)):
        db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;")


def set_aside(folder: Path, suffixes: Sequence[str] = FILES) -> str:
    name = f"{NAME}.broken-{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in suffixes:
        with suppress(FileNotFoundError):
            (folder / f"{NAME}{suffix}").rename(folder / f"{name}{suffix}")
    return name


def events(
    folder: Path,
    since: float | None = None,
    until: float | None = None,
    camera: str | None = None,
    kind: str | None = None,
    level: str | None = None,
    before_id: str | None = None,
    limit: int = 100,
) -> list[StoredEvent]:
    """Newest first. since, until: epoch seconds of `opened`. level: the lowest. Raises UserError."""
    if level is not None and level not in LEVELS:
        raise UserError(f"level = {level!r}: unknown{nearest(level, LEVELS)}")
    conditions = {
        "opened >= ?": since,
        "opened < ?": until,
        "camera = ?": camera,
        "kind = ?": kind,
        "level IN (SELECT value FROM json_each(?))": level and json.dumps(LEVELS[LEVELS.index(level) :]),
        "number < (SELECT number FROM events WHERE id = ?)": before_id,
    }
    used = {condition: value for condition, value in conditions.items() if value is not None}
    return _select(folder, f"WHERE {' AND '.join(['1', *used])} ORDER BY number DESC LIMIT ?", *used.values(), limit)


def event(folder: Path, id: str) -> StoredEvent | None:
    """Raises UserError for a folder without a database."""
    return next(iter(_select(folder, "WHERE id = ?", id)), None)


def _select(folder: Path, clauses: str, *values: object) -> list[StoredEvent]:
    if not (folder / NAME).is_file():
        raise UserError(f"{folder}: no events are kept there; `stillwatch watch` makes such a folder (--in names it)")
    try:
        with closing(connect(folder)) as db:
            return [stored_event(row) for row in db.execute(f"SELECT * FROM events {clauses}", values)]
    except sqlite3.Error as error:
        raise UserError(f"{folder / NAME}: cannot be read: {error}") from error


def stored_event(row: sqlite3.Row) -> StoredEvent:
    columns = {field.name: row[field.name] for field in fields(StoredEvent)}
    return StoredEvent(**columns | {"acknowledged": bool(row["acknowledged"])})
