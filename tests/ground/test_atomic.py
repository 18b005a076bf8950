"""Files whole or not at all, and locks that one process holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stillwatch.atomic import FileLock, alive, atomic, locked
from stillwatch.errors import UserError, one_line


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new/file"
    with pytest.raises(RuntimeError), atomic(path) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with atomic(path) as draft:
        draft.write_text("whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_a_lock_is_one_holders_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "new/.lock"
    first, second = FileLock(path), FileLock(path)
    assert first.acquire() and first.acquire()
    assert not second.acquire()
    with pytest.raises(UserError, match=r"^taken$"), locked(path, busy="taken"):
        pass
    first.release()
    first.release()
    with locked(path):
        assert not second.acquire()
    assert second.acquire()


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    code = f"from stillwatch.atomic import *; FileLock(Path({str(path)!r})).acquire(); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    assert FileLock(path).acquire(wait=True)


def test_alive() -> None:
    assert alive(os.getpid()) and not alive(2**22 + 1)


def test_one_line_of_any_exception() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(FileNotFoundError(2, "No such file or directory", "/a")) == "No such file or directory"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 999))) == 300
    secret = "pass\nword"
    assert one_line(ValueError(f"rtsp://u:{secret}@h and {secret!r}"), hide=[secret, ""]) == "rtsp://u:***@h and '***'"
