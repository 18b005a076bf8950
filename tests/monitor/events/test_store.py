"""What is remembered: rows survive a locked database, a full disk, a kill, and rows that nothing can write."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from event_toys import EVENT, LOG, NOW, kept, outbox, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import video

from stillwatch.errors import UserError
from stillwatch.monitor.config import Keep, Sink
from stillwatch.monitor.events import database, media_files
from stillwatch.monitor.events import store as stores
from stillwatch.monitor.events.store import Store
from stillwatch.rules.events import Event


def test_an_event_is_one_row_through_its_life(tmp_path: Path) -> None:
    with kept(tmp_path) as it:
        it.put(EVENT)
        it.put(replace(EVENT, level="alarm", state="raised", updated=NOW + 11, words="phone for 11 s"))
        it.put(replace(EVENT, level="alarm", state="closed", updated=NOW + 20, end=NOW + 19, words="over"))
    (row,) = database.events(tmp_path)
    assert row.as_dict() == {
        **EVENT.as_dict(), "level": "alarm", "state": "closed", "updated": NOW + 20, "end": NOW + 19, "words": "over",
        "clip": None, "thumbnail": None, "acknowledged": False, "verdict": None,
    }  # fmt: skip
    assert database.event(tmp_path, "cab-1-1") == row
    assert database.event(tmp_path, "nobody") is None


def test_clip_thumbnail_and_marks_stay_when_the_event_goes_on(tmp_path: Path) -> None:
    with kept(tmp_path) as it:
        it.put(EVENT)
        clip = video(tmp_path / "clips" / "day" / "cab-1-1.mp4", 10)
        it.attach(EVENT.id, clip=clip, thumbnail=b"\xff\xd8picture")
        it.mark(EVENT.id, acknowledged=True, verdict="false")
        it.put(replace(EVENT, state="closed", end=NOW + 9))
        until(lambda: not it.waiting)
        row = database.event(tmp_path, EVENT.id)
        assert row is not None
        assert (row.clip, row.acknowledged, row.verdict, row.state) == (
            "clips/day/cab-1-1.mp4", True, "false", "closed",
        )  # fmt: skip
        assert (tmp_path / row.thumbnail).read_bytes() == b"\xff\xd8picture"
        it.mark(EVENT.id, verdict=None)
        until(lambda: not it.waiting)
        again = database.event(tmp_path, EVENT.id)
        assert again is not None
        assert (again.acknowledged, again.verdict) == (True, None)


def test_who_is_told_of_what(tmp_path: Path) -> None:
    sinks = (
        Sink(name="all", to="log", level="notice"),
        Sink(name="bad", to="log", level="alarm"),
        Sink(name="yard", to="log", level="notice", cameras=("yard",)),
        Sink(name="sleep", to="log", level="notice", kinds=("sleep",)),
        Sink(name="more", to="log", level="warn", updates=True),
        Sink(name="ha", to={"name": "mqtt", "host": "h"}, level="warn"),  # it shows what is on, so it hears of the end
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
    assert told == [
        ("all", "reached"), ("more", "warn"), ("ha", "reached"), ("bad", "reached"), ("more", "alarm"),
        ("more", "closed"), ("ha", "closed"),
    ]  # fmt: skip


def test_a_locked_database_stops_nobody_and_loses_nothing(tmp_path: Path) -> None:
    with kept(tmp_path, LOG) as it:
        with contextlib.closing(database.connect(tmp_path, write=True)) as db:
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
    assert len(database.events(tmp_path, limit=100)) == len(outbox(tmp_path)) == 50


def test_a_full_database_takes_every_row_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own ceiling gives the very error of a full disk."""
    real, full = stores.connect, threading.Event()

    def opened(folder: Path, write: bool = False) -> sqlite3.Connection:
        db = real(folder, write)
        if write and full.is_set():
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages}")
        return db

    monkeypatch.setattr(stores, "connect", opened)
    full.set()
    with kept(tmp_path) as it:
        for n in range(400):
            it.put(replace(EVENT, id=f"e{n}", words="x" * 500))
        until(lambda: it.trouble is not None)
        assert "full" in str(it.trouble)
        full.clear()
        until(lambda: not it.waiting)
    assert len(database.events(tmp_path, limit=1000)) == 400


def test_memory_is_bounded_and_what_finds_no_room_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_JOBS", 10)
    with kept(tmp_path) as it, contextlib.closing(database.connect(tmp_path, write=True)) as db:
        db.execute("BEGIN IMMEDIATE")
        for n in range(15):
            it.put(replace(EVENT, id=f"e{n}"))
        assert (it.waiting, it.lost) == (10, 5)
        db.execute("ROLLBACK")


