"""What modules import: of the package only what is below them, and slow packages on use.

Training and conversion start soon because what imports slowly is imported where it is used.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW = {
    "torch",
    "tensorflow",
    "sklearn",
    "matplotlib",
    "tensorflow_datasets",
    "tensorboardX",
    "keras",
}


@pytest.mark.parametrize("module", ["train", "evaluate", "convert.keras", "convert.torch"])
def test_slow_packages_are_not_imported_at_the_start(module):
    program = f"import sys, jaxattn.{module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert SLOW.isdisjoint(done.stdout.split())


#: What of the package a folder of it imports, besides itself.
BELOW = {
    "ops": (),
    "models": ("ops", "convert.keras_order", "errors", "registry"),
    "data": ("ops", "runtime.devices", "errors", "files", "reading", "registry"),
}


def imported(path):
    """Dotted names of what a module imports from the package, wherever in it the import is."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("jaxattn."))


@pytest.mark.parametrize("folder", BELOW)
def test_nothing_is_imported_from_above(folder):
    below = tuple(f"jaxattn.{name}." for name in (folder, *BELOW[folder]))
    paths = sorted((ROOT / "jaxattn" / folder).rglob("*.py"))
    assert paths
    above = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        for name in imported(path)
        if not f"{name}.".startswith(below)
    ]
    assert not above
