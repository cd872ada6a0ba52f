"""Is a difference between two runs a near-tie, or a mistake?

Both sides make the same draws from logits that agree within some noise ε. So where they first
differ, the oracle's own numbers must show that the decision lay within reach of that noise:
tempered logits differ by at most δ = ε / T each, a margin between two of them by 2δ, an entropy by
δ · Σ p |log p + H|. Whatever noise of that size cannot flip is a mistake; redrawn tokens have no
margin at all.

A sample comes from a race of exponentials (the oracle's `torch.multinomial`) or from a uniform number (`CounterDraws`).
The margin of a race is one of log-probabilities. A uniform number u takes another token if the cumulative probability
before or behind it moves past u: δ moves it by at most e^(2δ) − 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracle.record import Knobs, OracleStep

LOGITS = 1e-4
"""The logit parity that the model tests require (float32)."""


@dataclass(frozen=True)
class RowStep:
    """What one side did with one row in one step; tensors (C,)."""

    tokens_out: Tensor
    sample: Tensor
    argmax: Tensor
    accepted: Tensor
    finished: bool


def oracle_row(step: OracleStep, row: int) -> RowStep:
    """The oracle's row, its sample drawn again from the recorded random state."""
    scores = race(step)[row]
    return RowStep(
        step.tokens_out[row],
        scores.argmax(-1),
        step.argmax[row],
        step.accepted[row],
        bool(step.finished[row]),
    )


def differences(ours: RowStep, oracle: RowStep) -> list[str]:
    """The fields that differ."""
    tensors = ("tokens_out", "sample", "argmax", "accepted")
    names = [n for n in tensors if not torch.equal(getattr(ours, n), getattr(oracle, n))]
    return names + (["finished"] if ours.finished != oracle.finished else [])


def mistakes(
    ours: RowStep, step: OracleStep, row: int, knobs: Knobs, noise: float = LOGITS
) -> list[str]:
    """The differences from the oracle's row that no near-tie explains; empty if all are ties.

    noise: ε, how far apart the raw logits may be.
    """
    scores = race(step)[row]

    def lost_by(position: int, token: int) -> float:
        return float(scores[position].max() - scores[position, token])

    temperature = knobs.temperature(step.step)
    oracle = oracle_row(step, row)
    return list(_mistakes(ours, oracle, step.logits[row], temperature, knobs, noise, lost_by))


def mistakes_from_uniforms(
    ours: RowStep,
    theirs: RowStep,
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    knobs: Knobs,
    noise: float,
) -> list[str]:
    """The same for samples from `uniform` (C,) and theirs by `logits` (C, V), which the temperature has divided."""
    behind = logits.double().softmax(-1).cumsum(-1)  # (C, V)

    def lost_by(position: int, token: int) -> float:
        edges, u = behind[position], float(uniform[position])
        before = float(edges[token - 1]) if token else 0.0
        return math.log1p(max(before - u, u - float(edges[token]), 0.0))

    return list(_mistakes(ours, theirs, logits, temperature, knobs, noise, lost_by))


def _mistakes(
    ours: RowStep,
    oracle: RowStep,
    tempered: Tensor,
    temperature: float,
    knobs: Knobs,
    noise: float,
    lost_by: Callable[[int, int], float],
) -> Iterator[str]:
    """lost_by: position and token → by how much the token lost the draw of a sample, to be compared with 2 δ."""
    delta = noise / temperature
    margin = 2 * delta
    logits = tempered.double()
    logp = logits.log_softmax(-1)  # (C, V)
    entropy = -(logp.exp() * logp).sum(-1)  # (C,)
    slack = delta * (logp.exp() * (logp + entropy.unsqueeze(-1)).abs()).sum(-1)  # (C,)
    tie_of_argmax = False
    for p in range(len(oracle.argmax)):
        if ours.argmax[p] != oracle.argmax[p]:
            gap = float(logits[p].max() - logits[p, ours.argmax[p]])
            tie_of_argmax |= gap <= margin
            if gap > margin:
                yield f"argmax at {p}: {gap:.2e} below the best"
        if ours.sample[p] != oracle.sample[p]:
            gap = lost_by(p, int(ours.sample[p]))
            if gap > margin:
                yield f"sample at {p}: lost the draw by {gap:.2e}"
        if ours.accepted[p] != oracle.accepted[p]:
            low, high = _used_before(entropy, slack, p)
            if not low <= knobs.entropy_bound <= high:
                yield f"accepted at {p}: budget used {low:.4f}…{high:.4f} of {knobs.entropy_bound}"
        both_redraw = not (ours.accepted[p] or oracle.accepted[p])
        if both_redraw and ours.tokens_out[p] != oracle.tokens_out[p]:
            yield f"noise at {p}"
        both_accept = ours.accepted[p] and oracle.accepted[p]
        if both_accept and ours.tokens_out[p] != ours.sample[p]:
            yield f"accepted token at {p} is not the sample"
    if ours.finished != oracle.finished and not tie_of_argmax:
        gap = abs(float(entropy.mean()) - knobs.confidence)
        if gap > float(slack.mean()):
            yield f"finished: mean entropy {gap:.2e} from the threshold"


def race(step: OracleStep) -> Tensor:
    """(B, C, V) float64 log p − log exponential: multinomial's winner is the largest.

    Meaningless for latched rows, whose logits are those of an earlier step.
    """
    generator = torch.Generator()
    generator.set_state(step.random_state)
    probabilities = step.logits.softmax(-1, dtype=torch.float32).flatten(0, 1)  # (B·C, V)
    exponentials = torch.empty_like(probabilities).exponential_(1, generator=generator)
    return (probabilities.double().log() - exponentials.double().log()).view(step.logits.shape)


def _used_before(entropy: Tensor, slack: Tensor, position: int) -> tuple[float, float]:
    """Least and most of the entropy budget that positions sorted before this one can have used."""
    others = torch.arange(len(entropy)) != position
    reach = slack + slack[position]
    surely = others & (entropy < entropy[position] - reach)
    perhaps = others & (entropy <= entropy[position] + reach)
    least = (entropy - slack)[surely].sum()
    most = (entropy + slack)[perhaps].sum()
    return float(least), float(most)
