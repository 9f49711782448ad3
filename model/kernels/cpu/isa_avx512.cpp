// AVX-512 without BF16 products: Skylake to Ice Lake.
#include "ops.h"
#include "team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#include "isa_avx512.inc.h"

namespace dslite {
namespace {

struct Isa : Wide {
    // A BF16 value is the upper half of a float32.
    static inline Sum low(Pairs a) { return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16)); }
    static inline Sum high(Pairs a) {
        return _mm512_castsi512_ps(_mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
    }
    static inline Sum dot(Sum sum, Pairs a, Pairs b) {
        return _mm512_fmadd_ps(low(a), low(b), _mm512_fmadd_ps(high(a), high(b), sum));
    }
};

}  // namespace
}  // namespace dslite

#include "kernels.inc.h"

const dslite::Ops* dslite::ops_avx512() { return &kOps; }
#else
const dslite::Ops* dslite::ops_avx512() { return nullptr; }
#endif
