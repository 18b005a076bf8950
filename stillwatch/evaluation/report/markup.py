"""Markup: the small pieces of HTML that a report's sections are made of, and how its figures are written.

In: text, figures, PNGs. Out: HTML. Called by the page and its sections. It knows no report.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from stillwatch.evaluation.report.words import READ

Painted: TypeAlias = Mapping[str, tuple[bytes, bytes]]  # name -> wide and stacked PNG


def section(heading: str, *parts: str) -> str:
    body = "".join(parts)
    return f"<section><h2>{heading}</h2>{body}</section>" if body else ""


def figure(painted: Painted, name: str) -> str:
    if name not in painted:
        return ""
    wide, stacked = painted[name]
    alt, how = READ[name]
    return (
        f'<figure class="plot"><picture><source media="(max-width: 640px)" srcset="{data("image/png", stacked)}">'
        f'<img alt="{alt}" src="{data("image/png", wide)}"></picture><figcaption>{how}</figcaption></figure>'
    )


def data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def table(heads: Sequence[str] | str, rows: Iterable[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """heads: cells, or rows of them as HTML. rows: HTML cells; the first names the row. words: columns of text."""
    if not isinstance(heads, str):
        cells = (f'<th class="{"word" if n in words else "number"}">{head}</th>' for n, head in enumerate(heads))
        heads = f"<tr>{''.join(cells)}</tr>"
    body = ""
    for first, *rest in rows:
        cells = (f'<td class="{"word" if n in words else "number"}">{cell}</td>' for n, cell in enumerate(rest, 1))
        body += f'<tr><th scope="row">{first}</th>{"".join(cells)}</tr>'
    return f'<div class="table"><table><thead>{heads}</thead><tbody>{body}</tbody></table></div>'


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def three(value: float) -> str:
    return f"{value:.3f}"


def signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def span(ends: Sequence[float] | None, show: Callable[[float], str]) -> str:
    between = " to " if show is signed else "–"
    return f"<small>{bare(show(ends[0]))}{between}{bare(show(ends[1]))}</small>" if ends else ""


def bare(figure: str) -> str:
    return figure.removesuffix(" %")


def interval(ends: Sequence[float] | None) -> str:
    return f" (95 % interval {signed(ends[0])} to {signed(ends[1])})" if ends else ""


def known(value: Any, show: str) -> str:
    return "–" if value is None else show.format(value)


def listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
