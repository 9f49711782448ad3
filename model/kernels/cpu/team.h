// A team of threads: torch's own. A second pool would compete with it for the cores, because each keeps its threads
// spinning for milliseconds after a product, waiting for the next.
#pragma once

#include <atomic>
#include <cstdint>

namespace dslite {

// The three functions of the OpenMP runtime that torch has loaded, as GCC calls them.
struct OpenMp {
    void (*parallel)(void (*body)(void*), void* context, unsigned threads, unsigned flags);
    int (*thread_num)();
    int (*num_threads)();
};
extern OpenMp openmp;

// body(worker, workers) on up to `threads` threads, of which the caller is worker 0. OpenMP may give fewer (a thread
// limit, a dynamic team): `workers` is how many it gave, and barriers must wait for that number.
template <class Body> void parallel(int threads, Body& body) {
    if (threads <= 1) return body(0, 1);
    openmp.parallel([](void* context) { (*static_cast<Body*>(context))(openmp.thread_num(), openmp.num_threads()); },
                    &body, static_cast<unsigned>(threads), 0);
}

// Workers wait for one another between the phases of a job. One barrier serves one wait.
class Barrier {
public:
    void wait(int workers) {
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == workers - 1) return;
        for (int turn = 0; arrived_.load(std::memory_order_acquire) < workers; ++turn) pause(turn);
    }

private:
    static void pause(int turn);
    std::atomic<int> arrived_{0};
};

// Blocks of work, taken in order. Results must not depend on which worker takes which.
class Blocks {
public:
    bool take(int64_t total, int64_t* block) {
        *block = next_.fetch_add(1, std::memory_order_relaxed);
        return *block < total;
    }

private:
    std::atomic<int64_t> next_{0};
};

}  // namespace dslite
