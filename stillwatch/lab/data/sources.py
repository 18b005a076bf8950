"""Sources: a folder -> one Sample a picture or clip, or why it is left out. Decodes no pixel."""

import csv
import gzip
import io
import itertools
import math
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stillwatch.errors import UserError, nearest
from stillwatch.media import synthetic
from stillwatch.media.decode import NOT_READ, PICTURES, VIDEOS, looks, sampled, times_of, windows
from stillwatch.media.points import Face
from stillwatch.recipe import Data
from stillwatch.registry import Table

Count: TypeAlias = Annotated[int, Field(ge=0)]
Box: TypeAlias = tuple[int, int, int, int]  # x1,y1,x2,y2 in pixels
# Samples of one file -> each one's uint8 (H,W[,3]), or why there is none
PixelReader: TypeAlias = Callable[[Sequence["Sample"]], Iterable[tuple["Sample", NDArray[np.uint8] | str]]]

SPLITS = ("train", "valid", "test")
NO_LABEL = "unlabelled"  # stands for the label of a sample that has none
SPARSE = 2.0  # frames or looks a second of films without labels
SPLIT_NAMES = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
ANNOTATION = re.compile(r"(.*\S)\s+(-?\d{1,9}),(-?\d{1,9}),(-?\d{1,9}),(-?\d{1,9}),(\d{1,9})", re.ASCII)
ROBOFLOW = re.compile(r"_(?:jpe?g|png|bmp|webp)\.rf\.\w+$", re.ASCII | re.IGNORECASE)  # what it puts behind a name
FILM = re.compile(r"(.+_(?:mp4|avi|mov|mkv|webm|m4v|mpe?g))[-_](\d{1,15})", re.ASCII | re.IGNORECASE)
BOX = re.compile(r"[\s,]\s*".join([r"(-?\d{1,9}(?:\.\d+)?)"] * 4))


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture, or one window of T frames of a clip."""

    id: str  # unique and stable: path relative to root with "/", and "#<number>" for a frame or a row
    path: Path  # the file that holds the pixels
    label: str
    group: str = ""  # who, or which camera; "" when unknown
    split: str = ""  # "train" | "valid" | "test"; "" where the source has no official one
    sequence: str = ""  # the recording that it comes from; "" when unknown
    time: float = 0.0  # order within the sequence: frame number or seconds
    frames: tuple[int, ...] = ()  # videos: the T frame numbers; idx: (row,); toy: (number,); pictures: ()
    box: Box | None = None
    older: tuple[Path, ...] = ()  # pictures: the files of a look before this one, oldest first
    negative: bool = False  # a false alarm that a camera filed: for training only
    read: PixelReader | None = field(default=None, compare=False)  # None: a clip if it has frames, else a picture file
    face: Callable[[], Face] | None = field(default=None, compare=False)  # toy: how the face in it was drawn


@dataclass(frozen=True, slots=True)
class Skipped:
    file: str
    reason: str


@dataclass
class Found:
    samples: list[Sample] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def driver_inattention(data: Data, labels: tuple[str, ...]) -> Found:
    """The public export: flat train/ valid/ test/, `_classes.txt`, `_annotations.txt` (FILE x1,y1,x2,y2,ID).

    Files are RECORDING-FRAME_jpg...; the frame is the time. Raises UserError.
    """
    found = Found()
    folders = [folder for folder in subfolders(data.root) if folder.name in SPLIT_NAMES]
    if not folders:
        raise UserError(f"data.root = '{data.root}': has none of the folders train, valid, test")
    for folder in folders:
        classes = _lines(folder / "_classes.txt")
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
        rows, named = [], set()
        for line in filter(None, _lines(folder / "_annotations.txt")):
            name, text, box = _annotation(line, classes)
            named.add(name)
            if box and not sizes.get(name):
                text, box = "empty file" if name in sizes else "missing file", None
            id = f"{folder.name}/{name}"
            if box:
                shot = re.match(r"(.+)-(\d+)_jpe?g", name)
                sequence, time = (shot[1], float(shot[2])) if shot else frame_of(name)
                rows.append(Sample(id, folder / name, text, "", SPLIT_NAMES[folder.name], sequence, time, box=box))
            else:
                found.skipped.append(Skipped(id, text))
        found.samples += _once(rows, found.skipped)
        found.skipped += [
            Skipped(f"{folder.name}/{name}", "no line in _annotations.txt")
            for name in sorted(sizes)
            if name.lower().endswith(PICTURES) and name not in named and not name.startswith(".")
        ]
    return found


def frame_of(name: str) -> tuple[str, float]:
    """(recording, frame) from Roboflow's RECORDING_mp4-17_jpg.rf.HASH.jpg; else ("", 0.0)."""
    shot = FILM.fullmatch(ROBOFLOW.sub("", Path(name).stem))
    return (shot[1], float(shot[2])) if shot else ("", 0.0)


