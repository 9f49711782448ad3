// Scalars: conversions between BF16, float16 and float32, exp, silu. Plain arithmetic, which the compiler turns into
// vectors.
#pragma once

#include "ops.h"

namespace dslite {
namespace {

// The values of a matrix that is not quantized, from a row on.
inline const bf16* rows_of(const Matrix& m, int64_t row) {
    return reinterpret_cast<const bf16*>(m.data) + row * m.columns;
}

inline float to_float(bf16 value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float wide;
    __builtin_memcpy(&wide, &bits, 4);
    return wide;
}

// To the nearest, of equals to the even one. A NaN may become infinity.
inline bf16 to_bf16_finite(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return static_cast<bf16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline bf16 to_bf16(float value) { return value == value ? to_bf16_finite(value) : 0x7fc0; }

// e^x for x <= 0, to 1e-7: 2^n · 2^f with |f| <= 1/2. Plain arithmetic, which the compiler turns into vectors.
inline float exp_negative(float x) {
    float t = x * 1.44269504f;
    t = t < -126.0f ? -126.0f : t;
    const float n = (t + 12582912.0f) - 12582912.0f;
    const float f = (t - n) * 0.693147181f;
    float p = 1.0f / 720;
    p = p * f + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    uint32_t bits;
    __builtin_memcpy(&bits, &p, 4);
    bits += static_cast<uint32_t>(static_cast<int32_t>(n)) << 23;
    __builtin_memcpy(&p, &bits, 4);
    return t <= -126.0f ? 0.0f : p;
}

inline float silu(float x) {
    const float e = exp_negative(x < 0 ? x : -x);
    return x < 0 ? x * e / (1 + e) : x / (1 + e);
}

inline float half_to_float(uint16_t half) {
    uint32_t bits = static_cast<uint32_t>(half & 0x7fff) << 13;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    value *= 5.192296858534828e33f;  // 2^112: the exponent's other offset, subnormal numbers included
    return half & 0x8000 ? -value : value;
}

}  // namespace
}  // namespace dslite
