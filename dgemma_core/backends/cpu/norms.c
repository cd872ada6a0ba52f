/* The RMS norm and the gated GELU of larger models, float32 or bfloat16, computed in float32 (norms.py).
 *
 * Torch has no fused RMS norm on a CPU: it makes several passes over memory, in which bfloat16 takes float32's space.
 *
 * Axes: N rows, D columns, a multiple of VEC.
 */

#include "simd.h"

/* out (N, D) = x / sqrt(mean of x^2 + eps) times weight (D), which may be null; x and out are bfloat16 if `bf16`,
 * the weight if `weight_bf16`. Rounds once, at the end. */
void rms_norm(int64_t rows, int64_t width, const void *x, int64_t bf16, const void *weight, int64_t weight_bf16,
              float eps, void *out, int64_t threads) {
    threads = threads < 1 ? 1 : threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++) {
        long from = r * width;
        vec squares[4] = {{0}}; /* four sums, so that no addition waits for the one before */
        for (long i = 0; i < width; i += VEC) {
            vec value = load_as_float(x, from + i, bf16);
            squares[i / VEC % 4] += value * value;
        }
        float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / (float)width;
        float factor = 1.0f / sqrtf(mean + eps);
        for (long i = 0; i < width; i += VEC) {
            vec value = load_as_float(x, from + i, bf16) * factor;
            if (weight) value = value * load_as_float(weight, i, weight_bf16);
            store_as(out, from + i, bf16, value);
        }
    }
}

/* out (N, D) = gelu(gate), its tanh form, times up; all bfloat16 if `bf16`. Rows of gate and up start every gate_row
 * and up_row numbers. Rounds the GELU before the product, as two operations do. */
void gated_gelu(int64_t rows, int64_t width, const void *gate, int64_t gate_row, const void *up, int64_t up_row,
                int64_t bf16, void *out, int64_t threads) {
    threads = threads < 1 ? 1 : threads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long r = 0; r < rows; r++)
        for (long i = 0; i < width; i += VEC) {
            vec value = gelu(load_as_float(gate, r * gate_row + i, bf16));
            if (bf16) {
                uint16_t rounded[VEC];
                store_bf16(rounded, value);
                value = load_bf16(rounded);
            }
            store_as(out, r * width + i, bf16, value * load_as_float(up, r * up_row + i, bf16));
        }
}
