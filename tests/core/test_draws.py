"""Random numbers: fair, independent, the same whatever the batch. The oracle's draws: in its order."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma_core.draws import CounterDraws, RowKey, Stream, inverse_cdf
from dgemma_core.errors import RequestError
from tests.oracle.draws import OracleDraws

DRAWS = CounterDraws()


def chi_square(counts, expected) -> float:
    """How many standard deviations the χ² statistic of `counts` lies from its mean."""
    counts, expected = np.asarray(counts, float), np.asarray(expected, float)
    freedom = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def numbers(seed=0, canvas=0, step=0, stream=Stream.SAMPLE, length=4096) -> np.ndarray:
    return DRAWS.step([RowKey(seed, canvas)], [step], length).numbers(stream)[0].numpy()


@pytest.mark.parametrize("stream", Stream)
def test_numbers_are_uniform(stream):
    """The histogram over 256 cells, from many short rows and from one long one."""
    keys = [RowKey(seed, canvas) for seed in range(40) for canvas in range(5)]
    short = [DRAWS.step(keys, [step] * len(keys), 32).numbers(stream) for step in range(10)]
    long = numbers(7, 3, 2, stream, 64_000)
    for values in (torch.stack(short).numpy().ravel(), long):
        assert values.min() >= 0 and values.max() < 1
        counts = np.bincount((values * 256).astype(int), minlength=256)
        assert abs(chi_square(counts, np.full(256, len(values) / 256))) < 5


NEIGHBOURS = {
    "seed": dict(seed=6),
    "high bits of the seed": dict(seed=5 + 2**63),
    "canvas": dict(canvas=2),
    "step": dict(step=4),
    "first canvas": dict(step=-1),
    **{stream.name: dict(stream=stream) for stream in Stream if stream is not Stream.SAMPLE},
    "canvas and step exchanged": dict(canvas=3, step=1),
}


@pytest.mark.parametrize("other", NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_neighbours_are_independent(other):
    """16 × 16 joint histogram of two addresses that differ in one part, aligned and shifted."""
    here = dict(seed=5, canvas=1, step=3, stream=Stream.SAMPLE, length=40_000)
    a, b = numbers(**here), numbers(**{**here, **other})
    for shift in (0, 1, 4):
        pairs = (a * 16).astype(int) * 16 + (np.roll(b, shift) * 16).astype(int)
        counts = np.bincount(pairs, minlength=256)
        assert abs(chi_square(counts, np.full(256, len(a) / 256))) < 5


def test_positions_of_a_row_are_independent():
    values = numbers(length=60_000)
    for lag in (1, 2, 3, 4, 5, 8):
        pairs = (values * 16).astype(int) * 16 + (np.roll(values, lag) * 16).astype(int)
        assert abs(chi_square(np.bincount(pairs, minlength=256), np.full(256, 60_000 / 256))) < 5


def test_no_number_serves_twice():
    """Every (seed, canvas, step, stream, position) of a small run has a number of its own."""
    keys = [RowKey(seed, canvas) for seed in range(6) for canvas in range(4)]
    blocks = [
        DRAWS.step(keys, [step] * len(keys), 50).numbers(stream)
        for step in range(-1, 12)
        for stream in Stream
    ]
    values = torch.stack(blocks).flatten()
    assert len(values.unique()) == len(values)


row_keys = st.builds(
    RowKey, st.integers(0, 2**64 - 1), st.one_of(st.integers(0, 50), st.just(2**64 - 1))
)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.tuples(row_keys, st.integers(0, 60)), min_size=1, max_size=5), st.data())
def test_a_row_draws_the_same_in_every_batch(rows, data):
    """Alone, in a batch, in another order, after other draws, on a shorter canvas."""
    length, size = data.draw(st.integers(1, 40)), data.draw(st.integers(2, 300_000))
    order = data.draw(st.permutations(range(len(rows))))
    keys, steps = zip(*(rows[i] for i in order), strict=True)
    batch = DRAWS.step(keys, steps, length)
    batch.gumbel()
    for place, index in enumerate(order):
        key, step = rows[index]
        alone = DRAWS.step([key], [step], length + 3)
        assert torch.equal(batch.uniform[place], alone.uniform[0, :length])
        assert torch.equal(batch.tokens(size)[place], alone.tokens(size)[0, :length])
        assert torch.equal(batch.gumbel()[place], alone.gumbel()[0, :length])
    canvas = DRAWS.first_canvas(keys, length, size)
    assert torch.equal(canvas[0], DRAWS.first_canvas(keys[:1], length, size)[0])


def philox(counter: list[int], key: int) -> list[int]:
    """Philox4x64-10 in plain integers, from the paper: a counter of four 64-bit words → noise."""
    low, word = [key % 2**64, key >> 64], 2**64
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            b // word ^ counter[1] ^ low[0],
            b % word,
            a // word ^ counter[3] ^ low[1],
            a % word,
        ]
        low = [(low[0] + 0x9E3779B97F4A7C15) % word, (low[1] + 0xBB67AE8584CAA73B) % word]
    return counter


def test_numbers_are_philox_at_their_address():
    """Any version must reproduce a text from its seed: the addresses are part of the contract."""
    known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox([0] * 4, 0) == known  # Random123's known answer
    for seed, canvas, step, stream in [(1, 2, 3, Stream.NOISE), (2**64 - 1, 0, -1, Stream.SAMPLE)]:
        blocks = [philox([1 + block, stream, step + 1, canvas], seed) for block in range(3)]
        expected = [(word >> 11) * 2.0**-53 for block in blocks for word in block]
        assert numbers(seed, canvas, step, stream, 12).tolist() == expected


def test_tokens_cover_the_vocabulary_evenly():
    for size in (2, 3, 1000):
        keys = [RowKey(seed, 0) for seed in range(20)]
        tokens = DRAWS.step(keys, [0] * 20, 3000).tokens(size).flatten()
        assert tokens.dtype == torch.int64 and tokens.min() >= 0 and tokens.max() < size
        counts = torch.bincount(tokens, minlength=size)
        assert abs(chi_square(counts, np.full(size, 60_000 / size))) < 5


def test_choose_follows_its_probabilities():
    p = torch.tensor([0.5, 0.0, 0.3, 0.2])
    chosen = DRAWS.step([RowKey(0, 0)], [0], 50_000).choose(p.expand(1, 50_000, 4)).flatten()
    counts = torch.bincount(chosen, minlength=4)
    assert counts[1] == 0
    assert abs(chi_square(counts[[0, 2, 3]], 50_000 * p[[0, 2, 3]])) < 5


def test_categorical_rows_follow_their_distributions():
    k, size = 20_000, 6
    q = torch.rand(1, 1, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = q / q.sum()
    positions = torch.randperm(k, generator=torch.Generator().manual_seed(1))[None]
    step = DRAWS.step([RowKey(3, 1)], [4], k)
    drawn = step.categorical_rows(q.expand(1, k, size), positions)
    assert drawn.shape == (1, k)
    assert abs(chi_square(torch.bincount(drawn[0], minlength=size), k * q[0, 0])) < 5
    # a position's token does not depend on its place among the chosen
    again = step.categorical_rows(q.expand(1, k, size), positions.flip(-1))
    assert torch.equal(again.flip(-1), drawn)


def test_gumbel_noise_picks_in_proportion():
    """argmax(log p + Gumbel) is a draw from p."""
    p = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    keys = [RowKey(seed, 0) for seed in range(4000)]
    noise = DRAWS.step(keys, [0] * 4000, 3).gumbel()
    assert noise.dtype == torch.float64 and noise.isfinite().all()
    counts = torch.bincount((p.log() + noise).argmax(-1), minlength=3)
    assert abs(chi_square(counts, 4000 * p)) < 5


class TestInverseCdf:
    def test_picks_where_the_cumulative_weight_passes(self):
        weights = torch.tensor([1.0, 0.0, 2.0, 1.0])  # edges at 1/4, 1/4, 3/4, 1
        uniform = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
        picked = inverse_cdf(weights.expand(6, 4), uniform)
        assert picked.tolist() == [0, 0, 2, 2, 3, 3]

    def test_never_takes_a_weight_of_zero(self):
        extremes = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
        weights = torch.tensor([0.0, 0.0, 1e-30, 1e-9, 0.3, 0.0, 0.0])
        assert inverse_cdf(weights.expand(2, 7), extremes).tolist() == [2, 4]

    @settings(deadline=None, derandomize=True, max_examples=60)
    @given(st.integers(1, 5000), st.integers(0, 2**31), st.floats(0, 1, exclude_max=True))
    def test_stays_inside_any_vocabulary(self, size, seed, uniform):
        weights = torch.rand(size, generator=torch.Generator().manual_seed(seed)) ** 8 + 1e-12
        last = inverse_cdf(weights, torch.tensor(1 - 2**-53, dtype=torch.float64))
        picked = inverse_cdf(weights, torch.tensor(uniform, dtype=torch.float64))
        assert 0 <= picked <= last < size


class TestOracleOrder:
    """`OracleDraws` makes the same torch calls in the same order on the same generator."""

    def test_whole_pass(self):
        batch, length, size, k = 3, 5, 11, 2
        ours, theirs = torch.Generator().manual_seed(9), torch.Generator().manual_seed(9)
        keys = [RowKey(0, 0)] * batch
        draws = OracleDraws(ours)
        p = torch.rand(batch * length, size, generator=torch.Generator().manual_seed(1))
        routes = torch.rand(batch, length, 3, generator=torch.Generator().manual_seed(2))
        q = torch.rand(batch, k, size, generator=torch.Generator().manual_seed(3)).double()

        def randint():
            return torch.randint(0, size, (batch, length), generator=theirs)

        def multinomial(weights):
            return torch.multinomial(weights, num_samples=1, generator=theirs).squeeze(-1)

        assert torch.equal(draws.first_canvas(keys, length, size), randint())
        step = draws.step(keys, [0] * batch, length)
        with pytest.raises(TypeError, match="multinomial"):
            _ = step.uniform
        assert torch.equal(step.multinomial(p), multinomial(p))
        assert torch.equal(step.choose(routes).flatten(), multinomial(routes.view(-1, 3)))
        assert torch.equal(step.tokens(size), randint())
        u = torch.rand(batch, length, generator=theirs)
        assert torch.equal(step.gumbel(), -torch.log(-torch.log(u)).double())
        positions = torch.tensor([[0, 4], [1, 2], [3, 0]])
        resampled = step.categorical_rows(q, positions)
        assert torch.equal(resampled.flatten(), multinomial(q.view(-1, size)))
        assert torch.equal(ours.get_state(), theirs.get_state())

    def test_gumbel_noise_survives_a_uniform_of_zero(self, monkeypatch):
        monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
        noise = OracleDraws().step([RowKey(0, 0)], [0], 3).gumbel()
        expected = -math.log(-math.log(1e-12))
        torch.testing.assert_close(noise, torch.full((1, 3), expected, dtype=torch.float64))

    def test_multinomial_may_be_asked_in_blocks_of_rows(self):
        p = torch.rand(37, 1003, generator=torch.Generator().manual_seed(0))
        whole = OracleDraws(torch.Generator().manual_seed(4)).step([RowKey(0, 0)], [0], 37)
        parts = OracleDraws(torch.Generator().manual_seed(4)).step([RowKey(0, 0)], [0], 37)
        blocks = [parts.multinomial(block) for block in p.split([1, 9, 20, 7])]
        assert torch.equal(whole.multinomial(p), torch.cat(blocks))

    def test_without_a_generator_it_uses_the_global_one(self):
        torch.manual_seed(5)
        expected = torch.randint(0, 100, (1, 6))
        torch.manual_seed(5)
        assert torch.equal(OracleDraws().first_canvas([RowKey(0, 0)], 6, 100), expected)


def test_misuse_is_refused():
    for seed in (-1, 2**64):
        with pytest.raises(RequestError, match=r"seed must be at least 0"):
            RowKey(seed, 0)
    with pytest.raises(RequestError, match="canvas must be at least 0"):
        RowKey(0, -1)
    with pytest.raises(ValueError, match="zip"):
        DRAWS.step([RowKey(0, 0)], [0, 1], 4).tokens(3)
