/* Passes of a small model on a CPU, float32: every layer in one call (native.py), the head in another.
 *
 * Notable:
 * - a token's numbers do not depend on which other tokens stand beside it: every sum runs in one order, so a text is
 *   the same, bit for bit, whatever the batch;
 * - tokens are cut into blocks, a thread takes a block through a whole layer, and threads wait for each other once a
 *   layer: when all keys and values are written, before anybody looks at them;
 * - all products go through `product`, a panel of columns at a time. In attention the queries stand as columns, too,
 *   so that a softmax runs down the keys, many queries at once.
 *
 * Axes: N tokens, D hidden size, H query heads, G key/value heads, d head dimension, E experts, K chosen ones, I and w
 * the widths of the dense MLP and of an expert, V vocabulary, S keys.
 */

#include "lanes.h"

#ifdef __AVX512F__
enum { TILE = 8 };
#else
enum { TILE = 6 };
#endif
enum { PANEL = 2 * LANES, BLOCK = 64, HEAD_BLOCK = 16 };

typedef struct { /* weights: matrices in panels, norms before a product multiplied in */
    const float *projections, *out, *gate, *up, *dense_down, *router, *expert_gate, *expert_up, *expert_down;
    const float *of_queries, *of_keys, *after_attention, *after_dense, *after_sparse, *after_both, *expert_scale;
    const float *cos, *sin; /* (positions, d), sin with the sign of its half */
    int64_t groups, head_dim, window; /* window: keys before a token that it sees, -1: all */
    int64_t keys_are_values;
    float scalars[2]; /* of the bidirectional mode, of the causal one */
} Layer;

typedef struct {
    const float *embedding, *pre_norm, *gate, *up, *down, *norm;
    const Layer *layers;
    int64_t vocabulary, width, heads, inner, experts, chosen, expert_inner, count;
    int64_t row; /* floats between the queries of two tokens: those of the largest layer */
    float eps, scale; /* scale: of embeddings */
} Model;

typedef struct { float *keys, *values; int64_t stride; int64_t base; } Held; /* (G, stride, d), from position `base` */

typedef struct { /* neighbouring tokens of one row */
    int64_t first, count, position, causal;
    const Held *held; /* a layer each */
} Segment;

typedef struct { /* what is watched, a layer after the other; null where nothing is */
    float *queries, *probabilities, *weights; /* (N, row), (N, E), (N, K) */
    int64_t *chosen;
} Watch;

/* the tanh form of GELU: x times the sigmoid of 2 sqrt(2/pi) (x + 0.044715 x^3) */
INLINE vec gelu(vec x) {
    return x * sigmoid(x * (1.59576912f + 0.0713548163f * x * x));
}

/* ---- products ---- */

/* out[i][j] = sum over k of a[i a_row + k a_step] b[k b_step + j], for `rows` rows and a panel of columns */
INLINE void tile(int rows, long depth, const float *a, long a_row, long a_step, const float *b, long b_step,
                 float *out, long out_row) {
    vec left[TILE], right[TILE];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) left[i] = right[i] = all(0);
    for (long k = 0; k < depth; k++) {
        vec b0 = load(b + k * b_step), b1 = load(b + k * b_step + LANES);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            vec x = all(a[i * a_row + k * a_step]);
            left[i] += x * b0;
            right[i] += x * b1;
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        store(out + i * out_row, left[i]);
        store(out + i * out_row + LANES, right[i]);
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
    vec squares = all(0);
    for (long i = 0; i < width; i += LANES) squares += load(x + i) * load(x + i);
    return 1.0f / sqrtf(sum(squares) / (float)width + eps);
}

/* the RMS norm of each row; weight may be null */
static void norm(long rows, long width, const float *x, const float *weight, float eps, float *out) {
    for (; rows--; x += width, out += width) {
        float factor = inverse_rms(x, width, eps);
        for (long i = 0; i < width; i += LANES)
            store(out + i, weight ? load(x + i) * factor * load(weight + i) : load(x + i) * factor);
    }
}

