"""Tuning a trained model: adapters or all weights, by `Trainer`'s loop, with AdamW from torch.

Notable:
- what learns is what asks for a gradient: factors of low rank beside frozen matrices, which may be quantised, or all
  weights. Checkpoints hold that alone;
- an adapter begins as PEFT's does: A as `nn.Linear` is initialised, B zero, so the first step starts from the base;
- `validate` measures both losses on held-out texts, with the same noise each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dgemma_core.errors import RequestError, check_count, check_kind, check_number, shown
from dgemma_core.facts.machine import bfloat16_multiplies
from dgemma_core.files.lora import CONDITIONING, STACKS, Adapter, LowRank, attach
from dgemma_core.files.names import FLOATS
from dgemma_core.files.quantised import scheme
from dgemma_core.files.tensors import short_name
from dgemma_core.model import DiffusionGemma
from dgemma_core.train import checkpoints
from dgemma_core.train.batches import Batch, Place, collate, generator_of
from dgemma_core.train.distributed import ALONE, Averaged, Group, divide, gather
from dgemma_core.train.loop import Trainer, learning
from dgemma_core.train.loss import Losses, Modes, loss
from dgemma_core.train.recipe import Recipe, check_pair, listed
from dgemma_core.train.texts import Text, canvas_count

TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "experts": ("experts.gate_up_proj", "experts.down_proj"),
    "self_conditioning": tuple(f"self_conditioning.{name}_proj" for name in ("gate", "up", "down")),
    "router": ("router.proj",),
}
"""What an adapter may change: groups of matrices, and the names in each."""
USUAL = tuple(group for group in TARGETS if group != "router")
"""What it changes unless asked; the router keeps choosing as it did."""
KNOWN = f"choose of {', '.join(TARGETS)}, or single ones as q_proj or experts.down_proj"
RATE = 0.6
"""The default learning rate is this over the hidden size: 2e-4 in the released width, as TRL has it; more in smaller
models. Training all weights takes a tenth of it."""
LOSSES = ("canvas_loss", "autoregressive_loss")
VALIDATED = 16
"""Held-out texts of a batch."""


@dataclass(frozen=True, kw_only=True)
class TuneRecipe(Recipe):
    """What determines a tuning run; two runs of one recipe give the same bits."""

    name: ClassVar[str] = "tune"

    modes: Modes = "both"
    """Which modes an adapter changes. The other one stays as it was, bit for bit."""
    full: bool = False
    """Train all weights in place of an adapter."""
    rank: int = 16
    alpha: float = 32.0
    """The factors' product counts alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs left out in training; not of experts, for which PEFT knows none."""
    targets: tuple[str, ...] = USUAL
    """Groups of matrices, or names of matrices; a text names them with commas."""
    schedule: Literal["cosine", "constant"] = "cosine"
    noise: tuple[float, float] = (0.0, 1.0)
    """A canvas's share of noise is uniform between these two."""
    recomputes: bool = False
    """Activation checkpointing: layers run again for their gradient."""
    dtype: str = "float32"
    """Of the base. Weights that learn stay in float32, since an update of less than 2⁻⁹ of a bfloat16 number is lost;
    with `full`, bfloat16 is the dtype of passes, and of the checkpoint that is written."""
    quantize: str | None = None
    base: str = ""
    """Digest of the weights that the run begins with."""
    data: str = ""
    """Digest of the texts."""
    betas: tuple[float, float] = (0.95, 0.99)
    weight_decay: float = 0.0
    balance: float = 0.0
    micro_batches: int = 1
    warmup: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("full", "recomputes"):
            check_kind(f"tune: {option}", getattr(self, option), bool, "True or False")
        check_count(self, "rank", low=1)
        check_number(self, "alpha", above=0)
        check_number(self, "dropout")
        low, high = check_pair(self, "noise")
        if not low <= high <= 1 or self.dropout >= 1:
            raise RequestError(
                f"noise is a range within 0 … 1 and dropout below 1, got {self.noise} and {self.dropout}"
            )
        if self.modes not in ("both", "denoiser", "causal"):
            raise RequestError(f"modes: expected both, denoiser or causal, found {self.modes!r}")
        if self.schedule not in ("cosine", "constant"):
            raise RequestError(f"schedule: expected cosine or constant, found {self.schedule!r}")
        names = ("auto", *map(short_name, FLOATS))
        if self.dtype not in names:
            raise RequestError(f"dtype: expected {', '.join(names)}, found {shown(self.dtype)}")
        if self.quantize is not None:
            scheme(self.quantize)
        self._check_targets()
        if self.full:
            self._check_full()

    def _check_targets(self) -> None:
        given: Any = self.targets
        texts = given.split(",") if isinstance(given, str) else listed(given)
        targets = tuple(text.strip() if isinstance(text, str) else text for text in texts)
        if not targets or not all(isinstance(target, str) and target for target in targets):
            raise RequestError(
                f"targets are names of matrices or groups of them, got {shown(given)}: {KNOWN}"
            )
        object.__setattr__(self, "targets", targets)

    def _check_full(self) -> None:
        if self.modes != "both":
            raise RequestError("all weights belong to both modes: leave modes out, or full")
        if self.quantize:
            raise RequestError("quantised weights cannot be trained: leave quantize out, or full")
        if self.dtype not in ("float32", "bfloat16"):
            raise RequestError(
                f"all weights learn in float32, with passes in float32 or bfloat16: dtype {self.dtype} is neither"
            )
        plain = {"rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": USUAL}
        if given := [option for option, value in plain.items() if getattr(self, option) != value]:
            raise RequestError(
                f"{', '.join(given)}: of an adapter, and all weights learn: leave {given[0]} out, or full"
            )

    def noise_level(self, t: Tensor) -> Tensor:
        low, high = self.noise
        return low + (high - low) * t

    def rate_at(self, step: int) -> float:
        if self.schedule == "constant":
            return min(1.0, (step + 1) / max(1, self.warmup))
        return super().rate_at(step)


