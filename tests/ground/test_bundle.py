"""Bundles: whole or not at all, read only as they were written, and refused in one line whatever a stranger sends."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillwatch import bundle
from stillwatch.bundle import FORMAT, Bundle, FaceNet, Fusion, Input, Manifest, Model
from stillwatch.errors import UserError

SHAPE = (6, 8, 1)
FRAMES = np.arange(8 * 48, dtype=np.uint32).reshape(8, *SHAPE).astype(np.uint8)
GOLDEN = np.linspace(0, 1, 16, dtype=np.float32).reshape(8, 2)
FILES: dict[str, Path | bytes] = {"model.onnx": b"the net", "CARD.md": b"# what it may be used for\n"}
WILD = settings(max_examples=75, suppress_health_check=[HealthCheck.function_scoped_fixture])


def manifest(name: str = "toy", *models: Model) -> Manifest:
    models = models or (Model(name="model.onnx", files=("model.onnx",), precision="fp32", tolerance=1e-3),)
    return Manifest(
        name=name,
        labels=("safe", "danger"),
        safe=("safe",),
        input=Input(shape=SHAPE, fit="letterbox"),
        licence="CC0",
        created="2026-01-01T00:00:00",
        stillwatch="0",
        models=models,
    )


def written(path: Path, name: str = "toy") -> Bundle:
    return bundle.write(path, manifest(name), FILES, FRAMES, {"model.onnx": GOLDEN})


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change bundle.json by hand; `change` alters the dict, or gives a list that stands there instead."""
    raw = json.loads((path / "bundle.json").read_text())
    other = change(raw)
    (path / "bundle.json").write_text(json.dumps(other if isinstance(other, list) else raw))


