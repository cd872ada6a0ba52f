"""A user's own data: chats, or prompts with completions, checked line by line and turned into training texts.

Notable:
- a record has `messages`, or `prompt` and `completion` (texts, or lists of messages), as TRL's users have them; other
  fields are passed over, and named;
- every turn of the model that is to be learnt becomes a text of its own: what came before it, token by token as a
  `Chat` holds it when that turn is asked for (earlier answers as they were written, thoughts and white space too), and
  the answer, which generation would lay out on canvases from there on. A message of weight 0 is not learnt;
- nothing is cut in silence: what is too long is refused, or cut after whole canvases where a length is asked for, and
  counted. An answer that was cut never learns an end;
- all records are looked at before the first step, and all bad ones are named, with line and reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from dgemma_core.errors import DgemmaError, RequestError, shown, whole_number
from dgemma_core.train.texts import Text, canvas_count

if TYPE_CHECKING:
    from dgemma_core.config import GenerationDefaults, ModelConfig
    from dgemma_core.files.text import Tokenizer

FIELDS = ("messages", "prompt", "completion")
KEYS = ("role", "content", "weight", "tool_calls")
"""Of a message, those that are read."""
NAMED = 20
"""Bad records that an error names; it counts the rest."""
LEAST = 20
"""Conversations below which none is held out unless asked for."""
HELD_OUT, MOST_HELD_OUT = 0.05, 500
Source = str | Path | Iterable[Mapping[str, Any]]
"""A JSON Lines file, a folder that `datasets` saved, or records, also of a Dataset."""
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Record:
    """One record of a file."""

    where: str
    """As errors name it: "data.jsonl, line 3"."""
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Counts:
    """What a set of conversations holds, exactly."""

    conversations: int = 0
    texts: int = 0
    """Turns that are learnt."""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    """Their ends included."""
    canvases: int = 0
    truncated: int = 0
    """Answers that were cut to the length asked for."""
    longest: int = 0
    """Tokens of the longest prompt with its answer."""


@dataclass(frozen=True)
class Data:
    """Checked training texts, those of a conversation together."""

    train: tuple[tuple[Text, ...], ...]
    validation: tuple[tuple[Text, ...], ...]
    end: int
    """The token that ends an answer, and fills its last canvas."""
    passed_over: tuple[str, ...] = field(default=())
    """Fields of the records that are not read."""

    def digest(self) -> str:
        """Of all token ids; a run goes on with the same data only."""
        summed = hashlib.sha256()
        for part in (self.train, self.validation):
            for text in (text for texts in part for text in texts):
                summed.update(repr((text.prompt, text.answer, text.whole, self.end)).encode())
            summed.update(b"|")
        return summed.hexdigest()[:32]


def read_data(
    data: Source,
    tokenizer: Tokenizer,
    config: ModelConfig,
    generation: GenerationDefaults,
    *,
    validation: Source | float | None = None,
    max_length: int | None = None,
    raw: bool = False,
    seed: int = 0,
) -> Data:
    """Texts of a JSON Lines file, a folder that `datasets` saved, or records.

    validation: other data, or the share of conversations that is held out (None: a twentieth, at most 500, of 20
    or more). max_length: tokens of a prompt with its answer; longer answers are cut (None: none is, and what the model
    cannot hold is refused). raw: texts as they are, without the chat template. Raises RequestError, which names all bad
    records, or says that there are none to learn from.
    """
    records = _records(data)
    held: list[Record] | None = None
    if validation is None and isinstance(data, str | Path):
        held = _held_out_by_author(data)
    elif not (validation is None or isinstance(validation, int | float)):
        held = _records(validation)
    limit = config.text.max_position_embeddings - config.canvas_length
    if max_length is not None and whole_number("max_length", max_length, low=2) > limit:
        raise RequestError(f"max_length: expected 2 … {limit:,} tokens, got {max_length}")
    reader = _Reader(
        tokenizer,
        _raw_end(generation) if raw else turn_end(tokenizer, generation),
        frozenset(generation.eos_token_ids),
        config.canvas_length,
        limit if max_length is None else max_length,
        max_length is not None,
        raw,
    )
    problems: list[str] = []
    texts, of_held = (list(reader.texts(part, problems)) for part in (records, held or ()))
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise RequestError(
            f"{len(problems)} of {len(records) + len(held or ())} records cannot be learnt from: correct or remove"
            " them: " + "; ".join(problems[:NAMED]) + more
        )
    if held is None:
        assert validation is None or isinstance(validation, int | float)
        texts, of_held = _split(texts, validation, seed)
    if not any(texts):
        unlearnt = "no answers to learn: all have weight 0" if texts else "no records to learn from"
        raise RequestError(f"{_named(data)} holds {unlearnt}")
    others = sorted({key for record in records for key in _passed_over(record.fields)})
    return Data(tuple(filter(None, texts)), tuple(filter(None, of_held)), reader.end, tuple(others))


def count(texts: Sequence[Sequence[Text]], canvas_length: int) -> Counts:
    """What conversations hold."""
    every = [text for of_one in texts for text in of_one]
    return Counts(
        conversations=len(texts),
        texts=len(every),
        prompt_tokens=sum(len(text.prompt) for text in every),
        answer_tokens=sum(len(text.answer) + text.whole for text in every),
        canvases=sum(canvas_count(text, canvas_length) for text in every),
        truncated=sum(not text.whole for text in every),
        longest=max((len(text.prompt) + len(text.answer) for text in every), default=0),
    )


def turn_end(tokenizer: Tokenizer, generation: GenerationDefaults) -> int:
    """The token by which the chat template ends the model's turn, where a text ends there; else the checkpoint's
    EOS."""
    if tokenizer.template is not None:
        said = [{"role": "user", "content": "."}, {"role": "assistant", "content": _MARK}]
        _, mark, after = tokenizer.render(said).partition(_MARK)
        following = tokenizer.encode(after) if mark else []
        if following and following[0] in generation.eos_token_ids:
            return following[0]
    return _raw_end(generation)


def _raw_end(generation: GenerationDefaults) -> int:
    return generation.eos_token_ids[0]


class Shuffled:
    """Text number i of a run: all texts in an order of their own in every epoch."""

    def __init__(self, texts: Sequence[Sequence[Text]], seed: int) -> None:
        self.texts = [text for of_one in texts for text in of_one]
        self.seed = seed
        self.epoch, self.order = -1, list(range(len(self.texts)))

    def __call__(self, index: int) -> Text:
        epoch, place = divmod(index, len(self.texts))
        if epoch != self.epoch:
            order = list(range(len(self.texts)))
            Random(f"epoch {self.seed} {epoch}").shuffle(order)
            self.epoch, self.order = epoch, order
        return self.texts[self.order[place]]


# --- files


def _named(data: object) -> str:
    return str(data) if isinstance(data, str | Path) else "data"


def _passed_over(fields: Mapping[str, Any]) -> Iterator[str]:
    """Names of what a record holds that is not read, within its messages, too."""
    yield from fields.keys() - set(FIELDS)
    for name in FIELDS:
        messages = fields.get(name)
        for message in messages if isinstance(messages, list | tuple) else ():
            unread = message.keys() - set(KEYS)  # Arrow fills in None where another message has one
            yield from (f"{name}[].{key}" for key in unread if message[key] is not None)


def _records(data: Source) -> list[Record]:
    if not isinstance(data, str | Path):
        if isinstance(data, Mapping) or not isinstance(data, Iterable):
            raise RequestError(
                f"data and validation are files, folders or lists of records, got {shown(data)}"
            )
        found = enumerate(_plain(data), start=1)
        return [Record(f"record {number}", _object(fields)) for number, fields in found]
    path = Path(data).expanduser()
    if path.is_dir():
        return list(_rows(path, "train"))
    if not path.is_file():
        raise RequestError(
            f"{path}: expected a JSON Lines file or a folder of `datasets`, found none"
        )
    return list(_lines(path))


def _object(found: Any) -> Mapping[str, Any]:
    """The fields of a record; of what is none, it under no name."""
    return found if isinstance(found, Mapping) else {"": found}


def _plain(data: Any) -> Any:
    """Records as lists and dicts, in whatever format a Dataset gives them."""
    return data.with_format(None) if hasattr(data, "with_format") else data


def _held_out_by_author(data: str | Path) -> list[Record] | None:
    """The validation or test split of a folder that has one with rows."""
    path = Path(data).expanduser()
    for split in ("validation", "test"):
        if (path / split).is_dir() and (rows := list(_rows(path, split))):
            return rows
    return None


def _lines(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path.name}, line {number}"
                if not line.strip():
                    continue
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError) as error:
                    reason = "nested too deeply" if isinstance(error, RecursionError) else error
                    found = RequestError(f"no JSON: {reason}")
                yield Record(where, _object(found))
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from error


def _rows(path: Path, split: str) -> Iterator[Record]:
    """The rows of a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    from datasets import load_from_disk

    where = path / split if (path / split).is_dir() else path
    if (where / "state.json").is_file() and not any(where.glob("*.arrow")):
        return  # an empty split, which the library writes and does not read
    try:
        rows = load_from_disk(str(where))
    except Exception as error:  # whatever the library and Arrow raise
        reason = " ".join(str(error).split())
        raise RequestError(
            f"{path}: expected a folder that Dataset.save_to_disk wrote, found another ({reason})"
        ) from error
    if not hasattr(rows, "column_names") or isinstance(rows.column_names, dict):
        raise RequestError(f"{path}: expected a split called train, found {', '.join(rows)}")
    for number, row in enumerate(_plain(rows), start=1):
        yield Record(f"{where.name}, row {number}", row)


