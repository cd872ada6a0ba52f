"""Public names of a model's tensors, and which stored tensor fills which parameter.

- A parameter `x` of DiffusionGemma is stored as `model.decoder.x`. The encoder shares all weights but
  one layer scalar a layer, `model.encoder.language_model.layers.N.layer_scalar`.
- Gemma 4 stores `model.x` or `model.language_model.x`, and one set of layer scalars.
- Vision and audio towers are not loaded.

Source of names and shapes: spec §2.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from dgemma_core.config import GEMMA_4, ModelConfig
from dgemma_core.errors import CheckpointError
from dgemma_core.files.finding import CONFIG
from dgemma_core.files.tensors import StoredTensor, TensorFiles, short_name
from dgemma_core.model import DiffusionGemma

ENCODER_SCALARS = "encoder_layer_scalars"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_log = logging.getLogger(__name__)
_DECODER, _ENCODER = "model.decoder.", "model.encoder.language_model."
_TOWERS = re.compile(r"model\.(encoder\.)?(vision_tower|embed_vision|audio_tower|embed_audio)\.")
_OTHER_MODEL = f"the weights and {CONFIG} are of different models, download both again"


def public_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The text tensors of a checkpoint of this configuration, by public name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, parameter in DiffusionGemma(config, device="meta").named_parameters():
        shapes |= _public_shapes(name, parameter, config, _prefix(config))
    return shapes


def public_tensors(model: DiffusionGemma) -> dict[str, Tensor]:
    """A model's parameters by public name. Gemma 4 stores the encoder's layer scalars, which it uses."""
    tensors: dict[str, Tensor] = {}
    named = sorted(model.named_parameters(), key=lambda item: item[0] == ENCODER_SCALARS)
    for parameter, tensor in named:  # the encoder's scalars last, so that they are kept
        names = _public_shapes(parameter, tensor, model.config, _prefix(model.config))
        parts = tensor.split(1) if parameter == ENCODER_SCALARS else [tensor]
        tensors |= dict(zip(names, parts, strict=True))
    return tensors


def is_tower(name: str) -> bool:
    """Whether a stored tensor belongs to a vision or audio tower."""
    return _TOWERS.match(name) is not None


def match(model: DiffusionGemma, files: TensorFiles) -> dict[str, list[StoredTensor]]:
    """The stored tensors that fill each parameter. Raises CheckpointError unless all fit exactly."""
    config, left = model.config, dict(files.stored)
    prefix = _prefix(config, left)
    if towers := [left.pop(name) for name in files.stored if is_tower(name)]:
        _log.info("%s: skipped %d vision tensors, text only", files.folder, len(towers))
    expected = {
        parameter: _public_shapes(parameter, tensor, config, prefix)
        for parameter, tensor in model.named_parameters()
    }
    shapes = {name: shape for group in expected.values() for name, shape in group.items()}
    if missing := [name for name in shapes if name not in left]:
        more = f" (and {len(missing) - 1} others neither)" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{files.folder}: {missing[0]}: expected shape {list(shapes[missing[0]])}, found no"
            f" such tensor{more}; {_OTHER_MODEL}"
        )
    for name, stored in left.items():
        if name in shapes:
            _check_fits(stored, shapes[name])
        else:
            _check_tied_copy(files, stored, prefix)
    return {parameter: [left[name] for name in group] for parameter, group in expected.items()}


def _prefix(config: ModelConfig, stored: Mapping[str, StoredTensor] | None = None) -> str:
    """What stands before a parameter's name in `stored`, or in a checkpoint written here."""
    if config.can_denoise:
        return _DECODER
    nested = "model.language_model."
    if stored is not None:
        return nested if any(name.startswith(nested) for name in stored) else "model."
    return nested if config.model_type == GEMMA_4 else "model."


def _public_shapes(
    parameter: str, tensor: Tensor, config: ModelConfig, prefix: str
) -> dict[str, tuple[int, ...]]:
    """What a parameter is stored as: one tensor, or of the encoder's layer scalars one a layer."""
    if parameter != ENCODER_SCALARS:
        return {prefix + parameter: tuple(tensor.shape)}
    owner = _ENCODER if config.can_denoise else prefix  # Gemma 4 has one mode, so one set of them
    return {f"{owner}layers.{index}.layer_scalar": (1,) for index in range(len(tensor))}


def _check_fits(stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise stored.refuse(f"shape {list(shape)}", str(list(stored.shape)), _OTHER_MODEL)
    if stored.dtype not in FLOATS:
        expected = f"a dtype of {', '.join(short_name(dtype) for dtype in FLOATS)}"
        advice = "quantised weights cannot run here, load the original checkpoint"
        raise stored.refuse(expected, short_name(stored.dtype), advice)


def _check_tied_copy(files: TensorFiles, stored: StoredTensor, prefix: str) -> None:
    """Raises unless `stored` is one of the copies of tied weights that some writers keep."""
    name = stored.name.removeprefix(_ENCODER)
    original = prefix + ("embed_tokens.weight" if name == "lm_head.weight" else name)
    if original == stored.name or original not in files.stored:
        raise stored.refuse("no such tensor", f"shape {list(stored.shape)}", _OTHER_MODEL)
    copy, first = stored, files.stored[original]
    alike = (copy.dtype, copy.shape) == (first.dtype, first.shape)
    if not alike or not torch.equal(files[copy.name], files[original]):
        advice = "a checkpoint with untied weights cannot run here"
        raise stored.refuse(f"a copy of {original}", "other values", advice)