def refused(path: Path, match: str = ".") -> None:
    with pytest.raises(UserError, match=match) as caught:
        bundle.load(path).golden()
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(str(path))


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    source = tmp_path / "somewhere.onnx"
    source.write_bytes(b"x" * 100_000)
    files = {"model.onnx": source, "sub/model.xml": b"<net/>", "sub/model.bin": b"weights"}
    xml = Model(name="sub/model.xml", files=("sub/model.xml", "sub/model.bin"), precision="int8", tolerance=0.1)
    asked = manifest("toy", manifest().models[0], xml)
    golden = {"model.onnx": GOLDEN, "sub/model.xml": GOLDEN[::-1]}
    made = bundle.write(tmp_path / "deep" / "bundle", asked, files, FRAMES, golden)
    again = bundle.load(str(made.path))
    assert again == made
    assert again.manifest.files.keys() == {*files, "golden.npz"}
    assert again.manifest == asked.model_copy(update={"files": made.manifest.files})
    assert again.manifest.files["model.onnx"].sha256 == hashlib.sha256(b"x" * 100_000).hexdigest()
    assert again.manifest.files["model.onnx"].bytes == 100_000
    assert (made.path / "model.onnx").read_bytes() == source.read_bytes()
    frames, p = again.golden()
    assert (frames == FRAMES).all() and frames.dtype == np.uint8
    assert p.keys() == golden.keys() and (p["sub/model.xml"] == GOLDEN[::-1]).all()
    assert again.model("sub/model.xml").precision == "int8"
    with pytest.raises(UserError, match=r"'model.onn': no such model in the bundle; did you mean 'model.onnx'"):
        again.model("model.onn")
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["bundle"]


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none", "not a bundle: no such folder; `stillwatch export RUN` makes one")
    refused(tmp_path, "it has no bundle.json")
    os.mkfifo(tmp_path / "bundle.json")  # opening it would wait for ever
    refused(tmp_path, "it has no bundle.json")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda raw: raw.update(format=FORMAT + 1), f"format = {FORMAT + 1}: written by a newer stillwatch; .* update"),
        (lambda raw: raw.update(format=FORMAT + 1, other_keys=1), "written by a newer stillwatch"),
        (lambda raw: raw.update(format=0), "there never was such a format"),
        (lambda raw: raw.update(format=True), "no whole number `format`"),
        (lambda raw: raw.pop("format"), "no whole number `format`"),
        (lambda raw: [raw], "no whole number `format`"),
        (lambda raw: raw.update(colour="red"), "bundle.json: colour: unknown key"),
        (lambda raw: raw.update({"\x1b[2J": 1}), r"bundle.json: '\\x1b\[2J': unknown key"),
        (lambda raw: raw["input"].update(mean=0), r"input.mean: unknown key"),
        (lambda raw: raw.pop("licence"), "licence: missing"),
        (lambda raw: raw["models"][0].pop("tolerance"), "models.0.tolerance: missing"),
        (lambda raw: raw["models"][0].update(tolerance=float("nan")), "models.0.tolerance"),
        (lambda raw: raw["models"][0].update(tolerance=float("inf")), "models.0.tolerance"),
        (lambda raw: raw["models"][0].update(tolerance=1), "models.0.tolerance"),
        (lambda raw: raw.update(models=[]), "models"),
        (lambda raw: raw.update(labels=["a", "a"]), "labels has one name twice"),
        (lambda raw: raw.update(safe=["sfe"]), "safe names 'sfe', which is not among the labels"),
        (lambda raw: raw["models"].append(raw["models"][0]), "two models have one name"),
        (lambda raw: raw["models"][0].update(files=["CARD.md", "model.onnx"]), "does not list itself as its first"),
        (lambda raw: raw["models"][0].update(name="m.xml", files=["m.xml"]), "does not list the .bin file"),
        (lambda raw: raw["models"][0].update(name="m.ncnn.param", files=["m.ncnn.param"]), "does not list the .bin"),
        (lambda raw: raw["models"][0].update(name="a.onnx", files=["a.onnx"]), "'a.onnx': is used but has no sha256"),
        (lambda raw: raw["files"].pop("model.onnx"), "'model.onnx': is used but has no sha256"),
        (lambda raw: raw["files"].pop("golden.npz"), "'golden.npz': is used but has no sha256"),
        (lambda raw: raw["input"].update(shape=[6, 8, 2]), "neither"),
        (lambda raw: raw["input"].update(shape=[10**9, 8, 1]), "neither"),
        (lambda raw: raw["input"].update(shape=[6, 8, 3]), r"golden frames are uint8 \(n,6,8,3\), not uint8 \(8,6,8,1"),
        (lambda raw: raw.update(labels=["safe", "b", "c"]), r"finite float32 \(8,3\), not float32 \(8,2\)"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_by_name(tmp_path: Path, change: Any, match: str) -> None:
    path = written(tmp_path / "bundle").path
    edit(path, change)
    refused(path, match)


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"format": 1,}', b"\xff\xfe", b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_json_is_refused(tmp_path: Path, text: bytes) -> None:
    path = written(tmp_path / "bundle").path
    (path / "bundle.json").write_bytes(text)
    refused(path, "not valid JSON")
    (path / "bundle.json").write_bytes(b" " * (bundle.LARGEST + 1))
    refused(path, "not a bundle's manifest")


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "CARD.md"])
def test_a_file_that_is_not_as_it_was_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "bundle").path
    whole = (path / name).read_bytes()
    for place in {0, len(whole) // 2, len(whole) - 1}:
        (path / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(path, f"{name}: was changed \\(sha256 .*copy the bundle again")
    (path / name).write_bytes(whole + b"x")
    refused(path, f"{name}: is {len(whole) + 1} bytes, the manifest says {len(whole)}")
    (path / name).unlink()
    refused(path, f"{name}: missing")
    (path / name).mkdir()
    refused(path, f"{name}: not a file")
    (path / name).rmdir()
    os.mkfifo(path / name)
    refused(path, f"{name}: not a file")
    (path / name).unlink()
    (path / name).symlink_to(name)
    refused(path, f"{name}: cannot be read")
    (path / name).unlink()
    (path / name).write_bytes(whole)
    bundle.load(path)


def test_a_link_may_stay_inside_and_not_lead_out(tmp_path: Path) -> None:
    path = written(tmp_path / "bundle").path
    outside = tmp_path / "outside.onnx"
    outside.write_bytes(b"the net")  # even with the right bytes
    (path / "model.onnx").unlink()
    (path / "model.onnx").symlink_to(outside)
    refused(path, "model.onnx: a link that climbs out of the bundle")
    (path / "model.onnx").unlink()
    (path / "kept.onnx").write_bytes(b"the net")
    (path / "model.onnx").symlink_to("kept.onnx")
    bundle.load(path)
    (tmp_path / "alias").symlink_to(path)  # the folder itself may be reached by a link
    bundle.load(tmp_path / "alias")


PARTS = st.sampled_from(["..", ".", "", "a", "model.onnx", "C:", "~", "\x00", "a b", "\ud800", "é", "x" * 300])
CLIMBING = st.one_of(
    st.lists(PARTS, min_size=1, max_size=4).flatmap(lambda parts: st.sampled_from(["/".join(parts), "\\".join(parts)])),
    st.text(max_size=20),
    st.sampled_from(["/etc/passwd", "\\\\host\\share", "../bundle/model.onnx", "model.onnx/", "bundle.json", "//a"]),
)


@WILD
@given(name=CLIMBING)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bundle"
    if not path.exists():
        written(path)
        (tmp_path / "a").write_bytes(b"the net")
        (path / "a").write_bytes(b"the net")
    kept = (path / "bundle.json").read_bytes()
    entry = {"sha256": hashlib.sha256(b"the net").hexdigest(), "bytes": 7}
    try:
        edit(path, lambda raw: raw["files"].update({name: entry}))
        if name in ("a", "model.onnx"):
            bundle.load(path)
        else:
            refused(path)
        edit(path, lambda raw: raw["models"][0].update(files=["model.onnx", name]))
        if name not in ("a", "model.onnx"):
            refused(path)
    finally:
        (path / "bundle.json").write_bytes(kept)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@WILD
@given(where=st.integers(0, 200), value=JSON)
def test_any_value_anywhere_is_taken_or_refused_in_one_line(tmp_path: Path, where: int, value: Any) -> None:
    path = tmp_path / "bundle"
    if not path.exists():
        written(path)
    kept = (path / "bundle.json").read_bytes()
    raw = json.loads(kept)
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        for key in inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ():
            places.append((inner, key))
            walk(inner[key])

    walk(raw)
    assert len(places) > 30
    holder, key = places[where % len(places)]
    holder[key] = value
    (path / "bundle.json").write_text(json.dumps(raw))
    try:
        bundle.load(path).golden()
    except UserError as mistake:
        assert len(str(mistake).splitlines()) == 1 and str(mistake).isprintable()
    finally:
        (path / "bundle.json").write_bytes(kept)


@pytest.mark.slow
@WILD
@given(data=st.data())
def test_any_golden_file_is_taken_or_refused_in_one_line(tmp_path: Path, data: st.DataObject) -> None:
    """Hashes prove that a file is the one that was listed, not that whoever listed it was kind."""
    path = tmp_path / "bundle"
    if not path.exists():
        written(path)
    buffer = io.BytesIO()
    np.savez(buffer, **{"frames": FRAMES[:1], "p model.onnx": GOLDEN[:1]})  # type: ignore[arg-type]
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.just(len(raw)) | st.integers(0, len(raw)))
    (path / "golden.npz").write_bytes(raw[:cut])
    entry = {"sha256": hashlib.sha256(raw[:cut]).hexdigest(), "bytes": cut}
    edit(path, lambda manifest: manifest["files"].update({"golden.npz": entry}))
    loaded = bundle.load(path)
    try:
        loaded.golden()
    except UserError as mistake:
        assert len(str(mistake).splitlines()) == 1 and str(mistake).isprintable()


def test_a_bundle_never_unpickles(tmp_path: Path) -> None:
    path = written(tmp_path / "bundle").path
    buffer = io.BytesIO()
    np.savez(buffer, frames=np.array([print], object), **{"p model.onnx": GOLDEN})  # type: ignore[arg-type]
    entry = {"sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), "bytes": len(buffer.getvalue())}
    (path / "golden.npz").write_bytes(buffer.getvalue())
    edit(path, lambda raw: raw["files"].update({"golden.npz": entry}))
    refused(path, "golden.npz: cannot be read: Object arrays")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"files": {"CARD.md": b""}}, "'model.onnx': is used but has no sha256"),
        ({"files": FILES | {"bundle.json": b"{}"}}, "'bundle.json': a bundle writes this file itself"),
        ({"files": FILES | {"golden.npz": b""}}, "'golden.npz': a bundle writes this file itself"),
        ({"files": FILES | {"../out": b""}}, "climbs out of the folder"),
        ({"files": FILES | {"a": Path("/nowhere/to/be/found")}}, "cannot be put into the bundle"),
        ({"frames": FRAMES.astype(np.float32)}, r"golden frames are uint8 \(n,6,8,1\), not float32"),
        ({"frames": FRAMES[:, :5]}, r"not uint8 \(8,5,8,1\)"),
        ({"frames": FRAMES[:0], "golden": {"model.onnx": GOLDEN[:0]}}, "golden frames are"),
        ({"golden": {}}, "'model.onnx': each model of the bundle has golden probabilities"),
        ({"golden": {"model.onnx": GOLDEN, "b": GOLDEN}}, "'b': each model of the bundle"),
        ({"golden": {"model.onnx": GOLDEN[:7]}}, r"finite float32 \(8,2\), not float32 \(7,2\)"),
        ({"golden": {"model.onnx": np.full_like(GOLDEN, np.nan)}}, "finite"),
    ],
)
def test_a_write_that_would_not_load_leaves_what_was_there(tmp_path: Path, change: Any, match: str) -> None:
    old = written(tmp_path / "bundle", "old")
    asked: dict[str, Any] = {"files": FILES, "frames": FRAMES, "golden": {"model.onnx": GOLDEN}} | change
    for path in (old.path, tmp_path / "new"):
        with pytest.raises(UserError, match=match) as caught:
            bundle.write(path, manifest("new"), **asked)
        assert str(path) in str(caught.value)
    assert bundle.load(old.path) == old
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_an_older_bundle_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    path = written(tmp_path / "bundle", "old").path
    (path / "bench.json").write_text("{}")  # figures of the older bundle go with it
    assert written(path, "new").manifest.name == "new"
    assert sorted(p.name for p in path.iterdir()) == ["CARD.md", "bundle.json", "golden.npz", "model.onnx"]
    (path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes.txt', which no export put there; move it away"):
        written(path, "newer")
    assert (path / "notes.txt").read_text() == "mine" and bundle.load(path).manifest.name == "new"
    home = tmp_path / "home"
    home.mkdir()
    written(home)  # an empty folder is nobody's
    for text in ("{}", "[]", '{"format": 1}', '{"format": "x", "files": {}}', "no json"):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        (other / "bundle.json").write_text(text)
        with pytest.raises(UserError, match="is there and is not a bundle, so it is not replaced"):
            written(other)
        assert (other / "bundle.json").read_text() == text
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is not a bundle, so it is not replaced"):
        written(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        written(tmp_path / "file" / "bundle")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    written(tmp_path / "bundle-1", "old")
    (tmp_path / "bundle").symlink_to("bundle-1")
    assert written(tmp_path / "bundle", "new").path == tmp_path / "bundle"
    assert (tmp_path / "bundle").is_symlink()
    assert bundle.load(tmp_path / "bundle-1").manifest.name == "new"


# A child is killed at its n-th look at the file system, for each n until one gets through
KILLED = """
import os, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
import test_bundle
from stillwatch import bundle
path, exchange = Path(sys.argv[1]), sys.argv[3] == "yes"
if not exchange:
    bundle._exchange = lambda a, b: False
left = None
def look(event, arguments):
    global left
    if left is not None and event.split(".")[0] in ("open", "os", "shutil", "pathlib", "ctypes"):
        left -= 1
        if left < 0:
            os._exit(1)
sys.addaudithook(look)
died = 0
for number in range(1, 1000):
    pid = os.fork()
    if pid == 0:
        left = number
        test_bundle.written(path, "new")
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if not path.exists() and not exchange:
        assert path.with_name(".bundle.old").is_dir()
    else:
        assert bundle.load(path).manifest.name in ("old", "new")
        bundle.load(path).golden()
    if status == 0:
        break
    died += 1
    test_bundle.written(path, "old")
    assert os.listdir(path.parent) == ["bundle"], os.listdir(path.parent)
print(died)
"""


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["yes", "no"])
def test_a_kill_leaves_the_old_bundle_or_the_new_one(tmp_path: Path, exchange: str) -> None:
    path = written(tmp_path / "bundle", "old").path
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), here, exchange], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20  # so many moments to die in were tried
    assert bundle.load(path).manifest.name == "new"


