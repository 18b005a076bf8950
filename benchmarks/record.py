"""Figures of finished runs -> one row a model in results/results.csv: `python -m benchmarks.record RUN... --recipe R`.

In: runs of one recipe and split, several seeds and folds. Out: rows laid over those of the same recipe and split.
The judge's own figures, so that a row says what the report says.
"""

import argparse
import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillwatch.atomic import atomic
from stillwatch.errors import UserError
from stillwatch.evaluation.report.report import assess
from stillwatch.inference.timing import machine
from stillwatch.run import Run, commit

COLUMNS = (
    "recipe", "split", "model", "net", "folds", "seeds", "samples", "groups", "accuracy", "macro_f1", "macro_f1_low",
    "macro_f1_high", "interval", "spread", "auroc", "ece", "recall_at_1pct_fa", "clip_accuracy", "clip_macro_f1",
    "clip_auroc", "params", "macs", "commit", "note",
)  # fmt: skip
KEY = ("recipe", "split", "model", "folds", "seeds")


def rows_of(runs: list[Run], recipe: str, note: str) -> list[dict[str, Any]]:
    """One row a model. recipe: its file's name under recipes/."""
    report, _ = assess(runs)
    rows = []
    for name, model in report["models"].items():
        mine = [run for run in runs if run.path.name in {Path(r).name for r in model["runs"]}]
        side = mine[0].recipe.teacher if mine[0].info.kind == "teacher" else mine[0].recipe.student
        low, high = model["ci95"].get("macro_f1") or (None, None)
        clips = model.get("clips") or {}
        row = {
            "recipe": recipe, "split": mine[0].recipe.data.split, "model": name, "net": side.net.name,
            "folds": len(model["folds"]), "seeds": len(model["seeds"]), "samples": model["n"],
            "groups": model["groups"], "macro_f1_low": low, "macro_f1_high": high,
            "interval": None if low is None else "expanded",
            "spread": (model.get("spread") or {}).get("macro_f1"),
            "clip_accuracy": clips.get("accuracy"), "clip_macro_f1": clips.get("macro_f1"),
            "clip_auroc": clips.get("auroc"), "params": model["params"], "macs": model["macs"],
            "commit": (mine[0].info.commit or "").rstrip("+"), "note": note,
        }  # fmt: skip
        row |= {key: model.get(key) for key in ("accuracy", "macro_f1", "auroc", "ece", "recall_at_1pct_fa")}
        rows.append({key: f"{v:.4f}" if isinstance(v := row[key], float) else v for key in COLUMNS})
    return rows


def record(rows: list[dict[str, Any]], path: Path, columns: Sequence[str] = COLUMNS, key: Sequence[str] = KEY) -> None:
    """Lay the rows over the table's: a row with the same key is replaced."""
    old: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            old = list(csv.DictReader(file))
    new = {tuple(str(row[name]) for name in key) for row in rows}
    kept = [row for row in old if tuple(row[name] for name in key) not in new]
    with atomic(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows([*kept, *rows])


def record_row(name: str, row: dict[str, Any], note: str, key: Sequence[str] = ()) -> None:
    """A benchmark's figures as one row of results/NAME, with the commit and the machine they were measured on.

    key: columns that say which row it replaces; none: those of the figures that are words, and the note.
    """
    whole = {
        **{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()},
        "cpu": machine().cpu, "load": f"{os.getloadavg()[0]:.2f}", "commit": (commit() or "").rstrip("+"), "note": note,
    }  # fmt: skip
    named = tuple(key) or (*(k for k, v in row.items() if isinstance(v, str)), "note")
    record([whole], Path("results") / name, tuple(whole), named)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--recipe", required=True, help="the recipe's file under recipes/, without .toml")
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path, default=Path("results/results.csv"))
    words = parser.parse_args()
    try:
        rows = rows_of([Run.open(path) for path in words.runs], words.recipe, words.note)
    except UserError as mistake:
        raise SystemExit(f"error: {mistake}") from None
    record(rows, words.out)
    for row in rows:
        print(
            {key: row[key] for key in (*KEY, "accuracy", "macro_f1", "macro_f1_low", "macro_f1_high", "clip_accuracy")}
        )


if __name__ == "__main__":
    main()
