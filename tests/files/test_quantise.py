"""Weight-only quantisation: the bound of every group, the model's numbers, loading, what is refused."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

import dgemma_core as dg
from dgemma_core.command import cli
from dgemma_core.config import GenerationDefaults
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.errors import CheckpointError, RequestError
from dgemma_core.experts import Experts, Router
from dgemma_core.files import devices, finding
from dgemma_core.files import quantised as quantise
from dgemma_core.files.checkpoint import load_model
from dgemma_core.files.quantised import (
    GROUP,
    SCHEMES,
    Quantised,
    QuantisedEmbedding,
    QuantisedExperts,
    QuantisedLinear,
    quantised,
    stored_bytes,
)
from dgemma_core.files.saving import save_model
from dgemma_core.files.tensors import TensorFiles
from dgemma_core.head import Filters, VocabularyHead
from dgemma_core.model import DiffusionGemma
from dgemma_core.nano.families import examples, family
from tests.backends.cuda.live_bytes import LiveBytes
from tests.core import tiny

# Widths with a full group, a part of one, and several.
WIDE = {"hidden_size": 48, "intermediate_size": 40, "moe_intermediate_size": 24, "vocab_size": 96}
LONG = [2, 5, 9, 11, 3, 4, 8, 40, 1, 7]


def saved(folder: Path, model: DiffusionGemma, **options: int) -> Path:
    save_model(model, folder, generation=GenerationDefaults(), **options)
    return folder


@pytest.fixture(scope="module")
def plain() -> DiffusionGemma:
    return tiny.model(3, **WIDE)


@pytest.fixture(scope="module")
def folder(plain: DiffusionGemma, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("wide"), plain)


# --- one matrix


def exact(codes: Quantised) -> Tensor:
    """What the codes stand for, float64, computed another way: byte by byte."""
    scales = codes.scales.double()
    if codes.bits == 8:
        return codes.codes.double() * scales
    bytes = codes.codes.to(torch.int16) & 255
    unsigned = torch.cat((bytes & 15, bytes >> 4), dim=-1)
    signed = torch.where(unsigned > 7, unsigned - 16, unsigned).double()
    steps = 16 * scales.repeat_interleave(GROUP, dim=-1)
    return (signed * steps)[..., : codes.columns]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(1, 1), (3, 31), (4, 32), (5, 33), (2, 3, 64), (7, 100), (2, 2, 2, 8)]),
    bits=st.sampled_from([4, 8]),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e20]),
    kind=st.sampled_from(["normal", "uniform", "one outlier", "one sign", "constant"]),
    seed=st.integers(0, 2**31),
)
def test_no_number_is_further_off_than_its_group_allows(
    shape: tuple[int, ...], bits: int, scale: float, kind: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    if kind == "uniform":
        weight = torch.rand(shape, generator=generator) - 0.5
    elif kind == "one outlier":
        weight[..., 0] = 100.0
    elif kind == "one sign":
        weight = weight.abs()
    elif kind == "constant":
        weight = torch.full(shape, -0.7)
    weight = weight * scale
    codes = quantised(weight, bits)
    assert codes.shape == shape
    back = exact(codes)
    wide = weight.double()
    size = shape[-1] if bits == 8 else GROUP
    for start in range(0, shape[-1], size):
        group, error = (t[..., start : start + size] for t in (wide, (back - wide).abs()))
        farthest = group.abs().amax(-1, keepdim=True)
        if bits == 8:
            bound = 0.5 * farthest / 127
        else:  # half a step; of the sign that the farthest number has not, up to a whole one
            step = farthest / 8
            sign = group.gather(-1, group.abs().argmax(-1, keepdim=True)).sign()
            clipped = -group * sign > 7.4 * step
            bound = torch.where(clipped, step, 0.5 * step)
        # scales are rounded to bfloat16: steps are up to 2⁻⁸ wider than from an exact scale
        assert (error <= bound * (1 + 2**-7) + 8 * farthest * 2**-10 * (bits == 4)).all()
    torch.testing.assert_close(codes.dequantize(torch.float32).double(), back, rtol=1e-6, atol=0)


def test_a_typical_error_is_that_of_the_steps() -> None:
    """Gauss: int8 rows of 2816 err by under 1 % of the spread, int4 groups by under 9 %."""
    weight = torch.randn(64, 2816, generator=torch.Generator().manual_seed(0))
    errors = {bits: (exact(quantised(weight, bits)) - weight).std().item() for bits in (4, 8)}
    assert 0.004 < errors[8] < 0.01 and 0.06 < errors[4] < 0.09


def test_zeros_stay_zeros() -> None:
    weight = torch.zeros(3, 64)
    weight[1, 40] = 5.0
    for bits in (4, 8):
        back = quantised(weight, bits).dequantize(torch.float32)
        assert torch.equal(back != 0, weight != 0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(3, 5), (4, 64), (2, 6, 33)])
def test_bytes_are_those_that_are_stored(shape: tuple[int, ...], bits: int) -> None:
    codes = quantised(torch.randn(shape, generator=torch.Generator().manual_seed(0)), bits)
    assert (codes.codes.nbytes, codes.scales.nbytes) == stored_bytes(shape, bits)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "extents"), [(1, (128, 64)), (16, (64, 192)), (17, (64, 64))])
@pytest.mark.parametrize("odd", [0, 5])
def test_products_are_those_of_the_numbers(
    bits: int, dtype: torch.dtype, rows: int, extents: tuple[int, int], odd: int
) -> None:
    """With extents and row counts on both sides of what torch's kernel takes."""
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(extents[0] + odd, extents[1] + odd, generator=generator)
    x = torch.randn(2, rows, extents[1] + odd, generator=generator)[1:].to(dtype)
    codes = quantised(weight, bits)
    expected = x.double() @ exact(codes).T
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    scale = expected.abs().max()
    assert (codes.linear(x).double() - expected).abs().max() < tolerance * scale


