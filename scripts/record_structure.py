"""Records the structure of one denoising step of the released 26B shape: `python -m scripts.record_structure`.

The plain modules run a whole step on torch's meta device, where tensors have shapes and no numbers: no weights are
needed, and no memory. Every operation of torch is recorded with its part of the model, the shapes that it reads and
writes, its bytes, and the arithmetic of products and of attention. Nothing is timed: this is what a step consists of,
not how long it takes.

One thing depends on numbers: which experts the router chooses. The step is recorded for `--touched` experts a layer,
84 as reported for the released model, with tokens spread evenly over them.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import sdpa_flop_count

import dgemma_core as dg
from dgemma_core.cache import PrefixCache, RowCache
from dgemma_core.config import ModelConfig
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.facts.published import CONFIGS, DIFFUSION_26B
from dgemma_core.functions import Functions, using
from dgemma_core.samplers import CanvasBatch

OUT = Path(__file__).parents[1] / "results" / "structure" / "step.json"
NO_WORK = {"detach", "empty", "empty_like", "new_empty"}
ROWS_OF_A_TABLE = {"embedding", "index", "index_select", "gather"}
"""Operations that read as much of their first argument as they write."""
PRODUCTS = {"linear", "matmul"}
ATTENTION = torch.nn.functional.scaled_dot_product_attention


@dataclass(frozen=True)
class Operation:
    """Operations that are alike: the same part of the model, the same shapes."""

    part: str
    name: str
    reads: tuple[tuple[int, ...], ...]
    writes: tuple[tuple[int, ...], ...]
    bytes_read: int
    bytes_written: int
    flop: int


class Recorder(TorchDispatchMode):
    """Counts the operations that compute or copy, by the place where they run. Views are free, and left out."""

    def __init__(self) -> None:
        super().__init__()
        self.where: list[tuple[str, str]] = []  # place and part of the modules that are running
        self.places: dict[str, Counter[Operation]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.removeprefix("aten::")
        made = function(*args, **(kwargs or {}))
        inputs, outputs = tensors((args, kwargs)), tensors(made)
        if not function.is_view and name not in NO_WORK and any(t.is_meta for t in outputs):
            table = name in ROWS_OF_A_TABLE
            read = nbytes(inputs[1:]) + nbytes(outputs) if table else nbytes(inputs)
            flop = 2 * outputs[0].numel() * inputs[0].shape[-1] if name in PRODUCTS else 0
            self.note(name, inputs, outputs, read, flop)
        return made

    def note(
        self, name: str, inputs: list[Tensor], outputs: list[Tensor], read: int, flop: int
    ) -> None:
        place, part = self.where[-1]
        shapes = [tuple(tuple(each.shape) for each in of) for of in (inputs, outputs)]
        made = Operation(part, name, *shapes, read, nbytes(outputs), flop)
        self.places.setdefault(place, Counter())[made] += 1

    @contextmanager
    def at(self, place: str, part: str) -> Iterator[None]:
        self.where.append((place, part))
        yield
        self.where.pop()

    @contextmanager
    def naming(self, model: dg.DiffusionGemma) -> Iterator[None]:
        """While this lasts, modules that run name the place and the part."""
        names = {module: name for name, module in model.named_modules()}

        def enter(module: nn.Module, _: Any) -> None:
            self.where.append(place_of(model, names[module], self.where[-1]))

        def leave(*_: Any) -> None:
            self.where.pop()

        hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
        yield
        for hook in hooks:
            hook.remove()


class StandIns(TorchFunctionMode):
    """What meta tensors cannot do: count tokens by expert, and run attention as the one kernel that it is elsewhere."""

    def __init__(self, recorder: Recorder, touched: int) -> None:
        super().__init__()
        self.recorder, self.touched = recorder, touched

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.bincount:  # pairs of a token and an expert, by expert
            even, more = divmod(args[0].numel(), self.touched)
            counts = [even + (i < more) for i in range(self.touched)]
            return torch.tensor(counts + [0] * (kwargs["minlength"] - self.touched))
        if function is not ATTENTION:
            return function(*args, **kwargs)
        queries, keys, values = args
        mixed = torch.empty_like(queries)
        inputs = [queries, keys, values]
        flop = sdpa_flop_count(*(each.shape for each in inputs))
        self.recorder.note(ATTENTION.__name__, inputs, [mixed], nbytes(inputs), flop)
        return mixed


class OnMeta(Functions):
    """Torch's own functions, without the question for autocast, which the meta device does not know."""

    def rms_norm(self, x: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
        wide, scale = x.float(), None if weight is None else weight.float()
        return torch.nn.functional.rms_norm(wide, wide.shape[-1:], scale, eps).to(x.dtype)


def place_of(model: dg.DiffusionGemma, name: str, outer: tuple[str, str]) -> tuple[str, str]:
    """The place and the part of a module, by its name."""
    layer, _, inner = name.removeprefix("layers.").partition(".")
    if not name.startswith("layers."):
        parts = {"embed_tokens": outer[1], "norm": "router and norms"}
        return outer[0], parts.get(name, "self-conditioning")
    if not inner:
        full = model.config.text.layers[int(layer)].full
        return f"{'full' if full else 'sliding'} layer", "router and norms"
    if inner == "self_attn":
        return outer[0], "attention over prefix and canvas"
    if inner.startswith("self_attn.") and inner.endswith("proj"):
        return outer[0], "attention projections"
    if inner.startswith("mlp"):
        return outer[0], "dense MLP"
    return outer[0], "experts" if inner == "experts" else "router and norms"


def tensors(of: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(of) if isinstance(leaf, Tensor)]


def nbytes(of: list[Tensor]) -> int:
    return sum(each.nbytes for each in of)


def prefix_of(config: ModelConfig, tokens: int, like: Callable[..., Tensor]) -> RowCache:
    """A row that holds so many tokens, with room for a canvas."""
    (row,) = PrefixCache.empty(config.text, 1).rows
    for i, layer in enumerate(config.text.layers):
        each = like(1, layer.num_key_value_heads, layer.head_dim)
        row.reserve(i, tokens + config.canvas_length, each).filled = tokens
    row.length = tokens
    return row


@torch.inference_mode()
def record(config: ModelConfig, prefix: int, touched: int) -> Recorder:
    """One step in bfloat16 of one text behind `prefix` tokens, from the canvas to the next canvas."""
    model = dg.DiffusionGemma(config, device="meta", dtype=torch.bfloat16)
    vocabulary, length, steps = config.text.vocab_size, config.canvas_length, 48
    numbers = {"device": "meta", "dtype": torch.bfloat16}
    row = prefix_of(config, prefix, lambda *shape: torch.empty(shape, **numbers))
    canvas = torch.empty(1, length, dtype=torch.long, device="meta")
    soft = torch.empty(length, config.text.hidden_size, **numbers)
    draws = CounterDraws().step([RowKey(0, 0)], [1], length, "meta")
    accepted = torch.empty(1, length, dtype=torch.bool, device="meta")
    recorder, rule = Recorder(), dg.EntropyBound()
    with using(OnMeta()), recorder.naming(model), StandIns(recorder, touched), recorder:
        with recorder.at("before the layers", "embedding and rotary angles"):
            hidden = model.run(canvas[0], [row], [length], causal=False, soft=soft)
        with recorder.at("head", "head"):
            prediction = model.head.predict(hidden[None], 0.8, draws)
        with recorder.at("sampler", "sampler"):
            plan = (rule.plan(steps)[1],)
            state = CanvasBatch(canvas, accepted, accepted, plan, steps, vocabulary)
            rule.step(state, prediction, draws)
    return recorder


def structure(config: ModelConfig, prefix: int, touched: int) -> dict[str, Any]:
    """The record as json values: of every place how often it runs, and its operations with their counts."""
    layers = Counter("full layer" if of.full else "sliding layer" for of in config.text.layers)
    places = {}
    for place, found in record(config, prefix, touched).places.items():
        times = layers.get(place, 1)
        alike = not any(count % times for count in found.values())
        assert alike, f"layers of a kind differ: {place}"
        places[place] = {
            "times": times,
            "operations": [{**asdict(one), "count": n // times} for one, n in found.items()],
        }
    settings = {"canvas": config.canvas_length, "prefix": prefix, "touched experts": touched}
    return {"settings": {**settings, "batch": 1, "dtype": "bfloat16"}, "places": places}


def main() -> None:
    """Records and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prefix", type=int, default=4096)
    parser.add_argument("--touched", type=int, default=84)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    found = structure(CONFIGS[DIFFUSION_26B], arguments.prefix, arguments.touched)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    places = ",\n".join(
        f'  {json.dumps(name)}: {{"times": {place["times"]}, "operations": [\n'
        + ",\n".join(f"   {json.dumps(one)}" for one in place["operations"])
        + "\n  ]}"
        for name, place in found["places"].items()
    )
    text = f'{{"settings": {json.dumps(found["settings"])},\n "places": {{\n{places}\n }}\n}}\n'
    arguments.out.write_text(text)
    for name, place in found["places"].items():
        each = sum(one["count"] for one in place["operations"])
        print(f"{name}: {each} operations, {place['times']} times")


if __name__ == "__main__":
    main()
