"""Which module may import which, and how large the core may be."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "dgemma_core"
FIRST_HOUR = (
    "config", "layers", "experts", "cache", "model", "head", "samplers", "diffusion",
    "autoregression",
)  # fmt: skip
"""What a newcomer reads in an hour."""


def lines(*files: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in files)


@pytest.mark.subprocess
def test_the_contracts_of_pyproject_are_kept() -> None:
    command = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", ["dgemma_core", "dgemma_lab", "dgemma_evals"])
def test_no_imports_are_circular(package: str) -> None:
    """Those inside functions count; those for types alone do not."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    assert len(graph.modules) > 10
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_the_core_is_short() -> None:
    files = sorted(CORE.glob("*.py"))
    assert len(files) <= 20 and lines(*files) <= 4000
    assert [file.name for file in files if lines(file) > 450] == []
    assert lines(*(CORE / f"{name}.py" for name in FIRST_HOUR)) <= 2300
