"""A training run: a recipe in a folder, which ends as a checkpoint in the public layout."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma_core.errors import CheckpointError, RequestError
from dgemma_core.facts.machine import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

    from torch import Tensor

    from dgemma_core.files.text import Tokenizer
    from dgemma_core.model import DiffusionGemma
    from dgemma_core.nano.named import NamedRecipe
    from dgemma_core.train.checkpoints import Progress
    from dgemma_core.train.loop import Trainer
    from dgemma_core.train.texts import Text

    Report = Callable[[Progress, dict[str, float]], None]

TEACHER = "teacher"
"""Folder, within a distillation's, of the model that it began with."""
TOKENIZER = "tokenizer"
"""Folder, within a run's, of the tokenizer that it built."""
EMBEDDINGS = "embed_tokens.weight"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_trainer(
    recipe: NamedRecipe,
    folder: Path,
    device: str = "auto",
    start: str | None = None,
    *,
    workers: int | None = None,
) -> Trainer:
    """A trainer at step 0: its model initialised from the recipe's seed, or from the checkpoint `start`.

    workers: None for as many as there are cores on a CPU, 1 on a GPU.
    """
    from dgemma_core.files.checkpoint import load_model
    from dgemma_core.files.devices import resolve_device
    from dgemma_core.model import DiffusionGemma
    from dgemma_core.nano.named import turn_end
    from dgemma_core.nano.replies import RepliedTexts
    from dgemma_core.nano.texts import FamilyTexts, StagedTexts
    from dgemma_core.nano.validation import Validation
    from dgemma_core.train.distillation import TeacherTexts
    from dgemma_core.train.initial import initialise, joined_experts
    from dgemma_core.train.loop import Trainer

    tokenizer = run_tokenizer(recipe, folder, start)
    settings = recipe.training
    model = DiffusionGemma(recipe.config)
    begun: DiffusionGemma | None = None
    texts: Callable[[int], Text]
    if recipe.stages:
        total = settings.steps * settings.batch_size
        texts = StagedTexts(recipe.stages, total, tokenizer, settings.seed)
    else:
        texts = FamilyTexts(recipe.mix, tokenizer, settings.seed, own_steps=recipe.own_steps)
    if recipe.teacher is not None or recipe.replies is not None:
        kept = folder / TEACHER
        if start is None and not (kept / "config.json").exists():
            raise RequestError("this recipe distils a trained model: name it with --from")
        if start is not None:
            export(_loaded(start, recipe, tokenizer), recipe, kept)
        begun = load_model(kept, dtype="float32", device="cpu")
        if isinstance(texts, StagedTexts):
            assert recipe.replies is not None, "a run with stages has no other teacher"
            texts = RepliedTexts(begun, recipe.replies, texts)
        else:
            assert recipe.teacher is not None, "replies are of a run with stages"
            first = settings.seed * 10**9
            texts = TeacherTexts(begun, recipe.teacher, recipe.mix, tokenizer, first=first)
    elif start is not None:
        begun = _loaded(start, recipe, tokenizer)
    if begun is None:
        initialise(model, recipe.training.seed)
    else:
        weights: Mapping[str, Tensor] = begun.state_dict()
        if recipe.beside:
            weights = joined_experts(weights, _weights(recipe.beside))
        model.load_state_dict(weights)
    where = model.to(resolve_device(device)).device
    if workers is None:
        workers = cores() if where.type == "cpu" else 1
    return Trainer(
        model,
        texts,
        recipe.training,
        folder,
        end=turn_end(tokenizer),
        workers=min(workers, recipe.training.micro_batches),
        validate=Validation(tokenizer, recipe.config.eos_token_ids),
        validate_every=recipe.validate_every,
    )


def run_tokenizer(recipe: NamedRecipe, folder: Path, start: str | None = None) -> Tokenizer:
    """The tokenizer of a run: nano's, or its own, which its first sitting leaves in the folder.

    Its own is that of the checkpoint `start`, where it has as many tokens as the recipe; else it is built.
    """
    from dgemma_core.files.finding import find_folder
    from dgemma_core.files.text import load_tokenizer
    from dgemma_core.nano.named import nano_tokenizer
    from dgemma_core.nano.tokenizer import write_tokenizer

    if not recipe.tokenizer:
        return nano_tokenizer()
    own = folder / TOKENIZER
    wanted = recipe.config.text.vocab_size
    if not (own / "tokenizer.json").exists():
        source = None if start is None else find_folder(start)
        begun = None if source is None else load_tokenizer(source)
        taken = source if begun is not None and begun.vocab_size == wanted else None
        for name in TOKENIZER_FILES:
            if taken is not None and not (taken / name).is_file():
                raise CheckpointError(
                    f"{taken} has no {name}, which goes with its tokenizer: add it"
                )
        try:
            if taken is not None:
                own.mkdir(parents=True, exist_ok=True)
                for name in reversed(TOKENIZER_FILES):  # where tokenizer.json stands, the others do
                    shutil.copyfile(taken / name, own / name)
            else:
                write_tokenizer(own, wanted)
        except Exception as error:  # the tokenizers library raises bare ones
            raise CheckpointError(
                f"{own}: the run's tokenizer cannot be written ({' '.join(str(error).split())}): make room, or make "
                "the folder writable"
            ) from error
    tokenizer = load_tokenizer(own)
    if tokenizer is None or tokenizer.vocab_size != wanted:
        raise CheckpointError(
            f"{own} holds no tokenizer of {wanted} tokens: remove it, and the run builds it anew"
        )
    return tokenizer


