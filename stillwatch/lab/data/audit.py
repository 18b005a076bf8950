"""Audit: what is wrong with a data set. Changes nothing."""

import textwrap
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from stillwatch import metrics
from stillwatch.lab.data.contact_sheets import natural
from stillwatch.lab.data.duplicates import SURE, Counts, Duplicates, Record, find
from stillwatch.lab.data.sources import SPLITS, Sample, Skipped
from stillwatch.run import NO_PROGRESS, Progress

WIDTH = 100  # columns of the summary
LEAK = 0.10  # accuracy by which the no-pixels baseline must beat the majority class before it counts as a leak
IMBALANCE = 10  # times as many training samples in the largest class as in the smallest
FEW = 5  # groups in a split below which its figure says little about the next group
NAMED = 6  # names listed in a sentence before "..."
ARTICLES = {
    "exact": "an identical",
    "near": "a nearly identical",
    "mirrored": "a mirrored",
    "altered": "a cropped, shifted, turned or letterboxed",
}
PROBED = 0.05  # share of test samples above which a probe speaks
CONSEQUENCES = {
    "train": "it cannot be learnt",
    "valid": "the best epoch is chosen without it",
    "test": "the test figure says nothing about it",
}


class SkippedFiles(Record):
    count: int
    share: float
    reasons: dict[str, int]  # the most frequent first
    files: list[dict[str, str]]  # file, reason


class Groups(Record):
    count: int
    unknown: int  # samples without a group
    by_split: dict[str, list[str]]
    in_two_splits: list[str]
    of_label: dict[str, list[str]]


class Negatives(Record):
    count: int
    cameras: int
    labels: dict[str, int]


class Majority(Record):
    """The most frequent training label's score on test."""

    label: str
    accuracy: float
    macro_f1: float


class NoPixels(Record):
    """The score on test of copying the nearest training frame's label."""

    accuracy: float
    macro_f1: float
    covered: float  # share of test samples that found a frame
    neighbours: int  # their number
    median_gap: float | None  # in the units of Sample.time; None where there is none


class Faces(Record):
    """Of samples whose face was sought, data.faces. Shares from 0 to 1."""

    samples: int
    found: int
    by_label: dict[str, float]
    by_group: dict[str, float]


class Unlabelled(Record):
    samples: int
    skipped: int
    people: list[str]  # groups of the test split among them, by name
    copies: int  # test samples of which they hold a copy, altered ones included
    overlapping: int  # that show what one of them shows: one recording or room
    look_alikes: int  # whose most alike picture is one of them rather than another test sample
    test: int  # test samples


class AuditReport(Record):
    """audit.json."""

    samples: int
    split: str
    skipped: SkippedFiles
    splits: dict[str, dict[str, int]]  # split -> label or "total" -> samples
    groups: Groups
    negatives: Negatives
    duplicates: Duplicates
    distinct: int
    majority: Majority | None
    no_pixels: NoPixels | None
    no_pixels_reason: str | None
    faces: Faces | None = None
    unlabelled: Unlabelled | None = None
    warnings: list[str]  # the worst first


def audit(
    samples: Sequence[Sample],
    skipped: Sequence[Skipped],
    clips: NDArray[np.uint8],
    labels: tuple[str, ...],
    split: str,
    progress: Progress = NO_PROGRESS,
) -> AuditReport:
    """Look for leaks, duplicates, imbalance and bad files.

    samples: N, with their splits. clips: uint8 (N,T,H,W,C). split: the recipe's data.split.
    """
    if len(samples) != len(clips):
        raise ValueError(f"{len(samples)} samples but {len(clips)} pictures")
    duplicates, distinct = find(samples, clips, progress)
    baseline = no_pixels(samples, labels)
    counts = Counter((sample.split, sample.label) for sample in samples)
    table = {name: {label: counts[name, label] for label in labels} for name in SPLITS}
    filed = [sample for sample in samples if sample.negative]
    report = AuditReport(
        samples=len(samples),
        split=split,
        skipped=SkippedFiles(
            count=len(skipped),
            share=len(skipped) / max(len(samples) + len(skipped), 1),
            reasons=dict(Counter(bad.reason for bad in skipped).most_common()),
            files=[{"file": bad.file, "reason": bad.reason} for bad in skipped],
        ),
        splits={name: {**row, "total": sum(row.values())} for name, row in table.items()},
        groups=_groups(samples, labels),
        negatives=Negatives(
            count=len(filed),
            cameras=len({sample.group for sample in filed}),
            labels={label: sum(sample.label == label for sample in filed) for label in labels},
        ),
        duplicates=duplicates,
        distinct=distinct,
        majority=_majority(samples, labels),
        no_pixels=None if isinstance(baseline, str) else baseline,
        no_pixels_reason=baseline if isinstance(baseline, str) else None,
        warnings=[],
    )
    return report.model_copy(update={"warnings": [*_leaks(report), *_contents(report, labels)]})


