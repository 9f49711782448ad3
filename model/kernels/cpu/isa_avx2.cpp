// AVX2 with FMA: every x86-64 desktop since 2013.
#include "ops.h"
#include "team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma")

namespace dslite {
namespace {

struct Isa {
    using Sum = __m256;
    using Pairs = __m256i;
    static constexpr int64_t kLanes = 8, kInterleaved = 4;
    static constexpr int kTokenTile = 2, kHeadTile = 2, kQueryTile = 2;

    static inline Sum zero() { return _mm256_setzero_ps(); }
    static inline Pairs load(const bf16* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static inline Sum load_sum(const float* p) { return _mm256_loadu_ps(p); }
    static inline void store_pairs(bf16* p, Pairs pairs) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), pairs); }
    static inline void store(float* p, Sum sum) { _mm256_storeu_ps(p, sum); }
    static inline Sum add(Sum a, Sum b) { return _mm256_add_ps(a, b); }
    static inline Sum greater(Sum a, Sum b) { return _mm256_max_ps(a, b); }
    static inline Sum scale_add(Sum a, float factor, Sum b) { return _mm256_fmadd_ps(a, _mm256_set1_ps(factor), b); }
    static inline void prefetch(const bf16* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }
    static inline void prefetch_far(const bf16* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }

    // A BF16 value is the upper half of a float32.
    static inline Sum low(Pairs a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
    static inline Sum high(Pairs a) {
        return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
    }
    static inline Sum dot(Sum sum, Pairs a, Pairs b) {
        return _mm256_fmadd_ps(low(a), low(b), _mm256_fmadd_ps(high(a), high(b), sum));
    }

    static inline Pairs broadcast_pair(const bf16* p) {
        int pair;
        __builtin_memcpy(&pair, p, 4);
        return _mm256_set1_epi32(pair);
    }

    static inline void interleave(Pairs a, Pairs b, Pairs* low, Pairs* high) {
        *low = _mm256_unpacklo_epi16(a, b);
        *high = _mm256_unpackhi_epi16(a, b);
    }

    // Four pairs to both halves.
    static inline Pairs broadcast_four(const bf16* p) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }

    // Four pairs of each of the rows 0 and 4.
    static inline Pairs collect(const bf16* const* rows, int64_t at) {
        const auto four = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + at)); };
        return _mm256_setr_m128i(four(0), four(4));
    }

    // The totals of each half of four sums: those of the first halves, then those of the second.
    static inline Sum quarter_totals(const Sum* sums) {
        return _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
    }

    // The totals of four sums.
    static inline void totals(const Sum* sums, float* out) {
        const Sum all = quarter_totals(sums);
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
    }

    static inline float greatest(Sum sum) {
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    }

    static inline float total(Sum sum) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
};

}  // namespace
}  // namespace dslite

#include "kernels.inc.h"

const dslite::Ops* dslite::ops_avx2() { return &kOps; }
#else
const dslite::Ops* dslite::ops_avx2() { return nullptr; }
#endif
