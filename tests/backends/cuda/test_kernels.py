"""The GPU's kernels on a CPU, by triton's interpreter, and their plain forms, against the modules they stand for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgemma_core.backends.cuda import experts as grouped
from dgemma_core.backends.cuda import fused
from dgemma_core.backends.cuda.head import Wanted, fold
from dgemma_core.backends.cuda.rows import Held, Reserve
from dgemma_core.cache import PrefixCache, RowCache, attend_all, attend_causal
from dgemma_core.config import LayerConfig
from dgemma_core.experts import Experts
from dgemma_core.head import Reference
from dgemma_core.layers import Layer, Rotation
from dgemma_core.model import DiffusionGemma
from tests.backends.cuda.host_reads import HostReads
from tests.core import tiny
from tests.core.test_experts import plain

ROOT = Path(__file__).parents[3]
needs_triton = pytest.mark.skipif(not grouped.has_triton(), reason="triton is not installed here")
WAYS = ["torch", pytest.param("interpreter", marks=needs_triton)]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Plain torch, or the kernels by triton's interpreter."""
    if request.param == "interpreter":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    else:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return str(request.param)


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    """Widths that no tile divides, and heads of two sizes."""
    sliding = LayerConfig(False, num_key_value_heads=2, head_dim=16, rope_theta=1e4)
    full = LayerConfig(True, num_key_value_heads=1, head_dim=24, rope_theta=1e6)
    return tiny.model(
        5, hidden_size=40, moe_intermediate_size=24, num_experts=7, top_k_experts=3,
        layers=(sliding, full), vocab_size=300,
    )  # fmt: skip


def layer_of(model: DiffusionGemma, index: int = 0) -> Layer:
    found = model.layers[index]
    assert isinstance(found, Layer)
    return found


def drawn(tokens: int, experts: Experts, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, experts.down_proj.shape[1], generator=generator).to(dtype)
    chosen = torch.rand(tokens, experts.count, generator=generator).topk(3).indices
    return x, torch.rand(tokens, 3, generator=generator), chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 45])
def test_experts_are_those_of_the_plain_loop(
    model: DiffusionGemma, way: str, tokens: int, dtype: torch.dtype
) -> None:
    """One token, fewer pairs than experts, and slices longer than a tile."""
    experts = tiny.model(
        5, hidden_size=40, moe_intermediate_size=24, num_experts=7, top_k_experts=3
    )
    part = layer_of(experts).experts.to(dtype)
    x, weights, chosen = drawn(tokens, part, dtype)
    expected = plain(part, x, weights, chosen)
    found = grouped.outputs(part, x, weights, chosen).sum(1)
    assert found.dtype == dtype and found.shape == x.shape
    difference = (found.double() - expected).norm() / expected.norm()
    assert difference < (1e-6 if dtype == torch.float32 else 2e-2)


@needs_triton
def test_pairs_are_sorted_by_expert_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stably, with the bounds of every slice; experts that nobody chose have an empty one."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    many = torch.tensor([[4, 1], [1, 0], [4, 0], [1, 4]])
    slices = grouped.by_expert(many, 6)
    assert slices.order.tolist() == [3, 5, 1, 2, 6, 0, 4, 7]
    start, end, expert = slices.bounds.tolist()
    assert (start, end) == ([0, 2, 5, 5, 5, 8], [2, 5, 5, 5, 8, 8])
    assert expert == list(range(6))
    few = grouped.by_expert(torch.tensor([[3, 1], [3, 0]]), 6)
    assert few.order.tolist() == [3, 1, 0, 2]
    assert few.bounds.tolist() == [[0, 1, 2, 0], [1, 2, 4, 0], [0, 1, 3, 3]]


def test_the_plain_form_asks_nothing_of_the_host() -> None:
    part = layer_of(tiny.model(2)).experts
    x, weights, chosen = torch.randn(9, 16), torch.rand(9, 2), torch.rand(9, 3).topk(2).indices
    with torch.inference_mode(), HostReads() as reads:
        grouped.outputs(part, x, weights, chosen)
    assert reads.found == []


