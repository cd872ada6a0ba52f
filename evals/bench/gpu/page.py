"""`dgemma bench gpu` on the page: the step and the token against their floors, and what a step is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dgemma_evals.page import escaped, table_of

COLUMNS = ("pass", "ms", "range", "floor ms", "to the floor", "GB read", "TFLOP")
LOOP = ("mode", "batch", "ms a pass in generate", "range", "ms, bare replay", "the loop's share")
NAMES = {"step": "denoising step", "token": "autoregressive token"}


def sections(record: Mapping[str, Any]) -> list[str]:
    """The body of the GPU's part of the page, as HTML."""
    environment, limits = record["environment"], record["ceilings"]
    card = environment.get("card", environment.get("note", environment["device"]))
    shape = record["shape"]
    parts = [
        f"<h2>One GPU: {escaped(card)}</h2>",
        f"<p>{shape['layers']} layers, {shape['experts']} experts, vocabulary {shape['vocab']:,}, prefix "
        f"{shape['prefix']:,}, canvas {shape['canvas']}, {escaped(record['dtype'])}, random weights. This card copies "
        f"{limits['bytes_per_second'] / 1e12:.2f} TB/s (read and written) and multiplies "
        f"{limits['operations_per_second'] / 1e12:.0f} TFLOP/s. Floor: every touched weight read once at the first, or "
        "all products at the second, whichever is longer.</p>",
    ]
    for row in record["rows"]:
        rates = row["tokens_per_second"]
        parts += [
            f"<h3>{escaped(row['routing'])}; {row['touched_experts']['mean']:.1f} touched a layer</h3>",
            table_of(LOOP, [_loop(found) for found in row["generate"]]),
            f"<p class='note'>The loop's share: what <code>generate</code> takes beyond the bare replay of its "
            f"recorded pass. The aim is at most {row['generate'][0]['aim']:.0%}.</p>",
            table_of(COLUMNS, [_pass(NAMES[name], row[name]) for name in NAMES]),
            table_of(("part of the step", "ms"), [
                (name, f"{found['median_ms']:.3f}") for name, found in row["step"]["parts"].items()
            ]),
            f"<p>{rates['diffusion']:.0f} tokens/s by diffusion, {rates['autoregression']:.0f} by our own "
            f"autoregression: {rates['ratio']:.2f}×. {escaped(rates['counted'])}.</p>",
        ]  # fmt: skip
    public = record["public"]
    if public["measured"]:
        apart = public["logits_difference"]["relative"]
        parts.append(
            f"<p>transformers on the same card and weights ({escaped(public['best'])}): {public['median_ms']:.2f} ms a "
            f"step, {record['rows'][0]['to_public']:.2f}× of ours; logits apart by {apart:.1e} (relative).</p>"
        )
    else:
        parts.append(f"<p>No public implementation measured: {escaped(public['reason'])}.</p>")
    return parts


def _loop(found: Mapping[str, Any]) -> tuple[str, ...]:
    rounds = found["rounds_ms"]
    return (
        found["mode"],
        str(found["batch"]),
        f"{found['median_ms']:.3f}",
        f"{min(rounds):.3f} to {max(rounds):.3f}",
        f"{found['replay_ms']:.3f}",
        f"{found['loop_share']:.1%}",
    )


def _pass(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    rounds = found["rounds_ms"]
    return (
        name,
        f"{found['median_ms']:.3f}",
        f"{min(rounds):.3f} to {max(rounds):.3f}",
        f"{found['floor_ms']:.3f}",
        f"{found['to_floor']:.2f}×",
        f"{sum(found['read_bytes'].values()) / 1e9:.1f}",
        f"{sum(found['operations'].values()) / 1e12:.2f}",
    )
