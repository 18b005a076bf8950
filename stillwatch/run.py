"""Run: a folder that every command takes and gives. Each file is written whole or not at all."""

import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from stillwatch.atomic import FileLock, atomic
from stillwatch.errors import UserError, explain, nearest
from stillwatch.recipe import Net, Recipe, SideName, amend, check

PACKAGES = ("stillwatch", "torch", "timm", "accelerate", "numpy", "opencv-python-headless")


class Progress(NamedTuple):
    """bar(things, count, what) yields the same things; say(line) prints."""

    bar: Callable[[Iterable[Any], int, str], Iterable[Any]] = lambda things, count, what: things
    say: Callable[[str], None] = lambda line: None


NO_PROGRESS = Progress()


Cost: TypeAlias = Annotated[dict[str, int], BeforeValidator(lambda value: value or {})]  # params macs bytes
Figures: TypeAlias = Annotated[dict[str, int | float], BeforeValidator(lambda value: value or {})]


class Majority(BaseModel):
    """Score of the best constant answer."""

    label: str = ""
    valid_accuracy: float = 0.0


class Unlabelled(BaseModel):
    """Samples without a label that a student learnt from."""

    samples: int = 0
    used: int = 0  # of which the teacher was as sure as fit.confidence asks
    named: dict[str, int] = {}  # used ones by the label that the teacher gives


class Adapted(BaseModel):
    """Figures of the later part of the same films: never of new people."""

    to: str
    learnt: int  # samples of the beginning
    later: int
    disagreement: float  # share of later samples that it names otherwise than before
    teacher_before: float | None = None  # share of later samples that the teacher names alike
    teacher_after: float | None = None
    before: Figures = {}  # accuracy and macro_f1 of the later part, where its labels are known
    after: Figures = {}

    @property
    def told(self) -> str:
        found = f"adapted to {self.to}: of the later {self.later:,} samples it names {self.disagreement:.1%} otherwise"
        if self.teacher_before is not None and self.teacher_after is not None:
            found += f", and agrees with its teacher on {self.teacher_after:.1%} (before {self.teacher_before:.1%})"
        if self.before and self.after:
            found += f"; adapted macro-F1 {self.after['macro_f1']:.3f} (before {self.before['macro_f1']:.3f}), accuracy"
            found += f" {self.after['accuracy']:.1%} ({self.before['accuracy']:.1%}): no figure of new people"
        return found


