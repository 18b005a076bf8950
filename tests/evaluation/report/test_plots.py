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

from stillwatch.evaluation.pooling import ModelKey
from stillwatch.evaluation.report import plots
from stillwatch.run import KINDS

LABELS = ["Safe", "Phone with $ and a very long name", "Yawn"]


def key(kind: str, recipe: str = "", variant: str = "") -> ModelKey:
    return ModelKey(recipe, "", kind, variant)


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


EPOCH = {"epoch": 1, "train": {"loss": 1.0}}
PAIR = {key("teacher"): model(0.9), key("distilled"): model(0.8)}
RUNS = {
    key("alone"): [history({"ce": 1.0})],
    key("distilled"): [history({"ce": 0.3, "kd": 0.7}), history({"ce": 0.4, "kd": 0.6}, 3)],
}
LAYERS = {
    "run": "toy-pruned-001",
    "widths": {"before": {"stem": 16, "body": 64, "end": 32}, "after": {"stem": 8, "body": 16, "end": 32}},
    "narrow": {"stem": 8, "body": 40, "end": 24},
}
MANY = {key(kind, recipe): model(k=10) for recipe in ("one", "two") for kind in ("teacher", "alone", "distilled")}
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
    assert {name for name in public if not name.startswith("_")} - {"colours", "png", "panels_png"} == set(ALL)
    assert len(ALL) == 8


def test_the_same_figures_give_the_same_bytes() -> None:
    assert plots.bars(PAIR) == plots.bars(PAIR)
    assert plots.bars(PAIR) != plots.bars(PAIR | {key("distilled"): model(0.7)})


def test_a_bar_is_as_high_as_its_figure() -> None:
    """Two models with one size each: the areas of their colours stand like their figures, panel by panel."""
    small = {"accuracy": 0.3, "loss": 0.2, "params": 1_000_000, "ci95": {}}
    large = {"accuracy": 0.9, "loss": 0.6, "params": 3_000_000, "ci95": {}}
    png = plots.bars({key("teacher"): large, key("distilled"): small})
    paint = plots.colours([key("teacher"), key("distilled")])
    assert area(png, paint[key("teacher")]) / area(png, paint[key("distilled")]) == pytest.approx(3, rel=0.03)


def test_the_difference_is_green_for_better_orange_for_worse_and_gray_for_unclear() -> None:
    for ends, colour in (([0.01, 0.03], plots.BETTER), ([-0.05, -0.01], plots.WORSE), ([-0.01, 0.03], plots.FAINT)):
        png = plots.difference(verdict(0, ends))
        found = {name: area(png, name) for name in (plots.BETTER, plots.WORSE, plots.FAINT)}
        assert max(found, key=lambda name: found[name]) == colour


def test_shares_fill_the_picture_as_they_say() -> None:
    png = plots.shares({key("distilled"): [history({"ce": 0.25, "kd": 0.75})]})
    assert area(png, plots.PARTS[1]) / area(png, plots.PARTS[0]) == pytest.approx(3, rel=0.05)


def test_what_pruning_left_is_painted_as_high_as_it_is() -> None:
    """Two runs of one layer: the areas left stand like the channels left."""
    colour = KINDS["pruned"].colour

    def left(channels: int) -> int:
        return area(plots.widths([{"run": "r", "widths": {"before": {"a": 100}, "after": {"a": channels}}}]), colour)

    assert (left(90) - left(30)) / (left(60) - left(30)) == pytest.approx(2, rel=0.05)


def test_long_names_of_files_are_turned() -> None:
    """Four files' names side by side would run into one another."""
    short = {key(name): model() for name in ("teacher", "alone", "distilled", "pruned")}
    long = {key(name): model() for name in ("distilled", "model.onnx", "model-int8.onnx", "model-legacy.onnx")}
    assert pixels(plots.bars(long)).shape[0] > pixels(plots.bars(short)).shape[0]


def test_odd_input_is_drawn_too() -> None:
    bare = {"accuracy": 0.0, "loss": 0.0, "params": None, "ci95": {}}
    drawn = [
        plots.bars({key("alone"): bare}),
        plots.bars(MANY),
        plots.confusions({key("alone"): model(k=10)}, [str(i) for i in range(10)]),
        plots.confusions({key("alone"): model() | {"confusion": np.zeros((3, 3)).tolist()}}, LABELS, True),
        plots.curves(
            {key("alone"): [history({"ce": 1.0}, 1)], key("teacher"): [[{"epoch": 1, "train": {"loss": 1.0}}]]}
        ),
        plots.shares({key("distilled"): [history({"ce": 0.5, "kd": 0.5}, 1)]}),
        plots.per_class(MANY, [str(i) for i in range(10)]),
        plots.difference(verdict(43, None)),
        plots.widths([LAYERS | {"narrow": None}, LAYERS | {"narrow": {"stem": 8}}]),
    ]
    assert len([pixels(png) for png in drawn]) == 9


def test_names_and_colours_keep_their_meaning() -> None:
    pruned = key("pruned", variant="0.6")
    int8, file = key("quantised", "toy", "pruned-0.6"), key("model-int8.onnx")
    assert (key("distilled").name, key("distilled").title) == ("distilled", "Student distilled")
    assert (key("teacher", "violence").name, key("teacher", "violence").title) == (
        "violence/teacher", "violence: teacher",
    )  # fmt: skip
    assert (pruned.name, pruned.title) == ("pruned-0.6", "Student pruned (0.6)")
    assert (int8.name, int8.title) == ("toy/quantised-pruned-0.6", "toy: student INT8 (pruned 0.6)")
    assert ModelKey("toy", "smallcnn-2", "alone").name == "toy/smallcnn-2/alone"
    assert file.title == file.inline == "model-int8.onnx"
    assert key("narrow", variant="0.6").inline == "student narrower (0.6)"
    assert key("alone", "toy").inline == "toy: student alone"
    three = plots.colours([key("teacher"), key("alone"), key("distilled")])
    assert plots.colours([key("distilled")]) == {key("distilled"): three[key("distilled")]}
    assert plots.colours([key("distilled", "x"), key("teacher", "x")])[key("teacher", "x")] == three[key("teacher")]
    assert len(set(plots.colours(list(MANY)).values())) == 6
    every = [*map(key, KINDS), key("pruned", variant="0.3"), key("model.onnx"), file]
    assert len(set(plots.colours(every).values())) == len(every)
    assert plots.colours([pruned])[pruned] == KINDS["pruned"].colour


def test_pyplot_stays_away() -> None:
    """Its global figures would leak memory in a long process, and it looks for a screen."""
    draw = "shares({ModelKey('', '', 'a'): [[{'epoch': 1, 'train': {'share': {'ce': 1}}}]]})"
    imports = "import sys; from stillwatch.evaluation.report.plots import ModelKey, shares"
    code = f"{imports}; {draw}; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
