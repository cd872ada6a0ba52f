"""Arithmetic asked in digits or in words."""

from __future__ import annotations

from random import Random

from dgemma_core.nano.english.kind import Kind, Slots
from dgemma_core.nano.english.knowledge import filled, known
from dgemma_core.nano.english.lexicon import lists, number_word
from dgemma_core.nano.english.stories import words as story_words
from dgemma_core.nano.english.words import Entry

SIGNS = {"+": ("+", "plus"), "-": ("-", "minus"), "*": ("*", "times"), "/": ("/", "divided by")}


def _draw_sum(rng: Random) -> Slots:
    sign = rng.choice("++--**/")
    if sign == "*":
        a, b = rng.randint(0, 12), rng.randint(0, 12)
        found = a * b
    elif sign == "/":
        b, found = rng.randint(1, 12), rng.randint(0, 12)
        a = b * found
    else:
        top = rng.choice((10, 20, 100))
        a, b = rng.randint(0, top), rng.randint(0, top)
        if sign == "-" and a < b:
            a, b = b, a
        found = a + b if sign == "+" else a - b
    words = rng.random() < 0.4 and max(a, b, found) < 200
    return {
        "ask": "words" if words else "digits",
        "op": sign,
        "x": a,
        "y": b,
        "found": found,
        "sum": _digits(a, b, sign, rng),
        "said": f"{number_word(a)} {SIGNS[sign][1]} {number_word(b)}" if words else "",
    }


def _digits(a: int, b: int, sign: str, rng: Random) -> str:
    shown = rng.choice(
        {"+": ("+",), "-": ("-",), "*": ("*", "x", "times", "×"), "/": ("/", ":", "divided by")}[
            sign
        ]
    )
    if len(shown) > 1:
        return f"{a} {shown} {b}"
    return f"{a}{shown}{b}" if rng.random() < 0.4 else f"{a} {shown} {b}"


def _sum_answers(slots: Slots) -> list[str]:
    a, b, n, sign = slots["x"], slots["y"], slots["found"], slots["op"]
    if slots["ask"] == "words":
        what = f"{number_word(a)} {SIGNS[sign][1]} {number_word(b)}"
        return filled(
            ("{w} is {n}.", "{n}.", "{w} equals {n}.", "That is {n}."), w=what, n=number_word(n)
        )
    return filled(
        ("{a} {s} {b} = {n}", "{a} {s} {b} = {n}", "{a} {s} {b} is {n}.", "{n}", "That is {n}."),
        a=str(a),
        b=str(b),
        s=sign,
        n=str(n),
    )


ARITHMETIC = known(
    "arithmetic",
    "sums, differences, products and quotients, in digits or in words",
    {
        "digits": (
            "{sum}",
            "{sum}=",
            "{sum} = ?",
            "[What is|What's|How much is|Compute|Calculate|Solve|Work out|What does|What makes|"
            "Add up] {sum}[|]?",
            "[Tell me|Give me|Find|I need|Say] [the result of|the answer to] {sum}.",
            "Do you know [the result of|the answer to|what is] {sum}?",
            "[Can you work out|Can you compute|Could you calculate|Would you solve] {sum}?",
            "[My homework says|Quick|A sum for you|A question for you|In my head I cannot do "
            "this]: {sum}?",
            "[How many is|What do you get for|What comes out of] {sum}?",
        ),
        "words": (
            "{said}",
            "{said}?",
            "[What is|What's|How much is|Compute|Calculate|Solve|Work out|What does|What makes] "
            "{said}?",
            "[Tell me|Give me|Find|Say] [the result of|the answer to] {said}.",
            "Do you know [the result of|the answer to|what is] {said}?",
            "[Can you work out|Can you compute|Could you calculate] {said}?",
            "[My homework says|Quick|A sum for you|A question for you|In my head I cannot do "
            "this]: {said}?",
            "[How many is|What do you get for|What comes out of] {said}?",
        ),
    },
    _draw_sum,
    _sum_answers,
    key=("op", "x", "y"),
    closed=False,
)

GAIN = ("gets {n} more", "finds {n} more", "buys {n} more", "picks up {n} more")
LOSS = ("gives away {n}", "loses {n}", "sells {n}", "drops {n}")


def portable() -> tuple[Entry, ...]:
    """Things that one can have many of."""
    return story_words()["role_T"]


def _draw_story_sum(rng: Random) -> Slots:
    words = lists()
    who = rng.choice(words["name"])
    what = rng.choice([e for e in (*portable(), *words["food"]) if not e.say("mass")])
    a, b = rng.randint(2, 20), rng.randint(2, 20)
    gain = rng.random() < 0.5
    if not gain and a < b:
        a, b = b, a
    change = rng.choice(GAIN if gain else LOSS).format(
        n=b if rng.random() < 0.7 else number_word(b)
    )
    text = f"{who.word} has {a} {what.say('pl')} and {change}."
    return {
        "text": text,
        "who": who.word,
        "he": who.say("he"),
        "many": what.say("pl"),
        "found": a + b if gain else a - b,
    }


def _story_sum_answers(slots: Slots) -> list[str]:
    n = slots["found"]
    many = slots["many"]
    if n == 1:
        one = next(e.word for e in (*lists()["thing"], *lists()["food"]) if e.say("pl") == many)
        many = one
    return filled(
        ("{w} has {n} {m}.", "{n} {m}.", "Now {w} has {n} {m}.", "{h} has {n} {m}.", "{n}."),
        w=slots["who"],
        n=str(n),
        m=many,
        h=slots["he"],
    )


WORD_PROBLEM = known(
    "word_problem",
    "a sum told in a sentence",
    {
        "": (
            "{text} How many {many} does {who} have[| now]?",
            "{text} [How many are there now|How many is that|How many {many}|How many are left|"
            "What is the result|How many {many} is that]?",
            "[A little problem|My homework|Solve this|Think about this|Listen|Question|A riddle "
            "with numbers]: {text} How many {many} does {he} have?",
            "How many {many} does {who} have? {text}",
            "[Can you solve this|Help me with this]? {text} How many {many} are there?",
            "{text} [Now tell me how many {many} {he} has|Count the {many}|Count them|Tell me "
            "the number of {many}|Work out how many {many} {he} has].",
            "{text} {who} wants to know how many {many} [that makes|{he} has].",
            "{text} So how many {many}[ now|]?",
            "[I want to know how many {many} {who} has|Tell me how many {many} {who} has|Find "
            "the number of {many}]. {text}",
        )
    },
    _draw_story_sum,
    _story_sum_answers,
    key=("text",),
    closed=False,
)

KINDS: tuple[Kind, ...] = (ARITHMETIC, WORD_PROBLEM)
