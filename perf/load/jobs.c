/* What is to be done, and when: a count of equal jobs at once, or a plan by the clock.
 *
 * A plan's latencies begin when a job was due, not when a connection was free for it: a server that
 * stalls must not look better because the generator waited for it.
 */
#define _GNU_SOURCE 1
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t left;
static uint32_t each_size, next_address, address_count;
static char **addresses;
static struct job *plan;
static uint64_t planned, taken;
static double start;

void jobs_repeat(uint64_t count, uint32_t size, char **of, uint32_t of_count)
{
    left = count;
    each_size = size;
    addresses = of;
    address_count = of_count;
}

static char *read_whole(const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file) die("%s cannot be opened", path);
    size_t room = 1 << 16, length = 0, got;
    char *text = malloc(room);
    while (text && (got = fread(text + length, 1, room - length - 1, file)) > 0) {
        length += got;
        if (room - length < 2) text = realloc(text, room *= 2);
    }
    if (!text) die("no memory for %s", path);
    fclose(file);
    text[length] = 0;
    return text;
}

char **read_lines(const char *path, uint32_t *count)
{
    char *text = read_whole(path), *rest = NULL;
    uint32_t room = 1024;
    char **lines = malloc(room * sizeof *lines);
    *count = 0;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        if (*count == room) lines = realloc(lines, (room *= 2) * sizeof *lines);
        if (!lines) die("no memory for %s", path);
        lines[(*count)++] = line;
    }
    if (!*count) die("%s is empty", path);
    return lines;
}

void jobs_plan(const char *path)
{
    uint32_t count;
    char **lines = read_lines(path, &count);
    plan = calloc(count, sizeof *plan);
    if (!plan) die("no memory for the plan");
    for (uint32_t i = 0; i < count; i++) {
        int at = 0;
        long long due;
        if (sscanf(lines[i], "%lld %u %n", &due, &plan[i].size, &at) < 2 || !at)
            die("%s: line %u is not \"MICROSECONDS SIZE ADDRESS\"", path, i + 1);
        plan[i].due = (double)due * 1e-6;
        plan[i].address = lines[i] + at;
    }
    planned = count;
}

void jobs_start(void)
{
    start = now();
}

int jobs_left(void)
{
    return plan ? taken < planned : left > 0;
}

double jobs_wait(void)
{
    if (!jobs_left()) return -1.0;
    if (!plan) return 0.0;
    double wait = start + plan[taken].due - now();
    return wait > 0 ? wait : 0.0;
}

int jobs_due(void)
{
    return jobs_wait() == 0.0;
}

int job_take(struct job *job)
{
    if (!jobs_due()) return 0;
    if (plan) {
        *job = plan[taken++];
        return 1;
    }
    left--;
    *job = (struct job){0.0, each_size, addresses[next_address], next_address};
    next_address = (next_address + 1) % address_count;
    return 1;
}

double job_since(const struct job *job)
{
    return plan ? start + job->due : now();
}
