/* What a slice of the vocabulary adds to the softmax statistics of each row, in one go over it (running.py).
 *
 * Axes: N rows, S tokens of the slice.
 */

#include "lanes.h"

enum { GROUP = 64 };

typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* bfloat16 is the upper half of a float32 */
INLINE vec widened(const uint16_t *from) {
    return (vec)(__builtin_convertvector(*(const halves *)from, whole) << 16);
}

INLINE void narrowed(uint16_t *to, vec x) { /* to the nearest, ties to even */
    whole bits = (whole)x;
    *(halves *)to = __builtin_convertvector(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff, halves);
}

typedef struct { /* of each of N rows */
    float *peak;     /* the largest sigma so far (lanes.h: squash) */
    float *mass;     /* sum of exp(z - peak), z: capped logits over the temperature */
    float *weighted; /* sum of exp(z - peak) (z - peak) */
    int64_t *argmax;
    const float *scale; /* 2 cap / temperature: what a sigma of 1 stands for */
} Sums;

/* products (N, S): logits before the soft cap, bfloat16 if `narrow`, of tokens from `start` on. Where `keep`, they
 * become the slice's softmax. mass (N): the slice's, relative to the new peak; shrink (N): the factor for sums from
 * before it. groups (N, S / GROUP rounded up): sums of neighbours as shares of the slice, or null; logmass (N).
 * sigmas (N, S): what stands for the logits (lanes.h: squash), or null. scratch: S, rounded up to GROUP, floats a
 * thread. */
void fold(int64_t rows, int64_t size, int64_t start, void *products, int64_t narrow, int64_t keep, float cap,
          const Sums *sums, float *mass, float *shrink, float *groups, float *logmass, float *sigmas,
          int64_t threads, float *scratch) {
    long padded = (size + GROUP - 1) / GROUP * GROUP, whole_size = size / LANES * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        float *row = scratch + own_number() * padded;
        float *wide = (float *)products + r * size;
        uint16_t *half = (uint16_t *)products + r * size;
        for (long v = 0; v < whole_size; v += LANES) store(row + v, narrow ? widened(half + v) : load(wide + v));
        for (long v = whole_size; v < size; v++) {
            uint32_t bits = narrow ? (uint32_t)half[v] << 16 : 0;
            memcpy(row + v, narrow ? (void *)&bits : (void *)(wide + v), sizeof bits);
        }
        for (long v = size; v < padded; v++) row[v] = -INFINITY; /* a sigma of 0: no largest one, and taken out below */
        int64_t place;
        float own = squash(row, padded, cap, &place), scale = sums->scale[r], before = sums->peak[r];
        if (sigmas) memcpy(sigmas + r * size, row, size * sizeof(float));
        vec total = all(0), weighted = all(0);
        for (long v = size; v < padded; v++) row[v] = -1e30f;
        for (long v = 0; v < padded; v += LANES) {
            vec below = (load(row + v) - own) * scale, weight = exponential(below);
            store(row + v, weight);
            total += weight;
            weighted += weight * below;
        }
        float slice = sum(total), of_slice = 1.0f / slice, peak = own > before ? own : before;
        float fall = (own - peak) * scale, rise = (peak - before) * scale;
        float factor = expf(fall), kept = expf(-rise);
        if (own > before) sums->argmax[r] = start + place;
        sums->weighted[r] = (sums->weighted[r] - rise * sums->mass[r]) * kept + factor * (sum(weighted) + fall * slice);
        sums->mass[r] = sums->mass[r] * kept + factor * slice;
        sums->peak[r] = own == own ? peak : own; /* nan stays */
        mass[r] = factor * slice;
        shrink[r] = kept;
        logmass[r] = logf(slice) + own * scale;
        if (groups)
            for (long g = 0; g < padded / GROUP; g++) {
                vec held = all(0);
                for (int i = 0; i < GROUP; i += LANES) held += load(row + g * GROUP + i);
                groups[r * (padded / GROUP) + g] = sum(held) * of_slice;
            }
        if (!keep) continue;
        for (long v = 0; v < whole_size; v += LANES) {
            vec share = load(row + v) * of_slice;
            if (narrow) narrowed(half + v, share);
            else store(wide + v, share);
        }
        for (long v = whole_size; v < size; v++) {
            float share = row[v] * of_slice;
            uint32_t bits;
            memcpy(&bits, &share, sizeof bits);
            if (narrow) half[v] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
            else wide[v] = share;
        }
    }
}

/* summed (N, D) = summed shrink + mean mass, mean (N, D) bfloat16 if `narrow`; D a multiple of LANES */
void blend(int64_t rows, int64_t width, float *summed, const void *mean, int64_t narrow, const float *shrink,
           const float *mass, int64_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++)
        for (long i = r * width; i < (r + 1) * width; i += LANES) {
            vec x = narrow ? widened((const uint16_t *)mean + i) : load((const float *)mean + i);
            store(summed + i, load(summed + i) * shrink[r] + x * mass[r]);
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
                dot += narrow ? widened((const uint16_t *)hidden + x + i) * widened((const uint16_t *)embedding + y + i)
                              : load((const float *)hidden + x + i) * load((const float *)embedding + y + i);
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
