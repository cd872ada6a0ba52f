"""Training: texts, batches, noise, loss, optimiser, loop, checkpoints; distillation, tuning.

`Trainer` runs a `Recipe` over a function from a number to a `Text`. `tune` teaches a model a user's own data.
"""

from dgemma_core.train.loop import Trainer
from dgemma_core.train.recipe import Recipe
from dgemma_core.train.texts import Text
from dgemma_core.train.tuning_run import tune

__all__ = ["Recipe", "Text", "Trainer", "tune"]
