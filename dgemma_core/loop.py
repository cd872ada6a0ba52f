"""What the loops that write text share: rows that join a batch, where a text ends, and advice when memory runs out."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from dgemma_core import errors
from dgemma_core.cache import PrefixCache
from dgemma_core.constraints.checks import check
from dgemma_core.draws import CounterDraws, Draws, Filters
from dgemma_core.errors import DeviceError, RequestError, check_kind, shown
from dgemma_core.events import Event, FinishEvent, PromptEvent, StopReason, TokenEvent
from dgemma_core.head import Prediction, not_finite
from dgemma_core.model import DiffusionGemma
from dgemma_core.observe import Observe, Observed
from dgemma_core.request import DecodeState, Request, TokenState, token_ids

Decode = Callable[[Sequence[int]], str]
"""Token ids → text."""


@dataclass
class Row:
    """A request in the batch."""

    request: Request
    started: float
    state: DecodeState | TokenState | None = None
    ended: bool = False

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def shared_arguments(
    model: Any, batch_size: Any, eos: Any, decode: Any, draws: Any, observe: Any
) -> tuple[int, frozenset[int], Draws]:
    """What every loop takes, checked: the batch size, the end-of-sequence ids (the checkpoint's if None), the draws."""
    check_kind("decode", decode, Callable | None, "a function from ids to text")
    check_kind("draws", draws, Draws | None, "where numbers come from, e.g. CounterDraws()")
    check_kind("observe", observe, Observe | None, "an Observe, e.g. Observe(top_k=5)")
    size = errors.whole_number("batch_size", batch_size, low=1, high=2**31 - 1)
    ends = frozenset(model.config.eos_token_ids if eos is None else token_ids("eos", eos))
    return size, ends, draws or CounterDraws()


def causal_temperature(
    temperature: float, filters: Filters | None, observe: Observe | None
) -> float:
    """The temperature of a causal mode, 0 for the most probable token.

    Raises RequestError where it is none, or filters or what is to be observed do not go with it.
    """
    temperature = errors.temperature_number("temperature", temperature)
    if temperature == 0 and filters is not None:
        raise RequestError(
            "top_k and top_p have no effect at temperature 0: set a temperature, or leave them out"
        )
    if observe is not None and (observe.router or observe.attention_positions):
        raise RequestError(
            "the causal modes observe top_k only; router and attention are of denoising passes"
        )
    return temperature


def queue(requests: Iterable[Request]) -> Iterator[Request]:
    """The requests one by one. Raises RequestError for a single one that is in no list."""
    check_kind("requests", requests, Iterable, "several, e.g. a list")
    return iter(requests)


def join(
    model: DiffusionGemma,
    waiting: Iterator[Request],
    places: int,
    decode: Decode | None,
    kind: type[DecodeState | TokenState],
    eos: frozenset[int],
) -> list[Row]:
    """Takes up to `places` requests, each checked; `kind`: the states of this loop."""
    rows = []
    for request in itertools.islice(waiting, max(0, places)):
        check_kind("requests", request, Request, "Request values")
        _check(model, request, decode)
        if kind is TokenState and request.pins:
            raise RequestError(
                "pins have no meaning in autoregression, which writes from left to right"
            )
        if not isinstance(request.state, kind | None):
            raise RequestError(
                "the state to continue from is of the other mode: denoise_canvases takes a DecodeState, "
                "decode_tokens a TokenState"
            )
        check(request, model.config.text.vocab_size, eos)
        rows.append(Row(request, time.perf_counter()))
    return rows


def _check(model: DiffusionGemma, request: Request, decode: Decode | None) -> None:
    config = model.config
    if not len(request.ids):
        raise RequestError("the prompt is empty: give at least one token")
    room = config.text.max_position_embeddings - len(request.ids)
    if request.max_new_tokens > room:
        raise RequestError(
            f"a prompt of {len(request.ids)} tokens and {request.max_new_tokens} new ones are more than the model's "
            f"{config.text.max_position_embeddings}: shorten the prompt, or lower max_new_tokens"
        )
    if request.stop and decode is None:
        raise RequestError("stop strings need a tokenizer (decode=…): this run has none")
    if any(not text for text in request.stop):
        raise RequestError("an empty stop string would end every text at once: leave it out")
    media = set(config.media_token_ids).intersection(request.ids)
    if media:
        raise RequestError(
            f"the prompt holds an image, video or audio placeholder (token {min(media)}): text only"
        )
    for position, token in request.pins.items():
        if not 0 <= position < request.max_new_tokens:
            raise RequestError(
                f"pin at answer position {position}: the answer has 0 … {request.max_new_tokens - 1}"
            )
        if not 0 <= token < config.text.vocab_size:
            raise RequestError(
                f"pin of token {token}: the vocabulary has 0 … {config.text.vocab_size - 1}"
            )
    if not isinstance(request.prefix, PrefixCache | None) or (
        request.prefix is not None and len(request.prefix.rows) != 1
    ):
        raise RequestError(f"prefix must be a PrefixCache of one row, got {shown(request.prefix)}")
    states = DecodeState | TokenState | None
    check_kind("state", request.state, states, "a DecodeState or TokenState")
    if request.prefix is not None:
        known = request.prefix.rows[0].tokens
        if len(known) >= len(request.ids) or known != tuple(request.ids)[: len(known)]:
            raise RequestError(
                "the cached prefix must hold the prompt's first tokens, and fewer than all of them"
            )
    if request.state is not None and tuple(request.ids) != request.state.ids:
        raise RequestError(
            "the state to continue from belongs to another prompt: pass the state's own ids"
        )
    if request.state is not None and len(request.state.committed) >= request.max_new_tokens:
        raise RequestError(
            f"the state to continue from has {len(request.state.committed)} tokens already: raise max_new_tokens"
        )


def encode_prompts(
    model: DiffusionGemma, rows: Sequence[Row], canvas: Sequence[Sequence[int]] | None = None
) -> list[PrefixCache]:
    """One-row caches of the rows' prompts, encoded together; each `.hidden` holds the last token's (1, D).

    canvas: of each row, denoised once in the same pass.
    """
    prefixes = [row.request.prefix or PrefixCache.empty(model.config.text, 1) for row in rows]
    tokens = [
        list(row.request.ids)[prefix.lengths[0] :]
        for row, prefix in zip(rows, prefixes, strict=True)
    ]
    with memory_advice():
        cache = model.encode(tokens, PrefixCache.join(prefixes), canvas=canvas)
    assert cache.hidden is not None
    return [
        PrefixCache([row], cache.hidden[i, len(new) - 1].unsqueeze(0), cache.canvas[i : i + 1])
        for i, (row, new) in enumerate(zip(cache.rows, tokens, strict=True))
    ]


def start_tokens(
    model: DiffusionGemma, rows: Sequence[Row], canvas: Sequence[Sequence[int]] | None = None
) -> Iterator[Event]:
    """Gives new rows of a causal mode their first state: the one they continue, or their prompt, encoded together.

    canvas: as in `encode_prompts`, of the rows that continue no state.
    """
    fresh = [row for row in rows if row.request.state is None]
    for row in rows:
        state = row.request.state
        if isinstance(state, TokenState):
            row.state = replace(state, cache=state.cache.copy())
            yield PromptEvent(row.request.id, state.ids, state.seed, row.seconds)
    if not fresh:
        return
    for row, cache in zip(fresh, encode_prompts(model, fresh, canvas), strict=True):
        assert cache.hidden is not None
        row.state = TokenState(
            tuple(row.request.ids), (), cache, cache.hidden[0], row.request.seed, 1
        )
        yield PromptEvent(row.request.id, tuple(row.request.ids), row.request.seed, row.seconds)


@dataclass(frozen=True)
class Cut:
    """Where a text ends, if it does: all kept answer ids so far, the text, and why."""

    ids: tuple[int, ...]
    text: str | None
    reason: StopReason | None


def cut(
    committed: Sequence[int],
    new: Sequence[int],
    remaining: int,
    eos: frozenset[int],
    stop: Sequence[str],
    decode: Decode | None,
) -> Cut:
    """Ends the text at its first end-of-sequence token (kept), stop string (not kept) or the limit."""
    kept = list(new[:remaining])
    reason: StopReason | None = "length" if len(new) >= remaining else None
    for i, token in enumerate(kept):
        if token in eos:
            kept, reason = kept[: i + 1], "eos"
            break
    ids = (*committed, *kept)
    if decode is None or (reason is None and not stop):
        return Cut(ids, None, reason)
    text = decode(ids)
    found = [place for place in (text.find(string) for string in stop) if place >= 0]
    if found:
        place, count = min(found), len(ids)
        while count and len(decode(ids[:count])) > place:
            count -= 1
        return Cut(ids[:count], text[:place], "stop")
    return Cut(ids, text, reason)


@dataclass(frozen=True)
class Choice:
    """A token that the causal mode has chosen for the next answer position."""

    token: int
    probability: float
    entropy: float
    observed: Observed | None


def read_choices(prediction: Prediction) -> list[list[Choice]]:
    """The samples of B rows, T positions each; probability and entropy are of the raw distribution.

    Raises RequestError where the numbers are not finite. This is where the host waits for the device: once a step.
    """
    fields = prediction.sample.double(), prediction.sample_logprob.exp(), prediction.entropy
    rows = torch.stack(fields, dim=-1).tolist()  # (B, T, 3), all in float64
    if not all(math.isfinite(probability) for row in rows for _, probability, _ in row):
        raise not_finite()
    return [
        [Choice(int(t), p, h, _seen(prediction, i, j)) for j, (t, p, h) in enumerate(row)]
        for i, row in enumerate(rows)
    ]


def _seen(prediction: Prediction, row: int, position: int) -> Observed | None:
    ids, chances = prediction.top_ids, prediction.top_probabilities
    if ids is None or chances is None:
        return None
    place, number = slice(position, position + 1), row * ids.shape[1] + position
    found = prediction.posterior
    given = {} if found is None else found.seen(number, ids.shape[2])
    return Observed(ids[row, place], chances[row, place], **given)


def keep_token(
    row: Row,
    state: TokenState,
    choice: Choice,
    eos: frozenset[int],
    decode: Decode | None,
    denoising_steps: int = 0,
    rounds: int = 0,
) -> Generator[Event, None, bool]:
    """Tells the token that was chosen after `state`, and the text's end where that is it. Returns whether it is."""
    request, index = row.request, len(state.committed)
    remaining = request.max_new_tokens - index
    end = cut(state.committed, [choice.token], remaining, eos, request.stop, decode)
    yield TokenEvent(
        request=request.id, index=index, token=choice.token, probability=choice.probability, entropy=choice.entropy,
        seconds=row.seconds, observed=choice.observed, state=state,
    )  # fmt: skip
    if end.reason is None:
        return False
    yield FinishEvent(
        request=request.id, ids=end.ids, text=end.text, stop_reason=end.reason, denoising_steps=denoising_steps,
        passes=state.passes, canvases=rounds, seconds=row.seconds, cache=state.cache,
    )  # fmt: skip
    return True


@contextmanager
def memory_advice() -> Iterator[None]:
    """Turns an allocator's failure into one clear line."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            "out of GPU memory: lower batch_size or the prompt's length, or load the model quantised"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise DeviceError(
                "out of memory: lower batch_size or the prompt's length, or load a smaller dtype"
            ) from error
        raise
