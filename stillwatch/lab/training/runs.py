"""Runs of the lab: creates or resumes them, loads their nets, finds and checks their teachers."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from stillwatch import predictions
from stillwatch.atomic import locked
from stillwatch.errors import UserError
from stillwatch.lab.data import cache
from stillwatch.lab.data.audit import AuditReport, Unlabelled, audit, check_unlabelled, count_faces, unlabelled_leaks
from stillwatch.lab.data.sources import NO_LABEL, Sample
from stillwatch.lab.models import classifier
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.models.ensemble import Ensemble, Teacher
from stillwatch.media.decode import VIDEOS
from stillwatch.recipe import Net, Recipe, check
from stillwatch.run import NO_PROGRESS, Progress, Run, runs

if TYPE_CHECKING:
    from stillwatch.lab.data.dataset import Dataset

TRAINED = ("teacher", "alone", "distilled", "narrow", "pruned", "adapted")  # kinds of run that keep a net
LATER = ("prune", "quantise", "export", "tune", "adapt", "rule")  # tables that no training reads
# Keys that concern distilled runs alone: with and without them there is one teacher, and one student alone
WITHOUT_LABELS = (("data", "unlabelled"), ("fit", "unlabelled"), ("fit", "confidence"), ("fit", "balance"))
TOGETHER = ("signals", "students", "weights", "average")  # how a teacher answers, beside the net's own training
Predict: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class RunOptions:
    """What a training is told beside its recipe."""

    root: Path | str = "runs"  # folder of runs
    source: str = ""  # the recipe's text
    fresh: bool = False  # an interrupted run is not resumed
    progress: Progress = NO_PROGRESS


def load_net(run: Run) -> Classifier:
    """A pruned net takes its weights' shapes."""
    if run.info.members:
        raise UserError(
            f"{run.path}: {len(run.info.members)} nets in one, for teaching alone; distil a student from it"
            if len(run.info.members) > 1
            else f"{run.path}: answers by a net and the face, for teaching alone; its net is {run.info.members[0]}"
        )
    spec = run.net.model_copy(update={"weights": "scratch"})  # the run's own follow
    net, data = classifier.build_side(run.recipe, run.side, spec), run.seen.data
    path = run.path / "best.pt"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["net"]
    except FileNotFoundError:
        raise UserError(f"{path}: missing; this run kept no epoch") from None
    classifier.resize(net, state, data.hw, data.channels)
    net.load_state_dict(state)
    return net.eval()


def load_teacher(run: Run) -> Teacher:
    """As load_net; of several runs, their Ensemble."""
    members = [load_net(Run.open(run.path.with_name(name))) for name in run.info.members]
    if len(members) < 2:  # one with signals, which belong to the sample and not to the net
        return members[0] if members else load_net(run)
    return Ensemble(members, run.info.weights, run.recipe.teacher.average).eval()


