"""Small models in C: the reference's numbers, the same bits whatever the batch and the threads, and one clear error for
whatever C cannot take."""

from __future__ import annotations

import copy
import ctypes
import math
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma_core.backends.cpu import bindings, small_model
from dgemma_core.backends.cpu.compiling import FLAGS, compile_library
from dgemma_core.backends.cpu.small_model import SmallModel
from dgemma_core.backends.guard import Guarded
from dgemma_core.cache import Buffer, PrefixCache, RowCache
from dgemma_core.config import ModelConfig
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.errors import RequestError
from dgemma_core.files.checkpoint import load_model
from dgemma_core.head import Prediction
from dgemma_core.model import DiffusionGemma
from dgemma_core.nano.recipes import NANO
from tests.backends.cpu.passes import WAYS, Recorder, change, close, passes, plain_passes
from tests.core import tiny

COMPILERS = [name for name in ("gcc-11", "gcc-12", "clang", "clang-14") if shutil.which(name)]
"""Compilers beside the usual one, as far as they are here."""
WIDTHS = {
    "vocab_size": 192, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
    "layers": (replace(tiny.SLIDING, head_dim=32), replace(tiny.FULL, head_dim=64)),
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "small": {},
    "many experts": {"num_experts": 37, "top_k_experts": 5},
    "own keys": {"layers": (replace(tiny.SLIDING, head_dim=32, num_key_value_heads=4),)},
    "full, then sliding": {"layers": WIDTHS["layers"][::-1] * 2},
    "wide": {"hidden_size": 160, "num_attention_heads": 8},
    "long canvas": {"canvas_length": 150},
}


def small(seed: int = 1, **changes: Any) -> DiffusionGemma:
    """A random model of widths that fit."""
    return tiny.model(seed, **{**WIDTHS, **changes}).use("auto")


def plainly(model: DiffusionGemma) -> DiffusionGemma:
    """A copy that runs on the reference."""
    return copy.deepcopy(model).use("torch")


def small_model_of(model: DiffusionGemma) -> SmallModel:
    backend = model.backend
    assert isinstance(backend, Guarded) and isinstance(backend.fast, SmallModel), (
        "no C compiler, or a width that does not fit"
    )
    return backend.fast


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_ids(model: DiffusionGemma, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.config.text.vocab_size, shape, generator=generator)


def hidden_of(cache: PrefixCache) -> Tensor:
    assert cache.hidden is not None
    return cache.hidden


# --- the reference's numbers


@pytest.mark.parametrize("shape", SHAPES)
def test_as_exact_as_the_reference(shape: str) -> None:
    """Judged against the reference in float64, which differs by rounding from both."""
    model = small(**SHAPES[shape])
    ours, plain = passes(model), plain_passes(model)
    exact = plain_passes(copy.deepcopy(model).double())
    for a, b, c in zip(ours, plain, exact, strict=True):
        error, allowed = (float((x.double() - c).abs().max()) for x in (a, b))
        assert error <= 3 * allowed + 1e-5 * max(1.0, float(c.abs().max()))
    assert small_model_of(model).name == model.backend.name == "cpu"


def test_the_same_numbers_of_a_trained_model() -> None:
    model = load_model(NANO, dtype="float32", device="cpu").use("auto")
    assert model.backend.name == "cpu"
    close(passes(model), plain_passes(model), 1e-4)


