"""The rules against their public implementations, step by step with the same draws, and their laws.

Oracles: diffusers' schedulers and the pipeline that drives them; transformers' EntropyBoundSampler,
temperature schedule and stopping criteria.
"""

import json
import math
import random
from dataclasses import dataclass, replace
from functools import partialmethod
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.errors import RequestError
from dgemma_core.samplers import (
    BlockRefinement,
    CanvasBatch,
    DiscreteDDIM,
    EntropyBound,
    PlannedStep,
    StopRule,
    describe,
    sampler_from,
)
from tests.oracle.draws import OracleDraws

from .plain_head import predict

COUNTER = CounterDraws()
LAWS = settings(deadline=None, derandomize=True)


@dataclass(frozen=True)
class Case:
    """A drawn problem: shapes, and logits for any pass, from nearly flat to nearly certain."""

    seed: int
    batch: int
    length: int
    size: int
    steps: int

    @classmethod
    def draw(cls, seed: int) -> "Case":
        pick = random.Random(seed).choice
        lengths, sizes = [1, 2, 7, 16, 40], [2, 3, 17, 200, 1500]
        return cls(seed, pick([1, 2, 3]), pick(lengths), pick(sizes), pick([1, 2, 5, 12, 24]))

    def logits(self, index: int) -> torch.Tensor:
        """(B, C, V) float32; each position has its own sharpness."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + index)
        sharpness = (torch.rand(self.batch, self.length, 1, generator=generator) * 5 - 1).exp()
        shape = (self.batch, self.length, self.size)
        return (torch.randn(shape, generator=generator) * sharpness).clamp(-30, 30)

    @property
    def keys(self) -> list[RowKey]:
        return [RowKey(self.seed + row, 0) for row in range(self.batch)]

    def start(self, draws) -> CanvasBatch:
        canvas = draws.first_canvas(self.keys, self.length, self.size)
        none = torch.zeros_like(canvas, dtype=torch.bool)
        return CanvasBatch(canvas, none, none, (), self.steps, self.size)


def advance(sampler, state, logits, planned, draws, keys):
    """One pass of all rows at their planned steps: (next state, accepted, prediction)."""
    numbers = draws.step(keys, [step.index for step in planned], state.canvas.shape[1])
    prediction = predict(
        logits,
        torch.tensor([step.temperature for step in planned]),
        numbers,
        reference=sampler.reference,
        filters=sampler.filters,
        top_k=min(2, logits.shape[-1]),
    )
    state, accepted = sampler.step(replace(state, plan=tuple(planned)), prediction, numbers)
    return state, accepted, prediction


def passes(sampler, case: Case, draws):
    """A whole schedule: yields (planned step, logits, state before, state after, prediction)."""
    state = case.start(draws)
    for planned in sampler.plan(case.steps):
        before, logits = state, case.logits(planned.index)
        state, accepted, prediction = advance(
            sampler, before, logits, [planned] * case.batch, draws, case.keys
        )
        assert torch.equal(accepted, state.accepted)
        yield planned, logits, before, state, prediction


def generators(seed: int) -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)


# --- against diffusers: whole schedules, the same draws ---


@pytest.mark.parametrize("seed", range(30))
def test_entropy_bound_equals_diffusers(seed):
    from diffusers import EntropyBoundScheduler

    case, chance = Case.draw(seed), random.Random(seed)
    t_min = chance.choice([0.1, 0.4, 0.55])
    options = dict(
        entropy_bound=chance.choice([0.01, 0.1, 1.0, 10.0]),
        t_min=t_min,
        t_max=t_min + chance.choice([0.1, 0.4, 1.0]),
    )
    oracle = EntropyBoundScheduler(**options)
    oracle.set_timesteps(case.steps)
    ours, theirs = generators(seed)
    torch.randint(0, case.size, (case.batch, case.length), generator=theirs)
    run = passes(EntropyBound(**options), case, OracleDraws(ours))
    for planned, logits, before, after, prediction in run:
        expected = oracle.step(logits, planned.index, before.canvas, generator=theirs)
        assert torch.equal(after.canvas, expected.prev_sample)
        assert torch.equal(after.accepted, expected.accepted_index)
        assert torch.equal(prediction.sample, expected.sampled_tokens)
        torch.testing.assert_close(prediction.sample_probability, expected.sampled_probs)
    assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("seed", range(40))
def test_block_refinement_equals_diffusers(seed, monkeypatch):
    """Of equal probabilities (many round to 1) the lowest position goes first here; diffusers
    leaves that to an unstable sort, made stable for the comparison."""
    from diffusers import BlockRefinementScheduler

    argsort = torch.Tensor.argsort
    stable = partialmethod(argsort, stable=True)

    case, chance = Case.draw(seed), random.Random(seed)
    temperature = chance.choice([0.0, 0.6, 1.0, 1.7])
    filters = dict(
        top_k=chance.choice([None, 1, 3, 50]) if temperature else None,
        top_p=chance.choice([None, 0.3, 0.9, 1.0]) if temperature else None,
    )
    options = dict(
        threshold=chance.choice([0.5, 0.95, 1.0]),
        editing_threshold=chance.choice([None, 0.2, 0.6]),
    )
    oracle = BlockRefinementScheduler(**options)
    oracle.set_timesteps(case.steps, block_length=case.length)
    ours, theirs = generators(seed)
    torch.randint(0, case.size, (case.batch, case.length), generator=theirs)
    sampler = BlockRefinement(temperature=temperature, **filters, **options)
    for planned, logits, before, after, prediction in passes(sampler, case, OracleDraws(ours)):
        monkeypatch.setattr(torch.Tensor, "argsort", stable)
        how = dict(temperature=temperature, generator=theirs, **filters)
        expected = oracle.step(logits, planned.index, before.canvas, **how)
        monkeypatch.setattr(torch.Tensor, "argsort", argsort)
        assert torch.equal(after.canvas, expected.prev_sample)
        assert torch.equal(after.accepted & ~before.accepted, expected.transfer_index)
        assert torch.equal(prediction.sample, expected.sampled_tokens)
        torch.testing.assert_close(prediction.sample_probability, expected.sampled_probs)
        if options["editing_threshold"] is not None:
            kept = before.accepted & (before.canvas != after.canvas)
            assert torch.equal(kept, expected.editing_transfer_index)
    assert after.accepted.all()
    assert torch.equal(ours.get_state(), theirs.get_state())


def ddim_options(seed: int) -> dict:
    """Drawn settings; half of the seeds with a corrector."""
    chance = random.Random(seed)
    options = dict(temperature=chance.choice([0.0, 0.7, 1.0]))
    if seed % 2:
        options |= dict(
            corrector_steps=chance.choice([1, 2, 3]),
            corrector_k=chance.choice([1, 2, 100]),
            corrector_selection_tau=chance.choice([0.05, 1.0, 5.0]),
        )
    return options


@pytest.mark.parametrize("seed", range(40))
def test_discrete_ddim_equals_diffusers(seed):
    """Predictor and corrector alike; a sweep's step number is that of the prediction before it."""
    from diffusers import DiscreteDDIMScheduler

    case, options = Case.draw(seed), ddim_options(seed)
    sampler = DiscreteDDIM(**options)
    case = replace(case, steps=max(case.steps, sampler.corrector_steps + 2))
    temperature = options.pop("temperature")
    oracle = DiscreteDDIMScheduler(**options)
    predictions = [step for step in sampler.plan(case.steps) if step.kind == "predict"]
    oracle.set_timesteps(len(predictions))
    ours, theirs = generators(seed)
    torch.randint(0, case.size, (case.batch, case.length), generator=theirs)
    timestep = -1
    for planned, logits, before, after, prediction in passes(sampler, case, OracleDraws(ours)):
        if planned.kind == "correct":
            expected = oracle.step_correct(logits, timestep, before.canvas, generator=theirs)
        else:
            timestep += 1
            expected = oracle.step(
                logits, timestep, before.canvas, temperature=temperature, generator=theirs
            )
            assert torch.equal(prediction.sample, expected.sampled_tokens)
        assert torch.equal(after.canvas, expected.prev_sample)
    assert torch.equal(after.canvas, prediction.sample) and after.accepted.all()
    assert torch.equal(ours.get_state(), theirs.get_state())


