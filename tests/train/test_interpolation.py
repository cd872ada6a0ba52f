"""Weights between two checkpoints are what their share says, in a folder that loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgemma_core import RequestError
from dgemma_core.files.checkpoint import load_model
from dgemma_core.files.tensors import SINGLE
from dgemma_core.nano.recipes import NANO
from dgemma_core.train.interpolation import interpolate


@pytest.fixture()
def other(tmp_path: Path) -> Path:
    """Nano's weights, each one larger by 1."""
    folder = tmp_path / "other"
    shutil.copytree(NANO, folder)
    (folder / "note.txt").write_text("of the second one")
    save_file({name: t + 1 for name, t in load_file(NANO / SINGLE).items()}, folder / SINGLE)
    return folder


@pytest.mark.parametrize("share", (0.0, 0.25, 1.0))
def test_weights_lie_between(share: float, other: Path, tmp_path: Path) -> None:
    interpolate(NANO, other, share, tmp_path / "out")
    first, second, found = (load_file(f / SINGLE) for f in (NANO, other, tmp_path / "out"))
    assert found.keys() == first.keys()
    for name, t in found.items():
        expected = first[name].float() + share * (second[name].float() - first[name].float())
        assert t.dtype == first[name].dtype
        torch.testing.assert_close(t.float(), expected, rtol=2**-8, atol=0)
    assert (
        load_model(tmp_path / "out", device="cpu").config == load_model(NANO, device="cpu").config
    )
    assert (tmp_path / "out" / "note.txt").exists()


def test_nothing_is_overwritten_or_mixed_up(other: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds a checkpoint"):
        interpolate(NANO, other, 0.5, other)
    with pytest.raises(RequestError, match=r"holds no model\.safetensors"):
        interpolate(NANO, tmp_path, 0.5, tmp_path / "out")
    weights = load_file(other / SINGLE)
    weights.popitem()
    save_file(weights, other / SINGLE)
    with pytest.raises(RequestError, match="different shapes"):
        interpolate(NANO, other, 0.5, tmp_path / "out")
