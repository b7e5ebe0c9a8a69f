/* Preloaded by the attacks: at the N-th call of a kind on a path, fail, or change a file.

   An order is a file that all processes of a try share, see struct order. A process finds it by
   the variable ATTACK_ORDER, or attack_use() names it. Calls are counted over all processes.
   Each function asks strike(), then calls the real one. Compiled by attacks/faults.py. */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { READ, WRITE, OPEN, RENAME, SYNC, CLOSE, STAT, UNLINK, MMAP, MKDIR, LIST, LINK, MODE, LOCK, CLOCK };
enum { FAIL, REPLACE, EDIT, REMOVE };

struct order {                /* as attacks/faults.py packs it */
    int32_t armed;            /* 0: count nothing */
    int32_t action;           /* FAIL, … */
    int32_t error;            /* errno of FAIL; CLOCK: seconds that the clock steps */
    int32_t lasting;          /* every later call of these kinds fails too */
    int64_t kinds;            /* a bit for each kind */
    int64_t nth;              /* from 1; 0 only counts */
    int64_t count;            /* calls so far */
    int64_t fired;            /* how often it struck */
    char below[PATH_MAX];     /* only paths that begin so count */
    char source[PATH_MAX];    /* REPLACE: a file that is renamed to target; EDIT: new content */
    char target[PATH_MAX];    /* what is changed */
};

static struct order *order;

void attack_use(const char *path) {
    int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return;
    void *shared =
        (void *)syscall(SYS_mmap, NULL, sizeof *order, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (shared != MAP_FAILED)
        order = shared;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("ATTACK_ORDER");
    if (path)
        attack_use(path);
}

static long path_of_descriptor(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (length < 0)
        length = 0;
    path[length] = 0;
    return length;
}

static void absolute(int folder, const char *name, char *path) {
    if (!name)
        name = "";
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    char base[PATH_MAX];
    base[0] = 0;
    if (folder == AT_FDCWD)
        syscall(SYS_getcwd, base, sizeof base);
    else
        path_of_descriptor(folder, base);
    if (name[0])
        snprintf(path, PATH_MAX, "%.2000s/%.2000s", base, name);
    else
        snprintf(path, PATH_MAX, "%s", base);
}

static void edit(void) {
    char buffer[65536];
    int from = (int)syscall(SYS_openat, AT_FDCWD, order->source, O_RDONLY);
    int to = (int)syscall(SYS_openat, AT_FDCWD, order->target, O_WRONLY | O_TRUNC);
    long length;
    while (from >= 0 && to >= 0 && (length = syscall(SYS_read, from, buffer, sizeof buffer)) > 0)
        syscall(SYS_write, to, buffer, length);
    if (from >= 0)
        syscall(SYS_close, from);
    if (to >= 0)
        syscall(SYS_close, to);
}

/* errno for this call, or 0: let it pass. */
static int strike_path(int kind, const char *path) {
    if (strncmp(path, order->below, strlen(order->below)))
        return 0;
    int64_t count = __sync_add_and_fetch(&order->count, 1);
    if (!order->nth || count < order->nth || (count > order->nth && !order->lasting))
        return 0;
    __sync_add_and_fetch(&order->fired, 1);
    if (order->action == FAIL)
        return order->error;
    if (order->action == REPLACE)
        syscall(SYS_renameat, AT_FDCWD, order->source, AT_FDCWD, order->target);
    else if (order->action == EDIT)
        edit();
    else
        syscall(SYS_unlinkat, AT_FDCWD, order->target, 0);
    return 0;
}

static int counts(int kind) { return order && order->armed && order->kinds >> kind & 1; }

static int strike(int kind, int folder, const char *name) {
    if (!counts(kind))
        return 0;
    int before = errno;
    char path[PATH_MAX];
    absolute(folder, name, path);
    int error = strike_path(kind, path);
    errno = before;
    return error;
}

static int strike_file(int kind, int file) {
    if (!counts(kind) || file < 0)
        return 0;
    int before = errno;
    char path[PATH_MAX];
    path_of_descriptor(file, path);
    int error = strike_path(kind, path);
    errno = before;
    return error;
}

#define REAL(type, name, ...)                                                                      \
    static type (*real)(__VA_ARGS__);                                                              \
    if (!real)                                                                                     \
        real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)
#define STOP(error, result)                                                                        \
    do {                                                                                           \
        int number = (error);                                                                      \
        if (number) {                                                                              \
            errno = number;                                                                        \
            return result;                                                                         \
        }                                                                                          \
    } while (0)

