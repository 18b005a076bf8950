"""The loop, with cameras that say what the test tells them: newest frame, one forward, alarms, what is published."""

import os
import signal
import threading
import time
from collections import deque
from multiprocessing import Pipe
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from bundles import SHAPE, made, onnx_net, person_net
from event_toys import until

from stillwatch.errors import UserError
from stillwatch.inference import detector, people
from stillwatch.inference.detector import Detector, steps
from stillwatch.media.points import Signals
from stillwatch.monitor import loop, worker
from stillwatch.monitor.cameras.camera import Frame, Note
from stillwatch.monitor.config import CameraConfig, Keep, Person, WatchConfig
from stillwatch.monitor.events import database
from stillwatch.monitor.schedule import Schedule
from stillwatch.recipe import Rule
from stillwatch.rules.signs import Reading

SAFE = np.full(SHAPE, (255, 0, 0), np.uint8)  # red: the toy net finds it safe, green: danger
DANGER = np.full(SHAPE, (0, 255, 0), np.uint8)


class Fake:
    """A camera without a process: frames are put in by the test, what the loop asks for is written down."""

    live, damaged, size = True, False, (6, 8)

    def __init__(self, camera: CameraConfig, keep: Keep, takes: Any, faces: bool = False):
        if camera.source == "bad":
            raise UserError("bad: cannot be opened")
        if camera.source == "broken":
            raise ValueError("nobody foresaw this")
        self.config, self.state, self.words, self.index = camera, "starting", "", 0
        self.counters = {"frames": 0, "dropped": 0, "stalls": 0, "reconnects": 0, "respawns": 0}
        self.connection, self._far = Pipe(duplex=False)
        self._held: deque[Any] = deque()
        self.asked: list[tuple[Any, ...]] = []
        self.live = not camera.source.endswith(".mp4")

    def start(self) -> None:
        self.asked.append(("start",))

    def give(self, image: Any, at: float, status: str = "ok") -> None:
        self.index += 1
        self.state = "live"
        self.counters["frames"] += 1
        self.put(Frame(self.index, at, image, status, time.monotonic(), (), self.size))  # type: ignore[arg-type]

    def put(self, one: Any) -> None:
        self._held.append(one)
        self._far.send(None)

    def take(self) -> list[Any]:
        found = []
        while self.connection is not None and self.connection.poll():
            self.connection.recv()
            found.append(self._held.popleft())
        return found

    def tick(self, now: float) -> None:
        pass

    def preview(self, fps: float, points: bool = False, where: bool = False) -> None:
        self.asked.append(("preview", fps))

    def show(self, evidence: Any) -> None:
        self.asked.append(("show", evidence))

    def snap(self, event: str) -> None:
        self.asked.append(("snap", event))

    def record(self, event: str, path: Path, since: float, until: float | None) -> None:
        self.asked.append(("record", event, path, since, until))

    def finish(self, event: str, until: float) -> None:
        self.asked.append(("finish", event, until))

    def stop(self, within: float) -> None:
        self.asked.append(("stop",))
        self._far.close()
        self.connection.close()
        self.connection = None  # type: ignore[assignment]

    def did(self, what: str) -> list[tuple[Any, ...]]:
        return [words for words in self.asked if words[0] == what]


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Camera", Fake)


def watch_config(folder: Path, *sources: str, **more: Any) -> WatchConfig:
    path = folder / "bundle-toy"
    if not path.exists():
        made(folder, {"model.onnx": onnx_net(folder / "m.onnx")}, aspect=4 / 3)
    cameras = tuple(CameraConfig(name=f"c{n}", source=source) for n, source in enumerate(sources))
    return WatchConfig(
        bundle=path, camera=cameras, keep=Keep(folder=folder / "kept"), rule=Rule(profile="cctv"), **more
    )


def turn(watch: loop.Watch) -> None:
    """One round of watch(), without the wait for its beat."""
    slots = watch.receive(0.2)
    for slot, p in zip(slots, watch.predict(slots), strict=True):
        watch.decide(slot, p)
    watch.tick()


def film(watch: loop.Watch, camera: Any, image: Any, start: float, end: float, fps: float = 10) -> None:
    for number in range(round((end - start) * fps)):
        camera.give(image, start + number / fps)
        turn(watch)


