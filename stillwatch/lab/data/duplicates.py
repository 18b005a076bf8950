"""Twins: which pictures are copies of each other: byte for byte, nearly, or mirrored.

In: samples with their splits and uint8 pixels. Out: how many samples have a twin, within their split and across.
Called by audit alone. It holds a hash and a thumbnail a picture, never a table of all pairs, and knows no file.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from stillwatch.lab.data.sources import Sample
from stillwatch.media import image
from stillwatch.run import NO_PROGRESS, Progress

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Bits: TypeAlias = NDArray[np.uint8]
Codes: TypeAlias = NDArray[np.uint64]  # (N,2): 128 bits each
Pictures: TypeAlias = NDArray[np.uint8]

SPLITS = ("train", "valid", "test")
SIDE = 32  # of a thumbnail, pixels
RADIUS = 10  # of 128 bits: pictures whose hashes lie further apart are not compared
# What confirms a pair. Measured on driving video: the thumbnails of a picture and its re-encoded copy lie under
# 1 gray level apart, neighbouring frames about 5, frames of two drivers 12 and more.
LEVELS = 4.0  # largest mean difference of two thumbnails, in gray levels
CONTRAST = 0.06  # and at most this share of the thumbnail's own contrast: dark and empty pictures differ by little
FLAT = 2.0  # contrast in gray levels below which a picture shows nothing to compare
TIED = 0.1  # gray levels by which a mirrored partner may be worse than the best one
KEPT = 16  # closest hashes looked at: so many in a picture's own split, so many in the others
EXHAUSTIVE = 32_768  # up to here every hash meets every other
ROTATIONS = 8  # above: it meets its neighbours in so many sorted orders,
WINDOW = 32  # so many on either side
BLOCK = 512  # hashes, or pairs of thumbnails times 8, handled at once
EXAMPLES = 20
NO_PAIRS: Ints = np.zeros((0, 2), np.int64)


def find(samples: Sequence[Sample], clips: Any, voice: Progress = NO_PROGRESS) -> tuple[dict[str, Any], int]:
    """Look for twins among all samples.

    samples: N, each with its split. clips: uint8 (N,T,H,W,C), aligned with them; a memory map will do.
    Returns the audit's "duplicates" and the number of distinct pictures, copies and mirrored copies counted once.
    A sample counts once, however many twins it has: "within" its own split, "across" splits, "test_in_train" for
    a test sample with a twin in train. "conflicting" counts samples with a twin of another label. Near and mirrored
    twins are sought on the middle frame; above EXHAUSTIVE pictures a few are missed.
    """
    content, thumbs = fingerprints(clips, voice)
    kinds = _kinds(samples, content)
    rows, limit = _telling(kinds, thumbs)
    plain = hashes(thumbs, kinds.first[rows])
    near = _near(kinds, thumbs, rows[_searched(plain, plain, kinds.split[rows])], limit)
    turned = hashes(thumbs, kinds.first[rows], mirrored=True)
    mirrored = _mirrored(kinds, thumbs, rows[_searched(turned, plain, kinds.split[rows])], limit)
    found, conflicts = {}, {}
    conflict_examples: list[list[str]] = []
    for name, pairs in (("exact", _exact(kinds)), ("near", near), ("mirrored", mirrored)):
        found[name], conflicts[name], examples = _tally(samples, kinds, pairs)
        conflict_examples += examples
    found["conflicting"] = {**conflicts, "examples": conflict_examples[:EXAMPLES]}
    return found, _distinct(kinds.content[mirrored], int(content.max(initial=-1)) + 1)


# ---- what stands for a picture


def fingerprints(clips: Any, voice: Progress = NO_PROGRESS) -> tuple[Ints, Pictures]:
    """Read every picture once: (N,) a number for its exact bytes, (N,32,32) a gray thumbnail of its middle frame.

    The thumbnails lie in an unnamed temporary file, so that memory stays flat as N grows.
    """
    count = len(clips)
    known: dict[bytes, int] = {}
    content = np.zeros(count, np.int64)
    with tempfile.TemporaryFile() as file:
        thumbs = np.memmap(file, np.uint8, "w+", shape=(max(count, 1), SIDE, SIDE))[:count]
    for i in voice.bar(range(count), count, "looking for twins"):
        clip = np.ascontiguousarray(clips[i])  # (T,H,W,C)
        digest = hashlib.blake2b(clip.tobytes(), digest_size=16).digest()
        content[i] = known.setdefault(digest, len(known))
        thumbs[i] = image.fit(clip[len(clip) // 2], (SIDE, SIDE), "stretch", 1)[:, :, 0]
    return content, thumbs


def hashes(thumbs: Pictures, rows: Ints | None = None, mirrored: bool = False) -> Codes:
    """Difference hash, 128 bits as (N,2) uint64: is each of 8×8 cells brighter than its left, its upper neighbour?

    thumbs: uint8 (N,32,32). rows: those to hash, all where None. mirrored: hash them flipped left to right.
    After N. Krawetz, "Kind of like that" (2013), with vertical differences beside the horizontal ones, and a margin
    of half a gray level so that noise on an even ground sets few bits.
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


