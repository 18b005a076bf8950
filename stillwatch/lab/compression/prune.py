"""Prune: narrows a student and fine-tunes it between the steps. Kinds: "pruned"; "narrow", the baseline."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from stillwatch.errors import UserError, one_line
from stillwatch.lab.data.dataset import Dataset, dataset_of
from stillwatch.lab.models import classifier
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.models.temporal import Window
from stillwatch.lab.training import pipeline, runs
from stillwatch.lab.training.runs import RunOptions
from stillwatch.recipe import Fit
from stillwatch.run import Run

GRAIN = 64  # parts in which a step goes through its ranking: the finer, the truer to the order of importance
DEEPEST = {"macs": 0.5, "params": 0.8}  # share of its channels that a layer loses at most in one step: ranked over the
# whole net, a narrow residual stream would go at once (MobileNetV3's from 32 channels to 8), and nothing heals that
STUDENTS = ("distilled", "alone", "pruned")
Layer: TypeAlias = nn.Conv2d | nn.Linear


def prune(parent: Run, options: RunOptions, anyway: bool = False) -> Run:
    """Prune a finished student to recipe.prune.keep of its multiply-accumulates.

    Ranks channels by their weights' norm (DepGraph, arXiv 2301.12900) among isomorphic layers (Isomorphic Pruning,
    arXiv 2407.04616), in recipe.prune.steps equal steps, each fine-tuned. Resumes an interrupted run. Raises UserError,
    before a run is made, for changed data and a student that cannot be pruned, or learnt nothing (unless `anyway`).
    """
    runs.require_finished(parent, STUDENTS, f"student: {', '.join(STUDENTS)}")
    runs.require_learnt(parent, "not pruned", anyway, options.progress)
    recipe, net = parent.recipe, runs.load_net(parent)
    if net.frozen_steps:
        raise UserError(f"{parent.path}: its net is frozen in part (student.net.frozen); a frozen layer cannot heal")
    if net.timed or not isinstance(net.temporal, Window):
        raise UserError(
            f"{parent.path}: its channels are remembered over time (student.net.shift, or temporal = gru, lstm), and "
            "torch-pruning does not see that; prune a student with mean or spread over time"
        )
    data, asked = dataset_of(parent, options.progress), recipe.prune

    # ---- the most MACs and parameters after each step; all steps are tried on a copy before any fine-tuning
    cost, trial = classifier.cost(net, recipe.data.hw, recipe.data.channels), copy.deepcopy(net)
    done = [number / asked.steps for number in range(1, asked.steps + 1)]
    goals = [(cost["macs"] * (1 - (1 - asked.keep) * d), cost["params"] * (1 - (1 - asked.size) * d)) for d in done]
    try:
        for goal in goals:
            narrow(trial, data, *goal, asked.round_to)
    except UserError:
        raise
    except Exception as error:  # torch-pruning fails in as many ways as there are nets that it does not understand
        why = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"net {net.name}: torch-pruning cannot take it apart ({why}); prune another student") from error

    # ---- the steps, but for a run that was interrupted between them and its baseline
    run = None
    for old in runs.matching_runs(recipe, "pruned", parent, data, options) if asked.narrow else ():
        if old.info.status == "done" and not old.info.narrow:
            options.progress.say(f"{old.path} is there; its baseline is not")
            run = old
            break
    run = run or _prune_steps(parent, net, goals, data, options)
    if asked.narrow:
        run.note(narrow=baseline(parent, run, data, options).path.name)
    return run


def _prune_steps(
    parent: Run, net: Classifier, goals: Sequence[tuple[float, float]], data: Dataset, options: RunOptions
) -> Run:
    recipe, teacher = parent.recipe, runs.teacher_of(parent)
    plan, size = recipe.fit_in("prune"), (recipe.data.hw, recipe.data.channels)
    accelerator, teacher_net = pipeline.device(plan), runs.load_teacher(teacher) if teacher else None
    before, widths = classifier.cost(net, *size), layer_widths(net)
    name = teacher.path.name if teacher else None
    run = runs.create_or_resume(recipe, "pruned", parent, data, accelerator, options, teacher=name)
    steps = list(run.info.steps)
    with runs.recording_failure(run, accelerator):
        for number, goal in enumerate(goals, 1):
            place = run if number == len(goals) else Run(run.path / f"step-{number}", run.info)
            place.path.mkdir(exist_ok=True)
            if number <= len(steps):  # trained before the run was interrupted
                net = runs.load_net(place)
                continue
            narrow(net, data, *goal, recipe.prune.round_to)
            cost = classifier.cost(net, *size)
            reached = {key: cost[key] / before[key] for key in ("macs", "params")}
            options.progress.say(
                f"step {number} of {len(goals)}: {reached['macs']:.0%} of the arithmetic, "
                f"{reached['params']:.0%} of the parameters"
            )
            torch.manual_seed(plan.seed)  # a loss may draw weights of its own
            step = pipeline.build_step(net, data, teacher_net, plan)
            best = pipeline.train(step, data, teacher_net, plan, place, accelerator, options.progress)
            steps.append({"step": number, **cost, "epochs": len(place.history()), "valid": best})
            keep = {"asked": recipe.prune.keep, "size": recipe.prune.size, **reached}
            changed = {"before": widths, "after": layer_widths(net)}
            run.note(steps=steps, cost=cost, before=before, keep=keep, widths=changed)
        runs.save_split_predictions(run, data, runs.predictor(net), options.progress)
        run.finish(best=steps[-1]["valid"], epochs=steps[-1]["epochs"])
    return run


def baseline(parent: Run, pruned: Run, data: Dataset, options: RunOptions) -> Run:
    """The narrower student that pruning has to beat: same arithmetic, epochs and teacher. Reuses a finished one.

    Starts from the strongest channels of the student's first weights.
    """
    recipe, teacher = parent.recipe, runs.teacher_of(parent)
    target, epochs = pruned.info.cost["macs"], epochs_in_all(pruned)
    plan = Fit.model_validate(recipe.fit_of("student").model_dump() | {"epochs": epochs})
    accelerator = pipeline.device(plan)
    about = {"teacher": teacher.path.name if teacher else None, "target": target, "planned": epochs}
    for old in runs.matching_runs(recipe, "narrow", teacher, data, options, **about):
        if old.info.status == "done":
            options.progress.say(f"the narrower baseline is there: {old.path}")
            return old
    torch.manual_seed(plan.seed)
    net = classifier.build_side(recipe, "student")
    width = multiply(net, data, target, recipe.prune.round_to)
    options.progress.say(f"the baseline to beat: {width:.0%} of every layer's channels, {epochs} epochs from the start")
    teacher_net = runs.load_teacher(teacher) if teacher else None
    step = pipeline.build_step(net, data, teacher_net, plan)
    run = runs.create_or_resume(recipe, "narrow", teacher, data, accelerator, options, **about, width=width)
    with runs.recording_failure(run, accelerator):
        run.note(cost=classifier.cost(net, recipe.data.hw, recipe.data.channels), widths={"after": layer_widths(net)})
        best = pipeline.train(step, data, teacher_net, plan, run, accelerator, options.progress)
        runs.save_split_predictions(run, data, runs.predictor(net), options.progress)
        run.finish(best=best, epochs=len(run.history()))
    return run


def epochs_in_all(run: Run) -> int:
    """With its steps and the pruned runs before it."""
    own = len(run.history()) + sum(len(Run(part).history()) for part in run.path.glob("step-*"))
    return own + (epochs_in_all(Run.open(run.path.parent / f"{run.info.parent}")) if run.info.kind == "pruned" else 0)


def layer_widths(net: nn.Module) -> dict[str, int]:
    return {name: len(layer.weight) for name, layer in _layers(net).items()}


def _layers(net: nn.Module) -> dict[str, Layer]:
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def narrow(net: Classifier, data: Dataset, macs: float, params: float, round_to: int) -> None:
    """Remove the least important channels until the net is within these MACs and parameters."""
    hw, channels = data.recipe.data.hw, data.recipe.data.channels
    places = dict.fromkeys(_layers(net.cpu()).values(), 0)  # in one picture: 1 where the layer gives a vector

    def note(layer: Layer, _: object, out: torch.Tensor) -> None:
        places[layer] += out.numel() // len(layer.weight)

    hooks = [layer.register_forward_hook(note) for layer in places]
    with torch.no_grad():
        net.eval()(torch.zeros(1, *hw, channels, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()

    def count() -> dict[str, int]:  # as classifier.cost counts them, but from shapes alone: it is asked so often
        macs = sum(layer.weight.numel() * number for layer, number in places.items())
        return {"macs": macs, "params": sum(p.numel() for p in net.parameters())}

    other_macs = classifier.cost(net, hw, channels)["macs"] - count()["macs"]
    # Parameters go from layers that give vectors (the last 1×1 convolution, squeeze-and-excitation): next to no MACs
    maps = [layer for layer, number in places.items() if number > 1]
    for key, target, kept in (("macs", macs - other_macs, []), ("params", params, maps)):
        if (left := count()[key]) > target:
            for _ in _removals(net, _pruner(net, hw, channels, DEEPEST[key], round_to, kept), DEEPEST[key]):
                if (left := count()[key]) <= target:
                    break
        if left > target:
            word = "keep" if key == "macs" else "size"
            raise UserError(
                f"prune.{word}: {target / 1e6:.3g} M {key} cannot be reached: with up to {DEEPEST[key]:.0%} of each "
                f"layer gone {left / 1e6:.3g} M are left; raise prune.{word} or prune.steps, or lower prune.round_to"
            )
    classifier.settle_norms(net, hw, channels)


def _removals(net: Classifier, pruner: Any, deepest: float) -> Iterator[None]:
    """Never removes more than the share `deepest` of a layer."""
    floor: dict[nn.Module, float] = {layer: (1 - deepest) * len(layer.weight) for layer in _layers(net).values()}
    for _ in range(GRAIN):
        for group in pruner.step(interactive=True):
            layer, gone = group[0].dep.target.module, len(group[0].idxs)
            if len(layer.weight) - gone >= floor[layer]:
                group.prune()
                yield


def multiply(net: Classifier, data: Dataset, target: float, round_to: int) -> float:
    """Scale every layer's width by the smallest share that reaches `target` MACs; returns it."""
    hw, channels = data.recipe.data.hw, data.recipe.data.channels

    def at(width: float, half: float) -> Classifier:
        trial, gone = copy.deepcopy(net), dict[nn.Module, float]()
        for layer in _layers(trial).values():
            count = len(layer.weight)
            kept = max(round_to, int(width * count / round_to + half) * round_to)
            if kept < count and layer is not trial.head:
                gone[layer] = 1 - (kept + 0.5) / count  # torch-pruning cuts off what is behind the point
        _pruner(trial, hw, channels, gone, round_to, []).step()
        classifier.settle_norms(trial, hw, channels)
        return trial

    # Rounded to the nearest as MobileNets do or down, whichever comes nearer: V3-small 0.75 misses 0.6 of its
    # arithmetic by an eighth to the nearest, by 3 % down
    least, chosen, before = classifier.cost(net, hw, channels)["macs"], net, layer_widths(net)
    for half in (0.5, 0.0):
        low, high = 0.0, 1.0
        for _ in range(8):
            middle = (low + high) / 2
            trial = at(middle, half)
            if (macs := classifier.cost(trial, hw, channels)["macs"]) < target:
                low = middle
                continue
            high = middle
            if macs < least:
                least, chosen = macs, trial
    state = chosen.state_dict()
    classifier.resize(net, state, hw, channels)
    net.load_state_dict(state)
    before.pop("head")
    return sum(layer_widths(net)[name] for name in before) / sum(before.values())


def _pruner(
    net: Classifier,
    hw: tuple[int, int],
    channels: int,
    share: float | dict[nn.Module, float],
    round_to: int,
    kept: Sequence[nn.Module],
) -> Any:
    """share: of each layer, or of all, ranked as one. kept: layers whose outputs stay."""
    ranked = not isinstance(share, dict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what torch deprecates, and names parameters without a layer
        import torch_pruning as tp

        net.eval()
        return tp.pruner.BasePruner(
            net,
            torch.zeros(1, *hw, channels, dtype=torch.uint8),
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=ranked,
            isomorphic=ranked,
            pruning_ratio=share if ranked else 0.0,
            pruning_ratio_dict=None if ranked else share,
            max_pruning_ratio=share if ranked else 1.0,
            iterative_steps=GRAIN if ranked else 1,
            round_to=round_to if ranked else None,
            ignored_layers=[net.head, *kept],
            output_transform=lambda out: out.logits,
        )
