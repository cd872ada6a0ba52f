/* Models, rows and inputs of random sizes and bits through small_model.c. */

#include "fuzz.h"
#include "small_model.c"

enum { ROWS = 4 };

static const float *weights(long count, int how) { return floats(count, how, 0.3f); }

static Layer random_layer(const Model *model, int how) {
    long width = model->hidden_size, experts = model->experts, inner = model->expert_width;
    Layer layer = {0};
    do layer.kv_heads = between(1, model->heads);
    while (model->heads % layer.kv_heads || model->heads / layer.kv_heads > 16);
    long d = layer.head_dim = ONE_OF(32, 64, 96);
    layer.window = ONE_OF(-1, 0, 1, 5, 70, 1000);
    layer.keys_are_values = between(0, 1);
    layer.projections = weights((model->heads + (2 - layer.keys_are_values) * layer.kv_heads) * d * width, how);
    layer.out = weights(model->heads * d * width, how);
    layer.dense_gate = weights(width * model->dense_width, how);
    layer.dense_up = weights(width * model->dense_width, how);
    layer.dense_down = weights(width * model->dense_width, how);
    layer.router = weights(padded(experts) * width, how);
    layer.expert_gate = weights(experts * inner * width, how);
    layer.expert_up = weights(experts * inner * width, how);
    layer.expert_down = weights(experts * inner * width, how);
    layer.query_norm = weights(d, how);
    layer.key_norm = weights(d, how);
    layer.attention_norm = weights(width, how);
    layer.dense_norm = weights(width, how);
    layer.expert_norm = weights(width, how);
    layer.mlp_norm = weights(width, how);
    layer.expert_scale = weights(experts, how);
    for (int i = 0; i < 2; i++) layer.scalars[i] = how == ANY_BITS ? odd() : 0.7f;
    return layer;
}

static void head(const Model *model, const float *hidden, long tokens, int how, long threads, uint64_t seed) {
    long vocabulary = model->vocab_size, width = model->hidden_size;
    float *temperatures = floats(tokens, CALM, 1.0f);
    double *uniform = between(0, 3) ? bytes((size_t)tokens * sizeof *uniform) : 0;
    int wrong = 0;
    for (long t = 0; t < tokens; t++) {
        float temperature = temperatures[t];
        temperatures[t] = between(0, 15) ? fabsf(temperature) : how == CALM ? 1e-40f : odd();
        wrong |= !(temperatures[t] >= 0 && temperatures[t] < INFINITY);
        if (!uniform) continue;
        uniform[t] = between(0, 31) ? unit() : how == CALM ? 1 - 0x1p-53 : (double)odd();
        wrong |= !(uniform[t] >= 0 && uniform[t] < 1);
    }
    float cap = how == ANY_BITS ? odd() : (float)ONE_OF(30, 1, 1000);
    Outputs outputs = {
        bytes((size_t)tokens * 8), bytes((size_t)tokens * 8), bytes((size_t)tokens * 4), bytes((size_t)tokens * 4),
        bytes((size_t)tokens * 4), bytes((size_t)tokens * 4), 0, 0,
    };
    if (between(0, 1)) outputs.soft = floats(tokens * width, ANY_BITS, 1);
    if (between(0, 1)) outputs.sigmoids = floats(tokens * vocabulary, ANY_BITS, 1);
    float *scratch = floats(threads * predict_scratch_size(vocabulary), ANY_BITS, 1);
    int64_t status = predict(tokens, width, vocabulary, hidden, weights(vocabulary * width, how), model->embedding, cap,
                             temperatures, uniform, 5.0f, &outputs, threads, scratch);
    CHECK((status >= 0) == wrong && status < tokens && status >= NOT_FINITE);
    if (status >= 0) return;
    for (long t = 0; t < tokens; t++) {
        CHECK(outputs.argmax[t] >= 0 && outputs.argmax[t] < vocabulary);
        CHECK(outputs.sample[t] >= 0 && outputs.sample[t] < vocabulary);
        if (status == DONE) CHECK(outputs.sample_probability[t] > 0 && outputs.argmax_probability[t] > 0);
    }
    if (how == CALM) CHECK(status == (all_finite(hidden, tokens * width) ? DONE : NOT_FINITE));
    if (status == NOT_FINITE) return;
    CHECK(all_finite(outputs.entropy, tokens) && all_finite(outputs.argmax_probability, tokens));
    if (outputs.soft) CHECK(all_finite(outputs.soft, tokens * width));
}

