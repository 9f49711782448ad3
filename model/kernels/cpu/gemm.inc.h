// Products of many token rows (GEMM). Weight rows are taken in panels of kColumns. A panel is packed into the order of
// multiplication while the first token rows are multiplied, and stays in the L2 cache for all others. Meanwhile the
// rows of the next panel are prefetched: at fifty tokens an expert, reading its weights from memory would otherwise
// take a quarter of the time of the multiplication.
#pragma once

#include "experts.inc.h"

namespace dslite {
namespace {

constexpr int64_t kColumns = 4 * Isa::kLanes;  // weight rows of a panel
constexpr int64_t kHalf = kColumns / 2;        // of each of its two matrices
constexpr int64_t kDepth = 2048;               // the most values of such a row, where sums can be kept outside
constexpr int64_t kLine = 32;                  // values of a cache line
constexpr int64_t kTokenBlock = 256;           // token rows of a unit of work
constexpr int kTile = Isa::kQueryTile;         // token rows multiplied at once

// Up to kHalf neighbouring rows of each of two matrices: `depth` values of each, rows `stride` values apart.
struct Panel {
    const bf16* w[2];
    int64_t rows[2];
    int64_t stride, depth;

    int64_t count() const { return rows[0] + rows[1]; }
    bool same(const Panel& other) const { return w[0] == other.w[0] && w[1] == other.w[1]; }
    const bf16* row(int64_t i) const { return i < rows[0] ? w[0] + i * stride : w[1] + (i - rows[0]) * stride; }
};

// Up to kColumns neighbouring rows of one matrix.
inline Panel panel_of(const bf16* w, int64_t rows, int64_t stride, int64_t depth) {
    const int64_t above = min(rows, kHalf);
    return {{w, w + above * stride}, {above, min(rows - above, kHalf)}, stride, depth};
}

// Rows to be fetched beside a product.
struct Ahead {
    const bf16* rows[kColumns + kTile];
    int64_t count = 0;
};

// A line of kLanes weight rows into the order in which they are multiplied: a vector holds four pairs of every fourth
// row. Four rows at a time, because rows of 4 KB compete for the same few places in the first cache.
inline void pack_line(const bf16* const* raw, int64_t at, bf16* packed) {
    for (int64_t v = 0; v < 4; ++v)
        for (int64_t step = 0; step < kLine / 8; ++step)
            Isa::store_pairs(packed + (step * 4 + v) * kPairs, Isa::collect(raw + v, at + step * 8));
}

// out[t][0..kLanes) of `T` token rows and kLanes weight rows. Where `raw` is not null they are packed on the way.
template <int T>
inline void multiply_tile(const bf16* const* x, const bf16* const* raw, bf16* packed, int64_t depth, const Ahead& ahead,
                          float* out) {
    Isa::Sum sums[T][4];
    const bf16* rows[T];
    for (int t = 0; t < T; ++t) rows[t] = x[t];
    for (int t = 0; t < T; ++t)
        for (int v = 0; v < 4; ++v) sums[t][v] = Isa::zero();
    for (int64_t line = 0; line < depth; line += kLine) {
        for (int64_t a = 0; a < ahead.count; ++a) Isa::prefetch_far(ahead.rows[a] + line);
        if (raw != nullptr) pack_line(raw, line, packed);
        for (int64_t i = line; i < line + kLine; i += 8, packed += 4 * kPairs) {
            Isa::Pairs weights[4];
            for (int v = 0; v < 4; ++v) weights[v] = Isa::load(packed + v * kPairs);
            for (int t = 0; t < T; ++t) {
                const Isa::Pairs token = Isa::broadcast_four(rows[t] + i);
                for (int v = 0; v < 4; ++v) sums[t][v] = Isa::dot(sums[t][v], weights[v], token);
            }
        }
    }
    for (int t = 0; t < T; ++t) Isa::store(out + t * kColumns, Isa::quarter_totals(sums[t]));
}

// The same for 1 to `T` token rows.
template <int T>
inline void multiply_up_to(int64_t count, const bf16* const* x, const bf16* const* raw, bf16* packed, int64_t depth,
                           const Ahead& ahead, float* out) {
    if constexpr (T > 1) {
        if (count < T) return multiply_up_to<T - 1>(count, x, raw, packed, depth, ahead, out);
    }
    multiply_tile<T>(x, raw, packed, depth, ahead, out);
}

// A panel as one worker multiplies it: `packed` is its memory, `fresh` says that the panel is not there yet, and `next`
// is the one to be fetched meanwhile, or null.
struct Turn {
    Panel panel;
    bf16* packed;
    bool fresh;
    const Panel* next;
};

// take(i, products of token row row(i) with the panel's rows) for `count` token rows. Values behind the panel's last
// row in either half are undefined.
template <class Row, class Take>
inline void multiply_rows(const Turn& turn, int64_t count, Row row, Take take) {
    alignas(64) float out[kTile * kColumns];
    const bf16 *x[kTile], *raw[Isa::kLanes];
    const Panel& panel = turn.panel;
    const int64_t tiles = (count + kTile - 1) / kTile, coming = turn.next == nullptr ? 0 : turn.next->count();
    int64_t fetched = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = tile * count / tiles, behind = (tile + 1) * count / tiles, n_rows = behind - first;
        for (int64_t t = 0; t < n_rows; ++t) x[t] = row(first + t);
        for (int64_t group = 0; group < 4; ++group) {
            Ahead ahead;
            for (; fetched < (4 * tile + group + 1) * coming / (4 * tiles); ++fetched)
                ahead.rows[ahead.count++] = turn.next->row(fetched);
            for (int64_t t = behind + group; t < min(behind + kTile, count); t += 4) ahead.rows[ahead.count++] = row(t);

            const int64_t at = group % 2 * Isa::kLanes, last = panel.rows[group / 2] - 1;
            if (at > last) continue;
            const bool pack = turn.fresh && tile == 0;
            for (int64_t r = 0; pack && r < Isa::kLanes; ++r)
                raw[r] = panel.w[group / 2] + min(at + r, last) * panel.stride;
            multiply_up_to<kTile>(n_rows, x, pack ? raw : nullptr, turn.packed + group * Isa::kLanes * panel.depth,
                                  panel.depth, ahead, out + group * Isa::kLanes);
        }
        for (int64_t t = 0; t < n_rows; ++t) take(first + t, out + t * kColumns);
    }
}

// use(place, turn) for each place of a walk: `step` goes to the first and to the next, `panel` is the one there.
template <class Walk, class Use>
inline void each_panel(Walk walk, bf16* packed, Use use) {
    bool more = walk.step(), fresh = true;
    while (more) {
        const Walk here = walk;
        more = walk.step();
        const Panel panel = here.panel(), next = more ? walk.panel() : panel;
        const bool same = next.same(panel);
        use(here, Turn{panel, packed, fresh, same ? nullptr : &next});
        fresh = !same;
    }
}

// Gate and up. A unit is kHalf columns of one expert.
struct GateUpWalk {
    const Experts& job;
    Blocks& queue;
    int64_t expert, before, unit;  // `before`: units of the experts before this one

