"""Child processes, and Python objects over a socket pair between parent and child."""

import io
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

SIZE = 4  # bytes that say how long a message is
MANY = 64  # messages read at a time: one camera must not keep the others waiting
LONGEST = 64 << 20  # bytes of a message: a net's picture is less

# Of the environment: whoever takes over a child finds no secret there, and a camera's address comes over the channel
NEEDED = re.compile(
    r"PATH|HOME|USER|LANG\w*|LC_\w+|TZ|TMPDIR|PYTHON\w*|VIRTUAL_ENV|LD_\w+|DYLD_\w+|XDG_\w+"
    r"|STILLWATCH_(CACHE|WEIGHTS)|(HTTPS?|NO)_PROXY|SSL_CERT_\w+|(CUDA|LIBVA)_\w+", re.IGNORECASE,
)  # fmt: skip
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "OPENCV_LOG_LEVEL": "ERROR"}


def spawn(module: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """`python -m MODULE FD`, and our end of its socket. Raises OSError, MemoryError."""
    with ExitStack() as opened:
        mine, theirs = map(opened.enter_context, socket.socketpair())
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if NEEDED.fullmatch(name)} | QUIET,
        )
        opened.pop_all()
        theirs.close()
    return child, mine


class Channel:
    def __init__(self, end: socket.socket, blocking: bool, load: Callable[[bytes | bytearray], Any] = pickle.loads):
        """blocking: False for the parent. load: bytes -> message; EOFError ends the connection."""
        end.setblocking(blocking)
        self._end, self._blocking, self._load = end, blocking, load
        self._buffer = bytearray()
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, *message: object) -> None:
        """Raises OSError where the other side is gone or, non-blocking, does not read."""
        data = pickle.dumps(message, protocol=5)
        with self._lock:
            self._end.sendall(len(data).to_bytes(SIZE, "big") + data)

    def read(self) -> list[tuple[Any, ...]]:
        """About MANY at most; blocking: at least one. Raises EOFError at the end."""
        messages: list[tuple[Any, ...]] = []
        while len(messages) < (1 if self._blocking else MANY):
            try:
                data = self._end.recv(1 << 18)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            if not data:
                if messages:
                    break
                raise EOFError
            self._buffer += data
            while len(self._buffer) >= SIZE:
                length = int.from_bytes(self._buffer[:SIZE], "big")
                if not 0 < length <= LONGEST:
                    raise EOFError
                if len(self._buffer) < SIZE + length:
                    break
                messages.append(self._load(self._buffer[SIZE : SIZE + length]))
                del self._buffer[: SIZE + length]
        return messages

    def close(self) -> None:
        self._end.close()


class PlainUnpickler(pickle.Unpickler):
    """Numbers, text, bytes, lists, dicts and arrays only: a child decodes untrusted streams."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in ("_reconstruct", "_frombuffer", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def load_plain(data: bytes | bytearray) -> Any:
    """Raises EOFError for an invalid message, which ends that child."""
    try:
        message = PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a broken pickle can raise almost anything
        raise EOFError from error
    if not isinstance(message, tuple):
        raise EOFError
    return message
