"""One object of a json file, read key by key with defaults, types and bounds checked.

Every error has the same form: file, key, what is expected, what was found, what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgemma_core.errors import CheckpointError
from dgemma_core.files.reading import plain, shown

JSON = dict[str, Any]

MOST_WHOLE = 2**31 - 1
MOST_NUMBER, LEAST_NUMBER = 1e9, 1e-30
"""Numbers beyond these overflow or vanish in float32 arithmetic."""


class Section:
    """A json object at `path` of the file `source`; `defaults` are what missing keys mean.

    Raises CheckpointError if `values` is no object.
    """

    def __init__(
        self,
        values: object,
        source: str,
        path: str = "",
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.source, self.path, self.defaults = source, path, defaults or {}
        if not isinstance(values, dict):
            where = f"{source}: {plain(path.rstrip('.'))}" if path else source
            found = shown(values, 60)
            raise CheckpointError(
                f"{where}: expected a json object, found {found}; correct the file"
            )
        self.values: JSON = values

    def without_nulls(self) -> Section:
        given = {key: value for key, value in self.values.items() if value is not None}
        return Section(given, self.source, self.path, self.defaults)

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, self.defaults.get(key, default))

    def refuse(
        self, key: str, found: object, expected: str, advice: str = "correct the file"
    ) -> CheckpointError:
        """The error of `key` having the value `found`."""
        what = shown(found)
        if key not in self.values:
            what = "no such key" if found is None else f"no such key, which means {what}"
        return CheckpointError(
            f"{self.source}: {plain(self.path + key)}: expected {expected}, found {what}; {advice}"
        )

    def whole(
        self, key: str, default: int | None = None, *, least: int = 1, most: int = MOST_WHOLE
    ) -> int:
        """A whole number from `least` to `most`."""
        value = self.get(key, default)
        if type(value) is not int or value < least:
            raise self.refuse(key, value, f"a whole number of at least {least}")
        if value > most:
            raise self.refuse(key, value, f"a whole number of at most {most}")
        return value

    def number(self, key: str, default: float | None = None, *, zero: bool = False) -> float:
        """A number above 0, or 0 too if `zero`, that float32 can compute with."""
        value = self.get(key, default)
        if (
            type(value) not in (int, float)
            or not value >= 0  # also NaN
            or (value == 0 and not zero)
        ):
            raise self.refuse(key, value, "a number of at least 0" if zero else "a number above 0")
        if value > MOST_NUMBER or 0 < value < LEAST_NUMBER:
            raise self.refuse(key, value, f"a number from {LEAST_NUMBER:g} to {MOST_NUMBER:g}")
        return float(value)

    def token(self, key: str, default: int | None = None) -> int:
        """A token id; null means the default."""
        value = self.get(key, default)
        token: Any = self.defaults.get(key) if value is None else value
        if not _is_token(token):
            raise self.refuse(key, token, "a token id")
        return int(token)

    def tokens(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Token ids: a list, a single id, or null for none."""
        value = self.get(key, default)
        ids = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
        if not all(map(_is_token, ids)):
            raise self.refuse(key, value, "a token id or a list of token ids")
        return ids


def _is_token(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_WHOLE
