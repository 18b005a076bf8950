"""The bundle: the folder that leaves the lab, written whole or not at all. Imports no runtime."""

import ctypes
import hashlib
import io
import json
import math
import mmap
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from typing_extensions import TypedDict

from stillwatch.atomic import alive
from stillwatch.errors import UserError, in_plain_words, nearest, one_line
from stillwatch.recipe import Rule, Strict

FORMAT = 1
MANIFEST, GOLDEN, INT8, FACE = "bundle.json", "golden.npz", "model-int8.onnx", "face.onnx"
LARGEST = 8 << 20  # bytes of a bundle.json that is still read
LARGEST_GOLDEN = 256 << 20  # bytes of all arrays of a golden.npz, as their headers declare them
# The parts of an ONNX file that may hold tensors, by their field numbers in onnx.proto; 13 of a tensor: external data
ONNX: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
BESIDE = {".xml": ".bin", ".param": ".bin"}  # what a runtime opens unasked beside a file, so it must be hashed too


class Model(Strict):
    name: str  # its main file
    files: tuple[str, ...] = Field(min_length=1)  # main file first
    precision: Literal["fp32", "fp16", "int8"]
    batch: int | None = Field(None, ge=1)  # None: any
    tolerance: float = Field(ge=0, lt=1)  # largest |Δp| allowed on the golden frames
    figures: dict[str, Any] = Field(default_factory=dict)
    map: tuple[int, int] | None = None  # (height, width) of its further output: where the evidence is


class Input(Strict):
    """What the net takes: uint8 pictures (H,W,C) or clips (T,H,W,C)."""

    shape: tuple[int, ...] = Field(min_length=3, max_length=4)
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"
    aspect: float | None = Field(None, gt=0, allow_inf_nan=False)  # width / height of the training pictures, median
    shrink: Literal["", "decode"] = ""  # decode: JPEGs were read at the nearest smaller scale
    look: tuple[float, ...] | None = None  # clips: the T frames in seconds before the newest, oldest first

    @model_validator(mode="after")
    def _pixels(self) -> "Input":
        if not all(1 <= side <= 8192 for side in self.shape) or self.shape[-1] not in (1, 3):
            raise ValueError(f"{self.shape} is neither (H,W,C) nor (T,H,W,C) with C = 1 or 3 and sides up to 8192")
        if self.look and (len(self.shape) != 4 or self.shape[0] != len(self.look) or sorted(self.look)[0] != 0):
            raise ValueError(f"look {list(self.look)} does not name the {self.shape[0]} moments of {self.shape}")
        return self


class Origin(TypedDict, total=False):
    """people: "new", "chosen" (not trained on, but the epoch was chosen by them) or "known"."""

    split: str  # "valid" or "out of fold"
    people: str
    source: str


class OperatingPoint(Origin, total=False):
    """wanted: share of false alarms asked for. safe, others: samples on `split`, of `groups` people.

    upper: 95 % bound of the rate on new people; worst: one person's highest.
    """

    threshold: float
    false_alarm_rate: float
    recall: float
    wanted: float
    safe: int
    others: int
    groups: int
    upper: float | None
    worst: float | None


class Temperature(Origin, total=False):
    value: float
    ece_before: float
    ece_after: float


class FaceNet(Model):
    """Sees the face alone, cut out at the picture's own pixels; its probabilities are Signals.said."""

    input: Input

    @model_validator(mode="after")
    def _still(self) -> "FaceNet":
        if len(self.input.shape) != 3:
            raise ValueError(f"the net for the face takes {self.input.shape}, not a picture (H,W,C)")
        return self


class Fusion(Strict):
    """rules.fusion's head. figures: on people left out."""

    weight: tuple[tuple[float, ...], ...]  # (K,K+16), by its temperature; (K,K+8) knows a face as it is now alone
    bias: tuple[float, ...]  # (K,)
    net: FaceNet | None = None  # weight is then (K,K+16+K)
    temperature: Temperature | None = None  # None in both: of 0.1.0's time
    operating: OperatingPoint | None = None  # where faces are read
    figures: dict[str, float]