static void one_case(uint64_t seed) {
    int how = (int)between(CALM, ANY_BITS);
    Model model = {
        .vocab_size = ONE_OF(64, 128, 192), .hidden_size = ONE_OF(32, 64, 96), .heads = ONE_OF(1, 2, 3, 4, 6, 16),
        .dense_width = ONE_OF(32, 96), .experts = between(1, 32), .expert_width = ONE_OF(32, 64),
        .layer_count = between(1, 3), .eps = 1e-6f, .embedding_scale = 8.0f,
    };
    model.top_k = between(1, between(0, 3) && model.experts > 4 ? 4 : model.experts);
    long width = model.hidden_size, causal = between(0, 1), rows = between(1, ROWS), tokens = 0, longest = 0;
    Layer layers[3], of_causal[3];
    for (long i = 0; i < model.layer_count; i++) {
        layers[i] = random_layer(&model, how == ONE_ODD && between(0, 1) ? CALM : how);
        model.query_stride = larger_of(model.query_stride, model.heads * layers[i].head_dim);
    }
    model.layers[0] = model.layers[1] = layers;
    model.embedding = weights(model.vocab_size * width, how);
    model.final_norm = weights(width, how);
    model.conditioning_norm = weights(width, how);
    model.conditioning_gate = weights(width * model.dense_width, how);
    model.conditioning_up = weights(width * model.dense_width, how);
    model.conditioning_down = weights(width * model.dense_width, how);

    Segment segments[2 * ROWS], *segment = segments;
    LayerCache caches[ROWS][3];
    for (long r = 0; r < rows; r++) {
        long count = rows == 1 ? ONE_OF(1, 2, 63, 64, 65, 130, 257) : ONE_OF(1, 7, 33, 65), position = between(0, 40);
        long canvas = causal && between(0, 1) ? between(0, count - 1) : 0; /* behind a causal row's tokens */
        *segment++ = (Segment){tokens, count - canvas, position, causal, caches[r]};
        if (canvas) *segment++ = (Segment){tokens + count - canvas, canvas, position + count - canvas, 0, caches[r]};
        tokens += count;
        longest = larger_of(longest, position + count);
        for (long i = 0; i < model.layer_count; i++) {
            const Layer *layer = layers + i;
            long first = layer->window < 0 ? 0 : larger_of(0, position - layer->window);
            LayerCache *cache = caches[r] + i;
            cache->base = between(0, first);
            cache->capacity = position + count - cache->base + between(0, 2);
            cache->keys = floats(layer->kv_heads * cache->capacity * layer->head_dim, how, 1);
            cache->values = floats(layer->kv_heads * cache->capacity * layer->head_dim, how, 1);
        }
    }
    for (long i = 0; i < model.layer_count; i++) {
        layers[i].cos = floats(longest * layers[i].head_dim, CALM, 1);
        layers[i].sin = floats(longest * layers[i].head_dim, CALM, 1);
        of_causal[i] = layers[i];
        of_causal[i].dense_gate = weights(width * model.dense_width, how);
        of_causal[i].query_norm = weights(layers[i].head_dim, how);
    }
    if (between(0, 1)) model.layers[1] = of_causal; /* an adapter parts the modes */
    long threads = between(1, 3), outside = between(0, 9) ? -1 : between(0, tokens - 1);
    int64_t *ids = bytes((size_t)tokens * sizeof *ids);
    for (long t = 0; t < tokens; t++) ids[t] = between(0, model.vocab_size - 1);
    if (outside >= 0) ids[outside] = between(0, 1) ? -1 : (int64_t)(bits() | 1ull << 40);
    const float *soft = !causal && between(0, 1) ? floats(tokens * width, how, 1) : 0;
    float *x = floats(tokens * width, ANY_BITS, 1);
    float *queries = floats(tokens * model.query_stride, ANY_BITS, 1);
    Watch watch = {0};
    if (between(0, 1)) {
        long layered = model.layer_count * tokens;
        watch.queries = floats(layered * model.query_stride, ANY_BITS, 1);
        watch.probabilities = floats(layered * model.experts, ANY_BITS, 1);
        watch.weights = floats(layered * model.top_k, ANY_BITS, 1);
        watch.chosen = bytes((size_t)(layered * model.top_k) * sizeof *watch.chosen);
    }
    int64_t size = scratch_size(&model, longest);
    float *scratch = floats(threads * size, ANY_BITS, 1);
    CHECK(forward(&model, 0, ids, soft, segments, x, queries, &watch, threads, scratch, size) == DONE);
    int64_t status = forward(&model, tokens, ids, soft, segments, x, queries, &watch, threads, scratch, size);
    if (outside >= 0) {
        CHECK(status == outside);
        return;
    }
    CHECK(status == (all_finite(x, tokens * width) ? DONE : NOT_FINITE));
    if (how == CALM) CHECK(status == DONE);
    for (long place = 0; watch.chosen && place < model.layer_count * tokens * model.top_k; place += model.top_k)
        for (long i = 0; i < model.top_k; i++) {
            CHECK(watch.chosen[place + i] >= 0 && watch.chosen[place + i] < model.experts);
            for (long j = 0; j < i; j++) CHECK(watch.chosen[place + i] != watch.chosen[place + j]);
        }
    head(&model, between(0, 1) ? x : floats(tokens * width, how, 3), tokens, how, threads, seed);
}
