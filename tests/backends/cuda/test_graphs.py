"""The recorded step and token, run eagerly on a CPU: ids as the loops', nothing asked of the host, a late stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dgemma_core.autoregression import decode_tokens
from dgemma_core.backends.cuda.experts import has_triton
from dgemma_core.backends.cuda.graphs import CanvasGraph, LateFlag, TokenGraph, drive
from dgemma_core.backends.cuda.static import StaticPrefix
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.errors import RequestError
from dgemma_core.events import CanvasEvent, FinishEvent, StepEvent
from dgemma_core.model import DiffusionGemma
from dgemma_core.request import Request
from dgemma_core.samplers import BlockRefinement, EntropyBound, StopRule
from tests.backends.cuda.host_reads import HostReads
from tests.core import tiny

PREFIXES = (1, 5, 6, 7, 19)
"""Around the window of 6, and well past it: the slots of sliding layers are then used again."""


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny.model(7)


def prompt(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, 48, (length,), generator=generator).tolist()


def loop(
    model: DiffusionGemma, ids: Sequence[int], seed: int, steps: int, rule: StopRule | None
) -> tuple[list[StepEvent], CanvasEvent]:
    request = Request(ids, seed=seed, max_new_tokens=model.config.canvas_length)
    events = list(denoise_canvases(model, [request], steps=steps, stop_rule=rule, eos=()))
    made = [event for event in events if isinstance(event, StepEvent)]
    return made, next(event for event in events if isinstance(event, CanvasEvent))


@pytest.mark.parametrize("length", PREFIXES)
def test_a_canvas_is_that_of_the_loop(model: DiffusionGemma, length: int) -> None:
    """One recording, canvas after canvas: ids, steps, and whether it converged, at every confidence."""
    ids, ended = prompt(length), set()
    entropies = [float(step.entropy.mean()) for step in loop(model, ids, 3, 8, None)[0]]
    for confidence in (1e-9, *(entropy + 1e-4 for entropy in entropies)):
        rule = StopRule(stability=0, confidence=confidence)
        graph = CanvasGraph(model, 19 + 8, steps=8, stop_rule=rule)
        for seed in (3, 4):
            made, decided = loop(model, ids, seed, 8, rule)
            graph.begin(model.encode([ids]), seed=seed)
            found = graph.run()
            assert found.argmax.tolist() == list(decided.ids)
            assert found.tokens.tolist() == made[-1].tokens_out.tolist()
            assert (found.steps, found.converged) == (len(made), decided.converged)
            torch.testing.assert_close(found.entropy, decided.entropy, rtol=1e-4, atol=1e-5)
            # one step too many where it ended early, and only there
            assert found.launched == min(found.steps + 1, 8)
            ended.add(found.steps)
    assert len(ended) > 2


def test_the_published_rule_and_the_second_canvas(model: DiffusionGemma) -> None:
    """Stability 1, and the draws of another canvas of the same seed, behind a longer prefix."""
    ids = prompt(9)
    rule = StopRule(confidence=5.0)
    request = Request(ids, seed=11, max_new_tokens=16)
    events = list(denoise_canvases(model, [request], steps=12, stop_rule=rule, eos=()))
    canvases = [event for event in events if isinstance(event, CanvasEvent)]
    graph = CanvasGraph(model, 9 + 16, steps=12, stop_rule=rule)
    cache = model.encode([ids])
    for canvas in canvases:
        graph.begin(cache, seed=11, canvas=canvas.canvas)
        found = graph.run()
        assert tuple(found.argmax.tolist()) == canvas.ids and found.converged == canvas.converged
        cache = model.encode([list(canvas.ids)], cache)


def test_a_step_asks_nothing_of_the_host(model: DiffusionGemma) -> None:
    """Denoising step and token: no operation whose result the host must know, and fresh canvases for control."""
    graph = CanvasGraph(model, 20, steps=4)
    graph.begin(model.encode([prompt(9)]))
    writer = TokenGraph(model, 20, most=6)
    writer.begin(model.encode([prompt(9)]))
    graph.step()  # numbers that are rounded once are kept from here on
    writer.replay()
    for run in (graph.step, writer.replay):
        with HostReads() as reads:
            run()
        assert reads.found == []
    with HostReads() as reads:
        bool(graph.finished)
        graph.canvas[graph.accepted]
    assert len(reads.found) == 2


def test_the_heads_way_of_a_gpu_asks_nothing_of_the_host(model: DiffusionGemma) -> None:
    """`VocabularyHead.predict` on a GPU: the same fields as on a CPU, without a look at any of them."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 16, generator=generator)
    temperatures = torch.full((5, 1), 0.7)
    draws = CounterDraws().step([RowKey(1, 0)], [0], 5)
    head = model.head
    usual = head._predict_slices(True, hidden, temperatures, draws, "tempered", None, True, 0)
    weight = model.embed_tokens.weight
    head._folded(weight, hidden, temperatures, draws, True)
    with torch.inference_mode(), HostReads() as reads:
        found = head._folded(weight, hidden, temperatures, draws, True)
    assert reads.found == [] and found.keys() == usual.keys()
    for name, values in usual.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", PREFIXES)
