"""Plugins: a spec becomes an entry with checked options, or one line that says what is wrong."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from stillwatch import registry
from stillwatch.errors import UserError


def kd(
    task: str,
    temperature: Annotated[float, Field(gt=0)] = 4.0,
    form: Literal["kl", "ce"] = "kl",
    stages: Sequence[int] = (16, 32),
) -> tuple[Any, ...]:
    return task, temperature, form, stages


class File:
    def __init__(self, path: str, tries: int = 3):
        self.path, self.tries = path, tries


def anything(x: int, **options: Any) -> tuple[int, dict[str, Any]]:
    return x, options


TABLE = {"kd": kd, "file": File, "anything": anything, "none": lambda: 0}


def test_build_takes_a_name_a_table_and_an_import() -> None:
    assert registry.build(TABLE, "kd", "t") == ("t", 4.0, "kl", (16, 32))
    assert registry.build(TABLE, {"name": "kd", "temperature": 2, "stages": [8]}, "t") == ("t", 2.0, "kl", [8])
    assert registry.build(TABLE, {"name": "file", "path": "a"}).path == "a"
    assert registry.build(TABLE, {"name": "anything", "y": 2}, 1) == (1, {"y": 2})
    assert registry.build(TABLE, "math:sqrt", 4.0) == 2.0
    assert registry.find(TABLE, {"name": "kd", "temperature": "unread"}) is kd


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("kdd", "loss = 'kdd': unknown; did you mean 'kd'?"),
        ({"temperature": 3}, "loss = '': unknown; known: kd, file, anything, none"),
        ({"name": "kd", "temprature": 3}, "loss.kd.temprature = 3: unknown option; did you mean 'temperature'?"),
        ({"name": "kd", "task": 3}, "loss.kd.task = 3: unknown option; did you mean 'stages'?"),
        ({"name": "kd", "temperature": "hot"}, "loss.kd.temperature = 'hot': Input should be a valid number"),
        ({"name": "kd", "temperature": True}, "loss.kd.temperature = True: Input should be a valid number"),
        ({"name": "kd", "temperature": 0}, "loss.kd.temperature = 0: Input should be greater than 0"),
        ({"name": "kd", "temperature": math.nan}, "loss.kd.temperature = nan: Input should be a finite number"),
        ({"name": "kd", "form": "lk"}, "loss.kd.form = 'lk': Input should be 'kl' or 'ce'"),
        ({"name": "none", "x": 1}, "loss.none.x = 1: unknown option; it has no options"),
    ],
)
def test_a_wrong_spec_is_one_line_with_key_and_value(spec: registry.Spec, line: str) -> None:
    args = () if isinstance(spec, dict) and spec.get("name") == "none" else ("t",)
    with pytest.raises(UserError) as error:
        registry.build(TABLE, spec, *args, place="loss")
    assert str(error.value) == line


def test_what_is_missing_and_what_cannot_be_imported_is_named() -> None:
    with pytest.raises(UserError, match=r"^to\.file\.path: missing; the options are: path, tries$"):
        registry.build(TABLE, "file", place="to")
    with pytest.raises(UserError, match=r"^data\.path: missing"):
        registry.build(TABLE, "file", place="data.source", prefix="data")
    for name in ("math:squareroot", "nowhere.at.all:x"):
        with pytest.raises(UserError, match="cannot be imported"):
            registry.build(TABLE, name)


def test_bind_checks_now_and_calls_later() -> None:
    ready = registry.bind(TABLE, {"name": "kd", "form": "ce"}, given=1)
    assert ready("later") == ("later", 4.0, "ce", (16, 32))
    with pytest.raises(UserError, match="forn"):
        registry.bind(TABLE, {"name": "kd", "forn": "ce"}, given=1)


def test_resolve_keeps_the_callers_own_options_apart() -> None:
    weight = {"weight": Annotated[float, Field(ge=0)]}
    spec: registry.Spec = {"name": "kd", "weight": 2, "form": "ce"}
    choice = registry.resolve(TABLE, spec, 1, "fit.loss", extra=weight)
    assert (choice.name, choice.options, choice.extra) == ("kd", {"form": "ce"}, {"weight": 2.0})
    assert spec == {"name": "kd", "weight": 2, "form": "ce"}
    with pytest.raises(UserError, match=r"^fit\.loss\.kd\.weight = -1: .*greater than or equal to 0"):
        registry.resolve(TABLE, {"name": "kd", "weight": -1}, 1, "fit.loss", extra=weight)
    with pytest.raises(UserError, match="did you mean 'weight'"):
        registry.resolve(TABLE, {"name": "kd", "weigth": 1}, 1, "fit.loss", extra=weight)
