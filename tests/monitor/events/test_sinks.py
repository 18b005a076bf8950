"""Each sink takes an event in its own way, or says in one line, without a secret, why not."""

import contextlib
import hashlib
import hmac
import json
import os
import socket
import subprocess
import sys
import threading
import time
import wave
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from event_toys import MESSAGE, receiving, sink, until
from hypothesis import given
from hypothesis import strategies as st

from stillwatch.errors import UserError
from stillwatch.monitor.config import Sink
from stillwatch.monitor.events import sinks


def test_log_is_one_line_and_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    sink(name="log").send(replace(MESSAGE, words="phone\x1b[2J\nfake", held=3), None)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "\x1b" not in out
    assert "warn" in out
    assert "(3 more were held back)" in out


def test_json_lines_are_appended(tmp_path: Path) -> None:
    to = sink(name="jsonl", path=str(tmp_path / "events.jsonl"))
    to.send(MESSAGE, Path("clips/a.mp4"))
    to.send(replace(MESSAGE, id="b"), None)
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(row["id"], row["clip_path"]) for row in rows] == [("cab-1-1", "clips/a.mp4"), ("b", None)]
    with pytest.raises(UserError, match="no such folder"):
        sink(name="jsonl", path=str(tmp_path / "none" / "x"))


def test_a_line_that_a_kill_cut_short_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"id": "whole"}\n{"id": "cu')
    sink(name="jsonl", path=str(path)).send(MESSAGE, None)
    lines = path.read_text().splitlines()
    assert [lines[0], lines[1], json.loads(lines[2])["id"]] == ['{"id": "whole"}', '{"id": "cu', "cab-1-1"]


def test_a_line_that_finds_no_room_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """In a process whose files may not grow: the system itself cuts the write short."""
    path = tmp_path / "events.jsonl"
    program = (
        "import resource, signal\nfrom stillwatch.monitor.events import sinks\n"
        "from stillwatch.monitor.config import Sink\n"
        "from dataclasses import replace\nfrom stillwatch.monitor.events.sinks import Message\n"
        f"event, to = {MESSAGE!r}, sinks.open_sink(Sink(name='s', to={{'name': 'jsonl', 'path': {str(path)!r}}}))\n"
        "to.send(event, None)\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        "try:\n    to.send(replace(event, id='x' * 500), None)\nexcept OSError as error:\n    print(error.strerror)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "no room for a whole line\n"
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["id"] == "cab-1-1"


def test_a_webhook_is_signed_as_its_receiver_checks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "s3cret")
    with receiving() as server:
        sink(name="webhook", url=server.url, secret="$HOOK", headers={"X-Site": "7"}).send(MESSAGE, None)
    ((headers, body),) = server.got
    assert json.loads(body) == {
        "id": "cab-1-1", "camera": "cab", "kind": "phone", "label": "Phone", "level": "warn", "state": "opened",
        "start": 1.0, "opened": 4.0, "updated": 4.0, "end": None, "peak": 0.9, "words": "phone for 3 s", "clip": None,
        "thumbnail": None, "change": "reached",
    }  # fmt: skip
    mac = hmac.new(b"s3cret", headers["x-stillwatch-timestamp"].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["x-stillwatch-signature"] == f"sha256={mac}"
    assert headers["idempotency-key"] == "cab-1-1-reached"
    assert headers["x-site"] == "7"
    assert abs(int(headers["x-stillwatch-timestamp"]) - time.time()) < 60


def test_a_webhook_that_refuses_or_is_not_there_says_so_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "Bearer hunter2")
    with receiving() as server:
        server.status = 503
        url = server.url.replace("http://", "http://user:hunter2@") + "/hunter2?token=hunter2"
        to = sink(name="webhook", url=url, headers={"Authorization": "$HOOK"})
        with pytest.raises(sinks.Refused, match="answered 503") as refused:
            to.send(MESSAGE, None)
        assert "hunter2" not in str(refused.value)
        server.status = 307
        with pytest.raises(sinks.Refused, match="answered 307; give the address that it is at now"):
            to.send(MESSAGE, None)
        server.status = 302  # would become a GET without the event, and count as delivered
        with pytest.raises(sinks.Refused, match="answered 302"):
            to.send(MESSAGE, None)
    with pytest.raises(sinks.Refused) as refused:
        to.send(MESSAGE, None)
    assert "hunter2" not in str(refused.value)


def test_a_server_that_speaks_something_else_has_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-hello\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(sinks.Refused, match=r"http://127.0.0.1:\d+: "):
            sink(name="webhook", url=f"http://127.0.0.1:{server.getsockname()[1]}/x").send(MESSAGE, None)
        thread.join()


def test_a_server_that_dribbles_bytes_holds_a_webhook_no_longer_than_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sinks, "TIMEOUT", 0.5)
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def dribble() -> None:
            with server.accept()[0] as connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not ended.wait(0.05):
                    connection.sendall(b"x")

        thread = threading.Thread(target=dribble)
        thread.start()
        start = time.monotonic()
        with pytest.raises(sinks.Refused, match=r"no whole answer within 0\.5 s"):
            sink(name="webhook", url=f"http://127.0.0.1:{server.getsockname()[1]}/x").send(MESSAGE, None)
        assert time.monotonic() - start < 5
        ended.set()
        thread.join()