/* gate (n) becomes gelu(gate) times up times factor */
INLINE void gated(long n, float *gate, const float *up, float factor) {
    for (long i = 0; i < n; i += LANES) store(gate + i, gelu(load(gate + i)) * load(up + i) * factor);
}

/* ---- a thread's memory ---- */

typedef struct {
    float *normed, *wide, *second, *out, *dense, *sparse; /* a block of rows each */
    float *scores, *weights;                             /* of the router */
    float *rows, *inner, *inner_up;                      /* of one expert */
    float *columns, *chances, *mixed;                    /* of attention: (d, PANEL), (S, PANEL), (PANEL, d) */
    int64_t *chosen;
} Scratch;

static long most(long a, long b) { return a > b ? a : b; }
static long padded(long n) { return (n + PANEL - 1) / PANEL * PANEL; }

/* Lays a thread's memory out from `at` on; returns how many floats it takes. */
static long lay_out(const Model *model, long keys, float *at, Scratch *scratch) {
    long dim = 0, heads = 0;
    for (long i = 0; i < model->count; i++) {
        const Layer *layer = model->layers + i;
        dim = most(dim, layer->head_dim);
        heads = most(heads, (model->heads + 2 * layer->groups) * layer->head_dim);
    }
    long width = model->width, wide = most(heads, most(model->inner, width));
    float *start = at;
#define TAKE(name, numbers) (scratch->name = (void *)at, at += ((numbers) + 15) / 16 * 16)
    TAKE(normed, BLOCK * width);
    TAKE(wide, BLOCK * wide);
    TAKE(second, BLOCK * wide);
    TAKE(out, BLOCK * width);
    TAKE(dense, BLOCK * width);
    TAKE(sparse, BLOCK * width);
    TAKE(scores, BLOCK * padded(model->experts));
    TAKE(weights, BLOCK * model->chosen);
    TAKE(chosen, 2 * BLOCK * model->chosen);
    TAKE(rows, BLOCK * width);
    TAKE(inner, BLOCK * model->expert_inner);
    TAKE(inner_up, BLOCK * model->expert_inner);
    TAKE(columns, dim * PANEL);
    TAKE(mixed, PANEL * dim);
    TAKE(chances, keys * PANEL); /* last: who fills it in knows how many */
#undef TAKE
    return at - start;
}

/* Floats of memory that a thread needs where a token sees at most so many keys. */
int64_t scratch_size(const Model *model, int64_t keys) {
    Scratch scratch;
    return lay_out(model, keys, (float *)0, &scratch);
}

/* ---- a layer ---- */

/* Block [from, to): norms and turns queries, keys and values; keys and values go to where their row is held. */
static void project(const Model *model, long index, const Segment *segments, long from, long to, const float *x,
                    float *queries, Scratch *s) {
    const Layer *layer = model->layers + index;
    long d = layer->head_dim, half = d / 2, width = model->width, heads = model->heads, groups = layer->groups;
    long columns = (heads + (layer->keys_are_values ? 1 : 2) * groups) * d;
    norm(to - from, width, x + from * width, 0, model->eps, s->normed);
    linear(to - from, width, columns, s->normed, layer->projections, s->wide);
    const Segment *segment = segments;
    for (long t = from; t < to; t++) {
        while (t >= segment->first + segment->count) segment++;
        long position = segment->position + t - segment->first;
        const Held *held = segment->held + index;
        const float *cosines = layer->cos + position * d, *sines = layer->sin + position * d;
        const float *head = s->wide + (t - from) * columns;
        for (long h = 0; h < heads + groups; h++, head += d) {
            const float *weight = h < heads ? layer->of_queries : layer->of_keys;
            float factor = inverse_rms(head, d, model->eps), normed[d];
            float *to_row = h < heads ? queries + t * model->row + h * d
                                      : held->keys + ((h - heads) * held->stride + position - held->base) * d;
            for (long i = 0; i < d; i += LANES) store(normed + i, load(head + i) * factor * load(weight + i));
            for (long i = 0; i < d; i += LANES) {
                vec other = load(normed + (i < half ? i + half : i - half));
                store(to_row + i, load(normed + i) * load(cosines + i) + other * load(sines + i));
            }
        }
        /* the values are the last heads: keys before their weight and turn, where there are no others */
        if (layer->keys_are_values) head -= groups * d;
        for (long g = 0; g < groups; g++, head += d)
            norm(1, d, head, 0, model->eps, held->values + (g * held->stride + position - held->base) * d);
    }
}