class Recorder:
    """Stands where diffusers' pipeline expects a model: answers with a case's logits, and keeps
    the canvas and the self-conditioning logits of every call."""

    def __init__(self, case: Case):
        self.case, self.canvases, self.conditions = case, [], []
        text = SimpleNamespace(vocab_size=case.size)
        self.config = SimpleNamespace(
            canvas_length=case.length, get_text_config=lambda decoder: text
        )
        mask = SimpleNamespace(create_diffusion_decoder_attention_mask=lambda **_: None)
        self.model = SimpleNamespace(encoder=lambda **_: None, decoder=mask)

    def __call__(self, *, decoder_input_ids, self_conditioning_logits, **_):
        self.canvases.append(decoder_input_ids)
        self.conditions.append(self_conditioning_logits)
        return SimpleNamespace(logits=self.case.logits(len(self.canvases) - 1))


class Prompts:
    """Stands where the pipeline expects a processor: a prompt is one token a row."""

    def __init__(self, batch: int):
        self.ids = torch.zeros(batch, 1, dtype=torch.long)

    def apply_chat_template(self, messages, **_):
        return {"input_ids": self.ids}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["entropy_bound", "block_refinement", "discrete_ddim"])
def test_plan_equals_the_pipelines_passes(name, seed):
    """As many forward passes as the budget, in its order, on the same canvases; soft embeddings are
    those of the last "predict" pass, at the plan's temperature where the rule says "tempered"."""
    import diffusers
    from diffusers.pipelines.diffusion_gemma import pipeline_diffusion_gemma as pipeline

    case = Case.draw(seed)
    options = ddim_options(seed) if name == "discrete_ddim" else {}
    sampler = sampler_from(name, **options)
    if name == "discrete_ddim":
        case = replace(case, steps=max(case.steps, sampler.corrector_steps + 2))
    temperature = options.pop("temperature", 0.0)
    scheduler = {
        "entropy_bound": diffusers.EntropyBoundScheduler,
        "block_refinement": diffusers.BlockRefinementScheduler,
        "discrete_ddim": diffusers.DiscreteDDIMScheduler,
    }[name](**options)
    model = Recorder(case)
    oracle = pipeline.DiffusionGemmaPipeline(model, scheduler, Prompts(case.batch))
    oracle.set_progress_bar_config(disable=True)
    ours, theirs = generators(seed)
    cache = SimpleNamespace(get_seq_length=lambda: 0)
    with mock.patch.object(pipeline, "DynamicCache", lambda config: cache):
        result = oracle(
            "",
            gen_length=case.length,
            num_inference_steps=case.steps,
            temperature=temperature,
            confidence_threshold=None,
            generator=theirs,
            output_type="seq",
        )
    condition = None
    run = list(passes(sampler, case, OracleDraws(ours)))
    for planned, logits, before, _, _ in run:
        assert torch.equal(before.canvas, model.canvases[planned.index])
        theirs_condition = model.conditions[planned.index]
        assert (condition is None) == (theirs_condition is None)
        if condition is not None:
            torch.testing.assert_close(condition, theirs_condition)
        if planned.kind == "predict":
            tempered = sampler.reference == "tempered"
            condition = logits / planned.temperature if tempered else logits
    assert planned.index + 1 == len(model.canvases) == case.steps
    assert torch.equal(run[-1][3].canvas, result.sequences)


