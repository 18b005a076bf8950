"""The command: exit statuses, one-line errors, help with an example. Nothing is trained here."""

import io
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import bundles
import pytest
from fabricated import three

from stillwatch.cli import console, deploy, main
from stillwatch.lab.models.zoo import NETS
from stillwatch.lab.training import pipeline
from stillwatch.run import Run

COMMANDS = (
    "audit", "teach", "distil", "compare", "judge", "prune", "quantise", "export", "bench", "tune", "doctor", "ls",
    "demo", "watch", "replay", "events", "score", "test-sinks", "crossval", "init", "adapt", "schema",
    "push", "merge",
)  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["stillwatch", *words])
    with pytest.raises(SystemExit) as stop:
        main.main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path) -> Any:
    return lambda *words: run(capsys, monkeypatch, *words)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_and_gives_an_example(say: Any, command: str) -> None:
    code, out, _ = say(command, "--help")
    assert code == 0
    assert f"Example: stillwatch {command}" in " ".join(re.sub(r"[│\n]", " ", out).split())


def test_help_names_every_command(say: Any) -> None:
    code, out, _ = say("--help")
    assert code == 0
    for command in COMMANDS:
        assert command in out
    assert {command.name or command.callback.__name__ for command in main.app.registered_commands} == set(COMMANDS)


@pytest.mark.parametrize(
    "words", [("nonsense",), ("teach",), ("teach", "toy", "--quick"), ("compare",), ("schema", "wacth")]
)
def test_wrong_usage_is_status_2(say: Any, words: tuple[str, ...]) -> None:
    code, _, err = say(*words)
    assert code == 2
    assert err.strip() and "Value error" not in err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("teach", "tyo"), "error: tyo: no such recipe"),
        (("audit", "toy", "fit.epoch=1"), "did you mean 'epochs'"),
        (("audit", "toy", "data.source.people=1"), "error: "),
        (("audit", "driving", "data.root=nowhere"), "data.root = 'nowhere': no such folder"),
        (("teach", "toy", "teacher.net.name=resnet10tt"), "resnet10t"),
        (("teach", "toy", "fit.augment=['flop']"), "did you mean 'flip'"),
        (("distil", "toy", "fit.loss=['kdd']", "--alone"), "did you mean 'kd'"),
        (("teach", "toy", "fit.device=cuda"), "fit.device = 'cuda': PyTorch finds no GPU on this machine"),
        (("teach", "toy", "teacher.net=resnet-ten"), "and the names of timm.list_models()"),
        (("distil", "toy"), "no finished teacher for 'toy'"),
        (("distil", "toy", "teacher.init=runs/x"), "runs/x: not a run"),
        (("compare", "runs/x"), "runs/x: not a run"),
        (("judge", "runs/x"), "runs/x: not a run"),
        (("prune", "runs/x"), "runs/x: not a run"),
        (("quantise", "runs/x"), "runs/x: not a run"),
        (("export", "runs/x"), "runs/x: not a run"),
        (("bench", "bundle"), "bundle: not a bundle: no such folder"),
        (("doctor", "bundle"), "bundle: not a bundle: no such folder"),
        (("watch", "bundle"), "bundle: a bundle is watched with --source X, a plan (watch.toml) without"),
        (("watch", "bundle", "--source", "0"), "bundle: not a bundle: no such folder"),
        (("watch", "watch.toml"), "watch.toml: no such file"),
        (("doctor", "watch.toml"), "watch.toml: no such file"),
        (("test-sinks", "watch.toml"), "watch.toml: no such file"),
        (("replay", "bundle", "night.mp4"), "bundle: not a bundle: no such folder"),
        (("replay", "bundle", "night.mp4", "--person", "every=3"), "person: model: missing"),
        (("replay", "bundle", "night.mp4", "--person", "model=p.onnx"), "p.onnx: no such file"),
        (("score", "bundle", "archive"), "archive: no such folder"),
        (("events",), "watch: no events are kept there"),
        (("events", "--since", "soon"), "--since soon: is a time such as 30m, 1h, 7d"),
        (("audit", "x" * 900), "x…"),
        (("events", "--level", "loud"), "--level loud: is notice, warn or alarm"),
        (("tune", "toy", "tune.keys={'fit.lrr'=[1,2]}"), "did you mean 'lr'"),
    ],
)
def test_a_failure_is_one_line_and_status_1(say: Any, words: tuple[str, ...], error: str) -> None:
    code, out, err = say(*words)
    assert code == 1
    assert error in err
    assert err.count("\n") == 1, err
    assert "Traceback" not in out + err
    assert not list(Path().glob("runs/*/last.pt"))