# ---- counts and baselines


def count_faces(found: NDArray[np.bool_], samples: Sequence[Sample]) -> Faces:
    """found: (N,), whether each sample has a face."""

    def shares(names: list[str]) -> dict[str, float]:
        chosen = np.array(names)
        return {str(name): float(found[chosen == name].mean()) for name in np.unique(chosen)}

    by_label, by_group = shares([s.label for s in samples]), shares([s.group or "unknown" for s in samples])
    return Faces(samples=len(found), found=int(found.sum()), by_label=by_label, by_group=by_group)


def check_unlabelled(
    tested: Sequence[Sample], others: Sequence[Sample], clips: NDArray[np.uint8], skipped: int
) -> Unlabelled:
    """clips: of both, in that order."""
    split = [*(replace(sample, split="test") for sample in tested), *(replace(s, split="train") for s in others)]
    found, _ = find(split, clips)
    return Unlabelled(
        samples=len(others),
        skipped=skipped,
        people=sorted({s.group for s in tested} & {s.group for s in others} - {""}, key=natural),
        copies=sum(getattr(found, kind).test_in_train for kind in ARTICLES),
        overlapping=found.overlapping.test_in_train,
        look_alikes=found.look_alikes.test_in_train,
        test=len(tested),
    )


def unlabelled_leaks(found: Unlabelled) -> list[str]:
    """A warning for each way in which a test person is among them."""
    few = max(1, round(PROBED * found.test))
    of, who, where = f"of {found.test:,} test samples", "new people", "new places, perhaps not of new people"
    told = [
        (f"{_some(found.people)} of the test split {'is' if len(found.people) == 1 else 'are'} among them", who,
         found.people),
        (f"{found.copies:,} {of} have a copy among them", who, found.copies),
        (f"{found.overlapping:,} {of} show what one of them shows: one recording, room or car", where,
         found.overlapping >= few),
        (f"{found.look_alikes:,} {of} look most like one of them: the same person or camera", who,
         found.look_alikes >= few),
    ]  # fmt: skip
    leak = "data.unlabelled leaks: {}; the test figure is not of {}. Take them out, or use `stillwatch adapt`."
    return [leak.format(sentence, new) for sentence, new, true in told if true]


def _groups(samples: Sequence[Sample], labels: Sequence[str]) -> Groups:
    splits, of_label = defaultdict(set), defaultdict(set)
    for sample in samples:
        if sample.group:
            splits[sample.group].add(sample.split)
            of_label[sample.label].add(sample.group)
    names = sorted(splits, key=natural)
    return Groups(
        count=len(names),
        unknown=sum(not sample.group for sample in samples),
        by_split={split: [name for name in names if split in splits[name]] for split in SPLITS},
        in_two_splits=[name for name in names if len(splits[name]) > 1],
        of_label={label: sorted(of_label[label], key=natural) for label in labels},
    )


def _majority(samples: Sequence[Sample], labels: Sequence[str]) -> Majority | None:
    train = Counter(sample.label for sample in samples if sample.split == "train")
    test = [sample.label for sample in samples if sample.split == "test"]
    if not train or not test:
        return None
    label = max(labels, key=lambda name: train[name])
    accuracy, macro_f1 = _scores(test, [label] * len(test), labels)
    return Majority(label=label, accuracy=accuracy, macro_f1=macro_f1)


def no_pixels(samples: Sequence[Sample], labels: Sequence[str]) -> NoPixels | str:
    """Or why there is none."""
    majority = _majority(samples, labels)
    if majority is None:
        return "train or test is empty"
    times: dict[str, set[float]] = defaultdict(set)
    train: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for sample in samples:
        if sample.sequence:
            times[sample.sequence].add(sample.time)
            if sample.split == "train":
                train[sample.sequence].append((sample.time, sample.label))
    if not times:
        return "the samples name no recording that they come from"
    if all(len(moments) == 1 for moments in times.values()):
        return "no recording holds two samples in an order"
    for rows in train.values():
        rows.sort()
    test = [sample for sample in samples if sample.split == "test"]
    guesses, gaps = [], []
    for sample in test:
        rows = train.get(sample.sequence, [])
        after = bisect_left(rows, sample.time, key=itemgetter(0))
        near = [(abs(time - sample.time), label) for time, label in rows[max(after - 1, 0) : after + 1]]
        # Of two as near, the earlier
        gap, label = min(near, key=itemgetter(0), default=(None, majority.label))
        gaps += [gap] if gap is not None else []
        guesses.append(label)
    accuracy, macro_f1 = _scores([sample.label for sample in test], guesses, labels)
    return NoPixels(
        accuracy=accuracy,
        macro_f1=macro_f1,
        covered=len(gaps) / len(test),
        neighbours=len(gaps),
        median_gap=float(np.median(gaps)) if gaps else None,
    )


