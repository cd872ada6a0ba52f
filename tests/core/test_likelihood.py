"""The exact likelihood of the causal mode, on models small enough to enumerate."""

import itertools
import math

import pytest

from dgemma_core import RequestError
from dgemma_core.generation import likelihood
from dgemma_core.generation.likelihood import causal_logprobs
from tests.core import tiny


def small(**changes):
    return tiny.model(vocab_size=5, canvas_length=3, **changes)


def test_causal_probabilities_of_all_texts_sum_to_one():
    model = small()
    texts = list(itertools.product(range(5), repeat=3))
    scored = causal_logprobs(model, [((1, 2), text) for text in texts])
    assert math.fsum(math.exp(row.total) for row in scored) == pytest.approx(1, abs=1e-5)
    assert sum(row.all_greedy for row in scored) == 1


def test_causal_scores_are_the_chain_rule_over_single_steps():
    model = small()
    (row,) = causal_logprobs(model, [((1, 2), (3, 0, 4))])
    prefix, wanted = [1, 2], []
    for token in (3, 0, 4):
        hidden = model.encode([prefix]).hidden[0, -1]
        wanted.append(float(model.logits(hidden).log_softmax(-1)[token]))
        prefix.append(token)
    assert row.logprobs == pytest.approx(wanted, abs=1e-5)


def test_rows_of_different_length_do_not_touch_each_other():
    model = small()
    rows = [((1,), (2, 3, 4)), ((1, 2, 3, 4), (0,)), ((4, 4), (1, 1))]
    together = causal_logprobs(model, rows)
    for row, scored in zip(rows, together, strict=True):
        (alone,) = causal_logprobs(model, [row])
        assert scored.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_a_shared_prefix_is_encoded_once(monkeypatch):
    """Four choices of one context: a pass over the context, one over the choices, one of the head."""
    model = small()
    context = (1, 2, 3, 0, 4, 1)
    rows = [
        (context, (2, 3)),
        (context, (0,)),
        ((4, 4), (1, 1)),
        (context, (2, 3, 1)),
        (context, (4,)),
    ]
    wanted = [causal_logprobs(model, [row])[0] for row in rows]
    seen, heads = [], []
    encode, predict = model.encode, model.predict
    monkeypatch.setattr(
        model, "encode", lambda ids, *a: (seen.append([len(i) for i in ids]), encode(ids, *a))[1]
    )
    monkeypatch.setattr(
        model, "predict", lambda hidden, *a, **k: (heads.append(hidden.shape[1]), predict(hidden, *a, **k))[1]
    )  # fmt: skip
    found = causal_logprobs(model, rows)
    # Every context once, longest first; of a choice all but its last token. The two choices of one token cost nothing.
    assert seen == [[6, 2], [1, 2, 1]]
    assert heads == [2 + 1 + 2 + 1]
    for score, alone in zip(found, wanted, strict=True):
        assert score.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        assert score.greedy == alone.greedy


def test_scores_do_not_depend_on_what_fits_at_a_time(monkeypatch):
    model = small()
    rows = [((1, 2, 3)[: 1 + i % 3], (i % 5, 2, i % 4)) for i in range(12)]
    wanted = causal_logprobs(model, rows)
    monkeypatch.setattr(likelihood, "_TOKENS", 8)
    for batch in (1, 3):
        found = causal_logprobs(model, rows, batch=batch)
        for score, other in zip(found, wanted, strict=True):
            assert score.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_an_empty_text_is_refused():
    with pytest.raises(RequestError, match="at least one token"):
        causal_logprobs(small(), [((1,), ())])
