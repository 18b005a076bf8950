"""Checkup: will this plan run on this machine? Bundle, rules, cameras, sinks, page, disk, each said in one line.

In: a plan, as it was read. Out: lines (is it right, what, words), found by trying, not by guessing.
Called by `stillwatch doctor watch.toml`. Nothing is sent, and nothing is kept of what a camera shows.
"""

import shutil
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import NamedTuple

from stillwatch import bundle
from stillwatch.errors import UserError
from stillwatch.inference.detector import Detector
from stillwatch.inference.film import rule_of, threshold_of
from stillwatch.monitor import config as plans
from stillwatch.monitor.cameras.camera import Camera, Frame
from stillwatch.monitor.events.sinks import opened
from stillwatch.monitor.web import auth
from stillwatch.rules import presets

PATIENCE = 10.0  # seconds for a camera's first frame


class Finding(NamedTuple):
    good: bool
    what: str
    words: str

    def __str__(self) -> str:
        return f"{'ok ' if self.good else '!! '} {self.what}: {self.words}"


def examine(read: plans.Read) -> Iterator[Finding]:
    """Try everything that the plan names, one after another."""
    plan = read.plan
    for name, words in (*read.cameras.items(), *read.sinks.items()):
        yield Finding(False, name, words)
    try:
        it = bundle.load(plan.bundle)
        choice = Detector(it, plan.threads, runtime=plan.runtime).choice
    except UserError as mistake:
        yield Finding(False, "bundle", str(mistake))
        return
    said = f"{it.manifest.name}: {choice['file']} in {choice['runtime']}, {choice['ms']:.2f} ms a look"
    yield Finding(True, "bundle", said)
    for camera in plan.camera:
        yield from _camera(camera, plan, it)
    for sink in plan.sink:
        try:
            opened(sink).close()
            yield Finding(True, sink.name, "can be opened; `stillwatch test-sinks` sends it a test")
        except UserError as mistake:
            yield Finding(False, sink.name, str(mistake))
    yield _page(plan)
    yield _disk(plan.keep)


def _camera(camera: plans.CameraConfig, plan: plans.WatchConfig, it: bundle.Bundle) -> Iterator[Finding]:
    """Its rule in words, and how long its first frame takes."""
    shape = it.manifest.input.shape
    try:
        rule, manifest = rule_of(it, camera.rule or plan.rule), it.manifest
        looks_for = presets.words(rule, manifest.labels, manifest.safe, threshold_of(it))
        own = camera.model_copy(update={"source": plans.secret(camera.source)})
        eye = Camera(own, plan.keep, (shape[-3], shape[-2], shape[-1]), it.manifest.input.fit)
    except UserError as mistake:
        yield Finding(False, camera.name, str(mistake))
        return
    start = time.monotonic()
    eye.start()
    try:
        frame = _first(eye, start + PATIENCE)
        took = time.monotonic() - start
    finally:
        eye.stop(1.0)
    if frame is None:
        yield Finding(False, camera.name, f"no frame within {PATIENCE:.0f} s: {eye.words or eye.state}")
    else:
        state = "" if frame.status == "ok" else f"; the picture is {frame.status}"
        yield Finding(frame.status == "ok", camera.name, f"first frame after {took:.1f} s{state}")
    for words in looks_for:
        yield Finding(True, camera.name, words)


def _first(eye: Camera, until: float) -> Frame | None:
    while time.monotonic() < until and eye.state not in ("failed", "ended"):
        if eye.connection is not None:
            wait([eye.connection.fileno()], 0.1)
        for one in eye.take():
            if isinstance(one, Frame):
                return one
        eye.tick(time.monotonic())
    return None


def _page(plan: plans.WatchConfig) -> Finding:
    if not plan.web.on:
        return Finding(True, "page", "off")
    inside = auth.loopback(plan.web.host)
    if not inside and plan.web.token is None:
        return Finding(False, "page", f'{plan.web.host} needs a token: token = "$STILLWATCH_TOKEN"')
    try:
        auth.token_of(plan.web)
    except UserError as mistake:
        return Finding(False, "page", str(mistake))
    return Finding(True, "page", f"{plan.web.host}:{plan.web.port}{'' if inside else ', with a token'}")


def _disk(keep: plans.Keep) -> Finding:
    """Whether the folder can be written, and has room."""
    try:
        keep.folder.mkdir(parents=True, exist_ok=True)
        probe = keep.folder / ".checkup"
        probe.write_bytes(b"x")
        probe.unlink()
        free = shutil.disk_usage(keep.folder).free / 1e9
    except OSError as error:
        return Finding(False, "disk", f"{keep.folder}: cannot be written: {error.strerror}")
    wanted = keep.gigabytes + keep.free
    words = f"{keep.folder}: {free:.1f} GB free, {wanted:.1f} GB may be taken and kept free"
    return Finding(free >= wanted, "disk", words if free >= wanted else f"{words}; lower keep.gigabytes")