def target_names(model: DiffusionGemma, targets: Sequence[str]) -> list[str]:
    """The parameters that `targets` name, groups or single matrices. Raises RequestError for one that names none."""
    names = [name for name, shape in matrix_shapes(model).items() if len(shape) > 1]
    found: list[str] = []
    for target in targets:
        ends = TARGETS.get(target, (target,))
        matched = [
            name
            for name in names
            if any(f".{name.removesuffix('.weight')}".endswith(f".{end}") for end in ends)
        ]
        if target == "self_conditioning" and not model.config.can_denoise:
            continue
        if not matched or "embed_tokens.weight" in matched:
            raise RequestError(f"targets: {target!r} names no matrix of the layers; {KNOWN}")
        found += matched
    return list(dict.fromkeys(found))


def adapted_names(model: DiffusionGemma, recipe: TuneRecipe) -> list[str]:
    """The parameters that an adapter changes. Raises RequestError where there are none."""
    causal = recipe.modes == "causal"
    names = [
        name
        for name in target_names(model, recipe.targets)
        if not (causal and name.startswith(CONDITIONING))
    ]
    if not names:
        why = "the causal mode has no" if model.config.can_denoise else "this model has no"
        raise RequestError(f"targets: {why} {', '.join(recipe.targets)}: name other matrices")
    return names


