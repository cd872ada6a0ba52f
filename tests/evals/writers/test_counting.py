"""The counting rules on answers that are known beforehand (a scripted model)."""

import pytest

from dgemma_core import DgemmaError, Request, Settings
from dgemma_evals.writers.counting import Counter, Counts, histogram, summary
from tests.core import tiny

LENGTH = 8  # of a canvas
PROMPT = (2, 7, 8)


def count(answer, *, mode="diffusion", limit=32, stop=()):
    """Counts of a text that the model is sure of."""
    scripted = tiny.Scripted(answer, prompt=len(PROMPT))
    loaded = tiny.loaded(scripted)
    counter = Counter(mode)
    request = Request(PROMPT, max_new_tokens=limit, stop=stop, id="r")
    for event in Settings(mode).events(loaded, [request]):
        counter(event)
    return counter.pop("r"), scripted


def words(text):
    return tiny.tokenizer().encode(text)


def test_end_inside_the_canvas():
    counts, scripted = count([20, 21, 22, tiny.TURN_END, 9, 9, 9, 9])
    assert counts.kept_tokens == 4  # the end token cost a pass
    assert counts.steps_per_canvas == (2,) and counts.converged == (True,)
    assert counts.denoising_steps == scripted.passes == 2
    assert counts.passes == 3  # prefill and two steps; nothing is committed
    assert counts.positions == LENGTH and counts.wasted_fraction == 0.5
    assert counts.tokens_per_forward == 2 and counts.tokens_per_pass == pytest.approx(4 / 3)
    assert counts.stop_reason == "eos"


def test_the_same_text_token_by_token():
    counts, _ = count([20, 21, 22, tiny.TURN_END], mode="autoregressive")
    assert counts.kept_tokens == 4 and counts.passes == 4  # prefill gives the first token
    assert counts.steps_per_canvas == () and counts.positions == 0
    assert counts.wasted_fraction is None and counts.tokens_per_forward == 1
    assert [kept for kept, _ in counts.milestones] == [1, 2, 3, 4]


def test_the_same_text_by_drafts():
    """The scripted causal mode is sure of its text; its denoiser drafts the same."""
    counts, _ = count([*words("12345678901"), tiny.TURN_END], mode="speculative")
    plain, _ = count([*words("12345678901"), tiny.TURN_END], mode="autoregressive")
    assert counts.mode == "speculative" and counts.kept_tokens == plain.kept_tokens == 12
    assert [kept for kept, _ in counts.milestones] == list(range(1, 13))
    assert (
        counts.passes == 1 + len(counts.accepted) == 1 + counts.denoising_steps
    )  # the prompt's drafts, too
    # A round writes what it accepts and one token more; the last may be cut by the end.
    assert sum(counts.accepted) + len(counts.accepted) >= 11 > 0
    assert counts.tokens_per_forward == counts.tokens_per_pass == 12 / counts.passes
    assert counts.wasted_fraction is None
    total = summary([counts, counts])
    assert total["tokens_per_forward"] == 12 / counts.passes
    assert total["rounds"] == 2 * len(counts.accepted)
    assert total["accepted_per_round"] == sum(counts.accepted) / len(counts.accepted)
    assert sum(total["accepted_histogram"].values()) == total["rounds"]
    assert Counts.from_json(counts.to_json()) == counts


def test_records_of_before_know_no_rounds():
    counts, _ = count([20, 21, 22, tiny.TURN_END], mode="autoregressive")
    old = {name: value for name, value in counts.to_json().items() if name != "accepted"}
    assert Counts.from_json(old) == counts


def test_stop_string_across_canvases():
    answer = words("12345678901234567890")
    assert len(answer) == 20  # digits are tokens
    counts, _ = count([*answer, tiny.TURN_END], stop=("890",))
    assert counts.stop_reason == "stop"
    assert counts.kept_tokens == 7  # "1234567"; the stop string began in the first canvas
    assert counts.steps_per_canvas == (2, 2)
    assert counts.passes == 1 + 4 + 1  # prefill, steps, the first canvas's commit
    assert counts.milestones[0][0] == counts.milestones[1][0] == 7
    assert counts.wasted_fraction == pytest.approx(1 - 7 / 16)


def test_empty_answer():
    counts, _ = count([tiny.TURN_END] * LENGTH)
    assert counts.kept_tokens == 1 and counts.stop_reason == "eos"
    stopped, _ = count(words("123") + [tiny.TURN_END] * 5, stop=("1",))
    assert stopped.kept_tokens == 0 and stopped.wasted_fraction == 1
    assert stopped.tokens_per_forward == 0


def test_limit_inside_a_canvas():
    counts, _ = count(words("1234567890123456"), limit=11)
    assert counts.kept_tokens == 11 and counts.stop_reason == "length"
    assert counts.milestones[0][0] == 8 and counts.milestones[1][0] == 11
    assert counts.positions == 16


def test_time_to_the_same_number_of_tokens():
    counts, _ = count([20, 21, 22, tiny.TURN_END], mode="autoregressive")
    assert counts.seconds_to(1) == counts.first_seconds
    assert counts.seconds_to(3) == counts.milestones[2][1]
    assert counts.seconds_to(9) is None


def test_a_summary_is_a_ratio_of_sums():
    short, _ = count([20, tiny.TURN_END] + [9] * 6)
    long, _ = count([*words("1234567890123"), *[tiny.TURN_END] * 3])
    total = summary([short, long])
    assert total["kept_tokens"] == 2 + 14
    assert total["tokens_per_forward"] == 16 / (2 + 4)
    assert total["canvases"] == 3 and total["steps_histogram"] == {2: 3}
    assert total["wasted_fraction"] == pytest.approx(1 - 16 / 24)
    assert summary([]) == {"texts": 0}
    assert histogram([3, 1, 3]) == {1: 1, 3: 2}


def test_counts_survive_json():
    counts, _ = count([20, tiny.TURN_END] + [9] * 6)
    assert Counts.from_json(counts.to_json()) == counts
    with pytest.raises(DgemmaError, match="passes is missing"):
        Counts.from_json({k: v for k, v in counts.to_json().items() if k != "passes"})
