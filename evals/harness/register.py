"""Makes lm-eval know our models and tasks, as an installed newer lm-eval does by entry points.

Its own index takes many seconds to build from thousands of files, so ours is asked first, and the
rest only for a name that it lacks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import lm_eval.models  # first, for its registration refuses names that are taken
import lm_eval.tasks
from lm_eval.api.registry import model_registry
from lm_eval.tasks import TaskManager

TASKS = Path(__file__).parents[1] / "tasks"
GROUP = "lm_eval.models"


def register_models() -> None:
    """Enters the models of all installed packages under their names, to be imported when used."""
    for entry in entry_points(group=GROUP):
        if entry.name not in model_registry:
            model_registry.register(entry.name, target=entry)


class Tasks(TaskManager):  # type: ignore[misc, unused-ignore]
    """lm-eval's `TaskManager` that finds our tasks without an include path."""

    def __init__(
        self,
        verbosity: str | None = None,
        include_path: Any = None,
        include_defaults: bool = True,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._asked = (verbosity, include_path, include_defaults, metadata)
        self._complete = not include_defaults
        given = [] if include_path is None else include_path
        self._paths = [TASKS, *(given if isinstance(given, list | tuple) else [given])]
        super().__init__(verbosity, self._paths, include_defaults=False, metadata=metadata)

    def _entry(self, name: str) -> Any:
        found = super()._entry(name)
        if found is None and not self._complete:
            self._complete_index()
            found = super()._entry(name)
        return found

    def match_tasks(self, task_list: Sequence[str]) -> list[str]:
        """Names that match; lm-eval's own tasks are looked at if some pattern finds none."""
        for pattern in task_list:
            if not self._complete and not super().match_tasks([pattern]):
                self._complete_index()
        return list(super().match_tasks(task_list))

    def list_all_tasks(self, *args: Any, **more: Any) -> str:
        """A table of everything."""
        self._complete_index()
        return str(super().list_all_tasks(*args, **more))

    def _complete_index(self) -> None:
        if not self._complete:
            self._complete = True
            verbosity, _, _, metadata = self._asked
            super().__init__(verbosity, self._paths, include_defaults=True, metadata=metadata)


def _not_about_custom_datasets(record: logging.LogRecord) -> bool:
    """lm-eval explains --metadata at every load of a task that makes its own documents."""
    return "Custom kwargs can be passed" not in record.getMessage()


def register() -> None:
    """Our models and tasks, for lm-eval's command line and `simple_evaluate` in this process."""
    register_models()
    logging.getLogger("lm_eval.api.task").addFilter(_not_about_custom_datasets)
    lm_eval.tasks.TaskManager = Tasks
    lm_eval.evaluator.TaskManager = Tasks
