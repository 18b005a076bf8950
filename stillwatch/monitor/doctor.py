"""Checks a watch.toml on this machine: bundle, rules, cameras, sinks, page, disk. Sends and stores nothing."""

import shutil
import time
from collections.abc import Iterator
from multiprocessing.connection import wait
from typing import NamedTuple

from stillwatch import bundle
from stillwatch.errors import UserError
from stillwatch.inference import aspect
from stillwatch.inference.detector import Detector, face_net, rule_of, threshold_of
from stillwatch.inference.people import People
from stillwatch.monitor.cameras import reading
from stillwatch.monitor.cameras.camera import Camera, Frame, Note
from stillwatch.monitor.cameras.source import redacted_error
from stillwatch.monitor.config import CameraConfig, Keep, LoadedConfig, WatchConfig, secret
from stillwatch.monitor.events.sinks import open_sink
from stillwatch.monitor.web import auth
from stillwatch.rules import presets

PATIENCE = 10.0  # seconds for a camera's first frame


class Finding(NamedTuple):
    good: bool
    what: str
    words: str

    def __str__(self) -> str:
        return f"{'ok ' if self.good else '!! '} {self.what}: {self.words}"


def examine(loaded: LoadedConfig) -> Iterator[Finding]:
    config = loaded.config
    for name, words in (*loaded.bad_cameras.items(), *loaded.bad_sinks.items()):
        yield Finding(False, name, words)
    try:
        made = bundle.load(config.bundle)
        detector = Detector(made, config.threads, runtime=config.runtime)
    except UserError as error:
        yield Finding(False, "bundle", str(error))
        return
    choice = detector.choice
    words = f"{made.manifest.name}: {choice['file']} in {choice['runtime']}, {choice['ms']:.2f} ms a forward"
    yield Finding(True, "bundle", words)
    for camera in config.camera:
        try:
            yield from _examine_camera(camera, config, detector)
        except UserError as error:
            yield Finding(False, camera.name, str(error))
        except Exception as error:  # one camera's failure is not the others'
            yield Finding(False, camera.name, f"cannot be opened: {redacted_error(error, camera.source)}")
    for sink in config.sink:
        try:
            open_sink(sink).close()
            yield Finding(True, sink.name, "can be opened; `stillwatch test-sinks` sends it a test")
        except UserError as error:
            yield Finding(False, sink.name, str(error))
    try:
        token = auth.token_of(config.web) if config.web.on else None
        words = f"{config.web.host}:{config.web.port}{', with a token' if token else ''}" if config.web.on else "off"
        yield Finding(True, "page", words)
    except UserError as error:
        yield Finding(False, "page", str(error))
    yield _examine_disk(config.keep)


def _examine_camera(config: CameraConfig, watch: WatchConfig, detector: Detector) -> Iterator[Finding]:
    made, manifest = detector.bundle, detector.bundle.manifest
    config = config.model_copy(update={"source": secret(config.source)})
    faces = reading.wanted(own := rule_of(made, config.rule or watch.rule), config.source)
    rule = presets.words(own, manifest.labels, manifest.safe, threshold_of(made, faces))
    net = face_net(made) if faces else None
    camera = Camera(config, watch.keep, manifest.input, net or faces)
    if config.person:
        People(config.person.model, threads=watch.threads)
        yield Finding(True, config.name, f"people are sought by {config.person.model}")
    start, frame, unlike = time.monotonic(), None, ""
    camera.start()
    try:
        while frame is None and time.monotonic() < start + PATIENCE and camera.state not in ("failed", "ended"):
            if camera.connection is not None:
                wait([camera.connection.fileno()], 0.1)
            else:
                time.sleep(0.1)
            camera.tick(time.monotonic())
            for item in camera.take():
                match item:
                    case Frame():
                        frame = frame or item
                    case Note(what="shape", fields={"height": height, "width": width}):
                        unlike = aspect.warning(detector, height, width, config.fit)
        took = time.monotonic() - start
    finally:
        camera.stop(1.0)
    if frame is None:
        yield Finding(False, config.name, f"no frame within {PATIENCE:.0f} s: {camera.words or camera.state}")
    else:
        status = "" if frame.status == "ok" else f"; the picture is {frame.status}"
        yield Finding(frame.status == "ok", config.name, f"first frame after {took:.1f} s{status}")
    if unlike:
        yield Finding(False, config.name, unlike)
    beside = f", {manifest.face_net.name} beside it in {net.runtime}" if manifest.face_net and net else ""
    yield Finding(True, config.name, f"the driver's face is {'read' if faces else 'not read'}{beside}")
    for words in rule:
        yield Finding(True, config.name, words)


def _examine_disk(keep: Keep) -> Finding:
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
