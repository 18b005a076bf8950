"""Caches: decoded once, keyed by content, whole or not there, and the bad left out."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pydantic import BaseModel

from stillwatch.errors import UserError
from stillwatch.lab.data import cache
from stillwatch.lab.data.reader import gather
from stillwatch.lab.data.sources import Found, Sample, Skipped
from stillwatch.media import synthetic
from stillwatch.recipe import Data, check
from stillwatch.run import Progress


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLWATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def drawn(root: Path, count: int) -> Found:
    """count flat pictures, each of its own gray."""
    root.mkdir(exist_ok=True)
    samples = []
    for i in range(count):
        path = root / f"{i}.png"
        path.write_bytes(cv2.imencode(".png", np.full((12, 12, 3), 10 * i, np.uint8))[1].tobytes())
        samples.append(Sample(path.name, path, "a" if i % 2 else "b"))
    return Found(samples, [])


DATA = Data(source="folders", size=8, max_bad=0.5)


class Counting:
    """Counts how often something was computed."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def bar(self, things: Iterable[Any], count: int, what: str) -> Iterable[Any]:
        self.seen.append(what)
        return things

    def progress(self) -> Progress:
        return Progress(self.bar)


def test_pictures_are_decoded_once_and_belong_to_their_samples(tmp_path: Path) -> None:
    found, counting = drawn(tmp_path / "x", 20), Counting()
    store = cache.pictures(found, DATA, progress=counting.progress())
    again = cache.pictures(found, DATA, progress=counting.progress())
    assert counting.seen == ["decoding"]
    assert store.key == again.key
    assert isinstance(store.pixels, np.memmap)
    assert store.pixels.shape == (20, 1, 8, 8, 3)
    for sample, picture in zip(store.samples, store.pixels, strict=True):
        assert (picture == 10 * int(Path(sample.id).stem)).all()


def test_the_key_is_the_content_not_the_name_of_the_folder(tmp_path: Path) -> None:
    one = cache.pictures(drawn(tmp_path / "x", 3), DATA)
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    other = cache.pictures(drawn(tmp_path / "y", 3), DATA)
    assert one.key == other.key
    assert one.fingerprint == other.fingerprint
    found = drawn(tmp_path / "x", 3)
    (tmp_path / "x" / "0.png").write_bytes((tmp_path / "x" / "1.png").read_bytes())
    changed = cache.pictures(found, DATA)
    assert changed.key != one.key
    assert changed.fingerprint != one.fingerprint
    sized = cache.pictures(found, DATA.model_copy(update={"size": 16}))
    assert sized.key != changed.key
    assert sized.fingerprint == changed.fingerprint  # the data are the same, only their size differs


def test_bad_files_leave_no_hole_and_are_named(tmp_path: Path) -> None:
    found = drawn(tmp_path / "x", 9)
    for bad in (0, 4, 8):
        (tmp_path / "x" / f"{bad}.png").write_bytes(b"not a picture")
    found.skipped.append(Skipped("missing.png", "no such file"))
    store = cache.pictures(found, DATA)
    assert sorted(sample.id for sample in store.samples) == [f"{i}.png" for i in (1, 2, 3, 5, 6, 7)]
    assert len(store.pixels) == 6
    for sample, picture in zip(store.samples, store.pixels, strict=True):
        assert (picture == 10 * int(Path(sample.id).stem)).all()
    assert {skipped.file for skipped in store.skipped} == {"missing.png", "0.png", "4.png", "8.png"}
    with pytest.raises(UserError, match=r"4 of 10 samples cannot be used, above data.max_bad = 0.3 \(first: missing"):
        cache.pictures(found, DATA.model_copy(update={"max_bad": 0.3}))


def test_nothing_but_bad_files_stops(tmp_path: Path) -> None:
    found = drawn(tmp_path / "x", 2)
    for path in (tmp_path / "x").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="2 of 2 samples cannot be used"):
        cache.pictures(found, DATA.model_copy(update={"max_bad": 1.0}))


def test_an_interrupted_decode_leaves_nothing_behind(tmp_path: Path, shelf: Path) -> None:
    def stop(things: Iterable[Any], count: int, what: str) -> Iterable[Any]:
        for thing in things:
            yield thing
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.pictures(drawn(tmp_path / "x", 5), DATA, progress=Progress(stop))
    assert os.listdir(shelf / "pictures") == []  # noqa: PTH208


def test_a_killed_decode_is_swept_away_by_the_next(tmp_path: Path, shelf: Path) -> None:
    found = drawn(tmp_path / "x", 5)
    code = f"""
import os, signal
from pathlib import Path
from stillwatch.lab.data import cache
from stillwatch.lab.data.sources import Found, Sample
from stillwatch.recipe import Data
from stillwatch.run import Progress
def kill(things, count, what):
    for thing in things:
        os.kill(os.getpid(), signal.SIGKILL)
        yield thing
root = Path({str(tmp_path / "x")!r})
samples = [Sample(f"{{i}}.png", root / f"{{i}}.png", "a" if i % 2 else "b") for i in range(5)]
cache.pictures(Found(samples, []), Data(source="folders", size=8, max_bad=0.5), progress=Progress(kill))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert len(os.listdir(shelf / "pictures")) == 1  # noqa: PTH208  the dead process's draft
    store = cache.pictures(found, DATA)
    assert os.listdir(shelf / "pictures") == [store.key]  # noqa: PTH208


def test_decoding_keeps_memory_flat(tmp_path: Path, shelf: Path) -> None:
    """Ten times the pictures, the same peak: rows go to the file, not to memory."""
    code = """
