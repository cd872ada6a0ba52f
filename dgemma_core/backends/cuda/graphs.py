"""A denoising step, and an autoregressive token, recorded once as a CUDA graph and replayed: no host in between.

Notable:
- everything that changes from step to step lies in buffers on the device: canvas, soft embedding, the step's number,
  and the temperatures and random numbers of all steps, which are laid out before the canvas begins (they are addressed
  by step, so they can be known ahead; `draws`). A replay needs nothing from the host;
- a canvas stops early without anybody waiting: the step leaves its verdict in a flag, which travels to the host while
  the next step already runs, and is looked at after that one's launch. So one step too many is made; it changes
  nothing, because a finished canvas is frozen on the device, too;
- without CUDA the same functions run eagerly, so that all but the recording is tested on a CPU.

One text at a time, without pins or observers. Axes: C canvas length, D hidden size, N steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgemma_core.backends.cuda import head as fused_head
from dgemma_core.backends.cuda.static import StaticPass, StaticPrefix
from dgemma_core.cache import PrefixCache
from dgemma_core.draws import CounterDraws, RowKey
from dgemma_core.errors import RequestError
from dgemma_core.head import Prediction
from dgemma_core.model import DiffusionGemma
from dgemma_core.samplers import CanvasBatch, EntropyBound, StopRule

WARM_UP = 3
"""Eager runs before a recording: kernels are compiled and libraries make their choices."""


class Replay:
    """`function` recorded as a CUDA graph, on a GPU; elsewhere the function itself.

    Recording runs it a few times first, so whatever state it changes must be laid out anew afterwards.
    """

    def __init__(self, function: Callable[[], Any], device: torch.device) -> None:
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            return
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream(device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph), torch.inference_mode():
            function()

    def __call__(self) -> None:
        if self.graph is not None:
            self.graph.replay()
        else:
            with torch.inference_mode():
                self.function()


class LateFlag:
    """A flag on the device that the host reads one step late, while the next step runs."""

    def __init__(self, flag: Tensor) -> None:
        self.flag = flag
        on_gpu = flag.is_cuda
        self.seen = torch.zeros(2, 1, dtype=torch.bool, pin_memory=on_gpu)
        self.events = [torch.cuda.Event() for _ in range(2)] if on_gpu else []

    def post(self, step: int) -> None:
        """Sends the flag as it stands after `step`; nobody waits."""
        self.seen[step % 2].copy_(self.flag, non_blocking=True)
        if self.events:
            self.events[step % 2].record()

    def read(self, step: int) -> bool:
        """The flag as it stood after `step`, one of the last two posted."""
        if self.events:
            self.events[step % 2].synchronize()
        return bool(self.seen[step % 2])


def drive(replay: Callable[[], None], flag: LateFlag, most: int) -> int:
    """Runs up to `most` steps, and ends once the flag of the step before the last one launched is up.

    Returns how many were launched: one more than needed, where the flag ended it.
    """
    for step in range(most):
        replay()
        flag.post(step)
        if step and flag.read(step - 1):
            return step + 1
    return most


@dataclass(frozen=True)
class _Laid:
    """The random numbers of one step, from the table (`draws.StepDraws`, as far as `EntropyBound` asks)."""

    uniform: Tensor
    noise: Tensor

    def tokens(self, vocab_size: int) -> Tensor:
        return self.noise


@dataclass(frozen=True)
class Canvas:
    """A canvas that has been denoised; tensors are (C,) on the model's device."""

    argmax: Tensor
    """What is committed."""
    probability: Tensor
    entropy: Tensor
    tokens: Tensor
    """The canvas after the last step, noise included."""
    steps: int
    """Denoising steps until it was finished."""
    launched: int
    """Steps that were made: one more where the stop rule ended it early."""
    converged: bool


