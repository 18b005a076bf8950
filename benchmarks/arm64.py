"""aarch64, proved under emulation: `python -m benchmarks.arm64 BUNDLE` (`make arm64`), as root on Debian.

In: a bundle. Out: an emulated Debian 12 with the street's wheel and all runtimes that install there; each file's golden
frames in each of them; the events of a drawn film, there and here. Exit status 1 where an answer differs.
Slow (minutes); it says nothing of speed. Needs `apt-get install qemu-user-static binfmt-support debootstrap`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import av

from stillwatch import bundle
from stillwatch.errors import UserError
from stillwatch.media import synthetic

HERE = Path(__file__).parent.parent
RUNTIMES = ("openvino", "ncnn", "ai-edge-litert")  # besides ONNX Runtime, which the street brings
TAGS = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 24, 27, 28, 31, 34)] + [
    "--platform=manylinux2014_aarch64"
]
CPU = "cortex-a76"  # a Raspberry Pi 5's; qemu's own "max" promises what OpenVINO's INT8 then dies of
GOLDEN = """
import json, sys
from stillwatch import bundle
from stillwatch.inference import runtimes
made = bundle.load("bundle")
if len(sys.argv) == 1:  # who reads what
    print(json.dumps([(m.name, name) for m in made.manifest.models for name in runtimes.readers(made.path / m.name)]))
else:
    file, name = sys.argv[1:]
    (frames, golden), model = made.golden(), made.model(file)
    p = runtimes.open(made.path / file, name, made.manifest.input.shape)(frames)
    difference, other = bundle.unlike(p, golden[file], model.tolerance)
    print(json.dumps([difference, difference <= model.tolerance and other is None]))
"""
PLAN = """
bundle = "one"
runtime = "onnxruntime"
camera = [{ name = "film", source = "film.mp4", speed = 0, clips = false }]
web = { on = false }
"""


def say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {words}", flush=True)


def run(*words: str | Path, cwd: Path | None = None) -> str:
    """The output. Raises UserError with the last line of the errors."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        raise UserError(f"{' '.join(map(str, words[:5]))} …: status {done.returncode}: {last}")
    return done.stdout


def debian(root: Path) -> None:
    """A Debian 12 for aarch64 in `root`; one that is there is used again."""
    if os.geteuid() or not shutil.which("debootstrap") or not Path("/proc/sys/fs/binfmt_misc").is_dir():
        raise UserError("as root, after: apt-get install qemu-user-static binfmt-support debootstrap")
    if not Path("/proc/sys/fs/binfmt_misc/register").exists():
        run("mount", "-t", "binfmt_misc", "binfmt_misc", "/proc/sys/fs/binfmt_misc")
    if not Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists():
        run("update-binfmts", "--enable", "qemu-aarch64")
    if not (root / "usr/bin/python3").exists():
        say(f"debootstrap into {root}: minutes")
        run("debootstrap", "--arch=arm64", "--variant=minbase", "--include=python3,python3-venv", "bookworm", root)


def install(root: Path, again: bool) -> Path:
    """The board's python: a fresh environment with the wheel, and what of RUNTIMES installs. Nothing is built there.

    again: of the environment that is there, only our own wheel is new.
    """
    wheels, pip = root / "opt/wheels", (sys.executable, "-m", "pip")
    shutil.rmtree(wheels, ignore_errors=True)
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, HERE)
    wheel = next(wheels.glob("stillwatch-*.whl"))
    if again and (root / "opt/board/bin/pip").exists():
        run(
            "chroot",
            root,
            "/opt/board/bin/pip",
            "install",
            "--no-deps",
            "--force-reinstall",
            f"/opt/wheels/{wheel.name}",
        )
        return Path("/opt/board/bin/python")
    fetch = (*pip, "download", "--quiet", "--only-binary=:all:", "--python-version=3.11", *TAGS, "--dest", wheels)
    run("chroot", root, "python3", "-m", "venv", "--clear", "/opt/board")
    for what in (wheel, *RUNTIMES):
        try:
            run(*fetch, what)
            name = "stillwatch" if isinstance(what, Path) else what
            run("chroot", root, "/opt/board/bin/pip", "install", "--no-index", "--find-links=/opt/wheels", name)
            say(f"installed {name}")
        except UserError as error:
            if isinstance(what, Path):
                raise
            say(f"{what} does not install there: {error}")
    return Path("/opt/board/bin/python")


