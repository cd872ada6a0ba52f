"""Low-rank adapters (LoRA, arXiv 2106.09685): what they add to a model's matrices, for both modes or for one alone.

Notable:
- an adapted module keeps its base and adds scale · B A x; the base may be quantised;
- the causal mode and the denoiser share their layers. An adapter that changes them unequally gives the model a second
  set of layers, `causal_layers`: other module objects around the same parameters, with adapters of their own;
- `merge` turns plain adapted matrices into plain matrices again, so that every backend runs them as any other weights.
  The matrices of a mode that is changed alone are then copies; all others stay shared;
- factors are stored as PEFT stores them: of E stacked experts, A is (E · r, inputs), the ranks of an expert together,
  and B is (outputs, r · E), the experts of a rank together.

Axes: r rank, E experts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgemma_core.errors import CheckpointError
from dgemma_core.experts import Experts
from dgemma_core.files.quantised import Holder
from dgemma_core.model import DiffusionGemma

STACKS = ("gate_up_proj", "down_proj")
"""The stacked matrices of experts, in the order in which they are used."""
CONDITIONING = "self_conditioning."
"""Begins the names of what only the denoiser runs."""


class LowRank(nn.Module):
    """scale · B A of one matrix, or of a stack of `count` matrices."""

    def __init__(
        self, a: Tensor, b: Tensor, scale: float, *, count: int = 1, dropout: float = 0.0
    ) -> None:
        """a (count · r, inputs), b (outputs, r · count). dropout: share of inputs that are left out in training mode,
        of a single matrix; of stacked ones PEFT knows none."""
        super().__init__()
        self.lora_A = nn.Parameter(a, requires_grad=False)
        self.lora_B = nn.Parameter(b, requires_grad=False)
        self.scale, self.count, self.dropout = scale, count, dropout

    @property
    def rank(self) -> int:
        return len(self.lora_A) // self.count

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A (E, r, inputs) and B (E, outputs, r) of a stack."""
        a = self.lora_A.view(self.count, -1, self.lora_A.shape[1])
        b = self.lora_B.view(len(self.lora_B), -1, self.count).permute(2, 0, 1)
        return a.to(dtype), b.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, inputs) → (…, outputs), of a single matrix."""
        x = F.dropout(x, self.dropout, self.training)
        inner = F.linear(x, self.lora_A.to(x.dtype))
        return F.linear(inner, self.lora_B.to(x.dtype)) * self.scale

    def of_expert(self, index: int, x: Tensor) -> Tensor:
        """x (n, inputs) → (n, outputs), of one matrix of a stack."""
        a = self.lora_A[index * self.rank : (index + 1) * self.rank].to(x.dtype)
        b = self.lora_B[:, index :: self.count].to(x.dtype)
        return F.linear(F.linear(x, a), b) * self.scale

    def added_to(self, weight: Tensor) -> Tensor:
        """weight + scale · B A, computed in float32, in the weight's dtype."""
        a, b = self.factors(torch.float32)
        delta = (b @ a * self.scale).view(weight.shape)
        return (weight.float() + delta).to(weight.dtype)


class LoraLinear(nn.Module):
    """A projection with an adapter."""

    def __init__(self, base: nn.Module, lora: LowRank) -> None:
        super().__init__()
        self.base, self.lora = base, lora

    def forward(self, x: Tensor) -> Tensor:
        """x (…, inputs) → (…, outputs)."""
        return cast(Tensor, self.base(x) + self.lora(x))


class LoraExperts(Experts):
    """Experts with adapters of one stack of matrices, or of both."""

    def __init__(self, base: Experts, lora: Mapping[str, LowRank]) -> None:
        nn.Module.__init__(self)  # the matrices are the base's
        self.count = base.count
        self.base = base
        self.loras = nn.ModuleDict({name: lora[name] for name in STACKS if name in lora})

    def lora(self, name: str) -> LowRank | None:
        """The adapter of a stack."""
        return cast(LowRank, self.loras[name]) if name in self.loras else None

    def product(self, name: str, index: int, x: Tensor) -> Tensor:
        found, lora = self.base.product(name, index, x), self.lora(name)
        return found if lora is None else found + lora.of_expert(index, x)


