/* The compiled step: load the control word, test it, add to a counter.
 *
 * With the GIL nothing comes in between. Without it the control word is loaded with acquire and the addition is atomic
 * and relaxed: nothing that a step writes ever changes its meaning, so no order between steps is needed. PE_ATOMIC has
 * that form also with the GIL, for tests. tests/race.c includes this file.
 */
#include <limits.h>
#include <math.h>
#include <string.h>

#if defined(Py_GIL_DISABLED) && !defined(PE_ATOMIC)
#define PE_ATOMIC
#endif

/* What a step looks at and adds to: an int64 and, behind it, a double. Both pointers change when the Updater leaves its slot. */
typedef struct {
    long long *control;
    long long *counter;
} pe_place;

#if !defined(PE_ATOMIC)
#define PE_LOAD(from) (*(from))
#define PE_LOAD_ACQUIRE(from) (*(from))
#define PE_STORE(to, value) (*(to) = (value))
#elif defined(_MSC_VER)
#include <intrin.h>
#define PE_LOAD(from) (*(from)) /* volatile by /volatile:ms, and aligned */
#define PE_LOAD_ACQUIRE(from) (_InterlockedOr64(from, 0))
#define PE_STORE(to, value) (*(to) = (value))
#define PE_ADD(to, value) _InterlockedExchangeAdd64(to, value)
#define PE_SWAP(to, seen, value) (_InterlockedCompareExchange64(to, value, seen) == (seen))
#else
#define PE_LOAD(from) __atomic_load_n(from, __ATOMIC_RELAXED)
#define PE_LOAD_ACQUIRE(from) __atomic_load_n(from, __ATOMIC_ACQUIRE)
#define PE_STORE(to, value) __atomic_store_n(to, value, __ATOMIC_RELEASE)
#define PE_ADD(to, value) __atomic_fetch_add(to, value, __ATOMIC_RELAXED)
#define PE_SWAP(to, seen, value) __atomic_compare_exchange_n(to, &(seen), value, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)
#endif

/* Beyond this, and by more than this, the slow path counts: no number of threads comes from here to the end of an int64. */
#define PE_FAR (1LL << 61)

/* Add to the int64; 0 where it does not hold the sum. */
static inline int pe_add(pe_place *place, long long step) {
    long long *counter = PE_LOAD(&place->counter);
    long long n = PE_LOAD(counter);
#if defined(PE_ATOMIC)
    if (n > PE_FAR || n < -PE_FAR || step > PE_FAR || step < -PE_FAR) return 0;
    PE_ADD(counter, step);
#elif defined(__GNUC__)
    if (__builtin_add_overflow(n, step, &n)) return 0;
    *counter = n;
#else
    if (step > 0 ? n > LLONG_MAX - step : n < LLONG_MIN - step) return 0;
    *counter = n + step;
#endif
    return 1;
}

/* Add to the double; 0 where that would become infinite. */
static inline int pe_add_float(pe_place *place, double step) {
    long long *counter = PE_LOAD(&place->counter) + 1;
    long long seen, next;
    double n;
    do {
        seen = PE_LOAD(counter);
        memcpy(&n, &seen, 8);
        n += step;
        if (!isfinite(n)) return 0;
        memcpy(&next, &n, 8);
#if defined(PE_ATOMIC)
    } while (!PE_SWAP(counter, seen, next));
#else
        *counter = next;
    } while (0);
#endif
    return 1;
}

/* A step: 0 if the slow path has to see to it, and nothing was added. */
static inline int pe_step(pe_place *place, long long step) {
    return !PE_LOAD_ACQUIRE(PE_LOAD(&place->control)) && pe_add(place, step);
}

static inline int pe_step_float(pe_place *place, double step) {
    return !PE_LOAD_ACQUIRE(PE_LOAD(&place->control)) && pe_add_float(place, step);
}

/* Have the steps look at, and add to, other memory from now on. */
static inline void pe_move(pe_place *place, long long *control, long long *counter) {
    PE_STORE(&place->counter, counter);
    PE_STORE(&place->control, control);
}
