"""The command `stillwatch`. Exit status: 0 done, 1 failed with one line, 2 wrong usage. Imports no floor."""

import resource
import sys
from typing import Annotated

import typer

import stillwatch
from stillwatch.cli import demo, deploy, lab, start
from stillwatch.cli.console import print_anything
from stillwatch.errors import UserError, bounded
from stillwatch.inference import runtimes

EXTRAS = {
    "pyarrow": "parquet",
    "openvino": "openvino",
    "ncnn": "ncnn",
    "pnnx": "ncnn",
    "apprise": "apprise",
    "ray": "ray",
    "huggingface_hub": "hub",
}
ADDRESSES = 640 << 20  # bytes of address space with less of which libraries crash as they are loaded
LIGHT = ("events", "ls", "test-sinks")  # need less
GOES_ON = dict.fromkeys(
    ("teach", "distil", "prune", "quantise", "tune", "crossval", "demo"),
    "; the same command resumes from the last finished epoch",
) | {"score": "; the same command goes on where it was"}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # "[tune]" in a help text is no markup
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil a heavy vision model into a small watchful one, and put it on a camera.",
    epilog="Start with: stillwatch demo; with pictures of your own: stillwatch init FOLDER. "
    "Errors are one line; --debug shows where they come from.",
)
for group in (start.app, lab.app, deploy.app, demo.app):
    app.registered_commands += group.registered_commands


def _version(wanted: bool) -> None:
    if wanted:
        print(f"stillwatch {stillwatch.__version__}")
        raise typer.Exit


VERSION = typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")


@app.callback()
def _options(version: Annotated[bool, VERSION] = False) -> None:
    pass


def main() -> None:
    """Every failure is one line, except with --debug."""
    runtimes.telemetry_off()
    print_anything()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if 0 <= limit < ADDRESSES and not {*LIGHT, "-h", "--help"}.intersection(arguments):
            raise UserError(f"ulimit -v {limit >> 10}: is too little to load the libraries; {ADDRESSES >> 10} at least")
        code = app(arguments, prog_name="stillwatch", standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        show = getattr(error, "show", None)  # a usage error of click's, which newer typer carries in itself
        if debug and not show:
            raise
        if show:
            said = str(getattr(error, "message", "")).removeprefix("Value error, ")  # pydantic's, in some typers
            error.message = bounded(said)  # type: ignore[attr-defined]
            show()
        else:
            print(f"error: {_explained(error)}", file=sys.stderr)
        code = 2 if show else 1
    if code == 130:  # Ctrl-C, which some versions of typer turn into an exit of their own
        print(f"\nstopped{GOES_ON.get(next(iter(arguments), ''), '')}", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _explained(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    package = str(getattr(error, "name", "")).partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package != "stillwatch":
        return f"{package} is not installed; pip install 'stillwatch[{EXTRAS.get(package, 'lab')}]' brings it"
    return bounded(f"{type(error).__name__}: {error} (--debug shows where)")
