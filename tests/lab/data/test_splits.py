"""Splits keep groups apart, are the same for the same seed, and say why they cannot be made."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillwatch.errors import UserError
from stillwatch.lab.data.sources import Sample
from stillwatch.lab.data.splits import assign
from stillwatch.recipe import Data


def data(**fields: Any) -> Data:
    return Data(source="folders", **fields)


def crowd(groups: int, each: int, labels: str = "AB") -> list[Sample]:
    """`each` samples for every group, labels in turn."""
    return [
        Sample(f"{g}/{n}", Path(), labels[n % len(labels)], group=f"g{g}") for g in range(groups) for n in range(each)
    ]


def by_split(samples: list[Sample]) -> dict[str, list[Sample]]:
    return {name: [s for s in samples if s.split == name] for name in ("train", "valid", "test")}


def test_grouped_folds_cover_every_group_once_and_share_none() -> None:
    samples = crowd(10, 6)
    tested: list[str] = []
    for fold in range(5):
        parts = by_split(assign(samples, data(fold=fold)))
        groups = {name: {s.group for s in part} for name, part in parts.items()}
        assert groups["train"].isdisjoint(groups["valid"] | groups["test"])
        assert groups["valid"].isdisjoint(groups["test"])
        assert all(groups.values()) and sum(map(len, groups.values())) == 10
        tested += groups["test"]
    assert sorted(tested) == sorted({s.group for s in samples})


def test_valid_is_the_next_fold() -> None:
    samples = crowd(6, 4)
    folds = [by_split(assign(samples, data(folds=3, fold=fold))) for fold in range(3)]
    for fold in range(3):
        assert {s.id for s in folds[fold]["valid"]} == {s.id for s in folds[(fold + 1) % 3]["test"]}


def test_a_split_depends_on_its_seed_and_not_on_the_order() -> None:
    samples = crowd(12, 5)
    mixed = samples[:]
    random.Random(1).shuffle(mixed)
    for split in ("grouped", "ratio"):
        for valid in ("fold", 0.2):
            chosen = data(split=split, valid=valid)
            first = assign(samples, chosen)
            assert [s.id for s in first] == [s.id for s in samples]
            assert {s.id: s.split for s in assign(mixed, chosen)} == {s.id: s.split for s in first}
            others = [assign(samples, data(split=split, valid=valid, seed=seed)) for seed in (1, 2)]
            assert any(other != first for other in others)


def test_grouped_share_takes_a_block_of_time_from_each_long_recording() -> None:
    samples = [
        Sample(f"{g}-{n:03d}", Path(), "A" if n < 100 else "B", f"g{g}", sequence=f"s{g}", time=float(n))
        for g in range(5)
        for n in range(200)
    ]
    parts = by_split(assign(samples, data(valid=0.1)))
    assert {name: len(part) for name, part in parts.items()} == {"train": 720, "valid": 80, "test": 200}
    assert Counter(s.label for s in parts["valid"]) == {"A": 40, "B": 40}
    for group in {s.group for s in parts["train"]}:
        for label in "AB":
            times = sorted(s.time for s in parts["valid"] if s.group == group and s.label == label)
            assert len(times) == 10 and times == [times[0] + n for n in range(10)]


def test_grouped_share_takes_short_recordings_whole() -> None:
    samples = [
        Sample(f"{clip}#{n}", Path(), "AB"[clip % 2], f"g{clip % 10}", sequence=f"clip{clip}", time=n / 10)
        for clip in range(100)
        for n in range(20)
    ]
    parts = by_split(assign(samples, data(valid=0.1, folds=2)))
    both = {s.sequence for s in parts["valid"]} & {s.sequence for s in parts["train"]}
    assert both == set()
    assert 80 <= len(parts["valid"]) <= 120 and len({s.label for s in parts["valid"]}) == 2


def test_ratio_is_stratified() -> None:
    samples = [Sample(str(n), Path(), "A" if n % 4 else "B") for n in range(400)]
    parts = by_split(assign(samples, data(split="ratio", valid=0.25, folds=4)))
    assert {name: len(part) for name, part in parts.items()} == {"train": 225, "valid": 75, "test": 100}
    assert Counter(s.label for s in parts["test"]) == {"A": 75, "B": 25}
    assert abs(Counter(s.label for s in parts["valid"])["B"] - 19) <= 1


def test_a_rare_class_still_gets_a_validation_sample() -> None:
    samples = [Sample(str(n), Path(), "A", split="train" if n % 5 else "test") for n in range(100)]
    samples += [Sample(f"b{n}", Path(), "B", split="train") for n in range(3)]
    parts = by_split(assign(samples, data(split="official", valid=0.1)))
    assert Counter(s.label for s in parts["valid"]) == {"A": 8, "B": 1}
    assert [s for s in parts["test"] if s.label == "B"] == []  # a class that a split lacks is no mistake


def test_official_keeps_what_the_source_says() -> None:
    samples = [Sample(str(n), Path(), "A", split=("train", "valid", "test")[n % 3]) for n in range(9)]
    assert assign(samples, data(split="official")) == samples


def test_official_takes_a_missing_valid_out_of_train() -> None:
    samples = [Sample(str(n), Path(), "AB"[n % 2], split="test" if n < 20 else "train") for n in range(120)]
    parts = by_split(assign(samples, data(split="official")))  # valid = "fold": one part of five
    assert {name: len(part) for name, part in parts.items()} == {"train": 80, "valid": 20, "test": 20}
    assert parts["test"] == [s for s in samples if s.split == "test"]


@pytest.mark.parametrize(
    ("samples", "fields", "message"),
    [
        (crowd(3, 4), {}, r"data.folds = 5: there are only 3 groups \(g0, g1, g2\); set data.folds = 3"),
        (crowd(2, 4), {"folds": 3}, r'there are only 2 groups \(g0, g1\); set data.split = "ratio"'),
        (crowd(8, 4), {"folds": 2}, "data.folds = 2: valid = \"fold\" needs 3 folds"),
        (crowd(8, 4), {"folds": 2, "split": "ratio"}, "needs 3 folds"),
        ([Sample("a", Path(), "A")], {}, "1 samples have no group, the first is a; set data.group"),
        (crowd(3, 4), {"split": "official"}, 'no official split; set data.split = "grouped"'),
        (
            [Sample("a", Path(), "A", split="train"), Sample("b", Path(), "A")],
            {"split": "official"},
            "1 samples have no split, the first is b",
        ),
        ([Sample("a", Path(), "A", split="train")], {"split": "official"}, "the source has no test split"),
        ([Sample("a", Path(), "A", split="test")], {"split": "official"}, "the source has no train split"),
        ([Sample("a", Path(), "A"), Sample("b", Path(), "B")], {"split": "ratio"}, "no class has so many samples"),
    ],
)  # fmt: skip
def test_impossible_splits_say_what_to_do(samples: list[Sample], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        assign(samples, data(**fields))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("data.")


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=3, max_size=9),
    split=st.sampled_from(["grouped", "ratio"]),
    valid=st.sampled_from(["fold", 0.1, 0.5]),
    folds=st.integers(2, 6),
    seed=st.integers(0, 5),
)
def test_every_sample_gets_a_split_or_there_is_a_mistake(
    sizes: list[int], split: str, valid: Any, folds: int, seed: int
) -> None:
    samples = [
        Sample(f"{g}/{n}", Path(), "ABC"[(g + n) % 3], f"g{g}", sequence=f"s{g}" if g % 2 else "", time=float(n))
        for g, size in enumerate(sizes)
        for n in range(size)
    ]
    try:
        out = assign(samples, data(split=split, valid=valid, folds=folds, seed=seed))
    except UserError as mistake:
        assert str(mistake).startswith("data.")
        return
    parts = by_split(out)
    assert sum(map(len, parts.values())) == len(samples) and all(parts.values())
    if split == "grouped":
        assert {s.group for s in parts["test"]}.isdisjoint(s.group for s in parts["train"] + parts["valid"])
