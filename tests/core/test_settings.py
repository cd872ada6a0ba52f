"""How to write: the settings of each mode, and the one way from options to settings."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any, get_args

import numpy as np
import pytest
import torch

import dgemma_core as dg
from dgemma_core.errors import RequestError
from dgemma_core.events import Mode
from dgemma_core.generation.settings import (
    MODES,
    AutoregressiveSettings,
    DiffusionSettings,
    ModeSettings,
    settings_from,
)
from dgemma_core.request import Request
from dgemma_core.samplers import BlockRefinement, DiscreteDDIM, EntropyBound, StopRule


def test_every_mode_has_settings_and_every_settings_a_mode() -> None:
    assert set(MODES) == set(get_args(Mode))
    for mode, kind in MODES.items():
        assert kind.mode == mode and type(settings_from(mode)) is kind
        assert settings_from(mode) == kind()


def test_the_public_name_makes_the_settings_of_a_mode() -> None:
    sampler = BlockRefinement()
    assert dg.Settings(sampler=sampler) == DiffusionSettings(sampler=sampler)
    written = dg.Settings(mode="autoregressive", temperature=0.7)
    assert written == AutoregressiveSettings(temperature=0.7)
    assert dg.Settings("autoregressive") == AutoregressiveSettings()


@pytest.mark.parametrize("mode", MODES)
def test_an_option_at_its_default_asks_for_nothing(mode: str) -> None:
    defaults = {
        setting.name: setting.default for kind in MODES.values() for setting in fields(kind)
    }
    assert settings_from(mode, **defaults) == settings_from(mode)


def test_settings_are_values() -> None:
    """Equal settings share a batch (lm-eval): they compare, hash and cannot change."""
    for made in (settings_from(steps=3), settings_from("autoregressive", top_k=3, temperature=1.0)):
        again = settings_from(made.mode, **vars(made))
        assert again == made and hash(again) == hash(made)
        with pytest.raises(AttributeError):
            made.max_new_tokens = 3  # type: ignore[misc]
    assert settings_from("diffusion") != settings_from("autoregressive")


def test_settings_describe_themselves_as_json() -> None:
    sampler, rule = DiscreteDDIM(temperature=0.5), StopRule(stability=2, confidence=0.1)
    made: ModeSettings = DiffusionSettings(sampler=sampler, stop_rule=rule, steps=5)
    assert json.loads(json.dumps(made.described())) == {
        "sampler": {
            "name": "discrete_ddim", "temperature": 0.5, "corrector_steps": 0, "corrector_k": 1,
            "corrector_selection_tau": 1.0,
        },
        "stop_rule": {"stability": 2, "confidence": 0.1},
        "steps": 5, "soft_top_k": None, "max_new_tokens": None, "constraint": None,
    }  # fmt: skip
    made = AutoregressiveSettings(temperature=0.5, top_p=0.9)
    assert json.loads(json.dumps(made.described())) == {
        "temperature": 0.5, "top_k": None, "top_p": 0.9, "max_new_tokens": None,
        "constraint": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("parallel", {}, "unknown mode 'parallel': choose one of diffusion, autoregressive"),
        (None, {}, "unknown mode None"),
        (["diffusion"], {}, "unknown mode"),
        ("diffusion", {"warmth": 1}, "unknown option warmth: mode 'diffusion' has .*sampler"),
        ("autoregressive", {"warmth": 1}, "mode 'autoregressive' has .*temperature"),
        ("diffusion", {"temperature": 0.5}, "no meaning in mode 'diffusion': give the sampler its"),
        ("diffusion", {"top_p": 0.5}, "top_p has no meaning .* belongs to mode='autoregressive'"),
        ("autoregressive", {"steps": 3}, "steps has no meaning .* belongs to mode='diffusion'"),
        ("autoregressive", {"stop_rule": None}, "stop_rule has no meaning"),
        ("autoregressive", {"sampler": EntropyBound()}, "sampler has no meaning"),
        ("autoregressive", {"top_k": 3}, "no effect at temperature 0"),
        ("autoregressive", {"top_p": 0.9, "temperature": 0.0}, "no effect at temperature 0"),
        ("autoregressive", {"top_k": 0, "temperature": 1.0}, "top_k must be at least 1"),
        ("autoregressive", {"top_p": 1.5, "temperature": 1.0}, "top_p must"),
        ("autoregressive", {"top_p": 0.0, "temperature": 1.0}, "top_p must"),
        ("autoregressive", {"top_p": math.nan, "temperature": 1.0}, "top_p must be a finite"),
        *(
            ("autoregressive", {"temperature": value}, "temperature must be a finite number")
            for value in (math.inf, -math.inf, math.nan, -0.1, True, "warm", 10**400, 1j)
        ),
        *(
            ("diffusion", {name: value}, f"{name} must be a")
            for name in ("steps", "soft_top_k", "max_new_tokens")
            for value in (0, -1, 1.5, "many", True, math.nan, [3])
        ),
        ("diffusion", {"steps": 10**20}, "steps must"),
        ("diffusion", {"steps": 10**5000}, "steps must"),
        ("diffusion", {"sampler": "entropy_bound"}, "sampler must be a rule"),
        ("diffusion", {"stop_rule": "never"}, "stop_rule must be a StopRule, None or 'checkpoint'"),
        ("diffusion", {"sampler": DiscreteDDIM(corrector_steps=3), "steps": 3}, "corrector_steps"),
    ],
)
def test_settings_without_meaning(mode: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        settings_from(mode, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_numbers_of_numpy_become_pythons() -> None:
    made = DiffusionSettings(steps=np.int64(3), soft_top_k=np.uint8(2))  # type: ignore[arg-type]
    assert [type(value) for value in (made.steps, made.soft_top_k)] == [int, int]
    written = AutoregressiveSettings(temperature=np.float32(0.5))  # type: ignore[arg-type]
    assert written.temperature == 0.5 and type(written.temperature) is float


# --- requests


def test_a_request_converts_what_is_harmless() -> None:
    request = Request(
        np.array([3, 4]),  # type: ignore[arg-type]
        seed=np.int64(7),  # type: ignore[arg-type]
        max_new_tokens=torch.tensor(5),  # type: ignore[arg-type]
        stop="end",  # type: ignore[arg-type]
        pins={np.int32(0): torch.tensor(9)},  # type: ignore[dict-item]
    )
    assert (request.ids, request.seed, request.max_new_tokens) == ((3, 4), 7, 5)
    assert (request.stop, request.pins) == (("end",), {0: 9})
    values = (*request.ids, request.seed, request.max_new_tokens, *request.pins, request.pins[0])
    assert {type(value) for value in values} == {int}
    bare = Request([3], stop=None, pins=None)  # type: ignore[arg-type]
    assert (bare.stop, bare.pins) == ((), {})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        *(({"seed": seed}, "seed must be a whole number") for seed in (None, 1.5, "1", True)),
        *(
            ({"seed": seed}, "seed must be at least 0 and at most")
            for seed in (-1, 2**64, 10**5000)
        ),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": None}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"ids": None}, "ids must be token ids"),
        ({"ids": "text"}, "ids must be token ids"),
        ({"ids": [3.0]}, "ids must be token ids"),
        ({"ids": torch.tensor([[3, 4]])}, "ids must be token ids"),
        ({"stop": 5}, "stop must be strings"),
        ({"stop": ["a", 5]}, "stop must be strings"),
        ({"stop": b"end"}, "stop must be strings"),
        ({"pins": [3]}, "pins must map"),
        ({"pins": {0: "a"}}, "pins must be token ids"),
        ({"pins": {0.5: 3}}, "positions of pins must be"),
    ],
)
def test_a_request_refuses_values_of_another_kind(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        Request(**{"ids": [3], **values})
