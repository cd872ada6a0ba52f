"""The command `dgemma`. Thin: it parses, listens to the event stream of the core, and prints.

Notable:
- whatever is the input's fault is one line on stderr and exit code 2;
- commands of other packages come in through the entry-point group `dgemma.commands`
  (name → `typer.Typer`), loaded when asked for: the core imports none of them;
- model libraries are imported inside the commands, so that `dgemma --help` is quick.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from dgemma_core.errors import DgemmaError, RequestError
from dgemma_core.train.run import train

if TYPE_CHECKING:
    from rich.console import Console

    from dgemma_core.command.plan import Plan
    from dgemma_core.config import GenerationDefaults, ModelConfig
    from dgemma_core.events import Event
    from dgemma_core.files.checkpoint import Loaded
    from dgemma_core.files.recording import TraceRecorder
    from dgemma_core.files.trace import Trace
    from dgemma_core.generation import Generation, Settings
    from dgemma_core.samplers import Sampler
    from dgemma_core.text import Tokenizer

PROGRAM = "dgemma"
PLUGINS = "dgemma.commands"


class Commands(TyperGroup):
    """The built-in commands, then those that installed packages add."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands."""
        return [*super().list_commands(ctx), *sorted(_plugins().names)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, None where there is none."""
        if cmd_name in self.commands or cmd_name not in _plugins().names:
            return super().get_command(ctx, cmd_name)
        command = _load_plugin(_plugins()[cmd_name])
        command.name = cmd_name
        return command

    def main(self, *args: Any, **more: Any) -> Any:
        """Runs a command line and exits: 0; 2 after one line on stderr; 130 after Ctrl-C."""
        try:
            code = super().main(*args, **{**more, "standalone_mode": False}) or 0
        except typer.TyperException as error:
            code = _complain(error.format_message())
        except (DgemmaError, OSError) as error:
            code = _complain(str(error))
        sys.exit(code)


def _complain(message: str) -> int:
    """One line on stderr; returns the exit code of bad input."""
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _plugins() -> EntryPoints:
    return entry_points(group=PLUGINS)


def _load_plugin(plugin: EntryPoint) -> Any:
    """The plugin's command; where it does not load, one that says so."""
    try:
        return typer.main.get_command(plugin.load())
    except (ImportError, AttributeError, RuntimeError) as error:
        reason = DgemmaError(f"{plugin.name} ({plugin.value}) does not load: {error}")
    stand_in = typer.Typer()
    anything = {"allow_extra_args": True, "ignore_unknown_options": True}

    @stand_in.command(help=str(reason), context_settings=anything)
    def fail() -> None:
        raise reason

    return typer.main.get_command(stand_in)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
trace_app = typer.Typer(help="Look at recorded runs.")
app.add_typer(trace_app, name="trace")
app.command()(train)


@app.callback(invoke_without_command=True)
def start(ctx: typer.Context) -> None:
    """DiffusionGemma: text out of noise, canvas by canvas."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


# --- writing

MODEL_HELP = "nano, a folder, or a name on the Hugging Face hub."

Model = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
Mode = Annotated[
    Literal["diffusion", "autoregressive"], typer.Option(help="How the same weights write.")
]
SamplerName = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help="entropy_bound (the checkpoint's own), block_refinement or discrete_ddim.",
    ),
]
SamplerOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--sampler-option",
        metavar="KEY=VALUE",
        help="A setting of the sampler, e.g. entropy_bound=0.3. May be repeated.",
    ),
]
Steps = Annotated[int | None, typer.Option(help="The most denoising steps a canvas may take.")]
SoftTopK = Annotated[
    int | None,
    typer.Option(
        min=1, help="Self-condition on so many of the likeliest tokens alone; on all if not given."
    ),
]
MaxNewTokens = Annotated[int | None, typer.Option(help="The most tokens to keep.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")]
System = Annotated[str | None, typer.Option(metavar="TEXT", help="A system prompt.")]
Thinking = Annotated[
    bool,
    typer.Option("--thinking", help="Let the model think first; its thought is not in the text."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="End the text where this would begin. May be repeated."),
]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, …; auto: as stored (nano on a CPU: float32).")
]
Quantize = Annotated[
    str | None,
    typer.Option(metavar="SCHEME", help="int8 or int4: weights as whole numbers with scales."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, …; auto: a GPU where there is one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one json object.")]


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    model: Model = "nano",
    mode: Mode = "diffusion",
    sampler: SamplerName = None,
    sampler_option: SamplerOptions = None,
    steps: Steps = None,
    soft_top_k: SoftTopK = None,
    max_new_tokens: MaxNewTokens = None,
    seed: Seed = 0,
    system: System = None,
    thinking: Thinking = False,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template around the prompt.")] = False,
    stop: Stop = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Record every step into this file.")
    ] = None,
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = "auto",
) -> None:
    """Write one text. In a terminal the canvas is seen denoising; a pipe gets only the text."""
    if trace is not None and (trace.is_dir() or not trace.absolute().parent.is_dir()):
        raise RequestError(f"--trace {trace}: name a file in a folder that exists")
    text = _read_prompt(prompt)
    options = _sampler_options(sampler_option)
    loaded, settings = _load(
        model, dtype, quantize, device, mode, sampler, options, steps, soft_top_k, max_new_tokens
    )

    from rich.console import Console

    from dgemma_core.generation import generate as write

    console = Console(highlight=False)
    recorder = _recorder(loaded, settings) if trace is not None else None
    with _listener(loaded, None if as_json else console, recorder) as listen:
        (generation,) = write(
            loaded,
            text,
            **vars(settings),
            seed=seed,
            system=system,
            thinking=thinking,
            raw=raw,
            stop=stop or (),
            listen=listen,
        )
    if trace is not None and recorder is not None:
        recorder.trace().save(trace)
    if as_json:
        print(json.dumps(_figures(generation), ensure_ascii=False))
    else:
        _print_text(generation, loaded, console)


@app.command()
def chat(
    model: Model = "nano",
    mode: Mode = "diffusion",
    sampler: SamplerName = None,
    sampler_option: SamplerOptions = None,
    steps: Steps = None,
    soft_top_k: SoftTopK = None,
    max_new_tokens: MaxNewTokens = None,
    seed: Seed = 0,
    system: System = None,
    thinking: Thinking = False,
    stop: Stop = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    device: Device = "auto",
) -> None:
    """Talk in turns of one line each; the prefix cache keeps what was said. Ctrl-D ends."""
    options = _sampler_options(sampler_option)
    loaded, settings = _load(
        model, dtype, quantize, device, mode, sampler, options, steps, soft_top_k, max_new_tokens
    )

    from rich.console import Console

    from dgemma_core import Chat

    console = Console(highlight=False)
    conversation = Chat(loaded, settings, system=system, thinking=thinking)
    typed = sys.stdin.isatty() and console.is_terminal
    for turn, message in enumerate(_messages("› " if typed else "")):
        try:
            with _listener(loaded, console) as listen:
                generation = conversation.say(
                    message, seed=seed + turn, stop=stop or (), listen=listen
                )
        except RequestError as error:
            if not typed:
                raise
            _complain(str(error))
        else:
            _print_text(generation, loaded, console)


def _load(
    model: str,
    dtype: str,
    quantize: str | None,
    device: str,
    mode: Literal["diffusion", "autoregressive"],
    sampler: str | None,
    options: dict[str, Any],
    steps: int | None,
    soft_top_k: int | None,
    max_new_tokens: int | None,
) -> tuple[Loaded, Settings]:
    """The model, and how it is to write; wrong settings are refused before a long load."""
    from dgemma_core import GenerationDefaults, Settings, load

    def settings(defaults: GenerationDefaults) -> Settings:
        return Settings(
            mode=mode,
            sampler=_sampler(sampler, options, defaults),
            steps=steps,
            soft_top_k=soft_top_k,
            max_new_tokens=max_new_tokens,
        )

    settings(GenerationDefaults())
    loaded = load(model, dtype=dtype, device=device, quantize=quantize)
    return loaded, settings(loaded.generation)


def _sampler(
    name: str | None, options: dict[str, Any], defaults: GenerationDefaults
) -> Sampler | None:
    """The sampler asked for; what is not given of the model's own rule is the checkpoint's."""
    from dgemma_core import sampler_from

    if name is None and not options:
        return None
    name = name or "entropy_bound"
    if name == "entropy_bound":
        own = {key: getattr(defaults, key) for key in ("entropy_bound", "t_min", "t_max")}
        options = own | options
    return sampler_from(name, **options)


def _sampler_options(pairs: Sequence[str] | None) -> dict[str, Any]:
    """KEY=VALUE texts as names and json values."""
    options: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise RequestError(f"--sampler-option {pair}: expected KEY=VALUE, e.g. t_min=0.5")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def _read_prompt(prompt: str) -> str:
    raw = sys.stdin.buffer.read() if prompt == "-" else os.fsencode(prompt)
    try:
        return raw.decode().removesuffix("\n") if prompt == "-" else raw.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"the prompt is not UTF-8: {error}") from error


def _messages(invitation: str) -> Iterator[str]:
    """The user's turns: the lines of standard input, empty ones left out."""
    while True:
        try:
            message = input(invitation)
        except EOFError:
            return
        if message.strip():
            yield message


@contextmanager
def _listener(
    loaded: Loaded, console: Console | None, recorder: TraceRecorder | None = None
) -> Iterator[Callable[[Event], None]]:
    """What hears every event: the live screen of a terminal, the recorder of a trace."""
    from dgemma_core.command.terminal import Screen

    screen = None
    if console is not None and console.is_terminal:
        screen = Screen(console, _tokenizer(loaded).token_string, loaded.generation.eos_token_ids)

    def listen(event: Event) -> None:
        if screen is not None:
            screen.add(event)
        if recorder is not None:
            recorder.add(event)

    with screen or nullcontext():
        yield listen


def _recorder(loaded: Loaded, settings: Settings) -> TraceRecorder:
    from dgemma_core.files.recording import TraceRecorder
    from dgemma_core.samplers import describe

    sampler = settings.resolved(loaded).sampler
    metadata = {
        "model": loaded.name,
        "quantize": loaded.model.quantized,
        "sampler": describe(sampler) if sampler else None,
        "soft_top_k": settings.soft_top_k,
        "eos_token_ids": list(loaded.generation.eos_token_ids),
    }
    return TraceRecorder(metadata=metadata, decode=_tokenizer(loaded).token_string)


def _tokenizer(loaded: Loaded) -> Tokenizer:
    if loaded.tokenizer is None:
        raise RequestError(f"{loaded.name} has no tokenizer: put its tokenizer.json beside it")
    return loaded.tokenizer


def _figures(generation: Generation) -> dict[str, Any]:
    names = (
        "text",
        "thought",
        "kept_tokens",
        "denoising_steps",
        "passes",
        "canvases",
        "seconds",
        "tokens_per_forward",
        "tokens_per_pass",
        "seed",
        "stop_reason",
    )
    return {name: getattr(generation, name) for name in names}


def _print_text(generation: Generation, loaded: Loaded, console: Console) -> None:
    """The text, in a terminal with its confidence and what it cost."""
    if not console.is_terminal:
        print(generation.text)
        return
    from dgemma_core.command.terminal import NOISE, colour, count

    decode = _tokenizer(loaded).decode
    if generation.thought:
        console.print(generation.thought, style=NOISE, markup=False)
    console.print(colour(generation.text, generation.ids, generation.token_probabilities, decode))
    cost = [count(generation.kept_tokens, "token"), f"{generation.seconds:.2f} s"]
    if generation.canvases:
        cost.append(count(generation.denoising_steps, "step"))
        cost.append(count(generation.canvases, "canvas", "canvases"))
    cost.append(f"{generation.tokens_per_forward:.1f} tokens per forward")
    if generation.stop_reason == "length":
        cost.append("cut at the token limit")
    console.print(" · ".join(cost), style=NOISE, soft_wrap=True)


# --- looking


@app.command()
def info(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "nano", as_json: AsJson = False
) -> None:
    """Show a checkpoint's configuration, parameters (total and active) and bytes.

    Of one on the hub only its configuration and the headers of its files are read.
    """
    from dgemma_core.files.config_json import generation_defaults_json, model_config_json
    from dgemma_core.files.description import describe

    found = describe(model)
    config, defaults, stored = found.config, found.generation, dict(found.stored)
    total, active = count_parameters(config)
    loaded = {"float32": 4 * total, "bfloat16": 2 * total}
    if as_json:
        facts = {
            "model": model,
            "parameters": {"total": total, "active": active},
            "stored_bytes": stored,
            "loaded_bytes": loaded,
            "config": model_config_json(config),
            "generation_config": generation_defaults_json(defaults),
        }
        print(json.dumps(facts))
        return
    text = config.text
    full = sum(layer.full for layer in text.layers)
    canvases = f"canvases of {config.canvas_length} tokens, or token by token"
    rows = {
        "model": f"{model} ({config.model_type}), {found.place}",
        "writes": canvases if config.can_denoise else "token by token only",
        "layers": f"{len(text.layers) - full} sliding (window {text.sliding_window}), {full} full",
        "width": f"{text.hidden_size}; {text.num_attention_heads} query heads",
        "experts": f"{text.num_experts} of width {text.moe_intermediate_size}, "
        f"{text.top_k_experts} for each token, beside a dense MLP of {text.intermediate_size}",
        "vocabulary": f"{text.vocab_size:,}",
        "parameters": f"{total:,} in the text model, {active:,} active for each token",
        "stored": f"{_sizes(stored)}; all tensors",
        "loaded": f"{_sizes(loaded)}; the text model",
        "sampling": f"up to {defaults.max_denoising_steps} steps a canvas, "
        f"entropy bound {defaults.entropy_bound:g} nats, "
        f"temperature {defaults.t_max:g} to {defaults.t_min:g}",
    }
    for name, value in rows.items():
        print(f"{name:<12}{value}")


@app.command()
def plan(
    memory: Annotated[str, typer.Option(metavar="SIZE", help="For example 18GB or 16GiB.")],
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="nano, a folder with a config.json, or a released name."
        ),
    ] = "google/diffusiongemma-26B-A4B-it",
    prefix: Annotated[int, typer.Option(help="Tokens before the canvas, in the cache.")] = 4096,
    as_json: AsJson = False,
) -> None:
    """Show which formats of a model fit into a memory, and the arithmetic."""
    from dgemma_core.command.plan import make_plan, parse_memory

    found = make_plan(model, parse_memory(memory), prefix)
    if as_json:
        from dataclasses import asdict

        formats = {format.pop("name"): format for format in asdict(found)["formats"]}
        print(json.dumps({**asdict(found), "formats": formats}))
        return
    _print_plan(found)


