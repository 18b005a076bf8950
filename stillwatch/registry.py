"""Plugins by name, with checked options. Imports errors alone."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from pydantic import ConfigDict, TypeAdapter, ValidationError

from stillwatch.errors import UserError, in_plain_words, nearest

Spec: TypeAlias = str | dict[str, Any]  # "kd", {name="kd", temperature=4} or "mypackage.losses:mine"
Table: TypeAlias = Mapping[str, Callable[..., Any]]
CONFIG = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


class Choice(NamedTuple):
    name: str
    entry: Callable[..., Any]
    options: dict[str, Any]
    extra: dict[str, Any]  # options that the caller keeps for itself


def find(table: Table, spec: Spec, place: str = "name") -> Callable[..., Any]:
    """Checks no options. Raises UserError."""
    name = spec if isinstance(spec, str) else str(spec.get("name", ""))
    if name in table:
        return table[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(f"{place} = {name!r}: unknown{nearest(name, table)}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{place} = {name!r}: cannot be imported: {error}") from error


def resolve(
    table: Table,
    spec: Spec,
    given: int = 0,
    place: str = "name",
    prefix: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Choice:
    """Checks the options against the entry's signature.

    given: leading parameters that the caller fills. place: the spec's key, in errors. prefix: of option keys,
    `place.name` by default. extra: name -> type of options for the caller. Raises UserError.
    """
    # Ranges: `beta: Annotated[float, Field(ge=0)] = 1.0`. Types are strict, but an int does for a float; lists are
    # `list` or `Sequence`
    entry, own = find(table, spec, place), dict(extra or {})
    options = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "name"}
    name = (spec if isinstance(spec, str) else spec["name"]).rpartition(":")[2]
    prefix = f"{place}.{name}" if prefix is None else prefix
    parameters = list(inspect.signature(entry, eval_str=True).parameters.values())[given:]
    named = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    types = {key: p.annotation for key, p in named.items()} | own
    for key, value in options.items():
        if key in types:
            if types[key] is not inspect.Parameter.empty:
                try:
                    options[key] = TypeAdapter(types[key], config=CONFIG).validate_python(value)
                except ValidationError as error:
                    reasons = "; or: ".join(dict.fromkeys(in_plain_words(e["msg"]) for e in error.errors()))
                    raise UserError(f"{f'{prefix}.{key}'.lstrip('.')} = {value!r}: {reasons}") from None
        elif not any(p.kind is p.VAR_KEYWORD for p in parameters):
            hint = nearest(key, types) if types else "; it has no options"
            raise UserError(f"{f'{prefix}.{key}'.lstrip('.')} = {value!r}: unknown option{hint}")
    if missing := [key for key, p in named.items() if p.default is p.empty and key not in options]:
        raise UserError(f"{f'{prefix}.{missing[0]}'.lstrip('.')}: missing; the options are: {', '.join(types)}")
    kept = {key: options.pop(key) for key in own if key in options}
    return Choice(name, entry, options, kept)


def build(table: Table, spec: Spec, *args: Any, place: str = "name", prefix: str | None = None) -> Any:
    """Raises UserError as resolve() does."""
    choice = resolve(table, spec, len(args), place, prefix)
    return choice.entry(*args, **choice.options)


def bind(table: Table, spec: Spec, given: int, place: str = "name", prefix: str | None = None) -> partial[Any]:
    """build() for later, with `given` leading arguments."""
    choice = resolve(table, spec, given, place, prefix)
    return partial(choice.entry, **choice.options)
