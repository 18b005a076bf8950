"""Web: the page and /api/v1: live pictures, states, events, marks; health and figures for machines.

In: the board (what is now), the events' folder (what was), requests. Out: HTML, JSON, MJPEG, server-sent events, clips.
Called by serve, in a thread of its own. It decides nothing about pictures, and changes nothing but marks on events.
"""

import asyncio
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException

from stillwatch import __version__
from stillwatch.errors import UserError
from stillwatch.monitor.config import WatchConfig
from stillwatch.monitor.events import database, media_files
from stillwatch.monitor.state import MEDIA_TYPE, Board, Gauges
from stillwatch.monitor.web import auth
from stillwatch.monitor.web.schemas import (
    Alive,
    Camera,
    Cameras,
    Error,
    Event,
    Events,
    Login,
    Marked,
    Marks,
    Ready,
    Status,
)
from stillwatch.monitor.web.schemas import plain as in_words
from stillwatch.monitor.web.streams import MJPEG, POLL, LiveStream, StreamHub, messages, pictures
from stillwatch.rules.alarm import Level

if TYPE_CHECKING:  # the page is told of the sinks; it starts none
    from stillwatch.monitor.events.outbox import Dispatcher
    from stillwatch.monitor.events.store import Store

PAGE = Path(__file__).parent / "static"


router = APIRouter(
    responses={"default": {"model": Error, "description": "Why not, in one line"}},
    generate_unique_id_function=lambda route: route.name,
)
DONE: dict[str, Any] = {
    "status_code": 204, "response_class": Response, "responses": {204: {"description": "Done"}},
}  # fmt: skip


def page_file(name: str) -> Callable[[Request], Response]:
    return lambda request: FileResponse(PAGE / name, headers={"cache-control": "no-cache"})


def answers(media_type: str) -> dict[str, Any]:
    """How a route that answers no JSON stands in the API's description."""
    content: dict[str, object] = {media_type.partition(";")[0]: {}}
    return {"response_class": Response, "responses": {200: {"content": content, "description": "Success"}}}


async def hub_of(request: Request) -> StreamHub:
    return request.app.state.hub


Hub = Annotated[StreamHub, Depends(hub_of)]


# --- the page, and what machines ask ----------------------------------------------------------------------------------


@router.get("/healthz", include_in_schema=False)
async def healthz() -> Alive:
    """The process lives and answers."""
    return Alive()


@router.get("/readyz", responses={200: {"model": Ready}, 503: {"model": Ready}})
async def readyz(hub: Hub) -> Response:
    """200 once every camera has been looked at or has failed; 503 until then, and why."""
    fields = hub.board.cameras()
    waiting = sum(camera["state"] == "starting" for camera in fields)
    ready = Ready(ready=hub.board.ready)
    if not ready.ready:
        ready.why = f"{waiting} of {len(fields)} cameras have not been looked at yet" if waiting else "starting"
    return JSONResponse(ready.model_dump(), 200 if ready.ready else 503)


@router.get("/metrics", **answers("text/plain"))
def metrics(hub: Hub) -> Response:
    """Figures for Prometheus."""
    level = hub.gauges.level
    for camera in hub.board.cameras():
        name = camera["name"]
        level("camera_watching", "1: pictures come and can be judged", in_words(camera)[0] == "watching", camera=name)
        level("viewers", "Who looks at its pictures now", hub.board.viewers(name), camera=name)
    level("ready", "1: every camera has been looked at, or has failed", hub.board.ready)
    if hub.store:
        level("rows_waiting", "Rows that are not on disk yet", hub.store.waiting)
        level("store_trouble", "1: something is wrong with the disk or the database", hub.store.trouble is not None)
    for sink in hub.post.status() if hub.post else []:
        for key in ("pending", "sent", "failed", "held"):
            level(f"sink_{key}", f"Messages of a sink: {key}", getattr(sink, key), sink=sink.name)
    return Response(hub.gauges.text(), media_type=MEDIA_TYPE)


