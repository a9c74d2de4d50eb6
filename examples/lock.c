/*
 * Takes a lock of pidabs from C, by the published name format and protocol; no library is needed.
 *
 *     gcc -std=c11 -Wall -Wextra -Werror -O2 -o lock lock.c
 *     ./lock nightly-backup           # waits for its turn, says "held", lets go at SIGTERM or Ctrl-C
 *     ./lock -n nightly-backup        # or does not wait, and says who has it: exit code 1
 *     ./lock -w 30 /run/mydaemon.pid  # or waits 30 s
 *
 * It excludes with pidabs.Lock, `pidabs run` and the drop-in replacements, waits in one queue with them, in order, and
 * hands the lock to the first who waits. pidabs/_names.py has the format of names, pidabs/_queue.py the protocol.
 *
 * Left out: names longer than 99 bytes, which have a blake2b hash in their address, are refused.
 *
 * To copy it: take address_of, lock_acquire and lock_release. The listener that lock_acquire returns is the lock. Keep
 * it open, close-on-exec, and close it first thing in a child that you fork: a copy in a child keeps the lock taken.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71 /* Linux 5.14 */
#endif
#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83 /* Linux 6.16 */
#endif

enum {
    MAX_ADDRESS = 107, /* with the leading NUL */
    MAX_SCOPE = 32,
    BACKLOG = 1024,
    MAX_SKIPPED = 256,
    /* Milliseconds: */
    RELEASE_TIME = 50,
    ANSWER_TIME = 20,
    JOIN_TIME = 2,
    LOOK_INTERVAL = 1000,
    LONGEST_PAUSE = 50,
};

struct address {
    struct sockaddr_un name;
    socklen_t length; /* exact: with sizeof(struct sockaddr_un) it would be another name, padded with NULs */
};

/* Names ------------------------------------------------------------------------------------------------------- */

/* A name with a slash is a path: absolute, the symlinks of its directory resolved, its last part kept. */
static int absolute(const char *path, char *result, size_t size)
{
    const char *tail = strrchr(path, '/') + 1;
    if (*tail == '\0' || strcmp(tail, ".") == 0 || strcmp(tail, "..") == 0) {
        errno = EISDIR;
        return -1;
    }
    char *head = strndup(path, (size_t)(tail - path));
    char *directory = head ? realpath(head, NULL) : NULL;
    free(head);
    if (directory == NULL)
        return -1;
    const char *slash = strcmp(directory, "/") == 0 ? "" : "/";
    int length = snprintf(result, size, "%s%s%s", directory, slash, tail);
    free(directory);
    if (length < 0 || (size_t)length >= size) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return 0;
}

/* The address of a lock: "\0pidabs:NAME", or "\0pidabs@SCOPE:NAME" with PIDABS_SCOPE in the environment. */
static int address_of(const char *name, struct address *address)
{
    char path[PATH_MAX + NAME_MAX + 2];
    if (strchr(name, '/') != NULL) {
        if (absolute(name, path, sizeof path) < 0)
            return -1;
        name = path;
    }
    const char *scope = secure_getenv("PIDABS_SCOPE");
    const char *at = scope && *scope ? "@" : "";
    if (scope == NULL)
        scope = "";
    if (*name == '\0' || *name == '#' || strlen(scope) > MAX_SCOPE || strpbrk(scope, ":/") != NULL) {
        errno = EINVAL;
        return -1;
    }
    char text[MAX_ADDRESS]; /* without the leading NUL, but with one at the end */
    int length = snprintf(text, sizeof text, "pidabs%s%s:%s", at, scope, name);
    if (length < 0 || (size_t)length >= sizeof text) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memset(address, 0, sizeof *address);
    address->name.sun_family = AF_UNIX;
    memcpy(address->name.sun_path + 1, text, (size_t)length);
    address->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
    return 0;
}

/* Helpers ----------------------------------------------------------------------------------------------------- */

/* Closes, and leaves errno alone. */
static void drop(int fd)
{
    int saved = errno;
    close(fd);
    errno = saved;
}

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static int64_t earlier(int64_t deadline, int64_t other)
{
    return deadline < other ? deadline : other;
}

/* Whether there is something to read, or the end, before the deadline. With fd -1 it only waits. */
static int readable(int fd, int64_t deadline)
{
    struct pollfd waited = {.fd = fd, .events = POLLIN};
    for (;;) {
        int64_t left = deadline - now();
        int found = poll(&waited, 1, left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left);
        if (found > 0)
            return 1;
        if ((found < 0 && errno != EINTR) || now() >= deadline)
            return 0;
    }
}

