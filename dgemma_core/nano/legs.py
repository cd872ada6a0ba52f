"""The runs that made the shipped weights, one after the other; the model card tells of them.

A later run began with the weights of an earlier one: each is a change of the learning rate, of the shares of the
families, or of the noise.
"""

from __future__ import annotations

from dataclasses import replace

from dgemma_core.config import GenerationDefaults, LayerConfig, ModelConfig, TextConfig
from dgemma_core.nano.named import NamedRecipe
from dgemma_core.train.distillation import Teacher
from dgemma_core.train.recipe import Recipe

_SLIDING = LayerConfig(
    full=False, num_key_value_heads=2, head_dim=32, rope_theta=1e4, rotary_fraction=1.0
)
_FULL = LayerConfig(
    full=True, num_key_value_heads=1, head_dim=64, rope_theta=1e6, rotary_fraction=0.25
)

FIRST = NamedRecipe(
    config=ModelConfig(
        text=TextConfig(
            vocab_size=1024,
            hidden_size=128,
            intermediate_size=256,
            num_attention_heads=4,
            num_experts=8,
            top_k_experts=2,
            moe_intermediate_size=64,
            sliding_window=48,
            rms_norm_eps=1e-6,
            final_logit_softcapping=30.0,
            max_position_embeddings=4096,
            layers=(_SLIDING, _SLIDING, _FULL, _SLIDING, _FULL),
        ),
        canvas_length=32,
        bos_token_id=2,
        eos_token_ids=(1, 5),
        pad_token_id=0,
        media_token_ids=(9, 10, 11),
    ),
    training=Recipe(steps=1700, warmup=100, micro_batches=1, pool=16),
    shares={"mini_sudoku": 5, "json": 2, "number_sorting": 2, "spell_backward": 1},
    generation=GenerationDefaults(
        max_new_tokens=128, eos_token_ids=(1, 5), pad_token_id=0, bos_token_id=2
    ),
)
"""A small model, a canvas of half the later nano's, four families: trained within the hour on one core."""

COPY = replace(
    FIRST,
    training=Recipe(steps=620, warmup=40, learning_rate=2e-3, micro_batches=2, seed=1),
    shares={"json": 6, "mini_sudoku": 2, "number_sorting": 1, "spell_backward": 1},
)
"""Second leg: from `first`, once it solves sudoku, to copying words and numbers into place."""

ALL_FAMILIES = replace(
    FIRST,
    config=replace(FIRST.config, text=replace(FIRST.config.text, sliding_window=64)),
    training=Recipe(steps=30_000, warmup=50, learning_rate=2e-3, decay=0, seed=3),
    shares={
        "mini_sudoku": 1,
        "futoshiki": 2,
        "chain_sum": 1,
        "word_sum": 2,
        "number_sorting": 2,
        "word_sorting": 1,
        "spell_backward": 1,
        "word_sequence_reversal": 2,
        "letter_counting": 1,
        "number_filtering": 2,
        "rotate_matrix": 2,
        "json": 2,
        "prose": 1,
    },
    generation=replace(FIRST.generation, max_new_tokens=192),
)
"""All thirteen families, from the second leg's weights, at a steady rate, over as many sittings as it takes."""

FINISH = replace(ALL_FAMILIES, training=Recipe(steps=700, warmup=10, learning_rate=2e-3, seed=4))
"""From wherever `all_families` stands: the learning rate falls to nearly nothing, and the losses with it."""

GRIDS = replace(
    ALL_FAMILIES,
    training=Recipe(steps=330, warmup=10, learning_rate=1.2e-3, matrix_learning_rate=0.009, seed=6),
    shares={**ALL_FAMILIES.shares, "mini_sudoku": 8, "futoshiki": 3, "json": 4},
)
"""From `finish`: more of the grids, which the even mix has worn down, and of JSON."""

LONG = replace(
    ALL_FAMILIES,
    training=Recipe(
        steps=30_000,
        warmup=20,
        learning_rate=2e-3,
        matrix_learning_rate=0.012,
        decay=0,
        noisings=2,
        seed=7,
    ),
    shares={
        **ALL_FAMILIES.shares,
        "mini_sudoku": 2,
        "futoshiki": 3,
        "chain_sum": 2,
        "word_sorting": 2,
        "rotate_matrix": 1,
    },
)
"""From `grids`, at a steady rate: every canvas is noised twice, since diffusion trails the causal mode."""

ANNEAL = replace(
    LONG,
    training=replace(LONG.training, steps=500, warmup=10, decay=None, seed=8),
)
"""From wherever `long` stands: the rate falls to nearly nothing."""

_SEEN = {
    "mini_sudoku": 2,
    "futoshiki": 4,
    "number_sorting": 4,
    "word_sorting": 3,
    "spell_backward": 1,
    "word_sequence_reversal": 1,
    "letter_counting": 2,
    "number_filtering": 3,
    "rotate_matrix": 1,
    "json": 4,
}
CORRECTED = replace(
    LONG,
    training=replace(
        LONG.training,
        steps=720,
        warmup=10,
        learning_rate=1.6e-3,
        matrix_learning_rate=0.01,
        decay=None,
        seed=10,
    ),
    shares={**_SEEN, "chain_sum": 1, "word_sum": 1, "prose": 1},
    teacher=Teacher(corrected=tuple(_SEEN), uses=2, block=1024, batch_size=64),
)
"""From `anneal`: one of the two canvases is what the model's own sampler saw on its way, and the rate falls again. Not
for sums: seen so, for 200 steps, they only grew unsure (48 steps a canvas) and no better."""

