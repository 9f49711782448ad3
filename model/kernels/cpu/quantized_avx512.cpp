// Quantized products with AVX-512 VNNI and VBMI: Ice Lake and Zen 4 onwards.
#include "quantized_tokens.inc.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,avx2,fma,f16c")

namespace dslite {
namespace {

constexpr int64_t kAhead = 4096;  // bytes that are fetched ahead: more than the hardware does
constexpr int kTile = 6;  // tokens of two panels: 12 integer sums and 12 float sums in registers

inline __m512i four(const int8_t* x) {
    int value;
    __builtin_memcpy(&value, x, 4);
    return _mm512_set1_epi32(value);
}

inline __m512 half_scales(const char* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}

// The eight vectors of a group, unsigned: value + 128. vpermb looks at six bits of an index: with the table four times
// over, the bits above a nibble do not matter and need no mask.
template <int Bits> inline void widen(const char* w, __m512i* values) {
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
    const __m512i signed_table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kTable)));
    const __m512i table = _mm512_xor_si512(flip, signed_table);
    for (int q = 0; q < Bits; ++q) {
        const __m512i bytes = _mm512_loadu_si512(w + 64 * q);
        if (Bits == 8) {
            values[q] = _mm512_xor_si512(bytes, flip);
        } else {
            values[2 * q] = _mm512_permutexvar_epi8(bytes, table);
            values[2 * q + 1] = _mm512_permutexvar_epi8(_mm512_srli_epi16(bytes, 4), table);
        }
    }
}

// (kMagic + sum) · s - kMagic · s: one operation converts and scales.
inline __m512 scaled(__m512i sum, float scale, __m512 weight_scales, __m512 total) {
    const __m512 s = _mm512_set1_ps(scale), less = _mm512_mul_ps(s, _mm512_set1_ps(-kMagic));
    return _mm512_fmadd_ps(_mm512_fmadd_ps(_mm512_castsi512_ps(sum), s, less), weight_scales, total);
}

struct Quantized {
    template <int Bits, class Done>
    static void multiply(const char* w0, const char* w1, const Tokens& tokens, int64_t first, int64_t count,
                         char* scratch, Done done) {
        alignas(64) float sums[kTile][32];
        if (count == 1) {
            one<Bits>(w0, w1, tokens, first, sums[0]);
            done(0, sums[0]);
            return;
        }
        // Widened panels, of eight bits too (no split loads, no xor), lie in the second cache.
        char* wide = scratch + (64 - reinterpret_cast<uintptr_t>(scratch) % 64) % 64;
        float* scales = reinterpret_cast<float*>(wide + 1024 * groups_of(tokens));
        widen_panels<Bits>(w0, w1, groups_of(tokens), wide, scales);
        static constexpr decltype(&tile<1>) kTiles[kTile] = {tile<1>, tile<2>, tile<3>, tile<4>, tile<5>, tile<6>};
        for (int64_t t = 0, n; t < count; t += n) {
            n = count - t < kTile ? count - t : kTile;
            kTiles[n - 1](wide, scales, tokens, first + t, sums[0]);
            for (int64_t i = 0; i < n; ++i) done(t + i, sums[i]);
        }
    }

    template <int Bits>
    __attribute__((noinline)) static void one(const char* w0, const char* w1, const Tokens& tokens, int64_t token,
                                              float* out) {
        const int64_t before = token * (tokens.width / 32);
        for (int p = 0; p < 2; ++p) {  // one behind the other: they often lie so, and are one stream then
            const int8_t* x = tokens.values + token * tokens.width;
            const char* block = p == 0 ? w0 : w1;
            __m512 sums = _mm512_setzero_ps();
            for (int64_t g = 0; g < groups_of(tokens); g += 2, x += 64, block += 64 + 128 * Bits) {
                for (int line = 0; line < 2 * Bits + 1; ++line) _mm_prefetch(block + kAhead + 64 * line, _MM_HINT_T0);
                for (int half = 0; half < 2; ++half) {
                    __m512i values[8], even = _mm512_set1_epi32(tokens.starts[before + g + half]);
                    __m512i odd = _mm512_setzero_si512();
                    widen<Bits>(block + 64 + half * 64 * Bits, values);
                    const int8_t* at = x + half * 32;
                    for (int q = 0; q < 8; q += 2) {
                        even = _mm512_dpbusd_epi32(even, values[q], four(at + 4 * q));
                        odd = _mm512_dpbusd_epi32(odd, values[q + 1], four(at + 4 * q + 4));
                    }
                    sums = scaled(_mm512_add_epi32(even, odd), tokens.scales[before + g + half],
                                  half_scales(block + 32 * half), sums);
                }
            }
            _mm512_storeu_ps(out + 16 * p, sums);
        }
    }

    // Two panels group by group beside each other: 2 · 512 bytes of values, 2 · 16 scales.
    template <int Bits>
    static void widen_panels(const char* w0, const char* w1, int64_t groups, char* wide, float* scales) {
        for (int p = 0; p < 2; ++p)
            for (int64_t g = 0; g < groups; ++g) {
                const char* block = (p == 0 ? w0 : w1) + g / 2 * (64 + 128 * Bits);
                for (int line = 0; line < Bits; ++line)
                    _mm_prefetch(block + kAhead + g % 2 * 64 * Bits + 64 * line, _MM_HINT_T0);
                __m512i values[8];
                widen<Bits>(block + 64 + g % 2 * 64 * Bits, values);
                for (int q = 0; q < 8; ++q) _mm512_store_si512(wide + (2 * g + p) * 512 + 64 * q, values[q]);
                _mm512_store_ps(scales + (2 * g + p) * 16, half_scales(block + g % 2 * 32));
            }
    }

    template <int T>
    static void tile(const char* wide, const float* weight_scales, const Tokens& tokens, int64_t token, float* out) {
        const int64_t width = tokens.width, groups = width / 32;
        const int8_t* x = tokens.values + token * width;
        const float* scales = tokens.scales + token * groups;
        const int32_t* starts = tokens.starts + token * groups;
        __m512 sums[T][2] = {};
        for (int64_t g = 0; g < groups_of(tokens); ++g, x += 32, wide += 1024, weight_scales += 32) {
            __m512i totals[T][2];
            for (int t = 0; t < T; ++t) totals[t][0] = totals[t][1] = _mm512_set1_epi32(starts[t * groups + g]);
#pragma GCC unroll 8
            for (int q = 0; q < 8; ++q) {
                const __m512i first = _mm512_load_si512(wide + 64 * q);
                const __m512i second = _mm512_load_si512(wide + 512 + 64 * q);
                for (int t = 0; t < T; ++t) {
                    const __m512i bytes = four(x + t * width + 4 * q);
                    totals[t][0] = _mm512_dpbusd_epi32(totals[t][0], first, bytes);
                    totals[t][1] = _mm512_dpbusd_epi32(totals[t][1], second, bytes);
                }
            }
            for (int t = 0; t < T; ++t)
                for (int p = 0; p < 2; ++p)
                    sums[t][p] = scaled(totals[t][p], scales[t * groups + g], _mm512_load_ps(weight_scales + 16 * p),
                                        sums[t][p]);
        }
        for (int t = 0; t < T; ++t)
            for (int p = 0; p < 2; ++p) _mm512_store_ps(out + (2 * t + p) * 16, sums[t][p]);
    }
};

}  // namespace
}  // namespace dslite

#include "quantized.inc.h"

const dslite::QuantizedOps* dslite::quantized_avx512() { return &kQuantizedOps; }
#else
const dslite::QuantizedOps* dslite::quantized_avx512() { return nullptr; }
#endif
