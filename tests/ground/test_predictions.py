from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillwatch import predictions
from stillwatch.errors import UserError
from stillwatch.recipe import check
from stillwatch.run import Progress, Run


def new_run(root: Path, labels: int = 3) -> Run:
    side = {"net": "smallcnn"}
    raw = {"name": "toy", "labels": [f"c{k}" for k in range(labels)], "data": {"source": "toy"}}
    run = Run.create(check(raw | {"teacher": side, "student": side}, "test"), "alone", root)
    run.unlock()
    return run


def bright(x: np.ndarray) -> np.ndarray:
    """Three classes by brightness."""
    mean = x.reshape(len(x), -1).mean(1) / 255
    return np.stack([1 - mean, mean / 2, mean / 2], axis=1)


def arrays(x: np.ndarray) -> predictions.EvalArrays:
    n = len(x)
    return predictions.EvalArrays(x, [f"f{i}" for i in range(n)], ["g"] * n, [""] * n, np.arange(n) % 3)


def test_mark_keeps_what_read_gives_back(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    x = np.random.default_rng(0).integers(0, 255, (10, 1, 8, 8, 3), dtype=np.uint8)
    seen: list[int] = []
    told: list[int] = []

    def fn(batch: np.ndarray) -> np.ndarray:
        assert batch.dtype == np.uint8 and batch.flags.c_contiguous
        seen.append(len(batch))
        return bright(batch)

    def bar(things: Iterable[Any], count: int, what: str) -> Iterable[Any]:
        told.append(count)
        yield from things

    kept = predictions.save_predictions(run, "test", fn, arrays(x), batch=4, progress=Progress(bar))
    assert seen == [4, 4, 2]
    assert told == [3]
    again = predictions.read(run.path, "test")
    assert len(again) == 10 and again.p.dtype == np.float32 and again.y.dtype == np.int64
    assert again.id.tolist() == [f"f{i}" for i in range(10)]
    assert np.array_equal(again.p, kept.p) and np.allclose(again.p, bright(x), atol=1e-6)
    with np.load(run.path / "predictions" / "test.npz") as file:
        assert sorted(file.files) == ["group", "id", "p", "sequence", "y"]
    assert predictions.has(run, "test") and not predictions.has(run, "valid")
    assert again.take([2, 0]).id.tolist() == ["f2", "f0"]


def test_a_memory_map_is_read_in_batches(tmp_path: Path) -> None:
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (7, 8, 8, 1))
    x[:] = np.arange(7).reshape(7, 1, 1, 1) * 30
    p = predictions.save_predictions(new_run(tmp_path), "valid", bright, arrays(x), batch=3).p
    assert p[:, 0] == pytest.approx(1 - np.arange(7) * 30 / 255)


@pytest.mark.parametrize(
    "fn, said",
    [
        (lambda x: bright(x)[:-1], "shape"),
        (lambda x: bright(x)[:, 0], "shape"),
        (lambda x: bright(x) * np.nan, "not finite"),
        (lambda x: bright(x) * 7, "not probabilities"),
        (lambda x: bright(x)[:, :2], "2 probabilities, the recipe has 3 labels"),
    ],
)
def test_what_are_no_probabilities_is_refused(tmp_path: Path, fn: predictions.Predict, said: str) -> None:
    run = new_run(tmp_path)
    with pytest.raises(UserError, match=said) as error:
        predictions.save_predictions(run, "test", fn, arrays(np.full((5, 8, 8, 3), 90, np.uint8)))
    assert run.path.name in str(error.value) and "\n" not in str(error.value)
    assert not predictions.has(run, "test")


def test_the_number_of_classes_may_not_change_midway() -> None:
    rows = iter([np.ones((2, 3)) / 3, np.ones((2, 2)) / 2])
    with pytest.raises(UserError, match=r"samples 2 to 3: shape \(2, 2\)"):
        predictions.predict(lambda x: next(rows), [np.zeros((2, 8, 8, 3), np.uint8)] * 2)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"ids": ["f0"]}, "1 ids"),
        ({"ids": ["a", "b", "a"]}, "'a' is there twice"),
        ({"y": np.array([0, 1, 3])}, "from 0 to 2"),
        ({"y": np.array([0.0, 1.0, 2.0])}, "whole numbers"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        mine = arrays(np.zeros((3, 8, 8, 3), np.uint8))._replace(**change)
        predictions.save_predictions(new_run(tmp_path), "test", bright, mine)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sample"):
        predictions.save_predictions(new_run(tmp_path), "test", bright, arrays(np.zeros((0, 8, 8, 3), np.uint8)))


def test_read_says_what_to_do(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    with pytest.raises(UserError, match="no predictions of the test split; run `stillwatch judge"):
        predictions.read(run)
    (run.path / "predictions").mkdir()
    (run.path / "predictions" / "test.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UserError, match="cannot be read"):
        predictions.read(run)