# --- against transformers: the model's own sampler with its stop ---


def run_transformers(case: Case, logits, sampler: EntropyBound, rule: StopRule):
    """transformers' parts, driven as its denoising step does, on the global generator. Per pass:
    canvas before, canvas after, argmax, accepted, finished."""
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as oracle

    schedule = oracle.LinearTemperatureScheduleLogitsProcessor(
        sampler.t_min, sampler.t_max, case.steps
    )
    config = oracle.EntropyBoundSamplerConfig(sampler.entropy_bound)
    rules = oracle.EntropyBoundSampler(config, case.length, case.size, case.steps)
    stop = oracle.StableAndConfidentStoppingCriteria(rule.stability, rule.confidence)
    canvas = argmax = rules.initialize_canvas(case.batch, torch.device("cpu"))
    finished = torch.zeros(case.batch, dtype=torch.bool)
    frozen = torch.zeros(case.batch, case.length, case.size)
    for index in range(case.steps):
        before, left = canvas, torch.tensor(case.steps - index, dtype=torch.int32)
        processed = schedule(None, logits[index], cur_step=left)
        p = processed.softmax(-1)
        sample = torch.multinomial(p.view(-1, case.size), 1).view(case.batch, case.length)
        renoised = rules.renoise_canvas(rules.accept_canvas(canvas, sample, processed, left), left)
        canvas = torch.where(finished[:, None], canvas, renoised)
        argmax = torch.where(finished[:, None], argmax, processed.argmax(-1))
        frozen = torch.where(finished[:, None, None], frozen, processed)
        finished = finished | stop(argmax, frozen)
        yield before, canvas, argmax, rules.accepted_token_mask, finished


def settling(case: Case) -> list[torch.Tensor]:
    """Logits that grow surer from pass to pass, faster in some rows, the last row hardly."""
    generator = torch.Generator().manual_seed(case.seed)
    truth = torch.randn(case.batch, case.length, case.size, generator=generator) * 2
    speed = torch.rand(case.batch, 1, 1, generator=generator) * 6
    speed[-1] *= 0.02
    wobble = [torch.randn(truth.shape, generator=generator) for _ in range(case.steps)]
    return [truth * (1 + speed * i) + 2 * noise for i, noise in enumerate(wobble)]


