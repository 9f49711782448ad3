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

inline bf16 to_bf16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<bf16>(bits >> 16 | 0x40);
    return static_cast<bf16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

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

// Four weight rows and `T` token rows at given places: out[r][t].
template <int T>
inline void tile_dots(const bf16* w, int64_t w_stride, const bf16* const* x, int64_t k, float (*out)[4]) {
    Isa::Sum sums[4][T];
    for (int r = 0; r < 4; ++r)
        for (int t = 0; t < T; ++t) sums[r][t] = Isa::zero();
    for (int64_t i = 0; i < k; i += kPairs) {
        Isa::Pairs tokens[T];
        for (int t = 0; t < T; ++t) tokens[t] = Isa::load(x[t] + i);
        for (int r = 0; r < 4; ++r) {
            Isa::prefetch(w + (r + 4) * w_stride + i);
            const Isa::Pairs weights = Isa::load(w + r * w_stride + i);
            for (int t = 0; t < T; ++t) sums[r][t] = Isa::dot(sums[r][t], weights, tokens[t]);
        }
    }
    for (int r = 0; r < 4; ++r)
        for (int t = 0; t < T; ++t) out[r][t] = Isa::total(sums[r][t]);
}

// products(r, t, w[r] · x[t]) of `n` weight rows and `count` token rows, each weight read from memory once.
template <class Take>
inline void products(const bf16* w, int64_t n, int64_t k, const bf16* const* x, int64_t count, Take take) {
    float out[4][4];
    if (count == 1) {
        for (int64_t r = 0; r < n; ++r) take(r, 0, dot(w + r * k, x[0], k));
        return;
    }
    int64_t r = 0;
    for (; r + 4 <= n; r += 4) {
        for (int64_t t = 0; t < count; t += 4) {
            const int64_t some = least(4, count - t);
            if (some == 4) tile_dots<4>(w + r * k, k, x + t, k, out);
            else if (some == 3) tile_dots<3>(w + r * k, k, x + t, k, out);
            else if (some == 2) tile_dots<2>(w + r * k, k, x + t, k, out);
            else tile_dots<1>(w + r * k, k, x + t, k, out);
            for (int64_t i = 0; i < 4; ++i)
                for (int64_t j = 0; j < some; ++j) take(r + i, t + j, out[i][j]);
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

void linear(const bf16* w, const bf16* x, bf16* y, int64_t n, int64_t k, int64_t tokens, int threads) {
    const int64_t rows = stretch(n, threads), blocks = (n + rows - 1) / rows;
    Blocks queue;
    const bf16* token_rows[kMostTokens];
    for (int64_t t = 0; t < tokens; ++t) token_rows[t] = x + t * k;
    auto body = [&](int, int) {
        for (int64_t block; queue.take(blocks, &block);) {
            const int64_t first = block * rows;
            products(w + first * k, least(rows, n - first), k, token_rows, tokens,
                     [&](int64_t r, int64_t t, float value) { y[t * n + first + r] = to_bf16(value); });
        }
    };
    parallel(threads, body);
}

void gate(const bf16* w, const bf16* x, float* y, int64_t n, int64_t k, int64_t tokens) {
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t r = 0; r < n; ++r) y[t * n + r] = dot(w + r * k, x + t * k, k);
}

void rms_norm(const bf16* x, const bf16* weight, bf16* y, int64_t rows, int64_t width, float eps) {
    for (int64_t row = 0; row < rows; ++row, x += width, y += width) {
        Isa::Sum sum = Isa::zero();
        for (int64_t i = 0; i < width; i += kPairs) sum = Isa::dot(sum, Isa::load(x + i), Isa::load(x + i));
        const float factor = 1.0f / __builtin_sqrtf(Isa::total(sum) / width + eps);
        for (int64_t i = 0; i < width; ++i)
            y[i] = to_bf16(to_float(to_bf16(to_float(x[i]) * factor)) * to_float(weight[i]));
    }
}

// ---- experts ----

void experts(const Experts& job, int threads) {
    int64_t width = 0;
    for (int64_t e = 0; e < job.n_experts; ++e) width += job.experts[e].width;
    const int64_t in = stretch(width, threads), out = stretch(job.hidden, threads);  // rows of gate and up, of down
    int64_t first_block[kMostExperts + 1] = {0};
    for (int64_t e = 0; e < job.n_experts; ++e)
        first_block[e + 1] = first_block[e] + (job.experts[e].width + in - 1) / in;
    const int64_t in_blocks = first_block[job.n_experts], out_blocks = (job.hidden + out - 1) / out;
    Blocks in_queue, out_queue;
    Barrier middle;

    auto body = [&](int, int workers) {
        const bf16* tokens[kMostTokens];
        int64_t e = 0;
        for (int64_t block; in_queue.take(in_blocks, &block);) {
            while (block >= first_block[e + 1]) ++e;
            const Expert& expert = job.experts[e];
            const int64_t first = (block - first_block[e]) * in, n = least(in, expert.width - first);
            for (int64_t t = 0; t < expert.count; ++t) tokens[t] = job.x + job.rows[expert.first + t] * job.hidden;
            float gates[kMostTokens][kMostRows], ups[kMostTokens][kMostRows];
            products(expert.gate + first * job.hidden, n, job.hidden, tokens, expert.count,
                     [&](int64_t r, int64_t t, float value) { gates[t][r] = value; });
            products(expert.up + first * job.hidden, n, job.hidden, tokens, expert.count,
                     [&](int64_t r, int64_t t, float value) { ups[t][r] = value; });
            for (int64_t t = 0; t < expert.count; ++t) {
                bf16* row = job.scratch + (expert.first + t) * job.scratch_stride + first;
                for (int64_t r = 0; r < n; ++r) row[r] = to_bf16(silu(gates[t][r]) * ups[t][r]);
            }
        }
        middle.wait(workers);
        for (int64_t block; out_queue.take(out_blocks, &block);) {
            const int64_t first = block * out, n = least(out, job.hidden - first);
            for (int64_t t = 0; t < job.tokens; ++t)
                for (int64_t r = 0; r < n; ++r) job.out[t * job.hidden + first + r] = 0;
            for (int64_t i = 0; i < job.n_experts; ++i) {
                const Expert& expert = job.experts[i];
                for (int64_t t = 0; t < expert.count; ++t)
                    tokens[t] = job.scratch + (expert.first + t) * job.scratch_stride;
                products(expert.down + first * expert.width, n, expert.width, tokens, expert.count,
                         [&](int64_t r, int64_t t, float value) {
                             const int64_t entry = expert.first + t;
                             job.out[job.rows[entry] * job.hidden + first + r] += job.weights[entry] * value;
                         });
            }
        }
    };
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

struct AttentionScratch {
    int64_t width, splits;
    bf16* queries;   // (heads, width): the absorbed queries
    float* latents;  // (splits, heads, latent): weighted sums, in interleaved order
    float* most;     // (splits, heads): greatest score
    float* sum;      // (splits, heads): of the exponentials
    float* scores;   // (splits, heads, kKeys)
    bf16* factors;   // (splits, heads, kKeys)
    int64_t bytes;

    AttentionScratch(const Attention& job, int threads) {
        width = job.latent + job.rope;
        const int64_t blocks = (job.length + kKeys - 1) / kKeys;
        splits = least(threads, blocks);
        bytes = 0;
        auto place = [&](int64_t size) {
            char* at = job.scratch + bytes;
            bytes += (size + 63) / 64 * 64;
            return at;
        };
        queries = reinterpret_cast<bf16*>(place(job.heads * width * 2));
        latents = reinterpret_cast<float*>(place(splits * job.heads * job.latent * 4));
        most = reinterpret_cast<float*>(place(splits * job.heads * 4));
        sum = reinterpret_cast<float*>(place(splits * job.heads * 4));
        scores = reinterpret_cast<float*>(place(splits * job.heads * kKeys * 4));
        factors = reinterpret_cast<bf16*>(place(splits * job.heads * kKeys * 2));
    }
};

int64_t attention_scratch(const Attention& job, int threads) {
    Attention sized = job;
    sized.scratch = nullptr;
    return AttentionScratch(sized, threads).bytes;
}

// The query of a head in the latent's space: q_nope · W_UK, then q_rope as it is.
void absorb(const Attention& job, const AttentionScratch& scratch, int64_t head) {
    const bf16* query = job.queries + head * (job.nope + job.rope);
    const bf16* w_uk = job.kv_b + head * (job.nope + job.value) * job.latent;
    bf16* out = scratch.queries + head * scratch.width;
    const float keep = 0;
    for (int64_t column = 0; column < job.latent; column += kPairs) {
        float folded[kPairs] = {0}, values[kPairs];
        weighted_rows<1>(w_uk + column, job.latent, job.nope, query, 0, folded, 0, &keep);
        unfold(folded, values, kPairs);
        for (int64_t i = 0; i < kPairs; ++i) out[column + i] = to_bf16(values[i]);
    }
    for (int64_t i = 0; i < job.rope; ++i) out[job.latent + i] = query[job.nope + i];
}

// Scores of a block of rows against all heads.
void score_block(const Attention& job, const AttentionScratch& scratch, const bf16* rows, int64_t count, float* scores) {
    constexpr int kHeads = Isa::kHeadTile;
    const bf16* queries = scratch.queries;
    for (int64_t s = 0; s < count; s += 4) {
        // The last tile goes back over rows that are done rather than beyond the end.
        const int64_t place = count < 4 ? 0 : least(s, count - 4);
        if (count < 4) {
            for (int64_t h = 0; h < job.heads; ++h)
                for (int64_t i = 0; i < count; ++i)
                    scores[h * kKeys + i] = dot(rows + i * job.row_stride, queries + h * scratch.width, scratch.width);
            return;
        }
        const bf16* tile = rows + place * job.row_stride;
        for (int64_t i = job.latent; i < scratch.width; i += 32)
            for (int ahead = 0; ahead < 4; ++ahead) Isa::prefetch(tile + (kKeys + ahead) * job.row_stride + i);
        int64_t h = 0;
        for (; h + kHeads <= job.heads; h += kHeads)
            score_tile<kHeads>(queries + h * scratch.width, scratch.width, tile, job.row_stride,
                               scores + h * kKeys + place);
        for (; h < job.heads; ++h)
            score_tile<1>(queries + h * scratch.width, scratch.width, tile, job.row_stride, scores + h * kKeys + place);
    }
}

// Rows first to last of the cache into the split's running softmax (Milakov and Gimelshein, arXiv 1805.02867).
void attend_split(const Attention& job, const AttentionScratch& scratch, int64_t split, int64_t first, int64_t last) {
    constexpr int kHeads = Isa::kHeadTile * 2;
    float* latents = scratch.latents + split * job.heads * job.latent;
    float* most = scratch.most + split * job.heads;
    float* sum = scratch.sum + split * job.heads;
    float* scores = scratch.scores + split * job.heads * kKeys;
    bf16* factors = scratch.factors + split * job.heads * kKeys;
    for (int64_t h = 0; h < job.heads; ++h) {
        most[h] = -__builtin_inff();
        sum[h] = 0;
    }
    for (int64_t i = 0; i < job.heads * job.latent; ++i) latents[i] = 0;
    for (; first < last; first += kKeys) {
        const int64_t count = least(kKeys, last - first);
        const bf16* rows = job.rows + first * job.row_stride;
        score_block(job, scratch, rows, count, scores);
        float keep[kMostHeads];
        for (int64_t h = 0; h < job.heads; ++h) {
            float* line = scores + h * kKeys;
            float greatest = most[h], total = 0;
            for (int64_t s = 0; s < count; ++s) {
                line[s] *= job.scale;
                greatest = line[s] > greatest ? line[s] : greatest;
            }
            for (int64_t s = 0; s < count; ++s) line[s] = exp_negative(line[s] - greatest);
            for (int64_t s = 0; s < count; ++s) total += line[s];
            for (int64_t s = 0; s < count; ++s) factors[h * kKeys + s] = to_bf16(line[s]);
            if (count % 2) factors[h * kKeys + count] = 0;
            keep[h] = exp_negative(most[h] - greatest);
            sum[h] = sum[h] * keep[h] + total;
            most[h] = greatest;
        }
        for (int64_t column = 0; column < job.latent; column += kPairs) {
            int64_t h = 0;
            for (; h + kHeads <= job.heads; h += kHeads)
                weighted_rows<kHeads>(rows + column, job.row_stride, count, factors + h * kKeys, kKeys,
                                      latents + h * job.latent + column, job.latent, keep + h);
            for (; h < job.heads; ++h)
                weighted_rows<1>(rows + column, job.row_stride, count, factors + h * kKeys, kKeys,
                                 latents + h * job.latent + column, job.latent, keep + h);
        }
    }
}

// The splits of a head put together, and its values: W_UV · latent.
void finish_head(const Attention& job, const AttentionScratch& scratch, int64_t head) {
    float folded[kMostLatent], values[kMostLatent];
    bf16 latent[kMostLatent];
    float greatest = -__builtin_inff(), total = 0;
    for (int64_t i = 0; i < scratch.splits; ++i) {
        const float most = scratch.most[i * job.heads + head];
        greatest = most > greatest ? most : greatest;
    }
    for (int64_t c = 0; c < job.latent; ++c) folded[c] = 0;
    for (int64_t i = 0; i < scratch.splits; ++i) {
        const float share = exp_negative(scratch.most[i * job.heads + head] - greatest);
        const float* latents = scratch.latents + (i * job.heads + head) * job.latent;
        total += share * scratch.sum[i * job.heads + head];
        for (int64_t c = 0; c < job.latent; ++c) folded[c] += share * latents[c];
    }
    unfold(folded, values, job.latent);
    for (int64_t c = 0; c < job.latent; ++c) latent[c] = to_bf16(values[c] / total);
    const bf16* w_uv = job.kv_b + (head * (job.nope + job.value) + job.nope) * job.latent;
    for (int64_t v = 0; v < job.value; ++v)
        job.out[head * job.value + v] = to_bf16(dot(w_uv + v * job.latent, latent, job.latent));
}

void attention(const Attention& job, int threads) {
    const AttentionScratch scratch(job, threads);
    const int64_t blocks = (job.length + kKeys - 1) / kKeys;
    Blocks absorbing, finishing;
    Barrier absorbed, attended;
    auto body = [&](int worker, int workers) {
        for (int64_t head; absorbing.take(job.heads, &head);) absorb(job, scratch, head);
        absorbed.wait(workers);
        // Fixed shares, so that the same question gives the same last bit every time.
        for (int64_t split = worker; split < scratch.splits; split += workers)
            attend_split(job, scratch, split, split * blocks / scratch.splits * kKeys,
                         least((split + 1) * blocks / scratch.splits * kKeys, job.length));
        attended.wait(workers);
        for (int64_t head; finishing.take(job.heads, &head);) finish_head(job, scratch, head);
    };
    parallel(threads, body);
}

const Ops kOps = {linear, experts, attention_scratch, attention, rms_norm, gate};

}  // namespace
}  // namespace dslite
