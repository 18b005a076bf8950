"""Commands of the lab. Imports floors only inside functions."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillwatch.cli.console import (
    Fresh,
    On,
    RecipeFile,
    RunFolder,
    RunsFolder,
    Split,
    bundle_folder,
    print_run,
    progress,
    table,
)
from stillwatch.errors import UserError
from stillwatch.recipe import find
from stillwatch.recipe import load as read_recipe
from stillwatch.run import Run
from stillwatch.run import runs as all_runs

if TYPE_CHECKING:
    from stillwatch.bundle import Bundle
    from stillwatch.evaluation.report.occlusion import Looks
    from stillwatch.evaluation.report.report import Album
    from stillwatch.lab.training.runs import RunOptions

app = typer.Typer(rich_markup_mode=None)  # "[tune]" in a help text is no markup


def keys(example: str) -> Any:
    """The argument KEY=VALUE..., with an example."""
    return typer.Argument(metavar="[KEY=VALUE]...", help=f"recipe keys to change, such as {example}")


Anyway = Annotated[bool, typer.Option("--anyway", help="also a net that is no better than a constant answer")]
Overrides = Annotated[list[str] | None, keys("fit.epochs=5")]


@app.command(epilog="Example: stillwatch audit driving data.root=data/driver-inattention")
def audit(recipe: RecipeFile, overrides: Overrides = None, runs: RunsFolder = Path("runs")) -> None:
    """Check the data before training: leaks, duplicates, unreadable files, and what guessing would reach."""
    from stillwatch.lab.data.audit import AuditReport, summary
    from stillwatch.lab.data.contact_sheets import contact_sheets
    from stillwatch.lab.training.pipeline import inspect

    plan = read_recipe(recipe, overrides or ())
    run, data = inspect(plan, _options(recipe, runs))
    points = None
    if plan.data.faces:
        from stillwatch.lab.faces import DRAWN, faces

        points = faces(data.samples, data.store.content).placed(DRAWN, plan.data)
    sheets = contact_sheets(data.samples, data.store.pixels, plan.labels, run.path, points=points)
    print(summary(AuditReport.model_validate(run.read_json("audit.json"))))
    print(f"\nwritten: {run.path}/audit.json, split.csv and {len(sheets)} contact sheets")


@app.command(epilog="Example: stillwatch teach driving data.root=data/driver-inattention data.fold=0")
def teach(
    recipe: RecipeFile, overrides: Overrides = None, runs: RunsFolder = Path("runs"), fresh: Fresh = False
) -> None:
    """Train the recipe's teacher. Resumes an interrupted run.

    Nets: any of timm's, and vgg16-gap, smallcnn, mnist-cnn, mnist-small, yolo-cls-n, r2plus1d-small (clips).
    """
    from stillwatch.lab.training import pipeline

    print_run(pipeline.teach(read_recipe(recipe, overrides or ()), _options(recipe, runs, fresh)))


@app.command(epilog="Example: stillwatch distil driving --alone, then the same without --alone, then compare.")
def distil(
    recipe: RecipeFile,
    overrides: Overrides = None,
    alone: Annotated[bool, typer.Option("--alone", help="the control: same student, epochs, data; no teacher")] = False,
    runs: RunsFolder = Path("runs"),
    fresh: Fresh = False,
) -> None:
    """Train the recipe's student under the newest matching teacher, or under teacher.init=RUN."""
    from stillwatch.lab.training import pipeline

    print_run(pipeline.distil(read_recipe(recipe, overrides or ()), _options(recipe, runs, fresh), alone))


@app.command(epilog="Example: stillwatch compare runs/driving-* --out report")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="runs of any kind, seed and fold")],
    out: Annotated[Path | None, typer.Option("--out", help="report folder; by default report/ in the last run")] = None,
    split: Split = "test",
) -> None:
    """Did distillation help, by how much, and how sure is that? Writes report.html and report.json."""
    from stillwatch.evaluation import pooling

    opened = [Run.open(path) for path in runs]
    chosen = [run for run in opened if pooling.comparable(run)] or opened
    for run in opened:
        if run not in chosen:
            print(f"{run.path}: passed over: an {run.info.kind} run has nothing to compare")
    _report(chosen, out or chosen[-1].path / "report", split)


