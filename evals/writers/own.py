"""This project's models as writers: a request of lm-eval in, a text and its counts out.

Notable:
- random numbers come from the seed, task, document and prompt, so a text does not depend on batch size, order or number
  of processes;
- rows leave and join: a batch never waits for its slowest text;
- a thought is taken out before stop strings are sought, for it may hold one.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lm_eval.api.instance import Instance

from dgemma_core import FinishEvent, Generation, Loaded, Request, RequestError, load
from dgemma_core.events import Event
from dgemma_core.files.devices import available_memory
from dgemma_core.files.quantised import held_sizes
from dgemma_core.files.text import Tokenizer
from dgemma_core.generation import drain
from dgemma_core.generation.settings import AutoregressiveSettings, ModeSettings
from dgemma_evals.hashes import digest
from dgemma_evals.writers.arrivals import Arrivals
from dgemma_evals.writers.asked import Asked, Ignored
from dgemma_evals.writers.base import Served, Traffic, Written
from dgemma_evals.writers.counting import Counter, Counts
from dgemma_evals.writers.options import Options

_log = logging.getLogger(__name__)
_MOST_ROWS = 32
_MARK = "message"


@dataclass(frozen=True)
class Job:
    """A text to write: prompt, seed, and how."""

    ids: tuple[int, ...]
    seed: int
    settings: ModeSettings
    stop: tuple[str, ...]
    limit: int
    cut: int = 0
    """Tokens of the prompt's beginning that did not fit."""


