"""Every test has a cache of its own and no weights: nothing of this machine's owner is read or written."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("STILLWATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("STILLWATCH_WEIGHTS", raising=False)
    yield


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