def _annotation(line: str, classes: Sequence[str]) -> tuple[str, str, Box | None]:
    match = ANNOTATION.fullmatch(line)
    if not match:
        lone = line.lower().endswith(PICTURES)  # the name may hold spaces
        return (line, "line without a box", None) if lone else (line.split()[0], f"malformed line: {line[:80]!r}", None)
    name = match[1]
    if ANNOTATION.fullmatch(name):
        return name.split()[0], "more than one box", None
    x1, y1, x2, y2, number = map(int, match.groups()[1:])
    if x2 <= x1 or y2 <= y1:
        return name, f"box {x1},{y1},{x2},{y2} holds no pixel", None
    if number >= len(classes) or not classes[number]:
        return name, f"class id {number} is not in _classes.txt ({len(classes)} classes)", None
    return name, classes[number], (x1, y1, x2, y2)


def folders(data: Data, labels: tuple[str, ...]) -> Found:
    """root/CLASS/[GROUP/]*.jpg, or root/{train,valid|val,test}/CLASS/...

    Names that differ only in a final number are one recording, unless one comes twice; Roboflow's as in frame_of.
    """
    found = Found()
    found.samples = rows = _tree(data, labels, PICTURES, found.skipped)
    recordings: dict[str, list[tuple[int, int]]] = defaultdict(list)  # recording -> (number, place in rows)
    for place, row in enumerate(rows):
        inner = Path(row.id).parts[2 if row.split else 1 :]
        sequence, time = frame_of(inner[-1])
        if sequence:
            rows[place] = replace(row, sequence=sequence, time=time)
            continue
        shot = re.fullmatch(r"(.*?)(\d{1,15})", ROBOFLOW.sub("", Path(inner[-1]).stem), re.ASCII)
        recording = "/".join((*inner[:-1], shot[1])) if shot else ""
        if shot and recording:
            recordings[recording].append((int(shot[2]), place))
    classes = Counter(row.label for row in rows)
    for recording, shots in recordings.items():
        # img_1 in two classes, or V_1, V_2... filling one class, is a numbering and says nothing of a recording
        twice = len({number for number, _ in shots}) < len(shots)
        fills = "/" not in recording and len(shots) == classes[rows[shots[0][1]].label]
        one_class = len({rows[place].label for _, place in shots}) == 1
        for number, place in shots if len(shots) > 1 and not twice and not (fills and one_class) else ():
            rows[place] = replace(rows[place], sequence=recording, time=float(number))
    return found


def _tree(data: Data, labels: tuple[str, ...], kinds: tuple[str, ...], skipped: list[Skipped]) -> list[Sample]:
    tops = [top for top in subfolders(data.root) if top.name in SPLIT_NAMES and top.name not in labels]
    places = [(SPLIT_NAMES[top.name], folder) for top in tops for folder in subfolders(top)]
    rows = []
    for split, folder in places or [("", folder) for folder in subfolders(data.root)]:
        for path in sorted(folder.rglob("*")):
            inner = path.relative_to(folder).parts
            if any(part.startswith(".") for part in inner) or not path.is_file():
                continue
            id = path.relative_to(data.root).as_posix()
            kind = path.suffix.lower()
            if kind in kinds and path.stat().st_size:
                group = inner[0] if data.group == "folder" and len(inner) > 1 else ""
                rows.append(Sample(id, path, folder.name, group, split))
            elif kind in kinds:
                skipped.append(Skipped(id, "empty file"))
            elif kind in NOT_READ:
                skipped.append(Skipped(id, f"{kind} is not a kind of picture that is read: {' '.join(kinds)}"))
    return rows