@pytest.mark.slow
def test_entropy_bound_equals_transformers_with_its_stop():
    """Canvas, acceptance, argmax and finished flags of all rows, also of those frozen. The cases
    must hold early stops, rows that never stop, and re-melts."""
    early = never = remelted = 0
    for seed in range(24):
        chance = random.Random(seed)
        case = Case(seed, 3, chance.choice([1, 5, 24]), chance.choice([3, 60, 700]), 16)
        sampler = EntropyBound(
            entropy_bound=chance.choice([0.05, 0.1, 2.0]),
            t_min=chance.choice([0.2, 0.4]),
            t_max=0.8,
        )
        rule = StopRule(chance.choice([0, 1, 2, 4]), chance.choice([0.005, 0.1]))
        logits = settling(case)
        torch.manual_seed(seed)
        expected = list(run_transformers(case, logits, sampler, rule))

        torch.manual_seed(seed)
        draws = OracleDraws()
        state = case.start(draws)
        history = rule.initial(case.length, rows=case.batch)
        finished = torch.zeros(case.batch, dtype=torch.bool)
        argmax, entropy = state.canvas, torch.zeros(case.batch, case.length)
        for planned, theirs in zip(sampler.plan(case.steps), expected, strict=True):
            plan = [planned] * case.batch
            before = state
            state, accepted, prediction = advance(
                sampler, before, logits[planned.index], plan, draws, case.keys
            )
            frozen = finished[:, None]
            state = replace(state, canvas=torch.where(frozen, before.canvas, state.canvas))
            argmax = torch.where(frozen, argmax, prediction.argmax)
            entropy = torch.where(frozen, entropy, prediction.entropy)
            history, met = rule.update(history, argmax, entropy, state.pinned)
            finished = finished | met
            ours = (before.canvas, state.canvas, argmax, accepted, finished)
            assert all(map(torch.equal, ours, theirs))
            assert planned.index + 1 > rule.stability or not finished.any()
            early += int(finished.sum()) if planned.index == case.steps // 2 else 0
            remelted += int((before.accepted & ~accepted).sum())
        never += int((~finished).sum())
    assert early > 5 and never > 5 and remelted > 100


@pytest.mark.slow
@settings(LAWS, max_examples=60)
@given(st.floats(0, 2, width=32), st.floats(0.001, 2), st.integers(1, 200))
def test_temperatures_equal_transformers_to_the_bit(t_min, rise, steps):
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as oracle

    sampler = EntropyBound(t_min=t_min, t_max=t_min + rise)
    schedule = oracle.LinearTemperatureScheduleLogitsProcessor(t_min, sampler.t_max, steps)
    one = torch.ones(1)
    for planned in sampler.plan(steps):
        left = torch.tensor(steps - planned.index, dtype=torch.int32)
        assert torch.equal(one / planned.temperature, schedule(None, one, cur_step=left))


# --- laws of every rule ---

SAMPLERS = st.one_of(
    st.builds(EntropyBound, entropy_bound=st.sampled_from([0.0, 1e-3, 0.1, 3.0, 1e30])),
    st.builds(
        BlockRefinement,
        threshold=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
        temperature=st.sampled_from([0.5, 1.0]),
        top_k=st.sampled_from([None, 1, 2, 10**6]),
        top_p=st.sampled_from([None, 0.5, 1.0]),
        editing_threshold=st.sampled_from([None, 0.0, 0.5]),
    ),
    st.builds(BlockRefinement, editing_threshold=st.sampled_from([None, 0.3])),
    st.builds(DiscreteDDIM, temperature=st.sampled_from([0.0, 1.0])),
    st.builds(
        DiscreteDDIM,
        corrector_steps=st.integers(1, 3),
        corrector_k=st.sampled_from([1, 2, 50]),
        corrector_selection_tau=st.sampled_from([0.01, 1.0]),
    ),
)


@st.composite
def situations(draw, samplers=SAMPLERS):
    """A rule in mid-schedule: rows at their own steps (of one kind), some positions pinned."""
    sampler = draw(samplers)
    case = Case(
        draw(st.integers(0, 10**6)),
        draw(st.integers(1, 4)),
        draw(st.sampled_from([1, 2, 5, 17])),
        draw(st.sampled_from([2, 3, 30, 500])),
        draw(st.integers(getattr(sampler, "corrector_steps", 0) + 2, 12)),
    )
    if draw(st.booleans()) and not getattr(sampler, "corrector_steps", 0):
        case = replace(case, steps=1)
    kind = draw(st.sampled_from(["predict", "correct"]))
    plan = sampler.plan(case.steps)
    choices = [step for step in plan if step.kind == kind] or list(plan)
    planned = tuple(draw(st.sampled_from(choices)) for _ in range(case.batch))
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.batch, case.length)
    pinned = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    accepted = (torch.rand(shape, generator=generator) < 0.3) & ~pinned
    canvas = COUNTER.first_canvas(case.keys, case.length, case.size)
    return sampler, case, CanvasBatch(canvas, accepted, pinned, planned, case.steps, case.size)


def take(sampler, case, state, logits=None, rows=slice(None)):
    logits = case.logits(0) if logits is None else logits
    return advance(sampler, state, logits, state.plan, COUNTER, case.keys[rows])


