"""Cameras that misbehave on command: MJPEG and H.264 in MPEG-TS over HTTP, and a real RTSP server where there is one.

A Server's `fault` may be changed at any time: "" is well; "freeze" sends nothing more; "still" repeats one picture;
"drop" ends every connection; "refuse" is not there; "deaf" takes connections and never answers; "garbage" sends bytes
that are no picture; "cut" sends every second picture without its lower half, in turns with and without an end mark;
"slow" sends one picture in 0.8 s. `size` may be changed too.
"""

import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np

from stillwatch.monitor.cameras.recorder import PacketBuffer, Remux
from stillwatch.monitor.cameras.source import FileClock, open_video

FPS = 20  # of the servers
FILM = 10  # of films
BOUNDARY = b"frame"


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """A sweeping square on a slope, with a sensor's noise: uint8 (H,W,3) RGB, neither black nor frozen."""
    height, width = size
    slope = np.linspace(60, 190, width, dtype=np.float32)[None, :, None]
    image = np.repeat(np.repeat(slope, height, 0), 3, 2)
    left = number * 3 % max(1, width - height // 3)
    image[height // 3 : 2 * height // 3, left : left + height // 3] = (220, 40, 40)
    image += np.random.default_rng(number).normal(0, 5, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


class Server:
    """A camera at http://127.0.0.1:port/. Use it as a context."""

    def __init__(self, kind: Literal["mjpeg", "ts"], size: tuple[int, int] = (96, 128), fault: str = ""):
        self.kind, self.size = kind, size
        self.connections = 0  # that were ever taken
        self.requests: list[str] = []  # the headers of each
        self.login = ""  # "user:password" that it asks for
        self._fault = fault
        self._over = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._door: socket.socket | None = None
        self.port = 0
        if fault != "refuse":
            self._listen()
        else:
            with socket.create_server(("127.0.0.1", 0)) as taken:
                self.port = taken.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{self.kind}"

    @property
    def fault(self) -> str:
        return self._fault

    @fault.setter
    def fault(self, fault: str) -> None:
        self._fault = fault
        if fault in ("drop", "refuse"):
            for one in list(self._open):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        if fault == "refuse":
            self._shut()
        elif self._door is None:
            self._listen()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.fault = "refuse"
        for one in self._threads:
            one.join(5)

    def _listen(self) -> None:
        self._door = socket.create_server(("127.0.0.1", self.port))
        self.port = self._door.getsockname()[1]
        self._start(self._accept, self._door)

    def _shut(self) -> None:
        door, self._door = self._door, None
        if door is not None:
            with suppress(OSError):
                door.shutdown(socket.SHUT_RDWR)
            door.close()

    def _start(self, target: Any, *args: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self, door: socket.socket) -> None:
        while True:
            try:
                one, _ = door.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(one)
            self._start(self._serve, one)

    def _serve(self, one: socket.socket) -> None:
        with one, suppress(OSError):
            one.settimeout(5)
            if self._fault == "drop":
                return
            self.requests.append(one.recv(65536).decode("latin-1"))
            while self._fault == "deaf" and not self._over.is_set():
                time.sleep(0.02)
            if self.login and b64encode(self.login.encode()).decode() not in self.requests[-1]:
                one.sendall(b'HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm="camera"\r\n\r\n')
            elif self.kind == "mjpeg":
                self._mjpeg(one)
            else:
                self._ts(one)
        self._open.discard(one)

    def _numbers(self) -> Any:
        """The number of each picture when its time has come, while nothing forbids it."""
        number, due = 0, time.monotonic()
        while not self._over.is_set() and self._fault not in ("drop", "refuse"):
            due = max(due + (0.8 if self._fault == "slow" else 1 / FPS), time.monotonic() - 0.2)
            self._over.wait(max(0.0, due - time.monotonic()))
            if self._fault not in ("freeze", "deaf"):
                number += self._fault != "still"
                yield number

    def _mjpeg(self, one: socket.socket) -> None:
        one.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=" + BOUNDARY + b"\r\n\r\n")
        for number in self._numbers():
            data = np.random.default_rng(number).bytes(4000) if self._fault == "garbage" else _jpeg(number, self.size)
            if self._fault == "cut" and number % 2:
                data = data[: len(data) // 2] + (b"\xff\xd9" if number % 4 == 1 else b"")
            head = b"--%s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % (BOUNDARY, len(data))
            one.sendall(head + data + b"\r\n")

    def _ts(self, one: socket.socket) -> None:
        one.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n")
        begun = time.monotonic()
        size, out, stream = (0, 0), io.BytesIO(), None
        container: Any = None
        try:
            for number in self._numbers():
                if self._fault == "garbage":
                    one.sendall(np.random.default_rng(number).bytes(1880))
                    continue
                if size != self.size:
                    if container is not None:
                        container.close()
                    size, out = self.size, io.BytesIO()
                    container = av.open(out, "w", format="mpegts", container_options={"flush_packets": "1"})
                    stream = _encoder(container, size, FPS)
                frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24").reformat(format="yuv420p")
                frame.time_base, frame.pts = Fraction(1, 1000), round(1000 * (time.monotonic() - begun))
                container.mux(stream.encode(frame))
                one.sendall(out.getvalue())
                out.seek(0)
                out.truncate()
        finally:
            if container is not None:
                container.close()


def _jpeg(number: int, size: tuple[int, int]) -> bytes:
    return cv2.imencode(".jpg", picture(number, size)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def _encoder(container: Any, size: tuple[int, int], gop: int) -> Any:
    stream = container.add_stream("libx264", rate=gop)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, 1000)
    stream.codec_context.gop_size = gop
    stream.codec_context.thread_count = 1
    stream.options = {"preset": "ultrafast", "tune": "zerolatency"}
    return stream


def film(path: Path, seconds: float, size: tuple[int, int] = (96, 128), codec: str = "libx264") -> Path:
    """A film at FILM of the pictures 0, 1, 2, …; a keyframe each second."""
    with av.open(str(path), "w") as container:
        if codec == "libx264":
            stream = _encoder(container, size, FILM)
        else:
            stream = container.add_stream(codec, rate=FILM)
            stream.height, stream.width = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(round(seconds * FILM)):
            frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24").reformat(format=stream.pix_fmt)
            frame.time_base, frame.pts = Fraction(1, FILM), number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def pieces(film: Path, playlist: Path) -> None:
    """The same film for HTTP Live Streaming, in pieces of a second beside the playlist."""
    with av.open(str(film)) as whole, av.open(str(playlist), "w", format="hls", options={"hls_time": "1"}) as out:
        for frame in whole.decode(video=0):
            if not out.streams.video:
                stream = _encoder(out, (frame.height, frame.width), FILM)
            frame.pict_type = 0
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def played(path: Path, buffer: PacketBuffer, offset: float = 0.0) -> Iterator[float]:
    """Put a film into a buffer, packet by packet; yields the clock after each."""
    with open_video(str(path)) as container:
        stream = container.streams.video[0]
        remux, clock = Remux(buffer, stream), FileClock(stream)
        for packet in container.demux(stream):
            if packet.size:
                now = offset + clock.time(packet)
                remux.push(packet, now)
                yield now


# ---- RTSP, by a real server in a process of its own: it can be stopped, continued and killed

RTSP = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
port, user, password, width, height = sys.argv[1:]
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    f"( videotestsrc is-live=true pattern=snow ! video/x-raw,width={width},height={height},framerate=10/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 bitrate=300 ! rtph264pay name=pay0 pt=96 )"
)
factory.set_shared(True)
if user:
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("user", "media.factory.access", True)
    permissions.add_permission_for_role("user", "media.factory.construct", True)
    factory.set_permissions(permissions)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""
PYTHONS = ("/usr/bin/python3", sys.executable)


def rtsp_python() -> str | None:
    """A Python that has GStreamer's RTSP server and an H.264 encoder: Debian's, where its packages are installed."""
    ask = (
        "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer, Gst; "
        "Gst.init(None); assert Gst.ElementFactory.find('x264enc') and Gst.ElementFactory.find('rtph264pay')"
    )
    for python in PYTHONS:
        if Path(python).is_file():
            done = subprocess.run([python, "-c", ask], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if done.returncode == 0:
                return python
    return None


class Rtsp:
    """rtsp://127.0.0.1:port/live by GStreamer. Use it as a context."""

    def __init__(self, python: str, user: str = "", password: str = "", size: tuple[int, int] = (96, 128)):
        self._python, self._user, self._password = python, user, password
        self.size = size
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        arguments = [str(self.port), self._user, self._password, str(self.size[1]), str(self.size[0])]
        self._process = subprocess.Popen(
            [self._python, "-c", RTSP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], 20)[0], "the RTSP server does not come up"
        self.port = int(self._process.stdout.readline())

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def __enter__(self) -> "Rtsp":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
