"""Prune: a distilled student made narrower where that hurts least, healed under its own teacher between the steps.

In: a student's run. Out: a run of kind "pruned", and beside it the baseline to beat, of kind "narrow": the same net at
one width multiplier, distilled for as long. Called by the CLI. What a layer's removal drags along, torch-pruning knows.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from stillwatch.errors import UserError
from stillwatch.lab.models import nets
from stillwatch.lab.training import lessons
from stillwatch.lab.training.lessons import Dataset, Kit
from stillwatch.recipe import Fit, Recipe
from stillwatch.run import Run

GRAIN = 64  # parts in which a step goes through its ranking: the finer, the truer to the order of importance
DEEPEST = {"macs": 0.5, "params": 0.8}  # share of its channels that a layer loses at most in one step: ranked over the
# whole net, a narrow residual stream would go at once (MobileNetV3's from 32 channels to 8), and nothing heals that
STUDENTS = ("distilled", "alone", "pruned")
Layer: TypeAlias = nn.Conv2d | nn.Linear


def prune(parent: Run, desk: Kit) -> Run:
    """Prune a student to recipe.prune.keep of its multiply-accumulates; returns the run, finished.

    parent: a finished student, whose recipe says how. Channels are ranked by the norm of the group of weights that
    falls with them (Fang et al. 2023, DepGraph, arXiv 2301.12900), among all layers that are wired alike (Fang et al.
    2024, Isomorphic Pruning, arXiv 2407.04616), and taken out in recipe.prune.steps equal steps, each followed by
    recipe.fit_in("prune") under the parent's losses and teacher. Killed and started again it goes on. Raises UserError,
    and makes nothing, for a run that is no finished student, for other data than its own, or out of prune.keep's reach.
    """
    lessons.finished(parent, STUDENTS, f"student: {', '.join(STUDENTS)}")
    recipe, net = parent.recipe, lessons.load(parent)
    if net.cut:
        raise UserError(f"{parent.path}: its net is frozen in part (student.net.frozen); a frozen layer cannot heal")
    data = lessons.material_of(parent, desk.voice)
    goals = _goals(net, recipe)
    _rehearse(net, goals, data)
    run = _half(parent, data, desk) or _heal(parent, net, goals, data, desk)
    if recipe.prune.narrow:
        run.note(narrow=baseline(parent, run, data, desk).path.name)
    return run


def _goals(net: nets.Classifier, recipe: Recipe) -> list[tuple[float, float]]:
    """After each step: at most so many MACs, and so many parameters."""
    cost, asked = nets.cost(net, recipe.data.hw, recipe.data.channels), recipe.prune
    done = [number / asked.steps for number in range(1, asked.steps + 1)]
    return [(cost["macs"] * (1 - (1 - asked.keep) * d), cost["params"] * (1 - (1 - asked.size) * d)) for d in done]


def _rehearse(net: nets.Classifier, goals: Sequence[tuple[float, float]], data: Dataset) -> None:
    """All steps on a copy: what cannot be done is said before an hour of healing, not after it."""
    trial = copy.deepcopy(net)
    try:
        for goal in goals:
            narrow(trial, data, *goal, data.recipe.prune.round_to)
    except UserError:
        raise
    except Exception as error:  # torch-pruning fails in as many ways as there are nets that it does not understand
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise UserError(f"net {net.name}: torch-pruning cannot take it apart ({why}); prune another student") from error


def _half(parent: Run, data: Dataset, desk: Kit) -> Run | None:
    """A finished run of this very recipe and parent that has no baseline yet: the command was cut off in between."""
    if parent.recipe.prune.narrow:
        for old in lessons.matching_runs(parent.recipe, "pruned", parent, data, desk):
            if old.info.status == "done" and not old.info.narrow:
                desk.voice.say(f"{old.path} is there; its baseline is not")
                return old
    return None


def _heal(parent: Run, net: nets.Classifier, goals: Sequence[tuple[float, float]], data: Dataset, desk: Kit) -> Run:
    """The steps, each in a folder of its own and the last in the run itself, so that it looks like any other."""
    recipe, teacher = parent.recipe, lessons.teacher_of(parent)
    plan, size = recipe.fit_in("prune"), (recipe.data.hw, recipe.data.channels)
    accelerator, master = lessons.device(plan), lessons.load(teacher) if teacher else None
    before, widths = nets.cost(net, *size), layers(net)
    name = teacher.path.name if teacher else None
    run = lessons.create_or_resume(recipe, "pruned", parent, data, accelerator, desk, teacher=name)
    steps: list[dict[str, Any]] = run.info.steps
    with lessons.noting_failure(run, accelerator):
        for number, goal in enumerate(goals, 1):
            place = run if number == len(goals) else _part(run, f"step-{number}")
            if number <= len(steps):  # learnt before the run was cut off
                net = lessons.load(place)
                continue
            narrow(net, data, *goal, recipe.prune.round_to)
            cost = nets.cost(net, *size)
            reached = {key: cost[key] / before[key] for key in ("macs", "params")}
            desk.voice.say(
                f"step {number} of {len(goals)}: {reached['macs']:.0%} of the arithmetic, "
                f"{reached['params']:.0%} of the parameters"
            )
            torch.manual_seed(plan.seed)  # a loss may draw weights of its own
            step = lessons.build_step(net, data, master, lessons.specs_of(plan, teacher is not None))
            best = lessons.train(step, data, master, plan, place, accelerator, desk.voice)
            steps = [*steps, {"step": number, **cost, "epochs": len(place.history()), "valid": best}]
            said = {"asked": recipe.prune.keep, "size": recipe.prune.size, **reached}
            known = {"before": widths, "after": layers(net)}
            run.note(steps=steps, cost=cost, before=before, keep=said, widths=known)
        lessons.save_split_predictions(run, data, lessons.predictor(net), desk.voice)
        run.finish(best=steps[-1]["valid"], epochs=steps[-1]["epochs"])
    return run


def baseline(parent: Run, pruned: Run, data: Dataset, desk: Kit) -> Run:
    """The narrower student that pruning has to beat: at least its arithmetic, as many epochs, the same teacher.

    It starts where the student started: from ImageNet's weights where the recipe has them, the strongest channels of
    each layer. A finished one of the same recipe, teacher, data and size is taken as it is.
    """
    recipe, teacher = parent.recipe, lessons.teacher_of(parent)
    target, epochs = pruned.info.cost["macs"], learnt(pruned)
    plan = Fit.model_validate(recipe.fit_of("student").model_dump() | {"epochs": epochs})
    accelerator = lessons.device(plan)
    about = {"teacher": teacher.path.name if teacher else None, "target": target, "planned": epochs}
    for old in lessons.matching_runs(recipe, "narrow", teacher, data, desk, **about):
        if old.info.status == "done":
            desk.voice.say(f"the narrower baseline is there: {old.path}")
            return old
    torch.manual_seed(plan.seed)
    net = nets.build(recipe.student.net, len(recipe.labels), recipe.data.hw, recipe.data.channels)
    width = multiply(net, data, target, recipe.prune.round_to)
    desk.voice.say(f"the baseline to beat: {width:.0%} of the channels of every layer, {epochs} epochs from the start")
    master = lessons.load(teacher) if teacher else None
    step = lessons.build_step(net, data, master, lessons.specs_of(plan, teacher is not None))
    run = lessons.create_or_resume(recipe, "narrow", teacher, data, accelerator, desk, **about, width=width)
    with lessons.noting_failure(run, accelerator):
        run.note(cost=nets.cost(net, recipe.data.hw, recipe.data.channels), widths={"after": layers(net)})
        best = lessons.train(step, data, master, plan, run, accelerator, desk.voice)
        lessons.save_split_predictions(run, data, lessons.predictor(net), desk.voice)
        run.finish(best=best, epochs=len(run.history()))
    return run


def learnt(run: Run) -> int:
    """How many epochs a student has learnt in all: each step of its own pruning, and its ancestors."""
    mine = len(run.history()) + sum(len(Run(part).history()) for part in run.path.glob("step-*"))
    return mine + learnt(Run.open(run.path.parent / str(run.info.parent))) if run.info.kind == "pruned" else mine


def layers(net: nn.Module) -> dict[str, int]:
    """Each convolution's and linear layer's number of outputs, in the order of the net."""
    return {name: len(layer.weight) for name, layer in _layers(net).items()}


def _layers(net: nn.Module) -> dict[str, Layer]:
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def narrow(net: nets.Classifier, data: Dataset, macs: float, params: float, round_to: int) -> None:
    """Take channels out of the net, the least important of all first, until it needs at most so many MACs and params.

    What is too large after the arithmetic is right loses channels of the layers that give vectors (the last 1×1
    convolution, squeeze-and-excitation), which cost bytes and next to no arithmetic. The net is then on the CPU.
    Raises UserError where either cannot be reached.
    """
    hw, channels = data.recipe.data.hw, data.recipe.data.channels
    net.cpu()
    places = _places(net, hw, channels)
    rest = nets.cost(net, hw, channels)["macs"] - _count(net, places)["macs"]  # of what is no layer
    maps = [layer for layer, count in places.items() if count > 1]
    for key, target, kept in (("macs", macs - rest, []), ("params", params, maps)):
        if (left := _count(net, places)[key]) > target:
            pruner = _pruner(net, hw, channels, DEEPEST[key], round_to, kept)
            for _ in _removals(net, pruner, DEEPEST[key]):
                if (left := _count(net, places)[key]) <= target:
                    break
        if left > target:
            word = "keep" if key == "macs" else "size"
            raise UserError(
                f"prune.{word}: {target / 1e6:.3g} M {key} cannot be reached: with up to {DEEPEST[key]:.0%} of each "
                f"layer gone {left / 1e6:.3g} M are left; raise prune.{word} or prune.steps, or lower prune.round_to"
            )
    nets.settle_norms(net, hw, channels)


def _places(net: nets.Classifier, hw: tuple[int, int], channels: int) -> dict[Layer, int]:
    """Each layer -> the number of places at which it looks at one picture: 1 where it gives a vector."""
    found = dict.fromkeys(_layers(net).values(), 0)

    def look(layer: Any, _: Any, out: torch.Tensor) -> None:
        found[layer] += out.numel() // len(layer.weight)

    hooks = [layer.register_forward_hook(look) for layer in found]
    with torch.no_grad():
        net.eval()(torch.zeros(1, *hw, channels, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return found


def _count(net: nets.Classifier, places: Mapping[Layer, int]) -> dict[str, int]:
    """The layers' MACs and the net's parameters as nets.cost counts them, from shapes alone: it is asked so often."""
    macs = sum(layer.weight.numel() * count for layer, count in places.items())
    return {"macs": macs, "params": sum(p.numel() for p in net.parameters())}


def _removals(net: nets.Classifier, pruner: Any, deepest: float) -> Iterator[None]:
    """Take out one layer's next channels after the other, but for what would take more than its share of a layer."""
    floor: dict[nn.Module, float] = {layer: (1 - deepest) * len(layer.weight) for layer in _layers(net).values()}
    for _ in range(GRAIN):
        for group in pruner.step(interactive=True):
            layer, gone = group[0].dep.target.module, len(group[0].idxs)
            if len(layer.weight) - gone >= floor[layer]:
                group.prune()
                yield


