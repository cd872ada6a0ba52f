"""DiffusionGemma as lm-eval models, one a mode.

`dgemma` writes by diffusion, `dgemma-ar` token by token, `dgemma-spec` by drafts that are verified.

Notable:
- texts are a writer's (writers/own.py), likelihoods are likelihood.py's; this module answers lm-eval's requests;
- likelihoods are the causal mode's and exact, for all models, unless `likelihood=nelbo`;
- answers are recorded as they are known (records.py), and a later run takes them from there.
"""

from __future__ import annotations

import hashlib
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from dgemma_core import RequestError
from dgemma_core.events import Mode
from dgemma_core.files.text import Tokenizer
from dgemma_core.generation.likelihood import Scored, causal_logprobs
from dgemma_core.generation.settings import MODES
from dgemma_evals.harness import likelihood, slots
from dgemma_evals.harness.arguments import FromArguments
from dgemma_evals.harness.processes import Processes
from dgemma_evals.harness.records import Record, Records
from dgemma_evals.hashes import digest
from dgemma_evals.writers.counting import Counts, summary
from dgemma_evals.writers.options import LIKELIHOODS, Options
from dgemma_evals.writers.own import Job, OwnWriter

TURN_END = "<turn|>"
_SCORED = 64
"""Likelihoods between two syncs of the records."""


