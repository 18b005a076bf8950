"""Each sink takes an event in its own way, or says in one line, without a secret, why not."""

import hashlib
import hmac
import json
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillwatch.recipe import Mistake
from stillwatch.watch import sinks
from stillwatch.watch.plan import Sink

EVENT: dict[str, Any] = {
    "id": "cab-1-1", "camera": "cab", "kind": "phone", "label": "Phone", "level": "warn", "state": "opened",
    "start": 1.0, "opened": 4.0, "updated": 4.0, "end": None, "peak": 0.9, "words": "phone for 3 s", "clip": None,
    "thumbnail": None,
}  # fmt: skip


class Receiver(ThreadingHTTPServer):
    """Takes POSTs; `status` is what it answers."""

    daemon_threads = False

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 200

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                if self.status == 200:
                    self.got.append(({k.lower(): v for k, v in handler.headers.items()}, body))
                handler.send_response(self.status)
                handler.send_header("Content-Length", "0")
                handler.end_headers()

            def log_message(handler, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"


@contextmanager
def receiving() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def sink(**to: Any) -> sinks.Send:
    return sinks.opened(Sink(name="s", to=to))


def test_log_is_one_line_and_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    sink(name="log").send(EVENT | {"words": "phone\x1b[2J\nfake", "held": 3}, None)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "\x1b" not in out
    assert "warn" in out
    assert "(3 more were held back)" in out


def test_json_lines_are_appended(tmp_path: Path) -> None:
    to = sink(name="jsonl", path=str(tmp_path / "events.jsonl"))
    to.send(EVENT, Path("clips/a.mp4"))
    to.send(EVENT | {"id": "b"}, None)
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(row["id"], row["clip_path"]) for row in rows] == [("cab-1-1", "clips/a.mp4"), ("b", None)]
    with pytest.raises(Mistake, match="no such folder"):
        sink(name="jsonl", path=str(tmp_path / "none" / "x"))


def test_a_webhook_is_signed_as_its_receiver_checks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "s3cret")
    with receiving() as server:
        sink(name="webhook", url=server.url, secret="$HOOK", headers={"X-Site": "7"}).send(EVENT, None)
    ((headers, body),) = server.got
    assert json.loads(body) == EVENT
    mac = hmac.new(b"s3cret", headers["x-stillwatch-timestamp"].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["x-stillwatch-signature"] == f"sha256={mac}"
    assert headers["idempotency-key"] == "cab-1-1-opened-warn"
    assert headers["x-site"] == "7"
    assert abs(int(headers["x-stillwatch-timestamp"]) - time.time()) < 60


def test_a_webhook_that_refuses_or_is_not_there_says_so_without_its_password() -> None:
    with receiving() as server:
        server.status = 503
        url = server.url.replace("http://", "http://user:hunter2@") + "?token=hunter2"
        with pytest.raises(sinks.Refused, match="answered 503") as refused:
            sink(name="webhook", url=url).send(EVENT, None)
        assert "hunter2" not in str(refused.value)
    with pytest.raises(sinks.Refused) as refused:
        sink(name="webhook", url=url).send(EVENT, None)
    assert "hunter2" not in str(refused.value)


def test_a_command_gets_the_event_on_its_input(tmp_path: Path) -> None:
    code = f"import sys; open({str(tmp_path / 'out')!r}, 'w').write(sys.stdin.read())"
    sink(name="command", command=[sys.executable, "-c", code]).send(EVENT, None)
    assert json.loads((tmp_path / "out").read_text()) == EVENT | {"clip_path": None}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('no relay')", "exit status 1: no relay"),
        ("import time; time.sleep(60)", "did not end within 0.5 s"),
    ],
)
def test_a_command_that_fails_or_hangs_has_refused(code: str, words: str) -> None:
    with pytest.raises(sinks.Refused, match=words):
        sink(name="command", command=[sys.executable, "-c", code], timeout=0.5).send(EVENT, None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what apprise imports
def test_apprise_delivers() -> None:
    pytest.importorskip("apprise")
    with receiving() as server:
        sink(name="apprise", url=server.url.replace("http://", "json://")).send(EVENT, None)
        server.status = 500
        with pytest.raises(sinks.Refused, match="apprise could not deliver it"):
            sink(name="apprise", url=server.url.replace("http://", "json://")).send(EVENT, None)
    ((_, body),) = server.got
    assert json.loads(body)["title"] == "Stillwatch: warn at cab"


@pytest.mark.parametrize(("level", "tones"), [("notice", 1), ("warn", 2), ("alarm", 3)])
def test_a_sound_is_a_wav_for_the_player(tmp_path: Path, level: str, tones: int) -> None:
    code = f"import sys, shutil; shutil.copy(sys.argv[1], {str(tmp_path / 'tone.wav')!r})"
    sink(name="sound", player=[sys.executable, "-c", code]).send(EVENT | {"level": level}, None)
    with wave.open(BytesIO((tmp_path / "tone.wav").read_bytes())) as file:
        assert round(file.getnframes() / file.getframerate() / 0.26) == tones


def test_without_a_player_the_bell_rings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sinks.shutil, "which", lambda name: None)
    sink(name="sound").send(EVENT, None)
    assert capsys.readouterr().out == "\a"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what apprise imports