def test_the_kernel_runs_only_where_it_is_right_and_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = torch._weight_int8pack_mm
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda *a: calls.append(a) or real(*a))
    generator = torch.Generator().manual_seed(0)
    eight, four = (quantised(torch.randn(64, 128, generator=generator), bits) for bits in (8, 4))
    odd = quantised(torch.randn(63, 128, generator=generator), 8)
    x = torch.randn(17, 128, generator=generator)
    for weight, tokens in (
        (eight, x[:3]), (eight, x.bfloat16()), (four, x[:3].bfloat16()), (odd, x[:3].bfloat16())
    ):  # fmt: skip
        weight.linear(tokens)
    assert not calls
    eight.linear(x[:16].bfloat16())
    assert len(calls) == 1


def test_a_large_matrix_is_turned_back_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = quantised(torch.randn(50, 40, generator=generator), 4)
    x = torch.randn(3, 40, generator=generator)
    expected = codes.linear(x)
    monkeypatch.setattr(quantise, "SLICE", 40 * 7)
    with LiveBytes() as live:
        torch.testing.assert_close(codes.linear(x), expected)
    assert live.largest <= 7 * 64 * 4


# --- a model


def run(model: DiffusionGemma) -> Tensor:
    """Logits after a first step's soft embedding: every weight is used."""
    prefix = model.encode([LONG])
    canvas = torch.arange(8)[None]
    first = model.head.predict(model.denoise(canvas, prefix), 0.0)
    assert first.soft_embedding is not None
    return model.logits(model.denoise(canvas, prefix, first.soft_embedding))


def rounded(plain: DiffusionGemma, like: DiffusionGemma) -> DiffusionGemma:
    """The plain model with its matrices replaced by the numbers that the codes stand for."""
    copy = DiffusionGemma(plain.config).requires_grad_(False).eval()
    copy.load_state_dict(plain.state_dict())
    for path, module in like.named_modules():
        if isinstance(module, quantise.Holder):
            for name in module.columns:
                copy.get_parameter(f"{path}.{name}").copy_(exact(module.matrix(name)))
    return copy


@pytest.mark.parametrize(("name", "most"), [("int8", 0.05), ("int4", 0.6)])
def test_a_quantised_model_computes_with_the_rounded_weights(
    name: str, most: float, plain: DiffusionGemma, folder: Path
) -> None:
    model = load_model(folder, device="cpu", quantize=name)
    found, original = run(model), run(plain)
    torch.testing.assert_close(found, run(rounded(plain, model)), atol=2e-4, rtol=2e-4)
    error = (found - original).norm() / original.norm()
    assert 0 < error < most
    assert model.quantized == name and model.dtype == torch.float32 and not model.training


@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_quantised_and_what_stays(name: str, plain: DiffusionGemma, folder: Path) -> None:
    model = load_model(folder, device="cpu", quantize=name)
    kinds = {type(module) for module in model.modules()}
    assert {QuantisedEmbedding, QuantisedExperts, QuantisedLinear} <= kinds
    assert Experts not in kinds and nn.Embedding not in kinds
    routers = [module for module in model.modules() if isinstance(module, Router)]
    assert routers and all(type(router.proj) is nn.Linear for router in routers)
    theirs = dict(plain.named_parameters())
    for parameter, tensor in model.named_parameters():
        assert torch.equal(tensor, theirs[parameter])
        assert tensor.dim() == 1 or parameter.endswith("router.proj.weight")
    embedding = model.embed_tokens
    assert isinstance(embedding, QuantisedEmbedding) and embedding.bits == 8


