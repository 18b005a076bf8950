"""The story: drawn drivers, a teacher, a student alone and one distilled, killed on the way, and a report.

What comes after, from pruning to the live watch, is run by test_docs.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stillwatch.cli import main
from stillwatch.run import Run

pytestmark = pytest.mark.torch

SMALL = (
    "data.source={name='toy',people=10,pictures=3}", "data.size=32", "data.folds=5", "fit.epochs=3", "fit.views=2",
    "teacher.net={name='mnist-cnn',weights='scratch',options={width=8}}",
    "student.net={name='mnist-small',weights='scratch'}",
)  # fmt: skip


@pytest.fixture
def stillwatch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A command in this process, which imports torch once: what it prints. Fails unless it ends well."""

    def command(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["stillwatch", *words])
        with pytest.raises(SystemExit) as stop:
            main.main()
        said = capsys.readouterr()
        assert not stop.value.code, said.out + said.err
        return said.out

    return command


def killed_after_an_epoch(run: Path, *words: str) -> None:
    process = subprocess.Popen([sys.executable, "-m", "stillwatch", *words], stdout=subprocess.DEVNULL)
    while process.poll() is None and not (run / "last.pt").is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def rows(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in Run.open(run).history()]


def test_the_whole_of_it(here: Path, stillwatch: Callable[..., str]) -> None:
    # ---- the data are looked at
    said = stillwatch("audit", "toy", *SMALL)
    assert "toy-audit-001" in said
    assert len(list(here.glob("runs/toy-audit-001/*.png"))) == 6

    # ---- a teacher is taught, and let through whatever three epochs are worth
    said = stillwatch("teach", "toy", *SMALL)
    assert "toy-teacher-001: kept epoch" in said
    teacher = Run.open("runs/toy-teacher-001")
    teacher.note(best=teacher.info.best | {"accuracy": 1.0})

    # ---- the student alone; killed once it has an epoch, and gone on with by the same command
    longer = (*SMALL, "fit.epochs=12")
    killed_after_an_epoch(Path("runs/toy-alone-001"), "distil", "toy", *longer, "--alone")
    broken = Run.open("runs/toy-alone-001")
    assert broken.info.status == "running"
    assert 1 <= len(broken.history()) < 12
    assert "going on with runs/toy-alone-001" in stillwatch("distil", "toy", *longer, "--alone")
    stillwatch("distil", "toy", *longer, "--alone")  # a finished run is left alone: this is an unbroken one
    assert len(rows(Path("runs/toy-alone-001"))) == 12
    assert rows(Path("runs/toy-alone-001")) == rows(Path("runs/toy-alone-002"))

    # ---- distilled, and compared
    stillwatch("distil", "toy", *longer)
    names = ("runs/toy-teacher-001", "runs/toy-alone-001", "runs/toy-distilled-001")
    said = stillwatch("compare", *names, "--out", "report")
    report = json.loads(Path("report/report.json").read_text())
    assert report["models"].keys() == {"teacher", "alone", "distilled"}
    for model in report["models"].values():
        assert {"accuracy", "macro_f1", "ece", "loss", "params", "macs", "per_class", "ci95"} <= model.keys()
    assert (
        report["compression_ratio"] == report["models"]["teacher"]["params"] / report["models"]["distilled"]["params"]
    )
    assert report["verdict"]["sentence"] in said
    page = Path("report/report.html").read_text()
    assert report["verdict"]["sentence"].split(":")[0] in page
    assert page.count("data:image/png;base64,") >= 6
    assert "http" not in page.replace("http://www.w3.org", "")  # one file: it asks the network for nothing

    # ---- what there is
    said = stillwatch("ls")
    assert said.count("\n") == 5
    assert said.count("done") == 5
