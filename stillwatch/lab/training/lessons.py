"""The lessons: a recipe becomes an audited data set, a taught teacher, a student alone or distilled; each a run.

In: a Recipe and a Progress. Out: a Run, finished, with its predictions.
Called by the CLI. Chapters in order: data, net, run, inputs, teacher, fit, predictions. The loop itself is loop.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor, nn

from stillwatch import metrics, predictions
from stillwatch.errors import UserError
from stillwatch.lab.data import augment, cache
from stillwatch.lab.data.audit import cached_audit
from stillwatch.lab.data.reader import Sample, gather
from stillwatch.lab.data.splits import assign
from stillwatch.lab.models import nets
from stillwatch.lab.training import losses
from stillwatch.lab.training.loop import BatchSource, EpochCallback, TrainStep, fit
from stillwatch.recipe import Fit, Recipe
from stillwatch.registry import Spec, build_spec
from stillwatch.run import NO_PROGRESS, Progress, Run, runs

SPLITS = ("train", "valid", "test")
TRAINED = ("teacher", "alone", "distilled", "narrow", "pruned")  # kinds of run that keep a net
Rows: TypeAlias = NDArray[np.int64]
Predict: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Compute: TypeAlias = Callable[[Rows, int], dict[str, Tensor]]  # (rows, view) -> name -> (B,...)


@dataclass(frozen=True)
class Dataset:
    """A recipe's data, decoded and divided: samples[i], y[i] and store.pixels[i] belong together."""

    recipe: Recipe
    store: cache.Store
    samples: list[Sample]  # with their split
    y: NDArray[np.int64]  # (N,)
    numbers: NDArray[np.uint64]  # (N,) what augmentation draws from
    rows: dict[str, Rows]  # split -> rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample as an exported file takes it: (H,W,C), or a clip's (T,H,W,C)."""
        return tuple(self.store.pixels.shape[2 if self.recipe.data.frames == 1 else 1 :])

    def picture(self, rows: Rows) -> Tensor:
        """uint8 (B,T,H,W,C)."""
        order = np.argsort(rows, kind="stable")  # the disk is read in its own order
        picked = self.store.pixels[rows[order]]
        return torch.from_numpy(picked[np.argsort(order, kind="stable")])


def material(recipe: Recipe, voice: Progress = NO_PROGRESS) -> Dataset:
    """Gather, decode once and split. Raises UserError where that leaves nothing to learn from."""
    store = cache.pictures(gather(recipe), recipe.data, voice=voice)
    samples = assign(store.samples, recipe.data)
    place = {label: number for number, label in enumerate(recipe.labels)}
    y = np.array([place[sample.label] for sample in samples], np.int64)
    numbers = np.array([augment.number(sample.id) for sample in samples], np.uint64)
    split = np.array([sample.split for sample in samples])
    rows = {name: np.flatnonzero(split == name) for name in SPLITS}
    for name in ("train", "valid"):
        if not len(rows[name]):
            raise UserError(f"data.split = {recipe.data.split!r}: leaves no sample for {name}")
    return Dataset(recipe, store, samples, y, numbers, rows)


def material_of(run: Run, voice: Progress = NO_PROGRESS) -> Dataset:
    """The data that a run learnt from. Raises UserError where other data lie there now."""
    recipe = run.recipe
    data = material(recipe, voice)
    if data.store.fingerprint != run.info.fingerprint:
        raise UserError(f"{run.path}: learnt from other data than now lie in data.root = '{recipe.data.root}'")
    return data


def inspect(
    recipe: Recipe, root: Path | str = "runs", source: str = "", voice: Progress = NO_PROGRESS
) -> tuple[Run, Dataset]:
    """`stillwatch audit`: look at the data, train nothing. Returns the run (audit.json, split.csv) and the data."""
    data = material(recipe, voice)
    run = Run.create(recipe, "audit", root, source)
    write_audit(run, data)
    return run, data


