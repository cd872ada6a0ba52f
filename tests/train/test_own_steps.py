"""The model's own steps are its sampler's, and the loss is taken where they end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dgemma_core.diffusion import denoise_canvases
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.events import StepEvent
from dgemma_core.files.checkpoint import load_model
from dgemma_core.model import DiffusionGemma
from dgemma_core.nano.recipes import NANO, FamilyTexts, nano_tokenizer
from dgemma_core.request import Request
from dgemma_core.samplers import EntropyBound
from dgemma_core.train.batches import Batch, Place, collate
from dgemma_core.train.loss import loss
from dgemma_core.train.noise import noisy_canvases
from dgemma_core.train.own_steps import take_steps
from dgemma_core.train.packed_pass import PackedPass
from tests.train.copying import END, RECIPE, close


def batch_with_steps() -> tuple[DiffusionGemma, Batch]:
    """Nano, and problems on which it makes 4, 3, 1 and no steps."""
    tokenizer = nano_tokenizer()
    texts = FamilyTexts(("word_sum", "mini_sudoku"), tokenizer)
    rows = [replace(texts(i), own_steps=steps) for i, steps in enumerate((3, 0, 4, 1))]
    batch = collate(rows, END, [[Place(0, 32)]] * 4)
    assert batch.steps is not None and batch.steps.tolist() == [4, 3, 1, 0], "the most come first"
    return load_model(NANO, dtype="float32", device="cpu"), batch


@pytest.mark.slow
def test_own_steps_are_the_samplers() -> None:
    """From a sampler's first noise, the canvases are those that its passes read, and the soft embedding is the last
    pass's; the prompt's keys are the training pass's own."""
    model, batch = batch_with_steps()
    drawn = torch.Generator().manual_seed(5)
    warmth = torch.rand(4, generator=drawn).tolist()
    seeds = torch.randint(2**62, (4,), generator=drawn).tolist()
    keys = [RowKey(seed, 0) for seed in seeds]
    noise = CounterDraws().first_canvas(keys, 32, model.config.text.vocab_size)
    both = PackedPass(model, batch)
    routings = len(both.routings)
    canvas, soft = take_steps(model, both, noise, batch.steps, torch.Generator().manual_seed(5))
    assert soft is not None and len(soft) == 3 and len(both.routings) == routings
    assert not soft.is_inference() and not canvas.is_inference()
    for row, made in enumerate(batch.steps.tolist()):
        heat = 0.4 + 0.4 * warmth[row]
        request = Request(
            batch.clean[row, : batch.canvases[0].prefix[row]].tolist(), seed=seeds[row]
        )
        passes = [
            event
            for event in denoise_canvases(
                model, [request], sampler=EntropyBound(t_min=heat, t_max=heat), stop_rule=None
            )
            if isinstance(event, StepEvent) and event.canvas == 0
        ]
        assert canvas[row].tolist() == passes[made].tokens_in.tolist()
        if made:
            theirs = passes[made - 1].state.soft_embedding
            assert theirs is not None
            close(soft[row], theirs, 1e-3)


def test_the_loss_after_own_steps() -> None:
    """The first noising is learnt from where the steps end, conditioned on its last step; the second as published. Half
    of those with steps begin with noise alone."""
    model, batch = batch_with_steps()
    recipe = replace(RECIPE, noisings=2)
    batch = replace(batch, canvases=batch.canvases * 2)
    with torch.no_grad():
        ours = loss(model, batch, recipe, torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(3)
        both = PackedPass(model, batch)
        parts = []
        drawn = list(noisy_canvases(batch, recipe, 1024, generator))
        for i, (canvas, before) in enumerate(drawn):
            if i == 0:
                canvas, soft = take_steps(model, both, canvas, batch.steps, generator)
            else:
                (embedded,) = both.look(((i, before, None),), len(before))
                soft = model.logits(embedded).softmax(-1) @ model.embed_tokens.weight * 128**0.5
            assert soft is not None
            fed = torch.cat((soft, torch.zeros(4 - len(soft), *soft.shape[1:])))
            logits = model.logits(both.run(((i, canvas, fed),))[1])
            parts.append(F.cross_entropy(logits.flatten(0, 1), batch.canvases[i].tokens.flatten()))
    close(ours.canvas, torch.stack(parts).mean())
    alone = torch.zeros(4, dtype=torch.long)
    for seed in range(40):
        (first, _), _ = noisy_canvases(batch, recipe, 1024, torch.Generator().manual_seed(seed))
        alone += (first == batch.canvases[0].tokens).float().mean(dim=1) < 0.03
    assert 45 <= alone[:3].sum() <= 85, f"{alone[:3]} of 120 canvases with steps began as noise"
    assert alone[3] <= 8, "without steps the noise is the published one"


def test_which_texts_have_own_steps() -> None:
    """A quarter of the texts, and all prose, are learnt from as they are noised; the others after 1 to 6 steps."""
    texts = FamilyTexts(("spell_backward", "prose"), nano_tokenizer(), own_steps=6)
    plain = FamilyTexts(("spell_backward", "prose"), nano_tokenizer())
    made = Counter(texts(i).own_steps for i in range(400) if len(plain(i).prompt) < 25)
    assert set(made) == set(range(7)) and 0.15 < made[0] / made.total() < 0.6
    assert all(replace(texts(i), own_steps=0) == plain(i) for i in range(40))
    prose = FamilyTexts(("prose",), nano_tokenizer(), own_steps=6)
    assert all(prose(i).own_steps == 0 for i in range(40))
