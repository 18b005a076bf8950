"""Write a report's JSON and picture, each whole or not at all."""

from collections.abc import Callable
from pathlib import Path

from stillwatch.atomic import atomic
from stillwatch.errors import UserError
from stillwatch.run import NO_PROGRESS, Progress


def save(
    folder: Path, report: tuple[str, str], picture: tuple[str, Callable[[], bytes]], progress: Progress = NO_PROGRESS
) -> list[Path]:
    """Write both (file name, content) and return their paths. Without matplotlib: no picture, but a hint.

    Raises UserError.
    """
    files = {report[0]: report[1].encode()}
    try:
        files[picture[0]] = picture[1]()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        why = "matplotlib is not installed; pip install 'stillwatch[lab]' draws it"
        progress.say(f"{folder / picture[0]}: left out: {why}")
    written = []
    for name, content in files.items():
        try:
            with atomic(folder / name) as draft:
                draft.write_bytes(content)
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be written: {error.strerror}; choose another --out") from error
        written.append(folder / name)
    return written
