/* A layer between a program and one file of its disk, by LD_PRELOAD: it writes down what reaches the file in what order,
 * and makes calls fail. `disk_faults.rs` builds it and sets its environment, `power_cut.rs` reads the log.
 *
 * SKEIN_DISK_FILE     the file that is watched; it need not exist yet
 * SKEIN_DISK_LOG      where to append to; none: no log
 * SKEIN_DISK_CONTROL  the file that says what fails, read anew at every call that concerns the watched file; none: nothing
 *
 * A descriptor is asked for its file at every call (fstat): so it does not matter through which of the many names of open(2)
 * it came, whether it was duplicated, and whether threads have descriptor tables of their own. LMDB 0.9.70 on Linux opens
 * the data file twice, the second time with O_DSYNC for the meta page alone, and calls pwrite, lseek and writev, fdatasync.
 * What the layer cannot follow (a shared writable mapping, as with MDB_WRITEMAP) is in the log as such.
 *
 * The log is a sequence of records: `struct record`, then `length` bytes. One record is one append. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x464b5344u /* "DSKF" */
enum kind {
    PENDING = 1,     /* a write: position in the file, its bytes */
    DURABLE = 2,     /* the same, through O_DSYNC or O_SYNC: on disk when it returned */
    TRUNCATED = 3,   /* pending as well: position is the new length */
    SYNCED = 4,      /* all that was in the first `position` bytes of this log is on disk */
    SYNC_FAILED = 5, /* all that was there may be on disk or not, and no later sync repeats it */
    /* 6: a mark, which only a test writes */
    UNSUPPORTED = 7, /* the bytes are a word on what happened */
};

struct record {
    uint32_t magic;
    uint32_t kind;
    uint64_t position;
    uint64_t length;
};

struct faults {
    int write_error; /* 0: none. SHORT: half of the bytes are written. */
    int meta_error;
    int sync_error;
    long sync_delay_ms;
    long meta_delay_ms;
};
#define SHORT (-1)

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static ssize_t (*real_pwritev2)(int, const struct iovec *, int, off_t, int);
static int (*real_ftruncate)(int, off_t);
static int (*real_fallocate)(int, int, off_t, off_t);
static int (*real_posix_fallocate)(int, off_t, off_t);
static int (*real_fdatasync)(int);
static int (*real_fsync)(int);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);

static const char *watched, *log_path, *control_path;
/* Held over a write and its record: their order is the same. */
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void resolve(void) {
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_writev = dlsym(RTLD_NEXT, "writev");
    real_pwritev = dlsym(RTLD_NEXT, "pwritev64");
    real_pwritev2 = dlsym(RTLD_NEXT, "pwritev64v2");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_fallocate = dlsym(RTLD_NEXT, "fallocate64");
    real_posix_fallocate = dlsym(RTLD_NEXT, "posix_fallocate64");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_mmap = dlsym(RTLD_NEXT, "mmap64");
    watched = getenv("SKEIN_DISK_FILE");
    log_path = getenv("SKEIN_DISK_LOG");
    control_path = getenv("SKEIN_DISK_CONTROL");
}

__attribute__((constructor)) static void start(void) {
    pthread_once(&once, resolve);
}

/* A layer that has lost count is worse than none. */
static void die(const char *what) {
    dprintf(2, "disk_faults: %s: %s\n", what, strerror(errno));
    abort();
}

static void delay(long ms) {
    struct timespec delay = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&delay, NULL);
}

static int is_watched(int fd) {
    struct stat of_fd, of_path;
    int before = errno, is_same = 0;
    pthread_once(&once, resolve);
    if (watched && fstat(fd, &of_fd) == 0 && S_ISREG(of_fd.st_mode) && stat(watched, &of_path) == 0)
        is_same = of_fd.st_dev == of_path.st_dev && of_fd.st_ino == of_path.st_ino;
    errno = before;
    return is_same;
}

static int is_synchronous(int fd) {
    int flags = fcntl(fd, F_GETFL);
    /* O_SYNC contains O_DSYNC. */
    return flags != -1 && (flags & O_DSYNC);
}

static int error_named(const char *name) {
    return !strcmp(name, "ENOSPC")  ? ENOSPC
           : !strcmp(name, "EIO")   ? EIO
           : !strcmp(name, "EDQUOT") ? EDQUOT
           : !strcmp(name, "EROFS")  ? EROFS
           : !strcmp(name, "SHORT") ? SHORT
                                    : (errno = EINVAL, die(name), 0);
}

