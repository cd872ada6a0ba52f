"""Random numbers in the public implementations' order: one torch generator, consumed by a batch that never changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma_core.draws import Device, RowKey


@dataclass(frozen=True)
class OracleDraws:
    """Takes its numbers from `generator` (None: the global one): per canvas `first_canvas`, then per pass the samples
    (none at temperature 0) and the sampler's own draws."""

    generator: torch.Generator | None = None

    def first_canvas(
        self, rows: Sequence[RowKey], canvas_length: int, vocab_size: int, device: Device = "cpu"
    ) -> Tensor:
        """(B, C) int64, uniform over the vocabulary."""
        return self.step(rows, [-1] * len(rows), canvas_length, device).tokens(vocab_size)

    def step(
        self,
        rows: Sequence[RowKey],
        steps: Sequence[int],
        canvas_length: int,
        device: Device = "cpu",
    ) -> OraclePass:
        """The numbers of one pass over B rows of C positions."""
        return OraclePass(self.generator, len(rows), canvas_length, device)


@dataclass(frozen=True)
class OraclePass:
    """One pass of `OracleDraws`. Every call consumes the generator: make each once, in order."""

    generator: torch.Generator | None
    batch: int
    canvas_length: int
    device: Device = "cpu"

    @property
    def uniform(self) -> Tensor:
        """The oracles draw no uniform numbers for their samples."""
        raise TypeError("oracle draws sample by multinomial(probabilities)")

    def multinomial(self, probabilities: Tensor) -> Tensor:
        """(…, V) → (…) int64."""
        flat = probabilities.flatten(0, -2)
        drawn = torch.multinomial(flat, num_samples=1, generator=self.generator)
        return drawn.view(probabilities.shape[:-1])

    def tokens(self, vocab_size: int) -> Tensor:
        """(B, C) int64, uniform over the vocabulary."""
        shape = (self.batch, self.canvas_length)
        return torch.randint(vocab_size, shape, generator=self.generator, device=self.device)

    def choose(self, probabilities: Tensor) -> Tensor:
        """(B, C, K) → (B, C) int64."""
        return self.multinomial(probabilities)

    def gumbel(self) -> Tensor:
        """(B, C) float64, drawn in float32 and kept off 0 as the oracles do."""
        shape = (self.batch, self.canvas_length)
        uniform = torch.rand(shape, generator=self.generator, device=self.device)
        return -(-uniform.clamp(min=1e-12).log()).log().double()

    def categorical_rows(self, probabilities: Tensor, positions: Tensor) -> Tensor:
        """(B, k, V) → (B, k) int64."""
        return self.multinomial(probabilities)
