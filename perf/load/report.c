/* What a run did: units of work, their latencies, errors, and what the generator itself cost. */
#define _GNU_SOURCE 1
#include "load.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#define MOST_TEXTS 5

uint64_t report_count, report_errors, report_samples, report_connections, report_busy;

static const char *unit;
static double started, elapsed, cpu_before;
static float *latencies;
static size_t latency_room;
static char texts[MOST_TEXTS][200];

double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double cpu(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(2);
}

void report_start(const char *of)
{
    unit = of;
    cpu_before = cpu();
    started = now();
}

void report_stop(void)
{
    elapsed = now() - started;
}

void report_done(double since)
{
    if (report_count == latency_room) {
        latency_room = latency_room ? latency_room * 2 : 1 << 16;
        latencies = realloc(latencies, latency_room * sizeof *latencies);
        if (!latencies) die("no memory for latencies");
    }
    latencies[report_count++] = (float)(now() - since);
}

void report_error(const char *format, ...)
{
    if (report_errors < MOST_TEXTS) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(texts[report_errors], sizeof texts[0], format, arguments);
        va_end(arguments);
    }
    report_errors++;
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double at(double place)
{
    return latencies[(size_t)((double)(report_count - 1) * place + 0.5)] * 1e3;
}

static void print_latencies(void)
{
    if (!report_count) {
        printf("\"latency_ms\": {}, ");
        return;
    }
    qsort(latencies, report_count, sizeof *latencies, by_size);
    printf("\"latency_ms\": {\"p50\": %.3f, \"p99\": %.3f, \"p99.9\": %.3f, \"max\": %.3f}, ",
           at(0.5), at(0.99), at(0.999), at(1.0));
}

static void print_text(const char *text)
{
    putchar('"');
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == '"' || *text == '\\' || *text & 0x80)
            printf("\\u%04x", (unsigned char)*text);
        else
            putchar(*text);
    putchar('"');
}

int report_print(void)
{
    double used = cpu() - cpu_before;
    printf("{\"unit\": \"%s\", \"count\": %llu, \"seconds\": %.6f, \"rate\": %.1f, ", unit,
           (unsigned long long)report_count, elapsed, (double)report_count / elapsed);
    printf("\"load_cpu_us\": %.2f, \"load_busy\": %.3f, \"connections\": %llu, ",
           report_count ? used / (double)report_count * 1e6 : 0.0, used / elapsed,
           (unsigned long long)report_connections);
    printf("\"samples\": %llu, \"in_use\": %llu, ", (unsigned long long)report_samples,
           (unsigned long long)report_busy);
    print_latencies();
    printf("\"error_count\": %llu, \"errors\": [", (unsigned long long)report_errors);
    for (uint64_t i = 0; i < report_errors && i < MOST_TEXTS; i++) {
        if (i) printf(", ");
        print_text(texts[i]);
    }
    printf("]}\n");
    return report_errors != 0;
}
