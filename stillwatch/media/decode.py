"""Files -> pixels and seconds. Only this module decides which frames of a film are used.

A bad file gives a reason, not an error.
"""

import io
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stillwatch.errors import one_line

Picture: TypeAlias = NDArray[np.uint8]
Window: TypeAlias = tuple[int, ...]  # the T frame numbers of one sample

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif")
VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp")
NOT_READ = (".heic", ".jp2")  # pictures, but not ones that are read here
# Faster than Pillow, and what all figures were measured with; the rest is Pillow's
OPENCV = ("JPEG", "PNG", "BMP", "WEBP")
REDUCED = ((4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))  # libjpeg's scaled inverse DCT
ORIENTATION = 0x0112  # EXIF's tag
SMALLEST = 8  # pixels of a picture's shorter side
MAX_PIXELS = 100_000_000  # of one picture: counted in its header, before it takes any memory
Image.MAX_IMAGE_PIXELS = None  # Pillow only warns; read_picture() refuses


# ---- pictures


def read_picture(path: Path, least: tuple[int, int] | None = None) -> Picture | str:
    """uint8 (H,W,3) RGB, or why not. least: a JPEG comes at 1/2 or 1/4 where neither side is below it."""
    try:
        raw = path.read_bytes()  # not imread: that one cannot open every name on every system
    except OSError as error:
        return "missing file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
    if not raw:
        return "empty file"
    if cut_off(raw):
        return "truncated"
    try:
        with Image.open(io.BytesIO(raw)) as file:  # reads the header alone
            width, height = file.size
            if min(height, width) < SMALLEST:
                return f"{width}×{height} pixels: the shorter side is below {SMALLEST}"
            if height * width > MAX_PIXELS:
                return f"{width}×{height} pixels: more than {MAX_PIXELS / 1e6:.0f} million"
            if file.format not in OPENCV:
                upright = ImageOps.exif_transpose(file)  # of several frames the first
                pixels = np.asarray(upright if upright.mode.startswith("I") else upright.convert("RGB"))
                if pixels.dtype == np.uint8:
                    return pixels
                high = (np.clip(pixels, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)  # of 16 bits, as in OpenCV
                return np.repeat(high[:, :, None], 3, axis=2)
            flag = cv2.IMREAD_COLOR  # heeds EXIF's orientation too, as the reduced ones do
            if least and file.format == "JPEG":
                h, w = (width, height) if file.getexif().get(ORIENTATION) in (5, 6, 7, 8) else (height, width)
                flag = next((one for k, one in REDUCED if h // k >= least[0] and w // k >= least[1]), flag)
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), flag)
    except cv2.error as error:
        return f"cannot be decoded: {error.err}"
    except UnidentifiedImageError:
        return "cannot be decoded"
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # Pillow's words for a broken file
        return f"cannot be decoded: {one_line(error)}"
    if image is None or not image.size:
        return "cannot be decoded"
    # A JPEG whose data end before its end mark is filled with this gray, to a corner
    if raw.startswith(b"\xff\xd8") and (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 128).all(-1).any():
        try:
            strict = av.CodecContext.create("mjpeg", "r")
            strict.options = {"err_detect": "explode"}
            strict.decode(Packet(raw))
        except av.error.InvalidDataError:
            return "truncated"
        except av.FFmpegError:  # a kind of JPEG that FFmpeg does not know
            pass
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def cut_off(raw: bytes) -> bool:
    """Whether JPEG, PNG, BMP or WebP lacks its end; decoders fill the rest with gray."""
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


class ToRgb:
    """av.VideoFrame -> uint8 (H,W,3) RGB, upright by its display matrix. One per film: it costs as much as a frame."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> Picture:
        image = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        turns = round(frame.rotation / 90) % 4  # counterclockwise, as numpy's
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image  # type: ignore[return-value]


def open_film(path: str | Path, threads: int = 0, **options: Any) -> InputContainer:
    """threads: 0: FFmpeg's choice. options: of av.open. Raises as av.open does."""
    container = av.open(str(path), metadata_errors="replace", **options)
    for stream in container.streams.video:
        if threads:
            stream.codec_context.thread_count = threads
        if stream.codec_context and stream.codec_context.name == "mjpeg":  # strict: else what is cut off is filled in
            stream.codec_context.thread_count, stream.codec_context.options = 1, {"err_detect": "explode"}
    return container


def frames(container: InputContainer, damaged: Callable[[str], None]) -> Iterator[VideoFrame]:
    """The first video stream, in display order. damaged: called for each frame that WholeFrames leaves out."""
    whole = WholeFrames(damaged)
    for packet in container.demux(video=0):
        yield from whole(packet)


class WholeFrames:
    """One stream's packets -> their frames, without corrupt ones and those up to the next keyframe."""

    def __init__(self, damaged: Callable[[str], None]):
        """damaged: called for each that is left out."""
        self._damaged, self._broken = damaged, False

    def __call__(self, packet: Packet) -> list[VideoFrame]:
        whole: list[VideoFrame] = []
        try:
            for frame in packet.decode():
                self._broken = frame.is_corrupt or (self._broken and not frame.key_frame)
                if self._broken:
                    self._damaged("a damaged picture")
                else:
                    whole.append(frame)
        except av.EOFError:
            pass
        except av.FFmpegError as error:
            self._broken = True
            self._damaged(f"a packet that cannot be decoded: {one_line(error)}")
        return whole


def times_of(path: Path) -> list[float] | str:
    """When each frame is shown, in seconds from 0, without decoding; or why not."""
    try:
        if not path.stat().st_size:
            return "empty file"
        with open_film(path) as container:
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
        return f"not a video that can be read: {one_line(error)}"
    if not shown:
        return "no frames"
    if len(marks) == len(shown) and base and (len(marks) == 1 or marks[-1] > marks[0]):
        return [(mark - marks[0]) * base for mark in marks]
    return [number / (rate or 25.0) for number in range(len(shown))]


def film_header(path: Path) -> tuple[float, float]:
    """(frames a second, seconds) as the file announces them; 0 where unknown."""
    try:
        with open_film(path) as film:
            rate, length = float(film.streams.video[0].average_rate or 0), (film.duration or 0) / av.time_base
        return rate, length
    except Exception:  # as in times_of: the source says what is wrong with it
        return 0.0, 0.0


def sampled(times: Sequence[float], rate: float | None) -> list[int]:
    """The frame nearest to each tick of `rate` per second, once each; all for None."""
    if rate is None:
        return list(range(len(times)))
    seconds = np.asarray(times)
    ticks = np.arange(int(seconds[-1] * rate + 1e-6) + 1) / rate
    middles = (seconds[1:] + seconds[:-1]) / 2
    return [int(number) for number in np.unique(np.searchsorted(middles, ticks - 1e-6))]


def looks(times: Sequence[float], look: Sequence[float], count: int) -> list[Window] | str:
    """At most `count` windows, evenly spread: the frames nearest to `look` seconds before each, oldest first.

    None spans a gap. Returns why where there is none.
    """
    seconds = np.asarray(times)
    moments, longest = np.sort(np.asarray(look))[::-1], max(look)
    near = 0.6 * float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0  # what counts as that moment's frame
    if longest > seconds[-1] + near:
        return f"{seconds[-1]:.2g} s of film: too short for a look of {longest:g} s"
    ends = np.linspace(longest, seconds[-1], count) if count > 1 else [(longest + seconds[-1]) / 2]
    middles, found = (seconds[1:] + seconds[:-1]) / 2, dict[Window, None]()
    for end in ends:
        wanted = seconds[np.searchsorted(middles, end - 1e-6)] - moments
        window = np.searchsorted(middles, wanted - 1e-6)
        if np.abs(seconds[window] - wanted).max() <= near and len(set(window.tolist())) == len(look):
            found[tuple(window.tolist())] = None
    return list(found) or f"no frames at each of {list(look)} s before any of its moments: gaps, or too few a second"


def windows(taken: Sequence[int], frames: int) -> list[Window]:
    """Without overlap; the rest is dropped. A shorter clip gives one window, its last frame repeated."""
    starts = range(0, max(len(taken) - frames, 0) + 1, frames)
    return [tuple([*taken[start : start + frames], *[taken[-1]] * frames][:frames]) for start in starts]


def clips(
    path: Path,
    wanted: Sequence[Window],
    fit: Callable[[Picture], Picture],
    threads: int = 0,
    times: Sequence[float] = (),
) -> Iterator[tuple[Window, list[Picture] | str]]:
    """T frames per window, or why not. Each window comes as soon as it is whole: memory stays flat.

    fit: gets uint8 (H,W,3) RGB. threads: as in open_film. times: of times_of(); decoding then starts near the first
    window.
    """
    waiting = sorted(wanted, reverse=True)  # the next one last
    numbers = {number for window in wanted for number in window}
    kept: dict[int, Picture | str] = {}
    rgb = ToRgb()
    number = -1
    reason = ""
    try:
        with open_film(path, threads) as container:
            first = waiting[-1][0] if waiting and times else 0
            for number, frame in enumerate(_all_frames(container), _forward(container, first, times) if first else 0):
                if number in numbers:
                    kept[number] = fit(rgb(frame)) if frame else "damaged frame"
                while waiting and waiting[-1][-1] <= number:
                    window = waiting.pop()
                    images = [kept[number] for number in window]
                    whole = [image for image in images if not isinstance(image, str)]
                    yield window, next((image for image in images if isinstance(image, str)), whole)
                    for old in [n for n in kept if not waiting or n < waiting[-1][0]]:
                        del kept[old]
                if not waiting:
                    return
    except Exception as error:  # FFmpeg's errors have no ancestor in common below this one
        reason = f": {one_line(error)}"
    for window in reversed(waiting):
        yield window, f"only {number + 1} frames can be decoded, frame {window[-1]} is wanted{reason}"


def _forward(container: InputContainer, first: int, times: Sequence[float]) -> int:
    """Seek to the last keyframe up to frame `first`; its number, 0 where uncertain."""
    stream = container.streams.video[0]
    base, start = float(stream.time_base or 0), stream.start_time
    if not base or start is None:
        return 0
    try:
        container.seek(start + round(times[first] / base), stream=stream)
        frame = next(container.decode(stream))
        at = -1.0 if frame.pts is None else (frame.pts - start) * base
        number = bisect_left(times, at - base / 2)
        sure = frame.key_frame and number <= first and abs(times[number] - at) < base / 2
        container.seek(start + round(times[first] / base) if sure else 0, stream=stream if sure else None)
    except (StopIteration, av.FFmpegError):
        number, sure = 0, False
        container.seek(0)
    return number if sure else 0


def _all_frames(container: InputContainer) -> Iterator[VideoFrame | None]:
    """None for damaged ones and those that refer to them."""
    broken, intra = False, container.streams.video[0].codec_context.name == "mjpeg"
    for packet in container.demux(video=0):
        try:
            decoded = packet.decode()
        except av.error.InvalidDataError:
            if not intra:  # how many frames it held is not known
                raise
            yield None
            continue
        for frame in decoded:
            broken = frame.is_corrupt or (broken and not frame.key_frame)
            yield None if broken else frame