def test_a_close_while_the_database_is_locked_ends_in_time_and_says_what_was_lost(tmp_path: Path) -> None:
    it = Store(Keep(folder=tmp_path))
    with contextlib.closing(database.connect(tmp_path, write=True)) as db:
        db.execute("BEGIN IMMEDIATE")
        for n in range(3):
            it.put(replace(EVENT, id=f"e{n}"))
        it.close(0.2)
        it._thread.join(20)
        assert not it._thread.is_alive()
        assert (it.lost, it.waiting) == (3, 3)
        assert "3 rows or pictures were lost" in str(it.trouble)
        db.execute("ROLLBACK")


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (replace(EVENT, id="../../etc/x"), "cannot be an event's name"),
        (replace(EVENT, level="loud"), "not in tuple"),  # type: ignore[arg-type]
        (replace(EVENT, words=object()), "type 'object' is not supported"),  # type: ignore[arg-type]
        (replace(EVENT, camera=None), "NOT NULL constraint failed"),  # type: ignore[arg-type]
    ],
)
def test_a_row_that_nothing_can_write_stops_no_other(tmp_path: Path, event: Event, why: str) -> None:
    with kept(tmp_path, LOG) as it:
        it.put(replace(EVENT, id="before"))
        it.put(event)
        it.attach("before", clip=Path("/elsewhere/x.mp4"))
        it.put(replace(EVENT, id="after"))
        until(lambda: not it.waiting)
        assert it.lost == 2
        assert why in str(it.trouble)
        assert "\n" not in str(it.trouble)
    assert [row.id for row in database.events(tmp_path)] == ["after", "before"]
    assert [id for id, _, _ in outbox(tmp_path)] == ["before", "after"]


def test_half_letters_and_nan_are_kept_as_something_that_can_be(tmp_path: Path) -> None:
    with kept(tmp_path) as it:
        it.put(replace(EVENT, words="bad \udcff\0 name", peak=float("nan"), end=float("inf")))
    (row,) = database.events(tmp_path)
    assert (row.words, row.peak, row.end) == ("bad \\udcff\0 name", 0.0, 0.0)


def test_pictures_that_wait_are_bounded_and_hold_up_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_BYTES", 2500)
    real, away = media_files.write_thumbnail, threading.Event()

    def thumbnail(*given: Any) -> None:
        if not away.is_set():
            raise OSError(28, "No space left on device")
        real(*given)

    monkeypatch.setattr(media_files, "write_thumbnail", thumbnail)
    with kept(tmp_path) as it:
        for n in range(4):
            it.put(replace(EVENT, id=f"e{n}"))
            it.attach(f"e{n}", thumbnail=bytes(1000))
        until(lambda: it.waiting == 2)
        assert it.lost == 2
        assert len(database.events(tmp_path)) == 4
        assert "No space left" in str(it.trouble)
        away.set()
        until(lambda: not it.waiting)
    assert sum(row.thumbnail is not None for row in database.events(tmp_path)) == 2


def test_a_folder_is_one_watch_s_as_long_as_that_lives(tmp_path: Path) -> None:
    with kept(tmp_path) as it, pytest.raises(UserError, match="another watch keeps its events there"):
        it.put(EVENT)
        Store(Keep(folder=tmp_path))
    with kept(tmp_path):
        assert len(database.events(tmp_path)) == 1


def test_what_a_kill_cut_off_is_ended_and_said(tmp_path: Path) -> None:
    ends = Sink(name="ends", to="log", level="notice", updates=True)
    ha = Sink(name="ha", to={"name": "mqtt", "host": "h"}, level="notice")
    with kept(tmp_path, LOG, ends, ha) as it:
        it.put(EVENT)
    with kept(tmp_path, LOG, ends, ha):
        pass
    (row,) = database.events(tmp_path)
    assert (row.state, row.end, row.words) == ("closed", NOW + 3, "phone for 3 s; cut off")
    told = [(sink, change) for _, sink, change in outbox(tmp_path)]
    assert told == [("log", "reached"), ("ends", "warn"), ("ha", "reached"), ("ends", "closed"), ("ha", "closed")]


