/* Passes of a small float32 model on a CPU: every layer in one call of `forward`, the vocabulary head in `predict`.
 *
 * Notable:
 * - a token's numbers do not depend on the other tokens of the call: every sum runs in one order, so a text is the
 *   same, bit for bit, whatever the batch and the number of threads;
 * - tokens are split into blocks, and a thread takes a block through a whole layer. Threads wait for each other once a
 *   layer: when all keys and values are written, before any of them is read;
 * - all matrix products go through `product`, a panel of columns at a time. In attention, too, the queries are columns,
 *   so that a softmax runs down the keys, many queries at once;
 * - any bits may stand in weights and inputs: indices and counts are bounded by construction, and both calls report
 *   numbers that are not finite. Sizes and pointers are the caller's to check (bindings.py).
 *
 * Axes: N tokens, D hidden size, H query heads, G key/value heads, d head dimension, E experts, K chosen experts, I and
 * w the widths of the dense MLP and of an expert, V vocabulary, S keys.
 */

#include "simd.h"

#ifdef __AVX512F__
enum { TILE = 8 };
#else
enum { TILE = 6 };
#endif
enum { PANEL = 2 * VEC, BLOCK = 64, HEAD_BLOCK = 16 };
enum { DONE = -1, NOT_FINITE = -2 }; /* what `forward` and `predict` return, beside the place of a wrong id */

typedef struct { /* matrices in panels; the weight of a norm before a product is multiplied into the matrix */
    const float *projections, *out, *dense_gate, *dense_up, *dense_down, *router, *expert_gate, *expert_up, *expert_down;
    const float *query_norm, *key_norm, *attention_norm, *dense_norm, *expert_norm, *mlp_norm, *expert_scale;
    const float *cos, *sin; /* (positions, d); sin is negated in the first half of d */
    int64_t kv_heads, head_dim, window; /* window: keys before a token that it sees, -1 for all */
    int64_t keys_are_values;
    float scalars[2]; /* the layer scalar of the bidirectional mode, and of the causal mode */
} Layer;

typedef struct {
    const float *embedding, *conditioning_norm, *conditioning_gate, *conditioning_up, *conditioning_down, *final_norm;
    const Layer *layers[2]; /* of the bidirectional mode, and of the causal mode: the same, unless an adapter parts them */
    int64_t vocab_size, hidden_size, heads, dense_width, experts, top_k, expert_width, layer_count;
    int64_t query_stride; /* floats between the queries of two tokens: those of the largest layer */
    float eps, embedding_scale;
} Model;

typedef struct { /* one layer's keys and values of one row, (G, capacity, d) each, from position `base` on */
    float *keys, *values;
    int64_t capacity, base;
} LayerCache;

typedef struct { /* neighbouring tokens of one row */
    int64_t first, count, position, causal;
    const LayerCache *caches; /* one a layer */
} Segment;

typedef struct { /* what an observer sees, layer by layer; null where nothing is observed */
    float *queries, *probabilities, *weights; /* (N, query_stride), (N, E), (N, K) */
    int64_t *chosen;
} Watch;

/* ---- products ---- */

