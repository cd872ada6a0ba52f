"""How a run looks in a terminal: pure functions from events to rich text. The screen that shows it live is screen.py.

Notable:
- confidence is the colour behind a token, from blue (unsure) to yellow (sure): cividis, which
  colour-blind readers see as well. The text on it is black or white, whichever stands out more, so
  it reads on light and on dark terminals;
- state shows without colour too: noise is dim, a pinned token underlined, the tail behind the end
  of the text a row of dots. A drafted token that was replaced stands behind ✗, its replacement
  behind →, the rejected tail in ⟨ ⟩;
- no token can move the cursor or hide text: control characters are drawn as signs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from rich.color import Color
from rich.color_triplet import ColorTriplet
from rich.style import Style
from rich.text import Text

from dgemma_core.command.lines import count, escaped

if TYPE_CHECKING:
    from dgemma_core.events import DraftEvent, StepEvent
    from dgemma_core.files.trace_schema import Round

Decode = Callable[[int], str]

# Ten stops of the cividis ramp (Nuñez, Anderton, Renslow 2018), probability 0 to 1.
RAMP = (
    (0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115),
    (138, 134, 120), (165, 156, 116), (195, 179, 105), (225, 204, 85), (254, 232, 56),
)  # fmt: skip
NOISE = Style(dim=True)
END, TAIL, NEWLINE = "■", "·", "↵"
REPLACED, REPLACEMENT = Style(strike=True, dim=True), Style(bold=True, underline=True)


def shade(probability: float) -> Style:
    """The style of a token that the model holds for this probable, 0 … 1."""
    place = min(max(probability, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    rgb = [
        round(a + (b - a) * (place - low)) for a, b in zip(RAMP[low], RAMP[low + 1], strict=True)
    ]
    # Against relative luminance 0.179 black and white contrast alike, 4.58 : 1 (WCAG 2).
    text = "#000000" if luminance(rgb) > 0.179 else "#ffffff"
    return Style(color=text, bgcolor=Color.from_triplet(ColorTriplet(*rgb)))


def luminance(rgb: Sequence[int]) -> float:
    """Relative luminance of an sRGB colour (three values of 0 … 255), as WCAG 2 defines it."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def visible(piece: str) -> str:
    """One token's text, its control characters (cursor, reading direction) as signs."""
    return escaped(piece) or "∅"


def draw_step(event: StepEvent, decode: Decode, eos: Collection[int] = ()) -> Text:
    """The canvas as one denoising step leaves it: accepted tokens coloured by confidence, noise dim.

    An accepted newline breaks the line; an accepted token of `eos` draws as ■, what is accepted behind as dots.
    """
    tokens, accepted, pinned = (
        x.tolist() for x in (event.tokens_out, event.accepted, event.pinned)
    )
    candidates = [
        (event.sample.tolist(), event.sample_probability.tolist()),
        (event.argmax.tolist(), event.argmax_probability.tolist()),
    ]
    text, ended = Text(), False
    for i, token in enumerate(tokens):
        if not (accepted[i] or pinned[i]):
            text.append(visible(decode(token)), NOISE)
            continue
        # A rule that keeps tokens from step to step may hold one that this step did not predict.
        known = [probability[i] for ids, probability in candidates if ids[i] == token]
        style = shade(known[0]) if known else Style(bold=True)
        if pinned[i]:
            style = Style(underline=True, bold=True)
        if ended:
            text.append(TAIL, NOISE)
        elif token in eos:
            text.append(END, style)
            ended = True
        else:
            _append(text, decode(token), style)
    return text


def draw_noise(event: StepEvent, decode: Decode) -> Text:
    """The canvas before a step: of the first one of a canvas its noise. Pinned tokens stand out."""
    text = Text()
    pinned = event.pinned.tolist()
    for i, token in enumerate(event.tokens_in.tolist()):
        style = Style(underline=True, bold=True) if pinned[i] else NOISE
        text.append(visible(decode(token)), style)
    return text