class Entry(Strict):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(Strict):
    """bundle.json. write() fills `files` with every other file."""

    format: int = FORMAT
    name: str
    labels: tuple[str, ...] = Field(min_length=2)
    safe: tuple[str, ...] = ()
    input: Input
    rule: dict[str, Any] = Field(default_factory=dict)
    operating: OperatingPoint | None = None
    temperature: Temperature | None = None
    fusion: Fusion | None = None
    run: dict[str, Any] = Field(default_factory=dict)  # id, kind, commit, fingerprint, resolved recipe
    licence: str
    created: str
    stillwatch: str
    models: tuple[Model, ...] = Field(min_length=1)
    files: dict[str, Entry] = Field(default_factory=dict)
    left_out: tuple[dict[str, Any], ...] = ()  # name, why, and figures of what was tried and is not here

    @model_validator(mode="after")
    def _whole(self) -> "Manifest":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels has one name twice")
        if strange := [label for label in self.safe if label not in self.labels]:
            raise ValueError(f"safe names {strange[0]!r}, which is not among the labels")
        names = [model.name for model in self.nets]
        if len(set(names)) < len(names):
            raise ValueError("two models have one name")
        for model in self.nets:
            if model.files[0] != model.name:
                raise ValueError(f"the model {model.name!r} does not list itself as its first file")
            beside = BESIDE.get(Path(model.name).suffix)
            if beside and str(Path(model.name).with_suffix(beside)) not in model.files:
                raise ValueError(f"the model {model.name!r} does not list the {beside} file that is read with it")
        if self.fusion and {len(self.labels)} != {len(self.fusion.bias), len(self.fusion.weight)}:
            raise ValueError("fusion is of another number of labels")
        for name in (*self.files, *(name for model in self.nets for name in model.files)):
            _plain(name)
        try:
            Rule.model_validate(self.rule)
        except ValidationError as error:
            raise ValueError(f"rule.{_fault(error)}") from None
        return self

    @property
    def face_net(self) -> FaceNet | None:
        return self.fusion.net if self.fusion else None

    @property
    def nets(self) -> tuple[Model, ...]:
        return (*self.models, *([self.face_net] if self.face_net else []))


def _plain(name: str) -> None:
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"^[A-Za-z]:", name):
        raise ValueError(f"the file {name!r} climbs out of the folder")
    if len(name) > 200 or not re.fullmatch(r"(\w[\w.+-]*/)*\w[\w.+-]*", name, re.ASCII) or name == MANIFEST:
        raise ValueError(f"{name!r} is no name for a bundle's file (letters, digits, and . _ + -)")


@dataclass(frozen=True)
class Bundle:
    """A folder whose files were checked at load."""

    path: Path
    manifest: Manifest

    def model(self, name: str) -> Model:
        """Raises UserError."""
        known = {model.name: model for model in self.manifest.models}
        if name not in known:
            raise UserError(f"{self.path}: {name!r}: no such model in the bundle{nearest(name, known)}")
        return known[name]

    def golden(self, face: bool = False) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]:
        """(frames uint8 (n,*shape), model name -> probabilities float32 (n,K)). face: of the net for the face."""
        try:
            # np.load forgets to close what it opens itself where the zip is broken
            with (self.path / GOLDEN).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                _check_declared(arrays.zip)
                frames = arrays["faces" if face else "frames"]
                models = self.manifest.nets[len(self.manifest.models) :] if face else self.manifest.models
                golden = {model.name: arrays[f"p {model.name}"] for model in models}
        except Exception as error:  # a broken zip can raise almost anything: NotImplementedError, MemoryError, zlib's…
            raise UserError(f"{self.path / GOLDEN}: cannot be read: {one_line(error)}") from error
        _check_golden(self.path, self.manifest, frames, golden, face)
        return frames, golden


def unlike(p: NDArray[np.floating], wanted: NDArray[np.floating], tolerance: float) -> tuple[float, int | None]:
    """Probabilities (n,K) -> (largest |Δp| or NaN, first frame with another label or None).

    A label may change where the two best are within the tolerance.
    """
    difference = float(np.abs(p - wanted).max())
    second, first = np.sort(wanted)[:, -2:].T
    other = (p.argmax(1) != wanted.argmax(1)) & (first - second >= tolerance)
    return difference, int(other.argmax()) if other.any() else None


def write(
    path: Path,
    manifest: Manifest,
    files: Mapping[str, Path | bytes],
    frames: NDArray[np.uint8],
    golden: Mapping[str, NDArray[np.float32]],
    face: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None,
) -> Bundle:
    """Write the folder, or leave what was there; an older bundle is replaced in one step.

    manifest: `files` empty. files: all but bundle.json and golden.npz. frames: uint8 (n,*shape). golden: model name ->
    float32 (n,K). face: both of the net for the face. Raises UserError.
    """
    frames, golden = np.asarray(frames), {name: np.asarray(p, np.float32) for name, p in golden.items()}
    _check_golden(path, manifest, frames, golden)
    told = {"frames": frames} | {f"p {name}": p for name, p in golden.items()}
    if manifest.face_net and face:
        _check_golden(path, manifest, face[0], {manifest.face_net.name: face[1]}, face=True)
        told |= {"faces": face[0], f"p {manifest.face_net.name}": face[1]}
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **told)  # type: ignore[arg-type]
    if reserved := {MANIFEST, GOLDEN} & set(files):
        raise UserError(f"{path}: {min(reserved)!r}: a bundle writes this file itself; give yours another name")
    with _folder(path) as draft:
        entries = dict[str, Entry]()
        for name, source in {**files, GOLDEN: arrays.getvalue()}.items():
            place = draft / name
            try:
                _plain(name)
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(source, bytes):
                    place.write_bytes(source)
                else:
                    shutil.copyfile(source, place)
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: {name!r}: cannot be put into the bundle: {one_line(error)}") from error
            with place.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            entries[name] = Entry(sha256=sha256, bytes=place.stat().st_size)
        text = manifest.model_copy(update={"files": entries}).model_dump_json(indent=2)
        (draft / MANIFEST).write_text(text + "\n", encoding="utf-8")
        whole = _read(draft, path)
    return Bundle(path, whole)


