/* Messages of an exact size, and the check of what comes back.
 *
 *     header   From, Subject, "X-Load: NUMBER DIGEST" (DIGEST zeros: not a sample)
 *     body     lines of 78 bytes, the same for all messages
 *     last     a line with the number in it, which brings the message to its size
 *
 * The digest is FNV-1a, 64 bits, of the body and the last line.
 */
#define _GNU_SOURCE 1
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE 80
#define LAST 14 /* the shortest last line: "z0123456789z" CR LF */
static const char HEADER[] = "From: <load@perf.example>\r\nSubject: load\r\n"
                             "X-Load: %010u %016llx\r\n\r\n";
#define HEADER_LENGTH 81
#define HEADER_ROOM 128

static char *body;
static uint32_t body_length;

void message_prepare(uint32_t largest)
{
    body_length = largest / LINE * LINE + LINE;
    body = malloc(body_length);
    if (!body) die("no memory for messages of %u bytes", largest);
    memset(body, 'x', body_length);
    for (uint32_t at = LINE; at <= body_length; at += LINE) memcpy(body + at - 2, "\r\n", 2);
}

static uint64_t digest(uint64_t hash, const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3u;
    return hash;
}

#define DIGEST_START 0xcbf29ce484222325u

static void last_line(char *line, uint32_t length, uint32_t number)
{
    char digits[12];
    snprintf(digits, sizeof digits, "%010u", number);
    memset(line, 'z', length - 2);
    memcpy(line + 1, digits, 10);
    memcpy(line + length - 2, "\r\n", 2);
}

void message_pieces(struct iovec *pieces, char *room, uint32_t size, uint32_t number)
{
    uint32_t rest = size - HEADER_LENGTH;
    uint32_t full = (rest - LAST) / LINE * LINE;
    char *last = room + HEADER_ROOM;
    uint64_t sum = 0;
    last_line(last, rest - full, number);
    if (number % SAMPLE == 0) sum = digest(digest(DIGEST_START, body, full), last, rest - full);
    int header = snprintf(room, HEADER_ROOM, HEADER, number, (unsigned long long)sum);
    if (header != HEADER_LENGTH) die("the header has %d bytes, not %d", header, HEADER_LENGTH);
    pieces[0] = (struct iovec){room, HEADER_LENGTH};
    pieces[1] = (struct iovec){body, full};
    pieces[2] = (struct iovec){last, rest - full};
}

int message_check(const char *text, size_t length)
{
    const char *field = memmem(text, length, "\nX-Load: ", 9);
    if (!field) return -1;
    size_t left = length - (size_t)(field - text);
    const char *from = memmem(field, left, "\r\n\r\n", 4);
    if (!from || left < 37) return -1;
    unsigned long long wanted = strtoull(field + 20, NULL, 16);
    if (!wanted) return 0;
    from += 4;
    return digest(DIGEST_START, from, length - (size_t)(from - text)) == wanted ? 1 : -1;
}