def teach(
    recipe: Recipe,
    root: Path | str = "runs",
    source: str = "",
    fresh: bool = False,
    voice: Progress = NO_PROGRESS,
) -> Run:
    """Train the recipe's teacher. An unfinished run of the same recipe is gone on with, unless `fresh`."""
    return _lesson(recipe, "teacher", None, Kit(root, source, fresh, voice))


def distil(
    recipe: Recipe,
    alone: bool = False,
    root: Path | str = "runs",
    source: str = "",
    fresh: bool = False,
    voice: Progress = NO_PROGRESS,
) -> Run:
    """Train the recipe's student under its teacher, or `alone`: the control, without the parts that need one."""
    desk = Kit(root, source, fresh, voice)
    if alone:
        return _lesson(recipe, "alone", None, desk)
    return _lesson(recipe, "distilled", newest_teacher(recipe, root), desk)


@dataclass(frozen=True)
class Kit:
    """Where a lesson takes place: the folder of runs, the recipe's text, whether to start afresh, how to speak."""

    root: Path | str
    source: str
    fresh: bool
    voice: Progress


def _lesson(recipe: Recipe, kind: Literal["teacher", "alone", "distilled"], teacher: Run | None, desk: Kit) -> Run:
    # ---- what is asked
    side: Literal["teacher", "student"] = "teacher" if kind == "teacher" else "student"
    plan = recipe.fit_of(side)
    specs = specs_of(plan, kind == "distilled")
    accelerator = device(plan)
    voice = desk.voice if accelerator.is_main_process else NO_PROGRESS

    # ---- the net (before the data: a wrong word in the recipe should not have to wait for them)
    torch.manual_seed(plan.seed)
    net = nets.build(getattr(recipe, side).net, len(recipe.labels), recipe.data.hw, recipe.data.channels)
    augment.plan(plan.augment, plan.seed)
    master = load(teacher) if teacher else None

    # ---- data (one process decodes, the others find it done) and losses
    with accelerator.main_process_first():
        data = material(recipe, voice)
    if teacher:
        check_teacher(teacher, data)
    step = build_step(net, data, master, specs)

    # ---- the run: a new one, or one that was cut off
    run = create_or_resume(recipe, kind, teacher, data, accelerator, desk)
    if accelerator.is_main_process:
        run.note(cost=nets.cost(net, recipe.data.hw, recipe.data.channels), processes=accelerator.num_processes)

    # ---- fit, and judge the epoch that was kept
    with noting_failure(run, accelerator):
        best = train(step, data, master, plan, run, accelerator, voice)
        if accelerator.is_main_process:
            save_split_predictions(run, data, predictor(net), voice)
            run.finish(best=best, epochs=len(run.history()))
    accelerator.wait_for_everyone()
    return run


def device(plan: Fit) -> Accelerator:
    """Where and in what precision this plan is trained."""
    return Accelerator(cpu=plan.device == "cpu", mixed_precision="no" if plan.precision == "fp32" else "bf16")


def specs_of(plan: Fit, taught: bool) -> tuple[Spec, ...]:
    """The losses of a plan: all of them under a teacher, without one those that need none."""
    return plan.loss if taught else without_teacher(plan.loss)


def build_step(net: nets.Classifier, data: Dataset, master: nets.Classifier | None, specs: Sequence[Spec]) -> TrainStep:
    """Net and losses, ready for the loop. Raises UserError for a loss or a map that cannot be had."""
    step = TrainStep(net, losses.parts(specs, _task(data, net, master)))
    net.check(step.maps)
    return step


def train(
    step: TrainStep,
    data: Dataset,
    master: nets.Classifier | None,
    plan: Fit,
    run: Run,
    accelerator: Accelerator,
    voice: Progress = NO_PROGRESS,
    after: EpochCallback | None = None,
) -> dict[str, Any]:
    """Fit step.net to the training split and lay the kept epoch's weights into it. Returns that epoch's figures.

    The one way of learning, whatever the net: a teacher, a student, one that has just been pruned or quantised.
    run: where best.pt, last.pt and metrics.jsonl go; what lies there already is gone on with. after: as fit takes it.
    """
    step.to(accelerator.device)
    lesson = _inputs(data, step.net, master, step.maps, plan, accelerator, voice)
    best = fit(step, lesson, judge_of(data, step.net, accelerator, voice), plan, run, accelerator, voice, after)
    kept = torch.load(run.path / "best.pt", map_location=accelerator.device, weights_only=True)
    step.net.load_state_dict(kept["net"])
    return best


