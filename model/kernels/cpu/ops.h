// What every instruction set offers. All matrices are BF16 and row-major; sums are kept in float32.
#pragma once

#include <cstdint>

namespace dslite {

using bf16 = uint16_t;

// One MLP, and the rows of the batch that want it.
struct Expert {
    const bf16* gate;     // (width, hidden)
    const bf16* up;       // (width, hidden)
    const bf16* down;     // (hidden, width)
    int64_t width;
    int64_t first, count; // its stretch of Experts::rows and Experts::weights
};

struct Experts {
    const Expert* experts;
    int64_t n_experts;
    const bf16* x;         // (tokens, hidden)
    const int64_t* rows;   // which token
    const float* weights;  // how much of it
    bf16* scratch;         // for every entry of `rows` the products gate · up: max width values each
    int64_t scratch_stride;
    float* out;            // (tokens, hidden)
    int64_t tokens, hidden;
};

// Attention of one token, absorbed: see attention.py.
struct Attention {
    const bf16* queries;   // (heads, nope + rope), rotated
    const bf16* kv_b;      // (heads, nope + value, latent)
    const bf16* rows;      // (length, latent + rope), neighbours `row_stride` values apart
    bf16* out;             // (heads, value)
    int64_t heads, nope, rope, value, latent, length, row_stride;
    float scale;
    char* scratch;         // attention_scratch bytes
};

struct Ops {
    // y (tokens, n) = x (tokens, k) · W (n, k) transposed, rounded to BF16.
    void (*linear)(const bf16* w, const bf16* x, bf16* y, int64_t n, int64_t k, int64_t tokens, int threads);
    // out = sum over the experts of weight · down(silu(gate(x)) · up(x)).
    void (*experts)(const Experts& job, int threads);
    int64_t (*attention_scratch)(const Attention& job, int threads);
    void (*attention)(const Attention& job, int threads);
    // y = x / rms(x) rounded, times weight rounded.
    void (*rms_norm)(const bf16* x, const bf16* weight, bf16* y, int64_t rows, int64_t width, float eps);
    // y (tokens, n) float32 = x (tokens, k) · W (n, k) transposed, every product in float32.
    void (*gate)(const bf16* w, const bf16* x, float* y, int64_t n, int64_t k, int64_t tokens);
};

// The most that a call may ask for: its small arrays lie on the stack.
constexpr int64_t kMostTokens = 16, kMostExperts = 512, kMostHeads = 256, kMostLatent = 1024;

// Values that every row width (hidden, expert width, latent, latent + rope, nope) must be a multiple of.
constexpr int64_t kStep = 32;

const Ops* ops_avx512_bf16();
const Ops* ops_avx512();
const Ops* ops_avx2();
const Ops* ops_portable();

}  // namespace dslite
