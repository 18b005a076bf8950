"""Card: a bundle's CARD.md: what it may and may not be used for, and how well it does, in plain words.

In: the manifest, sizes of the files, figures of the test. Out: the text. Called by pack. It works out no figure.
"""

from collections.abc import Mapping
from typing import Any

from stillwatch.bundle import Manifest

HOW = {
    "grouped": "nobody of the test is in training (grouped split)",
    "official": "the data set's own split, which may leak: see the audit",
    "ratio": "a random split, which leaks where neighbouring frames fall on both sides",
}


def card(manifest: Manifest, sizes: Mapping[str, int], frames: int, tested: Mapping[str, Any] | None) -> str:
    """sizes: bytes by file name. frames: how many golden frames. tested: metrics.scores of the test split, or None."""
    run, recipe = manifest.run, manifest.run["recipe"]
    watched = [label for label in manifest.labels if label not in manifest.safe]
    lines = [
        f"# {manifest.name}",
        "",
        f"Watches for: {', '.join(watched)}. Ordinary: {', '.join(manifest.safe) or 'no label is declared safe'}.",
        "",
        "## What it is for, and what not",
        "",
        "A helper that draws a person's attention to a picture. It is no safety device, meets no regulation that we",
        "know of, and identifies nobody. Nothing should happen to a person on its word alone.",
        "It knows cameras, light and people like those it learnt from; on others its figures are lower, and nothing",
        "here says how much lower. Measure it on your own camera before you trust it.",
        "",
        f"Licence: {manifest.licence}",
        "",
        "## How well it does",
        "",
        *_figures(manifest, recipe, tested),
        "",
        "## Files",
        "",
        "| file | precision | kB | accuracy | macro-F1 | ECE | furthest from PyTorch | other class | other alarm |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_file(model, sizes) for model in manifest.models),
        "",
        f"Figures of the files are of the validation split. Before it starts, the detector replays {frames} drawn or",
        "noise frames (golden.npz) and refuses a file that does not give on this machine what it gave on ours.",
        *_left_out(manifest),
        "",
        "## Where it comes from",
        "",
        f"Run {run['id']} ({run['kind']}), from {run['parent'] or 'no parent'}, taught by {_teacher(run)}; "
        f"commit {run['commit']}; data {run['fingerprint']}; stillwatch {manifest.stillwatch}; {manifest.created}.",
        "The resolved recipe is in bundle.json.",
        "",
    ]
    return "\n".join(lines)


def _teacher(run: Mapping[str, Any]) -> str:
    return str(run["teacher"] or (run["parent"] if run["kind"] == "distilled" else None) or "nobody")


def _figures(manifest: Manifest, recipe: Mapping[str, Any], tested: Mapping[str, Any] | None) -> list[str]:
    lines = [f"Split: {HOW[recipe['data']['split']]}."]
    if tested:
        who = f" in {tested['groups']} groups" if tested["named"] else ""
        between = f" (95 % interval {tested['ci95'][0]:.3f} to {tested['ci95'][1]:.3f})" if tested["ci95"] else ""
        lines += [
            "",
            f"Test, {tested['n']:,} samples{who}, of the net before export: accuracy {tested['accuracy']:.1%}, "
            f"macro-F1 {tested['macro_f1']:.3f}{between}.",
            "",
            "| class | precision | recall | F1 | samples |",
            "|---|---|---|---|---|",
            *(
                f"| {label} | {row['precision']:.2f} | {row['recall']:.2f} | {row['f1']:.2f} | {row['support']} |"
                for label, row in tested["per_class"].items()
            ),
        ]
    if manifest.temperature:
        heat = manifest.temperature
        lines += [
            "",
            f"Probabilities are calibrated: temperature {heat['value']:.2f}, fitted on validation, takes the "
            f"calibration error there from {heat['ece_before']:.3f} to {heat['ece_after']:.3f}.",
        ]
    if manifest.operating:
        point = manifest.operating
        lines += [
            "",
            f"Operating threshold {point['threshold']:.4f} on 1 - p(safe): on validation "
            f"{point['false_alarm_rate']:.2%} of {point['safe']:,} safe frames alarm (wanted: at most "
            f"{point['wanted']:.2%}), and {point['recall']:.0%} of the {point['others']:,} others do.",
            "These are single frames; the rule that makes alarms of them waits for more than one.",
        ]
    return lines


def _file(model: Any, sizes: Mapping[str, int]) -> str:
    valid, parity = model.figures["valid"], model.figures["parity"]
    kilobytes = sum(sizes[name] for name in model.files) / 1000
    flips = "–" if parity["decision_flips"] is None else f"{parity['decision_flips']} of {parity['n']}"
    return (
        f"| {model.name} | {model.precision} | {kilobytes:.0f} | {valid['accuracy']:.1%} | {valid['macro_f1']:.3f} | "
        f"{valid['ece']:.3f} | {parity['max_difference']:.1e} | {1 - parity['top1_agreement']:.2%} | {flips} |"
    )


def _left_out(manifest: Manifest) -> list[str]:
    if not manifest.left_out:
        return []
    return ["", "Tried and left out:", "", *(f"- {one['name']}: {one['why']}" for one in manifest.left_out)]
