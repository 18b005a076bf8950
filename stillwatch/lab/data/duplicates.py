"""Duplicates: pictures that are copies, byte for byte, nearly, mirrored, or altered. Opens no file."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
# What confirms a pair: a correlation that brightness and contrast leave as it is. No two drivers come near it.
CORRELATED = 0.995  # of two thumbnails
FLAT = 2.0  # contrast in gray levels below which a picture shows nothing to compare
TIED = 0.1  # gray levels by which a mirrored partner may be worse than the best one
KEPT = 16  # closest hashes looked at: so many in a picture's own split, so many in the others
# Altered copies. Measured on driving video, 40 pairs each: crops to 20 %, shifts, turns and letterboxes have 48 inliers
# and more, and lie on each other with 0.98 and more; of two drivers 2 % have 25 inliers, and none 0.97.
SMALLEST, LONG, GRID, BARE = 64, 384, 16, 3.0  # pixels, pixels, cells, gray levels
FEATURES, INLIERS, SURE, ALIGNED, ALIKE, NEIGHBOUR = 200, 25, 40, 0.97, 0.5, 0.97
MOST, PAIRS = 20_000, 10_000
LEAK = {SPLITS.index("test"), SPLITS.index("train")}
BLOCK = 4096  # pairs of thumbnails compared at once
EXAMPLES = 20


class Record(BaseModel):
    """A part of audit.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Counts(Record):
    """Samples that have a duplicate of one kind, each once."""

    within: int  # in their own split
    across: int  # in another split
    test_in_train: int  # test samples with one in train
    examples: list[list[str]]  # pairs of ids


class Conflicts(Record):
    """Samples that have a duplicate with another label."""

    exact: int
    near: int
    mirrored: int
    altered: int = 0
    examples: list[list[str]]


class LookAlikes(Record):
    """Test samples whose most alike picture is a training sample: of the same person, camera or recording.

    A grouped split has none.
    """

    test_in_train: int
    of: int  # test samples
    confidence: float | None  # share of such pairs that are of one group, where groups are named
    examples: list[list[str]]


class Duplicates(Record):
    exact: Counts
    near: Counts
    mirrored: Counts
    altered: Counts  # cropped, shifted, turned or letterboxed, mirrored ones included
    overlapping: Counts  # the same things stand in both pictures, and something moved: a recording
    look_alikes: LookAlikes
    conflicting: Conflicts


def find(samples: Sequence[Sample], clips: Pictures, progress: Progress = NO_PROGRESS) -> tuple[Duplicates, int]:
    """Duplicates among samples (N, with splits), and the number of distinct pictures, mirrored copies counted once.

    clips: uint8 (N,T,H,W,C).
    """
    content, thumbs, contrast = fingerprints(clips, progress)
    split = np.array([SPLITS.index(sample.split) for sample in samples], np.int64)
    _, label = np.unique([sample.label for sample in samples], return_inverse=True)
    key = (content * len(SPLITS) + split) * (label.max(initial=0) + 1) + label
    _, first, inverse, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    last = first.copy()
    last[inverse] = np.arange(len(samples))
    unique = Unique(first, last, count, content[first], split[first], label[first])
    rows = np.flatnonzero(contrast[unique.first] >= FLAT)
    plain = hashes(thumbs, first[rows])
    flipped = hashes(thumbs, first[rows], mirrored=True)
    candidates = rows[_search(plain, plain, unique.split[rows], progress)]
    candidates = candidates[unique.content[candidates[:, 0]] != unique.content[candidates[:, 1]]]
    near = candidates[_apart(thumbs, first[candidates]) <= 1 - CORRELATED]
    mirrored = _mirrored(unique, thumbs, rows[_search(flipped, plain, unique.split[rows], progress)])
    altered, overlapping = _altered(samples, clips, unique, rows, np.concatenate([near, mirrored]), progress)
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
    kinds = {"exact": np.concatenate(exact), "near": near, "mirrored": mirrored, "altered": altered}
    for kind, pairs in kinds.items():
        counts[kind], conflicts[kind], shown = _count(samples, unique, pairs)
        examples += shown
    counts["overlapping"] = _count(samples, unique, overlapping)[0]
    alike = _nearest(samples, thumbs, first[rows])
    number = int(content.max(initial=-1)) + 1
    a, b = unique.content[mirrored].T
    distinct = connected_components(coo_array((np.ones(len(a)), (a, b)), (number, number)), directed=False)[0]
    told = Conflicts(**conflicts, examples=examples[:EXAMPLES])
    return Duplicates(**counts, look_alikes=alike, conflicting=told), int(distinct)


