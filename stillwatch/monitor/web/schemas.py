"""The shapes of the API's answers, and a camera's state in plain words. Times are seconds since 1970."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stillwatch import __version__
from stillwatch.monitor.events.database import StoredEvent
from stillwatch.rules.signs import FaceState

CONDITIONS = {
    "starting": "Starting",
    "watching": "Watching",
    "lost": "No signal",
    "frozen": "Picture frozen",
    "black": "Dark, or the lens is covered",
    "damaged": "Some pictures arrive damaged",
    "ended": "The film has ended",
    "failed": "Cannot be opened",
}
Condition = Literal["starting", "watching", "lost", "frozen", "black", "damaged", "ended", "failed"]


@dataclass(frozen=True)
class Event(StoredEvent):
    """kind: the indicator, such as phone, microsleep, violence, camera; label: the class that it is about.

    start: when the behaviour began; end: null while it goes on; peak: the highest probability so far. clip, thumbnail:
    addresses, relative to the page.
    """


class Camera(BaseModel):
    """One camera, now."""

    name: str
    source: str | None = Field(None, description="Without its credentials")
    state: str
    live: bool | None = Field(None, description="false: a film or a folder, not a camera")
    status: str | None = Field(None, description="Of the newest picture: ok, empty, black, frozen, damaged, lost")
    condition: Condition = Field(description="Both in one word")
    says: str = Field(description="And in words for a person")
    since: float | None = Field(None, description="When that began, seconds since 1970, where it is known")
    seen: float | None = Field(None, description="When the newest picture was looked at")
    armed: bool = Field(True, description="false: outside its armed times it is not looked at, and no event opens")
    ignore: list[list[tuple[float, float]]] = Field([], description="Polygons not looked at: x, y as shares")
    crop: tuple[float, float, float, float] | None = Field(None, description="Looked at: left, top, right, bottom")
    p: dict[str, float] | None = Field(None, description="Probability of each class; null: there is no picture")
    gauge: float | None = Field(None, description="0..1")
    gauge_name: str | None = Field(None, description="awareness: 1 is attentive; evidence: 1 is certain")
    fps: float | None = None
    age_ms: float | None = Field(None, description="From capture to decision, of the newest picture")
    counters: dict[str, float] = {}
    face: FaceState | None = Field(None, description="The driver's, where one is read")
    where: bool = Field(False, description="Whether its pictures can show where the evidence is")
    open: list[Event] = []
    viewers: int = 0


class Cameras(BaseModel):
    """Every camera in the order of the plan. now: this machine's clock."""

    now: float
    ready: bool
    trouble: str | None = Field(None, description="What is wrong with the disk or the database now")
    waiting: int = Field(0, description="Rows that are not on disk yet")
    cameras: list[Camera]


class Events(BaseModel):
    """Newest first. more: ask again with before_id = the last one's id."""

    events: list[Event]
    more: bool


class Status(BaseModel):
    """What runs here."""

    version: str
    started: float
    now: float
    ready: bool
    labels: list[str]
    safe: list[str]
    cameras: list[str]
    sinks: list[dict[str, Any]]
    guarded: bool = Field(description="A token is asked for")
    trouble: str | None
    waiting: int


class Marks(BaseModel):
    """What a person says of an event. A key that is left out stays as it was; verdict null takes the verdict back."""

    model_config = ConfigDict(extra="forbid")

    acknowledged: bool = False
    verdict: Literal["false", "true"] | None = None


class Marked(BaseModel):
    """The event as it now is, and how many pictures were filed for the next training."""

    event: Event
    filed: int = 0
    words: str | None = Field(None, description="Why none were filed")


class Login(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: str = Field(max_length=1024)


class Alive(BaseModel):
    alive: bool = True
    version: str = __version__


class Ready(BaseModel):
    ready: bool
    why: str | None = Field(None, description="What is still waited for")


class Error(BaseModel):
    error: str = Field(description="One line for a person")


def plain(fields: Mapping[str, Any]) -> tuple[Condition, str]:
    """A camera's state and picture in one word, and in a line for a person."""
    state, status, words = fields.get("state", "starting"), fields.get("status"), fields.get("words")
    if state != "live":
        condition: Condition = state if state in CONDITIONS else "starting"
    else:
        condition = status if status in ("lost", "frozen", "black", "damaged") else "watching"
    says = CONDITIONS[condition]
    return condition, f"{says}: {words}" if words and state != "live" else says


def finite(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None