def save_split_predictions(
    run: Run,
    data: Dataset,
    predict: Predict,
    voice: Progress = NO_PROGRESS,
    splits: Sequence[str] = ("valid", "test"),
) -> None:
    """Save the run's predictions of these splits."""
    for split in splits:
        predictions.save_predictions(run, split, predict, *eval_arrays(data, data.rows[split]), voice=voice)


@contextmanager
def noting_failure(run: Run, accelerator: Accelerator) -> Iterator[None]:
    """What ends a lesson early is written into its run, which the same command can go on with."""
    try:
        yield
    except BaseException as error:
        if accelerator.is_main_process:
            run.finish("stopped" if isinstance(error, KeyboardInterrupt) else "failed", error=str(error))
        raise


def without_teacher(specs: Sequence[Spec]) -> tuple[Spec, ...]:
    """The loss parts that need no teacher, their weights brought to a sum of 1: what "alone" means."""
    kept = [({"name": s} if isinstance(s, str) else dict(s)) for s in specs if not needs_teacher(s)]
    total = sum(float(spec.get("weight", 1.0)) for spec in kept)
    if not kept or total <= 0:
        return ("ce",)
    return tuple(spec | {"weight": float(spec.get("weight", 1.0)) / total} for spec in kept)


def needs_teacher(spec: Spec) -> bool:
    return bool(getattr(build_spec(losses.LOSSES, spec, "fit.loss")[0], "needs_teacher", False))


def _task(data: Dataset, net: nets.Classifier, master: nets.Classifier | None) -> losses.Task:
    counts = np.bincount(data.y[data.rows["train"]], minlength=len(data.recipe.labels))
    return losses.Task(
        labels=len(data.recipe.labels),
        counts=tuple(int(count) for count in counts),
        head=data.recipe.student.net.head if master else net.kind,
        student=losses.Shape(*net.shape()),
        teacher=losses.Shape(*master.shape()) if master else None,
    )


# ---- inputs: what the loop is fed, computed once wherever it can be


