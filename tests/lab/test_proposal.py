"""init: a recipe for a folder loads, is audited as it stands, and guesses nothing silently."""

import csv
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import idx_pair, jpeg, video

from stillwatch.cli import start
from stillwatch.errors import UserError
from stillwatch.lab import inventory, proposal
from stillwatch.lab.data.reader import gather
from stillwatch.lab.training.pipeline import inspect
from stillwatch.lab.training.runs import RunOptions
from stillwatch.recipe import Recipe, check, load

LABELS, PEOPLE = ("calm", "danger"), ("anna", "ben", "cem", "dora")
EACH = list(itertools.product(LABELS, PEOPLE, range(3)))


def tree(name: str) -> Callable[[Path], None]:
    """A layout whose files are named so; each picture is another one."""

    def draw(root: Path) -> None:
        for number, (label, person, shot) in enumerate(EACH):
            split = ("train", "valid", "test")[shot]
            place = name.format(label=label, person=person, shot=shot, split=split, number=number)
            jpeg(root / place, number, "Yawn" if label == "danger" else "SafeDriving")

    return draw


def films(root: Path) -> None:
    for label, person in itertools.product(LABELS, PEOPLE):
        video(root / label / f"{person}.mp4", 20)


def short_films(root: Path) -> None:
    for label, person in itertools.product(LABELS, PEOPLE):
        video(root / label / person / "1.mp4", 3, fps=5)


