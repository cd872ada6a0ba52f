"""From prompts to texts: the convenient ways to drain a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from dgemma_core.cache import PrefixCache
from dgemma_core.constraints.language import Constraint
from dgemma_core.errors import RequestError, check_kind, shown, whole_number
from dgemma_core.events import (
    CanvasEvent,
    DraftEvent,
    Event,
    FinishEvent,
    Mode,
    PromptEvent,
    StopReason,
    TokenEvent,
)
from dgemma_core.files.checkpoint import Loaded, check_loaded
from dgemma_core.generation.settings import check_constraint, check_observe, settings_from
from dgemma_core.observe import Observe
from dgemma_core.request import Request, stop_strings, token_ids


@dataclass(frozen=True)
class Generation:
    """One written text and what it cost.

    Kept tokens count the end-of-sequence token (it cost a pass), not a stop string. seconds: from joining the batch to
    the end. passes: prefill, denoising steps and commits, or prefill and tokens, or those of speculation, each of
    which may verify a draft and draft the next.
    """

    text: str
    thought: str
    ids: tuple[int, ...]
    kept_tokens: int
    token_probabilities: tuple[float, ...]
    """Of each kept token when it was committed, under the sampler's reference distribution (autoregressive: raw)."""
    token_entropies: tuple[float, ...]
    """Nats, likewise."""
    denoising_steps: int
    passes: int
    canvases: int
    seconds: float
    stop_reason: StopReason
    seed: int
    prompt_tokens: int
    accepted: tuple[int, ...] = ()
    """Drafted tokens accepted in each round, of speculation; `canvases` counts its rounds."""
    cache: PrefixCache | None = field(repr=False, compare=False, default=None)
    """Prompt and committed tokens as encoded so far, for a next turn; None unless it was asked for (`keep_cache`)."""

    @property
    def tokens_per_forward(self) -> float:
        """Kept tokens for each denoising step; in autoregression and speculation for each pass of any kind."""
        return self.kept_tokens / (
            self.passes if self.accepted else self.denoising_steps or self.passes
        )

    @property
    def tokens_per_pass(self) -> float:
        """Kept tokens for each pass of any kind, prefill and commits included."""
        return self.kept_tokens / self.passes

    @property
    def accepted_per_round(self) -> float | None:
        """Mean number of drafted tokens that a round of speculation accepted; None without rounds."""
        return sum(self.accepted) / len(self.accepted) if self.accepted else None


def drain(
    events: Iterable[Event],
    loaded: Loaded,
    *,
    listen: Callable[[Event], None] | None = None,
    keep_cache: bool = False,
) -> Iterator[Generation]:
    """Turns a stream of events into generations, each as it ends; `listen` sees every event first.

    keep_cache: each generation keeps its prefix cache.
    """
    check_kind("events", events, Iterable, "the stream of a decode loop")
    check_loaded(loaded)
    check_listener(listen)
    check_flags(keep_cache=keep_cache)
    prompts: dict[Any, PromptEvent] = {}
    weights: dict[Any, list[tuple[Sequence[float], Sequence[float]]]] = {}
    accepted: dict[Any, list[int]] = {}
    for event in events:
        if listen is not None:
            listen(event)
        match event:
            case PromptEvent():
                prompts[event.request], weights[event.request] = event, []
                accepted[event.request] = []
            case CanvasEvent():
                kept = slice(event.kept)
                weights[event.request].append(
                    (_floats(event.probability[kept]), _floats(event.entropy[kept]))
                )
            case TokenEvent():
                weights[event.request].append(((event.probability,), (event.entropy,)))
            case DraftEvent():
                accepted[event.request].append(event.accepted)
            case FinishEvent():
                prompt, measured = prompts.pop(event.request), weights.pop(event.request)
                generation = replace(
                    _generation(event, prompt, measured, loaded),
                    accepted=tuple(accepted.pop(event.request)),
                    cache=event.cache if keep_cache else None,
                )
                yield generation


def check_flags(**flags: Any) -> None:
    """Raises RequestError for a flag that is neither True nor False."""
    for name, flag in flags.items():
        check_kind(name, flag, bool | np.bool_, "True or False")


def check_listener(listen: Any) -> None:
    """Raises RequestError for what is neither a function nor None."""
    check_kind("listen", listen, Callable | None, "a function of one event, or None")


def _floats(values: Tensor) -> list[float]:
    return [float(value) for value in values.tolist()]


def _generation(
    event: FinishEvent,
    prompt: PromptEvent,
    weights: Sequence[tuple[Sequence[float], Sequence[float]]],
    loaded: Loaded,
) -> Generation:
    thought, text = "", ""
    if loaded.tokenizer is not None:
        thought, text = loaded.tokenizer.strip_thought(event.ids)
        if event.stop_reason == "stop" and event.text is not None and (text or not thought):
            # A stop string may begin within a token: what of that token stands before it.
            text += event.text[len(loaded.tokenizer.decode(event.ids)) :]
    count = len(event.ids)
    return Generation(
        text=text,
        thought=thought,
        ids=event.ids,
        kept_tokens=count,
        token_probabilities=tuple(p for probabilities, _ in weights for p in probabilities)[:count],
        token_entropies=tuple(e for _, entropies in weights for e in entropies)[:count],
        denoising_steps=event.denoising_steps,
        passes=event.passes,
        canvases=event.canvases,
        seconds=event.seconds,
        stop_reason=event.stop_reason,
        seed=prompt.seed,
        prompt_tokens=len(prompt.ids),
    )


Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]
"""A user's message, a chat as role/content messages, or token ids."""


