"""Weights that were copied out of a model, to be used in place of its modules: whether they still may be.

They may while nobody has changed or replaced the weights, and nobody listens to a module that is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules import module as hooks


def _version(weight: Tensor) -> int | None:
    """How often it has been changed in place; what was made in inference mode does not count that."""
    return None if weight.is_inference() else weight._version


class Borrowed:
    """Parameters that were copied, and the modules that will not be called."""

    def __init__(
        self, copied: Iterable[tuple[nn.Module, str]], passed_over: Iterable[nn.Module]
    ) -> None:
        """copied: modules and the names of their parameters."""
        self.listening = [
            heard
            for part in passed_over
            for heard in (part._forward_hooks, part._forward_pre_hooks)
        ]
        self.copied = [
            (part._parameters, name, weight, _version(weight))
            for part, name in copied
            if (weight := part._parameters[name]) is not None
        ]

    @property
    def current(self) -> bool:
        """Whether all parameters are those that were copied, unchanged but perhaps through `.data`."""
        for held, name, weight, version in self.copied:
            if held[name] is not weight or (version is not None and weight._version != version):
                return False
        return True

    @property
    def weights(self) -> list[Tensor]:
        """The parameters as they are now."""
        return [weight for held, name, _, _ in self.copied if (weight := held[name]) is not None]

    @property
    def hooked(self) -> bool:
        """Whether somebody listens to a module that is not called."""
        if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
            return True
        return any(self.listening)
