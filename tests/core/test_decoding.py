"""The two decode loops: counts by hand on scripted models, and on random ones the promises that a
text does not depend on its batch, a state continues exactly, and pins hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma_core.autoregression import decode_tokens
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.draws import CounterDraws, RowKey, inverse_cdf
from dgemma_core.errors import DeviceError, RequestError
from dgemma_core.events import CanvasEvent, Event, FinishEvent, PromptEvent, StepEvent, TokenEvent
from dgemma_core.files.trace import Trace
from dgemma_core.head import Filters, VocabularyHead
from dgemma_core.model import DiffusionGemma
from dgemma_core.observe import Observe, Watcher
from dgemma_core.request import DecodeState, Request, TokenState
from dgemma_core.samplers import BlockRefinement, DiscreteDDIM, EntropyBound, Sampler, StopRule
from tests.core import plain_head, tiny

SAMPLERS: dict[str, Sampler] = {
    "entropy_bound": EntropyBound(entropy_bound=3.0, t_max=1.0),
    "block_refinement": BlockRefinement(
        threshold=0.4, temperature=0.8, top_p=0.9, editing_threshold=0.6
    ),
    "discrete_ddim": DiscreteDDIM(temperature=1.0),
    "corrector": DiscreteDDIM(temperature=1.0, corrector_steps=1, corrector_k=2),
}
# A random model is unsure: this rule stops some canvases early and others not.
RULE = StopRule(stability=0, confidence=2.7)
LENGTH = tiny.CONFIG.canvas_length
VOCAB = tiny.CONFIG.text.vocab_size


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny.model(1)


@pytest.fixture(params=SAMPLERS)
def sampler(request: pytest.FixtureRequest) -> Sampler:
    return SAMPLERS[request.param]


def prompt(number: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(number)
    return tuple(torch.randint(VOCAB, (1 + number % 11,), generator=generator).tolist())


def write(model: Any, *requests: Request, **options: Any) -> list[Event]:
    """A drained diffusion run, with few steps and the lenient stop rule."""
    options = {"steps": 5, "stop_rule": RULE, "eos": (), **options}
    return list(denoise_canvases(model, requests, **options))


def digests(events: Iterable[Event]) -> dict[Any, str]:
    return {request: trace.digest() for request, trace in Trace.record_all(events).items()}


def of_kind(events: Iterable[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def finish(events: Iterable[Event]) -> FinishEvent:
    (event,) = of_kind(events, FinishEvent)
    return event


# --- batches


def eight(**options: Any) -> list[Request]:
    return [Request(prompt(i), seed=10 + i, max_new_tokens=20, id=i, **options) for i in range(8)]


@pytest.mark.slow
def test_a_text_does_not_depend_on_its_batch(model: DiffusionGemma, sampler: Sampler) -> None:
    """Prompts of 1 to 8 tokens, texts that end at different canvases: same traces, whoever is near."""
    rule = StopRule(stability=0, confidence=2.0) if sampler.reference == "tempered" else RULE
    options = {"sampler": sampler, "eos": (3, 17, 25), "stop_rule": rule}
    alone = write(model, *eight(), **options)
    for batch_size, requests in ((3, eight()[::-1]), (8, eight())):
        assert digests(write(model, *requests, batch_size=batch_size, **options)) == digests(alone)
    finishes = of_kind(alone, FinishEvent)
    assert {event.stop_reason for event in finishes} == {"eos", "length"}
    assert len({event.canvases for event in finishes}) > 1
    assert {event.converged for event in of_kind(alone, CanvasEvent)} == {True, False}


@pytest.mark.slow
def test_rows_join_and_leave(model: DiffusionGemma) -> None:
    taken = []

    def requests() -> Iterator[Request]:
        for request in eight():
            taken.append(request.id)
            yield request

    alive: set[int] = set()
    order = []
    calls = Counted(model, "denoise")
    with calls:
        for event in denoise_canvases(
            model, requests(), steps=4, stop_rule=RULE, batch_size=3, eos=(3, 17, 25)
        ):
            if isinstance(event, PromptEvent):
                alive.add(event.request)
                order.append(event.request)
            assert event.request in alive and len(alive) <= 3
            assert len(taken) <= len(order) + 3 - len(alive) + 3
            if isinstance(event, FinishEvent):
                alive.remove(event.request)
    assert order == list(range(8)) and not alive
    steps = sum(
        e.denoising_steps
        for e in of_kind(write(model, *eight(), steps=4, eos=(3, 17, 25)), FinishEvent)
    )
    assert steps / 3 <= calls.count < steps / 2, "passes are shared, and places do not stay empty"


@dataclass
class Counted:
    """Counts the calls of a model's method."""

    model: Any
    name: str
    count: int = 0

    def __enter__(self) -> None:
        method: Callable[..., Any] = getattr(self.model, self.name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return method(*args, **kwargs)

        object.__setattr__(self.model, self.name, counted)

    def __exit__(self, *_: object) -> None:
        object.__delattr__(self.model, self.name)


def test_nobody_waits_for_the_slowest() -> None:
    """Of two rows one has pins everywhere: it ends after a pass, and its place is taken at once."""
    model = tiny.Scripted([], prompt=2, vocab_size=64)
    sure = {i: 7 for i in range(LENGTH)}
    requests = [
        Request((2, 3), max_new_tokens=LENGTH, id="slow"),
        Request((2, 3), max_new_tokens=LENGTH, id="pinned", pins=sure),
        Request((2, 3), max_new_tokens=LENGTH, id="next", pins=sure),
    ]
    events = write(model, *requests, batch_size=2, steps=6, stop_rule=StopRule())
    order = [(e.request, type(e).__name__) for e in events if not isinstance(e, CanvasEvent)]
    assert order[:9] == [
        ("slow", "PromptEvent"),
        ("pinned", "PromptEvent"),
        ("slow", "StepEvent"),
        ("pinned", "StepEvent"),
        ("pinned", "FinishEvent"),
        ("next", "PromptEvent"),
        ("slow", "StepEvent"),
        ("next", "StepEvent"),
        ("next", "FinishEvent"),
    ]
    assert model.passes == 6, "the third text cost no pass of its own"


def test_seeds(model: DiffusionGemma) -> None:
    def text(seed: int, id: Any = None) -> tuple[int, ...]:
        return finish(write(model, Request(prompt(5), seed=seed, max_new_tokens=16, id=id))).ids

    assert text(3) == text(3, id="another name")
    assert len({text(seed) for seed in (*range(6), 2**64 - 1)}) == 7


def test_prompt_events_tell_prompt_and_seed(model: DiffusionGemma) -> None:
    events = write(model, Request((4, 5), seed=9, max_new_tokens=4, id="x"))
    assert (events[0].request, events[0].ids, events[0].seed) == ("x", (4, 5), 9)
    seconds = [event.seconds for event in events]
    assert seconds == sorted(seconds) and seconds[0] > 0
    named = [Request((1,)), Request((1,))]
    assert named[0].id != named[1].id


def test_the_loop_never_asks_for_whole_logits(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("logits", "_filtered_sample"):
        monkeypatch.setattr(VocabularyHead, name, lambda *_: pytest.fail("whole rows of logits"))
    for sampler in (
        EntropyBound(),
        BlockRefinement(temperature=0.8),
        DiscreteDDIM(temperature=1.0),
    ):
        write(model, Request((1, 2), max_new_tokens=8), sampler=sampler)
    list(decode_tokens(model, [Request((1, 2), max_new_tokens=3)], temperature=0.5))


def test_step_events_tell_what_happened(model: DiffusionGemma, sampler: Sampler) -> None:
    """One event a pass; the canvas that a pass leaves is the one that the next reads."""
    request = Request(prompt(4), seed=6, max_new_tokens=20)
    events = write(model, request, sampler=sampler, steps=7)
    steps, canvases = of_kind(events, StepEvent), of_kind(events, CanvasEvent)
    plan = sampler.plan(7)
    assert [c.canvas for c in canvases] == [0, 1, 2] and [c.kept for c in canvases] == [8, 8, 4]
    for canvas in canvases:
        mine = [step for step in steps if step.canvas == canvas.canvas]
        assert [step.step for step in mine] == list(range(len(mine))) and mine[0].steps == 7
        noise = CounterDraws().first_canvas([RowKey(6, canvas.canvas)], LENGTH, VOCAB)
        assert torch.equal(mine[0].tokens_in, noise[0])
        for step, planned in zip(mine, plan, strict=False):
            assert (step.kind, step.temperature) == (planned.kind, planned.temperature)
            assert step.state.step == step.step + 1
            assert torch.equal(step.state.canvas, step.tokens_out)
            assert torch.equal(step.state.accepted, step.accepted)
            assert ((step.argmax_probability > 0) & (step.argmax_probability <= 1)).all()
            assert ((step.entropy >= 0) & (step.entropy <= math.log(VOCAB) + 1e-5)).all()
            assert step.sample.shape == step.tokens_in.shape == (LENGTH,)
        for a, b in pairwise(mine):
            assert torch.equal(a.tokens_out, b.tokens_in)
        last = [step for step in mine if step.kind == "predict"][-1]
        assert [step.finished for step in mine[:-1]] == [False] * (len(mine) - 1)
        assert canvas.converged == last.finished == (len(mine) < 7 or last.finished)
        assert canvas.ids == tuple(last.argmax.tolist()), "the argmax is committed"
        assert torch.equal(canvas.probability, last.argmax_probability)
        assert torch.equal(canvas.entropy, last.entropy)
    assert finish(events).denoising_steps == len(steps)
    assert finish(events).passes == 1 + len(steps) + 2


def test_without_a_stop_rule_all_steps_are_made(model: DiffusionGemma) -> None:
    events = write(model, Request((1, 2), max_new_tokens=16), stop_rule=None, steps=3)
    assert finish(events).denoising_steps == 6
    assert not any(event.converged for event in of_kind(events, CanvasEvent))


def test_the_checkpoints_ends_are_the_default() -> None:
    model = tiny.Scripted([7, 7, 9, 7], prompt=1, vocab_size=64, eos_token_ids=(9,))
    for events in (
        denoise_canvases(model, [Request((1,))]),
        decode_tokens(model, [Request((1,))]),
    ):
        assert finish(events).ids == (7, 7, 9)


# --- counts


def words(text: str) -> list[int]:
    return tiny.tokenizer().encode(text)


EOS = 1
PLAIN = list(range(100, 140))
SILENCE = [0] * 16  # after the script, so that canvases are sure of themselves
LETTERS = words(" A B C D E F G H I J K L M N")
WORD = words(" backward")
assert (len(LETTERS), len(WORD)) == (14, 1)


@dataclass(frozen=True)
class Count:
    """A script and what must come of it; a canvas has 8 positions and converges in 2 passes."""

    script: list[int]
    ids: list[int]
    reason: str
    kept: list[int]
    text: str | None = None
    stop: tuple[str, ...] = ()
    limit: int = 256
    tokens: int | None = None  # that autoregression writes; those kept if None


COUNTS = {
    "EOS in the first canvas": Count([*PLAIN[:3], EOS, 50], [*PLAIN[:3], EOS], "eos", [4]),
    "EOS in the second": Count([*PLAIN[:10], EOS], [*PLAIN[:10], EOS], "eos", [8, 3]),
    "EOS last in a canvas": Count([*PLAIN[:7], EOS], [*PLAIN[:7], EOS], "eos", [8]),
    "EOS first in a canvas": Count([*PLAIN[:8], EOS], [*PLAIN[:8], EOS], "eos", [8, 1]),
    "nothing but EOS": Count([EOS, *PLAIN], [EOS], "eos", [1], text=""),
    "two ends": Count([7, 5, EOS], [7, 5], "eos", [2]),
    "limit in a canvas": Count(PLAIN, PLAIN[:11], "length", [8, 3], limit=11),
    "limit at a canvas": Count(PLAIN, PLAIN[:16], "length", [8, 8], limit=16),
    "limit of one": Count(PLAIN, PLAIN[:1], "length", [1], limit=1),
    "EOS at the limit": Count([*PLAIN[:3], EOS], [*PLAIN[:3], EOS], "eos", [4], limit=4),
    "EOS past the limit": Count([*PLAIN[:4], EOS], PLAIN[:4], "length", [4], limit=4),
    "stop string": Count(
        LETTERS, LETTERS[:3], "stop", [3], " A B C", stop=(" D",), tokens=4,
    ),
    "stop string across canvases": Count(
        LETTERS, LETTERS[:7], "stop", [8, 0], " A B C D E F G", stop=(" H I",), tokens=9,
    ),
    "stop string in the second canvas": Count(
        LETTERS, LETTERS[:9], "stop", [8, 1], " A B C D E F G H I", stop=(" J",), tokens=10,
    ),
    "stop string within a token": Count(
        [*LETTERS[:2], *WORD], LETTERS[:2], "stop", [2], " A B back", stop=("war",), tokens=3,
    ),
    "stop string first": Count(LETTERS, [], "stop", [0], "", stop=(" A",), tokens=1),
    "the earliest of two stop strings": Count(
        LETTERS, LETTERS[:2], "stop", [2], " A B", stop=(" F", " C"), tokens=3,
    ),
    "stop string before EOS": Count(
        [*LETTERS[:4], EOS], LETTERS[:2], "stop", [2], " A B", stop=(" C",), tokens=3,
    ),
    "stop string after EOS": Count(
        [*LETTERS[:2], EOS, *LETTERS[2:]], [*LETTERS[:2], EOS], "eos", [3], " A B", stop=(" C",),
    ),
    "stop string past the limit": Count(
        LETTERS, LETTERS[:3], "length", [3], " A B C", stop=(" D",), limit=3,
    ),
    "a stop string that never comes": Count(
        [*LETTERS[:3], EOS], [*LETTERS[:3], EOS], "eos", [4], " A B C", stop=("zebra",),
    ),
}  # fmt: skip


def ask(count: Count) -> Request:
    return Request((2, 50, 60), max_new_tokens=count.limit, stop=count.stop)


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
def test_counts_of_diffusion(count: Count) -> None:
    model = tiny.Scripted([*count.script, *SILENCE], prompt=3)
    decode = None if count.text is None else tiny.tokenizer().decode
    options = {"stop_rule": StopRule(), "steps": 48, "eos": (EOS, 5), "decode": decode}
    events = write(model, ask(count), **options)
    end, canvases = finish(events), of_kind(events, CanvasEvent)
    assert (list(end.ids), end.stop_reason, end.text) == (count.ids, count.reason, count.text)
    assert [canvas.kept for canvas in canvases] == count.kept
    assert end.canvases == len(count.kept) == len(canvases)
    assert all(canvas.converged for canvas in canvases)
    assert end.denoising_steps == 2 * len(count.kept) == len(of_kind(events, StepEvent))
    assert end.passes == 1 + 2 * len(count.kept) + len(count.kept) - 1
    # Prompt and all canvases but the last are encoded, each once, whole.
    committed = [list(canvas.ids) for canvas in canvases[:-1]]
    assert model.encoded == [[[2, 50, 60]], *([row] for row in committed)]
    assert end.cache.lengths == [3 + 8 * len(committed)]


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
def test_counts_of_autoregression(count: Count) -> None:
    model = tiny.Scripted([*count.script, *SILENCE], prompt=3)
    decode = None if count.text is None else tiny.tokenizer().decode
    events = list(decode_tokens(model, [ask(count)], eos=(EOS, 5), decode=decode))
    end, tokens = finish(events), of_kind(events, TokenEvent)
    assert (list(end.ids), end.stop_reason, end.text) == (count.ids, count.reason, count.text)
    written = count.tokens or len(count.ids)
    assert [event.token for event in tokens] == count.script[:written]
    assert [event.index for event in tokens] == list(range(written))
    # The prompt's pass tells the first token; the last token is not encoded.
    assert (end.passes, end.denoising_steps, end.canvases) == (written, 0, 0)
    assert model.encoded == [[[2, 50, 60]], *([[token]] for token in count.script[: written - 1])]
    assert end.cache.lengths == [3 + written - 1]


def test_counts_where_nothing_converges() -> None:
    model = tiny.Scripted([], prompt=1, vocab_size=64)
    events = write(model, Request((1,), max_new_tokens=12), stop_rule=StopRule(), steps=7)
    assert [e.converged for e in of_kind(events, CanvasEvent)] == [False, False]
    assert (finish(events).denoising_steps, finish(events).passes) == (14, 1 + 14 + 1)
    assert finish(events).ids == (0,) * 12, "of equals, the lowest index"


def test_a_character_of_two_tokens_at_a_stop_string() -> None:
    """The first byte of "é" alone decodes to one character too: the cut is not taken in by it."""
    script = words("aé!b")
    assert len(script) == 5
    model = tiny.Scripted(script, prompt=1)
    for stop, kept, text in (("é", 1, "a"), ("!", 3, "aé")):
        request = Request((1,), max_new_tokens=5, stop=(stop,))
        events = write(model, request, stop_rule=StopRule(), decode=tiny.tokenizer().decode)
        assert (finish(events).ids, finish(events).text) == (tuple(script[:kept]), text)


# --- states


def same(a: Any, b: Any) -> bool:
    """Whether two events' or states' values are equal to the bit; times and caches apart."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if hasattr(a, "__dataclass_fields__"):
        names = [f.name for f in fields(a) if f.name not in ("seconds", "cache", "request")]
        return type(a) is type(b) and all(same(getattr(a, n), getattr(b, n)) for n in names)
    return bool(a == b)


@pytest.mark.slow
def test_a_state_continues_exactly(model: DiffusionGemma, sampler: Sampler) -> None:
    """From every pass of a run of three canvases: the rest of the trace is the same, to the bit."""
    request = Request(prompt(7), seed=4, max_new_tokens=20, id="run", pins={3: 9, 12: 5})
    events = write(model, request, sampler=sampler, steps=4)
    for i, event in enumerate(events):
        if not isinstance(event, StepEvent):
            continue
        again = Request(request.ids, max_new_tokens=20, id="run", state=event.state)
        resumed = write(model, again, sampler=sampler, steps=4)
        rest = [resumed[0], *events[i + 1 :]]
        assert Trace.record(resumed).digest() == Trace.record(rest).digest()
        assert len(resumed) == len(rest) and all(map(same, resumed, rest))
        assert resumed[0].seed == 4, "the state's seed, not the request's"


def test_a_state_continues_in_memory_of_its_own(model: DiffusionGemma) -> None:
    """So that it may run in another thread than the one that it came from."""

    def memory(events: list[Event]) -> set[int]:
        caches = [e.state.cache for e in events if isinstance(e, StepEvent | TokenEvent)]
        return {buffer.keys.data_ptr() for cache in caches for buffer in cache.rows[0].buffers}

    request = Request(prompt(7), max_new_tokens=16)
    for run, kind in ((partial(write, stop_rule=None), StepEvent), (spell, TokenEvent)):
        events = run(model, request)
        resumed = run(model, replace(request, state=of_kind(events, kind)[0].state))
        assert memory(events) and not memory(events) & memory(resumed)


def test_a_state_continues_in_a_batch(model: DiffusionGemma, sampler: Sampler) -> None:
    """States of different passes beside a new request, together."""
    request = Request(prompt(7), seed=4, max_new_tokens=20, id=0)
    events = write(model, request, sampler=sampler)
    whole = {step.step: step.state for step in of_kind(events, StepEvent) if step.canvas == 1}
    requests = [replace(request, id=i, state=state) for i, state in whole.items()]
    ends = of_kind(
        write(model, *requests, replace(request, id="new"), sampler=sampler, batch_size=9),
        FinishEvent,
    )
    assert len(ends) == len(whole) + 1
    for end in ends:
        assert same(end, finish(events))


@pytest.mark.slow
def test_branches_leave_the_original_alone(model: DiffusionGemma, sampler: Sampler) -> None:
    """Two branches and the original advance in turns, one event each; all as if alone."""
    options: dict[str, Any] = {"sampler": sampler, "steps": 4, "stop_rule": None, "eos": ()}
    request = Request(prompt(6), seed=2, max_new_tokens=24)
    expected = Trace.record(denoise_canvases(model, [request], **options)).digest()
    original = denoise_canvases(model, [request], **options)
    events: list[Event] = []
    while not (events and isinstance(events[-1], StepEvent) and events[-1].canvas == 1):
        events.append(next(original))
    state = events[-1].state
    before = replace(state, cache=state.cache.copy())
    pinned = Request(request.ids, max_new_tokens=24, state=state, pins={11: 3, 20: 4})
    other = Request(request.ids, max_new_tokens=24, state=replace(state, seed=77))
    alone = [list(denoise_canvases(model, [r], **options)) for r in (pinned, other)]
    branches = [denoise_canvases(model, [r], **options) for r in (pinned, other)]
    heard: list[list[Event]] = [[], []]
    while True:
        event = next(original, None)
        if event is None:
            break
        events.append(event)
        for branch, list_ in zip(branches, heard, strict=True):
            list_.extend(e for e in [next(branch, None)] if e is not None)
    for branch, list_ in zip(branches, heard, strict=True):
        list_.extend(branch)
    assert Trace.record(events).digest() == expected
    for list_, expected_events in zip(heard, alone, strict=True):
        assert Trace.record(list_).digest() == Trace.record(expected_events).digest()
    assert same(state, before)
    again = model.denoise(state.canvas[None], state.cache, None)
    assert torch.equal(again, model.denoise(state.canvas[None], before.cache, None))
    ids = {finish(e).ids for e in (events, *heard)}
    assert len(ids) == 3 and all(i[:8] == finish(events).ids[:8] for i in ids)
    assert finish(heard[0]).ids[11] == 3 and finish(heard[0]).ids[20] == 4


def test_closing_cancels(model: DiffusionGemma) -> None:
    request = Request(prompt(6), seed=2, max_new_tokens=24)
    whole = write(model, request, stop_rule=None)
    taken = iter([request, Request((1,), id="never joins")])
    events = denoise_canvases(model, taken, steps=5, stop_rule=None, eos=())
    calls = Counted(model, "denoise")
    with calls:
        heard = [next(events) for _ in range(4)]
        events.close()
        assert calls.count == 3 and list(events) == []
    assert [request.id for request in taken] == ["never joins"]
    rest = write(model, replace(request, state=heard[-1].state), stop_rule=None)
    assert finish(rest).ids == finish(whole).ids


def test_a_converged_state_goes_on_with_its_next_canvas(model: DiffusionGemma) -> None:
    script = tiny.Scripted(PLAIN, prompt=1)
    request = Request((1,), max_new_tokens=12)
    events = write(script, request, stop_rule=StopRule())
    state = of_kind(events, StepEvent)[1].state
    assert state.finished
    passes = script.passes
    resumed = write(script, replace(request, state=state), stop_rule=StopRule())
    assert isinstance(resumed[1], CanvasEvent) and script.passes == passes + 2
    assert finish(resumed).ids == finish(events).ids


# --- pins

PINS = {0: 7, 3: 9, 4: 9, 10: 11, 17: 2}


@pytest.mark.slow
def test_pins_hold(model: DiffusionGemma, sampler: Sampler) -> None:
    request = Request(prompt(5), seed=1, max_new_tokens=20, pins=PINS)
    events = write(model, request, sampler=sampler, steps=7, stop_rule=None)
    free = write(model, replace(request, pins={}), sampler=sampler, steps=7, stop_rule=None)
    assert finish(events).ids != finish(free).ids
    steps = of_kind(events, StepEvent)
    assert len(steps) == 21
    for step in steps:
        pins = {p - 8 * step.canvas: t for p, t in PINS.items() if p // 8 == step.canvas}
        assert step.pinned.nonzero().squeeze(1).tolist() == list(pins)
        for position, token in pins.items():
            for tokens in (step.tokens_in, step.tokens_out, step.sample, step.argmax):
                assert tokens[position] == token
            assert step.sample_probability[position] == step.argmax_probability[position] == 1
            assert not step.accepted[position]
            soft = step.state.soft_embedding
            if soft is not None:
                assert torch.equal(soft[position], model.embed(torch.tensor(token)))
    ids = finish(events).ids
    assert {position: ids[position] for position in PINS} == PINS


def test_new_pins_are_laid_into_a_state(model: DiffusionGemma, sampler: Sampler) -> None:
    request = Request(prompt(5), seed=1, max_new_tokens=16, pins={2: 6})
    events = write(model, request, sampler=sampler, steps=7, stop_rule=None)
    state = of_kind(events, StepEvent)[2].state
    again = replace(request, state=state, pins={5: 13, 12: 14})
    for step in of_kind(write(model, again, sampler=sampler, steps=7, stop_rule=None), StepEvent):
        pins = {2: 6, 5: 13} if step.canvas == 0 else {4: 14}
        assert step.pinned.nonzero().squeeze(1).tolist() == list(pins)
        for position, token in pins.items():
            for tokens in (step.tokens_in, step.tokens_out, step.sample, step.argmax):
                assert tokens[position] == token
            assert not step.accepted[position]


def test_pins_are_left_out_of_the_entropy_budget(model: DiffusionGemma) -> None:
    for bound in (0.0, 2.0, 6.0):
        request = Request(prompt(5), seed=1, max_new_tokens=8, pins={0: 7, 3: 9, 4: 9})
        events = write(model, request, sampler=EntropyBound(entropy_bound=bound), stop_rule=None)
        for step in of_kind(events, StepEvent):
            spent, accepted = 0.0, set()
            for entropy, i in sorted((e, i) for i, e in enumerate(step.entropy.tolist())):
                if not step.pinned[i] and spent <= bound:
                    accepted.add(i)
                    spent += entropy
            assert set(step.accepted.nonzero().squeeze(1).tolist()) == accepted


def test_pins_are_left_out_of_the_quota(model: DiffusionGemma) -> None:
    request = Request(prompt(5), seed=1, max_new_tokens=8, pins=dict.fromkeys(range(1, 6), 9))
    rule = BlockRefinement(threshold=1.0)  # by quota alone: ⌈(i + 1) · 3 / 4⌉ of 3 free positions
    events = write(model, request, sampler=rule, steps=4, stop_rule=None)
    assert [int(step.accepted.sum()) for step in of_kind(events, StepEvent)] == [1, 2, 3, 3]


def test_pins_are_left_out_of_the_stop_rule() -> None:
    """The script is silent from position 4 on: only where the rest is pinned, the canvas converges."""
    pins = dict.fromkeys(range(4, 8), 9)
    for pinned, steps in ((pins, 2), ({}, 6)):
        model = tiny.Scripted(PLAIN[:4], prompt=1)
        request = Request((1,), max_new_tokens=8, pins=pinned)
        events = write(model, request, stop_rule=StopRule(), steps=6)
        assert finish(events).denoising_steps == steps


def test_a_pinned_end_ends_the_text(model: DiffusionGemma) -> None:
    events = write(
        model, Request((1, 2), max_new_tokens=16, pins={10: 3}), eos=(3,), stop_rule=None
    )
    end = finish(events)
    assert end.stop_reason == "eos" and 3 in end.ids and len(end.ids) <= 11


# --- observers


def test_observed_fields(model: DiffusionGemma, sampler: Sampler) -> None:
    text, ids = model.config.text, prompt(9)
    observe = Observe(top_k=3, router=True, attention_positions=(6, 0))
    requests = [Request(ids, max_new_tokens=12, id=i, seed=i) for i in range(2)]
    options: dict[str, Any] = {"sampler": sampler, "steps": 6, "stop_rule": None, "batch_size": 2}
    events = write(model, *requests, observe=observe, **options)
    plain = write(model, *requests, **options)
    assert digests(events) == digests(plain), "looking changes nothing"
    assert all(step.observed is None for step in of_kind(plain, StepEvent))
    for step in of_kind(events, StepEvent):
        seen = step.observed
        assert seen.top_ids.shape == seen.top_probabilities.shape == (LENGTH, 3)
        assert torch.equal(seen.top_ids[:, 0], step.argmax)
        torch.testing.assert_close(seen.top_probabilities[:, 0], step.argmax_probability)
        assert (seen.top_probabilities.diff(dim=1) <= 0).all()
        assert seen.router_ids.shape == (len(text.layers), LENGTH, text.top_k_experts)
        assert seen.router_ids.max() < text.num_experts
        assert (seen.router_ids[..., 0] != seen.router_ids[..., 1]).all()
        for layer, router in enumerate(layer.router for layer in model.layers):
            share = seen.router_weights[layer] / router.per_expert_scale[seen.router_ids[layer]]
            torch.testing.assert_close(share.sum(-1), torch.ones(LENGTH))
        prefix = len(ids) + LENGTH * step.canvas
        assert seen.attention.shape == (len(text.layers), 2, text.num_attention_heads, prefix + 8)
        torch.testing.assert_close(seen.attention.sum(-1), torch.ones(len(text.layers), 2, 4))
        unseen = prefix - (text.sliding_window - 1)
        assert unseen > 0
        assert not seen.attention[0, ..., :unseen].any(), "a sliding layer does not look further"
        assert (seen.attention[0, ..., unseen:] > 0).all() and (seen.attention[1] > 0).all()


@pytest.mark.parametrize("observe", [Observe(top_k=1), Observe(router=True), Observe()])
def test_only_what_is_asked_is_observed(model: DiffusionGemma, observe: Observe) -> None:
    for step in of_kind(write(model, Request((1,), max_new_tokens=8), observe=observe), StepEvent):
        seen = step.observed
        assert (
            (seen.top_ids is not None)
            == (seen.top_probabilities is not None)
            == bool(observe.top_k)
        )
        assert (seen.router_ids is not None) == (seen.router_weights is not None) == observe.router
        assert seen.attention is None


def test_observed_attention_is_the_plain_softmax() -> None:
    """One row of 5 prefix tokens, of which the layer sees 3; a canvas of 4; 2 heads a group."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(4, 4, 6, generator=generator)
    keys = torch.randn(2, 3 + 4, 6, generator=generator)
    watcher = Watcher(Observe(attention_positions=(2, 0)), [5], 4)
    watcher.attention(0, 0, queries, keys)
    (weights,) = watcher.attentions[0]
    assert weights.shape == (2, 4, 9)
    for i, position in enumerate((2, 0)):
        for head in range(4):
            expected = (keys[head // 2] @ queries[position, head]).softmax(0)
            torch.testing.assert_close(weights[i, head, 2:], expected)
            assert not weights[i, head, :2].any()


# --- refusals


def state_of(model: DiffusionGemma, **options: Any) -> DecodeState:
    return of_kind(write(model, Request((1, 2), max_new_tokens=16), **options), StepEvent)[-1].state


def token_state_of(model: DiffusionGemma) -> TokenState:
    events = decode_tokens(model, [Request((1, 2), max_new_tokens=4)], eos=())
    return of_kind(events, TokenEvent)[-1].state


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "empty prompt": ({"ids": ()}, "prompt is empty"),
    "no new tokens": ({"max_new_tokens": 0}, "at least 1, got 0"),
    "too long": ({"max_new_tokens": 511}, "511 new ones are more than the model's 512"),
    "stop strings and no tokenizer": ({"stop": ("x",)}, "need a tokenizer"),
    "an image": ({"ids": (1, 40)}, r"placeholder \(token 40\)"),
    "no such token": ({"ids": (1, 48)}, "0 … 47"),
    "seed": ({"seed": -1}, "seed must be at least 0 .*, got -1"),
    "seed, too large": ({"seed": 2**64}, "seed"),
}


@pytest.mark.parametrize(("changes", "words"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_requests(changes: dict[str, Any], words: str) -> None:
    model = tiny.model(1, media_token_ids=(40, 41))
    values = {"ids": (1, 2), "max_new_tokens": 8, **changes}
    with pytest.raises(RequestError, match=words):
        write(model, Request(**values))
    with pytest.raises(RequestError, match=words):
        list(decode_tokens(model, [Request(**values)], temperature=1.0))


def test_an_empty_stop_string(model: DiffusionGemma) -> None:
    with pytest.raises(RequestError, match="empty stop string"):
        write(model, Request((1,), stop=("a", "")), decode=str)


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        ({-1: 3}, "position -1: the answer has 0 … 7"),
        ({8: 3}, "position 8"),
        ({0: 48}, "token 48: the vocabulary has 0 … 47"),
        ({0: -1}, "token -1"),
    ],
)
def test_bad_pins(model: DiffusionGemma, pins: dict[int, int], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        write(model, Request((1,), max_new_tokens=8, pins=pins))


def test_bad_prefixes(model: DiffusionGemma) -> None:
    prefix = model.encode([[1, 2]])
    with pytest.raises(RequestError, match="first tokens, and fewer"):
        write(model, Request((1, 2), prefix=prefix))
    with_prefix = write(model, Request((1, 2, 3), max_new_tokens=8, prefix=prefix))
    assert (
        digests(with_prefix).popitem()[1]
        == digests(write(model, Request((1, 2, 3), max_new_tokens=8))).popitem()[1]
    )


def test_bad_states(model: DiffusionGemma) -> None:
    never = StopRule(stability=0, confidence=1e-9)
    state = state_of(model, stop_rule=never)
    good = Request((1, 2), max_new_tokens=16, state=state)
    assert state.step == 5 and len(state.committed) == 8
    for changes, options, words in (
        ({"ids": (1, 3)}, {}, "another prompt"),
        ({"max_new_tokens": 8}, {}, "has 8 tokens already"),
        ({"pins": {7: state.committed[7] ^ 1}}, {}, "position 7: its canvas has been committed"),
        ({"state": token_state_of(model)}, {}, "other mode"),
        ({}, {"steps": state.step - 1}, "at least as many"),
        ({}, {"stop_rule": StopRule(stability=2)}, "stability 0"),
        ({"state": state_of(model, stop_rule=None)}, {}, "made without a stop rule"),
    ):
        with pytest.raises(RequestError, match=words):
            write(model, replace(good, **changes), **{"stop_rule": never, **options})
    with pytest.raises(RequestError, match="other mode"):
        list(decode_tokens(model, [good]))
    assert len(finish(write(model, replace(good, pins={7: state.committed[7]}))).ids) == 16


def test_bad_options(model: DiffusionGemma) -> None:
    request = Request((1, 2), max_new_tokens=8)
    for options, words in (
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 2, "sampler": DiscreteDDIM(corrector_steps=1)}, "no room"),
        ({"batch_size": 0}, "batch_size must be at least 1 and at most 2147483647, got 0"),
        ({"batch_size": 2**64 - 1}, "batch_size must be at least 1 and at most"),
        ({"soft_top_k": 0}, "soft_top_k must be at least 1 and at most 48"),
        ({"soft_top_k": 49}, "soft_top_k must be at least 1 and at most 48"),
        (
            {"observe": Observe(attention_positions=(8,))},
            "position must be at least 0 and at most 7, got 8",
        ),
        ({"observe": Observe(attention_positions=(-1,))}, "position must be at least 0"),
        ({"observe": Observe(top_k=49)}, "0 … 48"),
        ({"sampler": "entropy_bound"}, "sampler must be a rule"),
        ({"draws": 5}, "draws must be where numbers come from"),
    ):
        with pytest.raises(RequestError, match=words):
            write(model, request, **options)
    with pytest.raises(RequestError, match="top_k must be at least 0"):
        Observe(top_k=-1)
    gemma = tiny.model(can_denoise=False)
    with pytest.raises(RequestError, match="no denoiser"):
        write(gemma, request)
    for options, words in (
        ({"temperature": -0.5}, "temperature must be 0, or from"),
        ({"filters": Filters(top_k=3)}, "no effect at temperature 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"observe": Observe(router=True)}, "observe top_k only"),
        ({"observe": Observe(attention_positions=(0,))}, "observe top_k only"),
        ({"draws": torch.Generator()}, "draws must be where numbers come from"),
    ):
        with pytest.raises(RequestError, match=words):
            list(decode_tokens(model, [request], **options))
    with pytest.raises(RequestError, match="pins have no meaning"):
        list(decode_tokens(model, [replace(request, pins={0: 1})]))


@pytest.mark.parametrize("method", ["encode", "denoise"])
@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of GPU memory: lower batch_size"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "out of memory: lower batch_size",
        ),
        (MemoryError(), "out of memory: lower batch_size"),
    ],
)
def test_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, method: str, failure: Exception, words: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    model = tiny.model(1)
    monkeypatch.setattr(model, method, fail)
    with pytest.raises(DeviceError, match=words) as caught:
        write(model, Request((1, 2), max_new_tokens=8))
    assert "\n" not in str(caught.value)
    failure = RuntimeError("a defect")
    with pytest.raises(RuntimeError, match="a defect"):
        write(model, Request((1, 2), max_new_tokens=8))


