"""Replays -> one row each in results/replay.csv: `python -m benchmarks.replay BUNDLE REPLAY_FOLDER --film NAME`.

In: the folder that `stillwatch replay … --out` wrote, and its bundle. Out: a row laid over that of the same film, run
and rule. The judge's own figures, so that a row says what the command said.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.record import record
from stillwatch import bundle

COLUMNS = (
    "film", "recipe", "run", "fold", "rule", "threshold", "seconds", "frames", "incidents", "detected", "missed",
    "seconds_to_detect", "false_alarms", "safe_hours", "frame_accuracy", "frame_macro_f1", "commit", "note",
)  # fmt: skip
KEY = ("film", "run", "rule")


def row_of(made: bundle.Bundle, report: dict[str, Any], film: str, rule: str, note: str) -> dict[str, Any]:
    """rule: what --rule changed, "" where it is the bundle's own."""
    manifest, waits = made.manifest, report["seconds_to_detect"] or {}
    own = (manifest.operating or {}).get("threshold")
    asked = dict(part.split("=") for part in rule.split() if part)
    row = {
        "film": film, "recipe": manifest.name, "run": manifest.run["id"],
        "fold": manifest.run["recipe"]["data"]["fold"], "rule": rule, "threshold": float(asked.get("threshold", own)),
        "seconds": report["seconds"], "frames": report["frames"], "incidents": len(report["incidents"]),
        "detected": report["detected"], "missed": report["missed"], "seconds_to_detect": waits.get("median"),
        "false_alarms": report["false_alarms"]["count"], "safe_hours": report["false_alarms"]["safe_hours"],
        "frame_accuracy": report["frame_accuracy"], "frame_macro_f1": report["frame_macro_f1"],
        "commit": (manifest.run.get("commit") or "").rstrip("+"), "note": note,
    }  # fmt: skip
    return {key: f"{v:.4g}" if isinstance(v := row[key], float) else v for key in COLUMNS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("replay", type=Path, help="its folder, with replay.json")
    parser.add_argument("--film", required=True)
    parser.add_argument("--rule", default="", help="what --rule changed, such as threshold=0.6")
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path, default=Path("results/replay.csv"))
    asked = parser.parse_args()
    report = json.loads((asked.replay / "replay.json").read_text(encoding="utf-8"))
    row = row_of(bundle.load(asked.bundle), report, asked.film, asked.rule, asked.note)
    record([row], asked.out, COLUMNS, KEY)
    print(row)


if __name__ == "__main__":
    main()
