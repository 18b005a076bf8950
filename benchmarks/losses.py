"""Which loss is worth its key: `python -m benchmarks.losses RECIPE [KEY=VALUE …] --runs FOLDER --record NOTE`.

In: a recipe and its data. Out: the student under one teacher of one net a fold, once for each arm, fold and seed, with
the same budget; gain in macro-F1 on cross-entropy alone. Rows: results/losses.csv. Resumes: what is done is not redone.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from stillwatch import metrics, predictions, recipe
from stillwatch.cli.console import progress
from stillwatch.errors import UserError
from stillwatch.lab.training.losses import needs_teacher
from stillwatch.lab.training.pipeline import distil, teach
from stillwatch.lab.training.runs import RunOptions, finished_run, recipe_for
from stillwatch.recipe import Recipe
from stillwatch.registry import Spec
from stillwatch.run import Run, commit

KEY = ("recipe", "loss", "options", "ce")
# (a part beside cross-entropy, the weight of cross-entropy)
ARMS: tuple[tuple[dict[str, Any], float], ...] = (
    ({}, 1.0),
    *(({"name": "kd", "weight": 0.7, "temperature": t}, 0.3) for t in (1, 2, 4, 8)),
    ({"name": "kd", "weight": 0.7, "temperature": {"from": 1, "to": 8}}, 0.3),
    ({"name": "kd", "weight": 0.7, "temperature": {"from": 8, "to": 1}}, 0.3),
    ({"name": "kd", "weight": 0.3, "temperature": 2}, 0.7),
    ({"name": "kd", "weight": 1.0, "temperature": 2}, 0.0),
    *(({"name": name, "weight": 0.7}, 0.3) for name in ("dkd", "dist")),
    *(({"name": name, "weight": 1.0}, 1.0) for name in ("feature", "embedding", "attention")),
    ({"name": "attention", "weight": 1.0, "regions": "face"}, 1.0),
)


def arms_of(wanted: Recipe) -> Iterator[tuple[dict[str, str], tuple[Spec, ...]]]:
    """What an arm is called, and its fit.loss; cross-entropy with the recipe's own options."""
    specs = [{"name": one} if isinstance(one, str) else one for one in wanted.fit.loss]
    own = next(one for one in specs if one["name"] == "ce")
    for part, share in ARMS:
        if "regions" in part and not wanted.data.faces:
            continue
        if len(wanted.labels) == 2 and part.get("name") == "dkd":  # nothing to decouple
            continue
        if len(wanted.labels) == 2 and part.get("name") == "dist":  # two classes correlate by 1 or -1
            part = part | {"beta": 0}
        ce = ({**own, "weight": share},) if share else ()
        options = ", ".join(f"{key} {value}" for key, value in part.items() if key != "name")
        options = options.replace("{'from': ", "").replace(", 'to': ", " to ").replace("}", "")
        yield {"loss": part.get("name", "ce"), "options": options, "ce": str(share)}, (*ce, *([part] if part else []))


def run_of(wanted: Recipe, root: Path) -> Run:
    kind = "distilled" if any(map(needs_teacher, wanted.fit.loss)) else "alone"
    return finished_run(wanted, kind, root) or distil(wanted, RunOptions(root, progress=progress()), kind == "alone")


def rows_of(wanted: Recipe, folds: list[int], seeds: list[int], root: Path, note: str) -> Iterator[dict[str, Any]]:
    """One row an arm, yielded when its last run is done. Raises UserError."""
    teachers, alone = list[float](), list[tuple[Any, Any]]()
    for fold in folds:
        asked = recipe_for(wanted, fold, 0, "teacher")
        run = finished_run(asked, "teacher", root) or teach(asked, RunOptions(root, progress=progress()))
        test = predictions.read(run, "test")
        teachers.append(metrics.macro_f1(test.y, test.p))
    for about, loss in arms_of(wanted):
        plan = wanted.model_copy(update={"fit": wanted.fit.model_copy(update={"loss": loss})})
        runs = [[run_of(recipe_for(plan, fold, seed, "distilled"), root) for fold in folds] for seed in seeds]
        said = [[predictions.read(run, "test") for run in each] for each in runs]
        whole = [predictions.joined(each) for each in said]
        y, group, p = whole[0].y, whole[0].group, np.stack([one.p for one in whole])
        f1 = np.array([[metrics.macro_f1(one.y, one.p) for one in each] for each in said])  # (S,F)
        if not alone:
            alone.append((p, f1))
        gain, more = metrics.paired(y, alone[0][0], p, group), f1 - alone[0][1]
        low, high = gain.ci95 or (None, None)
        row: dict[str, Any] = {"recipe": wanted.name, **about, "folds": len(folds), "seeds": len(seeds)}
        row |= {"samples": len(y), "groups": len(np.unique(group))}
        row |= {"epochs": wanted.fit.epochs, "size": "x".join(map(str, wanted.data.hw))}
        row |= {"accuracy": float(np.mean([metrics.accuracy(y, q) for q in p])), "macro_f1": float(f1.mean())}
        row |= {"gain": gain.difference, "gain_low": low, "gain_high": high}
        row |= {"gain_worst": float(more.min()), "gain_best": float(more.max())}
        row |= {"teacher_macro_f1": float(np.mean(teachers)), "commit": (commit() or "").rstrip("+"), "note": note}
        yield {key: f"{v:.4f}" if isinstance(v, float) else v for key, v in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the short budget, say fit.epochs=2")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "losses")
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--record", metavar="NOTE", help="rows into results/losses.csv")
    asked = parser.parse_args()
    try:
        for row in rows_of(
            recipe.load(asked.recipe, asked.overrides), asked.folds, asked.seeds, asked.runs, asked.record or ""
        ):
            print(*list(row.values())[1:-2], flush=True)
            if asked.record is not None:
                record([row], Path("results") / "losses.csv", tuple(row), KEY)
    except UserError as mistake:
        raise SystemExit(f"error: {mistake}") from None


if __name__ == "__main__":
    main()
