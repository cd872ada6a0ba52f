"""The optimiser: Muon for the matrices inside the layers, AdamW for everything else.

Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) takes the momentum of a matrix's gradient to the nearest
matrix with orthonormal rows, so that every direction moves equally far. torch.optim.Muon wants 2-D parameters; the
experts of this model are stacked, (E, rows, columns), and each expert is a matrix of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from dgemma_core.facts.machine import bfloat16_multiplies

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, chosen by its author for a steep slope at 0: singular values end near 1, not at it."""
ITERATIONS = 5


def orthogonal(update: Tensor) -> Tensor:
    """update (…, rows, columns) → the same singular vectors with singular values near 1; bfloat16 where the device
    multiplies that fast."""
    a, b, c = COEFFICIENTS
    x = update.bfloat16() if bfloat16_multiplies(update.device) else update.float()
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class MuonAdamW(torch.optim.Optimizer):
    """One optimiser over two kinds of parameters; a group's `muon` says which rule it follows.

    Both decay the weights by lr · weight_decay. A Muon update of (rows, columns) has the size
    lr · √max(1, rows / columns) in the spectral norm.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        matrix_lr: float,
        betas: tuple[float, float],
        momentum: float = 0.95,
        weight_decay: float,
    ) -> None:
        matrices, tables, vectors = split_parameters(model)
        groups: list[dict[str, Any]] = [
            {"params": matrices, "muon": True, "peak": matrix_lr},
            {"params": tables, "muon": False, "peak": lr},
            {"params": vectors, "muon": False, "peak": lr, "weight_decay": 0.0},
        ]
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)

    def state_names(self) -> dict[Tensor, tuple[str, ...]]:
        """The names of every parameter's state, as a checkpoint holds it after the first update."""
        kinds = {True: ("momentum",), False: ("step", "exp_avg", "exp_avg_sq")}
        return {p: kinds[group["muon"]] for group in self.param_groups for p in group["params"]}

    def set_rate(self, share: float) -> None:
        """Every group's learning rate becomes `share` of its peak."""
        for group in self.param_groups:
            group["lr"] = group["peak"] * share

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the gradients that are there."""
        for update in self.updates():
            update()

    def updates(self) -> list[Callable[[], None]]:
        """The parts of one step, one a parameter: they may run side by side, the largest come first."""
        members = [(p, group) for group in self.param_groups for p in group["params"]]
        members.sort(key=lambda member: -member[0].numel())
        return [partial(self._update, *each) for each in members if each[0].grad is not None]

    @torch.no_grad()
    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        rule = self._muon if group["muon"] else self._adamw
        rule(parameter, cast(Tensor, parameter.grad), group)

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"])  # Nesterov
        rows, columns = parameter.shape[-2:]
        size = group["lr"] * max(1.0, rows / columns) ** 0.5
        parameter.add_(orthogonal(ahead), alpha=-size)

    def _adamw(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        step = float(state["step"])
        scale = group["lr"] / (1 - first**step)
        root = (state["exp_avg_sq"] / (1 - second**step)).sqrt_().add_(1e-8)
        parameter.addcdiv_(state["exp_avg"], root, value=-scale)


def split_parameters(
    model: nn.Module,
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The model's matrices inside layers, its other tables (embedding, router), and its vectors and scalars."""
    matrices, tables, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            vectors.append(parameter)
        elif name == "embed_tokens.weight" or ".router." in name:
            tables.append(parameter)
        else:
            matrices.append(parameter)
    return matrices, tables, vectors