def test_a_fight_is_one_event_with_picture_and_clip_and_it_ends(tmp_path: Path) -> None:
    with loop.Watch(watch_config(tmp_path, "rtsp://x/")) as watch:
        (slot,) = watch.slots
        camera: Any = slot.camera
        base = time.monotonic()
        film(watch, camera, SAFE, base, base + 3)
        assert not slot.alarm.open
        film(watch, camera, DANGER, base + 3, base + 9)
        assert len(slot.alarm.open) == 1
        id = slot.alarm.open[0].id
        film(watch, camera, SAFE, base + 9, base + 29)
        assert not slot.alarm.open
        assert [words[1] for words in camera.did("snap")] == [id]
        (_, of, path, since, until), (_, ended, at) = camera.did("record")[0], camera.did("finish")[0]
        assert (of, ended, until) == (id, id, None)
        assert path.parent.parent == tmp_path / "kept" / "clips"
        assert base - 5 <= since <= base + 4 - 5 + 1  # five seconds before it began
        assert base + 9 <= at <= base + 25
        camera.put(Note("thumbnail", {"event": id, "jpeg": b"\xff\xd8jpeg"}))
        turn(watch)
    (event,) = database.events(tmp_path / "kept")
    assert (event.id, event.camera, event.state, event.label) == (id, "c0", "closed", "danger")
    assert (tmp_path / "kept" / event.thumbnail).read_bytes() == b"\xff\xd8jpeg"
    assert abs(event.opened - time.time()) < 60  # the alarm's clock has become a date
    assert watch.gauges.text().count(b'kind="danger"') >= 1


def test_the_wall_clock_jumps_and_the_event_stays_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loop.Watch(watch_config(tmp_path, "rtsp://x/")) as watch:
        camera: Any = watch.slots[0].camera
        base, wall = time.monotonic(), time.time()
        film(watch, camera, DANGER, base, base + 5)
        monkeypatch.setattr(time, "time", lambda: wall - 86400 * 365)
        film(watch, camera, DANGER, base + 5, base + 8)
        film(watch, camera, SAFE, base + 8, base + 28)
    (event,) = database.events(tmp_path / "kept")
    assert 0 < event.end - event.start < 25
    assert event.opened >= event.start > wall - 60


def test_all_cameras_go_through_the_net_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loop.Watch(watch_config(tmp_path, "a", "b", "c")) as watch:
        calls: list[int] = []
        real = watch.detector.predict
        monkeypatch.setattr(watch.detector, "predict", lambda x: calls.append(len(x)) or real(x))  # type: ignore[func-returns-value]
        for slot in watch.slots:
            slot.camera.give(SAFE, time.monotonic())  # type: ignore[attr-defined]
        turn(watch)
        assert calls == [3]
        shown = watch.board.cameras()
        assert [camera["state"] for camera in shown] == ["live"] * 3
        assert all(camera["p"][0] > 0.9 for camera in shown)
        assert watch.board.ready


def test_a_camera_that_cannot_be_opened_is_shown_and_the_others_watch(tmp_path: Path) -> None:
    bad = {"yard": "watch.toml: line 7: camera.fsp: unknown key"}
    with loop.Watch(watch_config(tmp_path, "bad", "a", "broken"), bad) as watch:
        assert [slot.name for slot in watch.slots] == ["c1"]
        assert watch.failed["c2"] == "cannot be opened: nobody foresaw this"
        fields = {camera["name"]: camera for camera in watch.board.cameras()}
        assert (fields["c0"]["state"], fields["c0"]["words"]) == ("failed", "bad: cannot be opened")
        assert fields["yard"]["words"].startswith("watch.toml: line 7")
    with pytest.raises(UserError, match="bad: cannot be opened"):
        loop.Watch(watch_config(tmp_path, "bad"))


