"""Two sides or more, the same questions: what they answer, and what it costs them.

Every generation that is timed is scored, and every one that is scored was timed. A comparison runs in blocks
(block.py), one for each seed, each in a process of its own where asked, and is then read back from their records.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.task import Task

from dgemma_core import DgemmaError
from dgemma_evals.comparison import block
from dgemma_evals.comparison.plan import Plan
from dgemma_evals.comparison.questions import load_tasks, plain_instances, score
from dgemma_evals.harness.records import Record, read, sole_writer
from dgemma_evals.writers.base import Writer
from dgemma_evals.writers.counting import Counts

if TYPE_CHECKING:
    import pandas as pd

_MAYBE_UNKNOWN = (
    "prompt_tokens",
    "passes",
    "denoising_steps",
    "prompt_seconds",
    "first_tokens",
    "first_seconds",
    "readable",
    "joules",
    "batch",
    "rate",
    "rise_bytes",
    "peak_bytes",
    "cores_busy_with_others",
)


@dataclass(frozen=True)
class Comparison:
    """All that was measured, one row a generation: `table` of those written alone, `traffic` of those written many at
    once (None where none were)."""

    table: pd.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)
    traffic: pd.DataFrame | None = None


Say = Callable[[str], object]


def compare(
    plan: Plan, writers: Sequence[Writer], out: Path, *, quiet: bool = False, command: str = ""
) -> Comparison:
    """Runs a comparison into the folder `out`, all blocks in this process; what is recorded there is not run again."""
    with sole_writer(out):
        for number in range(plan.seeds):
            block.run(plan, writers, number, out, quiet=quiet)
        return gather(plan, out, command=command)


def compare_afresh(
    plan: Plan,
    sides: Sequence[str],
    out: Path,
    *,
    shared: Mapping[str, Any],
    extra: Mapping[str, Any],
    command: str = "",
) -> Comparison:
    """The same, each block in a fresh process, which loads the sides that `sides` name (`writers.named.writer`).

    shared: arguments of all of this project's models. extra: what all servers are sent besides.
    """
    told = json.dumps(
        {"plan": plan.to_json(), "sides": list(sides), "shared": dict(shared), "extra": dict(extra)}
    )
    with sole_writer(out):
        for number in range(plan.seeds):
            _fresh(told, number, out)
        return gather(plan, out, command=command)


def _fresh(told: str, number: int, out: Path) -> None:
    """Runs a block in a process of its own. Raises DgemmaError with its last words where it fails."""
    ran = subprocess.run(
        [sys.executable, "-m", block.__name__, str(number), str(out)],
        input=told,
        stdout=subprocess.PIPE,  # its progress goes to the terminal
        text=True,
    )
    if ran.returncode:
        said = ran.stdout.strip().splitlines()
        raise DgemmaError(said[-1] if said else f"block {number + 1} ended ({ran.returncode})")


# --- reading back


def gather(plan: Plan, out: Path, *, command: str = "") -> Comparison:
    """The comparison whose blocks lie in `out`. Raises DgemmaError where one is missing, or sides are unlike."""
    import pandas as pd

    blocks = [_facts(out, number) for number in range(plan.seeds)]
    if len({found["identity"] for found in blocks}) > 1:
        raise DgemmaError(
            f"{out}: the blocks are of different models or machines; run it again into an empty --out"
        )
    known: dict[str, Record] = {}
    for path in sorted((out / "records").glob(f"records-{blocks[0]['identity']}-*of*.jsonl")):
        known |= {record["key"]: record for record in read(path)}
    wanted = dict.fromkeys(key for found in blocks for key in found["keys"])
    missing = sum(key not in known for key in wanted)
    if missing:
        raise DgemmaError(f"{out}: {missing} generations are not recorded; run it again")
    records = [known[key] for key in wanted]
    tasks = load_tasks(plan.tasks, limit=plan.limit, unsafe=plan.unsafe)
    rows: list[dict[str, Any]] = []
    for name, task in tasks.items():
        rows += _rows(task, [r for r in records if r["task"] == name], plan)
    table = pd.DataFrame(rows)
    # None, of what a source cannot know, becomes nan
    table = table.astype({name: "float64" for name in _MAYBE_UNKNOWN})
    order = {name: place for place, name in enumerate(blocks[0]["sides"])}
    table = table.sort_values(
        ["swept", "side", "settings", "examples", "seed"],
        key=lambda column: column.map(order) if column.name == "side" else column,
        kind="stable",
    ).reset_index(drop=True)
    alone = table.batch.isna() & table.rate.isna()
    served = table[~alone].reset_index(drop=True)
    kept = table[alone].drop(columns=["batch", "rate", "waited", "wall", "rise_bytes"])
    return Comparison(
        kept.reset_index(drop=True),
        _joined(plan, blocks, list(tasks), command),
        served if len(served) else None,
    )


def _facts(out: Path, number: int) -> dict[str, Any]:
    path = block.facts_file(out, number)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DgemmaError(f"{path}: cannot be read ({error}); run the comparison again") from error
    return found


def _rows(task: Task, records: Sequence[Record], plan: Plan) -> list[dict[str, Any]]:
    """One row a generation, tidy: who, what, seed, score, counts and times."""
    if not records:
        return []
    instances = {instance.doc_id: instance for instance in plain_instances(task, plan.limit)}
    scores = score(
        task,
        [instances[record["doc_id"]] for record in records],
        [record["answer"] for record in records],
        plan.metric,
    )
    rows = []
    for record, value, readable in zip(records, scores.values, scores.readable, strict=True):
        counts = Counts.from_json(record["counts"])
        first = counts.milestones[0] if counts.milestones else (None, None)
        overrides, traffic = record["overrides"], record.get("traffic", {})
        told = ", ".join(f"{name}={setting}" for name, setting in overrides.items())
        rows.append(
            {
                "side": record["side"],
                "contestant": f"{record['side']} ({told})" if told else record["side"],
                "swept": bool(overrides),
                "settings": json.dumps(overrides),
                "task": record["task"],
                "doc_id": record["doc_id"],
                "examples": record["examples"],
                "seed": record["seed"],
                "metric": scores.metric,
                "score": value,
                "readable": readable,
                "mode": counts.mode,
                "prompt_tokens": counts.prompt_tokens,
                "cut_tokens": counts.cut_tokens,
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
                "joules": record.get("joules"),
                "peak_bytes": record.get("peak_bytes"),
                "began": record.get("began"),
                "batch": traffic.get("batch"),
                "rate": traffic.get("rate"),
                "waited": record.get("waited"),
                "wall": record.get("wall"),
                "rise_bytes": record.get("rise_bytes"),
                "cores_busy_with_others": record.get("cores_busy_with_others"),
                "text": record["answer"],
            }
        )
    return rows


def _joined(
    plan: Plan, blocks: Sequence[Mapping[str, Any]], tasks: Sequence[str], command: str
) -> dict[str, Any]:
    """What the blocks have in common, and what of each is its own."""
    first = blocks[0]
    return {
        "command": command,
        "sides": first["sides"],
        "tasks": list(tasks),
        **{k: v for k, v in asdict(plan).items() if k != "tasks"},
        "prompts": first["prompts"],
        "generation": first["generation"],
        "environment": first["environment"],
        "blocks": [
            {
                "began": found["environment"]["date"],
                "load_average": found["environment"]["load_average"],
                "load_average_at_the_end": found["load_average_at_the_end"],
                "cores_busy_with_others": found["cores_busy_with_others"],
                "resumed_generations": found["resumed_generations"],
            }
            for found in blocks
        ],
        "energy_from": first["energy_from"],
        "device_memory": first["device_memory"],
    }


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both coordinates, by the first."""

    def beaten(i: int) -> bool:
        x, y = points[i]
        return any(
            (a >= x and b >= y) and (a > x or b > y) for j, (a, b) in enumerate(points) if j != i
        )

    return sorted((i for i in range(len(points)) if not beaten(i)), key=lambda i: points[i])
