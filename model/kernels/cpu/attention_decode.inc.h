// Absorbed attention of few tokens over the latent cache (DeepSeek-V2 paper, end of section 2.1.2): the cached entries
// serve as keys and values as they lie. A sequence is shared by the threads in splits of whole blocks of kKeys entries;
// each split has a running maximum, a sum and weighted latents, which finish_head puts together.
#pragma once

#include "dot.inc.h"
#include "quantized_tokens.inc.h"

namespace dslite {
namespace {

// out[h][0..kPairs) = out[h] · rescale[h] + sum over `count` rows of factors[h][row] · row[0..kPairs), for `H` heads.
// Columns come in the order in which Isa::interleave leaves them. `factors` holds BF16 pairs of neighbouring rows, zero
// behind the last.
template <int H>
inline void weighted_rows(const bf16* rows, int64_t row_stride, int64_t count, const bf16* factors,
                          int64_t factor_stride, float* out, int64_t out_stride, const float* rescale) {
    Isa::Sum low[H], high[H];
    for (int h = 0; h < H; ++h) low[h] = high[h] = Isa::zero();
    for (int64_t s = 0; s < count; s += 2) {
        const bf16* row = rows + s * row_stride;
        // Behind the last row lies memory that was never written: its factor is zero, but it might hold NaN.
        const bf16* next = s + 1 < count ? row + row_stride : row;
        Isa::prefetch(row + kKeys * row_stride);  // the next block: its scores are computed right after this
        Isa::prefetch(next + kKeys * row_stride);
        Isa::Pairs both_low, both_high;
        Isa::interleave(Isa::load(row), Isa::load(next), &both_low, &both_high);
        for (int h = 0; h < H; ++h) {
            const Isa::Pairs factor = Isa::broadcast_pair(factors + h * factor_stride + s);
            low[h] = Isa::dot(low[h], both_low, factor);
            high[h] = Isa::dot(high[h], both_high, factor);
        }
    }
    for (int h = 0; h < H; ++h) {
        float* place = out + h * out_stride;
        Isa::store(place, Isa::scale_add(Isa::load_sum(place), rescale[h], low[h]));
        Isa::store(place + Isa::kLanes, Isa::scale_add(Isa::load_sum(place + Isa::kLanes), rescale[h], high[h]));
    }
}

// Puts columns from the interleaved order back into their own.
inline void deinterleave(const float* from, float* to, int64_t width) {
    for (int64_t tile = 0; tile < width; tile += kPairs) {
        for (int64_t i = 0; i < Isa::kLanes; ++i) {
            const int64_t column = tile + i / Isa::kInterleaved * 2 * Isa::kInterleaved + i % Isa::kInterleaved;
            to[column] = from[tile + i];
            to[column + Isa::kInterleaved] = from[tile + Isa::kLanes + i];
        }
    }
}

// scores[h][s] of `H` heads and four rows.
template <int H>
inline void score_tile(const bf16* queries, int64_t width, const bf16* rows, int64_t row_stride, float* scores) {
    Isa::Sum sums[H][4];
    for (int h = 0; h < H; ++h)
        for (int s = 0; s < 4; ++s) sums[h][s] = Isa::zero();
    for (int64_t i = 0; i < width; i += kPairs) {
        Isa::Pairs keys[4];
        for (int s = 0; s < 4; ++s) keys[s] = Isa::load(rows + s * row_stride + i);
        for (int h = 0; h < H; ++h) {
            const Isa::Pairs query = Isa::load(queries + h * width + i);
            for (int s = 0; s < 4; ++s) sums[h][s] = Isa::dot(sums[h][s], keys[s], query);
        }
    }
    for (int h = 0; h < H; ++h) Isa::totals(sums[h], scores + h * kKeys);
}

// Whether all products but those of kv_b and of the router are with quantized weights.
inline bool is_quantized(const Layer& layer) { return layer.q.bits != 16; }

// Memory of a step, one array behind the other.
struct Scratch {
    bf16* normed;  // (tokens, hidden)
    bf16* compressed;  // (tokens, query_rank)
    bf16* raw;  // (tokens, heads · (nope + rope)): queries
    bf16* own;  // (tokens, width): the new cache entries, before norm and rotation
    bf16* queries;  // (tokens, heads, width): absorbed
    float* latents;  // (tokens, splits, heads, latent): weighted sums, in interleaved order
    float* running_max;  // (tokens, splits, heads): greatest score so far
    float* sum;  // (tokens, splits, heads): of the exponentials
    float* scores;  // (splits, heads, kKeys)
    bf16* factors;  // (splits, heads, kKeys)
    bf16* values;  // (tokens, heads · value)
    bf16* attended;  // (tokens, hidden): behind attention
    float* logits;  // (tokens, n_experts)
    Mlp* used;  // the experts in use, the shared ones last
    int64_t* first;  // entry at which each begins, and the end of the last
    int64_t* ids;  // (tokens, top_k)
    float* weights;  // (tokens, top_k)
    int64_t* rows;  // (tokens · (top_k + 1)): sorted by expert
    float* shares;  // (tokens · (top_k + 1))
    bf16* products;  // (tokens · (top_k + 1), widest), unless the weights are quantized
    float* total;  // (tokens, hidden)
    // Of quantized weights: the inputs of their products in int8.
    Tokens latent, heads;  // compressed queries, values of all heads
    QuantizedExpertsMemory experts;  // its `in` also has the normed tokens before attention
    char* memory;  // of each worker, memory_bytes
    int64_t width, splits, widest, memory_bytes, bytes;

