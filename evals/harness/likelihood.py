"""How likely a text is: exactly, by the causal mode; from above, by the denoiser (spec §6).

- `causal_logprobs`: the chain rule through the causal encoder and the tied, soft-capped head; a prefix that several
  texts share is encoded once. It scores the given tokens alone: that the text ends there is not part of it, unless the
  end token is among them.
- `nelbo`: an upper bound on −log p(text, end | prefix) of uniform diffusion, whose canvases are
  the text and end tokens up to the canvas's length, as in training. A Monte-Carlo mean with its
  standard error. It bounds; its exponential is no perplexity.

Axes: C canvas positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma_core import DiffusionGemma, PrefixCache, RequestError

Logits = Callable[[Tensor], Tensor]
"""A noised canvas (C,) → raw logits (C, V) of the clean tokens."""

_TOKENS = 8192
"""Tokens of prefixes and texts that are scored at a time."""
_SLICE = 2**24
"""Entries of a float64 (positions, V) block that the bound holds at a time."""


@dataclass(frozen=True)
class Scored:
    """Log-probabilities (n,), nats, of a text's n tokens, and whether each is the most probable."""

    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]

    @property
    def total(self) -> float:
        """log p(text | prefix)."""
        return math.fsum(self.logprobs)

    @property
    def all_greedy(self) -> bool:
        """Greedy decoding would write this text."""
        return all(self.greedy)


@dataclass(frozen=True)
class Bound:
    """An estimate, in nats, of an upper bound on −log p, and the standard error of that estimate."""

    nats: float
    standard_error: float
    samples: int


def causal_logprobs(
    model: DiffusionGemma, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch: int = 1
) -> list[Scored]:
    """Scores rows of (prefix, text), each of at least one token; exact.

    Rows with the same prefix share its pass, longest prefixes first. At a time so many rows are scored as hold
    `_TOKENS` tokens, and at least `batch` of them.
    """
    if any(not prefix or not text for prefix, text in rows):
        raise RequestError("a likelihood needs a prefix and a text of at least one token each")
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, (prefix, _) in enumerate(rows):
        groups.setdefault(tuple(prefix), []).append(place)
    found: dict[int, Scored] = {}
    part: list[tuple[tuple[int, ...], int]] = []
    tokens = 0
    for prefix in sorted(groups, key=len, reverse=True):
        for place in groups[prefix]:
            size = len(prefix) + len(rows[place][1])
            if part and len(part) >= batch and tokens + size > _TOKENS:
                found |= _scored(model, part, rows)
                part, tokens = [], 0
            part.append((prefix, place))
            tokens += size
    if part:
        found |= _scored(model, part, rows)
    return [found[place] for place in range(len(rows))]


