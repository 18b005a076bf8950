"""The board holds the newest of everything, and nothing more; gauges are exact text for exact numbers."""

import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stillwatch.monitor.state import BUCKETS, MESSAGES, Board, Gauges


def board() -> Board:
    return Board(("Safe", "Bad"), ("Safe",), ("cab", "yard"))


def test_fields_are_laid_over_one_another_and_copies_are_given() -> None:
    it = board()
    it.update("cab", state="live", p=[0.1, 0.9])
    it.update("cab", state="lost")
    first, second = it.cameras()
    assert first.pop("since") > 0
    assert first == {"name": "cab", "state": "lost", "p": [0.1, 0.9]}
    assert second == {"name": "yard", "state": "starting"}
    first["state"] = "mine"
    assert it.cameras()[0]["state"] == "lost"


def test_it_is_known_since_when_a_camera_is_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    it, now = board(), [100.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    it.update("cab", state="live", status="ok")
    now[0] = 105.0
    it.update("cab", state="live", status="ok", p=[0.5, 0.5])
    assert it.cameras()[0]["since"] == 100
    it.update("cab", status="frozen")
    assert it.cameras()[0]["since"] == 105


def test_only_the_newest_picture_is_there() -> None:
    it = board()
    assert it.picture("cab") == (0, b"")
    it.show("cab", b"one")
    it.show("cab", b"two")
    assert it.picture("cab") == (2, b"two")


def test_viewers_are_counted_also_where_one_fails() -> None:
    it = board()
    with it.viewing("cab"):
        try:
            with it.viewing("cab"):
                assert (it.asked("cab", "picture"), it.asked("yard", "picture")) == (2, 0)
                raise ConnectionError
        except ConnectionError:
            pass
        assert it.asked("cab", "picture") == 1
    assert it.asked("cab", "picture") == 0


def test_a_listener_gets_what_came_after_and_a_slow_one_the_newest_only() -> None:
    it = board()
    it.publish("event", id="a")
    number, messages = it.messages(0)
    assert (number, messages) == (1, [{"what": "event", "id": "a"}])
    assert it.messages(number) == (1, [])
    for n in range(2 * MESSAGES):
        it.publish("event", id=n)
    number, messages = it.messages(number)
    assert number == 1 + 2 * MESSAGES
    assert [m["id"] for m in messages] == list(range(MESSAGES, 2 * MESSAGES))


def test_many_threads_may_say_something() -> None:
    it = board()
    threads = [threading.Thread(target=lambda: [it.publish("x") for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert it.messages(0)[0] == 400


def gauged(*cameras: str) -> Gauges:
    return Gauges(Board((), (), cameras))


def samples(gauges: Gauges) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = gauges.text().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_camera_has_its_series_before_anything_happened() -> None:
    found = samples(gauged("cab", "yard"))
    for camera in ("cab", "yard"):
        assert found["stillwatch_capture_to_decision_seconds_count", (("camera", camera),)] == 0
        for name in ("frames", "dropped", "stalls", "reconnects", "respawns"):
            assert found[f"stillwatch_{name}_total", (("camera", camera),)] == 0


def test_latencies_fall_into_buckets() -> None:
    gauges = gauged("cab")
    for seconds in (0.004, 0.055, 0.09, 0.7, -0.001):  # a clock's last digit must not raise
        gauges.latency("cab", seconds)
    found = samples(gauges)
    name = "stillwatch_capture_to_decision_seconds"
    at = {le: found[f"{name}_bucket", (("camera", "cab"), ("le", le))] for le in ("0.005", "0.06", "0.1", "0.5", "1.0")}
    assert at == {"0.005": 2, "0.06": 3, "0.1": 4, "0.5": 4, "1.0": 5}
    assert abs(found[f"{name}_sum", (("camera", "cab"),)] - 0.849) < 1e-9
    assert 0.1 in BUCKETS  # the promise has an edge of its own: it can be read without interpolation


def test_totals_are_the_boards() -> None:
    it = board()
    gauges = Gauges(it)
    it.update("cab", counters={"frames": 10})
    it.update("cab", counters={"frames": 25, "stalls": 1})
    found = samples(gauges)
    assert [found[f"stillwatch_{name}_total", (("camera", "cab"),)] for name in ("frames", "stalls")] == [25, 1]
    assert found["stillwatch_frames_total", (("camera", "yard"),)] == 0


def test_events_levels_and_the_process_are_counted() -> None:
    gauges = gauged("cab")
    gauges.event("cab", "phone", "warn")
    gauges.event("cab", "phone", "warn")
    gauges.event("cab", "phone", "alarm")
    gauges.level("camera_live", "1: it gives pictures", 1, camera="cab")
    gauges.level("camera_live", "1: it gives pictures", 0, camera="cab")
    gauges.level("rows_waiting", "not on disk yet", 7)
    found = samples(gauges)
    assert found["stillwatch_events_total", (("camera", "cab"), ("kind", "phone"), ("level", "warn"))] == 2
    assert found["stillwatch_events_total", (("camera", "cab"), ("kind", "phone"), ("level", "alarm"))] == 1
    assert found["stillwatch_camera_live", (("camera", "cab"),)] == 0
    assert found["stillwatch_rows_waiting", ()] == 7
    assert found["process_resident_memory_bytes", ()] > 1e6


def test_two_of_them_never_mix() -> None:
    one, two = gauged("cab"), gauged("cab")
    one.event("cab", "phone", "warn")
    assert not [key for key in samples(two) if key[0] == "stillwatch_events_total"]


def test_a_name_with_quotes_and_lines_is_escaped() -> None:
    gauges = gauged('a"b\\c\nd')
    assert samples(gauges)["stillwatch_frames_total", (("camera", 'a"b\\c\nd'),)] == 0


def test_threads_may_write_while_one_reads() -> None:
    gauges = gauged("cab")

    def work() -> None:
        for _ in range(200):
            gauges.latency("cab", 0.01)
            gauges.event("cab", "k", "warn")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        gauges.text()
    for thread in threads:
        thread.join()
    assert samples(gauges)["stillwatch_capture_to_decision_seconds_count", (("camera", "cab"),)] == 800