/* Tokens [from, to) of one segment, at most PANEL / (H / G) of them, over all keys that they see -> mixed (to - from, H d) */
static void attend(const Model *model, long index, const Segment *segment, long from, long to, const float *queries,
                   float *mixed, Scratch *s) {
    const Layer *layer = model->layers + index;
    const Held *held = segment->held + index;
    long d = layer->head_dim, heads = model->heads, share = heads / layer->groups, lanes = (to - from) * share;
    long start = segment->position + from - segment->first; /* of the first of them */
    long first = segment->causal ? start : segment->position;
    long last = segment->causal ? start + to - from : segment->position + segment->count;
    long low = layer->window < 0 ? 0 : most(0, first - layer->window), keys = last - low;
    float lowest[PANEL], highest[PANEL]; /* the keys that each column sees, counted from `low` */
    for (long i = 0; i < PANEL; i++) {
        long position = start + (i < lanes ? i / share : 0);
        highest[i] = (float)(position - low);
        lowest[i] = layer->window < 0 ? 0.0f : (float)(position - layer->window - low);
    }
    for (long g = 0; g < layer->groups; g++) {
        const float *key_rows = held->keys + (g * held->stride + low - held->base) * d;
        const float *value_rows = held->values + (g * held->stride + low - held->base) * d;
        for (long i = 0; i < PANEL; i++) {
            const float *query = queries + (from + i / share) * model->row + (g * share + i % share) * d;
            for (long c = 0; c < d; c++) s->columns[c * PANEL + i] = i < lanes ? query[c] : 0.0f;
        }
        product(keys, d, key_rows, d, 1, s->columns, PANEL, s->chances, PANEL);
        vec peak[2] = {all(-INFINITY), all(-INFINITY)}, total[2] = {all(0), all(0)};
        for (long k = 0; k < keys; k++)
            for (int j = 0; j < 2; j++) {
                float *place = s->chances + k * PANEL + j * LANES;
                vec score = load(place);
                if (segment->causal) {
                    whole seen = (load(lowest + j * LANES) <= all((float)k)) & (load(highest + j * LANES) >= all((float)k));
                    store(place, score = pick(seen, score, all(-INFINITY)));
                }
                peak[j] = larger(score, peak[j]);
            }
        for (long k = 0; k < keys; k++)
            for (int j = 0; j < 2; j++) {
                float *place = s->chances + k * PANEL + j * LANES;
                vec chance = exponential(load(place) - peak[j]);
                store(place, chance);
                total[j] += chance;
            }
        for (long c = 0; c < d; c += PANEL)
            product(lanes, keys, s->chances, 1, PANEL, value_rows + c, d, s->mixed + c, d);
        for (long i = 0; i < lanes; i++) {
            float factor = 1.0f / total[i / LANES][i % LANES];
            float *to_row = mixed + ((i / share) * heads + g * share + i % share) * d;
            for (long c = 0; c < d; c += LANES) store(to_row + c, load(s->mixed + i * d + c) * factor);
        }
    }
}

