"""The tied vocabulary head, streamed: hidden states in, a `Prediction` out, and no (C, V) array in between.

softmax(cap(h Eᵀ)/T) · E is attention over the vocabulary with keys and values E: one pass over slices of E, with a
running maximum and running sums, gives the argmax, the entropy, the probabilities, the top tokens and the soft
embedding. A sample needs one uniform number a position: the slice is found from the slices' masses, then that slice
alone is computed again.

Two distributions of a position matter (spec §4):
- the *sampling* distribution, softmax(logits / T), which the sample comes from;
- the *reference* distribution, which entropy and soft embedding come from: the same one for the entropy-bound sampler
  ("tempered"), the raw softmax(logits) for the others ("raw").

Where a sampler filters the distribution, or the draws reproduce the oracle's order, blocks of whole rows are computed
instead (`_predict_rows`).

Axes: B batch, C canvas length, N = B·C rows, D hidden size, V vocabulary, S slice, k top tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from dgemma_core.backends.cpu.running import (
    GROUP,
    Folded,
    Running,
    among,
    folds,
    row_max,
    row_top,
    squashed_,
)
from dgemma_core.draws import inverse_cdf, upload
from dgemma_core.errors import RequestError
from dgemma_core.files.quantised import Matrix, dense, linear
from dgemma_core.layers import rounded

if TYPE_CHECKING:
    from dgemma_core.backends.cpu.native import NativeModel

Reference = Literal["tempered", "raw"]
SLICE = 8192
"""Tokens of a slice for a canvas of the released length."""
BELOW_ONE = 1 - 2.0**-53
"""The largest float64 below 1."""
NEGLIGIBLE = 2.0**-32
"""A slice's share of the mass so far that changes no digit of a soft embedding in float32: then a CPU, where the answer
costs no waiting, spares the second product."""
LOGITS = 256 * SLICE
"""Logits of a slice: 8 MB, which a CPU's cache holds."""


class SampleDraws(Protocol):
    """What the head needs of `draws.StepDraws`."""

    @property
    def uniform(self) -> Tensor | None:
        """(B, C) float64 in [0, 1), or None: then `multinomial` draws."""

    def multinomial(self, probabilities: Tensor) -> Tensor:
        """(R, V) float32 → (R,): called for blocks of rows, in row-major order."""


@dataclass(frozen=True)
class Filters:
    """Keep the `top_k` most probable tokens, then the smallest set that holds `top_p` of the mass."""

    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise RequestError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must lie above 0 and at most at 1, got {self.top_p}")


@dataclass(frozen=True)
class Prediction:
    """What one pass says of every position of the canvas (layout: "Types that everything shares")."""

    sample: Tensor
    """(B, C) int64, one draw from the sampling distribution (the argmax at temperature 0)."""
    sample_probability: Tensor
    """(B, C) float32, of the sample under the sampling distribution (raw at temperature 0)."""
    argmax: Tensor
    """(B, C) int64; of equals, the lowest index."""
    argmax_probability: Tensor
    """(B, C) float32, under the reference distribution."""
    entropy: Tensor
    """(B, C) float32, nats, of the reference distribution."""
    soft_embedding: Tensor | None
    """(B, C, D): the reference distribution's mean embedding, times √D. None if not asked for."""
    logsumexp: Tensor
    """(B, C) float32: log Σ exp of the reference distribution's logits."""
    top_ids: Tensor | None = None
    """(B, C, k), most probable first, if asked for."""
    top_logits: Tensor | None = None
    """(B, C, k): the reference distribution's logits of `top_ids`."""
    hidden: Tensor = field(repr=False, default_factory=lambda: torch.empty(0))
    head: VocabularyHead | None = field(repr=False, default=None)

    @property
    def top_probabilities(self) -> Tensor | None:
        """(B, C, k) under the reference distribution."""
        if self.top_logits is None:
            return None
        return (self.top_logits - self.logsumexp.unsqueeze(-1)).exp()

    def rows(self, row: int, positions: Tensor) -> Tensor:
        """Raw soft-capped logits (k, V), float64, of a few positions of one row, computed again."""
        assert self.head is not None
        return self.head.logits(self.hidden[row, positions]).double()

    def token_logit(self, tokens: Tensor) -> Tensor:
        """Raw soft-capped logits (B, C), float32, of the asked tokens (B, C)."""
        assert self.head is not None
        return self.head.token_logit(self.hidden, tokens)