def videos(data: Data, labels: tuple[str, ...], manifest: str = "", limit: Count = 0) -> Found:
    """Clips in class folders, or a manifest.csv with file,label and optional group,split.

    Each clip is a recording, timed in seconds: data.windows looks by data.look, else windows of data.frames, at most
    `limit`, evenly spread (0: all).
    """
    found = Found()
    path = data.root / (manifest or "manifest.csv")
    listed = manifest or path.is_file()
    rows = _table(data, labels, path, "file", found.skipped) if listed else _tree(data, labels, VIDEOS, found.skipped)
    for row in _once(rows, found.skipped):
        cut(row, data, found, limit)
    return found


def cut(row: Sample, data: Data, found: Found, limit: int = 0, rate: float | None = None) -> None:
    """A film's looks or windows go into `found`. rate: a second, where data asks for fewer or none."""
    times = times_of(row.path)
    if isinstance(times, str):
        found.skipped.append(Skipped(row.id, times))
        return
    count = max(data.windows, round(times[-1] * rate)) if rate else data.windows
    cuts = looks(times, data.look, count) if data.look else windows(sampled(times, data.rate or rate), data.frames)
    if isinstance(cuts, str):
        found.skipped.append(Skipped(row.id, cuts))
        return
    if 0 < limit < len(cuts):
        cuts = [cuts[(2 * i + 1) * len(cuts) // (2 * limit)] for i in range(limit)]
    for window in cuts:
        number = window[-1 if data.look else 0]
        id, time = f"{row.id}#{number}", round(times[number], 4)
        found.samples.append(replace(row, id=id, sequence=row.id, time=time, frames=window))


def idx(data: Data, labels: tuple[str, ...]) -> Found:
    """The IDX pairs of MNIST (`train-images-idx3-ubyte[.gz]`, `t10k-...` or `test-...`), LeCun et al. 1998.

    The label is the number as text. Raises UserError.
    """
    found, pairs = Found(), 0
    names = sorted(path.name for path in data.root.iterdir() if path.is_file())
    for start, split in (("train", "train"), ("t10k", "test"), ("test", "test")):
        pictures, answers = (
            next((data.root / name for name in names if re.fullmatch(rf"{start}-{kind}-ubyte(\.gz)?", name)), None)
            for kind in ("images[-.]idx3", "labels[-.]idx1")
        )
        if not pictures and not answers:
            continue
        if not pictures or not answers:
            raise UserError(f"{pictures or answers}: its partner, the {start} images or labels, is missing")
        images, numbers = read_idx(pictures, 3), read_idx(answers, 1)
        if len(images) != len(numbers):
            raise UserError(f"{answers}: {len(numbers)} labels for {len(images)} images in {pictures.name}")
        pairs += 1
        for row, number in enumerate(numbers):
            id = f"{pictures.name}#{row}"
            found.samples.append(Sample(id, pictures, str(number), split=split, frames=(row,), read=_rows))
    if not pairs:
        raise UserError(f"data.root = '{data.root}': has no train-images-idx3-ubyte.gz or t10k-images-idx3-ubyte.gz")
    return found


def _rows(samples: Sequence[Sample]) -> Iterator[tuple[Sample, NDArray[np.uint8] | str]]:
    try:
        images = read_idx(samples[0].path, 3)
    except UserError as error:
        yield from ((sample, str(error)) for sample in samples)
        return
    for sample in samples:
        row = sample.frames[0]
        yield sample, images[row] if row < len(images) else f"the file has {len(images)} rows"


@lru_cache(maxsize=2)  # a file is asked for once by the source and once by each decoding worker
def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """A ubyte IDX file, plain or gzipped. Raises UserError."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file: {error}") from error
    head, magic = 4 + 4 * dimensions, bytes((0, 0, 8, dimensions))
    if len(raw) < head or raw[:4] != magic:
        start = raw[:4].hex() or "nothing"
        raise UserError(f"{path}: starts with {start}, an IDX file of this kind with {magic.hex()}")
    shape = np.frombuffer(raw, ">u4", dimensions, 4).tolist()
    if len(raw) - head != math.prod(shape) or 0 in shape[1:]:
        raise UserError(f"{path}: holds {len(raw) - head} bytes where its header says {' × '.join(map(str, shape))}")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def table(data: Data, labels: tuple[str, ...], file: str = "samples.csv") -> Found:
    """A CSV with path,label and optional group,split,box,sequence,time; paths relative to its folder.

    No labels: one without that column, of pictures and films.
    """
    found, films = Found(), Found()
    for row in _once(_table(data, labels, data.root / file, "path", found.skipped), found.skipped):
        if row.path.suffix.lower() in PICTURES:
            found.samples.append(row)
        elif row.path.suffix.lower() in VIDEOS and not labels:
            cut(row, data, films, rate=SPARSE)
        else:
            found.skipped.append(Skipped(row.id, f"not a kind of picture that is read: {' '.join(PICTURES)}"))
    if data.look:
        _look_back(found, data.look)
    return Found(found.samples + films.samples, found.skipped + films.skipped)


def _look_back(found: Found, look: Sequence[float]) -> None:
    """Pictures of a recording -> looks that end at each, where there are old enough ones."""
    sequences: dict[str, list[Sample]] = defaultdict(list)
    for row in found.samples:
        sequences[row.sequence].append(row)
    found.samples = []
    for sequence, rows in sequences.items():
        rows.sort(key=lambda row: row.time)
        times = np.array([row.time for row in rows])
        near = 0.3 * min(np.diff(sorted(look)), default=0.0)
        for row in rows:
            wanted = row.time - np.sort(look)[::-1]
            window = [int(np.abs(times - moment).argmin()) for moment in wanted]
            if not sequence or np.abs(times[window] - wanted).max() > near:
                why = "no sequence and time" if not sequence else f"{sequence} has no pictures {max(look):g} s before"
                found.skipped.append(Skipped(row.id, f"data.look = {list(look)}: {why}"))
            else:
                older = tuple(rows[place].path for place in window[:-1])
                found.samples.append(replace(row, older=older))


def _table(data: Data, labels: tuple[str, ...], path: Path, key: str, skipped: list[Skipped]) -> list[Sample]:
    lines, columns = read_table(path)
    by_column = (data.group or "").startswith("column:")
    column = (data.group or "").removeprefix("column:") if by_column else "group"
    for name in (key, *(["label"] if labels else []), *([column] if by_column else [])):
        if name not in columns:
            raise UserError(f"{path}: has no column {name!r}{nearest(name, columns)}")
    rows, foreign = list[Sample](), list[Sample]()
    for line in lines:
        cells = line if labels else line | {"label": NO_LABEL}
        row = _row(data, path, cells, cells[key], cells.get(column, ""))
        if isinstance(row, Skipped):
            skipped.append(row)
        else:
            (rows if row.label in labels or not labels else foreign).append(row)
    hints = {label: nearest(label, labels) for label in {row.label for row in foreign}}
    if len(foreign) > data.max_bad * len(lines):
        word = foreign[0].label
        raise UserError(
            f"{path}: label {word!r} of {foreign[0].id} is not in the recipe's labels{hints[word]}"
            f" ({len(foreign)} of {len(lines)} rows)"
        )
    skipped += [Skipped(row.id, f"label {row.label!r} is not in the recipe{hints[row.label]}") for row in foreign]
    return rows


def read_table(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Rows with stripped cells, and columns. Raises UserError."""
    try:
        raw = path.read_bytes()
        # Spreadsheets write UTF-16 with its mark, and whatever parts lists in the country's own numbers
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        header = text.partition("\n")[0]
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="", delimiter=max(",;\t", key=header.count))
        lines = [{name: value.strip() for name, value in line.items() if name} for line in reader]
        return lines, list(reader.fieldnames or [])
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.csv")]
        raise UserError(f"{path}: no such file" + (nearest(path.name, beside) if beside else "")) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 (save it as 'CSV UTF-8'): {error}") from error


def _row(data: Data, table: Path, cells: dict[str, str], name: str, group: str) -> Sample | Skipped:
    root = Path(os.path.abspath(data.root))  # noqa: PTH100  links inside root may lead elsewhere: that is the owner's wish
    full = Path(os.path.normpath(os.path.join(os.path.abspath(table.parent), name)))  # noqa: PTH100, PTH118
    if "\\" in name and not full.exists():  # written on Windows
        return _row(data, table, cells, name.replace("\\", "/"), group)
    if not name or "\0" in name:
        return Skipped(table.name, f"a row without a file: {','.join(cells.values())[:80]!r}")
    if not full.is_relative_to(root):
        return Skipped(name, "path climbs out of data.root")
    path = data.root / full.relative_to(root)
    id = full.relative_to(root).as_posix()
    try:
        if not path.is_file() or not path.stat().st_size:
            return Skipped(id, "empty file" if path.is_file() else "missing file")
    except OSError as error:
        return Skipped(id, f"cannot be read: {error.strerror}")
    if not cells["label"]:
        return Skipped(id, "no label")
    split = cells.get("split", "")
    if split and split.lower() not in SPLIT_NAMES:
        return Skipped(id, f"split {split!r} is none of train, valid, test")
    if data.group == "folder":
        group = full.parent.name if full.parent != root else ""
    box: Box | None = None
    if text := cells.get("box"):
        numbers = BOX.fullmatch(text)
        if not numbers:
            return Skipped(id, f"box {text!r} is not x1,y1,x2,y2")
        x1, y1, x2, y2 = (round(float(number)) for number in numbers.groups())
        box = (x1, y1, x2, y2)
        if x2 <= x1 or y2 <= y1:
            return Skipped(id, f"box {text!r} holds no pixel")
    try:
        time = float(cells.get("time") or 0)
    except ValueError as error:
        return Skipped(id, str(error))
    if not math.isfinite(time):
        return Skipped(id, f"time {time} is not a number")
    split, sequence = SPLIT_NAMES.get(split.lower(), ""), cells.get("sequence", "")
    if not sequence and not cells.get("time"):
        sequence, time = frame_of(path.name)
    return Sample(id, path, cells["label"], group, split, sequence, time, box=box)


def drawn(
    data: Data,
    labels: tuple[str, ...],
    scene: str = "cabin",
    people: Count = 6,
    pictures: Count = 20,
    height: Count = 96,
    width: Count = 128,
) -> Found:
    """Drawn by media.synthetic: `pictures` a class for each of `people` (cabin) or cameras (street)."""
    if scene not in synthetic.LABELS:
        raise UserError(f"data.source.scene = {scene!r}: unknown{nearest(scene, synthetic.LABELS)}")
    if min(height, width) < 16:
        raise UserError(f"data.source.height, width = {height}, {width}: at least 16 pixels")
    known = [label for label in synthetic.LABELS[scene] if label in labels]
    if not known:
        hint = nearest(labels[0], synthetic.LABELS[scene])
        raise UserError(f"labels = {labels[0]!r}: the toy's {scene} does not draw it{hint}")

    back = sorted(data.look or (), reverse=True)

    def draw(samples: Sequence[Sample]) -> Iterator[tuple[Sample, NDArray[np.uint8]]]:
        for sample in samples:
            what = (scene, sample.label, int(sample.id.split("/")[2]), sample.frames[0])
            if back:
                yield sample, synthetic.look(*what, back, (height, width))
            else:
                yield sample, synthetic.still(*what, (height, width))

    found = Found()
    for person, label, number in itertools.product(range(people), known, range(pictures)):
        id = f"toy/{scene}/{person}/{label}/{number}"
        frames = (number, *(round(1000 * seconds) for seconds in back[:-1]))
        face = partial(synthetic.still_face, label, person, number, (height, width), bool(back))
        drawn_face = face if scene == "cabin" else None
        found.samples.append(Sample(id, Path(), label, f"person-{person}", frames=frames, read=draw, face=drawn_face))
    return found


def _once(rows: Iterable[Sample], skipped: list[Skipped]) -> list[Sample]:
    by_file: dict[str, list[Sample]] = defaultdict(list)
    for row in rows:
        by_file[row.id].append(row)
    kept = []
    for id, same in by_file.items():
        names = sorted({row.label for row in same})
        if len(names) > 1:
            skipped += [Skipped(id, f"labelled both {names[0]} and {names[1]}")] * len(same)
        else:
            kept.append(same[0])
            skipped += [Skipped(id, "named more than once")] * (len(same) - 1)
    return kept


def subfolders(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith("."))


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace").rstrip("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return [line.strip() for line in text.split("\n")]


SOURCES: Table = {
    "driver-inattention": driver_inattention,
    "folders": folders,
    "videos": videos,
    "idx": idx,
    "csv": table,
    "toy": drawn,
}
