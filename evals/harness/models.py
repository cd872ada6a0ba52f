"""DiffusionGemma as lm-eval models: `dgemma` writes by diffusion, `dgemma-ar` token by token.

Notable:
- the seed of a request comes from the run's seed, task, document and prompt, so that an answer does
  not depend on batch size, order, number of processes, or what a killed run had done before;
- rows leave and join: a batch never waits for its slowest text;
- likelihoods are the causal mode's and exact, for both models, unless `likelihood=nelbo`;
- answers are recorded as they are known (records.py) and taken from there by a later run.
"""

from __future__ import annotations

import atexit
import bisect
import hashlib
import logging
import os
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from dgemma_core import FinishEvent, Generation, Loaded, Request, RequestError, Settings, load
from dgemma_core.events import Event
from dgemma_core.files.devices import available_memory
from dgemma_core.files.quantised import held_sizes
from dgemma_core.generation import Mode, drain
from dgemma_core.samplers import describe
from dgemma_core.text import Tokenizer
from dgemma_evals.harness import likelihood
from dgemma_evals.harness.records import Record, Records, digest
from dgemma_evals.writers.counting import Counter, Counts, summary
from dgemma_evals.writers.options import LIKELIHOODS, Options

_log = logging.getLogger(__name__)
_MOST_ROWS = 32
TURN_END = "<turn|>"


@dataclass(frozen=True)
class Written:
    """An answer, as the harness gets it, and what it cost."""

    text: str
    counts: Counts


@dataclass(frozen=True)
class _Job:
    """A request to write: its place among the requests, and what it asks."""

    index: int
    key: str
    ids: tuple[int, ...]
    seed: int
    settings: Settings
    stop: tuple[str, ...]
    limit: int
    instance: Instance