def test_tokens_are_those_of_the_loop(model: DiffusionGemma, length: int) -> None:
    """Greedy ids, with and without an end; one recording for both."""
    ids = prompt(length)
    request = Request(ids, max_new_tokens=14)
    free = next(e for e in decode_tokens(model, [request], eos=()) if isinstance(e, FinishEvent))
    ends = (free.ids[5],)
    cut = next(e for e in decode_tokens(model, [request], eos=ends) if isinstance(e, FinishEvent))
    for eos, expected in (((), free), (ends, cut)):
        graph = TokenGraph(model, length + 14, most=14, eos=eos)
        for _ in range(2):
            graph.begin(model.encode([ids]))
            assert tuple(graph.run()) == expected.ids


@pytest.mark.parametrize("ends", [0, 1, 2, 4, 9])
def test_the_flag_is_read_one_step_late(ends: int) -> None:
    """The step after the one that raised the flag is launched before the flag is looked at, never another one."""
    flag = torch.zeros(1, dtype=torch.bool)
    late = LateFlag(flag)
    log: list[str] = []
    read = late.read

    def replay() -> None:
        log.append("step")
        if log.count("step") - 1 == ends:
            flag.fill_(True)

    def logged(step: int) -> bool:
        log.append(f"read {step}")
        return read(step)

    late.read = logged  # type: ignore[method-assign]
    launched = drive(replay, late, 6)
    assert launched == min(ends + 2, 6) == log.count("step")
    expected = ["step"]
    for step in range(1, launched):
        expected += ["step", f"read {step - 1}"]
    assert log == expected


def test_the_draws_are_those_of_the_loop(model: DiffusionGemma) -> None:
    """Laid out ahead, addressed by step: the same numbers as drawn step by step."""
    graph = CanvasGraph(model, 20, steps=5)
    graph.begin(model.encode([prompt(4)]), seed=8, canvas=2)
    draws = CounterDraws()
    for step in range(5):
        numbers = draws.step([RowKey(8, 2)], [step], 8)
        assert torch.equal(graph.uniforms[step], numbers.uniform[0])
        assert torch.equal(graph.noise[step], numbers.tokens(48)[0])
    assert torch.equal(graph.canvas, draws.first_canvas([RowKey(8, 2)], 8, 48))


@pytest.mark.skipif(not has_triton(), reason="triton is not installed here")
def test_the_kernels_write_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole step and token through triton's interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    model = tiny.model(7)
    ids = prompt(7)
    _, decided = loop(model, ids, 1, 3, StopRule())
    graph = CanvasGraph(model, 16, steps=3)
    graph.begin(model.encode([ids]), seed=1)
    assert graph.run().argmax.tolist() == list(decided.ids)
    request = Request(ids, max_new_tokens=3)
    free = next(e for e in decode_tokens(model, [request], eos=()) if isinstance(e, FinishEvent))
    writer = TokenGraph(model, 12, most=3)
    writer.begin(model.encode([ids]))
    assert tuple(writer.run()) == free.ids


def test_static_memory_holds_a_window_and_no_more(model: DiffusionGemma) -> None:
    prefix = StaticPrefix(model, 100, 8)
    assert [keys.shape[1] for keys in prefix.keys] == [5 + 8, 100]
    assert prefix.nbytes == 4 * 2 * (13 * 2 * 4 + 100 * 8)


def refusals() -> list[tuple[Any, str]]:
    model = tiny.model(7)
    blind = tiny.model(7)
    blind.self_conditioning = None
    coded = tiny.model(7)
    coded.quantized = "int8"
    short = CanvasGraph(model, 10)
    return [
        (lambda: CanvasGraph(model, 20, sampler=BlockRefinement()), "entropy-bound sampler"),  # type: ignore[arg-type]
        (lambda: CanvasGraph(blind, 20), "no denoiser"),
        (lambda: CanvasGraph(coded, 20), "plain weights, not int8"),
        (lambda: short.begin(model.encode([prompt(3)])), "over the 10 that were reserved"),
        (lambda: short.begin(model.encode([prompt(2), prompt(2)])), "one text at a time, not 2"),
        (
            lambda: TokenGraph(model, 9, most=2).begin(model.encode([prompt(2)])[0]),
            "with the hidden states",
        ),
    ]


@pytest.mark.parametrize("number", range(6))
def test_what_cannot_be_recorded_is_refused(number: int) -> None:
    act, words = refusals()[number]
    with pytest.raises(RequestError, match=words):
        act()


def test_a_rule_without_end_runs_all_steps(model: DiffusionGemma) -> None:
    ids = prompt(6)
    sampler = replace(EntropyBound(), entropy_bound=0.5)
    request = Request(ids, seed=2, max_new_tokens=8)
    events = list(
        denoise_canvases(model, [request], sampler=sampler, steps=5, stop_rule=None, eos=())
    )
    decided = next(event for event in events if isinstance(event, CanvasEvent))
    graph = CanvasGraph(model, 16, sampler=sampler, steps=5, stop_rule=None)
    graph.begin(model.encode([ids]), seed=2)
    found = graph.run()
    assert found.argmax.tolist() == list(decided.ids)
    assert (found.steps, found.launched, found.converged) == (5, 5, False)
