/* The RMS norm and the gated GELU of training with their gradients, each in one pass over memory (train/functions.py).
 *
 * Arrays are float32 or, where a flag says so, bfloat16; numbers are computed in float32. One thread: training runs
 * several parts of a batch side by side. Axes: N rows, D columns, a multiple of VEC.
 */

#include "simd.h"

/* out (N, D) = x factor weight, with factor (N) = 1 / sqrt(mean of x^2 + eps), which is kept. weight (D) may be null. */
void norm(int64_t rows, int64_t width, const void *x, int64_t x_bf16, const float *weight, float eps, void *out,
          int64_t out_bf16, float *factor) {
    for (long r = 0; r < rows; r++) {
        long from = r * width;
        vec squares = {0};
        for (long i = 0; i < width; i += VEC) {
            vec value = load_as_float(x, from + i, x_bf16);
            squares += value * value;
        }
        factor[r] = 1.0f / sqrtf(sum(squares) / (float)width + eps);
        for (long i = 0; i < width; i += VEC) {
            vec value = load_as_float(x, from + i, x_bf16) * factor[r];
            if (weight) value *= load(weight + i);
            store_as(out, from + i, out_bf16, value);
        }
    }
}

/* grad (N, D) of norm's result -> that of x, in the dtype of x, and that of the weight, added to weight_grad (D). */
void norm_gradient(int64_t rows, int64_t width, const void *x, int64_t x_bf16, const float *weight,
                   const float *factor, const void *grad, int64_t grad_bf16, void *x_grad, float *weight_grad) {
    for (long r = 0; r < rows; r++) {
        long from = r * width;
        vec products = {0};
        for (long i = 0; i < width; i += VEC) {
            vec normed = load_as_float(x, from + i, x_bf16) * factor[r];
            vec g = load_as_float(grad, from + i, grad_bf16);
            if (weight) {
                store(weight_grad + i, load(weight_grad + i) + g * normed);
                g *= load(weight + i);
            }
            products += g * normed;
        }
        float mean = sum(products) / (float)width;
        for (long i = 0; i < width; i += VEC) {
            vec normed = load_as_float(x, from + i, x_bf16) * factor[r];
            vec g = load_as_float(grad, from + i, grad_bf16);
            if (weight) g *= load(weight + i);
            store_as(x_grad, from + i, x_bf16, (g - normed * mean) * factor[r]);
        }
    }
}

/* gate_up (N, 2D) -> out (N, D) = gelu(gate) up. */
void gated(int64_t rows, int64_t width, const void *gate_up, int64_t bf16, void *out) {
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < width; i += VEC) {
            vec gate = load_as_float(gate_up, 2 * r * width + i, bf16);
            vec up = load_as_float(gate_up, (2 * r + 1) * width + i, bf16);
            store_as(out, r * width + i, bf16, gelu(gate) * up);
        }
}

/* grad (N, D) of gated's result -> that of gate_up (N, 2D). */
void gated_gradient(int64_t rows, int64_t width, const void *gate_up, const void *grad, int64_t bf16, void *out) {
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < width; i += VEC) {
            long first = 2 * r * width + i;
            vec gate = load_as_float(gate_up, first, bf16), up = load_as_float(gate_up, first + width, bf16);
            vec g = load_as_float(grad, r * width + i, bf16), square = gate * gate;
            vec s = sigmoid(gate * (1.59576912f + 0.0713548163f * square));
            vec slope = s + gate * s * (1.0f - s) * (1.59576912f + 0.2140644489f * square);
            store_as(out, first, bf16, g * up * slope);
            store_as(out, first + width, bf16, g * gate * s);
        }
}
