// Attention of many queries, part of kernels.inc.h.

namespace dslite {
namespace {

constexpr int64_t kQueries = 192;  // the most of a unit of work: enough that packing its keys costs little; whole tiles

// A worker's memory: a block of keys and values in the order in which they are multiplied, and a unit's running sums.
struct PrefillScratch {
    uint32_t* keys;   // ((nope + rope) / 2, kKeys): pairs of neighbouring values, key by key
    bf16* values;     // (kKeys / 2, value) pairs of neighbouring keys, interleaved
    float* sums;      // (kQueries, value), in interleaved order
    float *most, *total;  // (kQueries)
    float* scores;    // (query tile, kKeys)
    bf16* factors;    // (query tile, kKeys)
    int64_t bytes;

    PrefillScratch(const Prefill& job, char* base) : bytes(0) {
        auto place = [&](auto** at, int64_t count) {
            *at = reinterpret_cast<__typeof__(*at)>(base + bytes);
            bytes += (count * static_cast<int64_t>(sizeof(**at)) + 63) / 64 * 64;
        };
        place(&keys, (job.nope + job.rope) / 2 * kKeys);
        place(&values, kKeys * job.value);
        place(&sums, kQueries * job.value);
        place(&most, kQueries);
        place(&total, kQueries);
        place(&scores, Isa::kQueryTile * kKeys);
        place(&factors, Isa::kQueryTile * kKeys);
    }
};

// Keys first to first + kKeys of a head; zeros behind the last.
void pack(const Prefill& job, const PrefillScratch& scratch, int64_t head, int64_t first) {
    const int64_t count = least(kKeys, job.length - first);
    const bf16* keys = job.keys + first * job.stride + head * job.head_stride;
    const bf16* values = job.values + first * job.stride + head * job.head_stride;
    const bf16* rotary = job.rotary + first * job.rotary_stride;
    for (int64_t pair = 0; pair < (job.nope + job.rope) / 2; ++pair) {
        const bool shared = pair >= job.nope / 2;
        const bf16* from = shared ? rotary + 2 * pair - job.nope : keys + 2 * pair;
        const int64_t step = shared ? job.rotary_stride : job.stride;
        uint32_t* to = scratch.keys + pair * kKeys;
        for (int64_t key = 0; key < count; ++key) __builtin_memcpy(to + key, from + key * step, 4);
        for (int64_t key = count; key < kKeys; ++key) to[key] = 0;
    }
    const bf16 zeros[kPairs] = {0};
    for (int64_t key = 0; key < kKeys; key += 2) {
        for (int64_t column = 0; column < job.value; column += kPairs) {
            const bf16* from = values + key * job.stride + column;
            Isa::Pairs low, high;
            Isa::interleave(Isa::load(key < count ? from : zeros), Isa::load(key + 1 < count ? from + job.stride : zeros),
                            &low, &high);
            bf16* to = scratch.values + key * job.value + 2 * column;
            __builtin_memcpy(to, &low, sizeof low);
            __builtin_memcpy(to + kPairs, &high, sizeof high);
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
            Isa::Pairs some[4];
            for (int v = 0; v < 4; ++v)
                some[v] = Isa::load(reinterpret_cast<const bf16*>(keys + pair * kKeys + first + v * Isa::kLanes));
            for (int q = 0; q < Q; ++q) {
                const Isa::Pairs query = Isa::broadcast_pair(queries + q * query_stride + 2 * pair);
                for (int v = 0; v < 4; ++v) sums[q][v] = Isa::dot(sums[q][v], some[v], query);
            }
        }
        for (int q = 0; q < Q; ++q)
            for (int v = 0; v < 4; ++v) Isa::store(scores + q * kKeys + first + v * Isa::kLanes, sums[q][v]);
    }
}

// sums[q] = sums[q] · keep[q] + factors[q] · values, for `Q` queries and the packed values.
template <int Q>
inline void weigh_values(const bf16* factors, const bf16* values, int64_t value, const float* keep, float* sums) {
    for (int64_t column = 0; column < value; column += kPairs) {
        Isa::Sum low[Q], high[Q];
        for (int q = 0; q < Q; ++q) low[q] = high[q] = Isa::zero();
        for (int64_t key = 0; key < kKeys; key += 2) {
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
            Isa::store(place, Isa::scale_add(Isa::load_sum(place), keep[q], low[q]));
            Isa::store(place + Isa::kLanes, Isa::scale_add(Isa::load_sum(place + Isa::kLanes), keep[q], high[q]));
        }
    }
}

// The token that a query belongs to.
inline int64_t position_of(const Prefill& job, int64_t query) {
    return job.length - job.n_queries / job.sharing + query / job.sharing;
}

// `Q` queries from `query` on, the `place`-th of a unit, against the packed keys from `first` on.
template <int Q>
inline void attend_keys(const Prefill& job, const PrefillScratch& scratch, const bf16* queries, int64_t query,
                        int64_t place, int64_t first) {
    const int64_t width = job.nope + job.rope;
    score_keys<Q>(queries, job.heads * width, width, scratch.keys, scratch.scores);
    float keep[Q];
    for (int q = 0; q < Q; ++q) {
        const int64_t seen = least(kKeys, position_of(job, query + q) + 1 - first);
        bf16* factors = scratch.factors + q * kKeys;
        keep[q] = 1;
        if (seen > 0)
            keep[q] = soften(scratch.scores + q * kKeys, seen, job.scale, factors, scratch.most + place + q,
                             scratch.total + place + q);
        for (int64_t key = seen > 0 ? seen : 0; key < kKeys; ++key) factors[key] = 0;
    }
    weigh_values<Q>(scratch.factors, scratch.values, job.value, keep, scratch.sums + place * job.value);
}

// One head of `count` queries from `query` on.
void prefill_unit(const Prefill& job, const PrefillScratch& scratch, int64_t head, int64_t query, int64_t count) {
    constexpr int kTile = Isa::kQueryTile;
    const int64_t width = job.nope + job.rope;
    const bf16* queries = job.queries + (query * job.heads + head) * width;
    for (int64_t i = 0; i < count * job.value; ++i) scratch.sums[i] = 0;
    for (int64_t q = 0; q < count; ++q) {
        scratch.most[q] = -__builtin_inff();
        scratch.total[q] = 0;
    }
    for (int64_t first = 0; first <= position_of(job, query + count - 1); first += kKeys) {
        pack(job, scratch, head, first);
        int64_t q = 0;
        for (; q + kTile <= count; q += kTile)
            if (position_of(job, query + q + kTile - 1) >= first)
                attend_keys<kTile>(job, scratch, queries + q * job.heads * width, query + q, q, first);
        for (; q < count; ++q)
            if (position_of(job, query + q) >= first)
                attend_keys<1>(job, scratch, queries + q * job.heads * width, query + q, q, first);
    }
    float values[kMostLatent];
    for (int64_t q = 0; q < count; ++q) {
        unfold(scratch.sums + q * job.value, values, job.value);
        bf16* out = job.out + ((query + q) * job.heads + head) * job.value;
        for (int64_t i = 0; i < job.value; ++i) out[i] = to_bf16(values[i] / scratch.total[q]);
    }
}

// Queries of a unit: kQueries, or fewer where heads are too few to keep all threads at work.
int64_t unit_queries(const Prefill& job, int threads) {
    if (job.heads >= threads) return kQueries;
    const int64_t turns = ((job.n_queries + kQueries - 1) / kQueries + threads - 1) / threads;
    const int64_t share = (job.n_queries + turns * threads - 1) / (turns * threads);
    return (share + Isa::kQueryTile - 1) / Isa::kQueryTile * Isa::kQueryTile;
}

int64_t prefill_scratch(const Prefill& job) { return PrefillScratch(job, nullptr).bytes; }

void prefill(const Prefill& job, char* memory, int threads) {
    const int64_t size = unit_queries(job, threads), blocks = (job.n_queries + size - 1) / size;
    Blocks queue;
    auto body = [&](int worker, int) {
        const PrefillScratch scratch(job, memory + worker * prefill_scratch(job));
        // The last queries see most: they come first, and the short units fill what is left.
        for (int64_t unit; queue.take(blocks * job.heads, &unit);) {
            const int64_t query = (blocks - 1 - unit / job.heads) * size;
            prefill_unit(job, scratch, unit % job.heads, query, least(size, job.n_queries - query));
        }
    };
    parallel(threads, body);
}

}  // namespace
}  // namespace dslite
