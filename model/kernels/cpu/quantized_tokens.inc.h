// Tokens in int8, as the products with quantized weights read them, and the memory that they take.
#pragma once

#include "quantized.h"

namespace dslite {
namespace {

constexpr float kMagic = 12582912.0f;  // 1.5 · 2^23: the last bit of a float of this size is worth 1
constexpr int32_t kMagicBits = 0x4b400000;
constexpr int64_t kUnit = 32;       // rows of two panels, and columns of a group
constexpr int64_t kNeighbours = 4;  // units that a worker takes at once

inline int64_t groups_of(const Tokens& tokens) { return (tokens.used != 0 ? tokens.used : tokens.width) / kUnit; }

// Where the parts of a call's memory begin.
struct Carver {
    char* base;
    int64_t bytes;

    template <class T> void take(T** at, int64_t count) {
        *at = reinterpret_cast<T*>(base + bytes);
        bytes += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    }
};

// Units of a queue, some neighbours at once: what is fetched ahead of one is then the next one's of the same worker.
struct Stretch {
    Blocks& queue;
    int64_t total, place = 0, end = 0;

    bool next(int64_t* unit) {
        if (place == end) {
            int64_t block;
            if (!queue.take((total + kNeighbours - 1) / kNeighbours, &block)) return false;
            place = block * kNeighbours;
            end = place + kNeighbours < total ? place + kNeighbours : total;
        }
        *unit = place++;
        return true;
    }
};

inline int64_t padded(int64_t columns) { return (columns + 63) / 64 * 64; }

inline int64_t panels(const Matrix& m) { return (m.rows + 15) / 16; }

inline int64_t pairs(const Matrix& m) { return (m.rows + kUnit - 1) / kUnit; }

inline int64_t worker_scratch(int64_t columns) { return 40 * padded(columns) + 4096; }

inline Tokens carve_tokens(Carver& memory, int64_t count, int64_t columns) {
    Tokens tokens;
    tokens.width = padded(columns);
    tokens.used = 0;
    const int64_t groups = count * tokens.width / kUnit;
    memory.take(&tokens.values, count * tokens.width);
    memory.take(&tokens.magnitudes, count * tokens.width);
    memory.take(&tokens.scales, groups);
    memory.take(&tokens.starts, groups);
    return tokens;
}

inline QuantizedExpertsMemory carve_experts(Carver& memory, int64_t tokens, int64_t entries, int64_t hidden,
                                            int64_t width, int threads) {
    QuantizedExpertsMemory all;
    all.in = carve_tokens(memory, tokens, hidden);
    all.sorted = carve_tokens(memory, tokens == 1 ? 0 : entries, hidden);  // of one token there is nothing to sort
    all.inner = carve_tokens(memory, entries, width);
    memory.take(&all.gated, threads * entries * kUnit);
    memory.take(&all.own, threads * worker_scratch(width > hidden ? width : hidden));
    return all;
}

}  // namespace
}  // namespace dslite
