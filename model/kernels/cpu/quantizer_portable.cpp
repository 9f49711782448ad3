// The quantizer in plain C++.
#include "quantizer.inc.h"

void dslite::quantize_portable(const bf16* w, int64_t row_stride, const Matrix& m, int threads) {
    quantize(w, row_stride, m, threads);
}
