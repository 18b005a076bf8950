"""The hub: a bundle pushed and fetched over a fake of its HTTP; what a stranger's repository may not do; no network."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_type_hints

import bundles
import pytest

from stillwatch import bundle
from stillwatch.bundle import Bundle
from stillwatch.cli import deploy, lab
from stillwatch.cli.console import bundle_folder
from stillwatch.errors import UserError
from stillwatch.media import hub
from stillwatch.monitor import config

pytest.importorskip("huggingface_hub")


class Hub(ThreadingHTTPServer):
    """One repository, in memory, and what was asked of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.private = dict[str, bytes](), list[str](), None

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def give(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        self.server.asked.append(f"POST {self.path}")
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        root = f"http://127.0.0.1:{self.server.server_port}/anna/driver"
        if self.path == "/api/repos/create":
            self.server.private = json.loads(text).get("private", json.loads(text).get("visibility"))
            return self.give(json.dumps({"url": root, "name": "anna/driver"}).encode())
        if "/preupload/" in self.path:
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(text)["files"]
            ]
            return self.give(json.dumps({"files": modes}).encode())
        if "/commit/" in self.path:
            for line in map(json.loads, text.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = self.server.commit
            return self.give(json.dumps({"commitUrl": f"{root}/commit/{commit}", "commitOid": commit}).encode())
        return self.give(b"{}")  # /api/validate-yaml

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        files, path = self.server.files, self.path.partition("?")[0]
        if path.startswith("/api/models/anna/driver"):
            listed = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            about = {"id": "anna/driver", "sha": self.server.commit, "siblings": listed, "tags": [], "private": True}
            return self.give(json.dumps(about).encode())
        name = path.removeprefix(f"/anna/driver/resolve/{self.server.commit}/")
        if name not in files:
            return self.give(b"", 404, X_Error_Code="RepoNotFound")
        tag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
        return self.give(files[name], ETag=tag, X_Repo_Commit=self.server.commit)

    do_HEAD = do_GET


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server
        server.shutdown()


@pytest.fixture
def made(here: Path) -> Bundle:
    return bundles.made(here, {"model.onnx": bundles.onnx_net(here / "model.onnx")})


def test_a_bundle_goes_there_and_comes_back(there: Hub, made: Bundle, here: Path) -> None:
    (made.path / "bench.json").write_text("{}")  # not of the bundle: it stays here
    assert hub.push(made, "anna/driver").endswith(f"/anna/driver/commit/{there.commit}")
    assert there.files.keys() == {"bundle.json", "model.onnx", "golden.npz", "README.md"}
    assert there.private in (True, "private")
    back = bundle.load(hub.folder("hf://anna/driver"))
    assert back.manifest == made.manifest
    assert {path.name for path in back.path.iterdir()} == {"bundle.json", "model.onnx", "golden.npz"}
    assert back.path.name == there.commit

    # ---- what is there is not fetched again; a whole commit asks nobody; a Path and a watch.toml take it too
    there.asked.clear()
    assert hub.folder(Path("hf://anna/driver")) == back.path
    assert [line.split("?")[0] for line in there.asked] == ["GET /api/models/anna/driver"]
    there.asked.clear()
    assert hub.folder(f"hf://anna/driver@{there.commit}") == back.path
    assert not there.asked
    Path("watch.toml").write_text('bundle = "hf://anna/driver"\n[[camera]]\nname = "a"\nsource = "0"\n')
    assert config.load(Path("watch.toml")).config.bundle == back.path
    assert hub.folder("a/bundle") == Path("a/bundle")


def test_the_card_has_the_hubs_metadata(made: Bundle) -> None:
    from huggingface_hub import ModelCard

    figures = {"valid": {"accuracy": 0.91234, "macro_f1": 0.8, "n": 10}}
    model = made.manifest.models[0].model_copy(update={"figures": figures})
    told = Bundle(made.path, made.manifest.model_copy(update={"models": (model,), "licence": "Apache-2.0"}))
    (made.path / "CARD.md").write_text("# toy\n\nWatches.\n")
    card = ModelCard(hub.card(told))
    assert card.data.license == "apache-2.0"
    assert {(one.metric_type, one.metric_value) for one in card.data.eval_results or ()} == {
        ("accuracy", 0.9123),
        ("f1", 0.8),
    }
    assert (card.data.library_name, card.data.pipeline_tag) == ("stillwatch", "image-classification")
    assert card.text.strip().endswith("Watches.")
    other = ModelCard(hub.card(made)).data
    assert (other.license, other.license_name, other.eval_results) == ("other", "CC0", None)


def test_what_a_stranger_changed_is_refused_and_leaves_nothing(there: Hub, made: Bundle, here: Path) -> None:
    hub.push(made, "anna/driver")
    whole, net = dict(there.files), there.files["model.onnx"]
    broken = {
        "was changed": {"model.onnx": net[:-1] + b"?"},
        "bytes there": {"model.onnx": net + b"?"},
        "cannot be read": {"bundle.json": b"{"},
        "too large": {"bundle.json": b" " * (bundle.LARGEST + 1)},
        "climbs out": {"bundle.json": whole["bundle.json"].replace(b'"golden.npz"', b'"../golden.npz"')},
    }
    for words, files in broken.items():
        there.files = whole | files
        with pytest.raises(UserError, match=words) as mistake:
            hub.folder("hf://anna/driver")
        assert "\n" not in str(mistake.value)
    there.files = {"README.md": b""}
    with pytest.raises(UserError, match=r"has no bundle.json"):
        hub.folder("hf://anna/driver")
    assert not list((bundle_home() / "hub").rglob("*.onnx"))


def test_without_a_network_or_a_name_it_is_one_line(made: Bundle, there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(made, "anna/driver")
    kept = hub.folder("hf://anna/driver")
    with pytest.raises(UserError, match=r"^hf://anna/other: ") as missing:
        hub.folder("hf://anna/other")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=rf"^hf://anna/driver: .*; an older copy is {kept}$") as offline:
        hub.folder("hf://anna/driver")
    with pytest.raises(UserError, match=r"^hf://anna/driver: ") as unsent:
        hub.push(made, "anna/driver")
    assert not [
        str(one.value) for one in (missing, offline, unsent) if "\n" in str(one.value) or "secret" in str(one.value)
    ]
    for place in ("hf://", "hf://anna", "hf://anna/driver/model.onnx", "hf://a/b@"):
        with pytest.raises(UserError, match="is written hf://user/name"):
            hub.folder(place)
    with pytest.raises(UserError, match="is written user/name"):
        hub.push(made, "driver")


def bundle_home() -> Path:
    from stillwatch.atomic import home

    return home()


def test_every_command_that_takes_a_bundle_takes_it_from_the_hub() -> None:
    names = set[str]()
    for command in (*deploy.app.registered_commands, *lab.app.registered_commands):
        assert command.callback
        for hint in get_type_hints(command.callback, include_extras=True).values():
            for about in getattr(hint, "__metadata__", ()):
                if "BUNDLE" in str(getattr(about, "metavar", "")):
                    assert about.parser is bundle_folder, command.callback.__name__
                    names.add(command.callback.__name__)
    assert names >= {"bench", "doctor", "judge", "push", "replay", "score", "watch"}