@app.command(
    epilog="Example: stillwatch crossval driving data.root=data/driver-inattention --seeds 3 --jobs 2. A Slurm array "
    "calls it with --task $SLURM_ARRAY_TASK_ID, and once more without --task for the report."
)
def crossval(
    recipe: RecipeFile,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="from fit.seed on")] = 3,
    folds: Annotated[int | None, typer.Option("--folds", min=1, help="the first so many; by default all")] = None,
    only: Annotated[str, typer.Option("--only", help="of teacher, alone and distilled")] = "teacher,alone,distilled",
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="tasks at a time, each a process")] = 1,
    on: On = "",
    task: Annotated[int | None, typer.Option("--task", min=0, help="this one alone, from 0, and no report")] = None,
    runs: RunsFolder = Path("runs"),
    fresh: Fresh = False,
) -> None:
    """Train every fold and seed of teacher, alone and distilled, and report on all. Finished ones are kept."""
    from stillwatch.lab.training import crossval as work

    plan = read_recipe(recipe, overrides or ())
    wanted = work.tasks(plan, seeds, folds, only.split(","))
    if task is not None and task >= len(wanted):
        raise UserError(f"--task {task}: there are {len(wanted)}, numbered from 0")
    chosen = wanted if task is None else wanted[task : task + 1]
    folder, made = work.crossval(plan, chosen, _options(recipe, runs, fresh), jobs, on)
    if task is None:
        _report(made, folder.path / "report")


@app.command(epilog="Example: stillwatch judge runs/driving-teacher-001, or: stillwatch judge bundle")
def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="a run or bundle folder", parser=bundle_folder)],
    overrides: Annotated[list[str] | None, keys("data.root=FOLDER, where the data were moved")] = None,
    split: Split = "test",
    runs: RunsFolder = Path("runs"),
    out: Annotated[Path | None, typer.Option("--out", help="report folder of a bundle, or of --on")] = None,
    on: Annotated[bool, typer.Option("--on", help="all of another data set: data.root=, data.source=, …")] = False,
) -> None:
    """Report on one run, on a bundle's files beside the run that they were exported from, or on a run on other data."""
    if on:
        from stillwatch.evaluation.report.report import compare as write
        from stillwatch.lab.training.pipeline import on_other_data

        judged = on_other_data(Run.open(run), overrides or (), out, progress())
        return _print_report(write([judged], judged.path), judged.path)
    if not (run / "bundle.json").is_file():
        from stillwatch.evaluation.pooling import comparison_set

        asked = Run.open(run).amended(overrides or (), ())
        return _report(comparison_set(asked, split), out or run / "report", split)
    from stillwatch import bundle
    from stillwatch.evaluation.bundle_eval import judge_bundle
    from stillwatch.lab.data.dataset import load_dataset

    opened = bundle.load(run)
    name = str(opened.manifest.run.get("id"))
    if not (runs / name / "run.json").is_file():
        where = "" if runs.is_absolute() else f" (relative to {Path.cwd()})"
        raise UserError(f"{run}: its run {name!r} is not in '{runs}'{where}; name the folder of runs with --runs")
    origin = Run.open(runs / name).amended(overrides or (), ())
    data = load_dataset(origin.seen, progress())
    arrays, folder, faces = data.eval_arrays(split), out or Path(f"{run}-report"), None
    if opened.manifest.fusion:
        from stillwatch.inference.detector import face_net
        from stillwatch.lab.export.fusion import faces_of

        told = faces_of(data, progress(), face_net(opened))
        faces = [told[row] for row in data.rows[split]]
    _print_report(judge_bundle(opened, origin, arrays, folder, split, _album(origin), progress(), faces), folder)


