"""The command `stillwatch`: parse, call one function of a room, print. Rooms are imported when they are needed.

In: words. Out: lines for a person, and an exit status: 0 done, 1 failed with one clear line, 2 wrong usage.
Functions of one room are handed to another here and nowhere else.
"""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from stillwatch.recipe import Mistake, find
from stillwatch.recipe import load as read_recipe
from stillwatch.run import Run, Voice
from stillwatch.run import runs as all_runs

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Distil a heavy vision model into a small watchful one, and put it on a camera.",
    epilog="Start with: stillwatch demo. Errors are one line; --debug shows where they come from.",
)

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="a recipe's file, or a shipped one's name")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="keys of the recipe, such as fit.epochs=5")
]
Folder = Annotated[Path, typer.Option("--runs", help="the folder of runs")]
Fresh = Annotated[bool, typer.Option("--fresh", help="start anew even where a run was cut off")]


@app.command(epilog="Example: stillwatch audit driving data.root=data/driver-inattention")
def audit(recipe: RecipeFile, overrides: Overrides = None, runs: Folder = Path("runs")) -> None:
    """Look at the data before anybody learns from it: leaks, duplicates, bad files, and what guessing would reach."""
    from stillwatch.lab.audit import contact_sheets, summary
    from stillwatch.lab.lessons import inspect

    asked = read_recipe(recipe, overrides or ())
    run, data = inspect(asked, runs, _text(recipe), voice())
    sheets = contact_sheets(data.samples, data.store.pixels, asked.labels, run.path)
    print(summary(run.read_json("audit.json")))
    print(f"\nwritten: {run.path}/audit.json, split.csv and {len(sheets)} contact sheets")


@app.command(epilog="Example: stillwatch teach driving data.root=data/driver-inattention data.fold=0")
def teach(recipe: RecipeFile, overrides: Overrides = None, runs: Folder = Path("runs"), fresh: Fresh = False) -> None:
    """Train the recipe's teacher. A run that was cut off is gone on with."""
    from stillwatch.judge.predict import mark
    from stillwatch.lab import lessons

    _finished(lessons.teach(read_recipe(recipe, overrides or ()), mark, runs, _text(recipe), fresh, voice()))


@app.command(epilog="Example: stillwatch distil driving --alone, then the same without --alone, then compare.")
def distil(
    recipe: RecipeFile,
    overrides: Overrides = None,
    alone: Annotated[bool, typer.Option("--alone", help="the control: same student, epochs, data; no teacher")] = False,
    runs: Folder = Path("runs"),
    fresh: Fresh = False,
) -> None:
    """Train the recipe's student under the newest matching teacher, or under teacher.init=RUN."""
    from stillwatch.judge.predict import mark
    from stillwatch.lab import lessons

    asked = read_recipe(recipe, overrides or ())
    _finished(lessons.distil(asked, mark, alone, runs, _text(recipe), fresh, voice()))


@app.command(epilog="Example: stillwatch compare runs/driving-*-001 --out report")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="teacher, alone and distilled; several seeds, folds")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="folder of the report; by default beside the last run")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="test or valid")] = "test",
) -> None:
    """Did distillation help, by how much, and how sure is that? Writes report.html and report.json."""
    from stillwatch.judge.report import compare as write

    chosen = [Run.open(path) for path in runs]
    folder = out or chosen[-1].path / "report"
    _verdict(write(chosen, folder, _album(chosen[-1]), split), folder)


@app.command(epilog="Example: stillwatch judge runs/driving-teacher-001")
def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    split: Annotated[str, typer.Option("--split", help="test or valid")] = "test",
) -> None:
    """The report of one run by itself."""
    compare([run], None, split)


@app.command(epilog="Example: stillwatch ls --runs runs")
def ls(runs: Folder = Path("runs")) -> None:
    """The runs there are, with their figures on validation."""
    found = all_runs(runs)
    if not found:
        print(f"{runs}: no runs yet; `stillwatch teach RECIPE` makes one")
    for run in found:
        best = run.info.get("best") or {}
        figures = f"accuracy {100 * best['accuracy']:5.1f} %  macro-F1 {best['macro_f1']:.3f}" if best else ""
        print(f"{run.path!s:40} {run.info['status']:8} {run.info['started'][:16]:16}  {figures}")


@app.command(epilog="Example: stillwatch demo --out my-demo")
def demo(out: Annotated[Path, typer.Option("--out", help="folder of its runs and report")] = Path("demo")) -> None:
    """The whole of it on drawn pictures: audit, teach, the student alone and distilled, and the report."""
    for step, work in (
        ("1/5  the data: drawn drivers, phones, yawns", lambda: audit("toy", None, out)),
        ("2/5  the teacher", lambda: teach("toy", None, out)),
        ("3/5  the student alone: the control", lambda: distil("toy", None, True, out)),
        ("4/5  the student distilled", lambda: distil("toy", None, False, out)),
        ("5/5  did it help?", lambda: compare(_latest(out), out / "report")),
    ):
        print(f"\n=== {step}", flush=True)
        work()


def _latest(folder: Path) -> list[Path]:
    """The newest finished run of each kind that has predictions."""
    kinds = {run.info["kind"]: run.path for run in all_runs(folder) if run.info["status"] == "done"}
    return [kinds[kind] for kind in ("teacher", "alone", "distilled")]


def _finished(run: Run) -> None:
    best, cost = run.info["best"], run.info["cost"]
    print(
        f"{run.path}: kept epoch {best['epoch']}: validation accuracy {100 * best['accuracy']:.1f} %, "
        f"macro-F1 {best['macro_f1']:.3f}; {cost['params']:,} parameters, {cost['macs'] / 1e6:.1f} M MACs"
    )


def _verdict(report: dict[str, Any], folder: Path) -> None:
    for name, model in report["models"].items():
        low, high = (model.get("ci95") or {}).get("macro_f1") or (float("nan"),) * 2
        print(
            f"{name:24} accuracy {100 * model['accuracy']:5.1f} %   macro-F1 {model['macro_f1']:.3f} "
            f"({low:.3f} to {high:.3f})   ECE {model['ece']:.3f}   {model['params'] or 0:>12,} parameters"
        )
    for warning in report["warnings"]:
        print(f"warning: {warning}")
    if report.get("verdict"):
        print(f"\n{report['verdict']['sentence']}")
    print(f"\nreport: {folder / 'report.html'}")


def _album(run: Run) -> Any:
    try:
        from stillwatch.lab.lessons import album
    except ImportError:  # a report can be made where no lab is installed; it then has no pictures
        return None
    return album(run)


def _text(recipe: str) -> str:
    return find(recipe).read_text(encoding="utf-8")


def voice() -> Voice:
    """Bars on a terminal; elsewhere a plain line now and then, for what takes long."""
    return Voice(_bar if sys.stderr.isatty() else _lines, lambda line: print(line, flush=True))


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
    if isinstance(error, Mistake):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("stillwatch"):
        return f"{error.name} is not installed; this command needs the lab: pip install 'stillwatch[lab]'"
    return f"{type(error).__name__}: {error} (--debug shows where)"
