"""What lies in a folder, by its names and a handful of pictures: layout, labels, splits, groups."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import UserError, nearest
from stillwatch.lab.data.reader import group_of
from stillwatch.lab.data.sources import (
    FILM,
    ROBOFLOW,
    SPLIT_NAMES,
    driver_inattention,
    read_idx,
    read_table,
    subfolders,
)
from stillwatch.media.decode import PICTURES, VIDEOS, clips, film_header, read_picture
from stillwatch.recipe import Data

MOST = 200_000  # names that are listed in all
NAMES = 20_000  # that are searched for people and recordings
LABELS = 1_000
WHO = ("person", "people", "subject", "driver", "actor", "user", "participant", "patient", "camera", "cam", "scene",
       "recording", "sequence", "session", "video")  # fmt: skip
BETWEEN = "_. -"  # the parts of a name
LAST = rf"(\d{{1,15}})(?:{ROBOFLOW.pattern.removesuffix('$')})?\.\w+$"  # a name's last number
NUMBER = rf"^(.*?)[{BETWEEN}]*{LAST.replace('(', '', 1).replace(')', '', 1)}"
BOXES = ("data.yaml", "_annotations.coco.json", "_classes.csv")
BOXES_IN = ("", "train", "valid", "val", "test")


class Entry(NamedTuple):
    id: str  # path relative to the root, as the source writes it
    label: str
    split: str = ""
    group: str = ""  # the folder between class and file


class Grouping(NamedTuple):
    """A rule for data.group, its evidence, and whether names alone leave no doubt."""

    rule: str
    groups: tuple[str, ...]  # one an entry that was looked at
    evidence: str
    sure: bool

    @property
    def distinct(self) -> int:
        return len(set(self.groups))


@dataclass(frozen=True)
class Inventory:
    """entries: of a tree at most MOST. shape: height and width of idx pictures."""

    root: Path
    source: str  # of SOURCES
    table: str  # the CSV's name, where there is one
    entries: list[Entry]
    groupings: tuple[Grouping, ...]
    notes: tuple[str, ...] = ()
    shape: tuple[int, int] | None = None

    @cached_property
    def labels(self) -> dict[str, int]:
        return dict(sorted(Counter(entry.label for entry in self.entries).items()))


class Glance(NamedTuple):
    """A few of the pictures or films."""

    shapes: list[tuple[int, int]]  # (height, width), upright
    gray: bool
    rate: float = 0.0  # films: the lowest of frames a second
    seconds: float = 0.0  # films: the shortest


def take(place: Path) -> Inventory:
    """Raises UserError where no source reads a labelled data set."""
    try:
        if place.is_file() and place.suffix.lower() == ".csv":
            return _of_table(place)
        if not place.is_dir():
            raise UserError(
                f"{place}: no such folder" if not place.exists() else f"{place}: neither a folder nor a CSV"
            )
        root = place
        while len(inner := [e for e in os.scandir(root) if not e.name.startswith(".")]) == 1 and inner[0].is_dir():
            root = root / inner[0].name  # as archives unpack
        found = _of_folder(root)
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {error.strerror}") from error
    for text in (str(root), *found.labels):
        if not text.isascii() and "\ufffd" in text.encode(errors="surrogateescape").decode(errors="replace"):
            raise UserError(f"{place}: {text!r}: a name that is no UTF-8; rename it")
    if len(found.labels) < 2:
        raise UserError(f"{place}: has one label alone ({next(iter(found.labels))!r}); a net tells at least two apart")
    return found


def _of_folder(root: Path) -> Inventory:
    names = {entry.name for entry in os.scandir(root) if entry.is_file()}
    if any(re.fullmatch(r"(train|t10k|test)-images[-.]idx3-ubyte(\.gz)?", name) for name in names):
        found, shape = list[Entry](), [0, 0]
        for name in sorted(names):
            if match := re.fullmatch(r"(train|t10k|test)-labels[-.]idx1-ubyte(\.gz)?", name):
                split = "train" if match[1] == "train" else "test"
                found += [Entry(f"{name}#{row}", str(n), split) for row, n in enumerate(read_idx(root / name, 1))]
            elif re.fullmatch(r"(train|t10k|test)-images[-.]idx3-ubyte(\.gz)?", name):
                _, *shape = read_idx(root / name, 3).shape
        if not found:
            raise UserError(f"{root}: has images of MNIST's kind (idx3) without their labels (idx1)")
        return Inventory(root, "idx", "", found, (), (), (shape[0], shape[1]))
    if any((root / split / "_annotations.txt").is_file() for split in SPLIT_NAMES):
        samples = driver_inattention(Data(source="driver-inattention", root=root), ()).samples
        if not samples:
            raise UserError(f"{root}: _annotations.txt names no picture that is there")
        entries = [Entry(sample.id, sample.label, sample.split) for sample in samples]
        return Inventory(root, "driver-inattention", "", entries, tuple(_by_names(entries)))
    for name in sorted(names, key=lambda name: (name not in ("samples.csv", "manifest.csv"), name)):
        if name.lower().endswith(".csv") and {"path", "file"} & set(read_table(root / name)[1]):
            return _of_table(root / name)
    return _of_tree(root, names)


def _of_tree(root: Path, names: Iterable[str]) -> Inventory:
    for part in BOXES_IN:
        if boxes := next((name for name in BOXES if (root / part / name).is_file()), ""):
            raise UserError(
                f"{root / part / boxes}: an export for detectors, or of several labels a picture; export it as 'Folder "
                "Structure' (one folder a class), or write a samples.csv with path,label,box"
            )
    tops = list(subfolders(root))
    if len(tops) > LABELS:
        raise UserError(f"{root}: {len(tops)} folders are too many labels; put them into one folder a class")
    splits = len({SPLIT_NAMES.get(top.name, top.name) for top in tops}) > 1 and all(t.name in SPLIT_NAMES for t in tops)
    classes = [(SPLIT_NAMES[t.name], c) for t in tops for c in subfolders(t)] if splits else [("", t) for t in tops]
    kinds: dict[str, list[Entry]] = {"folders": [], "videos": []}
    cut, notes, most = set[str](), list[str](), max(100, MOST // max(1, len(classes)))
    for split, folder in classes:
        inner, whole = listing(folder, most)
        cut |= set() if whole else {folder.name}
        for name in inner:
            kind = "folders" if name.lower().endswith(PICTURES) else "videos"
            id, group = f"{folder.relative_to(root).as_posix()}/{name}", name.split("/")[0] if "/" in name else ""
            kinds[kind].append(Entry(id, folder.name, split, group))
    source, other = sorted(kinds, key=lambda kind: -len(kinds[kind]))
    entries = kinds[source]
    if not entries:
        flat = any(name.lower().endswith((*PICTURES, *VIDEOS)) for name in names)
        what = "its pictures or films lie in no class folder" if flat else "no pictures or films in class folders"
        raise UserError(
            f"{root}: {what}; put them into one folder a class, or write a CSV (path,label; films: file,label)"
        )
    if kinds[other]:
        words = ("pictures", "films") if source == "videos" else ("films", "pictures")
        notes.append(
            f"{len(kinds[other])} {words[0]} beside {len(entries)} {words[1]}: this recipe reads no {words[0]}"
        )
    empty = {folder.name for _, folder in classes} - {entry.label for entry in entries}
    notes += [f"{_some(cut)}: the first {most:,} files were looked at"] if cut else []
    notes += [f"{_some(empty)}: without {'films' if source == 'videos' else 'pictures'}, no label"] if empty else []
    groupings = list(_by_names(entries))
    if all(entry.group for entry in entries):
        groups = tuple(entry.group for entry in entries)
        groupings.insert(0, _grouping("folder", groups, entries, "folders inside the classes", True))
    if source == "videos":
        rule = "(.+/.+)"
        groupings.append(Grouping(rule, tuple(entry.id for entry in entries), "each film is a group of its own", True))
    return Inventory(root, source, "", entries, tuple(groupings), tuple(notes))


def listing(folder: Path, most: int) -> tuple[list[str], bool]:
    """Sorted relative names of pictures and films; False for more than `most` files."""
    found, waiting, seen = list[str](), [""], 0
    while waiting:
        inner = waiting.pop()
        with os.scandir(folder / inner) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{inner}{entry.name}/")
                    continue
                seen += 1
                if seen > most:
                    return sorted(found), False
                if entry.name.lower().endswith((*PICTURES, *VIDEOS)):
                    found.append(inner + entry.name)
    return sorted(found), True


def _of_table(path: Path) -> Inventory:
    rows, columns = read_table(path)
    films = sum(row.get("file", row.get("path", "")).lower().endswith(VIDEOS) for row in rows) > len(rows) / 2
    key = "file" if films else "path"
    for name in (key, "label"):
        if name not in columns:
            raise UserError(f"{path}: has no column {name!r}{nearest(name, columns)}")
    rows = [row for row in rows if row[key] and row["label"]]
    if not rows:
        raise UserError(f"{path}: has no row with {key} and label")
    entries = []
    for row in rows:
        id, split = os.path.normpath(row[key]).replace("\\", "/"), row.get("split", "").lower()
        entries.append(Entry(id, row["label"], SPLIT_NAMES.get(split, "")))
    groupings = []
    for column in ("group", *WHO):
        values = tuple(row.get(column, "") for row in rows)
        if all(values) and len(set(values)) > 2:
            groupings.append(_grouping(f"column:{column}", values, entries, f"in column {column}", column == "group"))
    groupings += _by_names(entries)
    if films:
        groupings.append(_grouping(f"column:{key}", tuple(e.id for e in entries), entries, "films", True))
    return Inventory(path.parent, "videos" if films else "csv", path.name, entries, tuple(groupings))


def _by_names(entries: Sequence[Entry]) -> Iterable[Grouping]:
    entries = entries[:: max(1, len(entries) // NAMES)]
    film = rf"(?i)^{FILM.pattern.rpartition('(')[0]}\d"
    rules = {film: "recordings by Roboflow's names", NUMBER: "what stands before the last number of the names"}
    for place in range(4):
        before = rf"(?:[^{BETWEEN}]+[{BETWEEN}]+){{{place}}}" if place else ""
        rules[rf"^{before}([^{BETWEEN}]+)[{BETWEEN}]"] = f"part {place + 1} of the names"
    running = tuple(map(partial(group_of, re.compile(LAST)), (entry.id for entry in entries)))
    known, guesses = set[tuple[int, ...]](), list[tuple[float, Grouping]]()
    for rule, words in rules.items():
        values = tuple(map(partial(group_of, re.compile(rule)), (entry.id for entry in entries)))
        numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
        if not all(values) or not 3 <= len(numbers) <= len(entries) / 2 or values == running:
            continue
        pairs = set(zip(values, (entry.label for entry in entries), strict=True))
        several = sum(count > 1 for count in Counter(group for group, _ in pairs).values())
        of_label = Counter(label for _, label in pairs)
        same = tuple(numbers[value] for value in values)
        if same in known or min(of_label.values()) < 2:  # once said; or the class's own name
            continue
        known.add(same)
        if rule == film:
            yield _grouping(rule, values, entries, words, True)
        else:
            what = "people or cameras" if several > len(numbers) / 2 else "recordings"
            guesses.append((-several / len(numbers), _grouping(rule, values, entries, f"{what}? by {words}", False)))
    yield from [grouping for _, grouping in sorted(guesses, key=lambda guess: guess[0])[:2]]


def _grouping(rule: str, groups: tuple[str, ...], entries: Sequence[Entry], words: str, sure: bool) -> Grouping:
    pairs = Counter(group for group, _ in set(zip(groups, (entry.label for entry in entries), strict=True)))
    several = sum(count > 1 for count in pairs.values())
    evidence = f"{len(pairs)} {words}: {_some(pairs)}; {several or 'none'} in several classes"
    return Grouping(rule, groups, evidence, sure)


def _some(names: Iterable[str]) -> str:
    first = sorted(names)[:5]
    return ", ".join(first[:4]) + ", …" * (len(first) > 4)


def glance(found: Inventory, most: int = 12) -> Glance:
    """Decode a few pictures, evenly spread; of films the first frame."""
    if found.shape:
        return Glance([found.shape], True)
    films, spread = found.source == "videos", found.entries[:: max(1, len(found.entries) // most)][:most]
    paths = [found.root / entry.id for entry in spread]
    pictures = [picture for path in paths if not isinstance(picture := (_first if films else read_picture)(path), str)]
    gray = bool(pictures) and all((p == p[..., :1]).all() for p in pictures)
    some = found.entries[:: max(1, len(found.entries) // 40)] if films else []
    headers = [film_header(found.root / entry.id) for entry in some]
    rates, lengths = ([header[at] for header in headers if header[at]] for at in (0, 1))
    return Glance([p.shape[:2] for p in pictures], gray, min(rates, default=0.0), min(lengths, default=0.0))


def _first(path: Path) -> NDArray[np.uint8] | str:
    keep: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = np.asarray
    return next((p if isinstance(p, str) else p[0] for _, p in clips(path, [(0,)], keep)), "no frame")