def test_a_lost_stream_is_no_frame_and_accuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SILENCE", 0.0)
    with loop.Watch(watch_config(tmp_path, "rtsp://x/")) as watch:
        slot = watch.slots[0]
        steps: list[tuple[Any, str]] = []
        real = slot.alarm.step
        monkeypatch.setattr(
            slot.alarm,
            "step",
            lambda now, p, status="ok", *more: steps.append((p, status)) or real(now, p, status, *more),
        )  # type: ignore[func-returns-value]
        slot.camera.give(DANGER, time.monotonic())  # type: ignore[attr-defined]
        turn(watch)
        time.sleep(0.01)
        watch.tick()
        assert steps[0][0] is not None
        assert steps[-1] == (None, "lost")


def test_a_file_that_ends_closes_its_event_and_ends_the_watch(tmp_path: Path) -> None:
    watch = loop.Watch(watch_config(tmp_path, "film.mp4"))
    camera: Any = watch.slots[0].camera

    def play() -> None:
        for number in range(60):
            camera.give(DANGER, number / 10)
        camera.state = "ended"

    player = threading.Thread(target=play)
    player.start()
    with watch:
        watch.run()
    player.join()
    assert not watch.stop.is_set(), "it ended by itself"
    (event,) = database.events(tmp_path / "kept")
    assert event.state == "closed"
    assert 4 < event.end - event.start < 7  # the film's own seconds


def test_pictures_are_asked_for_only_while_somebody_looks(tmp_path: Path) -> None:
    with loop.Watch(watch_config(tmp_path, "a")) as watch:
        camera: Any = watch.slots[0].camera
        watch.tick()
        with watch.board.viewing("c0"):
            watch.tick()
            camera.put(Note("jpeg", {"jpeg": b"new"}))
            turn(watch)
        watch.tick()
        assert [words[1] for words in camera.did("preview")] == [0.0, loop.PREVIEW, loop.PREVIEW, 0.0]
        assert watch.board.picture("c0") == (1, b"new")


def test_a_net_of_clips_sees_a_window_and_never_across_a_gap(tmp_path: Path) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (4, 3, *SHAPE), dtype=np.uint8)
    toy = made(tmp_path, {"model.onnx": onnx_net(tmp_path / "m.onnx", shape=(3, *SHAPE))}, frames=clips, name="clips")
    asked = watch_config(tmp_path, "a").model_copy(update={"bundle": toy.path})
    with loop.Watch(asked) as watch:
        camera: Any = watch.slots[0].camera
        for number in range(3):
            camera.give(SAFE, 100 + number / 10)
            turn(watch)
            assert ("p" in watch.board.cameras()[0]) == (number == 2)
        watch.slots[0].memory.clear()
        camera.give(SAFE, 100.3)
        slots = watch.receive(0.2)
        assert watch.predict(slots) == [None]
    found = list(steps(Detector(toy), [(n / 10, SAFE) for n in range(5)]))
    assert [p is None for _, p, _ in found] == [True, True, False, False, False]
    wide = np.repeat(SAFE, 2, 1)
    found = list(steps(Detector(toy), [(n / 10, wide if n > 2 else SAFE) for n in range(6)]))
    assert [p is None for _, p, _ in found] == [True, True, False, True, True, False], "a size never seen together"


def test_a_change_of_size_empties_the_memory_of_that_camera_alone(tmp_path: Path) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (4, 3, *SHAPE), dtype=np.uint8)
    toy = made(tmp_path, {"model.onnx": onnx_net(tmp_path / "m.onnx", shape=(3, *SHAPE))}, frames=clips, name="clips")
    asked = watch_config(tmp_path, "a", "b.mp4").model_copy(update={"bundle": toy.path})
    with loop.Watch(asked) as watch:
        for number in range(8):
            for slot in watch.slots:
                camera: Any = slot.camera
                camera.size = (6, 8) if number < 4 or slot.name == "c1" else (8, 6)
                camera.give(SAFE, number / 10)
            slots = watch.receive(0.2)
            answers = dict(zip([slot.name for slot in slots], watch.predict(slots), strict=True))
            assert [answers[name] is None for name in ("c0", "c1")] == [number in (0, 1, 4, 5), number < 2]


def test_what_becomes_of_a_camera_and_of_the_disk_is_said_in_the_log(tmp_path: Path) -> None:
    said: list[str] = []
    with loop.Watch(watch_config(tmp_path, "a"), log=said.append) as watch:
        camera: Any = watch.slots[0].camera
        camera.put(Note("state", {"state": "lost", "words": "connection refused"}))
        turn(watch)
        watch.store.trouble = "event cannot be written: database or disk is full"
        watch.tick()
        watch.store.trouble = None
        watch.tick()
    assert said == [
        "c0: lost: connection refused",
        "events: event cannot be written: database or disk is full",
        "events: can be written again",
    ]


