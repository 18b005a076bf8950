"""The web, over real sockets: answers, streams that end with their viewers, files that stay in their folder, doors."""

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from event_toys import until
from hypothesis import given, settings
from hypothesis import strategies as st
from web_toys import JPEG, Reader, Street, happened, keep_files, opened, read_message, remember

from stillwatch.errors import UserError
from stillwatch.monitor.config import CameraConfig, WatchConfig, Web
from stillwatch.monitor.events import database
from stillwatch.monitor.events.outbox import SinkStatus
from stillwatch.monitor.state import Board, Gauges
from stillwatch.monitor.web import app, auth
from stillwatch.monitor.web.server import Server


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    with opened(tmp_path) as it:
        yield it


# --- what is now ------------------------------------------------------------------------------------------------------


def test_cameras_are_told_in_words_and_nothing_unseen_as_now(street: Street) -> None:
    street.board.update(
        "cab", state="live", status="ok", p=[0.25, 0.75], gauge=float("nan"), gauge_name="evidence", fps=9.9,
        age_ms=31.0, seen=time.time(), counters={"frames": 7}, open=[happened(state="opened", end=None).as_dict()],
    )  # fmt: skip
    street.board.update("yard", state="lost", words="connection refused", p=[0.1, 0.9], gauge=0.9, seen=1234.5)
    told = street.json("/api/v1/cameras")
    assert abs(told["now"] - time.time()) < 60
    cab, yard = told["cameras"]
    assert (cab["condition"], cab["says"], cab["p"]) == ("watching", "Watching", {"Safe": 0.25, "Bad": 0.75})
    assert cab["gauge"] is None  # NaN is no JSON
    assert (cab["counters"], cab["open"][0]["id"], cab["open"][0]["end"]) == ({"frames": 7}, "cab-s-1", None)
    assert (yard["condition"], yard["says"]) == ("lost", "No signal: connection refused")
    assert (yard["p"], yard["gauge"], yard["since"], yard["seen"]) == (None, None, 1234.5, 1234.5)
    assert street.json("/api/v1/cameras/yard") == yard
    assert street.error("/api/v1/cameras/gate") == (404, "there is no camera 'gate'; there are cab, yard")


def test_health_and_readiness(street: Street) -> None:
    assert street.json("/healthz")["alive"] is True
    status, _, text = street.ask("/readyz")
    assert (status, json.loads(text)) == (
        503,
        {"ready": False, "why": "2 of 2 cameras have not been looked at yet"},
    )
    street.board.ready = True
    assert street.json("/readyz") == {"ready": True, "why": None}
    street.store.trouble = "events.db was removed"
    assert street.json("/readyz") == {"ready": True, "why": "events.db was removed"}


