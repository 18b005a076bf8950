"""The page and /api/v1: live pictures, states, events, marks, health, metrics. Changes only marks on events."""

import asyncio
import logging
import shutil
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    plain,
)
from stillwatch.monitor.web.streams import MJPEG, POLL, LiveStream, StreamHub, messages, pictures
from stillwatch.rules.events import Level

if TYPE_CHECKING:  # the page is told of the sinks; it starts none
    from stillwatch.monitor.events.outbox import Dispatcher
    from stillwatch.monitor.events.store import Store

PAGE = Path(__file__).parent / "static"
DONE: dict[str, Any] = {
    "status_code": 204, "response_class": Response, "responses": {204: {"description": "Done"}},
}  # fmt: skip
router = APIRouter(
    responses={"default": {"model": Error, "description": "Why not, in one line"}},
    generate_unique_id_function=lambda route: route.name,
)


def answers(media_type: str) -> dict[str, Any]:
    """The OpenAPI entry of an answer that is not JSON."""
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
    """200 once every camera has been looked at or has failed; 503 until then, and why. Trouble with events is said."""
    waiting = sum(camera["state"] == "starting" for camera in hub.board.cameras())
    why = hub.store.trouble
    if not hub.board.ready:
        why = f"{waiting} of {len(hub.names)} cameras have not been looked at yet" if waiting else "starting"
    return JSONResponse(Ready(ready=hub.board.ready, why=why).model_dump(), 200 if hub.board.ready else 503)


@router.get("/metrics", **answers("text/plain"))
def metrics(hub: Hub) -> Response:
    """Figures for Prometheus."""
    level = hub.gauges.level
    for camera in hub.board.cameras():
        name = camera["name"]
        judged = plain(camera)[0] in ("watching", "damaged")
        level("camera_watching", "1: pictures come and can be judged", judged, camera=name)
        level("camera_armed", "0: outside its armed times", camera.get("armed", True), camera=name)
        level("viewers", "Who looks at its pictures now", hub.board.asked(name, "picture"), camera=name)
    level("ready", "1: every camera has been looked at, or has failed", hub.board.ready)
    with suppress(OSError):
        level("disk_free_bytes", "Of the disk that holds events and clips", shutil.disk_usage(hub.folder).free)
    level("rows_waiting", "Rows that are not on disk yet", hub.store.waiting)
    level("store_trouble", "1: something is wrong with the disk or the database", hub.store.trouble is not None)
    for sink in hub.post.status():
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
def logout(request: Request, hub: Hub) -> Response:
    """End the session: its cookie is admitted no more."""
    if hub.keys is not None:
        hub.keys.log_out(auth.session_cookie(request.scope, request.headers), time.time())
    answer = Response(status_code=204)
    answer.delete_cookie(auth.cookie_name(request.scope), httponly=True, samesite="strict")
    return answer


@router.get("/api/v1/status")
def status(hub: Hub) -> Status:
    """What runs here, and how its sinks fare."""
    return Status(
        version=__version__, started=hub.board.started, now=time.time(), ready=hub.board.ready,
        labels=list(hub.board.labels), safe=list(hub.board.safe), cameras=hub.names,
        sinks=[asdict(sink) for sink in hub.post.status()], guarded=hub.keys is not None,
        trouble=hub.store.trouble, waiting=hub.store.waiting,
    )  # fmt: skip


@router.get("/api/v1/cameras")
def cameras(hub: Hub) -> Cameras:
    """Every camera, now."""
    return hub.cameras()


@router.get("/api/v1/cameras/{name}")
def camera(name: str, hub: Hub) -> Camera:
    """One camera, now."""
    hub.known([name])
    return hub.camera(name)


@router.get("/api/v1/cameras/{name}/live.mjpg", **answers(MJPEG))
async def live(name: str, hub: Hub) -> Response:
    """One camera's pictures as MJPEG, as browsers and players show it. Encoded once, however many look."""
    return LiveStream(pictures(hub, hub.known([name])), MJPEG)


@router.get("/api/v1/cameras/{name}/picture.jpg", **answers("image/jpeg"))
async def picture(name: str, hub: Hub) -> Response:
    """One picture, taken now. 503 where none comes."""
    hub.known([name])
    with hub.board.viewing(name):
        before, end = hub.board.picture(name)[0], time.monotonic() + 3
        while time.monotonic() < end and not hub.closing.is_set():
            number, jpeg = hub.board.picture(name)
            if number != before:
                return Response(jpeg, media_type="image/jpeg")
            await asyncio.sleep(POLL)
    raise HTTPException(503, f"no picture comes from {name}")


@router.get("/api/v1/pictures", **answers(MJPEG))
async def together(
    hub: Hub,
    camera: Annotated[list[str], Query(description="Which; none: all")] = [],  # noqa: B006
    points: Annotated[list[str], Query(description="Those with the points of the driver's face drawn")] = [],  # noqa: B006
    where: Annotated[list[str], Query(description="Those that show where the evidence is")] = [],  # noqa: B006
) -> Response:
    """Several cameras' pictures in one answer, each with an X-Camera header: a browser has six connections."""
    names = hub.known(list(dict.fromkeys(camera)) or hub.names)
    return LiveStream(pictures(hub, names, {"points": hub.known(points), "where": hub.known(where)}), MJPEG)


