"""Files: picture and video files -> pixels and seconds: the ONLY place where it is decided which frames are looked at.

In: paths, and for videos the Codec that a room hands in (PyAV's parts). Out: uint8 RGB, or why there is none.
Called by the lab's data and sources and by the street's score, so that both get the same numbers from the same file.
It writes nothing, raises nothing for a bad file, and knows no label and no net.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Picture: TypeAlias = NDArray[np.uint8]
Window: TypeAlias = tuple[int, ...]  # the T frame numbers of one sample

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp")
NOT_READ = (".gif", ".tif", ".tiff", ".heic", ".avif", ".jp2")  # pictures, but not ones that are read here


class Codec(NamedTuple):
    """What is needed of PyAV: av.open, and the class VideoReformatter."""

    open: Callable[..., Any]  # (path, metadata_errors=…) -> a container, which is a context
    reformatter: Callable[[], Any]


# ---- pictures


def read_picture(path: Path) -> Picture | str:
    """A picture file as uint8 (H,W,3) RGB, or the reason why it is none."""
    try:
        raw = path.read_bytes()  # not imread: that one cannot open every name on every system
    except OSError as error:
        return "missing file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
    if not raw:
        return "empty file"
    if cut_off(raw):
        return "truncated"
    try:
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        return f"cannot be decoded: {error.err}"
    if image is None or not image.size:
        return "cannot be decoded"
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def cut_off(raw: bytes) -> bool:
    """Whether a JPEG, PNG, BMP or WebP ends before its own end mark; a decoder would fill the rest with gray."""
    if raw.startswith(b"\xff\xd8"):
        # An embedded thumbnail has an end mark of its own: look for ours behind the first scan's header. Bytes
        # FF D9 cannot occur within a scan (ITU T.81, B.1.1.5).
        place = 2
        while raw[place : place + 1] == b"\xff" and raw[place + 1 : place + 2] not in (b"\xda", b""):
            if raw[place + 1] == 0xFF:  # fill bytes may stand before a marker
                place += 1
                continue
            place += 2 + int.from_bytes(raw[place + 2 : place + 4], "big")
        return raw.rfind(b"\xff\xd9", place) < 0  # from the end: that is where it is
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        place = 8
        while place + 12 <= len(raw):
            if raw[place + 4 : place + 8] == b"IEND":
                return False
            place += 12 + int.from_bytes(raw[place : place + 4], "big")
        return True
    if raw.startswith(b"BM"):
        return int.from_bytes(raw[2:6], "little") > len(raw)
    if raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        return int.from_bytes(raw[4:8], "little") + 8 > len(raw)
    return False


# ---- videos


def times_of(path: Path, codec: Codec) -> list[float] | str:
    """The seconds at which each frame of a clip is shown, from 0 on, read from its packets without decoding.

    Returns the reason, a str, where the file is no clip that can be read.
    """
    try:
        if not path.stat().st_size:
            return "empty file"
        with codec.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                return "no video stream"
            stream = container.streams.video[0]
            packets = [(packet.pts, packet.is_discard) for packet in container.demux(stream) if packet.size]
            # a file that is cut off still announces all its frames
            if len(packets) < 0.95 * stream.frames:
                return f"truncated: {len(packets)} of {stream.frames} frames"
            shown = [mark for mark, hidden in packets if not hidden]  # an edit list hides some
            marks = sorted(mark for mark in shown if mark is not None)
            rate, base = float(stream.average_rate or 0), float(stream.time_base or 0)
    except Exception as error:  # FFmpeg's errors have no ancestor in common below this one
        return f"not a video that can be read: {_words(error)}"
    if not shown:
        return "no frames"
    if len(marks) == len(shown) and base and (len(marks) == 1 or marks[-1] > marks[0]):
        return [(mark - marks[0]) * base for mark in marks]
    return [number / (rate or 25.0) for number in range(len(shown))]


def sampled(times: Sequence[float], rate: float | None) -> list[int]:
    """The frame nearest to each tick of `rate` a second, each frame at most once; all frames where rate is None."""
    if rate is None:
        return list(range(len(times)))
    seconds = np.asarray(times)
    ticks = np.arange(int(seconds[-1] * rate + 1e-6) + 1) / rate
    middles = (seconds[1:] + seconds[:-1]) / 2
    return [int(number) for number in np.unique(np.searchsorted(middles, ticks - 1e-6))]


def windows(taken: Sequence[int], frames: int) -> list[Window]:
    """Frame numbers in windows of `frames` that do not overlap; what is left over is too short and goes. A clip
    shorter than one window gives one, its last frame repeated."""
    starts = range(0, max(len(taken) - frames, 0) + 1, frames)
    return [tuple([*taken[start : start + frames], *[taken[-1]] * frames][:frames]) for start in starts]


def clips(
    path: Path, wanted: Sequence[Window], fit: Callable[[Picture], Picture], codec: Codec
) -> Iterator[tuple[Window, list[Picture] | str]]:
    """The frames of each window, T of them as `fit` gives them, or the reason why they cannot be had.

    Decodes forward once, and hands out each window, in order of its frames, as soon as it is whole, so that memory
    stays flat. fit: uint8 (H,W,3) RGB -> what is kept of it.
    """
    waiting = sorted(wanted, reverse=True)  # the next one last
    numbers = {number for window in wanted for number in window}
    kept: dict[int, Picture | str] = {}
    colours = codec.reformatter()  # one for the whole clip: a new one for each frame costs as much as the frame
    number = -1
    reason = ""
    try:
        with codec.open(str(path), metadata_errors="replace") as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in numbers:
                    image = colours.reformat(frame, format="rgb24").to_ndarray()  # (H,W,3) uint8
                    kept[number] = "damaged frame" if frame.is_corrupt else fit(image)
                while waiting and waiting[-1][-1] <= number:
                    window = waiting.pop()
                    yield window, _whole(window, kept)
                    for old in [n for n in kept if not waiting or n < waiting[-1][0]]:
                        del kept[old]
                if not waiting:
                    return
    except Exception as error:  # FFmpeg's errors have no ancestor in common below this one
        reason = f": {_words(error)}"
    for window in reversed(waiting):
        yield window, f"only {number + 1} frames can be decoded, frame {window[-1]} is wanted{reason}"


def _whole(window: Window, kept: dict[int, Picture | str]) -> list[Picture] | str:
    images = [kept[number] for number in window]
    damaged = next((image for image in images if isinstance(image, str)), None)
    return damaged or [image for image in images if not isinstance(image, str)]


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
