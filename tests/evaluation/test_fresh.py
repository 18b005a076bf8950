"""A fresh process: what it reports is its own, and however it ends the bench goes on."""

import builtins
import importlib
import itertools
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stillwatch.evaluation import fresh

X = np.ones((1, 2, 2, 3), np.uint8)
MODELS = """
import importlib, os, time, sleepy_outer

def fat(threads, batch):
    importlib.import_module("sleepy_again")
    assert (threads, batch) == (3, 1)
    def predict(x):
        assert x.shape == (1, 2, 2, 3) and x.all()
        return len(b"x" * 80_000_000)
    return predict

def fails(threads, batch):
    raise ValueError("two\\nlines")

def dies(threads, batch):
    os._exit(3)

def sleeps(threads, batch):
    time.sleep(600)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "fresh_models.py").write_text(MODELS)
    (tmp_path / "sleepy_outer.py").write_text("import sleepy_inner")
    for name in ("sleepy_inner", "sleepy_again"):
        (tmp_path / f"{name}.py").write_text("import time; time.sleep(0.2)")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("fresh_models")
    for name in ("fresh_models", "sleepy_outer", "sleepy_inner"):
        sys.modules.pop(name, None)


def test_memory_and_imports_are_those_of_the_process_that_opens_it(models: Any) -> None:
    found = fresh.first_answer(models.fat, 3, X)
    assert set(found) == {"memory_mb", "bare_mb", "load_s", "import_s"}
    assert found["load_s"] >= found["import_s"] >= 0.4  # two that sleep 0.2 s: one by itself, one with the opener
    assert "sleepy_again" not in sys.modules
    if Path("/proc/self/status").is_file():
        assert found["memory_mb"] > found["bare_mb"] + 60 > 60  # 80 MB, of which what was free before is reused
        assert found["memory_mb"] < found["bare_mb"] + 200


def test_an_import_within_an_import_is_counted_once(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, on a clock that goes one second further whenever it is looked at."""
    monkeypatch.setattr(builtins, "__import__", builtins.__import__)  # brought back at the end
    monkeypatch.setattr(importlib, "import_module", importlib.import_module)
    monkeypatch.setattr(fresh, "time", SimpleNamespace(perf_counter=partial(next, itertools.count())))
    del sys.modules["sleepy_outer"], sys.modules["sleepy_inner"]
    spent = fresh._clock_imports()
    __import__("sleepy_outer")  # which imports sleepy_inner, which imports time
    importlib.import_module("sleepy_inner")
    monkeypatch.undo()
    assert len(spent) == 2
    assert spent[0] >= 3  # three began, and the first one's end
    assert spent[1] == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [("fails", "in a fresh process: two lines"), ("dies", "a fresh process died of it (exit status 3)")],
)
def test_one_that_fails_says_why(models: Any, name: str, told: str) -> None:
    assert fresh.first_answer(getattr(models, name), 1, X) == {"why_not": told}


def test_one_that_never_answers_is_ended(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "PATIENCE", 1.0)
    assert fresh.first_answer(models.sleeps, 1, X) == {"why_not": "no answer in 1 s"}


def test_what_cannot_be_pickled_is_said() -> None:
    found = fresh.first_answer(lambda threads, batch: lambda x: x, 1, X)
    assert set(found) == {"why_not"}
    assert found["why_not"].startswith("no fresh process for memory and start: ")
