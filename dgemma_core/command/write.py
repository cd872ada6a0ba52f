"""`dgemma generate` and `dgemma chat`: they drain the event stream of the core, and print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgemma_core.command import options
from dgemma_core.command.lines import complain, count, escaped, standard_input, utf8
from dgemma_core.errors import RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from dgemma_core.events import Event
    from dgemma_core.files.checkpoint import Loaded
    from dgemma_core.files.recording import TraceRecorder
    from dgemma_core.files.text import Tokenizer
    from dgemma_core.generation import Generation
    from dgemma_core.generation.settings import ModeSettings

ALTERNATIVES = 5
"""Most probable tokens of each position that a trace holds."""


def generate(
    prompt: options.Prompt,
    model: options.Model = "nano",
    mode: options.ModeName = "diffusion",
    sampler: options.SamplerName = None,
    sampler_option: options.SamplerOptions = None,
    steps: options.Steps = None,
    soft_top_k: options.SoftTopK = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    draft: options.Draft = None,
    draft_positions: options.DraftPositions = None,
    draft_steps: options.DraftSteps = None,
    regex: options.Regex = None,
    json_schema: options.JsonSchema = None,
    choices: options.Choices = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = 0,
    system: options.System = None,
    thinking: options.Thinking = False,
    raw: options.Raw = False,
    stop: options.Stop = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Record every step into this file.")
    ] = None,
    as_json: options.AsJson = False,
    replay: options.Replay = True,
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = None,
    device: options.Device = "auto",
    backend: options.BackendName = "auto",
    adapter: options.Adapter = None,
) -> None:
    """Write one text. In a terminal the canvas is seen denoising; a pipe gets only the text."""
    if trace is not None:
        from dgemma_core.files.trace_file import check_destination

        check_destination(trace)
    text = standard_input() if prompt == "-" else prompt
    loaded, settings = options.load_with_settings(
        options.Source(model, dtype, quantize, device, backend, adapter),
        mode,
        sampler=sampler,
        sampler_option=sampler_option,
        constraint=(regex, json_schema, choices),
        steps=steps,
        soft_top_k=soft_top_k,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        draft=draft,
        draft_positions=draft_positions,
        draft_steps=draft_steps,
        max_new_tokens=max_new_tokens,
    )

    from rich.console import Console

    from dgemma_core.generation import generate as write
    from dgemma_core.observe import Observe

    console = Console(highlight=False)
    recorder, observe = None, None
    if trace is not None:
        recorder = _recorder(loaded, settings)
        observe = Observe(top_k=min(ALTERNATIVES, loaded.model.config.text.vocab_size))
    try:
        with _listener(loaded, None if as_json else console, recorder, replay=replay) as listen:
            (generation,) = write(
                loaded,
                text,
                mode=settings.mode,
                seed=seed,
                system=system,
                thinking=thinking,
                raw=raw,
                stop=stop or (),
                listen=listen,
                observe=observe,
                **vars(settings),
            )
    except KeyboardInterrupt:
        _save(recorder, trace)
        raise
    try:
        _save(recorder, trace)
    finally:  # a trace that cannot be written costs no text
        if as_json:
            print(json.dumps(_figures(generation, loaded), ensure_ascii=False))
        else:
            _print_text(generation, loaded, console, None if raw else text)


def chat(
    model: options.Model = "nano-talk",
    mode: options.ModeName = "diffusion",
    sampler: options.SamplerName = None,
    sampler_option: options.SamplerOptions = None,
    steps: options.Steps = None,
    soft_top_k: options.SoftTopK = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    draft: options.Draft = None,
    draft_positions: options.DraftPositions = None,
    draft_steps: options.DraftSteps = None,
    regex: options.Regex = None,
    json_schema: options.JsonSchema = None,
    choices: options.Choices = None,
    max_new_tokens: options.MaxNewTokens = None,
    seed: options.Seed = 0,
    system: options.System = None,
    thinking: options.Thinking = False,
    stop: options.Stop = None,
    replay: options.Replay = True,
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = None,
    device: options.Device = "auto",
    backend: options.BackendName = "auto",
    adapter: options.Adapter = None,
) -> None:
    """Talk in turns of one line each; the prefix cache keeps what was said. Ctrl-D ends."""
    loaded, settings = options.load_with_settings(
        options.Source(model, dtype, quantize, device, backend, adapter),
        mode,
        sampler=sampler,
        sampler_option=sampler_option,
        constraint=(regex, json_schema, choices),
        steps=steps,
        soft_top_k=soft_top_k,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        draft=draft,
        draft_positions=draft_positions,
        draft_steps=draft_steps,
        max_new_tokens=max_new_tokens,
    )

    from rich.console import Console

    from dgemma_core.generation import Chat

    console = Console(highlight=False)
    conversation = Chat(loaded, settings, system=system, thinking=thinking)
    typed = sys.stdin is not None and sys.stdin.isatty() and console.is_terminal
    lines: Iterator[str | bytes] = _typed_lines() if typed else _piped_lines()
    for turn, line in enumerate(lines):
        try:
            message = utf8("the message", line)
            with _listener(loaded, console, replay=replay) as listen:
                generation = conversation.say(
                    message, seed=seed + turn, stop=stop or (), listen=listen
                )
        except RequestError as error:
            if not typed:
                raise
            complain(str(error))
        else:
            _print_text(generation, loaded, console, message)


def _save(recorder: TraceRecorder | None, trace: Path | None) -> None:
    if recorder is not None and trace is not None:
        from dgemma_core.files.trace import Trace

        Trace(**recorder.fields()).save(trace)


def _typed_lines() -> Iterator[str]:
    """The lines that a user types, until Ctrl-D; empty ones are left out."""
    while True:
        try:
            line = input("› ")
        except EOFError:
            return
        except UnicodeDecodeError:
            complain("the message is not UTF-8 text: give it in that encoding")
            continue
        if line.strip():
            yield line


def _piped_lines() -> Iterator[bytes]:
    """The lines of standard input; empty ones are left out."""
    for line in sys.stdin.buffer if sys.stdin is not None else ():
        if line.strip():
            yield line.rstrip(b"\r\n")


@contextmanager
def _listener(
    loaded: Loaded,
    console: Console | None,
    recorder: TraceRecorder | None = None,
    *,
    replay: bool = True,
) -> Iterator[Callable[[Event], None]]:
    """What hears every event: the live screen of a terminal, the recorder of a trace."""
    from dgemma_core.command.screen import Screen

    screen = None
    if console is not None and console.is_terminal:
        decode, eos = _tokenizer(loaded).token_string, loaded.generation.eos_token_ids
        screen = Screen(console, decode, eos, replay=replay)

    def listen(event: Event) -> None:
        if screen is not None:
            screen.add(event)
        if recorder is not None:
            recorder.add(event)

    with screen or nullcontext():
        yield listen


def _recorder(loaded: Loaded, settings: ModeSettings) -> TraceRecorder:
    from dgemma_core.files.recording import TraceRecorder

    metadata = {
        "model": loaded.name,
        "backend": loaded.model.backend.name,
        "quantize": loaded.model.quantized,
        **({} if loaded.adapter is None else {"adapter": loaded.adapter}),
        **settings.resolved(loaded).described(),
        "eos_token_ids": list(loaded.generation.eos_token_ids),
    }
    return TraceRecorder(
        mode=settings.mode, metadata=metadata, decode=_tokenizer(loaded).token_string
    )


def _tokenizer(loaded: Loaded) -> Tokenizer:
    if loaded.tokenizer is None:
        raise RequestError(f"{loaded.name} has no tokenizer: put its tokenizer.json beside it")
    return loaded.tokenizer


def _figures(generation: Generation, loaded: Loaded) -> dict[str, Any]:
    names = (
        "text",
        "thought",
        "kept_tokens",
        "denoising_steps",
        "passes",
        "canvases",
        "rounds",
        "accepted_per_round",
        "seconds",
        "tokens_per_forward",
        "tokens_per_pass",
        "seed",
        "stop_reason",
    )
    figures = {
        name: len(generation.accepted) if name == "rounds" else getattr(generation, name)
        for name in names
    }
    return {**figures, "backend": loaded.model.backend.name}


def _print_text(
    generation: Generation, loaded: Loaded, console: Console, asked: str | None
) -> None:
    """The text, in a terminal with its confidence and what it cost; there it also says where a small model was asked
    for what it was not trained on."""
    if not console.is_terminal:
        print(generation.text)
        return
    from dgemma_core.command.terminal import NOISE, colour
    from dgemma_core.nano.problems import known_to

    decode = _tokenizer(loaded).decode
    if generation.thought:
        console.print(escaped(generation.thought, keep="\n"), style=NOISE, markup=False)
    console.print(colour(generation.text, generation.ids, generation.token_probabilities, decode))
    cost = [count(generation.kept_tokens, "token"), f"{generation.seconds:.2f} s"]
    if generation.accepted_per_round is not None:
        cost.append(count(len(generation.accepted), "round"))
        cost.append(f"{generation.accepted_per_round:.1f} drafted tokens accepted a round")
    elif generation.canvases:
        cost.append(count(generation.denoising_steps, "step"))
        cost.append(count(generation.canvases, "canvas", "canvases"))
    if generation.accepted:
        cost.append(f"{generation.tokens_per_pass:.1f} tokens per pass")
    else:
        cost.append(f"{generation.tokens_per_forward:.1f} tokens per forward")
    if generation.stop_reason == "length":
        cost.append("cut at the token limit")
    console.print(" · ".join(cost), style=NOISE, soft_wrap=True)
    told = "" if asked is None else known_to(loaded).warning(loaded.name, asked, generation.text)
    if told:
        console.print(told, style=NOISE, markup=False, soft_wrap=True)
