"""Student, face and both on people never met: `python -m benchmarks.fusion CROSSVAL --kind distilled --record NOTE`.

In: a crossval with all folds of a seed, or more; --face: one of nets that see the face alone. Out: student alone,
signals alone, student + signals, student + face net + signals, the driver's normal as it goes and over the whole
recording; head and shares fitted without the driver. Rows into results/eyes.csv.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import record
from stillwatch import metrics, predictions
from stillwatch.errors import UserError
from stillwatch.lab import faces
from stillwatch.lab.data.dataset import dataset_of
from stillwatch.lab.export.fusion import deviations, face_net, left_out
from stillwatch.run import Run, commit, runs

KEY = ("recipe", "student", "answers", "normal", "driver")


def complete(folder: Run, kind: str) -> dict[int, list[Run]]:
    """By seed, where each fold is done. kind: distilled+ for those with unlabelled frames. Raises UserError."""
    found: dict[int, dict[int, Run]] = {}
    for run in runs(folder.path):
        name = run.info.kind + ("+" if run.recipe.data.unlabelled else "")
        if (name, run.info.status) == (kind, "done") and predictions.has(run, "test"):
            found.setdefault(run.recipe.fit.seed, {})[run.recipe.data.fold] = run
    whole = {seed: list(of.values()) for seed, of in found.items() if len(of) == folder.recipe.data.folds}
    if not whole:
        raise UserError(f"{folder.path}: no seed of {kind} has all its {folder.recipe.data.folds} folds")
    return whole


def answers(
    folder: Run, kind: str, beside: Run | None = None
) -> Iterator[tuple[str, str, NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """(answers, normal, group (N,), y (N,), p (S,N,K)). Raises UserError."""
    seeds = complete(folder, kind)
    data = dataset_of(next(iter(seeds.values()))[0])
    table, samples, count = faces.faces(data.samples, data.store.content), data.samples, len(data.samples)
    # over the whole recording: the same normal, as it stands in a second lap
    later = [replace(one, sequence=f"~{one.sequence}") for one in samples]
    twice = faces.FaceTable(*(np.concatenate([part, part]) for part in table))
    told = {"as it goes": deviations(table, samples), "whole": deviations(twice, [*samples, *later])[count:]}
    row = {sample.id: place for place, sample in enumerate(samples)}
    said: dict[tuple[str, str], list[NDArray[Any]]] = {}
    for number in sorted(seeds):
        whole = predictions.joined([predictions.read(run, "test") for run in seeds[number]])
        whole = whole.take(np.argsort(whole.id))
        id, group, y, p = whole.id, whole.group.astype(str), whole.y, whole.p
        said.setdefault(("student alone", ""), []).append(p)
        net = face_net(beside, seeds[number][0])[1] if beside else {}
        for normal, of in told.items():
            seen = [of[row[one]] for one in id]
            heard = [face and face._replace(said=net.get(one, ())) for face, one in zip(seen, id.tolist(), strict=True)]
            for what, faced in (("student", seen), ("student + face net", heard))[: 1 + bool(beside)]:
                found = left_out(y, p, group, faced)
                if isinstance(found, str):
                    raise UserError(f"{folder.path}: {found}")
                said.setdefault((f"{what} + signals", normal), []).append(found.fused)
            face = np.exp(found.face)
            said.setdefault(("signals alone", normal), []).append(face / face.sum(1, keepdims=True))
    for (what, normal), stack in said.items():
        yield what, normal, group, y, np.stack(stack)


def rows_of(folder: Run, kind: str, note: str, beside: Run | None = None) -> Iterator[dict[str, Any]]:
    """One row for all drivers pooled, their mean, and each."""
    labels, alone = folder.recipe.labels, np.empty(0)
    for what, normal, group, y, p in answers(folder, kind, beside):
        alone = p if what == "student alone" else alone
        people = np.unique(group)
        each = {one: _figures(y[group == one], p[:, group == one], labels) for one in people}
        mean = {key: float(np.mean([of[key] for of in each.values()])) for key in next(iter(each.values()))}
        ends = metrics.interval(["macro_f1"], y, p, group)
        gain = metrics.paired(y, alone, p, group)  # in macro-F1, on the student alone
        low, high = ends["macro_f1"] or (None, None)
        more, most = gain.ci95 or (None, None)
        bounds = {"macro_f1_low": low, "macro_f1_high": high, "gain": gain.difference, "gain_low": more}
        bounds |= {"gain_high": most}
        pooled = _figures(y, p, labels) | bounds
        for driver, of in {"pooled": pooled, "mean": mean, **each}.items():
            count = int((group == driver).sum()) if driver in each else len(y)
            about = {"recipe": folder.recipe.name, "student": kind, "answers": what, "normal": normal, "driver": driver}
            counts = {"folds": folder.recipe.data.folds, "seeds": len(p), "samples": count}
            row = about | counts | dict.fromkeys(bounds) | of
            row |= {"commit": (commit() or "").rstrip("+"), "note": note}
            yield {key: f"{v:.4f}" if isinstance(v, float) else v for key, v in row.items()}


def _figures(y: NDArray[Any], p: NDArray[Any], labels: tuple[str, ...]) -> dict[str, float]:
    """Means of the seeds."""
    found: dict[str, float] = {"accuracy": 0.0, "macro_f1": 0.0}
    for q in p:
        table = metrics.confusion(y, q)
        f1 = 2 * np.diag(table) / np.maximum(table.sum(0) + table.sum(1), 1)
        of = {"accuracy": metrics.accuracy(y, q), "macro_f1": metrics.macro_f1(y, q)}
        of |= {f"f1_{label}": float(value) for label, value in zip(labels, f1, strict=True)}
        found = {key: found.get(key, 0.0) + value / len(p) for key, value in of.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("crossval", type=Path)
    parser.add_argument("--kind", default="alone", help="alone, distilled, distilled+ (unlabelled frames) or teacher")
    parser.add_argument("--record", metavar="NOTE", help="rows into results/eyes.csv")
    parser.add_argument("--face", type=Path, metavar="CROSSVAL", help="of data.region=face")
    asked = parser.parse_args()
    try:
        beside = Run.open(asked.face) if asked.face else None
        rows = list(rows_of(Run.open(asked.crossval), asked.kind, asked.record or "", beside))
    except UserError as mistake:
        raise SystemExit(f"error: {mistake}") from None
    shown = (*KEY[2:], "accuracy", "macro_f1", "macro_f1_low", "macro_f1_high", "gain", "f1_SleepyDriving")
    for row in rows:
        print(*(row.get(key) for key in shown))
    if asked.record is not None:
        record(rows, Path("results") / "eyes.csv", tuple(rows[0]), KEY)


if __name__ == "__main__":
    main()
