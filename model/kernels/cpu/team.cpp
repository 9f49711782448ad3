#include "team.h"

#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

dslite::OpenMp dslite::openmp = {};

void dslite::Barrier::pause(int turn) {
    // Where more threads run than there are cores, the one that we wait for may need this one.
    if (turn % 1024 == 1023) std::this_thread::yield();
#if defined(__x86_64__)
    _mm_pause();
#endif
}