def test_the_version_and_what_the_shell_completes(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert say("--version") == (0, f"stillwatch {main.stillwatch.__version__}\n", "")
    Path("mine.toml").touch()
    monkeypatch.setenv("_STILLWATCH_COMPLETE", "complete_bash")
    for words, completed in (("stillwatch te", "teach\ntest-sinks\n"), ("stillwatch teach mi", "mine.toml\n")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        assert say()[:2] == (0, completed)


def test_debug_shows_where(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["stillwatch", "compare", "x", "--debug"])
    with pytest.raises(main.UserError):
        main.main()


def test_what_nobody_foresaw_is_one_line_too(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def burn(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "teach", burn)
    code, _, err = say("teach", "toy")
    assert (code, err) == (1, "error: OSError: [Errno 28] No space left on device (--debug shows where)\n")


def test_ctrl_c_says_how_to_go_on(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "teach", stop)
    code, _, err = say("teach", "toy")
    assert code == 130
    assert "resumes from the last finished epoch" in err


def test_ctrl_c_promises_nothing_where_nothing_is_resumed(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stillwatch.monitor.service.serve", stop)
    code, _, err = say("watch", "b", "--source", "0")
    assert (code, err) == (130, "\nstopped\n")


@pytest.mark.parametrize("words", [("watch", "b", "--source", "0"), ("doctor", "b")])
def test_too_little_address_space_is_said(words: tuple[str, ...]) -> None:
    limit = "import resource as r, runpy; r.setrlimit(r.RLIMIT_AS, (400 << 20, r.RLIM_INFINITY))\n"
    code = limit + "runpy.run_module('stillwatch', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: ulimit -v 409600: is too little to load the libraries; 655360 at least\n"


def test_ls_of_nothing_says_what_to_do(say: Any) -> None:
    assert say("ls") == (0, "runs: no runs yet; `stillwatch teach RECIPE` makes one\n", "")


def test_the_street_s_help_needs_no_lab() -> None:
    """`--help` and `ls` in a process where the lab's libraries cannot be imported, as on a board."""
    code = """
import sys
import time
from datetime import datetime
for name in ("torch", "timm", "accelerate", "sklearn", "matplotlib", "av", "scipy", "safetensors"):
    sys.modules[name] = None
sys.argv = ["stillwatch", *sys.argv[1:]]
from stillwatch.cli.main import main
main()
"""
    for words in (["--help"], ["teach", "--help"], ["ls"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-c", code, "teach", "toy"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "stillwatch[lab]" in done.stderr
    assert done.stderr.count("\n") == 1


def test_h_is_help(say: Any) -> None:
    assert say("prune", "-h") == say("prune", "--help")


@pytest.mark.parametrize(("command", "table"), [("prune", "prune"), ("quantise", "quantise"), ("export", "export")])
def test_help_names_keys_that_the_command_takes(say: Any, command: str, table: str) -> None:
    _, out, _ = say(command, "--help")
    assert f"such as {table}." in " ".join(out.split())


def test_compare_passes_over_an_audit_run(say: Any, here: Path) -> None:
    runs = [*three(here / "runs", 1.5, 1), Run.create(Run.open("runs/toy-teacher-001").recipe, "audit", here / "runs")]
    code, out, _ = say("compare", *(str(run.path) for run in sorted(runs, key=lambda run: run.path)), "--out", "report")
    assert code == 0
    assert "toy-audit-001: passed over" in out
    assert Path("report/report.html").is_file()
    code, _, err = say("compare", str(runs[-1].path))
    assert (code, "an audit run has nothing to compare" in err) == (1, True)


def test_since_takes_a_length_of_time_or_a_date() -> None:
    for text in ("1h", "-1h", "1H", "60m", "-3600s"):
        assert deploy._since(text) == pytest.approx(time.time() - 3600, abs=5)
    assert deploy._since("2026-01-31T10:00") == datetime(2026, 1, 31, 10).timestamp()
    for wrong in ("nan h", "infh", "1e300w", "yesterday", ""):
        with pytest.raises(main.UserError, match="is a time such as"):
            deploy._since(wrong)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_a_terminal_without_the_minus_sign_gets_a_plain_one(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    console.print_anything()
    print("−1.8 to +5.0 → kept ☃")
    console.table([["−1", "×"]])
    assert raw.getvalue().startswith(b"-1.8 to +5.0 -> kept ?\n-1 ")
    monkeypatch.undo()


def test_a_table_keeps_to_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["runs/driving-teacher-001", "done"], ["[bold]x", "1"]]
    console.table(rows, ["run", "status"])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "runs/driving-teacher-001  done  ",
        "[bold]x                   1     ",
    ]
    monkeypatch.setenv("COLUMNS", "20")
    console.table(rows)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 20


@pytest.mark.parametrize(
    ("module", "extra"), [("pyarrow.parquet", "parquet"), ("openvino", "openvino"), ("torch", "lab")]
)
def test_a_missing_library_names_the_extra_that_brings_it(
    say: Any, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    def missing(*_: Any) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(pipeline, "teach", missing)
    code, _, err = say("teach", "toy")
    assert (code, err.count("\n")) == (1, 1)
    assert f"'stillwatch[{extra}]'" in err


def test_a_bundle_away_from_its_runs_says_how_to_name_them(say: Any, here: Path) -> None:
    bundles.made(here, {"model.onnx": bundles.onnx_net(here / "model.onnx")}).path.rename("moved")
    code, _, err = say("judge", "moved")
    assert code == 1
    assert f"is not in 'runs' (relative to {here}); name the folder of runs with --runs" in err
    three(here / "elsewhere", 1.2, 1)
    assert say("judge", "elsewhere/toy-alone-001", "data.root=anywhere")[0] == 0
    assert "what may change here: data.root" in say("judge", "elsewhere/toy-alone-001", "fit.lr=1")[2]


def test_own_nets_are_named_where_one_looks_for_them(say: Any) -> None:
    page = (Path(__file__).parent.parent / "docs/train.md").read_text()
    for name in NETS:
        assert name in re.sub(r"-\s+", "-", say("teach", "--help")[1])
        assert f"`{name}`" in page


def test_help_is_as_narrow_as_the_terminal(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for command in COMMANDS:
        assert max(map(len, say(command, "--help")[1].splitlines())) <= 60, command


def test_ctrl_c_during_the_imports_ends_without_a_traceback() -> None:
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'stillwatch.cli.main': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from stillwatch.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
