// Tokens in int8, as the products with quantized weights read them.
#pragma once

#include "quantized.h"

namespace dslite {
namespace {

constexpr float kMagic = 12582912.0f;  // 1.5 · 2^23: the last bit of a float of this size is worth 1
constexpr int32_t kMagicBits = 0x4b400000;

// `width` values a row, of which a product reads the first `used` (0: all). `starts`: what the int32 sum of a group
// begins with where weights are taken as unsigned, their value + 128; the bits of a finished sum are those of the float
// kMagic + sum.
struct Tokens {
    int8_t* values;
    int8_t* magnitudes;
    float* scales;
    int32_t* starts;
    int64_t width, used = 0;

    int64_t groups() const { return (used != 0 ? used : width) / 32; }
};

}  // namespace
}  // namespace dslite
