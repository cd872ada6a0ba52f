"""The head's `Prediction`, computed plainly from full logits: what the streamed head must equal."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dgemma_core.draws import StepDraws, inverse_cdf
from dgemma_core.head import Filters, Prediction, Reference
from tests.oracle.draws import OraclePass


@dataclass(frozen=True)
class PlainPrediction(Prediction):
    """A `Prediction` that keeps its raw logits (B, C, V) instead of computing them again."""

    logits: Tensor = field(repr=False, default_factory=lambda: torch.empty(0))

    def rows(self, row: int, positions: Tensor) -> Tensor:
        return self.logits[row, positions].double()

    def token_logit(self, tokens: Tensor) -> Tensor:
        return self.logits.gather(-1, tokens[..., None]).squeeze(-1)


def cut(logits: Tensor, filters: Filters | None) -> Tensor:
    """Logits (…, V) with -inf outside the top k and outside the nucleus."""
    if filters is None:
        return logits
    if filters.top_k is not None:
        kth = logits.sort(descending=True).values[..., min(filters.top_k, logits.shape[-1]) - 1]
        logits = logits.masked_fill(logits < kth[..., None], -torch.inf)
    if filters.top_p is not None and filters.top_p < 1:
        ordered, order = logits.sort(descending=True)
        mass = ordered.softmax(-1).cumsum(-1)
        beyond = torch.zeros_like(mass, dtype=torch.bool)
        beyond[..., 1:] = mass[..., :-1] > filters.top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    return logits


def predict(
    logits: Tensor,
    temperature: Tensor | float,
    draws: StepDraws | OraclePass | None = None,
    *,
    reference: Reference = "tempered",
    filters: Filters | None = None,
    embedding: Tensor | None = None,
    top_k: int = 0,
) -> PlainPrediction:
    """Raw soft-capped logits (B, C, V) float32 → the fields of `VocabularyHead.predict`.

    temperature: a number or (B,), 0 for the argmax. embedding (V, D): for the soft embedding.
    """
    batch = len(logits)
    temperatures = torch.as_tensor(temperature, dtype=torch.float32).expand(batch)[:, None, None]
    greedy = bool((temperatures == 0).all())
    tempered = logits if greedy else logits / temperatures
    referred = tempered if reference == "tempered" else logits
    p = referred.softmax(-1)
    argmax = referred.argmax(-1)
    if greedy:
        sampling, sample = logits.softmax(-1), argmax
    else:
        sampling = cut(tempered, filters).softmax(-1)
        sample = (
            draws.multinomial(sampling)
            if isinstance(draws, OraclePass)
            else inverse_cdf(sampling, draws.uniform)
        )
    top_logits, top_ids = referred.topk(top_k) if top_k else (None, None)
    return PlainPrediction(
        sample=sample,
        sample_probability=sampling.gather(-1, sample[..., None]).squeeze(-1),
        sample_logprob=referred.log_softmax(-1).gather(-1, sample[..., None]).squeeze(-1),
        argmax=argmax,
        argmax_probability=p.gather(-1, argmax[..., None]).squeeze(-1),
        entropy=-(p * referred.log_softmax(-1)).sum(-1),
        soft_embedding=None if embedding is None else p @ embedding * embedding.shape[-1] ** 0.5,
        logsumexp=referred.double().logsumexp(-1),
        top_ids=top_ids,
        top_logits=top_logits,
        logits=logits,
    )