def _weights(start: str) -> dict[str, Tensor]:
    """A checkpoint's weights by name, float32."""
    from dgemma_core.files.checkpoint import load_model

    return load_model(start, dtype="float32", device="cpu").state_dict()


def _loaded(start: str, recipe: NamedRecipe, tokenizer: Tokenizer) -> DiffusionGemma:
    """The checkpoint `start`, float32, with embeddings of the run's own tokens (initial.py). RequestError if its
    weights are otherwise of another shape than the recipe's model's, but for the experts that the recipe adds."""
    from dgemma_core.files.finding import find_folder, read_config
    from dgemma_core.files.text import load_tokenizer
    from dgemma_core.model import DiffusionGemma
    from dgemma_core.train.initial import carried_embeddings

    source = find_folder(start)
    weights = _weights(start)
    own = load_tokenizer(source)
    if recipe.tokenizer and own is not None and own.vocab_size == len(weights[EMBEDDINGS]):
        weights[EMBEDDINGS] = carried_embeddings(weights[EMBEDDINGS], own, tokenizer)
    config = recipe.config
    if recipe.beside:
        added = read_config(recipe.beside)[0].text.num_experts
        experts = config.text.num_experts - added
        config = replace(config, text=replace(config.text, num_experts=experts))
    model = DiffusionGemma(config)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if wanted != {name: tensor.shape for name, tensor in weights.items()}:
        raise RequestError(
            f"{start} has another shape than the recipe's model: train without --from"
        )
    model.load_state_dict(weights)
    return model


def run_with_progress(
    trainer: Trainer,
    minutes: float | None,
    *,
    until: int | None = None,
    listen: Report | None = None,
    shown: bool = True,
    **options: Any,
) -> bool:
    """Runs under a progress bar with losses, tokens a second and the time left; True at the recipe's end. until: a step
    at which the run ends before; listen: told of every step, besides the bar; shown: whether there is a bar; options:
    the others of `Trainer.run`.

    Ctrl-C ends the step at hand, saves, and raises KeyboardInterrupt; a second one stops at once, and the last
    checkpoint stays.
    """
    from tqdm.auto import tqdm

    interrupted = False
    smooth = Smooth()

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = trainer.stopping = True

    done, steps = trainer.progress.step, until or trainer.recipe.steps
    with tqdm(total=steps, initial=done, unit="step", disable=not shown) as bar:

        def report(progress: Progress, figures: dict[str, float]) -> None:
            bar.update()
            bar.set_postfix(smooth.of(figures))
            if listen is not None:
                listen(progress, figures)

        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, interrupt) if main else None
        try:
            ended = trainer.run(minutes=minutes, until=until, report=report, **options)
        finally:
            if main:
                signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt
    return ended


class Smooth:
    """Losses and speed as means over the last steps, for the progress bar."""

    def __init__(self, steps: int = 50) -> None:
        self.recent: deque[dict[str, float]] = deque(maxlen=steps)
        self.times: deque[float] = deque([time.monotonic()], maxlen=steps + 1)

    def of(self, figures: dict[str, float]) -> dict[str, str]:
        """The means with one more step."""
        self.recent.append(figures)
        self.times.append(time.monotonic())

        def mean(name: str) -> float:
            return sum(each[name] for each in self.recent) / len(self.recent)

        seconds = (self.times[-1] - self.times[0]) / (len(self.times) - 1)
        losses = {"canvas": "canvas_loss", "causal": "autoregressive_loss"}
        shown = {label: f"{mean(name):.3f}" for label, name in losses.items() if name in figures}
        return {**shown, "tokens/s": f"{mean('tokens') / max(seconds, 1e-9):,.0f}"}


def export(model: DiffusionGemma, recipe: NamedRecipe, folder: Path) -> Path:
    """Writes the model as bfloat16 in the public layout, with tokenizer, template and the tiny vision tower.

    Beside them stands what it was trained for (nano/problems.py).

    folder: within the run's, beside the tokenizer that the run built.
    """
    import torch

    from dgemma_core.files.saving import save_model, tiny_vision
    from dgemma_core.model import DiffusionGemma
    from dgemma_core.nano import problems
    from dgemma_core.nano.named import NANO

    copy = DiffusionGemma(model.config, dtype=torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    vision_config, vision = tiny_vision(model.config)
    vision = {name: tensor.to(torch.bfloat16) for name, tensor in vision.items()}
    save_model(
        copy, folder, generation=recipe.generation, vision=vision, vision_config=vision_config
    )
    source = folder.parent / TOKENIZER if recipe.tokenizer else NANO
    for name in TOKENIZER_FILES:
        if (source / name).resolve() != (folder / name).resolve():
            shutil.copyfile(source / name, folder / name)
    problems.write(folder, problems.of_recipe(recipe))
    return folder


def plot_curve(curve: list[dict[str, Any]], path: Path) -> Path:
    """The learning curve as a standalone page."""
    import plotly.graph_objects as go

    figure = go.Figure(
        layout={"yaxis": {"type": "log", "title": "nats a token"}, "xaxis": {"title": "examples"}}
    )
    for name, label in (
        ("canvas_loss", "canvas (denoising)"),
        ("autoregressive_loss", "autoregressive"),
    ):
        figure.add_scatter(
            x=[row["examples"] for row in curve], y=[row[name] for row in curve], name=label
        )
    figure.write_html(path, include_plotlyjs=True, config={"showSendToCloud": False})
    return path
