// Quantized products in plain C++, for every other processor.
#include "quantized_tokens.inc.h"
#include "scalars.inc.h"

namespace dslite {
namespace {

struct Quantized {
    template <int Bits, class Done>
    static void multiply(const char* w0, const char* w1, const Tokens& tokens, int64_t first, int64_t count, char*,
                         Done done) {
        for (int64_t t = 0; t < count; ++t) {
            const int8_t* values = tokens.values + (first + t) * tokens.width;
            const float* scales = tokens.scales + (first + t) * (tokens.width / 32);
            float sums[32] = {0};
            for (int64_t g = 0; g < groups_of(tokens); ++g)
                for (int p = 0; p < 2; ++p) {
                    const char* block = (p == 0 ? w0 : w1) + g / 2 * (64 + 128 * Bits);
                    group<Bits>(block, g % 2, values + g * 32, scales[g], sums + 16 * p);
                }
            done(t, sums);
        }
    }

    template <int Bits> static void group(const char* block, int64_t half, const int8_t* x, float scale, float* sums) {
        const uint8_t* w = reinterpret_cast<const uint8_t*>(block) + 64 + half * 64 * Bits;
        int32_t totals[16] = {0};
        for (int q = 0; q < 8; ++q)
            for (int r = 0; r < 16; ++r)
                for (int i = 0; i < 4; ++i) {
                    int32_t value;
                    if (Bits == 8) {
                        value = static_cast<int8_t>(w[64 * q + 4 * r + i]);
                    } else {
                        const uint8_t both = w[64 * (q / 2) + 4 * r + i];
                        value = kTable[q % 2 == 0 ? both & 15 : both >> 4];
                    }
                    totals[r] += value * x[4 * q + i];
                }
        for (int r = 0; r < 16; ++r) {
            uint16_t own;
            __builtin_memcpy(&own, block + half * 32 + 2 * r, 2);
            sums[r] += static_cast<float>(totals[r]) * (scale * half_to_float(own));
        }
    }
};

}  // namespace
}  // namespace dslite

#include "quantized.inc.h"

const dslite::QuantizedOps* dslite::quantized_portable() { return &kQuantizedOps; }
