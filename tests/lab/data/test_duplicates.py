import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillwatch.lab.data import duplicates
from stillwatch.lab.data.sources import Sample


def scene(seed, height=60, width=80):
    """A gray picture of random bright and dark blocks: nothing symmetric about it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(picture, quality):
    coded = cv2.imencode(".jpg", np.ascontiguousarray(picture), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE)


def clips(*pictures):
    """Gray pictures -> uint8 (N,1,H,W,1)."""
    return np.stack(pictures)[:, None, :, :, None]


def sample(number, split="train", label="a"):
    return Sample(id=f"{number}.png", path=Path(f"{number}.png"), label=label, split=split)


def find(samples, pictures):
    found, distinct = duplicates.find(samples, pictures)
    return found.model_dump(), distinct


def counts(found, kind):
    return tuple(found[kind][key] for key in ("within", "across", "test_in_train"))


def test_byte_for_byte_copies_count_once_a_sample():
    pictures = [scene(0), scene(0), scene(0), scene(1), scene(2), scene(2)]
    splits = ["train", "train", "test", "train", "train", "valid"]
    found, distinct = find([sample(i, split) for i, split in enumerate(splits)], clips(*pictures))
    assert counts(found, "exact") == (2, 5, 1)
    assert counts(found, "near") == counts(found, "mirrored") == (0, 0, 0)
    assert distinct == 3
    assert ["0.png", "2.png"] in [sorted(pair) for pair in found["exact"]["examples"]]


@pytest.mark.parametrize("quality", [90, 40])
def test_a_reencoded_copy_is_near_and_not_exact(quality):
    pictures = [scene(0), jpeg(scene(0), quality), scene(1)]
    found, distinct = find([sample(0), sample(1, "test"), sample(2)], clips(*pictures))
    assert counts(found, "near") == (0, 2, 1)
    assert counts(found, "exact") == counts(found, "mirrored") == (0, 0, 0)
    assert found["near"]["examples"] == [["0.png", "1.png"]]
    assert distinct == 3  # a near copy may be the next frame: it stays a picture of its own


@pytest.mark.parametrize("quality", [90, 40])
def test_mirrored_copies(quality):
    pictures = [scene(0), jpeg(scene(0)[:, ::-1], quality), scene(1), scene(2)]
    found, distinct = find([sample(0), sample(1), sample(2, "test"), sample(3)], clips(*pictures))
    assert counts(found, "mirrored") == (2, 0, 0)
    assert counts(found, "exact") == counts(found, "near") == (0, 0, 0)
    assert found["mirrored"]["examples"] == [["0.png", "1.png"]]
    assert distinct == 3


def test_a_frame_is_a_duplicate_of_its_mirror_image_and_not_of_its_neighbours():
    background = scene(3).astype(np.float32)
    frames = []
    for step in range(6):  # the light grows a little: all six are near, and nearly mirror each other's mirror image
        frames.append(np.clip(background * (0.8 + 0.01 * step), 0, 255).astype(np.uint8))
    found, distinct = find([sample(i) for i in range(7)], clips(*frames, frames[2][:, ::-1]))
    assert found["near"]["within"] == 6
    assert found["mirrored"]["within"] == 2
    assert [sorted(pair) for pair in found["mirrored"]["examples"]] == [["2.png", "6.png"]]
    assert distinct == 6


def test_exact_copies_of_a_mirrored_picture_are_its_duplicates_too():
    pictures = [scene(0), scene(0), np.ascontiguousarray(scene(0)[:, ::-1])]
    found, distinct = find([sample(0), sample(1), sample(2, "test")], clips(*pictures))
    assert counts(found, "exact") == (2, 0, 0)
    assert counts(found, "mirrored") == (0, 3, 1)
    assert distinct == 1


def test_flat_dark_and_symmetric_pictures_have_no_mirrored_copies():
    rng = np.random.default_rng(0)
    half = scene(5)[:, :40]
    pictures = [
        *(np.full((60, 80), level, np.uint8) for level in (0, 1, 128, 255)),
        *(rng.integers(0, 6, (60, 80), dtype=np.uint8) for _ in range(5)),  # a dark room's noise
        *(jpeg(np.hstack([half, half[:, ::-1]]), quality) for quality in (95, 80, 60)),  # symmetric, three encodings
    ]
    found, _ = find([sample(i) for i in range(len(pictures))], clips(*pictures))
    assert counts(found, "mirrored") == (0, 0, 0)
    assert counts(found, "near") == (3, 0, 0)  # the symmetric ones are copies of each other


CHANGES = {
    "brightened": lambda p: np.clip(p * 1.2, 0, 255),
    "lighter": lambda p: np.clip(p + 10.0, 0, 255),
    "gamma": lambda p: 255 * (p / 255) ** 1.4,
    "contrast": lambda p: (p - 128.0) * 0.7 + 128,
    "cropped": lambda p: cv2.resize(p[14:-14, 19:-19], p.shape[::-1]),  # a fifth of each side is gone
    "shifted": lambda p: moved(p, [[1, 0, 10], [0, 1, 7]]),
    "turned": lambda p: moved(p, cv2.getRotationMatrix2D((96, 72), 4, 1)),
    "letterboxed": lambda p: np.pad(cv2.resize(p, (144, 108)), ((18, 18), (24, 24))),
}


def moved(picture, how):
    size = picture.shape[::-1]
    return cv2.warpAffine(picture, np.float32(how), size, borderMode=cv2.BORDER_REPLICATE)


def room(seed, height=144, width=192):
    """A drawn place with corners and texture, such as a camera sees."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width), 40, np.uint8)
    for _ in range(60):
        x, y, w, h = rng.integers(0, (width, height, 40, 40))
        cv2.rectangle(picture, (int(x), int(y)), (int(x + w), int(y + h)), int(rng.integers(30, 220)), -1)
    return cv2.GaussianBlur(picture, (3, 3), 0)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_an_altered_copy_is_found_and_no_other_place_is(change, mirrored):
    rooms = [room(seed) for seed in range(6)]
    copy = CHANGES[change](rooms[3][:, ::-1].copy() if mirrored else rooms[3]).astype(np.uint8)
    found, _ = find([*map(sample, range(6)), sample(6, "test")], clips(*rooms, copy))
    kinds = {kind: counts(found, kind) for kind in ("exact", "near", "mirrored", "altered")}
    assert [kind for kind, counted in kinds.items() if any(counted)] in (
        [["near"], ["altered"]] if not mirrored else [["mirrored"], ["altered"]]
    )
    kind = max(kinds, key=lambda kind: kinds[kind])
    assert kinds[kind] == (0, 2, 1) and sorted(found[kind]["examples"][0]) == ["3.png", "6.png"]


