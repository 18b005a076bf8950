"""Sinks: who is told, and how: log, JSON lines, webhook, MQTT, apprise, a command, a sound.

In: an event as a dict, and its clip. Out: it was taken, or an exception that says why not, in words without secrets.
Called by Post, one thread a sink, and by `stillwatch test-sinks`. It knows no queue and no second try.
"""

import base64
import errno
import hashlib
import hmac
import http.client
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable
from urllib.parse import unquote, urlsplit

import numpy as np

from stillwatch import __version__
from stillwatch.errors import UserError, nearest
from stillwatch.monitor import config as plans
from stillwatch.monitor.cameras.source import redact, redacted_error
from stillwatch.monitor.events.mqtt import Mqtt, Refused
from stillwatch.registry import build_spec

TIMEOUT = 10.0  # seconds for any answer
PLAYERS = (
    ("pw-play",),
    ("paplay",),
    ("aplay", "-q"),
    ("afplay",),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "quiet"),
)


class Send(Protocol):
    """An opened sink. One thread calls it."""

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        """Raises Refused, or anything, where it was not taken."""

    def close(self) -> None: ...


@runtime_checkable
class Presence(Protocol):
    """A sink that shows its cameras before anything happens."""

    def present(self, cameras: Sequence[str]) -> None: ...


def opened(sink: plans.Sink) -> Send:
    """A sink of the plan, its secrets taken from the environment. Raises UserError for a bad name or option."""
    build, options = build_spec(SINKS, sink.to, f"sink {sink.name}: to")
    try:
        known = inspect.signature(build).parameters
        any_key = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
        for key in options:
            if key not in known and not any_key:
                raise UserError(f"{key}: unknown" + (nearest(key, known) if known else "; it has no options"))
        for key, one in known.items():
            if key not in options and one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD:
                raise UserError(f"{key}: missing; it knows: {', '.join(known)}")
        return build(**plans.secret(options))
    except Exception as error:  # also what a library says of an option
        raise UserError(f"sink {sink.name}: {words(error, sink)}") from None


def words(error: BaseException, sink: plans.Sink) -> str:
    """Why it failed, in one line, and whatever it quotes: no secret of the plan stands in it."""
    text = str(error) or type(error).__name__
    for value in sorted(_secrets(sink.to), key=len, reverse=True):
        text = text.replace(value, "***").replace(repr(value)[1:-1], "***")
    return " ".join(text.split())[:300]


def _secrets(value: Any) -> Iterator[str]:
    """The values of every "$NAME" anywhere in the options, and their single lines."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _secrets(one)
    elif isinstance(value, str) and re.fullmatch(r"\$[A-Za-z_]\w*", value):
        known = os.environ.get(value[1:], "")
        yield from (one for one in {known, *known.split()} if len(one) > 2)


def json_line(event: Mapping[str, Any]) -> str:
    """JSON on one line, for whatever calls a line: U+2028, U+2029 and U+0085 are escaped as well."""
    text = json.dumps(dict(event), ensure_ascii=False, allow_nan=False)
    return re.sub("[\x85\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def line(event: Mapping[str, Any]) -> str:
    """One line for a person."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["updated"]))
    held = f"  ({event['held']} more were held back)" if event.get("held") else ""
    # Nothing of a name or of words may move a terminal's cursor
    said = "".join(c if c.isprintable() else " " for c in f"{event['camera']}  {event['words']}")
    return f"{at}  {event['level']:6} {event['state']:6} {said}{held}"


class Log:
    """One line an event to standard output."""

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        alphabet = sys.stdout.encoding or "utf-8"  # a terminal without this letter gets it as a number
        print(line(event).encode(alphabet, "backslashreplace").decode(alphabet), flush=True)

    def close(self) -> None:
        pass


