"""Adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors, in and out.

Notable:
- transformers' DiffusionGemma has the causal mode as `model.encoder.language_model` and the denoiser as
  `model.decoder`, separate modules around tied weights, so PEFT gives each its own factors. An adapter of both modes is
  written twice; equal factors are read as one;
- of two adapted stacks of experts PEFT wraps one around the other: the inner one, `gate_up_proj`, is named
  `base_layer`;
- the configuration says which matrices have factors, by PEFT's rules (`_Targets`): the file must hold those and no
  others, except the vision tower's, which is not run here;
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
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dgemma_core.config import ModelConfig
from dgemma_core.errors import CheckpointError
from dgemma_core.files.finding import as_name, as_path, read_config
from dgemma_core.files.lora import CONDITIONING, STACKS, Adapter, LowRank
from dgemma_core.files.names import match
from dgemma_core.files.reading import AGAIN, JSON_LIMIT, plain, read_text, shown
from dgemma_core.files.saving import check_replaceable
from dgemma_core.files.section import Section
from dgemma_core.files.tensors import TensorFiles, read_header, short_name
from dgemma_core.model import DiffusionGemma

T = TypeVar("T")

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DIGEST = "base_digest"
"""Key of the weights' metadata."""
SAMPLED = 256
"""Numbers of every tensor that the digest reads."""

_BEGIN = "base_model.model."
_CAUSAL, _DENOISER = "model.encoder.language_model.", "model.decoder."
_GEMMA4, _MULTIMODAL = "model.", "model.language_model."
_TENSOR = re.compile(r"(?P<path>.+?)\.lora_(?P<factor>[AB])(\.default)?\.weight")
_INNER = ".base_layer"
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    **dict.fromkeys(
        ("use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "trainable_token_indices", "alora_invocation_tokens",
         "arrow_config", "use_bdlora", "kasa_config", "monteclora_config"),
        (None, False),
    ),
    **dict.fromkeys(("modules_to_save", "layer_replication"), (None, False, [])),
}  # fmt: skip
"""What an adapter's configuration must say where it says anything: other kinds are not run here."""
_INITS = ("gaussian", "orthogonal", "eva", "mica")
"""Values of init_lora_weights that leave the base as it is. Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change it, and
their factors fit the changed base alone."""
_VISION = re.compile(r"model\.(encoder\.)?(vision_tower|embed_vision|audio_tower|embed_audio)\.")
_NOT_RUN: Mapping[str, str] = {
    r"lora_magnitude_vector": "a magnitude of DoRA",
    r"(^|\.)lm_head(\.|$)": "a change of the vocabulary head",
    r"embed_tokens|lora_embedding_": "a change of the embeddings",
    r"\.bias$": "a trained bias",
}
"""What tensors hold that PEFT writes and that cannot run here, by an expression in their names."""
_MOST_REPEATS, _LONGEST = 6, 2000
"""Repeats in an expression, and its length, at most: those of an unknown file must end in time."""


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
    if not os.path.isfile(folder / ADAPTER_CONFIG):  # False for names that no file can have, too
        raise CheckpointError(
            f"{folder}: expected an adapter in PEFT's layout, found no {ADAPTER_CONFIG}; name the folder that"
            " `dgemma tune` or peft wrote"
        )
    settings = _read_settings(folder / ADAPTER_CONFIG)
    reader = _Reader(folder, settings, config)
    tensors, written_for = _read_tensors(folder / ADAPTER_WEIGHTS)
    if written_for is not None and written_for != base_digest(base):
        raise CheckpointError(
            f"{folder}: the adapter was made for other weights than {base} holds; load it with the model that it was"
            f" tuned from ({plain(str(settings.get('base_model_name_or_path')))})"
        )
    return reader.read(tensors)