/* out[i][j] = sum over k of a[i a_row + k a_step] b[k b_step + j], for `rows` rows and a panel of columns */
INLINE void tile(int rows, long depth, const float *a, long a_row, long a_step, const float *b, long b_step,
                 float *out, long out_row) {
    vec left[TILE], right[TILE];
    UNROLL for (int i = 0; i < rows; i++) left[i] = right[i] = broadcast(0);
    for (long k = 0; k < depth; k++) {
        vec b0 = load(b + k * b_step), b1 = load(b + k * b_step + VEC);
        UNROLL for (int i = 0; i < rows; i++) {
            vec x = broadcast(a[i * a_row + k * a_step]);
            left[i] += x * b0;
            right[i] += x * b1;
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        store(out + i * out_row, left[i]);
        store(out + i * out_row + VEC, right[i]);
    }
}

static void product(long rows, long depth, const float *a, long a_row, long a_step, const float *b, long b_step,
                    float *out, long out_row) {
    for (; rows >= TILE; rows -= TILE, a += TILE * a_row, out += TILE * out_row)
        tile(TILE, depth, a, a_row, a_step, b, b_step, out, out_row);
    switch (rows) {
#define REST(n) case n: tile(n, depth, a, a_row, a_step, b, b_step, out, out_row); break;
        REST(1) REST(2) REST(3) REST(4) REST(5)
#ifdef __AVX512F__
        REST(6) REST(7)
#endif
#undef REST
    }
}

/* x (rows, depth) times a matrix in panels -> out (rows, columns) */
static void linear(long rows, long depth, long columns, const float *x, const float *panels, float *out) {
    for (long j = 0; j < columns; j += PANEL)
        product(rows, depth, x, depth, 1, panels + j * depth, PANEL, out + j, columns);
}

INLINE float inverse_rms(const float *x, long width, float eps) {
    vec squares = broadcast(0);
    for (long i = 0; i < width; i += VEC) squares += load(x + i) * load(x + i);
    return 1.0f / sqrtf(sum(squares) / (float)width + eps);
}

/* the RMS norm of each row; weight may be null */
static void norm(long rows, long width, const float *x, const float *weight, float eps, float *out) {
    for (; rows--; x += width, out += width) {
        float factor = inverse_rms(x, width, eps);
        for (long i = 0; i < width; i += VEC)
            store(out + i, weight ? load(x + i) * factor * load(weight + i) : load(x + i) * factor);
    }
}

/* gate (n) becomes gelu(gate) times up times factor */
INLINE void gated(long n, float *gate, const float *up, float factor) {
    for (long i = 0; i < n; i += VEC) store(gate + i, gelu(load(gate + i)) * load(up + i) * factor);
}

/* ---- a thread's memory ---- */

typedef struct {
    float *normed, *wide, *second, *out, *dense, *sparse; /* a block of rows each */
    float *scores, *weights;                             /* of the router */
    float *rows, *inner, *inner_up;                      /* of one expert */
    float *queries, *mixed, *attention;                  /* (d, PANEL), (PANEL, d), (S, PANEL) */
    int64_t *chosen;
} Scratch;

static long larger_of(long a, long b) { return a > b ? a : b; }
static long padded(long n) { return (n + PANEL - 1) / PANEL * PANEL; }

/* Divides a thread's memory from `base` on; returns how many floats it takes. base may be null, to count only. */
static long place_scratch(const Model *model, long keys, float *base, Scratch *scratch) {
    long dim = 0, heads = 0, used = 0;
    for (long i = 0; i < model->layer_count; i++) {
        const Layer *layer = model->layers[0] + i;
        dim = larger_of(dim, layer->head_dim);
        heads = larger_of(heads, (model->heads + 2 * layer->kv_heads) * layer->head_dim);
    }
    long width = model->hidden_size, wide = larger_of(heads, larger_of(model->dense_width, width));
#define PLACE(name, floats) (scratch->name = base ? (void *)(base + used) : 0, used += ((floats) + 15) / 16 * 16)
    PLACE(normed, BLOCK * width);
    PLACE(wide, BLOCK * wide);
    PLACE(second, BLOCK * wide);
    PLACE(out, BLOCK * width);
    PLACE(dense, BLOCK * width);
    PLACE(sparse, BLOCK * width);
    PLACE(scores, BLOCK * padded(model->experts));
    PLACE(weights, BLOCK * model->top_k);
    PLACE(chosen, 2 * BLOCK * model->top_k);
    PLACE(rows, BLOCK * width);
    PLACE(inner, BLOCK * model->expert_width);
    PLACE(inner_up, BLOCK * model->expert_width);
    PLACE(queries, dim * PANEL);
    PLACE(mixed, PANEL * dim);
    PLACE(attention, keys * PANEL); /* last: only the size of this part depends on `keys` */
#undef PLACE
    return used;
}

/* Floats of memory that a thread needs where a token sees at most `keys` keys. */
int64_t scratch_size(const Model *model, int64_t keys) {
    Scratch scratch;
    return place_scratch(model, keys, 0, &scratch);
}

/* ---- a layer ---- */

/* The layers of the mode of token `from`, and where before `to` the tokens that go through the same ones end. */
static long stretch(const Model *model, const Segment *segment, long from, long to, const Layer **layers) {
    while (from >= segment->first + segment->count) segment++;
    *layers = model->layers[segment->causal != 0];
    if (model->layers[0] == model->layers[1]) return to;
    long end = segment->first + segment->count;
    for (; end < to && segment[1].causal == segment->causal; segment++) end = segment[1].first + segment[1].count;
    return end < to ? end : to;
}

/* Block [from, to): queries, keys and values, normed and rotated; keys and values go into the caches of their rows. */
static void project(const Model *model, const Layer *layer, long index, const Segment *segments, long from, long to,
                    const float *x, float *queries, Scratch *s) {
    long d = layer->head_dim, half = d / 2, width = model->hidden_size, heads = model->heads, kv_heads = layer->kv_heads;
    long columns = (heads + (layer->keys_are_values ? 1 : 2) * kv_heads) * d;
    norm(to - from, width, x + from * width, 0, model->eps, s->normed);
    linear(to - from, width, columns, s->normed, layer->projections, s->wide);
    const Segment *segment = segments;
    for (long t = from; t < to; t++) {
        while (t >= segment->first + segment->count) segment++;
        long position = segment->position + t - segment->first;
        const LayerCache *cache = segment->caches + index;
        const float *cosines = layer->cos + position * d, *sines = layer->sin + position * d;
        const float *head = s->wide + (t - from) * columns;
        for (long h = 0; h < heads + kv_heads; h++, head += d) {
            const float *weight = h < heads ? layer->query_norm : layer->key_norm;
            float factor = inverse_rms(head, d, model->eps), normed[d];
            float *out = h < heads ? queries + t * model->query_stride + h * d
                                   : cache->keys + ((h - heads) * cache->capacity + position - cache->base) * d;
            for (long i = 0; i < d; i += VEC) store(normed + i, load(head + i) * factor * load(weight + i));
            for (long i = 0; i < d; i += VEC) {
                vec other = load(normed + (i < half ? i + half : i - half));
                store(out + i, load(normed + i) * load(cosines + i) + other * load(sines + i));
            }
        }
        /* the values are the last heads: without a value projection, the keys before their weight and rotation */
        if (layer->keys_are_values) head -= kv_heads * d;
        for (long g = 0; g < kv_heads; g++, head += d)
            norm(1, d, head, 0, model->eps, cache->values + (g * cache->capacity + position - cache->base) * d);
    }
}

/* Tokens [from, to) of one segment, at most PANEL / (H / G), attend to all keys that they see -> mixed (to - from, H d) */
static void attend(const Model *model, const Layer *layer, long index, const Segment *segment, long from, long to,
                   const float *queries, float *mixed, Scratch *s) {
    const LayerCache *cache = segment->caches + index;
    long d = layer->head_dim, heads = model->heads, share = heads / layer->kv_heads, columns = (to - from) * share;
    long start = segment->position + from - segment->first; /* position of the first of the tokens */
    long first = segment->causal ? start : segment->position;
    long last = segment->causal ? start + to - from : segment->position + segment->count;
    long low = layer->window < 0 ? 0 : larger_of(0, first - layer->window), keys = last - low;
    float lowest[PANEL], highest[PANEL]; /* the keys that each column sees, counted from `low` */
    for (long i = 0; i < PANEL; i++) {
        long position = start + (i < columns ? i / share : 0);
        highest[i] = (float)(position - low);
        lowest[i] = layer->window < 0 ? 0.0f : (float)(position - layer->window - low);
    }
    for (long g = 0; g < layer->kv_heads; g++) {
        const float *key_rows = cache->keys + (g * cache->capacity + low - cache->base) * d;
        const float *value_rows = cache->values + (g * cache->capacity + low - cache->base) * d;
        for (long i = 0; i < PANEL; i++) {
            long column = i < columns ? i : 0; /* unused columns are zero */
            const float *query = queries + (from + column / share) * model->query_stride + (g * share + column % share) * d;
            for (long c = 0; c < d; c++) s->queries[c * PANEL + i] = i < columns ? query[c] : 0.0f;
        }
        product(keys, d, key_rows, d, 1, s->queries, PANEL, s->attention, PANEL);
        vec peak[2] = {broadcast(-INFINITY), broadcast(-INFINITY)}, total[2] = {broadcast(0), broadcast(0)};
        for (long k = 0; k < keys; k++)
            for (int j = 0; j < 2; j++) {
                float *place = s->attention + k * PANEL + j * VEC;
                vec score = load(place);
                if (segment->causal) {
                    ivec seen = (load(lowest + j * VEC) <= broadcast((float)k))
                              & (load(highest + j * VEC) >= broadcast((float)k));
                    store(place, score = choose(seen, score, broadcast(-INFINITY)));
                }
                peak[j] = larger(score, peak[j]);
            }
        for (long k = 0; k < keys; k++)
            for (int j = 0; j < 2; j++) {
                float *place = s->attention + k * PANEL + j * VEC;
                vec weight = exponential(load(place) - peak[j]);
                store(place, weight);
                total[j] += weight;
            }
        for (long c = 0; c < d; c += PANEL)
            product(columns, keys, s->attention, 1, PANEL, value_rows + c, d, s->mixed + c, d);
        for (long i = 0; i < columns; i++) {
            float factor = 1.0f / total[i / VEC][i % VEC];
            float *out = mixed + ((i / share) * heads + g * share + i % share) * d;
            for (long c = 0; c < d; c += VEC) store(out + c, load(s->mixed + i * d + c) * factor);
        }
    }
}

/* The K most probable experts of each of n normed rows, all different, and their weights; of scores with NaN the
 * first K experts with weights of NaN. */
static void route(const Model *model, const Layer *layer, long n, Scratch *s, float *probabilities) {
    long experts = model->experts, columns = padded(experts), k = model->top_k;
    linear(n, model->hidden_size, columns, s->normed, layer->router, s->scores);
    for (long t = 0; t < n; t++) {
        float *score = s->scores + t * columns, peak = -INFINITY, total = 0;
        for (long e = 0; e < experts; e++) peak = score[e] > peak ? score[e] : peak;
        for (long e = experts; e < columns; e++) score[e] = -INFINITY;
        for (long e = 0; e < columns; e += VEC) {
            vec weight = exponential(load(score + e) - peak);
            store(score + e, weight);
            total += sum(weight);
        }
        for (long e = 0; e < columns; e += VEC) store(score + e, load(score + e) / total);
        if (probabilities) memcpy(probabilities + t * experts, score, experts * sizeof(float));
        float chosen_total = 0, *weights = s->weights + t * k;
        int64_t *chosen = s->chosen + t * k;
        if (!(total < INFINITY)) /* then all are NaN or 0; as zeros they have an order */
            for (long e = 0; e < experts; e++) score[e] = 0;
        for (long i = 0; i < k; i++) { /* what is chosen becomes -1, below all others */
            long best = 0;
            for (long e = 1; e < experts; e++)
                if (score[e] > score[best]) best = e;
            chosen[i] = best;
            weights[i] = score[best];
            chosen_total += score[best];
            score[best] = -1.0f;
        }
        for (long i = 0; i < k; i++) weights[i] = weights[i] / chosen_total * layer->expert_scale[chosen[i]];
    }
}

/* The weighted sum of the experts' outputs for n normed rows, n <= BLOCK, expert by expert -> s->sparse */
static void mix_experts(const Model *model, const Layer *layer, long n, Scratch *s) {
    long width = model->hidden_size, inner = model->expert_width, k = model->top_k;
    memset(s->sparse, 0, n * width * sizeof(float));
    for (long e = 0; e < model->experts; e++) {
        long token[BLOCK], count = 0;
        float share[BLOCK];
        for (long t = 0; t < n; t++)
            for (long i = 0; i < k; i++)
                if (s->chosen[t * k + i] == e) {
                    token[count] = t;
                    share[count] = s->weights[t * k + i];
                    memcpy(s->rows + count++ * width, s->normed + t * width, width * sizeof(float));
                    break; /* a token counts once: count <= n */
                }
        if (!count) continue;
        linear(count, width, inner, s->rows, layer->expert_gate + e * inner * width, s->inner);
        linear(count, width, inner, s->rows, layer->expert_up + e * inner * width, s->inner_up);
        for (long i = 0; i < count; i++) gated(inner, s->inner + i * inner, s->inner_up + i * inner, share[i]);
        linear(count, inner, width, s->inner, layer->expert_down + e * inner * width, s->rows);
        for (long i = 0; i < count; i++)
            for (long c = 0; c < width; c += VEC) {
                float *place = s->sparse + token[i] * width + c;
                store(place, load(place) + load(s->rows + i * width + c));
            }
    }
}

/* down(gelu(gate x) up x) of n rows (n, D) */
static void dense_mlp(const Model *model, long n, const float *x, const float *gate, const float *up, const float *down,
                      float *out, Scratch *s) {
    linear(n, model->hidden_size, model->dense_width, x, gate, s->wide);
    linear(n, model->hidden_size, model->dense_width, x, up, s->second);
    gated(n * model->dense_width, s->wide, s->second, 1.0f);
    linear(n, model->dense_width, model->hidden_size, s->wide, down, out);
}

/* Block [from, to): attention and both MLPs; x becomes the layer's output. */
static void attend_and_feed(const Model *model, const Layer *layer, long index, const Segment *segments, long from,
                            long to, float *x, const float *queries, const Watch *watch, long tokens, Scratch *s) {
    long width = model->hidden_size, n = to - from, row = model->heads * layer->head_dim;
    long step = PANEL / (model->heads / layer->kv_heads);
    const Segment *segment = segments;
    for (long t = from; t < to;) {
        while (t >= segment->first + segment->count) segment++;
        long end = segment->first + segment->count;
        end = end < to ? end : to;
        end = end < t + step ? end : t + step;
        attend(model, layer, index, segment, t, end, queries, s->second + (t - from) * row, s);
        t = end;
    }
    linear(n, row, width, s->second, layer->out, s->out);
    norm(n, width, s->out, layer->attention_norm, model->eps, s->out);
    x += from * width;
    for (long i = 0; i < n * width; i += VEC) store(x + i, load(x + i) + load(s->out + i));

    norm(n, width, x, 0, model->eps, s->normed);
    route(model, layer, n, s,
          watch->probabilities ? watch->probabilities + (index * tokens + from) * model->experts : 0);
    if (watch->weights) {
        memcpy(watch->weights + (index * tokens + from) * model->top_k, s->weights, n * model->top_k * sizeof(float));
        memcpy(watch->chosen + (index * tokens + from) * model->top_k, s->chosen, n * model->top_k * sizeof(int64_t));
    }
    dense_mlp(model, n, s->normed, layer->dense_gate, layer->dense_up, layer->dense_down, s->dense, s);
    mix_experts(model, layer, n, s);
    norm(n, width, s->dense, layer->dense_norm, model->eps, s->dense);
    norm(n, width, s->sparse, layer->expert_norm, model->eps, s->sparse);
    for (long i = 0; i < n * width; i += VEC) store(s->dense + i, load(s->dense + i) + load(s->sparse + i));
    norm(n, width, s->dense, layer->mlp_norm, model->eps, s->dense);
    segment = segments;
    for (long t = 0; t < n; t++) {
        while (from + t >= segment->first + segment->count) segment++;
        float scalar = layer->scalars[segment->causal != 0];
        for (long i = t * width; i < (t + 1) * width; i += VEC)
            store(x + i, (load(x + i) + load(s->dense + i)) * scalar);
    }
}

/* Embeds block [from, to). A canvas is conditioned on its soft embedding (N, D), which may be null. */
static void embed(const Model *model, const Segment *segments, long from, long to, const int64_t *ids,
                  const float *soft, float *x, Scratch *s) {
    long width = model->hidden_size, n = to - from;
    x += from * width;
    for (long t = 0; t < n; t++)
        for (long i = 0; i < width; i += VEC)
            store(x + t * width + i, load(model->embedding + ids[from + t] * width + i) * model->embedding_scale);
    if (soft) {
        norm(n, width, soft + from * width, model->conditioning_norm, model->eps, s->normed);
        dense_mlp(model, n, s->normed, model->conditioning_gate, model->conditioning_up, model->conditioning_down, s->out, s);
        for (long i = 0; i < n * width; i += VEC) store(x + i, load(x + i) + load(s->out + i));
    }
    for (long t = 0; t < n; t++) {
        while (from + t >= segments->first + segments->count) segments++;
        if (!segments->causal) norm(1, width, x + t * width, 0, model->eps, x + t * width);
    }
}

/* ids (N) through all layers and the final norm -> x (N, D). queries (N, query_stride): memory for the queries of a
 * layer, used if they are not observed. scratch: `size` floats a thread, from `scratch_size`. Returns DONE, NOT_FINITE,
 * or the place of an id outside the vocabulary; then nothing is computed. */
int64_t forward(const Model *model, int64_t tokens, const int64_t *ids, const float *soft, const Segment *segments,
                float *x, float *queries, const Watch *watch, int64_t threads, float *scratch, int64_t size) {
    if (tokens <= 0) return DONE;
    threads = larger_of(1, threads);
    for (long t = 0; t < tokens; t++)
        if (ids[t] < 0 || ids[t] >= model->vocab_size) return t;
    long block = (tokens + threads - 1) / threads;
    if (block > BLOCK) { /* as many blocks for each thread, of one size */
        long each = (block + BLOCK - 1) / BLOCK;
        block = (tokens + threads * each - 1) / (threads * each);
    }
    long blocks = (tokens + block - 1) / block;
    int damaged = 0;
#pragma omp parallel num_threads(threads) reduction(| : damaged)
    {
        Scratch s;
        long thread = thread_index(), team = thread_count();
        place_scratch(model, 0, scratch + thread * size, &s);
        const Layer *layers;
#define MY_BLOCKS \
    for (long b = blocks * thread / team, from = b * block, to; \
         b < blocks * (thread + 1) / team && (to = from + block < tokens ? from + block : tokens, 1); b++, from += block)
        MY_BLOCKS embed(model, segments, from, to, ids, soft, x, &s);
        float *layer_queries = queries;
        for (long i = 0; i < model->layer_count; i++) {
            if (watch->queries) layer_queries = watch->queries + i * tokens * model->query_stride;
            MY_BLOCKS for (long t = from, stop; t < to; t = stop) {
                stop = stretch(model, segments, t, to, &layers);
                project(model, layers + i, i, segments, t, stop, x, layer_queries, &s);
            }
#pragma omp barrier
            MY_BLOCKS for (long t = from, stop; t < to; t = stop) {
                stop = stretch(model, segments, t, to, &layers);
                attend_and_feed(model, layers + i, i, segments, t, stop, x, layer_queries, watch, tokens, &s);
            }
        }
        MY_BLOCKS {
            float *rows = x + from * model->hidden_size;
            norm(to - from, model->hidden_size, rows, model->final_norm, model->eps, rows);
            damaged |= has_not_finite(rows, (to - from) * model->hidden_size);
        }
#undef MY_BLOCKS
    }
    return damaged ? NOT_FINITE : DONE;
}

/* ---- the vocabulary head ---- */

typedef double dvec __attribute__((vector_size(8 * VEC)));
enum { GROUP = 4 * VEC };

typedef struct { /* of each of N rows; soft (N, D) and sigmoids (N, V; simd.h: soft_cap) may be null */
    int64_t *argmax, *sample;
    float *argmax_probability, *sample_probability, *entropy, *logsumexp, *soft, *sigmoids;
} Outputs;

/* Where the cumulative weights (V) first exceed `share` of their sum; never a place of weight 0, unless all weights
 * are 0 or NaN. The place is inside the vocabulary whatever the numbers. */
static int64_t inverse_cdf(const float *weights, long count, double share) {
    double masses[count / GROUP], total = 0;
    for (long g = 0; g < count / GROUP; g++) {
        dvec mass = {0};
        for (int i = 0; i < GROUP; i += VEC) mass += __builtin_convertvector(load(weights + g * GROUP + i), dvec);
        masses[g] = 0;
        for (int i = 0; i < VEC; i++) masses[g] += mass[i];
        total += masses[g];
    }
    double target = share * total, before = 0;
    long group = 0, last = 0;
    for (long g = 0; g < count / GROUP; g++)
        if (masses[g] > 0) last = g;
    while (group < last && before + masses[group] <= target) before += masses[group++];
    int64_t place = group * GROUP;
    for (long i = group * GROUP; i < (group + 1) * GROUP; i++) {
        if (weights[i] > 0) place = i;
        before += weights[i];
        if (before > target && weights[i] > 0) break;
    }
    return place;
}

/* Floats of memory that a thread needs. */
int64_t predict_scratch_size(int64_t vocab_size) { return HEAD_BLOCK * vocab_size; }

/* hidden (N, D) -> the fields of a `Prediction` (head.py). panels: the embedding's rows as columns; embedding (V, D);
 * V a multiple of GROUP. temperatures (N), finite, not negative; uniform (N) in [0, 1), or null: the sample is the
 * argmax. scratch: `predict_scratch_size` floats a thread. Returns DONE, NOT_FINITE, or the row of a temperature or
 * uniform number outside its range; then nothing is computed. */
int64_t predict(int64_t tokens, int64_t width, int64_t vocab_size, const float *hidden, const float *panels,
                const float *embedding, float cap, const float *temperatures, const double *uniform,
                float embedding_scale, const Outputs *outputs, int64_t threads, float *scratch) {
    if (tokens <= 0) return DONE;
    threads = larger_of(1, threads);
    for (long t = 0; t < tokens; t++)
        if (!(temperatures[t] >= 0 && temperatures[t] < INFINITY) || (uniform && !(uniform[t] >= 0 && uniform[t] < 1)))
            return t;
    long block = (tokens + threads - 1) / threads;
    block = block < HEAD_BLOCK ? block : HEAD_BLOCK;
    long blocks = (tokens + block - 1) / block;
    int damaged = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : damaged)
    for (long b = 0; b < blocks; b++) {
        float *z = scratch + thread_index() * predict_scratch_size(vocab_size);
        long from = b * block, n = from + block < tokens ? block : tokens - from;
        damaged |= has_not_finite(hidden + from * width, n * width);
        linear(n, width, vocab_size, hidden + from * width, panels, z);
        for (long t = 0; t < n; t++) {
            float *row = z + t * vocab_size, scale = capped_scale(cap, temperatures[from + t]);
            int64_t argmax;
            float peak = soft_cap(row, 0, vocab_size, vocab_size, row, cap, &argmax);
            if (outputs->sigmoids)
                memcpy(outputs->sigmoids + (from + t) * vocab_size, row, vocab_size * sizeof(float));
            vec mass = broadcast(0), weighted = broadcast(0);
            for (long v = 0; v < vocab_size; v += VEC) {
                vec below = (load(row + v) - peak) * (2.0f * scale), weight = exponential(below);
                store(row + v, weight);
                mass += weight;
                weighted += weight * below;
            }
            float total = sum(mass), logmass = logf(total), entropy = logmass - sum(weighted) / total;
            long at = from + t;
            damaged |= !(total < INFINITY); /* NaN where a logit is */
            outputs->argmax[at] = argmax;
            outputs->argmax_probability[at] = 1.0f / total;
            outputs->entropy[at] = entropy < 0 ? 0 : entropy;
            outputs->logsumexp[at] = logmass + (2.0f * peak - 1.0f) * scale;
            outputs->sample[at] = uniform ? inverse_cdf(row, vocab_size, uniform[at]) : argmax;
            outputs->sample_probability[at] = row[outputs->sample[at]] / total;
        }
        if (!outputs->soft) continue;
        for (long c = 0; c < width; c += PANEL)
            product(n, vocab_size, z, vocab_size, 1, embedding + c, width, outputs->soft + from * width + c, width);
        for (long t = 0; t < n; t++) {
            float factor = outputs->argmax_probability[from + t] * embedding_scale, *row = outputs->soft + (from + t) * width;
            for (long i = 0; i < width; i += VEC) store(row + i, load(row + i) * factor);
        }
        damaged |= has_not_finite(outputs->soft + from * width, n * width);
    }
    return damaged ? NOT_FINITE : DONE;
}

/* ---- weights ---- */

/* Columns of a panel: the unit in which matrices are stored. */
int64_t panel_width(void) { return PANEL; }

/* A number that changes with the numbers of `count` arrays, and their places (one change in 2^32 goes unseen). */
int64_t checksum(int64_t count, const uint32_t *const *arrays, const int64_t *sizes, int64_t threads) {
    uint32_t total = 0;
    threads = larger_of(1, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : total)
    for (long a = 0; a < count; a++)
        for (long i = 0; i < sizes[a]; i++) { /* mixes each number's bits with its place, by the end of murmur3 */
            uint32_t mixed = arrays[a][i] ^ (uint32_t)(i + 7919 * a) * 0x9E3779B1u;
            mixed = (mixed ^ mixed >> 16) * 0x85EBCA6Bu;
            mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35u;
            total += mixed ^ mixed >> 16;
        }
    return total;
}
