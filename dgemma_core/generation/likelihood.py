"""How likely a text is, exactly: the chain rule through the causal encoder and the tied, soft-capped head (spec §6).

It scores the given tokens alone: that the text ends there is not part of it, unless the end token is among them. A
prefix that several texts share is encoded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgemma_core.cache import PrefixCache
from dgemma_core.errors import RequestError, check_kind, shown, whole_number
from dgemma_core.model import DiffusionGemma
from dgemma_core.request import token_ids

_TOKENS = 8192
"""Tokens of prefixes and texts that are scored at a time."""


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


def causal_logprobs(
    model: DiffusionGemma, rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch: int = 1
) -> list[Scored]:
    """Scores rows of (prefix, text), each of at least one token; exact.

    Rows with the same prefix share its pass, longest prefixes first. At a time so many rows are scored as hold
    `_TOKENS` tokens, and at least `batch` of them.
    """
    check_kind("model", model, DiffusionGemma, "a DiffusionGemma, e.g. load('nano').model")
    batch = whole_number("batch", batch, low=1)
    try:
        pairs = [(prefix, text) for prefix, text in rows]
    except (TypeError, ValueError):
        raise RequestError(f"rows must be pairs (prefix, text), got {shown(rows)}") from None
    rows = [(token_ids("a prefix", prefix), token_ids("a text", text)) for prefix, text in pairs]
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
