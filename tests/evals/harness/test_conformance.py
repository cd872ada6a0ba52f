"""What lm-eval's own tests ask of a model (tests/models/test_huggingface.py, test_bos_handling.py, test_evaluator.py,
test_requests_caching.py of its repository), asked of ours: theirs name a model and numbers from the hub; here each is
asked of a small checkpoint, offline, and the numbers are those of plain arithmetic."""

from __future__ import annotations

import math
import subprocess
import sys

import lm_eval
import lm_eval.tasks
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.evaluator import evaluate, simple_evaluate

import dgemma_evals.lm_eval  # noqa: F401
from dgemma_evals.harness.models import models
from dgemma_evals.tasks.manager import Tasks
from tests.evals.commands.test_commands import HERE

NAMES = [name for name, _ in models()]
TASKS = ["made_choices", "made_rolling", "dgemma_nano_json"]
FOO = "foo bar"


@pytest.fixture(scope="module", params=NAMES)
def lm(request, checkpoint):
    return get_model(request.param).create_from_arg_string(
        f"pretrained={checkpoint},max_gen_toks=6", {"batch_size": None, "device": "cpu"}
    )


def manager():
    return Tasks(include_path=str(HERE / "tasks"), include_defaults=False, metadata={"count": 4})


def asked(kind, *args, doc=0):
    return Instance(kind, {}, args, 0, ("task", doc, 1))


