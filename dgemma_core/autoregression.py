"""The loop that writes text token by token, with the causal mode of the same weights.

Axes: B rows of the batch, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from dgemma_core.cache import PrefixCache
from dgemma_core.constraints.conditions import conditions
from dgemma_core.draws import Draws, Filters, RowKey
from dgemma_core.events import Event
from dgemma_core.head import Prediction
from dgemma_core.loop import (
    Decode,
    Row,
    causal_temperature,
    join,
    keep_token,
    memory_advice,
    queue,
    read_choices,
    shared_arguments,
    start_tokens,
)
from dgemma_core.model import DiffusionGemma
from dgemma_core.observe import Observe
from dgemma_core.request import Request, TokenState


def decode_tokens(
    model: DiffusionGemma,
    requests: Iterable[Request],
    *,
    temperature: float = 0.0,
    filters: Filters | None = None,
    batch_size: int = 1,
    eos: Sequence[int] | None = None,
    decode: Decode | None = None,
    draws: Draws | None = None,
    observe: Observe | None = None,
) -> Iterator[Event]:
    """Writes texts token by token with the causal mode of the same weights; yields events as they happen.

    temperature 0 is greedy. filters: top-k and top-p, for a temperature above 0. The rest as in `denoise_canvases`;
    pins have no meaning here and are refused.
    """
    size, stops, draws = shared_arguments(model, batch_size, eos, decode, draws, observe)
    temperature = causal_temperature(temperature, filters, observe)
    predict = partial(_predict_tokens, model, temperature, filters, draws, observe)
    return _decode_tokens(model, requests, size, stops, decode, predict)


def _decode_tokens(
    model: DiffusionGemma,
    requests: Iterable[Request],
    batch_size: int,
    eos: frozenset[int],
    decode: Decode | None,
    predict: Callable[[Sequence[Row], Sequence[TokenState]], Prediction],
) -> Iterator[Event]:
    model.backend.refresh()
    waiting = queue(requests)
    rows: list[Row] = []
    while True:
        joining = join(model, waiting, batch_size - len(rows), decode, TokenState, eos)
        yield from start_tokens(model, joining)
        rows += joining
        if not rows:
            return
        states = [row.state for row in rows if isinstance(row.state, TokenState)]
        going_on: list[tuple[Row, TokenState, int]] = []
        choices = read_choices(predict(rows, states))
        for row, state, (choice,) in zip(rows, states, choices, strict=True):
            if not (yield from keep_token(row, state, choice, eos, decode)):
                going_on.append((row, state, choice.token))
        rows = [row for row, _, _ in going_on]
        if going_on:
            with memory_advice():
                prefixes = PrefixCache.join([s.cache for _, s, _ in going_on])
                cache = model.encode([[token] for _, _, token in going_on], prefixes)
            assert cache.hidden is not None
            for i, (row, state, token) in enumerate(going_on):
                row.state = replace(
                    state,
                    committed=(*state.committed, token),
                    cache=cache[i],
                    hidden=cache.hidden[i, 0],
                    passes=state.passes + 1,
                )


def _predict_tokens(
    model: DiffusionGemma,
    temperature: float,
    filters: Filters | None,
    draws: Draws,
    observe: Observe | None,
    rows: Sequence[Row],
    states: Sequence[TokenState],
) -> Prediction:
    keys = [RowKey(state.seed, 0) for state in states]
    step = draws.step(keys, [len(state.committed) for state in states], 1, model.device)
    return model.predict(
        torch.stack([state.hidden for state in states]).unsqueeze(1),  # (B, 1, D)
        temperature,
        step,
        reference="raw",
        filters=filters,
        soft=False,
        top_k=0 if observe is None else observe.top_k,
        **conditions([row.request for row in rows], states),
    )
