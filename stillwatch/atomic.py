"""Atomic files, locks, live processes, and paths that are URLs. Imports errors alone."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillwatch.errors import UserError, one_line


def place(name: str) -> Path:
    """A path, or for a URL (s3://, gs://, memory://) fsspec's. Raises UserError."""
    if "://" not in name:
        return Path(name)
    try:
        from upath import UPath

        found = UPath(name)
        found.fs  # noqa: B018  # imports what reads this kind of URL
        return found  # type: ignore[return-value]
    except ModuleNotFoundError as error:
        if error.name not in ("upath", "fsspec"):
            raise UserError(f"{name}: {one_line(error)}") from None
        raise UserError(f"{name}: a URL needs pip install 'stillwatch[urls]'") from None
    except (ImportError, ValueError) as error:  # "Install s3fs to access S3"
        raise UserError(f"{name}: {one_line(error)}") from None


def home() -> Path:
    """Where caches live: STILLWATCH_CACHE, or the user's cache folder."""
    return Path(os.environ.get("STILLWATCH_CACHE") or Path.home() / ".cache" / "stillwatch")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path that becomes `path`, or is removed after an error."""
    if not isinstance(path, Path):  # a URL: an object store shows a file whole or not at all
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder, path.name)
            yield draft
            path.parent.mkdir(parents=True, exist_ok=True)
            path.fs.put_file(str(draft), path.path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


class FileLock:
    """Exclusive between processes; ends with its process, even a killed one."""

    def __init__(self, path: Path):
        self.path = path
        self._handle: int | None = None

    def acquire(self, wait: bool = False, shared: bool = False) -> bool:
        """False where another process holds it. Without locks in the file system: True. Raises OSError."""
        if self._handle is not None:
            return True
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
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
def locked(path: Path, busy: str = "", shared: bool = False) -> Iterator[None]:
    """busy: text of the UserError where another process holds it; "" waits. A URL cannot be locked."""
    lock = FileLock(path)
    if isinstance(path, Path) and not lock.acquire(wait=not busy, shared=shared):
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
