"""From prompts to texts: settings, the two ways to drain a loop, chats over one prefix cache."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dgemma_core.cache import RowCache
from dgemma_core.errors import RequestError
from dgemma_core.events import CanvasEvent, Event, FinishEvent, PromptEvent, StepEvent, TokenEvent
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.generation import Chat, Generation, drain, generate, prompt_ids
from dgemma_core.generation.settings import MODES, AutoregressiveSettings, ModeSettings, Settings
from dgemma_core.observe import Observe
from dgemma_core.request import Request
from dgemma_core.samplers import BlockRefinement, EntropyBound, StopRule
from tests.core import tiny

EOS, TURN_END, THOUGHT, THOUGHT_END = 1, tiny.TURN_END, 6, 7
SILENCE = [0] * 16  # after a script, so that its canvases are sure of themselves


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    """A random model over nano's vocabulary."""
    return tiny.loaded()


def words(text: str) -> list[int]:
    return tiny.tokenizer().encode(text)


def says(answer: list[int], prompt: str | None = None, **defaults: Any) -> Loaded:
    """A model that answers `prompt` (as a chat; None: two tokens of any kind) so."""
    length = 2 if prompt is None else len(tiny.tokenizer().chat_ids(prompt))
    return tiny.loaded(tiny.Scripted([*answer, *SILENCE], prompt=length), **defaults)


# --- one text


def test_a_generation_tells_its_text_and_its_costs() -> None:
    answer = [*words("HELLO you there again"), TURN_END]
    count = len(answer)
    assert 8 < count <= 16, "two canvases"
    (one,) = generate(says(answer, "hi"), "hi", seed=3)
    assert (one.text, one.thought, one.ids) == ("HELLO you there again", "", tuple(answer))
    assert (one.kept_tokens, one.canvases, one.denoising_steps, one.passes) == (count, 2, 4, 6)
    assert (one.stop_reason, one.seed) == ("eos", 3)
    assert one.prompt_tokens == len(tiny.tokenizer().chat_ids("hi"))
    assert one.tokens_per_forward == count / 4 and one.tokens_per_pass == count / 6
    assert len(one.token_probabilities) == len(one.token_entropies) == count
    assert all(p == pytest.approx(1) for p in one.token_probabilities)
    assert all(e == pytest.approx(0, abs=1e-5) for e in one.token_entropies)
    (spelled,) = generate(says(answer, "hi"), "hi", mode="autoregressive")
    assert (spelled.text, spelled.ids) == (one.text, one.ids)
    assert (spelled.passes, spelled.denoising_steps, spelled.canvases) == (count, 0, 0)
    assert spelled.tokens_per_forward == spelled.tokens_per_pass == 1.0
    assert spelled.seconds > 0


def test_the_empty_answer() -> None:
    for mode in MODES:
        (one,) = generate(says([TURN_END]), [3, 4], mode=mode)
        assert (one.text, one.kept_tokens, one.ids) == ("", 1, (TURN_END,))


@pytest.mark.parametrize("mode", MODES)
def test_probabilities_are_those_at_commit(loaded: Loaded, mode: Any) -> None:
    heard: list[Event] = []
    options = {"temperature": 0.9} if mode == "autoregressive" else {}
    (one,) = generate(loaded, [3, 4], mode=mode, max_new_tokens=11, listen=heard.append, **options)
    if mode == "diffusion":
        canvases = [event for event in heard if isinstance(event, CanvasEvent)]
        probabilities = torch.cat([c.probability[: c.kept] for c in canvases]).tolist()
        entropies = torch.cat([c.entropy[: c.kept] for c in canvases]).tolist()
    else:
        tokens = [event for event in heard if isinstance(event, TokenEvent)]
        probabilities = [event.probability for event in tokens]
        entropies = [event.entropy for event in tokens]
    assert one.token_probabilities == tuple(probabilities) and len(probabilities) == 11
    assert one.token_entropies == tuple(entropies)
    assert isinstance(heard[0], PromptEvent) and isinstance(heard[-1], FinishEvent)


