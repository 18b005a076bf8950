"""Events as they are asked for; a schema of before is brought to this one; a database that is broken or strange."""

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from event_toys import EVENT, LOG, NOW, kept, outbox

from stillwatch.errors import UserError
from stillwatch.monitor.config import Keep
from stillwatch.monitor.events import database
from stillwatch.monitor.events.store import Store

# The schemas as they were. They stand here as text: what lies on somebody's disk does not change with the code
FIRST = """
CREATE TABLE events (
  number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, camera TEXT NOT NULL, kind TEXT NOT NULL, label TEXT,
  level TEXT NOT NULL, state TEXT NOT NULL, start REAL NOT NULL, opened REAL NOT NULL, updated REAL NOT NULL,
  "end" REAL, peak REAL NOT NULL, words TEXT NOT NULL, clip TEXT, thumbnail TEXT,
  acknowledged INTEGER NOT NULL DEFAULT 0, verdict TEXT
);
CREATE INDEX events_opened ON events (opened);
INSERT INTO events VALUES (1, 'old-1', 'cab', 'phone', 'Phone', 'warn', 'closed', 1, 2, 3, 4, 0.5, 'é "quoted"',
  NULL, NULL, 1, 'false');
INSERT INTO events VALUES (7, 'old-2', 'yard', 'violence', NULL, 'alarm', 'opened', 11, 12, 13, NULL, 0.75, 'fight',
  NULL, NULL, 0, NULL);
PRAGMA user_version = 1;
"""


def test_events_are_asked_for_by_time_camera_kind_and_level(tmp_path: Path) -> None:
    with kept(tmp_path) as it:
        for n, (camera, kind, level) in enumerate(
            [
                ("cab", "phone", "notice"),
                ("yard", "violence", "warn"),
                ("cab", "sleep", "alarm"),
                ("cab", "phone", "warn"),
            ]
        ):
            it.put(replace(EVENT, id=f"e{n}", camera=camera, kind=kind, level=level, opened=NOW + n))  # type: ignore[arg-type]

    def ids(**asked: Any) -> list[str]:
        return [row.id for row in database.events(tmp_path, **asked)]

    assert ids() == ["e3", "e2", "e1", "e0"]
    assert ids(since=NOW + 2) == ["e3", "e2"]
    assert ids(until=NOW + 2) == ["e1", "e0"]
    assert ids(camera="yard") == ["e1"]
    assert ids(kind="phone") == ["e3", "e0"]
    assert ids(level="warn") == ["e3", "e2", "e1"]
    assert ids(level="alarm") == ["e2"]
    assert ids(limit=2) == ["e3", "e2"]
    assert ids(before_id="e2", limit=5) == ["e1", "e0"]
    with pytest.raises(UserError, match="level = 'alarms': unknown; did you mean 'alarm'"):
        ids(level="alarms")


def test_a_database_of_the_first_version_is_brought_to_this_one(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "events.db")) as db:
        db.executescript(FIRST)
    with kept(tmp_path, LOG) as it:
        it.put(EVENT)
    new, cut, old = database.events(tmp_path)
    assert [row.id for row in (new, cut, old)] == ["cab-1-1", "old-2", "old-1"]
    assert old.as_dict() == {
        "id": "old-1", "camera": "cab", "kind": "phone", "label": "Phone", "level": "warn", "state": "closed",
        "start": 1.0, "opened": 2.0, "updated": 3.0, "end": 4.0, "peak": 0.5, "words": 'é "quoted"', "clip": None,
        "thumbnail": None, "acknowledged": True, "verdict": "false",
    }  # fmt: skip
    assert (cut.state, cut.end, cut.words) == ("closed", 13.0, "fight; cut off")
    assert ("cab-1-1", "log", "reached") in outbox(tmp_path)
    with contextlib.closing(database.connect(tmp_path)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == len(database.MIGRATIONS)


def test_a_migration_that_fails_leaves_the_database_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "events.db")) as db:
        db.executescript(FIRST)
    bad = "CREATE TABLE half (x); CREATE TABLE events (y);"
    monkeypatch.setattr(database, "MIGRATIONS", (database.MIGRATIONS[0], bad))
    with pytest.raises(UserError, match="events cannot be kept there: table events already exists"):
        Store(Keep(folder=tmp_path))
    monkeypatch.undo()
    with contextlib.closing(database.connect(tmp_path)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 1
        assert not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'half'").fetchone()
    with kept(tmp_path):
        assert len(database.events(tmp_path)) == 2


def test_a_newer_database_and_a_folder_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "events.db")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match=r"written by a newer stillwatch \(schema 99\)"):
        Store(Keep(folder=tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="events cannot be kept there"):
        Store(Keep(folder=tmp_path / "file"))
    with pytest.raises(UserError, match="no events are kept there"):
        database.events(tmp_path / "nowhere")


def test_a_broken_database_is_set_aside_and_keeps_no_watch_from_starting(tmp_path: Path) -> None:
    (tmp_path / "events.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(UserError, match="cannot be read: file is not a database"):
        database.events(tmp_path)
    with kept(tmp_path) as it:
        it.put(EVENT)
        assert "the database was broken (file is not a database): it lies beside as events.db.broken-" in str(
            it.trouble
        )
    assert [row.id for row in database.events(tmp_path)] == [EVENT.id]
    (aside,) = tmp_path.glob("events.db.broken-*")
    assert aside.read_bytes().startswith(b"no database at all")
