"""Held-out requests and problems, written by both modes and judged by their verifiers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgemma_core.autoregression import decode_tokens
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.events import Event, FinishEvent
from dgemma_core.model import DiffusionGemma
from dgemma_core.nano import families
from dgemma_core.nano.english import kinds
from dgemma_core.nano.texts import accepts
from dgemma_core.request import Request

if TYPE_CHECKING:
    from dgemma_core.files.text import Tokenizer
    from dgemma_core.nano.english.kind import Example


@dataclass(frozen=True)
class Validation:
    """Measures a model in training; its figures are shares of accepted texts, from 0 to 1, and steps a canvas.

    a_kind, a_family: held-out examples of each, the same at every call. steps: the most passes a canvas may take.
    """

    tokenizer: Tokenizer
    end: tuple[int, ...]
    a_kind: int = 2
    a_family: int = 4
    max_new_tokens: int = 192
    steps: int = 16
    batch_size: int = 16

    def __call__(self, model: DiffusionGemma) -> dict[str, float]:
        english = [
            drawn
            for name in kinds.NAMES
            for drawn in kinds.examples(name, "validation", self.a_kind)
        ]
        problems = [
            drawn
            for name in families.TASKS
            for drawn in families.examples(name, "validation", self.a_family)
        ]
        asked: list[Example | families.Example] = [*english, *problems]
        # A copy on the host, so that weights in training are neither touched nor held by a backend.
        copy = DiffusionGemma(model.config)
        copy.load_state_dict(model.state_dict())
        copy.requires_grad_(False).use("auto")
        requests = [self._request(i, drawn) for i, drawn in enumerate(asked)]
        found: dict[str, float] = {}
        for mode, events in (
            (
                "diffusion",
                denoise_canvases(
                    copy, requests, steps=self.steps, batch_size=self.batch_size, eos=self.end
                ),
            ),
            (
                "autoregression",
                decode_tokens(copy, requests, batch_size=self.batch_size, eos=self.end),
            ),
        ):
            accepted, steps, canvases = self._judged(asked, events)
            found[f"english_{mode}"] = _share(accepted[: len(english)])
            found[f"families_{mode}"] = _share(accepted[len(english) :])
            if mode == "diffusion":
                found["steps_a_canvas"] = round(steps / canvases, 2)
        return found

    def _request(self, number: int, drawn: Example | families.Example) -> Request:
        chat = drawn.prompt if isinstance(drawn, families.Example) else drawn.messages
        return Request(
            self.tokenizer.chat_ids(chat),
            seed=number,
            max_new_tokens=self.max_new_tokens,
            id=number,
        )

    def _judged(
        self, asked: Sequence[Example | families.Example], events: Iterator[Event]
    ) -> tuple[list[bool], int, int]:
        """The verdict on every text, and all denoising steps and canvases."""
        accepted, steps, canvases = [False] * len(asked), 0, 0
        for event in events:
            if not isinstance(event, FinishEvent):
                continue
            assert isinstance(event.request, int)
            text = self.tokenizer.decode(event.ids)
            accepted[event.request] = accepts(asked[event.request], text)
            steps += event.denoising_steps
            canvases += event.canvases
        return accepted, steps, canvases


def _share(verdicts: Sequence[bool]) -> float:
    return round(sum(verdicts) / len(verdicts), 4)
