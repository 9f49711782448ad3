// Products with quantized weights (model/quantized.py says how they lie), and the structs that Python fills for them.
#pragma once

#include "ops.h"

namespace dslite {

// Panels of 16 rows, `stride` bytes from one to the next.
struct QuantizedMatrix {
    const char* data;
    int64_t stride, rows, columns, bits;  // of a value: 8 or 4
};

struct QuantizedExpert {
    QuantizedMatrix gate, up, down;
};

// y (tokens, rows) = x (tokens, columns) · W transposed, float32 or rounded to BF16; rows of x lie x_stride values
// apart. `threads` workers have `scratch` bytes each.
struct QuantizedLinear {
    QuantizedMatrix w;
    const bf16* x;
    int64_t x_stride, tokens;
    void* y;
    bool as_float;
};

// out (tokens, hidden) float32 = for each token the sum over experts `first` to `last` of its entries.
struct QuantizedExperts {
    const QuantizedExpert* experts;  // those in use
    const int64_t* first;            // entry at which each begins, and the end of the last
    int64_t n_experts;
    const bf16* x;  // (tokens, hidden)
    const int64_t* rows;  // token of each entry
    const float* weights;
    float* out;
    int64_t tokens, hidden, entries, width;  // the widest expert's
};

struct QuantizedOps {
    int64_t (*linear_scratch)(const QuantizedLinear& job, int threads);
    void (*linear)(const QuantizedLinear& job, char* scratch, int threads);
    int64_t (*experts_scratch)(const QuantizedExperts& job, int threads);
    void (*experts)(const QuantizedExperts& job, char* scratch, int threads);
};

const QuantizedOps* quantized_avx512();  // null where it was not compiled
const QuantizedOps* quantized_avx2();
const QuantizedOps* quantized_portable();

// The sixteen values of 4.5 bits.
alignas(16) constexpr int8_t kTable[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// w (rows, columns), rows row_stride values apart, into the panels of m.
void quantize_avx2(const bf16* w, int64_t row_stride, const QuantizedMatrix& m, int threads);
void quantize_portable(const bf16* w, int64_t row_stride, const QuantizedMatrix& m, int threads);

}  // namespace dslite
