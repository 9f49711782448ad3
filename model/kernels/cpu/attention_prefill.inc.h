// Attention of many queries.
//
// Expanded: keys and values of a group of heads are made from the latents and packed in the order of multiplication
// before the queries of the group are computed. Absorbed: the queries of all heads read the cache entries, which each
// worker packs block by block beside its unit of queries, so that no more memory than a block is needed.
#pragma once

#include "attention_decode.inc.h"
#include "gemm.inc.h"

namespace dslite {
namespace {

constexpr int64_t kQueries = 192;  // at most in a unit that packs its keys: whole tiles, enough to pay for packing
constexpr int64_t kFewQueries = 96;  // in a unit whose keys are packed already; whole tiles
constexpr int64_t kSpan = 4 * kKeys;  // keys that a worker makes at once

// A block of keys and values in the order in which they are multiplied.
struct KeyBlock {
    uint32_t* keys;  // ((nope + rope) / 2, kKeys): pairs of neighbouring values, key by key
    bf16* values;  // (kKeys / 2, value) pairs of neighbouring keys, interleaved

    static int64_t bytes(const AttentionJob& job) {
        return (job.nope + job.rope + job.value) * kKeys * static_cast<int64_t>(sizeof(bf16));
    }
    KeyBlock(const AttentionJob& job, char* base)
        : keys(reinterpret_cast<uint32_t*>(base)),
          values(reinterpret_cast<bf16*>(base) + (job.nope + job.rope) * kKeys) {}
};

// A worker's memory: a block, or the buffers in which blocks are made, and the running sums of a unit.
struct AttentionScratch {
    char* block;
    bf16* made;  // (kSpan, nope + value)
    bf16* panel;  // of gemm.inc.h
    float* sums;  // (kQueries, value), in interleaved order
    float *running_max, *total;  // (kQueries)
    float* scores;  // (query tile, kKeys)
    bf16* factors;  // (query tile, kKeys)
    int64_t bytes;