def test_metrics_are_prometheus_text(street: Street) -> None:
    street.board.update("cab", state="live", status="ok")
    status, headers, text = street.ask("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'stillwatch_camera_watching{camera="cab"} 1.0' in text
    assert b'stillwatch_camera_watching{camera="yard"} 0.0' in text
    assert b"stillwatch_rows_waiting 0.0" in text
    assert b'stillwatch_capture_to_decision_seconds_bucket{camera="cab",le="0.1"} 0.0' in text


def test_sinks_are_told_of(tmp_path: Path) -> None:
    class Post:
        def status(self) -> list[SinkStatus]:
            return [SinkStatus("hook", "webhook", pending=3, sent=5, failed=2, last_error="x")]

    with opened(tmp_path, post=Post()) as street:
        status = street.json("/api/v1/status")
        assert status["sinks"][0]["pending"] == 3
        assert (status["labels"], status["safe"], status["guarded"]) == (["Safe", "Bad"], ["Safe"], False)
        assert b'stillwatch_sink_pending{sink="hook"} 3.0' in street.ask("/metrics")[2]


def test_the_api_describes_itself(street: Street) -> None:
    described = street.json("/api/v1/openapi.json")
    assert set(described["paths"]) == {route.path for route in app.router.routes if route.path.startswith("/api/")} | {
        "/readyz",
        "/metrics",
    }
    for path, methods in described["paths"].items():
        for method in methods.values():
            assert method["description"], path
    event = described["components"]["schemas"]["Event"]["properties"]
    assert set(event) >= set(happened().as_dict())
    found = described["paths"]["/api/v1/cameras"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert found == {"$ref": "#/components/schemas/Cameras"}
    assert "video/mp4" in described["paths"]["/api/v1/events/{id}/clip"]["get"]["responses"]["200"]["content"]
    for path in ("/docs", "/redoc", "/openapi.json"):  # they would fetch from elsewhere
        assert street.error(path) == (404, "there is nothing here")


# --- what was ---------------------------------------------------------------------------------------------------------


def test_events_are_listed_filtered_and_turned_over(street: Street) -> None:
    remember(street, *[happened(f"cab-s-{n}", 1000.0 + 10 * n) for n in range(5)])
    remember(street, happened("yard-s-1", 2000.0, camera="yard", level="alarm", kind="violence"))
    first = street.json("/api/v1/events?limit=2")
    assert ([event["id"] for event in first["events"]], first["more"]) == (["yard-s-1", "cab-s-4"], True)
    rest = street.json("/api/v1/events?limit=50&before_id=cab-s-4")
    assert ([event["id"] for event in rest["events"]], rest["more"]) == (
        ["cab-s-3", "cab-s-2", "cab-s-1", "cab-s-0"],
        False,
    )
    assert len(street.json("/api/v1/events?level=warn")["events"]) == 6
    assert [event["id"] for event in street.json("/api/v1/events?level=alarm")["events"]] == ["yard-s-1"]
    assert len(street.json("/api/v1/events?camera=cab")["events"]) == 5
    assert street.json("/api/v1/events/cab-s-1")["words"] == "a phone in the hand"
    assert street.error("/api/v1/events/nobody") == (404, "there is no event 'nobody'")
    assert street.error("/api/v1/events?since=nan")[0] == 422
    status, words = street.error("/api/v1/events?limit=0")
    assert status == 422
    assert words.startswith("limit: ")
    assert street.error("/api/v1/events?level=loud")[1].startswith("level: ")


def test_clip_and_thumbnail_are_served_in_ranges(street: Street) -> None:
    remember(street, happened())
    clip = keep_files(street, "cab-s-1")
    event = street.json("/api/v1/events/cab-s-1")
    assert (event["clip"], event["thumbnail"]) == ("api/v1/events/cab-s-1/clip", "api/v1/events/cab-s-1/thumbnail")
    status, headers, body = street.ask("/" + event["clip"])
    assert (status, headers["content-type"], headers["accept-ranges"], body) == (200, "video/mp4", "bytes", clip)
    status, headers, body = street.ask("/" + event["clip"], range="bytes=100-199")
    assert (status, headers["content-range"], body) == (206, f"bytes 100-199/{len(clip)}", clip[100:200])
    assert street.ask("/" + event["clip"], range="bytes=-50")[2] == clip[-50:]
    assert street.ask("/" + event["clip"], range=f"bytes={len(clip)}-")[0] == 416
    assert street.ask("/" + event["thumbnail"])[2] == JPEG
    (street.folder / database.event(street.folder, "cab-s-1").clip).unlink()  # type: ignore[union-attr, operator]
    assert street.error("/" + event["clip"]) == (404, "event 'cab-s-1' has no clip: it was deleted")


STEPS = st.sampled_from(["..", ".", "", "in.mp4", "clips", "link", "out.mp4", "~", "/etc", "\\"])
WORDS = st.text("ab./\\%2e\x00é~", max_size=30)


@settings(max_examples=150)
@given(st.one_of(WORDS, st.lists(STEPS).map("/".join)))
def test_no_path_leaves_the_folder(tmp_path_factory: pytest.TempPathFactory, relative: str) -> None:
    top = tmp_path_factory.getbasetemp() / "climb"
    folder = top / "kept"
    if not folder.exists():
        (folder / "clips").mkdir(parents=True)
        (folder / "clips" / "in.mp4").write_bytes(b"inside")
        (top / "out.mp4").write_bytes(b"outside")
        (folder / "link").symlink_to(top)
    found = app.inside(folder, relative, (".mp4",))
    assert found is None or found.read_bytes() == b"inside"
    assert app.inside(folder, "clips/in.mp4", (".mp4",)) is not None
    for climbing in ("../out.mp4", "link/out.mp4", str(top / "out.mp4"), "clips/../../out.mp4", "clips"):
        assert app.inside(folder, climbing, (".mp4",)) is None


def test_no_address_leaves_the_folder(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    (street.folder.parent / "secret.mp4").write_bytes(b"secret")
    for path in (
        "/api/v1/events/..%2f..%2fsecret/clip",
        "/../secret.mp4",
        "/%2e%2e/secret.mp4",
        "/page.js/../../web.py",
        "/page/page.js",
    ):
        status, _, body = street.ask(path)
        assert status == 404, path
        assert b"secret" not in body or b"no event" in body
    remember(street, happened())
    found = database.event(street.folder, "cab-s-1")
    assert found is not None
    row = replace(found, clip="../secret.mp4")  # a row that somebody has changed
    monkeypatch.setattr(database, "event", lambda folder, id: row)
    assert street.ask("/api/v1/events/cab-s-1/clip")[0] == 404


# --- marks ------------------------------------------------------------------------------------------------------------


def test_a_false_alarm_is_marked_filed_and_taken_back(street: Street) -> None:
    remember(street, happened())
    keep_files(street, "cab-s-1")
    at = "/api/v1/events/cab-s-1"
    with Reader(street.port, "/api/v1/stream") as listener:
        read_message(listener, "cameras")
        answer = street.json(f"{at}/mark", {"acknowledged": True, "verdict": "false"})
        assert (answer["event"]["acknowledged"], answer["event"]["verdict"]) == (True, "false")
        assert answer["filed"] >= 1
        assert read_message(listener, "event")[1] == {
            "id": "cab-s-1",
            "marks": {"acknowledged": True, "verdict": "false"},
        }
    until(lambda: street.json(at)["verdict"] == "false")
    filed = sorted((street.folder / "negatives").rglob("*.jpg"))
    assert len(filed) == answer["filed"]
    assert all(path.relative_to(street.folder / "negatives").parts[:2] == ("Safe", "cab") for path in filed)
    street.json(f"{at}/mark", {"acknowledged": False, "verdict": None})
    until(lambda: street.json(at)["verdict"] is None)
    assert street.json(at)["acknowledged"] is False
    assert not list((street.folder / "negatives").rglob("*.jpg"))  # taken back is taken back


def test_a_mark_leaves_alone_what_it_does_not_name(street: Street) -> None:
    remember(street, happened())
    street.json("/api/v1/events/cab-s-1/mark", {"verdict": "true"})
    street.json("/api/v1/events/cab-s-1/mark", {"acknowledged": True})
    row = until(lambda: (found := street.json("/api/v1/events/cab-s-1"))["acknowledged"] and found)
    assert row["verdict"] == "true"


def test_what_cannot_be_filed_is_said(street: Street) -> None:
    remember(street, happened("cab-s-2", kind="camera", label=None), happened("cab-s-3"))
    answer = street.json("/api/v1/events/cab-s-2/mark", {"verdict": "false"})
    assert (answer["filed"], answer["words"]) == (0, "nothing to learn from: it is about the camera")
    answer = street.json("/api/v1/events/cab-s-3/mark", {"verdict": "false"})
    assert answer["filed"] == 0
    assert answer["words"].startswith("nothing was filed: ")


def test_wrong_marks_are_refused_in_words(street: Street) -> None:
    remember(street, happened())
    at = "/api/v1/events/cab-s-1/mark"
    assert street.error(at, {"verdict": "maybe"})[0] == 422
    assert street.error(at, {"aknowledged": True})[1].startswith("aknowledged: ")
    assert street.error(at, "{")[0] == 422
    assert street.error("/api/v1/events/nobody/mark", {"verdict": "true"}) == (404, "there is no event 'nobody'")
    assert street.error(at, method="GET")[0] == 405
    assert street.error(at, {"verdict": "true"}, content_type="text/plain")[0] == 415
    assert street.error(at, {"verdict": "true"}, origin="http://evil.example")[0] == 403


def test_a_fault_of_ours_is_one_line_without_its_insides(
    street: Street, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("rtsp://user:password@camera/")

    monkeypatch.setattr(database, "events", broken)
    assert street.error("/api/v1/events") == (500, "this could not be answered (RuntimeError)")
    assert "web: GET '/api/v1/events': RuntimeError at test_app.py:" in caplog.text
    assert "password" not in caplog.text
    assert street.json("/healthz")["alive"]


# --- doors ------------------------------------------------------------------------------------------------------------


def test_every_answer_binds_the_browser(street: Street) -> None:
    for path in ("/", "/page.js", "/api/v1/cameras", "/nothing"):
        _, headers, _ = street.ask(path)
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    assert street.ask("/api/v1/cameras")[1]["cache-control"] == "no-store"
    for name in ("index.html", "page.css", "page.js"):  # it must work where there is no internet
        text = (app.PAGE / name).read_text(encoding="utf-8")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text
        assert "style=" not in text


def test_a_name_that_was_rebound_to_this_machine_is_refused(street: Street) -> None:
    status, words = street.error("/api/v1/cameras", host="evil.example:8756")
    assert status == 421
    assert "localhost only" in words
    assert street.ask("/api/v1/cameras", host="localhost:1")[0] == 200


def test_the_token_opens_and_wrong_ones_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOOR", "a long token")
    monkeypatch.setattr(auth, "WAIT", (0.5, 0.5))
    with opened(tmp_path, token="$DOOR") as street:
        assert street.error("/api/v1/cameras")[0] == 401
        assert street.error("/metrics")[0] == 401
        assert street.error("/api/v1/stream")[0] == 401
        assert street.ask("/")[0] == street.ask("/healthz")[0] == 200
        assert street.json("/api/v1/cameras", authorization="Bearer a long token", host="any.example")["cameras"]
        status, headers, _ = street.ask("/api/v1/login", {"token": "a long token"})
        cookie = headers["set-cookie"]
        assert (status, "HttpOnly" in cookie, "samesite=strict" in cookie.lower()) == (204, True, True)
        assert "a long token" not in cookie
        session = cookie.partition(";")[0]
        assert street.json("/api/v1/status", cookie=session)["guarded"] is True
        for _ in range(auth.FREE):  # a typing error does not lock out the right token
            assert street.error("/api/v1/login", {"token": "a wrong token"}) == (401, "wrong token")
            assert street.json("/api/v1/status", authorization="Bearer a long token")["guarded"] is True
        assert street.error("/api/v1/login", {"token": "a wrong token"}) == (401, "wrong token")
        status, headers, _ = street.ask("/api/v1/login", {"token": "a wrong token"})
        assert (status, headers["retry-after"]) == (429, "1")
        assert street.ask("/api/v1/login", {"token": "a long token"})[0] == 204
        assert street.ask("/api/v1/cameras", authorization="Bearer a long token")[0] == 200
        assert street.ask("/api/v1/cameras", cookie=session)[0] == 200
        assert street.error("/api/v1/login", {"token": "\ud800"})[0] in (401, 422, 429)


def test_a_logout_ends_the_session_also_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOOR", "a long token")
    with opened(tmp_path, token="$DOOR") as street:
        one, two = (
            street.ask("/api/v1/login", {"token": "a long token"})[1]["set-cookie"].partition(";")[0] for _ in range(2)
        )
        assert street.ask("/api/v1/logout", {})[0] == 401
        gone = street.ask("/api/v1/logout", {}, cookie=one)[1]["set-cookie"]
        assert "expires=" in gone.lower()
        assert [street.ask("/api/v1/status", cookie=cookie)[0] for cookie in (one, two)] == [401, 200]
    with opened(tmp_path, token="$DOOR") as street:
        cookies = [cookie.partition("=")[2] for cookie in (one, two)]
        name = f"stillwatch-{street.port}"
        assert [street.ask("/api/v1/status", cookie=f"{name}={c}")[0] for c in cookies] == [401, 200]


def test_another_address_without_a_token_is_a_mistake(tmp_path: Path) -> None:
    plan = WatchConfig(bundle=tmp_path, camera=(CameraConfig(name="cab", source="0"),), web=Web(host="0.0.0.0"))
    board = Board(("a", "b"), ("a",), ("cab",))
    with pytest.raises(UserError, match="anybody on the network"):
        app.app(board, tmp_path, plan, None, None, Gauges(board))
    page = app.app(board, tmp_path, plan.amended(host="127.0.0.1"), None, None, Gauges(board))
    with pytest.raises(UserError, match="anybody on the network"):
        Server(page, "0.0.0.0", 0)


# --- the server -------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_named(street: Street, tmp_path: Path) -> None:
    page = street.server._app
    with pytest.raises(UserError, match=rf"web.port = {street.port} on 127.0.0.1: .*in use"):
        Server(page, "127.0.0.1", street.port).start()
    with pytest.raises(UserError, match=r'web.host = "no.such.host.invalid": no such address'):
        page.state.hub.keys = auth.TokenAuth("a long token")
        Server(page, "no.such.host.invalid", 0).start()


def test_it_closes_in_time_with_viewers_and_listeners_who_stay(tmp_path: Path) -> None:
    with opened(tmp_path) as street:
        viewers = [Reader(street.port, "/api/v1/pictures") for _ in range(3)]
        listeners = [Reader(street.port, "/api/v1/stream") for _ in range(3)]
        deaf = Reader(street.port, "/api/v1/cameras/cab/live.mjpg")
        idle = socket.create_connection(("127.0.0.1", street.port))
        until(lambda: street.board.asked("cab", "picture") == 4)
        for _ in range(8):
            street.board.show("cab", bytes(1_000_000))
            time.sleep(0.05)
        for one in listeners:
            one.until(b"event: cameras")
        began = time.monotonic()
        street.server.close(1)
        assert time.monotonic() - began < 5
        for one in (*viewers, *listeners):
            one.rest()  # it ends
        assert street.board.asked("cab", "picture") == 0
        for open in (*viewers, *listeners, deaf):
            open.socket.close()
        idle.close()
        with pytest.raises(ConnectionRefusedError):
            street.ask("/healthz")
        street.server.close(1)  # twice does no harm


def test_the_same_port_can_be_had_again_at_once(tmp_path: Path) -> None:
    with opened(tmp_path / "one") as street:
        port = street.port
        street.json("/healthz")
    with opened(tmp_path / "two") as street:
        again = Server(street.server._app, "127.0.0.1", port)
        assert again.start() == f"http://127.0.0.1:{port}/"
        again.close(1)
