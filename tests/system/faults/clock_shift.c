/* A clock on the wall that is set while a program runs, by LD_PRELOAD: all it hears of CLOCK_REALTIME is shifted by as many
 * seconds as the file SKEIN_CLOCK_SHIFT says, read anew at every call. No other clock is touched: so it is when a real one is set.
 * `clock.rs` builds it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long shift_s(void) {
    const char *path = getenv("SKEIN_CLOCK_SHIFT");
    char text[32];
    ssize_t size = 0;
    int before = errno, fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd != -1) {
        size = read(fd, text, sizeof(text) - 1);
        close(fd);
    }
    errno = before;
    text[size > 0 ? size : 0] = 0;
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec += shift_s();
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *seconds) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (seconds)
        *seconds = now.tv_sec;
    return now.tv_sec;
}
