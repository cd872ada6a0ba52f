"""Two writers, the same questions, turn by turn: what they answer, and what it costs them.

Every generation that is timed is scored, and every one that is scored was timed. For each document
the writers take turns (A B A B), so that whatever else the machine does falls on both alike. A
writer that is deterministic writes a document once, one that samples once a seed. Each generation
is recorded as it ends, and a run that was stopped goes on.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.task import Task
from tqdm import tqdm

from dgemma_core import DgemmaError, RequestError
from dgemma_core.events import Mode
from dgemma_evals.comparison.questions import (
    Document,
    documents,
    load_tasks,
    resolved,
    score,
    wording,
)
from dgemma_evals.harness.records import Records, sole_writer
from dgemma_evals.hashes import digest
from dgemma_evals.machine import environment, machine
from dgemma_evals.resident import peak_bytes
from dgemma_evals.writers.base import Writer
from dgemma_evals.writers.counting import Counts
from dgemma_evals.writers.options import Options

if TYPE_CHECKING:
    import pandas as pd

WARM_UP = 3
"""Unrecorded generations of each writer before the first that counts."""

_MAYBE_UNKNOWN = (
    "prompt_tokens",
    "passes",
    "denoising_steps",
    "prompt_seconds",
    "first_tokens",
    "first_seconds",
)

Overrides = tuple[tuple[str, Any], ...]
"""Sampler settings of a sweep's point, by name."""


@dataclass(frozen=True)
class Contestant:
    """A writer with the settings of one point of a sweep; () is the writer as it is."""

    side: str
    writer: Writer
    overrides: Overrides = ()

    @property
    def label(self) -> str:
        """As tables name it."""
        settings = ", ".join(f"{name}={value}" for name, value in self.overrides)
        return f"{self.writer.name} ({settings})" if settings else self.writer.name


@dataclass(frozen=True)
class Comparison:
    """All that was measured: one row of `table` a generation."""

    table: pd.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)


def contestants(
    model: Writer, baseline: Writer, sweep: Mapping[str, Sequence[Any]]
) -> list[Contestant]:
    """The model, the baseline, then every combination of the sweep's values."""
    points = itertools.product(*([(name, value) for value in sweep[name]] for name in sweep))
    swept = [Contestant("model", model, point) for point in points] if sweep else []
    return [Contestant("model", model), Contestant("baseline", baseline), *swept]


def parse_sweep(texts: Sequence[str], mode: Mode = "diffusion") -> dict[str, list[Any]]:
    """`steps=4,8 entropy_bound=.05,.1` → values by name; each combination must be valid in the mode."""
    sweep: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not (name and equals and values):
            raise RequestError(f"--sweep {text}: expected NAME=VALUE,VALUE, e.g. steps=4,8,16")
        sweep[name] = [_number(value) for value in values.split(",")]
    for point in itertools.product(*sweep.values()):
        Options.parse(mode, dict(zip(sweep, point, strict=True)))
    return sweep


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def run(
    entrants: Sequence[Contestant],
    questions: Sequence[Document],
    *,
    seeds: int,
    records: Records,
    quiet: bool = False,
) -> None:
    """Writes what is not recorded yet: for each document and seed, each contestant in turn."""
    turns = [
        (question, seed, entrant)
        for question in questions
        for seed in range(seeds)
        for entrant in entrants
        if seed == 0 or not entrant.writer.deterministic
    ]
    todo = [turn for turn in turns if records.get(_key(*turn)) is None]
    if not todo:
        return
    for entrant in entrants:
        for question in questions[:WARM_UP]:
            _write(entrant, question, 0)
    for question, seed, entrant in tqdm(todo, desc="compare", unit="text", disable=quiet or None):
        _reset_peak()
        at = time.time()
        answer, counts = _write(entrant, question, seed)
        records.add(
            {
                "key": _key(question, seed, entrant),
                "side": entrant.side,
                "task": question.task,
                "doc_id": question.doc_id,
                "seed": seed,
                "overrides": dict(entrant.overrides),
                "answer": answer,
                "counts": counts.to_json(),
                "began": at,
                "peak_bytes": _peak(),
            }
        )


def _write(entrant: Contestant, question: Document, seed: int) -> tuple[str, Counts]:
    instance = question.instances[entrant.side]
    written = entrant.writer.write(instance, seed, dict(entrant.overrides))
    return written.text, written.counts


