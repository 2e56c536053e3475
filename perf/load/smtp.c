/* smtp-load: sends messages by SMTP or LMTP over many connections, and checks every reply.
 *
 *   smtp-load --port 2525 --recipients FILE --messages 100000 --connections 100
 *             [--size 500] [--pipeline] [--per-connection 1] [--lmtp]
 *   smtp-load --port 2525 --plan FILE --connections 1000 --per-connection 1
 *
 * A latency is that of one message: from the write of its text to the 250; with a plan, from the
 * moment that the plan has it for.  With --pipeline MAIL, RCPT and DATA are one write, together with
 * the text of the message before (RFC 2920).
 */
#define _GNU_SOURCE 1
#include "load.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum state { GREETING, HELLO, MAIL, RCPT, DATA, TEXT, ENVELOPE, TEXT_AND_ENVELOPE, BYE, IDLE };

/* The codes that are expected in each state, in order. */
static const char *const EXPECTED[] = {
    [GREETING] = "220", [HELLO] = "250",       [MAIL] = "250",
    [RCPT] = "250",     [DATA] = "354",        [TEXT] = "250",
    [ENVELOPE] = "250250354", [TEXT_AND_ENVELOPE] = "250250250354", [BYE] = "221",
    [IDLE] = "",
};

struct session {
    struct job job;  /* whose envelope is sent or comes next */
    int has_job;
    uint32_t codes;  /* of the replies in this state so far */
    double since;    /* of the message whose text is under way */
};

static int pipelined, lmtp;
static uint32_t per_connection;
static uint32_t numbers;

static void opened(struct conn *conn)
{
    struct session *session = conn->session;
    session->has_job = job_take(&session->job);
}

static void send_text(struct conn *conn, const char *behind)
{
    struct session *session = conn->session;
    struct iovec pieces[MESSAGE_PIECES + 2];
    char room[MESSAGE_ROOM];
    int count = MESSAGE_PIECES;
    message_pieces(pieces, room, session->job.size, numbers++);
    pieces[count++] = (struct iovec){".\r\n", 3};
    if (behind) pieces[count++] = (struct iovec){(char *)behind, strlen(behind)};
    net_send(conn, pieces, count);
}

static int take_next(struct conn *conn)
{
    struct session *session = conn->session;
    session->has_job = 0;
    if (!per_connection || ++conn->done < per_connection)
        session->has_job = job_take(&session->job);
    return session->has_job;
}

static void envelope(char *text, size_t room, const char *recipient)
{
    snprintf(text, room, "MAIL FROM:<load@perf.example>\r\nRCPT TO:<%s>\r\nDATA\r\n", recipient);
}

/* The next message, or the end; or a pause, if there will be more. */
static void begin(struct conn *conn)
{
    struct session *session = conn->session;
    char text[600];
    if (!session->has_job) {
        int full = per_connection && conn->done >= per_connection;
        conn->waiting = !full && jobs_left();
        conn->state = conn->waiting ? IDLE : BYE;
        if (!conn->waiting) net_text(conn, "QUIT\r\n");
        return;
    }
    conn->state = pipelined ? ENVELOPE : MAIL;
    envelope(text, sizeof text, session->job.address);
    net_text(conn, pipelined ? text : "MAIL FROM:<load@perf.example>\r\n");
}

/* A parked connection gets a job, or hears that there are no more. */
static void job(struct conn *conn)
{
    struct session *session = conn->session;
    session->has_job = job_take(&session->job);
    begin(conn);
}

static void send_pipelined_text(struct conn *conn)
{
    struct session *session = conn->session;
    char text[600];
    struct session before = *session;
    session->since = job_since(&session->job);
    conn->state = TEXT;
    if (!take_next(conn)) {
        session->job = before.job;
        send_text(conn, NULL);
        return;
    }
    conn->state = TEXT_AND_ENVELOPE;
    envelope(text, sizeof text, session->job.address);
    struct job next = session->job;
    session->job = before.job;
    send_text(conn, text);
    session->job = next;
}

static void recipient(struct conn *conn)
{
    struct session *session = conn->session;
    char text[600];
    conn->state = RCPT;
    snprintf(text, sizeof text, "RCPT TO:<%s>\r\n", session->job.address);
    net_text(conn, text);
}

