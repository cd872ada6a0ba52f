"""`dgemma eval`: lm-eval's own command line, which knows our models and tasks."""

from __future__ import annotations

import json
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from dgemma_core import DgemmaError, RequestError

_RAW = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}
_USERS_FAULT = ("config", "_cli", "tasks", "api/registry.py", "api/group.py")
"""Parts of lm-eval whose ValueError and KeyError speak of what was asked for."""

_OURS = {"quantize": "int4", "backend": "torch"}
"""Options of our models that lm-eval's command line does not know, each with an example."""

eval_app = typer.Typer()


@eval_app.command(context_settings=_RAW, add_help_option=False)
def evaluate(ctx: typer.Context) -> None:
    """Evaluate with lm-eval's own command line (run, ls, validate), which then knows the models
    dgemma, dgemma-ar and dgemma-spec and the tasks dgemma_nano."""
    harness(ctx.args)


def harness(arguments: Sequence[str]) -> None:
    """lm-eval's command line, with our models and tasks known to it.

    For our models: the device is auto unless one is given; records stand beside the samples of --output_path, or in
    the folder of --use_cache, which they serve; --seed is the model's, too; and --quantize and --backend are the model
    arguments of those names. Raises DgemmaError where the results were not written whole, which lm-eval only logs.
    """
    from dgemma_evals.harness.register import own_index, register

    register()
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    arguments, ours = _taken(arguments)
    sys.argv = ["dgemma eval", *arguments]
    command = HarnessCLI()
    try:
        parsed = command.parse_args()
        if parsed.command == "run":
            _prepare(parsed, ours)
        elif ours:
            raise RequestError(
                f"--{next(iter(ours))} has no meaning for {parsed.command}: leave it out"
            )
        written = _Written(parsed)
        with own_index():
            command.execute(parsed)
        written.check()
    except (ValueError, KeyError, TypeError) as error:
        if not _users_fault(error):
            raise
        raise DgemmaError(str(error.args[0] if error.args else error)) from error


def _taken(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without the options that lm-eval does not know (`_OURS`), and the values of those."""
    left: list[str] = []
    found: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--")
        if not option.startswith("--") or name not in _OURS:
            left.append(argument)
            continue
        if name in found:
            raise RequestError(f"{option} is given twice: give it once")
        found[name] = value if equals else next(rest, "")
        if not found[name]:
            raise RequestError(f"{option} needs a value, e.g. {option} {_OURS[name]}")
    return left, found


def _users_fault(error: BaseException) -> bool:
    raised = Path(traceback.extract_tb(error.__traceback__)[-1].filename).as_posix()
    _, inside, part = raised.rpartition("/lm_eval/")
    return bool(inside) and part.startswith(_USERS_FAULT)


def _prepare(parsed: Namespace, ours: Mapping[str, str]) -> None:
    """Fills in what our models need that lm-eval's command line does not say."""
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.utils import sanitize_model_name, simple_parse_args_string

    from dgemma_evals.harness.models import models

    asked: dict[str, Any] = {}
    if parsed.config:
        asked = EvaluatorConfig.load_yaml_config(parsed.config)
    asked |= {name: value for name, value in vars(parsed).items() if value is not None}
    tasks = asked.get("tasks")
    named = tasks if isinstance(tasks, list) else [tasks]
    if tasks is not None and not any(str(task).strip(" ,") for task in named):
        raise RequestError("--tasks names none: `dgemma eval ls tasks` lists them")
    kinds = dict(models())
    if asked.get("model") not in kinds:
        for name in ours:
            raise RequestError(
                f"--{name} is of the models {', '.join(kinds)}, not of {asked.get('model')}"
            )
        return
    given = asked.get("model_args") or {}
    given = simple_parse_args_string(given) if isinstance(given, str) else dict(given)
    if not asked.get("device") and "device" not in given:
        parsed.device = "auto"
    elif "device" in given:
        parsed.device = given.pop("device")
    for name, value in ours.items():
        if given.get(name, value) != value:
            raise RequestError(
                f"--{name} {value} and the model argument {name}={given[name]}: give one"
            )
        given[name] = value
    cache, output = asked.get("use_cache"), asked.get("output_path")
    if cache and "records" in given:
        raise RequestError(
            "--use_cache and the model argument records are the same thing: give one"
        )
    if cache:
        # lm-eval's cache knows neither models nor repeats; records know both.
        given["records"], parsed.use_cache = os.fspath(cache), None
    elif output and "records" not in given:
        folder = Path(output)
        folder = folder.parent if folder.suffix == ".json" else folder
        given["records"] = os.fspath(
            folder / sanitize_model_name(str(given.get("pretrained", "nano")))
        )
    seeds = asked.get("seed")
    if seeds and "seed" not in given:
        drawn = (
            seeds[2] if isinstance(seeds, list | tuple) else seeds
        )  # torch's, which writes texts
        if drawn is not None:
            given["seed"] = drawn
    parsed.model_args = given


class _Written:
    """The results that a run ought to write into its --output_path."""

    def __init__(self, parsed: Namespace) -> None:
        self.folder: Path | None = None
        self.samples = False
        if parsed.command != "run":
            return
        from lm_eval.config.evaluate_config import EvaluatorConfig

        asked = EvaluatorConfig.load_yaml_config(parsed.config) if parsed.config else {}
        asked |= {name: value for name, value in vars(parsed).items() if value is not None}
        if asked.get("output_path"):
            path = Path(asked["output_path"])
            self.folder = path.parent if path.suffix == ".json" else path
            self.samples = bool(asked.get("log_samples") or asked.get("predict_only"))
        self.before = set(self._files())

    def _files(self) -> list[Path]:
        if self.folder is None:
            return []
        return [path for path in self.folder.rglob("*") if path.suffix in (".json", ".jsonl")]

    def check(self) -> None:
        """Raises DgemmaError where a file is missing or is not whole; what is not is removed."""
        rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
        if self.folder is None or rank:
            return
        new = [path for path in self._files() if path not in self.before]
        found = [path for path in new if not path.name.startswith("records-")]
        broken = [path for path in found if not _whole(path)]
        results = [path for path in found if path.suffix == ".json"]
        if results and not broken and (not self.samples or len(found) > len(results)):
            return
        for path in broken:
            path.unlink()
        raise DgemmaError(
            f"{self.folder}: the results were not written whole (is the disk full?); make room and run the same"
            " command again"
        )


def _whole(path: Path) -> bool:
    """Whether a file that lm-eval wrote is JSON to its end."""
    try:
        text = path.read_text(encoding="utf-8")
        parts = [text] if path.suffix == ".json" else text.splitlines()
        return bool(parts) and all(isinstance(json.loads(part), dict) for part in parts)
    except (OSError, ValueError):
        return False
