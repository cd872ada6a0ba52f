"""Which share of a model's answers changes with the batch that they are written in.

Random draws do not depend on the batch, and no row waits for another. Arithmetic does depend on it,
in the last bits: products of more rows are summed in another order, and in bfloat16 two tokens are
often exactly as likely. So the same documents are written at each batch size, and the texts
compared. A size that is named twice shows what a mere repetition changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task

from dgemma_core import RequestError
from dgemma_evals.comparison.questions import documents, load_tasks, score
from dgemma_evals.comparison.stats import Interval, share
from dgemma_evals.harness.models import DGemma, models
from dgemma_evals.harness.records import sole_writer
from dgemma_evals.machine import environment, machine
from dgemma_evals.saving import write_json
from dgemma_evals.writers.options import split_mode

RESULTS = "flips.json"


@dataclass(frozen=True)
class Answer:
    """One text. score: the task's first metric."""

    task: str
    doc_id: int
    text: str
    score: float


@dataclass(frozen=True)
class Run:
    """The answers of one dtype at one batch size, in the order of the documents."""

    dtype: str
    batch: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Flips:
    """How a run differs from the one at the first batch size of its dtype.

    changed: other texts; verdicts: those of them with another score; share: changed / answers, with
    its exact 95 % interval; tasks: changed texts by task.
    """

    dtype: str
    batch: int
    against: int
    answers: int
    changed: int
    verdicts: int
    share: Interval
    tasks: Mapping[str, int]

    @property
    def sentence(self) -> str:
        """For people."""
        low, high = 100 * self.share.low, 100 * self.share.high
        return (
            f"{self.dtype}, batch {self.batch} against {self.against}: {self.changed} of"
            f" {self.answers} answers change ({100 * self.share.estimate:.1f} %, 95 % interval"
            f" {low:.1f} to {high:.1f}), {self.verdicts} verdicts"
        )


def between(first: Run, other: Run) -> Flips:
    """What changes from one run to another of the same documents."""
    pairs = list(zip(first.answers, other.answers, strict=True))
    changed = [(a, b) for a, b in pairs if a.text != b.text]
    return Flips(
        dtype=other.dtype,
        batch=other.batch,
        against=first.batch,
        answers=len(pairs),
        changed=len(changed),
        verdicts=sum(a.score != b.score for a, b in changed),
        share=share(len(changed), len(pairs)),
        tasks={
            task: sum(a.task == task for a, _ in changed)
            for task in dict.fromkeys(a.task for a in first.answers)
        },
    )


def measure(
    model: str,
    *,
    dtypes: Sequence[str],
    batches: Sequence[int],
    tasks: Sequence[str],
    limit: int,
    out: Path,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    chat: bool = True,
    unsafe: bool = False,
    quiet: bool = False,
    command: str = "",
) -> list[Flips]:
    """Writes every document at every dtype and batch size, and `flips.json` into `out`.

    settings: arguments of the model (`options.Options`). Records stand in `out` too: a run that was
    stopped goes on. Raises RequestError for fewer than two batch sizes or an unknown dtype.
    """
    check(dtypes, batches)
    found = load_tasks(tasks, limit=limit, unsafe=unsafe)
    facts = environment()
    runs: list[Run] = []
    described = []
    with sole_writer(out):
        for dtype in dtypes:
            for place, batch in enumerate(batches, start=1):
                # Of each size its own: the hash in a record's name knows nothing of batches.
                records = out / "records" / f"{dtype}-{place}-batch{batch}-{machine(facts)}"
                arguments = {"dtype": dtype, "device": device, "batch_size": str(batch)}
                lm = _load(model, records=str(records), **arguments, **(settings or {}))
                described.append(lm.describe())
                answers = _answers(lm, found, limit=limit, chat=chat, quiet=quiet)
                runs.append(Run(dtype, batch, tuple(answers)))
                del lm  # before the next one is loaded
    sets = [[run for run in runs if run.dtype == dtype] for dtype in dtypes]
    flips = [between(same[0], other) for same in sets for other in same[1:]]
    report = {
        "answer": [flip.sentence for flip in flips],
        "flips": [asdict(flip) for flip in flips],
        "changed": [line for same in sets for line in _changed(same)],
        "runs": [
            {
                "dtype": run.dtype,
                "batch": run.batch,
                "score": sum(answer.score for answer in run.answers) / len(run.answers),
                "model": model_facts,
            }
            for run, model_facts in zip(runs, described, strict=True)
        ],
        "facts": {
            "command": command,
            "model": model,
            "tasks": list(found),
            "limit": limit,
            "chat_template": chat,
            "environment": facts,
        },
    }
    write_json(out / RESULTS, report)
    return flips


def check(dtypes: Sequence[str], batches: Sequence[int]) -> None:
    """Raises RequestError for what could only fail after a long run."""
    import torch

    if len(batches) < 2 or min(batches) < 1:
        raise RequestError("--batch: expected two or more sizes of at least 1, e.g. 1,3,8")
    for name in dtypes:
        kind = getattr(torch, name, None)
        floating = isinstance(kind, torch.dtype) and kind.is_floating_point
        if not floating and name != "auto":
            raise RequestError(f"--dtype {name}: expected float32, bfloat16, … or auto")
    if not dtypes or len(set(dtypes)) < len(dtypes):
        raise RequestError("--dtype: expected one or more, each named once")


def _load(model: str, **arguments: Any) -> DGemma:
    checkpoint, mode = split_mode(model)
    (kind,) = (kind for _, kind in models() if kind.mode == mode)
    return kind(pretrained=checkpoint, **arguments)


def _answers(
    lm: DGemma, tasks: Mapping[str, Task], *, limit: int, chat: bool, quiet: bool
) -> Iterable[Answer]:
    """All documents of all tasks as one list of requests, so that batches span tasks."""
    asked = documents(tasks, {"model": lm.writer}, limit=limit, chat=chat)
    instances = [question.instances["model"] for question in asked]
    texts = lm.generate_until(instances, disable_tqdm=quiet)
    for task_name, task in tasks.items():
        places = [i for i, question in enumerate(asked) if question.task == task_name]
        written = [texts[i] for i in places]
        scores = score(task, [instances[i] for i in places], written).values
        for i, text, value in zip(places, written, scores, strict=True):
            yield Answer(task_name, asked[i].doc_id, text, value)


def _changed(same: Sequence[Run]) -> list[dict[str, Any]]:
    """The documents of one dtype whose text is not the same everywhere, with their texts."""
    rows = []
    for answers in zip(*(run.answers for run in same), strict=True):
        if len({answer.text for answer in answers}) > 1:
            rows.append(
                {
                    "dtype": same[0].dtype,
                    "task": answers[0].task,
                    "doc_id": answers[0].doc_id,
                    "batches": [run.batch for run in same],
                    "texts": [answer.text for answer in answers],
                    "scores": [answer.score for answer in answers],
                }
            )
    return rows