def prompt_ids(
    loaded: Loaded,
    prompt: Prompt,
    *,
    system: str | None = None,
    thinking: bool = False,
    raw: bool = False,
) -> list[int]:
    """The ids that a prompt stands for: through the chat template, or as they are (`raw`, or ids)."""
    check_loaded(loaded)
    check_flags(thinking=thinking, raw=raw)
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    check_kind("prompt", prompt, Sequence, "a text, a chat, or token ids, whole numbers")
    if not isinstance(prompt, str) and not _is_chat(prompt):
        if system is not None or thinking:
            raise RequestError(
                "system and thinking belong to the chat template: a prompt of token ids has none"
            )
        return list(token_ids("prompt", prompt))
    if loaded.tokenizer is None:
        raise RequestError(f"{loaded.name} has no tokenizer: give the prompt as token ids")
    if raw:
        if system is not None or thinking or not isinstance(prompt, str):
            raise RequestError(
                "a raw prompt is one text, without system prompt and thinking: leave raw out for a chat"
            )
        return loaded.tokenizer.encode(prompt, bos=True)
    return loaded.tokenizer.chat_ids(prompt, system=system, thinking=bool(thinking))  # type: ignore[arg-type]


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def generate(
    loaded: Loaded,
    prompts: Prompt | Sequence[Prompt],
    *,
    mode: Mode = "diffusion",
    seed: int = 0,
    system: str | None = None,
    thinking: bool = False,
    raw: bool = False,
    stop: str | Sequence[str] | None = (),
    pins: Mapping[int, int] | None = None,
    batch_size: int | None = None,
    observe: Observe | None = None,
    listen: Callable[[Event], None] | None = None,
    keep_cache: bool = False,
    constraint: Constraint | Sequence[Constraint | None] | None = None,
    **options: Any,
) -> list[Generation]:
    """Writes a text for each prompt, in order; one prompt may stand alone.

    options: the settings of the mode by name, those of `DiffusionSettings` or `AutoregressiveSettings`. Prompt number i
    uses seed + i, whatever the batch. batch_size: rows at a time, all of them if None (at most 32). listen: sees every
    event, for a display or a trace. keep_cache: each result keeps its prefix cache, some MB even for a small model.
    constraint: the language of every answer, or one a prompt (None: free). A stop string cuts an answer in any case.
    Raises RequestError for what cannot be met, before any work on it.
    """
    check_loaded(loaded)
    check_flags(thinking=thinking, raw=raw, keep_cache=keep_cache)
    check_observe(observe)
    check_listener(listen)
    many = _several(prompts)
    one = not isinstance(constraint, Sequence) or isinstance(constraint, str)
    each: Sequence[Any] = [None] * len(many) if one else constraint  # type: ignore[assignment]
    for own in each:
        check_constraint(own)
    if len(each) != len(many):
        raise RequestError(
            f"{len(each)} constraints for {len(many)} prompts: give one, or one a prompt"
        )
    if one:
        options["constraint"] = constraint
    if thinking and constraint is not None:
        raise RequestError(
            "a constraint holds for the whole answer, thoughts too: leave thinking off"
        )
    settings = settings_from(mode, **options).resolved(loaded)
    assert settings.max_new_tokens is not None
    if batch_size is None:
        batch_size = min(32, len(many))
    seed = whole_number("seed", seed)
    requests = [
        Request(
            ids=prompt_ids(loaded, prompt, system=system, thinking=thinking, raw=raw),
            seed=seed + i,
            max_new_tokens=settings.max_new_tokens,
            stop=stop_strings(stop),
            pins=pins,  # type: ignore[arg-type]  # None: none
            constraint=None if own is None else own.compile(loaded),
            id=i,
        )
        for i, (prompt, own) in enumerate(zip(many, each, strict=True))
    ]
    order: dict[Any, Generation] = {}
    finished: list[Any] = []

    def hear(event: Event) -> None:
        if isinstance(event, FinishEvent):
            finished.append(event.request)
        if listen is not None:
            listen(event)

    events = settings.events(
        loaded,
        requests,
        batch_size=whole_number("batch_size", batch_size, low=1),
        observe=observe,
    )
    for generation in drain(events, loaded, listen=hear, keep_cache=keep_cache):
        order[finished[-1]] = generation
    return [order[i] for i in range(len(requests))]


def _several(prompts: Any) -> Sequence[Prompt]:
    """A lone prompt (text, chat or ids) as a list of one."""
    if hasattr(prompts, "tolist"):
        prompts = prompts.tolist()
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise RequestError(
            f"prompts must be a text, a chat, token ids or a list of these, got {shown(prompts)}"
        )
    if not prompts:
        raise RequestError("no prompts: give at least one")
    return [prompts] if isinstance(prompts[0], Real | Mapping) else prompts
