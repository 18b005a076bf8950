"""Adapt: a student learns on from one new person or camera, under its teacher and a guard."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stillwatch import metrics
from stillwatch.errors import UserError, nearest
from stillwatch.lab.data.dataset import Dataset, LazyRows, Rows, dataset_of, eval_arrays, load_dataset
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.training import pipeline, runs
from stillwatch.lab.training.losses import needs_teacher
from stillwatch.lab.training.runs import Predict
from stillwatch.predictions import predict, save_predictions
from stillwatch.run import NO_PROGRESS, Adapted, Progress, Run

STUDENTS = ("distilled", "alone", "narrow", "pruned", "adapted")
COLLAPSED = 0.5  # of the classes told apart on these frames by the teacher, or without one by the student before
PRIOR = 0.5  # weight of the statistics that a batch norm had (a prior, as in Schneider et al. 2020, arXiv 2006.16971)


def adapt(run: Run, to: str, progress: Progress = NO_PROGRESS, name: str = "") -> Run:
    """A run of kind "adapted": the student after recipe.adapt on each film's beginning, judged on its end.

    to: a folder, film or csv, or a group of the run's test split. name: what `to` is called. Raises UserError where it
    collapses, forgets too much, or has no teacher.
    """
    # Where labels are known, the answers go into predictions/before.npz and adapted.npz, never into a test's: the
    # person is no longer new
    runs.require_finished(run, STUDENTS, "student")
    place, recipe = Path(to), run.recipe
    aside = {"unlabelled": place if place.exists() else None}
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=aside)})
    asked, plan, teacher = recipe.adapt, recipe.fit_in("adapt"), runs.teacher_of(run)
    if asked.what == "all" and not (plan.unlabelled and any(map(needs_teacher, plan.loss))):
        raise UserError(
            f"--to {to}: nothing would be learnt from it: fit.unlabelled = {plan.unlabelled:g}, and fit.loss needs a "
            "part that hears a teacher, such as kd; set them in [adapt.fit]"
        )
    if teacher is None and asked.what == "all":
        teacher = runs.newest_teacher(recipe, run.path.parent)
    whole, accelerator = load_dataset(recipe, progress), pipeline.device(plan)
    if whole.store.fingerprint != run.info.fingerprint:
        dataset_of(run, progress)  # says what has changed
    learnt, later = _parts(whole, to, asked.part)
    few = np.random.default_rng(plan.seed).permutation(whole.rows["train"])[: asked.steps * plan.batch]
    data = replace(whole, rows=whole.rows | {"train": few}, unlabelled=(learnt,))
    net, teacher_net = runs.load_net(run).to(accelerator.device), runs.load_teacher(teacher) if teacher else None
    about = {"parent": run.path.name, "teacher": teacher.path.name if teacher else None, "seed": plan.seed}
    made = Run.create(recipe, "adapted", run.path.parent, run.text, cost=run.info.cost, **about)
    runs.write_audit(made, data)
    with runs.recording_failure(made, accelerator):
        mine = runs.predictor(net)
        before = [_said(mine, part) for part in (learnt, later)]
        theirs = None
        if teacher_net:
            hears = runs.predictor(teacher_net.to(accelerator.device))
            theirs = [_said(hears, *part.for_teacher(part.rows["train"], progress)) for part in (learnt, later)]
        if asked.what == "all":
            step = pipeline.build_step(net, data, teacher_net, plan)
            pipeline.train(step, data, teacher_net, plan, made, accelerator, progress)
        else:
            settle(net, learnt, plan.batch)
            made.save("best.pt", lambda draft: torch.save({"net": net.state_dict()}, draft))
        after = [_said(mine, part) for part in (learnt, later)]
        best = pipeline.validator(whole, net, accelerator, progress)(net)
        _guard((theirs or before)[0], after[0], 100 * (run.info.best["macro_f1"] - best["macro_f1"]), asked.max_drop)
        runs.save_split_predictions(made, whole, mine, progress, ["valid"])
        answers = {"before": before[1], "adapted": after[1]} | ({"teacher": theirs[1]} if theirs else {})
        found = _judged(name or to, made, whole, learnt, later, answers)
        made.finish(best={"epoch": 1, **best}, epochs=len(made.history()), adapted=found)
    progress.say(found.told)
    return made


def _parts(whole: Dataset, to: str, part: float) -> tuple[Dataset, Dataset]:
    """Each film's beginning, and the rest, unlabelled. A still's class stands for its film."""
    base = next((one for one in whole.unlabelled if one.aside), None)
    if base is None:
        tested = {whole.samples[row].group for row in whole.rows["test"]}
        if to not in tested:
            raise UserError(f"--to {to}: no such file, and no group of the test split{nearest(to, tested)}")
        own = [row for row in whole.rows["test"] if whole.samples[row].group == to]
        base = replace(whole, y=np.full(len(whole.y), -1), unlabelled=(), rows={"train": np.array(own)})
    films: dict[str, list[int]] = defaultdict(list)
    key = lambda row: (base.samples[row].time, base.samples[row].id)  # noqa: E731
    for row in sorted(base.rows["train"].tolist(), key=key):
        films[base.samples[row].sequence or base.samples[row].label].append(row)
    first, rest = list[int](), list[int]()
    for rows in films.values():
        cut = round(part * len(rows))
        first, rest = first + rows[:cut], rest + rows[cut:]
    if not first or not rest:
        raise UserError(
            f"--to {to}: {len(first) + len(rest)} frames are too few to learn from some and judge on others"
        )
    return tuple(replace(base, rows={"train": np.array(rows)}) for rows in (first, rest))  # type: ignore[return-value]


def _said(mine: Predict, part: Dataset, rows: Rows | None = None) -> NDArray[np.float32]:
    x = LazyRows(part.store.pixels, part.rows["train"] if rows is None else rows)
    return predict(mine, (x[slice(at, at + 64)] for at in range(0, len(x), 64)))


@torch.no_grad()
def settle(net: Classifier, part: Dataset, batch: int) -> None:
    """Batch norms' statistics become the mean of their own and part's."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise UserError(f"adapt.what = 'norms': net {net.name} has no batch norm; take adapt.what = 'all'")
    device, old = next(net.parameters()).device, [(norm.running_mean, norm.running_var) for norm in norms]
    momentum = [norm.momentum for norm in norms]
    net.eval()
    for norm, (mean, var) in zip(norms, old, strict=True):
        norm.running_mean, norm.running_var = torch.zeros_like(mean), torch.ones_like(var)  # type: ignore[arg-type]
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    rows = np.random.default_rng(0).permutation(part.rows["train"])
    for start in range(0, max(1, len(rows) - len(rows) % batch), batch):
        net(part.picture(rows[start : start + batch]).to(device))
    for norm, (mean, var), pace in zip(norms, old, momentum, strict=True):
        norm.running_mean.lerp_(mean, PRIOR)  # type: ignore[union-attr, arg-type]
        norm.running_var.lerp_(var, PRIOR)  # type: ignore[union-attr, arg-type]
        norm.momentum = pace
    net.eval()