@router.get("/api/v1/stream", **answers("text/event-stream"))
async def stream(request: Request, hub: Hub) -> Response:
    """Server-sent events: cameras, event, camera, trouble, missed, still. Last-Event-ID resumes."""
    return LiveStream(messages(hub, request.headers.get("last-event-id")), "text/event-stream")


@router.get("/api/v1/events")
def events(
    hub: Hub,
    since: Annotated[float | None, Query(allow_inf_nan=False, description="Seconds since 1970")] = None,
    until: Annotated[float | None, Query(allow_inf_nan=False, description="Seconds since 1970")] = None,
    camera: str | None = None,
    kind: str | None = None,
    level: Annotated[Level | None, Query(description="This one, and above")] = None,
    before_id: Annotated[str | None, Query(description="Older than this one")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Events:
    """What was, newest first."""
    rows = database.events(hub.folder, since, until, camera, kind, level, before_id, limit + 1)
    return Events(events=[hub.event(row) for row in rows[:limit]], more=len(rows) > limit)


@router.get("/api/v1/events/{id}")
def event(id: str, hub: Hub) -> Event:
    """One event."""
    return hub.event(hub.find(id))


@router.get("/api/v1/events/{id}/clip", **answers("video/mp4"))
def clip(id: str, hub: Hub) -> Response:
    """An event's clip, MP4. Ranges are answered."""
    return media_response(hub, id, "clip")


@router.get("/api/v1/events/{id}/thumbnail", **answers("image/jpeg"))
def thumbnail(id: str, hub: Hub) -> Response:
    """An event's picture, JPEG."""
    return media_response(hub, id, "thumbnail")


def inside(folder: Path, relative: str, suffixes: Sequence[str]) -> Path | None:
    """`relative`, if it is inside the folder with one of these suffixes; links resolved."""
    try:
        root = folder.resolve(strict=True)
        path = (root / relative).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        return None
    return path if path.is_relative_to(root) and path.is_file() and path.suffix.lower() in suffixes else None


def media_response(hub: StreamHub, id: str, key: Literal["clip", "thumbnail"]) -> Response:
    relative = getattr(hub.find(id), key)
    suffixes, kind = ((".mp4",), "video/mp4") if key == "clip" else ((".jpg", ".jpeg"), "image/jpeg")
    path = inside(hub.folder, relative, suffixes) if relative else None
    if path is None:
        raise HTTPException(404, f"event {id!r} has no {key}" + (": it was deleted" if relative else ""))
    return FileResponse(path, media_type=kind, headers={"cache-control": "private, max-age=86400"})


@router.post("/api/v1/events/{id}/mark")
def mark(id: str, marks: Marks, hub: Hub) -> Marked:
    """Acknowledge, call it false or true, or take that back. A false one is filed under the first safe label."""
    row = hub.find(id)
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


def app(board: Board, folder: Path, plan: WatchConfig, store: "Store", post: "Dispatcher", gauges: Gauges) -> FastAPI:
    """The page and its API. Raises UserError for an address that others can reach without a token."""
    token = auth.token_of(plan.web)
    keys = auth.TokenAuth(token, folder / ".logouts") if token else None
    patience = auth.LoginThrottle(auth.WAIT, free=auth.FREE)
    api = FastAPI(
        title="Stillwatch", version=__version__, description="Cameras that are watched: what is, and what was.",
        openapi_url="/api/v1/openapi.json", docs_url=None, redoc_url=None, redirect_slashes=False,
    )  # fmt: skip
    api.state.hub = StreamHub(board, folder, store, post, gauges, keys, patience)
    api.state.proxies = plan.web.proxies
    api.include_router(router)
    for path in ("", "page.css", "page.js", "icon.svg"):  # a mount at / would answer 404 for a wrong method elsewhere
        api.add_route(f"/{path}", _page_file)
    api.add_exception_handler(AnyHTTPException, _refused)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(UserError, lambda _, error: JSONResponse({"error": str(error)}, 503))
    api.add_exception_handler(Exception, _broken)
    api.add_middleware(auth.AuthMiddleware, keys=keys, patience=patience)
    return api


async def _page_file(request: Request) -> Response:
    return FileResponse(PAGE / (request.url.path[1:] or "index.html"), headers={"cache-control": "no-cache"})


async def _refused(_: Request, error: Any) -> Response:
    words = {"Not Found": "there is nothing here", "Method Not Allowed": "this is not done here in that way"}
    return JSONResponse({"error": words.get(error.detail, error.detail)}, error.status_code, error.headers)


async def _invalid(_: Request, error: Any) -> Response:
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"] if part not in ("query", "body", "path"))
    return JSONResponse({"error": f"{place or 'body'}: {fault['msg']}"}, 422)


async def _broken(request: Request, error: Exception) -> Response:
    """Logs only the error's kind and place; its text may hold an address."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
    logging.getLogger(__name__).error("web: %s %r: %s", request.method, request.url.path, what)
    return JSONResponse({"error": f"this could not be answered ({type(error).__name__})"}, 500)
