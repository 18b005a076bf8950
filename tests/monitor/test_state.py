"""The board holds the newest of everything, and nothing more."""

import threading
import time

import pytest

from stillwatch.monitor.state import SAID, Board


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
                assert (it.viewers("cab"), it.viewers("yard")) == (2, 0)
                raise ConnectionError
        except ConnectionError:
            pass
        assert it.viewers("cab") == 1
    assert it.viewers("cab") == 0


def test_a_listener_gets_what_came_after_and_a_slow_one_the_newest_only() -> None:
    it = board()
    it.say("event", id="a")
    number, messages = it.said(0)
    assert (number, messages) == (1, [{"what": "event", "id": "a"}])
    assert it.said(number) == (1, [])
    for n in range(2 * SAID):
        it.say("event", id=n)
    number, messages = it.said(number)
    assert number == 1 + 2 * SAID
    assert [m["id"] for m in messages] == list(range(SAID, 2 * SAID))


def test_many_threads_may_say_something() -> None:
    it = board()
    threads = [threading.Thread(target=lambda: [it.say("x") for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert it.said(0)[0] == 400
