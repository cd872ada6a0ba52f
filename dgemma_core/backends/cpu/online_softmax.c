/* The online softmax over slices of the vocabulary: one call adds a slice to the statistics of each row (running.py).
 *
 * Any bits may stand in the numbers: every index stays inside the vocabulary, and `add_slice` reports numbers that are
 * not finite.
 *
 * Axes: N rows, S tokens of the slice, D hidden size, V vocabulary.
 */

#include "simd.h"

enum { GROUP = 64 };

typedef struct { /* of each of N rows */
    float *peak;     /* the largest sigmoid so far (simd.h: soft_cap) */
    float *mass;     /* sum of exp(z - peak), z: capped logits over the temperature */
    float *weighted; /* sum of exp(z - peak) (z - peak) */
    int64_t *argmax;
    const float *scale; /* 2 cap / temperature: what a sigmoid of 1 stands for */
} RowStats;

/* Adds one row of S = `size` logits, as `add_slice` below; bf16 and keep are constants where it is called. Returns
 * whether a number was not finite. */
INLINE int add_row(int bf16, int keep, long size, int64_t start, void *logits, float cap, const RowStats *stats, long r,
                   float *mass, float *factor, float *shrink, float *groups, float *logmass, float *sigmoids, float *row) {
    long padded = (size + GROUP - 1) / GROUP * GROUP, end = size / VEC * VEC;
    float *wide = logits;
    uint16_t *half = logits;
    for (long v = end; v < size; v++) {
        uint32_t bits = bf16 ? (uint32_t)half[v] << 16 : 0;
        memcpy(row + v, bf16 ? (void *)&bits : (void *)(wide + v), sizeof bits);
    }
    for (long v = size; v < padded; v++) row[v] = -INFINITY; /* a sigmoid of 0 is never the only largest one */
    int64_t place;
    float own = soft_cap(logits, bf16, end, padded, row, cap, &place), before = stats->peak[r];
    float scale = stats->scale[r] > 1e-7f ? stats->scale[r] : 1e-7f; /* bounds beyond which nothing changes */
    scale = scale < 1e30f ? scale : 1e30f;
    if (sigmoids) memcpy(sigmoids, row, size * sizeof(float));
    vec total = broadcast(0), weighted = broadcast(0);
    for (long v = size; v < padded; v++) row[v] = -1.0f - 1e30f / scale; /* its exponential is 0 */
    for (long g = 0; g < padded; g += GROUP) {
        vec group = broadcast(0);
        for (long v = g; v < g + GROUP; v += VEC) {
            vec below = (load(row + v) - own) * scale, weight = exponential(below);
            group += weight;
            weighted += weight * below;
            if (!keep) continue;
            if (v >= end) store(row + v, weight);
            else store_as(logits, v, bf16, weight);
        }
        total += group;
        if (groups) groups[g / GROUP] = sum(group);
    }
    for (long v = end; keep && v < size; v++) {
        uint16_t last[VEC];
        store_bf16(last, broadcast(row[v]));
        if (bf16) half[v] = last[0];
        else wide[v] = row[v];
    }
    float slice = sum(total), peak = own > before ? own : before;
    float fall = (own - peak) * scale, rise = (peak - before) * scale, kept = expf(-rise);
    *factor = expf(fall);
    *mass = *factor * slice;
    *shrink = kept;
    *logmass = logf(slice) + own * scale;
    if (own > before) stats->argmax[r] = start + (place < size ? place : 0);
    stats->weighted[r] = (stats->weighted[r] - rise * stats->mass[r]) * kept + *factor * (sum(weighted) + fall * slice);
    stats->mass[r] = stats->mass[r] * kept + *mass;
    stats->peak[r] = peak;
    return !(slice < INFINITY) || !(stats->mass[r] < INFINITY);
}

/* products (N, S): logits before the soft cap, bfloat16 if `bf16`, of tokens from `start` on. If `keep`, they become
 * exponentials relative to the slice's maximum; factor (N) makes them relative to the new peak. mass (N): their sum,
 * relative to the new peak; shrink (N): the factor for earlier sums. groups (N, S / GROUP rounded up): sums of
 * neighbours, relative to the slice's maximum, or null; logmass (N): the log of the slice's mass. sigmoids (N, S): what
 * stands for the logits (simd.h: soft_cap), or null. scratch: S, rounded up to GROUP, floats a thread. Returns whether
 * a number was not finite. */
