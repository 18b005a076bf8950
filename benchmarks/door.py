"""A bundle's figures and its bench -> results/door.csv: `python -m benchmarks.door BUNDLE RUN --recipe driving`.

In: a bundle with its bench.json (`stillwatch bench`), and the run that it came from. Out: one row an entrant and thread
count, laid over those of the same recipe, run and fold. What the bench and the judge said, so that a row says the same.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from stillwatch import bundle, metrics
from stillwatch.errors import UserError
from stillwatch.run import Run

COLUMNS = (
    "recipe", "run", "kind", "fold", "entrant", "runtime", "precision", "shape", "threads", "p50_ms", "p95_ms",
    "p99_ms", "min_ms", "by_8_per_s", "peak_mb", "start_s", "bytes", "params", "valid_macro_f1", "test_macro_f1",
    "test_groups", "fastest", "overhead", "bundle_bytes", "cpu", "load", "commit", "note",
)  # fmt: skip
KEY = ("recipe", "run", "fold")


def rows_of(folder: Path, run: Run, recipe: str, note: str) -> list[dict[str, Any]]:
    """One row an entrant and thread count. Raises UserError where bundle, bench and run do not belong together."""
    made, place = bundle.load(folder), folder / "bench.json"
    if not place.is_file():
        raise UserError(f"{place}: missing; run `stillwatch bench {folder}` first")
    report = json.loads(place.read_text(encoding="utf-8"))
    if made.manifest.run["id"] != run.path.name or report["bundle"]["run"] != run.path.name:
        raise UserError(f"{folder}: came from {made.manifest.run['id']}, its bench from {report['bundle']['run']}")
    test, groups = _tested(run.path)
    int8 = made.manifest.run["int8"]
    tested = {bundle.INT8: _tested(run.path.parent / int8)[0]} if int8 else {}
    whole = sum(entry.bytes for entry in made.manifest.files.values()) + (folder / bundle.MANIFEST).stat().st_size
    machine = report["machine"]
    about = {
        "recipe": recipe, "run": run.path.name, "kind": run.info.kind, "fold": run.recipe.data.fold,
        "shape": "x".join(map(str, made.manifest.input.shape)), "cpu": machine["cpu"],
        "load": machine["load_before"][0], "commit": (run.info.commit or "").rstrip("+"), "note": note,
    }  # fmt: skip
    rows = []
    for one in report["rows"]:
        if not one["latency_ms"]:
            continue
        ours = one["kind"] != "rival"
        file = one["runs"]["file"] if one["runs"] else one["name"]  # the detector runs one of the files
        row = about | {
            "entrant": one["name"], "runtime": one["runtime"], "precision": one["precision"], "threads": one["threads"],
            **{f"{key}_ms": one["latency_ms"][key] for key in ("p50", "p95", "p99", "min")},
            "by_8_per_s": one["throughput"], "peak_mb": one["memory_mb"], "start_s": one["load_s"],
            "bytes": one["bytes"], "params": one["params"], "fastest": int(one["fastest"]), "overhead": one["overhead"],
            "valid_macro_f1": ((one["figures"] or {}).get("valid") or {}).get("macro_f1"),
            "test_macro_f1": tested.get(file, test) if ours else None, "test_groups": groups if ours else None,
            "bundle_bytes": whole if ours else None,
        }  # fmt: skip
        rows.append({key: f"{v:.4g}" if isinstance(v := row[key], float) else v for key in COLUMNS})
    return rows


def _tested(path: Path) -> tuple[float, int]:
    """Macro-F1 of a run's test split, and how many groups that has."""
    with np.load(path / "predictions" / "test.npz") as said:
        return metrics.macro_f1(said["y"], said["p"]), metrics.clusters(said["group"])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--recipe", required=True, help="the recipe's file under recipes/, without .toml")
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path, default=Path("results/door.csv"))
    words = parser.parse_args()
    try:
        rows = rows_of(words.bundle, Run.open(words.run), words.recipe, words.note)
    except UserError as mistake:
        raise SystemExit(f"error: {mistake}") from None
    record(rows, words.out, COLUMNS, KEY)
    print(f"{words.out}: {len(rows)} rows of {words.run}")


if __name__ == "__main__":
    main()
