"""The naive loop of the papers' code and ours, side by side in one run: what it is worth to compute things once.

In: a recipe, and its pictures as files (drawn, or the real ones). Out: a printed table, and one CSV row a case.
Called by `make bench`. Nets start from random weights, for which time is the same: no accuracy is claimed here.
"""

import argparse
import csv
import gc
import itertools
import os
import platform
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import av
import cv2
import psutil
import torch
from torch import nn

from benchmarks.naive import OPTIMIZERS, Naive, Spent, accelerator
from stillwatch import recipe
from stillwatch.errors import UserError
from stillwatch.lab.data.reader import decode, gather
from stillwatch.lab.data.sources import Sample
from stillwatch.lab.data.splits import assign
from stillwatch.lab.models import classifier
from stillwatch.lab.models.classifier import Classifier
from stillwatch.lab.training import pipeline
from stillwatch.lab.training.runs import RunOptions, load_net
from stillwatch.media import synthetic
from stillwatch.recipe import Data, Fit, Recipe
from stillwatch.run import Progress, Run

Stage = Literal["teach", "distil"]
STAGES: tuple[Stage, ...] = ("teach", "distil")


@dataclass(frozen=True)
class Case:
    """What is measured of a recipe, and with how many pictures unless --limit says otherwise."""

    stages: tuple[Stage, ...] = ("teach", "distil")
    limit: int = 200


# ---- the pictures, as files that both sides read


