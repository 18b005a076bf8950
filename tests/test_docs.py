"""The documents: their commands run as they stand, their links lead somewhere, their tables are the code's."""

import csv
import re
import shlex
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from stillwatch.cli import main
from stillwatch.media import synthetic
from stillwatch.rules import profiles

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    "docs/train.md",
    "docs/compress.md",
    "docs/deploy.md",
    "docs/scale.md",
)  # in the order in which one reads them
RECIPES = ROOT / "stillwatch" / "recipes"

# A recipe so small that a page's commands take seconds: a file of a shipped recipe's name is read before that one
SMALL = """
name = "{name}"
labels = ["DangerousDriving", "Distracted", "Drinking", "SafeDriving", "SleepyDriving", "Yawn"]
safe = ["SafeDriving"]
data = {{ source = {{ name = "toy", people = 10, pictures = 4 }}, size = 32, gray = true, folds = 5 }}
teacher = {{ net = {{ name = "mnist-small", weights = "scratch", options = {{ width = 16 }} }} }}
student = {{ net = {{ name = "mnist-small", weights = "scratch" }} }}
fit = {{ epochs = 4, batch = 12, lr = 3e-3, views = 1, loss = [{{ name = "ce" }}, {{ name = "kd", weight = 0.5 }}] }}
prune = {{ steps = 1, fit = {{ epochs = 1 }} }}
quantise = {{ frames = 20, qat = false, max_drop = 100.0 }}
rule = {{ profile = "driver" }}
tune = {{ keys = {{ "fit.lr" = [1e-3, 5e-3] }}, fit = {{ epochs = 1 }} }}
"""


