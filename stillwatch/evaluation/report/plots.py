"""The pictures of a comparison, as PNG. No pyplot: its global state leaks."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from stillwatch.evaluation.pooling import ModelKey
from stillwatch.run import KINDS

Panel: TypeAlias = Callable[[Axes], None]
Record: TypeAlias = Mapping[str, Any]  # a part of report.json
Models: TypeAlias = Mapping[ModelKey, Record]
History: TypeAlias = Sequence[Record]  # one epoch each, as in metrics.jsonl
Histories: TypeAlias = Mapping[ModelKey, Sequence[History]]  # model -> run -> epoch

INK, FAINT, PALE = "#222222", "#767676", "#DDE3E8"
WIDE, NARROW = 10.0, 4.3  # inches: a desk and a phone
BETTER, WORSE = KINDS["distilled"].colour, KINDS["alone"].colour
RESERVE = ["#A2441B", "#8A7B00", "#6A51A3", "#444444", "#E8A0A0", "#4FA39A"]
PARTS = ["#4477AA", "#EE8866", "#BBCC33", "#AA4499", "#99DDFF", "#997700", "#BBBBBB"]
TURNED: dict[str, Any] = {"ha": "right", "rotation_mode": "anchor"}
METRIC_TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro-F1",
    "loss": "Loss",
    "ece": "Calibration error (ECE)",
    "auroc": "AUROC",
    "recall_at_1pct_fa": "Alarms raised at 1 % false alarms",
}
LOOK: dict[Any, Any] = {
    "text.parse_math": False,  # a label may hold a dollar sign
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 7,
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def png(size: tuple[float, float], paint: Callable[[Figure], None], h_pad: float = 0.06) -> bytes:
    """size: inches."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=size)
        figure.set_layout_engine("constrained", h_pad=h_pad)
        paint(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()


def panels_png(
    panels: Sequence[Panel], height: float, stacked: bool, columns: int = 3, legend: Mapping[str, str] | None = None
) -> bytes:
    """height: of one panel, inches. legend: name -> colour."""
    columns = 1 if stacked else min(columns, len(panels))
    rows = -(-len(panels) // columns)

    def paint(figure: Figure) -> None:
        for number, panel in enumerate(panels):
            panel(figure.add_subplot(rows, columns, number + 1))
        if legend:
            handles = [Patch(color=colour, label=name) for name, colour in legend.items()]
            across = min(len(legend), 2 if stacked else 5)
            figure.legend(handles=handles, loc="outside upper center", ncols=across, handlelength=1.0)

    size = (NARROW if stacked else WIDE, rows * height + (0.35 if legend else 0))
    return png(size, paint, 0.1 if stacked else 0.06)


def colours(keys: Sequence[ModelKey]) -> dict[ModelKey, str]:
    """The same in every picture."""
    reserve, chosen = iter(RESERVE * len(keys)), dict[ModelKey, str]()
    for key in keys:
        wanted = KINDS[key.kind].colour if key.kind in KINDS else ""
        chosen[key] = wanted if wanted and wanted not in chosen.values() else next(reserve)
    return chosen


# ---- a comparison of models


def bars(models: Models, stacked: bool = False) -> bytes:
    """models: {key: {"accuracy", "loss", "params" | None, "ci95"}}."""
    paint = colours(list(models))
    crowded = len(models) > 4 or max(len(word) for key in models for word in key.title.split()) > 11

    def panel(figure: str, title: str, scale: float, form: str, axes: Axes) -> None:
        top = 0.0
        for x, (key, model) in enumerate(models.items()):
            value, ends = (model[figure] or 0) * scale, (model.get("ci95") or {}).get(figure)
            axes.bar(x, value, color=paint[key], width=0.66)
            high = max(value, ends[1] * scale) if ends else value
            if ends:
                axes.vlines(x, ends[0] * scale, ends[1] * scale, color=INK, linewidth=1.3)
            text = form.format(value) if model[figure] is not None else "not recorded"
            _note(axes, text, (x, high), (0, 3), ha="center", weight="bold", fontsize=9 if len(models) < 5 else 7)
            top = max(top, high)
        titles = [key.title if crowded else _wrap(key.title) for key in models]
        axes.set_xticks(range(len(models)), titles, **({"rotation": 50, **TURNED} if crowded else {}))
        axes.set(title=title, ylim=(0, top * 1.14 or 1))
        axes.grid(axis="y")

    panels = [
        partial(panel, "accuracy", "Accuracy, % (higher is better)", 100, "{:.1f}"),
        partial(panel, "loss", "Loss (lower is better)", 1, "{:.3f}"),
        partial(panel, "params", "Size, million parameters", 1e-6, "{:.2f}"),
    ]
    return panels_png(panels, 4.0 if crowded else 3.1, stacked)


def confusions(models: Models, labels: Sequence[str], stacked: bool = False) -> bytes:
    """Coloured by row, with counts. models: {key: {"confusion": (K,K), rows = true}}."""
    k = len(labels)
    short = [label if len(label) < 18 else label[:16] + "…" for label in labels]
    long = max(map(len, short)) * k > 18  # names that would touch one another

    def panel(key: ModelKey, axes: Axes) -> None:
        table = np.asarray(models[key]["confusion"], float)
        share = table / np.maximum(table.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in zip(*np.nonzero(table), strict=True):
            text = f"{100 * share[i, j]:.0f}" + (" %" if k <= 3 else "") + (f"\n{table[i, j]:,.0f}" if k <= 6 else "")
            colour = "white" if share[i, j] > 0.55 else INK
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=10 if k <= 3 else 7)
        axes.set_xticks(range(k), short, **({"rotation": 40, **TURNED} if long else {}))
        axes.set_yticks(range(k), short)
        axes.set(title=_wrap(key.title, 24), xlabel="predicted", ylabel="true")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    return panels_png([partial(panel, key) for key in models], (4.1 if stacked else 3.1) + 0.5 * long, stacked)


def curves(histories: Histories, stacked: bool = False) -> bytes:
    """Loss on train and validation, accuracy and macro-F1. Thick: mean over all runs."""
    paint = colours(list(histories))

    def panel(split: str, figure: str, title: str, scale: float, axes: Axes) -> None:
        for key, runs in histories.items():
            points = [[(row["epoch"], (row.get(split) or {}).get(figure)) for row in run] for run in runs]
            lines = [np.array([p for p in run if p[1] is not None]).reshape(-1, 2) * (1, scale) for run in points]
            lines = [line for line in lines if len(line)]
            for line in lines if len(lines) > 1 else []:
                axes.plot(line[:, 0], line[:, 1], color=paint[key], linewidth=0.8, alpha=0.35)
            if lines:
                common = min(len(line) for line in lines)
                mean, marker = np.mean([line[:common] for line in lines], axis=0), "o" if common < 12 else ""
                axes.plot(mean[:, 0], mean[:, 1], color=paint[key], linewidth=2, marker=marker, markersize=3)
        _epochs(axes, title=title)
        axes.grid(axis="y")

    panels = [
        partial(panel, "train", "loss", "Training loss (its own mix of parts)", 1),
        partial(panel, "valid", "loss", "Validation loss", 1),
        partial(panel, "valid", "accuracy", "Validation accuracy, %", 100),
        partial(panel, "valid", "macro_f1", "Validation macro-F1, %", 100),
    ]
    return panels_png(panels, 2.5, stacked, 2, {key.title: paint[key] for key in histories})


def shares(histories: Histories, stacked: bool = False) -> bytes:
    """Parts of the training loss, mean over a model's runs."""

    def parts_of(run: History) -> Mapping[str, float]:
        return (run[0].get("train") or {}).get("share") or {} if run else {}

    parts = list(dict.fromkeys(part for runs in histories.values() for run in runs for part in parts_of(run)))
    paint = dict(zip(parts, PARTS * (1 + len(parts) // len(PARTS)), strict=False))

    def panel(key: ModelKey, axes: Axes) -> None:
        runs = [run for run in histories[key] if parts_of(run)]
        rows = list(zip(*runs, strict=False))  # the epochs that all of them reached
        epochs = [row[0]["epoch"] for row in rows]
        mine = [part for part in parts if any(part in parts_of(run) for run in runs)]
        table = [[100 * np.mean([one["train"]["share"].get(part, 0) for one in row]) for row in rows] for part in mine]
        if len(rows) == 1:  # one epoch has no area
            epochs, table = [epochs[0] - 0.5, epochs[0] + 0.5], [row * 2 for row in table]
        if table:
            axes.stackplot(epochs, table, colors=[paint[part] for part in mine], edgecolor="white", linewidth=0.6)
        _epochs(axes, title=key.title, ylabel="share of the loss, %", ylim=(0, 100))
        axes.margins(x=0)

    return panels_png([partial(panel, key) for key in histories], 2.8, stacked, legend=paint)


def reliability(models: Models, stacked: bool = False) -> bytes:
    """models: {key: {"reliability": from metrics.reliability, "ece": float}}."""
    paint = colours(list(models))

    def panel(key: ModelKey, axes: Axes) -> None:
        bins = models[key]["reliability"]
        x, y, count = (np.array([b[name] for b in bins], float) for name in ("confidence", "accuracy", "count"))
        x, y = 100 * x, 100 * y
        axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1, linestyle="--", zorder=1)
        axes.vlines(x, x, y, color=paint[key], linewidth=2, alpha=0.4)
        axes.plot(x, y, color=paint[key], linewidth=1, alpha=0.5)
        axes.scatter(x, y, s=14 + 220 * count / count.sum(), color=paint[key], edgecolor="white", zorder=3)
        axes.set(title=f"{_wrap(key.title, 24)}: ECE {models[key]['ece']:.3f}", xlim=(0, 103), ylim=(-3, 103))
        axes.set(xlabel="probability it gave, %", ylabel="share that was right, %", aspect="equal")
        axes.grid()

    return panels_png([partial(panel, key) for key in models], 3.4, stacked)


def per_class(models: Models, labels: Sequence[str], stacked: bool = False) -> bytes:
    """models: {key: {"per_class": {label: {"f1", "support"}}}}."""
    paint, high = colours(list(models)), 0.8 / len(models)

    def panel(axes: Axes) -> None:
        for m, (key, model) in enumerate(models.items()):
            at = np.arange(len(labels)) + (m - (len(models) - 1) / 2) * high
            values = [100 * model["per_class"][label]["f1"] for label in labels]
            axes.barh(at, values, height=high * 0.92, color=paint[key])
            for y, value in zip(at, values, strict=True):
                _note(axes, f"{value:.0f}", (value, y), (3, 0), va="center", fontsize=7.5)
            support = [model["per_class"][label]["support"] for label in labels]
        axes.set_yticks(range(len(labels)), [f"{label}\nn = {n:,}" for label, n in zip(labels, support, strict=True)])
        axes.set(title="F1 by class, %", xlim=(0, 108), ylim=(len(labels) - 0.4, -0.6))
        axes.grid(axis="x")

    height = 0.9 + len(labels) * (0.17 * len(models) + 0.16)
    return panels_png([panel], height, stacked, legend={key.title: paint[key] for key in models})


def difference(verdict: Record, stacked: bool = False) -> bytes:
    """verdict: {"differences": {metric: {"difference", "ci95" | None, "by_seed"}}, "by_group": [{"group",
    "difference"}]}.
    """

    def zero(axes: Axes, title: str) -> None:
        reach = max(*map(abs, axes.get_xlim()), 1.0)
        axes.set(title=title, xlim=(-reach, reach), xlabel="← alone is better      distilled is better →")
        axes.axvline(0, color=INK, linewidth=1, zorder=1)
        axes.grid(axis="x")

    def metrics(axes: Axes) -> None:
        rows = verdict["differences"]
        for y, row in enumerate(rows.values()):
            value, ends, seeds = 100 * row["difference"], row["ci95"], row["by_seed"]
            colour = FAINT if not ends or ends[0] <= 0 <= ends[1] else BETTER if ends[0] > 0 else WORSE
            if ends:
                axes.hlines(y, 100 * ends[0], 100 * ends[1], color=colour, linewidth=3.5, alpha=0.55)
            if len(seeds) > 1:
                axes.plot([100 * d for d in seeds], [y + 0.22] * len(seeds), "|", color=FAINT, ms=7)
            axes.plot(value, y, "o", color=colour, markersize=8)
            _note(axes, f"{value:+.1f}", (value, y), (0, 8), ha="center", weight="bold")
        axes.set_yticks(range(len(rows)), [METRIC_TITLES.get(name, name) for name in rows])
        axes.set_ylim(len(rows) - 0.5, -0.65)
        zero(axes, "Distilled minus alone, points")

    def groups(axes: Axes) -> None:
        rows = sorted(verdict["by_group"], key=lambda row: row["difference"])
        values = [100 * row["difference"] for row in rows]
        colour = [BETTER if value > 0 else WORSE if value < 0 else FAINT for value in values]
        axes.hlines(range(len(rows)), 0, values, color=colour, linewidth=2)
        axes.scatter(values, range(len(rows)), color=colour, s=26, zorder=3)
        few = len(rows) <= 16
        axes.set_yticks(range(len(rows)) if few else [], [row["group"] for row in rows] if few else [])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        zero(axes, f"Accuracy, points, each of {len(rows)} groups")

    panels = [metrics, groups] if verdict["by_group"] else [metrics]
    return panels_png(panels, max(2.5, 0.9 + 0.22 * min(len(verdict["by_group"]), 16)), stacked)


def widths(runs: Sequence[Record], stacked: bool = False) -> bytes:
    """Channels of each layer, a panel a run.

    runs: [{"run", "widths": {"before", "after"}, "narrow" | None}], each {layer: outputs}.
    """
    pruned = KINDS["pruned"].colour

    def panel(run: Record, axes: Axes) -> None:
        before, after = run["widths"]["before"], run["widths"]["after"]
        axes.bar(range(len(before)), list(before.values()), width=1.0, color=PALE)
        axes.bar(range(len(before)), [after.get(layer, 0) for layer in before], width=0.72, color=pruned)
        if run.get("narrow"):
            line = [run["narrow"].get(layer, 0) for layer in before]
            axes.stairs(line, np.arange(len(before) + 1) - 0.5, color=INK, linewidth=1.1)
        axes.set(title=run["run"], xlabel="layer, from the picture to the answer", ylabel="channels")
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")

    legend = {"before": PALE, KINDS["pruned"].title: pruned}
    legend |= {KINDS["narrow"].title: INK} if any(run.get("narrow") for run in runs) else {}
    return panels_png([partial(panel, run) for run in runs], 2.6, stacked, 1, legend)


def _note(axes: Axes, text: str, at: tuple[float, float], offset: tuple[int, int], **style: Any) -> None:
    axes.annotate(text, at, xytext=offset, textcoords="offset points", **style)


def _epochs(axes: Axes, **words: Any) -> None:
    axes.set(xlabel="epoch", **words)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _wrap(words: str, fits: int = 9) -> str:
    return words.replace(": ", ":\n").replace(" ", "\n", fits < 20) if len(words) > fits else words
