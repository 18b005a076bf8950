"""What is remembered: rows survive a locked database, a full disk and a kill; files go by age and by size."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import video

from stillwatch.recipe import Mistake
from stillwatch.rules import Event
from stillwatch.watch import store as stores
from stillwatch.watch.plan import Keep, Sink
from stillwatch.watch.store import Store

NOW = 1_700_000_000.0
EVENT = Event("cab-1-1", "cab", "phone", "Phone", "warn", "opened", NOW, NOW + 3, NOW + 3, None, 0.9, "phone for 3 s")
LOG = Sink(name="log", to="log", level="notice")


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


@contextlib.contextmanager
def kept(folder: Path, *sinks: Sink, **keys: Any) -> Iterator[Store]:
    it = Store(Keep(folder=folder, **keys), sinks)
    try:
        yield it
    finally:
        it.close(10)


def outbox(folder: Path) -> list[tuple[str, str, str]]:
    with contextlib.closing(stores.opened(folder)) as db:
        return [tuple(row) for row in db.execute("SELECT event, sink, change FROM outbox ORDER BY number")]


def test_an_event_is_one_row_through_its_life(tmp_path: Path) -> None:
    with kept(tmp_path) as it:
        it.put(EVENT)
        it.put(replace(EVENT, level="alarm", state="raised", updated=NOW + 11, words="phone for 11 s"))
        it.put(replace(EVENT, level="alarm", state="closed", updated=NOW + 20, end=NOW + 19, words="over"))
    (row,) = stores.events(tmp_path)
    assert row == {
        **EVENT.as_dict(), "level": "alarm", "state": "closed", "updated": NOW + 20, "end": NOW + 19, "words": "over",
        "clip": None, "thumbnail": None, "acknowledged": False, "verdict": None,
    }  # fmt: skip
    assert stores.event(tmp_path, "cab-1-1") == row
    assert stores.event(tmp_path, "nobody") is None


def test_clip_thumbnail_and_marks_stay_when_the_event_goes_on(tmp_path: Path) -> None:
    with kept(tmp_path) as it:
        it.put(EVENT)
        clip = video(tmp_path / "clips" / "day" / "cab-1-1.mp4", 10)
        it.attach(EVENT.id, clip=clip, thumbnail=b"\xff\xd8picture")
        it.mark(EVENT.id, acknowledged=True, verdict="false")
        it.put(replace(EVENT, state="closed", end=NOW + 9))
        until(lambda: not it.waiting)
        row = stores.event(tmp_path, EVENT.id)
        assert row is not None
        assert (row["clip"], row["acknowledged"], row["verdict"], row["state"]) == (
            "clips/day/cab-1-1.mp4", True, "false", "closed",
        )  # fmt: skip
        assert (tmp_path / row["thumbnail"]).read_bytes() == b"\xff\xd8picture"
        it.mark(EVENT.id, verdict=None)
        until(lambda: not it.waiting)
        again = stores.event(tmp_path, EVENT.id)
        assert again is not None
        assert (again["acknowledged"], again["verdict"]) == (True, None)


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
        return [row["id"] for row in stores.events(tmp_path, **asked)]

    assert ids() == ["e3", "e2", "e1", "e0"]
    assert ids(since=NOW + 2) == ["e3", "e2"]
    assert ids(until=NOW + 2) == ["e1", "e0"]
    assert ids(camera="yard") == ["e1"]
    assert ids(kind="phone") == ["e3", "e0"]
    assert ids(level="warn") == ["e3", "e2", "e1"]
    assert ids(level="alarm") == ["e2"]
    assert ids(limit=2) == ["e3", "e2"]
    assert ids(before_id="e2", limit=5) == ["e1", "e0"]


def test_who_is_told_of_what(tmp_path: Path) -> None:
    sinks = (
        Sink(name="all", to="log", level="notice"),
        Sink(name="bad", to="log", level="alarm"),
        Sink(name="yard", to="log", level="notice", cameras=("yard",)),
        Sink(name="sleep", to="log", level="notice", kinds=("sleep",)),
        Sink(name="more", to="log", level="warn", updates=True),
    )
    with kept(tmp_path, *sinks) as it:
        for level, state in (
            ("notice", "opened"),
            ("warn", "raised"),
            ("warn", "raised"),
            ("alarm", "raised"),
            ("alarm", "closed"),
        ):
            it.put(replace(EVENT, level=level, state=state))  # type: ignore[arg-type]
    told = [(sink, change) for _, sink, change in outbox(tmp_path)]
    assert told == [("all", "reached"), ("more", "warn"), ("bad", "reached"), ("more", "alarm"), ("more", "closed")]


def test_a_locked_database_stops_nobody_and_loses_nothing(tmp_path: Path) -> None:
    with kept(tmp_path, LOG) as it:
        with contextlib.closing(stores.opened(tmp_path, write=True)) as db:
            db.execute("BEGIN IMMEDIATE")
            start = time.monotonic()
            for n in range(50):
                it.put(replace(EVENT, id=f"e{n}"))
            assert time.monotonic() - start < 1  # putting does not wait for the lock
            until(lambda: it.trouble is not None)
            assert "locked" in str(it.trouble)
            assert it.waiting == 50
            db.execute("ROLLBACK")
        until(lambda: not it.waiting)
        assert it.trouble is None
    assert len(stores.events(tmp_path, limit=100)) == len(outbox(tmp_path)) == 50


def test_a_full_database_takes_every_row_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own ceiling gives the very error of a full disk."""
    real, full = stores.opened, threading.Event()

    def opened(folder: Path, write: bool = False) -> sqlite3.Connection:
        db = real(folder, write)
        if write and full.is_set():
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages}")
        return db

    monkeypatch.setattr(stores, "opened", opened)
    full.set()
    with kept(tmp_path) as it:
        for n in range(400):
            it.put(replace(EVENT, id=f"e{n}", words="x" * 500))
        until(lambda: it.trouble is not None)
        assert "full" in str(it.trouble)
        full.clear()
        until(lambda: not it.waiting)
    assert len(stores.events(tmp_path, limit=1000)) == 400


