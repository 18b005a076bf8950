"""The table of rooms in DESIGN §2, as a test: who may import whom, and which heavy libraries live where."""

import ast
from pathlib import Path

import house
import pytest

PACKAGE = Path(__file__).parent.parent / "stillwatch"
HEAVY = {
    "torch", "torchvision", "timm", "accelerate", "safetensors", "scipy", "sklearn", "matplotlib", "av", "onnxruntime",
    "fastapi", "typer", "rich", "click", "cv2", "numpy", "pydantic", "onnx", "onnxscript", "nncf", "torch_pruning",
    "optuna", "pnnx", "openvino", "ncnn", "ai_edge_litert", "uvicorn", "starlette", "paho", "apprise",
    "prometheus_client", "psycopg", "pyarrow", "jinja2", "ray", "upath", "tensorboard", "mlflow", "wandb",
    "huggingface_hub",
}  # fmt: skip
LIGHT = {"numpy", "cv2", "pydantic"}
REPORT = {"matplotlib", "jinja2"}
MAY = {  # a floor -> the floors below that it may import, the heavy libraries that it may
    "ground": ((), LIGHT | {"upath"}),
    "media": (("ground",), LIGHT | {"av", "huggingface_hub"}),
    "rules": (("ground", "media"), LIGHT),
    "inference": (
        ("ground", "media", "rules"),
        LIGHT | {"onnxruntime", "openvino", "ncnn", "ai_edge_litert", "pyarrow", "ray"},
    ),
    "lab": (
        ("ground", "media", "rules", "inference"),
        LIGHT
        | {"torch", "timm", "accelerate", "safetensors", "scipy", "sklearn", "huggingface_hub"}
        | {"jinja2", "onnx", "onnxscript", "nncf", "torch_pruning", "optuna", "pnnx", "openvino"},
    ),
    "evaluation": (("ground", "media", "rules", "inference"), LIGHT | {"sklearn", "scipy"}),
    "evaluation.report": (
        ("ground", "media", "rules", "inference", "evaluation"),
        LIGHT | {"sklearn", "scipy", "matplotlib", "jinja2"},
    ),
    "monitor": (
        ("ground", "media", "rules", "inference"),
        LIGHT
        | {"av", "fastapi", "starlette", "uvicorn", "sse_starlette", "httpx"}
        | {"paho", "psycopg", "apprise", "prometheus_client"},
    ),
    "cli": (("ground", "media", "rules", "inference", "lab", "evaluation", "monitor"), {"typer", "rich", "numpy"}),
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def floor(path: Path) -> str:
    inner = path.relative_to(PACKAGE).parts
    if inner == ("__main__.py",):
        return "cli"
    if inner[:2] == ("evaluation", "report"):
        return "evaluation.report"
    return inner[0] if len(inner) > 1 else "ground"


def imports(tree: ast.AST) -> list[str]:
    """Every absolute module name that is imported, at the top or inside a function."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def test_modules_are_found() -> None:
    assert len(MODULES) >= 20
    assert {floor(path) for path in MODULES} == set(MAY)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_floor_may(path: Path) -> None:
    floors, libraries = MAY[floor(path)]
    for name in imports(house.parsed(path)):
        top, _, rest = name.partition(".")
        if top == "stillwatch" and rest:
            target = PACKAGE / rest.split(".")[0]
            theirs = rest.split(".")[0] if target.is_dir() else "ground"
            assert theirs in (*floors, floor(path).split(".")[0]), (
                f"{path.name} ({floor(path)}) imports {name} ({theirs})"
            )
        elif top in HEAVY:
            assert top in libraries, f"{path.name} ({floor(path)}) imports {top}"


def test_the_cli_imports_floors_only_inside_functions() -> None:
    floors = tuple(f"stillwatch.{name}" for name in ("lab", "evaluation", "monitor"))
    for path in (PACKAGE / "cli").glob("*.py"):
        body = house.parsed(path).body
        top = ast.Module([node for node in body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not [name for name in imports(top) if name.startswith(floors)], path


def test_imports_form_no_cycle_and_no_long_chain() -> None:
    assert 3 <= house.chain(house.import_graph(MODULES)) <= house.LIMITS["import chain"][0]


def test_the_house_does_not_grow_back() -> None:
    figures = house.measure(MODULES)
    assert {key: value for key, value in figures.items() if value > house.LIMITS.get(key, (value,))[0]} == {}
    assert figures["lines"] > 5_000


def test_every_module_opens_with_a_door_card() -> None:
    for path in MODULES:
        if path.name == "__init__.py" and path.parent != PACKAGE:
            assert not path.read_text().strip()
            continue
        card = ast.get_docstring(house.parsed(path))
        assert card, f"{path}: no card on the door"
        assert len(card.splitlines()) <= 6, f"{path}: the card is longer than 6 lines"


def test_no_room_is_called_utils() -> None:
    assert not [p for p in MODULES if p.stem in {"utils", "common", "helpers", "base", "core", "manager"}]
