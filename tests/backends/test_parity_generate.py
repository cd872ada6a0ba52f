"""Generation on every backend against transformers' `generate`, token for token.

Both sides make the same draws in the same order (tests/oracle/lockstep.py).

Nothing is picked: case n is drawn from the number n and runs under the random seed n. Where a run
first differs, every difference of that step must be a near-tie by the oracle's own numbers
(tests/oracle/ties.py); from there on the two texts are different texts and nothing is compared.
Self-conditioning can make noise grow from step to step: how far the oracle with sdpa is by then
from the oracle with eager attention says how much.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import DiffusionGemmaForBlockDiffusion

from dgemma_core.backends.cpu import small_model
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.files.checkpoint import load_model
from dgemma_core.model import DiffusionGemma
from dgemma_core.request import Request
from dgemma_core.samplers import EntropyBound, StopRule
from tests.backends import same
from tests.backends.serving import SERVED, put
from tests.oracle import lockstep
from tests.oracle.build import Drawn, aligned, diffusion_oracle, draw, random_ids, resized, save
from tests.oracle.draws import OracleDraws
from tests.oracle.record import Knobs, OracleRun, OracleStep, generate, occurrences
from tests.oracle.ties import (
    LOGITS,
    RowStep,
    differences,
    mistakes,
    mistakes_from_uniforms,
    oracle_row,
    race,
)

CASES = range(36)
PARTED = 0.01
"""Raw logits by which two runs of the oracle differ once a router has chosen otherwise; rounding takes 1e-3."""

pytestmark = pytest.mark.slow
"""Every test here reads texts that take a minute to write."""


@dataclass(frozen=True)
class Case:
    """One generation: a model, prompts (B, P) of equal length, the sampler's settings."""

    number: int
    drawn: Drawn
    prompts: torch.Tensor
    canvases: int
    knobs: Knobs

    @property
    def max_new_tokens(self) -> int:
        return self.canvases * self.drawn.canvas_length


def draw_case(number: int, is_aligned: bool = False) -> Case:
    """Case `number`, its widths as drawn or aligned.

    A random model is unsure of itself, so some thresholds are far more lenient than the released ones, and a few tokens
    in dozens end a text.
    """
    rng = random.Random(f"drawn generation {number}")
    drawn = draw(1000 + number)
    if is_aligned:
        drawn = aligned(drawn, small_model.UNIT)
    vocab = drawn.text["vocab_size"]
    batch, length = rng.choice([1, 2, 3]), rng.randint(1, 12)
    pad, *eos = rng.sample(range(vocab), 1 + rng.choice([1, 3, 5]))
    types = drawn.text["layer_types"][-3:]
    drawn = resized(drawn, pad_token_id=pad, layer_types=types, num_hidden_layers=len(types))
    t_min, t_max = rng.choice([(0.4, 0.8), (0.4, 0.8), (0.2, 0.5), (0.3, 1.0)])
    knobs = Knobs(
        steps=rng.choice([4, 7, 10]),
        entropy_bound=rng.choice([0.1, 0.1, 1.0, 4.0]),
        t_min=t_min,
        t_max=t_max,
        stability=rng.choice([0, 1, 1, 2]),
        confidence=rng.choice([0.005, 1.0, 2.0, 3.0]),
        eos=tuple(eos),
        pad=pad,
    )
    prompts = random_ids(vocab, (batch, length), number)
    return Case(number, drawn, prompts, rng.choice([2, 3, 4]), knobs)


def sampler_of(knobs: Knobs) -> EntropyBound:
    return EntropyBound(entropy_bound=knobs.entropy_bound, t_min=knobs.t_min, t_max=knobs.t_max)


def oracle_run(oracle: DiffusionGemmaForBlockDiffusion, case: Case) -> OracleRun:
    return generate(
        oracle, case.prompts, case.knobs, seed=case.number, max_new_tokens=case.max_new_tokens
    )


def our_run(model: DiffusionGemma, case: Case, sampler: EntropyBound | None = None) -> lockstep.Run:
    """Our run of a case: its prompts as one batch, its seed, the oracle's order of draws."""
    return lockstep.write(
        model,
        case.prompts,
        case.knobs,
        OracleDraws(torch.Generator().manual_seed(case.number)),
        max_new_tokens=case.max_new_tokens,
        sampler=sampler,
    )


@dataclass(frozen=True)
class Outcome:
    """Where the runs first differ (None: nowhere), and what of it no near-tie explains."""

    differ_at: str | None
    mistakes: list[str]


