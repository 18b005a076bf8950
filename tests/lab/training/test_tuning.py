"""Tune: what may change is checked first; studies are shared, killed and gone on with; the best recipe reads back."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from sqlalchemy.exc import IntegrityError

from stillwatch.errors import UserError
from stillwatch.evaluation.report import tuning as tuning_picture
from stillwatch.lab.training import pipeline, tuning
from stillwatch.lab.training.runs import RunOptions, load_net, teacher_of
from stillwatch.lab.training.search_space import Key, keys_of, own_value, with_values
from stillwatch.lab.training.tuning import tune
from stillwatch.predictions import save_predictions
from stillwatch.recipe import Recipe, check, load
from stillwatch.run import Progress, Run

LR = {"fit.lr": {"from": 1e-3, "to": 1e-1, "log": True}}
SAVE = "stillwatch.predictions.save_predictions"
SHELF = Path(__file__).parent.parent.parent.parent / "stillwatch" / "recipes"


def recipe(keys: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """Six drawn people, two classes, pictures of 16×16, a student that learns alone; a.b=c as a__b=c."""
    raw: dict[str, Any] = {
        "name": "toy",
        "labels": ["SafeDriving", "Yawn"],
        "data": {"source": {"name": "toy", "people": 6, "pictures": 2}, "size": 16, "gray": True, "folds": 3},
        "teacher": {"net": {"name": "mnist-cnn", "weights": "scratch", "options": {"width": 4}}},
        "student": {"net": {"name": "mnist-small", "weights": "scratch"}},
        "fit": {"epochs": 2, "batch": 4, "lr": 4e-3, "loss": ["ce"]},
        "tune": {"keys": LR if keys is None else keys, "metric": "loss", "fit": {"epochs": 1}},
    }
    return check(toys.changed(raw, changes), "here")


def table(best: Path) -> list[dict[str, str]]:
    with (best.parent / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def timeless(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# ---- keys


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "tune.keys: empty"),
        ({"fit.lrr": [1e-3, 1e-2]}, r'tune.keys."fit.lrr" = 0.001: student.fit.lrr .* did you mean \'lr\'\?'),
        ({"fit.lr": [1e-3, -1.0]}, r'"fit.lr" = -1.0: student.fit.lr = -1.0: Input should be greater than 0'),
        ({"ftt.lr": [1e-3, 1e-2]}, r"of fit and of student.net alone; did you mean 'fit'\?"),
        ({"fit": [1, 2]}, "of fit and of student.net alone"),
        ({"student": [1, 2]}, "of fit and of student.net alone"),
        ({"data.size": [16, 32]}, "of fit and of student.net alone; known: fit, student"),
        ({"student.nte.dropout": [0.1, 0.2]}, r"did you mean 'net'\?"),
        ({"student.net.droput": [0.1, 0.2]}, r"student.net.droput .* did you mean 'dropout'\?"),
        ({"student.net.options.widht": [4, 8]}, r"net.options.widht: mnist-small .* did you mean 'width'\?"),
        ({"student.net.name": ["mnist-small", "mnist-smal"]}, r"'mnist-smal': unknown; did you mean 'mnist-small'\?"),
        ({"student.net.name.x": [1, 2]}, "name = 'mnist-small' is not a table"),
        ({"teacher.net.dropout": [0.1, 0.2]}, "leaves the teacher as it is; set tune.side = 'teacher'"),
        ({"fit.loss.cee.weight": [1, 2]}, r"fit.loss has no 'cee'; did you mean 'ce'\?"),
        ({"fit.loss.ce": [1, 2]}, "name what of it may change, such as fit.loss.ce.OPTION"),
        ({"fit.loss.ce.smothing": [0.1, 0.2]}, r'"fit.loss.ce.smothing" = 0.1: .* did you mean \'smoothing\'\?'),
        ({"fit.loss.ce.smoothing": [0.1, 7.0]}, r'"fit.loss.ce.smoothing" = 7.0: fit.loss.ce.smoothing = 7'),
        ({"fit.augment.crop.scale": [0.5, 0.6]}, "fit.augment has no 'crop'"),
        ({"fit.epochs": [1, 2]}, "tune.fit sets 'epochs' for every trial"),
        ({"fit.seed": [1, 2]}, "cannot be tuned: a lucky seed"),
        ({"fit.lr": [1e-3, 1e-2], "student.fit.lr": [1e-3, 1e-2]}, "'fit.lr' changes the same"),
        ({"fit.loss": [["ce"], ["kd"]], "fit.loss.ce.weight": [1, 2]}, "'fit.loss' changes the same"),
        ({"fit.lr": 3}, "a list of choices, or {from=…, to=…, log=true}"),
        ({"fit.lr": [1e-3]}, "at least two choices"),
        ({"fit.lr": [1e-3, 1e-3, 2e-3]}, "each of them once"),
        ({"fit.lr": {"from": 1e-3, "too": 1e-2}}, r"fit.lr\".too: unknown key; did you mean 'to'\?"),
        ({"fit.lr": {"from": 1e-2, "to": 1e-3}}, "the smaller one first"),
        ({"fit.lr": {"from": "a", "to": True}}, "must be two numbers"),
        ({"fit.lr": {"from": 0.0, "to": 1e-3, "log": True}}, "from = 0.0, .*`low > 0` must hold"),
        ({"fit.lr": {"from": 0.1, "to": 1.0, "log": "yes"}}, "log = 'yes'.* true or false"),
        ({"student.net.dropout": {"from": 0.0, "to": 0.5, "step": 0.2}}, "step = 0.2: .*not divisible by `step`"),
        ({"fit.batch": {"from": 2, "to": 4, "step": 0.5}}, "must be whole, as from and to are"),
    ],
)
def test_a_wrong_key_is_named_before_anything_is_trained(here: Path, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        tune(recipe(keys), 2, RunOptions())
    assert "\n" not in str(caught.value)
    assert not list(here.glob("runs/*"))


def test_a_teacher_cannot_be_tuned_by_what_it_does_not_learn_from() -> None:
    asked = recipe({"fit.loss.kd.weight": [1, 2]}, tune__side="teacher", fit__loss=["ce", "kd"])
    with pytest.raises(UserError, match="the teacher learns without 'kd'"):
        keys_of(asked)


def test_a_study_needs_a_trial(here: Path) -> None:
    with pytest.raises(UserError, match="trials = 0: must be at least 1"):
        tune(recipe(), 0, RunOptions())


def test_values_go_where_they_take_effect_and_leave_the_other_side_alone() -> None:
    losses = ["ce", {"name": "kd", "temperature": {"from": 1, "to": 4}}, "ce"]
    values = {
        "fit.lr": 0.02, "student.net.dropout": 0.3, "student.net.options.width": 4, "fit.loss.kd.weight": 2.0,
        "fit.loss.kd.temperature.to": 8, "fit.loss.ce-2.smoothing": 0.2, "fit.augment.crop.scale": 0.5,
    }  # fmt: skip
    asked = recipe(
        {name: [value, value + 1] for name, value in values.items()},
        fit__loss=losses, fit__augment=["crop"], student__fit={"lr": 0.5},
    )  # fmt: skip
    found = with_values(asked, keys_of(asked), values, "here")
    assert found.fit_of("student").lr == 0.02
    assert found.student.net.dropout == 0.3
    assert found.student.net.options == {"width": 4}
    assert found.fit_of("student").loss == (
        {"name": "ce"},
        {"name": "kd", "weight": 2.0, "temperature": {"from": 1, "to": 8}},
        {"name": "ce", "smoothing": 0.2},
    )
    assert found.fit_of("student").augment == ({"name": "crop", "scale": 0.5},)
    assert found.fit_of("teacher") == asked.fit_of("teacher")
    assert found.teacher == asked.teacher
    assert asked.fit.loss == tuple(losses)  # and the recipe it came from is as it was
    assert with_values(asked, keys_of(asked), values, "here", short=True).fit_of("student").epochs == 1


def test_what_the_recipe_itself_has() -> None:
    keys = {
        "fit.lr": [4e-3, 1.0], "fit.batch": {"from": 8, "to": 16}, "student.net.dropout": {"from": 0.0, "to": 0.5},
        "student.net.options.width": {"from": 4, "to": 12, "step": 4}, "fit.loss.ce.weight": [1.0, 2.0],
        "fit.loss.kd.temperature": {"from": 1.0, "to": 10.0, "step": 1.5}, "fit.loss.kd.weight": [0.7, 0.8],
        "fit.loss": [["ce"], ["ce", "kd"]],
    }  # fmt: skip
    asked = recipe({k: v for k, v in keys.items() if k != "fit.loss"}, fit__loss=["ce", {"name": "kd", "weight": 0.7}])
    found = {key.name: (own_value(asked, key), key.stored(own_value(asked, key))) for key in keys_of(asked)}
    assert found == {
        "fit.lr": (4e-3, 4e-3),
        "fit.batch": (4, None),  # below the range
        "student.net.dropout": (0.0, 0.0),
        "student.net.options.width": (8, 8),  # the builder's default
        "fit.loss.ce.weight": (1.0, 1.0),
        "fit.loss.kd.temperature": (4.0, 4.0),  # the loss's default
        "fit.loss.kd.weight": (0.7, 0.7),
    }
    unknown = recipe({"student.net.options.drop_path_rate": [0.1, 0.2]}, student__net="mobilenetv3_small_050")
    assert own_value(unknown, keys_of(unknown)[0]) is None


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9), st.floats(0, 1))
def test_a_value_has_few_digits_and_stays_in_its_range(a: float, b: float, share: float) -> None:
    low, high = sorted((a, b))
    kept = min(max(low + share * (high - low), low), high)
    value = Key("x", ("fit", "x"), FloatDistribution(low, high)).value(kept)
    assert low <= value <= high
    assert value == pytest.approx(kept, rel=1e-3)
    assert value in (low, high) or len(f"{value:e}".split("e")[0].rstrip("0").replace(".", "")) <= 4


# ---- studies


def test_the_whole_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "a b%20{c}?d"  # a folder's name is no URL
    losses = ["ce", {"name": "kd", "temperature": 2}]
    keys = {**LR, "fit.loss.kd.weight": {"from": 0.1, "to": 1.0}, "fit.batch": [4, 8]}
    asked = recipe(keys, fit__loss=losses, student__net={"name": "mnist-small", "weights": "scratch", "dropout": 0.1})
    teacher = pipeline.teach(recipe(fit__loss=losses), RunOptions(root))
    teacher.note(best=teacher.info.best | {"accuracy": 1.0})
    splits, lines = [], []
    before = optuna.logging.get_verbosity()

    def watched(run: Run, split: str, *rest: Any, **more: Any) -> None:
        splits.append(split)
        save_predictions(run, split, *rest, **more)

    monkeypatch.setattr(SAVE, watched)
    best = tune(asked, 2, RunOptions(root, "# mine", progress=Progress(say=lines.append)))
    assert best == root / "toy-tune-001" / "best.toml"
    assert optuna.logging.get_verbosity() == before
    home = Run.open(best.parent)
    assert (home.info.kind, home.info.status, home.info.trials) == ("tune", "done", 2)
    assert (best.parent / "recipe.toml").read_text() == "# mine"

    # ---- a trial is a run under the teacher; trial 0 is the recipe as it stands
    first, second = Run.open(best.parent / "trial-000"), Run.open(best.parent / "trial-001")
    assert first.recipe == with_values(asked, [], {}, "here", short=True)
    assert teacher_of(first).path.resolve() == teacher.path
    assert len(first.history()) == 1
    assert not (first.path / "last.pt").exists()
    assert second.recipe.fit_of("student").loss[1]["weight"] == second.info.values["fit.loss.kd.weight"]
    assert load_net(second).head.out_features == 2

    # ---- validation only
    assert splits == ["valid", "valid"]
    assert {path.name for path in best.parent.rglob("*.npz")} == {"valid.npz"}

    # ---- the table and the best recipe
    rows = table(best)
    assert [row["state"] for row in rows] == ["complete", "complete"]
    assert (rows[0]["fit.lr"], rows[0]["fit.loss.kd.weight"], rows[0]["fit.batch"]) == ("0.004", "1.0", "4")
    assert float(rows[1]["value"]) == second.info.best["loss"] == second.history()[0]["valid"]["loss"]
    winner = min(rows, key=lambda row: float(row["value"]))["number"]
    values = {} if winner == "0" else second.info.values
    assert load(best) == with_values(asked, keys_of(asked), values, "here")
    assert load(best).fit_of("student").epochs == 2
    assert f"loss on validation {float(rows[int(winner)]['value']):.4f} (trial {winner})" in best.read_text()
    assert f"the recipe as it stood: {float(rows[0]['value']):.4f}" in best.read_text()
    assert lines[-1].startswith(f"{best.parent}: 2 of 2 trials, best loss")

    # ---- which the judge can paint
    assert tuning_picture.picture(best.parent / "trials.csv", "loss").startswith(b"\x89PNG")
    assert [row["note"] == tuning_picture.STANDS for row in rows] == [True, False]

    # ---- with more trials it goes on, and comes to what it would have come to at once
    assert tune(asked, 2, RunOptions(root)) == best
    assert len(splits) == 2
    assert tune(asked, 3, RunOptions(root)) == best
    unbroken = tune(asked, 3, RunOptions(root, fresh=True))
    assert unbroken.parent.name == "toy-tune-002"
    assert timeless(table(unbroken)) == timeless(table(best))
    assert timeless(table(best))[:2] == timeless(rows)
    assert len({row["fit.lr"] for row in table(best)}) == 3
    assert len(splits) == 6

    # ---- another recipe is another study, where figures depend on it
    assert (
        tune(with_values(asked, keys_of(asked), {"fit.batch": 2}, "here"), 1, RunOptions(root)).parent.name[-1] == "3"
    )
    elsewhere = check(asked.model_dump(exclude_unset=True) | {"prune": {"keep": 0.5}}, "here")
    assert tune(elsewhere, 1, RunOptions(root)) == unbroken


def test_a_teacher_is_tuned_too(here: Path) -> None:
    best = tune(recipe({"fit.lr": [1e-3, 1e-2]}, tune__side="teacher", tune__metric="accuracy"), 2, RunOptions())
    assert Run.open(best.parent / "trial-000").info.kind == "teacher"
    assert load(best).fit_of("student") == recipe().fit_of("student")
    rows = table(best)
    assert rows[0]["fit.lr"] == "0.004"  # neither of the two: no trial may have it but the recipe's own
    assert rows[1]["fit.lr"] in ("0.001", "0.01")
    assert max(float(row["value"]) for row in rows) == Run.open(best.parent).info.best["accuracy"]


def test_a_trial_that_breaks_down_is_a_failed_one(here: Path) -> None:
    asked = recipe({"fit.lr": [4e-3, 1e30]}, fit__batch=2)
    best = tune(asked, 4, RunOptions())
    rows = {row["fit.lr"]: row for row in table(best)}
    assert rows["1e+30"]["state"] == "failed"
    assert "fit.loss.ce: no longer a number" in rows["1e+30"]["note"]
    assert load(best) == asked  # trial 0 is the best there is
    run = Run.open(best.parent / f"trial-{int(rows['1e+30']['number']):03d}")
    assert run.info.status == "failed"
    assert Run.open(best.parent).info.trials == 4


def test_the_same_values_are_not_trained_twice(here: Path) -> None:
    best = tune(recipe({"fit.batch": [4, 8]}), 6, RunOptions())
    rows = table(best)
    assert len(rows) == 6
    assert len(list(best.parent.glob("trial-*"))) == 2
    assert len({row["value"] for row in rows if row["fit.batch"] == "4"}) == 1
    assert sum(row["note"].startswith("as trial ") for row in rows) == 4


def test_where_no_trial_ends_it_says_so(here: Path) -> None:
    with pytest.raises(UserError, match=r"no trial came to an end; trials\.csv there says why"):
        tune(recipe({"fit.batch": [2, 4]}, fit__lr=1e30), 2, RunOptions())
    assert not Path("runs/toy-tune-001/best.toml").exists()
    assert [row["state"] for row in table(Path("runs/toy-tune-001/best.toml"))] == ["failed", "failed"]


def test_a_bad_trial_is_stopped_between_epochs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "STARTUP", 1)
    rates = [4e-3, 1e-9, 2e-9, 3e-9]
    best = tune(recipe({"fit.lr": rates}, tune__fit={"epochs": 3, "select": "last"}), 5, RunOptions())
    stopped = [row for row in table(best) if row["state"] == "pruned"]
    assert stopped
    for row in stopped:
        run = Run.open(best.parent / f"trial-{int(row['number']):03d}")
        assert run.info.status == "stopped"
        assert len(run.history()) < 3
        assert float(row["value"]) == run.history()[-1]["valid"]["loss"]
        assert (run.path / "best.pt").is_file()
    assert load(best).fit_of("student").lr == 4e-3


@pytest.mark.parametrize("number", [0, 1])
def test_one_that_is_interrupted_is_run_again(here: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(run: Run, *_: Any, **__: Any) -> None:
        if run.path.name == f"trial-00{number}":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SAVE, interrupted)
        tune(recipe(), 2, RunOptions())
    home = Path("runs/toy-tune-001")
    assert Run.open(home).info.status == "stopped"
    assert Run.open(home / f"trial-00{number}").info.status == "stopped"
    rows = table(tune(recipe(), 2, RunOptions()))
    assert [row["state"] for row in rows] == [["lost", "complete", "complete"], ["complete", "lost", "complete"]][
        number
    ]
    assert rows[number + 1]["fit.lr"] == rows[number]["fit.lr"]
    assert [row["note"] for row in rows].count("the recipe as it stands") == [2, 1][number]
    assert Run.open(home).info.status == "done"


def test_what_no_value_of_a_key_can_bring_about_ends_the_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(SAVE, full)
    with pytest.raises(OSError, match="the disk is full"):
        tune(recipe(), 2, RunOptions())
    assert Run.open("runs/toy-tune-001").info.status == "failed"
    assert Run.open("runs/toy-tune-001/trial-000").info.error == "the disk is full"


WORKER = f"""
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parent), str(Path(toys.__file__).parent)]!r}
import test_tuning
from stillwatch import predictions
from stillwatch.lab.training.runs import RunOptions
from stillwatch.lab.training.tuning import tune

