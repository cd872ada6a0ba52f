"""The padded pass of training is the inference path."""

from __future__ import annotations

import torch

from dgemma_core.experts import Experts
from dgemma_core.train.dense_pass import DensePass, run_experts
from tests.core import tiny
from tests.train.copying import close, noise, uneven


def test_the_dense_pass_is_the_inference_path() -> None:
    model, batch = tiny.model(2), uneven()
    assert batch.canvases[0].prefix.tolist() == [1, 5, 6, 20, 15, 11]
    both = DensePass(model, batch)
    canvas = noise(batch.canvases[0].tokens, 48, torch.Generator().manual_seed(0))
    soft = torch.randn(*canvas.shape, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        encoded = both.encode()
        plain, fed = both.denoise(canvas, None), both.denoise(canvas, soft)
        some = both.denoise(canvas[:2], None, rows=slice(2))
    for row, prefix in enumerate(batch.canvases[0].prefix.tolist()):
        clean = batch.clean[row : row + 1]
        cache = model.encode(clean[:, :prefix])
        close(encoded[row], model.encode(clean).hidden[0])
        close(plain[row], model.denoise(canvas[row : row + 1], cache)[0])
        close(fed[row], model.denoise(canvas[row : row + 1], cache, soft[row : row + 1])[0])
    close(some, plain[:2])


def test_experts_in_padded_slices() -> None:
    """Values and gradients of the padded product are those of the experts one by one."""
    experts = tiny.model(2).layers[0].experts
    assert isinstance(experts, Experts)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 70, 16, generator=generator, requires_grad=True)
    # Expert 0 takes more than a slice holds, expert 1 nothing at all.
    chosen = torch.tensor([0, 2]).expand(3, 70, 2)
    weights = torch.rand(3, 70, 2, generator=generator)
    outputs = run_experts(experts, x, chosen)
    padded = (outputs * weights.unsqueeze(-1)).sum(-2)
    plain = experts(x, weights, chosen)
    close(padded, plain)
    parameters = [x, *experts.requires_grad_(True).parameters()]
    upstream = torch.randn(3, 70, 16, generator=generator)
    ours = torch.autograd.grad(
        (run_experts(experts, x, chosen) * weights.unsqueeze(-1)).sum(-2), parameters, upstream
    )
    theirs = torch.autograd.grad(experts(x, weights, chosen), parameters, upstream)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b, 1e-4)
    experts.requires_grad_(False)
