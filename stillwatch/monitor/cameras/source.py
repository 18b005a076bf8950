"""A camera's source (device, stream, file, folder, toy): kind, redacted name, opening and pacing."""

import errno
import math
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

import av
import numpy as np
from av.codec.hwaccel import HWAccel, hwdevices_available
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from stillwatch.errors import UserError, nearest, one_line
from stillwatch.media import decode, synthetic
from stillwatch.media.decode import Picture, ToRgb

Kind = Literal["device", "stream", "file", "folder", "toy"]

SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "rtp", "srt", "tcp", "udp")
TOYS = {"driver": "cabin", "street": "street", "meeting": "meeting"}
LEAST = {"size": 16, "fps": 0.1}  # of a toy
ROUND = 600.0  # seconds after which an endless toy begins again
REPLAYED = 60.0  # seconds of an endless toy that frames() gives
LARGEST = 33_177_600  # pixels of one picture: 8K. A larger one would take more memory than the service allows
TIMEOUT = 0.95  # of a stall, for one read: FFmpeg checks ten times a second
PROBE = "500000"  # bytes, and microseconds, in which a stream must show what it is
GRID = 48  # samples of brightness across and down, about
LUMA = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "nv21", "gray")
BURSTS = {"hls", "mov", "matroska", "avi"}  # come in pieces of many seconds, or as fast as the line is
INTRA = ("mjpeg", "rawvideo")  # every packet is a picture of its own: those that nobody wants are not even decoded
FORMATS = "mpjpeg,mjpeg,jpeg_pipe,png_pipe,mpegts,mpeg,flv,live_flv,mov,mp4,matroska,webm,avi,h264,hevc,ogg,asf,nut"
PICTURES = (".jpg", ".jpeg", ".png")
TEXT = ("ansi", "bintext", "idf", "xbin")  # FFmpeg draws a .txt as a terminal would
TIMED_OUT = (TimeoutError, av.error.ExitError)  # what av raises when its time is over
LOW_DELAY = 0x0008_0000  # AV_CODEC_FLAG_LOW_DELAY


# ---- names without secrets

SHOWN = {"channel", "fps", "profile", "resolution", "seconds", "seed", "size", "stream", "subtype"}
SECRET = re.compile(r"(?i)(user|usr|login|pass|pwd|token|key|secret|auth|sig|session|cred)\w*\s*[=:].*")
RANDOM = re.compile(r"[A-Za-z0-9]{16,}")  # a path that is its own password, as UniFi's
DIVIDERS = re.compile(r"[/?&;#@:=]")


def redact(source: str) -> str:
    """Without secrets: scheme, host, harmless path, small numbers of known query keys. An ambiguous @ hides both."""
    scheme, found, rest = source.partition("://")
    if not found:
        return "***" if re.search(r":.*@", source) or SECRET.search(source) else source
    at, end = rest.rfind("@"), len(re.split("[/?#]", rest, maxsplit=1)[0])
    if at > end:
        return f"{scheme}://***"
    user, host = ("***@" if at >= 0 else ""), rest[at + 1 : end]
    if not re.fullmatch(r"([\w.-]+|\[[\da-fA-F:.]+\])?(:\d*)?", host):
        host = "***"
    path, question, query = rest[end:].partition("#")[0].partition("?")
    segments, pairs = [], []
    for segment in path.split("/"):
        while (plain := unquote(segment)) != segment:  # however often it was encoded
            segment = plain
        shown, *hidden = re.split("[/?#@&;]", segment, maxsplit=1)
        segments.append(RANDOM.sub("***", SECRET.sub("***", shown)) + ("***" if hidden else ""))
    for pair in re.split("[&;]", query):
        key, _, value = pair.partition("=")
        pairs.append(pair if key in SHOWN and re.fullmatch(r"\d{1,4}([x.]\d{1,4})?", value) else "***")
    return f"{scheme}://{user}{host}{'/'.join(segments)}" + ("?" + "&".join(dict.fromkeys(pairs)) if question else "")


def redacted_error(error: BaseException, source: str) -> str:
    """One line without secrets: FFmpeg and the system may quote the URL."""
    shown = redact(source)
    rest = source.partition("://")[2] or source
    pieces = {rest, rest.rpartition("@")[0], rest.partition("?")[2], *DIVIDERS.split(rest)}
    while not (decoded := {unquote(piece) for piece in pieces}) <= pieces:
        pieces |= decoded
    pieces |= {part for piece in pieces for part in DIVIDERS.split(piece)}
    return one_line(error, hide=[piece for piece in pieces if len(piece) > 2 and piece not in shown])


