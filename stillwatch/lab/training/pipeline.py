"""Recipe -> run: audit, teacher, student alone or distilled. The loop itself is in loop.py."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator

from stillwatch import metrics
from stillwatch.errors import UserError
from stillwatch.lab.data import augment
from stillwatch.lab.data.dataset import Dataset, LazyRows, decoded, eval_arrays, load_dataset
from stillwatch.lab.data.reader import gather
from stillwatch.lab.models import classifier
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.models.ensemble import Ensemble, Teacher, by_validation
from stillwatch.lab.training import losses, trackers
from stillwatch.lab.training.inputs import InputPipeline, joined, worth_teaching
from stillwatch.lab.training.loop import BatchSource, EpochCallback, TrainStep, fit
from stillwatch.lab.training.losses import needs_teacher
from stillwatch.lab.training.runs import (
    TRAINED,
    RunOptions,
    check_teacher,
    check_weights,
    create_or_resume,
    finished_run,
    load_net,
    load_teacher,
    newest_teacher,
    predictor,
    recipe_for,
    recording_failure,
    require_finished,
    save_split_predictions,
    write_audit,
)
from stillwatch.predictions import EvalArrays, read, save_predictions
from stillwatch.recipe import Fit, Recipe, SideName
from stillwatch.registry import Spec
from stillwatch.run import NO_PROGRESS, Progress, Run

FIGURES = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "ece")  # of an epoch on validation


def inspect(recipe: Recipe, options: RunOptions) -> tuple[Run, Dataset]:
    """`stillwatch audit`: writes audit.json, split.csv."""
    data = load_dataset(recipe, options.progress)
    run = Run.create(recipe, "audit", options.root, options.source)
    write_audit(run, data)
    return run, data


def teach(recipe: Recipe, options: RunOptions) -> Run:
    """Train the recipe's teacher, or combine the runs of teacher.init, or teacher.students found or trained here.

    Resumes an interrupted run.
    """
    init = recipe.teacher.init
    if recipe.teacher.students:
        first = recipe.fit_of("student").seed
        each = [
            recipe_for(recipe, recipe.data.fold, seed, "alone")
            for seed in range(first, first + recipe.teacher.students)
        ]
        data = load_dataset(recipe, options.progress).store.fingerprint
        found = (None if options.fresh else finished_run(one, "alone", options.root, data) for one in each)
        made = [run or _train_run(one, "alone", None, options) for run, one in zip(found, each, strict=True)]
        return _combine(recipe, [run.path for run in made], options)
    if recipe.teacher.signals and not isinstance(init, tuple):  # beside the net's own run, which may be there
        bare = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"signals": 0.0})})
        try:
            net = newest_teacher(bare, options.root)
        except UserError:
            net = _train_run(bare, "teacher", None, options)
        return _combine(recipe, (net.path,), options)
    if isinstance(init, tuple):
        return _combine(recipe, init, options)
    return _train_run(recipe, "teacher", None, options)


def distil(recipe: Recipe, options: RunOptions, alone: bool = False) -> Run:
    """Train the student under its teacher; `alone`: the control, without the parts that need one."""
    if alone:
        return _train_run(recipe, "alone", None, options)
    plan = recipe.fit_of("student")
    if (plan.confidence or plan.balance) and not (recipe.data.unlabelled or recipe.data.labelled):
        raise UserError(
            "fit.confidence and fit.balance choose samples without label: there are none; set data.unlabelled = FOLDER "
            "or data.labelled = N, or leave them out"
        )
    if not any(map(needs_teacher, plan.loss)):
        names = ", ".join(spec if isinstance(spec, str) else str(spec.get("name")) for spec in plan.loss)
        raise UserError(
            f"fit.loss = {names}: nothing in it comes from a teacher: this would be the student alone. Add kd, as in "
            'fit.loss = [{name = "ce", weight = 0.3}, {name = "kd", weight = 0.7}], or use --alone'
        )
    return _train_run(recipe, "distilled", newest_teacher(recipe, options.root), options)


def _train_run(
    recipe: Recipe, kind: Literal["teacher", "alone", "distilled"], teacher: Run | None, options: RunOptions
) -> Run:
    # ---- what is asked
    side: SideName = "teacher" if kind == "teacher" else "student"
    plan = recipe.fit_of(side)
    accelerator = device(plan)
    progress = options.progress if accelerator.is_main_process else NO_PROGRESS

    # ---- the net (before the data: a wrong word in the recipe should not have to wait for them)
    torch.manual_seed(plan.seed)
    spec = getattr(recipe, side).net
    if spec.weights == "scratch":
        progress.say(f'net {spec.name}: weights = "scratch": it starts from random weights')
    net, seen = classifier.build_side(recipe, side), recipe.seen_by(side)
    augment.plan(plan.augment, plan.seed)
    losses_of(plan, teacher is not None, side)  # raises for a name that is none
    teacher_net = load_teacher(teacher) if teacher else None

    # ---- data (one process decodes, the others find it done) and losses
    with accelerator.main_process_first():
        data = load_dataset(seen, progress)
    check_weights(spec, data)
    if teacher:
        check_teacher(teacher, data)
    step = build_step(net, data, teacher_net, plan, side)

    # ---- the run: a new one, or one that was cut off
    run = create_or_resume(recipe, kind, teacher, data, accelerator, options)
    if accelerator.is_main_process:
        cost = classifier.cost(net, seen.data.hw, seen.data.channels)
        theirs = teacher.info.cost if teacher else {}
        run.note(cost=cost, teacher_cost=theirs, processes=accelerator.num_processes)
        words = f"under {teacher.path}" if teacher else ""
        for line in filter(None, (words, run.info.above_teacher)):
            progress.say(line)

    # ---- fit, and judge the epoch that was kept
    with recording_failure(run, accelerator):
        best = train(step, data, teacher_net, plan, run, accelerator, progress)
        if accelerator.is_main_process:
            save_split_predictions(run, data, predictor(net), progress)
            run.finish(best=best, epochs=len(run.history()))
    accelerator.wait_for_everyone()
    return run


def _combine(recipe: Recipe, paths: Sequence[Path], options: RunOptions) -> Run:
    """A teacher made of finished runs that see the same pixels."""
    seen, members = recipe.seen_by("teacher"), [Run.open(path) for path in paths]
    given = recipe.teacher.weights
    if isinstance(given, tuple) and (len(given) != len(paths) or min(given) < 0 or not 0 < sum(given) < math.inf):
        raise UserError(f"teacher.weights = {list(given)}: one number from 0 up for each of {len(paths)} runs")
    data, accelerator = load_dataset(seen, options.progress), device(recipe.fit_of("teacher"))
    for member in members:
        require_finished(member, TRAINED, "run with a net")
        asked = [(one.labels, one.data.moments, one.data.gray) for one in (member.seen, seen)]
        if asked[0] != asked[1]:
            raise UserError(f"teacher.init = {member.path}: has other labels or sees other moments than this teacher")
        if member.path.parent.resolve() != Path(options.root).resolve():
            raise UserError(f"teacher.init = {member.path}: the runs of one teacher lie in one folder, {options.root}")
        check_teacher(member, data)
    names = [member.path.name for member in members]
    run = create_or_resume(recipe, "teacher", None, data, accelerator, options, members=names)
    with recording_failure(run, accelerator):
        nets = [load_net(member).to(accelerator.device) for member in members]
        rows, teacher = data.rows["valid"], recipe.teacher
        with torch.inference_mode():
            batches = (data.picture(rows[at : at + 64]).to(accelerator.device) for at in range(0, len(rows), 64))
            logits = torch.cat([torch.stack([net(x).logits.double().cpu() for net in nets]) for x in batches], 1)
        weights = teacher.weights if isinstance(teacher.weights, tuple) else ()
        if teacher.weights == "validation":
            groups, y = [data.samples[row].group for row in rows], torch.from_numpy(data.y[rows])
            weights, why = by_validation(logits.clone(), y, groups, teacher.average, nets[0].kind)
            options.progress.say(f"teacher.weights: equal ones: {why}" if why else f"teacher.weights = {weights}")
        run.note(weights=list(weights))
        net = Ensemble(nets, weights, teacher.average).eval().to(accelerator.device)
        save_split_predictions(run, data, predictor(net), options.progress)
        if teacher.signals:
            _tell(run, recipe, options.progress)
        valid = read(run, "valid")
        found = metrics.scores(valid.y, valid.p, recipe.labels, recipe.safe)
        figures = {name: found[name] for name in FIGURES}
        named = logits.argmax(2)
        cost = {key: sum(member.info.cost[key] for member in members) for key in members[0].info.cost}
        run.note(cost=cost, disagreement=float((named != named[0]).any(0).double().mean()))
        run.finish(best={"epoch": 0, **figures}, epochs=0)
    return run


def _tell(run: Run, recipe: Recipe, progress: Progress) -> None:
    from stillwatch.lab.export.fusion import face_logs  # and with it a runtime, only where it is asked for

    data = load_dataset(recipe, progress)  # the student's samples: a face is read once for both
    place, told = {sample.id: row for row, sample in enumerate(data.samples)}, face_logs(data, data, progress)
    for split in ("valid", "test"):
        said = read(run, split)
        logs = np.stack([told[place[id]] if id in place else np.zeros(said.p.shape[1]) for id in said.id.tolist()])
        p, rows = metrics.normalised(said.p * np.exp(recipe.teacher.signals * logs)), np.arange(len(said))
        arrays = EvalArrays(rows, said.id.tolist(), said.group.tolist(), said.sequence.tolist(), said.y)
        save_predictions(run, split, p.__getitem__, arrays)
        if split == "valid":
            alone, both = metrics.macro_f1(said.y, said.p), metrics.macro_f1(said.y, p)
            progress.say(f"{run.path}: macro-F1 on validation {both:.3f} with the face's signals, {alone:.3f} without")


def on_other_data(run: Run, overrides: Sequence[str], out: Path | None, progress: Progress = NO_PROGRESS) -> Run:
    """A finished run's answers for all samples of other data with the same labels.

    overrides: of [data]; without data.group= there are no groups. Raises UserError for what it was trained on.
    """
    require_finished(run, TRAINED, "run with a net")
    recipe = run.amended(overrides, ("data",)).recipe
    if not any(override.startswith("data.group") for override in overrides):
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"group": None})})
    seen = recipe.seen_by(run.side)
    net, store = load_net(run), decoded(gather(seen), seen.data, progress)
    if store.fingerprint == run.info.fingerprint:
        raise UserError(f"--on: data.root = '{recipe.data.root}': what {run.path} was trained on; name other data")
    path, about = out or run.path / f"on-{recipe.data.root.name or 'other'}", {"recipe": recipe.model_dump(mode="json")}
    other = Run(path, run.info.changed(id=path.name, parent=run.path.name, fingerprint=store.fingerprint, **about))
    other.note()
    y = [recipe.labels.index(sample.label) for sample in store.samples]
    arrays = eval_arrays(store.samples, LazyRows(store.pixels, np.arange(len(y))), y)
    save_predictions(other, "test", predictor(net), arrays, progress=progress)
    return other


def device(plan: Fit) -> Accelerator:
    """Raises UserError for a missing GPU or tracker."""
    trackers.check(plan.track)
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise UserError("fit.device = 'cuda': PyTorch finds no GPU on this machine; set fit.device = 'auto' or 'cpu'")
    return Accelerator(cpu=plan.device == "cpu", mixed_precision="no" if plan.precision == "fp32" else "bf16")


def losses_of(plan: Fit, taught: bool, side: SideName = "student") -> tuple[Spec, ...]:
    """plan.loss; without a teacher only the parts that need none, with weights scaled to a sum of 1."""
    if taught:
        return plan.loss
    alone = [spec for spec in plan.loss if not needs_teacher(spec, side == "teacher")]
    kept = [{"name": spec} if isinstance(spec, str) else spec for spec in alone]
    total = sum(float(spec.get("weight", 1.0)) for spec in kept)
    if total <= 0:
        return ("ce",)
    return tuple(spec | {"weight": float(spec.get("weight", 1.0)) / total} for spec in kept)


def build_step(
    net: Classifier, data: Dataset, teacher_net: Teacher | None, plan: Fit, side: SideName = "student"
) -> TrainStep:
    """Raises UserError for an impossible loss or map."""
    labels = data.recipe.labels
    task = losses.Task(
        labels=len(labels),
        names=labels,
        counts=tuple(np.bincount(data.y[data.rows["train"]], minlength=len(labels)).tolist()),
        head=data.recipe.student.net.head if teacher_net else net.kind,
        student=losses.Shape(net.dim, net.channels),
        teacher=losses.Shape(teacher_net.dim, teacher_net.channels) if teacher_net else None,
    )
    step = TrainStep(net, losses.parts(losses_of(plan, teacher_net is not None, side), task))
    net.check(step.maps)
    region = data.recipe.data.region or data.recipe.teacher.data.get("region")
    if region and (step.maps or step.regions):
        raise UserError(
            f'fit.loss: feature and attention compare places in the picture, and one side sees region = "{region}" '
            "alone; use kd, dkd, dist or embedding"
        )
    if step.regions and not data.recipe.data.faces:
        raise UserError("fit.loss.attention.regions: it needs to know where faces are; set data.faces = true")
    return step


def train(
    step: TrainStep,
    data: Dataset,
    teacher_net: Teacher | None,
    plan: Fit,
    run: Run,
    accelerator: Accelerator,
    progress: Progress = NO_PROGRESS,
    after: EpochCallback | None = None,
) -> dict[str, Any]:
    """Fit any net and load the kept epoch's weights. Returns its figures.

    run: gets best.pt, last.pt and metrics.jsonl; an interrupted one resumes. after: as in fit.
    """
    step.to(accelerator.device)
    parts = (data, *(data.unlabelled if teacher_net and plan.unlabelled else ()))
    inputs = [InputPipeline(part, step, teacher_net, plan, accelerator, progress) for part in parts]
    source = BatchSource(len(data.rows["train"]), partial(joined, inputs))
    if teacher_net and data.recipe.teacher.signals:
        from stillwatch.lab.export.fusion import face_logs

        for part in inputs:
            logs = data.recipe.teacher.signals * face_logs(data, part.data, progress)[part.train]
            part.told = torch.from_numpy(logs).to(accelerator.device, torch.float32)
    if len(inputs) > 1:
        rows, about = worth_teaching(inputs[1:], plan, source.count)
        source = replace(source, unlabelled=rows)
        if accelerator.is_main_process:
            run.note(unlabelled=about)
            named = ", ".join(f"{count:,} {label}" for label, count in about.named.items())
            progress.say(f"{about.used:,} of {about.samples:,} samples without label are taught as {named}")
    judge = validator(data, step.net, accelerator, progress)
    with trackers.tracked(accelerator, plan, run):
        best = fit(step, source, judge, plan, run, accelerator, progress, after)
    kept = torch.load(run.path / "best.pt", map_location=accelerator.device, weights_only=True)
    step.net.load_state_dict(kept["net"])
    return best


def validator(
    data: Dataset, net: Teacher, accelerator: Accelerator, progress: Progress
) -> Callable[[Teacher], dict[str, float]]:
    """net -> validation figures; all processes share the split."""
    rows = data.rows["valid"]
    share = rows[accelerator.process_index :: accelerator.num_processes]
    longest = -(-len(rows) // accelerator.num_processes)
    share = np.concatenate([share, rows[: longest - len(share)]])  # gather wants equal lengths
    starts = range(0, len(share), 128)
    frozen = None
    if isinstance(net, Classifier) and net.frozen_steps:
        with torch.inference_mode():
            frozen = [net.frozen_forward(data.picture(share[s : s + 128]).to(accelerator.device)) for s in starts]

    def judge(net: Teacher) -> dict[str, float]:
        net.eval()
        with torch.inference_mode():
            said = []
            for number, start in progress.bar(enumerate(starts), len(starts), "validation"):
                if frozen is not None and isinstance(net, Classifier):
                    out = net.forward_from(frozen[number])
                else:
                    out = net(data.picture(share[start : start + 128]).to(accelerator.device))
                said.append(net.probabilities(out.logits.float()))
        everyone = accelerator.gather(torch.cat(said)).cpu().numpy()
        p = np.empty((len(rows), everyone.shape[1]), np.float32)
        for process in range(accelerator.num_processes):
            mine = len(rows[process :: accelerator.num_processes])
            p[process :: accelerator.num_processes] = everyone[process * longest : process * longest + mine]
        recipe = data.recipe
        found = metrics.scores(data.y[rows], p, recipe.labels, recipe.safe)
        return {name: found[name] for name in FIGURES}

    return judge