class CanvasGraph:
    """The denoising step of one row, recorded. `begin`, then `run` or single `step`s.

    capacity: positions of the longest prefix, canvas included. sampler and stop rule as in `denoise_canvases`, whose
    ids come out for the same seed. Raises RequestError for a sampler other than `EntropyBound`, a checkpoint that
    cannot denoise, and a quantised model.
    """

    def __init__(
        self,
        model: DiffusionGemma,
        capacity: int,
        *,
        sampler: EntropyBound | None = None,
        steps: int = 48,
        stop_rule: StopRule | None = StopRule(),  # noqa: B008 (frozen)
    ) -> None:
        sampler = sampler or EntropyBound()
        if not isinstance(sampler, EntropyBound):
            raise RequestError(
                f"a captured step knows the entropy-bound sampler, not {sampler.name}: use denoise_canvases"
            )
        if sampler.t_min <= 0 and steps > 0 and sampler.plan(steps)[-1].temperature <= 0:
            raise RequestError("a captured step samples: give temperatures above 0")
        if model.self_conditioning is None:
            raise RequestError(f"this checkpoint ({model.config.model_type}) has no denoiser")
        self.model, self.sampler, self.stop_rule = model, sampler, stop_rule
        self.plan = sampler.plan(steps)
        self.vocab = model.config.text.vocab_size
        self.length = length = model.config.canvas_length
        device = model.device
        self.prefix = StaticPrefix(model, capacity, length)
        self.layers = StaticPass(model, self.prefix, model.decoder_scalars())
        self.index = torch.zeros(1, dtype=torch.long, device=device)
        self.taken = torch.zeros(1, dtype=torch.long, device=device)
        temperatures = [step.temperature for step in self.plan]
        self.temperatures = torch.tensor(temperatures, dtype=torch.float32, device=device)
        self.uniforms = torch.zeros(steps, length, dtype=torch.float64, device=device)
        self.noise = torch.zeros(steps, length, dtype=torch.long, device=device)
        self.canvas = torch.zeros(1, length, dtype=torch.long, device=device)
        self.argmax = torch.zeros_like(self.canvas)
        self.probability = torch.zeros(1, length, device=device)
        self.entropy = torch.zeros(1, length, device=device)
        self.accepted = torch.zeros(1, length, dtype=torch.bool, device=device)
        self.pinned = torch.zeros_like(self.accepted)
        self.finished = torch.zeros(1, dtype=torch.bool, device=device)
        rule = stop_rule or StopRule()
        self.history = rule.initial(length, device=device)
        width = model.config.text.hidden_size
        self.soft = torch.zeros(length, width, dtype=model.dtype, device=device)
        self.flag = LateFlag(self.finished)
        self.replay = Replay(self._step, device)

    def begin(self, prefix: PrefixCache, *, seed: int = 0, canvas: int = 0) -> None:
        """Lays out a fresh canvas behind a prefix of one row: its noise, and the draws of all its steps."""
        self.prefix.load(prefix)
        draws, keys = CounterDraws(), [RowKey(seed, canvas)]
        steps = [draws.step(keys, [i], self.length) for i in range(len(self.plan))]
        self.uniforms.copy_(torch.cat([step.uniform for step in steps]))
        self.noise.copy_(torch.cat([step.tokens(self.vocab) for step in steps]))
        self.canvas.copy_(draws.first_canvas(keys, self.length, self.vocab))
        self.argmax.copy_(self.canvas)
        for buffer in (self.index, self.taken, self.probability, self.entropy, self.soft):
            buffer.zero_()  # a soft embedding of zeros is the first step's
        self.accepted.fill_(False)
        self.finished.fill_(False)
        self.history.fill_(-1)

    def hidden(self) -> Tensor:
        """The pass over the canvas → hidden states (C, D)."""
        conditioning = self.model.self_conditioning
        assert conditioning is not None
        return self.layers(conditioning(self.model.embed(self.canvas[0]), self.soft))

    def predict(self, hidden: Tensor) -> fused_head.Folded:
        """The head's work on hidden states (C, D), with the temperature and the draws of the step at hand."""
        head = self.model.head
        return fused_head.fold(
            hidden,
            self.model.embed_tokens.weight,
            head.soft_cap,
            self.temperatures.index_select(0, self.index).repeat(self.length),
            self.uniforms.index_select(0, self.index)[0],
            soft=True,
        )

    def decide(self, found: fused_head.Folded) -> None:
        """The sampler's and the stop rule's work, and the buffers' next contents; a finished canvas stays as it is."""
        assert found.sample is not None and found.sample_probability is not None
        assert found.soft_embedding is not None
        prediction = Prediction(
            sample=found.sample.unsqueeze(0),
            sample_probability=found.sample_probability.unsqueeze(0),
            argmax=found.argmax.unsqueeze(0),
            argmax_probability=found.argmax_probability.unsqueeze(0),
            entropy=found.entropy.unsqueeze(0),
            soft_embedding=None,
            logsumexp=found.logsumexp.unsqueeze(0),
        )
        batch = CanvasBatch(
            canvas=self.canvas,
            accepted=self.accepted,
            pinned=self.pinned,
            plan=self.plan[
                :1
            ],  # read by samplers whose step depends on its number; this one's does not
            total=len(self.plan),
            vocab_size=self.vocab,
        )
        noise = self.noise.index_select(0, self.index)
        after, accepted = self.sampler.step(batch, prediction, _Laid(self.uniforms, noise))  # type: ignore[arg-type]
        frozen = self.finished
        kept = [
            (self.canvas, after.canvas),
            (self.accepted, accepted),
            (self.argmax, prediction.argmax),
            (self.probability, prediction.argmax_probability),
            (self.entropy, prediction.entropy),
            (self.soft, found.soft_embedding),
        ]
        self.taken += ~frozen
        if self.stop_rule is not None:
            history, now = self.stop_rule.update(
                self.history, prediction.argmax, prediction.entropy, self.pinned
            )
            finished = frozen | now
            self.history.copy_(history)
        else:
            finished = frozen
        for buffer, new in kept:
            buffer.copy_(torch.where(frozen, buffer, new))
        self.finished.copy_(finished)
        self.index.copy_((self.index + 1).clamp_max(len(self.plan) - 1))

    def _step(self) -> None:
        self.decide(self.predict(self.hidden()))

    def step(self) -> None:
        """One step, launched."""
        self.replay()

    def run(self) -> Canvas:
        """The rest of the canvas, until it is finished or its steps are used up."""
        launched = drive(self.replay, self.flag, len(self.plan))
        return Canvas(
            argmax=self.argmax[0].clone(),
            probability=self.probability[0].clone(),
            entropy=self.entropy[0].clone(),
            tokens=self.canvas[0].clone(),
            steps=int(self.taken),
            launched=launched,
            converged=bool(self.finished),
        )


