// Quantizes weights, to the last bit as model/quantized.py does, whose search it repeats. Written for any instruction
// set; no fused multiply-add may be compiled, since its result differs in the last bit.
#pragma once

#include "quantized.h"
#include "scalars.inc.h"
#include "team.h"

namespace dslite {
namespace {

constexpr int32_t kCandidates[] = {-111, -118, -125, -132, -139, -146, -153, 97, 103, 109, 115, 121, 127};
constexpr float kLeast = 1e-30f;

inline uint16_t to_half(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    const uint32_t sign = bits & 0x80000000u;
    bits ^= sign;
    uint32_t half;
    if (bits >= 0x47800000u) {  // 65,536 and more, or not a number
        half = bits > 0x7f800000u ? 0x7e00 : 0x7c00;
    } else if (bits < 0x38800000u) {  // subnormal, or zero: the addition rounds at the last bit of a half
        float shifted;
        __builtin_memcpy(&shifted, &bits, 4);
        shifted += 0.5f;
        __builtin_memcpy(&half, &shifted, 4);
        half -= 0x3f000000u;
    } else {  // to the nearest, of equals to the even one
        half = (bits + 0xc8000fffu + (bits >> 13 & 1)) >> 13;
    }
    return static_cast<uint16_t>(half | sign >> 16);
}

inline float absolute(float x) { return x < 0 ? -x : x; }

// Two roundings, as torch's numerator / x has.
inline float reciprocal(float x, float numerator) { return absolute(x) < kLeast ? 0.0f : 1.0f / x * numerator; }

float greatest_of(const float* x) {
    float greatest = 0;
    for (int i = 0; i < 32; ++i) greatest = absolute(x[i]) > greatest || x[i] != x[i] ? absolute(x[i]) : greatest;
    return greatest;
}

// A group as a scale and integers: halves are rounded away from zero.
uint16_t to_int8(const float* x, int8_t* values) {
    const float scale = greatest_of(x) / 127, inverse = reciprocal(scale, 1);
    for (int i = 0; i < 32; ++i) {
        const float scaled = x[i] * inverse, magnitude = absolute(scaled);
        const int32_t floor = static_cast<int32_t>(magnitude < 128 ? magnitude : 128);
        const float rest = magnitude - static_cast<float>(floor);
        const int32_t value = floor + static_cast<int32_t>(rest < 1 ? 2 * rest : 0);
        values[i] = static_cast<int8_t>(scaled < 0 ? -value : value);
    }
    return to_half(scale);
}

struct Nearest {
    int32_t value[256];  // of the table, for -128 to 127

    Nearest() {
        for (int i = 0; i < 256; ++i) {
            int place = 0;  // the midpoints that are smaller
            while (place < 15 && kTable[place] + kTable[place + 1] < 2 * (i - 128)) ++place;
            value[i] = kTable[place];
        }
    }
};

// A group as a scale and places in the table. See _to_table of model/quantized.py.
uint16_t to_table(const float* x, const Nearest& nearest, uint8_t* places) {
    const float greatest = greatest_of(x), factor = reciprocal(greatest, 32767);
    int32_t steps[32], high = -32768, low = 32767;
    for (int i = 0; i < 32; ++i) {
        const float scaled = __builtin_nearbyintf(x[i] * factor);
        steps[i] = scaled == scaled ? static_cast<int32_t>(scaled) : 0;
        high = steps[i] > high ? steps[i] : high;
        low = steps[i] < low ? steps[i] : low;
    }
    const int32_t sign = high >= -low ? 1 : -1;
    double best = -1, scale = 0;
    for (const int32_t candidate : kCandidates) {
        const int32_t by = sign * candidate;
        int64_t product = 0;
        int32_t square = 0;
        for (int i = 0; i < 32; ++i) {
            int32_t rounded = (steps[i] * by + 16384) >> 15;
            rounded = rounded < -128 ? -128 : rounded > 127 ? 127 : rounded;
            const int32_t chosen = nearest.value[rounded + 128];
            product += chosen * steps[i];
            square += chosen * chosen;
        }
        const double wide = static_cast<double>(product), quality = wide * wide / static_cast<double>(square);
        if (quality > best) {
            best = quality;
            scale = wide / static_cast<double>(square);
        }
    }
    const uint16_t found = to_half(static_cast<float>(static_cast<double>(greatest) / 32767 * scale));
    const float inverse = reciprocal(half_to_float(found), 1);
    for (int i = 0; i < 32; ++i) {
        const float scaled = x[i] * inverse;
        int place = 0;
        for (int m = 0; m < 15; ++m) place += static_cast<float>(kTable[m] + kTable[m + 1]) * 0.5f < scaled;
        places[i] = static_cast<uint8_t>(place);
    }
    return found;
}

// One group of a row into its place of a block.
void quantize_row_group(const float* x, const Matrix& m, const Nearest& nearest, char* block, int64_t half,
                        int64_t row) {
    uint16_t scale;
    if (m.bits == 8) {
        int8_t values[32];
        scale = to_int8(x, values);
        char* to = block + 64 + half * 512 + 4 * row;
        for (int q = 0; q < 8; ++q) __builtin_memcpy(to + 64 * q, values + 4 * q, 4);
    } else {
        uint8_t places[32];
        scale = to_table(x, nearest, places);
        char* to = block + 64 + half * 256 + 4 * row;
        for (int q = 0; q < 4; ++q)
            for (int i = 0; i < 4; ++i)
                to[64 * q + i] = static_cast<char>(places[8 * q + i] | places[8 * q + 4 + i] << 4);
    }
    __builtin_memcpy(block + 32 * half + 2 * row, &scale, 2);
}

void quantize(const bf16* w, int64_t row_stride, const Matrix& m, int threads) {
    const Nearest nearest;
    const int64_t blocks = (m.columns + 63) / 64, block_bytes = 64 + 128 * m.bits;
    Blocks queue;
    auto body = [&](int, int) {
        for (int64_t panel; queue.take((m.rows + 15) / 16, &panel);) {
            char* out = const_cast<char*>(m.data) + panel * m.stride;
            for (int64_t row = 0; row < 16; ++row) {
                const bool exists = 16 * panel + row < m.rows;
                const bf16* from = w + (16 * panel + row) * row_stride;
                for (int64_t group = 0; group < 2 * blocks; ++group) {
                    float x[32];
                    for (int64_t i = 0; i < 32; ++i) {
                        const int64_t column = 32 * group + i;
                        x[i] = exists && column < m.columns ? to_float(from[column]) : 0.0f;
                    }
                    quantize_row_group(x, m, nearest, out + group / 2 * block_bytes, group % 2, row);
                }
            }
        }
    };
    parallel(threads, body);
}

}  // namespace
}  // namespace dslite