    AttentionScratch(const AttentionJob& job, char* base) : bytes(0) {
        const bool expand = job.kv_b != nullptr;
        auto place = [&](auto** at, int64_t count) {
            *at = reinterpret_cast<__typeof__(*at)>(base + bytes);
            bytes += (count * static_cast<int64_t>(sizeof(**at)) + 63) / 64 * 64;
        };
        place(&block, expand ? 0 : KeyBlock::bytes(job));
        place(&made, expand ? kSpan * (job.nope + job.value) : 0);
        place(&panel, expand ? panel_bytes(job.latent) / static_cast<int64_t>(sizeof(bf16)) : 0);
        place(&sums, kQueries * job.value);
        place(&running_max, kQueries);
        place(&total, kQueries);
        place(&scores, kTile * kKeys);
        place(&factors, kTile * kKeys);
    }
};

// Keys first to first + kKeys of a head into a block, zeros behind the last. `keys` and `values` are those of `first`,
// rows `stride` values apart.
void pack(const AttentionJob& job, const bf16* keys, const bf16* values, int64_t stride, int64_t first,
          const KeyBlock& block) {
    const int64_t count = min(kKeys, job.length - first);
    const auto scatter = [&](const bf16* from, int64_t pairs, uint32_t* to) {
        for (int64_t pair = 0; pair < pairs; ++pair) __builtin_memcpy(to + pair * kKeys, from + 2 * pair, 4);
    };
    for (int64_t key = 0; key < count; ++key) {
        scatter(keys + key * stride, job.nope / 2, block.keys + key);
        scatter(job.rotary + (first + key) * job.rotary_stride, job.rope / 2, block.keys + job.nope / 2 * kKeys + key);
    }
    for (int64_t key = count; key < kKeys; ++key)
        for (int64_t pair = 0; pair < (job.nope + job.rope) / 2; ++pair) block.keys[pair * kKeys + key] = 0;
    const bf16 zeros[kPairs] = {0};
    for (int64_t key = 0; key < kKeys; key += 2) {
        for (int64_t column = 0; column < job.value; column += kPairs) {
            const bf16* from = values + key * stride + column;
            Isa::Pairs low, high;
            Isa::interleave(Isa::load(key < count ? from : zeros), Isa::load(key + 1 < count ? from + stride : zeros),
                            &low, &high);
            bf16* to = block.values + key * job.value + 2 * column;
            Isa::store_pairs(to, low);
            Isa::store_pairs(to + kPairs, high);
        }
    }
}

// scores[q][key] of `Q` queries and the packed keys.
template <int Q>
inline void score_keys(const bf16* queries, int64_t query_stride, int64_t width, const uint32_t* keys, float* scores) {
    for (int64_t first = 0; first < kKeys; first += 4 * Isa::kLanes) {
        Isa::Sum sums[Q][4];
        for (int q = 0; q < Q; ++q)
            for (int v = 0; v < 4; ++v) sums[q][v] = Isa::zero();
        for (int64_t pair = 0; pair < width / 2; ++pair) {
            Isa::Pairs key_pairs[4];
            for (int v = 0; v < 4; ++v)
                key_pairs[v] = Isa::load(reinterpret_cast<const bf16*>(keys + pair * kKeys + first + v * Isa::kLanes));
            for (int q = 0; q < Q; ++q) {
                const Isa::Pairs query = Isa::broadcast_pair(queries + q * query_stride + 2 * pair);
                for (int v = 0; v < 4; ++v) sums[q][v] = Isa::dot(sums[q][v], key_pairs[v], query);
            }
        }
        for (int q = 0; q < Q; ++q)
            for (int v = 0; v < 4; ++v) Isa::store(scores + q * kKeys + first + v * Isa::kLanes, sums[q][v]);
    }
}

// sums[q] = sums[q] · rescale[q] + factors[q] · values, for `Q` queries and the first `count` packed values.
template <int Q>
inline void weigh_values(const bf16* factors, const bf16* values, int64_t value, int64_t count, const float* rescale,
                         float* sums) {
    for (int64_t column = 0; column < value; column += kPairs) {
        Isa::Sum low[Q], high[Q];
        for (int q = 0; q < Q; ++q) low[q] = high[q] = Isa::zero();
        for (int64_t key = 0; key < count; key += 2) {
            const bf16* at = values + key * value + 2 * column;
            const Isa::Pairs both_low = Isa::load(at), both_high = Isa::load(at + kPairs);
            for (int q = 0; q < Q; ++q) {
                const Isa::Pairs factor = Isa::broadcast_pair(factors + q * kKeys + key);
                low[q] = Isa::dot(low[q], both_low, factor);
                high[q] = Isa::dot(high[q], both_high, factor);
            }
        }
        for (int q = 0; q < Q; ++q) {
            float* place = sums + q * value + column;
            Isa::store(place, Isa::scale_add(Isa::load_sum(place), rescale[q], low[q]));
            Isa::store(place + Isa::kLanes, Isa::scale_add(Isa::load_sum(place + Isa::kLanes), rescale[q], high[q]));
        }
    }
}

// The token that a query belongs to.
inline int64_t position_of(const AttentionJob& job, int64_t query) {
    return job.length - job.n_queries / job.sharing + query / job.sharing;
}

// `Q` queries from `query` on, the `place`-th of a unit, against a block that begins with key `first`.
template <int Q>
inline void attend_keys(const AttentionJob& job, const AttentionScratch& scratch, const KeyBlock& block,
                        const bf16* queries, int64_t query, int64_t place, int64_t first) {
    const int64_t width = job.nope + job.rope;
    score_keys<Q>(queries, job.heads * width, width, block.keys, scratch.scores);
    float rescale[Q];
    int64_t max_seen = 0;
    for (int q = 0; q < Q; ++q) {
        const int64_t seen = min(kKeys, position_of(job, query + q) + 1 - first);
        bf16* factors = scratch.factors + q * kKeys;
        rescale[q] = 1;
        if (seen > 0)
            rescale[q] = online_softmax(scratch.scores + q * kKeys, seen, job.scale, factors,
                                        scratch.running_max + place + q, scratch.total + place + q);
        else
            __builtin_memset(factors, 0, kKeys * sizeof(bf16));
        max_seen = seen;  // of the last query, which attends to most
    }
    weigh_values<Q>(scratch.factors, block.values, job.value, max_seen, rescale, scratch.sums + place * job.value);
}

// One head of `count` queries from `query` on. block_at(first) gives the block that begins with a key.
template <class BlockAt>
void attention_unit(const AttentionJob& job, const AttentionScratch& scratch, int64_t head, int64_t query,
                    int64_t count, BlockAt block_at) {
    const int64_t width = job.nope + job.rope;
    const bf16* queries = job.queries + (query * job.heads + head) * width;
    for (int64_t i = 0; i < count * job.value; ++i) scratch.sums[i] = 0;
    for (int64_t q = 0; q < count; ++q) {
        scratch.running_max[q] = -__builtin_inff();
        scratch.total[q] = 0;
    }
    for (int64_t first = 0; first <= position_of(job, query + count - 1); first += kKeys) {
        const KeyBlock block = block_at(first);
        int64_t q = 0;
        for (; q + kTile <= count; q += kTile)
            if (position_of(job, query + q + kTile - 1) >= first)
                attend_keys<kTile>(job, scratch, block, queries + q * job.heads * width, query + q, q, first);
        for (; q < count; ++q)
            if (position_of(job, query + q) >= first)
                attend_keys<1>(job, scratch, block, queries + q * job.heads * width, query + q, q, first);
    }
    float values[kMaxLatent];
    for (int64_t q = 0; q < count; ++q) {
        deinterleave(scratch.sums + q * job.value, values, job.value);
        bf16* out = job.out + ((query + q) * job.heads + head) * job.value;
        const float share = 1 / scratch.total[q];
        for (int64_t i = 0; i < job.value; ++i) out[i] = to_bf16(values[i] * share);
    }
}

// ---- absorbed ----

// Queries of a unit: kQueries, or fewer where there are too few units to keep all threads at work.
int64_t unit_queries(const AttentionJob& job, int threads) {
    if (job.heads >= threads) return kQueries;
    const int64_t turns = ((job.n_queries + kQueries - 1) / kQueries + threads - 1) / threads;
    const int64_t share = (job.n_queries + turns * threads - 1) / (turns * threads);
    return (share + kTile - 1) / kTile * kTile;
}

void attention_absorbed(const AttentionJob& job, char* memory, int threads) {
    const int64_t size = unit_queries(job, threads), units = (job.n_queries + size - 1) / size;
    Blocks queue;
    auto body = [&](int worker, int) {
        const AttentionScratch scratch(job, memory + worker * AttentionScratch(job, nullptr).bytes);
        const KeyBlock block(job, scratch.block);
        // The last queries see most: they come first, and the short units fill what is left.
        for (int64_t unit; queue.take(units * job.heads, &unit);) {
            const int64_t query = (units - 1 - unit / job.heads) * size, head = unit % job.heads;
            attention_unit(job, scratch, head, query, min(size, job.n_queries - query), [&](int64_t first) {
                pack(job, job.keys + first * job.stride, job.values + first * job.stride, job.stride, first, block);
                return block;
            });
        }
    };
    parallel(threads, body);
}

// ---- expanded ----

// The products of a head's rows of kv_b, panel by panel.
struct HeadWalk {
    const bf16* w;
    int64_t rows, latent, first;