def draw_tokens(
    tokens: Iterable[int], probabilities: Iterable[float], decode: Decode, eos: Collection[int] = ()
) -> Text:
    """Final tokens, coloured by the probability each had at its commit; an EOS draws as ■."""
    text = Text()
    for token, probability in zip(tokens, probabilities, strict=True):
        if token in eos:
            text.append(END, shade(probability))
        else:
            _append(text, decode(token), shade(probability))
    return text


def draw_round(made: DraftEvent | Round, decode: Decode, eos: Collection[int] = ()) -> Text:
    """A round's draft behind its first token, which is written already: `good tokens✗wrong→right⟨rejected⟩`.

    Accepted tokens are coloured by the denoiser's probability. Where the causal mode's choice is what was drafted,
    or the draft is over, ✗ is missing. The tail is shown to its first end.
    """
    tokens = [int(token) for token in made.tokens]
    stop = 1 + made.accepted
    chances = [float(chance) for chance in made.probability[1:stop]]
    text = draw_tokens(tokens[1:stop], chances, decode, eos)

    def piece(token: int) -> str:
        return END if token in eos else visible(decode(token))

    here, tail = tokens[stop : stop + 1], tokens[stop + 1 :]
    if here and here != [made.replacement]:
        text.append("✗" + piece(here[0]), REPLACED)
    text.append("→" + piece(made.replacement), REPLACEMENT)
    if here == [made.replacement] and made.replacement in eos:
        return text
    ends = [i for i, token in enumerate(tail, 1) if token in eos]
    if tail:
        text.append("⟨" + "".join(map(piece, tail[: ends[0] if ends else None])) + "⟩", NOISE)
    return text


def round_status(event: DraftEvent) -> Text:
    """One dim line: what a round of speculation drafted, verified and accepted."""
    verified = f"{event.verified - 1} verified · {event.accepted} accepted"
    return Text(
        f"round {event.round + 1} · token {event.start + 1} · {len(event.tokens) - 1} drafted in"
        f" {count(event.steps, 'step')} · "
        + (verified if event.verified > 1 else "given up: it began otherwise"),
        NOISE,
    )


def _append(text: Text, piece: str, style: Style) -> None:
    """A kept token: control characters made visible, newlines shown and obeyed."""
    for i, line in enumerate(piece.split("\n")):
        if i:
            text.append(NEWLINE, style)
            text.append("\n")
        if line or piece == "":
            text.append(visible(line), style)


def colour(
    answer: str,
    ids: Sequence[int],
    probabilities: Sequence[float],
    decode: Callable[[Sequence[int]], str],
) -> Text:
    """The final text, coloured by the probability of the tokens that spell it. What the ids hold
    around it, a thought or a stop string, is left out."""
    text = Text(escaped(answer, keep="\n"))
    start = decode(ids).rfind(answer)
    if start < 0:
        return text
    end = -start
    for i, probability in enumerate(probabilities, 1):
        begin, end = end, len(decode(ids[:i])) - start
        if end > 0:
            text.stylize(shade(probability), max(begin, 0), end)
    return text


def status(event: StepEvent) -> Text:
    """One dim line: where the run is and how sure the model is."""
    free = ~event.pinned
    accepted = int((event.accepted & free).sum())
    entropy = float(event.entropy[free].mean()) if bool(free.any()) else 0.0
    return Text(
        f"canvas {event.canvas + 1} · step {event.step + 1}/{event.steps}"
        f" · temperature {event.temperature:.2f} · accepted {accepted}/{len(event.tokens_out)}"
        f" · entropy {entropy:.3f} nats",
        NOISE,
    )


def legend() -> Text:
    """The ramp, labelled."""
    text = Text("probability 0 ", NOISE)
    for i in range(len(RAMP)):
        text.append(" ", shade(i / (len(RAMP) - 1)))
    return text.append(" 1", NOISE)