@pytest.mark.parametrize(
    ("to", "words"),
    [
        ({"name": "webhok", "url": "x"}, "sink s: to = 'webhok': unknown; did you mean 'webhook'"),
        ({"name": "webhook", "url": "ftp://x"}, "sink s: url = 'ftp://x': wanted: http"),
        ({"name": "webhook"}, "sink s: .*url"),
        ({"name": "webhook", "url": "$NOBODY_SET_THIS"}, "NOBODY_SET_THIS: not set in the environment"),
        ({"name": "log", "colour": 1}, "sink s: .*colour"),
        ({"name": "command", "command": "rm -rf x"}, "sink s: command = 'rm -rf x': wanted: a list of words"),
        ({"name": "command", "command": ["no-such-program"]}, "no such program"),
        ({"name": "sound", "file": "no.wav"}, "no.wav': no such file"),
        ({"name": "apprise", "url": "nonsense://secret"}, r"nonsense://\*\*\*': apprise does not know"),
    ],
)
def test_a_bad_option_is_named(to: dict[str, Any], words: str) -> None:
    with pytest.raises(Mistake, match=words):
        sink(**to)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_one_printable_line(text: str) -> None:
    said = sinks.line(EVENT | {"words": text})
    assert said.isprintable()


# --- a real broker


@contextmanager
def broker(folder: Path, port: int = 0) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    import shutil
    import socket

    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("mosquitto is not installed (make programs)")
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    conf = folder / "mosquitto.conf"
    conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\n")
    with subprocess.Popen([program, "-c", str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 15
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        try:
            yield port, process
        finally:
            process.terminate()


class Listener:
    """A second client of the broker."""

    def __init__(self, port: int):
        from paho.mqtt import client as paho

        self.got: list[tuple[str, str, int]] = []
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.on_message = lambda _, __, m: self.got.append((m.topic, m.payload.decode(), m.qos))
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        ready = threading.Event()
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert ready.wait(15)

    def until(self, topic: str, text: str) -> int:
        """The QoS of that message."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for found, payload, qos in list(self.got):
                if found == topic and text in payload:
                    return qos
            time.sleep(0.02)
        raise AssertionError(f"no {text!r} on {topic}: {self.got}")

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def test_mqtt_with_discovery_state_and_confirmed_delivery(tmp_path: Path) -> None:
    with broker(tmp_path) as (port, _):
        listener, to = Listener(port), sink(name="mqtt", host="127.0.0.1", port=port)
        try:
            to.send(EVENT, None)
            assert listener.until("stillwatch/cab/event", '"cab-1-1"') == 1
            listener.until("stillwatch/cab/active", "ON")
            listener.until("stillwatch/status", "online")
            listener.until("homeassistant/binary_sensor/stillwatch_cab/config", '"availability_topic"')
            to.send(EVENT | {"state": "closed"}, None)
            listener.until("stillwatch/cab/active", "OFF")
        finally:
            to.close()
            listener.until("stillwatch/status", "offline")
            listener.close()


def test_mqtt_last_will_speaks_for_a_killed_watch(tmp_path: Path) -> None:
    with broker(tmp_path) as (port, _):
        listener = Listener(port)
        program = (
            "import time\nfrom stillwatch.watch import sinks\nfrom stillwatch.watch.plan import Sink\n"
            f"to = sinks.opened(Sink(name='m', to={{'name': 'mqtt', 'host': '127.0.0.1', 'port': {port}}}))\n"
            "time.sleep(60)\n"
        )
        try:
            with subprocess.Popen([sys.executable, "-c", program]) as process:
                listener.until("stillwatch/status", "online")
                process.kill()
            listener.until("stillwatch/status", "offline")
        finally:
            listener.close()


def test_mqtt_goes_on_when_the_broker_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "TIMEOUT", 1.0)
    with broker(tmp_path) as (port, _):
        to = sink(name="mqtt", host="127.0.0.1", port=port)
        to.send(EVENT, None)
    try:
        end = time.monotonic() + 20
        while True:  # the client notices within moments
            try:
                to.send(EVENT, None)
            except sinks.Refused:
                break
            assert time.monotonic() < end
        monkeypatch.setattr(sinks, "TIMEOUT", 20.0)
        with broker(tmp_path, port):
            to.send(EVENT | {"id": "again"}, None)
    finally:
        to.close()
