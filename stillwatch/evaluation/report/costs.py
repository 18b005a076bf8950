"""Costs: the sections of a report on what compression cost, what was tried on the way, and what a bundle's files say.

In: the dict of report.json and the PNGs. Out: HTML, "" where a report has nothing of the kind.
Called by the page. It works out no figure: what it shows is in the dict.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from stillwatch.evaluation.report.markup import Painted, figure, known, percent, section, signed, span, table
from stillwatch.evaluation.report.plots import inline, title

Report = Mapping[str, Any]
MARKS = {"better": ("yes", "✓"), "worse": ("no", "✗"), "unclear": ("unclear", "?"), "same": ("yes", "=")}


def answers(report: Report) -> str:
    """The sentences, each under its question, as boxes: a bundle's files first, for they are what its report is on."""
    boxes = []
    for row in sorted(report["compression"], key=lambda row: row["about"] != "file"):
        if row["about"] == "narrow":  # the table has it; the question is whether pruning beats it
            continue
        look, mark = MARKS[row["outcome"]]
        if (row["about"], row["outcome"]) == ("baseline", "same"):  # no loss, and no victory either
            look = "unclear"
        boxes.append(
            f'<div class="verdict small {look}"><span class="mark" aria-hidden="true">{mark}</span>'
            f"<p><b>{escape(row['question'])}</b><br>{escape(row['sentence'])}</p></div>"
        )
    return "\n".join(boxes)


def sections(report: Report, painted: Painted) -> list[str]:
    """Everything about compression, in reading order."""
    return [
        section("The run and its files" if report.get("bundle") else "What compression cost", _prices(report)),
        section("What the exported files say", _bundle(report)),
        section("INT8, stage by stage", _stages(report["stages"])),
        section("Pruning, step by step", figure(painted, "widths"), _steps(report["steps"])),
    ]


def _prices(report: Report) -> str:
    """A line a model that is compared: what it is, and how far it is from what it came of."""
    rows = report["compression"]
    if not rows:
        return ""
    concerned = {name for row in rows for name in (row["base"], row["candidate"])}
    lines = []
    for name, model in report["models"].items():
        if name not in concerned:
            continue
        runtime = f" <i>{escape(model['runtime'])}</i>" if model["runtime"] else ""
        lines.append(
            (
                escape(title(name)) + runtime,
                f"<b>{percent(model['macro_f1'])}</b>{span(model['ci95']['macro_f1'], percent)}",
                "".join(_distance(row, model) for row in rows if row["candidate"] == name) or "–",
                known(_million(model["macs"]), "{:,.1f}"),
                known(_million(model["bytes"]), "{:,.2f}"),
                known(model["params"], "{:,}"),
            )
        )
    heads = ("", "Macro-F1", "Difference, points", "Multiply-adds, million", "MB", "Parameters")
    note = (
        "Difference: how far a model is from another one on the same samples, with the 95 % interval of that "
        "difference. It is narrower than the models' own intervals let expect, since both face the same people."
    )
    return f'{table(heads, lines)}<p class="read">{note}</p>'


