"""Each event reaches each sink: slow ones, ones that are away, across a kill; and nobody is told too often."""

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from event_toys import EVENT, NOW, Receiver, receiving, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillwatch.monitor.config import Keep, Sink
from stillwatch.monitor.events import outbox as posts
from stillwatch.monitor.events import sinks
from stillwatch.monitor.events.database import JOURNAL, connect, events, storable
from stillwatch.monitor.events.outbox import Dispatcher
from stillwatch.monitor.events.store import Store


class Ear(sinks.Sender):
    """A sink that the test looks into. down: it refuses."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.down = False
        self.hates = ""  # the id that it always refuses
        self.called = 0
        self.slow = threading.Event()
        self.slow.set()

    def send(self, event: sinks.Message, clip: Path | None) -> None:
        self.called += 1
        self.slow.wait(20)
        if self.down or event.id == self.hates:
            raise sinks.Refused("away")
        self.heard.append({**event.payload(), "clip": clip})

    def close(self) -> None:
        pass

    def ids(self) -> list[str]:
        return [event["id"] for event in self.heard]


EARS: dict[str, Ear] = {}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    EARS.clear()
    monkeypatch.setattr(posts, "FIRST", 0.05)
    monkeypatch.setattr(posts, "LONGEST", 0.1)
    monkeypatch.setitem(sinks.SINKS, "ear", lambda: ear())


@contextlib.contextmanager
def running(folder: Path, *told: Sink) -> Iterator[Store]:
    store = Store(Keep(folder=folder), told)
    store.said = []  # type: ignore[attr-defined]
    post = Dispatcher(store, told, store.said.append)  # type: ignore[attr-defined]
    post.start()
    store.post = post  # type: ignore[attr-defined]
    try:
        yield store
    finally:
        post.close(5)
        store.close(5)


def ear() -> Ear:
    return EARS.setdefault("ear", Ear())


def sink(**keys: Any) -> Sink:
    return Sink(name="ear", to="ear", **{"level": "notice", **keys})


def test_every_event_is_heard_once(tmp_path: Path) -> None:
    with running(tmp_path, sink()) as store:
        for n in range(20):
            store.put(replace(EVENT, id=f"e{n}"))
            store.put(replace(EVENT, id=f"e{n}", state="raised"))
        until(lambda: len(ear().heard) == 20)
        time.sleep(0.1)
    assert ear().ids() == [f"e{n}" for n in range(20)]


def test_a_sink_that_is_away_gets_everything_when_it_is_back(tmp_path: Path) -> None:
    ear().down = True
    with running(tmp_path, sink()) as store:
        for n in range(5):
            store.put(replace(EVENT, id=f"e{n}"))
        until(lambda: store.post.status()[0].failed >= 3)  # type: ignore[attr-defined]
        (state,) = store.post.status()  # type: ignore[attr-defined]
        assert (state.pending, state.sent, state.last_error) == (5, 0, "away")
        ear().down = False
        until(lambda: len(ear().heard) == 5)
        until(lambda: store.post.status()[0].sent == 5)  # type: ignore[attr-defined]
        assert store.post.status()[0].last_error is None  # type: ignore[attr-defined]
    assert store.said == ["sink ear: away; it is tried again", "sink ear: takes events again"]  # type: ignore[attr-defined]
    assert sorted(ear().ids()) == [f"e{n}" for n in range(5)]


def test_a_full_disk_silences_nobody_and_nothing_is_said_twice(tmp_path: Path) -> None:
    """A lock stands for the full disk: the store cannot write for as long as it is held."""
    with (
        running(tmp_path, sink(per_hour=3, updates=True)) as store,
        contextlib.closing(connect(tmp_path, write=True)) as db,
    ):
        db.execute("BEGIN IMMEDIATE")
        for n in range(5):
            store.put(replace(EVENT, id=f"e{n}"))
        store.put(replace(EVENT, id="e0", state="closed", end=NOW + 9))
        until(lambda: len(ear().heard) == 4)
        assert store.waiting == 6
        db.execute("ROLLBACK")
        until(lambda: not store.waiting and store.post.status()[0].pending == 0)  # type: ignore[attr-defined]
        (state,) = store.post.status()  # type: ignore[attr-defined]
    assert [(e["id"], e["state"]) for e in ear().heard] == [
        ("e0", "opened"), ("e1", "opened"), ("e2", "opened"), ("e0", "closed"),
    ]  # fmt: skip
    assert (state.sent, state.held) == (4, 2)


def test_a_slow_sink_holds_up_neither_store_nor_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ear().slow.clear()
    log = Sink(name="log", to="log", level="notice")
    with running(tmp_path, sink(), log) as store:
        start = time.monotonic()
        store.put(EVENT)
        assert time.monotonic() - start < 1
        until(lambda: store.post.status()[1].sent == 1)  # type: ignore[attr-defined]
        assert not ear().heard
        ear().slow.set()
        until(lambda: ear().heard)
    assert "phone for 3 s" in capsys.readouterr().out


def test_with_updates_a_sink_hears_that_it_got_worse_and_that_it_ended(tmp_path: Path) -> None:
    with running(tmp_path, sink(updates=True)) as store:
        for level, state in (("warn", "opened"), ("alarm", "raised"), ("alarm", "closed")):
            before = len(ear().heard)
            store.put(replace(EVENT, level=level, state=state))  # type: ignore[arg-type]
            until(lambda before=before: len(ear().heard) > before)  # type: ignore[misc]
    assert [(e["level"], e["state"]) for e in ear().heard] == [
        ("warn", "opened"),
        ("alarm", "raised"),
        ("alarm", "closed"),
    ]


def test_what_is_over_when_a_sink_comes_back_is_said_once_as_it_now_is(tmp_path: Path) -> None:
    ear().down = True
    with running(tmp_path, sink(updates=True)) as store:
        for level, state in (("warn", "opened"), ("alarm", "raised"), ("alarm", "closed")):
            store.put(replace(EVENT, level=level, state=state))  # type: ignore[arg-type]
        until(lambda: not store.waiting)
        ear().down = False
        until(lambda: ear().heard)
        until(lambda: store.post.status()[0].pending == 0)  # type: ignore[attr-defined]
    assert [(e["level"], e["state"]) for e in ear().heard] == [("alarm", "closed")]


def test_a_cooldown_is_for_one_camera_and_kind_and_what_was_held_is_said(tmp_path: Path) -> None:
    with running(tmp_path, sink(cooldown=3600)) as store:
        for n, (camera, kind) in enumerate([("cab", "phone"), ("cab", "phone"), ("cab", "phone"), ("yard", "phone")]):
            store.put(replace(EVENT, id=f"e{n}", camera=camera, kind=kind))
        until(lambda: len(ear().heard) == 2)
        until(lambda: store.post.status()[0].held == 2)  # type: ignore[attr-defined]
    assert ear().ids() == ["e0", "e3"]
    assert ear().heard[1]["held"] == 2


def test_an_hourly_ceiling_holds_the_rest_back_also_after_a_start(tmp_path: Path) -> None:
    with running(tmp_path, sink(per_hour=3)) as store:
        for n in range(6):
            store.put(replace(EVENT, id=f"e{n}", kind=f"k{n}"))
        until(lambda: store.post.status()[0].held == 3)  # type: ignore[attr-defined]
    with running(tmp_path, sink(per_hour=3)) as store:
        store.put(replace(EVENT, id="later"))
        until(lambda: store.post.status()[0].held == 4)  # type: ignore[attr-defined]
    assert ear().ids() == ["e0", "e1", "e2"]


def test_a_sink_may_wait_for_the_clip(tmp_path: Path) -> None:
    with running(tmp_path, sink(wait_clip=True)) as store:
        store.put(EVENT)
        until(lambda: not store.waiting)
        assert not ear().heard
        clip = tmp_path / "clips" / "a.mp4"
        clip.write_bytes(b"x")
        store.attach(EVENT.id, clip=clip)
        until(lambda: ear().heard)
    assert ear().heard[0]["clip"] == clip


def test_the_last_words_of_a_watch_are_still_sent(tmp_path: Path) -> None:
    with running(tmp_path, sink()) as store:
        store.put(EVENT)
        until(lambda: not store.waiting)
    assert ear().ids() == [EVENT.id]


def test_a_jump_of_the_wall_clock_loses_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ear().down = True
    with running(tmp_path, sink(cooldown=0.001)) as store:
        store.put(EVENT)
        until(lambda: store.post.status()[0].failed)  # type: ignore[attr-defined]
        monkeypatch.setattr(time, "time", lambda: NOW - 86400 * 4000)
        ear().down = False
        until(lambda: ear().heard)
        store.put(replace(EVENT, id="e2", state="closed", end=NOW))
        until(lambda: len(ear().heard) == 2)
        monkeypatch.setattr(time, "time", lambda: NOW + 86400 * 4000)
        store.put(replace(EVENT, id="e3", state="closed", end=NOW))
        until(lambda: len(ear().heard) == 3)
    assert ear().ids() == [EVENT.id, "e2", "e3"]


def test_a_clock_that_is_set_back_by_a_start_silences_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board without a clock of its own starts in 1970, and yesterday's messages lie in its future."""
    told = sink(cooldown=3600, per_hour=1)
    with running(tmp_path, told) as store:
        store.put(EVENT)
        until(lambda: ear().heard)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    with running(tmp_path, told) as store:
        store.put(replace(EVENT, id="e2"))
        until(lambda: len(ear().heard) == 2)