# ---- what stands for a picture


def fingerprints(clips: Pictures, progress: Progress = NO_PROGRESS) -> tuple[Ints, Pictures, Floats]:
    """Each picture's number for its bytes (N,), its middle frame's gray thumbnail (N,32,32), and contrast (N,), the
    mean absolute deviation.
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
    """Difference hash, (N,2) uint64: is each of 8×8 cells brighter than its left, its upper neighbour?

    thumbs: uint8 (N,32,32). mirrored: left to right. After N. Krawetz, "Kind of like that" (2013).
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


def _mirrored(unique: Unique, thumbs: Pictures, pairs: Ints) -> Ints:
    pairs = pairs[unique.content[pairs[:, 0]] != unique.content[pairs[:, 1]]]
    apart = _apart(thumbs, unique.first[pairs], mirrored=True)
    pairs, apart = pairs[apart <= 1 - CORRELATED], apart[apart <= 1 - CORRELATED]
    upright = _apart(thumbs, unique.first[pairs])
    pairs = pairs[upright > np.maximum(1 - CORRELATED, 2 * apart)]  # a symmetric picture mirrors itself
    flipped = np.zeros(len(pairs))  # mean absolute difference, in gray levels
    for start in range(0, len(pairs), BLOCK):
        first, second = (thumbs[rows] for rows in unique.first[pairs[start : start + BLOCK]].T)
        first = first[:, :, ::-1]
        flipped[start : start + BLOCK] = (np.maximum(first, second) - np.minimum(first, second)).mean(axis=(1, 2))
    best = np.full(len(unique.first), np.inf)  # frames nearly mirror the neighbours of their duplicate, too
    np.minimum.at(best, pairs[:, 0], flipped)
    np.minimum.at(best, pairs[:, 1], flipped)
    return pairs[flipped <= best[pairs].min(axis=1) + TIED]


def _search(queries: Codes, base: Codes, split: Ints, progress: Progress) -> Ints:
    pairs = [np.zeros((0, 2), np.int64)]
    for here in np.unique(split):
        own, others = np.flatnonzero(split == here), np.flatnonzero(split != here)
        for among, exclude in ((own, np.arange(len(own))), (others, np.full(len(own), -1))):
            found = close(queries[own], base[among], exclude, progress)
            pairs.append(np.stack([own[found[:, 0]], among[found[:, 1]]], axis=1))
    return np.concatenate(pairs)


def close(queries: Codes, base: Codes, exclude: Ints, progress: Progress = NO_PROGRESS) -> Ints:
    """For each query (Q,2) its closest in the base (B,2), at most KEPT within RADIUS: rows (P,2).

    exclude: (Q,) the base row that a query is not paired with, or -1.
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


def _apart(thumbs: Pictures, pairs: Ints, mirrored: bool = False) -> Floats:
    out = np.zeros(len(pairs))
    for start in range(0, len(pairs), BLOCK):
        first, second = (thumbs[rows].astype(np.float32) for rows in pairs[start : start + BLOCK].T)
        first = first[:, :, ::-1] if mirrored else first
        both = [_unit(side.reshape(len(side), -1)) for side in (first, second)]
        out[start : start + BLOCK] = 1 - (both[0] * both[1]).sum(1)
    return out


def _nearest(samples: Sequence[Sample], thumbs: Pictures, rows: Ints) -> LookAlikes:
    rows = _share(rows)
    pairs = list[tuple[Sample, Sample]]()
    small = [cv2.resize(thumbs[row], (GRID, GRID), interpolation=cv2.INTER_AREA).ravel() for row in rows]
    units = _unit(np.array(small, np.float32).reshape(len(rows), GRID**2))
    for start in range(0, len(rows), 512):
        like = units[start : start + 512] @ units.T
        like[np.arange(len(like)), start + np.arange(len(like))] = -1
        close = np.flatnonzero(like.max(axis=1, initial=-1) >= NEIGHBOUR)
        pairs += [(samples[rows[start + i]], samples[rows[like[i].argmax()]]) for i in close]
    leaks = [(one.id, other.id) for one, other in pairs if (one.split, other.split) == ("test", "train")]
    named = [one.group == other.group for one, other in pairs if one.group and other.group]
    tests = sum(samples[row].split == "test" for row in rows)
    sure = float(np.mean(named)) if named else None
    return LookAlikes(test_in_train=len(leaks), of=tests, confidence=sure, examples=[list(p) for p in leaks[:EXAMPLES]])


def _share(rows: Ints) -> Ints:
    return rows[np.linspace(0, max(len(rows) - 1, 0), min(len(rows), MOST)).astype(np.int64)]


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,M) to mean 0, length 1."""
    rows = rows - rows.mean(1, keepdims=True)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6), np.float32)


