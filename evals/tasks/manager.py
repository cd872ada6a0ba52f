"""lm-eval's index of tasks, which finds ours too.

lm-eval's own index takes many seconds to build from thousands of files. So our folder is searched first, and the rest
only for a name that it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

TASKS = Path(__file__).parent


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
