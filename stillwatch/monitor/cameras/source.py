"""Source: what a camera may be (device, stream, file, folder, toy), how it is opened, and its name without secrets.

In: a source as the plan has it. Out: moments: seconds, and a picture that becomes RGB only where somebody looks.
Called by the eye (the camera's child), and by replay and score for files. It knows no net, no rule and no process.
"""

import math
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import UserError, nearest
from stillwatch.media import decode, synthetic

Picture: TypeAlias = NDArray[np.uint8]
Kind = Literal["device", "stream", "file", "folder", "toy"]

SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "rtp", "srt", "tcp", "udp")
TOYS = {"driver": "cabin", "street": "street"}
TOY = {"seed": 0, "fps": 10.0, "size": (240, 320), "seconds": 0.0}  # seconds = 0: it goes on for ever
ROUND = 600.0  # seconds after which an endless toy begins again
REPLAYED = 60.0  # seconds of an endless toy that frames() gives
PROBE = 500_000  # bytes, and microseconds, in which a stream must show what it is
GRID = 48  # samples of brightness across and down, about
LUMA = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "nv21", "gray")
BURSTS = ("hls", "mov", "matroska", "avi")  # come in pieces of many seconds, or as fast as the line is
INTRA = ("mjpeg", "rawvideo")  # every packet is a picture of its own: those that nobody wants are not even decoded


# ---- names without secrets

SHOWN = {"channel", "fps", "profile", "resolution", "seconds", "seed", "size", "stream", "subtype"}
SECRET = re.compile(r"(?i)(user|usr|login|pass|pwd|token|key|secret|auth|sig|session|cred)\w*\s*[=:].*")
RANDOM = re.compile(r"[A-Za-z0-9]{16,}")  # a path that is its own password, as UniFi's


def redact(source: str) -> str:
    """The source as it may stand in a log, a page, an event or an error.

    Gone are user and password, every value of a query but small numbers of known keys, what follows words such as
    user= or token= in a path, and whatever cannot be told apart from them: where an @ might belong to a password or to
    a path, neither is shown.
    """
    scheme, found, rest = source.partition("://")
    if not found:
        return "***" if re.search(r":.*@", source) or SECRET.search(source) else source
    at, end = rest.rfind("@"), _first(rest, "/?#")
    if at > end:
        return f"{scheme}://***"
    user, host = ("***@" if at >= 0 else ""), rest[at + 1 : end]
    if not re.fullmatch(r"([\w.-]+|\[[\da-fA-F:.]+\])?(:\d*)?", host):
        host = "***"
    path, asked, query = rest[end:].partition("#")[0].partition("?")
    path = "/".join(_segment(part) for part in path.split("/"))
    kept = [pair if _harmless(pair) else "***" for pair in re.split("[&;]", query)]
    return f"{scheme}://{user}{host}{path}" + ("?" + "&".join(dict.fromkeys(kept)) if asked else "")


def _first(text: str, marks: str) -> int:
    """Where the first of these characters stands; the text's length where none does."""
    return min((place for mark in marks if (place := text.find(mark)) >= 0), default=len(text))


def _harmless(pair: str) -> bool:
    key, _, value = pair.partition("=")
    return key in SHOWN and bool(re.fullmatch(r"\d{1,4}([x.]\d{1,4})?", value))


def _segment(part: str) -> str:
    """One step of a path, percent-decoded however often it was encoded, as far as it may be seen."""
    while (plain := unquote(part)) != part:
        part = plain
    end = _first(part, "/?#@&;")
    return RANDOM.sub("***", SECRET.sub("***", part[:end])) + ("***" if end < len(part) else "")


def secrets(source: str) -> list[str]:
    """Every piece of a source that its redaction does not show, as written and percent-decoded, the longest first."""
    shown = redact(source)
    rest = source.partition("://")[2] or source
    user, query = rest.rpartition("@")[0], rest.partition("?")[2]
    found = {rest, user, query, *re.split(r"[/?&;#@:=]", rest)}
    while not (more := {unquote(one) for one in found}) <= found:
        found |= more
    found |= {piece for one in found for piece in re.split(r"[/?&;#@:=]", one)}
    return sorted((one for one in found if len(one) > 2 and one not in shown), key=len, reverse=True)