class RunInfo(BaseModel):
    """run.json. Unset keys are not written; another version's keys are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str = ""
    kind: str = ""  # audit teacher alone distilled narrow pruned quantised tune; of an exported file: its name
    status: str = ""  # running done failed stopped
    started: str = ""
    finished: str = ""
    recipe: dict[str, Any] = {}
    parent: str | None = None  # the folder's name of the run that it was made from
    teacher: str | None = None  # the run under which a compressed net was healed
    command: str | None = None
    commit: str | None = None
    versions: dict[str, str] | None = None
    fingerprint: str | None = None  # of the data
    aspect: float | None = None  # width / height of its pictures before resizing, median
    seed: int | None = None
    majority: Majority = Majority()
    cost: Cost = {}
    teacher_cost: Cost = {}
    processes: int | None = None
    unlabelled: Unlabelled | None = None
    adapted: Adapted | None = None
    best: Figures = {}  # epoch, and the figures on validation
    epochs: int | None = None
    error: str | None = None
    # ---- narrow, pruned
    steps: list[dict[str, Any]] = []
    before: Cost = {}
    keep: Figures = {}
    widths: dict[str, dict[str, int]] = {}
    narrow: str | None = None
    members: list[str] = []  # of a teacher that is several nets: their runs, in the same folder
    weights: list[float] = []  # of the members
    disagreement: float | None = None  # share of validation samples that its members do not all name alike
    target: float | None = None
    planned: int | None = None
    width: float | None = None
    # ---- quantised
    stages: list[dict[str, Any]] = []
    stage: str | None = None
    kept: bool | None = None
    why: str | None = None
    calibration: int | None = None
    temperature: float | None = None
    # ---- tune and its trials
    trials: int | None = None
    values: dict[str, Any] = {}
    # ---- a bundle's file under judgement
    side: SideName | None = None
    runtime: str | None = None
    precision: str | None = None

    @property
    def learnt_nothing(self) -> str:
        """Why its net is no better than one constant answer; "" where it is."""
        accuracy, majority = self.best.get("accuracy", 1.0), self.majority
        if accuracy > majority.valid_accuracy:
            return ""
        return (
            f"learnt nothing: its validation accuracy, {100 * accuracy:.1f} %, does not beat always saying "
            f"{majority.label} ({100 * majority.valid_accuracy:.1f} %)"
        )

    @property
    def above_teacher(self) -> str:
        """Says that the student is larger than its teacher, else ""."""
        mine, theirs = self.cost.get("params", 0), self.teacher_cost.get("params", 0)
        larger = f"the student has {mine:,} parameters, its teacher {theirs:,}: it is larger than what it learns from"
        return larger if 0 < theirs < mine else ""

    def changed(self, **fields: Any) -> "RunInfo":
        return RunInfo.model_validate(self.model_dump(exclude_unset=True) | fields)


class Kind(NamedTuple):
    title: str
    colour: str  # Okabe and Ito's: safe for the colour-blind and told apart in gray print
    fit: Literal["teacher", "student", "prune", "quantise"] = "student"
    compressed: bool = False


KINDS = {  # in the order of a report; narrow: the baseline that pruning must beat
    "teacher": Kind("Teacher", "#0072B2", "teacher"),
    "alone": Kind("Student alone", "#D98200"),
    "distilled": Kind("Student distilled", "#009E73"),
    "narrow": Kind("Student narrower", "#9AA3AB", compressed=True),
    "pruned": Kind("Student pruned", "#CC79A7", "prune", compressed=True),
    "quantised": Kind("Student INT8", "#56B4E9", "quantise", compressed=True),
}


class Run:
    def __init__(self, path: Path, info: RunInfo | None = None):
        self.path = path
        self.info = info or RunInfo()
        self._lock = FileLock(path / ".lock")

    @classmethod
    def create(cls, recipe: Recipe, kind: str, root: Path | str = "runs", source: str = "", **fields: Any) -> "Run":
        """Makes `root/<recipe>-<kind>-NNN`, next free number. source: the recipe's text."""
        root = Path(root)
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = root / f"{recipe.name}-{kind}-{number:03d}"
            try:
                path.mkdir()
                break
            except FileExistsError:
                number += 1
        versions = {"python": sys.version.split()[0]}
        for package in PACKAGES:
            with suppress(PackageNotFoundError):
                versions[package] = version(package)
        info = RunInfo(
            id=path.name,
            kind=kind,
            status="running",
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            recipe=recipe.model_dump(mode="json"),
            parent=fields.pop("parent", None),
            command=" ".join(["stillwatch", *sys.argv[1:]]),
            commit=commit(),
            versions=versions,
            **fields,
        )
        run = cls(path, info)
        run.lock()
        if source:
            with atomic(path / "recipe.toml") as draft:
                draft.write_text(source, encoding="utf-8")
        run.note()
        return run

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """Raises UserError where it is no run."""
        path = Path(path)
        try:
            info = RunInfo.model_validate(json.loads((path / "run.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            beside = [p.parent.name for p in path.parent.glob("*/run.json")]
            hint = nearest(path.name, beside) if beside else "; `stillwatch ls` shows the runs there are"
            raise UserError(f"{path}: not a run (it has no run.json){hint}") from None
        except ValidationError as error:
            raise UserError(explain(error, RunInfo, lambda _: str(path / "run.json"))) from error
        except (OSError, ValueError) as error:
            raise UserError(f"{path / 'run.json'}: cannot be read: {error}") from error
        return cls(path, info)

    @property
    def side(self) -> SideName:
        """Whose net it keeps, and whose pixels it saw."""
        # A bundle's file states it, as its kind is its name
        return "teacher" if (self.info.side or self.info.kind) == "teacher" else "student"

    @cached_property
    def recipe(self) -> Recipe:
        return check(self.info.recipe, str(self.path / "run.json"))

    @property
    def seen(self) -> Recipe:
        """The recipe with the pixels that its net saw."""
        return self.recipe.seen_by(self.side)

    @property
    def net(self) -> Net:
        return self.recipe.teacher.net if self.side == "teacher" else self.recipe.student.net

    def amended(self, overrides: Iterable[str], tables: Iterable[str]) -> "Run":
        """Lays `key=value` over those tables. Raises UserError for other keys."""
        recipe = amend(self.recipe, overrides, tables, str(self.path / "run.json"))
        return Run(self.path, self.info.changed(recipe=recipe.model_dump(mode="json")))

    def lock(self) -> bool:
        """Until the process ends. False where another process holds it."""
        return self._lock.acquire()

    def unlock(self) -> None:
        self._lock.release()

    def log(self, row: Mapping[str, Any]) -> None:
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @property
    def text(self) -> str:
        path = self.path / "recipe.toml"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def history(self) -> list[dict[str, Any]]:
        """metrics.jsonl, without a last line cut short by a kill."""
        rows: list[dict[str, Any]] = []
        with suppress(FileNotFoundError):
            for line in (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):
                    rows.append(json.loads(line))
        return rows

    def rewind(self, epochs: int) -> None:
        """Drops later lines of metrics.jsonl."""
        rows = [row for row in self.history() if row["epoch"] <= epochs]
        with atomic(self.path / "metrics.jsonl") as draft:
            draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def save(self, name: str, write: Callable[[Path], object]) -> Path:
        """`write` fills a draft, which then replaces the file in one step."""
        with atomic(self.path / name) as draft:
            write(draft)
        return self.path / name

    def save_json(self, name: str, value: object) -> Path:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
        return self.save(name, lambda draft: draft.write_text(text + "\n", encoding="utf-8"))

    def read_json(self, name: str) -> Any:
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def save_csv(self, name: str, header: Iterable[str], rows: Iterable[Iterable[object]]) -> Path:
        def write(draft: Path) -> None:
            with draft.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([list(header), *rows])

        return self.save(name, write)

    def save_arrays(self, name: str, **arrays: NDArray[np.generic]) -> Path:
        def write(draft: Path) -> None:
            with draft.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

        return self.save(name, write)

    def note(self, **fields: Any) -> None:
        self.info = self.info.changed(**fields)
        vars(self).pop("recipe", None)  # it is read anew
        self.save_json("run.json", self.info.model_dump(exclude_unset=True))

    def finish(self, status: str = "done", **fields: Any) -> None:
        """status: "done", "failed" or "stopped"."""
        self.note(status=status, finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"), **fields)
        self.unlock()


def runs(root: Path | str = "runs") -> list[Run]:
    """Oldest first; skips other folders."""
    found = []
    for path in Path(root).glob("*/run.json"):
        with suppress(UserError):
            found.append(Run.open(path.parent))
    return sorted(found, key=lambda run: (run.info.started, int((re.findall(r"\d+$", run.path.name) or [0])[0])))


def commit() -> str | None:
    """With + for a changed tree; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None