def _scores(true: Sequence[str], guesses: Sequence[str], labels: Sequence[str]) -> tuple[float, float]:
    y, p = np.array([labels.index(label) for label in true]), np.eye(len(labels))[list(map(labels.index, guesses))]
    return metrics.accuracy(y, p), metrics.macro_f1(y, p)


# ---- what the counts mean: sentences, the worst first


def _leaks(report: AuditReport) -> list[str]:
    out, baseline, majority, groups = [], report.no_pixels, report.majority, report.groups
    tests = report.splits["test"]["total"]
    cure = 'Use data.split = "grouped".' if groups.count else 'Set data.group and use data.split = "grouped".'
    if report.split == "grouped":
        cure = "The groups do not keep the recordings apart: check data.group."
    leaking = bool(baseline and majority and baseline.accuracy > majority.accuracy + LEAK)
    if baseline and majority and leaking:
        out.append(
            f"The {report.split} split leaks: {baseline.neighbours:,} of {tests:,} test samples have a neighbour of "
            "the same recording in train; copying its label, without looking at a pixel, scores "
            f"{_percent(baseline.accuracy)} (the majority class {_percent(majority.accuracy)}). {cure}"
        )
    shared = groups.in_two_splits
    if shared and not set(shared).intersection(groups.by_split["test"]):
        out.append(
            f"{len(shared)} groups are in both train and valid ({_some(shared)}), as data.valid asks: the validation "
            "figure says how well these are known; only the test figure is of new ones."
        )
    elif shared:
        out.append(
            f"{len(shared)} of {groups.count} groups are in more than one split ({_some(shared)}): the test figure "
            "says how well these are known, not how it goes with a new one." + ("" if leaking else f" {cure}")
        )
    for kind, article in ARTICLES.items():
        counts: Counts = getattr(report.duplicates, kind)
        if counts.across:
            out.append(
                f"{counts.across:,} samples have {article} picture in another split; {counts.test_in_train:,} of "
                f"{tests:,} test samples have one in train."
            )
    out += [] if leaking or set(shared).intersection(groups.by_split["test"]) else _probes(report.duplicates)
    conflicting = report.duplicates.conflicting
    for number, kind in ((conflicting.exact, "exact"), (conflicting.mirrored, "mirrored")):
        if number:
            out.append(f"{number:,} samples have {ARTICLES[kind]} picture with another label: one of the two is wrong.")
    if conflicting.near:
        out.append(
            f"{conflicting.near:,} samples look nearly like a sample with another label: labels that change from one "
            "frame to the next, or wrong ones."
        )
    for kind in ("exact", "mirrored"):
        if number := getattr(report.duplicates, kind).within:
            out.append(
                f"{number:,} samples have {ARTICLES[kind]} copy within their split: {report.samples:,} samples are "
                f"{report.distinct:,} distinct pictures, and the copies count twice."
            )
    return out


def _probes(found: Duplicates) -> list[str]:
    out, alike, tests = [], found.look_alikes, found.look_alikes.of
    if found.overlapping.test_in_train > PROBED * tests:
        out.append(
            f"{found.overlapping.test_in_train:,} of {tests:,} test samples show what a training sample shows, "
            f"{SURE} points or more in place: the same recording or room is in both splits (of two drivers' "
            "pictures none had so many). Set data.group."
        )
    if alike.test_in_train > PROBED * tests:
        sure = "on drivers and cameras 99.9 % of such pairs" if alike.confidence is None else "of the named ones here "
        sure += "" if alike.confidence is None else _percent(alike.confidence)
        out.append(
            f"{alike.test_in_train:,} of {tests:,} test samples look most like a training sample: the same person, "
            f"camera or recording is in both splits ({sure} are of one group). Set data.group."
        )
    return out