class Lines:
    """A JSON object a line, appended to a file and on disk before it is taken as sent; whole or not at all."""

    def __init__(self, path: str):
        if not isinstance(path, str):
            raise UserError(f"path = {path!r}: wanted: a file's name")
        self._path = Path(path).expanduser()
        if not self._path.parent.is_dir():
            raise UserError(f"path = {path!r}: no such folder as {str(self._path.parent)!r}")

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        text = json_line({**event, "clip_path": str(clip) if clip else None}).encode() + b"\n"
        with self._path.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":  # a kill or a full disk cut the last line short
                    text = b"\n" + text
            try:
                if file.write(text) != len(text):
                    raise OSError(errno.ENOSPC, "no room for a whole line", str(self._path))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise

    def close(self) -> None:
        pass


class Unmoved(urllib.request.HTTPRedirectHandler):
    """A POST that is sent elsewhere would arrive there as a GET without its body, and count as delivered."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Webhook:
    """A POST of JSON. Signed where there is a secret: HMAC-SHA256 over "TIMESTAMP.BODY", as Stripe's are."""

    def __init__(self, url: str, secret: str | None = None, headers: Mapping[str, str] | None = None):
        shown = redact(url) if isinstance(url, str) else "?"
        try:
            parts = urlsplit(url)
            fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
        except (ValueError, AttributeError, TypeError):
            fine = False
        if not fine or not re.fullmatch(r"[!-~]+", url):
            raise UserError(f"url = {shown!r}: wanted: http://… or https://…, without spaces")
        self._url, self._secret, self._headers = url, secret, dict(headers or {})
        for name, value in self._headers.items():
            if not re.fullmatch(r"[\w-]+", name) or not isinstance(value, str) or not re.fullmatch(r"[ -~]*", value):
                raise UserError(f"headers: {name}: its value cannot stand in a header (a line's end, an odd letter)")
        port = f":{parts.port}" if parts.port else ""
        self._place = f"{parts.scheme}://{parts.hostname}{port}"  # a hook's path is often its password
        user, at, host = parts.netloc.rpartition("@")
        if at:  # a user and password in an address are sent as such, and never stand in an error
            self._url = url.replace(f"{user}@{host}", host, 1)
            self._headers["Authorization"] = "Basic " + base64.b64encode(unquote(user).encode()).decode()
        self._opener = urllib.request.build_opener(Unmoved)

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        body, stamp = json_line(event).encode(), str(int(time.time()))
        headers = {
            **self._headers, "Content-Type": "application/json", "User-Agent": f"stillwatch/{__version__}",
            "Idempotency-Key": "-".join(str(event[key]) for key in ("id", "change") if event.get(key)),
            "X-Stillwatch-Timestamp": stamp,
        }  # fmt: skip
        if self._secret:
            headers["X-Stillwatch-Signature"] = "sha256=" + signature(self._secret, stamp, body)
        request = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            self._opener.open(request, timeout=TIMEOUT).close()
        except urllib.error.HTTPError as error:
            error.close()
            hint = "; give the address that it is at now" if error.code // 100 == 3 else ""
            raise Refused(f"{self._place} answered {error.code}{hint}") from None
        except OSError as error:
            raise Refused(f"{self._place}: {redacted_error(error, self._url)}") from None
        except (http.client.HTTPException, ValueError) as error:  # they quote what was sent
            raise Refused(f"{self._place}: {type(error).__name__}: it does not speak HTTP as it should") from None

    def close(self) -> None:
        pass


def signature(secret: str, stamp: str, body: bytes) -> str:
    """hex of HMAC-SHA256 over `stamp.body`: what a receiver works out again and compares."""
    return hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Apprise:
    """Mail, Telegram, Slack, ntfy and a hundred others, by apprise's own addresses."""

    def __init__(self, url: str | Sequence[str], attach: bool = False):
        try:
            import apprise
        except ModuleNotFoundError:
            raise UserError("apprise is not installed: pip install 'stillwatch[apprise]'") from None
        self._to, self._attach = apprise.Apprise(), attach
        for one in [url] if isinstance(url, str) else url:
            if not isinstance(one, str) or not self._to.add(one):
                scheme = one.partition("://")[0] if isinstance(one, str) and "://" in one else "?"
                raise UserError(f"url = '{scheme}://***': apprise does not know such an address")

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        there = str(clip) if self._attach and clip and clip.is_file() else None
        title = f"Stillwatch: {event['level']} at {event['camera']}"
        if not self._to.notify(body=line(event), title=title, attach=there):
            raise Refused("apprise could not deliver it")

    def close(self) -> None:
        pass


