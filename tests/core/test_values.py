"""Values from Python: whole numbers of any library are taken as ints, other kinds refused in one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import dgemma_core as dg
from dgemma_core.autoregression import decode_tokens
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.errors import RequestError, shown
from dgemma_core.generation import drain
from dgemma_core.generation.decide import decisions
from dgemma_core.generation.likelihood import causal_logprobs
from dgemma_core.observe import Observe
from dgemma_core.request import Request
from dgemma_core.samplers import BlockRefinement, EntropyBound, StopRule, describe
from dgemma_core.speculation import decode_speculative
from tests.core import tiny

USUAL: dict[str, Any] = {"ids": [2, 7, 9], "seed": 3, "max_new_tokens": 8, "pins": {1: 4}}


def ids(**changes: Any) -> tuple[int, ...]:
    requests = [Request(**{**USUAL, **changes})]
    return list(denoise_canvases(tiny.model(), requests, steps=3, eos=()))[-1].ids


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": np.array([2, 7, 9])},
        {"ids": np.array([2, 7, 9], np.uint8)},
        {"ids": torch.tensor([2, 7, 9])},
        {"ids": list(np.array([2, 7, 9]))},
        {"ids": (2, np.int32(7), torch.tensor(9))},
        {"ids": range(2, 10)},
        {"seed": np.uint64(3)},
        {"max_new_tokens": np.int16(8)},
        {"pins": {np.int64(1): np.int32(4)}},
        {"stop": []},
    ],
)
def test_whole_numbers_of_any_library_are_ints(changes: dict[str, Any]) -> None:
    plain = {"ids": list(range(2, 10))} if isinstance(changes.get("ids"), range) else {}
    assert ids(**changes) == ids(**plain)


@pytest.mark.parametrize(
    "changes",
    [
        {"ids": None}, {"ids": 5}, {"ids": "2 7 9"}, {"ids": b"abc"}, {"ids": [2.0]},
        {"ids": ["2"]}, {"ids": [None]}, {"ids": [[2, 7]]}, {"ids": np.zeros((1, 3), int)},
        {"ids": np.array([2.5])}, {"ids": [10**5000]}, {"ids": [-1]}, {"ids": [48]},
        {"seed": None}, {"seed": 1.5}, {"seed": "3"}, {"seed": -1}, {"seed": 2**64},
        {"seed": True}, {"max_new_tokens": None}, {"max_new_tokens": 8.0},
        {"max_new_tokens": 10**5000}, {"pins": [1]}, {"pins": {"1": 4}},
        {"pins": {1: None}}, {"pins": {1: 4.0}}, {"stop": 5}, {"stop": [5]}, {"stop": torch.ones(2)},
        {"prefix": 5}, {"state": 5},
    ],
)  # fmt: skip
def test_values_of_another_kind_are_one_line(changes: dict[str, Any]) -> None:
    for write in (denoise_canvases, decode_tokens):
        with pytest.raises(RequestError) as caught:
            list(write(tiny.model(), [Request(**{**USUAL, "pins": {}, **changes})]))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [denoise_canvases, decode_tokens, decode_speculative])
@pytest.mark.parametrize("name", ["decode", "observe"])
def test_arguments_of_a_loop_that_are_of_another_kind(name: str, write: Any) -> None:
    with pytest.raises(RequestError, match=f"{name} must be"):
        list(write(tiny.model(), [Request(ids=[2])], **{name: 5}))


@pytest.mark.parametrize("requests", [5, None, [5], Request(ids=[2])])
def test_what_are_no_requests(requests: Any) -> None:
    for write in (denoise_canvases, decode_tokens):
        with pytest.raises(RequestError):
            list(write(tiny.model(), requests))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": None}, {"steps": 1.5}, {"steps": 10**20}, {"steps": 0}, {"batch_size": None},
        {"batch_size": 1.5}, {"batch_size": "2"}, {"eos": 5}, {"eos": ["x"]},
        {"sampler": 5}, {"stop_rule": 5}, {"soft_top_k": 1.5}, {"soft_top_k": 10**30}, {"soft_top_k": "x"},
    ],
)  # fmt: skip
def test_options_of_another_kind_are_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        list(denoise_canvases(tiny.model(), [Request(**USUAL)], **options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("temperature", [math.inf, math.nan, -1, 1e-40, 1e300, 10**400, "1", None])
def test_temperatures_are_numbers_that_float32_can_divide_by(temperature: Any) -> None:
    with pytest.raises(RequestError, match="temperature must be"):
        decode_tokens(tiny.model(), [], temperature=temperature)
    with pytest.raises(RequestError, match="temperature must be"):
        BlockRefinement(temperature=temperature)


def test_settings_become_plain_values() -> None:
    sampler = EntropyBound(entropy_bound=np.float32(0.5), t_max=np.int64(1))
    assert describe(sampler) == {
        "name": "entropy_bound", "entropy_bound": 0.5, "t_min": 0.4, "t_max": 1.0,
    }  # fmt: skip
    assert all(type(value) in (str, float) for value in describe(sampler).values())
    assert type(StopRule(stability=np.int8(2)).stability) is int
    assert type(Observe(top_k=np.int8(2)).top_k) is int


@pytest.mark.parametrize(
    "options", [{"top_k": 1.5}, {"top_k": -1}, {"attention_positions": 5}, {"router": np.ones(2)}]
)
def test_what_cannot_be_observed(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Observe(**options)


@pytest.mark.parametrize(
    ("prompts", "options"),
    [
        (None, {}), (5, {}), ([], {}), ([None], {}), ([[2, None]], {}), ([[2.5]], {}),
        ([5.5], {}), ("Hi", {"seed": None}), ("Hi", {"seed": 1.5}), ("Hi", {"pins": 5}),
        ("Hi", {"stop": 5}), ("Hi", {"max_new_tokens": "x"}), ("Hi", {"steps": 1.5}),
        ("Hi", {"batch_size": 1.5}), ("Hi", {"soft_top_k": "x"}), ([{"role": 5}], {}),
        ([{"role": "user", "content": "x"}, 5], {}), (["Hi", {1: 2}], {}),
        *(("Hi", {"pins": pins}) for pins in (0, "", [], np.array([1, 2]))),
        *(("Hi", {"observe": observe}) for observe in (0, 5, "x", [], Observe)),
        *(("Hi", {"listen": listen}) for listen in (0, 5, "x", [])),
        *(("Hi", {"constraint": constraint}) for constraint in ("x", ["x"], [5], 5, {"a": 1})),
        *(
            ("Hi", {name: value})
            for name in ("raw", "thinking", "keep_cache", "mode", "sampler", "stop_rule")
            for value in (0, "", [], np.array([1, 2]), torch.tensor([1, 2]), object())
        ),
        ("Hi", {"stop_rule": StopRule}), ("Hi", {"sampler": EntropyBound}),
        *(
            ("Hi", {"mode": "speculative", "draft": draft})
            for draft in (0, [], np.array([1, 2]), dg.FixedDraft)
        ),
    ],
)  # fmt: skip
def test_generate_refuses_values_of_another_kind(prompts: Any, options: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        dg.generate(tiny.loaded(), prompts, **options)
    assert "\n" not in str(caught.value)


def test_generate_takes_arrays_as_one_prompt_or_several() -> None:
    loaded = tiny.loaded()
    expected = dg.generate(loaded, [2, 7, 9])[0].ids
    for prompt in (np.array([2, 7, 9]), torch.tensor([2, 7, 9]), [np.int64(2), 7, 9]):
        (one,) = dg.generate(loaded, prompt)
        assert one.ids == expected
    two = dg.generate(loaded, np.array([[2, 7, 9], [2, 7, 9]]), seed=np.int64(0))
    assert [len(two), two[0].ids] == [2, expected]


@pytest.mark.parametrize("flag", [True, np.True_])
def test_a_flag_of_numpy_is_a_flag(flag: Any) -> None:
    (one,) = dg.generate(tiny.loaded(), "Hi", max_new_tokens=4, raw=flag, keep_cache=flag)
    assert one.cache is not None
    assert dg.Chat(tiny.loaded(), thinking=flag).request("Hi").ids[0] == 2


CALLS: dict[str, Callable[[Any], Any]] = {
    "generate": lambda loaded: dg.generate(loaded, "Hi"),
    "chat": dg.Chat,
    "decide": lambda loaded: dg.decide(loaded, "{a}", {"a": ["yes", "no"]}),
    "decisions": lambda loaded: decisions(loaded, []),
    "prompt_ids": lambda loaded: dg.prompt_ids(loaded, "Hi"),
    "resolved": dg.Settings().resolved,
    "events": lambda loaded: dg.Settings("speculative").events(loaded, []),
    "drain": lambda loaded: list(drain([], loaded)),
}


@pytest.mark.parametrize(
    "loaded", [None, 5, "nano", tiny.model()], ids=["None", "5", "name", "model"]
)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_loaded_model(call: str, loaded: Any) -> None:
    with pytest.raises(RequestError, match=r"loaded must be what load\(…\) returns") as caught:
        CALLS[call](loaded)
    assert "\n" not in str(caught.value)


OTHERS: dict[str, Callable[[Any], Any]] = {
    "a chat's settings": lambda value: dg.Chat(tiny.loaded(), value),
    "a chat's system": lambda value: dg.Chat(tiny.loaded(), system=value),
    "a chat's thinking": lambda value: dg.Chat(tiny.loaded(), thinking=value),
    "said first": lambda value: dg.Chat(tiny.loaded()).say(value),
    "said next": lambda value: tiny.tokenizer().next_turn_ids([2], value),
    "said before": lambda value: tiny.tokenizer().next_turn_ids(value, "Hi"),
    "a listener": lambda value: dg.Chat(tiny.loaded()).say("Hi", listen=value),
    "a prompt": lambda value: dg.prompt_ids(tiny.loaded(), value),
    "a decision's prompt": lambda value: dg.decide(tiny.loaded(), "{a}", {"a": "xy"}, prompt=value),
    "questions": lambda value: decisions(tiny.loaded(), value),
    "a question": lambda value: decisions(tiny.loaded(), [value]),
    "rows": lambda value: causal_logprobs(tiny.model(), value),
    "a row": lambda value: causal_logprobs(tiny.model(), [value]),
    "a scored model": lambda value: causal_logprobs(value, [([1], [2])]),
    "a draft's chance": lambda value: dg.AdaptiveDraft(least_probability=value),
    "a token": lambda value: tiny.tokenizer().token_id(value),
    "a token's id": lambda value: tiny.tokenizer().token_string(value),
    "ids of an answer": lambda value: tiny.tokenizer().strip_thought(value),
}


@pytest.mark.parametrize(
    "value", [5.5, {0.5: 2}, np.array([0.5, 2]), object()], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("what", OTHERS)
def test_other_values_of_another_kind_are_one_line(what: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        OTHERS[what](value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_stream_of_nothing() -> None:
    with pytest.raises(RequestError, match="events must be the stream of a decode loop, got None"):
        list(drain(None, tiny.loaded()))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [None, 5, [], {}, np.array(["a", "b"])], ids=repr)
def test_a_sampler_of_no_name(name: Any) -> None:
    with pytest.raises(RequestError, match=r"unknown sampler .*: choose one of entropy_bound"):
        dg.sampler_from(name)


@pytest.mark.parametrize("error", [KeyError, RecursionError, ValueError])
def test_a_value_that_cannot_be_printed_is_named_by_its_type(error: type[Exception]) -> None:
    class Silent:
        def __repr__(self) -> str:
            raise error("no")

    wanted = "got a value that cannot be printed, of type Silent"
    for seed in (Silent(), [Silent()]):
        with pytest.raises(RequestError, match=wanted.replace("Silent", type(seed).__name__)):
            dg.generate(tiny.loaded(), "Hi", seed=seed)  # type: ignore[arg-type]
    assert shown(10**5000) == "a value that cannot be printed, of type int"