def _distance(row: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    part = f", fold {', '.join(map(str, row['folds']))}" if row["folds"] != model["folds"] else ""
    if row["outcome"] == "same":
        return f"<div><b>the same</b> <i>as {escape(inline(row['base']))}{part}</i></div>"
    base = f"<i>from {escape(inline(row['base']))}{part}</i>"
    return f"<div><b>{signed(row['difference'])}</b> {base}{span(row['ci95'], signed)}</div>"


def _million(value: float | None) -> float | None:
    return None if value is None else value / 1e6


# ---- INT8


def _stages(tried: Sequence[Mapping[str, Any]]) -> str:
    """tried: as compression.stages gives it."""
    rows = [
        (
            f"{escape(str(stage['name']))}{_of(one, tried)}<small>{_fate(stage, one)}</small>",
            known(_hundred(stage.get("macro_f1")), "{:.1f} %"),
            known(stage.get("drop"), "{:.2f}").replace("-", "−"),
            known(stage.get("ms"), "{:.2f}"),
            known(stage.get("fp32_ms"), "{:.2f}"),
            known(_million(stage.get("bytes")), "{:.2f}"),
            known(stage.get("flips"), "{:,}"),
            known(_hundred(stage.get("accuracy")), "{:.1f} %"),
            escape(str(stage.get("runtime") or "–")),
        )
        for one in tried
        for stage in one["stages"]
    ]
    if not rows:
        return ""
    heads = ("", "Macro-F1", "Drop, points", "ms", "FP32, ms", "MB", "Other answers", "Accuracy", "Fastest in")
    heats = sorted({f"{one['temperature']:.2f}" for one in tried if one.get("temperature")})
    note = (
        "On the validation split, which alone decides here. ms: median of one sample on one thread of the machine that "
        "quantised; FP32, ms: the float file's in the same race. What loses too much or is no faster stays in this "
        "table only."
    )
    if heats:
        note += (
            f" An INT8 run answers by its file, whose probabilities are calibrated (logits divided by "
            f"{' or '.join(heats)}): that changes its loss and its calibration error (ECE), no answer and no macro-F1."
        )
    return f'{table(heads, rows)}<p class="read">{note}</p>'


def _fate(stage: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """What became of a stage."""
    why = escape(str(stage.get("why") or ""))
    if stage.get("precision") == "fp32":
        return "the float file: what the others are measured by"
    if not stage.get("kept"):
        return "left out" + (f": {why}" if why else "")
    return "✓ kept" if stage["name"] == one["stage"] else "good enough, but another one is better"


def _of(one: Mapping[str, Any], several: Sequence[Any]) -> str:
    """Whose row this is, where there are several runs."""
    return f" <i>{escape(one['run'])}</i>" if len(several) > 1 else ""


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value


# ---- pruning


def _steps(runs: Sequence[Mapping[str, Any]]) -> str:
    """runs: as compression.steps gives them."""
    rows = []
    for run in runs:
        before = run["before"] or {}
        lines = [
            ("before", before, run["best"]),
            *((f"step {step['step']}", step, step.get("valid")) for step in run["steps"]),
        ]
        for name, cost, valid in lines:
            shares = [_share(cost, before, key) for key in ("macs", "params")]
            figures = [known(_hundred((valid or {}).get(key)), "{:.1f} %") for key in ("macro_f1", "accuracy")]
            rows.append((name + _of(run, runs), *shares, *figures))
    heads = ("", "Multiply-adds, million", "Parameters", "Macro-F1, validation", "Accuracy, validation")
    return table(heads, rows) if rows else ""


def _share(cost: Mapping[str, Any], before: Mapping[str, Any], key: str) -> str:
    value, whole = cost.get(key), before.get(key)
    if value is None:
        return "–"
    said = f"{value / 1e6:,.1f}" if key == "macs" else f"{value:,}"
    return said + (f"<small>{100 * value / whole:.0f} %</small>" if whole else "")


# ---- a bundle's files


def _bundle(report: Report) -> str:
    found = report.get("bundle")
    if not found:
        return ""
    rows = [
        (
            escape(file["name"]),
            f"{100 * file['top1_agreement']:.2f} %",
            "–" if file["decision_flips"] is None else f"{file['decision_flips']:,} of {file['n']:,}",
            f"{file['max_difference']:.1e}" if file["max_difference"] < 1e-3 else f"{file['max_difference']:.3f}",
            f"{file['bytes'] / 1e6:,.2f}",
            escape(file["precision"]),
            escape(file["runtime"]),
        )
        for file in found["files"]
    ]
    heads = ("", "Same answer", "Alarms flipped", "Off by at most", "MB", "Precision", "Runtime")
    note = (
        "Each file against the run itself in PyTorch, at the bundle's temperature. Off: the largest difference of any "
        f"probability. {_threshold(found['threshold'])}"
    )
    left = "".join(f"<li>{escape(str(one['name']))}: {escape(str(one['why']))}</li>" for one in found["left_out"])
    out = f"<h3>Tried and left out of the bundle</h3><ul>{left}</ul>" if left else ""
    return f'{table(heads, rows)}<p class="read">{note}{_temperature(report, found)}</p>{out}'


def _threshold(value: float | None) -> str:
    if value is None:
        return "The bundle has no operating threshold, so there is no alarm to flip."
    return f"Flipped: the danger is at or above the bundle's threshold, {value:.3f}, by one and not by the other."


def _temperature(report: Report, found: Mapping[str, Any]) -> str:
    """Why the calibration error of the files is another one than the run's."""
    if not found["temperature"]:
        return ""
    file = next(row for row in report["compression"] if row["about"] == "file")
    before, after = (f"{report['models'][file[which]]['ece']:.3f}" for which in ("base", "candidate"))
    return (
        f" The files' probabilities are calibrated: their logits are divided by {found['temperature']['value']:.2f}, "
        f"chosen on validation. That changes no answer and no macro-F1; the calibration error (ECE) goes from {before} "
        f"to {after} on this split."
    )
