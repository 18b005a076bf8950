"""The house in figures: prints the table of CONTRIBUTING.md; test_architecture.py holds the limits.

Run: python tests/house.py [FOLDER ...]. Standard library only; it reads the source and imports none of it.
"""

import ast
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "stillwatch"
# What may not be exceeded, and what the design wants. A limit only ever goes down, or up with a reason in its commit.
LIMITS = {
    "lines": (25_777, 16_000),
    "functions": (1_541, 1_100),
    "of them used once, %": (45, 45),
    "Any": (257, 300),
    "dict[str, Any]": (73, 80),
    'info["…"]': (1, 10),
    "docstring words": (14_953, 15_000),
    "functions over 60 lines": (1, 2),
    "files in the fullest folder": (9, 9),
    "import chain": (8, 8),
}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def import_graph(paths: list[Path], package: Path = PACKAGE) -> dict[str, set[str]]:
    """Each module's name -> the modules of ours that it imports at its top level."""
    names = {path: ".".join(["stillwatch", *path.relative_to(package).with_suffix("").parts]) for path in paths}
    known, graph = set(names.values()), {}
    for path, name in names.items():
        found = set()
        for node in parsed(path).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[name] = (found & known) - {name}
    return graph


def chain(graph: dict[str, set[str]]) -> int:
    """The longest path of imports. Raises AssertionError for a cycle."""
    depth: dict[str, int] = {}

    def walk(name: str, above: tuple[str, ...]) -> int:
        assert name not in above, f"a cycle: {' -> '.join((*above, name))}"
        if name not in depth:
            depth[name] = 1 + max((walk(inner, (*above, name)) for inner in graph[name]), default=0)
        return depth[name]

    return max(walk(name, ()) for name in graph)


def measure(paths: list[Path]) -> dict[str, float]:
    """What the house's table says of these files."""
    texts = {path: path.read_text() for path in paths}
    trees = {path: parsed(path) for path in paths}
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, FUNCTION)]
    documented = [
        n for t in trees.values() for n in ast.walk(t) if isinstance(n, (*FUNCTION, ast.ClassDef, ast.Module))
    ]
    private = once = 0
    for tree in trees.values():
        own = [n.name for n in tree.body if isinstance(n, FUNCTION) and re.match(r"_[^_]", n.name)]
        used = Counter(n.id for n in ast.walk(tree) if isinstance(n, ast.Name))
        private += len(own)
        once += sum(used[name] <= 1 for name in own)
    count = {
        key: sum(len(re.findall(key, text)) for text in texts.values())
        for key in (r"\bAny\b", r"dict\[str, Any\]", r"\binfo\[\"")
    }
    return {
        "lines": sum(text.count("\n") for text in texts.values()),
        "functions": len(functions),
        "private functions": private,
        "of them used once, %": round(100 * once / max(private, 1)),
        "Any": count[r"\bAny\b"],
        "dict[str, Any]": count[r"dict\[str, Any\]"],
        'info["…"]': count[r"\binfo\[\""],
        "docstring words": sum(len((ast.get_docstring(node) or "").split()) for node in documented),
        "functions over 60 lines": sum((n.end_lineno or 0) - n.lineno >= 60 for n in functions),
        "files in the fullest folder": max(Counter(p.parent for p in paths if p.name != "__init__.py").values()),
    }  # fmt: skip


def modules(folder: Path = PACKAGE) -> list[Path]:
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]


if __name__ == "__main__":
    wanted = [Path(name) for name in sys.argv[1:]] or [PACKAGE]
    paths = sorted({path for name in wanted for path in modules(name)})
    figures: dict[str, float] = measure(paths)
    if not sys.argv[1:]:
        figures["import chain"] = chain(import_graph(paths))
    for key, value in figures.items():
        limit, wanted = LIMITS.get(key, ("", "")) if not sys.argv[1:] else ("", "")
        print(f"{key:32}{value:>8}   {f'at most {limit}, wanted {wanted}' if limit else ''}".rstrip())
