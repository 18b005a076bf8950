"""Threshold and temperature on people never met: `python -m benchmarks.thresholds CROSSVAL --record NOTE`.

In: a crossval with all folds of a seed, or more. Out: each net's false alarms and calibration error on its test people,
once as fitted on its own validation people, once on what the other folds' nets answer. Rows: results/thresholds.csv.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fusion import complete
from benchmarks.record import record
from stillwatch import metrics, predictions
from stillwatch.errors import UserError
from stillwatch.lab.export.calibration import Calibration
from stillwatch.run import Run, commit

KEY = ("recipe", "kind", "wanted", "fitted_on", "fold", "seed")


def rows_of(folder: Run, kind: str, wanted: float, note: str) -> Iterator[dict[str, Any]]:
    """Raises UserError where no seed has all folds."""
    every = [run for seed in complete(folder, kind).values() for run in seed]
    for run in sorted(every, key=lambda run: (run.recipe.data.fold, run.recipe.fit.seed)):
        export = run.recipe.export.model_copy(update={"false_alarms": wanted})
        recipe, fold = run.recipe.model_copy(update={"export": export}), run.recipe.data.fold
        head = getattr(recipe, run.side).net.head
        safe, test = [recipe.labels.index(label) for label in recipe.safe], predictions.read(run, "test")
        others = [predictions.read(one, "test") for one in every if one.recipe.data.fold != fold]
        for place, people, said in (
            ("validation", "known", [predictions.read(run, "valid")]),
            ("other folds", "new", others),
        ):
            whole = predictions.joined(said)
            fitted = Calibration(place, people, folder.path.name, whole.id, whole.group, whole.y, whole.p)
            temperature = fitted.temperature(head)["value"]
            point = fitted.operating(recipe, temperature, head)
            if point is None:
                raise UserError(f"{folder.path}: no label is safe, so there are no false alarms")
            p = metrics.apply_temperature(test.p, temperature, head)
            harmless = np.isin(test.y, safe)
            alarmed = metrics.alarm_score(p, safe) >= point["threshold"]
            yield {
                **{"recipe": recipe.name, "kind": kind, "wanted": wanted, "fitted_on": place},
                **{"fold": fold, "seed": recipe.fit.seed, "temperature": f"{temperature:.4f}"},
                "threshold": f"{point['threshold']:.4f}",
                "false_alarms": f"{alarmed[harmless].mean():.4f}",
                "recall": f"{alarmed[~harmless].mean():.4f}",
                "ece_before": f"{metrics.ece(test.y, test.p):.4f}",
                "ece_after": f"{metrics.ece(test.y, p):.4f}",
                "commit": (commit() or "").rstrip("+"),
                "note": note,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("crossval", type=Path)
    parser.add_argument("--kind", default="alone", help="alone, distilled, distilled+ (unlabelled frames) or teacher")
    parser.add_argument("--wanted", type=float, default=0.05, help="share of safe samples that may raise an alarm")
    parser.add_argument("--record", metavar="NOTE", help="rows into results/thresholds.csv")
    asked = parser.parse_args()
    try:
        rows = list(rows_of(Run.open(asked.crossval), asked.kind, asked.wanted, asked.record or ""))
    except UserError as mistake:
        raise SystemExit(f"error: {mistake}") from None
    for row in rows:
        print(*list(row.values())[3:-2])
    for place in ("validation", "other folds"):
        of = [row for row in rows if row["fitted_on"] == place]
        held = sum(float(row["false_alarms"]) <= 2 * asked.wanted for row in of)
        better = sum(float(row["ece_after"]) <= float(row["ece_before"]) for row in of)
        print(f"{place}: {held} of {len(of)} within twice the rate; calibration error not worse in {better}")
    if asked.record is not None:
        record(rows, Path("results") / "thresholds.csv", tuple(rows[0]), KEY)


if __name__ == "__main__":
    main()
