"""Files go by age and by size, their mention with them; what a kill left is taken up; what is being written stays."""

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from event_toys import EVENT, NOW, kept, until
from toys import video

from stillwatch.errors import UserError
from stillwatch.monitor.config import Keep
from stillwatch.monitor.events import database, media_files
from stillwatch.monitor.events import store as stores


def swept(keep: Keep, aged: bool = True) -> int:
    with contextlib.closing(database.connect(keep.folder, write=True)) as db:
        return media_files.sweep(db, keep, aged)


def lay(path: Path, days: float = 0.0, size: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - 86400 * days,) * 2)
    return path


def test_files_go_by_age_then_by_size_with_their_mention(tmp_path: Path) -> None:
    keep = Keep(folder=tmp_path, days=1, gigabytes=2.5e-6, free=0)
    with kept(tmp_path) as it:
        for n, days in enumerate((3, 0.5, 0.4, 0.3)):
            it.put(replace(EVENT, id=f"e{n}"))
            it.attach(f"e{n}", clip=lay(tmp_path / "clips" / f"e{n}.mp4", days))
        until(lambda: not it.waiting)
        lay(tmp_path / "clips" / "now.mp4.part", 9)
        lay(tmp_path / "thumbnails" / "d" / ".now.jpg.17", 9)
        assert swept(keep) == 2  # one is too old, one too much
        assert swept(keep) == 0
        rows = database.events(tmp_path)
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["e2.mp4", "e3.mp4", "now.mp4.part"]
    assert [row.clip for row in rows] == ["clips/e3.mp4", "clips/e2.mp4", None, None]


def test_a_sweep_is_a_small_step_and_the_next_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Keep(folder=tmp_path, days=1, free=0)
    with kept(tmp_path):
        for n in range(media_files.STEP + 5):
            lay(tmp_path / "clips" / f"e{n}.mp4", 3)
        assert swept(keep, aged=False) == 0  # a clock that is not trusted makes nothing old
        assert [swept(keep), swept(keep), swept(keep)] == [media_files.STEP, 5, 0]
    for n in range(media_files.STEP + 5):
        lay(tmp_path / "clips" / f"e{n}.mp4", 3)
    monkeypatch.setattr(stores, "SWEEP", 0.05)
    monkeypatch.setattr(stores, "START", 0.0)
    with kept(tmp_path, days=1, free=0) as it:
        assert it.trouble is None
        until(lambda: not list((tmp_path / "clips").iterdir()))  # by the writer itself


@pytest.mark.slow
def test_a_clock_that_jumps_ahead_makes_nothing_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, ahead = time.time, [0.0]
    monkeypatch.setattr(stores, "START", 0.0)
    monkeypatch.setattr(stores, "SWEEP", 0.02)
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])
    with kept(tmp_path, days=1, free=0) as it:
        ahead[0] = 86400.0 * 3650
        it.put(EVENT)
        it.attach(EVENT.id, thumbnail=b"p")
        until(lambda: not it.waiting)
        sweeps = []
        sweep = media_files.sweep
        monkeypatch.setattr(media_files, "sweep", lambda db, keep, aged: sweeps.append(aged) or sweep(db, keep, aged))
        until(lambda: len(sweeps) > 3)
        assert not any(sweeps)
        assert len(list((tmp_path / "thumbnails").rglob("*.jpg"))) == 1


