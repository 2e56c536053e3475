/* pop3-load: polls maildrops or downloads them, and checks every reply.
 *
 *   pop3-load --port 1110 --users FILE --password WORD --sessions 20000 --connections 20
 *             [--action poll|fetch|drain] [--retrieve 32]
 *   pop3-load --port 1110 --password WORD --plan FILE --connections 100
 *
 * Without a plan, connection number i is always user number i of the file.  Actions:
 *   poll    log in, STAT, QUIT
 *   fetch   log in, STAT, UIDL, RETR of what this user has not fetched yet; the mail stays
 *   drain   log in, STAT, RETR of everything, DELE of everything, QUIT
 *   keep    log in, STAT, RETR of everything, QUIT
 * --retrieve: as many RETRs (and DELEs) in one write.  What is counted is messages, for poll
 * sessions.  A latency is that of a group of RETRs; with poll or a plan, of a whole session.
 * A plan's lines are "MICROSECONDS ACTION ADDRESS", ACTION as a number: 0 poll, 1 fetch, 2 drain,
 * 3 keep.  A message that carries a digest is checked.
 */
#define _GNU_SOURCE 1
#include "load.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum state { GREETING, USER, PASS, STAT, UIDL, RETR, DELE, BYE };
enum action { POLL, FETCH, DRAIN, KEEP };
static const char *const ACTIONS[] = {"poll", "fetch", "drain", "keep"};
#define MOST_GROUP 256

struct session {
    struct job job;
    uint32_t messages;  /* in the maildrop */
    uint32_t next;      /* the next to RETR or DELE */
    uint32_t expected;  /* replies under way */
    double since, group_since;
};

static const char *password;
static uint32_t group = 1;
static int planned;
static char **users;
static uint32_t user_count;
/* How many messages each user has fetched and left, by the address's place in a small table. */
static struct seen { const char *address; uint32_t count; } *seen;
static size_t seen_room;

static uint32_t *seen_of(const char *address)
{
    uint64_t hash = 1469598103934665603u;
    for (const char *at = address; *at; at++) hash = (hash ^ (unsigned char)*at) * 1099511628211u;
    for (size_t i = hash & (seen_room - 1);; i = (i + 1) & (seen_room - 1)) {
        if (!seen[i].address) seen[i].address = address;
        if (!strcmp(seen[i].address, address)) return &seen[i].count;
    }
}

static void opened(struct conn *conn)
{
    struct session *session = conn->session;
    if (!job_take(&session->job)) return;
    if (!planned) session->job.address = users[(uint32_t)conn->index % user_count];
    session->since = job_since(&session->job);
}

static void command(struct conn *conn, enum state state, const char *verb, const char *argument)
{
    char text[600];
    ((struct session *)conn->session)->expected = 1;
    conn->state = state;
    snprintf(text, sizeof text, argument ? "%s %s\r\n" : "%s\r\n", verb, argument);
    net_text(conn, text);
}

/* The next group of RETR or DELE; what is behind them when there are none left. */
static void next_group(struct conn *conn)
{
    struct session *session = conn->session;
    char text[MOST_GROUP * 20];
    size_t length = 0;
    session->expected = 0;
    while (session->next <= session->messages && session->expected < group) {
        const char *verb = conn->state == RETR ? "RETR" : "DELE";
        length += (size_t)sprintf(text + length, "%s %u\r\n", verb, session->next++);
        session->expected++;
    }
    if (session->expected) {
        session->group_since = now();
        net_send(conn, &(struct iovec){text, length}, 1);
    } else if (conn->state == RETR && session->job.size == DRAIN && session->messages) {
        conn->state = DELE;
        session->next = 1;
        next_group(conn);
    } else {
        command(conn, BYE, "QUIT", NULL);
    }
}

static void fetch_all(struct conn *conn, uint32_t from)
{
    ((struct session *)conn->session)->next = from;
    conn->state = RETR;
    next_group(conn);
}

static void maildrop(struct conn *conn)
{
    struct session *session = conn->session;
    if (session->job.size == POLL)
        command(conn, BYE, "QUIT", NULL);
    else if (session->job.size == FETCH)
        command(conn, UIDL, "UIDL", NULL);
    else
        fetch_all(conn, 1);
}

static void fetch_new(struct conn *conn)
{
    struct session *session = conn->session;
    uint32_t *known = seen_of(session->job.address);
    uint32_t from = *known < session->messages ? *known + 1 : session->messages + 1;
    *known = session->messages;
    fetch_all(conn, from);
}

/* All replies of a state are there and right. */
static void proceed(struct conn *conn)
{
    struct session *session = conn->session;
    switch ((enum state)conn->state) {
    case GREETING: command(conn, USER, "USER", session->job.address); break;
    case USER: command(conn, PASS, "PASS", password); break;
    case PASS: command(conn, STAT, "STAT", NULL); break;
    case STAT: maildrop(conn); break;
    case UIDL: fetch_new(conn); break;
    case RETR: case DELE: next_group(conn); break;
    case BYE:
        if (planned || session->job.size == POLL) report_done(session->since);
        break;
    }
}

static void retrieved(struct conn *conn, const char *text, size_t length)
{
    struct session *session = conn->session;
    int found = message_check(text, length);
    if (found < 0) {
        net_fail(conn, "what arrived is not what was sent: %.*s", length > 60 ? 60 : (int)length, text);
        return;
    }
    report_samples += (uint64_t)found;
    if (!planned && session->job.size != POLL) report_done(session->group_since);
}

