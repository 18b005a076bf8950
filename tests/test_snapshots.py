"""What must not change since 0.1.0: the words of the command line, and the keys of what people and programs read.

tests/snapshots/*.json were written by 0.1.0. A key that is new is added to them by hand; one that is missing is a bug.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bundles
import typer
from fabricated import LABELS, three
from pydantic import BaseModel

from stillwatch.cli.main import app
from stillwatch.evaluation.report.report import assess
from stillwatch.monitor.config import WatchConfig
from stillwatch.monitor.state import Board, Gauges
from stillwatch.monitor.web import app as web
from stillwatch.recipe import Recipe

SNAPSHOTS = Path(__file__).parent / "snapshots"
FREE = {"teacher", "alone", "distilled", "model.onnx", "golden.npz", *LABELS}  # names that a person chose, as keys


def command_line(commands: typer.Typer) -> dict[str, list[str]]:
    """Each command's options (all spellings) and arguments (metavar)."""
    group: Any = typer.main.get_command(commands)
    return {
        name: [
            " ".join([*parameter.opts, *parameter.secondary_opts])
            if parameter.param_type_name == "option"
            else str(parameter.metavar or parameter.name)
            for parameter in command.params
        ]
        for name, command in group.commands.items()
    }


def keys(value: object, place: str = "") -> Iterator[str]:
    """The dotted places of all keys in a JSON value; a name that a person chose is *, an item of a list []."""
    if isinstance(value, dict):
        for key, inner in value.items():
            name = f"{place}.{'*' if key in FREE else key}".lstrip(".")
            yield name
            yield from keys(inner, name)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from keys(inner, f"{place}[]")


def recipe_keys(model: type[BaseModel]) -> Iterator[str]:
    """The dotted places of all keys of a recipe."""
    schema = model.model_json_schema()

    def walk(part: dict[str, Any], place: str) -> Iterator[str]:
        for name, inner in part.get("properties", {}).items():
            yield f"{place}{name}"
            for choice in [inner, *inner.get("anyOf", ()), *inner.get("allOf", ())]:
                if reference := choice.get("$ref"):
                    yield from walk(schema["$defs"][reference.rpartition("/")[2]], f"{place}{name}.")

    return walk(schema, "")


def described(document: dict[str, Any]) -> list[str]:
    """An OpenAPI document's paths, methods, parameters and schemas with their properties."""
    found = []
    for path, methods in document["paths"].items():
        for method, about in methods.items():
            found.append(f"{method} {path}")
            found += [f"{method} {path} {part['in']} {part['name']}" for part in about.get("parameters", ())]
            found += [f"{method} {path} -> {status}" for status in about["responses"]]
    for name, schema in document["components"]["schemas"].items():
        found += [f"{name}.{key}" for key in schema.get("properties", ())]
    return found


def compare(name: str, found: Any) -> None:
    wanted = json.loads((SNAPSHOTS / f"{name}.json").read_text(encoding="utf-8"))
    assert found == wanted


def test_the_command_line_keeps_its_words() -> None:
    compare("commands", command_line(app))


def test_the_api_keeps_its_paths_and_properties(tmp_path: Path) -> None:
    config = WatchConfig(bundle=tmp_path, camera=({"name": "cab", "source": "0"},))  # type: ignore[arg-type]
    board = Board(("Safe",), ("Safe",), ("cab",))
    page = web.app(board, tmp_path, config, None, None, Gauges(board))
    compare("openapi", sorted(described(page.openapi())))


def test_a_recipe_keeps_its_keys() -> None:
    compare("recipe", sorted(set(recipe_keys(Recipe))))


def test_a_bundle_keeps_its_keys(tmp_path: Path) -> None:
    made = bundles.made(tmp_path, {"model.onnx": bundles.onnx_net(tmp_path / "model.onnx")})
    compare("bundle", sorted(set(keys(json.loads((made.path / "bundle.json").read_text())))))


def test_a_report_keeps_its_keys(tmp_path: Path) -> None:
    report, _ = assess(three(tmp_path, 1.5, 2))
    compare("report", sorted(set(keys(json.loads(json.dumps(report))))))
