"""What is asked: the documents of tasks, as each writer's template words them, and how an answer is scored."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from dgemma_core import RequestError
from dgemma_evals.tasks.manager import Tasks
from dgemma_evals.writers.asked import LIMIT, Asked
from dgemma_evals.writers.base import Writer

_SEED = 1234
"""Of the choice of examples: lm-eval's own."""


@dataclass(frozen=True)
class Document:
    """A question, as each contestant's template words it."""

    task: str
    doc_id: int
    examples: int
    """That stand before the question."""
    instances: Mapping[str, Instance]
    """By side."""


def quiet_harness() -> None:
    """Leaves out what lm-eval tells of each task."""
    import logging

    from dgemma_evals.harness.register import register

    register()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def load_tasks(
    names: Sequence[str],
    *,
    limit: int,
    unsafe: bool = False,
    num_fewshot: int | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Task]:
    """Tasks that generate, by name. Raises RequestError for others, and for unknown ones.

    num_fewshot: examples before each question, as the task says if None; a task that says 0 keeps it, as in lm-eval.
    more: further metadata that tasks read, e.g. {"split": "validation"} of nano's.
    """
    # Examples come from all documents, as in `dgemma eval`; else no more are made than are asked.
    manager = Tasks(metadata={**(more or {}), **({} if num_fewshot else {"count": limit})})
    asked = [name.strip() for part in names for name in part.split(",") if name.strip()]
    if not asked:
        raise RequestError("--tasks names none: `dgemma eval ls tasks` lists them")
    missing = [name for name in asked if not manager.match_tasks([name])]
    if missing:
        raise RequestError(f"no task {', '.join(missing)}: `dgemma eval ls tasks` lists them")
    tasks: dict[str, Task] = manager.load(manager.match_tasks(asked))["tasks"]
    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            raise RequestError(f"{name} scores likelihoods; a comparison is of tasks that write")
        if getattr(task, "UNSAFE_CODE", False) and not unsafe:
            raise RequestError(
                f"{name} runs what the models write: allow it with --confirm-run-unsafe-code"
            )
        own = task.get_config("num_fewshot")
        if own is None or (own and num_fewshot is not None):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        check_metric(task, None)
    return tasks


def check_metric(task: Task, metric: str | None) -> tuple[str, str | None]:
    """Name and filter (None: the first) of `NAME` or `NAME,FILTER`; the task's first metric if None.

    Raises RequestError where the task has no such metric or filter.
    """
    metrics = list(task._metric_fn_list)
    filters = [ensemble.name for ensemble in task._filters]
    name, _, chosen = (metric or metrics[0]).partition(",")
    if name not in metrics or (chosen and chosen not in filters):
        raise RequestError(
            f"{task.config.task} has the metrics {', '.join(metrics)} and the filters {', '.join(filters)}, not"
            f" {metric}"
        )
    return name, chosen or None


def resolved(tasks: Mapping[str, Task], limit: int | None = None) -> dict[str, dict[str, Any]]:
    """The `gen_kwargs` of each task, which every writer gets alike.

    limit: of tokens, for all tasks; if None the task's own, else lm-eval's.
    """
    found = {}
    for name, task in tasks.items():
        asked = Asked.of(task.config.generation_kwargs or {})
        if limit is not None:
            asked = replace(asked, limit=limit)
        found[name] = asked.gen_kwargs(LIMIT)
    return found


def wording(writer: Writer, chat: bool) -> str:
    """Whose template words a writer's prompts."""
    if chat and writer.template is not None:
        return "its own chat template, examples as turns"
    return str(writer.describe().get("prompts", "as they are"))


def documents(
    tasks: Mapping[str, Task],
    sides: Mapping[str, Writer],
    *,
    limit: int,
    chat: bool,
    system: str | None = None,
    terms: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Document]:
    """The first `limit` documents of each task, built as `dgemma eval` builds them.

    chat: apply each writer's own template, with few-shot examples as turns. system: a system instruction. terms: the
    `gen_kwargs` of each task (`resolved`), its own if None.
    """
    found = []
    for name, task in tasks.items():
        built: dict[str, list[Instance]] = {}
        for side, writer in sides.items():
            templated = chat and writer.template is not None
            task.set_fewshot_seed(seed=_SEED)  # each side gets the same examples
            _build(
                task,
                limit=limit,
                system_instruction=system,
                apply_chat_template=templated,
                fewshot_as_multiturn=templated,
                chat_template=writer.template if templated else None,
                tokenizer_name=writer.tokenizer_name,
            )
            built[side] = list(task.instances)
            if terms is not None:
                built[side] = [
                    replace(instance, arguments=(instance.args[0], dict(terms[name])))
                    for instance in built[side]
                ]
        for row in zip(*built.values(), strict=True):
            pair = dict(zip(built, row, strict=True))
            examples = int(task.get_config("num_fewshot") or 0)
            found.append(Document(name, row[0].doc_id, examples, pair))
    return found


def plain_instances(task: Task, limit: int) -> list[Instance]:
    """The first `limit` documents of a task as it words them, to score answers with."""
    _build(task, limit=limit)
    return list(task.instances)


def _build(task: Task, **how: Any) -> None:
    """Builds requests without a bar for each task and side."""
    with contextlib.redirect_stderr(io.StringIO()):
        task.build_all_requests(**how)


@dataclass(frozen=True)
class Scores:
    """Of each answer: a metric, and whether the task's verifier could read it (None: it does not say)."""

    metric: str
    values: list[float]
    readable: list[float | None]


def score(
    task: Task, instances: Sequence[Instance], answers: Sequence[str], metric: str | None = None
) -> Scores:
    """A metric of each answer, chosen as in `check_metric`."""
    name, chosen = check_metric(task, metric)
    answered = [
        replace(instance, resps=[answer], filtered_resps={})
        for instance, answer in zip(instances, answers, strict=True)
    ]
    task._instances = answered
    task.apply_filters()
    if chosen is None:
        chosen = next(iter(answered[0].filtered_resps))
    values: list[float] = []
    readable: list[float | None] = []
    for instance in answered:
        found = task.process_results(instance.doc, [instance.filtered_resps[chosen]])
        if not isinstance(found.get(name), int | float):
            raise RequestError(f"{task.config.task}: {name} is no number for each document")
        values.append(float(found[name]))
        readable.append(found.get("readable"))
    label = name if len(answered[0].filtered_resps) == 1 else f"{name},{chosen}"
    return Scores(label, values, readable)