@router.post("/api/v1/login", **DONE)
async def login(given: Login, request: Request, hub: Hub) -> Response:
    """The token against a cookie (HttpOnly, SameSite=Strict). Wrong tokens make the next try wait."""
    answer = Response(status_code=204)
    if hub.keys is not None:
        auth.try_token(hub.keys, hub.patience, given.token, auth.address(request.scope))
        answer.set_cookie(
            auth.cookie_name(request.scope), hub.keys.cookie(time.time()), max_age=int(auth.SESSION), httponly=True,
            samesite="strict", secure=request.url.scheme == "https",
        )  # fmt: skip
    return answer


@router.post("/api/v1/logout", **DONE)
async def logout(request: Request) -> Response:
    """Forget the cookie."""
    answer = Response(status_code=204)
    answer.delete_cookie(auth.cookie_name(request.scope), httponly=True, samesite="strict")
    return answer


@router.get("/api/v1/status")
def status(hub: Hub) -> Status:
    """What runs here, and how its sinks fare."""
    return Status(
        version=__version__, started=hub.board.started, now=time.time(), ready=hub.board.ready,
        labels=list(hub.board.labels), safe=list(hub.board.safe), cameras=hub.names,
        sinks=[asdict(sink) for sink in hub.post.status()] if hub.post else [], guarded=hub.keys is not None,
        trouble=hub.store.trouble if hub.store else None, waiting=hub.store.waiting if hub.store else 0,
    )  # fmt: skip


@router.get("/api/v1/cameras")
def cameras(hub: Hub) -> Cameras:
    """Every camera, now."""
    return Cameras.model_validate(hub.cameras())


@router.get("/api/v1/cameras/{name}")
def camera(name: str, hub: Hub) -> Camera:
    """One camera, now."""
    for fields in hub.board.cameras():
        if fields["name"] == name:
            return Camera.model_validate(hub.camera(fields))
    raise HTTPException(404, f"there is no camera {name!r}; there are {', '.join(hub.names)}")


@router.get("/api/v1/cameras/{name}/live.mjpg", **answers(MJPEG))
async def live(name: str, hub: Hub) -> Response:
    """One camera's pictures as MJPEG, as browsers and players show it. Encoded once, however many look."""
    return LiveStream(pictures(hub, _known(hub, [name])), MJPEG)


@router.get("/api/v1/cameras/{name}/picture.jpg", **answers("image/jpeg"))
async def picture(name: str, hub: Hub) -> Response:
    """One picture, taken now. 503 where none comes."""
    _known(hub, [name])
    with hub.board.viewing(name):
        before, end = hub.board.picture(name)[0], time.monotonic() + 3
        while time.monotonic() < end and not hub.closing.is_set():
            number, jpeg = hub.board.picture(name)
            if number != before:
                return Response(jpeg, media_type="image/jpeg")
            await asyncio.sleep(POLL)
    raise HTTPException(503, f"no picture comes from {name}")


@router.get("/api/v1/pictures", **answers(MJPEG))
async def together(hub: Hub, camera: Annotated[list[str], Query(description="Which; none: all")] = []) -> Response:  # noqa: B006
    """Several cameras' pictures in one answer, each with an X-Camera header: a browser has six connections."""
    return LiveStream(pictures(hub, _known(hub, list(dict.fromkeys(camera)) or hub.names)), MJPEG)


def _known(hub: StreamHub, names: list[str]) -> list[str]:
    for name in names:
        if name not in hub.names:
            raise HTTPException(404, f"there is no camera {name!r}; there are {', '.join(hub.names)}")
    return names


@router.get("/api/v1/stream", **answers("text/event-stream"))
async def stream(request: Request, hub: Hub) -> Response:
    """Server-sent events: cameras, event, camera, trouble, missed, still. Last-Event-ID resumes."""
    return LiveStream(messages(hub, request.headers.get("last-event-id")), "text/event-stream")


