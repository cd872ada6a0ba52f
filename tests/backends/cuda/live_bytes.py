"""How many bytes of tensors live at once, counted operation by operation: no clock, no sampling.

    with LiveBytes() as live:
        ...
    live.peak, live.largest

Every storage that an operation returns is counted from then until nothing refers to it. What an
operation allocates and frees inside itself is not seen.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations return while it is entered; meta tensors do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.largest = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def now(self) -> int:
        """Bytes that live at this moment."""
        self._live = {key: held for key, held in self._live.items() if not held[0].expired()}
        return sum(size for _, size in self._live.values())

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            # A view or an in-place result shares the storage of an argument.
            if isinstance(leaf, Tensor) and leaf.device.type != "meta" and _key(leaf) not in given:
                size = leaf.untyped_storage().nbytes()
                self._live[_key(leaf)] = StorageWeakRef(leaf.untyped_storage()), size
                self.largest = max(self.largest, size)
        self.peak = max(self.peak, self.now())
        return result


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
