"""The tokenizer of a run with English: byte-level BPE, trained on a seeded sample of what the run is trained on.

A token holds at most one digit, and a capital that no small letter follows stands alone, so that numbers, grids and
spelled words are seen character by character; a space goes with what follows it. Nano's own 1,024 tokens were chosen in
the same way, from its problems and two books.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dgemma_core.nano import families

SPECIAL = (
    "<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|channel>", "<channel|>",
    "<|think|>", "<|image|>", "<|audio|>", "<|video|>",
)  # fmt: skip
"""The ids 0 … 11: PAD, EOS and BOS as in Gemma, then Gemma 4's control tokens."""
PIECES = (
    r"\n"
    r"| ?\p{N}"  # digits one by one
    r"| ?\p{Lu}?[\p{Ll}\p{Lm}\p{Lo}\p{Lt}\p{M}]+"  # words
    r"| ?\p{Lu}"  # capitals
    r"| ?[-_]"  # a sign belongs to its number, not to the comma before it
    r"| ?[^\s\p{L}\p{M}\p{N}_-]+"  # other signs
    r"| +(?= \S)| +|\s"  # indentation
)
ENGLISH_SAMPLE = 9000
"""Training examples in English."""
ROLES = 600
"""Times that the names of a chat's roles are seen."""
WEIGHTS = Path(__file__).parent / "weights"
TEMPLATE = "chat_template.jinja"


def english_sample() -> Iterator[str]:
    """The texts that a run with English trains its tokenizer on, the same at every call: three of them English to two
    problems of the twelve families, as in training."""
    from dgemma_core.nano.english import kinds

    for index in range(ENGLISH_SAMPLE):
        drawn = kinds.training_example(index)
        yield "\n".join([*(message["content"] for message in drawn.messages), drawn.reply])
    for index in range(ENGLISH_SAMPLE * 2 // 3):
        problem = families.training_example(index, families.TASKS)
        yield f"{problem.prompt}\n{problem.answer}"
    yield "\n".join(["user", "model", "system", "thought"] * ROLES)


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Builds the tokenizer of a run with English into `folder`: tokenizer.json, tokenizer_config.json and the chat
    template. The files are the same whenever and wherever they are built."""
    folder.mkdir(parents=True, exist_ok=True)
    configured = json.dumps(tokenizer_config(), indent=1, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(configured)
    shutil.copyfile(WEIGHTS / TEMPLATE, folder / TEMPLATE)
    part = folder / "tokenizer.json.part"
    build(vocabulary, english_sample()).save(str(part))
    os.replace(part, folder / "tokenizer.json")  # last: where it stands, the others do


def build(vocabulary: int, texts: Iterator[str]) -> Any:
    """Train a tokenizer on texts: a `tokenizers.Tokenizer`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_config() -> dict[str, Any]:
    """What transformers needs beside tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