def soft_capped_(logits: Tensor, cap: float) -> Tensor:
    """cap · tanh(logits / cap), float32, in place.

    Through the sigmoid, tanh x = 2σ(2x) − 1: on a CPU an eighth of tanh's time, with an error below 2e-7 · cap.
    """
    return squashed_(logits, cap).mul_(2 * cap).sub_(cap)


class VocabularyHead:
    """Logits of the tied embedding (V, D), soft-capped, a slice of the vocabulary at a time.

    slice_size: tokens of a slice; None for `SLICE`, and more of them the fewer the rows are, so that a slice's logits
    always take about as much memory. A quantised embedding is turned back slice by slice, `SLICE` tokens of it.
    native: asked for the model in native.c, which serves the head of a small one.
    """

    def __init__(
        self,
        weight: Matrix,
        soft_cap: float,
        slice_size: int | None = None,
        native: Callable[[], NativeModel | None] | None = None,
    ) -> None:
        self.weight = weight
        self.soft_cap = soft_cap
        self.slice_size = slice_size
        self.native = native

    def _slice_for(self, rows: int) -> int:
        """Tokens of a slice where so many rows are computed at once."""
        if self.slice_size is not None:
            return self.slice_size
        whole = isinstance(self.weight, Tensor)
        return max(SLICE, LOGITS // rows // SLICE * SLICE) if whole else SLICE

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, D) → (…, V) float32."""
        return soft_capped_(self._products(hidden).float(), self.soft_cap)

    def _products(self, hidden: Tensor) -> Tensor:
        """hidden (…, D) → (…, V) in the weights' dtype, before the soft cap."""
        if isinstance(self.weight, Tensor):
            return linear(hidden, self.weight)
        return torch.cat(
            [linear(hidden, part) for _, part in self._slices(self.slice_size or SLICE)], dim=-1
        )

    @torch.inference_mode()
    def token_logit(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """hidden (…, D), tokens (…) → their logits (…), float32."""
        rows = dense(self.weight[tokens], hidden.dtype).float()
        products = (hidden.float() * rows).sum(dim=-1).to(hidden.dtype)
        return soft_capped_(products.float(), self.soft_cap)

    @torch.inference_mode()
    def token_logprob(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """hidden (…, D), tokens (…) → log-probabilities (…), float32, under softmax of the raw logits.

        Raises RequestError for ids outside the vocabulary.
        """
        if ((tokens < 0) | (tokens >= self.vocab_size)).any():
            raise RequestError(
                f"log-probabilities asked of ids outside the vocabulary, 0 … {self.vocab_size - 1}"
            )
        flat = hidden.reshape(-1, hidden.shape[-1])
        kind = Folded if folds(flat) else Running
        running = kind(len(flat), self.soft_cap, 1.0, flat.device, sampled=False)
        asked = torch.empty(len(flat), device=flat.device)
        ids = tokens.reshape(-1)
        for start, weight in self._slices(self._slice_for(len(flat))):
            products = linear(flat, weight)
            here = ((ids >= start) & (ids < start + len(weight))).nonzero().squeeze(1)
            few = products[here, ids[here] - start].float()
            asked[here] = soft_capped_(few, self.soft_cap)
            running.add(products, start, keep=False)
        return (asked - running.logsumexp().squeeze(1)).view(tokens.shape)

    def _slices(self, size: int) -> Iterator[tuple[int, Matrix]]:
        for start in range(0, self.vocab_size, size):
            yield start, self.weight[start : start + size]

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
    ) -> Prediction:
        """hidden (B, C, D) → Prediction.

        temperature: a number, or (B,) float32, of the sampling distribution; 0 makes the sample the argmax (then all
        rows must have it). draws: needed unless the temperature is 0. soft: compute the soft embedding. soft_top_k: of
        the so many most probable tokens alone, their probabilities made to sum to 1 (arXiv 2606.20560), which spares
        the second product with the embedding; None: of all. top_k: how many alternatives to report.
        """
        batch, length, width = hidden.shape
        if not 0 <= top_k <= self.vocab_size:
            raise RequestError(
                f"top_k must lie in 0 … {self.vocab_size} (the vocabulary), got {top_k}"
            )
        if soft_top_k is not None and not 1 <= soft_top_k <= self.vocab_size:
            raise RequestError(
                f"soft_top_k must lie in 1 … {self.vocab_size} (the vocabulary), got {soft_top_k}"
            )
        # looked at on the host, where a loop leaves them
        temperatures = torch.as_tensor(temperature, dtype=torch.float32).expand(batch)
        greedy = bool((temperatures == 0).all())
        if greedy:
            if filters is not None:
                raise RequestError("filters have no effect at temperature 0: leave them out")
            temperatures = torch.ones_like(temperatures)
        elif not bool((temperatures > 0).all()):
            raise RequestError(
                f"temperatures must be above 0, or 0 for all rows, got {temperatures.tolist()}"
            )
        elif draws is None:
            raise RequestError(
                "sampling at a temperature above 0 needs random draws; pass them, or temperature 0"
            )
        tempered = not bool((temperatures == 1).all())
        per_row = upload(
            temperatures.repeat_interleave(length).unsqueeze(1), hidden.device
        )  # (N, 1)
        flat = hidden.reshape(-1, width)
        whole_rows = (
            draws is not None and not greedy and (filters is not None or draws.uniform is None)
        )
        carried = soft_top_k if soft else None
        asked = (soft and carried is None, max(top_k, carried or 0))
        drawn = None if greedy else draws
        fields = None
        if not whole_rows and not (tempered and reference == "raw"):
            fields = self._predict_native(flat, per_row, drawn, *asked)
        if fields is None:
            run = self._predict_rows if whole_rows else partial(self._predict_slices, tempered)
            fields = run(flat, per_row, drawn, reference, filters, *asked)
        if carried is not None:
            logits, ids = fields["top_logits"], fields["top_ids"]
            fields["soft_embedding"] = self._scaled(
                self._mean_of(logits[:, :carried], ids[:, :carried], flat.dtype)
            )
            if top_k:
                fields["top_logits"], fields["top_ids"] = logits[:, :top_k], ids[:, :top_k]
            else:
                del fields["top_logits"], fields["top_ids"]
        shaped = {name: value.unflatten(0, (batch, length)) for name, value in fields.items()}
        return Prediction(**{"soft_embedding": None, **shaped}, hidden=hidden, head=self)

    def _mean_of(self, logits: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The mean embedding of a few tokens a row: logits and ids (N, k) → (N, D) in `dtype`."""
        rows = dense(self.weight[ids], dtype)  # (N, k, D)
        return (logits.softmax(dim=-1).to(dtype).unsqueeze(1) @ rows).squeeze(1)

    def _scaled(self, summed: Tensor) -> Tensor:
        """Times √D, rounded to the weights' dtype."""
        return summed * rounded(summed.shape[1] ** 0.5, summed.dtype)

    def _predict_native(
        self,
        flat: Tensor,
        temperatures: Tensor,
        draws: SampleDraws | None,
        soft: bool,
        top_k: int,
    ) -> dict[str, Tensor] | None:
        """The same fields by native.c, or None where it does not serve."""
        native = None if self.native is None else self.native()
        if native is None or flat.dtype != torch.float32 or flat.device.type != "cpu":
            return None
        uniform = None if draws is None or draws.uniform is None else draws.uniform.reshape(-1)
        return native.predict(flat, temperatures, uniform, soft, top_k)

    def _predict_slices(
        self,
        tempered: bool,
        flat: Tensor,
        temperatures: Tensor,
        draws: SampleDraws | None,
        reference: Reference,
        filters: Filters | None,
        soft: bool,
        top_k: int,
    ) -> dict[str, Tensor]:
        rows, device = len(flat), flat.device
        # The sampling distribution needs sums of its own only where it is another one.
        apart = tempered and reference == "raw"
        if flat.is_cuda and isinstance(self.weight, Tensor) and not apart and not top_k:
            return self._folded(self.weight, flat, temperatures, draws, soft)
        size = self._slice_for(rows)
        per_row = temperatures if tempered else 1.0
        folded = folds(flat)
        one_slice = self.vocab_size <= size and not apart and not folded
        sampled = draws is not None and not one_slice
        statistics = partial(Folded if folded else Running, rows, self.soft_cap, device=device)
        running = statistics(  # of the reference distribution
            1.0 if apart else per_row, sampled=sampled and not apart, top_k=top_k
        )
        sampling = statistics(per_row, sampled=sampled) if apart else running
        summed = torch.zeros(rows, flat.shape[1], device=device) if soft else None
        # Half-precision products are of one library, which can write where it is told to.
        reused = folded and isinstance(self.weight, Tensor) and flat.dtype == torch.bfloat16
        buffer = flat.new_empty(rows, min(size, self.vocab_size)) if reused else None
        for start, weight in self._slices(size):
            if soft:  # a second product follows: turned back once for both
                weight = dense(weight, flat.dtype)
            # The product comes out in the weights' dtype; float32 starts after it (spec §3).
            products = self._product(flat, weight, buffer)
            if apart:
                sampling.add(products.clone(), start, keep=False)
            added = running.add(products, start, keep=soft or one_slice)
            if summed is not None:
                assert isinstance(weight, Tensor)
                if not flat.is_cuda and bool((added.mass <= NEGLIGIBLE * running.mass).all()):
                    summed.mul_(added.shrink)
                    continue
                mean = linear(added.weights.to(weight.dtype), weight.mT)
                summed = running.blend(summed, mean, added)
        fields = running.fields()
        if summed is not None:
            fields["soft_embedding"] = self._scaled((summed / running.mass).to(flat.dtype))
        if draws is None:
            fields["sample"], fields["sample_probability"] = (
                fields["argmax"],
                fields["argmax_probability"],
            )
        else:
            assert draws.uniform is not None
            uniform = draws.uniform.reshape(-1).to(device)
            drawn_fields = (
                _sampled(added.weights, uniform)
                if one_slice
                else self._inverse_cdf(flat, temperatures, sampling, uniform, size)
            )
            fields["sample"], fields["sample_probability"] = drawn_fields
        return fields

    def _folded(
        self,
        weight: Tensor,
        flat: Tensor,
        temperatures: Tensor,
        draws: SampleDraws | None,
        soft: bool,
    ) -> dict[str, Tensor]:
        """The same fields by one kernel a slice, and with nothing asked of the host: the way of a GPU."""
        from dgemma_core.backends.cuda.head import fold

        uniform = None
        if draws is not None:
            assert draws.uniform is not None
            uniform = draws.uniform.reshape(-1).to(flat.device)
        found = fold(flat, weight, self.soft_cap, temperatures[:, 0], uniform, soft=soft)
        fields = {
            "argmax": found.argmax,
            "argmax_probability": found.argmax_probability,
            "entropy": found.entropy,
            "logsumexp": found.logsumexp,
            "sample": found.argmax if found.sample is None else found.sample,
            "sample_probability": found.argmax_probability
            if found.sample_probability is None
            else found.sample_probability,
        }
        if found.soft_embedding is not None:
            fields["soft_embedding"] = found.soft_embedding
        return fields

    def _product(self, flat: Tensor, weight: Matrix, buffer: Tensor | None) -> Tensor:
        """The logits of a slice, in `buffer` where there is one of their shape."""
        if buffer is None or len(weight) != buffer.shape[1]:
            return linear(flat, weight)
        assert isinstance(weight, Tensor)
        return torch.mm(flat, weight.mT, out=buffer)

    def _inverse_cdf(
        self, flat: Tensor, temperatures: Tensor, running: Running, uniform: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """The token at which the cumulative probability, in vocabulary order, first exceeds `uniform` (N,).

        The slices' masses say which slice that is, the sums of its neighbours which GROUP tokens: only these are
        computed again.
        """
        logmass = torch.cat(running.slice_logmass, dim=1).double()  # (N, slices)
        share = (logmass - logmass.logsumexp(dim=1, keepdim=True)).exp_()
        slot, inside = found_in(share, uniform.unsqueeze(1))
        held = torch.cat(running.groups, dim=1)  # (N, groups)
        per_slice = running.groups[0].shape[1]
        places = slot * per_slice + torch.arange(per_slice, device=flat.device)
        beyond = places >= held.shape[1]
        groups = held.gather(1, places.clamp_max(held.shape[1] - 1)).masked_fill_(beyond, 0)
        group, inside = found_in(groups.double(), inside)
        first = slot * size + group * GROUP
        end = (slot * size + size).clamp_max(self.vocab_size)
        logsumexp = running.logsumexp()
        if isinstance(self.weight, Tensor):
            quick = among(flat, self.weight, self.soft_cap, temperatures, first, end, inside)
            if quick is not None:
                token, logit = quick
                return token.squeeze(1), (logit - logsumexp).exp_().squeeze(1)
        found = []
        # No more numbers at a time than a slice has.
        rows = max(1, len(flat) * size // (GROUP * flat.shape[1]))
        for part in torch.arange(len(flat), device=flat.device).split(rows):
            ids = first[part] + torch.arange(GROUP, device=flat.device)  # (R, GROUP)
            weight = dense(self.weight[ids.clamp_max(self.vocab_size - 1)], flat.dtype)
            place, logit = found_among(
                flat[part],
                weight,
                ids >= end[part],
                self.soft_cap,
                temperatures[part],
                inside[part],
            )
            found.append((ids.gather(1, place), (logit - logsumexp[part]).exp_()))
        sample, probability = (torch.cat(parts).squeeze(1) for parts in zip(*found, strict=True))
        return sample, probability

    def _predict_rows(
        self,
        flat: Tensor,
        temperatures: Tensor,
        draws: SampleDraws | None,
        reference: Reference,
        filters: Filters | None,
        soft: bool,
        top_k: int,
    ) -> dict[str, Tensor]:
        """The same fields from whole rows, a bounded block of them at a time, rounding as the oracle does (§3).

        The two products take more rows at once than the passes between them, which stay in a CPU's cache.
        """
        assert draws is not None
        uniform = None if draws.uniform is None else draws.uniform.reshape(-1).to(flat.device)
        block, part = (max(1, numbers // self.vocab_size) for numbers in (2**24, 2**21))
        found: list[dict[str, Tensor]] = []
        embeddings = []
        start = 0
        for hidden in flat.split(block):
            products = self._products(hidden)
            for few in products.split(part):
                here = slice(start, start + len(few))
                start += len(few)
                z = soft_capped_(few.float(), self.soft_cap)
                drawn = z / temperatures[here] if reference == "raw" else z.div_(temperatures[here])
                peak, argmax = row_max(z)
                top = row_top(z, top_k) if top_k else None
                probabilities = z.softmax(dim=-1)
                sampled = probabilities
                if filters is not None:
                    sampled = filtered(drawn, filters).softmax(dim=-1)
                elif drawn is not z:
                    sampled = drawn.softmax(dim=-1)
                if uniform is None:
                    sample = draws.multinomial(sampled).unsqueeze(1)
                else:
                    sample = inverse_cdf(sampled, uniform[here]).unsqueeze(1)
                weights = probabilities
                if soft and few.dtype != z.dtype:
                    weights = z.to(few.dtype).softmax(dim=-1, dtype=z.dtype)
                most = probabilities.gather(1, argmax)
                logmass = -most.log()  # log Σ exp(z − peak)
                expected = torch.linalg.vecdot(probabilities, z.sub_(peak)).unsqueeze(1)
                fields = {
                    "sample": sample,
                    "sample_probability": sampled.gather(1, sample),
                    "argmax": argmax,
                    "argmax_probability": most,
                    "entropy": (logmass - expected).clamp_min_(0),
                    "logsumexp": peak + logmass,
                }
                fields = {name: value.squeeze(1) for name, value in fields.items()}
                if top is not None:
                    fields["top_logits"], fields["top_ids"] = top
                found.append(fields)
                if soft:
                    few.copy_(weights)  # the products are not read again
            if soft:
                embeddings.append(self._scaled(self._mean_embedding(products)))
        fields = {name: torch.cat([fields[name] for fields in found]) for name in found[0]}
        return fields | ({"soft_embedding": torch.cat(embeddings)} if soft else {})

    def _mean_embedding(self, weights: Tensor) -> Tensor:
        """weights (N, V) → (N, D), in their dtype."""
        if isinstance(self.weight, Tensor):
            return linear(weights, self.weight.mT)
        summed = torch.zeros(len(weights), self.weight.shape[1], device=weights.device)
        for start, part in self._slices(self.slice_size or SLICE):
            rows = dense(part, weights.dtype)
            summed += linear(weights[:, start : start + len(rows)], rows.mT)
        return summed.to(weights.dtype)


def found_in(masses: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cumulative masses (N, K), float64, first exceed `target` (N, 1) of their sum, in [0, 1): that place,
    and how far into its mass, in [0, 1) again, both (N, 1). A place of mass 0 is never found."""
    edges = masses.cumsum(dim=1)
    target = target * edges[:, -1:]
    place = torch.searchsorted(edges, target, right=True).clamp_max_(masses.shape[1] - 1)
    own = masses.gather(1, place)
    return place, ((target - (edges.gather(1, place) - own)) / own).clamp_(0, BELOW_ONE)


def found_among(
    hidden: Tensor, weight: Tensor, beyond: Tensor, cap: float, temperatures: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`found_in` among K tokens of each row, computed again.

    hidden (N, D), weight (N, K, D) their embeddings, beyond (N, K) those that do not count, temperatures and target
    (N, 1) → the place and its logit, both (N, 1).
    """
    products = (weight @ hidden.unsqueeze(2)).squeeze(2)
    z = soft_capped_(products.float(), cap).div_(temperatures).masked_fill_(beyond, -torch.inf)
    place, _ = found_in((z - z.amax(dim=1, keepdim=True)).double().exp_(), target)
    return place, z.gather(1, place)


def _sampled(probabilities: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Samples from probabilities (N, V), uniform (N,): tokens and their probabilities (N,)."""
    token = inverse_cdf(probabilities, uniform)
    return token, probabilities.gather(1, token.unsqueeze(1)).squeeze(1)


def filtered(logits: Tensor, filters: Filters) -> Tensor:
    """Logits (R, V) with all tokens outside the filters at −inf. Ties at the top-k boundary stay."""
    if filters.top_k is not None and filters.top_k < logits.shape[-1]:
        least = logits.topk(filters.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if filters.top_p is not None and filters.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(
            -1, order, before > filters.top_p
        )
        logits = logits.masked_fill(outside, -torch.inf)
    return logits
