"""Every test has a cache of its own and no weights: nothing of this machine's owner is read or written."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")
LAB_TESTS = Path(__file__).parent / "lab"
LAB = ("torch", "stillwatch.lab", "benchmarks")
SLOW = {  # clocks that run, processes, brokers, a browser, drawing
    "test_wheel", "test_page", "test_camera", "test_outbox", "test_service", "test_mqtt", "test_doctor", "test_timing",
    "test_postgres",
    "test_benchmark", "test_bundle_eval", "test_compression", "test_plots", "test_report", "test_bench",
    "test_tuning_picture", "test_remote",
}  # fmt: skip


@cache
def needs_lab(path: Path) -> bool:
    """Whether a test module imports torch or the lab, itself or through a helper in tests/."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    helpers = (Path(__file__).with_name(f"{name.partition('.')[0]}.py") for name in names)
    return any(f"{name}.".startswith(f"{lab}.") for name in names for lab in LAB) or any(
        needs_lab(helper) for helper in helpers if helper.is_file()
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make fast` does not even import what it leaves out: torch alone takes seconds."""
    asked, path = config.getoption("markexpr"), collection_path
    lab = "not torch" in asked and (path == LAB_TESTS or (path.suffix == ".py" and needs_lab(path)))
    return True if lab or (path.stem in SLOW and "not slow" in asked) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `make fast` leaves out."""
    for item in items:
        if LAB_TESTS in item.path.parents or needs_lab(item.path):
            item.add_marker("torch")
        if item.path.stem in SLOW:
            item.add_marker("slow")


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
