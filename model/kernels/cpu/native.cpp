// The interface of the library: plain C functions that Python calls with addresses (native.py).
#include "ops.h"
#include "quantized.h"
#include "team.h"

#include <vector>

namespace {

using namespace dslite;

enum Level { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

int best_level() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && __builtin_cpu_supports("avx512bf16")) return kAvx512Bf16;
    if (avx512) return kAvx512;
    if (avx2) return kAvx2;
#endif
    return kPortable;
}

const Ops* ops_of(int level) {
    switch (level) {
        case kAvx512Bf16: return ops_avx512_bf16();
        case kAvx512: return ops_avx512();
        case kAvx2: return ops_avx2();
        default: return ops_portable();
    }
}

const QuantizedOps* quantized_ops_of(int level) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
    if (level >= kAvx512 && vnni && best_level() >= kAvx512) return quantized_avx512();
    if (level >= kAvx2) return quantized_avx2();
#endif
    return quantized_portable();
}

// Memory of the calling thread, kept for its next call.
template <class T> T* workspace(int64_t count) {
    static thread_local std::vector<T> buffer;
    if (static_cast<int64_t>(buffer.size()) < count) buffer.resize(count);
    return buffer.data();
}

// The same, from the beginning of a cache line on.
char* aligned_workspace(int64_t bytes) {
    char* memory = workspace<char>(bytes + 64);
    return memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64;
}

// Entries, (token, expert) pairs, sorted by expert.
struct Sorted {
    int64_t* used;   // the experts in use
    int64_t* first;  // entry at which each of them begins, and the end of the last
    int64_t* rows;   // token of each entry
    float* weights;
    int64_t n_experts;
};

