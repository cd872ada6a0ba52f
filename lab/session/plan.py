"""From options to a request, and the record of a run without a screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from dgemma_core.errors import RequestError
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.files.trace import Trace
from dgemma_core.generation import Mode, Prompt, Settings, prompt_ids
from dgemma_core.observe import Observe
from dgemma_core.request import Request
from dgemma_core.samplers import Sampler, StopRule, describe


def plan(
    loaded: Loaded,
    prompt: Prompt,
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
    pins: Mapping[int, int | str] | None = None,
) -> tuple[Settings, Request]:
    """Settings and request of one run; options as in `dgemma_core.generation`.

    pins: answer position → token id, or text, whose tokens then hold the positions from there on. Raises RequestError.
    """
    settings = Settings(
        mode, sampler, steps, stop_rule, temperature, max_new_tokens, soft_top_k
    ).resolved(loaded)
    if pins and mode == "autoregressive":
        raise RequestError(
            "pins have no meaning in mode 'autoregressive': it writes from left to right"
        )
    held: dict[int, int] = {}
    for position, what in (pins or {}).items():
        tokens = [what] if isinstance(what, int) else token_ids(loaded, what)
        held.update({position + i: token for i, token in enumerate(tokens)})
    assert settings.max_new_tokens is not None
    ids = prompt_ids(loaded, prompt, system=system, thinking=thinking, raw=raw)
    return settings, Request(
        ids=ids, seed=seed, max_new_tokens=settings.max_new_tokens, stop=tuple(stop), pins=held
    )


def token_ids(loaded: Loaded, text: str) -> list[int]:
    """The tokens of a piece of an answer; RequestError where it has none or the checkpoint no tokenizer."""
    if loaded.tokenizer is None:
        raise RequestError(f"{loaded.name} has no tokenizer: name tokens by their ids")
    ids = loaded.tokenizer.encode(text)
    if not ids:
        raise RequestError("an empty text has no tokens: give at least one character")
    return ids


def describe_run(
    loaded: Loaded, settings: Settings, prompt: Prompt, observe: Observe | None
) -> dict[str, Any]:
    """The metadata of a trace: what was asked of which model, as json values."""
    text = loaded.model.config.text
    rule = settings.stop_rule
    return {
        "model": loaded.name,
        "prompt": prompt if isinstance(prompt, str) else "",
        "sampler": describe(settings.sampler) if settings.sampler else None,
        "stop_rule": asdict(rule) if isinstance(rule, StopRule) else None,
        "temperature": settings.temperature or 0.0,
        "max_new_tokens": settings.max_new_tokens,
        "soft_top_k": settings.soft_top_k,
        "eos_token_ids": list(loaded.generation.eos_token_ids),
        "num_experts": text.num_experts,
        "attention_positions": list(observe.attention_positions) if observe else [],
    }


def record(
    loaded: Loaded, prompt: Prompt, *, observe: Observe | None = None, **options: Any
) -> Trace:
    """Runs to the end, without a screen, and returns the trace. `options` are those of `plan`."""
    settings, request = plan(loaded, prompt, **options)
    return Trace.record(
        settings.events(loaded, [request], observe=observe),
        metadata=describe_run(loaded, settings, prompt, observe),
        decode=decoder(loaded),
    )


def decoder(loaded: Loaded) -> Callable[[int], str]:
    return "<{}>".format if loaded.tokenizer is None else loaded.tokenizer.token_string