def work(place: Path, source: Path) -> None:
    """What both machines are given: the bundle, one of its model.onnx alone, and a film of drawn incidents."""
    made = bundle.load(source)
    shutil.copytree(source, place / "bundle")
    frames, golden = made.golden()
    model = made.model("model.onnx")
    files = {name: source / name for name in model.files}
    alone = made.manifest.model_copy(update={"models": (model,), "files": {}})
    bundle.write(place / "one", alone, files, frames, {model.name: golden[model.name]})
    with av.open(str(place / "film.mp4"), "w") as out:
        # No YUV: FFmpeg turns that to RGB with another rounding on ARM: up to 1 of 255
        stream = out.add_stream("libx264rgb", rate=5, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = 120, 160, "rgb24"
        for _, picture, _ in synthetic.clip("cabin", 40, 5, 1, (120, 160)):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    (place / "golden.py").write_text(GOLDEN)
    (place / "watch.toml").write_text(PLAN)


def answers(command: list[str | Path], place: Path, root: Path | None = None) -> tuple[list[str], bool, list[str]]:
    """What each file gave in each runtime, in words; whether all are faithful; the film's events as lines."""
    lines, good = list[str](), True
    for file, runtime in json.loads(run(*command, "golden.py", cwd=place)):
        with ExitStack() as stack:
            # qemu-user shows this machine's own /sys: OpenVINO crashes without one, ONNX Runtime with a wrong one
            if root and runtime == "openvino":
                run("mount", "--bind", "/sys", root / "sys")
                stack.callback(run, "umount", root / "sys")
            try:
                difference, same = json.loads(run(*command, "golden.py", file, runtime, cwd=place).splitlines()[-1])
            except UserError as error:
                difference, same, runtime = float("nan"), False, f"{runtime}: {error}"
        lines.append(f"{file:20} {runtime:12} differs by {difference:.2g}{'' if same else '  NOT FAITHFUL'}")
        good &= same
    run(*command, "-m", "stillwatch", "watch", "watch.toml", cwd=place)
    told = run(*command, "-m", "stillwatch", "events", "--in", "watch", "--json", cwd=place)
    events = [f"{event['level']:6} {event['kind']:12} {event['words']}" for event in map(json.loads, told.splitlines())]
    return lines, good, events[::-1]  # the oldest first; their dates are of the wall clock, which emulation stretches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/var/tmp/stillwatch-arm64"), help="of the emulated Debian")
    parser.add_argument("--again", action="store_true", help="keep the runtimes there; only our wheel is new")
    asked = parser.parse_args()
    root = asked.root.resolve()
    try:
        bundle.load(asked.bundle)
        debian(root)
        with ExitStack() as stack:
            run("mount", "--bind", "/proc", root / "proc")
            stack.callback(run, "umount", root / "proc")
            run("mount", "--bind", "/dev", root / "dev")
            stack.callback(run, "umount", root / "dev")
            python = install(root, asked.again)
            here = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            work(here, asked.bundle)
            shutil.rmtree(root / "opt/work", ignore_errors=True)
            shutil.copytree(here, root / "opt/work")
            say("this machine")
            golden, _, events = answers([sys.executable], here)
            say("emulated " + run("chroot", root, "uname", "-m").strip())
            board = ("chroot", root, "env", "--chdir=/opt/work", "--unset=PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS=1")
            inside: list[str | Path] = [*board, f"QEMU_CPU={CPU}", python]
            golden_there, good, events_there = answers(inside, root / "opt/work", root)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    for name, rows in (("here", golden), ("aarch64", golden_there)):
        print(f"\ngolden frames, {name}")
        print(*(f"  {row}" for row in rows), sep="\n")
    print("\nevents of the film, aarch64", *(f"  {line}" for line in events_there), sep="\n")
    same = events == events_there
    print("the same as here" if same else "\n".join(["here:", *(f"  {line}" for line in events)]))
    raise SystemExit(0 if same and events and good else 1)


if __name__ == "__main__":
    main()