class Command:
    """A program, without a shell: the event as JSON on its standard input; anything but exit status 0 is a refusal."""

    def __init__(self, command: Sequence[str], timeout: float = 30.0):
        if isinstance(command, str) or not command or not all(isinstance(word, str) for word in command):
            raise UserError(f"command = {command!r}: wanted: a list of words, such as ['/usr/local/bin/relay', 'on']")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or timeout <= 0:
            raise UserError(f"timeout = {timeout!r}: wanted: seconds")
        if shutil.which(command[0]) is None:
            raise UserError(f"command = {command[0]!r}: no such program")
        self._command, self._timeout = list(command), timeout

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        text = json_line({**event, "clip_path": str(clip) if clip else None})
        name = self._command[0]
        # Files, not pipes: what the program leaves running behind it may hold a pipe open for ever
        with scratch("given") as given, scratch("said") as said:
            given.write(text.encode())
            given.seek(0)
            try:
                process = subprocess.Popen(
                    self._command, stdin=given, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
                )
            except OSError as error:
                raise Refused(f"{name}: {error.strerror}") from None
            try:
                status = process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                raise Refused(f"{name}: did not end within {self._timeout:g} s") from None
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)  # and what it has started
                    process.wait()
            if status:
                said.seek(max(0, said.seek(0, os.SEEK_END) - 2000))
                last = "".join(said.read().decode(errors="replace").strip().splitlines()[-1:])
                raise Refused(f"{name}: exit status {status}{': ' + last[:200] if last else ''}")

    def close(self) -> None:
        pass


def scratch(name: str) -> IO[bytes]:
    """A file in memory, where the system has such: a full disk must not silence a siren."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create(name), "w+b")
    return tempfile.TemporaryFile()


class Sound:
    """A file, or a tone of our own, by the first player there is; without one, the terminal's bell."""

    def __init__(self, file: str | None = None, player: Sequence[str] | None = None):
        if file is not None and (not isinstance(file, str) or not Path(file).is_file()):
            raise UserError(f"file = {file!r}: no such file")
        if player is not None and (isinstance(player, str) or not player):
            raise UserError(f"player = {player!r}: wanted: a list of words, such as ['aplay', '-q']")
        found = [list(player)] if player else [list(words) for words in PLAYERS if shutil.which(words[0])]
        if player and shutil.which(player[0]) is None:
            raise UserError(f"player = {player[0]!r}: no such program")
        self._player, self._file = (found[0] if found else None), file

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        if self._player is None:
            sys.stdout.write("\a")
            sys.stdout.flush()
            return
        with tempfile.TemporaryDirectory() as folder:
            path = self._file or str(Path(folder) / "tone.wav")
            if self._file is None:
                Path(path).write_bytes(tone(event["level"]))
            Command([*self._player, path]).send(event, clip)

    def close(self) -> None:
        pass


def tone(level: str, rate: int = 22_050) -> bytes:
    """A WAV of one, two or three short tones, higher where it matters more."""
    count = {"notice": 1, "warn": 2, "alarm": 3}[level]
    at = np.arange(round(0.18 * rate)) / rate
    beep = np.sin(2 * np.pi * (440 + 220 * count) * at) * np.hanning(len(at))
    samples = np.tile(np.concatenate([beep, np.zeros(round(0.08 * rate))]), count)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 20_000).astype("<i2").tobytes())
    return out.getvalue()


SINKS: dict[str, Callable[..., Send]] = {
    "log": Log,
    "jsonl": Lines,
    "webhook": Webhook,
    "mqtt": Mqtt,
    "apprise": Apprise,
    "command": Command,
    "sound": Sound,
}