@pytest.mark.parametrize("mode", MODES)
def test_stop_strings(mode: Any) -> None:
    answer = words("A B backward C D E F G H I")
    for stop, text, kept in (
        ((" C",), "A B backward", 3),
        (("war",), "A B back", 2),
        ("war", "A B back", 2),  # one string is no sequence of letters
        (("F G",), "A B backward C D E ", 6),
    ):
        (one,) = generate(says(answer), [3, 4], stop=stop, mode=mode)
        assert (one.text, one.kept_tokens, one.stop_reason) == (text, kept, "stop")
        assert len(one.token_probabilities) == len(one.token_entropies) == kept


# --- thoughts


THOUGHTS = {
    "a thought": ([THOUGHT, *words("thought\nhm"), THOUGHT_END], "hm"),
    "an empty thought": ([THOUGHT, *words("thought\n"), THOUGHT_END], ""),
    "no thought": ([], ""),
    "a thought that the prompt opened": ([*words("hm"), THOUGHT_END], "hm"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("start", "thought"), THOUGHTS.values(), ids=THOUGHTS)
def test_thoughts_are_stripped(start: list[int], thought: str, mode: Any) -> None:
    for end, options, text in (
        ([TURN_END], {}, " A B backward C"),
        ([], {"stop": (" C",)}, " A B backward"),
        ([], {"stop": ("war",)}, " A B back"),
    ):
        answer = [*start, *words(" A B backward C"), *end]
        limit = len(answer)
        (one,) = generate(says(answer), [3, 4], mode=mode, max_new_tokens=limit, **options)
        assert (one.text, one.thought) == (text, thought)


def test_a_thought_cut_off_is_no_text() -> None:
    answer = [THOUGHT, *words("thought\n A B backward C")]
    for options in ({"max_new_tokens": 6}, {"stop": (" backward",)}, {"stop": ("war",)}):
        (one,) = generate(says(answer), [3, 4], **options)
        assert (one.text, one.thought) == ("", "A B" if "stop" in options else "A B backward")


# --- several texts


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_prompts_in_order_whatever_the_batch(loaded: Loaded, mode: Any) -> None:
    """Prompt number i uses seed + i; answers come in the prompts' order."""
    prompts = [
        "Sort: 3 1",
        "hi",
        "Spell backward:\nSTEP",
        [3, 4, 5],
        [{"role": "user", "content": "a"}],
    ]
    # ends of differing length: each model token may end a text
    options: dict[str, Any] = {"mode": mode, "max_new_tokens": 12, "seed": 5}
    if mode == "autoregressive":
        options["temperature"] = 1.0
    many = tiny.loaded(loaded.model, eos_token_ids=tuple(range(1, 1024, 9)))
    expected = [
        generate(many, prompt, **{**options, "seed": 5 + i})[0] for i, prompt in enumerate(prompts)
    ]
    assert len({one.kept_tokens for one in expected}) > 1
    for batch_size in (1, 2, None):
        together = generate(many, prompts, batch_size=batch_size, **options)
        assert [one.ids for one in together] == [one.ids for one in expected]
        assert [one.seed for one in together] == [5, 6, 7, 8, 9]
        assert [one.prompt_tokens for one in together] == [
            len(prompt_ids(many, p)) for p in prompts
        ]


def test_one_prompt_may_stand_alone(loaded: Loaded) -> None:
    chat = [{"role": "user", "content": "hi"}]
    options = {"max_new_tokens": 8, "steps": 2}
    alone = [
        generate(loaded, prompt, **options) for prompt in ("hi", chat, prompt_ids(loaded, "hi"))
    ]
    assert [len(texts) for texts in alone] == [1, 1, 1]
    assert len({texts[0].ids for texts in alone}) == 1


def test_drain_yields_each_text_as_it_ends(loaded: Loaded) -> None:
    requests = [Request((3, 4), max_new_tokens=length, id=length) for length in (16, 8)]
    settings = Settings(steps=2, stop_rule=None)
    events = settings.events(loaded, requests, batch_size=2)
    texts = drain(events, loaded)
    first = next(texts)
    assert isinstance(first, Generation) and first.kept_tokens == 8
    assert isinstance(next(events), PromptEvent | StepEvent), "the other one is under way"
    assert next(texts).kept_tokens == 16


def test_observers_and_pins_reach_the_loop(loaded: Loaded) -> None:
    heard: list[Event] = []
    options = {"observe": Observe(top_k=2), "pins": {1: 300}, "max_new_tokens": 8, "steps": 2}
    (one,) = generate(loaded, "hi", listen=heard.append, **options)
    assert one.ids[1] == 300
    steps = [event for event in heard if isinstance(event, StepEvent)]
    assert all(step.observed.top_ids.shape == (8, 2) for step in steps) and len(steps) == 2


# --- settings


def test_settings_left_open_are_the_checkpoints() -> None:
    defaults = {
        "max_new_tokens": 24, "max_denoising_steps": 5, "entropy_bound": 0.3, "t_min": 0.2,
        "t_max": 0.9, "stability_threshold": 2, "confidence_threshold": 0.07,
    }  # fmt: skip
    loaded = tiny.loaded(**defaults)
    settings = Settings().resolved(loaded)
    assert settings.sampler == EntropyBound(entropy_bound=0.3, t_min=0.2, t_max=0.9)
    assert settings.stop_rule == StopRule(stability=2, confidence=0.07)
    assert (settings.steps, settings.max_new_tokens) == (5, 24)
    assert settings.resolved(loaded) == settings
    given = Settings(sampler=BlockRefinement(), steps=3, stop_rule=None, max_new_tokens=7)
    assert given.resolved(loaded) == given
    spelled = Settings("autoregressive").resolved(loaded)
    assert spelled == AutoregressiveSettings(temperature=0.0, max_new_tokens=24)
    heard: list[Event] = []
    generate(loaded, [3, 4], listen=heard.append, max_new_tokens=8)
    step = next(event for event in heard if isinstance(event, StepEvent))
    assert step.steps == 5 and step.temperature == pytest.approx(0.9)
    assert step.state.history.shape[0] == 2
    (one,) = generate(says([9, 77, 12], eos_token_ids=(77,)), [3, 4])
    assert one.ids == (9, 77), "the generation config's ends, not the model's"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "parallel"}, "choose one of diffusion, autoregressive"),
        ({"temperature": 0.5}, "temperature has no meaning in mode 'diffusion'.*sampler"),
        ({"temperature": 0.0}, "temperature has no meaning"),
        ({"mode": "autoregressive", "sampler": EntropyBound()}, "sampler has no meaning"),
        ({"mode": "autoregressive", "steps": 3}, "steps has no meaning"),
        ({"mode": "autoregressive", "stop_rule": StopRule()}, "stop_rule has no meaning"),
        ({"mode": "autoregressive", "stop_rule": None}, "stop_rule has no meaning"),
        ({"mode": "autoregressive", "soft_top_k": 8}, "soft_top_k has no meaning"),
        ({"soft_top_k": 0}, "soft_top_k must be at least 1"),
        ({"soft_top_k": 10**6}, "soft_top_k must be at least 1 and at most"),
        (
            {"mode": "autoregressive", "temperature": -1.0},
            "temperature must be a finite number of at least 0",
        ),
        ({"mode": "autoregressive", "pins": {0: 3}}, "pins have no meaning"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": -2}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed"),
        ({"stop": ("",)}, "empty stop string"),
        ({"pins": {99: 3}}, "position 99"),
        ({"seed": None}, "seed must be a whole number"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": 2**64}, "seed must be at least 0 and at most"),
        ({"pins": [3]}, "pins must map"),
        ({"stop": 5}, "stop must be strings"),
        ({"batch_size": 1.5}, "batch_size must be a whole number"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"mode": "autoregressive", "temperature": float("inf")}, "temperature must be a finite"),
        ({"mode": "autoregressive", "top_k": 2}, "no effect at temperature 0"),
        ({"nonsense": 2}, "unknown option nonsense"),
    ],
)
def test_meaningless_settings(loaded: Loaded, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        generate(loaded, [3, 4], **settings)


def test_self_conditioning_on_a_few_tokens(loaded: Loaded) -> None:
    """Of all tokens it is the ordinary one; of the first alone it is that token's embedding, at every step."""
    size, states = loaded.model.config.text.vocab_size, []

    def heard(event: Event) -> None:
        if isinstance(event, StepEvent) and event.state.soft_embedding is not None:
            states.append(event.state)

    (plain,) = generate(loaded, [3, 4], max_new_tokens=8)
    (every,) = generate(loaded, [3, 4], max_new_tokens=8, soft_top_k=size)
    assert every.ids == plain.ids
    generate(loaded, [3, 4], max_new_tokens=8, soft_top_k=1, listen=heard)
    assert states
    for state in states:
        torch.testing.assert_close(state.soft_embedding, loaded.model.embed(state.argmax))


def test_values_of_numpy_and_none_serve_where_they_do_no_harm(loaded: Loaded) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "steps": 2}
    (plain,) = generate(loaded, [3, 4], seed=5, **options)
    for prompt in ([np.int64(3), np.int64(4)], np.array([3, 4]), torch.tensor([3, 4]), (3, 4)):
        (one,) = generate(
            loaded, prompt, seed=np.int64(5), stop=None, pins=None, batch_size=np.int64(1),
            max_new_tokens=np.int64(8), steps=np.int32(2),
        )  # fmt: skip
        assert one.ids == plain.ids and type(one.seed) is int


