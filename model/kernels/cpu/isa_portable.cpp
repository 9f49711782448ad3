// Plain C++, for every other processor: the compiler makes of it what it can.
#include "ops.h"
#include "team.h"

namespace dslite {
namespace {

struct Isa {
    static constexpr int64_t kLanes = 8, kInterleaved = 8;
    static constexpr int kTokenTile = 2, kHeadTile = 2, kQueryTile = 2;

    struct Sum {
        float lane[kLanes];
    };
    struct Pairs {
        bf16 value[2 * kLanes];
    };

    static inline float wide(bf16 value) {
        const uint32_t bits = static_cast<uint32_t>(value) << 16;
        float result;
        __builtin_memcpy(&result, &bits, 4);
        return result;
    }

    static inline Sum zero() { return Sum{}; }
    static inline Pairs load(const bf16* p) {
        Pairs pairs;
        __builtin_memcpy(&pairs, p, sizeof pairs);
        return pairs;
    }
    static inline Sum load_sum(const float* p) {
        Sum sum;
        __builtin_memcpy(&sum, p, sizeof sum);
        return sum;
    }
    static inline void store_pairs(bf16* p, const Pairs& pairs) { __builtin_memcpy(p, &pairs, sizeof pairs); }
    static inline void store(float* p, const Sum& sum) { __builtin_memcpy(p, &sum, sizeof sum); }
    static inline Sum add(Sum a, const Sum& b) {
        for (int64_t i = 0; i < kLanes; ++i) a.lane[i] += b.lane[i];
        return a;
    }
    static inline Sum scale_add(Sum a, float factor, const Sum& b) {
        for (int64_t i = 0; i < kLanes; ++i) a.lane[i] = a.lane[i] * factor + b.lane[i];
        return a;
    }
    static inline Sum greater(Sum a, const Sum& b) {
        for (int64_t i = 0; i < kLanes; ++i) a.lane[i] = b.lane[i] > a.lane[i] ? b.lane[i] : a.lane[i];
        return a;
    }
    static inline float greatest(const Sum& sum) {
        float running_max = sum.lane[0];
        for (int64_t i = 1; i < kLanes; ++i) running_max = sum.lane[i] > running_max ? sum.lane[i] : running_max;
        return running_max;
    }
    static inline void prefetch(const bf16* p) { __builtin_prefetch(p); }
    static inline void prefetch_far(const bf16* p) { __builtin_prefetch(p, 0, 2); }
    static inline Sum dot(Sum sum, const Pairs& a, const Pairs& b) {
        for (int64_t i = 0; i < kLanes; ++i)
            sum.lane[i] +=
                wide(a.value[2 * i]) * wide(b.value[2 * i]) + wide(a.value[2 * i + 1]) * wide(b.value[2 * i + 1]);
        return sum;
    }
    static inline Pairs broadcast_pair(const bf16* p) {
        Pairs pairs;
        for (int64_t i = 0; i < kLanes; ++i) {
            pairs.value[2 * i] = p[0];
            pairs.value[2 * i + 1] = p[1];
        }
        return pairs;
    }
    // Lanes are taken four by four, as vectors have them.
    static inline Pairs broadcast_four(const bf16* p) {
        Pairs pairs;
        for (int64_t i = 0; i < kLanes / 4; ++i) __builtin_memcpy(pairs.value + 8 * i, p, 16);
        return pairs;
    }
    static inline Pairs collect(const bf16* const* rows, int64_t at) {
        Pairs pairs;
        for (int64_t i = 0; i < kLanes / 4; ++i) __builtin_memcpy(pairs.value + 8 * i, rows[4 * i] + at, 16);
        return pairs;
    }
    static inline Sum quarter_totals(const Sum* sums) {
        Sum all;
        for (int64_t i = 0; i < kLanes; ++i) {
            const float* four = sums[i % 4].lane + i / 4 * 4;
            all.lane[i] = four[0] + four[1] + four[2] + four[3];
        }
        return all;
    }
    static inline void interleave(const Pairs& a, const Pairs& b, Pairs* low, Pairs* high) {
        for (int64_t i = 0; i < kLanes; ++i) {
            low->value[2 * i] = a.value[i];
            low->value[2 * i + 1] = b.value[i];
            high->value[2 * i] = a.value[kLanes + i];
            high->value[2 * i + 1] = b.value[kLanes + i];
        }
    }
    static inline float total(const Sum& sum) {
        float all = 0;
        for (int64_t i = 0; i < kLanes; ++i) all += sum.lane[i];
        return all;
    }
    static inline void totals(const Sum* sums, float* out) {
        for (int i = 0; i < 4; ++i) out[i] = total(sums[i]);
    }
};

}  // namespace
}  // namespace dslite

#include "kernels.inc.h"

const dslite::Ops* dslite::ops_portable() { return &kOps; }
