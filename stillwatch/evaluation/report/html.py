"""Page: a report as one HTML file that needs nothing else: no script, no network, fit for a phone and for paper.

In: the dict of report.json, the PNGs, and the pictures of the mistakes. Out: the text of report.html.
Called by the report. It works out no figure: what it shows is in the dict.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

from stillwatch.evaluation.report import costs
from stillwatch.evaluation.report.markup import (
    Painted,
    bare,
    data,
    figure,
    interval,
    known,
    listed,
    percent,
    section,
    signed,
    span,
    table,
    three,
)
from stillwatch.evaluation.report.plots import METRICS, inline, title
from stillwatch.evaluation.report.words import HOW, STYLE, WORDS

Pictures: TypeAlias = Mapping[str, tuple[str, bytes]]  # sample id -> media type, file


def page(report: Mapping[str, Any], painted: Painted, pictures: Pictures) -> str:
    """report: as in report.json. painted: name -> (wide, stacked) PNG. pictures: sample id -> (media type, bytes)."""
    sections = [
        _head(report),
        _others(report),
        _warnings(report["warnings"]),
        *costs.sections(report, painted),
        section("Accuracy, loss, size", figure(painted, "accuracy-loss-size"), _scores(report), _clips(report)),
        section(f"Does the difference hold?{_of(report)}", figure(painted, "difference"), _pairs(report["verdict"])),
        section("New people, known people", _seen(report)),
        section("Which classes it confuses", figure(painted, "confusion")),
        section("Class by class", figure(painted, "per-class"), _classes(report)),
        section("Can its probabilities be believed?", figure(painted, "reliability")),
        section("How they learnt", figure(painted, "curves"), figure(painted, "loss-parts")),
        _mistakes(report["mistakes"], pictures),
        section("How this was made", _made(report)),
        section("What the words mean", _words()),
    ]
    name = escape(report["recipe"])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}: report</title>'
        f"<style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main></body></html>\n"
    )


# ---- the top


def _head(report: Mapping[str, Any]) -> str:
    split, verdict = report["split"], report["verdict"]
    tested = HOW[split["how"]]
    groups = f" in {split['groups']} groups" if split["groups"] else ""
    tried, folds = split["tested"], split["folds"]
    part = f", all {folds} folds" if len(tried) == folds else f", fold {listed(tried)} of {folds}"
    part = "" if split["how"] == "official" else part
    majority = split["majority"]
    under = (
        f"{split['n']:,} {escape(split['name'])} samples{groups}{part}; {tested}. "
        f"Always answering {escape(majority['label'])} would be right {percent(majority['accuracy'])} of the time."
    )
    question = "did distillation help?" if verdict else "report"
    if report["compression"]:
        question = "did distillation help, and what did compression cost?" if verdict else "what did compression cost?"
    if report.get("bundle"):
        question = "is the bundle as good as its run?"
    families = report.get("comparisons", {"": report})
    said = "\n".join(_verdict(family, row["verdict"]) for family, row in families.items() if row["verdict"])
    return (
        f'<header><h1>{escape(report["recipe"])}: {question}</h1><p class="under">{under}</p></header>\n'
        f"{said}\n{costs.answers(report)}\n{_tiles(report)}"
    )


def _verdict(family: str, verdict: Mapping[str, Any]) -> str:
    mark = {"yes": "✓", "no": "✗", "unclear": "?"}[verdict["helped"]]
    name = f"<b>{escape(family)}</b><br>" if family else ""
    return (
        f'<div class="verdict {verdict["helped"]}"><span class="mark" aria-hidden="true">{mark}</span>'
        f"<p>{name}{escape(verdict['sentence'])}</p></div>"
    )


def _tiles(report: Mapping[str, Any]) -> str:
    models = report["models"]
    which = report["mistakes"]["model"]
    shown = models[which]
    tiles = [(f"{100 * shown['accuracy']:.1f}", " %", f"accuracy, {inline(which)}")]
    tiles.append((f"{100 * shown['macro_f1']:.1f}", " %", "macro-F1: every class counts the same"))
    price = [row for row in report["compression"] if row["candidate"] == which and row["about"] != "baseline"][-1:]
    for row in price:
        for key, what in (("macs", "multiply-adds"), ("bytes", "bytes")):
            if row["ratio"][key]:
                tiles.append((f"{100 * row['ratio'][key]:.0f}", " %", f"of the {what} of {inline(row['base'])}"))
    if report["compression_ratio"] and not price:
        tiles.append((f"{report['compression_ratio']:.2f}", "×", "fewer parameters than its teacher"))
    if report["retention"] and not price:
        tiles.append((f"{100 * report['retention']:.1f}", " %", "of the teacher's accuracy kept"))
    if shown["recall_at_1pct_fa"] is not None:
        tiles.append((f"{100 * shown['recall_at_1pct_fa']:.0f}", " %", "of dangers alarmed at 1 % false alarms"))
    cells = "".join(
        f"<div><b>{value}<small>{unit}</small></b><span>{escape(what)}</span></div>" for value, unit, what in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _others(report: Mapping[str, Any]) -> str:
    """One line a recipe, where several are compared."""
    rows = []
    for family, row in report.get("comparisons", {}).items():
        gain = (row["verdict"] or {}).get("difference")
        change = "–" if gain is None else signed(gain) + span(row["verdict"]["ci95"], signed)
        rows.append(
            (escape(family), known(row["compression_ratio"], "{:.2f}×"), known(row["retention"], "{:.1%}"), change)
        )
    heads = ("", "Compression", "Retention", "Distilled − alone, macro-F1 points")
    return section("Recipe by recipe", table(heads, rows)) if rows else ""


def _warnings(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<section class="beware"><h2>Before you rely on this</h2><ul>{items}</ul></section>'


# ---- tables


def _scores(report: Mapping[str, Any]) -> str:
    models, verdict = report["models"], report["verdict"]
    gains = verdict["differences"] if verdict and "comparisons" not in report else {}
    heads = ["", *(escape(title(name)) for name in models), *(["Distilled − alone, points"] if gains else [])]
    rows = []
    for key, (show, better) in SHOWN.items():
        cells = [_score(model, key, show) for model in models.values()]
        if gains:
            gain = gains.get(key)
            cells.append(f"{signed(gain['difference'])}{span(gain['ci95'], signed)}" if gain else "")
        rows.append((f"{METRICS[key]} <i>{better}</i>", *cells))
    for key, (what, form) in SIZES.items():
        rows.append(
            (what, *(known(_scaled(model[key], key), form) for model in models.values()), *([""] if gains else []))
        )
    note = (
        "Small print under a figure: its 95 % interval, by bootstrap over whole groups (and seeds), and ± the standard "
        "deviation between seeds. "
        "↑ more is better, ↓ less is better. – cannot be given here."
    )
    return table(heads, rows) + f'<p class="read">{note}</p>'


def _score(model: Mapping[str, Any], key: str, show: Callable[[float], str]) -> str:
    if model[key] is None:
        return "–"
    spread = model["spread"].get(key)
    between = f"<small>± {bare(show(spread))}</small>" if spread is not None else ""
    return f"<b>{show(model[key])}</b>{span(model['ci95'][key], show)}{between}"


def _clips(report: Mapping[str, Any]) -> str:
    models = {name: model for name, model in report["models"].items() if model["clips"]}
    if not models:
        return ""
    rows = [
        (METRICS[key], *(_score(model["clips"], key, show) for model in models.values()))
        for key, (show, _) in SHOWN.items()
        if key not in ("loss", "ece")
    ]
    count = next(iter(models.values()))["clips"]["n"]
    verdict = (report["verdict"] or {}).get("clips")
    said = ""
    if verdict:
        said = f" Distilled minus alone, macro-F1: {signed(verdict['difference'])} points{interval(verdict['ci95'])}."
    return (
        f"<h3>As whole clips</h3>{table(['', *(escape(title(name)) for name in models)], rows)}"
        f'<p class="read">{count:,} recordings, each counted once: the mean probability over its frames.{said}</p>'
    )


def _pairs(verdict: Mapping[str, Any] | None) -> str:
    if not verdict:
        return ""
    rows = []
    for pair in verdict["by_pair"]:
        cells = [str(pair["fold"]), str(pair["seed"])]
        for key in ("accuracy", "macro_f1"):
            found = pair[key]
            cells += [f"{100 * found['alone']:.1f}", f"{100 * found['distilled']:.1f}", signed(found["difference"])]
        rows.append(cells)
    heads = ("Fold", "Seed", "Accuracy alone", "distilled", "difference", "Macro-F1 alone", "distilled", "difference")
    better = sum(row["difference"] > 0 for row in verdict["by_group"])
    count = (
        f"The distilled student is more accurate for {better} of {len(verdict['by_group'])} groups. "
        if verdict["by_group"]
        else ""
    )
    note = f"{count}Each line below is one pair of runs with the same fold and seed; figures in percent."
    return f'<p class="read">{note}</p>{table(heads, rows)}'


def _seen(report: Mapping[str, Any]) -> str:
    rows = [
        (
            escape(title(name)),
            percent(gap["known"]),
            percent(gap["new"]),
            f"{100 * (gap['known'] - gap['new']):.1f} points",
        )
        for name, gap in ((name, model["seen"]) for name, model in report["models"].items())
        if gap
    ]
    note = (
        "Accuracy on held-back pictures of groups that training did see, and on groups it did not. A split that mixes "
        "groups measures the first; a camera in the street meets the second."
    )
    heads = ("", "Groups seen in training", "New groups", "Gap")
    return f'{table(heads, rows)}<p class="read">{note}</p>' if rows else ""


def _classes(report: Mapping[str, Any]) -> str:
    models = report["models"]
    support = next(iter(models.values()))["per_class"]
    top = "".join(f'<th colspan="3">{escape(title(name))}</th>' for name in models)
    heads = f"<tr><th></th><th></th>{top}</tr><tr><th>Class</th><th>Samples</th>"
    heads += "<th>Precision</th><th>Recall</th><th>F1</th>" * len(models) + "</tr>"
    rows = []
    for label in report["labels"]:
        safe = " <i>safe</i>" if label in report["safe"] else ""
        cells = [
            f"{100 * model['per_class'][label][key]:.1f}"
            for model in models.values()
            for key in ("precision", "recall", "f1")
        ]
        rows.append((escape(label) + safe, f"{support[label]['support']:,}", *cells))
    return table(heads, rows) + '<p class="read">In percent.</p>'


def _made(report: Mapping[str, Any]) -> str:
    rows = [
        (
            f"<span>{escape(run['id'])}</span>",
            escape(run["net"]),
            str(run["fold"]),
            str(run["seed"]),
            f"<span>{run['epochs']}{' (kept ' + str(run['best_epoch']) + ')' if run['best_epoch'] else ''}</span>",
            f"<span>{escape(run['parent'] or '–')}</span>",
            escape(run["commit"] or "–"),
            f"<code>{escape(run['command'] or '–')}</code>",
        )
        for run in report["runs"]
    ]
    heads = ("Run", "Net", "Fold", "Seed", "Epochs", "Parent", "Commit", "Command")
    split = report["split"]
    facts = (
        f"Written {escape(report['created'])}. Data fingerprint {escape(str(split['fingerprint']))}, "
        f"{escape(split['how'])} split with seed {split['seed']}. The same figures are in report.json."
    )
    return f'<p class="read">{facts}</p>{table(heads, rows, words=(0, 7))}'


def _mistakes(mistakes: Mapping[str, Any], pictures: Pictures) -> str:
    samples = mistakes["samples"]
    if not samples:
        return ""
    cells = []
    for sample in samples:
        kind, content = pictures.get(sample["id"], ("", b""))
        image = f'<img alt="" src="{data(kind, content)}">' if content else ""
        cells.append(
            f"<figure>{image}<figcaption><b>{escape(sample['predicted'])}</b> {100 * sample['probability']:.0f} %, "
            f"truly {escape(sample['true'])}<small>{escape(sample['id'])}</small></figcaption></figure>"
        )
    note = (
        f"{title(mistakes['model'])}: what it was surest of and wrong about, at most two of one recording with the "
        "same confusion. Some may be wrong labels."
    )
    if pictures:
        note += " These pictures come from the data set: mind its licence and the people in it before you pass this on."
    return section(
        "Its most confident mistakes", f'<p class="read">{note}</p><div class="mistakes">{"".join(cells)}</div>'
    )


def _words() -> str:
    items = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in WORDS.items())
    return f"<dl>{items}</dl>"


# ---- small pieces


def _scaled(value: float | None, key: str) -> float | None:
    return value if value is None or key == "params" else value / 1e6


def _of(report: Mapping[str, Any]) -> str:
    """Which of several comparisons the figures below are of."""
    return f" ({escape(next(iter(report['comparisons'])))})" if "comparisons" in report else ""


SHOWN: dict[str, tuple[Callable[[float], str], str]] = {
    "accuracy": (percent, "↑"),
    "balanced_accuracy": (percent, "↑"),
    "macro_f1": (percent, "↑"),
    "auroc": (three, "↑"),
    "recall_at_1pct_fa": (percent, "↑"),
    "loss": (three, "↓"),
    "ece": (three, "↓"),
}
SIZES = {
    "params": ("Parameters", "{:,}"),
    "macs": ("Multiply-adds a sample, million", "{:,.1f}"),
    "bytes": ("Weights, MB", "{:,.2f}"),
}