def _scored(
    model: DiffusionGemma,
    part: Sequence[tuple[tuple[int, ...], int]],
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> dict[int, Scored]:
    """Scores some of the rows: a pass over their prefixes, one over their texts, one of the head."""
    prefixes = list(dict.fromkeys(prefix for prefix, _ in part))
    own = {prefix: i for i, prefix in enumerate(prefixes)}
    cache = model.encode([list(prefix) for prefix in prefixes])
    assert cache.hidden is not None
    # Position i predicts the first token of every text behind prefix i.
    hidden = [cache.hidden[i, len(prefix) - 1].unsqueeze(0) for i, prefix in enumerate(prefixes)]
    longer = [(prefix, place) for prefix, place in part if len(rows[place][1]) > 1]
    begins: dict[int, int] = {}
    if longer:
        behind = PrefixCache.join([cache[own[prefix]] for prefix, _ in longer])
        texts = model.encode([list(rows[place][1][:-1]) for _, place in longer], behind)
        assert texts.hidden is not None
        at = len(prefixes)
        for i, (_, place) in enumerate(longer):
            count = len(rows[place][1]) - 1
            hidden.append(texts.hidden[i, :count])
            begins[place], at = at, at + count
    positions: list[int] = []
    tokens: list[int] = []
    for prefix, place in part:
        text = rows[place][1]
        start = begins.get(place, 0)
        positions += [own[prefix], *range(start, start + len(text) - 1)]
        tokens += text
    logprobs, same = _head(model, torch.cat(hidden), positions, tokens)
    sizes = [len(rows[place][1]) for _, place in part]
    parts = zip(part, logprobs.split(sizes), same.split(sizes), strict=True)
    return {place: Scored(tuple(p.tolist()), tuple(s.tolist())) for (_, place), p, s in parts}


def _head(
    model: DiffusionGemma, hidden: Tensor, positions: Sequence[int], tokens: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """log p of tokens (n,) at positions (n,) of hidden (N, D), and whether each is the most probable there."""
    best, total = [], []
    for some in hidden.split(_TOKENS // 8):
        seen = model.predict(some.unsqueeze(0), 0.0, reference="raw", soft=False)
        best.append(seen.argmax[0])
        total.append(seen.logsumexp[0])
    asked = torch.tensor(tokens, device=hidden.device)
    where = torch.tensor(positions, device=hidden.device)
    logits = model.head.token_logit(hidden[where], asked)
    return logits - torch.cat(total)[where], torch.cat(best)[where] == asked


def nelbo(
    model: DiffusionGemma,
    prefix: Sequence[int],
    text: Sequence[int],
    *,
    end: int,
    samples: int = 64,
    seed: int = 0,
) -> Bound:
    """The denoiser's bound on −log p(text, then the end | prefix), canvas by canvas.

    samples: noise levels a canvas, stratified (u in equal strata, α = 1 − u²). Without
    self-conditioning. Raises RequestError where the checkpoint cannot denoise.
    """
    if not prefix:
        raise RequestError("a likelihood needs a prefix of at least one token")
    length = model.config.canvas_length
    cache = model.encode([list(prefix)])
    parts = []
    count = len(text) // length + 1  # the end token included
    for j in range(count):
        clean = list(text[j * length : (j + 1) * length])
        canvas = torch.tensor(clean + [end] * (length - len(clean)), device=model.device)
        parts.append(
            canvas_bound(_denoiser(model, cache), canvas, model.config.text.vocab_size,
                         samples=samples, seed=seed + j)
        )  # fmt: skip
        if j + 1 < count:
            cache = model.encode([clean], cache)
    error = math.sqrt(math.fsum(part.standard_error**2 for part in parts))
    return Bound(math.fsum(part.nats for part in parts), error, samples)


def _denoiser(model: DiffusionGemma, cache: PrefixCache) -> Logits:
    return lambda noised: model.logits(model.denoise(noised.unsqueeze(0), cache)[0])


def canvas_bound(
    logits: Logits, canvas: Tensor, vocab_size: int, *, samples: int, seed: int
) -> Bound:
    """The bound for one clean canvas (C,), by `samples` stratified noise levels."""
    if samples < 2:
        raise RequestError(
            f"the bound needs at least 2 samples for a standard error, got {samples}"
        )
    generator = torch.Generator().manual_seed(seed)
    strata = torch.arange(samples, dtype=torch.float64)
    u = (strata + torch.rand(samples, generator=generator, dtype=torch.float64)) / samples
    values = []
    for level in u.clamp(1e-4, 1 - 1e-4).tolist():
        alpha = 1 - level**2  # dα = 2u du, so 2u weighs a uniform u
        replaced = torch.rand(canvas.shape, generator=generator, dtype=torch.float64) >= alpha
        uniform = torch.randint(vocab_size, canvas.shape, generator=generator)
        noised = torch.where(replaced, uniform, canvas.cpu()).to(canvas.device)
        gaps = nelbo_terms(logits(noised), canvas, noised, alpha)
        values.append(2 * level * float(gaps.sum()))
    drawn = torch.tensor(values, dtype=torch.float64)
    # Neighbouring strata differ little, so their differences estimate what is left of the variance.
    within = float((drawn[1:] - drawn[:-1]).square().mean()) / 2
    return Bound(float(drawn.mean()), math.sqrt(within / samples), samples)


def nelbo_terms(logits: Tensor, clean: Tensor, noised: Tensor, alpha: float) -> Tensor:
    """g at each position, (C,) float64 nats: the bound's integrand at survival probability α.

    logits (C, V) are raw and of the posterior given all of `noised` (C,), the observed token
    included; its evidence, a factor 1 + Vα/(1 − α) for the token seen, is taken out first, which
    gives the leave-one-out prediction that the bound needs (spec §6).
    """
    rows = max(1, _SLICE // logits.shape[-1])
    parts = zip(logits.split(rows), clean.split(rows), noised.split(rows), strict=True)
    return torch.cat([_terms(z.double(), x, seen, alpha) for z, x, seen in parts])


def _terms(logits: Tensor, clean: Tensor, noised: Tensor, alpha: float) -> Tensor:
    size = logits.shape[-1]
    seen, given = noised.unsqueeze(1), clean.unsqueeze(1)
    evidence = logits.new_full(seen.shape, -math.log1p(size * alpha / (1 - alpha)))
    predicted = logits.scatter_add(1, seen, evidence).softmax(dim=1)
    p = size * alpha * predicted + (1 - alpha)  # p̄ (C, V)
    x = torch.full_like(p, 1 - alpha)
    x = x.scatter(1, given, 1 - alpha + size * alpha)  # x̄
    p_seen, x_seen = p.gather(1, seen), x.gather(1, seen)
    log_ratio = (p_seen.log() - p.log()) + (x.log() - x_seen.log())
    rest = (x / x_seen * log_ratio).sum(dim=1)
    bracket = size / x_seen.squeeze(1) - size / p_seen.squeeze(1) - rest
    return -bracket / (size * alpha)
