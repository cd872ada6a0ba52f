"""What two runs are forgiven: a router's near-tie, and no other choice of experts."""

from __future__ import annotations

import pytest

from dgemma_core.files.checkpoint import Loaded
from tests.backends.same import Outcome, compare
from tests.backends.test_same_texts import MOST_NOISE, knobs_of, nano, requests, written


def with_twins(apart: float) -> Loaded:
    """Nano whose third layer scores expert 1 by expert 0's weights, `apart` of them more."""
    loaded = nano("torch")
    weight = loaded.model.layers[2].router.proj.weight.data
    weight[1] = weight[0] * (1 + apart)
    return loaded


@pytest.mark.parametrize("apart, forgiven", [(1e-6, True), (0.1, False)])
def test_only_a_near_tie_of_a_router_is_forgiven(apart: float, forgiven: bool) -> None:
    ours, theirs = with_twins(apart), with_twins(-apart)
    asked = [request for request in requests(ours, 2) if request.id[0] in ("prose", "chain_sum")]
    runs, others = (written(each, asked, "diffusion", 4) for each in (ours, theirs))
    found = [compare(runs[r], others[r], knobs_of(ours), MOST_NOISE) for r in runs]
    parted = [each for each in found if each != Outcome()]
    assert parted
    for each in parted:
        assert each.differ_at is not None
        assert (not each.mistakes) == each.differ_at.endswith("near-tie") == forgiven
