"""`decode_tokens` on every backend against transformers' Gemma 4, greedily, and Gemma 4's own checkpoints.

The encoder of a DiffusionGemma with the tied head *is* a Gemma 4: both oracles share its weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Gemma4ForCausalLM, Gemma4ForConditionalGeneration

from dgemma_core import RequestError
from dgemma_core.autoregression import decode_tokens
from dgemma_core.events import FinishEvent, TokenEvent
from dgemma_core.files.checkpoint import load_model
from dgemma_core.files.finding import read_config
from dgemma_core.model import DiffusionGemma
from dgemma_core.request import Request
from tests.backends.serving import SERVED, drawn_for, put
from tests.oracle.build import Drawn, diffusion_oracle, draw, gemma4_oracle, random_ids, save
from tests.oracle.ties import LOGITS

CASES = range(8)
NEW_TOKENS = 16
EOS = tuple(range(1, 37, 4))

Gemma4 = Gemma4ForCausalLM | Gemma4ForConditionalGeneration


def prompts_of(drawn: Drawn) -> list[tuple[int, ...]]:
    """Four prompts of different length, shorter and longer than most windows."""
    vocab = drawn.text["vocab_size"]
    return [
        tuple(random_ids(vocab, (length,), 10 * drawn.seed + length).tolist())
        for length in (1, 4, 7, 13)
    ]


def greedy(oracle: Gemma4, prompt: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """The oracle's greedy continuation, and at each token the margin of its logit over the next."""
    ids = torch.tensor([prompt])
    output = oracle.generate(
        ids,
        attention_mask=torch.ones_like(ids),  # else generate masks every token that equals PAD
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=list(EOS),
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = [logits[0].topk(2).values for logits in output.logits]
    return output.sequences[0, len(prompt) :].tolist(), [float(top[0] - top[1]) for top in best]


@dataclass(frozen=True)
class Greedy:
    """A case's prompts, and what the oracle writes after each, with its margins."""

    drawn: Drawn
    folder: Path
    prompts: list[tuple[int, ...]]
    texts: list[tuple[list[int], list[float]]]
    logits: list[Tensor]

    @classmethod
    def of(cls, drawn: Drawn, oracle: Gemma4, folder: Path) -> Greedy:
        prompts = prompts_of(drawn)
        with torch.no_grad():
            logits = [oracle(torch.tensor([prompt])).logits[0] for prompt in prompts]
        return cls(drawn, folder, prompts, [greedy(oracle, p) for p in prompts], logits)


def assert_same_greedy_texts(model: DiffusionGemma, known: Greedy) -> list[str]:
    """All prompts as one batch here, one by one there. Returns our stop reasons."""
    requests = [
        Request(ids=prompt, max_new_tokens=NEW_TOKENS, id=row)
        for row, prompt in enumerate(known.prompts)
    ]
    events = list(decode_tokens(model, requests, temperature=0.0, batch_size=3, eos=EOS))
    finishes = {event.request: event for event in events if isinstance(event, FinishEvent)}
    assert len(finishes) == len(requests)
    for request, (theirs, margins) in zip(requests, known.texts, strict=True):
        ours = list(finishes[request.id].ids)
        tokens = [e.token for e in events if isinstance(e, TokenEvent) and e.request == request.id]
        assert tokens == ours
        if ours != theirs:
            same = next(
                i for i, pair in enumerate(zip(ours, theirs, strict=False)) if len(set(pair)) > 1
            )
            assert margins[same] < 2 * LOGITS, f"token {same} of prompt {request.ids}"
        else:
            assert finishes[request.id].stop_reason == ("eos" if ours[-1] in EOS else "length")
    return [finishes[request.id].stop_reason for request in requests]


GreedyCases = Callable[[Drawn, str], Greedy]


@pytest.fixture(scope="module")
def greedy_case(tmp_path_factory: pytest.TempPathFactory) -> GreedyCases:
    """Drawn case, model type of its checkpoint → the case; each is made once."""
    known: dict[str, Greedy] = {}

    def of(drawn: Drawn, kind: str) -> Greedy:
        key = f"{kind} {drawn!r}"
        if key not in known:
            diffusion = diffusion_oracle(drawn)
            oracle = gemma4_oracle(diffusion, drawn, multimodal=kind == "gemma4")
            saved = diffusion if kind == "diffusion_gemma" else oracle
            folder = save(saved, tmp_path_factory.mktemp(f"case{drawn.seed}"))
            known[key] = Greedy.of(drawn, oracle, folder)
        return known[key]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("implementation", SERVED["float32, aligned"])
def test_greedy_tokens_are_gemma_4s(implementation: str, greedy_case: GreedyCases) -> None:
    reasons: list[str] = []
    for case in CASES:
        known = greedy_case(drawn_for(implementation, draw(case)), "diffusion_gemma")
        model = put(load_model(known.folder, dtype="float32", device="cpu"), implementation)
        reasons += assert_same_greedy_texts(model, known)
    assert reasons.count("eos") >= 5 and reasons.count("length") >= 5


@pytest.mark.slow
@pytest.mark.parametrize("implementation", SERVED["no denoiser, aligned"])
@pytest.mark.parametrize("kind", ["gemma4_text", "gemma4"])
@pytest.mark.parametrize("case", [2, 6, 23])
def test_a_gemma_4_checkpoint_decodes_tokens_but_cannot_denoise(
    case: int, kind: str, implementation: str, greedy_case: GreedyCases
) -> None:
    known = greedy_case(drawn_for(implementation, draw(case)), kind)
    config, generation = read_config(known.folder)
    assert not config.can_denoise
    assert config.model_type == kind
    assert generation.pad_token_id == 0
    model = put(load_model(known.folder, dtype="float32", device="cpu"), implementation)
    cache = model.encode(known.prompts)
    for prompt, hidden, theirs in zip(known.prompts, cache.hidden, known.logits, strict=True):
        assert (model.logits(hidden[: len(prompt)]) - theirs).abs().max() < LOGITS
    assert_same_greedy_texts(model, known)

    canvas = torch.zeros(len(known.prompts), known.drawn.canvas_length, dtype=torch.int64)
    with pytest.raises(RequestError, match="autoregressive"):
        model.denoise(canvas, cache)