def test_filters_reach_autoregression(loaded: Loaded) -> None:
    """top_k=1 and a tiny top_p leave the most probable token alone; wide ones change nothing."""
    options: dict[str, Any] = {"mode": "autoregressive", "max_new_tokens": 12}
    (greedy,) = generate(loaded, [3, 4], **options)
    (free,) = generate(loaded, [3, 4], temperature=1.0, **options)
    assert free.ids != greedy.ids
    for filters in ({"top_k": 1}, {"top_p": 1e-9}, {"top_k": 3, "top_p": 1e-9}):
        (one,) = generate(loaded, [3, 4], temperature=1.0, **filters, **options)
        assert one.ids == greedy.ids
    (wide,) = generate(loaded, [3, 4], temperature=1.0, top_k=1024, **options)
    assert wide.ids == free.ids


# --- caches


def caches() -> int:
    """Prefix caches that live at this moment."""
    gc.collect()
    return sum(type(found) is RowCache for found in gc.get_objects())


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_result_keeps_its_cache_only_if_asked(loaded: Loaded, mode: Any) -> None:
    before = caches()
    prompts, options = [[3, 4]] * 6, {"mode": mode, "max_new_tokens": 8}
    results = generate(loaded, prompts, **options)
    assert len(results) == 6 and all(one.cache is None for one in results)
    assert caches() == before
    kept = generate(loaded, prompts, keep_cache=True, **options)
    assert caches() == before + 6
    for one in kept:
        assert one.cache is not None and one.cache.lengths[0] >= 2
    assert [one.ids for one in kept] == [one.ids for one in results]


