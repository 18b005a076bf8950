"""The data behind requests, and endless streams. Each picture and state is made once."""

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi import HTTPException
from fastapi.responses import StreamingResponse
from starlette.types import Send

from stillwatch.monitor.events import database
from stillwatch.monitor.events.database import StoredEvent
from stillwatch.monitor.state import MESSAGES, Board, Drawn, Gauges
from stillwatch.monitor.web import auth
from stillwatch.monitor.web.schemas import Camera, Cameras, Event, finite, plain

if TYPE_CHECKING:  # the page is told of the sinks; it starts none
    from stillwatch.monitor.events.outbox import Dispatcher
    from stillwatch.monitor.events.store import Store

POLL = 0.03  # seconds between two looks for a newer picture
LISTEN = 0.1  # and for a newer message
SHARED = 0.2  # one rendering of the cameras' states serves every listener for so long
BREATH = 2.0  # a listener hears something at least so often: it knows then that the connection lives
BOUNDARY = "stillwatch-picture"
MJPEG = f"multipart/x-mixed-replace; boundary={BOUNDARY}"


class StreamHub:
    def __init__(
        self, board: Board, folder: Path, store: "Store", post: "Dispatcher", gauges: Gauges,
        keys: auth.TokenAuth | None, patience: auth.LoginThrottle,
    ):  # fmt: skip
        self.board, self.folder, self.store, self.post, self.gauges = board, folder, store, post, gauges
        self.keys, self.patience = keys, patience
        self.closing = threading.Event()
        self.names = [camera["name"] for camera in board.cameras()]
        self._shared: tuple[float, bytes] = (-math.inf, b"")

    def cameras(self) -> Cameras:
        return Cameras(
            now=time.time(), ready=self.board.ready, trouble=self.store.trouble, waiting=self.store.waiting,
            cameras=[self.camera(name) for name in self.names],
        )  # fmt: skip

    def camera(self, name: str) -> Camera:
        """The board's fields; what is said of a picture only while there is one."""
        fields = next(fields for fields in self.board.cameras() if fields["name"] == name)
        condition, says = plain(fields)
        seen = condition in ("watching", "frozen", "black", "damaged")
        p = fields.get("p") if seen else None
        return Camera.model_validate(fields | {
            "condition": condition,
            "says": says,
            "since": (fields.get("seen") if condition in ("lost", "ended") else None) or fields.get("since"),
            **{key: finite(fields.get(key)) if seen else None for key in ("gauge", "fps", "age_ms")},
            "p": dict(zip(self.board.labels, map(finite, p), strict=False)) if p else None,
            "face": fields.get("face") if seen else None,
            "open": [self.event(StoredEvent(**event)) for event in fields.get("open", ())],
            "viewers": self.board.asked(name, "picture"),
        })  # fmt: skip

    def event(self, row: StoredEvent) -> Event:
        """With addresses relative to the page instead of paths."""
        at = f"api/v1/events/{quote(row.id, safe='')}"
        clip, thumbnail = (f"{at}/{key}" if getattr(row, key) else None for key in ("clip", "thumbnail"))
        return Event(**row.as_dict() | {"clip": clip, "thumbnail": thumbnail, "peak": finite(row.peak) or 0.0})

    def find(self, id: str) -> StoredEvent:
        row = database.event(self.folder, id)
        if row is None:
            raise HTTPException(404, f"there is no event {id!r}")
        return row

    def known(self, names: list[str]) -> list[str]:
        """Raises HTTPException 404 for an unknown one."""
        for name in names:
            if name not in self.names:
                raise HTTPException(404, f"there is no camera {name!r}; there are {', '.join(self.names)}")
        return names

    def shared(self) -> bytes:
        """One server-sent event for all listeners."""
        now = time.monotonic()
        if now - self._shared[0] > SHARED:
            self._shared = (now, sse("cameras", self.cameras().model_dump(mode="json")))
        return self._shared[1]


def sse(name: str, fields: Mapping[str, object], id: str | None = None) -> bytes:
    lines = [f"id: {id}"] if id else []
    return "\n".join([*lines, f"event: {name}", f"data: {json.dumps(fields, allow_nan=False)}", "", ""]).encode()


class LiveStream(StreamingResponse):
    def __init__(self, parts: AsyncGenerator[bytes, None], media_type: str):
        headers = {"x-accel-buffering": "no", "cache-control": "no-store, no-transform"}
        super().__init__(parts, headers=headers, media_type=media_type)
        self._parts = parts

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._parts):
            await super().stream_response(send)


async def pictures(
    hub: StreamHub, names: Sequence[str], drawn: Mapping[Drawn, Sequence[str]] = MappingProxyType({})
) -> AsyncGenerator[bytes, None]:
    """Multipart JPEGs; a slow reader gets the newest. drawn: what, on which names' pictures."""
    with ExitStack() as looking:
        for name in names:
            looking.enter_context(hub.board.viewing(name, *(what for what, on in drawn.items() if name in on)))
        sent = {name: hub.board.picture(name)[0] for name in names}
        yield f"--{BOUNDARY}\r\n".encode()
        while not hub.closing.is_set():
            for name in names:
                number, jpeg = hub.board.picture(name)
                if number != sent[name]:
                    sent[name] = number
                    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\nX-Camera: {quote(name)}\r\n\r\n"
                    yield head.encode() + jpeg + f"\r\n--{BOUNDARY}\r\n".encode()
            await asyncio.sleep(POLL)


async def messages(hub: StreamHub, last: str | None) -> AsyncGenerator[bytes, None]:
    """Server-sent events: "cameras" on a change, and the board's messages after id START-NUMBER, or "missed"."""
    start = format(int(1000 * hub.board.started), "x")
    newest, _ = hub.board.messages(0)
    known, _, number = (last or "").partition("-")
    after = int(number) if known == start and number.isdecimal() and len(number) < 16 else -1
    yield b"retry: 1000\n\n"
    if not newest - MESSAGES <= after <= newest or after < 0:
        after = newest
        if last:
            yield sse("missed", {}, f"{start}-{newest}")
    shown, at = b"", -math.inf
    while not hub.closing.is_set():
        newest, fresh = hub.board.messages(after)
        for count, message in enumerate(fresh, newest - len(fresh) + 1):
            fields = {key: value for key, value in message.items() if key != "what"}
            if isinstance(event := fields.get("event"), dict):  # the rule's: it knows no files and no marks
                shape = hub.event(StoredEvent(**event)).as_dict()
                fields["event"] = {key: shape[key] for key in event}
            yield sse(str(message["what"]), fields, f"{start}-{count}")
        after = newest
        now, state = time.monotonic(), hub.shared()
        if state != shown:
            shown, at = state, now
            yield state
        elif now - at > BREATH:
            at = now
            yield sse("still", {})
        await asyncio.sleep(LISTEN)