def test_a_bad_request_costs_the_others_nothing(model: DiffusionGemma) -> None:
    """It is refused when it would join; what came before has been told."""
    events = denoise_canvases(
        model, [Request((1,), max_new_tokens=8, id="good"), Request(())], stop_rule=None, steps=2
    )
    heard = []
    with pytest.raises(RequestError, match="empty"):
        for event in events:
            heard.append(event)
    assert isinstance(heard[-1], FinishEvent)


# --- autoregression


def spell(model: DiffusionGemma, *requests: Request, **options: Any) -> list[Event]:
    return list(decode_tokens(model, requests, **{"eos": (), **options}))


def test_greedy_is_the_plain_loop(model: DiffusionGemma) -> None:
    """Token by token, the prefix encoded anew each time."""
    ids, expected = list(prompt(9)), []
    events = spell(model, Request(prompt(9), max_new_tokens=12))
    for event in of_kind(events, TokenEvent):
        hidden = model.encode([ids]).hidden
        logits = model.logits(hidden[:, -1:]).double()
        plain = plain_head.predict(logits, 0.0, reference="raw")
        expected.append(int(plain.argmax))
        assert event.token == expected[-1]
        assert event.probability == pytest.approx(float(plain.argmax_probability), rel=1e-4)
        assert event.entropy == pytest.approx(float(plain.entropy), rel=1e-4)
        ids.append(event.token)
    assert finish(events).ids == tuple(expected) and len(expected) == 12