    int64_t columns() const { return min(kColumns, rows - first); }
    bool step() { return (first += kColumns) < rows; }
    Panel panel() const { return panel_of(w + first * latent, columns(), latent, latent); }
};

// Keys and values of a head from latent row `first` on, packed into the blocks behind `blocks`.
void make_span(const AttentionJob& job, const AttentionScratch& scratch, int64_t head, int64_t first, char* blocks) {
    const int64_t width = job.nope + job.value, count = min(kSpan, job.length - first);
    const HeadWalk start{job.kv_b + head * width * job.latent, width, job.latent, -kColumns};
    each_panel(start, scratch.panel, [&](const HeadWalk& at, const Turn& turn) {
        const auto row = [&](int64_t i) { return job.keys + (first + i) * job.stride; };
        multiply_rows(turn, count, row, [&](int64_t i, const float* sums) {
            bf16 values[kColumns];
            for (int64_t c = 0; c < kColumns; ++c) values[c] = to_bf16(sums[c]);
            __builtin_memcpy(scratch.made + i * width + at.first, values, at.columns() * sizeof(bf16));
        });
    });
    for (int64_t key = 0; key < count; key += kKeys) {
        const bf16* made = scratch.made + key * width;
        const KeyBlock block(job, blocks + (first + key) / kKeys * KeyBlock::bytes(job));
        pack(job, made, made + job.nope, width, first + key, block);
    }
}

// Heads whose keys and values are made at a time.
inline int64_t heads_at_once(const AttentionJob& job, int threads) { return min(job.heads, 2 * threads); }

inline int64_t head_bytes(const AttentionJob& job) { return (job.length + kKeys - 1) / kKeys * KeyBlock::bytes(job); }

struct HeadQueues {
    Blocks make, attend;
    Barrier made, attended;
};

void attention_expanded(const AttentionJob& job, char* memory, int threads) {
    const int64_t at_once = heads_at_once(job, threads), groups = (job.heads + at_once - 1) / at_once;
    const int64_t spans = (job.length + kSpan - 1) / kSpan, units = (job.n_queries + kFewQueries - 1) / kFewQueries;
    char* own = memory + at_once * head_bytes(job);
    HeadQueues* queues = new HeadQueues[groups];
    auto body = [&](int worker, int workers) {
        const AttentionScratch scratch(job, own + worker * AttentionScratch(job, nullptr).bytes);
        for (int64_t group = 0; group < groups; ++group) {
            HeadQueues& queue = queues[group];
            const int64_t first_head = group * at_once, heads = min(at_once, job.heads - first_head);
            for (int64_t unit; queue.make.take(heads * spans, &unit);)
                make_span(job, scratch, first_head + unit / spans, unit % spans * kSpan,
                          memory + unit / spans * head_bytes(job));
            queue.made.wait(workers);
            // The last queries see most: they come first, and the short units fill what is left.
            for (int64_t unit; queue.attend.take(heads * units, &unit);) {
                const int64_t query = (units - 1 - unit / heads) * kFewQueries, head = unit % heads;
                char* blocks = memory + head * head_bytes(job);
                attention_unit(job, scratch, first_head + head, query, min(kFewQueries, job.n_queries - query),
                               [&](int64_t key) { return KeyBlock(job, blocks + key / kKeys * KeyBlock::bytes(job)); });
            }
            queue.attended.wait(workers);
        }
    };
    parallel(threads, body);
    delete[] queues;
}

int64_t attention_scratch(const AttentionJob& job, int threads) {
    const int64_t shared = job.kv_b == nullptr ? 0 : heads_at_once(job, threads) * head_bytes(job);
    return shared + threads * AttentionScratch(job, nullptr).bytes;
}

void attention(const AttentionJob& job, char* memory, int threads) {
    if (job.kv_b == nullptr)
        attention_absorbed(job, memory, threads);
    else
        attention_expanded(job, memory, threads);
}

}  // namespace
}  // namespace dslite
