"""Passes of a small model in C: the plain layers' numbers, whatever the batch and the threads; and nothing passed over
that somebody changed or listens to."""

from __future__ import annotations

import copy
import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma_core.backends.cpu import native
from dgemma_core.backends.cpu.compiling import FLAGS, compile_library
from dgemma_core.backends.cpu.native import NativeModel
from dgemma_core.cache import PrefixCache
from dgemma_core.config import ModelConfig
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.errors import RequestError
from dgemma_core.files.checkpoint import load_model
from dgemma_core.head import Prediction, VocabularyHead
from dgemma_core.model import DiffusionGemma
from dgemma_core.nano.recipes import NANO
from tests.backends.cpu.passes import WAYS, Recorder, change, close, passes, plain_passes, plainly
from tests.core import tiny

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
    return tiny.model(seed, **{**WIDTHS, **changes})


def of(model: DiffusionGemma) -> NativeModel:
    with torch.inference_mode():
        found = model._in_native()
    assert found is not None, "no C compiler, or a width that does not fit"
    return found


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


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_numbers(shape: str) -> None:
    model = small(**SHAPES[shape])
    close(passes(model), plain_passes(model), 3e-5)
    assert model._native is not None and model._mirrored is None


def test_the_same_numbers_of_a_trained_model() -> None:
    model = load_model(NANO, dtype="float32", device="cpu")
    close(passes(model), plain_passes(model), 1e-4)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86's instructions")
