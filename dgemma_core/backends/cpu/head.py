"""The vocabulary head of larger models on a CPU: statistics by C, one pass over a slice.

Axes: N rows, D hidden size, V vocabulary, S tokens of a slice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgemma_core.backends.cpu.online_softmax import COnlineSoftmax, sample_in_group, serves
from dgemma_core.functions import functions
from dgemma_core.head import (
    GROUP,
    Asked,
    Matrix,
    Sums,
    VocabularyHead,
    dense,
    found_in,
    times_root,
)

NEGLIGIBLE = 2.0**-32
"""A slice's share of the mass so far that changes no digit of a soft embedding in float32."""


class CpuHead(VocabularyHead):
    """`VocabularyHead` with faster `sums`."""

    def over(self, weight: Matrix) -> VocabularyHead:
        return CpuHead(weight, self.soft_cap)

    def sums(self, hidden: Tensor, asked: Asked) -> Sums:
        if not serves(hidden):
            return super().sums(hidden, asked)
        rows, sampled = len(hidden), asked.uniform is not None and asked.filters is None
        temperatures = asked.temperatures if asked.tempered else 1.0
        two = asked.two_distributions
        reference = 1.0 if asked.reference == "raw" else temperatures
        softmax = COnlineSoftmax(rows, self.soft_cap, reference, sampled and not two, asked.top_k)
        sampling = softmax
        if two and sampled:
            sampling = COnlineSoftmax(rows, self.soft_cap, temperatures, sampled)
        summed = torch.zeros(rows, hidden.shape[1])
        buffer: Tensor | None = None
        for start, part in self.slices(rows):
            weight = dense(part, hidden.dtype)
            if hidden.dtype == torch.bfloat16:  # oneDNN's product can write where it is told to
                if buffer is None or buffer.shape[1] != len(weight):
                    buffer = hidden.new_empty(rows, len(weight))
                products = torch.mm(hidden, weight.mT, out=buffer)
            else:
                products = functions().linear(hidden, weight)
            if sampling is not softmax:
                sampling.add(products.clone(), start, keep=False)
            added = softmax.add(products, start, keep=asked.soft)
            if not asked.soft:
                continue
            # On a CPU, reading the maximum is free, so slices with negligible mass skip the second product.
            if bool((added.mass <= NEGLIGIBLE * softmax.mass).all()):
                summed.mul_(added.shrink)
            else:
                summed = softmax.blend(summed, functions().linear(added.weights, weight.mT), added)
        soft = times_root((summed / softmax.mass).to(hidden.dtype)) if asked.soft else None
        return Sums(softmax, sampling, soft)  # type: ignore[arg-type]

    def inverse_cdf(self, hidden: Tensor, asked: Asked, groups: Tensor) -> tuple[Tensor, Tensor]:
        assert asked.uniform is not None
        if not serves(hidden):
            return super().inverse_cdf(hidden, asked, groups)
        group, inside = found_in(groups, asked.uniform.unsqueeze(1))
        first = group * GROUP
        end = (first + GROUP).clamp_max(self.vocab_size)
        found = self._in_groups(hidden, asked.temperatures, first, end, inside)
        if found is None:
            return super().inverse_cdf(hidden, asked, groups)
        return found[0].squeeze(1), found[1].squeeze(1)

    def _in_groups(
        self, hidden: Tensor, temperatures: Tensor, first: Tensor, end: Tensor, inside: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """As `sample_in_group`; of a matrix that is none in memory, the groups are copied, some at a time."""
        if isinstance(self.weight, Tensor):
            return sample_in_group(
                hidden, self.weight, self.soft_cap, temperatures, first, end, inside
            )
        tokens, logits = [], []
        for part in torch.arange(len(hidden)).split(self.groups_at_a_time(hidden)):
            ids = (first[part] + torch.arange(GROUP)).clamp_max(self.vocab_size - 1)
            near = dense(self.weight[ids.flatten()], hidden.dtype)
            begin = torch.arange(0, len(near), GROUP).unsqueeze(1)
            found = sample_in_group(
                hidden[part], near, self.soft_cap, temperatures[part], begin,
                begin + end[part] - first[part], inside[part],
            )  # fmt: skip
            if found is None:
                return None
            tokens.append(found[0] - begin + first[part])
            logits.append(found[1])
        return torch.cat(tokens), torch.cat(logits)
