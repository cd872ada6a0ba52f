"""The widgets' scripts: one text each, in which nothing is defined twice."""

from __future__ import annotations

import re
import subprocess

import pytest

from dgemma_lab.frontend.scripts import LAB, bundled


@pytest.mark.parametrize(
    "name", ["canvas/canvas.js", "form/form.js", "race/race.js", "budget/budget.js"]
)
def test_scripts_are_one_text_each(name: str) -> None:
    text = bundled(name)
    assert not re.search(r"^import ", text, re.MULTILINE)
    assert text.count("export function node(") == 1 and "export default { render };" in text
    assert len(text) < 80_000
    assert re.search(r"^import \{", (LAB / name).read_text("utf-8"), re.MULTILINE)
    check = ["node", "--input-type=module", "--check"]
    done = subprocess.run(check, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
