/* A load generator for HTTP/1.1 servers: one thread, kept-alive connections, whole requests from files.
 *
 * Closed loop: every connection asks again as soon as it is answered. Open loop: requests are due at a rate, whatever
 * the server does, and their latency counts from when they were due. Every request ends as exactly one of: an answer,
 * a connection that could not be made, one that the server closed, a time-out, or bytes that are no HTTP.
 */
#define _GNU_SOURCE
#include "client.h"

#include <arpa/inet.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>

#define TICK (20 * MILLISECOND) /* how often time-outs are looked for */
#define EVENTS 256

static volatile sig_atomic_t is_stopped;


static void stop(int number)
{
    (void)number;
    is_stopped = 1;
}

int64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * SECOND + time.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void begin_closed(struct load *load, int64_t now)
{
    int is_counted = load->options.requests > 0;
    /* One that rests after a failure lets those below it wait too: the server is away, and that is soon over. */
    while (load->free_count && now < load->end && !is_stopped) {
        const struct connection *connection = &load->connections[load->free_slots[load->free_count - 1]];
        if (connection->rests_until > now || (is_counted && load->counts.sent >= load->options.requests))
            return;
        begin(load, now, now);
    }
}

static void begin_open(struct load *load, int64_t now)
{
    for (; load->schedule_next < load->schedule_count && load->schedule[load->schedule_next] <= now;
         load->schedule_next++) {
        int64_t due = load->schedule[load->schedule_next];
        if (is_stopped)
            return;
        if (load->free_count)
            begin(load, due, now);
        else if (now - due >= load->options.patience)
            load->counts.unsent++;
        else
            return;
    }
}

static int is_over(const struct load *load, int64_t now)
{
    if (load->free_count < load->options.connections)
        return 0;
    if (is_stopped)
        return 1;
    if (load->options.rate > 0)
        return load->schedule_next == load->schedule_count;
    return now >= load->end || (load->options.requests && load->counts.sent >= load->options.requests);
}

/* Until something happens, a request is due, or the next tick; finer than epoll_wait's milliseconds. */
static void wait_for_events(struct load *load, int64_t now, int64_t tick)
{
    int64_t until = tick;
    if (load->schedule_next < load->schedule_count) {
        int64_t next = load->schedule[load->schedule_next] + (load->free_count ? 0 : load->options.patience);
        until = next < until ? next : until;
    }
    int64_t left = until > now ? until - now : 0;
    struct timespec timeout = {.tv_sec = left / SECOND, .tv_nsec = left % SECOND};
    struct pollfd ready = {.fd = load->epoll, .events = POLLIN};
    if (load->schedule_count)
        ppoll(&ready, 1, &timeout, NULL);
    struct epoll_event events[EVENTS];
    int wait_ms = load->schedule_count ? 0 : (int)((left + MILLISECOND - 1) / MILLISECOND);
    int count = epoll_wait(load->epoll, events, EVENTS, wait_ms);
    for (int index = 0; index < count; index++)
        handle(load, events[index].data.ptr, events[index].events);
}

static void run(struct load *load)
{
    int64_t tick = load->start + TICK;
    for (;;) {
        int64_t now = now_ns();
        if (now >= tick) {
            look_for_timeouts(load, now);
            tick = now + TICK;
        }
        if (load->schedule_count)
            begin_open(load, now);
        else
            begin_closed(load, now);
        if (is_over(load, now))
            return;
        wait_for_events(load, now, tick);
    }
}

/* Uniform in (0, 1], by xorshift64*. */
static double chance(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return ((double)((*state * UINT64_C(2685821657736338717)) >> 11) + 1.0) / 9007199254740992.0;
}

/* For `seconds`, or `requests` of them; relative to the start. */
static void plan(struct load *load)
{
    const struct options *options = &load->options;
    uint64_t seed = options->seed ? options->seed : 1;
    size_t capacity = 0;
    double due = 0;
    for (size_t count = 0;; count++) {
        if (options->requests ? count >= options->requests : due >= options->seconds)
            return;
        if (count == capacity) {
            capacity = capacity ? capacity * 2 : 4096;
            load->schedule = realloc(load->schedule, capacity * sizeof *load->schedule);
            if (!load->schedule)
                fail("plan");
        }
        load->schedule[count] = (int64_t)(due * (double)SECOND);
        load->schedule_count = count + 1;
        due = options->is_poisson ? due - log(chance(&seed)) / options->rate : (double)(count + 1) / options->rate;
    }
}

static void prepare(struct load *load)
{
    const struct options *options = &load->options;
    load->address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)options->port)};
    if (inet_pton(AF_INET, options->host, &load->address.sin_addr) != 1) {
        fprintf(stderr, "load: --host is not an IPv4 address\n");
        exit(2);
    }
    load->epoll = epoll_create1(EPOLL_CLOEXEC);
    load->connections = calloc((size_t)options->connections, sizeof *load->connections);
    load->free_slots = calloc((size_t)options->connections, sizeof *load->free_slots);
    if (load->epoll < 0 || !load->connections || !load->free_slots)
        fail("prepare");
    for (int index = options->connections - 1; index >= 0; index--) {
        load->connections[index].fd = -1;
        load->free_slots[load->free_count++] = index;
    }
    if (options->rate > 0)
        plan(load);
}

static void listen_to_signals(void)
{
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
}

static void set_start(struct load *load)
{
    load->start = now_ns();
    load->end = load->options.seconds > 0 ? load->start + (int64_t)(load->options.seconds * (double)SECOND) : INT64_MAX;
    for (size_t index = 0; index < load->schedule_count; index++)
        load->schedule[index] += load->start;
}

int main(int count, char **words)
{
    static struct load load;
    struct timespec clock;
    parse_options(&load.options, count, words);
    listen_to_signals();
    prepare(&load);
    clock_gettime(CLOCK_REALTIME, &clock);
    set_start(&load);
    run(&load);
    int64_t stopped = now_ns();
    int64_t measured = (stopped < load.end ? stopped : load.end) - load.start;
    print_report(&load.options, &load.counts, (double)measured / (double)SECOND,
                 (double)clock.tv_sec + (double)clock.tv_nsec / (double)SECOND);
    return 0;
}
