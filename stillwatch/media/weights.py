"""Weights that are not shipped: found, or downloaded once and checked."""

import hashlib
import os
import urllib.request
from pathlib import Path
from typing import NamedTuple

from stillwatch.atomic import atomic, home
from stillwatch.errors import UserError, one_line
from stillwatch.recipe import Rule

LARGEST = 64 << 20  # bytes that are read of an answer
PATIENCE = 20.0  # seconds for the server's answer


class Weights(NamedTuple):
    sha256: str
    about: str
    url: str  # "": nobody is known to host this very file


YUNET, POINTS = "yunet_n_320_320.onnx", "face_landmark_468.onnx"
WEIGHTS = {
    YUNET: Weights(
        "81dbde155e982455488235acb8ec2dec5d647edf7cf7080d33e4abb69b93a0d2",
        "YuNet's face detector, Apache-2.0",
        "https://raw.githubusercontent.com/ShiqiYu/libfacedetection.train/"
        "47198234de8c4646961e46159e02af5b06021a78/onnx/yunet_n_320_320.onnx",
    ),
    POINTS: Weights(
        "6048f60acd37b106b93a54298ff1a59dded4148c500872de1cf2c06abc3cb400", "MediaPipe's face mesh, Apache-2.0", ""
    ),
}


def local(name: str) -> Path | None:
    """In STILLWATCH_WEIGHTS's folder, else in the cache."""
    asked = Path(os.environ.get("STILLWATCH_WEIGHTS") or "/nonexistent")
    return next((path for path in (asked / name, _cache() / name) if path.is_file()), None)


def wanted(rule: Rule) -> bool:
    """Whether a rule reads faces here. Raises UserError."""
    if rule.faces == "no" or (rule.faces == "auto" and rule.profile != "driver"):
        return False
    if rule.faces == "auto":
        return all(map(local, WEIGHTS))
    try:
        return all(map(find, WEIGHTS))
    except UserError as error:
        raise UserError(f'rule.faces = "yes": {error}') from None


def find(name: str) -> Path:
    """local(), else downloaded once from WEIGHTS, or an https mirror in STILLWATCH_WEIGHTS. Raises UserError."""
    if path := local(name):
        return path
    known, asked = WEIGHTS[name], os.environ.get("STILLWATCH_WEIGHTS", "")
    url = f"{asked.rstrip('/')}/{name}" if asked.startswith("https://") else known.url
    missing = f"{name} ({known.about}) is needed: put it into the folder that STILLWATCH_WEIGHTS names"
    missing += f" (now {asked})" if asked else " (now not set)"
    if not url:
        raise UserError(f"{missing}, or set that to the https address of a mirror")
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            data = answer.read(LARGEST)
    except (OSError, ValueError) as error:  # urllib's errors are OSErrors; http.client's for a bad answer ValueErrors
        raise UserError(f"{missing}; {url.split('?')[0]} could not be read: {one_line(error)}") from None
    if (got := hashlib.sha256(data).hexdigest()) != known.sha256:
        raise UserError(f"{url.split('?')[0]}: another file: sha256 {got[:12]}…, wanted {known.sha256[:12]}…")
    try:
        with atomic(_cache() / name) as draft:
            draft.write_bytes(data)
    except OSError as error:
        raise UserError(f"{_cache()}: cannot be written: {error.strerror}; {missing}") from None
    return _cache() / name


def _cache() -> Path:
    return home() / "weights"