def _guard(reference: NDArray[np.float32], after: NDArray[np.float32], forgot: float, most: float) -> None:
    def classes(p: NDArray[np.float32]) -> float:
        """How many, by the mean answer's entropy."""
        mean = metrics.normalised(p).mean(0)
        return float(np.exp(-(mean * np.log(np.maximum(mean, 1e-9))).sum()))

    now, wanted = classes(after), classes(reference)
    if not np.isfinite(after).all() or now - 1 < COLLAPSED * (wanted - 1):
        raise UserError(
            f"adapted: refused: its answers collapse: on the frames it learnt from it tells {now:.1f} classes apart, "
            f"where {wanted:.1f} are wanted; take fewer adapt.steps, or adapt.what = 'norms'"
        )
    if forgot > most:
        raise UserError(
            f"adapted: refused: it loses {forgot:.1f} points of macro-F1 on validation, adapt.max_drop = {most:g}"
        )


def _judged(
    to: str, made: Run, whole: Dataset, learnt: Dataset, later: Dataset, answers: dict[str, NDArray[np.float32]]
) -> Adapted:
    rows, figures = later.rows["train"], dict[str, dict[str, float]]()
    names = {key: p.argmax(1) for key, p in answers.items()}
    alike = {key: float((names[key] == names["teacher"]).mean()) for key in answers if "teacher" in answers}
    if not later.aside:
        samples, y = [later.samples[row] for row in rows], whole.y[rows]
        arrays = eval_arrays(samples, np.arange(len(y)), y)
        for key in ("before", "adapted"):
            save_predictions(made, key, answers[key].__getitem__, arrays)
            figures[key] = {
                "accuracy": metrics.accuracy(y, answers[key]),
                "macro_f1": metrics.macro_f1(y, answers[key]),
            }
    return Adapted(
        to=to,
        learnt=len(learnt.rows["train"]),
        later=len(rows),
        disagreement=float((names["adapted"] != names["before"]).mean()),
        teacher_before=alike.get("before"),
        teacher_after=alike.get("adapted"),
        before=figures.get("before", {}),
        after=figures.get("adapted", {}),
    )
