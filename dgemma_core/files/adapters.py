"""Adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors, in and out.

Notable:
- transformers' DiffusionGemma has the causal mode as `model.encoder.language_model` and the denoiser as
  `model.decoder`, separate modules around tied weights, so PEFT gives each its own factors. An adapter of both modes is
  written twice; equal factors are read as one;
- of two adapted stacks of experts PEFT wraps one around the other: the inner one, `gate_up_proj`, is named
  `base_layer`;
- a file written here names its base by a digest, which `peft` passes over. A file without one fits by names and shapes.

Layout: https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgemma_core.config import ModelConfig
from dgemma_core.errors import CheckpointError
from dgemma_core.files.finding import as_name, as_path, read_config
from dgemma_core.files.lora import CONDITIONING, STACKS, Adapter, LowRank
from dgemma_core.files.names import match
from dgemma_core.files.reading import plain, read_json, shown
from dgemma_core.files.saving import check_replaceable
from dgemma_core.files.section import Section
from dgemma_core.files.tensors import TensorFiles, read_header
from dgemma_core.model import DiffusionGemma

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DIGEST = "base_digest"
"""Key of the weights' metadata."""
SAMPLED = 256
"""Numbers of every tensor that the digest reads."""

_BEGIN = "base_model.model."
_CAUSAL, _DENOISER = "model.encoder.language_model.", "model.decoder."
_TENSOR = re.compile(r"(?P<path>.+?)\.lora_(?P<factor>[AB])(\.default)?\.weight")
_INNER = ".base_layer"
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    **dict.fromkeys(
        ("use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "modules_to_save", "layer_replication",
         "trainable_token_indices", "alora_invocation_tokens", "arrow_config", "use_bdlora", "kasa_config",
         "monteclora_config"),
        (None, False),
    ),
}  # fmt: skip
"""What an adapter's configuration must say where it says anything: other kinds are not run here."""


def base_digest(folder: Path) -> str:
    """A digest of a checkpoint's text weights: names, shapes, and the first numbers of each, rounded to bfloat16. The
    same model stored in another dtype has the same digest."""
    files = TensorFiles(folder)
    summed = hashlib.sha256()
    sources = match(DiffusionGemma(read_config(folder)[0], device="meta"), files)
    for name, group in sorted(sources.items()):
        for stored in group:
            numbers = files[stored.name].flatten()[:SAMPLED].to(torch.bfloat16)
            summed.update(f"{name} {stored.shape} ".encode())
            summed.update(numbers.view(torch.int16).numpy().tobytes())
    return summed.hexdigest()[:32]


# --- reading


