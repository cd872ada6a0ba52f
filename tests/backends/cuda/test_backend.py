"""The backend "cuda" without a card: ids as on "torch", values that branch, and what a step costs the host.

A CPU runs the same code without recordings; kernels are in their plain form but where a test asks for the interpreter.
"""

from __future__ import annotations

import gc
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from dgemma_core.autoregression import decode_tokens
from dgemma_core.backends.cuda import backend as cuda
from dgemma_core.backends.cuda import make
from dgemma_core.backends.cuda.experts import has_triton
from dgemma_core.backends.cuda.recording import WARM_UP, Replay
from dgemma_core.backends.guard import Guarded
from dgemma_core.cache import Buffer, PrefixCache, RowCache
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.errors import DeviceError, RequestError
from dgemma_core.events import CanvasEvent, Event, FinishEvent, StepEvent, TokenEvent
from dgemma_core.files.quantised import fill, scheme
from dgemma_core.head import Filters
from dgemma_core.model import DiffusionGemma
from dgemma_core.observe import Observe
from dgemma_core.request import DecodeState, Request, TokenState
from dgemma_core.samplers import BlockRefinement, DiscreteDDIM, EntropyBound, Sampler, StopRule
from dgemma_core.speculation import decode_speculative
from tests.backends.cuda.host_reads import HostReads
from tests.backends.cuda.live_bytes import LiveBytes
from tests.backends.cuda.operations import Operations
from tests.core import tiny

Write = Callable[[DiffusionGemma, Iterable[Request]], Iterator[Event]]


def model_on(backend: str, **changes: Any) -> DiffusionGemma:
    return tiny.model(7, **changes).use(backend)


@pytest.fixture(scope="module")
def fast() -> DiffusionGemma:
    return model_on("cuda")


@pytest.fixture(scope="module")
def plain() -> DiffusionGemma:
    return model_on("torch")


def backend_of(model: DiffusionGemma) -> cuda.CudaBackend:
    assert isinstance(model.backend, Guarded) and isinstance(model.backend.fast, cuda.CudaBackend)
    return model.backend.fast


def prompt(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, 48, (length,), generator=generator).tolist()


def letters(ids: Sequence[int]) -> str:
    return "".join(chr(97 + token % 26) for token in ids)


def requests(pinned: bool) -> list[Request]:
    """Ten texts of different length, before and far past the window of 6; some end early, by a string or a token."""
    pins: list[dict[int, int]] = [{}, {0: 5, 4: 6}, {}, {3: 1}] if pinned else [{}]
    return [
        Request(
            prompt(1 + 5 * i % 31), seed=i, max_new_tokens=(5, 12, 20)[i % 3],
            stop=("a", "k", "mm", "nn", "z") if i % 4 == 3 else (), pins=pins[i % len(pins)], id=i,
        )
        for i in range(10)
    ]  # fmt: skip


def told(events: Iterable[Event]) -> list[Any]:
    """Whole numbers of all events, each text's in order."""
    found = []
    for event in events:
        if isinstance(event, StepEvent):
            numbers = [
                tensor.tolist()
                for tensor in (
                    event.tokens_in,
                    event.tokens_out,
                    event.sample,
                    event.argmax,
                    event.accepted,
                )
            ]
            found.append((event.request, event.canvas, event.step, event.finished, numbers))
        elif isinstance(event, TokenEvent):
            found.append((event.request, event.index, event.token))
        elif isinstance(event, CanvasEvent):
            found.append((event.request, event.canvas, event.ids, event.kept, event.converged))
        elif isinstance(event, FinishEvent):
            found.append((event.request, event.ids, event.text, event.stop_reason, event.passes))
    return sorted(found, key=lambda each: each[0])


RULE = StopRule(confidence=3.0)


def diffusion(batch: int = 1, **options: Any) -> Write:
    settings = {"steps": 6, "stop_rule": RULE, "eos": (33, 34), "decode": letters, **options}
    return lambda model, wanted: denoise_canvases(model, wanted, batch_size=batch, **settings)


def autoregression(batch: int = 1, **options: Any) -> Write:
    settings = {"eos": (33, 34), "decode": letters, **options}
    return lambda model, wanted: decode_tokens(model, wanted, batch_size=batch, **settings)


