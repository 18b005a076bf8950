"""Writes stillwatch/schemas/*.json, which editors read: python tests/schemas.py after a new key or plugin.

The models give keys, types, ranges and defaults; the comments beside them the words; the tables the names of plugins.
"""

import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter

sys.path.insert(0, str(Path(__file__).parent.parent))

from stillwatch.inference.runtimes import RUNTIMES
from stillwatch.lab.data.augment import AUGMENTS, Share, mixup
from stillwatch.lab.data.sources import SOURCES
from stillwatch.lab.export.exporters import EXPORTERS
from stillwatch.lab.models.temporal import TEMPORAL
from stillwatch.lab.models.zoo import NETS
from stillwatch.lab.training.losses import LOSSES
from stillwatch.monitor.config import WatchConfig
from stillwatch.monitor.events.sinks import SINKS
from stillwatch.recipe import SEEN, Recipe
from stillwatch.registry import CONFIG
from stillwatch.rules.profiles import PROFILES, IndicatorRule

PLACE = Path(__file__).parent.parent / "stillwatch" / "schemas"
OWN = {"type": "string", "pattern": r"^[\w.]+:\w+$"}  # "mypackage.losses:mine"


def comments(model: type) -> dict[str, str]:
    """The words beside each field."""
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(model), re.M))


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from models(inner)


def plugin(table: Mapping[str, Callable[..., Any]], given: int, extra: Mapping[str, Any] | None = None) -> Any:
    """A name, or a table of a name and the options of its signature; or somebody's own."""
    bare, tables = [], []
    for name, entry in table.items():
        options, needed = dict(extra or {}), []
        for p in list(inspect.signature(entry, eval_str=True).parameters.values())[given:]:
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                continue
            options[p.name] = {} if p.annotation is p.empty else TypeAdapter(p.annotation, config=CONFIG).json_schema()
            if p.default is p.empty:
                needed.append(p.name)
            elif isinstance(p.default, str | int | float):
                options[p.name] |= {"default": p.default}
        shape = {"type": "object", "properties": {"name": {"const": name}} | options, "required": ["name", *needed]}
        tables.append(shape | {"additionalProperties": False})
        bare += [] if needed else [name]
    own = {"type": "object", "properties": {"name": OWN}, "required": ["name"]}
    return {"anyOf": [{"enum": bare}, OWN, *tables, own]}


def names(table: Mapping[str, object], pattern: str = "") -> Any:
    return {"anyOf": [{"enum": list(table)}, {"type": "string"} | ({"pattern": pattern} if pattern else {})]}


def plain(value: Any) -> Any:
    """Without pydantic's titles and what is no JSON."""
    if isinstance(value, dict):
        kept = {key: plain(inner) for key, inner in value.items() if not (key == "title" and isinstance(inner, str))}
        return {key: inner for key, inner in kept.items() if not (isinstance(inner, float) and math.isinf(inner))}
    return [plain(item) for item in value] if isinstance(value, list) else value


def described(model: type[BaseModel], title: str) -> Any:
    whole = plain(model.model_json_schema())
    for one in models(model):
        part = whole if one is model else whole["$defs"][one.__name__]
        for name, words in comments(one).items():
            part["properties"][name] = {"description": words} | part["properties"][name]
    keys = {name: {"description": words} for name, words in comments(IndicatorRule).items()}
    indicators = {"type": "object", "properties": keys}
    kinds = sorted({kind for profile in PROFILES.values() for kind in profile.indicators})
    rule = whole["$defs"]["Rule"]["properties"]
    rule["indicators"] |= {"properties": dict.fromkeys(kinds, indicators)}
    rule["off"]["items"] = {"enum": kinds}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title} | whole


def recipe() -> Any:
    whole = described(Recipe, "A recipe of Stillwatch")
    parts = {name: part["properties"] for name, part in whole["$defs"].items()}
    parts["Data"]["source"] |= plugin(SOURCES, 2)
    parts["Net"]["name"] |= names(NETS)  # and every name of timm's
    parts["Net"]["temporal"] |= plugin(TEMPORAL, 2)
    parts["Side"]["net"] = {"anyOf": [names(NETS), parts["Side"]["net"]]}
    weight = {"weight": {"type": "number", "minimum": 0, "default": 1.0}}
    parts["Fit"]["loss"]["items"] = plugin(LOSSES, 1, weight)
    parts["Fit"]["augment"]["items"] = plugin(AUGMENTS, 2, {"p": TypeAdapter(Share).json_schema()})
    parts["Fit"]["augment"]["items"]["anyOf"] += plugin({"mixup": mixup}, 0)["anyOf"]
    parts["Export"]["formats"]["items"] = names(EXPORTERS, OWN["pattern"])
    seen = {key: {"$ref": f"#/$defs/Data/properties/{key}"} for key in SEEN}
    parts["Side"]["data"] |= {"properties": seen, "additionalProperties": False}
    for name in ("Side", "Prune", "Quantise", "Tune"):
        parts[name]["fit"] = {"description": parts[name]["fit"].get("description", ""), "$ref": "#/$defs/Fit"}
    return whole


def watch() -> Any:
    whole = described(WatchConfig, "A watch.toml of Stillwatch")
    runtime = names(RUNTIMES)
    whole["properties"]["runtime"] |= {"anyOf": [runtime, {"type": "array", "items": runtime}]}
    whole["$defs"]["Sink"]["properties"]["to"] |= plugin(SINKS, 0)
    return whole


SCHEMAS: dict[str, Callable[[], Any]] = {"recipe": recipe, "watch": watch}


def text(name: str) -> str:
    return json.dumps(SCHEMAS[name](), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in SCHEMAS:
        (PLACE / f"{name}.json").write_text(text(name), encoding="utf-8")
