"""False alarms that the page filed are learnt from by the next teacher, and measure nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import jpeg, video

from stillwatch.errors import UserError
from stillwatch.lab.data import cache
from stillwatch.lab.data.audit import AuditReport, audit, summary
from stillwatch.lab.data.reader import gather
from stillwatch.lab.data.splits import assign
from stillwatch.lab.training.pipeline import inspect
from stillwatch.lab.training.runs import RunOptions
from stillwatch.recipe import Recipe, check

LABELS = ("SafeDriving", "Yawn")


def recipe(**data: Any) -> Recipe:
    net = {"net": "smallcnn"}
    whole = {"source": "folders", "group": r"^(\d)_", "folds": 3, "size": 16} | data
    return check({"name": "t", "labels": list(LABELS), "data": whole, "teacher": net, "student": net}, "t.toml")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLWATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for label in LABELS:
        for group in range(6):
            for number in range(3):
                jpeg(tmp_path / "data" / label / f"{group}_{number}.jpg", 10 * group + number, label)
    for camera, number in (("cab", 1), ("cab", 2), ("door", 1)):
        jpeg(tmp_path / "watch/negatives/SafeDriving" / camera / f"e-{number}.jpg", 100 + number, "SafeDriving")
    (tmp_path / "watch/negatives/Yawn").mkdir()
    return tmp_path


def both(place: Path, **data: Any) -> tuple[Recipe, Recipe]:
    return recipe(root=place / "data", **data), recipe(root=place / "data", negatives=place / "watch/negatives", **data)


def test_they_are_train_and_move_no_other_sample(place: Path) -> None:
    for more in ({}, {"split": "ratio"}, {"valid": 0.2}):
        plain, with_them = both(place, **more)
        before = assign(gather(plain).samples, plain.data)
        after = assign(gather(with_them).samples, with_them.data)
        assert len(before) == 36 and after[:36] == before
        assert [(s.id, s.label, s.group, s.split) for s in after[36:]] == [
            ("negatives/SafeDriving/cab/e-1.jpg", "SafeDriving", "negatives/cab", "train"),
            ("negatives/SafeDriving/cab/e-2.jpg", "SafeDriving", "negatives/cab", "train"),
            ("negatives/SafeDriving/door/e-1.jpg", "SafeDriving", "negatives/door", "train"),
        ]


def test_official_splits_keep_them_too(place: Path) -> None:
    for split in ("train", "valid", "test"):
        for label in LABELS:
            jpeg(place / "official" / split / label / "1_1.jpg")
    chosen = recipe(root=place / "official", split="official", negatives=place / "watch/negatives")
    samples = assign(gather(chosen).samples, chosen.data)
    assert len(samples) == 9 and [s.split for s in samples if s.negative] == ["train"] * 3


def test_fingerprint_and_cache_notice_them(place: Path) -> None:
    plain, with_them = both(place)

    def stored(asked: Recipe) -> cache.Store:
        return cache.pictures(gather(asked), asked.data)

    one, two = stored(plain), stored(with_them)
    assert one.fingerprint != two.fingerprint and one.key != two.key
    assert [s.id for s in two.samples[-3:]] == [
        f"negatives/SafeDriving/{n}" for n in ("cab/e-1.jpg", "cab/e-2.jpg", "door/e-1.jpg")
    ]
    np.testing.assert_array_equal(one.pixels, two.pixels[:36])
    jpeg(place / "watch/negatives/SafeDriving/cab/e-1.jpg", 55, "Yawn")  # other content under the same name
    three = stored(with_them)
    assert three.fingerprint != two.fingerprint and three.key != two.key
    (place / "watch/negatives/SafeDriving/cab/e-1.jpg").rename(place / "watch/negatives/Yawn/e-1.jpg")
    assert len({store.fingerprint for store in (one, two, three, stored(with_them))}) == 4


def test_the_audit_counts_and_states_them(place: Path) -> None:
    plain, with_them = both(place)
    run, data = inspect(with_them, RunOptions(place / "runs"))
    found = run.read_json("audit.json")
    assert found["negatives"] == {"count": 3, "cameras": 2, "labels": {"SafeDriving": 3, "Yawn": 0}}
    told = "3 of the training samples are false alarms that were filed on 2 cameras; valid and test have none."
    assert told in summary(AuditReport.model_validate(found)).splitlines()
    assert not any(data.samples[row].negative for name in ("valid", "test") for row in data.rows[name])
    assert sum(data.samples[row].negative for row in data.rows["train"]) == 3
    samples = assign(gather(plain).samples, plain.data)
    without = audit(samples, [], np.zeros((36, 1, 16, 16, 3), np.uint8), LABELS, "grouped")
    assert without.negatives.count == 0 and "false alarms" not in summary(without)


def test_bad_files_among_them_are_skipped_with_a_reason(place: Path) -> None:
    (place / "watch/negatives/SafeDriving/cab/empty.jpg").touch()
    _, with_them = both(place)
    assert [(s.file, s.reason) for s in gather(with_them).skipped] == [
        ("negatives/SafeDriving/cab/empty.jpg", "empty file")
    ]


def test_what_cannot_be_is_named(place: Path) -> None:
    with pytest.raises(UserError, match=r"data\.negatives = '.*negative': no such folder; did you mean 'negatives'"):
        gather(recipe(root=place / "data", negatives=place / "watch/negative"))
    (place / "watch/negatives/Yaun").mkdir()
    with pytest.raises(UserError, match="the folder 'Yaun' is no label of the recipe's; did you mean 'Yawn'"):
        gather(both(place)[1])
    with pytest.raises(UserError, match=r"negatives are single pictures; 4 frames a sample wants clips"):
        recipe(root=place, frames=4, negatives=place)


def test_a_name_that_the_data_has_too_is_named(place: Path) -> None:
    """The negatives were put where the data's own classes are."""
    for label in LABELS:
        jpeg(place / "root/negatives" / label / "1_1.jpg")
    lines = "path,label\n" + "".join(f"negatives/{label}/1_1.jpg,{label}\n" for label in LABELS)
    (place / "root/samples.csv").write_text(lines)
    chosen = recipe(source="csv", root=place / "root", group=None, negatives=place / "root/negatives")
    with pytest.raises(UserError, match=r"negatives/SafeDriving/1_1\.jpg is also a name in data\.root"):
        gather(chosen)


def test_beside_films_as_well(place: Path) -> None:
    for label in LABELS:
        for clip in range(3):
            video(place / "films" / label / f"{clip}_a.mp4", 3)
    chosen = recipe(source="videos", root=place / "films", negatives=place / "watch/negatives")
    store = cache.pictures(gather(chosen), chosen.data)
    assert len(store.samples) == 21 and sum(sample.negative for sample in store.samples) == 3