static int say(int conn, char byte)
{
    return send(conn, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
}

/* One byte, or 0 if there is none. */
static char hear(int conn)
{
    char byte = 0;
    return recv(conn, &byte, 1, MSG_DONTWAIT) == 1 ? byte : 0;
}

/* Whom we believe and grant the lock to: root and ourselves, but not uid 65534, which may stand for anybody. */
static int trusted(int conn)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(conn, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        return 0;
    unsigned overflow = 65534;
    FILE *file = fopen("/proc/sys/kernel/overflowuid", "re");
    if (file != NULL) {
        if (fscanf(file, "%u", &overflow) != 1)
            overflow = 65534;
        fclose(file);
    }
    return (peer.uid == 0 || peer.uid == geteuid()) && peer.uid != overflow;
}

/* Whether peers may send us descriptors, where the kernel lets us choose: those of a stranger can be slow to close. */
static void take_descriptors(int fd, int wanted)
{
    setsockopt(fd, SOL_SOCKET, SO_PASSRIGHTS, &wanted, sizeof wanted);
}

static int open_socket(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0)
        take_descriptors(fd, 0);
    return fd;
}

static uint64_t network_namespace(int fd)
{
    uint64_t cookie = 0; /* on older kernels */
    socklen_t length = sizeof cookie;
    getsockopt(fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length);
    return cookie;
}

/* Acquire ----------------------------------------------------------------------------------------------------- */

/* Whether what came through `conn` is the lock: a listening stream socket of its name. Bytes of peers prove nothing. */
static int is_lock(int fd, int conn, const struct address *address)
{
    struct sockaddr_un name;
    socklen_t length = sizeof name;
    int listening = 0, type = 0;
    socklen_t size = sizeof(int);
    return getsockname(fd, (struct sockaddr *)&name, &length) == 0 && length == address->length &&
           memcmp(&name, &address->name, length) == 0 &&
           getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening &&
           getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM &&
           network_namespace(fd) == network_namespace(conn);
}