def own_noise(case: Case, step: OracleStep, row: int) -> float:
    """How far the oracle is, at this step, from itself with its other attention, in raw logits;
    infinite if these two have parted, here or before."""
    attention = "eager" if case.drawn.attention == "sdpa" else "sdpa"
    other = diffusion_oracle(replace(case.drawn, attention=attention))
    canvases = oracle_run(other, case).canvases
    if not (step.canvas < len(canvases) and step.step < len(canvases[step.canvas])):
        return math.inf
    again = canvases[step.canvas][step.step]
    if again.latched[row] or not torch.equal(again.tokens_in[row], step.tokens_in[row]):
        return math.inf
    apart = (again.logits[row] - step.logits[row]).abs().max()
    return math.inf if apart > PARTED else float(apart) * case.knobs.temperature(step.step)


def compare(written: lockstep.Run, case: Case, run: OracleRun) -> Outcome:
    """Step by step, row by row, until the first difference."""
    ours = {(step.canvas, step.step, step.row): step for step in written.steps}
    for canvas in run.canvases:
        for step in canvas:
            found: list[str] = []
            wrong: list[str] = []
            for row in range(len(case.prompts)):
                if step.latched[row]:
                    continue
                where = f"case {case.number}, canvas {step.canvas}, step {step.step}, row {row}"
                made = ours.pop((step.canvas, step.step, row), None)
                if made is None:
                    return Outcome(where, [f"{where}: no such step"])
                if not torch.equal(made.tokens_in, step.tokens_in[row]):
                    return Outcome(where, [f"{where}: the canvas before the step"])
                names = differences(made.did, oracle_row(step, row))
                if names:
                    found.append(f"{where}: {', '.join(names)}")
                    noise = max(LOGITS, 4 * own_noise(case, step, row))
                    if noise < math.inf:
                        judged = mistakes(made.did, step, row, case.knobs, noise)
                        wrong += [f"{where}: {mistake}" for mistake in judged]
            if found:
                return Outcome("; ".join(found), wrong)
    return Outcome("its end", [f"{len(ours)} steps too many"]) if ours else Outcome(None, [])


@dataclass(frozen=True)
class Both:
    case: Case
    model: DiffusionGemma
    run: OracleRun
    written: lockstep.Run
    outcome: Outcome


@pytest.fixture(scope="module")
def oracle_runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[bool], list[tuple[Case, Path, OracleRun]]]:
    """Every case, with its widths as drawn or aligned, its checkpoint, and what the oracle wrote."""

    @cache
    def of(is_aligned: bool) -> list[tuple[Case, Path, OracleRun]]:
        found = []
        for number in CASES:
            case = draw_case(number, is_aligned)
            oracle = diffusion_oracle(case.drawn)
            folder = save(oracle, tmp_path_factory.mktemp(f"case{number}"))
            found.append((case, folder, oracle_run(oracle, case)))
        return found

    return of


@pytest.fixture(scope="module", params=SERVED["float32, aligned"])
def runs(
    request: pytest.FixtureRequest,
    oracle_runs: Callable[[bool], list[tuple[Case, Path, OracleRun]]],
) -> list[Both]:
    both = []
    for case, folder, run in oracle_runs(request.param == "C"):
        model = put(load_model(folder, dtype="float32", device="cpu"), request.param)
        written = our_run(model, case)
        both.append(Both(case, model, run, written, compare(written, case, run)))
    return both


def equal(runs: list[Both]) -> list[Both]:
    return [both for both in runs if both.outcome.differ_at is None]


def test_every_step_is_the_oracles_or_a_near_tie(runs: list[Both]) -> None:
    assert not [mistake for both in runs for mistake in both.outcome.mistakes]
    ties = [both.outcome.differ_at for both in runs if both.outcome.differ_at is not None]
    print(f"{len(runs) - len(ties)} of {len(runs)} runs equal; near-ties: {ties}")
    assert len(equal(runs)) >= 30


