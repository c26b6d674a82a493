/* The connections of the load generator. */
#ifndef CLIENT_H
#define CLIENT_H

#include "load.h"

#include <netinet/in.h>

struct connection {
    int fd; /* -1: closed */
    int is_busy, is_connecting;
    struct template *template;
    size_t written;
    int64_t due, begun, rests_until;
    struct answer answer;
};

struct load {
    struct options options;
    struct counts counts;
    struct sockaddr_in address;
    struct connection *connections;
    int *free_slots; /* a stack: the connection used last is taken first, so that the others may idle out */
    int free_count;
    int epoll;
    int64_t start, end; /* no request begins after `end` */
    int64_t *schedule;  /* open loop: when each request is due */
    size_t schedule_count, schedule_next;
};

/* Sends the next request on the free connection that was used last; there has to be one. */
void begin(struct load *load, int64_t due, int64_t now);

/* Takes what epoll told of a connection. */
void handle(struct load *load, struct connection *connection, uint32_t events);

void look_for_timeouts(struct load *load, int64_t now);

#endif
