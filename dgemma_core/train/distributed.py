"""Several processes that share the work of a step: `torchrun`, and torch's DistributedDataParallel or FSDP2.

Every process reads the same data and draws the same noise, runs its share of a step's micro-batches, and makes the same
update from the gradients that torch averages.

By DistributedDataParallel each process holds the whole model. By FSDP2 (`divide`) it holds a part of every weight, of
its gradient and of its moments. A layer is put together when it runs, forward and backward, and its gradient is divided
behind it; what stands outside the layers is whole from a step's first pass to its last.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dgemma_core.errors import DeviceError
from dgemma_core.train.checkpoints import whole
from dgemma_core.train.dense_pass import through

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

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


def is_first() -> bool:
    """Whether this process is the first of those that `torchrun` started, or the only one: it alone prints."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK", "0") == "0"


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
        return _values(self.losses, self.model, batch, generator, recipe)


def _values(
    losses: Compute, model: DiffusionGemma, batch: Batch, generator: torch.Generator, recipe: Recipe
) -> Tensor:
    parts = losses(model, batch, generator)
    return torch.stack([parts.total(recipe), parts.canvas, parts.autoregressive, parts.balance])


class Averaged:
    """Gradients of a step's micro-batches, each run by one process of the group, averaged over all."""

    def __init__(self, model: DiffusionGemma, losses: Compute, group: Group) -> None:
        self.model, self.group = model, group
        self.step: Callable[..., Tensor]
        self.keeping: Callable[[], AbstractContextManager[None]] = nullcontext
        if hasattr(model, "gathered"):
            self.step = partial(through, model, partial(_values, losses))
        else:
            step = DistributedDataParallel(_Step(model, losses), find_unused_parameters=True)
            self.step, self.keeping = step, step.no_sync

    @torch.no_grad()
    def look(self, batch: Batch, generator: torch.Generator, recipe: Recipe) -> Tensor:
        """The losses (2,) of canvases and causal mode of a divided model; all processes ask for the same."""
        values = self.step(batch, generator, recipe)
        cast("FSDPModule", self.model).reshard()  # torch waits for a backward pass
        return values[1:3]

    def __call__(
        self, micro: Sequence[Batch], generators: Sequence[torch.Generator], recipe: Recipe
    ) -> Tensor:
        """Leaves the mean gradient in the model's weights; returns the mean losses (3,), the same in all processes."""
        self.model.zero_grad()
        own = range(self.group.rank, len(micro), self.group.size)
        sums = torch.zeros(3, device=self.model.device)
        for m in own:
            with nullcontext() if m == own[-1] else self.keeping():
                values = self.step(micro[m], generators[m], recipe)
                (values[0] / len(own)).backward()
            sums += values[1:].detach() / len(micro)
        dist.all_reduce(sums)
        return sums.cpu()


def divide(model: DiffusionGemma, group: Group, device: torch.device, *, half: bool) -> None:
    """Leaves a part of every weight in each process, on its device. half: weights are put together in bfloat16, from
    parts in float32; gradients are added up in float32."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    if device.type == "cuda":
        torch.cuda.set_device(device)
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None,
        reduce_dtype=torch.float32 if half else None,
        cast_forward_inputs=False,
    )
    mesh = init_device_mesh(device.type, (group.size,))
    # The layers of both modes share parameters where an adapter changes one mode alone.
    of_modes = [layers for layers in (model.layers, model.causal_layers) if layers is not None]
    groups: list[list[nn.Module]] = [list(layers) for layers in zip(*of_modes, strict=True)]
    groups.append([model])
    for modules in groups:
        for module in modules:
            vars(module)["gathered"] = partial(_run, module)
        fully_shard(modules, mesh=mesh, mp_policy=policy)
        for module in modules:
            register_fsdp_forward_method(module, "gathered")


def _run(module: nn.Module, run: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """As dense_pass.py's `through` calls it."""
    return run(module, *arguments)


def gather(model: DiffusionGemma, group: Group) -> None:
    """Puts what learnt together in the first process, on the CPU, as plain parameters. The model trains no more."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                found = whole(parameter.detach())
                if group.rank == 0:
                    module._parameters[name] = nn.Parameter(found.cpu())
