"""Recipes: what is read, and how each mistake is named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillwatch import recipe
from stillwatch.errors import UserError
from stillwatch.recipe import Recipe

TEXT = """
name   = "toy"
labels = ["calm", "fight"]
safe   = ["calm"]
[data]
source = "folders"
[teacher]
net = { name = "resnet10t", dropout = 0.3 }
fit = { epochs = 7 }
[student]
net = "smallcnn"
[fit]
epochs = 3
loss = ["ce", { name = "kd", temperature = 4 }]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(TEXT)
    return path


def test_a_recipe_is_read_with_its_defaults(file: Path) -> None:
    found = recipe.load(file)
    assert found.student.net.name == "smallcnn"
    assert found.data.hw == (224, 224)
    assert found.data.channels == 3
    assert found.fit_of("teacher").epochs == 7
    assert found.fit_of("student").epochs == 3
    assert found.fit.loss == ("ce", {"name": "kd", "temperature": 4})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("fit.epoch=3", ["fit.epoch = 3", "unknown key", "did you mean 'epochs'"]),
        ("fit.epochs=many", ["fit.epochs = 'many'", "integer"]),
        ("fit.epochs=0", ["fit.epochs = 0", "greater than or equal to 1"]),
        ("data.split=groupd", ["data.split = 'groupd'", "did you mean 'grouped'"]),
        ("data.fold=5", ["data", "fold = 5 must be below folds = 5"]),
        ("data.valid=1.5", ["valid = 1.5", "between 0 and 1"]),
        ("data.size=[1,2,3]", ["data.size = [1, 2, 3]"]),
        ("data.size=4", ["size = 4", "at least 8"]),
        ("safe=['clam']", ["safe = 'clam'", "did you mean 'calm'"]),
        ("labels=['a','a']", ["one name twice"]),
        ("teacher.fit.lrr=1", ["teacher.fit.lrr = 1", "did you mean 'lr'"]),
        ("student.net.dropuot=0.1", ["student.net.dropuot", "did you mean 'dropout'"]),
        ("labels=['a']", ["labels = ['a']", "at least two labels"]),
        ("labels=a", ["labels = 'a'", "a valid list"]),
        ('teacher.weights="validation"', ["teacher.weights: of several runs"]),
        ("teacher={net='x', students=2, data={size=8}}", ["teacher.students: they see [data]"]),
        ("data.lr=1", ["data.lr = 1", "unknown key; it is fit.lr"]),
        ("rate=5", ["rate = 5", "unknown key; it is data.rate"]),
        ("studnet.net=x", ["studnet", "did you mean 'student'"]),
    ],
)
def test_a_mistake_is_one_line_with_place_key_and_nearest_word(file: Path, override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        recipe.load(file, [override])
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    for word in words:
        assert word in message, message


def test_overrides_are_toml_or_else_text(file: Path) -> None:
    found = recipe.load(file, ["fit.lr=3e-4", "data.root=../far/away", "student.net.width=2", "data.gray=true"][:2])
    assert found.fit.lr == 3e-4
    assert found.data.root == Path("../far/away")
    grown = recipe.load(file, ["student.net.dropout=0.5"])  # the short form grows into a table
    assert grown.student.net.name == "smallcnn"
    assert grown.student.net.dropout == 0.5
    with pytest.raises(UserError, match="key=value"):
        recipe.load(file, ["epochs"])
    with pytest.raises(UserError, match="name is not a table"):
        recipe.load(file, ["name.x=1"])


def test_a_missing_file_names_its_neighbour(file: Path) -> None:
    with pytest.raises(UserError, match=r"toi.toml: no such recipe; did you mean 'toy.toml'"):
        recipe.load(file.with_name("toi.toml"))
    with pytest.raises(UserError, match="not valid TOML"):
        file.write_text("name = ")
        recipe.load(file)


def test_every_shipped_recipe_is_right() -> None:
    shelf = Path(__file__).parent.parent.parent / "stillwatch" / "recipes"
    files = sorted(shelf.rglob("*.toml"))
    assert len(files) >= 7
    for path in files:
        found = recipe.load(path)
        assert recipe.load(str(path.relative_to(shelf).with_suffix(""))) == found  # by its name alone, too
        assert sum(float(s.get("weight", 1)) for s in found.fit.loss if isinstance(s, dict)) >= 1


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("drivng", "drivng: no such recipe; did you mean 'driving'?"),
        ("published/minst.toml", "did you mean 'published/mnist'?"),
        ("zzz", "zzz: no such recipe; shipped ones are driving, mnist, published/driving"),
    ],
)
def test_an_unknown_recipe_names_the_nearest_or_the_shipped_ones(name: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        recipe.find(name)
    assert hint in str(error.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "data", "fit", "net", "loss", "labels", "x"]), inner, max_size=4)
        ),
    )
)
def test_whatever_stands_in_a_recipe_it_is_a_recipe_or_a_mistake(raw: Any) -> None:
    try:
        assert isinstance(recipe.check(raw if isinstance(raw, dict) else {"data": raw}, "here"), Recipe)
    except UserError as mistake:
        assert str(mistake).startswith("here: ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("prune.keep=1.5", "prune.keep = 1.5: Input should be less than 1"),
        ("prune.fit.epoch=3", "prune.fit.epoch = 3: unknown key; did you mean 'epochs'?"),
        ("quantise.float_se='maybe'", "quantise.float_se = 'maybe': not allowed"),
        ("quantise.fit.lr=-1", "quantise.fit.lr = -1: Input should be greater than 0"),
        ("export.opset=9", "export.opset = 9: Input should be greater than or equal to 13"),
        ("tune.fit.epochs=0", "tune.fit.epochs = 0: Input should be greater than or equal to 1"),
        ("rule.profile='drivr'", "rule.profile = 'drivr': not allowed; did you mean 'driver'?"),
    ],
)
def test_a_mistake_in_the_door_s_tables_is_named(override: str, said: str) -> None:
    with pytest.raises(UserError) as mistake:
        recipe.load("toy", [override])
    assert said in str(mistake.value)


