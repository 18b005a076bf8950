"""The plugin system: a name or a table of options -> an entry of a plain dict.

Imports errors alone.
"""

import importlib
from collections.abc import Mapping
from typing import Any, TypeAlias

from stillwatch.errors import UserError, nearest

Spec: TypeAlias = str | dict[str, Any]  # "kd", or {name="kd", temperature=4}: what pick() takes


def build_spec(table: Mapping[str, Any], spec: Spec, what: str = "name") -> tuple[Any, dict[str, Any]]:
    """The plugin system: a spec -> (entry of the table, its options).

    spec: "kd", {name="kd", temperature=4}, or "mypackage.losses:mine". what: the key to name in an error.
    Raises UserError for a name that neither the table nor an importable module knows.
    """
    options = {} if isinstance(spec, str) else dict(spec)
    name = spec if isinstance(spec, str) else str(options.pop("name", ""))
    if name in table:
        return table[name], options
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(f"{what} = {name!r}: unknown{nearest(name, table)}")
    try:
        return getattr(importlib.import_module(module), attribute), options
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what} = {name!r}: cannot be imported: {error}") from error
