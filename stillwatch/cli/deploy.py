"""Commands of the board. Imports floors only inside functions."""

import json
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from stillwatch.atomic import place
from stillwatch.cli.console import BundleFolder, On, bundle_folder, progress
from stillwatch.errors import UserError
from stillwatch.run import Run

if TYPE_CHECKING:
    from stillwatch.bundle import Bundle
    from stillwatch.evaluation.benchmark import Contender
    from stillwatch.inference.archive.scoring import Done

app = typer.Typer(rich_markup_mode=None)  # "[tune]" in a help text is no markup

Fit: TypeAlias = Literal["stretch", "letterbox", "crop"]
FIT = typer.Option("--fit", help="for a picture of another shape than the training pictures: stretch, letterbox, crop")


@app.command(
    epilog="Example: stillwatch bench bundle --against mobilenetv2_100, or: stillwatch bench bundle --on ssh://pi@board"
)
def bench(
    bundle: BundleFolder,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="a net, net@224 or eager:RUN to race against; repeatable")
    ] = None,
    budget_ms: Annotated[float | None, typer.Option("--budget-ms", help="exit 1 if p95 is above it")] = None,
    threads: Annotated[list[int] | None, typer.Option("--threads", help="repeatable; else one, and all cores")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="timed calls of each")] = 200,
    out: Annotated[Path | None, typer.Option("--out", help="folder of bench.json and its picture")] = None,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0, help="then run the fastest so long without a pause: what heat does")
    ] = 0.0,
    on: Annotated[
        str | None, typer.Option("--on", help="ssh://user@board[:port]: on that machine, by its stillwatch")
    ] = None,
    install: Annotated[
        str | None,
        typer.Option("--install", metavar="WHEEL", help="with --on: install it there first; WHEEL[ncnn] too"),
    ] = None,
) -> None:
    """Time every file in every runtime on this machine, in turns: latency, throughput, memory, start."""
    from stillwatch.bundle import load
    from stillwatch.evaluation import benchmark, remote
    from stillwatch.evaluation.report.bench import save, table
    from stillwatch.inference import detector

    opened = load(bundle)
    if on is None and install is not None:
        raise UserError("--install: is for another machine; name it with --on ssh://user@board")
    if on is not None:
        if against:
            raise UserError("--against: needs the lab, which a board has not; leave it out with --on")
        board = remote.Board.of(on)
        words = [f"--rounds={rounds}", *(f"--threads={count}" for count in threads or ())]
        words += [f"--minutes={minutes:g}"] * bool(minutes)  # 0.1.0 does not know it
        report = remote.bench(opened, board, words, install, progress())
        place = Path(f"{board.destination.rpartition('@')[2].replace(':', '-')}-bench")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            rivals = [rival for name in against or () for rival in _rivals(name, opened, Path(scratch))]
            chosen = [benchmark.Contender("detector", partial(detector.look, bundle), "detector")]
            plan = benchmark.BenchPlan(tuple(threads or ()), rounds, minutes=minutes)
            if opened.manifest.fusion:
                chosen = [*chosen, benchmark.Contender("detector + face", partial(detector.Pair, bundle), "detector")]
            report, place = benchmark.bench(opened, [*chosen, *rivals], plan, progress()), bundle
        print(table(report))
    print("\nwritten: " + ", ".join(str(path) for path in save(report, out or place, progress())))
    if budget_ms is not None and (over := benchmark.over_budget(report, budget_ms)):
        raise UserError(over)


@app.command(epilog="Example: stillwatch doctor bundle, or: stillwatch doctor watch.toml")
def doctor(
    what: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE|WATCH.toml]", help="what to check", parser=bundle_folder)
    ] = None,
) -> None:
    """Show this machine, its runtimes and the fastest file of each bundle; with a watch.toml, test all it names."""
    from stillwatch.inference import detector

    if what and what.suffix == ".toml":
        from stillwatch.monitor.config import load
        from stillwatch.monitor.doctor import examine

        good = True
        for finding in examine(load(what)):
            good &= finding.good
            print(finding, flush=True)
        raise typer.Exit(0 if good else 1)
    net = detector.face_net(detector.Detector(what).bundle) if what else None
    print("\n".join(detector.diagnosis()))
    if net:
        print(f"{net.path} in {net.runtime}: where a driver's face is read, it is looked at alone")