def test_a_reader_is_told_where_the_older_bundle_is(tmp_path: Path) -> None:
    path = written(tmp_path / "bundle", "old").path
    path.rename(tmp_path / ".bundle.old")
    refused(path, r"was cut off as it replaced it; the older one is .*\.bundle\.old: rename it back")
    with pytest.raises(UserError, match="is used but has no sha256"):
        bundle.write(path, manifest(), {}, FRAMES, {"model.onnx": GOLDEN})
    assert bundle.load(path).manifest.name == "old"  # even an export that fails puts it back
    assert written(path, "new").manifest.name == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_manifest_is_frozen_and_defaults_are_nobodys(tmp_path: Path) -> None:
    one, two = manifest(), manifest()
    one.run["id"] = "x"
    assert two.run == {}
    with pytest.raises(Exception, match="frozen"):
        one.name = "other"
    assert deepcopy(two) == two


# ---- what a stranger may send


def test_a_bad_rule_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "b").path
    edit(path, lambda raw: raw.update(rule={"profile": "drivr", "threshold": 7, "smoth": 1}))
    refused(path, r"bundle.json: rule.profile: Input should be 'driver', 'cctv' or ''")
    edit(path, lambda raw: raw.update(rule={"smoth": "x" * 5000}))
    refused(path, "bundle.json: rule.smoth: unknown key")


