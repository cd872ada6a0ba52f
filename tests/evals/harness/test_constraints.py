"""Constraints as model arguments of lm-eval: answers obey, runs are told apart, what is wrong is refused at once."""

import json
import re

import pytest
from lm_eval.api.instance import Instance

from dgemma_core import RequestError
from dgemma_evals.harness.models import DGemma, DGemmaAR, DGemmaSpec
from dgemma_evals.writers.options import Options
from tests.constraints.conftest import no_automata_of_the_user

__all__ = ["no_automata_of_the_user"]
PATTERN = "(yes|no)( please)?"


def model(checkpoint, kind=DGemma, **arguments):
    return kind(pretrained=str(checkpoint), device="cpu", **arguments)


def writing(prompt, doc=0, **gen_kwargs):
    given = {"until": [], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0, **gen_kwargs}
    return Instance("generate_until", {}, (prompt, given), 0, ("task", doc, 1))


@pytest.mark.parametrize("kind", [DGemma, DGemmaAR, DGemmaSpec])
def test_answers_obey_in_every_mode_and_batch(checkpoint, kind):
    asked = [writing(prompt, doc) for doc, prompt in enumerate(("one", "two three", "b"))]
    alone = model(checkpoint, kind, regex=PATTERN).generate_until(asked, disable_tqdm=True)
    assert all(re.fullmatch(PATTERN, answer) for answer in alone), alone
    together = model(checkpoint, kind, regex=PATTERN, batch_size="3")
    assert together.generate_until(asked, disable_tqdm=True) == alone


def test_a_schema_s_file_and_choices_are_arguments_too(checkpoint, tmp_path):
    file = tmp_path / "form.json"
    file.write_text(json.dumps({"enum": ["one", "two"]}))
    (answer,) = model(checkpoint, json_schema=str(file)).generate_until([writing("a")], True)
    assert json.loads(answer) in ("one", "two")
    (answer,) = model(checkpoint, choices="yes|a\\|b").generate_until([writing("a")], True)
    assert answer in ("yes", "a|b")


def test_a_task_s_gen_kwargs_may_hold_one(checkpoint):
    lm = model(checkpoint)
    asked = [writing("a", 0, choices="yes|no"), writing("a", 1)]
    bound, free = lm.generate_until(asked, disable_tqdm=True)
    assert bound in ("yes", "no") and free not in ("yes", "no")


def test_records_of_another_constraint_are_not_reused(checkpoint, tmp_path):
    kept = dict(pretrained=str(checkpoint), device="cpu", records=str(tmp_path))
    first = DGemma(**kept, choices="yes|no").generate_until([writing("a")], disable_tqdm=True)
    other = DGemma(**kept, choices="up|down")
    assert other.generate_until([writing("a")], disable_tqdm=True)[0] in ("up", "down")
    assert other.get_model_info()["resumed_records"] == 0
    again = DGemma(**kept, choices="yes|no")
    assert again.generate_until([writing("a")], disable_tqdm=True) == first
    assert again.get_model_info()["resumed_records"] == 1


def test_the_same_arguments_have_the_same_identity(checkpoint, tmp_path):
    """A schema is known by what it says, not by its file's name alone."""

    def identity(**arguments):
        given = {"pretrained": str(checkpoint), "device": "cpu", **arguments}
        return Options.parse("diffusion", given).identity()

    file = tmp_path / "form.json"
    file.write_text('{"enum": ["a"]}')
    before = identity(json_schema=str(file))
    assert before == identity(json_schema=str(file)) != identity()
    file.write_text('{"enum": ["b"]}')
    assert identity(json_schema=str(file)) != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regex": "a", "choices": "b"}, "exclude each other"),
        ({"json_schema": "/nowhere.json"}, "cannot be read"),
        ({"regex": "a", "enable_thinking": "True"}, "leave enable_thinking off"),
        ({"regexp": "a"}, "unknown model argument regexp"),
    ],
)
def test_what_is_wrong_is_refused_before_a_load(checkpoint, arguments, message):
    with pytest.raises(RequestError, match=message):
        Options.parse("diffusion", {"pretrained": "/nowhere", **arguments})


def test_a_constraint_that_no_answer_can_meet_is_one_line(checkpoint):
    lm = model(checkpoint, regex="a{90}")
    with pytest.raises(RequestError, match="shortest text") as caught:
        lm.generate_until([writing("a")], disable_tqdm=True)
    assert "\n" not in str(caught.value)
