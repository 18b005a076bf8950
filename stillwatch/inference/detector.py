"""A bundle's fastest file that reproduces the golden frames here."""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillwatch import bundle
from stillwatch.atomic import atomic, home
from stillwatch.errors import UserError
from stillwatch.inference import face_reader, runtimes, streams
from stillwatch.inference.people import People
from stillwatch.inference.timing import cores, machine, race
from stillwatch.media import image
from stillwatch.recipe import Rule, ticks
from stillwatch.rules.alarm import Alarm, Fuse, Status
from stillwatch.rules.fusion import fuse
from stillwatch.rules.normal import Normal

MISSED = 2.5  # frames of a look's rate that may be missing between two before its memory starts anew
TOGETHER = 16  # pictures of a film in one forward
ROUNDS, LONGEST = 30, 5.0  # calls of each candidate in a race; seconds after which a race ends, whatever the rounds


class Detector:
    """A proved net of a bundle. One thread at a time.

    labels: in the order of the probabilities. choice: {"file", "runtime", "ms" (median call of `batch`), "cached",
    "candidates"}. map: (h,w) of the evidence, whose values follow the K in each row of predict(); None: not asked for.
    """

    def __init__(
        self,
        source: Path | str | bundle.Bundle,
        threads: int | None = None,
        batch: int = 1,
        runtime: str | Sequence[str] | None = None,
        file: str | None = None,
        maps: bool = False,
    ):
        """Load, prove and choose; the golden frames are the warm-up.

        threads: None: the process's cores, at most 4 (more slow small nets). batch: pictures that usually come
        together. runtime: only these, such as "openvino:GPU"; None: each installed one on the CPU. maps: only files
        that show where the evidence is. Raises UserError where nothing reproduces them.
        """
        self.bundle = source if isinstance(source, bundle.Bundle) else bundle.load(source)
        manifest = self.bundle.manifest
        self.labels, self.safe = manifest.labels, manifest.safe
        self.threshold: float | None = (manifest.operating or {}).get("threshold")
        if batch < 1 or (threads is not None and threads < 1):
            raise UserError(f"threads = {threads}, batch = {batch}: both are at least 1")
        threads = threads or min(4, cores())
        asked = [runtime] if isinstance(runtime, str) else list(runtime or ())
        pairs = _pairs(self.bundle, asked, file, maps)
        here = {key: value for key, value in machine()._asdict().items() if key != "memory"}
        about = self.bundle.manifest.model_dump(mode="json")
        key = json.dumps([about, here, threads, batch, [*asked, *["map"] * maps], file], sort_keys=True)
        place = home() / "choices" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        found = _remembered(self.bundle, place, pairs, threads, batch)
        self.choice, self.predict = found or _choose(self.bundle, place, pairs, threads, batch)
        self.map = self.bundle.model(self.choice["file"]).map if maps else None

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """n pictures uint8 (H,W), (H,W,1) or (H,W,3) RGB of any size -> float32 (n,K); of clips each (T,H,W,C).

        Raises ValueError for another dtype or shape. predict() does not resize.
        """
        about = self.bundle.manifest.input
        x = np.empty((len(pictures), *about.shape), np.uint8)
        for number, picture in enumerate(pictures):
            if len(about.shape) == 3:
                x[number] = fitted(about, picture)
                continue
            if len(picture) != about.shape[0]:
                raise ValueError(f"a clip of this net has {about.shape[0]} frames, not {len(picture)}")
            x[number] = np.stack([fitted(about, frame) for frame in picture])
        return self.predict(x)