me, root, meets, then = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
count = 0

def save(run, *_, **__):
    global count
    count += 1
    if count == meets:  # both processes are in a trial at this moment
        (root / me).touch()
        until = time.monotonic() + 120
        while not ((root / "one").exists() and (root / "two").exists()):
            assert time.monotonic() < until
            time.sleep(0.01)
        if then == "dies":
            os.kill(os.getpid(), signal.SIGKILL)

predictions.save_predictions = save
time.strftime = lambda *_: "2026-11-28T12:00:00+0000"  # both start in one second
storage = str(root / "study.journal") if then == "journal" else None
tune(test_tuning.recipe(), 5, RunOptions(root / me if storage else root), storage)
"""


def two_processes(root: Path, *words: tuple[str, str, str]) -> tuple[list[int], list[str]]:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, name, str(root), meets, then],
            stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for name, meets, then in words
    ]  # fmt: skip
    said = [worker.communicate(timeout=240)[1] for worker in workers]
    return [worker.returncode for worker in workers], said


def test_machines_with_folders_of_their_own_share_a_study(tmp_path: Path) -> None:
    codes, said = two_processes(tmp_path, ("one", "1", "journal"), ("two", "1", "journal"))
    assert codes == [0, 0], said
    homes = [tmp_path / name / "toy-tune-001" for name in ("one", "two")]
    trials = [{path.name for path in home.glob("trial-*")} for home in homes]
    assert trials[0] and trials[1] and not trials[0] & trials[1]
    assert 5 <= len(trials[0] | trials[1]) <= 6, "two machines may start one too many"
    last = max(homes, key=lambda home: (home / "best.toml").stat().st_mtime_ns)  # the other one may end mid-trial
    rows = table(last / "best.toml")
    assert {row["state"] for row in rows} == {"complete"} and len(rows) == len(trials[0] | trials[1])
    with pytest.raises(UserError, match=r"--fresh: x\.journal may hold this study"):
        tune(recipe(), 5, RunOptions(tmp_path, fresh=True), storage="x.journal")
    with pytest.raises(UserError, match=r"^--storage \S+/nowhere/x: cannot be opened: No such file"):
        tune(recipe(), 5, RunOptions(tmp_path), storage=str(tmp_path / "nowhere" / "x"))


def test_a_server_that_does_not_answer_keeps_its_password(tmp_path: Path) -> None:
    for url, why in (
        ("sqlite:///x.db", "SQLite loses locks on network disks"),
        ("nosuch://me:s3cret@host/db", "nosuch"),
        ("postgresql+pg8000://me:s3cret@host/db", "pg8000"),
    ):
        with pytest.raises(UserError, match=why) as told:
            tuning._server(url)
        assert "s3cret" not in str(told.value)


def test_two_machines_may_make_a_servers_tables_in_one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [IntegrityError("CREATE TYPE", None, Exception("exists")), "the second time", OSError("s3cret is away")]

    def opened(_: str) -> object:
        if isinstance(outcome := outcomes.pop(0), Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("optuna.storages.RDBStorage", opened)
    assert tuning._server("postgresql://me:s3cret@host/db") == "the second time"
    with pytest.raises(UserError, match=r"\*\*\* is away"):
        tuning._server("postgresql://me:s3cret@host/db")


def test_processes_share_the_trials_and_one_that_is_killed_takes_none_with_it(tmp_path: Path) -> None:
    """One process ends a trial, meets the other in its second, and is killed there; the other one does the rest."""
    codes, said = two_processes(tmp_path, ("one", "2", "dies"), ("two", "1", "goes on"))
    assert codes == [-signal.SIGKILL, 0], said
    assert [path.name for path in tmp_path.glob("toy-*")] == ["toy-tune-001"]
    home = Run.open(tmp_path / "toy-tune-001")
    assert (home.info.status, home.info.trials) == ("done", 5)

    rows = table(home.path / "best.toml")
    assert sorted(row["state"] for row in rows) == ["complete"] * 5 + ["lost"]
    lost = next(row for row in rows if row["state"] == "lost")
    assert [row["fit.lr"] for row in rows].count(lost["fit.lr"]) == 2  # it was run again
    assert len({row["fit.lr"] for row in rows}) == 5  # and nothing else was run twice
    assert Run.open(home.path / f"trial-00{lost['number']}").info.status == "stopped"
    assert table(tune(recipe(), 5, RunOptions(tmp_path))) == rows


def test_every_shipped_recipe_survives(tmp_path: Path) -> None:
    shipped = sorted(SHELF.rglob("*.toml"))
    assert len(shipped) >= 7
    for path in shipped:
        asked = load(path)
        (tmp_path / "again.toml").write_text(tuning._toml(asked), encoding="utf-8")
        assert load(tmp_path / "again.toml") == asked
        for key in keys_of(asked) if asked.tune.keys else []:
            assert own_value(asked, key) is not None