@pytest.mark.slow
def test_only_a_chat_keeps_the_cache_of_what_it_said(loaded: Loaded) -> None:
    before = caches()
    chat = Chat(loaded, Settings(steps=2, max_new_tokens=8))
    said = [chat.say("hi"), chat.say("again")]
    assert all(one.cache is None for one in said) and chat.cache is not None
    assert caches() == before + 1


# --- prompts


def test_prompt_ids(loaded: Loaded) -> None:
    tokenizer = tiny.tokenizer()
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}]
    assert prompt_ids(loaded, "hi", system="Be short.") == tokenizer.chat_ids(chat)
    assert prompt_ids(loaded, chat) == tokenizer.chat_ids(chat)
    assert prompt_ids(loaded, "hi", thinking=True) == tokenizer.chat_ids("hi", thinking=True)
    assert prompt_ids(loaded, "hi", raw=True) == tokenizer.encode("hi", bos=True)
    assert prompt_ids(loaded, (5, 6)) == [5, 6]


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([], {}, "no prompts"),
        ([3, 4], {"system": "x"}, "token ids has none"),
        ([3, 4], {"thinking": True}, "token ids has none"),
        ("hi", {"raw": True, "system": "x"}, "raw prompt is one text"),
        ("hi", {"raw": True, "thinking": True}, "raw prompt is one text"),
        ([{"role": "user", "content": "hi"}], {"raw": True}, "raw prompt is one text"),
        ([{"role": "assistant", "content": "hi"}], {}, "ends with the user's message"),
        ("<|image|> what is it?", {}, "image"),
        ([[3, 4], []], {}, "prompt is empty"),
        (5, {}, "prompts must be a text"),
        ([[3, 4], 5], {}, "prompt must be a text, a chat, or token ids"),
        (None, {}, "prompts must be a text"),
        ([3, 4.5], {}, "must be token ids"),
        ([3, "a"], {}, "must be token ids"),
    ],
)
def test_bad_prompts(loaded: Loaded, prompt: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        generate(loaded, prompt, **options)


def test_without_a_tokenizer_ids_go_in_and_out(loaded: Loaded) -> None:
    bare = replace(loaded, tokenizer=None)
    (one,) = generate(bare, [3, 4], max_new_tokens=8, steps=2)
    (same,) = generate(loaded, [3, 4], max_new_tokens=8, steps=2)
    assert one.ids == same.ids and one.text == ""
    for prompt, options, wanted in (
        ("hi", {}, "has no tokenizer: give the prompt as token ids"),
        ([3, 4], {"stop": ("x",)}, "stop strings need a tokenizer"),
    ):
        with pytest.raises(RequestError, match=wanted):
            generate(bare, prompt, **options)
    with pytest.raises(RequestError, match="a chat needs one"):
        Chat(bare)


# --- chats


class Heard:
    """A model's `encode`, which notes what it is given."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[int]] = []
        encode = model.encode

        def heard(ids: Any, *rest: Any, **options: Any) -> Any:
            self.rows += [list(map(int, row)) for row in ids]
            return encode(ids, *rest, **options)

        monkeypatch.setattr(model, "encode", heard)

    def take(self) -> list[int]:
        tokens = [token for row in self.rows for token in row]
        self.rows.clear()
        return tokens


@pytest.mark.parametrize(
    "settings", [Settings(steps=3), Settings("autoregressive", temperature=1.0)]
)
def test_a_chat_encodes_every_token_once(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, settings: ModeSettings
) -> None:
    """Over three turns; and every answer is that to the whole conversation, encoded at once."""
    chat = Chat(loaded, replace(settings, max_new_tokens=12), system="Be short.")
    heard = Heard(loaded.model, monkeypatch)
    encoded: list[int] = []
    for turn, message in enumerate(("hi", "Sort: 3 1 2", "again")):
        before = chat.ids
        request = chat.request(message, seed=turn)
        assert tuple(request.ids[: len(before)]) == before
        answer = chat.say(message, seed=turn)
        new = heard.take()
        encoded += new
        assert chat.ids == (*request.ids, *answer.ids)
        assert chat.cache is not None and chat.cache.lengths == [len(encoded)]
        assert tuple(encoded) == chat.ids[: len(encoded)], "in order, none twice"
        assert len(chat.ids) - len(encoded) <= 8, "all but the last canvas"
        whole = Request(request.ids, seed=turn, max_new_tokens=12)
        (afresh,) = drain(chat.settings.events(loaded, [whole]), loaded)
        assert heard.take()[: len(request.ids)] == list(request.ids)
        assert afresh.ids == answer.ids
        torch.testing.assert_close(
            torch.tensor(afresh.token_entropies),
            torch.tensor(answer.token_entropies),
            rtol=1e-3,
            atol=1e-3,
        )


def test_the_first_turn_is_generates(loaded: Loaded) -> None:
    chat = Chat(loaded, Settings(steps=2, max_new_tokens=8), system="Be short.", thinking=True)
    said = chat.say("hi", seed=4)
    options = {"steps": 2, "max_new_tokens": 8, "system": "Be short.", "thinking": True}
    assert said == replace(generate(loaded, "hi", seed=4, **options)[0], seconds=said.seconds)


@pytest.mark.parametrize("mode", MODES)
def test_a_chat_goes_on_after_a_stop_string(loaded: Loaded, mode: Any) -> None:
    """The string is cut from the conversation, though some of its tokens have been encoded."""
    settings = Settings(mode, max_new_tokens=16)
    ids = Chat(loaded, settings).say("hi").ids
    stop = tiny.tokenizer().decode(ids[5:11])
    chat = Chat(loaded, settings)
    cut = chat.say("hi", stop=stop)
    assert cut.stop_reason == "stop" and cut.kept_tokens <= 5
    assert chat.cache is None, "more was encoded than is left of the conversation"
    request = chat.request("again")
    assert tuple(request.ids[: len(chat.ids)]) == chat.ids
    (afresh,) = drain(chat.settings.events(loaded, [replace(request, prefix=None)]), loaded)
    assert chat.say("again").ids == afresh.ids
