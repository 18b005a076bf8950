"""Eye: the child process of one camera: opens it, decodes it, sends the newest frame when asked, keeps a tape.

In: orders over a socket. Out: frames of the net's size, pictures, clips, and why there are none.
Started by Camera as `python -m stillwatch.monitor.cameras.capture FD`. One source; no net, no rule.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import cv2

from stillwatch.errors import UserError
from stillwatch.media import image as pixels
from stillwatch.monitor import config
from stillwatch.monitor.cameras import blur, recorder, source
from stillwatch.monitor.cameras.camera import Channel
from stillwatch.monitor.cameras.source import Backoff, FileClock, Picture, RateLimiter, VideoFrame
from stillwatch.rules.alarm import Status

PULSE = 0.5  # seconds between two signs of life
STEADY = 5.0  # seconds of pictures after which a stream is held to be well again
FROZEN, BLACK = 5.0, 2.0  # seconds without any change; seconds of one dark or even shade
LOOKS = 2.0  # times a second that it is asked whether a picture shows anything
NOISE = 1  # levels by which a picture may differ from itself: a sensor's noise is more
DARK, EVEN = 40, 3  # of 255: nearly the brightest of a black picture; standard deviation of a covered lens
SHOWN, SNAPPED = 960, 640  # pixels of the longer side of pictures for viewers, and of thumbnails


class PictureHealth:
    """Whether a picture shows anything: black or covered, or frozen. Pure: seconds and brightness in, status out.

    Frozen: for FROZEN seconds each picture is one of the last few again, as it cannot be while a sensor adds its noise.
    Against several, because an encoder paints the same picture a little differently at each place of a group; and over
    two keyframes, because between them it may leave a quiet scene as it is.
    """

    def __init__(self, live: bool):
        self._live = live
        self._pace = RateLimiter(LOOKS)
        self._past: deque[Picture] = deque(maxlen=round(LOOKS * FROZEN))
        self._still: tuple[float, int] | None = None  # since when nothing new was seen; keyframes until then
        self._dark: float | None = None
        self._status: Status = "ok"

    def status(self, shot: VideoFrame, keys: int) -> Status:
        """keys: how many keyframes the source has given."""
        if not self._pace.due(shot.time):
            return self._status
        luma = shot.luma()
        mean, spread = (float(one[0, 0]) for one in cv2.meanStdDev(luma))
        if mean + 2 * spread >= DARK and spread >= EVEN:
            self._dark = None
        elif self._dark is None:
            self._dark = shot.time
        known = any(old.shape == luma.shape and int(cv2.absdiff(luma, old).max()) <= NOISE for old in self._past)
        self._past.append(luma)
        if not known or self._still is None:
            self._still = (shot.time, keys)
        since, counted = self._still
        black = self._dark is not None and shot.time - self._dark >= BLACK
        frozen = self._live and shot.time - since >= FROZEN and keys - counted >= 2
        self._status = "black" if black else "frozen" if frozen else "ok"
        return self._status


class FrameSender:
    """Where frames leave: one at a time, the newest, made ready only when it is wanted.

    Two threads call it: the one that decodes offers, the one that listens acknowledges.
    """

    def __init__(self, eye: "CaptureProcess"):
        self._eye = eye
        self._ready = threading.Condition()
        self._credit, self._shown = True, True
        self._waiting: tuple[int, VideoFrame] | None = None
        self._newest: VideoFrame | None = None
        self._snaps: list[str] = []
        self._look = RateLimiter(1.0)
        self._looking = False
        self.dropped = 0

    def offer(self, index: int, shot: VideoFrame) -> None:
        """Live: it goes now if the last one was seen, else it waits, and a newer one takes its place."""
        with self._ready:
            self._note(shot)
            if self._waiting is not None:
                self.dropped += 1
            self._waiting = (index, shot)
            self._send()

    def deliver(self, index: int, shot: VideoFrame) -> bool:
        """A file: it waits until it can go. False: told to stop meanwhile."""
        with self._ready:
            self._note(shot)
            while not self._credit:
                if self._eye.stop.is_set():
                    return False
                self._ready.wait(PULSE)
                self._eye.pulse()
            self._waiting = (index, shot)
            self._send()
        return True

    def seen(self) -> None:
        with self._ready:
            self._credit = True
            self._send()
            self._ready.notify_all()

    def shown(self) -> None:
        with self._ready:
            self._shown = True

    def look(self, fps: float) -> None:
        with self._ready:
            self._look, self._looking = RateLimiter(fps or 1.0), fps > 0

    def snap(self, event: str) -> None:
        with self._ready:
            self._snaps.append(event)
            if self._newest is not None:
                self._thumbnails(self._newest)

    def forget(self) -> None:
        """The stream broke off: what waits is too old to be looked at."""
        with self._ready:
            self._waiting = None

    def _send(self) -> None:
        if not self._credit or self._waiting is None:
            return
        (index, shot), self._waiting, self._credit = self._waiting, None, False
        height, width, channels = self._eye.shape
        image = pixels.fit(shot.rgb(), (height, width), self._eye.how, channels)  # type: ignore[arg-type]
        status = self._eye.gaze.status(shot, self._eye.keys)
        self._eye.send("frame", index, shot.time, image, status, shot.captured)

    def _note(self, shot: VideoFrame) -> None:
        self._newest = shot
        if self._snaps:
            self._thumbnails(shot)
        if self._looking and self._shown and self._look.due(time.monotonic()):
            self._shown = False
            self._eye.send("note", "jpeg", {"jpeg": jpeg(self._eye.public(shot), SHOWN, 75)})

    def _thumbnails(self, shot: VideoFrame) -> None:
        image = jpeg(self._eye.public(shot), SNAPPED, 88)
        for event in self._snaps:
            self._eye.send("note", "thumbnail", {"event": event, "jpeg": image})
        self._snaps.clear()


class CaptureProcess:
    """Orders in, frames out. Its main thread reads the source; a second one listens, so that no hanging stream can
    keep a clip from being closed."""

    def __init__(
        self,
        wire: Channel,
        camera: config.CameraConfig,
        keep: config.Keep,
        shape: tuple[int, int, int],
        how: str,
        at: source.Reading,
    ):
        self.camera, self.shape, self.how = camera, shape, how
        self.stop = threading.Event()
        self.live = source.is_live(camera.source)
        self.gaze = PictureHealth(self.live)
        self.outlet = FrameSender(self)
        self.tape = recorder.PacketBuffer(keep.pre, keep.memory, keep.longest, self._taped) if camera.clips else None
        self._wire = wire
        self._at = at  # where an earlier process stopped reading a file
        self._index = 0
        self._pace = RateLimiter(camera.fps)
        self._blur = blur.Blur(camera.blur)
        self._blurred: tuple[VideoFrame, Picture] | None = None
        self._showing = threading.Lock()
        self._encode = recorder.Encode(self.tape, camera.fps) if self.tape else None
        self._encoding = True
        self._pulsed = 0.0
        self._bytes = self._reconnects = 0
        self.keys = 0
        self._troubled = ""
        self._seeing = False

    # --- what it says ------------------------------------------------------------------------------------------------

    def send(self, *message: Any) -> None:
        try:
            self._wire.send(message)
        except OSError:  # the parent is gone, and so is the reason to be here
            self.leave()

    def pulse(self) -> None:
        """A sign of life of the thread that reads, with what was counted."""
        now = time.monotonic()
        if now - self._pulsed >= PULSE:
            self._pulsed = now
            counts = {"dropped": self.outlet.dropped, "bytes": self._bytes, "reconnects": self._reconnects}
            self.send("pulse", counts)

    def trouble(self, words: str) -> None:
        if words != self._troubled:  # said once, not with every packet
            self._troubled = words
            self.send("note", "trouble", {"words": words})

    def public(self, shot: VideoFrame) -> Picture:
        """What people may see of it; made once."""
        with self._showing:
            if self._blurred is None or self._blurred[0] is not shot:
                self._blurred = (shot, self._blur(shot.rgb(), shot.time))
            return self._blurred[1]

    def leave(self) -> None:
        """Close the clips and end the process, whatever its other thread hangs in."""
        self.stop.set()
        with contextlib.suppress(Exception):
            if self.tape:
                self.tape.close()
        os._exit(0)

    def _taped(self, what: str, **fields: Any) -> None:
        if what == "missed":
            self.send("missed", fields["event"])
        else:
            self.send("note", what, fields)

    # --- what it is told ---------------------------------------------------------------------------------------------

    def listen(self) -> None:
        """Until the parent says stop, or is no more."""
        while True:
            try:
                messages = self._wire.read()
            except EOFError:
                self.leave()
            for what, *fields in messages:
                self._heed(what, *fields)

    def _heed(self, what: str, *fields: Any) -> None:
        if what == "stop":
            self.leave()
        elif what in ("seen", "shown", "look", "snap"):
            getattr(self.outlet, what)(*fields)
        elif self.tape is None:
            self.send("missed", fields[0])
        elif what == "record":
            event, path, since, until = fields
            self.tape.record(event, Path(path), since, until)
        elif what == "finish":
            self.tape.finish(*fields)

    # --- what it sees ------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Read the source to its end, or for ever."""
        what = source.kind(self.camera.source)
        if what in ("toy", "folder"):
            self._watch_drawn(what)
        elif what == "file":
            self._watch_file()
        else:
            self._watch_stream()
        self.send("ended", "read to its end")

    def _watch_stream(self) -> None:
        """Open, look, and open again: paced, jittered, without end."""
        backoff = Backoff(*self.camera.backoff)
        lost = False
        while not self.stop.is_set():
            self.pulse()
            began = time.monotonic()
            seen = None
            stalled = False
            try:
                with source.open_video(self.camera.source, self.camera.stall, self.camera.transport) as container:
                    for seen in self._look(container):
                        if lost:
                            self._reconnects, lost, self._pulsed = self._reconnects + 1, False, 0.0
                        if seen - began > STEADY:
                            backoff.reset()
                words = "the stream ended"
            except Stalled as error:
                words, stalled = str(error), True
            except source.timed_out():
                words, stalled = f"no picture for {self.camera.stall:g} s", True
            except Exception as error:  # FFmpeg's errors have no ancestor in common below this one
                words = source.words(error, self.camera.source)
            if self.tape:
                self.tape.cut()
            self.outlet.forget()
            self.send("lost", words, stalled)
            lost = True
            # An attempt that hung has already waited
            spent = time.monotonic() - began if seen is None else 0.0
            self.stop.wait(max(0.0, backoff.next() - spent))

    def _look(self, container: Any) -> Any:
        """Decode a live stream; yields time.monotonic() of each good frame. Raises Stalled where there are none."""
        stream = container.streams.video[0]
        remux = self._remux(stream)
        intra = stream.codec_context.name in source.INTRA
        patience = self.camera.stall + (1 / self.camera.fps if intra else 0.0)
        colours = source.Colours()
        arrivals: dict[int | None, float] = {}
        beat = source.PlaybackClock(1.0 if source.in_bursts(container) else 0.0, most=self.camera.stall)
        good = time.monotonic()
        self._seeing = False
        for packet in container.demux():
            self.pulse()
            if packet.dts is not None and not self._hold(beat, float(packet.dts * packet.time_base)):
                return
            now = time.monotonic()
            if packet.stream.index != stream.index or not packet.size:
                if now - good > patience:
                    raise Stalled(f"no picture for {self.camera.stall:g} s")
                continue
            self._bytes += packet.size
            self.keys += bool(packet.is_keyframe)
            arrivals[packet.pts] = now
            if intra and not self._pace.due(now):
                continue
            # Before the first keyframe nothing can be decoded, and nothing is wrong
            for frame in source.decoded(packet, self.trouble if self._seeing else lambda words: None):
                self._seeing = True
                good = arrivals.get(frame.pts, now)
                self._see(VideoFrame(frame, good, good, colours), intra)
                yield good
            if len(arrivals) > 64:  # decoders reorder by at most 16
                arrivals = {pts: when for pts, when in arrivals.items() if now - when < 5}
            if remux:
                remux.push(packet, now)
            if now - good > patience:
                raise Stalled(f"nothing that can be decoded for {self.camera.stall:g} s")

    def _see(self, shot: VideoFrame, due: bool = False) -> None:
        """One live frame."""
        index, self._index = self._index, self._index + 1
        if due or self._pace.due(shot.time):
            if self._encoding and self._encode:
                self._encode.push(self.public(shot), shot.time)
            self.outlet.offer(index, shot)

    def _watch_file(self) -> None:
        """Every frame that is due, in its time. Where it cannot be opened, it has failed."""
        colours = source.Colours()
        beat = source.PlaybackClock(self.camera.speed)
        start, first = 0.0, True
        while first or self.camera.loop:
            first = False
            with source.open_video(self.camera.source) as container:
                stream = container.streams.video[0]
                remux = self._remux(stream)
                clock, frames = FileClock(stream, start), FileClock(stream, start)
                for packet in container.demux(stream):
                    for frame in source.decoded(packet, self.trouble):
                        if not self._show(VideoFrame(frame, frames.of(frame), 0.0, colours), beat):
                            return
                    if packet.size:
                        self._bytes += packet.size
                        if remux:
                            remux.push(packet, clock.of(packet))
                if not frames.count:
                    raise ValueError("there is no picture in it")
                start = frames.end

    def _watch_drawn(self, what: str) -> None:
        beat = source.PlaybackClock(self.camera.speed)
        offset = 0.0
        if what == "toy" and self._at.seen:  # not drawn again up to there: that could take hours
            offset, self._index = self._at.time + 1 / self.camera.fps, self._at.seen
            self._at = source.Reading()
        for seconds, image in source.drawn(self.camera.source, self.camera.fps, self.trouble, self.camera.loop):
            if not self._show(VideoFrame(image, offset + seconds, 0.0), beat, paced=what == "folder"):
                return

    def _show(self, shot: VideoFrame, beat: source.PlaybackClock, paced: bool = False) -> bool:
        """One moment of what was filmed. False: told to stop."""
        self.pulse()
        index = self._index
        if not paced and not self._pace.due(shot.time):
            return True
        self._index += 1
        if self._encoding and self._encode:
            self._encode.push(self.public(shot), shot.time)
        if index < self._at.seen:  # an earlier process has shown it
            return True
        if not self._hold(beat, shot.time):
            return False
        shot.captured = time.monotonic()
        return self.outlet.deliver(index, shot)

    def _hold(self, beat: source.PlaybackClock, seconds: float) -> bool:
        """Wait until the moment at `seconds` of the film is due. False: told to stop."""
        while (left := beat.left(seconds, time.monotonic())) > 0:
            if self.stop.wait(min(left, PULSE)):
                return False
            self.pulse()
        return True

    def _remux(self, stream: Any) -> Any:
        """What keeps the stream's own packets, where a clip can hold them and people may see them."""
        own = bool(self.tape) and self.camera.blur == "none" and stream.codec_context.name in recorder.REMUXED
        self._encoding = not own
        return recorder.Remux(self.tape, stream) if own and self.tape else None


class Stalled(Exception):
    """Packets come, or not even these, but no picture."""


def jpeg(image: Picture, side: int, quality: int) -> bytes:
    """uint8 (H,W,3) RGB -> JPEG, its longer side at most `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def main() -> None:
    """What the child does. It ends when its parent does, and does not heed the terminal: the parent tells it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(1)
    wire = Channel(socket.socket(fileno=int(sys.argv[1])))
    (_, *settings), *early = wire.read()
    source.quiet()
    try:
        eye = CaptureProcess(wire, *settings)
    except UserError as mistake:
        wire.send(("failed", str(mistake)))
        return
    for what, *fields in early:
        eye._heed(what, *fields)
    threading.Thread(target=eye.listen, daemon=True).start()
    try:
        eye.watch()
    except Exception as error:
        eye.send("failed", source.words(error, eye.camera.source))
    eye.stop.wait()  # clips and thumbnails may still be asked for
    while True:
        time.sleep(1)  # the listener ends the process


if __name__ == "__main__":
    main()
