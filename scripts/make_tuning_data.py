"""Writes a task that nano has never seen as JSON Lines: three generators of reasoning-gym that its table leaves out.

    python scripts/make_tuning_data.py --out runs/data [--train 10000] [--test 500] [--tasks spiral_matrix …]

DIR/TASK.jsonl holds prompts and completions for `dgemma tune`, DIR/TASK.test.jsonl unseen problems with the seeds that
they come from, so that reasoning-gym's own `score_answer` can judge. No prompt stands in both. The questions are put
in few words, since nano reads 2,048 kinds of token and was trained on short prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import reasoning_gym
from tqdm.auto import tqdm

Entry = dict[str, Any]
TRAIN_SEED, TEST_SEED = 0, 1_000_000
DRAWN = 500
"""Problems that one seeded dataset of reasoning-gym gives here."""


@dataclass(frozen=True)
class Task:
    """A generator's settings, and how its problems are put."""

    name: str
    settings: Mapping[str, Any]
    ask: Callable[[Entry], str]


def _matrix(entry: Entry) -> str:
    return "\n".join(" ".join(map(str, row)) for row in entry["metadata"]["matrix"])


TASKS = {
    task.name: task
    for task in (
        Task(
            "spiral_matrix",
            {"min_n": 3, "max_n": 3},
            lambda e: f"Spiral, clockwise from the top left:\n{_matrix(e)}",
        ),
        Task(
            "palindrome_generation",
            {"min_length": 3, "max_length": 7},
            lambda e: f"Make a palindrome of all letters: {' '.join(e['metadata']['letters'])}",
        ),
        Task(
            "binary_matrix",
            {"min_n": 4, "max_n": 4},
            lambda e: f"Steps to the nearest 0:\n{_matrix(e)}",
        ),
    )
}


@cache
def dataset(name: str, seed: int) -> Any:
    """One seeded dataset of a task."""
    return reasoning_gym.create_dataset(name, size=DRAWN, seed=seed, **TASKS[name].settings)


def problems(name: str, first: int) -> Iterator[tuple[int, int, Entry]]:
    """(seed, number, entry), without end."""
    seed = first
    while True:
        for number, entry in enumerate(dataset(name, seed)):
            yield seed, number, entry
        seed += DRAWN  # problem i of seed s is problem 0 of seed s + i


def score(name: str, record: Mapping[str, Any], text: str) -> bool:
    """Whether a text solves a record of the test file, by reasoning-gym's own verifier."""
    drawn = dataset(name, record["seed"])
    return bool(drawn.score_answer(text.strip(), drawn[record["number"]]) >= 1.0)


def records(name: str, first: int, count: int, seen: set[str]) -> Iterator[dict[str, Any]]:
    """So many problems whose prompts are not in `seen`, and are from now on."""
    for seed, number, entry in problems(name, first):
        prompt = TASKS[name].ask(entry)
        if prompt in seen:
            continue
        seen.add(prompt)
        yield {"prompt": prompt, "completion": str(entry["answer"]), "seed": seed, "number": number}
        count -= 1
        if not count:
            return


def write(folder: Path, name: str, train: int, test: int) -> tuple[Path, Path]:
    """Both files of a task."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    files = folder / f"{name}.jsonl", folder / f"{name}.test.jsonl"
    # the unseen ones first, so that they are the same whatever the number of examples
    for file, first, count in ((files[1], TEST_SEED, test), (files[0], TRAIN_SEED, train)):
        rows = tqdm(records(name, first, count, seen), total=count, desc=file.name, disable=None)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/data"))
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    arguments = parser.parse_args()
    for name in arguments.tasks:
        write(arguments.out, name, arguments.train, arguments.test)


if __name__ == "__main__":
    main()
