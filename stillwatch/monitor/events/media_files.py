"""Clips, thumbnails and negatives: recovered after a kill, kept within bounds, never while being written (.part)."""

import json
import re
import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stillwatch.atomic import atomic
from stillwatch.errors import UserError
from stillwatch.monitor.config import Keep

if TYPE_CHECKING:
    from stillwatch.monitor.events.database import StoredEvent

SUFFIX = {"clips": ".mp4", "thumbnails": ".jpg"}
FOLDERS = (*SUFFIX, "negatives")
STEP = 20  # files that one sweep removes at most before the writer looks for something to write again
ROOM = 8_000_000  # bytes that are made free at once on a full disk


class MediaFile(NamedTuple):
    """name: path in a row; time: epoch seconds; size: bytes."""

    name: str
    time: float
    size: int


def media_files(folder: Path, part: str = "") -> list[MediaFile]:
    """Clips and thumbnails, oldest first. part=".part": unfinished ones."""
    found = []
    for kind, suffix in SUFFIX.items():
        for path in (folder / kind).rglob(f"[!.]*{suffix}{part}"):  # a folder that may not be read holds none
            with suppress(OSError):
                status = path.stat()
                found.append(MediaFile(path.relative_to(folder).as_posix(), status.st_mtime, status.st_size))
    return sorted(found, key=lambda file: file.time)


def write_thumbnail(db: sqlite3.Connection, folder: Path, id: str, jpeg: bytes) -> None:
    row = db.execute("SELECT opened FROM events WHERE id = ?", (id,)).fetchone()
    if row is None:
        return
    name = f"thumbnails/{time.strftime('%Y-%m-%d', time.localtime(row['opened']))}/{id}.jpg"
    with atomic(folder / name) as draft:
        draft.write_bytes(jpeg)
    db.execute("UPDATE events SET thumbnail = ? WHERE id = ?", (name, id))


def recover_orphans(db: sqlite3.Connection, folder: Path, before: Sequence[str]) -> None:
    """After a kill: add files that no row mentions, forget missing ones, remove old drafts."""
    rows = {row["id"]: row for row in db.execute("SELECT id, clip, thumbnail FROM events")}
    mentioned = {name for row in rows.values() for name in (row["clip"], row["thumbnail"]) if name}
    for name in before:
        with suppress(OSError):  # a file that cannot be moved or removed must not keep a watch from starting
            path = folder / name
            if path.suffix == ".part" and path.stat().st_size:  # a fragmented MP4 plays as far as it was written
                path = path.rename(path.with_suffix(""))
            name, id = path.relative_to(folder).as_posix(), path.stem
            column = "clip" if name.startswith("clips/") else "thumbnail"
            if name in mentioned:
                continue
            if id in rows and rows[id][column] is None:
                db.execute(f"UPDATE events SET {column} = ? WHERE id = ?", (name, id))
            else:
                path.unlink(missing_ok=True)
    forget(db, [name for name in mentioned if not (folder / name).is_file()])
    with suppress(OSError):
        for draft in (folder / "thumbnails").rglob(".*.jpg.*"):  # what atomic() had no time to rename
            draft.unlink(missing_ok=True)


def forget(db: sqlite3.Connection, names: Sequence[str]) -> None:
    for column in ("clip", "thumbnail"):
        db.execute(
            f"UPDATE events SET {column} = NULL WHERE {column} IN (SELECT value FROM json_each(?))",
            (json.dumps(names),),
        )


def sweep(db: sqlite3.Connection, keep: Keep, aged: bool) -> int:
    """Remove at most the STEP oldest files, too old (if `aged`) or too much; returns how many."""
    files, now = media_files(keep.folder), time.time()
    total, free = sum(file.size for file in files), shutil.disk_usage(keep.folder).free
    removed: list[str] = []
    for file in files[:STEP]:
        old = aged and file.time < now - 86400 * keep.days
        if not (old or total > 1e9 * keep.gigabytes or free < 1e9 * keep.free):
            break
        removed.append(file.name)
        total, free = total - file.size, free + file.size
    if removed:
        with db:  # first the rows: a kill in between leaves files that the next start recovers
            db.execute("BEGIN IMMEDIATE")
            forget(db, removed)
        for name in removed:
            (keep.folder / name).unlink(missing_ok=True)
    return len(removed)


def disk_full(folder: Path) -> bool:
    """SQLite may call it an I/O error."""
    try:
        return shutil.disk_usage(folder).free < ROOM // 32
    except OSError:
        return False


def make_room(folder: Path) -> list[str]:
    """Remove about ROOM bytes of the oldest files; returns their names."""
    removed: list[str] = []
    freed = 0
    for file in media_files(folder)[:STEP]:
        if freed >= ROOM:
            break
        with suppress(OSError):
            (folder / file.name).unlink(missing_ok=True)
            removed.append(file.name)
            freed += file.size
    return removed


def file_negatives(folder: Path, event: "StoredEvent", label: str) -> int:
    """File an event's frames, one a second, or its thumbnail as pictures of `label`; returns how many. Raises
    UserError.
    """
    if not label or label.startswith(".") or "/" in label or "\\" in label or not label.isprintable():
        raise UserError(f"label = {label!r}: cannot be a folder's name; give one of the bundle's labels")
    target = folder / "negatives" / label / event.camera
    target.mkdir(parents=True, exist_ok=True)
    filed = 0
    if event.clip and (folder / event.clip).is_file():
        import cv2

        from stillwatch.monitor.cameras.source import frames

        for seconds, image in frames(str(folder / event.clip), fps=1.0):
            done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
            if done:
                with atomic(target / f"{event.id}-{round(seconds):03d}.jpg") as draft:
                    draft.write_bytes(jpeg.tobytes())
                filed += 1
    elif event.thumbnail and (folder / event.thumbnail).is_file():
        with atomic(target / f"{event.id}.jpg") as draft:
            shutil.copyfile(folder / event.thumbnail, draft)
        filed = 1
    return filed


def remove_negatives(folder: Path, event: "StoredEvent") -> None:
    own = re.compile(rf"{re.escape(event.id)}(-\d{{3,}})?\.jpg")
    for path in (folder / "negatives").glob(f"*/{event.camera}/*.jpg"):
        if own.fullmatch(path.name):
            path.unlink(missing_ok=True)