/* The length of the reply at `data`, 0 if it is not complete. */
static size_t reply_length(struct conn *conn, const char *data, size_t length)
{
    if (conn->state != RETR && conn->state != UIDL) {
        const char *end = memchr(data, '\n', length);
        return end ? (size_t)(end - data) + 1 : 0;
    }
    size_t from = conn->scanned > 4 ? conn->scanned - 4 : 0;
    const char *end = memmem(data + from, length - from, "\r\n.\r\n", 5);
    conn->scanned = end ? 0 : length;
    return end ? (size_t)(end - data) + 5 : 0;
}

static int check(struct conn *conn, const char *data, size_t length)
{
    struct session *session = conn->session;
    if (planned && conn->state == PASS && length > 4 && !memcmp(data, "-ERR", 4) &&
        memmem(data, length, "IN-USE", 6)) {
        report_busy++; /* the plan has two sessions of one user at a time: no fault of the server */
        command(conn, BYE, "QUIT", NULL);
        session->job.size = FETCH;
        return 0;
    }
    if (length < 5 || memcmp(data, "+OK", 3)) {
        net_fail(conn, "wanted +OK in state %d, got: %.*s", conn->state,
                 length > 90 ? 90 : (int)length, data);
        return 0;
    }
    if (conn->state == STAT) session->messages = (uint32_t)strtoul(data + 4, NULL, 10);
    if (conn->state == RETR) {
        const char *text = memchr(data, '\n', length);
        retrieved(conn, text + 1, length - (size_t)(text + 1 - data) - 3);
    }
    return conn->fd >= 0;
}

static size_t received(struct conn *conn, const char *data, size_t length)
{
    struct session *session = conn->session;
    size_t at = 0, one;
    if (conn->state == GREETING) session->expected = 1;
    while (at < length && conn->fd >= 0 && session->expected) {
        /* An error has one line, also where more are expected. */
        int error = data[at] == '-' && (conn->state == RETR || conn->state == UIDL);
        if (error) conn->scanned = 0;
        one = error ? length - at : reply_length(conn, data + at, length - at);
        if (!one) break;
        int right = check(conn, data + at, one);
        at += one;
        if (right && !--session->expected) proceed(conn);
    }
    if (at < length && conn->fd >= 0 && !session->expected) net_fail(conn, "bytes behind a reply");
    return at;
}

static void job(struct conn *conn)
{
    (void)conn; /* a session is one job: no connection is ever parked */
}

enum flag { HOST = 1, PORT, USERS, PASSWORD, SESSIONS, CONNECTIONS, ACTION, RETRIEVE, PLAN };

static const struct option OPTIONS[] = {
    {"host", required_argument, NULL, HOST},
    {"port", required_argument, NULL, PORT},
    {"users", required_argument, NULL, USERS},
    {"password", required_argument, NULL, PASSWORD},
    {"sessions", required_argument, NULL, SESSIONS},
    {"connections", required_argument, NULL, CONNECTIONS},
    {"action", required_argument, NULL, ACTION},
    {"retrieve", required_argument, NULL, RETRIEVE},
    {"plan", required_argument, NULL, PLAN},
    {NULL, 0, NULL, 0},
};

struct settings {
    struct endpoint endpoint;
    const char *users, *plan;
    uint64_t sessions;
    enum action action;
};

static enum action action_of(const char *name)
{
    for (int i = POLL; i <= KEEP; i++)
        if (!strcmp(name, ACTIONS[i])) return (enum action)i;
    die("no action is called %s", name);
}

static void set(struct settings *settings, int option)
{
    switch (option) {
    case HOST: settings->endpoint.host = optarg; break;
    case PORT: settings->endpoint.port = atoi(optarg); break;
    case USERS: settings->users = optarg; break;
    case PASSWORD: password = optarg; break;
    case SESSIONS: settings->sessions = strtoull(optarg, NULL, 10); break;
    case CONNECTIONS: settings->endpoint.connections = atoi(optarg); break;
    case ACTION: settings->action = action_of(optarg); break;
    case RETRIEVE: group = (uint32_t)atoi(optarg); break;
    case PLAN: settings->plan = optarg; break;
    default: die("see the top of perf/load/pop3.c for the options");
    }
}

static void prepare(struct settings *settings)
{
    if (!password || group < 1 || group > MOST_GROUP)
        die("give --password; --retrieve is 1 to %d", MOST_GROUP);
    planned = settings->plan != NULL;
    seen_room = 1 << 22;
    if (planned) {
        jobs_plan(settings->plan);
        if (!(seen = calloc(seen_room, sizeof *seen))) die("no memory for users");
    } else if (settings->users) {
        users = read_lines(settings->users, &user_count);
        jobs_repeat(settings->sessions, settings->action, users, user_count);
        if (!(seen = calloc(seen_room, sizeof *seen))) die("no memory for users");
    } else {
        die("give --plan, or --users");
    }
}

int main(int argc, char **argv)
{
    static const struct protocol pop3 = {sizeof(struct session), opened, received, job, BYE};
    struct settings settings = {{"127.0.0.1", 1110, 20, 60.0}, NULL, NULL, 20, KEEP};
    for (int option; (option = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1;)
        set(&settings, option);
    prepare(&settings);
    report_start(planned || settings.action == POLL ? "sessions" : "messages");
    net_run(&settings.endpoint, &pop3);
    return report_print();
}