/* The K best experts of each of n normed rows, and their shares. */
static void route(const Model *model, const Layer *layer, long n, Scratch *s, float *probabilities) {
    long experts = model->experts, columns = padded(experts), k = model->chosen;
    linear(n, model->width, columns, s->normed, layer->router, s->scores);
    for (long t = 0; t < n; t++) {
        float *score = s->scores + t * columns, peak = -INFINITY, total = 0;
        for (long e = 0; e < experts; e++) peak = score[e] > peak ? score[e] : peak;
        for (long e = experts; e < columns; e++) score[e] = -INFINITY;
        for (long e = 0; e < columns; e += LANES) {
            vec chance = exponential(load(score + e) - peak);
            store(score + e, chance);
            total += sum(chance);
        }
        for (long e = 0; e < columns; e += LANES) store(score + e, load(score + e) / total);
        if (probabilities) memcpy(probabilities + t * experts, score, experts * sizeof(float));
        float taken = 0, *weights = s->weights + t * k;
        int64_t *chosen = s->chosen + t * k;
        for (long i = 0; i < k; i++) {
            long best = 0;
            for (long e = 1; e < experts; e++)
                if (score[e] > score[best]) best = e;
            chosen[i] = best;
            weights[i] = score[best];
            taken += score[best];
            score[best] = -1.0f;
        }
        for (long i = 0; i < k; i++) weights[i] = weights[i] / taken * layer->expert_scale[chosen[i]];
    }
}

/* The experts' sum over n normed rows, an expert at a time, in their order -> s->sparse */
static void mixture(const Model *model, const Layer *layer, long n, Scratch *s) {
    long width = model->width, inner = model->expert_inner, k = model->chosen;
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
                }
        if (!count) continue;
        linear(count, width, inner, s->rows, layer->expert_gate + e * inner * width, s->inner);
        linear(count, width, inner, s->rows, layer->expert_up + e * inner * width, s->inner_up);
        for (long i = 0; i < count; i++) gated(inner, s->inner + i * inner, s->inner_up + i * inner, share[i]);
        linear(count, inner, width, s->inner, layer->expert_down + e * inner * width, s->rows);
        for (long i = 0; i < count; i++)
            for (long c = 0; c < width; c += LANES) {
                float *place = s->sparse + token[i] * width + c;
                store(place, load(place) + load(s->rows + i * width + c));
            }
    }
}

/* down(gelu(gate x) up x) of n rows (n, D) */
static void dense(const Model *model, long n, const float *x, const float *gate, const float *up, const float *down,
                  float *out, Scratch *s) {
    linear(n, model->width, model->inner, x, gate, s->wide);
    linear(n, model->width, model->inner, x, up, s->second);
    gated(n * model->inner, s->wide, s->second, 1.0f);
    linear(n, model->inner, model->width, s->wide, down, out);
}

/* Block [from, to): attention and both MLPs; x becomes what leaves the layer. */
static void mix(const Model *model, long index, const Segment *segments, long from, long to, float *x,
                const float *queries, const Watch *watch, long tokens, Scratch *s) {
    const Layer *layer = model->layers + index;
    long width = model->width, n = to - from, row = model->heads * layer->head_dim;
    long step = PANEL / (model->heads / layer->groups);
    const Segment *segment = segments;
    for (long t = from; t < to;) {
        while (t >= segment->first + segment->count) segment++;
        long end = segment->first + segment->count;
        end = end < to ? end : to;
        end = end < t + step ? end : t + step;
        attend(model, index, segment, t, end, queries, s->second + (t - from) * row, s);
        t = end;
    }
    linear(n, row, width, s->second, layer->out, s->out);
    norm(n, width, s->out, layer->after_attention, model->eps, s->out);
    x += from * width;
    for (long i = 0; i < n * width; i += LANES) store(x + i, load(x + i) + load(s->out + i));

    norm(n, width, x, 0, model->eps, s->normed);
    route(model, layer, n, s,
          watch->probabilities ? watch->probabilities + (index * tokens + from) * model->experts : 0);
    if (watch->weights) {
        memcpy(watch->weights + (index * tokens + from) * model->chosen, s->weights, n * model->chosen * sizeof(float));
        memcpy(watch->chosen + (index * tokens + from) * model->chosen, s->chosen, n * model->chosen * sizeof(int64_t));
    }
    dense(model, n, s->normed, layer->gate, layer->up, layer->dense_down, s->dense, s);
    mixture(model, layer, n, s);
    norm(n, width, s->dense, layer->after_dense, model->eps, s->dense);
    norm(n, width, s->sparse, layer->after_sparse, model->eps, s->sparse);
    for (long i = 0; i < n * width; i += LANES) store(s->dense + i, load(s->dense + i) + load(s->sparse + i));
    norm(n, width, s->dense, layer->after_both, model->eps, s->dense);
    segment = segments;
    for (long t = 0; t < n; t++) {
        while (from + t >= segment->first + segment->count) segment++;
        float scalar = layer->scalars[segment->causal];
        for (long i = t * width; i < (t + 1) * width; i += LANES)
            store(x + i, (load(x + i) + load(s->dense + i)) * scalar);
    }
}

