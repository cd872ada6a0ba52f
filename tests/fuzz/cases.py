"""What is run for each kind of case, in the child process: it answers rightly or raises one DgemmaError.

A case is made of small values that can be pickled; files are written to a folder of the process.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dgemma_core as dg
from dgemma_core.autoregression import decode_tokens
from dgemma_core.config import GenerationDefaults
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.files.checkpoint import Loaded, load
from dgemma_core.files.saving import save_model
from dgemma_core.files.template import ChatTemplate
from dgemma_core.files.tensors import SINGLE
from dgemma_core.files.text import load_tokenizer
from dgemma_core.files.trace import Trace
from dgemma_core.request import Request
from dgemma_core.samplers import StopRule, sampler_from
from tests.core import tiny
from tests.files.fake_events import diffusion_events
from tests.fuzz.mutation import HUGE, NASTY, encoded, mutated, with_bytes

WEIGHTS = (3e38, -3e38, 1e30, float("nan"), float("inf"), 1e-45, 0.0, 1e4)
PROMPTS = ([2, 7, 9], [2, *range(4, 44)] * 4 + [2] * 24)
"""A short prompt, and one of 188 tokens, which the C code runs in blocks."""


def written(loaded: Loaded, prompt: int, mode: str) -> None:
    """A short text of the model; its ids and probabilities must be possible ones."""
    options = {"steps": 2} if mode == "diffusion" else {}
    (text,) = dg.generate(loaded, PROMPTS[prompt], mode=mode, max_new_tokens=4, **options)
    assert len(text.ids) <= 4 and all(0 <= id < 48 for id in text.ids)
    assert len(text.ids) == text.kept_tokens and text.stop_reason in ("eos", "length")
    assert all(0 <= p <= 1 + 1e-5 for p in text.token_probabilities), text.token_probabilities
    assert all(-1e-3 <= e < 4 for e in text.token_entropies), text.token_entropies


# --- checkpoints


@cache
def good() -> Path:
    """A folder with a tiny checkpoint."""
    folder = Path(tempfile.mkdtemp(prefix="dgemma-fuzz-"))
    save_model(tiny.model(), folder / "good", generation=GenerationDefaults(eos_token_ids=(1,)))
    return folder


def copied() -> Path:
    folder = good() / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good() / "good", folder)
    return folder


def checkpoint(case: Mapping[str, Any]) -> None:
    """config.json, generation_config.json, the header or the bytes of the weights, or a weight itself."""
    folder = copied()
    what, edits = case["what"], case["edits"]
    file = folder / (what if what.endswith(".json") else SINGLE)
    raw = file.read_bytes()
    if what.endswith(".json"):
        file.write_bytes(encoded(mutated(json.loads(raw), edits)))
    elif what == "bytes":
        file.write_bytes(with_bytes(raw, edits))
    else:
        end = 8 + int.from_bytes(raw[:8], "little")
        header, data = json.loads(raw[8:end]), bytearray(raw[end:])
        if what == "header":
            head = encoded(mutated(header, edits))
        else:
            head = raw[8:end]
            names = sorted(name for name in header if name != "__metadata__")
            for place, choice in edits:
                begin, stop = header[names[place % len(names)]]["data_offsets"]
                numbers = np.frombuffer(data, np.float32)[begin // 4 : stop // 4]
                numbers[:: max(1, place % 5)] = WEIGHTS[choice % len(WEIGHTS)]
        file.write_bytes(len(head).to_bytes(8, "little") + head + data)
    loaded = load(folder, device="cpu", backend=case["backend"], dtype=case["dtype"])
    if loaded.model.config.text.vocab_size == 48 and loaded.model.config.canvas_length <= 64:
        written(loaded, case["prompt"], case["mode"])


# --- tokenizers and templates


def tokenizer(case: Mapping[str, Any]) -> None:
    """tokenizer.json, tokenizer_config.json or the template of nano, then a text and a chat."""
    folder = good() / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny.NANO / name, folder)
    file = folder / case["file"]
    if case["bytes"]:
        file.write_bytes(with_bytes(file.read_bytes(), case["edits"]))
    else:
        content = json.loads(file.read_text())
        for section, part in case["parts"]:
            content[section] = PARTS[part % len(PARTS)]
        file.write_bytes(encoded(mutated(content, case["edits"])))
    found = load_tokenizer(folder)
    assert found is not None
    ids = found.encode(case["text"])
    assert all(type(id) is int and id >= 0 for id in ids)
    found.decode(ids[:200])
    found.chat_ids(case["text"])


PARTS: tuple[Any, ...] = (
    None,
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "FixedLength", "length": 0},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 4000},
    {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "Prepend", "prepend": ""}]},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "ByteFallback"},
    {"type": "Sequence", "pretokenizers": [], "normalizers": [], "decoders": [], "processors": []},
    {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 5},
    {"strategy": {"Fixed": 2**40}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": ""},
)  # fmt: skip


def template(source: str) -> None:
    messages = [{"role": "user", "content": "ab" * 10}, {"role": "assistant", "content": "x"}]
    found = ChatTemplate(source).render({"messages": messages, "bos_token": "<bos>"})
    assert isinstance(found, str) and len(found) <= 2**23


# --- traces


@cache
def trace_bytes() -> bytes:
    events = diffusion_events([*range(10, 34), 1], top_k=3, router=True, pins=(2, 20))
    path = good() / "trace.npz"
    Trace.record(events, decode=str, metadata={"eos_token_ids": [1]}).save(path)
    return path.read_bytes()


def trace(case: Mapping[str, Any]) -> None:
    """The bytes of the file, its header, or its arrays; what loads must be readable as a whole."""
    path = good() / "case.npz"
    raw = trace_bytes()
    if case["what"] == "bytes":
        path.write_bytes(with_bytes(raw, case["edits"]))
    else:
        with np.load(io.BytesIO(raw)) as file:
            arrays = dict(file)
        if case["what"] == "header":
            header = encoded(mutated(json.loads(arrays["header"].tobytes()), case["edits"]))
            arrays["header"] = np.frombuffer(header, np.uint8)
        else:
            names = sorted(set(arrays) - {"header"})
            for place, choice in case["edits"]:
                name = names[place % len(names)]
                arrays[name] = changed(arrays[name], choice)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
            for name, values in arrays.items():
                with target.open(f"{name}.npy", "w") as out:
                    np.lib.format.write_array(out, np.asanyarray(values), allow_pickle=True)
    found = Trace.load(path)
    repr(found), found.digest(), found.commits, found.eos_ids(), found.positions()
    found.states(), found.settled_step(), found.mean_entropy(), found.accepted_count()
    for canvas in set(found.canvas.tolist()):
        found.rows("argmax", canvas)
    found.to_frame()
    [found.text(token) for token in found.ids.tolist()]


def changed(values: np.ndarray[Any, Any], choice: int) -> Any:
    """Another dtype, rank, length or order, or other numbers."""
    rng = np.random.default_rng(choice)
    match choice % 10:
        case 0:
            return values.astype(np.float64) if values.dtype.kind in "biuf" else values[:0]
        case 1:
            return values[None]
        case 2:
            return values[: choice % (len(values) + 1)]
        case 3:
            return values[::-1].copy()
        case 4:
            return np.asfortranarray(values)
        case 5:
            return np.array([NASTY[choice % len(NASTY)]] * 3, dtype=object)
        case 6:
            return values.astype(values.dtype.newbyteorder(">"))
        case 7:
            return np.zeros((0, *values.shape[1:]), values.dtype)
        case 8:
            return np.array(["a", "b"])
        case _:
            if values.dtype == object:  # made so by an edit before
                return values
            raw = bytearray(values.tobytes())
            if raw:
                raw[int(rng.integers(len(raw)))] ^= 0xFF
            return np.frombuffer(raw, values.dtype).reshape(values.shape)


# --- requests and samplers


VALUES: tuple[Any, ...] = (
    *(10**5000 if value == HUGE else value for value in NASTY),
    np.int64(3), np.float32(2.5), np.array([2, 7]), np.array([]), np.array(2), np.zeros((2, 2)),
    torch.tensor([2, 7]), torch.tensor(1.5), b"ab", {1: 5}, {9: 10**30}, (2, 7), {2}, range(4),
)  # fmt: skip


def request(case: Mapping[str, Any]) -> None:
    """One request of two fields changed, written in both modes."""
    fields = {"ids": [2, 7, 9], "max_new_tokens": 6}
    fields |= {name: VALUES[choice % len(VALUES)] for name, choice in case["fields"]}
    options = {name: VALUES[choice % len(VALUES)] for name, choice in case["options"]}
    model = tiny.model().use(case["backend"])
    if case["mode"] == "diffusion":
        options.pop("temperature", None)
        loop = denoise_canvases(model, [Request(**fields)], **{"steps": 2, **options})
    else:
        options = {k: v for k, v in options.items() if k in ("batch_size", "eos", "temperature")}
        loop = decode_tokens(model, [Request(**fields)], **options)
    finish = list(loop)[-1]
    assert all(0 <= id < 48 for id in finish.ids) and 1 <= len(finish.ids) <= 512


def sampler(case: Mapping[str, Any]) -> None:
    """A rule with some options, run for a few steps over two prompts."""
    values = {name: SETTINGS[choice % len(SETTINGS)] for name, choice in case["options"]}
    rule = sampler_from(case["name"], **values)
    stop = StopRule(**{name: SETTINGS[choice % len(SETTINGS)] for name, choice in case["stop"]})
    requests = [Request(ids=ids, seed=i, max_new_tokens=9) for i, ids in enumerate(([2, 5], [7]))]
    loop = denoise_canvases(
        tiny.model().use(case["backend"]), requests, sampler=rule, steps=case["steps"],
        stop_rule=stop, batch_size=2, eos=(),
    )  # fmt: skip
    ends = [event for event in loop if isinstance(event, dg.FinishEvent)]
    assert [len(end.ids) for end in ends] == [9, 9]
    assert all(0 <= id < 48 for end in ends for id in end.ids)


SETTINGS: tuple[Any, ...] = (
    *VALUES, 0.1, 0.9, 1e-7, 1e-6, 1e6, 1e-12, 0.5, 3, 8, 40, 48, 49, 1.0, 10.0, 100.0,
)  # fmt: skip

KINDS: Mapping[str, Callable[[Any], None]] = {
    "checkpoint": checkpoint, "tokenizer": tokenizer, "template": template, "trace": trace,
    "request": request, "sampler": sampler,
}  # fmt: skip
