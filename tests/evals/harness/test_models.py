"""The lm-eval models: every request type, independence of the batch, what is refused."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from lm_eval.api.instance import Instance

from dgemma_core import DgemmaError, GenerationDefaults, RequestError, sampler_from
from dgemma_core.generation.likelihood import causal_logprobs
from dgemma_core.generation.settings import MODES
from dgemma_evals.harness.models import DGemma, DGemmaAR, DGemmaSpec, models
from dgemma_evals.writers.options import Options

PROMPTS = ("one", "Sort: 3, 1, 2", "a longer prompt than the others", "b", "Reverse the list:")


def writing(prompt, doc=0, repeats=1, **gen_kwargs):
    given = {"until": [], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0, **gen_kwargs}
    return Instance("generate_until", {}, (prompt, given), 0, ("task", doc, repeats))


def pair(context, continuation):
    return Instance("loglikelihood", {}, (context, continuation), 0, ("task", 0, 1))


def model(checkpoint, kind=DGemma, **arguments):
    return kind(pretrained=str(checkpoint), device="cpu", **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DGemma, DGemmaAR, DGemmaSpec])
def test_the_answers_are_those_of_any_batch(checkpoint, kind):
    requests = [writing(prompt, doc) for doc, prompt in enumerate(PROMPTS)]
    alone = model(checkpoint, kind).generate_until(requests, disable_tqdm=True)
    assert len(set(alone)) > 1
    for rows in (3, 8):
        lm = model(checkpoint, kind, batch_size=str(rows))
        assert lm.generate_until(requests, disable_tqdm=True) == alone
    backwards = model(checkpoint, kind).generate_until(requests[::-1], disable_tqdm=True)
    assert backwards == alone[::-1]


@pytest.mark.slow
def test_drafts_are_of_the_texts_of_the_causal_mode(checkpoint):
    requests = [writing(prompt, doc) for doc, prompt in enumerate(PROMPTS)]
    plain = model(checkpoint, DGemmaAR).generate_until(requests, disable_tqdm=True)
    lm = model(checkpoint, DGemmaSpec, batch_size="3", draft="fixed", draft_positions="4")
    assert lm.generate_until(requests, disable_tqdm=True) == plain
    info = lm.get_model_info()
    assert info["mode"] == "speculative" and info["draft"]["positions"] == 4
    assert info["written"]["rounds"] > 0 and "canvases" not in info["written"]
    assert lm.writer.deterministic
    assert not model(checkpoint, DGemmaSpec, temperature="0.5").writer.deterministic


def test_entry_points_name_every_mode():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    declared = project["project"]["entry-points"]["lm_eval.models"]
    assert declared == {name: f"{kind.__module__}:{kind.__name__}" for name, kind in models()}
    assert [kind.mode for _, kind in models()] == list(MODES)


def test_counts_are_gathered(checkpoint):
    lm = model(checkpoint)
    lm.generate_until([writing(prompt, doc) for doc, prompt in enumerate(PROMPTS[:2])], True)
    info = lm.get_model_info()
    assert info["written"]["texts"] == 2 and info["written"]["canvases"] >= 2
    assert info["sampler"]["name"] == "entropy_bound" and info["steps"] == 4
    assert info["likelihood"].startswith("ar_encoder")


def test_repeats_differ_and_padding_does_not_write_again(checkpoint):
    lm = model(checkpoint, DGemma)
    request = writing("one", repeats=3)
    answers = lm.generate_until([request] * 3 + [request], disable_tqdm=True)
    assert lm.get_model_info()["written"]["texts"] == 3
    assert answers[3] == answers[0] and len(set(answers[:3])) > 1


def test_loglikelihood_is_the_chain_rule(checkpoint):
    lm = model(checkpoint, batch_size=3)
    pairs = [("The answer is", " 7"), ("", "word"), ("A b", " c d e"), ("Same", " 7")]
    answers = lm.loglikelihood([pair(*texts) for texts in pairs], disable_tqdm=True)
    for (context, continuation), (logprob, greedy) in zip(pairs, answers, strict=True):
        prefix = lm.text.encode(context, bos=True)
        text = lm.text.encode(context + continuation, bos=True)[len(prefix) :]
        (wanted,) = causal_logprobs(lm.writer.loaded.model, [(prefix, text)])
        assert logprob == pytest.approx(wanted.total, abs=1e-4) and greedy is wanted.all_greedy
    again = model(checkpoint, DGemmaAR).loglikelihood([pair(*p) for p in pairs], disable_tqdm=True)
    assert [a for a, _ in again] == pytest.approx([a for a, _ in answers], abs=1e-4)


def choosing(context, *choices, doc=0):
    return [
        Instance("loglikelihood", {}, (context, choice), i, ("task", doc, 1))
        for i, choice in enumerate(choices)
    ]


def test_slots_share_a_question_among_its_choices(checkpoint, tmp_path):
    """Not by context, but by question; labelled, recorded, and the same whatever else is asked."""
    lm = model(checkpoint, DGemma, likelihood="slot", records=tmp_path)
    asked = choosing("one", " two", " three", " 4") + choosing("one", " two", " five", doc=1)
    answers = lm.loglikelihood(asked, disable_tqdm=True)
    for part in (answers[:3], answers[3:]):
        assert math.fsum(math.exp(share) for share, _ in part) == pytest.approx(1)
        assert not any(greedy for _, greedy in part)
    assert "no likelihood" in lm.get_model_info()["likelihood"]
    again = model(checkpoint, DGemma, likelihood="slot", records=tmp_path)
    assert again.loglikelihood(asked, disable_tqdm=True) == answers
    assert again.get_model_info()["resumed_records"] == 5
    alone = model(checkpoint, DGemma, likelihood="slot").loglikelihood(asked[3:], disable_tqdm=True)
    assert [share for share, _ in alone] == pytest.approx([share for share, _ in answers[3:]])
    with pytest.raises(RequestError, match="which slot is not"):
        lm.loglikelihood_rolling([pair("", "text")], disable_tqdm=True)


def test_slots_need_several_choices_behind_one_context(checkpoint):
    lm = model(checkpoint, DGemma, likelihood="slot", slot_passes=2)
    for asked in (
        choosing("one", " two"),
        [*choosing("one", " two"), *choosing("other", " three")],
    ):
        with pytest.raises(RequestError, match="several choices behind one context"):
            lm.loglikelihood(asked, disable_tqdm=True)
    with pytest.raises(RequestError, match="slot_passes has an effect with likelihood=slot only"):
        model(checkpoint, DGemma, slot_passes=2)
    with pytest.raises(RequestError, match="is of the denoiser"):
        model(checkpoint, DGemmaAR, likelihood="slot")


def test_rolling_windows_score_each_token_once(checkpoint):
    text = "one two three four five six seven"
    request = Instance("loglikelihood_rolling", {}, (text,), 0, ("task", 0, 1))
    (whole,) = model(checkpoint).loglikelihood_rolling([request], disable_tqdm=True)
    lm = model(checkpoint)
    (wanted,) = causal_logprobs(lm.writer.loaded.model, [([2], lm.text.encode(text))])
    assert whole == pytest.approx(wanted.total, abs=1e-4)
    (cut,) = model(checkpoint, max_length=5).loglikelihood_rolling([request], disable_tqdm=True)
    assert cut < 0 and not math.isclose(cut, whole, abs_tol=1e-3)


def test_the_bound_is_labelled_and_no_perplexity(checkpoint, tmp_path):
    lm = model(checkpoint, likelihood="nelbo", likelihood_samples=4, records=tmp_path)
    ((score, greedy),) = lm.loglikelihood([pair("one", " two")], disable_tqdm=True)
    assert math.isfinite(score) and greedy is False
    (record,) = lm._records
    assert record["likelihood"] == "nelbo" and record["standard_error"] > 0
    assert "upper bound" in lm.get_model_info()["likelihood"]
    rolling = Instance("loglikelihood_rolling", {}, ("text",), 0, ("task", 0, 1))
    with pytest.raises(RequestError, match="perplexity"):
        lm.loglikelihood_rolling([rolling])


def test_stop_strings_and_limits(checkpoint):
    lm = model(checkpoint, DGemmaAR)
    (free,) = lm.generate_until([writing("one")], True)
    assert len(free) > 3
    (cut,) = lm.generate_until([writing("one", until=[free[2:4]])], True)
    assert cut == free[: free.find(free[2:4])]
    counts = lm.writer.write(writing("one", max_gen_toks=3), 0, {}).counts
    assert counts.kept_tokens == 3 and counts.stop_reason == "length"


def test_chats_and_thoughts(checkpoint):
    lm = model(checkpoint, enable_thinking=True)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}]
    rendered = lm.apply_chat_template(chat)
    assert "<|think|>" in rendered and rendered.endswith("<|turn>model\n")
    assert lm.tok_encode(rendered).count(lm.text.bos_token_id) == 1
    begun = lm.apply_chat_template([*chat, {"role": "assistant", "content": "So"}], False)
    assert begun == rendered + "So"
    with pytest.raises(RequestError, match="one template"):
        lm.chat_template("other")
    with pytest.raises(RequestError, match="apply_chat_template"):
        model(checkpoint, enable_thinking=True).generate_until([writing("one")])


def test_a_thought_is_stripped_before_stop_strings_are_sought(checkpoint):
    lm = model(checkpoint, enable_thinking=True)
    prompt = lm.apply_chat_template([{"role": "user", "content": "one"}])
    written = lm.writer.write(writing(prompt), 0, {})
    ids = lm.text.encode("<|channel>thought\nno, stop<channel|>yes. stop here<turn|>")
    answered = SimpleNamespace(ids=tuple(ids), text=lm.text.strip_thought(ids)[1])
    counts = replace(written.counts, kept_tokens=len(ids), milestones=((len(ids), 1.0),))
    finished = lm.writer.finished(answered, counts, ("stop",))
    assert finished.text == "yes. " and finished.counts.stop_reason == "stop"
    kept = ids[: finished.counts.kept_tokens]
    assert lm.text.strip_thought(kept)[1] == "yes."  # the next token, " stop", is cut
    own = model(checkpoint, think_end_token="yes.")
    assert own.writer.finished(answered, counts, ()).text == "stop here"


# --- arguments


def test_arguments_as_a_command_line_holds_them():
    options = Options.parse(
        "diffusion",
        {"pretrained": "nano", "batch_size": "auto", "steps": "8", "entropy_bound": "0.3"},
    )
    settings = options.settings(GenerationDefaults(t_max=0.7))
    assert settings.steps == 8 and settings.soft_top_k is None and options.auto_batch
    few = Options.parse("diffusion", {"soft_top_k": "8"})
    assert few.settings(GenerationDefaults()).soft_top_k == 8
    assert settings.sampler == sampler_from("entropy_bound", entropy_bound=0.3, t_max=0.7)
    refined = Options.parse("diffusion", {"sampler": "block_refinement", "temperature": "0.5"})
    assert refined.settings(GenerationDefaults()).sampler.temperature == 0.5
    assert Options.parse("autoregressive", {"temperature": 0.5}).writing == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("mode", "given", "says"),
    [
        ("diffusion", {"colour": 1}, "unknown model argument colour"),
        ("diffusion", {"temperature": 0.5}, "entropy_bound has no option 'temperature'"),
        ("diffusion", {"sampler": "fast"}, "unknown sampler"),
        ("diffusion", {"steps": 0}, "at least 1"),
        ("diffusion", {"steps": 2.5}, "steps: expected int"),
        ("diffusion", {"soft_top_k": 0}, "soft_top_k must be at least 1"),
        ("autoregressive", {"soft_top_k": 8}, "soft_top_k has no meaning in mode 'autoregressive'"),
        ("diffusion", {"threshold": 0.5}, "no option 'threshold'"),
        ("autoregressive", {"steps": 8}, "steps has no meaning in mode 'autoregressive'"),
        ("autoregressive", {"likelihood": "nelbo"}, "of the denoiser"),
        ("speculative", {"steps": 8}, "steps has no meaning in mode 'speculative'"),
        ("speculative", {"draft": "bold"}, "choose fixed, adaptive or paying"),
        ("speculative", {"draft_positions": "many"}, "draft_positions: expected int"),
        ("diffusion", {"draft": "fixed"}, "draft has no meaning in mode 'diffusion'"),
        ("diffusion", {"likelihood": "exact"}, "choose one of"),
        ("diffusion", {"likelihood_samples": 8}, "likelihood=nelbo only"),
        ("diffusion", {"batch_size": "many"}, "a number or auto"),
        ("diffusion", {"batch_size": "auto:4"}, "has no effect where rows join and leave"),
        ("diffusion", {"batch_size": "auto:"}, "a number or auto"),
        ("diffusion", {"max_batch_size": 4}, "auto only"),
        ("diffusion", {"quantize": "int2"}, "quantize: expected int8 or int4, found int2"),
        ("autoregressive", {"quantize": "none"}, "quantize: expected int8 or int4, found none"),
        ("diffusion", {"backend": "fast"}, "unknown backend 'fast'"),
        ("diffusion", {"enable_thinking": "maybe"}, "expected bool"),
        ("diffusion", {"revision": "main"}, "on the hub"),
        ("diffusion", {"max_length": 0}, "at least 1"),
        ("diffusion", {"max_length": math.inf}, "max_length: expected int"),
        ("diffusion", {"steps": math.inf}, "steps: expected int"),
        ("diffusion", {"t_min": 10**400}, "t_min: expected float"),
        ("diffusion", {"backend": []}, "backend: expected str"),
        ("diffusion", {"choices": ["a"]}, "choices: expected str"),
        ("diffusion", {"json_schema": 5}, "5: the JSON Schema cannot be read"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(mode, given, says):
    with pytest.raises(RequestError, match=says) as caught:
        Options.parse(mode, given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [DGemma.create_from_arg_obj, DGemma.create_from_arg_string])
def test_arguments_that_lm_eval_has_flags_for(make, checkpoint):
    def made(flags, **own):
        given = {"pretrained": str(checkpoint), "device": "cpu", **own}
        text = ",".join(f"{name}={value}" for name, value in given.items())
        return make(text if make == DGemma.create_from_arg_string else given, flags)

    assert made({"batch_size": 1, "device": "cuda:0"}, batch_size=3).batch_size == 3
    assert made({"batch_size": "3", "device": None}, batch_size=3).batch_size == 3
    assert made({"batch_size": 2}).batch_size == 2
    with pytest.raises(RequestError, match="--batch_size 2 and the model argument batch_size=3"):
        made({"batch_size": 2}, batch_size=3)
    with pytest.raises(RequestError, match="batch_size: expected a number or auto, got 0"):
        made({"batch_size": 1}, batch_size=0)


@pytest.mark.parametrize(
    ("kind", "gen_kwargs", "says"),
    [
        (DGemma, {"colour": 4}, "colour has no meaning"),
        (DGemmaAR, {"max_gen_toks": 0}, "a whole number from 1"),
        (DGemmaAR, {"entropy_bound": 0.1}, "no meaning in mode"),
        (DGemma, {"max_gen_toks": 5000}, "no room for a prompt"),
    ],
)
def test_a_wrong_generation_argument_is_one_clear_line(checkpoint, kind, gen_kwargs, says):
    with pytest.raises(RequestError, match=says) as caught:
        model(checkpoint, kind).generate_until([writing("one", **gen_kwargs)], True)
    assert "\n" not in str(caught.value)


def test_generation_arguments_have_an_effect(checkpoint):
    lm = model(checkpoint)
    assert lm.writer.write(writing("one", steps=2), 0, {}).counts.steps_per_canvas[0] <= 2
    warm = model(checkpoint, DGemmaAR)
    hot = warm.generate_until([writing("one", do_sample=True, temperature=1.0)], True)
    assert hot != warm.generate_until([writing("one")], True)


@pytest.mark.parametrize("kind", [DGemma, DGemmaAR, DGemmaSpec])
def test_arguments_of_public_tasks_do_not_end_a_run(checkpoint, kind):
    """They are honoured, or ignored and named in the results."""
    lm = model(checkpoint, kind)
    brought = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "num_beams": 1}
    lm.generate_until([writing("one", **brought), writing("b", **brought)], True)
    ignored = lm.get_model_info()["ignored_arguments"]
    honoured = {"do_sample", "temperature"} if kind is not DGemma else set()
    assert set(ignored) == brought.keys() - honoured and ignored["top_p"] == [0.95]
    plain = model(checkpoint, kind)
    short = plain.writer.write(writing("one", max_gen_toks=None, max_completion_tokens=2), 0, {})
    assert short.counts.kept_tokens <= 2
    assert "ignored_arguments" not in plain.get_model_info()


def test_a_sampler_that_has_the_argument_honours_it(checkpoint):
    lm = model(checkpoint, sampler="block_refinement")
    lm.generate_until([writing("one", do_sample=True, temperature=0.6, top_p=0.5)], True)
    assert set(lm.get_model_info()["ignored_arguments"]) == {"do_sample"}
    cold = model(checkpoint, sampler="block_refinement")  # at temperature 0, top_p has no effect
    cold.generate_until([writing("one", top_p=0.5)], True)
    assert set(cold.get_model_info()["ignored_arguments"]) == {"top_p"}


def test_a_long_prompt_loses_its_beginning(checkpoint):
    lm = model(checkpoint, max_length=40)
    counts = lm.writer.write(writing("word " * 60), 0, {}).counts
    assert counts.prompt_tokens == 28
    assert counts.cut_tokens == len(lm.text.encode("word " * 60, bos=True)) - 28


def test_requests_from_a_cache_are_known_as_chats(checkpoint):
    """--cache_requests hands out prompts that another process has templated."""
    prompt = model(checkpoint, enable_thinking=True).apply_chat_template(
        [{"role": "user", "content": "one"}]
    )
    lm = model(checkpoint, enable_thinking=True)
    assert isinstance(lm.generate_until([writing(prompt)], True)[0], str)
    with pytest.raises(RequestError, match="apply_chat_template"):
        lm.generate_until([writing("one")], True)


def test_auto_batch_fits_the_memory(checkpoint):
    assert 1 <= model(checkpoint, batch_size="auto", max_batch_size="5").writer.batch <= 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DGemma, DGemmaAR, DGemmaSpec])
def test_the_backend_is_chosen_and_named(checkpoint, kind):
    answers, identities = set(), set()
    for name in ("torch", "cpu"):
        lm = model(checkpoint, kind, backend=name)
        answers.add(tuple(lm.generate_until([writing(prompt) for prompt in PROMPTS], True)))
        assert lm.get_model_info()["model_backend"] == name == lm.writer.loaded.model.backend.name
        identities.add(lm.identity)
    assert len(answers) == 1 and len(identities) == 2  # float32: the same ids


@pytest.mark.parametrize("kind", [DGemma, DGemmaAR, DGemmaSpec])
def test_a_quantised_model_says_so(checkpoint, kind):
    plain = model(checkpoint, kind)
    assert plain.get_model_info()["model_quantize"] is None
    identities, bytes = {plain.identity}, [plain.get_model_info()["model_bytes"]]
    for scheme in ("int8", "int4"):
        lm = model(checkpoint, kind, quantize=scheme)
        (answer,) = lm.generate_until([writing("one")], disable_tqdm=True)
        assert isinstance(answer, str) and lm.writer.loaded.model.quantized == scheme
        info = lm.get_model_info()
        assert info["model_quantize"] == scheme
        # The parameters of the plain model, and fewer bytes for them.
        assert info["model_num_parameters"] == plain.get_model_info()["model_num_parameters"]
        identities.add(lm.identity)
        bytes.append(info["model_bytes"])
    assert len(identities) == 3 and bytes[0] > 2 * max(bytes[1:])  # so narrow, int4 is padded
    total = sum(p.nbytes for p in plain.writer.loaded.model.parameters())
    assert bytes[0] == total


def test_a_missing_checkpoint_is_one_clear_line(tmp_path):
    with pytest.raises(DgemmaError, match=r"config\.json"):
        model(tmp_path)
