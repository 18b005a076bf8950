"""UserError in one line: place, value, nearest right word. Imports nothing of ours."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

MANY = 40  # known words that are listed
WORD, LINE = 240, 1500  # characters at most of one word and of one line of an error, whatever it quotes


class UserError(Exception):
    def __init__(self, text: str):
        super().__init__(bounded(text))


def bounded(text: str) -> str:
    """Cuts the middle out of long words and lines."""
    text = re.sub(rf"\S{{{WORD + 1},}}", lambda word: _cut(word[0], WORD), text)
    return "\n".join(_cut(line, LINE) for line in text.split("\n")[:50])


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: 2 * most // 3]}…{text[1 - most // 3 :]}"


def one_line(error: BaseException, hide: Iterable[str] = ()) -> str:
    """At most 300 characters; the type's name if there is no text. hide: secrets, shown as ***."""
    text = str(getattr(error, "strerror", None) or error)
    for secret in sorted(filter(None, hide), key=len, reverse=True):
        text = text.replace(secret, "***").replace(repr(secret)[1:-1], "***")
    return " ".join(text.split())[:300] or type(error).__name__


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or the known words."""
    known = [str(k) for k in known]
    word = word[:WORD]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6) or [k for k in known if k.lower() == word.lower()]
    rest = f" and {len(known) - MANY} more" if len(known) > MANY else ""
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known[:MANY])}{rest}"


def explain(
    error: ValidationError,
    model: type[BaseModel],
    place: Callable[[tuple[Any, ...]], str],
    prefix: str = "",
    show: Callable[[str, object], str] | None = None,
) -> str:
    """One line per key: place, key, value, nearest right word.

    place: key path (names, list indices) -> words such as "watch.toml: line 7".
    """
    by_key: dict[str, str] = {}
    wrong = {one["loc"][:depth] for one in error.errors() for depth in range(len(one["loc"]))}
    for one in error.errors():  # where a key may be of two types, pydantic complains once for each
        if one["type"] == "too_short" and one["loc"] in wrong:
            continue  # it does not count an item that is wrong itself
        where = place(tuple(one["loc"]))
        line = _line(where, one, model, prefix, show or (lambda key, value: repr(value)))
        key = re.split(r" = |: ", line.removeprefix(f"{where}: "))[0]
        by_key[key] = f"{by_key[key]}; or: {line.rpartition(': ')[2]}" if key in by_key else line
    return "\n".join(by_key.values())


def _line(place: str, error: Any, model: type[BaseModel], prefix: str, show: Callable[[str, object], str]) -> str:
    # pydantic adds the tried types of a union to the place; a key is a name or a list index
    where = [str(step) for step in error["loc"] if not re.search(r"[\[\]()]|^(str|int|float|bool|dict)$", str(step))]
    key = prefix + ".".join(where)
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        other = [".".join(path) for path in _places(model) if path[-1] == where[-1]]
        table: type[BaseModel] | None = model
        for step in where[:-1]:
            inner = table.model_fields[step].annotation if table and step in table.model_fields else None
            table = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
        hint = f"; it is {other[0]}" if other else nearest(where[-1], table.model_fields if table else ())
        return f"{place}: {key} = {show('', value)}: unknown key{hint}"
    if error["type"] == "missing":
        return f"{place}: {key}: missing, and it has no default"
    reason = in_plain_words(error["msg"])
    if isinstance(value, dict) or not key:
        return f"{place}: {key + ': ' if key else ''}{reason}"
    allowed = error.get("ctx", {}).get("expected")
    hint = ""
    if error["type"] == "literal_error" and isinstance(value, str):
        hint = nearest(value, re.findall(r"'([^']*)'", str(allowed)))
        reason = "not allowed"
    return f"{place}: {key} = {show(where[-1], value)}: {reason}{hint}"


def in_plain_words(message: str) -> str:
    """pydantic's message in a recipe's words: it has lists."""
    message = message.removeprefix("Value error, ").removesuffix(" after validation")
    return re.sub("[Tt]uple", "list", message).replace(" after validation,", ",")


def _places(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        if above:
            yield (*above, name)
        if isinstance(inner := field.annotation, type) and issubclass(inner, BaseModel) and len(above) < 2:
            yield from _places(inner, (*above, name))
