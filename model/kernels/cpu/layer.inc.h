// Decoder layers for few tokens, one behind the other, by one team of threads: attention, router, experts.
#pragma once

#include "attention_decode.inc.h"
#include "experts.inc.h"

namespace dslite {
namespace {

// The top-k experts of each token by the softmax of its router logits (paper, eq. 21 and 22); of equals the first.
void select_top_k(const Layer& layer, const float* logits, int64_t tokens, int64_t* ids, float* weights) {
    for (int64_t t = 0; t < tokens; ++t, logits += layer.n_experts) {
        float greatest = logits[0], total = 0;
        bool taken[kMaxExperts] = {false};
        for (int64_t e = 1; e < layer.n_experts; ++e) greatest = logits[e] > greatest ? logits[e] : greatest;
        for (int64_t e = 0; e < layer.n_experts; ++e) total += exp_negative(logits[e] - greatest);
        for (int64_t i = 0; i < layer.top_k; ++i) {
            int64_t best = 0;
            while (taken[best]) ++best;
            for (int64_t e = best + 1; e < layer.n_experts; ++e)
                if (!taken[e] && logits[e] > logits[best]) best = e;
            taken[best] = true;
            ids[t * layer.top_k + i] = best;
            weights[t * layer.top_k + i] = exp_negative(logits[best] - greatest) / total * layer.scaling;
        }
    }
}

// Sorts the (token, expert) pairs by expert; the shared experts, which all tokens use, come last. Returns how many
// experts are in use.
int64_t group_by_expert(const Layer& layer, const Scratch& scratch, int64_t tokens) {
    int64_t entries = 0, used = 0;
    for (int64_t e = 0; layer.experts != nullptr && e < layer.n_experts; ++e) {
        const int64_t first = entries;
        for (int64_t i = 0; i < tokens * layer.top_k; ++i) {
            if (scratch.ids[i] != e) continue;
            scratch.rows[entries] = i / layer.top_k;
            scratch.shares[entries++] = scratch.weights[i];
        }
        if (entries > first) scratch.used[used++] = {layer.experts[e], first, entries - first};
    }
    if (layer.shared == nullptr) return used;
    scratch.used[used++] = {*layer.shared, entries, tokens};
    for (int64_t t = 0; t < tokens; ++t) {
        scratch.rows[entries] = t;
        scratch.shares[entries++] = 1;
    }
    return used;
}

// Two matrices with the same input, as one queue of blocks: the second may have no rows.
struct Projection {
    const bf16* w;
    bf16* y;
    int64_t n;
};

void project(const Projection& a, const Projection& b, const bf16* x, int64_t k, int64_t tokens, Blocks& queue,
             int workers) {
    const bf16* token_rows[kMaxTokens];
    for (int64_t t = 0; t < tokens; ++t) token_rows[t] = x + t * k;
    const int64_t rows = stretch(a.n + b.n, workers), blocks_a = (a.n + rows - 1) / rows;
    for (int64_t block; queue.take(blocks_a + (b.n + rows - 1) / rows, &block);) {
        const Projection& at = block < blocks_a ? a : b;
        const int64_t first = (block < blocks_a ? block : block - blocks_a) * rows;
        products(at.w + first * k, min(rows, at.n - first), k, token_rows, tokens,
                 [&](int64_t r, int64_t t, float value) { at.y[t * at.n + first + r] = to_bf16(value); });
    }
}

struct LayerQueues {
    Blocks norm, project, norm_q, project_q, absorb, finish, output, norm_mlp, gate;
    Barrier normed, projected, normed_q, projected_q, absorbed, attended, finished, output_done;
    Barrier normed_mlp, scored, routed, done;
    ExpertQueues experts;
    int64_t used;
};

// Attention of one layer as worker `worker` of a team. A barrier ends each phase; within a phase work is taken from a
// queue, except for the splits, which are assigned so that the same input gives the same last bit:
//   1. norm       x, by token
//   2. project    queries (or their compressed form) and the new cache entries, by weight rows
//   2b. norm_q, project_q   where queries are compressed (eq. 12 and 13)
//   3. absorb     store the cache entries; queries · W_UK, by token and head
//   4. attend     each split of each sequence
//   5. finish     combine splits; · W_UV, by token and head
//   6. output     · W_O, plus the residual, by weight rows
// Workers cannot wait for one that does not exist: `workers` is the size of the team that OpenMP has really made.
void attend(const Layer& layer, const Step& step, const Scratch& scratch, LayerQueues& queues, int worker,
            int workers) {
    const int64_t tokens = step.tokens, heads = layer.heads, n_queries = heads * (layer.nope + layer.rope);
    for (int64_t t; queues.norm.take(tokens, &t);)
        rms_norm(step.x + t * layer.hidden, layer.input_norm, scratch.normed + t * layer.hidden, layer.hidden,
                 layer.eps);
    queues.normed.wait(workers);
    const Projection kv{layer.kv_a, scratch.own, scratch.width};
    if (layer.query_rank == 0) {
        project({layer.q, scratch.raw, n_queries}, kv, scratch.normed, layer.hidden, tokens, queues.project, workers);
    } else {
        project({layer.q_a, scratch.compressed, layer.query_rank}, kv, scratch.normed, layer.hidden, tokens,
                queues.project, workers);
        queues.projected_q.wait(workers);
        for (int64_t t; queues.norm_q.take(tokens, &t);) {
            bf16* row = scratch.compressed + t * layer.query_rank;
            rms_norm(row, layer.q_a_norm, row, layer.query_rank, layer.latent_eps);
        }
        queues.normed_q.wait(workers);
        project({layer.q, scratch.raw, n_queries}, {nullptr, nullptr, 0}, scratch.compressed, layer.query_rank, tokens,
                queues.project_q, workers);
    }
    queues.projected.wait(workers);
    for (int64_t unit; queues.absorb.take((heads + 1) * tokens, &unit);) {
        if (unit < tokens)
            store_latent_entry(layer, step, scratch, unit);
        else
            absorb(layer, step, scratch, unit % tokens, unit / tokens - 1);
    }
    queues.absorbed.wait(workers);
    auto splits_of = [&](int64_t token) { return min(scratch.splits, (step.lengths[token] + kKeys - 1) / kKeys); };
    for (int64_t t = 0; t < tokens; ++t) {
        // Assigned, not taken from a queue: the same input gives the same last bit.
        const int64_t blocks = (step.lengths[t] + kKeys - 1) / kKeys, splits = splits_of(t);
        for (int64_t split = worker; split < splits; split += workers)
            attend_split(layer, step, scratch, t, split, split * blocks / splits * kKeys,
                         min((split + 1) * blocks / splits * kKeys, step.lengths[t]));
    }
    queues.attended.wait(workers);
    for (int64_t unit; queues.finish.take(heads * tokens, &unit);)
        finish_head(layer, scratch, unit % tokens, unit / tokens, splits_of(unit % tokens));
    queues.finished.wait(workers);
    const bf16* token_rows[kMaxTokens];
    for (int64_t t = 0; t < tokens; ++t) token_rows[t] = scratch.values + t * heads * layer.value;
    const int64_t rows = stretch(layer.hidden, workers);
    for (int64_t block; queues.output.take((layer.hidden + rows - 1) / rows, &block);) {
        const int64_t first = block * rows;
        products(layer.o + first * heads * layer.value, min(rows, layer.hidden - first), heads * layer.value,
                 token_rows, tokens, [&](int64_t r, int64_t t, float value) {
                     const int64_t place = t * layer.hidden + first + r;
                     scratch.attended[place] = to_bf16(to_float(step.x[place]) + to_float(to_bf16(value)));
                 });
    }
    queues.output_done.wait(workers);
}

void route(const Layer& layer, const Step& step, const Scratch& scratch, LayerQueues& queues, int worker, int workers) {
    const int64_t tokens = step.tokens;
    for (int64_t t; queues.norm_mlp.take(tokens, &t);)
        rms_norm(scratch.attended + t * layer.hidden, layer.post_norm, scratch.normed + t * layer.hidden, layer.hidden,
                 layer.eps);
    queues.normed_mlp.wait(workers);
    for (int64_t e; layer.gate != nullptr && queues.gate.take(layer.n_experts, &e);)
        for (int64_t t = 0; t < tokens; ++t)
            scratch.logits[t * layer.n_experts + e] =
                dot(layer.gate + e * layer.hidden, scratch.normed + t * layer.hidden, layer.hidden);
    queues.scored.wait(workers);
    if (worker == 0) {
        if (layer.gate != nullptr) select_top_k(layer, scratch.logits, tokens, scratch.ids, scratch.weights);
        for (int64_t i = 0; layer.expert_counts != nullptr && i < tokens * layer.top_k; ++i)
            ++layer.expert_counts[scratch.ids[i]];
        queues.used = group_by_expert(layer, scratch, tokens);
    }
    queues.routed.wait(workers);
}

// One layer, as worker of a team.
void compute_layer(const Layer& layer, const Step& step, const Scratch& scratch, LayerQueues& queues, int worker,
                   int workers) {
    attend(layer, step, scratch, queues, worker, workers);
    route(layer, step, scratch, queues, worker, workers);
    if (layer.gate == nullptr || layer.experts != nullptr) {
        const Experts job{scratch.used,   queues.used,      scratch.normed,   scratch.rows,
                          scratch.shares, scratch.products, scratch.widest,   scratch.total,
                          step.tokens,    layer.hidden,     scratch.attended, step.out};
        compute_experts(job, queues.experts, workers);
        queues.done.wait(workers);
    } else if (worker == 0) {
        __builtin_memcpy(step.out, scratch.attended, step.tokens * layer.hidden * sizeof(bf16));
        __builtin_memcpy(step.normed, scratch.normed, step.tokens * layer.hidden * sizeof(bf16));
        __builtin_memcpy(step.ids, scratch.ids, step.tokens * layer.top_k * sizeof(int64_t));
        __builtin_memcpy(step.weights, scratch.weights, step.tokens * layer.top_k * sizeof(float));
    }
}

int64_t layer_scratch(const Layer& layer, const Step& step, int threads) {
    return Scratch(layer, step, nullptr, threads).bytes;
}

void layers(const Layer* layers, int64_t n_layers, const Step& step, char* memory, int threads) {
    const int64_t size = step.tokens * layers[0].hidden;
    bf16* between[2] = {reinterpret_cast<bf16*>(memory), reinterpret_cast<bf16*>(memory) + size};
    LayerQueues* queues = new LayerQueues[n_layers];
    auto body = [&](int worker, int workers) {
        for (int64_t i = 0; i < n_layers; ++i) {
            Step here = step;
            here.entries = step.entries + i * step.tokens;
            if (i > 0) here.x = between[i % 2];
            if (i + 1 < n_layers) here.out = between[(i + 1) % 2];
            const Scratch scratch(layers[i], here, memory + (2 * size * sizeof(bf16) + 63) / 64 * 64, threads);
            compute_layer(layers[i], here, scratch, queues[i], worker, workers);
        }
    };
    parallel(threads, body);
    delete[] queues;
}

}  // namespace
}  // namespace dslite