/* All replies of a state are there and right. */
static void proceed(struct conn *conn)
{
    struct session *session = conn->session;
    session->codes = 0;
    switch ((enum state)conn->state) {
    case GREETING:
        conn->state = HELLO;
        net_text(conn, lmtp ? "LHLO load.perf.example\r\n" : "EHLO load.perf.example\r\n");
        break;
    case HELLO: begin(conn); break;
    case MAIL: recipient(conn); break;
    case RCPT:
        conn->state = DATA;
        net_text(conn, "DATA\r\n");
        break;
    case DATA:
        conn->state = TEXT;
        session->since = job_since(&session->job);
        send_text(conn, NULL);
        break;
    case TEXT:
        report_done(session->since);
        if (!pipelined) take_next(conn);
        begin(conn);
        break;
    case TEXT_AND_ENVELOPE: report_done(session->since); /* fall through */
    case ENVELOPE: send_pipelined_text(conn); break;
    case BYE: case IDLE: break;
    }
}

/* 1: a complete reply was right; 0: it goes on; -1: it was wrong. */
static int check(struct conn *conn, const char *line, size_t length)
{
    struct session *session = conn->session;
    const char *wanted = EXPECTED[conn->state] + (size_t)session->codes * 3;
    if (length < 5 || !*wanted || memcmp(line, wanted, 3)) {
        net_fail(conn, "wanted %.3s in state %d, got: %.*s", wanted, conn->state,
                 length > 90 ? 90 : (int)length, line);
        return -1;
    }
    if (line[3] == '-') return 0;
    session->codes++;
    return 1;
}

static size_t received(struct conn *conn, const char *data, size_t length)
{
    size_t at = 0;
    while (at < length && conn->fd >= 0) {
        const char *end = memchr(data + at, '\n', length - at);
        if (!end) break;
        size_t line = (size_t)(end - data) + 1 - at;
        int found = check(conn, data + at, line);
        at += line;
        if (found < 0) break;
        uint32_t codes = ((struct session *)conn->session)->codes;
        if (found && conn->state != BYE && !EXPECTED[conn->state][codes * 3]) proceed(conn);
    }
    return at;
}

enum flag {
    HOST = 1, PORT, RECIPIENTS, MESSAGES, CONNECTIONS, SIZE, PIPELINE, EACH, AS_LMTP, PLAN
};

static const struct option OPTIONS[] = {
    {"host", required_argument, NULL, HOST},
    {"port", required_argument, NULL, PORT},
    {"recipients", required_argument, NULL, RECIPIENTS},
    {"messages", required_argument, NULL, MESSAGES},
    {"connections", required_argument, NULL, CONNECTIONS},
    {"size", required_argument, NULL, SIZE},
    {"pipeline", no_argument, NULL, PIPELINE},
    {"per-connection", required_argument, NULL, EACH},
    {"lmtp", no_argument, NULL, AS_LMTP},
    {"plan", required_argument, NULL, PLAN},
    {NULL, 0, NULL, 0},
};

struct settings {
    struct endpoint endpoint;
    const char *recipients, *plan;
    uint64_t messages;
    uint32_t size;
};

static void set(struct settings *settings, int option)
{
    switch (option) {
    case HOST: settings->endpoint.host = optarg; break;
    case PORT: settings->endpoint.port = atoi(optarg); break;
    case RECIPIENTS: settings->recipients = optarg; break;
    case MESSAGES: settings->messages = strtoull(optarg, NULL, 10); break;
    case CONNECTIONS: settings->endpoint.connections = atoi(optarg); break;
    case SIZE: settings->size = (uint32_t)atoi(optarg); break;
    case PIPELINE: pipelined = 1; break;
    case EACH: per_connection = (uint32_t)atoi(optarg); break;
    case AS_LMTP: lmtp = 1; break;
    case PLAN: settings->plan = optarg; break;
    default: die("see the top of perf/load/smtp.c for the options");
    }
}

static void prepare(const struct settings *settings)
{
    uint32_t count;
    if (settings->plan) {
        jobs_plan(settings->plan);
        message_prepare(64 << 20);
    } else if (settings->recipients && settings->size >= SMALLEST_MESSAGE) {
        char **lines = read_lines(settings->recipients, &count);
        jobs_repeat(settings->messages, settings->size, lines, count);
        message_prepare(settings->size);
    } else {
        die("give --plan, or --recipients and a --size of at least %d", SMALLEST_MESSAGE);
    }
}

int main(int argc, char **argv)
{
    static const struct protocol smtp = {sizeof(struct session), opened, received, job, BYE};
    struct settings settings = {{"127.0.0.1", 2525, 20, 60.0}, NULL, NULL, 10000, 500};
    for (int option; (option = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1;)
        set(&settings, option);
    prepare(&settings);
    report_start("messages");
    net_run(&settings.endpoint, &smtp);
    return report_print();
}