def words(error: BaseException, source: str) -> str:
    """Why it failed, in one line without secrets: FFmpeg and the system may quote the URL."""
    text = str(getattr(error, "strerror", None) or error or type(error).__name__)
    text = text.replace(source, redact(source))
    for secret in secrets(source):
        text = text.replace(secret, "***")
    return " ".join(text.split())[:200]


# ---- what it is


def kind(source: str) -> Kind:
    """What a source is. Raises UserError for a missing file, an unknown scheme, a toy that cannot be drawn."""
    if source.isdigit() or source.startswith("/dev/video"):
        return "device"
    scheme, found, _ = source.partition("://")
    if found and scheme == "toy":
        toy_options(source)
        return "toy"
    if found and scheme in SCHEMES:
        return "stream"
    if found:
        raise UserError(f"source = {redact(source)}: unknown scheme {scheme!r}{nearest(scheme, [*SCHEMES, 'toy'])}")
    path = Path(source)
    if path.is_dir():
        if not pictures(path):
            raise UserError(f"source = {redact(source)}: a folder without pictures ({', '.join(decode.PICTURES)})")
        return "folder"
    if not path.is_file():
        raise UserError(
            f"source = {redact(source)}: no such file or folder; a camera is 0, rtsp://…, http://… or toy://driver"
        )
    return "file"


def is_live(source: str) -> bool:
    """Whether its moments pass, however long one looks away: a device or a stream."""
    return kind(source) in ("device", "stream")


def pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their numbers: 2.jpg before 10.jpg."""

    def order(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]

    return sorted((p for p in folder.iterdir() if p.suffix.lower() in decode.PICTURES), key=order)


def toy_options(source: str) -> dict[str, Any]:
    """toy://street?seed=3&fps=10&size=360x640&seconds=20 -> {"scene", "seed", "fps", "size", "seconds"}."""
    url = urlsplit(source)
    if url.netloc not in TOYS:
        raise UserError(f"source = {redact(source)}: no such toy{nearest(url.netloc, TOYS)}")
    found: dict[str, Any] = {"scene": TOYS[url.netloc], **TOY}
    for key, value in parse_qsl(url.query, keep_blank_values=True):
        if key not in TOY:
            raise UserError(f"source = {redact(source)}: {key}: unknown{nearest(key, TOY)}")
        try:
            sides = [int(side) for side in value.split("x")] if key == "size" else []
            found[key] = (sides[0], sides[1]) if key == "size" else int(value) if key == "seed" else float(value)
        except (ValueError, IndexError):
            found[key] = None
        number = found[key] if key != "size" or found[key] is None else min(found[key])
        if number is None or number < {"size": 16, "fps": 0.1}.get(key, 0):
            raise UserError(f"source = {redact(source)}: {key} cannot be read; ?seed=3&fps=10&size=360x640&seconds=20")
    return found


# ---- moments


