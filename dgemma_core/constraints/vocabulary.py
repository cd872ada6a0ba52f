"""What the tokens of a checkpoint's tokenizer spell, as bytes.

A constraint is about text, an automaton about tokens, so every token must spell the same bytes wherever it stands.
Two kinds of tokenizer do, byte-level BPE and SentencePiece-like BPE with byte fallback; others are refused.
"""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

from dgemma_core.errors import RequestError
from dgemma_core.files.text import Tokenizer, _byte_letters

_CHECKED = 32
"""Texts of random tokens whose decoding is compared with what their tokens are thought to spell."""


def spelled(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """The bytes of each of `size` tokens; empty for control tokens and ids that stand for nothing.

    Raises RequestError for a tokenizer whose tokens spell different texts in different places.
    """
    decoder = json.loads(tokenizer.backend.to_str())["decoder"]
    letters = {letter: bytes([byte]) for letter, byte in _byte_letters().items()}
    replaced, byte_level = _parts(decoder)
    added = {id for id in tokenizer.backend.get_added_tokens_decoder()}
    found = [b""] * size
    for token, id in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if id >= size or id in tokenizer.special_ids:
            continue
        if byte_level and id not in added:
            found[id] = b"".join(letters.get(letter, letter.encode()) for letter in token)
        elif byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token) if not byte_level else None:
            found[id] = bytes([int(byte[1], 16)])
        else:
            for old, new in replaced:
                token = token.replace(old, new)
            found[id] = token.encode()
    _check(tokenizer, found)
    return found


def _parts(decoder: Any) -> tuple[list[tuple[str, str]], bool]:
    """What a decoder replaces, and whether it is byte-level."""
    kind = (decoder or {}).get("type")
    if kind == "ByteLevel":
        return [], True
    parts = decoder["decoders"] if kind == "Sequence" else []
    replaced = []
    for part in parts:
        if part["type"] == "Replace" and "String" in part["pattern"]:
            replaced.append((part["pattern"]["String"], part["content"]))
        elif part["type"] not in ("ByteFallback", "Fuse"):
            raise _unsuited(part["type"])
    if not parts:
        raise _unsuited(str(kind))
    return replaced, False


def _unsuited(kind: str) -> RequestError:
    return RequestError(
        f"this checkpoint's tokenizer (decoder {kind}) spells a token differently in different places: constraints "
        "need byte-level BPE, or BPE with byte fallback"
    )


def _check(tokenizer: Tokenizer, found: list[bytes]) -> None:
    """Compares with the tokenizer's own decoding, so that a tokenizer of an unknown kind is noticed."""
    random, real = Random(0), [id for id, text in enumerate(found) if text]
    if not real:
        raise RequestError("this checkpoint's tokenizer has no tokens that spell text")
    for _ in range(_CHECKED):
        ids = random.choices(real, k=16)
        expected = b"".join(found[id] for id in ids).decode(errors="replace")
        if tokenizer.decode(ids) != expected:
            raise _unsuited("of its own kind")
