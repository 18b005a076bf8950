"""The watch loop: newest frame of each camera, one forward for all, Alarm.step, publish.

It never waits for a disk, a sink or a viewer, and imports no codec, SQL or HTML.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from multiprocessing.connection import wait

import numpy as np
from numpy.typing import NDArray

from stillwatch import bundle
from stillwatch.errors import UserError
from stillwatch.inference import aspect, detector, streams
from stillwatch.inference.detector import Detector
from stillwatch.inference.face_reader import NetFile
from stillwatch.inference.people import People
from stillwatch.monitor.cameras import reading
from stillwatch.monitor.cameras.camera import Camera, Frame, Note
from stillwatch.monitor.cameras.source import redact, redacted_error
from stillwatch.monitor.config import CameraConfig, WatchConfig, secret
from stillwatch.monitor.events.store import Store
from stillwatch.monitor.schedule import Schedule, schedule
from stillwatch.monitor.state import Board, Gauges
from stillwatch.monitor.worker import Answer, Look, Worker
from stillwatch.rules.alarm import Alarm
from stillwatch.rules.events import Event
from stillwatch.rules.signs import Reading

TICK = 0.25  # seconds between two rounds of watchdogs, viewers and the board
SILENCE = 1.0  # seconds after which a camera without a frame is lost to its Alarm
PREVIEW = 8.0  # pictures a second for viewers


class CameraSlot:
    newest: Frame  # from the first advance() on
    memory: streams.Memory  # of the net, once that is loaded; of a worker's camera only how many frames it has seen
    worker: Worker | None = None  # that looks for this camera; None: this process
    evidence: NDArray[np.uint8] | None = None  # (h,w), where the newest answer's is; as strong as what it accuses

    def __init__(self, camera: Camera, alarm: Alarm, schedule: Schedule, people: People | None = None):
        self.camera, self.alarm, self.schedule, self.people = camera, alarm, schedule, people
        self.armed = schedule.armed(time.time())
        self.name = alarm.camera
        self.pending: deque[Frame] = deque()  # arrived and not looked at; the camera's one credit keeps it short
        self._size = (0, 0)  # of the newest frame, as it came
        self.readings: list[Reading] = []  # of the face, since the newest frame but one
        self.time = 0.0  # of the newest frame, on the Alarm's clock
        self.decided: float | None = None  # time.monotonic() of the newest frame's decision
        self.fps = 0.0
        self.notes: list[str] = []  # of signs that are off, as last said
        self._offsets: dict[str, float] = {}  # to epoch seconds, one for the whole life of an event

    def advance(self) -> bool:
        """To the newest live frame, or a file's next; False: none."""
        if not self.pending:
            return False
        taken = list(self.pending) if self.camera.live else [self.pending[0]]
        for _ in taken:
            self.pending.popleft()
        self.newest = taken[-1]
        if self._size != self.newest.size:  # another view: no look spans both
            self._size = self.newest.size
            self.clear()
        self.readings = [reading for frame in taken for reading in frame.readings]
        return True

    def vacant(self) -> bool:
        """Whether its newest picture is "empty": disarmed, or nobody there."""
        if self.newest.status != "ok":
            return False
        if not self.armed:
            self.readings = []
            self.clear()
        elif self.people and not self.people(self.newest.image):
            self.evidence = None
            self.memory.clear()
        else:
            return False
        self.newest = self.newest._replace(status="empty")
        return True

    def clear(self) -> None:
        """After a gap."""
        self.evidence = None
        self.memory.clear()
        if self.people:
            self.people.clear()

    def in_epoch(self, event: Event) -> Event:
        """In epoch seconds; one reading of the wall clock per event, so its jumps do no harm."""
        offset = self._offsets.setdefault(event.id, time.time() - event.updated)
        if event.state == "closed":
            del self._offsets[event.id]
        return event.shifted(offset)


