"""Sinks: log, JSON lines, webhook, MQTT, Postgres, apprise, command, sound. One thread calls each."""

import asyncio
import errno
import hashlib
import hmac
import io
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, ClassVar, Protocol
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field

from stillwatch import __version__, registry
from stillwatch.errors import UserError, one_line
from stillwatch.monitor.config import Sink, secret
from stillwatch.monitor.events.database import StoredEvent
from stillwatch.monitor.events.mqtt import Mqtt, Refused
from stillwatch.monitor.events.postgres import Postgres

TIMEOUT = 10.0  # seconds for a whole answer
SERVICES = 60.0  # seconds for all services of one apprise sink
KEPT = 2000  # bytes of what a command says
FFPLAY = ("ffplay", "-nodisp", "-autoexit", "-loglevel", "quiet")
PLAYERS = (("pw-play",), ("paplay",), ("aplay", "-q"), ("afplay",), FFPLAY)
Words = Annotated[Sequence[str], Field(min_length=1)]


@dataclass(frozen=True)
class Message(StoredEvent):
    """An event, its change, and how many events were held back before."""

    change: str = "reached"
    held: int = 0
    test: bool = False

    def payload(self) -> dict[str, object]:
        """Its JSON, without marks; held and test only where set."""
        omitted = {"acknowledged", "verdict"} | {name for name in ("held", "test") if not getattr(self, name)}
        return {name: value for name, value in self.as_dict().items() if name not in omitted}


class Sender(Protocol):
    stateful: ClassVar[bool] = False  # shows what is on now: it hears of an end whatever `updates` says
    files: ClassVar[tuple[str, ...]] = ()  # options that name a file, relative to watch.toml

    def present(self, cameras: Sequence[str]) -> None:
        return None

    def send(self, event: Message, clip: Path | None) -> None:
        """Raises Refused, or any error, where it was not taken."""

    def close(self) -> None:
        return None


def name_of(sink: Sink) -> str:
    return sink.to if isinstance(sink.to, str) else str(sink.to.get("name"))


def open_sink(sink: Sink) -> Sender:
    """Raises UserError."""
    try:
        return registry.build(SINKS, secret(sink.to), place="to", prefix="")
    except Exception as error:  # also what a library says of an option
        raise UserError(f"sink {sink.name}: {explain(error, sink)}") from None


def explain(error: BaseException, sink: Sink) -> str:
    """One line without the config's secrets."""
    return one_line(error, set(_secrets(sink.to)))