def test_a_burst_is_few_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, real = [], stores.transaction
    monkeypatch.setattr(stores, "transaction", lambda db: count.append(1) or real(db))  # type: ignore[func-returns-value]
    with kept(tmp_path, LOG) as store:
        with contextlib.closing(database.connect(tmp_path, write=True)) as db:
            db.execute("BEGIN IMMEDIATE")
            for n in range(600):
                store.put(replace(EVENT, id=f"e{n}"))
            db.execute("ROLLBACK")
        until(lambda: not store.waiting)
    assert len(database.events(tmp_path, limit=1000)) == 600
    assert len(count) < 20


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["file", "folder", "replaced", "cut short", "emptied"])
def test_a_database_that_goes_away_is_begun_anew_with_what_is_open(tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "kept"
    with kept(folder, LOG) as store:
        store.put(replace(EVENT, id="over", state="closed", end=NOW + 9))
        store.put(replace(EVENT, id="open"))
        until(lambda: not store.waiting)
        path = folder / "events.db"
        if harm == "folder":
            shutil.rmtree(folder)
        elif harm == "replaced":
            with contextlib.closing(sqlite3.connect(tmp_path / "other")) as other:
                other.execute("CREATE TABLE strange (x)")
            shutil.move(tmp_path / "other", path)
        elif harm == "file":
            path.unlink()
        else:
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.execute("PRAGMA wal_checkpoint")
            until(lambda: store._file[2] > 5000)
            os.truncate(path, 5000 if harm == "cut short" else 0)
        until(lambda: store.trouble)
        assert "removed or replaced while running" in str(store.trouble)
        store.put(replace(EVENT, id="new"))
        until(lambda: not store.waiting)
        assert {"open", "new"} <= {row.id for row in database.events(folder)}
        assert [event for event, _, _ in outbox(folder)] == ["open", "new"]
        assert store.lost == 0
        with pytest.raises(UserError, match="another watch"):
            Store(Keep(folder=folder))


# --- a real disk that is full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 5 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(path: Path) -> None:
    """Whatever else writes to that disk."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_on_a_full_disk_rows_wait_and_come(disk: Path) -> None:
    with kept(disk / "kept", LOG) as it:
        fill(disk / "other")
        for n in range(300):
            it.put(replace(EVENT, id=f"e{n}", words="x" * 2000))
            it.attach(f"e{n}", thumbnail=bytes(2000))
        until(lambda: it.trouble is not None)
        assert it.waiting
        (disk / "other").unlink()
        until(lambda: not it.waiting, 40)
        assert (it.trouble, it.lost) == (None, 0)
    rows = database.events(disk / "kept", limit=1000)
    assert {row.id for row in rows} == {f"e{n}" for n in range(300)}
    assert all((disk / "kept" / row.thumbnail).stat().st_size == 2000 for row in rows)
    assert len(outbox(disk / "kept")) == 300


def test_a_watch_starts_on_a_full_disk(disk: Path) -> None:
    fill(disk / "other")
    with kept(disk / "kept") as it:
        assert it.trouble is not None
        it.put(EVENT)
        (disk / "other").unlink()
        until(lambda: not it.waiting)
    assert [row.id for row in database.events(disk / "kept")] == [EVENT.id]


def test_the_oldest_clips_make_room_and_are_mentioned_no_more(disk: Path) -> None:
    with kept(disk / "kept", free=0) as it:
        for n in range(4):
            clip = disk / "kept" / "clips" / f"c{n}.mp4"
            clip.write_bytes(bytes(300_000))
            os.utime(clip, (NOW + n, NOW + n))
            it.put(replace(EVENT, id=f"c{n}"))
            it.attach(f"c{n}", clip=clip)
        until(lambda: not it.waiting)
        (disk / "kept" / "clips" / "now.mp4.part").write_bytes(bytes(100_000))
        fill(disk / "other")  # and it stays so
        for n in range(50):
            it.put(replace(EVENT, id=f"e{n}", words="x" * 5000))
        until(lambda: not it.waiting, 40)
        until(lambda: it.trouble is None)
        rows = {row.id: row for row in database.events(disk / "kept", limit=1000)}
    assert len(rows) == 54
    assert (disk / "kept" / "clips" / "now.mp4.part").is_file()
    assert rows["c0"].clip is None
    assert all(row.clip is None or (disk / "kept" / row.clip).is_file() for row in rows.values())


def test_a_killed_writer_leaves_every_row_that_was_on_disk(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom stillwatch.rules.events import Event\n"
        "from stillwatch.monitor.config import Keep\nfrom stillwatch.monitor.events.store import Store\n"
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
        assert {f"e{n}" for n in range(21)} <= {row.id for row in database.events(tmp_path, limit=9999)}


ANY = st.text(st.characters(exclude_categories=[]), max_size=60)  # also halves of surrogate pairs, and NUL


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(ANY, min_size=1, max_size=5, unique=True))
def test_any_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    folder = tmp_path_factory.mktemp("store")
    with kept(folder) as it:
        for n, text in enumerate(words):
            it.put(replace(EVENT, id=f"e{n}", words=text, label=text))
        until(lambda: not it.waiting)
        assert it.lost == 0
    rows = database.events(folder)
    assert [row.words for row in rows] == [database.storable(text) for text in words[::-1]]
    assert json.loads(json.dumps([row.as_dict() for row in rows])) == [row.as_dict() for row in rows]
    for text in words:  # only what no file can hold is changed
        assert (database.storable(text) == text) == (not any("\ud800" <= c <= "\udfff" for c in text))
