"""The training loop: one update a step, in a folder that a killed run resumes from to the same numbers.

Notable:
- micro-batches run side by side, one CPU thread each; their gradients are added up in one order, so the number of
  workers changes no number;
- where the device multiplies bfloat16 fast, passes run on a bfloat16 copy of the matrices that is refreshed once a
  step; weights, gradients' sum and optimiser stay in float32;
- batch, noise and order of step s are functions of (seed, s).
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from dgemma_core.errors import RequestError
from dgemma_core.facts.machine import bfloat16_multiplies
from dgemma_core.model import DiffusionGemma
from dgemma_core.train import checkpoints
from dgemma_core.train.batches import Batch, batches, generator_of
from dgemma_core.train.checkpoints import Optimiser, Progress, whole
from dgemma_core.train.loss import Losses, loss
from dgemma_core.train.optimiser import MuonAdamW
from dgemma_core.train.recipe import Recipe
from dgemma_core.train.texts import Text

Validate = Callable[[DiffusionGemma], dict[str, float]]
"""Measures the model on held-out examples: figures by name."""

PREPARED = "128"
"""Products that oneDNN keeps prepared. Training meets some 2,000 shapes. All of them take gigabytes (after 60 steps of
`tune` on nano in bfloat16 a process of 5.0 GB, and of 2.0 GB with this bound) and save no time."""


class Trainer:
    """A run in a folder (checkpoints.py says which files it writes)."""

    def __init__(
        self,
        model: DiffusionGemma,
        texts: Callable[[int], Text],
        recipe: Recipe,
        folder: Path,
        *,
        end: int,
        workers: int = 1,
        validate: Validate | None = None,
        validate_every: int = 0,
    ) -> None:
        """end: the token that fills a canvas behind its text. workers: micro-batches that are run side by side, each on
        one thread; the numbers stay the same. validate_every: steps between validations; 0: none."""
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PREPARED)
        self.model = model
        self.texts = texts
        self.recipe = recipe
        self.folder = folder
        self.end = end
        self.validate = validate
        self.validate_every = validate_every
        self.progress = Progress()
        self.stopping = False
        """Set by whoever wants the run to save and stop after the step at hand."""
        self.half = self.passes_in_bfloat16()
        self.optimiser = self.make_optimiser()
        self.working = self.make_working()
        self.workers = None
        if workers > 1:
            self.workers = ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(1,)
            )

    def passes_in_bfloat16(self) -> bool:
        """Whether passes over float32 weights run in bfloat16."""
        return bfloat16_multiplies(self.model.device) and self.model.dtype == torch.float32

    def make_working(self) -> DiffusionGemma:
        """The model that passes run on: where they run in bfloat16, a copy."""
        return _working_copy(self.model) if self.half else self.model

    def make_optimiser(self) -> Optimiser:
        """The rule that the weights follow; those that learn ask for a gradient from now on."""
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        return MuonAdamW(
            self.model,
            lr=self.recipe.learning_rate,
            matrix_lr=self.recipe.matrix_learning_rate,
            betas=self.recipe.betas,
            weight_decay=self.recipe.weight_decay,
        )

    def losses(self, model: DiffusionGemma, batch: Batch, generator: torch.Generator) -> Losses:
        """The losses of one micro-batch."""
        return loss(model, batch, self.recipe, generator)

    def step(self, micro: Sequence[Batch]) -> dict[str, float]:
        """One update from the gradients of all micro-batches; returns the figures of the learning curve."""
        step = self.progress.step
        self.optimiser.set_rate(self.recipe.rate_at(step))
        if self.working is not self.model:
            _refresh(self.working, self.model)
        sums = self.gradients(micro)
        norm = whole(torch.nn.utils.clip_grad_norm_(learning(self.model), self.recipe.clip))
        canvas, autoregressive, balance = sums.tolist()
        figures = {
            "canvas_loss": canvas,
            "autoregressive_loss": autoregressive,
            "balance": balance,
            "gradient_norm": float(norm),
        }
        if not all(math.isfinite(value) for value in figures.values()):
            raise RequestError(
                f"training diverged at step {step} ({figures}); start anew with a lower learning rate"
            )
        if self.workers is None:
            self.optimiser.step()
        else:
            list(self.workers.map(lambda update: update(), self.optimiser.updates()))
        return figures

    def gradients(self, micro: Sequence[Batch]) -> Tensor:
        """Leaves the mean gradient of all micro-batches in the weights, and returns their mean losses (3,)."""
        step = self.progress.step
        part = partial(self._part, step, len(micro))
        parameters = learning(self.model)
        for parameter in parameters:
            parameter.grad = None
        if self.workers is None:
            done = (part(m, batch) for m, batch in enumerate(micro))
        else:
            # The longest come first, so that no worker is left with one at the end.
            order = range(len(micro) - 1, -1, -1)
            running = {m: self.workers.submit(part, m, micro[m]) for m in order}
            done = (running.pop(m).result() for m in range(len(micro)))
        sums = torch.zeros(3)
        for gradients, values in done:  # added up in one order, whatever the workers
            sums += values
            if parameters[0].grad is None:
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient.float()
            else:
                totals = [cast(Tensor, parameter.grad) for parameter in parameters]
                torch._foreach_add_(totals, [gradient.float() for gradient in gradients])
            del gradients  # before the next ones are taken
        return sums

    def _part(
        self, step: int, count: int, m: int, batch: Batch
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Micro-batch m's share of the gradients, and its three losses."""
        generator = generator_of(self.recipe.seed, 2, step, m)
        model = self.working
        # Autocast's cache of weights is one for all threads, which would mix the workers' gradients.
        with torch.autocast(
            model.device.type, dtype=torch.bfloat16, enabled=self.half, cache_enabled=False
        ):
            parts = self.losses(model, batch, generator)
        total = parts.total(self.recipe) / count
        gradients = torch.autograd.grad(
            total, learning(model), allow_unused=True, materialize_grads=True
        )
        values = torch.stack((parts.canvas, parts.autoregressive, parts.balance))
        return gradients, values.detach().float().cpu() / count

    def run(
        self,
        *,
        minutes: float | None = None,
        until: int | None = None,
        checkpoint_minutes: float = 5.0,
        curve_every: int = 25,
        report: Callable[[Progress, dict[str, float]], None] | None = None,
    ) -> bool:
        """Trains until the recipe's last step (True), or until step `until`, or until `minutes` of this sitting are
        over or `stopping` is set (False unless that was the last step). Saves at its end, and every
        `checkpoint_minutes`. A row of the learning curve ends with every `curve_every`th step, the first and the last.
        """
        begun = saved = time.monotonic()
        before = self.progress.seconds
        canvas_length = self.model.config.canvas_length
        for micro in batches(self.texts, self.recipe, canvas_length, self.end, self.progress.step):
            figures = self.step(micro)
            progress = self.progress
            progress.add(figures)
            progress.seconds = before + time.monotonic() - begun
            last = progress.step == self.recipe.steps
            if progress.step in (1, self.recipe.steps) or progress.step % curve_every == 0:
                progress.close_row(self.recipe.batch_size)
            if report is not None:
                report(progress, {**figures, "tokens": sum(batch.tokens for batch in micro)})
            self._validate_if_due()
            now = time.monotonic()
            progress.seconds = before + now - begun
            over = minutes is not None and now - begun > minutes * 60
            over = self.agreed(self.stopping or over or progress.step == until)
            if over or self.agreed(now - saved > checkpoint_minutes * 60):
                self.save()
                saved = now
            if over:
                return last
        self.save()
        return True

    def _validate_if_due(self) -> None:
        step = self.progress.step
        due = self.validate_every and step % self.validate_every == 0
        if self.validate is None or not (due or step == self.recipe.steps):
            return
        found = self.validate(self.model)
        self.progress.validation.append({"step": step, **found})

    def agreed(self, flag: bool) -> bool:
        """What all processes of the run do where one of them wants it."""
        return flag

    def save(self) -> None:
        """Writes a checkpoint atomically; CheckpointError where it cannot be written."""
        checkpoints.save(self.folder, self.recipe, self.progress, self.model, self.optimiser)

    def resume(self) -> bool:
        """Takes up the folder's last checkpoint; False where there is none. Raises CheckpointError if it is damaged
        or belongs to another recipe."""
        found = checkpoints.load(self.folder, self.recipe, self.model, self.optimiser)
        if found is None:
            return False
        self.progress = found
        return True


def _working_copy(model: DiffusionGemma) -> DiffusionGemma:
    """A copy of the model with its matrices in bfloat16; vectors and scalars stay in float32."""
    working = copy.deepcopy(model)
    for parameter in working.parameters():
        if parameter.dim() >= 2:
            parameter.data = parameter.data.bfloat16()
    return working


@torch.no_grad()
def _refresh(working: DiffusionGemma, model: DiffusionGemma) -> None:
    """Copies the model's weights."""
    torch._foreach_copy_([*learning(working)], [*learning(model)])


def learning(model: DiffusionGemma) -> list[nn.Parameter]:
    """The weights that ask for a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
