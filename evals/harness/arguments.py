"""A model's own arguments beside the flags of lm-eval's command line."""

from __future__ import annotations

from typing import Any, Self

from lm_eval.utils import simple_parse_args_string

from dgemma_core import RequestError

_FLAG_DEFAULTS = {"batch_size": "1", "device": "cuda:0"}
"""What lm-eval's command line says where its user says nothing."""


class FromArguments:
    """How lm-eval makes a model."""

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> Self:
        """The model of its own arguments and of lm-eval's flags, whose defaults give way to the former.

        Raises RequestError where both say something else.
        """
        flags = {k: v for k, v in (additional_config or {}).items() if v is not None}
        own = {k: v for k, v in arg_dict.items() if v is not None}
        for name, value in own.items():
            flag = flags.get(name, value)
            if str(flag) not in (str(value), _FLAG_DEFAULTS.get(name)):
                raise RequestError(
                    f"--{name} {flag} and the model argument {name}={value}: give one"
                )
        return cls(**flags | own)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> Self:
        """As `create_from_arg_obj`, of `name=value,…`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)
