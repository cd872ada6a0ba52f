"""What `dgemma_lab` offers by name, and what importing it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import dgemma_lab

CHECK = """
import json, sys
import dgemma_lab
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def test_importing_the_lab_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not set(json.loads(done.stdout)) & {"torch", "numpy", "plotly", "anywidget", "IPython"}


def test_every_public_name_is_there() -> None:
    wanted = {"Canvas", "Session", "Race", "Playground", "Steering", "Budget"}
    assert wanted <= set(dgemma_lab.__all__) == set(dir(dgemma_lab))
    assert all(callable(getattr(dgemma_lab, name)) for name in dgemma_lab.__all__)
