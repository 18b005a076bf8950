"""Every command on drawn drivers. Imports floors only inside functions."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from stillwatch.cli.console import latest
from stillwatch.cli.deploy import bench, replay, watch
from stillwatch.cli.lab import audit, compare, distil, export, prune, quantise, teach

app = typer.Typer(rich_markup_mode=None)  # "[tune]" in a help text is no markup

DRIVER = 1  # of the toy: one whom the demo's split keeps for the test


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
        ("5/10 did it help?", lambda: compare(latest(out, "teacher", "alone", "distilled"), out / "report")),
        ("6/10 pruned, and the narrower student beside it", lambda: prune(latest(out, "distilled")[0])),
        ("7/10 INT8", lambda: quantise(latest(out, "pruned")[0])),
        ("8/10 the bundle", lambda: _pack(out)),
        ("9/10 how fast is it here?", lambda: bench(out / "bundle", None, None, [1], 200)),
        ("10/10 on a camera", lambda: _live(out) if live else _film(out)),
    ):
        print(f"\n=== {step}", flush=True)
        work()


def _live(out: Path) -> None:
    print("a drawn driver, whom nobody has learnt from, on the page below; Ctrl-C ends it")
    watch(out / "bundle", f"toy://driver?seed={DRIVER}", port=None, page=True, out=out / "watch", fps=10, seconds=None)


def _film(out: Path) -> None:
    from stillwatch.media import synthetic

    truth = out / "driver.json"
    truth.write_text(json.dumps({"segments": synthetic.truth("cabin", 120, DRIVER)}), encoding="utf-8")
    replay(out / "bundle", f"toy://driver?seed={DRIVER}&seconds=120", truth, None, out / "replay")
    print(f"\nlive, with a page: stillwatch watch {out / 'bundle'} --source 'toy://driver?seed={DRIVER}'")


def _pack(out: Path) -> None:
    pruned, int8 = latest(out, "pruned", "quantised")
    export(pruned, None, int8, out / "bundle")
    compare(latest(out, "distilled", "narrow", "pruned", "quantised"), out / "compression")
