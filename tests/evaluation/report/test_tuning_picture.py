"""The picture of a study: each trial is where its line says, and nothing hides the rest."""

import csv
import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from stillwatch.errors import UserError
from stillwatch.evaluation.report import tuning

STANDS = "the recipe as it stands"
HEADER = ("number", "state", "value", "fit.lr", "fit.batch", "student.net.name", "seconds", "note")
ROWS = [
    (0, "complete", 0.5, 1e-3, 16, "small", 1.0, STANDS),
    (1, "complete", 0.4, 1e-4, 32, "large", 1.0, ""),
    (2, "failed", "", 1e-1, 32, "small", 1.0, "no longer a number"),
    (3, "lost", "", 2e-3, 16, "small", 1.0, ""),
    (4, "pruned", 0.9, 2e-3, 16, "small", 1.0, ""),
    (5, "complete", 0.7, 5e-3, 16, "small", 1.0, ""),
]


def written(folder: Path, rows: list[tuple[Any, ...]]) -> Path:
    with (folder / "trials.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return folder / "trials.csv"


def panels(path: Path, metric: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The picture's axes by their title."""
    seen = {}

    def keep(drawn: list[partial[Any]], *_: Any, **__: Any) -> bytes:
        for panel in drawn:
            axes = Figure().add_subplot()
            panel(axes)
            seen[axes.get_title()] = axes
        return b""

    monkeypatch.setattr(tuning, "panels_png", keep)
    tuning.picture(path, metric)
    return seen


def dots(axes: Any) -> set[tuple[float, float, str]]:
    """(x, y, colour) of each trial."""
    return {
        (line.get_xdata()[0], round(line.get_ydata()[0], 6), line.get_color())
        for line in axes.lines
        if line.get_marker() in ("o", "D", "x")
    }


def test_every_trial_is_where_its_line_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = panels(written(tmp_path, ROWS), "macro_f1", monkeypatch)
    assert list(found) == ["Macro-F1 on validation, %", "fit.lr", "fit.batch", "student.net.name"]
    history, blue = found["Macro-F1 on validation, %"], tuning.TRIAL_COLOURS["came to an end"]
    gray, red, orange = (tuning.TRIAL_COLOURS[kind] for kind in ("stopped early", "failed", STANDS))
    assert dots(history) == {(0, 50, orange), (1, 40, blue), (2, 0.02, red), (4, 90, gray), (5, 70, blue)}
    line = next(line for line in history.lines if line.get_drawstyle() == "steps-post")
    assert list(zip(*line.get_data(), strict=True)) == [(0, 50), (1, 50), (2, 50), (4, 50), (5, 70)]
    assert [y for line in history.lines if line.get_linestyle() == "--" for y in line.get_ydata()] == [50, 50]

    assert dots(found["fit.lr"]) == {
        (1e-3, 50, orange), (1e-4, 40, blue), (1e-1, 0.02, red), (2e-3, 90, gray), (5e-3, 70, blue),
    }  # fmt: skip
    assert found["fit.lr"].get_xscale() == "log"
    assert found["fit.batch"].get_xscale() == "linear"
    assert [tick.get_text() for tick in found["fit.batch"].get_xticklabels()] == ["16", "32"]
    assert [tick.get_text() for tick in found["student.net.name"].get_xticklabels()] == ["large", "small"]
    assert (1, 50, orange) in dots(found["student.net.name"])


def test_of_a_loss_less_is_better_and_one_run_away_does_not_flatten_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*ROWS, (6, "complete", 5000.0, 1e-2, 16, "small", 1.0, "")]
    history = panels(written(tmp_path, rows), "loss", monkeypatch)["Loss on validation (lower is better)"]
    line = next(line for line in history.lines if line.get_drawstyle() == "steps-post")
    assert line.get_ydata()[-1] == 0.4
    assert 0.9 < history.get_ylim()[1] < 5


def test_a_key_without_a_value_is_left_out_of_its_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(0, "complete", 0.5, "", 16, "small", 1.0, STANDS), *ROWS[1:]]
    found = panels(written(tmp_path, rows), "accuracy", monkeypatch)
    assert len(dots(found["fit.lr"])) == 4
    assert len(dots(found["fit.batch"])) == 5


def test_it_is_a_picture(tmp_path: Path) -> None:
    image = imread(io.BytesIO(tuning.picture(written(tmp_path, ROWS), "macro_f1")))
    high, wide = image.shape[:2]
    assert high < wide
    assert len({tuple(pixel) for pixel in image[:, :, :3].reshape(-1, 3)[::37]}) > 4


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trials.csv: cannot be read \(No such file"):
        tuning.picture(tmp_path / "trials.csv", "loss")
    with pytest.raises(UserError, match="no trial in it has a value yet"):
        tuning.picture(written(tmp_path, [ROWS[2]]), "loss")
