"""Toys of events: a store that is closed at the end, a receiver of webhooks, and a wait for another thread."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from stillwatch.monitor.config import Keep, Sink
from stillwatch.monitor.events import database, sinks
from stillwatch.monitor.events.sinks import Message
from stillwatch.monitor.events.store import Store
from stillwatch.rules.events import Event

NOW = 1_700_000_000.0

EVENT = Event("cab-1-1", "cab", "phone", "Phone", "warn", "opened", NOW, NOW + 3, NOW + 3, None, 0.9, "phone for 3 s")

LOG = Sink(name="log", to="log", level="notice")


def until(true: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait for something that another thread is about to do."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def kept(folder: Path, *sinks: Sink, **keys: Any) -> Iterator[Store]:
    it = Store(Keep(folder=folder, **keys), sinks)
    try:
        yield it
    finally:
        it.close(10)


def outbox(folder: Path) -> list[tuple[str, str, str]]:
    with contextlib.closing(database.connect(folder)) as db:
        return [tuple(row) for row in db.execute("SELECT event, sink, change FROM outbox ORDER BY number")]


MESSAGE = Message("cab-1-1", "cab", "phone", "Phone", "warn", "opened", 1.0, 4.0, 4.0, None, 0.9, "phone for 3 s")


class Receiver(ThreadingHTTPServer):
    """Takes POSTs; `status` is what it answers."""

    daemon_threads = False

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 200

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                length = int(handler.headers["Content-Length"])
                body = handler.rfile.read(length)
                if self.status == 200 and len(body) == length:  # a kill may cut a request short
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


def sink(**to: Any) -> sinks.Sender:
    return sinks.open_sink(Sink(name="s", to=to))
