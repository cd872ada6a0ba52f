"""Small Python functions out of a fixed set."""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass
from functools import cache
from random import Random

from dgemma_core.nano.english.kind import Kind, Slots


@dataclass(frozen=True)
class Function:
    """A function: name, parameters, what it does in several phrasings, and bodies that do it."""

    name: str
    parameters: str
    does: tuple[str, ...]
    bodies: tuple[str, ...]


def _function(name: str, parameters: str, does: str, *bodies: str) -> Function:
    return Function(name, parameters, tuple(does.split("; ")), bodies)


FUNCTIONS = (
    _function("add", "a, b", "adds two numbers; returns the sum of two numbers", "return a + b"),
    _function(
        "subtract",
        "a, b",
        "subtracts one number from another; returns the difference of two numbers",
        "return a - b",
    ),
    _function(
        "multiply",
        "a, b",
        "multiplies two numbers; returns the product of two numbers",
        "return a * b",
    ),
    _function(
        "square",
        "n",
        "squares a number; returns the square of a number",
        "return n * n",
        "return n ** 2",
    ),
    _function(
        "double", "n", "doubles a number; returns twice a number", "return 2 * n", "return n * 2"
    ),
    _function(
        "is_even",
        "n",
        "checks if a number is even; tells whether a number is even",
        "return n % 2 == 0",
    ),
    _function(
        "is_odd",
        "n",
        "checks if a number is odd; tells whether a number is odd",
        "return n % 2 == 1",
    ),
    _function(
        "is_positive",
        "n",
        "checks if a number is positive; tells whether a number is above zero",
        "return n > 0",
    ),
    _function(
        "absolute",
        "n",
        "returns the absolute value of a number; drops the sign of a number",
        "return abs(n)",
        "return -n if n < 0 else n",
    ),
    _function(
        "larger",
        "a, b",
        "returns the larger of two numbers; finds the bigger one of two numbers",
        "return max(a, b)",
        "return a if a > b else b",
    ),
    _function(
        "smaller",
        "a, b",
        "returns the smaller of two numbers; finds the lesser one of two numbers",
        "return min(a, b)",
        "return a if a < b else b",
    ),
    _function(
        "largest",
        "numbers",
        "finds the largest number in a list; returns the maximum of a list",
        "return max(numbers)",
    ),
    _function(
        "smallest",
        "numbers",
        "finds the smallest number in a list; returns the minimum of a list",
        "return min(numbers)",
    ),
    _function(
        "total",
        "numbers",
        "adds up a list of numbers; returns the sum of a list",
        "return sum(numbers)",
        "result = 0\nfor n in numbers:\n    result += n\nreturn result",
    ),
    _function(
        "average",
        "numbers",
        "computes the average of a list; returns the mean of a list of numbers",
        "return sum(numbers) / len(numbers)",
    ),
    _function("reverse", "text", "reverses a string; turns a text around", "return text[::-1]"),
    _function(
        "is_palindrome",
        "text",
        "checks if a text is a palindrome; tells whether a word reads the same backwards",
        "return text == text[::-1]",
    ),
    _function(
        "count_vowels",
        "text",
        "counts the vowels in a text; returns the number of vowels in a string",
        'return sum(letter in "aeiou" for letter in text)',
    ),
    _function(
        "count_words",
        "text",
        "counts the words in a text; returns the number of words in a string",
        "return len(text.split())",
    ),
    _function(
        "shout",
        "text",
        "turns a text into capitals; makes a string upper case",
        "return text.upper()",
    ),
    _function(
        "greet",
        "name",
        "greets somebody by name; says hello to a name",
        'return f"Hello, {name}!"',
        'return "Hello, " + name + "!"',
    ),
    _function(
        "first",
        "items",
        "returns the first item of a list; gets the first element of a list",
        "return items[0]",
    ),
    _function(
        "last",
        "items",
        "returns the last item of a list; gets the last element of a list",
        "return items[-1]",
    ),
    _function(
        "contains",
        "items, item",
        "checks if a list contains an item; tells whether an item is in a list",
        "return item in items",
    ),
    _function(
        "without_doubles",
        "items",
        "removes doubles from a list; returns a list without duplicates",
        "return sorted(set(items))",
        "return list(set(items))",
    ),
    _function(
        "factorial",
        "n",
        "computes the factorial of a number; returns the factorial of n",
        "if n == 0:\n    return 1\nreturn n * factorial(n - 1)",
        "result = 1\nfor i in range(1, n + 1):\n    result *= i\nreturn result",
    ),
    _function(
        "fibonacci",
        "n",
        "computes the n-th Fibonacci number; returns a Fibonacci number",
        "a, b = 0, 1\nfor _ in range(n):\n    a, b = b, a + b\nreturn a",
        "if n < 2:\n    return n\nreturn fibonacci(n - 1) + fibonacci(n - 2)",
    ),
    _function(
        "is_prime",
        "n",
        "checks if a number is prime; tells whether a number is a prime",
        "return n > 1 and all(n % i for i in range(2, n))",
    ),
    _function(
        "squares",
        "n",
        "lists the first n squares; returns a list of square numbers",
        "return [i * i for i in range(1, n + 1)]",
    ),
    _function(
        "to_fahrenheit",
        "celsius",
        "turns Celsius into Fahrenheit; converts a temperature from Celsius to Fahrenheit",
        "return celsius * 9 / 5 + 32",
    ),
    _function(
        "evens",
        "numbers",
        "keeps the even numbers of a list; returns only the even numbers of a list",
        "return [n for n in numbers if n % 2 == 0]",
    ),
    _function(
        "join_words",
        "words",
        "joins words with spaces; makes one text of a list of words",
        'return " ".join(words)',
    ),
)
NAMES = (
    "f",
    "solve",
    "helper",
    "compute",
    "my_function",
    "run",
    "work",
    "task",
    "find_it",
    "do_it",
)