def load(path: Path | str) -> Bundle:
    """Check every file's size and sha256. Raises UserError for what is no bundle, a newer one, or a changed one."""
    path = Path(path)
    return Bundle(path, _read(path, path))


def _read(folder: Path, place: Path) -> Manifest:
    manifest = _manifest(folder, place)
    used = [name for model in manifest.nets for name in model.files]
    for name in (*used, GOLDEN):
        if name not in manifest.files:
            raise UserError(f"{place / MANIFEST}: {name!r}: is used but has no sha256; export the bundle again")
    root = folder.resolve()
    for name, entry in manifest.files.items():
        _check_file(root, place, name, entry)
    for model in manifest.nets:
        for other in _external(place / model.name, root / model.name) if model.name.endswith(".onnx") else ():
            beside = os.path.normpath(Path(model.name).parent / other)
            if beside not in model.files:
                raise UserError(f"{place / model.name}: reads {other!r}, which the manifest does not list for it")
    return manifest


def _external(place: Path, path: Path) -> set[str]:
    """The files that hold an ONNX file's tensors."""
    if not (whole := path.stat().st_size):
        return set()
    found, todo = set[str](), [("model", 0, whole)]
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data.find(b"location") < 0:  # the key under which a tensor names its file
                return found
            while todo:
                kind, at, end = todo.pop()
                entry = dict[int, bytes]()  # its key and its value
                while at < end:
                    tag, at = _varint(data, at)
                    if (wire := tag & 7) == 0:
                        _, at = _varint(data, at)
                        continue
                    size, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
                    if at + size > end:
                        raise ValueError
                    if wire == 2 and kind == "entry":
                        entry[tag >> 3] = data[at : at + size]
                    elif wire == 2 and (inner := ONNX[kind].get(tag >> 3)):
                        todo.append((inner, at, at + size))
                    at += size
                if entry.get(1) == b"location":
                    found.add(entry.get(2, b"").decode())
    except (IndexError, KeyError, ValueError):
        raise UserError(f"{place}: not an ONNX file; export the run again") from None
    return found


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """(value, next position)."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (data[at + shift // 7] & 127) << shift
        if data[at + shift // 7] < 128:
            return value, at + shift // 7 + 1
    raise ValueError


def _check_declared(archive: zipfile.ZipFile) -> None:
    """Raises ValueError for arrays too large, by the zip's or their own headers."""
    size = sum(member.file_size for member in archive.infolist())
    for name in archive.namelist():
        with archive.open(name) as file:
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
            shape, _, kind = read(file)
        size = max(size, math.prod(shape) * kind.itemsize)
    if size > LARGEST_GOLDEN:
        raise ValueError(f"its arrays would take {size / 2**20:,.0f} MiB; at most {LARGEST_GOLDEN >> 20} are read")


def _manifest(folder: Path, place: Path) -> Manifest:
    where, aside = place / MANIFEST, _beside(folder, "old")
    if not folder.exists() and aside.is_dir():
        raise UserError(f"{place}: an export was cut off as it replaced it; the older one is {aside}: rename it back")
    if not (folder / MANIFEST).is_file():  # not a pipe either, which would never end
        why = "it has no bundle.json" if folder.exists() else "no such folder"
        raise UserError(f"{place}: not a bundle: {why}; `stillwatch export RUN` makes one")
    try:
        with (folder / MANIFEST).open("rb") as file:
            text = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {one_line(error)}") from error
    try:
        raw = json.loads(text) if len(text) <= LARGEST else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {one_line(error)}; copy the bundle again") from error
    if not isinstance(raw, dict) or type(raw.get("format")) is not int:
        raise UserError(
            f"{where}: not a bundle's manifest (no whole number `format`); `stillwatch export RUN` makes one"
        )
    if raw["format"] > FORMAT:
        hint = f"this stillwatch reads up to {FORMAT}; update it, or export the run with this one"
        raise UserError(f"{where}: format = {raw['format']}: written by a newer stillwatch; {hint}")
    if raw["format"] < FORMAT:
        raise UserError(f"{where}: format = {raw['format']}: there never was such a format; export the run again")
    try:
        return Manifest.model_validate(raw)
    except (ValidationError, RecursionError) as error:
        raise UserError(f"{where}: {_fault(error)}; export the run again") from error