def hamming(a: Codes, b: Codes) -> Bits:
    """Number of bits, 0 to 128, in which hashes (...,2) differ, broadcast."""
    bits = np.bitwise_count(a ^ b)
    return bits[..., 0] + bits[..., 1]


@dataclass(frozen=True)
class Kinds:
    """One member for all samples with the same bytes, split and label: a thousand black frames are one kind (U)."""

    first: Ints  # (U,) a member
    last: Ints  # (U,) another member where there are several
    count: Ints  # (U,)
    of: Ints  # (N,) the kind of each sample
    content: Ints  # (U,) number of its bytes
    split: Ints  # (U,) index in SPLITS
    label: Ints  # (U,)


def _kinds(samples: Sequence[Sample], content: Ints) -> Kinds:
    split = np.array([SPLITS.index(sample.split) for sample in samples], np.int64)
    _, label = np.unique([sample.label for sample in samples], return_inverse=True)
    key = (content * len(SPLITS) + split) * (label.max(initial=0) + 1) + label
    _, first, of, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    last = first.copy()
    last[of] = np.arange(len(samples))
    return Kinds(first, last, count, of, content[first], split[first], label[first])


# ---- pairs of kinds, (P,2)


def _exact(kinds: Kinds) -> Ints:
    """Kinds of one content with each other, and a kind of several members with itself."""
    pairs = [np.flatnonzero(kinds.count > 1)[:, None].repeat(2, axis=1)]
    order = np.argsort(kinds.content, kind="stable")
    for step in range(1, len(order)):
        same = kinds.content[order[step:]] == kinds.content[order[:-step]]
        if not same.any():
            break
        pairs.append(np.stack([order[:-step][same], order[step:][same]], axis=1))
    return np.concatenate(pairs)


def _telling(kinds: Kinds, thumbs: Pictures) -> tuple[Ints, Floats]:
    """Kinds whose picture is not flat, and for every kind (U,) how far apart its twin may be, in gray levels.

    Contrast is the mean absolute deviation, as a pair's difference is a mean absolute difference.
    """
    contrast = np.zeros(len(kinds.first))
    for start in range(0, len(contrast), BLOCK):
        chosen = thumbs[kinds.first[start : start + BLOCK]].astype(np.float32)
        contrast[start : start + BLOCK] = np.abs(chosen - chosen.mean((1, 2), keepdims=True)).mean((1, 2))
    return np.flatnonzero(contrast >= FLAT), np.minimum(LEVELS, CONTRAST * contrast)


def _near(kinds: Kinds, thumbs: Pictures, pairs: Ints, limit: Floats) -> Ints:
    """Those of the pairs (P,2) that are nearly the same picture, but not byte for byte."""
    pairs = pairs[kinds.content[pairs[:, 0]] != kinds.content[pairs[:, 1]]]
    return pairs[difference(thumbs, kinds.first[pairs]) <= limit[pairs[:, 0]]]


