"""What can go wrong for a user: every error is one clear line that says what to do."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any


class DgemmaError(Exception):
    """The base of all errors that are the input's fault, not a defect of the program."""


class CheckpointError(DgemmaError):
    """A model folder that cannot be read, is damaged, or holds another architecture."""


class RequestError(DgemmaError):
    """A prompt, a sampler setting or a combination of options that has no meaning."""


class DeviceError(DgemmaError):
    """A device that was asked for and is not there."""


def whole_number(name: str, value: Any, *, low: int = 0, high: int | None = None) -> int:
    """`value` as an int from `low` to `high`, both included.

    Integers of numpy and torch are converted. Raises RequestError, which calls the value `name`, for anything else,
    True and False included.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise RequestError(f"{name} must be a whole number, got {shown(value)}")
    if number < low or number > (2**64 - 1 if high is None else high):
        limit = "" if high is None and number < low else f" and at most {high or 2**64 - 1}"
        raise RequestError(f"{name} must be at least {low}{limit}, got {shown(number)}")
    return number


def finite_number(name: str, value: Any, *, low: float = 0.0) -> float:
    """`value` as a finite float of at least `low`. Raises RequestError, which calls the value `name`."""
    try:
        real = isinstance(value, Real) and not isinstance(value, bool)
        number = float(value) if real else math.nan
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number >= low):
        bound = f" of at least {low:g}" if low > -math.inf else ""
        raise RequestError(f"{name} must be a finite number{bound}, got {shown(value)}")
    return number


def temperature_number(name: str, value: Any) -> float:
    """A temperature: 0, or from 1e-6 to 1e6, by which float32 can divide logits. Raises RequestError."""
    number = finite_number(name, value, low=-math.inf)
    if number and not 1e-6 <= number <= 1e6:
        raise RequestError(f"{name} must be 0, or from 1e-06 to 1e+06, got {shown(number)}")
    return number


def shown(value: Any) -> str:
    """A value as an error quotes it: its repr, on one line and shortened."""
    try:
        text = " ".join(repr(value).split())  # of an array, several lines
    except Exception:  # a class's own, or Python's for whole numbers of more than 4,300 digits
        return f"a value that cannot be printed, of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}…"


def check_kind(name: str, value: Any, kind: Any, what: str) -> None:
    """Raises RequestError, which says `what` the value called `name` must be, for one of another kind."""
    if not isinstance(value, kind):
        raise RequestError(f"{name} must be {what}, got {shown(value)}")


# --- options of frozen dataclasses that have a `name`


def check_count(owner: Any, option: str, *, low: int, high: int = 2**31 - 1) -> None:
    """Makes the option Python's int. Raises RequestError unless it is a whole number within bounds."""
    value = whole_number(f"{owner.name}: {option}", getattr(owner, option), low=low, high=high)
    object.__setattr__(owner, option, value)


def check_number(
    owner: Any, option: str, *, low: float = 0.0, above: float = -math.inf, high: float = math.inf
) -> None:
    """Makes the option Python's float. Raises RequestError unless it is finite and within bounds."""
    name, given = f"{owner.name}: {option}", getattr(owner, option)
    value = finite_number(name, given, low=low)
    if not above < value <= high:
        bounds = f"above {above:g}" if above >= low else f"of at least {low:g}"
        bounds += f" and at most {high:g}" if high < math.inf else ""
        raise RequestError(f"{name} must be a number {bounds}, got {shown(given)}")
    object.__setattr__(owner, option, value)


def check_temperature(owner: Any, option: str) -> None:
    value = temperature_number(f"{owner.name}: {option}", getattr(owner, option))
    object.__setattr__(owner, option, value)
