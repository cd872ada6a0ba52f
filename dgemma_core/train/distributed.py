"""Several processes that share the work of a step: `torchrun`, and torch's DistributedDataParallel.

Every process reads the same data and draws the same noise, runs its share of a step's micro-batches, and makes the same
update from the gradients that torch averages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dgemma_core.errors import DeviceError

if TYPE_CHECKING:
    from dgemma_core.model import DiffusionGemma
    from dgemma_core.train.batches import Batch
    from dgemma_core.train.loss import Losses
    from dgemma_core.train.recipe import Recipe


@dataclass(frozen=True)
class Group:
    """This process among those of a run."""

    rank: int = 0
    size: int = 1

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of the processes."""
        if self.size == 1:
            return flag
        found = torch.tensor(float(flag))
        found = found.cuda() if dist.get_backend() == "nccl" else found
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def device(self, asked: str) -> str:
        """The device of this process: of several cards, its own."""
        if self.size == 1 or asked not in ("auto", "cuda") or not torch.cuda.is_available():
            return asked
        return f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"


ALONE = Group()


@contextmanager
def joined() -> Iterator[Group]:
    """The group that `torchrun` started this process in; `ALONE` where it did not.

    Raises DeviceError where the processes do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    try:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(f"the processes of this run do not find each other: {reason}") from error
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


Compute = Callable[["DiffusionGemma", "Batch", torch.Generator], "Losses"]


class _Step(nn.Module):
    """A micro-batch's losses as a module's `forward`, which DistributedDataParallel watches."""

    def __init__(self, model: DiffusionGemma, losses: Compute) -> None:
        super().__init__()
        self.model, self.losses = model, losses

    def forward(self, batch: Batch, generator: torch.Generator, recipe: Recipe) -> Tensor:
        """→ (4,): the total, and its three parts."""
        parts = self.losses(self.model, batch, generator)
        values = (parts.canvas, parts.autoregressive, parts.balance)
        return torch.stack([parts.total(recipe), *values])


class Averaged:
    """Gradients of a step's micro-batches, each run by one process of the group, averaged over all."""

    def __init__(self, model: DiffusionGemma, losses: Compute, group: Group) -> None:
        self.model, self.group = model, group
        self.step = DistributedDataParallel(_Step(model, losses), find_unused_parameters=True)

    def __call__(
        self, micro: Sequence[Batch], generators: Sequence[torch.Generator], recipe: Recipe
    ) -> Tensor:
        """Leaves the mean gradient in the model's weights; returns the mean losses (3,), the same in all processes."""
        self.model.zero_grad()
        own = range(self.group.rank, len(micro), self.group.size)
        sums = torch.zeros(3, device=self.model.device)
        for m in own:
            with nullcontext() if m == own[-1] else self.step.no_sync():
                values = self.step(micro[m], generators[m], recipe)
                (values[0] / len(own)).backward()
            sums += values[1:].detach() / len(micro)
        dist.all_reduce(sums)
        return sums.cpu()
