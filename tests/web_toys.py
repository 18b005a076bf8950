"""Toys of the web: a page over real sockets, a viewer that reads on, events with their files."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from event_toys import until
from toys import video

from stillwatch.monitor.config import CameraConfig, Keep, WatchConfig, Web
from stillwatch.monitor.events import database, store
from stillwatch.monitor.events.outbox import Dispatcher
from stillwatch.monitor.state import Board, Gauges
from stillwatch.monitor.web import app
from stillwatch.monitor.web.server import Server
from stillwatch.rules.events import Event

JPEG = b"\xff\xd8 a picture \xff\xd9"


class Street(NamedTuple):
    board: Board
    folder: Path
    store: Any
    server: Server
    port: int

    def ask(
        self, path: str, body: Any = None, method: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers in lower case, body)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        if body is not None:
            sent.setdefault("content-type", "application/json")
        try:
            text = None if body is None else body if isinstance(body, str) else json.dumps(body)
            connection.request(method or ("GET" if body is None else "POST"), path, text, sent)
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, path: str, body: Any = None, **headers: str) -> Any:
        status, _, text = self.ask(path, body, **headers)
        assert status == 200, text
        return json.loads(text)

    def error(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> tuple[int, str]:
        status, got, text = self.ask(path, body, method, **headers)
        assert got["content-type"] == "application/json"
        return status, json.loads(text)["error"]


@contextmanager
def opened(
    folder: Path, cameras: tuple[str, ...] = ("cab", "yard"), post: Any = None, **asked: Any
) -> Iterator[Street]:
    plan = WatchConfig(
        bundle=folder / "bundle",
        camera=tuple(CameraConfig(name=name, source="0") for name in cameras if name.isalnum()),
        keep=Keep(folder=folder / "kept"),
        web=Web(port=0, **asked),
    )
    board = Board(("Safe", "Bad"), ("Safe",), cameras)
    book = store.Store(plan.keep)
    page = app.app(board, plan.keep.folder, plan, book, post or Dispatcher(book, ()), Gauges(board))
    server = Server(page, "127.0.0.1", 0)
    port = int(server.start().rstrip("/").rpartition(":")[2])
    try:
        yield Street(board, plan.keep.folder, book, server, port)
    finally:
        server.close(2)
        book.close(2)


class Reader:
    """A viewer: a raw socket that has asked and reads on."""

    def __init__(self, port: int, path: str, **headers: str):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        lines = [f"{key.replace('_', '-')}: {value}" for key, value in headers.items()]
        self.socket.sendall("\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode())
        self.held = b""

    def until(self, mark: bytes) -> bytes:
        """Everything up to and with this mark."""
        while mark not in self.held:
            more = self.socket.recv(65536)
            assert more, f"it ended before {mark!r}: {self.held!r}"
            self.held += more
        found, _, self.held = self.held.partition(mark)
        return found + mark

    def rest(self) -> bytes:
        """What comes until the server has closed."""
        found = self.held
        while more := self.socket.recv(65536):
            found += more
        return found

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def read_message(listener: Reader, what: str) -> tuple[str, Any]:
    """(its id, its data): the next message of that name; others are passed over."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        lines = listener.until(b"\n\n").decode().strip().splitlines()
        fields = dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith("HTTP"))
        if fields.get("event") == what:
            return fields.get("id", ""), json.loads(fields["data"])
    raise AssertionError(f"no message {what!r} came")


def happened(id: str = "cab-s-1", at: float = 1000.0, **more: Any) -> Event:
    fields: dict[str, Any] = {
        "id": id, "camera": "cab", "kind": "phone", "label": "Bad", "level": "warn", "state": "closed", "start": at,
        "opened": at + 1, "updated": at + 5, "end": at + 5, "peak": 0.9, "words": "a phone in the hand",
    }  # fmt: skip
    return Event(**(fields | more))


def remember(it: Street, *events: Event) -> None:
    for event in events:
        it.store.put(event)
    until(lambda: all(database.event(it.folder, event.id) for event in events))


def keep_files(it: Street, id: str) -> bytes:
    """A real clip and a thumbnail for this event; the clip's bytes."""
    clip = video(it.folder / "clips" / "1970-01-01" / f"{id}.mp4", 20)
    it.store.attach(id, clip=clip, thumbnail=JPEG)
    until(lambda: (row := database.event(it.folder, id)) and row.clip and row.thumbnail)
    return clip.read_bytes()
