"""The wheel alone, in an empty place without the lab's libraries, does the board's work."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import bundles
import cv2
import pytest

ROOT = Path(__file__).parent.parent
MISSING = (
    "torch", "torchvision", "timm", "accelerate", "matplotlib", "jinja2", "sklearn", "scipy", "optuna", "pyarrow",
    "openvino", "ncnn", "nncf", "onnx", "safetensors", "apprise", "huggingface_hub",
)  # fmt: skip
SITE = f"""  # imported by every Python process of the board as it starts
import sys
from importlib.machinery import PathFinder
class Board:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {MISSING!r} else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Board if finder is PathFinder else finder for finder in sys.meta_path]
"""
SESSION = """
import json, sys
import stillwatch.cli.main
for words in json.loads(sys.argv[1]):
    sys.argv = ["stillwatch", *words]
    try:
        stillwatch.cli.main.main()
    except SystemExit as stop:
        print("status", stop.code, flush=True)
print("from", stillwatch.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked."""
    place = tmp_path_factory.mktemp("wheel")
    build = f"import os; os.chdir({str(ROOT)!r}); import hatchling.build as b; b.build_wheel({str(place)!r})"
    done = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(place.glob("*.whl"))) as archive:
        archive.extractall(place / "unpacked")
    return place / "unpacked"


def on_a_board(wheel: Path, here: Path, *commands: tuple[str, ...]) -> tuple[list[int], str, str]:
    """Exit statuses, output and errors of these commands, run one after the other in one fresh process."""
    (wheel / "sitecustomize.py").write_text(SITE)
    environment = os.environ | {"PYTHONPATH": str(wheel)}
    words = [sys.executable, "-c", SESSION, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=here, env=environment)
    assert f"from {wheel}" in done.stdout, done.stderr
    return [int(code) for code in re.findall(r"^status (\d+)$", done.stdout, re.M)], done.stdout, done.stderr


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    tracked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "stillwatch").rglob("*")
        if path.is_file() and path.suffix in {".py", ".toml", ".html", ".md", ".css", ".js", ".json", ".svg"}
    }
    packed = {path.relative_to(wheel).as_posix() for path in (wheel / "stillwatch").rglob("*") if path.is_file()}
    assert packed >= tracked
    assert {Path(name).suffix for name in packed} >= {".toml", ".html", ".css", ".js"}


def test_the_lines_of_the_readme_that_install_it_name_what_the_wheel_has(wheel: Path) -> None:
    about = (next(wheel.glob("*.dist-info")) / "METADATA").read_text(encoding="utf-8")
    extras = set(re.findall(r"^Provides-Extra: (.+)$", about, re.M))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"(?:pip install|uv tool install|uvx --from) (?:-e )?'(?:stillwatch|\.)\[([\w,]+)\]'", readme)
    assert len(lines) >= 4
    assert {extra for line in lines for extra in line.split(",")} <= extras
    scripts = (next(wheel.glob("*.dist-info")) / "entry_points.txt").read_text(encoding="utf-8")
    assert "stillwatch = stillwatch.__main__:main" in scripts


def test_a_board_needs_the_wheel_and_no_lab(wheel: Path, here: Path) -> None:
    bundle = bundles.made(here, {"model.onnx": bundles.onnx_net(here / "model.onnx")}).path
    pictures = here / "archive"
    pictures.mkdir()
    cv2.imwrite(str(pictures / "a.png"), bundles.pictures(1, (24, 32, 3))[0])
    codes, out, err = on_a_board(
        wheel,
        here,
        ("--help",),
        ("--version",),
        ("schema", "watch"),
        ("doctor", str(bundle)),
        ("bench", str(bundle), "--rounds", "3", "--threads", "1", "--out", "bench"),
        ("replay", str(bundle), "toy://driver?seconds=3", "--out", "replay"),
        ("watch", str(bundle), "--source", "toy://driver", "--for", "4", "--no-page"),
        ("events",),
        ("score", str(bundle), "archive", "-o", "scores.csv", "--workers", "1"),
        ("push", str(bundle), "anna/driver"),
        ("score", str(bundle), "archive", "-o", "scores.parquet", "--workers", "1"),
        ("teach", "toy"),
    )
    assert codes == [0] * 9 + [1] * 3, out + err
    assert out.count("matplotlib is not installed; pip install 'stillwatch[lab]' draws it") == 2
    assert json.loads((here / "bench" / "bench.json").read_text())["rows"]
    assert json.loads((here / "replay" / "replay.json").read_text())["frames"]
    assert len((here / "scores.csv").read_text().splitlines()) == 2
    assert not [*here.glob("bench/*.png"), *here.glob("replay/*.png")]
    hub, parquet, lab = err.splitlines()[-3:]
    assert "stillwatch[hub]" in hub
    assert "stillwatch[parquet]" in parquet
    assert "stillwatch[lab]" in lab