def speculation(batch: int = 1, **options: Any) -> Write:
    settings = {"eos": (33, 34), "decode": letters, **options}
    return lambda model, wanted: decode_speculative(model, wanted, batch_size=batch, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("mode", ["diffusion", "greedy", "sampled", "speculative"])
def test_texts_are_those_of_torch(
    fast: DiffusionGemma, plain: DiffusionGemma, mode: str, batch: int
) -> None:
    """Every number of every step, while rows join and leave: pins, stop rules, strings, ends and limits."""
    ways = {
        "diffusion": diffusion(batch),
        "greedy": autoregression(batch),
        "sampled": autoregression(batch, temperature=0.8),
        "speculative": speculation(batch, temperature=0.8),
    }
    wanted = requests(pinned=mode == "diffusion")
    expected, found = told(ways[mode](plain, wanted)), told(ways[mode](fast, wanted))
    assert found == expected and fast.backend.name == "cuda"
    reasons = {each[3] for each in found if len(each) == 5 and isinstance(each[3], str)}
    assert reasons == {"eos", "stop", "length"}


def test_recordings_are_made_by_batch_size() -> None:
    """Nine canvas rows and fewer, their commits, and the head: a few sizes serve all."""
    model = model_on("cuda")
    list(diffusion(5, eos=())(model, requests(pinned=False)))
    backend = backend_of(model)
    canvases = {key for key in backend.recorded_passes if not key[0]}
    assert canvases == {(False, 8, 8), (False, 4, 8), (False, 2, 8), (False, 1, 8)} & canvases
    assert {tokens for _, _, tokens in backend.recorded_passes} == {8}
    assert len(backend.recorded_heads) <= 2 * len(cuda.SIZES)
    assert cuda.recorded_size(3) == 4 and cuda.recorded_size(33) is None
    list(autoregression(2)(model, requests(pinned=False)[:2]))
    assert (True, 2, 1) in backend.recorded_passes


WAYS: list[tuple[Sampler, dict[str, Any]]] = [
    (BlockRefinement(), {}),
    (BlockRefinement(temperature=0.7), {}),
    (BlockRefinement(temperature=0.7, top_k=5, top_p=0.9), {}),
    (DiscreteDDIM(temperature=0.9), {}),
    (DiscreteDDIM(corrector_steps=1, corrector_k=2), {}),
    (EntropyBound(), {"soft_top_k": 4}),
    (EntropyBound(), {"observe": Observe(top_k=3, router=True, attention_positions=(0, 5))}),
    (EntropyBound(), {"stop_rule": None}),
]


@pytest.mark.filterwarnings("ignore:backend 'cuda'")
@pytest.mark.parametrize(("sampler", "options"), WAYS)
def test_all_samplers_and_observers(
    fast: DiffusionGemma, plain: DiffusionGemma, sampler: Sampler, options: dict[str, Any]
) -> None:
    write = diffusion(3, sampler=sampler, **options)
    wanted = requests(pinned=True)[:4]
    expected, found = list(write(plain, wanted)), list(write(fast, wanted))
    assert told(found) == told(expected)
    for one, two in zip(found, expected, strict=True):
        if not isinstance(one, StepEvent):
            continue
        assert isinstance(two, StepEvent) and (one.observed is None) == (two.observed is None)
        if one.observed is not None and two.observed is not None:
            for name, value in vars(two.observed).items():
                torch.testing.assert_close(getattr(one.observed, name), value, rtol=1e-4, atol=1e-5)


def test_what_it_hands_over_is_said_once(plain: DiffusionGemma) -> None:
    model = model_on("cuda")
    write = autoregression(temperature=0.7, filters=Filters(top_k=5))
    with pytest.warns(UserWarning, match="filters .* reference's head") as said:
        found = told(write(model, requests(pinned=False)[:2]))
    assert len(said) == 1 and found == told(write(plain, requests(pinned=False)[:2]))


# --- rows are values


@pytest.mark.slow
def test_states_resume_and_branch(fast: DiffusionGemma, plain: DiffusionGemma) -> None:
    """From every step of a run, also with a new pin; and the run itself is not disturbed, whichever goes first."""
    request = Request(prompt(9), seed=4, max_new_tokens=20, id="run")

    def states(model: DiffusionGemma) -> tuple[list[DecodeState], list[Any]]:
        events = list(diffusion(eos=())(model, [request]))
        return [e.state for e in events if isinstance(e, StepEvent)], told(events)

    (kept, whole), (expected, _) = states(fast), states(plain)
    end = [each for each in whole if len(each) == 5 and each[3] == "length"]
    later = kept[len(kept) // 2 :]
    for pins in ({}, {18: 7}):
        for i in (0, 3, len(kept) - 2):
            goes_on = replace(request, state=kept[i], pins=pins)
            as_torch = replace(request, state=expected[i], pins=pins)
            assert told(diffusion(eos=())(fast, [goes_on])) == told(
                diffusion(eos=())(plain, [as_torch])
            )
    for state in later:  # after all branches
        resumed = told(diffusion(eos=())(fast, [replace(request, state=state)]))
        assert [each for each in resumed if len(each) == 5 and each[3] == "length"] == end
    # branches of one state in one batch, and both beside their elder
    batch = [
        replace(request, state=state, pins=pins, id=i)
        for i, (state, pins) in enumerate(((kept[2], {}), (kept[2], {17: 3}), (kept[0], {})))
    ]
    alone = [
        told(diffusion(eos=())(plain, [replace(each, state=expected[each.state.step - 1])]))
        for each in batch
    ]  # type: ignore[union-attr]
    assert told(diffusion(3, eos=())(fast, batch)) == [line for lines in alone for line in lines]


def test_tokens_resume_and_branch(fast: DiffusionGemma) -> None:
    request = Request(prompt(9), seed=4, max_new_tokens=14, id="run")
    write = autoregression(temperature=1.2, eos=(), decode=None)
    events = list(write(fast, [request]))
    states = [event.state for event in events if isinstance(event, TokenEvent)]
    end = told(events)[-1]
    for state in (states[3], states[12], states[0]):
        assert isinstance(state, TokenState)
        assert told(write(fast, [replace(request, state=state)]))[-1][1] == end[1]


def test_rows_that_share_memory_do_not_disturb_each_other(
    fast: DiffusionGemma, plain: DiffusionGemma
) -> None:
    """One prefix thrice in a batch, appended to and overlaid; the prefix itself stays as it was."""
    canvas = torch.randint(0, 48, (3, 8), generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(0, 48, (3, 5), generator=torch.Generator().manual_seed(2))
    results = []
    for model in (fast, plain):
        cache = model.encode([prompt(11)])
        thrice = PrefixCache.join([cache, cache, PrefixCache([row.view() for row in cache.rows])])
        first = model.denoise(canvas, thrice)
        grown = model.encode(tokens, thrice)
        results.append(
            [
                first,
                model.denoise(canvas, grown),
                model.denoise(canvas, thrice),
                model.denoise(canvas[:1], cache),
                model.encode(tokens[:1], cache).hidden,
                model.encode(tokens[:, :1], grown).hidden,
            ]
        )
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[0][0], results[0][2])


@pytest.mark.parametrize("chunk", [7, 64])
def test_long_prompts_in_chunks(fast: DiffusionGemma, plain: DiffusionGemma, chunk: int) -> None:
    """Unlike rows, far past the window, in several chunks; then a row goes on from there."""
    ids = [prompt(n) for n in (70, 3, 41)]
    found, expected = (model.encode(ids, chunk=chunk) for model in (fast, plain))
    assert found.hidden is not None and expected.hidden is not None
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-4, atol=1e-5)
    request = Request(ids[0] + [4], max_new_tokens=16)
    one, two = (
        told(diffusion()(model, [replace(request, prefix=cache[0], id=0)]))
        for model, cache in ((fast, found), (plain, expected))
    )
    assert one == two


def test_rows_pass_between_backends(fast: DiffusionGemma, plain: DiffusionGemma) -> None:
    """The same weights: a prefix of one is a prefix of the other."""
    canvas = torch.randint(0, 48, (2, 8), generator=torch.Generator().manual_seed(1))
    ids = [prompt(13), prompt(2)]
    torch.testing.assert_close(
        fast.denoise(canvas, plain.encode(ids)),
        plain.denoise(canvas, fast.encode(ids)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_buffer_of_another_layout_is_copied(fast: DiffusionGemma) -> None:
    """Kernels read rows by address: a transposed buffer must not reach them."""
    canvas = torch.randint(0, 48, (1, 8), generator=torch.Generator().manual_seed(1))
    cache = fast.encode([prompt(5)])
    expected = fast.denoise(canvas, cache)
    row = cache.rows[0]
    assert isinstance(row, RowCache) and row.buffers[0] is not None
    buffer = row.buffers[0]
    keys = buffer.keys.transpose(0, 1).contiguous().transpose(0, 1)
    row.buffers[0] = Buffer(keys, buffer.values, buffer.base, buffer.filled)
    assert not keys.is_contiguous()
    held = backend_of(fast).reserve([row], [8], causal=False)
    assert held[0].buffer(0).keys.is_contiguous()
    torch.testing.assert_close(fast.denoise(canvas, cache), expected)


@pytest.mark.slow
def test_memory_goes_with_its_rows(fast: DiffusionGemma) -> None:
    """The backend keeps no row alive, and no fixed buffer grows with use."""
    list(diffusion(3)(fast, requests(pinned=False)[:4]))
    cache = fast.encode([prompt(30), prompt(4)])
    fast.denoise(torch.zeros(2, 8, dtype=torch.long), cache)
    fast.encode([[1], [2]], cache)
    rows = [row for row in cache.rows if isinstance(row, RowCache)]
    memories = [
        weakref.ref(buffer.keys) for row in rows for buffer in row.buffers if buffer is not None
    ]
    assert len(memories) == 4 and all(memory() is not None for memory in memories)
    del cache, rows
    gc.collect()
    assert all(memory() is None for memory in memories)


# --- quantised weights


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_weights(kind: str) -> None:
    """The same texts; a token turns back no more experts than it goes to."""
    models = [quantised_model(kind).use(name) for name in ("torch", "cuda")]
    for write in (diffusion(2), autoregression(2)):
        one, two = (told(write(model, requests(pinned=False)[:4])) for model in models)
        assert one == two


def quantised_model(name: str) -> DiffusionGemma:
    plain = tiny.model(7, num_experts=8)
    model = DiffusionGemma(plain.config, device="meta").requires_grad_(False).eval()
    parts = (
        (key, [weight.reshape(-1, weight.shape[-1])]) for key, weight in plain.named_parameters()
    )
    fill(model, scheme(name), parts, torch.float32, torch.device("cpu"))
    return model


# --- what a step costs the host


def steps(model: DiffusionGemma, batch: int, mode: str) -> Iterator[None]:
    """Yields between the steps of a run in which no row joins, leaves or is committed."""
    wanted = [Request(prompt(8 + i), seed=i, max_new_tokens=8, id=i) for i in range(batch)]
    if mode == "diffusion":
        events = denoise_canvases(model, wanted, steps=8, batch_size=batch, eos=())
        kind: type[StepEvent] | type[TokenEvent] = StepEvent
    else:
        temperature = 0.7 if mode == "sampled" else 0.0
        events = decode_tokens(model, wanted, batch_size=batch, eos=(), temperature=temperature)
        kind = TokenEvent
    seen = 0
    for event in events:
        seen += isinstance(event, kind)
        if seen and seen % batch == 0 and isinstance(event, kind):
            del event
            yield


MODES = ["diffusion", "greedy", "sampled"]


COPIES = {
    # ids, soft embedding and table of rows in, hidden states out;
    # hidden states, temperatures and uniform numbers in, ids, numbers and soft embedding out
    "diffusion": (3, 1, 3, 3),
    "greedy": (2, 1, 1, 2),
    "sampled": (2, 1, 3, 2),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_launched_outside_recordings(fast: DiffusionGemma, mode: str, batch: int) -> None:
    """A step is two replays. Around them the backend copies; the rest is the loop's, whatever the batch."""
    progress = steps(fast, batch, mode)
    for _ in range(3):
        next(progress)
    with Operations() as operations:
        next(progress)
    assert operations.replays == 2
    assert len(operations.of_backend) == sum(COPIES[mode])
    assert len(operations.found) <= 90, operations.found


@pytest.mark.parametrize("mode", MODES)
def test_the_host_waits_at_most_once_a_step(fast: DiffusionGemma, mode: str) -> None:
    """Of what a GPU would be asked: ids that are still on the host, and checks that only a CPU makes, are left out."""
    progress = steps(fast, 3, mode)
    for _ in range(3):
        next(progress)
    with HostReads() as reads:
        next(progress)
    # On a GPU: canvases are not checked, ids of `encode` and temperatures are still on the host, and the head does
    # not search for numbers that are not finite.
    spared = "checks.py:checked_ids", "model.py:encode", "head.py:_sampling", "head.py:check_finite"
    waits = [caller for caller in reads.callers if not caller.endswith(spared)]
    assert len(waits) <= 1, waits


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_step_leaves_no_more_memory_than_it_found(fast: DiffusionGemma, mode: str) -> None:
    """What lives between steps after the first ones."""
    found = []
    with LiveBytes() as live:
        for _ in steps(fast, 3, mode):
            gc.collect()
            found.append(live.now())
    assert len(found) >= 7 and max(found[3:-1]) <= found[2], found


def test_the_bare_replay_for_benchmarks(fast: DiffusionGemma) -> None:
    """It runs the layers and the head of the pass that the loop makes."""
    canvas = torch.randint(0, 48, (3, 8), generator=torch.Generator().manual_seed(1))
    cache = fast.encode([prompt(13), prompt(2), prompt(7)])
    expected = fast.denoise(canvas, cache)
    step = backend_of(fast).recorded(canvas, cache)
    step()
    torch.testing.assert_close(step.layers.result[:24].view(3, 8, -1), expected)
    assert step.head.result.ids.shape == (2, 32) and step.head.result.soft_embedding is not None
    hidden = fast.encode(canvas[:, :1], cache).hidden
    token = backend_of(fast).recorded(canvas[:, :1], cache)
    token()
    torch.testing.assert_close(token.layers.result[:3].unsqueeze(1), hidden)
    with pytest.raises(RequestError, match="canvases of 8 tokens and single tokens"):
        backend_of(fast).recorded(canvas[:, :5], cache)


class FakeGraph:
    """Stands in for `torch.cuda.CUDAGraph`, where there is no card."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


def test_a_recording_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what torch is asked: warm-ups on a side stream, one capture into the pool, and replays from then on."""
    asked: list[Any] = []
    capture = inspect.signature(torch.cuda.graph.__init__)

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def wait_stream(self, other: Any) -> None:
            asked.append("wait")

    @contextmanager
    def graph(*arguments: Any, **options: Any) -> Iterator[None]:
        asked.append(capture.bind(None, *arguments, **options).arguments["pool"])
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    runs = []
    replay = Replay(
        lambda: runs.append(torch.is_inference_mode_enabled()), torch.device("cuda", 5), "pool"
    )
    assert asked == ["wait", "wait", "pool"] and runs == [True] * (WARM_UP + 1)
    replay()
    replay()
    assert isinstance(replay.graph, FakeGraph) and replay.graph.replays == 2
    assert len(runs) == WARM_UP + 1


# --- where it serves


def test_a_model_elsewhere_is_refused() -> None:
    model = DiffusionGemma(tiny.CONFIG, device="meta")
    with pytest.raises(DeviceError, match="runs models on a CUDA device, this one is on meta"):
        make(model)


def test_without_triton_a_card_runs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by name it is one clear line; "auto" goes on with the reference and says so."""
    model = tiny.model(7)
    monkeypatch.setattr(DiffusionGemma, "device", torch.device("cuda"))
    monkeypatch.setattr("dgemma_core.backends.cuda.experts.has_triton", lambda: False)
    with pytest.raises(DeviceError, match="needs triton: pip install triton, or choose"):
        model.use("cuda")
    with pytest.warns(UserWarning, match="runs on backend 'torch': backend 'cuda' needs triton"):
        model.use("auto")
    assert model.backend.name == "torch"


def test_a_model_that_cannot_denoise_writes_tokens() -> None:
    models = [tiny.model(7) for _ in range(2)]
    for model, name in zip(models, ("cuda", "torch"), strict=True):
        model.self_conditioning = None
        model.use(name)
    one, two = (told(autoregression()(model, requests(pinned=False)[:2])) for model in models)
    assert one == two


def test_a_changed_weight_is_seen() -> None:
    """In place: nothing is copied, but the recordings must not outlive a moved weight."""
    model, other = model_on("cuda"), model_on("torch")
    ids = [prompt(6)]
    model.encode(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in (model, other):
            each.embed_tokens.weight.data.mul_(0.5)
        torch.testing.assert_close(model.encode(ids).hidden, other.encode(ids).hidden)


@pytest.mark.slow
@pytest.mark.skipif(not has_triton(), reason="triton is not installed here")
@pytest.mark.parametrize("causal", [True, False])
def test_the_kernels_run_whole_passes(monkeypatch: pytest.MonkeyPatch, causal: bool) -> None:
    """Through triton's interpreter: three rows in four places, layers and head."""
    changes = {"canvas_length": 2, "vocab_size": 64}
    plain, fast = model_on("torch", **changes), model_on("cuda", **changes)
    cache = plain.encode([prompt(9), prompt(1), prompt(4)])
    tokens = torch.tensor([[3, 5], [1, 7], [9, 2]])[:, : 1 if causal else 2]
    soft = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))

    def run(model: DiffusionGemma) -> tuple[Any, Any]:
        if causal:
            hidden = model.encode(tokens, cache).hidden
            assert hidden is not None
            return hidden, model.predict(hidden, 0.0, reference="raw", soft=False)
        hidden = model.denoise(tokens, cache, soft)
        return hidden, model.predict(hidden, 0.7, Uniforms(3, 2))

    hidden, expected = run(plain)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found_hidden, found = run(fast)
    torch.testing.assert_close(found_hidden, hidden, rtol=1e-4, atol=1e-5)
    assert found.sample.tolist() == expected.sample.tolist()
    assert found.argmax.tolist() == expected.argmax.tolist()
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=1e-4, atol=1e-4)


class Uniforms:
    def __init__(self, *shape: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.uniform = torch.rand(*shape, dtype=torch.float64, generator=generator)