    Scratch(const Layer& layer, const Step& step, char* base, int threads) : splits(threads), bytes(0) {
        const int64_t tokens = step.tokens, heads = layer.heads, entries = tokens * (layer.top_k + 1);
        width = layer.latent + layer.rope;
        widest = layer.shared == nullptr ? 0 : layer.shared->gate.rows;
        if (layer.experts != nullptr)
            for (int64_t e = 0; e < layer.n_experts; ++e)
                widest = layer.experts[e].gate.rows > widest ? layer.experts[e].gate.rows : widest;
        auto place = [&](auto** at, int64_t count) {
            *at = reinterpret_cast<__typeof__(*at)>(base + bytes);
            bytes += (count * static_cast<int64_t>(sizeof(**at)) + 63) / 64 * 64;
        };
        place(&normed, tokens * layer.hidden);
        place(&compressed, tokens * layer.query_rank);
        place(&raw, tokens * heads * (layer.nope + layer.rope));
        place(&own, tokens * width);
        place(&queries, tokens * heads * width);
        place(&latents, tokens * splits * heads * layer.latent);
        place(&running_max, tokens * splits * heads);
        place(&sum, tokens * splits * heads);
        place(&scores, splits * heads * kKeys);
        place(&factors, splits * heads * kKeys);
        place(&values, tokens * heads * layer.value);
        place(&attended, tokens * layer.hidden);
        place(&logits, tokens * layer.n_experts);
        place(&used, layer.n_experts + 1);
        place(&first, layer.n_experts + 2);
        place(&ids, tokens * layer.top_k);
        place(&weights, tokens * layer.top_k);
        place(&rows, entries);
        place(&shares, entries);
        place(&products, is_quantized(layer) ? 0 : entries * widest);
        place(&total, tokens * layer.hidden);
        if (is_quantized(layer)) place_quantized(layer, base, tokens, threads);
    }

