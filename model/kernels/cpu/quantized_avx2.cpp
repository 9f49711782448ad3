// Quantized products with AVX2.
#include "quantized_tokens.inc.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c")

namespace dslite {
namespace {

constexpr int64_t kAhead = 2048;  // bytes that are fetched ahead: more than the hardware does

// vpmaddubsw adds pairs in int16 and saturates above 32,767: value + 128 would (255 · 127 · 2), |x| times the weight
// with the sign of x does not (127 · 127 · 2), as no weight is -128. A panel is two halves of eight rows.
struct Quantized {
    template <int Bits, class Done>
    static void multiply(const char* w0, const char* w1, const Tokens& tokens, int64_t first, int64_t count, char*,
                         Done done) {
        for (int64_t t = 0; t < count; ++t) {
            float sums[32];
            one<Bits>(w0, w1, tokens, first + t, sums);
            done(t, sums);
        }
    }

    template <int Bits>
    __attribute__((noinline)) static void one(const char* w0, const char* w1, const Tokens& tokens, int64_t token,
                                              float* out) {
        const int8_t* x = tokens.values + token * tokens.width;
        const int8_t* magnitudes = tokens.magnitudes + token * tokens.width;
        const float* scales = tokens.scales + token * (tokens.width / 32);
        const __m256i ones = _mm256_set1_epi16(1), mask = _mm256_set1_epi8(15);
        const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kTable)));
        __m256 sums[4] = {};
        for (int64_t g = 0; g < groups_of(tokens); ++g, x += 32, magnitudes += 32) {
            const int64_t at = g / 2 * (64 + 128 * Bits), half = g % 2;
            const char* panel[2] = {w0 + at, w1 + at};
            for (int p = 0; p < 2; ++p)
                for (int line = 0; line < Bits + (half != 0); ++line)
                    _mm_prefetch(panel[p] + half * 64 * Bits + kAhead + 64 * line, _MM_HINT_T0);
            __m256i totals[4] = {};
#pragma GCC unroll 8
            for (int q = 0; q < 8; ++q) {
                int plain, absolute;
                __builtin_memcpy(&plain, x + 4 * q, 4);
                __builtin_memcpy(&absolute, magnitudes + 4 * q, 4);
                const __m256i signs = _mm256_set1_epi32(plain), sizes = _mm256_set1_epi32(absolute);
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) {
                    const char* place = panel[i / 2] + 64 + half * 64 * Bits + q * Bits / 8 * 64 + i % 2 * 32;
                    __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(place));
                    if (Bits == 4)
                        w = _mm256_shuffle_epi8(table, _mm256_and_si256(q % 2 ? _mm256_srli_epi16(w, 4) : w, mask));
                    const __m256i pairs = _mm256_maddubs_epi16(sizes, _mm256_sign_epi8(w, signs));
                    totals[i] = _mm256_add_epi32(totals[i], _mm256_madd_epi16(pairs, ones));
                }
            }
            const __m256 scale = _mm256_set1_ps(scales[g]);
            for (int i = 0; i < 4; ++i) {
                const char* place = panel[i / 2] + half * 32 + i % 2 * 16;
                const __m256 own = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(place)));
                sums[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(totals[i]), _mm256_mul_ps(scale, own), sums[i]);
            }
        }
        for (int i = 0; i < 4; ++i) _mm256_storeu_ps(out + 8 * i, sums[i]);
    }
};

}  // namespace
}  // namespace dslite

#include "quantized.inc.h"

const dslite::QuantizedOps* dslite::quantized_avx2() { return &kQuantizedOps; }
#else
const dslite::QuantizedOps* dslite::quantized_avx2() { return nullptr; }
#endif