@pytest.mark.parametrize("filters", [None, Filters(5), Filters(None, 0.8)])
def test_sampling_is_the_plain_loop(model: DiffusionGemma, filters: Filters | None) -> None:
    """Token i takes the number (seed, canvas 0, step i); probability and entropy are the raw ones."""
    ids = list(prompt(8))
    request = Request(prompt(8), seed=21, max_new_tokens=12)
    for event in of_kind(spell(model, request, temperature=0.7, filters=filters), TokenEvent):
        logits = model.logits(model.encode([ids]).hidden[0, -1]).double()
        p = plain_head.cut(logits / 0.7, filters).softmax(-1)
        uniform = CounterDraws().step([RowKey(21, 0)], [event.index], 1).uniform
        assert event.token == int(inverse_cdf(p[None, None], uniform))
        raw = logits.softmax(-1)
        assert event.probability == pytest.approx(float(raw[event.token]), rel=1e-4)
        assert event.entropy == pytest.approx(float(-(raw * raw.log()).sum()), rel=1e-4)
        ids.append(event.token)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_spelled_text_does_not_depend_on_its_batch(
    model: DiffusionGemma, temperature: float
) -> None:
    options = {"temperature": temperature, "eos": (3, 14, 25, 33)}
    alone = spell(model, *eight(), **options)
    for batch_size, requests in ((3, eight()[::-1]), (8, eight())):
        assert digests(spell(model, *requests, batch_size=batch_size, **options)) == digests(alone)
    lengths = {len(event.ids) for event in of_kind(alone, FinishEvent)}
    assert len(lengths) > 2 and max(lengths) == 20


