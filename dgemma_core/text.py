"""Text in and out: a checkpoint's tokenizer, its chat template, and Gemma 4's thoughts.

Reads tokenizer.json with the `tokenizers` library and renders the checkpoint's own chat template
with jinja2, as transformers does, without the second that importing transformers takes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgemma_core.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

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
        return str(self.backend.decode([int(id) for id in ids], skip_special_tokens=not special))

    def token_string(self, id: int) -> str:
        """What one token looks like: its text, a control token's name, or the bytes it holds."""
        token = self.backend.id_to_token(int(id))
        if token is None:
            return f"<{int(id)}>"
        if int(id) in self.special_ids:
            return str(token)
        text = str(self.backend.decode([int(id)], skip_special_tokens=False))
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
        messages = [{"role": "user", "content": chat}] if isinstance(chat, str) else list(chat)
        if system is not None:
            if messages and messages[0].get("role") == "system":
                raise RequestError("two system prompts: give system or a system message, not both")
            messages = [{"role": "system", "content": system}, *messages]
        if not messages or messages[-1].get("role") != "user":
            raise RequestError("a chat ends with the user's message, which the model answers")
        return self.encode(self.render(messages, thinking=thinking))

    def next_turn_ids(
        self, previous: Sequence[int], message: str | Message, *, thinking: bool = False
    ) -> list[int]:
        """The prompt of a chat's next turn; `previous` is the earlier prompt and the kept answer.

        `previous` is a prefix of the result, so that its prefix cache can be kept; so a thought in
        it stays (where a template that renders the whole chat anew would drop it).
        """
        asked = {"role": "user", "content": message} if isinstance(message, str) else message
        if asked.get("role") != "user":
            raise RequestError("a chat goes on with the user's message, which the model answers")
        history = ({"role": "user", "content": "."}, {"role": "assistant", "content": _ANSWER_MARK})
        rendered = self.render([*history, asked], thinking=thinking)
        _, mark, after = rendered.partition(_ANSWER_MARK)
        if not mark:
            raise RequestError("the checkpoint's chat template leaves out earlier answers")
        added = self.encode(after)
        if previous and added and added[0] in self.special_ids and previous[-1] == added[0]:
            added = added[1:]  # the answer has ended its turn itself
        return [*(int(id) for id in previous), *added]

    def render(self, messages: Sequence[Message], *, thinking: bool = False) -> str:
        """A chat by the checkpoint's template, up to where the model's answer begins."""
        if self.template is None:
            raise RequestError("the checkpoint has no chat template: give the prompt raw")
        if thinking and "enable_thinking" not in self.template:
            raise RequestError("the checkpoint has no thinking mode: leave thinking off")
        from jinja2 import TemplateError

        try:
            return str(
                self._compiled.render(
                    messages=[_plain_message(message) for message in messages],
                    add_generation_prompt=True,
                    enable_thinking=thinking,
                    **self.named,
                )
            )
        except TemplateError as error:
            raise RequestError(f"the chat template refuses this chat: {error}") from error

    @cached_property
    def _compiled(self) -> Any:
        """The template, compiled as transformers compiles it, in a sandbox."""
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.globals["raise_exception"] = raise_exception
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(
            value, ensure_ascii=False, indent=indent
        )
        try:
            return environment.from_string(self.template or "")
        except TemplateError as error:
            raise CheckpointError(f"the checkpoint's chat template is damaged: {error}") from error

    # --- thoughts

    def strip_thought(self, ids: Sequence[int]) -> tuple[str, str]:
        """(thought, answer) of an answer's ids, as texts; a missing or empty thought is "".

        A thought that was cut off before its end leaves an empty answer.
        """
        marks = {self.token_id(CHANNEL), self.token_id(CHANNEL_END)}
        kept = [int(id) for id in ids if int(id) not in self.special_ids or int(id) in marks]
        return strip_thought(self.decode(kept, special=True))


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


def _plain_message(message: Message) -> dict[str, Any]:
    """`message` with its content as one text; RequestError for media and for no message at all."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        raise RequestError("a message is a mapping with role and content")
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    for part in content:
        if part.get("type") != "text":
            raise _no_media(f"a part of type {part.get('type')}")
    return {**message, "content": "".join(part["text"] for part in content)}


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

    Raises CheckpointError, naming the file, where tokenizer.json or what goes with it cannot be
    read, and where only a SentencePiece model is there.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        if (folder / "tokenizer.model").is_file():
            raise CheckpointError(
                f"{folder / 'tokenizer.model'}: only a SentencePiece model; save the tokenizer "
                "with transformers, which writes tokenizer.json"
            )
        return None
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path}: not a tokenizer ({error}); fetch it anew") from error
    settings = _read_settings(folder / "tokenizer_config.json")
    named = {
        role: value["content"] if isinstance(value, dict) else value
        for role, value in settings.items()
        if role.endswith("_token") and isinstance(value, str | dict)
    }
    template_file = folder / "chat_template.jinja"
    template: Any = settings.get("chat_template")
    if template_file.is_file():
        template = template_file.read_text(encoding="utf-8")
    elif isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return Tokenizer(backend, named, template)


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); fetch it anew") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, found {type(settings).__name__}")
    return settings