def test_texts_are_the_oracles(runs: list[Both]) -> None:
    """Kept tokens, then PAD, are what the oracle returns; so is the number of steps."""
    for both in equal(runs):
        case, length = both.case, both.case.prompts.shape[1]
        assert torch.equal(both.written.sequences, both.run.sequences[:, length:]), case.number
        for row, text in enumerate(both.written.texts):
            theirs = both.run.sequences[row, length:].tolist()
            assert list(text.ids) == theirs[: len(text.ids)]
            ended = bool(set(text.ids) & set(case.knobs.eos))
            assert text.reason == ("eos" if ended else "length")
            assert text.canvases == -(-len(text.ids) // case.drawn.canvas_length)
            steps = [s for canvas in both.run.canvases[: text.canvases] for s in canvas]
            assert text.denoising_steps == sum(not s.latched[row] for s in steps)
            not_pad = sum(token != case.knobs.pad for token in theirs)
            a_forward = float(both.run.tokens_per_forward[row])
            assert not_pad / text.denoising_steps == pytest.approx(a_forward)


def test_the_product_loop_writes_the_same_as_the_lockstep(runs: list[Both]) -> None:
    """With equal draws, the loop in which rows join and leave gives each row the lockstep's steps and text."""
    texts = ties = 0
    for both in runs:
        case, knobs = both.case, both.case.knobs
        seeds = [100 + row for row in range(len(case.prompts))]
        expected = lockstep.write(
            both.model,
            case.prompts,
            knobs,
            CounterDraws(),
            seeds=seeds,
            max_new_tokens=case.max_new_tokens,
        )
        requests = [
            Request(ids=tuple(ids), seed=seed, max_new_tokens=case.max_new_tokens, id=row)
            for row, (ids, seed) in enumerate(zip(case.prompts.tolist(), seeds, strict=True))
        ]
        events = denoise_canvases(
            both.model,
            requests,
            sampler=sampler_of(knobs),
            steps=knobs.steps,
            stop_rule=StopRule(stability=knobs.stability, confidence=knobs.confidence),
            batch_size=2,
            eos=knobs.eos,
        )
        for row, ours in same.Run.of_each(both.model, list(events)).items():
            theirs = {(s.canvas, s.step): s for s in expected.steps if s.row == row}
            where, wrong = _parted(ours, theirs, knobs)
            assert not wrong, f"case {case.number}, row {row}, {where}: {wrong}"
            ties += where is not None
            if where is None:
                text = expected.texts[row]
                assert (ours.end.ids, ours.end.stop_reason) == (text.ids, text.reason)
                assert ours.end.canvases == text.canvases
                assert ours.end.denoising_steps == text.denoising_steps
            texts += 1
    assert texts > 60 and ties <= 6


def _parted(
    ours: same.Run, theirs: Mapping[tuple[int, int], lockstep.Step], knobs: Knobs
) -> tuple[str | None, list[str]]:
    """Where our run first differs from the lockstep's, and what of it no near-tie explains."""
    for index, event in enumerate(ours.steps):
        step, did = theirs[event.canvas, event.step], same.done(event)
        assert torch.equal(event.tokens_in, step.tokens_in)
        names = differences(did, step.did)
        if names:
            noise = float((ours.logits(index) - step.logits).abs().max()) * event.temperature
            key = RowKey(event.state.seed, event.canvas)
            uniform = CounterDraws().step([key], [event.step], len(event.argmax)).uniform[0]
            wrong = mistakes_from_uniforms(
                did, step.did, step.logits, uniform, event.temperature, knobs,
                max(LOGITS, 2 * min(noise, PARTED)),
            )  # fmt: skip
            return f"canvas {event.canvas}, step {event.step}: {names}", wrong
    return None, []


def test_the_runs_show_what_generation_can_do(runs: list[Both]) -> None:
    counts: Counter[str] = Counter()
    for both in equal(runs):
        counts += occurrences(both.run, both.case.knobs, both.case.prompts.shape[1])
        counts["runs of one row" if len(both.case.prompts) == 1 else "runs of several rows"] += 1
        counts["runs of several canvases"] += len(both.run.canvases) > 1
    print(dict(counts))
    required = {
        "runs of one row": 10,
        "runs of several rows": 10,
        "runs of several canvases": 20,
        "early stops": 10,
        "EOS in mid-canvas": 5,
        "unconverged canvases": 20,
        "re-melts": 100,
        "rows that wait for others": 3,
        "canvases after a row's end": 3,
    }
    assert not {name: counts[name] for name, least in required.items() if counts[name] < least}


# ---- the judge of near-ties is itself judged ----------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "factor"), [("t_max", 1.01), ("t_min", 1.01), ("entropy_bound", 1.2)]
)
def test_a_slightly_wrong_sampler_is_not_taken_for_ties(
    setting: str, factor: float, runs: list[Both]
) -> None:
    """Not every run notices; one that does must not call it a tie. (One may meet a true tie.)"""
    noticed, forgiven = 0, []
    for both in equal(runs):
        right = sampler_of(both.case.knobs)
        wrong = replace(right, **{setting: factor * getattr(right, setting)})
        outcome = compare(our_run(both.model, both.case, wrong), both.case, both.run)
        noticed += outcome.differ_at is not None
        if outcome.differ_at is not None and not outcome.mistakes:
            forgiven.append(outcome.differ_at)
        if noticed == 5:
            break
    assert noticed == 5 and len(forgiven) <= 1, forgiven