# ---- altered copies: alike when small, then points that one affine move explains (ORB, Rublee et al. 2011)


def _altered(
    samples: Sequence[Sample], clips: Pictures, unique: Unique, rows: Ints, known: Ints, progress: Progress
) -> tuple[Ints, Ints]:
    """(copies, overlapping pictures) as new pairs (P,2) of unique pictures."""
    if min(clips.shape[2:4]) < SMALLEST:
        return np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int64)
    rows, views = _share(rows), Views(clips, unique.first)
    small = np.stack([views.small(row) for row in rows]) if len(rows) else np.zeros((0, 3, GRID**2), np.float32)
    _, names = np.unique([samples[i].sequence or f"#{i}" for i in unique.first[rows]], return_inverse=True)
    group = [samples[first].group for first in unique.first]
    skip = {tuple(sorted(pair)) for pair in known.tolist()}
    found: dict[tuple[int, int, bool], tuple[int, int, float]] = {}
    for mirrored in (False, True):
        for i, j, rank, likeness in _look_alikes(
            small, unique.split[rows], np.unique(names, return_inverse=True)[1], mirrored
        ):
            a, b = sorted((int(rows[i]), int(rows[j])))
            if (a, b) not in skip and unique.content[a] != unique.content[b]:
                splits = {int(unique.split[a]), int(unique.split[b])}
                urgent = 2 if splits == LEAK else len(splits) - 1
                found[a, b, mirrored] = max(found.get((a, b, mirrored), (0, -9, 0.0)), (urgent, -rank, likeness))
    # Test in train first, then other splits; each picture's most alike before its second
    best = sorted(found, key=lambda pair: found[pair], reverse=True)[:PAIRS]
    copies, overlapping = [np.zeros((0, 2), np.int64)], [np.zeros((0, 2), np.int64)]
    for a, b, mirrored in progress.bar(best, len(best), "looking for altered copies"):
        inliers, aligned = views.match(a, b, mirrored)
        if inliers >= INLIERS and aligned >= ALIGNED:
            copies.append(np.array([[a, b]]))
        elif inliers >= SURE and not mirrored and not (group[a] and group[a] == group[b]):  # else the names tell it
            overlapping.append(np.array([[a, b]]))
    return np.concatenate(copies), np.concatenate(overlapping)


def _look_alikes(
    small: NDArray[np.float32], split: Ints, names: Ints, mirrored: bool
) -> Iterator[tuple[int, int, int, float]]:
    """(query, partner, rank, correlation): each picture's most alike in the other splits, and in its own.

    small: (N,3,M). names: pictures of one recording are not paired.
    """
    side = small.reshape(len(small), 3, GRID, GRID)[..., ::-1].reshape(small.shape) if mirrored else small
    for here in np.unique(split):
        own = np.flatnonzero(split == here)
        for among, most in ((own, 2), (np.flatnonzero(split != here), 4)):
            for start in range(0, len(own) if len(among) else 0, 512):
                block = own[start : start + 512]
                like = side[block, 0] @ small[among, 0].T  # 1, 2: without margins, as a crop's source
                for cut in (1, 2):
                    np.maximum(like, side[block, 0] @ small[among, cut].T, out=like)
                    np.maximum(like, side[block, cut] @ small[among, 0].T, out=like)
                like[names[block][:, None] == names[among]] = -1
                for rank in range(min(most, len(among))):
                    partner = like.argmax(axis=1)
                    best = like[np.arange(len(block)), partner]
                    for i in np.flatnonzero(best >= ALIKE):
                        yield int(block[i]), int(among[partner[i]]), rank, float(best[i])
                    like[np.arange(len(block)), partner] = -1


