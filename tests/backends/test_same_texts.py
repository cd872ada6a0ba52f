"""The backends write the same texts: nano's validation problems, all families and modes, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dgemma_core import load
from dgemma_core.autoregression import decode_tokens
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.files.checkpoint import Loaded
from dgemma_core.generation import prompt_ids
from dgemma_core.nano.families import NAMES, examples
from dgemma_core.request import Request
from dgemma_core.samplers import EntropyBound, StopRule
from dgemma_core.speculation import decode_speculative
from tests.backends.same import Outcome, Run, compare, compare_tokens
from tests.backends.serving import SERVED, put
from tests.oracle.record import Knobs

PER_FAMILY = 17
NEW_TOKENS = 32
MOST_NOISE = 1e-3
"""Raw logits by which rounding may part two backends on the way to a first difference."""


def nano(name: str) -> Loaded:
    loaded = load("nano", device="cpu", dtype="float32")
    put(loaded.model, name)
    return loaded


def requests(loaded: Loaded, per_family: int) -> list[Request]:
    problems = [
        (family, number, example.prompt)
        for family in NAMES
        for number, example in enumerate(examples(family, "validation", per_family))
    ]
    return [
        Request(prompt_ids(loaded, prompt), seed=i, max_new_tokens=NEW_TOKENS, id=(family, number))
        for i, (family, number, prompt) in enumerate(problems)
    ]


def knobs_of(loaded: Loaded) -> Knobs:
    settings = loaded.generation
    return Knobs(
        steps=settings.max_denoising_steps,
        entropy_bound=settings.entropy_bound,
        t_min=settings.t_min,
        t_max=settings.t_max,
        stability=settings.stability_threshold,
        confidence=settings.confidence_threshold,
        eos=settings.eos_token_ids,
    )


def written(loaded: Loaded, asked: Sequence[Request], mode: str, batch: int) -> dict[object, Run]:
    """Request → its run."""
    if mode != "diffusion":
        loop = decode_tokens if mode == "autoregressive" else decode_speculative
        events = loop(loaded.model, asked, batch_size=batch, eos=loaded.generation.eos_token_ids)
    else:
        knobs = knobs_of(loaded)
        events = denoise_canvases(
            loaded.model,
            asked,
            sampler=EntropyBound(
                entropy_bound=knobs.entropy_bound, t_min=knobs.t_min, t_max=knobs.t_max
            ),
            steps=knobs.steps,
            stop_rule=StopRule(stability=knobs.stability, confidence=knobs.confidence),
            batch_size=batch,
            eos=knobs.eos,
        )
    return Run.of_each(loaded.model, list(events))


def outcomes(
    name: str, mode: str, per_family: int, batch: int, reference_batch: int
) -> dict[object, Outcome]:
    """Request → how the run of an implementation compares with the reference's."""
    ours, theirs = nano(name), nano("torch")
    asked = requests(ours, per_family)
    their_runs = written(theirs, asked, mode, reference_batch)
    found = {}
    for request, run in written(ours, asked, mode, batch).items():
        if mode == "autoregressive":
            found[request] = compare_tokens(run, their_runs[request])
        else:
            found[request] = compare(run, their_runs[request], knobs_of(ours), MOST_NOISE)
    assert len(found) == len(asked) == per_family * len(NAMES)
    return found


def assert_same(found: dict[object, Outcome], most_ties: int) -> None:
    assert not {request: each.mistakes for request, each in found.items() if each.mistakes}
    ties = {request: each.differ_at for request, each in found.items() if each.differ_at}
    print(f"{len(found) - len(ties)} of {len(found)} texts equal; near-ties: {ties}")
    assert len(ties) <= most_ties


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
def test_torch_and_cpu_write_the_same_200_texts(mode: str) -> None:
    assert_same(outcomes("C", mode, PER_FAMILY, 32, 32), most_ties=4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["diffusion", "autoregressive"])
@pytest.mark.parametrize("name", [name for name in SERVED["float32, aligned"] if name != "torch"])
def test_every_backend_writes_the_references_texts(name: str, mode: str) -> None:
    """A problem of each family, whatever the batch."""
    assert_same(outcomes(name, mode, 1, 5, 12), most_ties=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED["float32, aligned"])
def test_speculation_writes_the_references_autoregression(name: str) -> None:
    """A problem of each family: drafted on this backend in batches, against the reference's tokens one by one."""
    ours, theirs = nano(name), nano("torch")
    asked = requests(ours, 1)
    expected = written(theirs, asked, "autoregressive", 1)
    drafted = written(ours, asked, "speculative", 5)
    found = {
        request: compare_tokens(run, expected[request], ("ids", "stop_reason"))
        for request, run in drafted.items()
    }
    assert len(found) == len(asked)
    assert_same(found, most_ties=1)