# --- one record


@dataclass(frozen=True)
class _Reader:
    tokenizer: Tokenizer
    end: int
    ends: frozenset[int]
    canvas_length: int
    limit: int
    cuts: bool
    raw: bool

    def texts(self, records: Sequence[Record], problems: list[str]) -> Iterator[tuple[Text, ...]]:
        """The texts of every record; of a bad one, a line for `problems`."""
        for record in records:
            try:
                yield tuple(self.fitted(text) for text in self.turns(record.fields))
            except DgemmaError as error:
                problems.append(f"{record.where}: {error}")

    def turns(self, fields: Mapping[str, Any]) -> list[Text]:
        """The turns to be learnt, whole."""
        if "" in fields:
            found = fields[""]
            raise (
                found
                if isinstance(found, DgemmaError)
                else RequestError(f"expected a JSON object, found {shown(found)}")
            )
        messages, prompt = fields.get("messages"), fields.get("prompt")
        completion = fields.get("completion")
        if messages is not None:
            if prompt is not None or completion is not None:
                raise RequestError("it has messages and prompt or completion: give one form")
            return self.chat(messages, 0)
        if prompt is None or completion is None:
            raise RequestError("expected messages, or prompt and completion")
        if isinstance(prompt, str) and isinstance(completion, str):
            if self.raw:
                return [self.text(self.tokenizer.encode(prompt, bos=True), completion)]
            prompt = [{"role": "user", "content": prompt}]
            completion = [{"role": "assistant", "content": completion}]
        elif isinstance(prompt, str) or isinstance(completion, str):
            raise RequestError("prompt and completion are two texts, or two lists of messages")
        if not isinstance(prompt, Sequence) or not isinstance(completion, Sequence):
            raise RequestError("prompt and completion are two texts, or two lists of messages")
        return self.chat([*prompt, *completion], len(prompt))

    def chat(self, messages: Any, first: int) -> list[Text]:
        """The model's turns from message `first` on."""
        if self.raw:
            raise RequestError("messages need the chat template: leave raw out")
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            raise RequestError("messages is a list of {role, content}, at least one")
        plain = [_message(i, message) for i, message in enumerate(messages)]
        expected = "user"
        for i, message in enumerate(plain):
            if i == 0 and message["role"] == "system":
                continue
            if message["role"] != expected:
                raise RequestError(
                    f"message {i + 1} is of {message['role']}, expected {expected}: after a system prompt, user and"
                    " assistant take turns"
                )
            expected = "assistant" if expected == "user" else "user"
        if plain[-1]["role"] != "assistant":
            raise RequestError("it ends without an answer of the assistant")
        if not any(message["role"] == "assistant" for message in plain[first:]):
            raise RequestError("the completion holds no answer of the assistant")
        opening = 1 + (plain[0]["role"] == "system")
        ids = self.tokenizer.chat_ids(plain[:opening])
        found: list[Text] = []
        for i in range(opening, len(plain), 2):
            if i > opening:
                ids = self.tokenizer.next_turn_ids(ids, plain[i - 1])
            text = self.text(ids, plain[i]["content"])
            if i >= first and _learnt(i, messages[i]):
                found.append(text)
            ids = [*ids, *text.answer, self.end]
        return found

    def text(self, prompt: Sequence[int], answer: str) -> Text:
        ids = tuple(self.tokenizer.encode(answer))
        for i in ids:
            if i in self.ends:
                raise RequestError(
                    f"the answer holds {self.tokenizer.token_string(i)}, which ends it: leave it out, it is added"
                )
        return Text(tuple(prompt), ids)

    def fitted(self, text: Text) -> Text:
        """The text within the limit of length, cut after whole canvases where that is asked for."""
        if not text.answer:
            raise RequestError("the answer is empty")
        length = len(text.prompt) + len(text.answer) + 1
        if length <= self.limit:
            return text
        if not self.cuts:
            raise RequestError(
                f"it has {length:,} tokens, and the model holds {self.limit:,}: shorten it, or cut answers by"
                " max_length"
            )
        kept = (self.limit - len(text.prompt)) // self.canvas_length * self.canvas_length
        if kept < 1:
            raise RequestError(
                f"its prompt of {len(text.prompt):,} tokens leaves no canvas within max_length {self.limit:,}"
            )
        return replace(text, answer=text.answer[:kept], whole=False)


