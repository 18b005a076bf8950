"""Tape: the last seconds of packets, and clips made of them: from before an event to after it, without re-encoding.

In: packets as they leave the demuxer, or pictures that are encoded once. Out: MP4 files, each whole or marked as cut.
Called by the eye, from its two threads. It knows no camera, no event but its name, and no clock but the packets' own.
"""

import io
import threading
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from stillwatch.monitor.cameras.source import Picture

REMUXED = ("h264", "hevc", "vp9", "av1", "mpeg4")  # what MP4 holds and browsers play, mostly
REACH = 12.0  # seconds that an event may have gone on before the rule speaks: its pre-roll starts before them
TICKS = 90_000  # of a second in a clip
JUMP = 2.0  # seconds by which a stream's own time may stray from the clock before it is set right
FRAGMENT = 1_000_000  # microseconds of a clip that a killed writer loses at most
HYBRID = (61, 7, 100)  # libavformat from which on a closed fragmented file is turned into a plain one
Say = Callable[..., None]


class StreamHeader:
    """What a decoder must know before the first packet; packets of two heads are never in one clip."""

    def __init__(self, nut: bytes):
        self.nut = nut  # a NUT file of one packet: codec, size, extradata; it outlives the stream that it is of


class Kept(NamedTuple):
    """One packet. Times in seconds; clock: the Alarm's, dts and pts: of this tape, dts always rising."""

    data: bytes
    key: bool
    clock: float
    dts: float
    pts: float
    head: StreamHeader


class Clip:
    """One file that is being written, as <path>.part until it is closed."""

    def __init__(self, event: str, path: Path, since: float, until: float | None):
        self.event, self.path, self.since, self.until = event, path, since, until
        self.part = path.with_name(path.name + ".part")
        self.head: StreamHeader | None = None
        self.start = self.last = 0.0
        self._dts = -1
        self._container: Any = None
        self._stream: Any = None

    def write(self, kept: Kept) -> None:
        """Raises OSError where the disk does not take it."""
        import av

        if self._container is None:
            if not kept.key:
                return
            self._begin(kept)
        packet = av.Packet(kept.data)
        packet.stream = self._stream
        packet.time_base = Fraction(1, TICKS)
        dts = max(self._dts + 1, round((kept.dts - self._zero) * TICKS))
        packet.dts, packet.pts = dts, max(dts, round((kept.pts - self._zero) * TICKS))
        packet.is_keyframe = kept.key
        self._dts, self.last = dts, kept.clock
        self._container.mux(packet)

    def _begin(self, kept: Kept) -> None:
        import av

        flags = "frag_keyframe+empty_moov+default_base_moof"
        if av.library_versions["libavformat"] >= HYBRID:
            flags = "frag_keyframe+hybrid_fragmented+default_base_moof"
        self.part.parent.mkdir(parents=True, exist_ok=True)
        options = {"movflags": flags, "frag_duration": str(FRAGMENT), "flush_packets": "1"}
        self._container = av.open(str(self.part), "w", format="mp4", container_options=options)
        with av.open(io.BytesIO(kept.head.nut), format="nut") as like:
            self._stream = _stream_like(self._container, like.streams.video[0])
            self._container.start_encoding()
        self.head, self.start, self._zero = kept.head, kept.clock, kept.dts

    def close(self) -> bool:
        """Finalise it; False where nothing was written, and then there is no file."""
        if self._container is None:
            return False
        try:
            self._container.close()
        except (OSError, ValueError):  # no room for the index: the fragments are there all the same
            pass
        finally:
            self._container = self._stream = None
        if not self.part.is_file() or not self.part.stat().st_size:
            self.part.unlink(missing_ok=True)
            return False
        self.part.replace(self.path)
        return True


