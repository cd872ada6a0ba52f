"""Training: texts, batches, noise, loss, optimiser, loop, checkpoints; distillation.

`Trainer` runs a `Recipe` over a function from a number to a `Text`.
"""

from dgemma_core.train.loop import Trainer
from dgemma_core.train.recipe import Recipe
from dgemma_core.train.texts import Text

__all__ = ["Recipe", "Text", "Trainer"]