/* Words in pairs: `write ENOSPC`, `meta EIO`, `sync EIO`, `sync-delay 250`, `meta-delay 250`. */
static struct faults faults_now(void) {
    struct faults faults = {0, 0, 0, 0, 0};
    char text[256], *rest, *key, *value;
    int before = errno, fd;
    ssize_t size;
    if (!control_path || (fd = open(control_path, O_RDONLY | O_CLOEXEC)) == -1) {
        errno = before;
        return faults;
    }
    size = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[size > 0 ? size : 0] = 0;
    for (key = strtok_r(text, " \n", &rest); key; key = strtok_r(NULL, " \n", &rest)) {
        if (!(value = strtok_r(NULL, " \n", &rest)))
            die("a fault without a value");
        if (!strcmp(key, "write"))
            faults.write_error = error_named(value);
        else if (!strcmp(key, "meta"))
            faults.meta_error = error_named(value);
        else if (!strcmp(key, "sync"))
            faults.sync_error = error_named(value);
        else if (!strcmp(key, "sync-delay"))
            faults.sync_delay_ms = atol(value);
        else if (!strcmp(key, "meta-delay"))
            faults.meta_delay_ms = atol(value);
        else
            die(key);
    }
    errno = before;
    return faults;
}

/* How long the log is. */
static uint64_t log_length(void) {
    struct stat stat_of_log;
    return log_path && stat(log_path, &stat_of_log) == 0 ? (uint64_t)stat_of_log.st_size : 0;
}