@pytest.mark.parametrize("name", SCHEMES)
def test_bfloat16_rows_of_any_number_agree_with_float32(name: str, folder: Path) -> None:
    """Also through the path of torch's kernel, which takes one token at a time."""
    wide = load_model(folder, device="cpu", quantize=name)
    short = load_model(folder, device="cpu", dtype="bfloat16", quantize=name)
    assert short.dtype == torch.bfloat16
    hidden = [model.encode([LONG]).hidden for model in (wide, short)]
    prefix = short.encode([LONG[:1]])
    for token in LONG[1:]:
        prefix = short.encode([[token]], prefix)
    last = prefix.hidden
    assert hidden[0] is not None and hidden[1] is not None and last is not None
    assert hidden[1].dtype == last.dtype == torch.bfloat16
    scale = hidden[0].abs().max()
    assert (hidden[1].float() - hidden[0]).abs().max() < 0.15 * scale
    assert (last[0, 0].float() - hidden[0][0, -1]).abs().max() < 0.15 * scale


@pytest.mark.parametrize("bits", [4, 8])
def test_the_head_streams_a_quantised_embedding(bits: int) -> None:
    """All fields are those of the numbers that the codes stand for, whatever the slices."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(100, 24, generator=generator)
    codes = quantised(weight, bits)
    hidden = torch.randn(2, 3, 24, generator=generator)
    tokens = torch.randint(100, (2, 3), generator=generator)
    plain = VocabularyHead(codes.dequantize(torch.float32), 30.0)
    for slice_size in (7, 100):
        head = VocabularyHead(codes, 30.0, slice_size)
        assert head.vocab_size == 100
        torch.testing.assert_close(head.logits(hidden), plain.logits(hidden))
        torch.testing.assert_close(
            head.token_logit(hidden, tokens), plain.token_logit(hidden, tokens)
        )
        draws = CounterDraws().step([RowKey(0, 0), RowKey(1, 0)], [3, 3], 3)
        for filters in (None, Filters(top_k=50)):  # slices, and whole rows
            for soft in (True, False):
                found, expected = (
                    each.predict(hidden, 0.7, draws, filters=filters, soft=soft, top_k=3)
                    for each in (head, plain)
                )
                assert torch.equal(found.sample, expected.sample)
                assert torch.equal(found.top_ids, expected.top_ids)
                for field in ("argmax_probability", "entropy", "logsumexp"):
                    torch.testing.assert_close(getattr(found, field), getattr(expected, field))
                assert (found.soft_embedding is None) == (not soft)
                if soft:
                    # a logit is 2e-7 · cap off, its probability by as much over T, the mean by that times √D
                    torch.testing.assert_close(
                        found.soft_embedding, expected.soft_embedding, rtol=1e-4, atol=4e-5
                    )


def test_the_head_never_holds_the_whole_embedding() -> None:
    codes = quantised(torch.randn(4096, 32, generator=torch.Generator().manual_seed(0)), 8)
    hidden = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    with LiveBytes() as live:
        VocabularyHead(codes, 30.0, 256).predict(hidden, 0.0)
    assert live.largest == 256 * 32 * 4


# --- loading


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_holds_the_result_and_one_block(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of many shards: the peak is the result and far less than a shard."""
    model = tiny.model(
        0, vocab_size=512, hidden_size=128, intermediate_size=128, moe_intermediate_size=128,
        num_experts=8,
    )  # fmt: skip
    saved(tmp_path, model, max_shard_bytes=600_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    shard = max(file.stat().st_size for file in shards)
    assert len(shards) >= 6
    blocks = TensorFiles.row_blocks
    monkeypatch.setattr(
        TensorFiles, "row_blocks", lambda self, name: blocks(self, name, numbers=2**12)
    )
    with LiveBytes() as live:
        loaded = load_model(tmp_path, dtype=dtype, device="cpu", quantize=name)
    result = sum(tensor.nbytes for tensor in loaded.state_dict().values())
    plain = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert result < plain * (0.3 if name == "int8" else 0.2)
    assert live.now() == result
    assert result <= live.peak < result + shard / 3
    needed = quantise.stored_sizes(
        DiffusionGemma(model.config, device="meta"), SCHEMES[name], loaded.dtype.itemsize
    )
    assert result == sum(map(sum, needed.values()))


def test_row_blocks_are_the_rows(tmp_path: Path, plain: DiffusionGemma, folder: Path) -> None:
    files = TensorFiles(folder)
    for name in files.stored:
        blocks = list(files.row_blocks(name, numbers=100))
        rows = files[name].reshape(-1, files[name].shape[-1])
        assert torch.equal(torch.cat(blocks), rows)
        assert all(len(block) == max(1, 100 // rows.shape[1]) for block in blocks[:-1])


def test_blocks_do_not_change_the_codes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_model(folder, device="cpu", quantize="int4").state_dict()
    blocks = TensorFiles.row_blocks
    monkeypatch.setattr(
        TensorFiles, "row_blocks", lambda self, name: blocks(self, name, numbers=200)
    )
    again = load_model(folder, device="cpu", quantize="int4").state_dict()
    assert whole.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_memory_is_checked_for_what_will_be_held(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = sum(t.nbytes for t in load_model(folder, device="cpu", quantize="int4").buffers())
    monkeypatch.setattr(devices, "available_memory", lambda device: 2 * held)
    load_model(folder, device="cpu", quantize="int4")
    with pytest.raises(CheckpointError, match=r"as float32.*dtype='bfloat16'"):
        load_model(folder, device="cpu")
    monkeypatch.setattr(devices, "available_memory", lambda device: 1000)
    with pytest.raises(CheckpointError, match=r"as int8, found.*quantize='int4'"):
        load_model(folder, device="cpu", quantize="int8")
    with pytest.raises(CheckpointError, match=r"as bfloat16, found.*quantize='int4'"):
        load_model(folder, device="cpu", dtype="bfloat16")


# --- nano


@cache
def problems():  # type: ignore[no-untyped-def]
    return examples("mini_sudoku", count=10)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMES)
def test_nano_still_solves_what_it_was_taught(name: str) -> None:
    nano = dg.load("nano", dtype="float32", quantize=name)
    texts = dg.generate(nano, [problem.prompt for problem in problems()], batch_size=10)
    solved = sum(
        family("mini_sudoku").solved(problem.entry, text.text)
        for problem, text in zip(problems(), texts, strict=True)
    )
    assert solved >= 6


def test_nano_writes_token_by_token_in_bfloat16() -> None:
    nano = dg.load("nano", dtype="bfloat16", quantize="int8")
    (text,) = dg.generate(nano, "Spell backward:\nSTEP", mode="autoregressive")
    assert text.text == "PETS"


# --- what is refused


def test_a_scheme_that_is_none(folder: Path) -> None:
    for load in (load_model, dg.load):
        with pytest.raises(RequestError) as caught:
            load(folder, quantize="int5")
        assert str(caught.value) == "quantize: expected int8 or int4, found int5; choose one"


def test_a_scheme_is_judged_before_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "_download", lambda name: pytest.fail("downloaded"))
    with pytest.raises(RequestError, match="int5"):
        dg.load("owner/name", quantize="int5")


def test_saving_a_quantised_model(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, quantize="int8", device="cpu")
    with pytest.raises(RequestError, match=r"^a model quantised to int8 cannot be saved: [^\n]+$"):
        saved(tmp_path / "new", model)
    assert not (tmp_path / "new").exists()


def test_training_a_quantised_model(folder: Path, tmp_path: Path) -> None:
    from dgemma_core.nano.recipes import FIRST
    from dgemma_core.train import Trainer

    model = load_model(folder, quantize="int4", device="cpu")
    line = r"^a quantised model cannot be trained: [^\n]+$"
    with pytest.raises(RequestError, match=line):
        Trainer(model, lambda index: pytest.fail("drew"), FIRST.training, tmp_path, end=5)
    with pytest.raises(RequestError, match=line):
        model.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.requires_grad_(False) is model


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", SCHEMES)
def test_weights_that_are_no_numbers(bad: float, name: str, tmp_path: Path) -> None:
    model = tiny.model(0)
    model.get_parameter("layers.1.experts.down_proj")[2, 3, 4] = bad
    saved(tmp_path, model)
    with pytest.raises(CheckpointError, match=r"layers\.1\.experts\.down_proj: expected finite"):
        load_model(tmp_path, device="cpu", quantize=name)


@pytest.mark.slow
def test_the_command_line_hands_it_on() -> None:
    def invoke(*more: str):  # type: ignore[no-untyped-def]
        return CliRunner().invoke(cli.app, ["generate", "Spell backward:\nSTEP", *more])

    for name in SCHEMES:
        done = invoke("--quantize", name, "--dtype", "float32")
        assert (done.exit_code, done.stdout) == (0, "PETS\n"), done.output
    bad = invoke("--quantize", "int5")
    assert bad.exit_code == 2
    assert re.fullmatch(r"dgemma: quantize: expected int8 or int4, [^\n]+\n", bad.stderr)