def predictor(net: Teacher) -> Predict:
    """-> predict(uint8 (B,T,H,W,C)) -> float32 (B,K)."""
    device = next(net.parameters()).device
    net.eval()

    def predict(x: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = net(torch.from_numpy(np.ascontiguousarray(x)).to(device)).logits
            return net.probabilities(logits.float()).cpu().numpy()

    return predict


def eager_predictor(path: Path, threads: int = 1, batch: int = 1) -> Predict:
    """In PyTorch, to race exported files against."""
    torch.set_num_threads(threads)
    return predictor(load_net(Run.open(path)))


def save_split_predictions(
    run: Run,
    data: "Dataset",
    predict: Predict,
    progress: Progress = NO_PROGRESS,
    splits: Sequence[str] = ("valid", "test"),
) -> None:
    for split in splits:
        predictions.save_predictions(run, split, predict, data.eval_arrays(split), progress=progress)


def require_finished(run: Run, kinds: Sequence[str], what: str) -> None:
    kind, status = run.info.kind, run.info.status
    if kind not in kinds or status != "done":
        raise UserError(f"{run.path}: a {kind} run ({status}); name a finished {what}")


def require_learnt(run: Run, refused: str, anyway: bool, progress: Progress) -> None:
    """Raises UserError for a net that learnt nothing; `anyway`: only says so. refused: such as "not exported"."""
    if (nothing := run.info.learnt_nothing) and not anyway:
        raise UserError(f"{run.path}: {refused}: it {nothing}. Train it longer, or --anyway")
    if nothing:
        progress.say(f"warning: {run.path} {nothing}")


def teacher_of(run: Run) -> Run | None:
    name = run.info.parent if run.info.kind == "distilled" else run.info.teacher
    return Run.open(run.path.parent / name) if name else None


def matching_runs(
    recipe: Recipe, kind: str, parent: Run | None, data: "Dataset", options: RunOptions, **fields: Any
) -> Iterator[Run]:
    """Runs of this recipe, kind, parent and data with the same `fields`, newest first; none where options.fresh."""
    wanted = (kind, parent.path.name if parent else None, data.store.fingerprint)
    for old in [] if options.fresh else reversed(runs(options.root)):
        info = old.info
        same = (info.kind, info.parent, info.fingerprint) == wanted and old.recipe == recipe
        if same and all(getattr(info, key) == value for key, value in fields.items()):
            yield old


def create_or_resume(
    recipe: Recipe,
    kind: str,
    parent: Run | None,
    data: "Dataset",
    accelerator: Accelerator,
    options: RunOptions,
    **fields: Any,
) -> Run:
    """A new run, or the newest interrupted one of the same recipe and parent that no process holds.

    fields: further entries of run.json, which must match.
    """
    names: list[str | None] = [None]
    run = None
    if accelerator.is_main_process:
        for old in matching_runs(recipe, kind, parent, data, options, **fields):
            if old.info.status != "done" and any(old.path.rglob("last.pt")) and old.lock():
                options.progress.say(f"going on with {old.path}, which was cut off (--fresh starts anew)")
                run = old
                run.note(status="running")
                break
        if run is None:
            seed = recipe.fit_of("student" if kind != "teacher" else "teacher").seed
            about = {"parent": parent.path.name if parent else None, "seed": seed, **fields}
            run = Run.create(recipe, kind, options.root, options.source, fingerprint=data.store.fingerprint, **about)
            for leak in write_audit(run, data):
                options.progress.say(f"warning: {leak}")
        options.progress.say(f"run: {run.path}")
        names = [str(run.path)]
    broadcast_object_list(names)
    return run or Run.open(str(names[0]))


def shared_run(
    recipe: Recipe,
    kind: str,
    data: "Dataset",
    options: RunOptions,
    free: Mapping[str, set[str] | bool],
    parent: str | None = None,
) -> Run:
    """A run that holds others, of several processes: new, or of the same data and, but for `free`, recipe."""
    root, mine = Path(options.root), recipe.model_dump(mode="json", exclude=free)
    root.mkdir(parents=True, exist_ok=True)
    with locked(root / f".{recipe.name}-{kind}"):  # processes that start together find one folder
        for old in [] if options.fresh else reversed(runs(root)):
            same = (old.info.kind, old.info.parent, old.info.fingerprint) == (kind, parent, data.store.fingerprint)
            if same and old.recipe.model_dump(mode="json", exclude=free) == mine:
                options.progress.say(f"resuming {old.path} (--fresh starts anew)")
                return old
        run = Run.create(recipe, kind, root, options.source, parent=parent, fingerprint=data.store.fingerprint)
        write_audit(run, data)
        run.unlock()  # no process owns it: each run inside is locked by the process that works on it
        options.progress.say(f"run: {run.path}")
        return run


def cached_audit(store: cache.Store, samples: Sequence[Sample], labels: tuple[str, ...], split: str) -> AuditReport:
    key = [store.key, split, *labels]
    key += [f"{s.id}\t{s.label}\t{s.group}\t{s.split}\t{s.sequence}\t{s.time}\t{s.negative}" for s in samples]
    key += [f"{bad.file}\t{bad.reason}" for bad in store.skipped]
    return cache.record("audit", key, AuditReport, lambda: audit(samples, store.skipped, store.pixels, labels, split))


def write_audit(run: Run, data: "Dataset") -> list[str]:
    """Write split.csv, audit.json, and guessing's validation figures into run.json.

    Returns a warning for each leak of the test split into data.unlabelled.
    """
    leaks = list[str]()
    aside = [part for part in data.unlabelled if part.aside]
    bare = {part.samples[row].id for part in data.unlabelled for row in part.rows["train"]}
    every = [*data.samples, *(sample for part in aside for sample in part.samples)]
    hidden = NO_LABEL, NO_LABEL  # a label that no run may see is not written either
    rows = [(s.id, hidden[0], s.group, hidden[1]) if s.id in bare else (s.id, s.label, s.group, s.split) for s in every]
    run.save_csv("split.csv", ("path", "label", "group", "split"), rows)
    report = cached_audit(data.store, data.samples, data.recipe.labels, data.recipe.data.split)
    if data.recipe.data.faces:
        from stillwatch.lab import faces  # and with it a runtime, only where it is asked for

        found = faces.faces(data.samples, data.store.content).found
        report = report.model_copy(update={"faces": count_faces(found, data.samples)})
    for part in aside if run.info.kind != "adapted" else ():
        beside = _audit_beside(data, part)
        leaks += unlabelled_leaks(beside)
        report = report.model_copy(update={"unlabelled": beside, "warnings": [*leaks, *report.warnings]})
    run.save_json("audit.json", report.model_dump())
    valid = data.y[data.rows["valid"]]
    most = int(np.bincount(valid).argmax())
    run.note(
        fingerprint=data.store.fingerprint,
        aspect=data.store.aspect,
        majority={"label": data.recipe.labels[most], "valid_accuracy": float(np.mean(valid == most))},
        status="done" if run.info.kind == "audit" else "running",
    )
    return leaks


def _audit_beside(data: "Dataset", part: "Dataset") -> Unlabelled:
    rows, middle = data.rows["test"], data.recipe.data.steps // 2
    tested, skipped = [data.samples[row] for row in rows], len(part.store.skipped)

    def compute() -> Unlabelled:
        clips = np.concatenate([data.store.pixels[rows, middle], part.store.pixels[:, middle]])[:, None]
        return check_unlabelled(tested, part.samples, clips, skipped)

    groups = [f"{sample.id}\t{sample.group}" for sample in (*tested, *part.samples)]
    key = ["unlabelled", data.store.key, part.store.key, str(skipped), *groups]
    return cache.record("audit", key, Unlabelled, compute)


@contextmanager
def recording_failure(run: Run, accelerator: Accelerator) -> Iterator[None]:
    """The run's status says why it ended early; the same command resumes it."""
    try:
        yield
    except BaseException as error:
        if accelerator.is_main_process:
            run.finish("stopped" if isinstance(error, KeyboardInterrupt) else "failed", error=str(error))
        raise


def recipe_for(recipe: Recipe, fold: int, seed: int, kind: str) -> Recipe:
    """The recipe with this fold, and this seed for both sides; data.unlabelled is for distilled ones alone."""
    raw = recipe.model_dump(mode="json")
    if kind == "alone":
        for key in TOGETHER:
            raw["teacher"].pop(key)
    for table, key in WITHOUT_LABELS if kind != "distilled" else ():
        for values in (raw[table], raw["teacher"][table], raw["student"][table]):
            values.pop(key, None)
    raw["data"]["fold"], raw["fit"]["seed"] = fold, seed
    for side in ("teacher", "student"):
        raw[side]["fit"].pop("seed", None)
    return check(raw, recipe.name)


def finished_run(recipe: Recipe, kind: str, root: Path | str, fingerprint: str = "") -> Run | None:
    """The newest one that learnt the same; of a student alone whatever its recipe says of a teacher."""

    def learning(recipe: Recipe, seed: int) -> Recipe:
        whole = recipe_for(recipe, recipe.data.fold, seed, kind)
        fit, unread = whole.fit.model_copy(update={"track": ()}), LATER if kind != "alone" else (*LATER, "teacher")
        return whole.model_copy(update={"fit": fit} | dict.fromkeys(unread))

    wanted = learning(recipe, recipe.fit_of("student" if kind != "teacher" else "teacher").seed)
    for run in reversed(runs(root)):
        info = run.info
        same = (info.kind, info.status) == (kind, "done") and fingerprint in ("", info.fingerprint)
        if same and learning(run.recipe, info.seed or 0) == wanted:
            return run
    return None


def newest_teacher(recipe: Recipe, root: Path | str) -> Run:
    """teacher.init, or the newest finished teacher with the same name, labels, data, split and net, its seed's best.
    Raises UserError.
    """
    if isinstance(recipe.teacher.init, Path):
        run = Run.open(recipe.teacher.init)
        if run.info.kind != "teacher" or run.info.status != "done":
            raise UserError(
                f"teacher.init = {recipe.teacher.init}: a {run.info.kind} run ({run.info.status}), "
                "not a finished teacher"
            )
        if run.recipe.labels != recipe.labels:
            raise UserError(f"teacher.init = {recipe.teacher.init}: its labels are {', '.join(run.recipe.labels)}")
        return run
    done = [run for run in reversed(runs(root)) if (run.info.kind, run.info.status) == ("teacher", "done")]
    found = [run for run in done if _teaching(run.recipe) == _teaching(recipe)]
    seed = recipe.fit_of("teacher").seed
    if found:
        return next((run for run in found if run.info.seed == seed), found[0])
    raise UserError(
        f"{root}: no finished teacher for {recipe.name!r} with this data, split (fold {recipe.data.fold}) and net; run "
        "`stillwatch teach` with the same recipe and overrides first, or name one with teacher.init=RUN"
    )


def _teaching(recipe: Recipe) -> tuple[object, ...]:
    """What recipes of one teacher have in common."""
    teacher, data = recipe.teacher, recipe.data.model_dump(mode="json", exclude={"root", "max_bad", "unlabelled"})
    about = (recipe.name, recipe.labels, data, teacher.signals)
    if isinstance(teacher.init, tuple):
        return *about, teacher.init, teacher.weights, teacher.average
    if teacher.students:
        return *about, teacher.students, teacher.weights, teacher.average, recipe.student.net
    return *about, teacher.data, teacher.net


def check_teacher(teacher: Run, data: "Dataset") -> None:
    """Raises UserError for one that learnt nothing or has seen the student's test samples."""
    if nothing := teacher.info.learnt_nothing:
        raise UserError(f"{teacher.path}: refused as a teacher: {nothing}. Teach it longer, or with another fit.lr")
    _unseen(teacher, data, f"{teacher.path}: refused as a teacher: it was")


def check_weights(net: Net, data: "Dataset") -> None:
    """Raises UserError where net.weights, or their own start, learnt from what is held back here."""
    place = Path(net.weights)
    home = place if place.is_dir() else place.parent
    for _ in range(9):  # a chain is short; a ring would have no end
        if not (home / "run.json").is_file():
            return
        run = Run.open(home)
        _unseen(run, data, f"net.weights = {net.weights!r}: refused: {run.path.name} was")
        home = Path(run.net.weights)
        home = home if home.is_dir() else home.parent


def _unseen(run: Run, data: "Dataset", what: str) -> None:
    # Of a student also what its teacher labelled
    learnt = _rows(run, ("train",) if run.info.kind in ("teacher", "alone") else ("train", NO_LABEL))
    mine, theirs = data.recipe.data, run.recipe.data
    held = {data.samples[row].id for split in ("valid", "test") for row in data.rows[split]}
    way = "take one of the same data.split, data.fold and data.seed"
    # Where it held the same samples back, frames of one clip on both sides are this split's own choice
    if not held <= {path for path, _ in _rows(run, ("valid", "test"))}:
        seen = {_file(path) for path, _ in learnt}
        if leaked := sum(_file(name) in seen for name in held):
            raise UserError(f"{what} trained on {leaked} of the {len(held)} pictures that this split holds back; {way}")
    if mine.split == "grouped" and (mine.source, mine.group) == (theirs.source, theirs.group):
        tested = {data.samples[row].group for row in data.rows["test"]} - {""}
        if people := sorted(tested & {group for _, group in learnt}):
            named = f"{len(people)} of the {len(tested)} groups of this test, such as {people[0]}"
            raise UserError(f"{what} trained on {named}; {way}")


def _file(id: str) -> str:
    """A clip's file, so that none of its other frames counts as new; else the sample."""
    file, _, _ = id.rpartition("#")
    return file if file.lower().endswith(VIDEOS) else id


def _rows(run: Run, splits: Sequence[str]) -> list[tuple[str, str]]:
    with (run.path / "split.csv").open(newline="", encoding="utf-8") as file:
        return [(row["path"], row["group"]) for row in csv.DictReader(file) if row["split"] in splits]