/* Step 3, after our answer: the lock; -1 if this was not it, with errno EMFILE if we had no descriptor left for it. */
static int receive_grant(int conn, const struct address *address)
{
    char bytes[2];
    union {
        char space[CMSG_SPACE(2 * sizeof(int))]; /* room for two, to see that it is exactly one */
        struct cmsghdr aligned;
    } control;
    struct iovec data = {.iov_base = bytes, .iov_len = sizeof bytes};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    int passed[2], count = 0;

    ssize_t length = recvmsg(conn, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (length < 0)
        return -1;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(&message); part != NULL; part = CMSG_NXTHDR(&message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        int found = (int)((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(passed, CMSG_DATA(part), (size_t)found * sizeof(int)); /* there is but one such part */
        count = found;
    }
    if (length == 1 && bytes[0] == 'L' && count == 1 && is_lock(passed[0], conn, address)) {
        take_descriptors(passed[0], 0);
        if (listen(passed[0], BACKLOG) == 0) /* from now on SO_PEERCRED names us */
            return passed[0];
    }
    for (int i = 0; i < count; i++)
        close(passed[i]);
    errno = (message.msg_flags & MSG_CTRUNC) && count == 0 ? EMFILE : EPROTO;
    return -1;
}

/* Steps 2 and 3, behind a holder whom we trust: the lock, or -1 if we are in no queue any more; see receive_grant. */
static int take_turn(int conn, const struct address *address, int64_t deadline)
{
    int answered = 0;
    take_descriptors(conn, 1);
    say(conn, 'W'); /* where that fails the holder is gone, and our turn ends as soon as it begins */
    if (readable(conn, deadline)) {
        if (hear(conn) != 'O') {
            errno = ECONNRESET; /* let go without us */
            return -1;
        }
        answered = say(conn, 'A');
        if (readable(conn, deadline))
            return receive_grant(conn, address);
    }
    /* Giving up. Shut down first: from then on a grant fails, or is here to be read. Else it could be lost. */
    shutdown(conn, SHUT_RDWR);
    errno = ETIMEDOUT;
    return answered ? receive_grant(conn, address) : -1;
}

/*
 * The listener that is the lock, or -1 with errno: ETIMEDOUT if somebody else has it. Waits at most so many seconds; 0
 * tries once and leaves no trace in the holder's queue, less than 0 waits for ever.
 */
static int lock_acquire(const struct address *address, double seconds)
{
    int64_t deadline = seconds < 0 ? INT64_MAX : now() + (int64_t)(seconds * 1000);
    int64_t pause = 1;
    for (;;) {
        int64_t began = now();
        int fd = open_socket();
        if (fd < 0)
            return -1;
        if (bind(fd, (const struct sockaddr *)&address->name, address->length) == 0) {
            if (listen(fd, BACKLOG) == 0)
                return fd;
            drop(fd);
            return -1;
        }
        if (errno != EADDRINUSE) {
            drop(fd);
            return -1;
        }
        if (now() >= deadline) {
            close(fd);
            errno = ETIMEDOUT;
            return -1;
        }
        /* A refused connect: just let go of, or just taken and not listening yet. EAGAIN: the queue is full. */
        if (connect(fd, (const struct sockaddr *)&address->name, address->length) == 0) {
            if (trusted(fd)) {
                int listener = take_turn(fd, address, deadline);
                if (listener >= 0 || errno == EMFILE) {
                    drop(fd);
                    return listener;
                }
            } else {
                say(fd, 'W');
                readable(fd, earlier(deadline, now() + LOOK_INTERVAL)); /* a stranger: look for ourselves, too */
            }
        }
        close(fd); /* once connected, a socket cannot be bound */
        if (now() - began < LONGEST_PAUSE) {
            readable(-1, earlier(deadline, now() + pause));
            pause = pause * 2 < LONGEST_PAUSE ? pause * 2 : LONGEST_PAUSE;
        } else {
            pause = 1;
        }
    }
}

/* Release ----------------------------------------------------------------------------------------------------- */

/* Whether it waits, runs, and still wants the lock: one that is stopped does not answer, and does not get it. */
static int accepts(int conn, int64_t deadline)
{
    if (!say(conn, 'O'))
        return 0;
    char said = hear(conn);
    if (said == 0 && readable(conn, now() + JOIN_TIME))
        said = hear(conn);
    return said == 'W' && readable(conn, earlier(deadline, now() + ANSWER_TIME)) && hear(conn) == 'A';
}

/* Sends the lock. If who waits dies before he reads it, the kernel frees the lock. */
static int grant(int conn, int listener)
{
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control;
    memset(&control, 0, sizeof control);
    struct iovec data = {.iov_base = "L", .iov_len = 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(part), &listener, sizeof listener);
    return sendmsg(conn, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
}

/* Step 4: hands the lock to the first in the queue who still wants it, or frees it. `listener` is closed. */
static void lock_release(int listener)
{
    int64_t deadline = now() + RELEASE_TIME;
    int strangers[MAX_SKIPPED], count = 0, granted = 0, conn = -1;
    for (int i = 0; i < MAX_SKIPPED && !granted && now() < deadline; i++) {
        fcntl(listener, F_SETFL, O_NONBLOCK); /* the flag travels with the listener: others may have changed it */
        conn = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (conn < 0)
            break; /* nobody is left; or no descriptor to accept with, then those who wait are woken, and race */
        if (!trusted(conn)) {
            strangers[count++] = conn; /* to be closed last: that may take long */
            continue;
        }
        granted = accepts(conn, deadline) && grant(conn, listener);
        if (!granted)
            close(conn);
    }
    close(listener); /* at once: while we have a copy, the next owner cannot free the lock */
    if (granted) {
        sched_yield();
        close(conn);
    }
    while (count > 0)
        close(strangers[--count]);
}

/* The program ------------------------------------------------------------------------------------------------- */

/* Says who holds the lock. Not by a look in a file: the kernel knows who called listen(). */
static void complain(const char *name, const struct address *address)
{
    struct ucred holder;
    socklen_t length = sizeof holder;
    int conn = open_socket();
    if (conn >= 0 && connect(conn, (const struct sockaddr *)&address->name, address->length) == 0 &&
        getsockopt(conn, SOL_SOCKET, SO_PEERCRED, &holder, &length) == 0)
        fprintf(stderr, "lock: %s is held by pid %d (uid %u)\n", name, (int)holder.pid, (unsigned)holder.uid);
    else
        fprintf(stderr, "lock: %s is held\n", name);
    if (conn >= 0)
        close(conn);
}

int main(int argc, char **argv)
{
    double seconds = -1;
    int option;
    while ((option = getopt(argc, argv, "nw:")) != -1) {
        char *end = "";
        if (option == 'n')
            seconds = 0;
        else if (option == 'w')
            seconds = strtod(optarg, &end);
        if (option == '?' || *end != '\0' || !(seconds >= 0 && seconds < 1e9)) {
            fprintf(stderr, "usage: %s [-n | -w SECONDS] NAME\n", argv[0]);
            return 2;
        }
    }
    if (optind + 1 != argc) {
        fprintf(stderr, "usage: %s [-n | -w SECONDS] NAME\n", argv[0]);
        return 2;
    }
    const char *name = argv[optind];
    struct address address;
    if (address_of(name, &address) < 0) {
        fprintf(stderr, "lock: not a name for a lock: '%s': %s\n", name, strerror(errno));
        return 2;
    }

    int listener = lock_acquire(&address, seconds);
    if (listener < 0 && errno == ETIMEDOUT) {
        complain(name, &address);
        return 1;
    }
    if (listener < 0) {
        fprintf(stderr, "lock: cannot take %s: %s\n", name, strerror(errno));
        return 71;
    }

    /* From here on these two let go in order. Any other end frees the lock all the same, and those who wait race. */
    sigset_t ends;
    int received;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    puts("held");
    fflush(stdout);
    sigwait(&ends, &received);
    lock_release(listener);
    puts("released");
    return 0;
}