def built_with(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: str, compiler: str = "") -> None:  # fmt: skip
    """Small models run from now on by another build of the C file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    if compiler:
        monkeypatch.setenv("CC", compiler)
    source = Path(bindings.__file__).with_name("small_model.c")
    made = ctypes.CDLL(str(compile_library(source, (*FLAGS, *flags))))
    functions = bindings.with_small_model_types(made)
    monkeypatch.setattr(bindings, "small_model", lambda: functions)


def check_numbers() -> None:
    model = small(**SHAPES["many experts"])
    hidden = torch.randn(2, 37, 64, generator=torch.Generator().manual_seed(0))
    with threads(2):
        close(passes(model), plain_passes(model), 1e-4)
        ours = predictions(model, hidden, False, True)
    theirs = predictions(plainly(model), hidden, False, True)
    assert torch.equal(ours.sample, theirs.sample)
    torch.testing.assert_close(ours.soft_embedding, theirs.soft_embedding, rtol=1e-4, atol=1e-4)


@pytest.mark.subprocess
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86's instructions")
@pytest.mark.parametrize(
    "flags",
    (("-march=haswell",), ("-march=x86-64", "-Wno-psabi"), ("-fno-openmp",)),
    ids=("AVX2", "SSE", "one thread"),
)
def test_the_same_numbers_from_other_instructions(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_with(monkeypatch, tmp_path, *flags)
    check_numbers()


@pytest.mark.subprocess
@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_same_numbers_from_other_compilers(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built_with(monkeypatch, tmp_path, compiler=compiler)
    check_numbers()


def test_long_prompts() -> None:
    """Several chunks, several blocks, positions beyond the first table of angles."""
    model = small()
    ids = random_ids(model, 1, 430)
    plain = hidden_of(plainly(model).encode(ids))
    whole, parts = hidden_of(model.encode(ids)), hidden_of(model.encode(ids, chunk=100))
    torch.testing.assert_close(whole, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(whole, parts), "bit for bit"


def test_the_same_bits_whatever_the_threads() -> None:
    """More threads than cores: a late thread finds nothing overwritten."""
    model = small(**SHAPES["full, then sliding"])
    with threads(1):
        alone = passes(model)
    with threads(4):
        for _ in range(30):
            assert all(map(torch.equal, passes(model), alone))


def test_the_same_bits_whatever_the_batch() -> None:
    model = small()
    rows = [random_ids(model, length, seed=length) for length in (23, 5, 11)]
    canvas, soft = random_ids(model, 3, 8), torch.randn(3, 8, 64)
    together = model.encode(rows)
    denoised = model.denoise(canvas, together, soft)
    uniform = CounterDraws().step([RowKey(0, 0)] * 3, [0, 1, 2], 8)
    predicted = model.predict(denoised, 0.7, uniform)
    for i, row in enumerate(rows):
        cache = model.encode([row])
        assert torch.equal(hidden_of(together)[i, : len(row)], hidden_of(cache)[0])
        alone = model.denoise(canvas[i : i + 1], cache, soft[i : i + 1])
        assert torch.equal(alone[0], denoised[i])
        own = model.predict(alone, 0.7, CounterDraws().step([RowKey(0, 0)], [i], 8))
        for name in ("sample", "argmax_probability", "entropy", "soft_embedding"):
            assert torch.equal(getattr(own, name)[0], getattr(predicted, name)[i])


def test_nothing_is_read_before_it_is_written() -> None:
    model = small(**SHAPES["many experts"])
    before = passes(model)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # with nan
    try:
        assert torch.empty(1).isnan().all()
        assert all(map(torch.equal, passes(model), before))
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(False)


def test_branches_of_one_prefix_in_one_batch() -> None:
    model = small()
    cache = model.encode(random_ids(model, 1, 9))
    canvas = random_ids(model, 3, 8)
    branches = PrefixCache([*cache.rows, *cache.rows, cache.rows[0].view()])
    recorder = Recorder()
    together = model.denoise(canvas, branches, watch=recorder)
    alone = [model.denoise(canvas[i : i + 1], cache) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    plain = Recorder()
    plainly(model).denoise(canvas, branches, watch=plain)
    close(recorder.seen, plain.seen)


# --- the head


def predictions(model: DiffusionGemma, hidden: Tensor, greedy: bool, soft: bool) -> Prediction:
    if greedy:
        return model.predict(hidden, 0.0, soft=soft)
    draws = CounterDraws().step([RowKey(3, 1), RowKey(4, 0)], [2, 5], hidden.shape[1])
    return model.predict(hidden, torch.tensor([0.4, 1.7]), draws, soft=soft)


FIELDS = (
    "sample", "sample_probability", "argmax", "argmax_probability", "entropy", "logsumexp", "soft_embedding",
)  # fmt: skip


@pytest.mark.parametrize("scale", (0.0, 0.3, 8.0, 300.0))
@pytest.mark.parametrize("greedy", (False, True))
@pytest.mark.parametrize("soft", (False, True))
def test_the_head(scale: float, greedy: bool, soft: bool) -> None:
    """Also where all tokens are alike, and where the soft cap makes the best ones equal."""
    model = small()
    hidden = scale * torch.randn(2, 37, 64, generator=torch.Generator().manual_seed(0))
    ours = predictions(model, hidden, greedy, soft)
    theirs = predictions(plainly(model), hidden, greedy, soft)
    for name in FIELDS:
        a, b = getattr(ours, name), getattr(theirs, name)
        if a is None or b is None:
            assert a is b is None and not soft
        elif scale == 300.0 and name in ("sample", "argmax"):
            # Where the cap makes tokens equal, their order is decided by the last bit.
            probability = f"{name}_probability"
            best = getattr(ours, probability), getattr(theirs, probability)
            torch.testing.assert_close(*best, rtol=1e-4, atol=1e-4)
        else:
            torch.testing.assert_close(a, b, rtol=5e-5, atol=5e-5)


def test_what_is_reported_changes_nothing() -> None:
    """Bit for bit: to watch a run is not to change it."""
    model = small()
    hidden = torch.randn(2, 37, 64, generator=torch.Generator().manual_seed(0))
    draws = CounterDraws().step([RowKey(3, 1), RowKey(4, 0)], [2, 5], 37)
    temperatures = torch.tensor([0.4, 1.7])
    plain = model.predict(hidden, temperatures, draws)
    watched = model.predict(hidden, temperatures, draws, top_k=7)
    for name in FIELDS:
        assert torch.equal(getattr(plain, name), getattr(watched, name)), name
    top = (model.logits(hidden) / temperatures.view(2, 1, 1)).topk(7)
    torch.testing.assert_close(watched.top_logits, top.values, rtol=1e-5, atol=1e-5)
    assert watched.top_ids is not None
    assert torch.equal(watched.top_ids[..., 0], watched.argmax)


def test_samples_follow_the_distribution() -> None:
    """A sweep of uniform numbers gives each token as often as it is probable, and none of probability 0."""
    model = small()
    made = small_model_of(model)
    count = 20_000
    hidden = torch.randn(1, 64, generator=torch.Generator().manual_seed(1)) * 3
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    found = made.fields(hidden.expand(count, -1), torch.ones(count, 1), uniform, False)
    shares = torch.bincount(found["sample"], minlength=192) / count
    expected = model.logits(hidden)[0].softmax(dim=0)
    assert (shares - expected).abs().max() < 1.5 / count + 1e-6
    assert (found["sample"].diff() >= 0).all(), "in the vocabulary's order"
    last = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert made.fields(hidden, torch.full((1, 1), 0.01), last, False)["sample_probability"] > 0


@pytest.mark.parametrize("temperature", (1e-3, 1e-10, 1e-40, 0.0))
def test_a_temperature_near_zero_takes_the_argmax(temperature: float) -> None:
    """Down to where cap / temperature is beyond float32."""
    made = small_model_of(small())
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    uniform = torch.linspace(0, 1 - 1e-9, 5, dtype=torch.float64)
    found = made.fields(hidden, torch.full((5, 1), temperature), uniform, True, 3)
    assert torch.equal(found["sample"], found["argmax"])
    assert all(value.isfinite().all() for value in found.values())
    assert (found["argmax_probability"] == 1).all() and (found["entropy"] == 0).all()


# --- what C cannot take


NOT_NUMBERS = (math.nan, math.inf, -math.inf)
DAMAGED = (
    "embed_tokens.weight", "norm.weight", "layers.0.router.proj.weight", "layers.0.router.scale",
    "layers.1.experts.gate_up_proj", "layers.1.experts.down_proj", "layers.0.self_attn.k_proj.weight",
    "layers.1.self_attn.q_norm.weight", "layers.0.mlp.up_proj.weight",
)  # fmt: skip


def damaged(name: str, number: float, place: int | slice) -> DiffusionGemma:
    """A model with a number that it should not have; its copy in C is made afterwards."""
    model = tiny.model(1, **{**WIDTHS, **SHAPES["many experts"]})
    model.get_parameter(name).view(-1)[place] = number
    assert small_model_of(model.use("cpu"))
    return model


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("number", NOT_NUMBERS)
def test_numbers_that_are_not_finite_are_reported(name: str, number: float) -> None:
    """By whichever pass first meets them; a prompt that fills several blocks of tokens."""
    model = damaged(name, number, slice(None))
    with pytest.raises(RequestError, match="not finite"):
        cache = model.encode(random_ids(model, 1, 188))
        hidden = model.denoise(random_ids(model, 1, 8), cache)
        model.predict(hidden, 0.0)


@pytest.mark.parametrize("number", (3e38, 1e30, -3e38, 1e-42, -0.0))
def test_large_and_tiny_weights_end_well(number: float) -> None:
    """In finite numbers or in one clear error."""
    for name in DAMAGED:
        model = damaged(name, number, 3)
        try:
            cache = model.encode(random_ids(model, 1, 188))
            hidden = model.denoise(random_ids(model, 1, 8), cache)
            found = model.predict(hidden, 1.0, CounterDraws().step([RowKey(0, 0)], [0], 8))
        except RequestError as error:
            assert "not finite" in str(error)
        else:
            assert hidden.isfinite().all() and found.entropy.isfinite().all()
            assert ((found.sample >= 0) & (found.sample < 192)).all()


def test_hidden_states_that_are_not_finite() -> None:
    model = small()
    for number in NOT_NUMBERS:
        hidden = torch.randn(1, 20, 64)
        hidden[0, 17, 3] = number
        with pytest.raises(RequestError, match="not finite"):
            model.predict(hidden, 0.0)


@pytest.mark.parametrize("temperature", (-1.0, math.nan, math.inf))
def test_temperatures_outside_their_range(temperature: float) -> None:
    made = small_model_of(small())
    with pytest.raises(RequestError, match="temperatures must be finite and not negative"):
        made.fields(torch.zeros(1, 64), torch.full((1, 1), temperature), None, False)


@pytest.mark.parametrize("uniform", (-0.1, 1.0, math.nan))
def test_uniform_numbers_outside_their_range(uniform: float) -> None:
    made = small_model_of(small())
    drawn = torch.tensor([uniform], dtype=torch.float64)
    with pytest.raises(RequestError, match=r"uniform numbers in \[0, 1\)"):
        made.fields(torch.zeros(1, 64), torch.ones(1, 1), drawn, False)


def test_no_tokens() -> None:
    made = small_model_of(small())
    none = torch.empty(0, 1)
    assert made.forward(torch.empty(0, dtype=torch.long), [], [], causal=True).shape == (0, 64)
    found = made.fields(torch.empty(0, 64), none, None, True, 2)
    assert found["sample"].shape == (0,) and found["soft_embedding"].shape == (0, 64)


def test_ids_of_other_dtypes() -> None:
    model = small()
    made, cache = small_model_of(model), model.encode([[1, 2]])
    ids = random_ids(model, 8)
    run = partial(made.forward, rows=cache.rows, sizes=[8], causal=False)
    expected = run(ids)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(run(ids.to(dtype)), expected)
    assert torch.equal(run(ids.repeat_interleave(2)[::2]), expected), "not contiguous"
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(RequestError, match="whole numbers"):
            run(ids.to(dtype))
    with pytest.raises(RequestError, match=r"must be on the CPU"):
        run(ids.to("meta"))


def test_ids_outside_the_vocabulary() -> None:
    model = small()
    made, cache = small_model_of(model), model.encode([[1, 2]])
    for token in (192, -1, 2**40):
        canvas = torch.full((8,), 7)
        canvas[3] = token
        with pytest.raises(RequestError, match=rf"lie in 0 … 191, got {token}"):
            made.forward(canvas, cache.rows, [8], causal=False)


def test_soft_embeddings_of_other_dtypes_and_shapes() -> None:
    model = small()
    made, cache = small_model_of(model), model.encode([[1, 2]])
    ids, soft = random_ids(model, 8), torch.randn(8, 64)
    run = partial(made.forward, ids, cache.rows, [8], causal=False)
    assert torch.equal(run(soft=soft.double()), run(soft=soft))
    rounded = soft.bfloat16()
    assert torch.equal(run(soft=rounded), run(soft=rounded.float()))
    assert torch.equal(run(soft=soft.mT.contiguous().mT), run(soft=soft))
    for wrong in (soft[:7], soft[:, :32], soft.unsqueeze(0)):
        with pytest.raises(RequestError, match="the soft embedding must have shape"):
            run(soft=wrong)
    with pytest.raises(RequestError, match="floating-point numbers"):
        run(soft=soft.long())


def test_hidden_states_of_another_width() -> None:
    made = small_model_of(small())
    with pytest.raises(RequestError, match="hidden states must have shape"):
        made.fields(torch.zeros(3, 32), torch.ones(3, 1), None, False)


@pytest.mark.parametrize("sizes", ([7], [9], [8, 0], [], [-1, 9]))
def test_lengths_that_are_not_those_of_the_tokens(sizes: list[int]) -> None:
    model = small()
    made, rows = small_model_of(model), model.encode([[1, 2], [3, 4]]).rows
    with pytest.raises(RequestError, match="cannot be split"):
        made.forward(random_ids(model, 8), rows[: len(sizes)], sizes, causal=False)


def test_positions_beyond_the_maximum() -> None:
    model = small(max_position_embeddings=20)
    made, cache = small_model_of(model), model.encode([list(range(15))])
    with pytest.raises(RequestError, match="more than the model's 20"):
        made.forward(random_ids(model, 8), cache.rows, [8], causal=False)


def damaged_rows(row: RowCache) -> Iterator[tuple[str, RowCache]]:
    """Rows whose buffers are not those of the model."""

    def changed(**fields: Any) -> RowCache:
        buffer = row.buffers[1]
        assert buffer is not None
        return RowCache(row.length, [row.buffers[0], replace(buffer, **fields)], row.windows)

    buffer = row.buffers[1]
    assert buffer is not None
    keys = buffer.keys
    yield "dtype", changed(keys=keys.bfloat16(), values=keys.bfloat16())
    yield "device", changed(values=keys.to("meta"))
    yield "heads", changed(keys=keys.repeat(2, 1, 1), values=keys.repeat(2, 1, 1))
    yield "head dimension", changed(keys=keys[..., :32], values=keys[..., :32])
    yield "layout", changed(keys=keys.mT.contiguous().mT)
    yield "values", changed(values=keys[:, :-1].contiguous())
    yield "filled", changed(filled=10_000)
    yield "short", changed(filled=3)
    yield "base", changed(base=4)
    yield "negative base", changed(base=-4)
    yield "layers", RowCache(row.length, [*row.buffers, buffer], row.windows)
    yield "windows", RowCache(row.length, row.buffers, (None, None))
    yield "missing", RowCache(row.length, [row.buffers[0], None], row.windows)
    yield "length", RowCache(-2, [None, None], row.windows)
    yield "rank", changed(keys=keys[0], values=keys[0])


@pytest.mark.parametrize("what", [name for name, _ in damaged_rows(
    RowCache(5, [Buffer(torch.zeros(1, 40, 64), torch.zeros(1, 40, 64), 0, 5)] * 2, (5, None))
)])  # fmt: skip
def test_rows_of_another_model(what: str) -> None:
    model = small()
    made, row = small_model_of(model), model.encode([[1, 2, 3, 4, 5]]).rows[0]
    damaged = dict(damaged_rows(row))[what]
    with pytest.raises(RequestError, match="the prefix cache is of another model"):
        made.forward(random_ids(model, 8), [damaged], [8], causal=False)


# --- changes of the model


CHANGED = ("embed_tokens.weight", "encoder_layer_scalars", "layers.1.self_attn.o_proj.weight")


@pytest.mark.filterwarnings("ignore:the model runs on backend 'torch'")
@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("way", WAYS)
def test_changed_weights_are_seen(name: str, way: str) -> None:
    model = small()
    before = passes(model)
    change(model, name, way)
    after = passes(model)
    assert not all(map(torch.allclose, after, before))
    close(after, plain_passes(model))


# --- which models


def no_head_dim(config: ModelConfig) -> tuple[Any, ...]:
    return tuple(replace(layer, head_dim=48) for layer in config.text.layers)


@pytest.mark.parametrize(
    "changes",
    ({"vocab_size": 200}, {"hidden_size": 72}, {"intermediate_size": 100}, {"moe_intermediate_size": 8},
     {"layers": no_head_dim(tiny.CONFIG)}, {"vocab_size": 2 * small_model.VOCABULARY}, {"dtype": torch.bfloat16}),
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_what_does_not_fit(changes: dict[str, Any]) -> None:
    assert not small_model.serves(small(**changes))


def test_large_layers_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert small_model.serves(small())
    monkeypatch.setattr(small_model, "SMALL", 1000)
    assert not small_model.serves(small())


class Doubled(torch.nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_other_modules_and_shapes_do_not_fit() -> None:
    """C would pass over them, or read beyond them."""
    for part in (Doubled(64, 96, bias=False), torch.nn.Linear(64, 128, bias=False), torch.nn.Identity()):  # fmt: skip
        model = small()
        model.layers[1].mlp.up_proj = part  # type: ignore[union-attr]
        assert not small_model.serves(model)
    model = small()
    model.layers[0].self_attn.q_proj = torch.nn.Sequential(model.layers[0].self_attn.q_proj)  # type: ignore[union-attr]
    assert not small_model.serves(model)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "small_model", lambda: None)
    model = small()
    close(passes(model), plain_passes(model))
    assert not isinstance(model.backend, Guarded)


def test_few_tokens_keep_to_one_thread() -> None:
    made = small_model_of(small())
    with threads(3):
        assert [made._threads(tokens) for tokens in (1, 15, 16, 24, 1000)] == [1, 1, 2, 3, 3]


def test_one_call_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoising pass of a whole batch goes to C once."""
    model = small()
    made = small_model_of(model)
    cache = model.encode([[1, 2, 3], [4]])
    calls: list[str] = []
    functions = made.functions

    class Counting:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(functions, name)

    monkeypatch.setattr(made, "functions", Counting())
    model.denoise(random_ids(model, 2, 8), cache)
    assert calls == ["scratch_size", "forward"]