def _contents(report: AuditReport, labels: Sequence[str]) -> list[str]:
    out, splits, groups, skipped = [], report.splits, report.groups, report.skipped
    for split in SPLITS:
        absent = [label for label in labels if not splits[split][label]]
        if not splits[split]["total"]:
            out.append(f"The {split} split is empty.")
        elif absent:
            out.append(f"No {_some(absent, 'or')} in {split}: {CONSEQUENCES[split]}.")
    for label, names in groups.of_label.items():
        if groups.count > 1 and len(names) == 1:
            out.append(f"Only group {names[0]} has {label}: a net may learn the group in place of the class.")
    counts = {label: splits["train"][label] for label in labels if splits["train"][label]}
    if counts and max(counts.values()) >= IMBALANCE * min(counts.values()):
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        out.append(
            f"Train holds {counts[most] / counts[least]:.0f} times as much {most} ({counts[most]:,}) as {least} "
            f"({counts[least]:,}): weigh the classes, and read macro-F1 beside accuracy."
        )
    for split in ("valid", "test") if report.split == "grouped" else ():
        names = groups.by_split[split]
        if 0 < len(names) < FEW:
            out.append(
                f"The {split} split holds {len(names)} group{'s' if len(names) > 1 else ''} ({_some(names)}): its "
                "figure says little about the next group. Run all folds."
            )
    risk = "the same person, camera or recording may be on both sides, and the test figure far too good"
    if report.split != "grouped" and report.samples:
        if groups.unknown == report.samples:
            out.append(f"No sample names its group: in the {report.split} split {risk}. Set data.group.")
        elif groups.unknown:
            out.append(f"{groups.unknown:,} of {report.samples:,} samples name no group: {risk}.")
        elif report.split == "ratio":
            out.append(f"The ratio split ignores the groups: {risk}.")
    if skipped.count:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in list(skipped.reasons.items())[:NAMED])
        files = "file or line was" if skipped.count == 1 else "files or lines were"
        out.append(f"{skipped.count:,} {files} skipped ({_percent(skipped.share)}): {reasons}.")
    return out


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 or not share else f"{100 * share:.2f} %"


def _some(names: Sequence[str], last: str = "and") -> str:
    if len(names) > NAMED:
        return ", ".join(names[:NAMED]) + ", ..."
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


# ---- for reading and looking


def summary(report: AuditReport) -> str:
    """Plain text, at most 100 columns wide, warnings first."""
    skipped, groups, warnings, filed = report.skipped, report.groups, report.warnings, report.negatives
    lines = [
        f"{report.samples:,} samples, {report.distinct:,} distinct pictures, {groups.count:,} groups, "
        f"{skipped.count:,} skipped; split: {report.split}",
        "",
        f"{len(warnings)} warning{'s' if len(warnings) != 1 else ''}" + (":" if warnings else ": nothing looks wrong"),
    ]
    for number, text in enumerate(warnings, 1):
        whole = text.replace(" %", "\u00a0%")  # a figure and its sign stay on one line
        wrapped = textwrap.wrap(whole, WIDTH, initial_indent=f"{number:3}. ", subsequent_indent="     ")
        lines += [line.replace("\u00a0", " ") for line in wrapped]
    if filed.count:
        lines += [
            "",
            f"{filed.count:,} of the training samples are false alarms that were filed on {filed.cameras} "
            f"camera{'s' * (filed.cameras != 1)}; valid and test have none.",
        ]
    if beside := report.unlabelled:
        out = f", {beside.skipped:,} skipped" * bool(beside.skipped)
        lines += ["", f"{beside.samples:,} samples without a label{out}: a student hears its teacher on them."]
    table: list[list[object]] = [["class", *SPLITS, "all"]]
    for name in report.splits["train"]:
        counts = [report.splits[split][name] for split in SPLITS]
        table.append([name, *counts, sum(counts)])
    lines += _table([*table, ["groups", *(len(groups.by_split[split]) for split in SPLITS), groups.count]])
    table = [["samples with a duplicate", "in their split", "in another", "test in train", "other label"]]
    for kind in ARTICLES:
        found, other = getattr(report.duplicates, kind), getattr(report.duplicates.conflicting, kind)
        table.append([kind, found.within, found.across, found.test_in_train, other])
    lines += _table(table)
    table = [["on test, without a net", "accuracy", "macro-F1"]]
    if majority := report.majority:
        table.append([f"majority class ({majority.label})", _percent(majority.accuracy), f"{majority.macro_f1:.3f}"])
    if baseline := report.no_pixels:
        gap = "" if baseline.median_gap is None else f", median gap {baseline.median_gap:g}"
        name = f"nearest training frame in time ({_percent(baseline.covered)} have one{gap})"
        table.append([name, _percent(baseline.accuracy), f"{baseline.macro_f1:.3f}"])
    lines += _table(table)
    if faces := report.faces:
        shares = [[name, _percent(share)] for name, share in (*faces.by_label.items(), *faces.by_group.items())]
        lines += _table([[f"faces found ({faces.found:,} of {faces.samples:,})", "share"], *shares])
    if report.no_pixels_reason:
        lines.append(f"(no figure for the nearest training frame: {report.no_pixels_reason})")
    if skipped.count:
        lines += _table([["skipped", "count"], *map(list, skipped.reasons.items())])
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    first, *widths = (max(map(len, column)) for column in zip(*cells, strict=True))
    first = min(first, WIDTH - sum(widths) - 2 * len(widths))
    lines = [""]
    for name, *figures in cells:
        shown = name if len(name) <= first else f"{name[: first - 3]}..."
        lines.append("  ".join([shown.ljust(first), *map(str.rjust, figures, widths)]))
    return lines
