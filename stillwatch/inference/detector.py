"""Detector: a bundle, run by the fastest of its files that gives the right answers on this machine.

In: a bundle's folder. Out: pictures uint8 of any size -> probabilities float32 (n,K), one forward for all cameras.
Called by the watch loop and the CLI. It knows the golden frames, and no camera, rule, clock or torch.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillwatch import bundle
from stillwatch.atomic import atomic
from stillwatch.errors import UserError, nearest
from stillwatch.inference import runtimes
from stillwatch.inference.timing import cores, machine, race
from stillwatch.media import image

ROUNDS, LONGEST = 30, 5.0  # calls of each candidate in a race; seconds after which a race ends, whatever the rounds


class Contender(NamedTuple):
    """One file in one runtime, found faithful: largest |Δp| from its golden probabilities."""

    file: str
    runtime: str
    difference: float
    predict: runtimes.Predict


class Detector:
    """What the street runs. It is for one thread at a time.

    labels, safe: names, in the order of the probabilities. threshold: of the bundle's operating point, or None.
    choice: {"file", "runtime", "ms" (median of a call of `batch`), "cached", "candidates"}.
    """

    def __init__(
        self,
        source: Path | str | bundle.Bundle,
        threads: int | None = None,
        batch: int = 1,
        runtime: str | None = None,
        file: str | None = None,
        fresh: bool = False,
    ):
        """Load, prove and choose; the golden frames are the warm-up.

        threads: that compute one answer; None: the cores this process may use, at most 4 (more cost a small net more
        than they bring). batch: cameras that usually come together. runtime, file: only that one of RUNTIMES, or of
        the bundle's models. fresh: measure again even where a choice is remembered.
        Raises UserError where the bundle is not as it was written, or where nothing reproduces its golden frames.
        """
        self.bundle = source if isinstance(source, bundle.Bundle) else bundle.load(source)
        manifest = self.bundle.manifest
        self.labels, self.safe = manifest.labels, manifest.safe
        self.threshold: float | None = (manifest.operating or {}).get("threshold")
        self._shape, self._how = manifest.input.shape, manifest.input.fit
        if batch < 1 or (threads is not None and threads < 1):
            raise UserError(f"threads = {threads}, batch = {batch}: both are at least 1")
        threads = threads or min(4, cores())
        pairs = _pairs(self.bundle, runtime, file)
        place = _place(self.bundle, threads, batch, runtime, file)
        found = None if fresh else _remembered(self.bundle, place, pairs, threads, batch)
        self.choice, self.predict = found or _choose(self.bundle, place, pairs, threads, batch)

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Probabilities float32 (n,K) of n pictures, each uint8 (H,W), (H,W,1) or (H,W,3) RGB of any size.

        For a net of clips each is (T,H,W,C): exactly T frames, of any size. All go through the net together.
        Raises ValueError for another dtype or shape. predict() takes pictures that already have the net's shape.
        """
        x = np.empty((len(pictures), *self._shape), np.uint8)
        *frames, height, width, channels = self._shape
        for number, picture in enumerate(pictures):
            if not frames:
                x[number] = image.fit(picture, (height, width), self._how, channels)
                continue
            if len(picture) != frames[0]:
                raise ValueError(f"a clip of this net has {frames[0]} frames, not {len(picture)}")
            for moment, frame in enumerate(picture):
                x[number, moment] = image.fit(frame, (height, width), self._how, channels)
        return self.predict(x)


def look(source: Path, threads: int = 1, batch: int = 1) -> Detector:
    """A detector of that bundle as a function of uint8 (n,*shape): what the bench races as "detector"."""
    return Detector(source, threads, batch)


def diagnosis() -> list[str]:
    """What `stillwatch doctor` says: the machine, the runtimes, the choices remembered for it. One line each."""
    about = machine()
    memory = f", {about.memory / 2**30:.1f} GiB" if about.memory else ""
    lines = [f"{about.cpu}, {about.cores} cores{memory}"]
    lines += [f"  {name:12} {version}" for name, version in about.runtimes.items()]
    known = choices()
    lines.append("" if known else "no bundle was run here yet: stillwatch doctor BUNDLE measures one")
    for one in known:
        lines.append(
            f"{one['bundle']}: {one['file']} in {one['runtime']}, {one['ms']:.3f} ms, threads {one['threads']}, "
            f"batch {one['batch']} ({one['made']})"
        )
    return lines