def test_what_stands_between_the_products(model: DiffusionGemma, way: str) -> None:
    """Norms, residuals and the router, against the modules of the layer."""
    generator = torch.Generator().manual_seed(3)
    x, mixed, dense = (torch.randn(5, 40, generator=generator) for _ in range(3))
    outputs = torch.randn(5, 3, 40, generator=generator)
    layer, eps = layer_of(model), model.norm.eps
    close = {"rtol": 2e-5, "atol": 2e-5}
    torch.testing.assert_close(fused.norm(x, model.norm.weight, eps), model.norm(x), **close)
    branches = fused.after_attention(layer, x, mixed)
    h = x + layer.post_attention_layernorm(mixed)
    torch.testing.assert_close(branches.h, h, **close)
    torch.testing.assert_close(branches.dense, layer.pre_feedforward_layernorm(h), **close)
    torch.testing.assert_close(branches.sparse, layer.pre_feedforward_layernorm_2(h), **close)
    routing = layer.router(h)
    scores = fused.linear(branches.routed, layer.router.proj.weight)
    weights, chosen = fused.route(scores, layer.router.per_expert_scale, 3)
    assert chosen.tolist() == routing.chosen.tolist()
    torch.testing.assert_close(weights, routing.weights, **close)
    both = layer.post_feedforward_layernorm_1(dense) + layer.post_feedforward_layernorm_2(
        outputs.sum(1)
    )
    expected = (h + layer.post_feedforward_layernorm(both)) * layer.layer_scalar
    out, following = fused.after_experts(
        layer, h, dense, outputs, layer.layer_scalar, model.norm.weight
    )
    torch.testing.assert_close(out, expected, **close)
    torch.testing.assert_close(following, model.norm(expected), **close)
    inner = fused.gate(layer.mlp.gate_proj(x), layer.mlp.up_proj(x))
    torch.testing.assert_close(
        fused.linear(inner, layer.mlp.down_proj.weight), layer.mlp(x), **close
    )
    one = fused.linear(x[:1], layer.mlp.gate_proj.weight)
    torch.testing.assert_close(one, layer.mlp.gate_proj(x[:1]), **close)


def test_a_router_of_any_numbers_chooses_experts_that_exist(way: str) -> None:
    """NaN, infinities and numbers at the edge of float32: indices stay inside."""
    nan, inf, huge = float("nan"), float("inf"), 3e38
    scores = torch.tensor(
        [[nan] * 7, [inf] * 7, [-inf] * 7, [huge, -huge, nan, inf, -inf, 0, 1], [-huge] * 7]
    )
    _, chosen = fused.route(scores, torch.ones(7), 3)
    assert int(chosen.min()) >= 0 and int(chosen.max()) < 7


