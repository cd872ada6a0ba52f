"""The public implementation on the same card: transformers' DiffusionGemmaForBlockDiffusion with the same weights."""

from __future__ import annotations

import gc
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from dgemma_core.config import ModelConfig
from dgemma_evals.bench.gpu.model import fill

EXPERTS = ("grouped_mm", "eager")


def missing() -> str | None:
    """Why there is nothing to compare with; None where there is."""
    if find_spec("transformers") is None:
        return "transformers is not installed"
    import transformers

    if not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"):
        return f"transformers {transformers.__version__} has no DiffusionGemmaForBlockDiffusion"
    return None


def build(config: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """Their model on the device, filled with this project's weights by name."""
    from transformers import AutoConfig, DiffusionGemmaForBlockDiffusion
    from transformers.initialization import no_init_weights

    from dgemma_core.files.config_json import model_config_json
    from dgemma_core.files.saving import tiny_vision

    written = {**model_config_json(config), "vision_config": tiny_vision(config)[0]}
    theirs = AutoConfig.for_model(**written)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"), no_init_weights():
            model = DiffusionGemmaForBlockDiffusion._from_config(theirs, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(usual)
    model.tie_weights()  # encoder and decoder are one set of weights: before any memory is taken
    _materialise(model, device)
    model.initialize_weights()  # what is left: the tables of rotary angles
    scalars = torch.empty(len(config.text.layers), dtype=dtype, device=device)
    fill("encoder_layer_scalars", scalars, seed)
    encoder, decoder = "model.encoder.language_model.", "model.decoder."
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        if name.startswith(encoder) and name.endswith("layer_scalar"):
            values.data.copy_(scalars[int(name.removeprefix(encoder).split(".")[1])])
        elif name.endswith("layer_scalar") or isinstance(values, nn.Parameter):
            own = name.removeprefix(decoder).removeprefix(encoder)
            if "vision" in name:
                values.data.zero_()
            else:
                own = "embed_tokens.weight" if own == "lm_head.weight" else own
                fill(own, values.data, seed)
    return model


def _materialise(model: nn.Module, device: torch.device) -> None:
    """Memory for everything on the meta device; what is shared stays shared. Parameters count as initialised."""
    made: dict[int, nn.Parameter] = {}
    for name, old in list(model.named_parameters(remove_duplicate=False)):
        if id(old) not in made:
            made[id(old)] = nn.Parameter(torch.empty_like(old, device=device), requires_grad=False)
            made[id(old)]._is_hf_initialized = True  # type: ignore[attr-defined]
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, made[id(old)])
    for name, buffer in list(model.named_buffers()):
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, torch.empty_like(buffer, device=device))
    model.eval()


@torch.no_grad()
def logits(model: Any, prompt: list[int], canvas: list[int], positions: list[int]) -> Tensor:
    """Raw soft-capped logits (k, V) float32 of a first denoising pass, on the CPU."""
    from transformers import DynamicCache

    device = next(model.parameters()).device
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    model.model.encoder(torch.tensor([prompt], device=device), past_key_values=cache)
    output = model(past_key_values=cache, decoder_input_ids=torch.tensor([canvas], device=device))
    found: Tensor = output.logits[0, positions].float().cpu()
    return found


class Marks:
    """Moments on the device's own clock (a CPU's: the host's)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.found: list[Any] = []

    def add(self, *_: Any) -> None:
        import time

        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.found.append(event)
        else:
            self.found.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Between neighbours."""
        pairs = list(zip(self.found, self.found[1:], strict=False))
        if self.device.type != "cuda":
            return [1e3 * (after - before) for before, after in pairs]
        torch.cuda.synchronize(self.device)
        return [before.elapsed_time(after) for before, after in pairs]


@torch.no_grad()
def steps(model: Any, prompt: list[int], count: int, seed: int) -> list[float]:
    """Milliseconds of each of `count` fixed denoising steps of one canvas, from pass to pass."""
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as theirs

    device = next(model.parameters()).device
    marks = Marks(device)
    hook = model.model.decoder.register_forward_pre_hook(marks.add)
    try:
        torch.manual_seed(seed)
        ids = torch.tensor([prompt], device=device)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=theirs.DiffusionGemmaGenerationConfig(
                max_denoising_steps=count,
                max_new_tokens=model.config.canvas_length,
                sampler_config=theirs.EntropyBoundSamplerConfig(entropy_bound=0.1),
                t_min=0.4,
                t_max=0.8,
                stability_threshold=1,
                confidence_threshold=1e-9,  # never reached; 0 is refused
                eos_token_id=None,
                pad_token_id=0,
            ),
        )
    finally:
        hook.remove()
    marks.add()
    return marks.milliseconds()


def free(model: nn.Module | None) -> None:
    """Gives a model's memory back to the card, once its owner has let it go."""
    if model is not None:
        for parameter in model.parameters():
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