def choices() -> list[dict[str, Any]]:
    """The remembered choices, newest first: bundle, file, runtime, ms, threads, batch, made, candidates, machine."""
    found = []
    for path in _home().glob("*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):
            one = json.loads(path.read_text(encoding="utf-8"))
            found.append((str(one["made"]), one))
    return [one for _, one in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _pairs(it: bundle.Bundle, runtime: str | None, file: str | None) -> list[tuple[bundle.Model, str]]:
    """The files and the runtimes that may be tried, as asked."""
    if runtime is not None and runtime not in runtimes.RUNTIMES:
        raise UserError(f"runtime = {runtime!r}: unknown{nearest(runtime, runtimes.RUNTIMES)}")
    models = [it.model(file)] if file is not None else list(it.manifest.models)
    if runtime is not None:
        able = [(m, runtime) for m in models if Path(m.name).suffix in runtimes.RUNTIMES[runtime].formats]
    else:
        able = [(model, name) for model in models for name in runtimes.readers(it.path / model.name)]
    if not able:
        names = ", ".join(model.name for model in models)
        there = runtime or ", ".join(name for name in runtimes.RUNTIMES if runtimes.installed(name))
        raise UserError(
            f"{it.path}: nothing here reads {names} (asked: {there}); install a runtime, or export a format"
        )
    return able


def _prove(it: bundle.Bundle, model: bundle.Model, runtime: str, threads: int, batch: int) -> Contender:
    """Open a file and replay the golden frames. Raises UserError where it does not reproduce its probabilities."""
    predict = runtimes.open(it.path / model.name, runtime, it.manifest.input.shape, threads, batch)
    frames, golden = it.golden()
    p, wanted = predict(frames), golden[model.name]
    if p.shape != wanted.shape:
        raise UserError(f"{model.name} in {runtime} gives {p.shape[1]} probabilities, not {wanted.shape[1]}")
    difference, other = bundle.unlike(p, wanted, model.tolerance)
    if not difference <= model.tolerance:  # so written that a NaN is not faithful
        raise UserError(f"{model.name} in {runtime} differs by {difference:.2g}, {model.tolerance:.2g} is allowed")
    if other is not None:
        raise UserError(f"{model.name} in {runtime} gives golden frame {other} another label")
    return Contender(model.name, runtime, difference, predict)


def _choose(
    it: bundle.Bundle, place: Path, pairs: list[tuple[bundle.Model, str]], threads: int, batch: int
) -> tuple[dict[str, Any], runtimes.Predict]:
    """Prove every pair, race the faithful, remember the fastest."""
    entrants, reasons = [], []
    candidates: list[dict[str, Any]] = []
    for model, runtime in pairs:
        try:
            entrants.append(_prove(it, model, runtime, threads, batch))
        except UserError as mistake:
            reasons.append(str(mistake))
            candidates.append({"file": model.name, "runtime": runtime, "why_not": str(mistake)})
    if not entrants:
        raise UserError(f"{it.path}: no file reproduces the golden frames on this machine: {'; '.join(reasons)}")
    frames, _ = it.golden()
    x = np.resize(frames, (batch, *frames.shape[1:]))
    calls = {str(number): partial(entrant.predict, x) for number, entrant in enumerate(entrants)}
    seconds = [float(np.median(times)) for times in race(calls, ROUNDS, 0, LONGEST).values()]
    order = sorted(range(len(entrants)), key=lambda i: seconds[i])
    ranking = [
        {
            "file": entrants[i].file,
            "runtime": entrants[i].runtime,
            "ms": round(1e3 * seconds[i], 4),
            "difference": entrants[i].difference,
        }
        for i in order
    ]
    best = {key: ranking[0][key] for key in ("file", "runtime", "ms")}
    choice = best | {"cached": False, "candidates": ranking + candidates}
    _remember(place, choice | {"bundle": str(it.path.resolve()), "threads": threads, "batch": batch})
    return choice, entrants[order[0]].predict


def _remembered(
    it: bundle.Bundle, place: Path, pairs: list[tuple[bundle.Model, str]], threads: int, batch: int
) -> tuple[dict[str, Any], runtimes.Predict] | None:
    """The choice made before, proved once more; None where there is none or where it no longer holds."""
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        choice = {key: kept[key] for key in ("file", "runtime", "ms", "candidates")} | {"cached": True}
        model, runtime = next(p for p in pairs if (p[0].name, p[1]) == (choice["file"], choice["runtime"]))
        return choice, _prove(it, model, runtime, threads, batch).predict
    except (OSError, ValueError, KeyError, TypeError, StopIteration, UserError):
        return None


def _remember(place: Path, choice: Mapping[str, Any]) -> None:
    """Keep a choice. A camera's disk may be read-only or full: then it is made anew at each start."""
    made = {"made": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "machine": machine()._asdict()}
    with suppress(OSError), atomic(place) as draft:
        draft.write_text(json.dumps({**choice, **made}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _home() -> Path:
    cache = os.environ.get("STILLWATCH_CACHE")
    return (Path(cache) if cache else Path("~/.cache/stillwatch").expanduser()) / "choices"


def _place(it: bundle.Bundle, threads: int, batch: int, runtime: str | None, file: str | None) -> Path:
    """Where this machine's choice for this bundle is kept: another one of either is another name."""
    here = {key: value for key, value in machine()._asdict().items() if key != "memory"}
    asked = [it.manifest.model_dump(mode="json"), here, threads, batch, runtime, file]
    text = json.dumps(asked, sort_keys=True, ensure_ascii=True)
    return _home() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
