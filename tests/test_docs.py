"""The documents: every command and file that they name exists, and every module is in the README's tree."""

import csv
import re
from pathlib import Path

import pytest

from stillwatch.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = {command.name or command.callback.__name__ for command in main.app.registered_commands}


def test_the_readme_s_commands_exist() -> None:
    named = re.findall(r"^stillwatch +([\w-]+)", README, re.M)
    assert len(named) >= 5
    assert set(named) <= COMMANDS
    targets = re.findall(r"^make (\w+)", README, re.M)
    assert len(targets) >= 2
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


def test_every_module_is_in_the_tree() -> None:
    tree = README.split("## The house")[1]
    modules = [path for path in (ROOT / "stillwatch").rglob("*.py") if not path.name.startswith("__")]
    assert len(modules) >= 25
    for path in modules:
        assert re.search(rf"\b{path.name}\b", tree), f"{path.name} is not in the README's tree"
    for name in re.findall(r"\b(\w+\.py)\b", tree):
        assert name == "X.py" or name == "test_X.py" or list((ROOT / "stillwatch").rglob(name)), f"{name} is no module"


def test_links_lead_somewhere() -> None:
    for document in ("README.md", "CHANGELOG.md", "LAB.md"):
        links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / document).read_text())
        for link in links:
            assert (ROOT / link).exists(), f"{document}: {link}"
    assert len(re.findall(r"\]\((?!http)([^)#]+)\)", README)) >= 4


@pytest.mark.parametrize("path", sorted((ROOT / "stillwatch" / "recipes").rglob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_s_header_states_its_command_time_and_result(path: Path) -> None:
    head = path.read_text().split("\nname")[0]
    assert "stillwatch " in head, "its command"
    assert re.search(r"\b(minutes?|hours?|seconds?)\b", head), "its time"
    assert re.search(r"\d\.\d|\d %", head), "its result"


def test_every_result_names_its_recipe_and_commit() -> None:
    shelf = ROOT / "results"
    tables = sorted(shelf.glob("*.csv"))
    assert {table.name for table in tables} >= {"results.csv", "published.csv"}
    for table in tables:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows, table
        if table.name == "results.csv":
            for row in rows:
                assert (ROOT / "stillwatch" / "recipes" / f"{row['recipe']}.toml").is_file(), row
                assert re.fullmatch(r"[0-9a-f]{7,}", row["commit"]), row
                assert 0 <= float(row["macro_f1"]) <= 1


def test_nothing_of_a_machine_is_named() -> None:
    files = [path for pattern in
             ("*.md", "*.toml", "Makefile", "results/*", "stillwatch/**/*.toml", "stillwatch/**/*.py")
             for path in ROOT.glob(pattern) if path.is_file()]  # fmt: skip
    assert len(files) > 30
    for path in files:
        assert not re.search(r"/(work|root|home|tmp)/\w", path.read_text(errors="replace")), path
