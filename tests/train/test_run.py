"""A run with English from nothing to a checkpoint, in few steps: it loads here and in transformers, and resumes."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dgemma_core as dg
from dgemma_core.backends.cpu.small_model import fits
from dgemma_core.errors import CheckpointError, RequestError
from dgemma_core.files.checkpoint import load_model
from dgemma_core.model import DiffusionGemma
from dgemma_core.nano import tokenizer as nano_tokenizer
from dgemma_core.nano.recipes import ENGLISH, JOINED, TALK, NamedRecipe
from dgemma_core.nano.validation import Validation
from dgemma_core.train import Trainer
from dgemma_core.train.run import export, make_trainer, run_tokenizer, run_with_progress

VOCABULARY = 512
RECIPE = replace(
    ENGLISH,
    config=replace(ENGLISH.config, text=replace(ENGLISH.config.text, vocab_size=VOCABULARY)),
    training=replace(
        ENGLISH.training,
        steps=3,
        batch_size=8,
        warmup=1,
        decay=None,
        micro_batches=2,
        pool=1,
        seed=9,
    ),
    validate_every=2,
)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """A tokenizer of few texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nano_tokenizer, "ENGLISH_SAMPLE", 300)
        patch.setattr(nano_tokenizer, "ROLES", 20)
        yield


def made(folder: Path, workers: int = 1) -> Trainer:
    """A trainer whose validation takes few tokens."""
    trainer = make_trainer(RECIPE, folder, "cpu", workers=workers)
    assert isinstance(trainer.validate, Validation)
    trainer.validate = replace(
        trainer.validate, a_kind=1, a_family=1, max_new_tokens=4, steps=1, batch_size=64
    )
    return trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run."""
    run = tmp_path_factory.mktemp("run")
    trainer = made(run)
    assert run_with_progress(trainer, None)
    export(trainer.model, RECIPE, run / "checkpoint")
    return run


def test_the_shape_of_the_recipe() -> None:
    """Within 12 MB in bfloat16, and served by the C code for small models."""
    size = sum(p.numel() for p in DiffusionGemma(ENGLISH.config, device="meta").parameters())
    assert 4e6 <= size <= 5.5e6 and 2 * size <= 12e6 and fits(ENGLISH.config)
    assert ENGLISH.config.canvas_length == 64


@pytest.mark.slow
def test_it_loads_and_writes(folder: Path) -> None:
    loaded = dg.load(str(folder / "checkpoint"))
    assert loaded.model.config == RECIPE.config and loaded.tokenizer is not None
    assert loaded.tokenizer.vocab_size == VOCABULARY
    text = dg.generate(loaded, "hello", max_new_tokens=8)
    assert 1 <= len((text[0] if isinstance(text, list) else text).ids) <= 8


@pytest.mark.slow
def test_transformers_gives_the_same_logits(folder: Path) -> None:
    from transformers import AutoTokenizer, DiffusionGemmaForBlockDiffusion, DynamicCache

    checkpoint = folder / "checkpoint"
    oracle = DiffusionGemmaForBlockDiffusion.from_pretrained(checkpoint, dtype=torch.float32).eval()
    loaded = dg.load(str(checkpoint), dtype="float32")
    ours, tokenizer = loaded.model, loaded.tokenizer
    assert tokenizer is not None
    prompt = [{"role": "user", "content": "Write a short poem about rain."}]
    theirs = AutoTokenizer.from_pretrained(checkpoint)
    rendered = theirs.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
    assert rendered["input_ids"] == tokenizer.chat_ids(prompt)
    ids = torch.tensor([tokenizer.chat_ids(prompt)])
    canvas = torch.randint(VOCABULARY, (1, 64), generator=torch.Generator().manual_seed(0))
    cache = ours.encode(ids)
    past = DynamicCache(config=oracle.config.get_text_config())
    with torch.no_grad():
        encoded = oracle.model.encoder(input_ids=ids, past_key_values=past)
        positions = torch.arange(ids.shape[1], ids.shape[1] + canvas.shape[1])[None]
        expected = oracle(
            decoder_input_ids=canvas, past_key_values=past, decoder_position_ids=positions
        ).logits
    assert cache.hidden is not None
    torch.testing.assert_close(cache.hidden, encoded.last_hidden_state, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        ours.logits(ours.denoise(canvas, cache)), expected, atol=1e-3, rtol=0
    )


@pytest.mark.slow
def test_its_validation_is_logged(folder: Path) -> None:
    header, *rows = (folder / "validation.csv").read_text().splitlines()
    assert header.split(",") == [
        "step", "english_diffusion", "families_diffusion", "steps_a_canvas",
        "english_autoregression", "families_autoregression",
    ]  # fmt: skip
    assert [row.split(",")[0] for row in rows] == ["2", "3"]
    assert all(float(row.split(",")[3]) == 1 for row in rows), "one step a canvas was allowed"


@pytest.mark.slow
def test_it_resumes_to_the_bit(folder: Path, tmp_path: Path) -> None:
    """With the tokenizer that it built at its first sitting; Ctrl-C ends the step at hand and saves."""
    first = made(tmp_path)
    step = first.step

    def interrupted(micro: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return step(micro)  # type: ignore[arg-type]

    first.step = interrupted  # type: ignore[method-assign,assignment]
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_with_progress(first, None)
    assert signal.getsignal(signal.SIGINT) is handler
    second = made(tmp_path, workers=2)
    assert second.resume() and second.progress.step == 1 and second.run()
    whole = made(folder)
    assert whole.resume() and whole.progress.step == 3
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    same = (tmp_path / "tokenizer/tokenizer.json").read_bytes()
    assert same == (folder / "tokenizer/tokenizer.json").read_bytes(), "built twice, the same"


@pytest.mark.slow
def test_the_bar_of_a_run_that_ends_early(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a leg of a chain does: its bar counts to where it ends."""
    assert not run_with_progress(made(tmp_path), None, until=1)
    assert "1/1 " in capsys.readouterr().err


