"""Arguments, progress and tables of the commands. Imports no floor above the ground."""

import codecs
import os
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from stillwatch.recipe import SHIPPED
from stillwatch.run import Progress, Run, runs

T = TypeVar("T")
PLAIN = str.maketrans({"−": "-", "–": "-", "…": "...", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "µ": "u"})


def _recipes(start: str) -> list[str]:
    names = [str(path.relative_to(SHIPPED).with_suffix("")) for path in SHIPPED.rglob("*.toml")]
    return [name for name in sorted([*names, *map(str, Path().glob("*.toml"))]) if name.startswith(start)]


def bundle_folder(text: str) -> Path:
    from stillwatch.media.hub import folder

    return folder(text)


RecipeFile = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="a recipe file, or the name of a shipped recipe", autocompletion=_recipes),
]
RunsFolder = Annotated[Path, typer.Option("--runs", help="folder of runs")]
Fresh = Annotated[bool, typer.Option("--fresh", help="start a new run instead of resuming an interrupted one")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")]
On = Annotated[str, typer.Option("--on", metavar="ENGINE", help="ray, or ray://HOST:PORT; else this machine")]
BundleFolder = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="a bundle folder, or hf://user/name[@commit]", parser=bundle_folder)
]
Split = Annotated[str, typer.Option("--split", help="test or valid")]


def table(rows: Iterable[Sequence[str]], header: Sequence[str] = (), right: Sequence[int] = ()) -> None:
    """right: numeric columns. Wraps at the terminal's width, or COLUMNS."""
    grid = Table(box=None, pad_edge=False, show_header=bool(header))
    rows = list(rows)
    for column in range(max(map(len, [header, *rows]))):
        name = header[column] if header else ""
        grid.add_column(name, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    free = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    Console(width=free, markup=False, highlight=False, emoji=False, color_system=None).print(grid)


def latest(folder: Path, *kinds: str) -> list[Path]:
    found = {run.info.kind: run.path for run in runs(folder) if run.info.status == "done"}
    return [found[kind] for kind in kinds]


def print_run(run: Run) -> None:
    best, cost = run.info.best, run.info.cost
    print(
        f"{run.path}: kept epoch {best['epoch']}: validation accuracy {100 * best['accuracy']:.1f} %, "
        f"macro-F1 {best['macro_f1']:.3f}; {cost['params']:,} parameters, {cost['macs'] / 1e6:.1f} M MACs"
    )


def progress() -> Progress:
    """Bars on a terminal; elsewhere a line every 30 s."""
    say = partial(print, flush=True)
    if not sys.stderr.isatty():
        return Progress(_lines, say)
    return Progress(lambda things, n, what: track(things, what, n, transient=True, console=Console(stderr=True)), say)


def _lines(things: Iterable[T], count: int, what: str) -> Iterable[T]:
    started = reported = time.monotonic()
    for number, thing in enumerate(things):
        yield thing
        if time.monotonic() - reported > 30:
            reported = time.monotonic()
            print(f"{what}: {number + 1} of {count}, {reported - started:.0f} s", file=sys.stderr, flush=True)


def print_anything() -> None:
    """Replaces characters that the terminal's encoding lacks (cp1252 has no minus sign)."""

    def plainer(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        text = error.object[error.start : error.end].translate(PLAIN)
        return text.encode("ascii", "replace").decode(), error.end

    codecs.register_error("plainer", plainer)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="plainer")
