"""What a camera may be (device, stream, file, folder, toy), how it is opened, and its name without secrets.

Imports errors and media alone: it knows no net, no rule and no process.
"""

import math
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from stillwatch.errors import UserError, nearest, one_line
from stillwatch.media import decode, synthetic
from stillwatch.media.decode import Picture, ToRgb

Kind = Literal["device", "stream", "file", "folder", "toy"]

SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "rtp", "srt", "tcp", "udp")
TOYS = {"driver": "cabin", "street": "street"}
LEAST = {"size": 16, "fps": 0.1}  # of a toy
ROUND = 600.0  # seconds after which an endless toy begins again
REPLAYED = 60.0  # seconds of an endless toy that frames() gives
PROBE = "500000"  # bytes, and microseconds, in which a stream must show what it is
GRID = 48  # samples of brightness across and down, about
LUMA = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "nv21", "gray")
BURSTS = {"hls", "mov", "matroska", "avi"}  # come in pieces of many seconds, or as fast as the line is
INTRA = ("mjpeg", "rawvideo")  # every packet is a picture of its own: those that nobody wants are not even decoded
TIMED_OUT = (TimeoutError, av.error.ExitError)  # what av raises when its time is over
LOW_DELAY = 0x0008_0000  # AV_CODEC_FLAG_LOW_DELAY


# ---- names without secrets

SHOWN = {"channel", "fps", "profile", "resolution", "seconds", "seed", "size", "stream", "subtype"}
SECRET = re.compile(r"(?i)(user|usr|login|pass|pwd|token|key|secret|auth|sig|session|cred)\w*\s*[=:].*")
RANDOM = re.compile(r"[A-Za-z0-9]{16,}")  # a path that is its own password, as UniFi's
DIVIDERS = re.compile(r"[/?&;#@:=]")


def redact(source: str) -> str:
    """The source as it may stand in a log, a page, an event or an error.

    It keeps scheme, host, harmless path and small numbers of known query keys. Where an @ might belong to a password
    or to a path, neither is shown.
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
    path, question, query = rest[end:].partition("#")[0].partition("?")
    path = "/".join(_redact_segment(segment) for segment in path.split("/"))
    pairs = []
    for pair in re.split("[&;]", query):
        key, _, value = pair.partition("=")
        pairs.append(pair if key in SHOWN and re.fullmatch(r"\d{1,4}([x.]\d{1,4})?", value) else "***")
    return f"{scheme}://{user}{host}{path}" + ("?" + "&".join(dict.fromkeys(pairs)) if question else "")


def _first(text: str, marks: str) -> int:
    """Where the first of these characters stands; the text's length where none does."""
    return min((place for mark in marks if (place := text.find(mark)) >= 0), default=len(text))


def _redact_segment(segment: str) -> str:
    while (plain := unquote(segment)) != segment:  # however often it was encoded
        segment = plain
    end = _first(segment, "/?#@&;")
    return RANDOM.sub("***", SECRET.sub("***", segment[:end])) + ("***" if end < len(segment) else "")


def redacted_error(error: BaseException, source: str) -> str:
    """Why it failed, in one line without secrets: FFmpeg and the system may quote the URL."""
    shown = redact(source)
    rest = source.partition("://")[2] or source
    pieces = {rest, rest.rpartition("@")[0], rest.partition("?")[2], *DIVIDERS.split(rest)}
    while not (decoded := {unquote(piece) for piece in pieces}) <= pieces:
        pieces |= decoded
    pieces |= {part for piece in pieces for part in DIVIDERS.split(piece)}
    return one_line(error, hide=[piece for piece in pieces if len(piece) > 2 and piece not in shown])


# ---- what it is


def kind(source: str) -> Kind:
    """What a source is. Raises UserError for a missing file, an unknown scheme, a toy that cannot be drawn."""
    if source.isdigit() or source.startswith("/dev/video"):
        return "device"
    place = f"source = {redact(source)}"
    scheme, found, _ = source.partition("://")
    if found and scheme == "toy":
        Toy.parse(source)
        return "toy"
    if found and scheme not in SCHEMES:
        raise UserError(f"{place}: unknown scheme {scheme!r}{nearest(scheme, [*SCHEMES, 'toy'])}")
    if found:
        return "stream"
    path = Path(source)
    if path.is_dir():
        if not _pictures(path):
            raise UserError(f"{place}: a folder without pictures ({', '.join(decode.PICTURES)})")
        return "folder"
    if not path.is_file():
        raise UserError(f"{place}: no such file or folder; a camera is 0, rtsp://…, http://… or toy://driver")
    return "file"


