"""Bad input, systematically: every case ends within a time limit in a right answer or one DgemmaError.

About 2,000 cases with a fixed seed; `make fuzz` runs ten times as many (DGEMMA_FUZZ says how many).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.worker import Worker

CASES = int(os.environ.get("DGEMMA_FUZZ", "2000"))


def share(percent: int) -> settings:
    """So many of the cases, the same ones at every run."""
    return settings(
        max_examples=max(1, CASES * percent // 100),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stop()


number = st.integers(0, 10**6)
edits = st.lists(st.tuples(number, number), min_size=1, max_size=3)
backends = st.sampled_from(["torch", "cpu"])
modes = st.sampled_from(["diffusion", "autoregressive"])


def named(*names: str) -> st.SearchStrategy[list[tuple[str, int]]]:
    """Some of the names, each with the number of a value."""
    return st.lists(
        st.tuples(st.sampled_from(names), number), max_size=2, unique_by=lambda pair: pair[0]
    )


@pytest.mark.slow
@share(25)
@given(
    st.fixed_dictionaries(
        {
            "what": st.sampled_from(
                ["config.json", "generation_config.json", "header", "bytes", "weight", "weight"]
            ),
            "edits": edits,
            "backend": backends,
            "dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
            "prompt": st.integers(0, 1),
            "mode": modes,
        }
    )
)
def test_checkpoints(worker: Worker, case: dict[str, object]) -> None:
    worker.run("checkpoint", case)


@pytest.mark.slow
@share(15)
@given(
    st.fixed_dictionaries(
        {
            "file": st.sampled_from(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"]),
            "bytes": st.booleans(),
            "edits": st.lists(st.tuples(number, number), max_size=2),
            "parts": st.lists(
                st.tuples(
                    st.sampled_from(
                        ["normalizer", "pre_tokenizer", "post_processor", "decoder", "model",
                         "truncation", "padding"]
                    ),
                    number,
                ),
                max_size=2,
            ),
            "text": st.sampled_from(["", "Compute 4 - 1", "é漢字🙂\n\x00", "a" * 500, "\ud800"]),
        }
    )
)  # fmt: skip
def test_tokenizers(worker: Worker, case: dict[str, object]) -> None:
    worker.run("tokenizer", case)


atoms = st.sampled_from(
    "'a' 0 1 99999 10**9 2.5 none messages bos_token x n.v [x,x] {1:x} (x,x) range(9) range(99999) 'ab'*99"
    " messages[0].content m(x) namespace(v=x) dict(a=x) nothing ''.__class__ x.y x[0] x[1:]".split()
)
expressions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+ - * ** / // % ~ == in and or".split()), inner).map(
            lambda parts: "(" + " ".join(parts) + ")"
        ),
        st.tuples(
            inner,
            st.sampled_from(
                "join join(x) list length upper replace('a',x) tojson tojson(indent=9) indent(999)"
                " map('upper') sort string trim reverse int unique first last center(9) batch(2)".split()
            ),
        ).map("|".join),
        st.tuples(
            inner,
            st.sampled_from(
                "split('a') replace('a',x) join(x) format(x) ljust(10**9) items() keys() append(x)"
                " count('a') upper() encode()".split()
            ),
        ).map(lambda parts: f"({parts[0]}).{parts[1]}"),
    ),
    max_leaves=5,
)
statements = st.recursive(
    st.one_of(
        expressions.map(lambda e: "{{ " + e + " }}"),
        expressions.map(lambda e: "{% set x = " + e + " %}"),
        expressions.map(lambda e: "{% set n.v = " + e + " %}"),
        st.just("text "),
    ),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(expressions, inner).map(
            lambda p: "{% for x in " + p[0] + " %}" + p[1] + "{% endfor %}"
        ),
        st.tuples(expressions, inner).map(lambda p: "{% if " + p[0] + " %}" + p[1] + "{% endif %}"),
        inner.map(lambda body: "{% macro m(x) %}" + body + "{% endmacro %}"),
        inner.map(lambda body: "{% set x %}" + body + "{% endset %}"),
    ),
    max_leaves=6,
)


@pytest.mark.slow
@share(15)
@given(statements)
def test_templates(worker: Worker, source: str) -> None:
    worker.run("template", "{% set x = 'aa' %}{% set n = namespace(v='aa') %}" + source)


@pytest.mark.slow
@share(20)
@given(
    st.fixed_dictionaries(
        {"what": st.sampled_from(["bytes", "header", "header", "arrays"]), "edits": edits}
    )
)
def test_traces(worker: Worker, case: dict[str, object]) -> None:
    worker.run("trace", case)


@pytest.mark.slow
@share(13)
@given(
    st.fixed_dictionaries(
        {
            "fields": named(
                "ids", "seed", "max_new_tokens", "stop", "pins", "prefix", "state", "id"
            ),
            "options": named("steps", "batch_size", "eos", "soft_top_k", "temperature", "sampler"),
            "backend": backends,
            "mode": modes,
        }
    )
)
def test_requests(worker: Worker, case: dict[str, object]) -> None:
    worker.run("request", case)


OPTIONS = {
    "entropy_bound": ("entropy_bound", "t_min", "t_max"),
    "block_refinement": ("threshold", "temperature", "top_k", "top_p", "editing_threshold"),
    "discrete_ddim": (
        "temperature", "corrector_steps", "corrector_k", "corrector_selection_tau",
    ),
}  # fmt: skip


@pytest.mark.slow
@share(12)
@given(
    st.sampled_from(sorted(OPTIONS)).flatmap(
        lambda name: st.fixed_dictionaries(
            {
                "name": st.just(name),
                "options": named(*OPTIONS[name]),
                "stop": named("stability", "confidence"),
                "steps": st.integers(1, 5),
                "backend": backends,
            }
        )
    )
)
def test_samplers(worker: Worker, case: dict[str, object]) -> None:
    worker.run("sampler", case)
