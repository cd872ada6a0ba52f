"""`decode_tokens` against transformers' Gemma 4, greedily, and Gemma 4's own checkpoints.

The encoder of a DiffusionGemma with the tied head *is* a Gemma 4: both oracles share its weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma4ForCausalLM, Gemma4ForConditionalGeneration

from dgemma_core import RequestError
from dgemma_core.autoregression import decode_tokens
from dgemma_core.events import FinishEvent, TokenEvent
from dgemma_core.files.checkpoint import load_model
from dgemma_core.files.finding import read_config
from dgemma_core.model import DiffusionGemma
from dgemma_core.request import Request
from tests.oracle.build import Drawn, diffusion_oracle, draw, gemma4_oracle, random_ids, save
from tests.oracle.ties import LOGITS

CASES = range(8)
NEW_TOKENS = 16

Gemma4 = Gemma4ForCausalLM | Gemma4ForConditionalGeneration


def prompts_of(drawn: Drawn) -> list[tuple[int, ...]]:
    """Four prompts of different length, shorter and longer than most windows."""
    vocab = drawn.text["vocab_size"]
    return [
        tuple(random_ids(vocab, (length,), 10 * drawn.seed + length).tolist())
        for length in (1, 4, 7, 13)
    ]


def greedy(
    oracle: Gemma4, prompt: tuple[int, ...], eos: tuple[int, ...]
) -> tuple[list[int], list[float]]:
    """The oracle's greedy continuation, and at each token the margin of its logit over the next."""
    ids = torch.tensor([prompt])
    output = oracle.generate(
        ids,
        attention_mask=torch.ones_like(ids),  # else generate masks every token that equals PAD
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=list(eos),
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = [logits[0].topk(2).values for logits in output.logits]
    return output.sequences[0, len(prompt) :].tolist(), [float(top[0] - top[1]) for top in best]


def assert_same_greedy_texts(model: DiffusionGemma, oracle: Gemma4, drawn: Drawn) -> list[str]:
    """All prompts as one batch here, one by one there. Returns our stop reasons."""
    eos = (3, 5, 11, 17, 29)
    requests = [
        Request(ids=prompt, max_new_tokens=NEW_TOKENS, id=row)
        for row, prompt in enumerate(prompts_of(drawn))
    ]
    events = list(decode_tokens(model, requests, temperature=0.0, batch_size=3, eos=eos))
    finishes = {event.request: event for event in events if isinstance(event, FinishEvent)}
    assert len(finishes) == len(requests)
    for request in requests:
        ours = list(finishes[request.id].ids)
        tokens = [e.token for e in events if isinstance(e, TokenEvent) and e.request == request.id]
        assert tokens == ours
        theirs, margins = greedy(oracle, request.ids, eos)
        if ours != theirs:
            same = next(
                i for i, pair in enumerate(zip(ours, theirs, strict=False)) if len(set(pair)) > 1
            )
            assert margins[same] < 2 * LOGITS, f"token {same} of prompt {request.ids}"
        else:
            assert finishes[request.id].stop_reason == ("eos" if ours[-1] in eos else "length")
    return [finishes[request.id].stop_reason for request in requests]


def test_greedy_tokens_are_gemma_4s(tmp_path: Path) -> None:
    reasons: list[str] = []
    for case in CASES:
        drawn = draw(case)
        diffusion = diffusion_oracle(drawn)
        model = load_model(save(diffusion, tmp_path / str(case)), dtype="float32", device="cpu")
        reasons += assert_same_greedy_texts(model, gemma4_oracle(diffusion, drawn), drawn)
    assert reasons.count("eos") >= 5 and reasons.count("length") >= 5


@pytest.mark.parametrize("multimodal", [False, True], ids=["gemma4_text", "gemma4"])
@pytest.mark.parametrize("case", [2, 6, 23])
def test_a_gemma_4_checkpoint_decodes_tokens_but_cannot_denoise(
    case: int, multimodal: bool, tmp_path: Path
) -> None:
    drawn = draw(case)
    oracle = gemma4_oracle(diffusion_oracle(drawn), drawn, multimodal=multimodal)
    save(oracle, tmp_path)
    config, generation = read_config(tmp_path)
    assert not config.can_denoise
    assert config.model_type == ("gemma4" if multimodal else "gemma4_text")
    assert generation.pad_token_id == 0
    model = load_model(tmp_path, dtype="float32", device="cpu")

    rows = prompts_of(drawn)
    cache = model.encode(rows)
    for prompt, hidden in zip(rows, cache.hidden, strict=True):
        with torch.no_grad():
            theirs = oracle(torch.tensor([prompt])).logits[0]
        assert (model.logits(hidden[: len(prompt)]) - theirs).abs().max() < LOGITS
    assert_same_greedy_texts(model, oracle, drawn)

    with pytest.raises(RequestError, match="autoregressive"):
        model.denoise(torch.zeros(len(rows), drawn.canvas_length, dtype=torch.int64), cache)