class TokenGraph:
    """Greedy autoregression of one row, a token a replay. `begin`, then `run`.

    capacity: positions of the longest prefix and all new tokens. most: new tokens of a text. eos: token ids that end
    one. Ids are those of `decode_tokens` at temperature 0. Raises RequestError for a quantised model.
    """

    def __init__(
        self, model: DiffusionGemma, capacity: int, *, most: int, eos: Sequence[int] = ()
    ) -> None:
        self.model, self.most = model, most
        device = model.device
        self.prefix = StaticPrefix(model, capacity, 1)
        self.layers = StaticPass(model, self.prefix, model.encoder_scalars())
        self.ends = torch.tensor([-1, *eos], dtype=torch.long, device=device)  # no token is −1
        self.token = torch.zeros(1, dtype=torch.long, device=device)
        self.written = torch.zeros(most, dtype=torch.long, device=device)
        self.count = torch.zeros(1, dtype=torch.long, device=device)
        self.finished = torch.zeros(1, dtype=torch.bool, device=device)
        self.flag = LateFlag(self.finished)
        self.replay = Replay(self._step, device)

    def begin(self, prefix: PrefixCache) -> None:
        """Takes over a prefix of one row, with the hidden states of its last token, which give the first new one."""
        if prefix.hidden is None:
            raise RequestError(
                "the prefix must come from encode, with the hidden states of its end"
            )
        self.prefix.load(prefix)
        self.written.zero_()
        self.count.zero_()
        self.finished.fill_(False)
        with torch.inference_mode():
            self._take(self._next(prefix.hidden[:1, -1]))

    def _next(self, hidden: Tensor) -> Tensor:
        head = self.model.head
        return fused_head.greedy(hidden, self.model.embed_tokens.weight, head.soft_cap)

    def _take(self, token: Tensor) -> None:
        """Writes the token down, unless the text has ended or is full."""
        full = self.count >= self.most
        at = self.count.clamp_max(self.most - 1)
        stays = self.finished | full
        self.written.index_copy_(0, at, torch.where(stays, self.written.index_select(0, at), token))
        self.count += ~stays
        self.finished.logical_or_(
            (token == self.ends).any(0, keepdim=True) | (self.count >= self.most)
        )
        self.token.copy_(token)

    def hidden(self) -> Tensor:
        """The pass over the token → hidden states (1, D)."""
        return self.layers(self.model.embed(self.token))

    def _step(self) -> None:
        token = self._next(self.hidden())
        # Past the end the same slot is written again.
        room = (self.prefix.length < self.prefix.capacity - 1).long()
        self.prefix.length += room
        self._take(token)

    def run(self) -> list[int]:
        """The kept ids, an end included."""
        drive(self.replay, self.flag, self.most)
        return self.written[: int(self.count)].tolist()