def _inputs(
    data: Dataset,
    net: nets.Classifier,
    master: nets.Classifier | None,
    maps: tuple[int, ...],
    plan: Fit,
    accelerator: Accelerator,
    voice: Progress,
) -> BatchSource:
    """Batches for the loop. With a fixed set of views, the frozen trunk's features and the teacher's outputs are
    computed once and replayed from disk; with a new view every epoch they are computed as they are needed."""
    recipe, device = data.recipe, accelerator.device
    change = augment.plan(plan.augment, plan.seed)
    views = (plan.views or 0) if change else 1
    train = data.rows["train"]
    if master:
        master.to(device).eval().requires_grad_(False)

    def look(rows: Rows, view: int) -> Tensor:
        """The training rows' pictures as this view shows them, uint8 (B,T,H,W,C)."""
        x = change(data.picture(train[rows]).to(device), data.numbers[train[rows]], view)
        if change.mixup:
            others, share = change.partners(data.numbers[train[rows]], view, len(train))
            y = change(data.picture(train[others]).to(device), data.numbers[train[others]], view)
            x = augment.mix(x, y, torch.from_numpy(share).to(device))
        return x

    def label(rows: Rows, view: int) -> Tensor:
        y = torch.from_numpy(data.y[train[rows]]).to(device)
        if not change.mixup:
            return y
        others, share = change.partners(data.numbers[train[rows]], view, len(train))
        w = torch.from_numpy(share).to(device, torch.float32)[:, None]
        one = nn.functional.one_hot(y, len(recipe.labels)).float()
        two = nn.functional.one_hot(torch.from_numpy(data.y[train[others]]).to(device), len(recipe.labels)).float()
        return w * one + (1 - w) * two

    ids = cache.short([f"{data.samples[row].id}\t{data.y[row]}" for row in train])
    drawn = f"{plan.augment} {plan.seed}" if change else ""

    def once(what: str, weights: dict[str, Tensor], more: str, compute: Compute) -> dict[str, Any]:
        key = [data.store.key, ids, drawn, cache.digest(weights), f"{more} {plan.precision}"]
        small = 16 if device.type == "cpu" else 256  # a CPU's caches hold the maps of 16 pictures, not of 64
        with accelerator.main_process_first():
            return cache.outputs(compute, len(train), views, key, voice, what, small)

    def features(who: nets.Classifier) -> NDArray[Any]:
        """What the frozen part gives, (V,N,...): a teacher's were stored when it was taught, if the views agree."""
        return once("features", who.frozen_state(), who.name, lambda r, v: {"h": who.trunk(look(r, v))})["h"]

    def stored(h: NDArray[Any], rows: Rows, view: int) -> Tensor:
        return torch.from_numpy(h[view, rows]).to(device)

    trunk = features(net) if net.cut and views else None
    spoken = None
    if master and views:
        behind = features(master) if master.cut and not master.early(maps) else None
        spoken = once(
            "teacher",
            master.state_dict(),
            f"{master.name} {maps}",
            lambda r, v: _spread(
                master(look(r, v), maps) if behind is None else master.rest(stored(behind, r, v), maps)
            ),
        )

    def batch(rows: Rows, epoch: int) -> tuple[Tensor, Tensor, nets.ModelOutput | None]:
        view = epoch % views if views else epoch
        x = look(rows, view) if trunk is None or (master and spoken is None) else None
        h = net.trunk(x) if trunk is None else stored(trunk, rows, view)  # type: ignore[arg-type]
        teacher = None
        if spoken is not None:
            teacher = _gathered(
                {name: torch.from_numpy(a[view, rows]).to(device).float() for name, a in spoken.items()}
            )
        elif master:
            with torch.no_grad():
                teacher = master(x, maps)
        return h, label(rows, view), teacher

    return BatchSource(len(train), batch)


def _spread(out: nets.ModelOutput) -> dict[str, Tensor]:
    return {"logits": out.logits, "feature": out.feature, **{f"map{s}": m for s, m in out.maps.items()}}


def _gathered(arrays: dict[str, Tensor]) -> nets.ModelOutput:
    maps = {int(name[3:]): value for name, value in arrays.items() if name.startswith("map")}
    return nets.ModelOutput(arrays["logits"], arrays["feature"], maps)


# ---- judging