def test_after_a_kill_what_lies_there_is_taken_up_or_removed(tmp_path: Path) -> None:
    with kept(tmp_path) as it:
        it.put(EVENT)
        it.put(replace(EVENT, id="cab-1-2", state="closed", end=NOW + 9))
        it.put(replace(EVENT, id="cab-1-3", state="closed", end=NOW + 9))
        it.attach("cab-1-3", clip=lay(tmp_path / "clips" / "d" / "cab-1-3.mp4"))
    (tmp_path / "clips" / "d" / "cab-1-3.mp4").unlink()  # by somebody
    whole = lay(tmp_path / "clips" / "d" / "cab-1-1.mp4")
    lay(tmp_path / "clips" / "d" / "cab-1-2.mp4.part")
    lay(tmp_path / "clips" / "d" / "cab-1-4.mp4.part", size=0)
    lay(tmp_path / "thumbnails" / "d" / "cab-1-1.jpg")
    for nobody in ("thumbnails/nobody.jpg", "clips/d/nobody.mp4", "thumbnails/d/.cab-1-2.jpg.4711"):
        lay(tmp_path / nobody)
    with kept(tmp_path):
        pass
    three, two, one = database.events(tmp_path)
    assert (two.clip, two.end) == ("clips/d/cab-1-2.mp4", NOW + 9)  # it plays as far as it was written
    assert (one.clip, one.state, one.end) == ("clips/d/cab-1-1.mp4", "closed", NOW + 3)
    assert one.thumbnail == "thumbnails/d/cab-1-1.jpg"
    assert three.clip is None
    files = {
        path.relative_to(tmp_path).as_posix() for kind in media_files.SUFFIX for path in (tmp_path / kind).rglob("*.*")
    }
    assert files == {"clips/d/cab-1-1.mp4", "clips/d/cab-1-2.mp4", "thumbnails/d/cab-1-1.jpg"}
    assert whole.is_file()


def test_what_is_filmed_while_the_database_is_still_locked_is_no_orphan(tmp_path: Path) -> None:
    with kept(tmp_path) as it:
        it.put(replace(EVENT, id="before", state="closed", end=NOW))
    lay(tmp_path / "clips" / "before.mp4.part")
    with contextlib.closing(database.connect(tmp_path, write=True)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with kept(tmp_path) as it:
            assert "locked" in str(it.trouble)
            it.put(EVENT)
            it.attach(EVENT.id, clip=lay(tmp_path / "clips" / f"{EVENT.id}.mp4"))
            lay(tmp_path / "clips" / "cab-1-2.mp4.part")
            db.execute("ROLLBACK")
            until(lambda: not it.waiting)
    row, before = database.events(tmp_path)
    assert (row.clip, row.state) == (f"clips/{EVENT.id}.mp4", "opened")
    assert before.clip == "clips/before.mp4"
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert names == ["before.mp4", f"{EVENT.id}.mp4", "cab-1-2.mp4.part"]


def test_room_is_made_a_little_at_a_time_and_never_from_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_files, "ROOM", 1500)
    for n in range(5):
        lay(tmp_path / "clips" / f"e{n}.mp4", 5 - n)
    lay(tmp_path / "clips" / "now.mp4.part", 9)
    assert media_files.make_room(tmp_path) == ["clips/e0.mp4", "clips/e1.mp4"]
    assert [one.name for one in media_files.media_files(tmp_path)] == ["clips/e2.mp4", "clips/e3.mp4", "clips/e4.mp4"]
    assert [one.name for one in media_files.media_files(tmp_path, ".part")] == ["clips/now.mp4.part"]


def test_negatives_are_a_picture_a_second_of_the_clip_or_the_thumbnail(tmp_path: Path) -> None:
    with kept(tmp_path) as it:
        it.put(EVENT)
        it.attach(EVENT.id, clip=video(tmp_path / "clips" / "a.mp4", 30, fps=10))
        it.put(replace(EVENT, id="other"))
        it.attach("other", thumbnail=b"\xff\xd8p")
    other, event = database.events(tmp_path)
    assert media_files.file_negatives(tmp_path, event, "Safe") == 3
    assert media_files.file_negatives(tmp_path, event, "Safe") == 3  # filed once, however often it is said
    assert media_files.file_negatives(tmp_path, other, "Safe") == 1
    assert len(list((tmp_path / "negatives" / "Safe" / "cab").iterdir())) == 4
    with pytest.raises(UserError, match="cannot be a folder's name"):
        media_files.file_negatives(tmp_path, event, "../../elsewhere")
