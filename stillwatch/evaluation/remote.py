"""A bench on another machine, over the system's own ssh."""

import io
import json
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from stillwatch.bundle import MANIFEST, Bundle
from stillwatch.errors import UserError, one_line
from stillwatch.evaluation.benchmark import FORMAT, Report
from stillwatch.run import NO_PROGRESS, Progress

# BatchMode: no question that nobody could answer; keys and host keys are the user's own ssh affair
OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15")
INSTALLED = "~/.stillwatch/bin/stillwatch"  # where --install puts it
PLACES = f'"$(command -v stillwatch)" {INSTALLED} ~/.local/bin/stillwatch'  # ssh's PATH is not the terminal's
UNPACKED = 'place=$(mktemp -d) && trap \'rm -rf "$place"\' EXIT && cd "$place" && tar -xf - || exit 1\n'
NOT_THERE = 127
WHEEL = r"(?P<file>.+\.whl)(?P<extras>\[[\w,-]+\])?"


class Board(NamedTuple):
    """destination: user@host, as ssh takes it."""

    destination: str
    port: int | None = None

    @classmethod
    def of(cls, address: str) -> "Board":
        """ssh://user@host[:port]. Raises UserError."""
        wrong = f"--on {re.sub('//[^@/]*@', '//…@', address)}: is written ssh://user@board or ssh://user@board:port"
        try:
            parts = urlsplit(address)
            plain = parts.scheme == "ssh" and not (parts.path.strip("/") or parts.query or parts.fragment)
            if not plain or not parts.hostname or parts.password is not None:
                raise ValueError
            board = cls(f"{parts.username}@{parts.hostname}" if parts.username else parts.hostname, parts.port)
        except ValueError:
            raise UserError(wrong) from None
        if not re.fullmatch(r"(?!-)[\w.@:%-]+", board.destination, re.ASCII):  # a dash would begin an option of ssh
            raise UserError(wrong)
        return board

    def run(self, script: str, given: bytes = b"", progress: Progress = NO_PROGRESS) -> bytes:
        """Output of a shell script there; its errors go to progress. Raises UserError."""
        if not (ssh := shutil.which("ssh")):
            raise UserError("ssh is not installed; apt-get install openssh-client")
        port = ("-p", str(self.port)) if self.port else ()
        with tempfile.TemporaryFile() as fed, tempfile.TemporaryFile() as out:
            fed.write(given)
            fed.seek(0)
            command = [ssh, *OPTIONS, *port, self.destination, f"sh -c {shlex.quote(script)}"]
            with subprocess.Popen(command, stdin=fed, stdout=out, stderr=subprocess.PIPE) as process:
                said = list[str]()  # each when the next has come: the last is for an error
                for line in (raw.decode(errors="replace").rstrip() for raw in process.stderr or ()):
                    if said and not re.match(r"written: |out/", said[-1]):  # what is written there does not stay
                        progress.say(said[-1])
                    said.append(line)
            last = next(filter(None, reversed(said)), "")
            out.seek(0)
            if process.returncode == 255:  # ssh's own
                hint = f"try it by hand: ssh {' '.join((*port, self.destination))}"
                last = last.removeprefix(f"{self.destination}: ") or "the connection ended"
                raise UserError(f"{self.destination}: {last.rstrip('.')}; {hint}")
            if process.returncode == NOT_THERE:
                raise UserError(
                    f"{self.destination}: no stillwatch there; pip install stillwatch on it, or --install WHEEL"
                )
            if process.returncode:
                raise UserError(f"{self.destination}: {last.removeprefix('error: ') or f'exit {process.returncode}'}")
            return out.read()


def bench(
    bundle: Bundle, board: Board, words: Sequence[str], wheel: str | None = None, progress: Progress = NO_PROGRESS
) -> Report:
    """`stillwatch bench` there -> its bench.json. wheel: WHEEL[extras] to install first. Raises UserError."""
    if wheel is not None:
        found = re.fullmatch(WHEEL, wheel)
        if not found or not (path := Path(found["file"])).is_file():
            raise UserError(f"--install {wheel}: no such wheel; `pip wheel --no-deps .` makes one in a checkout")
        progress.say(f"{board.destination}: installing {path.name} into ~/.stillwatch; minutes on a small board")
        what = shlex.quote(f"./{path.name}{found['extras'] or ''}")
        board.run(
            f"{UNPACKED}python3 -c 'import ensurepip' 2>&- || {{ echo 'apt-get install python3-venv' >&2; exit 1; }}\n"
            "python3 -m venv ~/.stillwatch >&2 && ~/.stillwatch/bin/pip uninstall -qy stillwatch && "
            f"~/.stillwatch/bin/pip install -q {what}",
            _packed({path.name: path}),
        )
    files = {f"bundle/{name}": bundle.path / name for name in (MANIFEST, *bundle.manifest.files)}
    progress.say(f"{board.destination}: copying {sum(path.stat().st_size for path in files.values()) / 1e6:.1f} MB")
    options = " ".join(map(shlex.quote, words))
    text = board.run(
        f"{UNPACKED}for it in {INSTALLED if wheel else PLACES}; do "
        'test -x "$it" && break; it=; done\n'
        f'test -n "$it" || exit {NOT_THERE}\n'
        f'"$it" bench bundle --out out {options} >&2 && cat out/bench.json',
        _packed(files),
        progress,
    )
    try:
        report: Report = json.loads(text)
        written = report["format"]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{board.destination}: its bench.json cannot be read: {one_line(error)}") from None
    if written != FORMAT:
        raise UserError(f"{board.destination}: its bench.json has format {written!r}, this stillwatch reads {FORMAT}")
    return report


def _packed(files: dict[str, Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, path in files.items():
            archive.add(path.resolve(), name)
    return buffer.getvalue()