@pytest.mark.subprocess
def test_one_import_is_enough(checkpoint):
    """And lm-eval's own names are still lm-eval's."""
    code = (
        "import lm_eval, lm_eval.tasks, lm_eval.evaluator\n"
        "before = lm_eval.tasks.TaskManager, lm_eval.evaluator.TaskManager, lm_eval.simple_evaluate\n"
        "import dgemma_evals.lm_eval\n"
        "assert before == (lm_eval.tasks.TaskManager, lm_eval.evaluator.TaskManager, lm_eval.simple_evaluate)\n"
        "manager = lm_eval.tasks.TaskManager(include_defaults=False, metadata={'count': 1})\n"
        f"found = lm_eval.simple_evaluate(model='dgemma', model_args='pretrained={checkpoint},device=cpu',\n"
        "    tasks=['dgemma_nano_json', 'dgemma_nano_word_sum'], limit=1, task_manager=manager,\n"
        "    gen_kwargs={'max_gen_toks': 4})\n"
        "print(sorted(found['results']))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.split("\n")[-2] == "['dgemma_nano_json', 'dgemma_nano_word_sum']"


def test_a_group_is_found_too():
    plain = lm_eval.tasks.TaskManager(include_defaults=False, metadata={"count": 1})
    assert len(plain.load(["dgemma_nano"])["tasks"]) == 12
    with pytest.raises(KeyError):
        plain.load(["dgemma_nonesuch"])


def test_it_is_made_from_a_string_or_a_mapping(checkpoint):
    for name in NAMES:
        kind = get_model(name)
        given = {"pretrained": str(checkpoint), "max_gen_toks": 6}
        one = kind.create_from_arg_obj(given, {"batch_size": 2, "device": "cpu"})
        other = kind.create_from_arg_string(
            f"pretrained={checkpoint},max_gen_toks=6", {"batch_size": "2", "device": "cpu"}
        )
        assert one.identity == other.identity and one.batch_size == other.batch_size == 2
        assert one.rank == 0 and one.world_size == 1 and one.max_gen_toks == 6


def test_text_becomes_tokens_and_text_again(lm):
    ids = lm.tok_encode(FOO)
    assert lm.tok_decode(ids) == FOO and all(isinstance(id, int) for id in ids)
    assert lm.max_length > len(ids) and 0 <= lm.eot_token_id < lm.text.vocab_size


def test_a_text_begins_once(lm):
    """BOS by default, once, whoever has written it; none where it is not wanted."""
    bos = lm.prefix_token_id
    assert lm.tok_encode(FOO)[0] == bos and lm.tok_encode(FOO).count(bos) == 1
    spelled = lm.text.named["bos_token"] + FOO
    assert lm.tok_encode(spelled) == lm.tok_encode(FOO)
    assert bos not in lm.tok_encode(FOO, add_special_tokens=False)
    chat = lm.apply_chat_template([{"role": "user", "content": FOO}])
    assert lm.tok_encode(chat).count(bos) == 1


def test_context_and_continuation_split_the_whole(lm):
    for context, continuation in ((FOO, " baz"), ("a ", "b"), ("x", "y")):
        first, second = lm._encode_pair(context, continuation)
        assert first + second == lm.tok_encode(context + continuation)
        assert second


def test_likelihoods(lm):
    """Numbers of a log-probability and a verdict; what greedy decoding writes is said to be so."""
    requests = [asked("loglikelihood", FOO, " baz"), asked("loglikelihood", "", "word")]
    for total, greedy in lm.loglikelihood(requests, disable_tqdm=True):
        assert isinstance(total, float) and total < 0 and type(greedy) is bool
    context = lm.tok_encode(FOO)
    hidden = lm.writer.loaded.model.encode([context]).hidden[0, -1]
    best = int(lm.writer.loaded.model.logits(hidden).argmax())
    ((total, greedy),) = lm._loglikelihood_tokens(
        [((FOO, "?"), context, [best])], disable_tqdm=True
    )
    assert greedy is True and math.exp(total) > 1 / lm.text.vocab_size


def test_all_choices_of_one_token_are_a_distribution(lm):
    context = lm.tok_encode(FOO)
    pairs = [((FOO, str(id)), context, [id]) for id in range(lm.text.vocab_size)]
    scores = lm._loglikelihood_tokens(pairs, disable_tqdm=True)
    assert math.fsum(math.exp(total) for total, _ in scores) == pytest.approx(1, abs=1e-3)
    assert sum(greedy for _, greedy in scores) == 1


def test_a_rolling_likelihood_is_that_of_the_whole_text(lm):
    (rolled,) = lm.loglikelihood_rolling([asked("loglikelihood_rolling", FOO)], disable_tqdm=True)
    ((whole, _),) = lm.loglikelihood([asked("loglikelihood", "", FOO)], disable_tqdm=True)
    assert rolled == pytest.approx(whole, abs=1e-4)


def test_texts_end_where_they_are_to_end(lm):
    given = {"until": [], "max_gen_toks": 6}
    (text,) = lm.generate_until([asked("generate_until", FOO, given)], disable_tqdm=True)
    assert isinstance(text, str) and given == {"until": [], "max_gen_toks": 6}, "left as it was"
    assert lm._counts[-1].kept_tokens <= 6
    if len(text) > 2:
        stop = text[1:3]
        cut = asked("generate_until", FOO, {"until": [stop], "max_gen_toks": 6})
        (shorter,) = lm.generate_until([cut], disable_tqdm=True)
        assert stop not in shorter and text.startswith(shorter)


def test_the_order_of_requests_changes_nothing(lm):
    texts = ["a", FOO * 9, "some words", FOO]
    for kind, more in (
        ("loglikelihood", " end"),
        ("generate_until", {"until": [], "max_gen_toks": 4}),
    ):
        requests = [asked(kind, text, more, doc=i) for i, text in enumerate(texts)]
        found = getattr(lm, kind)(requests, disable_tqdm=True)
        back = getattr(lm, kind)(requests[::-1], disable_tqdm=True)[::-1]
        if kind == "generate_until":
            assert found == back
        else:
            assert [t for t, _ in found] == pytest.approx([t for t, _ in back], abs=1e-4)


@pytest.mark.slow
def test_both_ways_to_evaluate_agree(lm, checkpoint):
    """`simple_evaluate` by name and `evaluate` with a model give the same numbers, for every type of request."""
    name = next(name for name, kind in models() if type(lm) is kind)
    more = {"limit": 3, "bootstrap_iters": 0}
    first = simple_evaluate(
        model=name, model_args=f"pretrained={checkpoint},max_gen_toks=6,device=cpu", tasks=TASKS,
        task_manager=manager(), gen_kwargs={"max_gen_toks": 6}, **more,
    )  # fmt: skip
    loaded = manager().load(TASKS)
    loaded["tasks"]["dgemma_nano_json"].set_config(
        key="generation_kwargs", value={"max_gen_toks": 6}, update=True
    )
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    second = evaluate(lm=lm, task_dict=loaded, **more)
    numbers = ("acc,none", "word_perplexity,none", "solved,none", "score,none")
    for task in TASKS:
        for metric in numbers:
            if metric in first["results"][task]:
                wanted = first["results"][task][metric]
                assert second["results"][task][metric] == pytest.approx(wanted, rel=1e-5)
    assert first["config"]["model_device"] == "cpu" and first["config"]["mode"] == lm.mode


@pytest.mark.slow
def test_requests_are_cached_by_template(lm, tmp_path, monkeypatch):
    """--cache_requests: the second run builds no request, and answers alike."""
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path))
    found = []
    for _ in range(2):
        results = simple_evaluate(
            model=lm, tasks=["dgemma_nano_json"], task_manager=manager(), limit=2,
            cache_requests=True, apply_chat_template=True, gen_kwargs={"max_gen_toks": 4},
            bootstrap_iters=0,
        )  # fmt: skip
        found.append([row["resps"] for row in results["samples"]["dgemma_nano_json"]])
    assert found[0] == found[1] and len(list(tmp_path.iterdir())) == 1


def test_no_gradient_and_no_global_seed(lm):
    """What lm-eval seeds is not drawn from, and no answer leaves a graph behind."""
    request = asked("generate_until", FOO, {"until": [], "max_gen_toks": 6})
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = lm.generate_until([request], disable_tqdm=True)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert lm.generate_until([request], disable_tqdm=True) == first