@router.get("/api/v1/events")
def events(
    hub: Hub,
    since: Annotated[float | None, Query(description="Seconds since 1970")] = None,
    until: Annotated[float | None, Query(description="Seconds since 1970")] = None,
    camera: str | None = None,
    kind: str | None = None,
    level: Annotated[Level | None, Query(description="This one, and above")] = None,
    before_id: Annotated[str | None, Query(description="Older than this one")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Events:
    """What was, newest first."""
    rows = database.events(
        hub.folder,
        since=since,
        until=until,
        camera=camera,
        kind=kind,
        level=level,
        before_id=before_id,
        limit=limit + 1,
    )
    return Events(events=[hub.event(row) for row in rows[:limit]], more=len(rows) > limit)


@router.get("/api/v1/events/{id}")
def event(id: str, hub: Hub) -> Event:
    """One event."""
    return hub.event(hub.find(id))


@router.get("/api/v1/events/{id}/clip", **answers("video/mp4"))
def clip(id: str, hub: Hub) -> Response:
    """An event's clip, MP4. Ranges are answered."""
    return _file(hub, id, "clip", (".mp4",))


@router.get("/api/v1/events/{id}/thumbnail", **answers("image/jpeg"))
def thumbnail(id: str, hub: Hub) -> Response:
    """An event's picture, JPEG."""
    return _file(hub, id, "thumbnail", (".jpg", ".jpeg"))


def inside(folder: Path, relative: str, suffixes: Sequence[str]) -> Path | None:
    """The file of that relative path, where it is one, ends in a suffix, and lies within the folder; links resolved."""
    try:
        root = folder.resolve(strict=True)
        path = (root / relative).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None
    return path if path.is_relative_to(root) and path.is_file() and path.suffix.lower() in suffixes else None


def _file(hub: StreamHub, id: str, key: str, suffixes: Sequence[str]) -> Response:
    relative = getattr(hub.find(id), key)
    path = inside(hub.folder, relative, suffixes) if relative else None
    if path is None:
        raise HTTPException(404, f"event {id!r} has no {key}" + (": it was deleted" if relative else ""))
    kind = "video/mp4" if key == "clip" else "image/jpeg"
    return FileResponse(path, media_type=kind, headers={"cache-control": "private, max-age=86400"})


@router.post("/api/v1/events/{id}/mark")
def mark(id: str, marks: Marks, hub: Hub) -> Marked:
    """Acknowledge, call it false or true, or take that back. A false one is filed under the first safe label."""
    row = hub.find(id)
    if hub.store is None:
        raise HTTPException(503, "events cannot be marked: nothing is kept here")
    given: dict[str, Any] = marks.model_dump(include=marks.model_fields_set)
    hub.store.mark(id, **given)
    hub.board.publish("event", id=id, marks=given)
    filed, words = 0, None
    if given.get("verdict") == "false":
        filed, words = _file_negatives(hub, row)
    elif "verdict" in given:
        media_files.remove_negatives(hub.folder, row)
    return Marked(event=hub.event(replace(row, **given)), filed=filed, words=words)


def _file_negatives(hub: StreamHub, row: database.StoredEvent) -> tuple[int, str | None]:
    """How many pictures were filed for the next training, or why none."""
    if row.kind == "camera":
        return 0, "nothing to learn from: it is about the camera"
    if not hub.board.safe:
        return 0, "nothing was filed: the recipe has no safe label"
    try:
        filed = media_files.file_negatives(hub.folder, row, hub.board.safe[0])
    except (OSError, UserError) as error:
        return 0, f"nothing was filed: {error}"
    return filed, None if filed else "nothing was filed: neither clip nor picture is there"


# --- the app ----------------------------------------------------------------------------------------------------------


def app(
    board: Board, folder: Path, plan: WatchConfig, store: "Store | None", post: "Dispatcher | None", gauges: Gauges
) -> FastAPI:
    """The page and its API over a board and a folder of events.

    Raises UserError where plan.web asks for an address that others can reach, without a token.
    """
    token = auth.token_of(plan.web)
    keys, patience = auth.TokenAuth(token) if token else None, auth.LoginThrottle()
    api = FastAPI(
        title="Stillwatch", version=__version__, description="Cameras that are watched: what is, and what was.",
        openapi_url="/api/v1/openapi.json", docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    api.state.hub = StreamHub(board, folder, store, post, gauges, keys, patience)
    api.include_router(router)
    for name in ("", "page.css", "page.js", "icon.svg"):  # a mount at / would answer 404 for a wrong method elsewhere
        api.add_route(f"/{name}", page_file(name or "index.html"))
    api.add_exception_handler(AnyHTTPException, _refused)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(auth.Refusal, _guarded)
    api.add_exception_handler(UserError, _mistaken)
    api.add_exception_handler(Exception, _broken)
    api.add_middleware(auth.AuthMiddleware, keys=keys, patience=patience)
    return api


async def _refused(_: Request, error: Any) -> Response:
    words = {"Not Found": "there is nothing here", "Method Not Allowed": "this is not done here in that way"}
    return JSONResponse({"error": words.get(error.detail, error.detail)}, error.status_code, error.headers)


async def _invalid(_: Request, error: Any) -> Response:
    """The first fault, by its key."""
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"] if part not in ("query", "body", "path"))
    return JSONResponse({"error": f"{place or 'body'}: {fault['msg']}"}, 422)


async def _guarded(_: Request, error: Any) -> Response:
    return JSONResponse({"error": error.words}, error.status, error.headers)


async def _mistaken(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 503)


async def _broken(request: Request, error: Exception) -> Response:
    """Whatever went wrong: its kind and its place for the log. Its text stays here: it may hold an address."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
    logging.getLogger(__name__).error("web: %s %r: %s", request.method, request.url.path, what)
    return JSONResponse({"error": f"this could not be answered ({type(error).__name__})"}, 500)


class Cut(uvicorn.Server):
    """uvicorn, but that it hangs up on who is still there when the time is over: a full socket would stay for ever."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            if transport := getattr(connection, "transport", None):
                transport.abort()
        await asyncio.sleep(0)


class Server:
    """uvicorn in a thread. A viewer who does not let go is let go of."""

    def __init__(self, app: FastAPI, host: str = "127.0.0.1", port: int = 0):
        """Raises UserError for an address that others can reach where the app asks for no token."""
        if not auth.loopback(host) and app.state.hub.keys is None:
            raise UserError(f'web.host = "{host}": anybody on the network could look; give [web] a token')
        self._app, self._host, self._port = app, host.strip("[]"), port
        self._server: Cut | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Bind and answer; the page's address. Raises UserError where it cannot be had."""
        listener = _bound(self._host, self._port)
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app, loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None, log_level="critical",
            access_log=False, server_header=False, limit_concurrency=256, timeout_keep_alive=10,
        )  # fmt: skip
        self._server = Cut(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="web", daemon=True
        )
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                listener.close()
                raise UserError(f"web.port = {port}: the page could not start")
            time.sleep(0.005)
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{port}/"

    def close(self, within: float = 2.0) -> None:
        """End every stream and stop listening, at the latest after about `within` seconds."""
        if self._server is None or self._thread is None:
            return
        self._app.state.hub.closing.set()
        self._server.config.timeout_graceful_shutdown = 0.6 * within  # type: ignore[assignment]
        self._server.should_exit = True
        self._thread.join(within + 1)
        self._thread = None


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UserError(f'web.host = "{host}": no such address: {error.strerror}') from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(
            f"web.port = {port} on {host}: {error.strerror}; free it, or give another (0: any free one)"
        ) from None
    return listener
