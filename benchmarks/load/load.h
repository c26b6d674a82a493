/* What the parts of the load generator share. All times are nanoseconds of CLOCK_MONOTONIC. */
#ifndef LOAD_H
#define LOAD_H

#include "answer.h"

#include <stddef.h>
#include <stdint.h>

#define SECOND INT64_C(1000000000)
#define MILLISECOND INT64_C(1000000)
#define MAX_TEMPLATES 64
#define MAX_STATUS 600

struct samples {
    float *ms;
    size_t count, capacity;
};

/* A request that is sent again and again, what its answer has to be, and how that went. */
struct template {
    const char *path;
    char *request, *equals, *contains; /* the last two NULL where the body is not checked */
    size_t request_size, equals_size, contains_size;
    int status;
    int weight, credit;
    uint64_t sent, ok;
    struct samples latency;
};

struct options {
    const char *host;
    int port, connections, is_poisson;
    double seconds, rate;
    uint64_t requests, seed;
    int64_t timeout, patience;
    struct template templates[MAX_TEMPLATES];
    int template_count;
};

enum outcome { ANSWERED, NOT_CONNECTED, DISCONNECTED, TIMED_OUT, NO_HTTP, OUTCOMES };

struct second {
    uint64_t ok, other;
};

struct counts {
    uint64_t sent, ok, wrong_body, late, unsent, connections;
    uint64_t outcomes[OUTCOMES];
    uint64_t statuses[MAX_STATUS];
    uint64_t answers_in_time, ok_in_time; /* before the planned end: the rates are made of these */
    struct samples latency;               /* of the ok ones, from when they were due */
    struct samples service;               /* of the ok ones, from when they were sent */
    struct second *timeline;
    size_t timeline_count;
};

int64_t now_ns(void);

/* Exits with a usage message where the options do not fit together. */
void parse_options(struct options *options, int count, char **words);

/* Weighted round-robin, evenly mixed and without chance. */
struct template *next_template(struct options *options);

void add_sample(struct samples *samples, int64_t ns);
struct second *second_at(struct counts *counts, int64_t since_start);
void print_report(struct options *options, struct counts *counts, double seconds, double started_unix);

#endif
