import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from stillwatch.lab.data import audit as audit_module
from stillwatch.lab.data.audit import (
    WIDTH,
    AuditReport,
    audit,
    no_pixels,
    summary,
)
from stillwatch.lab.data.cache import Store
from stillwatch.lab.data.contact_sheets import contact_sheets
from stillwatch.lab.data.sources import Sample, Skipped
from stillwatch.lab.training.runs import cached_audit


def sample(number, label="a", split="train", group="", sequence="", time=0.0):
    return Sample(f"{number}.png", Path(f"{number}.png"), label, group, split, sequence, time)


def noise(count, shape=(1, 16, 20, 1), seed=0):
    """Pictures that have nothing in common."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 5), dtype=np.uint8)
    frames, height, width, channels = shape
    big = np.stack([cv2.resize(p, (width, height), interpolation=cv2.INTER_NEAREST) for p in coarse])
    return np.broadcast_to(big[:, None, :, :, None], (count, frames, height, width, channels)).copy()


def clean(per_split=6, labels=("a", "b")):
    """Samples with nothing wrong: six groups a split, every label in every group, every recording in one split."""
    out = []
    for split in ("train", "valid", "test"):
        for group in range(per_split):
            for time, label in enumerate(labels):
                name = f"{split}-{group}"
                out.append(sample(len(out), label, split, name, name, float(time)))
    return out


def warned(found, words):
    return [text for text in found["warnings"] if words in text]


def look(samples, labels=("a", "b"), split="grouped", skipped=(), clips=None):
    found = audit(samples, skipped, noise(len(samples)) if clips is None else clips, labels, split).model_dump()
    assert json.loads(json.dumps(found)) == found
    return found


def text(found):
    return summary(AuditReport.model_validate(found))


def test_clean_data_gives_counts_and_no_warning():
    found = look(clean())
    assert found["warnings"] == []
    assert found["samples"] == found["distinct"] == 36
    assert found["splits"]["test"] == {"a": 6, "b": 6, "total": 12}
    assert found["groups"]["count"] == 18
    assert [len(found["groups"]["by_split"][split]) for split in ("train", "valid", "test")] == [6, 6, 6]
    assert found["groups"]["in_two_splits"] == []
    assert found["majority"] == {"label": "a", "accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}
    assert found["no_pixels"]["covered"] == 0
    assert found["skipped"] == {"count": 0, "share": 0.0, "reasons": {}, "files": []}


def test_pictures_must_match_samples():
    with pytest.raises(ValueError, match="36 samples but 35 pictures"):
        audit(clean(), [], noise(35), ("a", "b"), "grouped")


def test_the_same_data_are_searched_once(monkeypatch):
    searches, real = [], audit_module.find

    def find(*args):
        searches.append(1)
        return real(*args)

    monkeypatch.setattr(audit_module, "find", find)
    store = Store(clean(), [Skipped("x.jpg", "truncated")], noise(36), "fingerprint", "key", "content")
    first = cached_audit(store, store.samples, ("a", "b"), "grouped")
    assert cached_audit(store, store.samples, ("a", "b"), "grouped") == first and len(searches) == 1
    assert first == audit(store.samples, store.skipped, store.pixels, ("a", "b"), "grouped")
    moved = [replace(store.samples[0], split="test"), *store.samples[1:]]
    others = [
        (replace(store, key="other pixels"), store.samples, "grouped"),
        (replace(store, skipped=[]), store.samples, "grouped"),
        (store, moved, "grouped"),
        (store, store.samples, "official"),
    ]
    searches.clear()
    for count, (other, samples, split) in enumerate(others, 1):
        cached_audit(other, samples, ("a", "b"), split)
        assert len(searches) == count


def test_no_pixels_by_hand():
    train = [("v", 10, "a"), ("v", 20, "b"), ("v", 20, "b"), ("v", 40, "a"), ("w", 5, "c"), ("x", 0, "a")]
    # 14: nearer to 10. 15: as near to 10 as to 20, the earlier counts. 16: nearer to 20. 99 and 1: the ends.
    # w 900: however far. y has no training frame: the majority label, a. Nor has a sample without a recording.
    test = [
        ("v", 14, "a"),  # a, right, gap 4
        ("v", 15, "b"),  # a, wrong, gap 5
        ("v", 16, "b"),  # b, right, gap 4
        ("v", 99, "a"),  # a, right, gap 59
        ("v", 1, "b"),  # a, wrong, gap 9
        ("w", 900, "c"),  # c, right, gap 895
        ("y", 3, "a"),  # a, right
        ("", 10, "b"),  # a, wrong
    ]
    samples = [
        sample(f"{split}{i}", label, split, sequence=name, time=float(at))
        for split, rows in (("train", train), ("test", test))
        for i, (name, at, label) in enumerate(rows)
    ]
    samples.append(sample("v", "c", "valid", sequence="v", time=15.0))  # validation frames are not copied from
    found = no_pixels(samples, ("a", "b", "c")).model_dump()
    f1 = {"a": 2 * 3 / (3 + 6), "b": 2 * 1 / (4 + 1), "c": 1.0}  # 2·right / (true + guessed)
    assert found == {
        "accuracy": 5 / 8,
        "macro_f1": pytest.approx(sum(f1.values()) / 3),
        "covered": 6 / 8,
        "neighbours": 6,
        "median_gap": 7.0,
    }


@pytest.mark.parametrize(
    "samples, reason",
    [
        ([sample(0), sample(1, split="test")], "name no recording"),
        (
            [sample(0, sequence="v"), sample(1, split="test", sequence="v")],
            "no recording holds two samples in an order",
        ),
        ([sample(0, sequence="v")], "train or test is empty"),
    ],
)
def test_no_pixels_says_why_there_is_none(samples, reason):
    assert reason in no_pixels(samples, ("a", "b"))
    found = look(samples)
    assert found["no_pixels"] is None
    assert reason in found["no_pixels_reason"] and reason in text(found)


def shuffled_recordings(group):
    """Four recordings, long runs of one label, frames dealt at random to the splits: what an official split may be."""
    rng = np.random.default_rng(0)
    out = []
    for name in "vwxy":
        for time in range(60):
            label = "a" if time // 10 % 2 else "b"
            split = str(rng.choice(["train", "train", "train", "valid", "test"]))
            out.append(sample(f"{name}{time}", label, split, group and name, name, float(time)))
    return out


def test_a_leaking_split_is_named_with_its_numbers():
    samples = shuffled_recordings(group=True)
    tests = sum(s.split == "test" for s in samples)
    found = look(samples, split="official")
    assert found["no_pixels"]["accuracy"] > 0.85
    first = found["warnings"][0]
    assert first.startswith(f"The official split leaks: {tests} of {tests} test samples have a neighbour")
    assert f"{100 * found['no_pixels']['accuracy']:.1f} %" in first
    assert first.endswith('Use data.split = "grouped".')
    assert found["groups"]["in_two_splits"] == ["v", "w", "x", "y"]
    assert warned(found, "4 of 4 groups are in more than one split (v, w, x and y)")


def test_the_cure_fits_the_split():
    grouped = look(shuffled_recordings(group=True), split="grouped")["warnings"][0]
    assert grouped.startswith("The grouped split leaks") and grouped.endswith("check data.group.")
    nameless = look(shuffled_recordings(group=False), split="ratio")["warnings"][0]
    assert nameless.endswith('Set data.group and use data.split = "grouped".')


def test_groups_shared_without_a_leak_still_warn():
    samples = [replace(s, group="train-0") if s.split == "test" and s.group == "test-0" else s for s in clean()]
    found = look(samples, split="official")
    assert found["groups"]["in_two_splits"] == ["train-0"]
    assert warned(found, "groups are in more than one split (train-0)")[0].endswith('Use data.split = "grouped".')
    assert not warned(found, "leaks")


def test_a_share_of_the_training_groups_for_validation_is_no_leak_into_the_test():
    samples = [replace(s, group="train-0") if s.split == "valid" else s for s in clean()]
    found = look(samples, split="grouped")
    assert found["groups"]["in_two_splits"] == ["train-0"]
    assert warned(found, "1 groups are in both train and valid (train-0), as data.valid asks")
    assert not warned(found, "check data.group")


def test_copies_across_splits_and_within():
    samples, clips = clean(), noise(36)
    clips[-1] = clips[0]  # test and train
    clips[2] = clips[4][:, :, ::-1]  # both train
    found = look(samples, clips=clips)
    assert found["distinct"] == 34
    assert warned(found, "2 samples have an identical picture in another split; 1 of 12 test samples have one in train")
    assert warned(found, "2 samples have an identical picture with another label")
    assert warned(found, "2 samples have a mirrored copy within their split: 36 samples are 34 distinct pictures")
    assert warned(found, "1 of 12 test samples look most like a training sample")
    assert len(found["warnings"]) == 4


@pytest.mark.parametrize("named", [False, True])
def test_pictures_tell_of_a_person_in_two_splits_where_names_do_not(named):
    """Six people, each before a wall of their own, by twos in train, valid and test, or each in all three."""
    rng = np.random.default_rng(0)
    walls = rng.integers(0, 256, (6, 6, 8), dtype=np.uint8)

    def shot(person):
        big = cv2.resize(walls[person], (80, 60), interpolation=cv2.INTER_CUBIC).astype(int)
        return np.clip(big + rng.normal(0, 12, big.shape), 0, 255).astype(np.uint8)

    for apart in (True, False):
        people = [p for p in range(6) for _ in range(6)]
        splits = [("train", "valid", "test")[p // 2 if apart else i % 3] for i, p in enumerate(people)]
        samples = [
            sample(i, "ab"[i % 2], split, f"p{p}" if named and i % 2 else "")
            for i, (p, split) in enumerate(zip(people, splits, strict=True))
        ]
        found = look(samples, split="official", clips=np.stack([shot(p) for p in people])[:, None, :, :, None])
        probe, said = found["duplicates"]["look_alikes"], warned(found, "look most like a training sample")
        assert probe["of"] == 12 and probe["confidence"] == (1.0 if named else None)
        if named and not apart:
            assert said == []  # the names tell it
        else:
            assert bool(said) == (probe["test_in_train"] > 0) == (not apart)


@pytest.mark.parametrize(
    "split, words",
    [
        ("train", "No c in train: it cannot be learnt."),
        ("valid", "No c in valid: the best epoch is chosen without it."),
        ("test", "No c in test: the test figure says nothing about it."),
    ],
)
def test_a_class_absent_from_a_split(split, words):
    samples = [s for s in clean(labels=("a", "b", "c")) if not (s.split == split and s.label == "c")]
    assert look(samples, ("a", "b", "c"))["warnings"] == [words]


def test_an_empty_split_is_said_once():
    samples = [s for s in clean() if s.split != "valid"]
    assert look(samples)["warnings"] == ["The valid split is empty."]


def test_a_class_tied_to_one_group():
    samples = [s for s in clean(labels=("a", "b", "c")) if s.label != "c" or s.group == "train-0"]
    found = look(samples, ("a", "b", "c"))
    assert warned(found, "Only group train-0 has c")
    assert found["groups"]["of_label"]["c"] == ["train-0"]


def test_imbalance():
    samples = clean() + [sample(f"more{i}", "a", group=f"train-{i % 6}") for i in range(54)]
    assert look(samples)["warnings"] == [
        "Train holds 10 times as much a (60) as b (6): weigh the classes, and read macro-F1 beside accuracy."
    ]
    assert look(samples[:-1])["warnings"] == []  # 59 to 6


def test_few_groups_in_the_test_fold():
    samples = [s for s in clean() if s.split != "test" or s.group in ("test-0", "test-1")]
    assert look(samples)["warnings"] == [
        "The test split holds 2 groups (test-0 and test-1): its figure says little about the next group. Run all folds."
    ]


def test_unknown_groups_and_the_ratio_split():
    assert not warned(look(clean(), split="official"), "group")
    assert warned(look(clean(), split="ratio"), "The ratio split ignores the groups")
    nameless = [replace(s, group="") for s in clean()]
    found = look(nameless, split="ratio")
    assert warned(found, "No sample names its group: in the ratio split the same person")
    assert found["groups"]["count"] == 0 and found["groups"]["unknown"] == 36
    half = [replace(s, group="") if i % 2 else s for i, s in enumerate(clean())]
    assert warned(look(half, split="official"), "18 of 36 samples name no group")


def test_skipped_files_with_their_reasons():
    skipped = [Skipped("x.jpg", "truncated"), Skipped("y.jpg", "line without a box"), Skipped("z.jpg", "truncated")]
    found = look(clean(), skipped=skipped)
    assert found["skipped"]["reasons"] == {"truncated": 2, "line without a box": 1}
    assert found["skipped"]["share"] == pytest.approx(3 / 39)
    assert found["skipped"]["files"][1] == {"file": "y.jpg", "reason": "line without a box"}
    assert found["warnings"] == ["3 files or lines were skipped (7.7 %): truncated (2), line without a box (1)."]


def test_groups_are_listed_in_natural_order():
    samples = [sample(i, "ab"[i % 2], "train", str(group)) for i, group in enumerate([10, 9, 1, 10])]
    assert look(samples)["groups"]["by_split"]["train"] == ["1", "9", "10"]


def test_summary_reads_well_in_100_columns():
    long = "a class whose name is far too long for any table that shall fit a terminal of a hundred columns"
    samples = [replace(s, label=long if s.label == "b" else "a") for s in shuffled_recordings(group=True)]
    found = look(samples, ("a", long), split="official", skipped=[Skipped("x.jpg", "why " * 40)])
    whole = text(found)
    lines = whole.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[2] == f"{len(found['warnings'])} warnings:" and lines[3].startswith("  1. The official split leaks")
    header = next(line for line in lines if line.startswith("class"))
    total = next(line for line in lines if line.startswith("total"))
    assert header.split() == ["class", "train", "valid", "test", "all"]
    assert total.split()[-1] == "240" and len(total) == len(header)
    assert "nearest training frame in time (100.0 % have one, median gap 1)" in whole
    assert not any(line.endswith(tuple("0123456789")) and nxt.lstrip().startswith("%") for line, nxt in pairwise(lines))


def test_summary_of_clean_data():
    assert "0 warnings: nothing looks wrong" in text(look(clean()))


def test_contact_sheets_are_one_a_class_and_spread(tmp_path):
    samples = clean(labels=("a", "b/c")) + [sample(f"more{i}", "a", group="train-0") for i in range(60)]
    clips = noise(len(samples), (3, 18, 32, 3))
    paths = contact_sheets(samples, clips, ("a", "b/c", "none"), tmp_path, per_class=14)
    assert [path.name for path in paths] == ["00-a.png", "01-b_c.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00-a.png", "01-b_c.png"]  # and no drafts
    for path in paths:  # 14 tiles of 160x90 with a caption of 18: three lines of six under a title of 28
        assert cv2.imread(str(path)).shape == (28 + 3 * (90 + 18), 6 * 160, 3)


def test_contact_sheet_shows_the_chosen_pictures_in_their_colours(tmp_path):
    red = np.zeros((2, 3, 16, 16, 3), np.uint8)
    red[:, 1, :, :, 0] = 200  # RGB, in the middle frame alone
    samples = [sample(0, group="x" * 100), sample(1, split="test", group="Jürgen")]
    (path,) = contact_sheets(samples, red, ("a",), tmp_path)
    sheet = cv2.imread(str(path))
    assert sheet.shape == (28 + 160 + 18, 3 * 160, 3)  # room for the title
    assert sheet[28 + 80, 80].tolist() == sheet[28 + 80, 240].tolist() == [0, 0, 200]
    assert (sheet[28 + 160 :, :160] < 100).any() and (sheet[28 + 160 :, 160:320] < 100).any()  # captions
    assert (sheet[28:, 320:] == 255).all()


def test_contact_sheet_shows_points_of_faces_where_they_are(tmp_path):
    samples = [Sample(f"{i}.jpg", Path(f"{i}.jpg"), "a", f"g{i}", "train") for i in range(2)]
    black = np.zeros((2, 1, 60, 80, 1), np.uint8)
    points = np.array([[[0.25, 0.5], [0.75, 0.5]], [[np.nan, np.nan]] * 2])  # nobody on the second
    (path,) = contact_sheets(samples, black, ("a",), tmp_path, points=points)
    tiles = cv2.imread(str(path))[28 : 28 + 120, :320]
    rows, cols = np.nonzero((tiles == (0, 255, 0)).all(2))
    assert set(rows) == {59, 60, 61} and set(cols) == {39, 40, 41, 119, 120, 121}


def test_contact_sheet_takes_from_every_group_before_it_takes_twice(tmp_path):
    # 30 of one group and one each of five others; each group has its own gray, so that the sheet tells what it took
    groups = ["0"] * 30 + ["1", "2", "3", "4", "5"]
    clips = np.stack([np.full((1, 16, 16, 1), 40 * int(group) + 10, np.uint8) for group in groups])
    samples = [sample(i, group=group) for i, group in enumerate(groups)]
    (path,) = contact_sheets(samples, clips, ("a",), tmp_path, per_class=7)
    sheet = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    shown = [int(sheet[28 + line * 178 + 80, column * 160 + 80]) for line in (0, 1) for column in range(6)][:7]
    assert shown == [10, 10, 50, 90, 130, 170, 210]
    again = contact_sheets(samples, clips, ("a",), tmp_path / "again", per_class=7)
    assert again[0].read_bytes() == path.read_bytes()
