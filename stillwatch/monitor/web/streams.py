"""Desk: what every request may look at, and the streams that go on until their reader leaves.

In: the board, the events' folder. Out: states and rows as the answers have them; pictures and messages.
Called by the web. It opens no camera and holds up nobody: however many look, each picture and state is made once.
"""

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import HTTPException
from fastapi.responses import StreamingResponse
from starlette.types import Send

from stillwatch.monitor.events import database
from stillwatch.monitor.events.database import StoredEvent
from stillwatch.monitor.state import MESSAGES, Board, Gauges
from stillwatch.monitor.web import auth
from stillwatch.monitor.web.schemas import Event, finite, plain

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
    """Everything a request may look at, and the one thing that it may change: a person's marks on events."""

    def __init__(
        self, board: Board, folder: Path, store: "Store | None", post: "Dispatcher | None", gauges: Gauges,
        keys: auth.TokenAuth | None, patience: auth.LoginThrottle,
    ):  # fmt: skip
        self.board, self.folder, self.store, self.post, self.gauges = board, folder, store, post, gauges
        self.keys, self.patience = keys, patience
        self.closing = threading.Event()
        self.names = [camera["name"] for camera in board.cameras()]
        self._shared: tuple[float, bytes] = (-math.inf, b"")

    def cameras(self) -> dict[str, Any]:
        """As the model Cameras has it."""
        return {
            "now": time.time(),
            "ready": self.board.ready,
            "trouble": self.store.trouble if self.store else None,
            "waiting": self.store.waiting if self.store else 0,
            "cameras": [self.camera(fields) for fields in self.board.cameras()],
        }

    def camera(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A camera's fields on the board -> as the model Camera has it. What is not seen now is not shown as now."""
        condition, says = plain(fields)
        seen = condition in ("watching", "frozen", "black")
        p = fields.get("p") if seen else None
        since = (fields.get("seen") if condition in ("lost", "ended") else None) or fields.get("since")
        return {
            **{key: fields.get(key) for key in ("name", "source", "state", "live", "status", "seen", "gauge_name")},
            **{key: finite(fields.get(key)) if seen else None for key in ("gauge", "fps", "age_ms")},
            "condition": condition,
            "says": says,
            "since": since,
            "p": dict(zip(self.board.labels, map(finite, p), strict=False)) if p else None,
            "counters": fields.get("counters") or {},
            "open": [self.event(StoredEvent(**event)).as_dict() for event in fields.get("open") or []],
            "viewers": self.board.viewers(fields["name"]),
        }

    def event(self, row: StoredEvent) -> Event:
        """An event as the API shows it, with addresses in place of paths."""
        at = f"/api/v1/events/{quote(row.id, safe='')}"
        clip, thumbnail = (f"{at}/{key}" if getattr(row, key) else None for key in ("clip", "thumbnail"))
        fields = row.as_dict() | {"clip": clip, "thumbnail": thumbnail, "peak": finite(row.peak) or 0.0}
        return Event(**fields)

    def shared(self) -> bytes:
        """The cameras as one server-sent event, rendered once for all listeners of the same moment."""
        now = time.monotonic()
        if now - self._shared[0] > SHARED:
            self._shared = (now, said("cameras", self.cameras()))
        return self._shared[1]

    def find(self, id: str) -> StoredEvent:
        row = database.event(self.folder, id)
        if row is None:
            raise HTTPException(404, f"there is no event {id!r}")
        return row


def said(what: str, fields: Any, id: str | None = None) -> bytes:
    """One server-sent event."""
    lines = [f"id: {id}"] if id else []
    return "\n".join([*lines, f"event: {what}", f"data: {json.dumps(fields, allow_nan=False)}", "", ""]).encode()


# --- what goes on until somebody leaves -------------------------------------------------------------------------------


class LiveStream(StreamingResponse):
    """A body without an end. Its source is closed at once when the reader leaves, also while a full socket waits."""

    def __init__(self, parts: AsyncGenerator[bytes, None], media_type: str):
        headers = {"x-accel-buffering": "no", "cache-control": "no-store, no-transform"}
        super().__init__(parts, headers=headers, media_type=media_type)
        self._parts = parts

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._parts):
            await super().stream_response(send)


async def pictures(hub: StreamHub, names: Sequence[str]) -> AsyncGenerator[bytes, None]:
    """Multipart JPEGs of these cameras. A picture from before anybody looked is old: it is not sent.

    A slow reader holds up nothing: when it is ready again it gets the newest picture.
    """
    with ExitStack() as looking:
        for name in names:
            looking.enter_context(hub.board.viewing(name))
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
    """Server-sent events: "cameras" whenever it changed, and whatever the board says after the listener's last id.

    ids are START-NUMBER. Of another start, or too long ago: "missed", and the listener is to ask for the list again.
    """
    start = format(int(1000 * hub.board.started), "x")
    newest, _ = hub.board.messages(0)
    known, _, number = (last or "").partition("-")
    after = int(number) if known == start and number.isdecimal() else -1
    yield b"retry: 1000\n\n"
    if not newest - MESSAGES <= after <= newest or after < 0:
        after = newest
        if last:
            yield said("missed", {}, f"{start}-{newest}")
    told, at = b"", -math.inf
    while not hub.closing.is_set():
        newest, fresh = hub.board.messages(after)
        for count, message in enumerate(fresh, newest - len(fresh) + 1):
            yield said(str(message["what"]), message_of(hub, message), f"{start}-{count}")
        after = newest
        now, state = time.monotonic(), hub.shared()
        if state != told:
            told, at = state, now
            yield state
        elif now - at > BREATH:
            at = now
            yield said("still", {})
        await asyncio.sleep(LISTEN)


def message_of(hub: StreamHub, message: Mapping[str, Any]) -> dict[str, Any]:
    """What the board says. The event that it carries is the rule's: it knows no files and no marks."""
    fields = {key: value for key, value in message.items() if key != "what"}
    if isinstance(fields.get("event"), dict):
        event = hub.event(StoredEvent(**fields["event"])).as_dict()
        fields["event"] = {key: event[key] for key in fields["event"]}
    return fields
