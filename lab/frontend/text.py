"""Tokens as text that a reader can see: spaces, line breaks and control characters have signs."""

from __future__ import annotations

import re
import unicodedata

_BYTES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")


def visible(text: str, limit: int = 24) -> str:
    """A token's text with all of it visible, on one line, a byte as ⟨F0⟩; as in text.js."""
    if text == "":
        return "∅"
    if _BYTES.fullmatch(text):
        text = text.replace("<0x", "⟨").replace(">", "⟩")
    shown = "".join(
        character
        if character in "\u200c\u200d" and 0 < i < len(text) - 1  # joiners, as in emoji, Persian
        else _visible_character(character)
        for i, character in enumerate(text[:limit])
    )
    shown += "…" if len(text) > limit else ""
    return "◌" + shown if unicodedata.category(shown[0]).startswith("M") else shown


def readable(text: str) -> str:
    """Running text: bytes that tokens hold one by one ("<0xF0>…") become the characters that they spell."""

    def spelt(found: re.Match[str]) -> str:
        return bytes.fromhex(re.sub("<0x|>", "", found[0])).decode("utf-8", "replace")

    return _BYTES.sub(spelt, text)


def _visible_character(character: str) -> str:
    named = {" ": "·", "\n": "⏎", "\t": "⇥", "\x7f": "⟨7F⟩"}
    if character in named:
        return named[character]
    if ord(character) < 32:
        return f"⟨{ord(character):02X}⟩"  # few fonts have the pictures of controls
    if unicodedata.category(character)[0] in "CZ":
        return f"⟨{ord(character):04X}⟩"
    return character
