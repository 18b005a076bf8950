"""Sinks: who is told, and how: log, JSON lines, webhook, MQTT, apprise, a command, a sound.

In: an event as a dict, and its clip. Out: it was taken, or an exception that says why not, in words without secrets.
Called by Post, one thread a sink, and by `stillwatch test-sinks`. It knows no queue and no second try.
"""

import base64
import hashlib
import hmac
import inspect
import io
import json
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np

from stillwatch import __version__
from stillwatch.recipe import Mistake, pick
from stillwatch.watch import plan as plans
from stillwatch.watch.source import redact
from stillwatch.watch.source import words as words_of

TIMEOUT = 10.0  # seconds for any answer
PLAYERS = (
    ("pw-play",),
    ("paplay",),
    ("aplay", "-q"),
    ("afplay",),
    ("ffplay", "-nodisp", "-autoexit", "-loglevel", "quiet"),
)


class Refused(Exception):
    """It did not take the event; the words may be shown."""


class Send(Protocol):
    """An opened sink. One thread calls it."""

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        """Raises Refused, or anything, where it was not taken."""

    def close(self) -> None: ...


def opened(sink: plans.Sink) -> Send:
    """A sink of the plan, its secrets taken from the environment. Raises Mistake for a bad name or option."""
    build, options = pick(SINKS, sink.to, f"sink {sink.name}: to")
    try:
        return build(**plans.secret(options))
    except TypeError as error:
        known = ", ".join(inspect.signature(build).parameters) or "none"
        words = str(error).rpartition("()")[2].strip()
        raise Mistake(f"sink {sink.name}: {words}; given: {', '.join(options) or 'none'}; it knows: {known}") from None
    except Mistake as mistake:
        raise Mistake(f"sink {sink.name}: {mistake}") from None


def line(event: Mapping[str, Any]) -> str:
    """One line for a person."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["updated"]))
    held = f"  ({event['held']} more were held back)" if event.get("held") else ""
    # Nothing of a name or of words may move a terminal's cursor
    words = "".join(c if c.isprintable() else " " for c in f"{event['camera']}  {event['words']}")
    return f"{at}  {event['level']:6} {event['state']:6} {words}{held}"


class Log:
    """One line an event to standard output."""

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        print(line(event), flush=True)

    def close(self) -> None:
        pass


class Lines:
    """A JSON object a line, appended to a file and on disk before it is taken as sent."""

    def __init__(self, path: str):
        self._path = Path(path)
        if not self._path.parent.is_dir():
            raise Mistake(f"path = {path!r}: no such folder as {str(self._path.parent)!r}")

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        text = json.dumps({**event, "clip_path": str(clip) if clip else None}, ensure_ascii=False) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()

    def close(self) -> None:
        pass


class Webhook:
    """A POST of JSON. Signed where there is a secret: HMAC-SHA256 over "TIMESTAMP.BODY", as Stripe's are."""

    def __init__(self, url: str, secret: str | None = None, headers: Mapping[str, str] | None = None):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise Mistake(f"url = {redact(url)!r}: wanted: http://… or https://…")
        self._url, self._secret, self._headers = url, secret, dict(headers or {})
        user, at, host = urlsplit(url).netloc.rpartition("@")
        if at:  # a user and password in an address are sent as such, and never stand in an error
            self._url = url.replace(f"{user}@{host}", host, 1)
            self._headers["Authorization"] = "Basic " + base64.b64encode(unquote(user).encode()).decode()

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        body = json.dumps(dict(event), ensure_ascii=False).encode()
        stamp = str(int(time.time()))
        headers = {
            **self._headers, "Content-Type": "application/json", "User-Agent": f"stillwatch/{__version__}",
            "Idempotency-Key": f"{event['id']}-{event['state']}-{event['level']}", "X-Stillwatch-Timestamp": stamp,
        }  # fmt: skip
        if self._secret:
            headers["X-Stillwatch-Signature"] = "sha256=" + signature(self._secret, stamp, body)
        request = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                answer.read(1024)
        except urllib.error.HTTPError as error:
            error.close()
            raise Refused(f"{redact(self._url)} answered {error.code}") from None
        except (OSError, ValueError) as error:
            raise Refused(f"{redact(self._url)}: {words_of(error, self._url)}") from None

    def close(self) -> None:
        pass


