"""`dgemma plan`: its arithmetic against what is measured, the released shape, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from typer.testing import CliRunner, Result

from dgemma_core.command import cli
from dgemma_core.command.plan import LOADS, find_config, make_plan, parse_memory
from dgemma_core.config import GenerationDefaults, LayerConfig
from dgemma_core.errors import RequestError
from dgemma_core.facts import tuning
from dgemma_core.facts.cost import weight_bytes
from dgemma_core.facts.memory import KERNEL, cache_bytes, cache_lines, encoding, working_lines
from dgemma_core.facts.published import CONFIGS, DIFFUSION_26B
from dgemma_core.facts.tuning import MODES, Tuning, adapter_parameters, tuning_memory
from dgemma_core.files.checkpoint import load_model
from dgemma_core.files.config_json import read_model_config
from dgemma_core.files.saving import save_model
from dgemma_core.model import DiffusionGemma
from dgemma_core.train import batches, loss, mixture
from dgemma_core.train.tuning import TuneRecipe, new_adapter
from tests.backends.cuda.live_bytes import LiveBytes
from tests.core import tiny
from tests.oracle.released import TEXT_PARAMETERS, released_config

SHORT = LayerConfig(False, num_key_value_heads=2, head_dim=32, rope_theta=1e4)
FULL = LayerConfig(True, num_key_value_heads=1, head_dim=64, rope_theta=1e6, rotary_fraction=0.25)
WIDE = LayerConfig(True, num_key_value_heads=8, head_dim=128, rope_theta=1e6, rotary_fraction=0.25)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["plan", *(str(argument) for argument in arguments)])


# --- the released shape


def test_the_released_shape_is_the_checkpoints() -> None:
    assert CONFIGS[DIFFUSION_26B] == read_model_config(released_config())


@pytest.mark.slow
def test_what_fits_18_gb() -> None:
    plan = make_plan(DIFFUSION_26B, parse_memory("18GB"))
    assert sum(plan.parameters.values()) == TEXT_PARAMETERS
    assert plan.parameters["experts"] == 30 * 128 * 3 * 704 * 2816
    assert plan.parameters["embedding"] == 262_144 * 2816
    assert plan.prefix == 4096
    formats = {format.name: format for format in plan.formats}
    assert {name: format.fits for name, format in formats.items()} == {
        "bf16": False, "fp8": False, "int8": False, "int4": True
    }  # fmt: skip
    assert sum(formats["bf16"].weights.values()) == 2 * TEXT_PARAMETERS
    experts = plan.parameters["experts"]
    assert formats["int4"].weights["experts"] == experts // 2 + 2 * experts // 32
    assert formats["int4"].weights["embedding"] == 262_144 * (2816 + 2)
    assert 14e9 < formats["int4"].total < 16e9
    for format in plan.formats:
        parts = sum(format.weights.values()) + sum(line.bytes for line in plan.cache)
        assert format.total == parts + sum(line.bytes for line in format.working)
    assert formats["fp8"].loads is None and "nothing here" in plan.formula("fp8")


def test_a_format_fits_from_its_total_on() -> None:
    total = {format.name: format.total for format in make_plan("nano", 10**9, 100).formats}
    for name, bytes in total.items():
        for memory, fits in ((bytes, True), (bytes - 1, False)):
            found = {format.name: format for format in make_plan("nano", memory, 100).formats}
            assert found[name].fits == fits


# --- against what is measured


@pytest.mark.parametrize("name", [name for name, loads in LOADS.items() if loads])
def test_weights_take_what_was_planned(name: str, tmp_path: Path) -> None:
    model = tiny.model(0, dtype=torch.bfloat16, hidden_size=48, moe_intermediate_size=40)
    save_model(model, tmp_path, generation=GenerationDefaults())
    quantize = None if name == "bf16" else name
    loaded = load_model(tmp_path, dtype="bfloat16", device="cpu", quantize=quantize)
    held = [*loaded.named_parameters(), *loaded.named_buffers()]
    parts, scales = weight_bytes(model.config, name)
    assert sum(parts.values()) == sum(tensor.nbytes for _, tensor in held)
    assert scales == sum(t.nbytes for key, t in held if key.endswith("_scales"))
    by_name = {key: tensor.nbytes for key, tensor in held}
    assert parts["experts"] == sum(size for key, size in by_name.items() if ".experts." in key)
    assert parts["embedding"] == sum(size for key, size in by_name.items() if "embed_t" in key)


@pytest.mark.parametrize("prefix", [1, 5, 6, 40, 300, 1023, 1024, 1025, 2500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_takes_what_was_planned(prefix: int, dtype: torch.dtype) -> None:
    model = tiny.model(0, dtype, max_position_embeddings=4096, sliding_window=100)
    cache = model.encode([[index % 48 for index in range(prefix)]])
    canvas = torch.zeros(1, 8, dtype=torch.long)
    model.denoise(canvas, cache)
    assert cache.nbytes == cache_bytes(model.config.text, prefix, 8, dtype)
    if dtype == torch.bfloat16:
        lines = cache_lines(model.config.text, prefix, 8)
        assert sum(line.bytes for line in lines) == cache.nbytes
        assert all(line.bytes >= 0 for line in lines)
        row = cache.rows[0]
        kept = sum(
            part.nbytes
            for layer, buffer in enumerate(row.buffers)
            if buffer is not None
            for part in buffer.slice(row.first(layer, prefix), prefix)
        )
        assert sum(line.bytes for line in lines[:-1]) == kept


@pytest.mark.parametrize(
    ("term", "quantize", "prefix", "changes"),
    [
        ("experts", None, 400, {"num_experts": 16, "top_k_experts": 8, "hidden_size": 128}),
        ("activations", None, 400, {"num_attention_heads": 32, "top_k_experts": 1}),
        ("head", None, 8, {"vocab_size": 4096, "canvas_length": 64}),
        ("weights turned back", "int4", 8, {"vocab_size": 4096, "hidden_size": 128}),
        ("weights turned back", "int8", 8, {"vocab_size": 8192, "hidden_size": 128}),
    ],
)
def test_passes_hold_at_most_what_was_planned(
    term: str, quantize: str | None, prefix: int, changes: dict[str, int], tmp_path: Path
) -> None:
    """And the bound is no wild guess: where one term outweighs the others, it cannot be spared."""
    plain = tiny.model(0, torch.bfloat16, max_position_embeddings=1024, **changes)
    save_model(plain, tmp_path, generation=GenerationDefaults())
    model = load_model(tmp_path, device="cpu", quantize=quantize).use("auto")
    config = model.config
    length = config.canvas_length
    cache = sum(line.bytes for line in cache_lines(config.text, prefix, length))
    lines = working_lines(config, prefix, quantised=quantize is not None)
    working = {line.label: line.bytes for line in lines}
    assert working[term] == max(working.values())
    with LiveBytes() as live:
        held = model.encode([[index % 48 for index in range(prefix)]])
        canvas = torch.zeros(1, length, dtype=torch.long)
        first = model.predict(model.denoise(canvas, held), 0.0)
        model.predict(model.denoise(canvas, held, first.soft_embedding), 0.0)
    bound = cache + sum(working.values())
    assert bound - working[term] < live.peak <= bound


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prefix", "widest", "changes"),
    [
        (4096, "mask", {"layers": (SHORT,) * 4 + (FULL,) * 12}),
        (5000, "mask", {"layers": (SHORT,) * 4 + (FULL,) * 12}),
        (1000, "attention", {"layers": (WIDE,), "num_attention_heads": 8}),
        (5000, "buffer that grows", {"layers": (WIDE,), "num_attention_heads": 8}),
        (4096, "experts", {"num_experts": 16, "top_k_experts": 16, "hidden_size": 128}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_prompt_takes_what_was_predicted(
    prefix: int, widest: str, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    """Within 10 %, tensor by tensor, chunks, masks and copies of what grows included."""
    settings = {"sliding_window": 64, "num_attention_heads": 2, "layers": (SHORT, FULL), **changes}
    model = tiny.model(0, dtype, max_position_embeddings=8192, **settings)
    found = encoding(model.config, prefix, dtype)
    assert widest in [line.label for line in found.peak]
    with LiveBytes() as live:
        cache = model.encode([[index % 48 for index in range(prefix)]])
        held, peak = live.now(), live.peak
    assert cache.hidden is not None
    assert [line.bytes for line in found.held] == [cache.nbytes, cache.hidden.nbytes]
    assert held == pytest.approx(sum(line.bytes for line in found.held), rel=0.01)
    visible = sum(line.bytes for line in found.peak if line.label != KERNEL)
    assert peak == pytest.approx(visible, rel=0.1)
    touched = encoding(model.config, prefix, dtype, reserved=False)
    kept = sum(
        2 * buffer.keys[:, : buffer.filled - buffer.base].nbytes
        for buffer in cache.rows[0].buffers
        if buffer is not None
    )
    assert touched.held[0].bytes == kept < cache.nbytes


# --- asking


@pytest.mark.parametrize(
    ("text", "bytes"),
    [("18GB", 18 * 10**9), ("16 GiB", 16 * 2**30), ("1.5TB", 15 * 10**11), ("512MiB", 2**29)],
)
def test_memory_is_read_with_its_unit(text: str, bytes: int) -> None:
    assert parse_memory(text) == bytes


@pytest.mark.parametrize("text", ["18", "18GX", "GB", "-3GB", "18gb", "1e3GB", "0GB", "", "18GB 2"])
def test_memory_that_is_none(text: str) -> None:
    with pytest.raises(RequestError, match=r"^memory: expected a number and one of MB, GB[^\n]+$"):
        parse_memory(text)


@pytest.mark.slow
def test_a_folder_needs_only_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(released_config()))
    assert find_config(tmp_path) == CONFIGS[DIFFUSION_26B]
    done = run("--model", tmp_path, "--memory", "18GB", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and found["vision"] is None
    assert found["formats"]["int4"]["fits"]


def test_the_table_shows_verdicts_and_arithmetic() -> None:
    done = run("--model", DIFFUSION_26B, "--memory", "18GB")
    assert done.exit_code == 0 and not done.stderr
    shown = done.stdout
    assert re.search(r"in 18.00 GB +too large +too large +too large +fits", shown)
    assert re.search(r"experts +22,837,985,280 +45.68 +22.87 +22.87 +12.85", shown)
    assert "5 × 4,096 positions × 2 (keys, values) × 2 heads × 512 × 2 = 83.9 MB" in shown
    assert "nothing here loads it yet" in shown and "572,792,052" in shown
    assert f'load({DIFFUSION_26B!r}, quantize="int4")' in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_json_holds_the_same() -> None:
    found = json.loads(run("--model", "nano", "--memory", "2GB", "--prefix", 200, "--json").stdout)
    plan = make_plan("nano", 2 * 10**9, 200)
    assert found["memory"] == 2 * 10**9 and found["prefix"] == 200
    assert list(found["formats"]) == ["bf16", "fp8", "int8", "int4"]
    for format in plan.formats:
        assert found["formats"][format.name]["total"] == format.total
        assert found["formats"][format.name]["weights"] == format.weights


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "18GX"], "memory: expected"),
        (
            ["--memory", "18GB", "--model", "owner/name"],
            "model: expected nano, nano-talk, a folder",
        ),
        (
            ["--memory", "18GB", "--model", "no-such-model"],
            "model: expected nano, nano-talk, a folder",
        ),
        (["--memory", "18GB", "--prefix", "0"], "prefix: expected 1"),
        (["--memory", "18GB", "--prefix", "140000"], "prefix: expected 1 … 130,816"),
        (["--model", "nano"], "--memory"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2 and done.stdout == ""
    assert re.fullmatch(r"dgemma: [^\n]+\n", done.stderr) and words in done.stderr


def test_a_damaged_config_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    done = run("--memory", "18GB", "--model", tmp_path)
    assert done.exit_code == 2 and str(tmp_path) in done.stderr and done.stderr.count("\n") == 1


def test_an_autoregressive_model_is_planned_without_a_denoiser() -> None:
    config = tiny.config(can_denoise=False, model_type="gemma4_text")
    assert weight_bytes(config, None)[0]["self-conditioning"] == 0
    total = sum(p.numel() for p in DiffusionGemma(config, device="meta").parameters())
    assert sum(weight_bytes(config, None)[0].values()) == total


# --- tuning


def test_an_adapter_has_as_many_numbers_as_planned() -> None:
    model = tiny.model(0)
    for modes in ("both", "denoiser", "causal"):
        recipe = TuneRecipe(steps=1, rank=3, modes=modes)  # type: ignore[arg-type]
        loras = new_adapter(model, recipe).modules().values()
        held = sum(p.numel() for lora in loras for p in lora.parameters())
        assert adapter_parameters(model.config, 3, modes) == held


def test_what_the_plan_knows_of_training_is_so() -> None:
    assert (tuning.ROUNDED, tuning.AT_ONCE, tuning.COUNTED) == (
        batches.ROUNDED, loss.AT_ONCE, loss.COUNTED,
    )  # fmt: skip
    assert tuning.EXPERT_ROWS == mixture.SLICE and set(MODES) == set(get_args(loss.Modes))


@pytest.mark.slow
def test_what_tuning_the_released_model_takes() -> None:
    config = CONFIGS[DIFFUSION_26B]
    assert adapter_parameters(config, 16) == 494_613_504
    plain, again = (
        tuning_memory(config, Tuning(base="int4", length=1023, recomputes=r)) for r in (False, True)
    )
    assert plain.held == again.held and again.total < plain.total / 2
    assert plain.held[0].bytes == sum(weight_bytes(config, "int4")[0].values())
    for found in (plain, again):
        assert found.total == sum(line.bytes for line in (*found.held, *found.passing))
    one = tuning_memory(config, Tuning(modes="denoiser", length=1023))
    assert one.total < tuning_memory(config, Tuning(length=1023)).total


def test_all_weights_with_gradient_and_moments() -> None:
    config = tiny.config()
    count = sum(weight_bytes(config, None)[0].values())
    found = tuning_memory(
        config, Tuning(base="float32", full=True, copied=False, texts=1, length=8)
    )
    assert [line.bytes for line in found.held] == [4 * count, 8 * count]
    assert [line.bytes for line in found.updating] == [4 * count]


@pytest.mark.slow
def test_tuning_is_planned_by_the_command() -> None:
    asked = ("--tune", "--memory", "80GB", "--batch-size", 32, "--accumulate", 8, "--length", 1023)
    done = run(*asked)
    assert done.exit_code == 0 and re.search(r"in 80.00 GB +too large +recompute fits", done.stdout)
    assert "494,613,504 × 4 (rank 16) = 1,978.5 MB" in done.stdout
    assert "4 texts of 1,023 tokens at once" in done.stdout
    assert "Not counted: the process itself" in done.stdout
    found = json.loads(run(*asked, "--json").stdout)["bases"]["bf16"]
    assert found["recompute"]["fits"] and not found["plain"]["fits"]
    full = json.loads(
        run("--tune", "--full", "--model", "nano", "--memory", "1GB", "--json").stdout
    )
    assert list(full["bases"]) == ["float32"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rank", "4"], "--rank belong to --tune"),
        (["--tune", "--rank", "0"], "rank: expected at least 1"),
        (["--tune", "--modes", "one"], "modes: expected one of both"),
        (["--tune", "--full", "--modes", "causal"], "all weights learn in float32"),
        (["--tune", "--accumulate", "3"], "--batch-size 16 does not divide into 3 parts"),
        (["--tune", "--length", "300000"], "length: expected 1 … "),
        (["--tune", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["--tune", "--accumulate", "0"], "--accumulate must be at least 1"),
        (["--tune", "--full", "--rank", "4"], "--rank is of an adapter"),
        (["--tune", "--prefix", "5"], "--prefix belongs to generation"),
    ],
)
def test_bad_input_about_tuning_is_one_line(arguments: list[str], words: str) -> None:
    done = run("--memory", "18GB", *arguments)
    assert done.exit_code == 2 and done.stdout == ""
    assert re.fullmatch(r"dgemma: [^\n]+\n", done.stderr) and words in done.stderr
