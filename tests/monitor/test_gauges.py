"""Gauges: exact text for exact numbers, and no state outside of one object."""

import threading

from prometheus_client.parser import text_string_to_metric_families

from stillwatch.monitor.gauges import BUCKETS, Gauges


def samples(gauges: Gauges) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = gauges.text().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_camera_has_its_series_before_anything_happened() -> None:
    found = samples(Gauges(["cab", "yard"]))
    for camera in ("cab", "yard"):
        assert found["stillwatch_capture_to_decision_seconds_count", (("camera", camera),)] == 0
        for name in ("frames", "dropped", "stalls", "reconnects", "respawns"):
            assert found[f"stillwatch_{name}_total", (("camera", camera),)] == 0


def test_latencies_fall_into_buckets() -> None:
    gauges = Gauges(["cab"])
    for seconds in (0.004, 0.055, 0.09, 0.7, -0.001):  # a clock's last digit must not raise
        gauges.latency("cab", seconds)
    found = samples(gauges)
    name = "stillwatch_capture_to_decision_seconds"
    at = {le: found[f"{name}_bucket", (("camera", "cab"), ("le", le))] for le in ("0.005", "0.06", "0.1", "0.5", "1.0")}
    assert at == {"0.005": 2, "0.06": 3, "0.1": 4, "0.5": 4, "1.0": 5}
    assert abs(found[f"{name}_sum", (("camera", "cab"),)] - 0.849) < 1e-9
    assert 0.1 in BUCKETS  # the promise has an edge of its own: it can be read without interpolation


def test_totals_are_taken_as_they_are_told() -> None:
    gauges = Gauges(["cab"])
    gauges.count("cab", "frames", 10)
    gauges.count("cab", "frames", 25)
    gauges.count("cab", "novel", 3)
    found = samples(gauges)
    assert found["stillwatch_frames_total", (("camera", "cab"),)] == 25
    assert found["stillwatch_novel_total", (("camera", "cab"),)] == 3


def test_events_levels_and_the_process_are_counted() -> None:
    gauges = Gauges(["cab"])
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
    one, two = Gauges(["cab"]), Gauges(["cab"])
    one.event("cab", "phone", "warn")
    assert not [key for key in samples(two) if key[0] == "stillwatch_events_total"]


def test_a_name_with_quotes_and_lines_is_escaped() -> None:
    gauges = Gauges(['a"b\\c\nd'])
    assert samples(gauges)["stillwatch_frames_total", (("camera", 'a"b\\c\nd'),)] == 0


def test_threads_may_write_while_one_reads() -> None:
    gauges = Gauges(["cab"])

    def work() -> None:
        for number in range(200):
            gauges.latency("cab", 0.01)
            gauges.count("cab", f"n{number}", number)
            gauges.event("cab", "k", "warn")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        gauges.text()
    for thread in threads:
        thread.join()
    assert samples(gauges)["stillwatch_capture_to_decision_seconds_count", (("camera", "cab"),)] == 800
