"""Sums over classes of tokens, by the vocabulary head: what conditioning needs to know of a pass.

A class's tokens make a head of their own (`VocabularyHead.over`), so a large class gets its statistics, its mean
embedding and its samples as the whole vocabulary does, on every backend. All heads together see each token once, as the
free head does. The tokens of small classes stand side by side in one array, which is small itself.

Axes: N rows of hidden states, D hidden size, V vocabulary, K classes, T tokens of small classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dgemma_core.constraints.automaton import TokenAutomaton
from dgemma_core.draws import found_in, upload
from dgemma_core.head import (
    SLICE,
    Asked,
    Matrix,
    Sums,
    VocabularyHead,
    check_finite,
    dense,
    times_root,
)

LARGE = 128
"""Tokens of a class that is worth a head of its own, on a CPU."""
LARGER = 8
"""So many times more elsewhere, where sums over small classes cost less than the start of a head."""
SMALL_TOKENS = 2**13
"""Most tokens of small classes: then smaller ones get heads, too."""


class Rows:
    """Some tokens' embeddings (n, D), as a `head.Matrix`: a part is taken from the whole when it is asked for.

    buffer: (most tokens of a slice, D), where slices are copied to, each over the one before; None: each gets its own
    memory, which costs more than the copy.
    """

    def __init__(self, weight: Matrix, ids: Tensor, buffer: Tensor | None = None) -> None:
        self.weight, self.ids, self.buffer = weight, ids, buffer
        self.shape = (len(ids), *weight.shape[1:])

    def __getitem__(self, index: Any) -> Any:
        ids = self.ids[index]
        if isinstance(index, slice) and len(ids) and int(ids[-1] - ids[0]) + 1 == len(ids):
            return self.weight[int(ids[0]) : int(ids[-1]) + 1]  # neighbours: nothing to copy
        if isinstance(index, slice) and self.buffer is not None and len(ids) <= len(self.buffer):
            return torch.index_select(self.weight, 0, ids, out=self.buffer[: len(ids)])
        if isinstance(self.weight, Tensor):
            return self.weight.index_select(0, ids.flatten()).unflatten(0, ids.shape)
        return self.weight[ids]


@dataclass(frozen=True, eq=False)
class Layout:
    """Which classes have heads of their own, on one device."""

    large: tuple[tuple[int, Tensor], ...]
    """Classes and their tokens."""
    small_ids: Tensor
    """(T,) tokens of the other classes, class by class."""
    small: Tensor
    """(n,) these classes, empty ones included."""
    lengths: Tensor
    """(n,) how many tokens each has."""
    classes: Tensor
    """(V,)"""

    @classmethod
    def of(cls, automaton: TokenAutomaton, device: torch.device) -> Layout:
        """The automaton's, remembered."""
        known = automaton.memory.get(device)
        if not isinstance(known, Layout):
            order, bounds = automaton.order, automaton.bounds.tolist()
            sizes = [
                end - begin for begin, end in zip(bounds, [*bounds[1:], len(order)], strict=True)
            ]
            sizes = sizes[: automaton.class_count]
            least = LARGE if device.type == "cpu" else LARGER * LARGE
            small, left = set(range(len(sizes))), sum(sizes)
            for k in sorted(small, key=lambda k: -sizes[k]):
                if sizes[k] < least and left <= SMALL_TOKENS:
                    break
                small.remove(k)
                left -= sizes[k]
            tokens = [
                torch.from_numpy(order[bounds[k] : bounds[k] + sizes[k]]) for k in range(len(sizes))
            ]
            chosen = sorted(small)
            known = cls(
                large=tuple(
                    (k, upload(tokens[k], device)) for k in range(len(sizes)) if k not in small
                ),
                small_ids=upload(
                    torch.cat([torch.empty(0).long(), *(tokens[k] for k in chosen)]), device
                ),
                small=upload(torch.tensor(chosen, dtype=torch.long), device),
                lengths=upload(torch.tensor([sizes[k] for k in chosen], dtype=torch.long), device),
                classes=upload(torch.from_numpy(automaton.classes).long(), device),
            )
            automaton.memory[device] = known
        return known


