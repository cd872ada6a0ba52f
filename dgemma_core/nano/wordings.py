"""Other ways to ask for the families' problems, as people type them.

The families' own wording (families.py) is what they are measured in. Training sees it most often, and these beside it;
of every family one wording in ten is never trained, so that the effect of new words can be measured.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dgemma_core.nano.families import Example

_SUDOKU = (
    "Solve this sudoku:\n{body}", "Can you solve this sudoku?\n{body}", "{body}\nSolve the sudoku.",
    "Please fill in this sudoku:\n{body}", "Complete this 4x4 sudoku:\n{body}", "sudoku\n{body}",
    "Fill in the missing numbers of this sudoku:\n{body}", "A small sudoku, please solve it:\n{body}",
    "Here is a sudoku:\n{body}", "What is the solution of this sudoku?\n{body}",
)  # fmt: skip
_FUTOSHIKI = (
    "Solve this futoshiki:\n{body}", "Can you solve this futoshiki?\n{body}", "{body}\nSolve the futoshiki.",
    "Please fill in this futoshiki:\n{body}", "Complete this futoshiki:\n{body}", "futoshiki\n{body}",
    "Futoshiki puzzle:\n{body}", "Here is a futoshiki:\n{body}", "A futoshiki, please solve it:\n{body}",
    "What is the solution of this futoshiki?\n{body}",
)  # fmt: skip
_SUM = (
    "Calculate step by step: {body}", "Work out {body} step by step", "Step by step: {body}",
    "Do this step by step: {body}", "Show your work: {body}", "Add up step by step: {body}", "{body}, step by step",
    "Please compute {body} with all steps",
    "Compute {body} and show the steps", "Find {body}, showing each step",
)  # fmt: skip
_WORD_SUM = (
    "{body} Show the steps.", "Solve: {body}", "Please solve this: {body}", "A problem: {body}",
    "{body} Work it out step by step.", "Can you work this out? {body}", "Calculate. {body}", "{body} Thanks!",
    "Word problem: {body}", "Help me with this: {body}",
)  # fmt: skip
_NUMBERS = (
    "Sort these numbers {direction}:\n{body}", "Put these numbers in {direction} order:\n{body}",
    "sort {direction}:\n{body}", "Please sort {direction}:\n{body}", "{body}\nSort them {direction}.",
    "Order the numbers {direction}:\n{body}", "Can you sort these {direction}?\n{body}",
    "Sort the list {direction}:\n{body}", "Arrange {direction}:\n{body}", "In {direction} order, please:\n{body}",
)  # fmt: skip
_WORDS = (
    "Sort these words {direction}:\n{body}", "Put these words in {direction} order:\n{body}",
    "sort the words {direction}:\n{body}", "Please sort the words {direction}:\n{body}",
    "{body}\nSort the words {direction}.", "Order these words {direction}:\n{body}",
    "Can you sort these words {direction}?\n{body}", "Sort the list of words {direction}:\n{body}",
    "Arrange the words {direction}:\n{body}", "The words in {direction} order, please:\n{body}",
)  # fmt: skip
_SPELL = (
    "Spell this backward:\n{body}", "Write backwards:\n{body}", "spell backward:\n{body}",
    "Reverse the letters:\n{body}",
    "{body}\nSpell it backward.", "How do you spell this backward?\n{body}", "Please spell backward:\n{body}",
    "Turn the word around:\n{body}", "Backward, letter by letter:\n{body}", "Reverse this word:\n{body}",
)  # fmt: skip
_SEQUENCE = (
    "Reverse this list:\n{body}", "Put the list in reverse order:\n{body}", "reverse the list:\n{body}",
    "Write this list backward:\n{body}", "{body}\nReverse the list.", "Turn this list around:\n{body}",
    "Please reverse:\n{body}", "Can you reverse this list?\n{body}", "The list from last to first:\n{body}",
    "List in reverse:\n{body}",
)  # fmt: skip
_LETTERS = (
    "How often does the letter {letter} occur?\n{body}", "How many times does {letter} occur here?\n{body}",
    "count the letter {letter}:\n{body}", "Count every {letter}:\n{body}", "{body}\nCount the letter {letter}.",
    "How many {letter}s are there?\n{body}", "Please count the letter {letter}:\n{body}",
    "Number of {letter}s:\n{body}", "Find how often {letter} occurs:\n{body}", "The letter {letter}, counted:\n{body}",
)  # fmt: skip
_FILTER = (
    "{verb} all numbers {comparison} than {limit}:\n{body}",
    "{verb} the numbers that are {comparison} than {limit}:\n{body}",
    "{verb} what is {comparison} than {limit}:\n{body}", "Please {lower} numbers {comparison} than {limit}:\n{body}",
    "{body}\n{verb} {comparison} than {limit}.", "From this list, {lower} numbers {comparison} than {limit}:\n{body}",
    "{lower} {comparison} than {limit}:\n{body}", "Can you {lower} numbers {comparison} than {limit}?\n{body}",
    "{verb} any number {comparison} than {limit}:\n{body}", "{verb} those {comparison} than {limit}:\n{body}",
)  # fmt: skip
_ROTATE = (
    "Rotate this matrix {degrees} degrees:\n{body}", "Turn this grid by {degrees} degrees:\n{body}",
    "rotate {degrees} degrees:\n{body}", "Please rotate {degrees} degrees:\n{body}",
    "{body}\nRotate it {degrees} degrees.",
    "Rotate the grid by {degrees} degrees:\n{body}", "Can you rotate this {degrees} degrees?\n{body}",
    "Turn clockwise, {degrees} degrees:\n{body}", "Matrix, rotated {degrees} degrees:\n{body}",
    "Rotate clockwise by {degrees} degrees:\n{body}",
)  # fmt: skip
_JSON = (
    "Write JSON with {keys}: {body}", "JSON with {keys}: {body}", "Give me {keys} as JSON: {body}",
    "As JSON ({keys}): {body}", "Put {keys} into JSON: {body}", "Extract {keys} as JSON: {body}",
    "{body} Write {keys} as JSON.", "Please write {keys} as JSON: {body}", "JSON, please ({keys}): {body}",
    "Turn this into JSON with {keys}: {body}",
)  # fmt: skip
WORDINGS = {
    "mini_sudoku": _SUDOKU, "futoshiki": _FUTOSHIKI, "chain_sum": _SUM, "word_sum": _WORD_SUM,
    "number_sorting": _NUMBERS, "word_sorting": _WORDS, "spell_backward": _SPELL,
    "word_sequence_reversal": _SEQUENCE, "letter_counting": _LETTERS, "number_filtering": _FILTER,
    "rotate_matrix": _ROTATE, "json": _JSON,
}  # fmt: skip
"""By family; the last of each is kept from training."""


def reworded(problem: Example, rng: Random, split: Literal["train", "held_out"] = "train") -> str:
    """The problem's prompt in one of the other wordings: a trained one, or the one that is kept from training."""
    wordings = WORDINGS[problem.family]
    wording = rng.choice(wordings[:-1]) if split == "train" else wordings[-1]
    return wording.format(**_fields(problem))


def _fields(problem: Example) -> dict[str, str]:
    """What the wordings name, from the family's own prompt."""
    name, prompt, facts = problem.family, problem.prompt, problem.entry["metadata"]
    if name == "chain_sum":
        return {"body": prompt.removeprefix("Compute ")}
    if name == "word_sum":
        return {"body": prompt}
    if name == "json":
        keys, body = prompt.removeprefix("json ").split(": ", 1)
        return {"keys": keys, "body": body}
    fields = {"body": prompt.split("\n", 1)[1]}
    if name in ("number_sorting", "word_sorting"):
        fields["direction"] = facts["direction"]
    elif name == "letter_counting":
        fields["letter"] = facts["target_letter"]
    elif name == "rotate_matrix":
        fields["degrees"] = str(90 * facts["num_rotations"])
    elif name == "number_filtering":
        verb, fields["comparison"] = facts["operation"].split("_")
        fields |= {"lower": verb, "verb": verb.capitalize(), "limit": str(facts["filter_value"])}
    return fields
