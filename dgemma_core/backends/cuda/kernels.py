"""The GPU's kernels, in Triton. `experts`, `fused` and `head` call them and hold the same in plain torch.

Notable:
- a step's time is that of reading its weights once, so each kernel does as much as one pass over its data can;
- nothing here asks the host: what changes between steps (prefix lengths, where keys stand, the experts' shares) is
  read from the device, which is what lets a CUDA graph record the launches;
- sums are float32. `UPCAST` widens the operands of products as well: triton's interpreter, which runs these kernels on
  a CPU, cannot multiply bfloat16;
- a product of weights with few tokens has the weights on the left, 16 rows or more of them, and the tokens on the
  right: a matrix unit takes few columns but not few rows.

Axes: N tokens, D hidden size, E experts, K choices a token, W expert width, H query heads, G key/value heads, d head
dimension, V vocabulary, S slice of the vocabulary.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def multiply(a, b, total, UPCAST: tl.constexpr):
    """a (m, k) · b (k, n) added to total (m, n) float32. Float32 means float32: no reduced precision."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def gelu(x):
    """The tanh form: ½(1 + tanh y) is the logistic function of 2y."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


# --- experts


@triton.jit
def sort_pairs(
    chosen, order, slices, pairs, slots, experts, BY_EXPERT: tl.constexpr, BLOCK: tl.constexpr
):
    """A stable counting sort of pairs (token, choice) by expert: one program an expert, which reads all choices.

    slices (3, slots) int32: start, end, expert. Slot e belongs to expert e (BY_EXPERT), or a slice's slot is the place
    of its first pair, and the slots of its other pairs are empty.
    """
    expert = tl.program_id(0)
    below, count_here = 0, 0
    for start in range(0, pairs, BLOCK):
        i = start + tl.arange(0, BLOCK)
        choice = tl.load(chosen + i, mask=i < pairs, other=experts)
        below += tl.sum((choice < expert).to(tl.int32))
        count_here += tl.sum((choice == expert).to(tl.int32))
    if BY_EXPERT:
        tl.store(slices + expert, below)
        tl.store(slices + slots + expert, below + count_here)
        tl.store(slices + 2 * slots + expert, expert)
    done = 0
    for start in range(0, pairs, BLOCK):
        i = start + tl.arange(0, BLOCK)
        choice = tl.load(chosen + i, mask=i < pairs, other=experts)
        mine = choice == expert
        count = mine.to(tl.int32)
        rank = done + tl.cumsum(count) - count
        tl.store(order + below + rank, i, mask=mine)
        if not BY_EXPERT:
            leads = rank == 0
            tl.store(slices + below + rank, tl.where(leads, below, 0), mask=mine)
            tl.store(
                slices + slots + below + rank, tl.where(leads, below + count_here, 0), mask=mine
            )
            tl.store(slices + 2 * slots + below + rank, expert + 0 * rank, mask=mine)
        done += tl.sum(count)


@triton.jit
def experts_in(
    x, weight, order, slices, out, slots, K, D: tl.constexpr, W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """gelu(gate · x) · (up · x) of each slice's tokens: x (N, D), weight (E, 2W, D) → out (N·K, W), by expert."""
    slot = tl.program_id(1)
    first = tl.load(slices + slot)
    last = tl.load(slices + slots + slot)
    expert = tl.load(slices + 2 * slots + slot).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    gate_rows = weight + expert * (2 * W * D) + (n % W)[:, None] * D + k[None, :]
    up_rows = gate_rows + W * D
    for start in range(first, last, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        live = row < last
        token = (tl.load(order + row, mask=live, other=0) // K).to(tl.int64)
        tokens = x + token[:, None] * D + k[None, :]
        gate = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for d in range(0, D, BLOCK_K):
            if D % BLOCK_K == 0:
                b = tl.load(tokens + d)
                a = tl.load(gate_rows + d)
                c = tl.load(up_rows + d)
            else:
                inside = (k < D - d)[None, :]
                b = tl.load(tokens + d, mask=inside, other=0.0)
                a = tl.load(gate_rows + d, mask=inside, other=0.0)
                c = tl.load(up_rows + d, mask=inside, other=0.0)
            b = tl.trans(b)
            gate = multiply(a, b, gate, UPCAST)
            up = multiply(c, b, up, UPCAST)
        inner = (gelu(gate) * up).to(out.dtype.element_ty)
        tl.store(out + row[None, :] * W + n[:, None], inner, mask=live[None, :] & (n < W)[:, None])


@triton.jit
def experts_out(
    inner, weight, shares, order, slices, out, slots, D: tl.constexpr, W: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """inner (N·K, W) sorted by expert, weight (E, D, W) → out (N·K, D) in the pairs' order, times their share."""
    slot = tl.program_id(1)
    first = tl.load(slices + slot)
    last = tl.load(slices + slots + slot)
    expert = tl.load(slices + 2 * slots + slot).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    rows = weight + expert * (D * W) + (n % D)[:, None] * W + k[None, :]
    for start in range(first, last, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        live = row < last
        inputs = inner + tl.where(live, row, first)[:, None] * W + k[None, :]
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for w in range(0, W, BLOCK_K):
            if W % BLOCK_K == 0:
                b = tl.load(inputs + w)
                a = tl.load(rows + w)
            else:
                inside = (k < W - w)[None, :]
                b = tl.load(inputs + w, mask=inside, other=0.0)
                a = tl.load(rows + w, mask=inside, other=0.0)
            total = multiply(a, tl.trans(b), total, UPCAST)
        pair = tl.load(order + row, mask=live, other=0).to(tl.int64)
        share = tl.load(shares + pair, mask=live, other=0.0).to(tl.float32)
        result = (total * share[None, :]).to(out.dtype.element_ty)
        tl.store(
            out + pair[None, :] * D + n[:, None], result, mask=live[None, :] & (n < D)[:, None]
        )


@triton.jit
def route(scores, scale, weights, chosen, E: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """A token's K best of E scores (of equals the lowest index), softmax over them, times the experts' scale."""
    token = tl.program_id(0)
    e = tl.arange(0, BLOCK)
    left = tl.load(scores + token * E + e, mask=e < E, other=LOWEST).to(tl.float32)
    left = tl.where(e < E, left, LOWEST)
    peak = tl.max(left)
    k = tl.arange(0, BLOCK)  # of which the first K are used
    picked = tl.zeros((BLOCK,), tl.int32)
    value = tl.full((BLOCK,), 0.0, tl.float32)
    for i in tl.static_range(K):
        best = tl.max(left)
        index = tl.min(tl.where(left == best, e, E - 1))  # E − 1 where no score is a number
        picked = tl.where(k == i, index, picked)
        value = tl.where(k == i, tl.exp(best - peak), value)
        left = tl.where(e == index, -float("inf"), left)
    share = value / tl.sum(value) * tl.load(scale + picked, mask=k < K, other=0.0).to(tl.float32)
    tl.store(weights + token * K + k, share, mask=k < K)
    tl.store(chosen + token * K + k, picked, mask=k < K)


# --- norms and residuals


@triton.jit
def normed(wide, D: tl.constexpr, eps):
    """wide (BLOCK,) float32 with zeros past D → divided by its root mean square."""
    return wide * tl.rsqrt(tl.sum(wide * wide) / D + eps)


@triton.jit
def rms_norm(x, weight, out, eps, D: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):
    """One row a program: x (N, D) → out (N, D)."""
    row = tl.program_id(0).to(tl.int64) * D
    i = tl.arange(0, BLOCK)
    inside = i < D
    found = normed(tl.load(x + row + i, mask=inside, other=0.0).to(tl.float32), D, eps)
    if WEIGHTED:
        found *= tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row + i, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def after_attention(
    x, mixed, w_mixed, w_dense, w_sparse, w_router, h, dense, sparse, routed, eps, root,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The residual with attention added, and its three norms: for the dense MLP, the experts and the router."""
    row = tl.program_id(0).to(tl.int64) * D
    i = tl.arange(0, BLOCK)
    inside = i < D
    kind = h.dtype.element_ty
    added = normed(tl.load(mixed + row + i, mask=inside, other=0.0).to(tl.float32), D, eps)
    added *= tl.load(w_mixed + i, mask=inside, other=0.0).to(tl.float32)
    sum = tl.load(x + row + i, mask=inside, other=0.0).to(tl.float32)
    sum = (sum + added.to(kind).to(tl.float32)).to(kind)
    tl.store(h + row + i, sum, mask=inside)
    unit = normed(sum.to(tl.float32), D, eps)
    one = unit * tl.load(w_dense + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(dense + row + i, one.to(kind), mask=inside)
    two = unit * tl.load(w_sparse + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(sparse + row + i, two.to(kind), mask=inside)
    scaled = unit.to(kind).to(tl.float32) * tl.load(w_router + i, mask=inside, other=0.0).to(
        tl.float32
    )
    tl.store(routed + row + i, (scaled.to(kind).to(tl.float32) * root).to(kind), mask=inside)


@triton.jit
def after_experts(
    h, dense, outputs, w_dense, w_sparse, w_both, scalar, w_next, out, following, eps,
    EACH: tl.constexpr, D: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums a token's K expert outputs, joins both MLPs and the residual, and norms the result for what follows."""
    token = tl.program_id(0).to(tl.int64)
    row = token * D
    i = tl.arange(0, BLOCK)
    inside = i < D
    kind = out.dtype.element_ty
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        total += tl.load(outputs + (token * K + k) * D + i, mask=inside, other=0.0).to(tl.float32)
    b = normed(total.to(kind).to(tl.float32), D, eps)
    b *= tl.load(w_sparse + i, mask=inside, other=0.0).to(tl.float32)
    a = normed(tl.load(dense + row + i, mask=inside, other=0.0).to(tl.float32), D, eps)
    a *= tl.load(w_dense + i, mask=inside, other=0.0).to(tl.float32)
    both = (a.to(kind).to(tl.float32) + b.to(kind).to(tl.float32)).to(kind)
    c = normed(both.to(tl.float32), D, eps)
    c *= tl.load(w_both + i, mask=inside, other=0.0).to(tl.float32)
    sum = tl.load(h + row + i, mask=inside, other=0.0).to(tl.float32) + c.to(kind).to(tl.float32)
    sum = (sum.to(kind).to(tl.float32) * tl.load(scalar + token * EACH).to(tl.float32)).to(kind)
    tl.store(out + row + i, sum, mask=inside)
    after = normed(sum.to(tl.float32), D, eps)
    after *= tl.load(w_next + i, mask=inside, other=0.0).to(tl.float32)
    tl.store(following + row + i, after.to(kind), mask=inside)


@triton.jit
def gate(left, right, out, size, BLOCK: tl.constexpr):
    """gelu(left) · right, all (size,)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    a = tl.load(left + i, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(right + i, mask=inside, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    tl.store(out + i, (gelu(a).to(kind).to(tl.float32) * b).to(kind), mask=inside)


@triton.jit
def one_row(x, weight, out, R, D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """One token times a matrix: x (D,), weight (R, D) → out (R,). Bound by reading the matrix once."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    rows = weight + (n % R).to(tl.int64)[:, None] * D + k[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for d in range(0, D, BLOCK_K):
        if D % BLOCK_K == 0:
            a, b = tl.load(rows + d), tl.load(x + d + k)
        else:
            a = tl.load(rows + d, mask=(k < D - d)[None, :], other=0.0)
            b = tl.load(x + d + k, mask=k < D - d, other=0.0)
        total += a.to(tl.float32) * b.to(tl.float32)[None, :]
    tl.store(out + n, tl.sum(total, axis=1).to(out.dtype.element_ty), mask=n < R)


# --- attention over rows whose keys and values stand where a table says
#
# table (places, 1 + 3 · layers) int64: a row's prefix length (−1: no row), then for each layer the addresses of its
# keys and values (G, capacity, d), as if they began at position 0, and the capacity.


@triton.jit
def memory_of(line, layer, like, ALIGNED: tl.constexpr):
    """One layer of one row: pointers to keys and values, in the dtype of the pointer `like`, and the capacity.

    ALIGNED: every position starts at a multiple of 16 bytes, so that loads are as wide as the card allows.
    """
    kind: tl.constexpr = tl.pointer_type(like.dtype.element_ty)
    keys = tl.load(line + 1 + 3 * layer).to(kind)
    values = tl.load(line + 2 + 3 * layer).to(kind)
    capacity = tl.load(line + 3 + 3 * layer)
    if ALIGNED:
        keys, values = tl.multiple_of(keys, 16), tl.multiple_of(values, 16)
    return keys, values, capacity


@triton.jit(do_not_specialize=["layer"])
def place(
    q, k, v, q_weight, k_weight, cos, sin, table, queries, T, columns, layer, eps,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Norms and rotates one head of one new token. Queries go to (N, H, d), keys and values behind their row's prefix.

    q (N, H·d), k and v (N, G·d), T tokens of each row; cos and sin (N, d), sin with the sign of its half.
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    line = table + (token // T) * columns
    length = tl.load(line)
    if length >= 0:
        i = tl.arange(0, BLOCK)
        inside = i < D
        across = (i + D // 2) % D
        if head < H:
            start = q + (token * H + head) * D
        elif head < H + G:
            start = k + (token * G + head - H) * D
        else:
            start = v + (token * G + head - H - G) * D
        wide = tl.load(start + i, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(wide * wide) / D + eps)
        kind = queries.dtype.element_ty
        keys, values, capacity = memory_of(line, layer, queries, ALIGNED)
        position = length + token % T
        if head >= H + G:
            at = values + ((head - H - G) * capacity + position) * D + i
            tl.store(at, (wide * inverse).to(kind), mask=inside)
        else:
            weight = q_weight if head < H else k_weight
            other = tl.load(start + across, mask=inside, other=0.0).to(tl.float32)
            here = wide * inverse * tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
            there = other * inverse
            there *= tl.load(weight + across, mask=inside, other=0.0).to(tl.float32)
            c = tl.load(cos + token * D + i, mask=inside, other=0.0).to(tl.float32)
            s = tl.load(sin + token * D + i, mask=inside, other=0.0).to(tl.float32)
            rotated = here.to(kind).to(tl.float32) * c + there.to(kind).to(tl.float32) * s
            if head < H:  # noqa: SIM108
                at = queries + (token * H + head) * D + i
            else:
                at = keys + ((head - H) * capacity + position) * D + i
            tl.store(at, rotated.to(kind), mask=inside)


@triton.jit(do_not_specialize=["layer"])
def attend(
    queries, table, mixed, peaks, masses, T, columns, layer, window, splits,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A row's T new tokens see each other and the last `window` positions of the prefix; scale 1.

    CAUSAL: a token sees none after it, and its window ends at itself. The heads that share a key head are stacked, so a
    key is read once for all of them, and the positions are split among programs. A program leaves its mean mixed
    (splits, places, G, rows, d) float32, its peak (in units of log 2) and mass.
    """
    block, split = tl.program_id(0), tl.program_id(2)
    group, owner = tl.program_id(1) % G, tl.program_id(1) // G
    share: tl.constexpr = H // G
    rows = share * T
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    head, token = group * share + row // T, row % T
    live_row, live_d = row < rows, d < D
    q = tl.load(
        queries + (owner.to(tl.int64) * T * H + token * H + head)[:, None] * D + d[None, :],
        mask=live_row[:, None] & live_d[None, :], other=0.0,
    )  # fmt: skip
    line = table + owner.to(tl.int64) * columns
    length = tl.load(line)
    keys, values, capacity = memory_of(line, layer, queries, ALIGNED)
    start = tl.maximum(length, 0).to(tl.int32)
    stop = tl.where(length < 0, 0, start + T)
    first = tl.maximum(start - window, 0)
    each = tl.cdiv(tl.cdiv(stop - first, splits), BLOCK_N) * BLOCK_N
    low = first + split * each
    high = tl.minimum(low + each, stop)
    peak = tl.full((BLOCK_M,), LOWEST, tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    base = group * capacity * D
    for at in range(low, high, BLOCK_N):
        position = at + tl.arange(0, BLOCK_N)
        live = position < high
        place = base + position.to(tl.int64)[:, None] * D + d[None, :]
        shown = live[:, None] & live_d[None, :]
        k = tl.load(keys + place, mask=shown, other=0.0)
        scores = multiply(q, tl.trans(k), tl.zeros((BLOCK_M, BLOCK_N), tl.float32), UPCAST)
        seen = live[None, :] & live_row[:, None]
        if CAUSAL:
            behind = (start + token)[:, None] - position[None, :]
            seen = seen & (behind >= 0) & (behind <= window)
        scores = tl.where(seen, scores * LOG2E, LOWEST)
        raised = tl.maximum(peak, tl.max(scores, axis=1))
        weights = tl.exp2(scores - raised[:, None])
        weights = tl.where(seen, weights, 0.0)
        shrink = tl.exp2(peak - raised)
        mass = mass * shrink + tl.sum(weights, axis=1)
        v = tl.load(values + place, mask=shown, other=0.0)
        total = multiply(weights.to(v.dtype), v, total * shrink[:, None], UPCAST)
        peak = raised
    out_row = (split * tl.num_programs(1) + tl.program_id(1)) * rows + row
    found = total / tl.where(mass > 0, mass, 1.0)[:, None]
    where = out_row.to(tl.int64)[:, None] * D + d[None, :]
    tl.store(mixed + where, found, mask=live_row[:, None] & live_d[None, :])
    tl.store(peaks + out_row, peak, mask=live_row)
    tl.store(masses + out_row, mass, mask=live_row)


@triton.jit
def join_splits(
    mixed, peaks, masses, out, T, splits, H: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What the programs of `attend` left for one stacked row, by mass → out (N, H, d); zeros where no row is."""
    row = tl.program_id(0)
    group, owner = tl.program_id(1) % G, tl.program_id(1) // G
    share: tl.constexpr = H // G
    rows = share * T
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, BLOCK_D)
    line = (s * tl.num_programs(1) + tl.program_id(1)) * rows + row
    peak = tl.load(peaks + line, mask=s < splits, other=LOWEST)
    mass = tl.load(masses + line, mask=s < splits, other=0.0)
    weight = mass * tl.exp2(peak - tl.max(peak))
    summed = tl.sum(weight)
    weight = weight / tl.where(summed > 0, summed, 1.0)
    shown = (s < splits)[:, None] & (d < D)[None, :]
    parts = tl.load(mixed + line.to(tl.int64)[:, None] * D + d[None, :], mask=shown, other=0.0)
    found = tl.sum(parts * weight[:, None], axis=0)
    token = owner.to(tl.int64) * T + row % T
    at = out + (token * H + group * share + row // T) * D + d
    tl.store(at, found.to(out.dtype.element_ty), mask=d < D)


# --- the vocabulary head


@triton.jit(do_not_specialize=["start", "number"])
def fold_slice(
    logits, temperature, peak, mass, weighted, best, argmax, slice_peaks, chunk_masses, summed,
    start, size, number, slices, chunks, cap, D: tl.constexpr, SOFT: tl.constexpr,
    S: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Takes one row's logits of a slice (size ≤ S) into its running softmax; leaves their weights in their place.

    z = cap · tanh(logits / cap) / temperature; weights exp(z − running peak). Σ w·(z − peak) gives the entropy; sums of
    CHUNK neighbours (relative to the peak in slice_peaks) let a sample be found later. What has been summed so far of
    the soft embedding shrinks as the peak rises.
    """
    row = tl.program_id(0)
    i = tl.arange(0, S)
    inside = i < size
    at = logits + row.to(tl.int64) * size + i
    raw = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    z = cap * (2.0 * tl.sigmoid(2.0 * raw / cap) - 1.0) / tl.load(temperature + row)
    z = tl.where(inside, z, LOWEST)
    highest = tl.max(z)
    index = tl.min(tl.where(z == highest, i, S))
    if highest > tl.load(best + row):
        tl.store(best + row, highest)
        tl.store(argmax + row, (start + index).to(tl.int64))
    old = tl.load(peak + row)
    raised = tl.maximum(old, highest)
    rise = raised - old
    shrink = tl.exp(-rise)
    z -= raised
    weights = tl.where(inside, tl.exp(z), 0.0)
    tl.store(at, weights.to(logits.dtype.element_ty), mask=inside)
    before = tl.load(mass + row)
    tl.store(mass + row, before * shrink + tl.sum(weights))
    gained = tl.sum(tl.where(inside, weights * z, 0.0))
    # at the first slice the rise from the lowest number times a mass of 0 is left out
    left = tl.where(before > 0, tl.load(weighted + row) - rise * before, 0.0)
    tl.store(weighted + row, left * shrink + gained)
    tl.store(peak + row, raised)
    tl.store(slice_peaks + row * slices + number, raised)
    sums = tl.sum(tl.reshape(weights, (S // CHUNK, CHUNK)), axis=1)
    c = start // CHUNK + tl.arange(0, S // CHUNK)
    tl.store(chunk_masses + row.to(tl.int64) * chunks + c, sums, mask=c < chunks)
    if SOFT:  # noqa: SIM102 (known to the compiler)
        if rise > 0:
            d = tl.arange(0, BLOCK_D)
            place = summed + row.to(tl.int64) * D + d
            tl.store(place, tl.load(place, mask=d < D, other=0.0) * shrink, mask=d < D)
