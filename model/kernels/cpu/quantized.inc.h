// Products with quantized weights, written once over an instruction set. Each file that includes this one defines
// before it, in namespace dslite and unnamed within, a struct Quantized with
//   multiply<Bits>(w0, w1, groups, tokens, count, scratch, done): two panels times `count` tokens, done(t, sums[32]).
//
// Tokens are quantized to int8 by groups of 32 values, so that a product is a sum of small integers and a scale for
// each group. A lane of a vector is a row of a panel: no sums across lanes, and a panel is read as one stream.
#pragma once

#include "quantized_tokens.inc.h"
#include "scalars.inc.h"

namespace dslite {
namespace {

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
void multiply_panels(const Matrix& m, int64_t place, const Tokens& tokens, int64_t first, int64_t count, char* scratch,
                     Done done) {
    const char* w0 = m.data + place * m.stride;
    const char* w1 = place + 1 < panels(m) ? w0 + m.stride : w0;
    if (m.bits == 8)
        Quantized::multiply<8>(w0, w1, tokens, first, count, scratch, done);
    else
        Quantized::multiply<4>(w0, w1, tokens, first, count, scratch, done);
}

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
    auto body = [&](int worker, int workers) {
        for (int64_t t; rows.take(job.tokens, &t);) quantize_row(tokens, t, job.x + t * job.x_stride, job.w.columns);
        quantized.wait(workers);
        char* own = scratch + worker * worker_scratch(job.w.columns);
        Stretch stretch{units, pairs(job.w)};
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

// A row of quantized tokens from one place to another.
void copy_row(const Tokens& from, int64_t row, const Tokens& to, int64_t place) {
    const int64_t width = from.width, groups = width / kUnit;
    __builtin_memcpy(to.values + place * width, from.values + row * width, width);
    __builtin_memcpy(to.magnitudes + place * width, from.magnitudes + row * width, width);
    __builtin_memcpy(to.scales + place * groups, from.scales + row * groups, groups * sizeof(float));
    __builtin_memcpy(to.starts + place * groups, from.starts + row * groups, groups * sizeof(int32_t));
}

// Gate and up of 32 columns of an expert, a group of the next product, for all its entries: (entries, 32).
void gate_up(const Mlp& expert, int64_t group, const Tokens& x, int64_t first, int64_t count, char* own, float* out) {
    for (int64_t half = 0; half < 2; ++half) {
        const int64_t panel = 2 * group + half;
        if (panel >= panels(expert.gate)) {
            for (int64_t i = 0; i < count; ++i) __builtin_memset(out + i * kUnit + 16 * half, 0, 64);
            continue;
        }
        const char* gate = expert.gate.data + panel * expert.gate.stride;
        const char* up = expert.up.data + panel * expert.up.stride;
        const auto done = [&](int64_t i, const float* sums) {
            float* to = out + i * kUnit + 16 * half;
            for (int64_t r = 0; r < 16; ++r) to[r] = silu(sums[r]) * sums[16 + r];
        };
        if (expert.gate.bits == 8)
            Quantized::multiply<8>(gate, up, x, first, count, own, done);
        else
            Quantized::multiply<4>(gate, up, x, first, count, own, done);
    }
}

// A unit is 32 values of all tokens, expert after expert: the order of a sum is always the same.
void down(const Experts& job, const Tokens& inner, int64_t unit, char* own) {
    const int64_t begin = unit * kUnit, wide = job.hidden - begin < kUnit ? job.hidden - begin : kUnit;
    for (int64_t t = 0; t < job.tokens; ++t)
        __builtin_memset(job.out + t * job.hidden + begin, 0, wide * sizeof(float));
    for (int64_t e = 0; e < job.n_experts; ++e) {
        const Matrix& w = job.experts[e].down;
        const int64_t first = job.first[e];
        Tokens used = inner;
        used.used = padded(w.columns);
        multiply_panels(w, 2 * unit, used, first, job.first[e + 1] - first, own, [&](int64_t i, const float* sums) {
            float* to = job.out + job.rows[first + i] * job.hidden + begin;
            const float weight = job.weights[first + i];
            for (int64_t r = 0; r < wide; ++r) to[r] += weight * sums[r];
        });
    }
    if (job.residual == nullptr) return;
    for (int64_t t = 0; t < job.tokens; ++t) {
        const int64_t place = t * job.hidden + begin;
        for (int64_t r = 0; r < wide; ++r)
            job.result[place + r] = to_bf16(to_float(job.residual[place + r]) + to_float(to_bf16(job.out[place + r])));
    }
}

void compute_experts(const Experts& job, const QuantizedExpertsMemory& memory, QuantizedExpertsQueues& queues,
                     int worker, int workers) {
    const int64_t widest = job.width > job.hidden ? job.width : job.hidden;
    char* own = memory.own + worker * worker_scratch(widest);
    float* gated = memory.gated + worker * job.entries * kUnit;
    const bool one = job.tokens == 1;  // its row is every expert's
    if (!one) {
        for (int64_t i; queues.entries.take(job.entries, &i);) copy_row(memory.in, job.rows[i], memory.sorted, i);
        queues.sorted.wait(workers);
    }
    const auto units = [&](int64_t e) { return padded(job.experts[e].gate.rows) / kUnit; };
    int64_t expert = 0, before = 0;
    Stretch gates{queues.in, INT64_MAX / 2};
    for (int64_t unit; gates.next(&unit);) {
        while (expert < job.n_experts && unit >= before + units(expert)) before += units(expert++);
        if (expert == job.n_experts) break;
        const int64_t first = job.first[expert], count = job.first[expert + 1] - first, group = unit - before;
        gate_up(job.experts[expert], group, one ? memory.in : memory.sorted, one ? 0 : first, count, own, gated);
        const int64_t groups = memory.inner.width / kUnit;
        for (int64_t i = 0; i < count; ++i)
            quantize_group(memory.inner, (first + i) * groups + group, gated + i * kUnit);
    }
    queues.gated.wait(workers);
    Stretch downs{queues.out, (job.hidden + kUnit - 1) / kUnit};
    for (int64_t unit; downs.next(&unit);) down(job, memory.inner, unit, own);
}

int64_t experts_scratch(const Experts& job, int threads) {
    Carver memory{nullptr, 0};
    carve_experts(memory, job.tokens, job.entries, job.hidden, job.width, threads);
    return memory.bytes;
}

void experts(const Experts& job, char* base, int threads) {
    Carver carver{base, 0};
    const QuantizedExpertsMemory memory =
        carve_experts(carver, job.tokens, job.entries, job.hidden, job.width, threads);
    Blocks rows;
    Barrier quantized;
    QuantizedExpertsQueues queues;
    auto body = [&](int worker, int workers) {
        for (int64_t t; rows.take(job.tokens, &t);) quantize_row(memory.in, t, job.x + t * job.hidden, job.hidden);
        quantized.wait(workers);
        compute_experts(job, memory, queues, worker, workers);
    };
    parallel(threads, body);
}

void multiply(const Matrix& w, int64_t pair, const Tokens& x, int64_t first, int64_t count, char* own, float* sums) {
    multiply_panels(w, 2 * pair, x, first, count, own, [&](int64_t t, const float* from) {
        __builtin_memcpy(sums + t * kUnit, from, kUnit * sizeof(float));
    });
}

const QuantizedOps kQuantizedOps = {linear_scratch, linear,   experts_scratch, experts,
                                    quantize_row,   multiply, compute_experts};

}  // namespace
}  // namespace dslite