def test_steps_gives_every_frame_its_answer_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "TOGETHER", 3)
    toy = made(tmp_path, {"model.onnx": onnx_net(tmp_path / "m.onnx")})
    pictures = [SAFE, DANGER, SAFE, DANGER, DANGER]
    found = list(steps(Detector(toy), [(n / 10, x) for n, x in enumerate(pictures)]))
    assert [time for time, *_ in found] == [0, 0.1, 0.2, 0.3, 0.4]
    assert [int(p.argmax()) for _, p, _ in found if p is not None] == [0, 1, 0, 1, 1]


def test_steps_skips_looks_without_a_person_and_asks_only_some(tmp_path: Path) -> None:
    toy = made(tmp_path, {"model.onnx": onnx_net(tmp_path / "m.onnx")})
    there = people.People(person_net(tmp_path / "p.onnx"), every=2)
    film = [(n / 10, np.zeros_like(SAFE) if n >= 4 else DANGER) for n in range(14)]
    found = list(steps(Detector(toy), film, people=there))
    forgiven = 2 * (people.MISSES - 1)
    assert [status for *_, status in found] == ["ok"] * (4 + forgiven) + ["empty"] * (10 - forgiven)
    assert [p is None for _, p, _ in found] == [status == "empty" for *_, status in found]
    assert (there.checked, there.skipped) == (7, 10 - forgiven)


@pytest.mark.parametrize(
    ("fps", "lost", "seen"),
    [
        (12, [], [0, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]),  # the frame after each tick, none left out
        (30, [], [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]),
        (30, [12, 13, 14, 15, 16], [0, 3, 6, 9, 17, 20, 23, 26, 29]),  # a tick is missed: the grid starts anew
        (30, [12, 13], [0, 3, 6, 9, 14, 16, 18, 21, 24, 27]),  # late: the next one half a step later at the earliest
    ],
)
def test_a_film_is_looked_at_on_the_grid_and_never_in_a_hurry(
    tmp_path: Path, fps: int, lost: list[int], seen: list[int]
) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (4, 3, *SHAPE), dtype=np.uint8)
    file = {"model.onnx": onnx_net(tmp_path / "m.onnx", shape=(3, *SHAPE))}
    toy = made(tmp_path, file, frames=clips, name="clips", look=(0.2, 0.1, 0.0))
    film = [(n / fps, SAFE) for n in range(30 if fps == 30 else 13) if n not in lost]
    assert [round(at * fps) for at, *_ in steps(Detector(toy), film)] == seen


def test_a_camera_of_another_shape_than_the_training_pictures_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    with loop.Watch(watch_config(tmp_path, "rtsp://x/", "rtsp://y/"), log=said.append) as watch:
        for slot, size in zip(watch.slots, ((480, 640), (640, 480)), strict=True):
            slot.camera.put(Note("shape", dict(zip(("height", "width"), size, strict=True))))  # type: ignore[attr-defined]
        turn(watch)
    assert [line.split(": ")[:2] for line in said] == [["c1", "warning"]]
    assert "480×640, is 0.75 times as wide as high (portrait)" in said[0]


def test_what_a_face_says_reaches_the_alarm_and_the_page(tmp_path: Path) -> None:
    """Readings of frames that a newer one overtook are not lost."""
    made_rule = Rule(profile="driver", indicators={"sleep": {"labels": ["danger"]}})
    config = watch_config(tmp_path, "rtsp://x/").model_copy(update={"rule": made_rule})
    shut = Signals(0.1, 0.1, 0.05, -5.0, -9.0, 0.0, 0.9)
    with loop.Watch(config) as watch:
        (slot,) = watch.slots
        camera: Any = slot.camera
        for number in range(50):
            lids = shut if 20 <= number < 40 else shut._replace(left_eye=0.27, right_eye=0.27)
            at = number / 10
            for late in (0.05, 0.0):  # the newer of the two overtakes
                camera.give(SAFE, at - late)
                frame = camera._held[-1]._replace(readings=(Reading(at - late, lids),))
                camera._held[-1] = frame
            turn(watch)
        assert slot.alarm.face.rate == pytest.approx(20, abs=0.5)
        (state,) = watch.board.cameras()
        assert state["face"]["eyes"] == 0.27 and 0 < state["face"]["learnt"] < 0.2
    said = database.events(tmp_path / "kept")
    assert [(one.kind, one.words.split(";")[0]) for one in said if one.kind == "sleep"] == [
        ("sleep", "microsleep: eyes shut for 1.0 s")
    ]


