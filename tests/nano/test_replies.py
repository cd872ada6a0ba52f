"""The model's own replies: learnt where they are right, and a function of the text's number alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

import dgemma_core as dg
from dgemma_core.events import FinishEvent
from dgemma_core.files.text import Tokenizer
from dgemma_core.nano import replies
from dgemma_core.nano.english import kinds
from dgemma_core.nano.named import Stage, nano_tokenizer, turn_end
from dgemma_core.nano.replies import RepliedTexts, Replies
from dgemma_core.nano.texts import StagedTexts, accepts, as_text
from dgemma_core.train.distillation import Trajectory

END = turn_end(nano_tokenizer())


def requests(
    english: dict[str, float], families: dict[str, float], tokenizer: Tokenizer | None = None
) -> StagedTexts:
    share = len(english) / (len(english) + len(families))
    stage = Stage(until=1, english=share, kinds=english, families=families)
    return StagedTexts((stage,), 1000, tokenizer or nano_tokenizer(), 5)


def test_a_right_reply_is_learnt_and_a_wrong_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = requests({"couplet": 1.0}, {})
    examples = [cast(kinds.Example, drawn.example(i)) for i in range(4)]
    tokenizer = drawn.tokenizer
    # Another couplet about the same is right; one about something else, and one that never ends, are not.
    other = next(
        e.reply
        for seed in range(10**4)
        if (e := kinds.draw("couplet", seed, "train")).slots == examples[0].slots
        and e.reply != examples[0].reply
    )
    written = [(other, "eos"), (examples[2].reply, "eos"), (examples[2].reply, "length")]
    assert not kinds.accepts(examples[1], examples[2].reply)

    def decode(model: Any, asked: Sequence[dg.Request], **_: object) -> Iterator[Any]:
        assert [request.id for request in asked] == [0, 1, 2, 3]
        for number, (text, reason) in enumerate(written):
            ids = (*tokenizer.encode(text), END)
            yield _finished(number, ids, reason)

    monkeypatch.setattr(replies, "decode_tokens", decode)
    found = RepliedTexts(cast(Any, None), Replies(), drawn).replied(range(4))
    assert tokenizer.decode(list(found[0].answer)) == other
    assert found[1:] == [as_text(example, tokenizer) for example in examples[1:]]


def test_texts_depend_on_their_number_alone() -> None:
    """A block's replies are used twice, and half of those uses begin with the model's own steps."""
    nano = dg.load("nano").model
    settings = Replies(uses=2, block=8, batch_size=8, own_steps=3)
    drawn = requests({}, {"spell_backward": 1.0})
    first, again = (RepliedTexts(nano, settings, drawn) for _ in range(2))
    numbers = [0, 9, 17, 3, 31]
    texts = [first(number) for number in numbers]
    assert texts == [again(number) for number in reversed(numbers)][::-1]
    assert first(1).answer == first(9).answer != first(2).answer
    steps = {first(number).own_steps for number in range(64)}
    assert steps == {0, 1, 2, 3}


def test_drawn_replies_stand_between_the_written_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of a request of its own, so that what a run meets once is met once."""
    settings = Replies(uses=2, drawn=1, block=4)
    drawn = requests({}, {"spell_backward": 1.0})
    asked: list[int] = []

    def replied(self: RepliedTexts, numbers: Sequence[int]) -> list[Any]:
        asked.extend(numbers)
        return [replace(drawn(number), answer=(number,)) for number in numbers]

    monkeypatch.setattr(RepliedTexts, "replied", replied)
    texts = RepliedTexts(cast(Any, None), settings, drawn)
    met = [texts(number) for number in range(24)]
    assert asked == [0, 1, 2, 3, 12, 13, 14, 15]  # two blocks of four, three examples of each
    assert [text.answer[0] for i, text in enumerate(met) if i % 3] == [
        *[0, 1, 2, 3] * 2,
        *[12, 13, 14, 15] * 2,
    ]
    others = [4, 5, 6, 7, 16, 17, 18, 19]
    assert met[::3] == [drawn(number) for number in others]