def _print_plan(found: Plan) -> None:
    """A table of parts and formats, then how each number came about."""
    from rich.console import Console
    from rich.table import Table

    large = max(format.total for format in found.formats) >= 1e9
    unit, size_of = ("GB", 1e9) if large else ("MB", 1e6)
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{unit}, prefix {found.prefix:,}")
    for heading in ("parameters", *(format.name for format in found.formats)):
        table.add_column(heading, justify="right")

    def row(label: str, count: int | None, sizes: Sequence[int], **style: Any) -> None:
        shown = "" if count is None else f"{count:,}"
        table.add_row(label, shown, *(f"{size / size_of:,.2f}" for size in sizes), **style)

    for part, count in found.parameters.items():
        row(part, count, [format.weights[part] for format in found.formats])
    row("of which scales", None, [format.scales for format in found.formats], style="dim")
    row("prefix cache", None, [format.cache for format in found.formats])
    row(
        "working memory",
        None,
        [sum(line.bytes for line in format.working) for format in found.formats],
    )
    row(
        "total",
        sum(found.parameters.values()),
        [format.total for format in found.formats],
        style="bold",
    )
    verdicts = ["fits" if format.fits else "too large" for format in found.formats]
    table.add_row(f"in {found.memory / 1e9:,.2f} GB", "", *verdicts, style="bold")
    console = Console(highlight=False)
    console.print(table)
    print()
    for format in found.formats:
        print(f"{format.name:<20}{found.formula(format.name)}")
    left_out = "left out"
    if found.vision is not None:
        left_out += f": {found.vision:,} parameters, {2 * found.vision / 1e9:.2f} GB as bf16"
    print(f"{'vision':<20}{left_out}")
    working = max((format.working for format in found.formats), key=len)
    for line in (*found.cache, *working):
        print(f"{line.label:<20}{line.arithmetic} = {line.bytes / 1e6:,.1f} MB")
    for format in found.formats:
        if format.fits and format.loads is not None:
            print(f"load as {format.name:<12}load({found.model!r}, {format.loads})")


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """(total, active) of the text model; the experts that a token is not sent to are not active."""
    from dgemma_core.model import DiffusionGemma

    model = DiffusionGemma(config, device="meta")
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    total, text = sum(sizes.values()), config.text
    return total, total - experts + experts * text.top_k_experts // text.num_experts


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{size / 1e6:,.1f} MB {dtype}" for dtype, size in sizes.items())