def test_what_was_held_back_before_a_start_is_said_after_it(tmp_path: Path) -> None:
    with running(tmp_path, sink(cooldown=3600)) as store:
        for n in range(3):
            store.put(replace(EVENT, id=f"e{n}"))
        until(lambda: store.post.status()[0].held == 2)  # type: ignore[attr-defined]
    with running(tmp_path, sink(cooldown=3600)) as store:
        store.put(replace(EVENT, id="e3"))
        store.put(replace(EVENT, id="other", camera="yard"))
        until(lambda: len(ear().heard) == 2)
    assert [(event["id"], event.get("held")) for event in ear().heard] == [("e0", None), ("other", 3)]


def test_a_message_that_is_always_refused_keeps_no_other_waiting(tmp_path: Path) -> None:
    ear().hates = "bad"
    with running(tmp_path, sink()) as store:
        for id in ("bad", "e1", "e2", "e3"):
            store.put(replace(EVENT, id=id))
        until(lambda: len(ear().heard) == 3)
        store.put(replace(EVENT, id="e4"))
        until(lambda: len(ear().heard) == 4)
        ear().hates = ""
        until(lambda: len(ear().heard) == 5)
    assert sorted(ear().ids()) == ["bad", "e1", "e2", "e3", "e4"]


def test_a_sink_is_opened_before_anything_happens_and_again_until_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LATER", raising=False)
    told = Sink(name="hook", to={"name": "webhook", "url": "$LATER"}, level="notice")
    with receiving() as server, running(tmp_path, told) as store:
        until(lambda: store.post.status()[0].last_error)  # type: ignore[attr-defined]
        assert "$LATER: not set" in store.post.status()[0].last_error  # type: ignore[attr-defined]
        store.put(EVENT)
        until(lambda: store.post.status()[0].failed)  # type: ignore[attr-defined]
        monkeypatch.setenv("LATER", server.url)
        until(lambda: server.got)
    ((headers, body),) = server.got
    assert headers["idempotency-key"] == f"{EVENT.id}-reached"
    assert json.loads(body)["change"] == "reached"


