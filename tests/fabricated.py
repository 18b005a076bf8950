"""Finished runs whose skill can be chosen, and a reader of the pages that are made of them. No net was harmed."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from stillwatch.recipe import check
from stillwatch.run import Run

LABELS = ["Safe", "Phone", "Yawn"]


def fabricate(
    root: Path,
    kind: str,
    fold: int = 0,
    seed: int = 0,
    skill: float = 1.0,
    change: dict[str, Any] | None = None,
    groups: int = 3,
    per_group: int = 40,
    frames: int = 1,
    valid: float = 0.0,
    status: str = "done",
    **info: Any,
) -> Run:
    """A finished run with predictions of `groups` people, whose skill can be chosen. No net was harmed.

    change: {"data": {...}, ...} laid over the recipe's tables. frames: of one recording, with one label.
    valid: the skill on a validation slice; 0: none is kept.
    """
    raw: dict[str, Any] = {"name": "toy", "labels": LABELS, "safe": ["Safe"], "fit": {"epochs": 3}}
    raw |= {"data": {"source": "toy", "fold": fold, "valid": 0.1}}
    raw |= {"teacher": {"net": {"name": "efficientnet"}}, "student": {"net": {"name": "smallcnn"}}}
    for key, value in (change or {}).items():
        raw[key] = raw.get(key, {}) | value if isinstance(value, dict) else value
    params = 15_242_050 if kind == "teacher" else 2_116_930
    cost = {"params": params, "macs": params * 9, "bytes": params * 4}
    about = {"seed": seed, "fingerprint": "feed", "cost": cost, "epochs": 3, "best": {"epoch": 2}} | info
    run = Run.create(check(raw, "test"), kind, root, **about)
    for split, ability in (("test", skill), ("valid", valid)):
        if ability:
            _say(run, split, fold, seed, ability, groups, per_group, frames)
    for epoch in (1, 2, 3):
        parts = {"ce": 0.6 / epoch, "kd": 1.2 / epoch} if kind == "distilled" else {"ce": 1.0 / epoch}
        total = sum(parts.values())
        share = {name: value / total for name, value in parts.items()}
        figures = {"loss": 1 / epoch, "accuracy": 1 - 0.5 / epoch, "macro_f1": 1 - 0.6 / epoch}
        run.log({"epoch": epoch, "train": {"loss": total, "parts": parts, "share": share}, "valid": figures})
    run.save_json("audit.json", {"warnings": [f"{10 + fold} pictures of the test are twins of training pictures"]})
    run.finish(status)
    return run


def _say(run: Run, split: str, fold: int, seed: int, skill: float, groups: int, per_group: int, frames: int) -> None:
    truth = np.random.default_rng((fold, 1 if split == "test" else 2))  # the data: the same for every run
    chance = np.random.default_rng((fold, seed, sum(map(ord, run.info.kind))))
    n = groups * per_group
    y = np.repeat(truth.integers(3, size=n // frames), frames)
    z = truth.normal(size=(n, 3)) * 0.7 + chance.normal(size=(n, 3)) * 0.3
    z[np.arange(n), y] += skill
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    group = np.repeat([f"g{fold}{g}" for g in range(groups)], per_group)
    clip = np.arange(n) // frames
    run.save_arrays(
        f"predictions/{split}.npz",
        id=np.array([f"{split}/{fold}/{i:04d}.jpg" for i in range(n)]),
        group=group,
        sequence=np.array([f"clip{fold}-{c}" for c in clip]),
        y=y.astype(np.int64),
        p=p.astype(np.float32),
    )


def three(root: Path, distilled: float, folds: int = 3, seeds: int = 1, **more: Any) -> list[Run]:
    """Teacher, and for each seed alone (skill 1) and distilled runs, on every fold."""
    runs = []
    for fold in range(folds):
        teacher = fabricate(root, "teacher", fold, skill=2.2, **more)
        runs.append(teacher)
        for seed in range(seeds):
            runs.append(fabricate(root, "alone", fold, seed, **more))
            runs.append(fabricate(root, "distilled", fold, seed, distilled, parent=teacher.path.name, **more))
    return runs


class Reader(HTMLParser):
    """Collects what a page refers to and says, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.pieces: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        """What it says, with white space as a browser shows it."""
        return " ".join("".join(self.pieces).split())