@pytest.mark.slow
@settings(LAWS, max_examples=150)
@given(situations())
def test_a_step_is_pure_and_leaves_pins_alone(situation):
    sampler, case, state = situation
    held = [t.clone() for t in (state.canvas, state.accepted, state.pinned)]
    after, accepted, _ = take(sampler, case, state)
    again, _, _ = take(sampler, case, state)
    assert torch.equal(after.canvas, again.canvas) and torch.equal(after.accepted, again.accepted)
    assert all(map(torch.equal, held, (state.canvas, state.accepted, state.pinned)))
    assert (after.plan, after.total, after.vocab_size) == (state.plan, state.total, case.size)
    assert after.canvas.dtype == torch.int64 and accepted.dtype == torch.bool
    assert after.canvas.min() >= 0 and after.canvas.max() < case.size
    assert torch.equal(after.canvas[state.pinned], state.canvas[state.pinned])
    assert not (accepted & state.pinned).any()
    assert torch.equal(after.pinned, state.pinned)


@pytest.mark.slow
@settings(LAWS, max_examples=80)
@given(situations())
def test_a_row_steps_the_same_in_every_batch(situation):
    """Also when the rows of the batch stand at different steps."""
    sampler, case, state = situation
    whole, _, _ = take(sampler, case, state)
    for row in range(case.batch):
        one = slice(row, row + 1)
        alone = CanvasBatch(
            state.canvas[one],
            state.accepted[one],
            state.pinned[one],
            state.plan[one],
            case.steps,
            case.size,
        )
        after, _, _ = take(sampler, case, alone, case.logits(0)[one], one)
        assert torch.equal(after.canvas, whole.canvas[one])
        assert torch.equal(after.accepted, whole.accepted[one])


@settings(LAWS, max_examples=80)
@given(situations())
def test_what_is_predicted_at_a_pin_changes_nothing(situation):
    sampler, case, state = situation
    other = torch.where(state.pinned[..., None], case.logits(1), case.logits(0))
    after, _, _ = take(sampler, case, state)
    changed, _, _ = take(sampler, case, state, other)
    assert torch.equal(after.canvas, changed.canvas)
    assert torch.equal(after.accepted, changed.accepted)


@settings(LAWS, max_examples=100)
@given(situations(st.builds(EntropyBound, entropy_bound=st.sampled_from([1e-3, 0.1, 2.0, 1e30]))))
def test_entropy_bound_accepts_the_surest_within_the_bound(situation):
    sampler, case, state = situation
    after, accepted, prediction = take(sampler, case, state)
    for row in range(case.batch):
        free = ~state.pinned[row]
        kept, left = accepted[row], free & ~accepted[row]
        entropy = prediction.entropy[row].double()
        if not free.any():
            assert not kept.any()
            continue
        assert kept.any()
        assert torch.equal(after.canvas[row, kept], prediction.sample[row, kept])
        bound = sampler.entropy_bound + 1e-4 * float(entropy.sum())
        assert entropy[kept].sum() - entropy[kept].max() <= bound
        if left.any():
            assert entropy[kept].max() <= entropy[left].min()
            assert entropy[kept].sum() >= sampler.entropy_bound - 1e-4 * float(entropy.sum())
    if sampler.entropy_bound == 1e30:
        assert torch.equal(accepted, ~state.pinned)


def test_entropy_bound_zero_accepts_one_position():
    case = Case(0, 3, 20, 50, 4)
    state = replace(case.start(COUNTER), plan=EntropyBound().plan(4)[:1] * 3)
    _, accepted, _ = take(EntropyBound(entropy_bound=0.0), case, state)
    assert accepted.sum(-1).tolist() == [1, 1, 1]


@settings(LAWS, max_examples=100)
@given(situations(st.builds(BlockRefinement, threshold=st.sampled_from([0.3, 0.95, 1.0]))))
def test_block_refinement_meets_its_quota_with_the_likeliest(situation):
    sampler, case, state = situation
    after, accepted, prediction = take(sampler, case, state)
    assert (state.accepted & ~accepted).sum() == 0
    assert torch.equal(after.canvas[state.accepted], state.canvas[state.accepted])
    for row, planned in enumerate(state.plan):
        free = int((~state.pinned[row]).sum())
        quota = math.ceil((planned.index + 1) * free / case.steps)
        probability = prediction.sample_probability[row]
        new = accepted[row] & ~state.accepted[row]
        left = ~accepted[row] & ~state.pinned[row]
        sure = int((new & (probability > sampler.threshold)).sum())
        needed = max(quota - int(state.accepted[row].sum()), 0)
        assert int(new.sum()) == max(needed, sure)
        if new.any() and left.any():
            assert probability[new].min() >= probability[left].max()


