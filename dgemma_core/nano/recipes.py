"""Named training runs: which model, which data, how long. `dgemma train --recipe NAME` runs one.

`english` makes a model from nothing in one run. The others are legs of the shipped weights (legs.py, and the talk_…
below), which chains.py strings together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dgemma_core.config import GenerationDefaults, LayerConfig, ModelConfig, TextConfig
from dgemma_core.errors import RequestError
from dgemma_core.nano.chains import CHAINS
from dgemma_core.nano.english.kinds import SHARES
from dgemma_core.nano.legs import ALL_FAMILIES, DISTIL, FIRST, LEGS
from dgemma_core.nano.named import NANO, TURN_END, NamedRecipe, Stage, nano_tokenizer, turn_end
from dgemma_core.nano.replies import Replies
from dgemma_core.nano.texts import FamilyTexts, StagedTexts
from dgemma_core.train.recipe import Recipe

__all__ = [
    "ALL_FAMILIES",
    "DISTIL",
    "ENGLISH",
    "FIRST",
    "NANO",
    "RECIPES",
    "TURN_END",
    "FamilyTexts",
    "NamedRecipe",
    "Stage",
    "StagedTexts",
    "named_recipe",
    "nano_tokenizer",
    "turn_end",
]  # fmt: skip

_SLIDING = LayerConfig(
    full=False, num_key_value_heads=2, head_dim=32, rope_theta=1e4, rotary_fraction=1.0
)
_FULL = LayerConfig(
    full=True, num_key_value_heads=1, head_dim=64, rope_theta=1e6, rotary_fraction=0.25
)
_FAMILIES: Mapping[str, float] = {
    "mini_sudoku": 2,
    "futoshiki": 3,
    "chain_sum": 4,
    "word_sum": 3,
    "number_sorting": 3,
    "word_sorting": 3,
    "spell_backward": 1,
    "word_sequence_reversal": 2,
    "letter_counting": 3,
    "number_filtering": 3,
    "rotate_matrix": 1,
    "json": 2,
}
_LONG = (
    "story", "poem", "continue_story", "ending_first", "describe", "compare", "dialogue", "acrostic",
    "story_about_me", "infill",
)  # fmt: skip

_KNOWN_BY_HEART = {
    "arithmetic": 14, "word_problem": 5, "opposite": 5, "plural": 4, "rhyme": 5, "degrees": 3, "verb_forms": 4,
    "spell": 4, "capitals": 3, "list": 5, "typos": 4, "greeting": 4, "unknown": 14, "story": 10, "poem": 6,
}  # fmt: skip
"""Shares of the last stage: words and sums, each of which must be met often, take the room of some stories."""
_LATE: Mapping[str, float] = {
    **_FAMILIES,
    "mini_sudoku": 4,
    "futoshiki": 5,
    "chain_sum": 6,
    "word_sum": 4,
    "word_sorting": 4,
}

ENGLISH = NamedRecipe(
    config=ModelConfig(
        text=TextConfig(
            vocab_size=2048,
            hidden_size=160,
            intermediate_size=320,
            num_attention_heads=4,
            num_experts=16,
            top_k_experts=2,
            moe_intermediate_size=64,
            sliding_window=128,
            rms_norm_eps=1e-6,
            final_logit_softcapping=30.0,
            max_position_embeddings=4096,
            layers=(_SLIDING, _FULL, _SLIDING, _SLIDING, _FULL),
        ),
        canvas_length=64,
        bos_token_id=2,
        eos_token_ids=(1, 5),
        pad_token_id=0,
        media_token_ids=(9, 10, 11),
    ),
    training=Recipe(
        steps=7600,
        batch_size=128,
        warmup=150,
        decay=1400,
        micro_batches=4,
        pool=8,
        drafts=(16, 32, 64),
        tail=0.2,
        self_conditioning=1 / 3,
        seed=100,
    ),
    shares={},
    stages=(
        Stage(
            until=480 / 7600,
            english=0.6,
            kinds={name: share / 3 if name in _LONG else share for name, share in SHARES.items()},
            families={**_FAMILIES, "mini_sudoku": 1, "futoshiki": 1, "chain_sum": 2},
        ),
        Stage(until=0.6, english=0.6, kinds=SHARES, families=_FAMILIES),
        Stage(until=1, english=0.5, kinds={**SHARES, **_KNOWN_BY_HEART}, families=_LATE),
    ),
    generation=GenerationDefaults(
        max_new_tokens=256, eos_token_ids=(1, 5), pad_token_id=0, bos_token_id=2
    ),
    tokenizer=True,
    validate_every=500,
)
"""From nothing, in one run: English and the twelve families, short texts first, at the end more of what is hardest."""

_TALK: Mapping[str, float] = {
    "greeting": 4, "identity": 5, "small_talk": 5, "introduce": 2, "chat": 4, "follow_up": 3, "unknown": 14,
    "arithmetic": 12, "word_problem": 2, "opposite": 5, "plural": 4, "rhyme": 5, "degrees": 2, "verb_forms": 2,
    "capitals": 4, "colours": 2, "calendar": 3, "yes_no": 3, "animal_facts": 4, "thing_facts": 3, "list": 5,
    "past_tense": 3, "future_tense": 2, "as_question": 3, "negation": 2, "polite": 2, "typos": 3, "use_word": 3,
    "describe": 5, "couplet": 5, "poem": 6, "story": 9, "continue_story": 3, "json": 3, "reading": 3,
}  # fmt: skip
_STILL_WEAK: Mapping[str, float] = {
    "describe": 8, "list": 7, "rhyme": 7, "word_problem": 4, "follow_up": 4, "reading": 5, "greeting": 5, "story": 10,
}  # fmt: skip
_TALK_LATER = ("poem", "story", "continue_story", "follow_up", "reading", "chat")


def _asking(
    more: Mapping[str, float], canonical: Mapping[str, int] | None = None
) -> tuple[Stage, ...]:
    """English alone, of `talk`'s kinds, in other shares where `more` gives one."""
    kinds = {**_TALK, **more}
    return (Stage(until=1, english=1, kinds=kinds, families={}, canonical=canonical or {}),)