def multiply(net: nets.Classifier, data: Dataset, target: float, round_to: int) -> float:
    """Bring every layer to one share of its width: the smallest at which the net still needs `target` MACs or more.

    Widths are rounded to a multiple of round_to: to the nearest as MobileNets do it, or down, whichever comes nearer to
    the target. (V3-small 0.75 to the nearest steps from below 0.6 of its arithmetic to an eighth above that, where its
    stem goes from 8 to 16; down it comes within 3 %.) Returns the share of all channels that stayed.
    """
    hw, channels = data.recipe.data.hw, data.recipe.data.channels

    def at(width: float, half: float) -> nets.Classifier:
        trial = copy.deepcopy(net)
        _pruner(trial, hw, channels, _shares(trial, width, half, round_to), round_to, []).step()
        nets.settle_norms(trial, hw, channels)
        return trial

    least, chosen, before = nets.cost(net, hw, channels)["macs"], net, layers(net)
    for half in (0.5, 0.0):
        low, high = 0.0, 1.0
        for _ in range(8):
            middle = (low + high) / 2
            trial = at(middle, half)
            if (macs := nets.cost(trial, hw, channels)["macs"]) < target:
                low = middle
                continue
            high = middle
            if macs < least:
                least, chosen = macs, trial
    state = chosen.state_dict()
    nets.resize(net, state, hw, channels)
    net.load_state_dict(state)
    before.pop("head")
    return sum(layers(net)[name] for name in before) / sum(before.values())


def _shares(net: nets.Classifier, width: float, half: float, round_to: int) -> dict[nn.Module, float]:
    """Each layer -> the share of its channels that goes at this width; layers that stay whole are left out."""
    found: dict[nn.Module, float] = {}
    for layer in _layers(net).values():
        count = len(layer.weight)
        kept = max(round_to, int(width * count / round_to + half) * round_to)
        if kept < count and layer is not net.head:
            found[layer] = 1 - (kept + 0.5) / count  # torch-pruning cuts off what is behind the point
    return found


def _pruner(
    net: nets.Classifier,
    hw: tuple[int, int],
    channels: int,
    share: float | dict[nn.Module, float],
    round_to: int,
    kept: Sequence[nn.Module],
) -> Any:
    """torch-pruning's. share: of each layer that goes, or of all layers together, which it then ranks as one.

    kept: layers whose outputs stay; the head keeps its classes in any case.
    """
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


def _part(run: Run, name: str) -> Run:
    """A folder inside the run where one of its steps is learnt."""
    (run.path / name).mkdir(exist_ok=True)
    return Run(run.path / name, run.info)
