"""Postgres by psycopg 3: one row an event, in one table of many boards."""

import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from stillwatch.errors import UserError, one_line
from stillwatch.monitor.events.mqtt import Refused

if TYPE_CHECKING:  # psycopg is imported when a database is named
    from psycopg import Connection

    from stillwatch.monitor.events.sinks import Message

TIMEOUT = 10  # seconds for a connection, for an answer, and until a silent network counts as broken
TABLE = """
CREATE TABLE IF NOT EXISTS stillwatch_events (
  board text NOT NULL, id text NOT NULL, camera text NOT NULL, kind text NOT NULL, label text, level text NOT NULL,
  state text NOT NULL, start timestamptz NOT NULL, opened timestamptz NOT NULL, updated timestamptz NOT NULL,
  "end" timestamptz, peak double precision NOT NULL, words text NOT NULL, PRIMARY KEY (board, id)
);
CREATE INDEX IF NOT EXISTS stillwatch_events_opened ON stillwatch_events (opened);
"""
COLUMNS = ("id", "camera", "kind", "label", "level", "state", "start", "opened", "updated", "end", "peak", "words")
TIMES = ("start", "opened", "updated", "end")
# A message that is repeated changes nothing, and one that comes late does not undo a newer one
UPSERT = (
    "INSERT INTO stillwatch_events AS known (board, {names}) VALUES (%(board)s, {values}) ON CONFLICT (board, id) "
    "DO UPDATE SET {updates} WHERE excluded.updated >= known.updated"
).format(
    names=", ".join(f'"{name}"' for name in COLUMNS),
    values=", ".join(f"to_timestamp(%({name})s)" if name in TIMES else f"%({name})s" for name in COLUMNS),
    updates=", ".join(f'"{name}" = excluded."{name}"' for name in COLUMNS),
)


class Postgres:
    """The table stillwatch_events, made where missing. board: this machine's name."""

    stateful: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ()

    def __init__(self, url: str, board: str | None = None):
        """url: postgresql://user:password@host/database, or libpq's words. Raises UserError."""
        try:
            import psycopg
        except ModuleNotFoundError:
            raise UserError("psycopg is not installed: pip install 'stillwatch[postgres]'") from None
        try:
            about = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error:  # its words quote the address
            raise UserError("url = '***': wanted: postgresql://user:password@host/database") from None
        if "@" in f"{about.get('host')}{about.get('dbname')}":  # libpq takes a part of the password for the host
            raise UserError("url = '***': percent-encode the password: @ is %40, / is %2F, : is %3A")
        self._url, self._board = url, board or platform.node()
        self._place = f"{about.get('host', 'local')}/{about.get('dbname', '')}"
        self._db: Connection | None = None

    def present(self, cameras: Sequence[str]) -> None:
        return None

    def send(self, event: "Message", clip: Path | None) -> None:
        """Takes a test back. The next call reopens a broken connection."""
        import psycopg

        row = {"board": self._board} | {
            name: value.replace("\0", "") if isinstance(value, str) else value  # text in Postgres holds no NUL
            for name, value in event.as_dict().items()
            if name in COLUMNS
        }
        try:
            db = self._db = self._db or self._connect()
            with suppress(psycopg.errors.UndefinedTable), db.transaction(force_rollback=event.test):
                db.execute(UPSERT, row)
                return
            db.execute(TABLE)
            with db.transaction(force_rollback=event.test):
                db.execute(UPSERT, row)
        except (psycopg.Error, OSError) as error:
            self.close()
            raise Refused(f"{self._place}: {one_line(error)}") from None

    def _connect(self) -> "Connection":
        import psycopg

        # Without prepared statements, which poolers mix up
        db = psycopg.connect(
            self._url, autocommit=True, prepare_threshold=None, connect_timeout=TIMEOUT,
            tcp_user_timeout=1000 * TIMEOUT, keepalives_idle=30,
        )  # fmt: skip
        db.execute(f"SET statement_timeout = '{TIMEOUT}s'")
        return db

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()
