"""Audit: what is wrong with a data set, before anything is learnt from it.

In: samples with their splits, and their cached pixels. Out: a dict (audit.json), its plain text, contact sheets.
Called by the CLI. It knows no net, decodes no file and changes nothing: it counts, and says what the counts mean.
"""

import re
import textwrap
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from stillwatch import metrics
from stillwatch.atomic import atomic
from stillwatch.lab.data.duplicates import SPLITS, find
from stillwatch.lab.data.sources import Sample, Skipped
from stillwatch.media import image
from stillwatch.run import NO_PROGRESS, Progress

WIDTH = 100  # columns of the summary
LEAK = 0.10  # accuracy by which the no-pixels baseline must beat the majority class before it counts as a leak
IMBALANCE = 10  # times as many training samples in the largest class as in the smallest
FEW = 5  # groups in a split below which its figure says little about the next group
NAMED = 6  # names listed in a sentence before "..."
TILE = 160  # width of a contact sheet's tile, pixels
CAPTION, TITLE, COLUMNS = 18, 28, 6


def audit(
    samples: Sequence[Sample],
    skipped: Sequence[Skipped],
    clips: Any,
    labels: tuple[str, ...],
    split: str,
    voice: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Look for leaks, duplicates, imbalance and bad files.

    samples: N, each with its split. clips: uint8 (N,T,H,W,C), aligned with them; a memory map will do.
    split: the recipe's data.split, for the wording. Returns what audit.json holds; a figure that cannot be had is
    None. Raises ValueError where clips and samples differ in number.
    """
    if len(samples) != len(clips):
        raise ValueError(f"{len(samples)} samples but {len(clips)} pictures")
    duplicates, distinct = find(samples, clips, voice)
    blind = no_pixels(samples, labels)
    found: dict[str, Any] = {
        "samples": len(samples),
        "split": split,
        "skipped": _skipped(samples, skipped),
        "splits": _counts(samples, labels),
        "groups": _groups(samples, labels),
        "negatives": _negatives(samples, labels),
        "duplicates": duplicates,
        "distinct": distinct,
        "majority": _majority(samples, labels),
        "no_pixels": None if isinstance(blind, str) else blind,
        "no_pixels_reason": blind if isinstance(blind, str) else None,
    }
    return found | {"warnings": _warnings(found, labels)}


# ---- counts and baselines


def _skipped(samples: Sequence[Sample], skipped: Sequence[Skipped]) -> dict[str, Any]:
    total = len(samples) + len(skipped)
    return {
        "count": len(skipped),
        "share": len(skipped) / total if total else 0.0,
        "reasons": dict(Counter(item.reason for item in skipped).most_common()),
        "files": [{"file": item.file, "reason": item.reason} for item in skipped],
    }


def _counts(samples: Sequence[Sample], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = Counter((sample.split, sample.label) for sample in samples)
    table = {split: {label: counts[split, label] for label in labels} for split in SPLITS}
    return {split: {**row, "total": sum(row.values())} for split, row in table.items()}


def _groups(samples: Sequence[Sample], labels: Sequence[str]) -> dict[str, Any]:
    splits_of, of_label = defaultdict(set), defaultdict(set)
    for sample in samples:
        if sample.group:
            splits_of[sample.group].add(sample.split)
            of_label[sample.label].add(sample.group)
    names = sorted(splits_of, key=_natural)
    return {
        "count": len(names),
        "unknown": sum(not sample.group for sample in samples),
        "by_split": {split: [name for name in names if split in splits_of[name]] for split in SPLITS},
        "in_two_splits": [name for name in names if len(splits_of[name]) > 1],
        "of_label": {label: sorted(of_label[label], key=_natural) for label in labels},
    }


def _negatives(samples: Sequence[Sample], labels: Sequence[str]) -> dict[str, Any]:
    """The false alarms that the street filed: how many, of how many cameras, of which labels."""
    own = [sample for sample in samples if sample.negative]
    counts = Counter(sample.label for sample in own)
    cameras = {sample.group for sample in own}
    return {"count": len(own), "cameras": len(cameras), "labels": {label: counts[label] for label in labels}}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts driver 9 before driver 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _majority(samples: Sequence[Sample], labels: Sequence[str]) -> dict[str, Any] | None:
    """How well the most frequent training label does on test; None where either is empty."""
    train = Counter(sample.label for sample in samples if sample.split == "train")
    test = [sample.label for sample in samples if sample.split == "test"]
    if not train or not test:
        return None
    label = max(labels, key=lambda name: train[name])
    return {"label": label, **_score(test, [label] * len(test), labels)}


def no_pixels(samples: Sequence[Sample], labels: Sequence[str]) -> dict[str, Any] | str:
    """What is scored on test without looking at a picture: the label of the nearest training frame in time.

    A test sample takes it from its own sequence (of two as near, the earlier); without a training frame there, it
    takes the majority label of train. Returns accuracy, macro_f1, covered (share of test samples that found a frame),
    neighbours (their number) and median_gap (in the units of Sample.time; None where there is none), or the reason
    why there is no such figure.
    """
    majority = _majority(samples, labels)
    test = [sample for sample in samples if sample.split == "test"]
    times: dict[str, set[float]] = defaultdict(set)
    train: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for sample in samples:
        if sample.sequence:
            times[sample.sequence].add(sample.time)
            if sample.split == "train":
                train[sample.sequence].append((sample.time, sample.label))
    if majority is None:
        return "train or test is empty"
    if not times:
        return "the samples name no recording that they come from"
    if all(len(moments) == 1 for moments in times.values()):
        return "no recording holds two samples in an order"
    for rows in train.values():
        rows.sort()
    guessed, gaps = [], []
    for sample in test:
        rows = train.get(sample.sequence, [])
        after = bisect_left(rows, sample.time, key=itemgetter(0))
        near = [(abs(time - sample.time), label) for time, label in rows[max(after - 1, 0) : after + 1]]
        if near:
            gap, label = min(near, key=itemgetter(0))
            gaps.append(gap)
        guessed.append(label if near else majority["label"])
    return {
        **_score([sample.label for sample in test], guessed, labels),
        "covered": len(gaps) / len(test),
        "neighbours": len(gaps),
        "median_gap": float(np.median(gaps)) if gaps else None,
    }


def _score(true: Sequence[str], guessed: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    row = {label: i for i, label in enumerate(labels)}
    y, p = np.array([row[label] for label in true]), np.eye(len(labels))[[row[label] for label in guessed]]
    return {"accuracy": metrics.accuracy(y, p), "macro_f1": metrics.macro_f1(y, p)}


# ---- what the counts mean: a list of sentences, the worst first


def _warnings(found: dict[str, Any], labels: Sequence[str]) -> list[str]:
    return [*_leaks(found), *_copies(found), *_shares(found, labels), *_unknown(found), *_bad(found["skipped"])]


def _leaks(found: dict[str, Any]) -> list[str]:
    out, split, blind, majority = [], found["split"], found["no_pixels"], found["majority"]
    tests = found["splits"]["test"]["total"]
    if split == "grouped":
        cure = "The groups do not keep the recordings apart: check data.group."
    elif found["groups"]["count"]:
        cure = 'Use data.split = "grouped".'
    else:
        cure = 'Set data.group and use data.split = "grouped".'
    leaking = bool(blind and majority and blind["accuracy"] > majority["accuracy"] + LEAK)
    if leaking:
        out.append(
            f"The {split} split leaks: {blind['neighbours']:,} of {tests:,} test samples have a neighbour of the same "
            f"recording in train; copying its label, without looking at a pixel, scores {_percent(blind['accuracy'])} "
            f"(the majority class {_percent(majority['accuracy'])}). {cure}"
        )
    shared = found["groups"]["in_two_splits"]
    tested = set(found["groups"]["by_split"]["test"])
    if shared and not tested.intersection(shared):
        out.append(
            f"{len(shared)} groups are in both train and valid ({_some(shared)}), as data.valid asks: the validation "
            "figure says how well these are known; only the test figure is of new ones."
        )
    elif shared:
        out.append(
            f"{len(shared)} of {found['groups']['count']} groups are in more than one split ({_some(shared)}): the "
            "test figure says how well these are known, not how it goes with a new one."
            + ("" if leaking else f" {cure}")
        )
    for kind, words in (("exact", "an identical"), ("near", "a nearly identical"), ("mirrored", "a mirrored")):
        twins = found["duplicates"][kind]
        if twins["across"]:
            out.append(
                f"{twins['across']:,} samples have {words} picture in another split; {twins['test_in_train']:,} of "
                f"{tests:,} test samples have one in train."
            )
    return out


def _copies(found: dict[str, Any]) -> list[str]:
    out, twins = [], found["duplicates"]
    same = twins["conflicting"]
    for kind, words in (("exact", "an identical"), ("mirrored", "a mirrored")):
        if same[kind]:
            out.append(f"{same[kind]:,} samples have {words} picture with another label: one of the two is wrong.")
    if same["near"]:
        out.append(
            f"{same['near']:,} samples look nearly like a sample with another label: labels that change from one frame "
            "to the next, or wrong ones."
        )
    for kind, words in (("exact", "an identical copy"), ("mirrored", "a mirrored twin")):
        if twins[kind]["within"]:
            out.append(
                f"{twins[kind]['within']:,} samples have {words} within their split: {found['samples']:,} samples are "
                f"{found['distinct']:,} distinct pictures, and the copies count twice."
            )
    return out


def _shares(found: dict[str, Any], labels: Sequence[str]) -> list[str]:
    out, splits, groups = [], found["splits"], found["groups"]
    for split in SPLITS:
        absent = [label for label in labels if not splits[split][label]]
        if not splits[split]["total"]:
            out.append(f"The {split} split is empty.")
        elif absent:
            out.append(f"No {_some(absent, 'or')} in {split}: {CONSEQUENCES[split]}.")
    alone = {label: names[0] for label, names in groups["of_label"].items() if len(names) == 1}
    if groups["count"] > 1:
        for label, name in alone.items():
            out.append(f"Only group {name} has {label}: a net may learn the group in place of the class.")
    counts = {label: splits["train"][label] for label in labels if splits["train"][label]}
    if counts and max(counts.values()) >= IMBALANCE * min(counts.values()):
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        out.append(
            f"Train holds {counts[most] / counts[least]:.0f} times as much {most} ({counts[most]:,}) as {least} "
            f"({counts[least]:,}): weigh the classes, and read macro-F1 beside accuracy."
        )
    for split in ("valid", "test") if found["split"] == "grouped" else ():
        names = groups["by_split"][split]
        if 0 < len(names) < FEW:
            out.append(
                f"The {split} split holds {len(names)} group{'s' if len(names) > 1 else ''} ({_some(names)}): its "
                "figure says little about the next group. Run all folds."
            )
    return out


CONSEQUENCES = {
    "train": "it cannot be learnt",
    "valid": "the best epoch is chosen without it",
    "test": "the test figure says nothing about it",
}


def _unknown(found: dict[str, Any]) -> list[str]:
    unknown, total = found["groups"]["unknown"], found["samples"]
    if found["split"] == "grouped" or not total:
        return []
    risk = "the same person, camera or recording may be on both sides, and the test figure far too good"
    if unknown == total:
        return [f"No sample names its group: in the {found['split']} split {risk}. Set data.group."]
    if unknown:
        return [f"{unknown:,} of {total:,} samples name no group: {risk}."]
    return [f"The ratio split pays no heed to the groups: {risk}."] if found["split"] == "ratio" else []


def _bad(skipped: dict[str, Any]) -> list[str]:
    if not skipped["count"]:
        return []
    reasons = ", ".join(f"{reason} ({count:,})" for reason, count in list(skipped["reasons"].items())[:NAMED])
    files = "file or line was" if skipped["count"] == 1 else "files or lines were"
    return [f"{skipped['count']:,} {files} skipped ({_percent(skipped['share'])}): {reasons}."]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 or not share else f"{100 * share:.2f} %"


def _some(names: Sequence[str], last: str = "and") -> str:
    """`a, b and c`; a long list is cut short."""
    if len(names) > NAMED:
        return ", ".join(names[:NAMED]) + ", ..."
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


# ---- for reading and looking


def summary(found: dict[str, Any]) -> str:
    """The audit as plain text, at most 100 columns wide, warnings first."""
    skipped, groups, warnings = found["skipped"], found["groups"], found["warnings"]
    lines = [
        f"{found['samples']:,} samples, {found['distinct']:,} distinct pictures, {groups['count']:,} groups, "
        f"{skipped['count']:,} skipped; split: {found['split']}",
        "",
        f"{len(warnings)} warning{'s' if len(warnings) != 1 else ''}" + (":" if warnings else ": nothing looks wrong"),
    ]
    for number, text in enumerate(warnings, 1):
        whole = text.replace(" %", "\u00a0%")  # a figure and its sign stay on one line
        wrapped = textwrap.wrap(whole, WIDTH, initial_indent=f"{number:3}. ", subsequent_indent="     ")
        lines += [line.replace("\u00a0", " ") for line in wrapped]
    names = [name for name in found["splits"]["train"] if name != "total"]
    if negatives := found["negatives"]["count"]:
        cameras = found["negatives"]["cameras"]
        lines += [
            "",
            f"{negatives:,} of the training samples are false alarms that were filed on {cameras} "
            f"camera{'s' * (cameras != 1)}; valid and test have none.",
        ]
    rows = [["class", *SPLITS, "all"]]
    for name in [*names, "total"]:
        counts = [found["splits"][split][name] for split in SPLITS]
        rows.append([name, *(f"{count:,}" for count in [*counts, sum(counts)])])
    rows.append(["groups", *(f"{len(groups['by_split'][split]):,}" for split in SPLITS), f"{groups['count']:,}"])
    lines += ["", *_table(rows)]
    rows = [["samples with a twin", "in their split", "in another", "test in train", "other label"]]
    for kind in ("exact", "near", "mirrored"):
        twins = found["duplicates"][kind]
        figures = (twins["within"], twins["across"], twins["test_in_train"], found["duplicates"]["conflicting"][kind])
        rows.append([kind, *(f"{figure:,}" for figure in figures)])
    lines += ["", *_table(rows), "", *_table(_baselines(found))]
    if found["no_pixels_reason"]:
        lines.append(f"(no figure for the nearest training frame: {found['no_pixels_reason']})")
    if skipped["count"]:
        lines += ["", *_table([["skipped", "count"], *([why, f"{n:,}"] for why, n in skipped["reasons"].items())])]
    return "\n".join(lines)


def _baselines(found: dict[str, Any]) -> list[list[str]]:
    rows = [["on test, without a net", "accuracy", "macro-F1"]]
    majority, blind = found["majority"], found["no_pixels"]
    if majority:
        name = f"majority class ({majority['label']})"
        rows.append([name, _percent(majority["accuracy"]), f"{majority['macro_f1']:.3f}"])
    if blind:
        gap = "" if blind["median_gap"] is None else f", median gap {blind['median_gap']:g}"
        name = f"nearest training frame in time ({_percent(blind['covered'])} have one{gap})"
        rows.append([name, _percent(blind["accuracy"]), f"{blind['macro_f1']:.3f}"])
    return rows


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns in line: the first to the left, figures to the right; a long first column is cut."""
    rows = list(rows)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    room = widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * len(widths[1:]))
    cut = [row[0] if len(row[0]) <= room else row[0][: room - 3] + "..." for row in rows]
    return [
        "  ".join([name.ljust(room), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for name, row in zip(cut, rows, strict=True)
    ]


def contact_sheets(
    samples: Sequence[Sample], clips: Any, labels: Sequence[str], folder: Path, per_class: int = 24, seed: int = 0
) -> list[Path]:
    """One PNG a class: up to per_class tiles, spread over groups and splits, each captioned `group split`.

    clips: uint8 (N,T,H,W,C) RGB or gray, aligned with samples; the middle frame is shown. Returns the files' paths in
    the labels' order; a class without samples has none.
    """
    paths = []
    for number, label in enumerate(labels):
        rows = _spread([i for i, sample in enumerate(samples) if sample.label == label], samples, per_class, seed)
        if not rows:
            continue
        sheet = _sheet(rows, samples, clips, f"{label}: {len(rows)} of {sum(s.label == label for s in samples):,}")
        path = folder / f"{number:02d}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', label)}.png"
        with atomic(path) as draft:
            draft.write_bytes(cv2.imencode(".png", sheet)[1].tobytes())
        paths.append(path)
    return paths


def _spread(rows: Sequence[int], samples: Sequence[Sample], wanted: int, seed: int) -> list[int]:
    """One of each (group, split) in turn, at random within it, until there are enough; in order of group and split."""
    chance = np.random.default_rng(seed)
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in chance.permutation(np.array(rows, np.int64)).tolist():
        places[samples[row].group, samples[row].split].append(row)
    turns = (row for turn in zip_longest(*places.values()) for row in turn if row is not None)
    chosen = [row for row, _ in zip(turns, range(wanted), strict=False)]
    return sorted(chosen, key=lambda i: (_natural(samples[i].group), SPLITS.index(samples[i].split), samples[i].id))


def _sheet(rows: Sequence[int], samples: Sequence[Sample], clips: Any, title: str) -> NDArray[np.uint8]:
    """uint8 (H,W,3) BGR."""
    _, frames, height, width, _ = clips.shape
    tile = max(1, round(TILE * height / width))
    columns, lines = min(COLUMNS, len(rows)), -(-len(rows) // COLUMNS)
    sheet = np.full((TITLE + lines * (tile + CAPTION), max(columns, 3) * TILE, 3), 255, np.uint8)
    _write(sheet, title, 6, TITLE - 9, 0.5)
    for place, row in enumerate(rows):
        top, left = TITLE + place // COLUMNS * (tile + CAPTION), place % COLUMNS * TILE
        picture = image.fit(np.ascontiguousarray(clips[row][frames // 2]), (tile, TILE), "stretch", 3)
        sheet[top : top + tile, left : left + TILE] = picture[:, :, ::-1]
        _write(sheet, f"{samples[row].group[-18:] or '?'} {samples[row].split}", left + 3, top + tile + 13, 0.38)
    return sheet


def _write(sheet: NDArray[np.uint8], text: str, left: int, bottom: int, scale: float) -> None:
    cv2.putText(sheet, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