def _secrets(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _secrets(item)
    elif isinstance(value, str) and re.fullmatch(r"\$[A-Za-z_]\w*", value):
        known = os.environ.get(value[1:], "")
        yield from (text for text in (known, *known.split()) if len(text) > 2)


def json_line(fields: Mapping[str, object]) -> str:
    """JSON on one line; U+2028, U+2029 and U+0085 are escaped."""
    text = json.dumps(dict(fields), ensure_ascii=False, allow_nan=False)
    return re.sub("[\x85\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def line(event: Message) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.updated))
    held = f"  ({event.held} more were held back)" if event.held else ""
    # Nothing of a name or of words may move a terminal's cursor
    text = "".join(c if c.isprintable() else " " for c in f"{event.camera}  {event.words}")
    return f"{at}  {event.level:6} {event.state:6} {text}{held}"


class Log(Sender):
    def __init__(self) -> None:  # its own: a Protocol's takes any option once one was made
        pass

    def send(self, event: Message, clip: Path | None) -> None:
        alphabet = sys.stdout.encoding or "utf-8"  # a terminal without this letter gets it as a number
        print(line(event).encode(alphabet, "backslashreplace").decode(alphabet), flush=True)


class JsonLines(Sender):
    """One JSON object per line, on disk before it counts as sent."""

    files = ("path",)

    def __init__(self, path: str):
        self._path = Path(path).expanduser()
        if not self._path.parent.is_dir():
            raise UserError(f"path = {path!r}: no such folder as {str(self._path.parent)!r}")

    def send(self, event: Message, clip: Path | None) -> None:
        text = json_line({**event.payload(), "clip_path": str(clip) if clip else None}).encode() + b"\n"
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


class Webhook(Sender):
    """A POST of JSON. With a secret it is signed: HMAC-SHA256 over "TIMESTAMP.BODY", as Stripe's are."""

    def __init__(self, url: str, secret: str | None = None, headers: dict[str, str] | None = None):
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
        except ValueError:
            valid = False
        if not valid or not re.fullmatch(r"[!-~]+", url):
            from stillwatch.monitor.cameras.source import redact

            raise UserError(f"url = {redact(url)!r}: wanted: http://… or https://…, without spaces")
        self._url, self._secret, self._headers = url, secret, headers or {}
        for name, value in self._headers.items():
            if not re.fullmatch(r"[\w-]+", name) or not re.fullmatch(r"[ -~]*", value):
                raise UserError(f"headers: {name}: its value cannot stand in a header (a line's end, an odd letter)")
        port = f":{parts.port}" if parts.port else ""
        self._place = f"{parts.scheme}://{parts.hostname}{port}"  # a hook's path is often its password
        self._verify = ssl.create_default_context() if parts.scheme == "https" else False  # the system's authorities

    def send(self, event: Message, clip: Path | None) -> None:
        """One deadline for everything: a server that sends a byte now and then must not hold it."""
        import httpx

        body, timestamp = json_line(event.payload()).encode(), str(int(time.time()))
        headers = self._headers | {
            "Content-Type": "application/json",
            "User-Agent": f"stillwatch/{__version__}",
            "Idempotency-Key": "-".join(part for part in (event.id, event.change) if part),
            "X-Stillwatch-Timestamp": timestamp,
        }
        if self._secret:
            mac = hmac.new(self._secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
            headers["X-Stillwatch-Signature"] = "sha256=" + mac.hexdigest()
        try:
            with closing(asyncio.new_event_loop()) as loop:  # run() would wait for a name server without an end
                status = loop.run_until_complete(asyncio.wait_for(self._post(body, headers), TIMEOUT))
        except (TimeoutError, httpx.TimeoutException):
            raise Refused(f"{self._place}: no whole answer within {TIMEOUT:g} s") from None
        except (httpx.ProtocolError, httpx.InvalidURL, ValueError) as error:  # they quote what was sent
            raise Refused(f"{self._place}: {type(error).__name__}: it does not speak HTTP as it should") from None
        except (httpx.HTTPError, OSError) as error:
            from stillwatch.monitor.cameras.source import redacted_error

            cause: BaseException = error
            while cause.__cause__ is not None and not isinstance(cause.__cause__, BaseExceptionGroup):
                cause = cause.__cause__
            raise Refused(f"{self._place}: {redacted_error(cause, self._url)}") from None
        if not 200 <= status < 300:
            hint = "; give the address that it is at now" if status // 100 == 3 else ""
            raise Refused(f"{self._place} answered {status}{hint}")

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> int:
        import httpx

        # A redirect is not followed: the POST would arrive as a GET without its body, and count as delivered
        async with (
            httpx.AsyncClient(verify=self._verify, timeout=None) as client,
            client.stream("POST", self._url, content=body, headers=headers) as response,
        ):
            return response.status_code


class Apprise(Sender):
    """Mail, Telegram, Slack, ntfy and many others, by apprise's addresses."""

    def __init__(self, url: str | Sequence[str], attach: bool = False):
        try:
            import apprise
        except ModuleNotFoundError:
            raise UserError("apprise is not installed: pip install 'stillwatch[apprise]'") from None
        self._targets, self._attach = apprise.Apprise(), attach
        self._work = threading.Thread()
        for address in [url] if isinstance(url, str) else url:
            if not self._targets.add(address):
                scheme = address.partition("://")[0] if "://" in address else "?"
                raise UserError(f"url = '{scheme}://***': apprise does not know such an address")

    def send(self, event: Message, clip: Path | None) -> None:
        attachment = str(clip) if self._attach and clip and clip.is_file() else None
        title = f"Stillwatch: {event.level} at {event.camera}"
        answers: list[object] = []

        def notify() -> None:
            try:
                answers.append(self._targets.notify(body=line(event), title=title, attach=attachment))
            except Exception as error:  # every service has exceptions of its own
                answers.append(error)

        # One deadline for everything: a service that sends a byte now and then must not hold it
        if self._work.is_alive():
            raise Refused("apprise: an earlier message is still under way")
        self._work = threading.Thread(target=notify, daemon=True)
        self._work.start()
        self._work.join(SERVICES)
        answer = answers[0] if answers else Refused(f"apprise: no whole answer within {SERVICES:g} s")
        if isinstance(answer, Exception):
            raise answer
        if not answer:
            raise Refused("apprise could not deliver it")


class Command(Sender):
    """A program without a shell: the event as JSON on stdin; exit status 0 takes it."""

    def __init__(self, command: Words, timeout: Annotated[float, Field(gt=0)] = 30.0):
        if shutil.which(command[0]) is None:
            raise UserError(f"command = {command[0]!r}: no such program")
        self._command, self._timeout = list(command), timeout

    def send(self, event: Message, clip: Path | None) -> None:
        text = json_line({**event.payload(), "clip_path": str(clip) if clip else None})
        name = self._command[0]
        with scratch() as stdin:
            stdin.write(text.encode())
            stdin.seek(0)
            try:
                process = subprocess.Popen(
                    self._command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                    start_new_session=True, bufsize=0,
                )  # fmt: skip
            except OSError as error:
                raise Refused(f"{name}: {error.strerror}") from None
        assert process.stderr is not None
        said = bytearray()
        # A program may leave another one running, which holds the pipe open: it is read on, and not waited for
        reader = threading.Thread(target=keep_last, args=(process.stderr, said), daemon=True)
        reader.start()
        try:
            status = process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            raise Refused(f"{name}: did not end within {self._timeout:g} s") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
                with suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel
                    process.wait(1.0)
        if status:
            reader.join(0.5)
            last = "".join(said.decode(errors="replace").strip().splitlines()[-1:])
            raise Refused(f"{name}: exit status {status}{': ' + last[:200] if last else ''}")


def scratch() -> IO[bytes]:
    """A file in memory where possible: a full disk must not silence a siren."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("event"), "w+b")
    return tempfile.TemporaryFile()


def keep_last(pipe: IO[bytes], said: bytearray) -> None:
    """Read a pipe to its end, and keep its last KEPT bytes."""
    with pipe:
        while more := pipe.read(1 << 16):
            said += more
            del said[:-KEPT]


class Sound(Sender):
    files = ("file",)

    def __init__(self, file: str | None = None, player: Words | None = None):
        if file is not None and not Path(file).is_file():
            raise UserError(f"file = {file!r}: no such file")
        if player and shutil.which(player[0]) is None:
            raise UserError(f"player = {player[0]!r}: no such program")
        self._file = file
        self._player = player or next((command for command in PLAYERS if shutil.which(command[0])), None)

    def send(self, event: Message, clip: Path | None) -> None:
        if self._player is None:
            sys.stdout.write("\a")
            sys.stdout.flush()
            return
        with tempfile.TemporaryDirectory() as folder:
            path = self._file or str(Path(folder) / "tone.wav")
            if self._file is None:
                Path(path).write_bytes(tone(event.level))
            Command([*self._player, path]).send(event, clip)


def tone(level: str) -> bytes:
    """A WAV of one to three short tones, higher for higher levels."""
    rate, count = 22_050, {"notice": 1, "warn": 2, "alarm": 3}[level]
    t = np.arange(round(0.18 * rate)) / rate
    beep = np.sin(2 * np.pi * (440 + 220 * count) * t) * np.hanning(len(t))
    samples = np.tile(np.concatenate([beep, np.zeros(round(0.08 * rate))]), count)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 20_000).astype("<i2").tobytes())
    return out.getvalue()


def is_stateful(sink: Sink) -> bool:
    return bool(getattr(SINKS.get(name_of(sink)), "stateful", False))


SINKS: dict[str, Callable[..., Sender]] = {
    "log": Log,
    "jsonl": JsonLines,
    "webhook": Webhook,
    "mqtt": Mqtt,
    "postgres": Postgres,
    "apprise": Apprise,
    "command": Command,
    "sound": Sound,
}