/* Embeds block [from, to); canvases are conditioned on their soft embedding (N, D), which may be null. */
static void embed(const Model *model, const Segment *segments, long from, long to, const int64_t *ids,
                  const float *soft, float *x, Scratch *s) {
    long width = model->width, n = to - from;
    x += from * width;
    for (long t = 0; t < n; t++)
        for (long i = 0; i < width; i += LANES)
            store(x + t * width + i, load(model->embedding + ids[from + t] * width + i) * model->scale);
    if (soft) {
        norm(n, width, soft + from * width, model->pre_norm, model->eps, s->normed);
        dense(model, n, s->normed, model->gate, model->up, model->down, s->out, s);
        for (long i = 0; i < n * width; i += LANES) store(x + i, load(x + i) + load(s->out + i));
    }
    for (long t = 0; t < n; t++) {
        while (from + t >= segments->first + segments->count) segments++;
        if (!segments->causal) norm(1, width, x + t * width, 0, model->eps, x + t * width);
    }
}

/* ids (N) through all layers and the final norm -> x (N, D). queries (N, row): room for them where they are not
 * watched. scratch: `size` floats a thread. Returns the place of an id outside the vocabulary, or -1. */
int64_t forward(const Model *model, int64_t tokens, const int64_t *ids, const float *soft, const Segment *segments,
                float *x, float *queries, const Watch *watch, int64_t threads, float *scratch, int64_t size) {
    for (long t = 0; t < tokens; t++)
        if (ids[t] < 0 || ids[t] >= model->vocabulary) return t;
    long block = (tokens + threads - 1) / threads;
    if (block > BLOCK) { /* as many blocks for each thread, of one size */
        long each = (block + BLOCK - 1) / BLOCK;
        block = (tokens + threads * each - 1) / (threads * each);
    }
    long blocks = (tokens + block - 1) / block;
#pragma omp parallel num_threads(threads)
    {
        Scratch s;
        long thread = own_number(), working = number_of_threads();
        lay_out(model, 0, scratch + thread * size, &s);
#define OWN_BLOCKS \
    for (long b = blocks * thread / working, from = b * block, to; \
         b < blocks * (thread + 1) / working && (to = from + block < tokens ? from + block : tokens, 1); b++, from += block)
        OWN_BLOCKS embed(model, segments, from, to, ids, soft, x, &s);
        float *own = queries;
        for (long i = 0; i < model->count; i++) {
            if (watch->queries) own = watch->queries + i * tokens * model->row;
            OWN_BLOCKS project(model, i, segments, from, to, x, own, &s);
#pragma omp barrier
            OWN_BLOCKS mix(model, i, segments, from, to, x, own, watch, tokens, &s);
        }
        OWN_BLOCKS norm(to - from, model->width, x + from * model->width, model->norm, model->eps, x + from * model->width);
    }
    return -1;
}

/* ---- the vocabulary ---- */

typedef double wide __attribute__((vector_size(8 * LANES)));
enum { GROUP = 4 * LANES };

typedef struct { /* of each of N rows; soft (N, D) and sigmas (N, V; lanes.h: squash) may be null */
    int64_t *argmax, *sample;
    float *argmax_probability, *sample_probability, *entropy, *logsumexp, *soft, *sigmas;
} Found;