// In this thread's memory, until its next call.
Sorted sort_entries(int64_t n_experts, const int64_t* ids, const float* weights, int64_t entries, int64_t top_k) {
    int64_t* counts = workspace<int64_t>(3 * n_experts + 2 + entries);
    Sorted sorted{counts + n_experts + 1, counts + 2 * n_experts + 1, counts + 3 * n_experts + 2,
                  workspace<float>(entries), 0};
    for (int64_t e = 0; e <= n_experts; ++e) counts[e] = 0;
    for (int64_t i = 0; i < entries; ++i) ++counts[ids[i] + 1];
    for (int64_t e = 0; e < n_experts; ++e) {
        if (counts[e + 1] > 0) {
            sorted.used[sorted.n_experts] = e;
            sorted.first[sorted.n_experts++] = counts[e];
        }
        counts[e + 1] += counts[e];
    }
    sorted.first[sorted.n_experts] = entries;
    for (int64_t i = 0; i < entries; ++i) {
        const int64_t place = counts[ids[i]]++;
        sorted.rows[place] = i / top_k;
        sorted.weights[place] = weights[i];
    }
    return sorted;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Increased with every change of what follows or of the structs in ops.h.
int dslite_abi() { return 10; }

// Bytes of a struct that Python fills (StructKind), for a check at load; 0 for one that is not known.
int64_t dslite_sizeof(int kind) {
    switch (kind) {
        case kMatrixStruct: return sizeof(Matrix);
        case kMlpStruct: return sizeof(Mlp);
        case kLayerStruct: return sizeof(Layer);
        case kStepStruct: return sizeof(Step);
        case kAttentionJobStruct: return sizeof(AttentionJob);
        default: return 0;
    }
}

// To be called first: see team.h.
void dslite_use_openmp(OpenMp functions) { openmp = functions; }

int dslite_best_level() { return best_level(); }

// See Linear.
void dslite_linear(int level, const bf16* w, const bf16* x, bf16* y, int64_t n, int64_t k, int64_t tokens,
                   int64_t x_stride, int threads) {
    const Linear job{w, x, y, n, k, tokens, x_stride};
    const Ops* ops = ops_of(level);
    if (tokens <= kMaxTokens) return ops->linear(job, threads);
    ops->many_linear(job, aligned_workspace(ops->panel_bytes(k) * threads), threads);
}

// See HeadProducts; kMaxTokens at most.
void dslite_by_head(int level, const bf16* w, const bf16* x, bf16* y, int64_t heads, int64_t n, int64_t k,
                    int64_t tokens, int64_t w_stride, int64_t x_stride, int64_t x_head_stride, int threads) {
    ops_of(level)->by_head({w, x, y, heads, n, k, tokens, w_stride, x_stride, x_head_stride}, threads);
}

// See AttentionJob.
void dslite_attention(int level, const AttentionJob* job, int threads) {
    const Ops* ops = ops_of(level);
    ops->attention(*job, aligned_workspace(ops->attention_scratch(*job, threads)), threads);
}

void dslite_norms(int level, const bf16* x, int64_t x_stride, const bf16* weight, bf16* y, int64_t width,
                  int64_t tokens, float eps, int threads) {
    ops_of(level)->norms(x, x_stride, weight, y, width, tokens, eps, threads);
}

void dslite_head(int level, const bf16* w, const bf16* norm, float eps, const bf16* x, float* y, int64_t n, int64_t k,
                 int64_t tokens, int threads) {
    ops_of(level)->head(w, norm, eps, x, workspace<bf16>(tokens * k), y, n, k, tokens, threads);
}

// out (tokens, hidden) float32 = for each token the sum of weights (tokens, top_k) times its experts, ids.
void dslite_experts(int level, const Mlp* table, int64_t n_experts, const int64_t* ids, const float* weights,
                    const bf16* x, float* out, int64_t tokens, int64_t top_k, int64_t hidden, int threads) {
    const int64_t entries = tokens * top_k;
    const Sorted sorted = sort_entries(n_experts, ids, weights, entries, top_k);
    Mlp* experts = workspace<Mlp>(n_experts);
    int64_t widest = 0;
    for (int64_t i = 0; i < sorted.n_experts; ++i) {
        experts[i] = table[sorted.used[i]];
        widest = experts[i].gate.rows > widest ? experts[i].gate.rows : widest;
    }
    Experts job{experts, sorted.first, sorted.n_experts, x,      sorted.rows, sorted.weights, out,
                tokens,  hidden,       entries,          widest, nullptr,     nullptr,        nullptr};
    if (table[0].gate.bits != 16) {
        const QuantizedOps* ops = quantized_ops_of(level);
        return ops->experts(job, aligned_workspace(ops->experts_scratch(job, threads)), threads);
    }
    job.products = workspace<bf16>(entries * widest);
    const Ops* ops = ops_of(level);
    if (tokens <= kMaxTokens) return ops->experts(job, threads);
    ops->many_experts(job, aligned_workspace(ops->panel_bytes(hidden) * threads), threads);
}

// See QuantizedLinear.
void dslite_quantized_linear(int level, const Matrix* w, const bf16* x, int64_t x_stride, int64_t tokens, void* y,
                             int as_float, int threads) {
    const QuantizedLinear job{*w, x, x_stride, tokens, y, as_float != 0};
    const QuantizedOps* ops = quantized_ops_of(level);
    ops->linear(job, aligned_workspace(ops->linear_scratch(job, threads)), threads);
}

// See quantizer.inc.h.
void dslite_quantize(int level, const bf16* w, int64_t row_stride, const Matrix* m, int threads) {
#if defined(__x86_64__)
    if (level >= kAvx2) return quantize_avx2(w, row_stride, *m, threads);
#endif
    quantize_portable(w, row_stride, *m, threads);
}

// Layers one behind the other: see Ops::layers.
void dslite_layers(int level, const Layer* layers, int64_t n_layers, const Step* step, int threads) {
    const Ops* ops = ops_of(level);
    int64_t bytes = 0;
    for (int64_t i = 0; i < n_layers; ++i) {
        const int64_t own = ops->layer_scratch(layers[i], *step, threads);
        bytes = own > bytes ? own : bytes;
    }
    bytes += 2 * step->tokens * layers[0].hidden * static_cast<int64_t>(sizeof(bf16)) + 64;
    ops->layers(layers, n_layers, *step, quantized_ops_of(level), aligned_workspace(bytes), threads);
}
}
#pragma GCC visibility pop
