"""Distillation: what the teacher saw is what is learnt from, and a run resumes to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
import torch.nn.functional as F

from dgemma_core.checkpoint import load_model
from dgemma_core.decoding import Request, StepEvent, denoise_canvases
from dgemma_core.distillation import Teacher, TeacherTexts, Trajectory, trajectories
from dgemma_core.errors import RequestError
from dgemma_core.families import family, training_example
from dgemma_core.model import DiffusionGemma
from dgemma_core.recipes import DISTIL, NANO, nano_tokenizer
from dgemma_core.train import make_trainer
from dgemma_core.training import Look, Recipe, Text, collate, loss
from tests.core import tiny

END = 1
MIX = ("spell_backward",)
SMALL = Teacher(uses=2, block=4, batch_size=4, max_new_tokens=32)


@pytest.fixture(scope="module")
def teacher() -> DiffusionGemma:
    return load_model(NANO, dtype="float32", device="cpu")


def test_trajectories_are_the_samplers(teacher: DiffusionGemma) -> None:
    """Only solved problems; each canvas as every step read it; the answer without its end."""
    tokenizer = nano_tokenizer()
    problems = [training_example(i, MIX) for i in range(8)]
    made = trajectories(teacher, SMALL, problems, tokenizer)
    assert len(made) >= 4
    for i, trajectory in made.items():
        problem = problems[i]
        assert family("spell_backward").solved(problem.entry, tokenizer.decode(trajectory.answer))
        request = Request(tokenizer.chat_ids(problem.prompt), seed=i, max_new_tokens=32)
        steps = [
            tuple(event.tokens_in.tolist())
            for event in denoise_canvases(teacher, [request])
            if isinstance(event, StepEvent) and event.canvas == 0
        ]
        assert trajectory.prompt == tuple(request.ids)
        assert trajectory.canvases[0] == tuple(steps)


def test_a_look_is_at_one_step() -> None:
    steps = (((5, 6), (7, 6)), ((8, 9),))
    trajectory = Trajectory((2, 3), (7, 6, 8), steps)
    looks = [trajectory.look(Random(i)) for i in range(60)]
    assert all(text.prompt == (2, 3) and text.answer == (7, 6, 8) for text in looks)
    assert {text.look for text in looks} == {
        Look(0, (5, 6), None),
        Look(0, (7, 6), (5, 6)),
        Look(1, (8, 9), None),
    }


def test_texts_depend_on_their_number_alone(teacher: DiffusionGemma) -> None:
    tokenizer = nano_tokenizer()
    in_order = TeacherTexts(teacher, SMALL, MIX, tokenizer)
    texts = [in_order(i) for i in range(16)]
    again = TeacherTexts(teacher, SMALL, MIX, tokenizer)
    assert [again(i) for i in (15, 3, 9)] == [texts[i] for i in (15, 3, 9)]
    assert texts[0].prompt == texts[1].prompt, "a trajectory is used twice"
    assert len({text.prompt for text in texts}) > 2


def test_a_teacher_that_solves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DiffusionGemma(DISTIL.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    texts = TeacherTexts(model, replace(SMALL, steps=1), MIX, nano_tokenizer())
    with pytest.raises(RequestError, match="solved none of 4 problems: train it longer"):
        texts(0)


def test_collate_puts_conditioned_rows_first() -> None:
    looks = [Look(0, (9, 9), None), Look(1, (8, 9), (9, 8)), Look(0, (7, 9), (9, 7))]
    texts = [Text((2,), (4, 5, 6), look) for look in looks]
    batch = collate(texts, 2, END, [0, 0, 0])
    assert batch.noisy is not None and batch.before is not None
    assert batch.noisy.tolist() == [[8, 9], [7, 9], [9, 9]]
    assert batch.before.tolist() == [[9, 8], [9, 7]]
    assert batch.canvas.tolist() == [[6, 1], [4, 5], [4, 5]]
    assert batch.prefix.tolist() == [3, 1, 1]


def test_the_loss_is_of_the_teachers_last_canvas() -> None:
    """Row by row through `encode` and `denoise`, conditioned on a look at the step before."""
    model = tiny.model(2)
    texts = [
        Text((20, 21), (30, 31, 32), Look(0, (9, 40, 32, 1, 1, 2, 3, 4), None)),
        Text((22,), (33, 34), Look(0, (33, 9, 9, 1, 5, 6, 7, 8), (1, 2, 3, 4, 5, 6, 7, 8))),
    ]
    batch = collate(texts, 8, END, [0, 0])
    with torch.no_grad():
        ours = loss(model, batch, Recipe(steps=1, warmup=0), torch.Generator())
    total = []
    for text in texts:
        assert text.look is not None
        cache, soft = model.encode([text.prompt]), None
        if text.look.before is not None:
            p = model.logits(model.denoise(torch.tensor([text.look.before]), cache)).softmax(-1)
            soft = p @ model.embed_tokens.weight * 16**0.5
        logits = model.logits(model.denoise(torch.tensor([text.look.tokens]), cache, soft))[0]
        clean = torch.tensor(text.answer + (END,) * (8 - len(text.answer)))
        total.append(F.cross_entropy(logits, clean, reduction="none"))
    torch.testing.assert_close(ours.canvas, torch.cat(total).mean(), rtol=1e-5, atol=1e-5)


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
