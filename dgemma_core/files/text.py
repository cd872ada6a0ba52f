"""Text in and out: a checkpoint's tokenizer, its chat template, and Gemma 4's thoughts.

Ids come from the `tokenizers` library, chats from the checkpoint's own template, as in transformers,
without the second that importing transformers takes. The files themselves are read by
`files.tokenizer_file`, templates rendered by `files.template`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma_core.errors import CheckpointError, RequestError, check_kind, whole_number

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

    from dgemma_core.files.template import ChatTemplate

Message = Mapping[str, Any]
"""One turn of a chat: `role` ('system', 'user', 'assistant') and `content` (text or text parts)."""

CHANNEL, CHANNEL_END = "<|channel>", "<channel|>"
"""Gemma 4 writes a thought as `<|channel>thought`, a line break, the thought, `<channel|>`."""
_MEDIA_TOKEN = re.compile(r"<\|?(start_of_)?(image|audio|video)(_soft_token)?\|?>")
_ANSWER_MARK = "\N{OBJECT REPLACEMENT CHARACTER}answer\N{OBJECT REPLACEMENT CHARACTER}"


class Tokenizer:
    """Text to token ids and back, and chats to prompts, for one checkpoint.

    `backend` is the checkpoint's tokenizer.json, `named` its tokens by role ('bos_token': '<bos>',
    …), `template` its chat template, None where it has none.
    """

    def __init__(
        self, backend: "Backend", named: Mapping[str, str], template: str | None = None
    ) -> None:
        self.backend = backend
        self.named = dict(named)
        self.template = template

    @property
    def vocab_size(self) -> int:
        """Number of tokens, special ones included."""
        return int(self.backend.get_vocab_size())

    @property
    def bos_token_id(self) -> int | None:
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._named_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._named_id("pad_token")

    def _named_id(self, role: str) -> int | None:
        return self.token_id(self.named[role]) if role in self.named else None

    def token_id(self, token: str) -> int | None:
        """The id of a whole token such as '<turn|>'; None if the vocabulary lacks it."""
        check_kind("a token", token, str, "a text")
        found = self.backend.token_to_id(token)
        return None if found is None else int(found)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens: `decode` leaves them out."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(id for id, token in added.items() if token.special)

    @cached_property
    def media_token_ids(self) -> frozenset[int]:
        """Ids of the control tokens that stand for images, audio and video."""
        added = self.backend.get_added_tokens_decoder()
        return frozenset(id for id in self.special_ids if _MEDIA_TOKEN.fullmatch(added[id].content))

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """The ids of `text`, with BOS before them if `bos`; control tokens may be spelled out.

        Raises RequestError where the text holds a placeholder for an image, audio or video.
        """
        check_kind("bos", bos, bool, "True or False")
        with _library_errors("this text cannot be encoded"):
            ids = [int(id) for id in self.backend.encode(text, add_special_tokens=False).ids]
        for id in self.media_token_ids.intersection(ids):
            raise _no_media(self.token_string(id))
        if not bos:
            return ids
        if self.bos_token_id is None:
            raise RequestError("this checkpoint's tokenizer names no BOS token: encode without bos")
        return [self.bos_token_id, *ids]

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of `ids`; control tokens are left out unless `special`."""
        with _library_errors("these ids cannot be decoded"):
            return str(
                self.backend.decode([int(id) for id in ids], skip_special_tokens=not special)
            )

    def token_string(self, id: int) -> str:
        """What one token looks like: its text, a control token's name, or the bytes it holds."""
        id = whole_number("a token id", id, high=2**32 - 1)
        token = self.backend.id_to_token(id)
        if token is None:
            return f"<{id}>"
        if id in self.special_ids:
            return str(token)
        text = self.decode([id], special=True)
        return text if "\N{REPLACEMENT CHARACTER}" not in text else _bytes_of(token)

    # --- chats

    def chat_ids(
        self,
        chat: str | Sequence[Message],
        *,
        system: str | None = None,
        thinking: bool = False,
    ) -> list[int]:
        """The prompt of a chat: one user message, or all messages in order, the user's last.

        Raises RequestError for media, two system prompts, a last message that is not the user's,
        and `thinking` where the checkpoint's template knows none.
        """
        check_kind("a chat", chat, Sequence, "a text, or messages with role and content")
        turns = [{"role": "user", "content": chat}] if isinstance(chat, str) else chat
        messages = [plain_message(message) for message in turns]
        if system is not None:
            if messages and messages[0]["role"] == "system":
                raise RequestError("two system prompts: give system or a system message, not both")
            messages = [plain_message({"role": "system", "content": system}), *messages]
        if not messages or messages[-1]["role"] != "user":
            raise RequestError("a chat ends with the user's message, which the model answers")
        return self.encode(self.render(messages, thinking=thinking))

    def next_turn_ids(
        self, previous: Sequence[int], message: str | Message, *, thinking: bool = False
    ) -> list[int]:
        """The prompt of a chat's next turn; `previous` is the earlier prompt and the kept answer.

        `previous` is a prefix of the result, so that its prefix cache can be kept; so a thought in
        it stays (where a template that renders the whole chat anew would drop it).
        """
        before = _plain_ids(previous)
        asked = {"role": "user", "content": message} if isinstance(message, str) else message
        if plain_message(asked)["role"] != "user":
            raise RequestError("a chat goes on with the user's message, which the model answers")
        history = ({"role": "user", "content": "."}, {"role": "assistant", "content": _ANSWER_MARK})
        rendered = self.render([*history, asked], thinking=thinking)
        _, mark, after = rendered.partition(_ANSWER_MARK)
        if not mark:
            raise RequestError("the checkpoint's chat template leaves out earlier answers")
        added = self.encode(after)
        if before and added and added[0] in self.special_ids and before[-1] == added[0]:
            added = added[1:]  # the answer has ended its turn itself
        return [*before, *added]

    def render(self, messages: Sequence[Message], *, thinking: bool = False) -> str:
        """A chat by the checkpoint's template, up to where the model's answer begins."""
        check_kind("messages", messages, Sequence, "several, with role and content")
        check_kind("thinking", thinking, bool, "True or False")
        if self.template is None:
            raise RequestError("the checkpoint has no chat template: give the prompt raw")
        if thinking and "enable_thinking" not in self.template:
            raise RequestError("the checkpoint has no thinking mode: leave thinking off")
        variables = {
            **self.named,
            "messages": [plain_message(message) for message in messages],
            "add_generation_prompt": True,
            "enable_thinking": thinking,
        }
        return self._chat_template.render(variables)

    @cached_property
    def _chat_template(self) -> "ChatTemplate":
        from dgemma_core.files.template import ChatTemplate

        return ChatTemplate(self.template or "")

    # --- thoughts

    def strip_thought(self, ids: Sequence[int]) -> tuple[str, str]:
        """(thought, answer) of an answer's ids, as texts; a missing or empty thought is "".

        A thought that was cut off before its end leaves an empty answer.
        """
        marks = {self.token_id(CHANNEL), self.token_id(CHANNEL_END)}
        kept = [id for id in _plain_ids(ids) if id not in self.special_ids or id in marks]
        return strip_thought(self.decode(kept, special=True))


