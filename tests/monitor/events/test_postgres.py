"""Events in a real Postgres: one row an event whatever is repeated, many boards, a server that goes and comes back."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from event_toys import EVENT, MESSAGE, kept, sink, until

from stillwatch.errors import UserError
from stillwatch.monitor.config import Sink
from stillwatch.monitor.events import sinks
from stillwatch.monitor.events.mqtt import Refused
from stillwatch.monitor.events.outbox import Dispatcher, send_test_events

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install stillwatch[dev]")
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))

pytestmark = pytest.mark.skipif(
    not PROGRAMS and not shutil.which("initdb"), reason="Postgres is not installed: make programs"
)


class Server:
    """A cluster of one's own behind a socket in a folder; root runs it as the user postgres."""

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None
        self.user = pwd.getpwnam("postgres").pw_name if os.getuid() == 0 else None
        if self.user:
            shutil.chown(folder, self.user)
        self.url = f"postgresql://watch@/postgres?host={folder}"
        subprocess.run(
            [self.program("initdb"), "-D", folder / "data", "-U", "watch", "--no-sync", "-A", "trust"],
            user=self.user, check=True, capture_output=True, cwd=folder,
        )  # fmt: skip

    def program(self, name: str) -> str:
        return str(PROGRAMS[-1] / name) if PROGRAMS else name

    @contextmanager
    def running(self) -> Iterator[None]:
        words = [self.program("postgres"), "-D", self.folder / "data", "-k", self.folder, "-c", "listen_addresses="]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([*words, "-F"], user=self.user, cwd=self.folder, **quiet) as process:  # type: ignore[call-overload]
            try:
                until(lambda: self.answers() and process.poll() is None, 60)
                yield
            finally:
                process.send_signal(signal.SIGQUIT)  # at once, as a power cut

    def answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            self.rows("SELECT 1")
            return True
        return False

    def rows(self, query: str) -> list[Any]:
        with psycopg.connect(self.url, autocommit=True) as db:
            found = db.execute(query)
            return found.fetchall() if found.description else []


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    folder = Path("/tmp") / f"stillwatch-postgres-{os.getpid()}"  # a socket's path is short, and postgres may enter
    folder.mkdir(mode=0o700)
    try:
        yield Server(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_row_an_event_whatever_is_repeated_late_or_of_another_board(server: Server) -> None:
    closed = replace(MESSAGE, state="closed", level="alarm", updated=9.5, end=9.0, change="closed", words="a\0b")
    with server.running():
        server.rows("DROP TABLE IF EXISTS stillwatch_events")
        one, other = (sink(name="postgres", url=server.url, board=board) for board in ("bus-1", "bus-2"))
        with closing(one), closing(other):
            for message in (MESSAGE, MESSAGE, closed, MESSAGE, closed):
                one.send(message, None)
            other.send(MESSAGE, None)
            one.send(replace(MESSAGE, id="test-1", test=True), None)
        columns = 'board, id, level, state, extract(epoch FROM start)::float, extract(epoch FROM "end")::float, words'
        assert server.rows(f"SELECT {columns} FROM stillwatch_events ORDER BY board") == [
            ("bus-1", "cab-1-1", "alarm", "closed", 1.0, 9.0, "ab"),
            ("bus-2", "cab-1-1", "warn", "opened", 1.0, None, MESSAGE.words),
        ]


@pytest.mark.parametrize("url", ["postgresql://bus:hid@den@db.lan/hub", "postgresql://bus:hid/den@db.lan/hub"])
def test_a_password_that_libpq_takes_for_a_host_is_not_shown(url: str) -> None:
    with pytest.raises(UserError, match="percent-encode") as caught:
        sink(name="postgres", url=url)
    assert not re.search("hid|den", str(caught.value))


def test_what_happens_while_the_server_is_away_arrives_when_it_is_back(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE", server.url)
    monkeypatch.setattr("stillwatch.monitor.events.outbox.FIRST", 0.05)
    plan = Sink(name="hub", to={"name": "postgres", "url": "$DATABASE", "board": "bus-3"})
    said: list[str] = []
    ids = "SELECT id, state FROM stillwatch_events WHERE board = 'bus-3' ORDER BY id"
    with kept(tmp_path / "kept", plan) as store:
        post = Dispatcher(store, [plan], said.append)
        post.start()
        with server.running():
            store.put(replace(EVENT, id="cab-1-1"))
            until(lambda: post.status()[0].sent == 1)
        store.put(replace(EVENT, id="cab-1-2"))
        store.put(replace(EVENT, id="cab-1-1", state="closed", end=EVENT.updated))
        until(lambda: said)
        assert server.url not in said[0] and said[0].startswith("sink hub: ")
        with server.running():
            until(lambda: server.rows(ids) == [("cab-1-1", "closed"), ("cab-1-2", "opened")])
            until(lambda: post.status()[0].pending == 0)
            assert send_test_events([plan]) == [("hub", None)]
        post.close(5)
    assert said[-1] == "sink hub: takes events again"


def test_a_user_who_may_only_write_rows_needs_no_more(server: Server) -> None:
    with server.running():
        with closing(sink(name="postgres", url=server.url)) as first:
            first.send(MESSAGE, None)
        server.rows(
            "DO $$ BEGIN CREATE ROLE bus LOGIN; END $$; REVOKE CREATE ON SCHEMA public FROM PUBLIC;"
            "GRANT SELECT, INSERT, UPDATE ON stillwatch_events TO bus"
        )
        with closing(sink(name="postgres", url=server.url.replace("watch@", "bus@"), board="least")) as least:
            least.send(MESSAGE, None)
        assert server.rows("SELECT count(*) FROM stillwatch_events WHERE board = 'least'") == [(1,)]


def test_what_cannot_be_reached_is_one_line_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "postgresql://watch:Xk9@127.0.0.1:1/events"
    with pytest.raises(Refused) as refused:
        sink(name="postgres", url=secret).send(MESSAGE, None)
    words = str(refused.value)
    assert "127.0.0.1/events" in words and "Xk9" not in words and "\n" not in words
    with pytest.raises(UserError, match=r"url = '\*\*\*': wanted: postgresql://"):
        sink(name="postgres", url="http://watch:Xk9@hub/events")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"pip install 'stillwatch\[postgres\]'"):
        sinks.open_sink(Sink(name="hub", to={"name": "postgres", "url": secret}))