    const Mlp& at() const { return job.experts[expert]; }
    int64_t first() const { return (unit - before) * kHalf; }
    int64_t columns() const { return min(kHalf, at().gate.rows - first()); }

    bool step() {
        queue.take(0, &unit);
        for (; expert < job.n_experts; ++expert) {
            const int64_t units = (at().gate.rows + kHalf - 1) / kHalf;
            if (unit < before + units) return true;
            before += units;
        }
        return false;
    }

    Panel panel() const {
        return {
            {rows_of(at().gate, first()), rows_of(at().up, first())}, {columns(), columns()}, job.hidden, job.hidden};
    }
};

// Down. A unit is kColumns columns of all experts, one behind the other: no two workers add to the same sums, and the
// order in which they are added is always the same. Long rows are taken in parts.
struct DownWalk {
    const Experts& job;
    Blocks& queue;
    int64_t unit, expert, part;

    const Matrix& at() const { return job.experts[expert].down; }
    int64_t first() const { return unit * kColumns; }
    int64_t columns() const { return min(kColumns, job.hidden - first()); }
    int64_t parts() const { return (at().columns + kDepth - 1) / kDepth; }
    int64_t place(int64_t p) const { return at().columns / kLine * p / parts() * kLine; }

    bool step() {
        if (++part < parts()) return true;
        part = 0;
        if (++expert < job.n_experts) return true;
        expert = 0;
        return queue.take((job.hidden + kColumns - 1) / kColumns, &unit);
    }

