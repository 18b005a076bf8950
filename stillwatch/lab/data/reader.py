"""Reader: gathers the samples of a recipe's data, and decodes them. Writes nothing."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import UserError, nearest
from stillwatch.lab.data.sources import (
    NO_LABEL,
    SOURCES,
    SPARSE,
    Box,
    Found,
    Sample,
    Skipped,
    cut,
    drawn,
    folders,
    frame_of,
    subfolders,
    table,
)
from stillwatch.media import image
from stillwatch.media.decode import PICTURES, VIDEOS, Window, clips, read_picture
from stillwatch.recipe import Data, Recipe
from stillwatch.registry import bind


def gather(recipe: Recipe) -> Found:
    """All samples of the recipe's data with their groups, and what was skipped.

    Raises UserError.
    """
    data, labels = recipe.data, recipe.labels
    options = data.source if isinstance(data.source, dict) else {}
    for key in options.keys() & Data.model_fields.keys():
        raise UserError(f"data.source.{key} = {options[key]!r}: not an option of a source; it is data.{key}")
    source = bind(SOURCES, data.source, 2, "data.source", "data.source")
    if source.func is not drawn:
        _check_folder("data.root", data.root)
    found: Found = source(data, labels)
    if not found.samples:
        first = found.skipped[:1]
        why = f"; {len(found.skipped)} skipped, first {first[0].file}: {first[0].reason}" if first else ""
        raise UserError(f"data.root = '{data.root}': the source finds no sample there{why}")
    odd = next((s for s in found.samples if len(s.frames or (*s.older, s.path)) != data.steps), None)
    if odd:
        key = f"look = {list(data.look)}" if data.look else f"frames = {data.frames}"
        raise UserError(f"data.{key}: {odd.id} is a single picture; films, the toy and a csv with times look back")
    there = {sample.label: sample.id for sample in reversed(found.samples)}
    missing = [label for label in labels if label not in there]
    for label, id in there.items():
        if label not in labels:
            hint = nearest(label, missing or labels)
            raise UserError(f"labels: the data has {label!r} ({id}), which the recipe lacks{hint}")
    if missing:
        raise UserError(f"labels = {missing[0]!r}: no sample has it{nearest(missing[0], there)}")
    if data.group is not None:
        if regex := _regex(data.group):
            found.samples = [replace(sample, group=_group_of(sample, regex)) for sample in found.samples]
        kept = [sample for sample in found.samples if sample.group]
        rule = f"data.group = {data.group!r}"
        if not kept:
            raise UserError(f"{rule}: no sample gets a group by it; the first one's name is {found.samples[0].id}")
        found.skipped += [Skipped(sample.id, f"no group by {rule}") for sample in found.samples if not sample.group]
        found.samples = kept
    if data.negatives is not None:
        more = _negatives(data.negatives, labels)
        if twice := {sample.id for sample in found.samples} & {sample.id for sample in more.samples}:
            raise UserError(f"data.negatives: {min(twice)} is also a name in data.root; move the negatives elsewhere")
        found.samples += more.samples
        found.skipped += more.skipped
    return found


def unlabelled(data: Data) -> Found:
    """data.unlabelled: a folder of pictures and films, a film, or a CSV. Raises UserError."""
    # Of a film two frames or looks a second are taken, or more where data says so; samples without a group may stay so
    assert data.unlabelled is not None
    place = data.unlabelled
    root, found = place if place.is_dir() else place.parent, Found()
    data = data.model_copy(update={"root": root})
    if place.suffix.lower() == ".csv":
        found = table(data, (), place.name)
    for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
        inner, kind = path.relative_to(root), path.suffix.lower()
        group = inner.parts[0] if data.group == "folder" and len(inner.parts) > 1 else ""
        row = Sample(inner.as_posix(), path, NO_LABEL, group)
        if kind not in (*PICTURES, *VIDEOS) or any(part.startswith(".") for part in inner.parts):
            continue
        if kind in VIDEOS:
            cut(row, data, found, rate=SPARSE)
        elif data.steps > 1:
            found.skipped.append(Skipped(row.id, f"a single picture has no look of {data.steps} frames"))
        else:
            sequence, time = frame_of(path.name)
            found.samples.append(replace(row, sequence=sequence, time=time))
    for number, sample in enumerate(found.samples):
        named = _group_of(sample, regex) if (regex := _regex(data.group)) else sample.group
        found.samples[number] = replace(sample, id=f"unlabelled/{sample.id}", group=named)
    if not found.samples:
        why = f": {found.skipped[0].file}: {found.skipped[0].reason}" if found.skipped else ""
        raise UserError(f"data.unlabelled = '{place}': no picture or film is found there{why}")
    return found


def _check_folder(key: str, path: Path) -> None:
    if not path.is_dir():
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        close = hint if "mean" in (hint := nearest(path.name, beside)) else ""  # a list of what lies there is no help
        where = f" in {Path.cwd()}, where a relative path starts; {key}=FOLDER names another"
        raise UserError(f"{key} = '{path}': no such folder{'' if path.is_absolute() else where}{close}")


def _regex(rule: str | None) -> re.Pattern[str] | None:
    if rule is None or rule == "folder" or rule.startswith("column:"):
        return None
    advice = 'else it is "folder" or "column:NAME"'
    try:
        regex = re.compile(rule)
    except re.error as error:
        raise UserError(f"data.group = {rule!r}: not a regular expression ({error}); {advice}") from error
    if not regex.groups:
        raise UserError(f"data.group = {rule!r}: has no bracket (...) that says which part is the group; {advice}")
    return regex


def _group_of(sample: Sample, regex: re.Pattern[str]) -> str:
    whole = re.sub(r"#\d+$", "", sample.id) if sample.frames else sample.id
    return group_of(regex, whole)


def group_of(regex: re.Pattern[str], path: str) -> str:
    """The first bracket's match in the file's name, else in its path; "" for none."""
    match = regex.search(path.rpartition("/")[2]) or regex.search(path)
    return (match[1] or "") if match else ""


def _negatives(root: Path, labels: tuple[str, ...]) -> Found:
    """Filed false alarms, root/LABEL/CAMERA/*.jpg; LABEL is true."""
    _check_folder("data.negatives", root)
    for folder in subfolders(root):
        if folder.name not in labels:
            hint = nearest(folder.name, labels)
            raise UserError(f"data.negatives = '{root}': the folder {folder.name!r} is no label of the recipe's{hint}")
    found = folders(Data(source="folders", root=root, group="folder"), labels)
    for place, row in enumerate(found.samples):
        id, group = f"negatives/{row.id}", f"negatives/{row.group or 'unknown'}"
        found.samples[place] = replace(row, id=id, group=group, split="train", sequence="", time=0.0, negative=True)
    return Found(found.samples, [replace(bad, file=f"negatives/{bad.file}") for bad in found.skipped])


def decode(
    samples: Sequence[Sample], data: Data, aspects: list[float] | None = None
) -> Iterator[tuple[Sample, NDArray[np.uint8] | str]]:
    """Pixels of samples that share one file, opened once: uint8 (T,h,w,C), or why not.

    data.region: only what lies in the sample's box. aspects: gets each picture's original width / height.
    """

    def fit(picture: NDArray[np.uint8], box: Box | None = None) -> NDArray[np.uint8]:
        if data.region and box:
            left, top, right, bottom = box
            picture = picture[top:bottom, left:right]
        if aspects is not None:
            aspects.append(picture.shape[1] / picture.shape[0])
        return image.fit(picture, data.hw, data.fit, data.channels)

    if not samples:
        return
    first = samples[0]
    if first.read:
        for sample, picture in first.read(samples):
            if not isinstance(picture, str):
                looks = picture if picture.ndim == 4 else picture[None]
                yield sample, np.stack([fit(frame, sample.box) for frame in looks])
            else:
                yield sample, picture
    elif first.frames:
        by_window: dict[Window, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_window[sample.frames].append(sample)
        for window, pictures in clips(first.path, list(by_window), (lambda whole: whole) if data.region else fit):
            for sample in by_window[window]:
                if isinstance(pictures, str):
                    yield sample, pictures
                else:
                    yield sample, np.stack([fit(one, sample.box) for one in pictures] if data.region else pictures)
    else:
        least = data.hw if data.shrink and not data.region else None  # boxes are in native pixels
        for sample in samples:
            files = [read_picture(path, least) for path in (*sample.older, sample.path)]
            bad = next((picture for picture in files if isinstance(picture, str)), None)
            yield sample, bad or np.stack([fit(one, sample.box) for one in files if not isinstance(one, str)])