NOISE = 4  # never the sample below, so that noise is told from samples


def made_up(
    logits: torch.Tensor | None = None, bound: float = 0.4, confidence: float = 0.2
) -> tuple[OracleStep, Knobs]:
    """One step of one row, four positions, five tokens; as it stands, nothing is near a tie."""
    if logits is None:
        logits = torch.tensor(
            [
                [9.0, 1.0, 0.0, 0.5, 0.2],
                [0.3, 5.0, 0.1, 2.5, 0.0],
                [1.0, 0.2, 2.0, 0.1, 0.0],
                [0.5, 0.4, 0.2, 0.1, 1.0],
            ]
        )
    knobs = Knobs(
        steps=1,
        entropy_bound=bound,
        t_min=0.5,
        t_max=1.0,
        stability=0,
        confidence=confidence,
        eos=(1,),
    )
    entropy = torch.distributions.Categorical(logits=logits).entropy()  # ascending by construction
    assert torch.equal(entropy.argsort(), torch.arange(4))
    accepted = (entropy.cumsum(0) - entropy <= bound)[None]
    step = OracleStep(
        canvas=0,
        step=0,
        tokens_in=torch.full((1, 4), NOISE),
        tokens_out=torch.full((1, 4), NOISE),
        argmax=logits.argmax(-1)[None],
        accepted=accepted,
        logits=logits[None],
        latched=torch.tensor([False]),
        finished=(entropy.mean() < confidence)[None],
        random_state=torch.Generator().manual_seed(0).get_state(),
    )
    step.tokens_out[accepted] = oracle_row(step, 0).sample[accepted[0]]
    return step, knobs


def edited(row: RowStep, field: str, position: int, value: int | bool) -> RowStep:
    tensor = getattr(row, field).clone()
    tensor[position] = value
    return replace(row, **{field: tensor})


def test_a_step_is_no_different_from_itself() -> None:
    step, knobs = made_up()
    assert step.accepted.tolist() == [[True, True, True, False]]
    assert differences(oracle_row(step, 0), oracle_row(step, 0)) == []
    assert mistakes(oracle_row(step, 0), step, 0, knobs) == []


@pytest.mark.parametrize(
    ("field", "position", "value", "verdict"),
    [
        ("argmax", 1, 3, "argmax at 1"),
        ("sample", 3, 1, "sample at 3"),
        ("accepted", 3, True, "accepted at 3"),
        ("accepted", 1, False, "accepted at 1"),
        ("tokens_out", 3, 2, "noise at 3"),
        ("tokens_out", 0, 2, "accepted token at 0"),
    ],
)
def test_a_wide_margin_is_a_mistake(field: str, position: int, value: int, verdict: str) -> None:
    step, knobs = made_up()
    ours = edited(oracle_row(step, 0), field, position, value)
    assert differences(ours, oracle_row(step, 0)) == [field]
    assert any(found.startswith(verdict) for found in mistakes(ours, step, 0, knobs))


def test_finishing_far_from_the_threshold_is_a_mistake() -> None:
    step, knobs = made_up()
    ours = replace(oracle_row(step, 0), finished=True)
    assert mistakes(ours, step, 0, knobs)[0].startswith("finished")


def test_the_same_differences_within_reach_of_noise_are_ties() -> None:
    step, _ = made_up()
    logits = step.logits[0]
    entropy = torch.distributions.Categorical(logits=logits).entropy()

    closest = logits.clone()
    closest[1, 3] = logits[1, 1] - 1e-5  # two best tokens
    tie, knobs = made_up(closest, bound=2.0)
    assert mistakes(edited(oracle_row(tie, 0), "argmax", 1, 3), tie, 0, knobs) == []

    best, second = race(step)[0, 3].topk(2).indices.tolist()
    closest = logits.clone()
    closest[3, second] += race(step)[0, 3, best] - race(step)[0, 3, second] - 1e-5
    tie, knobs = made_up(closest)
    assert oracle_row(tie, 0).sample[3] == best
    assert mistakes(edited(oracle_row(tie, 0), "sample", 3, second), tie, 0, knobs) == []

    tie, knobs = made_up(bound=float(entropy[:3].sum()) + 1e-5)  # what position 3 finds used
    assert tie.accepted[0, 3]
    ours = edited(edited(oracle_row(tie, 0), "accepted", 3, False), "tokens_out", 3, NOISE)
    assert mistakes(ours, tie, 0, knobs) == []

    tie, knobs = made_up(confidence=float(entropy.mean()) + 1e-5)
    assert tie.finished[0]
    assert mistakes(replace(oracle_row(tie, 0), finished=False), tie, 0, knobs) == []