class PacketBuffer:
    """A ring of packets and the clips that grow from it. Any thread may call it."""

    def __init__(self, pre: float, mebibytes: int, longest: float, say: Say):
        """pre: seconds before an event. say("clip"|"trouble"|"missed", **fields) is called when something is done."""
        self.pre, self.bytes, self.longest = pre, mebibytes << 20, longest
        self._say = say
        self._ring: deque[Kept] = deque()
        self._size = 0
        self._clips: dict[str, Clip] = {}
        self._lock = threading.RLock()

    def push(self, kept: Kept) -> None:
        with self._lock:
            if self._ring and self._ring[-1].head is not kept.head:
                self._cut()
                self._ring.clear()
                self._size = 0
            self._ring.append(kept)
            self._size += len(kept.data)
            for clip in list(self._clips.values()):
                self._feed(clip, kept)
            self._trim()

    def record(self, event: str, path: Path, since: float, until: float | None) -> None:
        """Begin a clip with the last keyframe before `since`, or the first that is still known."""
        with self._lock:
            if event in self._clips:
                return
            clip = self._clips[event] = Clip(event, path, since, until)
            if self._ring and self._ring[-1].clock >= since:
                for kept in list(self._from(since)):
                    if event in self._clips:
                        self._feed(clip, kept)

    def finish(self, event: str, until: float) -> None:
        """The clip ends at that second of the clock; at once where it has passed."""
        with self._lock:
            clip = self._clips.get(event)
            if clip is None:
                return
            clip.until = until
            if clip.head is not None and clip.last >= until:
                self._end(clip, whole=True)

    def cut(self) -> None:
        """The stream broke off: what is being written ends here. The ring stays: an event may still want it."""
        with self._lock:
            self._cut()

    def close(self) -> None:
        """Finalise everything."""
        with self._lock:
            for clip in list(self._clips.values()):
                self._end(clip, whole=False)

    @property
    def held(self) -> tuple[float, int]:
        """(seconds, bytes) in the ring."""
        with self._lock:
            return (self._ring[-1].clock - self._ring[0].clock if self._ring else 0.0), self._size

    def _from(self, since: float) -> Iterator[Kept]:
        start = 0
        for number, kept in enumerate(self._ring):
            if kept.key and kept.clock <= since:
                start = number
        yield from (kept for number, kept in enumerate(self._ring) if number >= start)

    def _feed(self, clip: Clip, kept: Kept) -> None:
        if clip.until is not None and kept.clock > clip.until:
            self._end(clip, whole=True)
            return
        if clip.head is not None and kept.clock - clip.start > self.longest:
            self._end(clip, whole=False)
            return
        try:
            clip.write(kept)
        except (OSError, ValueError) as error:  # av's errors are both
            self._say("trouble", words=f"clip of {clip.event}: {getattr(error, 'strerror', None) or error}")
            self._end(clip, whole=False)

    def _cut(self) -> None:
        for clip in list(self._clips.values()):
            if clip.head is not None:  # one that has not begun waits for the stream to come back
                self._end(clip, whole=False)

    def _end(self, clip: Clip, whole: bool) -> None:
        del self._clips[clip.event]
        if clip.close():
            seconds = round(clip.last - clip.start, 3)
            self._say("clip", event=clip.event, path=str(clip.path), seconds=seconds, whole=whole)
        else:
            self._say("missed", event=clip.event)

    def _trim(self) -> None:
        """Drop whole groups of pictures that nobody can ask for any more, or for which there is no room."""
        edge = self._ring[-1].clock - self.pre - REACH
        while len(self._ring) > 1 and (self._ring[0].clock < edge or self._size > self.bytes):
            second = next((n for n in range(1, len(self._ring)) if self._ring[n].key), len(self._ring) - 1)
            if self._size <= self.bytes and self._ring[second].clock >= edge:
                return
            for _ in range(second):
                self._size -= len(self._ring.popleft().data)


class Remux:
    """A stream's own packets -> the tape."""

    def __init__(self, tape: PacketBuffer, stream: Any):
        self._tape, self._stream = tape, stream
        self._codec, self._base = stream.codec_context.name, float(stream.time_base)
        self._head: StreamHeader | None = None
        self._sets = b""
        self._line = Line()

    def push(self, packet: Any, clock: float) -> None:
        """After the packet was decoded: only then does the stream know a new size."""
        if not packet.size:
            return
        data = bytes(packet)
        key = bool(packet.is_keyframe)
        if key:
            sets = parameter_sets(data, self._codec)
            if self._head is None or (sets and sets != self._sets):
                self._head, self._sets = StreamHeader(_head(self._stream, sets, data)), sets
        if self._head is None:
            return
        dts, pts = packet.dts, packet.pts
        ahead = 0.0 if dts is None or pts is None else (pts - dts) * self._base
        at = self._line.at(None if dts is None else dts * self._base, clock)
        self._tape.push(Kept(data, key, clock, at, at + max(0.0, ahead), self._head))


