"""Sources: a folder of somebody's data -> one Sample a picture or clip, and a reason for all that is left out.

Looks at names, sizes, tables and headers; decodes no pixel, splits nothing and knows no net.
"""

import csv
import gzip
import itertools
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stillwatch.errors import UserError, nearest
from stillwatch.media import synthetic
from stillwatch.media.decode import NOT_READ, PICTURES, VIDEOS, sampled, times_of, windows
from stillwatch.recipe import Data
from stillwatch.registry import Table

SPLITS = ("train", "valid", "test")
Count: TypeAlias = Annotated[int, Field(ge=0)]
PixelReader: TypeAlias = Callable[[Sequence["Sample"]], Iterable[tuple["Sample", NDArray[np.uint8] | str]]]
SPLIT_NAMES = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}


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
    box: tuple[int, int, int, int] | None = None  # x1,y1,x2,y2 in pixels
    negative: bool = False  # a false alarm that a camera filed: for training only
    # Samples of one file -> each one's uint8 (H,W[,3]) or why there is none. None: a clip where there are frame
    # numbers, else a picture file.
    read: PixelReader | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was left out, and why."""

    file: str
    reason: str


@dataclass
class Found:
    """What a source holds."""

    samples: list[Sample] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def driver_inattention(data: Data, labels: tuple[str, ...]) -> Found:
    """The public export: flat train/ valid/ test/, `_classes.txt`, `_annotations.txt` (FILE x1,y1,x2,y2,ID).

    The split folders are the official splits. The recording is the name before `-{frame}_jpg`, the time is that
    frame. Lines without a box, malformed lines, ids out of range, missing files and files without a line are
    skipped. Raises UserError where a table is missing.
    """
    found = Found()
    folders = [folder for folder in _folders(data.root) if folder.name in SPLIT_NAMES]
    if not folders:
        raise UserError(f"data.root = '{data.root}': has none of the folders train, valid, test")
    for folder in folders:
        classes = [line.strip() for line in _lines(folder / "_classes.txt")]
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
        rows, named = [], set()
        for line in _lines(folder / "_annotations.txt"):
            if not line.strip():
                continue
            row = _annotation(line.strip(), classes)
            name = row.file if isinstance(row, Skipped) else row.id
            named.add(name)
            if not isinstance(row, Skipped) and not sizes.get(name):
                row = Skipped(name, "empty file" if name in sizes else "missing file")
            if isinstance(row, Skipped):
                found.skipped.append(replace(row, file=f"{folder.name}/{name}"))
                continue
            shot = re.match(r"(.+)-(\d+)_jpe?g", name)
            sequence, time = (shot[1], float(shot[2])) if shot else ("", 0.0)
            where = replace(row, id=f"{folder.name}/{name}", path=folder / name, split=SPLIT_NAMES[folder.name])
            rows.append(replace(where, sequence=sequence, time=time))
        found.samples += _once(rows, found.skipped)
        pictures = sorted(name for name in sizes if name.lower().endswith(PICTURES))
        unnamed = [name for name in pictures if name not in named and not name.startswith(".")]
        found.skipped += [Skipped(f"{folder.name}/{name}", "no line in _annotations.txt") for name in unnamed]
    return found


def _annotation(line: str, classes: Sequence[str]) -> Sample | Skipped:
    """One line of `_annotations.txt`; the name may hold spaces."""
    match = re.fullmatch(r"(.*\S)\s+(-?\d+),(-?\d+),(-?\d+),(-?\d+),(\d+)", line, re.ASCII)
    if not match:
        return Skipped(line, "line without a box") if line.lower().endswith(PICTURES) else _malformed(line)
    name, *numbers = match.groups()
    if re.search(r"\s-?\d+,-?\d+,-?\d+,-?\d+,\d+$", name, re.ASCII):
        return Skipped(name.split()[0], "more than one box")
    if max(map(len, numbers)) > 9:
        return _malformed(line)
    x1, y1, x2, y2, number = map(int, numbers)
    if x2 <= x1 or y2 <= y1:
        return Skipped(name, f"box {x1},{y1},{x2},{y2} holds no pixel")
    if number >= len(classes) or not classes[number]:
        return Skipped(name, f"class id {number} is not in _classes.txt ({len(classes)} classes)")
    return Sample(name, Path(), classes[number], box=(x1, y1, x2, y2))


def _malformed(line: str) -> Skipped:
    words = line.split()
    return Skipped(words[0] if words else line, f"malformed line: {line[:80]!r}")


def folders(data: Data, labels: tuple[str, ...]) -> Found:
    """root/CLASS/[GROUP/]*.jpg, or root/{train,valid|val,test}/CLASS/...: one folder a class.

    A file name that ends in a number belongs to the recording of its other characters, where several files do
    and no number comes twice (class and split are no part of it: one recording shows several classes).
    """
    found = Found()
    rows = _once(_tree(data, labels, PICTURES, found.skipped), found.skipped)
    recordings: dict[str, list[tuple[int, int]]] = defaultdict(list)  # recording -> (number, place in rows)
    for place, row in enumerate(rows):
        inner = Path(row.id).parts[2 if row.split else 1 :]
        shot = re.fullmatch(r"(.*?)(\d{1,15})", Path(inner[-1]).stem, re.ASCII)
        recording = "/".join((*inner[:-1], shot[1])) if shot else ""
        if shot and recording:
            recordings[recording].append((int(shot[2]), place))
    classes = Counter(row.label for row in rows)
    for recording, shots in recordings.items():
        # img_1 in two classes, or V_1, V_2... filling one class, is a numbering and says nothing of a recording
        if len(shots) < 2 or len({number for number, _ in shots}) < len(shots):
            continue
        shown = {rows[place].label for _, place in shots}
        if "/" not in recording and len(shown) == 1 and len(shots) == classes[shown.pop()]:
            continue
        for number, place in shots:
            rows[place] = replace(rows[place], sequence=recording, time=float(number))
    found.samples = rows
    return found


def _tree(data: Data, labels: tuple[str, ...], kinds: tuple[str, ...], skipped: list[Skipped]) -> list[Sample]:
    """The files of class folders, in order of name, with official splits where split folders are there."""
    tops = [top for top in _folders(data.root) if top.name in SPLIT_NAMES and top.name not in labels]
    places = [(SPLIT_NAMES[top.name], folder) for top in tops for folder in _folders(top)]
    rows = []
    for split, folder in places or [("", folder) for folder in _folders(data.root)]:
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
    """Clips in class folders, or a manifest.csv with file,label and, where wanted, group,split.

    Takes data.rate frames a second (all without it), data.frames of them a sample in windows that do not
    overlap; a clip shorter than one window is used once, its last frame repeated. limit: at most so many samples
    a clip, evenly spread; 0: all. The recording is the clip's relative path, the time is in seconds.
    """
    found = Found()
    table = data.root / (manifest or "manifest.csv")
    if manifest or table.is_file():
        rows = _table(data, labels, table, "file", found.skipped)
    else:
        rows = _tree(data, labels, VIDEOS, found.skipped)
    for row in _once(rows, found.skipped):
        times = times_of(row.path)
        if isinstance(times, str):
            found.skipped.append(Skipped(row.id, times))
            continue
        cuts = windows(sampled(times, data.rate), data.frames)
        if 0 < limit < len(cuts):
            cuts = [cuts[(2 * i + 1) * len(cuts) // (2 * limit)] for i in range(limit)]
        for window in cuts:
            new = replace(row, id=f"{row.id}#{window[0]}", sequence=row.id, time=round(times[window[0]], 4))
            found.samples.append(replace(new, frames=window))
    return found


def idx(data: Data, labels: tuple[str, ...]) -> Found:
    """The IDX pairs of MNIST (`train-images-idx3-ubyte[.gz]`, `t10k-...` or `test-...`), LeCun et al. 1998.

    Official splits train and test; the label is the number as text. Raises UserError for a file that is cut off,
    has another magic number, or counts otherwise than its partner.
    """
    found = Found()
    for start, split in (("train", "train"), ("t10k", "test"), ("test", "test")):
        pictures, answers = (_one_of(data.root, start, kind) for kind in ("images", "labels"))
        if not pictures and not answers:
            continue
        if not pictures or not answers:
            raise UserError(f"{pictures or answers}: its partner, the {start} images or labels, is missing")
        images, numbers = read_idx(pictures, 3), read_idx(answers, 1)
        if len(images) != len(numbers):
            raise UserError(f"{answers}: {len(numbers)} labels for {len(images)} images in {pictures.name}")
        for row, number in enumerate(numbers):
            found.samples.append(
                Sample(f"{pictures.name}#{row}", pictures, str(number), split=split, frames=(row,), read=_rows)
            )
    if not found.samples and not any(_one_of(data.root, s, "images") for s in ("train", "t10k", "test")):
        raise UserError(f"data.root = '{data.root}': has no train-images-idx3-ubyte.gz or t10k-images-idx3-ubyte.gz")
    return found


def _rows(samples: Sequence[Sample]) -> Iterator[tuple[Sample, NDArray[np.uint8] | str]]:
    images: Sequence[NDArray[np.uint8]] = []
    problem = ""
    try:
        images = list(read_idx(samples[0].path, 3))
    except UserError as error:
        problem = str(error)
    for sample in samples:
        row = sample.frames[0]
        yield sample, images[row] if row < len(images) else problem or f"the file has {len(images)} rows"


def _one_of(root: Path, start: str, kind: str) -> Path | None:
    number = {"images": 3, "labels": 1}[kind]
    names = (f"{start}-{kind}{dot}idx{number}-ubyte{end}" for dot in "-." for end in ("", ".gz"))
    return next((root / name for name in names if (root / name).is_file()), None)


@lru_cache(maxsize=2)  # a file is asked for once by the source and once by each decoding worker
def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """A ubyte IDX file, plain or gzipped, of that many dimensions. Raises UserError for anything else."""
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file: {error}") from error
    head = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if len(raw) < head or raw[:4] != magic:
        raise UserError(
            f"{path}: starts with {raw[:4].hex() or 'nothing'}, an IDX file of this kind with {magic.hex()}"
        )
    shape = [int(side) for side in np.frombuffer(raw, ">u4", dimensions, 4)]
    wanted = int(np.prod([1, *shape], dtype=object))
    if len(raw) - head != wanted or 0 in shape[1:]:
        raise UserError(f"{path}: holds {len(raw) - head} bytes where its header says {' × '.join(map(str, shape))}")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def table(data: Data, labels: tuple[str, ...], file: str = "samples.csv") -> Found:
    """A CSV with path,label and, where wanted, group,split,box,sequence,time; paths relative to the CSV's folder."""
    found = Found()
    rows = _table(data, labels, data.root / file, "path", found.skipped)
    for row in _once(rows, found.skipped):
        if row.path.suffix.lower() in PICTURES:
            found.samples.append(row)
        else:
            found.skipped.append(Skipped(row.id, f"not a kind of picture that is read: {' '.join(PICTURES)}"))
    return found