@pytest.mark.slow
def test_a_tokenizer_of_another_size(folder: Path) -> None:
    config = replace(RECIPE.config, text=replace(RECIPE.config.text, vocab_size=576))
    other: NamedRecipe = replace(RECIPE, config=config)
    with pytest.raises(CheckpointError, match=r"holds no tokenizer of 576 tokens: remove it"):
        run_tokenizer(other, folder)


def test_a_folder_that_takes_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").write_text("in the way")
    with pytest.raises(CheckpointError, match="tokenizer cannot be written") as caught:
        run_tokenizer(RECIPE, tmp_path)
    assert "\n" not in str(caught.value)


def test_it_keeps_the_tokenizer_of_the_model_that_it_begins_with(tmp_path: Path) -> None:
    """Its tokens are what the weights were trained on, whatever the texts have become since."""
    from dgemma_core.files.finding import find_folder

    kept = run_tokenizer(TALK, tmp_path, "nano-talk")
    assert kept.vocab_size == TALK.config.text.vocab_size
    for file in (tmp_path / "tokenizer").iterdir():
        assert file.read_bytes() == (find_folder("nano-talk") / file.name).read_bytes()
    again = run_tokenizer(TALK, tmp_path)  # as a resumed run asks
    assert again.backend.get_vocab() == kept.backend.get_vocab()


def test_a_tokenizer_without_its_chat_template_is_named(tmp_path: Path) -> None:
    from dgemma_core.files.finding import find_folder

    start = shutil.copytree(find_folder("nano-talk"), tmp_path / "start")
    (start / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match=r"start has no chat_template\.jinja"):
        run_tokenizer(TALK, tmp_path / "run", str(start))
    assert not (tmp_path / "run").exists()


def test_it_begins_with_the_weights_of_a_model_with_another_tokenizer(tmp_path: Path) -> None:
    """A token that both have keeps its embedding, another begins as the mean of its pieces; all else is as it was."""
    text = replace(TALK.config.text, vocab_size=VOCABULARY)
    recipe = replace(TALK, config=replace(TALK.config, text=text))
    model = make_trainer(recipe, tmp_path, "cpu", "nano", workers=1).model
    nano = dg.load("nano", dtype="float32")
    old, new = nano.tokenizer, run_tokenizer(recipe, tmp_path)
    assert old is not None
    before, after = nano.model.embed_tokens.weight, model.embed_tokens.weight.detach()
    mine, theirs = new.backend.get_vocab(), old.backend.get_vocab()
    shared = [name for name in mine if name in theirs]
    own = [name for name in mine if name not in theirs]
    assert len(shared) > 300 and len(own) > 20
    torch.testing.assert_close(
        after[[mine[name] for name in shared]], before[[theirs[name] for name in shared]]
    )
    for name in own[:20]:
        pieces = before[old.encode(new.decode([mine[name]]))]
        assert len(pieces) > 1
        likeness = torch.cosine_similarity(after[mine[name]], pieces.mean(0), dim=0)
        assert likeness > 0.9999
        torch.testing.assert_close(after[mine[name]].norm(), pieces.norm(dim=-1).mean())
    ours, its = model.state_dict(), nano.model.state_dict()
    for name in ours.keys() - {"embed_tokens.weight"}:
        assert torch.equal(ours[name], its[name]), name


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nano has another shape than the recipe's model"):
        make_trainer(RECIPE, tmp_path, "cpu", "nano", workers=1)


def test_experts_of_two_models_stand_side_by_side(tmp_path: Path) -> None:
    """The begun model's own first, and everything else is its own; the teacher stays as it was."""
    config = replace(JOINED.config, text=replace(JOINED.config.text, vocab_size=VOCABULARY))
    recipe = replace(JOINED, config=config)
    model = make_trainer(recipe, tmp_path, "cpu", "nano-talk", workers=1).model
    ours = model.state_dict()
    first, second = (dg.load(each, dtype="float32").model for each in ("nano-talk", "nano"))
    begun, beside = first.state_dict(), second.state_dict()
    of_experts = [name for name in ours if len(ours[name]) == 16 != len(begun[name])]
    assert len(of_experts) == 4 * len(config.text.layers)
    for name in ours.keys() - {"embed_tokens.weight"}:
        joined = (begun[name], beside[name]) if name in of_experts else (begun[name],)
        assert torch.equal(ours[name], torch.cat(joined)), name
    teacher = load_model(tmp_path / "teacher", device="cpu")
    assert teacher.config.text.num_experts == 8
    again = make_trainer(recipe, tmp_path, "cpu", workers=1).model.state_dict()
    assert all(torch.equal(again[name], ours[name]) for name in ours)