def matrix_shapes(model: DiffusionGemma) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape in the plain model, whether its matrices are quantised or not."""
    plain = DiffusionGemma(model.config, device="meta")
    return {name: tuple(parameter.shape) for name, parameter in plain.named_parameters()}


def new_adapter(model: DiffusionGemma, recipe: TuneRecipe) -> Adapter:
    """An adapter that changes nothing yet, in float32 on the model's device."""
    generator = generator_of(recipe.seed, 3)
    shapes = matrix_shapes(model)
    loras: dict[str, LowRank] = {}
    for name in adapted_names(model, recipe):
        *stacked, outputs, inputs = shapes[name]
        count = stacked[0] if stacked else 1
        a = torch.empty(count * recipe.rank, inputs)
        bound = inputs**-0.5
        a.uniform_(-bound, bound, generator=generator)
        b = torch.zeros(outputs, recipe.rank * count)
        dropout = 0.0 if name.endswith(STACKS) else recipe.dropout
        scale = recipe.alpha / recipe.rank
        loras[name] = LowRank(a, b, scale, count=count, dropout=dropout).to(model.device)
    of_layers = {n: lora for n, lora in loras.items() if not n.startswith(CONDITIONING)}
    if recipe.modes == "causal":
        return Adapter(of_layers, {})
    if not model.config.can_denoise:
        return Adapter(loras, {})
    return Adapter(of_layers if recipe.modes == "both" else {}, loras)


class AdamW(torch.optim.AdamW):
    """torch's, as `Trainer` asks for it."""

    def __init__(self, parameters: list[nn.Parameter], recipe: TuneRecipe) -> None:
        self.peak = recipe.learning_rate
        super().__init__(
            parameters, lr=self.peak, betas=recipe.betas, weight_decay=recipe.weight_decay
        )

    def updates(self) -> list[Callable[[], Any]]:
        """One update: torch makes it in one part."""
        return [self.step]

    def set_rate(self, share: float) -> None:
        """Every learning rate becomes `share` of its peak."""
        for group in self.param_groups:
            group["lr"] = self.peak * share

    def state_names(self) -> dict[Tensor, tuple[str, ...]]:
        """The names of every parameter's state after the first update."""
        names = ("step", "exp_avg", "exp_avg_sq")
        return {weight: names for group in self.param_groups for weight in group["params"]}