def test_where_a_disk_is_full_the_oldest_clips_make_room(tmp_path: Path) -> None:
    with kept(tmp_path) as it:
        old, new, part = (tmp_path / "clips" / name for name in ("old.mp4", "new.mp4", "now.mp4.part"))
        for n, path in enumerate((old, new, part)):
            path.write_bytes(b"x" * 1000)
            os.utime(path, (NOW + n, NOW + n))
        with contextlib.closing(stores.opened(tmp_path, write=True)) as db:
            it._recovered(db, OSError(28, "No space left on device"))
        assert part.exists()
        assert not old.exists()


def test_memory_is_bounded_and_what_finds_no_room_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "HELD", 10)
    with kept(tmp_path) as it, contextlib.closing(stores.opened(tmp_path, write=True)) as db:
        db.execute("BEGIN IMMEDIATE")
        for n in range(15):
            it.put(replace(EVENT, id=f"e{n}"))
        assert (it.waiting, it.lost) == (10, 5)
        db.execute("ROLLBACK")


def test_files_go_by_age_then_by_size_with_their_mention(tmp_path: Path) -> None:
    keep = Keep(folder=tmp_path, days=1, gigabytes=2.5e-6, free=0)
    with kept(tmp_path) as it:
        for n, days in enumerate((3, 0.5, 0.4, 0.3)):
            path = tmp_path / "clips" / f"e{n}.mp4"
            path.write_bytes(b"x" * 1000)
            it.put(replace(EVENT, id=f"e{n}"))
            it.attach(f"e{n}", clip=path)
            os.utime(path, (NOW - 86400 * days,) * 2)
        until(lambda: not it.waiting)
        with contextlib.closing(stores.opened(tmp_path, write=True)) as db:
            assert stores.sweep(db, keep, NOW) == 2  # one is too old, one too much
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["e2.mp4", "e3.mp4"]
    assert [row["clip"] for row in stores.events(tmp_path)] == ["clips/e3.mp4", "clips/e2.mp4", None, None]


