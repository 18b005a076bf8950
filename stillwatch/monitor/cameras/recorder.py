"""Buffers the last seconds of packets and cuts clips around events, without re-encoding."""

import contextlib
import io
import threading
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from av.container import OutputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from stillwatch.errors import one_line
from stillwatch.media.decode import Picture

REMUXED = ("h264", "hevc", "vp9", "av1", "mpeg4")  # what MP4 holds and browsers play, mostly
REACH = 12.0  # seconds that an event may have gone on before the rule speaks: its pre-roll starts before them
TICKS = 90_000  # of a second in a clip
JUMP = 2.0  # seconds by which a stream's own time may stray from the clock before it is set right
FRAGMENT = 1_000_000  # microseconds of a clip that a killed writer loses at most
# From this libavformat on, a closed fragmented file is turned into a plain one
HYBRID = av.library_versions["libavformat"] >= (61, 7, 100)
FLAGS = f"frag_keyframe+{'hybrid_fragmented' if HYBRID else 'empty_moov'}+default_base_moof"
GLOBAL_HEADER = 0x0040_0000  # AV_CODEC_FLAG_GLOBAL_HEADER: MP4 keeps the parameter sets apart
ENCODER = "libx264" if "libx264" in av.codecs_available else "mpeg4"


class BufferedPacket(NamedTuple):
    data: bytes
    keyframe: bool
    clock: float  # seconds of the Alarm
    dts: float  # seconds of this buffer, rising
    pts: float
    header: bytes  # codec, size and extradata as a NUT file of one packet, which outlives its stream


class Clip:
    """Written as <path>.part until closed."""

    def __init__(self, event: str, path: Path, until: float | None):
        self.event, self.path, self.until = event, path, until
        self.part = path.with_name(path.name + ".part")
        self.started = False
        self.start = self.last = 0.0  # clock of its first and last packet
        self._dts = -1
        self._container: OutputContainer | None = None

    def write(self, item: BufferedPacket) -> None:
        """Raises OSError where the disk fails."""
        if self._container is None:
            if not item.keyframe:
                return
            self.part.parent.mkdir(parents=True, exist_ok=True)
            options = {"movflags": FLAGS, "frag_duration": str(FRAGMENT), "flush_packets": "1"}
            self._container = av.open(str(self.part), "w", format="mp4", container_options=options)
            with av.open(io.BytesIO(item.header), format="nut") as template:
                self._stream = self._container.add_stream_from_template(template.streams.video[0], opaque=True)
                self._container.start_encoding()
            self.started, self.start, self._zero = True, item.clock, item.dts
        packet = av.Packet(item.data)
        packet.stream, packet.time_base = self._stream, Fraction(1, TICKS)
        self._dts = max(self._dts + 1, round((item.dts - self._zero) * TICKS))
        packet.dts, packet.pts = self._dts, max(self._dts, round((item.pts - self._zero) * TICKS))
        packet.is_keyframe = item.keyframe
        self.last = item.clock
        self._container.mux(packet)

    def close(self) -> bool:
        """False: nothing was written; no file."""
        if self._container is None:
            return False
        container, self._container = self._container, None
        with contextlib.suppress(OSError, ValueError):  # no room for the index: the fragments are there all the same
            container.close()
        if not self.part.is_file() or not self.part.stat().st_size:
            self.part.unlink(missing_ok=True)
            return False
        self.part.replace(self.path)
        return True