@pytest.mark.parametrize(
    "flags",
    (("-march=x86-64-v3",), ("-march=x86-64",), ("-fno-openmp",)),
    ids=("AVX2", "SSE", "one thread"),
)
def test_the_same_numbers_from_other_instructions(
    flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = Path(native.__file__).with_name("native.c")
    made = ctypes.CDLL(str(compile_library(source, (*FLAGS, *flags))))
    monkeypatch.setattr(native, "_functions", lambda: native._with_signatures(made))
    model = small(**SHAPES["many experts"])
    with threads(2):
        close(passes(model), plain_passes(model), 3e-5)
        hidden = torch.randn(2, 37, 64, generator=torch.Generator().manual_seed(0))
        own = VocabularyHead(model.embed_tokens.weight, 30.0)
        with torch.inference_mode():
            ours, theirs = (predictions(head, hidden, False, True) for head in (model.head, own))
    assert torch.equal(ours.sample, theirs.sample)
    torch.testing.assert_close(ours.soft_embedding, theirs.soft_embedding, rtol=1e-4, atol=1e-4)


def test_long_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, several blocks, positions beyond the first table of angles."""
    model = small()
    ids = random_ids(model, 1, 430)
    with plainly():
        plain = model.encode(ids).hidden
    whole, parts = model.encode(ids).hidden, model.encode(ids, chunk=100).hidden
    assert plain is not None and whole is not None and parts is not None
    torch.testing.assert_close(whole, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(whole, parts), "bit for bit"


def test_the_same_bits_whatever_the_threads() -> None:
    """More threads than cores: whoever comes late finds nothing overwritten."""
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
    predicted = model.head.predict(denoised, 0.7, uniform)
    for i, row in enumerate(rows):
        cache = model.encode([row])
        assert together.hidden is not None and cache.hidden is not None
        assert torch.equal(together.hidden[i, : len(row)], cache.hidden[0])
        alone = model.denoise(canvas[i : i + 1], cache, soft[i : i + 1])
        assert torch.equal(alone[0], denoised[i])
        own = model.head.predict(alone, 0.7, CounterDraws().step([RowKey(0, 0)], [i], 8))
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
    with plainly():
        plain = Recorder()
        model.denoise(canvas, branches, watch=plain)
    close(recorder.seen, plain.seen)


def predictions(head: VocabularyHead, hidden: Tensor, greedy: bool, soft: bool) -> Prediction:
    if greedy:
        return head.predict(hidden, 0.0, soft=soft)
    draws = CounterDraws().step([RowKey(3, 1), RowKey(4, 0)], [2, 5], hidden.shape[1])
    return head.predict(hidden, torch.tensor([0.4, 1.7]), draws, soft=soft)


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
    own = VocabularyHead(model.embed_tokens.weight, 30.0)
    with torch.inference_mode():
        ours = predictions(model.head, hidden, greedy, soft)
        theirs = predictions(own, hidden, greedy, soft)
    for name in FIELDS:
        a, b = getattr(ours, name), getattr(theirs, name)
        if a is None or b is None:
            assert a is b is None and not soft
        else:
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def test_what_is_reported_changes_nothing() -> None:
    """Bit for bit: to watch a run is not to change it."""
    model = small()
    hidden = torch.randn(2, 37, 64, generator=torch.Generator().manual_seed(0))
    draws = CounterDraws().step([RowKey(3, 1), RowKey(4, 0)], [2, 5], 37)
    temperatures = torch.tensor([0.4, 1.7])
    with torch.inference_mode():
        plain = model.head.predict(hidden, temperatures, draws)
        watched = model.head.predict(hidden, temperatures, draws, top_k=7)
    for name in FIELDS:
        assert torch.equal(getattr(plain, name), getattr(watched, name)), name
    top = (model.logits(hidden) / temperatures.view(2, 1, 1)).topk(7)
    torch.testing.assert_close(watched.top_logits, top.values, rtol=1e-5, atol=1e-5)
    assert torch.equal(watched.top_ids[..., 0], watched.argmax)


def test_samples_follow_the_distribution() -> None:
    """A sweep of uniform numbers gives each token as often as it is probable, and none of probability 0."""
    model = small()
    native_model = of(model)
    count = 20_000
    hidden = torch.randn(1, 64, generator=torch.Generator().manual_seed(1)) * 3
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    found = native_model.predict(hidden.expand(count, -1), torch.ones(count, 1), uniform, False)
    shares = torch.bincount(found["sample"], minlength=192) / count
    expected = model.logits(hidden)[0].softmax(dim=0)
    assert (shares - expected).abs().max() < 1.5 / count + 1e-6
    assert (found["sample"].diff() >= 0).all(), "in the vocabulary's order"
    last = native_model.predict(
        hidden, torch.full((1, 1), 0.01), torch.tensor([1 - 2.0**-53]), False
    )
    assert last["sample_probability"] > 0


def test_damaged_weights_are_not_hidden() -> None:
    model = small()
    model.layers[0].mlp.up_proj.weight[3, 5] = torch.nan
    hidden = model.encode([[1, 2, 3]]).hidden
    assert hidden is not None and hidden.isnan().any()
    with torch.inference_mode():
        assert model.head.predict(hidden, 0.0).entropy.isnan().any()


def test_a_copied_model_makes_its_own() -> None:
    model = small()
    before = passes(model)
    copied = copy.deepcopy(model)
    assert copied._native is None
    change(copied, "layers.0.self_attn.q_proj.weight", "in place")
    assert not all(map(torch.equal, passes(copied), before))
    assert all(map(torch.equal, passes(model), before))


CHANGED = (
    "embed_tokens.weight",
    "norm.weight",
    "encoder_layer_scalars",
    "self_conditioning.up_proj.weight",
    "layers.1.layer_scalar",
    "layers.1.input_layernorm.weight",
    "layers.1.post_feedforward_layernorm_2.weight",
    "layers.1.self_attn.k_norm.weight",
    "layers.1.self_attn.o_proj.weight",
    "layers.1.mlp.up_proj.weight",
    "layers.1.router.scale",
    "layers.1.router.per_expert_scale",
    "layers.1.experts.gate_up_proj",
    "layers.1.experts.down_proj",
)


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("way", WAYS)
def test_changed_weights_are_seen(name: str, way: str) -> None:
    model = small()
    before = passes(model)
    change(model, name, way)
    after = passes(model)
    assert not all(map(torch.allclose, after, before))
    close(after, plain_passes(model))


@pytest.mark.parametrize(
    "name",
    ("embed_tokens", "layers.0", "layers.1.self_attn", "norm", "layers.1.mlp.up_proj", "layers.0.experts",
     "layers.0.router", "self_conditioning"),
)  # fmt: skip
def test_hooks_are_called(name: str) -> None:
    model = small()
    before = passes(model)
    called = []
    handle = model.get_submodule(name).register_forward_hook(lambda *of: called.append(name))
    close(passes(model), before)
    assert called
    handle.remove()
    del called[:]
    assert all(map(torch.equal, passes(model), before))
    assert not called


def test_ids_outside_the_vocabulary() -> None:
    model = small()
    cache = model.encode([[1, 2]])
    for token in (192, -1, 2**40):
        canvas = torch.full((1, 8), 7)
        canvas[0, 3] = token
        with pytest.raises(RequestError, match=rf"lie in 0 … 191, got {token}"):
            model.denoise(canvas, cache)


def no_head_dim(config: ModelConfig) -> tuple[Any, ...]:
    return tuple(replace(layer, head_dim=48) for layer in config.text.layers)


@pytest.mark.parametrize(
    "changes",
    ({"vocab_size": 200}, {"hidden_size": 72}, {"intermediate_size": 100}, {"moe_intermediate_size": 8},
     {"layers": no_head_dim(tiny.CONFIG)}, {"vocab_size": 2 * native.VOCABULARY}, {"dtype": torch.bfloat16}),
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_what_does_not_fit_takes_the_plain_layers(changes: dict[str, Any]) -> None:
    with torch.inference_mode():
        assert small(**changes)._in_native() is None


def test_large_layers_gradients_and_autocast_take_the_plain_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small()
    assert model._in_native() is None, "gradients are on"
    with torch.inference_mode(), torch.autocast("cpu"):
        assert model._in_native() is None
    monkeypatch.setattr(native, "SMALL", 1000)
    with torch.inference_mode():
        assert model._in_native() is None


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_functions", lambda: None)
    model = small()
    close(passes(model), plain_passes(model))
    assert model._native is None


def test_few_tokens_keep_to_one_thread() -> None:
    made = of(small())
    with threads(3):
        assert [made._threads(tokens) for tokens in (1, 15, 16, 24, 1000)] == [1, 1, 2, 3, 3]


def test_one_call_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoising pass of a whole batch goes to C once, and to no module."""
    model = small()
    made = of(model)
    cache = model.encode([[1, 2, 3], [4]])
    calls: list[str] = []
    kept = {name: getattr(made.functions, name) for name in ("forward", "predict")}

    class Counting:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return kept.get(name) or getattr(type(made).__dict__, name, None) or original(name)

    original = partial(getattr, made.functions)
    monkeypatch.setattr(made, "functions", Counting())
    model.denoise(random_ids(model, 2, 8), cache)
    assert calls == ["scratch_size", "forward"]
