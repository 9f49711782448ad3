// The operations that every instruction set implements, and the structs that Python fills (native.py, layer.py).
// Sums are float32.
#pragma once

#include <cstdint>

namespace dslite {

using bf16 = uint16_t;

// A weight (rows, columns). 16 bits of a value: BF16, row-major. 8 or 4: quantized (model/quantized.py says how), in
// panels of 16 rows, `stride` bytes from one to the next.
struct Matrix {
    const char* data;
    int64_t stride, rows, columns, bits;
};

// The matrices of an MLP: gate and up (width, hidden), down (hidden, width). Python keeps tables of these.
struct Mlp {
    Matrix gate, up, down;
};

// out = for each token the sum over its entries, (token, expert) pairs sorted by expert, of weight · expert(x).
struct Experts {
    const Mlp* experts;    // those in use
    const int64_t* first;  // entry at which each begins, and the end of the last
    int64_t n_experts;
    const bf16* x;          // (tokens, hidden)
    const int64_t* rows;    // token of each entry
    const float* weights;   // router weight of each entry
    float* out;             // (tokens, hidden)
    int64_t tokens, hidden, entries, width;  // width: the widest expert's
    bf16* products;         // (entries, width) of memory, unless the experts are quantized
    const bf16* residual;   // null, or (tokens, hidden): then `result` gets residual + out, each rounded
    bf16* result;
};

// y (tokens, n) = x (tokens, k) · W (n, k) transposed, rounded to BF16.
struct Linear {
    const bf16 *w, *x;
    bf16* y;
    int64_t n, k, tokens, x_stride;  // rows of x lie x_stride values apart
};

// y (tokens, heads, n) = for each head x (tokens, k) · W (n, k) transposed, rounded to BF16. Strides are in values.
struct HeadProducts {
    const bf16 *w, *x;
    bf16* y;
    int64_t heads, n, k, tokens, w_stride, x_stride, x_head_stride;
};

// A decoder layer for few tokens: what attention.py, moe.py and decoder_layer.py compute in many steps.
struct Layer {
    int64_t hidden, heads, nope, rope, value, latent, query_rank;  // query_rank 0: no query compression
    float eps, latent_eps, scale;
    const bf16 *input_norm, *q_a_norm, *kv_a_norm, *kv_b, *post_norm;
    Matrix q_a, q, kv_a, o; // all BF16, or all quantized, and the experts likewise
    const bf16* gate;       // (n_experts, hidden), or null for a dense layer
    int64_t n_experts, top_k;
    float scaling;
    const Mlp* experts;     // null: routed experts are computed elsewhere, and the layer ends behind the router
    const Mlp* shared;      // the shared experts or the dense layer's MLP; may be null
    int64_t* expert_counts; // how often each expert was chosen so far, to be increased; may be null
};

struct Step {
    const bf16* x;          // (tokens, hidden)
    const float* factors;   // (tokens, rope): cosine and sine of each pair
    bf16* const* entries;   // for each token the layer's cache of its sequence, (length, latent + rope)
    const int64_t* lengths; // entries there, the token's own included: it is written here
    int64_t tokens;
    bf16* out;              // (tokens, hidden): behind the layer, or behind attention where `experts` is null
    bf16* normed;           // where `experts` is null: the input of the experts, (tokens, hidden),
    int64_t* ids;           //   the experts of each token, (tokens, top_k),
    float* weights;         //   and their router weights
};

// Causal attention of many queries, the last of `length` tokens. Expanded: one query per token and head; keys and
// values of every head are made from the latents. Absorbed: one head, whose key and value is the cache entry, read by
// all queries of a token.
struct AttentionJob {
    const bf16* queries;    // (queries, heads, nope + rope), rotated; `sharing` neighbours belong to one token
    const bf16* kv_b;       // expanded: (heads, nope + value, latent); absorbed: null
    const bf16 *keys, *values;  // expanded: the latents, and null; absorbed: (length, nope) and (length, value)
    const bf16* rotary;     // (length, rope): the key that all heads share, rows `rotary_stride` values apart
    bf16* out;              // (queries, heads, value)
    int64_t n_queries, sharing, length, heads, nope, rope, value, latent;
    int64_t stride, rotary_stride;  // values between rows of keys and of values, and of `rotary`
    float scale;
};

struct QuantizedOps;  // quantized.h

struct Ops {
    void (*linear)(const Linear& job, int threads);
    void (*by_head)(const HeadProducts& job, int threads);
    // y (tokens, n) float32 = norm(x) (tokens, k) · W (n, k) transposed, rounded to BF16 on the way; normed is (tokens,
    // k).
    void (*head)(const bf16* w, const bf16* norm, float eps, const bf16* x, bf16* normed, float* y, int64_t n,
                 int64_t k, int64_t tokens, int threads);
    // out = sum over the experts of weight · down(silu(gate(x)) · up(x)).
    void (*experts)(const Experts& job, int threads);
    int64_t (*layer_scratch)(const Layer& layer, const Step& step, int threads);
    // Layers one behind the other: step.x and step.out belong to the first and the last, step.entries has `tokens`
    // addresses for each layer, and scratch is the greatest of the layers' and two times (tokens, hidden). `quantized`
    // multiplies with quantized weights.
    void (*layers)(const Layer* layers, int64_t n_layers, const Step& step, const QuantizedOps* quantized,
                   char* scratch, int threads);
    int64_t (*attention_scratch)(const AttentionJob& job, int threads);
    void (*attention)(const AttentionJob& job, char* scratch, int threads);
    int64_t (*panel_bytes)(int64_t depth);  // scratch of what follows, for one thread; depth: hidden, or k
    // As experts and linear, for any number of rows and without a residual.
    void (*many_experts)(const Experts& job, char* scratch, int threads);
    void (*many_linear)(const Linear& job, char* scratch, int threads);
    // y (tokens, width) = x / rms(x), rounded, times weight (width), rounded; rows of x lie x_stride values apart.
    void (*norms)(const bf16* x, int64_t x_stride, const bf16* weight, bf16* y, int64_t width, int64_t tokens,
                  float eps, int threads);
};

// Limits of a call: its small arrays lie on the stack.
constexpr int64_t kMaxTokens = 16, kMaxExperts = 512, kMaxHeads = 256, kMaxLatent = 1024;

// What every row width (hidden, expert width, latent, latent + rope, nope) must be a multiple of.
constexpr int64_t kStep = 32;

// The structs that Python fills, in the order in which dslite_sizeof numbers them.
enum StructKind { kMatrixStruct, kMlpStruct, kLayerStruct, kStepStruct, kAttentionJobStruct };

const Ops* ops_avx512_bf16();
const Ops* ops_avx512();
const Ops* ops_avx2();
const Ops* ops_portable();

}  // namespace dslite
