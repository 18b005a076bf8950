"""The command `stillwatch`: parse, call one function of a room, print. Rooms are imported when they are needed.

In: words. Out: lines for a person, and an exit status: 0 done, 1 failed with one clear line, 2 wrong usage.
Functions of one room are handed to another here and nowhere else.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from stillwatch.errors import UserError
from stillwatch.inference import telemetry
from stillwatch.recipe import find
from stillwatch.recipe import load as read_recipe
from stillwatch.run import Progress, Run
from stillwatch.run import runs as all_runs

if TYPE_CHECKING:
    from stillwatch.monitor.events.database import StoredEvent

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # "[tune]" in a help text is no markup
    help="Distil a heavy vision model into a small watchful one, and put it on a camera.",
    epilog="Start with: stillwatch demo. Errors are one line; --debug shows where they come from.",
)

EXTRAS = {"pyarrow": "parquet", "openvino": "openvino", "ncnn": "ncnn", "pnnx": "ncnn", "apprise": "apprise"}

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="a recipe's file, or a shipped one's name")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="keys of the recipe, such as fit.epochs=5")
]
Folder = Annotated[Path, typer.Option("--runs", help="the folder of runs")]
Fresh = Annotated[bool, typer.Option("--fresh", help="start anew even where a run was cut off")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder")]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="a bundle's folder")]
Split = Annotated[str, typer.Option("--split", help="test or valid")]


@app.command(epilog="Example: stillwatch audit driving data.root=data/driver-inattention")
def audit(recipe: RecipeFile, overrides: Overrides = None, runs: Folder = Path("runs")) -> None:
    """Look at the data before anybody learns from it: leaks, duplicates, bad files, and what guessing would reach."""
    from stillwatch.lab.data.audit import AuditReport, summary
    from stillwatch.lab.data.contact_sheets import contact_sheets
    from stillwatch.lab.training.pipeline import inspect

    asked = read_recipe(recipe, overrides or ())
    run, data = inspect(asked, runs, _text(recipe), voice())
    sheets = contact_sheets(data.samples, data.store.pixels, asked.labels, run.path)
    print(summary(AuditReport.model_validate(run.read_json("audit.json"))))
    print(f"\nwritten: {run.path}/audit.json, split.csv and {len(sheets)} contact sheets")


@app.command(epilog="Example: stillwatch teach driving data.root=data/driver-inattention data.fold=0")
def teach(recipe: RecipeFile, overrides: Overrides = None, runs: Folder = Path("runs"), fresh: Fresh = False) -> None:
    """Train the recipe's teacher. A run that was cut off is gone on with."""
    from stillwatch.lab.training import pipeline

    _finished(pipeline.teach(read_recipe(recipe, overrides or ()), runs, _text(recipe), fresh, voice()))


@app.command(epilog="Example: stillwatch distil driving --alone, then the same without --alone, then compare.")
def distil(
    recipe: RecipeFile,
    overrides: Overrides = None,
    alone: Annotated[bool, typer.Option("--alone", help="the control: same student, epochs, data; no teacher")] = False,
    runs: Folder = Path("runs"),
    fresh: Fresh = False,
) -> None:
    """Train the recipe's student under the newest matching teacher, or under teacher.init=RUN."""
    from stillwatch.lab.training import pipeline

    asked = read_recipe(recipe, overrides or ())
    _finished(pipeline.distil(asked, alone, runs, _text(recipe), fresh, voice()))


@app.command(epilog="Example: stillwatch compare runs/driving-*-001 --out report")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="runs of any kind; several seeds, folds")],
    out: Annotated[
        Path | None, typer.Option("--out", help="folder of the report; by default beside the last run")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="test or valid")] = "test",
) -> None:
    """Did distillation help, by how much, and how sure is that? Writes report.html and report.json."""
    from stillwatch.evaluation.report.report import compare as write

    chosen = [Run.open(path) for path in runs]
    folder = out or chosen[-1].path / "report"
    _verdict(write(chosen, folder, _album(chosen[-1]), split), folder)