def is_live(source: str) -> bool:
    """Whether what is not looked at is lost: a device or a stream."""
    return kind(source) in ("device", "stream")


def _pictures(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of their numbers: 2.jpg before 10.jpg."""

    def order(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name)]

    return sorted((p for p in folder.iterdir() if p.suffix.lower() in decode.PICTURES), key=order)


class Toy(NamedTuple):
    """toy://street?seed=3&fps=10&size=360x640&seconds=20"""

    scene: str
    seed: int = 0
    fps: float = 10.0
    size: tuple[int, int] = (240, 320)  # height, width
    seconds: float = 0.0  # 0: endless

    @classmethod
    def parse(cls, source: str) -> "Toy":
        """Raises UserError that names the wrong part."""
        url, place = urlsplit(source), f"source = {redact(source)}"
        if url.netloc not in TOYS:
            raise UserError(f"{place}: no such toy{nearest(url.netloc, TOYS)}")
        toy, keys = cls(TOYS[url.netloc]), cls._fields[1:]
        for key, value in parse_qsl(url.query, keep_blank_values=True):
            if key not in keys:
                raise UserError(f"{place}: {key}: unknown{nearest(key, keys)}")
            try:
                numbers = [int(n) if key in ("seed", "size") else float(n) for n in value.split("x")]
                if len(numbers) != (2 if key == "size" else 1) or not min(numbers) >= LEAST.get(key, 0):
                    raise ValueError
            except ValueError:
                raise UserError(f"{place}: {key} cannot be read; ?seed=3&fps=10&size=360x640&seconds=20") from None
            toy = toy._replace(**{key: tuple(numbers) if key == "size" else numbers[0]})  # type: ignore[arg-type]
        return toy


# ---- frames


class VideoFrame:
    """One moment: seconds on the Alarm's clock, time.monotonic() at capture, and a picture that becomes RGB late."""

    _converting = threading.Lock()  # two threads may want pictures, and a converter has room for one

    def __init__(self, raw: Picture | av.VideoFrame, time: float, captured: float, to_rgb: ToRgb | None = None):
        self.raw, self.time, self.captured = raw, time, captured
        self._to_rgb = to_rgb

    def rgb(self) -> Picture:
        """uint8 (H,W,3), converted on the first call; nobody may write into it."""
        with self._converting:
            if isinstance(self.raw, av.VideoFrame):
                assert self._to_rgb is not None
                self.raw = self._to_rgb(self.raw)
            return self.raw

    def luma(self) -> Picture:
        """A coarse grid of brightness, uint8 (h,w), read where the decoder left it."""
        raw = self.raw
        if isinstance(raw, av.VideoFrame) and raw.format.name in LUMA:
            plane = raw.planes[0]
            image = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: raw.height, : raw.width]
        else:
            image = self.rgb()[:, :, 1]
        height, width = image.shape
        return np.ascontiguousarray(image[:: max(1, height // GRID), :: max(1, width // GRID)])


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


def backoff(first: float, longest: float, chance: random.Random | None = None) -> Iterator[float]:
    """Waits between attempts, without end: doubling from first to longest, each shortened by chance to half at most,
    so that many cameras do not come back in step."""
    chance, wait = chance or random.Random(), first
    while True:
        yield min(wait, longest) * chance.uniform(0.5, 1.0)
        wait = min(2 * wait, longest)


class PlaybackClock:
    """How long to hold back what was filmed until its time has come. speed 0: never.

    longest: seconds that it may have to wait; a stream's time stamps may leap, and then it counts from there.
    """

    def __init__(self, speed: float, longest: float = math.inf):
        self.speed, self.longest = speed, longest
        self._start: float | None = None

    def wait(self, seconds: float, now: float) -> float:
        """Seconds from now until the moment at `seconds` of the film is due."""
        if not self.speed:
            return 0.0
        if self._start is None:
            self._start = now - seconds / self.speed
        late = now - self._start - seconds / self.speed
        if late > 1 or -late > self.longest:  # the machine slept or is too slow: do not run to catch up
            self._start += late
            late = 0.0
        return max(0.0, -late)


class FileClock:
    """Seconds of a file's frames or packets from `start` on; they never go back."""

    def __init__(self, stream: VideoStream, start: float = 0.0):
        self.start = self.last = start
        self.count = 0
        self.step = 1 / float(stream.average_rate or 25)
        self._base = float(stream.time_base or 0)
        self._first: int | None = None

    def time(self, item: av.VideoFrame | Packet) -> float:
        if item.pts is None or not self._base:
            seconds = self.last + (self.step if self.count else 0.0)
        else:
            self._first = item.pts if self._first is None else self._first
            seconds = self.start + (item.pts - self._first) * self._base
        self.count += 1
        self.last = max(self.last, seconds)
        return self.last


# ---- opening


def open_video(source: str, stall: float = 3.0, transport: str = "tcp") -> InputContainer:
    """An av container of a device, stream or file, its decoder set to one thread without delay.

    stall: seconds after which opening, and each read of a stream, gives up with one of TIMED_OUT. Raises other
    av.FFmpegError for what FFmpeg cannot do, and ValueError where there is no picture in it.
    """
    what = kind(source)
    options: dict[str, str] = {}
    address, form = source, None
    if what == "device":
        address, form = (f"/dev/video{source}" if source.isdigit() else source), "v4l2"
    elif what == "stream":
        # A stream has to show quickly what it is: a camera that comes back must be seen at once
        options = {"probesize": PROBE, "analyzeduration": PROBE, "fpsprobesize": "0"}
        if source.startswith("rtsp"):
            options |= {"rtsp_transport": transport, "max_delay": "300000", "reorder_queue_size": "64"}
            options |= {"allowed_media_types": "video"}
    timeout = None if what == "file" else (stall, 0.95 * stall)  # FFmpeg looks at its watch ten times a second
    container = decode.open_film(address, format=form, options=options, timeout=timeout)
    try:
        if not container.streams.video:
            raise ValueError("there is no picture in it")
        codec = container.streams.video[0].codec_context
        if codec is None:
            raise ValueError("its codec is unknown")
        codec.thread_count, codec.thread_type = 1, "SLICE"  # threads of frames would each add a frame of delay
        if what != "file":
            codec.flags |= LOW_DELAY
    except BaseException:
        container.close()
        raise
    return container


def drawn(source: str, fps: float, warn: Callable[[str], None], loop: bool) -> Iterator[tuple[float, Picture]]:
    """The moments of a toy or of a folder of pictures: (seconds, uint8 (H,W,3) RGB). warn: of pictures left out."""
    if kind(source) == "toy":
        toy, start = Toy.parse(source), 0.0
        while True:
            seconds = toy.seconds or ROUND
            for time, image, _ in synthetic.clip(toy.scene, seconds, toy.fps, toy.seed, toy.size):
                yield start + time, image
            start += seconds
            if toy.seconds and not loop:
                return
    number = 0
    while True:
        before = number
        for path in _pictures(Path(source)):
            image_or_reason = decode.read_picture(path)
            if isinstance(image_or_reason, str):
                warn(f"{path.name}: {image_or_reason}; left out")
                continue
            yield number / fps, image_or_reason
            number += 1
        if not loop or number == before:
            return


def frames(source: str, fps: float | None = None) -> Iterator[tuple[float, Picture]]:
    """Every moment of a file, a folder or a toy, as a watch on it sees them: (seconds, RGB uint8 (H,W,3)).

    fps: at most so many a second of a film or toy; of a folder it is their pace (10 if None). An endless toy gives
    60 s. Raises UserError for a live source and for a film that cannot be read.
    """
    what, limiter = kind(source), RateLimiter(fps)
    if what in ("device", "stream"):
        raise UserError(f"source = {redact(source)}: is live; a file, a folder or toy://driver is wanted here")
    if what in ("folder", "toy"):
        end = Toy.parse(source).seconds or REPLAYED if what == "toy" else math.inf
        for seconds, image in drawn(source, fps or 10.0, lambda _: None, loop=False):
            if seconds >= end:
                return
            if what == "folder" or limiter.due(seconds):
                yield seconds, image
        return
    to_rgb = ToRgb()
    try:
        with open_video(source) as container:
            clock = FileClock(container.streams.video[0])
            for frame in decode.frames(container, lambda _: None):
                seconds = clock.time(frame)
                if limiter.due(seconds):
                    yield seconds, to_rgb(frame)
    except (av.FFmpegError, ValueError) as error:
        reason = redacted_error(error, source)
        raise UserError(f"source = {redact(source)}: cannot be read as a film: {reason}") from error