class PacketBuffer:
    """Thread-safe."""

    def __init__(self, pre: float, mebibytes: int, longest: float, report: Callable[..., None]):
        """pre: seconds before an event. longest: of a clip. report: takes ("clip", event, seconds, whole), ("missed",
        event) where there is none, or ("trouble", words).
        """
        self.pre, self.bytes, self.longest = pre, mebibytes << 20, longest
        self._report = report
        self._ring: deque[BufferedPacket] = deque()
        self._size = 0
        self._clips: dict[str, Clip] = {}
        self._lock = threading.RLock()

    def push(self, item: BufferedPacket) -> None:
        with self._lock:
            if self._ring and self._ring[-1].header is not item.header:
                self.cut()
                self._ring.clear()
                self._size = 0
            self._ring.append(item)
            self._size += len(item.data)
            for clip in list(self._clips.values()):
                self._feed(clip, item)
            # Drop whole groups of pictures that are too old for any event, or for which there is no room
            edge = item.clock - self.pre - REACH
            while len(self._ring) > 1 and (self._ring[0].clock < edge or self._size > self.bytes):
                second = next((n for n in range(1, len(self._ring)) if self._ring[n].keyframe), len(self._ring) - 1)
                if self._size <= self.bytes and self._ring[second].clock >= edge:
                    return
                for _ in range(second):
                    self._size -= len(self._ring.popleft().data)

    def record(self, event: str, path: Path, since: float, until: float | None) -> None:
        """Begin a clip at the last keyframe before `since`, or the oldest one kept."""
        with self._lock:
            if event in self._clips:
                return
            clip = self._clips[event] = Clip(event, path, until)
            if self._ring and self._ring[-1].clock >= since:
                keyframes = [item.clock for item in self._ring if item.keyframe and item.clock <= since]
                start = max(keyframes, default=self._ring[0].clock)
                for item in list(self._ring):
                    if item.clock >= start and event in self._clips:
                        self._feed(clip, item)

    def finish(self, event: str, until: float) -> None:
        """End the clip at `until` on the clock, or at once if that has passed."""
        with self._lock:
            if clip := self._clips.get(event):
                clip.until = until
                if clip.started and clip.last >= until:
                    self._end(clip, whole=True)

    def cut(self) -> None:
        """The stream broke: end begun clips; keep the ring."""
        with self._lock:
            for clip in [clip for clip in self._clips.values() if clip.started]:
                self._end(clip, whole=False)

    def close(self) -> None:
        with self._lock:
            for clip in list(self._clips.values()):
                self._end(clip, whole=False)

    def _feed(self, clip: Clip, item: BufferedPacket) -> None:
        if clip.until is not None and item.clock > clip.until:
            self._end(clip, whole=True)
        elif clip.started and item.clock - clip.start > self.longest:
            self._end(clip, whole=False)
        else:
            try:
                clip.write(item)
            except (OSError, ValueError) as error:  # av's errors are both
                self._report("trouble", f"clip of {clip.event}: {one_line(error)}")
                self._end(clip, whole=False)

    def _end(self, clip: Clip, whole: bool) -> None:
        del self._clips[clip.event]
        if clip.close():
            self._report("clip", clip.event, round(clip.last - clip.start, 3), whole)
        else:
            self._report("missed", clip.event)


class Remux:
    def __init__(self, buffer: PacketBuffer, stream: VideoStream):
        self._buffer, self._stream = buffer, stream
        self._codec, self._base = stream.codec_context.name, float(stream.time_base or 0)
        self._header: bytes | None = None
        self._sets = b""
        self._timeline = Timeline()

    def push(self, packet: Packet, clock: float) -> None:
        """After decoding the packet: only then the stream knows a new size."""
        if not packet.size:
            return
        data, keyframe = bytes(packet), bool(packet.is_keyframe)
        if keyframe:
            sets = parameter_sets(data, self._codec)
            if self._header is None or (sets and sets != self._sets):
                self._sets, self._header = sets, _nut(data, self._add_stream)
        if self._header is None:
            return
        own = None if packet.dts is None else packet.dts * self._base
        ahead = 0.0 if packet.pts is None or own is None else max(0.0, packet.pts * self._base - own)
        dts = self._timeline.at(own, clock)
        self._buffer.push(BufferedPacket(data, keyframe, clock, dts, dts + ahead, self._header))

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        copy, codec = container.add_stream_from_template(self._stream, opaque=True), self._stream.codec_context
        if self._sets:
            copy.codec_context.extradata = self._sets
        copy.codec_context.width, copy.codec_context.height = codec.width, codec.height
        return copy


