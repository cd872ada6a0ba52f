"""The streamed head against a plain float64 softmax over whole rows, and what it may not allocate."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dgemma_core.backends.cpu.head import CpuHead
from dgemma_core.backends.cpu.online_softmax import row_top, serves
from dgemma_core.draws import BELOW_ONE, CounterDraws, Filters, RowKey, filtered, found_in
from dgemma_core.errors import RequestError
from dgemma_core.head import (
    LOGITS,
    SLICE,
    Prediction,
    VocabularyHead,
)
from tests.core import plain_head

CASES = range(80)


HEADS = {"torch": VocabularyHead, "cpu": CpuHead}


@pytest.fixture(autouse=True, params=HEADS)
def head(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[VocabularyHead]:
    """The reference head, and the one with statistics by C."""
    assert serves(torch.zeros(1)), "no C compiler"
    monkeypatch.setitem(globals(), "Head", HEADS[request.param])
    return HEADS[request.param]


Head = VocabularyHead
"""The head under test."""


@dataclass(frozen=True)
class Uniforms:
    """Draws of given uniform numbers (B, C)."""

    uniform: Tensor


@dataclass(frozen=True)
class Case:
    """One drawn call of `predict`."""

    weight: Tensor
    hidden: Tensor
    cap: float
    slice_size: int
    temperature: Tensor | float
    options: dict[str, Any]
    draws: Uniforms

    @property
    def head(self) -> VocabularyHead:
        return Head(self.weight, self.cap, self.slice_size)

    def logits(self) -> Tensor:
        """Soft-capped, (B, C, V) float64; the product is rounded to the weights' dtype, as theirs."""
        return self.cap * torch.tanh((self.hidden @ self.weight.T).double() / self.cap)

    def predict(self) -> Prediction:
        return self.head.predict(self.hidden, self.temperature, self.draws, **self.options)

    def plain(self) -> plain_head.PlainPrediction:
        embedding = self.weight.double() if self.options["soft"] else None
        options = {name: value for name, value in self.options.items() if name != "soft"}
        return plain_head.predict(
            self.logits(), self.temperature, self.draws, embedding=embedding, **options
        )


def draw_case(number: int, *, integers: bool = False, dtype: torch.dtype = torch.float32) -> Case:
    """Case `number`. With `integers` every product is exact in any order of summation, whatever the
    slices; then many logits are equal."""
    rng = random.Random(f"head {number}")
    generator = torch.Generator().manual_seed(number)
    vocab, width = rng.choice([7, 64, 200, 330]), rng.choice([3, 8, 16])
    batch, length = rng.randint(1, 3), rng.randint(1, 6)
    if integers:
        weight = torch.randint(-1, 2, (vocab, width), generator=generator).float()
        hidden = torch.randint(-2, 3, (batch, length, width), generator=generator).float()
    else:
        weight = torch.randn(vocab, width, generator=generator)
        hidden = torch.randn(batch, length, width, generator=generator)
    temperature: Tensor | float = rng.choice([0.0, 0.4, 1.0, 2.0])
    if rng.random() < 0.3:
        temperature = torch.tensor([rng.choice([0.4, 0.8, 1.0, 2.0]) for _ in range(batch)])
    sampled = isinstance(temperature, Tensor) or temperature > 0
    filters = rng.choice([None, None, Filters(3), Filters(None, 0.7), Filters(5, 0.5)])
    if not integers:
        # from nearly uniform to most logits at the cap, where a filter's edge is a matter of rounding
        hidden *= rng.choice([0.01, 1.0, 3.0, *([] if sampled and filters else [1000.0])])
    return Case(
        weight=weight.to(dtype),
        hidden=hidden.to(dtype),
        cap=rng.choice([30.0, 5.0]),
        slice_size=rng.choice([64, 128, vocab, vocab + 5]),
        temperature=temperature,
        options={
            "reference": rng.choice(["tempered", "raw"]),
            "filters": filters if sampled and not integers else None,
            "soft": rng.random() < 0.7,
            "top_k": rng.choice([0, 1, 4, vocab]),
        },
        draws=Uniforms(torch.rand(batch, length, generator=generator, dtype=torch.float64)),
    )