def asked(name: str, overrides: Sequence[str], real: Path | None, limit: int) -> tuple[Recipe, bool]:
    """The recipe with random weights, and its pictures: those under `real`, else drawn. -> (recipe, are they real?)"""
    scratch = ("teacher.net.weights=scratch", "student.net.weights=scratch")
    plain = recipe.load(name, [*scratch, *overrides])
    root = real / plain.data.root.name if real else None
    if root and root.is_dir():
        return recipe.load(name, [*scratch, f"data.root='{root}'", *overrides]), True
    scene = next((scene for scene, labels in synthetic.LABELS.items() if set(plain.labels) == set(labels)), None)
    if scene is None:
        raise UserError(
            f"{name}: the toy does not draw its labels; --data must name a folder with {plain.data.root.name}/"
        )
    each = -(-limit // (PEOPLE * len(plain.labels))) if limit else 40
    height, width = SIZES[scene]
    source = f'{{ name = "toy", scene = "{scene}", people = {PEOPLE}, pictures = {each}'
    drawn = f"data.source={source}, height = {height}, width = {width} }}"
    return recipe.load(name, [*scratch, drawn, "data.group=folder", "data.split=grouped", *overrides]), False


def lay(task: Recipe, folder: Path, limit: int) -> Recipe:
    """Put up to `limit` samples of the recipe's data into `folder` as picture files with a table; 0: all of them.

    Files are linked to; drawn pictures and frames of clips become JPEGs of their own size, as the papers' authors had
    them. Returns the recipe that reads this folder.
    """
    if task.data.frames > 1:
        raise UserError(f"data.frames = {task.data.frames}: the benchmark knows single pictures only")
    samples = sorted(_some(gather(task).samples, task.labels, limit), key=lambda sample: (str(sample.path), sample.id))
    rows = []
    for number, (sample, image) in enumerate(_native(samples, task.data)):
        name = f"{number:06d}{sample.path.suffix if image is None else '.jpg'}"
        if image is None:
            (folder / name).symlink_to(sample.path.resolve())
        else:
            cv2.imwrite(str(folder / name), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        rows.append((name, sample.label, sample.group, sample.split, sample.sequence, sample.time))
    with (folder / "samples.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "group", "split", "sequence", "time"), *rows])
    raw = task.model_dump(mode="json")
    group = "column:group" if all(sample.group for sample in samples) else None
    raw["data"] |= {"source": "csv", "root": str(folder), "group": group, "rate": None}
    return recipe.check(raw, task.name)


def _some(samples: Sequence[Sample], labels: Sequence[str], limit: int) -> list[Sample]:
    """`limit` samples, as many of each label, spread evenly over its groups."""
    kept = []
    for label in labels:
        mine = sorted((s for s in samples if s.label == label), key=lambda s: (s.group, s.id))
        share = min(len(mine), -(-limit // len(labels)) if limit else len(mine))
        kept += [mine[number * len(mine) // share] for number in range(share)]
    return kept


def _native(samples: Sequence[Sample], data: Data) -> Iterator[tuple[Sample, Any]]:
    """Each sample with its picture uint8 (H,W,3) in its own size, or with None where it is a picture file already."""
    for path, of_file in itertools.groupby(samples, key=lambda sample: sample.path):
        group = list(of_file)
        if not group[0].frames:
            yield from ((sample, None) for sample in group)
            continue
        size = data.hw
        if path == Path() and isinstance(data.source, dict):
            size = (data.source["height"], data.source["width"])
        elif "-ubyte" not in path.name:
            with av.open(str(path)) as container:
                size = (container.streams.video[0].height, container.streams.video[0].width)
        for sample, picture in decode(group, data.model_copy(update={"size": size, "gray": False})):
            if not isinstance(picture, str):
                yield sample, picture[0]


# ---- ours: the very functions that `stillwatch teach` and `stillwatch distil` call


class Ears:
    """Listens to the pipeline's progress bars: how many pictures were trained on, and how long each phase took."""

    def __init__(self) -> None:
        self.seen = 0
        self.phases: dict[str, float] = {}

    def bar(self, things: Iterable[Any], count: int, what: str) -> Iterator[Any]:
        phase = "epochs" if what.startswith("epoch ") else what.removesuffix(", once")
        started = time.perf_counter()
        for thing in things:
            if phase == "epochs":
                self.seen += len(thing[1])
            yield thing
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - started


def ours(stage: Stage, task: Recipe, root: Path, spent: Spent) -> Run:
    """One stage by the pipeline: gather, decode, audit, cache, train, validate, predict and save are all counted."""
    ears = Ears()
    work = pipeline.teach if stage == "teach" else pipeline.distil
    run = work(task, RunOptions(root, fresh=True, progress=Progress(bar=ears.bar)))
    spent.seen, spent.accuracy = ears.seen, run.history()[-1]["valid"]["accuracy"]
    spent.phases = ears.phases
    return run


def untaught(task: Recipe, root: Path) -> Run:
    """A teacher's run whose net has learnt nothing, for cases that do not measure teaching."""
    torch.manual_seed(0)
    net = classifier.build_side(task, "teacher")
    run = Run.create(task, "teacher", root)
    run.save("best.pt", partial(torch.save, {"net": net.state_dict()}))
    run.save_csv("split.csv", ("path", "label", "group", "split"), ())
    run.finish(best={"accuracy": 0.0})
    return run


# ---- both, one after the other


def compare(task: Recipe, stages: Sequence[Stage], folder: Path, workers: int, repeats: int) -> dict[str, list[Spent]]:
    """Run both sides `repeats` times in turn, ours with an empty cache each time, never both at once.

    Returns "teach naive", "teach ours", "distil naive", "distil ours", or those asked for: a Spent for each repeat.
    Raises UserError where the two sides trained on different numbers of pictures: then nothing was compared.
    """
    found: dict[str, list[Spent]] = {}
    naive = Naive.of(task, workers)
    _warm(task.fit_of("student"))
    for repeat in range(repeats):
        root = folder / f"runs-{repeat}"
        teacher_net: Classifier | None = None
        if "teach" not in stages:
            teacher_net = load_net(_accepted(untaught(task, root)))
        with _cache(folder / f"cache-{repeat}"):
            for stage in stages:
                sides = ["naive", "ours"] if repeat % 2 == 0 else ["ours", "naive"]
                for side in sides:
                    with measured() as spent:
                        if side == "ours":
                            run = ours(stage, task, root, spent)
                        elif stage == "teach":
                            taught = naive.learn("teacher", None, spent)
                        else:
                            naive.learn("student", teacher_net, spent)
                    found.setdefault(f"{stage} {side}", []).append(spent)
                if stage == "teach":
                    teacher_net = taught
                    _accepted(run)
                counts = {found[f"{stage} {side}"][-1].seen for side in sides}
                if len(counts) > 1:
                    raise UserError(
                        f"{task.name}, {stage}: one loop trained on other pictures than the other: {counts}"
                    )
    return found


def _accepted(run: Run) -> Run:
    """Lower the bar for this teacher: a short run's may not beat the majority class, and only time is asked here."""
    run.note(majority={"label": run.recipe.labels[0], "valid_accuracy": -1.0})
    return run


@contextmanager
def measured() -> Iterator[Spent]:
    """Seconds and highest resident memory of the body: this process's, and what its workers have for themselves.

    The process keeps what the side before it left, so the first side's memory is the cleaner figure.
    """
    gc.collect()
    spent, done, me = Spent(), threading.Event(), psutil.Process()

    def look() -> None:
        memory = me.memory_info().rss
        for child in me.children(recursive=True):
            with suppress(psutil.Error):
                memory += child.memory_full_info().uss
        spent.memory = max(spent.memory, memory)

    def watch() -> None:
        while not done.wait(1):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    look()
    watcher.start()
    started, used = time.perf_counter(), sum(os.times()[:4])
    try:
        yield spent
    finally:
        spent.seconds, spent.processor = time.perf_counter() - started, sum(os.times()[:4]) - used
        done.set()
        watcher.join()
        look()


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("STILLWATCH_CACHE")
    os.environ["STILLWATCH_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["STILLWATCH_CACHE"]
        else:
            os.environ["STILLWATCH_CACHE"] = before


def _warm(plan: Fit) -> None:
    """What a process pays once, whoever comes first: late imports, thread pools, the device's context."""
    layer = nn.Linear(8, 8).to(accelerator(plan).device)
    optimizer = OPTIMIZERS[plan.optimizer](list(layer.parameters()), plan)
    layer(torch.zeros(2, 8, device=layer.weight.device)).sum().backward()
    optimizer.step()


# ---- what is said of it


def facts(task: Recipe, real: bool, stages: Sequence[Stage], workers: int) -> dict[str, Any]:
    """What the figures depend on. No name of the machine, no path."""
    teacher, student = task.fit_of("teacher"), task.fit_of("student")
    split = Counter(sample.split for sample in assign(gather(task).samples, task.data))
    device = accelerator(student).device
    return {
        "recipe": task.name,
        "stages": "+".join(stages),
        "data": "real" if real else "toy",
        "size": "x".join(map(str, (*task.data.hw, task.data.channels))),
        "train": split["train"],
        "valid": split["valid"],
        "test": split["test"],
        "teacher": task.teacher.net.name,
        "student": task.student.net.name,
        "teacher_epochs": teacher.epochs if "teach" in stages else "",
        "epochs": student.epochs,
        "views": (student.views or "new each epoch") if student.augment else 1,
        "batch": student.batch,
        "naive_workers": workers,
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "torch": torch.__version__,
    }


def row(about: dict[str, Any], found: dict[str, list[Spent]]) -> dict[str, Any]:
    """One line of the CSV: the facts, then seconds (medians), ratios, memory and pictures seen."""
    out = dict(about)
    totals = {"naive": 0.0, "ours": 0.0}
    for stage, side in itertools.product(STAGES, ("naive", "ours")):
        spent = found.get(f"{stage} {side}", [])
        seconds = median(s.seconds for s in spent) if spent else 0.0
        totals[side] += seconds
        out[f"{stage}_{side}_s"] = f"{seconds:.2f}" if spent else ""
        out[f"{stage}_{side}_cpu_s"] = f"{median(s.processor for s in spent):.2f}" if spent else ""
        out[f"{stage}_{side}_mb"] = round(max(s.memory for s in spent) / 2**20) if spent else ""
    return out | {
        "naive_s": f"{totals['naive']:.2f}",
        "ours_s": f"{totals['ours']:.2f}",
        "ratio": f"{totals['naive'] / totals['ours']:.2f}",
        "seen": sum(spent[0].seen for key, spent in found.items() if key.endswith("ours")),
        "repeats": max(map(len, found.values())),
    }


def say(about: dict[str, Any], found: dict[str, list[Spent]], stages: Sequence[Stage]) -> None:
    """The table for a person."""
    taught = f"{about['teacher_epochs']} + " if about["teacher_epochs"] else ""
    print(
        f"\n{about['recipe']}: {about['teacher']} -> {about['student']}, {about['size']}, {about['data']} pictures, "
        f"{about['train']} to train on, E = {taught}{about['epochs']}, V = {about['views']}, batch {about['batch']}\n"
        f"naive: DataLoader with {about['naive_workers']} workers; ours: an empty cache. {about['device']}, "
        f"{about['cores']} cores (load {about['load']}), {about['threads']} threads, torch {about['torch']}\n"
        f"{'stage':<8}{'naive s':>10}{'ours s':>10}{'ratio':>8}{'naive pictures/s':>19}{'ours':>9}"
        f"{'naive MB':>11}{'ours MB':>9}  valid accuracy"
    )
    sums, seen = {"naive": 0.0, "ours": 0.0}, 0
    for stage in stages:
        pair = {side: found[f"{stage} {side}"] for side in sums}
        seconds = {side: median(s.seconds for s in spent) for side, spent in pair.items()}
        memory = {side: max(s.memory for s in spent) / 2**20 for side, spent in pair.items()}
        count = pair["ours"][0].seen
        sums, seen = {side: sums[side] + seconds[side] for side in sums}, seen + count
        print(
            f"{_times(stage, seconds, count)}{memory['naive']:>11.0f}{memory['ours']:>9.0f}"
            f"  {pair['naive'][-1].accuracy:.3f} {pair['ours'][-1].accuracy:.3f}"
        )
    if len(stages) > 1:
        print(_times("both", sums, seen))
    for stage in stages:
        last = found[f"{stage} ours"][-1]
        rest = {"the rest (audit, marks, saving)": last.seconds - sum(last.phases.values())}
        print(f"ours, {stage}: " + ", ".join(f"{what} {s:.1f} s" for what, s in (last.phases | rest).items()))


def _times(stage: str, seconds: dict[str, float], seen: int) -> str:
    naive, ours = seconds["naive"], seconds["ours"]
    return f"{stage:<8}{naive:>10.1f}{ours:>10.1f}{naive / ours:>7.1f}×{seen / naive:>19.0f}{seen / ours:>9.0f}"


def keep(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append to the CSV. Raises UserError where the file there has other columns."""
    head = list(rows[0])
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            old = next(csv.reader(file), [])
        if old != head:
            raise UserError(f"--out {path}: has other columns than this benchmark writes; move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, head, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with one line that says what is wrong."""
    ask = argparse.ArgumentParser(prog="python -m benchmarks.distil", description=(__doc__ or "").partition("\n")[0])
    ask.add_argument("--recipe", action="append", help=f"may be given several times; default: {' '.join(CASES)}")
    ask.add_argument("--data", type=Path, help="holds violence/, driver-inattention/; default: STILLWATCH_DATA")
    ask.add_argument("--stages", nargs="+", choices=STAGES, help="default: what the issue asks of each case")
    ask.add_argument("--epochs", type=int, help="of both stages; default: the recipe's own")
    ask.add_argument("--limit", type=int, help="pictures in all, splits included; 0: every one; default: a few minutes")
    ask.add_argument("--workers", type=int, default=2, help="of the naive loop's DataLoader (default 2)")
    ask.add_argument("--repeats", type=int, default=1, help="medians are told (default 1)")
    ask.add_argument("--out", type=Path, help="a CSV to append one row a case to, such as results/bench.csv")
    ask.add_argument("override", nargs="*", help="key=value of the recipe")
    given = ask.parse_args(arguments)
    real = given.data or (Path(os.environ["STILLWATCH_DATA"]) if os.environ.get("STILLWATCH_DATA") else None)
    overrides = list(given.override)
    if given.epochs:
        overrides += [f"fit.epochs={given.epochs}", f"teacher.fit.epochs={given.epochs}"]
    rows = []
    try:
        for name in given.recipe or CASES:
            case = CASES.get(name.removesuffix(".toml"), Case())
            limit = case.limit if given.limit is None else given.limit
            stages = [stage for stage in STAGES if stage in (given.stages or case.stages)]
            with tempfile.TemporaryDirectory(prefix="stillwatch-bench-") as folder:
                (Path(folder) / "pictures").mkdir()
                wanted, is_real = asked(name, overrides, real, limit)
                task = lay(wanted, Path(folder) / "pictures", limit)
                about = facts(task, is_real, stages, given.workers)
                found = compare(task, stages, Path(folder), given.workers, given.repeats)
            say(about, found, stages)
            rows.append(row(about, found))
        if given.out:
            keep(given.out, rows)
    except UserError as mistake:
        print(mistake, file=sys.stderr)
        return 1
    return 0


PEOPLE = 10  # who are drawn, or whose cameras
SIZES = {"cabin": (360, 640), "street": (240, 320)}  # of the drawn files: as large as the real ones

# Limits that leave the training split just above a multiple of the batch: both loops leave the last, short one out
CASES: dict[str, Case] = {
    "published/violence": Case(("teach", "distil"), 540),
    "driving": Case(("distil",), 720),
}

if __name__ == "__main__":
    sys.exit(main())
