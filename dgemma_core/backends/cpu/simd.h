/* Float32 vectors of the processor's register width, and the functions of them that the C files share.
 *
 * Every function takes any bits, NaN and infinities included, without undefined behaviour. GCC from 9 on and clang
 * compile it.
 */

#ifndef SIMD_H
#define SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __AVX512F__
enum { VEC = 16 }; /* floats of a vector */
#else
enum { VEC = 8 };
#endif

typedef float vec __attribute__((vector_size(4 * VEC), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * VEC), aligned(4), may_alias));
typedef uint32_t uvec __attribute__((vector_size(4 * VEC), aligned(4), may_alias));
typedef uint16_t hvec __attribute__((vector_size(2 * VEC), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec x) { *(vec *)to = x; }
INLINE vec broadcast(float x) { return x - (vec){0}; }
INLINE vec choose(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }
INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }

/* Before a loop of few, constantly many rounds: each of its vectors gets a register. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 12")
#endif

#if defined(__clang__)
#define SHUFFLE(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define SHUFFLE(x, ...) __builtin_shuffle(x, (ivec){__VA_ARGS__})
#endif

/* The sum of a vector's numbers: halves are added until one number is left. */
INLINE float sum(vec x) {
#ifdef __AVX512F__
    x += SHUFFLE(x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += SHUFFLE(x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
#else
    x += SHUFFLE(x, 4, 5, 6, 7, 0, 1, 2, 3);
#endif
    return (x[0] + x[2]) + (x[1] + x[3]);
}

/* e to the x within 2 units of the last place for x in [-87, 88]; 0 below, infinity above; NaN stays NaN */
INLINE vec exponential(vec x) {
    vec shifted = x * 1.44269504f + 12582912.0f; /* its low bits hold the nearest whole number */
    vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693145752f - n * 1.42860677e-6f;
    vec y = broadcast(1.0f / 5040);
    y = y * r + 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    uvec power = ((uvec)shifted + (127 - 0x4B400000u)) << 23;
    y = choose(x > broadcast(88.0f), broadcast(INFINITY), y * (vec)power);
    return (vec)((ivec)y & ~(x < broadcast(-87.0f)));
}

/* 1 / (1 + e to the -x) */
INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }

/* the tanh form of GELU: x times the sigmoid of 2 sqrt(2/pi) (x + 0.044715 x^3) */
INLINE vec gelu(vec x) { return x * sigmoid(x * (1.59576912f + 0.0713548163f * x * x)); }

/* All bits set where a number is infinite or NaN: gathers such places with |. */
INLINE ivec not_finite(vec x) { return ((ivec)x & 0x7f800000) == 0x7f800000; }

/* Whether any bit of a vector is set. */
INLINE int any(ivec x) {
    int32_t found = 0;
    for (int i = 0; i < VEC; i++) found |= x[i];
    return found != 0;
}

/* Whether n numbers, a multiple of VEC, include an infinite one or NaN. */
INLINE int has_not_finite(const float *x, long n) {
    ivec found = {0};
    for (long i = 0; i < n; i += VEC) found |= not_finite(load(x + i));
    return any(found);
}

/* bfloat16 is the upper half of a float32 */
INLINE vec load_bf16(const uint16_t *from) {
    return (vec)(__builtin_convertvector(*(const hvec *)from, uvec) << 16);
}

INLINE void store_bf16(uint16_t *to, vec x) { /* rounds to the nearest, ties to even */
    uvec bits = (uvec)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);
    uvec is_nan = (uvec)(x != x);
    rounded = (rounded & ~is_nan) | ((bits | 0x400000) & is_nan);
    *(hvec *)to = __builtin_convertvector(rounded >> 16, hvec);
}

/* numbers from `place` on of an array of float32 or, if `bf16`, of bfloat16 */
INLINE vec load_as_float(const void *from, long place, int bf16) {
    return bf16 ? load_bf16((const uint16_t *)from + place) : load((const float *)from + place);
}

INLINE void store_as(void *to, long place, int bf16, vec x) {
    if (bf16) store_bf16((uint16_t *)to + place, x);
    else store((float *)to + place, x);
}

/* Logits (n, a multiple of VEC; bfloat16 if `bf16`) -> row: sigmoid(2 logit / cap), which stands for the soft-capped
 * logit (2 sigmoid - 1) cap. From `end` on, another multiple, logits are read from the row itself. Returns the largest
 * sigmoid, and the first place of it in *argmax; place 0 if all are NaN. */
INLINE float soft_cap(const void *logits, int bf16, long end, long n, float *row, float cap, int64_t *argmax) {
    vec best = broadcast(-INFINITY);
    ivec places = {0}, here;
    for (int i = 0; i < VEC; i++) here[i] = i;
    for (long v = 0; v < n; v += VEC, here += VEC) {
        vec s = sigmoid((v < end ? load_as_float(logits, v, bf16) : load(row + v)) * (2.0f / cap));
        store(row + v, s);
        ivec risen = s > best;
        best = choose(risen, s, best);
        places = (here & risen) | (places & ~risen);
    }
    float peak = best[0];
    *argmax = places[0];
    for (int i = 1; i < VEC; i++)
        if (best[i] > peak || (best[i] == peak && places[i] < *argmax)) peak = best[i], *argmax = places[i];
    return peak;
}

/* What a sigmoid of 1 stands for: cap / temperature, kept finite. A temperature near 0 picks the argmax. */
INLINE float capped_scale(float cap, float temperature) {
    float scale = cap / temperature;
    return scale < 1e30f ? scale : 1e30f;
}

#ifdef _OPENMP
static inline long thread_index(void) { return omp_get_thread_num(); }
static inline long thread_count(void) { return omp_get_num_threads(); }
#else
static inline long thread_index(void) { return 0; }
static inline long thread_count(void) { return 1; }
#endif

#endif
