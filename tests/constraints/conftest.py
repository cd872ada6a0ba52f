from __future__ import annotations

from pathlib import Path

import pytest

from dgemma_core.constraints import building


@pytest.fixture(autouse=True, scope="module")
def no_automata_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Automata are kept in a folder of the test's own."""
    patch = pytest.MonkeyPatch()
    folder: Path = tmp_path_factory.mktemp("automata")
    patch.setattr(building, "folder", lambda: folder)
    yield folder
    patch.undo()