def read_adapter(name_or_path: str | os.PathLike[str], base: Path, config: ModelConfig) -> Adapter:
    """The adapter in a folder, for the checkpoint in the folder `base`, whose configuration is `config`.

    Raises CheckpointError where the folder holds no adapter, a damaged one, one of a kind that is not run here, or one
    of another base.
    """
    folder = as_path(as_name(name_or_path))
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{folder}: expected an adapter in PEFT's layout, found no {ADAPTER_CONFIG}; name the folder that"
            " `dgemma tune` or peft wrote"
        )
    settings = Section(read_json(folder / ADAPTER_CONFIG), str(folder / ADAPTER_CONFIG))
    for key, allowed in _NEUTRAL.items():
        if key in settings.values and settings.values[key] not in allowed:
            raise settings.refuse(
                key, settings.values[key], shown(allowed[0]), "this kind of adapter cannot run here"
            )
    tensors, written_for = _read_tensors(folder / ADAPTER_WEIGHTS)
    if written_for is not None and written_for != base_digest(base):
        raise CheckpointError(
            f"{folder}: the adapter was made for other weights than {base} holds; load it with the model that it was"
            f" tuned from ({plain(str(settings.get('base_model_name_or_path')))})"
        )
    return _Reader(folder, settings, config).read(tensors)


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file by name, and the digest of the base that it names."""
    from safetensors import safe_open

    stored = read_header(file)
    for tensor in stored.values():
        if not tensor.dtype.is_floating_point:
            raise tensor.refuse("floating-point numbers", str(tensor.dtype), "write it again")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
        found = {name: opened.get_tensor(name) for name in stored}
    for name, numbers in found.items():
        if not bool(numbers.isfinite().all()):
            raise stored[name].refuse("finite numbers", "NaN or infinite ones", "write it again")
    return found, metadata.get(DIGEST)


class _Reader:
    """Turns the tensors of one adapter into modules."""

    def __init__(self, folder: Path, settings: Section, config: ModelConfig) -> None:
        self.folder, self.settings, self.config = folder, settings, config
        model = DiffusionGemma(config, device="meta")
        self.shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() > 1}

    def read(self, tensors: Mapping[str, Tensor]) -> Adapter:
        factors: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            matched = _TENSOR.fullmatch(name.removeprefix(_BEGIN))
            if matched is None:
                raise self._refuse(name, "lora_A or lora_B of a matrix")
            factors.setdefault(matched["path"], {})[matched["factor"]] = tensor
        modes: dict[bool, dict[str, LowRank]] = {True: {}, False: {}}
        for path, pair in factors.items():
            if pair.keys() != {"A", "B"}:
                raise self._refuse(path, "both lora_A and lora_B")
            is_causal, parameter = self._parameter(path, factors)
            modes[is_causal][parameter] = self._low_rank(path, parameter, pair["A"], pair["B"])
        causal, denoiser = modes[True], modes[False]
        for name, lora in denoiser.items():
            other = causal.get(name)
            if other is not None and _equal(lora, other):
                causal[name] = lora
        return Adapter(causal, denoiser)

    def _parameter(self, path: str, paths: Mapping[str, Any]) -> tuple[bool, str]:
        """Whether a path in transformers' model is the causal mode's, and the name of the parameter here."""
        causal = True
        if self.config.can_denoise:
            causal = path.startswith(_CAUSAL)
            rest = path.removeprefix(_CAUSAL if causal else _DENOISER)
        else:
            rest = path.removeprefix("model.").removeprefix("language_model.")
        inner = rest.endswith(_INNER)
        rest = rest.removesuffix(_INNER)
        parameter = f"{rest}.weight"
        if rest.endswith(".experts"):
            both = f"{path}{_INNER}" in paths
            parameter = (
                f"{rest}.{STACKS[0] if inner else STACKS[1] if both else self._only_stack(path)}"
            )
        if rest == path or parameter not in self.shapes or parameter == "embed_tokens.weight":
            raise self._refuse(path, "a matrix of this model's layers")
        if causal and parameter.startswith(CONDITIONING):
            raise self._refuse(path, "a matrix of this model's layers")
        return causal, parameter

    def _only_stack(self, path: str) -> str:
        """Which of an expert layer's stacks is adapted where one is."""
        named = self.settings.get("target_parameters") or ()
        targets = [target for target in named if isinstance(target, str)]
        found = [
            stack
            for stack in STACKS
            if any(f"{path}.{stack}" == t or f"{path}.{stack}".endswith(f".{t}") for t in targets)
        ]
        if len(found) != 1:
            raise self._refuse(path, "target_parameters that name the adapted matrix")
        return found[0]

    def _low_rank(self, path: str, parameter: str, a: Tensor, b: Tensor) -> LowRank:
        shape = self.shapes[parameter]
        count = shape[0] if len(shape) == 3 else 1
        outputs, inputs = shape[-2:]
        rank = len(a) // count
        fits = a.dim() == b.dim() == 2 and rank > 0
        if not fits or a.shape != (count * rank, inputs) or b.shape != (outputs, count * rank):
            raise CheckpointError(
                f"{self.folder}: {plain(path)}: expected factors ({count} · r, {inputs}) and ({outputs}, {count} · r),"
                f" found {tuple(a.shape)} and {tuple(b.shape)}; this is an adapter of another base: load it with the"
                " model that it was made for"
            )
        root = math.sqrt(rank) if self.settings.get("use_rslora") else rank
        return LowRank(a.float(), b.float(), self._alpha(path) / root, count=count)

    def _alpha(self, path: str) -> float:
        patterns = self.settings.get("alpha_pattern") or {}
        for pattern in patterns:
            if not re.fullmatch(r"[\w.]+", pattern):
                raise self.settings.refuse(
                    "alpha_pattern", pattern, "whole names of modules", "write their names out"
                )
            if path == pattern or path.endswith(f".{pattern}"):
                section = Section(patterns, self.settings.source, "alpha_pattern.")
                return section.number(pattern, zero=True)
        return self.settings.number("lora_alpha", 8, zero=True)

    def _refuse(self, name: str, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: {plain(name)}: expected {expected}; this is an adapter of another base: load it with the"
            " model that it was made for"
        )


def _equal(a: LowRank, b: LowRank) -> bool:
    same = torch.equal(a.lora_A, b.lora_A) and torch.equal(a.lora_B, b.lora_B)
    return same and a.scale == b.scale


# --- writing


def save_adapter(
    folder: Path, adapter: Adapter, *, base: str, digest: str, rank: int, alpha: float
) -> Path:
    """Writes an adapter in PEFT's layout, whole or not at all; its modules have one rank and one alpha.

    base: the checkpoint's name, as `load` takes it. digest: its `base_digest`. Raises CheckpointError where the folder
    cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    modules: list[str] = []
    parameters: list[str] = []
    for prefix, loras in ((_CAUSAL, adapter.causal), (_DENOISER, adapter.denoiser)):
        for name, path, lora in _peft_names(loras):
            for factor in ("A", "B"):
                numbers = lora.get_parameter(f"lora_{factor}").detach().cpu().float()
                tensors[f"{_BEGIN}{prefix}{path}.lora_{factor}.weight"] = numbers.clone()
            stacked = name.endswith(STACKS)
            (parameters if stacked else modules).append(prefix + name.removesuffix(".weight"))
    settings = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "target_modules": modules,
        "target_parameters": parameters or None,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            save_file(tensors, temporary / ADAPTER_WEIGHTS, {"format": "pt", DIGEST: digest})
            text = json.dumps(settings, indent=2) + "\n"
            (temporary / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
            for file in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
                check_replaceable(folder / file)
            for file in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
                os.replace(temporary / file, folder / file)
        finally:
            shutil.rmtree(temporary)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: the adapter cannot be written ({error}); make room or choose another folder"
        ) from error
    return folder


def _peft_names(loras: Mapping[str, LowRank]) -> Iterator[tuple[str, str, LowRank]]:
    """(parameter, path of its factors in PEFT's model, factors) of every adapted matrix."""
    for name, lora in loras.items():
        module, _, parameter = name.rpartition(".")
        both = all(f"{module}.{stack}" in loras for stack in STACKS)
        inner = parameter == STACKS[0] and both
        yield name, f"{module}{_INNER}" if inner else module, lora
