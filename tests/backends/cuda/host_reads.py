"""Which operations of a pass make a GPU wait for the host, or the host for a GPU: counted operation by operation.

    with HostReads() as reads:
        ...
    reads.found, reads.callers

On a CPU these operations cost nothing; on a GPU each waits for all work that was launched.
"""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from tests.backends.cuda.callers import callers

WAITING = (
    "_local_scalar_dense",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "repeat_interleave.Tensor",
    "resolve_neg",  # tolist and numpy
    "_unique",
    "unique",
)


class HostReads(TorchDispatchMode):
    """Collects the names of operations whose result, or its shape, the host must know at once."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.callers: list[str] = []
        """Of each, the last three functions of dgemma_core that were called."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(function).removeprefix("aten.")
        by_mask = name.startswith("index") and any(
            getattr(index, "dtype", None) is not None and "bool" in str(index.dtype)
            for index in _indices(args)
        )
        if by_mask or name.startswith(WAITING):
            self.found.append(name)
            self.callers.append(" ".join(callers()[-3:]))
        return function(*args, **(kwargs or {}))


def _indices(args: Any) -> list[Any]:
    return [item for arg in args if isinstance(arg, list | tuple) for item in arg]
