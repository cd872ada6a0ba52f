/* Float32 numbers, as many at once as a register of this processor holds, and what C files here do with them. */

#ifndef LANES_H
#define LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t whole __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec x) { *(vec *)to = x; }
INLINE vec all(float x) { return x - (vec){0}; }
INLINE vec pick(whole mask, vec a, vec b) { return (vec)(((whole)a & mask) | ((whole)b & ~mask)); }
INLINE vec larger(vec a, vec b) { return pick(a > b, a, b); }

INLINE float sum(vec x) { /* halves onto each other */
#define HALF(n) typedef float lanes##n __attribute__((vector_size(4 * n)))
    HALF(8); HALF(4);
#ifdef __AVX512F__
    lanes8 eight = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7)
                 + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
#else
    lanes8 eight = x;
#endif
#undef HALF
    lanes4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* e to the x for x up to 88, within 2 units of the last place; 0 below -87, and nan stays nan */
INLINE vec exponential(vec x) {
    whole counts = ~(x < all(-87.0f));
    vec n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* to the nearest whole number */
    vec r = x - n * 0.693145752f - n * 1.42860677e-6f;
    vec y = all(1.0f / 5040);
    y = y * r + 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    whole power = (__builtin_convertvector(n, whole) + 127) << 23;
    return (vec)((whole)(y * (vec)power) & counts);
}

/* 1 / (1 + e to the -x) */
INLINE vec sigmoid(vec x) {
    return 1.0f / (1.0f + exponential(-pick(x < all(-88.0f), all(-88.0f), x)));
}

typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* bfloat16 is the upper half of a float32 */
INLINE vec widened(const uint16_t *from) {
    return (vec)(__builtin_convertvector(*(const halves *)from, whole) << 16);
}

INLINE void narrowed(uint16_t *to, vec x) { /* to the nearest, ties to even */
    whole bits = (whole)x;
    *(halves *)to = __builtin_convertvector(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff, halves);
}

/* numbers from `place` on, of float32 or, if `narrow`, bfloat16 ones */
INLINE vec load_either(const void *from, long place, int narrow) {
    return narrow ? widened((const uint16_t *)from + place) : load((const float *)from + place);
}

/* Logits (n, a multiple of LANES; bfloat16 if `narrow`) -> row: sigma(2 logit / cap), which stands for the capped logit
 * (2 sigma - 1) cap. From `end` on, another multiple, logits are read from the row itself. Returns the largest, and its
 * first place in *argmax. */
INLINE float squash(const void *logits, int narrow, long end, long n, float *row, float cap, int64_t *argmax) {
    vec best = all(-INFINITY);
    whole places = {0}, here;
    for (int i = 0; i < LANES; i++) here[i] = i;
    for (long v = 0; v < n; v += LANES, here += LANES) {
        vec s = sigmoid((v < end ? load_either(logits, v, narrow) : load(row + v)) * (2.0f / cap));
        store(row + v, s);
        whole risen = s > best;
        best = pick(risen, s, best);
        places = (here & risen) | (places & ~risen);
    }
    float peak = best[0];
    *argmax = places[0];
    for (int i = 1; i < LANES; i++)
        if (best[i] > peak || (best[i] == peak && places[i] < *argmax)) peak = best[i], *argmax = places[i];
    return peak;
}

#ifdef _OPENMP
static inline long own_number(void) { return omp_get_thread_num(); }
static inline long number_of_threads(void) { return omp_get_num_threads(); }
#else
static inline long own_number(void) { return 0; }
static inline long number_of_threads(void) { return 1; }
#endif

#endif