def commands(page: str) -> list[list[str]]:
    """The words of each `stillwatch …` line of a page's shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("stillwatch ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def stillwatch(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """One command in this process, as the shell would give it: globs expanded. Fails unless it ends well."""
    words = [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    if words[0] == "watch" and "--for" not in words:
        words += ["--for", "3", "--no-page"]  # a busy machine takes a second to start a camera
    if words[0] == "bench" and "--rounds" not in words:
        words += ["--rounds", "5", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["stillwatch", *words])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert not stop.value.code, f"stillwatch {' '.join(words)}"


def test_the_commands_of_the_pages_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("toy", "driving"):
        Path(name).write_text(SMALL.format(name=name))
    for folder in ("archive", "pictures"):
        Path(folder).mkdir()
        cv2.imwrite(f"{folder}/one.jpg", synthetic.still("cabin", "Yawn", 0, 0, (48, 64)))
    film = cv2.VideoWriter("night.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for number in range(30):
        film.write(synthetic.still("cabin", "Yawn", 0, number, (48, 64)))
    film.release()
    truth = re.search(r"^```json\n(.*?)^```", (ROOT / "docs/deploy.md").read_text(), re.M | re.S)
    assert truth
    Path("night.json").write_text(truth[1])
    Path("watch.toml").write_text('bundle = "bundle"\n[[camera]]\nname = "cab"\nsource = "toy://driver"\n'
                                  '[[sink]]\nname = "log"\nto = "log"\n[web]\non = false\n')  # fmt: skip
    seen = 0
    for page in PAGES:
        for words in commands(page):
            stillwatch(monkeypatch, words)
            seen += 1
    assert seen >= 30


@pytest.mark.parametrize(("place", "name"), [(0, "mine"), (1, "clips")])
def test_the_readme_s_own_recipes_run_as_they_stand(
    here: Path, monkeypatch: pytest.MonkeyPatch, place: int, name: str
) -> None:
    text = re.findall(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[place]
    Path(f"{name}.toml").write_text(text)
    recipe = tomllib.loads(text)
    for number, label in enumerate(recipe["labels"]):
        for person in ("anna", "ben", "cem", "dora", "eva"):
            folder = Path(recipe["data"]["root"], label, person)
            folder.mkdir(parents=True)
            shades = [np.full((36, 64, 3), 180 * number + shade, np.uint8) for shade in range(0, 64, 8)]
            if recipe["data"]["source"] == "videos":
                film = cv2.VideoWriter(f"{folder}/1.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 36))
                for shade in shades:
                    film.write(shade)
                film.release()
            for at, shade in enumerate(shades) if recipe["data"]["source"] == "folders" else ():
                cv2.imwrite(f"{folder}/{at}.jpg", shade)
    torch.manual_seed(0)
    for net in (recipe["teacher"]["net"], recipe["student"]["net"]):  # as if downloaded once
        save_file(timm.create_model(net, pretrained=False, num_classes=0).state_dict(), f"{net}.safetensors")
    monkeypatch.setenv("STILLWATCH_WEIGHTS", str(here))
    for words in ("audit {}", "teach {}", "distil {} --alone", "distil {}", "compare runs/*"):
        stillwatch(monkeypatch, words.format(f"{name}.toml").split())
    assert Path(f"runs/{name}-teacher-001/report/report.html").is_file()


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in ("README.md", "CONTRIBUTING.md"):
        targets = re.findall(r"^make (\w+)", (ROOT / page).read_text(), re.M)
        assert len(targets) >= 2
        for target in targets:
            assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_tree_has_the_folders() -> None:
    tree = re.search(r"```\nstillwatch/\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert tree
    assert tree[1].count("\n") <= 30
    folders = {path.name for path in (ROOT / "stillwatch").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"^  (\w+)/", tree[1], re.M)) == folders


def test_links_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    assert len(pages) >= 9
    for page in pages:
        for link, _, anchor in (
            found.partition("#") for found in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text())
        ):
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name}: {link}"
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.M) if anchor else []
            assert not anchor or anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


def test_the_rules_page_has_every_indicator_and_its_numbers() -> None:
    page = (ROOT / "docs" / "rules.md").read_text()
    for name, profile in profiles.PROFILES.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        lines = dict(re.findall(r"^\* ([\w-]+): (.*)$", section, re.M))
        assert lines.keys() == profile.indicators.keys()
        for kind, rule in profile.indicators.items():
            numbers = [
                *rule.after,
                *rule.lost,
                rule.window,
                rule.cooldown,
                *(100 * x if x < 0.3 else x for x in rule.at),
            ]
            said = re.findall(r"[\d.]+", lines[kind])
            assert {f"{number:g}" for number in numbers if number} <= set(said), kind


def test_contributing_names_what_is_there() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(\S+\.py)`[^|]*\| `(\w+)`", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert len(rows) >= 7
    for module, table in rows:
        assert re.search(rf"^{table}\b", (ROOT / "stillwatch" / module).read_text(), re.M), f"{module}: {table}"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_s_header_states_its_command_time_and_result(path: Path) -> None:
    head = path.read_text().split("\nname")[0]
    assert "stillwatch " in head, "its command"
    assert re.search(r"\b(minutes?|hours?|seconds?)\b", head), "its time"
    assert re.search(r"\d\.\d|\d %", head), "its result"


def test_every_result_names_its_recipe_and_commit() -> None:
    tables = sorted((ROOT / "results").glob("*.csv"))
    assert {table.name for table in tables} >= {"results.csv", "published.csv"}
    for table in tables:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows, table
        if table.name == "results.csv":
            for row in rows:
                assert (RECIPES / f"{row['recipe']}.toml").is_file(), row
                assert re.fullmatch(r"[0-9a-f]{7,}", row["commit"]), row
                assert 0 <= float(row["macro_f1"]) <= 1


def test_nothing_of_a_machine_is_named() -> None:
    patterns = ("*.md", "docs/*.md", "*.toml", "Makefile", "results/*", "stillwatch/**/*.toml", "stillwatch/**/*.py")
    files = [path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()]
    assert len(files) > 30
    for path in files:
        assert not re.search(r"/(work|root|home|tmp)/\w", path.read_text(errors="replace")), path
