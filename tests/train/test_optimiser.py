"""Muon and AdamW against torch's own."""

import pytest
import torch
from torch import nn

from dgemma_core.model import DiffusionGemma
from dgemma_core.train.optimiser import MuonAdamW, orthogonal, split_parameters
from tests.core import tiny


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (3, 24, 16)])
def test_orthogonal_keeps_directions(shape: tuple[int, ...]) -> None:
    """The singular vectors stay, the singular values end between 0.6 and 1.3."""
    update = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonal(update).float()
    assert result.shape == shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, v = torch.linalg.svd(update, full_matrices=False)
    kept = torch.linalg.norm(u @ v, dim=(-2, -1)) * torch.linalg.norm(result, dim=(-2, -1))
    alike = (u @ v * result).sum(dim=(-2, -1)) / kept
    assert (alike > 0.95).all()


class Parts(nn.Module):
    """One parameter of every kind, named as the model names them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embed_tokens = nn.Embedding(12, 6, _weight=torch.randn(12, 6, generator=generator))
        self.q_proj = nn.Linear(6, 10, bias=False)
        self.norm = nn.Parameter(torch.ones(6))
        with torch.no_grad():
            self.q_proj.weight.normal_(generator=generator)


def test_both_rules_are_torchs() -> None:
    """Five updates with given gradients: matrices as torch.optim.Muon moves them, the rest as AdamW."""
    ours, theirs = Parts(), Parts()
    optimiser = MuonAdamW(ours, lr=0.03, matrix_lr=0.02, betas=(0.9, 0.98), weight_decay=0.1)
    optimiser.set_rate(0.5)
    muon = torch.optim.Muon([theirs.q_proj.weight], lr=0.01, weight_decay=0.1, momentum=0.95)
    adamw = torch.optim.AdamW(
        [
            {"params": [theirs.embed_tokens.weight]},
            {"params": [theirs.norm], "weight_decay": 0.0},
        ],
        lr=0.015, betas=(0.9, 0.98), weight_decay=0.1,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        optimiser.step()
        muon.step()
        adamw.step()
    torch.testing.assert_close(ours.embed_tokens.weight, theirs.embed_tokens.weight)
    torch.testing.assert_close(ours.norm, theirs.norm)
    # The iteration runs in bfloat16, in another order of operations.
    torch.testing.assert_close(ours.q_proj.weight, theirs.q_proj.weight, rtol=0, atol=3e-3)
    assert (ours.q_proj.weight - Parts().q_proj.weight).abs().max() > 0.01


def test_every_parameter_has_one_rule() -> None:
    model = tiny.model(0)
    matrices, tables, vectors = split_parameters(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert sorted(map(id, (*matrices, *tables, *vectors))) == sorted(names)
    assert {names[id(p)].split(".")[-2] for p in tables} == {"embed_tokens", "proj"}
    assert all("norm" not in names[id(p)] for p in matrices)
    assert any(p.dim() == 3 for p in matrices), "stacked experts"


def test_stacked_experts_are_moved_one_by_one() -> None:
    stack = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(3))
    together = orthogonal(stack)
    for one, matrix in zip(together, stack, strict=True):
        torch.testing.assert_close(one, orthogonal(matrix), rtol=1e-2, atol=1e-2)


def test_parameters_without_gradient_stay() -> None:
    model = DiffusionGemma(tiny.config())
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    optimiser = MuonAdamW(model, lr=1.0, matrix_lr=1.0, betas=(0.9, 0.99), weight_decay=0.5)
    optimiser.step()
    assert all((parameter == 1).all() for parameter in model.parameters())
    assert not optimiser.state