@app.command(epilog="Example: stillwatch judge runs/driving-teacher-001, or: stillwatch judge bundle")
def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE")],
    split: Split = "test",
    runs: Folder = Path("runs"),
    out: Annotated[Path | None, typer.Option("--out", help="folder of a bundle's report")] = None,
) -> None:
    """The report of one run by itself, or of a bundle's files beside the run that they came from."""
    if not (run / "bundle.json").is_file():
        from stillwatch.evaluation.pooling import comparison_set

        return compare([one.path for one in comparison_set(Run.open(run), split)], out or run / "report", split)
    from stillwatch import bundle
    from stillwatch.evaluation.bundle_eval import judge_bundle
    from stillwatch.lab.data.dataset import load_dataset

    found = bundle.load(run)
    origin = Run.open(runs / str(found.manifest.run["id"]))
    data = load_dataset(origin.recipe, voice())
    folder = out or Path(f"{run}-report")
    paper = data.eval_arrays(split)
    _verdict(judge_bundle(found, origin, paper, folder, split, _album(origin), voice()), folder)


@app.command(epilog="Example: stillwatch prune runs/driving-distilled-001 --keep 0.6")
def prune(
    run: RunFolder,
    overrides: Overrides = None,
    keep: Annotated[float | None, typer.Option("--keep", help="share of the arithmetic, for prune.keep")] = None,
    fresh: Fresh = False,
) -> None:
    """Make a student narrower where that hurts least, healed under its own teacher; and the baseline to beat."""
    from stillwatch.lab.compression.prune import prune as work
    from stillwatch.lab.training.runs import RunOptions

    words = [*(overrides or ()), *([f"prune.keep={keep}"] if keep is not None else [])]
    parent = Run.open(run).amended(words, ("prune",))
    _finished(work(parent, RunOptions(run.parent, parent.text, fresh, voice())))


@app.command(epilog="Example: stillwatch quantise runs/driving-pruned-001")
def quantise(run: RunFolder, overrides: Overrides = None) -> None:
    """INT8: after training first, in training where that loses too much. Every stage is judged and timed."""
    from stillwatch.lab.compression.quantise import quantise as work

    parent = Run.open(run).amended(overrides or (), ("quantise",))
    _stages(work(parent, run.parent, voice()))


@app.command(epilog="Example: stillwatch export runs/driving-pruned-001 --int8 runs/driving-quantised-001")
def export(
    run: RunFolder,
    overrides: Overrides = None,
    int8: Annotated[Path | None, typer.Option("--int8", metavar="RUN", help="what quantise made of this run")] = None,
    out: Annotated[Path, typer.Option("--out", help="the bundle's folder; an older bundle is replaced")] = Path(
        "bundle"
    ),
    form: Annotated[
        list[str] | None, typer.Option("--format", help="onnx-legacy, openvino or ncnn, besides onnx")
    ] = None,
) -> None:
    """The only folder that leaves the lab: files that give what the lab's net gives, or a refusal."""
    from stillwatch.lab.export.packaging import export as work

    origin = Run.open(run).amended(overrides or (), ("export", "rule"))
    _bundled(work(origin, Run.open(int8) if int8 else None, out, form or (), voice()))


@app.command(
    epilog="Example: stillwatch bench bundle --against mobilenetv2_100 --against eager:runs/driving-pruned-001"
)
def bench(
    bundle: BundleFolder,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="a net, net@224 or eager:RUN; repeatable")
    ] = None,
    budget_ms: Annotated[float | None, typer.Option("--budget-ms", help="exit 1 where p95 is above it")] = None,
    threads: Annotated[list[int] | None, typer.Option("--threads", help="repeatable; else one, and all cores")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="timed calls of each")] = 200,
    out: Annotated[Path | None, typer.Option("--out", help="folder of bench.json and the picture")] = None,
) -> None:
    """Time each file in each runtime on this machine, side by side: latency, throughput, memory, start."""
    from stillwatch import bundle as bundles
    from stillwatch.evaluation import benchmark as work
    from stillwatch.evaluation.report.bench import save, table
    from stillwatch.inference import detector

    found = bundles.load(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        rivals = [one for name in against or () for one in _rivals(name, found, Path(scratch))]
        drive = work.Contender("detector", partial(detector.look, bundle), "detector")
        plan = work.BenchPlan(tuple(threads or ()), rounds)
        report = work.bench(found, [drive, *rivals], plan, voice())
    print(table(report))
    print("\nwritten: " + ", ".join(str(path) for path in save(report, out or bundle, voice())))
    if budget_ms is not None and (over := work.over_budget(report, budget_ms)):
        raise UserError(over)


@app.command(epilog="Example: stillwatch tune driving --trials 40; again, or in a second terminal, it goes on.")
def tune(
    recipe: RecipeFile,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="in all, those of earlier calls included")] = 20,
    runs: Folder = Path("runs"),
    fresh: Fresh = False,
) -> None:
    """Search the keys of the recipe's [tune] for the best figure on validation; writes the recipe that has it."""
    from stillwatch.evaluation.report.tuning import picture
    from stillwatch.lab.training.tuning import tune as search

    asked = read_recipe(recipe, overrides or ())
    best = search(asked, trials, runs, _text(recipe), fresh, voice())
    (best.parent / "tuning.png").write_bytes(picture(best.parent / "trials.csv", asked.tune.metric))
    print(f"written: {best}, and beside it trials.csv and tuning.png")