def _mirrored(kinds: Kinds, thumbs: Pictures, pairs: Ints, limit: Floats) -> Ints:
    """Those of the pairs (P,2) that are mirrored twins: each the other's best mirrored partner, and unlike unmirrored.

    In a recording every frame nearly mirrors the neighbours of its twin too; the best partner is the twin itself.
    """
    pairs = pairs[kinds.content[pairs[:, 0]] != kinds.content[pairs[:, 1]]]
    flipped = difference(thumbs, kinds.first[pairs], mirrored=True)
    alike = flipped <= limit[pairs[:, 0]]
    pairs, flipped = pairs[alike], flipped[alike]
    as_they_stand = difference(thumbs, kinds.first[pairs])
    one_sided = as_they_stand > np.maximum(limit[pairs[:, 0]], 2 * flipped)  # a symmetric picture mirrors itself
    pairs, flipped = pairs[one_sided], flipped[one_sided]
    best = np.full(len(kinds.first), np.inf)
    np.minimum.at(best, pairs[:, 0], flipped)
    np.minimum.at(best, pairs[:, 1], flipped)
    return pairs[flipped <= best[pairs].min(axis=1) + TIED]


def _searched(asked: Codes, base: Codes, split: Ints) -> Ints:
    """Rows (P,2) whose hashes are close, sought for each split in the split itself and in the others."""
    pairs = [NO_PAIRS]
    for here in np.unique(split):
        own = np.flatnonzero(split == here)
        others = np.flatnonzero(split != here)
        for among, itself in ((own, np.arange(len(own))), (others, np.full(len(own), -1))):
            found = close(asked[own], base[among], itself)
            pairs.append(np.stack([own[found[:, 0]], among[found[:, 1]]], axis=1))
    return np.concatenate(pairs)


def close(asked: Codes, base: Codes, itself: Ints, exhaustive: int = EXHAUSTIVE) -> Ints:
    """For each asked hash (A,2) its closest of the base (B,2), at most KEPT within RADIUS: row numbers (P,2).

    itself: (A,) the row of the base that an asked hash is not paired with, or -1. Up to `exhaustive` rows every hash
    meets every other. Above, it meets its neighbours in sorted orders of the rotated bits, in time A·log B (Charikar,
    "Similarity estimation techniques from rounding algorithms", 2002, section 3): most pairs are found, not all.
    """
    if not len(asked) or not len(base):
        return NO_PAIRS
    meet = _everyone if max(len(asked), len(base)) <= exhaustive else _neighbours
    pairs = [NO_PAIRS]
    for met, bits in meet(asked, base):
        right = (bits <= RADIUS) & (met[:, 1] != itself[met[:, 0]])
        met, bits = met[right], bits[right]
        order = np.lexsort((met[:, 1], bits, met[:, 0]))
        met = met[order]
        rank = np.arange(len(met)) - np.searchsorted(met[:, 0], met[:, 0])
        pairs.append(met[rank < KEPT])
    return np.concatenate(pairs)


def _everyone(asked: Codes, base: Codes) -> Iterator[tuple[Ints, Bits]]:
    """Pairs (P,2) that meet and their differing bits (P,), an asked hash at a time."""
    high, low = np.ascontiguousarray(base[:, 0]), np.ascontiguousarray(base[:, 1])
    for row, (a, b) in enumerate(asked):
        bits = np.bitwise_count(high ^ a) + np.bitwise_count(low ^ b)
        near = np.flatnonzero(bits <= RADIUS)
        if len(near):
            yield np.stack([np.full(len(near), row), near], axis=1), bits[near]