def test_pictures_without_a_person_reach_no_net_and_are_no_lost_camera(tmp_path: Path) -> None:
    """The person of this test is a bright picture; black ones are empty."""
    asked = watch_config(tmp_path, "rtsp://x/", "rtsp://y/", "rtsp://z/")
    filters = [Person(model=person_net(tmp_path / "p.onnx"), every=2), None, Person(model=tmp_path / "none.onnx")]
    changes = zip(asked.camera, filters, strict=True)
    cameras = tuple(camera.model_copy(update={"person": person}) for camera, person in changes)
    with loop.Watch(asked.model_copy(update={"camera": cameras})) as watch:
        assert watch.failed == {"c2": f"{tmp_path / 'none.onnx'}: no such file"}
        slot, base = watch.slots[0], time.monotonic()
        looked: list[int] = []
        predict = watch.detector.predict
        watch.detector.predict = lambda x: looked.append(len(x)) or predict(x)  # type: ignore[func-returns-value]
        film(watch, slot.camera, DANGER, base, base + 6)
        assert len(slot.alarm.open) == 1 and len(looked) == 60
        film(watch, slot.camera, np.zeros(SHAPE, np.uint8), base + 6, base + 16)
        forgiven = 2 * (people.MISSES - 1)
        assert len(looked) == 60 + forgiven and slot.memory.seen == 0
        assert not slot.alarm.open, "what is not seen any more accuses nobody, nor is the camera lost"
        fields, unfiltered, _ = watch.board.cameras()
        assert (fields["status"], fields["p"]) == ("empty", None)
        assert (fields["counters"]["people_checked"], fields["counters"]["people_skipped"]) == (80, 100 - forgiven)
        assert "people_skipped" not in unfiltered["counters"]
        assert f'stillwatch_people_skipped_total{{camera="c0"}} {100 - forgiven:.1f}' in watch.gauges.text().decode()
        watch.slots[0].clear()
        film(watch, slot.camera, DANGER, base + 16, base + 17)
        assert watch.board.cameras()[0]["status"] == "ok" and len(looked) == 70 + forgiven


def test_a_disarmed_camera_opens_no_event_and_is_still_called_lost(tmp_path: Path) -> None:
    said: list[str] = []
    asked = watch_config(tmp_path, "rtsp://x/", armed=("00:00-24:00",))
    with loop.Watch(asked, log=said.append) as watch:
        (slot,) = watch.slots
        camera, base, minute = slot.camera, time.monotonic(), time.localtime().tm_hour * 60 + 720
        looked: list[int] = []
        predict = watch.detector.predict
        watch.detector.predict = lambda x: looked.append(len(x)) or predict(x)  # type: ignore[func-returns-value]
        film(watch, camera, DANGER, base, base + 6)
        assert len(slot.alarm.open) == 1 and len(looked) == 60
        slot.schedule = Schedule(((minute % 1440, minute % 1440 + 60),))  # half a day away
        film(watch, camera, DANGER, base + 6, base + 16)
        assert not slot.alarm.open and len(looked) <= 61, "nobody is looked at"
        (fields,) = watch.board.cameras()
        assert (fields["armed"], fields["status"], fields["p"]) == (False, "empty", None)
        film(watch, camera, DANGER, base + 16, base + 26, fps=0.5)
        for number in range(40):  # as tick() says it, where no frame comes
            slot.alarm.step(base + 26 + number / 4, None, "lost")
        assert [event.kind for event in slot.alarm.open] == ["camera"]
        slot.schedule = Schedule()
        film(watch, camera, DANGER, base + 40, base + 46)
        assert "camera" not in {event.kind for event in slot.alarm.open} and len(slot.alarm.open) == 1
    later = f"{minute // 60 % 24:02d}:00-{minute // 60 % 24:02d}:59"
    with loop.Watch(watch_config(tmp_path, "rtsp://x/", armed=(later,)), log=said.append):
        assert said == ["c0: disarmed", "c0: armed", "c0: disarmed"], "said at the start too"


