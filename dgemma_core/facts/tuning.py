"""What tuning takes in memory, as arithmetic: weights, adapter, gradients, moments, and what a pass keeps.

Notable:
- two moments of a step are compared, and the larger one counts: a pass has just ended and all that its gradient needs
  is held; or the gradient is whole and the optimiser moves the weights;
- what a layer keeps was read off autograd's saved tensors, term by term, for the passes of train/dense_pass.py and
  train/packed_pass.py on a CPU. evals/bench/tuning_memory.py holds the sum against a fresh process;
- LoRA with the default targets, and a batch whose texts all have the length that is asked for: real ones are shorter.

What kernels keep for themselves is not counted. All sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dgemma_core.config import LayerConfig, ModelConfig
from dgemma_core.errors import RequestError
from dgemma_core.facts.cost import part_of, weight_bytes
from dgemma_core.facts.memory import Line
from dgemma_core.files.quantised import SCHEMES, SLICE
from dgemma_core.model import DiffusionGemma

BASES = ("float32", "bf16", "int8", "int4")
"""Formats that a base may have; all weights learn in the first alone."""
ADAPTED = ("attention", "dense MLP", "experts", "self-conditioning")
"""The parts of a model that an adapter changes, by `cost.PARTS`."""
MODES = ("both", "denoiser", "causal")
ROUNDED = 16
"""Clean text is padded to a multiple of so many tokens, as in train/batches.py."""
AT_ONCE = 2**26
"""Logits that the loss holds at once, as in train/loss.py."""
COUNTED = 256
"""The loss reads a multiple of so many tokens, as in train/loss.py."""
EXPERT_ROWS = 64
"""Rows of an expert are a multiple of this where its weights learn, as in train/mixture.py."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What of a tuning run decides its memory."""

    base: str = "bf16"
    texts: int = 4
    """Of one part of a batch."""
    length: int = 512
    """Tokens of a text, prompt and answer."""
    parts: int = 1
    """Of a batch, whose gradients are added up."""
    rank: int = 16
    modes: str = "both"
    full: bool = False
    recomputes: bool = False
    copied: bool = True
    """Whether passes over float32 weights run on a copy in bfloat16: where the device multiplies that fast."""

    def __post_init__(self) -> None:
        if self.base not in BASES:
            raise RequestError(f"base: expected one of {', '.join(BASES)}, found {self.base!r}")
        if self.modes not in MODES:
            raise RequestError(f"modes: expected one of {', '.join(MODES)}, found {self.modes!r}")
        if self.full and (self.modes != "both" or self.base != "float32"):
            raise RequestError(
                "all weights learn in float32 and for both modes: leave full out, or modes and base"
            )
        for name in ("texts", "length", "parts", "rank"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name}: expected at least 1, found {getattr(self, name)}")

    @property
    def copies(self) -> bool:
        """Whether there is a copy in bfloat16."""
        return self.copied and self.base == "float32"

    @property
    def size(self) -> int:
        """Bytes of a number in the products."""
        return 4 if self.base == "float32" and not self.copied else 2

    @property
    def clean(self) -> int:
        """Clean tokens of a text, with its end mark and padding."""
        return -(-(self.length + 1) // ROUNDED) * ROUNDED


@dataclass(frozen=True)
class TuningMemory:
    """A run's memory, in lines."""

    held: tuple[Line, ...]
    """From the first update to the last."""
    passing: tuple[Line, ...]
    """Besides, when a pass has ended."""
    updating: tuple[Line, ...]
    """Besides, when the optimiser moves the weights."""

    @property
    def total(self) -> int:
        """The larger of both moments."""
        return _sum(self.held) + max(_sum(self.passing), _sum(self.updating))


def tuning_memory(config: ModelConfig, tuning: Tuning) -> TuningMemory:
    """The memory of a run. Raises RequestError for texts that the model cannot have."""
    canvas, most = config.canvas_length, config.text.max_position_embeddings
    if tuning.clean + canvas > most:
        raise RequestError(
            f"length: expected 1 … {most - canvas - ROUNDED:,}, found {tuning.length:,}"
        )
    if not config.can_denoise and tuning.modes != "causal":
        raise RequestError(
            "this model has no denoiser: plan the tuning of its causal mode (modes causal)"
        )
    learnt = _learnt(config, tuning)
    held = [_weights(config, tuning)]
    if tuning.copies:
        held.append(_times("bfloat16 copy", parameters(config), 2))
    if not tuning.full:
        held.append(_times("adapter", learnt, 4, f"rank {tuning.rank}"))
        if tuning.copies:
            held.append(_times("its copy", learnt, 4))
    held.append(_times("moments", learnt, 8, "two of AdamW"))
    passing = [*_activations(config, tuning), *_head(config, tuning)]
    if tuning.base in SCHEMES:
        passing.append(_times("weights turned back", min(SLICE, _largest(config)), 3, "of a slice"))
    if tuning.parts > 1:
        passing.append(_times("gradients so far", learnt, 4))
    each = 6 if tuning.full and tuning.copies else 4
    gradients = _times("gradients", learnt, each * 1 + (4 if tuning.parts > 1 else 0))
    return TuningMemory(tuple(held), tuple(passing), (gradients,))


def parameters(config: ModelConfig) -> int:
    """All of the text model."""
    return sum(weight_bytes(config, None)[0].values())


def adapter_parameters(config: ModelConfig, rank: int, modes: str = "both") -> int:
    """Numbers in the factors of an adapter of the default targets."""
    total = 0
    for name, parameter in DiffusionGemma(config, device="meta").named_parameters():
        part = part_of(name)
        if part not in ADAPTED or parameter.dim() < 2:
            continue
        if part == "self-conditioning" and modes == "causal":
            continue
        *stacked, outputs, inputs = parameter.shape
        total += math.prod(stacked) * rank * (outputs + inputs)
    return total


def _learnt(config: ModelConfig, tuning: Tuning) -> int:
    if tuning.full:
        return parameters(config)
    return adapter_parameters(config, tuning.rank, tuning.modes)


def _largest(config: ModelConfig) -> int:
    shapes = (p.shape for p in DiffusionGemma(config, device="meta").parameters())
    return max(math.prod(shape[-2:]) for shape in shapes)


def _weights(config: ModelConfig, tuning: Tuning) -> Line:
    if tuning.base == "float32":
        return _times("weights", parameters(config), 4)
    size = sum(weight_bytes(config, tuning.base)[0].values())
    return Line("weights", size, f"{parameters(config):,} in {tuning.base}")


def _times(label: str, count: int, size: int, what: str = "") -> Line:
    return Line(label, count * size, f"{count:,} × {size}" + (f" ({what})" if what else ""))


def _sum(lines: tuple[Line, ...]) -> int:
    return sum(line.bytes for line in lines)


# --- what a pass keeps


def _passes(config: ModelConfig, tuning: Tuning) -> Iterator[tuple[int, int]]:
    """(tokens, keys that each token may see) of a text, for each pass that keeps what its gradient needs."""
    clean, canvas = tuning.clean, config.canvas_length
    if tuning.modes != "denoiser":
        yield clean, clean
    if tuning.modes != "causal":
        yield canvas, clean + canvas


def _activations(config: ModelConfig, tuning: Tuning) -> list[Line]:
    text, b, size = config.text, tuning.texts, tuning.size
    passes = tuple(_passes(config, tuning))
    lines: list[Line] = []
    denoises = tuning.modes != "causal"
    if tuning.modes == "denoiser" or (tuning.recomputes and denoises):
        width = sum(2 * layer.num_key_value_heads * layer.head_dim for layer in text.layers)
        arithmetic = f"{b} × {tuning.clean:,} tokens × {width:,} of all layers × {size}"
        lines.append(Line("prefix's keys and values", b * tuning.clean * width * size, arithmetic))
    if tuning.recomputes:
        tokens = b * sum(n for n, _ in passes)
        stream = 4 if tuning.copies else size
        count = len(text.layers)
        lines.append(Line("layers' inputs", tokens * count * text.hidden_size * stream,
                          f"{tokens:,} tokens × {count} layers × {text.hidden_size:,} × {stream}"))  # fmt: skip
        again = (
            _kept(config, tuning, (one,), (layer,)) for one in passes for layer in set(text.layers)
        )
        one_layer = max(again, key=lambda found: sum(line.bytes for line in found))
        lines += [replace(line, label=f"{line.label}, a layer") for line in one_layer]
    else:
        lines += _kept(config, tuning, passes, text.layers)
    if denoises:
        tokens, wide = b * config.canvas_length, 3 * text.intermediate_size
        lines.append(Line("self-conditioning", tokens * wide * size,
                          f"{tokens:,} tokens × {wide:,} × {size}"))  # fmt: skip
    lines.append(_gradient(config, tuning, passes))
    return lines


def _kept(
    config: ModelConfig,
    tuning: Tuning,
    passes: tuple[tuple[int, int], ...],
    layers: tuple[LayerConfig, ...],
) -> list[Line]:
    """What these layers keep of these passes."""
    text, b, size, full = config.text, tuning.texts, tuning.size, tuning.full
    tokens, count = b * sum(n for n, _ in passes), len(layers)
    width, heads, k = text.hidden_size, text.num_attention_heads, text.top_k_experts
    prefix = f"{tokens:,} tokens × {count} layers"

    def line(label: str, numbers: int, each: int, arithmetic: str) -> Line:
        return Line(label, numbers * each, f"{arithmetic} × {each}")

    # Norms keep their input: in float32 where weights are bfloat16, else in the dtype of the products, but for the
    # residual stream, which is float32 beside a copy.
    wide, narrow = (2, 4) if tuning.copies else (0, 6) if size == 4 else (8, 0)
    of_norms = wide * 4 + narrow * size
    norms = line("norms", tokens * count * width, of_norms, f"{prefix} × {width:,}")
    inputs = (
        3 if full else 2
    )  # of products: attention's, the MLP's and, where it learns, the router's
    products = line("inputs of products", tokens * count * inputs * width, size,
                    f"{prefix} × {inputs} × {width:,}")  # fmt: skip
    query = sum(heads * layer.head_dim for layer in layers)
    key = sum(layer.num_key_value_heads * layer.head_dim for layer in layers)
    before = 4 if wide == 8 else size  # the norms of queries and keys
    seen = b * sum(s for _, s in passes)
    attention = Line(
        "attention",
        tokens * (query * (before + 2 * size) + key * (before + size)) + 2 * seen * key * size,
        f"{tokens:,} tokens × ({query:,} of queries × {before + 2 * size} + {key:,} of keys × {before + size}) +"
        f" {seen:,} keys seen × 2 × {key:,} × {size}",
    )
    pairs = b * sum(n * s for n, s in passes)
    scores = line("attention weights", pairs * heads * count, size,
                  f"{pairs:,} pairs × {heads} heads × {count} layers")  # fmt: skip
    mlp = line("dense MLP", tokens * count * 3 * text.intermediate_size, size,
               f"{prefix} × 3 × {text.intermediate_size:,}")  # fmt: skip
    inner = text.moe_intermediate_size
    if full:
        rows = tokens * k + text.num_experts * EXPERT_ROWS // 2
        experts = line("experts", rows * count * (2 * width + 3 * inner), size,
                       f"{rows:,} rows × {count} layers × (2 × {width:,} + 3 × {inner:,})")  # fmt: skip
    else:
        experts = line("experts", tokens * count * k * (3 * width + 4 * inner), size,
                       f"{prefix} × {k} experts × (3 × {width:,} + 4 × {inner:,})")  # fmt: skip
    found = [norms, products, attention, scores, mlp, experts]
    if full:  # queries, keys and values in one product, gate and up in one
        joined = width * (query + 2 * key + 2 * count * text.intermediate_size)
        found.append(_times("matrices put together", joined, size))
    return found


def _gradient(config: ModelConfig, tuning: Tuning, passes: tuple[tuple[int, int], ...]) -> Line:
    """What the gradient of one layer holds beside: that of the experts of one pass is the widest."""
    text, size = config.text, tuning.size
    tokens = tuning.texts * (
        sum(n for n, _ in passes) if tuning.full else max(n for n, _ in passes)
    )
    numbers = text.top_k_experts * (2 * text.hidden_size + 2 * text.moe_intermediate_size)
    return Line("gradient of a layer", tokens * numbers * size,
                f"{tokens:,} tokens × {text.top_k_experts} experts × (2 × {text.hidden_size:,} +"
                f" 2 × {text.moe_intermediate_size:,}) × {size}")  # fmt: skip


def _head(config: ModelConfig, tuning: Tuning) -> list[Line]:
    """What the losses keep, and the logits that are held at once."""
    text, size = config.text, tuning.size
    vocabulary, width = text.vocab_size, text.hidden_size
    counts = [-(-tuning.texts * n // COUNTED) * COUNTED for n, _ in _passes(config, tuning)]
    kept = sum(counts)
    lines = [Line("head", 2 * kept * width * size, f"{kept:,} tokens × 2 × {width:,} × {size}")]
    at_once = min(max(counts), max(1, AT_ONCE // vocabulary))
    pieces = at_once < max(counts)
    each = size + 16 if pieces else size  # in pieces by torch, logits, their tanh and gradients
    lines.append(Line("logits", at_once * vocabulary * each,
                      f"{at_once:,} tokens × {vocabulary:,} × {each}"))  # fmt: skip
    if tuning.full:
        losses = len(counts)
        lines.append(Line("gradient of the vocabulary", losses * vocabulary * width * size,
                          f"{losses} losses × {vocabulary:,} × {width:,} × {size}"))  # fmt: skip
    return lines
