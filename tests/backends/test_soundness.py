"""Whatever is done to a model between passes, or given to one, ends in right numbers or in one clear error.

Every test runs on every implementation of a pass: changes of weights and modules after a text has been written, numbers
that are not finite, inputs of another dtype, shape or model.
"""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dgemma_core import generate, load
from dgemma_core.autoregression import decode_tokens
from dgemma_core.cache import PrefixCache
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.errors import DgemmaError, RequestError
from dgemma_core.events import FinishEvent
from dgemma_core.model import DiffusionGemma
from dgemma_core.request import Request
from dgemma_core.samplers import EntropyBound
from tests.backends.serving import SERVED, put
from tests.backends.test_serving import ALIGNED, of_kind
from tests.core import tiny

PROMPT = "sort ascending: 4 1 3"
LONG = [(7 * i) % 400 + 20 for i in range(188)]
LENGTH = 32
"""Of nano's canvas."""
STEPS: dict[str, dict[str, int]] = {"diffusion": {"steps": 3}, "autoregressive": {}}


@pytest.fixture(params=SERVED["float32, aligned"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def no_word_of_the_fallback() -> Iterator[None]:
    """That a pass runs on "torch" instead is told by a warning, which the tests of the guard look for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the model runs on backend 'torch'")
        yield


def nano(name: str, dtype: str = "float32"):  # type: ignore[no-untyped-def]
    loaded = load("nano", device="cpu", dtype=dtype)
    put(loaded.model, name)
    return loaded


def weight_of(model: DiffusionGemma, ending: str) -> nn.Parameter:
    """The last parameter whose name ends so."""
    return [weight for key, weight in model.named_parameters() if key.endswith(ending)][-1]


def draws(rows: int, length: int):  # type: ignore[no-untyped-def]
    return CounterDraws().step([RowKey(seed, 0) for seed in range(rows)], [0] * rows, length)


def written(loaded):  # type: ignore[no-untyped-def]
    texts = generate(loaded, [PROMPT, LONG], max_new_tokens=8, steps=3)
    return [text.ids for text in texts]


# ---- weights and modules that change after a text has been written -------------------------------


class Wrapper(nn.Module):
    """What adapter libraries put in place of a projection."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x).flip(-1)


def _zeroed(model: DiffusionGemma) -> None:
    model.embed_tokens.weight.data.zero_()


def _changed_in_place(model: DiffusionGemma) -> None:
    with torch.no_grad():
        weight = weight_of(model, "o_proj.weight")
        weight.copy_(weight.flip(0))


def _replaced(model: DiffusionGemma) -> None:
    projection = model.layers[-1].mlp.down_proj
    projection.weight = nn.Parameter(projection.weight.flip(0), requires_grad=False)


def _reloaded(model: DiffusionGemma) -> None:
    state = {key: value.flip(0) for key, value in model.state_dict().items()}
    model.load_state_dict(state)


def _converted(model: DiffusionGemma) -> None:
    model.to(torch.bfloat16)


def _wrapped(model: DiffusionGemma) -> None:
    for layer in model.layers:
        layer.self_attn.q_proj = Wrapper(layer.self_attn.q_proj)


def _hooked(model: DiffusionGemma) -> None:
    for layer in model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda _, inputs, output: output.flip(-1))


CHANGES: dict[str, Callable[[DiffusionGemma], None]] = {
    "zeroed through .data": _zeroed,
    "changed in place": _changed_in_place,
    "a parameter replaced": _replaced,
    "load_state_dict": _reloaded,
    "converted to bfloat16": _converted,
    "a module wrapped": _wrapped,
    "a hook that changes the output": _hooked,
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_a_change_after_a_text_is_seen(change: str, mode: str, name: str) -> None:
    """The next text is the one that the reference writes with the changed model, to the last probability."""

    def numbers(loaded):  # type: ignore[no-untyped-def]
        (text,) = generate(loaded, PROMPT, max_new_tokens=4, mode=mode, **STEPS[mode])
        return text.ids, torch.tensor(text.token_probabilities)

    loaded, expected = nano(name), nano("torch")
    before = numbers(loaded)
    CHANGES[change](loaded.model)
    CHANGES[change](expected.model)
    ids, probabilities = numbers(loaded)
    if (
        loaded.model.dtype != torch.float32
    ):  # rounding differs between backends: the same one, chosen after the change
        expected.model.use(loaded.model.backend.name)
    their_ids, theirs = numbers(expected)
    assert ids == their_ids
    torch.testing.assert_close(probabilities, theirs, rtol=0, atol=1e-5)
    unchanged = ids == before[0] and torch.equal(probabilities, before[1])
    assert not unchanged


@pytest.mark.slow
def test_a_wrapped_projection_is_called(name: str) -> None:
    loaded = nano(name)
    written(loaded)
    attention = loaded.model.layers[0].self_attn
    attention.q_proj = wrapper = Wrapper(attention.q_proj)
    cache = loaded.model.encode([LONG])
    assert wrapper.calls == 1
    loaded.model.denoise(torch.zeros(1, LENGTH, dtype=torch.long), cache)
    assert wrapper.calls == 2
    attention.q_proj = wrapper.inner
    written(loaded)
    assert wrapper.calls == 2


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the first text", "after a text"])
def test_a_hook_fires_until_it_is_removed(when: str, name: str) -> None:
    loaded = nano(name)
    expected = written(loaded) if when == "after a text" else written(nano(name))
    backend = loaded.model.backend.name
    fired: list[torch.Size] = []
    projection = loaded.model.layers[1].self_attn.q_proj
    handle = projection.register_forward_hook(lambda *parts: fired.append(parts[2].shape))
    assert written(loaded) == expected
    passes = len(fired)
    assert passes > 2
    handle.remove()
    assert written(loaded) == expected
    assert len(fired) == passes
    assert loaded.model.backend.name == backend


@pytest.mark.slow
@pytest.mark.parametrize("of", ("module", "layer", "class"))
def test_another_forward_runs_until_it_is_gone(of: str, name: str) -> None:
    loaded = nano(name)
    expected, calls = written(loaded), []
    layer = loaded.model.layers[0]
    part = {"module": layer.self_attn.q_proj, "layer": layer, "class": type(layer.mlp)}[of]
    plain = part.forward

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return plain(*arguments, **options)

    part.forward = counted
    try:
        assert written(loaded) == expected and calls
    finally:
        if of == "class":
            part.forward = plain
        else:
            del part.forward
    seen = len(calls)
    assert written(loaded) == expected and len(calls) == seen


@pytest.mark.slow
def test_another_number_of_experts_is_seen(name: str) -> None:
    loaded = nano(name)
    written(loaded)
    for layer in loaded.model.layers:
        layer.router.top_k = 1
    found = loaded.model.encode([LONG]).hidden
    theirs = loaded.model.use("torch").encode([LONG]).hidden
    torch.testing.assert_close(found, theirs, rtol=1e-3, atol=1e-3)


def test_gradients_of_weights_are_not_lost(name: str) -> None:
    model = nano(name).model
    model.requires_grad_(True)
    rows, ids = PrefixCache.empty(model.config.text, 1).rows, torch.tensor([5, 3, 2])
    assert model.backend.forward(ids, rows, [3], causal=True).requires_grad


# ---- what results keep ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_results_keep_no_prefix_cache(mode: str, name: str) -> None:
    """600 texts held 75 MB of keys and values once."""

    def alive() -> int:
        gc.collect()
        return sum(isinstance(kept, PrefixCache) for kept in gc.get_objects())

    loaded = nano(name)
    before = alive()
    texts = generate(
        loaded, [PROMPT] * 12, max_new_tokens=2, mode=mode, batch_size=4, **STEPS[mode]
    )
    assert len(texts) == 12
    assert alive() == before


# ---- inputs of another dtype, shape or model -----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("of", ["bfloat16", "float32"])
def test_a_prefix_cache_of_another_dtype_is_refused(of: str, name: str) -> None:
    wide = nano(name).model
    short = nano("torch" if name == "torch" else "modules", "bfloat16").model
    theirs, model = (short, wide) if of == "bfloat16" else (wide, short)
    cache = theirs.encode([LONG])
    canvas = torch.zeros(1, LENGTH, dtype=torch.long)
    with pytest.raises(RequestError, match="prefix cache is of another model, dtype or device"):
        model.encode([[5]], cache)
    with pytest.raises(RequestError, match="prefix cache is of another model, dtype or device"):
        model.denoise(canvas, cache)


def test_a_deep_copy_of_a_prefix_cache_has_memory_of_its_own(name: str) -> None:
    model = nano(name).model
    cache = model.encode([[7]], model.encode([LONG[:40]]))
    wanted = model.encode([[5, 6]], model.encode([[*LONG[:40], 7]])).hidden
    copied = copy.deepcopy(cache)
    with torch.inference_mode():
        for buffer in cache.rows[0].buffers:
            assert buffer is not None
            buffer.keys.fill_(torch.nan)
    del cache
    found = model.encode([[5, 6]], copied).hidden
    assert found is not None and wanted is not None
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["C"])
def test_another_tensor_in_a_prefix_cache_is_noticed(name: str) -> None:
    model = nano(name).model
    cache = model.encode([[7]], model.encode([LONG[:40]]))
    before = model.encode([[5]], cache).hidden
    buffer = cache.rows[0].buffers[0]
    assert buffer is not None and before is not None
    buffer.filled = cache.rows[0].length
    buffer.keys, plain = -buffer.keys, buffer.keys
    assert not torch.equal(model.encode([[5]], cache).hidden, before)
    buffer.filled = cache.rows[0].length
    buffer.keys = plain.bfloat16()
    with pytest.raises(RequestError, match="prefix cache is of another model, dtype or device"):
        model.encode([[5]], cache)


def test_a_prefix_cache_of_another_model_is_refused(name: str) -> None:

    model = nano(name).model
    canvas = torch.zeros(1, LENGTH, dtype=torch.long)
    for kind in ("float32", "float32, aligned"):
        cache = of_kind(kind).encode([[5, 3, 2]])
        for use in (
            lambda c=cache: model.encode([[5]], c),
            lambda c=cache: model.denoise(canvas, c),
        ):
            with pytest.raises(RequestError, match="prefix cache is of another model"):
                use()


OTHER_CONFIGS = (
    {"sliding_window": 9}, {"vocab_size": 128}, {"hidden_size": 64}, {"num_experts": 5},
    {"max_position_embeddings": 900}, {"rms_norm_eps": 1e-5},
)  # fmt: skip


@pytest.mark.parametrize("other", OTHER_CONFIGS, ids=str)
def test_a_prefix_cache_of_another_configuration_is_refused(
    other: dict[str, Any], name: str
) -> None:
    """Also where keys and values have the same shapes, and another backend has filled them."""
    model = tiny.model(**ALIGNED)
    put(model, name)
    canvas = torch.ones(1, 4, dtype=torch.long)
    cache = model.encode([[5, 3, 2]])
    model.denoise(canvas, cache)
    for backend in ("torch", name):
        foreign = tiny.model(**(ALIGNED | other))
        put(foreign, backend)
        held = foreign.encode([[5, 3, 2] * 20])
        for given in (held, held.copy(), PrefixCache.join([held]), held[0]):
            with pytest.raises(RequestError, match="prefix cache is of another model"):
                model.denoise(canvas, given)
            with pytest.raises(RequestError, match="prefix cache is of another model"):
                model.encode([[5]], given)
    same = tiny.model(**ALIGNED)  # another object of the same configuration: that cannot be told
    put(same, name)
    assert torch.equal(same.denoise(canvas, cache), model.denoise(canvas, cache))


@pytest.mark.parametrize("wrong", (None, 5, torch.tensor(3), "ab", [5], [["a"]], [[1.5]]), ids=str)
def test_prompts_and_canvases_that_are_none(wrong: Any, name: str) -> None:
    model = nano(name).model
    cache = model.encode([[5, 3, 2]])
    with pytest.raises(RequestError):
        model.encode(wrong)
    with pytest.raises(RequestError):
        model.denoise(wrong, cache)
    if wrong is not None:
        with pytest.raises(RequestError):
            model.encode([[5]], canvas=wrong)
        with pytest.raises(RequestError, match="PrefixCache"):
            model.encode([[5]], wrong)
    with pytest.raises(RequestError, match="PrefixCache"):
        model.denoise(torch.ones(1, 4, dtype=torch.long), wrong)
    with pytest.raises(RequestError, match="whole numbers"):
        model.denoise(torch.ones(1, 4, dtype=torch.uint16), cache)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_the_prefix_of_another_prompt_is_refused(mode: str, name: str) -> None:
    model = nano(name).model
    loop = denoise_canvases if mode == "diffusion" else decode_tokens
    other = Request([30, *LONG[1:]], prefix=model.encode([LONG[:4]]), max_new_tokens=2)
    with pytest.raises(RequestError, match="prefix"):
        list(loop(model, [other]))
    right = Request(LONG, prefix=model.encode([LONG[:4]]), max_new_tokens=2, id="right")
    whole = Request(LONG, max_new_tokens=2, id="whole")
    finishes = [e for e in loop(model, [right, whole]) if isinstance(e, FinishEvent)]
    assert finishes[0].ids == finishes[1].ids


def test_a_soft_embedding_of_another_dtype_is_converted(name: str) -> None:
    model = nano(name).model
    cache = model.encode([LONG])
    canvas = torch.arange(LENGTH).view(1, -1)
    soft = model.embed(canvas).bfloat16()
    expected = model.denoise(canvas, cache, soft.float())
    assert torch.equal(model.denoise(canvas, cache, soft), expected)
    assert torch.equal(model.denoise(canvas, cache, soft.double()), expected)
    assert not torch.equal(model.denoise(canvas, cache), expected)
    for wrong in (soft[:, 1:], soft[..., :1], soft[0], canvas):
        with pytest.raises(RequestError, match="soft embedding"):
            model.denoise(canvas, cache, wrong)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_token_ids_of_another_integer_dtype_are_converted(dtype: torch.dtype, name: str) -> None:
    model = nano(name).model
    ids = torch.arange(40).view(1, -1)
    cache = model.encode(ids.to(dtype))
    assert torch.equal(cache.hidden, model.encode(ids).hidden)
    canvas = torch.arange(LENGTH).view(1, -1)
    assert torch.equal(model.denoise(canvas.to(dtype), cache), model.denoise(canvas, cache))


def test_token_ids_that_are_no_integers_are_refused(name: str) -> None:
    model = nano(name).model
    cache = model.encode([LONG])
    with pytest.raises(RequestError, match="must be a list of token ids"):
        model.encode(torch.ones(1, 4))
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(RequestError, match="token ids are whole numbers"):
            model.denoise(torch.ones(1, LENGTH, dtype=dtype), cache)


def test_an_empty_canvas_is_refused(name: str) -> None:
    model = nano(name).model
    cache = model.encode([LONG])
    for shape in ((1, 0), (0, LENGTH), (LENGTH,)):
        with pytest.raises(RequestError, match=r"canvas is \(rows, positions\)"):
            model.denoise(torch.zeros(shape, dtype=torch.long), cache)


def test_hidden_states_of_another_shape_are_refused(name: str) -> None:
    model = nano(name).model
    width = model.config.text.hidden_size
    for shape in ((1, 0, width), (0, 3, width), (3, width)):
        with pytest.raises(RequestError, match="hidden states are"):
            model.predict(torch.zeros(shape), 0.5, draws(1, 3))
    for other in (width - 1, 2 * width):
        with pytest.raises(RequestError, match="hidden states are"):
            model.predict(torch.zeros(1, 3, other), 0.5, draws(1, 3))


@pytest.mark.slow
def test_a_canvas_beyond_the_last_position_is_refused(name: str) -> None:
    model = nano(name).model
    limit = model.config.text.max_position_embeddings
    prompt = [LONG[i % len(LONG)] for i in range(limit - LENGTH + 1)]
    cache = model.encode([prompt])
    with pytest.raises(RequestError, match=f"more than the model's {limit}"):
        model.denoise(torch.zeros(1, LENGTH, dtype=torch.long), cache)
    with pytest.raises(RequestError, match=f"more than the model's {limit}"):
        model.encode([[5] * LENGTH], cache)


# ---- numbers that are not finite -----------------------------------------------------------------


@pytest.mark.parametrize("prompts", [[PROMPT], [PROMPT, LONG]], ids=["one prompt", "two prompts"])
def test_a_temperature_too_low_for_float32_is_refused(prompts: list[str], name: str) -> None:
    with pytest.raises(RequestError, match=r"temperature|t_max must be 0, or from"):
        generate(nano(name), prompts, sampler=EntropyBound(t_min=0, t_max=1e-40), max_new_tokens=4)


EACH = [(name, dtype) for dtype in ("float32", "bfloat16") for name in SERVED[f"{dtype}, aligned"]]
"""Every implementation with every dtype that it serves."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), EACH)
def test_a_router_that_is_not_a_number_ends_in_one_error(name: str, dtype: str) -> None:
    """A C function that took no expert from such scores once wrote behind its arrays."""
    loaded = nano(name, dtype)
    weight_of(loaded.model, "router.proj.weight").data.fill_(torch.nan)
    put(loaded.model, name)
    try:
        assert not bool(loaded.model.encode([LONG]).hidden.isfinite().all())
    except RequestError as error:
        assert "not finite" in str(error)
    assert _ending(loaded, "diffusion") == _ending(loaded, "autoregressive") == "error"


PLACES = {
    "embed_tokens.weight": True,
    "q_proj.weight": True,
    "v_proj.weight": True,
    "o_proj.weight": True,
    "router.proj.weight": True,
    "router.scale": True,
    "experts.gate_up_proj": False,  # nobody may come by
    "experts.down_proj": False,
    "mlp.down_proj.weight": True,
    "post_feedforward_layernorm.weight": True,
    "self_conditioning.down_proj.weight": False,  # not read in autoregression
}
"""Names of weights; whether every text is lost if one of their numbers is not one."""


@pytest.mark.slow
@pytest.mark.parametrize("number", [3e38, 1e30, torch.inf, torch.nan])
@pytest.mark.parametrize(("name", "dtype"), EACH)
def test_one_huge_weight_ends_in_a_text_or_one_error(name: str, dtype: str, number: float) -> None:
    loaded = nano(name, dtype)
    errors = 0
    for place, all_lost in PLACES.items():
        weight = weight_of(loaded.model, place).data.view(-1)
        before = weight[len(weight) // 3].clone()
        weight[len(weight) // 3] = number
        put(loaded.model, name)
        endings = [_ending(loaded, mode) for mode in ("diffusion", "autoregressive")]
        errors += endings.count("error")
        if all_lost and number != number:
            assert endings == ["error", "error"], place
        weight[len(weight) // 3] = before
    assert errors or number == 1e30


def _ending(loaded, mode: str) -> str:  # type: ignore[no-untyped-def]
    """ "text", if all of its numbers are finite, or "error", if it says in one line what is wrong."""
    try:
        texts = generate(loaded, [LONG, PROMPT], max_new_tokens=3, mode=mode, **STEPS[mode])
    except DgemmaError as error:
        assert "not finite" in str(error) and "\n" not in str(error)
        return "error"
    for text in texts:
        numbers = torch.tensor([*text.token_probabilities, *text.token_entropies])
        assert text.ids and bool(numbers.isfinite().all())
    return "text"