@app.command(epilog="Example: stillwatch doctor bundle, or: stillwatch doctor watch.toml")
def doctor(
    what: Annotated[Path | None, typer.Argument(metavar="[BUNDLE|WATCH.toml]", help="check one, and choose")] = None,
) -> None:
    """This machine, its runtimes, which file of which bundle runs fastest here; of a plan: does all of it work?"""
    from stillwatch.inference import detector

    if what and what.suffix == ".toml":
        from stillwatch.monitor import doctor as checkup
        from stillwatch.monitor.config import load

        bad = 0
        for finding in checkup.examine(load(what)):
            bad += not finding.good
            print(finding, flush=True)
        raise typer.Exit(1 if bad else 0)
    if what:
        detector.Detector(what)
    print("\n".join(detector.diagnosis()))


@app.command(epilog="Example: stillwatch watch bundle --source rtsp://camera/stream, or: stillwatch watch watch.toml")
def watch(
    what: Annotated[Path, typer.Argument(metavar="BUNDLE|WATCH.toml", help="a bundle, or a plan of several cameras")],
    source: Annotated[
        str | None, typer.Option("--source", help="0, a file, a folder, rtsp://…, http://…, toy://driver")
    ] = None,
    fps: Annotated[float, typer.Option("--fps", min=0.1, help="frames a second that are looked at, at most")] = 10.0,
    port: Annotated[int | None, typer.Option("--port", help="of the page; 0: a free one")] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="the page on 127.0.0.1")] = True,
    out: Annotated[Path | None, typer.Option("--out", help="folder of events, clips, thumbnails")] = None,
    seconds: Annotated[float | None, typer.Option("--for", min=0.1, help="stop after so many seconds")] = None,
) -> None:
    """Cameras in, few and right alarms out: decided, kept, shown on a page, and sent. Ctrl-C ends it."""
    from stillwatch.monitor import config
    from stillwatch.monitor.service import serve

    if (what.suffix == ".toml") == (source is not None):
        raise UserError(f"{what}: a bundle is watched with --source X, a plan (watch.toml) without")
    loaded = config.single(what, source, fps=fps) if source is not None else config.load(what)
    changes = {"port": port} if port is not None else {}
    amended = loaded.config.amended(on=page and loaded.config.web.on, folder=out, **changes)
    serve(loaded._replace(config=amended), voice().say, seconds)


@app.command(epilog="Example: stillwatch replay bundle night.mp4 --truth night.json")
def replay(
    bundle: BundleFolder,
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="a file, a folder of pictures, or toy://driver")],
    truth: Annotated[Path | None, typer.Option("--truth", help="JSON with segments: start_s, end_s, label")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--rule", help="KEY=VALUE of the rule, such as threshold=0.6; repeatable")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="folder of replay.json and replay.png")] = None,
) -> None:
    """A film through detector and rule, against the truth: events, misses, false alarms an hour, seconds to detect."""
    from stillwatch.evaluation import replay as judged
    from stillwatch.inference import film
    from stillwatch.inference.detector import Detector
    from stillwatch.monitor.cameras import source
    from stillwatch.monitor.config import camera_name
    from stillwatch.recipe import amended_rule

    detector, name = Detector(bundle), camera_name(video)
    rule = amended_rule(detector.bundle.manifest.rule, overrides or ())
    alarm = film.alarm_of(detector.bundle, name, rule)
    known = judged.read_truth(truth, detector.labels) if truth else None
    steps = film.steps(detector, source.frames(video))
    report = judged.replay(steps, alarm, known, detector.labels, detector.safe)
    print(judged.words(report))
    print("\nwritten: " + ", ".join(str(path) for path in judged.save(report, out or Path(f"{name}-replay"), voice())))