/* ---- open -------------------------------------------------------------------------------------*/

#define OPEN_FUNCTION(name)                                                                        \
    int name(const char *path, int flags, ...) {                                                   \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                    \
        va_end(rest);                                                                              \
        STOP(strike(OPEN, AT_FDCWD, path), -1);                                                    \
        return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);                              \
    }
#define OPENAT_FUNCTION(name)                                                                      \
    int name(int folder, const char *path, int flags, ...) {                                       \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                    \
        va_end(rest);                                                                              \
        STOP(strike(OPEN, folder, path), -1);                                                      \
        return (int)syscall(SYS_openat, folder, path, flags, mode);                                \
    }
OPENAT_FUNCTION(openat64)
OPENAT_FUNCTION(openat)
OPEN_FUNCTION(open)
OPEN_FUNCTION(open64)

FILE *fopen(const char *path, const char *mode) {
    REAL(FILE *, "fopen", const char *, const char *);
    STOP(strike(OPEN, AT_FDCWD, path), NULL);
    return real(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    REAL(FILE *, "fopen64", const char *, const char *);
    STOP(strike(OPEN, AT_FDCWD, path), NULL);
    return real(path, mode);
}

/* ---- reading, writing, closing ----------------------------------------------------------------*/

ssize_t read(int file, void *data, size_t length) {
    STOP(strike_file(READ, file), -1);
    return syscall(SYS_read, file, data, length);
}
ssize_t write(int file, const void *data, size_t length) {
    STOP(strike_file(WRITE, file), -1);
    return syscall(SYS_write, file, data, length);
}
#define PREAD(name)                                                                                \
    ssize_t name(int file, void *data, size_t length, off_t place) {                               \
        STOP(strike_file(READ, file), -1);                                                         \
        return syscall(SYS_pread64, file, data, length, place);                                    \
    }
PREAD(pread)
PREAD(pread64)
size_t fread(void *data, size_t size, size_t count, FILE *stream) {
    REAL(size_t, "fread", void *, size_t, size_t, FILE *);
    STOP(strike_file(READ, fileno(stream)), 0);
    return real(data, size, count, stream);
}
ssize_t sendfile64(int to, int from, off_t *place, size_t length) {
    STOP(strike_file(WRITE, to), -1);
    return syscall(SYS_sendfile, to, from, place, length);
}
int fsync(int file) {
    STOP(strike_file(SYNC, file), -1);
    return (int)syscall(SYS_fsync, file);
}
int fdatasync(int file) {
    STOP(strike_file(SYNC, file), -1);
    return (int)syscall(SYS_fdatasync, file);
}
int close(int file) { /* Linux closes it also when it reports an error */
    int error = strike_file(CLOSE, file);
    int status = (int)syscall(SYS_close, file);
    STOP(error, -1);
    return status;
}
#define MAP(name)                                                                                  \
    void *name(void *place, size_t length, int rights, int flags, int file, off_t start) {         \
        STOP(strike_file(MMAP, file), MAP_FAILED);                                                 \
        return (void *)syscall(SYS_mmap, place, length, rights, flags, file, start);               \
    }
MAP(mmap)
MAP(mmap64)

/* ---- names ------------------------------------------------------------------------------------*/

int rename(const char *from, const char *to) {
    STOP(strike(RENAME, AT_FDCWD, from), -1);
    return (int)syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
}
int renameat(int folder, const char *from, int other, const char *to) {
    STOP(strike(RENAME, folder, from), -1);
    return (int)syscall(SYS_renameat, folder, from, other, to);
}
int unlink(const char *path) {
    STOP(strike(UNLINK, AT_FDCWD, path), -1);
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
int unlinkat(int folder, const char *path, int flags) {
    STOP(strike(UNLINK, folder, path), -1);
    return (int)syscall(SYS_unlinkat, folder, path, flags);
}
int rmdir(const char *path) {
    STOP(strike(UNLINK, AT_FDCWD, path), -1);
    return (int)syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
}
int mkdir(const char *path, mode_t mode) {
    STOP(strike(MKDIR, AT_FDCWD, path), -1);
    return (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}
int link(const char *from, const char *to) {
    STOP(strike(LINK, AT_FDCWD, from), -1);
    return (int)syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
}
int linkat(int folder, const char *from, int other, const char *to, int flags) {
    STOP(strike(LINK, folder, from), -1);
    return (int)syscall(SYS_linkat, folder, from, other, to, flags);
}
int chmod(const char *path, mode_t mode) {
    STOP(strike(MODE, AT_FDCWD, path), -1);
    return (int)syscall(SYS_fchmodat, AT_FDCWD, path, mode);
}
int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    STOP(strike(MODE, folder, path), -1);
    return (int)syscall(SYS_fchmodat, folder, path, mode);
}
int fchmod(int file, mode_t mode) {
    STOP(strike_file(MODE, file), -1);
    return (int)syscall(SYS_fchmod, file, mode);
}
int flock(int file, int how) {
    STOP(strike_file(LOCK, file), -1);
    return (int)syscall(SYS_flock, file, how);
}
DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    STOP(strike(LIST, AT_FDCWD, path), NULL);
    return real(path);
}
#define READDIR(name, type)                                                                        \
    struct type *name(DIR *folder) {                                                               \
        REAL(struct type *, #name, DIR *);                                                         \
        STOP(strike_file(LIST, dirfd(folder)), NULL);                                              \
        return real(folder);                                                                       \
    }
READDIR(readdir, dirent)
READDIR(readdir64, dirent64)

/* ---- stat -------------------------------------------------------------------------------------*/

#define STAT_FUNCTION(name, type)                                                                  \
    int name(const char *path, struct type *status) {                                              \
        REAL(int, #name, const char *, struct type *);                                             \
        STOP(strike(STAT, AT_FDCWD, path), -1);                                                    \
        return real(path, status);                                                                 \
    }
STAT_FUNCTION(stat, stat)
STAT_FUNCTION(stat64, stat64)
STAT_FUNCTION(lstat, stat)
STAT_FUNCTION(lstat64, stat64)
STAT_FUNCTION(statvfs, statvfs)
STAT_FUNCTION(statvfs64, statvfs64)
#define FSTAT_FUNCTION(name, type)                                                                 \
    int name(int file, struct type *status) {                                                      \
        REAL(int, #name, int, struct type *);                                                      \
        STOP(strike_file(STAT, file), -1);                                                         \
        return real(file, status);                                                                 \
    }
FSTAT_FUNCTION(fstat, stat)
FSTAT_FUNCTION(fstat64, stat64)
#define STATAT_FUNCTION(name, type)                                                                \
    int name(int folder, const char *path, struct type *status, int flags) {                       \
        REAL(int, #name, int, const char *, struct type *, int);                                   \
        STOP(strike(STAT, folder, path), -1);                                                      \
        return real(folder, path, status, flags);                                                  \
    }
STATAT_FUNCTION(fstatat, stat)
STATAT_FUNCTION(fstatat64, stat64)
#define OLD_STAT(name, type)                                                                       \
    int name(int version, const char *path, struct type *status) {                                 \
        REAL(int, #name, int, const char *, struct type *);                                        \
        STOP(strike(STAT, AT_FDCWD, path), -1);                                                    \
        return real(version, path, status);                                                        \
    }
OLD_STAT(__xstat, stat)
OLD_STAT(__xstat64, stat64)
OLD_STAT(__lxstat, stat)
OLD_STAT(__lxstat64, stat64)
#define OLD_FSTAT(name, type)                                                                      \
    int name(int version, int file, struct type *status) {                                         \
        REAL(int, #name, int, int, struct type *);                                                 \
        STOP(strike_file(STAT, file), -1);                                                         \
        return real(version, file, status);                                                        \
    }
OLD_FSTAT(__fxstat, stat)
OLD_FSTAT(__fxstat64, stat64)
int statx(int folder, const char *restrict path, int flags, unsigned mask,
          struct statx *restrict status) {
    REAL(int, "statx", int, const char *, int, unsigned, struct statx *);
    STOP(strike(STAT, folder, path), -1);
    return real(folder, path, flags, mask, status);
}

/* ---- the clock: from the N-th question on it is `error` seconds ahead or behind ---------------*/

static int64_t step(void) {
    if (!counts(CLOCK))
        return 0;
    int64_t count = __sync_add_and_fetch(&order->count, 1);
    if (count < order->nth)
        return 0;
    __sync_add_and_fetch(&order->fired, 1);
    return order->error;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = (int)syscall(SYS_clock_gettime, clock, now);
    if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += step();
    return status;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int status = (int)syscall(SYS_gettimeofday, now, zone);
    if (!status)
        now->tv_sec += step();
    return status;
}
time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place)
        *place = now.tv_sec;
    return now.tv_sec;
}