def test_no_secret_reaches_a_status_or_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "hunter2")
    code = "import sys; sys.exit('refused: ' + sys.argv[1])"
    told = Sink(name="c", to={"name": "command", "command": [sys.executable, "-c", code, "$HOOK"]}, level="notice")
    with running(tmp_path, told) as store:
        store.put(EVENT)
        until(lambda: store.post.status()[0].failed)  # type: ignore[attr-defined]
        assert "refused: ***" in store.post.status()[0].last_error  # type: ignore[attr-defined]
    ((_, why),) = posts.send_test_events([told])
    assert "refused: ***" in str(why)
    for path in tmp_path.rglob("events.db*"):
        assert b"hunter2" not in path.read_bytes()


def test_a_slow_sink_is_given_up_at_the_end_and_hears_it_at_the_next_start(tmp_path: Path) -> None:
    ear().slow.clear()
    store = Store(Keep(folder=tmp_path), [sink()])
    post = Dispatcher(store, [sink()])
    post.start()
    for n in range(3):
        store.put(replace(EVENT, id=f"e{n}"))
    until(lambda: ear().called)
    start = time.monotonic()
    post.close(0.2)
    assert time.monotonic() - start < 5
    ear().slow.set()
    post.workers[0].thread.join(20)
    assert ear().ids() == ["e0"]  # what had begun; nothing more was
    store.close(5)
    with running(tmp_path, sink()):
        until(lambda: len(ear().heard) == 3)
    assert ear().ids() == ["e0", "e1", "e2"]


def test_while_the_database_is_locked_nothing_is_said_twice(tmp_path: Path) -> None:
    with running(tmp_path, sink()) as store:
        ear().down = True
        store.put(EVENT)
        until(lambda: store.post.status()[0].failed)  # type: ignore[attr-defined]
        until(lambda: not store.waiting)
        with contextlib.closing(connect(tmp_path, write=True)) as db:
            db.execute("BEGIN IMMEDIATE")
            ear().down = False
            until(lambda: ear().heard)
            until(lambda: store.trouble)
            db.execute("ROLLBACK")
        until(lambda: store.post.status()[0].sent == 1)  # type: ignore[attr-defined]
    assert ear().ids() == [EVENT.id]


