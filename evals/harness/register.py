"""Makes lm-eval know our models and tasks, as an installed newer lm-eval does by entry points."""

from __future__ import annotations

import logging
from importlib.metadata import entry_points

import lm_eval.evaluator
import lm_eval.models  # first, for its registration refuses names that are taken
import lm_eval.tasks
from lm_eval.api.registry import model_registry

from dgemma_evals.tasks.manager import Tasks

GROUP = "lm_eval.models"


def register_models() -> None:
    """Enters the models of all installed packages under their names, to be imported when used."""
    for entry in entry_points(group=GROUP):
        if entry.name not in model_registry:
            model_registry.register(entry.name, target=entry)


def _not_about_custom_datasets(record: logging.LogRecord) -> bool:
    """lm-eval explains --metadata at every load of a task that makes its own documents."""
    return "Custom kwargs can be passed" not in record.getMessage()


def register() -> None:
    """Our models and tasks, for lm-eval's command line and `simple_evaluate` in this process."""
    register_models()
    logging.getLogger("lm_eval.api.task").addFilter(_not_about_custom_datasets)
    lm_eval.tasks.TaskManager = Tasks
    lm_eval.evaluator.TaskManager = Tasks
