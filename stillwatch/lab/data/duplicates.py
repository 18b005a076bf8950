"""Duplicates: pictures that are copies of each other, byte for byte, nearly, or mirrored. Opens no file."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stillwatch.lab.data.sources import SPLITS, Sample
from stillwatch.media import image
from stillwatch.run import NO_PROGRESS, Progress

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.uint64]  # (N,2): 128 bits each
Pictures: TypeAlias = NDArray[np.uint8]

SIDE = 32  # of a thumbnail, pixels
RADIUS = 10  # of 128 bits: pictures whose hashes lie further apart are not compared
# What confirms a pair. Measured on driving video: the thumbnails of a picture and its re-encoded copy lie under
# 1 gray level apart, neighbouring frames about 5, frames of two drivers 12 and more.
LEVELS = 4.0  # largest mean difference of two thumbnails, in gray levels
CONTRAST = 0.06  # and at most this share of the thumbnail's own contrast: dark and empty pictures differ by little
FLAT = 2.0  # contrast in gray levels below which a picture shows nothing to compare
TIED = 0.1  # gray levels by which a mirrored partner may be worse than the best one
KEPT = 16  # closest hashes looked at: so many in a picture's own split, so many in the others
BLOCK = 4096  # pairs of thumbnails compared at once
EXAMPLES = 20


class Record(BaseModel):
    """A part of audit.json; its fields are the keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Counts(Record):
    """Samples that have a duplicate of one kind, each counted once."""

    within: int  # in their own split
    across: int  # in another split
    test_in_train: int  # test samples with one in train
    examples: list[list[str]]  # pairs of ids


class Conflicts(Record):
    """Samples that have a duplicate with another label."""

    exact: int
    near: int
    mirrored: int
    examples: list[list[str]]


class Duplicates(Record):
    exact: Counts
    near: Counts
    mirrored: Counts
    conflicting: Conflicts


def find(samples: Sequence[Sample], clips: Pictures, progress: Progress = NO_PROGRESS) -> tuple[Duplicates, int]:
    """Search samples (N, with their splits) for duplicates; near and mirrored ones on the middle frame.

    clips: uint8 (N,T,H,W,C). Returns the duplicates and the number of distinct pictures, mirrored copies counted once.
    """
    content, thumbs, contrast = fingerprints(clips, progress)
    split = np.array([SPLITS.index(sample.split) for sample in samples], np.int64)
    _, label = np.unique([sample.label for sample in samples], return_inverse=True)
    key = (content * len(SPLITS) + split) * (label.max(initial=0) + 1) + label
    _, first, inverse, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    last = first.copy()
    last[inverse] = np.arange(len(samples))
    unique = Unique(first, last, count, content[first], split[first], label[first])
    limit = np.minimum(LEVELS, CONTRAST * contrast[unique.first])  # (U,)
    rows = np.flatnonzero(contrast[unique.first] >= FLAT)
    plain = hashes(thumbs, first[rows])
    flipped = hashes(thumbs, first[rows], mirrored=True)
    candidates = rows[_search(plain, plain, unique.split[rows], progress)]
    candidates = candidates[unique.content[candidates[:, 0]] != unique.content[candidates[:, 1]]]
    near = candidates[_difference(thumbs, first[candidates]) <= limit[candidates[:, 0]]]
    mirrored = _mirrored(unique, thumbs, rows[_search(flipped, plain, unique.split[rows], progress)], limit)
    # Unique pictures of one content with each other, and one of several members with itself
    exact = [np.flatnonzero(count > 1)[:, None].repeat(2, axis=1)]
    order = np.argsort(unique.content, kind="stable")
    for step in range(1, len(order)):
        same = unique.content[order[step:]] == unique.content[order[:-step]]
        if not same.any():
            break
        exact.append(np.stack([order[:-step][same], order[step:][same]], axis=1))
    counts, conflicts = {}, {}
    examples: list[list[str]] = []
    for kind, pairs in (("exact", np.concatenate(exact)), ("near", near), ("mirrored", mirrored)):
        counts[kind], conflicts[kind], shown = _count(samples, unique, pairs)
        examples += shown
    number = int(content.max(initial=-1)) + 1
    a, b = unique.content[mirrored].T
    distinct = connected_components(coo_array((np.ones(len(a)), (a, b)), (number, number)), directed=False)[0]
    return Duplicates(**counts, conflicting=Conflicts(**conflicts, examples=examples[:EXAMPLES])), int(distinct)


