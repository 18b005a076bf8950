"""Lineage: what a run came of, which baseline it has to beat, and what test it took.

In: runs, as folders with parents beside them. Out: runs, their plans, and short names for stages.
Called by the pool and what judges. It knows no prediction and no figure.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from stillwatch.errors import UserError
from stillwatch.recipe import Fit, Recipe
from stillwatch.run import Run, runs

KINDS = ("teacher", "alone", "distilled")
COMPRESSED = ("narrow", "pruned", "quantised")  # narrow: the baseline that pruning must beat
FoldSeed: TypeAlias = tuple[int, int]  # (fold, seed)
Given: TypeAlias = Mapping[str, Run]  # folder's name -> run, of those that are compared


def parent(run: Run) -> str:
    """The name of the folder that it was made from, "" where there is none."""
    return re.split(r"[/\\]", str(run.info.parent or ""))[-1]


def ancestors(run: Run, given: Given) -> list[Run]:
    """What it was made from, nearest first: of those given, or in a folder beside it; as far as they are there."""
    found: list[Run] = []
    while (name := parent(run)) and len(found) < 9:  # a chain is four long; a ring would have no end
        try:
            run = given.get(name) or Run.open(run.path.parent / name)
        except UserError:
            break
        found.append(run)
    return found


def side(run: Run) -> Literal["teacher", "student"]:
    """Whose net it is. A bundle's file says so itself, for its kind is its name."""
    return "teacher" if (run.info.side or run.info.kind) == "teacher" else "student"


def plan(run: Run, recipe: Recipe) -> Fit:
    """What a run of its kind trains by."""
    if run.info.kind == "pruned":
        return recipe.fit_in("prune")
    if run.info.kind == "quantised":
        return recipe.fit_in("quantise")
    return recipe.fit_of(side(run))


def cell(run: Run, recipe: Recipe) -> FoldSeed:
    """Which test it took, and which training of it this is."""
    fold = 0 if recipe.data.split == "official" else recipe.data.fold
    return fold, plan(run, recipe).seed if run.info.seed is None else run.info.seed


def test(run: Run, recipe: Recipe) -> dict[str, Any]:
    """What two runs must have in common, so that their figures may stand side by side."""
    data = recipe.data
    found: dict[str, Any] = {"labels": recipe.labels, "fingerprint": run.info.fingerprint, "data.split": data.split}
    if data.split != "official":  # the official test is the same whatever these say
        found |= {"data.seed": data.seed, "data.folds": data.folds}
    return found


def baseline(pruned: Run) -> Run | None:
    """The finished narrower student beside a pruned one that aimed nearest to its arithmetic, the newest of these."""
    recipe = pruned.recipe
    found = [
        run
        for run in runs(pruned.path.parent)
        if run.info.kind == "narrow"
        and run.info.status == "done"
        and run.recipe.name == recipe.name
        and cell(run, run.recipe) == cell(pruned, recipe)
    ]
    wanted = pruned.info.cost.get("macs", 0)
    return min(reversed(found), key=lambda run: abs((run.info.target or 0) - wanted), default=None)


def stage(run: Run, given: Given) -> str:
    """How it was compressed: "pruned-0.6", "quantised-pruned-0.6", "quantised-distilled"; else its kind."""
    kind = str(run.info.kind)
    if kind not in COMPRESSED:
        return kind
    line = ancestors(run, given) if kind != "narrow" else []
    asked = run.recipe.prune
    share = f"{asked.keep:g}" + (f"-size-{asked.size:g}" if asked.size < 1 else "")
    told = kind if kind == "quantised" else f"{kind}-{share}"
    of = stage(line[0], given) if line and (kind == "quantised" or line[0].info.kind in COMPRESSED) else ""
    return f"{told}-{of}" if of else told
