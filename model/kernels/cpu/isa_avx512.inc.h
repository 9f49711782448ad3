// What both kinds of AVX-512 share.

namespace dslite {
namespace {

struct Wide {
    using Sum = __m512;
    using Pairs = __m512i;
    static constexpr int64_t kLanes = 16, kInterleaved = 4;
    static constexpr int kTokenTile = 6, kHeadTile = 4, kQueryTile = 6;

    static inline Sum zero() { return _mm512_setzero_ps(); }
    static inline Pairs load(const bf16* p) { return _mm512_loadu_si512(p); }
    static inline Sum load_sum(const float* p) { return _mm512_loadu_ps(p); }
    static inline void store_pairs(bf16* p, Pairs pairs) { _mm512_storeu_si512(p, pairs); }
    static inline void store(float* p, Sum sum) { _mm512_storeu_ps(p, sum); }
    static inline Sum add(Sum a, Sum b) { return _mm512_add_ps(a, b); }
    static inline Sum scale_add(Sum a, float factor, Sum b) { return _mm512_fmadd_ps(a, _mm512_set1_ps(factor), b); }
    static inline void prefetch(const bf16* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }
    static inline void prefetch_far(const bf16* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }
    static inline float total(Sum sum) { return _mm512_reduce_add_ps(sum); }
    static inline Sum greater(Sum a, Sum b) { return _mm512_max_ps(a, b); }
    static inline float greatest(Sum sum) { return _mm512_reduce_max_ps(sum); }

    static inline Pairs broadcast_pair(const bf16* p) {
        int pair;
        __builtin_memcpy(&pair, p, 4);
        return _mm512_set1_epi32(pair);
    }

    static inline void interleave(Pairs a, Pairs b, Pairs* low, Pairs* high) {
        *low = _mm512_unpacklo_epi16(a, b);
        *high = _mm512_unpackhi_epi16(a, b);
    }

    // Four pairs to all quarters.
    static inline Pairs broadcast_four(const bf16* p) {
        return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }

    // Four pairs of each of the rows 0, 4, 8 and 12.
    static inline Pairs collect(const bf16* const* rows, int64_t at) {
        const auto four = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + at)); };
        __m512i all = _mm512_castsi128_si512(four(0));
        all = _mm512_mask_broadcast_i32x4(all, 0x00f0, four(4));
        all = _mm512_mask_broadcast_i32x4(all, 0x0f00, four(8));
        return _mm512_mask_broadcast_i32x4(all, 0xf000, four(12));
    }

    // The totals of each quarter of four sums: those of the first quarters, then those of the second, and so on.
    static inline Sum quarter_totals(const Sum* sums) {
        const Sum ab = add(_mm512_unpacklo_ps(sums[0], sums[1]), _mm512_unpackhi_ps(sums[0], sums[1]));
        const Sum cd = add(_mm512_unpacklo_ps(sums[2], sums[3]), _mm512_unpackhi_ps(sums[2], sums[3]));
        const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        return add(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }

    // The totals of four sums.
    static inline void totals(const Sum* sums, float* out) {
        const Sum abcd = quarter_totals(sums);
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
    }
};

}  // namespace
}  // namespace dslite
