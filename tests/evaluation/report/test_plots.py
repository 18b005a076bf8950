import io
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from stillwatch.evaluation.report import plots

LABELS = ["Safe", "Phone with $ and a very long name", "Yawn"]


def model(accuracy: float = 0.8, k: int = 3) -> dict[str, Any]:
    table = np.full((k, k), 5.0) + np.eye(k) * 90
    labels = LABELS if k == 3 else [str(i) for i in range(k)]
    return {
        "accuracy": accuracy,
        "loss": 1 - accuracy,
        "params": 2_000_000,
        "ece": 0.1,
        "ci95": {"accuracy": [accuracy - 0.02, accuracy + 0.02], "loss": None},
        "confusion": table.tolist(),
        "reliability": [
            {"confidence": 0.5, "accuracy": 0.4, "count": 9},
            {"confidence": 0.9, "accuracy": 1.0, "count": 1},
        ],
        "per_class": {label: {"f1": accuracy, "support": 100} for label in labels},
    }


def history(parts: dict[str, float], epochs: int = 4) -> list[dict[str, Any]]:
    figures = {"loss": 0.5, "accuracy": 0.8, "macro_f1": 0.7}
    return [
        {"epoch": e + 1, "train": {"loss": 1 / (e + 1), "parts": parts, "share": parts}, "valid": figures}
        for e in range(epochs)
    ]


def verdict(groups: int, ends: list[float] | None) -> dict[str, Any]:
    row = {"difference": 0.02, "ci95": ends, "by_seed": [0.01, 0.03]}
    by_group = [{"group": f"g{i}", "difference": 0.01 * (i - 2)} for i in range(groups)]
    return {"differences": {"accuracy": row, "macro_f1": row}, "by_group": by_group}


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG")
    return (imread(io.BytesIO(png))[..., :3] * 255).round().astype(int)


def area(png: bytes, colour: str) -> int:
    """How many pixels are of exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels(png) == wanted).all(-1).sum())


PAIR = {"teacher": model(0.9), "distilled": model(0.8)}
RUNS = {
    "alone": [history({"ce": 1.0})],
    "distilled": [history({"ce": 0.3, "kd": 0.7}), history({"ce": 0.4, "kd": 0.6}, 3)],
}
LAYERS = {
    "run": "toy-pruned-001",
    "widths": {"before": {"stem": 16, "body": 64, "end": 32}, "after": {"stem": 8, "body": 16, "end": 32}},
    "narrow": {"stem": 8, "body": 40, "end": 24},
}
MANY = {f"{recipe}/{kind}": model(k=10) for recipe in ("one", "two") for kind in ("teacher", "alone", "distilled")}
ALL: dict[str, Callable[[bool], bytes]] = {
    "bars": partial(plots.bars, PAIR),
    "confusions": partial(plots.confusions, PAIR, LABELS),
    "curves": partial(plots.curves, RUNS),
    "shares": partial(plots.shares, RUNS),
    "reliability": partial(plots.reliability, PAIR),
    "per_class": partial(plots.per_class, PAIR, LABELS),
    "difference": partial(plots.difference, verdict(5, [0.01, 0.03])),
    "widths": partial(plots.widths, [LAYERS]),
}


@pytest.mark.parametrize("name", ALL)
def test_wide_for_a_desk_and_narrow_for_a_phone(name: str) -> None:
    before = dict(matplotlib.rcParams)
    wide, stacked = pixels(ALL[name](False)), pixels(ALL[name](True))
    assert wide.shape[1] == pytest.approx(plots.WIDE * 170, abs=1)
    assert stacked.shape[1] == pytest.approx(plots.NARROW * 170, abs=1)
    assert stacked.shape[0] / stacked.shape[1] > wide.shape[0] / wide.shape[1]
    assert min(wide.std(), stacked.std()) > 10  # something is drawn
    assert dict(matplotlib.rcParams) == before  # and no state is left behind


def test_every_plot_is_tried() -> None:
    public = {name for name, thing in vars(plots).items() if getattr(thing, "__module__", "") == plots.__name__}
    assert {name for name in public if not name.startswith("_")} - {"colours", "title", "inline"} == set(ALL)
    assert len(ALL) == 8


def test_the_same_figures_give_the_same_bytes() -> None:
    assert plots.bars(PAIR) == plots.bars(PAIR)
    assert plots.bars(PAIR) != plots.bars(PAIR | {"distilled": model(0.7)})


def test_a_bar_is_as_high_as_its_figure() -> None:
    """Two models with one size each: the areas of their colours stand like their figures, panel by panel."""
    small = {"accuracy": 0.3, "loss": 0.2, "params": 1_000_000, "ci95": {}}
    large = {"accuracy": 0.9, "loss": 0.6, "params": 3_000_000, "ci95": {}}
    png = plots.bars({"teacher": large, "distilled": small})
    paint = plots.colours(["teacher", "distilled"])
    assert area(png, paint["teacher"]) / area(png, paint["distilled"]) == pytest.approx(3, rel=0.03)


def test_the_difference_is_green_for_better_orange_for_worse_and_gray_for_unclear() -> None:
    for ends, colour in (([0.01, 0.03], plots.DISTILLED), ([-0.05, -0.01], plots.ALONE), ([-0.01, 0.03], plots.FAINT)):
        png = plots.difference(verdict(0, ends))
        found = {name: area(png, name) for name in (plots.DISTILLED, plots.ALONE, plots.FAINT)}
        assert max(found, key=lambda name: found[name]) == colour


def test_shares_fill_the_picture_as_they_say() -> None:
    png = plots.shares({"distilled": [history({"ce": 0.25, "kd": 0.75})]})
    assert area(png, plots.PARTS[1]) / area(png, plots.PARTS[0]) == pytest.approx(3, rel=0.05)


def test_what_pruning_left_is_painted_as_high_as_it_is() -> None:
    """Two runs of one layer: the areas left stand like the channels left."""
    colour = plots.KINDS["pruned"][1]

    def left(channels: int) -> int:
        return area(plots.widths([{"run": "r", "widths": {"before": {"a": 100}, "after": {"a": channels}}}]), colour)

    assert (left(90) - left(30)) / (left(60) - left(30)) == pytest.approx(2, rel=0.05)


def test_long_names_of_files_are_turned() -> None:
    """Four files' names side by side would run into one another."""
    short = {name: model() for name in ("teacher", "alone", "distilled", "pruned")}
    long = {name: model() for name in ("distilled", "model.onnx", "model-int8.onnx", "model-legacy.onnx")}
    assert pixels(plots.bars(long)).shape[0] > pixels(plots.bars(short)).shape[0]


