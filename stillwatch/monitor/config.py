"""Plan: watch.toml as a person wrote it: which bundle, cameras, sinks, page and rule; secrets only as "$NAME".

In: a TOML file, or a bundle and one source. Out: a frozen Plan, and what is wrong with it by key and line.
Called by the CLI. It opens no camera and no socket.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field, ValidationError, field_validator

from stillwatch.errors import UserError, explain, nearest
from stillwatch.recipe import Rule, Strict
from stillwatch.registry import Spec
from stillwatch.rules.presets import Level

Part = TypeVar("Part", bound=Strict)
FILES = ("path", "file")  # options of sinks that name a file
Where = tuple[str | int, ...]  # the path of a key: ("camera", 1, "fps")


class CameraConfig(Strict):
    """One camera. Times in seconds."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,40}$")
    source: str  # 0, a file, a folder of pictures, rtsp://…, http://…, toy://driver, toy://street
    fps: float = Field(10.0, gt=0, le=120)  # frames a second that are looked at, at most; a file's are never dropped
    speed: float = Field(1.0, ge=0)  # of a file, folder or toy: 1 as it was filmed, 0 as fast as it goes
    loop: bool = False  # a file or folder begins again at its end
    stall: float = Field(3.0, gt=0)  # without a frame for so long the stream is lost
    backoff: tuple[float, float] = (0.5, 4.0)  # first and longest wait before it is opened again; jittered, no limit
    transport: Literal["tcp", "udp"] = "tcp"  # of RTSP
    blur: Literal["none", "faces", "all"] = "none"  # burnt into page, thumbnail and clip; the net sees the picture
    clips: bool = True
    rule: Rule | None = None  # this camera's own; else the plan's, else the bundle's


class Keep(Strict):
    """What is remembered, and for how long."""

    folder: Path = Path("watch")  # events.db, clips/, thumbnails/, negatives/
    pre: float = Field(5.0, ge=0, le=60)  # seconds of clip before an event
    post: float = Field(5.0, ge=0, le=60)  # and after it
    longest: float = Field(120.0, gt=0)  # seconds of one clip
    memory: int = Field(24, ge=1)  # MiB of packets a camera may hold back for pre-roll
    days: float = Field(30.0, gt=0)  # clips and thumbnails older than this go
    gigabytes: float = Field(10.0, gt=0)  # of clips and thumbnails; the oldest go first
    free: float = Field(0.2, ge=0)  # GB of the disk that stay free


class Sink(Strict):
    """Somebody to tell."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,40}$")
    to: Spec  # one of SINKS: "log", {name="webhook", url="https://…", secret="$HOOK_SECRET"}
    level: Level = "warn"  # told when an event first reaches it
    updates: bool = False  # and again when it is raised, and when it ends
    cameras: tuple[str, ...] = ()  # empty: all
    kinds: tuple[str, ...] = ()  # empty: all
    cooldown: float = Field(0.0, ge=0)  # seconds between two events of one camera and kind
    per_hour: int = Field(60, ge=1)  # events an hour, at most; what is held back is counted and said
    wait_clip: bool = False  # send only when the clip is whole


class Web(Strict):
    """The page."""

    host: str = "127.0.0.1"  # any other address needs a token
    port: int = Field(8756, ge=0, le=65535)  # 0: a free one
    token: str | None = None  # "$NAME": from the environment
    on: bool = True

    @field_validator("token")
    @classmethod
    def _secret(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("$"):
            raise ValueError('a secret stands in the environment: token = "$STILLWATCH_TOKEN"')
        return value


class WatchConfig(Strict):
    """The whole of watch.toml."""

    bundle: Path
    camera: tuple[CameraConfig, ...] = Field(min_length=1)
    sink: tuple[Sink, ...] = ()
    web: Web = Web()
    keep: Keep = Keep()
    rule: Rule | None = None  # for every camera; else the bundle's own
    threads: int = Field(1, ge=1)  # that compute one look; more where one takes longer than a frame
    runtime: str | None = None

    def amended(self, folder: Path | None = None, **web: Any) -> "WatchConfig":
        """The same plan with another folder to keep things in, and other keys of [web]."""
        keep = self.keep.model_copy(update={"folder": folder} if folder else {})
        return self.model_copy(update={"web": self.web.model_copy(update=web), "keep": keep})


class Read(NamedTuple):
    """A plan that can be started, and what of the file cannot: {camera's or sink's name: one line}."""

    plan: WatchConfig
    cameras: dict[str, str]
    sinks: dict[str, str]


def single(bundle: Path, source: str, **keys: Any) -> WatchConfig:
    """One camera, the page, and the log: what `stillwatch watch BUNDLE --source X` means."""
    log = Sink(name="log", to="log", level="notice", updates=True)
    try:
        return WatchConfig(
            bundle=bundle, camera=(CameraConfig(name=named(source), source=source, **keys),), sink=(log,)
        )
    except ValidationError as error:
        raise UserError(explain(error, WatchConfig, lambda _: "--source")) from None


def load(path: Path) -> Read:
    """Read watch.toml. Relative paths in it start at its own folder.

    A camera or a sink that is written wrongly is left out and named, so that it does not keep the others from
    starting. Raises UserError, one line a fault with key and line, for everything else, and where no camera is left.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file" + (nearest(path.name, beside) if beside else "")) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    at = Lines(path, text)
    cameras, bad_cameras = _parts(raw, "camera", CameraConfig, at)
    sinks, bad_sinks = _parts(raw, "sink", Sink, at)
    if not cameras:
        raise UserError(
            "\n".join(bad_cameras.values()) or f"{path}: camera: missing; add [[camera]] with name and source"
        )
    try:
        plan = WatchConfig.model_validate(raw | {"camera": cameras, "sink": sinks})
    except ValidationError as error:
        raise UserError(explain(error, WatchConfig, at)) from None
    return Read(_rooted(plan, path.parent), bad_cameras, bad_sinks)