def _table(data: Data, labels: tuple[str, ...], path: Path, key: str, skipped: list[Skipped]) -> list[Sample]:
    """The rows of a CSV whose column `key` names a file. Raises UserError for a table that is none, or mostly wrong."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            lines = list(reader)
            columns = list(reader.fieldnames or [])
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.csv")]
        raise UserError(f"{path}: no such file" + (nearest(path.name, beside) if beside else "")) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8: {error}") from error
    asked = data.group or ""
    column = asked.removeprefix("column:") if asked.startswith("column:") else "group"
    for name in (key, "label", *([column] if asked.startswith("column:") else [])):
        if name not in columns:
            raise UserError(f"{path}: has no column {name!r}{nearest(name, columns)}")
    rows, foreign = [], []
    for line in lines:
        cells = {name: (value or "").strip() for name, value in line.items() if isinstance(value, str | None) and name}
        row = _row(data, path, cells, cells[key], cells.get(column, "") if asked != "folder" else "")
        if isinstance(row, Skipped):
            skipped.append(row)
        elif row.label not in labels:
            foreign.append(row)
        else:
            rows.append(row)
    if len(foreign) > data.max_bad * len(lines):
        word = foreign[0].label
        raise UserError(
            f"{path}: label {word!r} of {foreign[0].id} is not in the recipe's labels{nearest(word, labels)}"
            f" ({len(foreign)} of {len(lines)} rows)"
        )
    reasons = {row.label: f"label {row.label!r} is not in the recipe{nearest(row.label, labels)}" for row in foreign}
    skipped += [Skipped(row.id, reasons[row.label]) for row in foreign]
    return rows


def _row(data: Data, table: Path, cells: dict[str, str], name: str, group: str) -> Sample | Skipped:
    """One row of a CSV, checked: the file is there and inside root, and every cell can be understood."""
    root = Path(os.path.abspath(data.root))  # noqa: PTH100  links inside root may lead elsewhere: that is the owner's wish
    full = Path(os.path.normpath(os.path.join(os.path.abspath(table.parent), name)))  # noqa: PTH100, PTH118
    if not name or "\0" in name:
        return Skipped(table.name, f"a row without a file: {','.join(cells.values())[:80]!r}")
    if not full.is_relative_to(root):
        return Skipped(name, "path climbs out of data.root")
    path = data.root / full.relative_to(root)
    id = full.relative_to(root).as_posix()
    try:
        if not path.is_file():
            return Skipped(id, "missing file")
        if not path.stat().st_size:
            return Skipped(id, "empty file")
    except OSError as error:
        return Skipped(id, f"cannot be read: {error.strerror}")
    if not cells["label"]:
        return Skipped(id, "no label")
    split = cells.get("split", "")
    if split and split.lower() not in SPLIT_NAMES:
        return Skipped(id, f"split {split!r} is none of train, valid, test")
    if data.group == "folder":
        group = full.parent.name if full.parent != root else ""
    try:
        box = _box(cells.get("box", ""))
        time = float(cells.get("time") or 0)
    except ValueError as error:
        return Skipped(id, str(error))
    if not np.isfinite(time):
        return Skipped(id, f"time {time} is not a number")
    official = SPLIT_NAMES.get(split.lower(), "")
    return Sample(id, path, cells["label"], group, official, cells.get("sequence", ""), time, box=box)


def _box(text: str) -> tuple[int, int, int, int] | None:
    """ "x1,y1,x2,y2" or "x1 y1 x2 y2" in pixels; "" is no box. Raises ValueError."""
    if not text:
        return None
    numbers = re.fullmatch(r"\s*".join([r"(-?\d{1,9}(?:\.\d+)?)[\s,]"] * 3 + [r"(-?\d{1,9}(?:\.\d+)?)"]), text)
    if not numbers:
        raise ValueError(f"box {text!r} is not x1,y1,x2,y2")
    x1, y1, x2, y2 = (round(float(number)) for number in numbers.groups())
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"box {text!r} holds no pixel")
    return x1, y1, x2, y2


def check_folder(key: str, path: Path) -> None:
    """Raise UserError, with the nearest name beside it, where there is no such folder."""
    if not path.is_dir():
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise UserError(f"{key} = '{path}': no such folder" + (nearest(path.name, beside) if beside else ""))


def negatives(root: Path, labels: tuple[str, ...]) -> Found:
    """root/LABEL/CAMERA/*.jpg, as the page's "false alarm" files them: LABEL is what the pictures truly show.

    All are for training, each camera a group. Raises UserError for a missing folder and a label that is none.
    """
    check_folder("data.negatives", root)
    for folder in _folders(root):
        if folder.name not in labels:
            hint = nearest(folder.name, labels)
            raise UserError(f"data.negatives = '{root}': the folder {folder.name!r} is no label of the recipe's{hint}")
    found = Found()
    # a source without splits: a class may be called "test"
    for row in _tree(Data(source="folders", root=root, group="folder"), labels, PICTURES, found.skipped):
        new = replace(row, id=f"negatives/{row.id}", group=f"negatives/{row.group or 'unknown'}", split="train")
        found.samples.append(replace(new, negative=True))
    found.skipped = [replace(one, file=f"negatives/{one.file}") for one in found.skipped]
    return found


def drawn(
    data: Data,
    labels: tuple[str, ...],
    scene: str = "cabin",
    people: Count = 6,
    pictures: Count = 20,
    height: Count = 96,
    width: Count = 128,
) -> Found:
    """Pictures that media.synthetic draws: `pictures` a class for each of `people` (cabin) or cameras (street)."""
    if scene not in synthetic.LABELS:
        raise UserError(f"data.source.scene = {scene!r}: unknown{nearest(scene, synthetic.LABELS)}")
    if min(height, width) < 16:
        raise UserError(f"data.source.height, width = {height}, {width}: at least 16 pixels")
    known = [label for label in synthetic.LABELS[scene] if label in labels]
    if not known:
        raise UserError(
            f"labels = {labels[0]!r}: the toy's {scene} does not draw it{nearest(labels[0], synthetic.LABELS[scene])}"
        )

    def draw(samples: Sequence[Sample]) -> Iterator[tuple[Sample, NDArray[np.uint8]]]:
        for sample in samples:
            person = int(sample.id.split("/")[2])
            yield sample, synthetic.still(scene, sample.label, person, sample.frames[0], (height, width))

    found = Found()
    for person, label, number in itertools.product(range(people), known, range(pictures)):
        id = f"toy/{scene}/{person}/{label}/{number}"
        found.samples.append(Sample(id, Path(), label, f"person-{person}", frames=(number,), read=draw))
    return found


def _once(rows: Iterable[Sample], skipped: list[Skipped]) -> list[Sample]:
    """Rows whose file is named once; a second naming is skipped, and so is a file that has two labels."""
    by_file: dict[str, list[Sample]] = defaultdict(list)
    for row in rows:
        by_file[row.id].append(row)
    kept = []
    for id, same in by_file.items():
        names = sorted({row.label for row in same})
        if len(names) > 1:
            skipped += [Skipped(id, f"labelled both {names[0]} and {names[1]}")] * len(same)
            continue
        kept.append(same[0])
        skipped += [Skipped(id, "named more than once")] * (len(same) - 1)
    return kept


def _folders(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith("."))


def _lines(path: Path) -> list[str]:
    """The lines of a text table; bytes that are no UTF-8 become marks that match nothing. Raises UserError."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace").rstrip("\n").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


SOURCES: Table = {
    "driver-inattention": driver_inattention,
    "folders": folders,
    "videos": videos,
    "idx": idx,
    "csv": table,
    "toy": drawn,
}
