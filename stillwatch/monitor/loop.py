"""The loop: newest frame of each camera, one forward for all, Alarm.step, publish. And what a watch is made of.

In: a Plan. Out: events in the store, pictures and figures on the board, until it is told to stop or the files end.
Called by the CLI. It knows no codec, no SQL and no HTML.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillwatch import bundle
from stillwatch.errors import UserError
from stillwatch.inference import film
from stillwatch.inference.detector import Detector
from stillwatch.monitor import config as plans
from stillwatch.monitor.cameras.camera import Camera, Frame, Note
from stillwatch.monitor.cameras.source import redact
from stillwatch.monitor.config import WatchConfig
from stillwatch.monitor.events.store import Store
from stillwatch.monitor.gauges import Gauges
from stillwatch.monitor.state import Board
from stillwatch.rules.alarm import Alarm, Event

BEAT = 0.25  # seconds between two looks at watchdogs, viewers and the board
SILENCE = 1.0  # seconds after which a camera without a frame is told to its Alarm as lost
VIEW = 8.0  # pictures a second for whoever looks


class CameraSlot:
    """One camera's place at the table: its frames, its Alarm, and on which clock they run."""

    def __init__(self, camera: Camera, alarm: Alarm, frames: int):
        self.camera, self.alarm = camera, alarm
        self.name = alarm.camera
        self.held: deque[Frame] = deque()  # arrived and not looked at; the camera's one credit keeps it short
        self.newest: Frame | None = None
        self.time = 0.0  # of the newest frame, on the Alarm's clock
        self.seen: float | None = None  # time.monotonic() of the newest frame's decision
        self.fps = 0.0
        self._window: deque[NDArray[np.uint8]] = deque(maxlen=frames)
        self._offsets: dict[str, float] = {}  # to epoch seconds, one for the whole life of an event

    def next(self) -> bool:
        """Go on to the frame that is to be looked at; whether there is one."""
        if self.held:
            self.newest = self.held.pop() if self.camera.live else self.held.popleft()
            if self.camera.live:
                self.held.clear()
            return True
        return False

    def picture(self) -> NDArray[np.uint8] | None:
        """What the net is to look at: the newest picture (H,W,C), or for a net of clips the newest T (T,H,W,C)."""
        if self.newest is None or self.newest.image is None:
            return None
        if self._window.maxlen == 1:
            return self.newest.image
        self._window.append(self.newest.image)
        return np.stack(self._window) if len(self._window) == self._window.maxlen else None

    def forget(self) -> None:
        """A gap: a net of clips must not see pictures from before and after it as one."""
        self._window.clear()

    def dated(self, event: Event) -> Event:
        """The same event in epoch seconds. Its clock is read once: a jump of the wall clock tears nothing apart."""
        offset = self._offsets.setdefault(event.id, time.time() - event.updated)
        if event.state == "closed":
            del self._offsets[event.id]
        return event.shifted(offset)


