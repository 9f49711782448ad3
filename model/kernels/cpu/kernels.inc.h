// The kernels, written once over an instruction set. Each file that includes this one defines before it, in namespace
// dslite and unnamed within, a struct Isa with: kLanes, Sum (kLanes float32), Pairs (2·kLanes BF16), and the functions
// used below. No library templates here: inlined under one instruction set, they would leak into code that runs on all.

// A row of 2·kLanes values is multiplied pair by pair: lane i of a Sum gets a[2i]·b[2i] + a[2i+1]·b[2i+1].

namespace dslite {
namespace {

constexpr int64_t kPairs = 2 * Isa::kLanes;
constexpr int64_t kMostRows = 256;  // weight rows that a worker takes at once
constexpr int64_t kKeys = 64;       // cached rows of a block of attention

inline float to_float(bf16 value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float wide;
    __builtin_memcpy(&wide, &bits, 4);
    return wide;
}

// To the nearest, of equals to the even one. A NaN may become infinity.
inline bf16 to_bf16_finite(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return static_cast<bf16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline bf16 to_bf16(float value) { return value == value ? to_bf16_finite(value) : 0x7fc0; }

// e^x for x <= 0, to 1e-7: 2^n · 2^f with |f| <= 1/2. Plain arithmetic, which the compiler turns into vectors.
inline float exp_negative(float x) {
    float t = x * 1.44269504f;
    t = t < -126.0f ? -126.0f : t;
    const float n = (t + 12582912.0f) - 12582912.0f;
    const float f = (t - n) * 0.693147181f;
    float p = 1.0f / 720;
    p = p * f + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    uint32_t bits;
    __builtin_memcpy(&bits, &p, 4);
    bits += static_cast<uint32_t>(static_cast<int32_t>(n)) << 23;
    __builtin_memcpy(&p, &bits, 4);
    return t <= -126.0f ? 0.0f : p;
}

inline float silu(float x) {
    const float e = exp_negative(x < 0 ? x : -x);
    return x < 0 ? x * e / (1 + e) : x / (1 + e);
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- products of rows ----

// w · x, both of k values. Four sums, so that no product waits for the one before it.
inline float dot(const bf16* w, const bf16* x, int64_t k) {
    Isa::Sum sums[4] = {Isa::zero(), Isa::zero(), Isa::zero(), Isa::zero()};
    int64_t i = 0;
    for (; i + 4 * kPairs <= k; i += 4 * kPairs) {
        for (int c = 0; c < 4; ++c) {
            const int64_t place = i + c * kPairs;
            sums[c] = Isa::dot(sums[c], Isa::load(w + place), Isa::load(x + place));
        }
    }
    for (; i < k; i += kPairs) sums[0] = Isa::dot(sums[0], Isa::load(w + i), Isa::load(x + i));
    return Isa::total(Isa::add(Isa::add(sums[0], sums[1]), Isa::add(sums[2], sums[3])));
}

// Four weight rows and `T` token rows at given places: out[t][r].
template <int T>
inline void tile_dots(const bf16* w, int64_t w_stride, const bf16* const* x, int64_t k, float (*out)[4]) {
    Isa::Sum sums[T][4];
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < 4; ++r) sums[t][r] = Isa::zero();
    for (int64_t i = 0; i < k; i += kPairs) {
        Isa::Pairs weights[4];
        for (int r = 0; r < 4; ++r) {
            Isa::prefetch_far(w + (r + 4) * w_stride + i);  // not nearer: rows of 4 KB share few lines of L1
            weights[r] = Isa::load(w + r * w_stride + i);
        }
        for (int t = 0; t < T; ++t) {
            const Isa::Pairs token = Isa::load(x[t] + i);
            for (int r = 0; r < 4; ++r) sums[t][r] = Isa::dot(sums[t][r], weights[r], token);
        }
    }
    for (int t = 0; t < T; ++t) Isa::totals(sums[t], out[t]);
}

// tile_dots of `count` tokens, at most `T`.
template <int T>
inline void dots_of(const bf16* w, int64_t w_stride, const bf16* const* x, int64_t count, int64_t k, float (*out)[4]) {
    if (count == T) return tile_dots<T>(w, w_stride, x, k, out);
    if constexpr (T > 1) dots_of<T - 1>(w, w_stride, x, count, k, out);
}

// products(r, t, w[r] · x[t]) of `n` weight rows and `count` token rows, each weight read from memory once.
template <class Take>
inline void products(const bf16* w, int64_t n, int64_t k, const bf16* const* x, int64_t count, Take take) {
    constexpr int kTokens = Isa::kTokenTile;
    if (count == 1) {
        for (int64_t r = 0; r < n; ++r) take(r, 0, dot(w + r * k, x[0], k));
        return;
    }
    float out[kTokens][4];
    int64_t r = 0;
    for (; r + 4 <= n; r += 4) {
        for (int64_t t = 0; t < count; t += kTokens) {
            const int64_t some = least(kTokens, count - t);
            dots_of<kTokens>(w + r * k, k, x + t, some, k, out);
            for (int64_t i = 0; i < 4; ++i)
                for (int64_t j = 0; j < some; ++j) take(r + i, t + j, out[j][i]);
        }
    }
    for (; r < n; ++r)
        for (int64_t t = 0; t < count; ++t) take(r, t, dot(w + r * k, x[t], k));
}

// How many weight rows a worker takes at once: long stretches, because the processor's own prefetching needs some lines
// of each to catch on (it then reads as fast as memory gives; prefetching here made it slower), but enough of them.
int64_t stretch(int64_t rows, int threads) {
    const int64_t fair = (rows / (threads * 8) + 15) / 16 * 16;
    return fair < 16 ? 16 : least(fair, kMostRows);
}

// y = x / rms(x), rounded, times weight, rounded.
void rms_norm(const bf16* x, const bf16* weight, bf16* y, int64_t width, float eps) {
    Isa::Sum sum = Isa::zero();
    for (int64_t i = 0; i < width; i += kPairs) sum = Isa::dot(sum, Isa::load(x + i), Isa::load(x + i));
    const float factor = 1.0f / __builtin_sqrtf(Isa::total(sum) / width + eps);
    for (int64_t i = 0; i < width; ++i)
        y[i] = to_bf16(to_float(to_bf16(to_float(x[i]) * factor)) * to_float(weight[i]));
}

// take(token, row, value) of every row of W times every token.
template <class Take>
void each_product(const bf16* w, const bf16* x, int64_t x_stride, int64_t n, int64_t k, int64_t tokens, int threads,
                  Take take) {
    const int64_t rows = stretch(n, threads), blocks = (n + rows - 1) / rows;
    Blocks queue;
    const bf16* token_rows[kMostTokens];
    for (int64_t t = 0; t < tokens; ++t) token_rows[t] = x + t * x_stride;
    auto body = [&](int, int) {
        for (int64_t block; queue.take(blocks, &block);) {
            const int64_t first = block * rows;
            products(w + first * k, least(rows, n - first), k, token_rows, tokens,
                     [&](int64_t r, int64_t t, float value) { take(t, first + r, value); });
        }
    };
    parallel(threads, body);
}

void norms(const bf16* x, int64_t x_stride, const bf16* weight, bf16* y, int64_t width, int64_t tokens, float eps,
           int threads) {
    constexpr int64_t kSome = 16;
    Blocks queue;
    auto body = [&](int, int) {
        for (int64_t block; queue.take((tokens + kSome - 1) / kSome, &block);)
            for (int64_t t = block * kSome; t < least((block + 1) * kSome, tokens); ++t)
                rms_norm(x + t * x_stride, weight, y + t * width, width, eps);
    };
    parallel(tokens <= kSome ? 1 : threads, body);
}

void linear(const Linear& job, int threads) {
    each_product(job.w, job.x, job.x_stride, job.n, job.k, job.tokens, threads,
                 [&](int64_t t, int64_t r, float value) { job.y[t * job.n + r] = to_bf16(value); });
}

void head(const bf16* w, const bf16* norm, float eps, const bf16* x, bf16* normed, float* y, int64_t n, int64_t k,
          int64_t tokens, int threads) {
    for (int64_t t = 0; t < tokens; ++t) rms_norm(x + t * k, norm, normed + t * k, k, eps);
    each_product(w, normed, k, n, k, tokens, threads,
                 [&](int64_t t, int64_t r, float value) { y[t * n + r] = to_float(to_bf16(value)); });
}

// ---- experts ----

struct ExpertQueues {
    Blocks in, out;
    Barrier middle;
};

void compute_experts(const Experts& job, ExpertQueues& queues, int workers) {
    int64_t width = 0, first_block[kMostExperts + 1] = {0};
    for (int64_t e = 0; e < job.n_experts; ++e) width += job.experts[e].matrices.width;
    const int64_t in = stretch(width, workers), out = stretch(job.hidden, workers);  // rows of gate and up, of down
    for (int64_t e = 0; e < job.n_experts; ++e)
        first_block[e + 1] = first_block[e] + (job.experts[e].matrices.width + in - 1) / in;

    const bf16* tokens[kMostTokens];
    int64_t e = 0;
    for (int64_t block; queues.in.take(first_block[job.n_experts], &block);) {
        while (block >= first_block[e + 1]) ++e;
        const Expert& expert = job.experts[e];
        const Address& at = expert.matrices;
        const int64_t first = (block - first_block[e]) * in, n = least(in, at.width - first);
        for (int64_t t = 0; t < expert.count; ++t) tokens[t] = job.x + job.rows[expert.first + t] * job.hidden;
        float gates[kMostTokens][kMostRows], ups[kMostTokens][kMostRows];
        products(at.gate + first * job.hidden, n, job.hidden, tokens, expert.count,
                 [&](int64_t r, int64_t t, float value) { gates[t][r] = value; });
        products(at.up + first * job.hidden, n, job.hidden, tokens, expert.count,
                 [&](int64_t r, int64_t t, float value) { ups[t][r] = value; });
        for (int64_t t = 0; t < expert.count; ++t) {
            bf16* row = job.products + (expert.first + t) * job.stride + first;
            for (int64_t r = 0; r < n; ++r) row[r] = to_bf16(silu(gates[t][r]) * ups[t][r]);
        }
    }
    queues.middle.wait(workers);
    for (int64_t block; queues.out.take((job.hidden + out - 1) / out, &block);) {
        const int64_t first = block * out, n = least(out, job.hidden - first);
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
                job.result[place + r] = to_bf16(to_float(job.residual[place + r]) + to_float(to_bf16(job.out[place + r])));
        }
    }
}

void experts(const Experts& job, int threads) {
    ExpertQueues queues;
    auto body = [&](int, int workers) { compute_experts(job, queues, workers); };
    parallel(threads, body);
}

// ---- attention ----

// out[h][0..kPairs) += sum over `count` rows of factors[h][row] · row[0..kPairs), for `H` heads. Columns come in the
// order in which Isa::interleave leaves them. `factors` holds BF16 pairs of neighbouring rows, zero behind the last.
template <int H>
inline void weighted_rows(const bf16* rows, int64_t row_stride, int64_t count, const bf16* factors,
                          int64_t factor_stride, float* out, int64_t out_stride, const float* keep) {
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
        Isa::store(place, Isa::scale_add(Isa::load_sum(place), keep[h], low[h]));
        Isa::store(place + Isa::kLanes, Isa::scale_add(Isa::load_sum(place + Isa::kLanes), keep[h], high[h]));
    }
}

// Puts columns from the interleaved order back into their own.
inline void unfold(const float* from, float* to, int64_t width) {
    for (int64_t tile = 0; tile < width; tile += kPairs) {
        for (int64_t i = 0; i < Isa::kLanes; ++i) {
            const int64_t column = tile + i / Isa::kFold * 2 * Isa::kFold + i % Isa::kFold;
            to[column] = from[tile + i];
            to[column + Isa::kFold] = from[tile + Isa::kLanes + i];
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

// Memory of a step, laid out one piece behind the other.
struct Scratch {
    bf16* normed;     // (tokens, hidden)
    bf16* compressed; // (tokens, query_rank)
    bf16* raw;        // (tokens, heads · (nope + rope)): queries
    bf16* own;        // (tokens, width): the tokens' own rows
    bf16* queries;    // (tokens, heads, width): absorbed
    float* latents;   // (tokens, splits, heads, latent): weighted sums, in interleaved order
    float* most;      // (tokens, splits, heads): greatest score
    float* sum;       // (tokens, splits, heads): of the exponentials
    float* scores;    // (splits, heads, kKeys)
    bf16* factors;    // (splits, heads, kKeys)
    bf16* values;     // (tokens, heads · value)
    bf16* attended;   // (tokens, hidden): behind attention
    float* logits;    // (tokens, n_experts)
    Expert* used;     // experts in use, the one that is always used last
    int64_t* ids;     // (tokens, chosen)
    float* weights;   // (tokens, chosen)
    int64_t* rows;    // (tokens · (chosen + 1)): sorted by expert
    float* shares;    // (tokens · (chosen + 1))
    bf16* products;   // (tokens · (chosen + 1), widest)
    float* total;     // (tokens, hidden)
    int64_t width, splits, widest, bytes;

    Scratch(const Layer& layer, const Step& step, char* base, int threads) : splits(threads), bytes(0) {
        const int64_t tokens = step.tokens, heads = layer.heads, entries = tokens * (layer.chosen + 1);
        width = layer.latent + layer.rope;
        widest = layer.always == nullptr ? 0 : layer.always->width;
        if (layer.experts != nullptr)
            for (int64_t e = 0; e < layer.n_experts; ++e)
                widest = layer.experts[e].width > widest ? layer.experts[e].width : widest;
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
        place(&most, tokens * splits * heads);
        place(&sum, tokens * splits * heads);
        place(&scores, splits * heads * kKeys);
        place(&factors, splits * heads * kKeys);
        place(&values, tokens * heads * layer.value);
        place(&attended, tokens * layer.hidden);
        place(&logits, tokens * layer.n_experts);
        place(&used, layer.n_experts + 1);
        place(&ids, tokens * layer.chosen);
        place(&weights, tokens * layer.chosen);
        place(&rows, entries);
        place(&shares, entries);
        place(&products, entries * widest);
        place(&total, tokens * layer.hidden);
    }
};

// Turns neighbouring pairs by their factors, in float32.
void rotate(const bf16* x, const float* factors, bf16* y, int64_t width) {
    for (int64_t i = 0; i < width; i += 2) {
        const float a = to_float(x[i]), b = to_float(x[i + 1]), cosine = factors[i], sine = factors[i + 1];
        y[i] = to_bf16(a * cosine - b * sine);
        y[i + 1] = to_bf16(a * sine + b * cosine);
    }
}

// The cached row of a token: the normed latent, and the rotated key that all heads share.
void keep_row(const Layer& layer, const Step& step, const Scratch& scratch, int64_t token) {
    const bf16* own = scratch.own + token * scratch.width;
    bf16* row = step.rows[token] + (step.lengths[token] - 1) * scratch.width;
    rms_norm(own, layer.kv_a_norm, row, layer.latent, layer.latent_eps);
    rotate(own + layer.latent, step.factors + token * layer.rope, row + layer.latent, layer.rope);
}

// The query of a head in the latent's space: q_nope · W_UK, then q_rope, rotated.
void absorb(const Layer& layer, const Step& step, const Scratch& scratch, int64_t token, int64_t head) {
    const bf16* query = scratch.raw + (token * layer.heads + head) * (layer.nope + layer.rope);
    const bf16* w_uk = layer.kv_b + head * (layer.nope + layer.value) * layer.latent;
    bf16* out = scratch.queries + (token * layer.heads + head) * scratch.width;
    const float keep = 0;
    for (int64_t column = 0; column < layer.latent; column += kPairs) {
        float folded[kPairs] = {0}, values[kPairs];
        weighted_rows<1>(w_uk + column, layer.latent, layer.nope, query, 0, folded, 0, &keep);
        unfold(folded, values, kPairs);
        for (int64_t i = 0; i < kPairs; ++i) out[column + i] = to_bf16(values[i]);
    }
    rotate(query + layer.nope, step.factors + token * layer.rope, out + layer.latent, layer.rope);
}

// Scores of a block of rows against all heads of a token.
void score_block(const Layer& layer, const Scratch& scratch, const bf16* queries, const bf16* rows, int64_t count,
                 float* scores) {
    constexpr int kHeads = Isa::kHeadTile;
    const int64_t width = scratch.width;
    if (count < 4) {
        for (int64_t h = 0; h < layer.heads; ++h)
            for (int64_t s = 0; s < count; ++s) scores[h * kKeys + s] = dot(rows + s * width, queries + h * width, width);
        return;
    }
    for (int64_t s = 0; s < count; s += 4) {
        const int64_t place = least(s, count - 4);  // the last tile goes back over rows that are done
        const bf16* tile = rows + place * width;
        for (int64_t i = layer.latent; i < width; i += 32)
            for (int ahead = 0; ahead < 4; ++ahead) Isa::prefetch(tile + (kKeys + ahead) * width + i);
        int64_t h = 0;
        for (; h + kHeads <= layer.heads; h += kHeads)
            score_tile<kHeads>(queries + h * width, width, tile, width, scores + h * kKeys + place);
        for (; h < layer.heads; ++h) score_tile<1>(queries + h * width, width, tile, width, scores + h * kKeys + place);
    }
}

// Scores of a head into factors of its rows: the running softmax of Milakov and Gimelshein (arXiv 1805.02867).
// Returns what earlier sums are to be multiplied by.
float soften(float* scores, int64_t count, float scale, bf16* factors, float* most, float* sum) {
    for (int64_t s = count; s < kKeys; ++s) scores[s] = -__builtin_inff();
    Isa::Sum best = Isa::load_sum(scores), total = Isa::zero();
    for (int64_t s = Isa::kLanes; s < kKeys; s += Isa::kLanes) best = Isa::greater(best, Isa::load_sum(scores + s));
    const float seen = Isa::greatest(best) * scale, greatest = seen > *most ? seen : *most;
    for (int64_t s = 0; s < kKeys; ++s) scores[s] = exp_negative(scores[s] * scale - greatest);
    for (int64_t s = 0; s < kKeys; s += Isa::kLanes) total = Isa::add(total, Isa::load_sum(scores + s));
    for (int64_t s = 0; s < kKeys; ++s) factors[s] = to_bf16_finite(scores[s]);
    const float keep = exp_negative(*most - greatest);
    *sum = *sum * keep + Isa::total(total);
    *most = greatest;
    return keep;
}

// Rows first to last of a token's cache.
void attend_split(const Layer& layer, const Step& step, const Scratch& scratch, int64_t token, int64_t split,
                  int64_t first, int64_t last) {
    constexpr int kHeads = Isa::kHeadTile * 2;
    const int64_t place = (token * scratch.splits + split) * layer.heads;
    float* latents = scratch.latents + place * layer.latent;
    float* scores = scratch.scores + split * layer.heads * kKeys;
    bf16* factors = scratch.factors + split * layer.heads * kKeys;
    for (int64_t h = 0; h < layer.heads; ++h) {
        scratch.most[place + h] = -__builtin_inff();
        scratch.sum[place + h] = 0;
    }
    for (int64_t i = 0; i < layer.heads * layer.latent; ++i) latents[i] = 0;
    for (; first < last; first += kKeys) {
        const int64_t count = least(kKeys, last - first);
        const bf16* rows = step.rows[token] + first * scratch.width;
        score_block(layer, scratch, scratch.queries + token * layer.heads * scratch.width, rows, count, scores);
        float keep[kMostHeads];
        for (int64_t h = 0; h < layer.heads; ++h)
            keep[h] = soften(scores + h * kKeys, count, layer.scale, factors + h * kKeys, scratch.most + place + h,
                             scratch.sum + place + h);
        for (int64_t column = 0; column < layer.latent; column += kPairs) {
            int64_t h = 0;
            for (; h + kHeads <= layer.heads; h += kHeads)
                weighted_rows<kHeads>(rows + column, scratch.width, count, factors + h * kKeys, kKeys,
                                      latents + h * layer.latent + column, layer.latent, keep + h);
            for (; h < layer.heads; ++h)
                weighted_rows<1>(rows + column, scratch.width, count, factors + h * kKeys, kKeys,
                                 latents + h * layer.latent + column, layer.latent, keep + h);
        }
    }
}

// The splits of a head put together, and its values: W_UV · latent.
void finish_head(const Layer& layer, const Scratch& scratch, int64_t token, int64_t head, int64_t splits) {
    float folded[kMostLatent], values[kMostLatent];
    bf16 latent[kMostLatent];
    const int64_t place = token * scratch.splits * layer.heads + head;
    float greatest = -__builtin_inff(), total = 0;
    for (int64_t i = 0; i < splits; ++i) {
        const float most = scratch.most[place + i * layer.heads];
        greatest = most > greatest ? most : greatest;
    }
    for (int64_t c = 0; c < layer.latent; ++c) folded[c] = 0;
    for (int64_t i = 0; i < splits; ++i) {
        const float share = exp_negative(scratch.most[place + i * layer.heads] - greatest);
        const float* latents = scratch.latents + (place + i * layer.heads) * layer.latent;
        total += share * scratch.sum[place + i * layer.heads];
        for (int64_t c = 0; c < layer.latent; ++c) folded[c] += share * latents[c];
    }
    unfold(folded, values, layer.latent);
    for (int64_t c = 0; c < layer.latent; ++c) latent[c] = to_bf16(values[c] / total);
    const bf16* w_uv = layer.kv_b + (head * (layer.nope + layer.value) + layer.nope) * layer.latent;
    bf16* out = scratch.values + (token * layer.heads + head) * layer.value;
    for (int64_t v = 0; v < layer.value; ++v) out[v] = to_bf16(dot(w_uv + v * layer.latent, latent, layer.latent));
}

// ---- a layer ----

// The best experts of each token, by softmax of its logits; the first of equals.
void choose(const Layer& layer, const float* logits, int64_t tokens, int64_t* ids, float* weights) {
    for (int64_t t = 0; t < tokens; ++t, logits += layer.n_experts) {
        float greatest = logits[0], total = 0;
        bool taken[kMostExperts] = {false};
        for (int64_t e = 1; e < layer.n_experts; ++e) greatest = logits[e] > greatest ? logits[e] : greatest;
        for (int64_t e = 0; e < layer.n_experts; ++e) total += exp_negative(logits[e] - greatest);
        for (int64_t i = 0; i < layer.chosen; ++i) {
            int64_t best = 0;
            while (taken[best]) ++best;
            for (int64_t e = best + 1; e < layer.n_experts; ++e)
                if (!taken[e] && logits[e] > logits[best]) best = e;
            taken[best] = true;
            ids[t * layer.chosen + i] = best;
            weights[t * layer.chosen + i] = exp_negative(logits[best] - greatest) / total * layer.scaling;
        }
    }
}

// Sorts the tokens' choices by expert; the experts in use, the one that is always used behind them.
int64_t group(const Layer& layer, const Scratch& scratch, int64_t tokens) {
    int64_t entries = 0, used = 0;
    for (int64_t e = 0; layer.experts != nullptr && e < layer.n_experts; ++e) {
        const int64_t first = entries;
        for (int64_t i = 0; i < tokens * layer.chosen; ++i) {
            if (scratch.ids[i] != e) continue;
            scratch.rows[entries] = i / layer.chosen;
            scratch.shares[entries++] = scratch.weights[i];
        }
        if (entries > first) scratch.used[used++] = {layer.experts[e], first, entries - first};
    }
    if (layer.always == nullptr) return used;
    scratch.used[used++] = {*layer.always, entries, tokens};
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

void project(const Projection& a, const Projection& b, const bf16* x, int64_t k, int64_t tokens, Blocks& queue, int workers) {
    const bf16* token_rows[kMostTokens];
    for (int64_t t = 0; t < tokens; ++t) token_rows[t] = x + t * k;
    const int64_t rows = stretch(a.n + b.n, workers), blocks_a = (a.n + rows - 1) / rows;
    for (int64_t block; queue.take(blocks_a + (b.n + rows - 1) / rows, &block);) {
        const Projection& at = block < blocks_a ? a : b;
        const int64_t first = (block < blocks_a ? block : block - blocks_a) * rows;
        products(at.w + first * k, least(rows, at.n - first), k, token_rows, tokens,
                 [&](int64_t r, int64_t t, float value) { at.y[t * at.n + first + r] = to_bf16(value); });
    }
}

struct LayerQueues {
    Blocks norm, project, norm_q, project_q, absorb, finish, output, norm_mlp, gate;
    Barrier normed, projected, normed_q, projected_q, absorbed, attended, finished, output_done, normed_mlp, scored, chosen, done;
    ExpertQueues experts;
    int64_t used;
};

void attend(const Layer& layer, const Step& step, const Scratch& scratch, LayerQueues& queues, int worker, int workers) {
    const int64_t tokens = step.tokens, heads = layer.heads, n_queries = heads * (layer.nope + layer.rope);
    for (int64_t t; queues.norm.take(tokens, &t);)
        rms_norm(step.x + t * layer.hidden, layer.input_norm, scratch.normed + t * layer.hidden, layer.hidden, layer.eps);
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
        if (unit < tokens) keep_row(layer, step, scratch, unit);
        else absorb(layer, step, scratch, unit % tokens, unit / tokens - 1);
    }
    queues.absorbed.wait(workers);
    auto splits_of = [&](int64_t token) { return least(scratch.splits, (step.lengths[token] + kKeys - 1) / kKeys); };
    for (int64_t t = 0; t < tokens; ++t) {
        // Fixed shares, so that the same question gives the same last bit every time.
        const int64_t blocks = (step.lengths[t] + kKeys - 1) / kKeys, splits = splits_of(t);
        for (int64_t split = worker; split < splits; split += workers)
            attend_split(layer, step, scratch, t, split, split * blocks / splits * kKeys,
                         least((split + 1) * blocks / splits * kKeys, step.lengths[t]));
    }
    queues.attended.wait(workers);
    for (int64_t unit; queues.finish.take(heads * tokens, &unit);)
        finish_head(layer, scratch, unit % tokens, unit / tokens, splits_of(unit % tokens));
    queues.finished.wait(workers);
    const bf16* token_rows[kMostTokens];
    for (int64_t t = 0; t < tokens; ++t) token_rows[t] = scratch.values + t * heads * layer.value;
    const int64_t rows = stretch(layer.hidden, workers);
    for (int64_t block; queues.output.take((layer.hidden + rows - 1) / rows, &block);) {
        const int64_t first = block * rows;
        products(layer.o + first * heads * layer.value, least(rows, layer.hidden - first), heads * layer.value, token_rows,
                 tokens, [&](int64_t r, int64_t t, float value) {
                     const int64_t place = t * layer.hidden + first + r;
                     scratch.attended[place] = to_bf16(to_float(step.x[place]) + to_float(to_bf16(value)));
                 });
    }
    queues.output_done.wait(workers);
}

void choose_experts(const Layer& layer, const Step& step, const Scratch& scratch, LayerQueues& queues, int worker,
                    int workers) {
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
        if (layer.gate != nullptr) choose(layer, scratch.logits, tokens, scratch.ids, scratch.weights);
        for (int64_t i = 0; layer.uses != nullptr && i < tokens * layer.chosen; ++i) ++layer.uses[scratch.ids[i]];
        queues.used = group(layer, scratch, tokens);
    }
    queues.chosen.wait(workers);
}

// One layer, as worker of a team.
void compute_layer(const Layer& layer, const Step& step, const Scratch& scratch, LayerQueues& queues, int worker,
                   int workers) {
    attend(layer, step, scratch, queues, worker, workers);
    choose_experts(layer, step, scratch, queues, worker, workers);
    if (layer.gate == nullptr || layer.experts != nullptr) {
        const Experts job{scratch.used,   queues.used,   scratch.normed, scratch.rows, scratch.shares,   scratch.products,
                          scratch.widest, scratch.total, step.tokens,    layer.hidden, scratch.attended, step.out};
        compute_experts(job, queues.experts, workers);
        queues.done.wait(workers);
    } else if (worker == 0) {
        __builtin_memcpy(step.out, scratch.attended, step.tokens * layer.hidden * sizeof(bf16));
        __builtin_memcpy(step.normed, scratch.normed, step.tokens * layer.hidden * sizeof(bf16));
        __builtin_memcpy(step.ids, scratch.ids, step.tokens * layer.chosen * sizeof(int64_t));
        __builtin_memcpy(step.weights, scratch.weights, step.tokens * layer.chosen * sizeof(float));
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
            here.rows = step.rows + i * step.tokens;
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

#include "products.inc.h"
#include "prefill.inc.h"

namespace dslite {
namespace {

const Ops kOps = {linear,          head,    experts,     layer_scratch, layers,
                  prefill_scratch, prefill, panel_bytes, many_experts,  many_linear, norms};

}  // namespace
}  // namespace dslite
