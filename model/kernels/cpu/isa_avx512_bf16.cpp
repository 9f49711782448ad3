// AVX-512 with BF16 products: Zen 4 and Cooper Lake onwards.
#include "ops.h"
#include "team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")
#include "isa_avx512.inc.h"

namespace dslite {
namespace {

struct Isa : Wide {
    static inline Sum dot(Sum sum, Pairs a, Pairs b) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }
};

}  // namespace
}  // namespace dslite

#include "kernels.inc.h"

const dslite::Ops* dslite::ops_avx512_bf16() { return &kOps; }
#else
const dslite::Ops* dslite::ops_avx512_bf16() { return nullptr; }
#endif