def test_what_a_locked_database_never_took_is_kept_across_a_kill(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    with running(before, sink()) as store, contextlib.closing(connect(before, write=True)) as db:
        store.put(replace(EVENT, id="e0"))
        until(lambda: ear().ids() == ["e0"] and not store.waiting)
        db.execute("BEGIN IMMEDIATE")
        for n in (1, 2):
            store.put(replace(EVENT, id=f"e{n}"))
        store.put(replace(EVENT, id="e1", state="closed", updated=NOW + 9, end=NOW + 9))
        until(lambda: ear().ids() == ["e0", "e1", "e2"])
        shutil.copytree(before, after)  # what a kill leaves
        db.execute("ROLLBACK")
        until(lambda: not list(before.glob("*.jsonl")))
    with (after / JOURNAL).open("a") as file:
        file.write('{"id": "cut sho')
    with running(after, sink()):
        until(lambda: len(events(after)) == 3)
        assert {event.id: (event.state, event.end) for event in events(after)}["e1"] == ("closed", NOW + 9)
        until(lambda: ear().ids()[3:] == ["e1", "e2"])  # nobody knows whether they were heard: again, with the same id
    assert not list(after.glob("*.jsonl"))


def test_a_killed_watch_s_events_reach_the_sink_when_it_starts_again(tmp_path: Path) -> None:
    """Killed at any moment between put and send: nothing is lost; what was just being sent may come twice."""
    with receiving() as server:
        to = {"name": "webhook", "url": server.url}
        program = (
            "import sys, time\nfrom pathlib import Path\nfrom stillwatch.rules.events import Event\n"
            "from stillwatch.monitor.config import Keep, Sink\n"
            "from stillwatch.monitor.events.outbox import Dispatcher\n"
            "from stillwatch.monitor.events.store import Store\n"
            f"told = [Sink(name='hook', to={to!r}, level='notice', per_hour=10000)]\n"
            f"it = Store(Keep(folder=Path({str(tmp_path)!r})), told)\npost = Dispatcher(it, told)\npost.start()\n"
            "for n in range(400):\n"
            "    it.put(Event(f'{sys.argv[1]}-{n}', 'c', 'k', None, 'warn', 'opened', 1.0, 1.0, 1.0, None, 0.5, 'w'))\n"
            "while it.waiting: time.sleep(0.001)\nprint('kept', flush=True)\ntime.sleep(60)\n"
        )
        for start in ("a", "b", "c"):
            before = len(server.got)
            with subprocess.Popen([sys.executable, "-c", program, start], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"kept\n"
                until(lambda before=before: len(server.got) > before)  # type: ignore[misc]
                process.kill()
        told = [Sink(name="hook", to=to, level="notice", per_hour=10_000)]
        with contextlib.closing(connect(tmp_path)) as db:
            (waiting,) = db.execute("SELECT COUNT(*) FROM outbox WHERE state = 'waiting'").fetchone()
        assert waiting > 0, "the kill came too late to show anything"
        with running(tmp_path, *told) as store:
            until(lambda: store.post.status()[0].pending == 0, 60)  # type: ignore[attr-defined]
        heard = [json.loads(body)["id"] for _, body in server.got]
    assert set(heard) == {f"{start}-{n}" for start in "abc" for n in range(400)}
    assert len(heard) - len(set(heard)) <= 3 * 3  # one a kill, but for a disk that takes seconds to note it


def test_sinks_are_tested_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server: Receiver
    with receiving() as server:
        told = [
            Sink(name="log", to="log"),
            Sink(name="hook", to={"name": "webhook", "url": server.url}),
            Sink(name="lines", to={"name": "jsonl", "path": str(tmp_path / "no" / "x")}),
        ]
        answers = dict(posts.send_test_events(told))
    assert answers["log"] is None
    assert answers["hook"] is None
    assert "no such folder" in str(answers["lines"])
    assert json.loads(server.got[0][1])["test"] is True
    assert "this is a test" in capsys.readouterr().out


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.text(st.characters(exclude_categories=[])), min_size=1, max_size=4))
def test_any_text_reaches_the_sinks_as_it_was(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    folder = tmp_path_factory.mktemp("post")
    lines = folder / "lines.jsonl"
    to = Sink(name="lines", to={"name": "jsonl", "path": str(lines)}, level="notice")
    with running(folder, to, sink()) as store:
        for n, text in enumerate(words):
            store.put(replace(EVENT, id=f"e{n}", words=text, label=text))
        until(lambda: all(state.sent == len(words) for state in store.post.status()))  # type: ignore[attr-defined]
    said = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert [event["words"] for event in said] == [storable(text) for text in words]
    assert [event["label"] for event in said] == [storable(text) for text in words]
    assert ear().ids()[-len(words) :] == [f"e{n}" for n in range(len(words))]