def onnx_of(*locations: str) -> bytes:
    """A model whose node holds a graph with tensors in these files."""
    tensors = [onnx.TensorProto(name="w", data_location=onnx.TensorProto.EXTERNAL) for _ in locations]
    for tensor, location in zip(tensors, locations, strict=True):
        tensor.external_data.add(key="offset", value="0")
        tensor.external_data.add(key="location", value=location)
    inner = onnx.helper.make_graph([], "inner", [], [], tensors[1:])
    node = onnx.helper.make_node("If", [], [], then_branch=inner, name="location")
    return onnx.helper.make_model(onnx.helper.make_graph([node], "net", [], [], tensors[:1])).SerializeToString()


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd", "sub/../../w", "."])
def test_external_data_must_be_listed(tmp_path: Path, location: str) -> None:
    for number, net in enumerate((onnx_of(location), onnx_of("model.data", location))):
        files = {"model.onnx": net, "model.data": b"0"}
        model = Model(name="model.onnx", files=("model.onnx", "model.data"), precision="fp32", tolerance=1e-3)
        with pytest.raises(UserError, match=r"model\.onnx: reads '.*', which the manifest does not list for it"):
            bundle.write(tmp_path / str(number), manifest("toy", model), files, FRAMES, {"model.onnx": GOLDEN})
    good = files | {"model.onnx": onnx_of("model.data", "./model.data")}
    bundle.write(tmp_path / "good", manifest("toy", model), good, FRAMES, {"model.onnx": GOLDEN})
    for broken in (onnx_of(location)[:-3], b"\x0b" + onnx_of(location), b"location" + b"\xff" * 99):
        bad = files | {"model.onnx": broken}
        with pytest.raises(UserError, match="not an ONNX file"):
            bundle.write(tmp_path / "x", manifest("toy", model), bad, FRAMES, {"model.onnx": GOLDEN})


