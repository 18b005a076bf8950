"""Reader: gathers the samples of a recipe's data, and decodes them. Writes nothing, and knows no net."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import UserError, nearest
from stillwatch.lab.data.sources import SOURCES, Found, Sample, Skipped, check_folder, drawn, negatives
from stillwatch.media import image
from stillwatch.media.decode import Window, clips, read_picture
from stillwatch.recipe import Data, Recipe
from stillwatch.registry import bind

__all__ = ["SOURCES", "Found", "Sample", "Skipped", "decode", "gather"]


def gather(recipe: Recipe) -> Found:
    """All samples of the recipe's data, each with its group, and what was skipped with the reason.

    Raises UserError, one line, for a missing root, an unknown source or option, a group that no file has, labels that
    do not agree with the recipe's, and for nothing found at all.
    """
    data = recipe.data
    source = bind(SOURCES, data.source, 2, "data.source", "data.source")
    if source.func is not drawn:
        check_folder("data.root", data.root)
    found: Found = source(data, recipe.labels)
    if not found.samples:
        first = found.skipped[:1]
        why = f"; {len(found.skipped)} skipped, first {first[0].file}: {first[0].reason}" if first else ""
        raise UserError(f"data.root = '{data.root}': the source finds no sample there{why}")
    odd = next((sample for sample in found.samples if len(sample.frames or (0,)) != data.frames), None)
    if odd:
        raise UserError(f"data.frames = {data.frames}: {odd.id} is a single picture; only videos give more than 1")
    _check_labels(found, recipe.labels)
    _give_groups(found, data)
    if data.negatives is not None:
        more = negatives(data.negatives, recipe.labels)
        if twice := {sample.id for sample in found.samples} & {sample.id for sample in more.samples}:
            raise UserError(f"data.negatives: {min(twice)} is also a name in data.root; move the negatives elsewhere")
        found.samples += more.samples
        found.skipped += more.skipped
    return found


def _check_labels(found: Found, labels: Sequence[str]) -> None:
    """The data's labels against the recipe's, both ways. Raises UserError."""
    there = {sample.label: sample.id for sample in reversed(found.samples)}
    missing = [label for label in labels if label not in there]
    for label, id in there.items():
        if label not in labels:
            hint = nearest(label, missing or labels)
            raise UserError(f"labels: the data has {label!r} ({id}), which the recipe lacks{hint}")
    if missing:
        raise UserError(f"labels = {missing[0]!r}: no sample has it{nearest(missing[0], there)}")


def _give_groups(found: Found, data: Data) -> None:
    """Give each sample its group by data.group; one without a group is skipped. Raises UserError where none has one."""
    if data.group is None:
        return
    if data.group != "folder" and not data.group.startswith("column:"):
        found.samples = _by_regex(found.samples, data.group)
    kept = [sample for sample in found.samples if sample.group]
    if not kept:
        first = found.samples[0].id
        raise UserError(f"data.group = {data.group!r}: no sample gets a group by it; the first one's name is {first}")
    found.skipped += [
        Skipped(sample.id, f"no group by data.group = {data.group!r}") for sample in found.samples if not sample.group
    ]
    found.samples = kept


def _by_regex(samples: list[Sample], pattern: str) -> list[Sample]:
    """The regex's first bracket, looked for in the file's own name and then in its whole path."""
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f'data.group = {pattern!r}: not a regular expression ({error}); else it is "folder" or "column:NAME"'
        ) from error
    if not regex.groups:
        raise UserError(
            f"data.group = {pattern!r}: has no bracket (...) that says which part is the group;"
            ' else it is "folder" or "column:NAME"'
        )
    out = []
    for sample in samples:
        whole = re.sub(r"#\d+$", "", sample.id) if sample.frames else sample.id
        match = regex.search(whole.rpartition("/")[2]) or regex.search(whole)
        out.append(replace(sample, group=(match[1] or "") if match else ""))
    return out


def decode(samples: Sequence[Sample], data: Data) -> Iterator[tuple[Sample, NDArray[np.uint8] | str]]:
    """The pixels of samples that share one file, which is opened once.

    Yields each sample with uint8 (T,h,w,C) RGB or gray, brought to data.hw and data.channels by image.fit, or with
    a str that says why it cannot be read. Raises nothing for a bad file.
    """

    def fit(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image.fit(picture, data.hw, data.fit, data.channels)

    if not samples:
        return
    first = samples[0]
    if first.read:
        for sample, picture in first.read(samples):
            yield sample, picture if isinstance(picture, str) else fit(picture)[None]
    elif first.frames:
        by_window: dict[Window, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_window[sample.frames].append(sample)
        for window, pictures in clips(first.path, list(by_window), fit):
            for sample in by_window[window]:
                yield sample, pictures if isinstance(pictures, str) else np.stack(pictures)
    else:
        picture = read_picture(first.path)
        for sample in samples:
            yield sample, picture if isinstance(picture, str) else fit(picture)[None]