class Tuner(Trainer):
    """A tuning run in a folder. `adapter` is what it learns; None where all weights learn."""

    recipe: TuneRecipe

    def __init__(
        self,
        model: DiffusionGemma,
        texts: Callable[[int], Text],
        recipe: TuneRecipe,
        folder: Path,
        *,
        end: int,
        workers: int = 1,
        held_out: Sequence[Text] = (),
        validate_every: int = 0,
        group: Group = ALONE,
        shard: torch.device | None = None,
    ) -> None:
        """held_out: what `validate_every` so many steps is measured. group: the processes that share the work. shard:
        each of them holds a part of every weight, on this device; None: all hold all.

        Raises RequestError for what cannot be shared so, and for weights in another dtype than float32 that learn.
        """
        if recipe.micro_batches % group.size:
            raise RequestError(
                f"{recipe.micro_batches} parts of a batch do not divide among {group.size} processes: set --accumulate"
                f" to a multiple of {group.size}"
            )
        if shard is not None and (group.size == 1 or model.quantized):
            why = "this is one process" if group.size == 1 else "quantised weights stay whole"
            raise RequestError(
                f"shard divides weights among the processes of torchrun, and {why}: leave shard out, or"
                + (" start several" if group.size == 1 else " quantize")
            )
        if recipe.full and model.dtype != torch.float32:
            raise RequestError(
                "all weights learn in float32: load the model so (a recipe's dtype bfloat16 makes the passes)"
            )
        self.group, self.shard = group, shard
        self.adapter = None if recipe.full else new_adapter(model, recipe)
        if self.adapter is not None:
            attach(model, self.adapter)
        self.held_out = held_out
        alone = group.size == 1 and not recipe.dropout  # dropout draws from one stream
        super().__init__(
            model,
            texts,
            recipe,
            folder,
            end=end,
            workers=workers if alone else 1,
            validate=self.measure if held_out else None,
            validate_every=validate_every,
        )
        if self.working is not model and not recipe.full:
            for weight in learning(self.working):  # so that their gradients are added up in float32
                weight.data = weight.data.float()
        self.working.train()
        self.averaged = None
        if group.size > 1:
            self.averaged = Averaged(self.working, self.losses, group)

    def passes_in_bfloat16(self) -> bool:
        asked = self.recipe.full and self.recipe.dtype == "bfloat16"
        if self.shard is not None:
            fast = bfloat16_multiplies(self.shard) and self.model.dtype == torch.float32
            return asked or fast
        return asked or super().passes_in_bfloat16()

    def make_working(self) -> DiffusionGemma:
        return super().make_working() if self.shard is None else self.model

    def make_optimiser(self) -> AdamW:
        loras = () if self.adapter is None else self.adapter.modules().values()
        for module in loras if self.adapter is not None else (self.model,):
            module.requires_grad_(True)
        if self.shard is not None:
            divide(self.model, self.group, self.shard, half=self.half)
        return AdamW(learning(self.model), self.recipe)

    def losses(self, model: DiffusionGemma, batch: Batch, generator: torch.Generator) -> Losses:
        recipe = self.recipe
        with torch.random.fork_rng(enabled=recipe.dropout > 0):
            if recipe.dropout:  # torch's dropout takes no generator
                torch.manual_seed(generator.initial_seed())
            return loss(
                model, batch, recipe, generator, modes=recipe.modes, recomputes=recipe.recomputes
            )

    def agreed(self, flag: bool) -> bool:
        return self.group.any(flag)

    def gradients(self, micro: Sequence[Batch]) -> Tensor:
        if self.averaged is None:
            return super().gradients(micro)
        generators = [
            generator_of(self.recipe.seed, 2, self.progress.step, m) for m in range(len(micro))
        ]
        with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.half):
            sums = self.averaged(micro, generators, self.recipe)
        for weight, worked in zip(learning(self.model), learning(self.working), strict=True):
            found = worked.grad  # None where nothing used the weight: no self-conditioning
            weight.grad = torch.zeros_like(weight) if found is None else found.float()
        return sums

    @torch.no_grad()
    def measure(self, model: DiffusionGemma) -> dict[str, float]:
        """Both losses on the held-out texts, every canvas of each."""
        training = model.training
        model.eval()
        length = model.config.canvas_length
        sums, canvases = torch.zeros(2), 0
        order = sorted(self.held_out, key=lambda text: len(text.prompt) + len(text.answer))
        pairs = [(text, c) for text in order for c in range(canvas_count(text, length))]
        for first in range(0, len(pairs), VALIDATED):
            part = pairs[first : first + VALIDATED]
            places = [[Place(c * length, length)] for _, c in part]
            batch = collate([text for text, _ in part], self.end, places)
            generator = generator_of(self.recipe.seed, 4, first)
            with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=self.half):
                if self.shard is not None:
                    assert self.averaged is not None
                    values = self.averaged.look(batch, generator, self.recipe)
                else:
                    parts = self.losses(model, batch, generator)
                    values = torch.stack((parts.canvas, parts.autoregressive))
            found = values.float().cpu()
            sums += found * len(part)
            canvases += len(part)
        model.train(training)
        means = (sums / canvases).tolist()
        figures = {name: round(mean, 5) for name, mean in zip(LOSSES, means, strict=True)}
        return self.learnt(figures)

    def step(self, micro: Sequence[Batch]) -> dict[str, float]:
        return self.learnt(super().step(micro))

    def learnt(self, figures: dict[str, float]) -> dict[str, float]:
        """The figures without the loss of a mode that does not learn."""
        other = {"denoiser": LOSSES[1], "causal": LOSSES[0]}.get(self.recipe.modes)
        return {name: value for name, value in figures.items() if name != other}

    def save(self) -> None:
        writes = self.group.rank == 0  # the others hold the same numbers, or parts of them
        if writes or self.shard is not None:
            checkpoints.save(
                self.folder, self.recipe, self.progress, self.model, self.optimiser, writes=writes
            )

    def gather(self) -> None:
        """Ends the run: what learnt becomes plain parameters again, in the first process."""
        if self.shard is not None:
            gather(self.model, self.group)