# ---- what stands for a picture


def fingerprints(clips: Pictures, progress: Progress = NO_PROGRESS) -> tuple[Ints, Pictures, Floats]:
    """Of each picture: a number for its bytes (N,), its middle frame's gray thumbnail (N,32,32), in a temporary file,
    and its contrast (N,), the mean absolute deviation.
    """
    count = len(clips)
    known: dict[bytes, int] = {}
    content, contrast = np.zeros(count, np.int64), np.zeros(count)
    with tempfile.TemporaryFile() as file:
        thumbs = np.memmap(file, np.uint8, "w+", shape=(max(count, 1), SIDE, SIDE))[:count]
    for i in progress.bar(range(count), count, "looking for duplicates"):
        clip = np.ascontiguousarray(clips[i])  # (T,H,W,C)
        digest = hashlib.blake2b(clip.tobytes(), digest_size=16).digest()
        content[i] = known.setdefault(digest, len(known))
        thumbs[i] = thumb = image.fit(clip[len(clip) // 2], (SIDE, SIDE), "stretch", 1)[:, :, 0]
        contrast[i] = np.abs(thumb - thumb.mean()).mean()
    return content, thumbs, contrast


def hashes(thumbs: Pictures, rows: Ints | None = None, mirrored: bool = False) -> Codes:
    """Difference hash, 128 bits as (N,2) uint64: is each of 8×8 cells brighter than its left, its upper neighbour?

    thumbs: uint8 (N,32,32). rows: those to hash. mirrored: left to right. After N. Krawetz, "Kind of like that"
    (2013), with a margin of half a gray level against noise.
    """
    rows = np.arange(len(thumbs)) if rows is None else rows
    codes = np.zeros((len(rows), 2), np.uint64)
    for i, row in enumerate(rows):
        picture = thumbs[row].astype(np.float32)
        picture = np.ascontiguousarray(picture[:, ::-1]) if mirrored else picture
        wide = cv2.resize(picture, (9, 8), interpolation=cv2.INTER_AREA)
        tall = cv2.resize(picture, (8, 9), interpolation=cv2.INTER_AREA)
        bits = np.concatenate([(np.diff(wide, axis=1) > 0.5).ravel(), (np.diff(tall, axis=0) > 0.5).ravel()])
        codes[i] = np.packbits(bits).view(np.uint64)
    return codes


@dataclass(frozen=True)
class Unique:
    """Samples with the same bytes, split and label, as one (U)."""

    first: Ints  # (U,) a member
    last: Ints  # (U,) another member where there are several
    count: Ints  # (U,)
    content: Ints  # (U,) number of its bytes
    split: Ints  # (U,) index in SPLITS
    label: Ints  # (U,)


# ---- pairs of unique pictures, (P,2)


def _mirrored(unique: Unique, thumbs: Pictures, pairs: Ints, limit: Floats) -> Ints:
    """Pairs that are each other's best mirrored partner, and unlike unmirrored."""
    pairs = pairs[unique.content[pairs[:, 0]] != unique.content[pairs[:, 1]]]
    flipped = _difference(thumbs, unique.first[pairs], mirrored=True)
    alike = flipped <= limit[pairs[:, 0]]
    pairs, flipped = pairs[alike], flipped[alike]
    upright = _difference(thumbs, unique.first[pairs])
    one_sided = upright > np.maximum(limit[pairs[:, 0]], 2 * flipped)  # a symmetric picture mirrors itself
    pairs, flipped = pairs[one_sided], flipped[one_sided]
    best = np.full(len(unique.first), np.inf)  # frames nearly mirror the neighbours of their duplicate, too
    np.minimum.at(best, pairs[:, 0], flipped)
    np.minimum.at(best, pairs[:, 1], flipped)
    return pairs[flipped <= best[pairs].min(axis=1) + TIED]


def _search(queries: Codes, base: Codes, split: Ints, progress: Progress) -> Ints:
    """Rows (P,2) of close hashes, sought for each split in itself and in the others."""
    pairs = [np.zeros((0, 2), np.int64)]
    for here in np.unique(split):
        own, others = np.flatnonzero(split == here), np.flatnonzero(split != here)
        for among, exclude in ((own, np.arange(len(own))), (others, np.full(len(own), -1))):
            found = close(queries[own], base[among], exclude, progress)
            pairs.append(np.stack([own[found[:, 0]], among[found[:, 1]]], axis=1))
    return np.concatenate(pairs)


def close(queries: Codes, base: Codes, exclude: Ints, progress: Progress = NO_PROGRESS) -> Ints:
    """For each query hash (Q,2) its closest in the base (B,2), at most KEPT within RADIUS: row numbers (P,2).

    exclude: (Q,) the row of the base that a query is not paired with, or -1. Memory O(Q + B).
    """
    high, low = np.ascontiguousarray(base.T)
    pairs = [np.zeros((0, 2), np.int64)]
    for query in progress.bar(range(len(queries)), len(queries), "comparing pictures"):
        a, b = queries[query]
        rows = np.flatnonzero(np.bitwise_count(high ^ a) <= RADIUS)  # half of the bits rules out nearly all
        bits = np.bitwise_count(high[rows] ^ a) + np.bitwise_count(low[rows] ^ b)
        near = (bits <= RADIUS) & (rows != exclude[query])
        if near.any():
            closest = rows[near][np.argsort(bits[near], kind="stable")[:KEPT]]
            pairs.append(np.stack([np.full(len(closest), query), closest], axis=1))
    return np.concatenate(pairs)


def _difference(thumbs: Pictures, pairs: Ints, mirrored: bool = False) -> Floats:
    """Mean absolute difference, in gray levels, of each pair's thumbnails."""
    out = np.zeros(len(pairs))
    for start in range(0, len(pairs), BLOCK):
        first, second = (thumbs[rows] for rows in pairs[start : start + BLOCK].T)
        first = first[:, :, ::-1] if mirrored else first
        out[start : start + BLOCK] = (np.maximum(first, second) - np.minimum(first, second)).mean(axis=(1, 2))
    return out


# ---- what the pairs say


def _count(samples: Sequence[Sample], unique: Unique, pairs: Ints) -> tuple[Counts, int, list[list[str]]]:
    """Counts, samples with a duplicate of another label, and examples of those."""
    a, b = np.concatenate([pairs, pairs[:, ::-1]]).T
    same = unique.split[a] == unique.split[b]
    leak = (unique.split[a] == SPLITS.index("test")) & (unique.split[b] == SPLITS.index("train"))

    def members(chosen: NDArray[np.bool_]) -> int:
        return int(unique.count[np.unique(a[chosen])].sum())

    def ids(rows: Ints) -> list[list[str]]:
        return [[samples[unique.first[i]].id, samples[unique.last[j]].id] for i, j in rows[:EXAMPLES]]

    order = np.argsort(same[: len(pairs)], kind="stable")  # pairs across splits are the ones to look at
    _, once = np.unique(np.sort(pairs[order], axis=1), axis=0, return_index=True)
    shown = pairs[order][np.sort(once)]
    counts = Counts(within=members(same), across=members(~same), test_in_train=members(leak), examples=ids(shown))
    conflicting = shown[unique.label[shown[:, 0]] != unique.label[shown[:, 1]]]
    return counts, members(unique.label[a] != unique.label[b]), ids(conflicting)
