"""A small random checkpoint with nano's tokenizer: every request runs through real files."""

import os
import shutil

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    from dgemma_core import GenerationDefaults, save_model
    from dgemma_core.nano import families
    from tests.core import tiny

    folder = tmp_path_factory.mktemp("tiny")
    generation = GenerationDefaults(
        max_new_tokens=16, max_denoising_steps=4, eos_token_ids=(1, tiny.TURN_END)
    )
    save_model(tiny.text_model(), folder, generation=generation)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(families.TEST_PROMPTS.parent / "weights" / name, folder / name)
    return folder
