"""Model argument `adapter=`: it decides the identity of answers, and is looked for before a long load."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgemma_core import RequestError
from dgemma_evals.writers.options import Options


def test_adapters_have_identities_of_their_own(tmp_path: Path) -> None:
    identities = {Options.parse("diffusion", {}).identity()}
    for content in ("1", "2"):
        folder = tmp_path / content
        folder.mkdir()
        (folder / "adapter_config.json").write_text(content)
        identities.add(Options.parse("diffusion", {"adapter": str(folder)}).identity())
    assert len(identities) == 3


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"adapter .*absent: expected a folder"):
        Options.parse("diffusion", {"adapter": str(tmp_path / "absent")})