def _read_settings(file: Path) -> Section:
    """An adapter's configuration, of a kind that runs here."""
    try:
        values = json.loads(read_text(file, JSON_LIMIT).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: expected json, found {error}; {AGAIN}") from error
    settings = Section(values, str(file))
    for key, allowed in _NEUTRAL.items():
        if key in settings.values and settings.values[key] not in allowed:
            advice = "this kind of adapter cannot run here"
            raise settings.refuse(key, settings.values[key], shown(allowed[0]), advice)
    start = settings.get("init_lora_weights")
    known = isinstance(start, str) and start.lower() in _INITS
    if not (known or start is None or isinstance(start, bool)):
        raise settings.refuse(
            "init_lora_weights",
            start,
            f"true, false or one of {', '.join(_INITS)}",
            "such factors fit a changed base: save them with peft's path_initial_model_for_weight_conversion, or merge"
            " them into that base",
        )
    by_root = settings.get("use_rslora")
    if not (by_root is None or isinstance(by_root, bool)):
        raise settings.refuse("use_rslora", by_root, "true or false")
    return settings


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file by name, in float32, and the digest of the base that it names."""
    from safetensors import safe_open

    stored = read_header(file)
    if not stored:
        raise CheckpointError(f"{file}: expected lora_A and lora_B, found no tensors; {AGAIN}")
    for tensor in stored.values():
        if not tensor.dtype.is_floating_point or tensor.dtype.itemsize == 1:
            expected = "numbers as float32, float16 or bfloat16"
            raise tensor.refuse(
                expected, short_name(tensor.dtype), "write it again as one of these"
            )
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
        found = {name: opened.get_tensor(name).float() for name in stored}
    for name, numbers in found.items():
        if not bool(numbers.isfinite().all()):
            raise stored[name].refuse(
                "finite numbers in float32", "NaN or infinite ones", "write it again"
            )
    return found, metadata.get(DIGEST)


class _Targets:
    """Which matrices an adapter changes: what its configuration says, by the rules of `peft`."""

    def __init__(self, settings: Section) -> None:
        self.is_module = _matcher(settings, "target_modules")
        self.is_excluded = _matcher(settings, "exclude_modules")
        self.parameters = _names(settings, "target_parameters")
        modules = settings.get("target_modules")
        if not (modules or self.parameters):
            raise settings.refuse("target_modules", modules, "names of the adapted matrices")
        self.whole_names = modules if isinstance(modules, list) else []
        layers = settings.get("layers_to_transform")
        self.layers = layers if isinstance(layers, list) else [] if layers is None else [layers]
        if any(type(layer) is not int for layer in self.layers):
            raise settings.refuse(
                "layers_to_transform", layers, "a layer's index or a list of them"
            )
        stacks = settings.get("layers_pattern") or [r"[^.]*"]
        self.stacks = [
            _expression(settings, "layers_pattern", stack, r"(?:^|.*?\.){}\.(\d+)\.")
            for stack in (stacks if isinstance(stacks, list) else [stacks])
        ]

    def parameter(self, path: str) -> bool:
        return _ends(path, self.parameters)

    def module(self, path: str) -> bool:
        if self.is_excluded(path) or not self.is_module(path):
            return False
        if not self.layers or path in self.whole_names:
            return True
        found = next(filter(None, (stack.match(path) for stack in self.stacks)), None)
        return found is not None and int(found[1]) in self.layers


def _matcher(settings: Section, key: str) -> Callable[[str], bool]:
    """Whether a path is one that a key names: by an expression, or by a list of names and their ends."""
    value = settings.get(key)
    if not isinstance(value, str):
        names = _names(settings, key)
        return lambda path: _ends(path, names)
    if value.lower() == "all-linear":
        return lambda path: True
    expression = _expression(settings, key, value)
    return lambda path: expression.fullmatch(path) is not None


def _ends(path: str, names: list[str]) -> bool:
    return f".{path}".endswith(tuple(f".{name}" for name in names))


def _names(settings: Section, key: str) -> list[str]:
    value = settings.get(key)
    names = [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise settings.refuse(key, value, "a list of names")
    return names


def _expression(settings: Section, key: str, text: object, form: str = "{}") -> re.Pattern[str]:
    """A regular expression, put into a longer one. Repeated groups are refused: they may take for ever to match."""
    try:
        if isinstance(text, str) and len(text) <= _LONGEST:
            repeats = len(re.findall(r"[*+{]", text))
            if repeats <= _MOST_REPEATS and not re.search(r"\)[*+{]", text):
                return re.compile(form.format(text))
    except (re.error, OverflowError, RecursionError):
        pass
    expected = "a name or a regular expression without repeated groups"
    raise settings.refuse(key, text, expected, "write the names out")


class _Patterns:
    """Numbers for some of the matrices, by expressions in their paths; the first that fits counts."""

    def __init__(self, settings: Section, key: str, read: Callable[[Section, str], float]) -> None:
        value = settings.get(key)
        section = Section({} if value is None else value, settings.source, f"{key}.")
        self.numbers = [
            (_expression(settings, key, pattern, r"(.*\.)?({})$"), read(section, pattern))
            for pattern in section.values
        ]

    def of(self, path: str, default: float) -> float:
        return next((number for form, number in self.numbers if form.match(path)), default)


class _Matrix(NamedTuple):
    """A matrix that has factors: whether they are the causal mode's, its parameter here, and what patterns see."""

    causal: bool
    parameter: str
    path: str


class _Reader:
    """Turns the tensors of one adapter into modules."""

    def __init__(self, folder: Path, settings: Section, config: ModelConfig) -> None:
        self.folder, self.settings, self.config = folder, settings, config
        model = DiffusionGemma(config, device="meta")
        self.shapes = {
            name: tuple(p.shape)
            for name, p in model.named_parameters()
            if p.dim() > 1 and name != "embed_tokens.weight"
        }
        self.rank, self.alpha = settings.whole("r"), settings.number("lora_alpha", zero=True)
        self.ranks = _Patterns(settings, "rank_pattern", Section.whole)
        self.alphas = _Patterns(settings, "alpha_pattern", lambda s, key: s.number(key, zero=True))
        self.targets = _Targets(settings)

    def read(self, tensors: Mapping[str, Tensor]) -> Adapter:
        factors = self._factors(tensors)
        matrices, others = self._matrices(factors)
        modes: dict[bool, dict[str, LowRank]] = {True: {}, False: {}}
        for path, pair in factors.items():
            if pair.keys() != {"A", "B"}:
                raise self._refuse(path, "both lora_A and lora_B")
            matrix = matrices.get(path)
            if matrix is None and path.removesuffix(_INNER) in others:
                raise CheckpointError(
                    f"{self.folder}: {path}: expected {ADAPTER_CONFIG} to target this matrix, whose factors the file"
                    " holds; restore the target_modules and target_parameters of the training"
                )
            if matrix is None:
                raise self._refuse(path, "a matrix of this model's layers")
            modes[matrix.causal][matrix.parameter] = self._low_rank(path, matrix, **pair)
        if missing := [path for path in matrices if path not in factors]:
            more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
            raise CheckpointError(
                f"{self.folder / ADAPTER_WEIGHTS}: {missing[0]}: expected factors, since {ADAPTER_CONFIG} targets it,"
                f" found none{more}; {AGAIN}, or load it with the model that it was made for"
            )
        if not matrices:
            expected = "names of matrices in this model's layers"
            named = self.settings.get("target_modules") or self.targets.parameters
            raise self.settings.refuse("target_modules", named, expected)
        causal, denoiser = modes[True], modes[False]
        for name, lora in denoiser.items():
            other = causal.get(name)
            if other is not None and _equal(lora, other):
                causal[name] = lora
        return Adapter(causal, denoiser)

    def _factors(self, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Both factors by the path of their matrix, without those of the vision tower."""
        factors: dict[str, dict[str, Tensor]] = {}
        skipped: list[str] = []
        for name, tensor in tensors.items():
            path = name.removeprefix(_BEGIN)
            if _VISION.match(path):
                skipped.append(path)
                continue
            matched = _TENSOR.fullmatch(path)
            if matched is None:
                raise self._refuse(name, "lora_A or lora_B of a matrix")
            pair = factors.setdefault(matched["path"], {})
            pair[matched["factor"]] = tensor
        if skipped:
            warnings.warn(
                f"{self.folder}: the vision tower is not run here: {len(skipped)} tensors of the adapter are left out,"
                f" the first is {plain(skipped[0])}",
                stacklevel=6,
            )
        return factors

    def _matrices(self, factors: Mapping[str, Any]) -> tuple[dict[str, _Matrix], set[str]]:
        """The matrices that the configuration names, by the path of their factors, and the paths of the others."""
        modes = {True: _CAUSAL, False: _DENOISER}
        if not self.config.can_denoise:
            multimodal = any(path.startswith(_MULTIMODAL) for path in factors)
            modes = {True: _MULTIMODAL if multimodal else _GEMMA4}
        found: dict[str, _Matrix] = {}
        others: set[str] = set()
        for causal, prefix in modes.items():
            named: dict[str, str] = {}
            for name in self.shapes:
                module = prefix + name.removesuffix(".weight")
                if causal and name.startswith(CONDITIONING):
                    continue
                if self.targets.parameter(prefix + name):
                    named[name] = prefix + name
                elif not name.endswith(STACKS) and self.targets.module(module):
                    named[name] = module
                else:
                    others.add(prefix + name.rpartition(".")[0])
            for name, path, seen in _peft_names(named):
                found[prefix + path] = _Matrix(causal, name, seen)
        return found, others

    def _low_rank(self, path: str, matrix: _Matrix, A: Tensor, B: Tensor) -> LowRank:
        shape = self.shapes[matrix.parameter]
        count = shape[0] if len(shape) == 3 else 1
        outputs, inputs = shape[-2:]
        rank = len(A) // count if A.dim() == B.dim() == 2 else 0
        if not rank or A.shape != (count * rank, inputs) or B.shape != (outputs, count * rank):
            raise CheckpointError(
                f"{self.folder}: {plain(path)}: expected factors ({count} · r, {inputs}) and ({outputs}, {count} · r),"
                f" found {tuple(A.shape)} and {tuple(B.shape)}; this is an adapter of another base: load it with the"
                " model that it was made for"
            )
        if rank != (said := self.ranks.of(matrix.path, self.rank)):
            raise CheckpointError(
                f"{self.folder}: {plain(path)}: expected rank {said}, as {ADAPTER_CONFIG} says, found {rank}; {AGAIN}"
            )
        root = math.sqrt(rank) if self.settings.get("use_rslora") else rank
        return LowRank(A, B, self.alphas.of(matrix.path, self.alpha) / root, count=count)

    def _refuse(self, name: str, expected: str) -> CheckpointError:
        """The error of a tensor that is none of this model's, or of a path of factors."""
        begin = f"{self.folder}: {plain(name)}: expected {expected}"
        path = name.removeprefix(_BEGIN)
        for pattern, what in _NOT_RUN.items():
            if re.search(pattern, path):
                return CheckpointError(
                    f"{begin}, found {what}, which cannot run here; tune again without it"
                )
        return CheckpointError(
            f"{begin}; this is an adapter of another base: load it with the model that it was made for"
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


def _peft_names(loras: Mapping[str, T]) -> Iterator[tuple[str, str, T]]:
    """(parameter, path of its factors in PEFT's model, factors or what else stands for them) of adapted matrices."""
    for name, lora in loras.items():
        module, _, parameter = name.rpartition(".")
        both = all(f"{module}.{stack}" in loras for stack in STACKS)
        inner = parameter == STACKS[0] and both
        yield name, f"{module}{_INNER}" if inner else module, lora
