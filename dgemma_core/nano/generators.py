"""Two small task generators of our own, in the manner of reasoning-gym's datasets.

`generator[seed]` is an entry (question, answer, metadata) drawn from that seed alone;
`generator.score_answer(answer, entry)` is its verifier.
"""

import json
import re
from random import Random
from typing import Any

NAMES = (
    "Ada Amir Ana Ben Carla Chen Clara Dan David Ella Emil Eva Felix Fatima Grace Hana Hugo Ida "
    "Igor Ivan Jack Jane Kofi Lars Lea Leo Lily Lucas Maria Max Mia Nina Noah Nora Olga Omar "
    "Oscar Paul Priya Rosa Ruth Sam Sara Sofia Tara Theo Tom Vera Yuki Zoe"
).split()
ITEMS = (
    "apples beads books boxes buttons cards coins cups eggs keys lamps lemons letters nuts pears "
    "pens plums rings roses shells stamps stones tickets toys"
).split()
GAINS = ("buys", "finds", "gets", "makes", "wins", "picks up")
LOSSES = ("breaks", "gives away", "loses", "sells", "throws out", "uses")
HOLDERS = ("bags", "boxes", "jars", "packs", "rows", "trays")


class WordSum:
    """A sum in two steps, told in words; the answer shows both steps, an equation a line.

    The first step is a change of the number or a product ("4 bags of 12"), the second a change.
    Numbers run to `max_number`, factors to `max_factor`; nothing falls below zero. In the answer every
    number has as many digits as the largest could take, so that where a digit stands is known at once.
    """

    def __init__(self, min_number: int, max_number: int, max_factor: int) -> None:
        self.min_number, self.max_number, self.max_factor = min_number, max_number, max_factor
        most = max(2 * max_number, max_factor**2) + max_number
        self.width = len(str(most))

    def __getitem__(self, seed: int) -> dict[str, Any]:
        rng = Random(seed)
        name, item = rng.choice(NAMES), rng.choice(ITEMS)
        if rng.random() < 1 / 3:
            holders = rng.randint(2, self.max_factor)
            each = rng.randint(2, self.max_factor)
            total = holders * each
            told = f"{name} has {holders} {rng.choice(HOLDERS)} of {each} {item}."
            steps = [self._equation(holders, "*", each, total)]
        else:
            start = rng.randint(self.min_number, self.max_number)
            change, step, total = self._change(start, rng)
            told, steps = f"{name} has {start} {item} and {change}.", [step]
        change, step, total = self._change(total, rng)
        steps.append(step)
        pronoun = rng.choice(("Then", "Later", "Now", "Next"))
        return {
            "question": f"{told} {pronoun} {name} {change}. How many {item}?",
            "answer": "\n".join(steps),
            "metadata": {"source_dataset": "word_sum", "source_index": seed, "result": total},
        }

    def _change(self, total: int, rng: Random) -> tuple[str, str, int]:
        """What happens, the equation that says it, and the new total."""
        amount = rng.randint(self.min_number, self.max_number)
        if rng.random() < 0.5 and total >= self.min_number:
            amount = rng.randint(self.min_number, min(total, self.max_number))
            return (
                f"{rng.choice(LOSSES)} {amount}",
                self._equation(total, "-", amount, total - amount),
                total - amount,
            )
        return (
            f"{rng.choice(GAINS)} {amount}",
            self._equation(total, "+", amount, total + amount),
            total + amount,
        )

    def _equation(self, left: int, sign: str, right: int, found: int) -> str:
        width = self.width
        return f"{left:0{width}} {sign} {right:0{width}} = {found:0{width}}"

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """1 if every line is a true equation, from numbers told or found, and the last line gives
        the result; else 0. Leading zeros make no difference."""
        known = set(map(int, re.findall(r"\d+", entry["question"])))
        result = None
        for line in (answer or "").strip().split("\n"):
            equation = re.fullmatch(r"\s*(\d+) ([-+*]) (\d+) = (\d+)\s*", line)
            if equation is None:
                return 0.0
            a, b, result = (int(equation[group]) for group in (1, 3, 4))
            true = {"+": a + b, "-": a - b, "*": a * b}[equation[2]] == result
            if not true or not known >= {a, b}:
                return 0.0
            known.add(result)
        return float(result is not None and result == entry["metadata"]["result"])


CITIES = (
    "Accra Athens Berlin Bogota Boston Cairo Chennai Delhi Dublin Geneva Hanoi Havana Istanbul "
    "Jakarta Kyoto Lagos Lima Lisbon London Madrid Milan Nairobi Osaka Oslo Paris Porto Prague "
    "Quito Rome Santiago Seoul Tunis Turin Vienna Zurich"
).split()
JOBS = (
    "actor baker barber chef clerk dentist doctor driver farmer gardener judge lawyer miner nurse "
    "painter pilot plumber poet potter sailor singer tailor teacher vet waiter writer"
).split()
PETS = (
    "cat cow dog duck frog goat hamster hen horse lizard mouse owl parrot pony rabbit snake turtle"
).split()
COLOURS = "black blue brown green grey orange pink purple red silver white yellow".split()
HOBBIES = (
    "art baking chess coffee cycling dance fishing football golf hiking history jazz music opera "
    "poetry reading rowing running sailing singing skating skiing swimming tea tennis trains "
    "travel yoga"
).split()


class JsonRecord:
    """A sentence about a person, and the facts that are asked for, as a JSON object.

    The sentence tells `min_facts` to `max_facts` facts beside the name, in random order; some of
    them (and perhaps the name) are asked for, in another order.
    """

    def __init__(self, min_facts: int, max_facts: int) -> None:
        self.min_facts, self.max_facts = min_facts, max_facts

    def __getitem__(self, seed: int) -> dict[str, Any]:
        rng = Random(seed)
        name, age, city = rng.choice(NAMES), rng.randint(18, 99), rng.choice(CITIES)
        job, pet, colour = rng.choice(JOBS), rng.choice(PETS), rng.choice(COLOURS)
        likes = rng.sample(HOBBIES, rng.randint(1, 3))
        article = "an" if job[0] in "aeiou" else "a"
        told = {
            "age": (age, f"is {age} years old"),
            "city": (city, f"{rng.choice(('lives in', 'comes from'))} {city}"),
            "job": (job, f"{rng.choice(('works as', 'is'))} {article} {job}"),
            "pet": ({"kind": pet, "colour": colour}, f"has a {colour} {pet}"),
            "likes": (likes, f"likes {_enumerate(likes)}"),
        }
        facts = rng.sample(list(told), rng.randint(self.min_facts, self.max_facts))
        asked = rng.sample(["name", *facts], rng.randint(2, len(facts) + 1))
        values = {"name": name, **{fact: told[fact][0] for fact in facts}}
        record = {key: values[key] for key in asked}
        sentence = f"{name} {_enumerate([told[fact][1] for fact in facts])}."
        return {
            "question": f"{', '.join(asked)}: {sentence}",
            "answer": json.dumps(record),
            "metadata": {"source_dataset": "json_record", "source_index": seed, "record": record},
        }

    def score_answer(self, answer: str | None, entry: dict[str, Any]) -> float:
        """1 if the answer is JSON and equals the record (the order of keys is free), else 0."""
        try:
            return float(json.loads(answer or "") == entry["metadata"]["record"])
        except (ValueError, RecursionError):
            return 0.0


def _enumerate(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