int64_t add_slice(int64_t rows, int64_t size, int64_t start, void *products, int64_t bf16, int64_t keep, float cap,
                  const RowStats *stats, float *mass, float *factor, float *shrink, float *groups, float *logmass,
                  float *sigmoids, int64_t threads, float *scratch) {
    if (rows <= 0 || size <= 0) return 0;
    threads = threads < 1 ? 1 : threads;
    long in_groups = (size + GROUP - 1) / GROUP;
    int damaged = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(| : damaged)
    for (long r = 0; r < rows; r++) {
#define ROW(bf16, keep) \
    damaged |= add_row(bf16, keep, size, start, (char *)products + r * size * (bf16 ? 2 : 4), cap, stats, r, mass + r, \
                       factor + r, shrink + r, groups ? groups + r * in_groups : 0, logmass + r, \
                       sigmoids ? sigmoids + r * size : 0, scratch + thread_index() * in_groups * GROUP)
        if (bf16 && keep) ROW(1, 1);
        else if (bf16) ROW(1, 0);
        else if (keep) ROW(0, 1);
        else ROW(0, 0);
#undef ROW
    }
    return damaged;
}

/* summed (N, D) = summed shrink + mean factor, mean (N, D) bfloat16 if `bf16`; D a multiple of VEC */
void blend(int64_t rows, int64_t width, float *summed, const void *mean, int64_t bf16, const float *shrink,
           const float *factor, int64_t threads) {
    threads = threads < 1 ? 1 : threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++)
        for (long i = r * width; i < (r + 1) * width; i += VEC) {
            vec x = load_as_float(mean, i, bf16);
            store(summed + i, load(summed + i) * shrink[r] + x * factor[r]);
        }
}

static int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

/* Of each row the token at which the cumulative probability of its tokens first ... end - 1, at most GROUP of them,
 * first exceeds `target` of their sum, and its logit. hidden (N, D), embedding (V, D), bfloat16 if `bf16`; D a multiple
 * of VEC, V > 0. A token outside the vocabulary is never read or found. */
void sample_in_group(int64_t rows, int64_t width, int64_t vocab_size, const void *hidden, const void *embedding,
                     int64_t bf16, float cap, const float *temperatures, const int64_t *first, const int64_t *end,
                     const double *target, int64_t *token, float *logit, int64_t threads) {
    threads = threads < 1 ? 1 : threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        int64_t low = clamp(first[r], 0, vocab_size - 1), high = clamp(end[r], low + 1, vocab_size);
        long count = clamp(high - low, 1, GROUP);
        float z[GROUP] = {0}, peak = -INFINITY, scale = capped_scale(cap, temperatures[r]);
        for (long j = 0; j < count; j++) {
            long x = r * width, y = (low + j) * width;
            vec dot = broadcast(0);
            for (long i = 0; i < width; i += VEC)
                dot += load_as_float(hidden, x + i, bf16) * load_as_float(embedding, y + i, bf16);
            z[j] = sum(dot);
        }
        for (long j = 0; j < GROUP; j += VEC) { /* rounded as the product of a whole slice is */
            uint16_t half[VEC];
            if (bf16) store_bf16(half, load(z + j)), store(z + j, load_bf16(half));
            store(z + j, (2.0f * sigmoid(load(z + j) * (2.0f / cap)) - 1.0f) * scale);
        }
        for (long j = 0; j < count; j++) peak = z[j] > peak ? z[j] : peak;
        double masses[GROUP], total = 0, reached = 0;
        for (long j = 0; j < count; j++) total += masses[j] = exp((double)z[j] - peak);
        long found = 0;
        for (long j = 0; j < count && reached <= target[r] * total; reached += masses[j++])
            if (masses[j] > 0) found = j;
        token[r] = low + found;
        logit[r] = z[found];
    }
}
