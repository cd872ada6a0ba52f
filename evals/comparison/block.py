"""One block of a comparison: the sides take turns on the same documents, with one seed.

For each document the sides take turns, in order for one document and backwards for the next (A B B A), and the other
way round in the next block, so that whatever else the machine does, and whatever one side leaves in its caches, falls
on all alike. Each generation is recorded as it ends, and a block that was stopped goes on. Fresh processes run this:

    python -m dgemma_evals.comparison.block NUMBER OUT < (plan, sides and what they share, as JSON)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dgemma_core import DgemmaError
from dgemma_evals.comparison.plan import Contestant, Plan, contestants
from dgemma_evals.comparison.questions import (
    Document,
    check_metric,
    documents,
    load_tasks,
    resolved,
    wording,
)
from dgemma_evals.energy import Meter
from dgemma_evals.harness.records import Record, Records
from dgemma_evals.hashes import digest
from dgemma_evals.machine import Others, environment, machine
from dgemma_evals.resident import peak_bytes, resident_bytes, restart_peak
from dgemma_evals.saving import write_json
from dgemma_evals.writers.base import Traffic, Writer

WARM_UP = 3
"""Unrecorded generations of each side before the first that counts."""
_OPEN_ROWS = 32
"""Rows of a batch in an open loop, where --batch names none."""


def facts_file(out: Path, number: int) -> Path:
    """Where a block says what it was."""
    return out / "records" / f"block-{number}.json"


def asked(plan: Plan) -> tuple[dict[str, Any], list[int | None]]:
    """The `gen_kwargs` of each task, which every side gets alike, and the numbers of examples, each once."""
    tasks = load_tasks(plan.tasks, limit=1, unsafe=plan.unsafe)
    for task in tasks.values():
        check_metric(task, plan.metric)
    return resolved(tasks, plan.max_new_tokens), list(dict.fromkeys(plan.examples))


def run(
    plan: Plan, writers: Sequence[Writer], number: int, out: Path, *, quiet: bool = False
) -> None:
    """Writes what of a block is not recorded yet, and its facts."""
    entrants = contestants(writers, plan.sweep)
    sides = {writer.name: writer for writer in writers}
    terms, numbers = asked(plan)
    for writer in writers:
        for gen_kwargs in terms.values():
            writer.check(gen_kwargs)
    questions: list[Document] = []
    for examples in numbers:
        tasks = load_tasks(plan.tasks, limit=plan.limit, unsafe=plan.unsafe, num_fewshot=examples)
        questions += documents(
            tasks, sides, limit=plan.limit, chat=plan.chat, system=plan.system, terms=terms
        )
    before = environment()
    records = Records(
        out / "records",
        # Times of another machine, or another number of threads, are not mixed in.
        digest([writer.identity for writer in writers], list(sides), machine(before)),
        {name: writer.describe() for name, writer in sides.items()},
        rank=number,
        of=plan.seeds,
    )
    meter, others = Meter(), Others()
    for record in _turns(plan, entrants, questions, number, records, meter, quiet):
        records.add(record)
    points = _points(plan, entrants, questions, number)
    for part in _served(plan, points, number, records, quiet):
        records.add(*part)
    after = environment()
    write_json(
        facts_file(out, number),
        {
            "identity": records.identity,
            "sides": {name: writer.describe() for name, writer in sides.items()},
            "prompts": {name: wording(writer, plan.chat) for name, writer in sides.items()},
            "keys": [_key(q, e, number) for q in questions for e in entrants]
            + [key for point in points for key in point.keys],
            "generation": terms,
            "environment": before,
            "load_average_at_the_end": after["load_average"],
            "cores_busy_with_others": others.cores(),
            "energy_from": meter.sources,
            "resumed_generations": records.resumed,
            "device_memory": before.get("gpu") is not None,
        },
    )


def _turns(
    plan: Plan,
    entrants: Sequence[Contestant],
    questions: Sequence[Document],
    number: int,
    records: Records,
    meter: Meter,
    quiet: bool,
) -> Iterator[Record]:
    """The generations that are missing, each written alone."""
    turns = []
    for place, question in enumerate(questions):
        order = entrants if (place + number) % 2 == 0 else entrants[::-1]
        turns += [(question, entrant) for entrant in order]
    todo = [turn for turn in turns if records.get(_key(*turn, number)) is None]
    if not todo:
        return
    for entrant in entrants:
        for question in questions[:WARM_UP]:
            entrant.writer.write(question.instances[entrant.side], 0, dict(entrant.overrides))
    bar = tqdm(todo, desc=f"block {number + 1} of {plan.seeds}", unit="text", disable=quiet or None)
    for question, entrant in bar:
        _reset_peak()
        at, energy = time.time(), meter.joules()
        written = entrant.writer.write(
            question.instances[entrant.side], number, dict(entrant.overrides)
        )
        used = meter.joules()
        yield {
            "key": _key(question, entrant, number),
            "side": entrant.side,
            "task": question.task,
            "doc_id": question.doc_id,
            "examples": question.examples,
            "seed": number,
            "overrides": dict(entrant.overrides),
            "answer": written.text,
            "counts": written.counts.to_json(),
            "began": at,
            "joules": None if used is None or energy is None else used - energy,
            "peak_bytes": _peak(),
        }


def _key(question: Document, entrant: Contestant, number: int) -> str:
    args = list(question.instances[entrant.side].args)
    return digest(entrant.side, entrant.overrides, question.task, question.doc_id, args, number)


# --- many at once


@dataclass(frozen=True)
class Point:
    """A side at a batch size or a rate. keys: of the records of its texts."""

    entrant: Contestant
    kind: dict[str, float]
    questions: list[Document]
    keys: list[str]


def _points(
    plan: Plan, entrants: Sequence[Contestant], questions: Sequence[Document], number: int
) -> list[Point]:
    """Every side at every batch size, then rate; in turn, forwards and backwards."""
    first = [q for q in questions if q.examples == questions[0].examples]
    plain = [entrant for entrant in entrants if not entrant.overrides]
    kinds = [{"batch": float(b)} for b in plan.batches] + [{"rate": r} for r in plan.rates]
    return [
        Point(entrant, kind, first, [digest(_key(q, entrant, number), kind) for q in first])
        for place, kind in enumerate(kinds)
        for entrant in (plain if (place + number) % 2 == 0 else plain[::-1])
    ]


def _served(
    plan: Plan, points: Sequence[Point], number: int, records: Records, quiet: bool
) -> Iterator[list[Record]]:
    """The records of the points that are missing, each whole."""
    todo = [p for p in points if any(records.get(key) is None for key in p.keys)]
    for point in tqdm(todo, desc="many at once", unit="point", disable=quiet or None):
        writer = point.entrant.writer
        traffic = _traffic(plan, point.kind, len(point.questions), number)
        instances = [question.instances[point.entrant.side] for question in point.questions]
        writer.serve(instances[: traffic.rows], number, Traffic(traffic.rows))  # to warm up
        restart_peak()
        _reset_peak()
        held, others, start = _held(), Others(), time.perf_counter()
        served = writer.serve(instances, number, traffic)
        wall, busy = time.perf_counter() - start, others.cores()
        rise = None if held is None else max(0, _peak() - held)
        yield [
            {
                "key": key,
                "traffic": point.kind,
                "side": point.entrant.side,
                "task": question.task,
                "doc_id": question.doc_id,
                "examples": question.examples,
                "seed": number,
                "overrides": {},
                "answer": one.written.text,
                "counts": one.written.counts.to_json(),
                "waited": one.waited,
                "wall": wall,
                "rise_bytes": rise,
                "cores_busy_with_others": busy,
            }
            for key, question, one in zip(point.keys, point.questions, served, strict=True)
        ]


def _traffic(plan: Plan, kind: Mapping[str, float], count: int, number: int) -> Traffic:
    """Poisson arrivals are the same for all sides: they are drawn from rate and block alone."""
    if "batch" in kind:
        return Traffic(int(kind["batch"]))
    rng = np.random.default_rng([number, 1])
    gaps = rng.exponential(1 / kind["rate"], size=count)
    return Traffic(max(plan.batches, default=_OPEN_ROWS), tuple(np.cumsum(gaps).tolist()))


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _held() -> int | None:
    """Bytes that are held now, counted as `_peak` does."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    return resident_bytes()


def _peak() -> int:
    """Bytes: of this generation on a GPU; of the process so far on a CPU."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return peak_bytes()


def main() -> None:
    """A block in a process of its own; what goes wrong is the last line of its output."""
    from dgemma_evals.comparison.questions import quiet_harness
    from dgemma_evals.writers.named import writer

    quiet_harness()
    told = json.load(sys.stdin)
    plan = Plan.from_json(told["plan"])
    try:
        writers = [
            writer(side, chat=plan.chat, extra=told["extra"], **told["shared"])
            for side in told["sides"]
        ]
        run(plan, writers, int(sys.argv[1]), Path(sys.argv[2]))
    except DgemmaError as error:
        print(error)
        sys.exit(2)


if __name__ == "__main__":
    main()
