"""The table of task families that nano is trained and measured on.

Twelve families whose answers' tokens depend on each other in different ways, each decided by a
verifier, and one of free text. Most are datasets of reasoning-gym, made from seeds and scored by
its own `score_answer`; the rest are ours (generators.py, prose.py). A row states reasoning-gym's
default settings and what is changed, and asks in a few words. The table was frozen before training:
`families_digest()` and the hash of every test prompt stand in nano/test_prompts.json, which
`python -m dgemma_core.nano.families` writes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol

from dgemma_core.errors import RequestError

Entry = dict[str, Any]
"""What a generator makes: question, answer and metadata."""

Settings = Mapping[str, Any]

TEST_PROMPTS = Path(__file__).parent / "test_prompts.json"
TRAIN_SEEDS = range(0, 1_000_000_000)
VALIDATION_SEEDS = range(1_000_000_000, 1_000_010_000)
TEST_SEEDS = range(2_000_000_000, 2_000_000_500)


class Dataset(Protocol):
    """A seeded generator with its verifier."""

    def __getitem__(self, seed: int) -> Entry: ...
    def score_answer(self, answer: str | None, entry: Entry) -> float: ...


@dataclass(frozen=True)
class Example:
    """One problem: what is asked, the canonical answer, the generator's entry for the verifier."""

    family: str
    seed: int
    prompt: str
    answer: str
    entry: Entry


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the table.

    `defaults` are reasoning-gym's settings of the generator (of our own generators: the settings),
    `changed` is what differs here and `why`. `ask` and `target` turn an entry into our prompt and
    the canonical answer; where that shows worked steps, `result` leaves what the verifier reads.
    Seeds are the generator's; the ranges are disjoint.
    """

    name: str
    dataset: str
    depends: str
    defaults: Settings
    changed: Settings = field(default_factory=dict)
    why: str = ""
    ask: Callable[[Entry], str]
    target: Callable[[Entry], str]
    result: Callable[[str], str] = str.strip
    """What the verifier reads of an answer."""
    train_seeds: range = TRAIN_SEEDS
    validation_seeds: range = VALIDATION_SEEDS
    test_seeds: range = TEST_SEEDS

    @property
    def settings(self) -> dict[str, Any]:
        """The generator's settings."""
        return {**self.defaults, **self.changed}

    def prompt(self, entry: Entry) -> str:
        """The problem in our few words."""
        return self.ask(entry)

    def answer(self, entry: Entry) -> str:
        """The canonical answer: a text to which the verifier gives 1."""
        return self.target(entry)

    def score(self, entry: Entry, text: str) -> float:
        """The verifier's verdict on `text`, 0 to 1; white space around the text is left out."""
        return float(dataset_of(self.name).score_answer(self.result(text), entry))

    def solved(self, entry: Entry, text: str) -> bool:
        """True where the verifier gives the full score."""
        return self.score(entry, text) >= 1.0


def _lines(text: str) -> str:
    """`text` without white space at the ends of its lines (the verifiers leave it out, too)."""
    return "\n".join(line.rstrip() for line in text.split("\n"))


def _grid(rows: list[list[int]], blank: str = "0") -> str:
    return "\n".join(" ".join(str(cell) if cell else blank for cell in row) for row in rows)


def _theirs(entry: Entry) -> str:
    return _lines(entry["answer"])


def _running_sums(entry: Entry) -> str:
    """The expression worked from left to right, an equation a line. A total is written with as many digits as any of
    the problem's could take, so that where a digit stands does not wait for the ones before it."""
    first, *rest = entry["metadata"]["expression"].split()
    total, width = int(first), entry["metadata"]["num_digits"] + 2  # a carry and a sign
    lines = []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        found = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total:0{width}} {sign} {term} = {found:0{width}}")
        total = found
    return "\n".join(lines)


def _counts(entry: Entry) -> str:
    """How often the letter occurs in each word, and their sum."""
    facts = entry["metadata"]
    counts = [word.lower().count(facts["target_letter"]) for word in facts["span"]]
    return f"{' '.join(map(str, counts))} = {sum(counts)}"


def _last_result(text: str) -> str:
    """What stands behind the last equals sign."""
    return text.rpartition("=")[2].strip()


def _ask_futoshiki(entry: Entry) -> str:
    return "Futoshiki:\n" + _lines(entry["question"].split("\n\n")[1])


def _ask_number_sorting(entry: Entry) -> str:
    facts = entry["metadata"]
    return f"Sort {facts['direction']}:\n{','.join(facts['original_numbers'])}"


def _ask_word_sorting(entry: Entry) -> str:
    facts = entry["metadata"]
    return f"Sort words {facts['direction']}:\n{', '.join(facts['transformed_words'])}"


def _ask_letter_counting(entry: Entry) -> str:
    facts = entry["metadata"]
    return f"Count the letter {facts['target_letter']}:\n{' '.join(facts['span'])}"


def _ask_number_filtering(entry: Entry) -> str:
    facts = entry["metadata"]
    verb, comparison = facts["operation"].split("_")
    numbers = ",".join(facts["original_numbers"])
    return f"{verb.capitalize()} {comparison} than {facts['filter_value']}:\n{numbers}"