class Encode:
    """Pictures -> H.264 on the tape, for sources whose packets no clip can hold, and for what must be blurred."""

    def __init__(self, tape: PacketBuffer, fps: float):
        self._tape, self._fps = tape, max(1, round(fps))
        self._size = (0, 0)
        self._codec: Any = None
        self._head: StreamHeader | None = None
        self._line = Line()
        self._count = 0

    def push(self, image: Picture, clock: float) -> None:
        """image: uint8 (H,W,3) RGB of any size; an odd last row or column is left out."""
        import av

        height, width = image.shape[0] & ~1, image.shape[1] & ~1
        if not height or not width:
            return
        if self._size != (height, width):
            self._codec = self._settings(av.CodecContext.create(_encoder(), "w"), height, width)
            self._codec.flags |= 0x0040_0000  # AV_CODEC_FLAG_GLOBAL_HEADER: MP4 keeps the parameter sets apart
            self._size, self._head, self._count = (height, width), None, 0
        frame = av.VideoFrame.from_ndarray(image[:height, :width], format="rgb24").reformat(format="yuv420p")
        at = self._line.at(None, clock)
        frame.time_base, frame.pts = Fraction(1, TICKS), round(at * TICKS)
        frame.pict_type = 1 if self._count % self._fps == 0 else 0  # a keyframe each second
        self._count += 1
        for packet in self._codec.encode(frame):
            data, key = bytes(packet), bool(packet.is_keyframe)
            if self._head is None:
                self._head = self._begin(data)
            self._tape.push(Kept(data, key, clock, at, at, self._head))

    def _settings(self, codec: Any, height: int, width: int) -> Any:
        codec.height, codec.width, codec.pix_fmt = height, width, "yuv420p"
        codec.time_base, codec.framerate = Fraction(1, TICKS), Fraction(self._fps)
        codec.thread_count, codec.gop_size = 1, 10 * self._fps
        if codec.name == "libx264":
            codec.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "26"}
        else:
            codec.bit_rate = 2 * width * height
        return codec

    def _begin(self, data: bytes) -> StreamHeader:
        """The head by an encoder of the same settings: a container takes no other's word for them."""
        import av

        held = io.BytesIO()
        with av.open(held, "w", format="nut") as container:
            stream = container.add_stream(_encoder(), rate=self._fps)
            self._settings(stream.codec_context, *self._size)
            container.start_encoding()
            _mux_one(container, stream, data)
        return StreamHeader(held.getvalue())


def _encoder() -> str:
    import av

    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


class Line:
    """Seconds that always rise and keep step with the clock, whatever a stream's own time stamps do."""

    def __init__(self) -> None:
        self._own: float | None = None  # what the stream last said
        self._clock = self._at = 0.0
        self._begun = False

    def at(self, own: float | None, clock: float) -> float:
        if not self._begun:
            self._begun = True
        else:
            step = clock - self._clock
            if own is not None and self._own is not None and abs(own - self._own - step) < JUMP and own > self._own:
                step = own - self._own
            self._at += max(step, 1e-3)
        self._own, self._clock = own, clock
        return self._at


def parameter_sets(data: bytes, codec: str) -> bytes:
    """The parameter sets that stand before a keyframe in an H.264 or HEVC byte stream (Annex B), else b"".

    H.264: NAL types 7 and 8 (ITU-T H.264, table 7-1); HEVC: 32, 33, 34 (ITU-T H.265, table 7-1).
    """
    if codec not in ("h264", "hevc") or not data.startswith((b"\0\0\1", b"\0\0\0\1")):
        return b""
    found = b""
    for unit in data[:4096].split(b"\0\0\1")[1:]:
        if not unit:
            continue
        number = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
        if number in ((7, 8) if codec == "h264" else (32, 33, 34)):
            found += b"\0\0\0\1" + unit.rstrip(b"\0")
        elif number in ((1, 5) if codec == "h264" else range(0, 22)):
            break  # the picture itself
    return found


def _head(stream: Any, sets: bytes, data: bytes) -> bytes:
    """A NUT file that holds what decoders must know of this stream, and one packet: it cannot be read without."""
    import av

    held = io.BytesIO()
    with av.open(held, "w", format="nut") as container:
        copy = _stream_like(container, stream)
        if sets:
            copy.codec_context.extradata = sets
        now = stream.codec_context
        copy.codec_context.width, copy.codec_context.height = now.width, now.height
        container.start_encoding()
        _mux_one(container, copy, data)
    return held.getvalue()


def _stream_like(container: Any, stream: Any) -> Any:
    if hasattr(container, "add_stream_from_template"):  # PyAV from 14 on
        return container.add_stream_from_template(stream, opaque=True)
    return container.add_stream(template=stream)


def _mux_one(container: Any, stream: Any, data: bytes) -> None:
    import av

    packet = av.Packet(data)
    packet.stream, packet.time_base = stream, Fraction(1, TICKS)
    packet.pts, packet.dts, packet.is_keyframe = 0, 0, True
    container.mux(packet)
