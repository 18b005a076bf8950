"""A bundle's CARD.md from its template: what it may and may not be used for, and how well it does, in plain words."""

from collections.abc import Mapping
from pathlib import Path

from stillwatch.bundle import Manifest


def card(manifest: Manifest, sizes: Mapping[str, int], frames: int, tested: Mapping[str, object] | None) -> str:
    """sizes: bytes by file name. frames: how many golden frames. tested: metrics.scores of the test split, or None."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(),  # on for HTML; Markdown stays as it is
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("CARD.md").render(
        manifest=manifest,
        run=manifest.run,
        heat=manifest.temperature,
        point=manifest.operating,
        kilobytes={model.name: sum(sizes[name] for name in model.files) / 1000 for model in manifest.models},
        frames=frames,
        tested=tested,
    )
