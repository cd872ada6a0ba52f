"""The tied vocabulary head, streamed: hidden states in, a `Prediction` out, and no (C, V) array in between.

softmax(cap(h Eᵀ)/T) · E is attention over the vocabulary with keys and values E: one pass over slices of E with a
running maximum and running sums (online softmax, arXiv 1805.02867) gives the argmax, the entropy, the probabilities,
the top tokens and the soft embedding. A sample needs one uniform number a position (inverse-CDF sampling): sums over
groups of neighbouring tokens tell the group that the number falls on, and only its logits are computed again.

Two distributions of a position matter (spec §4):
- the *sampling* distribution, softmax(logits / T), which the sample comes from; a sampler may filter it;
- the *reference* distribution, which entropy and soft embedding come from: the same one for the entropy-bound sampler
  ("tempered"), the raw softmax(logits) for the others ("raw").

Backends override `fields`, or `sums` alone.

Axes: B batch, C canvas length, N = B·C rows, D hidden size, V vocabulary, S tokens of a slice, k top tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.draws import Filters, filtered, found_in, inverse_cdf, upload
from dgemma_core.errors import RequestError
from dgemma_core.functions import functions
from dgemma_core.layers import rounded
from dgemma_core.prediction import Asked, Prediction, Reference, SampleDraws

if TYPE_CHECKING:
    from dgemma_core.constraints.predicting import Conditions

Matrix = Any
"""A (V, D) tensor, or a quantised one: `shape`, rows by `[…]`, and `dequantize(dtype) -> Tensor`."""
SLICE = 8192
"""Tokens of a slice for a canvas of the released length."""
LOGITS = 256 * SLICE
"""Logits of a slice: 8 MB, which a CPU's cache holds."""
GROUP = 64
"""Neighbouring tokens of which sums are kept, to sample from. Slices hold whole groups."""
LEAST_TEMPERATURE = 1e-6
"""Below it, logits over the temperature are too large for float32."""


def soft_capped(logits: Tensor, cap: float) -> Tensor:
    """cap · tanh(logits / cap), float32."""
    return cap * torch.tanh(logits.float() / cap)


def dense(weight: Matrix, dtype: torch.dtype) -> Tensor:
    """The matrix as numbers of `dtype`."""
    found: Tensor = weight if isinstance(weight, Tensor) else weight.dequantize(dtype)
    return found.to(dtype)


