"""watch.toml as frozen models; errors name key and line and mask secrets."""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from stillwatch.errors import UserError, explain, nearest
from stillwatch.monitor.schedule import schedule, span
from stillwatch.recipe import Rule, Strict
from stillwatch.registry import Spec
from stillwatch.rules.events import Level

Part = TypeVar("Part", bound=Strict)
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,40}$"
KeyPath = tuple[str | int, ...]  # ("camera", 1, "fps")
Share = Annotated[float, Field(ge=0, le=1)]  # of the picture's width or height
Wait = Annotated[float, Field(ge=0)]  # seconds
Polygon = Annotated[tuple[tuple[Share, Share], ...], Field(min_length=3)]


def _several(value: object) -> object:
    """One span, or one polygon, is a list of one."""
    match value:
        case str() | [[int() | float(), *_], *_]:
            return [value]
    return value


def _spans(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        span(text)
    return value


Words = Annotated[tuple[str, ...], BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...])]
Spans = Annotated[Words, AfterValidator(_spans)]
Polygons = Annotated[
    tuple[Polygon, ...], BeforeValidator(_several, json_schema_input_type=Polygon | tuple[Polygon, ...])
]


class Finite(Strict):
    model_config = ConfigDict(allow_inf_nan=False)


class Person(Finite):
    model: Path  # ONNX: YOLOX's boxes with a person as class 0, or a person's probability (inference.people)
    every: int = Field(5, ge=1)  # only every nth look is asked
    confidence: float = Field(0.3, gt=0, lt=1)  # from which on somebody is there


