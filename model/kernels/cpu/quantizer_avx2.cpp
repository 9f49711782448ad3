// The quantizer with AVX2, without FMA.
#if defined(__x86_64__)
#pragma GCC target("avx2")
#include "quantizer.inc.h"

void dslite::quantize_avx2(const bf16* w, int64_t row_stride, const Matrix& m, int threads) {
    quantize(w, row_stride, m, threads);
}
#endif
