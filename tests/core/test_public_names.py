"""What `import dgemma_core` offers, and what type checkers are told of it."""

import re
from importlib import import_module
from pathlib import Path

import dgemma_core


def test_the_stub_and_the_homes_agree() -> None:
    stub = Path(dgemma_core.__file__).with_suffix(".pyi").read_text()
    told = re.findall(r"^from dgemma_core\.([\w.]+) import (\w+) as \2$", stub, re.MULTILINE)
    homes = [(home, name) for home, names in dgemma_core._HOMES.items() for name in names]
    assert sorted(told) == sorted(homes)
    for home, name in homes:
        assert getattr(dgemma_core, name) is getattr(import_module(f"dgemma_core.{home}"), name)
