"""Lines for a terminal: errors, counts, and foreign text whose control characters cannot move the cursor."""

from __future__ import annotations

import os
import sys
import unicodedata
from typing import Any

from dgemma_core.errors import RequestError

PROGRAM = "dgemma"
_HIDDEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")
"""Unicode categories of characters that draw nothing, or change how others are drawn."""


def complain(message: str) -> int:
    """Prints one line on stderr; returns the exit code of bad input."""
    print(f"{PROGRAM}: {escaped(' '.join(message.split()))}", file=sys.stderr)
    return 2


def escaped(text: str, keep: str = "") -> str:
    """The text with control characters (cursor, colours, reading direction) as signs, save those in `keep`."""
    return "".join(
        character if character in keep else _escaped_character(character) for character in text
    )


def _escaped_character(character: str) -> str:
    if character == "\n":
        return "↵"
    if ord(character) < 32:
        return chr(0x2400 + ord(character))  # the control pictures: ␀, ␁, …
    return "�" if unicodedata.category(character) in _HIDDEN else character


def count(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun: "1 token", "2 tokens"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def utf8(name: str, given: str | bytes) -> str:
    """What was given on the command line (with surrogates for undecodable bytes) or on standard input, as text.

    Raises RequestError, which calls it `name`, where it is not UTF-8.
    """
    try:
        return (os.fsencode(given) if isinstance(given, str) else given).decode()
    except UnicodeError:
        raise RequestError(f"{name} is not UTF-8 text: give it in that encoding") from None


def standard_input() -> str:
    """The prompt that standard input holds, without its last line break."""
    if sys.stdin is None:
        raise RequestError("standard input is closed: give the prompt as an argument")
    return utf8("the prompt", sys.stdin.buffer.read()).removesuffix("\n")


def text_option(context: Any, option: Any, value: Any) -> Any:
    """A typer callback: refuses arguments and options that are not UTF-8."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            utf8(option.opts[0], text)
    return value