def _neighbours(asked: Codes, base: Codes) -> Iterator[tuple[Ints, Bits]]:
    """The same in blocks of asked hashes; all pairs of one asked hash stand in one block."""
    orders, places = [], []
    for k in range(ROTATIONS):
        both = _rotate(np.concatenate([base, asked]), k * 128 // ROTATIONS)
        order = np.lexsort((both[:, 1], both[:, 0]))
        in_base = order < len(base)
        place = np.zeros(len(both), np.int64)
        place[order] = np.cumsum(in_base)
        orders.append(order[in_base])
        places.append(place[len(base) :])
    reach = np.arange(-WINDOW, WINDOW)
    for start in range(0, len(asked), BLOCK):
        block = slice(start, start + BLOCK)
        spots = [np.clip(place[block, None] + reach, 0, len(base) - 1) for place in places]
        met = np.concatenate([order[spot] for order, spot in zip(orders, spots, strict=True)], axis=1)  # (block,M)
        row, column = np.nonzero(hamming(base[met], asked[block, None]) <= RADIUS)
        once = np.unique((row + start) * len(base) + met[row, column])
        pairs = np.stack(np.divmod(once, len(base)), axis=1)
        yield pairs, hamming(base[pairs[:, 1]], asked[pairs[:, 0]])


def _rotate(codes: Codes, turn: int) -> Codes:
    """Each 128-bit code turned left by `turn` bits."""
    if turn >= 64:
        codes, turn = codes[:, ::-1], turn - 64
    return codes if not turn else (codes << np.uint64(turn)) | (codes[:, ::-1] >> np.uint64(64 - turn))


def difference(thumbs: Pictures, pairs: Ints, mirrored: bool = False) -> Floats:
    """Mean absolute difference of the two thumbnails of each pair (P,2), in gray levels; the first flipped or not."""
    out = np.zeros(len(pairs))
    for start in range(0, len(pairs), 8 * BLOCK):
        rows = pairs[start : start + 8 * BLOCK]
        first, second = thumbs[rows[:, 0]], thumbs[rows[:, 1]]
        if mirrored:
            first = first[:, :, ::-1]
        out[start : start + 8 * BLOCK] = (np.maximum(first, second) - np.minimum(first, second)).mean(axis=(1, 2))
    return out


# ---- what the pairs say


def _tally(samples: Sequence[Sample], kinds: Kinds, pairs: Ints) -> tuple[dict[str, Any], int, list[list[str]]]:
    """Pairs of kinds -> counts of samples, how many of them have a twin of another label, and examples of those."""
    a, b = np.concatenate([pairs, pairs[:, ::-1]]).T
    same = kinds.split[a] == kinds.split[b]
    leak = (kinds.split[a] == SPLITS.index("test")) & (kinds.split[b] == SPLITS.index("train"))
    other = kinds.label[a] != kinds.label[b]

    def having(chosen: NDArray[np.bool_]) -> int:
        return int(kinds.count[np.unique(a[chosen])].sum())

    def shown(rows: Ints) -> list[list[str]]:
        return [[samples[kinds.first[i]].id, samples[kinds.last[j]].id] for i, j in rows[:EXAMPLES]]

    across = kinds.split[pairs[:, 0]] != kinds.split[pairs[:, 1]]
    order = np.argsort(~across, kind="stable")  # pairs across splits are the ones to look at
    _, once = np.unique(np.sort(pairs[order], axis=1), axis=0, return_index=True)
    unique = pairs[order][np.sort(once)]
    counts = {"within": having(same), "across": having(~same), "test_in_train": having(leak), "examples": shown(unique)}
    conflicting = unique[kinds.label[unique[:, 0]] != kinds.label[unique[:, 1]]]
    return counts, having(other), shown(conflicting)


def _distinct(mirrored: Ints, contents: int) -> int:
    """Contents, less those joined by mirrored pairs (P,2) of them."""
    parent = list(range(contents))

    def root(x: int) -> int:
        while parent[x] != x:
            parent[x] = x = parent[parent[x]]
        return x

    joined = 0
    for a, b in mirrored.tolist():
        if (a := root(a)) != (b := root(b)):
            parent[a] = b
            joined += 1
    return contents - joined
