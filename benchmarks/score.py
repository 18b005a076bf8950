"""Score, measured: `python -m benchmarks.score [BUNDLE]`: one worker's time beside that of decoding alone, in one run.

In: bundles; none given: untrained nets of three sizes. Out: CPU ms a frame of decoding 640×360 JPEGs and an H.264 film
to RGB, of a worker of `score` on the same files, and of its parts; rows in results/score.csv with --record NOTE.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from stillwatch import bundle
from stillwatch.inference import runtimes
from stillwatch.inference.archive import shards
from stillwatch.inference.archive.listing import File
from stillwatch.inference.detector import Detector, machine
from stillwatch.media import decode as files
from stillwatch.media import image, synthetic

SIZE, FPS = (360, 640), 10
NETS: dict[str, tuple[str, tuple[int, int, int]]] = {  # untrained: they cost the same
    "smallcnn": ("smallcnn", (64, 64, 3)),
    "driving": ("tf_mobilenetv3_small_075", (112, 192, 1)),
    "violence": ("tf_mobilenetv3_small_075", (112, 160, 3)),
}


def draw(folder: Path, seconds: float) -> dict[str, list[str]]:
    """The same toy scenes as JPEGs of two qualities and as an H.264 film -> the names of each kind."""
    frames = [picture for _, picture, _ in synthetic.clip("street", seconds, FPS, 0, SIZE)]
    names: dict[str, list[str]] = {}
    for quality in (80, 95):
        kind = names[f"jpeg q{quality}"] = [f"q{quality}-{n:04d}.jpg" for n in range(len(frames))]
        for name, picture in zip(kind, frames, strict=True):
            raw = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            (folder / name).write_bytes(raw.tobytes())
    with av.open(str(folder / "film.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "23"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for picture in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return names | {"h264": ["film.mp4"]}


def decode(folder: Path, names: Sequence[str]) -> int:
    """Decoding alone: every frame to RGB as `score` reads it. Returns how many there were."""
    count = 0
    for name in names:
        if name.endswith(".jpg"):
            count += not isinstance(files.read_picture(folder / name), str)
            continue
        rgb = files.ToRgb()
        with files.open_film(folder / name, threads=1) as container:
            for frame in files.frames(container, lambda _: None):
                rgb(frame)
                count += 1
    return count


def plainly(folder: Path, names: Sequence[str]) -> int:
    """Decoding alone, as the libraries' own examples show it."""
    count = 0
    for name in names:
        if name.endswith(".jpg"):
            cv2.cvtColor(cv2.imread(str(folder / name)), cv2.COLOR_BGR2RGB)
            count += 1
            continue
        with av.open(str(folder / name)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for frame in container.decode(video=0):
                frame.to_ndarray(format="rgb24")
                count += 1
    return count


def compare(it: bundle.Bundle, folder: Path, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """CPU ms a frame: taking turns, the median of the rounds, so that what else the machine does meets all alike.

    decode: to RGB, the way of `score`; plain: as the libraries' examples show it; ready: to RGB and to the net's size,
    all that `score` does without a net; shrunk: `score` of a bundle with data.shrink = "decode"; fit and net: these
    alone, on pictures that are in the processor's cache.
    """
    choice, about = Detector(it, threads=1, batch=shards.BATCH).choice, it.manifest.input
    model = it.path / choice["file"]
    look = runtimes.open(model, choice["runtime"], about.shape, 1, shards.BATCH)
    task = shards.Task(str(folder), "", str(model), choice["runtime"], about.shape, about.fit, None, "")
    shard = [File(name, 0, 0) for name in names]
    picture = files.read_picture(next(folder.glob("*.jpg")))
    assert not isinstance(picture, str)
    height, width, channels = about.shape
    x = np.zeros((shards.BATCH, *about.shape), np.uint8)

    def fit() -> int:
        for _ in range(50):
            image.fit(picture, (height, width), about.fit, channels)
        return 50

    def blind(x: Any) -> Any:
        return np.zeros((len(x), 2), np.float32)

    def net() -> int:
        for _ in range(5):
            look(x)
        return 5 * shards.BATCH

    entrants: dict[str, Callable[[], int]] = {
        "decode": lambda: decode(folder, names),
        "plain": lambda: plainly(folder, names),
        "ready": lambda: len(shards.score_shard(task, shard, blind)["which"]),
        "score": lambda: len(shards.score_shard(task, shard, look)["which"]),
        "shrunk": lambda: len(shards.score_shard(task._replace(shrink=True), shard, look)["which"]),
        "fit": fit,
        "net": net,
    }
    spent: dict[str, list[float]] = {name: [] for name in entrants}
    for number in range(rounds + 1):
        for name, run in entrants.items():
            start = time.process_time()
            count = run()
            if number:  # the first round is the warm-up
                spent[name].append(1e3 * (time.process_time() - start) / count)
    ms = {f"{name}_ms": round(statistics.median(of_one), 4) for name, of_one in spent.items()}
    ratios = {
        f"to_{name}": round(statistics.median(a / b for a, b in zip(spent["score"], spent[name], strict=True)), 3)
        for name in ("decode", "plain", "ready")
    }
    halved = [a / b for a, b in zip(spent["shrunk"], spent["decode"], strict=True)]
    ratios["shrunk_to_decode"] = round(statistics.median(halved), 3)
    return {**ms, **ratios, "file": choice["file"], "runtime": choice["runtime"]}


def untrained(folder: Path, name: str) -> bundle.Bundle:
    """A bundle of a net with random weights."""
    import torch

    from stillwatch.lab.export.exporters import to_onnx
    from stillwatch.lab.export.packaging import golden_frames
    from stillwatch.lab.models import classifier
    from stillwatch.recipe import Net

    kind, shape = NETS[name]
    torch.manual_seed(0)
    net = classifier.build(Net(name=kind, weights="scratch"), 2, shape[:2], shape[2]).eval()
    path = to_onnx(net, shape, folder / f"{name}.onnx")
    frames = golden_frames(shape, "stretch")
    model = bundle.Model(name="model.onnx", files=("model.onnx",), precision="fp32", tolerance=1e-3)
    manifest = bundle.Manifest(
        name=name, labels=("NonViolence", "Violence"), safe=("NonViolence",), input=bundle.Input(shape=shape),
        licence="-", created="-", stillwatch="-", models=(model,),
    )  # fmt: skip
    golden = {"model.onnx": runtimes.open(path, "onnxruntime", shape)(frames)}
    return bundle.write(folder / name, manifest, {"model.onnx": path}, frames, golden)


def measure(bundles: Sequence[Path], seconds: float, rounds: int) -> list[dict[str, Any]]:
    """One row for each bundle and kind of file."""
    cv2.setNumThreads(1)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        archive = folder / "archive"
        archive.mkdir()
        kinds = draw(archive, seconds)
        loaded = [bundle.load(path) for path in bundles] or [untrained(folder, name) for name in NETS]
        for it in loaded:
            for kind, names in kinds.items():
                shape = "x".join(map(str, it.manifest.input.shape))
                figures = compare(it, archive, names, rounds)
                rows.append({"bundle": it.manifest.name, "shape": shape, "kind": kind, **figures})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=20, help="of the film, at 10 frames a second")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", metavar="NOTE", help="rows into results/score.csv")
    asked = parser.parse_args()
    rows = measure(asked.bundle, asked.seconds, asked.rounds)
    print(machine().cpu)
    for line in [list(rows[0]), *(row.values() for row in rows)]:
        print("  ".join(f"{cell!s:>11}" for cell in line))
    if asked.record is not None:
        from benchmarks.record import record_row

        for row in rows:
            record_row("score.csv", row, asked.record)


if __name__ == "__main__":
    main()
