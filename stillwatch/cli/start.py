"""Commands of the first hour. Imports floors only inside functions."""

import sys
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import typer

from stillwatch.atomic import atomic
from stillwatch.errors import UserError
from stillwatch.recipe import SCHEMAS, check

app = typer.Typer(rich_markup_mode=None)  # "[tune]" in a help text is no markup


@app.command(epilog="Example: stillwatch init pictures --safe calm")
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="labelled pictures or films, or a CSV of them")],
    safe: Annotated[list[str] | None, typer.Option("--safe", help="label that raises no alarm; repeatable")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="recipe file; by default FOLDER's name, here")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="ask nothing: guesses stay commented lines")] = False,
) -> None:
    """Look at a folder and write a commented recipe for it. What is not sure is a commented line."""
    from stillwatch.lab import inventory, proposal

    found = inventory.take(folder)
    path = out or Path(f"{proposal.name_of(Path(folder.resolve().name))}.toml")
    if path.exists():
        raise UserError(f"{path}: is there already; name another with --out")
    seen, chosen = inventory.glance(found), next((group for group in found.groupings if group.sure), None)
    wanted = proposal.safe_ones(safe or [], found)
    for line in proposal.words(found, seen):
        print(line)
    if not yes and sys.stdin.isatty() and sys.stdout.isatty():
        if not wanted:
            said = typer.prompt(
                "which labels raise no alarm? (a comma between)", ", ".join(proposal.likely_safe(found))
            )
            wanted = proposal.safe_ones([word.strip() for word in said.split(",") if word.strip()], found)
        for guess in found.groupings:
            if not guess.sure and typer.confirm(
                f"{proposal.plain(guess.evidence)}: is each in one split alone?", False
            ):
                chosen = guess
                break
    text = proposal.recipe(found, seen, path, wanted, chosen)
    check(tomllib.loads(text), str(path))
    with atomic(path) as draft:
        draft.write_text(text, encoding="utf-8")
    print(f"\nwritten: {path}; read it, then:\n  " + "\n  ".join(proposal.next_commands(path)))


@app.command(epilog="Example: stillwatch schema watch > watch.schema.json; a first line '#:schema watch.schema.json'")
def schema(
    what: Annotated[Literal["recipe", "watch"], typer.Argument(metavar="recipe|watch", help="which file")],
) -> None:
    """Print the JSON Schema of a recipe or a watch.toml: editors complete and check keys by it."""
    print((SCHEMAS / f"{what}.json").read_text(encoding="utf-8"), end="")