def _ask_rotate_matrix(entry: Entry) -> str:
    facts = entry["metadata"]
    return f"Rotate {90 * facts['num_rotations']} degrees:\n{_grid(facts['matrix'])}"


FAMILIES: tuple[Family, ...] = (
    Family(
        name="mini_sudoku",
        dataset="mini_sudoku",
        depends="constraint: every cell depends on every other",
        defaults=dict(min_empty=8, max_empty=12),
        ask=lambda entry: "Sudoku:\n" + _grid(entry["metadata"]["puzzle"], blank="_"),
        target=_theirs,
    ),
    Family(
        name="futoshiki",
        dataset="futoshiki",
        depends="constraint: rows, columns and signs between cells",
        defaults=dict(min_board_size=4, max_board_size=9, min_difficulty=0, max_difficulty=3),
        changed=dict(max_board_size=4),
        why="a 9×9 answer takes 190 tokens, three canvases",
        ask=_ask_futoshiki,
        target=_theirs,
    ),
    Family(
        name="chain_sum",
        dataset="chain_sum",
        depends="serial: every step needs the one before",
        defaults=dict(
            min_terms=2, max_terms=6, min_digits=1, max_digits=4, allow_negation=False
        ),
        ask=lambda entry: f"Compute {entry['metadata']['expression']}",
        target=_running_sums,
        result=_last_result,
    ),
    Family(
        name="word_sum",
        dataset="own: WordSum",
        depends="serial: the second step needs the first one's result",
        defaults=dict(min_number=2, max_number=99, max_factor=12),
        ask=lambda entry: str(entry["question"]),
        target=_theirs,
    ),
    Family(
        name="number_sorting",
        dataset="number_sorting",
        depends="permutation: where a number goes depends on all the others",
        defaults=dict(
            min_numbers=3, max_numbers=10, min_decimals=0, max_decimals=2,
            min_value=-100.0, max_value=100.0,
        ),
        changed=dict(max_numbers=8),
        why="ten numbers fill a canvas of 64 and more; with eight the prompt keeps to 60 tokens",
        ask=_ask_number_sorting,
        target=lambda entry: f"[{','.join(entry['metadata']['sorted_numbers'])}]",
    ),
    Family(
        name="word_sorting",
        dataset="word_sorting",
        depends="permutation: where a word goes depends on all the others",
        defaults=dict(
            min_words=3, max_words=10, min_word_length=3, max_word_length=12,
            transformation="original",
        ),
        ask=_ask_word_sorting,
        target=_theirs,
    ),
    Family(
        name="spell_backward",
        dataset="spell_backward",
        depends="copying: each letter stands at the mirrored place",
        defaults=dict(min_word_len=3, max_word_len=10, data_file="words3to10.txt"),
        # Capitals are a token each, so that the letters are in sight; the verifier ignores case.
        ask=lambda entry: f"Spell backward:\n{entry['metadata']['word'].upper()}",
        target=lambda entry: str(entry["answer"]).upper(),
    ),
    Family(
        name="word_sequence_reversal",
        dataset="word_sequence_reversal",
        depends="copying: each word stands at the mirrored place",
        defaults=dict(min_words=3, max_words=8),
        ask=lambda entry: f"Reverse the list:\n{', '.join(entry['metadata']['words'])}",
        target=_theirs,
    ),
    Family(
        name="letter_counting",
        dataset="letter_counting",
        depends="counting: each word on its own account, then one number from all of them",
        defaults=dict(min_words=5, max_words=15),
        ask=_ask_letter_counting,
        target=_counts,
        result=_last_result,
    ),
    Family(
        name="number_filtering",
        dataset="number_filtering",
        depends="filtering: a number stays on its own account, its place depends on those before",
        defaults=dict(
            min_numbers=3, max_numbers=10, min_decimals=0, max_decimals=4,
            min_value=-100.0, max_value=100.0,
        ),
        changed=dict(max_numbers=7),
        why="ten numbers take up to 76 tokens; with seven the prompt keeps to about 60",
        ask=_ask_number_filtering,
        target=_theirs,
    ),
    Family(
        name="rotate_matrix",
        dataset="rotate_matrix",
        depends="grid: each cell is a copy of one other cell",
        defaults=dict(min_n=2, max_n=10, min_rotations=0, max_rotations=10),
        changed=dict(max_n=8),
        why="10×10 takes 109 tokens, asked and answered; 8×8 takes 71, one canvas and a bit",
        ask=_ask_rotate_matrix,
        target=_theirs,
    ),
    Family(
        name="json",
        dataset="own: JsonRecord",
        depends="format: a fixed frame, facts that are independent of each other",
        defaults=dict(min_facts=2, max_facts=4),
        ask=lambda entry: f"json {entry['question']}",
        target=_theirs,
    ),
    Family(
        name="prose",
        dataset="own: Prose",
        depends="free text: grammar and some sense",
        defaults=dict(min_prompt=4, max_prompt=10, min_words=8, max_words=40),
        ask=lambda entry: f"Continue: {entry['question']}",
        target=_theirs,
    ),
)  # fmt: skip

