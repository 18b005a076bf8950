"""Streams: pictures and messages end with their readers, resume where they were left, and cost no threads."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from event_toys import until
from web_toys import JPEG, Reader, Street, happened, opened, read_message

from stillwatch.monitor.web import streams


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    with opened(tmp_path) as it:
        yield it


def test_pictures_come_as_multipart_and_old_ones_do_not(street: Street) -> None:
    street.board.show("cab", b"\xff\xd8 from before anybody looked \xff\xd9")
    with Reader(street.port, "/api/v1/cameras/cab/live.mjpg") as viewer:
        head = viewer.until(b"--stillwatch-picture\r\n")
        assert b"multipart/x-mixed-replace; boundary=stillwatch-picture" in head
        until(lambda: street.board.asked("cab", "picture") == 1)
        for number in range(3):
            street.board.show("cab", JPEG + bytes([number]))
            part = viewer.until(b"--stillwatch-picture\r\n")
            assert JPEG + bytes([number]) in part
            assert b"before anybody" not in part
            assert f"Content-Length: {len(JPEG) + 1}\r\n".encode() in part
        assert street.board.asked("yard", "picture") == 0
    until(lambda: street.board.asked("cab", "picture") == 0)  # noticed, though no picture has come since


def test_several_cameras_share_one_connection(street: Street) -> None:
    with Reader(street.port, "/api/v1/pictures?camera=yard&camera=cab&camera=yard") as viewer:
        viewer.until(b"--stillwatch-picture\r\n")
        until(lambda: street.board.asked("cab", "picture") == street.board.asked("yard", "picture") == 1)
        street.board.show("yard", JPEG)
        assert b"X-Camera: yard\r\n" in viewer.until(b"--stillwatch-picture\r\n")
        street.board.show("cab", JPEG)
        assert b"X-Camera: cab\r\n" in viewer.until(b"--stillwatch-picture\r\n")
    assert street.error("/api/v1/pictures?camera=gate")[0] == 404
    assert street.error("/api/v1/cameras/gate/live.mjpg")[0] == 404


def test_one_picture_is_taken_when_it_is_asked_for(street: Street) -> None:
    street.board.show("cab", b"old")
    with Reader(street.port, "/api/v1/cameras/cab/picture.jpg") as viewer:
        until(lambda: street.board.asked("cab", "picture") == 1)
        street.board.show("cab", JPEG)
        assert b"image/jpeg" in viewer.until(JPEG)
    until(lambda: street.board.asked("cab", "picture") == 0)


def test_a_viewer_who_does_not_read_holds_up_nobody(street: Street) -> None:
    large = b"\xff\xd8" + bytes(500_000)
    with Reader(street.port, "/api/v1/cameras/cab/live.mjpg"):
        until(lambda: street.board.asked("cab", "picture") == 1)
        for _ in range(20):
            street.board.show("cab", large)
            time.sleep(0.03)
        assert street.json("/healthz")["alive"]
    until(lambda: street.board.asked("cab", "picture") == 0)


def test_many_viewers_cost_no_threads(street: Street) -> None:
    street.json("/api/v1/cameras")
    before = threading.active_count()
    viewers = [Reader(street.port, "/api/v1/pictures") for _ in range(20)]
    listeners = [Reader(street.port, "/api/v1/stream") for _ in range(20)]
    until(lambda: street.board.asked("cab", "picture") == 20)
    for listener in listeners:
        listener.until(b"event: cameras")
    assert threading.active_count() <= before
    for one in (*viewers, *listeners):
        one.socket.close()
    until(lambda: street.board.asked("cab", "picture") == 0)


def test_messages_arrive_and_are_resumed_where_they_were_left(street: Street) -> None:
    street.board.publish("event", id="before")
    with Reader(street.port, "/api/v1/stream") as listener:
        assert read_message(listener, "cameras")[1]["cameras"][0]["name"] == "cab"
        street.board.publish("event", id="cab-s-1", event=happened().as_dict())
        last, told = read_message(listener, "event")
        assert (told["id"], told["event"]["words"]) == ("cab-s-1", "a phone in the hand")
        assert "clip" not in told["event"]
        street.board.update("cab", state="lost")
        until(lambda: read_message(listener, "cameras")[1]["cameras"][0]["condition"] == "lost")
    street.board.publish("event", id="missed-1")
    street.board.publish("camera", camera="cab", state="live")
    with Reader(street.port, "/api/v1/stream", Last_Event_ID=last) as listener:
        assert read_message(listener, "event")[1] == {"id": "missed-1"}
        assert read_message(listener, "camera")[1] == {"camera": "cab", "state": "live"}


@pytest.mark.parametrize("last", ["0-3", "nonsense", "-", "{start}-999", "{start}-x", "{start}-" + "9" * 5000])
def test_who_cannot_be_resumed_is_told_so(street: Street, last: str) -> None:
    street.board.publish("event", id="before")
    start = format(int(1000 * street.board.started), "x")
    with Reader(street.port, "/api/v1/stream", Last_Event_ID=last.format(start=start)) as listener:
        id, _ = read_message(listener, "missed")
        assert id == f"{start}-1"
        street.board.publish("event", id="after")
        assert read_message(listener, "event")[1] == {"id": "after"}


def test_a_quiet_stream_still_breathes(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BREATH", 0.05)
    monkeypatch.setattr(streams.StreamHub, "shared", lambda self: b"event: cameras\ndata: {}\n\n")
    with Reader(street.port, "/api/v1/stream") as listener:
        assert read_message(listener, "cameras")[1] == {}
        assert read_message(listener, "still")[1] == {}
