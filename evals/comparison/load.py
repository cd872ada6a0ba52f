"""Many requests at once: what the sides do as more come, closed loop (--batch) and open loop (--rate).

Notable:
- a user's rate is kept tokens over the whole wait, from arrival to the end: the first canvas is not free;
- the rate of all is kept tokens over the time in which all were served;
- every block serves the same documents; a point's figures are medians over blocks, with their range.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dgemma_evals.comparison.stats import quantiles

if TYPE_CHECKING:
    import pandas as pd

Point = dict[str, Any]


def traffic_points(table: pd.DataFrame | None, facts: Mapping[str, Any]) -> list[Point]:
    """One point a side and batch size, or rate."""
    if table is None:
        return []
    points = []
    for kind in ("batch", "rate"):
        known = table[table[kind].notna()]
        for (side, amount), part in known.groupby(["side", kind], sort=False):
            blocks = [_block(one, facts) for _, one in part.groupby("seed")]
            points.append(
                {
                    "side": str(side),
                    "kind": kind,
                    "amount": float(amount),
                    "requests": len(part),
                    "score": float(part.score.mean()),
                    **{name: _median(blocks, name) for name in blocks[0]},
                    "range_of_tokens_per_second": [
                        min(b["tokens_per_second"] for b in blocks),
                        max(b["tokens_per_second"] for b in blocks),
                    ],
                    "cores_busy_with_others": max(
                        part.cores_busy_with_others.dropna().tolist(), default=None
                    ),
                }
            )
    for point in points:
        point["bytes_per_request"] = _bytes_per_request(points, point)
    return points


def _block(part: pd.DataFrame, facts: Mapping[str, Any]) -> Point:
    """A point in one block. Seconds run from arrival."""
    waits = part.waited + part.seconds
    kept, wall = float(part.kept_tokens.sum()), float(part.wall.iloc[0])
    later = part.kept_tokens - part.first_tokens
    gaps = (part.seconds - part.first_seconds)[later > 0] / later[later > 0]
    good = waits <= facts["within"]
    price = facts.get("price")
    return {
        "tokens_per_second": kept / wall,
        "tokens_per_second_a_user": quantiles(part.kept_tokens / waits, (0.5,))[0],
        "first_seconds": quantiles((part.waited + part.first_seconds).dropna(), (0.5,))[0],
        "seconds_per_further_token": quantiles(gaps.dropna(), (0.5,))[0],
        "p50": quantiles(waits, (0.5,))[0],
        "p90": quantiles(waits, (0.9,))[0],
        "p99": quantiles(waits, (0.99,))[0],
        "good_share": float(good.mean()),
        "good_requests_per_second": float(good.sum()) / wall,
        "good_tokens_per_second": float(part.kept_tokens[good].sum()) / wall,
        "rise_bytes": float(part.rise_bytes.iloc[0]),
        "cost_per_million_tokens": None if price is None else price / 3600 * wall / kept * 1e6,
    }


def _median(blocks: Sequence[Point], name: str) -> float | None:
    values = [block[name] for block in blocks if block[name] is not None]
    found = statistics.median(values) if values else None
    return None if found is None or found != found else found


def _bytes_per_request(points: Sequence[Point], point: Point) -> float | None:
    """How much memory each request beside the first took at its peak; of a batch size, against batch 1."""
    one = next(
        (
            p
            for p in points
            if p["side"] == point["side"] and p["kind"] == "batch" and p["amount"] == 1
        ),
        None,
    )
    if one is None or point["kind"] != "batch" or point["amount"] < 2:
        return None
    if point["rise_bytes"] is None or one["rise_bytes"] is None:
        return None
    return float(point["rise_bytes"] - one["rise_bytes"]) / float(point["amount"] - 1)


def overtaking(points: Sequence[Point], first: str, other: str) -> Point | None:
    """The point of the smallest batch size from which on `other` writes more tokens a second than `first`."""
    rates: dict[float, dict[str, Point]] = {}
    for point in points:
        if point["kind"] == "batch" and point["side"] in (first, other):
            rates.setdefault(point["amount"], {})[point["side"]] = point
    found = None
    for amount in sorted(rates, reverse=True):
        pair = rates[amount]
        if len(pair) < 2:
            continue
        if pair[other]["tokens_per_second"] <= pair[first]["tokens_per_second"]:
            break
        found = pair[other]
    return found