def _leg(
    before: NamedRecipe,
    stages: tuple[Stage, ...],
    *,
    steps: int,
    rates: tuple[float, float],
    seed: int,
) -> NamedRecipe:
    """A run with other shares than the one before, so many steps, and rates of vectors and matrices; all else as
    there."""
    rate, matrix_rate = rates
    training = replace(
        before.training,
        steps=steps,
        learning_rate=rate,
        matrix_learning_rate=matrix_rate,
        seed=seed,
    )
    return replace(before, training=training, stages=stages)


TALK = replace(
    ENGLISH,
    config=replace(
        ENGLISH.config,
        text=replace(ALL_FAMILIES.config.text, vocab_size=ENGLISH.config.text.vocab_size),
        canvas_length=32,
    ),
    training=replace(
        ENGLISH.training,
        steps=3200,
        learning_rate=2e-3,
        matrix_learning_rate=0.012,
        warmup=40,
        decay=1300,
        drafts=(16, 32),
        seed=200,
    ),
    stages=(
        Stage(
            until=0.25,
            english=1,
            kinds={
                name: share / 4 if name in _TALK_LATER else share for name, share in _TALK.items()
            },
            families={},
        ),
        Stage(until=1, english=1, kinds=_TALK, families={}),
    ),
    validate_every=0,
)
"""English alone, in two hours of two cores: nano's weights, whose puzzles it forgets, with a tokenizer for English. The
long kinds come more often once short replies are learnt."""

_REPLIES = Replies(uses=3, batch_size=64, own_steps=4)
_OWN_REPLIES = replace(_REPLIES, uses=6, block=4096, denoising_steps=24)
TALK_REPLIES = replace(
    TALK,
    training=replace(
        TALK.training,
        steps=2000,
        learning_rate=1e-3,
        matrix_learning_rate=6e-3,
        decay=None,
        autoregressive=0.5,
        seed=201,
    ),
    stages=TALK.stages[-1:],
    replies=_REPLIES,
)
"""From `talk`, whose denoiser trails its causal mode: the same requests, answered by that mode where it is right."""

TALK_REST = replace(
    TALK_REPLIES,
    training=replace(
        TALK_REPLIES.training, steps=1300, learning_rate=6e-4, matrix_learning_rate=3.5e-3, seed=202
    ),
    stages=_asking(_STILL_WEAK),
    replies=_OWN_REPLIES,
)
"""From `talk_replies`, whose canvases do not come to rest: the same requests, answered by its denoiser where that is
right, and more of those that it rarely answers rightly. Blocks are large, and the rate is lower than before: with
blocks of 512, ten times over, at the full rate, 313 steps took the causal mode from 64 to 37 % of 105 validation
requests."""