def test_a_recording_is_known_by_what_stands_still():
    """Something moves through a room: no copy, but one recording, which is said where the names do not."""
    frames = [room(0), room(0)]
    for frame, at in zip(frames, (20, 110), strict=True):
        cv2.circle(frame, (at, 70), 24, 255, -1)
    other = room(1)
    found, _ = find([sample(0), sample(1, "test"), sample(2)], clips(*frames, other))
    assert counts(found, "altered") == counts(found, "near") == (0, 0, 0)
    assert counts(found, "overlapping") == (0, 2, 1)
    named = [Sample(f"{i}.png", Path(f"{i}.png"), "a", "", split, "film") for i, split in enumerate(("train", "test"))]
    assert counts(find(named, clips(*frames))[0], "overlapping") == (0, 0, 0)  # its name says it already


def test_small_pictures_are_not_asked_for_points():
    digits = [cv2.resize(room(seed), (28, 28)) for seed in range(3)]
    found, _ = find([sample(i) for i in range(4)], clips(*digits, np.roll(digits[0], 3, 1)))
    assert counts(found, "altered") == (0, 0, 0)


def test_brightness_and_contrast_do_not_hide_a_copy():
    bright = scene(6).astype(int)
    found, _ = find(
        [sample(i) for i in range(4)],
        clips(*(np.clip(p, 0, 255).astype(np.uint8) for p in (bright, bright + 10, bright // 4, scene(7)))),
    )
    assert counts(found, "near") == (3, 0, 0)


def test_a_thousand_black_frames_are_one_content():
    found, distinct = find(
        [sample(i, "train" if i % 2 else "test") for i in range(1000)], np.zeros((1000, 1, 16, 16, 1), np.uint8)
    )
    assert counts(found, "exact") == (1000, 1000, 500)
    assert len(found["exact"]["examples"]) <= duplicates.EXAMPLES
    assert distinct == 1


def test_conflicting_labels_by_kind():
    pictures = [
        scene(0),
        scene(0),
        scene(1),
        jpeg(scene(1), 90),
        scene(2),
        jpeg(scene(2)[:, ::-1], 90),
        scene(3),
        scene(3),
    ]
    labels = "abababaa"
    found, _ = find([sample(i, label=label) for i, label in enumerate(labels)], clips(*pictures))
    conflicting = found["conflicting"]
    assert (conflicting["exact"], conflicting["near"], conflicting["mirrored"]) == (2, 2, 2)
    pairs = sorted(sorted(pair) for pair in conflicting["examples"])
    assert pairs == [["0.png", "1.png"], ["2.png", "3.png"], ["4.png", "5.png"]]


def test_colour_clips_are_compared_by_their_middle_frame_and_all_their_bytes():
    def clip(first, middle, last):
        return np.stack([np.stack([scene(seed)] * 3, axis=-1) for seed in (first, middle, last)])

    found, distinct = find([sample(0), sample(1), sample(2)], np.stack([clip(0, 1, 2), clip(0, 1, 2), clip(3, 1, 4)]))
    assert counts(found, "exact") == (2, 0, 0)
    assert counts(found, "near") == (3, 0, 0)
    assert distinct == 2


def test_nothing_gives_nothing():
    found, distinct = find([], np.zeros((0, 1, 8, 8, 1), np.uint8))
    assert counts(found, "exact") == counts(found, "near") == counts(found, "mirrored") == (0, 0, 0)
    assert distinct == 0


def differing(a, b):
    """Number of bits in which hashes (...,2) differ."""
    return np.bitwise_count(a ^ b).sum(axis=-1)


THUMBS = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).integers(0, 256, (1, 32, 32), dtype=np.uint8)
)


@given(THUMBS)
@settings(max_examples=50)
def test_hash_of_a_picture_flipped_twice_is_its_own(thumb):
    flipped = np.ascontiguousarray(thumb[:, :, ::-1])
    assert differing(duplicates.hashes(thumb), duplicates.hashes(flipped, mirrored=True)).tolist() == [0]
    assert differing(duplicates.hashes(thumb, mirrored=True), duplicates.hashes(flipped)).tolist() == [0]


@given(THUMBS, st.integers(-40, 40))
@settings(max_examples=50)
def test_hash_does_not_see_brightness(thumb, change):
    thumb = thumb // 2 + 60  # so that nothing is clipped
    assert differing(
        duplicates.hashes(thumb), duplicates.hashes((thumb.astype(int) + change).astype(np.uint8))
    ).tolist() == [0]


def test_hash_tells_left_from_right_and_top_from_bottom():
    ramp = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))
    codes = duplicates.hashes(np.stack([ramp, ramp[:, ::-1], ramp.T]))
    assert differing(codes[0], codes[1]) == 64  # all horizontal bits
    assert differing(codes[0], codes[2]) == 128