def prefixes(model: DiffusionGemma, lengths: list[int]) -> list[RowCache]:
    """Rows with random keys and values, appended in two parts, as encode does."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for row, length in zip(
        PrefixCache.empty(model.config.text, len(lengths)).rows, lengths, strict=True
    ):
        assert isinstance(row, RowCache)
        for count in (length // 2, length - length // 2):
            for i, layer in enumerate(model.config.text.layers):
                shape = (count, layer.num_key_value_heads, layer.head_dim)
                row.append(i, *(torch.randn(shape, generator=generator) for _ in range(2)))
            row.length += count
        rows.append(row)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tokens", [1, 4])
def test_attention_over_rows_of_a_table(
    model: DiffusionGemma, way: str, tokens: int, causal: bool
) -> None:
    """Rows before, at and past the window of 6, one of them nothing but new tokens, and an empty place."""
    lengths = [11, 0, 6]
    places, generator = len(lengths) + 1, torch.Generator().manual_seed(tokens)
    hidden = torch.randn(places * tokens, 40, generator=generator)
    rows, held = prefixes(model, lengths), Held.empty(places, 2, hidden.device)
    held.load(Reserve(model.config.text, model.norm.weight)(rows, [tokens] * 3, causal=causal))
    positions = torch.cat([torch.arange(length, length + tokens) for length in (*lengths, 0)])
    for i in range(2):
        layer = layer_of(model, i)
        part, rotate = layer.self_attn, model.rotations(positions, model.dtype)[layer.config]
        q, k = part.q_proj(hidden), part.k_proj(hidden)
        v = k if part.v_proj is None else part.v_proj(hidden)
        queries = fused.place(layer, q, k, v, rotate, held, i)
        window = rows[0].windows[i]
        found = fused.attend(queries, part.groups, held, i, window, causal)
        assert not found[-tokens:].any()
        mixed = part.o_proj(found.flatten(1))
        for place, row in enumerate(prefixes(model, lengths)):
            at = slice(place * tokens, (place + 1) * tokens)

            def attend(q: Tensor, k: Tensor, v: Tensor, row: RowCache = row, i: int = i) -> Tensor:
                if causal:
                    return attend_causal(q, *row.append(i, k, v), row.windows[i])
                return attend_all(q, *row.lay(i, k, v))

            expected = part(hidden[at], Rotation(rotate.cos[at], rotate.signed_sin[at]), attend)
            torch.testing.assert_close(mixed[at], expected, rtol=1e-4, atol=1e-5)
            written, wanted = rows[place].buffers[i], row.buffers[i]
            assert written is not None and wanted is not None
            for one, two in zip(
                written.slice(row.length, row.length + tokens),
                wanted.slice(row.length, row.length + tokens),
                strict=True,
            ):
                torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


class Uniforms:
    def __init__(self, *shape: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.uniform = torch.rand(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("reference", ["tempered", "raw"])
@pytest.mark.parametrize(("vocab", "temperature"), [(64, 0.4), (300, 0.4), (300, 1.0)])
def test_the_head_is_that_of_the_model(
    way: str, vocab: int, temperature: float, reference: Reference
) -> None:
    """In slices of 64 tokens; ids exactly, and every number of a `Prediction`, ten likeliest tokens among them."""
    model = tiny.model(1, hidden_size=40, vocab_size=vocab)
    hidden = torch.randn(1, 6, 40, generator=torch.Generator().manual_seed(vocab))
    draws = Uniforms(1, 6)
    expected = model.head.predict(hidden, temperature, draws, reference=reference, top_k=10)
    wanted = Wanted(
        sampled=True, two_distributions=reference == "raw" and temperature != 1, soft=True, top_k=10
    )
    found = fold(
        hidden[0], model.embed_tokens.weight, 30.0, torch.full((6,), temperature), draws.uniform[0],
        wanted, numbers=6 * 64,
    ).fields()  # fmt: skip
    for name in ("sample", "argmax", "top_ids"):
        assert found.pop(name).tolist() == getattr(expected, name)[0].tolist()
    assert len(found) == 7
    for name, value in found.items():
        torch.testing.assert_close(value, getattr(expected, name)[0], rtol=1e-4, atol=1e-4)


def test_the_head_without_a_sample(way: str) -> None:
    """The argmax stands for the sample."""
    model = tiny.model(1, hidden_size=40, vocab_size=300)
    hidden = torch.randn(1, 3, 40, generator=torch.Generator().manual_seed(2))
    expected = model.head.predict(hidden, 0.0, soft=False)
    wanted = Wanted(sampled=False, two_distributions=False, soft=False, top_k=0)
    found = fold(
        hidden[0], model.embed_tokens.weight, 30.0, torch.ones(3), torch.empty(3), wanted
    ).fields()
    assert found.pop("sample").tolist() == found.pop("argmax").tolist()
    assert len(found) == 5
    for name, value in found.items():
        torch.testing.assert_close(value, getattr(expected, name)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_samples_follow_the_distribution(way: str) -> None:
    """Evenly spread uniform numbers give each token its share, in vocabulary order, to a rounding of one."""
    vocab, rows = 130, 80
    weight = torch.randn(vocab, 8, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    uniform = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    wanted = Wanted(sampled=True, two_distributions=False, soft=False, top_k=0)
    sample = fold(
        hidden.expand(rows, 8).contiguous(), weight, 30.0, torch.ones(rows), uniform, wanted,
        numbers=rows * 64,
    ).ids[0]  # fmt: skip
    assert bool((sample.diff() >= 0).all())
    share = (30 * torch.tanh(hidden @ weight.T / 30)).softmax(-1)[0]
    counts = torch.bincount(sample, minlength=vocab) / rows
    assert float((counts.cumsum(0) - share.cumsum(0)).abs().max()) <= 1.01 / rows


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from dgemma_core.backends.cuda import experts as grouped, kernels as k

HOPPER, SHARED = GPUTarget("cuda", 90, 32), 227 * 1024

def check(function, kinds, constants, **options):
    names = function.arg_names
    signature = {n: "constexpr" if n in constants else kinds.get(n, "i32") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"}
    made = compile(ASTSource(function, signature, constexprs=constants, attrs=aligned), target=HOPPER, options=options)
    assert made.metadata.shared <= SHARED, (function.__name__, constants, made.metadata.shared)
    return made.asm["ptx"]

b, f, i, l = "*bf16", "*fp32", "*i32", "*i64"
sizes = dict(D=2816, W=704, UPCAST=False)
for (part, size), tile in grouped.TILES.items():
    blocks = dict(BLOCK_N=tile.n, BLOCK_M=32 if size == "many" else 16, BLOCK_K=tile.k)
    kinds = dict(x=b, inner=b, weight=b, shares=f, order=i, slices=i, out=b)
    function = k.experts_in if part == "in" else k.experts_out
    ptx = check(function, kinds, {**sizes, **blocks}, num_warps=tile.warps, num_stages=tile.stages)
    assert "mma" in ptx and "cp.async" in ptx
    assert size == "few" or "wgmma" in ptx
kinds = dict(chosen=i, order=i, slices=i)
check(k.sort_pairs, kinds, dict(BY_EXPERT=True, BLOCK=2048))
check(k.sort_pairs, kinds, dict(BY_EXPERT=False, BLOCK=16))
check(k.route, dict(scores=b, scale=b, weights=f, chosen=i), dict(E=128, K=8, BLOCK=128), num_warps=1)
row = dict(D=2816, BLOCK=4096)
every = {n: b for n in ("x", "mixed", "weight", "out", "w_mixed", "w_dense", "w_sparse", "w_router", "w_both", "w_next",
                        "h", "dense", "sparse", "routed", "outputs", "scalar", "following", "left", "right")}
every |= dict(eps="fp32", root="fp32")
check(k.rms_norm, every, {**row, "WEIGHTED": True})
check(k.after_attention, every, row)
for each in (False, True):  # one scalar, or one a token
    check(k.after_experts, every, {**row, "K": 8, "EACH": each})
check(k.gate, every, dict(BLOCK=1024))
check(k.one_row, every, dict(D=2816, BLOCK_N=16, BLOCK_K=512))
kinds = dict(q=b, k=b, v=b, q_weight=b, k_weight=b, cos=b, sin=b, table=l, queries=b, eps="fp32", mixed=f, peaks=f,
             masses=f, out=b)
from dgemma_core.backends.cuda.fused import attend_shape
for d, groups, tokens, causal in ((256, 8, 256, False), (512, 2, 256, False), (256, 8, 256, True), (512, 2, 256, True),
                                  (256, 8, 1, False), (512, 2, 1, False), (256, 8, 8192, True)):
    one = {"T": 1} if tokens == 1 else {}  # which triton compiles into the kernel
    heads = dict(H=16, G=groups, D=d)
    check(k.place, kinds, {**heads, **one, "BLOCK": d, "ALIGNED": True})
    shape = attend_shape(16 // groups * tokens, groups, d, 4352, 2, 132)
    heads |= one | ({"splits": 1} if shape.splits == 1 else {})
    blocks = dict(BLOCK_M=shape.m, BLOCK_N=shape.n, BLOCK_D=d, UPCAST=False, CAUSAL=causal, ALIGNED=True)
    ptx = check(k.attend, kinds, {**heads, **blocks}, num_warps=shape.warps, num_stages=2)
    assert "mma" in ptx
    assert "cp.async" in ptx and "0x10" in ptx, "keys are read 16 bytes at a time"
    check(k.join_splits, kinds, {**heads, "BLOCK_S": 1 << (shape.splits - 1).bit_length(), "BLOCK_D": d})
kinds = dict(logits=b, temperature=f, peak=f, mass=f, weighted=f, best=f, argmax=l, slice_peaks=f, chunk_masses=f,
             summed=f, cap="fp32")
check(k.fold_slice, kinds, dict(D=2816, SOFT=True, S=16384, CHUNK=64, BLOCK_D=4096), num_warps=16)
"""


@pytest.mark.subprocess
@needs_triton
@pytest.mark.subprocess
def test_all_kernels_compile_for_a_hopper_card(tmp_path: Path) -> None:
    """At the released sizes, within its shared memory; wide products by its matrix units. No GPU is needed."""
    pytest.importorskip("triton.backends.nvidia", reason="this triton has no compiler for NVIDIA")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    script = tmp_path / "compiled.py"
    script.write_text(COMPILED)
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