def _key(question: Document, seed: int, entrant: Contestant) -> str:
    asked = list(question.instances[entrant.side].args)
    return digest(entrant.side, entrant.overrides, question.task, question.doc_id, asked, seed)


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> int:
    """Bytes: of this generation on a GPU; of the process so far on a CPU."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return peak_bytes()


def tabulate(
    entrants: Sequence[Contestant],
    questions: Sequence[Document],
    tasks: Mapping[str, Task],
    *,
    seeds: int,
    records: Records,
) -> pd.DataFrame:
    """One row a generation, tidy: who, what, seed, score, counts and times."""
    import pandas as pd

    rows = []
    for entrant, seed, (name, task) in itertools.product(entrants, range(seeds), tasks.items()):
        if seed and entrant.writer.deterministic:
            continue
        asked = [question for question in questions if question.task == name]
        known = [records.get(_key(question, seed, entrant)) for question in asked]
        if any(record is None for record in known):
            raise DgemmaError(f"{records.folder}: not all of {name} is recorded; run it again")
        found = [record for record in known if record is not None]
        metric, scores = score(
            task,
            [question.instances[entrant.side] for question in asked],
            [record["answer"] for record in found],
        )
        for question, record, value in zip(asked, found, scores, strict=True):
            counts = Counts.from_json(record["counts"])
            first = counts.milestones[0] if counts.milestones else (None, None)
            rows.append(
                {
                    "side": entrant.side,
                    "contestant": entrant.label,
                    "swept": bool(entrant.overrides),
                    "settings": json.dumps(dict(entrant.overrides)),
                    "task": name,
                    "doc_id": question.doc_id,
                    "seed": seed,
                    "metric": metric,
                    "score": value,
                    "mode": counts.mode,
                    "prompt_tokens": counts.prompt_tokens,
                    "kept_tokens": counts.kept_tokens,
                    "passes": counts.passes,
                    "denoising_steps": counts.denoising_steps,
                    "steps_per_canvas": list(counts.steps_per_canvas),
                    "converged_canvases": sum(counts.converged),
                    "positions": counts.positions,
                    "accepted": list(counts.accepted),
                    "seconds": counts.seconds,
                    "prompt_seconds": counts.prompt_seconds,
                    "first_tokens": first[0],
                    "first_seconds": first[1],
                    "milestone_tokens": [kept for kept, _ in counts.milestones],
                    "milestone_seconds": [at for _, at in counts.milestones],
                    "stop_reason": counts.stop_reason,
                    "peak_bytes": record["peak_bytes"],
                    "began": record["began"],
                    "text": record["answer"],
                }
            )
    table = pd.DataFrame(rows)
    # None, of what a source cannot know, becomes nan
    return table.astype({name: "float64" for name in _MAYBE_UNKNOWN})


def compare(
    model: Writer,
    baseline: Writer,
    *,
    tasks: Sequence[str],
    limit: int,
    seeds: int,
    out: Path,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    chat: bool = True,
    num_fewshot: int | None = None,
    system: str | None = None,
    max_new_tokens: int | None = None,
    unsafe: bool = False,
    quiet: bool = False,
    command: str = "",
    say: Callable[[str], object] = lambda line: None,
) -> Comparison:
    """Runs a comparison into the folder `out`; what is recorded there already is not run again.

    Limits, stop strings and few-shot examples are resolved once, for both sides; `say` gets a line for each task and
    side before anything is written. Arguments as in `questions`.
    """
    if limit < 1 or seeds < 1:
        raise RequestError("--limit and --seeds must be at least 1")
    entrants = contestants(model, baseline, sweep or {})
    found = load_tasks(tasks, limit=limit, unsafe=unsafe, num_fewshot=num_fewshot)
    sides: dict[str, Writer] = {"model": model, "baseline": baseline}
    terms = resolved(found, max_new_tokens)
    prompts = {side: wording(writer, chat) for side, writer in sides.items()}
    for name, asked in terms.items():
        say(f"{name}: {_terms_line(asked)}")
    for side, writer in sides.items():
        say(f"prompts of {writer.name}: {prompts[side]}")
    questions = documents(found, sides, limit=limit, chat=chat, system=system, terms=terms)
    before = environment()
    with sole_writer(out):
        records = Records(
            out / "records",
            # Times of another machine, or another number of threads, are not mixed in.
            digest(model.identity, baseline.identity, machine(before)),
            {"model": model.describe(), "baseline": baseline.describe()},
        )
        run(entrants, questions, seeds=seeds, records=records, quiet=quiet)
    table = tabulate(entrants, questions, found, seeds=seeds, records=records)
    facts = {
        "command": command,
        "model": model.describe(),
        "baseline": baseline.describe(),
        "tasks": list(found),
        "limit": limit,
        "seeds": seeds,
        "chat_template": chat,
        "prompts": prompts,
        "num_fewshot": {name: task.get_config("num_fewshot") for name, task in found.items()},
        "system_instruction": system,
        "generation": terms,
        "environment": before,
        "load_average_at_the_end": [round(value, 2) for value in os.getloadavg()],
        "resumed_generations": records.resumed,
        "device_memory": before.get("gpu") is not None,
    }
    return Comparison(table, facts)


def _terms_line(asked: Mapping[str, Any]) -> str:
    """A task's `gen_kwargs` in words."""
    stops = ", ".join(map(repr, asked["until"])) or "none"
    rest = {name: value for name, value in asked.items() if name not in ("until", "max_gen_toks")}
    more = "".join(f", {name}={value}" for name, value in rest.items())
    return f"at most {asked['max_gen_toks']} tokens, stop strings {stops}{more}"


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both coordinates, by the first."""

    def beaten(i: int) -> bool:
        x, y = points[i]
        return any(
            (a >= x and b >= y) and (a > x or b > y) for j, (a, b) in enumerate(points) if j != i
        )

    return sorted((i for i in range(len(points)) if not beaten(i)), key=lambda i: points[i])