def workers_turn(watch: loop.Watch) -> int:
    """One round with workers; how many looks were decided."""
    decided = watch.exchange(watch.receive(0.2))
    for slot, p in decided:
        watch.decide(slot, p)
    watch.tick()
    return len(decided)


def looked(watch: loop.Watch, image: np.ndarray, at: float) -> list[Any]:
    """A picture of each camera, through the workers: each camera's p on the board."""
    for slot in watch.slots:
        slot.camera.give(image, at)  # type: ignore[attr-defined]
    left, end = len(watch.slots), time.monotonic() + 60
    while left > 0:
        left -= workers_turn(watch)
        assert time.monotonic() < end
    return [fields.get("p") for fields in watch.board.cameras()]


def test_workers_answer_as_one_process_does_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    said: list[str] = []
    asked = watch_config(tmp_path, "a", "b", "c")
    images = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), dtype=np.uint8)
    alone = Detector(asked.bundle).predict(images)
    with loop.Watch(asked.model_copy(update={"workers": 2}), log=said.append) as watch:
        assert [slot.worker is watch.workers[n] for slot, n in zip(watch.slots, (0, 1, 0), strict=True)] == [True] * 3
        for number, image in enumerate(images):
            found = looked(watch, image, 100 + number / 10)
            assert np.abs(np.array(found) - alone[number]).max() < 1e-3
        os.kill(watch.workers[0]._process.pid, signal.SIGKILL)
        until(lambda: workers_turn(watch) or said)
        until(lambda: workers_turn(watch) or all(worker.idle for worker in watch.workers), 60)
        assert np.abs(np.array(looked(watch, images[0], 101)) - alone[0]).max() < 1e-3
        pids = [worker._process.pid for worker in watch.workers]
    assert said == ["worker 1: its process ended; another one is started"]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_worker_holds_its_cameras_memories_and_forgets_them_when_told(tmp_path: Path) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (4, 3, *SHAPE), dtype=np.uint8)
    toy = made(tmp_path, {"model.onnx": onnx_net(tmp_path / "m.onnx", shape=(3, *SHAPE))}, frames=clips, name="clips")
    asked = watch_config(tmp_path, "a", "b").model_copy(update={"bundle": toy.path, "workers": 5})
    with loop.Watch(asked) as watch:
        assert len(watch.workers) == 2, "no more than cameras"
        there = [[p is not None for p in looked(watch, SAFE, 100 + number / 10)] for number in range(3)]
        assert there == [[False, False], [False, False], [True, True]]
        watch.slots[0].clear()
        for slot in watch.slots:
            watch.board.update(slot.name, p=None)
        assert [p is not None for p in looked(watch, SAFE, 100.3)] == [False, True]


def test_a_film_has_not_ended_while_a_worker_looks_at_its_last_frame(tmp_path: Path) -> None:
    asked = watch_config(tmp_path, "a.mp4", "b.mp4").model_copy(update={"workers": 2})
    with loop.Watch(asked) as watch:
        for number in range(50):
            looked(watch, DANGER, number / 10)
        (slot, _), taken = watch.slots, watch.workers[0].take
        assert len(slot.alarm.open) == 1
        slot.camera.give(DANGER, 5.0)  # type: ignore[attr-defined]
        watch.workers[0].take = dict  # type: ignore[method-assign]  # its answer is not here yet
        watch.exchange(watch.receive(1))
        slot.camera.state = "ended"
        watch.tick()
        assert len(slot.alarm.open) == 1
        watch.workers[0].take = taken  # type: ignore[method-assign]
        until(lambda: workers_turn(watch))
        watch.tick()
        assert slot.time == 5.0 and not slot.alarm.open
    assert {event.camera for event in database.events(tmp_path / "kept")} == {"c0", "c1"}