NAMES: tuple[str, ...] = tuple(row.name for row in FAMILIES)
TASKS: tuple[str, ...] = tuple(name for name in NAMES if name != "prose")
"""The twelve families that a verifier decides."""


def family(name: str) -> Family:
    """The row called `name`; RequestError names the rows if there is none."""
    for row in FAMILIES:
        if row.name == name:
            return row
    raise RequestError(f"no task family '{name}': choose one of {', '.join(NAMES)}")


@cache
def dataset_of(name: str) -> Dataset:
    """The generator of a family: `dataset_of(name)[seed]` draws an entry from that seed alone."""
    row = family(name)
    if row.dataset.startswith("own: "):
        from dgemma_core.nano.generators import JsonRecord, WordSum
        from dgemma_core.nano.prose import Prose

        own: dict[str, Callable[..., Dataset]] = {
            "word_sum": WordSum,
            "json": JsonRecord,
            "prose": lambda **settings: Prose(_split_of, **settings),
        }
        return own[name](**row.settings)

    from reasoning_gym.algorithmic.word_sorting import TextTransformation
    from reasoning_gym.factory import create_dataset

    settings = row.settings
    if "transformation" in settings:
        settings["transformation"] = TextTransformation(settings["transformation"])
    # With its own seed at 0, a dataset's entry number i is drawn from Random(i).
    dataset: Dataset = create_dataset(row.dataset, seed=0, size=1, **settings)
    return dataset


def _split_of(seed: int) -> str:
    if seed in TEST_SEEDS:
        return "test"
    return "validation" if seed in VALIDATION_SEEDS else "train"


def example(name: str, seed: int) -> Example:
    """The problem of family `name` that `seed` draws; the same in every process."""
    row = family(name)
    entry = dataset_of(name)[seed]
    return Example(name, seed, row.prompt(entry), row.answer(entry), entry)


def examples(
    name: str, split: Literal["validation", "test"] = "test", count: int = len(TEST_SEEDS)
) -> list[Example]:
    """The first `count` problems of the family's test (or validation) seeds."""
    row = family(name)
    seeds = row.test_seeds if split == "test" else row.validation_seeds
    return [example(name, seed) for seed in seeds[:count]]


def training_example(index: int, names: tuple[str, ...] = NAMES) -> Example:
    """Number `index` of the training stream, never a test prompt.

    Family (one of `names`, equally often) and seed are drawn from the index alone, so a run that
    stopped can go on anywhere.
    """
    rng = Random(index)
    name = rng.choice(names)
    while True:
        drawn = example(name, rng.choice(family(name).train_seeds))
        if not is_test_prompt(drawn.prompt):
            return drawn


def training_examples(start: int = 0, names: tuple[str, ...] = NAMES) -> Iterator[Example]:
    """The training stream from number `start` on, without end."""
    index = start
    while True:
        yield training_example(index, names)
        index += 1


def prompt_hash(prompt: str) -> str:
    """The first 16 hexadecimal digits of the prompt's SHA-256."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


@cache
def _test_hashes() -> frozenset[str]:
    table = json.loads(TEST_PROMPTS.read_text(encoding="utf-8"))
    return frozenset(found for hashes in table["prompts"].values() for found in hashes)


def is_test_prompt(prompt: str) -> bool:
    """True where `prompt` is that of one of the test problems (of any family)."""
    return prompt_hash(prompt) in _test_hashes()


def prompt_table() -> dict[str, Any]:
    """What nano/test_prompts.json holds: the table's digest and the hashes of the test prompts."""
    return {
        "families_digest": families_digest(),
        "hash": "the first 16 hexadecimal digits of the SHA-256 of the prompt in UTF-8",
        "prompts": {
            name: [prompt_hash(problem.prompt) for problem in examples(name)] for name in NAMES
        },
    }


def families_digest() -> str:
    """SHA-256 over the table: names, generators, defaults, changed settings and seed ranges."""
    rows = [
        {
            "name": row.name,
            "dataset": row.dataset,
            "defaults": row.defaults,
            "changed": row.changed,
            "seeds": [
                (seeds.start, seeds.stop)
                for seeds in (row.train_seeds, row.validation_seeds, row.test_seeds)
            ],
        }
        for row in FAMILIES
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def answers_seen(name: str, training_count: int, test_count: int = len(TEST_SEEDS)) -> float:
    """The share of test answers that occur among `training_count` training examples of the family.

    Prompts always differ; where a family has few distinct answers (4×4 sudoku has 288 grids),
    answers recur.
    """
    wanted = [problem.answer for problem in examples(name, "test", test_count)]
    missing = set(wanted)
    for index in range(training_count):
        if not missing:
            break
        missing.discard(training_example(index, (name,)).answer)
    return sum(answer not in missing for answer in wanted) / len(wanted)


if __name__ == "__main__":
    TEST_PROMPTS.write_text(json.dumps(prompt_table(), indent=1, ensure_ascii=False) + "\n")
