"""Detects what a fast backend must not pass over, and hands such passes to the reference.

A fast backend reads a model's weights without calling its modules, and may hold copies. `Guarded` stands in front of
it and asks two questions.

Before every pass (some microseconds):
- is a module or a parameter another object, or a parameter changed in place (torch counts that: `_version`)? Then the
  copies are stale;
- does somebody listen to a module by a hook, does autocast run, or are gradients of weights asked for? Then the modules
  must be called.
Before a loop begins to write, and before a prompt that is encoded by itself, too:
- has a module, or its class, another `forward`? It must be called, too;
- is a module added, one of its numbers another (a router's top_k), a parameter moved or converted, or changed through
  `.data`, which torch does not count?

Stale copies go: from then on passes run on "torch", with one warning that says why, until `model.use` chooses anew.
Hooks and autocast hand over a pass at a time: the fast backend goes on when they are gone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from itertools import repeat
from operator import attrgetter, contains, is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules import module as module_hooks

from dgemma_core.backends.reference import Reference

if TYPE_CHECKING:
    from dgemma_core.backends import Backend
    from dgemma_core.head import Prediction
    from dgemma_core.model import DiffusionGemma

_version = attrgetter("_version")
_get: Callable[[Any, str], Any] = dict.get
_AGAIN = "call model.use('auto') to choose a fast backend again"


class Snapshot:
    """A model's modules and parameters as they are now."""

    def __init__(self, model: DiffusionGemma) -> None:
        self.model = model
        self.embedding = model.embed_tokens
        # a quantised one is held in buffers
        self.embedding_parts = [
            (parts, name, part, None if part.is_inference() else part._version)
            for parts in (self.embedding._parameters, self.embedding._buffers)
            for name, part in parts.items()
            if part is not None
        ]
        self.modules = list(model.modules())
        self.hooks = [
            hooks
            for part in self.modules
            for hooks in (part._forward_hooks, part._forward_pre_hooks)
        ]
        held = [
            (parts, name, part)
            for module in self.modules
            for parts in (module._parameters, module._modules)
            for name, part in parts.items()
        ]
        self.dicts = [parts for parts, _, _ in held]
        self.names = [name for _, name, _ in held]
        self.held = [part for _, _, part in held]
        self.weights = [part for part in self.held if isinstance(part, Tensor)]
        # What was made in inference mode does not count its changes.
        self.counted = [weight for weight in self.weights if not weight.is_inference()]
        self.versions = list(map(_version, self.counted))
        self.places = _places(self.weights)
        self.forwards = [(kind, kind.forward) for kind in {type(part) for part in self.modules}]
        self.attributes = [vars(part) for part in self.modules]
        self.numbers = list(map(_numbers, self.attributes))
        self.look_for_forwards()

    @property
    def embedding_changed(self) -> bool:
        """`changed`, of the vocabulary's embedding alone: what the head reads."""
        return self.embedding is not self.model.embed_tokens or any(
            parts.get(name) is not part or (version is not None and part._version != version)
            for parts, name, part, version in self.embedding_parts
        )

    @property
    def changed(self) -> bool:
        """Whether a module or a parameter is another object, or a parameter was changed in place."""
        current = map(_get, self.dicts, self.names)
        return not all(map(is_, current, self.held)) or self.versions != list(
            map(_version, self.counted)
        )

    @property
    def moved(self) -> bool:
        """Whether a module was added, or a parameter moved or converted."""
        now = list(self.model.modules())
        same = len(now) == len(self.modules) and all(map(is_, now, self.modules))
        numbers = list(map(_numbers, self.attributes))
        return not same or numbers != self.numbers or _places(self.weights) != self.places

    @property
    def observed(self) -> bool:
        """Whether somebody listens to a module or has given it another `forward`, autocast is on, or gradients are
        asked for."""
        if module_hooks._global_forward_hooks or module_hooks._global_forward_pre_hooks:
            return True
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in self.weights):
            return True
        return self.overruled or any(self.hooks) or torch.is_autocast_enabled("cpu")

    def look_for_forwards(self) -> None:
        """Notes in `overruled` whether a module, or a class of modules, has been given another `forward`."""
        self.overruled = any(kind.forward is not own for kind, own in self.forwards) or any(
            map(contains, self.attributes, repeat("forward"))
        )


def _numbers(attributes: dict[str, Any]) -> list[tuple[str, Any]]:
    """A module's settings that are plain numbers."""
    return [(name, x) for name, x in attributes.items() if type(x) in (int, float)]


def _places(weights: Iterable[Tensor]) -> list[tuple[int, torch.dtype]]:
    return [(weight.data_ptr(), weight.dtype) for weight in weights]


class Guarded:
    """A fast backend with the reference behind it.

    unchanged: whether all weights still hold the numbers that were copied, asked by `refresh`; None where nothing was
    copied.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        fast: Backend,
        unchanged: Callable[[], bool] | None = None,
    ) -> None:
        self.fast: Backend | None = fast
        self.unchanged = unchanged
        self.reference = Reference(model)
        self.snapshot = Snapshot(model)
        self.warned = False

    @property
    def name(self) -> str:
        return self._serving().name

    def _serving(self, changed: bool | None = None) -> Backend:
        """The backend of the next pass. changed: whether weights were, where that has been asked."""
        if self.fast is None:
            return self.reference
        if self.snapshot.changed if changed is None else changed:
            return self._give_up("its weights were changed or replaced")
        if self.snapshot.observed:
            if not self.warned:
                self._warn(
                    "a module has a hook or a forward of its own, autocast is on, or gradients are asked for",
                    "while that lasts",
                )
                self.warned = True
            return self.reference
        return self.fast

    def _give_up(self, reason: str) -> Backend:
        self._warn(reason, f"from now on; {_AGAIN}")
        self.fast = self.unchanged = None
        return self.reference

    def _warn(self, reason: str, how_long: str) -> None:
        assert self.fast is not None
        warnings.warn(
            f"the model runs on backend 'torch' instead of {self.fast.name!r}: {reason}; {how_long}",
            stacklevel=5,
        )

    def refresh(self) -> None:
        if self.fast is None:
            return
        self.snapshot.look_for_forwards()
        if self.snapshot.moved or not (self.unchanged is None or self.unchanged()):
            self._give_up("its weights or modules were changed or replaced")
        else:
            self.fast.refresh()

    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        return self._serving().forward(*arguments, **options)

    def predict(self, *arguments: Any, **options: Any) -> Prediction:
        return self._serving(self.snapshot.embedding_changed).predict(*arguments, **options)
