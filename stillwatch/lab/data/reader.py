"""Data: the lab's door to pictures and clips: gather what there is, and decode it.

In: a Recipe. Out: Found (samples, and what was skipped with the reason), uint8 pixels of the recipe's size.
Called by audit, cache and the CLI. It writes nothing, enforces no max_bad, and knows no net.
"""

import inspect
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import UserError, nearest
from stillwatch.lab.data.sources import SOURCES, Found, Sample, Skipped, drawn, negatives, read_idx
from stillwatch.media import image as pixels
from stillwatch.media import synthetic
from stillwatch.media.decode import Window, clips, read_picture
from stillwatch.recipe import Data, Recipe
from stillwatch.registry import build_spec

__all__ = ["SOURCES", "Found", "Sample", "Skipped", "decode", "gather"]


def gather(recipe: Recipe) -> Found:
    """All samples of the recipe's data, each with its group, and what was skipped with the reason.

    Raises UserError, one line, for a missing root, an unknown source or option, a group that no file has, labels that
    do not agree with the recipe's, and for nothing found at all.
    """
    data = recipe.data
    source, options = build_spec(SOURCES, data.source, "data.source")
    _check_options(source, options)
    if source is not drawn and not data.root.is_dir():
        parent = data.root.parent
        beside = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
        raise UserError(
            f"data.root = '{data.root}': no such folder" + (nearest(data.root.name, beside) if beside else "")
        )
    found: Found = source(data, recipe.labels, **options)
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
        _add_negatives(found, negatives(data.negatives, recipe.labels))
    return found


def _add_negatives(found: Found, more: Found) -> None:
    """Lay the street's false alarms beside the data. Raises UserError where a file of the data has the same name."""
    taken = {sample.id for sample in found.samples}
    if twice := next((sample.id for sample in more.samples if sample.id in taken), None):
        raise UserError(f"data.negatives: {twice} is also a name in data.root; move the negatives out of there")
    found.samples += more.samples
    found.skipped += more.skipped


def _check_options(source: Callable[..., Any], options: dict[str, Any]) -> None:
    """Options against the source's own signature. Raises UserError."""
    known = {name: p for name, p in inspect.signature(source).parameters.items() if p.default is not p.empty}
    for name, value in options.items():
        if name not in known:
            hint = nearest(name, known) if known else "; this source has no options"
            raise UserError(f"data.source.{name} = {value!r}: unknown option{hint}")
        kind = type(known[name].default)
        if kind in (int, str) and type(value) is not kind:
            raise UserError(f"data.source.{name} = {value!r}: must be {'a whole number' if kind is int else 'text'}")
        if kind is int and value < 0:
            raise UserError(f"data.source.{name} = {value!r}: must not be negative")


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
    """Lay data.group over the samples; one without a group is skipped. Raises UserError where none has one."""
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

    Yields each sample with uint8 (T,h,w,C) RGB or gray, brought to data.hw and data.channels by pixels.fit, or with
    a str that says why it cannot be read. Raises nothing for a bad file.
    """
    if not samples:
        return
    if samples[0].path == Path():
        read = _draw
    elif not samples[0].frames:
        read = _pictures
    elif "-ubyte" in samples[0].path.name:
        read = _rows
    else:
        read = _clip
    for sample, value in read(samples, data):
        yield sample, value if isinstance(value, str) else np.stack(value)


Read = Iterator[tuple[Sample, list[NDArray[np.uint8]] | str]]


def _fit(image: NDArray[np.uint8], data: Data) -> NDArray[np.uint8]:
    return pixels.fit(image, data.hw, data.fit, data.channels)


def _draw(samples: Sequence[Sample], data: Data) -> Read:
    options = {} if isinstance(data.source, str) else data.source
    defaults = inspect.signature(drawn).parameters
    size = tuple(int(options.get(side, defaults[side].default)) for side in ("height", "width"))
    for sample in samples:
        _, scene, person, label, number = sample.id.split("/")
        yield sample, [_fit(synthetic.still(scene, label, int(person), int(number), (size[0], size[1])), data)]


def _pictures(samples: Sequence[Sample], data: Data) -> Read:
    image = read_picture(samples[0].path)
    value: list[NDArray[np.uint8]] | str = image if isinstance(image, str) else [_fit(image, data)]
    for sample in samples:
        yield sample, value


def _rows(samples: Sequence[Sample], data: Data) -> Read:
    try:
        images = read_idx(samples[0].path, 3)
    except UserError as error:
        for sample in samples:
            yield sample, str(error)
        return
    for sample in samples:
        row = sample.frames[0]
        yield sample, [_fit(images[row], data)] if row < len(images) else f"the file has {len(images)} rows"


def _clip(samples: Sequence[Sample], data: Data) -> Read:
    """In order of their frames, so that the file is decoded once."""
    by_window: dict[Window, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_window[sample.frames].append(sample)
    for window, images in clips(samples[0].path, list(by_window), lambda image: _fit(image, data)):
        for sample in by_window[window]:
            yield sample, images