class OnlineSoftmax:
    """Softmax statistics of N rows whose logits come in slices."""

    def __init__(self, rows: int, device: torch.device, top_k: int = 0) -> None:
        self.peak = torch.full((rows, 1), torch.finfo(torch.float32).min, device=device)
        self.mass = torch.zeros(rows, 1, device=device)  # Σ exp(z − peak)
        self.weighted = torch.zeros(rows, 1, device=device)  # Σ exp(z − peak) · (z − peak)
        self.argmax = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.group_mass: list[Tensor] = []  # of each slice: (N, groups), relative to …
        self.group_peak: list[Tensor] = []  # … this peak (N, 1)
        self.top_k = top_k
        self.top_logits = torch.empty(rows, 0, device=device)
        self.top_ids = torch.empty(rows, 0, dtype=torch.long, device=device)

    def add(self, z: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Takes the logits z (N, S) of tokens from `start` on.

        Returns their exponentials relative to the new peak (N, S), and the factor (N, 1) for sums from before.
        """
        highest, place = z.max(dim=1, keepdim=True)
        self.argmax = torch.where(highest > self.peak, place + start, self.argmax)
        peak = torch.maximum(self.peak, highest)
        rise = torch.where(self.mass > 0, peak - self.peak, 0.0)
        shrink = (-rise).exp()
        below = z - peak
        weights = below.exp()
        self.weighted = (self.weighted - rise * self.mass) * shrink + (weights * below).sum(
            dim=1, keepdim=True
        )
        self.mass = self.mass * shrink + weights.sum(dim=1, keepdim=True)
        self.peak = peak
        padded = F.pad(weights, (0, -weights.shape[1] % GROUP))
        self.group_mass.append(padded.unflatten(1, (-1, GROUP)).sum(dim=2))
        self.group_peak.append(peak)
        if self.top_k:
            ids = torch.arange(start, start + z.shape[1], device=z.device).expand_as(z)
            logits = torch.cat((self.top_logits, z), dim=1)
            ids = torch.cat((self.top_ids, ids), dim=1)
            self.top_logits, order = logits.topk(min(self.top_k, logits.shape[1]), dim=1)
            self.top_ids = ids.gather(1, order)
        return weights, shrink

    @property
    def logsumexp(self) -> Tensor:
        """(N, 1)"""
        return self.mass.log() + self.peak

    def groups(self) -> Tensor:
        """(N, V / GROUP rounded up): the mass of every group, relative to the peak, float64."""
        pairs = zip(self.group_mass, self.group_peak, strict=True)
        parts = [mass.double() * (peak - self.peak).double().exp() for mass, peak in pairs]
        return torch.cat(parts, dim=1)

    def fields(self) -> dict[str, Tensor]:
        """What a `Prediction` has of them, (N,) each, and the top tokens (N, k)."""
        found = {
            "argmax": self.argmax,
            "argmax_probability": self.mass.reciprocal(),
            "entropy": (self.mass.log() - self.weighted / self.mass).clamp_min(0),
            "logsumexp": self.logsumexp,
        }
        found = {name: value.squeeze(1) for name, value in found.items()}
        if self.top_k:
            found |= {"top_logits": self.top_logits, "top_ids": self.top_ids}
        return found


class Sums(NamedTuple):
    """What one pass over the vocabulary leaves of N rows: statistics of the reference and of the sampling distribution
    (one object where the two are one), and the soft embedding (N, D), if asked for."""

    softmax: OnlineSoftmax
    sampling: OnlineSoftmax
    soft: Tensor | None


class VocabularyHead:
    """Logits of the tied embedding (V, D), soft-capped, a slice of the vocabulary at a time.

    slice_size: tokens of a slice, in whole groups; None for `SLICE`, and more of them the fewer the rows are, so that a
    slice's logits always take about as much memory.
    """

    def __init__(self, weight: Matrix, soft_cap: float, slice_size: int | None = None) -> None:
        self.weight = weight
        self.soft_cap = soft_cap
        self.slice_size = slice_size

    @property
    def vocab_size(self) -> int:
        return int(self.weight.shape[0])

    def over(self, weight: Matrix) -> VocabularyHead:
        """A head of the same kind over other tokens' embeddings."""
        return VocabularyHead(weight, self.soft_cap)

    def tokens_per_slice(self, rows: int) -> int:
        """Tokens of a slice for so many rows of hidden states, in whole groups."""
        if self.slice_size is not None:
            return -(-self.slice_size // GROUP) * GROUP
        whole = isinstance(self.weight, Tensor)
        return max(SLICE, LOGITS // max(1, rows) // SLICE * SLICE) if whole else SLICE

    def slices(self, rows: int) -> Iterator[tuple[int, Matrix]]:
        """Of every slice, its first token and its embeddings (S, D)."""
        size = self.tokens_per_slice(rows)
        for start in range(0, self.vocab_size, size):
            yield start, self.weight[start : start + size]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, D) → (…, V) float32."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        parts = [
            functions().linear(flat, dense(part, flat.dtype)) for _, part in self.slices(len(flat))
        ]
        return soft_capped(torch.cat(parts, dim=-1), self.soft_cap).view(*hidden.shape[:-1], -1)

    @torch.inference_mode()
    def token_logit(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """hidden (…, D), tokens (…) → their logits (…), float32."""
        rows = dense(self.weight[tokens], hidden.dtype).float()
        products = (hidden.float() * rows).sum(dim=-1).to(hidden.dtype)
        return soft_capped(products, self.soft_cap)

    @torch.inference_mode()
    def predict(
        self,
        hidden: Tensor,
        temperature: Tensor | float,
        draws: SampleDraws | None = None,
        *,
        reference: Reference = "tempered",
        filters: Filters | None = None,
        soft: bool = True,
        soft_top_k: int | None = None,
        top_k: int = 0,
        conditions: Conditions | None = None,
    ) -> Prediction:
        """hidden (B, C, D) → Prediction.

        temperature: a number, or (B,) float32, of the sampling distribution; 0 makes the sample the argmax (then all
        rows must have it). draws: needed unless the temperature is 0. soft: compute the soft embedding. soft_top_k: of
        the so many most probable tokens alone, their probabilities made to sum to 1 (arXiv 2606.20560), which spares
        the second product with the embedding; None: of all. top_k: how many alternatives to report.
        conditions: what the rows' texts must satisfy; then all fields are of the posterior given that they do. Raises
        RequestError for arguments that have no meaning, and for hidden states that are not finite.
        """
        width = self.weight.shape[1]
        if hidden.dim() != 3 or hidden.shape[-1] != width or not hidden.numel():
            raise RequestError(
                f"hidden states are (rows, positions, {width}), of at least one position, got {tuple(hidden.shape)}"
            )
        batch, length, _ = hidden.shape
        for name, count, least in (("top_k", top_k, 0), ("soft_top_k", soft_top_k, 1)):
            if count is not None and not least <= count <= self.vocab_size:
                raise RequestError(
                    f"{name} must lie in {least} … {self.vocab_size} (the vocabulary), got {count}"
                )
        carried = soft_top_k if soft else None
        asked = Asked(
            *self._sampling(temperature, draws, filters, batch, length, hidden.device),
            reference=reference,
            filters=filters,
            soft=soft and carried is None,
            top_k=max(top_k, carried or 0),
        )
        flat = hidden.reshape(-1, width)
        if conditions is None:
            fields, posterior = self.fields(flat, asked), None
        else:
            fields, posterior = conditions.fields(self, flat, asked)
        if carried is not None:
            logits, ids = fields["top_logits"][:, :carried], fields["top_ids"][:, :carried]
            rows = dense(self.weight[ids], flat.dtype)  # (N, k, D)
            mean = (logits.softmax(dim=-1).to(flat.dtype).unsqueeze(1) @ rows).squeeze(1)
            fields["soft_embedding"] = times_root(mean)
        for name in ("top_logits", "top_ids"):
            found = fields.pop(name, None)
            if top_k and found is not None:
                fields[name] = found[:, :top_k]
        shaped: dict[str, Any] = {"soft_embedding": None}
        shaped |= {
            key: value.view(batch, length, *value.shape[1:]) for key, value in fields.items()
        }
        return Prediction(**shaped, hidden=hidden, head=self, posterior=posterior)

    def _sampling(
        self,
        temperature: Tensor | float,
        draws: SampleDraws | None,
        filters: Filters | None,
        batch: int,
        length: int,
        device: torch.device,
    ) -> tuple[Tensor, bool, Tensor | None]:
        """Temperatures (N, 1), whether one is not 1, and the uniform numbers (N,)."""
        if isinstance(temperature, Tensor):  # on the host, where a loop leaves it
            each = temperature.float().expand(batch).tolist()
        else:
            each = [float(temperature)] * batch
        greedy = not any(each)
        if greedy and filters is not None:
            raise RequestError("filters have no effect at temperature 0: leave them out")
        if not greedy and not all(LEAST_TEMPERATURE <= one < math.inf for one in each):
            raise RequestError(
                f"temperatures must be 0 for all rows, or finite and at least {LEAST_TEMPERATURE}, got {each}"
            )
        if not greedy and draws is None:
            raise RequestError(
                "sampling at a temperature above 0 needs random draws; pass them, or temperature 0"
            )
        if greedy:
            each = [1.0] * batch
        uniform = None if greedy or draws is None else draws.uniform.reshape(-1).to(device)
        if len(set(each)) == 1:
            per_row = torch.full((batch * length, 1), each[0], device=device)
        else:
            per_row = upload(torch.tensor(each).repeat_interleave(length).unsqueeze(1), device)
        return per_row, any(one != 1 for one in each), uniform

    def fields(self, hidden: Tensor, asked: Asked) -> dict[str, Tensor]:
        """hidden (N, D) → the fields of a `Prediction`, (N, …) each; all but hidden and head."""
        sums = self.sums(hidden, asked)
        fields = sums.softmax.fields()
        check_finite(hidden, fields["logsumexp"])
        if sums.soft is not None:
            fields["soft_embedding"] = sums.soft
        return fields | self.sampled(hidden, asked, sums.sampling, fields)

    def sums(self, hidden: Tensor, asked: Asked) -> Sums:
        """hidden (N, D) → what the samples and the other fields are found from: the one pass over the vocabulary."""
        rows, device = len(hidden), hidden.device
        softmax = OnlineSoftmax(rows, device, asked.top_k)
        sampling = OnlineSoftmax(rows, device) if asked.two_distributions else softmax
        reference = asked.temperatures if asked.reference == "tempered" else 1.0
        summed = torch.zeros(rows, hidden.shape[1], device=device)
        for start, part in self.slices(rows):
            weight = dense(part, hidden.dtype)
            # The product comes out in the weights' dtype; float32 starts after it (spec §3).
            capped = soft_capped(functions().linear(hidden, weight), self.soft_cap)
            weights, shrink = softmax.add(capped / reference, start)
            if asked.soft:
                summed = summed * shrink + weights.to(hidden.dtype) @ weight
            if sampling is not softmax and asked.filters is None:
                sampling.add(capped / asked.temperatures, start)
        soft = times_root((summed / softmax.mass).to(hidden.dtype)) if asked.soft else None
        return Sums(softmax, sampling, soft)

    def sampled(
        self, hidden: Tensor, asked: Asked, softmax: OnlineSoftmax, fields: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The fields of the sample. softmax: of the sampling distribution; fields: of the reference distribution."""
        if asked.uniform is None:
            probability = fields["argmax_probability"]
            return {
                "sample": fields["argmax"],
                "sample_probability": probability,
                "sample_logprob": probability.log(),
            }
        if asked.filters is not None:
            sample, logit, probability = self._filtered_sample(hidden, asked)
        else:
            sample, logit = self.inverse_cdf(hidden, asked, softmax.groups())
            probability = (logit - softmax.logsumexp.squeeze(1)).exp()
        if asked.reference == "raw":
            logit = logit * asked.temperatures.squeeze(1)
        return {
            "sample": sample,
            "sample_probability": probability,
            "sample_logprob": logit - fields["logsumexp"],
        }

    def inverse_cdf(self, hidden: Tensor, asked: Asked, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The token at which the cumulative probability, in vocabulary order, first exceeds the uniform number.

        groups (N, V / GROUP): the mass of every group. Returns tokens and their tempered logits, (N,) both.
        """
        assert asked.uniform is not None
        group, inside = found_in(groups, asked.uniform.unsqueeze(1))
        tokens, logits = [], []
        every = torch.arange(len(hidden), device=hidden.device)
        for part in every.split(self.groups_at_a_time(hidden)):
            ids = group[part] * GROUP + torch.arange(GROUP, device=hidden.device)  # (R, GROUP)
            weight = dense(self.weight[ids.clamp_max(self.vocab_size - 1)], hidden.dtype)
            products = (weight @ hidden[part].unsqueeze(2)).squeeze(2)
            z = soft_capped(products, self.soft_cap) / asked.temperatures[part]
            z = z.masked_fill(ids >= self.vocab_size, -torch.inf)
            masses = (z - z.amax(dim=1, keepdim=True)).double().exp()
            place, _ = found_in(masses, inside[part])
            tokens.append(ids.gather(1, place))
            logits.append(z.gather(1, place))
        return torch.cat(tokens).squeeze(1), torch.cat(logits).squeeze(1)

    def groups_at_a_time(self, hidden: Tensor) -> int:
        """Of how many rows a group's embeddings are taken: no more numbers at a time than a slice has logits."""
        rows, width = hidden.shape
        numbers = rows * self.tokens_per_slice(rows)
        if self.slice_size is None:  # a few rows need not go one by one
            numbers = max(LOGITS, numbers)
        return max(1, numbers // (GROUP * width))

    def _filtered_sample(self, hidden: Tensor, asked: Asked) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, their tempered logits and their probabilities after the filters, (N,) each; by whole rows."""
        assert asked.uniform is not None and asked.filters is not None
        found = []
        for part in torch.arange(len(hidden), device=hidden.device).split(
            max(1, 8 * LOGITS // self.vocab_size)
        ):
            z = self.logits(hidden[part]) / asked.temperatures[part]
            probabilities = filtered(z, asked.filters).softmax(dim=-1)
            sample = inverse_cdf(probabilities, asked.uniform[part]).unsqueeze(1)
            found.append((sample, z.gather(1, sample), probabilities.gather(1, sample)))
        sample, logit, probability = (
            torch.cat(parts).squeeze(1) for parts in zip(*found, strict=True)
        )
        return sample, logit, probability


def times_root(mean: Tensor) -> Tensor:
    """A mean embedding (N, D) times √D, rounded to its dtype."""
    return mean * rounded(mean.shape[1] ** 0.5, mean.dtype)


def check_finite(*numbers: Tensor) -> None:
    """Raises RequestError unless all are finite. On a card the loops look, so that the host waits once a step."""
    for each in numbers:
        if each.device.type == "cpu" and not math.isfinite(each.sum(dtype=torch.float32)):
            raise not_finite()


def not_finite() -> RequestError:
    return RequestError(
        "the model computed numbers that are not finite: its weights are damaged, or too large for their dtype"
    )
