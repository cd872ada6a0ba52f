"""The shipped model: it loads, is DiffusionGemma to transformers too, repeats itself, and solves what it was taught.

Floors are on verdicts over unseen test problems, far enough below the measured rates (dgemma_core/nano/README.md) that
another CPU's last bits do not matter.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

import dgemma_core as dg
from dgemma_core.nano.families import examples, family, is_test_prompt, training_example
from dgemma_core.nano.recipes import NANO, NANO_RECIPE

PROBLEMS = 20
FLOORS = {
    "mini_sudoku": 0.8,
    "futoshiki": 0.3,
    "chain_sum": 0.4,
    "word_sum": 0.75,
    "number_sorting": 0.75,
    "word_sorting": 0.2,
    "spell_backward": 0.95,
    "word_sequence_reversal": 0.8,
    "letter_counting": 0.2,
    "number_filtering": 0.65,
    "rotate_matrix": 0.9,
    "json": 0.8,
}
AUTOREGRESSIVE_FLOORS = {
    "mini_sudoku": 0.6,
    "futoshiki": 0.15,
    "chain_sum": 0.65,
    "word_sum": 0.95,
    "number_sorting": 0.85,
    "word_sorting": 0.5,
    "spell_backward": 0.95,
    "word_sequence_reversal": 0.85,
    "letter_counting": 0.2,
    "number_filtering": 0.7,
    "rotate_matrix": 0.9,
    "json": 0.95,
}


@cache
def nano() -> dg.Loaded:
    return dg.load("nano")


def test_it_is_small_and_complete() -> None:
    assert (NANO / "model.safetensors").stat().st_size <= 16_000_000
    assert {path.name for path in NANO.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
    }
    assert nano().model.config == NANO_RECIPE.config
    assert nano().generation == NANO_RECIPE.generation


def _share_solved(name: str, mode: str) -> float:
    problems = examples(name, count=PROBLEMS)
    prompts = [problem.prompt for problem in problems]
    texts = dg.generate(nano(), prompts, mode=mode, batch_size=PROBLEMS)
    verdicts = [family(name).solved(p.entry, t.text) for p, t in zip(problems, texts, strict=True)]
    return sum(verdicts) / PROBLEMS


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOORS)
def test_it_solves_unseen_problems_by_diffusion(name: str) -> None:
    assert _share_solved(name, "diffusion") >= FLOORS[name]


@pytest.mark.parametrize("name", AUTOREGRESSIVE_FLOORS)
def test_it_solves_unseen_problems_token_by_token(name: str) -> None:
    assert _share_solved(name, "autoregressive") >= AUTOREGRESSIVE_FLOORS[name]


def test_training_never_draws_a_test_problem() -> None:
    for index in range(200):
        assert not is_test_prompt(training_example(index, NANO_RECIPE.mix).prompt)


def test_the_same_seed_gives_the_same_ids_whatever_the_batch() -> None:
    prompts = [problem.prompt for problem in examples("json", count=3)]
    together = dg.generate(nano(), prompts, seed=7)
    again = dg.generate(nano(), prompts, seed=7, batch_size=2)
    alone = dg.generate(nano(), prompts[1], seed=8)
    assert [text.ids for text in together] == [text.ids for text in again]
    assert alone[0].ids == together[1].ids


def test_transformers_gives_the_same_logits() -> None:
    from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

    oracle = DiffusionGemmaForBlockDiffusion.from_pretrained(NANO, dtype=torch.float32).eval()
    ours = dg.load("nano", dtype="float32").model
    tokenizer = nano().tokenizer
    assert tokenizer is not None
    ids = torch.tensor([tokenizer.chat_ids(examples("mini_sudoku", count=1)[0].prompt)])
    canvas = torch.randint(
        0, 1024, (1, NANO_RECIPE.config.canvas_length), generator=torch.Generator().manual_seed(0)
    )
    cache = ours.encode(ids)
    past = DynamicCache(config=oracle.config.get_text_config())
    with torch.no_grad():
        encoded = oracle.model.encoder(input_ids=ids, past_key_values=past)
        positions = torch.arange(ids.shape[1], ids.shape[1] + canvas.shape[1])[None]
        expected = oracle(
            decoder_input_ids=canvas, past_key_values=past, decoder_position_ids=positions
        ).logits
    assert cache.hidden is not None
    torch.testing.assert_close(cache.hidden, encoded.last_hidden_state, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        ours.logits(ours.denoise(canvas, cache)), expected, atol=1e-3, rtol=0
    )


def test_loading_reads_only_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert dg.load("nano").name == "nano"
    assert not list(tmp_path.iterdir())
