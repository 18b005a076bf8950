"""A first recipe for a folder: what is sure is a line, what is guessed a commented line."""

import json
import math
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from stillwatch.errors import UserError, nearest
from stillwatch.inference.timing import cores, machine
from stillwatch.lab.data.sources import SPLITS
from stillwatch.lab.inventory import Glance, Grouping, Inventory
from stillwatch.recipe import SCHEMAS

SAFE = re.compile(
    r"(?i)^(?:safe|calm|normal|none|ok|good|neutral|background|negative|awake|non[_ -]?\w+|no[_ -]\w+)|safe"
)
TINY = 40  # pixels of the longer side: our own small nets
AREA, AREA_GPU = 112 * 192, 224 * 224  # pixels that the nets see


class Nets(NamedTuple):
    teacher: str
    student: str
    why: str


def safe_ones(asked: list[str], found: Inventory) -> list[str]:
    """Raises UserError for a word that is no label."""
    for word in asked:
        if word not in found.labels:
            raise UserError(f"--safe {word}: is not among the labels{nearest(word, found.labels)}")
    return asked


def likely_safe(found: Inventory) -> list[str]:
    """By its name, else the first."""
    return [label for label in found.labels if SAFE.search(label)] or list(found.labels)[:1]


def nets(found: Inventory, seen: Glance) -> Nets:
    """What this machine trains in an evening, by cores, memory and NVIDIA's driver."""
    here, cuda = machine(), Path("/proc/driver/nvidia/version").exists()
    memory = f"{here.memory / 2**30:.0f} GB" if here.memory else "unknown memory"
    why = f"this machine: {cores()} cores, {memory}, {'an NVIDIA GPU' if cuda else 'no NVIDIA GPU'}"
    if seen.shapes and max(map(max, seen.shapes)) <= TINY:
        return Nets('{ name = "mnist-cnn", dropout = 0.3 }', '"mnist-small"', f"tiny pictures need no ImageNet; {why}")
    look = ', front = "difference", temporal = "spread"' if found.source == "videos" and seen.rate else ""
    large = cuda or (cores() >= 8 and (here.memory or 0) > 12 << 30)
    teacher = "tf_efficientnetv2_s" if large else "mobilenetv2_100" if look else "tf_efficientnet_lite0"
    frozen = "" if large or not look else ", frozen = 3"
    student = f'{{ name = "tf_mobilenetv3_small_075", dropout = 0.1{look} }}'
    return Nets(f'{{ name = "{teacher}"{frozen}, dropout = 0.3{look} }}', student, why)


def size(seen: Glance, large: bool) -> tuple[str, str]:
    """data.size and its reason."""
    if not seen.shapes:
        return "size   = [112, 192]", "no picture could be looked at"
    (height, width), same = Counter(seen.shapes).most_common(1)[0]
    why = f"{same} of {len(seen.shapes)} looked at are {width} × {height}"
    if max(height, width) > TINY:
        aspect = min(max(width / height, 0.5), 2.0)
        high = (min(AREA_GPU if large else AREA, height * width) / aspect) ** 0.5
        height, width = (max(16, 16 * round(side / 16)) for side in (high, high * aspect))
    return f"size   = [{max(8, height)}, {max(8, width)}]", why


def look(seen: Glance) -> list[float]:
    """Moments in seconds back that every film has: five a tenth of a second apart, fewer of short or slow ones."""
    step = max(0.1, math.ceil(100 / seen.rate - 1e-6) / 100) if seen.rate else 0.0
    count = min(5, 1 + int(0.9 * seen.seconds / step - 1e-6)) if step else 0
    return [round(step * number, 2) for number in range(count)] if count > 1 else []


