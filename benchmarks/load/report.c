#define _GNU_SOURCE
#include "load.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static void *grown(void *memory, size_t size)
{
    memory = realloc(memory, size);
    if (!memory) {
        perror("load");
        exit(1);
    }
    return memory;
}

void add_sample(struct samples *samples, int64_t ns)
{
    if (samples->count == samples->capacity) {
        samples->capacity = samples->capacity ? samples->capacity * 2 : 4096;
        samples->ms = grown(samples->ms, samples->capacity * sizeof *samples->ms);
    }
    samples->ms[samples->count++] = (float)((double)ns / 1e6);
}

struct second *second_at(struct counts *counts, int64_t since_start)
{
    size_t index = since_start < 0 ? 0 : (size_t)(since_start / SECOND);
    if (index >= counts->timeline_count) {
        counts->timeline = grown(counts->timeline, (index + 1) * sizeof *counts->timeline);
        size_t fresh = index + 1 - counts->timeline_count;
        memset(counts->timeline + counts->timeline_count, 0, fresh * sizeof *counts->timeline);
        counts->timeline_count = index + 1;
    }
    return &counts->timeline[index];
}

static int by_size(const void *left, const void *right)
{
    float one = *(const float *)left, other = *(const float *)right;
    return (one > other) - (one < other);
}

/* Every latency is kept, so these are exact: the smallest that is not below the share of all. */
static double percentile(const struct samples *samples, double share)
{
    size_t rank = (size_t)ceil(share * (double)samples->count);
    return samples->ms[rank ? rank - 1 : 0];
}

static void print_samples(const char *name, struct samples *samples)
{
    if (!samples->count) {
        printf("\"%s\": null", name);
        return;
    }
    qsort(samples->ms, samples->count, sizeof *samples->ms, by_size);
    double sum = 0;
    for (size_t index = 0; index < samples->count; index++)
        sum += samples->ms[index];
    printf("\"%s\": {\"count\": %zu, \"mean\": %.4f, \"p50\": %.4f, \"p90\": %.4f, \"p95\": %.4f, \"p99\": %.4f, \"max\": %.4f}",
           name, samples->count, sum / (double)samples->count, percentile(samples, 0.5), percentile(samples, 0.9),
           percentile(samples, 0.95), percentile(samples, 0.99), samples->ms[samples->count - 1]);
}

static void print_statuses(const struct counts *counts)
{
    const char *between = "";
    printf("\"statuses\": {");
    for (int status = 0; status < MAX_STATUS; status++) {
        if (counts->statuses[status]) {
            printf("%s\"%d\": %llu", between, status, (unsigned long long)counts->statuses[status]);
            between = ", ";
        }
    }
    printf("}");
}

static void print_templates(struct options *options)
{
    printf("\"templates\": [");
    for (int index = 0; index < options->template_count; index++) {
        struct template *template = &options->templates[index];
        printf("%s{\"requests\": %llu, \"ok\": %llu, ", index ? ", " : "", (unsigned long long)template->sent,
               (unsigned long long)template->ok);
        print_samples("latency_ms", &template->latency);
        printf("}");
    }
    printf("]");
}

static void print_timeline(const struct counts *counts)
{
    printf("\"timeline\": [");
    for (size_t index = 0; index < counts->timeline_count; index++)
        printf("%s[%llu, %llu]", index ? ", " : "", (unsigned long long)counts->timeline[index].ok,
               (unsigned long long)counts->timeline[index].other);
    printf("]");
}

static void print_count(const char *name, uint64_t count)
{
    printf("\"%s\": %llu, ", name, (unsigned long long)count);
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

void print_report(struct options *options, struct counts *counts, double seconds, double started_unix)
{
    double cpu = cpu_seconds(); /* before the sorting */
    printf("{\"started_unix_s\": %.3f, \"seconds\": %.4f, \"cpu_s\": %.4f, ", started_unix, seconds, cpu);
    print_count("requests", counts->sent);
    print_count("answers", counts->outcomes[ANSWERED]);
    print_count("ok", counts->ok);
    print_count("wrong_body", counts->wrong_body);
    print_count("connect_errors", counts->outcomes[NOT_CONNECTED]);
    print_count("disconnects", counts->outcomes[DISCONNECTED]);
    print_count("timeouts", counts->outcomes[TIMED_OUT]);
    print_count("no_http", counts->outcomes[NO_HTTP]);
    print_count("late", counts->late);
    print_count("unsent", counts->unsent);
    print_count("connections", counts->connections);
    printf("\"rps\": %.3f, \"goodput\": %.3f, ", (double)counts->answers_in_time / seconds,
           (double)counts->ok_in_time / seconds);
    print_samples("latency_ms", &counts->latency);
    printf(", ");
    print_samples("service_ms", &counts->service);
    printf(", ");
    print_statuses(counts);
    printf(", ");
    print_templates(options);
    printf(", ");
    print_timeline(counts);
    printf("}\n");
}
