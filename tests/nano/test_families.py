"""The table of families: frozen, deterministic, decided by verifiers, its test set unseen."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from itertools import pairwise

import pytest

from dgemma_core.errors import RequestError
from dgemma_core.files.text import load_tokenizer
from dgemma_core.nano import families
from dgemma_core.nano.families import NAMES, TASKS, example, examples, family, training_example
from dgemma_core.nano.prose import SPLITS, passage, words

SLOW = {"futoshiki": 100, "mini_sudoku": 300}
"""Seeds to try where a generator takes milliseconds; 500 elsewhere."""

COMMITTED = json.loads(families.TEST_PROMPTS.read_text())


def test_the_table_has_twelve_tasks_and_prose():
    assert len(TASKS) == 12 and len(set(NAMES)) == 13 and set(NAMES) - set(TASKS) == {"prose"}
    with pytest.raises(RequestError, match="choose one of mini_sudoku"):
        family("chess")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_reasoning_gym(name):
    row = family(name)
    assert bool(row.changed) == bool(row.why)
    assert all(row.defaults[key] != value for key, value in row.changed.items())
    if row.dataset.startswith("own: "):
        assert not row.changed
        return
    from reasoning_gym.factory import DATASETS

    config = DATASETS[row.dataset][1]()
    theirs = {
        key.name: getattr(config, key.name)
        for key in dataclasses.fields(config)
        if key.name not in ("seed", "size")
    }
    assert dict(row.defaults) == theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_verifiers_accept_the_canonical_answer(name):
    row = family(name)
    for seed in range(SLOW.get(name, 500)):
        drawn = example(name, seed)
        assert row.score(drawn.entry, drawn.answer) == 1.0, drawn
        assert row.solved(drawn.entry, f" {drawn.answer}\n")
        assert drawn.answer == drawn.answer.strip() != ""


@pytest.mark.parametrize("name", TASKS)
def test_verifiers_refuse_other_answers(name):
    row = family(name)
    drawn = [example(name, seed) for seed in range(40)]
    for this, other in pairwise(drawn):
        assert not row.solved(this.entry, "")
        assert not row.solved(this.entry, "I do not know")
        if row.result(other.answer) != row.result(this.answer):
            assert not row.solved(this.entry, other.answer)


def test_own_verifiers_decide_what_they_should():
    row = family("word_sum")
    question = "Ada has 12 eggs and gets 30. Then Ada sells 7. How many eggs?"
    entry = {"question": question, "metadata": {"result": 35}}
    assert row.solved(entry, "12 + 30 = 42\n42 - 7 = 35")
    assert row.solved(entry, "12 - 7 = 5\n5 + 30 = 35")
    assert row.solved(entry, "012 + 030 = 042\n042 - 007 = 035")
    for wrong in ("35", "12 + 30 = 41\n41 - 7 = 35", "12 + 30 = 42", "42 - 7 = 35", "30 + 5 = 35"):
        assert not row.solved(entry, wrong)
    row = family("json")
    entry = {"metadata": {"record": {"name": "Ada", "likes": ["art", "tea"]}}}
    assert row.solved(entry, '{"likes":["art","tea"],  "name":"Ada"}')
    for wrong in ('{"name": "Ada"}', '{"name": "Ada", "likes": ["tea", "art"]}', "{", "[" * 5000):
        assert not row.solved(entry, wrong)
    row = family("prose")
    assert row.score({}, "The Newspaper said nothing, Fritz!") == 1.0
    assert row.score({}, "Fritz zxcv") == 0.5 and row.score({}, "... --") == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_an_example_depends_on_its_seed_alone(name):
    seeds = [0, 1, 12_345, 999_999_999, families.TEST_SEEDS[0]]
    forward = [example(name, seed) for seed in seeds]
    families.dataset_of.cache_clear()
    assert [example(name, seed) for seed in reversed(seeds)][::-1] == forward


@pytest.mark.subprocess
def test_examples_are_the_same_in_another_process():
    program = (
        "import hashlib\n"
        "from dgemma_core.nano.families import NAMES, example, training_example\n"
        "drawn = [example(name, 77) for name in NAMES] + [training_example(i) for i in range(30)]\n"
        "print(hashlib.sha256(repr(drawn).encode()).hexdigest())\n"
    )
    drawn = [example(name, 77) for name in NAMES] + [training_example(i) for i in range(30)]
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert printed.stdout.strip() == hashlib.sha256(repr(drawn).encode()).hexdigest()


def test_the_table_is_frozen():
    assert families.families_digest() == COMMITTED["families_digest"]
    assert list(COMMITTED["prompts"]) == list(NAMES)
    assert all(len(hashes) == 500 for hashes in COMMITTED["prompts"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_committed_hashes_are_those_of_the_test_prompts(name):
    count = SLOW.get(name, 500)
    prompts = [problem.prompt for problem in examples(name, count=count)]
    assert [families.prompt_hash(prompt) for prompt in prompts] == COMMITTED["prompts"][name][
        :count
    ]
    assert all(families.is_test_prompt(prompt) for prompt in prompts)


@pytest.mark.slow
def test_no_training_example_has_a_test_prompt():
    hashes = {found for found_list in COMMITTED["prompts"].values() for found in found_list}
    quick = tuple(name for name in NAMES if name not in SLOW)
    drawn = [training_example(index, quick) for index in range(10_000)]
    drawn += [training_example(index) for index in range(400)]
    assert not hashes & {families.prompt_hash(one.prompt) for one in drawn}
    assert {one.family for one in drawn} == set(NAMES)


def test_a_drawn_test_prompt_is_skipped(monkeypatch):
    first = training_example(5, ("chain_sum",))
    hashes = families._test_hashes() | {families.prompt_hash(first.prompt)}
    monkeypatch.setattr(families, "_test_hashes", lambda: hashes)
    second = training_example(5, ("chain_sum",))
    assert second.prompt != first.prompt and not families.is_test_prompt(second.prompt)


def test_the_training_stream_can_be_entered_anywhere():
    names = ("word_sum", "json")
    stream = families.training_examples(10, names)
    assert [next(stream) for _ in range(5)] == [training_example(i, names) for i in range(10, 15)]


def test_seed_ranges_are_disjoint():
    for row in families.FAMILIES:
        ranges = sorted(
            (row.train_seeds, row.validation_seeds, row.test_seeds), key=lambda seeds: seeds.start
        )
        assert all(one.stop <= next_.start for one, next_ in pairwise(ranges))
        assert len(row.test_seeds) == 500


def test_prose_splits_share_no_stretch_of_text():
    assert [first for first, _ in SPLITS.values()] == [0, 84, 88]
    parts = [passage(split) for split in SPLITS]
    assert sum(parts, ()) == words() and len(words()) > 5000
    assert "Gutenberg" not in " ".join(words())
    assert len(parts[2]) / len(words()) == pytest.approx(0.12, abs=0.01)
    trained = " ".join(passage("train"))
    for split in ("validation", "test"):
        for problem in examples("prose", split, 50):
            assert problem.entry["metadata"]["split"] == split
            assert f"{problem.entry['question']} {problem.answer}" not in trained


def test_few_sudoku_answers_are_new():
    assert families.answers_seen("mini_sudoku", 0, test_count=20) == 0.0
    assert families.answers_seen("mini_sudoku", 600, test_count=20) > 0.5
    assert families.answers_seen("number_sorting", 600, test_count=20) == 0.0


def test_a_chain_of_sums_is_worked_line_by_line():
    row = families.family("chain_sum")
    problem = families.example("chain_sum", 5)
    first, *_ = problem.entry["metadata"]["expression"].split()
    lines = [line.split() for line in problem.answer.split("\n")]
    assert int(lines[0][0]) == int(first)
    for left, sign, right, equals, found in lines:
        assert equals == "=" and int(found) == int(left) + int(sign + right)
    assert all(after[0] == before[-1] for before, after in pairwise(lines))
    assert int(lines[-1][-1]) == int(problem.entry["answer"])
    assert row.solved(problem.entry, problem.answer)
    assert row.solved(problem.entry, problem.entry["answer"]), "the last number decides"
    wrong = int(problem.entry["answer"]) + 1
    assert not row.solved(problem.entry, f"{problem.answer}\n0 + {wrong} = {wrong}")
    assert not row.solved(problem.entry, problem.answer.rpartition("\n")[0])
    assert not row.solved(problem.entry, "")


def test_a_digit_of_a_sum_stands_where_the_problem_alone_puts_it():
    tokenizer = load_tokenizer(families.TEST_PROMPTS.parent / "weights")
    for seed in range(300):
        problem = example("chain_sum", seed)
        digits = problem.entry["metadata"]["num_digits"]
        for line in problem.answer.split("\n"):
            assert len(tokenizer.encode(line)) == 3 * digits + 6
        assert len(tokenizer.encode(example("word_sum", seed).answer)) == 23


def test_letters_are_counted_word_by_word():
    row = families.family("letter_counting")
    problem = example("letter_counting", 5)
    facts = problem.entry["metadata"]
    counts, _, total = problem.answer.partition(" = ")
    assert [int(count) for count in counts.split()] == [
        word.lower().count(facts["target_letter"]) for word in facts["span"]
    ]
    assert total == problem.entry["answer"] == str(sum(map(int, counts.split())))
    assert row.solved(problem.entry, total), "the last number decides"
    assert not row.solved(problem.entry, counts)


@pytest.mark.slow
def test_prompts_are_short_and_some_answers_need_a_second_canvas():
    tokenizer = load_tokenizer(families.TEST_PROMPTS.parent / "weights")
    longest = {}
    for name in NAMES:
        drawn = examples(name, "validation", SLOW.get(name, 300))
        asked = [len(tokenizer.encode(one.prompt)) for one in drawn]
        assert sum(asked) / len(asked) <= 45
        longest[name] = max(len(tokenizer.encode(one.answer)) for one in drawn)
    long = {name for name, tokens in longest.items() if tokens > 64}
    assert long == {"chain_sum", "rotate_matrix", "prose"}
    assert max(longest.values()) <= 128