    void place_quantized(const Layer& layer, char* base, int64_t tokens, int threads) {
        const int64_t values = layer.heads * layer.value;
        int64_t deepest = layer.hidden > values ? layer.hidden : values;
        deepest = layer.query_rank > deepest ? layer.query_rank : deepest;
        Carver carver{base, bytes};
        latent = carve_tokens(carver, tokens, layer.query_rank);
        heads = carve_tokens(carver, tokens, values);
        memory_bytes = worker_scratch(deepest);
        carver.take(&memory, threads * memory_bytes);
        experts = carve_experts(carver, tokens, tokens * (layer.top_k + 1), layer.hidden, widest, threads);
        bytes = carver.bytes;
    }
};

// Rotates neighbouring pairs by their angles (paper, eq. 14 and 15), in float32.
void rotate(const bf16* x, const float* factors, bf16* y, int64_t width) {
    for (int64_t i = 0; i < width; i += 2) {
        const float a = to_float(x[i]), b = to_float(x[i + 1]), cosine = factors[i], sine = factors[i + 1];
        y[i] = to_bf16(a * cosine - b * sine);
        y[i + 1] = to_bf16(a * sine + b * cosine);
    }
}

// The cache entry of a token: the normed latent, and the rotated key that all heads share (paper, eq. 9 and 15).
void store_latent_entry(const Layer& layer, const Step& step, const Scratch& scratch, int64_t token) {
    const bf16* own = scratch.own + token * scratch.width;
    bf16* entry = step.entries[token] + (step.lengths[token] - 1) * scratch.width;
    rms_norm(own, layer.kv_a_norm, entry, layer.latent, layer.latent_eps);
    rotate(own + layer.latent, step.factors + token * layer.rope, entry + layer.latent, layer.rope);
}

// The query of a head in the space of the latents: q_nope · W_UK, then q_rope, rotated.
void absorb(const Layer& layer, const Step& step, const Scratch& scratch, int64_t token, int64_t head) {
    const bf16* query = scratch.raw + (token * layer.heads + head) * (layer.nope + layer.rope);
    const bf16* w_uk = layer.kv_b + head * (layer.nope + layer.value) * layer.latent;
    bf16* out = scratch.queries + (token * layer.heads + head) * scratch.width;
    const float rescale = 0;
    for (int64_t column = 0; column < layer.latent; column += kPairs) {
        float interleaved[kPairs] = {0}, values[kPairs];
        weighted_rows<1>(w_uk + column, layer.latent, layer.nope, query, 0, interleaved, 0, &rescale);
        deinterleave(interleaved, values, kPairs);
        for (int64_t i = 0; i < kPairs; ++i) out[column + i] = to_bf16(values[i]);
    }
    rotate(query + layer.nope, step.factors + token * layer.rope, out + layer.latent, layer.rope);
}

// Scores of a block of cache entries for all heads of a token.
void score_block(const Layer& layer, const Scratch& scratch, const bf16* queries, const bf16* rows, int64_t count,
                 float* scores) {
    constexpr int kHeads = Isa::kHeadTile;
    const int64_t width = scratch.width;
    if (count < 4) {
        for (int64_t h = 0; h < layer.heads; ++h)
            for (int64_t s = 0; s < count; ++s)
                scores[h * kKeys + s] = dot(rows + s * width, queries + h * width, width);
        return;
    }
    for (int64_t s = 0; s < count; s += 4) {
        const int64_t place = min(s, count - 4);  // the last tile goes back over rows that are done
        const bf16* tile = rows + place * width;
        for (int64_t i = layer.latent; i < width; i += 32)
            for (int ahead = 0; ahead < 4; ++ahead) Isa::prefetch(tile + (kKeys + ahead) * width + i);
        int64_t h = 0;
        for (; h + kHeads <= layer.heads; h += kHeads)
            score_tile<kHeads>(queries + h * width, width, tile, width, scores + h * kKeys + place);
        for (; h < layer.heads; ++h) score_tile<1>(queries + h * width, width, tile, width, scores + h * kKeys + place);
    }
}

// The online softmax of Milakov and Gimelshein (arXiv 1805.02867) over one more block of scores: exponentials relative
// to the running maximum, as BF16 factors. Returns the factor by which the sums of earlier blocks must be rescaled.
float online_softmax(float* scores, int64_t count, float scale, bf16* factors, float* running_max, float* sum) {
    for (int64_t s = count; s < kKeys; ++s) scores[s] = -__builtin_inff();
    Isa::Sum best = Isa::load_sum(scores), total = Isa::zero();
    for (int64_t s = Isa::kLanes; s < kKeys; s += Isa::kLanes) best = Isa::greater(best, Isa::load_sum(scores + s));
    const float seen = Isa::greatest(best) * scale, greatest = seen > *running_max ? seen : *running_max;
    for (int64_t s = 0; s < kKeys; ++s) scores[s] = exp_negative(scores[s] * scale - greatest);
    for (int64_t s = 0; s < kKeys; s += Isa::kLanes) total = Isa::add(total, Isa::load_sum(scores + s));
    for (int64_t s = 0; s < kKeys; ++s) factors[s] = to_bf16_finite(scores[s]);
    const float rescale = exp_negative(*running_max - greatest);
    *sum = *sum * rescale + Isa::total(total);
    *running_max = greatest;
    return rescale;
}

// One split: the entries first to last of a token's cache.
void attend_split(const Layer& layer, const Step& step, const Scratch& scratch, int64_t token, int64_t split,
                  int64_t first, int64_t last) {
    constexpr int kHeads = Isa::kHeadTile * 2;
    const int64_t place = (token * scratch.splits + split) * layer.heads;
    float* latents = scratch.latents + place * layer.latent;
    float* scores = scratch.scores + split * layer.heads * kKeys;
    bf16* factors = scratch.factors + split * layer.heads * kKeys;
    for (int64_t h = 0; h < layer.heads; ++h) {
        scratch.running_max[place + h] = -__builtin_inff();
        scratch.sum[place + h] = 0;
    }
    for (int64_t i = 0; i < layer.heads * layer.latent; ++i) latents[i] = 0;
    for (; first < last; first += kKeys) {
        const int64_t count = min(kKeys, last - first);
        const bf16* rows = step.entries[token] + first * scratch.width;
        score_block(layer, scratch, scratch.queries + token * layer.heads * scratch.width, rows, count, scores);
        float rescale[kMaxHeads];
        for (int64_t h = 0; h < layer.heads; ++h)
            rescale[h] = online_softmax(scores + h * kKeys, count, layer.scale, factors + h * kKeys,
                                        scratch.running_max + place + h, scratch.sum + place + h);
        for (int64_t column = 0; column < layer.latent; column += kPairs) {
            int64_t h = 0;
            for (; h + kHeads <= layer.heads; h += kHeads)
                weighted_rows<kHeads>(rows + column, scratch.width, count, factors + h * kKeys, kKeys,
                                      latents + h * layer.latent + column, layer.latent, rescale + h);
            for (; h < layer.heads; ++h)
                weighted_rows<1>(rows + column, scratch.width, count, factors + h * kKeys, kKeys,
                                 latents + h * layer.latent + column, layer.latent, rescale + h);
        }
    }
}

// Combines the splits of a head, then computes its values: W_UV · latent.
void finish_head(const Layer& layer, const Scratch& scratch, int64_t token, int64_t head, int64_t splits) {
    float interleaved[kMaxLatent], values[kMaxLatent];
    bf16 latent[kMaxLatent];
    const int64_t place = token * scratch.splits * layer.heads + head;
    float greatest = -__builtin_inff(), total = 0;
    for (int64_t i = 0; i < splits; ++i) {
        const float running_max = scratch.running_max[place + i * layer.heads];
        greatest = running_max > greatest ? running_max : greatest;
    }
    for (int64_t c = 0; c < layer.latent; ++c) interleaved[c] = 0;
    for (int64_t i = 0; i < splits; ++i) {
        const float share = exp_negative(scratch.running_max[place + i * layer.heads] - greatest);
        const float* latents = scratch.latents + (place + i * layer.heads) * layer.latent;
        total += share * scratch.sum[place + i * layer.heads];
        for (int64_t c = 0; c < layer.latent; ++c) interleaved[c] += share * latents[c];
    }
    deinterleave(interleaved, values, layer.latent);
    for (int64_t c = 0; c < layer.latent; ++c) latent[c] = to_bf16(values[c] / total);
    const bf16* w_uv = layer.kv_b + (head * (layer.nope + layer.value) + layer.nope) * layer.latent;
    bf16* out = scratch.values + (token * layer.heads + head) * layer.value;
    for (int64_t v = 0; v < layer.value; ++v) out[v] = to_bf16(dot(w_uv + v * layer.latent, latent, layer.latent));
}

}  // namespace
}  // namespace dslite
