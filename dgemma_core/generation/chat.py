"""A conversation of several turns over one prefix cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dgemma_core.cache import PrefixCache
from dgemma_core.errors import RequestError, check_kind
from dgemma_core.events import Event
from dgemma_core.files.checkpoint import Loaded, check_loaded
from dgemma_core.generation.settings import DiffusionSettings, ModeSettings
from dgemma_core.generation.writing import Generation, check_flags, drain
from dgemma_core.request import Request, stop_strings


class Chat:
    """A conversation of several turns over one prefix cache: what has been said is encoded once."""

    def __init__(
        self,
        loaded: Loaded,
        settings: ModeSettings | None = None,
        *,
        system: str | None = None,
        thinking: bool = False,
    ) -> None:
        check_loaded(loaded)
        check_flags(thinking=thinking)
        check_kind("settings", settings, ModeSettings | None, "those of a mode, e.g. Settings()")
        check_kind("system", system, str | None, "a text, or None")
        if loaded.tokenizer is None:
            raise RequestError(f"{loaded.name} has no tokenizer: a chat needs one")
        self.loaded = loaded
        self.settings = (settings or DiffusionSettings()).resolved(loaded)
        if thinking and self.settings.constraint is not None:
            raise RequestError(
                "a constraint holds for whole answers, thoughts too: leave thinking off"
            )
        self.system = system
        self.thinking = bool(thinking)
        self.ids: tuple[int, ...] = ()
        self.cache: PrefixCache | None = None

    def request(
        self, message: str, *, seed: int = 0, stop: str | Sequence[str] | None = ()
    ) -> Request:
        """The next turn, as a request whose prefix is the conversation so far."""
        tokenizer = self.loaded.tokenizer
        assert tokenizer is not None and self.settings.max_new_tokens is not None
        if not self.ids:
            ids = tokenizer.chat_ids(message, system=self.system, thinking=self.thinking)
        else:
            ids = tokenizer.next_turn_ids(self.ids, message, thinking=self.thinking)
        return Request(
            ids=ids,
            seed=seed,
            max_new_tokens=self.settings.max_new_tokens,
            stop=stop_strings(stop),
            prefix=self.cache,
        )

    def say(
        self,
        message: str,
        *,
        seed: int = 0,
        stop: str | Sequence[str] | None = (),
        listen: Callable[[Event], None] | None = None,
    ) -> Generation:
        """Sends a message and returns the answer, which becomes part of the conversation."""
        request = self.request(message, seed=seed, stop=stop)
        events = self.settings.events(self.loaded, [request])
        (generation,) = drain(events, self.loaded, listen=listen, keep_cache=True)
        self.ids = (*request.ids, *generation.ids)
        cache = generation.cache
        # A stop string may cut tokens that were encoded: then the cache of the turn before serves on.
        if cache is not None and cache.lengths[0] <= len(self.ids):
            self.cache = cache
        return replace(generation, cache=None)
