"""From options to a request, and the record of a run without a screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dgemma_core.constraints.checks import check
from dgemma_core.constraints.onward import onward
from dgemma_core.errors import RequestError, check_kind, whole_number
from dgemma_core.events import Mode
from dgemma_core.files.checkpoint import Loaded, check_loaded
from dgemma_core.files.trace import Trace
from dgemma_core.generation import Prompt, prompt_ids
from dgemma_core.generation.settings import ModeSettings, settings_from
from dgemma_core.generation.writing import check_flags
from dgemma_core.observe import Observe
from dgemma_core.request import Request, stop_strings


def plan(
    loaded: Loaded,
    prompt: Prompt,
    *,
    mode: Mode = "diffusion",
    seed: int = 0,
    system: str | None = None,
    thinking: bool = False,
    raw: bool = False,
    stop: str | Sequence[str] | None = (),
    pins: Mapping[int, int | str] | None = None,
    **options: Any,
) -> tuple[ModeSettings, Request]:
    """Settings and request of one run; `options` are the settings of the mode by name, as in `dgemma_core.generate`.

    pins: answer position → token id, or text, whose tokens then hold the positions from there on. Raises RequestError,
    also where no text can satisfy a constraint.
    """
    settings = settings_from(mode, **options).resolved(loaded)
    check_flags(thinking=thinking, raw=raw)
    check_kind("pins", pins, Mapping | None, "positions with the token or text that each holds")
    if pins and mode != "diffusion":
        raise RequestError(f"pins have no meaning in mode {mode!r}: it writes from left to right")
    held: dict[int, int] = {}
    for position, what in (pins or {}).items():
        tokens = token_ids(loaded, what) if isinstance(what, str) else [what]
        first = whole_number("the position of a pin", position)
        held.update({first + i: token for i, token in enumerate(tokens)})
    assert settings.max_new_tokens is not None
    constraint = settings.constraint
    if thinking and constraint is not None:
        raise RequestError(
            "a constraint holds for the whole answer, thoughts too: leave thinking off"
        )
    request = Request(
        ids=prompt_ids(loaded, prompt, system=system, thinking=thinking, raw=raw),
        seed=seed,
        max_new_tokens=settings.max_new_tokens,
        stop=stop_strings(stop),
        pins=held,
        constraint=None if constraint is None else constraint.compile(loaded),
    )
    check_constraint(loaded, request)
    return settings, request


def check_constraint(loaded: Loaded, request: Request) -> None:
    """Raises RequestError where pins or the limit leave no text of the request's constraint."""
    check(request, loaded.model.config.text.vocab_size, frozenset(loaded.generation.eos_token_ids))


def token_ids(loaded: Loaded, text: str) -> list[int]:
    """The tokens of a piece of an answer; RequestError where it has none or the checkpoint no tokenizer."""
    check_loaded(loaded)
    check_kind("the text of an answer", text, str, "a text")
    if loaded.tokenizer is None:
        raise RequestError(f"{loaded.name} has no tokenizer: name tokens by their ids")
    ids = loaded.tokenizer.encode(text)
    if not ids:
        raise RequestError("an empty text has no tokens: give at least one character")
    return ids


def describe_run(
    loaded: Loaded, settings: ModeSettings, prompt: Prompt, observe: Observe | None
) -> dict[str, Any]:
    """The metadata of a trace: what was asked of which model, as json values."""
    text = loaded.model.config.text
    return {
        "model": loaded.name,
        "backend": loaded.model.backend.name,
        "prompt": prompt_text(prompt),
        **settings.described(),
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
        mode=settings.mode,
        metadata=describe_run(loaded, settings, prompt, observe),
        decode=decoder(loaded),
        onward=follower(loaded, request),
    )


def prompt_text(prompt: Prompt) -> str:
    """What a prompt is called: the text, or the last message of a chat."""
    if isinstance(prompt, str):
        return prompt
    last = list(prompt)[-1:]
    return str(last[0].get("content", "")) if last and isinstance(last[0], Mapping) else ""


def decoder(loaded: Loaded) -> Callable[[int], str]:
    return "<{}>".format if loaded.tokenizer is None else loaded.tokenizer.token_string


def follower(loaded: Loaded, request: Request) -> Callable[[int], dict[str, Any]] | None:
    """What may follow in a state of the request's constraint, for a trace and a canvas; None where it is free."""
    if request.constraint is None:
        return None
    return partial(onward, request.constraint, decoder(loaded))
