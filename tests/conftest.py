"""What must be settled before any test module is imported."""

import os

import pytest
import torch

from dgemma_core.backends.cuda.experts import has_triton

# Triton's own library is read once, for its interpreter or for a GPU; other libraries import it, too, so it must be
# read for the interpreter first. Kernels are interpreted only in tests that ask for it (tests/backends/cuda).
if has_triton() and "TRITON_INTERPRET" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language  # noqa: F401

    del os.environ["TRITON_INTERPRET"]


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Torch's own numbers begin anew, so that no verdict depends on which tests ran before."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests of a thousand cases, unless -m asks for them by name."""
    if "thousand" in config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.get_closest_marker("thousand")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
