"""The rooms of evals/: each imports those below it alone, and none of its files grows long."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "evals"
BELOW = {
    "commands": {"comparison", "bench", "harness", "writers", "tasks"},
    "comparison": {"harness", "writers", "tasks"},
    "bench": {"writers"},
    "harness": {"writers", "tasks"},
    "writers": set(),
    "tasks": set(),
}
EVERYBODYS = {"energy", "hashes", "machine", "page", "resident", "saving"}


def imported(file: Path) -> set[str]:
    """Rooms and everybody's modules that a file imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "dgemma_evals":
                found |= set(parts[1:2]) or {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_those_below_it(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        assert imported(file) <= BELOW[room] | EVERYBODYS | {room}, file
        assert len(file.read_text().splitlines()) <= 450, file


def test_all_rooms_are_known() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(BELOW)
    for name in EVERYBODYS:
        assert imported(ROOT / f"{name}.py") <= EVERYBODYS