def _fault(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "nested too deeply"
    first = error.errors()[0]
    # A key is the stranger's own text: quoted, so that it cannot write control characters to a terminal
    key = ".".join(str(step) if isinstance(step, int) or step.isidentifier() else repr(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{key[:200]}: unknown key"
    if first["type"] == "missing":
        return f"{key[:200]}: missing"
    return (f"{key[:200]}: " if key else "") + in_plain_words(first["msg"])[:300]


def _check_file(root: Path, place: Path, name: str, entry: Entry) -> None:
    where = place / name
    try:
        file = (root / name).resolve(strict=True)
    except FileNotFoundError:
        raise UserError(f"{where}: missing; copy the bundle again") from None
    except (OSError, RuntimeError) as error:  # a ring of links is a RuntimeError before Python 3.13
        raise UserError(f"{where}: cannot be read: {one_line(error)}") from error
    if not file.is_relative_to(root):
        raise UserError(f"{where}: a link that climbs out of the bundle; copy the bundle again, with its files")
    if not file.is_file():
        raise UserError(f"{where}: not a file; copy the bundle again")
    try:
        if (size := file.stat().st_size) != entry.bytes:
            raise UserError(f"{where}: is {size} bytes, the manifest says {entry.bytes}; copy the bundle again")
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {one_line(error)}") from error
    if found != entry.sha256:
        raise UserError(f"{where}: was changed (sha256 {found[:12]}…, not {entry.sha256[:12]}…); copy the bundle again")


def _check_golden(
    place: Path,
    manifest: Manifest,
    frames: NDArray[np.generic],
    golden: Mapping[str, NDArray[np.float32]],
    face: bool = False,
) -> None:
    where, net = place / GOLDEN, manifest.face_net if face else None
    shape = (net or manifest).input.shape
    if frames.dtype != np.uint8 or frames.shape[1:] != shape or not len(frames):
        raise UserError(f"{where}: golden frames are uint8 (n,{','.join(map(str, shape))}), not {_form(frames)}")
    names = {net.name} if net else {model.name for model in manifest.models}
    if unknown := set(golden) ^ names:
        raise UserError(
            f"{where}: {min(unknown)!r}: each model of the bundle has golden probabilities, and nothing else"
        )
    for name, p in golden.items():
        if p.dtype != np.float32 or p.shape != (len(frames), len(manifest.labels)) or not np.isfinite(p).all():
            wanted = f"finite float32 ({len(frames)},{len(manifest.labels)})"
            raise UserError(f"{where}: {name!r}: golden probabilities are {wanted}, not {_form(p)}")


def _form(array: NDArray[np.generic]) -> str:
    return f"{array.dtype} ({','.join(map(str, array.shape))})"


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    target = path.resolve()  # a link to a bundle stays a link
    old, draft = _beside(target, "old"), _beside(target, str(os.getpid()))
    for left in target.parent.iterdir() if target.parent.is_dir() else ():
        match = re.fullmatch(re.escape(f".{target.name}.") + r"(\d{1,10})", left.name, re.ASCII)
        if match and (int(match[1]) == os.getpid() or not alive(int(match[1]))):
            shutil.rmtree(left, ignore_errors=True)
    if old.exists() and not target.exists():  # killed between two renames, where the system cannot exchange
        old.rename(target)
    _check_replaceable(target, path)
    try:
        draft.mkdir(parents=True)
        yield draft
        if not target.exists():
            draft.rename(target)
        elif not _exchange(draft, target):
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            draft.rename(target)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {one_line(error)}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # after an exchange the draft is the older bundle
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path, ending: str) -> Path:
    return target.resolve().with_name(f".{target.resolve().name}.{ending}")


def _check_replaceable(target: Path, path: Path) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        listed = json.loads((target / MANIFEST).read_bytes())
        files = {MANIFEST, *listed["files"]} if type(listed["format"]) is int else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        files = None
    if files is None:
        raise UserError(f"{path}: is there and is not a bundle, so it is not replaced; choose another name")
    inside = sorted(str(file.relative_to(target)) for file in target.rglob("*") if not file.is_dir())
    # bench.json and its picture describe the bundle that they lie in: they go with it
    if mine := [name for name in inside if name not in files and name not in ("bench.json", "latency-accuracy.png")]:
        raise UserError(f"{path}: holds {mine[0]!r}, which no export put there; move it away, then export again")


def _exchange(a: Path, b: Path) -> bool:
    """Linux renameat2(2), RENAME_EXCHANGE; False where unsupported."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    at, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(at, os.fsencode(a), at, os.fsencode(b), exchange) == 0)
