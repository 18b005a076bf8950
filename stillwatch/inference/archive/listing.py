"""What lies in an archive, by path, cut into shards: one folder in memory at a time."""

import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from stillwatch.atomic import atomic
from stillwatch.errors import UserError
from stillwatch.inference.archive.table import parquet
from stillwatch.media import decode

SHARD = 512  # pictures, or as much work in films, in a shard at most: what a kill can cost a worker
HEAVY = 64 << 10  # bytes of a film that count as one picture
PIECES = 16  # of one film at most: the worker of each reads the whole file's index of frames
ROWS = 1 << 16  # of a list's part that is in memory at once


class File(NamedTuple):
    """As planned; a long film comes in several pieces."""

    path: str  # relative, with "/"
    size: int = 0  # bytes
    mtime: int = 0  # ns; of a URL a number that changes when its store tells something else of the file
    odd: str = ""  # why it is not read
    piece: int = 0
    pieces: int = 1


def listing(folder: Path, clips: bool = False) -> Iterator[File]:
    """Pictures and films by path, without dot names. clips: pictures are odd."""
    for path, about in _walk(folder, ""):
        kind = os.path.splitext(path)[1].lower()  # noqa: PTH122  # a Path for each of a million names takes seconds
        if kind in decode.NOT_READ:
            yield File(path, odd=f"{kind} is not a kind of picture that is read: {' '.join(decode.PICTURES)}")
        elif kind in decode.PICTURES and clips:
            yield File(path, odd="a single picture: this net looks at clips")
        elif kind in (*decode.PICTURES, *decode.VIDEOS):
            try:
                size, mtime = about()
            except OSError as error:
                yield File(path, odd=f"cannot be read: {error.strerror}" if error.errno else str(error))
                continue
            pieces = 1 if kind in decode.PICTURES else max(1, min(PIECES, size // HEAVY // SHARD))
            for piece in range(pieces):
                yield File(path, size, mtime, "", piece, pieces)


def _walk(folder: Path, above: str) -> Iterator[tuple[str, partial[tuple[int, int]]]]:
    """Each file's path, and what tells its (size, mtime)."""
    found = list[tuple[str, partial[tuple[int, int]]]]()  # a folder's name ends in "/": so names sort as whole paths do
    try:
        if isinstance(folder, Path):
            with os.scandir(folder / above) as entries:
                for entry in entries:
                    if not (inner := entry.is_dir()) or not entry.is_symlink():
                        found.append((entry.name + "/" * inner, partial(_stat, entry)))
        else:
            for told in folder.fs.ls((folder / above).path, detail=True):
                key = told["name"].rstrip("/").rpartition("/")[2] + "/" * (told["type"] == "directory")
                found.append((key, partial(_told, told)))
    except OSError as error:
        if not above:
            raise UserError(f"{folder}: cannot be read: {error.strerror or error}") from None
        return  # somebody else's folder
    for key, about in sorted(found, key=lambda entry: entry[0]):
        if key.endswith("/") and key[0] != ".":
            yield from _walk(folder, above + key)
        elif key[0] != ".":
            yield above + key, about


def _stat(entry: "os.DirEntry[str]") -> tuple[int, int]:
    about = entry.stat()
    if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for
        raise OSError("not a file")
    return about.st_size, about.st_mtime_ns


def _told(info: dict[str, object]) -> tuple[int, int]:
    size = info.get("size")
    return size if isinstance(size, int) else 0, zlib.crc32(repr(sorted(info.items())).encode())


def cut(found: Iterable[File]) -> Iterator[tuple[File, ...]]:
    """Cut by file names: a new file changes only its own shard."""
    mine, heavy = list[File](), 0.0
    for file in found:
        mine.append(file)
        heavy += weight(file)
        # one name in SHARD / 4 ends a shard, by chance but always the same ones
        if heavy >= SHARD or (heavy >= SHARD / 8 and zlib.crc32(os.fsencode(file.path)) % (SHARD // 4) == 0):
            yield tuple(mine)
            mine, heavy = [], 0.0
    if mine:
        yield tuple(mine)


def weight(file: File) -> float:
    film = file.path.lower().endswith(decode.VIDEOS)
    return max(1.0, file.size / HEAVY / file.pieces) if film else 1.0


# ---- the list as a file, which the jobs of an array share


def save(path: Path, shards: Iterable[tuple[File, ...]]) -> int:
    """Parquet, a row a file. Returns the number of shards. Raises UserError."""
    pa, pq = parquet()
    whole, text = [pa.int32(), pa.binary(), pa.int64(), pa.int64()], [pa.string(), pa.int16(), pa.int16()]
    kind = pa.schema(list(zip(("shard", *File._fields), whole + text, strict=True)))
    number, rows = -1, list[tuple[int, bytes, int, int, str, int, int]]()
    with atomic(path) as draft, pq.ParquetWriter(draft, kind, compression="zstd") as table:

        def flush() -> None:
            columns = zip(*rows, strict=True)
            table.write_table(pa.table([list(column) for column in columns], schema=kind))
            rows.clear()

        for number, shard in enumerate(shards):
            rows += [(number, os.fsencode(file.path), *file[1:]) for file in shard]
            if len(rows) >= ROWS:  # whole shards
                flush()
        if rows:
            flush()
    return number + 1


def load(path: Path, share: int = 0, of: int = 1) -> Iterator[tuple[File, ...]]:
    """Every `of`th shard of a saved list, from the `share`th on."""
    _, pq = parquet()
    with path.open("rb") as file, pq.ParquetFile(file) as table:
        for number in range(table.num_row_groups):
            part = table.read_row_group(number)
            part = part.filter((part["shard"].to_numpy() % of) == share)
            rows = zip(*(part[name].to_pylist() for name in part.column_names), strict=True)
            for _, shard in groupby(rows, key=lambda row: row[0]):
                yield tuple(File(os.fsdecode(name), *rest) for _, name, *rest in shard)
