"""A user's own data: what is read, how it is laid out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgemma_core.config import GenerationDefaults
from dgemma_core.errors import RequestError
from dgemma_core.generation import Chat
from dgemma_core.train.batches import IGNORED, Place, collate
from dgemma_core.train.data import Data, Shuffled, count, read_data, turn_end
from dgemma_core.train.texts import Text, canvas_count
from tests.core import tiny

CONFIG = tiny.config(vocab_size=tiny.tokenizer().vocab_size)
GENERATION = GenerationDefaults(eos_token_ids=(1, tiny.TURN_END))


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def read(data: Any, **options: Any) -> Data:
    return read_data(data, tiny.tokenizer(), CONFIG, GENERATION, **options)


def decoded(ids: tuple[int, ...]) -> str:
    return tiny.tokenizer().decode(ids, special=True)


def test_every_answer_of_a_chat_is_learnt_from_what_came_before() -> None:
    """The prompts are those that generation is given: of the first turn, and of a later one in a chat."""
    system = {"role": "system", "content": "Be short."}
    chat = [system, user("Sort: 3 1"), assistant("1 3"), user("And 2 0?"), assistant("0 2")]
    (texts,) = read([{"messages": chat}]).train
    assert [decoded(text.answer) for text in texts] == ["1 3", "0 2"]
    said = Chat(tiny.loaded(), system="Be short.")
    first = said.request("Sort: 3 1").ids
    assert texts[0].prompt == tuple(first)
    said.ids = (*first, *texts[0].answer, tiny.TURN_END)
    assert texts[1].prompt == tuple(said.request("And 2 0?").ids)


def test_a_prompt_and_its_completion() -> None:
    """As texts they are a chat of one turn; as messages only the completion is learnt; raw they are what they are."""
    tokenizer = tiny.tokenizer()
    (one,) = read([{"prompt": "Sort: 3 1", "completion": "1 3"}]).train
    assert one == (Text(tuple(tokenizer.chat_ids("Sort: 3 1")), tuple(tokenizer.encode("1 3"))),)
    prompt = [user("a"), assistant("b"), user("Sort: 3 1")]
    (of_messages,) = read([{"prompt": prompt, "completion": [assistant("1 3")]}]).train
    assert [decoded(text.answer) for text in of_messages] == ["1 3"]
    assert decoded(of_messages[0].prompt).count("<|turn>") == 4
    raw = read([{"prompt": "Sort: 3 1", "completion": " 1 3"}], raw=True)
    (plain,) = raw.train
    assert plain[0].prompt == tuple(tokenizer.encode("Sort: 3 1", bos=True))
    assert raw.end == 1 and read([{"messages": [user("a"), assistant("b")]}]).end == tiny.TURN_END


def test_the_token_that_ends_a_turn() -> None:
    tokenizer = tiny.tokenizer()
    assert turn_end(tokenizer, GENERATION) == tiny.TURN_END
    assert turn_end(tokenizer, GenerationDefaults(eos_token_ids=(7,))) == 7, "no end of a text"


def test_files(tmp_path: Path) -> None:
    """JSON Lines, and what `datasets` saves, give the same texts; blank lines and other fields are passed over."""
    from datasets import Dataset, DatasetDict

    rows = [{"messages": [user(f"Sort: {i} 1"), assistant(f"1 {i}")], "id": i} for i in range(2, 9)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n\n".join(json.dumps(row) for row in rows))
    found = read(file)
    assert found.passed_over == ("id",) and len(found.train) == 7 and found.validation == ()
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == found == read(rows)
    splits = {"train": Dataset.from_list(rows[:5]), "validation": Dataset.from_list(rows[5:])}
    DatasetDict(splits).save_to_disk(tmp_path / "splits")
    split = read(tmp_path / "splits")
    assert split.train == found.train[:5] and split.validation == found.train[5:]
    by_file = read(file, validation=tmp_path / "saved")
    assert by_file.validation == found.train == by_file.train
    assert found.digest() == read(rows).digest() != split.digest()


def test_saved_splits_may_be_empty_or_of_numpy(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"messages": [user(f"Sort: {i} 1"), assistant(f"1 {i}")]} for i in range(2, 9)]
    full, empty = Dataset.from_list(rows), Dataset.from_list(rows).select([])
    DatasetDict({"train": full, "validation": empty}).save_to_disk(tmp_path / "a")
    assert read(tmp_path / "a") == read(rows)
    DatasetDict({"train": empty, "validation": full}).save_to_disk(tmp_path / "b")
    with pytest.raises(RequestError, match="b holds no records to learn from"):
        read(tmp_path / "b")
    of_numpy = full.with_format("numpy")
    of_numpy.save_to_disk(tmp_path / "c")
    assert read(tmp_path / "c") == read(of_numpy) == read(rows)


def test_records_as_validation() -> None:
    rows = [{"prompt": str(i), "completion": "1"} for i in range(9)]
    found = read(rows[:6], validation=rows[6:])
    assert (len(found.train), len(found.validation)) == (6, 3)
    for wrong in (3, {"train": rows}):
        with pytest.raises(RequestError, match="are files, folders or lists of records"):
            read(wrong)
    with pytest.raises(RequestError, match="record 2: expected a JSON object, found 'a'"):
        read([rows[0], "a"])


def test_later_prompts_are_what_a_chat_holds() -> None:
    """Earlier answers stay as they were written: thoughts and outer white space, too."""
    thought = "<|channel>thought\nhm<channel|> 1 3 \n"
    (texts,) = read(
        [{"messages": [user("a"), assistant(thought), user(" b "), assistant("4")]}]
    ).train
    chat = Chat(tiny.loaded())
    first = chat.request("a").ids
    chat.ids = (*first, *tiny.tokenizer().encode(thought), tiny.TURN_END)
    assert texts[1].prompt == tuple(chat.request(" b ").ids)


def test_weights_of_messages() -> None:
    """0: not learnt, but read; 1: learnt. What else messages hold is named."""
    said = [user("a"), {**assistant("1"), "weight": 0}, user("b"), {**assistant("2"), "weight": 1}]
    found = read([{"messages": said}, {"messages": [user("c"), {**assistant("3"), "weight": 0}]}])
    ((text,),) = found.train
    assert decoded(text.answer) == "2" and "1" in decoded(text.prompt) and not found.passed_over
    more = [{**user("a"), "name": "me"}, {**assistant("1"), "thinking": "hm", "extra": None}]
    assert read([{"messages": more}]).passed_over == ("messages[].name", "messages[].thinking")
    with pytest.raises(RequestError, match="no answers to learn: all have weight 0"):
        read([{"messages": [user("c"), {**assistant("3"), "weight": 0}]}])
    with pytest.raises(RequestError, match=r"message 2 has weight 0.5: give 0 \(not learnt\) or 1"):
        read([{"messages": [user("c"), {**assistant("3"), "weight": 0.5}]}])


def test_every_bad_record_is_named(tmp_path: Path) -> None:
    lines = {
        '{"prompt": 1, "completion": "a"}': "prompt and completion are two texts",
        '{"x"': "no JSON",
        "[1]": r"expected a JSON object, found \[1\]",
        '{"messages": []}': "at least one",
        json.dumps({"messages": [user("a")]}): "ends without an answer",
        json.dumps({"messages": [{"role": "tool", "content": "a"}]}): "roles are system",
        json.dumps({"messages": [user("a"), user("b"), assistant("c")]}): "take turns",
        json.dumps({"messages": [user("a"), {"role": "assistant"}]}): "role and content",
        json.dumps({"messages": [user("a"), assistant("b")], "prompt": "c"}): "give one form",
        json.dumps({"prompt": "a", "completion": "b<turn|>"}): r"holds <turn\|>, which ends it",
        json.dumps({"prompt": "a", "completion": ""}): "the answer is empty",
        json.dumps({"prompt": "a"}): "expected messages, or prompt and completion",
        json.dumps({"prompt": [user("a")], "completion": []}): "ends without an answer",
        json.dumps({"prompt": "a", "completion": "b " * 600}): "the model holds 504",
    }
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(RequestError) as caught:
        read(file)
    message = str(caught.value)
    assert message.startswith(f"{len(lines)} of {len(lines)} records cannot be learnt from")
    assert "\n" not in message
    for number, reason in enumerate(lines.values(), start=1):
        with pytest.raises(RequestError, match=f"bad.jsonl, line {number}: [^;]*{reason}"):
            raise caught.value
    file.write_text("\n".join([*lines] * 2))
    with pytest.raises(RequestError, match=r"and 8 more$"):
        read(file)


@pytest.mark.parametrize("place", ["absent.jsonl", "empty.jsonl", "folder"])
def test_no_data(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError, match=r"found none|no records|save_to_disk"):
        read(tmp_path / place)


def test_a_length_that_is_asked_for() -> None:
    """Answers are cut after whole canvases, counted, and learn no end; prompts are never cut."""
    long, short = "1 " * 30, "1"
    rows = [{"prompt": "a", "completion": long}, {"prompt": "a", "completion": short}]
    found = read(rows, max_length=24, validation=0.0)
    (cut,), (whole,) = found.train
    assert len(cut.prompt) + len(cut.answer) <= 24 and len(cut.answer) % 8 == 0 and not cut.whole
    assert whole.whole and canvas_count(cut, 8) == len(cut.answer) // 8
    counted = count(found.train, 8)
    assert (counted.texts, counted.truncated) == (2, 1)
    assert counted.canvases == len(cut.answer) // 8 + 1
    assert counted.answer_tokens == len(cut.answer) + len(whole.answer) + 1
    assert counted.prompt_tokens == len(cut.prompt) + len(whole.prompt)
    batch = collate([cut, whole], found.end, [[Place(0, 8)], [Place(0, 8)]])
    last = len(cut.prompt) + len(cut.answer) - 1
    assert batch.targets[0, last - 1] == cut.answer[-1] and batch.targets[0, last] == IGNORED
    ends = len(whole.prompt) + len(whole.answer) - 1
    assert batch.targets[1, ends] == found.end
    with pytest.raises(RequestError, match="leaves no canvas within max_length 12"):
        read([{"prompt": "a " * 9, "completion": long}], max_length=12)
    with pytest.raises(RequestError, match="max_length: expected 2 … 504"):
        read(rows, max_length=505)


def test_what_is_held_out() -> None:
    """A twentieth of 20 or more, whole conversations, the same by seed; or a share; or none."""
    rows = [
        {"messages": [user(str(i)), assistant("1"), user("2"), assistant("3")]} for i in range(60)
    ]
    found = read(rows)
    assert (len(found.train), len(found.validation)) == (57, 3)
    assert all(len(texts) == 2 for texts in found.validation)
    assert not set(found.train) & set(found.validation)
    assert read(rows) == found != read(rows, seed=1)
    assert len(read(rows, validation=0.5).validation) == 30
    assert not read(rows[:19]).validation and not read(rows, validation=0.0).validation
    with pytest.raises(RequestError, match="share from 0 to below 1"):
        read(rows, validation=1.0)


def test_every_epoch_has_an_order_of_its_own() -> None:
    texts = [(Text((i,), (i,)), Text((i, i), (i,))) for i in range(5)]
    drawn = Shuffled(texts, seed=3)
    epochs = [[drawn(10 * epoch + i) for i in range(10)] for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(sorted(epoch, key=str) == sorted(epochs[0], key=str) for epoch in epochs)
    again = Shuffled(texts, seed=3)
    assert [again(i) for i in (25, 3, 14)] == [epochs[2][5], epochs[0][3], epochs[1][4]]
