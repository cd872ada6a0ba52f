/* Rows of random sizes and bits through gradients.c. */

#include "fuzz.h"
#include "gradients.c"

static void *numbers(long count, int how, int bf16) {
    return bf16 ? (void *)bfloat16s(count, how, 4) : (void *)floats(count, how, 4);
}

static void one_case(uint64_t seed) {
    int how = (int)between(CALM, ANY_BITS), x_bf16 = (int)between(0, 1), out_bf16 = (int)between(0, 1);
    long rows = ONE_OF(0, 1, 2, 5, 33), width = 16 * between(1, 9), count = rows * width;
    const void *x = numbers(count, how, x_bf16), *grad = numbers(count, how, out_bf16);
    const float *weight = between(0, 1) ? numbers(width, how, 0) : 0;
    float *factor = numbers(rows, ANY_BITS, 0), *weight_grad = numbers(width, CALM, 0);
    norm(rows, width, x, x_bf16, weight, 1e-6f, numbers(count, ANY_BITS, out_bf16), out_bf16, factor);
    norm_gradient(rows, width, x, x_bf16, weight, factor, grad, out_bf16, numbers(count, ANY_BITS, x_bf16),
                  weight_grad);
    for (long r = 0; how == CALM && r < rows; r++) CHECK(isfinite(factor[r]) && factor[r] > 0);
    for (long i = 0; how == CALM && i < width; i++) CHECK(isfinite(weight_grad[i]));
    const void *gate_up = numbers(2 * count, how, x_bf16);
    gated(rows, width, gate_up, x_bf16, numbers(count, ANY_BITS, x_bf16));
    gated_gradient(rows, width, gate_up, numbers(count, how, x_bf16), x_bf16, numbers(2 * count, ANY_BITS, x_bf16));
}