def test_a_command_gets_the_event_on_its_input(tmp_path: Path) -> None:
    code = f"import sys; open({str(tmp_path / 'out')!r}, 'w').write(sys.stdin.read())"
    sink(name="command", command=[sys.executable, "-c", code]).send(MESSAGE, None)
    assert json.loads((tmp_path / "out").read_text()) == MESSAGE.payload() | {"clip_path": None}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('no relay')", "exit status 1: no relay"),
        ("import time; time.sleep(60)", "did not end within 0.5 s"),
    ],
)
def test_a_command_that_fails_or_hangs_has_refused(code: str, words: str) -> None:
    with pytest.raises(sinks.Refused, match=words):
        sink(name="command", command=[sys.executable, "-c", code], timeout=0.5).send(MESSAGE, None)


def test_a_command_is_done_when_it_ends_whatever_it_leaves_running(tmp_path: Path) -> None:
    start = time.monotonic()
    sink(name="command", command=["sh", "-c", "sleep 30 & exit 0"], timeout=20).send(MESSAGE, None)
    assert time.monotonic() - start < 15
    with pytest.raises(sinks.Refused, match=r"did not end within 0\.5 s"):
        child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
        words = ["sh", "-c", f'"{sys.executable}" -c "$0" & wait', child]
        sink(name="command", command=words, timeout=0.5).send(MESSAGE, None)
    with contextlib.suppress(FileNotFoundError):  # on a slow machine it had not come so far
        pid = int((tmp_path / "pid").read_text() or 0)
        end = time.monotonic() + 10
        while pid and Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < end, "the program's own child goes on"
            time.sleep(0.02)


def test_what_a_command_says_is_read_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bytearray] = []
    read = sinks.keep_last
    monkeypatch.setattr(sinks, "keep_last", lambda pipe, kept: (said.append(kept), read(pipe, kept)))
    code = "import sys\nfor _ in range(300): sys.stderr.write('x' * 99_999 + chr(10))\nsys.exit('no relay')"
    with pytest.raises(sinks.Refused, match="exit status 1: no relay"):
        sink(name="command", command=[sys.executable, "-c", code]).send(MESSAGE, None)
    assert len(said[0]) <= sinks.KEPT