class CameraConfig(Finite):
    """Times in seconds."""

    name: str = Field(pattern=NAME)
    source: str  # 0, a file, a folder of pictures, rtsp://…, http://…, toy://driver, toy://street
    fps: float = Field(10.0, gt=0, le=120)  # frames a second that are looked at, at most; a file's are never dropped
    speed: float = Field(1.0, ge=0)  # of a file, folder or toy: 1 as it was filmed, 0 as fast as it goes
    loop: bool = False  # a file or folder begins again at its end
    stall: float = Field(3.0, gt=0)  # without a frame for so long the stream is lost
    backoff: tuple[Wait, Wait] = (0.5, 4.0)  # first and longest wait before it is opened again; jittered, no limit
    transport: Literal["tcp", "udp"] = "tcp"  # of RTSP
    decode: str = Field("software", pattern=r"^[a-z0-9]+$")  # auto, or FFmpeg's hardware: cuda, vaapi, videotoolbox …
    fit: Literal["stretch", "letterbox", "crop"] | None = None  # where its shape is not the training pictures'
    crop: tuple[Share, Share, Share, Share] | None = None  # left, top, right, bottom: all that is looked at
    ignore: Polygons = ()  # [[x, y], …], or several: not looked at
    armed: Spans = ()  # "22:00-06:00", or several, in local time: no events outside; else the file's
    blur: Literal["none", "faces", "all"] = "none"  # burnt into page, thumbnail and clip; the net sees the picture
    clips: bool = True
    where: bool = False  # thumbnails, and on request the page, show where the evidence is; a bundle of `export --map`
    person: Person | None = None  # looks without a person are skipped
    rule: Rule | None = None  # this camera's own; else the file's, else the bundle's

    @field_validator("crop")
    @classmethod
    def _has_a_size(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value and not (value[0] < value[2] and value[1] < value[3]):
            raise ValueError("is left, top, right, bottom, as shares from 0 to 1: [0.25, 0, 1, 0.8]")
        return value


class Keep(Finite):
    folder: Path = Path("watch")  # events.db, clips/, thumbnails/, negatives/
    pre: float = Field(5.0, ge=0, le=60)  # seconds of clip before an event
    post: float = Field(5.0, ge=0, le=60)  # and after it
    longest: float = Field(120.0, gt=0)  # seconds of one clip
    memory: int = Field(24, ge=1)  # MiB of packets a camera may hold back for pre-roll
    days: float = Field(30.0, gt=0)  # clips and thumbnails older than this go
    gigabytes: float = Field(10.0, gt=0)  # of clips and thumbnails; the oldest go first
    free: float = Field(0.2, ge=0)  # GB of the disk that stay free


class Sink(Finite):
    name: str = Field(pattern=NAME)
    to: Spec  # one of SINKS: "log", {name="webhook", url="https://…", secret="$HOOK_SECRET"}
    level: Level = "warn"  # told when an event first reaches it
    updates: bool = False  # and again when it is raised, and when it ends
    cameras: tuple[str, ...] = ()  # empty: all
    kinds: tuple[str, ...] = ()  # empty: all
    cooldown: float = Field(0.0, ge=0)  # seconds between two events of one camera and kind
    per_hour: int = Field(60, ge=1)  # events an hour, at most; what is held back is counted and said
    wait_clip: bool = False  # send only when the clip is whole


class Web(Strict):
    host: str = "127.0.0.1"  # any other address needs a token
    port: int = Field(8756, ge=0, le=65535)  # 0: a free one
    token: str | None = None  # "$NAME": from the environment
    on: bool = True
    proxies: tuple[str, ...] = ()  # addresses of reverse proxies whose X-Forwarded-For and -Proto are believed

    @field_validator("token")
    @classmethod
    def _from_environment(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("$"):
            raise ValueError('a secret stands in the environment: token = "$STILLWATCH_TOKEN"')
        return value


class WatchConfig(Strict):
    bundle: Path
    camera: tuple[CameraConfig, ...] = Field(min_length=1)
    sink: tuple[Sink, ...] = ()
    web: Web = Web()
    keep: Keep = Keep()
    rule: Rule | None = None  # for every camera; else the bundle's own
    armed: Spans = ()  # of every camera without its own
    timezone: str | None = None  # of `armed`, as Europe/Berlin; else the system's
    workers: int = Field(1, ge=1, le=64)  # processes that look, each with a net of its own and its share of the cameras
    threads: int = Field(1, ge=1)  # that compute one forward; more where one takes longer than a frame
    runtime: Words = ()  # only these: "openvino:GPU"; none: each here

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        schedule((), value)
        return value

    def amended(self, folder: Path | None = None, **web: object) -> "WatchConfig":
        keep = self.keep.model_copy(update={"folder": folder} if folder else {})
        return self.model_copy(update={"web": self.web.model_copy(update=web), "keep": keep})


class LoadedConfig(NamedTuple):
    """A valid config, and what was left out: {camera or sink: reason}."""

    config: WatchConfig
    bad_cameras: dict[str, str]
    bad_sinks: dict[str, str]


def single(bundle: Path, source: str, **keys: Any) -> LoadedConfig:
    """`stillwatch watch BUNDLE --source X`: one camera, the page and the log."""
    log = Sink(name="log", to="log", level="notice", updates=True)
    try:
        camera = CameraConfig(name=camera_name(source), source=source, **keys)
    except ValidationError as error:
        raise UserError(explain(error, CameraConfig, lambda _: "--source", show=_masked)) from None
    return LoadedConfig(WatchConfig(bundle=bundle, camera=(camera,), sink=(log,)), {}, {})


def camera_name(source: str) -> str:
    """Without user, password or query."""
    scheme, separator, rest = source.partition("://")
    host = re.split(r"[/?#]", rest)[0].rpartition("@")[2]
    address = (f"toy-{host}" if scheme == "toy" else host) if separator else Path(source).stem
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", address).strip("-_")[:32].rstrip("-_")
    return stem if stem and not stem.isdigit() else f"camera{stem}"


def load(path: Path) -> LoadedConfig:
    """Read watch.toml. Relative paths start at its folder; invalid cameras and sinks are left out and named.

    Raises UserError, a line per fault with key and line, for all else, and where no camera is left.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors add a byte order mark
        raw = tomllib.loads(text)
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file" + (nearest(path.name, siblings) if siblings else "")) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    lines = Lines(path, text)
    cameras, bad_cameras = _valid_parts(raw, "camera", CameraConfig, lines)
    sinks, bad_sinks = _valid_parts(raw, "sink", Sink, lines)
    if not cameras:
        missing = f"{path}: camera: missing; add [[camera]] with name and source"
        raise UserError("\n".join(bad_cameras.values()) or missing)
    try:
        config = WatchConfig.model_validate(raw | {"camera": cameras, "sink": sinks})
    except ValidationError as error:
        raise UserError(explain(error, WatchConfig, lines, show=_masked)) from None
    return LoadedConfig(_resolve_paths(config, path.parent), bad_cameras, bad_sinks)


def secret(value: Any) -> Any:
    """Replace each "$NAME" from the environment. Raises UserError where unset."""
    if isinstance(value, dict):
        return {key: secret(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [secret(item) for item in value]
    if not isinstance(value, str) or not re.fullmatch(r"\$[A-Za-z_]\w*", value):
        return value
    if not os.environ.get(value[1:]):
        raise UserError(f"{value}: not set in the environment; export {value[1:]}=… before the start")
    return os.environ[value[1:]]


class Lines:
    """Key path -> "FILE: line N" of a TOML text."""

    def __init__(self, path: Path, text: str):
        self.path = path
        self._numbers: dict[KeyPath, int] = {}
        table: KeyPath = ()
        entries: dict[KeyPath, int] = {}  # an array of tables -> index of its newest entry
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*(\[\[?)\s*([\w.\"' -]+?)\s*\]", line):
                names, table = self._split(header[2]), ()
                for depth, name in enumerate(names, 1):
                    table = (*table, name)
                    if header[1] == "[[" and depth == len(names):
                        entries[table] = entries.get(table, -1) + 1
                    table = (*table, entries[table]) if table in entries else table
                self._numbers.setdefault(table, number)
            elif key := re.match(r"""\s*([\w."'-]+)\s*=""", line):
                self._numbers.setdefault((*table, *self._split(key[1])), number)

    @staticmethod
    def _split(dotted: str) -> list[str]:
        return [name.strip().strip("\"'") for name in dotted.split(".")]

    def __call__(self, key: KeyPath) -> str:
        """The line of this key, or of the nearest table that holds it."""
        known = (self._numbers[key[:end]] for end in range(len(key), 0, -1) if key[:end] in self._numbers)
        number = next(known, None)
        return f"{self.path}: line {number}" if number else str(self.path)


def _masked(key: str, value: object) -> str:
    """key: "" where unknown: even a plain word may be a password."""
    if isinstance(value, str) and (key in ("", "source", "to", "token") or re.search(r"[@:/$]", value)):
        return "***"
    return repr(value) if isinstance(value, str | bool | int | float) else f"a {type(value).__name__}"


def _valid_parts(raw: dict[str, Any], key: str, model: type[Part], lines: Lines) -> tuple[list[Part], dict[str, str]]:
    tables = raw.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{lines((key,))}: {key}: is written [[{key}]], once for each")
    good: dict[str, Part] = {}
    bad: dict[str, str] = {}
    for number, table in enumerate(tables):
        name = str(table.get("name"))
        if not re.fullmatch(NAME, name) or "name" not in table:
            name = f"{key}-{number + 1}"
        if name in good or name in bad:
            place = lines((key, number, "name"))
            bad[f"{name}-{number + 1}"] = f"{place}: {key}.name = {name!r}: there is one already"
            continue
        try:
            good[name] = model.model_validate(table)
        except ValidationError as error:
            bad[name] = explain(error, model, lambda inner, at=number: lines((key, at, *inner)), f"{key}.", _masked)  # type: ignore[misc]
    return list(good.values()), bad


def _resolve_paths(config: WatchConfig, folder: Path) -> WatchConfig:
    from stillwatch.media import hub
    from stillwatch.monitor.events.sinks import SINKS  # it imports this module

    def resolve(text: str) -> str:
        elsewhere = "://" in text or text.isdigit() or text.startswith("$") or Path(text).is_absolute()
        return text if elsewhere else str(folder / text)

    cameras = []
    for camera in config.camera:
        person = camera.person and camera.person.model_copy(update={"model": folder / camera.person.model})
        cameras.append(camera.model_copy(update={"source": resolve(camera.source), "person": person}))
    sinks = []
    for sink in config.sink:
        if isinstance(sink.to, dict):
            # Options of a sink from another package that name files are called so
            names = getattr(SINKS.get(str(sink.to.get("name"))), "files", ("path", "file"))
            files = {key: resolve(v) for key, v in sink.to.items() if key in names and isinstance(v, str)}
            sink = sink.model_copy(update={"to": sink.to | files})
        sinks.append(sink)
    keep = config.keep.model_copy(update={"folder": folder / config.keep.folder})
    bundle = folder / hub.folder(config.bundle)
    return config.model_copy(update={"bundle": bundle, "camera": tuple(cameras), "sink": tuple(sinks), "keep": keep})