@app.command(
    epilog="Example: stillwatch adapt runs/driving-distilled-001 --to drive.mp4. A stream with a password is named by "
    "a variable: --to '$CAMERA'"
)
def adapt(
    run: RunFolder,
    to: Annotated[str, typer.Option("--to", help="folder, film, csv or camera, or a group of its own test split")],
    overrides: Annotated[list[str] | None, keys("adapt.steps=50 or adapt.what=norms")] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=10, help="of a camera, two frames each")] = 600,
) -> None:
    """Let a student go on learning on one new person or camera, without labels; judged on the later part of it."""
    from stillwatch.lab.adapt import adapt as work

    parent, place, name = Run.open(run).amended(overrides or (), ("adapt",)), to, to
    if to.startswith("$") or "://" in to or Path(to).is_char_device():
        place, name = _filmed(to, run, seconds)
    print_run(work(parent, place, progress(), name))


def _filmed(camera: str, run: Path, seconds: float) -> tuple[str, str]:
    import os
    import time

    from stillwatch.monitor.cameras import source
    from stillwatch.monitor.cameras.capture import jpeg

    address = os.environ.get(camera[1:], "") if camera.startswith("$") else camera
    if not address or (camera == address and "@" in address):
        why = "others see a password there; export it, and name it --to '$CAMERA'"
        why = why if address else "there is no such variable"
        raise UserError(f"--to {source.redact(camera)}: {why}")
    folder = run.with_name(f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder.mkdir()
    for number, (at, picture) in enumerate(source.frames(address, 2.0, seconds)):
        if at > seconds:
            break
        (folder / f"{number:06d}.jpg").write_bytes(jpeg(picture, 1280, 95))
    return str(folder), source.redact(address)


@app.command(epilog="Example: stillwatch prune runs/driving-distilled-001 --keep 0.6")
def prune(
    run: RunFolder,
    overrides: Annotated[list[str] | None, keys("prune.steps=3 or prune.fit={epochs=5}")] = None,
    keep: Annotated[float | None, typer.Option("--keep", help="share of the arithmetic to keep (prune.keep)")] = None,
    fresh: Fresh = False,
    anyway: Anyway = False,
) -> None:
    """Remove the channels that matter least and fine-tune; also trains the narrower student that it must beat."""
    from stillwatch.lab.compression.prune import prune as work
    from stillwatch.lab.training.runs import RunOptions

    changes = [*(overrides or ()), *([f"prune.keep={keep}"] if keep is not None else [])]
    parent = Run.open(run).amended(changes, ("prune",))
    print_run(work(parent, RunOptions(run.parent, parent.text, fresh, progress()), anyway))


@app.command(epilog="Example: stillwatch quantise runs/driving-pruned-001")
def quantise(
    run: RunFolder,
    overrides: Annotated[list[str] | None, keys("quantise.frames=256 or quantise.fit={epochs=2}")] = None,
    anyway: Anyway = False,
) -> None:
    """INT8: post-training, then in training if too much is lost. Every stage is judged and timed."""
    from stillwatch.lab.compression.quantise import quantise as work
    from stillwatch.lab.training.runs import RunOptions

    parent = Run.open(run).amended(overrides or (), ("quantise",))
    made = work(parent, RunOptions(run.parent, parent.text, progress=progress()), anyway)
    table(
        (
            [
                row["name"], f"{row['macro_f1']:.3f}", "–" if row.get("drop") is None else f"{row['drop']:+.2f}",
                f"{row['ms']:.3f}", f"{row['bytes'] / 1000:.0f}", row["why"],
            ]
            for row in made.info.stages
        ),
        ["stage", "macro-F1", "drop", "ms", "kB", ""],
        (1, 2, 3, 4),
    )  # fmt: skip
    kept = "goes into a bundle" if made.info.kept else f"stays out of a bundle: {made.info.why}"
    print(f"{made.path}: {made.info.stage}: {kept}")


@app.command(epilog="Example: stillwatch export runs/driving-pruned-001 --int8 runs/driving-quantised-001")
def export(
    run: RunFolder,
    overrides: Annotated[list[str] | None, keys("export.false_alarms=0.02 or rule.cooldown=30")] = None,
    int8: Annotated[Path | None, typer.Option("--int8", metavar="RUN", help="the quantised run of this run")] = None,
    out: Annotated[Path, typer.Option("--out", help="bundle folder; an older bundle is replaced")] = Path("bundle"),
    form: Annotated[
        list[str] | None, typer.Option("--format", help="onnx-legacy, openvino or ncnn, besides onnx; repeatable")
    ] = None,
    anyway: Anyway = False,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="CROSSVAL", help="temperature and threshold from the people it left out"),
    ] = None,
    face: Annotated[
        Path | None,
        typer.Option("--face", metavar="CROSSVAL", help="of data.region=face: its net goes along where it helps"),
    ] = None,
    map: Annotated[bool, typer.Option("--map", help="files also say where in the picture the evidence is")] = False,
) -> None:
    """Make the bundle, the only folder that leaves the lab: files that answer as the trained net does, or an error."""
    from stillwatch.lab.export.packaging import export as work

    overrides = [*(overrides or ()), *["export.map=true"] * map]
    origin = Run.open(run).amended(overrides, ("export", "rule"))
    beside = {"int8": int8, "crossval": calibrate, "face": face}
    runs = {name: Run.open(path) for name, path in beside.items() if path}
    _print_bundle(work(origin, out=out, formats=form or (), progress=progress(), anyway=anyway, **runs))


