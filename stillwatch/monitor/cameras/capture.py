"""A camera's child process, `python -m …capture FD`: decodes, sends the newest frame, buffers packets."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import cv2
from av.container import InputContainer
from av.video.stream import VideoStream

from stillwatch.bundle import Input
from stillwatch.errors import UserError
from stillwatch.media.decode import Picture, ToRgb, WholeFrames
from stillwatch.media.image import View, fit, highlight, to_aspect, zoned, zoned_whole
from stillwatch.monitor.cameras import source
from stillwatch.monitor.cameras.blur import Blur
from stillwatch.monitor.cameras.channel import Channel
from stillwatch.monitor.cameras.health import PictureHealth
from stillwatch.monitor.cameras.reading import FaceStream, reader
from stillwatch.monitor.cameras.recorder import REMUXED, Encode, PacketBuffer, Remux
from stillwatch.monitor.cameras.source import FileClock, PlaybackClock, RateLimiter, VideoFrame
from stillwatch.monitor.config import CameraConfig, Keep

if TYPE_CHECKING:
    from stillwatch.inference.face_reader import NetFile

PULSE = 0.5  # seconds between two signs of life
STEADY = 5.0  # seconds of pictures after which the back-off begins anew
SHARE, PICTURES = 0.1, 30  # of so many pictures, about: where more arrive damaged, it is said
FRESH = 1.0  # seconds after which evidence is no longer shown
WIDEST = 1920  # pixels of the longer side of what people see
PREVIEW, THUMBNAIL = (960, 75), (640, 88)  # pixels of the longer side, JPEG quality


class FrameSender:
    """Sends the newest frame, and what people see. One thread decodes and offers, another acknowledges."""

    def __init__(self, process: "CaptureProcess", takes: Input):
        self.dropped = 0
        self._process, self._takes = process, takes
        self._shape: tuple[int, int] | None = None  # of the newest picture's crop
        self._health = PictureHealth(process.live)
        self._changed = threading.Condition()
        self._credit = self._preview_credit = True
        self._waiting: tuple[int, VideoFrame] | None = None
        self._newest: VideoFrame | None = None
        self._events: list[str] = []  # that want a thumbnail
        self._preview: RateLimiter | None = None
        self._points = self._where = False  # what is drawn on what viewers see
        self._map: tuple[Picture, float] | None = None  # uint8 (h,w) of the evidence, and time.monotonic() of it
        self._view = View()  # of the net

    def offer(self, index: int, frame: VideoFrame, wait: bool) -> bool:
        """Send once the last was acknowledged, unless a newer one comes. wait (a file): block. False: told to stop."""
        with self._changed:
            self._newest = frame
            self._send_thumbnails()
            if self._preview and self._preview_credit and self._preview.due(time.monotonic()):
                self._preview_credit = False
                image = self._process.public(frame)
                if self._where:
                    image = self._highlighted(image)
                if self._points:
                    image = self._process.faces.draw(image, image.shape[1] / frame.rgb().shape[1])
                self._process.send("jpeg", jpeg(image, *PREVIEW))
            while wait and not self._credit:
                if self._process.stop.is_set():
                    return False
                self._changed.wait(PULSE)
                self._process.pulse()
            self.dropped += self._waiting is not None
            self._waiting = (index, frame)
            self._send()
        return True

    def forget(self) -> None:
        with self._changed:
            self._waiting = None  # too old to be looked at
            self._process.faces.forget()

    def handle(self, *message: Any) -> bool:
        """False for a message for others."""
        with self._changed:
            match message:
                case ("seen",):
                    self._credit = True
                    self._send()
                    self._changed.notify_all()
                case ("shown",):
                    self._preview_credit = True
                case ("preview", fps, points, where):
                    self._preview, self._points, self._where = RateLimiter(fps) if fps else None, points, where
                case ("evidence", map):
                    self._map = (map, time.monotonic())
                case ("snap", event):
                    self._events.append(event)
                    self._send_thumbnails()
                case _:
                    return False
        return True

    def _send(self) -> None:
        if not self._credit or self._waiting is None:
            return
        (index, frame), self._waiting, self._credit = self._waiting, None, False
        *_, height, width, channels = self._takes.shape
        config = self._process.config
        image = zoned(frame.rgb(), config.ignore, config.crop)
        if self._shape != image.shape[:2]:
            self._shape = (image.shape[0], image.shape[1])
            self._process.send("shape", *self._shape)
        whole, self._view = frame.rgb().shape, View(*(config.crop or ()))
        if self._takes.aspect and config.fit:
            image = to_aspect(image, self._takes.aspect, config.fit)
            self._view = self._view.fitted(whole, (1.0, self._takes.aspect), config.fit)
        self._view = self._view.fitted(whole, (height, width), self._takes.fit)
        image = fit(image, (height, width), self._takes.fit, channels)
        status = self._health.status(frame, self._process.keyframes)
        readings = tuple(
            (at, signals.flat() if signals else ()) for at, signals in self._process.faces.take(frame.time)
        )
        self._process.send("frame", index, frame.time, image, status, frame.captured, readings)

    def _send_thumbnails(self) -> None:
        if self._events and self._newest is not None:
            image = jpeg(self._highlighted(self._process.public(self._newest)), *THUMBNAIL)
            for event in self._events:
                self._process.send("thumbnail", event, image)
            self._events.clear()

    def _highlighted(self, image: Picture) -> Picture:
        if self._map is None or time.monotonic() - self._map[1] > FRESH:
            return image
        return highlight(image, self._map[0], self._view)


class CaptureProcess:
    """One thread reads the source, another the parent: a hanging stream keeps no clip open."""

    def __init__(
        self,
        channel: Channel,
        config: CameraConfig,
        keep: Keep,
        takes: Input,
        faces: "NetFile | bool",
        position: tuple[int, float],
    ):
        """faces: read the driver's, with that net. position: frames and last second of a file that a killed process has
        shown.
        """
        self.config = config
        self.stop = threading.Event()
        self.live = source.is_live(config.source)
        self.keyframes = 0
        self._channel = channel
        net = None if isinstance(faces, bool) else faces
        self.faces = FaceStream(reader(config.source, net) if faces else None, self.live)
        self._sender = FrameSender(self, takes)
        self._buffer = PacketBuffer(keep.pre, keep.memory, keep.longest, self.send) if config.clips else None
        self._encode = Encode(self._buffer, config.fps) if self._buffer else None
        self._remux: Remux | None = None
        self._position = position
        self._index = 0
        self._limiter = RateLimiter(config.fps)
        self._blur = Blur(config.blur)
        self._public: tuple[VideoFrame, Picture] | None = None
        self._blurring = threading.Lock()
        self._pulsed = 0.0
        self._bytes = self._reconnects = self._damaged = 0
        self._damage, self._said = 0.0, False  # the share of damaged pictures lately; whether it was said to be large
        self._trouble = ""
        self._software = config.decode == "software"  # or that it is decoded so was said

    # --- messages

    def send(self, *message: object) -> None:
        try:
            self._channel.send(*message)
        except OSError:  # the parent is gone, and so is the reason to be here
            self.leave()

    def pulse(self) -> None:
        now = time.monotonic()
        if now - self._pulsed >= PULSE:
            self._pulsed = now
            faces = (self.faces.count, round(1e3 * self.faces.spent))
            self.send("pulse", self._sender.dropped, self._reconnects, self._bytes, self._damaged, *faces)

    def public(self, frame: VideoFrame) -> Picture:
        with self._blurring:
            if self._public is None or self._public[0] is not frame:
                image = shrunk(frame.rgb(), WIDEST)
                known = self.faces.boxes(image.shape[1] / frame.rgb().shape[1])
                self._public = (frame, self._blur(image, frame.time, known))
            return self._public[1]

    def leave(self) -> None:
        """Close the clips and end the process, even while another thread hangs."""
        self.stop.set()
        with contextlib.suppress(Exception):
            if self._buffer:
                self._buffer.close()
        os._exit(0)

    def listen(self) -> None:
        while True:
            try:
                messages = self._channel.read()
            except EOFError:
                self.leave()
            for message in messages:
                self.handle(*message)

    def handle(self, *message: Any) -> None:
        if self._sender.handle(*message):
            return
        match message:
            case ("stop",):
                self.leave()
            case ("record", event, path, since, until) if self._buffer:
                self._buffer.record(event, Path(path), since, until)
            case ("finish", event, until) if self._buffer:
                self._buffer.finish(event, until)
            case (_, event, *_):
                self.send("missed", event)

    def _warn(self, words: str) -> None:
        if words != self._trouble:  # said once, not with every packet
            self._trouble = words
            self.send("trouble", words)

    def _count(self, damaged: bool) -> None:
        self._damaged += damaged
        self._damage += (damaged - self._damage) / PICTURES
        if self._damage > SHARE if not self._said else self._damage < SHARE / 2:
            self._said = not self._said
            self.send("damaged", self._said)

    def _spoilt(self, words: str) -> None:
        if not self._damaged:  # said once; the share is said where it is large
            self._warn(words)
        self._count(damaged=True)

    # --- frames

    def watch(self) -> None:
        if self.live:
            self._watch_stream()
        elif source.kind(self.config.source) == "file":
            self._watch_file()
        else:
            self._watch_drawn()
        self.send("ended", "read to its end")

    def _watch_stream(self) -> None:
        waits, lost = source.backoff(*self.config.backoff), False
        while not self.stop.is_set():
            self.pulse()
            began, seen, stalled = time.monotonic(), None, False
            try:
                with self._open() as container:
                    for seen in self._decode_stream(container):
                        if lost:
                            self._reconnects, lost, self._pulsed = self._reconnects + 1, False, 0.0
                        if seen - began > STEADY:
                            waits = source.backoff(*self.config.backoff)
                words = "the stream ended"
            except Stalled as error:
                words, stalled = str(error), True
            except source.TIMED_OUT:
                words, stalled = f"no picture for {self.config.stall:g} s", True
            except Exception as error:  # FFmpeg's errors have no other common ancestor
                words = source.open_error(error, self.config.source)
            if self._buffer:
                self._buffer.cut()
            self._sender.forget()
            self.send("lost", words, stalled)
            lost = True
            # A hung attempt has already waited
            spent = time.monotonic() - began if seen is None else 0.0
            self.stop.wait(max(0.0, next(waits) - spent))

    def _open(self) -> InputContainer:
        config = self.config
        found = source.hardware(config.decode) if config.decode != "software" else ""
        chosen = None if isinstance(found, str) else found
        container = source.open_video(config.source, config.stall, config.transport, chosen)
        codec = container.streams.video[0].codec_context
        if not self._software and not codec.is_hwaccel:
            self._software = True
            why = f"it cannot decode {codec.name}" if chosen else found
            self.send("trouble", f'decode = "{config.decode}": {why}; decoded in software')
        return container

    def _decode_stream(self, container: InputContainer) -> Iterator[float]:
        """Yields time.monotonic() of each good frame. Raises Stalled."""
        stream = container.streams.video[0]
        self._open_remux(stream)
        intra = stream.codec_context.name in source.INTRA
        patience = self.config.stall + (1 / self.config.fps if intra else 0.0)
        bursts = bool(source.BURSTS.intersection(container.format.name.split(",")))
        clock = PlaybackClock(1.0 if bursts else 0.0, longest=self.config.stall)
        to_rgb, started = ToRgb(), False
        # Errors before the first keyframe are normal
        whole = WholeFrames(lambda words: self._spoilt(words) if started or intra else None)
        arrivals: dict[int | None, float] = {}
        good = time.monotonic()
        for packet in source.packets(container, self.config.stall):
            self.pulse()
            if packet.dts is not None and not self._hold(clock, float(packet.dts * packet.time_base)):
                return
            now = time.monotonic()
            if packet.stream.index != stream.index or not packet.size:
                if now - good > patience:
                    raise Stalled(f"no picture for {self.config.stall:g} s")
                continue
            self._bytes += packet.size
            self.keyframes += bool(packet.is_keyframe)
            arrivals[packet.pts] = now
            thinned = intra and self.faces.read is None  # before decoding; faces are read at the camera's own rate
            if thinned and not self._limiter.due(now):
                continue
            frames = whole(packet)
            if thinned and not frames:  # the next one takes its turn
                self._limiter = RateLimiter(self.config.fps)
            for raw in frames:
                good, started = arrivals.get(raw.pts, now), True
                self._count(damaged=False)
                frame = VideoFrame(raw, good, good, to_rgb)
                self._read_face(frame, good)
                if thinned or self._limiter.due(good):
                    self._sender.offer(self._index, frame, wait=False)
                    self._record(frame)
                self._index += 1
                yield good
            if len(arrivals) > 64:  # decoders reorder by at most 16
                arrivals = {pts: when for pts, when in arrivals.items() if now - when < 5}
            if self._remux:
                self._remux.push(packet, now)
            if now - good > patience:
                raise Stalled(f"no whole picture for {self.config.stall:g} s")

    def _watch_file(self) -> None:
        clock, to_rgb = PlaybackClock(self.config.speed), ToRgb()
        start, again, whole = 0.0, True, WholeFrames(self._spoilt)
        while again:
            with self._open() as container:
                stream = container.streams.video[0]
                self._open_remux(stream)
                packet_clock, frame_clock = FileClock(stream, start), FileClock(stream, start)
                for packet in container.demux(stream):
                    for raw in whole(packet):
                        self._count(damaged=False)
                        frame = VideoFrame(raw, frame_clock.time(raw), 0.0, to_rgb)
                        self._read_face(frame, frame.time)
                        if self._limiter.due(frame.time) and not self._show(frame, clock):
                            return
                        self.pulse()
                    if packet.size:
                        self._bytes += packet.size
                        if self._remux:
                            self._remux.push(packet, packet_clock.time(packet))
                if not frame_clock.count:
                    raise ValueError("there is no picture in it")
                start, again = frame_clock.last + frame_clock.step, self.config.loop

    def _watch_drawn(self) -> None:
        clock, offset = PlaybackClock(self.config.speed), 0.0
        folder = source.kind(self.config.source) == "folder"
        if not folder and self._position[0]:  # drawing again up to there could take hours
            offset, self._index = self._position[1] + 1 / self.config.fps, self._position[0]
            self._position = (0, 0.0)
        for seconds, image in source.drawn(self.config.source, self.config.fps, self._warn, self.config.loop):
            frame = VideoFrame(image, offset + seconds, 0.0)
            self._read_face(frame, seconds)
            if (folder or self._limiter.due(frame.time)) and not self._show(frame, clock):
                return
            self.pulse()

    def _read_face(self, frame: VideoFrame, within: float) -> None:
        zones = self.config.ignore, self.config.crop
        self.faces.look(lambda: zoned_whole(frame.rgb(), *zones), frame.time, within)

    def _show(self, frame: VideoFrame, clock: PlaybackClock) -> bool:
        """False: told to stop."""
        index, self._index = self._index, self._index + 1
        if index >= self._position[0]:  # else an earlier process has shown it
            if not self._hold(clock, frame.time):
                return False
            frame.captured = time.monotonic()
            if not self._sender.offer(index, frame, wait=True):
                return False
        self._record(frame)
        return True

    def _hold(self, clock: PlaybackClock, seconds: float) -> bool:
        """False: told to stop."""
        while (left := clock.wait(seconds, time.monotonic())) > 0:
            if self.stop.wait(min(left, PULSE)):
                return False
            self.pulse()
        return True

    def _record(self, frame: VideoFrame) -> None:
        if self._encode and not self._remux:
            self._encode.push(self.public(frame), frame.time)

    def _open_remux(self, stream: VideoStream) -> None:
        own = self.config.blur == "none" and stream.codec_context.name in REMUXED
        self._remux = Remux(self._buffer, stream) if own and self._buffer else None


class Stalled(Exception):
    """No picture came for too long."""


def shrunk(image: Picture, side: int) -> Picture:
    """Longer side at most `side` pixels; the same array where it is."""
    while (scale := side / max(image.shape[:2])) < 1:
        step = max(scale, 0.5)  # by halves, which is fast
        size = (max(1, round(image.shape[1] * step)), max(1, round(image.shape[0] * step)))
        how = cv2.INTER_AREA if step == 0.5 else cv2.INTER_LINEAR
        image = cv2.resize(image, size, interpolation=how)  # type: ignore[assignment]
    return image


def jpeg(image: Picture, side: int, quality: int) -> bytes:
    """uint8 (H,W,3) RGB -> JPEG, at most `side` pixels a side."""
    bgr = cv2.cvtColor(shrunk(image, side), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def main() -> None:
    """Until the parent stops it or ends; ignores the terminal's signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    av.logging.set_level(None)  # FFmpeg would quote the URL with its password on the terminal
    av.logging.set_libav_level(av.logging.PANIC)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), blocking=True)
    (_, *settings), *early = channel.read()
    try:
        process = CaptureProcess(channel, *settings)
    except UserError as error:
        channel.send("failed", str(error))
        return
    for message in early:
        process.handle(*message)
    threading.Thread(target=process.listen, daemon=True).start()
    try:
        process.watch()
    except Exception as error:
        process.send("failed", source.redacted_error(error, process.config.source))
    while True:  # clips and thumbnails may still be wanted; the listener ends the process
        time.sleep(1)


if __name__ == "__main__":
    main()
