// Routed and shared experts of few tokens (paper, eq. 20 to 22): gate and up, silu, then down, each weight read from
// memory once.
#pragma once

#include "dot.inc.h"

namespace dslite {
namespace {

struct ExpertQueues {
    Blocks in, out;
    Barrier gate_up_done;
};

void compute_experts(const Experts& job, ExpertQueues& queues, int workers) {
    int64_t width = 0, first_block[kMaxExperts + 1] = {0};
    for (int64_t e = 0; e < job.n_experts; ++e) width += job.experts[e].gate.rows;
    const int64_t in = stretch(width, workers), out = stretch(job.hidden, workers);  // rows of gate and up, of down
    for (int64_t e = 0; e < job.n_experts; ++e)
        first_block[e + 1] = first_block[e] + (job.experts[e].gate.rows + in - 1) / in;

    const bf16* tokens[kMaxTokens];
    int64_t e = 0;
    for (int64_t block; queues.in.take(first_block[job.n_experts], &block);) {
        while (block >= first_block[e + 1]) ++e;
        const Mlp& expert = job.experts[e];
        const int64_t entry = job.first[e], count = job.first[e + 1] - entry;
        const int64_t first = (block - first_block[e]) * in, n = min(in, expert.gate.rows - first);
        for (int64_t t = 0; t < count; ++t) tokens[t] = job.x + job.rows[entry + t] * job.hidden;
        float gates[kMaxTokens][kMaxRows], ups[kMaxTokens][kMaxRows];
        products(rows_of(expert.gate, first), n, job.hidden, tokens, count,
                 [&](int64_t r, int64_t t, float value) { gates[t][r] = value; });
        products(rows_of(expert.up, first), n, job.hidden, tokens, count,
                 [&](int64_t r, int64_t t, float value) { ups[t][r] = value; });
        for (int64_t t = 0; t < count; ++t) {
            bf16* row = job.products + (entry + t) * job.width + first;
            for (int64_t r = 0; r < n; ++r) row[r] = to_bf16(silu(gates[t][r]) * ups[t][r]);
        }
    }
    queues.gate_up_done.wait(workers);
    for (int64_t block; queues.out.take((job.hidden + out - 1) / out, &block);) {
        const int64_t first = block * out, n = min(out, job.hidden - first);
        for (int64_t t = 0; t < job.tokens; ++t)
            for (int64_t r = 0; r < n; ++r) job.out[t * job.hidden + first + r] = 0;
        for (int64_t i = 0; i < job.n_experts; ++i) {
            const Matrix& down = job.experts[i].down;
            const int64_t entry = job.first[i], count = job.first[i + 1] - entry;
            for (int64_t t = 0; t < count; ++t) tokens[t] = job.products + (entry + t) * job.width;
            products(rows_of(down, first), n, down.columns, tokens, count, [&](int64_t r, int64_t t, float value) {
                job.out[job.rows[entry + t] * job.hidden + first + r] += job.weights[entry + t] * value;
            });
        }
        if (job.residual == nullptr) continue;
        for (int64_t t = 0; t < job.tokens; ++t) {
            const int64_t place = t * job.hidden + first;
            for (int64_t r = 0; r < n; ++r)
                job.result[place + r] =
                    to_bf16(to_float(job.residual[place + r]) + to_float(to_bf16(job.out[place + r])));
        }
    }
}

void experts(const Experts& job, int threads) {
    ExpertQueues queues;
    auto body = [&](int, int workers) { compute_experts(job, queues, workers); };
    parallel(threads, body);
}

}  // namespace
}  // namespace dslite
