/* Slices of random sizes and bits through online_softmax.c. */

#include "fuzz.h"
#include "online_softmax.c"

static void *numbers(long count, int how, int bf16) {
    return bf16 ? (void *)bfloat16s(count, how, 40) : (void *)floats(count, how, 40);
}

static void slices(int how, uint64_t seed) {
    long rows = between(1, 5), total = 0, threads = between(1, 3);
    int bf16 = (int)between(0, 1);
    float cap = how == ANY_BITS ? odd() : (float)ONE_OF(30, 1, 1000);
    float *peak = floats(rows, CALM, 0), *mass = floats(rows, CALM, 0), *weighted = floats(rows, CALM, 0);
    float *scale = floats(rows, CALM, 1);
    int64_t *argmax = bytes((size_t)rows * sizeof *argmax);
    for (long r = 0; r < rows; r++) {
        peak[r] = -1, argmax[r] = 0;
        scale[r] = 2 * cap / (how == CALM ? fabsf(scale[r]) + 0.01f : odd());
    }
    RowStats stats = {peak, mass, weighted, argmax, scale};
    int damaged = 0;
    for (long slice = between(1, 3); slice--;) {
        long size = ONE_OF(1, 7, 15, 16, 17, 63, 64, 65, 130, 192), groups = (size + GROUP - 1) / GROUP;
        float *of_slice = floats(4 * rows, ANY_BITS, 1);
        damaged |= add_slice(rows, size, total, numbers(rows * size, how, bf16), bf16, between(0, 1), cap, &stats, of_slice,
                             of_slice + rows, of_slice + 2 * rows, between(0, 1) ? floats(rows * groups, ANY_BITS, 1) : 0,
                             of_slice + 3 * rows, between(0, 1) ? floats(rows * size, ANY_BITS, 1) : 0, threads,
                             floats(threads * groups * GROUP, ANY_BITS, 1)) != 0;
        total += size;
        if (!damaged) CHECK(all_finite(mass, rows) && all_finite(of_slice, rows));
    }
    for (long r = 0; r < rows; r++) CHECK(argmax[r] >= 0 && argmax[r] < total);
    if (how == CALM) CHECK(!damaged && all_finite(weighted, rows));
}

static void samples(int how, uint64_t seed) {
    long rows = between(1, 5), width = 16 * between(1, 4), vocabulary = ONE_OF(1, 5, 64, 100);
    int bf16 = (int)between(0, 1);
    float *temperatures = floats(rows, how, 1), *logit = floats(rows, ANY_BITS, 1);
    int64_t *first = bytes((size_t)rows * 8), *end = bytes((size_t)rows * 8), *token = bytes((size_t)rows * 8);
    double *target = bytes((size_t)rows * sizeof *target);
    for (long r = 0; r < rows; r++) {
        first[r] = how == CALM ? between(0, vocabulary - 1) : (int64_t)bits();
        end[r] = how == CALM ? first[r] + between(0, 70) : (int64_t)bits();
        target[r] = how == CALM ? unit() : (double)odd();
    }
    float cap = how == ANY_BITS ? odd() : 30.0f;
    sample_in_group(rows, width, vocabulary, numbers(rows * width, how, bf16), numbers(vocabulary * width, how, bf16), bf16,
                    cap, temperatures, first, end, target, token, logit, between(1, 3));
    for (long r = 0; r < rows; r++) {
        CHECK(token[r] >= 0 && token[r] < vocabulary);
        if (how == CALM) CHECK(token[r] >= first[r] && isfinite(logit[r]));
    }
    float *summed = floats(rows * width, CALM, 1);
    blend(rows, width, summed, numbers(rows * width, how, bf16), bf16, floats(rows, how, 1), floats(rows, how, 1), 2);
    if (how == CALM) CHECK(all_finite(summed, rows * width));
}

static void one_case(uint64_t seed) {
    int how = (int)between(CALM, ANY_BITS);
    slices(how, seed);
    samples(how, seed);
}
