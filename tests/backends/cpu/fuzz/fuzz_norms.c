/* Rows of random sizes and bits through norms.c. */

#include "fuzz.h"
#include "norms.c"

static void *numbers(long count, int how, int bf16) {
    return bf16 ? (void *)bfloat16s(count, how, 4) : (void *)floats(count, how, 4);
}

static float at(const void *x, long place, int bf16) {
    if (!bf16) return ((const float *)x)[place];
    uint32_t word = (uint32_t)((const uint16_t *)x)[place] << 16;
    float number;
    memcpy(&number, &word, sizeof number);
    return number;
}

static void one_case(uint64_t seed) {
    int how = (int)between(CALM, ANY_BITS), bf16 = (int)between(0, 1), of_weight = (int)between(0, 1);
    long rows = ONE_OF(0, 1, 2, 5, 33), width = 16 * between(1, 9), row = width + between(0, 5), threads = between(1, 3);
    void *out = numbers(rows * width, ANY_BITS, bf16);
    const void *weight = between(0, 1) ? numbers(width, how, of_weight) : 0;
    rms_norm(rows, width, numbers(rows * width, how, bf16), bf16, weight, of_weight, 1e-6f, out, threads);
    for (long i = 0; how == CALM && i < rows * width; i++) CHECK(isfinite(at(out, i, bf16)));

    /* the last row ends with its last column, wherever rows start */
    long length = rows ? (rows - 1) * row + width : 0;
    const void *gate = numbers(length, how, bf16), *up = numbers(length, how, bf16);
    out = numbers(rows * width, ANY_BITS, bf16);
    gated_gelu(rows, width, gate, row, up, row, bf16, out, threads);
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < width; i++) {
            float x = at(gate, r * row + i, bf16), found = at(out, r * width + i, bf16);
            if (isnan(x)) CHECK(isnan(found));
            if (how == CALM) CHECK(isfinite(found) && fabsf(found) <= fabsf(x) * 4.1f);
        }
}