class Encode:
    """Pictures -> H.264, for codecs that MP4 cannot hold and for blurred cameras."""

    def __init__(self, buffer: PacketBuffer, fps: float):
        self._buffer, self._fps = buffer, max(1, round(fps))
        self._size = (0, 0)
        self._header: bytes | None = None
        self._timeline = Timeline()
        self._count = 0

    def push(self, image: Picture, clock: float) -> None:
        """image: uint8 (H,W,3) RGB; drops an odd last row or column."""
        height, width = image.shape[0] & ~1, image.shape[1] & ~1
        if not height or not width:
            return
        if self._size != (height, width):
            self._size, self._header, self._count = (height, width), None, 0
            self._codec: VideoCodecContext = VideoCodecContext.create(ENCODER, "w")  # type: ignore[assignment]
            self._configure(self._codec)
            self._codec.flags |= GLOBAL_HEADER
        frame = av.VideoFrame.from_ndarray(image[:height, :width], format="rgb24").reformat(format="yuv420p")
        seconds = self._timeline.at(None, clock)
        frame.time_base, frame.pts = Fraction(1, TICKS), round(seconds * TICKS)
        frame.pict_type = 1 if self._count % self._fps == 0 else 0  # a keyframe each second
        self._count += 1
        for packet in self._codec.encode(frame):
            data = bytes(packet)
            if self._header is None:
                self._header = _nut(data, self._add_stream)
            item = BufferedPacket(data, bool(packet.is_keyframe), clock, seconds, seconds, self._header)
            self._buffer.push(item)

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        stream: VideoStream = container.add_stream(ENCODER, rate=self._fps)  # type: ignore[assignment]
        self._configure(stream.codec_context)
        return stream

    def _configure(self, codec: VideoCodecContext) -> None:
        (codec.height, codec.width), codec.pix_fmt = self._size, "yuv420p"
        codec.time_base, codec.framerate = Fraction(1, TICKS), Fraction(self._fps)
        codec.thread_count, codec.gop_size = 1, 10 * self._fps
        if codec.name == "libx264":
            codec.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "26"}
        else:
            codec.bit_rate = 2 * codec.width * codec.height


class Timeline:
    """Rising seconds that follow the clock, whatever a stream's time stamps do."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last: tuple[float | None, float] | None = None  # the stream's own time, the clock's

    def at(self, own: float | None, clock: float) -> float:
        if self._last is not None:
            last_own, last_clock = self._last
            step = clock - last_clock
            if own is not None and last_own is not None and own > last_own and abs(own - last_own - step) < JUMP:
                step = own - last_own
            self._seconds += max(step, 1e-3)
        self._last = (own, clock)
        return self._seconds


def parameter_sets(data: bytes, codec: str) -> bytes:
    """Before a keyframe of an H.264 or HEVC byte stream (Annex B), else b""."""
    if codec not in ("h264", "hevc") or not data.startswith((b"\0\0\1", b"\0\0\0\1")):
        return b""
    sets = b""  # NAL types by ITU-T H.264 and H.265, table 7-1 of each
    for unit in filter(None, data[:4096].split(b"\0\0\1")[1:]):
        number = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
        if number in ((7, 8) if codec == "h264" else (32, 33, 34)):
            sets += b"\0\0\0\1" + unit.rstrip(b"\0")
        elif number in ((1, 5) if codec == "h264" else range(0, 22)):
            break  # the picture itself
    return sets


def _nut(data: bytes, add_stream: Callable[[OutputContainer], VideoStream]) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="nut") as container:
        stream = add_stream(container)
        container.start_encoding()
        packet = av.Packet(data)
        packet.stream, packet.time_base = stream, Fraction(1, TICKS)
        packet.pts, packet.dts, packet.is_keyframe = 0, 0, True
        container.mux(packet)  # a NUT file cannot be read without one
    return file.getvalue()
