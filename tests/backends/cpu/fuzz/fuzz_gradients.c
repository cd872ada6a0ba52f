/* Rows of random sizes and bits through gradients.c. */

#include "fuzz.h"
#include "gradients.c"

static void *numbers(long count, int how, int bf16) {
    return bf16 ? (void *)bfloat16s(count, how, 4) : (void *)floats(count, how, 4);
}

static int64_t *whole_numbers(long count, long low, long high) {
    int64_t *made = bytes((size_t)count * sizeof *made);
    for (long i = 0; i < count; i++) made[i] = between(low, high);
    return made;
}

static void norms_and_gates(uint64_t seed) {
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
    const float *scale = between(0, 1) ? numbers(rows, how, 0) : 0;
    float *scale_grad = scale ? numbers(rows, ANY_BITS, 0) : 0;
    const void *y = numbers(count, how, out_bf16);
    added_norm(rows, width, x, x_bf16, y, out_bf16, weight, 1e-6f, scale, numbers(count, ANY_BITS, x_bf16), factor);
    added_norm_gradient(rows, width, scale ? x : 0, x_bf16, y, out_bf16, weight, factor, scale,
                        numbers(count, how, x_bf16), scale ? numbers(count, ANY_BITS, x_bf16) : 0,
                        numbers(count, ANY_BITS, out_bf16), weight_grad, scale_grad);
    for (long r = 0; scale && how == CALM && r < rows; r++) CHECK(isfinite(scale_grad[r]));
    const void *gate_up = numbers(2 * count, how, x_bf16);
    gated(rows, width, gate_up, x_bf16, numbers(count, ANY_BITS, x_bf16));
    gated_gradient(rows, width, gate_up, numbers(count, how, x_bf16), x_bf16, numbers(2 * count, ANY_BITS, x_bf16));
}

static void attention(uint64_t seed) {
    int how = (int)between(CALM, ANY_BITS), bf16 = (int)between(0, 1);
    long parts = between(1, 3), batch = between(1, 3), groups = between(1, 2), heads = groups * between(1, 2);
    long shared = between(0, 1), d = 32 * between(1, 3), span = 0;
    int64_t first[3], count[3];
    for (long p = 0; p < parts; p++) first[p] = span, count[p] = between(1, 9), span += count[p];
    long slots = heads + (shared ? 1 : 2) * groups, all = batch * span * slots * d;
    Packed packed = {batch, span, count[0], parts, heads, groups, d, shared, bf16, first, count, numbers(all, how, bf16),
                     numbers(d, how, 0), numbers(d, how, 0), numbers(batch * span * d, how, 0),
                     numbers(batch * span * d, how, 0), numbers(batch * span * (heads + 2 * groups), ANY_BITS, 0), 1e-6f};
    void *q[3], *k[3], *v[3];
    long widest = 0;
    for (long p = 0; p < parts; p++) {
        long keys = count[p] + (p ? count[0] : 0);
        q[p] = numbers(batch * heads * count[p] * d, ANY_BITS, bf16);
        k[p] = numbers(batch * groups * keys * d, ANY_BITS, bf16);
        v[p] = numbers(batch * groups * keys * d, ANY_BITS, bf16);
        widest = keys > widest ? keys : widest;
    }
    attention_inputs(&packed, q, k, v);
    for (long p = 0; how == CALM && p < parts; p++)
        for (long i = 0; i < batch * groups * (count[p] + (p ? count[0] : 0)) * d; i++)
            CHECK(isfinite(number_at(k[p], i, bf16)) && isfinite(number_at(v[p], i, bf16)));
    float *row = numbers(widest + 16, ANY_BITS, 0);
    for (long p = 0; p < parts; p++) {
        long keys = count[p] + (p ? count[0] : 0), rows = batch * heads * count[p];
        int64_t *seen = whole_numbers(3 * batch * count[p], -2, keys + 2);
        void *scores = numbers(rows * keys, how, bf16);
        visible_softmax(batch, heads, count[p], keys, seen, scores, bf16, row);
        softmax_gradient(rows, keys, scores, numbers(rows * keys, how, bf16), bf16);
        q[p] = numbers(batch * heads * count[p] * d, how, bf16);
        k[p] = numbers(batch * groups * keys * d, how, bf16);
        v[p] = numbers(batch * groups * keys * d, how, bf16);
    }
    float *of_query = numbers(d, CALM, 0), *of_key = numbers(d, CALM, 0);
    attention_inputs_gradient(&packed, q, k, v, numbers(all, ANY_BITS, bf16), of_query, of_key);
    for (long i = 0; how == CALM && i < d; i++) CHECK(isfinite(of_query[i]) && isfinite(of_key[i]));
}

static void experts(uint64_t seed) {
    int how = (int)between(CALM, ANY_BITS), bf16 = (int)between(0, 1);
    long tokens = between(0, 20), k = between(1, 3), width = 16 * between(1, 4), count = between(1, 5);
    int64_t *chosen = whole_numbers(tokens * k, 0, count - 1), *slot = whole_numbers(tokens * k, 0, 0);
    int64_t *next = whole_numbers(count, 0, 0), total = 0;
    for (long e = 0; e < count; e++) {
        next[e] = total;
        for (long i = 0; i < tokens * k; i++) total += chosen[i] == e;
        total += between(0, 2); /* padding */
    }
    expert_slots(tokens * k, chosen, next, slot);
    void *x = numbers(tokens * width, how, bf16), *rows = numbers(total * width, how, bf16);
    to_experts(tokens, k, width, x, bf16, slot, rows);
    const float *weights = between(0, 1) ? numbers(tokens * k, how, 0) : 0;
    from_experts(tokens, k, width, rows, bf16, slot, weights, numbers(tokens * width, ANY_BITS, bf16));
    float *weights_grad = numbers(tokens * k, ANY_BITS, 0);
    from_experts_gradient(tokens, k, width, rows, bf16, slot, numbers(tokens * k, how, 0), x,
                          numbers(total * width, ANY_BITS, bf16), weights_grad);
    for (long i = 0; how == CALM && i < tokens * k; i++) CHECK(isfinite(weights_grad[i]));
}

static void losses(uint64_t seed) {
    int how = (int)between(CALM, ANY_BITS), bf16 = (int)between(0, 1);
    long rows = between(0, 9), vocab = 16 * between(1, 9);
    float *loss = numbers(rows, ANY_BITS, 0), *row = numbers(vocab, ANY_BITS, 0), cap = (float)(1 + 40 * unit());
    capped_loss(rows, vocab, numbers(rows * vocab, how, bf16), bf16, whole_numbers(rows, -2, vocab + 1), cap, loss, row);
    for (long r = 0; how == CALM && r < rows; r++) CHECK(isfinite(loss[r]) && loss[r] > -1e-3f);
    void *logits = numbers(rows * vocab, how, bf16);
    capped_softmax(rows, vocab, logits, bf16, cap, row);
    for (long i = 0; how == CALM && i < rows * vocab; i++) CHECK(number_at(logits, i, bf16) >= 0);
}

static void one_case(uint64_t seed) {
    norms_and_gates(seed);
    attention(seed);
    experts(seed);
    losses(seed);
}
