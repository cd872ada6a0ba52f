"""Small models for tests: random ones with every part of the architecture, and one that follows a
script, so that what a decode loop must do can be counted by hand.

The random weights are "calm" (shared spec §3): float32 noise does not grow from step to step, so
that a text is the same whatever the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dgemma_core.backends.reference import Reference
from dgemma_core.cache import PrefixCache, RowCache
from dgemma_core.config import GenerationDefaults, LayerConfig, ModelConfig, TextConfig
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.files.finding import NANO
from dgemma_core.files.text import Tokenizer, load_tokenizer
from dgemma_core.head import Prediction, VocabularyHead
from dgemma_core.model import DiffusionGemma

SLIDING = LayerConfig(False, num_key_value_heads=2, head_dim=4, rope_theta=1e4)
FULL = LayerConfig(True, num_key_value_heads=1, head_dim=8, rope_theta=1e6, rotary_fraction=0.25)
CONFIG = ModelConfig(
    text=TextConfig(
        vocab_size=48, hidden_size=16, intermediate_size=20, num_attention_heads=4, num_experts=3,
        top_k_experts=2, moe_intermediate_size=8, sliding_window=6, rms_norm_eps=1e-6,
        final_logit_softcapping=30.0, max_position_embeddings=512, layers=(SLIDING, FULL),
    ),
    canvas_length=8,
)  # fmt: skip
_CALM = ("q_norm.weight", "router.proj.weight", "self_conditioning.down_proj.weight")


def config(**changes: Any) -> ModelConfig:
    """`CONFIG` with some of its fields, or of its text's, changed."""
    of_text = {field.name for field in fields(TextConfig)}
    text = {name: value for name, value in changes.items() if name in of_text}
    root = {name: value for name, value in changes.items() if name not in of_text}
    return replace(CONFIG, text=replace(CONFIG.text, **text), **root)


def model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> DiffusionGemma:
    """A random model, calmly scrambled, its parameters frozen."""
    built = DiffusionGemma(config(**changes)).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in built.named_parameters():
        if name.endswith(("layer_scalar", "layer_scalars")):
            parameter.uniform_(0.3, 1.2, generator=generator)
        elif parameter.dim() == 1:
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.normal_(0.0, 0.3, generator=generator)
        if name.endswith(_CALM):
            parameter.mul_(0.2)
    return built.to(dtype)


@cache
def tokenizer() -> Tokenizer:
    """Nano's."""
    found = load_tokenizer(NANO)
    assert found is not None
    return found


TURN_END = 5
"""<turn|>, with which an answer ends besides <eos>."""


def loaded(model: Any = None, **defaults: Any) -> Loaded:
    """`model` (a random one if None) with nano's tokenizer; `defaults` of its generation."""
    model = model or text_model()
    settings = {"max_new_tokens": 16, "max_denoising_steps": 4, "eos_token_ids": (1, TURN_END)}
    generation = GenerationDefaults(**{**settings, **defaults})
    return Loaded(model, tokenizer(), generation, "tiny")


def text_model(seed: int = 0) -> DiffusionGemma:
    """A random model over nano's vocabulary."""
    return model(seed, vocab_size=tokenizer().vocab_size)


class Scripted:
    """Stands in for a model: sure of the script's tokens, whatever stands on the canvas.

    script: the answer to any prompt of `prompt` tokens, from its first position on; past its end
    all tokens are alike (the argmax is then 0). A canvas within the script converges at its second
    pass. `encoded` lists the rows of every call of `encode`, `passes` counts those of `denoise`.
    """

    device = torch.device("cpu")

    def __init__(self, script: Sequence[int], *, prompt: int, **changes: Any) -> None:
        self.config = config(**{"vocab_size": tokenizer().vocab_size, **changes})
        self.script = list(script)
        self.prompt = prompt
        self.encoded: list[list[list[int]]] = []
        self.passes = 0

    @property
    def backend(self) -> Reference:
        return Reference(self)

    @property
    def head(self) -> VocabularyHead:
        return VocabularyHead(_identity(self.config.text.vocab_size), soft_cap=30.0)

    def predict(self, hidden: Tensor, *arguments: Any, **options: Any) -> Prediction:
        return self.head.predict(hidden, *arguments, **options)

    def embed(self, ids: Tensor) -> Tensor:
        size = self.config.text.vocab_size
        return _identity(size)[ids] * size**0.5

    def encode(
        self,
        ids: Any,
        cache: PrefixCache | None = None,
        *,
        canvas: Sequence[Sequence[int]] | None = None,
    ) -> PrefixCache:
        rows = [list(map(int, row)) for row in ids]
        self.encoded.append(rows)
        starts = [0] * len(rows) if cache is None else cache.lengths
        hidden = torch.zeros(len(rows), max(map(len, rows)), self.config.text.vocab_size)
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            # in the causal mode a position tells the token after it
            hidden[i, : len(row)] = self._sure(start + 1, len(row))
        known = [()] * len(rows) if cache is None else [row.tokens for row in cache.rows]
        grown = [
            RowCache(start + len(row), [], (), (*before, *row))
            for row, start, before in zip(rows, starts, known, strict=True)
        ]
        laid = [()] * len(rows) if canvas is None else canvas
        denoised = [self._sure(r.length, len(noise)) for r, noise in zip(grown, laid, strict=True)]
        return PrefixCache(grown, hidden, denoised)

    def denoise(
        self, canvas: Tensor, cache: PrefixCache, soft_embedding: Tensor | None = None, **_: Any
    ) -> Tensor:
        self.passes += 1
        return torch.stack([self._sure(start, canvas.shape[1]) for start in cache.lengths])

    def _sure(self, start: int, count: int) -> Tensor:
        """Hidden states (count, V) that tell the tokens at positions start … start + count − 1."""
        hidden = torch.zeros(count, self.config.text.vocab_size)
        for place in range(count):
            answer = start + place - self.prompt
            if 0 <= answer < len(self.script):
                hidden[place, self.script[answer]] = 1e3
        return hidden


@cache
def _identity(size: int) -> Tensor:
    return torch.eye(size)
