"""The prefix cache: rows are values, whatever memory they share, and pieces add up to the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dgemma_core.cache import PrefixCache, attend_all, attend_causal
from dgemma_core.errors import RequestError
from dgemma_core.model import DiffusionGemma
from tests.core import tiny

WINDOW = tiny.CONFIG.text.sliding_window


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny.model(3)


def random_ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(tiny.CONFIG.text.vocab_size, (count,), generator=generator).tolist()


CANVAS = torch.tensor([random_ids(8, seed=9)])


def look(model: DiffusionGemma, cache: PrefixCache) -> Tensor:
    """A denoising pass behind every row of the cache: what the cache means."""
    return model.denoise(CANVAS.expand(len(cache), -1), cache)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# --- pieces


@pytest.mark.parametrize("length", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 40])
@pytest.mark.parametrize("piece", [1, 3, WINDOW, 100])
def test_pieces_add_up_to_the_whole(model: DiffusionGemma, length: int, piece: int) -> None:
    """Encoded in calls of a few tokens, or in chunks of one call, as in one go; windows included."""
    ids = random_ids(length)
    whole = model.encode([ids])
    assert whole.hidden is not None and whole.lengths == [length]
    cache, hidden = None, []
    for start in range(0, length, piece):
        cache = model.encode([ids[start : start + piece]], cache)
        assert cache.hidden is not None
        hidden.append(cache.hidden)
    assert cache is not None and cache.lengths == [length]
    close(torch.cat(hidden, dim=1), whole.hidden)
    close(look(model, cache), look(model, whole))
    chunked = model.encode([ids], chunk=piece)
    close(chunked.hidden, whole.hidden)
    close(look(model, chunked), look(model, whole))


def test_rows_of_different_length_are_as_if_alone(model: DiffusionGemma) -> None:
    rows = [random_ids(length, seed=length) for length in (1, 4, WINDOW, 17, 30)]
    more = [random_ids(length, seed=50 + length) for length in (7, 1, 12, 2, 9)]
    together = model.encode(rows)
    further = model.encode(more, together)
    assert together.lengths == [len(row) for row in rows]
    assert further.lengths == [len(a) + len(b) for a, b in zip(rows, more, strict=True)]
    assert together.hidden is not None and together.hidden.shape[1] == 30
    looks = look(model, further)
    for i, (row, new) in enumerate(zip(rows, more, strict=True)):
        alone = model.encode([row])
        close(together.hidden[i, : len(row)], alone.hidden[0])
        assert not together.hidden[i, len(row) :].any(), "right padding is zero"
        longer = model.encode([new], alone)
        close(further.hidden[i, : len(new)], longer.hidden[0])
        close(looks[i : i + 1], look(model, longer))


def test_a_tensor_of_rows_is_a_list_of_rows(model: DiffusionGemma) -> None:
    rows = [random_ids(6, seed=seed) for seed in range(3)]
    assert torch.equal(model.encode(torch.tensor(rows)).hidden, model.encode(rows).hidden)


# --- windows


@pytest.mark.parametrize("window", [1, 3, None])
@pytest.mark.parametrize(("span", "count"), [(1, 1), (5, 5), (9, 4), (9, 1)])
def test_causal_attention_is_the_plain_one(window: int | None, span: int, count: int) -> None:
    heads, groups, d = 6, 2, 4
    if window is not None and count == 1:
        span = min(span, window + 1)  # what a cache hands to a single token
    q, k, v = (
        torch.randn(count, heads, d),
        torch.randn(groups, span, d),
        torch.randn(groups, span, d),
    )
    expected = torch.empty(count, heads, d)
    for t in range(count):
        place = span - count + t
        first = 0 if window is None else max(0, place - window)
        for head in range(heads):
            keys, values = k[head // 3, first : place + 1], v[head // 3, first : place + 1]
            expected[t, head] = (keys @ q[t, head]).softmax(0) @ values
    close(attend_causal(q, k, v, window), expected)


def test_full_attention_is_the_plain_one() -> None:
    q, k, v = torch.randn(3, 6, 4), torch.randn(2, 7, 4), torch.randn(2, 7, 4)
    scores = torch.einsum("thd,hsd->ths", q, k.repeat_interleave(3, 0))
    expected = torch.einsum("ths,hsd->thd", scores.softmax(-1), v.repeat_interleave(3, 0))
    close(attend_all(q, k, v), expected)


def test_sliding_layers_see_no_further_than_the_window() -> None:
    """With sliding layers only, what lies before the reach of all layers has no effect; RoPE is
    relative, but positions are absolute here, so the tails stand at the same place."""
    layers = (tiny.SLIDING, tiny.SLIDING)
    model = tiny.model(layers=layers)
    reach = len(layers) * (WINDOW - 1) + 1
    tail = random_ids(reach, seed=1)
    caches = [model.encode([random_ids(20, seed=seed) + tail]) for seed in (2, 3)]
    close(look(model, caches[0]), look(model, caches[1]))
    close(caches[0].hidden[:, -1], caches[1].hidden[:, -1])
    nearer = model.encode([[*random_ids(20, seed=2), tail[0] ^ 1, *tail[1:]]])
    assert not torch.allclose(nearer.hidden[:, -1], caches[0].hidden[:, -1], atol=1e-5)


def test_sliding_layers_do_not_keep_the_whole_prefix(model: DiffusionGemma) -> None:
    cache = None
    for start in range(60):
        cache = model.encode([random_ids(3, seed=start)], cache)
    sliding, full = cache.rows[0].buffers
    assert full.keys.shape[1] >= 180
    assert sliding.keys.shape[1] <= 2 * 32 + WINDOW


# --- values


@pytest.mark.slow
def test_branches_do_not_disturb_each_other(model: DiffusionGemma) -> None:
    """Every view of a row means what it meant when it was made, bit for bit, in any order of use."""
    root = model.encode([random_ids(9)])
    views, meanings = [root], [look(model, root).clone()]
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        parent = int(torch.randint(len(views), (), generator=generator))
        count = int(torch.randint(1, 12, (), generator=generator))
        views.append(model.encode([random_ids(count, seed=step)], views[parent]))
        meanings.append(look(model, views[-1]).clone())
        for which in torch.randperm(len(views), generator=generator)[:3].tolist():
            assert torch.equal(look(model, views[which]), meanings[which])
    for view, meaning in zip(views, meanings, strict=True):
        assert torch.equal(look(model, view), meaning)


def test_siblings_made_before_either_is_used(model: DiffusionGemma) -> None:
    root = model.encode([random_ids(9)])
    pieces = [random_ids(5, seed=1), random_ids(7, seed=2)]
    siblings = [model.encode([piece], root) for piece in pieces]
    look(model, root)
    for sibling, piece in zip(siblings, pieces, strict=True):
        close(look(model, sibling), look(model, model.encode([random_ids(9) + piece])))


def test_a_view_is_the_memory_of_the_row_it_lengthens(model: DiffusionGemma) -> None:
    old = model.encode([random_ids(9)])
    new = model.encode([random_ids(4)], old)
    shared = [a.keys.data_ptr() == b.keys.data_ptr() for a, b in _buffers(old, new)]
    assert all(shared) and (old.lengths, new.lengths) == ([9], [13])
    branch = model.encode([random_ids(4, seed=1)], old)  # the place behind `old` is taken
    assert not any(a.keys.data_ptr() == b.keys.data_ptr() for a, b in _buffers(old, branch))


def _buffers(a: PrefixCache, b: PrefixCache) -> list[tuple]:
    return list(zip(a.rows[0].buffers, b.rows[0].buffers, strict=True))


def test_one_row_twice_in_a_batch(model: DiffusionGemma) -> None:
    """Two continuations of the same row at once, and two canvases over it."""
    root = model.encode([random_ids(9)])
    twice = PrefixCache.join([root, root])
    grown = model.encode([random_ids(5, seed=1), random_ids(7, seed=2)], twice)
    for row, (count, seed) in enumerate([(5, 1), (7, 2)]):
        alone = model.encode([random_ids(count, seed=seed)], root)
        close(look(model, grown)[row], look(model, alone)[0])
    canvases = torch.tensor([random_ids(8, seed=3), random_ids(8, seed=4)])
    both = model.denoise(canvases, twice)
    for row in range(2):
        close(both[row], model.denoise(canvases[row : row + 1], root)[0])


def test_denoising_leaves_no_trace(model: DiffusionGemma) -> None:
    cache = model.encode([random_ids(9)])
    before = look(model, cache).clone()
    for seed in range(3):
        model.denoise(torch.tensor([random_ids(20, seed=seed)]), cache)
    assert cache.lengths == [9]
    assert torch.equal(look(model, cache), before)
    with_traces = model.encode([random_ids(6, seed=1)], cache)
    without = model.encode([random_ids(6, seed=1)], model.encode([random_ids(9)]))
    assert torch.equal(with_traces.hidden, without.hidden)


def test_copy_is_apart_and_equal_to_the_bit(model: DiffusionGemma) -> None:
    cache = PrefixCache.join([model.encode([random_ids(n, seed=n)]) for n in (3, 20)])
    copied = cache.copy()
    assert copied.lengths == cache.lengths
    meaning = look(model, cache).clone()
    assert torch.equal(look(model, copied), meaning)
    memory = {buffer.keys.data_ptr() for row in cache.rows for buffer in row.buffers}
    assert not memory & {b.keys.data_ptr() for row in cache.copy().rows for b in row.buffers}
    grown = model.encode([random_ids(4), random_ids(5)], copied)
    again = model.encode([random_ids(4), random_ids(5)], cache)
    assert torch.equal(grown.hidden, again.hidden)
    with torch.inference_mode():  # whatever becomes of the one's memory
        for row in cache.rows:
            for buffer in row.buffers:
                buffer.keys.zero_()
    assert torch.equal(look(model, copied), meaning)


def test_rows_by_index_and_join(model: DiffusionGemma) -> None:
    cache = model.encode([random_ids(n, seed=n) for n in (3, 8, 5)])
    assert len(cache) == 3 and [cache[i].lengths for i in range(3)] == [[3], [8], [5]]
    assert cache[1].rows[0] is cache.rows[1], "by reference"
    back = PrefixCache.join([cache[2], cache[0]])
    assert back.lengths == [5, 3] and back.hidden is None
    close(look(model, back), look(model, cache)[[2, 0]])
    with pytest.raises(IndexError):
        cache[3]


def test_bytes_are_those_of_the_buffers(model: DiffusionGemma) -> None:
    cache = model.encode([random_ids(9)])
    # float32 keys and values: a sliding layer of 2 heads of 4, a full one of 1 head of 8
    tokens = [buffer.keys.shape[1] for buffer in cache.rows[0].buffers]
    assert min(tokens) >= 9
    assert cache.nbytes == sum(tokens) * 8 * 4 * 2
    assert PrefixCache.empty(tiny.CONFIG.text, 2).nbytes == 0


# --- refusals


def test_past_the_maximum_length(model: DiffusionGemma) -> None:
    limit = tiny.CONFIG.text.max_position_embeddings
    full = model.encode([random_ids(limit), random_ids(3)])
    assert full.lengths == [limit, 3]
    with pytest.raises(RequestError, match=rf"{limit + 1} tokens .* {limit}"):
        model.encode([[1]], full[0])
    with pytest.raises(RequestError, match="shorten"):
        model.encode([[1], random_ids(limit + 1)])
    assert model.encode([[1]], full[1]).lengths == [4]


def test_what_encode_refuses(model: DiffusionGemma) -> None:
    cache = model.encode([[1, 2], [3]])
    for ids, words in (
        ([], "no rows"),
        ([[1], []], "row 1 must hold"),
        (torch.zeros(1, 2, 2, dtype=torch.long), "each row must be a list"),
        ([[1, 48]], "0 … 47, got 1 … 48"),
        ([[-1, 3]], "0 … 47, got -1 … 3"),
    ):
        with pytest.raises(RequestError, match=words):
            model.encode(ids)
    with pytest.raises(RequestError, match="1 rows of tokens for a prefix cache of 2"):
        model.encode([[1]], cache)
    assert cache.lengths == [2, 1]


def test_what_denoise_refuses(model: DiffusionGemma) -> None:
    cache = model.encode([[1, 2], [3]])
    with pytest.raises(RequestError, match="1 rows of tokens for a prefix cache of 2"):
        model.denoise(CANVAS, cache)
    with pytest.raises(RequestError, match=r"\(rows, positions\).*got shape \(8,\)"):
        model.denoise(CANVAS[0], cache)
    with pytest.raises(RequestError, match=r"soft embedding has shape \(1, 7, 16\)"):
        model.denoise(CANVAS, cache[0], torch.zeros(1, 7, 16))
    gemma = tiny.model(can_denoise=False, model_type="gemma4_text")
    with pytest.raises(RequestError, match=r"gemma4_text.* has no denoiser.*autoregressive"):
        gemma.denoise(CANVAS, gemma.encode([[1]]))


# --- a canvas in the causal pass


@pytest.mark.parametrize("prefix", [0, 1, WINDOW, 30])
def test_a_canvas_behind_new_tokens_takes_its_first_step_with_them(
    model: DiffusionGemma, prefix: int
) -> None:
    """As if the tokens were encoded first and the canvases denoised then; rows without a canvas stand beside."""
    before = model.encode([random_ids(prefix)] * 3) if prefix else None
    rows = [random_ids(length, seed=length) for length in (1, 5, WINDOW + 4)]
    canvases = [random_ids(8, seed=21), [], random_ids(5, seed=22)]
    one = model.encode(rows, before, canvas=canvases)
    plain = model.encode(rows, before)
    assert one.hidden is not None and plain.hidden is not None
    close(one.hidden, plain.hidden)
    assert one.lengths == plain.lengths
    assert [row.tokens for row in one.rows] == [row.tokens for row in plain.rows]
    assert [len(part) for part in one.canvas] == [8, 0, 5]
    for i in (0, 2):
        close(one.canvas[i], model.denoise(torch.tensor([canvases[i]]), plain[i])[0])
    close(look(model, one), look(model, plain))
    again = model.encode([[7]] * 3, one)
    close(again.hidden, model.encode([[7]] * 3, plain).hidden)


@pytest.mark.parametrize("chunk", [1, 3, 7, 20])
def test_the_last_chunk_of_a_row_carries_its_canvas(model: DiffusionGemma, chunk: int) -> None:
    rows, canvases = [random_ids(9), random_ids(4, seed=1)], [random_ids(6), random_ids(6, seed=2)]
    whole = model.encode(rows, canvas=canvases)
    parts = model.encode(rows, canvas=canvases, chunk=chunk)
    for ours, theirs in zip(parts.canvas, whole.canvas, strict=True):
        close(ours, theirs)
    close(look(model, parts), look(model, whole))


def test_a_canvas_leaves_branches_as_they_were(model: DiffusionGemma) -> None:
    trunk = model.encode([random_ids(6)])
    longer = model.encode([random_ids(4, seed=3)], trunk)
    expected = look(model, longer)
    model.encode([random_ids(2, seed=4)], trunk, canvas=[random_ids(8, seed=5)])
    close(look(model, longer), expected)
    twins = model.encode([[3], [4]], PrefixCache.join([trunk, trunk]), canvas=[[5, 6], [7, 8]])
    for i, token in enumerate((3, 4)):
        alone = model.encode([[token]], trunk, canvas=[[5, 6] if i == 0 else [7, 8]])
        close(twins.canvas[i], alone.canvas[0])
        close(look(model, twins[i]), look(model, alone))


def test_canvases_that_do_not_fit_are_refused(model: DiffusionGemma) -> None:
    vocabulary = model.config.text.vocab_size
    with pytest.raises(RequestError, match="token ids must lie in"):
        model.encode([[1]], canvas=[[vocabulary]])
    for canvas in ([[1, 2], [3]], []):
        with pytest.raises(RequestError, match="canvas"):
            model.encode([[1]], canvas=canvas)
    limit = model.config.text.max_position_embeddings
    with pytest.raises(RequestError, match="shorten the prompt"):
        model.encode([[1] * (limit - 3)], canvas=[[1] * 4])
    with pytest.raises(RequestError, match="no denoiser"):
        tiny.model(can_denoise=False, model_type="gemma4_text").encode([[1]], canvas=[[2]])