def split(found: Inventory, chosen: Grouping | None) -> list[str]:
    """The lines of data.split. Raises UserError."""
    most = max(found.labels.values())
    official = {"train", "test"} <= {e.split for e in found.entries} and all(e.split for e in found.entries)
    step = -(-len(found.entries) // len(chosen.groups)) if chosen else 1  # names were looked at evenly spread
    both = set[str]()
    if chosen and official:
        pairs = {(g, e.split) for g, e in zip(chosen.groups, found.entries[::step], strict=False)}
        both = {group for group, _ in pairs if {(group, "train"), (group, "test")} <= pairs}
    if official and not both:
        return [_line('split  = "official"', "the data's own; the audit says whether anybody is in two of them")]
    if most < 3:
        raise UserError(
            f"{found.root}: {most} of the largest class: too few for training, validation and test; 3 at least"
        )
    leaks = f"leaks: {len(both)} of {chosen.distinct} groups are in train and test" if chosen else ""
    leak = [_line('split = "official"', leaks, False)] if both else []
    if chosen and chosen.distinct >= 3:
        folds = min(5, chosen.distinct, most)
        return [_line('split  = "grouped"', "a group is never in two splits"), *leak, f"folds  = {folds}"]
    why = "by chance, for want of a sure group: figures will flatter, for the test may show people it has learnt from"
    return [_line('split  = "ratio"', why), *leak, _line('split = "grouped"', "with a group, and honest", False),
            f"folds  = {min(5, most)}"]  # fmt: skip


def recipe(found: Inventory, seen: Glance, out: Path, safe: list[str], chosen: Grouping | None) -> str:
    """The text. chosen: the sure group, if any; others are commented lines."""
    pair, films = nets(found, seen), found.source == "videos"
    counts = ", ".join(f"{count:,}" for count in found.labels.values())
    lines = [
        f"#:schema {(SCHEMAS / 'recipe.json').absolute().as_uri()}",  # for editors on this machine
        "# By `stillwatch init`. What is sure is set; what was guessed is a commented line: look at it. Then:",
        *(f"#   {command}" for command in next_commands(out)),
        *(f"# {plain(note)}" for note in found.notes),
        f"name   = {toml(name_of(out))}",
        _line(f"labels = {toml(list(found.labels))}", f"{counts} {'films' if films else 'pictures'}"),
    ]
    if safe:
        lines.append(_line(f"safe   = {toml(safe)}", "these raise no alarm"))
    else:
        guess = toml(likely_safe(found))
        lines.append(_line(f"safe = {guess}", "which labels raise no alarm? without this line all of them do", False))
    lines += ["", "[data]", *_data(found, seen, chosen, "v2_s" in pair.teacher), ""]
    lines += [_line("[teacher]", pair.why), f"net = {pair.teacher}", "", "[student]", f"net = {pair.student}", ""]
    lines += ["[fit]", *(("epochs = 4", "batch  = 16") if look(seen) else ("epochs = 10", "batch  = 32"))]
    why = 'one driver, whose eyes and hands count; without this line it is "cctv": evidence over seconds'
    return "\n".join([*lines, "", "[rule]", _line('profile = "driver"', why, False), ""])


def next_commands(out: Path) -> list[str]:
    here = shlex.quote(plain(str(out)))
    return [
        f"stillwatch audit {here}      # before any training: leaks, duplicates, what guessing would reach",
        f"stillwatch teach {here}      # the heavy net",
        f"stillwatch crossval {here}   # teacher, student alone, distilled, on every fold: did it help?",
    ]


def words(found: Inventory, seen: Glance) -> list[str]:
    labels = ", ".join(f"{label} {count:,}" for label, count in found.labels.items())
    splits = Counter(entry.split for entry in found.entries if entry.split)
    lines = [f"{found.root}: read by source {found.source!r}", f"labels: {labels}"]
    lines += [f"splits: {', '.join(f'{name} {splits[name]:,}' for name in SPLITS if splits[name])}"] if splits else []
    lines += [f"group:  {group.evidence}" for group in found.groupings]
    return [plain(line) for line in [*lines, f"size:   {size(seen, False)[1]}", *found.notes]]


def _data(found: Inventory, seen: Glance, chosen: Grouping | None, large: bool) -> list[str]:
    option = {"csv": "file", "videos": "manifest"}[found.source] if found.table else ""
    source = f"{{ name = {toml(found.source)}, {option} = {toml(found.table)} }}" if option else toml(found.source)
    lines = [f"source = {source}", f"root   = {toml(str(found.root))}"]
    for grouping in found.groupings:
        rule = toml(grouping.rule) if "\\" not in grouping.rule else f"'{grouping.rule}'"  # as a person writes a regex
        lines.append(_line(f"group {' ' * (grouping is chosen)}= {rule}", grouping.evidence, grouping is chosen))
    lines += [*split(found, chosen), _line(*size(seen, large))]
    if len(shapes := {round(width / height, 1) for height, width in seen.shapes}) > 1:
        lines.append(_line('fit = "letterbox"', f"{len(shapes)} shapes among those looked at: else stretched", False))
    if seen.gray:
        lines.append(_line("gray   = true", "all that were looked at are gray"))
    if moments := look(seen):
        why = f"seconds back; the shortest looked at has {seen.seconds:.2g} s, the slowest {seen.rate:.3g} frames/s"
        lines += [_line(f"look   = {moments}", why), _line("windows = 4", "looks a film")]
    return lines


def _line(code: str, comment: str, on: bool = True) -> str:
    code, comment = f"{'' if on else '# '}{code}", f"# {plain(comment)}"
    return f"{code:<36} {comment}" if len(code) <= 36 and len(comment) <= 84 else f"{comment}\n{code}"


def toml(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def plain(text: str) -> str:
    """Fit for a comment: one line without control characters."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= 300 else f"{text[:300]}…"


def name_of(out: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", out.stem).strip("-._") or "mine"
