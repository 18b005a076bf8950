"""The server under strangers: idle connections, slow requests, forged proxy headers."""

import socket
import time
from pathlib import Path

import pytest
from event_toys import until
from web_toys import Reader, opened

from stillwatch.monitor.web import server


def test_idle_connections_keep_nobody_out(tmp_path: Path) -> None:
    with opened(tmp_path) as street, Reader(street.port, "/api/v1/stream") as listener:
        listener.until(b"event: cameras")
        idle = [socket.create_connection(("127.0.0.1", street.port)) for _ in range(400)]
        for _ in range(5):
            assert street.json("/healthz")["alive"]
        assert len(street.server._server.server_state.connections) <= server.PER_CLIENT + 1
        listener.until(b"event: cameras")  # who is being answered stays
        for connection in idle:
            connection.close()


def test_a_client_whose_connections_are_all_answered_gets_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PER_CLIENT", 3)
    with opened(tmp_path) as street:
        listeners = [Reader(street.port, "/api/v1/stream") for _ in range(3)]
        for listener in listeners:
            listener.until(b"event: cameras")
        with pytest.raises(OSError):
            street.ask("/healthz")
        listeners.pop().socket.close()
        until(lambda: len(street.server._server.server_state.connections) == 2)
        assert street.json("/healthz")["alive"]
        for listener in listeners:
            listener.socket.close()


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        b"POST /api/v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 99\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nX-Slow: ",
    ],
    ids=["nothing", "headers", "body", "the second request"],
)
def test_a_request_that_does_not_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    monkeypatch.setattr(server, "DEADLINE", 0.5)
    with opened(tmp_path) as street, socket.create_connection(("127.0.0.1", street.port), timeout=10) as slow:
        slow.sendall(start)
        began = time.monotonic()
        with pytest.raises(OSError):  # the answer to the first request may come before
            while time.monotonic() - began < 8:
                slow.sendall(b"x" if start else b"")
                time.sleep(0.1)
                slow.setblocking(False)
                try:
                    if not slow.recv(4096):
                        raise ConnectionResetError
                except BlockingIOError:
                    pass
                slow.setblocking(True)
        assert time.monotonic() - began < 5


def test_a_forwarded_address_is_believed_of_a_named_proxy_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOOR", "a long token")

    def guesses(street: object, count: int) -> list[int]:
        return [
            street.error("/api/v1/login", {"token": "wrong"}, X_Forwarded_For=f"10.0.0.{n}")[0]  # type: ignore[attr-defined]
            for n in range(count)
        ]

    with opened(tmp_path / "one", token="$DOOR") as street:
        assert guesses(street, 8) == [401] * 4 + [429] * 4
    with opened(tmp_path / "two", token="$DOOR", proxies=("127.0.0.1",)) as street:
        assert guesses(street, 8) == [401] * 8