class Watch:
    """Cameras, detector, alarms, store, page: opened together, closed together. Use it as a context."""

    def __init__(
        self,
        plan: WatchConfig,
        bad_cameras: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        """Open what the plan names; a camera that cannot be opened is shown as failed and keeps no other from it.

        say: a line for the log, where a camera or the disk is no longer as it was.
        Raises UserError where the bundle does not load, the rule is wrong, or no camera at all is left.
        """
        self.plan, self.say = plan, say
        self.stop = threading.Event()
        self._trouble: str | None = None
        self.bundle = bundle.load(plan.bundle)
        manifest = self.bundle.manifest
        shape = manifest.input.shape
        frames = shape[0] if len(shape) == 4 else 1
        names = [camera.name for camera in plan.camera] + list(bad_cameras or {})
        self.board = Board(manifest.labels, manifest.safe, tuple(names))
        self.gauges = Gauges(names)
        self.seats: list[CameraSlot] = []
        self._ended = False
        failed = dict(bad_cameras or {})
        for camera in plan.camera:  # the children start at once and open their streams while the net is loaded
            try:
                alarm = film.alarm_of(self.bundle, camera.name, camera.rule or plan.rule)
                rate = min(camera.fps, film.rate(manifest) or camera.fps) if frames > 1 else camera.fps
                own = camera.model_copy(update={"source": plans.secret(camera.source), "fps": rate})
                eye = Camera(own, plan.keep, (shape[-3], shape[-2], shape[-1]), manifest.input.fit)
                self.seats.append(CameraSlot(eye, alarm, frames))
                self.board.update(camera.name, source=redact(own.source), live=eye.live, gauge_name=alarm.gauge_name)
            except UserError as mistake:
                failed[camera.name] = str(mistake)
        if not self.seats:
            raise UserError("\n".join(failed.values()))
        for name, words in failed.items():
            self.board.update(name, state="failed", words=words)
        self.failed = failed
        for seat in self.seats:
            seat.camera.start()
        try:
            self.detector = Detector(self.bundle, plan.threads, runtime=plan.runtime)
            self.store = Store(plan.keep, plan.sink)
        except BaseException:
            self._stop_cameras(0.5)
            raise

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def end(self, within: float = 1.5) -> None:
        """Events are closed, clips finalised, the cameras' processes gone: at the latest after `within` seconds."""
        if self._ended:
            return
        self._ended = True
        for seat in self.seats:
            now = seat.time if not seat.camera.live else max(seat.time, time.monotonic())
            for event in seat.alarm.close(now):
                self._publish(seat, event)
        self._stop_cameras(within)
        for seat in self.seats:
            self._take(seat)

    def close(self, within: float = 2.0) -> None:
        """end(), and what was said is written."""
        start = time.monotonic()
        self.end(0.7 * within)
        self.store.close(max(0.2, start + within - time.monotonic()))

    def run(self) -> None:
        """watch(), until stop is set or every file has ended."""
        watch(self)

    # --- the parts of the loop, in its order ------------------------------------------------------------------------

    def newest(self, timeout: float) -> list[CameraSlot]:
        """Wait for something to arrive; the seats that have a frame. Live: the newest; a file: each, in its turn."""
        ends = [seat.camera.connection.fileno() for seat in self.seats if seat.camera.connection is not None]
        if any(seat.held for seat in self.seats):
            timeout = 0.0
        if ends:
            wait(ends, timeout)
        else:
            self.stop.wait(timeout)
        for seat in self.seats:
            self._take(seat)
        return [seat for seat in self.seats if seat.next()]

    def look(self, seats: Sequence[CameraSlot]) -> list[NDArray[np.float32] | None]:
        """One forward for all of them; None where a net of clips has not seen enough yet."""
        pictures = [seat.picture() for seat in seats]
        there = [number for number, picture in enumerate(pictures) if picture is not None]
        answers: list[NDArray[np.float32] | None] = [None] * len(seats)
        if there:
            x = np.stack([pictures[number] for number in there])  # type: ignore[misc]
            for number, p in zip(there, self.detector.predict(x), strict=True):
                answers[number] = p
        return answers

    def decide(self, seat: CameraSlot, p: NDArray[np.float32] | None) -> None:
        """One camera's probabilities -> its Alarm -> what is to be said."""
        frame = seat.newest
        assert frame is not None
        for event in seat.alarm.step(frame.time, p, frame.status):
            self._publish(seat, event)
        now = time.monotonic()
        if seat.seen is not None and now > seat.seen:
            seat.fps += 0.1 * (1 / (now - seat.seen) - seat.fps) if seat.fps else 1 / (now - seat.seen)
        seat.seen, seat.time = now, frame.time
        age = now - frame.captured
        self.gauges.latency(seat.name, age)
        shown: dict[str, Any] = {} if p is None else {"p": [round(float(one), 4) for one in p]}
        self.board.update(
            seat.name, status=frame.status, gauge=float(seat.alarm.gauge), age_ms=1e3 * age, seen=time.time(), **shown
        )

    def beat(self) -> None:
        """What is done a few times a second, whether frames come or not."""
        now = time.monotonic()
        for seat in self.seats:
            for note in seat.camera.tick(now):
                self._heed(seat, note)
            self._take(seat)  # tick() may have read a frame: nothing would wake the loop for it
            if seat.camera.state == "ended" and not seat.held:
                for event in seat.alarm.close(seat.time):
                    self._publish(seat, event)
            elif seat.camera.live and now - (seat.seen or now) > SILENCE:
                seat.forget()
                for event in seat.alarm.step(now, None, "lost"):
                    self._publish(seat, event)
            seat.camera.look(VIEW if self.board.viewers(seat.name) else 0.0)
            counters = dict(seat.camera.counters)
            for name, total in counters.items():
                self.gauges.count(seat.name, name, total)
            opened = [seat.dated(event).as_dict() for event in seat.alarm.open]
            self.board.update(
                seat.name, state=seat.camera.state, words=seat.camera.words, fps=round(seat.fps, 1), counters=counters,
                open=opened, gauge=float(seat.alarm.gauge),
            )  # fmt: skip
        if self.store.trouble != self._trouble:
            self._trouble = self.store.trouble
            self.say(f"events: {self._trouble or 'can be written again'}")
            self.board.say("trouble", words=self._trouble or "")
        if not self.board.ready and all(seat.seen or seat.camera.state != "starting" for seat in self.seats):
            self.board.ready = True

    def over(self) -> bool:
        """Every camera was a file, and has ended."""
        return all(seat.camera.state in ("ended", "failed") and not seat.held for seat in self.seats)

    # --- what happens besides ---------------------------------------------------------------------------------------

    def _take(self, seat: CameraSlot) -> None:
        for one in seat.camera.take():
            if isinstance(one, Frame):
                seat.held.append(one)
            else:
                self._heed(seat, one)

    def _heed(self, seat: CameraSlot, note: Note) -> None:
        """What a camera says besides its frames."""
        if note.what == "jpeg":
            self.board.show(seat.name, note.fields["jpeg"])
        elif note.what == "thumbnail":
            self.store.attach(note.fields["event"], thumbnail=note.fields["jpeg"])
            self.board.say("event", id=note.fields["event"])
        elif note.what == "clip":
            self.store.attach(note.fields["event"], clip=note.fields["path"])
            self.board.say("event", id=note.fields["event"])
        else:
            fields = dict(note.fields)
            if note.what == "state":
                self.board.update(seat.name, **fields)
                if fields["state"] != "live":
                    seat.forget()
            self.board.say("camera" if note.what == "state" else "trouble", camera=seat.name, **fields)
            said = [fields.get("state"), fields.get("words")]
            self.say(f"{seat.name}: {': '.join(dict.fromkeys(str(one) for one in said if one))}")

    def _publish(self, seat: CameraSlot, event: Event) -> None:
        dated = seat.dated(event)
        self.store.put(dated)
        self.board.say("event", id=dated.id, event=dated.as_dict())
        if event.state == "opened":
            seat.camera.snap(event.id)
        if event.state != "closed":
            self.gauges.event(seat.name, event.kind, event.level)
        if not seat.camera.plan.clips or event.kind == "camera":
            return
        if event.state == "opened":
            day = datetime.fromtimestamp(dated.opened).strftime("%Y-%m-%d")
            path = self.plan.keep.folder / "clips" / day / f"{event.id}.mp4"
            seat.camera.record(event.id, path, event.start - self.plan.keep.pre, None)
        elif event.state == "closed":
            seat.camera.finish(event.id, (event.updated if event.end is None else event.end) + self.plan.keep.post)

    def _stop_cameras(self, within: float) -> None:
        """All at once: each may need its whole time."""
        stops = [threading.Thread(target=seat.camera.stop, args=(within,)) for seat in self.seats]
        for one in stops:
            one.start()
        for one in stops:
            one.join()


def watch(street: Watch) -> None:
    """The loop: newest frame per camera, one forward for all, Alarm.step per camera, publish.

    Nothing in it waits for a disk, a sink or a viewer: they have threads of their own, and what is handed to them is
    bounded. It ends when street.stop is set, or when every file has ended.
    """
    beat = 0.0
    while not street.stop.is_set():
        seats = street.newest(BEAT)
        for seat, p in zip(seats, street.look(seats), strict=True):
            street.decide(seat, p)
        if time.monotonic() - beat >= BEAT:
            beat = time.monotonic()
            street.beat()
            if street.over():
                return
