"""Tapes: what is remembered is bounded, and a clip is the stream's own packets, whole or said to be cut."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import streams

from stillwatch.monitor.cameras import recorder
from stillwatch.monitor.cameras.recorder import BufferedPacket, Encode, PacketBuffer, Remux, Timeline
from stillwatch.monitor.cameras.source import open_video


class Reports(list[tuple[str, dict[str, Any]]]):
    """What a buffer reported, by names."""

    def __call__(self, what: str, *fields: Any) -> None:
        names = {"clip": ("event", "seconds", "whole"), "missed": ("event",), "trouble": ("words",)}[what]
        self.append((what, dict(zip(names, fields, strict=True))))

    def clip(self) -> dict[str, Any]:
        ((what, fields),) = self
        assert what == "clip"
        return fields


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv"])
def test_a_clip_is_the_packets_of_the_stream_from_a_keyframe_on(tmp_path: Path, name: str) -> None:
    film, reports = streams.film(tmp_path / name, 10), Reports()
    buffer = PacketBuffer(3, 24, 60, reports)
    for now in streams.played(film, buffer):
        if abs(now - 6) < 0.01:
            buffer.record("one", tmp_path / "one.mp4", since=3.5, until=None)
            assert (tmp_path / "one.mp4.part").is_file() and not (tmp_path / "one.mp4").exists()
        if abs(now - 7) < 0.01:
            buffer.finish("one", until=8)
    assert reports.clip() == {"event": "one", "seconds": 5.0, "whole": True}
    assert not (tmp_path / "one.mp4.part").exists()
    of_film, of_clip = decoded(film), decoded(tmp_path / "one.mp4")
    assert len(of_clip) == 51, "from second 3, a keyframe, to second 8"
    assert all((one == other).all() for one, other in zip(of_clip, of_film[30:81], strict=True))
    with av.open(str(tmp_path / "one.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert float(container.duration or 0) / av.time_base == pytest.approx(5.1, abs=0.15)


def test_one_that_ended_before_it_was_asked_for_is_written_at_once(tmp_path: Path) -> None:
    reports = Reports()
    buffer = PacketBuffer(8, 24, 60, reports)
    list(streams.played(streams.film(tmp_path / "a.mp4", 5), buffer))
    buffer.record("one", tmp_path / "one.mp4", since=1, until=3)
    assert reports.clip()["whole"] and reports.clip()["seconds"] == 2.0
    buffer.finish("one", 4)
    assert len(reports) == 1, "there is no such clip any more"


def test_two_clips_grow_side_by_side(tmp_path: Path) -> None:
    reports = Reports()
    buffer = PacketBuffer(2, 24, 60, reports)
    for now in streams.played(streams.film(tmp_path / "a.mp4", 6), buffer):
        if abs(now - 2) < 0.01:
            buffer.record("one", tmp_path / "one.mp4", 1, None)
            buffer.record("one", tmp_path / "again.mp4", 1, None)
        if abs(now - 3) < 0.01:
            buffer.record("two", tmp_path / "two.mp4", 2, 4)
    buffer.close()
    clips = {fields["event"]: fields["whole"] for _, fields in reports}
    lengths = {event: (len(decoded(tmp_path / f"{event}.mp4")), whole) for event, whole in clips.items()}
    assert lengths == {"two": (21, True), "one": (50, False)}
    assert not (tmp_path / "again.mp4").exists()


def test_a_clip_ends_at_its_longest(tmp_path: Path) -> None:
    reports = Reports()
    buffer = PacketBuffer(1, 24, longest=2, report=reports)
    for now in streams.played(streams.film(tmp_path / "a.mp4", 6), buffer):
        if abs(now - 1) < 0.01:
            buffer.record("one", tmp_path / "one.mp4", 1, None)
    assert reports.clip()["seconds"] == 2.0 and not reports.clip()["whole"]


def held(buffer: PacketBuffer) -> tuple[float, int]:
    """(seconds, bytes) in the ring."""
    return buffer._ring[-1].clock - buffer._ring[0].clock, buffer._size


def test_the_ring_is_bounded_by_seconds_and_by_bytes(tmp_path: Path) -> None:
    head = b""
    buffer = PacketBuffer(5, 1, 60, print)
    for number in range(3000):
        buffer.push(BufferedPacket(bytes(100), number % 10 == 0, number / 10, number / 10, number / 10, head))
    assert 5 + recorder.REACH <= held(buffer)[0] <= 5 + recorder.REACH + 1
    for number in range(3000, 3100):
        buffer.push(BufferedPacket(bytes(60_000), number % 10 == 0, number / 10, number / 10, number / 10, head))
        assert held(buffer)[1] <= (1 << 20) + 60_000
    for number in range(3100, 3200):  # a stream without another keyframe must not grow for ever
        buffer.push(BufferedPacket(bytes(60_000), False, number / 10, number / 10, number / 10, head))
    assert held(buffer)[1] <= (1 << 20) + 60_000


def test_a_stream_that_breaks_off_cuts_its_clips_and_one_asked_for_later_waits(tmp_path: Path) -> None:
    film, reports = streams.film(tmp_path / "a.mp4", 3), Reports()
    buffer = PacketBuffer(2, 24, 60, reports)
    for now in streams.played(film, buffer):
        if abs(now - 1) < 0.01:
            buffer.record("cut", tmp_path / "cut.mp4", 0, None)
    buffer.cut()
    assert reports.clip()["whole"] is False and len(decoded(tmp_path / "cut.mp4")) == 30
    buffer.record("last", tmp_path / "last.mp4", 1.5, 4)  # what led to it is still known
    buffer.record("later", tmp_path / "later.mp4", 50, None)
    buffer.cut()
    assert [fields["event"] for _, fields in reports] == ["cut", "last"]
    for _ in streams.played(streams.film(tmp_path / "b.mp4", 2, size=(120, 160)), buffer, offset=100):
        pass
    buffer.close()
    assert reports[-1][1]["event"] == "later"
    assert [image.shape for image in decoded(tmp_path / "later.mp4")] == [(120, 160, 3)] * 20
    buffer.record("never", tmp_path / "never.mp4", 500, None)
    buffer.close()
    assert reports[-1] == ("missed", {"event": "never"}) and not (tmp_path / "never.mp4").exists()


def test_a_change_of_size_within_a_stream_begins_a_new_head(tmp_path: Path) -> None:
    reports = Reports()
    buffer = PacketBuffer(2, 24, 60, reports)
    parts = [streams.film(tmp_path / f"{n}.ts", 2, size=size) for n, size in enumerate([(96, 128), (120, 160)])]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(str(tmp_path / "both.ts")) as container:
        stream = container.streams.video[0]
        remux = Remux(buffer, stream)
        for number, packet in enumerate(container.demux(stream)):
            packet.decode()
            remux.push(packet, number / 10)
            if number == 5:
                buffer.record("one", tmp_path / "one.mp4", 0, None)
            if number == 25:
                buffer.record("two", tmp_path / "two.mp4", 0, None)
    buffer.close()
    assert [image.shape[:2] for image in decoded(tmp_path / "one.mp4")] == [(96, 128)] * 20
    assert [image.shape[:2] for image in decoded(tmp_path / "two.mp4")] == [(120, 160)] * 20
    assert [fields["whole"] for _, fields in reports] == [False, False]


KILLED = """
import os, sys
from pathlib import Path
from streams import played
from stillwatch.monitor.cameras.recorder import PacketBuffer
film, clip = map(Path, sys.argv[1:])
buffer = PacketBuffer(1, 24, 60, print)
for now in played(film, buffer):
    if abs(now - 1) < 0.01:
        buffer.record("one", clip, 0, None)
