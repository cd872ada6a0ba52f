"""Makes lm-eval know our models and tasks; its own names stay its own.

A newer lm-eval finds the models by their entry points. Tasks it finds by name once `register` has run: a name that its
own index lacks is looked for in ours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

import lm_eval.evaluator
import lm_eval.models  # first, for its registration refuses names that are taken
import lm_eval.tasks
from lm_eval.api.registry import model_registry
from lm_eval.tasks._index import TaskIndex

from dgemma_evals.tasks.manager import TASKS, Tasks

GROUP = "lm_eval.models"
_registered = False


def register_models() -> None:
    """Enters the models of all installed packages under their names, to be imported when used."""
    for entry in entry_points(group=GROUP):
        if entry.name not in model_registry:
            model_registry.register(entry.name, target=entry)


def _not_about_custom_datasets(record: logging.LogRecord) -> bool:
    """lm-eval explains --metadata at every load of a task that makes its own documents."""
    return "Custom kwargs can be passed" not in record.getMessage()


def register() -> None:
    """Our models and tasks, for `lm_eval.simple_evaluate` in this process; a second call changes nothing."""
    global _registered
    if _registered:
        return
    _registered = True
    register_models()
    logging.getLogger("lm_eval.api.task").addFilter(_not_about_custom_datasets)
    manager = lm_eval.tasks.TaskManager
    theirs = manager._entry

    def entry(self: Any, name: str) -> Any:
        found = theirs(self, name)
        if found is None and (ours := TaskIndex.build([TASKS])).get(name):
            self._index |= ours  # the tasks of a group are looked up there
            found = ours[name]
        return found

    manager._entry = entry


@contextmanager
def own_index() -> Iterator[None]:
    """lm-eval's command line uses `Tasks` meanwhile, which spares it an index of thousands of files."""
    theirs = lm_eval.tasks.TaskManager
    lm_eval.tasks.TaskManager = lm_eval.evaluator.TaskManager = Tasks
    try:
        yield
    finally:
        lm_eval.tasks.TaskManager = lm_eval.evaluator.TaskManager = theirs
