"""What a request asks, read the same way for every writer."""

from __future__ import annotations

import pytest

from dgemma_core import RequestError
from dgemma_evals.writers.asked import Asked, Ignored, greedily_ignored


def test_limits_and_stop_strings():
    asked = Asked.of({"until": "\n", "max_completion_tokens": 9, "do_sample": False})
    assert (asked.limit, asked.stop, asked.do_sample, asked.rest) == (9, ("\n",), False, {})
    assert Asked.of({"max_tokens": 3, "max_gen_toks": 5, "until": ["", "x"]}).limit == 5
    assert Asked.of({"until": None}).gen_kwargs(7) == {"until": [], "max_gen_toks": 7}
    assert Asked.of({"max_new_tokens": 4.0, "top_p": 0.9}).gen_kwargs(7) == {
        "until": [], "max_gen_toks": 4, "top_p": 0.9,
    }  # fmt: skip
    for wrong in (0, -1, "many", 2.5, float("inf"), [3]):
        with pytest.raises(RequestError, match="a whole number from 1"):
            Asked.of({"max_gen_toks": wrong})
    for until in (5, [5]):
        with pytest.raises(RequestError, match="stop must be strings"):
            Asked.of({"until": until})


def test_a_greedy_writer_ignores_what_it_cannot_honour():
    asked = Asked.of({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "num_beams": 4})
    assert greedily_ignored(asked) == {
        "do_sample": True, "temperature": 0.6, "top_p": 0.9, "num_beams": 4,
    }  # fmt: skip
    assert greedily_ignored(Asked.of({"do_sample": False, "temperature": 0.0})) == {}
    with pytest.raises(RequestError, match="colour has no meaning"):
        greedily_ignored(Asked.of({"colour": 1}))


def test_each_is_told_once(caplog):
    ignored = Ignored()
    assert ignored.facts() == {}
    for value in (0.9, 0.9, 0.5):
        ignored.add({"top_p": value})
    assert ignored.facts() == {"ignored_arguments": {"top_p": [0.9, 0.5]}}
    assert [record.getMessage() for record in caplog.records] == [
        "top_p=0.9 is ignored: the model cannot honour it"
    ]