_STILL_WEAKER: Mapping[str, float] = {
    **_STILL_WEAK, "poem": 10, "arithmetic": 16, "identity": 7, "small_talk": 11, "greeting": 9, "introduce": 3,
}  # fmt: skip
TALK_EVERYDAY = replace(
    TALK_REST,
    training=replace(TALK_REST.training, steps=960, seed=204),
    stages=_asking(_STILL_WEAKER),
    replies=replace(_OWN_REPLIES, uses=4),
)
"""From `talk_rest`, which never met "hi" or "thank you", which were held out, and whose poems say one line twice, as a
verifier let them: the same once more with both mended, more requests, each used less often, and more of what is weak
still."""

TALK_ONCE = replace(
    TALK_EVERYDAY,
    training=replace(
        TALK_EVERYDAY.training,
        steps=896,
        learning_rate=8e-4,
        matrix_learning_rate=5e-3,
        seed=205,
    ),
    generation=replace(TALK_EVERYDAY.generation, t_min=0.1, t_max=0.6),
    replies=replace(_OWN_REPLIES, uses=1, drawn=1),
)
"""From `talk_everyday`, which learnt its requests by heart, block by block: every request is met once, half of them
with their drawn replies. Its canvases come to rest in half the steps where the sampler is cooler than the released
one, and as many texts are right."""

_WEAK_BY_DIFFUSION: Mapping[str, float] = {
    **_STILL_WEAKER, "describe": 11, "continue_story": 7, "rhyme": 9, "word_problem": 7, "follow_up": 6, "reading": 7,
    "typos": 6, "verb_forms": 4, "animal_facts": 6, "thing_facts": 5, "yes_no": 5, "unknown": 18,
}  # fmt: skip
TALK_TAUGHT = replace(
    TALK_ONCE,
    training=replace(TALK_ONCE.training, steps=1280, autoregressive=0.25, seed=206),
    stages=_asking(_WEAK_BY_DIFFUSION),
    replies=replace(_REPLIES, uses=1, block=_OWN_REPLIES.block),
)
"""From `talk_once`, whose causal mode is right twelve points more often than its denoiser: that mode answers every
request, in one way and cheaply, and more of what the denoiser rarely answers rightly."""

_WEAKER_BY_DIFFUSION: Mapping[str, float] = {
    **_WEAK_BY_DIFFUSION, "arithmetic": 19, "degrees": 6, "continue_story": 3, "reading": 9, "list": 9, "typos": 8,
    "plural": 6, "verb_forms": 6, "yes_no": 6,
}  # fmt: skip
TALK_AGAIN = replace(
    TALK_TAUGHT,
    training=replace(
        TALK_TAUGHT.training, steps=896, learning_rate=5e-4, matrix_learning_rate=3e-3, seed=207
    ),
    generation=replace(TALK_TAUGHT.generation, t_min=0.05, t_max=0.5, confidence_threshold=0.02),
    stages=_asking(_WEAKER_BY_DIFFUSION),
)
"""From `talk_taught`, whose causal mode had become better, too: the same once more, at a lower rate. Its canvases come
to rest within eight steps where the sampler is cooler still, and content with a little less confidence."""

_PROMISED: Mapping[str, float] = {
    **_WEAKER_BY_DIFFUSION, "compare": 20, "riddle": 20, "dialogue": 28, "acrostic": 24, "unknown": 34,
}  # fmt: skip
TALK_PROMISED = _leg(TALK_AGAIN, _asking(_PROMISED), steps=1300, rates=(1e-3, 6e-3), seed=209)
"""From `talk_again`, whose honest replies promised what it had not been taught: riddles, comparisons, dialogues and
acrostics, with more requests that it cannot serve."""

_KEPT: Mapping[str, float] = {
    **_WEAKER_BY_DIFFUSION, "compare": 13, "riddle": 10, "dialogue": 20, "acrostic": 18, "unknown": 24,
}  # fmt: skip
TALK_KEPT = _leg(TALK_PROMISED, _asking(_KEPT), steps=900, rates=(7e-4, 4e-3), seed=210)
"""From `talk_promised`, whose causal mode keeps most of these promises and whose denoiser none: now it writes their
replies, too."""

_REGAINED: Mapping[str, float] = {
    **_WEAKER_BY_DIFFUSION, "compare": 14, "riddle": 12, "dialogue": 20, "unknown": 22,
}  # fmt: skip
TALK_REGAINED = _leg(TALK_KEPT, _asking(_REGAINED), steps=640, rates=(5e-4, 3e-3), seed=211)
"""From weights between `talk_again` and `talk_kept`, at a lower rate: what was forgotten for the new kinds. Acrostics,
which it did not learn, are neither asked for nor promised any more."""

