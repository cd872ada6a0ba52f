"""`tune`: a model learns a user's own task. Reads and checks the data, runs a `Tuner`, and writes what was learnt.

The folder of a run holds the adapter (or with `full` a checkpoint), and in `run/` the run's own checkpoints and curves.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dgemma_core.errors import RequestError, finite_number, whole_number
from dgemma_core.facts.machine import bfloat16_multiplies, cores
from dgemma_core.files.adapters import ADAPTER_CONFIG, base_digest, save_adapter
from dgemma_core.files.checkpoint import load_model, prefers_float32
from dgemma_core.files.devices import resolve_device
from dgemma_core.files.finding import CONFIG, as_name, find_folder, read_config
from dgemma_core.files.saving import save_model, vision_config, vision_tensors
from dgemma_core.files.tensors import short_name
from dgemma_core.files.text import load_tokenizer
from dgemma_core.model import DiffusionGemma
from dgemma_core.train.batches import padding
from dgemma_core.train.checkpoints import PROGRESS
from dgemma_core.train.data import Counts, Data, Shuffled, Source, count, read_data
from dgemma_core.train.distributed import joined
from dgemma_core.train.recipe import Sitting
from dgemma_core.train.run import TOKENIZER_FILES, run_with_progress
from dgemma_core.train.tuning import RATE, Tuner, TuneRecipe, adapted_names

if TYPE_CHECKING:
    from dgemma_core.config import GenerationDefaults, ModelConfig
    from dgemma_core.train.run import Report

EPOCHS = 3.0
RUN = "run"
"""Folder, within a run's, of its checkpoints and curves."""
WARMUP = 0.03
"""Share of the steps over which the learning rate rises."""
MOST_STEPS = 2**31 - 1
PADDED = 4096
"""Steps of a run whose padding is counted before it begins."""


@dataclass(frozen=True)
class Tuned:
    """What came of a run."""

    folder: Path
    """Of the adapter, for `load(…, adapter=folder)`; with `full` of a checkpoint, for `load(folder)`."""
    counts: Counts
    held_out: Counts
    steps: int
    """Updates that were made; fewer than the recipe's where it was stopped."""
    ended: bool
    curve: tuple[Mapping[str, float], ...]
    validation: tuple[Mapping[str, float], ...]


