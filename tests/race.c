/* The step of _step.h as it is without the GIL, by real threads: built with ThreadSanitizer by test_race.py, which reports
 * each access that another thread may see by half.
 *
 * Eight threads step: all of them in the task's own counters, each in those of a part of its own, by ints and by floats.
 * One more is the caller: it asks for a publication, pauses, sets total and status behind the sequence number, and reads
 * the counters. When half of the steps are done the task leaves its slot, as at the end of a task whose threads go on. The
 * slow path is in C here; what it does to the memory is what _updater.py does.
 *
 * Prints the counts; exits with 1 if one is lost. The argument is the number of steps.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#define PE_ATOMIC
#include "_step.h"

enum { THREADS = 8, CONTROL = 0, SEQUENCE = 1, N = 2, TOTAL = 5, INSIDE = 6, WORDS = 80 };
enum { CANCEL_BYTE = 0, PAUSE_BYTE = 1, PUBLISH_BYTE = 2 };

static _Alignas(64) long long slot[WORDS], own[WORDS], parts[THREADS][8];
static pe_place task = {slot, slot + N}, place[THREADS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long long steps;
static atomic_llong done, published, moved, stopped, cancelled;

static unsigned char *byte(int index) {
    return (unsigned char *)PE_LOAD(&task.control) + index;
}

static void set(int index, unsigned char value) {
    __atomic_store_n(byte(index), value, __ATOMIC_RELEASE);
}

static long long at(long long *word) {
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* Set total and what the parts have counted, as _apply does: behind the sequence number, under the task's lock. */
static void apply(long long total) {
    pthread_mutex_lock(&lock);
    long long *words = PE_LOAD(&task.control), sum = 0, sequence = at(words + SEQUENCE) | 1;
    __atomic_store_n(words + SEQUENCE, sequence, __ATOMIC_SEQ_CST);
    for (int i = 0; i < THREADS; i++) sum += at(parts[i]);
    __atomic_store_n(words + TOTAL, total, __ATOMIC_RELEASE);
    __atomic_store_n(words + INSIDE, sum, __ATOMIC_RELEASE);
    __atomic_store_n(words + SEQUENCE, sequence + 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&lock);
}

/* A step of the slow path: it counts, whatever the control word says, and then looks at it. */
static void slowly(pe_place *at_place, int as_float) {
    if (!(as_float ? pe_add_float(at_place, 0.5) : pe_add(at_place, 1))) exit(2);
    if (__atomic_load_n(byte(PUBLISH_BYTE), __ATOMIC_ACQUIRE)) {
        set(PUBLISH_BYTE, 0);
        apply(steps);
        published++;
    }
    if (__atomic_load_n(byte(CANCEL_BYTE), __ATOMIC_ACQUIRE)) cancelled++;
}

static void *work(void *argument) {
    long long i = (long long)(size_t)argument, count = steps / THREADS;
    for (long long step = 0; step < count; step++) {
        pe_place *where = step & 1 ? &task : place + i;
        int as_float = (step & 6) == 6;
        if (!(as_float ? pe_step_float(where, 0.5) : pe_step(where, 1))) slowly(where, as_float);
        if (!(step & 1023)) done += 1024;
    }
    return NULL;
}

static void *call(void *argument) {
    (void)argument;
    for (long long round = 0; !stopped; round++) {
        set(PUBLISH_BYTE, 1);
        set(PAUSE_BYTE, round % 3 == 0);
        if (done > steps / 4 * 3) set(CANCEL_BYTE, 1);
        apply(round);
        long long *words = PE_LOAD(&task.control), sequence = at(words + SEQUENCE);
        if (!(sequence & 1) && at(words + N) + at(words + INSIDE) > steps) exit(3);
        if (!moved && done > steps / 2) {
            pe_move(&task, own, own + N);
            for (int i = 0; i < THREADS; i++) pe_move(place + i, own, parts[i]);
            moved = 1;
        }
    }
    return NULL;
}

static double floats(long long *word) {
    double value;
    memcpy(&value, word + 1, 8);
    return value;
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS], caller;
    steps = argc > 1 ? atoll(argv[1]) : 1000000;
    for (int i = 0; i < THREADS; i++) place[i] = (pe_place){slot, parts[i]};
    pthread_create(&caller, NULL, call, NULL);
    for (int i = 0; i < THREADS; i++) pthread_create(threads + i, NULL, work, (void *)(size_t)i);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    stopped = 1;
    pthread_join(caller, NULL);
    double counted = slot[N] + own[N] + 2 * (floats(slot + N) + floats(own + N));
    for (int i = 0; i < THREADS; i++) counted += parts[i][0] + 2 * floats(parts[i]);
    printf("%lld steps, %.0f counted, %lld published, moved %lld\n", steps, counted, (long long)published, (long long)moved);
    return counted != steps / THREADS * THREADS || !published || !moved || !cancelled;
}
