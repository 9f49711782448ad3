/* What becomes of a process that reads a mapped page which its file no longer has.
 *
 * The system answers with SIGBUS, which ends the process: a terminal application would go down with the user's text.
 * Here the missing pages of a range that was registered become pages of zeros, and the range counts as lost. Whoever
 * computes with it asks afterwards, and throws the result away. Faults anywhere else go where they went before.
 */
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST 1024

static struct {
    atomic_uintptr_t start, end;
    atomic_int lost;
} ranges[MOST];
static struct sigaction before;
static uintptr_t page;

static void on_bus_error(int number, siginfo_t *info, void *context) {
    uintptr_t at = (uintptr_t)info->si_addr;
    for (int i = 0; i < MOST; i++) {
        uintptr_t end = atomic_load(&ranges[i].end);
        if (at < atomic_load(&ranges[i].start) || at >= end) continue;
        atomic_store(&ranges[i].lost, 1);
        at &= ~(page - 1);
        /* All that follows in one piece: what lies behind a file's new end is missing as well. */
        if (mmap((void *)at, end - at, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) return;
        break;
    }
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(number, info, context);
    else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN)
        sigaction(SIGBUS, &before, 0); /* the instruction runs again, and now ends the process */
    else
        before.sa_handler(number);
}

/* Guard a mapped range; returns its number, or -1 where it cannot be guarded. Called by one thread at a time. */
EXPORT int dslite_guard(uintptr_t start, uintptr_t size) {
    if (!page) {
        struct sigaction mine = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        sigemptyset(&mine.sa_mask);
        page = (uintptr_t)sysconf(_SC_PAGESIZE);
        if (sigaction(SIGBUS, &mine, &before)) return -1;
    }
    for (int i = 0; i < MOST; i++) {
        if (atomic_load(&ranges[i].end)) continue;
        atomic_store(&ranges[i].lost, 0);
        atomic_store(&ranges[i].start, start);
        atomic_store(&ranges[i].end, start + size);
        return i;
    }
    return -1;
}

/* Whether pages of a range were missing. */
EXPORT int dslite_lost(int number) { return atomic_load(&ranges[number].lost); }

EXPORT void dslite_release(int number) {
    atomic_store(&ranges[number].end, 0);
    atomic_store(&ranges[number].start, 0);
}

/* Python's import wants it in an extension; nothing imports this one. */
EXPORT void *PyInit__mapped_pages(void) { return 0; }