def tune(
    model: str | os.PathLike[str],
    data: Source,
    out: str | Path,
    *,
    max_steps: int | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: int = 16,
    accumulate: int = 1,
    alpha: float | None = None,
    warmup: int | None = None,
    validation: Source | float | None = None,
    validate_every: int = 0,
    max_length: int | None = None,
    raw: bool = False,
    dtype: str | torch.dtype = "auto",
    quantize: str | None = None,
    device: str = "auto",
    shard: bool = False,
    resume: bool = False,
    minutes: float | None = None,
    checkpoint_minutes: float = 5.0,
    workers: int | None = None,
    trackio: str | None = None,
    tell: Callable[[str], None] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Tuned:
    """Tunes a model on records of messages, or of prompts and completions.

    model: "nano", a folder or a hub name. data: a JSON Lines file, a folder that `datasets` saved, or records. out: an
    empty folder, or one to resume. max_steps or epochs (3): how long. learning_rate: at its peak; None: 0.6 over the
    model's hidden size, a tenth of that for all weights. batch_size: texts an update, in `accumulate` parts. alpha:
    None for twice the rank. warmup: steps; None: 3 % of all. validation: other data, or the share that is held out;
    measured every `validate_every` steps and at the end. dtype: of the base; "auto": as it is stored, small models and
    all that learn whole in float32. quantize: "int8" or "int4", of the base. shard: of several processes, each holds a
    part of every weight (FSDP2); False: all hold all (DDP). minutes: of this sitting. workers: parts
    of a batch that run side by side on a CPU. trackio: a project to log to. tell: is told what the data holds, before
    the first step. settings: further ones of `TuneRecipe` (modes, full, rank, dropout, targets, schedule, noise,
    self_conditioning, autoregressive, drafts, recomputes, clip, betas, weight_decay, seed, …).

    Raises RequestError for data that cannot be learnt from (naming every bad record) and settings that have no meaning,
    CheckpointError for a model that cannot be loaded or a folder that cannot be written, KeyboardInterrupt after
    Ctrl-C, once the run is saved.
    """
    sitting = Sitting(
        minutes=minutes, checkpoint_minutes=checkpoint_minutes, validate_every=validate_every, workers=workers
    )  # fmt: skip
    accumulate = whole_number("accumulate", accumulate, low=1)
    asked = _asked(
        settings,
        steps=_most_steps(max_steps, epochs),
        batch_size=batch_size,
        micro_batches=accumulate,
        learning_rate=learning_rate,
        alpha=alpha,
        warmup=warmup,
        dtype=_dtype_name(dtype, full=settings.get("full") is True),
        quantize=quantize,
    )
    folder, source = Path(out), find_folder(model)
    _check_folder(folder, source, resume)
    config, generation = read_config(source)
    tokenizer = load_tokenizer(source)
    if tokenizer is None:
        raise RequestError(f"{as_name(model)} has no tokenizer: put its tokenizer.json beside it")
    if not config.can_denoise and asked.modes != "causal":
        raise RequestError(
            f"this checkpoint ({config.model_type}) has no denoiser: tune its causal mode alone (modes='causal')"
        )
    if not asked.full:
        adapted_names(DiffusionGemma(config, device="meta"), asked)
    read = read_data(
        data, tokenizer, config, generation,
        validation=validation, max_length=max_length, raw=raw, seed=asked.seed,
    )  # fmt: skip
    texts = Shuffled(read.train, asked.seed)
    counts, held = (count(part, config.canvas_length) for part in (read.train, read.validation))
    steps = _steps(max_steps, epochs, len(texts.texts), asked.batch_size)
    rate = RATE / config.text.hidden_size / (10 if asked.full else 1)
    with joined() as group:
        target = resolve_device(group.device(device))
        recipe = dataclasses.replace(
            asked,
            steps=steps,
            learning_rate=rate if learning_rate is None else asked.learning_rate,
            alpha=2 * asked.rank if alpha is None and not asked.full else asked.alpha,
            warmup=min(steps - 1, math.ceil(WARMUP * steps)) if warmup is None else asked.warmup,
            dtype=_dtype(asked, config, target),
            data=read.digest(),
        )
        if tell is not None and group.rank == 0:
            for line in describe(read, counts, held, recipe, texts):
                tell(line)
        recipe = dataclasses.replace(recipe, base=base_digest(source))  # what asks for weights
        base = load_model(
            source,
            dtype="float32" if recipe.full else recipe.dtype,
            device="cpu" if shard else target,
            quantize=quantize,
            backend="torch",
        )
        tuner = Tuner(
            base,
            texts,
            recipe,
            folder / RUN,
            end=read.end,
            workers=_workers(sitting.workers, accumulate, target.type),
            held_out=[text for of_one in read.validation for text in of_one],
            validate_every=sitting.validate_every,
            group=group,
            shard=target if shard else None,
        )
        if resume and not tuner.resume():
            raise RequestError(f"{folder} holds no run to resume: leave resume out to start one")
        with _tracking(trackio if group.rank == 0 else None, recipe) as listen:
            ended = run_with_progress(
                tuner,
                sitting.minutes,
                listen=listen,
                shown=progress and group.rank == 0,
                checkpoint_minutes=sitting.checkpoint_minutes,
            )
        tuner.gather()
        if group.rank == 0:
            _write(tuner, folder, source, as_name(model), generation)
        group.wait()
    found = tuner.progress
    return Tuned(
        folder, counts, held, found.step, ended, tuple(found.curve), tuple(found.validation)
    )


def describe(
    data: Data, counts: Counts, held: Counts, recipe: TuneRecipe, texts: Shuffled
) -> Iterator[str]:
    """What the data holds, exactly, in lines. texts: those that are learnt, in their order."""
    for name, found in (("training", counts), ("held out", held)):
        if found.conversations:
            yield (
                f"{name}: {found.conversations:,} conversations, {found.texts:,} answers, {found.prompt_tokens:,}"
                f" prompt and {found.answer_tokens:,} answer tokens, {found.canvases:,} canvases, longest"
                f" {found.longest:,} tokens, {found.truncated:,} truncated"
            )
    if data.passed_over:
        yield f"not read: {', '.join(data.passed_over)}"
    epochs = recipe.steps * recipe.batch_size / counts.texts
    yield (
        f"{recipe.steps:,} steps of {recipe.batch_size} answers ({epochs:.3g} epochs), learning rate"
        f" {recipe.learning_rate:.3g}"
    )
    first = dataclasses.replace(recipe, steps=min(recipe.steps, PADDED), decay=None)
    waste, total = padding(texts, first)
    steps = f" of the first {PADDED:,} steps" if recipe.steps > PADDED else ""
    yield (
        f"padding: {waste / total:.1%} of {total:,} clean tokens{steps}, in batches of texts of like length"
    )


def _most_steps(max_steps: int | None, epochs: float | None) -> int:
    """The steps where they are asked for; else a number that serves to check the other settings."""
    if max_steps is not None and epochs is not None:
        raise RequestError("max_steps and epochs both say how long: give one")
    if max_steps is not None:
        return whole_number("max_steps", max_steps, low=1, high=MOST_STEPS)
    if epochs is not None and not finite_number("epochs", epochs) > 0:
        raise RequestError(f"epochs: expected a number above 0, got {epochs}")
    return MOST_STEPS


def _steps(max_steps: int | None, epochs: float | None, texts: int, batch_size: int) -> int:
    if max_steps is not None:
        return max_steps
    steps = (EPOCHS if epochs is None else epochs) * texts / batch_size
    if steps > MOST_STEPS:
        raise RequestError(
            f"epochs: {epochs:g} are {steps:.3g} steps, and a run has at most {MOST_STEPS:,}: ask for fewer"
        )
    return max(1, math.ceil(steps))


def _dtype_name(dtype: str | torch.dtype, *, full: bool) -> str:
    if full and dtype == "auto":
        return "float32"
    return short_name(dtype) if isinstance(dtype, torch.dtype) else dtype


def _dtype(asked: TuneRecipe, config: ModelConfig, device: torch.device) -> str:
    """The base's dtype: small models, and weights that learn, in float32, unless somebody says otherwise."""
    if asked.dtype != "auto":
        return asked.dtype
    if prefers_float32(config, device) and asked.quantize is None:
        return "float32"
    if device.type == "cpu" and not bfloat16_multiplies(device):
        return "float32"
    return "auto" if asked.quantize is None else "bfloat16"


def _asked(settings: Mapping[str, Any], **named: Any) -> TuneRecipe:
    """The recipe as far as it was asked for; what depends on model and data follows. named: None where not given."""
    own = {"steps", "base", "data", "micro_batches", "matrix_learning_rate"}
    known = {field.name for field in dataclasses.fields(TuneRecipe)} - own
    if unknown := sorted(settings.keys() - known):
        raise RequestError(f"tune knows no setting {', '.join(unknown)}")
    return TuneRecipe(**{name: v for name, v in named.items() if v is not None}, **settings)


def _workers(asked: int | None, parts: int, device: str) -> int:
    return min(parts, (cores() if device == "cpu" else 1) if asked is None else asked)


def _check_folder(folder: Path, source: Path, resume: bool) -> None:
    has_run = (folder / RUN / PROGRESS).exists()
    if not resume and (has_run or (folder / ADAPTER_CONFIG).exists()):
        raise RequestError(f"{folder} holds a run: resume it, or name another folder")
    check_other(folder, source)
    if (folder / CONFIG).exists() and not has_run:
        raise RequestError(f"{folder} holds a model: name another folder")
    try:
        (folder / RUN).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"{folder}: cannot be written to ({error.strerror}); name another folder"
        ) from None