def table(root: Path) -> None:
    tree("shots/{number}.jpg")(root)
    with (root / "list.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["path", "label", "driver"])
        rows.writerows([f"shots/{number}.jpg", label, person] for number, (label, person, _) in enumerate(EACH))


def manifest(root: Path) -> None:
    films(root)
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.mp4"))]
    lines = [f"{name},{name.split('/')[0]},{number % 4}" for number, name in enumerate(names)]
    (root / "manifest.csv").write_text("\n".join(["file,label,group", *lines]))


def mnist(root: Path) -> None:
    root.mkdir()
    idx_pair(root, "train", 60)
    idx_pair(root, "t10k", 30, zipped=False)


def roboflow_boxes(root: Path) -> None:
    for split, shots in (("train", range(8)), ("test", range(8, 10))):
        lines = []
        for number, person in itertools.product(shots, PEOPLE):
            name = f"gA_{person}_s1_mp4-{number}_jpg.rf.ab{number}.jpg"
            jpeg(root / split / name, number)
            lines.append(f"{name} 1,1,30,20,{number % 2}")
        (root / split / "_annotations.txt").write_text("\n".join(lines))
        (root / split / "_classes.txt").write_text("\n".join(LABELS))


LAYOUTS = {  # layout -> (how it is drawn, source, group, split)
    "folders": (tree("{label}/{person}/{shot}.jpg"), "folders", "folder", "grouped"),
    "unpacked": (tree("export/{label}/{person}/{shot}.jpg"), "folders", "folder", "grouped"),
    "names": (tree("{label}/{person}_{shot}.jpg"), "folders", None, "ratio"),
    "yolo": (tree("{split}/{label}/img{number}.jpg"), "folders", None, "official"),
    "no-test": (tree("train/{label}/img{number}.jpg"), "folders", None, "ratio"),
    "roboflow": (tree("{split}/{label}/{person}_mp4-{shot}_jpg.rf.a{number}.jpg"), "folders", "_(?:mp4", "grouped"),
    "boxes": (roboflow_boxes, "driver-inattention", "_(?:mp4", "grouped"),
    "films": (films, "videos", "(.+/.+)", "grouped"),
    "short-films": (short_films, "videos", "folder", "grouped"),
    "csv": (table, {"name": "csv", "file": "list.csv"}, None, "ratio"),
    "manifest": (manifest, {"name": "videos", "manifest": "manifest.csv"}, "column:group", "grouped"),
    "idx": (mnist, "idx", None, "official"),
}


def init(folder: Path, *words: str) -> Recipe:
    start.init(folder, list(words), None, yes=True)
    return load(f"{folder.name}.toml")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_recipe_of_each_layout_is_audited_as_it_stands(here: Path, layout: str) -> None:
    draw, source, group, split = LAYOUTS[layout]
    draw(here / layout)
    recipe = init(Path(layout))
    run, data = inspect(recipe, RunOptions())
    assert run.read_json("audit.json")["samples"] == len(data.samples) > 0
    assert (recipe.data.source, recipe.data.split) == (source, split)
    assert (group or "") in (recipe.data.group or "") and (group is None) == (recipe.data.group is None)
    assert not recipe.safe
    assert '# safe = ["' in Path(f"{layout}.toml").read_text()


def test_a_guess_is_a_comment_and_holds_when_it_is_uncommented(here: Path) -> None:
    tree("{label}/{person}_{shot}.jpg")(here / "pictures")
    init(Path("pictures"))
    text = Path("pictures.toml").read_text()
    assert "4 people or cameras?" in text
    text = re.sub(r"^(split|folds) .*\n", "", text, flags=re.M)
    text = re.sub("^# (group|split) =", r"\1 =", text, flags=re.M).replace("[teacher]", "folds = 4\n[teacher]")
    recipe = check(tomllib.loads(text), "text")
    assert recipe.data.split == "grouped"
    assert {sample.group for sample in inspect(recipe, RunOptions())[1].samples} == set(PEOPLE)


def test_films_get_a_look_that_the_shortest_has(here: Path) -> None:
    films(here / "long")
    short_films(here / "short")
    assert init(Path("long")).data.look == (0.0, 0.1, 0.2, 0.3, 0.4)
    assert init(Path("short")).data.look == (0.0, 0.2, 0.4)


def test_an_official_split_that_leaks_is_said(here: Path) -> None:
    LAYOUTS["roboflow"][0](here / "pictures")
    init(Path("pictures"))
    assert "leaks: 4 of 4 groups are in train and test" in Path("pictures.toml").read_text()


def test_the_safe_label_is_given_or_asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree("{label}/{person}_{shot}.jpg")(here / "pictures")
    with pytest.raises(UserError, match="did you mean 'calm'"):
        init(Path("pictures"), "clam")
    assert not Path("pictures.toml").exists()
    assert init(Path("pictures"), "calm").safe == ("calm",)
    asked: list[str] = []
    monkeypatch.setattr(typer, "prompt", lambda text, default: asked.append(default) or "danger")
    monkeypatch.setattr(typer, "confirm", lambda text, default: True)
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    start.init(Path("pictures"), None, Path("asked.toml"), yes=False)
    recipe = load("asked.toml")
    assert (asked, recipe.safe, recipe.data.split) == (["calm"], ("danger",), "grouped")


def test_a_recipe_that_is_there_is_not_written_over(here: Path) -> None:
    tree("{label}/{person}_{shot}.jpg")(here / "pictures")
    Path("pictures.toml").write_text("mine")
    with pytest.raises(UserError, match="--out"):
        init(Path("pictures"))
    assert Path("pictures.toml").read_text() == "mine"


@pytest.mark.parametrize(
    ("names", "error"),
    [
        ((), "no pictures or films"),
        (("1.jpg", "2.jpg"), "lie in no class folder"),
        (("calm/1.jpg", "calm/2.jpg"), "lie in no class folder"),  # one folder is what an archive unpacks
        (("calm/1.jpg", "notes/a.txt"), "one label alone"),
        (("calm/1.jpg", "danger/1.jpg"), "too few"),
        (("train/images/1.jpg", "train/labels/1.txt", "data.yaml"), "Folder Structure"),
        (("train/1.jpg", "train/_annotations.coco.json", "test/1.jpg"), "Folder Structure"),
    ],
)
def test_what_is_no_data_set_is_one_line(here: Path, names: tuple[str, ...], error: str) -> None:
    Path("place").mkdir()
    for name in names:
        jpeg(here / "place" / name)
    with pytest.raises(UserError, match=error) as caught:
        init(Path("place"))
    assert "\n" not in str(caught.value)
    assert not Path("place.toml").exists()


NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=30).filter(
    lambda name: name.strip(". ") == name
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labels=st.sets(NAME, min_size=2, max_size=3), names=st.sets(NAME, min_size=4, max_size=8))
def test_any_name_gives_a_recipe_that_reads_the_same_labels(
    tmp_path_factory: pytest.TempPathFactory, labels: set[str], names: set[str]
) -> None:
    root = tmp_path_factory.mktemp("wild")
    for label, name in itertools.product(labels, names):
        jpeg(root / label / f"{name}.jpg")
    found = inventory.take(root)
    text = proposal.recipe(found, inventory.glance(found), Path("x.toml"), [], None)
    recipe = check(tomllib.loads(text), "x.toml")
    assert {sample.label for sample in gather(recipe).samples} == set(recipe.labels)
    assert len(gather(recipe).samples) == len(found.entries)
    for grouping in found.groupings:
        group = check(tomllib.loads(proposal.recipe(found, inventory.glance(found), Path("x.toml"), [], grouping)), "x")
        assert len(gather(group).samples) == len(found.entries)


def test_names_are_listed_up_to_a_bound(tmp_path: Path) -> None:
    for number in range(30):
        jpeg(tmp_path / f"{number % 3}" / f"{number}.jpg")
    names, whole = inventory.listing(tmp_path, 20)
    assert (len(names), whole) == (20, False)
    assert len(inventory.listing(tmp_path, 30)[0]) == 30


def test_what_many_folders_lack_is_one_note(here: Path) -> None:
    tree("{label}/{shot}-{person}.jpg")(here / "p")
    for number in range(30):
        (here / "p" / f"empty-{number:02d}").mkdir()
    found = inventory.take(here / "p")
    assert len(found.notes) == 1 and "empty-00, empty-01" in found.notes[0] and len(found.notes[0]) < 100


def test_looking_at_a_folder_imports_no_torch(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree("{label}/{person}_{shot}.jpg")(here / "pictures")
    code = (
        "import sys; sys.argv = ['stillwatch', 'init', 'pictures']\n"
        "from stillwatch.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'timm', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "stillwatch audit pictures.toml" in done.stdout
