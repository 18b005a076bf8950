"""What `make docs` adds: README and its neighbours, recipes, API, drawn pictures; and a check that no host is asked."""

import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
BESIDE = {
    "README.md": "index.md",
    "LAB.md": "lab.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
}
LOADS = re.compile(
    r"""<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=["'](?:https?:)?//|url\(["']?(?:https?:)?//|@import"""
)


def on_files(files: Files, config: Any) -> Files:
    made: dict[str, str | bytes] = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in BESIDE.items()}
    drawn = {f"pictures/{scene}.png": picture(scene) for scene in ("cabin", "street")}
    shown = "".join(f"\n![drawn by the toy]({name})\n" for name in drawn)
    made["index.md"] = str(made["index.md"]).replace("\n## ", f"{shown}\n## ", 1)
    made |= {"recipes.md": recipes(), "api.md": api()} | drawn
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between files of the repository -> between pages of the site; what is no page becomes plain text."""
    here = "" if page.file.src_uri in BESIDE.values() else "docs"

    def site(link: re.Match[str]) -> str:
        label, target, anchor = link[1], os.path.normpath(os.path.join(here, link[2])), link[3] or ""  # noqa: PTH118
        known = BESIDE.get(target) or (target[5:] if re.fullmatch(r"docs/\w+\.md", target) else "")
        known = known or ("recipes.md" if target.startswith("stillwatch/recipes/") else "")
        return f"[{label}]({known}{anchor})" if known else label

    return re.sub(r"(?<!!)\[([^]]+)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)", site, markdown)


def on_post_build(config: Any) -> None:
    for path in [*Path(config["site_dir"]).rglob("*.html"), *Path(config["site_dir"]).rglob("*.css")]:
        if found := LOADS.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path.name}: loads from another host: {found[0]}")


def recipes() -> str:
    folder = ROOT / "stillwatch" / "recipes"
    shown = ["# Recipes", "The shipped recipes, whole. Each opens with its command, time and result."]
    for path in sorted(folder.rglob("*.toml"), key=lambda path: (path.parent != folder, path)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        shown.append(f"## {name}\n\n```toml\n{path.read_text(encoding='utf-8')}```")
    return "\n\n".join(shown)


def api() -> str:
    from stillwatch import UserError, bundle, recipe, registry, run
    from stillwatch.inference import detector
    from stillwatch.rules import alarm

    shown = ["# API", "What other programs build on. A line of the docstring names shapes, units and errors."]
    for thing in (
        detector.Detector,
        bundle.load,
        alarm.Alarm,
        recipe.load,
        run.Run,
        registry.build,
        registry.resolve,
        UserError,
    ):
        shown.append(f"## {thing.__module__}.{thing.__qualname__}\n\n{documented(thing)}")
        members = inspect.getmembers(thing, inspect.isfunction) if inspect.isclass(thing) else []
        own = [
            m for n, m in members if (n[0] != "_" or n == "__call__") and m.__doc__ and m.__module__ == thing.__module__
        ]
        shown += [f"### `.{member.__name__}`\n\n{documented(member)}" for member in own]
    return "\n\n".join(shown)


def documented(thing: Any) -> str:
    signature = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", str(inspect.signature(thing)))
    return f"```python\n{thing.__name__}{signature}\n```\n\n{inspect.getdoc(thing) or ''}"


def picture(scene: str) -> bytes:
    """A strip of what the toy draws for each label."""
    import cv2
    import numpy as np

    from stillwatch.media import synthetic

    strip = np.hstack([synthetic.still(scene, label, 1, 0, (120, 160)) for label in synthetic.LABELS[scene]])
    return bytes(cv2.imencode(".png", strip[..., ::-1] if strip.ndim == 3 else strip)[1])
