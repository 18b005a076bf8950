"""Shelf: the clips, thumbnails and negatives that lie beside the database: taken up, kept within bounds, filed.

In: the folder and a connection that may write. Out: files and their mention in a row, always together.
Called by the store's writer, and by the page for negatives. A clip that is being written (.part) is not touched.
"""

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stillwatch.atomic import atomic
from stillwatch.errors import UserError
from stillwatch.monitor.config import Keep
from stillwatch.monitor.events import database

SUFFIX = {"clips": ".mp4", "thumbnails": ".jpg"}
FOLDERS = (*SUFFIX, "negatives")
STEP = 20  # files that one sweep removes at most before the writer looks for something to write again
ROOM = 8_000_000  # bytes that are made free at once on a full disk


class Lying(NamedTuple):
    """A file of the shelf: its name in a row, epoch seconds of its last change, bytes."""

    name: str
    time: float
    size: int


def lying(folder: Path, part: str = "") -> list[Lying]:
    """Finished clips and thumbnails, the oldest first. part: ".part" lists the unfinished instead."""
    found = []
    for kind, suffix in SUFFIX.items():
        for place, _, names in os.walk(folder / kind):  # a folder that is gone, or may not be read, holds none
            for name in names:
                path = Path(place) / name
                if name.endswith(suffix + part) and not name.startswith("."):
                    with contextlib.suppress(OSError):
                        about = path.stat()
                        found.append(Lying(path.relative_to(folder).as_posix(), about.st_mtime, about.st_size))
    return sorted(found, key=lambda one: one.time)


def thumbnail(db: sqlite3.Connection, folder: Path, id: str, jpeg: bytes) -> None:
    """Write an event's picture and its mention. An event that is not there has none. Raises OSError, sqlite3.Error."""
    found = db.execute("SELECT opened FROM events WHERE id = ?", (id,)).fetchone()
    if found is None:
        return
    name = f"thumbnails/{time.strftime('%Y-%m-%d', time.localtime(found[0]))}/{id}.jpg"
    with atomic(folder / name) as draft:
        draft.write_bytes(jpeg)
    db.execute("UPDATE events SET thumbnail = ? WHERE id = ?", (name, id))


def recover_orphans(db: sqlite3.Connection, folder: Path, before: Sequence[str]) -> None:
    """After a kill: files without their row, rows without their file, and drafts.

    before: names that lay there before this watch began. A later one has its row on its way.
    """
    rows = {row["id"]: row for row in db.execute("SELECT id, clip, thumbnail FROM events")}
    mentioned = {name for row in rows.values() for name in (row["clip"], row["thumbnail"]) if name}
    found: list[tuple[str, str, str]] = []
    for name in before:
        with contextlib.suppress(OSError):  # a file that cannot be moved or removed keeps no watch from starting
            name = _whole(folder, name)
            id, column = Path(name).stem, "clip" if name.startswith("clips/") else "thumbnail"
            if name in mentioned:
                continue
            if id in rows and rows[id][column] is None:
                found.append((column, name, id))
            else:
                (folder / name).unlink(missing_ok=True)
    for column, name, id in found:
        db.execute(f"UPDATE events SET {column} = ? WHERE id = ?", (name, id))
    forget(db, [name for name in mentioned if not (folder / name).is_file()])
    with contextlib.suppress(OSError):
        for draft in (folder / "thumbnails").rglob(".*.jpg.*"):  # what atomic() did not come to rename
            draft.unlink(missing_ok=True)


def _whole(folder: Path, name: str) -> str:
    """The name of a clip that a kill left unfinished, now that it is taken for whole: it is fragmented, so it plays."""
    path = folder / name
    if path.suffix == ".part":
        path = path.rename(path.with_suffix("")) if path.stat().st_size else path
    return path.relative_to(folder).as_posix()


def forget(db: sqlite3.Connection, names: Sequence[str]) -> None:
    """No row mentions these files any more."""
    for start in range(0, len(names), 500):
        some = names[start : start + 500]
        marks = ", ".join("?" * len(some))
        db.execute(f"UPDATE events SET clip = NULL WHERE clip IN ({marks})", some)
        db.execute(f"UPDATE events SET thumbnail = NULL WHERE thumbnail IN ({marks})", some)


def sweep(db: sqlite3.Connection, keep: Keep, now: float | None = None, aged: bool = True) -> int:
    """Remove what is too old or too much, files and their mention together; how many files: STEP at most.

    aged: whether the clock can be trusted, without which nothing is too old.
    """
    now = time.time() if now is None else now
    files = lying(keep.folder)
    total = sum(one.size for one in files)
    free = shutil.disk_usage(keep.folder).free
    going: list[str] = []
    for one in files[:STEP]:
        old = aged and one.time < now - 86400 * keep.days
        if not (old or total > 1e9 * keep.gigabytes or free < 1e9 * keep.free):
            break
        going.append(one.name)
        total, free = total - one.size, free + one.size
    if going:
        with db:  # first the rows: a kill in between leaves files that the next start takes up again
            db.execute("BEGIN IMMEDIATE")
            forget(db, going)
        for name in going:
            (keep.folder / name).unlink(missing_ok=True)
    return len(going)


def full(folder: Path) -> bool:
    """Whether the disk is full, whatever SQLite called it: a log that cannot grow is an I/O error to it."""
    try:
        return shutil.disk_usage(folder).free < ROOM // 32
    except OSError:
        return False


def make_room(folder: Path) -> list[str]:
    """On a disk that is full: remove the oldest files, a little at a time; their names, for forget()."""
    gone: list[str] = []
    freed = 0
    for one in lying(folder)[:STEP]:
        if freed >= ROOM:
            break
        with contextlib.suppress(OSError):
            (folder / one.name).unlink(missing_ok=True)
            gone.append(one.name)
            freed += one.size
    return gone


def negatives(folder: Path, event_id: str, label: str) -> int:
    """File an event's frames as pictures of `label`, for data.negatives: one a second of its clip, else its thumbnail.

    Returns how many of it lie in folder/negatives/<label>/<camera>/ now. Raises UserError where the event is not there,
    or for a label that cannot be a folder's name.
    """
    row = database.event(folder, event_id)
    if row is None:
        raise UserError(f"{event_id}: no such event")
    if not label or label.startswith(".") or "/" in label or "\\" in label or not label.isprintable():
        raise UserError(f"label = {label!r}: cannot be a folder's name; give one of the bundle's labels")
    shelf = folder / "negatives" / label / row["camera"]
    shelf.mkdir(parents=True, exist_ok=True)
    filed = 0
    if row["clip"] and (folder / row["clip"]).is_file():
        import cv2

        from stillwatch.monitor.cameras.source import frames

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
