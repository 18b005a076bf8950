"""Temperature and threshold of a bundle, from people left out where a crossval is at hand. Trains nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from stillwatch import bundle, metrics, predictions
from stillwatch.errors import UserError
from stillwatch.lab.data.dataset import Dataset
from stillwatch.recipe import Recipe
from stillwatch.run import Run, runs


@dataclass(frozen=True)
class Calibration:
    """What temperature and threshold are fitted on."""

    split: str  # "valid" or "out of fold"
    people: str  # "new": in no training; "chosen": nor these, but the epoch was chosen on them; "known"
    source: str
    id: NDArray[np.str_]  # (N,)
    group: NDArray[np.str_]  # (N,)
    y: NDArray[np.int64]  # (N,)
    p: NDArray[np.float32]  # (N,K) as the head gave it

    def temperature(self, head: str) -> bundle.Temperature:
        """Of lowest loss; 1 where that would raise the calibration error."""
        value, before = metrics.temperature(self.y, self.p, head), metrics.ece(self.y, self.p)
        after = metrics.ece(self.y, metrics.apply_temperature(self.p, value, head))
        if after > before and self.split != "valid":
            value, after = 1.0, before
        return {"value": value, "ece_before": before, "ece_after": after, **self._about()}

    def operating(self, recipe: Recipe, temperature: float, head: str) -> bundle.OperatingPoint | None:
        """The threshold for export.false_alarms. New people: four in five stay within twice that rate."""
        safe, wanted = [recipe.labels.index(label) for label in recipe.safe], recipe.export.false_alarms
        p = metrics.apply_temperature(self.p, temperature, head)
        known, group = self.people == "known", self.group if self.people == "new" else None
        point: Any = metrics.operating_point(self.y, p, safe, wanted, group)
        if point is None:
            return None
        harmless = np.isin(self.y, safe)
        found = metrics.false_alarms(p[harmless], safe, point["threshold"], self.group[harmless])
        counts = {"safe": int(harmless.sum()), "others": int((~harmless).sum()), "groups": found.groups}
        bound = {"upper": None if known else found.upper, "worst": found.worst if found.groups > 1 else None}
        return point | {"wanted": wanted} | counts | bound | self._about()

    def _about(self) -> bundle.Origin:
        return {"split": self.split, "people": self.people, "source": self.source}


def on_validation(run: Run, data: Dataset) -> Calibration:
    """Raises UserError where the run kept no answers on it."""
    said = predictions.read(run, "valid")
    groups = {split: {data.samples[row].group for row in data.rows[split]} for split in ("train", "valid")}
    apart = "" not in groups["valid"] and not groups["train"] & groups["valid"]
    return Calibration("valid", "chosen" if apart else "known", run.path.name, said.id, said.group, said.y, said.p)


def out_of_fold(folder: Run, run: Run) -> Calibration:
    """What the nets of a crossval answer on the people that each has left out: all folds, all seeds.

    The nets are of the run's kind, or of the student that it came of. Raises UserError for another crossval than the
    run's.
    """
    place, recipe = folder.path, run.recipe
    if folder.info.kind != "crossval":
        raise UserError(f"{place}: a {folder.info.kind} run; `stillwatch crossval {recipe.name}` makes what is wanted")
    side, theirs = run.side, folder.recipe
    same = (recipe.labels, run.info.fingerprint, run.net.name)
    if same != (theirs.labels, folder.info.fingerprint, getattr(theirs, side).net.name):
        raise UserError(f"{place}: is of other labels, data or another {side} than {run.path.name}")
    found = [one for one in runs(place) if one.info.status == "done" and predictions.has(one, "test")]
    kind = next((k for k in (run.info.kind, "distilled", "alone") if any(one.info.kind == k for one in found)), "")
    if kind == "teacher" and side != "teacher":
        kind = ""
    found = [one for one in found if one.info.kind == kind]
    folds = {one.recipe.data.fold for one in found}
    wanted = {0} if recipe.data.split == "official" else set(range(recipe.data.folds))
    if missing := sorted(wanted - folds):
        raise UserError(f"{place}: no finished {kind or side} of fold {missing[0]}; run the same crossval again")
    said = predictions.joined([predictions.read(one, "test") for one in found])
    people = "new" if recipe.data.split == "grouped" else "known"
    seeds = len({one.info.seed for one in found})
    source = f"{place.name}: {kind}, {len(wanted)} folds, {seeds} seed{'s' * (seeds > 1)}"
    return Calibration("out of fold", people, source, said.id, said.group, said.y, said.p)


def reheated(source: Path, target: Path, factor: float) -> Path:
    """An ONNX file with the logits before its last softmax or sigmoid multiplied by `factor`. Raises UserError."""
    model = onnx.load(source)
    nodes, output = model.graph.node, model.graph.output[0].name
    last = next((n for n in reversed(nodes) if output in n.output and n.op_type in ("Softmax", "Sigmoid")), None)
    if last is None:
        raise UserError(f"{source.name}: does not end in a softmax or sigmoid; quantise the run again")
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "reheated.by"))
    nodes.insert(list(nodes).index(last), helper.make_node("Mul", [last.input[0], "reheated.by"], ["reheated"]))
    last.input[0] = "reheated"
    onnx.save(model, target)
    return target
