// Products with quantized weights, written once over an instruction set. Each file that includes this one defines
// before it, in namespace dslite and unnamed within, a struct Quantized with
//   multiply<Bits>(w0, w1, groups, tokens, count, scratch, done): two panels times `count` tokens, done(t, sums[32]).
//
// Tokens are quantized to int8 by groups of 32 values, so that a product is a sum of small integers and a scale for
// each group. A lane of a vector is a row of a panel: no sums across lanes, and a panel is read as one stream.
#pragma once

#include "quantized.h"
#include "scalars.inc.h"
#include "team.h"

namespace dslite {
namespace {

constexpr int64_t kUnit = 32;  // rows of two panels, and columns of a group
constexpr int64_t kNeighbours = 4;

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

inline int64_t panels(const QuantizedMatrix& m) { return (m.rows + 15) / 16; }

// Rows of tokens in int8. Behind the last column are zeros, up to a whole block.
Tokens carve_tokens(Carver& memory, int64_t count, int64_t columns) {
    Tokens tokens;
    tokens.width = padded(columns);
    const int64_t groups = count * tokens.width / kUnit;
    memory.take(&tokens.values, count * tokens.width);
    memory.take(&tokens.magnitudes, count * tokens.width);
    memory.take(&tokens.scales, groups);
    memory.take(&tokens.starts, groups);
    return tokens;
}

// Quantizes one group: 32 values at x, `count` of them real.
void quantize_group(const Tokens& tokens, int64_t group, const float* x) {
    float greatest = 0;
    for (int64_t i = 0; i < kUnit; ++i) {
        const float magnitude = x[i] < 0 ? -x[i] : x[i];
        greatest = magnitude > greatest || magnitude != magnitude ? magnitude : greatest;
    }
    // Without its last bits the scale times kMagic is exact. Not finite stays not finite.
    float scale = greatest / 127;
    int32_t bits;
    __builtin_memcpy(&bits, &scale, 4);
    bits = (bits + 4) & ~7;
    __builtin_memcpy(&scale, &bits, 4);
    const float inverse = scale > 0 && scale < 3e38f ? 1 / scale : 0;
    int32_t sum = 0;
    int8_t* values = tokens.values + group * kUnit;
    int8_t* magnitudes = tokens.magnitudes + group * kUnit;
    for (int64_t i = 0; i < kUnit; ++i) {
        // Of two equally near integers the even one; no addition that a compiler could fuse with the product.
        const float rounded = __builtin_nearbyintf(x[i] * inverse);
        const int32_t value = rounded > 127 ? 127 : rounded > -127 ? static_cast<int32_t>(rounded) : -127;
        sum += value;
        values[i] = static_cast<int8_t>(value);
        magnitudes[i] = static_cast<int8_t>(value < 0 ? -value : value);
    }
    tokens.scales[group] = scale;
    tokens.starts[group] = kMagicBits - 128 * sum;
}

void quantize_row(const Tokens& tokens, int64_t row, const bf16* x, int64_t columns) {
    float wide[kUnit];
    for (int64_t first = 0; first < tokens.width; first += kUnit) {
        for (int64_t i = 0; i < kUnit; ++i) wide[i] = first + i < columns ? to_float(x[first + i]) : 0.0f;
        quantize_group(tokens, (row * tokens.width + first) / kUnit, wide);
    }
}

// Panels `place` and the next one of a matrix; of an odd last panel itself twice.
template <class Done>
void multiply_panels(const QuantizedMatrix& m, int64_t place, const Tokens& tokens, int64_t first, int64_t count,
                     char* scratch, Done done) {
    const char* w0 = m.data + place * m.stride;
    const char* w1 = place + 1 < panels(m) ? w0 + m.stride : w0;
    if (m.bits == 8)
        Quantized::multiply<8>(w0, w1, tokens, first, count, scratch, done);
    else
        Quantized::multiply<4>(w0, w1, tokens, first, count, scratch, done);
}

int64_t worker_scratch(int64_t columns) { return 40 * padded(columns) + 4096; }

int64_t carve_linear(const QuantizedLinear& job, char* base, int threads, Tokens* tokens, char** own) {
    Carver memory{base, 0};
    *tokens = carve_tokens(memory, job.tokens, job.w.columns);
    memory.take(own, threads * worker_scratch(job.w.columns));
    return memory.bytes;
}

int64_t linear_scratch(const QuantizedLinear& job, int threads) {
    Tokens tokens;
    char* own;
    return carve_linear(job, nullptr, threads, &tokens, &own);
}

void linear(const QuantizedLinear& job, char* base, int threads) {
    Tokens tokens;
    char* scratch;
    carve_linear(job, base, threads, &tokens, &scratch);
    Blocks rows, units;
    Barrier quantized;
    const int64_t pairs = (panels(job.w) + 1) / 2;
    auto body = [&](int worker, int workers) {
        for (int64_t t; rows.take(job.tokens, &t);) quantize_row(tokens, t, job.x + t * job.x_stride, job.w.columns);
        quantized.wait(workers);
        char* own = scratch + worker * worker_scratch(job.w.columns);
        Stretch stretch{units, pairs};
        for (int64_t unit; stretch.next(&unit);) {
            const int64_t begin = unit * kUnit, count = job.w.rows - begin < kUnit ? job.w.rows - begin : kUnit;
            multiply_panels(job.w, 2 * unit, tokens, 0, job.tokens, own, [&](int64_t t, const float* sums) {
                const int64_t place = t * job.w.rows + begin;
                if (job.as_float)
                    __builtin_memcpy(static_cast<float*>(job.y) + place, sums, count * sizeof(float));
                else
                    for (int64_t r = 0; r < count; ++r) static_cast<bf16*>(job.y)[place + r] = to_bf16(sums[r]);
            });
        }
    };
    parallel(threads, body);
}

struct ExpertsMemory {
    Tokens in;      // (tokens, hidden)
    Tokens sorted;  // (entries, hidden): rows of an expert one behind the other
    Tokens inner;   // (entries, widest)
    float* gated;   // (workers, entries, 32)
    char* own;
    int64_t bytes;
};

ExpertsMemory carve_experts(const QuantizedExperts& job, char* base, int threads) {
    Carver memory{base, 0};
    ExpertsMemory all;
    all.in = carve_tokens(memory, job.tokens, job.hidden);
    all.sorted = carve_tokens(memory, job.entries, job.hidden);
    all.inner = carve_tokens(memory, job.entries, job.width);
    memory.take(&all.gated, threads * job.entries * kUnit);
    const int64_t widest = job.width > job.hidden ? job.width : job.hidden;
    memory.take(&all.own, threads * worker_scratch(widest));
    all.bytes = memory.bytes;
    return all;
}

int64_t experts_scratch(const QuantizedExperts& job, int threads) { return carve_experts(job, nullptr, threads).bytes; }

// A row of quantized tokens from one place to another.
void copy_row(const Tokens& from, int64_t row, const Tokens& to, int64_t place) {
    const int64_t width = from.width, groups = width / kUnit;
    __builtin_memcpy(to.values + place * width, from.values + row * width, width);
    __builtin_memcpy(to.magnitudes + place * width, from.magnitudes + row * width, width);
    __builtin_memcpy(to.scales + place * groups, from.scales + row * groups, groups * sizeof(float));
    __builtin_memcpy(to.starts + place * groups, from.starts + row * groups, groups * sizeof(int32_t));
}

void experts(const QuantizedExperts& job, char* base, int threads) {
    const ExpertsMemory memory = carve_experts(job, base, threads);
    Blocks rows, entries, in, out;
    Barrier quantized, sorted, gated;
    const int64_t widest = job.width > job.hidden ? job.width : job.hidden;
    auto body = [&](int worker, int workers) {
        char* own = memory.own + worker * worker_scratch(widest);
        for (int64_t t; rows.take(job.tokens, &t);) quantize_row(memory.in, t, job.x + t * job.hidden, job.hidden);
        quantized.wait(workers);
        for (int64_t i; entries.take(job.entries, &i);) copy_row(memory.in, job.rows[i], memory.sorted, i);
        sorted.wait(workers);
        // Gate and up of 32 columns, a group of the next product, for all entries of an expert.
        int64_t expert = 0, before = 0;
        const auto units = [&](int64_t e) { return padded(job.experts[e].gate.rows) / kUnit; };
        Stretch gates{in, INT64_MAX / 2};
        for (int64_t unit; gates.next(&unit);) {
            while (expert < job.n_experts && unit >= before + units(expert)) before += units(expert++);
            if (expert == job.n_experts) break;
            const QuantizedExpert& at = job.experts[expert];
            const int64_t first = job.first[expert], count = job.first[expert + 1] - first, group = unit - before;
            float* products = memory.gated + worker * job.entries * kUnit;
            for (int64_t half = 0; half < 2; ++half) {
                const int64_t panel = 2 * group + half;
                if (panel >= panels(at.gate)) {
                    for (int64_t i = 0; i < count; ++i) __builtin_memset(products + i * kUnit + 16 * half, 0, 64);
                    continue;
                }
                const char* gate = at.gate.data + panel * at.gate.stride;
                const char* up = at.up.data + panel * at.up.stride;
                const auto done = [&](int64_t i, const float* sums) {
                    float* to = products + i * kUnit + 16 * half;
                    for (int64_t r = 0; r < 16; ++r) to[r] = silu(sums[r]) * sums[16 + r];
                };
                if (at.gate.bits == 8)
                    Quantized::multiply<8>(gate, up, memory.sorted, first, count, own, done);
                else
                    Quantized::multiply<4>(gate, up, memory.sorted, first, count, own, done);
            }
            for (int64_t i = 0; i < count; ++i)
                quantize_group(memory.inner, (first + i) * memory.inner.width / kUnit + group, products + i * kUnit);
        }
        gated.wait(workers);
        // Down. A unit is 32 values of all tokens, expert after expert: the order of a sum is always the same.
        Stretch downs{out, (job.hidden + kUnit - 1) / kUnit};
        for (int64_t unit; downs.next(&unit);) {
            const int64_t begin = unit * kUnit, wide = job.hidden - begin < kUnit ? job.hidden - begin : kUnit;
            for (int64_t t = 0; t < job.tokens; ++t)
                __builtin_memset(job.out + t * job.hidden + begin, 0, wide * sizeof(float));
            for (int64_t e = 0; e < job.n_experts; ++e) {
                const QuantizedMatrix& down = job.experts[e].down;
                const int64_t first = job.first[e];
                Tokens inner = memory.inner;
                inner.used = padded(down.columns);
                multiply_panels(down, 2 * unit, inner, first, job.first[e + 1] - first, own,
                                [&](int64_t i, const float* sums) {
                                    float* to = job.out + job.rows[first + i] * job.hidden + begin;
                                    const float weight = job.weights[first + i];
                                    for (int64_t r = 0; r < wide; ++r) to[r] += weight * sums[r];
                                });
            }
        }
    };
    parallel(threads, body);
}

const QuantizedOps kQuantizedOps = {linear_scratch, linear, experts_scratch, experts};

}  // namespace
}  // namespace dslite
