"""Values from Python: whole numbers of any library are taken as ints, other kinds refused in one line."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import dgemma_core as dg
from dgemma_core.autoregression import decode_tokens
from dgemma_core.diffusion import denoise_canvases
from dgemma_core.errors import RequestError
from dgemma_core.observe import Observe
from dgemma_core.request import Request
from dgemma_core.samplers import BlockRefinement, EntropyBound, StopRule, describe
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


@pytest.mark.parametrize("options", [{"top_k": 1.5}, {"top_k": -1}, {"attention_positions": 5}])
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