def test_after_a_kill_what_lies_there_is_taken_up_or_removed(tmp_path: Path) -> None:
    with kept(tmp_path) as it:
        it.put(EVENT)
        it.put(replace(EVENT, id="cab-1-2", state="closed", end=NOW + 9))
    clip, nobody = tmp_path / "clips" / "d" / "cab-1-1.mp4", tmp_path / "thumbnails" / "nobody.jpg"
    for path in (clip, nobody, tmp_path / "clips" / "d" / "cab-1-2.mp4.part"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with kept(tmp_path):
        pass
    other, row = stores.events(tmp_path)
    assert (other["clip"], other["end"]) == ("clips/d/cab-1-2.mp4", NOW + 9)  # it plays as far as it was written
    assert (row["clip"], row["state"], row["end"]) == ("clips/d/cab-1-1.mp4", "closed", NOW + 3)
    assert not nobody.exists()
    assert not list(tmp_path.rglob("*.part"))


def test_a_killed_writer_leaves_every_row_that_was_on_disk(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom stillwatch.rules import Event\n"
        "from stillwatch.watch.plan import Keep\nfrom stillwatch.watch.store import Store\n"
        f"it = Store(Keep(folder=Path({str(tmp_path)!r})))\n"
        "n = 0\nwhile True:\n"
        "    it.put(Event(f'e{n}', 'c', 'k', None, 'warn', 'opened', 1.0, 1.0, 1.0, None, 0.5, 'w'))\n"
        "    while it.waiting: time.sleep(0.0005)\n"
        "    print(n, flush=True)\n    n += 1\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 20:
                process.kill()
                break
    with kept(tmp_path):
        assert {f"e{n}" for n in range(21)} <= {row["id"] for row in stores.events(tmp_path, limit=9999)}


def test_a_database_of_the_first_version_is_brought_to_this_one(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "events.db")) as db:
        db.executescript(stores.MIGRATIONS[0] + "PRAGMA user_version = 1;")
        db.execute(
            'INSERT INTO events (id, camera, kind, level, state, start, opened, updated, "end", peak, words)'
            " VALUES ('old', 'cab', 'phone', 'warn', 'closed', 1, 2, 3, 4, 0.5, 'from before')"
        )
        db.commit()
    with kept(tmp_path, LOG) as it:
        it.put(EVENT)
    assert [row["id"] for row in stores.events(tmp_path)] == ["cab-1-1", "old"]
    assert outbox(tmp_path) == [("cab-1-1", "log", "reached")]


def test_a_newer_database_and_a_folder_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "events.db")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(Mistake, match=r"written by a newer stillwatch \(schema 99\)"):
        Store(Keep(folder=tmp_path))
    (tmp_path / "file").write_text("x")
    with pytest.raises(Mistake, match="events cannot be kept there"):
        Store(Keep(folder=tmp_path / "file"))
    with pytest.raises(Mistake, match="no events are kept there"):
        stores.events(tmp_path / "nowhere")


def test_negatives_are_a_picture_a_second_of_the_clip_or_the_thumbnail(tmp_path: Path) -> None:
    with kept(tmp_path) as it:
        it.put(EVENT)
        it.attach(EVENT.id, clip=video(tmp_path / "clips" / "a.mp4", 30, fps=10))
        it.put(replace(EVENT, id="other"))
        it.attach("other", thumbnail=b"\xff\xd8p")
    assert stores.negatives(tmp_path, EVENT.id, "Safe") == 3
    assert stores.negatives(tmp_path, EVENT.id, "Safe") == 3  # filed once, however often it is said
    assert stores.negatives(tmp_path, "other", "Safe") == 1
    assert len(list((tmp_path / "negatives" / "Safe" / "cab").iterdir())) == 4
    with pytest.raises(Mistake, match="nobody: no such event"):
        stores.negatives(tmp_path, "nobody", "Safe")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5, unique=True))
def test_any_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    folder = tmp_path_factory.mktemp("store")
    with kept(folder) as it:
        for n, text in enumerate(words):
            it.put(replace(EVENT, id=f"e{n}", words=text, label=text))
    rows = stores.events(folder)
    assert [row["words"] for row in rows] == words[::-1]
    assert json.loads(json.dumps(rows)) == rows
