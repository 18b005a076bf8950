"""Weights: found in a folder, downloaded once, or refused in one line."""

import hashlib
import io
from pathlib import Path

import pytest

from stillwatch.errors import UserError
from stillwatch.media import weights

DATA = b"weights"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that are read; every one answers with DATA."""
    urls: list[str] = []

    def answer(url: str, timeout: float) -> io.BytesIO:
        urls.append(url)
        return io.BytesIO(DATA)

    monkeypatch.setattr(weights.urllib.request, "urlopen", answer)
    sha256 = hashlib.sha256(DATA).hexdigest()
    monkeypatch.setitem(weights.WEIGHTS, "net.onnx", weights.Weights(sha256, "a net", "https://host/net.onnx"))
    return urls


def test_the_folder_goes_first(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLWATCH_WEIGHTS", str(tmp_path))
    assert weights.local("net.onnx") is None
    (tmp_path / "net.onnx").write_bytes(b"own")
    assert weights.find("net.onnx") == weights.local("net.onnx") == tmp_path / "net.onnx"
    assert asked == []


def test_it_is_downloaded_once(asked: list[str]) -> None:
    path = weights.find("net.onnx")
    assert path.read_bytes() == DATA
    assert weights.find("net.onnx") == weights.local("net.onnx") == path
    assert asked == ["https://host/net.onnx"]


def test_an_address_is_a_mirror(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLWATCH_WEIGHTS", "https://mirror/here/")
    weights.find("net.onnx")
    assert asked == ["https://mirror/here/net.onnx"]


def test_another_file_is_refused_and_not_kept(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.WEIGHTS, "net.onnx", weights.Weights("0" * 64, "a net", "https://host/net.onnx"))
    with pytest.raises(UserError, match="another file: sha256"):
        weights.find("net.onnx")
    assert weights.local("net.onnx") is None


def test_without_a_host_it_says_what_to_do(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"face_landmark_468[.]onnx .*now not set.*, or .* a mirror$"):
        weights.find(weights.POINTS)
    assert asked == []


def test_the_pins_are_whole() -> None:
    for name, known in weights.WEIGHTS.items():
        assert len(known.sha256) == 64, name
        assert known.url == "" or known.url.startswith("https://")
