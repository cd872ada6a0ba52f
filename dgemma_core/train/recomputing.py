"""Activation checkpointing (arXiv 1604.06174), by torch: a layer keeps its input, and runs again for the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from dgemma_core.train.dense_pass import DensePass


def recomputed(both: DensePass, run: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`run(*arguments)`, of a layer. What the pass records of it, keys and routing, is recorded once."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _again(both)

    return cast(Tensor, checkpoint(run, *arguments, use_reentrant=False, context_fn=contexts))


@contextmanager
def _again(both: DensePass) -> Iterator[None]:
    both.recording = False
    try:
        yield
    finally:
        both.recording = True