def test_seeds_of_spelled_texts(model: DiffusionGemma) -> None:
    def text(seed: int, temperature: float) -> tuple[int, ...]:
        request = Request(prompt(5), seed=seed, max_new_tokens=12)
        return finish(spell(model, request, temperature=temperature)).ids

    assert len({text(seed, 0.0) for seed in range(3)}) == 1
    assert len({text(seed, 1.0) for seed in range(5)}) == 5
    assert text(3, 1.0) == text(3, 1.0)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_token_state_continues_exactly(model: DiffusionGemma, temperature: float) -> None:
    """A token's state is the one that it was predicted from: the token comes again, then the rest."""
    request = Request(prompt(7), seed=4, max_new_tokens=9, id="run")
    events = spell(model, request, temperature=temperature)
    for i, event in enumerate(events):
        if not isinstance(event, TokenEvent):
            continue
        again = replace(request, seed=0, state=event.state)
        resumed = spell(model, again, temperature=temperature)
        assert len(resumed) == len(events) - i + 1
        assert all(map(same, resumed[1:], events[i:]))


def test_spelling_observes_the_top(model: DiffusionGemma) -> None:
    requests = [Request(prompt(i), max_new_tokens=4, id=i) for i in (3, 6)]
    for event in of_kind(
        spell(model, *requests, observe=Observe(top_k=4), batch_size=2), TokenEvent
    ):
        assert event.observed.top_ids.shape == event.observed.top_probabilities.shape == (1, 4)
        assert event.observed.top_ids[0, 0] == event.token
        assert float(event.observed.top_probabilities[0, 0]) == pytest.approx(event.probability)


def test_checkpoints_without_a_denoiser_spell() -> None:
    gemma = tiny.model(can_denoise=False, model_type="gemma4_text")
    assert len(finish(spell(gemma, Request((1, 2), max_new_tokens=5))).ids) == 5