class DGemma(FromArguments, Processes, TemplateLM):
    """lm-eval model `dgemma`: canvases. Arguments: `options.Options`."""

    mode: ClassVar[Mode] = "diffusion"

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        options = Options.parse(self.mode, arguments)
        self.join_processes()
        self.options = replace(options, device=self.own_device(options.device))
        self.writer = OwnWriter(self.options)
        self.text: Tokenizer = self.writer.text
        self.identity = self.writer.identity
        self._counts: list[Counts] = []
        self._cut: dict[str, int] = {}
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
        return self.writer.loaded.generation.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """BOS: what an empty context stands for."""
        bos = self.text.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.writer.loaded.model.device

    @property
    def batch_size(self) -> int:
        """Rows at a time."""
        return self.writer.batch

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self.writer.max_length

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer where neither task nor `gen_kwargs` sets a limit."""
        return self.options.max_gen_toks or self.writer.loaded.generation.max_new_tokens

    @property
    def tokenizer_name(self) -> str:
        """Names the request cache of the harness, which holds templated prompts."""
        return self.writer.tokenizer_name

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
        return self.writer.render(chat_history, add_generation_prompt)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids, BOS before them unless the text spells it out (a chat template does)."""
        return self.writer.encode(string, bos=add_special_tokens is not False)

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self.text.decode(tokens, special=not skip_special_tokens)

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuses lm-eval's response cache where it would mix models or repeats, or answer without a time."""
        if cache_hook.dbdict is not None:
            check_response_cache(
                str(cache_hook.dbdict.filename),
                self.identity,
                self.options,
                self.writer.deterministic,
            )
        super().set_cache_hook(cache_hook)

    def describe(self) -> dict[str, Any]:
        """Model and settings, as plain values."""
        facts = self.writer.describe()
        del facts["name"]  # lm-eval has names of its own
        return {**facts, "likelihood": LIKELIHOODS[self.options.likelihood]}

    def get_model_info(self) -> dict[str, Any]:
        """What the harness merges into `results["config"]` after a run: settings, and the counts
        of all written texts (of this process alone, if several run without records)."""
        counts = self._counts
        info = {**self.describe(), "rows_at_a_time": self.writer.batch}
        if self._records is not None:
            self._records.reload()
            counts = [Counts.from_json(r["counts"]) for r in self._records if "counts" in r]
            info["records"] = str(self._records.folder)
            info["resumed_records"] = self._records.resumed
        if self._cut:
            info["truncated_contexts"] = len(self._cut)
            info["truncated_context_tokens"] = sum(self._cut.values())
        if counts:
            info["written"] = summary(counts)
            if self._records is None and self._world_size > 1:
                info["written_by"] = f"process {self._rank} of {self._world_size} alone"
        return info

    # --- writing

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts, in the order of the requests."""
        answers: list[str | None] = [None] * len(requests)
        copies: list[tuple[int, str]] = []
        todo: dict[str, tuple[int, Job]] = {}
        seen: Tally[str] = Tally()
        for index, instance in enumerate(requests):
            base = self._key("generate_until", instance)
            repeat = seen[base] % (instance.repeats or 1)  # more are the harness's padding
            seen[base] += 1
            key = f"{base}-{repeat}"
            self.writer.check(
                instance.args[1]
            )  # what is ignored is told of answers that are known, too
            known = self._records.get(key) if self._records is not None else None
            if known is not None:
                answers[index] = str(known["answer"])
            elif key in todo:
                copies.append((index, key))
            else:
                todo[key] = index, self.writer.job(instance, self.options.seed, repeat)
        keys, jobs = list(todo), [job for _, job in todo.values()]
        with tqdm(
            total=len(jobs), desc="generate_until", disable=disable_tqdm or self._rank > 0
        ) as bar:
            for place, written in self.writer.stream(jobs):
                index = todo[keys[place]][0]
                instance = requests[index]
                answers[index] = written.text
                self._counts.append(written.counts)
                counts = {"counts": written.counts.to_json()}
                self._record(keys[place], instance, written.text, counts)
                self.cache_hook.add_partial("generate_until", instance.args, written.text)
                bar.update()
        for index, key in copies:
            answers[index] = answers[todo[key][0]]
        return [answer for answer in answers if answer is not None]

    def _key(self, kind: str, instance: Instance) -> str:
        return digest(kind, instance.task_name, instance.doc_id, list(instance.args))

    # --- likelihood

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding writes it) of each continuation; with `likelihood=slot` the log of
        its share among its question's choices."""
        if self.options.likelihood != "slot":
            found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm)
            return found
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for places in tqdm(
            slots.questions(requests), desc="slots", disable=disable_tqdm or self._rank > 0
        ):
            shares = self._shares([requests[place] for place in places])
            for place in places:  # which text greedy decoding writes is not known from a share
                answers[place] = shares[requests[place].args[1]], False
        return answers

    def _shares(self, question: Sequence[Instance]) -> dict[str, float]:
        """Log-shares of a question's choices, by text; recorded, or taken from the records."""
        context = question[0].args[0]
        texts = list(dict.fromkeys(instance.args[1] for instance in question))
        keys = [digest("slot", context, text, texts) for text in texts]
        known = [None if self._records is None else self._records.get(key) for key in keys]
        if all(record is not None for record in known):
            return {t: float(r["answer"]) for t, r in zip(texts, known, strict=True) if r}
        pairs = [
            self._encode_pair(context, text)
            if context
            else ([self.prefix_token_id], self.tok_encode(text, add_special_tokens=False))
            for text in texts
        ]
        # A token may reach over the context's edge: of such a pair the choices have the tokens behind it all alike.
        longest = max(pairs, key=lambda pair: len(pair[1]))
        ids = self._fitting(keys[0], list(longest[0]), list(longest[1]))
        asked = (ids, texts, [tokens for _, tokens in pairs])
        seed = int(digest(self.options.seed, context, texts), 16) >> 1
        (logs,) = slots.log_shares(
            self.writer.loaded, [asked], seeds=[seed % 2**63], passes=self.options.slot_passes,
            batch=max(self.writer.batch, len(texts)),
        )  # fmt: skip
        if self._records is not None:
            self._records.add(
                *(
                    {"key": key, "kind": "slot", "prompt_hash": _hash(context), "likelihood": "slot",
                     "answer": share, **self._cut_of(keys[0])}
                    for key, share in zip(keys, logs, strict=True)
                )
            )  # fmt: skip
        return dict(zip(texts, logs, strict=True))

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
                if record.get("cut_tokens"):
                    self._cut[key] = record["cut_tokens"]
            else:
                todo[key] = request
        bar = tqdm(total=len(todo), desc="loglikelihood", disable=disable_tqdm or self._rank > 0)
        with bar:
            for part in self._score(todo):
                if self._records is not None:
                    self._records.add(
                        *(
                            {"key": key, "kind": "loglikelihood", "prompt_hash": _hash(texts[0]),
                             "answer": list(answer), **more}
                            for key, texts, answer, more in part
                        )
                    )  # fmt: skip
                for key, texts, answer, _ in part:
                    known[key] = answer
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
                    bar.update()
        return [known[key] for key in keys]

    def _score(
        self, todo: Mapping[str, tuple[tuple[str, str], list[int], list[int]]]
    ) -> Iterator[list[tuple[str, tuple[str, str], tuple[float, bool], Record]]]:
        rows = [
            (key, texts, self._fitting(key, context, continuation), continuation)
            for key, (texts, context, continuation) in todo.items()
        ]
        if self.options.likelihood == "nelbo":
            for key, texts, context, continuation in rows:
                bound = likelihood.nelbo(
                    self.writer.loaded.model,
                    context,
                    continuation,
                    end=self.text.token_id(TURN_END) or self.eot_token_id,
                    samples=self.options.likelihood_samples,
                    seed=int(digest(self.options.seed, key), 16) >> 1,
                )
                # Which text greedy decoding writes is not known from a bound.
                more = {"likelihood": "nelbo", "standard_error": bound.standard_error}
                yield [(key, texts, (-bound.nats, False), more | self._cut_of(key))]
            return
        # The longest first, so that memory that does not suffice is noticed first; those of one context side by side.
        rows.sort(key=lambda row: (-len(row[2]), row[2]))
        most = max(_SCORED, self.writer.batch)
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            scored = self._scored([(context, text) for _, _, context, text in part])
            yield [
                (key, texts, (score.total, score.all_greedy),
                 {"likelihood": "ar_encoder", "tokens": len(text), **self._cut_of(key)})
                for (key, texts, _, text), score in zip(part, scored, strict=True)
            ]  # fmt: skip

    def _scored(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[Scored]:
        return causal_logprobs(self.writer.loaded.model, rows, batch=self.writer.batch)

    def _cut_of(self, key: str) -> Record:
        """For a record: how many tokens of the context did not fit; nothing where all did."""
        return {"cut_tokens": self._cut[key]} if key in self._cut else {}

    def _fitting(self, key: str, context: list[int], continuation: list[int]) -> list[int]:
        """The context without what does not fit, which is counted."""
        room = self.writer.max_length + 1 - len(continuation)  # the last token is only predicted
        if room < 1:
            raise RequestError(
                f"a continuation of {len(continuation)} tokens leaves no room for its context in"
                f" max_length {self.writer.max_length}"
            )
        if len(context) > room:
            self._cut[key] = len(context) - room
        return context[-room:]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """log p of whole texts after BOS, window by window; by the exact likelihood alone."""
        if self.options.likelihood != "ar_encoder":
            raise RequestError(
                f"a rolling likelihood becomes a perplexity, which {self.options.likelihood} is not: use "
                "likelihood=ar_encoder"
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
                get_rolling_token_windows(ids, self.prefix_token_id, self.writer.max_length, 1),
            )
            scored = self._scored([(context, list(part)) for context, part in windows])
            total = sum(score.total for score in scored)
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


class DGemmaAR(DGemma):
    """lm-eval model `dgemma-ar`: the same checkpoint, token by token."""

    mode: ClassVar[Mode] = "autoregressive"


class DGemmaSpec(DGemma):
    """lm-eval model `dgemma-spec`: the texts of `dgemma-ar`, drafted by the denoiser and verified."""

    mode: ClassVar[Mode] = "speculative"


def check_response_cache(path: str, identity: str, options: Options, deterministic: bool) -> None:
    """Raises RequestError unless `path` of lm-eval's response cache may serve this model."""
    advice = "leave use_cache out, and keep answers by the model argument records=FOLDER"
    if options.records is not None:
        raise RequestError(
            f"lm-eval's response cache answers without a time, and this run reports times: {advice}"
        )
    if not deterministic:
        raise RequestError(
            "lm-eval's response cache gives every repeat of a question the same answer, and this model samples:"
            f" {advice}"
        )
    if identity not in Path(path).name:
        raise RequestError(
            f"use_cache {path}: the harness would mix up models in it; its name must hold this model's hash,"
            f" {identity}; or {advice}"
        )


def _hash(prompt: Any) -> str:
    """As the harness hashes prompts in its samples."""
    return hashlib.sha256(str(prompt).encode()).hexdigest()


def models() -> Iterable[tuple[str, type[DGemma]]]:
    """The names that lm-eval knows them by."""
    kinds = (DGemma, DGemmaAR, DGemmaSpec)
    return [("-".join(filter(None, ("dgemma", MODES[kind.mode].short))), kind) for kind in kinds]