@dataclass(frozen=True)
class Views:
    """Middle frames in gray without even borders, and their points, cached."""

    clips: Pictures
    first: Ints  # (U,) row of each unique picture
    points: dict[tuple[int, bool], tuple[NDArray[np.float32], Pictures | None]] = field(default_factory=dict)

    def gray(self, row: int) -> Pictures:
        """(H,W), LONG pixels on the data's longer side: undoes letterboxing and stretching."""
        frame = np.ascontiguousarray(self.clips[self.first[row]][self.clips.shape[1] // 2])
        picture = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) if frame.shape[2] == 3 else frame[:, :, 0]
        for axis in (1, 0):  # a letterbox's bars
            lively = np.flatnonzero(picture.std(axis=axis) > BARE)
            if len(lively) > picture.shape[1 - axis] // 2:
                picture = picture.take(range(lively[0], lively[-1] + 1), axis=1 - axis)
        height, width = (round(side * LONG / max(frame.shape[:2])) for side in frame.shape[:2])
        return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)

    def small(self, row: int) -> NDArray[np.float32]:
        """(3,GRID²): whole, and without a twentieth, a tenth on each side."""
        picture, cuts = self.gray(row), []
        for margin in (0, 0.05, 0.1):
            top, left = (round(margin * length) for length in picture.shape)
            inner = picture[top : picture.shape[0] - top, left : picture.shape[1] - left]
            cuts.append(cv2.resize(inner, (GRID, GRID), interpolation=cv2.INTER_AREA).ravel())
        return _unit(np.stack(cuts).astype(np.float32))

    def features(self, row: int, mirrored: bool) -> tuple[NDArray[np.float32], Pictures | None]:
        """Points (P,2) and descriptors (P,32)."""
        if (row, mirrored) not in self.points:
            picture = self.gray(row)[:, :: -1 if mirrored else 1]
            detector = cv2.ORB_create(FEATURES, fastThreshold=5, edgeThreshold=15)  # type: ignore[attr-defined]
            keys, described = detector.detectAndCompute(np.ascontiguousarray(picture), None)
            self.points[row, mirrored] = np.array([key.pt for key in keys], np.float32).reshape(-1, 2), described
        return self.points[row, mirrored]

    def match(self, a: int, b: int, mirrored: bool) -> tuple[int, float]:
        """(points that one affine move explains, correlation of the aligned pictures)."""
        (from_, one), (to, other) = self.features(a, mirrored), self.features(b, False)
        if one is None or other is None:
            return 0, 0.0
        pairs = [m for m in cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(one, other) if m.distance < 64]
        if len(pairs) < INLIERS:
            return 0, 0.0
        source, target = from_[[m.queryIdx for m in pairs]], to[[m.trainIdx for m in pairs]]
        cv2.setRNGSeed(0)
        move, fits = cv2.estimateAffine2D(source, target, method=cv2.RANSAC, ransacReprojThreshold=4)
        if move is None or (inliers := int(fits.sum())) < INLIERS:
            return 0, 0.0
        picture, base = np.ascontiguousarray(self.gray(a)[:, :: -1 if mirrored else 1]), self.gray(b)
        size = (base.shape[1], base.shape[0])
        laid, covers = (cv2.warpAffine(x, move, size) for x in (picture, np.full_like(picture, 255)))
        inside = cv2.erode(covers, np.ones((9, 9), np.uint8)) > 250
        if inside.mean() < 0.3:
            return inliers, 0.0
        seen = [cv2.GaussianBlur(x, (5, 5), 0)[inside].astype(np.float32)[None] for x in (laid, base)]
        return inliers, float((_unit(seen[0]) * _unit(seen[1])).sum())


# ---- what the pairs say


def _count(samples: Sequence[Sample], unique: Unique, pairs: Ints) -> tuple[Counts, int, list[list[str]]]:
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