def fitted(about: bundle.Input, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """-> (H,W,C) of the net's size."""
    height, width, channels = about.shape[-3:]
    return image.fit(picture, (height, width), about.fit, channels)


def alarm_of(made: bundle.Bundle, camera: str, rule: Rule | None = None, faces: bool = False) -> Alarm:
    """faces: whether this camera's are read. Raises UserError."""
    manifest = made.manifest
    # Of this start: ids of events must not come again when the process does
    salt = format(int(1000 * time.time()), "x")
    alarm = Alarm(camera, manifest.labels, manifest.safe, rule_of(made, rule), threshold_of(made, faces), salt=salt)
    alarm.fuse = fused_by(manifest.fusion)
    return alarm


def fused_by(head: bundle.Fusion | None) -> Fuse | None:
    """The head over an answer (K,) and the driver's face."""
    return partial(fuse, weight=np.array(head.weight), bias=np.array(head.bias)) if head else None


def face_net(made: bundle.Bundle) -> face_reader.NetFile | None:
    """In the first runtime here that reproduces its golden frames. Raises UserError."""
    if (net := made.manifest.face_net) is None:
        return None
    reasons = list[str]()
    for runtime in runtimes.readers(path := made.path / net.name):
        try:
            _prove(made, net, runtime, 1, 1)
            return face_reader.NetFile(str(path), runtime, net.input)
        except UserError as mistake:
            reasons.append(str(mistake))
    raise UserError(f"{path}: no runtime here reproduces its golden frames: {'; '.join(reasons) or 'none reads it'}")


def rule_of(made: bundle.Bundle, own: Rule | None = None) -> Rule:
    return own or Rule.model_validate(made.manifest.rule)


def threshold_of(made: bundle.Bundle, faces: bool = False) -> float | None:
    """Of net and face together where faces are read and there is a head."""
    head = made.manifest.fusion
    fused = head.operating if head and faces else None
    return (fused or made.manifest.operating or {}).get("threshold")


def rate(manifest: bundle.Manifest) -> float | None:
    """A net of clips' training frames a second."""
    if manifest.input.look:
        return 1 / ticks(manifest.input.look)[1]
    data = (manifest.run.get("recipe") or {}).get("data") or {}
    return data.get("rate")


def memory(detector: Detector) -> streams.Memory:
    looks, pace = look_ticks(detector.bundle.manifest.input), rate(detector.bundle.manifest)
    return streams.Memory(detector.predict, looks, MISSED / pace if pace and len(looks) > 1 else np.inf)


def look_ticks(about: bundle.Input) -> tuple[int, ...]:
    """A look's moments, oldest first, in training frames before the newest; (0,): one picture."""
    if about.look:
        return ticks(about.look)[0]
    return tuple(range(about.shape[0] - 1, -1, -1)) if len(about.shape) == 4 else (0,)


def steps(
    detector: Detector, film: Iterable[tuple[float, NDArray[np.uint8]]], people: People | None = None
) -> Iterator[tuple[float, NDArray[np.float32] | None, Status]]:
    """(seconds, float32 (K,), "ok") of each frame of a film of (seconds, uint8 (H,W,3)).

    A net of clips sees its training rate; None before a look is whole, after a gap or another size too. people: a look
    without a person is None, "empty".
    """
    about = detector.bundle.manifest.input
    film, stills = iter(film), len(about.shape) == 3
    while stills and not people and (held := list(islice(film, TOGETHER))):
        for (at, _), p in zip(held, detector([picture for _, picture in held]), strict=True):
            yield at, p, "ok"
    every = 0.0 if stills else 1 / (rate(detector.bundle.manifest) or np.inf)
    past, tick, due, size = memory(detector), -np.inf, -np.inf, (0, 0)
    for seconds, picture in film:
        if seconds < due - 1e-6:
            continue
        if every:
            # On a grid, so that a film whose rate is no multiple of the net's is not seen more slowly; one that misses
            # frames begins another, and none is looked at too soon after the one before
            tick = (tick if seconds - tick < every - 1e-6 else seconds) + every
            due = max(tick, seconds + every / 2)
        if picture.shape[:2] != size:
            size = picture.shape[:2]
            past.clear()
            if people:
                people.clear()
        frame = fitted(about, picture)
        if people and not people(frame):
            past.clear()
            yield seconds, None, "empty"
        else:
            yield seconds, streams.look(detector.predict, [frame], [past], [seconds])[0], "ok"


def look(source: Path, threads: int = 1, batch: int = 1) -> Detector:
    return Detector(source, threads, batch)


class Pair:
    """Net, face reader and head as on a camera, for a bench."""

    def __init__(self, source: Path, threads: int = 1, batch: int = 1):
        """Raises UserError where the reader's weights are missing."""
        self._detector = Detector(source, threads, batch)
        self._read = face_reader.drawn(threads, face_net(self._detector.bundle))
        self.choice, self._fuse = self._detector.choice, fused_by(self._detector.bundle.manifest.fusion)
        self._normal = Normal()

    def __call__(self, x: NDArray[np.uint8]) -> list[ArrayLike]:
        """uint8 (n,*shape) -> n answers (K,)."""
        faces = [self._normal.step(*self._read()) for _ in x]
        answer: Any = streams.one_look(self._detector.predict, x)()
        p = answer[0] if isinstance(answer, tuple) else answer
        return [self._fuse(row, face) if face and self._fuse else row for row, face in zip(p, faces, strict=True)]


def diagnosis() -> list[str]:
    about = machine()
    memory = f", {about.memory / 2**30:.1f} GiB" if about.memory else ""
    lines = [f"{about.cpu}, {about.cores} cores{memory}"]
    lines += [f"  {name:12} {version}" for name, version in about.runtimes.items()]
    lines.append(f"  {'faces':12} {face_reader.found()}")
    known = [one for one in choices() if Path(one["bundle"]).exists()]
    lines.append("" if known else "no bundle was run here yet: stillwatch doctor BUNDLE measures one")
    for one in known:
        lines.append(
            f"{one['bundle']}: {one['file']} in {one['runtime']}, {one['ms']:.3f} ms, threads {one['threads']}, "
            f"batch {one['batch']} ({one['made']})"
        )
    return lines


def choices() -> list[dict[str, Any]]:
    """Newest first."""
    found = []
    for path in (home() / "choices").glob("*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):
            one = json.loads(path.read_text(encoding="utf-8"))
            found.append((str(one["made"]), one))
    return [one for _, one in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _pairs(made: bundle.Bundle, asked: Sequence[str], file: str | None, maps: bool) -> list[tuple[bundle.Model, str]]:
    names = asked or [name for name in runtimes.RUNTIMES if runtimes.installed(name)]
    formats = {name: runtimes.named(name)[0].formats for name in names}
    models = [made.model(file)] if file is not None else list(made.manifest.models)
    models = [model if maps else model.model_copy(update={"map": None}) for model in models if model.map or not maps]
    if not models:
        raise UserError(
            f"{made.path}: no file shows where the evidence is; export --map makes one (ncnn and INT8 have none)"
        )
    able = [(model, name) for model in models for name in names if Path(model.name).suffix in formats[name]]
    if not able:
        files, there = ", ".join(model.name for model in models), ", ".join(names)
        raise UserError(
            f"{made.path}: nothing here reads {files} (asked: {there}); install a runtime, or export a format"
        )
    return able


def _prove(
    made: bundle.Bundle, model: bundle.Model, runtime: str, threads: int, batch: int
) -> tuple[float, runtimes.Predict]:
    """(largest |Δp| on the golden frames, the net). Raises UserError."""
    outputs, places = (2, math.prod(model.map)) if model.map else (1, 0)
    takes = model.input if isinstance(model, bundle.FaceNet) else made.manifest.input
    predict = runtimes.open(made.path / model.name, runtime, takes.shape, threads, batch, outputs)
    frames, golden = made.golden(face=takes is not made.manifest.input)
    row, wanted = predict(frames), golden[model.name]
    p = row[:, : row.shape[1] - places]
    if p.shape != wanted.shape:
        raise UserError(f"{model.name} in {runtime} gives {p.shape[1]} probabilities, not {wanted.shape[1]}")
    difference, other = bundle.unlike(p, wanted, model.tolerance)
    if not difference <= model.tolerance:  # so written that a NaN is not faithful
        raise UserError(f"{model.name} in {runtime} differs by {difference:.2g}, {model.tolerance:.2g} is allowed")
    if other is not None:
        raise UserError(f"{model.name} in {runtime} gives golden frame {other} another label")
    return difference, predict


def _choose(
    made: bundle.Bundle, place: Path, pairs: list[tuple[bundle.Model, str]], threads: int, batch: int
) -> tuple[dict[str, Any], runtimes.Predict]:
    proved, refused = dict[tuple[str, str], tuple[float, runtimes.Predict]](), list[dict[str, str]]()
    for model, runtime in pairs:
        try:
            proved[model.name, runtime] = _prove(made, model, runtime, threads, batch)
        except UserError as mistake:
            refused.append({"file": model.name, "runtime": runtime, "why_not": str(mistake)})
    if not proved:
        reasons = "; ".join(one["why_not"] for one in refused)
        raise UserError(f"{made.path}: no file reproduces the golden frames on this machine: {reasons}")
    frames, _ = made.golden()
    x = np.resize(frames, (batch, *frames.shape[1:]))
    times = race({key: streams.one_look(predict, x) for key, (_, predict) in proved.items()}, ROUNDS, 0, LONGEST)
    seconds = {key: float(np.median(x)) for key, x in times.items()}
    ranking: list[dict[str, Any]] = [
        {"file": key[0], "runtime": key[1], "ms": round(1e3 * seconds[key], 4), "difference": proved[key][0]}
        for key in sorted(seconds, key=seconds.__getitem__)
    ]
    best = {key: ranking[0][key] for key in ("file", "runtime", "ms")}
    choice = best | {"cached": False, "candidates": ranking + refused}
    kept = choice | {"bundle": str(made.path.resolve()), "threads": threads, "batch": batch}
    kept |= {"made": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "machine": machine()._asdict()}
    with suppress(OSError), atomic(place) as draft:  # a full or read-only disk only means choosing again
        draft.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return choice, proved[best["file"], best["runtime"]][1]


def _remembered(
    made: bundle.Bundle, place: Path, pairs: list[tuple[bundle.Model, str]], threads: int, batch: int
) -> tuple[dict[str, Any], runtimes.Predict] | None:
    """Proved again; None if it no longer holds."""
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        choice = {key: kept[key] for key in ("file", "runtime", "ms", "candidates")} | {"cached": True}
        model, runtime = next(p for p in pairs if (p[0].name, p[1]) == (choice["file"], choice["runtime"]))
        return choice, _prove(made, model, runtime, threads, batch)[1]
    except (OSError, ValueError, KeyError, TypeError, StopIteration, UserError):
        return None