def judge_of(
    data: Dataset, net: nets.Classifier, accelerator: Accelerator, voice: Progress
) -> Callable[[nets.Classifier], dict[str, float]]:
    """net -> its figures on the validation split; every process looks at its share of it."""
    rows = data.rows["valid"]
    share = rows[accelerator.process_index :: accelerator.num_processes]
    longest = -(-len(rows) // accelerator.num_processes)
    share = np.concatenate([share, rows[: longest - len(share)]])  # gather wants equal lengths
    starts = range(0, len(share), 128)
    frozen = None
    if net.cut:
        with torch.inference_mode():
            frozen = [net.trunk(data.picture(share[s : s + 128]).to(accelerator.device)) for s in starts]

    def judge(net: nets.Classifier) -> dict[str, float]:
        net.eval()
        with torch.inference_mode():
            said = []
            for number, start in voice.bar(enumerate(starts), len(starts), "validation"):
                if frozen is not None:
                    out = net.rest(frozen[number])
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
        return {name: found[name] for name in ("loss", "accuracy", "balanced_accuracy", "macro_f1", "ece")}

    return judge


def predictor(net: nets.Classifier) -> Predict:
    """net -> predict(uint8 (B,T,H,W,C)) -> float32 (B,K): what any judge is handed."""
    device = next(net.parameters()).device
    net.eval()

    def predict(x: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = net(torch.from_numpy(np.ascontiguousarray(x)).to(device)).logits
            return net.probabilities(logits.float()).cpu().numpy()

    return predict


def eager(path: Path, threads: int = 1, batch: int = 1) -> Predict:
    """A run's net in PyTorch as it is: what an exported file is raced against."""
    torch.set_num_threads(threads)
    return predictor(load(Run.open(path)))


def eval_arrays(data: Dataset, rows: Rows) -> tuple["_Slice", list[str], list[str], list[str], NDArray[np.int64]]:
    """What save_predictions takes of these rows: pixels, ids, groups, sequences, y."""
    samples = [data.samples[row] for row in rows]
    return (
        _Slice(data.store.pixels, rows),
        [sample.id for sample in samples],
        [sample.group for sample in samples],
        [sample.sequence for sample in samples],
        data.y[rows],
    )


@dataclass(frozen=True)
class _Slice:
    """Some rows of a memory-mapped array, read only when they are asked for."""

    array: NDArray[np.uint8]
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> NDArray[np.uint8]:
        return self.array[self.rows[part]]


# ---- runs


def load(run: Run) -> nets.Classifier:
    """The net that a run kept, with its weights; one that was pruned takes the shapes that they have."""
    recipe = run.recipe
    side = recipe.teacher if run.info.kind == "teacher" else recipe.student
    spec = side.net.model_copy(update={"weights": "scratch"})  # the run's own follow; the hub need not be asked
    net = nets.build(spec, len(recipe.labels), recipe.data.hw, recipe.data.channels)
    path = run.path / "best.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["net"]
    except FileNotFoundError:
        raise UserError(f"{path}: missing; this run kept no epoch") from None
    nets.resize(net, state, recipe.data.hw, recipe.data.channels)
    net.load_state_dict(state)
    return net.eval()


def finished(run: Run, kinds: Sequence[str], what: str) -> None:
    """Raise UserError unless the run is finished and of one of these kinds. what: a word for them."""
    kind, status = run.info.kind, run.info.status
    if kind not in kinds or status != "done":
        raise UserError(f"{run.path}: a {kind} run ({status}); name a finished {what}")


def teacher_of(run: Run) -> Run | None:
    """The teacher under whom a student's run learnt, which lies beside it; None where it learnt alone."""
    name = run.info.parent if run.info.kind == "distilled" else run.info.teacher
    return Run.open(run.path.parent / name) if name else None


def matching_runs(
    recipe: Recipe, kind: str, parent: Run | None, data: Dataset, desk: Kit, **fields: Any
) -> Iterator[Run]:
    """Runs of this very recipe, kind, parent and data that say the same in `fields`, newest first; none where the desk
    wants a fresh one."""
    wanted = (kind, recipe.model_dump(mode="json"), parent.path.name if parent else None, data.store.fingerprint)
    for old in [] if desk.fresh else reversed(runs(desk.root)):
        info = old.info
        same = (info.kind, info.recipe, info.parent, info.fingerprint) == wanted
        if same and all(getattr(info, key) == value for key, value in fields.items()):
            yield old


def create_or_resume(
    recipe: Recipe, kind: str, parent: Run | None, data: Dataset, accelerator: Accelerator, desk: Kit, **fields: Any
) -> Run:
    """A new run, or the newest one of this very recipe and parent that was cut off and that nobody is working on.

    fields: what else run.json says of it from the start; a run that says otherwise is another one.
    """
    names: list[str | None] = [None]
    run = None
    if accelerator.is_main_process:
        for old in matching_runs(recipe, kind, parent, data, desk, **fields):
            if old.info.status != "done" and any(old.path.rglob("last.pt")) and old.lock():
                desk.voice.say(f"going on with {old.path}, which was cut off (--fresh starts anew)")
                run = old
                run.note(status="running")
                break
        if run is None:
            seed = recipe.fit_of("student" if kind != "teacher" else "teacher").seed
            about = {"parent": parent.path.name if parent else None, "seed": seed, **fields}
            run = Run.create(recipe, kind, desk.root, desk.source, fingerprint=data.store.fingerprint, **about)
            write_audit(run, data)
        desk.voice.say(f"run: {run.path}")
        names = [str(run.path)]
    broadcast_object_list(names)
    return run or Run.open(str(names[0]))


def write_audit(run: Run, data: Dataset) -> None:
    """split.csv, audit.json, and in run.json what guessing alone would reach on the validation split."""
    rows = [(s.id, s.label, s.group, s.split) for s in data.samples]
    run.save_csv("split.csv", ("path", "label", "group", "split"), rows)
    report = cached_audit(data.store, data.samples, data.recipe.labels, data.recipe.data.split)
    run.save_json("audit.json", report.model_dump())
    most = Counter(data.y[data.rows["train"]].tolist()).most_common(1)[0][0]
    share = float(np.mean(data.y[data.rows["valid"]] == most))
    run.note(
        fingerprint=data.store.fingerprint,
        majority={"label": data.recipe.labels[most], "valid_accuracy": share},
        status="done" if run.info.kind == "audit" else "running",
    )


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """What a teacher and a student must share: labels, and all of [data] but where it lies."""
    return {"labels": recipe.labels, "data": recipe.data.model_dump(mode="json", exclude={"root", "max_bad"})}


def newest_teacher(recipe: Recipe, root: Path | str) -> Run:
    """teacher.init, or the newest finished teacher with the same name, labels, data, split and net."""
    if recipe.teacher.init:
        run = Run.open(recipe.teacher.init)
        if run.info.kind != "teacher" or run.info.status != "done":
            raise UserError(
                f"teacher.init = {recipe.teacher.init}: a {run.info.kind} run ({run.info.status}), "
                "not a finished teacher"
            )
        if run.recipe.labels != recipe.labels:
            raise UserError(f"teacher.init = {recipe.teacher.init}: its labels are {', '.join(run.recipe.labels)}")
        return run
    for run in reversed(runs(root)):
        if run.info.kind == "teacher" and run.info.status == "done" and run.recipe.name == recipe.name:
            theirs, ours = run.recipe.teacher.net, recipe.teacher.net
            if _comparable(run.recipe) == _comparable(recipe) and theirs == ours:
                return run
    raise UserError(
        f"{root}: no finished teacher for {recipe.name!r} with this data, split (fold {recipe.data.fold}) and net; run "
        "`stillwatch teach` with the same recipe and overrides first, or name one with teacher.init=RUN"
    )


def check_teacher(teacher: Run, data: Dataset) -> None:
    """Refuse a teacher that learnt nothing, or that has seen what the student will be tested on."""
    best, majority = teacher.info.best, teacher.info.majority
    if best["accuracy"] <= majority.valid_accuracy:
        raise UserError(
            f"{teacher.path}: refused as a teacher: its validation accuracy, {100 * best['accuracy']:.1f} %, does not "
            f"beat always saying {majority.label} ({100 * majority.valid_accuracy:.1f} %). Teach it longer, or "
            "with another fit.lr"
        )
    seen = set(trained_on(teacher))
    held = [data.samples[row].id for split in ("valid", "test") for row in data.rows[split]]
    leaked = sum(name in seen for name in held)
    if leaked:
        raise UserError(
            f"{teacher.path}: refused as a teacher: it was trained on {leaked} of the {len(held)} pictures that this "
            "split holds back; teach one on the same data.split, data.fold and data.seed"
        )


def image_lookup(run: Run) -> Callable[[Sequence[str]], dict[str, NDArray[np.uint8]]]:
    """ids -> their pictures, uint8 (H,W,C), as the net saw them; those that are no longer there are left out."""

    def pictures(ids: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        try:
            data = material(run.recipe)
        except UserError:  # the data has moved: the report does without pictures
            return {}
        place = {sample.id: row for row, sample in enumerate(data.samples)}
        middle = run.recipe.data.frames // 2
        return {name: np.array(data.store.pixels[place[name], middle]) for name in ids if name in place}

    return pictures


def trained_on(run: Run) -> list[str]:
    """The ids of a run's training samples."""
    import csv

    with (run.path / "split.csv").open(newline="", encoding="utf-8") as file:
        return [row["path"] for row in csv.DictReader(file) if row["split"] == "train"]
