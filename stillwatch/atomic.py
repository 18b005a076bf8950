"""Atomic files, locks and live processes. Imports errors alone."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillwatch.errors import UserError


def home() -> Path:
    """Where caches live: STILLWATCH_CACHE, or the user's own cache folder."""
    return Path(os.environ.get("STILLWATCH_CACHE") or Path.home() / ".cache" / "stillwatch")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path that becomes `path`, or is removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


class FileLock:
    """Exclusive between processes. It ends with the process, even a killed one."""

    def __init__(self, path: Path):
        self.path = path
        self._handle: int | None = None

    def acquire(self, wait: bool = False) -> bool:
        """False where another process holds it. Without locks in the file system: True.

        Raises OSError where the file cannot be made.
        """
        if self._handle is not None:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:  # ENOLCK, ENOTSUP
            pass
        self._handle = handle
        return True

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@contextmanager
def locked(path: Path, busy: str = "") -> Iterator[None]:
    """busy: text of the UserError where another process holds it; "" waits."""
    lock = FileLock(path)
    if not lock.acquire(wait=not busy):
        raise UserError(busy)
    try:
        yield
    finally:
        lock.release()


def alive(process: int) -> bool:
    """True for another user's process too."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True