class Watch:
    def __init__(
        self,
        config: WatchConfig,
        bad_cameras: Mapping[str, str] | None = None,
        log: Callable[[str], None] = lambda line: None,
        stop: threading.Event | None = None,
    ):
        """A camera that cannot be opened fails alone. Raises UserError for an invalid bundle or rule, or no camera."""
        self.config, self.log = config, log
        self.stop = stop or threading.Event()
        self.bundle = bundle.load(config.bundle)
        self.failed = dict(bad_cameras or {})
        names = [camera.name for camera in config.camera] + list(self.failed)
        self.board = Board(self.bundle.manifest.labels, self.bundle.manifest.safe, tuple(names))
        self.gauges = Gauges(self.board)
        self.slots: list[CameraSlot] = []
        self.workers: list[Worker] = []
        self._trouble: str | None = None
        self._face_net: NetFile | None = None  # proved once, for the first camera whose driver's face is read
        self._ended = False
        for camera in config.camera:
            try:
                self.slots.append(self._open(camera))
            except UserError as error:
                self.failed[camera.name] = str(error)
            except Exception as error:  # whatever it is, the other cameras start
                self.failed[camera.name] = f"cannot be opened: {redacted_error(error, camera.source)}"
        if not self.slots:
            raise UserError("\n".join(self.failed.values()))
        for name, words in self.failed.items():
            self.board.update(name, state="failed", words=words)
        for slot in self.slots:  # the children open their streams while the net is loaded
            slot.camera.start()
        try:
            maps = any(slot.camera.config.where for slot in self.slots)
            if maps and config.workers > 1:
                raise UserError(f"workers = {config.workers}: they tell no map; set 1, or leave a camera's `where` out")
            self.detector = Detector(self.bundle, config.threads, runtime=config.runtime, maps=maps)
            found = self.detector.choice["runtime"], self.detector.choice["file"]
            count = min(config.workers, len(self.slots))
            for number in range(count if count > 1 else 0):
                self.workers.append(Worker(f"worker {number + 1}", self.bundle.path, config.threads, found, log))
            for place, slot in enumerate(self.slots):
                slot.worker = self.workers[place % count] if self.workers else None
                slot.memory = detector.memory(self.detector)
            self.store = Store(config.keep, config.sink)
        except BaseException:
            self._stop_cameras(0.5)
            raise

    def _open(self, config: CameraConfig) -> CameraSlot:
        manifest = self.bundle.manifest
        frames = manifest.input.shape[:-3]
        rate = detector.rate(manifest) if frames and frames[0] > 1 else None
        rule = config.rule or self.config.rule
        if rate and config.fps < rate / detector.MISSED:
            words = f"its net looks back at {rate:g} frames a second"
            raise UserError(f"camera.{config.name}: fps = {config.fps:g}: {words}; set {rate:g} or more")
        changes = {"source": secret(config.source), "fps": min(config.fps, rate or config.fps)}
        config = config.model_copy(update=changes)
        faces = reading.wanted(detector.rule_of(self.bundle, rule), config.source)
        alarm = detector.alarm_of(self.bundle, config.name, rule, faces)
        if faces:
            self._face_net = self._face_net or detector.face_net(self.bundle)
        camera = Camera(config, self.config.keep, manifest.input, faces and (self._face_net or True))
        shown = redact(config.source)
        zones = {"ignore": config.ignore, "crop": config.crop}
        self.board.update(config.name, source=shown, live=camera.live, gauge_name=alarm.gauge_name, **zones)
        person = config.person
        people = People(person.model, person.every, person.confidence, self.config.threads) if person else None
        times = schedule(config.armed or self.config.armed, self.config.timezone)
        slot = CameraSlot(camera, alarm, times, people)
        self.board.update(config.name, armed=slot.armed, where=config.where)
        if not slot.armed:
            self.log(f"{config.name}: disarmed")
        return slot

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def end(self, within: float = 1.5) -> None:
        """Close events, clips and camera processes within `within` seconds."""
        if self._ended:
            return
        self._ended = True
        for slot in self.slots:
            self._publish(slot, slot.alarm.close(max(slot.time, time.monotonic()) if slot.camera.live else slot.time))
        self._stop_cameras(within)
        for slot in self.slots:
            self._receive(slot)

    def close(self, within: float = 2.0) -> None:
        start = time.monotonic()
        self.end(0.7 * within)
        self.store.close(max(0.2, start + within - time.monotonic()))

    def run(self) -> None:
        ticked = 0.0
        while not self.stop.is_set():
            slots = self.receive(TICK)
            answered = self.exchange(slots) if self.workers else zip(slots, self.predict(slots), strict=True)
            for slot, p in answered:
                self.decide(slot, p)
            if time.monotonic() - ticked >= TICK:
                ticked = time.monotonic()
                self.tick()
                done = all(slot.camera.state in ("ended", "failed") and not slot.pending for slot in self.slots)
                if done and all(worker.idle for worker in self.workers):
                    return

    # --- the steps of the loop

    def receive(self, timeout: float) -> list[CameraSlot]:
        free = [slot for slot in self.slots if slot.worker is None or slot.worker.idle]
        ends = [slot.camera.connection.fileno() for slot in free if slot.camera.connection is not None]
        ends += [worker.channel.fileno() for worker in self.workers if worker.channel is not None]
        if any(slot.pending for slot in free):
            timeout = 0.0
        if ends:
            wait(ends, timeout)
        else:
            self.stop.wait(timeout)
        for slot in free:
            self._receive(slot)
        return [slot for slot in free if slot.advance()]

    def predict(self, slots: Sequence[CameraSlot]) -> list[NDArray[np.float32] | None]:
        """One forward for all; None without a person or a whole look."""
        seen = [slot for slot in slots if not slot.vacant()]
        images, times = [slot.newest.image for slot in seen], [slot.newest.time for slot in seen]
        p = streams.look(self.detector.predict, images, [slot.memory for slot in seen], times)
        answers = {slot.name: self._split(slot, row) for slot, row in zip(seen, p, strict=True)}
        return [answers.get(slot.name) for slot in slots]

    def exchange(self, slots: Sequence[CameraSlot]) -> list[tuple[CameraSlot, Answer]]:
        """Give each worker its cameras' newest frames; returns their answers, as predict()."""
        answered: list[tuple[CameraSlot, Answer]] = []
        for worker in self.workers:
            answers = worker.take()
            answered += [(slot, answers[slot.name]) for slot in self.slots if slot.name in answers]
            looks: list[Look] = []
            for slot in slots:
                if slot.worker is not worker:
                    continue
                if slot.vacant() or not worker.idle:
                    answered.append((slot, None))
                else:
                    looks.append((slot.name, slot.newest.image, slot.newest.time, slot.memory.seen == 0))
                    slot.memory.seen += 1
            if looks:
                worker.ask(looks)
        return answered

    def _split(self, slot: CameraSlot, row: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """A row's probabilities; tells the camera their map, if wanted."""
        slot.evidence = None
        if row is None or not self.detector.map or not slot.camera.config.where:
            return row if row is None else row[: len(self.board.labels)]
        p, places = np.split(row, [len(self.board.labels)])
        told = zip(p, self.board.labels, strict=True)
        unsafe = max((float(value) for value, label in told if label not in self.board.safe), default=0.0)
        full = 255 * unsafe / max(float(places.max()), 1e-6)
        slot.evidence = (places * full).astype(np.uint8).reshape(self.detector.map)
        if self.board.asked(slot.name, "where"):
            slot.camera.show(slot.evidence)
        return p

    def decide(self, slot: CameraSlot, p: NDArray[np.float32] | None) -> None:
        frame = slot.newest
        self._publish(slot, slot.alarm.step(frame.time, p, frame.status, slot.readings))
        now = time.monotonic()
        if slot.decided is not None and now > slot.decided:
            rate = 1 / (now - slot.decided)
            slot.fps += 0.1 * (rate - slot.fps) if slot.fps else rate
        slot.decided, slot.time = now, frame.time
        age = now - frame.captured
        self.gauges.latency(slot.name, age)
        answer = p if slot.alarm.answer is None else slot.alarm.answer
        if p is not None and answer is not None:
            self.board.update(slot.name, p=[round(float(value), 4) for value in answer])
        elif frame.status == "empty":
            self.board.update(slot.name, p=None)
        gauge = float(slot.alarm.gauge)
        status = "damaged" if frame.status == "ok" and slot.camera.damaged else frame.status
        self.board.update(slot.name, status=status, gauge=gauge, age_ms=1e3 * age, seen=time.time())
        if slot.readings:
            self.board.update(slot.name, face=slot.alarm.face.state())

    def tick(self) -> None:
        now = time.monotonic()
        for slot in self.slots:
            camera = slot.camera
            camera.tick(now)
            self._receive(slot)  # tick() may have read a frame: nothing would wake the loop for it
            asked = slot.worker is not None and slot.name in slot.worker.asked
            if camera.state == "ended" and not slot.pending and not asked:
                self._publish(slot, slot.alarm.close(slot.time))
            elif camera.live and now - (slot.decided or now) > SILENCE:
                slot.clear()
                self._publish(slot, slot.alarm.step(now, None, "lost"))
            viewed, points, where = (self.board.asked(slot.name, what) > 0 for what in ("picture", "points", "where"))
            camera.preview(PREVIEW if viewed else 0.0, points, where)
            if slot.armed != (armed := slot.schedule.armed(time.time())):
                slot.armed = armed
                self.log(f"{slot.name}: {'armed' if armed else 'disarmed'}")
            if (notes := slot.alarm.notes) != slot.notes:
                slot.notes = notes
                for words in notes:
                    self.log(f"{slot.name}: {words}")
            counters = dict(camera.counters)
            if slot.people:
                counters |= {"people_checked": slot.people.checked, "people_skipped": slot.people.skipped}
            self.board.update(
                slot.name, state=camera.state, words=camera.words, armed=slot.armed, fps=round(slot.fps, 1),
                counters=counters, gauge=float(slot.alarm.gauge),
                open=[slot.in_epoch(event).as_dict() for event in slot.alarm.open],
            )  # fmt: skip
        if self.store.trouble != self._trouble:
            self._trouble = self.store.trouble
            self.log(f"events: {self._trouble or 'can be written again'}")
            self.board.publish("trouble", words=self._trouble or "")
        if all(slot.decided or slot.camera.state != "starting" for slot in self.slots):
            self.board.ready = True

    def _receive(self, slot: CameraSlot) -> None:
        for item in slot.camera.take():
            match item:
                case Frame():
                    slot.pending.append(item)
                case Note(what="jpeg", fields={"jpeg": jpeg}):
                    self.board.show(slot.name, jpeg)
                case Note(what="thumbnail", fields={"event": event, "jpeg": jpeg}):
                    self.store.attach(event, thumbnail=jpeg)
                    self.board.publish("event", id=event)
                case Note(what="clip", fields={"event": event, "path": path}):
                    self.store.attach(event, clip=path)
                    self.board.publish("event", id=event)
                case Note(what="state", fields={"state": state, "words": words}):
                    self.board.update(slot.name, state=state, words=words)
                    if state != "live":
                        slot.clear()
                    self.board.publish("camera", camera=slot.name, state=state, words=words)
                    self.log(f"{slot.name}: {state}: {words}" if state != words else f"{slot.name}: {state}")
                case Note(what="shape", fields={"height": height, "width": width}):
                    if words := aspect.warning(self.detector, height, width, slot.camera.config.fit):
                        self.board.publish("trouble", camera=slot.name, words=words)
                        self.log(f"{slot.name}: warning: {words}")
                case Note(what="trouble", fields={"words": words}):
                    self.board.publish("trouble", camera=slot.name, words=words)
                    self.log(f"{slot.name}: {words}")

    def _publish(self, slot: CameraSlot, events: Sequence[Event]) -> None:
        for event in events:
            dated = slot.in_epoch(event)
            self.store.put(dated)
            self.board.publish("event", id=dated.id, event=dated.as_dict())
            if event.state == "opened":
                if slot.evidence is not None:
                    slot.camera.show(slot.evidence)
                slot.camera.snap(event.id)
            if event.state != "closed":
                self.gauges.event(slot.name, event.kind, event.level)
            keep = self.config.keep
            if not slot.camera.config.clips or event.kind == "camera":
                continue
            if event.state == "opened":
                folder = keep.folder / "clips" / f"{datetime.fromtimestamp(dated.opened):%Y-%m-%d}"
                slot.camera.record(event.id, folder / f"{event.id}.mp4", event.start - keep.pre, None)
            elif event.state == "closed":
                slot.camera.finish(event.id, (event.updated if event.end is None else event.end) + keep.post)

    def _stop_cameras(self, within: float) -> None:
        threads = [threading.Thread(target=slot.camera.stop, args=(within,)) for slot in self.slots]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for worker in self.workers:
            worker.close()