@contextmanager
def _tracking(project: str | None, recipe: TuneRecipe) -> Iterator[Report | None]:
    """Logs every step to a trackio project, where one is named."""
    if project is None:
        yield None
        return
    try:
        import trackio
    except ImportError as error:
        raise RequestError(
            "trackio is not installed: pip install trackio, or leave trackio out (curve.csv holds the same figures)"
        ) from error
    trackio.init(project=project, config=dataclasses.asdict(recipe))
    try:
        yield lambda progress, figures: trackio.log(figures, step=progress.step)
    finally:
        trackio.finish()


def _write(
    tuner: Tuner, folder: Path, source: Path, name: str, generation: GenerationDefaults
) -> None:
    recipe = tuner.recipe
    if tuner.adapter is not None:
        save_adapter(
            folder,
            tuner.adapter,
            base=name,
            digest=recipe.base,
            rank=recipe.rank,
            alpha=recipe.alpha,
        )
    else:
        for parameter in tuner.model.parameters():
            parameter.data = parameter.data.to(getattr(torch, recipe.dtype))
        write_checkpoint(tuner.model, folder, source, generation)


def check_other(folder: Path, source: Path) -> None:
    """Raises RequestError where what is learnt would be written over the model that it comes from."""
    if folder.exists() and folder.resolve() == source.resolve():
        raise RequestError(f"--out {folder} is the model's own folder: name another one")


def write_checkpoint(
    model: DiffusionGemma, folder: Path, source: Path, generation: GenerationDefaults
) -> None:
    """The model in the public layout, with what else the checkpoint it comes from holds: tower, tokenizer, template."""
    described = vision_config(source)
    tower = vision_tensors(source) if described is not None else None
    save_model(model, folder, generation=generation, vision=tower, vision_config=described)
    for file in TOKENIZER_FILES:
        if (source / file).exists() and (source / file).resolve() != (folder / file).resolve():
            shutil.copyfile(source / file, folder / file)
