"""Database: events and the outbox in SQLite: its schema, its migrations, and how it is read.

In: a folder. Out: connections; events as dicts, for any process that asks, also while another one writes.
Called by the store (writes), Post, the page and `stillwatch events` (read). It knows no thread and no file beside it.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillwatch.errors import UserError, nearest
from stillwatch.rules.presets import LEVELS

NAME = "events.db"

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

# What may be well again by itself: the row is kept and tried again. Anything else is the row's own fault
PASSING = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT,
}  # fmt: skip
BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def opened(folder: Path, write: bool = False) -> sqlite3.Connection:
    """A connection: the one that writes, or one that only reads, also while another process writes."""
    path = folder / NAME
    if write:
        db = sqlite3.connect(path, timeout=0.5, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # a car's power goes with its key: what was said stays said
            db.execute("PRAGMA wal_autocheckpoint = 200")  # pages: on a small disk the log must not take what is left
        except sqlite3.Error:
            db.close()
            raise
    else:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2.0)
    db.row_factory = sqlite3.Row
    return db


def code(error: BaseException) -> int:
    """SQLite's primary result code of an error; 0 where it is none of SQLite's own."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def migrate(db: sqlite3.Connection, place: Path) -> None:
    """Bring the schema to this version, step by step, each whole or not at all. Raises UserError for a newer one."""
    (number,) = db.execute("PRAGMA user_version").fetchone()
    if number > len(MIGRATIONS):
        raise UserError(f"{place}: written by a newer stillwatch (schema {number}); update, or give another folder")
    for step in range(number, len(MIGRATIONS)):
        db.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[step]} PRAGMA user_version = {step + 1}; COMMIT;")


def set_aside(folder: Path) -> str:
    """A database that is broken keeps no watch from starting: it lies beside the new one. Returns its name now."""
    name = f"{NAME}.broken-{time.strftime('%Y%m%d-%H%M%S')}"
    for tail in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            (folder / f"{NAME}{tail}").rename(folder / f"{name}{tail}")
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
) -> list[dict[str, Any]]:
    """Events as dicts, the newest first, also while another process writes. since, until: of `opened`, epoch seconds.

    level: and above. before_id: older than that event. Raises UserError where there is no such database or level.
    """
    where: list[str] = ["1"]
    values: list[Any] = []
    for words, value in (("opened >= ?", since), ("opened < ?", until), ("camera = ?", camera), ("kind = ?", kind)):
        if value is not None:
            where.append(words)
            values.append(value)
    if level is not None:
        if level not in LEVELS:
            raise UserError(f"level = {level!r}: unknown{nearest(level, LEVELS)}")
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
        raise UserError(
            f"{folder}: no events are kept there; `stillwatch watch` keeps them in a folder (--in names it)"
        )
    try:
        with contextlib.closing(opened(folder)) as db:
            yield db
    except sqlite3.Error as error:
        raise UserError(f"{folder / NAME}: cannot be read: {error}") from error


def _dict(row: sqlite3.Row) -> dict[str, Any]:
    return {name: bool(row[name]) if name == "acknowledged" else row[name] for name in COLUMNS}