@app.command(epilog="Example: stillwatch events --since 1h --camera cab --json")
def events(
    folder: Annotated[Path, typer.Option("--in", help="the folder that watch keeps")] = Path("watch"),
    since: Annotated[str | None, typer.Option("--since", help="30m, 1h, 7d, or 2026-01-31T10:00")] = None,
    camera: Annotated[str | None, typer.Option("--camera")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="distraction, phone, violence, camera, …")] = None,
    level: Annotated[str | None, typer.Option("--level", help="notice, warn or alarm, and above")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1)] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="one event a line")] = False,
) -> None:
    """What was seen: the newest events first, also while a watch is running."""
    from stillwatch.monitor.events import database
    from stillwatch.rules.alarm import LEVELS

    if level is not None and level not in LEVELS:
        raise UserError(f"--level {level}: is notice, warn or alarm")
    found = database.events(folder, _since(since), None, camera, kind, level, None, limit)
    for event in found:
        print(json.dumps(event.as_dict(), ensure_ascii=False) if as_json else _event_line(event))
    if not found and not as_json:
        print(f"{folder}: no such events")


@app.command(epilog="Example: stillwatch score bundle archive -o scores.csv; a killed one goes on")
def score(
    bundle: BundleFolder,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="of pictures and films, also in sub-folders")],
    out: Annotated[Path, typer.Option("-o", "--out", help="a .csv file, or .parquet with stillwatch[parquet]")] = Path(
        "scores.csv"
    ),
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="processes; else one a core")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="frames a second of films; else all")] = None,
) -> None:
    """An archive as fast as the cores allow: one row a picture or frame, the same numbers as judge."""
    from stillwatch.inference.scoring import score as work

    done = work(bundle, folder, out, workers, voice(), rate)
    print(f"{out}: {done['rows']} rows of {done['files']} files in {done['seconds']:.1f} s; {done['bad']} bad files")


@app.command(name="test-sinks", epilog="Example: stillwatch test-sinks watch.toml")
def test_sinks(what: Annotated[Path, typer.Argument(metavar="WATCH.toml")]) -> None:
    """Send each sink of a plan one event that says it is a test. Exit status 1 where one did not take it."""
    from stillwatch.monitor import config
    from stillwatch.monitor.events.outbox import send_test_events

    loaded = config.load(what)
    for words in loaded.bad_sinks.values():
        print(words)
    answers = send_test_events(loaded.config.sink)
    if not answers and not loaded.bad_sinks:
        raise UserError(f"{what}: no [[sink]] in it")
    for name, wrong in answers:
        print(f"{name}: {wrong or 'took the test event'}")
    if loaded.bad_sinks or any(wrong for _, wrong in answers):
        raise typer.Exit(1)


@app.command(epilog="Example: stillwatch ls --runs runs")
def ls(runs: Folder = Path("runs")) -> None:
    """The runs there are, with their figures on validation."""
    found = all_runs(runs)
    if not found:
        print(f"{runs}: no runs yet; `stillwatch teach RECIPE` makes one")
    for run in found:
        best = run.info.best
        figures = f"accuracy {100 * best['accuracy']:5.1f} %  macro-F1 {best['macro_f1']:.3f}" if best else ""
        print(f"{run.path!s:40} {run.info.status:8} {run.info.started[:16]:16}  {figures}")


@app.command(epilog="Example: stillwatch demo --out my-demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="folder of its runs and report")] = Path("demo"),
    serve: Annotated[
        bool | None, typer.Option("--serve/--no-serve", help="end with a live page; by default on a terminal")
    ] = None,
) -> None:
    """The whole of it on drawn pictures: from the data to a watch on a driver whom nobody has learnt from."""
    live = sys.stdout.isatty() if serve is None else serve
    for step, work in (
        ("1/10 the data: drawn drivers, phones, yawns", lambda: audit("toy", None, out)),
        ("2/10 the teacher", lambda: teach("toy", None, out)),
        ("3/10 the student alone: the control", lambda: distil("toy", None, True, out)),
        ("4/10 the student distilled", lambda: distil("toy", None, False, out)),
        ("5/10 did it help?", lambda: compare(_latest(out, "teacher", "alone", "distilled"), out / "report")),
        ("6/10 pruned, and the narrower student beside it", lambda: prune(_latest(out, "distilled")[0])),
        ("7/10 INT8", lambda: quantise(_latest(out, "pruned")[0])),
        ("8/10 the bundle", lambda: _pack(out)),
        ("9/10 how fast is it here?", lambda: bench(out / "bundle", None, None, [1], 200)),
        ("10/10 on a camera", lambda: _live(out) if live else _film(out)),
    ):
        print(f"\n=== {step}", flush=True)
        work()