@app.command(epilog="Example: stillwatch tune driving --trials 40; again, or in a second terminal, it goes on.")
def tune(
    recipe: RecipeFile,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="in all, earlier calls included")] = 20,
    runs: RunsFolder = Path("runs"),
    fresh: Fresh = False,
    storage: Annotated[
        str | None, typer.Option("--storage", help="of Optuna, for many machines: study.journal or postgresql://…")
    ] = None,
) -> None:
    """Search the keys of the recipe's [tune] for the best validation figure; writes the best recipe."""
    from stillwatch.evaluation.report.tuning import picture
    from stillwatch.lab.training.tuning import tune as search

    plan = read_recipe(recipe, overrides or ())
    best = search(plan, trials, _options(recipe, runs, fresh), storage)
    (best.parent / "tuning.png").write_bytes(picture(best.parent / "trials.csv", plan.tune.metric))
    print(f"written: {best}, and beside it trials.csv and tuning.png")


@app.command(epilog="Example: stillwatch ls --runs runs")
def ls(runs: RunsFolder = Path("runs")) -> None:
    """List the runs with their validation figures."""
    rows = []
    for run in all_runs(runs):
        best = run.info.best
        figures = [f"accuracy {100 * best['accuracy']:.1f} %", f"macro-F1 {best['macro_f1']:.3f}"] if best else []
        rows.append([str(run.path), run.info.status, run.info.started[:16], *figures])
    if not rows:
        return print(f"{runs}: no runs yet; `stillwatch teach RECIPE` makes one")
    table(rows, right=(3,))


