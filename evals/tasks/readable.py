"""Syntax apart from content: whether an answer has the form that its family's verifier reads, be it right or wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

_NUMBER = r"-?\d+(?:\.\d+)?"
_WORD = r"\S+"


def readable(family: str, text: str, answer: str) -> bool:
    """Whether `text` has the form of a family's answers. answer: a right one, which tells how large a grid is.

    Raises KeyError for a family without a verifier.
    """
    return _FORMS[family](text.strip(), answer.strip())


def _whole(pattern: str) -> Callable[[str, str], bool]:
    return lambda text, _: re.fullmatch(pattern, text) is not None


def _each_line(pattern: str) -> Callable[[str, str], bool]:
    return lambda text, _: all(re.fullmatch(pattern, line.strip()) for line in text.split("\n"))


def _numbers(text: str) -> list[int]:
    """Numbers in each line that is not blank; none where something else stands there."""
    found = []
    for line in filter(str.strip, text.split("\n")):
        cells = line.split()
        if not all(re.fullmatch(_NUMBER, cell) for cell in cells):
            return []
        found.append(len(cells))
    return found


def _grid(text: str, answer: str) -> bool:
    """Rows of numbers, as many and as long as the answer's."""
    return bool(text) and _numbers(text) == _numbers(answer)


def _json(text: str, _: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


_EQUATION = r"-?\d+(?: [-+*] -?\d+)+ = -?\d+"
_FORMS: dict[str, Callable[[str, str], bool]] = {
    "mini_sudoku": _grid,
    "futoshiki": _grid,
    "rotate_matrix": _grid,
    "chain_sum": _each_line(rf"(?:{_EQUATION}|= ?-?\d+|-?\d+)"),
    "word_sum": _each_line(_EQUATION),
    "number_sorting": _whole(rf"\[(?:\s*'?{_NUMBER}'?\s*,?)*\]"),
    "number_filtering": _whole(rf"\[(?:\s*'?{_NUMBER}'?\s*,?)*\]"),
    "word_sorting": _whole(rf"{_WORD}(?:, {_WORD})*"),
    "word_sequence_reversal": _whole(rf"{_WORD}(?:, {_WORD})*"),
    "spell_backward": _whole(_WORD),
    "letter_counting": lambda text, _: re.search(r"\d+$", text) is not None,
    "json": _json,
}