def test_accepted_positions_re_melt_under_the_entropy_bound_only():
    """What `accepted` means, rule by rule, over a whole schedule: all others are noise."""
    remelts = {}
    for sampler in (EntropyBound(), BlockRefinement(), DiscreteDDIM()):
        case = Case(5, 2, 30, 5000, 12)
        lost = 0
        for _, _, before, after, prediction in passes(sampler, case, COUNTER):
            lost += int((before.accepted & ~after.accepted).sum())
            fresh = after.accepted & ~before.accepted
            assert torch.equal(after.canvas[fresh], prediction.sample[fresh])
        remelts[sampler.name] = lost
    assert remelts["block_refinement"] == 0
    assert remelts["entropy_bound"] > 0
    assert remelts["discrete_ddim"] > 0


# --- the posterior and the corrector, against their definitions ---


def z_score(hits: int, trials: int, p: float) -> float:
    return (hits - trials * p) / math.sqrt(trials * p * (1 - p))


@pytest.mark.parametrize("agree", [False, True])
def test_ddim_samples_the_posterior_of_uniform_diffusion(agree):
    """q(x_s | x_t, x̂) by Bayes' rule from the forward process, on a vocabulary of three."""
    size, length, alpha_t, alpha_s = 3, 60_000, 0.25, 0.5
    seen, clean = 1, 1 if agree else 2
    rate = alpha_t / alpha_s
    forward = {x: rate * (x == seen) + (1 - rate) / size for x in range(size)}  # q(x_t | x_s)
    prior = {x: alpha_s * (x == clean) + (1 - alpha_s) / size for x in range(size)}  # q(x_s | x̂)
    total = sum(forward[x] * prior[x] for x in range(size))
    canvas = torch.full((1, length), seen)
    none = torch.zeros_like(canvas, dtype=torch.bool)
    planned = PlannedStep(1, "predict", 0.0, alpha_t, alpha_s)
    state = CanvasBatch(canvas, none, none, (planned,), 4, size)
    logits = torch.nn.functional.one_hot(torch.full((1, length), clean), size).float()
    after, _, _ = advance(DiscreteDDIM(), state, logits, state.plan, COUNTER, [RowKey(1, 0)])
    for x in range(size):
        hits = int((after.canvas == x).sum())
        assert abs(z_score(hits, length, forward[x] * prior[x] / total)) < 4.5


def corrected(raw, canvas, alpha_s, sampler, keys, **changes):
    """A sweep of `sampler` on raw logits (B, C, V), with some fields of the prediction changed."""
    planned = PlannedStep(1, "correct", 0.0, alpha_s, alpha_s)
    none = torch.zeros_like(canvas, dtype=torch.bool)
    state = CanvasBatch(canvas, none, none, (planned,) * len(canvas), 4, raw.shape[-1])
    numbers = COUNTER.step(keys, [1] * len(canvas), canvas.shape[1])
    prediction = replace(predict(raw, 0.0, reference="raw", top_k=2), **changes)
    return sampler.step(state, prediction, numbers)[0]


def test_corrector_resamples_from_the_leave_one_out_conditional():
    size, rows, alpha = 4, 6000, 0.6
    logits = torch.tensor([2.0, 0.5, -1.0, 0.0])
    seen = 1
    p = logits.double().softmax(-1)
    weight = torch.ones(size, dtype=torch.float64)
    weight[seen] = 1 / (1 + size * alpha / (1 - alpha))
    leave_one_out = p * weight / (p * weight).sum()
    q = alpha * leave_one_out + (1 - alpha) / size
    canvas = torch.full((rows, 1), seen)
    sampler = DiscreteDDIM(corrector_steps=1)
    keys = [RowKey(seed, 0) for seed in range(rows)]
    after = corrected(logits.expand(rows, 1, size), canvas, alpha, sampler, keys)
    for x in range(size):
        assert abs(z_score(int((after.canvas == x).sum()), rows, float(q[x]))) < 4.5


@pytest.mark.parametrize("rounding", [torch.float64, torch.float32])
def test_corrector_finds_the_wrong_tokens_of_a_sure_canvas(rounding):
    """All positions certain, two canvas tokens wrong: a greedy sweep takes just these, also where
    1 - p is lost in a float32 log-sum-exp and the vocabulary makes the odds huge."""
    size, length, wrong = 50_000, 24, [3, 17]
    truth = torch.arange(length) * 7
    logits = torch.full((1, length, size), -30.0)
    logits[0, torch.arange(length), truth] = 29.99
    canvas = truth[None].clone()
    canvas[0, wrong] += 1
    total = logits.double().logsumexp(-1).to(rounding).double() - (rounding == torch.float32) * 1e-6
    sampler = DiscreteDDIM(corrector_steps=1, corrector_k=2, corrector_selection_tau=0.01)
    for alpha in (0.02, 0.5, 0.98):
        after = corrected(logits, canvas, alpha, sampler, [RowKey(4, 0)], logsumexp=total)
        taken = after.accepted[0].nonzero().flatten().tolist()
        assert taken == wrong
        if alpha == 0.98:
            assert torch.equal(after.canvas[0], truth)