def test_whatever_an_error_quotes_no_secret_stands_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "s3cret\nhunter2")
    code = "import sys; sys.exit('cannot log in with ' + sys.argv[1].split()[0])"
    plan = Sink(name="s", to={"name": "command", "command": [sys.executable, "-c", code, "$KEY"]})
    with pytest.raises(sinks.Refused) as refused:
        sinks.open_sink(plan).send(MESSAGE, None)
    assert sinks.explain(refused.value, plan).endswith("exit status 1: cannot log in with ***")
    with pytest.raises(UserError, match="headers: Authorization: its value cannot stand in a header"):
        sink(name="webhook", url="http://h/", headers={"Authorization": "$KEY"})
    hook = Sink(name="s", to={"name": "webhook", "url": "$KEY"})
    with pytest.raises(UserError) as mistake:
        sinks.open_sink(hook)
    assert "s3cret" not in str(mistake.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what apprise imports
def test_apprise_delivers() -> None:
    pytest.importorskip("apprise")
    with receiving() as server:
        sink(name="apprise", url=server.url.replace("http://", "json://")).send(MESSAGE, None)
        server.status = 500
        with pytest.raises(sinks.Refused, match="apprise could not deliver it"):
            sink(name="apprise", url=server.url.replace("http://", "json://")).send(MESSAGE, None)
    ((_, body),) = server.got
    assert json.loads(body)["title"] == "Stillwatch: warn at cab"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what apprise imports
def test_an_apprise_service_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    apprise = pytest.importorskip("apprise")
    ended = threading.Event()
    monkeypatch.setattr(sinks, "SERVICES", 0.1)
    monkeypatch.setattr(apprise.Apprise, "notify", lambda *_, **__: ended.wait(20))
    to = sink(name="apprise", url="json://h")
    for words in ("no whole answer within 0.1 s", "still under way"):
        with pytest.raises(sinks.Refused, match=words):
            to.send(MESSAGE, None)
    ended.set()
    until(lambda: not to._work.is_alive())  # type: ignore[attr-defined]
    to.send(MESSAGE, None)
    monkeypatch.setattr(apprise.Apprise, "notify", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        to.send(MESSAGE, None)


@pytest.mark.parametrize(("level", "tones"), [("notice", 1), ("warn", 2), ("alarm", 3)])
def test_a_sound_is_a_wav_for_the_player(tmp_path: Path, level: str, tones: int) -> None:
    code = f"import sys, shutil; shutil.copy(sys.argv[1], {str(tmp_path / 'tone.wav')!r})"
    sink(name="sound", player=[sys.executable, "-c", code]).send(replace(MESSAGE, level=level), None)
    with wave.open(BytesIO((tmp_path / "tone.wav").read_bytes())) as file:
        assert round(file.getnframes() / file.getframerate() / 0.26) == tones


def test_without_a_player_the_bell_rings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sinks.shutil, "which", lambda name: None)
    sink(name="sound").send(MESSAGE, None)
    assert capsys.readouterr().out == "\a"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what apprise imports
@pytest.mark.parametrize(
    ("to", "words"),
    [
        ({"name": "webhok", "url": "x"}, "sink s: to = 'webhok': unknown; did you mean 'webhook'"),
        ({"name": "webhook", "url": "ftp://x"}, "sink s: url = 'ftp://x': wanted: http"),
        ({"name": "webhook", "url": "http://h/a b"}, "sink s: url = .*without spaces"),
        ({"name": "webhook", "url": "http://h:port/"}, "sink s: url = .*: wanted"),
        ({"name": "webhook", "url": 7}, "sink s: url = 7: .*string"),
        ({"name": "webhook"}, "sink s: url: missing"),
        ({"name": "webhook", "urll": "http://h/"}, "sink s: urll = .*: unknown option; did you mean 'url'"),
        ({"name": "jsonl", "path": 7}, "sink s: path = 7: .*string"),
        ({"name": "command", "command": ["true"], "timeout": 0}, "sink s: timeout = 0: .*greater than 0"),
        ({"name": "sound", "player": "aplay"}, "sink s: player = 'aplay': "),
        ({"name": "webhook", "url": "$NOBODY_SET_THIS"}, "NOBODY_SET_THIS: not set in the environment"),
        ({"name": "log", "colour": 1}, "sink s: .*colour"),
        ({"name": "command", "command": "rm -rf x"}, "sink s: command = 'rm -rf x': "),
        ({"name": "command", "command": ["no-such-program"]}, "no such program"),
        ({"name": "sound", "file": "no.wav"}, "no.wav': no such file"),
        ({"name": "apprise", "url": "nonsense://secret"}, r"nonsense://\*\*\*': apprise does not know"),
    ],
)
def test_a_bad_option_is_named(to: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        sink(**to)


def test_without_apprise_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(UserError, match=r"sink s: apprise is not installed: pip install 'stillwatch\[apprise\]'"):
        sink(name="apprise", url="json://h")


def test_a_terminal_without_the_letter_still_gets_the_line() -> None:
    program = (
        "from stillwatch.monitor.events import sinks\nfrom stillwatch.monitor.config import Sink\n"
        "from stillwatch.monitor.events.sinks import Message\n"
        f"sinks.open_sink(Sink(name='s', to='log')).send({replace(MESSAGE, words='Müdigkeit')!r}, None)\n"
    )
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=True)
    assert b"M\\xfcdigkeit" in done.stdout


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_is_one_line_of_json(text: str) -> None:
    said = sinks.json_line({**MESSAGE.payload(), "words": text})
    assert len(said.splitlines()) == 1
    assert json.loads(said.encode().decode())["words"] == text


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_is_one_printable_line(text: str) -> None:
    said = sinks.line(replace(MESSAGE, words=text))
    assert said.isprintable()
