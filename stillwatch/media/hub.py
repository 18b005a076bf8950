"""Bundles on a Hugging Face hub: push one, fetch one into the cache."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stillwatch.atomic import home
from stillwatch.bundle import GOLDEN, LARGEST, MANIFEST, Bundle, Manifest, load
from stillwatch.errors import UserError, one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ADDRESS = r"hf:/{1,2}(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?"  # one slash: a Path swallowed the other
LARGEST_REPO = 2 << 30  # bytes of a stranger's bundle that are still fetched
# By the hub's names
LICENCES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gpl-3.0")


def folder(place: Path | str) -> Path:
    """A bundle's folder; fetches and checks hf://user/name[@revision]. Raises UserError."""
    if not str(place).startswith("hf:"):
        return Path(place)
    if not (found := re.fullmatch(ADDRESS, str(place), re.ASCII)):
        raise UserError(f"{place}: is written hf://user/name, or hf://user/name@commit")
    repo, revision = found["repo"], found["revision"]
    kept = home().resolve() / "hub" / repo.replace("/", "--")
    # A whole commit that is here asks nobody
    if revision and (kept / revision / MANIFEST).is_file():
        return kept / revision
    held = sorted(kept.glob("*/bundle.json"), key=lambda path: path.stat().st_mtime)
    hint = f"; an older copy is {held[-1].parent}" if held else ""
    with _explained(f"hf://{repo}", hint) as api:
        about = api.model_info(repo, revision=revision, files_metadata=True)
        whole = kept / str(about.sha)
        if not (whole / MANIFEST).is_file():
            _fetch(api, repo, str(about.sha), whole, {one.rfilename: one.size or 0 for one in about.siblings or ()})
    return whole


def push(made: Bundle, repo: str, public: bool = False) -> str:
    """Upload what bundle.json lists, and the card. Returns the commit's address. Raises UserError."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise UserError(f"{repo}: is written user/name")
    with _explained(f"hf://{repo}") as api:
        from huggingface_hub import CommitOperationAdd

        files = [CommitOperationAdd(name, str(made.path / name)) for name in (MANIFEST, *made.manifest.files)]
        files.append(CommitOperationAdd("README.md", card(made).encode()))
        api.create_repo(repo, private=not public, exist_ok=True)
        words = f"{made.manifest.name}, by stillwatch {made.manifest.stillwatch}"
        done = api.create_commit(repo, files, commit_message=words)
    return str(done.commit_url)


def card(made: Bundle) -> str:
    """The bundle's card under the hub's YAML, with the first file's validation metrics."""
    from huggingface_hub import EvalResult, ModelCardData

    about, licence = made.manifest, made.manifest.licence.strip().lower()
    task = "video-classification" if len(about.input.shape) == 4 else "image-classification"
    valid = about.models[0].figures.get("valid") or {}
    results = [
        EvalResult(task, about.name, about.name, kind, round(float(valid[key]), 4), dataset_split="validation")
        for key, kind in (("accuracy", "accuracy"), ("macro_f1", "f1"))
        if key in valid
    ]
    data = ModelCardData(
        model_name=about.name,
        license=licence if licence in LICENCES else "other",
        license_name=None if licence in LICENCES else about.licence,
        library_name="stillwatch",
        pipeline_tag=task,
        tags=["onnx", "stillwatch", *about.labels],
        eval_results=results or None,
    )
    text = made.path / "CARD.md"
    body = text.read_text(encoding="utf-8") if text.is_file() else f"# {about.name}\n"
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def _fetch(api: "HfApi", repo: str, commit: str, whole: Path, sizes: dict[str, int]) -> None:
    draft = whole.with_name(f".{whole.name}.{os.getpid()}")
    try:
        if not 0 < sizes.get(MANIFEST, 0) <= LARGEST:
            raise UserError("has no bundle.json, or one too large to be one")
        text = Path(api.hf_hub_download(repo, MANIFEST, revision=commit, local_dir=draft)).read_bytes()
        try:
            listed = Manifest.model_validate(json.loads(text)).files
        except (ValueError, RecursionError) as error:
            raise UserError(f"its bundle.json cannot be read: {one_line(error)}") from None
        for name, entry in listed.items():
            if sizes.get(name) != entry.bytes:
                raise UserError(f"{name}: is {sizes.get(name, 'no')} bytes there, bundle.json says {entry.bytes}")
        if sum(entry.bytes for entry in listed.values()) > LARGEST_REPO or GOLDEN not in listed:
            raise UserError(f"no bundle, or above {LARGEST_REPO >> 30} GiB")
        for name in listed:
            api.hf_hub_download(repo, name, revision=commit, local_dir=draft)
        shutil.rmtree(draft / ".cache", ignore_errors=True)  # the client's own notes
        load(draft)
        draft.rename(whole)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _explained(place: str, hint: str = "") -> "Iterator[HfApi]":
    for name in ("TELEMETRY", "PROGRESS_BARS"):  # before the first import
        os.environ.setdefault(f"HF_HUB_DISABLE_{name}", "1")
    from huggingface_hub import HfApi

    try:
        yield HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="stillwatch")
    except Exception as error:  # httpx's, the client's and the system's have no common ancestor
        raise UserError(f"{place}: {one_line(error).rstrip('.')}{hint}") from None