/* Opened anew each time: a program may close descriptors that it does not know. */
static void append(enum kind kind, uint64_t position, const struct iovec *parts, int count, size_t length) {
    struct record record = {MAGIC, kind, position, length};
    struct iovec all[1 + 1024];
    size_t left = length;
    int before = errno, used = 1, fd;
    if (!log_path)
        return;
    all[0].iov_base = &record;
    all[0].iov_len = sizeof(record);
    for (int i = 0; i < count && left > 0; i++, used++) {
        if (used > 1024)
            die("a write of too many parts");
        all[used] = parts[i];
        if (all[used].iov_len > left)
            all[used].iov_len = left;
        left -= all[used].iov_len;
    }
    fd = open(log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    /* A writev takes 1024 parts at most; longer ones LMDB does not make. */
    if (fd == -1 || real_writev(fd, all, used) != (ssize_t)(sizeof(record) + length))
        die("the log");
    close(fd);
    errno = before;
}

/* LMDB writes 120 bytes of a meta page, at a commit, and the whole of both pages once, in a new file. */
static int is_meta(int fd, uint64_t position, size_t length) {
    return is_synchronous(fd) || (length == 120 && position < 0x10000);
}

/* Every write comes here. `position` is -1 where the descriptor's own counts, and `flags` are pwritev2's. */
static ssize_t write_parts(int fd, const struct iovec *parts, int count, off_t position, int flags) {
    struct faults faults = faults_now();
    size_t length = 0;
    ssize_t written;
    int error, is_own = position == -1, is_durable;
    for (int i = 0; i < count; i++)
        length += parts[i].iov_len;

    pthread_mutex_lock(&order);
    if (is_own)
        position = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
    int of_meta = is_meta(fd, position, length);
    error = of_meta ? faults.meta_error : faults.write_error;
    is_durable = is_synchronous(fd) || (flags & (RWF_DSYNC | RWF_SYNC));
    if (error == EIO && of_meta) {
        /* As the kernel has it: the page cache takes the write, and the disk does not. */
        written = real_pwritev2(fd, parts, count, position, 0);
        if (written > 0)
            append(PENDING, position, parts, count, written);
        written = -1;
    } else if (error == SHORT) {
        written = real_pwrite(fd, parts[0].iov_base, parts[0].iov_len / 2, position);
        error = errno;
        if (written > 0)
            append(is_durable ? DURABLE : PENDING, position, parts, 1, written);
        if (written > 0 && is_own)
            lseek(fd, position + written, SEEK_SET);
    } else if (error) {
        written = -1;
    } else {
        written = is_own ? real_writev(fd, parts, count) : real_pwritev2(fd, parts, count, position, flags);
        error = errno;
        if (written > 0 && of_meta && is_durable && faults.meta_delay_ms > 0) {
            /* It is in the page cache now, where a next life would find it; on disk it is when this returns. */
            append(PENDING, position, parts, count, written);
            delay(faults.meta_delay_ms);
        }
        if (written > 0)
            append(is_durable ? DURABLE : PENDING, position, parts, count, written);
    }
    pthread_mutex_unlock(&order);
    if (written == -1)
        errno = error;
    return written;
}

static ssize_t write_one(int fd, const void *bytes, size_t length, off_t position) {
    struct iovec part = {(void *)bytes, length};
    return write_parts(fd, &part, 1, position, 0);
}

static int sync_file(int fd, int (*real)(int)) {
    struct faults faults = faults_now();
    uint64_t covered;
    int result;
    pthread_mutex_lock(&order);
    covered = log_length();
    pthread_mutex_unlock(&order);
    if (faults.sync_delay_ms > 0) {
        delay(faults.sync_delay_ms);
        /* What is to fail may have been changed meanwhile. */
        faults = faults_now();
    }
    if (faults.sync_error) {
        append(SYNC_FAILED, covered, NULL, 0, 0);
        errno = faults.sync_error > 0 ? faults.sync_error : EIO;
        return -1;
    }
    result = real(fd);
    append(result == 0 ? SYNCED : SYNC_FAILED, covered, NULL, 0, 0);
    return result;
}

static void unsupported(const char *what) {
    struct iovec part = {(void *)what, strlen(what)};
    append(UNSUPPORTED, 0, &part, 1, part.iov_len);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    return is_watched(fd) ? write_one(fd, bytes, length, -1) : real_write(fd, bytes, length);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t position) {
    return is_watched(fd) ? write_one(fd, bytes, length, position) : real_pwrite(fd, bytes, length, position);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    return is_watched(fd) ? write_parts(fd, parts, count, -1, 0) : real_writev(fd, parts, count);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t position) {
    return is_watched(fd) ? write_parts(fd, parts, count, position, 0) : real_pwritev(fd, parts, count, position);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off_t position, int flags) {
    return is_watched(fd) ? write_parts(fd, parts, count, position, flags)
                          : real_pwritev2(fd, parts, count, position, flags);
}

int ftruncate64(int fd, off_t length) {
    int result;
    if (!is_watched(fd))
        return real_ftruncate(fd, length);
    pthread_mutex_lock(&order);
    result = real_ftruncate(fd, length);
    if (result == 0)
        append(TRUNCATED, length, NULL, 0, 0);
    pthread_mutex_unlock(&order);
    return result;
}

int fallocate64(int fd, int mode, off_t position, off_t length) {
    if (is_watched(fd))
        unsupported("fallocate");
    return real_fallocate(fd, mode, position, length);
}

int posix_fallocate64(int fd, off_t position, off_t length) {
    if (is_watched(fd))
        unsupported("posix_fallocate");
    return real_posix_fallocate(fd, position, length);
}

int fdatasync(int fd) {
    return is_watched(fd) ? sync_file(fd, real_fdatasync) : real_fdatasync(fd);
}

int fsync(int fd) {
    return is_watched(fd) ? sync_file(fd, real_fsync) : real_fsync(fd);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t position) {
    pthread_once(&once, resolve);
    if (fd != -1 && (flags & MAP_SHARED) && (protection & PROT_WRITE) && is_watched(fd))
        unsupported("a shared writable mapping");
    return real_mmap(address, length, protection, flags, fd, position);
}

/* The other names of the same functions: off_t has 64 bits in all of them. msync, sync, syncfs and sync_file_range pass as
 * they are: what they put on disk counts as pending here, which is the stricter. */
_Static_assert(sizeof(off_t) == 8, "off_t has 64 bits");
#define ALIAS(name, of) __typeof__(of) name __attribute__((alias(#of)))
ALIAS(__write, write);
ALIAS(pwrite, pwrite64);
ALIAS(__pwrite64, pwrite64);
ALIAS(pwritev, pwritev64);
ALIAS(pwritev2, pwritev64v2);
ALIAS(ftruncate, ftruncate64);
ALIAS(fallocate, fallocate64);
ALIAS(posix_fallocate, posix_fallocate64);
ALIAS(__fdatasync, fdatasync);
ALIAS(mmap, mmap64);
