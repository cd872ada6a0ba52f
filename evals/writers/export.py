"""The causal half of a DiffusionGemma as a checkpoint of its own: a Gemma 4 mixture of experts.

The encoder with the tied head *is* a Gemma 4 (spec §1): the same tensors under Gemma 4's names,
with the encoder's layer scalars, and without what only the denoiser uses.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from torch import nn

from dgemma_core import CheckpointError, DiffusionGemma, load_model, save_model
from dgemma_core.config import GEMMA_4_TEXT
from dgemma_core.files.finding import CONFIG, find_folder, read_config
from dgemma_core.files.reading import read_json

_TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)


def export_autoregressive(
    name_or_path: str | os.PathLike[str], folder: str | os.PathLike[str], *, dtype: str = "auto"
) -> Path:
    """Writes weights, configuration and tokenizer into `folder`, which must hold no other model.

    Raises CheckpointError where the source has no denoiser (it is autoregressive already) or the
    folder cannot be written.
    """
    source, target = find_folder(name_or_path), Path(folder)
    config, generation = read_config(source)
    if not config.can_denoise:
        raise CheckpointError(f"{source}: is autoregressive already ({config.model_type}); copy it")
    if (target / CONFIG).exists() and read_json(target / CONFIG).get("model_type") != GEMMA_4_TEXT:
        raise CheckpointError(f"{target}: holds another model; name a new folder")
    model = load_model(source, dtype=dtype, device="cpu")
    causal = DiffusionGemma(
        replace(config, model_type=GEMMA_4_TEXT, can_denoise=False, media_token_ids=()),
        device="meta",
    )
    for name, _ in list(causal.named_parameters()):
        module, _, attribute = name.rpartition(".")
        parameter = nn.Parameter(model.get_parameter(name).detach(), requires_grad=False)
        setattr(causal.get_submodule(module), attribute, parameter)
    save_model(causal, target, generation=generation)
    _plain_generation(target, generation.eos_token_ids, config.pad_token_id, config.bos_token_id)
    for file in _TEXT_FILES:
        if (source / file).is_file():
            shutil.copyfile(source / file, target / file)
    return target


def _plain_generation(folder: Path, eos: tuple[int, ...], pad: int | None, bos: int | None) -> None:
    """A generation_config.json without the denoiser's settings, which others would not know."""
    import json

    settings = {
        "do_sample": False,
        "eos_token_id": list(eos),
        "pad_token_id": pad,
        "bos_token_id": bos,
    }
    path = folder / "generation_config.json"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