@app.command(epilog="Example: stillwatch watch bundle --source rtsp://camera/stream, or: stillwatch watch watch.toml")
def watch(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="BUNDLE|WATCH.toml", help="a bundle, or a file of several cameras", parser=bundle_folder
        ),
    ],
    source: Annotated[
        str | None, typer.Option("--source", help="0, a file, a folder, rtsp://…, http://…, toy://driver")
    ] = None,
    fps: Annotated[float, typer.Option("--fps", min=0.1, help="frames a second to classify, at most")] = 10.0,
    port: Annotated[int | None, typer.Option("--port", help="port of the page; 0: a free one")] = None,
    fit: Annotated[Fit | None, FIT] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="serve the page on 127.0.0.1")] = True,
    out: Annotated[Path | None, typer.Option("--out", help="folder for events, clips, thumbnails")] = None,
    seconds: Annotated[float | None, typer.Option("--for", min=0.1, help="stop after so many seconds")] = None,
) -> None:
    """Watch cameras: raise alarms, keep them, show them on a page, send them to sinks. Ctrl-C ends it."""
    from stillwatch.monitor import config
    from stillwatch.monitor.service import serve

    if (what.suffix == ".toml") == (source is not None):
        raise UserError(f"{what}: a bundle is watched with --source X, a plan (watch.toml) without")
    loaded = config.single(what, source, fps=fps, fit=fit) if source is not None else config.load(what)
    changes = {"port": port} if port is not None else {}
    amended = loaded.config.amended(on=page and loaded.config.web.on, folder=out, **changes)
    serve(loaded._replace(config=amended), progress().say, seconds)


@app.command(epilog="Example: stillwatch replay bundle night.mp4 --truth night.json")
def replay(
    bundle: BundleFolder,
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="a file, a folder of pictures, or toy://driver")],
    truth: Annotated[Path | None, typer.Option("--truth", help="JSON with segments: start_s, end_s, label")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--rule", help="KEY=VALUE of the rule, such as threshold=0.6; repeatable")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="folder of replay.json and replay.png")] = None,
    fit: Annotated[Fit | None, FIT] = None,
    person: Annotated[
        list[str] | None, typer.Option("--person", help="KEY=VALUE of the person filter: model=FILE.onnx, every=5")
    ] = None,
) -> None:
    """Run a film through detector and rule: events and, against a truth, misses, false alarms, seconds to detect."""
    from stillwatch.evaluation import replay as judged
    from stillwatch.inference.aspect import shaped
    from stillwatch.inference.detector import Detector, alarm_of, face_net, steps
    from stillwatch.inference.people import People
    from stillwatch.monitor.cameras import source
    from stillwatch.monitor.cameras.reading import FaceStream, reader, wanted
    from stillwatch.monitor.config import Person, camera_name
    from stillwatch.recipe import Rule, laid

    people = People(**laid(Person, {}, person, "person").model_dump()) if person else None
    detector, name = Detector(bundle), camera_name(video)
    rule = laid(Rule, detector.bundle.manifest.rule, overrides or (), "rule")
    alarm = alarm_of(detector.bundle, name, rule, read := wanted(rule, video))
    known = judged.read_truth(truth, detector.labels) if truth else None
    faces = FaceStream(reader(video, face_net(detector.bundle)) if read else None, live=False)
    answers = steps(detector, shaped(detector, faces.tapped(source.frames(video)), fit, print), people=people)
    report = judged.replay(answers, alarm, known, detector.labels, detector.safe, readings=faces.take)
    print(judged.words(report))
    print(
        "\nwritten: " + ", ".join(str(path) for path in judged.save(report, out or Path(f"{name}-replay"), progress()))
    )


@app.command(epilog="Example: stillwatch events --since 1h --camera cab --json")
def events(
    folder: Annotated[Path, typer.Option("--in", help="the folder that watch writes")] = Path("watch"),
    since: Annotated[str | None, typer.Option("--since", help="30m, 1h, 7d, or 2026-01-31T10:00")] = None,
    camera: Annotated[str | None, typer.Option("--camera", help="name of a camera")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="distraction, phone, violence, camera, …")] = None,
    level: Annotated[str | None, typer.Option("--level", help="notice, warn or alarm: this level and above")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1)] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """List events, the newest first, also while a watch is running."""
    from stillwatch.monitor.events import database
    from stillwatch.rules.events import LEVELS

    if level is not None and level not in LEVELS:
        raise UserError(f"--level {level}: is notice, warn or alarm")
    found = database.events(folder, _since(since), None, camera, kind, level, None, limit)
    for event in found:
        if as_json:
            print(json.dumps(event.as_dict(), ensure_ascii=False))
            continue
        at = datetime.fromtimestamp(event.opened).strftime("%Y-%m-%d %H:%M:%S")
        lasted = f"{event.end - event.start:.1f} s" if event.end is not None else "goes on"
        marks = "  false alarm" * (event.verdict == "false") + "  acknowledged" * bool(event.acknowledged)
        print(f"{at}  {event.level:6} {event.camera:16} {event.words} ({lasted}){marks}")
    if not found and not as_json:
        print(f"{folder}: no such events")