def _since(text: str | None) -> float | None:
    """30m, 1h, 7d, or a date -> epoch seconds."""
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    try:
        if text[-1:] in units:
            return time.time() - float(text[:-1]) * units[text[-1]]
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UserError(f"--since {text}: is a time such as 30m, 1h, 7d or 2026-01-31T10:00") from None


def _event_line(event: "StoredEvent") -> str:
    at = datetime.fromtimestamp(event.opened).strftime("%Y-%m-%d %H:%M:%S")
    marks = [event.verdict == "false" and "false alarm", event.acknowledged and "acknowledged"]
    lasted = f"{event.end - event.start:.1f} s" if event.end is not None else "goes on"
    said = f"{at}  {event.level:6} {event.camera:16} {event.words} ({lasted})"
    return "  ".join([said, *(mark for mark in marks if mark)])


DRIVER = 1  # of the toy: one whom the demo's split keeps for the test


def _live(out: Path) -> None:
    """The toy's driver on screen, until Ctrl-C."""
    print("a drawn driver, whom nobody has learnt from, on the page below; Ctrl-C ends it")
    watch(out / "bundle", f"toy://driver?seed={DRIVER}", port=None, page=True, out=out / "watch", fps=10, seconds=None)


def _film(out: Path) -> None:
    """Two minutes of the same driver, held against what was drawn."""
    from stillwatch.media import synthetic

    truth = out / "driver.json"
    truth.write_text(json.dumps({"segments": synthetic.truth("cabin", 120, DRIVER)}), encoding="utf-8")
    replay(out / "bundle", f"toy://driver?seed={DRIVER}&seconds=120", truth, None, out / "replay")
    print(f"\nlive, with a page: stillwatch watch {out / 'bundle'} --source 'toy://driver?seed={DRIVER}'")


def _pack(out: Path) -> None:
    """The demo's bundle, and its files judged beside the run that they came from."""
    pruned, int8 = _latest(out, "pruned", "quantised")
    export(pruned, None, int8, out / "bundle")
    compare(_latest(out, "distilled", "narrow", "pruned", "quantised"), out / "compression")


def _latest(folder: Path, *kinds: str) -> list[Path]:
    """The newest finished run of each of these kinds."""
    found = {run.info.kind: run.path for run in all_runs(folder) if run.info.status == "done"}
    return [found[kind] for kind in kinds]


def _rivals(name: str, found: Any, folder: Path) -> list[Any]:
    """Somebody to race against: a net with random weights in every runtime, or a run's net in PyTorch as it is."""
    from stillwatch.evaluation.benchmark import Contender
    from stillwatch.inference import runtimes
    from stillwatch.lab.export import exporters

    if name.startswith("eager:"):
        run = Run.open(name.removeprefix("eager:"))
        from stillwatch.lab.training.runs import eager_predictor

        opens = partial(eager_predictor, run.path)
        size, figures = run.info.cost["params"], {"valid": run.info.best}
        return [Contender(name, opens, "rival", "torch", "fp32", params=size, figures=figures)]
    net, at, side = name.partition("@")
    if at and not side.isdigit():
        raise UserError(f"--against {name}: after @ comes the side of its picture in pixels, as in {net}@224")
    shape = (int(side), int(side), 3) if at else found.manifest.input.shape
    path, params = exporters.rival(net, len(found.manifest.labels), shape, folder / (side or "same"))
    size = path.stat().st_size
    return [
        Contender(name, partial(_at_its_own_size, path, runtime, shape), "rival", runtime, "fp32", size, params)
        for runtime in runtimes.readers(path)
    ]


def _at_its_own_size(path: Path, runtime: str, shape: tuple[int, ...], threads: int, batch: int) -> Any:
    """A rival that looks at as many pictures as it is given, each of its own size."""
    from stillwatch.inference import runtimes

    fn, own = runtimes.open(path, runtime, shape, threads, batch), np.full((batch, *shape), 100, np.uint8)
    return lambda x: fn(own[: len(x)] if len(x) <= batch else np.resize(own, (len(x), *shape)))


def _stages(run: Run) -> None:
    """What quantise tried, one line a stage."""
    wide = max(len(row["name"]) for row in run.info.stages)
    print(f"{'stage':{wide}} {'macro-F1':>8} {'drop':>6} {'ms':>7} {'kB':>6}")
    for row in run.info.stages:
        drop = f"{row['drop']:+.2f}" if row.get("drop") is not None else "–"
        line = f"{row['name']:{wide}} {row['macro_f1']:8.3f} {drop:>6} {row['ms']:7.3f} {row['bytes'] / 1000:6.0f}"
        print(f"{line}  {row['why']}".rstrip())
    kept = "goes into a bundle" if run.info.kept else f"stays out of a bundle: {run.info.why}"
    print(f"{run.path}: {run.info.stage}: {kept}")


