"""The options that commands share, and the way from them to a model and its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgemma_core.command.lines import text_option
from dgemma_core.errors import RequestError
from dgemma_core.events import Mode

if TYPE_CHECKING:
    from dgemma_core.config import GenerationDefaults
    from dgemma_core.files.checkpoint import Loaded
    from dgemma_core.generation.settings import ModeSettings
    from dgemma_core.samplers import Sampler

MODEL_HELP = "nano, nano-talk, a folder, or a name on the Hugging Face hub."

Prompt = Annotated[
    str, typer.Argument(help="What to ask; - reads standard input.", callback=text_option)
]
Model = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
ModeName = Annotated[Mode, typer.Option("--mode", help="How the same weights write.")]
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
Temperature = Annotated[
    float | None,
    typer.Option(help="Of autoregressive and speculative sampling; 0, the default, is greedy."),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", help="Sample token by token from so many of the likeliest tokens."),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        help="Sample token by token from the fewest tokens that hold this share of probability.",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        help="How much speculation drafts a round: fixed, adaptive (the default: a little more than was accepted) "
        "or paying (what promises most tokens for what passes cost).",
    ),
]
DraftPositions = Annotated[
    int | None,
    typer.Option(help="Positions of a fixed draft, its first, chosen token included; a canvas."),
]
DraftSteps = Annotated[int | None, typer.Option(help="Denoising steps of a draft; 1.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="The most tokens to keep.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")]
System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="A system prompt.", callback=text_option)
]
Thinking = Annotated[
    bool,
    typer.Option("--thinking", help="Let the model think first; its thought is not in the text."),
]
Raw = Annotated[bool, typer.Option("--raw", help="No chat template around the prompt.")]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End the text where this would begin. May be repeated.",
        callback=text_option,
    ),
]
Regex = Annotated[
    str | None,
    typer.Option(
        "--regex",
        metavar="PATTERN",
        help="The whole text must match this regular expression (Rust's syntax).",
    ),
]
JsonSchema = Annotated[
    Path | None,
    typer.Option(
        "--json-schema", metavar="FILE", help="The text must be JSON that this schema allows."
    ),
]
Choices = Annotated[
    str | None,
    typer.Option(
        "--choices",
        metavar="A|B|…",
        help="The text must be one of these; \\| is a bar in one of them.",
    ),
]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, …; auto: as stored (nano on a CPU: float32).")
]
Quantize = Annotated[
    str | None,
    typer.Option(metavar="SCHEME", help="int8 or int4: weights as whole numbers with scales."),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="An adapter of this model, as `dgemma tune` or peft writes it."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, …; auto: a GPU where there is one.")]
BackendName = Annotated[
    str,
    typer.Option("--backend", help="What runs the passes: torch, cpu, cuda; auto: the device's."),
]
Replay = Annotated[
    bool,
    typer.Option(
        "--replay/--no-replay",
        help="In a terminal, show a run that was over in a moment once more, slowly.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one json object.")]


@dataclass(frozen=True)
class Source:
    """Which model to load, and how."""

    model: str
    dtype: str
    quantize: str | None
    device: str
    backend: str
    adapter: str | None = None

    def load(self) -> Loaded:
        """The model, ready to write."""
        from dgemma_core.files.checkpoint import load

        return load(
            self.model,
            dtype=self.dtype,
            device=self.device,
            quantize=self.quantize,
            backend=self.backend,
            adapter=self.adapter,
        )


def load_with_settings(
    source: Source,
    mode: str,
    *,
    sampler: str | None,
    sampler_option: Sequence[str] | None,
    constraint: tuple[str | None, Path | None, str | None] = (None, None, None),
    **settings: Any,
) -> tuple[Loaded, ModeSettings]:
    """The model, and how it is to write. Wrong settings are refused before a long load.

    constraint: regular expression, JSON Schema's file and choices. settings: by name, as `settings_from` takes them;
    None where an option was not given.
    """
    from dgemma_core.config import GenerationDefaults
    from dgemma_core.constraints.language import read_constraint
    from dgemma_core.generation.settings import settings_from

    chosen = parse_pairs(sampler_option)
    settings["constraint"] = read_constraint(*constraint)

    def made(defaults: GenerationDefaults) -> ModeSettings:
        return settings_from(mode, sampler=_sampler(sampler, chosen, defaults), **settings)

    made(GenerationDefaults())
    loaded = source.load()
    return loaded, made(loaded.generation)


def _sampler(
    name: str | None, options: Mapping[str, Any], defaults: GenerationDefaults
) -> Sampler | None:
    """The sampler asked for; what is not given of the model's own rule is the checkpoint's."""
    from dgemma_core.samplers import sampler_from

    if name is None and not options:
        return None
    name = name or "entropy_bound"
    if name == "entropy_bound":
        known = ("entropy_bound", "t_min", "t_max")
        options = {**{key: getattr(defaults, key) for key in known}, **options}
    if "name" in options:
        raise RequestError("--sampler-option name=…: choose the sampler with --sampler")
    return sampler_from(name, **options)


def parse_pairs(pairs: Sequence[str] | None) -> dict[str, Any]:
    """KEY=VALUE texts of `--sampler-option` as names and json values."""
    options: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise RequestError(f"--sampler-option {pair}: expected KEY=VALUE, e.g. t_min=0.5")
        try:
            options[key] = json.loads(value)
        except (ValueError, RecursionError):
            options[key] = value
    return options
