"""What the host launches of a step besides its recordings: counted operation by operation.

    with Operations() as operations:
        ...
    operations.found, operations.of_backend

Views and empty allocations launch nothing and do not count; nor does what a `Replay` runs.
"""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from dgemma_core.backends.cuda.recording import Replay
from tests.backends.cuda.callers import callers

SILENT = (
    "alias", "as_strided", "detach", "empty", "expand", "flatten", "is_pinned", "lift_fresh", "new_empty", "permute",
    "_reshape_alias", "select", "slice", "split", "squeeze", "t.", "transpose", "unbind", "unflatten", "_unsafe_view",
    "unsqueeze", "view",
)  # fmt: skip


class Operations(TorchDispatchMode):
    """Collects the names of operations outside of replays."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.of_backend: list[str] = []  # those of them that the backend's code makes
        self.replays = 0
        self._inside = False

    def __enter__(self) -> Operations:
        self._call = Replay.__call__

        def call(replay: Any) -> Any:
            self.replays += 1
            self._inside = True
            try:
                return self._call(replay)
            finally:
                self._inside = False

        Replay.__call__ = call  # type: ignore[method-assign]
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *failure: Any) -> None:
        Replay.__call__ = self._call  # type: ignore[method-assign]
        super().__exit__(*failure)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(function).removeprefix("aten.")
        if not self._inside and not name.startswith(SILENT):
            self.found.append(name)
            if callers()[-1].startswith("backends/cuda/"):
                self.of_backend.append(name)
        return function(*args, **(kwargs or {}))