@dataclass(frozen=True)
class Adapter:
    """Adapters by the name of the parameter that they change, for each mode. A module that stands in both changes both
    with the same numbers."""

    causal: Mapping[str, LowRank]
    denoiser: Mapping[str, LowRank]

    @property
    def shared(self) -> bool:
        """Whether the layers of both modes stay the same."""
        return _of_layers(self.causal) == _of_layers(self.denoiser)

    @property
    def modes(self) -> str:
        """ "both", "denoiser", "causal", or "unequal" where each mode has its own."""
        if self.shared:
            return "both"
        if not (self.causal and self.denoiser):
            return "denoiser" if self.denoiser else "causal"
        return "unequal"

    def modules(self) -> dict[str, LowRank]:
        """Every adapter once, by a name of its own."""
        found = {f"causal.{name}": lora for name, lora in self.causal.items()}
        found |= {f"denoiser.{name}": lora for name, lora in self.denoiser.items()}
        return {name: lora for lora, name in {lora: name for name, lora in found.items()}.items()}


def _of_layers(loras: Mapping[str, LowRank]) -> dict[str, LowRank]:
    return {name: lora for name, lora in loras.items() if not name.startswith(CONDITIONING)}


def attach(model: DiffusionGemma, adapter: Adapter) -> None:
    """Puts adapted modules in the place of those whose matrices the adapter changes. The names must be the model's."""
    denoises = model.config.can_denoise
    if denoises and not adapter.shared:
        model.causal_layers = nn.ModuleList(_twin(layer) for layer in model.layers)
        own = {name.removeprefix("layers."): lora for name, lora in adapter.causal.items()}
        _wrap(model.causal_layers, own)
    _wrap(model, adapter.denoiser if denoises else adapter.causal)


def _wrap(root: nn.Module, loras: Mapping[str, LowRank]) -> None:
    of_experts: dict[str, dict[str, LowRank]] = {}
    for name, lora in loras.items():
        path, _, parameter = name.rpartition(".")
        if parameter in STACKS:
            of_experts.setdefault(path, {})[parameter] = lora
        else:
            root.set_submodule(path, LoraLinear(root.get_submodule(path), lora), strict=True)
    for path, stacks in of_experts.items():
        experts = cast(Experts, root.get_submodule(path))
        root.set_submodule(path, LoraExperts(experts, stacks), strict=True)


def _twin(module: nn.Module) -> nn.Module:
    """Another object around the same parameters; modules that have no modules of their own stay the same objects."""
    if not module._modules:
        return module
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    twin._modules = {
        name: part if part is None else _twin(part) for name, part in module._modules.items()
    }
    return twin


def adapted(root: nn.Module) -> Iterator[tuple[str, LoraLinear | LoraExperts]]:
    """The adapted modules in a model, by path."""
    for path, module in root.named_modules(remove_duplicate=False):
        if isinstance(module, LoraLinear | LoraExperts):
            yield path, module


@torch.no_grad()
def merge(model: DiffusionGemma) -> None:
    """Puts plain modules with merged matrices in the place of adapted ones whose base is not quantised. Raises
    CheckpointError where a merged matrix is not finite."""
    merged: dict[tuple[LowRank, ...], nn.Module] = {}  # a module that both modes share stays shared
    for path, module in list(adapted(model)):
        if isinstance(module.base, Holder):
            continue
        loras = (module.lora,) if isinstance(module, LoraLinear) else tuple(module.loras.values())
        key = cast(tuple[LowRank, ...], loras)
        if key not in merged:
            merged[key] = _merged(path, module)
        model.set_submodule(path, merged[key], strict=True)


def _merged(path: str, module: LoraLinear | LoraExperts) -> nn.Module:
    plain = copy.copy(module.base)  # another object: the other mode may keep the base
    plain._parameters = dict(plain._parameters)
    if isinstance(module, LoraLinear):
        assert isinstance(plain, nn.Linear)
        changed = {"weight": module.lora}
    else:
        changed = {name: cast(LowRank, lora) for name, lora in module.loras.items()}
    for name, lora in changed.items():
        weight = lora.added_to(cast(Tensor, plain._parameters[name]))
        low, high = torch.aminmax(weight)  # a NaN makes both extremes NaN
        if not bool(low.isfinite() & high.isfinite()):
            kind = str(weight.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{path}.{name}: expected finite numbers as {kind} after its adapter is merged, found NaN or infinite"
                " ones; tune the adapter again with a lower rate or alpha"
            )
        setattr(plain, name, nn.Parameter(weight, requires_grad=False))
    return plain
