"""A report as one HTML file without script or network. Computes no figure."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from stillwatch.evaluation.pooling import ModelKey
from stillwatch.evaluation.report.plots import METRIC_TITLES

Plots: TypeAlias = Mapping[str, tuple[bytes, bytes]]  # file name -> PNG for a desk, PNG for a phone
Album: TypeAlias = Mapping[str, tuple[str, bytes]]  # sample id -> media type, picture

SHOWN_METRICS = {  # key -> format, scale, unit, which way is better
    "accuracy": (".1f", 100, " %", "↑"),
    "balanced_accuracy": (".1f", 100, " %", "↑"),
    "macro_f1": (".1f", 100, " %", "↑"),
    "auroc": (".3f", 1, "", "↑"),
    "recall_at_1pct_fa": (".1f", 100, " %", "↑"),
    "loss": (".3f", 1, "", "↓"),
    "ece": (".3f", 1, "", "↓"),
}


def page(report: Mapping[str, Any], keys: Mapping[str, ModelKey], plots: Plots, album: Album) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "percent": lambda value: number(value, ".1f", 100, " %"),
        "signed": lambda value: number(value, "+.1f", 100).replace("-", "−"),
        "data_url": lambda content, kind: f"data:{kind};base64,{base64.b64encode(content).decode()}",
        "title": lambda name: keys[name].title,
        "inline": lambda name: keys[name].inline,
    }
    return environment.get_template("report.html").render(
        report=report, plots=plots, album=album, shown_metrics=SHOWN_METRICS, metric_titles=METRIC_TITLES
    )


def number(value: float | None, spec: str = "", scale: float = 1, unit: str = "") -> str:
    """value * scale; a dash for None."""
    return "–" if value is None else f"{value * scale if scale != 1 else value:{spec}}{unit}"