def reference_logits(case: Case) -> Tensor:
    """(B, C, V) float64, of the distribution that the soft embedding comes from."""
    logits = case.logits()
    temperature = torch.as_tensor(case.temperature, dtype=torch.float32).expand(len(logits))
    if case.options["reference"] == "tempered" and not (temperature == 0).all():
        logits = logits / temperature[:, None, None].double()
    return logits


def sampling_edges(case: Case, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The cumulative probabilities, in vocabulary order, before and after each token (B, C)."""
    batch = len(case.hidden)
    temperature = torch.as_tensor(case.temperature, dtype=torch.float32).expand(batch)
    logits = plain_head.cut(case.logits() / temperature[:, None, None], case.options["filters"])
    cumulative = logits.softmax(-1).cumsum(-1)
    after = cumulative.gather(-1, tokens[..., None]).squeeze(-1)
    before = (cumulative - logits.softmax(-1)).gather(-1, tokens[..., None]).squeeze(-1)
    return before, after


def close(ours: Tensor, plain: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours.double(), plain.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("number", CASES)
def test_prediction_is_the_plain_softmaxs(number: int) -> None:
    case = draw_case(number)
    ours, plain, logits = case.predict(), case.plain(), case.logits()
    for name in ("argmax_probability", "entropy", "logsumexp"):
        close(getattr(ours, name), getattr(plain, name), 2e-5)
    # Which of two nearly equal tokens is ahead is a matter of rounding: compare their logits.
    best = logits.amax(-1)
    close(logits.gather(-1, ours.argmax[..., None]).squeeze(-1), best, 1e-5)
    close(ours.token_logit(ours.argmax), best, 1e-5)
    if case.options["soft"]:
        assert ours.soft_embedding is not None and plain.soft_embedding is not None
        close(ours.soft_embedding, plain.soft_embedding, 1e-4)
    else:
        assert ours.soft_embedding is None
    if case.options["top_k"]:
        assert ours.top_ids is not None and ours.top_logits is not None
        close(ours.top_logits, plain.top_logits, 1e-4)
        close(ours.top_probabilities, plain.top_probabilities, 1e-4)
        assert (ours.top_ids.sort(-1).values.diff() > 0).all(), "a token twice"
    else:
        assert ours.top_ids is None and ours.top_probabilities is None
    if isinstance(case.temperature, float) and case.temperature == 0:
        assert torch.equal(ours.sample, ours.argmax)
        close(ours.sample_probability, logits.softmax(-1).amax(-1), 1e-4)
        return
    before, after = sampling_edges(case, ours.sample)
    assert (before - 1e-5 <= case.draws.uniform).all() and (
        case.draws.uniform <= after + 1e-5
    ).all()
    close(ours.sample_probability, after - before, 1e-4)
    referred = reference_logits(case).log_softmax(-1)
    close(ours.sample_logprob, referred.gather(-1, ours.sample[..., None]).squeeze(-1), 2e-4)


@pytest.mark.parametrize("number", CASES)
def test_the_soft_embedding_of_a_few_tokens(number: int) -> None:
    """That of the most probable ones, their probabilities made to sum to 1; nothing else changes."""
    case = draw_case(number)
    case.options["soft"] = True
    k = random.Random(number).randint(1, len(case.weight))
    plain = case.predict()
    case.options["soft_top_k"] = k
    ours, top = case.predict(), reference_logits(case).sort(-1, descending=True)
    soft = top.values[..., :k].softmax(-1)[..., None] * case.weight.double()[top.indices[..., :k]]
    assert ours.soft_embedding is not None
    # which of two equal tokens comes last among the k is a matter of rounding
    clear = torch.ones(case.hidden.shape[:2], dtype=torch.bool)
    if k < len(case.weight):
        clear = top.values[..., k - 1] - top.values[..., k] > 1e-4
    expected = soft.sum(-2) * case.weight.shape[1] ** 0.5
    close(ours.soft_embedding[clear], expected[clear], 1e-4)
    for name in ("sample", "sample_probability", "argmax", "entropy", "top_logits"):
        a, b = getattr(ours, name), getattr(plain, name)
        assert (a is None and b is None) or torch.equal(a, b), name


@pytest.mark.parametrize("k", [1, 5, 63, 64, 200])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_the_top_of_long_rows(k: int, levels: int) -> None:
    """By groups as by all at once; with many equal numbers, too."""
    z = torch.randint(levels, (7, 4096), generator=torch.Generator().manual_seed(k)).float()
    values, places = row_top(z, k)
    assert torch.equal(values, z.topk(k, dim=1).values)
    assert torch.equal(z.gather(1, places), values)
    assert all(len(set(row)) == k for row in places.tolist()), "a place twice"


@pytest.mark.parametrize("number", CASES)
def test_ties_go_to_the_lowest_index(number: int) -> None:
    """Exact products: argmax and sample are those of the plain softmax, whatever the slices."""
    case = draw_case(number, integers=True)
    ours, plain = case.predict(), case.plain()
    logits = case.logits()
    assert torch.equal(ours.argmax, logits.argmax(-1))
    before, after = sampling_edges(case, ours.sample)
    if not torch.equal(ours.sample, plain.sample):
        differs = ours.sample != plain.sample
        edge = torch.minimum(
            (before - case.draws.uniform).abs(), (after - case.draws.uniform).abs()
        )
        assert (edge[differs] < 1e-6).all()
    close(ours.entropy, plain.entropy, 1e-4)


def test_the_drawn_cases_reach_everything() -> None:
    cases = [draw_case(number) for number in CASES]
    assert {case.options["reference"] for case in cases} == {"tempered", "raw"}
    assert sum(case.options["filters"] is not None for case in cases) >= 20
    assert sum(isinstance(case.temperature, Tensor) for case in cases) >= 10
    assert {c.temperature for c in cases if isinstance(c.temperature, float)} == {0, 0.4, 1, 2}
    assert sum(len(case.weight) > case.slice_size for case in cases) >= 10
    assert sum(case.slice_size >= len(case.weight) for case in cases) >= 10
    assert sum(bool((case.logits().abs() >= 0.999 * case.cap).any()) for case in cases) >= 10
    exact = [draw_case(number, integers=True).logits() for number in CASES]
    assert sum(bool(((z == z.amax(-1, keepdim=True)).sum(-1) > 1).any()) for z in exact) >= 40


@pytest.mark.parametrize("number", range(30))
def test_bfloat16(number: int) -> None:
    """Logits of integers are exact in bfloat16 too, so only later roundings show: the soft
    embedding is summed in bfloat16 products (2⁻⁸ each), all other fields in float32."""
    case = draw_case(number, integers=True, dtype=torch.bfloat16)
    ours, plain = case.predict(), case.plain()
    assert torch.equal(ours.argmax, case.logits().argmax(-1))
    for name in ("argmax_probability", "entropy", "logsumexp"):
        assert getattr(ours, name).dtype == torch.float32
        close(getattr(ours, name), getattr(plain, name), 2e-5)
    close(ours.token_logit(ours.argmax), case.logits().amax(-1), 1e-5)
    if case.options["soft"]:
        assert ours.soft_embedding is not None
        assert ours.soft_embedding.dtype == torch.bfloat16
        close(ours.soft_embedding, plain.soft_embedding, 0.03)


def test_logits_are_exact_at_the_extremes() -> None:
    """Nothing overflows where all mass is on one token, or on none."""
    weight = torch.eye(5)
    sure, lost = 1e30 * torch.eye(5)[3], torch.zeros(5)
    ours = Head(weight, 30.0, 2).predict(
        torch.stack([sure, lost])[None], 0.01, top_k=5, draws=Uniforms(torch.full((1, 2), 0.999))
    )
    assert ours.sample.tolist() == [[3, 4]] and ours.argmax.tolist() == [[3, 0]]
    assert ours.entropy[0].tolist() == pytest.approx([0.0, math.log(5)], abs=1e-6)
    assert ours.argmax_probability[0].tolist() == pytest.approx([1.0, 0.2])
    assert torch.isfinite(ours.soft_embedding).all() and torch.isfinite(ours.logsumexp).all()


@pytest.mark.parametrize(
    ("temperature", "filters"),
    [(1.0, None), (0.6, None), (2.0, None), (1.5, Filters(6)), (1.5, Filters(None, 0.8))],
)
def test_samples_are_fair(temperature: float, filters: Filters | None) -> None:
    """χ² of many samples of one distribution against it; nothing outside the filters is drawn."""
    count, vocab = 20_000, 17
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(vocab, 4, generator=generator)
    hidden = torch.randn(4, generator=generator).expand(1, count, 4)
    draws = CounterDraws().step([RowKey(5, 0)], [0], count)
    head = Head(weight, 30.0, slice_size=5)
    sample = head.predict(hidden, temperature, draws, filters=filters, soft=False).sample
    logits = 30 * torch.tanh((hidden[0, 0] @ weight.T).double() / 30) / temperature
    p = plain_head.cut(logits, filters).softmax(-1)
    counts = sample.flatten().bincount(minlength=vocab).double()
    assert counts[p == 0].sum() == 0
    p, counts = p[p > 0], counts[p > 0]
    freedom = len(p) - 1
    statistic = ((counts - count * p) ** 2 / (count * p)).sum()
    assert abs(statistic - freedom) / math.sqrt(2 * freedom) < 5


def test_slices_without_mass_need_no_second_product(
    head: type[VocabularyHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every position is sure of a token of the first slice, the others add nothing to the soft embedding."""
    generator = torch.Generator().manual_seed(0)
    weight, hidden = torch.randn(640, 8, generator=generator), torch.zeros(2, 3, 8)
    weight[:, 0] = torch.where(torch.arange(640) < 10, 1.0, -1.0)
    hidden[..., 0] = 40.0
    shapes = []
    plain = F.linear
    monkeypatch.setattr(F, "linear", lambda x, w: (shapes.append(w.shape), plain(x, w))[1])
    sure = Head(weight, 30.0, 64).predict(hidden, 0.7, Uniforms(torch.rand(2, 3)))
    if head is CpuHead:
        assert shapes == [(64, 8), (8, 64)] + 9 * [(64, 8)]
    shares = (weight.double() @ hidden[0, 0].double()).div(30).tanh().mul(30 / 0.7).softmax(0)
    close(sure.soft_embedding[0, 0], shares @ weight.double() * 8**0.5, 1e-6)
    del shapes[:]
    Head(weight, 30.0, 64).predict(0 * hidden, 0.7, Uniforms(torch.rand(2, 3)))
    assert len(shapes) == (20 if head is CpuHead else 10)


def test_what_is_reported_changes_nothing() -> None:
    """Bit for bit: to watch a run is not to change it."""
    generator = torch.Generator().manual_seed(0)
    weight, hidden = (
        torch.randn(1000, 8, generator=generator),
        torch.randn(2, 9, 8, generator=generator),
    )
    uniforms = Uniforms(torch.rand(2, 9, generator=generator))
    for slice_size in (128, 1000):
        head = Head(weight, 30.0, slice_size)
        plain, watched = head.predict(hidden, 0.7, uniforms), head.predict(hidden, 0.7, uniforms, top_k=5)  # fmt: skip
        for name in ("sample", "argmax", "entropy", "sample_probability", "soft_embedding"):
            assert torch.equal(getattr(plain, name), getattr(watched, name))
        assert torch.equal(watched.top_ids[..., 0], watched.argmax)


def test_samples_do_not_depend_on_slices_and_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, hidden = (
        torch.randn(1000, 8, generator=generator),
        torch.randn(6, 8, 8, generator=generator),
    )
    keys = [RowKey(seed, 2) for seed in range(6)]
    whole = Head(weight, 30.0).predict(hidden, 0.7, CounterDraws().step(keys, [4] * 6, 8))
    for slice_size in (64, 128, 1000):
        head = Head(weight, 30.0, slice_size)
        sliced = head.predict(hidden, 0.7, CounterDraws().step(keys, [4] * 6, 8))
        assert torch.equal(sliced.sample, whole.sample)
        close(sliced.sample_probability, whole.sample_probability, 1e-5)
    for row, key in enumerate(keys):
        head = Head(weight, 30.0, 64)
        alone = head.predict(hidden[row : row + 1], 0.7, CounterDraws().step([key], [4], 8))
        assert torch.equal(alone.sample[0], whole.sample[row])


@pytest.mark.parametrize("seed", range(50))
def test_a_place_without_mass_is_never_found(seed: int) -> None:
    """Not even at the largest target, after as many roundings as there are levels."""
    masses = torch.rand(64, 40, generator=torch.Generator().manual_seed(seed)).double()
    masses[:, -7:] = 0
    masses[:, :3] = 0
    for target in (0.0, BELOW_ONE):
        inside = torch.full((64, 1), target, dtype=torch.float64)
        for _ in range(3):
            place, inside = found_in(masses, inside)
            assert (masses.gather(1, place) > 0).all()
            assert ((inside >= 0) & (inside < 1)).all()


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operation returns, views of given ones apart."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                own = tensor.untyped_storage().data_ptr() not in self.given
                self.elements = max(self.elements, own * tensor.numel())
        return result


@pytest.mark.parametrize("reference", ["tempered", "raw"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_streamed_path_allocates_slices_only(reference: Any, temperature: float) -> None:
    rows, width, vocab, size = 48, 16, 4096, 128
    weight, hidden = torch.randn(vocab, width), torch.randn(2, rows // 2, width)
    draws = CounterDraws().step([RowKey(0, 0), RowKey(1, 0)], [0, 0], rows // 2)
    head = Head(weight, 30.0, size)
    with torch.inference_mode(), Largest(weight) as largest:
        head.predict(hidden, temperature, draws, reference=reference, top_k=8)
        head.predict(hidden, temperature, draws, reference=reference, soft_top_k=8)
    assert rows * size <= largest.elements < 2 * rows * size
    with torch.inference_mode(), Largest(weight) as largest:
        head.token_logit(hidden, torch.randint(vocab, (2, rows // 2)))
    assert largest.elements < rows * size
    with torch.inference_mode(), Largest(weight) as largest:
        head.logits(hidden)
    assert largest.elements == rows * vocab, "the measure sees whole rows"


@pytest.mark.parametrize("number", range(20))
def test_token_logit_and_rows(number: int) -> None:
    case = draw_case(number)
    logits = case.logits()
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(len(case.weight), case.hidden.shape[:2], generator=generator)
    # What large terms of a sum leave when they cancel is as far off as they are rounded, in any order.
    terms = case.hidden.double().abs() @ case.weight.double().abs().T
    slack = 1e-5 * (1 + logits.abs()) + 2**-23 * terms
    ours = case.predict()
    rows = ours.rows(0, torch.tensor([0]))
    assert rows.dtype == torch.float64
    off = (ours.token_logit(tokens) - logits.gather(-1, tokens[..., None]).squeeze(-1)).abs()
    assert (off <= slack.gather(-1, tokens[..., None]).squeeze(-1)).all()
    assert ((rows - logits[0, :1]).abs() <= slack[0, :1]).all()


def test_token_logit_in_bfloat16_rounds_as_the_logits_do() -> None:
    """The corrector compares `token_logit` with `top_logits`: both are products of one rounding."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(500, 256, generator=generator).bfloat16()
    hidden = torch.randn(1, 500, 256, generator=generator).bfloat16()
    head = Head(weight, 30.0)
    tokens = torch.arange(500)[None]
    ours, whole = head.token_logit(hidden, tokens), head.logits(hidden)[0].diagonal()[None]
    # the order of summation may flip a rounding now and then, by one unit in the last place
    assert (ours == whole).float().mean() > 0.98
    close(ours, whole, 2**-7)


def test_filters_keep_ties_and_the_first_token() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 0.0]])
    assert filtered(logits, Filters(2)).isfinite().tolist() == [[True, True, True, False]]
    assert filtered(logits, Filters(9)).isfinite().all()
    assert filtered(logits, Filters(None, 0.1)).isfinite().tolist() == [[True, False, False, False]]
    assert filtered(logits, Filters(None, 1.0)).isfinite().all()


WEIGHT = torch.randn(6, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((0.0,), {"top_k": 7}, "0 … 6"),
        ((0.0,), {"top_k": -1}, "0 … 6"),
        ((0.0,), {"soft_top_k": 0}, "soft_top_k must lie in 1 … 6"),
        ((0.0,), {"soft_top_k": 7}, "soft_top_k must lie in 1 … 6"),
        ((1.0,), {}, "needs random draws"),
        ((-1.0, Uniforms(torch.rand(2, 3))), {}, "temperature"),
        ((torch.tensor([0.0, 1.0]), Uniforms(torch.rand(2, 3))), {}, "temperature"),
        ((float("nan"), Uniforms(torch.rand(2, 3))), {}, "temperature"),
        ((1e-40, Uniforms(torch.rand(2, 3))), {}, "temperature"),
        ((float("inf"), Uniforms(torch.rand(2, 3))), {}, "temperature"),
        ((0.0,), {"filters": Filters(2)}, "no effect"),
    ],
)
def test_refusals(arguments: tuple[Any, ...], options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Head(WEIGHT, 30.0).predict(torch.randn(2, 3, 4), *arguments, **options)


@pytest.mark.parametrize(
    "filters", [{"top_k": 0}, {"top_k": -3}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": math.nan}]
)
def test_filters_that_leave_nothing(filters: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(filters))} must"):
        Filters(**filters)


def test_few_rows_take_larger_slices() -> None:
    """So that a slice's logits, and not its tokens, are always as many."""
    head = Head(torch.zeros(4, 2), 30.0)
    sizes = {rows: head.tokens_per_slice(rows) for rows in (1, 8, 24, 32, 256, 4096)}
    assert sizes[256] == sizes[4096] == SLICE and sizes[32] == 8 * SLICE
    assert all(rows * size <= LOGITS for rows, size in sizes.items() if rows <= 256)
    assert all(size % SLICE == 0 for size in sizes.values())
    assert VocabularyHead(torch.zeros(4, 2), 30.0, 65).tokens_per_slice(1) == 128


@pytest.mark.parametrize("shape", [(1, 0, 4), (0, 3, 4), (1, 3, 5), (3, 4)])
def test_refuses_hidden_states_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="hidden states are"):
        Head(WEIGHT, 30.0).predict(torch.zeros(shape), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_not_finite_end_in_one_error(number: float, dtype: torch.dtype) -> None:
    hidden = torch.randn(1, 3, 4)
    hidden[0, 1, 2] = number
    weight = WEIGHT.clone()
    weight[0, 2] = 0  # infinity times zero is no number
    with pytest.raises(RequestError, match="not finite"):
        Head(weight.to(dtype), 30.0).predict(hidden.to(dtype), 0.0)