class ClassSums:
    """One pass over the vocabulary for N rows, by class; all (N, K).

    logmass, entropy, peak, argmax: of the reference distribution within a class: log Σ exp, entropy in nats, largest
    logit and its token. sampling: log Σ exp of the sampling distribution.
    """

    def __init__(
        self, head: VocabularyHead, automaton: TokenAutomaton, hidden: Tensor, asked: Asked
    ) -> None:
        self.head, self.hidden, self.asked = head, hidden, replace(asked, filters=None)
        self.two = asked.tempered and asked.reference == "raw"
        self.layout = layout = Layout.of(automaton, hidden.device)
        count, k = len(hidden), automaton.class_count
        self.logmass = hidden.new_full((count, k), -torch.inf, dtype=torch.float32)
        self.entropy, self.peak = torch.zeros_like(self.logmass), self.logmass.clone()
        self.argmax = torch.zeros(count, k, dtype=torch.long, device=hidden.device)
        self.sampling = self.logmass.clone() if self.two else self.logmass
        self.large: dict[int, tuple[VocabularyHead, Sums, dict[str, Tensor]]] = {}
        longest = min(SLICE, max((len(ids) for _, ids in layout.large), default=0))
        whole = isinstance(head.weight, Tensor)
        buffer = head.weight.new_empty(longest, head.weight.shape[1]) if whole else None
        for number, ids in layout.large:
            self._add_large(number, ids, buffer)
        # (T, N): raw logits of the small classes' tokens
        rows = Rows(head.weight, layout.small_ids)
        part = head.over(rows)
        self.logits = (
            part.logits(hidden).mT.contiguous()
            if len(rows.ids)
            else hidden.new_zeros(0, count).float()
        )
        self._add_small()
        check_finite(hidden, self.logsumexp)

    def _add_large(self, number: int, ids: Tensor, buffer: Tensor | None) -> None:
        head = self.head.over(Rows(self.head.weight, ids, buffer))
        sums = head.sums(self.hidden, replace(self.asked, top_k=min(self.asked.top_k, len(ids))))
        fields = sums.softmax.fields()
        self.large[number] = head, sums, fields
        self.logmass[:, number] = fields["logsumexp"]
        self.entropy[:, number] = fields["entropy"]
        self.peak[:, number] = fields["argmax_probability"].log() + fields["logsumexp"]
        self.argmax[:, number] = ids[fields["argmax"]]
        if self.two:
            self.sampling[:, number] = sums.sampling.logsumexp.squeeze(1)

    def _add_small(self) -> None:
        layout, z = self.layout, self.scaled("reference")
        peak = self._segments(z, "max")  # (n, N)
        below = z - peak.repeat_interleave(layout.lengths, dim=0)
        weights = below.exp()
        mass = self._segments(weights, "sum")
        weighted = self._segments(weights * below, "sum")
        places = torch.arange(len(z), device=z.device, dtype=torch.float32).unsqueeze(1)
        place = self._segments(torch.where(below == 0, places, float(len(z))), "min")
        full = layout.lengths > 0
        small = layout.small[full]
        self.logmass[:, small] = (mass.log() + peak)[full].mT
        self.entropy[:, small] = (mass.log() - weighted / mass)[full].clamp_min(0).mT
        self.peak[:, small] = peak[full].mT
        if len(z):
            ids = layout.small_ids[place[full].long().clamp_max(len(z) - 1)]
            self.argmax[:, small] = ids.mT
        if self.two:
            z = self.scaled("sampling")
            peak = self._segments(z, "max")
            mass = self._segments((z - peak.repeat_interleave(layout.lengths, dim=0)).exp(), "sum")
            self.sampling[:, small] = (mass.log() + peak)[full].mT

    def _segments(self, values: Tensor, how: Literal["max", "min", "sum"]) -> Tensor:
        """(T, N) → (n, N), class by class."""
        return torch.segment_reduce(values, how, lengths=self.layout.lengths, axis=0, unsafe=True)

    def scaled(self, which: Literal["reference", "sampling"]) -> Tensor:
        """Logits (T, N) of the small classes' tokens under one of the two distributions."""
        raw = which == "reference" and self.asked.reference == "raw"
        return self.logits if raw else self.logits / self.asked.temperatures.mT

    @property
    def logsumexp(self) -> Tensor:
        """(N,) of the reference distribution over all tokens."""
        return self.logmass.logsumexp(dim=1)

    def soft(self, shares: Tensor) -> Tensor:
        """shares (N, K) of the classes, float32 → soft embedding (N, D)."""
        total = torch.zeros(self.hidden.shape, device=self.hidden.device)
        for number, (_, sums, _) in self.large.items():
            assert sums.soft is not None
            total += sums.soft * shares[:, number : number + 1]
        if len(self.logits):
            factor = (shares.log() - self.logmass)[:, self.layout.small].mT  # (n, N)
            weights = (
                self.scaled("reference") + factor.repeat_interleave(self.layout.lengths, dim=0)
            ).exp()
            weight = dense(self.head.weight[self.layout.small_ids], self.hidden.dtype)
            total += times_root(weights.mT.to(self.hidden.dtype) @ weight)
        return total.to(self.hidden.dtype)

    def tokens(self, rows: Tensor, classes: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Where in each row's class its cumulative probability first exceeds `inside` of the class's mass.

        rows, classes (R,), inside (R,) float64 → tokens and logits under the sampling distribution, (R,) both.
        """
        token, logit = torch.empty_like(rows), torch.empty(len(rows), device=rows.device)
        begins = (self.layout.lengths.cumsum(0) - self.layout.lengths).tolist()
        places = {k: i for i, k in enumerate(self.layout.small.tolist())}
        ids = dict(self.layout.large)
        z = self.scaled("sampling") if len(self.logits) else self.logits
        for number in classes.unique().tolist():
            chosen = (classes == number).nonzero().squeeze(1)
            of, target = rows[chosen], inside[chosen]
            if number in self.large:
                head, sums, _ = self.large[number]
                asked = replace(
                    self.asked, temperatures=self.asked.temperatures[of], uniform=target
                )
                groups = sums.sampling.groups()[of]
                found, logit[chosen] = head.inverse_cdf(self.hidden[of].contiguous(), asked, groups)
                token[chosen] = ids[number][found]
                continue
            begin = begins[places[number]]
            end = begin + int(self.layout.lengths[places[number]])
            logits = z[begin:end, of].mT  # (R', tokens)
            masses = (logits - logits.amax(dim=1, keepdim=True)).double().exp()
            place, _ = found_in(masses, target.unsqueeze(1))
            token[chosen] = self.layout.small_ids[begin + place.squeeze(1)]
            logit[chosen] = logits.gather(1, place).squeeze(1)
        return token, logit

    def logit_of(self, tokens: Tensor) -> Tensor:
        """Logits (N,) of one token a row, under the reference distribution."""
        logits = self.head.token_logit(self.hidden, tokens)
        return (
            logits if self.asked.reference == "raw" else logits / self.asked.temperatures.squeeze(1)
        )

    def top(self, factors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The tokens of the largest logits plus their class's log-factor (N, K): ids and these sums, (N, count)."""
        found = [
            (fields["top_logits"] + factors[:, number : number + 1], ids[fields["top_ids"]])
            for (number, ids), (_, _, fields) in zip(
                self.layout.large, self.large.values(), strict=True
            )
        ]
        if len(self.logits):
            added = factors[:, self.layout.small].mT.repeat_interleave(self.layout.lengths, dim=0)
            z = (self.scaled("reference") + added).mT
            values, places = z.topk(min(count, z.shape[1]), dim=1)
            found.append((values, self.layout.small_ids[places]))
        values, ids = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        values, places = values.topk(min(count, values.shape[1]), dim=1)
        return ids.gather(1, places), values