@pytest.mark.parametrize("lie", [False, True])
def test_a_golden_file_s_size_is_checked_before_it_is_read(tmp_path: Path, lie: bool) -> None:
    path = written(tmp_path / "b").path
    with (
        zipfile.ZipFile(path / "golden.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("frames.npy", "w", force_zip64=True) as file,
    ):
        form = {"descr": "|u1", "fortran_order": False, "shape": (40_000_000, *SHAPE)}
        np.lib.format.write_array_header_1_0(file, form)
        for _ in range(0 if lie else 300):
            file.write(bytes(1 << 20))
    raw = (path / "golden.npz").read_bytes()
    assert len(raw) < 4 << 20
    entry = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    edit(path, lambda manifest: manifest["files"].update({"golden.npz": entry}))
    tracemalloc.start()
    refused(path, r"golden.npz: cannot be read: its arrays would take 1,831 MiB; at most 256 are read")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_the_face_s_own_net_is_hashed_and_proved_like_the_others(tmp_path: Path) -> None:
    takes, plain, small = Input(shape=(3, 4, 3)), manifest(), np.zeros((2, 3, 4, 3), np.uint8)
    net = FaceNet(name="face.onnx", files=("face.onnx",), precision="fp32", tolerance=1e-3, input=takes)
    head = Fusion(weight=((0.0,) * 20,) * 2, bias=(0.0, 0.0), net=net, figures={})
    whole, files = plain.model_copy(update={"fusion": head}), FILES | {"face.onnx": b"another"}
    golden = {"model.onnx": GOLDEN}
    made = bundle.write(tmp_path / "b", whole, files, FRAMES, golden, (small, GOLDEN[:2]))
    frames, p = bundle.load(made.path).golden(face=True)
    assert np.array_equal(frames, small) and np.array_equal(p["face.onnx"], GOLDEN[:2])
    assert made.golden()[1].keys() == {"model.onnx"} and made.manifest.face_net == net
    with pytest.raises(UserError, match=r"golden frames are uint8 \(n,3,4,3\), not uint8 \(8,6,8,1\)"):
        bundle.write(tmp_path / "b", whole, files, FRAMES, golden, (FRAMES, GOLDEN))
    with pytest.raises(UserError, match=r"'face\.onnx': is used but has no sha256"):
        bundle.write(tmp_path / "b", whole, FILES, FRAMES, golden, (small, GOLDEN[:2]))
    edit(made.path, lambda raw: raw["fusion"]["net"]["input"].update(shape=[2, 3, 4, 3]))
    refused(made.path, "the net for the face takes")
    assert written(tmp_path / "plain").manifest.face_net is None