def _bundled(made: Any) -> None:
    """What is in a bundle, and why something is not."""
    manifest = made.manifest
    for model in manifest.models:
        valid, parity = model.figures["valid"], model.figures["parity"]
        size = sum(manifest.files[name].bytes for name in model.files) / 1000
        print(
            f"{model.name:20} {model.precision:5} {size:7.0f} kB   macro-F1 {valid['macro_f1']:.3f}   furthest from "
            f"PyTorch {parity['max_difference']:.1e}   other class {1 - parity['top1_agreement']:.2%}"
        )
    for one in manifest.left_out:
        print(f"left out: {one['name']}: {one['why']}")
    heat, point = manifest.temperature, manifest.operating
    print(f"temperature {heat['value']:.2f}: ECE {heat['ece_before']:.3f} -> {heat['ece_after']:.3f} on validation")
    if point:
        print(
            f"threshold {point['threshold']:.4f}: {point['false_alarm_rate']:.2%} of safe validation frames alarm, "
            f"{point['recall']:.0%} of the others"
        )
    whole = sum(entry.bytes for entry in manifest.files.values()) + (made.path / "bundle.json").stat().st_size
    print(f"bundle: {made.path}, {whole / 1e6:.2f} MB")


def _finished(run: Run) -> None:
    best, cost = run.info.best, run.info.cost
    print(
        f"{run.path}: kept epoch {best['epoch']}: validation accuracy {100 * best['accuracy']:.1f} %, "
        f"macro-F1 {best['macro_f1']:.3f}; {cost['params']:,} parameters, {cost['macs'] / 1e6:.1f} M MACs"
    )


def _verdict(report: dict[str, Any], folder: Path) -> None:
    for name, model in report["models"].items():
        ends = (model.get("ci95") or {}).get("macro_f1")
        span = f"({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
        print(
            f"{name:24} accuracy {100 * model['accuracy']:5.1f} %   macro-F1 {model['macro_f1']:.3f} {span:16}   "
            f"ECE {model['ece']:.3f}   {model['params'] or 0:>12,} parameters"
        )
    for warning in report["warnings"]:
        print(f"warning: {warning}")
    if report.get("verdict"):
        print(f"\n{report['verdict']['sentence']}")
    for row in report["compression"]:
        if row["about"] != "narrow":
            print(f"\n{row['question']}\n  {row['sentence']}")
    print(f"\nreport: {folder / 'report.html'}")


def _album(run: Run) -> Any:
    try:
        from stillwatch.lab.data.dataset import image_lookup
    except ImportError:  # a report can be made where no lab is installed; it then has no pictures
        return None
    return image_lookup(run)


def _text(recipe: str) -> str:
    return find(recipe).read_text(encoding="utf-8")


def voice() -> Progress:
    """Bars on a terminal; elsewhere a plain line now and then, for what takes long."""
    return Progress(_bar if sys.stderr.isatty() else _lines, lambda line: print(line, flush=True))


def _bar(things: Iterable[Any], count: int, what: str) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    return track(things, what, count, transient=True, console=Console(stderr=True))


def _lines(things: Iterable[Any], count: int, what: str) -> Iterable[Any]:
    started = said = time.monotonic()
    for number, thing in enumerate(things):
        yield thing
        if time.monotonic() - said > 30:
            said = time.monotonic()
            print(f"{what}: {number + 1} of {count}, {said - started:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    """Run the command; every failure is one line, unless --debug is among the words."""
    telemetry.off()
    words = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(words) < len(sys.argv) - 1
    try:
        code = app(words, standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        show = getattr(error, "show", None)  # a usage error of click's, which newer typer carries in itself
        if debug and not show:
            raise
        show() if show else print(f"error: {_explained(error)}", file=sys.stderr)
        code = 2 if show else 1
    if code == 130:  # Ctrl-C, which some versions of typer turn into an exit of their own
        print("\nstopped; the same command goes on from the last finished epoch", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _explained(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("stillwatch"):
        package = str(error.name).partition(".")[0]
        return f"{package} is not installed; pip install 'stillwatch[{EXTRAS.get(package, 'lab')}]' brings it"
    return f"{type(error).__name__}: {error} (--debug shows where)"