def signature(secret: str, stamp: str, body: bytes) -> str:
    """hex of HMAC-SHA256 over `stamp.body`: what a receiver works out again and compares."""
    return hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Mqtt:
    """MQTT 3.1.1, QoS 1: each event, and for each camera whether something is on; Home Assistant finds them by itself.

    Topics: PREFIX/status (online, offline: the last will), PREFIX/CAMERA/event, PREFIX/CAMERA/active (ON, OFF).
    """

    def __init__(
        self, host: str, port: int = 1883, user: str | None = None, password: str | None = None,
        prefix: str = "stillwatch", discovery: str = "homeassistant", tls: bool = False,
    ):  # fmt: skip
        from paho.mqtt import client as paho

        self._host, self._prefix, self._discovery = f"{host}:{port}", prefix, discovery
        self._known: set[str] = set()
        self._on: dict[str, set[str]] = {}
        self._up = threading.Event()
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id=f"stillwatch-{prefix}", clean_session=False
        )
        self._client.will_set(f"{prefix}/status", "offline", qos=1, retain=True)
        if user is not None:
            self._client.username_pw_set(user, password)
        if tls:
            self._client.tls_set()
        self._client.reconnect_delay_set(1, 30)
        self._client.on_connect = self._connected
        self._client.on_disconnect = lambda *_: self._up.clear()
        self._client.connect_timeout = TIMEOUT
        self._client.connect_async(host, port, keepalive=30)
        self._client.loop_start()

    def _connected(self, client: Any, _: Any, __: Any, reason: Any, ___: Any = None) -> None:
        if not reason.is_failure:
            client.publish(f"{self._prefix}/status", "online", qos=1, retain=True)
            self._known.clear()  # a broker that was set up anew knows nothing of us
            self._up.set()

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        if not self._up.wait(TIMEOUT):
            raise Refused(f"{self._host}: no connection")
        camera = event["camera"]
        if camera not in self._known:
            self._publish(f"{self._discovery}/binary_sensor/{self._prefix}_{camera}/config", self._config(camera), True)
            self._known.add(camera)
        on = self._on.setdefault(camera, set())
        (on.discard if event["state"] == "closed" else on.add)(event["id"])
        self._publish(f"{self._prefix}/{camera}/event", json.dumps(dict(event), ensure_ascii=False), False)
        self._publish(f"{self._prefix}/{camera}/active", "ON" if on else "OFF", True)

    def _config(self, camera: str) -> str:
        name = f"{self._prefix}/{camera}"
        device = {"identifiers": [f"{self._prefix}-{camera}"], "name": camera, "manufacturer": "Stillwatch"}
        return json.dumps({
            "name": "Alarm", "unique_id": f"{self._prefix}_{camera}", "state_topic": f"{name}/active",
            "json_attributes_topic": f"{name}/event", "availability_topic": f"{self._prefix}/status",
            "device_class": "safety", "device": device,
        })  # fmt: skip

    def _publish(self, topic: str, text: str, keep: bool) -> None:
        sent = self._client.publish(topic, text, qos=1, retain=keep)
        try:
            sent.wait_for_publish(TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise Refused(f"{self._host}: {error}") from None
        if not sent.is_published():
            raise Refused(f"{self._host}: did not confirm {topic}")

    def close(self) -> None:
        if self._up.is_set():
            self._client.publish(f"{self._prefix}/status", "offline", qos=1, retain=True).wait_for_publish(1.0)
        self._client.disconnect()
        self._client.loop_stop()


class Apprise:
    """Mail, Telegram, Slack, ntfy and a hundred others, by apprise's own addresses."""

    def __init__(self, url: str | Sequence[str], attach: bool = False):
        try:
            import apprise
        except ModuleNotFoundError:
            raise Mistake("apprise is not installed: pip install 'stillwatch[apprise]'") from None
        self._to, self._attach = apprise.Apprise(), attach
        for one in [url] if isinstance(url, str) else url:
            if not self._to.add(one):
                raise Mistake(f"url = {one.partition(':')[0] + '://***'!r}: apprise does not know such an address")

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
            raise Mistake(f"command = {command!r}: wanted: a list of words, such as ['/usr/local/bin/relay', 'on']")
        if shutil.which(command[0]) is None:
            raise Mistake(f"command = {command[0]!r}: no such program")
        self._command, self._timeout = list(command), timeout

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        text = json.dumps({**event, "clip_path": str(clip) if clip else None}, ensure_ascii=False)
        try:
            done = subprocess.run(
                self._command, input=text.encode(), timeout=self._timeout, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Refused(f"{self._command[0]}: did not end within {self._timeout:g} s") from None
        except OSError as error:
            raise Refused(f"{self._command[0]}: {error.strerror}") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise Refused(f"{self._command[0]}: exit status {done.returncode}{': ' + said[0][:200] if said else ''}")

    def close(self) -> None:
        pass


class Sound:
    """A file, or a tone of our own, by the first player there is; without one, the terminal's bell."""

    def __init__(self, file: str | None = None, player: Sequence[str] | None = None):
        if file is not None and not Path(file).is_file():
            raise Mistake(f"file = {file!r}: no such file")
        found = [list(player)] if player else [list(words) for words in PLAYERS if shutil.which(words[0])]
        if player and shutil.which(player[0]) is None:
            raise Mistake(f"player = {player[0]!r}: no such program")
        self._player, self._file = (found[0] if found else None), file

    def send(self, event: Mapping[str, Any], clip: Path | None) -> None:
        if self._player is None:
            sys.stdout.write("\a")
            sys.stdout.flush()
            return
        import tempfile

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
