/* Preloaded into a node: writes down how much of each file has reached the disk, and makes the disk fail when told to.
 * disk/mod.rs reads what this writes, and says how to fail. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { SOUND = '0', SYNC_FAILS = '1', SYNC_LIES = '2', FULL = '3', HANGS = '4', LOGS_FULL = '5' };

static const char *data;            /* Only what lies beneath is watched. */
static volatile const char *mode;   /* One byte of a file that the harness writes to. */
static int ledger = -1;

static void give_up(const char *what) {
  perror(what);
  abort();
}

__attribute__((constructor)) static void begin(void) {
  data = getenv("JEPSEN_LITE_DATA");
  const char *mode_file = getenv("JEPSEN_LITE_MODE"), *ledger_file = getenv("JEPSEN_LITE_LEDGER");
  if (!data || !mode_file || !ledger_file) return;
  /* From here on, a harness that is killed leaves nobody behind. What counts is the thread that started the node. */
  if (prctl(PR_SET_PDEATHSIG, SIGKILL)) give_up("prctl");
  int fd = open(mode_file, O_RDONLY | O_CLOEXEC);
  if (fd < 0) give_up(mode_file);
  void *at = mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) give_up(mode_file);
  close(fd);
  ledger = open(ledger_file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (ledger < 0) give_up(ledger_file);
  mode = at;
}

/* Whether it is a file beneath the data, and in a folder of that name directly beneath them, if one is named. */
static int is_beneath(int fd, const char *folder) {
  char link[64], path[4096];
  if (!mode) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  size_t prefix = strlen(data);
  if (length <= (ssize_t)prefix || memcmp(path, data, prefix) || path[prefix] != '/') return 0;
  path[length] = 0;
  return !folder || !strncmp(path + prefix, folder, strlen(folder));
}

static int is_watched(int fd) { return is_beneath(fd, NULL); }

/* Not by a signal, nor by the clock of what else is preloaded. */
static void wait_for_answer(int fd) {
  struct timespec pause = {0, 5000000};
  while (mode && *mode == HANGS && is_watched(fd)) syscall(SYS_nanosleep, &pause, NULL);
}

/* The directory itself counts as well. */
static int is_watched_or_root(int fd) {
  struct stat of_fd, of_data;
  return is_watched(fd) || (mode && !fstat(fd, &of_fd) && !stat(data, &of_data) && of_fd.st_ino == of_data.st_ino
                            && of_fd.st_dev == of_data.st_dev);
}

/* An inode number is used again after its file is gone; with the time of birth it is not. */
static void note(char kind, const struct statx *file, long long value) {
  char line[128];
  int length = snprintf(line, sizeof line, "%c %llu %lld%09u %lld\n", kind, (unsigned long long)file->stx_ino,
                        (long long)file->stx_btime.tv_sec, file->stx_btime.tv_nsec, value);
  if (syscall(SYS_write, ledger, line, length) != length) give_up("ledger");
}

static int synced(int fd, long call) {
  if (!is_watched_or_root(fd)) return syscall(call, fd);
  wait_for_answer(fd);
  struct statx file;
  struct timespec now;
  /* Both from before the call: what comes while it lasts is not covered. */
  if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &file)) give_up("statx");
  /* The clock of the file system, whatever else is preloaded. */
  if (syscall(SYS_clock_gettime, CLOCK_REALTIME, &now)) give_up("clock_gettime");
  switch (*mode) {
  case SYNC_LIES:
    return 0;
  case SYNC_FAILS:
    note('x', &file, 0);
    errno = EIO;
    return -1;
  }
  int failed = syscall(call, fd);
  if (failed) return failed;
  if (S_ISDIR(file.stx_mode)) note('d', &file, now.tv_sec * 1000000000LL + now.tv_nsec);
  else note('f', &file, file.stx_size);
  return 0;
}

int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

static int has_room(int fd) {
  wait_for_answer(fd);
  int is_full = mode && ((*mode == FULL && is_watched(fd)) || (*mode == LOGS_FULL && is_beneath(fd, "/logs/")));
  if (!is_full) return 1;
  errno = ENOSPC;
  return 0;
}

ssize_t write(int fd, const void *from, size_t size) { return has_room(fd) ? syscall(SYS_write, fd, from, size) : -1; }
ssize_t pwrite(int fd, const void *from, size_t size, off_t at) {
  return has_room(fd) ? syscall(SYS_pwrite64, fd, from, size, at) : -1;
}
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) { return pwrite(fd, from, size, at); }
ssize_t writev(int fd, const struct iovec *from, int count) {
  return has_room(fd) ? syscall(SYS_writev, fd, from, count) : -1;
}
int fallocate(int fd, int how, off_t at, off_t size) {
  return has_room(fd) ? syscall(SYS_fallocate, fd, how, at, size) : -1;
}
int fallocate64(int fd, int how, off64_t at, off64_t size) { return fallocate(fd, how, at, size); }