import resource, sys
from stillwatch.lab.data import cache
from stillwatch.lab.data.reader import gather
from stillwatch.recipe import check
source = {"name": "toy", "people": 2, "pictures": int(sys.argv[1])}
raw = {"name": "t", "labels": ["Yawn", "SafeDriving"], "data": {"source": source, "size": 224},
       "teacher": {"net": "x"}, "student": {"net": "x"}}
recipe = check(raw, "here")
store = cache.pictures(gather(recipe), recipe.data)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, len(store.pixels))
"""
    small, large = (
        [
            int(word)
            for word in subprocess.run([sys.executable, "-c", code, n], capture_output=True, text=True).stdout.split()
        ]
        for n in ("10", "100")
    )
    assert (small[1], large[1]) == (40, 400)
    assert large[0] - small[0] < 20  # MiB, where 360 pictures more are 52 MiB


def test_outputs_are_computed_once_and_replayed() -> None:
    calls: list[tuple[int, int]] = []

    def compute(rows: np.ndarray, view: int) -> dict[str, torch.Tensor]:
        calls.extend((int(row), view) for row in rows)
        return {"logits": torch.tensor(rows * 10.0 + view)[:, None], "feature": torch.ones(len(rows), 2)}

    first = cache.outputs(compute, 5, 2, ["weights"], batch=2)
    assert sorted(calls) == sorted((row, view) for row in range(5) for view in range(2))
    again = cache.outputs(compute, 5, 2, ["weights"], batch=2)
    assert len(calls) == 10
    assert first["logits"].dtype == np.float16
    assert again["logits"][1, :, 0].tolist() == [1, 11, 21, 31, 41]
    cache.outputs(compute, 5, 2, ["other weights"], batch=2)
    assert len(calls) == 20


def test_values_beyond_half_precision_are_kept_whole() -> None:
    def compute(rows: np.ndarray, view: int) -> dict[str, torch.Tensor]:
        return {"h": torch.tensor(np.where(rows == 3, 1e6, rows * 0.5))[:, None]}

    kept = cache.outputs(compute, 4, 1, ["x"], batch=1)["h"]
    assert kept.dtype == np.float32
    assert kept[0, :, 0].tolist() == [0, 0.5, 1.0, 1e6]


def test_two_processes_may_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    inner: list[int] = []

    def compute(rows: np.ndarray, view: int) -> dict[str, torch.Tensor]:
        if not inner:  # another process, quicker with the same content
            inner.append(1)
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", os.getppid)
                cache.outputs(compute, 2, 1, ["x"])
        return {"h": torch.zeros(len(rows), 1)}

    assert cache.outputs(compute, 2, 1, ["x"])["h"].shape == (1, 2, 1)


class Figure(BaseModel, extra="forbid"):
    """What a record may hold."""

    value: float


def test_a_record_is_computed_once_for_its_key_and_again_where_it_is_not_readable(shelf: Path) -> None:
    calls: list[int] = []

    def compute() -> Figure:
        calls.append(1)
        return Figure(value=0.1 + len(calls))

    first = cache.record("audit", ["data"], Figure, compute)
    assert cache.record("audit", ["data"], Figure, compute) == first and len(calls) == 1
    assert cache.record("audit", ["other data"], Figure, compute).value == 2.1
    (path,) = [path for path in (shelf / "audit").iterdir() if "1.1" in path.read_text()]
    for content in (b"", b'{"value": 1', b"\xff\0", b'{"value": 1.0, "of": "another version"}', b"[]"):
        path.write_bytes(content)
        count = len(calls)
        again = cache.record("audit", ["data"], Figure, compute)
        assert len(calls) == count + 1
        assert cache.record("audit", ["data"], Figure, compute) == again and len(calls) == count + 1
    assert len(list((shelf / "audit").iterdir())) == 2  # and no drafts


def test_a_digest_names_the_weights() -> None:
    one = {"w": torch.ones(2), "b": torch.zeros(1)}
    assert cache.digest(one) == cache.digest(dict(reversed(list(one.items()))))
    assert cache.digest(one) != cache.digest(one | {"w": torch.tensor([1.0, 1.0001])})


def test_home_is_where_the_person_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STILLWATCH_CACHE")
    assert cache.home() == Path.home() / ".cache" / "stillwatch"


def test_the_drawings_stand_by_the_name_that_their_fingerprints_carry() -> None:
    """Whoever makes media.synthetic draw otherwise gives cache.DRAWINGS another value: old toy runs no longer match."""
    state = blake2b(digest_size=8)
    for scene in ("cabin", "street"):
        for number, label in enumerate(synthetic.LABELS[scene]):
            state.update(synthetic.still(scene, label, number % 3, number, (48, 64)).tobytes())
    assert (state.hexdigest(), cache.DRAWINGS) == ("d2e7db1e99bae69f", "0cc23430487ee9ed07f04e050de10e06")


def test_a_toy_has_the_fingerprint_that_0_1_0_gave_it() -> None:
    source = {"name": "toy", "people": 2, "pictures": 1}
    raw = {"name": "t", "labels": ["Yawn", "SafeDriving"], "data": {"source": source, "size": 32}}
    recipe = check(raw | {"teacher": {"net": "x"}, "student": {"net": "x"}}, "here")
    store = cache.pictures(gather(recipe), recipe.data)
    assert (store.fingerprint, store.key) == ("f427d3d8604ac4d8b40ac70c", "03a4859a2531fd7141dcc67d")
