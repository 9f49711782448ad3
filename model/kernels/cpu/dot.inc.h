// Dot products of few token rows with weight rows (GEMV), where reading the weights is the work; norms and the head.
#pragma once

#include "numeric.inc.h"

namespace dslite {
namespace {

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
inline void tile_dots_up_to(const bf16* w, int64_t w_stride, const bf16* const* x, int64_t count, int64_t k,
                            float (*out)[4]) {
    if (count == T) return tile_dots<T>(w, w_stride, x, k, out);
    if constexpr (T > 1) tile_dots_up_to<T - 1>(w, w_stride, x, count, k, out);
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
            const int64_t n_tokens = min(kTokens, count - t);
            tile_dots_up_to<kTokens>(w + r * k, k, x + t, n_tokens, k, out);
            for (int64_t i = 0; i < 4; ++i)
                for (int64_t j = 0; j < n_tokens; ++j) take(r + i, t + j, out[j][i]);
        }
    }
    for (; r < n; ++r)
        for (int64_t t = 0; t < count; ++t) take(r, t, dot(w + r * k, x[t], k));
}

// How many weight rows a worker takes at once: long stretches, because the processor's own prefetching needs some lines
// of each to catch on (it then reads as fast as memory gives; prefetching here made it slower), but enough of them.
int64_t stretch(int64_t rows, int threads) {
    const int64_t fair = (rows / (threads * 8) + 15) / 16 * 16;
    return fair < 16 ? 16 : min(fair, kMaxRows);
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
    const bf16* token_rows[kMaxTokens];
    for (int64_t t = 0; t < tokens; ++t) token_rows[t] = x + t * x_stride;
    auto body = [&](int, int) {
        for (int64_t block; queue.take(blocks, &block);) {
            const int64_t first = block * rows;
            products(w + first * k, min(rows, n - first), k, token_rows, tokens,
                     [&](int64_t r, int64_t t, float value) { take(t, first + r, value); });
        }
    };
    parallel(threads, body);
}

void norms(const bf16* x, int64_t x_stride, const bf16* weight, bf16* y, int64_t width, int64_t tokens, float eps,
           int threads) {
    constexpr int64_t kRowsPerBlock = 16;
    Blocks queue;
    auto body = [&](int, int) {
        for (int64_t block; queue.take((tokens + kRowsPerBlock - 1) / kRowsPerBlock, &block);)
            for (int64_t t = block * kRowsPerBlock; t < min((block + 1) * kRowsPerBlock, tokens); ++t)
                rms_norm(x + t * x_stride, weight, y + t * width, width, eps);
    };
    parallel(tokens <= kRowsPerBlock ? 1 : threads, body);
}

void linear(const Linear& job, int threads) {
    each_product(job.w, job.x, job.x_stride, job.n, job.k, job.tokens, threads,
                 [&](int64_t t, int64_t r, float value) { job.y[t * job.n + r] = to_bf16(value); });
}

void by_head(const HeadProducts& job, int threads) {
    Blocks queue;
    auto body = [&](int, int) {
        const bf16* rows[kMaxTokens];
        for (int64_t h; queue.take(job.heads, &h);) {
            for (int64_t t = 0; t < job.tokens; ++t) rows[t] = job.x + t * job.x_stride + h * job.x_head_stride;
            products(job.w + h * job.w_stride, job.n, job.k, rows, job.tokens, [&](int64_t r, int64_t t, float value) {
                job.y[(t * job.heads + h) * job.n + r] = to_bf16(value);
            });
        }
    };
    parallel(threads, body);
}

void head(const bf16* w, const bf16* norm, float eps, const bf16* x, bf16* normed, float* y, int64_t n, int64_t k,
          int64_t tokens, int threads) {
    for (int64_t t = 0; t < tokens; ++t) rms_norm(x + t * k, norm, normed + t * k, k, eps);
    each_product(w, normed, k, n, k, tokens, threads,
                 [&](int64_t t, int64_t r, float value) { y[t * n + r] = to_float(to_bf16(value)); });
}

}  // namespace
}  // namespace dslite
