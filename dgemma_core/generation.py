"""From prompts to texts: the convenient way to drain the two decode loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from dgemma_core.autoregression import decode_tokens
from dgemma_core.cache import PrefixCache
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.errors import RequestError
from dgemma_core.events import CanvasEvent, Event, FinishEvent, PromptEvent, StopReason, TokenEvent
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.observe import Observe
from dgemma_core.request import Request
from dgemma_core.samplers import EntropyBound, Sampler, StopRule

Mode = Literal["diffusion", "autoregressive"]
MODES: tuple[Mode, ...] = ("diffusion", "autoregressive")


@dataclass(frozen=True)
class Settings:
    """How to write: mode, sampler and limits. None means the checkpoint's own value.

    steps, sampler, stop_rule and soft_top_k belong to diffusion, temperature to autoregression (the samplers carry
    their own); a setting of the other mode is refused. soft_top_k: self-condition on so many of the most probable
    tokens alone; None means on all, as the model was trained.
    """

    mode: Mode = "diffusion"
    sampler: Sampler | None = None
    steps: int | None = None
    stop_rule: StopRule | Literal["checkpoint"] | None = "checkpoint"
    temperature: float | None = None
    max_new_tokens: int | None = None
    soft_top_k: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RequestError(f"unknown mode {self.mode!r}: choose one of {', '.join(MODES)}")
        foreign: dict[str, Any]
        if self.mode == "diffusion":
            foreign = {"temperature": self.temperature}
            advice = "give the sampler its temperature instead"
        else:
            rule = None if self.stop_rule == "checkpoint" else "set"
            foreign = {
                "sampler": self.sampler,
                "steps": self.steps,
                "stop_rule": rule,
                "soft_top_k": self.soft_top_k,
            }
            advice = "it belongs to mode='diffusion'"
        for name, value in foreign.items():
            if value is not None:
                raise RequestError(f"{name} has no meaning in mode {self.mode!r}: {advice}")
        if self.soft_top_k is not None and self.soft_top_k < 1:
            raise RequestError(f"soft_top_k must be at least 1, got {self.soft_top_k}")

    def resolved(self, loaded: Loaded) -> Settings:
        """The same with the checkpoint's defaults filled in."""
        defaults = loaded.generation
        limit = defaults.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        if self.mode == "autoregressive":
            return replace(self, max_new_tokens=limit, temperature=self.temperature or 0.0)
        rule = self.stop_rule
        if rule == "checkpoint":
            rule = StopRule(
                stability=defaults.stability_threshold, confidence=defaults.confidence_threshold
            )
        sampler = self.sampler or EntropyBound(
            entropy_bound=defaults.entropy_bound, t_min=defaults.t_min, t_max=defaults.t_max
        )
        steps = defaults.max_denoising_steps if self.steps is None else self.steps
        return replace(self, max_new_tokens=limit, sampler=sampler, steps=steps, stop_rule=rule)

    def events(
        self,
        loaded: Loaded,
        requests: Iterable[Request],
        *,
        batch_size: int = 1,
        observe: Observe | None = None,
    ) -> Iterator[Event]:
        """The event stream of these settings over `requests` (their own limits hold)."""
        settings = self.resolved(loaded)
        decode = None if loaded.tokenizer is None else loaded.tokenizer.decode
        eos = loaded.generation.eos_token_ids
        if settings.mode == "autoregressive":
            assert settings.temperature is not None
            return decode_tokens(
                loaded.model,
                requests,
                temperature=settings.temperature,
                batch_size=batch_size,
                eos=eos,
                decode=decode,
                observe=observe,
            )
        assert settings.steps is not None and settings.stop_rule != "checkpoint"
        return denoise_canvases(
            loaded.model,
            requests,
            sampler=settings.sampler,
            steps=settings.steps,
            stop_rule=settings.stop_rule,
            batch_size=batch_size,
            eos=eos,
            decode=decode,
            observe=observe,
            soft_top_k=settings.soft_top_k,
        )


