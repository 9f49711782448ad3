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
    for (int64_t e = 0; e < job.n_experts; ++e) width += job.experts[e].matrices.width;
    const int64_t in = stretch(width, workers), out = stretch(job.hidden, workers);  // rows of gate and up, of down
    for (int64_t e = 0; e < job.n_experts; ++e)
        first_block[e + 1] = first_block[e] + (job.experts[e].matrices.width + in - 1) / in;

    const bf16* tokens[kMaxTokens];
    int64_t e = 0;
    for (int64_t block; queues.in.take(first_block[job.n_experts], &block);) {
        while (block >= first_block[e + 1]) ++e;
        const Expert& expert = job.experts[e];
        const Address& at = expert.matrices;
        const int64_t first = (block - first_block[e]) * in, n = min(in, at.width - first);
        for (int64_t t = 0; t < expert.count; ++t) tokens[t] = job.x + job.rows[expert.first + t] * job.hidden;
        float gates[kMaxTokens][kMaxRows], ups[kMaxTokens][kMaxRows];
        products(at.gate + first * job.hidden, n, job.hidden, tokens, expert.count,
                 [&](int64_t r, int64_t t, float value) { gates[t][r] = value; });
        products(at.up + first * job.hidden, n, job.hidden, tokens, expert.count,
                 [&](int64_t r, int64_t t, float value) { ups[t][r] = value; });
        for (int64_t t = 0; t < expert.count; ++t) {
            bf16* row = job.products + (expert.first + t) * job.stride + first;
            for (int64_t r = 0; r < n; ++r) row[r] = to_bf16(silu(gates[t][r]) * ups[t][r]);
        }
    }
    queues.gate_up_done.wait(workers);
    for (int64_t block; queues.out.take((job.hidden + out - 1) / out, &block);) {
        const int64_t first = block * out, n = min(out, job.hidden - first);
        for (int64_t t = 0; t < job.tokens; ++t)
            for (int64_t r = 0; r < n; ++r) job.out[t * job.hidden + first + r] = 0;
        for (int64_t i = 0; i < job.n_experts; ++i) {
            const Expert& expert = job.experts[i];
            const Address& at = expert.matrices;
            for (int64_t t = 0; t < expert.count; ++t) tokens[t] = job.products + (expert.first + t) * job.stride;
            products(at.down + first * at.width, n, at.width, tokens, expert.count,
                     [&](int64_t r, int64_t t, float value) {
                         const int64_t entry = expert.first + t;
                         job.out[job.rows[entry] * job.hidden + first + r] += job.weights[entry] * value;
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
