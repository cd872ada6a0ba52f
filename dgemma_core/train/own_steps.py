"""The model's own denoising steps before it learns from a canvas: it then sees what its sampler sees, with its own
mistakes, and not only what a schedule draws.

Axes: B texts, C canvas length, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.model import DiffusionGemma
from dgemma_core.samplers import CanvasBatch, EntropyBound
from dgemma_core.train.dense_pass import DensePass
from dgemma_core.train.packed_pass import PackedPass


@torch.no_grad()
def take_steps(
    model: DiffusionGemma,
    both: DensePass | PackedPass,
    canvas: Tensor,
    steps: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor | None]:
    """The released sampler's steps on canvases (B, C), `steps` (B,) falling of them, each row at a temperature of its
    own from the sampler's range. Returns what is then on the canvases, and the soft embedding (rows, C, D) of their
    last step, of the rows that made any; None for no rows."""
    sampler, vocabulary = EntropyBound(), model.config.text.vocab_size
    warmth = torch.rand(len(canvas), generator=generator)
    temperature = sampler.t_min + (sampler.t_max - sampler.t_min) * warmth
    seeds = torch.randint(2**62, (len(canvas),), generator=generator).tolist()
    none = torch.zeros_like(canvas, dtype=torch.bool)
    soft = None
    for taken in range(int(steps.max())):
        rows = int((steps > taken).sum())
        given = None if soft is None else soft[:rows]
        (hidden,) = both.look(((0, canvas[:rows], given),), rows)
        keys = [RowKey(seed, 0) for seed in seeds[:rows]]
        draws = CounterDraws().step(keys, [taken] * rows, canvas.shape[1], canvas.device)
        with torch.autocast(canvas.device.type, enabled=False):
            prediction = model.head.predict(hidden.float(), temperature[:rows], draws)
        state = CanvasBatch(canvas[:rows], none[:rows], none[:rows], (), 0, vocabulary)
        after, _ = sampler.step(state, prediction, draws)
        assert prediction.soft_embedding is not None
        # clones: what inference mode has made takes no part in gradients
        found = prediction.soft_embedding.clone()
        canvas = torch.cat((after.canvas, canvas[rows:]))
        soft = found if soft is None else torch.cat((found, soft[rows:]))
    return canvas, soft