def _draw(rng: Random) -> Slots:
    function = rng.choice(FUNCTIONS)
    named = rng.random() < 0.35
    name = rng.choice((function.name, *NAMES)) if named else function.name
    return {
        "ask": "named" if named else "plain",
        "does": rng.choice(function.does),
        "name": name,
        "of": function.name,
    }


def source(function: Function, name: str, body: str) -> str:
    """The function's text."""
    lines = body.replace(f"{function.name}(", f"{name}(").split("\n")
    return f"def {name}({function.parameters}):\n" + "\n".join(f"    {line}" for line in lines)


@cache
def _by_name() -> dict[str, Function]:
    return {function.name: function for function in FUNCTIONS}


def _write(slots: Slots, rng: Random) -> str:
    function = _by_name()[slots["of"]]
    return source(function, slots["name"], rng.choice(function.bodies))


def _check(slots: Slots, text: str) -> bool:
    if len(text) > 1000:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the text compares or escapes
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        return False
    name = slots["name"] if slots["ask"] == "named" else tree.body[0].name
    function = _by_name()[slots["of"]]
    dumped = ast.dump(tree)
    return any(
        dumped == ast.dump(ast.parse(source(function, name, body))) for body in function.bodies
    )


PYTHON = Kind(
    name="python",
    about="a small Python function out of a set of thirty-two",
    wordings={
        "plain": (
            "[Write|Give me|Show me|I need|Make|Code|Can you write|Could you write|How do I "
            "write] a [Python function|function in Python] that {does}.",
            "[Write|Give me|Show me|I need] [a function|Python code|a short function|a small "
            "Python function] that {does}.",
            "[In Python|Python], [write a function|I need a function|a function] that {does}.",
            "[A Python function|Python code|A function], please: it {does}.",
            "[Code this|Program this|Implement this] in Python: a function that {does}.",
            "[How would you write|How do you write|How does one write] a Python function that "
            "{does}?",
        ),
        "named": (
            "[Write|Give me|Show me|I need|Make|Code] a [Python function|function in Python] "
            "called {name} that {does}.",
            "[Write|Implement|Define] {name} in Python: it {does}.",
            "[Write|Give me|I need] a function {name} that {does}.",
            "[In Python|Python], [write a function named {name}|I need a function named {name}] "
            "that {does}.",
            "[Can you write|Could you write] a Python function with the name {name} that {does}?",
        ),
    },
    draw=_draw,
    write=_write,
    check=_check,
    key=("ask", "does", "name"),
    closed=True,
    late=True,
    exact=("text", "word", "name"),
)

KINDS: tuple[Kind, ...] = (PYTHON,)
