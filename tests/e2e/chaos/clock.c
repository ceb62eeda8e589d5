/* A process's wall clock, moved by what stands in a shared file while it runs (LD_PRELOAD; see clock.py).

   Only CLOCK_REALTIME is moved; monotonic clocks and sleeps are left alone. Whoever waits for a wall clock time on a
   condition variable (librdkafka does) gets what he would get from a kernel with that clock. Debian 12's libfaketime
   0.9.10 cannot do it: it breaks Python 3.11's time.sleep, which waits for a monotonic time. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *shared; /* seconds */

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *there = mmap(NULL, sizeof *shared, PROT_READ, MAP_SHARED, file, 0);
    if (there != MAP_FAILED) shared = there;
    close(file);
}

static time_t ahead(void) { return shared ? (time_t)*shared : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    (void)zone;
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}

int timespec_get(struct timespec *now, int base) {
    return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, now) ? base : 0;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    struct timespec real = *until;
    clockid_t clock = until->tv_sec > 1000000000 - 40 * 86400 ? CLOCK_REALTIME : CLOCK_MONOTONIC; /* else uptime */
    if (clock == CLOCK_REALTIME) real.tv_sec -= ahead();
    return pthread_cond_clockwait(condition, mutex, clock, &real);
}