class OwnWriter:
    """A DiffusionGemma in the mode of its options.

    name: as tables show it, `pretrained` if None. Raises RequestError where the checkpoint has no tokenizer, or no
    denoiser for diffusion; else as `load`.
    """

    def __init__(self, options: Options, *, name: str | None = None) -> None:
        self.options = options
        folder = options.folder()
        loaded = load(
            folder,
            dtype=options.dtype,
            device=options.device,
            quantize=options.quantize,
            backend=options.backend,
            adapter=options.adapter,
        )
        if loaded.tokenizer is None:
            raise RequestError(f"{folder}: no tokenizer.json: the harness needs one")
        if options.mode != "autoregressive" and not loaded.model.config.can_denoise:
            raise RequestError(f"{folder}: this checkpoint has no denoiser: use --model dgemma-ar")
        self.name = options.pretrained if name is None else name
        self.loaded: Loaded = replace(loaded, name=options.pretrained)
        self.text: Tokenizer = loaded.tokenizer
        self.settings = options.settings(loaded.generation).resolved(loaded)
        self.deterministic = (
            isinstance(self.settings, AutoregressiveSettings) and not self.settings.temperature
        )
        self.template = self.render if self.text.template is not None else None
        self.tokenizer_name = (
            f"{options.pretrained}-{digest(self.text.template, options.enable_thinking)}"
        )
        self.identity = options.identity()
        self.max_length = self._length_limit()
        self.batch = self._batch_size()
        self._ignored = Ignored()

    def describe(self) -> dict[str, Any]:
        """Model and settings, as plain values. The backend is the one that runs passes now."""
        settings, model = self.settings, self.loaded.model
        sizes = held_sizes(model)
        written = settings.described()
        del written["max_new_tokens"]  # a task sets its own
        return {
            "name": self.name,
            "model_name": self.loaded.name,
            "model_dtype": str(model.dtype).removeprefix("torch."),
            "model_quantize": model.quantized,
            **({} if self.options.adapter is None else {"model_adapter": self.options.adapter}),
            "model_num_parameters": sum(numbers for numbers, _ in sizes.values()),
            "model_bytes": sum(held for _, held in sizes.values()),
            "model_device": str(model.device),
            "model_backend": model.backend.name,
            "mode": self.options.mode,
            **written,
            "seed": self.options.seed,
            "enable_thinking": self.options.enable_thinking,
            "identity": self.identity,
            **self._ignored.facts(),
        }

    # --- prompts

    def render(self, chat: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as the checkpoint's template writes it; without a generation prompt, the last
        message is the beginning of the model's answer."""
        thinking = self.options.enable_thinking
        if add_generation_prompt:
            return self.text.render(chat, thinking=thinking)
        *history, begun = chat
        return self.text.render(history, thinking=thinking) + begun["content"]

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Token ids, BOS before them unless the text spells it out (a chat template does)."""
        spelled = text.startswith(self.text.named.get("bos_token", "\0"))
        return self.text.encode(
            text, bos=bos and self.text.bos_token_id is not None and not spelled
        )

    def job(self, instance: Instance, seed: int, repeat: int = 0) -> Job:
        """What a `generate_until` request asks. Raises RequestError for arguments that are nobody's."""
        prompt, gen_kwargs = instance.args
        if self.options.enable_thinking and self._turn not in prompt:
            raise RequestError("enable_thinking is of the chat template: add --apply_chat_template")
        settings, asked = self._asked(gen_kwargs)
        assert asked.limit is not None
        whole = self.encode(prompt)
        ids = self._shortened(whole, asked.limit)
        row = digest(seed, instance.task_name, instance.doc_id, prompt, repeat)
        cut = len(whole) - len(ids)
        return Job(tuple(ids), int(row, 16) >> 1, settings, asked.stop, asked.limit, cut)

    def check(self, gen_kwargs: Mapping[str, Any]) -> None:
        """Notes what of a request's arguments is ignored. Raises RequestError for one that is nobody's."""
        self._asked(gen_kwargs)

    def _asked(self, gen_kwargs: Mapping[str, Any]) -> tuple[ModeSettings, Asked]:
        settings, asked, ignored = self.options.request_settings(gen_kwargs, self.loaded.generation)
        self._ignored.add(ignored)
        return settings, asked

    @cached_property
    def _turn(self) -> str:
        """What the chat template writes behind a message that is to be answered."""
        chat = [{"role": "user", "content": _MARK}]
        return self.text.render(chat, thinking=True).partition(_MARK)[2]

    def _shortened(self, ids: list[int], limit: int) -> list[int]:
        """The prompt without its beginning, where prompt and answer exceed the length limit."""
        most = self.max_length - limit
        if most < 1:
            raise RequestError(
                f"max_gen_toks {limit} leaves no room for a prompt in max_length {self.max_length}"
            )
        if len(ids) > most:
            _log.warning("a prompt of %d tokens lost its first %d", len(ids), len(ids) - most)
        return ids[-most:]

    # --- texts

    def write(self, instance: Instance, seed: int, more: Mapping[str, Any]) -> Written:
        """The model writes alone: nothing else shares its batch."""
        prompt, given = instance.args
        asked = Instance(
            "generate_until", instance.doc, (prompt, {**given, **more}), instance.idx,
            (instance.task_name, instance.doc_id, instance.repeats),
        )  # fmt: skip
        ((_, written),) = self.stream([self.job(asked, seed)])
        return written

    def serve(self, instances: Sequence[Instance], seed: int, traffic: Traffic) -> list[Served]:
        """Many texts, `traffic.rows` at a time; they must ask for the same settings."""
        jobs = [self.job(instance, seed) for instance in instances]
        if len({job.settings for job in jobs}) > 1:
            raise RequestError("requests that are served together must have the same settings")
        found: dict[int, Written] = {}
        arrivals = Arrivals(self._requests(dict(enumerate(jobs))), traffic.arrivals)
        arrivals.at_work = lambda: len(arrivals.waited) - len(found)
        for place, written in self._texts(jobs[0].settings, arrivals, jobs, traffic.rows):
            found[place] = written
        return [Served(found[i], waited) for i, waited in enumerate(arrivals.waited)]

    def stream(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Written]]:
        """Texts in the order in which they end, each with its job's place; jobs of like settings share batches."""
        groups: dict[ModeSettings, list[int]] = {}
        for place, job in enumerate(jobs):
            groups.setdefault(job.settings, []).append(place)
        for settings, places in groups.items():
            requests = self._requests({place: jobs[place] for place in places})
            yield from self._texts(settings, requests, jobs, self.batch)

    def _requests(self, jobs: Mapping[int, Job]) -> list[Request]:
        """Requests by the names of their places. A thought may hold a stop string: then it is sought afterwards."""
        thinking = self.options.enable_thinking
        return [
            Request(job.ids, job.seed, job.limit, () if thinking else job.stop, id=place)
            for place, job in jobs.items()
        ]

    def _texts(
        self, settings: ModeSettings, requests: Iterable[Request], jobs: Sequence[Job], rows: int
    ) -> Iterator[tuple[int, Written]]:
        counter = Counter(settings.mode)
        ended: list[Any] = []

        def hear(event: Event) -> None:
            counter(event)
            if isinstance(event, FinishEvent):
                ended.append(event.request)

        events = settings.events(self.loaded, requests, batch_size=rows)
        for generation in drain(events, self.loaded, listen=hear):
            place = ended[-1]
            stop = jobs[place].stop if self.options.enable_thinking else ()
            counts = replace(counter.pop(place), cut_tokens=jobs[place].cut)
            yield place, self.finished(generation, counts, stop)

    def finished(self, generation: Generation, counts: Counts, stop: tuple[str, ...]) -> Written:
        """The answer without its thought, cut at a stop string that is still to be sought."""
        own_end = self.options.think_end_token is not None
        text = self._answer(generation.ids) if own_end else generation.text
        places = [place for place in (text.find(string) for string in stop) if place >= 0]
        if not places:
            return Written(text, counts)
        place = min(places)
        kept = bisect.bisect_right(
            range(len(generation.ids)),
            place,
            key=lambda count: len(self._answer(generation.ids[: count + 1])),
        )
        milestones = tuple((min(count, kept), at) for count, at in counts.milestones)
        counts = replace(counts, kept_tokens=kept, milestones=milestones, stop_reason="stop")
        return Written(text[:place], counts)

    def _answer(self, ids: Sequence[int]) -> str:
        """What follows the thought."""
        end = self.options.think_end_token
        if end is None:
            return self.text.strip_thought(ids)[1]
        mark = self.text.token_id(end)
        if mark is not None and mark in ids:
            ids = ids[len(ids) - list(ids)[::-1].index(mark) :]
        return self.text.decode(ids).split(end)[-1].lstrip()

    # --- sizes

    def _length_limit(self) -> int:
        own = self.loaded.model.config.text.max_position_embeddings
        asked = self.options.max_length
        if asked is not None and asked > own:
            raise RequestError(f"max_length {asked} is more than the model's {own}")
        return asked or own

    def _batch_size(self) -> int:
        """As asked; for auto, the rows of full length that fit into half of the free memory."""
        if not self.options.auto_batch:
            return int(self.options.batch_size)
        most = self.options.max_batch_size or _MOST_ROWS
        model = self.loaded.model
        free = available_memory(model.device)
        if free is None:
            return most
        limit = self.options.max_gen_toks or self.loaded.generation.max_new_tokens
        tokens = min(self.max_length, 2048 + limit)
        cached = sum(
            2 * layer.num_key_value_heads * layer.head_dim
            * (tokens if layer.full else min(tokens, model.config.text.sliding_window))
            for layer in model.config.text.layers
        )  # fmt: skip
        width = model.config.canvas_length * (16 * model.config.text.hidden_size + 4 * 8192)
        row = (cached + width) * max(4, model.dtype.itemsize)
        return max(1, min(most, free // 2 // row))
