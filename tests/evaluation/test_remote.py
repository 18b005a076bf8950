"""A bench on another machine: against a local sshd on a high port, with keys thrown away; addresses and errors."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from socket import create_server

import bundles
import pytest

from stillwatch.bundle import Bundle
from stillwatch.errors import UserError
from stillwatch.evaluation import remote
from stillwatch.run import Progress

ROOT = Path(__file__).parent.parent.parent
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
needs_sshd = pytest.mark.skipif(not SSHD, reason="no sshd; make programs installs it")


@pytest.fixture
def port(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server whose user's commands lie in here/bin, and an `ssh` that knows it and has its key."""
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name], check=True)
    with create_server(("127.0.0.1", 0)) as free:
        number = int(free.getsockname()[1])
    Path("known").write_text(f"[127.0.0.1]:{number} {Path('host.pub').read_text()}")
    Path("sshd.conf").write_text(
        f"Port {number}\nListenAddress 127.0.0.1\nHostKey {here}/host\nAuthorizedKeysFile {here}/key.pub\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nSetEnv STILLWATCH_CACHE={here}/cache\n"
    )
    Path("shim").mkdir()
    known = f"-o UserKnownHostsFile={here}/known -o IdentitiesOnly=yes"
    Path("shim/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F none -i {here}/key {known} "$@"\n')
    Path("shim/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}/shim", prepend=os.pathsep)
    if not os.geteuid():
        Path("/run/sshd").mkdir(exist_ok=True)  # where root's sshd locks itself in
    with (
        Path("log").open("wb") as log,
        subprocess.Popen([str(SSHD), "-D", "-e", "-f", "sshd.conf"], stderr=log) as server,
    ):
        try:
            end = time.monotonic() + 60
            while b"listening" not in Path("log").read_bytes() and time.monotonic() < end:
                time.sleep(0.02)
            yield number
        finally:
            server.terminate()


@pytest.fixture
def bundle(here: Path) -> Bundle:
    return bundles.made(here, {"model.onnx": bundles.onnx_net(here / "model.onnx")})


def board(number: int) -> remote.Board:
    return remote.Board.of(f"ssh://{os.environ.get('USER') or 'root'}@127.0.0.1:{number}")


@needs_sshd
def test_the_bench_runs_there_and_its_figures_come_back(
    here: Path, port: int, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    its = here / "stillwatch"
    its.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m stillwatch "$@"\n')
    its.chmod(0o755)
    monkeypatch.setattr(remote, "PLACES", f"/none/stillwatch {its}")
    lines = list[str]()
    words = ["--rounds=3", "--threads=1", "--minutes=0.01"]
    report = remote.bench(bundle, board(port), words, progress=Progress(say=lines.append))
    assert report["plan"]["rounds"] == 3
    assert {row["runtime"] for row in report["rows"]} >= {"onnxruntime"}
    assert report["soak"]["series"][0]["calls"] > 0
    assert set(report["heat"]) == {"before", "after"}
    assert not [line for line in lines if line.startswith("written")]
    assert sum(line.startswith("1 thread on") for line in lines) == 1  # the table as it was printed there, once

    # ---- what goes wrong there is one line here
    its.write_text("#!/bin/sh\necho 'error: no room' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"@127.0.0.1: no room$"):
        remote.bench(bundle, board(port), words)
    its.write_text("#!/bin/sh\nmkdir out; echo '[]' > out/bench.json\n")
    with pytest.raises(UserError, match=r"its bench.json cannot be read"):
        remote.bench(bundle, board(port), words)
    its.write_text("#!/bin/sh\nmkdir out; echo '{\"format\": 9}' > out/bench.json\n")
    with pytest.raises(UserError, match=r"format 9"):
        remote.bench(bundle, board(port), words)
    its.unlink()
    with pytest.raises(UserError, match=r"no stillwatch there; .*--install WHEEL"):
        remote.bench(bundle, board(port), words)
    shutil.copy("host", "key")
    with pytest.raises(UserError, match=r"Permission denied.*; try it by hand: ssh -p"):
        remote.bench(bundle, board(port), words)


@needs_sshd
def test_a_wheel_is_installed_there_first(
    here: Path, port: int, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    """With a python3 there that only notes what it is asked."""
    home = here / "home"
    (home / "bin").mkdir(parents=True)
    note = f'#!/bin/sh\necho "$(basename "$0") $*" >> {here}/asked\n'
    make = f'case "$2" in venv) mkdir -p {home}/bin; for it in pip stillwatch; do cp "$0" {home}/bin/$it; done;; esac\n'
    give = 'case "$1" in bench) mkdir out; ls >> {}/asked; echo \'{{"format": 1}}\' > out/bench.json;; esac\n'
    (here / "python3").write_text(note + make + give.format(here))
    (here / "python3").chmod(0o755)
    real = remote.UNPACKED
    monkeypatch.setattr(
        remote, "UNPACKED", f"HOME={home.parent}/home; ln -sfn . {home}/.stillwatch; PATH={here}:$PATH\n{real}"
    )
    monkeypatch.setattr(remote, "INSTALLED", f"{home}/.stillwatch/bin/stillwatch")
    Path("some-1.whl").write_bytes(b"a wheel")
    assert remote.bench(bundle, board(port), ["--rounds=2"], "some-1.whl[ncnn]") == {"format": 1}
    asked = Path("asked").read_text().splitlines()
    assert [line for line in asked if line.startswith(("pip", "stillwatch"))] == [
        "pip uninstall -qy stillwatch", "pip install -q ./some-1.whl[ncnn]",
        "stillwatch bench bundle --out out --rounds=2",
    ]  # fmt: skip
    assert asked[-2:] == ["bundle", "out"]
    with pytest.raises(UserError, match=r"--install none.whl: no such wheel"):
        remote.bench(bundle, board(port), [], "none.whl")


def test_without_ssh_or_a_server_it_is_one_line(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("ssh"):
        with pytest.raises(UserError, match=r"Connection refused; try it by hand: ssh -p 1 a@127.0.0.1$"):
            remote.bench(bundle, remote.Board.of("ssh://a@127.0.0.1:1"), [])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="ssh is not installed"):
        remote.bench(bundle, remote.Board.of("ssh://a@127.0.0.1"), [])


@pytest.mark.parametrize(
    "address",
    [
        "pi@board",
        "ssh://",
        "http://board",
        "ssh://-oProxyCommand=x",
        "ssh://a:secret@b",
        "ssh://b:x",
        "ssh://b/c",
        "ssh://a b",
    ],
)
def test_an_address_that_ssh_does_not_take_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="is written ssh://user@board") as mistake:
        remote.Board.of(address)
    assert "secret" not in str(mistake.value)


def test_an_address_is_taken_apart() -> None:
    assert remote.Board.of("ssh://pi@board.local:2222") == ("pi@board.local", 2222)
    assert remote.Board.of("ssh://board") == ("board", None)
    assert json.dumps(remote.Board.of("ssh://u@[fe80::1]:22")) == '["u@fe80::1", 22]'