class DGemma(TemplateLM):
    """lm-eval model `dgemma`: canvases. Arguments: `options.Options`."""

    mode: ClassVar[Mode] = "diffusion"

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.options = Options.parse(self.mode, arguments)
        self._join_processes()
        folder = self.options.folder()
        device = self.options.device
        if self._world_size > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', self._rank)}"
        loaded = load(
            folder, dtype=self.options.dtype, device=device, quantize=self.options.quantize
        )
        if loaded.tokenizer is None:
            raise RequestError(f"{folder}: no tokenizer.json: the harness needs one")
        self.loaded: Loaded = replace(loaded, name=self.options.pretrained)
        if self.mode == "diffusion" and not loaded.model.config.can_denoise:
            raise RequestError(f"{folder}: this checkpoint has no denoiser: use --model dgemma-ar")
        self.text: Tokenizer = loaded.tokenizer
        self.settings = self.options.settings(loaded.generation).resolved(loaded)
        self.max_length = self._length_limit()
        self.batch = self._batch_size()
        self.identity = self.options.identity()
        self._counts: list[Counts] = []
        self._templated = False
        self._records: Records | None = None
        if self.options.records is not None:
            self._records = Records(
                self.options.records,
                self.identity,
                self.describe(),
                rank=self._rank,
                of=self._world_size,
            )

    # --- what the harness asks about the model

    @property
    def eot_token_id(self) -> int:
        """The first end-of-sequence id."""
        return self.loaded.generation.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """BOS: what an empty context stands for."""
        bos = self.text.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.loaded.model.device

    @property
    def batch_size(self) -> int:
        """Rows at a time."""
        return self.batch

    @property
    def tokenizer_name(self) -> str:
        """Names the request cache of the harness, which holds templated prompts."""
        return f"{self.loaded.name}-{digest(self.text.template, self.options.enable_thinking)}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The checkpoint's own template; another one cannot be named."""
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise RequestError(
                f"--apply_chat_template {chat_template}: the checkpoint has one template; give no name"
            )
        return self.text.template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The chat as the checkpoint's template writes it; without a generation prompt, the last
        message is the beginning of the model's answer."""
        self._templated = True
        if add_generation_prompt:
            return self.text.render(chat_history, thinking=self.options.enable_thinking)
        *history, begun = chat_history
        opened = self.text.render(history, thinking=self.options.enable_thinking)
        return opened + begun["content"]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids, BOS before them unless the text spells it out (a chat template does)."""
        spelled = string.startswith(self.text.named.get("bos_token", "\0"))
        bos = self.text.bos_token_id is not None and not spelled
        return self.text.encode(string, bos=bos and add_special_tokens is not False)

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuses lm-eval's response cache where it would mix models, or answer without a time."""
        if cache_hook.dbdict is not None:
            check_response_cache(str(cache_hook.dbdict.filename), self.identity, self.options)
        super().set_cache_hook(cache_hook)

    def describe(self) -> dict[str, Any]:
        """Model and settings, as plain values."""
        settings, options = self.settings, self.options
        sizes = held_sizes(self.loaded.model)
        written: dict[str, Any] = {"temperature": settings.temperature}
        if settings.sampler is not None:
            rule = settings.stop_rule
            written = {
                "sampler": describe(settings.sampler),
                "steps": settings.steps,
                "stop_rule": None if rule is None or rule == "checkpoint" else vars(rule),
                "soft_top_k": settings.soft_top_k,
            }
        return {
            "model_name": self.loaded.name,
            "model_dtype": str(self.loaded.model.dtype).removeprefix("torch."),
            "model_quantize": self.loaded.model.quantized,
            "model_num_parameters": sum(numbers for numbers, _ in sizes.values()),
            "model_bytes": sum(held for _, held in sizes.values()),
            "model_device": str(self.device),
            "mode": self.mode,
            **written,
            "seed": options.seed,
            "enable_thinking": options.enable_thinking,
            "likelihood": LIKELIHOODS[options.likelihood],
            "identity": self.identity,
        }

    def get_model_info(self) -> dict[str, Any]:
        """What the harness merges into `results["config"]` after a run: settings, and the counts
        of all written texts (of this process alone, if several run without records)."""
        counts = self._counts
        info = {**self.describe(), "rows_at_a_time": self.batch}
        if self._records is not None:
            self._records.reload()
            counts = [Counts.from_json(r["counts"]) for r in self._records if "counts" in r]
            info["records"] = str(self._records.folder)
            info["resumed_records"] = self._records.resumed
        if counts:
            info["written"] = summary(counts)
            if self._records is None and self._world_size > 1:
                info["written_by"] = f"process {self._rank} of {self._world_size} alone"
        return info

    # --- several processes

    def _join_processes(self) -> None:
        """Takes rank and world size from torchrun (or accelerate launch)."""
        import torch.distributed as dist

        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return
        if not dist.is_initialized():
            dist.init_process_group("gloo")
            # Else its threads may outlive the interpreter's end, which then aborts the process.
            atexit.register(dist.destroy_process_group)
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Scalars of all processes → (world size,)."""
        import torch.distributed as dist

        if self._world_size == 1:
            return tensor
        mine = tensor.cpu()
        parts = [torch.empty_like(mine) for _ in range(self._world_size)]
        dist.all_gather(parts, mine)
        return torch.stack(parts)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Objects of all processes, on process `dst`."""
        import torch.distributed as dist

        if self._world_size == 1:
            return [obj]
        gathered: list[Any] | None = [None] * self._world_size if self._rank == dst else None
        dist.gather_object(obj, gathered, dst)
        return gathered

    def barrier(self) -> None:
        """Waits for all processes."""
        import torch.distributed as dist

        if self._world_size > 1:
            dist.barrier()

    # --- writing

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts, in the order of the requests."""
        answers: list[str | None] = [None] * len(requests)
        copies: list[tuple[int, str]] = []
        todo: dict[str, _Job] = {}
        seen: Tally[str] = Tally()
        for index, instance in enumerate(requests):
            base = self._key("generate_until", instance)
            repeat = seen[base] % (instance.repeats or 1)  # more are the harness's padding
            seen[base] += 1
            key = f"{base}-{repeat}"
            known = self._records.get(key) if self._records is not None else None
            if known is not None:
                answers[index] = str(known["answer"])
            elif key in todo:
                copies.append((index, key))
            else:
                todo[key] = self._job(instance, self.options.seed, index, key, repeat)
        bar = tqdm(total=len(todo), desc="generate_until", disable=disable_tqdm or self._rank > 0)
        written: dict[str, str] = {}
        with bar:
            for job, answer in self._write(list(todo.values())):
                answers[job.index] = written[job.key] = answer.text
                self._counts.append(answer.counts)
                self._record(
                    job.key, job.instance, answer.text, {"counts": answer.counts.to_json()}
                )
                self.cache_hook.add_partial("generate_until", job.instance.args, answer.text)
                bar.update()
        for index, key in copies:
            answers[index] = written[key]
        return [answer for answer in answers if answer is not None]

    def respond(
        self,
        instance: Instance,
        *,
        seed: int,
        listen: Callable[[Event], None] | None = None,
    ) -> Written:
        """Writes one text now, with nothing recorded: for a comparison that keeps its own."""
        job = self._job(instance, seed)
        ((_, written),) = self._write([job], listen)
        return written

    def _key(self, kind: str, instance: Instance) -> str:
        return digest(kind, instance.task_name, instance.doc_id, list(instance.args))

    def _job(
        self, instance: Instance, seed: int, index: int = 0, key: str = "", repeat: int = 0
    ) -> _Job:
        prompt, gen_kwargs = instance.args
        if self.options.enable_thinking and not self._templated:
            raise RequestError("enable_thinking is of the chat template: add --apply_chat_template")
        generation = self.loaded.generation
        settings, stop, limit = self.options.request_settings(gen_kwargs, generation)
        ids = self._shortened(self.tok_encode(prompt), limit)
        row = digest(seed, instance.task_name, instance.doc_id, prompt, repeat)
        return _Job(index, key, tuple(ids), int(row, 16) >> 1, settings, stop, limit, instance)

    def _shortened(self, ids: list[int], limit: int) -> list[int]:
        """The prompt without its beginning, where prompt and answer exceed the length limit."""
        room = self.max_length - limit
        if room < 1:
            raise RequestError(
                f"max_gen_toks {limit} leaves no room for a prompt in max_length {self.max_length}"
            )
        if len(ids) > room:
            _log.warning("a prompt of %d tokens lost its first %d", len(ids), len(ids) - room)
        return ids[-room:]

    def _write(
        self, jobs: Sequence[_Job], listen: Callable[[Event], None] | None = None
    ) -> Iterator[tuple[_Job, Written]]:
        """Texts in the order in which they end; requests of like settings share batches."""
        groups: dict[Settings, list[_Job]] = {}
        for job in jobs:
            groups.setdefault(job.settings, []).append(job)
        for settings, group in groups.items():
            yield from self._write_group(settings, group, listen)

    def _write_group(
        self, settings: Settings, jobs: Sequence[_Job], listen: Callable[[Event], None] | None
    ) -> Iterator[tuple[_Job, Written]]:
        counter = Counter()
        ended: list[Any] = []

        def hear(event: Event) -> None:
            counter(event)
            if isinstance(event, FinishEvent):
                ended.append(event.request)
            if listen is not None:
                listen(event)

        thinking = self.options.enable_thinking
        requests = (
            # A thought may hold a stop string: then it is sought in the answer, afterwards.
            Request(job.ids, job.seed, job.limit, () if thinking else job.stop, id=i)
            for i, job in enumerate(jobs)
        )
        events = settings.events(self.loaded, requests, batch_size=self.batch)
        for generation in drain(events, self.loaded, listen=hear):
            job, counts = jobs[ended[-1]], counter.pop(ended[-1])
            yield job, self._finished(generation, counts, job.stop if thinking else ())

    def _finished(self, generation: Generation, counts: Counts, stop: tuple[str, ...]) -> Written:
        """The answer without its thought, cut at a stop string that is still to be sought."""
        text = self._answer(generation.ids) if self._own_end else generation.text
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

    @property
    def _own_end(self) -> bool:
        return self.options.think_end_token is not None

    def _answer(self, ids: Sequence[int]) -> str:
        """What follows the thought."""
        end = self.options.think_end_token
        if end is None:
            return self.text.strip_thought(ids)[1]
        mark = self.text.token_id(end)
        if mark is not None and mark in ids:
            ids = ids[len(ids) - list(ids)[::-1].index(mark) :]
        return self.text.decode(ids).split(end)[-1].lstrip()

    # --- likelihood

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding writes it) of each continuation."""
        known: dict[str, tuple[float, bool]] = {}
        keys = [digest("loglikelihood", *texts) for texts, _, _ in requests]
        todo = {}
        for key, request in zip(keys, requests, strict=True):
            record = self._records.get(key) if self._records is not None else None
            if record is not None:
                known[key] = (float(record["answer"][0]), bool(record["answer"][1]))
            else:
                todo[key] = request
        bar = tqdm(total=len(todo), desc="loglikelihood", disable=disable_tqdm or self._rank > 0)
        with bar:
            for key, texts, answer, more in self._score(todo):
                known[key] = answer
                if self._records is not None:
                    prompt_hash = _hash(texts[0])
                    self._records.add(
                        {"key": key, "kind": "loglikelihood", "prompt_hash": prompt_hash,
                         "answer": list(answer), **more}
                    )  # fmt: skip
                self.cache_hook.add_partial("loglikelihood", texts, answer)
                bar.update()
        return [known[key] for key in keys]

    def _score(
        self, todo: Mapping[str, tuple[tuple[str, str], list[int], list[int]]]
    ) -> Iterator[tuple[str, tuple[str, str], tuple[float, bool], Record]]:
        rows = [
            (key, texts, self._fitting(context, continuation), continuation)
            for key, (texts, context, continuation) in todo.items()
        ]
        if self.options.likelihood == "nelbo":
            for key, texts, context, continuation in rows:
                bound = likelihood.nelbo(
                    self.loaded.model,
                    context,
                    continuation,
                    end=self.text.token_id(TURN_END) or self.eot_token_id,
                    samples=self.options.likelihood_samples,
                    seed=int(digest(self.options.seed, key), 16) >> 1,
                )
                # Which text greedy decoding writes is not known from a bound.
                more = {"likelihood": "nelbo", "standard_error": bound.standard_error}
                yield key, texts, (-bound.nats, False), more
            return
        for start in range(0, len(rows), self.batch):
            part = rows[start : start + self.batch]
            scored = likelihood.causal_logprobs(
                self.loaded.model, [(context, text) for _, _, context, text in part]
            )
            for (key, texts, _, text), score in zip(part, scored, strict=True):
                more = {"likelihood": "ar_encoder", "tokens": len(text)}
                yield key, texts, (score.total, score.all_greedy), more

    def _fitting(self, context: list[int], continuation: list[int]) -> list[int]:
        """The context without what does not fit."""
        room = self.max_length + 1 - len(continuation)  # the last token is only predicted
        if room < 1:
            raise RequestError(
                f"a continuation of {len(continuation)} tokens leaves no room for its context in"
                f" max_length {self.max_length}"
            )
        return context[-room:]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """log p of whole texts after BOS, window by window; by the exact likelihood alone."""
        if self.options.likelihood != "ar_encoder":
            raise RequestError(
                "a rolling likelihood becomes a perplexity, which nelbo is not: use likelihood=ar_encoder"
            )
        totals = []
        for instance in tqdm(requests, desc="loglikelihood_rolling", disable=disable_tqdm):
            (text,) = instance.args
            key = self._key("loglikelihood_rolling", instance)
            record = self._records.get(key) if self._records is not None else None
            if record is not None:
                totals.append(float(record["answer"]))
                continue
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = map(
                make_disjoint_window,
                get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1),
            )
            rows = [(context, list(part)) for context, part in windows]
            total = 0.0
            for start in range(0, len(rows), self.batch):
                part = rows[start : start + self.batch]
                total += sum(s.total for s in likelihood.causal_logprobs(self.loaded.model, part))
            self._record(key, instance, total, {"likelihood": "ar_encoder", "tokens": len(ids)})
            self.cache_hook.add_partial("loglikelihood_rolling", instance.args, total)
            totals.append(total)
        return totals

    def _record(self, key: str, instance: Instance, answer: Any, more: Record) -> None:
        if self._records is None:
            return
        self._records.add(
            {
                "key": key,
                "kind": instance.request_type,
                "task": instance.task_name,
                "doc_id": instance.doc_id,
                "prompt_hash": _hash(instance.args[0]),
                "answer": answer,
                **more,
            }
        )

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


class DGemmaAR(DGemma):
    """lm-eval model `dgemma-ar`: the same checkpoint, token by token."""

    mode: ClassVar[Mode] = "autoregressive"


def check_response_cache(path: str, identity: str, options: Options) -> None:
    """Raises RequestError unless `path` of lm-eval's response cache may serve this model."""
    if options.records is not None:
        raise RequestError(
            "--use_cache answers without a time, and this run reports times: leave it out (the records"
            " let a run go on), or pass the model argument records=none"
        )
    if identity not in Path(path).name:
        raise RequestError(
            f"--use_cache {path}: the harness would mix up models in it; its name must hold this"
            f" model's hash, {identity} (`dgemma eval` adds it by itself)"
        )


def _hash(prompt: Any) -> str:
    """As the harness hashes prompts in its samples."""
    return hashlib.sha256(str(prompt).encode()).hexdigest()


def models() -> Iterable[tuple[str, type[DGemma]]]:
    """The names that lm-eval knows them by."""
    return (("dgemma", DGemma), ("dgemma-ar", DGemmaAR))