@app.command(epilog="Example: stillwatch score bundle archive -o scores.csv")
def score(
    bundle: BundleFolder,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="pictures and films, also in sub-folders; or a URL")],
    out: Annotated[str, typer.Option("-o", "--out", help="a .csv, or .parquet with stillwatch[parquet]; or a URL")] = (
        "scores.csv"
    ),
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="processes; by default one a core")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="frames a second of films; else all")] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="NUMBER/OF", help="one job of many, from 0; then `merge`")
    ] = None,
    on: On = "",
) -> None:
    """Classify an archive on all cores: one row a picture or frame. Resumes an interrupted run."""
    from stillwatch.inference.archive import scoring

    where = (bundle, place(folder), place(out))
    if shard is not None:
        if on:
            raise UserError("--on and --shard: one of them; with --on the engine shares out the work")
        files = scoring.score_share(*where, scoring.Share.read(shard), workers, progress(), rate)
        return print(f"{out}: {files} files of shard {shard} are done; `stillwatch merge {out}` after the last one")
    _print_done(out, scoring.score(*where, workers, progress(), rate, on))


@app.command(epilog="Example: stillwatch merge scores.csv")
def merge(out: Annotated[str, typer.Argument(metavar="OUT", help="the -o of the jobs: a path or a URL")]) -> None:
    """Write the table of the jobs of `score --shard`, as one `score` would have. Fails while some are left."""
    from stillwatch.inference.archive import scoring

    _print_done(out, scoring.merge(place(out)))


def _print_done(out: str, done: "Done") -> None:
    print(f"{out}: {done.rows} rows of {done.files} files in {done.seconds:.1f} s; {len(done.errors)} bad files")


@app.command(name="test-sinks", epilog="Example: stillwatch test-sinks watch.toml")
def test_sinks(what: Annotated[Path, typer.Argument(metavar="WATCH.toml")]) -> None:
    """Send a test event to each sink of a watch.toml. Exit status 1 if one did not take it."""
    from stillwatch.monitor import config
    from stillwatch.monitor.events.outbox import send_test_events

    loaded = config.load(what)
    for fault in loaded.bad_sinks.values():
        print(fault)
    answers = send_test_events(loaded.config.sink)
    if not answers and not loaded.bad_sinks:
        raise UserError(f"{what}: no [[sink]] in it")
    for name, reason in answers:
        print(f"{name}: {reason or 'took the test event'}")
    if loaded.bad_sinks or any(reason for _, reason in answers):
        raise typer.Exit(1)


@app.command(epilog="Example: stillwatch push bundle anna/driver, then on a board: stillwatch watch hf://anna/driver")
def push(
    bundle: BundleFolder,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="user/name on the hub")],
    public: Annotated[bool, typer.Option("--public", help="make a new repository that everybody sees")] = False,
) -> None:
    """Upload a bundle with its card to the Hugging Face hub, by your own token (hf auth login, or HF_TOKEN)."""
    from stillwatch.bundle import load
    from stillwatch.media import hub

    print(f"pushed: {hub.push(load(bundle), repo, public)}")


def _since(text: str | None) -> float | None:
    """30m, 1h, -1H, 7d, or a date -> epoch seconds."""
    if text is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    try:
        if unit := units.get(text[-1:].lower()):
            return datetime.fromtimestamp(time.time() - abs(float(text[:-1])) * unit).timestamp()  # refuses nan, inf
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UserError(f"--since {text}: is a time such as 30m, 1h, 7d or 2026-01-31T10:00") from None


def _rivals(name: str, bundle: "Bundle", folder: Path) -> Iterator["Contender"]:
    from stillwatch.evaluation.benchmark import Contender, open_resizing
    from stillwatch.inference import runtimes
    from stillwatch.lab.export import exporters

    if name.startswith("eager:"):
        from stillwatch.lab.training.runs import eager_predictor

        run = Run.open(name.removeprefix("eager:"))
        figures, params = {"valid": run.info.best}, run.info.cost["params"]
        opens = partial(eager_predictor, run.path)
        yield Contender(name, opens, runtime="torch", precision="fp32", params=params, figures=figures)
        return
    net, at, side = name.partition("@")
    if at and not side.isdigit():
        raise UserError(f"--against {name}: after @ comes the side of its picture in pixels, as in {net}@224")
    shape = (int(side), int(side), 3) if at else bundle.manifest.input.shape
    path, params = exporters.rival(net, len(bundle.manifest.labels), shape, folder / (side or "same"))
    for runtime in runtimes.readers(path):
        opens = partial(open_resizing, path, runtime, shape)
        yield Contender(name, opens, "rival", runtime, "fp32", path.stat().st_size, params)
