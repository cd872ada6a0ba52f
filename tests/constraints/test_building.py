"""From a constraint to an automaton: regular expressions, the kept file, and examples that a grammar rejects."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dgemma_core import Constraint, RequestError
from dgemma_core.constraints import building, patterns
from dgemma_core.constraints.examples import examined
from dgemma_core.constraints.language import listed, read_constraint
from dgemma_core.constraints.patterns import compiled
from tests.core import tiny

PATTERNS = [
    "a|ab",
    "(a|b)*abb",
    "[^a]{0,3}",
    "é+b?",
    "(?s:.)*",
    "",
    "x{2,4}(yz)?",
    "(ab|a)(c|bcd)",
    r"\d{1,2}[.]",
]
TEXTS = [
    "",
    "a",
    "ab",
    "abb",
    "babb",
    "é",
    "ééb",
    "xx",
    "xxxyz",
    "abcd",
    "ac",
    "7.",
    "12.",
    "\n",
    "漢字",
    "b",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_automaton_matches_whole_texts(pattern: str) -> None:
    """As `re.fullmatch`, over bytes and over tokens."""
    language = compiled(pattern)
    loaded = tiny.loaded()
    automaton = Constraint.regex(pattern).compile(loaded)
    assert loaded.tokenizer is not None
    for text in TEXTS:
        wanted = re.fullmatch(pattern, text) is not None
        assert (language.accepted(text.encode()) == len(text.encode()) + 1) == wanted, text
        state = automaton.after(loaded.tokenizer.encode(text))
        assert (state >= 0 and bool(automaton.accepting[state])) == wanted, text


def test_an_automaton_is_kept_and_a_damaged_file_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "folder", lambda: tmp_path)
    loaded, constraint = tiny.loaded(), Constraint.regex("[a-f]{3}x")
    made = constraint.compile(loaded)
    (file,) = tmp_path.glob("*.safetensors")
    for damage in (None, b"", file.read_bytes()[:-20]):
        if damage is not None:
            file.write_bytes(damage)
        building._built.clear()
        again = constraint.compile(loaded)
        assert again is not made
        assert (again.table == made.table).all() and (again.classes == made.classes).all()
    monkeypatch.setattr(building, "indexed", None)  # not asked for again
    building._built.clear()
    assert (constraint.compile(loaded).table == made.table).all()


def test_choices_may_hold_any_character() -> None:
    choices = ["a|b", "(", "x.*", "-~ #", "é\n", "\\d"]
    verdicts = examined(Constraint.choices(choices), [*choices, "xyz", "1"])
    assert [verdict.accepted for verdict in verdicts] == [True] * 6 + [False] * 2


def test_an_example_says_where_it_leaves_the_language() -> None:
    yes, no, soon = examined(Constraint.regex("\\[[0-9]+(,[0-9]+)*\\]"), ["[1,2]", "[1, 2]", "[1"])
    assert yes.reason == "accepted"
    assert no.place == 3 and "'[1,' then ' 2]'" in no.reason
    assert soon.place == 2 and "ends too soon" in soon.reason


def test_options_name_one_constraint(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"type": "null"}))
    assert read_constraint(None, None, None) is None
    assert read_constraint(None, file, None) == Constraint.json_schema({"type": "null"})
    assert listed("a\\|b|c") == ["a|b", "c"]
    with pytest.raises(RequestError, match="exclude each other"):
        read_constraint("a", file, None)
    with pytest.raises(RequestError, match="cannot be read"):
        read_constraint(None, tmp_path / "none.json", None)
    with pytest.raises(RequestError, match="no JSON"):
        Constraint.json_schema("{")


@pytest.mark.subprocess
@pytest.mark.parametrize("pattern", ("(a{1000}){1000}", "(.{1,200}x){5}", "(a|b)*a" + 22 * "(a|b)"))
def test_an_expression_without_measure_is_refused_in_time(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 2)
    with pytest.raises(RequestError, match="too many states, more than 20000: shorten"):
        patterns.compiled(pattern)


def test_an_expression_that_is_no_text_is_refused() -> None:
    with pytest.raises(RequestError, match="no valid text"):
        patterns.compiled("\ud800")