def test_odd_input_is_drawn_too() -> None:
    bare = {"accuracy": 0.0, "loss": 0.0, "params": None, "ci95": {}}
    drawn = [
        plots.bars({"alone": bare}),
        plots.bars(MANY),
        plots.confusions({"alone": model(k=10)}, [str(i) for i in range(10)]),
        plots.confusions({"alone": model() | {"confusion": np.zeros((3, 3)).tolist()}}, LABELS, True),
        plots.curves({"alone": [history({"ce": 1.0}, 1)], "teacher": [[{"epoch": 1, "train": {"loss": 1.0}}]]}),
        plots.shares({"distilled": [history({"ce": 0.5, "kd": 0.5}, 1)]}),
        plots.per_class(MANY, [str(i) for i in range(10)]),
        plots.difference(verdict(43, None)),
        plots.widths([LAYERS | {"narrow": None}, LAYERS | {"narrow": {"stem": 8}}]),
    ]
    assert len([pixels(png) for png in drawn]) == 9


def test_names_and_colours_keep_their_meaning() -> None:
    assert plots.title("distilled") == "Student distilled"
    assert plots.title("violence/teacher") == "violence: teacher"
    assert plots.title("pruned-0.6") == "Student pruned (0.6)"
    assert plots.title("toy/quantised-pruned-0.6") == "toy: student INT8 (pruned 0.6)"
    assert plots.title("model-int8.onnx") == plots.inline("model-int8.onnx") == "model-int8.onnx"
    assert plots.inline("narrow-0.6") == "student narrower (0.6)" and plots.inline("toy/alone") == "toy: student alone"
    three = plots.colours(["teacher", "alone", "distilled"])
    assert plots.colours(["distilled"]) == {"distilled": three["distilled"]}
    assert plots.colours(["x/distilled", "x/teacher"])["x/teacher"] == three["teacher"]
    assert len(set(plots.colours(list(MANY)).values())) == 6
    every = [*plots.KINDS, "pruned-0.3", "model.onnx", "model-int8.onnx"]
    assert len(set(plots.colours(every).values())) == len(every)
    assert plots.colours(["pruned-0.6"])["pruned-0.6"] == plots.KINDS["pruned"][1]


def test_pyplot_stays_away() -> None:
    """Its global figures would leak memory in a long process, and it looks for a screen."""
    draw = "plots.shares({'a': [[{'epoch': 1, 'train': {'share': {'ce': 1}}}]]})"
    code = f"import sys; from stillwatch.judge import plots; {draw}; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