@dataclass(frozen=True)
class Generation:
    """One written text and what it cost.

    Kept tokens count the end-of-sequence token (it cost a pass), not a stop string. seconds: from joining the batch to
    the end. passes: prefill, denoising steps and commits, or prefill and tokens.
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
    cache: PrefixCache = field(repr=False, compare=False)
    """Prompt and committed tokens as encoded so far, for a next turn."""

    @property
    def tokens_per_forward(self) -> float:
        """Kept tokens for each denoising step; in autoregression for each pass."""
        return self.kept_tokens / (self.denoising_steps or self.passes)

    @property
    def tokens_per_pass(self) -> float:
        """Kept tokens for each pass of any kind, prefill and commits included."""
        return self.kept_tokens / self.passes


def drain(
    events: Iterable[Event],
    loaded: Loaded,
    *,
    listen: Callable[[Event], None] | None = None,
) -> Iterator[Generation]:
    """Turns a stream of events into generations, each as it ends; `listen` sees every event first."""
    prompts: dict[Any, PromptEvent] = {}
    weights: dict[Any, list[tuple[Sequence[float], Sequence[float]]]] = {}
    for event in events:
        if listen is not None:
            listen(event)
        match event:
            case PromptEvent():
                prompts[event.request], weights[event.request] = event, []
            case CanvasEvent():
                kept = slice(event.kept)
                weights[event.request].append(
                    (_floats(event.probability[kept]), _floats(event.entropy[kept]))
                )
            case TokenEvent():
                weights[event.request].append(((event.probability,), (event.entropy,)))
            case FinishEvent():
                yield _generation(
                    event, prompts.pop(event.request), weights.pop(event.request), loaded
                )


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
        cache=event.cache,
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
    ids = [item for item in prompt if isinstance(item, int)] if not isinstance(prompt, str) else []
    if not isinstance(prompt, str) and len(ids) == len(prompt):
        if system is not None or thinking:
            raise RequestError(
                "system and thinking belong to the chat template: a prompt of token ids has none"
            )
        return ids
    if loaded.tokenizer is None:
        raise RequestError(f"{loaded.name} has no tokenizer: give the prompt as token ids")
    if raw:
        if system is not None or thinking or not isinstance(prompt, str):
            raise RequestError(
                "a raw prompt is one text, without system prompt and thinking: leave raw out for a chat"
            )
        return loaded.tokenizer.encode(prompt, bos=True)
    return loaded.tokenizer.chat_ids(prompt, system=system, thinking=thinking)  # type: ignore[arg-type]


def generate(
    loaded: Loaded,
    prompts: Prompt | Sequence[Prompt],
    *,
    mode: Mode = "diffusion",
    sampler: Sampler | None = None,
    steps: int | None = None,
    stop_rule: StopRule | Literal["checkpoint"] | None = "checkpoint",
    temperature: float | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    soft_top_k: int | None = None,
    system: str | None = None,
    thinking: bool = False,
    raw: bool = False,
    stop: Sequence[str] = (),
    pins: Mapping[int, int] | None = None,
    batch_size: int | None = None,
    observe: Observe | None = None,
    listen: Callable[[Event], None] | None = None,
) -> list[Generation]:
    """Writes a text for each prompt, in order; one prompt may stand alone.

    Settings left at None are the checkpoint's. Prompt number i uses seed + i, whatever the batch. batch_size: rows at
    a time, all of them if None (at most 32). listen: sees every event, for a display or a trace.
    """
    settings = Settings(
        mode, sampler, steps, stop_rule, temperature, max_new_tokens, soft_top_k
    ).resolved(loaded)
    assert settings.max_new_tokens is not None
    many = _several(prompts)
    requests = [
        Request(
            ids=prompt_ids(loaded, prompt, system=system, thinking=thinking, raw=raw),
            seed=seed + i,
            max_new_tokens=settings.max_new_tokens,
            stop=_strings(stop),
            pins=dict(pins or {}),
            id=i,
        )
        for i, prompt in enumerate(many)
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
        batch_size=min(32, len(requests)) if batch_size is None else batch_size,
        observe=observe,
    )
    for generation in drain(events, loaded, listen=hear):
        order[finished[-1]] = generation
    return [order[i] for i in range(len(requests))]


def _strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings; a lone one is not taken letter by letter."""
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _several(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A lone prompt (text, chat or ids) as a list of one."""
    if isinstance(prompts, str):
        return [prompts]
    if not len(prompts):
        raise RequestError("no prompts: give at least one")
    if isinstance(prompts[0], int | Mapping):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


class Chat:
    """A conversation of several turns over one prefix cache: what has been said is encoded once."""

    def __init__(
        self,
        loaded: Loaded,
        settings: Settings | None = None,
        *,
        system: str | None = None,
        thinking: bool = False,
    ) -> None:
        if loaded.tokenizer is None:
            raise RequestError(f"{loaded.name} has no tokenizer: a chat needs one")
        self.loaded = loaded
        self.settings = (settings or Settings()).resolved(loaded)
        self.system = system
        self.thinking = thinking
        self.ids: tuple[int, ...] = ()
        self.cache: PrefixCache | None = None

    def request(self, message: str, *, seed: int = 0, stop: Sequence[str] = ()) -> Request:
        """The next turn, as a request whose prefix is the conversation so far."""
        tokenizer = self.loaded.tokenizer
        assert tokenizer is not None and self.settings.max_new_tokens is not None
        if not self.ids:
            ids = tokenizer.chat_ids(message, system=self.system, thinking=self.thinking)
        else:
            ids = tokenizer.next_turn_ids(self.ids, message, thinking=self.thinking)
        return Request(
            ids=ids,
            seed=seed,
            max_new_tokens=self.settings.max_new_tokens,
            stop=_strings(stop),
            prefix=self.cache,
        )

    def say(
        self,
        message: str,
        *,
        seed: int = 0,
        stop: Sequence[str] = (),
        listen: Callable[[Event], None] | None = None,
    ) -> Generation:
        """Sends a message and returns the answer, which becomes part of the conversation."""
        request = self.request(message, seed=seed, stop=stop)
        events = self.settings.events(self.loaded, [request])
        (generation,) = drain(events, self.loaded, listen=listen)
        self.ids = (*(int(id) for id in request.ids), *generation.ids)
        # Unless a stop string has cut what was encoded, more of the conversation has been now.
        if generation.cache.lengths[0] <= len(self.ids):
            self.cache = generation.cache
        return generation
