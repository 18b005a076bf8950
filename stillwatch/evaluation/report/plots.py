"""Plots: the pictures of a report, each a function from plain figures to the bytes of one PNG.

In: dicts as in report.json, histories as in metrics.jsonl. Out: PNG bytes, wide (side by side) or stacked (a phone).
Called by the report. It opens no file and keeps no state: Figure objects only, no pyplot.
"""

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

Panel: TypeAlias = Callable[[Axes], Any]
Models: TypeAlias = Mapping[str, Mapping[str, Any]]
Histories: TypeAlias = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]  # model -> run -> epoch

INK, FAINT = "#222222", "#767676"
WIDE, NARROW = 10.0, 4.3  # inches: a desk and a phone


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour a model, the same in every picture: by kind, then from a reserve. Okabe and Ito's, safe for the
    colour-blind and told apart in gray print."""
    reserve, given = iter(RESERVE * len(names)), dict[str, str]()
    for name in names:
        wanted = KINDS.get(_kind(name)[0], ("", ""))[1]
        given[name] = wanted if wanted and wanted not in given.values() else next(reserve)
    return given


def title(name: str) -> str:
    """ "distilled" -> "Student distilled"; "violence/pruned-0.6" -> "violence: student pruned (0.6)"."""
    before, slash, last = name.rpartition("/")
    kind, how = _kind(name)
    words = KINDS[kind][0] + (f" ({how.replace('-', ' ')})" if how else "") if kind in KINDS else last
    return f"{before}: {words[0].lower()}{words[1:]}" if slash else words


def inline(name: str) -> str:
    """The title as it stands inside a sentence: "student distilled"."""
    words = title(name)
    return f"{words[0].lower()}{words[1:]}" if _kind(name)[0] in KINDS else words


def _kind(name: str) -> tuple[str, str]:
    """ "toy/pruned-0.6" -> ("pruned", "0.6")"""
    kind, _, how = name.rpartition("/")[2].partition("-")
    return kind, how


def bars(models: Models, stacked: bool = False) -> bytes:
    """Accuracy, loss and size of the models side by side: the figures of the violence paper, with intervals.

    models: {name: {"accuracy", "loss", "params" | None, "ci95"}}.
    """
    names = list(models)
    crowded = len(names) > 4 or max(len(word) for name in names for word in title(name).split()) > 11

    def panel(key: str, what: str, scale: float, form: str, axes: Axes) -> None:
        values = [(models[name][key] or 0) * scale for name in names]
        ends = [(models[name].get("ci95") or {}).get(key) for name in names]
        axes.bar(range(len(names)), values, color=list(colours(names).values()), width=0.66)
        top = 0.0
        for x, (value, end) in enumerate(zip(values, ends, strict=True)):
            high = end[1] * scale if end else value
            if end:
                axes.vlines(x, end[0] * scale, high, color=INK, linewidth=1.3)
            known = models[names[x]][key] is not None
            axes.annotate(
                form.format(value) if known else "not recorded",
                (x, max(value, high)),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontweight="bold",
                fontsize=9 if len(names) < 5 else 7,
            )
            top = max(top, value, high)
        turn: Any = {} if not crowded else {"rotation": 50, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(names)), [title(n) if turn else _wrap(title(n)) for n in names], **turn)
        axes.set(title=what, ylim=(0, top * 1.14 or 1))
        axes.grid(axis="y")

    return _draw(
        [
            partial(panel, "accuracy", "Accuracy, % (higher is better)", 100, "{:.1f}"),
            partial(panel, "loss", "Loss (lower is better)", 1, "{:.3f}"),
            partial(panel, "params", "Size, million parameters", 1e-6, "{:.2f}"),
        ],
        4.0 if crowded else 3.1,
        stacked,
    )


def confusions(models: Models, labels: Sequence[str], stacked: bool = False) -> bytes:
    """One confusion matrix a model: colour and percentage by row (of all that truly are X), counts below.

    models: {name: {"confusion": (K,K) rows = true}}.
    """
    k = len(labels)
    short = [label if len(label) < 18 else label[:16] + "…" for label in labels]
    long = max(map(len, short)) * k > 18  # names that would touch one another
    turn: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if long else {}

    def panel(name: str, axes: Axes) -> None:
        table = np.asarray(models[name]["confusion"], float)
        share = table / np.maximum(table.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(k, k):
            if table[i, j] == 0:
                continue
            count = f"\n{table[i, j]:,.0f}" if k <= 6 else ""
            colour = "white" if share[i, j] > 0.55 else INK
            percent = f"{100 * share[i, j]:.0f}" + (" %" if k <= 3 else "")
            axes.text(j, i, percent + count, ha="center", va="center", color=colour, fontsize=10 if k <= 3 else 7)
        axes.set_xticks(range(k), short, **turn)
        axes.set_yticks(range(k), short)
        axes.set(title=_wrap(title(name), 24), xlabel="predicted", ylabel="true")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    return _draw([partial(panel, name) for name in models], (4.1 if stacked else 3.1) + 0.5 * long, stacked)


def curves(histories: Histories, stacked: bool = False) -> bytes:
    """Learning curves: loss on train and validation, accuracy and macro-F1 on validation, by epoch.

    Thin lines are single runs, the thick one their mean over the epochs that all of them reached.
    """
    paint = colours(list(histories))

    def panel(split: str, key: str, what: str, scale: float, axes: Axes) -> None:
        for name, runs in histories.items():
            lines = [line for line in (_column(run, split, key) for run in runs) if len(line)]
            for line in lines if len(lines) > 1 else []:
                axes.plot(line[:, 0], line[:, 1] * scale, color=paint[name], linewidth=0.8, alpha=0.35)
            if lines:
                common = min(len(line) for line in lines)
                mean = np.mean([line[:common] for line in lines], axis=0)
                marker = "o" if common < 12 else ""
                axes.plot(mean[:, 0], mean[:, 1] * scale, color=paint[name], linewidth=2, marker=marker, markersize=3)
        axes.set(title=what, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")

    panels = [
        partial(panel, "train", "loss", "Training loss (its own mix of parts)", 1),
        partial(panel, "valid", "loss", "Validation loss", 1),
        partial(panel, "valid", "accuracy", "Validation accuracy, %", 100),
        partial(panel, "valid", "macro_f1", "Validation macro-F1, %", 100),
    ]
    return _draw(panels, 2.5, stacked, columns=2, legend={title(name): paint[name] for name in histories})


def shares(histories: Histories, stacked: bool = False) -> bytes:
    """What the training loss was made of: the share of each part by epoch, mean over the runs of a model."""
    parts = list(dict.fromkeys(part for runs in histories.values() for run in runs for part in _parts(run)))
    paint = dict(zip(parts, PARTS * (1 + len(parts) // len(PARTS)), strict=False))

    def panel(name: str, axes: Axes) -> None:
        runs = [run for run in histories[name] if run and _parts(run)]
        common = min((len(run) for run in runs), default=0)
        epochs = [row["epoch"] for row in runs[0][:common]] if runs else []
        own = [part for part in parts if any(part in _parts(run) for run in runs)]
        table = [
            [100 * np.mean([run[e]["train"]["share"].get(part, 0) for run in runs]) for e in range(common)]
            for part in own
        ]
        if common == 1:  # one epoch has no area
            epochs, table = [epochs[0] - 0.5, epochs[0] + 0.5], [row * 2 for row in table]
        if table:
            axes.stackplot(epochs, table, colors=[paint[part] for part in own], edgecolor="white", linewidth=0.6)
        axes.set(title=title(name), xlabel="epoch", ylabel="share of the loss, %", ylim=(0, 100))
        axes.margins(x=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return _draw([partial(panel, name) for name in histories], 2.8, stacked, legend=paint)


def reliability(models: Models, stacked: bool = False) -> bytes:
    """Is a probability of 80 % right 80 times in a hundred? Dots on the diagonal say yes; big dots hold many samples.

    models: {name: {"reliability": as metrics.reliability gives it, "ece": float}}.
    """
    paint = colours(list(models))

    def panel(name: str, axes: Axes) -> None:
        bins = models[name]["reliability"]
        x, y = [100 * b["confidence"] for b in bins], [100 * b["accuracy"] for b in bins]
        count = np.array([b["count"] for b in bins], float)
        axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1, linestyle="--", zorder=1)
        axes.vlines(x, x, y, color=paint[name], linewidth=2, alpha=0.4)
        axes.plot(x, y, color=paint[name], linewidth=1, alpha=0.5)
        axes.scatter(x, y, s=14 + 220 * count / count.sum(), color=paint[name], edgecolor="white", zorder=3)
        axes.set(
            title=f"{_wrap(title(name), 24)}: ECE {models[name]['ece']:.3f}",
            xlabel="probability it gave, %",
            ylabel="share that was right, %",
            xlim=(0, 103),
            ylim=(-3, 103),
            aspect="equal",
        )
        axes.grid()

    return _draw([partial(panel, name) for name in models], 3.4, stacked)


def per_class(models: Models, labels: Sequence[str], stacked: bool = False) -> bytes:
    """F1 of each class, a bar a model. models: {name: {"per_class": {label: {"f1", "support"}}}}."""
    names, paint = list(models), colours(list(models))
    high = 0.8 / len(names)

    def panel(axes: Axes) -> None:
        for m, name in enumerate(names):
            values = [100 * models[name]["per_class"][label]["f1"] for label in labels]
            at = np.arange(len(labels)) + (m - (len(names) - 1) / 2) * high
            axes.barh(at, values, height=high * 0.92, color=paint[name])
            for y, value in zip(at, values, strict=True):
                axes.annotate(
                    f"{value:.0f}", (value, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5
                )
        support = models[names[-1]]["per_class"]
        axes.set_yticks(range(len(labels)), [f"{label}\nn = {support[label]['support']:,}" for label in labels])
        axes.set(title="F1 by class, %", xlim=(0, 108), ylim=(len(labels) - 0.4, -0.6))
        axes.grid(axis="x")

    height = 0.9 + len(labels) * (0.17 * len(names) + 0.16)
    return _draw([panel], height, stacked, legend={title(name): paint[name] for name in names})


def difference(verdict: Mapping[str, Any], stacked: bool = False) -> bytes:
    """Distilled minus alone: each metric with its interval and its seeds, and the accuracy of each group.

    verdict: {"differences": {metric: {"difference", "ci95" | None, "by_seed"}}, "by_group": [{"group", "difference"}]}.
    """

    def metrics(axes: Axes) -> None:
        rows = list(verdict["differences"].items())
        for y, (_, row) in enumerate(rows):
            colour = _verdict_colour(row["ci95"])
            if row["ci95"]:
                axes.hlines(y, *(100 * end for end in row["ci95"]), color=colour, linewidth=3.5, alpha=0.55)
            if len(row["by_seed"]) > 1:
                axes.plot([100 * d for d in row["by_seed"]], [y + 0.22] * len(row["by_seed"]), "|", color=FAINT, ms=7)
            axes.plot(100 * row["difference"], y, "o", color=colour, markersize=8)
            axes.annotate(
                f"{100 * row['difference']:+.1f}",
                (100 * row["difference"], y),
                xytext=(0, 8),
                textcoords="offset points",
                ha="center",
                fontweight="bold",
            )
        axes.set_yticks(range(len(rows)), [METRICS.get(name, name) for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.65)
        _zero(axes, "Distilled minus alone, points")

    def groups(axes: Axes) -> None:
        rows = sorted(verdict["by_group"], key=lambda row: row["difference"])
        values = [100 * row["difference"] for row in rows]
        colour = [DISTILLED if value > 0 else ALONE if value < 0 else FAINT for value in values]
        axes.hlines(range(len(rows)), 0, values, color=colour, linewidth=2)
        axes.scatter(values, range(len(rows)), color=colour, s=26, zorder=3)
        few = len(rows) <= 16
        axes.set_yticks(range(len(rows)) if few else [], [row["group"] for row in rows] if few else [])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        _zero(axes, f"Accuracy, points, each of {len(rows)} groups")

    panels: list[Panel] = [metrics, groups] if verdict["by_group"] else [metrics]
    return _draw(panels, max(2.5, 0.9 + 0.22 * min(len(verdict["by_group"]), 16)), stacked)


def widths(runs: Sequence[Mapping[str, Any]], stacked: bool = False) -> bytes:
    """Channels of every layer before and after pruning, and of the narrower student; one panel a run.

    runs: [{"run", "widths": {"before", "after"}, "narrow" | None}], each of the three {layer: outputs}.
    """

    def panel(run: Mapping[str, Any], axes: Axes) -> None:
        before, after = (run["widths"][key] for key in ("before", "after"))
        at = np.arange(len(before))
        axes.bar(at, list(before.values()), width=1.0, color="#DDE3E8")
        axes.bar(at, [after.get(layer, 0) for layer in before], width=0.72, color=KINDS["pruned"][1])
        if run.get("narrow"):
            line = [run["narrow"].get(layer, 0) for layer in before]
            axes.stairs(line, np.arange(len(before) + 1) - 0.5, color=INK, linewidth=1.1)
        axes.set(title=run["run"], xlabel="layer, from the picture to the answer", ylabel="channels")
        axes.margins(x=0.01)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")

    paint = {"before": "#DDE3E8", title("pruned"): KINDS["pruned"][1]}
    paint |= {title("narrow"): INK} if any(run.get("narrow") for run in runs) else {}
    return _draw([partial(panel, run) for run in runs], 2.6, stacked, columns=1, legend=paint)


def _zero(axes: Axes, what: str) -> None:
    low, high = axes.get_xlim()
    reach = max(abs(low), abs(high), 1.0)
    axes.set_xlim(-reach, reach)
    axes.axvline(0, color=INK, linewidth=1, zorder=1)
    axes.set_title(what)
    axes.set_xlabel("← alone is better      distilled is better →")
    axes.grid(axis="x")


def _verdict_colour(ends: Sequence[float] | None) -> str:
    if not ends or ends[0] <= 0 <= ends[1]:
        return FAINT
    return DISTILLED if ends[0] > 0 else ALONE


def _column(run: Sequence[Mapping[str, Any]], split: str, key: str) -> np.ndarray[Any, Any]:
    """(E,2) epoch and value, of the rows that have it."""
    found = [(row["epoch"], row[split][key]) for row in run if (row.get(split) or {}).get(key) is not None]
    return np.array(found, float).reshape(-1, 2)


def _parts(run: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(run[0]["train"].get("share") or {}) if run and "train" in run[0] else []


def _wrap(words: str, fits: int = 9) -> str:
    return words.replace(": ", ":\n").replace(" ", "\n", fits < 20) if len(words) > fits else words


def _draw(
    panels: Sequence[Panel],
    height: float,
    stacked: bool,
    columns: int = 3,
    legend: Mapping[str, str] | None = None,
) -> bytes:
    """Panels in rows of `columns`, or below one another; height: of one panel, inches."""
    columns = 1 if stacked else min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(LOOK):
        size = (NARROW if stacked else WIDE, rows * height + (0.35 if legend else 0))
        figure = Figure(figsize=size)
        figure.set_layout_engine("constrained", h_pad=0.1 if stacked else 0.06)
        for number, panel in enumerate(panels):
            panel(figure.add_subplot(rows, columns, number + 1))
        if legend:
            across = min(len(legend), 2 if stacked else 5)
            handles = [Patch(color=colour, label=name) for name, colour in legend.items()]
            figure.legend(handles=handles, loc="outside upper center", ncols=across, handlelength=1.0)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=170, metadata={"Software": None})
    return buffer.getvalue()


ALONE, DISTILLED = "#D98200", "#009E73"
KINDS = {  # kind -> words, colour
    "teacher": ("Teacher", "#0072B2"),
    "alone": ("Student alone", ALONE),
    "distilled": ("Student distilled", DISTILLED),
    "narrow": ("Student narrower", "#9AA3AB"),
    "pruned": ("Student pruned", "#CC79A7"),
    "quantised": ("Student INT8", "#56B4E9"),
}
RESERVE = ["#A2441B", "#8A7B00", "#6A51A3", "#444444", "#E8A0A0", "#4FA39A"]
PARTS = ["#4477AA", "#EE8866", "#BBCC33", "#AA4499", "#99DDFF", "#997700", "#BBBBBB"]
METRICS = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro-F1",
    "loss": "Loss",
    "ece": "Calibration error (ECE)",
    "auroc": "AUROC",
    "recall_at_1pct_fa": "Alarms raised at 1 % false alarms",
}
LOOK: Any = {
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
