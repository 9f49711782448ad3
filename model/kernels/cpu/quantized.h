// Products with quantized weights (model/quantized.py says how they lie).
#pragma once

#include "ops.h"
#include "team.h"

namespace dslite {

// y (tokens, rows) = x (tokens, columns) · W transposed, float32 or rounded to BF16; rows of x lie x_stride values
// apart. `threads` workers have `scratch` bytes each.
struct QuantizedLinear {
    Matrix w;
    const bf16* x;
    int64_t x_stride, tokens;
    void* y;
    bool as_float;
};

// Tokens in int8, `width` values a row, of which a product reads the first `used` (0: all). Behind the last column are
// zeros, up to a whole block. `starts`: what the int32 sum of a group begins with where weights are taken as unsigned,
// their value + 128; the bits of a finished sum are those of the float kMagic + sum.
struct Tokens {
    int8_t* values;
    int8_t* magnitudes;
    float* scales;
    int32_t* starts;
    int64_t width, used;
};

// Memory of a product with quantized experts.
struct QuantizedExpertsMemory {
    Tokens in;      // (tokens, hidden): filled before
    Tokens sorted;  // (entries, hidden): rows of an expert one behind the other
    Tokens inner;   // (entries, width)
    float* gated;   // (workers, entries, 32)
    char* own;      // of each worker, worker_scratch(the wider of hidden and width)
};

struct QuantizedExpertsQueues {
    Blocks entries, in, out;
    Barrier sorted, gated;
};

struct QuantizedOps {
    int64_t (*linear_scratch)(const QuantizedLinear& job, int threads);
    void (*linear)(const QuantizedLinear& job, char* scratch, int threads);
    int64_t (*experts_scratch)(const Experts& job, int threads);
    void (*experts)(const Experts& job, char* scratch, int threads);
    // For a team that exists already, by one of its workers:
    void (*quantize_row)(const Tokens& to, int64_t row, const bf16* x, int64_t columns);
    // sums (count, 32) of 32 rows of W, of two panels, and the tokens from `first` on.
    void (*multiply)(const Matrix& w, int64_t pair, const Tokens& x, int64_t first, int64_t count, char* own,
                     float* sums);
    void (*compute_experts)(const Experts& job, const QuantizedExpertsMemory& memory, QuantizedExpertsQueues& queues,
                            int worker, int workers);
};

const QuantizedOps* quantized_avx512();  // null where it was not compiled
const QuantizedOps* quantized_avx2();
const QuantizedOps* quantized_portable();

// The sixteen values of 4.5 bits.
alignas(16) constexpr int8_t kTable[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// w (rows, columns), rows row_stride values apart, into the panels of m.
void quantize_avx2(const bf16* w, int64_t row_stride, const Matrix& m, int threads);
void quantize_portable(const bf16* w, int64_t row_stride, const Matrix& m, int threads);

}  // namespace dslite