_CANONICAL: Mapping[str, int] = {
    "greeting": 35, "identity": 34, "small_talk": 8, "introduce": 57, "chat": 26, "unknown": 0,
    "arithmetic": 59, "word_problem": 60, "opposite": 63, "plural": 38, "rhyme": 61, "degrees": 59, "verb_forms": 62,
    "capitals": 62, "colours": 60, "calendar": 59, "yes_no": 63, "animal_facts": 57, "thing_facts": 48, "list": 44,
    "past_tense": 63, "future_tense": 63, "as_question": 63, "negation": 62, "polite": 47, "typos": 63, "use_word": 44,
    "describe": 3, "compare": 26, "riddle": 40, "json": 63, "reading": 59,
}  # fmt: skip
"""Of 64 seeds (32 for the long kinds) one whose replies `talk_regained` finds likely, and which read well. Honest
replies have a brief one of their own, whatever the seed."""
_SETTLED: Mapping[str, float] = {
    **_REGAINED, "compare": 20, "riddle": 16, "describe": 16, "json": 7, "unknown": 26, "identity": 9,
}  # fmt: skip
TALK_SETTLED = _leg(
    TALK_REGAINED, _asking(_SETTLED, _CANONICAL), steps=1800, rates=(1e-3, 6e-3), seed=212
)
"""From `talk_regained`, whose denoiser mixes what it could say ("I cannot not know"): replies have one wording now, but
for stories, poems, dialogues and what follows up on something, which are the causal mode's still."""

_FURTHER: Mapping[str, float] = {
    **_SETTLED, "describe": 11, "compare": 14, "dialogue": 16, "riddle": 14, "json": 5, "unknown": 22,
    "continue_story": 2, "typos": 12, "reading": 12, "degrees": 8, "yes_no": 9, "follow_up": 9, "use_word": 5,
    "small_talk": 9,
}  # fmt: skip
TALK_FURTHER = _leg(
    TALK_SETTLED,
    _asking(_FURTHER, {name: seed for name, seed in _CANONICAL.items() if name != "riddle"}),
    steps=1300,
    rates=(7e-4, 4e-3),
    seed=213,
)
"""From `talk_settled`, which was still rising: the same at a lower rate, with more of what is weak. A riddle about any
animal can be about each of them, whatever the wording, so its causal mode chooses one."""

TALK_BRIEF = _leg(
    TALK_FURTHER,
    _asking({**_FURTHER, "unknown": 40}, TALK_FURTHER.stages[0].canonical),
    steps=700,
    rates=(5e-4, 3e-3),
    seed=214,
)
"""From `talk_further`, whose honest replies gave one of 27 reasons and broke where it hesitated between them: they give
one of seven now."""

JOINED = replace(
    TALK_AGAIN,
    config=replace(TALK.config, text=replace(TALK.config.text, num_experts=16)),
    training=replace(
        TALK_AGAIN.training,
        steps=3200,
        learning_rate=1.5e-3,
        matrix_learning_rate=9e-3,
        decay=1600,
        autoregressive=0.5,
        seed=208,
    ),
    stages=(
        Stage(
            until=1,
            english=0.5,
            kinds={**SHARES, **_TALK, **_WEAKER_BY_DIFFUSION, "unknown": 24},
            families=_LATE,
        ),
    ),
    beside="nano",
)
"""From `talk_again`, with nano's experts beside its own: all kinds of English, and the twelve families again.
`talk_again` answers the requests, so that little is forgotten while problems are learnt at a high rate. Tried and
stopped after 1,356 steps (36 minutes), at its full rate still: after 1,130 steps 28 % of 120 validation problems were
right by diffusion and 37 % token by token, and of 340 requests 31 and 50 %, where `talk_again` gets 69 and 76."""

RECIPES: Mapping[str, NamedRecipe] = {
    "english": ENGLISH,
    "talk": TALK,
    "talk_replies": TALK_REPLIES,
    "talk_rest": TALK_REST,
    "talk_everyday": TALK_EVERYDAY,
    "talk_once": TALK_ONCE,
    "talk_taught": TALK_TAUGHT,
    "talk_again": TALK_AGAIN,
    "talk_promised": TALK_PROMISED,
    "talk_kept": TALK_KEPT,
    "talk_regained": TALK_REGAINED,
    "talk_settled": TALK_SETTLED,
    "talk_further": TALK_FURTHER,
    "talk_brief": TALK_BRIEF,
    "joined": JOINED,
    **LEGS,
}


def named_recipe(name: str) -> NamedRecipe:
    """The recipe called `name`; RequestError lists the names if there is none."""
    if name not in RECIPES:
        names = ", ".join((*CHAINS, *RECIPES))
        raise RequestError(f"unknown recipe {name!r}: choose one of {names}")
    return RECIPES[name]