def _print_bundle(bundle: "Bundle") -> None:
    manifest, rows = bundle.manifest, []
    for model in manifest.models:
        valid, parity = model.figures["valid"], model.figures["parity"]
        size = sum(manifest.files[name].bytes for name in model.files) / 1000
        figures = [f"{size:.0f}", f"{valid['macro_f1']:.3f}", f"{parity['max_difference']:.1e}"]
        rows.append([model.name, model.precision, *figures, f"{1 - parity['top1_agreement']:.2%}"])
    table(rows, ["file", "", "kB", "macro-F1", "largest difference from PyTorch", "other class"], (2, 3, 4, 5))
    for missing in manifest.left_out:
        print(f"left out: {missing['name']}: {missing['why']}")
    if heat := manifest.temperature:
        error = f"ECE {heat['ece_before']:.3f} -> {heat['ece_after']:.3f}"
        print(f"temperature {heat['value']:.2f}: {error} ({heat['source']}, {heat['people']} people)")
    if head := manifest.fusion:
        print(
            "fused with the driver's face, mean of people left out: accuracy {accuracy_alone:.1%} -> {accuracy:.1%}, "
            "macro-F1 {macro_f1_alone:.3f} -> {macro_f1:.3f}".format(**head.figures)
        )
        if head.net and "accuracy_signals" in head.figures:
            words = "of that without {0}: accuracy {accuracy_signals:.1%}, macro-F1 {macro_f1_signals:.3f}"
            print(words.format(head.net.name, **head.figures))
    for face, point in (("", manifest.operating), ("with the face: ", head.operating if head else None)):
        if not point:
            continue
        print(
            f"{face}threshold {point['threshold']:.4f}: {point['false_alarm_rate']:.2%} of safe frames alarm, "
            f"{point['recall']:.0%} of the others ({point['source']}, {point['people']} people)"
        )
        upper = point["upper"]
        bound = "no telling how many" if upper is None else f"at most {upper:.0%} at 95 %"
        print(f"{face}false alarms on new people: {bound}" + (" (--calibrate CROSSVAL)" if upper is None else ""))
    whole = sum(entry.bytes for entry in manifest.files.values()) + (bundle.path / "bundle.json").stat().st_size
    print(f"bundle: {bundle.path}, {whole / 1e6:.2f} MB")


def _report(runs: Sequence[Run], folder: Path, split: str = "test") -> None:
    """With pictures and looks of the last run."""
    from stillwatch.evaluation.report.report import compare as write

    _print_report(write(runs, folder, _album(runs[-1]), split, looks=_looks(runs[-1], split)), folder)


def _print_report(report: dict[str, Any], folder: Path) -> None:
    rows = []
    for name, model in report["models"].items():
        ends = (model.get("ci95") or {}).get("macro_f1")
        figures = [f"{100 * model['accuracy']:.1f} %", f"{model['macro_f1']:.3f}"]
        figures += [f"({ends[0]:.3f} to {ends[1]:.3f})" if ends else "", f"{model['ece']:.3f}"]
        rows.append([name, *figures, f"{model['params'] or 0:,}"])
    table(rows, ["model", "accuracy", "macro-F1", "95 % interval", "ECE", "parameters"], (1, 2, 4, 5))
    for warning in report["warnings"]:
        print(f"warning: {warning}")
    if report.get("verdict"):
        print(f"\n{report['verdict']['sentence']}")
    for row in report["compression"]:
        if row["about"] != "narrow":
            print(f"\n{row['question']}\n  {row['sentence']}")
    if hidden := report.get("hiding"):
        print("\nprobability of the true class, and its change with the eyes, or as large a patch elsewhere, hidden")
        table(
            ([row["label"], f"{row['p']:.3f}", f"{row['eyes']:+.3f}", f"{row['elsewhere']:+.3f}"] for row in hidden),
            ["class", "as it is", "eyes hidden", "elsewhere hidden"], (1, 2, 3),
        )  # fmt: skip
    print(f"\nreport: {folder / 'report.html'}")


def _album(run: Run) -> "Album | None":
    try:
        from stillwatch.lab.data.dataset import pictures_of
    except ImportError:  # without the lab a report has no pictures
        return None
    return partial(pictures_of, run)


def _looks(run: Run, split: str) -> "Looks | None":
    try:
        from stillwatch.evaluation.report.occlusion import Looks, hiding
        from stillwatch.lab.attention import seen

        found = seen(run, split)
    except (ImportError, UserError):  # the lab, the data or the face reader is not here: the report does without
        return None
    return found and Looks(hiding(*found[:5], run.recipe.labels), found.maps)


def _options(recipe: str, runs: Path, fresh: bool = False) -> "RunOptions":
    from stillwatch.lab.training.runs import RunOptions

    return RunOptions(runs, find(recipe).read_text(encoding="utf-8"), fresh, progress())
