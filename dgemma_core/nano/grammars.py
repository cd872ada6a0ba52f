"""A regular expression for each family of nano's, which holds every right answer (tests/constraints/test_nano.py).

A grammar knows the form of an answer and nothing of its prompt: sudoku's holds four rows of four different digits, not
the given ones.
"""

from __future__ import annotations

from itertools import permutations

_NUMBER = r"-?[0-9]+(\.[0-9]+)?"
_WORD = r"[^,\n ]+"
_WORDS = rf"{_WORD}(, {_WORD})*"
_ROW = "|".join(" ".join(row) for row in permutations("1234"))
_FACT = "|".join(
    (
        '"name": "[A-Z][a-z]+"',
        '"city": "[A-Z][a-z]+( [A-Z][a-z]+)?"',
        '"age": [1-9][0-9]?',
        '"job": "[a-z]+"',
        r'"pet": \{"kind": "[a-z]+", "colour": "[a-z]+"\}',
        r'"likes": \["[a-z]+"(, "[a-z]+"){0,2}\]',
    )
)
_COMPARED = r"[1-4]( [ <>] [1-4]){3}"
_SUM = r"-?[0-9]+ [+\-*/] [0-9]+ = -?[0-9]+"
_SUMS = rf"{_SUM}(\n{_SUM})*"

GRAMMARS = {
    "mini_sudoku": rf"({_ROW})(\n({_ROW})){{3}}",
    "futoshiki": rf"{_COMPARED}(\n[ ∧∨]*\n{_COMPARED}){{3}}",
    "chain_sum": _SUMS,
    "word_sum": _SUMS,
    "number_sorting": rf"\[{_NUMBER}(,{_NUMBER})*\]",
    "word_sorting": _WORDS,
    "spell_backward": r"[^\n ]+",
    "word_sequence_reversal": _WORDS,
    "letter_counting": r"[0-9]+( [0-9]+)* = [0-9]+",
    "number_filtering": rf"\[('{_NUMBER}'(, '{_NUMBER}')*)?\]",
    "rotate_matrix": r"[0-9]( [0-9])*(\n[0-9]( [0-9])*)*",
    "json": rf"\{{({_FACT})(, ({_FACT})){{1,4}}\}}",
}