os._exit(0)  # without a word to the clip
"""


def test_what_a_killed_writer_leaves_can_be_played(tmp_path: Path) -> None:
    film, clip = streams.film(tmp_path / "a.mp4", 6), tmp_path / "one.mp4"
    subprocess.run([sys.executable, "-c", KILLED, str(film), str(clip)], cwd=Path(streams.__file__).parent, check=True)
    assert not clip.exists()
    assert len(decoded(tmp_path / "one.mp4.part")) >= 40, "at most the last two seconds are lost"


def test_a_disk_that_takes_nothing_is_said_and_survived(tmp_path: Path) -> None:
    reports = Reports()
    buffer = PacketBuffer(2, 24, 60, reports)
    (tmp_path / "taken").touch()
    for now in streams.played(streams.film(tmp_path / "a.mp4", 3), buffer):
        if abs(now - 1) < 0.01:
            buffer.record("one", tmp_path / "taken" / "one.mp4", 0, None)
    assert [what for what, _ in reports] == ["trouble", "missed"]
    assert "clip of one: File exists" in reports[0][1]["words"]
    assert held(buffer)[0] == pytest.approx(2.9)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_ends_the_clip_and_nothing_else(tmp_path: Path) -> None:
    reports = Reports()
    buffer = PacketBuffer(2, 24, 60, reports)
    (tmp_path / "one.mp4.part").symlink_to("/dev/full")
    for now in streams.played(streams.film(tmp_path / "a.mp4", 3), buffer):
        if abs(now - 1) < 0.01:
            buffer.record("one", tmp_path / "one.mp4", 0, None)
    buffer.close()
    assert [what for what, _ in reports] == ["trouble", "missed"]
    assert "No space left" in reports[0][1]["words"]


def test_pictures_are_encoded_once_with_a_keyframe_each_second(tmp_path: Path) -> None:
    reports = Reports()
    buffer = PacketBuffer(3, 24, 60, reports)
    encode = Encode(buffer, 10)
    for number in range(60):
        encode.push(np.full((49, 65, 3), 4 * number, np.uint8), 100 + number / 10)
        if number == 40:
            buffer.record("one", tmp_path / "one.mp4", 102.2, 105)
    assert reports.clip()["whole"]
    shown = decoded(tmp_path / "one.mp4")
    assert [image.shape for image in shown] == [(48, 64, 3)] * 31
    assert [round(image.mean() / 4) for image in shown] == pytest.approx(range(20, 51), abs=1)
    encode.push(np.zeros((60, 80, 3), np.uint8), 106.0)
    buffer.record("two", tmp_path / "two.mp4", 106.0, None)
    buffer.close()
    assert [image.shape for image in decoded(tmp_path / "two.mp4")] == [(60, 80, 3)]


def test_seconds_of_a_clip_rise_whatever_the_stream_says() -> None:
    line = Timeline()
    assert [line.at(own, clock) for own, clock in [(500.0, 10.0), (500.1, 10.1)]] == pytest.approx([0, 0.1])
    assert line.at(0.0, 10.2) == pytest.approx(0.2), "its time began anew"
    assert line.at(0.5, 10.3) == pytest.approx(0.7), "its own is smoother than the clock of arrival"
    assert line.at(0.5, 10.3) > 0.7
    assert line.at(9999.0, 10.4) == pytest.approx(0.801)
    assert line.at(None, 10.5) == pytest.approx(0.901)


def test_parameter_sets_are_found_before_the_picture() -> None:
    stream = b"\0\0\0\1\x09\x10\0\0\0\1\x67SPS\0\0\0\1\x68PPS\0\0\1\x65picture"
    assert recorder.parameter_sets(stream, "h264") == b"\0\0\0\1\x67SPS\0\0\0\1\x68PPS"
    assert recorder.parameter_sets(b"\0\0\0\1\x65picture", "h264") == b""
    assert recorder.parameter_sets(b"\0\0\0\x05\x67SPS", "h264") == b"", "with lengths: its head knows them"
    assert (
        recorder.parameter_sets(b"\0\0\1\x40\1V\0\0\1\x42\1S\0\0\1\x44\1P\0\0\1\x26\1x", "hevc").count(b"\0\0\0\1") == 3
    )