def _plain_ids(ids: Iterable[int]) -> list[int]:
    check_kind("token ids", ids, Iterable, "several, e.g. a list")
    return [whole_number("a token id", id) for id in ids]


def strip_thought(text: str) -> tuple[str, str]:
    """(thought, answer) of a text in which the channel's control tokens are spelled out."""
    thoughts: list[str] = []
    answer = ""
    while text:
        before, start, rest = text.partition(CHANNEL)
        head, end, tail = before.partition(CHANNEL_END)
        if end:  # the prompt had opened it
            thoughts, answer, text = [*thoughts, answer + head], "", tail + start + rest
            continue
        answer += before
        thought, _, text = rest.partition(CHANNEL_END)
        thoughts.append(thought)
    return "\n".join(filter(None, map(_without_label, thoughts))), answer


def _without_label(thought: str) -> str:
    """A channel's text without its name, which stands in the first line."""
    return re.sub(r"^thought(?:\n|$)", "", thought).strip()


def _no_media(what: str) -> RequestError:
    return RequestError(f"the prompt holds {what}: images, audio and video are not read here")


def plain_message(message: Message) -> dict[str, Any]:
    """`message` with its content as one text; RequestError for media and for no message at all."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise RequestError("a message is a mapping with role and content")
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    parts: Sequence[Any] = content if isinstance(content, Sequence) else [None]
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind != "text":
            raise _no_media(f"a part of type {kind:.40}")
        if kind is None or not isinstance(part.get("text"), str):
            raise RequestError("a message's content is a text, or a list of {type: text, text: …}")
    return {**message, "content": "".join(part["text"] for part in parts)}


def _library_errors(what: str) -> AbstractContextManager[None]:
    from dgemma_core.files.tokenizer_file import library_errors

    return library_errors(RequestError, what, "check the text, and the checkpoint's tokenizer")


def _bytes_of(token: str) -> str:
    """The bytes of a token that is no whole character, as <0x..> each."""
    letters = _byte_letters()
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token) or not letters.keys() >= set(token):
        return token
    return "".join(f"<0x{letters[letter]:02X}>" for letter in token)


def _byte_letters() -> dict[str, int]:
    """How byte-level BPE writes bytes: as Latin-1 where that prints, else as U+0100 and on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {
        chr(0x100 + place): byte for place, byte in enumerate(rest)
    }


def load_tokenizer(folder: str | Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder, None where the folder has none.

    Raises CheckpointError, naming the file, where tokenizer.json or what goes with it is damaged or
    cannot be run safely, and where only a SentencePiece model is there.
    """
    from dgemma_core.files.tokenizer_file import read_template, read_token_names, read_tokenizer

    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.exists():
        if (folder / "tokenizer.model").exists():
            raise CheckpointError(
                f"{folder / 'tokenizer.model'}: only a SentencePiece model; save the tokenizer "
                "with transformers, which writes tokenizer.json"
            )
        return None
    backend = read_tokenizer(path)
    named, configured = read_token_names(folder / "tokenizer_config.json")
    return Tokenizer(backend, named, read_template(folder, configured))
