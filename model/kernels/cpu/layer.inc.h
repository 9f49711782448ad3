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
    const auto use = [&](const Mlp& expert, int64_t first) {
        scratch.used[used] = expert;
        scratch.first[used++] = first;
        scratch.first[used] = entries;
    };
    for (int64_t e = 0; layer.experts != nullptr && e < layer.n_experts; ++e) {
        const int64_t first = entries;
        for (int64_t i = 0; i < tokens * layer.top_k; ++i) {
            if (scratch.ids[i] != e) continue;
            scratch.rows[entries] = i / layer.top_k;
            scratch.shares[entries++] = scratch.weights[i];
        }
        if (entries > first) use(layer.experts[e], first);
    }
    if (layer.shared == nullptr) return used;
    for (int64_t t = 0; t < tokens; ++t) {
        scratch.rows[entries] = t;
        scratch.shares[entries++] = 1;
    }
    use(*layer.shared, entries - tokens);
    return used;
}

// One worker of a team, and what it multiplies quantized weights with.
struct Worker {
    int index, team;  // `team`: how many there are
    const QuantizedOps* quantized;
};

// x (tokens, columns); in int8 too, where weights are quantized.
struct Input {
    const bf16* x;
    const Tokens& quantized;
};

// take(second, t, row, value) of every row of two matrices with the same input, as one queue of blocks. The second may
// have no rows.
template <class Take>
void project(const Matrix& a, const Matrix& b, const Input& in, const Scratch& scratch, int64_t tokens, Blocks& queue,
             const Worker& worker, Take take) {
    if (a.bits == 16) {
        const bf16* token_rows[kMaxTokens];
        for (int64_t t = 0; t < tokens; ++t) token_rows[t] = in.x + t * a.columns;
        const int64_t rows = stretch(a.rows + b.rows, worker.team), blocks_a = (a.rows + rows - 1) / rows;
        for (int64_t block; queue.take(blocks_a + (b.rows + rows - 1) / rows, &block);) {
            const bool second = block >= blocks_a;
            const Matrix& w = second ? b : a;
            const int64_t first = (second ? block - blocks_a : block) * rows;
            products(rows_of(w, first), min(rows, w.rows - first), w.columns, token_rows, tokens,
                     [&](int64_t r, int64_t t, float value) { take(second, t, first + r, value); });
        }
        return;
    }
    char* memory = scratch.memory + worker.index * scratch.memory_bytes;
    float sums[kMaxTokens][kUnit];
    Stretch units{queue, pairs(a) + pairs(b)};
    for (int64_t unit; units.next(&unit);) {
        const bool second = unit >= pairs(a);
        const Matrix& w = second ? b : a;
        const int64_t pair = second ? unit - pairs(a) : unit, first = pair * kUnit;
        worker.quantized->multiply(w, pair, in.quantized, 0, tokens, memory, sums[0]);
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t r = 0; r < min(kUnit, w.rows - first); ++r) take(second, t, first + r, sums[t][r]);
    }
}

struct LayerQueues {
    Blocks norm, project, norm_q, project_q, absorb, finish, quantize, output, norm_mlp, gate;
    Barrier normed, projected, normed_q, projected_q, absorbed, attended, finished, quantized, output_done;
    Barrier normed_mlp, scored, routed, done;
    ExpertQueues experts;
    QuantizedExpertsQueues quantized_experts;
    int64_t used;
};

// y = norm(x) by token; quantized too, where the weights that it is multiplied with are.
void norm(const Layer& layer, const bf16* x, const bf16* weight, float eps, bf16* y, int64_t width, const Tokens& to,
          int64_t tokens, Blocks& queue, const Worker& worker) {
    for (int64_t t; queue.take(tokens, &t);) {
        rms_norm(x + t * width, weight, y + t * width, width, eps);
        if (is_quantized(layer)) worker.quantized->quantize_row(to, t, y + t * width, width);
    }
}

