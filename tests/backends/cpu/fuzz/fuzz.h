/* Random numbers, odd ones and random bits among them, in arrays that end where they say (tests of the C files). */

#ifndef FUZZ_H
#define FUZZ_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;

static uint64_t bits(void) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545F4914F6CDD1Du;
}

/* a whole number in [low, high] */
static long between(long low, long high) { return low + (long)((bits() >> 16) % (uint64_t)(high - low + 1)); }

static double unit(void) { return (double)(bits() >> 11) * 0x1p-53; }

#define ONE_OF(...) \
    ((long[]){__VA_ARGS__}[between(0, sizeof((long[]){__VA_ARGS__}) / sizeof(long) - 1)])

/* How odd the numbers of an array are. */
enum { CALM, ONE_ODD, SOME_ODD, ANY_BITS };

static float odd(void) {
    static const float few[] = {NAN,   -NAN,   INFINITY, -INFINITY, 3e38f,  -3e38f, 1e30f, -1e30f, 1e-42f, -1e-42f,
                                -0.0f, 1e-38f, 88.5f,    -88.5f,    1e20f,  -1e10f, 0.0f,  1e4f,   16777217.0f};
    if (bits() & 1) return few[between(0, sizeof few / sizeof *few - 1)];
    uint32_t word = (uint32_t)(bits() >> 32);
    float number;
    memcpy(&number, &word, sizeof number);
    return number;
}

static void *allocated[1 << 14];
static long allocations;

/* Memory of exactly so many bytes, filled with NaN: what is read before it is written is noticed by its effects. */
static void *bytes(size_t size) {
    void *made = malloc(size ? size : 1);
    if (!made || allocations == 1 << 14) abort();
    memset(made, 0xff, size);
    return allocated[allocations++] = made;
}

static void release_all(void) {
    while (allocations) free(allocated[--allocations]);
}

static float *floats(long count, int how, float scale) {
    float *made = bytes((size_t)count * sizeof *made);
    for (long i = 0; i < count; i++)
        made[i] = how == ANY_BITS || (how == SOME_ODD && !between(0, 63)) ? odd() : (float)(2 * unit() - 1) * scale;
    if (how == ONE_ODD && count) made[between(0, count - 1)] = odd();
    return made;
}

static uint16_t *bfloat16s(long count, int how, float scale) {
    uint16_t *made = bytes((size_t)count * sizeof *made);
    float *wide = floats(count, how, scale);
    for (long i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, wide + i, sizeof word);
        made[i] = (uint16_t)(word >> 16);
    }
    return made;
}

static int all_finite(const float *x, long count) {
    for (long i = 0; i < count; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

#define CHECK(condition) \
    do \
        if (!(condition)) { \
            fprintf(stderr, "seed %lu: %s:%d: %s does not hold\n", (unsigned long)seed, __FILE__, __LINE__, #condition); \
            exit(1); \
        } \
    while (0)

/* Runs `one_case` for seeds argv[1] ... argv[1] + argv[2] - 1. */
static void one_case(uint64_t seed);

int main(int count, char **words) {
    if (count != 3) return 2;
    uint64_t first = strtoull(words[1], 0, 10), cases = strtoull(words[2], 0, 10);
    for (uint64_t seed = first; seed < first + cases; seed++) {
        state = (seed + 1) * 0x9E3779B97F4A7C15u;
        for (int i = 0; i < 4; i++) bits();
        one_case(seed);
        release_all();
    }
    printf("%lu cases\n", (unsigned long)cases);
    return 0;
}

#endif