def test_corrector_ranks_sure_tokens_whatever_the_rounding_of_a_recomputed_logit():
    """1 - p from 1e-6 to 2e-5 at five positions, spread over the vocabulary; the asked logit of the
    token on the canvas comes from another product than the top ones, and is off by more than that."""
    size, unsure = 10_000, torch.tensor([4e-6, 1e-6, 2e-5, 8e-6, 2e-6], dtype=torch.float64)
    logits = (unsure / size).log().float()[None, :, None].repeat(1, 1, size)
    logits[0, :, 1] = 0.0
    canvas = torch.ones(1, 5, dtype=torch.long)
    off = logits + torch.tensor([9e-5, -9e-5, 9e-5, -9e-5, -9e-5])[:, None]
    sampler = DiscreteDDIM(corrector_steps=1, corrector_k=2, corrector_selection_tau=1e-3)
    after = corrected(logits, canvas, 0.5, sampler, [RowKey(0, 0)], logits=off)
    assert after.accepted[0].nonzero().flatten().tolist() == [2, 3]


@pytest.mark.parametrize("sweeps", [1, 2, 3, 7])
def test_corrector_sweeps_count_inside_the_budget(sweeps):
    sampler = DiscreteDDIM(corrector_steps=sweeps, temperature=0.5)
    for steps in range(sweeps + 2, 40):
        plan = sampler.plan(steps)
        assert [step.index for step in plan] == list(range(steps))
        corrections = [step for step in plan if step.kind == "correct"]
        predictions = [step for step in plan if step.kind == "predict"]
        assert len(corrections) == sweeps * ((steps - 1) // (1 + sweeps)) > 0
        assert all(0 < step.alpha_s == step.alpha_t < 1 for step in corrections)
        assert all(step.temperature == 0.0 for step in corrections)
        assert predictions[0].alpha_t == 0.0 and plan[-1].alpha_s == 1.0
        assert plan[-1].kind == "predict"
        assert [step.alpha_t for step in plan[1:]] == [step.alpha_s for step in plan[:-1]]
    with pytest.raises(RequestError, match=f"at least {sweeps + 2} steps"):
        sampler.plan(sweeps + 1)


def test_mixed_passes_are_refused():
    case = Case(0, 2, 4, 9, 6)
    sampler = DiscreteDDIM(corrector_steps=1)
    state = replace(case.start(COUNTER), plan=sampler.plan(6)[:2])
    with pytest.raises(ValueError, match="mix predict and correct"):
        take(sampler, case, state)


# --- the stop rule ---


def test_stop_rule_leaves_pins_out():
    rule = StopRule(stability=1, confidence=0.1)
    pinned = torch.tensor([[True, False, False]] * 3)
    argmax = torch.tensor([[5, 6, 7]] * 3)
    entropy = torch.tensor([[9.0, 0.05, 0.05], [0.0, 0.09, 0.12], [0.0, 0.05, 0.05]])
    history, first = rule.update(rule.initial(3, rows=3), argmax, entropy, pinned)
    assert not first.any()
    moved = argmax.clone()
    moved[0, 0] = 1  # at a pin
    moved[2, 1] = 1
    _, finished = rule.update(history, moved, entropy, pinned)
    assert finished.tolist() == [True, False, False]  # the second by entropy, the third by change


def test_a_row_of_pins_alone_is_finished():
    pinned = torch.tensor([[True, True], [False, False]])
    argmax, entropy = torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), 3.0)
    rule = StopRule()
    _, finished = rule.update(rule.initial(2, rows=2), argmax, entropy, pinned)
    assert finished.tolist() == [True, False]


def test_history_keeps_the_newest_last_and_the_input_whole():
    rule = StopRule(stability=2)
    history = rule.initial(1)
    assert history.shape == (1, 2, 1) and (history == -1).all()
    none = torch.zeros(1, 1, dtype=torch.bool)
    for token in (4, 8):
        before = history
        kept = history.clone()
        history, _ = rule.update(history, torch.tensor([[token]]), torch.zeros(1, 1), none)
        assert torch.equal(before, kept)
    assert history.flatten().tolist() == [4, 8]


@pytest.mark.parametrize("stability", [0, 1, 3])
def test_the_earliest_stop(stability):
    rule = StopRule(stability=stability)
    history = rule.initial(2)
    none, zeros = torch.zeros(1, 2, dtype=torch.bool), torch.zeros(1, 2)
    stops = []
    for _ in range(5):
        history, finished = rule.update(history, torch.tensor([[1, 2]]), zeros, none)
        stops.append(bool(finished))
    assert stops.index(True) == stability and all(stops[stability:])
    strict = StopRule(stability=0, confidence=0.5)
    at_the_limit = torch.full((1, 2), 0.5)
    _, finished = strict.update(strict.initial(2), torch.tensor([[1, 2]]), at_the_limit, none)
    assert not finished.any()


