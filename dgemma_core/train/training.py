"""Training: the published loss (spec §5), both modes from one set of weights, in one resumable loop.

Notable:
- an example is a prompt and an answer; its answer is cut into canvases, the last one filled up with the end token. One
  canvas an example is drawn, noised with its own t ~ U(0, 1), and predicted at *every* position;
- the clean text runs through the causal mode once: that pass gives the keys that the canvas reads and the
  autoregressive loss. Both gradients meet in the same weights;
- half of the examples are denoised twice: a first look without gradient, whose soft embedding conditions the second;
- a text may ask that the model itself makes a few denoising steps on its canvas first (`walk`): what it then learns
  from is what its sampler sees, its own mistakes included, and not only what a schedule draws;
- batch, noise and order of step s are functions of (seed, s), so a killed run resumes to the same numbers.

Axes: B batch, T clean tokens, P prefix, C canvas length, D hidden size, V vocabulary.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.errors import CheckpointError, RequestError
from dgemma_core.experts import Routing
from dgemma_core.facts.machine import bfloat16_multiplies
from dgemma_core.model import DiffusionGemma
from dgemma_core.samplers import CanvasBatch, EntropyBound
from dgemma_core.train.dense_pass import ROUNDED, DensePass
from dgemma_core.train.optimiser import MuonAdamW

COUNTED = 256
"""The causal loss reads so many tokens more or none: lengths recur (dense_pass.py says why)."""


@dataclass(frozen=True)
class Text:
    """One training text, as token ids: the prompt with its turn tokens, and the answer without its end."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    look: Look | None = None
    """The canvas to train on (distillation.py) at the first noising; None: one is drawn, and noised."""
    steps: int = 0
    """Denoising steps that the model makes on the canvas before it learns from it, at the first noising."""


@dataclass(frozen=True)
class Look:
    """What a sampler saw of a text's canvas at one of its steps."""

    canvas: int
    """Which of the text's canvases."""
    tokens: tuple[int, ...]
    before: tuple[int, ...] | None
    """The canvas one step earlier, whose prediction conditions this one; None at the first step."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What determines a training run, with its data. β, loss and noise are the published ones (spec §5)."""

    steps: int
    batch_size: int = 128
    learning_rate: float = 3e-3
    """AdamW's, at its peak: embedding, router, vectors."""
    matrix_learning_rate: float = 0.015
    """Muon's, at its peak: the matrices inside the layers (optimiser.py)."""
    final_learning_rate: float = 0.02
    """As a share of the peak, at the end of the cosine."""
    warmup: int = 200
    decay: int | None = None
    """Steps of the cosine, at the run's end; None: all after the warm-up, as published. A run that decays late can be
    taken up again from before its decay."""
    betas: tuple[float, float] = (0.95, 0.99)
    weight_decay: float = 0.05
    clip: float = 1.0
    self_conditioning: float = 0.5
    """Share of the examples whose canvas is denoised twice."""
    noisings: int = 1
    """Times that a canvas is noised and predicted: the clean text, read once, serves them all. Their t lie evenly apart
    (each one alone is uniform), which evens out the loss."""
    autoregressive: float = 1.0
    """Weight of the causal loss."""
    balance: float = 0.01
    """Weight of the experts' load-balancing loss (Switch Transformer, arXiv 2101.03961, eq. 4)."""
    micro_batches: int = 4
    """A batch is run in so many parts, each of texts of like length, so that little is padding while every update
    still sees long and short ones."""
    pool: int = 8
    """Batches that are drawn together, to sort by length."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.pool, self.micro_batches, self.noisings) < 1:
            raise RequestError(
                "a recipe's steps, batch_size, pool, micro_batches and noisings are at least 1"
            )
        if self.batch_size % self.micro_batches:
            raise RequestError(
                f"batch_size {self.batch_size} does not divide into {self.micro_batches} micro-batches"
            )
        if self.decay is not None and not 0 <= self.decay <= self.steps - self.warmup:
            raise RequestError(
                f"decay takes at most the {self.steps - self.warmup} steps after the warm-up, got {self.decay}"
            )
        if not 0 <= self.self_conditioning <= 1:
            raise RequestError(
                f"self_conditioning is a share of the examples, got {self.self_conditioning}"
            )

    def rate_at(self, step: int) -> float:
        """The learning rates at `step` as a share of their peaks: linear warm-up, flat, cosine to the final share."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        after = self.steps - self.warmup
        decay = after if self.decay is None else self.decay
        done = max(0.0, (step - (self.steps - decay)) / max(1, decay))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.final_learning_rate + (1 - self.final_learning_rate) * cosine