/* Where the cumulative weights (V) first exceed `share` of their sum; never a place of weight 0. */
static int64_t draw(const float *weights, long count, double share) {
    double masses[count / GROUP], total = 0;
    for (long g = 0; g < count / GROUP; g++) {
        wide mass = {0};
        for (int i = 0; i < GROUP; i += LANES) mass += __builtin_convertvector(load(weights + g * GROUP + i), wide);
        masses[g] = 0;
        for (int i = 0; i < LANES; i++) masses[g] += mass[i];
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
int64_t predict_scratch_size(int64_t vocabulary) { return HEAD_BLOCK * vocabulary; }

/* hidden (N, D) -> what one pass says of each row (head.py). panels: the embedding's rows as columns; embedding
 * (V, D); V a multiple of GROUP. temperatures (N); uniform (N) in [0, 1), or null: the sample is the argmax.
 * scratch: `predict_scratch_size` floats a thread. */
void predict(int64_t tokens, int64_t width, int64_t vocabulary, const float *hidden, const float *panels,
             const float *embedding, float cap, const float *temperatures, const double *uniform, float scale,
             const Found *found, int64_t threads, float *scratch) {
    long block = (tokens + threads - 1) / threads;
    block = block < HEAD_BLOCK ? block : HEAD_BLOCK;
    long blocks = (tokens + block - 1) / block;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long b = 0; b < blocks; b++) {
        float *z = scratch + own_number() * predict_scratch_size(vocabulary);
        long from = b * block, n = from + block < tokens ? block : tokens - from;
        linear(n, width, vocabulary, hidden + from * width, panels, z);
        for (long t = 0; t < n; t++) {
            float *row = z + t * vocabulary, half = cap / temperatures[from + t];
            int64_t argmax;
            float peak = squash(row, 0, vocabulary, vocabulary, row, cap, &argmax);
            if (found->sigmas) memcpy(found->sigmas + (from + t) * vocabulary, row, vocabulary * sizeof(float));
            vec mass = all(0), weighted = all(0);
            for (long v = 0; v < vocabulary; v += LANES) {
                vec below = (load(row + v) - peak) * (2.0f * half), weight = exponential(below);
                store(row + v, weight);
                mass += weight;
                weighted += weight * below;
            }
            float total = sum(mass), logmass = logf(total), entropy = logmass - sum(weighted) / total;
            long at = from + t;
            found->argmax[at] = argmax;
            found->argmax_probability[at] = 1.0f / total;
            found->entropy[at] = entropy < 0 ? 0 : entropy;
            found->logsumexp[at] = logmass + (2.0f * peak - 1.0f) * half;
            found->sample[at] = uniform ? draw(row, vocabulary, uniform[at]) : argmax;
            found->sample_probability[at] = row[found->sample[at]] / total;
        }
        if (!found->soft) continue;
        for (long c = 0; c < width; c += PANEL)
            product(n, vocabulary, z, vocabulary, 1, embedding + c, width, found->soft + from * width + c, width);
        for (long t = 0; t < n; t++) {
            float factor = found->argmax_probability[from + t] * scale, *row = found->soft + (from + t) * width;
            for (long i = 0; i < width; i += LANES) store(row + i, load(row + i) * factor);
        }
    }
}

/* ---- weights ---- */

/* Columns of a panel: the unit in which matrices are laid out. */
int64_t panel_width(void) { return PANEL; }

/* A number that changes with the numbers of `count` arrays, and their places (one change in 2^32 goes unseen). */
int64_t checksum(int64_t count, const uint32_t *const *arrays, const int64_t *sizes, int64_t threads) {
    uint32_t total = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : total)
    for (long a = 0; a < count; a++)
        for (long i = 0; i < sizes[a]; i++) { /* each number's bits mixed with its place, as murmur3 ends */
            uint32_t mixed = arrays[a][i] ^ (uint32_t)(i + 7919 * a) * 0x9E3779B1u;
            mixed = (mixed ^ mixed >> 16) * 0x85EBCA6Bu;
            mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35u;
            total += mixed ^ mixed >> 16;
        }
    return total;
}
