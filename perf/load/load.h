/* What the two load generators share: connections, jobs by the clock, messages, the report.
 *
 * Rules of this directory:
 *
 *   - The generator shares the machine with the server, so it must never be what bounds: one epoll,
 *     one read and one write per step, and nothing built per message that can be built before.
 *   - Every reply is checked.  A wrong one is an error of the report, and its connection is closed.
 *   - A connection ends as an honest client's does: after the reply to QUIT it waits until the
 *     server has closed.
 *   - The report carries the generator's own CPU time, so that a reader sees what it cost.
 */
#ifndef LOAD_H
#define LOAD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define MESSAGE_PIECES 3 /* header, body, last line */

/* -- report.c ---------------------------------------------------------------------------------- */

double now(void);                    /* seconds, monotonic */
void report_start(const char *unit);
void report_done(double since);      /* one unit of work, begun at `since` */
void report_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void report_stop(void);              /* the work is done: the clock stops */
int report_print(void);              /* JSON to standard output; 1 if there were errors */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));
extern uint64_t report_count, report_errors, report_samples, report_connections, report_busy;

/* -- net.c ------------------------------------------------------------------------------------- */

struct conn {
    int fd;
    int index;         /* 0 .. connections-1, the user's number for POP3 */
    int state;         /* of the protocol */
    int waiting;       /* parked: open, and nothing to do until a job is due */
    uint32_t done;     /* jobs of this connection */
    double since;      /* when the unit under way began */
    char *kept;        /* an incomplete reply */
    size_t kept_length, kept_room, scanned;
    char *unsent;
    size_t unsent_length, unsent_at;
    void *session;     /* the protocol's own; zeroed */
};

struct protocol {
    size_t session_size;
    void (*opened)(struct conn *);
    /* Takes whole replies, returns how many bytes it took; may send, may close. */
    size_t (*received)(struct conn *, const char *data, size_t length);
    void (*job)(struct conn *); /* a parked connection gets the job that has come due */
    int ended;                  /* the state in which the server is expected to close */
};

struct endpoint {
    const char *host;
    int port;
    int connections;
    double stall;   /* seconds without any event that end the run */
};

void net_run(const struct endpoint *, const struct protocol *);
void net_send(struct conn *, struct iovec *pieces, int count);
void net_text(struct conn *, const char *text);
void net_fail(struct conn *, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* -- jobs.c: what is to be done, and when ------------------------------------------------------- */

struct job {
    double due;          /* seconds since the start; 0: at once */
    uint32_t size;       /* bytes of a message, or the POP3 action */
    const char *address; /* a recipient or a user */
    uint32_t number;     /* of the address in its list */
};

void jobs_repeat(uint64_t count, uint32_t size, char **addresses, uint32_t address_count);
void jobs_plan(const char *path); /* lines "MICROSECONDS SIZE ADDRESS", in order of time */
void jobs_start(void);            /* the clock of the plan starts */
int jobs_due(void);               /* whether one may be taken now */
int jobs_left(void);
double jobs_wait(void);           /* seconds until the next is due; negative: no more */
int job_take(struct job *);       /* 0: none is due */
double job_since(const struct job *); /* when its latency begins */
char **read_lines(const char *path, uint32_t *count);

/* -- message.c --------------------------------------------------------------------------------- */

/* Each message has its number in its last line; one of 64 carries a digest of its body. */
#define SAMPLE 64
#define SMALLEST_MESSAGE 160

void message_prepare(uint32_t largest);
/* Exactly `size` bytes in three pieces, without the final dot line; the pieces live until the next
 * call for the same buffer of MESSAGE_ROOM bytes. */
#define MESSAGE_ROOM 400
void message_pieces(struct iovec *pieces, char *room, uint32_t size, uint32_t number);
/* 1: a digest is there and right; 0: none is there; -1: it is wrong. */
int message_check(const char *text, size_t length);

#endif