@dataclass(frozen=True)
class Batch:
    """Padded tensors of one step. Clean text right-padded to T; canvases all of length C."""

    clean: Tensor
    """(B, T) prompt, earlier canvases, and this canvas up to its first end token."""
    targets: Tensor
    """(B, T) the next token where the causal loss counts (this canvas), −100 elsewhere."""
    prefix: Tensor
    """(B,) clean tokens before the canvas."""
    canvas: Tensor
    """(B, C) the clean canvas, its tail filled with the end token."""
    noisy: Tensor | None = None
    """(B, C) what a sampler saw of it, −1 in rows that it did not see; None: it saw none of them."""
    before: Tensor | None = None
    """(first rows, C) the same one step earlier, of rows that a step came before."""
    steps: Tensor | None = None
    """(B,) falling: the steps that the model makes on each canvas first; None: on none of them."""


def collate(texts: Sequence[Text], canvas_length: int, end: int, chosen: Sequence[int]) -> Batch:
    """Texts, with the index of the canvas drawn for each → Batch; a look brings its own. Rows come in the order of
    their own steps, the most first, and then: seen after a step, not seen, seen at the first step."""

    def place(i: int) -> tuple[int, int]:
        look = texts[i].look
        return -texts[i].steps, 1 if look is None else 0 if look.before is not None else 2

    order = sorted(range(len(texts)), key=place)
    texts, chosen = [texts[i] for i in order], [chosen[i] for i in order]
    rows, prefixes, canvases, seen, before = [], [], [], [], []
    for text, index in zip(texts, chosen, strict=True):
        if text.look is not None:
            index = text.look.canvas
            if text.look.before is not None:
                before.append(text.look.before)
        seen.append(text.look.tokens if text.look is not None else (-1,) * canvas_length)
        start = index * canvas_length
        part = text.answer[start : start + canvas_length]
        canvases.append(part + (end,) * (canvas_length - len(part)))
        ended = part if len(part) == canvas_length else (*part, end)
        rows.append(text.prompt + text.answer[:start] + ended)
        prefixes.append(len(text.prompt) + start)
    longest = -(-max(map(len, rows)) // ROUNDED) * ROUNDED
    clean = torch.tensor([row + (end,) * (longest - len(row)) for row in rows])
    targets = torch.full_like(clean, -100)
    for i, (row, prefix) in enumerate(zip(rows, prefixes, strict=True)):
        targets[i, prefix - 1 : len(row) - 1] = clean[i, prefix : len(row)]
    batch = Batch(clean, targets, torch.tensor(prefixes), torch.tensor(canvases))
    if any(text.look is not None for text in texts):
        earlier = torch.tensor(before, dtype=torch.long).reshape(-1, canvas_length)
        batch = replace(batch, noisy=torch.tensor(seen), before=earlier)
    if any(text.steps for text in texts):
        batch = replace(batch, steps=torch.tensor([text.steps for text in texts]))
    return batch


def canvas_count(text: Text, canvas_length: int) -> int:
    """Canvases that a text fills, its end token included."""
    return len(text.answer) // canvas_length + 1


def noised(canvas: Tensor, t: Tensor, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Replaces each token with its row's probability t (B, 1) by a uniform token. canvas (B, C) → (B, C)."""
    replaced = torch.rand(canvas.shape, generator=generator) < t
    uniform = torch.randint(vocab_size, canvas.shape, generator=generator)
    return torch.where(replaced, uniform, canvas)


@dataclass(frozen=True)
class Losses:
    """The parts of one step's loss, nats a token; each a scalar tensor."""

    canvas: Tensor
    autoregressive: Tensor
    balance: Tensor

    def total(self, recipe: Recipe) -> Tensor:
        return (
            self.canvas
            + recipe.autoregressive * self.autoregressive
            + recipe.balance * self.balance
        )


def balance_loss(routings: Sequence[Routing]) -> Tensor:
    """E · Σ_e share of choices · mean probability, averaged over layers: 1 when the load is even."""
    losses = []
    for routing in routings:
        probabilities = routing.probabilities.flatten(0, -2)  # (N, E)
        experts = probabilities.shape[1]
        share = torch.bincount(routing.chosen.flatten(), minlength=experts) / routing.chosen.numel()
        losses.append(experts * (share * probabilities.mean(dim=0)).sum())
    return torch.stack(losses).mean()


def loss(model: DiffusionGemma, batch: Batch, recipe: Recipe, generator: torch.Generator) -> Losses:
    """The published loss of one batch. The first ⌈share · B⌉ rows are the self-conditioned ones; in distillation those
    that a step came before, conditioned on a first look at that step's canvas; where the model makes steps of its own,
    those on which it has made any, conditioned on its last."""
    device = model.device
    both = DensePass(model, batch)
    hidden, targets = _counted(both.encode(), batch.targets.to(device))
    causal = F.cross_entropy(_raw_logits(model, hidden), targets)
    clean = batch.canvas.to(device).flatten()
    denoised = []
    for i, (canvas, before) in enumerate(looks(model, batch, recipe, generator)):
        if i == 0 and batch.steps is not None:
            canvas, soft = walk(model, both, canvas, batch.steps, generator)
        else:
            soft = _first_look(model, both, before)
        if soft is not None:
            soft = F.pad(soft, (0, 0, 0, 0, 0, len(canvas) - len(soft)))
        logits = _raw_logits(model, both.denoise(canvas, soft).flatten(0, 1))
        denoised.append(F.cross_entropy(logits, clean))
    return Losses(torch.stack(denoised).mean(), causal, balance_loss(both.routings))


def looks(
    model: DiffusionGemma, batch: Batch, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """The canvases (B, C) to predict from, each with those (conditioned, C) of the first looks. What a sampler saw
    comes in place of the first noise. Half of the canvases that the model is to walk from are noise alone, as a
    sampler's first one is."""
    t = torch.rand(len(batch.canvas), 1, generator=generator)
    for i in range(recipe.noisings):
        apart = (t + i / recipe.noisings) % 1.0
        if i == 0 and batch.steps is not None:
            apart = (2 * apart).clamp(max=1.0)
        canvas = noised(batch.canvas, apart, model.config.text.vocab_size, generator)
        before = canvas[: math.ceil(recipe.self_conditioning * len(canvas))]
        if i == 0 and batch.noisy is not None and batch.before is not None:
            drawn = batch.noisy < 0
            canvas = torch.where(drawn, canvas, batch.noisy)
            conditioned = math.ceil(recipe.self_conditioning * int(drawn[:, 0].sum()))
            before = torch.cat((batch.before, canvas[len(batch.before) :][:conditioned]))
        yield canvas.to(model.device), before.to(model.device)


@torch.no_grad()
def _first_look(model: DiffusionGemma, both: DensePass, canvas: Tensor) -> Tensor | None:
    """The soft embedding (rows, C, D) of a look at the canvases (rows, C) of the first rows; None for no rows."""
    if not len(canvas):
        return None
    kept = len(both.routings)
    seen = _soft_embedding(model, both.denoise(canvas, None, slice(len(canvas))))
    del both.routings[kept:]
    return seen


@torch.no_grad()
def walk(
    model: DiffusionGemma,
    both: DensePass,
    canvas: Tensor,
    steps: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None]:
    """The released sampler's steps on canvases (B, C), `steps` (B,) falling of them, each row at a temperature of its
    own from the sampler's range. Returns what is then on the canvases, and the soft embedding (rows, C, D) of their
    last step, of the rows that made any; None for no rows."""
    sampler, vocabulary = EntropyBound(), model.config.text.vocab_size
    warmth = torch.rand(len(canvas), generator=generator)
    temperature = sampler.t_min + (sampler.t_max - sampler.t_min) * warmth
    seeds = torch.randint(2**62, (len(canvas),), generator=generator).tolist()
    none = torch.zeros_like(canvas, dtype=torch.bool)
    kept, soft = len(both.routings), None
    for taken in range(int(steps.max())):
        rows = int((steps > taken).sum())
        hidden = both.denoise(canvas[:rows], None if soft is None else soft[:rows], slice(rows))
        keys = [RowKey(seed, 0) for seed in seeds[:rows]]
        draws = CounterDraws().step(keys, [taken] * rows, canvas.shape[1], canvas.device)
        with torch.autocast(canvas.device.type, enabled=False):
            prediction = model.head.predict(hidden.float(), temperature[:rows], draws)
        state = CanvasBatch(canvas[:rows], none[:rows], none[:rows], (), 0, vocabulary)
        after, _ = sampler.step(state, prediction, draws)
        assert prediction.soft_embedding is not None
        # clones: what inference mode has made takes no part in gradients
        found = prediction.soft_embedding.clone()
        canvas = torch.cat((after.canvas, canvas[rows:]))
        soft = found if soft is None else torch.cat((found, soft[rows:]))
    del both.routings[kept:]
    return canvas, soft


def _raw_logits(model: DiffusionGemma, hidden: Tensor) -> Tensor:
    cap = model.config.text.final_logit_softcapping
    return cap * torch.tanh(F.linear(hidden, model.embed_tokens.weight).float() / cap)


def _soft_embedding(model: DiffusionGemma, hidden: Tensor) -> Tensor:
    """The mean embedding under the raw prediction, times √D: what the samplers feed back at temperature 1."""
    weight = model.embed_tokens.weight
    probabilities = _raw_logits(model, hidden).softmax(dim=-1).to(hidden.dtype)
    return (probabilities @ weight.to(hidden.dtype)) * hidden.shape[-1] ** 0.5


def _counted(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states (N, D) and targets (N,) of the tokens that count, filled up to a recurring length."""
    counted = targets != -100
    hidden, targets = hidden[counted], targets[counted]
    missing = -len(targets) % COUNTED
    return F.pad(hidden, (0, 0, 0, missing)), F.pad(targets, (0, missing), value=-100)


@torch.no_grad()
def initialise(model: DiffusionGemma, seed: int) -> None:
    """Fills a fresh model: matrices with unit gain, embeddings with unit length, queries and keys with a calm scale."""
    generator = torch.Generator().manual_seed(seed)
    width = model.config.text.hidden_size
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.fill_(parameter.shape[0] ** -0.25)  # so that q·k has unit variance
        elif name == "embed_tokens.weight":
            parameter.normal_(0, width**-0.5, generator=generator)
        elif name.endswith("router.proj.weight"):
            parameter.normal_(0, 0.5, generator=generator)
        elif parameter.dim() >= 2:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        else:
            parameter.fill_(1.0)


def _generator(seed: int, *counters: int) -> torch.Generator:
    """A generator of its own for every (seed, counters)."""
    mixed = 0
    for number in (seed, *counters):
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def batches(
    texts: Callable[[int], Text], recipe: Recipe, canvas_length: int, end: int, start: int = 0
) -> Iterator[list[Batch]]:
    """The micro-batches of every step from `start` on. texts(i) is example i; each is used once."""
    per_pool = recipe.pool * recipe.batch_size
    part = recipe.batch_size // recipe.micro_batches
    for pool in range(start // recipe.pool, math.ceil(recipe.steps / recipe.pool)):
        generator = _generator(recipe.seed, 1, pool)
        drawn = [texts(pool * per_pool + i) for i in range(per_pool)]
        counts = torch.tensor([canvas_count(text, canvas_length) for text in drawn])
        chosen = (torch.rand(per_pool, generator=generator) * counts).long().tolist()
        chosen = [
            canvas if text.look is None else text.look.canvas
            for text, canvas in zip(drawn, chosen, strict=True)
        ]
        lengths = [
            len(text.prompt) + min(len(text.answer), (canvas + 1) * canvas_length)
            for text, canvas in zip(drawn, chosen, strict=True)
        ]
        order = sorted(range(per_pool), key=lambda i: lengths[i])
        # Micro-batch m of a step comes from the m-th range of lengths, at a random place in it.
        places = [
            torch.randperm(recipe.pool, generator=generator).tolist()
            for _ in range(recipe.micro_batches)
        ]
        shuffles = [
            torch.randperm(part, generator=generator).tolist() for _ in range(recipe.micro_batches)
        ]
        for step in range(recipe.pool):
            if not start <= pool * recipe.pool + step < recipe.steps:
                continue
            micro = []
            for m in range(recipe.micro_batches):
                first = (m * recipe.pool + places[m][step]) * part
                members = [order[first + i] for i in shuffles[m]]
                micro.append(
                    collate(
                        [drawn[i] for i in members],
                        canvas_length,
                        end,
                        [chosen[i] for i in members],
                    )
                )
            yield micro


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """A run in a folder: `weights.safetensors`, `optimiser.safetensors`, `progress.json`, `curve.csv`.

    The three files of a checkpoint carry the step in their names and are renamed into place, `progress.json` last: a
    kill at any moment leaves the previous checkpoint whole.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        texts: Callable[[int], Text],
        recipe: Recipe,
        folder: Path,
        *,
        end: int,
        workers: int = 1,
    ) -> None:
        """end: the token that fills a canvas behind its text. workers: micro-batches that are run side by side, each on
        one thread; the numbers stay the same."""
        self.model = model
        self.texts = texts
        self.recipe = recipe
        self.folder = folder
        self.end = end
        self.progress = Progress()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        self.optimiser = MuonAdamW(
            model,
            lr=recipe.learning_rate,
            matrix_lr=recipe.matrix_learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
        )
        self.workers = None
        if workers > 1:
            self.workers = ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(1,)
            )

    def step(self, micro: Sequence[Batch]) -> dict[str, float]:
        """One update from the gradients of all micro-batches; returns the figures of the learning curve."""
        step = self.progress.step
        self.optimiser.set_rate(self.recipe.rate_at(step))
        parts = partial(self._part, step, len(micro))
        # The longest come first, so that no worker is left with one at the end.
        order = range(len(micro) - 1, -1, -1)
        if self.workers is None:
            done = {m: parts(m, micro[m]) for m in order}
        else:
            running = {m: self.workers.submit(parts, m, micro[m]) for m in order}
            done = {m: future.result() for m, future in running.items()}
        sums = torch.zeros(3)
        for m in range(len(micro)):  # summed in one order, whatever the workers
            gradients, values = done[m]
            sums += values
            for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
                parameter.grad = gradient if m == 0 else cast(Tensor, parameter.grad).add_(gradient)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        canvas, autoregressive, balance = sums.tolist()
        figures = {
            "canvas_loss": canvas,
            "autoregressive_loss": autoregressive,
            "balance": balance,
            "gradient_norm": float(norm),
        }
        if not all(math.isfinite(value) for value in figures.values()):
            raise RequestError(
                f"training diverged at step {step} ({figures}); start anew with a lower learning rate"
            )
        self.optimiser.step()
        return figures

    def _part(
        self, step: int, count: int, m: int, batch: Batch
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Micro-batch m's share of the gradients, and its three losses."""
        generator = _generator(self.recipe.seed, 2, step, m)
        # Autocast's cache of weights is one for all threads, which would mix the workers' gradients.
        device = self.model.device
        with torch.autocast(
            device.type,
            dtype=torch.bfloat16,
            enabled=bfloat16_multiplies(device),
            cache_enabled=False,
        ):
            parts = loss(self.model, batch, self.recipe, generator)
        total = parts.total(self.recipe) / count
        gradients = torch.autograd.grad(
            total, list(self.model.parameters()), allow_unused=True, materialize_grads=True
        )
        values = torch.stack((parts.canvas, parts.autoregressive, parts.balance))
        return gradients, values.detach().float().cpu() / count

    def run(
        self,
        *,
        minutes: float | None = None,
        checkpoint_minutes: float = 5.0,
        curve_every: int = 25,
        report: Callable[[Progress, dict[str, float]], None] | None = None,
    ) -> bool:
        """Trains until the recipe's last step (True) or until `minutes` of this sitting are over (False)."""
        begun = saved = time.monotonic()
        before = self.progress.seconds
        sums: dict[str, float] = {}
        count = 0
        for micro in batches(
            self.texts,
            self.recipe,
            self.model.config.canvas_length,
            self.end,
            self.progress.step,
        ):
            figures = self.step(micro)
            self.progress.step += 1
            now = time.monotonic()
            self.progress.seconds = before + now - begun
            count += 1
            sums = {name: sums.get(name, 0.0) + value for name, value in figures.items()}
            if self.progress.step % curve_every == 0:
                means = {name: value / count for name, value in sums.items()}
                examples = self.progress.step * self.recipe.batch_size
                row = {
                    "step": self.progress.step,
                    "examples": examples,
                    "seconds": round(self.progress.seconds, 1),
                }
                self.progress.curve.append(
                    {**row, **{name: round(value, 5) for name, value in means.items()}}
                )
                sums, count = {}, 0
            if report is not None:
                report(self.progress, figures)
            over = minutes is not None and now - begun > minutes * 60
            if over or now - saved > checkpoint_minutes * 60:
                self.save()
                saved = now
            if over:
                return self.progress.step == self.recipe.steps
        self.save()
        return True

    def save(self) -> None:
        """Writes a checkpoint atomically."""
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        step = self.progress.step
        names = dict(self.model.named_parameters())
        states = {
            f"{name}.{key}": value.contiguous()
            for name, parameter in names.items()
            for key, value in self.optimiser.state[parameter].items()
        }
        files = {
            f"weights-{step}.safetensors": {
                name: p.detach().contiguous() for name, p in names.items()
            },
            f"optimiser-{step}.safetensors": states,
        }
        for name, tensors in files.items():
            save_file(tensors, self.folder / f"{name}.part")
            os.replace(self.folder / f"{name}.part", self.folder / name)
        record = {"recipe": asdict(self.recipe), **asdict(self.progress)}
        part = self.folder / "progress.json.part"
        part.write_text(json.dumps(record))
        os.replace(part, self.folder / "progress.json")
        for stale in self.folder.glob("*-*.safetensors*"):
            if stale.name not in files:
                stale.unlink()
        write_curve(self.folder / "curve.csv", self.progress.curve)

    def resume(self) -> bool:
        """Takes up the folder's last checkpoint; False where there is none. Raises CheckpointError if it is damaged
        or belongs to another recipe."""
        from safetensors.torch import load_file

        path = self.folder / "progress.json"
        if not path.exists():
            return False
        try:
            record = json.loads(path.read_text())
            step, recipe = int(record["step"]), dict(record["recipe"])
            progress = Progress(step, float(record["seconds"]), list(record["curve"]))
            weights = load_file(self.folder / f"weights-{step}.safetensors")
            states = load_file(self.folder / f"optimiser-{step}.safetensors")
        except Exception as error:
            raise CheckpointError(
                f"{self.folder} holds a damaged training checkpoint ({error}); remove the folder to start anew"
            ) from error
        wanted = json.loads(json.dumps(asdict(self.recipe)))
        changed = [key for key in wanted if recipe.get(key) != wanted[key]]
        if changed:
            raise CheckpointError(
                f"{path} was written by another recipe ({', '.join(changed)} differ): "
                "resume with the same settings, or train into another folder"
            )
        parameters = dict(self.model.named_parameters())
        kept = {name: tensor.shape for name, tensor in weights.items()}
        if kept != {name: parameter.shape for name, parameter in parameters.items()}:
            raise CheckpointError(
                f"{self.folder} holds the weights of another model: resume with the same configuration, "
                "or train into another folder"
            )
        kinds = (
            self.optimiser.state_names() if step else {}
        )  # before the first update there are none
        moments = {name: kinds.get(parameter, ()) for name, parameter in parameters.items()}
        if states.keys() != {f"{name}.{key}" for name in parameters for key in moments[name]}:
            raise CheckpointError(
                f"{self.folder} holds a damaged training checkpoint (weights and optimiser do not belong together); "
                "remove the folder to start anew"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
                if step:
                    self.optimiser.state[parameter] = {
                        key: states[f"{name}.{key}"].to(parameter.device) for key in moments[name]
                    }
        self.progress = progress
        return True


def write_curve(path: Path, curve: Sequence[dict[str, float]]) -> None:
    """The learning curve as CSV, one row a point."""
    if not curve:
        return
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(curve[0]))
        writer.writeheader()
        writer.writerows(curve)
    os.replace(part, path)
