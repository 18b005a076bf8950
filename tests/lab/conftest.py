"""What tests of the lab share: files that are slow to make are made once a session."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillwatch.lab.compression import ptq
from stillwatch.lab.data import cache
from stillwatch.lab.export import exporters


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """made_once(key, make, path): a file at path, made by make(path) where no test made one of that key before."""
    files, folder = dict[str, Path](), tmp_path_factory.mktemp("made-once")

    def made(key: object, make: Callable[[Path], Path], path: Path) -> Path:
        name = hashlib.sha256(repr(key).encode()).hexdigest()
        if name not in files:
            files[name] = Path(shutil.copyfile(make(path), folder / name))
        return Path(shutil.copyfile(files[name], path))

    return made


@pytest.fixture
def export_once(made_once: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's exporter and NNCF take seconds a net: the same net, or the same file, goes through them once."""
    to_onnx, quantise_file = exporters.to_onnx, ptq.quantise_file

    def exported(net: Any, shape: Any, path: Path, *rest: Any, **more: Any) -> Path:
        key = (cache.digest(net.state_dict()), net.name, shape, rest, more)
        return made_once(key, lambda target: to_onnx(net, shape, target, *rest, **more), path)

    def quantised(source: Path, target: Path, rows: Any, frame: Any, config: Any, control: Any = None) -> Path:
        if control is not None:
            return quantise_file(source, target, rows, frame, config, control)
        key = (hashlib.sha256(source.read_bytes()).hexdigest(), [frame(row).tobytes() for row in rows], config)
        return made_once(key, lambda path: quantise_file(source, path, rows, frame, config), target)

    monkeypatch.setattr(exporters, "to_onnx", exported)
    monkeypatch.setattr(ptq, "quantise_file", quantised)