@trace_app.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="As `dgemma generate --trace` writes it.")],
) -> None:
    """Show a recorded run: its settings, a line for each pass, and the text with its confidence."""
    from rich.console import Console

    from dgemma_core.command.terminal import draw_tokens, legend
    from dgemma_core.files.trace import Trace

    trace = Trace.load(file)
    console = Console(highlight=False)
    print("\n".join(_trace_lines(trace)))
    answered = [(commit.ids[: commit.kept], commit.probability) for commit in trace.commits]
    if trace.mode == "autoregressive":
        answered = [(trace.tokens_out, trace.sample_probability)]
    for ids, probabilities in answered:
        chances = probabilities[: len(ids)].tolist()
        console.print(draw_tokens(ids.tolist(), chances, trace.text, trace.eos_ids()))
    if console.is_terminal:
        console.print(legend())


def _trace_lines(trace: Trace) -> Iterator[str]:
    """Settings, a table of the passes, what it all cost."""
    from dgemma_core.command.terminal import count, visible
    from dgemma_core.files.trace import KINDS

    settings = {"mode": trace.mode, **trace.metadata, "seed": trace.seed}
    for name, value in settings.items():
        if value is not None:
            yield f"{name:<14} {json.dumps(value, ensure_ascii=False)}"
    yield f"{'prompt':<14} {visible(''.join(map(trace.text, trace.prompt_ids.tolist())))}"
    seconds = [trace.prompt_seconds, *trace.seconds.tolist()]
    if trace.mode == "autoregressive":
        yield " token  probability  entropy       ms  text"
    else:
        yield "canvas  step  kind     temperature  accepted  re-melted  entropy       ms"
        accepted, entropy = trace.accepted_count(), trace.mean_entropy()
        remelted = trace.remelted()
    for r in range(len(trace)):
        start, stop = trace.offsets[r], trace.offsets[r + 1]
        took = 1000 * (seconds[r + 1] - seconds[r])
        if trace.mode == "autoregressive":
            probability, piece = trace.probability[start], visible(trace.text(trace.argmax[start]))
            yield (
                f"{trace.step[r] + 1:>6}  {probability:>11.3f}  {trace.entropy[start]:>7.3f}"
                f"  {took:>7.1f}  {piece}"
            )
        else:
            melted = int(remelted[start:stop].sum())
            yield (
                f"{trace.canvas[r] + 1:>6}  {trace.step[r] + 1:>4}  {KINDS[trace.kind[r]]:<7}"
                f"  {trace.temperature[r]:>11.3f}  {accepted[r]:>8}  {melted:>9}"
                f"  {entropy[r]:>7.3f}  {took:>7.1f}"
            )
    yield (
        f"{count(len(trace.ids), 'token')}, {count(trace.denoising_steps, 'step')},"
        f" {count(trace.passes, 'pass', 'passes')}, {count(trace.canvases, 'canvas', 'canvases')},"
        f" {trace.total_seconds:.2f} s, ended by {trace.stop_reason}"
    )


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