def test_the_denoiser_answers_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it writes rightly is learnt with the way there; its causal mode is asked for the rest alone."""
    talk = dg.load("nano-talk", dtype="float32")
    settings = Replies(uses=40, block=6, batch_size=6, denoising_steps=12)
    drawn = requests({"past_tense": 1.0}, {}, talk.tokenizer)
    asked: list[int] = []

    def decode(model: Any, left: Sequence[dg.Request], **_: object) -> Iterator[Any]:
        asked.extend(cast(int, request.id) for request in left)
        yield from ()

    examples = [drawn.example(i) for i in range(6)]
    refused = examples[:2]
    monkeypatch.setattr(replies, "decode_tokens", decode)
    monkeypatch.setattr(
        replies, "accepts", lambda each, text: each not in refused and accepts(each, text)
    )
    texts = RepliedTexts(talk.model, settings, drawn)
    found = texts.replied(range(6))
    solved = [i for i, each in enumerate(found) if isinstance(each, Trajectory)]
    assert len(solved) >= 3 and asked == [i for i in range(6) if i not in solved]
    assert found[:2] == [as_text(example, drawn.tokenizer) for example in examples[:2]]
    way = found[solved[0]]
    assert isinstance(way, Trajectory) and 2 <= len(way.canvases[0]) <= 12
    assert accepts(examples[solved[0]], drawn.tokenizer.decode(list(way.answer)))
    seen = [texts(solved[0] + 6 * use) for use in range(40)]
    assert {(each.prompt, each.answer) for each in seen} == {(way.prompt, way.answer)}
    on_the_way = [each for each in seen if each.snapshot is not None]
    assert 10 <= len(on_the_way) <= 30
    for each in seen:
        assert each.own_steps == (each in on_the_way)
    for each in on_the_way:
        assert each.snapshot is not None and each.snapshot.before is None
        assert each.snapshot.tokens in way.canvases[0]


def test_problems_have_one_answer_and_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = requests({"couplet": 1.0}, {"spell_backward": 1.0})
    examples = [drawn.example(i) for i in range(12)]
    english = [i for i, each in enumerate(examples) if isinstance(each, kinds.Example)]
    assert 0 < len(english) < 12
    asked: list[int] = []

    def decode(model: Any, left: Sequence[dg.Request], **_: object) -> Iterator[Any]:
        asked.extend(cast(int, request.id) for request in left)
        yield from ()

    monkeypatch.setattr(replies, "decode_tokens", decode)
    found = RepliedTexts(cast(Any, None), Replies(), drawn).replied(range(12))
    assert asked == english
    assert found == [as_text(example, drawn.tokenizer) for example in examples]


def test_canonical_replies_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(
        until=1, english=1, kinds={"couplet": 1, "past_tense": 1}, families={}, canonical={"past_tense": 0}
    )  # fmt: skip
    drawn = StagedTexts((stage,), 1000, nano_tokenizer(), 5)
    asked: list[int] = []

    def decode(model: Any, left: Sequence[dg.Request], **_: object) -> Iterator[Any]:
        asked.extend(cast(int, request.id) for request in left)
        yield from ()

    monkeypatch.setattr(replies, "decode_tokens", decode)
    RepliedTexts(cast(Any, None), Replies(), drawn).replied(range(12))
    couplets = [i for i in range(12) if drawn.example(i).family == "couplet"]
    assert asked == couplets and 0 < len(couplets) < 12


@pytest.mark.parametrize("option", ("uses", "block", "batch_size", "max_new_tokens"))
def test_bad_settings(option: str) -> None:
    with pytest.raises(dg.RequestError, match=f"replies: {option}"):
        Replies(**{option: 0})


def _finished(number: int, ids: tuple[int, ...], reason: str) -> FinishEvent:
    return FinishEvent(
        request=number,
        ids=ids,
        text=None,
        stop_reason=cast(Any, reason),
        denoising_steps=0,
        passes=1,
        canvases=0,
        seconds=0.0,
        cache=cast(Any, None),
    )
