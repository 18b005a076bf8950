"""The recipe: TOML, checked. Every default stands here."""

import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stillwatch.errors import UserError, explain, nearest

Table = TypeVar("Table", bound=BaseModel)
Spec: TypeAlias = str | dict[str, Any]  # what registry.build takes
SideName: TypeAlias = Literal["teacher", "student"]
# Nets of NETS that have none of ImageNet
WITHOUT_WEIGHTS = ("smallcnn", "mnist-cnn", "mnist-small", "yolo-cls-n", "r2plus1d-small")
SHIPPED = Path(__file__).parent / "recipes"
SCHEMAS = Path(__file__).parent / "schemas"  # by tests/schemas.py
SEEN = ("size", "look", "windows", "frames", "rate", "fit", "gray", "region")  # keys of [teacher.data]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Strict):
    source: Spec  # one of SOURCES: driver-inattention, folders, videos, idx, csv, toy
    root: Path = Path()
    group: str | None = None  # "folder", "column:NAME", or a regex whose first bracket is the group
    split: Literal["official", "grouped", "ratio"] = "grouped"
    folds: int = Field(5, ge=2)  # grouped: test is fold `fold` of `folds`; ratio: test is one part of `folds`
    fold: int = Field(0, ge=0)
    valid: Literal["fold"] | float = "fold"  # "fold": another fold's groups; 0.1: that share of the training groups
    seed: int = 0  # of the split alone, so that seeds of training share one
    size: int | tuple[int, int] = 224  # side, or (height, width), in pixels
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"
    gray: bool = False  # one channel in the cache: a third of the bytes
    shrink: Literal["", "decode"] = ""  # decode: JPEGs are read at 1/2 or 1/4 where that is enough, in `score` too
    rate: float | None = Field(None, gt=0)  # videos: frames a second to take; all where absent
    frames: int = Field(1, ge=1)  # T, frames a sample: the simple form of look
    look: tuple[float, ...] | None = None  # seconds back of a sample's T frames, such as [0.0, 0.2, 0.6]
    windows: int = Field(4, ge=1)  # looks a clip, evenly spread
    max_bad: float = Field(0.05, ge=0, le=1)  # above this share of bad files the command stops
    region: Literal["", "box", "face", "eyes"] = ""  # [teacher.data], and face in [data]: cut out at native size
    faces: bool = False  # read every sample's face once, at native size; the audit counts them
    unlabelled: Path | None = None  # a folder, film or csv (path) without labels: the student hears its teacher on them
    labelled: int | None = Field(None, ge=1)  # training groups that keep their labels, drawn by seed; None: all
    negatives: Path | None = None  # <label>/<camera>/*.jpg that the page filed as false alarms: training only

    @model_validator(mode="after")
    def _possible(self) -> "Data":
        if self.fold >= self.folds:
            raise ValueError(f"fold = {self.fold} must be below folds = {self.folds}")
        if isinstance(self.valid, float) and not 0 < self.valid < 1:
            raise ValueError(f'valid = {self.valid} must lie between 0 and 1, or be "fold"')
        if min(self.hw) < 8:
            raise ValueError(f"size = {self.size} is too small: at least 8 pixels")
        if self.look is not None:
            if self.rate is not None or self.frames > 1:
                raise ValueError("look names the moments itself: leave rate and frames out")
            if min(self.look, default=1.0) != 0 or len(set(self.look)) < len(self.look) or max(self.look) > 60:
                raise ValueError(f"look = {list(self.look)}: seconds back, each once, 0 among them, at most 60")
        if self.negatives is not None and self.steps > 1:
            raise ValueError(f"negatives are single pictures; {self.steps} frames a sample wants clips")
        return self

    @property
    def steps(self) -> int:
        """T, frames a sample."""
        return len(self.look) if self.look else self.frames

    @property
    def moments(self) -> tuple[float, ...]:
        """A sample's T frames, oldest first, in seconds before the newest; without a look in frames."""
        return tuple(sorted(self.look, reverse=True)) if self.look else tuple(range(self.frames - 1, -1, -1))

    @property
    def hw(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def channels(self) -> int:
        return 1 if self.gray else 3


class Net(Strict):
    name: str
    weights: str = "imagenet"  # imagenet | scratch (default of WITHOUT_WEIGHTS) | a file | a run's folder
    front: Literal["frame", "difference", "stack"] = "frame"  # what a look's T frames become: see models.temporal
    temporal: Spec = "mean"  # of TEMPORAL: how the pictures of a look become one feature
    shift: Literal["none", "one-way", "two-way"] = "none"  # temporal shift in the net's residual blocks
    head: Literal["softmax", "sigmoid"] = "softmax"
    dropout: float = Field(0.0, ge=0, lt=1)  # before the head
    frozen: bool | int = False  # true: all but the head; k: the stem and the first k stages
    options: dict[str, Any] = {}  # handed to the builder as they are

    @model_validator(mode="before")
    @classmethod
    def _scratch(cls, value: Any) -> Any:
        plain = isinstance(value, dict) and value.get("name") in WITHOUT_WEIGHTS
        return {"weights": "scratch"} | value if plain else value


class Fit(Strict):
    epochs: int = Field(10, ge=1)
    batch: int = Field(32, ge=1)
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # sgd only
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(0.0, ge=0)  # epochs of linear warm-up
    ema: float = Field(0.0, ge=0, lt=1)  # decay of the weight average a step; 0: none
    clip: float = Field(0.0, ge=0)  # largest gradient norm; 0: none
    patience: int = Field(0, ge=0)  # epochs without a better validation figure before it stops; 0: never
    select: Literal["best", "last"] = "best"  # which epoch is kept: best on validation, or the last one
    metric: Literal["macro_f1", "accuracy", "loss"] = "macro_f1"  # what "best" means
    loss: tuple[Spec, ...] = (  # distils; a teacher and a student alone leave out what needs a teacher
        {"name": "ce", "weight": 0.3},
        {"name": "kd", "weight": 0.7, "temperature": 2.0},
    )
    augment: tuple[Spec, ...] = ()
    views: int = Field(0, ge=0)  # V augmented views a sample, replayed in turn; 0: a new one each epoch
    unlabelled: float = Field(0.5, ge=0, lt=1)  # share of a batch, where data.unlabelled or data.labelled is set
    confidence: float = Field(0.0, ge=0, lt=1)  # teacher's largest probability below which such a sample is left out
    balance: bool = False  # such samples are drawn so that each class that the teacher names comes as often
    precision: Literal["fp32", "bf16"] = "fp32"
    teacher_precision: Literal["fp32", "bf16"] = "fp32"  # of its answers: bf16 halves their time on AVX-512 BF16 or AMX
    device: Literal["auto", "cpu", "cuda"] = "auto"
    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()  # who gets each epoch's figures; none unasked
    seed: int = Field(0, ge=0)


class Side(Strict):
    net: Net
    init: Path | tuple[Path, ...] | None = None  # teacher: a run to take as it is, or several that `teach` combines
    students: int = Field(0, ge=0, le=9)  # teacher: so many students, alone, with seeds from fit.seed on
    weights: Literal["equal", "validation"] | tuple[float, ...] = "equal"  # of several runs
    average: Literal["probabilities", "logits"] = "probabilities"  # of several runs: what is averaged
    signals: float = Field(0.0, ge=0, le=1)  # teacher: weight of the face's log probabilities beside the net's
    data: dict[str, Any] = {}  # teacher: keys of [data] that differ for it: size, look, windows, frames, fit, gray
    fit: dict[str, Any] = {}  # keys of [fit] that differ for this side

    @field_validator("net", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Prune(Strict):
    """Narrows layer by layer by importance, and trains with the same losses between steps."""

    keep: float = Field(0.6, gt=0, lt=1)  # share of the multiply-accumulates that is kept
    size: float = Field(1.0, gt=0, le=1)  # share of the parameters that is kept at most
    steps: int = Field(2, ge=1)  # prune, fine-tune, and again
    round_to: int = Field(8, ge=1)  # channels come in multiples of this, as vector units like them
    narrow: bool = True  # the baseline to beat: the same net at one width multiplier, distilled for as long
    fit: dict[str, Any] = {}  # keys of [fit] that differ while it heals, each step


class Quantise(Strict):
    """INT8, calibrated on training frames, judged on validation."""

    frames: int = Field(512, ge=1)  # calibration frames, evenly over the training split
    max_drop: float = Field(0.5, ge=0)  # points of macro-F1 on validation
    float_se: Literal["auto", "yes", "no"] = "auto"  # squeeze-and-excitation kept in float; auto: the better of both
    qat: bool = True  # quantisation-aware training where everything else loses too much
    fit: dict[str, Any] = {}  # keys of [fit] that differ in quantisation-aware training


class Export(Strict):
    formats: tuple[str, ...] = ("onnx",)  # of EXPORTERS
    opset: int = Field(20, ge=13)  # of model.onnx
    false_alarms: float = Field(0.01, gt=0, lt=1)  # share of safe validation frames that may raise an alarm
    max_difference: float = Field(1e-3, gt=0)  # of a float file's probabilities from PyTorch's
    map: bool = False  # model.onnx and OpenVINO's files also say where in the picture the evidence is
    licence: str = "not stated: ask whoever owns the data"


class Tune(Strict):
    keys: dict[str, Any] = {}  # "fit.lr" = {from=1e-4, to=1e-2, log=true}, or a list of choices
    side: SideName = "student"
    metric: Literal["macro_f1", "accuracy", "loss"] = "macro_f1"  # on validation
    fit: dict[str, Any] = {}  # keys of [fit] that differ in a trial, such as fewer epochs


class Adapt(Strict):
    """A finished student goes on learning on one new person or camera."""

    what: Literal["all", "norms"] = "all"  # norms: the statistics of batch norms alone, without a teacher
    part: float = Field(0.5, gt=0, lt=1)  # of each film, from its beginning, that is learnt from; the rest judges
    steps: int = Field(100, ge=1)  # at most, half of each batch with labels unless fit.unlabelled says otherwise
    max_drop: float = Field(5.0, ge=0)  # points of macro-F1 on validation that it may forget
    fit: dict[str, Any] = {}  # keys of [fit] that differ; by itself a tenth of fit.lr, one epoch, new views


class Rule(Strict):
    """A preset of stillwatch.rules.alarm and its changes. Seconds."""

    profile: Literal["driver", "cctv", ""] = ""  # "": cctv
    threshold: float | None = Field(None, gt=0, lt=1)  # cctv: evidence grows from it; else the bundle's own
    smooth: float | None = Field(None, ge=0)  # time constant of the smoothing
    unsure: float | None = Field(None, ge=0, lt=1)  # below this largest probability a frame accuses nobody
    cooldown: float | None = Field(None, ge=0)  # between two events of one kind
    off: tuple[str, ...] = ()  # indicators that stay silent
    faces: Literal["auto", "yes", "no"] = "auto"  # read the driver's face; auto: profile driver, where weights are here
    indicators: dict[str, dict[str, Any]] = {}  # distraction = {after = [3, 5, 11], labels = ["Distracted"]}


class Recipe(Strict):
    """Frozen: a run keeps its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    labels: tuple[str, ...]
    safe: tuple[str, ...] = ()  # labels that raise no alarm
    data: Data
    teacher: Side
    student: Side
    fit: Fit = Fit()
    prune: Prune = Prune()
    quantise: Quantise = Quantise()
    export: Export = Export()
    tune: Tune = Tune()
    adapt: Adapt = Adapt()
    rule: Rule = Rule()

    @model_validator(mode="after")
    def _whole(self) -> "Recipe":
        if len(self.labels) < 2:
            raise ValueError(
                f"labels = {list(self.labels)}: a net tells at least two labels apart, such as calm and danger"
            )
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels has one name twice: {', '.join(self.labels)}")
        for label in self.safe:
            if label not in self.labels:
                raise ValueError(f"safe = {label!r} is not among the labels{nearest(label, self.labels)}")
        if self.data.region not in ("", "face"):
            raise ValueError(
                f'data.region = "{self.data.region}": a camera gives its student whole pictures, or the face that it '
                "reads; set it in [teacher.data]"
            )
        if self.student.data:
            raise ValueError("student.data: the student sees [data] itself; [teacher.data] is what differs")
        for key in ("init", "students", "weights", "average", "signals"):
            if getattr(self.student, key) != Side.model_fields[key].default:
                raise ValueError(f"student.{key}: it is the teacher's: teacher.{key}")
        if self.teacher.students and (self.teacher.init or self.teacher.data):
            raise ValueError(
                "teacher.students: they see [data], and are trained or found: leave teacher.init and data out"
            )
        if not isinstance(self.teacher.init, tuple) and self.teacher.students < 2:
            for key in ("weights", "average"):
                if getattr(self.teacher, key) != Side.model_fields[key].default:
                    raise ValueError(f"teacher.{key}: of several runs: teacher.init = [RUN, RUN], or students")
        if self.teacher.signals and "sigmoid" in (self.teacher.net.head, self.student.net.head):
            raise ValueError(
                "teacher.signals: a face names one class of several; a sigmoid head says yes or no to each"
            )
        if other := self.teacher.data.keys() - SEEN:
            raise ValueError(
                f"teacher.data.{min(other)}: teacher and student share samples and splits; free are {', '.join(SEEN)}"
            )
        return self

    def seen_by(self, side: SideName) -> "Recipe":
        """With the pixels that this side sees: [teacher.data] over [data]. Samples and splits are shared."""
        if side == "student" or not self.teacher.data:
            return self
        data = Data.model_validate(self.data.model_dump() | self.teacher.data)
        return self.model_copy(update={"data": data, "teacher": self.teacher.model_copy(update={"data": {}})})

    def fit_of(self, side: SideName) -> Fit:
        """With that side's own keys."""
        return Fit.model_validate(self.fit.model_dump() | getattr(self, side).fit)

    def fit_in(self, table: Literal["prune", "quantise", "tune", "adapt"]) -> Fit:
        """[fit], then [student.fit], then the table's own keys."""
        plan = self.fit_of(self.tune.side if table == "tune" else "student")
        short = {"epochs": 1, "lr": plan.lr / 10, "warmup": 0.0, "views": 0, "select": "last", "patience": 0}
        return Fit.model_validate(plan.model_dump() | (short if table == "adapt" else {}) | getattr(self, table).fit)


def ticks(moments: Sequence[float]) -> tuple[tuple[int, ...], float]:
    """(whole steps before the newest frame, the step in seconds): [0.6, 0.2, 0] -> (3, 1, 0), 0.2."""
    thousandths = [round(1000 * moment) for moment in moments]
    step = math.gcd(*thousandths) or 1000
    return tuple(moment // step for moment in thousandths), step / 1000


def find(path: Path | str) -> Path:
    """A file, or a shipped recipe's name (`driving`, `published/mnist`). Raises UserError."""
    path = Path(path)
    if path.is_file():
        return path
    shipped = SHIPPED / path.with_suffix(".toml")
    if not path.is_absolute() and shipped.is_file():
        return shipped
    names = [str(file.relative_to(SHIPPED).with_suffix("")) for file in sorted(SHIPPED.rglob("*.toml"))]
    beside = [file.name for file in path.parent.glob("*.toml")] if path.parent.is_dir() else []
    hints = [nearest(str(path), names), nearest(path.name, beside), f"; shipped ones are {', '.join(names)}"]
    hint = next(hint for hint in hints if not hint.startswith("; known"))
    raise UserError(f"{path}: no such recipe{hint}")


def load(path: Path | str, overrides: Iterable[str] = ()) -> Recipe:
    """Lays `key=value` over the file. Raises UserError, one line per mistake."""
    path = find(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        _lay(raw, override)
    return check(raw, str(path))


def check(raw: dict[str, Any], place: str) -> Recipe:
    """Raises UserError."""
    model: type[BaseModel] = Recipe
    prefix = ""
    try:
        recipe = Recipe.model_validate(raw)
        plans: dict[str, Callable[[Any], Fit]] = dict.fromkeys(("teacher", "student"), recipe.fit_of)
        plans |= dict.fromkeys(("prune", "quantise", "tune", "adapt"), recipe.fit_in)
        for table, plan in plans.items():
            model, prefix = Fit, f"{table}.fit."
            plan(table)
        model, prefix = Data, "teacher.data."
        recipe.seen_by("teacher")
    except ValidationError as error:
        raise UserError(explain(error, model, lambda _: place, prefix) + _folders(raw)) from error
    return recipe


def _folders(raw: dict[str, Any]) -> str:
    """The folders' in data.root, where labels are missing."""
    root = raw["data"].get("root") if isinstance(raw.get("data"), dict) else None
    if "labels" in raw or not isinstance(root, str) or not Path(root).is_dir():
        return ""
    inner = train if (train := Path(root, "train")).is_dir() else Path(root)
    names = sorted(folder.name for folder in inner.iterdir() if folder.is_dir() and folder.name[0] != ".")
    return f"; by the folders in {inner}: labels = {json.dumps(names[:40], ensure_ascii=False)}" if names else ""


def amend(recipe: Recipe, overrides: Iterable[str], tables: Iterable[str], place: str) -> Recipe:
    """Lays `key=value` over a run's recipe, in these tables; also data.root, for moved data. Raises UserError."""
    raw, tables = recipe.model_dump(mode="json"), list(tables)
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key != "data.root" and key.split(".")[0] not in tables:
            free = ", ".join([*tables, "data.root"])
            raise UserError(f"{override!r}: a finished run keeps its recipe; what may change here: {free}")
        _lay(raw, override)
    return check(raw, place)


def laid(model: type[Table], raw: Mapping[str, Any], overrides: Iterable[str], place: str) -> Table:
    """`raw` with `key=value` laid over it. Raises UserError."""
    table = dict(raw)
    for override in overrides:
        _lay(table, override)
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise UserError(explain(error, model, lambda _: place)) from error


def _lay(raw: dict[str, Any], override: str) -> None:
    """A value that is not TOML is text."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"{override!r}: an override is written key=value, such as fit.epochs=5")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = key.strip().split(".")
    for step in path:
        inner = raw.setdefault(step, {})
        if isinstance(inner, str) and step in ("net", "source"):  # the short form grows into a table
            inner = raw[step] = {"name": inner}
        if not isinstance(inner, dict):
            raise UserError(f"{override!r}: {step} is not a table")
        raw = inner
    raw[last] = value
