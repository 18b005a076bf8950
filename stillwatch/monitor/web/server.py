"""uvicorn in a thread, with limits on connections, requests and shutdown time."""

import asyncio
import resource
import socket
import threading
import time
from asyncio import TimerHandle, Transport
from typing import cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from stillwatch.errors import UserError
from stillwatch.monitor.web import auth

CONNECTIONS, PER_CLIENT = 256, 96  # open at once, in all and of one address; strangers must not use up the descriptors
DEADLINE = 10.0  # seconds for a whole request, from the connection's start or the last answer


class BoundedProtocol(H11Protocol):
    """Bounds the wait for a request; at the limit a new connection replaces the oldest idle one."""

    peer = ""
    timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        self.peer = str((transport.get_extra_info("peername") or ("",))[0])
        everyone = cast("list[BoundedProtocol]", list(self.connections))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = CONNECTIONS if soft == resource.RLIM_INFINITY else min(CONNECTIONS, soft // 4)
        same = [connection for connection in everyone if connection.peer == self.peer]
        crowd = same if len(same) >= min(PER_CLIENT, most // 2) else everyone if len(everyone) >= most else []
        idle = [connection for connection in crowd if not connection.is_answering() and connection.timer]
        super().connection_made(transport)
        if idle:
            oldest = min(idle, key=lambda connection: connection.timer.when() if connection.timer else 0.0)
            self.connections.discard(oldest)
            oldest.transport.abort()
        elif crowd:
            self.connections.discard(self)
            transport.abort()
        self._restart_timer()

    def is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def _restart_timer(self) -> None:
        if self.timer:
            self.timer.cancel()
        self.timer = self.loop.call_later(DEADLINE, self._check_deadline)

    def _check_deadline(self) -> None:
        if not self.is_answering():
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._restart_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timer:
            self.timer.cancel()
        super().connection_lost(exc)


class AbortingServer(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            if transport := getattr(connection, "transport", None):
                transport.abort()
        await asyncio.sleep(0)


class Server:
    _server: AbortingServer  # both from start() on
    _thread: threading.Thread

    def __init__(self, app: FastAPI, host: str = "127.0.0.1", port: int = 0):
        """Raises UserError."""
        if not auth.loopback(host) and app.state.hub.keys is None:
            raise UserError(f'web.host = "{host}": anybody on the network could look; give [web] a token')
        self._app, self._host, self._port = app, host.strip("[]"), port

    def start(self) -> str:
        """Bind and answer; returns the address. Raises UserError."""
        listener = _listen(self._host, self._port)
        port = listener.getsockname()[1]
        proxies = list(self._app.state.proxies)
        config = uvicorn.Config(
            self._app, loop="asyncio", http=BoundedProtocol, ws="none", lifespan="off", log_config=None,
            log_level="critical", access_log=False, server_header=False, timeout_keep_alive=int(DEADLINE),
            proxy_headers=bool(proxies), forwarded_allow_ips=proxies,
        )  # fmt: skip
        self._server = AbortingServer(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="web", daemon=True
        )
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                listener.close()
                raise UserError(f"web.port = {port}: the page could not start")
            time.sleep(0.005)
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{port}/"

    def close(self, within: float = 2.0) -> None:
        """End streams and stop listening within about `within` seconds."""
        self._app.state.hub.closing.set()
        self._server.config.timeout_graceful_shutdown = 0.6 * within  # type: ignore[assignment]
        self._server.should_exit = True
        self._thread.join(within + 1)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UserError(f'web.host = "{host}": no such address: {error.strerror}') from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(
            f"web.port = {port} on {host}: {error.strerror}; free it, or give another (0: any free one)"
        ) from None
    return listener
