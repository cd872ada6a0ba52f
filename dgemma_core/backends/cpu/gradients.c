/* What training does between its matrix products, with its gradients, each in one pass over memory (train/functions.py,
 * train/attention.py, train/mixture.py).
 *
 * Arrays are float32 or, where a flag says so, bfloat16; numbers are computed in float32. One thread: training runs
 * several parts of a batch side by side. Axes: N rows, D columns, a multiple of VEC.
 */

#include "simd.h"

/* 1 / sqrt(mean of x^2 + eps) of the `width` numbers from `from` on. */
INLINE float norm_factor(const void *x, long from, long width, int64_t bf16, float eps) {
    vec squares = {0};
    for (long i = 0; i < width; i += VEC) {
        vec value = load_as_float(x, from + i, (int)bf16);
        squares += value * value;
    }
    return 1.0f / sqrtf(sum(squares) / (float)width + eps);
}

/* out (N, D) = x factor weight, with factor (N) = 1 / sqrt(mean of x^2 + eps), which is kept. weight (D) may be null. */
void norm(int64_t rows, int64_t width, const void *x, int64_t x_bf16, const float *weight, float eps, void *out,
          int64_t out_bf16, float *factor) {
    for (long r = 0; r < rows; r++) {
        long from = r * width;
        factor[r] = norm_factor(x, from, width, x_bf16, eps);
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

/* out (N, D) = (x + norm(y)) scale, in the dtype of x, with factor (N) of y's norm, which is kept. weight (D)
 * and scale (N) may be null. */
void added_norm(int64_t rows, int64_t width, const void *x, int64_t x_bf16, const void *y, int64_t y_bf16,
                const float *weight, float eps, const float *scale, void *out, float *factor) {
    for (long r = 0; r < rows; r++) {
        long from = r * width;
        factor[r] = norm_factor(y, from, width, y_bf16, eps);
        float by = scale ? scale[r] : 1.0f;
        for (long i = 0; i < width; i += VEC) {
            vec value = load_as_float(y, from + i, y_bf16) * factor[r];
            if (weight) value *= load(weight + i);
            store_as(out, from + i, x_bf16, (load_as_float(x, from + i, x_bf16) + value) * by);
        }
    }
}

/* grad (N, D) of added_norm's result -> those of x, y, weight (added to weight_grad) and scale (N). */
void added_norm_gradient(int64_t rows, int64_t width, const void *x, int64_t x_bf16, const void *y, int64_t y_bf16,
                         const float *weight, const float *factor, const float *scale, const void *grad, void *x_grad,
                         void *y_grad, float *weight_grad, float *scale_grad) {
    for (long r = 0; r < rows; r++) {
        long from = r * width;
        vec products = {0}, of_scale = {0};
        float by = scale ? scale[r] : 1.0f;
        for (long i = 0; i < width; i += VEC) {
            vec normed = load_as_float(y, from + i, y_bf16) * factor[r];
            vec g = load_as_float(grad, from + i, x_bf16), added = normed;
            if (weight) added *= load(weight + i);
            if (scale) of_scale += g * (load_as_float(x, from + i, x_bf16) + added);
            g *= by;
            if (x_grad) store_as(x_grad, from + i, x_bf16, g);
            if (weight) {
                store(weight_grad + i, load(weight_grad + i) + g * normed);
                g *= load(weight + i);
            }
            products += g * normed;
        }
        if (scale) scale_grad[r] = sum(of_scale);
        float mean = sum(products) / (float)width;
        for (long i = 0; i < width; i += VEC) {
            vec normed = load_as_float(y, from + i, y_bf16) * factor[r];
            vec g = load_as_float(grad, from + i, x_bf16) * by;
            if (weight) g *= load(weight + i);
            store_as(y_grad, from + i, y_bf16, (g - normed * mean) * factor[r]);
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

/* One head (width) of a token, normed by weight (null: none) and, with cos and sin (width), rotated; returns its factor.
 * sin is signed: the first half is negative. width / 2 is a multiple of VEC. */
INLINE float norm_head(long width, const void *x, long from, int bf16, const float *weight, float eps, const float *cos,
                       const float *sin, void *out, long to) {
    float factor = norm_factor(x, from, width, bf16, eps);
    long half = width / 2;
    for (long i = 0; i < half; i += VEC) {
        vec a = load_as_float(x, from + i, bf16) * factor, b = load_as_float(x, from + half + i, bf16) * factor;
        if (weight) a *= load(weight + i), b *= load(weight + half + i);
        if (cos) {
            vec turned = a * load(cos + i) + b * load(sin + i);
            b = b * load(cos + half + i) + a * load(sin + half + i);
            a = turned;
        }
        store_as(out, to + i, bf16, a);
        store_as(out, to + half + i, bf16, b);
    }
    return factor;
}

/* The gradient g (width, float32) of norm_head's result -> that of x, and that of the weight, added to weight_grad.
 * `more`: x_grad is added to. g is overwritten. */
INLINE void norm_head_gradient(long width, const void *x, long from, int bf16, const float *weight, const float *cos,
                               const float *sin, float factor, float *g, void *x_grad, float *weight_grad, int more) {
    long half = width / 2;
    vec products = {0};
    for (long i = 0; i < half; i += VEC) {
        vec ga = load(g + i), gb = load(g + half + i);
        if (cos) {
            vec back = ga * load(cos + i) + gb * load(sin + half + i);
            gb = gb * load(cos + half + i) + ga * load(sin + i);
            ga = back;
        }
        vec a = load_as_float(x, from + i, bf16) * factor, b = load_as_float(x, from + half + i, bf16) * factor;
        if (weight) {
            store(weight_grad + i, load(weight_grad + i) + ga * a);
            store(weight_grad + half + i, load(weight_grad + half + i) + gb * b);
            ga *= load(weight + i), gb *= load(weight + half + i);
        }
        products += ga * a + gb * b;
        store(g + i, ga);
        store(g + half + i, gb);
    }
    float mean = sum(products) / (float)width;
    for (long i = 0; i < width; i += VEC) {
        vec normed = load_as_float(x, from + i, bf16) * factor, found = (load(g + i) - normed * mean) * factor;
        if (more) found += load_as_float(x_grad, from + i, bf16);
        store_as(x_grad, from + i, bf16, found);
    }
}

/* A batch of packed rows: `span` tokens each, of which the first `clean` are read by every part, and part p holds
 * `count[p]` from `first[p]` on. The keys of a part are the clean ones and, behind them, its own (part 0 is the clean
 * text, whose keys are its own). */
typedef struct {
    int64_t batch, span, clean, parts, heads, groups, width, shared_values, bf16;
    const int64_t *first, *count;
    const void *both;   /* (batch, span, (heads + groups [+ groups]) width): queries, keys and, unless shared, values */
    const float *query_weight, *key_weight, *cos, *sin; /* (width), and (batch, span, width) */
    float *factors;                                     /* (batch, span, heads + 2 groups) */
    float eps;
} Packed;

enum { WIDEST_HEAD = 512 };

/* -> of every part queries (batch, heads, count, width), keys and values (batch, groups, keys of the part, width). */
void attention_inputs(const Packed *p, void *const *queries, void *const *keys, void *const *values) {
    long slots = p->heads + (p->shared_values ? 1 : 2) * p->groups, d = p->width, item = p->bf16 ? 2 : 4;
    for (long b = 0; b < p->batch; b++)
        for (long part = 0; part < p->parts; part++) {
            long count = p->count[part], own = part ? p->clean : 0, span = own + count;
            for (long t = 0; t < count; t++) {
                long token = b * p->span + p->first[part] + t, from = token * slots * d;
                const float *cos = p->cos + token * d, *sin = p->sin + token * d;
                float *factor = p->factors + token * (p->heads + 2 * p->groups);
                for (long h = 0; h < p->heads; h++)
                    factor[h] = norm_head(d, p->both, from + h * d, (int)p->bf16, p->query_weight, p->eps, cos, sin,
                                          queries[part], ((b * p->heads + h) * count + t) * d);
                for (long g = 0; g < p->groups; g++) {
                    long key = from + (p->heads + g) * d, value = key + (p->shared_values ? 0 : p->groups * d);
                    long to = ((b * p->groups + g) * span + own + t) * d;
                    factor[p->heads + g] = norm_head(d, p->both, key, (int)p->bf16, p->key_weight, p->eps, cos, sin,
                                                     keys[part], to);
                    factor[p->heads + p->groups + g] = norm_head(d, p->both, value, (int)p->bf16, 0, p->eps, 0, 0,
                                                                 values[part], to);
                }
            }
            for (long g = 0; part && g < p->groups; g++) {
                long from = (b * p->groups + g) * p->clean * d * item, to = (b * p->groups + g) * span * d * item;
                memcpy((char *)keys[part] + to, (char *)keys[0] + from, (size_t)(p->clean * d * item));
                memcpy((char *)values[part] + to, (char *)values[0] + from, (size_t)(p->clean * d * item));
            }
        }
}

/* The gradient of one key or value of token t: its part's, and if it is clean those that the other parts found. */
INLINE void key_gradient(const Packed *p, void *const *grads, long b, long g, long part, long t, float *out) {
    long d = p->width;
    for (long other = part; other < (part ? part + 1 : p->parts); other++) {
        long own = part ? p->clean : 0, span = (other ? p->clean : 0) + p->count[other];
        long from = ((b * p->groups + g) * span + own + t) * d;
        for (long i = 0; i < d; i += VEC) {
            vec found = load_as_float(grads[other], from + i, (int)p->bf16);
            if (other != part) found += load(out + i);
            store(out + i, found);
        }
    }
}

/* Gradients of attention_inputs' results -> that of `both`, and those of the two weights, which are added to. */
void attention_inputs_gradient(const Packed *p, void *const *queries, void *const *keys, void *const *values,
                               void *both_grad, float *query_weight_grad, float *key_weight_grad) {
    long slots = p->heads + (p->shared_values ? 1 : 2) * p->groups, d = p->width;
    float grad[WIDEST_HEAD];
    for (long b = 0; b < p->batch; b++)
        for (long part = 0; part < p->parts; part++)
            for (long t = 0; t < p->count[part]; t++) {
                long token = b * p->span + p->first[part] + t, from = token * slots * d;
                const float *cos = p->cos + token * d, *sin = p->sin + token * d;
                const float *factor = p->factors + token * (p->heads + 2 * p->groups);
                for (long h = 0; h < p->heads; h++) {
                    long place = ((b * p->heads + h) * p->count[part] + t) * d;
                    for (long i = 0; i < d; i += VEC)
                        store(grad + i, load_as_float(queries[part], place + i, (int)p->bf16));
                    norm_head_gradient(d, p->both, from + h * d, (int)p->bf16, p->query_weight, cos, sin, factor[h],
                                       grad, both_grad, query_weight_grad, 0);
                }
                for (long g = 0; g < p->groups; g++) {
                    long key = from + (p->heads + g) * d, value = key + (p->shared_values ? 0 : p->groups * d);
                    key_gradient(p, keys, b, g, part, t, grad);
                    norm_head_gradient(d, p->both, key, (int)p->bf16, p->key_weight, cos, sin, factor[p->heads + g],
                                       grad, both_grad, key_weight_grad, 0);
                    key_gradient(p, values, b, g, part, t, grad);
                    norm_head_gradient(d, p->both, value, (int)p->bf16, 0, 0, 0, factor[p->heads + p->groups + g], grad,
                                       both_grad, 0, (int)p->shared_values);
                }
            }
}

/* Numbers of one array as float32, and back; the last of a row that is not a multiple of VEC stay as they are. */
INLINE float number_at(const void *x, long place, int bf16) {
    if (!bf16) return ((const float *)x)[place];
    uint32_t bits = (uint32_t)((const uint16_t *)x)[place] << 16;
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

INLINE void set_number(void *x, long place, int bf16, float value) {
    if (!bf16) {
        ((float *)x)[place] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    ((uint16_t *)x)[place] = (uint16_t)(value != value ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* scores (N, width), any width, become their softmax over the places that row n sees: [seen[3n], seen[3n + 1]) and from
 * seen[3n + 2] on; the others become 0. row (width, rounded up to VEC) is scratch. Row n's places are those of
 * n / (heads count) in the batch and n % count in the text: seen is (batch, count, 3). */
void visible_softmax(int64_t batch, int64_t heads, int64_t count, int64_t width, const int64_t *seen, void *scores,
                     int64_t bf16, float *row) {
    long padded = (width + VEC - 1) / VEC * VEC;
    ivec here, zero = {0};
    for (int i = 0; i < VEC; i++) here[i] = i;
    for (long n = 0; n < batch * heads * count; n++) {
        const int64_t *range = seen + 3 * (n / (heads * count) * count + n % count);
        ivec low = zero + (int32_t)range[0], high = zero + (int32_t)range[1], behind = zero + (int32_t)range[2];
        long from = n * width, whole = width / VEC * VEC;
        for (long i = 0; i < whole; i += VEC) store(row + i, load_as_float(scores, from + i, (int)bf16));
        for (long i = whole; i < padded; i++) row[i] = i < width ? number_at(scores, from + i, (int)bf16) : 0.0f;
        vec peaks = broadcast(-INFINITY);
        ivec place = here;
        for (long i = 0; i < padded; i += VEC, place += VEC) {
            ivec visible = ((place >= low) & (place < high)) | ((place >= behind) & (place < (int32_t)width));
            vec value = choose(visible, load(row + i), broadcast(-INFINITY));
            store(row + i, value);
            peaks = larger(value, peaks);
        }
        float peak = peaks[0];
        for (int i = 1; i < VEC; i++) peak = peaks[i] > peak ? peaks[i] : peak;
        vec masses = {0};
        for (long i = 0; i < padded; i += VEC) {
            vec mass = exponential(load(row + i) - peak);
            store(row + i, mass);
            masses += mass;
        }
        float inverse = 1.0f / sum(masses);
        for (long i = 0; i < whole; i += VEC) store_as(scores, from + i, (int)bf16, load(row + i) * inverse);
        for (long i = whole; i < width; i++) set_number(scores, from + i, (int)bf16, row[i] * inverse);
    }
}

/* Softmax probabilities (N, width) and their gradient -> that of the scores, in the gradient's place. */
void softmax_gradient(int64_t rows, int64_t width, const void *probabilities, void *grad, int64_t bf16) {
    long whole = width / VEC * VEC;
    for (long n = 0; n < rows; n++) {
        long from = n * width;
        vec products = {0};
        for (long i = 0; i < whole; i += VEC)
            products += load_as_float(probabilities, from + i, (int)bf16) * load_as_float(grad, from + i, (int)bf16);
        float mean = sum(products);
        for (long i = whole; i < width; i++)
            mean += number_at(probabilities, from + i, (int)bf16) * number_at(grad, from + i, (int)bf16);
        for (long i = 0; i < whole; i += VEC) {
            vec p = load_as_float(probabilities, from + i, (int)bf16);
            store_as(grad, from + i, (int)bf16, p * (load_as_float(grad, from + i, (int)bf16) - mean));
        }
        for (long i = whole; i < width; i++) {
            float p = number_at(probabilities, from + i, (int)bf16);
            set_number(grad, from + i, (int)bf16, p * (number_at(grad, from + i, (int)bf16) - mean));
        }
    }
}

/* Pairs (token, choice) in the order of their experts: pair i gets the next slot of its expert. next (experts) holds
 * each one's first slot, and counts on. chosen lie in [0, experts). */
void expert_slots(int64_t pairs, const int64_t *chosen, int64_t *next, int64_t *slot) {
    for (long i = 0; i < pairs; i++) slot[i] = next[chosen[i]]++;
}

/* x (N, D) -> rows: row slot[n, k] becomes x[n], for each of its K choices. */
void to_experts(int64_t tokens, int64_t k, int64_t width, const void *x, int64_t bf16, const int64_t *slot, void *rows) {
    size_t size = (size_t)width * (bf16 ? 2 : 4);
    for (long n = 0; n < tokens; n++)
        for (long j = 0; j < k; j++)
            memcpy((char *)rows + (size_t)slot[n * k + j] * size, (const char *)x + (size_t)n * size, size);
}

/* out (N, D) = sum over K of weights (N, K; null: 1) times row slot[n, k] of rows. */
void from_experts(int64_t tokens, int64_t k, int64_t width, const void *rows, int64_t bf16, const int64_t *slot,
                  const float *weights, void *out) {
    for (long n = 0; n < tokens; n++)
        for (long i = 0; i < width; i += VEC) {
            vec total = {0};
            for (long j = 0; j < k; j++) {
                vec value = load_as_float(rows, slot[n * k + j] * width + i, (int)bf16);
                if (weights) value *= weights[n * k + j];
                total += value;
            }
            store_as(out, n * width + i, (int)bf16, total);
        }
}

/* grad (N, D) of from_experts' result -> that of rows, and that of the weights (N, K). */
void from_experts_gradient(int64_t tokens, int64_t k, int64_t width, const void *rows, int64_t bf16,
                           const int64_t *slot, const float *weights, const void *grad, void *rows_grad,
                           float *weights_grad) {
    for (long n = 0; n < tokens; n++)
        for (long j = 0; j < k; j++) {
            long from = slot[n * k + j] * width;
            vec products = {0};
            for (long i = 0; i < width; i += VEC) {
                vec g = load_as_float(grad, n * width + i, (int)bf16);
                products += g * load_as_float(rows, from + i, (int)bf16);
                store_as(rows_grad, from + i, (int)bf16, g * weights[n * k + j]);
            }
            weights_grad[n * k + j] = sum(products);
        }
}

/* Raw logits (N, V) -> the loss of each row in nats, and in the logits' place its gradient: of the soft-capped logits
 * c = cap tanh(z / cap), -log softmax(c)[target]. Targets lie in [0, V); of others loss and gradient are 0. */
void capped_loss(int64_t rows, int64_t vocab, void *logits, int64_t bf16, const int64_t *targets, float cap, float *loss,
                 float *row) {
    for (long r = 0; r < rows; r++) {
        long from = r * vocab, target = targets[r];
        loss[r] = 0.0f;
        if (target < 0 || target >= vocab) {
            for (long i = 0; i < vocab; i += VEC) store_as(logits, from + i, (int)bf16, (vec){0});
            continue;
        }
        vec masses = {0};
        for (long i = 0; i < vocab; i += VEC) { /* cap (2 sigmoid - 1) is at most cap: no peak is taken off but cap */
            vec s = sigmoid(load_as_float(logits, from + i, (int)bf16) * (2.0f / cap));
            store(row + i, s);
            masses += exponential((s - 1.0f) * (2.0f * cap));
        }
        float mass = sum(masses), of_target = (row[target] - 1.0f) * (2.0f * cap);
        loss[r] = logf(mass) - of_target;
        float inverse = 1.0f / mass, at_target = row[target];
        for (long i = 0; i < vocab; i += VEC) {
            vec s = load(row + i), p = exponential((s - 1.0f) * (2.0f * cap)) * inverse;
            store_as(logits, from + i, (int)bf16, p * (4.0f * s * (1.0f - s)));
        }
        float p = expf(of_target) * inverse;
        set_number(logits, from + target, (int)bf16, (p - 1.0f) * 4.0f * at_target * (1.0f - at_target));
    }
}

/* Raw logits (N, V) become the softmax of the soft-capped ones. */
void capped_softmax(int64_t rows, int64_t vocab, void *logits, int64_t bf16, float cap, float *row) {
    for (long r = 0; r < rows; r++) {
        long from = r * vocab;
        vec masses = {0};
        for (long i = 0; i < vocab; i += VEC) {
            vec s = sigmoid(load_as_float(logits, from + i, (int)bf16) * (2.0f / cap));
            vec mass = exponential((s - 1.0f) * (2.0f * cap));
            store(row + i, mass);
            masses += mass;
        }
        float inverse = 1.0f / sum(masses);
        for (long i = 0; i < vocab; i += VEC) store_as(logits, from + i, (int)bf16, load(row + i) * inverse);
    }
}
