/* What a slice of the vocabulary adds to the softmax statistics of each row, in one go over it (running.py).
 *
 * Axes: N rows, S tokens of the slice.
 */

#include "lanes.h"

enum { GROUP = 64 };

typedef struct { /* of each of N rows */
    float *peak;     /* the largest sigma so far (lanes.h: squash) */
    float *mass;     /* sum of exp(z - peak), z: capped logits over the temperature */
    float *weighted; /* sum of exp(z - peak) (z - peak) */
    int64_t *argmax;
    const float *scale; /* 2 cap / temperature: what a sigma of 1 stands for */
} Sums;

/* One row of S = `size` logits, as `fold` below; narrow and keep are constants where it is called. */
INLINE void fold_row(int narrow, int keep, long size, int64_t start, void *logits, float cap, const Sums *sums, long r,
                     float *mass, float *factor, float *shrink, float *groups, float *logmass, float *sigmas,
                     float *row) {
    long padded = (size + GROUP - 1) / GROUP * GROUP, end = size / LANES * LANES;
    float *wide = logits;
    uint16_t *half = logits;
    for (long v = end; v < size; v++) {
        uint32_t bits = narrow ? (uint32_t)half[v] << 16 : 0;
        memcpy(row + v, narrow ? (void *)&bits : (void *)(wide + v), sizeof bits);
    }
    for (long v = size; v < padded; v++) row[v] = -INFINITY; /* a sigma of 0: no largest one, and taken out below */
    int64_t place;
    float own = squash(logits, narrow, end, padded, row, cap, &place), scale = sums->scale[r], before = sums->peak[r];
    if (sigmas) memcpy(sigmas, row, size * sizeof(float));
    vec total = all(0), weighted = all(0);
    for (long v = size; v < padded; v++) row[v] = -1e30f;
    for (long g = 0; g < padded; g += GROUP) {
        vec held = all(0);
        for (long v = g; v < g + GROUP; v += LANES) {
            vec below = (load(row + v) - own) * scale, weight = exponential(below);
            held += weight;
            weighted += weight * below;
            if (!keep) continue;
            if (v >= end) store(row + v, weight);
            else if (narrow) narrowed(half + v, weight);
            else store(wide + v, weight);
        }
        total += held;
        if (groups) groups[g / GROUP] = sum(held);
    }
    for (long v = end; keep && v < size; v++) {
        uint16_t last[LANES];
        narrowed(last, all(row[v]));
        if (narrow) half[v] = last[0];
        else wide[v] = row[v];
    }
    float slice = sum(total), peak = own > before ? own : before;
    float fall = (own - peak) * scale, rise = (peak - before) * scale, kept = expf(-rise);
    *factor = expf(fall);
    *mass = *factor * slice;
    *shrink = kept;
    *logmass = logf(slice) + own * scale;
    if (own > before) sums->argmax[r] = start + place;
    sums->weighted[r] = (sums->weighted[r] - rise * sums->mass[r]) * kept + *factor * (sum(weighted) + fall * slice);
    sums->mass[r] = sums->mass[r] * kept + *mass;
    sums->peak[r] = peak;
}

/* products (N, S): logits before the soft cap, bfloat16 if `narrow`, of tokens from `start` on. Where `keep`, they
 * become exponentials, relative to the slice's maximum; factor (N) makes them relative to the new peak. mass (N): their
 * sum, relative to that, too; shrink (N): the factor for sums from before. groups (N, S / GROUP rounded up): sums of
 * neighbours, relative to the slice's maximum, or null; logmass (N): log of all. sigmas (N, S): what stands for the
 * logits (lanes.h: squash), or null. scratch: S, rounded up to GROUP, floats a thread. */
void fold(int64_t rows, int64_t size, int64_t start, void *products, int64_t narrow, int64_t keep, float cap,
          const Sums *sums, float *mass, float *factor, float *shrink, float *groups, float *logmass, float *sigmas,
          int64_t threads, float *scratch) {
    long in_groups = (size + GROUP - 1) / GROUP;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
#define ROW(narrow, keep) \
    fold_row(narrow, keep, size, start, (char *)products + r * size * (narrow ? 2 : 4), cap, sums, r, mass + r, \
             factor + r, shrink + r, groups ? groups + r * in_groups : 0, logmass + r, \
             sigmas ? sigmas + r * size : 0, scratch + own_number() * in_groups * GROUP)
        if (narrow && keep) ROW(1, 1);
        else if (narrow) ROW(1, 0);
        else if (keep) ROW(0, 1);
        else ROW(0, 0);
#undef ROW
    }
}

/* summed (N, D) = summed shrink + mean factor, mean (N, D) bfloat16 if `narrow`; D a multiple of LANES */
void blend(int64_t rows, int64_t width, float *summed, const void *mean, int64_t narrow, const float *shrink,
           const float *factor, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++)
        for (long i = r * width; i < (r + 1) * width; i += LANES) {
            vec x = load_either(mean, i, narrow);
            store(summed + i, load(summed + i) * shrink[r] + x * factor[r]);
        }
}

/* Of each row the token at which the cumulative probability of its tokens first ... end - 1, at most GROUP of them, first
 * exceeds `target` of their sum, and its logit: hidden (N, D), embedding (V, D), bfloat16 if `narrow`. */
void among(int64_t rows, int64_t width, const void *hidden, const void *embedding, int64_t narrow, float cap,
           const float *temperatures, const int64_t *first, const int64_t *end, const double *target, int64_t *token,
           float *logit, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        long count = end[r] - first[r] < GROUP ? end[r] - first[r] : GROUP;
        float z[GROUP] = {0}, peak = -INFINITY;
        for (long j = 0; j < count; j++) {
            long x = r * width, y = (first[r] + j) * width;
            vec dot = all(0);
            for (long i = 0; i < width; i += LANES)
                dot += load_either(hidden, x + i, narrow) * load_either(embedding, y + i, narrow);
            z[j] = sum(dot);
        }
        for (long j = 0; j < GROUP; j += LANES) { /* rounded as the product of a whole slice is */
            uint16_t half[LANES];
            if (narrow) narrowed(half, load(z + j)), store(z + j, widened(half));
            store(z + j, (2.0f * sigmoid(load(z + j) * (2.0f / cap)) - 1.0f) * cap / temperatures[r]);
        }
        for (long j = 0; j < count; j++) peak = z[j] > peak ? z[j] : peak;
        double masses[GROUP], total = 0, reached = 0;
        for (long j = 0; j < count; j++) total += masses[j] = exp((double)z[j] - peak);
        long found = 0;
        for (long j = 0; j < count && reached <= target[r] * total; reached += masses[j++])
            if (masses[j] > 0) found = j;
        token[r] = first[r] + found;
        logit[r] = z[found];
    }
}