def open_error(error: BaseException, source: str) -> str:
    """Why a camera cannot be opened and what to do, in one line without secrets."""
    what, reason = kind(source), redacted_error(error, source)
    if what == "device" and isinstance(error, FileNotFoundError):
        devices = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*")))
        return f"no such webcam; this machine has {devices or 'none'}"
    if what == "stream" and isinstance(error, av.error.InvalidDataError | av.error.ArgumentError):
        reason += "; this is no video stream, perhaps a web page: give the address of the stream itself"
    if source.startswith("http") and error.args[:1] == (errno.EIO,):
        reason += "; where it redirects, which is not followed, give the address that it is at now"
    login, at, _ = source.partition("://")[2].rpartition("@")
    if what == "stream" and at and re.search(r"[^\w.~%:-]", login):
        reason += "; percent-encode the password: @ is %40, # is %23, / is %2F, ? is %3F, ! is %21"
    return reason


# ---- kinds


def kind(source: str) -> Kind:
    """Raises UserError."""
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
    try:
        if path.is_dir():
            if not _pictures(path):
                raise UserError(f"{place}: a folder without pictures ({', '.join(decode.PICTURES)})")
            return "folder"
        if path.is_file():
            return "file"
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be read
        raise UserError(f"{place[:100]}: cannot be read: {redacted_error(error, source)}") from None
    raise UserError(f"{place}: no such file or folder; a camera is 0, rtsp://…, http://… or toy://driver")


def is_live(source: str) -> bool:
    return kind(source) in ("device", "stream")


def _pictures(folder: Path) -> list[Path]:
    """By number: 2.jpg before 10.jpg."""
    pictures = [path for path in folder.iterdir() if path.suffix.lower() in decode.PICTURES]
    return sorted(pictures, key=lambda path: [part.zfill(20) for part in re.split(r"(\d+)", path.name)])


