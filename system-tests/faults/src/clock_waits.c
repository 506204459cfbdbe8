/* What libfaketime leaves out: waits of C11 threads, which librdkafka uses. Without this, a deadline of the clock that
   is set meets the clock that is not, and a wait of a second lasts an hour.

   Here it is as the kernel does it when the real clock is set: a wait ends when the clock shows its deadline. Set
   forward, it ends early; set back, it ends so much later. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/syscall.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define LOOK 20000000L
#define SECOND 1000000000L

typedef int (*timed_wait)(cnd_t *, mtx_t *, const struct timespec *);

int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *deadline) {
    static timed_wait wait;
    if (!wait) wait = (timed_wait)dlsym(RTLD_NEXT, "cnd_timedwait");
    for (;;) {
        struct timespec shown, real;
        clock_gettime(CLOCK_REALTIME, &shown);
        long seconds = deadline->tv_sec - shown.tv_sec;
        long left = seconds > 1 ? LOOK : seconds < -1 ? 0 : seconds * SECOND + deadline->tv_nsec - shown.tv_nsec;
        if (left <= 0) return thrd_timedout;
        if (left > LOOK) left = LOOK;
        /* Past libfaketime. */
        syscall(SYS_clock_gettime, CLOCK_REALTIME, &real);
        real.tv_nsec += left;
        if (real.tv_nsec >= SECOND) {
            real.tv_sec += 1;
            real.tv_nsec -= SECOND;
        }
        int ended = wait(condition, mutex, &real);
        if (ended != thrd_timedout) return ended;
    }
}
