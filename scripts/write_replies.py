"""Writes docs/nano/replies.md: a hundred requests drawn by seed, and what both modes reply.

    python -m scripts.write_replies [--model nano-talk] [--count 100] [--seed 0] [--out docs/nano/replies.md]

Kinds that the model was taught come as often as the table of shares says, each about what was never asked about in
training; nothing is left out by taste.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from random import Random

import dgemma_core as dg
from dgemma_core.files.finding import find_folder
from dgemma_core.nano.english import kinds
from dgemma_core.nano.problems import known

HEAD = """# {count} replies of {model}

Drawn by seed {seed} from the kinds of request that it was taught, each about something that it was never asked about in
training (`python -m scripts.write_replies`). Both modes of the same weights: diffusion with the sampler's settings of
its checkpoint, and greedy autoregression. A tick is the verdict of the kind's verifier.
"""


def drawn(count: int, seed: int, taught: Collection[str]) -> list[kinds.Example]:
    """Requests of the kinds that were taught, as often as the table of shares says."""
    rng = Random(f"replies {seed}")
    shares = {name: share for name, share in kinds.SHARES.items() if name in taught}
    names = rng.choices(tuple(shares), weights=tuple(shares.values()), k=count)
    return [kinds.draw(name, rng.randrange(10**9), "test_slots") for name in names]


def quoted(text: str) -> str:
    """A text as a Markdown block that keeps its lines."""
    fence = "~~~" if "```" in text else "```"
    return f"{fence}\n{text.strip() or '(nothing)'}\n{fence}"


def main() -> None:
    """Writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano-talk")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/nano/replies.md"))
    arguments = parser.parse_args()
    loaded = dg.load(arguments.model)
    taught = known(find_folder(arguments.model)).kinds
    if not taught:
        parser.error(f"{arguments.model} was taught no English: name another --model")
    examples = drawn(arguments.count, arguments.seed, taught)
    prompts = [example.messages for example in examples]
    texts = {
        mode: dg.generate(loaded, prompts, mode=mode, seed=arguments.seed, max_new_tokens=192, batch_size=16)
        for mode in ("diffusion", "autoregressive")
    }  # fmt: skip
    parts = [HEAD.format(count=len(examples), model=arguments.model, seed=arguments.seed)]
    right = dict.fromkeys(texts, 0)
    for i, example in enumerate(examples):
        chat = "\n".join(f"{m['role']}: {m['content']}" for m in example.messages)
        parts.append(f"## {i + 1} · {example.kind.replace('_', ' ')}\n\n{quoted(chat)}")
        for mode, found in texts.items():
            accepted = kinds.accepts(example, found[i].text)
            right[mode] += accepted
            steps = f", {found[i].denoising_steps} steps" if mode == "diffusion" else ""
            sign = "✓" if accepted else "✗"
            parts.append(f"{sign} {mode}{steps}\n\n{quoted(found[i].text)}")
    said = " and ".join(f"{count} by {mode}" for mode, count in right.items())
    parts.insert(1, f"The verifiers accept {said}.")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