class Toy(NamedTuple):
    """toy://street?seed=3&fps=10&size=360x640&seconds=20"""

    scene: str
    seed: int = 0
    fps: float = 10.0
    size: tuple[int, int] = (240, 320)  # height, width
    seconds: float = 0.0  # 0: endless

    @classmethod
    def parse(cls, source: str) -> "Toy":
        """Raises UserError."""
        place = f"source = {redact(source)}"
        name, _, query = source.removeprefix("toy://").partition("?")
        if (name := name.rstrip("/")) not in TOYS:
            raise UserError(f"{place}: no such toy{nearest(name, TOYS)}")
        toy, keys = cls(TOYS[name]), cls._fields[1:]
        for key, value in parse_qsl(query, keep_blank_values=True):
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
    """Its seconds on the Alarm's clock, and time.monotonic() at capture."""

    _converting = threading.Lock()  # two threads may ask, and a converter has room for one

    def __init__(self, raw: Picture | av.VideoFrame, time: float, captured: float, to_rgb: ToRgb | None = None):
        self.raw, self.time, self.captured = raw, time, captured
        self._to_rgb = to_rgb

    def rgb(self) -> Picture:
        """uint8 (H,W,3), read-only; converted on demand."""
        with self._converting:
            if isinstance(self.raw, av.VideoFrame):
                assert self._to_rgb is not None
                self.raw = self._to_rgb(self.raw)
            return self.raw

    def luma(self) -> Picture:
        """A coarse grid of brightness, uint8 (h,w)."""
        raw = self.raw
        if isinstance(raw, av.VideoFrame) and raw.format.name in LUMA:
            plane = raw.planes[0]
            image = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: raw.height, : raw.width]
        else:
            image = self.rgb()[:, :, 1]
        height, width = image.shape
        return np.ascontiguousarray(image[:: max(1, height // GRID), :: max(1, width // GRID)])


class RateLimiter:
    """At most `fps` frames a second; a late one does not cost the next its turn."""

    def __init__(self, fps: float | None):
        self.every = 1 / fps if fps else 0.0
        self._slack = 0.9 * self.every  # a network's jitter
        self._due = -math.inf

    def due(self, time: float) -> bool:
        if time < self._due - 1e-6:
            return False
        self._due = max(self._due, time - self._slack) + self.every if self._due > -math.inf else time + self.every
        return True


def backoff(first: float, longest: float, chance: random.Random | None = None) -> Iterator[float]:
    """Endless waits in seconds, doubling from first to longest, each jittered down to half at most."""
    chance, wait = chance or random.Random(), first
    while True:
        yield min(wait, longest) * chance.uniform(0.5, 1.0)
        wait = min(2 * wait, longest)


class PlaybackClock:
    """Paces a recording. speed: 0 never waits. longest: seconds of a wait; more is a jump of time stamps."""

    def __init__(self, speed: float, longest: float = math.inf):
        self.speed, self.longest = speed, longest
        self._start: float | None = None

    def wait(self, seconds: float, now: float) -> float:
        if not self.speed:
            return 0.0
        if self._start is None:
            self._start = now - seconds / self.speed
        late = now - self._start - seconds / self.speed
        if late > 1 or -late > self.longest:  # the machine slept or is too slow: no catching up
            self._start += late
            late = 0.0
        return max(0.0, -late)


class FileClock:
    """Seconds of a file's frames or packets, from `start`, never falling."""

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


def hardware(decode: str) -> HWAccel | str:
    """A decoder of FFmpeg's that starts here, or why there is none. decode: "auto", or FFmpeg's name, such as vaapi or
    cuda.
    """
    known, reasons = hwdevices_available(), []
    if decode != "auto" and decode not in known:
        return f"this FFmpeg has {', '.join(known) or 'no hardware decoders'}"
    for name in known if decode == "auto" else [decode]:
        try:
            HWAccel(name).create(av.Codec("h264", "r"))  # a stream would fail with it where no device answers
            return HWAccel(name)
        except NotImplementedError:
            reasons.append(f"{name}: no decoder of H.264")
        except av.FFmpegError as error:
            reasons.append(f"{name}: {one_line(error)}")
    return "; ".join(reasons) or "this FFmpeg has no hardware decoders"


def open_video(
    source: str, stall: float = 3.0, transport: str = "tcp", hwaccel: HWAccel | None = None
) -> InputContainer:
    """Open a device, stream or file; its decoder has one thread and no delay.

    stall: seconds after which opening or one read gives up. hwaccel: where it knows the codec. Raises TIMED_OUT,
    av.FFmpegError, and ValueError where there is no video.
    """
    what = kind(source)
    opening: dict[str, str] = {}
    address = f"/dev/video{source}" if source.isdigit() else source
    if what == "stream":  # a camera that comes back must be seen at once
        opening = {"probesize": PROBE, "analyzeduration": PROBE, "fpsprobesize": "0"}
        if source.startswith(("http", "tcp", "udp", "srt")):  # a camera must not lead us to another host or port
            opening["max_redirects"] = "0"
            playlists = ",hls" if ".m3u8" in source.lower() else ""  # they name addresses too
            opening["format_whitelist"] = FORMATS + playlists
            if source.lower().endswith(PICTURES):  # else FFmpeg takes it for a file of the disk, and follows redirects
                address += "?"
        if source.startswith("rtsp"):
            opening |= {"rtsp_transport": transport, "max_delay": "300000", "reorder_queue_size": "64"}
            opening |= {"allowed_media_types": "video"}
    timeout = None if what == "file" else (stall, TIMEOUT * stall)
    form = "v4l2" if what == "device" else None
    container = decode.open_film(address, format=form, options=opening, timeout=timeout, hwaccel=hwaccel)
    try:
        if not container.streams.video:
            raise ValueError("there is no picture in it")
        codec = container.streams.video[0].codec_context
        if codec is None or codec.name in TEXT:
            raise ValueError("it is text, no film" if codec else "its codec is unknown")
        if codec.width * codec.height > LARGEST:
            raise ValueError(f"{codec.width}×{codec.height} pixels: more than {LARGEST / 1e6:.0f} million")
        codec.options = {**codec.options, "max_pixels": str(LARGEST)}  # also where it changes later
        codec.thread_count, codec.thread_type = 1, "SLICE"  # each frame thread would add a frame of delay
        if what != "file":
            codec.flags |= LOW_DELAY
    except BaseException:
        container.close()
        raise
    return container


def packets(container: InputContainer, stall: float) -> Iterator[Packet]:
    """Of a stream. Raises TimeoutError instead of old ones that FFmpeg held back until a read timed out."""
    asked = time.monotonic()
    for packet in container.demux():
        if time.monotonic() - asked >= TIMEOUT * stall:
            raise TimeoutError
        yield packet
        asked = time.monotonic()


def drawn(source: str, fps: float, warn: Callable[[str], None], loop: bool) -> Iterator[tuple[float, Picture]]:
    """A toy's or folder's frames: (seconds, RGB uint8 (H,W,3)). warn: of skipped pictures."""
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


def frames(source: str, fps: float | None = None, live: float = 0.0) -> Iterator[tuple[float, Picture]]:
    """What a watch on a file, folder or toy sees: (seconds, RGB uint8 (H,W,3)).

    fps: at most, of a film or toy; a folder's pace (10 if None). An endless toy gives 60 s. live: seconds of a device
    or stream. Raises UserError for what cannot be read.
    """
    what = kind(source)
    limiter = RateLimiter(None if what == "folder" else fps)
    if what in ("device", "stream") and not live:
        raise UserError(f"source = {redact(source)}: is live; a file, a folder or toy://driver is wanted here")
    if what in ("folder", "toy"):
        end = Toy.parse(source).seconds or REPLAYED if what == "toy" else math.inf
        for seconds, image in drawn(source, fps or 10.0, lambda _: None, loop=False):
            if seconds >= end:
                return
            if limiter.due(seconds):
                yield seconds, image
        return
    to_rgb = ToRgb()
    try:
        with open_video(source) as container:
            clock, end = FileClock(container.streams.video[0]), time.monotonic() + live
            for frame in decode.frames(container, lambda _: None):
                seconds = clock.time(frame)
                if live and time.monotonic() > end:
                    return
                if limiter.due(seconds):
                    yield seconds, to_rgb(frame)
    except (av.FFmpegError, *TIMED_OUT, ValueError) as error:
        reason = redacted_error(error, source)
        raise UserError(f"source = {redact(source)}: cannot be read as a film: {reason}") from error