def _message(number: int, message: Any) -> dict[str, str]:
    """A message with a role of the three and one text."""
    from dgemma_core.files.text import plain_message

    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise RequestError(f"message {number + 1} is no {{role, content}}")
    role = "assistant" if message["role"] == "model" else message["role"]
    if role not in ("system", "user", "assistant"):
        raise RequestError(
            f"message {number + 1} is of {shown(role)}: roles are system (first), user and assistant"
        )
    if message.get("tool_calls"):
        raise RequestError(f"message {number + 1} calls tools, which are not learnt here")
    return {"role": role, "content": plain_message(message)["content"]}


def _learnt(number: int, message: Mapping[str, Any]) -> bool:
    """Whether an answer is learnt: its weight, as OpenAI's users have it, is 1 or not given."""
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise RequestError(
            f"message {number + 1} has weight {shown(weight)}: give 0 (not learnt) or 1 (learnt)"
        )
    return weight != 0


def _split(
    texts: list[tuple[Text, ...]], share: float | None, seed: int
) -> tuple[list[tuple[Text, ...]], list[tuple[Text, ...]]]:
    """(training, validation): conversations are drawn for the latter, and stay whole."""
    if share is None:
        wanted = min(MOST_HELD_OUT, int(len(texts) * HELD_OUT)) if len(texts) >= LEAST else 0
    elif 0 <= share < 1:
        wanted = round(len(texts) * share)
    else:
        raise RequestError(
            f"validation: expected a file, or a share from 0 to below 1, got {share}"
        )
    order = list(range(len(texts)))
    Random(f"held out {seed}").shuffle(order)
    held = set(order[:wanted])
    return (
        [of_one for i, of_one in enumerate(texts) if i not in held],
        [of_one for i, of_one in enumerate(texts) if i in held],
    )
