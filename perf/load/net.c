/* Many connections from one process. */
#define _GNU_SOURCE 1
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define READ_ROOM (1 << 20)
#define MOST_REPLY (64 << 20) /* a reply that is longer is taken for a fault */
#define EVENTS 256
#define MOST_ERRORS 100

static const struct protocol *protocol;
static struct sockaddr_in address;
static int epoll, open_count;
static char *buffer;
static size_t buffer_room;
static struct conn **idle; /* indexes that have no connection now */
static int idle_count;
static struct conn **parked;
static int parked_count;

static void watch(struct conn *conn, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = conn};
    if (epoll_ctl(epoll, operation, conn->fd, &event)) die("epoll_ctl: %s", strerror(errno));
}

static void give_up(struct conn *conn)
{
    close(conn->fd);
    conn->fd = -1;
    conn->kept_length = conn->unsent_length = conn->unsent_at = conn->scanned = 0;
    if (conn->waiting)
        for (int i = 0; i < parked_count; i++)
            if (parked[i] == conn) parked[i] = parked[--parked_count];
    conn->waiting = 0;
    open_count--;
    idle[idle_count++] = conn;
}

void net_fail(struct conn *conn, const char *format, ...)
{
    char text[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    report_error("connection %d: %s", conn->index, text);
    if (conn->fd >= 0) give_up(conn);
}

static void open_one(struct conn *conn)
{
    int one = 1;
    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (conn->fd < 0) die("socket: %s", strerror(errno));
    open_count++;
    report_connections++;
    conn->state = 0;
    conn->done = 0;
    memset(conn->session, 0, protocol->session_size);
    setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(conn->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        net_fail(conn, "connect: %s", strerror(errno));
        return;
    }
    watch(conn, EPOLL_CTL_ADD, EPOLLIN);
    protocol->opened(conn);
}

static void keep_unsent(struct conn *conn, struct iovec *pieces, int count, size_t sent)
{
    size_t total = 0;
    for (int i = 0; i < count; i++) total += pieces[i].iov_len;
    conn->unsent = realloc(conn->unsent, total - sent);
    if (!conn->unsent) die("no memory for output");
    conn->unsent_length = conn->unsent_at = 0;
    for (int i = 0; i < count; i++) {
        size_t skip = sent < pieces[i].iov_len ? sent : pieces[i].iov_len;
        size_t rest = pieces[i].iov_len - skip;
        memcpy(conn->unsent + conn->unsent_length, (char *)pieces[i].iov_base + skip, rest);
        conn->unsent_length += rest;
        sent -= skip;
    }
    watch(conn, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
}

void net_send(struct conn *conn, struct iovec *pieces, int count)
{
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = (size_t)count};
    size_t total = 0;
    for (int i = 0; i < count; i++) total += pieces[i].iov_len;
    ssize_t sent = sendmsg(conn->fd, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        net_fail(conn, "send: %s", strerror(errno));
        return;
    }
    if (sent < 0) sent = 0;
    if ((size_t)sent < total) keep_unsent(conn, pieces, count, (size_t)sent);
}

void net_text(struct conn *conn, const char *text)
{
    struct iovec piece = {(char *)text, strlen(text)};
    net_send(conn, &piece, 1);
}

static void send_rest(struct conn *conn)
{
    ssize_t sent = send(conn->fd, conn->unsent + conn->unsent_at,
                        conn->unsent_length - conn->unsent_at, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        net_fail(conn, "send: %s", strerror(errno));
        return;
    }
    if (sent > 0) conn->unsent_at += (size_t)sent;
    if (conn->unsent_at == conn->unsent_length) {
        conn->unsent_length = conn->unsent_at = 0;
        watch(conn, EPOLL_CTL_MOD, EPOLLIN);
    }
}

/* What is left of a reply waits with its connection, so that one buffer serves all of them. */
static void keep(struct conn *conn, const char *data, size_t length)
{
    if (length > MOST_REPLY) {
        net_fail(conn, "a reply of more than %d bytes", MOST_REPLY);
        return;
    }
    if (length > conn->kept_room) {
        conn->kept_room = length * 2;
        conn->kept = realloc(conn->kept, conn->kept_room);
        if (!conn->kept) die("no memory for input");
    }
    memcpy(conn->kept, data, length);
    conn->kept_length = length;
}

static void closed(struct conn *conn)
{
    if (conn->state == protocol->ended && !conn->kept_length)
        give_up(conn);
    else
        net_fail(conn, "closed by the server in state %d", conn->state);
}

static void receive(struct conn *conn)
{
    size_t had = conn->kept_length;
    if (buffer_room - had < READ_ROOM / 2) {
        buffer_room = had * 2 + READ_ROOM;
        buffer = realloc(buffer, buffer_room);
        if (!buffer) die("no memory for input");
    }
    memcpy(buffer, conn->kept, had);
    ssize_t got = recv(conn->fd, buffer + had, buffer_room - had, 0);
    if (got < 0) {
        if (errno != EAGAIN) net_fail(conn, "recv: %s", strerror(errno));
        return;
    }
    if (!got) {
        closed(conn);
        return;
    }
    conn->kept_length = 0;
    size_t length = had + (size_t)got;
    size_t took = protocol->received(conn, buffer, length);
    if (conn->fd >= 0 && took < length) keep(conn, buffer + took, length - took);
}

/* A connection that has nothing to do: the next job that comes due is its. */
static void park(struct conn *conn)
{
    if (conn->waiting == 1) {
        conn->waiting = 2;
        parked[parked_count++] = conn;
    }
}

static void hand_out(void)
{
    while (jobs_due() && report_errors < MOST_ERRORS) {
        if (parked_count) {
            struct conn *conn = parked[--parked_count];
            conn->waiting = 0;
            protocol->job(conn);
        } else if (idle_count) {
            open_one(idle[--idle_count]); /* it takes the job with it */
        } else {
            return;
        }
    }
    while (parked_count && !jobs_left()) {
        struct conn *conn = parked[--parked_count];
        conn->waiting = 0;
        protocol->job(conn);
    }
}

static void handle(const struct epoll_event *event)
{
    struct conn *conn = event->data.ptr;
    if (conn->fd < 0) return;
    if (event->events & EPOLLOUT) send_rest(conn);
    if (conn->fd >= 0 && event->events & ~(uint32_t)EPOLLOUT) receive(conn);
    if (conn->fd >= 0 && conn->waiting) park(conn);
}

static struct timespec patience(double stall)
{
    double wait = stall;
    if (jobs_left() && !jobs_due()) wait = jobs_wait();
    if (jobs_due() && (idle_count || parked_count) && report_errors < MOST_ERRORS) wait = 0.0;
    return (struct timespec){(time_t)wait, (long)((wait - (double)(time_t)wait) * 1e9)};
}

static void loop(double stall)
{
    struct epoll_event events[EVENTS];
    double last = now();
    while (open_count || (jobs_left() && report_errors < MOST_ERRORS)) {
        struct timespec wait = patience(stall);
        int count = epoll_pwait2(epoll, events, EVENTS, &wait, NULL);
        if (count < 0 && errno != EINTR) die("epoll: %s", strerror(errno));
        for (int i = 0; i < count; i++) handle(&events[i]);
        if (count > 0) last = now();
        hand_out();
        if (count == 0 && open_count > parked_count && now() - last > stall) {
            report_error("no reply for %.0f s on %d connections", stall, open_count);
            return;
        }
    }
}

static void prepare(const struct endpoint *endpoint)
{
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)endpoint->port);
    if (inet_pton(AF_INET, endpoint->host, &address.sin_addr) != 1)
        die("%s is no IPv4 address", endpoint->host);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    buffer_room = READ_ROOM;
    buffer = malloc(buffer_room);
    idle = calloc((size_t)endpoint->connections, sizeof *idle);
    parked = calloc((size_t)endpoint->connections, sizeof *parked);
    if (epoll < 0 || !buffer || !idle || !parked) die("no memory");
}

void net_run(const struct endpoint *endpoint, const struct protocol *of)
{
    protocol = of;
    prepare(endpoint);
    for (int i = endpoint->connections - 1; i >= 0; i--) {
        struct conn *conn = calloc(1, sizeof *conn);
        if (!conn || !(conn->session = calloc(1, protocol->session_size))) die("no memory");
        conn->index = i;
        conn->fd = -1;
        idle[idle_count++] = conn;
    }
    jobs_start();
    loop(endpoint->stall);
    report_stop();
}