// Attention of one layer as a worker of a team. A barrier ends each phase; within a phase work is taken from a queue,
// except for the splits, which are assigned so that the same input gives the same last bit:
//   1. norm       x, by token
//   2. project    queries (or their compressed form) and the new cache entries, by weight rows
//   2b. norm_q, project_q   where queries are compressed (eq. 12 and 13)
//   3. absorb     store the cache entries; queries · W_UK, by token and head
//   4. attend     each split of each sequence
//   5. finish     combine splits; · W_UV, by token and head
//   5b. quantize  the values, where the weights are quantized
//   6. output     · W_O, plus the residual, by weight rows
// Workers cannot wait for one that does not exist: `worker.team` is the size of the team that OpenMP has really made.
void attend(const Layer& layer, const Step& step, const Scratch& scratch, LayerQueues& queues, const Worker& worker) {
    const int64_t tokens = step.tokens, heads = layer.heads;
    const Matrix none = {nullptr, 0, 0, 0, 0};
    norm(layer, step.x, layer.input_norm, layer.eps, scratch.normed, layer.hidden, scratch.experts.in, tokens,
         queues.norm, worker);
    queues.normed.wait(worker.team);
    const bool compressed = layer.query_rank != 0;
    bf16* first = compressed ? scratch.compressed : scratch.raw;
    const Matrix& into = compressed ? layer.q_a : layer.q;
    project(into, layer.kv_a, {scratch.normed, scratch.experts.in}, scratch, tokens, queues.project, worker,
            [&](bool second, int64_t t, int64_t r, float value) {
                (second ? scratch.own + t * scratch.width : first + t * into.rows)[r] = to_bf16(value);
            });
    if (compressed) {
        queues.projected_q.wait(worker.team);
        norm(layer, scratch.compressed, layer.q_a_norm, layer.latent_eps, scratch.compressed, layer.query_rank,
             scratch.latent, tokens, queues.norm_q, worker);
        queues.normed_q.wait(worker.team);
        project(layer.q, none, {scratch.compressed, scratch.latent}, scratch, tokens, queues.project_q, worker,
                [&](bool, int64_t t, int64_t r, float value) { scratch.raw[t * layer.q.rows + r] = to_bf16(value); });
    }
    queues.projected.wait(worker.team);
    for (int64_t unit; queues.absorb.take((heads + 1) * tokens, &unit);) {
        if (unit < tokens)
            store_latent_entry(layer, step, scratch, unit);
        else
            absorb(layer, step, scratch, unit % tokens, unit / tokens - 1);
    }
    queues.absorbed.wait(worker.team);
    auto splits_of = [&](int64_t token) { return min(scratch.splits, (step.lengths[token] + kKeys - 1) / kKeys); };
    for (int64_t t = 0; t < tokens; ++t) {
        // Assigned, not taken from a queue: the same input gives the same last bit.
        const int64_t blocks = (step.lengths[t] + kKeys - 1) / kKeys, splits = splits_of(t);
        for (int64_t split = worker.index; split < splits; split += worker.team)
            attend_split(layer, step, scratch, t, split, split * blocks / splits * kKeys,
                         min((split + 1) * blocks / splits * kKeys, step.lengths[t]));
    }
    queues.attended.wait(worker.team);
    for (int64_t unit; queues.finish.take(heads * tokens, &unit);)
        finish_head(layer, scratch, unit % tokens, unit / tokens, splits_of(unit % tokens));
    queues.finished.wait(worker.team);
    if (is_quantized(layer)) {
        for (int64_t t; queues.quantize.take(tokens, &t);)
            worker.quantized->quantize_row(scratch.heads, t, scratch.values + t * layer.o.columns, layer.o.columns);
        queues.quantized.wait(worker.team);
    }
    project(layer.o, none, {scratch.values, scratch.heads}, scratch, tokens, queues.output, worker,
            [&](bool, int64_t t, int64_t r, float value) {
                const int64_t place = t * layer.hidden + r;
                scratch.attended[place] = to_bf16(to_float(step.x[place]) + to_float(to_bf16(value)));
            });
    queues.output_done.wait(worker.team);
}

void route(const Layer& layer, const Step& step, const Scratch& scratch, LayerQueues& queues, const Worker& worker) {
    const int64_t tokens = step.tokens;
    norm(layer, scratch.attended, layer.post_norm, layer.eps, scratch.normed, layer.hidden, scratch.experts.in, tokens,
         queues.norm_mlp, worker);
    queues.normed_mlp.wait(worker.team);
    for (int64_t e; layer.gate != nullptr && queues.gate.take(layer.n_experts, &e);)
        for (int64_t t = 0; t < tokens; ++t)
            scratch.logits[t * layer.n_experts + e] =
                dot(layer.gate + e * layer.hidden, scratch.normed + t * layer.hidden, layer.hidden);
    queues.scored.wait(worker.team);
    if (worker.index == 0) {
        if (layer.gate != nullptr) select_top_k(layer, scratch.logits, tokens, scratch.ids, scratch.weights);
        for (int64_t i = 0; layer.expert_counts != nullptr && i < tokens * layer.top_k; ++i)
            ++layer.expert_counts[scratch.ids[i]];
        queues.used = group_by_expert(layer, scratch, tokens);
    }
    queues.routed.wait(worker.team);
}

// One layer, as a worker of a team.
void compute_layer(const Layer& layer, const Step& step, const Scratch& scratch, LayerQueues& queues,
                   const Worker& worker) {
    attend(layer, step, scratch, queues, worker);
    route(layer, step, scratch, queues, worker);
    if (layer.gate == nullptr || layer.experts != nullptr) {
        const Experts job{
            scratch.used,   scratch.first,    queues.used,      scratch.normed, scratch.rows,
            scratch.shares, scratch.total,    step.tokens,      layer.hidden,   scratch.first[queues.used],
            scratch.widest, scratch.products, scratch.attended, step.out};
        if (is_quantized(layer))
            worker.quantized->compute_experts(job, scratch.experts, queues.quantized_experts, worker.index,
                                              worker.team);
        else
            compute_experts(job, queues.experts, worker.team);
        queues.done.wait(worker.team);
    } else if (worker.index == 0) {
        __builtin_memcpy(step.out, scratch.attended, step.tokens * layer.hidden * sizeof(bf16));
        __builtin_memcpy(step.normed, scratch.normed, step.tokens * layer.hidden * sizeof(bf16));
        __builtin_memcpy(step.ids, scratch.ids, step.tokens * layer.top_k * sizeof(int64_t));
        __builtin_memcpy(step.weights, scratch.weights, step.tokens * layer.top_k * sizeof(float));
    }
}

int64_t layer_scratch(const Layer& layer, const Step& step, int threads) {
    return Scratch(layer, step, nullptr, threads).bytes;
}

void layers(const Layer* layers, int64_t n_layers, const Step& step, const QuantizedOps* quantized, char* memory,
            int threads) {
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
            compute_layer(layers[i], here, scratch, queues[i], {worker, workers, quantized});
        }
    };
    parallel(threads, body);
    delete[] queues;
}

}  // namespace
}  // namespace dslite