    Panel panel() const {
        const bf16* w = rows_of(at(), first()) + place(part);
        return panel_of(w, columns(), at().columns, place(part + 1) - place(part));
    }
};

void compute_gate_up(const Experts& job, Blocks& queue, bf16* packed) {
    each_panel(GateUpWalk{job, queue, 0, 0, 0}, packed, [&](const GateUpWalk& at, const Turn& turn) {
        const int64_t entry = job.first[at.expert], count = job.first[at.expert + 1] - entry;
        const auto row = [&](int64_t i) { return job.x + job.rows[entry + i] * job.hidden; };
        multiply_rows(turn, count, row, [&](int64_t i, const float* sums) {
            bf16 values[kHalf];
            for (int64_t c = 0; c < kHalf; ++c) values[c] = to_bf16(silu(sums[c]) * sums[kHalf + c]);
            bf16* to = job.products + (entry + i) * job.width + at.first();
            __builtin_memcpy(to, values, at.columns() * sizeof(bf16));
        });
    });
}

void compute_down(const Experts& job, Blocks& queue, bf16* packed) {
    const int64_t last = job.n_experts - 1, parts = job.experts[last].down.columns;  // more than there are
    each_panel(DownWalk{job, queue, 0, last, parts}, packed, [&](const DownWalk& at, const Turn& turn) {
        const int64_t first = job.first[at.expert], count = job.first[at.expert + 1] - first;
        const int64_t columns = at.columns();
        float* out = job.out + at.first();
        if (at.expert == 0 && at.part == 0)
            for (int64_t t = 0; t < job.tokens; ++t) __builtin_memset(out + t * job.hidden, 0, columns * sizeof(float));
        const bf16* products = job.products + first * job.width + at.place(at.part);
        const auto row = [&](int64_t i) { return products + i * job.width; };
        multiply_rows(turn, count, row, [&](int64_t i, const float* sums) {
            const int64_t entry = first + i;
            float* to = out + job.rows[entry] * job.hidden;
            for (int64_t c = 0; c < columns; ++c) to[c] += job.weights[entry] * sums[c];
        });
    });
}

int64_t panel_bytes(int64_t depth) {
    return kColumns * (depth > kDepth ? depth : kDepth) * static_cast<int64_t>(sizeof(bf16));
}

void many_experts(const Experts& job, char* memory, int threads) {
    ExpertQueues queues;
    auto body = [&](int worker, int workers) {
        bf16* packed = reinterpret_cast<bf16*>(memory + worker * panel_bytes(job.hidden));
        compute_gate_up(job, queues.in, packed);
        queues.gate_up_done.wait(workers);
        compute_down(job, queues.out, packed);
    };
    parallel(threads, body);
}

// A unit is kColumns weight rows and a block of token rows; blocks with the same weight rows are neighbours.
struct LinearWalk {
    const Linear& job;
    Blocks& queue;
    int64_t unit;

    int64_t blocks() const { return (job.tokens + kTokenBlock - 1) / kTokenBlock; }
    int64_t token(int64_t behind) const { return (unit % blocks() + behind) * job.tokens / blocks(); }
    int64_t first() const { return unit / blocks() * kColumns; }
    int64_t columns() const { return min(kColumns, job.n - first()); }
    bool step() { return queue.take((job.n + kColumns - 1) / kColumns * blocks(), &unit); }
    Panel panel() const { return panel_of(job.w + first() * job.k, columns(), job.k, job.k); }
};

void many_linear(const Linear& job, char* memory, int threads) {
    Blocks queue;
    auto body = [&](int worker, int) {
        bf16* packed = reinterpret_cast<bf16*>(memory + worker * panel_bytes(job.k));
        each_panel(LinearWalk{job, queue, 0}, packed, [&](const LinearWalk& at, const Turn& turn) {
            const int64_t first = at.token(0), columns = at.columns();
            const auto row = [&](int64_t i) { return job.x + (first + i) * job.x_stride; };
            multiply_rows(turn, at.token(1) - first, row, [&](int64_t i, const float* sums) {
                bf16 values[kColumns];
                for (int64_t c = 0; c < kColumns; ++c) values[c] = to_bf16(sums[c]);
                __builtin_memcpy(job.y + (first + i) * job.n + at.first(), values, columns * sizeof(bf16));
            });
        });
    };
    parallel(threads, body);
}

}  // namespace
}  // namespace dslite
