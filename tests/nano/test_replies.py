"""Replies of the causal mode: learnt where they are right, and a function of the text's number alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest

import dgemma_core as dg
from dgemma_core.events import FinishEvent
from dgemma_core.nano import replies
from dgemma_core.nano.english import kinds
from dgemma_core.nano.named import Stage, nano_tokenizer, turn_end
from dgemma_core.nano.replies import RepliedTexts, Replies
from dgemma_core.nano.texts import StagedTexts, as_text

END = turn_end(nano_tokenizer())


def requests(english: dict[str, float], families: dict[str, float]) -> StagedTexts:
    stage = Stage(until=1, english=float(bool(english)), kinds=english, families=families)
    return StagedTexts((stage,), 1000, nano_tokenizer(), 5)


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