class VideoFrame:
    """One moment: seconds on the Alarm's clock, time.monotonic() at capture, and a picture that is not yet RGB."""

    def __init__(self, raw: Any, time: float, captured: float, colours: "Colours | None" = None):
        """raw: uint8 (H,W,3) RGB, or an av.VideoFrame and what turns it into that."""
        self.raw, self.time, self.captured = raw, time, captured
        self._colours = colours
        self._rgb: Picture | None = raw if isinstance(raw, np.ndarray) else None

    def rgb(self) -> Picture:
        """uint8 (H,W,3), made on the first call; nobody may write into it."""
        if self._rgb is None:
            assert self._colours is not None
            self._rgb = self._colours(self.raw)
        return self._rgb

    def luma(self) -> Picture:
        """A coarse grid of brightness, uint8 (h,w), read where the decoder left it."""
        if self._rgb is not None or self.raw.format.name not in LUMA:
            image = self.rgb()[:, :, 1]
        else:
            plane = self.raw.planes[0]
            image = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: self.raw.height, : self.raw.width]
        height, width = image.shape
        return np.ascontiguousarray(image[:: max(1, height // GRID), :: max(1, width // GRID)])


class Colours:
    """av.VideoFrame -> uint8 (H,W,3) RGB. One for a whole source: making one costs as much as a frame."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        self._lock = threading.Lock()  # two threads may want pictures, and it has room for one

    def __call__(self, frame: Any) -> Picture:
        with self._lock:
            return self._reformatter.reformat(frame, format="rgb24").to_ndarray()  # type: ignore[return-value]


class RateLimiter:
    """Lets at most `fps` moments a second through; a moment that comes late does not cost the next one its turn."""

    def __init__(self, fps: float | None):
        self.every = 1 / fps if fps else 0.0
        self._slack = 0.9 * self.every  # by which a network may jitter
        self._due = -math.inf

    def due(self, time: float) -> bool:
        if time < self._due - 1e-6:
            return False
        self._due = max(self._due, time - self._slack) + self.every if self._due > -math.inf else time + self.every
        return True


class Backoff:
    """How long to wait before the next attempt: doubling from first to longest, each shortened by chance to half at
    most, so that many cameras do not come back in step. No limit to their number."""

    def __init__(self, first: float, longest: float, chance: random.Random | None = None):
        self.first, self.longest = first, longest
        self._now = first
        self._chance = chance or random.Random()

    def next(self) -> float:
        wait, self._now = self._now, min(2 * self._now, self.longest)
        return min(wait, self.longest) * self._chance.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._now = self.first


class PlaybackClock:
    """Tells how long what was filmed is to be held back until its time has come. speed 0: never.

    most: seconds that it may have to wait; a stream's time stamps may leap, and then it counts from there.
    """

    def __init__(self, speed: float, most: float = math.inf):
        self.speed, self.most = speed, most
        self._start: float | None = None

    def left(self, seconds: float, now: float) -> float:
        """Seconds from now until the moment at `seconds` of the film is due."""
        if not self.speed:
            return 0.0
        if self._start is None:
            self._start = now - seconds / self.speed
        late = now - self._start - seconds / self.speed
        if late > 1 or -late > self.most:  # the machine slept or is too slow: go on from here, do not run to catch up
            self._start += late
            late = 0.0
        return max(0.0, -late)


# ---- opening


def open_video(source: str, stall: float = 3.0, transport: str = "tcp") -> Any:
    """An av container of a device, stream or file, its decoder set to one thread without delay.

    stall: seconds after which opening, and each read of a stream, gives up with one of timed_out(). Raises other
    av.FFmpegError for what FFmpeg cannot do, and ValueError where there is no picture in it.
    """
    import av

    what = kind(source)
    options: dict[str, str] = {}
    where, form = source, None
    if what == "device":
        where, form = (f"/dev/video{source}" if source.isdigit() else source), "v4l2"
    elif what == "stream":
        # The streams have to show what they are quickly: a camera that comes back must be seen at once
        options = {"probesize": str(PROBE), "analyzeduration": str(PROBE), "fpsprobesize": "0"}
        if source.startswith("rtsp"):
            options |= {"rtsp_transport": transport, "max_delay": "300000", "reorder_queue_size": "64"}
            options |= {"allowed_media_types": "video"}
    timeout = None if what == "file" else (stall, 0.95 * stall)  # FFmpeg looks at its watch ten times a second
    container = av.open(where, format=form, options=options, metadata_errors="replace", timeout=timeout)
    try:
        if not container.streams.video:
            raise ValueError("there is no picture in it")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError("its codec is unknown")
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "SLICE"  # threads of frames would each add one frame of delay
        if what != "file":
            stream.codec_context.flags |= 0x0008_0000  # AV_CODEC_FLAG_LOW_DELAY
    except BaseException:
        container.close()
        raise
    return container


def drawn(source: str, fps: float, say: Callable[[str], None], loop: bool) -> Iterator[tuple[float, Picture]]:
    """The moments of a toy or of a folder of pictures: (seconds, uint8 (H,W,3) RGB). say: of pictures left out."""
    if kind(source) == "toy":
        asked = toy_options(source)
        seconds, start = asked["seconds"], 0.0
        while True:
            scene, rate, seed, size = asked["scene"], asked["fps"], asked["seed"], asked["size"]
            for time, image, _ in synthetic.clip(scene, seconds or ROUND, rate, seed, size):
                yield start + time, image
            start += seconds or ROUND
            if seconds and not loop:
                return
    number = 0
    while True:
        before = number
        for path in pictures(Path(source)):
            image_or_reason = decode.read_picture(path)
            if isinstance(image_or_reason, str):
                say(f"{path.name}: {image_or_reason}; left out")
                continue
            yield number / fps, image_or_reason
            number += 1
        if not loop or number == before:
            return


def frames(source: str, fps: float | None = None) -> Iterator[tuple[float, Picture]]:
    """Every moment of a file, a folder or a toy, as a watch on it sees them: (seconds, RGB uint8 (H,W,3)).

    fps: at most so many a second of a film or toy, taken as a watch takes them; of a folder it is their pace (10 if
    None). An endless toy is given for 60 s. Raises UserError for a live source and for a film that cannot be read.
    """
    what = kind(source)
    pace = RateLimiter(fps)
    if what in ("device", "stream"):
        raise UserError(f"source = {redact(source)}: is live; a file, a folder or toy://driver is wanted here")
    if what in ("folder", "toy"):
        end = toy_options(source)["seconds"] or REPLAYED if what == "toy" else math.inf
        for seconds, image in drawn(source, fps or 10.0, lambda _: None, loop=False):
            if seconds >= end:
                return
            if what == "folder" or pace.due(seconds):
                yield seconds, image
        return
    import av

    colours = Colours()
    try:
        with open_video(source) as container:
            clock = FileClock(container.streams.video[0])
            for packet in container.demux(video=0):
                for frame in decoded(packet, lambda _: None):
                    seconds = clock.of(frame)
                    if pace.due(seconds):
                        yield seconds, VideoFrame(frame, seconds, 0.0, colours).rgb()
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"source = {redact(source)}: cannot be read as a film: {words(error, source)}") from error


def decoded(packet: Any, say: Callable[[str], None]) -> list[Any]:
    """The whole frames that this packet completes; a damaged one is none, and what is no packet at all is survived."""
    import av

    try:
        return [frame for frame in packet.decode() if not frame.is_corrupt]
    except av.EOFError:
        return []
    except av.FFmpegError as error:
        say(f"a packet that cannot be decoded: {error.strerror}")
        return []


class FileClock:
    """Seconds of a file's frames from its first one on; they never go back."""

    def __init__(self, stream: Any, start: float = 0.0):
        self.start = start  # of this round, where the file is looped
        self.last = start
        self._base = float(stream.time_base or 0)
        self._step = 1 / float(stream.average_rate or 25)
        self._first: int | None = None
        self.count = 0

    def of(self, frame: Any) -> float:
        """Of a frame, or of a packet."""
        if frame.pts is None or not self._base:
            seconds = self.last + (self._step if self.count else 0.0)
        else:
            self._first = frame.pts if self._first is None else self._first
            seconds = self.start + (frame.pts - self._first) * self._base
        self.count += 1
        self.last = max(self.last, seconds)
        return self.last

    @property
    def end(self) -> float:
        """When the next round begins."""
        return self.last + self._step


def in_bursts(container: Any) -> bool:
    """Whether a stream's packets must be held back until their time: they arrive long before it."""
    return bool(set(container.format.name.split(",")) & set(BURSTS))


def timed_out() -> tuple[type[BaseException], ...]:
    """What av raises when its time is over."""
    import av

    return (TimeoutError, av.error.ExitError)


class Reading(NamedTuple):
    """How a file is read on after its process was killed: how many of its moments were seen, and their last second."""

    seen: int = 0
    time: float = 0.0


def quiet() -> None:
    """FFmpeg says nothing on the terminal: it would quote the URL with its password."""
    import av

    av.logging.set_level(None)
    av.logging.set_libav_level(av.logging.PANIC)