# --- settings ---

BAD = [
    (
        "entropy_bound",
        dict(entropy_bound=-0.1),
        "entropy_bound must be a finite number of at least 0",
    ),
    ("entropy_bound", dict(entropy_bound=math.inf), "entropy_bound must be a finite number"),
    ("entropy_bound", dict(entropy_bound=math.nan), "entropy_bound must be a finite number"),
    ("entropy_bound", dict(entropy_bound="0.1"), "got '0.1'"),
    ("entropy_bound", dict(entropy_bound=True), "got True"),
    ("entropy_bound", dict(t_min=0.0, t_max=1e-40), "t_max must be 0, or from 1e-06"),
    ("entropy_bound", dict(t_max=10**400), "t_max must be a finite number"),
    (
        "discrete_ddim",
        dict(corrector_steps=1, corrector_k=2**70),
        "corrector_k must be at least 1 and at most",
    ),
    ("entropy_bound", dict(t_min=-1), "t_min must be 0, or from 1e-06"),
    ("entropy_bound", dict(t_min=0.0, t_max=0.0), "t_max must be a number above 0"),
    ("entropy_bound", dict(t_min=0.9), "t_min 0.9 is above t_max 0.8"),
    ("entropy_bound", dict(temperature=0.5), "no option 'temperature': it takes entropy_bound, t"),
    ("block_refinement", dict(threshold=1.5), "threshold must be a number of at least 0 and at m"),
    ("block_refinement", dict(temperature=-1.0), "temperature must be 0, or from 1e-06"),
    ("block_refinement", dict(temperature=1.0, top_k=0), "top_k must be at least 1"),
    ("block_refinement", dict(temperature=1.0, top_k=2.0), "got 2.0"),
    ("block_refinement", dict(temperature=1.0, top_p=0.0), "top_p must be a number above 0 and"),
    ("block_refinement", dict(temperature=1.0, top_p=1.1), "at most 1"),
    ("block_refinement", dict(top_k=5), "no effect at temperature 0"),
    ("block_refinement", dict(top_p=0.5), "no effect at temperature 0"),
    ("block_refinement", dict(editing_threshold=2), "editing_threshold must be a number"),
    ("discrete_ddim", dict(temperature=math.inf), "temperature must be a finite number"),
    ("discrete_ddim", dict(corrector_steps=-1), "corrector_steps must be at least 0"),
    ("discrete_ddim", dict(corrector_steps=1, corrector_k=0), "corrector_k must be at least 1"),
    (
        "discrete_ddim",
        dict(corrector_steps=1, corrector_selection_tau=0),
        "tau must be a number ab",
    ),
    ("discrete_ddim", dict(corrector_k=4), "no effect without a corrector"),
    ("discrete_ddim", dict(corrector_selection_tau=0.5), "no effect without a corrector"),
    ("greedy", {}, "choose one of entropy_bound, block_refinement, discrete_ddim"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_settings_are_one_clear_error(name, options, message):
    with pytest.raises(RequestError) as error:
        sampler_from(name, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("steps", [0, -3, 2.0, True, None])
@pytest.mark.parametrize("sampler", [EntropyBound(), BlockRefinement(), DiscreteDDIM()])
def test_bad_step_counts(sampler, steps):
    with pytest.raises(RequestError, match=r"steps must be (a whole number|at least 1)"):
        sampler.plan(steps)


@pytest.mark.parametrize("options", [dict(stability=-1), dict(stability=1.0), dict(confidence=0.0)])
def test_bad_stop_rules(options):
    with pytest.raises(RequestError, match=f"stop rule: {next(iter(options))} must be"):
        StopRule(**options)


@settings(LAWS, max_examples=60)
@given(SAMPLERS)
def test_a_sampler_survives_json(sampler):
    assert sampler_from(**json.loads(json.dumps(describe(sampler)))) == sampler


def test_plans():
    """First and last pass of each rule."""
    first, *_, last = EntropyBound().plan(48)
    assert first.temperature == pytest.approx(0.8) and last.temperature > 0.4
    assert EntropyBound().plan(1)[0].temperature == pytest.approx(0.8)
    assert {step.temperature for step in EntropyBound(t_min=0.5, t_max=0.5).plan(9)} == {0.5}
    for sampler in (EntropyBound(), BlockRefinement(temperature=0.3), DiscreteDDIM()):
        plan = sampler.plan(7)
        assert [step.index for step in plan] == list(range(7))
        assert (plan[0].alpha_t, plan[-1].alpha_s) == (0.0, 1.0)
    assert BlockRefinement(temperature=0.3).plan(1) == (PlannedStep(0, "predict", 0.3, 0.0, 1.0),)