def planted(count, pairs, bits, seed=0):
    """Random hashes; hash `count - 1 - i` is hash `i` with `bits` bits changed, for i < pairs."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**64, (count, 2), dtype=np.uint64)
    for i in range(pairs):
        whole = int(codes[i, 0]) << 64 | int(codes[i, 1])
        for bit in rng.choice(128, bits, replace=False).tolist():
            whole ^= 1 << bit
        codes[count - 1 - i] = whole >> 64, whole % 2**64
    return codes, {(i, count - 1 - i) for i in range(pairs)}


def test_close_finds_all_planted_pairs_among_20000_in_little_memory():
    codes, truth = planted(20_000, 300, duplicates.RADIUS)
    tracemalloc.start()
    pairs = duplicates.close(codes, codes, np.arange(len(codes)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} == truth
    assert len(pairs) == 2 * len(truth)  # each seen from both sides
    assert peak < 20e6  # a table of all pairs would take 400e6


def test_close_leaves_out_hashes_beyond_the_radius():
    codes, _ = planted(200, 50, duplicates.RADIUS + 1)
    assert len(duplicates.close(codes, codes, np.arange(200))) == 0


def test_close_keeps_the_closest_of_a_crowd_and_never_itself():
    codes = np.zeros((200, 2), np.uint64)
    codes[:20, 1] = 1  # twenty are one bit away, 179 equal to the last
    pairs = duplicates.close(codes, codes, np.arange(200))
    assert np.bincount(pairs[:, 0]).tolist() == [duplicates.KEPT] * 200
    assert (pairs[:, 0] != pairs[:, 1]).all()
    own = duplicates.close(codes[150:151], codes, np.array([150]))
    assert own[:, 1].min() >= 20  # all of them at distance 0
