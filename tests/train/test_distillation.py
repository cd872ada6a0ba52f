"""Distillation: what the teacher saw is what is learnt from, and a run resumes to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F

from dgemma_core.diffusion import denoise_canvases
from dgemma_core.errors import RequestError
from dgemma_core.events import StepEvent
from dgemma_core.files.checkpoint import load_model
from dgemma_core.model import DiffusionGemma
from dgemma_core.nano.families import family, training_example
from dgemma_core.nano.recipes import DISTIL, NANO, nano_tokenizer
from dgemma_core.request import Request
from dgemma_core.train import Recipe, Text
from dgemma_core.train.batches import Place, collate
from dgemma_core.train.distillation import (
    Teacher,
    TeacherTexts,
    Trajectory,
    corrected_trajectories,
    trajectories,
)
from dgemma_core.train.loss import loss
from dgemma_core.train.noise import noisy_canvases
from dgemma_core.train.run import make_trainer
from dgemma_core.train.texts import Snapshot
from tests.core import tiny

END = 1
MIX = ("spell_backward",)
SMALL = Teacher(uses=2, block=4, batch_size=4, max_new_tokens=32)


@pytest.fixture(scope="module")
def teacher() -> DiffusionGemma:
    return load_model(NANO, dtype="float32", device="cpu")


def test_trajectories_are_the_samplers(teacher: DiffusionGemma) -> None:
    """Of solved problems each canvas as every step read it, and the answer without its end; of others the canonical
    answer alone."""
    tokenizer = nano_tokenizer()
    problems = [training_example(i, ("spell_backward", "word_sorting")) for i in range(12)]
    made = trajectories(teacher, SMALL, problems, tokenizer)
    assert sorted(made) == list(range(12))
    unsolved = [i for i in made if not made[i].canvases]
    assert 2 <= len(unsolved) <= 8
    for i in unsolved:
        assert made[i].answer == tuple(tokenizer.encode(problems[i].answer))
    for i in made.keys() - set(unsolved):
        trajectory, problem = made[i], problems[i]
        assert family(problem.family).solved(problem.entry, tokenizer.decode(trajectory.answer))
        request = Request(tokenizer.chat_ids(problem.prompt), seed=i, max_new_tokens=32)
        steps = [
            tuple(event.tokens_in.tolist())
            for event in denoise_canvases(teacher, [request])
            if isinstance(event, StepEvent) and event.canvas == 0
        ]
        assert trajectory.prompt == tuple(request.ids)
        assert trajectory.canvases[0] == tuple(steps)


def test_a_snapshot_is_of_one_step() -> None:
    steps = (((5, 6), (7, 6)), ((8, 9),))
    trajectory = Trajectory((2, 3), (7, 6, 8), steps)
    texts = [trajectory.text(Random(i)) for i in range(60)]
    assert all(text.prompt == (2, 3) and text.answer == (7, 6, 8) for text in texts)
    assert {text.snapshot for text in texts} == {
        Snapshot(0, (5, 6), None),
        Snapshot(0, (7, 6), (5, 6)),
        Snapshot(1, (8, 9), None),
    }


def test_texts_depend_on_their_number_alone(teacher: DiffusionGemma) -> None:
    tokenizer = nano_tokenizer()
    in_order = TeacherTexts(teacher, SMALL, MIX, tokenizer)
    texts = [in_order(i) for i in range(16)]
    again = TeacherTexts(teacher, SMALL, MIX, tokenizer)
    assert [again(i) for i in (15, 3, 9)] == [texts[i] for i in (15, 3, 9)]
    prompts = [text.prompt for text in texts]
    assert max(map(prompts.count, prompts)) >= SMALL.uses
    assert len(set(prompts)) > 2 and len(set(prompts[:3])) == 3, "its uses lie apart"


def test_corrected_trajectories_lead_to_the_canonical_answer(teacher: DiffusionGemma) -> None:
    """Every problem is learnt from, solved or not, at one of its canvases; others are left to the schedule."""
    tokenizer = nano_tokenizer()
    problems = [training_example(i, ("word_sorting", "chain_sum", "prose")) for i in range(12)]
    settings = replace(SMALL, corrected=("word_sorting", "chain_sum"))
    made = corrected_trajectories(teacher, settings, problems, tokenizer)
    assert sorted(made) == list(range(12))
    size = teacher.config.canvas_length
    places = set()
    for i, trajectory in made.items():
        assert trajectory.answer == tuple(tokenizer.encode(problems[i].answer))
        if problems[i].family == "prose":
            assert trajectory.canvases == ()
            assert trajectory.text(Random(0)) == Text(trajectory.prompt, trajectory.answer)
            continue
        place = len(trajectory.canvases) - 1
        places.add(place)
        prefix = trajectory.prompt + trajectory.answer[: place * size]
        steps = [
            tuple(event.tokens_in.tolist())
            for event in denoise_canvases(teacher, [Request(prefix, seed=i, max_new_tokens=size)])
            if isinstance(event, StepEvent)
        ]
        assert trajectory.canvases == ((),) * place + (tuple(steps),)
        assert trajectory.text(Random(0)).snapshot.canvas == place  # type: ignore[union-attr]
    assert len(places) > 1, "answers of one canvas only prove little"


@pytest.mark.slow
def test_a_teacher_that_solves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DiffusionGemma(DISTIL.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    texts = TeacherTexts(model, replace(SMALL, steps=1), MIX, nano_tokenizer())
    with pytest.raises(RequestError, match="solved none of 4 problems: train it longer"):
        texts(0)


def test_collate_puts_conditioned_rows_first() -> None:
    snapshots = [
        Snapshot(0, (9, 9), None),
        Snapshot(1, (8, 9), (9, 8)),
        Snapshot(0, (7, 9), (9, 7)),
    ]
    texts = [Text((2,), (4, 5, 6), each) for each in snapshots]
    batch = collate(texts, END, [[Place(0, 2)]] * 3)
    assert batch.snapshot is not None and batch.before is not None
    assert batch.snapshot.tolist() == [[8, 9], [7, 9], [9, 9]]
    assert batch.before.tolist() == [[9, 8], [9, 7]]
    assert batch.canvases[0].tokens.tolist() == [[6, 1], [4, 5], [4, 5]]
    assert batch.canvases[0].prefix.tolist() == [3, 1, 1]


def test_rows_that_were_not_seen_are_noised_and_stand_between() -> None:
    snapshots = [None, Snapshot(0, (9, 9), None), Snapshot(0, (7, 9), (9, 7)), None]
    texts = [Text((2,), (4, 5 + i, 6), each) for i, each in enumerate(snapshots)]
    batch = collate(texts, END, [[Place(2 * i, 2)] * 2 for i in (0, 1, 1, 0)])
    assert batch.snapshot is not None and batch.before is not None
    assert batch.snapshot.tolist() == [[7, 9], [-1, -1], [-1, -1], [9, 9]]
    assert batch.canvases[0].tokens.tolist() == [[4, 7], [4, 5], [4, 8], [4, 6]]
    recipe = Recipe(steps=1, warmup=0, noisings=2)
    generator = torch.Generator().manual_seed(0)
    (first, before), (second, own) = noisy_canvases(batch, recipe, 48, generator)
    assert first[[0, 3]].tolist() == [[7, 9], [9, 9]] and (first >= 0).all()
    assert before.tolist() == [[9, 7], first[1].tolist()], "half of what was not seen, as published"
    assert torch.equal(own, second[:2]), "the second noise is drawn for every row"


def test_the_loss_is_of_the_teachers_last_canvas() -> None:
    """Row by row through `encode` and `denoise`, conditioned on the step before."""
    model = tiny.model(2)
    texts = [
        Text((20, 21), (30, 31, 32), Snapshot(0, (9, 40, 32, 1, 1, 2, 3, 4), None)),
        Text((22,), (33, 34), Snapshot(0, (33, 9, 9, 1, 5, 6, 7, 8), (1, 2, 3, 4, 5, 6, 7, 8))),
    ]
    batch = collate(texts, END, [[Place(0, 8)]] * 2)
    with torch.no_grad():
        ours = loss(model, batch, Recipe(steps=1, warmup=0), torch.Generator())
    total = []
    for text in texts:
        assert text.snapshot is not None
        cache, soft = model.encode([text.prompt]), None
        if text.snapshot.before is not None:
            p = model.logits(model.denoise(torch.tensor([text.snapshot.before]), cache)).softmax(-1)
            soft = p @ model.embed_tokens.weight * 16**0.5
        logits = model.logits(model.denoise(torch.tensor([text.snapshot.tokens]), cache, soft))[0]
        clean = torch.tensor(text.answer + (END,) * (8 - len(text.answer)))
        total.append(F.cross_entropy(logits, clean, reduction="none"))
    torch.testing.assert_close(ours.canvas, torch.cat(total).mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_distillation_resumes_to_the_bit(tmp_path: Path) -> None:
    """From the teacher that lies in its own folder."""
    training = replace(DISTIL.training, steps=3, warmup=1, batch_size=8, micro_batches=2, pool=2)
    recipe = replace(DISTIL, training=training, teacher=SMALL, shares={"spell_backward": 1})
    whole = make_trainer(recipe, tmp_path / "whole", "cpu", "nano", workers=1)
    assert whole.run()
    first = make_trainer(recipe, tmp_path / "parts", "cpu", "nano", workers=1)
    assert first.run(minutes=0) is False
    second = make_trainer(recipe, tmp_path / "parts", "cpu", workers=1)
    assert second.resume() and second.progress.step == 1 and second.run()
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(
        whole.model.norm.weight, load_model(NANO, dtype="float32", device="cpu").norm.weight
    )


def test_a_distillation_needs_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="distils a trained model: name it with --from"):
        make_trainer(DISTIL, tmp_path, "cpu")


def test_bad_teachers() -> None:
    with pytest.raises(RequestError, match="at least 1"):
        Teacher(uses=0)
