"""Imports point downwards only, by their full names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = {
    "ppl": set(),
    "inference": {"ppl"},
    "models": {"ppl", "inference"},
    "lm_bridge": {"ppl", "inference"},
}


def imported_modules(path: Path) -> set[str]:
    """Names of the modules that a file imports, wherever in the file it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_of(module: str) -> str | None:
    package, _, rest = module.partition(".")
    return rest.split(".")[0] if package == "motes" else None


@pytest.mark.parametrize("layer", BELOW)
def test_imports_point_downwards(layer):
    for path in (ROOT / layer).rglob("*.py"):
        used = {layer_of(module) for module in imported_modules(path)} - {None}
        assert used <= BELOW[layer] | {layer}, f"{path} imports from {used}"


@pytest.mark.parametrize("folder", [*BELOW, "tests", "examples", "benchmarks"])
def test_imports_spell_the_umbrella(folder):
    for path in (ROOT / folder).rglob("*.py"):
        bare = {module.split(".")[0] for module in imported_modules(path)} & set(BELOW)
        assert not bare, f"{path} imports {bare} without motes"


def test_the_check_sees_an_upward_import(tmp_path):
    file = tmp_path / "upward.py"
    file.write_text("def f():\n    from motes.models import local_level\n")
    assert {layer_of(module) for module in imported_modules(file)} == {"models"}