DISTIL = replace(
    LONG,
    training=Recipe(steps=96, warmup=10, learning_rate=4e-4, matrix_learning_rate=3e-3, seed=5),
    teacher=Teacher(uses=4, block=1024, batch_size=64),
)
"""Second stage, from `corrected`: the model learns to settle in fewer steps."""

WALKS = replace(
    LONG,
    training=replace(
        LONG.training,
        steps=340,
        warmup=10,
        learning_rate=1e-3,
        matrix_learning_rate=6e-3,
        decay=None,
        seed=23,
    ),
    shares={
        "mini_sudoku": 2,
        "futoshiki": 3,
        "chain_sum": 1,
        "word_sum": 2,
        "number_sorting": 4,
        "word_sorting": 4,
        "spell_backward": 1,
        "word_sequence_reversal": 4,
        "letter_counting": 2,
        "number_filtering": 4,
        "rotate_matrix": 2,
        "json": 3,
        "prose": 1,
    },
    own_steps=6,
)
"""From `distil`: one of the two canvases is learnt from after a few steps of the model's own sampler. The rate is half
of `long`'s, and falls: at the full one, what was learnt before suffered more than a short run could mend."""

COLUMNS = replace(
    LONG,
    training=replace(CORRECTED.training, steps=760, warmup=20, seed=24),
    shares={
        **WALKS.shares,
        "mini_sudoku": 1,
        "chain_sum": 5,
        "word_sum": 4,
        "word_sorting": 3,
        "word_sequence_reversal": 2,
        "letter_counting": 4,
        "rotate_matrix": 1,
        "json": 2,
    },
)
"""From `walks`: sums in columns of a fixed width, and letters counted word by word, are answered from here on."""

WORD_SUMS = replace(
    COLUMNS,
    training=replace(
        COLUMNS.training, steps=70, warmup=5, decay=0, matrix_learning_rate=9.6e-3, seed=77
    ),
    shares={"word_sum": 1},
)
"""From `columns`, which copies operands into place at once but adds them only token by token: nothing but sums, at a
steady rate, and the denoiser learns to add within minutes (and forgets the rest)."""

ADDING = replace(
    WORD_SUMS,
    training=replace(WORD_SUMS.training, steps=110, seed=78),
    shares={"word_sum": 3, "chain_sum": 2},
)
"""From `word_sums`: longer numbers, too."""

REGAIN = replace(
    COLUMNS,
    training=replace(
        COLUMNS.training,
        steps=240,
        warmup=10,
        learning_rate=1.3e-3,
        matrix_learning_rate=8e-3,
        seed=27,
    ),
    shares={
        **COLUMNS.shares,
        "mini_sudoku": 2,
        "chain_sum": 4,
        "word_sum": 3,
        "rotate_matrix": 2,
        "json": 3,
    },
)
"""From weights between those of `columns` and of `adding` (0.6 of the way), which add nearly as
well and have forgotten less: all families again."""

ROUND_OFF = replace(
    REGAIN,
    training=replace(REGAIN.training, steps=280, seed=28),
    shares={
        **REGAIN.shares,
        "futoshiki": 4,
        "chain_sum": 6,
        "word_sum": 7,
        "word_sorting": 4,
        "word_sequence_reversal": 3,
        "letter_counting": 2,
        "rotate_matrix": 1,
    },
)
"""From `regain`: once more, with more sums."""

FURTHER = replace(
    COLUMNS,
    training=replace(COLUMNS.training, steps=1300, seed=29),
    shares={
        **ROUND_OFF.shares,
        "futoshiki": 5,
        "chain_sum": 7,
        "number_sorting": 7,
        "word_sequence_reversal": 4,
        "letter_counting": 3,
        "number_filtering": 5,
        "rotate_matrix": 2,
        "json": 4,
    },
)
"""From weights between those of `regain` and of `round_off` (0.7 of the way): more of everything."""

FURTHEST = replace(
    FURTHER,
    training=replace(FURTHER.training, steps=2200, seed=30),
    shares={
        **FURTHER.shares,
        "futoshiki": 6,
        "chain_sum": 6,
        "word_sum": 4,
        "word_sorting": 7,
        "word_sequence_reversal": 3,
        "number_filtering": 6,
        "rotate_matrix": 1,
        "json": 3,
    },
)
"""From `further`: longer, and less of what is solved."""

DRAFTING = replace(
    FURTHEST,
    training=replace(
        FURTHEST.training,
        steps=1000,
        learning_rate=6e-4,
        matrix_learning_rate=4e-3,
        noisings=1,
        drafts=(8, 16, 24, 32),
        drafts_from_noise=0.75,
        self_conditioning=1 / 3,
        seed=31,
    ),
)
"""From `furthest`: the second canvas of every text is a draft, most of them noise behind a clean first token. The rate
is a little over a third of `furthest`'s: at three quarters of it, 300 steps took a tenth of what nano solved."""

LEGS = {
    "first": FIRST,
    "copy": COPY,
    "all_families": ALL_FAMILIES,
    "finish": FINISH,
    "grids": GRIDS,
    "long": LONG,
    "anneal": ANNEAL,
    "corrected": CORRECTED,
    "distil": DISTIL,
    "walks": WALKS,
    "columns": COLUMNS,
    "word_sums": WORD_SUMS,
    "adding": ADDING,
    "regain": REGAIN,
    "round_off": ROUND_OFF,
    "further": FURTHER,
    "furthest": FURTHEST,
    "drafting": DRAFTING,
}
