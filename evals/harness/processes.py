"""Several processes that share the documents of a run, started by torchrun or accelerate launch."""

from __future__ import annotations

import atexit
import os
from typing import Any

import torch


class Processes:
    """What lm-eval asks of a model that runs in several processes: rank, world size, gathering."""

    _rank: int
    _world_size: int

    def join_processes(self) -> None:
        """Takes rank and world size from the launcher's environment."""
        import torch.distributed as dist

        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return
        if not dist.is_initialized():
            dist.init_process_group("gloo")
            # Else its threads may outlive the interpreter's end, which then aborts the process.
            atexit.register(dist.destroy_process_group)
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()

    def own_device(self, device: str) -> str:
        """`device`, or this process's GPU where several processes share a machine's GPUs."""
        if self._world_size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{os.environ.get('LOCAL_RANK', self._rank)}"
        return device

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Scalars of all processes → (world size,)."""
        import torch.distributed as dist

        if self._world_size == 1:
            return tensor
        mine = tensor.cpu()
        parts = [torch.empty_like(mine) for _ in range(self._world_size)]
        dist.all_gather(parts, mine)
        return torch.stack(parts)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Objects of all processes, on process `dst`."""
        import torch.distributed as dist

        if self._world_size == 1:
            return [obj]
        gathered: list[Any] | None = [None] * self._world_size if self._rank == dst else None
        dist.gather_object(obj, gathered, dst)
        return gathered

    def barrier(self) -> None:
        """Waits for all processes."""
        import torch.distributed as dist

        if self._world_size > 1:
            dist.barrier()
