"""Synthetic event streams: what the decode loops emit, made by a small seeded play of denoising.

The classes bear the names and fields of the events of `dgemma_core.events`, with numpy arrays;
a trace knows events by these alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Observed:
    top_ids: Array | None = None
    top_probabilities: Array | None = None
    router_ids: Array | None = None
    router_weights: Array | None = None
    attention: Array | None = None


@dataclass(frozen=True)
class PromptEvent:
    request: Any
    ids: tuple[int, ...]
    seed: int
    seconds: float


@dataclass(frozen=True)
class StepEvent:
    request: Any
    canvas: int
    step: int
    steps: int
    kind: str
    temperature: float
    tokens_in: Array
    tokens_out: Array
    sample: Array
    argmax: Array
    accepted: Array
    pinned: Array
    sample_probability: Array
    argmax_probability: Array
    entropy: Array
    finished: bool
    seconds: float
    observed: Observed | None = None
    state: Any = None


@dataclass(frozen=True)
class CanvasEvent:
    request: Any
    canvas: int
    ids: tuple[int, ...]
    kept: int
    converged: bool
    probability: Array
    entropy: Array
    seconds: float


@dataclass(frozen=True)
class TokenEvent:
    request: Any
    index: int
    token: int
    probability: float
    entropy: float
    seconds: float
    observed: Observed | None = None
    state: Any = None


@dataclass(frozen=True)
class DraftEvent:
    request: Any
    round: int
    start: int
    tokens: tuple[int, ...]
    probability: tuple[float, ...]
    steps: int
    verified: int
    accepted: int
    replacement: int
    seconds: float


@dataclass(frozen=True)
class FinishEvent:
    request: Any
    ids: tuple[int, ...]
    stop_reason: str
    denoising_steps: int
    passes: int
    canvases: int
    seconds: float


PROMPT = (2, 7, 8, 9)
STEP_SECONDS = 0.02
EOS = 1


def diffusion_events(
    answer: Sequence[int],
    *,
    canvas_length: int = 16,
    steps: int = 8,
    vocabulary: int = 60,
    top_k: int = 0,
    router: bool = False,
    pins: Sequence[int] = (),
    converge: bool = True,
    seed: int = 0,
    request: Any = "a",
) -> Iterator[Any]:
    """Denoises `answer` canvas by canvas: each position turns right at a drawn step, sometimes
    accepted before with a wrong token and re-melted. Canvases are filled with EOS behind it."""
    rng = np.random.default_rng(seed)
    count = -(-len(answer) // canvas_length)
    target = np.full(count * canvas_length, EOS)
    target[: len(answer)] = answer
    yield PromptEvent(request, PROMPT, seed, STEP_SECONDS)
    clock = STEP_SECONDS
    kept: list[int] = []
    done = 0
    for canvas in range(count):
        goal = target[canvas * canvas_length : (canvas + 1) * canvas_length]
        turn = rng.integers(
            0, max(1, steps - 2), canvas_length
        )  # the step at which a position turns right
        tokens = rng.integers(0, vocabulary, canvas_length)
        pinned = np.isin(np.arange(canvas_length) + canvas * canvas_length, pins)
        tokens[pinned] = goal[pinned]
        accepted_before = np.zeros(canvas_length, bool)
        last_argmax = np.full(canvas_length, -1)
        for step in range(steps):
            right = pinned | (turn <= step)
            stray = rng.integers(0, vocabulary, canvas_length)
            argmax = np.where(
                right, goal, np.where(rng.random(canvas_length) < 0.5, stray, last_argmax)
            )
            argmax = np.where(argmax < 0, stray, argmax)
            sure = np.clip(0.15 + 0.85 * (step + 1 - turn) / 3, 0.05, 0.999)
            probability = np.where(right, sure, rng.uniform(0.05, 0.6, canvas_length)).astype(
                np.float32
            )
            if converge and step == steps - 1:
                probability = np.full(canvas_length, 0.9995, np.float32)
            probability[pinned] = 1.0
            entropy = ((1 - probability) * 4).astype(np.float32)
            accepted = (
                ~pinned
                & (probability > 0.45)
                & ~(accepted_before & (rng.random(canvas_length) < 0.1))
            )
            out = np.where(accepted | pinned, argmax, rng.integers(0, vocabulary, canvas_length))
            clock += STEP_SECONDS
            finished = converge and step == steps - 1
            yield StepEvent(
                request,
                canvas,
                step,
                steps,
                "predict",
                0.8 - 0.4 * step / steps,
                tokens,
                out,
                argmax,
                argmax,
                accepted,
                pinned,
                probability,
                probability,
                entropy,
                finished,
                clock,
                _observe(rng, argmax, probability, vocabulary, top_k, router),
                state=object(),
            )
            tokens, accepted_before, last_argmax = out, accepted, argmax
            done += 1
        ends = np.flatnonzero(argmax == EOS)
        keep = int(ends[0]) + 1 if len(ends) else canvas_length
        kept += argmax[:keep].tolist()
        yield CanvasEvent(
            request, canvas, tuple(argmax.tolist()), keep, converge, probability, entropy, clock
        )
        if len(ends):
            break
    reason = "eos" if kept and kept[-1] == EOS else "length"
    yield FinishEvent(request, tuple(kept), reason, done, 1 + done + canvas, canvas + 1, clock)


def token_events(
    answer: Sequence[int], *, top_k: int = 0, seed: int = 0, request: Any = "t"
) -> Iterator[Any]:
    """Emits `answer` one token a pass."""
    rng = np.random.default_rng(seed)
    yield PromptEvent(request, PROMPT, seed, STEP_SECONDS)
    for index, token in enumerate(answer):
        probability = float(rng.uniform(0.3, 1.0))
        observed = _observe(rng, np.array([token]), np.array([probability]), 60, top_k, False)
        yield TokenEvent(
            request,
            index,
            int(token),
            probability,
            4 * (1 - probability),
            STEP_SECONDS * (index + 2),
            observed,
        )
    reason = "eos" if answer[-1] == EOS else "length"
    yield FinishEvent(
        request, tuple(answer), reason, 0, len(answer), 0, STEP_SECONDS * (len(answer) + 1)
    )


def draft_events(
    answer: Sequence[int], accepted: Sequence[int], *, positions: int = 6, request: Any = "s"
) -> Iterator[Any]:
    """Emits `answer` in rounds of drafts of which `accepted` tokens each are right, and one more is verified."""
    yield PromptEvent(request, PROMPT, 0, STEP_SECONDS)
    clock, place, ended = STEP_SECONDS, 0, False

    def token(index: int) -> TokenEvent:
        return TokenEvent(request, index, int(answer[index]), 0.8, 0.5, clock)

    yield token(0)
    rounds = 0
    for count in accepted:
        clock += STEP_SECONDS
        right = [int(t) for t in answer[place : place + 1 + count]]
        drafted = (*right, *(59 - i for i in range(positions - len(right))))
        chances = tuple(1.0 if i == 0 else 0.9 - 0.1 * i for i in range(positions))
        replacement = int(answer[place + 1 + count])
        verified = min(count + 2, positions)
        yield DraftEvent(
            request, rounds, place, drafted, chances, 1, verified, count, replacement, clock
        )
        rounds += 1
        for _ in range(count + 1):
            place += 1
            yield token(place)
            ended = place == len(answer) - 1
        if ended:
            break
    reason = "eos" if answer[place] == EOS else "length"
    ids = tuple(int(t) for t in answer[: place + 1])
    yield FinishEvent(request, ids, reason, rounds, 1 + 2 * rounds, rounds, clock)


def _observe(
    rng: np.random.Generator,
    argmax: Array,
    probability: Array,
    vocabulary: int,
    top_k: int,
    router: bool,
) -> Observed | None:
    if not top_k and not router:
        return None
    length = len(argmax)
    top_ids = top_probabilities = router_ids = router_weights = None
    if top_k:
        start = rng.integers(0, vocabulary - 1, (length, 1))
        shift = 1 + (start + 17 * np.arange(top_k - 1)) % (vocabulary - 1)  # never 0, all different
        others = (argmax[:, None] + shift) % vocabulary
        top_ids = np.concatenate([argmax[:, None], others], axis=1)
        rest = (1 - probability)[:, None] * 0.5 ** np.arange(1, top_k)
        top_probabilities = np.concatenate([probability[:, None], rest], axis=1).astype(np.float32)
    if router:
        router_ids = rng.integers(0, 8, (3, length, 2))
        router_weights = rng.random((3, length, 2)).astype(np.float32)
    return Observed(top_ids, top_probabilities, router_ids, router_weights)