def test_a_net_that_a_worker_cannot_load_ends_the_watch_in_one_line(tmp_path: Path) -> None:
    asked = watch_config(tmp_path, "a", "b").model_copy(update={"workers": 2})
    with loop.Watch(asked) as watch:
        for worker in watch.workers:
            worker._settings = (str(tmp_path / "none"), 1, "onnxruntime", "model.onnx")
            worker.close()
            worker._start()
        with pytest.raises(UserError, match=r"^worker \d cannot start: .*not a bundle"):
            until(lambda: workers_turn(watch), 60)


def test_a_replacement_that_cannot_load_is_tried_again_and_the_other_worker_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    asked = watch_config(tmp_path, "a", "b").model_copy(update={"workers": 2})
    with loop.Watch(asked, log=said.append) as watch:
        looked(watch, SAFE, 100)
        bad, settings = watch.workers[0], watch.workers[0]._settings
        bad._settings = (str(tmp_path / "none"), *settings[1:])
        bad._process.kill()
        until(lambda: workers_turn(watch) or len(said) == 2, 60)
        assert said[1].startswith("worker 1 cannot start: ") and "not a bundle" in said[1] and bad.channel is None
        watch.slots[1].camera.give(DANGER, 100.1)  # type: ignore[attr-defined]
        until(lambda: workers_turn(watch), 60)
        bad._due = 0.0
        with monkeypatch.context() as patch:
            patch.setattr(worker, "spawn", Mock(side_effect=OSError(12, "Cannot allocate memory")))
            workers_turn(watch)
        assert "Cannot allocate memory" in said[2] and bad._wait == 2.0
        bad._due, bad._settings = 0.0, settings
        until(lambda: workers_turn(watch) or bad.idle, 60)
        assert all(p is not None for p in looked(watch, DANGER, 100.2))
    assert said[3:] == ["worker 1: looks again"]


def test_where_the_evidence_is_goes_to_the_camera_that_wants_it(tmp_path: Path) -> None:
    """The map of this net is its picture's green, row by row; it is as strong as the accusation."""
    file = onnx_net(tmp_path / "m.onnx", mapped=True)
    toy = made(tmp_path, {"model.onnx": file}, name="mapped", map=SHAPE[:2])
    asked = watch_config(tmp_path, "a", "b", "c").model_copy(update={"bundle": toy.path})
    wants = tuple(camera.model_copy(update={"where": camera.name != "c2"}) for camera in asked.camera)
    image = DANGER // 2
    image[1, 2] = (0, 255, 0)
    with loop.Watch(asked.model_copy(update={"camera": wants})) as watch:
        assert [camera["where"] for camera in watch.board.cameras()] == [True, True, False]
        cameras: list[Any] = [slot.camera for slot in watch.slots]
        with watch.board.viewing("c0", "where"), watch.board.viewing("c2", "where"):
            for camera in cameras:
                camera.give(image, 0.0)
            turn(watch)
        assert [len(camera.did("show")) for camera in cameras] == [1, 0, 0]
        ((_, shown),) = cameras[0].did("show")
        danger = watch.board.cameras()[0]["p"][1]
        assert (shown.shape, shown.dtype) == (SHAPE[:2], np.uint8)
        assert shown.argmax() == SHAPE[1] + 2 and shown.max() == pytest.approx(255 * danger, abs=1.1)
        assert shown.min() == pytest.approx(127 * danger, abs=1.1)
        for number in range(1, 60):  # in time a thumbnail is wanted, with the evidence just before it
            cameras[1].give(DANGER, number / 10)
            turn(watch)
        said = [words[0] for words in cameras[1].asked if words[0] in ("show", "snap")]
        assert said[:2] == ["show", "snap"]
        watch.slots[1].schedule = Schedule(((0, 0),))  # never armed
        watch.tick()
        cameras[1].give(DANGER, 6.0)
        turn(watch)
        assert watch.slots[1].evidence is None, "where it was says nothing about another event's picture"
        assert Detector(toy).predict(image[None]).shape == (1, 2) and Detector(toy).map is None
    with pytest.raises(UserError, match="no file shows where the evidence is"):
        Detector(made(tmp_path, {"model.onnx": file}, name="plain"), maps=True)