def secret(value: Any) -> Any:
    """ "$NAME" -> the environment's value, anywhere in lists and tables. Raises UserError where it is not set."""
    if isinstance(value, dict):
        return {key: secret(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [secret(one) for one in value]
    if not isinstance(value, str) or not re.fullmatch(r"\$[A-Za-z_]\w*", value):
        return value
    if not os.environ.get(value[1:]):
        raise UserError(f"{value}: not set in the environment; export {value[1:]}=… before the start")
    return os.environ[value[1:]]


class Lines:
    """Where a key stands in a TOML text: a path of names and indices -> "FILE: line N"."""

    def __init__(self, path: Path, text: str):
        self.path = path
        self.known: dict[Where, int] = {}
        table: Where = ()
        counts: dict[Where, int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*(\[\[?)\s*([\w.\"' -]+?)\s*\]", line):
                table = self._table(_names(header[2]), header[1] == "[[", counts)
                self.known.setdefault(table, number)
            elif key := re.match(r"""\s*([\w."'-]+)\s*=""", line):
                self.known.setdefault((*table, *_names(key[1])), number)

    @staticmethod
    def _table(names: list[str], array: bool, counts: dict[Where, int]) -> Where:
        """The path of a header: within an array of tables, that of its newest entry."""
        path: Where = ()
        for number, name in enumerate(names):
            path = (*path, name)
            if array and number == len(names) - 1:
                counts[path] = counts.get(path, -1) + 1
            if path in counts:
                path = (*path, counts[path])
        return path

    def __call__(self, where: Where) -> str:
        """The line of this key, or of the nearest table that holds it."""
        for end in range(len(where), 0, -1):
            if line := self.known.get(tuple(where[:end])):
                return f"{self.path}: line {line}"
        return str(self.path)


def _names(dotted: str) -> list[str]:
    return [name.strip().strip("\"'") for name in dotted.split(".")]


def _parts(raw: dict[str, Any], key: str, model: type[Part], at: Lines) -> tuple[list[Part], dict[str, str]]:
    """The [[camera]] or [[sink]] tables that are right, and what is wrong with the others."""
    tables = raw.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{at((key,))}: {key}: is written [[{key}]], once for each")
    good: dict[str, Part] = {}
    bad: dict[str, str] = {}
    for number, table in enumerate(tables):
        name = str(table.get("name", f"{key}-{number + 1}"))
        place: Where = (key, number)
        if name in good or name in bad:
            bad[f"{name}-{number + 1}"] = f"{at((*place, 'name'))}: {key}.name = {name!r}: there is one already"
            continue
        try:
            good[name] = model.model_validate(table)
        except ValidationError as error:
            bad[name] = explain(error, model, lambda inner, place=place: at((*place, *inner)), f"{key}.")  # type: ignore[misc]
    return list(good.values()), bad


def named(source: str) -> str:
    """A name for a camera, after its source: never with its user, password or query in it."""
    scheme, there, rest = source.partition("://")
    host = re.split(r"[/?#]", rest)[0].rpartition("@")[2]
    address = (f"toy-{host}" if scheme == "toy" else host) if there else Path(source).stem
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", address).strip("-_")[:32].rstrip("-_")
    return stem if stem and not stem.isdigit() else f"camera{stem}"


def _rooted(plan: WatchConfig, folder: Path) -> WatchConfig:
    """Relative paths from the file's own folder."""

    def source(text: str) -> str:
        elsewhere = "://" in text or text.isdigit() or text.startswith("$") or Path(text).is_absolute()
        return text if elsewhere else str(folder / text)

    def told(to: Spec) -> Spec:
        """A sink's own files: of jsonl and sound."""
        files = (
            {} if isinstance(to, str) else {k: source(v) for k, v in to.items() if k in FILES and isinstance(v, str)}
        )
        return to if isinstance(to, str) else to | files

    cameras = tuple(camera.model_copy(update={"source": source(camera.source)}) for camera in plan.camera)
    sinks = tuple(sink.model_copy(update={"to": told(sink.to)}) for sink in plan.sink)
    keep = plan.keep.model_copy(update={"folder": folder / plan.keep.folder})
    return plan.model_copy(update={"bundle": folder / plan.bundle, "camera": cameras, "sink": sinks, "keep": keep})
