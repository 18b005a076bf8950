"""The shipped schemas are those of the models, and say yes to what is shipped and no to a wrong key."""

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemas

from stillwatch import recipe
from stillwatch.cli import start

ROOT = Path(__file__).parent.parent.parent
FILES = [*sorted(recipe.SHIPPED.rglob("*.toml")), ROOT / "deploy" / "watch.toml"]


def faults(name: str, raw: Any) -> list[str]:
    shipped = json.loads((recipe.SCHEMAS / f"{name}.json").read_text(encoding="utf-8"))
    return [error.json_path for error in jsonschema.Draft202012Validator(shipped).iter_errors(raw)]


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_the_shipped_schema_is_the_models(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    start.schema(name)  # type: ignore[arg-type]
    assert capsys.readouterr().out == schemas.text(name), "python tests/schemas.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_file_names_its_schema_and_keeps_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    place = text.splitlines()[0].removeprefix("#:schema ")
    assert (path.parent / place).resolve() == (recipe.SCHEMAS / Path(place).name).resolve()
    assert faults(Path(place).stem, tomllib.loads(text)) == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"fit": {"epoch": 3}}, "$.fit"),
        ({"fit": {"epochs": 0}}, "$.fit.epochs"),
        ({"fit": {"loss": [{"name": "kd", "heat": 3}]}}, "$.fit.loss[0]"),
        ({"fit": {"augment": ["flop"]}}, "$.fit.augment[0]"),
        ({"data": {"source": "folder"}}, "$.data.source"),
        ({"teacher": {"net": "x", "data": {"fold": 1}}}, "$.teacher.data"),
        ({"student": {"net": {"nam": "x"}}}, "$.student.net"),
        ({"rule": {"off": ["phones"]}}, "$.rule.off[0]"),
        ({"fit": {"loss": ["mypackage.losses:mine"]}, "teacher": {"net": "resnet18", "fit": {"lr": 0.1}}}, None),
    ],
)
def test_a_recipe_s_schema_knows_keys_ranges_and_plugins(change: dict[str, Any], place: str | None) -> None:
    raw = {
        "name": "x",
        "labels": ["a", "b"],
        "data": {"source": "toy"},
        "teacher": {"net": "x"},
        "student": {"net": "x"},
    }
    assert faults("recipe", raw) == []
    assert faults("recipe", raw | change) == ([place] if place else [])


def test_a_watch_s_schema_knows_sinks() -> None:
    raw = {"bundle": "b", "camera": [{"name": "cab", "source": "0"}], "sink": [{"name": "log", "to": "log"}]}
    assert faults("watch", raw) == []
    assert faults("watch", raw | {"sink": [{"name": "desk", "to": {"name": "webhook", "uri": "x"}}]}) == [
        "$.sink[0].to"
    ]
    assert faults("watch", raw | {"runtime": ["openvino:GPU"]}) == faults("watch", raw | {"runtime": "ncnn"}) == []