def test_a_table_s_fit_lies_over_the_student_s() -> None:
    asked = recipe.load("toy", ["student.fit={epochs=7,batch=9}", "prune.fit={epochs=2}", "tune.side='teacher'"])
    assert (asked.fit_in("prune").epochs, asked.fit_in("prune").batch) == (2, 9)
    assert asked.fit_in("quantise").batch == 9
    assert asked.fit_in("tune").batch == asked.fit_of("teacher").batch == 20


def test_missing_labels_are_offered_from_the_folders(file: Path, tmp_path: Path) -> None:
    file.write_text(
        TEXT.replace('labels = ["calm", "fight"]', "").replace("[data]", f"[data]\nroot = '{tmp_path}/films'")
    )
    with pytest.raises(UserError, match=r"toy.toml: labels: missing, and it has no default$"):
        recipe.load(file)
    for name in ("train/a b", "train/c", "test/c"):
        (tmp_path / "films" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r'by the folders in .*/films/train: labels = \["a b", "c"\]$'):
        recipe.load(file)
    file.write_text("labels = 3\ndata = 4\n")
    with pytest.raises(UserError, match="labels = 3"):
        recipe.load(file)


@pytest.mark.parametrize("key", ["init = 'runs/A'", "weights = 'validation'", "average = 'logits'", "signals = 0.5"])
def test_what_only_a_teacher_has_is_refused_for_the_student(key: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        f'name = "toy"\nlabels = ["a", "b"]\ndata = {{source = "toy"}}\nteacher = {{net = "mnist-cnn"}}\n'
        f'[student]\nnet = "mnist-cnn"\n{key}\n'
    )
    with pytest.raises(UserError, match=f"student.{key.split()[0]}: it is the teacher's"):
        recipe.load(path)
